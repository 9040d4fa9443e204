package exec

import (
	"context"
	"time"

	"vch/internal/fault"
	"vch/portlayer"
)

// Restart policies follow Moby's rules (its restartmanager and daemon/monitor.go), but for what its manual says otherwise: on-failure is not for a start of the daemon.

const (
	// firstWait is how long a container waits to be started again; each time twice as long as the last, up to mostWait.
	firstWait = 100 * time.Millisecond
	mostWait  = time.Minute
	// longRun is a run after which the wait is the first again.
	longRun = 10 * time.Second
	// restartsAtOnce is how many containers are started again at once: after a power cut all of them wait for it.
	restartsAtOnce = 4
)

// restarts says whether a container that has ended as st says is started again.
func restarts(p portlayer.RestartPolicy, st portlayer.State) bool {
	switch p.When {
	case portlayer.RestartAlways, portlayer.RestartUnlessStopped:
		return !st.ByHand
	case portlayer.RestartOnFailure:
		return !st.ByHand && st.ExitCode != 0 && (p.Most == 0 || st.Restarts < p.Most)
	}
	return false
}

// restartsWithVCH says whether a container that did not run when vch ended is started when vch starts.
func restartsWithVCH(p portlayer.RestartPolicy, st portlayer.State) bool {
	switch {
	case st.Phase != portlayer.Exited || st.StartedAt.IsZero():
		return false
	case p.When == portlayer.RestartUnlessStopped:
		return !st.ByHand
	}
	return p.When == portlayer.RestartAlways
}

// nextWait is how long the wait is after one of last and a run of ran.
func nextWait(last, ran time.Duration) time.Duration {
	if ran >= longRun {
		last = 0
	}
	return min(max(firstWait, 2*last), mostWait)
}

// saveEnd records that the container has ended as change says. It reports whether it is to be started again: then startLater has to follow. Owner only.
func (u *unit) saveEnd(change func(*portlayer.State)) (again bool, err error) {
	err = u.save(func(c *portlayer.Container) {
		c.State.Phase, c.State.Pid = portlayer.Exited, 0
		change(&c.State)
		if again = restarts(c.Spec.Restart, c.State); again {
			c.State.Phase = portlayer.Restarting
			c.State.Restarts++
		}
	})
	return again && err == nil, err
}

// startLater starts a container that is Restarting, after a while. Owner only.
func (u *unit) startLater() {
	s := u.s
	u.wait = nextWait(u.wait, u.c.State.FinishedAt.Sub(u.c.State.StartedAt))
	ctx, cancel := context.WithCancel(s.ctx)
	u.calledOff = cancel
	limit := time.NewTimer(u.wait)
	s.wg.Go(func() {
		defer cancel()
		defer limit.Stop()
		select {
		case <-limit.C:
		case <-ctx.Done():
			return
		}
		select {
		case s.restarting <- struct{}{}:
		case <-ctx.Done():
			return
		}
		defer func() { <-s.restarting }()
		err := u.alone(ctx, func() error {
			if u.c.State.Phase != portlayer.Restarting {
				return nil
			}
			return u.start()
		})
		if err != nil && ctx.Err() == nil {
			s.o.Log.Warn("container could not be started again", "container", short(u.snapshot().container.ID), "err", err)
		}
	})
}

// stay has a container that is Restarting stay as it is: its user has stopped it. ErrNotModified if it is not Restarting. Owner only.
func (u *unit) stay() error {
	if u.c.State.Phase != portlayer.Restarting {
		return portlayer.ErrNotModified
	}
	u.calledOff()
	return u.save(func(c *portlayer.Container) { c.State.Phase, c.State.ByHand = portlayer.Exited, true })
}

// byHand records that its user ends a running container, where that decides whether it is started again.
func (u *unit) byHand(ctx context.Context) error {
	if c := u.snapshot().container; c.Spec.Restart.When == portlayer.RestartNever || c.State.ByHand {
		return nil
	}
	err := u.ask(ctx, func() error { return u.save(func(c *portlayer.Container) { c.State.ByHand = true }) })
	if fault.Is(err, fault.NotFound) { // removed meanwhile
		return nil
	}
	return err
}

// startByHand is start for a user, from whom restarts are counted. Owner only.
func (u *unit) startByHand() error {
	if u.c.State.Phase == portlayer.Paused {
		return errPausedStart
	}
	if u.run != nil || u.c.State.Phase == portlayer.Restarting {
		return portlayer.ErrNotModified
	}
	u.wait, u.c.State.Restarts, u.c.State.ByHand = 0, 0, false
	return u.start()
}
