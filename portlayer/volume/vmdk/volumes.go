package vmdk

import (
	"context"
	"encoding/json"
	"errors"
	"slices"
	"time"

	"vch/guest"
	"vch/internal/atonce"
	"vch/internal/fault"
	"vch/internal/undo"
	"vch/portlayer"
)

// Ensure is portlayer.VolumeStore.Ensure.
func (s *Store) Ensure(ctx context.Context, spec portlayer.VolumeSpec) (portlayer.Volume, bool, error) {
	none := portlayer.Volume{}
	if !volumeName(spec.Name) {
		return none, false, fault.New(fault.Invalid, "volume name %q: a name begins with a letter or digit, holds letters, digits, _ . and - only, and has 2 to 255 bytes", spec.Name)
	}
	if s.o.NoByteRate && spec.Throttle.BPS > 0 {
		return none, false, fault.New(fault.Unsupported, "volume store %s cannot bound volume %s in bytes a second (bps): its machines' disks are bounded in requests a second alone; use iops", s.o.Name, spec.Name)
	}
	leave, err := s.enter(ctx, spec.Name)
	if err != nil {
		return none, false, err
	}
	defer leave()
	var tried error
	if spec.From == nil && spec.Packed == nil && s.missedNow(spec.Name) { // if it is there after all, it is not touched
		vol, err := s.make(ctx, spec, false)
		if err == nil {
			return vol, true, nil
		}
		tried = err
	}
	rec, st, err := s.read(ctx, spec.Name)
	if err != nil {
		return none, false, err
	}
	switch {
	case st == whole:
		vol, _, err := s.check(ctx, spec.Name, rec)
		return vol, false, err
	case tried != nil && !fault.Is(tried, fault.Conflict):
		return none, false, s.blame(ctx, s.unmade(ctx, spec.Name, tried))
	case st == unfinished:
		if err := s.o.Disks.RemoveDir(ctx, s.dir(spec.Name)); err != nil {
			return none, false, s.blame(ctx, fault.Wrap("clear away an interrupted making of volume", string(spec.Name), err))
		}
	}
	vol, err := s.make(ctx, spec, true)
	if err != nil {
		return none, false, s.blame(ctx, s.unmade(ctx, spec.Name, err))
	}
	return vol, true, nil
}

// make makes the volume in an absent directory: an empty one at once; one that is filled, which takes its time, in steps. Between the two writes of its volume.json an
// interrupted make is known as such. absent says that nothing is there for certain: then nothing is left there after an error.
func (s *Store) make(ctx context.Context, spec portlayer.VolumeSpec, absent bool) (vol portlayer.Volume, err error) {
	var pack packed
	if spec.Packed != nil {
		if pack, err = unpack(spec.Packed); err != nil {
			return vol, err
		}
		spec.From = &portlayer.VolumeSource{Capacity: pack.Size, Labels: pack.Was}
	}
	rec, err := s.newRecord(spec)
	if err != nil {
		return vol, err
	}
	d := s.o.Disks
	var back undo.Stack
	defer func() {
		if err != nil {
			err = errors.Join(err, back.Run(ctx))
		}
	}()
	if spec.From == nil {
		return s.makeEmpty(ctx, spec.Name, rec, absent)
	}
	back.Push(func(ctx context.Context) error { return d.RemoveDir(ctx, s.dir(spec.Name)) }) // also for a MakeDir that got half way
	if err := d.MakeDir(ctx, s.dir(spec.Name)); err != nil {
		return vol, err
	}
	if err := s.write(ctx, spec.Name, rec); err != nil {
		return vol, err
	}
	if err := s.fill(ctx, spec, rec, pack); err != nil {
		return vol, err
	}
	rec.Making = false
	if err := s.write(ctx, spec.Name, rec); err != nil {
		return vol, err
	}
	vol, _, err = s.check(ctx, spec.Name, rec)
	return vol, err
}

// makeEmpty makes a volume that nothing is copied into. Its directory comes to be with all that belongs in it, so that it is never seen unfinished.
func (s *Store) makeEmpty(ctx context.Context, name portlayer.VolumeName, rec record, absent bool) (portlayer.Volume, error) {
	rec.Making = false
	data, err := encode(rec)
	if err != nil {
		return portlayer.Volume{}, err
	}
	d := s.o.Disks
	err = d.CreateDir(ctx, s.dir(name), portlayer.DirSpec{Disk: portlayer.DiskSpec{Size: rec.Size, Label: rec.Label}, Name: fileOf(name), File: recordFile, Data: data, Again: true})
	if err != nil && absent && !fault.Is(err, fault.Conflict) { // of which nothing came; what is there then is another VCH's
		err = errors.Join(err, d.RemoveDir(context.WithoutCancel(ctx), s.dir(name)))
	}
	if err != nil {
		return portlayer.Volume{}, err
	}
	// Most are asked for next. s.busy is held: what is there is what was made.
	look := s.look(ctx, name)[0]
	if err := json.Unmarshal(data, &rec); err != nil {
		return portlayer.Volume{}, err
	}
	vol := s.volume(name, rec, rec.Size)
	s.remember(look, vol, true)
	return vol, nil
}

// fill makes the disk of a new volume: as a copy, or of a packed one.
func (s *Store) fill(ctx context.Context, spec portlayer.VolumeSpec, rec record, pack packed) error {
	d, disk := s.o.Disks, s.disk(spec.Name)
	var err error
	if spec.Packed != nil {
		err = s.fillFrom(ctx, disk, pack)
	} else {
		err = d.Copy(ctx, spec.From.Disk, disk, spec.Progress)
	}
	if err != nil {
		return err
	}
	return d.Grow(ctx, disk, rec.Size)
}

// newRecord is the record of a volume that is being made.
func (s *Store) newRecord(spec portlayer.VolumeSpec) (record, error) {
	capacity := spec.Capacity
	created := spec.Created
	if created.IsZero() {
		created = time.Now().UTC()
	}
	var was []portlayer.Label
	switch from := spec.From; {
	case from != nil && capacity == 0:
		capacity, was = from.Capacity, from.Labels
	case from != nil && capacity < from.Capacity:
		return record{}, fault.New(fault.Invalid, "a copy of a volume of %s (%d bytes) cannot have %s (%d bytes)", size(from.Capacity), from.Capacity, size(capacity), capacity)
	case from != nil:
		was = from.Labels
	case capacity == 0:
		capacity = s.o.DefaultCapacity
	}
	if spec.From == nil {
		was = s.o.Disks.Born()
	}
	if capacity < 0 || s.rounded(capacity) < capacity {
		return record{}, fault.New(fault.Invalid, "a volume cannot have %d bytes", capacity)
	}
	return record{
		Format:  format,
		Driver:  s.o.Driver,
		Label:   s.label(spec.Name),
		Size:    s.rounded(capacity),
		IOPS:    spec.Throttle.IOPS,
		BPS:     spec.Throttle.BPS,
		Options: spec.Options,
		Labels:  spec.Labels,
		Created: created,
		Maker:   spec.Maker,
		VCH:     spec.VCH,
		Was:     was,
		Making:  true,
	}, nil
}

// rounded is a capacity as a disk can have it.
func (s *Store) rounded(capacity portlayer.Bytes) portlayer.Bytes {
	return (capacity + s.o.SizeUnit - 1) / s.o.SizeUnit * s.o.SizeUnit
}

// label is the label of a volume that is called name from now on.
func (s *Store) label(name portlayer.VolumeName) portlayer.Label {
	return portlayer.Label(hash(string(s.o.Name) + "/" + string(name)))
}

func (s *Store) write(ctx context.Context, name portlayer.VolumeName, rec record) error {
	data, err := encode(rec)
	if err != nil {
		return err
	}
	return s.o.Disks.WriteFile(ctx, s.record(name), data)
}

func encode(rec record) ([]byte, error) {
	data, err := json.MarshalIndent(rec, "", "  ")
	return append(data, '\n'), err
}

// unmade is the error of a make that failed. What is wrong with the request needs no word on the medium; the rest does, which is often full.
func (s *Store) unmade(ctx context.Context, name portlayer.VolumeName, err error) error {
	total, free, serr := s.o.Disks.Space(context.WithoutCancel(ctx), s.volumes)
	if fault.Is(err, fault.Invalid) || serr != nil {
		return fault.Wrap("make volume", string(name), err)
	}
	return fault.New(fault.KindOf(err), "cannot make volume %s in store %s (%s of %s free): %w", name, s.o.Name, size(free), size(total), err)
}

// Get is portlayer.VolumeStore.Get.
func (s *Store) Get(ctx context.Context, name portlayer.VolumeName) (portlayer.Volume, error) {
	vol, _, _, err := s.Inspect(ctx, name)
	return vol, err
}

// Usage is portlayer.VolumeStore.Usage.
func (s *Store) Usage(ctx context.Context, name portlayer.VolumeName) (portlayer.VolumeUsage, error) {
	_, use, _, err := s.Inspect(ctx, name)
	return use, err
}

// Inspect is Get, Usage and Status in one look.
func (s *Store) Inspect(ctx context.Context, name portlayer.VolumeName) (portlayer.Volume, portlayer.VolumeUsage, portlayer.StoreStatus, error) {
	status, err := s.space(ctx)
	if err != nil {
		return portlayer.Volume{}, portlayer.VolumeUsage{}, status, err
	}
	if !volumeName(name) {
		return portlayer.Volume{}, portlayer.VolumeUsage{}, status, s.missing(name)
	}
	vol, use, err := s.locked(ctx, name, func() (portlayer.Volume, portlayer.DiskInfo, error) { return s.load(ctx, name) })
	return vol, use, status, err
}

// List is portlayer.VolumeStore.List.
func (s *Store) List(ctx context.Context) ([]portlayer.Volume, error) {
	vols, _, err := s.ListUsage(ctx)
	return vols, err
}

// ListUsage is List, and beside each volume what it takes, which comes from the same look at its disk. Calls that come while a survey is on its way share the next: it begins
// after all of them, and so it knows all that was before them.
func (s *Store) ListUsage(ctx context.Context) ([]portlayer.Volume, []portlayer.VolumeUsage, error) {
	found, err := s.surveys.Do(ctx, func(ctx context.Context) survey { return s.survey(ctx) })
	if err != nil {
		return nil, nil, err
	}
	vols := make([]portlayer.Volume, len(found.vols))
	for i, vol := range found.vols {
		vols[i] = own(vol)
	}
	return vols, slices.Clone(found.uses), found.err
}

// survey is what a store has: its whole volumes, by name, what each takes, and what is the matter with others or with all.
type survey struct {
	vols []portlayer.Volume
	uses []portlayer.VolumeUsage
	err  error
}

func (s *Store) survey(ctx context.Context) survey {
	if err := s.come(ctx); err != nil {
		return survey{err: err}
	}
	if err := s.reach(ctx); err != nil {
		return survey{err: err}
	}
	names, err := s.names(ctx)
	if err != nil {
		return survey{err: err}
	}
	s.forget(names)
	looks := s.look(ctx, names...)
	found := survey{vols: make([]portlayer.Volume, len(names)), uses: make([]portlayer.VolumeUsage, len(names))}
	var anew []int // that must be read
	s.mu.Lock()
	for i, name := range names {
		if was, known := s.seen[name]; known && was.mark == looks[i].Mark {
			found.vols[i] = was.volume
			found.uses[i] = portlayer.VolumeUsage{Capacity: was.volume.Capacity, Allocated: looks[i].Allocated}
		} else {
			anew = append(anew, i)
		}
	}
	s.mu.Unlock()
	errs := make([]error, len(names))
	atonce.Do(len(anew), readers, func(n int) {
		i := anew[n]
		found.vols[i], found.uses[i], errs[i] = s.locked(ctx, names[i], func() (portlayer.Volume, portlayer.DiskInfo, error) { return s.listed(ctx, names[i], looks[i]) })
	})
	if len(anew) == 0 {
		return found
	}
	good := 0
	var harm []error
	for i, err := range errs {
		switch {
		case err == nil:
			found.vols[good], found.uses[good] = found.vols[i], found.uses[i]
			good++
		case fault.Is(err, fault.NotFound): // unfinished, or removed meanwhile
		case fault.Is(err, fault.Unavailable):
			return survey{err: err}
		default:
			harm = append(harm, err)
		}
	}
	return survey{found.vols[:good], found.uses[:good], errors.Join(harm...)}
}

// readers is how many volumes are read at once: more than there are processors, for a medium may take its time.
const readers = 32

// locked loads a volume while it has its turn.
func (s *Store) locked(ctx context.Context, name portlayer.VolumeName, load func() (portlayer.Volume, portlayer.DiskInfo, error)) (portlayer.Volume, portlayer.VolumeUsage, error) {
	leave, err := s.busy.Lock(ctx, name)
	if err != nil {
		return portlayer.Volume{}, portlayer.VolumeUsage{}, err
	}
	defer leave()
	vol, info, err := load()
	return vol, portlayer.VolumeUsage{Capacity: vol.Capacity, Allocated: info.Allocated}, err
}

// Remove is portlayer.VolumeStore.Remove. A damaged volume can be removed, too.
func (s *Store) Remove(ctx context.Context, name portlayer.VolumeName) error {
	leave, err := s.enter(ctx, name)
	if err != nil {
		return err
	}
	defer leave()
	if !volumeName(name) {
		return s.missing(name)
	}
	_, st, err := s.read(ctx, name)
	switch st {
	case unknown:
		return err
	case absent:
		return s.missing(name)
	}
	if err := s.o.Disks.RemoveDir(ctx, s.dir(name)); err != nil {
		return s.blame(ctx, fault.Wrap("remove volume", string(name), err))
	}
	if gone := s.reach(ctx); gone != nil {
		return gone // RemoveDir of what went away with its medium does nothing, and is no removal
	}
	if st == unfinished {
		return s.missing(name)
	}
	return nil
}

// Join is portlayer.VolumeStore.Join: a device change for the machine and a mount spec for the guest.
func (s *Store) Join(ctx context.Context, h *portlayer.Handle, vol portlayer.Volume, m portlayer.Mount) error {
	if err := ctx.Err(); err != nil {
		return err
	}
	if vol.Store != s.o.Name {
		return fault.New(fault.Internal, "volume %s of store %s was given to store %s to join", vol.Name, vol.Store, s.o.Name)
	}
	disk := portlayer.Disk{Serial: string(vol.Label), File: s.disk(vol.Name), ReadOnly: m.ReadOnly, Throttle: vol.Throttle}
	for _, c := range h.Devices {
		if c.Op == portlayer.Add && c.Disk.Serial == disk.Serial && c.Disk.File != disk.File {
			return fault.New(fault.Conflict, "volume %s cannot be joined: it is a copy of another volume of this container, %s has the same label %s; use one of them", vol.Name, c.Disk.File, vol.Label)
		}
	}
	h.AddDisk(disk)
	h.Config.Mounts = append(h.Config.Mounts, guest.MountSpec{
		Source:   vol.Source,
		Target:   m.Target,
		Subpath:  m.Subpath,
		ReadOnly: m.ReadOnly,
		Copy:     !m.NoCopy,
		Name:     string(vol.Name),
		Was:      was(vol),
	})
	return nil
}

// was is what a volume's file system may be called instead of its label.
func was(vol portlayer.Volume) []string {
	var all []string
	for _, l := range vol.Was {
		all = append(all, string(l))
	}
	return all
}
