package volume

import (
	"context"
	"runtime"
	"sync"
	"time"

	"vch/internal/fault"
	"vch/portlayer"
)

// patience is how long a store may leave a question unanswered before it is asked how it is, and how long it may take to say that. Twice of it is more
// than a disk that was asleep takes to spin up.
const patience = 5 * time.Second

// ask puts a question to a store and waits for the answer while the store is there. One that does not even say how it is counts as degraded (Unavailable)
// until it does, and is asked nothing meanwhile: it holds up others once, for twice patience. What was given up goes on where the store cannot be
// interrupted, as in a call into a dead file system; it changes nothing.
func ask[T any](ctx context.Context, s *Service, st portlayer.VolumeStore, question func(context.Context) (T, error)) (T, error) {
	var none T
	if err := s.silence(st); err != nil {
		return none, err
	}
	type answer struct {
		value T
		err   error
	}
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	came := make(chan answer, 1)
	go func() {
		v, err := question(ctx)
		came <- answer{v, err}
	}()
	runtime.Gosched() // most questions are answered at once, and no clock is wound for them
	select {
	case a := <-came:
		return a.value, a.err
	default:
	}
	for late := time.NewTimer(patience); ; late.Reset(patience) {
		select {
		case a := <-came:
			return a.value, a.err
		case <-ctx.Done():
			return none, ctx.Err()
		case <-late.C:
		}
		if status := s.status(ctx, st); status.Degraded != "" {
			return none, fault.New(fault.Unavailable, "volume store %s is degraded: %s", st.Name(), status.Degraded)
		}
	}
}

// status is VolumeStore.Status; a store that does not answer is degraded for that reason.
func (s *Service) status(ctx context.Context, st portlayer.VolumeStore) portlayer.StoreStatus {
	silent := portlayer.StoreStatus{Degraded: st.Location() + " does not answer; is its medium still there?"}
	if s.silence(st) != nil {
		return silent
	}
	came := make(chan portlayer.StoreStatus, 1)
	// The caller may leave; whether the store answers is of interest to the next one, too.
	go func() { came <- st.Status(context.WithoutCancel(ctx)) }()
	late := time.NewTimer(patience)
	defer late.Stop()
	select {
	case status := <-came:
		return status
	case <-late.C:
	}
	s.waitsFor(st, 1)
	go func() { <-came; s.waitsFor(st, -1) }()
	return silent
}

func (s *Service) waitsFor(st portlayer.VolumeStore, more int) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.unanswered[st.Name()] += more
}

// silence is Unavailable while a store has not said how it is.
func (s *Service) silence(st portlayer.VolumeStore) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.unanswered[st.Name()] == 0 {
		return nil
	}
	return fault.New(fault.Unavailable, "volume store %s is degraded: %s does not answer; is its medium still there?", st.Name(), st.Location())
}

// answers is an error where a store does not answer. What may take long for its size alone is asked of a store after that only.
func (s *Service) answers(ctx context.Context, st portlayer.VolumeStore) error {
	s.status(ctx, st)
	return s.silence(st)
}

// get is VolumeStore.Get, asked.
func (s *Service) get(ctx context.Context, st portlayer.VolumeStore, name portlayer.VolumeName) (portlayer.Volume, error) {
	return ask(ctx, s, st, func(ctx context.Context) (portlayer.Volume, error) { return st.Get(ctx, name) })
}

// sight is a volume, and what else its store tells at once.
type sight struct {
	vol  portlayer.Volume
	more *beside // nil: nothing
}

// beside is what a volume takes, and how its store is.
type beside struct {
	usage  portlayer.VolumeUsage
	status portlayer.StoreStatus
}

// see is get, with what comes from the same look at the volume.
func (s *Service) see(ctx context.Context, st portlayer.VolumeStore, name portlayer.VolumeName) (sight, error) {
	l, ok := st.(inspector)
	if !ok {
		vol, err := s.get(ctx, st, name)
		return sight{vol: vol}, err
	}
	return ask(ctx, s, st, func(ctx context.Context) (sight, error) {
		vol, use, status, err := l.Inspect(ctx, name)
		return sight{vol, &beside{use, status}}, err
	})
}

// askAll does do for all stores at once, and gives the answers in their order.
func askAll[T any](stores []portlayer.VolumeStore, do func(portlayer.VolumeStore) T) []T {
	all := make([]T, len(stores))
	if len(stores) == 1 {
		all[0] = do(stores[0])
		return all
	}
	var wg sync.WaitGroup
	for i, st := range stores {
		wg.Go(func() { all[i] = do(st) })
	}
	wg.Wait()
	return all
}
