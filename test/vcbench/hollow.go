package main

import (
	"context"
	"crypto/tls"
	"encoding/json"
	"errors"
	"io"
	"net"
	"sync"
	"syscall"
	"time"

	"vch/guest"
	"vch/hypervisor/vsphere/vcsim"
	"vch/internal/fault"
	"vch/internal/pause"
)

// hollow are machines of which the guest's end of the protocol alone runs: a start, an exit, a signal are what the daemon sees of them. A container whose command has the word "exit" in
// it ends at once, every other when it gets a signal.
type hollow struct{}

// Start implements vcsim.Machines.
func (hollow) Start(_ context.Context, m vcsim.Machine, off func()) (vcsim.Running, error) {
	var contact guest.Contact
	if err := json.Unmarshal([]byte(m.GuestInfo[guest.ContactKey]), &contact); err != nil {
		return nil, err
	}
	identity, err := guest.NewIdentity(contact.Machine)
	if err != nil {
		return nil, err
	}
	r := &hollowMachine{off: off, status: guest.Status{Phase: guest.Waiting}, changed: make(chan struct{})}
	if packed := m.GuestInfo[guest.ConfigKey(0)]; packed != "" { // one piece: these commands are short
		if r.carried, err = guest.Unpack(packed); err != nil {
			return nil, err
		}
	}
	r.ctx, r.cancel = context.WithCancel(context.Background())
	r.work.Go(func() {
		r.keep(contact, identity, guest.ForChannel, func(conn net.Conn) { _ = guest.Serve(r.ctx, conn, handler{hollowMachine: r}) })
	})
	r.work.Go(func() {
		r.keep(contact, identity, guest.ForFrames, func(conn net.Conn) {
			stop := context.AfterFunc(r.ctx, func() { conn.Close() })
			defer stop()
			_, _ = io.Copy(io.Discard, conn)
			conn.Close()
		})
	})
	return r, nil
}

// Close implements vcsim.Machines.
func (hollow) Close() error { return nil }

// hollowMachine implements vcsim.Running.
type hollowMachine struct {
	off     func()
	carried guest.ExecutorConfig
	ctx     context.Context // ends with the machine
	cancel  context.CancelFunc
	work    sync.WaitGroup
	once    sync.Once // for off

	mu      sync.Mutex // guards below
	status  guest.Status
	changed chan struct{}
}

// redial is how long a guest waits before it comes again.
const redial = 200 * time.Millisecond

// keep has a connection for a purpose as long as the machine is on.
func (r *hollowMachine) keep(contact guest.Contact, identity tls.Certificate, purpose guest.Purpose, use func(net.Conn)) {
	for r.ctx.Err() == nil {
		var d net.Dialer
		conn, err := d.DialContext(r.ctx, "tcp", contact.Address)
		if err == nil {
			conn, err = contact.Call(r.ctx, conn, identity, purpose)
		}
		if err == nil {
			use(conn)
			continue
		}
		_ = pause.For(r.ctx, redial) // if it is over, so is this
	}
}

func (r *hollowMachine) end() { r.cancel() }

// Stop implements vcsim.Running.
func (r *hollowMachine) Stop() error {
	r.once.Do(func() {})
	r.end()
	r.work.Wait()
	return nil
}

// Fail implements vcsim.Running.
func (r *hollowMachine) Fail() {
	r.end()
	r.once.Do(func() { go r.off() })
}

// What follows implements vcsim.Running: there is nothing to do.
func (*hollowMachine) Suspend(context.Context) error            { return nil }
func (*hollowMachine) Resume(context.Context) error             { return nil }
func (*hollowMachine) PlugAdapter(context.Context, int) error   { return nil }
func (*hollowMachine) Plug(context.Context, vcsim.Disk) error   { return nil }
func (*hollowMachine) Unplug(context.Context, vcsim.Disk) error { return nil }
func (*hollowMachine) Resize(context.Context, vcsim.Disk) error { return nil }
func (*hollowMachine) Console() []byte                          { return nil }
func (*hollowMachine) Pid() int                                 { return 0 }
func (r *hollowMachine) set(change func(*guest.Status)) {
	r.mu.Lock()
	defer r.mu.Unlock()
	change(&r.status)
	close(r.changed)
	r.changed = make(chan struct{})
}

func (r *hollowMachine) now() (guest.Status, <-chan struct{}) {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.status, r.changed
}

func (r *hollowMachine) exit(e guest.Exit) {
	r.set(func(s *guest.Status) { s.Phase, s.Exit, s.Finished = guest.Exited, e, time.Now().UTC() })
}

// handler implements guest.Handler as far as is called here. What is not panics: nothing that is measured asks for it.
type handler struct {
	guest.Handler
	*hollowMachine
}

// Configure is guest.Handler.Configure.
func (h handler) Configure(_ context.Context, cfg guest.ExecutorConfig) (err error) {
	if cfg.AtStart {
		if cfg, err = h.carried.With(cfg); err != nil {
			return err
		}
	}
	if cfg.Process == nil {
		return fault.New(fault.Unsupported, "nothing runs here but processes that do nothing")
	}
	h.set(func(s *guest.Status) { s.Phase, s.Pid, s.Started = guest.Running, 1, time.Now().UTC() })
	if ends(cfg.Process.Args) {
		h.exit(guest.Exit{})
	}
	return nil
}

// exitWord in its arguments ends a process at once.
const exitWord = "exit"

func ends(args []string) bool { return len(args) > 1 && args[1] == exitWord }

// Reset is guest.Handler.Reset.
func (h handler) Reset(context.Context) error { return fault.New(fault.Conflict, "no rehearsal") }

// Status is guest.Handler.Status.
func (h handler) Status() guest.Status { s, _ := h.now(); return s }

// Changed is guest.Handler.Changed.
func (h handler) Changed() <-chan struct{} { _, c := h.now(); return c }

// Output is guest.Handler.Output: there is none.
func (h handler) Output(ctx context.Context, _, _ uint64) (guest.Frame, error) {
	for {
		s, changed := h.now()
		if s.Phase == guest.Exited {
			return guest.Frame{}, io.EOF
		}
		select {
		case <-changed:
		case <-ctx.Done():
			return guest.Frame{}, ctx.Err()
		case <-h.ctx.Done():
			return guest.Frame{}, errors.New("the machine is off")
		}
	}
}

// Forget is guest.Handler.Forget.
func (handler) Forget(uint64) {}

// Signal is guest.Handler.Signal: every one ends the process.
func (h handler) Signal(_ context.Context, _ string, n int) error {
	h.exit(guest.Exit{Code: 128 + n, Signal: n})
	return nil
}

// Resize is guest.Handler.Resize.
func (handler) Resize(context.Context, string, uint16, uint16) error { return nil }

// Rooms is guest.Handler.Rooms.
func (handler) Rooms(context.Context) ([]guest.Room, error) { return nil, nil }

// SetStill is guest.Handler.SetStill.
func (handler) SetStill(context.Context, bool) error { return nil }

// SetClock is guest.Handler.SetClock.
func (handler) SetClock(context.Context, time.Time) error { return nil }

// SetNetwork is guest.Handler.SetNetwork.
func (handler) SetNetwork(context.Context, guest.Network) error { return nil }

// SetLimits is guest.Handler.SetLimits.
func (handler) SetLimits(context.Context, guest.Limits) error { return nil }

// Host is guest.Handler.Host.
func (handler) Host(guest.Asker) {}

// Shutdown is guest.Handler.Shutdown.
func (h handler) Shutdown(context.Context) error {
	h.set(func(s *guest.Status) {
		if s.Phase == guest.Running {
			s.Phase, s.Exit = guest.Exited, guest.Exit{Code: 128 + int(syscall.SIGKILL)}
		}
	})
	h.Fail()
	return nil
}
