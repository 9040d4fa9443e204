package volume

import (
	"context"
	"maps"
	"slices"
	"strings"

	"vch/internal/fault"
	"vch/portlayer"
)

// ensure finds or makes the volume that w asks for. The lock of its name is held.
func (s *Service) ensure(ctx context.Context, w wish) (vol portlayer.Volume, made bool, err error) {
	if err := s.driven(w.driver); err != nil {
		return vol, false, fault.Wrap("create volume", string(w.name), err)
	}
	if !w.anonymous {
		id := portlayer.VolumeID{Name: w.name}
		if w.qualified {
			id.Store = w.store
		}
		p, err := s.good(ctx, id)
		if err == nil {
			if err := w.fits(p.store); err != nil {
				return vol, false, fault.Wrap("create volume", string(w.name), err)
			}
			if err := agree(w, p.volume); err != nil {
				return vol, false, err
			}
			return p.volume, false, s.used(p.volume)
		}
		if w.there || !fault.Is(err, fault.NotFound) {
			return vol, false, err
		}
	}
	st, err := s.store(w.store)
	if err == nil {
		err = w.fits(st)
	}
	if err == nil && w.driver != "" && w.driver != st.Driver() {
		err = fault.New(fault.Invalid, "store %s has driver %s, not %s; name another store with the option VolumeStore", st.Name(), st.Driver(), w.driver)
	}
	if err != nil {
		return vol, false, fault.Wrap("create volume", string(w.name), err)
	}
	if err := s.silence(st); err != nil {
		return vol, false, fault.Wrap("create volume", string(w.name), err)
	}
	vol, made, err = s.make(ctx, st, portlayer.VolumeSpec{
		Name:     w.name,
		Capacity: s.capacity(w),
		Throttle: w.throttle,
		Options:  w.options,
		Labels:   w.labels,
		Maker:    w.maker,
		VCH:      s.o.VCH,
		Packed:   w.packed,
	}, w.from)
	if err != nil {
		return vol, false, err
	}
	vol.Qualified = w.qualified
	if made {
		s.publish("create", vol.Ref(), map[string]string{"driver": vol.Driver})
		s.o.Log.Info("volume made", "volume", string(vol.Name), "store", string(vol.Store), "capacity", int64(vol.Capacity), "maker", vol.Maker)
	}
	return vol, made, nil
}

func (s *Service) capacity(w wish) portlayer.Bytes {
	switch {
	case w.capacity != 0 || w.from != "" || w.packed != nil: // a copy has what its source has
		return w.capacity
	case w.anonymous:
		return s.o.AnonymousCapacity
	}
	return s.o.DefaultCapacity
}

// agree is a Conflict where w asks for what the existing volume is not. Labels are no wish of an existing one, as in Moby.
func agree(w wish, vol portlayer.Volume) error {
	const sector = 512 // a capacity is rounded up to it
	switch {
	case w.driver != "" && w.driver != vol.Driver:
		return fault.New(fault.Conflict, "create %s: driver '%s' already has volume '%s': volume name must be unique (asked for: driver '%s')", vol.Name, vol.Driver, vol.Name, w.driver)
	case w.store != "" && w.store != vol.Store:
		return fault.New(fault.Conflict, "create %s: the volume exists in store %s, and was asked for in store %s; to have both, call the other one %s", vol.Name, vol.Store, w.store, portlayer.VolumeID{Name: vol.Name, Store: w.store})
	case w.capacity != 0 && vol.Capacity != 0 && (w.capacity+sector-1)/sector != (vol.Capacity+sector-1)/sector:
		return fault.New(fault.Conflict, "create %s: the volume exists with a capacity of %s (%d bytes), and %s (%d bytes) was asked for: remove it first, or ask for what it has",
			vol.Name, size(vol.Capacity), vol.Capacity, size(w.capacity), w.capacity)
	case w.from != "" && w.from != optionOf(vol.Options, "from"):
		return fault.New(fault.Conflict, "create %s: the volume exists, and was not made from %s: remove it first, or choose another name", vol.Name, w.from)
	case vol.Shared && !has(vol.Options, w.own):
		return fault.New(fault.Conflict, "create %s: the volume exists with the options %s, and %s were asked for: remove it first, or ask for what it has", vol.Name, optionList(vol.Options), optionList(w.own))
	case w.throttle.IOPS != 0 && w.throttle.IOPS != vol.Throttle.IOPS:
		return fault.New(fault.Conflict, "create %s: the volume exists with iops %d (0 is no bound), and %d was asked for: remove it first, or ask for what it has", vol.Name, vol.Throttle.IOPS, w.throttle.IOPS)
	case w.throttle.BPS != 0 && w.throttle.BPS != vol.Throttle.BPS:
		return fault.New(fault.Conflict, "create %s: the volume exists with bps %d (0 is no bound), and %d was asked for: remove it first, or ask for what it has", vol.Name, vol.Throttle.BPS, w.throttle.BPS)
	}
	return nil
}

// has says whether options have all of want.
func has(options, want map[string]string) bool {
	for key, value := range want {
		if optionOf(options, key) != value {
			return false
		}
	}
	return true
}

// optionList is options as a message shows them.
func optionList(options map[string]string) string {
	if len(options) == 0 {
		return "(none)"
	}
	var all []string
	for _, key := range slices.Sorted(maps.Keys(options)) {
		all = append(all, strings.TrimSuffix(key+"="+options[key], "="))
	}
	return strings.Join(all, ", ")
}
