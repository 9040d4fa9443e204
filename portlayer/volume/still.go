package volume

import (
	"context"
	"crypto/rand"
	"encoding/hex"

	"vch/internal/fault"
	"vch/portlayer"
)

// hold takes a volume for a piece of work of the VCH itself, as a container that runs would: others are refused, and hear what is being done. No event tells of it.
func (s *Service) hold(vol portlayer.Volume, work string, readOnly bool) (release func(), err error) {
	var b [8]byte
	rand.Read(b[:]) // never fails (crypto/rand)
	id := portlayer.ContainerID("vch-" + hex.EncodeToString(b[:]))
	s.mu.Lock()
	defer s.mu.Unlock()
	if err := s.clash(vol.ID(), id, readOnly); err != nil {
		return nil, fault.Wrap("use volume", vol.Ref(), err)
	}
	if s.held[vol.ID()] == nil {
		s.held[vol.ID()] = map[portlayer.ContainerID]*hold{}
	}
	s.held[vol.ID()][id] = &hold{who: work, work: true, readOnly: readOnly}
	return func() { s.detach(id) }, nil
}

// work says what the VCH does with a volume, and what to do; "" if nothing.
func (s *Service) work(vol portlayer.VolumeID) string {
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, h := range s.held[vol] {
		if h.work {
			return h.who + "; try again when that is done"
		}
	}
	return ""
}

// still keeps a volume from being written: nobody can come to write it, and a container that does so already is stopped from it. An error of end says that it was
// written after all.
func (s *Service) still(ctx context.Context, vol portlayer.Volume, work string) (end func() error, err error) {
	release, err := s.hold(vol, work, true)
	if err == nil {
		return func() error { release(); return nil }, nil
	}
	writer, found := s.writer(vol.ID())
	if !fault.Is(err, fault.InUse) || !found {
		return nil, err
	}
	content, cerr := s.reached()
	if cerr != nil {
		return nil, cerr
	}
	return content.Freeze(ctx, writer, vol)
}

// writer is the container that has a volume writable.
func (s *Service) writer(vol portlayer.VolumeID) (portlayer.ContainerID, bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for id, h := range s.held[vol] {
		if !h.readOnly && !h.work {
			return id, true
		}
	}
	return "", false
}
