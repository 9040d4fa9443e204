package volume

import (
	"strings"
	"time"

	"vch/internal/fault"
	"vch/portlayer"
	"vch/portlayer/record"
)

// firstUse is when this VCH first used a volume that it had not made.
type firstUse struct {
	Store portlayer.StoreName `json:"store"`
	Time  time.Time           `json:"time"`
}

// readHomes reads what the VCH's earlier lives recorded.
func (s *Service) readHomes() (err error) {
	if s.o.DB == nil {
		return nil
	}
	if s.homes, err = record.NewTable[firstUse](s.o.DB, "homes"); err != nil {
		return err
	}
	all, err := s.homes.All()
	for name, use := range all {
		s.home[portlayer.VolumeName(name)] = use
	}
	return err
}

func (s *Service) homeOf(name portlayer.VolumeName) (firstUse, bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	use, ok := s.home[name]
	return use, ok
}

// used records that this VCH uses vol, if it made it not itself and has no earlier use of that name to remember. The lock of its name is held.
func (s *Service) used(vol portlayer.Volume) error {
	if _, known := s.homeOf(vol.Name); known || vol.VCH == s.o.VCH {
		return nil
	}
	use := firstUse{Store: vol.Store, Time: time.Now().UTC()}
	if s.o.DB != nil {
		if err := s.homes.Put(string(vol.Name), use); err != nil {
			return err
		}
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	s.home[vol.Name] = use
	return nil
}

// leaveHome forgets the first use of a volume that is removed. The lock of its name is held.
func (s *Service) leaveHome(id portlayer.VolumeID) {
	if use, known := s.homeOf(id.Name); !known || use.Store != id.Store {
		return
	}
	s.mu.Lock()
	delete(s.home, id.Name)
	s.mu.Unlock()
	if s.o.DB == nil {
		return
	}
	if err := s.homes.Delete(string(id.Name)); err != nil {
		s.o.Log.Warn("the first use of a removed volume stays on record, and would count for another of that identity", "volume", id.String(), "err", err)
	}
}

// since is when a volume became this VCH's own: when it made it, or used it first. Zero: it is not.
func (s *Service) since(vol portlayer.Volume) time.Time {
	if use, known := s.homeOf(vol.Name); known && use.Store == vol.Store {
		return use.Time
	}
	if vol.VCH == s.o.VCH && !vol.Created.IsZero() {
		return vol.Created
	}
	return time.Time{}
}

// meant gives the one of found, which have one name, that the plain name means: what became this VCH's own first. away are the errors of stores that could
// not be asked.
func (s *Service) meant(found []place, away map[portlayer.StoreName]error) (place, error) {
	name := found[0].volume.Name
	if use, known := s.homeOf(name); known && away[use.Store] != nil {
		return place{}, fault.New(fault.Unavailable, "volume %s is in store %s, which cannot be used now (another of that name is %s): %w", name, use.Store, found[0].volume.ID(), away[use.Store])
	}
	if len(found) == 1 {
		return found[0], nil
	}
	best, unclear := -1, false
	for i, p := range found {
		at := s.since(p.volume)
		if !at.IsZero() && (best < 0 || at.Before(s.since(found[best].volume))) {
			best = i
		}
		unclear = unclear || p.harm != nil && at.IsZero() // who made it cannot be read
	}
	if best < 0 || unclear {
		var list []string
		for _, p := range found {
			list = append(list, p.volume.ID().String())
		}
		return place{}, fault.New(fault.Conflict, "volume %s is in %d stores, and it is not clear which one this VCH made or used first: say which one, %s", name, len(found), strings.Join(list, " or "))
	}
	return found[best], nil
}

// qualify marks those of volumes of one name that the plain name does not mean.
func (s *Service) qualify(same []portlayer.VolumeDetail) {
	first := -1
	for i := range same {
		same[i].Qualified = true
		if at := s.since(same[i].Volume); !at.IsZero() && (first < 0 || at.Before(s.since(same[first].Volume))) {
			first = i
		}
	}
	if first >= 0 {
		same[first].Qualified = false
	}
}
