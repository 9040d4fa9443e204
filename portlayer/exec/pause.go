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
		// The record first: cut off, the next start of this process pauses it, as it does one that is.
		if err := u.save(func(c *portlayer.Container) { c.State.Phase = portlayer.Paused }); err != nil {
			return err
		}
		r.pauses(true)
		r.freeze(ctx)
		if err := r.halt(ctx); err != nil {
			r.pauses(false)
			u.thaw(r)
			if serr := u.save(func(c *portlayer.Container) { c.State.Phase = portlayer.Running }); serr != nil {
				s.o.Log.Error("a container that could not be paused is recorded as paused", "container", string(u.c.ID), "err", serr)
			}
			return fault.Wrap("pause container", u.c.Spec.Name, err)
		}
		s.publish(u.c, "pause")
		return nil
	})
}

// halt has the machine of a run that is paused stand still, unless it is lent: then the last one who leaves does. Owner only.
func (r *run) halt(ctx context.Context) error {
	if r.lent > 0 {
		return nil
	}
	return r.machine.Pause(ctx)
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
		r.pauses(true)
		return errors.Join(err, r.halt(ctx))
	}
	u.thaw(r)
	s.publish(u.c, "unpause")
	return nil
}

// thaw tells the guest of a run that is not paused any more the time, and has its processes go on. It does not wait long for a guest that is not reached yet. Owner only.
func (u *unit) thaw(r *run) {
	s, done := u.s, make(chan struct{})
	s.wg.Go(func() {
		defer close(done)
		client, err := r.talk(s.ctx)
		if err == nil {
			err = errors.Join(client.SetClock(s.ctx, time.Now()), r.settle(s.ctx, client))
		}
		if err != nil && err != errPaused && s.ctx.Err() == nil {
			s.o.Log.Warn("a container's clock may be late after its pause, or it stands still until its guest is reached again", "container", string(r.machine.ID()), "err", err)
		}
	})
	limit := time.NewTimer(lastWordLimit)
	defer limit.Stop()
	select {
	case <-done:
	case <-limit.C:
	}
}

// settle has the processes of a run stand still if it is paused, and go on if it is not: whoever comes last, the last change counts.
func (r *run) settle(ctx context.Context, client *guest.Client) error {
	select {
	case r.still <- struct{}{}:
	case <-ctx.Done():
		return ctx.Err()
	}
	defer func() { <-r.still }()
	return client.SetStill(ctx, r.isPaused())
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
	_ = r.settle(ctx, client) // lend asks again
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
		if err := r.machine.Resume(s.ctx); err != nil {
			return err
		}
		r.lent++
		return nil
	})
	if err != nil {
		return nil, nil, err
	}
	leave = func() {
		err := u.ask(s.ctx, func() error {
			if r.lent--; u.run == r && u.c.State.Phase == portlayer.Paused {
				return r.halt(s.ctx)
			}
			return nil
		})
		if err != nil && s.ctx.Err() == nil && !fault.Is(err, fault.NotFound) {
			s.o.Log.Error("a paused container's machine goes on, without its processes", "container", string(r.machine.ID()), "err", err)
		}
	}
	if client, err = r.reach(ctx, true); err == nil {
		err = r.settle(ctx, client)
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
