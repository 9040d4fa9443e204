package volume

import (
	"context"
	"errors"
	"maps"
	"slices"
	"strconv"
	"strings"

	"vch/internal/atonce"
	"vch/internal/fault"
	"vch/portlayer"
)

// Create is portlayer.Volumes.Create.
func (s *Service) Create(ctx context.Context, req portlayer.VolumeRequest) (portlayer.Volume, error) {
	w, err := s.newWish(portlayer.VolumeID{Name: req.Name, Store: req.Store}, req.Driver, req.Options, req.Labels)
	if err != nil {
		return portlayer.Volume{}, err
	}
	unlock, err := s.names.Lock(ctx, w.name)
	if err != nil {
		return portlayer.Volume{}, err
	}
	defer unlock()
	vol, _, err := s.ensure(ctx, w)
	if err != nil {
		return portlayer.Volume{}, err
	}
	return vol, nil
}

// Get is portlayer.Volumes.Get.
func (s *Service) Get(ctx context.Context, id portlayer.VolumeID) (portlayer.VolumeDetail, error) {
	p, err := s.good(ctx, id)
	if err != nil {
		return portlayer.VolumeDetail{}, err
	}
	var d portlayer.VolumeDetail
	if p.more != nil {
		d = s.knownNow(p.volume, p.more.usage)
		d.Status = p.more.status
	} else {
		d, err = s.detail(ctx, p.store, p.volume)
		d.Status = s.status(ctx, p.store)
	}
	if dirs, ok := p.store.(portlayer.DirectoryStore); ok {
		d.Settings = dirs.Settings(d.Volume)
		return d, err
	}
	if content, cerr := s.reached(); err == nil && cerr == nil {
		d.Inside = content.Inside(ctx, d.Volume)
	}
	return d, err
}

// detail adds to a volume what the service knows, and its usage.
func (s *Service) detail(ctx context.Context, st portlayer.VolumeStore, vol portlayer.Volume) (portlayer.VolumeDetail, error) {
	use, err := ask(ctx, s, st, func(ctx context.Context) (portlayer.VolumeUsage, error) { return st.Usage(ctx, vol.Name) })
	if err != nil {
		return portlayer.VolumeDetail{}, err
	}
	return s.knownNow(vol, use), nil
}

func (s *Service) knownNow(vol portlayer.Volume, use portlayer.VolumeUsage) portlayer.VolumeDetail {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.known(vol, use)
}

// inspector is what a store can be beside: one that tells volumes and what each takes without one more look at each.
type inspector interface {
	// Inspect is VolumeStore.Get, Usage and Status. An error is that of Get.
	Inspect(ctx context.Context, name portlayer.VolumeName) (portlayer.Volume, portlayer.VolumeUsage, portlayer.StoreStatus, error)
	// ListUsage is VolumeStore.List and, in the same order, Usage of each.
	ListUsage(ctx context.Context) ([]portlayer.Volume, []portlayer.VolumeUsage, error)
}

// listed is what ListUsage tells.
type listed struct {
	vols []portlayer.Volume
	uses []portlayer.VolumeUsage
}

// details are all volumes of a store with what the service knows of them; err names what is damaged.
func (s *Service) details(ctx context.Context, st portlayer.VolumeStore) ([]portlayer.VolumeDetail, error) {
	if l, ok := st.(inspector); ok {
		found, err := ask(ctx, s, st, func(ctx context.Context) (found listed, err error) {
			found.vols, found.uses, err = l.ListUsage(ctx)
			return found, err
		})
		all := make([]portlayer.VolumeDetail, len(found.vols))
		s.mu.Lock()
		defer s.mu.Unlock()
		for i, vol := range found.vols {
			all[i] = s.known(vol, found.uses[i])
		}
		return all, err
	}
	if err := s.answers(ctx, st); err != nil {
		return nil, err
	}
	vols, err := st.List(ctx)
	errs := []error{err}
	var all []portlayer.VolumeDetail
	for _, vol := range vols {
		d, err := s.detail(ctx, st, vol)
		switch {
		case err == nil:
			all = append(all, d)
		case !fault.Is(err, fault.NotFound): // that one was removed meanwhile
			errs = append(errs, err)
		}
	}
	return all, errors.Join(errs...)
}

// known adds to a volume what the service knows. s.mu is held.
func (s *Service) known(vol portlayer.Volume, use portlayer.VolumeUsage) portlayer.VolumeDetail {
	d := portlayer.VolumeDetail{Volume: vol, Usage: use}
	if by := s.refs[vol.ID()]; len(by) > 0 { // of 10,000 volumes, few
		d.Refs = sortedKeys(by)
	}
	if len(s.held[vol.ID()]) > 0 {
		d.Attached = s.attached(vol.ID())
	}
	return d
}

// List is portlayer.Volumes.List.
func (s *Service) List(ctx context.Context) ([]portlayer.VolumeDetail, []string, error) {
	all := []portlayer.VolumeDetail{}
	var warnings []string
	type listing struct {
		vols []portlayer.VolumeDetail
		err  error
	}
	for _, l := range askAll(s.stores, func(st portlayer.VolumeStore) (l listing) { l.vols, l.err = s.details(ctx, st); return l }) {
		all = append(all, l.vols...)
		warnings = append(warnings, sentences(l.err)...)
	}
	if err := ctx.Err(); err != nil {
		return nil, nil, err
	}
	byName := func(a, b portlayer.VolumeDetail) int { return strings.Compare(string(a.Name), string(b.Name)) }
	if !slices.IsSortedFunc(all, byName) { // one store's are
		slices.SortStableFunc(all, byName)
	}
	for first := 0; first < len(all); {
		end := first + 1
		for end < len(all) && all[end].Name == all[first].Name {
			end++
		}
		if end-first > 1 {
			s.qualify(all[first:end])
		}
		first = end
	}
	return all, warnings, nil
}

// sentences are the messages of joined errors, one each.
func sentences(err error) []string {
	if err == nil {
		return nil
	}
	joined, ok := err.(interface{ Unwrap() []error })
	if !ok {
		return []string{err.Error()}
	}
	var texts []string
	for _, e := range joined.Unwrap() {
		texts = append(texts, sentences(e)...)
	}
	return texts
}

// Remove is portlayer.Volumes.Remove. A damaged volume can be removed, too.
func (s *Service) Remove(ctx context.Context, id portlayer.VolumeID) error {
	unlock, err := s.names.Lock(ctx, id.Name)
	if err != nil {
		return err
	}
	defer unlock()
	p, err := s.find(ctx, id)
	if err != nil {
		return err
	}
	return s.remove(ctx, p)
}

// Protect is portlayer.Volumes.Protect.
func (s *Service) Protect(ctx context.Context, id portlayer.VolumeID, on bool) (portlayer.Volume, error) {
	p, unlock, err := s.found(ctx, id)
	if err != nil {
		return portlayer.Volume{}, err
	}
	defer unlock()
	if p.volume.Protected() == on {
		return p.volume, nil
	}
	labels := maps.Clone(p.volume.Labels)
	if labels == nil {
		labels = map[string]string{}
	}
	delete(labels, portlayer.ProtectLabel)
	if on {
		labels[portlayer.ProtectLabel] = "true"
	}
	vol, err := p.store.SetLabels(ctx, p.volume.Name, noneIfEmpty(labels))
	vol.Qualified = p.volume.Qualified
	return vol, err
}

// remove deletes a volume that was found, if nobody uses it and it is not protected. The lock of its name is held, so that nobody can come to use it meanwhile.
func (s *Service) remove(ctx context.Context, p place) error {
	name, ref := p.volume.Name, p.volume.Ref()
	if err := s.unused("remove", p.volume); err != nil {
		return err
	}
	if p.volume.Protected() {
		return fault.New(fault.Conflict, "remove %s: the volume is protected by its label %s; take that away first: vch volume unprotect %s", ref, portlayer.ProtectLabel, ref)
	}
	if err := s.silence(p.store); err != nil {
		return err
	}
	if err := s.noSnapshots(ctx, "remove", p); err != nil {
		return err
	}
	if err := p.store.Remove(ctx, name); err != nil {
		return err
	}
	s.leaveHome(p.volume.ID())
	s.publish("destroy", ref, map[string]string{"driver": p.store.Driver()})
	s.o.Log.Info("volume removed", "volume", string(name), "store", string(p.store.Name()))
	return nil
}

// prunings is how many volumes a prune removes at once. A removal waits for the medium to have it for good, and that serves several as one.
const prunings = 8

// Prune is portlayer.Volumes.Prune. A volume that cannot be removed does not keep the others: what was removed is returned beside the errors.
func (s *Service) Prune(ctx context.Context, pick func(portlayer.Volume) bool) ([]portlayer.Volume, portlayer.Bytes, error) {
	if !s.pruning.CompareAndSwap(false, true) {
		return nil, 0, fault.New(fault.Conflict, "a prune operation is already running")
	}
	defer s.pruning.Store(false)
	var gone []portlayer.Volume
	var freed portlayer.Bytes
	var errs []error
	for _, st := range s.stores {
		if s.answers(ctx, st) != nil {
			continue
		}
		vols, _ := st.List(ctx) // a degraded store and a damaged volume are not pruned; List warns of them
		vols = slices.DeleteFunc(vols, func(vol portlayer.Volume) bool {
			// What another VCH has made in a store that both have may be in use there.
			return vol.Protected() || vol.Shared && vol.VCH != s.o.VCH || len(s.users(vol.ID())) > 0 || !pick(vol)
		})
		held := make([]portlayer.Bytes, len(vols))
		fate := make([]error, len(vols))
		atonce.Do(len(vols), prunings, func(i int) { held[i], fate[i] = s.pruneOne(ctx, st, vols[i]) })
		for i, err := range fate {
			switch {
			case err == nil:
				gone = append(gone, vols[i])
				freed += held[i]
			case !fault.Is(err, fault.InUse) && !fault.Is(err, fault.Conflict) && !fault.Is(err, fault.NotFound): // those were taken or removed meanwhile
				errs = append(errs, err)
			}
		}
		if err := ctx.Err(); err != nil {
			errs = append(errs, err)
			break
		}
	}
	slices.SortStableFunc(gone, func(a, b portlayer.Volume) int { return strings.Compare(string(a.Name), string(b.Name)) })
	s.publish("prune", "", map[string]string{"reclaimed": strconv.FormatInt(int64(freed), 10)})
	return gone, freed, errors.Join(errs...)
}

// pruneOne removes the very volume that was picked, not one made anew under its name.
func (s *Service) pruneOne(ctx context.Context, st portlayer.VolumeStore, vol portlayer.Volume) (portlayer.Bytes, error) {
	unlock, err := s.names.Lock(ctx, vol.Name)
	if err != nil {
		return 0, err
	}
	defer unlock()
	now, err := st.Get(ctx, vol.Name)
	if err != nil {
		return 0, err
	}
	if !now.Created.Equal(vol.Created) {
		return 0, fault.New(fault.NotFound, "volume %s was made anew meanwhile", vol.Name)
	}
	use, err := st.Usage(ctx, vol.Name)
	if err != nil {
		return 0, err
	}
	return max(use.Allocated, 0), s.remove(ctx, place{store: st, volume: now})
}

// Locations is portlayer.Volumes.Locations.
func (s *Service) Locations() map[portlayer.StoreName]string {
	at := map[portlayer.StoreName]string{}
	for _, st := range s.stores {
		at[st.Name()] = st.Location()
	}
	return at
}

// Stores is portlayer.Volumes.Stores.
func (s *Service) Stores(ctx context.Context, driver string) []portlayer.StoreInfo {
	var stores []portlayer.VolumeStore
	for _, st := range s.stores {
		if driver == "" || st.Driver() == driver {
			stores = append(stores, st)
		}
	}
	return askAll(stores, func(st portlayer.VolumeStore) portlayer.StoreInfo { return s.infoOf(ctx, st) })
}

// Store is portlayer.Volumes.Store.
func (s *Service) Store(ctx context.Context, name portlayer.StoreName) (portlayer.StoreInfo, error) {
	st, err := s.store(name)
	if err != nil {
		return portlayer.StoreInfo{}, err
	}
	return s.infoOf(ctx, st), nil
}

func (s *Service) infoOf(ctx context.Context, st portlayer.VolumeStore) portlayer.StoreInfo {
	return portlayer.StoreInfo{Name: st.Name(), Driver: st.Driver(), Location: st.Location(), Status: s.status(ctx, st)}
}
