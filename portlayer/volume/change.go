package volume

import (
	"context"
	"errors"
	"io"
	"slices"
	"strconv"
	"strings"
	"time"

	"vch/internal/fault"
	"vch/portlayer"
)

// found locks a volume's name and finds it whole.
func (s *Service) found(ctx context.Context, id portlayer.VolumeID) (p place, unlock func(), err error) {
	unlock, err = s.names.Lock(ctx, id.Name)
	if err != nil {
		return p, nil, err
	}
	if p, err = s.good(ctx, id); err != nil {
		unlock()
	}
	return p, unlock, err
}

// Resize is portlayer.Volumes.Resize. The disk comes first, then the file system in it: what cannot be done of that is done by the next machine that mounts it.
func (s *Service) Resize(ctx context.Context, id portlayer.VolumeID, capacity string) (portlayer.Volume, error) {
	none := portlayer.Volume{}
	b, err := ParseCapacity(capacity)
	if err != nil {
		return none, err
	}
	content, err := s.reached()
	if err != nil {
		return none, err
	}
	p, unlock, err := s.found(ctx, id)
	if err != nil {
		return none, err
	}
	defer unlock()
	ref := p.volume.Ref()
	if why := s.onlyRead(p.volume.ID()); why != "" {
		return none, fault.New(fault.InUse, "resize %s: %s", ref, why)
	}
	vol, err := p.store.Grow(ctx, p.volume.Name, b)
	if err != nil {
		return none, err
	}
	vol.Qualified = p.volume.Qualified
	if err := content.Grow(ctx, vol); err != nil {
		return none, fault.New(fault.KindOf(err), "the disk of volume %s has %s now, and its file system will grow when it is mounted writable next: %w", ref, size(vol.Capacity), err)
	}
	s.publish("update", ref, map[string]string{"driver": vol.Driver, "capacity": strconv.FormatInt(int64(vol.Capacity), 10)})
	s.o.Log.Info("volume grown", "volume", vol.ID().String(), "from", int64(p.volume.Capacity), "to", int64(vol.Capacity))
	return vol, nil
}

// onlyRead says why a volume cannot be written now: containers read it, or the VCH is at work on it; "" if it can.
func (s *Service) onlyRead(vol portlayer.VolumeID) string {
	if work := s.work(vol); work != "" {
		return work
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	var readers []string
	for _, id := range sortedKeys(s.held[vol]) {
		if h := s.held[vol][id]; h.readOnly {
			readers = append(readers, h.who)
		}
	}
	if len(readers) == 0 {
		return ""
	}
	return "running containers have it mounted read-only (" + strings.Join(readers, ", ") + "), and what is read-only cannot grow; stop them first"
}

// unused is InUse where a container refers to a volume, running or not (its record says where the volume is), or the VCH is at work on it.
func (s *Service) unused(verb string, vol portlayer.Volume) error {
	if work := s.work(vol.ID()); work != "" {
		return fault.New(fault.InUse, "%s %s: %s", verb, vol.Ref(), work)
	}
	users := s.users(vol.ID())
	if len(users) == 0 {
		return nil
	}
	ids := make([]string, len(users))
	for i, id := range users {
		ids[i] = string(id)
	}
	return fault.New(fault.InUse, "%s %s: volume is in use - [%s]", verb, vol.Ref(), strings.Join(ids, ", "))
}

// Rename is portlayer.Volumes.Rename.
func (s *Service) Rename(ctx context.Context, id portlayer.VolumeID, to portlayer.VolumeName) (portlayer.Volume, error) {
	none := portlayer.Volume{}
	if err := checkName(to); err != nil {
		return none, err
	}
	names := []portlayer.VolumeName{id.Name, to}
	slices.Sort(names) // one order for all, so that two renames do not wait for each other
	for _, name := range slices.Compact(names) {
		unlock, err := s.names.Lock(ctx, name)
		if err != nil {
			return none, err
		}
		defer unlock()
	}
	p, err := s.good(ctx, id)
	if err != nil {
		return none, err
	}
	if err := s.unused("rename", p.volume); err != nil {
		return none, err
	}
	taken, err := s.find(ctx, portlayer.VolumeID{Name: to})
	switch {
	case err == nil || fault.Is(err, fault.Conflict):
		return none, fault.New(fault.Conflict, "rename %s: there is a volume %s already (%s); choose another name", p.volume.Ref(), to, taken.volume.ID())
	case !fault.Is(err, fault.NotFound):
		return none, err
	}
	vol, err := p.store.Rename(ctx, p.volume.Name, to)
	if err != nil {
		return none, err
	}
	s.settled(p.volume, vol)
	s.publish("destroy", p.volume.Ref(), map[string]string{"driver": vol.Driver})
	s.publish("create", vol.Ref(), map[string]string{"driver": vol.Driver})
	s.o.Log.Info("volume renamed", "volume", p.volume.ID().String(), "to", string(to))
	return vol, nil
}

// Adopt is portlayer.Volumes.Adopt.
func (s *Service) Adopt(ctx context.Context, req portlayer.VolumeRequest, dir string) (portlayer.Volume, error) {
	none := portlayer.Volume{}
	if err := checkName(req.Name); err != nil {
		return none, err
	}
	st, err := s.store(req.Store)
	if err != nil {
		return none, err
	}
	dirs, ok := st.(portlayer.DirectoryStore)
	if !ok {
		return none, fault.New(fault.Unsupported, "store %s keeps volumes as disks, and a directory cannot be one; make a volume and copy into it (docker cp)", st.Name())
	}
	w, err := s.newWish(portlayer.VolumeID{Name: req.Name, Store: st.Name()}, "", req.Options, req.Labels)
	if err == nil {
		err = w.fits(st)
	}
	if err != nil {
		return none, err
	}
	unlock, err := s.names.Lock(ctx, w.name)
	if err != nil {
		return none, err
	}
	defer unlock()
	if err := s.silence(st); err != nil {
		return none, err
	}
	vol, err := dirs.Adopt(ctx, portlayer.VolumeSpec{Name: w.name, Options: w.options, Labels: w.labels, VCH: s.o.VCH}, dir)
	if err != nil {
		return none, err
	}
	meant, err := s.find(ctx, portlayer.VolumeID{Name: vol.Name})
	vol.Qualified = err != nil || meant.volume.Store != vol.Store
	s.publish("create", vol.Ref(), map[string]string{"driver": vol.Driver})
	s.o.Log.Info("directory adopted", "volume", vol.ID().String(), "directory", dir)
	return vol, nil
}

// settled puts down what a plain name means after a volume was moved or renamed: what was this VCH's own is.
func (s *Service) settled(was, is portlayer.Volume) {
	s.leaveHome(was.ID())
	if err := s.used(is); err != nil {
		s.o.Log.Warn("the first use of a volume that was moved or renamed is not recorded", "volume", is.ID().String(), "err", err)
	}
}

// Move is portlayer.Volumes.Move.
func (s *Service) Move(ctx context.Context, id portlayer.VolumeID, to portlayer.StoreName, progress portlayer.Progressed) (portlayer.Volume, error) {
	none := portlayer.Volume{}
	p, unlock, err := s.found(ctx, id)
	if err != nil {
		return none, err
	}
	defer unlock()
	v := p.volume
	if err := s.unused("move", v); err != nil {
		return none, err
	}
	st, err := s.store(to)
	switch {
	case err != nil:
		return none, err
	case st.Name() == p.store.Name():
		return none, fault.New(fault.Conflict, "volume %s is in store %s already", v.Ref(), to)
	case st.Driver() != p.store.Driver():
		return none, fault.New(fault.Unsupported, "volume %s is of the kind %s, and store %s keeps %s: export it and import it there", v.Ref(), p.store.Driver(), to, st.Driver())
	}
	if err := s.noSnapshots(ctx, "move", p); err != nil {
		return none, err
	}
	target := portlayer.VolumeID{Name: v.Name, Store: to}
	switch _, err := s.find(ctx, target); {
	case err == nil:
		return none, fault.New(fault.Conflict, "move %s: there is a volume %s already", v.Ref(), target)
	case !fault.Is(err, fault.NotFound):
		return none, err
	}
	release, err := s.hold(v, "volume "+v.Ref()+" is being moved", false)
	if err != nil {
		return none, err
	}
	defer release()
	src, err := p.store.Source(ctx, v.Name, "")
	if err != nil {
		return none, err
	}
	vol, made, err := st.Ensure(ctx, portlayer.VolumeSpec{
		Name: v.Name, Throttle: v.Throttle, Options: inStore(v.Options, to), Labels: v.Labels, Maker: v.Maker, VCH: v.VCH, Created: v.Created, From: &src, Progress: progress,
	})
	if err == nil && !made {
		err = fault.New(fault.Conflict, "move %s: there is a volume %s already", v.Ref(), target)
	}
	if err != nil {
		return none, err
	}
	if err := p.store.Remove(ctx, v.Name); err != nil {
		return none, fault.New(fault.KindOf(err), "move %s: it is in store %s now, and could not be removed from store %s: %w", v.Ref(), to, p.store.Name(), err)
	}
	s.settled(v, vol)
	s.publish("update", string(vol.Name), map[string]string{"driver": vol.Driver, "store": string(to)})
	s.o.Log.Info("volume moved", "volume", v.ID().String(), "to", string(to))
	return vol, nil
}

// inStore is options whose VolumeStore, if there is one, is where the volume is now.
func inStore(options map[string]string, store portlayer.StoreName) map[string]string {
	moved := noneIfEmpty(options)
	for key := range moved {
		if strings.EqualFold(key, "VolumeStore") {
			moved[key] = string(store)
		}
	}
	return moved
}

// noSnapshots is a Conflict that names a volume's snapshots, if there are any. A damaged volume has none that could be told.
func (s *Service) noSnapshots(ctx context.Context, verb string, p place) error {
	if p.harm != nil {
		return nil
	}
	list, err := p.store.Snapshots(ctx, p.volume.Name)
	if len(list) == 0 {
		return err
	}
	names := make([]string, len(list))
	for i, snap := range list {
		names[i] = snap.Name
	}
	ref := p.volume.Ref()
	return fault.New(fault.Conflict, "%s %s: the volume has snapshots (%s), which would be lost; remove them first: vch volume snapshot rm %s SNAPSHOT", verb, ref, strings.Join(names, ", "), ref)
}

// Snapshot is portlayer.Volumes.Snapshot.
func (s *Service) Snapshot(ctx context.Context, id portlayer.VolumeID, name string, progress portlayer.Progressed) (portlayer.Snapshot, error) {
	if name == "" {
		name = time.Now().UTC().Format("20060102T150405Z")
	}
	p, unlock, err := s.found(ctx, id)
	if err != nil {
		return portlayer.Snapshot{}, err
	}
	defer unlock()
	end, err := s.still(ctx, p.volume, "a snapshot is being made of volume "+p.volume.Ref())
	if err != nil {
		return portlayer.Snapshot{}, err
	}
	snap, err := p.store.Snapshot(ctx, p.volume.Name, name, progress)
	if eerr := end(); eerr != nil && err == nil {
		err = errors.Join(fault.Wrap("make snapshot", name, eerr), p.store.RemoveSnapshot(context.WithoutCancel(ctx), p.volume.Name, name))
	}
	return snap, err
}

// Snapshots is portlayer.Volumes.Snapshots.
func (s *Service) Snapshots(ctx context.Context, id portlayer.VolumeID) ([]portlayer.Snapshot, error) {
	p, err := s.good(ctx, id)
	if err != nil {
		return nil, err
	}
	return p.store.Snapshots(ctx, p.volume.Name)
}

// RemoveSnapshot is portlayer.Volumes.RemoveSnapshot.
func (s *Service) RemoveSnapshot(ctx context.Context, id portlayer.VolumeID, name string) error {
	p, unlock, err := s.found(ctx, id)
	if err != nil {
		return err
	}
	defer unlock()
	if work := s.work(p.volume.ID()); work != "" { // a copy that is being made may be of that snapshot
		return fault.New(fault.InUse, "%s", work)
	}
	return p.store.RemoveSnapshot(ctx, p.volume.Name, name)
}

// Export is portlayer.Volumes.Export.
func (s *Service) Export(ctx context.Context, id portlayer.VolumeID, w io.Writer) error {
	content, err := s.reached()
	if err != nil {
		return err
	}
	p, err := s.good(ctx, id)
	if err != nil {
		return err
	}
	return content.Export(ctx, p.volume, w)
}

// ExportDisk is portlayer.Volumes.ExportDisk.
func (s *Service) ExportDisk(ctx context.Context, ref string, w io.Writer) error {
	p, snapshot, err := s.original(ctx, ref)
	if err != nil {
		return err
	}
	work := "volume " + p.volume.Ref() + " is being exported"
	if snapshot != "" {
		end, err := s.kept(p.volume, work)
		if err != nil {
			return err
		}
		return errors.Join(p.store.Pack(ctx, p.volume.Name, snapshot, w), end())
	}
	release, err := s.hold(p.volume, work, true)
	if err != nil {
		return fault.New(fault.KindOf(err), "%w; or make a snapshot and export that: vch volume snapshot create %s", err, p.volume.Ref())
	}
	defer release()
	return p.store.Pack(ctx, p.volume.Name, "", w)
}

// ImportDisk is portlayer.Volumes.ImportDisk.
func (s *Service) ImportDisk(ctx context.Context, req portlayer.VolumeRequest, r io.Reader) (portlayer.Volume, error) {
	w, err := s.newImport(req)
	if err != nil {
		return portlayer.Volume{}, err
	}
	w.packed = r
	unlock, err := s.names.Lock(ctx, w.name)
	if err != nil {
		return portlayer.Volume{}, err
	}
	defer unlock()
	return s.madeNew(s.ensure(ctx, w))
}

// newImport is the wish of an import.
func (s *Service) newImport(req portlayer.VolumeRequest) (wish, error) {
	if req.Name == "" {
		return wish{}, fault.New(fault.Invalid, "name the volume that is to be made")
	}
	w, err := s.newWish(portlayer.VolumeID{Name: req.Name, Store: req.Store}, req.Driver, req.Options, req.Labels)
	if err == nil && w.from != "" {
		err = fault.New(fault.Invalid, "a volume is made of an archive or from another volume, not both")
	}
	return w, err
}

// madeNew is ensure's answer for an import, to which a volume that was there is a Conflict.
func (s *Service) madeNew(vol portlayer.Volume, made bool, err error) (portlayer.Volume, error) {
	if err == nil && !made {
		err = fault.New(fault.Conflict, "import %s: the volume exists already; choose another name, or add to it with docker cp", vol.Ref())
	}
	return vol, err
}

// Import is portlayer.Volumes.Import.
func (s *Service) Import(ctx context.Context, req portlayer.VolumeRequest, r io.Reader) (portlayer.Volume, error) {
	none := portlayer.Volume{}
	content, err := s.reached()
	if err != nil {
		return none, err
	}
	w, err := s.newImport(req)
	if err != nil {
		return none, err
	}
	unlock, err := s.names.Lock(ctx, w.name)
	if err != nil {
		return none, err
	}
	defer unlock()
	w.maker = "import-" + string(anonymousName())
	var vol portlayer.Volume
	var make error
	err = content.Import(ctx, portlayer.VolumeID{Name: w.name, Store: w.store}, w.maker, func() (portlayer.Volume, error) {
		vol, make = s.madeNew(s.ensure(ctx, w))
		return vol, make
	}, r)
	switch {
	case err == nil:
		return vol, nil
	case make != nil || vol.Name == "": // there is nothing to take back
		return none, err
	}
	back, cancel := context.WithTimeout(context.WithoutCancel(ctx), undoLimit)
	defer cancel()
	vol.Labels = nil // what protects a volume is not for one that never was
	st, serr := s.store(vol.Store)
	if serr == nil {
		serr = s.remove(back, place{store: st, volume: vol})
	}
	return none, errors.Join(fault.Wrap("import volume", vol.Ref(), err), serr)
}

// undoLimit bounds what is done to take something back whose caller has gone.
const undoLimit = time.Minute
