package volume

import (
	"cmp"
	"context"
	"maps"
	"slices"

	"vch/internal/fault"
	"vch/portlayer"
)

// Reserve is portlayer.Binder.Reserve.
func (s *Service) Reserve(ctx context.Context, c portlayer.ContainerID, m portlayer.Mount) (portlayer.Mount, bool, error) {
	w, err := s.newWish(m.ID(), m.Driver, m.Options, m.Labels)
	if err != nil {
		return m, false, err
	}
	w.maker = string(c)
	unlock, err := s.names.Lock(ctx, w.name)
	if err != nil {
		return m, false, err
	}
	defer unlock()
	w.there = m.Origin == portlayer.FromContainer
	vol, made, err := s.ensure(ctx, w)
	if w.there && fault.Is(err, fault.NotFound) {
		err = fault.Wrap("take over the mount at", m.Target, err)
	}
	if err != nil {
		return m, false, err
	}
	s.Refer(c, vol.ID()) // under the name's lock: no Remove comes between
	m.Volume, m.Store, m.Driver, m.Shared = vol.Name, vol.Store, vol.Driver, vol.Shared
	m.Anonymous = m.Anonymous || w.anonymous
	return m, made, nil
}

// Refer is portlayer.Binder.Refer.
func (s *Service) Refer(c portlayer.ContainerID, id portlayer.VolumeID) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.refs[id] == nil {
		s.refs[id] = map[portlayer.ContainerID]struct{}{}
	}
	s.refs[id][c] = struct{}{}
}

// Release is portlayer.Binder.Release.
func (s *Service) Release(c portlayer.ContainerID) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for id, by := range s.refs {
		if delete(by, c); len(by) == 0 {
			delete(s.refs, id)
		}
	}
}

// ReleaseVolume is portlayer.Binder.ReleaseVolume.
func (s *Service) ReleaseVolume(c portlayer.ContainerID, id portlayer.VolumeID) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if delete(s.refs[id], c); len(s.refs[id]) == 0 {
		delete(s.refs, id)
	}
}

// users are the containers that refer to a volume or hold it, sorted.
func (s *Service) users(vol portlayer.VolumeID) []portlayer.ContainerID {
	s.mu.Lock()
	defer s.mu.Unlock()
	ids := append(sortedKeys(s.refs[vol]), sortedKeys(s.held[vol])...)
	slices.Sort(ids)
	return slices.Compact(ids)
}

// Unmake is portlayer.Binder.Unmake.
func (s *Service) Unmake(ctx context.Context, id portlayer.VolumeID, maker portlayer.ContainerID) error {
	unlock, err := s.names.Lock(ctx, id.Name)
	if err != nil {
		return err
	}
	defer unlock()
	if len(s.users(id)) > 0 {
		return nil
	}
	p, err := s.find(ctx, id)
	switch {
	case fault.Is(err, fault.NotFound):
		return nil
	case err != nil:
		return err
	case len(s.users(p.volume.ID())) > 0:
		return nil
	case maker != "" && p.harm != nil:
		return p.harm // who made it cannot be read
	case maker != "" && p.volume.Maker != string(maker):
		return nil
	}
	if maker != "" {
		p.volume.Labels = nil // its maker takes it back: nobody can have meant to keep it
	}
	err = s.remove(ctx, p)
	if maker == "" && fault.Is(err, fault.Conflict) { // it is protected, or has snapshots
		s.o.Log.Info("a volume outlives its container", "volume", p.volume.ID().String(), "why", err)
		return nil
	}
	if fault.Is(err, fault.InUse) || fault.Is(err, fault.NotFound) {
		return nil
	}
	return err
}

// Join is portlayer.Binder.Join. It asks the store in which the volume was reserved and no other, so that others may be degraded.
func (s *Service) Join(ctx context.Context, h *portlayer.Handle, m portlayer.Mount) error {
	if m.Store == "" {
		p, err := s.good(ctx, m.ID())
		if err != nil {
			return err
		}
		return p.store.Join(ctx, h, p.volume, m)
	}
	st, err := s.store(m.Store)
	if err != nil {
		return fault.New(fault.Unavailable, "cannot join volume %s: %w", m.Volume, err)
	}
	vol, err := s.get(ctx, st, m.Volume)
	if err != nil {
		return fault.Wrap("join volume", string(m.Volume), err)
	}
	return st.Join(ctx, h, vol, m)
}

func sortedIDs[V any](m map[portlayer.VolumeID]V) []portlayer.VolumeID {
	return slices.SortedFunc(maps.Keys(m), func(a, b portlayer.VolumeID) int {
		return cmp.Or(cmp.Compare(a.Name, b.Name), cmp.Compare(a.Store, b.Store))
	})
}

func sortedKeys[K cmp.Ordered, V any](m map[K]V) []K { return slices.Sorted(maps.Keys(m)) }
