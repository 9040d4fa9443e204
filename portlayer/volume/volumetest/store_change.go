package volumetest

import (
	"context"
	"encoding/json"
	"io"
	"maps"
	"regexp"
	"slices"
	"time"

	"vch/internal/fault"
	"vch/portlayer"
)

// change replaces a volume by what do makes of it.
func (s *Store) change(ctx context.Context, name portlayer.VolumeName, do func(*portlayer.Volume) error) (portlayer.Volume, error) {
	leave, err := s.enter(ctx)
	if err != nil {
		return portlayer.Volume{}, err
	}
	defer leave()
	vol, err := s.get(name)
	if err == nil {
		err = do(&vol)
	}
	if err != nil {
		return portlayer.Volume{}, err
	}
	s.medium.volumes[vol.Name] = vol
	return s.own(vol), nil
}

// SetLabels is portlayer.VolumeStore.SetLabels.
func (s *Store) SetLabels(ctx context.Context, name portlayer.VolumeName, labels map[string]string) (portlayer.Volume, error) {
	return s.change(ctx, name, func(v *portlayer.Volume) error { v.Labels = maps.Clone(labels); return nil })
}

// Grow is portlayer.VolumeStore.Grow.
func (s *Store) Grow(ctx context.Context, name portlayer.VolumeName, capacity portlayer.Bytes) (portlayer.Volume, error) {
	return s.change(ctx, name, func(v *portlayer.Volume) error {
		if capacity = (capacity + 511) / 512 * 512; capacity < v.Capacity {
			return fault.New(fault.Invalid, "volume %s has %d bytes, and cannot shrink to %d", name, v.Capacity, capacity)
		}
		v.Capacity = capacity
		return nil
	})
}

// Rename is portlayer.VolumeStore.Rename.
func (s *Store) Rename(ctx context.Context, from, to portlayer.VolumeName) (portlayer.Volume, error) {
	return s.change(ctx, from, func(v *portlayer.Volume) error {
		if !regexp.MustCompile(`^[a-zA-Z0-9][a-zA-Z0-9_.-]{1,254}$`).MatchString(string(to)) {
			return fault.New(fault.Invalid, "volume name %q cannot be used", to)
		}
		if _, taken := s.medium.volumes[to]; taken {
			return fault.New(fault.Conflict, "volume %s is there already", to)
		}
		delete(s.medium.volumes, from)
		s.medium.snaps[to] = s.medium.snaps[from]
		delete(s.medium.snaps, from)
		v.Was = append(v.Was, v.Label)
		v.Name, v.Label, v.Source = to, s.label(to), s.label(to).Source()
		return nil
	})
}

// Source is portlayer.VolumeStore.Source.
func (s *Store) Source(ctx context.Context, name portlayer.VolumeName, snapshot string) (src portlayer.VolumeSource, err error) {
	_, err = s.change(ctx, name, func(v *portlayer.Volume) error {
		src = portlayer.VolumeSource{Disk: portlayer.DiskPath(s.Location() + "/" + string(name)), Capacity: v.Capacity, Labels: append(slices.Clone(v.Was), v.Label)}
		at := slices.IndexFunc(s.medium.snaps[name], func(o portlayer.Snapshot) bool { return o.Name == snapshot })
		if snapshot != "" && at < 0 {
			return fault.New(fault.NotFound, "volume %s has no snapshot %s", name, snapshot)
		}
		if snapshot != "" {
			src.Disk, src.Capacity = src.Disk+"@"+portlayer.DiskPath(snapshot), s.medium.snaps[name][at].Capacity
		}
		return nil
	})
	return src, err
}

// pack is what Pack writes here.
type pack struct {
	Capacity portlayer.Bytes
	Labels   []portlayer.Label
}

// Pack is portlayer.VolumeStore.Pack.
func (s *Store) Pack(ctx context.Context, name portlayer.VolumeName, snapshot string, w io.Writer) error {
	src, err := s.Source(ctx, name, snapshot)
	if err != nil {
		return err
	}
	return json.NewEncoder(w).Encode(pack{src.Capacity, src.Labels})
}

// Snapshot is portlayer.VolumeStore.Snapshot.
func (s *Store) Snapshot(ctx context.Context, name portlayer.VolumeName, snapshot string, progress portlayer.Progressed) (made portlayer.Snapshot, err error) {
	_, err = s.change(ctx, name, func(v *portlayer.Volume) error {
		if !regexp.MustCompile(`^[a-zA-Z0-9][a-zA-Z0-9_.-]*$`).MatchString(snapshot) {
			return fault.New(fault.Invalid, "snapshot name %q cannot be used", snapshot)
		}
		if slices.ContainsFunc(s.medium.snaps[name], func(o portlayer.Snapshot) bool { return o.Name == snapshot }) {
			return fault.New(fault.Conflict, "volume %s has a snapshot %s already", name, snapshot)
		}
		if progress != nil {
			progress(diskCost, diskCost)
		}
		made = portlayer.Snapshot{Name: snapshot, Created: time.Now().UTC(), Capacity: v.Capacity, Allocated: diskCost}
		s.medium.snaps[name] = append(s.medium.snaps[name], made)
		return nil
	})
	return made, err
}

// Snapshots is portlayer.VolumeStore.Snapshots.
func (s *Store) Snapshots(ctx context.Context, name portlayer.VolumeName) (list []portlayer.Snapshot, err error) {
	_, err = s.change(ctx, name, func(*portlayer.Volume) error {
		list = append([]portlayer.Snapshot{}, s.medium.snaps[name]...)
		return nil
	})
	return list, err
}

// RemoveSnapshot is portlayer.VolumeStore.RemoveSnapshot.
func (s *Store) RemoveSnapshot(ctx context.Context, name portlayer.VolumeName, snapshot string) error {
	_, err := s.change(ctx, name, func(*portlayer.Volume) error {
		at := slices.IndexFunc(s.medium.snaps[name], func(o portlayer.Snapshot) bool { return o.Name == snapshot })
		if at < 0 {
			return fault.New(fault.NotFound, "volume %s has no snapshot %s", name, snapshot)
		}
		s.medium.snaps[name] = slices.Delete(s.medium.snaps[name], at, at+1)
		return nil
	})
	return err
}
