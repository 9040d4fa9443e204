package volume

import (
	"strconv"
	"strings"

	"vch/internal/fault"
	"vch/portlayer"
)

// hold is what one running container has of one volume.
type hold struct {
	who      string
	work     bool // no container: who says what the VCH does with the volume
	shared   bool // others may have it beside this, whatever they do
	readOnly bool // all its mounts are
	mounts   []portlayer.Mount
}

// Attach is portlayer.Binder.Attach. For a container that holds volumes already it adds mounts; a mount that it has is not added twice.
func (s *Service) Attach(c portlayer.ContainerID, who string, mounts []portlayer.Mount) error {
	added, err := s.attach(c, who, mounts)
	for _, m := range added {
		s.publish("mount", m.VolumeRef(), map[string]string{
			"container":   string(c),
			"destination": m.Target,
			"driver":      m.Driver,
			"propagation": "",
			"read/write":  strconv.FormatBool(!m.ReadOnly),
		})
	}
	return err
}

// attach decides first, for all volumes, and then records.
func (s *Service) attach(c portlayer.ContainerID, who string, mounts []portlayer.Mount) (added []portlayer.Mount, err error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	want := map[portlayer.VolumeID]*hold{}
	for _, m := range mounts {
		if m.Kind != portlayer.VolumeMount {
			continue
		}
		w := want[m.ID()]
		if w == nil {
			w = &hold{who: who, readOnly: true}
			if have := s.held[m.ID()][c]; have != nil {
				w.readOnly, w.mounts = have.readOnly, append(w.mounts, have.mounts...)
			}
			want[m.ID()] = w
		}
		w.readOnly, w.shared = w.readOnly && m.ReadOnly, m.Shared
		if !mountedAt(w.mounts, m.Target) {
			w.mounts = append(w.mounts, m)
			added = append(added, m)
		}
	}
	for _, id := range sortedIDs(want) {
		if err := s.clash(id, c, want[id].readOnly); err != nil {
			return nil, fault.Wrap("attach volume", want[id].mounts[0].VolumeRef(), err)
		}
	}
	for id, w := range want {
		if s.held[id] == nil {
			s.held[id] = map[portlayer.ContainerID]*hold{}
		}
		s.held[id][c] = w
	}
	return added, nil
}

// clash is InUse when c cannot have the volume beside those who hold it: one writer, or any number of readers. s.mu is held.
func (s *Service) clash(vol portlayer.VolumeID, c portlayer.ContainerID, readOnly bool) error {
	var readers []string
	for _, id := range sortedKeys(s.held[vol]) {
		other := s.held[vol][id]
		switch {
		case id == c || other.shared && !other.work:
		case other.work && !(other.readOnly && readOnly):
			return fault.New(fault.InUse, "%s; try again when that is done", other.who)
		case !other.readOnly && readOnly:
			return fault.New(fault.InUse, "container %s is running and has it mounted read-write, and a disk has either one writer or readers; stop %s first, or mount the volume read-only there", other.who, other.who)
		case !other.readOnly:
			return fault.New(fault.InUse, "container %s is running and has it mounted read-write, and a disk has one writer; stop %s first, or mount the volume read-only in both", other.who, other.who)
		case !readOnly:
			readers = append(readers, other.who)
		}
	}
	switch len(readers) {
	case 0:
		return nil
	case 1:
		return fault.New(fault.InUse, "container %s is running and has it mounted read-only, and a disk has either one writer or readers; stop %s first, or mount the volume read-only here, too", readers[0], readers[0])
	}
	list := strings.Join(readers, ", ")
	return fault.New(fault.InUse, "containers %s are running and have it mounted read-only, and a disk has either one writer or readers; stop them first, or mount the volume read-only here, too", list)
}

func mountedAt(mounts []portlayer.Mount, target string) bool {
	for _, m := range mounts {
		if m.Target == target {
			return true
		}
	}
	return false
}

// Detach is portlayer.Binder.Detach.
func (s *Service) Detach(c portlayer.ContainerID) {
	for _, m := range s.detach(c) {
		s.publish("unmount", m.VolumeRef(), map[string]string{"container": string(c), "driver": m.Driver})
	}
}

func (s *Service) detach(c portlayer.ContainerID) (freed []portlayer.Mount) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, id := range sortedIDs(s.held) {
		by := s.held[id]
		if have := by[c]; have != nil {
			freed = append(freed, have.mounts...)
			delete(by, c)
		}
		if len(by) == 0 {
			delete(s.held, id)
		}
	}
	return freed
}

// DetachMounts is portlayer.Binder.DetachMounts.
func (s *Service) DetachMounts(c portlayer.ContainerID, mounts []portlayer.Mount) {
	for _, m := range s.detachMounts(c, mounts) {
		s.publish("unmount", m.VolumeRef(), map[string]string{"container": string(c), "driver": m.Driver})
	}
}

func (s *Service) detachMounts(c portlayer.ContainerID, mounts []portlayer.Mount) (freed []portlayer.Mount) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, m := range mounts {
		have := s.held[m.ID()][c]
		if have == nil || !mountedAt(have.mounts, m.Target) {
			continue
		}
		left := &hold{who: have.who, work: have.work, shared: have.shared, readOnly: true}
		for _, o := range have.mounts {
			if o.Target == m.Target {
				freed = append(freed, o)
				continue
			}
			left.readOnly = left.readOnly && o.ReadOnly
			left.mounts = append(left.mounts, o)
		}
		s.held[m.ID()][c] = left
		if len(left.mounts) == 0 {
			delete(s.held[m.ID()], c)
		}
		if len(s.held[m.ID()]) == 0 {
			delete(s.held, m.ID())
		}
	}
	return freed
}

// attached lists who holds a volume. s.mu is held.
func (s *Service) attached(vol portlayer.VolumeID) []portlayer.Attachment {
	var all []portlayer.Attachment
	for _, id := range sortedKeys(s.held[vol]) {
		if s.held[vol][id].work {
			continue
		}
		all = append(all, portlayer.Attachment{Container: id, ReadOnly: s.held[vol][id].readOnly})
	}
	return all
}
