package exec

import (
	"context"
	"errors"
	"slices"
	"strconv"

	"vch/portlayer"
	"vch/portlayer/record"
)

// writes reports whether one of mounts mounts the volume id writable.
func writes(mounts []portlayer.Mount, id portlayer.VolumeID) bool {
	return slices.ContainsFunc(mounts, func(m portlayer.Mount) bool {
		return m.Kind == portlayer.VolumeMount && m.ID() == id && !m.ReadOnly
	})
}

// writtenKey names one making of a volume: its label is that of its name, and would be the same for one that was removed and made anew.
func writtenKey(v portlayer.Volume) string {
	return string(v.Label) + "-" + strconv.FormatInt(v.Created.UnixNano(), 10)
}

// everWritten reports whether a machine of this VCH has had the volume writable. One that was never written may be empty, and a machine has to look: the
// host does not look into file systems. Only an answer "no" costs something, so that a lost record does no harm.
func (s *Service) everWritten(ctx context.Context, id portlayer.VolumeID) (bool, error) {
	v, err := s.o.Volumes.Get(ctx, id)
	if err != nil {
		return false, err
	}
	_, ok, err := s.touched.Get(writtenKey(v.Volume))
	return ok, err
}

// wrote records that a machine has the writable volumes of mounts.
func (s *Service) wrote(ctx context.Context, mounts []portlayer.Mount) {
	for _, m := range mounts {
		if m.Kind != portlayer.VolumeMount || m.ReadOnly {
			continue
		}
		v, err := s.o.Volumes.Get(ctx, m.ID())
		if err == nil {
			key := writtenKey(v.Volume)
			var ok bool
			if _, ok, err = s.touched.Get(key); err == nil && !ok {
				err = s.touched.Put(key, v.Name)
			}
		}
		if err != nil {
			s.o.Log.Warn("that a volume was written is not recorded; a machine will look when it is mounted read-only", "volume", m.ID().String(), "err", err)
		}
	}
}

// forgetRemoved drops what is recorded of volumes that are no more. A degraded store's are not known to be.
func forgetRemoved(ctx context.Context, volumes portlayer.Volumes, touched record.Table[portlayer.VolumeName], rooms record.Table[portlayer.Inside]) error {
	have, warnings, err := volumes.List(ctx)
	if err != nil || len(warnings) > 0 {
		return err
	}
	keys, labels := map[string]bool{}, map[string]bool{}
	for _, v := range have {
		keys[writtenKey(v.Volume)], labels[string(v.Label)] = true, true
	}
	return errors.Join(keepOnly(touched, keys), keepOnly(rooms, labels))
}

// keepOnly deletes the records whose keys are not among those.
func keepOnly[T any](table record.Table[T], keys map[string]bool) error {
	recorded, err := table.All()
	if err != nil {
		return err
	}
	for key := range recorded {
		if !keys[key] {
			if err := table.Delete(key); err != nil {
				return err
			}
		}
	}
	return nil
}
