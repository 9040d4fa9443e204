package exec

import (
	"context"
	"time"

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
	s.wg.Go(func() { // its clock stood still; nobody waits for a guest that is not reached yet
		client, err := r.talk(s.ctx)
		if err == nil {
			err = client.SetClock(s.ctx, time.Now())
		}
		if err != nil && s.ctx.Err() == nil {
			s.o.Log.Warn("a container's clock may be late after its pause", "container", string(r.machine.ID()), "err", err)
		}
	})
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
