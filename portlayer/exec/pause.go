package exec

import (
	"context"
	"errors"
	"time"

	"vch/guest"
	"vch/internal/fault"
	"vch/portlayer"
)

// errPaused is what a paused container's guest would say, if it could.
var errPaused = fault.New(fault.Conflict, "the container is paused: unpause it first")

var errPausedStart = fault.New(fault.Conflict, "cannot start a paused container, try unpause instead")

// pauses notes whether a run stands still: nobody asks its guest anything then.
func (r *run) pauses(still bool) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.paused = still
}

func (r *run) isPaused() bool {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.paused
}

// Pause is portlayer.Containers.Pause.
func (s *Service) Pause(ctx context.Context, ref string) error {
	u, r, err := s.up(ref)
	if err != nil {
		return err
	}
	return u.alone(ctx, func() error {
		switch {
		case u.run != r:
			return fault.New(fault.Conflict, "container %s is not running", u.c.ID)
		case u.c.State.Phase == portlayer.Paused:
			return fault.New(fault.Conflict, "container %s is already paused", u.c.ID)
		}
		ctx, cancel := context.WithTimeout(s.ctx, changeLimit)
		defer cancel()
		r.remember(ctx)
		r.freeze(ctx)
		// The record first: cut off, the next start of this process pauses it, as it does one that is.
		if err := u.save(func(c *portlayer.Container) { c.State.Phase = portlayer.Paused }); err != nil {
			return err
		}
		r.pauses(true)
		if err := r.machine.Pause(ctx); err != nil {
			r.pauses(false)
			if serr := u.save(func(c *portlayer.Container) { c.State.Phase = portlayer.Running }); serr != nil {
				s.o.Log.Error("a container that could not be paused is recorded as paused", "container", string(u.c.ID), "err", serr)
			}
			return fault.Wrap("pause container", u.c.Spec.Name, err)
		}
		s.publish(u.c, "pause")
		return nil
	})
}

// Unpause is portlayer.Containers.Unpause.
func (s *Service) Unpause(ctx context.Context, ref string) error {
	u, r, err := s.up(ref)
	if err != nil {
		return err
	}
	return u.alone(ctx, func() error {
		if u.run != r || u.c.State.Phase != portlayer.Paused {
			return fault.New(fault.Conflict, "container %s is not paused", u.c.ID)
		}
		return u.unpause()
	})
}

// unpause lets a paused container go on, and tells its guest the time. Owner only.
func (u *unit) unpause() error {
	s, r := u.s, u.run
	ctx, cancel := context.WithTimeout(s.ctx, changeLimit)
	defer cancel()
	if err := r.machine.Resume(ctx); err != nil {
		return fault.Wrap("unpause container", u.c.Spec.Name, err)
	}
	r.pauses(false)
	if err := u.save(func(c *portlayer.Container) { c.State.Phase = portlayer.Running }); err != nil {
		return err
	}
	done := make(chan struct{})
	s.wg.Go(func() { // its clock stood still, and its processes
		defer close(done)
		client, err := r.talk(s.ctx)
		if err == nil {
			err = errors.Join(client.SetClock(s.ctx, time.Now()), client.SetStill(s.ctx, false))
		}
		if err != nil && s.ctx.Err() == nil {
			s.o.Log.Warn("a container's clock may be late after its pause, or it stands still until its guest is reached again", "container", string(r.machine.ID()), "err", err)
		}
	})
	limit := time.NewTimer(lastWordLimit) // nobody waits for a guest that is not reached yet
	defer limit.Stop()
	select {
	case <-done:
	case <-limit.C:
	}
	s.publish(u.c, "unpause")
	return nil
}

// awake lets a run that is paused go on, so that it can end.
func (s *Service) awake(ctx context.Context, u *unit, r *run) error {
	if !r.isPaused() {
		return nil
	}
	return u.ask(ctx, func() error {
		if u.run != r || u.c.State.Phase != portlayer.Paused {
			return nil
		}
		return u.unpause()
	})
}

// freeze has the processes of a run stand still before its machine does, so that the machine can go on without them (lend). One that cannot be asked is paused all the same. Owner only.
func (r *run) freeze(ctx context.Context) {
	client := r.now()
	if client == nil {
		return
	}
	ctx, cancel := context.WithTimeout(ctx, lastWordLimit)
	defer cancel()
	_ = client.SetStill(ctx, true) // lend asks again
}

// errNotPaused is that there is no need to lend.
var errNotPaused = errors.New("the container is not paused")

// lend has the machine of a paused container go on for whoever looks at its files, its processes standing still, until leave.
func (u *unit) lend(ctx context.Context, r *run) (client *guest.Client, leave func(), err error) {
	s := u.s
	err = u.ask(ctx, func() error {
		if u.run != r {
			return fault.New(fault.Conflict, "the container is not running")
		}
		if u.c.State.Phase != portlayer.Paused {
			return errNotPaused
		}
		if u.lent == 0 {
			if err := r.machine.Resume(s.ctx); err != nil {
				return err
			}
		}
		u.lent++
		return nil
	})
	if err != nil {
		return nil, nil, err
	}
	leave = func() {
		err := u.ask(s.ctx, func() error {
			if u.lent--; u.lent == 0 && u.run == r && u.c.State.Phase == portlayer.Paused {
				return r.machine.Pause(s.ctx)
			}
			return nil
		})
		if err != nil && s.ctx.Err() == nil && !fault.Is(err, fault.NotFound) {
			s.o.Log.Error("a paused container's machine goes on, without its processes", "container", string(r.machine.ID()), "err", err)
		}
	}
	if client, err = r.reach(ctx, true); err == nil {
		err = client.SetStill(ctx, true)
	}
	if err != nil {
		leave()
		return nil, nil, err
	}
	return client, leave, nil
}

// look gives the guest of a run, whether it is paused or not.
func (u *unit) look(ctx context.Context, r *run) (client *guest.Client, leave func(), err error) {
	for {
		if r.isPaused() {
			if client, leave, err = u.lend(ctx, r); err == errNotPaused {
				continue // unpaused just now, or ended
			}
			return client, leave, err
		}
		if client, err = r.talk(ctx); err == errPaused {
			continue
		}
		return client, func() {}, err
	}
}
