// Package exec is the container service: it turns a spec into a handle, joins image and volumes to it, commits it, and
// runs the machine that comes of it. It implements portlayer.Containers.
//
// One goroutine owns each container (unit.go): every change of its state happens there, in order; everybody else asks it, or
// reads the last snapshot. What must survive a crash is journaled before it is done (journal.go): the next New finishes it or
// takes it back. Machines outlive this process: New finds them again and goes on where their output was last kept (run.go).
//
// It knows no Docker word, no disk format and no way to mount anything.
package exec

import (
	"context"
	"crypto/rand"
	"encoding/hex"
	"log/slog"
	"maps"
	"path/filepath"
	"slices"
	"sort"
	"strings"
	"sync"
	"time"

	"vch/internal/failpoint"
	"vch/internal/fault"
	"vch/internal/keylock"
	"vch/portlayer"
	"vch/portlayer/record"
)

// Options is what a Service stands on. All fields but Wiring, Binds and Failpoints are needed.
type Options struct {
	DB         *record.DB
	Hypervisor portlayer.Hypervisor
	Volumes    portlayer.Volumes
	Binder     portlayer.Binder
	Images     portlayer.Images
	Wiring     portlayer.Wiring // nil: containers have no networks
	Binds      portlayer.Binds  // nil: containers mount nothing of the host
	Publish    portlayer.Publish
	Log        *slog.Logger
	Dir        string          // where logs are kept, one directory a container; made if missing
	Memory     portlayer.Bytes // of a container that does not say
	CPUs       int64           // of a container that does not say; billionths of a processor
	Failpoints failpoint.Set
}

// Service implements portlayer.Containers.
type Service struct {
	o       Options
	records record.Table[portlayer.Container]
	journal record.Table[entry]
	touched record.Table[portlayer.VolumeName] // volumes that were written, by writtenKey
	rooms   record.Table[portlayer.Inside]     // how full volumes were left, by their labels

	ctx    context.Context // ends with Close; owners of containers run under it
	cancel context.CancelFunc
	wg     sync.WaitGroup // owners, runs, detached execs

	restarting chan struct{} // by each of the restartsAtOnce that start a container again

	frozen keylock.Set[portlayer.Label] // by whoever has a volume stand still: the next one waits for its turn

	mu    sync.Mutex // guards below; never held across I/O
	units map[portlayer.ContainerID]*unit
	names map[string]portlayer.ContainerID // also names that a Create or Rename has reserved
	execs map[string]*execution
}

// New reads the records, finishes or takes back what a crash cut off, and finds running machines again.
func New(ctx context.Context, o Options) (*Service, error) {
	s := &Service{
		o:     o,
		units: map[portlayer.ContainerID]*unit{},
		names: map[string]portlayer.ContainerID{},
		execs: map[string]*execution{},

		restarting: make(chan struct{}, restartsAtOnce),
	}
	s.ctx, s.cancel = context.WithCancel(context.Background())
	var err error
	if s.records, err = record.NewTable[portlayer.Container](o.DB, "containers"); err != nil {
		return nil, err
	}
	if s.journal, err = record.NewTable[entry](o.DB, "journal"); err != nil {
		return nil, err
	}
	if s.touched, err = record.NewTable[portlayer.VolumeName](o.DB, "written"); err != nil {
		return nil, err
	}
	if s.rooms, err = record.NewTable[portlayer.Inside](o.DB, "rooms"); err != nil {
		return nil, err
	}
	if err := forgetRemoved(ctx, o.Volumes, s.touched, s.rooms); err != nil {
		return nil, err
	}
	if err := s.recover(ctx); err != nil {
		return nil, fault.Wrap("finish what was cut off", "", err)
	}
	if err := s.restore(ctx); err != nil {
		s.cancel()
		s.wg.Wait()
		return nil, fault.Wrap("find containers again", "", err)
	}
	o.Hypervisor.Expect(MachineFor(o.Memory, o.CPUs))
	return s, nil
}

// Close lets go of every container without ending it; machines go on.
func (s *Service) Close(ctx context.Context) error {
	s.cancel()
	done := make(chan struct{})
	go func() { s.wg.Wait(); close(done) }()
	select {
	case <-done:
		return nil
	case <-ctx.Done():
		return ctx.Err()
	}
}

// InUse gives the containers made from an image, sorted; the image service asks before it deletes one.
func (s *Service) InUse(id portlayer.ImageID) []portlayer.ContainerID {
	s.mu.Lock()
	defer s.mu.Unlock()
	var users []portlayer.ContainerID
	for cid, u := range s.units {
		if u.image == id {
			users = append(users, cid)
		}
	}
	sort.Slice(users, func(i, j int) bool { return users[i] < users[j] })
	return users
}

// Get is portlayer.Containers.Get.
func (s *Service) Get(_ context.Context, ref string) (portlayer.Container, error) {
	u, err := s.find(ref)
	if err != nil {
		return portlayer.Container{}, err
	}
	return s.show(u), nil
}

// all is every container of the moment.
func (s *Service) all() []*unit {
	s.mu.Lock()
	defer s.mu.Unlock()
	return slices.Collect(maps.Values(s.units))
}

// List is portlayer.Containers.List.
func (s *Service) List(context.Context) ([]portlayer.Container, error) {
	units := s.all()
	all := make([]portlayer.Container, len(units))
	for i, u := range units {
		all[i] = s.show(u)
	}
	sort.Slice(all, func(i, j int) bool {
		if !all[i].Created.Equal(all[j].Created) {
			return all[i].Created.After(all[j].Created)
		}
		return all[i].ID < all[j].ID
	})
	return all, nil
}

// Written is portlayer.Containers.Written.
func (s *Service) Written(ctx context.Context, ref string) (portlayer.Bytes, error) {
	u, err := s.find(ref)
	if err != nil {
		return 0, err
	}
	m, err := s.o.Hypervisor.Machine(ctx, u.snapshot().container.ID)
	if err != nil {
		return 0, fault.Wrap("tell the size of container", ref, err)
	}
	return m.Written(ctx)
}

// show is a container as a door sees it.
func (s *Service) show(u *unit) portlayer.Container {
	c := u.snapshot().container
	c.LogPath = s.logPath(c.ID)
	s.mu.Lock()
	defer s.mu.Unlock()
	for id, x := range s.execs {
		if x.unit == u {
			c.Execs = append(c.Execs, id)
		}
	}
	sort.Strings(c.Execs)
	return c
}

// find resolves an id, a name or a unique prefix of an id, in that order.
func (s *Service) find(ref string) (*unit, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if u, ok := s.units[portlayer.ContainerID(ref)]; ok {
		return u, nil
	}
	if u, ok := s.units[s.names[strings.TrimPrefix(ref, "/")]]; ok {
		return u, nil
	}
	var found *unit
	if ref != "" {
		for id, u := range s.units {
			if strings.HasPrefix(string(id), ref) {
				if found != nil {
					return nil, fault.New(fault.Invalid, "container id prefix %s is ambiguous: give more of it", ref)
				}
				found = u
			}
		}
	}
	if found == nil {
		return nil, noSuch(ref)
	}
	return found, nil
}

func noSuch(ref string) error { return fault.New(fault.NotFound, "No such container: %s", ref) }

func (s *Service) containerDir(id portlayer.ContainerID) string {
	return filepath.Join(s.o.Dir, string(id))
}

func (s *Service) logPath(id portlayer.ContainerID) string {
	return filepath.Join(s.containerDir(id), string(id)+"-json.log")
}

// publish tells of a container, with the attributes that every container event carries.
func (s *Service) publish(c portlayer.Container, verb string, extra ...string) {
	attrs := map[string]string{"image": c.Spec.Image, "name": c.Spec.Name}
	for k, v := range c.Spec.Labels {
		attrs[k] = v
	}
	for i := 0; i+1 < len(extra); i += 2 {
		attrs[extra[i]] = extra[i+1]
	}
	s.o.Publish(portlayer.Event{Time: time.Now(), Noun: "container", Verb: verb, ID: string(c.ID), Attrs: attrs})
}

// newID is 64 random hex digits.
func newID() string {
	var b [32]byte
	rand.Read(b[:]) // never fails: crypto/rand ends the process instead
	return hex.EncodeToString(b[:])
}

// short is an id as people read it.
func short(id portlayer.ContainerID) string { return string(id[:12]) }
