package vmdk

import (
	"context"
	"errors"
	"slices"

	"vch/internal/fault"
	"vch/portlayer"
)

// SetLabels is portlayer.VolumeStore.SetLabels.
func (s *Store) SetLabels(ctx context.Context, name portlayer.VolumeName, labels map[string]string) (portlayer.Volume, error) {
	return s.change(ctx, name, func(rec *record) error { rec.Labels = labels; return nil })
}

// change rewrites the record of a whole volume.
func (s *Store) change(ctx context.Context, name portlayer.VolumeName, do func(*record) error) (portlayer.Volume, error) {
	leave, err := s.enter(ctx, name)
	if err != nil {
		return portlayer.Volume{}, err
	}
	defer leave()
	if !volumeName(name) {
		return portlayer.Volume{}, s.missing(name)
	}
	rec, st, err := s.read(ctx, name)
	switch {
	case err != nil:
		return portlayer.Volume{}, err
	case st != whole:
		return portlayer.Volume{}, s.missing(name)
	}
	if err := do(&rec); err != nil {
		return portlayer.Volume{}, err
	}
	if err := s.write(ctx, name, rec); err != nil {
		return portlayer.Volume{}, s.blame(ctx, fault.Wrap("change volume", string(name), err))
	}
	vol, _, err := s.check(ctx, name, rec)
	return vol, err
}

// Source is portlayer.VolumeStore.Source.
func (s *Store) Source(ctx context.Context, name portlayer.VolumeName, snapshot string) (portlayer.VolumeSource, error) {
	vol, err := s.Get(ctx, name)
	if err != nil {
		return portlayer.VolumeSource{}, err
	}
	if snapshot == "" {
		return portlayer.VolumeSource{Disk: s.disk(name), Capacity: vol.Capacity, Labels: append(slices.Clone(vol.Was), vol.Label)}, nil
	}
	rec, err := s.readSnapshot(ctx, name, snapshot)
	if err != nil {
		return portlayer.VolumeSource{}, err
	}
	return portlayer.VolumeSource{Disk: s.snapshotDisk(name, snapshot), Capacity: rec.Size, Labels: rec.Was}, nil
}

// Grow is portlayer.VolumeStore.Grow. The disk comes first: what it has, and not what volume.json says, is the capacity.
func (s *Store) Grow(ctx context.Context, name portlayer.VolumeName, capacity portlayer.Bytes) (portlayer.Volume, error) {
	return s.change(ctx, name, func(rec *record) error {
		info, err := s.o.Disks.Stat(ctx, s.disk(name))
		if err != nil {
			return s.blame(ctx, s.damage(name, "%w", err))
		}
		if s.rounded(capacity) < info.Size {
			return fault.New(fault.Invalid, "volume %s has %s (%d bytes), and cannot shrink to %s (%d bytes)", name, size(info.Size), info.Size, size(capacity), capacity)
		}
		if err := s.o.Disks.Grow(ctx, s.disk(name), capacity); err != nil {
			return s.blame(ctx, fault.Wrap("grow volume", string(name), err))
		}
		info, err = s.o.Disks.Stat(ctx, s.disk(name))
		rec.Size = info.Size
		return err
	})
}

// Rename is portlayer.VolumeStore.Rename. The disk gets its second name, then the directory its new one, and from then on the volume is called so; the rest can be
// done by whoever comes next.
func (s *Store) Rename(ctx context.Context, from, to portlayer.VolumeName) (vol portlayer.Volume, err error) {
	if !volumeName(to) {
		return vol, fault.New(fault.Invalid, "volume name %q: a name begins with a letter or digit, holds letters, digits, _ . and - only, and has 2 to 255 bytes", to)
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
	rec, st, err := s.read(ctx, from)
	switch {
	case err != nil:
		return vol, err
	case st != whole:
		return vol, s.missing(from)
	}
	if _, st, err := s.read(ctx, to); err != nil {
		return vol, err
	} else if st == whole {
		return vol, fault.New(fault.Conflict, "volume %s is in store %s already", to, s.o.Name)
	} else if st == unfinished {
		if err := s.o.Disks.RemoveDir(ctx, s.dir(to)); err != nil {
			return vol, s.blame(ctx, err)
		}
	}
	d, old := s.o.Disks, s.disk(from)
	second := d.Join(s.dir(from), fileOf(to))
	if second != old {
		if err := d.Delete(ctx, second); err != nil { // of an earlier try
			return vol, s.blame(ctx, err)
		}
		if err := d.Link(ctx, old, second); err != nil {
			return vol, s.blame(ctx, fault.Wrap("rename volume", string(from), err))
		}
	}
	if err := d.MoveDir(ctx, s.dir(from), s.dir(to)); err != nil {
		return vol, s.blame(ctx, errors.Join(fault.Wrap("rename volume", string(from), err), d.Delete(context.WithoutCancel(ctx), second)))
	}
	rec.Was = append(rec.Was, rec.Label)
	rec.Label = s.label(to)
	if err := s.write(ctx, to, rec); err != nil {
		return vol, s.blame(ctx, fault.Wrap("rename volume", string(from), err))
	}
	if second != old {
		if err := d.Delete(ctx, d.Join(s.dir(to), fileOf(from))); err != nil {
			return vol, s.blame(ctx, err)
		}
	}
	vol, _, err = s.check(ctx, to, rec)
	return vol, err
}
