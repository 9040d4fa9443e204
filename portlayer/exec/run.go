package exec

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"sync"
	"time"

	"vch/guest"
	"vch/internal/fault"
	"vch/internal/pause"
	"vch/internal/undo"
	"vch/portlayer"
)

const (
	sigkill = 9
	// bootLimit bounds power-on to the tether's hello: 1.5 s on a quiet machine, much more on one that emulates ten at once.
	bootLimit = 4 * time.Minute
	// startLimit bounds mounting and starting the process; a copy-up of a large directory is in it.
	startLimit = 10 * time.Minute
	// offLimit is how long a machine may take to power off after its process ended, before it is switched off.
	offLimit = 20 * time.Second
	// killGrace is how long a machine may take to report an exit after SIGKILL before it is switched off.
	killGrace = 10 * time.Second
	// flushLimit is how long a machine whose container was killed may take to write to servers that answer.
	flushLimit = 15 * time.Minute
	// talkLimit is how long a call waits for a running machine's guest to be reached again.
	talkLimit = 20 * time.Second
	// redial is how long to wait before trying again to reach a running machine.
	redial = time.Second
)

// run is one machine that runs a container. It is made when the machine is on and its channel answers, and ends with the machine.
type run struct {
	machine portlayer.Machine
	ended   chan struct{} // closed when the machine is off and the container's state says so

	mu     sync.Mutex // guards below
	client *guest.Client
	news   chan struct{} // closed when client changes
	paused bool
	lost   string // what a machine that was switched off has not done, for its container's record

	before guest.Stats   // what had been used when it was paused; set before paused is
	lent   int           // owner; how many look at its files while it is paused, for whom its machine goes on
	still  chan struct{} // who holds its one place has processes stand still, or go on (settle)
}

func newRun(m portlayer.Machine) *run {
	return &run{machine: m, ended: make(chan struct{}), news: make(chan struct{}), still: make(chan struct{}, 1)}
}

// talk gives the guest to call. While it is not connected, as just after a restart of this process, it waits a while; then Unavailable.
func (r *run) talk(ctx context.Context) (*guest.Client, error) { return r.reach(ctx, false) }

// reach is talk, and, where it is lent, also to the guest of a machine that goes on although its container is paused (lend).
func (r *run) reach(ctx context.Context, lent bool) (*guest.Client, error) {
	limit := time.NewTimer(talkLimit)
	defer limit.Stop()
	for {
		r.mu.Lock()
		client, news, paused := r.client, r.news, r.paused
		r.mu.Unlock()
		if paused && !lent {
			return nil, errPaused
		}
		if client != nil {
			return client, nil
		}
		select {
		case <-news:
		case <-r.ended:
			return nil, fault.New(fault.Conflict, "the container is not running")
		case <-limit.C:
			return nil, fault.New(fault.Unavailable, "the container's machine does not answer")
		case <-ctx.Done():
			return nil, ctx.Err()
		}
	}
}

// lose notes what is lost when the machine is switched off.
func (r *run) lose(what string) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.lost = what
}

// ending is why there was no report of a run's end.
func (r *run) ending() string {
	r.mu.Lock()
	defer r.mu.Unlock()
	text := "the machine ended without a report"
	if r.lost != "" {
		text += ", for it was switched off; " + r.lost
	}
	return text
}

// now is the client of the moment, or nil.
func (r *run) now() *guest.Client {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.client
}

func (r *run) reached(c *guest.Client) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.client = c
	close(r.news)
	r.news = make(chan struct{})
}

// exitReport is how a run ended.
type exitReport struct {
	exit     guest.Exit
	finished time.Time
	err      string // why there is no report of the guest's, or ""
	rooms    []guest.Room
}

// boot powers a defined machine on and says hello to its tether.
func (s *Service) boot(ctx context.Context, m portlayer.Machine) (*guest.Client, error) {
	ctx, cancel := context.WithTimeout(ctx, bootLimit)
	defer cancel()
	if err := m.PowerOn(ctx); err != nil {
		return nil, err
	}
	client, err := s.dial(ctx, m)
	if err != nil {
		return nil, fault.New(fault.KindOf(err), "the machine did not come up: %w%s", err, diagnosis(m))
	}
	return client, nil
}

// dial connects to a running machine's tether; it gives up when the machine goes off.
func (s *Service) dial(ctx context.Context, m portlayer.Machine) (*guest.Client, error) {
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	watch := make(chan struct{})
	go func() {
		defer close(watch)
		if m.WaitOff(ctx) == nil {
			cancel(errOff)
		}
	}()
	defer func() { cancel(nil); <-watch }()
	client, err := guest.Dial(ctx, m.Channel)
	if err != nil && context.Cause(ctx) == errOff {
		return nil, errOff
	}
	return client, err
}

var errOff = fault.New(fault.Internal, "the machine ended")

func diagnosis(m portlayer.Machine) string {
	if d := m.Diagnosis(); d != "" {
		return "; it said: " + d
	}
	return ""
}

// Start is portlayer.Containers.Start.
func (s *Service) Start(ctx context.Context, ref string) error {
	u, err := s.find(ref)
	if err != nil {
		return err
	}
	return u.alone(ctx, u.startByHand)
}

// start runs the container. Owner only. It does not stop because its client left: the outcome is recorded either way.
func (u *unit) start() (err error) {
	s := u.s
	if u.run != nil {
		return portlayer.ErrNotModified
	}
	if p := u.c.State.Phase; p == portlayer.Dead || p == portlayer.Removing {
		return fault.New(fault.Conflict, "container %s is marked for removal and cannot be started", u.c.Spec.Name)
	}
	began := time.Now()
	var back undo.Stack
	defer func() {
		if err == nil {
			return
		}
		if uerr := back.Run(s.ctx); uerr != nil {
			s.o.Log.Error("failed start could not be taken back whole", "container", string(u.c.ID), "err", uerr)
		}
		text := err.Error()
		if serr := u.save(func(c *portlayer.Container) {
			c.State.Error, c.State.ExitCode = text, startExitCode(err)
			c.State.FinishedAt = time.Now().UTC()
			if c.State.Phase == portlayer.Restarting {
				c.State.Phase = portlayer.Exited
			}
		}); serr != nil {
			s.o.Log.Error("failed start is not recorded", "container", string(u.c.ID), "err", serr)
		}
		s.o.Log.Warn("container did not start", "container", short(u.c.ID), "name", u.c.Spec.Name, "err", err)
		if u.c.Spec.AutoRemove { // as Docker does: --rm holds for a start that failed too
			if rerr := u.remove(true); rerr != nil {
				s.o.Log.Error("container could not be removed after its failed start", "container", string(u.c.ID), "err", rerr)
			}
		}
	}()

	ctx, giveUp := u.beginStart()
	defer u.endStart(giveUp)
	if err := covered(u.c.Spec.Mounts); err != nil {
		return err
	}
	if err := s.makeSources(u.c.Spec.Mounts); err != nil {
		return err
	}
	h, err := s.draft(ctx, u.c.ID, u.c.Version, u.c.Spec, u.c.Image)
	if err != nil {
		return err
	}
	if err := s.attach(ctx, u.c.ID, u.c.Spec.Name, u.c.Spec.Mounts); err != nil {
		return err
	}
	back.Push(func(context.Context) error { s.o.Binder.Detach(u.c.ID); return nil })
	plugged, err := u.plug(ctx, h)
	if err != nil {
		return err
	}
	back.Push(func(context.Context) error { u.unplug(); return nil })
	machine, err := u.commit(ctx, h)
	if err != nil {
		return err
	}
	timings := []guest.Timing{{Name: "define", Took: time.Since(began)}}
	if err := u.beginLog(); err != nil {
		return err
	}
	if err := s.o.Failpoints.Hit("start.power"); err != nil {
		return err
	}
	back.Push(machine.PowerOff)
	client, took, err := u.bringUpMended(ctx, machine, h, u.c.Spec.Mounts)
	if err != nil {
		return givenUp(ctx, err)
	}
	back.Push(func(context.Context) error { return client.Close() })
	s.wrote(ctx, u.c.Spec.Mounts)
	timings = append(timings, took...)
	if err := s.o.Failpoints.Hit("start.record"); err != nil {
		return err
	}
	r := newRun(machine)
	r.reached(client)
	u.run = r
	err = u.save(func(c *portlayer.Container) {
		c.State = portlayer.State{Phase: portlayer.Running, Pid: machine.Pid(), StartedAt: time.Now().UTC(), Timings: timings, Restarts: c.State.Restarts,
			Links: plugged.Links, Ports: plugged.Ports, Reaches: h.Reaches}
	})
	if err != nil {
		u.run = nil
		return err
	}
	back.Keep()
	u.keepWell(r)
	s.publish(u.c, "start")
	attrs := []any{"container", short(u.c.ID), "name", u.c.Spec.Name, "took", time.Since(began)}
	for _, t := range timings {
		attrs = append(attrs, t.Name, t.Took)
	}
	s.o.Log.Info("container started", attrs...)
	s.wg.Add(1)
	go u.follow(r, 0)
	return nil
}

// beginStart gives the context of a start, which whoever removes the container by force may end. endStart has to follow. Owner only.
func (u *unit) beginStart() (context.Context, context.CancelCauseFunc) {
	limited, cancel := context.WithTimeout(u.s.ctx, bootLimit+startLimit)
	ctx, giveUp := context.WithCancelCause(limited)
	end := context.CancelCauseFunc(func(cause error) { giveUp(cause); cancel() })
	u.starting.Store(&end)
	return ctx, end
}

func (u *unit) endStart(end context.CancelCauseFunc) {
	u.starting.Store(nil)
	end(nil)
}

// givenUp prefers the reason why a start was given up to what came of it.
func givenUp(ctx context.Context, err error) error {
	if context.Cause(ctx) == errGivenUp {
		return errGivenUp
	}
	return err
}

// bringUpMended is bringUp for a machine whose mounts are attached. It mends the volumes that cannot be mounted read-only as their last writer left them.
func (u *unit) bringUpMended(ctx context.Context, machine portlayer.Machine, h *portlayer.Handle, mounts []portlayer.Mount) (*guest.Client, []guest.Timing, error) {
	s := u.s
	client, took, err := u.bringUp(ctx, machine, h.Config)
	for range mounts { // each try comes as far as the next unclean volume
		unclean := uncleanMounts(err, h.Config.Mounts, mounts)
		if len(unclean) == 0 {
			break
		}
		s.o.Log.Info("a volume's last writer did not unmount it; replaying its journal", "container", short(u.c.ID), "name", u.c.Spec.Name)
		if err := machine.PowerOff(ctx); err != nil {
			return nil, nil, err
		}
		s.o.Binder.Detach(u.c.ID)
		if err := s.mend(ctx, u.c.Image, u.c.Spec.Name, unclean); err != nil {
			return nil, nil, err
		}
		if err := s.attach(ctx, u.c.ID, u.c.Spec.Name, mounts); err != nil {
			return nil, nil, err
		}
		client, took, err = u.bringUp(ctx, machine, h.Config)
	}
	return client, took, err
}

// uncleanError is a start that a volume's unreplayed journal prevented.
type uncleanError struct {
	error
	sources []guest.Source
}

func (e *uncleanError) Unwrap() error { return e.error }

// uncleanMounts gives the mounts that err, if it is an uncleanError, is about.
func uncleanMounts(err error, specs []guest.MountSpec, mounts []portlayer.Mount) (unclean []portlayer.Mount) {
	var e *uncleanError
	if !errors.As(err, &e) {
		return nil
	}
	for _, spec := range specs {
		for _, m := range mounts {
			if m.Target == spec.Target && slices.Contains(e.sources, spec.Source) {
				unclean = append(unclean, m)
			}
		}
	}
	return unclean
}

// bringUp boots the machine and has its guest do what cfg says; it gives the times that that took. After an error nobody is connected.
func (u *unit) bringUp(ctx context.Context, machine portlayer.Machine, cfg guest.ExecutorConfig) (_ *guest.Client, _ []guest.Timing, err error) {
	powered := time.Now()
	client, err := u.s.boot(ctx, machine)
	if err != nil {
		return nil, nil, err
	}
	defer func() {
		if err != nil {
			client.Close()
		}
	}()
	hello := time.Since(powered)
	if err := u.s.wire(ctx, machine, client); err != nil {
		return nil, nil, err
	}
	if err := u.s.o.Failpoints.Hit("start.configure"); err != nil {
		return nil, nil, err
	}
	if cfg.Process != nil {
		p := *cfg.Process
		u.tty.mu.Lock()
		if u.tty.rows > 0 && u.tty.cols > 0 {
			p.Rows, p.Cols = u.tty.rows, u.tty.cols
		}
		u.tty.mu.Unlock()
		cfg.Process = &p
	}
	st, err := client.Configure(ctx, atStart(cfg, machine))
	switch {
	case err != nil && len(st.Unclean) > 0:
		return nil, nil, &uncleanError{err, st.Unclean}
	case err != nil:
		return nil, nil, err
	}
	return client, startTimings(hello, st.Timings), nil
}

// startTimings puts the host's measure of power-on to hello ("boot", less the guest's own "tether") before the guest's phases.
func startTimings(hello time.Duration, guestSide []guest.Timing) []guest.Timing {
	var rest []guest.Timing
	for _, t := range guestSide {
		switch t.Name {
		case "boot": // by the guest's clock, which starts late; the host's measure has it all
		case "tether":
			hello -= t.Took
			rest = append(rest, t)
		default:
			rest = append(rest, t)
		}
	}
	return append([]guest.Timing{{Name: "boot", Took: max(hello, 0)}}, rest...)
}

// startExitCode is what Docker records for a start that failed: 127 not found, 126 not executable, 128 otherwise.
func startExitCode(err error) int {
	switch fault.KindOf(err) {
	case fault.NotFound:
		return 127
	case fault.Denied:
		return 126
	}
	return 128
}

// follow stays with a run until its machine is off: it keeps the output, learns the exit, reconnects when the channel breaks, and
// hands the report to the owner. after is the last frame that the log holds.
func (u *unit) follow(r *run, after uint64) {
	s := u.s
	defer s.wg.Done()
	report := u.watch(r, &after)
	if s.ctx.Err() != nil {
		return // this process leaves; the machine stays, and the next one follows it
	}
	err := u.ask(s.ctx, func() error { return u.exited(r, report) })
	if err != nil && s.ctx.Err() == nil {
		s.o.Log.Error("exit is not recorded", "container", string(u.c.ID), "err", err)
	}
	s.keepRooms(report.rooms, report.finished) // nobody's exit waits for it
}

// watch returns the report of a run's end, once its machine is off, or nothing of worth when the service closes.
func (u *unit) watch(r *run, after *uint64) exitReport {
	s := u.s
	id := u.snapshot().container.ID
	for {
		client := r.now()
		var err error
		if client != nil {
			var st guest.Status
			st, err = u.listen(s.ctx, client, after)
			if err == nil {
				if st.Error != nil && st.Phase == guest.Exited { // something is mounted still: let the guest's kernel end it
					u.shutDown(r, client)
				}
				u.off(r) // everything is on its disk, and a guest that powers off by itself takes long for nothing
				client.Close()
				rep := exitReport{exit: st.Exit, finished: time.Now().UTC(), rooms: st.Rooms}
				if st.Phase == guest.Exited && st.Error != nil {
					rep.err = st.Error.Text
				}
				if st.Phase == guest.Failed && st.Error != nil {
					rep.err, rep.exit.Code = st.Error.Text, 128
				}
				return rep
			}
			r.reached(nil)
			client.Close()
		}
		if s.ctx.Err() != nil {
			return exitReport{}
		}
		state, serr := r.machine.State(s.ctx)
		if fault.Is(serr, fault.NotFound) {
			return exitReport{exit: guest.Exit{Code: 128 + sigkill, Signal: sigkill}, finished: time.Now().UTC(), err: "its machine is not there any more: somebody has removed it, or has moved it away"}
		}
		if serr == nil && state == portlayer.PoweredOff {
			return exitReport{exit: guest.Exit{Code: 128 + sigkill, Signal: sigkill}, finished: time.Now().UTC(), err: r.ending() + diagnosis(r.machine)}
		}
		s.o.Log.Debug("reaching for the guest again", "container", string(id), "err", err)
		dctx, cancel := context.WithTimeout(s.ctx, bootLimit)
		client, err = s.dial(dctx, r.machine)
		cancel()
		if err == nil {
			if err := s.wire(s.ctx, r.machine, client); err != nil {
				s.o.Log.Warn("a container's networks are not reached again", "container", string(id), "err", err)
			}
			r.reached(client)
			if !r.isPaused() { // as an unpause that was cut off would have had it
				if err := r.settle(s.ctx, client); err != nil && !fault.Is(err, fault.Conflict) {
					s.o.Log.Warn("a container may stand still", "container", string(id), "err", err)
				}
			}
			continue
		}
		if pause.For(s.ctx, redial) != nil {
			return exitReport{}
		}
	}
}

// shutDown has the guest power its machine off.
func (u *unit) shutDown(r *run, client *guest.Client) {
	s, id := u.s, string(r.machine.ID())
	ctx, cancel := context.WithTimeout(s.ctx, offLimit)
	defer cancel()
	if err := client.Shutdown(ctx); err != nil && s.ctx.Err() == nil {
		s.o.Log.Warn("guest did not take its shutdown", "container", id, "err", err)
	}
	if r.machine.WaitOff(ctx) != nil && s.ctx.Err() == nil {
		s.o.Log.Warn("machine does not power off by itself; switching it off", "container", id)
	}
}

// listen keeps output and status until the guest says that the process has ended and the log holds all it wrote.
func (u *unit) listen(ctx context.Context, client *guest.Client, after *uint64) (guest.Status, error) {
	return client.Output(ctx, *after, func(f guest.Frame) error {
		if err := u.keep(f); err != nil {
			return err
		}
		*after = f.Number
		return nil
	})
}

// off makes sure that a run's machine is off, however long it takes.
func (u *unit) off(r *run) {
	for u.s.ctx.Err() == nil {
		err := r.machine.PowerOff(u.s.ctx)
		if err == nil {
			return
		}
		u.s.o.Log.Error("cannot switch machine off; trying again", "container", string(r.machine.ID()), "err", err)
		_ = pause.For(u.s.ctx, redial) // if it is over, so is this
	}
}

// exited records a run's end. Owner only.
func (u *unit) exited(r *run, rep exitReport) error {
	s := u.s
	s.o.Binder.Detach(u.c.ID)
	u.unplug()
	u.run = nil
	if err := u.settle(s.ctx); err != nil { // nothing of the guest is left to settle, only the entry
		s.o.Log.Warn("journal entry stays until the next start", "container", string(u.c.ID), "err", err)
	}
	again, err := u.saveEnd(func(st *portlayer.State) {
		st.ExitCode, st.OOMKilled = rep.exit.Code, rep.exit.OOM
		st.Error, st.FinishedAt, st.Links, st.Ports, st.Reaches = rep.err, rep.finished, nil, nil, nil
		if st.Health != nil {
			last := *st.Health
			last.Is = portlayer.Unhealthy
			st.Health = &last
		}
	})
	if err != nil {
		// Memory goes on telling the truth; the next start finds the machine off and says so.
		u.c.State.Phase = portlayer.Exited
		s.o.Log.Error("exit is not recorded", "container", string(u.c.ID), "err", err)
	}
	u.endLog()
	u.hub.finish()
	if rep.exit.OOM {
		s.publish(u.c, "oom")
	}
	s.publish(u.c, "die", "exitCode", itoa(rep.exit.Code))
	s.o.Log.Info("container exited", "container", short(u.c.ID), "name", u.c.Spec.Name, "code", rep.exit.Code, "oom", rep.exit.OOM, "err", rep.err)
	close(r.ended)
	u.show(true, false)
	if again {
		u.startLater()
	}
	if u.c.Spec.AutoRemove {
		if err := u.remove(true); err != nil {
			s.o.Log.Error("container could not be removed after its exit", "container", string(u.c.ID), "err", err)
		}
	}
	return nil
}

// end signals a run, waits up to wait (negative: for ever) for its end, then kills it and waits for that.
func (s *Service) end(ctx context.Context, u *unit, r *run, signal int, wait time.Duration) error {
	if r == nil {
		return nil
	}
	if err := u.byHand(ctx); err != nil {
		return err
	}
	if err := s.awake(ctx, u, r); err != nil {
		return err
	}
	if signal != sigkill {
		if client, err := r.talk(ctx); err == nil {
			if err := client.Signal(ctx, "", signal); err != nil && !fault.Is(err, fault.Conflict) {
				s.o.Log.Warn("signal did not reach the guest", "container", string(r.machine.ID()), "signal", signal, "err", err)
			}
		}
		var limit <-chan time.Time
		if wait >= 0 {
			t := time.NewTimer(wait)
			defer t.Stop()
			limit = t.C
		}
		select {
		case <-r.ended:
			return nil
		case <-limit:
		case <-ctx.Done():
			// The client left; as in Docker the stop goes on to its end without it.
			return s.end(context.WithoutCancel(ctx), u, r, sigkill, 0)
		}
	}
	return s.kill(context.WithoutCancel(ctx), u, r)
}

// kill ends a run for certain: SIGKILL to the process, and if that brings no exit, the machine is switched off. It returns when the run ended.
func (s *Service) kill(ctx context.Context, u *unit, r *run) error {
	sctx, cancel := context.WithTimeout(ctx, killGrace)
	client, err := r.talk(sctx)
	if err == nil {
		err = client.Signal(sctx, "", sigkill)
		if fault.Is(err, fault.Conflict) {
			err = nil // it has ended by itself meanwhile: its own exit is on its way, and is what counts
		}
	}
	cancel()
	for began := time.Now(); err == nil; {
		select {
		case <-r.ended:
			return nil
		case <-time.After(killGrace):
			if time.Since(began) > flushLimit || !s.writesOut(ctx, u, r) {
				err = errors.New("no exit after SIGKILL")
			}
		case <-s.ctx.Done():
			return fault.New(fault.Unavailable, "vch is stopping")
		}
	}
	s.o.Log.Warn("switching machine off", "container", string(r.machine.ID()), "err", err)
	if err := r.machine.PowerOff(ctx); err != nil {
		return err
	}
	select {
	case <-r.ended:
		return nil
	case <-s.ctx.Done():
		return fault.New(fault.Unavailable, "vch is stopping")
	}
}

// writesOut says whether a machine whose container has been killed is likely to be at writing to servers, which it is to come to the end of: it answers, and they do. Where one does
// not, that is noted for the container's end.
func (s *Service) writesOut(ctx context.Context, u *unit, r *run) bool {
	ctx, cancel := context.WithTimeout(ctx, killGrace)
	defer cancel()
	writes := false
	for _, m := range u.snapshot().container.Spec.Mounts {
		if !m.Shared || m.ReadOnly {
			continue
		}
		writes = true
		st, err := s.o.Volumes.Store(ctx, m.Store)
		if err == nil && st.Status.Degraded != "" {
			err = errors.New(st.Status.Degraded)
		}
		if err != nil {
			r.lose(fmt.Sprintf("what was written last to volume %s may be lost: %v", m.VolumeRef(), err))
			return false
		}
	}
	if !writes {
		return false
	}
	client, err := r.talk(ctx)
	if err == nil {
		_, err = client.Status(ctx)
	}
	return err == nil
}

// Stop is portlayer.Containers.Stop.
func (s *Service) Stop(ctx context.Context, ref string, signal int, timeout *int) error {
	u, err := s.find(ref)
	if err != nil {
		return err
	}
	snap := u.snapshot()
	if snap.container.State.Phase == portlayer.Restarting {
		err := u.ask(ctx, u.stay)
		if err == nil {
			s.publish(u.snapshot().container, "stop")
			return nil
		}
		if !errors.Is(err, portlayer.ErrNotModified) {
			return err
		}
		snap = u.snapshot() // it was started just then
	}
	if snap.run == nil {
		return portlayer.ErrNotModified
	}
	spec := snap.container.Spec
	if signal == 0 {
		signal = spec.StopSignal
	}
	if timeout == nil {
		timeout = spec.StopTimeout
	}
	wait := defaultStop
	if timeout != nil {
		wait = time.Duration(*timeout) * time.Second
	}
	if err := s.end(ctx, u, snap.run, signal, wait); err != nil {
		return fault.Wrap("stop container", spec.Name, err)
	}
	s.publish(u.snapshot().container, "stop")
	return nil
}

// defaultStop is how long Stop waits for a container that does not say: Docker's 10 s.
const defaultStop = 10 * time.Second

// Restart is portlayer.Containers.Restart.
func (s *Service) Restart(ctx context.Context, ref string, signal int, timeout *int) error {
	u, err := s.find(ref)
	if err != nil {
		return err
	}
	if u.snapshot().container.Spec.AutoRemove && u.snapshot().run != nil {
		return fault.New(fault.Unsupported, "container %s has --rm: it is removed when it stops and cannot be restarted", ref)
	}
	if err := s.Stop(ctx, ref, signal, timeout); err != nil && !errors.Is(err, portlayer.ErrNotModified) {
		return err
	}
	if err := u.alone(ctx, u.startByHand); err != nil && !errors.Is(err, portlayer.ErrNotModified) {
		return err
	}
	s.publish(u.snapshot().container, "restart")
	return nil
}

// Kill is portlayer.Containers.Kill.
func (s *Service) Kill(ctx context.Context, ref string, signal int) error {
	u, err := s.find(ref)
	if err == nil && u.snapshot().container.State.Phase == portlayer.Restarting {
		if err = u.ask(ctx, u.stay); !errors.Is(err, portlayer.ErrNotModified) {
			return err
		}
	}
	u, r, err := s.up(ref)
	if err != nil {
		return fault.Wrap("kill container", ref, err)
	}
	if ends := u.snapshot().container.Spec.StopSignal; signal == sigkill || ends == 0 || signal == ends {
		if err := u.byHand(ctx); err != nil {
			return err
		}
		if err := s.awake(ctx, u, r); err != nil {
			return err
		}
	}
	if signal == sigkill {
		err = s.kill(context.WithoutCancel(ctx), u, r)
	} else {
		var client *guest.Client
		if client, err = r.talk(ctx); err == nil {
			err = client.Signal(ctx, "", signal)
		}
	}
	if err != nil {
		return fault.Wrap("kill container", ref, err)
	}
	s.publish(u.snapshot().container, "kill", "signal", itoa(signal))
	return nil
}

// running finds a container that runs and is not paused.
func (s *Service) running(ref string) (*unit, *run, error) {
	u, r, err := s.up(ref)
	if err == nil && r.isPaused() {
		err = fault.New(fault.Conflict, "container %s is paused, unpause the container before", u.snapshot().container.ID)
	}
	return u, r, err
}

// up finds a container that runs, paused or not.
func (s *Service) up(ref string) (*unit, *run, error) {
	u, err := s.find(ref)
	if err != nil {
		return nil, nil, err
	}
	snap := u.snapshot()
	if snap.container.State.Phase == portlayer.Restarting {
		return nil, nil, fault.New(fault.Conflict, "container %s is restarting, wait until the container is running", snap.container.ID)
	}
	if snap.run == nil {
		return nil, nil, fault.New(fault.Conflict, "container %s is not running", snap.container.ID)
	}
	return u, snap.run, nil
}

// Resize is portlayer.Containers.Resize.
func (s *Service) Resize(ctx context.Context, ref string, rows, cols uint16) error {
	u, err := s.find(ref)
	if err != nil {
		return err
	}
	u.tty.mu.Lock()
	u.tty.rows, u.tty.cols = rows, cols
	u.tty.mu.Unlock()
	snap := u.snapshot()
	if snap.run == nil {
		return nil
	}
	client, err := snap.run.talk(ctx)
	if err != nil {
		return err
	}
	if err := client.Resize(ctx, "", rows, cols); err != nil {
		return err
	}
	s.publish(snap.container, "resize", "height", itoa(int(rows)), "width", itoa(int(cols)))
	return nil
}

// Top is portlayer.Containers.Top.
func (s *Service) Top(ctx context.Context, ref string) ([]guest.ProcessInfo, error) {
	u, r, err := s.up(ref)
	if err != nil {
		return nil, err
	}
	client, leave, err := u.look(ctx, r)
	if err != nil {
		return nil, err
	}
	defer leave()
	return client.Top(ctx)
}
