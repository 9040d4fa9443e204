package exec

import (
	"context"
	"slices"
	"sync"
	"time"

	"vch/guest"
	"vch/internal/fault"
	"vch/internal/undo"
	"vch/portlayer"
)

const (
	// servingLinger is how long a machine that was booted for its files stays on without anything to do: docker cp asks two or three times in a row.
	servingLinger = 3 * time.Second
	// servingWait is how long what needs a container's machine, or a volume that it holds, waits for a copy that is under way.
	servingWait = time.Minute
)

// serving is the machine of a container that does not run, on for its files: it holds the container's volumes as a run does, and has no process. The owner
// opens one; whoever finds it idle may finish it.
//
//	open ──enter, leave──▶ open ──close, when idle──▶ closed ──finish──▶ (the machine is off, its volumes are free)
type serving struct {
	unit    *unit
	machine portlayer.Machine
	client  *guest.Client
	unlink  func() // its link to the servers of volumes ends with it
	absent  []absentMount

	once sync.Once     // finish
	done chan struct{} // closed when finished

	mu     sync.Mutex // guards below
	closed bool       // nobody enters any more
	users  int
	idle   chan struct{} // closed when users becomes 0; made anew by the first
	linger *time.Timer   // runs while users is 0
}

// absentMount is a mount whose volume another container holds.
type absentMount struct {
	portlayer.Mount
	holder portlayer.ContainerID
}

// enter keeps the machine on until leave. It reports whether it still was.
func (v *serving) enter() bool {
	v.mu.Lock()
	defer v.mu.Unlock()
	select {
	case <-v.client.Done(): // the machine has ended by itself
		v.closed = true
	default:
	}
	if v.closed {
		return false
	}
	if v.users == 0 {
		v.idle = make(chan struct{})
		v.linger.Stop()
	}
	v.users++
	return true
}

func (v *serving) leave() {
	v.mu.Lock()
	defer v.mu.Unlock()
	if v.users--; v.users == 0 {
		close(v.idle)
		v.linger.Reset(servingLinger)
	}
}

// close lets nobody in any more if nobody is in; then it must be finished. Otherwise busy closes when that is so.
func (v *serving) close() (busy <-chan struct{}) {
	v.mu.Lock()
	defer v.mu.Unlock()
	if v.users > 0 && !v.closed {
		return v.idle
	}
	v.closed = true
	return nil
}

// cut is close for what cannot wait: those who are in hear that the machine went.
func (v *serving) cut() {
	v.mu.Lock()
	defer v.mu.Unlock()
	v.closed = true
}

// finish ends a closed machine and frees its volumes; it returns when that is so, whoever does it.
func (v *serving) finish() {
	v.once.Do(func() {
		defer close(v.done)
		s, id := v.unit.s, v.machine.ID()
		// Its own time: what has begun is done also while the service closes.
		ctx, cancel := context.WithTimeout(context.Background(), offLimit)
		err := v.client.Shutdown(ctx)
		if err == nil {
			err = v.machine.WaitOff(ctx)
		}
		cancel()
		if err != nil {
			s.o.Log.Warn("machine that served files does not power off by itself; switching it off", "container", string(id), "err", err)
		}
		ctx, cancel = context.WithTimeout(context.Background(), offLimit)
		defer cancel()
		if err := v.machine.PowerOff(ctx); err != nil {
			s.o.Log.Error("cannot switch machine off", "container", string(id), "err", err)
		}
		v.client.Close()
		v.unlink()
		s.o.Binder.Detach(id)
		v.unit.serving.CompareAndSwap(v, nil)
	})
	<-v.done
}

// tend finishes the machine when it has been idle for long enough, has ended by itself, or the service closes.
func (v *serving) tend() {
	s := v.unit.s
	defer s.wg.Done()
	for {
		select {
		case <-v.linger.C:
			if v.close() != nil {
				continue
			}
		case <-v.client.Done():
			v.cut()
		case <-s.ctx.Done():
			v.cut()
		case <-v.done:
			return
		}
		v.finish()
		return
	}
}

// alone runs do on the owner when no machine serves the container's files; it waits for copies that are under way, up to servingWait.
func (u *unit) alone(ctx context.Context, do func() error) error {
	limit := time.NewTimer(servingWait)
	defer limit.Stop()
	for {
		var busy <-chan struct{}
		err := u.ask(ctx, func() error {
			if v := u.serving.Load(); v != nil {
				if busy = v.close(); busy != nil {
					return nil
				}
				v.finish()
			}
			return do()
		})
		if busy == nil {
			return err
		}
		select {
		case <-busy:
		case <-limit.C:
			return fault.New(fault.Conflict, "files are being copied from or to container %s: wait for the copy to end, or end it", u.snapshot().container.Spec.Name)
		case <-ctx.Done():
			return ctx.Err()
		}
	}
}

// attach is Binder.Attach, after what only serves files has let go of the volumes.
func (s *Service) attach(ctx context.Context, id portlayer.ContainerID, who string, mounts []portlayer.Mount) error {
	limit := time.NewTimer(servingWait)
	defer limit.Stop()
	for {
		err := s.o.Binder.Attach(id, who, mounts)
		if !fault.Is(err, fault.InUse) {
			return err
		}
		v, gerr := s.servingOf(ctx, id, mounts)
		if gerr != nil || v == nil {
			return err
		}
		busy := v.close()
		if busy == nil {
			v.finish()
			continue
		}
		select {
		case <-busy:
		case <-limit.C:
			return fault.New(fault.InUse, "files are being copied from or to container %s, which holds a volume of %s: wait for the copy to end, or end it", v.unit.snapshot().container.Spec.Name, who)
		case <-ctx.Done():
			return ctx.Err()
		}
	}
}

// servingOf finds a machine that serves files and, not being id's, has one of the volumes; nil if there is none.
func (s *Service) servingOf(ctx context.Context, id portlayer.ContainerID, mounts []portlayer.Mount) (*serving, error) {
	for _, m := range mounts {
		if m.Kind != portlayer.VolumeMount {
			continue
		}
		holders, err := s.holders(ctx, id, m.ID())
		if err != nil {
			return nil, err
		}
		for _, h := range holders {
			if u := s.unitOf(h.Container); u != nil {
				if v := u.serving.Load(); v != nil {
					return v, nil
				}
			}
		}
	}
	return nil, nil
}

// holders gives who but id holds a volume.
func (s *Service) holders(ctx context.Context, id portlayer.ContainerID, vol portlayer.VolumeID) ([]portlayer.Attachment, error) {
	v, err := s.o.Volumes.Get(ctx, vol)
	if err != nil {
		return nil, err
	}
	return slices.DeleteFunc(slices.Clone(v.Attached), func(a portlayer.Attachment) bool { return a.Container == id }), nil
}

func (s *Service) unitOf(id portlayer.ContainerID) *unit {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.units[id]
}

// serve has the container's machine serve its files, entered for the caller. It does not run. Owner only.
func (u *unit) serve() (_ *serving, err error) {
	s := u.s
	if v := u.serving.Load(); v != nil {
		if !v.outdated(s) && v.enter() {
			return v, nil
		}
		if v.close() != nil { // those who are in came before what made it so; they go on
			if v.enter() {
				return v, nil
			}
		}
		v.finish()
	}
	if p := u.c.State.Phase; p == portlayer.Dead || p == portlayer.Removing {
		return nil, fault.New(fault.Conflict, "container %s is marked for removal: its files cannot be copied", u.c.Spec.Name)
	}
	began := time.Now()
	var back undo.Stack
	defer func() {
		if err == nil {
			return
		}
		if uerr := back.Run(s.ctx); uerr != nil {
			s.o.Log.Error("a machine for files could not be taken back whole", "container", string(u.c.ID), "err", uerr)
		}
	}()
	ctx, giveUp := u.beginStart()
	defer u.endStart(giveUp)
	if err := s.makeSources(u.c.Spec.Mounts); err != nil {
		return nil, err
	}
	mounts, absent, err := s.attachFree(ctx, u.c)
	if err != nil {
		return nil, err
	}
	back.Push(func(context.Context) error { s.o.Binder.Detach(u.c.ID); return nil })
	spec := u.c.Spec
	spec.Mounts = mounts
	h, err := s.draft(ctx, u.c.ID, u.c.Version, spec, u.c.Image)
	if err != nil {
		return nil, err
	}
	h.Config.Process, h.Config.Serve = nil, true
	h.Config.Root.Ephemeral = false // what is copied is there for the process, after another start of the machine
	if err := s.checkParts(ctx, u.c, absent); err != nil {
		return nil, err
	}
	for _, m := range absent {
		h.Config.Mounts = append(h.Config.Mounts, guest.MountSpec{Target: m.Target, Name: string(m.Volume), Absent: "container " + s.nameOf(m.holder) + " has it"})
	}
	unlink, err := s.link(ctx, h, u.c.Spec.Name)
	if err != nil {
		return nil, err
	}
	back.Push(func(context.Context) error { unlink(); return nil })
	machine, err := u.commit(ctx, h)
	if err != nil {
		return nil, err
	}
	back.Push(machine.PowerOff)
	client, _, err := u.bringUpMended(ctx, machine, h, mounts)
	if err != nil {
		return nil, givenUp(ctx, err)
	}
	s.wrote(ctx, mounts)
	if err := s.o.Failpoints.Hit("copy.serve"); err != nil {
		client.Close()
		return nil, err
	}
	back.Keep()
	v := &serving{unit: u, machine: machine, client: client, unlink: unlink, absent: absent, done: make(chan struct{}), users: 1, idle: make(chan struct{}), linger: time.NewTimer(servingLinger)}
	v.linger.Stop()
	u.serving.Store(v)
	s.o.Log.Info("machine serves the container's files", "container", short(u.c.ID), "name", u.c.Spec.Name, "absent", len(absent), "took", time.Since(began))
	s.wg.Add(1)
	go v.tend()
	return v, nil
}

// checkParts refuses an absent mount of a file: its mount point would have to be one, and only the volume's machine knows.
func (s *Service) checkParts(ctx context.Context, c portlayer.Container, absent []absentMount) error {
	f := &files{s: s, c: c, others: map[portlayer.VolumeID]other{}}
	defer f.close()
	for i, m := range absent {
		if m.Subpath == "" {
			continue
		}
		o, err := f.reach(ctx, &absent[i])
		if err != nil {
			return err
		}
		l, err := o.client.Stat(ctx, guest.StatRequest{Place: guest.Place{Source: o.source, Path: guest.Path(m.Subpath)}, Follow: true})
		if err != nil {
			return fault.Wrap("look at "+m.Subpath+" of volume", string(m.Volume), err)
		}
		if !l.Stat.Mode.IsDir() {
			return fault.New(fault.InUse, "%s, a file of volume %s, is mounted at %s, and container %s has the volume: stop %[4]s first", m.Subpath, m.Volume, m.Target, s.nameOf(m.holder))
		}
	}
	return nil
}

// outdated says that a volume which was absent is held by nobody any more.
func (v *serving) outdated(s *Service) bool {
	for _, m := range v.absent {
		if holders, err := s.holders(s.ctx, v.machine.ID(), m.ID()); err == nil && len(holders) == 0 {
			return true
		}
	}
	return false
}

// attachTries bounds attachFree: each try fails only when somebody took a volume between two calls.
const attachTries = 10

// attachFree attaches what can be had of a container's volumes for its files; the others are absent.
func (s *Service) attachFree(ctx context.Context, c portlayer.Container) (have []portlayer.Mount, absent []absentMount, err error) {
	for range attachTries {
		have, absent = nil, nil
		for _, m := range c.Spec.Mounts {
			if m.Kind != portlayer.VolumeMount {
				have = append(have, m)
				continue
			}
			holders, err := s.holders(ctx, c.ID, m.ID())
			if err != nil {
				return nil, nil, err
			}
			writes := !m.Shared && writes(c.Spec.Mounts, m.ID())
			if i := slices.IndexFunc(holders, func(a portlayer.Attachment) bool { return writes || !m.Shared && !a.ReadOnly }); i >= 0 {
				absent = append(absent, absentMount{m, holders[i].Container})
			} else {
				have = append(have, m)
			}
		}
		if err = s.o.Binder.Attach(c.ID, c.Spec.Name, have); !fault.Is(err, fault.InUse) {
			return have, absent, err
		}
	}
	return nil, nil, err
}

// nameOf is a container's name for messages; its id where it is none of ours, as a utility machine.
func (s *Service) nameOf(id portlayer.ContainerID) string {
	if u := s.unitOf(id); u != nil {
		return u.snapshot().container.Spec.Name
	}
	return short(id)
}
