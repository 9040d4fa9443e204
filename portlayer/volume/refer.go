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
	w, err := s.newWish(m.Volume, m.Driver, m.Options, m.Labels)
	if err != nil {
		return m, false, err
	}
	w.maker = string(c)
	if m.Store != "" {
		if w.store != "" && w.store != m.Store {
			return m, false, fault.New(fault.Invalid, "volume %s is asked for in two stores, %s and %s; name one", w.name, m.Store, w.store)
		}
		w.store = m.Store
	}
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
	s.Refer(c, vol.Name) // under the name's lock: no Remove comes between
	m.Volume, m.Store, m.Driver = vol.Name, vol.Store, vol.Driver
	m.Anonymous = m.Anonymous || w.anonymous
	return m, made, nil
}

// Refer is portlayer.Binder.Refer.
func (s *Service) Refer(c portlayer.ContainerID, name portlayer.VolumeName) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.refs[name] == nil {
		s.refs[name] = map[portlayer.ContainerID]struct{}{}
	}
	s.refs[name][c] = struct{}{}
}

// Release is portlayer.Binder.Release.
func (s *Service) Release(c portlayer.ContainerID) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for name, by := range s.refs {
		if delete(by, c); len(by) == 0 {
			delete(s.refs, name)
		}
	}
}

// users are the containers that refer to a volume or hold it, sorted.
func (s *Service) users(name portlayer.VolumeName) []portlayer.ContainerID {
	s.mu.Lock()
	defer s.mu.Unlock()
	ids := append(sortedKeys(s.refs[name]), sortedKeys(s.held[name])...)
	slices.Sort(ids)
	return slices.Compact(ids)
}

// Unmake is portlayer.Binder.Unmake.
func (s *Service) Unmake(ctx context.Context, name portlayer.VolumeName, maker portlayer.ContainerID) error {
	unlock, err := s.names.Lock(ctx, name)
	if err != nil {
		return err
	}
	defer unlock()
	if len(s.users(name)) > 0 {
		return nil
	}
	p, err := s.find(ctx, name)
	switch {
	case fault.Is(err, fault.NotFound):
		return nil
	case err != nil:
		return err
	case maker != "" && p.harm != nil:
		return p.harm // who made it cannot be read
	case maker != "" && p.volume.Maker != string(maker):
		return nil
	}
	err = s.remove(ctx, p)
	if fault.Is(err, fault.InUse) || fault.Is(err, fault.NotFound) {
		return nil
	}
	return err
}

// Join is portlayer.Binder.Join. It asks the store in which the volume was reserved and no other, so that others may be degraded.
func (s *Service) Join(ctx context.Context, h *portlayer.Handle, m portlayer.Mount) error {
	if m.Store == "" {
		p, err := s.good(ctx, m.Volume)
		if err != nil {
			return err
		}
		return p.store.Join(ctx, h, p.volume, m)
	}
	st, err := s.store(m.Store)
	if err != nil {
		return fault.New(fault.Unavailable, "cannot join volume %s: %w", m.Volume, err)
	}
	vol, err := st.Get(ctx, m.Volume)
	if err != nil {
		return fault.Wrap("join volume", string(m.Volume), err)
	}
	return st.Join(ctx, h, vol, m)
}

func sortedKeys[K cmp.Ordered, V any](m map[K]V) []K { return slices.Sorted(maps.Keys(m)) }
