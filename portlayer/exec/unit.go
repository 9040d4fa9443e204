package exec

import (
	"context"
	"errors"
	"maps"
	"sync"
	"sync/atomic"
	"time"

	"vch/internal/fault"
	"vch/portlayer"
)

// unit is one container and the goroutine that owns it. Only functions handed to ask run there and may touch the fields
// marked "owner"; everyone else reads snapshots.
type unit struct {
	s     *Service
	image portlayer.ImageID // never changes

	requests chan request
	snap     atomic.Pointer[snapshot]
	hub      hub
	tty      ttySize
	starting atomic.Pointer[context.CancelCauseFunc] // gives up the start that is under way; nil when none is
	serving  atomic.Pointer[serving]                 // the machine that serves the files of a container that does not run; nil when none does. The owner opens it

	c         portlayer.Container // owner
	run       *run                // owner; nil when no machine runs
	wait      time.Duration       // owner; before its last restart
	calledOff context.CancelFunc  // owner; of the start that a container which is Restarting waits for
	pending   *entry              // owner; a change of the running container that is under way, or not known to be recorded or taken back
}

// snapshot is a container at one moment. changed is closed when the next one is there.
type snapshot struct {
	container portlayer.Container
	exits     uint64 // how often it has exited since this process knows it
	gone      bool   // removed
	run       *run   // what runs, to talk to; nil when nothing does
	changed   chan struct{}
}

type request struct {
	do   func() error
	done chan error
}

// ttySize is the size that a TTY starts with.
type ttySize struct {
	mu         sync.Mutex // guards below
	rows, cols uint16
}

// adopt makes the owner of a recorded container and starts it.
func (s *Service) adopt(c portlayer.Container) *unit {
	u := &unit{s: s, image: c.Image, c: c, requests: make(chan request)}
	u.snap.Store(&snapshot{container: c, changed: make(chan struct{})})
	s.mu.Lock()
	s.units[c.ID] = u
	s.names[c.Spec.Name] = c.ID
	s.mu.Unlock()
	s.wg.Add(1)
	go u.own()
	return u
}

// own is the owner goroutine: it ends when the container is gone or the service closes.
func (u *unit) own() {
	defer u.s.wg.Done()
	for !u.snapshot().gone {
		select {
		case r := <-u.requests:
			r.done <- r.do()
		case <-u.s.ctx.Done():
			return
		}
	}
}

// ask has the owner run do and returns its error. Once begun, do runs to its end even if ctx does not.
func (u *unit) ask(ctx context.Context, do func() error) error {
	r := request{do: do, done: make(chan error, 1)}
	for {
		snap := u.snapshot()
		if snap.gone {
			return noSuch(string(snap.container.ID))
		}
		select {
		case u.requests <- r:
			return <-r.done
		case <-snap.changed: // perhaps gone: look again
		case <-ctx.Done():
			return ctx.Err()
		case <-u.s.ctx.Done():
			return fault.New(fault.Unavailable, "vch is stopping")
		}
	}
}

func (u *unit) snapshot() *snapshot { return u.snap.Load() }

// show publishes the owner's state as the new snapshot. exited counts one exit.
func (u *unit) show(exited, gone bool) {
	old := u.snapshot()
	next := &snapshot{container: u.c, exits: old.exits, gone: gone, run: u.run, changed: make(chan struct{})}
	next.container.Spec.Labels = maps.Clone(u.c.Spec.Labels)
	if exited {
		next.exits++
	}
	u.snap.Store(next)
	close(old.changed)
}

// save records a change of c durably, then shows it. Owner only.
func (u *unit) save(change func(*portlayer.Container)) error {
	next := u.c
	change(&next)
	next.Version++
	if err := u.s.records.Put(string(next.ID), next); err != nil {
		return err
	}
	u.c = next
	u.show(false, false)
	return nil
}

// await waits until ok says yes to a snapshot, and returns that.
func (u *unit) await(ctx context.Context, ok func(*snapshot) bool) (*snapshot, error) {
	for {
		snap := u.snapshot()
		if ok(snap) {
			return snap, nil
		}
		select {
		case <-snap.changed:
		case <-ctx.Done():
			return snap, ctx.Err()
		case <-u.s.ctx.Done():
			return snap, fault.New(fault.Unavailable, "vch is stopping")
		}
	}
}

// Wait is portlayer.Containers.Wait.
func (s *Service) Wait(ctx context.Context, ref string, until portlayer.WaitUntil, started func()) (portlayer.State, error) {
	u, err := s.find(ref)
	if err != nil {
		return portlayer.State{}, err
	}
	first := u.snapshot()
	if started != nil {
		started()
	}
	snap, err := u.await(ctx, func(now *snapshot) bool {
		switch until {
		case portlayer.UntilNextExit:
			return now.gone || now.exits > first.exits
		case portlayer.UntilRemoved:
			return now.gone
		default:
			phase := now.container.State.Phase
			return now.gone || now.exits > first.exits || phase != portlayer.Running && phase != portlayer.Paused && phase != portlayer.Restarting
		}
	})
	return snap.container.State, err
}

// Rename is portlayer.Containers.Rename.
func (s *Service) Rename(ctx context.Context, ref, name string) error {
	if name == "" {
		return fault.New(fault.Invalid, "neither old nor new names may be empty")
	}
	u, err := s.find(ref)
	if err != nil {
		return err
	}
	return u.ask(ctx, func() error {
		old := u.c.Spec.Name
		if name == old {
			return fault.New(fault.Invalid, "renaming a container with the same name as its current name")
		}
		if _, err := s.reserveName(u.c.ID, name); err != nil {
			return err
		}
		if err := u.save(func(c *portlayer.Container) { c.Spec.Name = name }); err != nil {
			s.freeName(name)
			return err
		}
		s.freeName(old)
		if s.o.Wiring != nil {
			s.o.Wiring.Rename(u.c.ID, name)
		}
		s.publish(u.c, "rename", "oldName", "/"+old)
		return nil
	})
}

// Remove is portlayer.Containers.Remove.
func (s *Service) Remove(ctx context.Context, ref string, force, volumes bool) error {
	u, err := s.find(ref)
	if err != nil {
		return err
	}
	for {
		snap := u.snapshot()
		if snap.run != nil {
			if !force {
				return fault.New(fault.Conflict, "cannot remove container %q: container is running: stop the container before removing or force remove", "/"+snap.container.Spec.Name)
			}
			if err := s.end(ctx, u, snap.run, sigkill, 0); err != nil {
				return err
			}
		}
		if snap.container.State.Phase == portlayer.Restarting {
			if !force {
				return fault.New(fault.Conflict, "cannot remove container %q: container is restarting: stop the container before removing or force remove", "/"+snap.container.Spec.Name)
			}
			if err := u.ask(ctx, u.stay); errors.Is(err, portlayer.ErrNotModified) {
				continue
			} else if err != nil {
				return err
			}
		}
		if giveUp := u.starting.Load(); giveUp != nil && force {
			(*giveUp)(errGivenUp)
		}
		if v := u.serving.Load(); v != nil && force {
			v.cut()
		}
		started := false // meanwhile
		err = u.alone(ctx, func() error {
			if started = u.run != nil; started {
				return nil
			}
			return u.remove(volumes)
		})
		if fault.Is(err, fault.NotFound) && u.snapshot().gone && force {
			return nil // --rm or another client was quicker
		}
		if err != nil || !started {
			return err
		}
	}
}

// errGivenUp is what a start hears whose container is being removed by force.
var errGivenUp = fault.New(fault.Conflict, "the container is being removed")

// remove erases a container that does not run. Owner only.
func (u *unit) remove(volumes bool) error {
	e := entry{Op: opRemove}
	if volumes {
		for _, m := range u.c.Spec.Mounts {
			if m.Kind == portlayer.VolumeMount && m.Anonymous {
				e.Orphans = append(e.Orphans, m.ID())
			}
		}
	}
	if err := u.s.step(u.c.ID, e, "remove.journal"); err != nil {
		return err
	}
	// The daemon's own context: a remove that has begun does not stop half way because its client left.
	ctx, cancel := context.WithTimeout(context.WithoutCancel(u.s.ctx), removeLimit)
	defer cancel()
	if err := u.s.erase(ctx, u.c.ID, e); err != nil {
		u.c.State.Phase, u.c.State.Error = portlayer.Dead, err.Error()
		u.show(false, false)
		return fault.Wrap("remove container", u.c.Spec.Name, err)
	}
	u.s.mu.Lock()
	delete(u.s.units, u.c.ID)
	delete(u.s.names, u.c.Spec.Name)
	for id, x := range u.s.execs {
		if x.unit == u {
			delete(u.s.execs, id)
		}
	}
	u.s.mu.Unlock()
	u.hub.end()
	u.show(false, true)
	u.s.publish(u.c, "destroy")
	return nil
}

// removeLimit bounds an erase: deleting files and a machine that is off.
const removeLimit = 2 * time.Minute
