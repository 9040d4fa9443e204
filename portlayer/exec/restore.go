package exec

import (
	"context"
	"strconv"
	"time"

	"vch/internal/fault"
	"vch/internal/pause"
	"vch/portlayer"
)

func itoa(n int) string { return strconv.Itoa(n) }

// exitUnknown is the exit code of a container whose machine ended while nobody watched, as after a power cut; Docker shows the same.
const exitUnknown = 255

// restore makes owners for all recorded containers and goes on with those whose machines run.
func (s *Service) restore(ctx context.Context) error {
	all, err := s.records.All()
	if err != nil {
		return err
	}
	for _, c := range all {
		u := s.adopt(c)
		for _, m := range c.Spec.Mounts {
			if m.Kind == portlayer.VolumeMount {
				s.o.Binder.Refer(c.ID, m.ID())
			}
		}
		if s.o.Wiring != nil {
			s.o.Wiring.Recall(c.ID, c.Spec.Networks)
		}
		if err := u.ask(ctx, func() error { return u.refind(ctx) }); err != nil {
			// One container's trouble is its own: it is shown, and the host comes up.
			s.o.Log.Error("container is not found again whole", "container", string(c.ID), "name", c.Spec.Name, "err", err)
			if fault.Is(err, fault.Unavailable) {
				s.wg.Add(1)
				go u.refindLater()
			}
		}
	}
	machines, err := s.o.Hypervisor.List(ctx)
	if err != nil {
		return err
	}
	for _, id := range machines {
		if _, known := all[string(id)]; !known {
			s.o.Log.Warn("machine without a container; left alone", "machine", string(id))
		}
	}
	return nil
}

// refindLater is refind, again until what was not to be reached is: its host, or the files of its machine.
func (u *unit) refindLater() {
	s := u.s
	defer s.wg.Done()
	for {
		if pause.For(s.ctx, redial) != nil {
			return
		}
		err := u.ask(s.ctx, func() error {
			if u.run != nil || !(u.c.State.Phase == portlayer.Running || u.c.State.Phase == portlayer.Paused) {
				return nil
			}
			return u.refind(s.ctx)
		})
		if !fault.Is(err, fault.Unavailable) {
			if err != nil && !fault.Is(err, fault.NotFound) {
				c := u.snapshot().container
				s.o.Log.Error("container is not found again whole", "container", string(c.ID), "name", c.Spec.Name, "err", err)
			}
			return
		}
	}
}

// refind brings a recorded state and the machine's together. Owner only.
func (u *unit) refind(ctx context.Context) error {
	s := u.s
	m, err := s.o.Hypervisor.Machine(ctx, u.c.ID)
	if err != nil && !fault.Is(err, fault.NotFound) {
		return err
	}
	power := portlayer.PoweredOff
	if err == nil {
		if power, err = m.State(ctx); err != nil {
			return err
		}
	}
	e, ok, err := s.journal.Get(string(u.c.ID))
	if err != nil {
		return err
	}
	if ok && e.Op == opChange {
		u.pending = &e
	}
	running := u.c.State.Phase == portlayer.Running || u.c.State.Phase == portlayer.Paused
	if u.pending != nil && !(running && power == portlayer.PoweredOn) { // its next start defines its machine anew, as recorded
		if err := u.settle(ctx); err != nil {
			return err
		}
	}
	switch {
	case running && power == portlayer.PoweredOn:
		if err := s.o.Binder.Attach(u.c.ID, u.c.Spec.Name, u.c.Spec.Mounts); err != nil {
			return err
		}
		last, err := u.resumeLog()
		if err != nil {
			return err
		}
		u.replug(ctx)
		u.run = newRun(m)
		if u.c.State.Phase == portlayer.Paused { // or was about to be
			u.run.pauses(true)
			if err := m.Pause(ctx); err != nil {
				return err
			}
		}
		u.c.State.Pid = m.Pid()
		u.show(false, false)
		u.keepWell(u.run)
		s.o.Log.Info("container found again", "container", short(u.c.ID), "name", u.c.Spec.Name, "pid", m.Pid(), "frames", last)
		s.wg.Add(1)
		go u.follow(u.run, last)
		if u.pending != nil {
			u.resume()
		}
	case running:
		s.o.Log.Warn("container's machine ended while vch was away", "container", short(u.c.ID), "name", u.c.Spec.Name)
		again, err := u.saveEnd(func(st *portlayer.State) {
			st.ExitCode, st.FinishedAt, st.Links, st.Ports, st.Reaches = exitUnknown, time.Now().UTC(), nil, nil, nil
			st.Error = "the machine ended while vch was not running"
			if m != nil {
				st.Error += diagnosis(m)
			}
		})
		if err != nil {
			return err
		}
		if again {
			u.startLater()
		}
		if u.c.Spec.AutoRemove {
			return u.remove(true)
		}
	case power == portlayer.PoweredOn: // a start was cut off before it was recorded
		s.o.Log.Info("ending a machine whose start was cut off", "container", short(u.c.ID), "name", u.c.Spec.Name)
		if err := m.PowerOff(ctx); err != nil {
			return err
		}
		fallthrough
	default:
		if restartsWithVCH(u.c.Spec.Restart, u.c.State) {
			if err := u.save(func(c *portlayer.Container) { c.State.Phase = portlayer.Restarting }); err != nil {
				return err
			}
		}
		if u.c.State.Phase == portlayer.Restarting {
			u.startLater()
		}
	}
	return nil
}
