package volume

import (
	"context"
	"errors"
	"strings"

	"vch/internal/fault"
	"vch/portlayer"
)

// make makes a volume in a store: empty, or as a copy of what from says.
func (s *Service) make(ctx context.Context, st portlayer.VolumeStore, spec portlayer.VolumeSpec, from string) (vol portlayer.Volume, made bool, err error) {
	if from == "" {
		return st.Ensure(ctx, spec)
	}
	src, end, err := s.source(ctx, from)
	if err != nil {
		return vol, false, fault.Wrap("copy", from, err)
	}
	spec.From = &src
	vol, made, err = st.Ensure(ctx, spec)
	if eerr := end(); eerr != nil && err == nil {
		err = fault.Wrap("copy", from, eerr)
		if made { // it may be half of one moment and half of another
			err = errors.Join(err, st.Remove(context.WithoutCancel(ctx), vol.Name))
		}
		return portlayer.Volume{}, false, err
	}
	return vol, made, err
}

// source finds what a copy is to be made from, and keeps it as it is until end.
func (s *Service) source(ctx context.Context, text string) (src portlayer.VolumeSource, end func() error, err error) {
	p, snapshot, err := s.original(ctx, text)
	if err != nil {
		return src, nil, err
	}
	work := "volume " + p.volume.Ref() + " is being copied"
	if snapshot == "" {
		end, err = s.still(ctx, p.volume, work)
	} else {
		end, err = s.kept(p.volume, work)
	}
	if err != nil {
		return src, nil, err
	}
	src, err = p.store.Source(ctx, p.volume.Name, snapshot) // after that, so that it is still there
	if err != nil {
		return src, nil, errors.Join(err, end())
	}
	return src, end, nil
}

// kept keeps a volume from being removed, and its snapshots with it. A container that writes to it does so already.
func (s *Service) kept(vol portlayer.Volume, work string) (end func() error, err error) {
	release, err := s.hold(vol, work, true)
	if _, writes := s.writer(vol.ID()); err != nil && writes {
		release, err = func() {}, nil
	}
	return func() error { release(); return nil }, err
}

// original finds the volume, and the snapshot of it or "", that text means: NAME, NAME@SNAPSHOT, NAME@STORE or NAME@STORE@SNAPSHOT. What could be both, a
// snapshot and a store, is a Conflict.
func (s *Service) original(ctx context.Context, text string) (p place, snapshot string, err error) {
	parts := strings.Split(text, "@")
	id := portlayer.VolumeID{Name: portlayer.VolumeName(parts[0])}
	switch len(parts) {
	case 1:
		p, err = s.good(ctx, id)
		return p, "", err
	case 2:
	case 3:
		id.Store = portlayer.StoreName(parts[1])
		p, err = s.good(ctx, id)
		return p, parts[2], err
	default:
		return place{}, "", fault.New(fault.Invalid, "%q names no volume; write NAME, NAME@STORE, or either with @SNAPSHOT", text)
	}
	_, noStore := s.store(portlayer.StoreName(parts[1]))
	p, err = s.good(ctx, id)
	noSnapshot := err
	if err == nil {
		_, noSnapshot = p.store.Source(ctx, p.volume.Name, parts[1])
	}
	switch {
	case noSnapshot == nil && noStore == nil:
		return place{}, "", fault.New(fault.Conflict, "%s is a snapshot of volume %s, and there is a store %s, too: write %s@%s for the snapshot", text, parts[0], parts[1], p.volume.ID(), parts[1])
	case noSnapshot == nil:
		return p, parts[1], nil
	case noStore != nil:
		return place{}, "", noSnapshot
	}
	id.Store = portlayer.StoreName(parts[1])
	p, err = s.good(ctx, id)
	return p, "", err
}

// optionOf is the value of an option, whose key may be written in any case.
func optionOf(options map[string]string, name string) string {
	for key, value := range options {
		if strings.EqualFold(key, name) {
			return value
		}
	}
	return ""
}
