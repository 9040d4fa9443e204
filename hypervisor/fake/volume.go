package fake

import (
	"context"
	"os"
	"strings"

	"vch/guest"
	"vch/internal/fault"
)

// writable finds a mounted volume. The caller holds mu.
func (s *system) writable(source guest.Source) (*content, error) {
	for _, m := range s.mounts {
		if m.source != source {
			continue
		}
		if m.content.readOnly {
			return nil, fault.New(fault.Conflict, "%s is mounted read-only", source)
		}
		return m.content, nil
	}
	return nil, fault.New(fault.Conflict, "%s is not mounted in this machine", source)
}

// Freeze is tether.System.Freeze.
func (s *system) Freeze(source guest.Source) (thaw func() error, err error) {
	s.mu.Lock()
	c, err := s.writable(source)
	s.mu.Unlock()
	if err != nil {
		return nil, err
	}
	c.frozen.Lock()
	return func() error { c.frozen.Unlock(); return nil }, nil
}

// Grow is tether.System.Grow.
func (s *system) Grow(_ context.Context, source guest.Source, size int64) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	c, err := s.writable(source)
	if err != nil {
		return err
	}
	fi, err := os.Stat(c.extent.Name())
	if err != nil {
		return err
	}
	if fi.Size() < size {
		return fault.New(fault.Unavailable, "the disk of %s has %d bytes in the machine, and should have %d", source, fi.Size(), size)
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	c.room = size - contentAt
	return nil
}

// Rooms is tether.System.Rooms.
func (s *system) Rooms() ([]guest.Room, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	rooms := []guest.Room{}
	seen := map[guest.Source]bool{}
	for _, m := range s.mounts {
		if strings.HasPrefix(m.source, "label://") && !seen[m.source] {
			seen[m.source] = true
			rooms = append(rooms, guest.Room{Source: m.source, Total: m.content.room, Free: m.content.room - m.content.used()})
		}
	}
	return rooms, nil
}
