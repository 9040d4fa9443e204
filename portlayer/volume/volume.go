// Package volume is the volume service: named stores, one name space over them, references, anonymous names, one writer a volume.
//
// It implements portlayer.Volumes for the doors and portlayer.Binder for the container service. What a volume is, its store knows; what the
// service knows beside (who refers to a volume, who holds it) is told again by the container service after a restart, and kept in memory only.
// A plain name is looked for in every store. While one of them is degraded, a name that is found nowhere else may be there: it is neither called missing
// nor made anew. Which of several volumes a plain name means, home.go says. No lock but the one of a name is held while a store works.
package volume

import (
	"cmp"
	"log/slog"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"vch/internal/fault"
	"vch/internal/keylock"
	"vch/portlayer"
	"vch/portlayer/record"
)

// Options is what a Service needs.
type Options struct {
	Stores            []portlayer.VolumeStore
	AnonymousCapacity portlayer.Bytes   // of volumes made without a name; 0: the store's default
	DefaultCapacity   portlayer.Bytes   // of named volumes that ask for none; 0: the store's default
	AnonymousOptions  map[string]string // of volumes made without a name that have no options of their own; those of VolumeRequest.Options
	VCH               string            // this VCH's id, recorded with what it makes
	DB                *record.DB        // remembers which volumes of others were used first; nil: only in memory
	Publish           portlayer.Publish // nil: nobody listens
	Log               *slog.Logger      // nil: nothing is logged
}

// Service implements portlayer.Volumes and portlayer.Binder.
type Service struct {
	o       Options
	stores  []portlayer.VolumeStore // sorted by name
	names   keylock.Set[portlayer.VolumeName]
	pruning atomic.Bool

	mu         sync.Mutex                  // guards below; never held while a store works
	unanswered map[portlayer.StoreName]int // times that a store did not say how it is, and has not yet
	refs       map[portlayer.VolumeID]map[portlayer.ContainerID]struct{}
	held       map[portlayer.VolumeID]map[portlayer.ContainerID]*hold
	home       map[portlayer.VolumeName]firstUse
	content    portlayer.Content // nil until Reach

	homes record.Table[firstUse] // the same, durably; without a database unused
}

// New makes the service. Invalid: two stores have one name.
func New(o Options) (*Service, error) {
	if o.AnonymousCapacity < 0 || o.DefaultCapacity < 0 {
		return nil, fault.New(fault.Invalid, "a volume's capacity cannot be negative")
	}
	if o.Publish == nil {
		o.Publish = func(portlayer.Event) {}
	}
	if o.Log == nil {
		o.Log = slog.New(slog.DiscardHandler)
	}
	s := &Service{
		o:      o,
		stores: slices.Clone(o.Stores),
		refs:   map[portlayer.VolumeID]map[portlayer.ContainerID]struct{}{},
		held:   map[portlayer.VolumeID]map[portlayer.ContainerID]*hold{},
		home:   map[portlayer.VolumeName]firstUse{},

		unanswered: map[portlayer.StoreName]int{},
	}
	slices.SortStableFunc(s.stores, func(a, b portlayer.VolumeStore) int { return cmp.Compare(a.Name(), b.Name()) })
	for i := 1; i < len(s.stores); i++ {
		if a, b := s.stores[i-1], s.stores[i]; a.Name() == b.Name() {
			return nil, fault.New(fault.Invalid, "two volume stores are called %s: %s and %s; give one another name", a.Name(), a.Location(), b.Location())
		}
	}
	if err := CheckAnonymousOptions(o.AnonymousOptions, names(s.stores)); err != nil {
		return nil, err
	}
	if w := (wish{options: o.AnonymousOptions}); w.readOptions() == nil && len(w.options) > 0 {
		st, err := s.store(w.store)
		if err == nil {
			err = w.fits(st)
		}
		if err != nil && len(w.own) > 0 {
			return nil, fault.New(fault.Invalid, "options of anonymous volumes: %w", err)
		}
	}
	return s, s.readHomes()
}

// Reach tells the service who reaches the content of volumes: the container service, which stands on this one and comes later.
func (s *Service) Reach(c portlayer.Content) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.content = c
}

func (s *Service) reached() (portlayer.Content, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.content == nil {
		return nil, fault.New(fault.Unavailable, "no machine can look into a volume yet: vch is starting")
	}
	return s.content, nil
}

// CheckAnonymousOptions is Invalid where options cannot be Options.AnonymousOptions beside stores so called.
func CheckAnonymousOptions(options map[string]string, stores []portlayer.StoreName) error {
	w := wish{options: options}
	if err := w.readOptions(); err != nil {
		return fault.New(fault.Invalid, "options of anonymous volumes: %w", err)
	}
	if w.store != "" && !slices.Contains(stores, w.store) {
		return fault.New(fault.Invalid, "options of anonymous volumes: no volume store is called %s", w.store)
	}
	return nil
}

func names(stores []portlayer.VolumeStore) []portlayer.StoreName {
	all := make([]portlayer.StoreName, len(stores))
	for i, st := range stores {
		all[i] = st.Name()
	}
	return all
}

// publish hands out an event of the volume that is called ref.
func (s *Service) publish(verb, ref string, attrs map[string]string) {
	s.o.Publish(portlayer.Event{Time: time.Now().UTC(), Noun: "volume", Verb: verb, ID: ref, Attrs: attrs})
}
