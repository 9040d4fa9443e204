package volume

import (
	"context"
	"errors"
	"fmt"
	"strings"

	"vch/internal/fault"
	"vch/portlayer"
)

// place is where a volume is.
type place struct {
	store  portlayer.VolumeStore
	volume portlayer.Volume // but for Name and Store nothing, if harm is not nil
	more   *beside          // nil: its store did not tell
	harm   error            // the Conflict with which its store describes the damage; nil for a good one
}

// find looks for a volume: in its store, or, by a plain name, in every one. The kinds: NotFound when it is in none; Unavailable when a degraded store
// may have it; Conflict when it is not clear which of several is meant. A damaged volume is found, with its harm.
func (s *Service) find(ctx context.Context, id portlayer.VolumeID) (place, error) {
	none := fault.New(fault.NotFound, "%s: no such volume", strings.TrimSpace("get "+id.String()))
	if !wellNamed(id.Name) {
		return place{}, none
	}
	stores := s.stores
	if id.Store != "" {
		st, err := s.store(id.Store)
		if err != nil {
			return place{}, fault.New(fault.NotFound, "get %s: no such volume: %w", id, err)
		}
		stores = []portlayer.VolumeStore{st}
	}
	var found []place
	away := map[portlayer.StoreName]error{}
	type answer struct {
		sight
		err error
	}
	answers := askAll(stores, func(st portlayer.VolumeStore) (a answer) { a.sight, a.err = s.see(ctx, st, id.Name); return a })
	for i, st := range stores {
		vol, err := answers[i].vol, answers[i].err
		vol.Qualified = id.Store != ""
		switch fault.KindOf(err) {
		case fault.NotFound:
			continue
		case fault.Conflict:
			vol = portlayer.Volume{Name: id.Name, Store: st.Name(), Driver: st.Driver(), Qualified: id.Store != ""}
		case fault.Unavailable:
			if cerr := ctx.Err(); cerr != nil {
				return place{}, cerr
			}
			away[st.Name()] = err
			continue
		default:
			if err != nil {
				return place{}, err
			}
		}
		found = append(found, place{store: st, volume: vol, more: answers[i].more, harm: err})
	}
	if len(found) > 0 && id.Store == "" {
		return s.meant(found, away)
	}
	switch {
	case len(found) > 0:
		return found[0], nil
	case len(away) > 0:
		var why []error
		for _, st := range s.stores {
			why = append(why, away[st.Name()])
		}
		elsewhere := ""
		if id.Store == "" && len(away) < len(s.stores) {
			elsewhere = fmt.Sprintf(" (for one in another store, write %s@STORE)", id.Name)
		}
		return place{}, fault.New(fault.Unavailable, "volume %s may be in a store that cannot be used now%s: %w", id, elsewhere, errors.Join(why...))
	}
	return place{}, none
}

// good is find for callers that need the volume to be whole.
func (s *Service) good(ctx context.Context, id portlayer.VolumeID) (place, error) {
	p, err := s.find(ctx, id)
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
