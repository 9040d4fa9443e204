package image

import (
	"context"
	"errors"
	"slices"
	"strconv"
	"time"

	"vch/internal/fault"
	"vch/portlayer"
)

// Remove implements portlayer.Images, by the rules of moby's daemon/images/image_delete.go. It differs in one: force never deletes an image that a
// container uses, running or not, for its disk is the container's; it only takes the names away. noPrune has no meaning: there are no parent images.
func (s *Service) Remove(ctx context.Context, ref string, force, _ bool) ([]portlayer.ImageDeleted, error) {
	done, err := s.catalog.change(ctx)
	if err != nil {
		return nil, err
	}
	defer done()
	id, canonical, err := s.catalog.find(ref)
	if err != nil {
		return nil, err
	}
	return s.remove(ctx, ref, id, canonical, force)
}

// remove is Remove with the turn taken. canonical is the name that ref means, "" for an id.
func (s *Service) remove(ctx context.Context, ref string, id portlayer.ImageID, canonical string, force bool) ([]portlayer.ImageDeleted, error) {
	names, users := s.catalog.namesOf(id), s.inUse(id)
	single := oneReference(names)
	var gone []string // names to take away
	whole := true     // the image goes too
	switch {
	case canonical != "":
		if len(users) > 0 && single && !force {
			return nil, fault.New(fault.InUse, "conflict: unable to remove repository reference %q (must force) - container %s is using its referenced image %s", ref, short(string(users[0])), short(string(id)))
		}
		gone = untagged(names, canonical)
		whole = len(gone) == len(names)
	case !single && !force:
		return nil, fault.New(fault.Conflict, "conflict: unable to delete %s (must be forced) - image is referenced in multiple repositories", short(string(id)))
	case len(users) > 0 && (!force || len(names) == 0):
		how := "must"
		if force {
			how = "cannot"
		}
		return nil, fault.New(fault.InUse, "conflict: unable to delete %s (%s be forced) - image is being used by container %s", short(string(id)), how, short(string(users[0])))
	default:
		gone = names
	}
	var effects []portlayer.ImageDeleted
	for _, name := range gone {
		if err := s.catalog.unname(name); err != nil {
			return effects, s.storage(err)
		}
		effects = append(effects, portlayer.ImageDeleted{Untagged: familiar(name)})
		s.event("untag", string(id), string(id))
	}
	if !whole || len(users) > 0 {
		return effects, nil
	}
	deleted, _, err := s.delete(ctx, id)
	return append(effects, deleted...), err
}

// delete removes an image without names or users, and the layers that no other needs. The caller has the turn.
func (s *Service) delete(ctx context.Context, id portlayer.ImageID) ([]portlayer.ImageDeleted, portlayer.Bytes, error) {
	k, ok := s.catalog.get(id)
	if !ok {
		return nil, 0, fault.New(fault.NotFound, "No such image: %s", id)
	}
	if err := s.catalog.drop(id); err != nil {
		return nil, 0, s.storage(err)
	}
	effects := []portlayer.ImageDeleted{{Deleted: string(id)}}
	top := slices.Clone(k.layers)
	slices.Reverse(top)
	freed, layers, err := s.sweep(ctx, keys(top)[:len(top)])
	for _, l := range layers {
		effects = append(effects, portlayer.ImageDeleted{Deleted: l})
	}
	disk, _, diskErr := s.sweep(ctx, []string{k.disk})
	s.event("delete", string(id), string(id))
	return effects, freed + disk, errors.Join(err, diskErr)
}

// untagged gives the names that go when canonical is taken away: with the last tag of a repository go the digests that it was pulled by.
func untagged(names []string, canonical string) []string {
	gone := []string{canonical}
	if isDigestName(canonical) {
		return gone
	}
	repo := repository(canonical)
	var digests []string
	for _, name := range names {
		switch {
		case name == canonical || repository(name) != repo:
		case !isDigestName(name):
			return gone // another tag stays
		default:
			digests = append(digests, name)
		}
	}
	return append(gone, digests...)
}

// oneReference reports whether names are at most one tag, with digests of its own repository only (moby's isSingleReference).
func oneReference(names []string) bool {
	if len(names) <= 1 {
		return true
	}
	tags, repos := 0, map[string]bool{}
	for _, name := range names {
		if !isDigestName(name) {
			tags++
		}
		repos[repository(name)] = true
	}
	return tags <= 1 && len(repos) == 1
}

// Prune implements portlayer.Images. It also deletes layers that pulls which were never finished have left.
//
// Of layers that have not come whole it removes what is not being fetched just now.
func (s *Service) Prune(ctx context.Context, all bool, pick func(portlayer.Image) bool) ([]portlayer.ImageDeleted, portlayer.Bytes, error) {
	done, err := s.catalog.change(ctx)
	if err != nil {
		return nil, 0, err
	}
	defer done()
	var effects []portlayer.ImageDeleted
	var freed portlayer.Bytes
	for _, img := range s.catalog.all() {
		if err := ctx.Err(); err != nil {
			return effects, freed, err
		}
		if len(img.Tags) > 0 && !all || pick != nil && !pick(img) || len(s.inUse(img.ID)) > 0 {
			continue
		}
		for _, name := range s.catalog.namesOf(img.ID) {
			if err := s.catalog.unname(name); err != nil {
				return effects, freed, s.storage(err)
			}
			effects = append(effects, portlayer.ImageDeleted{Untagged: familiar(name)})
			s.event("untag", string(img.ID), string(img.ID))
		}
		deleted, n, err := s.delete(ctx, img.ID)
		effects, freed = append(effects, deleted...), freed+n
		if err != nil {
			return effects, freed, err
		}
	}
	here, err := s.stored(ctx)
	if err != nil {
		return effects, freed, err
	}
	n, _, err := s.sweep(ctx, here)
	freed += n
	if err == nil {
		n, err = s.dropPartials(time.Now().Add(-unfinished))
		freed += n
	}
	if s.publish != nil {
		s.publish(portlayer.Event{Time: time.Now().UTC(), Noun: "image", Verb: "prune", Attrs: map[string]string{"reclaimed": strconv.FormatInt(int64(freed), 10)}})
	}
	return effects, freed, err
}

// unfinished is how old what has come of a layer has to be for Prune: what is being fetched grows all the time.
const unfinished = time.Hour
