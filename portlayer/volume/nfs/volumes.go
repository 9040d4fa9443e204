package nfs

import (
	"cmp"
	"context"
	"errors"
	"io"
	"maps"
	"path"
	"slices"
	"strings"
	"sync"
	"time"

	"vch/internal/atonce"
	"vch/internal/fault"
	"vch/internal/nfsclient"
	"vch/internal/undo"
	"vch/portlayer"
)

// enter begins a call that needs volume name: it takes the volume's lock.
func (s *Store) enter(ctx context.Context, name portlayer.VolumeName) (leave func(), err error) {
	if _, err := s.reached(); err != nil {
		return nil, err
	}
	return s.busy.Lock(ctx, name)
}

// writable refuses what would change a store of published data sets.
func (s *Store) writable(verb string, name portlayer.VolumeName) error {
	if s.o.Location.Options.ReadOnly {
		return fault.New(fault.Denied, "cannot %s volume %s: store %s is one of published data sets (option ro); use a store without ro on the same export", verb, name, s.o.Name)
	}
	return nil
}

// Ensure is portlayer.VolumeStore.Ensure.
func (s *Store) Ensure(ctx context.Context, spec portlayer.VolumeSpec) (portlayer.Volume, bool, error) {
	none := portlayer.Volume{}
	if !volumeName(spec.Name) {
		return none, false, badName(spec.Name)
	}
	leave, err := s.enter(ctx, spec.Name)
	if err != nil {
		return none, false, err
	}
	defer leave()
	rec, err := s.read(ctx, spec.Name)
	if err == nil {
		return s.volume(spec.Name, rec), false, nil
	}
	if !fault.Is(err, fault.NotFound) {
		return none, false, err
	}
	if err := s.writable("make", spec.Name); err != nil {
		return none, false, err
	}
	switch {
	case spec.Capacity < 0:
		return none, false, fault.New(fault.Invalid, "a volume cannot have %d bytes", spec.Capacity)
	case spec.From != nil || spec.Packed != nil:
		return none, false, s.onlyDisks("a copy of another volume, or of a packed disk")
	}
	o, err := s.optionsOf(spec.Options)
	if err != nil {
		return none, false, fault.Wrap("make volume", string(spec.Name), err)
	}
	vol, made, err := s.make(ctx, spec, o)
	if err != nil {
		return none, false, s.unmade(ctx, spec.Name, err)
	}
	return vol, made, nil
}

// unmade is the error of a make that failed, with a word on the room, for a server is often full.
func (s *Store) unmade(ctx context.Context, name portlayer.VolumeName, err error) error {
	if hasReason(err, nfsclient.Full) {
		err = s.said(err)
		if status := s.Status(context.WithoutCancel(ctx)); status.Degraded == "" {
			return fault.New(fault.Unavailable, "cannot make volume %s in store %s (%s of %s free): %w", name, s.o.Name, size(status.Free), size(status.Total), err)
		}
	}
	return fault.Wrap("make volume "+string(name)+" in store", string(s.o.Name), s.said(err))
}

// make makes a volume that was not there. Of several who make it at once, on whatever hosts, one has made it, and it is that one's.
func (s *Store) make(ctx context.Context, spec portlayer.VolumeSpec, o Options) (vol portlayer.Volume, made bool, err error) {
	created := spec.Created
	if created.IsZero() {
		created = time.Now().UTC()
	}
	rec := record{
		Format: format, Driver: s.o.Driver, Name: spec.Name, Options: spec.Options, Labels: spec.Labels, Created: created, Maker: spec.Maker, VCH: spec.VCH,
	}
	content := rec.content(spec.Name)
	var back undo.Stack
	making := path.Join(metadataDir, s.temporary(makingMark))
	defer func() {
		if err != nil && back.Run(ctx) != nil {
			s.leftovers(making)
		}
	}()
	err = s.stage(ctx, making, rec, &back)
	if err != nil {
		return vol, false, err
	}
	err = s.do(ctx, true, func(ctx context.Context, e Export) error {
		_, err := e.Mkdir(ctx, content, o.DirMode())
		return err
	})
	switch {
	case err == nil:
		back.Push(func(ctx context.Context) error { return s.dropContent(ctx, spec.Name) })
	case hasReason(err, nfsclient.Exists):
		if err := errors.Join(s.emptyContent(ctx, spec.Name), s.unowned(ctx, content, spec.Name)); err != nil {
			return vol, false, err
		}
	default:
		back.Push(func(ctx context.Context) error { return s.dropContent(ctx, spec.Name) }) // the answer may have been lost
		return vol, false, err
	}
	mode := o.DirMode()
	err = s.do(ctx, true, func(ctx context.Context, e Export) error {
		a, err := e.Stat(ctx, content)
		if err == nil && (a.UID != o.UID || a.GID != o.GID || a.Mode != mode) {
			set := nfsclient.Set{Mode: &mode}
			if a.UID != o.UID && !s.squashes() {
				set.UID = &o.UID
			}
			if a.GID != o.GID && !s.squashes() {
				set.GID = &o.GID
			}
			err = e.SetAttr(ctx, content, set)
		}
		return err
	})
	if err != nil {
		return vol, false, err
	}
	if lost, err := s.publish(ctx, making, spec.Name); err != nil {
		return vol, false, err
	} else if lost {
		rec, err := s.read(ctx, spec.Name)
		return s.volume(spec.Name, rec), false, errors.Join(err, s.dropStage(ctx, making))
	}
	back.Keep()
	return s.volume(spec.Name, rec), true, nil
}

// squashes says whether the administrator says that what is made is somebody else's, so that nobody's wish of an owner is to be done.
func (s *Store) squashes() bool { return s.o.Location.Options.Squash == SquashAll }

// stage makes the directory making with a volume's metadata, below a name that no volume can have.
func (s *Store) stage(ctx context.Context, making string, rec record, back *undo.Stack) error {
	data, err := encode(rec)
	if err != nil {
		return err
	}
	back.Push(func(ctx context.Context) error { return s.dropStage(ctx, making) })
	return s.do(ctx, true, func(ctx context.Context, e Export) error {
		if _, err := e.Mkdir(ctx, making, 0o755); err != nil {
			return err
		}
		return e.WriteFile(ctx, path.Join(making, recordFile), data, 0o644)
	})
}

func (s *Store) dropStage(ctx context.Context, making string) error {
	return s.do(ctx, true, func(ctx context.Context, e Export) error { return ignore(e.RemoveAll(ctx, making), nfsclient.NotFound) })
}

// publish gives staged metadata the volume's name, from when on the volume is there. lost says that somebody else was faster.
func (s *Store) publish(ctx context.Context, making string, name portlayer.VolumeName) (lost bool, err error) {
	err = s.do(ctx, true, func(ctx context.Context, e Export) error { return s.give(ctx, e, making, metadataOf(name), recordFile) })
	if hasReason(err, nfsclient.Exists) || hasReason(err, nfsclient.NotEmpty) {
		return true, nil
	}
	if err != nil { // some servers have no word for it
		if _, rerr := s.readRecord(ctx, name); rerr == nil {
			return true, nil
		}
	}
	return false, err
}

// emptyContent is nil if a directory that is where a new volume's content is to be can become that: it is empty, and no volume's. What is in one that is not is somebody's.
func (s *Store) emptyContent(ctx context.Context, name portlayer.VolumeName) error {
	at := path.Join(volumesDir, string(name))
	var a nfsclient.Attr
	empty := true
	err := s.do(ctx, false, func(ctx context.Context, e Export) (err error) {
		if a, err = e.Stat(ctx, at); err != nil || a.Type != nfsclient.Dir {
			return err
		}
		return e.ReadDir(ctx, at, func(page []nfsclient.Entry) error {
			empty = empty && len(page) == 0
			return nil
		})
	})
	switch {
	case err != nil:
		return err
	case a.Type != nfsclient.Dir:
		return fault.New(fault.Conflict, "%s in %s is no directory, and no volume; move it elsewhere, or choose another name", at, s.Location())
	case !empty:
		return fault.New(fault.Conflict, "%s in %s is a directory with something in it, and no volume; make it one as it is (vch volume adopt %s %s), move it elsewhere, or choose another name", at, s.Location(), s.o.Name, at)
	}
	return nil
}

// unowned is a Conflict that names the volume, but for the one called except, whose content is a directory, or has it in it, or is in it.
func (s *Store) unowned(ctx context.Context, dir string, except portlayer.VolumeName) error {
	vols, err := s.records(ctx)
	if name, taken := owner(vols, dir, except); taken {
		return fault.New(fault.Conflict, "%s in %s is the directory %s of volume %s, or one is in the other", dir, s.Location(), vols[name].content(name), name)
	}
	return err
}

// owner is the volume, but for the one called except, whose content is a directory, or has it in it, or is in it.
func owner(vols map[portlayer.VolumeName]record, dir string, except portlayer.VolumeName) (portlayer.VolumeName, bool) {
	for name, rec := range vols {
		at := rec.content(name)
		if name != except && (at == dir || strings.HasPrefix(at, dir+"/") || strings.HasPrefix(dir, at+"/")) {
			return name, true
		}
	}
	return "", false
}

// freeContent sees that there is nothing where a volume's content is to come.
func (s *Store) freeContent(ctx context.Context, name portlayer.VolumeName) error {
	at := path.Join(volumesDir, string(name))
	err := s.do(ctx, false, func(ctx context.Context, e Export) error { _, err := e.Stat(ctx, at); return err })
	switch {
	case hasReason(err, nfsclient.NotFound):
		return nil
	case err != nil:
		return s.said(err)
	}
	return fault.New(fault.Conflict, "%s in %s is there already, and no volume; move it elsewhere, or choose another name", at, s.Location())
}

// dropContent removes the empty content of a volume that has not come to be.
func (s *Store) dropContent(ctx context.Context, name portlayer.VolumeName) error {
	return s.do(ctx, true, func(ctx context.Context, e Export) error {
		if _, err := e.Stat(ctx, metadataOf(name)); !hasReason(err, nfsclient.NotFound) {
			return err // somebody else has made it, of the same directory
		}
		return ignore(e.Rmdir(ctx, path.Join(volumesDir, string(name))), nfsclient.NotFound)
	})
}

// leftovers has metadata that could not be taken back taken away when the server is heard again: as after a death.
func (s *Store) leftovers(making string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.halfMade = append(s.halfMade, making)
	s.tend()
}

// Get is portlayer.VolumeStore.Get.
func (s *Store) Get(ctx context.Context, name portlayer.VolumeName) (portlayer.Volume, error) {
	if !volumeName(name) {
		if _, err := s.reached(); err != nil {
			return portlayer.Volume{}, err
		}
		return portlayer.Volume{}, s.missing(name)
	}
	rec, err := s.read(ctx, name)
	if err != nil {
		return portlayer.Volume{}, err
	}
	return s.volume(name, rec), nil
}

// readers is how many volumes are read at once: each takes several round trips.
const readers = 16

// names are those of all volumes, sorted.
func (s *Store) names(ctx context.Context) (names []portlayer.VolumeName, err error) {
	err = s.do(ctx, false, func(ctx context.Context, e Export) error {
		names = nil
		return e.ReadDir(ctx, metadataDir, func(page []nfsclient.Entry) error {
			for _, entry := range page {
				if name := portlayer.VolumeName(entry.Name); volumeName(name) {
					names = append(names, name)
				}
			}
			return nil
		})
	})
	switch {
	case hasReason(err, nfsclient.NotFound), hasReason(err, nfsclient.NotDir):
		return nil, s.gone(ctx)
	case err != nil:
		return nil, s.said(err)
	}
	slices.Sort(names)
	return names, nil
}

// records are those of all whole volumes; err names the others. Unavailable: it is the store's.
func (s *Store) records(ctx context.Context) (map[portlayer.VolumeName]record, error) {
	names, err := s.names(ctx)
	if err != nil {
		return nil, err
	}
	recs, errs := make([]record, len(names)), make([]error, len(names))
	atonce.Do(len(names), readers, func(i int) { recs[i], errs[i] = s.read(ctx, names[i]) })
	good := map[portlayer.VolumeName]record{}
	var harm []error
	for i, err := range errs {
		switch {
		case err == nil:
			good[names[i]] = recs[i]
		case fault.Is(err, fault.NotFound): // removed meanwhile
		case fault.Is(err, fault.Unavailable):
			return nil, err
		default:
			harm = append(harm, err)
		}
	}
	return good, errors.Join(harm...)
}

// List is portlayer.VolumeStore.List.
func (s *Store) List(ctx context.Context) ([]portlayer.Volume, error) {
	recs, err := s.records(ctx)
	var vols []portlayer.Volume
	for _, name := range slices.Sorted(maps.Keys(recs)) {
		vols = append(vols, s.volume(name, recs[name]))
	}
	return vols, err
}

// Remove is portlayer.VolumeStore.Remove. The volume is gone when it returns; what many files it has had may still be on their way. A damaged volume can be removed, too.
func (s *Store) Remove(ctx context.Context, name portlayer.VolumeName) error {
	leave, err := s.enter(ctx, name)
	if err != nil {
		return err
	}
	leave = sync.OnceFunc(leave)
	defer leave()
	if !volumeName(name) {
		return s.missing(name)
	}
	if err := s.writable("remove", name); err != nil {
		return err
	}
	if err := ctx.Err(); err != nil {
		return err
	}
	rec, err := s.read(ctx, name)
	damaged := fault.Is(err, fault.Conflict)
	switch {
	case fault.Is(err, fault.NotFound):
		leave()          // the sweep needs it
		s.sweepSoon(ctx) // who asks twice waits for what the first was about
		return err
	case err != nil && !damaged:
		return fault.Wrap("remove volume", string(name), err)
	case !damaged:
		// Others see by its directory's time that the removal has just begun; and a renaming that was cut off is made good.
		if err := s.rewrite(ctx, name, rec); err != nil && !hasReason(err, nfsclient.Full) {
			return fault.Wrap("remove volume", string(name), s.said(err))
		}
	}
	removed := s.temporary(removingMark)
	err = s.do(ctx, true, func(ctx context.Context, e Export) error {
		return s.give(ctx, e, metadataOf(name), path.Join(metadataDir, removed), "")
	})
	switch {
	case hasReason(err, nfsclient.NotFound):
		return s.missing(name) // another VCH was faster
	case err != nil:
		s.mu.Lock()
		s.left = true // its answer may be lost
		s.tend()
		s.mu.Unlock()
		return fault.Wrap("remove volume", string(name), s.said(err))
	}
	// The volume is removed. The rest is tried now, so that its place is free, and again by the sweep; but where the server does not let it, the volume is there again.
	var stays error
	_ = s.do(context.WithoutCancel(ctx), true, func(ctx context.Context, e Export) (err error) {
		if damaged {
			if rec, err = s.removedRecord(ctx, e, removed, name); err != nil {
				return err
			}
			rec.Name = name
		}
		if err := s.moveOut(ctx, e, removed, rec); err != nil {
			if r, ok := nfsclient.ReasonOf(err); ok && !isAway(r) && s.give(ctx, e, path.Join(metadataDir, removed), metadataOf(name), "") == nil {
				stays = fault.New(fault.KindOf(err), "its directory %s cannot be removed: %s", rec.content(name), s.explain(err))
			}
			return err
		}
		_ = s.dropRemoved(ctx, e, removed)
		return nil
	})
	if stays != nil {
		return fault.Wrap("remove volume", string(name), stays)
	}
	s.mu.Lock()
	s.left = true
	s.mu.Unlock()
	leave()
	s.sweepSoon(ctx)
	return nil
}

// give renames a directory of metadata. The answer to a rename that was done may be lost, and one that is sent again find nothing: then from is gone, and to has what is to be in it ("":
// it is there).
func (s *Store) give(ctx context.Context, e Export, from, to, has string) error {
	err := e.Rename(ctx, from, to)
	if err == nil {
		return nil
	}
	if _, serr := e.Stat(ctx, from); hasReason(serr, nfsclient.NotFound) {
		if _, serr := e.Stat(ctx, path.Join(to, has)); serr == nil {
			return nil
		}
	}
	return err
}

// Inspect is Get, Usage and Status at once.
func (s *Store) Inspect(ctx context.Context, name portlayer.VolumeName) (vol portlayer.Volume, use portlayer.VolumeUsage, status portlayer.StoreStatus, err error) {
	if vol, err = s.Get(ctx, name); err != nil {
		return vol, use, status, err
	}
	return vol, unknownUsage, s.room(ctx), nil
}

// ListUsage is List, and Usage of each.
func (s *Store) ListUsage(ctx context.Context) ([]portlayer.Volume, []portlayer.VolumeUsage, error) {
	vols, err := s.List(ctx)
	return vols, slices.Repeat([]portlayer.VolumeUsage{unknownUsage}, len(vols)), err
}

// unknownUsage is what a directory takes: only a walk through it could tell.
var unknownUsage = portlayer.VolumeUsage{Allocated: -1}

// Usage is portlayer.VolumeStore.Usage.
func (s *Store) Usage(ctx context.Context, name portlayer.VolumeName) (portlayer.VolumeUsage, error) {
	if _, err := s.Get(ctx, name); err != nil {
		return portlayer.VolumeUsage{}, err
	}
	return unknownUsage, nil
}

// rewrite replaces a volume's record.
func (s *Store) rewrite(ctx context.Context, name portlayer.VolumeName, rec record) error {
	data, err := encode(rec)
	if err != nil {
		return err
	}
	next := path.Join(metadataOf(name), s.temporary(".volume.json-"))
	return s.do(ctx, true, func(ctx context.Context, e Export) error {
		if err := e.WriteFile(ctx, next, data, 0o644); err != nil {
			return err
		}
		return e.Rename(ctx, next, path.Join(metadataOf(name), recordFile))
	})
}

// SetLabels is portlayer.VolumeStore.SetLabels.
func (s *Store) SetLabels(ctx context.Context, name portlayer.VolumeName, labels map[string]string) (portlayer.Volume, error) {
	none := portlayer.Volume{}
	leave, err := s.enter(ctx, name)
	if err != nil {
		return none, err
	}
	defer leave()
	if !volumeName(name) {
		return none, s.missing(name)
	}
	rec, err := s.read(ctx, name)
	if err != nil {
		return none, err
	}
	if err := s.writable("label", name); err != nil {
		return none, err
	}
	rec.Labels = labels
	if err := s.rewrite(ctx, name, rec); err != nil {
		return none, fault.Wrap("label volume", string(name), s.said(err))
	}
	return s.volume(name, rec), nil
}

// Rename is portlayer.VolumeStore.Rename. The record says first where the content is; then the metadata gets its new name, which is the renaming; then the content does, which whoever
// comes next can do as well.
func (s *Store) Rename(ctx context.Context, from, to portlayer.VolumeName) (vol portlayer.Volume, err error) {
	if !volumeName(to) {
		return vol, badName(to)
	}
	names := []portlayer.VolumeName{from, to}
	slices.Sort(names)
	for _, name := range slices.Compact(names) {
		leave, err := s.enter(ctx, name)
		if err != nil {
			return vol, err
		}
		defer leave()
	}
	if !volumeName(from) {
		return vol, s.missing(from)
	}
	rec, err := s.read(ctx, from)
	if err != nil {
		return vol, err
	}
	if err := s.writable("rename", from); err != nil {
		return vol, err
	}
	if _, err := s.readRecord(ctx, to); err == nil {
		return vol, fault.New(fault.Conflict, "volume %s is in store %s already", to, s.o.Name)
	} else if !fault.Is(err, fault.NotFound) {
		return vol, err
	}
	if err := s.freeContent(ctx, to); err != nil {
		return vol, err
	}
	if rec.At == "" {
		rec.At = rec.content(from)
	}
	rec.Name = to
	if err := s.rewrite(ctx, from, rec); err != nil {
		return vol, fault.Wrap("rename volume", string(from), s.said(err))
	}
	switch lost, err := s.publish(ctx, metadataOf(from), to); {
	case lost:
		return vol, fault.New(fault.Conflict, "volume %s is in store %s already", to, s.o.Name)
	case err != nil:
		return vol, fault.Wrap("rename volume", string(from), s.said(err))
	}
	return s.volume(to, s.settleContent(ctx, to, rec)), nil
}

// settleContent gives the content of a volume that was renamed the place of its new name. Where that cannot be done now, it stays where it is.
func (s *Store) settleContent(ctx context.Context, name portlayer.VolumeName, rec record) record {
	own := path.Join(volumesDir, string(name))
	if !rec.renamed() {
		return rec
	}
	err := s.do(ctx, true, func(ctx context.Context, e Export) error {
		if _, err := e.Stat(ctx, own); !hasReason(err, nfsclient.NotFound) {
			return cmp.Or(err, fault.New(fault.Conflict, "%s is taken", own))
		}
		return e.Rename(ctx, rec.At, own)
	})
	if err != nil {
		return rec
	}
	moved := rec
	moved.At = ""
	if err := s.rewrite(ctx, name, moved); err != nil {
		s.o.Log.Warn("a renamed volume's content has moved, and its record does not say so", "volume", string(name), "store", string(s.o.Name), "err", err)
	}
	return moved
}

// What volumes cannot be or have that are directories.

func (s *Store) onlyDisks(what string) error {
	return fault.New(fault.Unsupported, "store %s keeps volumes as directories of NFS server %s, which cannot be or have %s; that takes a store on disks", s.o.Name, s.o.Location.Host, what)
}

func (s *Store) refuse(ctx context.Context, name portlayer.VolumeName, what string) error {
	if _, err := s.Get(ctx, name); err != nil {
		return err
	}
	return s.onlyDisks(what)
}

// Source is portlayer.VolumeStore.Source.
func (s *Store) Source(ctx context.Context, name portlayer.VolumeName, snapshot string) (portlayer.VolumeSource, error) {
	return portlayer.VolumeSource{}, s.refuse(ctx, name, "copies (export the volume as a tar, and import that)")
}

// Pack is portlayer.VolumeStore.Pack.
func (s *Store) Pack(ctx context.Context, name portlayer.VolumeName, _ string, _ io.Writer) error {
	return s.refuse(ctx, name, "a disk to export (leave --format out for a tar)")
}

// Grow is portlayer.VolumeStore.Grow.
func (s *Store) Grow(ctx context.Context, name portlayer.VolumeName, _ portlayer.Bytes) (portlayer.Volume, error) {
	return portlayer.Volume{}, s.refuse(ctx, name, "a capacity (set a quota on the server)")
}

// Snapshot is portlayer.VolumeStore.Snapshot.
func (s *Store) Snapshot(ctx context.Context, name portlayer.VolumeName, _ string, _ portlayer.Progressed) (portlayer.Snapshot, error) {
	return portlayer.Snapshot{}, s.refuse(ctx, name, "snapshots (make them on the server)")
}

// Snapshots is portlayer.VolumeStore.Snapshots.
func (s *Store) Snapshots(ctx context.Context, name portlayer.VolumeName) ([]portlayer.Snapshot, error) {
	_, err := s.Get(ctx, name)
	return nil, err
}

// RemoveSnapshot is portlayer.VolumeStore.RemoveSnapshot.
func (s *Store) RemoveSnapshot(ctx context.Context, name portlayer.VolumeName, snapshot string) error {
	if _, err := s.Get(ctx, name); err != nil {
		return err
	}
	return fault.New(fault.NotFound, "volume %s in store %s has no snapshot %s", name, s.o.Name, snapshot)
}
