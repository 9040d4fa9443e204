package volume

import (
	"context"
	"errors"
	"strings"

	"vch/internal/fault"
	"vch/portlayer"
)

// place is where a volume is.
type place struct {
	store  portlayer.VolumeStore
	volume portlayer.Volume // but for Name and Store nothing, if harm is not nil
	harm   error            // the Conflict with which its store describes the damage; nil for a good one
}

// find looks for a volume in every store. The kinds: NotFound when it is in none; Unavailable when a degraded store may have it; Conflict
// when several have it. A damaged volume is found, with its harm.
func (s *Service) find(ctx context.Context, name portlayer.VolumeName) (place, error) {
	none := fault.New(fault.NotFound, "%s: no such volume", strings.TrimSpace("get "+string(name)))
	if !wellNamed(name) {
		return place{}, none
	}
	var found []place
	var away error
	for _, st := range s.stores {
		vol, err := st.Get(ctx, name)
		switch fault.KindOf(err) {
		case fault.NotFound:
			continue
		case fault.Conflict:
			vol = portlayer.Volume{Name: name, Store: st.Name(), Driver: st.Driver()}
		case fault.Unavailable:
			if cerr := ctx.Err(); cerr != nil {
				return place{}, cerr
			}
			away = errors.Join(away, err)
			continue
		default:
			if err != nil {
				return place{}, err
			}
		}
		found = append(found, place{store: st, volume: vol, harm: err})
	}
	switch {
	case len(found) == 1:
		return found[0], nil
	case len(found) > 1:
		return place{}, fault.New(fault.Conflict, "volume %s is in two stores, %s and %s; start vch without one of them, or move one of the two volumes away", name, found[0].store.Name(), found[1].store.Name())
	case away != nil:
		return place{}, fault.New(fault.Unavailable, "volume %s may be in a store that cannot be used now: %w", name, away)
	}
	return place{}, none
}

// good is find for callers that need the volume to be whole.
func (s *Service) good(ctx context.Context, name portlayer.VolumeName) (place, error) {
	p, err := s.find(ctx, name)
	if err == nil {
		err = p.harm
	}
	return p, err
}

// store is the one called name; "" is the default store.
func (s *Service) store(name portlayer.StoreName) (portlayer.VolumeStore, error) {
	wanted := name
	if wanted == "" {
		wanted = portlayer.DefaultStore
	}
	var have []string
	for _, st := range s.stores {
		if st.Name() == wanted {
			return st, nil
		}
		have = append(have, string(st.Name()))
	}
	list := "there is none"
	if len(have) > 0 {
		list = "the stores are " + strings.Join(have, ", ")
	}
	if name == "" {
		return nil, fault.New(fault.Invalid, "there is no default volume store (%s): start vch with --volume-store PATH:default to add one, or name a store with the option VolumeStore", list)
	}
	return nil, fault.New(fault.Invalid, "no volume store is called %s (%s): name one of these, or start vch with --volume-store PATH:%s to add it", name, list, name)
}

// drivers lists the drivers of all stores, for messages.
func (s *Service) drivers() string {
	var have []string
	seen := map[string]bool{}
	for _, st := range s.stores {
		if !seen[st.Driver()] {
			seen[st.Driver()] = true
			have = append(have, st.Driver())
		}
	}
	if len(have) == 0 {
		return "none, for there is no volume store"
	}
	return strings.Join(have, ", ")
}

// driven refuses a driver that no store has.
func (s *Service) driven(driver string) error {
	if driver == "" {
		return nil
	}
	for _, st := range s.stores {
		if st.Driver() == driver {
			return nil
		}
	}
	return fault.New(fault.Invalid, "no volume driver %s; drivers here: %s", driver, s.drivers())
}
