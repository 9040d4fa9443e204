// Package tether is what runs in the guest, as PID 1: it takes one executor config, mounts what that names, runs the process, streams its
// output and reports every failure with its reason.
//
// Core is the state machine and the guest's end of the protocol; it does no system call. System is what it needs of an operating system:
// Linux (linux_*.go) in a real machine, goroutines in hypervisor/fake. Core keeps output that the host has not acknowledged, up to a bound, and
// then lets the process wait: nothing is dropped while the host is away. When the process has ended and its file systems are written out and
// read-only, it waits for the host to collect the exit, however long, and powers off when told.
//
//	waiting ──Configure──▶ starting ──▶ running ──▶ exited
//	                          └───────▶ failed
package tether

import (
	"context"
	"errors"
	"io"
	"slices"
	"sync"
	"time"

	"vch/guest"
	"vch/internal/fault"
)

// System is an operating system as Core needs it. Prepare, Mount, Unmount and Release are called by one goroutine at a time.
type System interface {
	// Prepare gives the machine its identity (entropy, clock, host name) and mounts everything that cfg names; it reports how long mounting and
	// copying took. After an error nothing is mounted.
	Prepare(ctx context.Context, cfg guest.ExecutorConfig) ([]guest.Timing, error)
	// Start runs p: the container's own process if main, else one beside it.
	Start(p guest.Process, main bool) (Proc, error)
	// Network gives the machine the interfaces of n, and no others, and where n asks for it answers questions for names by ask. It may be called while Prepare or Mount is.
	Network(n guest.Network, ask func(ctx context.Context, query []byte) ([]byte, error)) error
	// SetClock is guest.Handler's. It may be called at any time.
	SetClock(now time.Time) error
	// Mount and Unmount are guest.Handler's, between Prepare and Release. Like Prepare, Mount gives up waiting for a disk when ctx ends.
	Mount(ctx context.Context, m guest.MountSpec) error
	Unmount(target string) error
	// Release ends every process of the container, unmounts and syncs.
	Release() error
	// Freeze, Grow and Rooms are guest.Handler's, between Prepare and Release. What Freeze returns thaws, once.
	Freeze(source guest.Source) (thaw func() error, err error)
	Grow(ctx context.Context, source guest.Source, size int64) error
	Rooms() ([]guest.Room, error)
	// Stats, SetLimits and SetStill are guest.Handler's, while the container's own process runs.
	Stats() (guest.Stats, error)
	SetLimits(l guest.Limits) error
	SetStill(still bool) error
	// Top lists the container's processes.
	Top() ([]guest.ProcessInfo, error)
	// Renew makes the machine ready for another Prepare, after Release.
	Renew() error
	// PowerOff ends the machine. It does not return in a real one.
	PowerOff() error
	Files
}

// Files does what guest.Archives says, between Prepare and Release, for many at once.
type Files interface {
	Stat(r guest.StatRequest) (guest.Located, error)
	// Archive returns soon after an error of out.
	Archive(r guest.ArchiveRequest, out io.Writer) ([]guest.Skipped, error)
	// Changes is guest.Archives's.
	Changes() ([]guest.Change, error)
	// Extract returns soon after an error of in.
	Extract(r guest.ExtractRequest, in io.Reader) error
}

// Proc is a started process.
type Proc interface {
	Pid() int
	// Stdin is nil if the process has none.
	Stdin() io.WriteCloser
	// Outputs gives the readers of its streams; Stderr is nil with a TTY. They end when no process holds them any more, or after Wait.
	Outputs() (stdout, stderr io.Reader)
	// Wait returns how the process ended; its outputs can then be read to their end.
	Wait() guest.Exit
	Signal(n int) error
	Resize(rows, cols uint16) error
}

// Unclean is Prepare's and Mount's error for a volume whose last writer ended without unmounting it: its journal has to be replayed, which a disk that is
// read-only in this machine does not allow. A machine that has it writable mends it by mounting it.
type Unclean struct {
	Source guest.Source
	Name   string // for messages
}

// Error says what happened.
func (u *Unclean) Error() string {
	return u.Name + " was not unmounted cleanly by its last writer, and read-only its journal cannot be replayed"
}

// maxHeld bounds the output that is kept for a host that is away or slow, in bytes. Past it the process waits on its pipe.
const maxHeld = 1 << 20

// execGrace is how long output may still come from children that outlive an exec's process.
const execGrace = 500 * time.Millisecond

// Core implements guest.Handler.
type Core struct {
	sys    System
	booted time.Time
	boot   []guest.Timing // what was measured before booted; empty after a Reset

	configuring sync.Mutex         // held by the one Configure
	mounting    sync.Mutex         // held by whoever changes the mounts once the process runs
	running     context.Context    // from the process's start to its end; set before Phase is Running
	ended       context.CancelFunc // ends running

	mu      sync.Mutex            // guards below
	carried *guest.ExecutorConfig // what the machine's definition has brought; nil: nothing
	id      string                // of the config taken
	again   bool                  // that config was a rehearsal
	status  guest.Status
	outcome error
	changed chan struct{}
	main    Proc
	stdin   io.WriteCloser
	execs   map[string]Proc
	frozen  map[guest.Source]*frozen
	host    guest.Asker // nil: nobody is there
	copies  *copies     // nil while nothing is mounted

	frames  []guest.Frame // not yet acknowledged; the last one's number is last
	held    int
	last    uint64
	done    bool          // no frame follows
	flowing chan struct{} // closed when frames, held or done change
}

// NewCore makes a waiting core. boot is what was measured before; the tether's own start counts from now on.
func NewCore(sys System, boot []guest.Timing) *Core {
	return &Core{sys: sys, booted: time.Now(), boot: boot, status: guest.Status{Phase: guest.Waiting}, changed: make(chan struct{}), flowing: make(chan struct{}), execs: map[string]Proc{}, frozen: map[guest.Source]*frozen{}}
}

// Carry has a config be known before anybody comes, of which Configure brings the rest.
func (c *Core) Carry(cfg *guest.ExecutorConfig) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.carried = cfg
}

// whole is cfg with what the machine carries, where cfg is only the rest.
func (c *Core) whole(cfg guest.ExecutorConfig) (guest.ExecutorConfig, error) {
	if !cfg.AtStart {
		return cfg, nil
	}
	c.mu.Lock()
	carried := c.carried
	c.mu.Unlock()
	if carried == nil {
		return cfg, fault.New(fault.Conflict, "the machine was told a part of its config alone, and carries nothing")
	}
	return carried.With(cfg)
}

// Configure is guest.Handler.Configure.
func (c *Core) Configure(ctx context.Context, cfg guest.ExecutorConfig) error {
	c.configuring.Lock()
	defer c.configuring.Unlock()
	if cfg.ID == "" {
		return fault.New(fault.Invalid, "the executor config has no id")
	}
	cfg, err := c.whole(cfg)
	if err != nil {
		return err
	}
	c.mu.Lock()
	id, outcome := c.id, c.outcome
	if id == "" {
		c.id, c.again = cfg.ID, cfg.Rehearsal
	}
	c.mu.Unlock()
	if id != "" {
		if id != cfg.ID {
			return fault.New(fault.Conflict, "this machine already runs container %s", id)
		}
		return outcome
	}
	timings := slices.Clone(c.boot)
	if len(timings) > 0 {
		timings = append(timings, guest.Timing{Name: "tether", Took: time.Since(c.booted)})
	}
	c.set(func(st *guest.Status) { st.Phase, st.Timings = guest.Starting, timings })
	proc, err := c.start(ctx, cfg, &timings)
	if err != nil {
		err = errors.Join(err, c.sys.Release())
		if j, ok := err.(interface{ Unwrap() []error }); ok && len(j.Unwrap()) == 1 {
			err = j.Unwrap()[0]
		}
		c.mu.Lock()
		c.outcome = err
		c.mu.Unlock()
		c.set(func(st *guest.Status) {
			st.Phase, st.Timings, st.Finished = guest.Failed, timings, time.Now()
			st.Error = &guest.Fault{Kind: fault.KindOf(err).String(), Text: err.Error()}
			if u := (*Unclean)(nil); errors.As(err, &u) {
				st.Unclean = []guest.Source{u.Source}
			}
		})
		c.finishOutput()
		return err
	}
	if proc == nil && cfg.Serve {
		c.setCopies(newCopies())
		c.mu.Lock()
		c.running, c.ended = context.WithCancel(context.Background())
		c.mu.Unlock()
		c.set(func(st *guest.Status) { st.Phase, st.Timings, st.Started = guest.Running, timings, time.Now() })
		c.finishOutput()
		return nil
	}
	if proc == nil { // a utility machine: all is done
		c.set(func(st *guest.Status) { st.Phase, st.Timings, st.Finished = guest.Exited, timings, time.Now() })
		c.finishOutput()
		return nil
	}
	c.mu.Lock()
	c.main, c.stdin, c.copies = proc, proc.Stdin(), newCopies()
	c.running, c.ended = context.WithCancel(context.Background())
	c.mu.Unlock()
	c.set(func(st *guest.Status) {
		st.Phase, st.Timings, st.Pid, st.Started = guest.Running, timings, proc.Pid(), time.Now()
	})
	go c.attend(proc)
	return nil
}

// Reset is guest.Handler.Reset.
func (c *Core) Reset(context.Context) error {
	c.configuring.Lock()
	defer c.configuring.Unlock()
	c.mu.Lock()
	may := c.again && c.status.Phase == guest.Exited
	c.mu.Unlock()
	if !may {
		return fault.New(fault.Conflict, "only a machine whose rehearsal has ended can be used again")
	}
	if err := c.sys.Renew(); err != nil {
		return err
	}
	c.mu.Lock()
	c.boot, c.id, c.again, c.outcome = nil, "", false, nil
	c.main, c.stdin, c.copies = nil, nil, nil
	c.frames, c.held, c.last, c.done = nil, 0, 0, false
	c.mu.Unlock()
	c.set(func(st *guest.Status) { *st = guest.Status{Phase: guest.Waiting} })
	return nil
}

// start mounts and runs; a nil Proc is a config without a process.
func (c *Core) start(ctx context.Context, cfg guest.ExecutorConfig, timings *[]guest.Timing) (Proc, error) {
	networked := make(chan error, 1)
	go func() { networked <- c.sys.Network(cfg.Network, c.ask) }()
	took, err := c.sys.Prepare(ctx, cfg)
	*timings = append(*timings, took...)
	if err := errors.Join(err, <-networked); err != nil {
		return nil, err
	}
	switch {
	case cfg.Process == nil && cfg.Serve:
		return nil, nil
	case cfg.Process == nil:
		return nil, c.sys.Release()
	}
	began := time.Now()
	proc, err := c.sys.Start(*cfg.Process, true)
	*timings = append(*timings, guest.Timing{Name: "process", Took: time.Since(began)})
	return proc, err
}

// attend stays with the container's own process to its end.
func (c *Core) attend(p Proc) {
	stdout, stderr := p.Outputs()
	var pumps sync.WaitGroup
	for stream, r := range map[guest.Stream]io.Reader{guest.Stdout: stdout, guest.Stderr: stderr} {
		if r != nil {
			pumps.Go(func() {
				pump(r, func(data []byte) error { c.add(stream, data); return nil })
			})
		}
	}
	exit := p.Wait()
	c.ended()
	pumps.Wait()
	finished := time.Now()
	c.mounting.Lock()
	c.thawAll()
	rooms, _ := c.sys.Rooms() // for whoever wants to know later; the exit does not wait for it
	c.endCopies(copyGrace)
	err := c.sys.Release()
	c.mounting.Unlock()
	c.set(func(st *guest.Status) {
		st.Phase, st.Exit, st.Finished, st.Pid, st.Rooms = guest.Exited, exit, finished, 0, rooms
		if err != nil {
			st.Error = &guest.Fault{Kind: fault.KindOf(err).String(), Text: "not everything was unmounted: " + err.Error()}
		}
	})
	c.finishOutput()
}

// pump hands on what r gives until its end.
func pump(r io.Reader, out func([]byte) error) {
	buf := make([]byte, guest.MaxFrame)
	for {
		n, err := r.Read(buf)
		if n > 0 && out(append([]byte(nil), buf[:n]...)) != nil {
			_, _ = io.Copy(io.Discard, r) // nobody listens; the process goes on
			return
		}
		if err != nil {
			return
		}
	}
}

// add appends a frame, waiting while too much is held.
func (c *Core) add(stream guest.Stream, data []byte) {
	c.mu.Lock()
	defer c.mu.Unlock()
	for c.held >= maxHeld {
		flowing := c.flowing
		c.mu.Unlock()
		<-flowing
		c.mu.Lock()
	}
	c.last++
	c.frames = append(c.frames, guest.Frame{Number: c.last, Stream: stream, Data: data})
	c.held += len(data)
	c.status.Frames = c.last
	c.flow()
}

// flow wakes those who wait for frames or for room. The caller holds mu.
func (c *Core) flow() {
	close(c.flowing)
	c.flowing = make(chan struct{})
}

func (c *Core) finishOutput() {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.done = true
	c.flow()
}

// set changes the status and tells of it.
func (c *Core) set(change func(*guest.Status)) {
	c.mu.Lock()
	defer c.mu.Unlock()
	change(&c.status)
	close(c.changed)
	c.changed = make(chan struct{})
}

// Status is guest.Handler.Status.
func (c *Core) Status() guest.Status {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.status
}

// Changed is guest.Handler.Changed.
func (c *Core) Changed() <-chan struct{} {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.changed
}

// Forget is guest.Handler.Forget.
func (c *Core) Forget(acked uint64) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.forget(acked)
}

// forget drops acknowledged frames. The caller holds mu.
func (c *Core) forget(acked uint64) {
	n := 0
	for n < len(c.frames) && c.frames[n].Number <= acked {
		c.held -= len(c.frames[n].Data)
		n++
	}
	if n > 0 {
		c.frames = append(c.frames[:0:0], c.frames[n:]...)
		c.flow()
	}
}

// Output is guest.Handler.Output.
func (c *Core) Output(ctx context.Context, acked, n uint64) (guest.Frame, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.forget(acked)
	for {
		first := c.last - uint64(len(c.frames)) + 1
		switch {
		case n == 0 || n < first:
			return guest.Frame{}, fault.New(fault.Invalid, "frame %d was acknowledged and is gone", n)
		case n <= c.last:
			return c.frames[n-first], nil
		case c.done && n == c.last+1:
			return guest.Frame{}, io.EOF
		case n > c.last+1:
			return guest.Frame{}, fault.New(fault.Invalid, "frame %d is asked for, but %d is the last so far", n, c.last)
		}
		flowing := c.flowing
		c.mu.Unlock()
		select {
		case <-flowing:
			c.mu.Lock()
		case <-ctx.Done():
			c.mu.Lock()
			return guest.Frame{}, ctx.Err()
		}
	}
}

// Stdin is guest.Handler.Stdin.
func (c *Core) Stdin() (io.WriteCloser, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.main == nil {
		return nil, fault.New(fault.Conflict, "the container's process does not run")
	}
	if c.stdin == nil {
		return nil, fault.New(fault.Conflict, "the container's process has no stdin")
	}
	return c.stdin, nil
}

// process finds the container's own process ("") or an exec's.
func (c *Core) process(exec string) (Proc, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if exec != "" {
		if p := c.execs[exec]; p != nil {
			return p, nil
		}
		return nil, fault.New(fault.NotFound, "no such exec instance: %s", exec)
	}
	if c.main == nil || c.status.Phase != guest.Running {
		return nil, fault.New(fault.Conflict, "the container's process does not run")
	}
	return c.main, nil
}

// Signal is guest.Handler.Signal.
func (c *Core) Signal(_ context.Context, exec string, n int) error {
	p, err := c.process(exec)
	if err != nil {
		return err
	}
	return p.Signal(n)
}

// Resize is guest.Handler.Resize.
func (c *Core) Resize(_ context.Context, exec string, rows, cols uint16) error {
	p, err := c.process(exec)
	if err != nil {
		return err
	}
	return p.Resize(rows, cols)
}

// Exec is guest.Handler.Exec. A host that leaves ends the call; the process goes on, without input.
func (c *Core) Exec(ctx context.Context, id string, p guest.Process, stdin io.Reader, started func(int), out func(guest.Stream, []byte) error) (guest.Exit, error) {
	if _, err := c.process(""); err != nil {
		return guest.Exit{}, err
	}
	proc, err := c.sys.Start(p, false)
	if err != nil {
		return guest.Exit{}, err
	}
	c.mu.Lock()
	c.execs[id] = proc
	c.mu.Unlock()
	started(proc.Pid())
	if w := proc.Stdin(); w != nil {
		go func() {
			_, _ = io.Copy(w, stdin)
			w.Close()
		}()
	}
	var (
		pumps sync.WaitGroup
		one   sync.Mutex // out is called by one goroutine at a time
	)
	stdout, stderr := proc.Outputs()
	for stream, r := range map[guest.Stream]io.Reader{guest.Stdout: stdout, guest.Stderr: stderr} {
		if r != nil {
			pumps.Go(func() {
				pump(r, func(data []byte) error {
					one.Lock()
					defer one.Unlock()
					return out(stream, data)
				})
			})
		}
	}
	ended := make(chan guest.Exit, 1)
	go func() {
		exit := proc.Wait()
		drained := make(chan struct{})
		go func() { pumps.Wait(); close(drained) }()
		select {
		case <-drained:
		case <-time.After(execGrace): // children that outlive the process hold its streams; its client does not wait for them
		}
		c.mu.Lock()
		delete(c.execs, id)
		c.mu.Unlock()
		ended <- exit
	}()
	select {
	case exit := <-ended:
		return exit, nil
	case <-ctx.Done():
		return guest.Exit{}, ctx.Err()
	}
}

// Top is guest.Handler.Top.
func (c *Core) Top(context.Context) ([]guest.ProcessInfo, error) {
	if _, err := c.process(""); err != nil {
		return nil, err
	}
	return c.sys.Top()
}

// Stats is guest.Handler.Stats.
func (c *Core) Stats(context.Context) (guest.Stats, error) {
	if _, err := c.process(""); err != nil {
		return guest.Stats{}, err
	}
	return c.sys.Stats()
}

// SetLimits is guest.Handler.SetLimits.
func (c *Core) SetLimits(_ context.Context, l guest.Limits) error {
	if _, err := c.process(""); err != nil {
		return err
	}
	return c.sys.SetLimits(l)
}

// SetStill is guest.Handler.SetStill.
func (c *Core) SetStill(_ context.Context, still bool) error {
	if _, err := c.process(""); err != nil {
		return err
	}
	return c.sys.SetStill(still)
}

// Shutdown is guest.Handler.Shutdown.
func (c *Core) Shutdown(context.Context) error {
	c.mu.Lock()
	serving := c.status.Phase == guest.Running && c.main == nil
	c.mu.Unlock()
	if !serving {
		return c.sys.PowerOff()
	}
	c.endCopies(0)
	err := c.sys.Release()
	c.set(func(st *guest.Status) { st.Phase, st.Finished = guest.Exited, time.Now() })
	return errors.Join(err, c.sys.PowerOff())
}
