package tether

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"reflect"
	"slices"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"vch/guest"
	"vch/internal/fault"
)

// system is an operating system whose processes do what a test tells them.
type system struct {
	prepareErr, startErr, releaseErr, networkErr error

	mu       sync.Mutex // guards below
	prepared int
	released int
	renewed  int
	networks []guest.Network
	clock    time.Time
	ask      func(context.Context, []byte) ([]byte, error)
	mounts   []string // what Mount and Unmount did, in order
	mountErr error
	waits    bool // Mount waits for its context's end
	off      bool
	procs    []*proc
}

func (s *system) Prepare(context.Context, guest.ExecutorConfig) ([]guest.Timing, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.prepared++
	return []guest.Timing{{Name: "mount", Took: 1}}, s.prepareErr
}

func (s *system) Renew() error { s.renewed++; return nil }

func (s *system) Start(p guest.Process, _ bool) (Proc, error) {
	if s.startErr != nil {
		return nil, s.startErr
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	pr := newProc(p)
	s.procs = append(s.procs, pr)
	return pr, nil
}

func (s *system) Mount(ctx context.Context, m guest.MountSpec) error {
	s.mu.Lock()
	s.mounts = append(s.mounts, "mount "+m.Target)
	err, waits := s.mountErr, s.waits
	s.mu.Unlock()
	if waits {
		<-ctx.Done()
		err = ctx.Err()
	}
	return err
}

func (s *system) Unmount(target string) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.mounts = append(s.mounts, "unmount "+target)
	return s.mountErr
}

func (s *system) Freeze(source guest.Source) (func() error, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.mounts = append(s.mounts, "freeze "+source)
	return func() error {
		s.mu.Lock()
		defer s.mu.Unlock()
		s.mounts = append(s.mounts, "thaw "+source)
		return nil
	}, s.mountErr
}

func (s *system) Grow(_ context.Context, source guest.Source, size int64) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.mounts = append(s.mounts, fmt.Sprintf("grow %s %d", source, size))
	return s.mountErr
}

func (s *system) SetClock(now time.Time) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.clock = now
	return nil
}

func (s *system) Network(n guest.Network, ask func(context.Context, []byte) ([]byte, error)) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.networks, s.ask = append(s.networks, n), ask
	return s.networkErr
}

func (s *system) Rooms() ([]guest.Room, error) {
	return []guest.Room{{Source: "label://x", Total: 2, Free: 1}}, nil
}

func (s *system) Release() error {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.released++
	return s.releaseErr
}

func (s *system) releases() int {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.released
}

func (s *system) Top() ([]guest.ProcessInfo, error) { return []guest.ProcessInfo{{PID: 1}}, nil }

func (s *system) Stats() (guest.Stats, error) { return guest.Stats{Pids: 1}, nil }

func (s *system) SetLimits(guest.Limits) error { return nil }

func (s *system) SetStill(bool) error { return nil }

func (s *system) Changes() ([]guest.Change, error) { return nil, nil }

func (s *system) PowerOff() error { s.off = true; return nil }

func (s *system) Stat(guest.StatRequest) (guest.Located, error) {
	return guest.Located{Path: "/found"}, nil
}

// Archive writes for ever.
func (s *system) Archive(_ guest.ArchiveRequest, out io.Writer) ([]guest.Skipped, error) {
	for {
		if _, err := out.Write(make([]byte, 1<<10)); err != nil {
			return nil, err
		}
	}
}

// Extract reads to the end.
func (s *system) Extract(_ guest.ExtractRequest, in io.Reader) error {
	_, err := io.Copy(io.Discard, in)
	return err
}

// proc is a process that writes and ends when a test says so.
type proc struct {
	out, err       *io.PipeWriter
	stdout, stderr *io.PipeReader
	in             *io.PipeReader
	typed          *io.PipeWriter
	ended          chan guest.Exit
	signals        []int
}

func newProc(p guest.Process) *proc {
	pr := &proc{ended: make(chan guest.Exit, 1)}
	pr.stdout, pr.out = io.Pipe()
	pr.stderr, pr.err = io.Pipe()
	if p.Stdin {
		pr.in, pr.typed = io.Pipe()
	}
	return pr
}

func (p *proc) Pid() int { return 77 }
func (p *proc) Stdin() io.WriteCloser {
	if p.typed == nil {
		return nil
	}
	return p.typed
}
func (p *proc) Outputs() (io.Reader, io.Reader)  { return p.stdout, p.stderr }
func (p *proc) Wait() guest.Exit                 { return <-p.ended }
func (p *proc) Signal(n int) error               { p.signals = append(p.signals, n); return nil }
func (p *proc) Resize(rows, cols uint16) error   { return nil }
func (p *proc) exit(e guest.Exit)                { p.out.Close(); p.err.Close(); p.ended <- e }
func (p *proc) say(t *testing.T, text string)    { write(t, p.out, text) }
func (p *proc) mutter(t *testing.T, text string) { write(t, p.err, text) }

func write(t *testing.T, w io.Writer, text string) {
	t.Helper()
	if _, err := io.WriteString(w, text); err != nil {
		t.Error(err)
	}
}

func config(id string) guest.ExecutorConfig {
	return guest.ExecutorConfig{ID: id, Process: &guest.Process{Args: []string{"x"}, Stdin: true}}
}

// started is a core whose process runs.
func started(t *testing.T, s *system) (*Core, *proc) {
	t.Helper()
	c := NewCore(s, []guest.Timing{{Name: "boot", Took: 5}})
	if err := c.Configure(t.Context(), config("c1")); err != nil {
		t.Fatal(err)
	}
	return c, s.procs[0]
}

func TestLifeOfAProcess(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := &system{}
		c := NewCore(s, []guest.Timing{{Name: "boot", Took: 5}})
		if st := c.Status(); st.Phase != guest.Waiting {
			t.Errorf("phase %s", st.Phase)
		}
		if err := c.Signal(t.Context(), "", 15); !fault.Is(err, fault.Conflict) {
			t.Errorf("signal before the start: %v", err)
		}
		if _, err := c.Stdin(); !fault.Is(err, fault.Conflict) {
			t.Errorf("stdin before the start: %v", err)
		}
		if err := c.Configure(t.Context(), guest.ExecutorConfig{}); !fault.Is(err, fault.Invalid) {
			t.Errorf("config without an id: %v", err)
		}
		time.Sleep(time.Second) // of the fake clock: what the tether waited
		changed := c.Changed()
		if err := c.Configure(t.Context(), config("c1")); err != nil {
			t.Fatal(err)
		}
		select {
		case <-changed:
		default:
			t.Error("the change of status was not told")
		}
		st := c.Status()
		if st.Phase != guest.Running || st.Pid != 77 || !st.Started.Equal(time.Now()) {
			t.Errorf("status %+v", st)
		}
		names := ""
		for _, tm := range st.Timings {
			names += tm.Name + " "
		}
		if names != "boot tether mount process " || st.Timings[1].Took != time.Second {
			t.Errorf("timings %+v", st.Timings)
		}
		if err := c.Configure(t.Context(), config("c1")); err != nil || s.prepared != 1 {
			t.Errorf("the same config again: %v; it was prepared %d times", err, s.prepared)
		}
		if err := c.Configure(t.Context(), config("c2")); !fault.Is(err, fault.Conflict) {
			t.Errorf("another config: %v", err)
		}
		p := s.procs[0]
		if err := c.Signal(t.Context(), "", 3); err != nil || len(p.signals) != 1 || p.signals[0] != 3 {
			t.Errorf("signals %v, %v", p.signals, err)
		}
		if err := c.Signal(t.Context(), "nobody", 3); !fault.Is(err, fault.NotFound) {
			t.Errorf("signal to an exec that is not: %v", err)
		}
		p.exit(guest.Exit{Code: 4})
		synctest.Wait()
		if st := c.Status(); st.Phase != guest.Exited || st.Exit.Code != 4 || st.Error != nil || s.released != 1 || st.Pid != 0 {
			t.Errorf("status %+v, released %d times", st, s.released)
		}
		if err := c.Signal(t.Context(), "", 15); !fault.Is(err, fault.Conflict) {
			t.Errorf("signal after the end: %v", err)
		}
		if _, err := c.Top(t.Context()); !fault.Is(err, fault.Conflict) {
			t.Errorf("top after the end: %v", err)
		}
		if err := c.Shutdown(t.Context()); err != nil || !s.off {
			t.Errorf("shutdown: %v, off %v", err, s.off)
		}
	})
}

// A start that fails is told to whoever asks, in the same words, and leaves nothing mounted.
func TestFailedStart(t *testing.T) {
	reason := fault.New(fault.NotFound, "no such disk")
	for name, s := range map[string]*system{"prepare": {prepareErr: reason}, "start": {startErr: reason}} {
		c := NewCore(s, nil)
		for range 2 {
			if err := c.Configure(t.Context(), config("c1")); !fault.Is(err, fault.NotFound) || err.Error() != "no such disk" {
				t.Errorf("%s: %v", name, err)
			}
		}
		if st := c.Status(); st.Phase != guest.Failed || st.Error == nil || *st.Error != (guest.Fault{Kind: "not found", Text: "no such disk"}) {
			t.Errorf("%s: status %+v", name, st)
		}
		if s.released != 1 || s.prepared != 1 {
			t.Errorf("%s: prepared %d times, released %d", name, s.prepared, s.released)
		}
		if _, err := c.Output(t.Context(), 0, 1); err != io.EOF {
			t.Errorf("%s: output: %v", name, err)
		}
	}
}

func TestUtilityMachineIsDoneAtOnce(t *testing.T) {
	s := &system{}
	c := NewCore(s, nil)
	if err := c.Configure(t.Context(), guest.ExecutorConfig{ID: "u"}); err != nil {
		t.Fatal(err)
	}
	if st := c.Status(); st.Phase != guest.Exited || st.Exit.Code != 0 || s.released != 1 {
		t.Errorf("status %+v, released %d times", st, s.released)
	}
	if _, err := c.Output(t.Context(), 0, 1); err != io.EOF {
		t.Errorf("output: %v", err)
	}
}

// What could not be unmounted is told beside the exit, which stands.
func TestUnmountFailureIsTold(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c, p := started(t, &system{releaseErr: errors.New("busy")})
		p.exit(guest.Exit{Code: 0})
		synctest.Wait()
		if st := c.Status(); st.Phase != guest.Exited || st.Error == nil || st.Error.Text != "not everything was unmounted: busy" {
			t.Errorf("status %+v, error %+v", st, st.Error)
		}
	})
}

func TestFramesAreNumberedOverBothStreams(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c, p := started(t, &system{})
		p.say(t, "a")
		synctest.Wait()
		p.mutter(t, "b")
		synctest.Wait()
		p.say(t, "c")
		p.exit(guest.Exit{})
		for i, want := range []guest.Frame{{Number: 1, Stream: guest.Stdout, Data: []byte("a")}, {Number: 2, Stream: guest.Stderr, Data: []byte("b")}, {Number: 3, Stream: guest.Stdout, Data: []byte("c")}} {
			f, err := c.Output(t.Context(), 0, uint64(i+1))
			if err != nil || f.Number != want.Number || f.Stream != want.Stream || !bytes.Equal(f.Data, want.Data) {
				t.Errorf("frame %+v, %v, want %+v", f, err, want)
			}
		}
		if _, err := c.Output(t.Context(), 0, 4); err != io.EOF {
			t.Errorf("after the last: %v", err)
		}
		if _, err := c.Output(t.Context(), 0, 6); !fault.Is(err, fault.Invalid) {
			t.Errorf("far after the last: %v", err)
		}
		if f, err := c.Output(t.Context(), 2, 3); err != nil || string(f.Data) != "c" {
			t.Errorf("frame 3 after 2 were acknowledged: %+v, %v", f, err)
		}
		if _, err := c.Output(t.Context(), 0, 2); !fault.Is(err, fault.Invalid) {
			t.Errorf("an acknowledged frame: %v", err)
		}
		c.Forget(3)
		if _, err := c.Output(t.Context(), 3, 4); err != io.EOF {
			t.Errorf("after all were acknowledged: %v", err)
		}
		if st := c.Status(); st.Frames != 3 {
			t.Errorf("%d frames", st.Frames)
		}
	})
}

func TestOutputWaitsAndGivesUp(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c, p := started(t, &system{})
		ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
		defer cancel()
		if _, err := c.Output(ctx, 0, 1); !errors.Is(err, context.DeadlineExceeded) {
			t.Errorf("a silent process: %v", err)
		}
		got := make(chan guest.Frame, 1)
		go func() {
			f, err := c.Output(t.Context(), 0, 1)
			if err != nil {
				t.Error(err)
			}
			got <- f
		}()
		synctest.Wait()
		p.say(t, "late")
		if f := <-got; string(f.Data) != "late" {
			t.Errorf("frame %+v", f)
		}
		p.exit(guest.Exit{})
	})
}

// A process that writes more than may be held waits, loses nothing, and goes on when the host acknowledges. Meanwhile it has not exited.
func TestFullOutputHoldsTheProcessBack(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c, p := started(t, &system{})
		const total = 3 * maxHeld
		var written int
		go func() {
			for chunk := bytes.Repeat([]byte("x"), guest.MaxFrame); written < total; written += len(chunk) {
				if _, err := p.out.Write(chunk); err != nil {
					t.Error(err)
					break
				}
			}
			p.exit(guest.Exit{Code: 6})
		}()
		synctest.Wait()
		if written < maxHeld || written > maxHeld+2*guest.MaxFrame {
			t.Errorf("the process wrote %d bytes before it had to wait, want %d or a frame more", written, maxHeld)
		}
		if st := c.Status(); st.Phase != guest.Running {
			t.Errorf("phase %s", st.Phase)
		}
		var got int
		for n := uint64(1); ; n++ {
			f, err := c.Output(t.Context(), n-1, n)
			if err == io.EOF {
				break
			}
			if err != nil {
				t.Fatal(err)
			}
			got += len(f.Data)
		}
		if got != total {
			t.Errorf("%d bytes, want %d", got, total)
		}
		synctest.Wait()
		if st := c.Status(); st.Phase != guest.Exited || st.Exit.Code != 6 {
			t.Errorf("status %+v", st)
		}
	})
}

// exec runs a process beside the container's own and gives it to the test once it runs.
func exec(ctx context.Context, s *system, c *Core, in io.Reader, out func(guest.Stream, []byte) error) (*proc, <-chan guest.Exit, <-chan error) {
	running, exits, errs := make(chan struct{}), make(chan guest.Exit, 1), make(chan error, 1)
	go func() {
		e, err := c.Exec(ctx, "e1", guest.Process{Args: []string{"y"}, Stdin: true}, in, func(int) { close(running) }, out)
		exits <- e
		errs <- err
	}()
	<-running
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.procs[len(s.procs)-1], exits, errs
}

func TestExecHasItsOwnStreams(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := &system{}
		c, main := started(t, s)
		var out, errs bytes.Buffer
		p, exits, failed := exec(t.Context(), s, c, bytes.NewReader([]byte("typed")), func(st guest.Stream, b []byte) error {
			if st == guest.Stderr {
				errs.Write(b)
			} else {
				out.Write(b)
			}
			return nil
		})
		if in, err := io.ReadAll(p.in); err != nil || string(in) != "typed" {
			t.Errorf("input %q, %v", in, err)
		}
		if err := c.Signal(t.Context(), "e1", 2); err != nil || len(p.signals) != 1 || len(main.signals) != 0 {
			t.Errorf("signal: %v, exec got %v, main %v", err, p.signals, main.signals)
		}
		p.say(t, "o")
		p.mutter(t, "e")
		p.exit(guest.Exit{Code: 9})
		if e, err := <-exits, <-failed; e.Code != 9 || err != nil || out.String() != "o" || errs.String() != "e" {
			t.Errorf("exit %+v, %v, stdout %q, stderr %q", e, err, out.String(), errs.String())
		}
		if st := c.Status(); st.Frames != 0 {
			t.Errorf("%d frames of an exec are the container's", st.Frames)
		}
		if err := c.Signal(t.Context(), "e1", 2); !fault.Is(err, fault.NotFound) {
			t.Errorf("signal after its end: %v", err)
		}
		main.exit(guest.Exit{})
	})
}

// Children that hold an exec's streams do not keep its client, nor does a client that leaves end the process.
func TestExecDoesNotWaitForChildren(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := &system{}
		c, main := started(t, s)
		p, exits, failed := exec(t.Context(), s, c, new(bytes.Buffer), func(guest.Stream, []byte) error { return nil })
		began := time.Now()
		p.ended <- guest.Exit{Code: 2} // its streams stay open
		if e, err := <-exits, <-failed; e.Code != 2 || err != nil {
			t.Errorf("exit %+v, %v", e, err)
		}
		if took := time.Since(began); took != execGrace {
			t.Errorf("it took %v, want %v", took, execGrace)
		}
		p.out.Close()
		p.err.Close()

		ctx, cancel := context.WithCancel(t.Context())
		p, _, failed = exec(ctx, s, c, new(bytes.Buffer), func(guest.Stream, []byte) error { return errors.New("gone") })
		cancel()
		if err := <-failed; !errors.Is(err, context.Canceled) {
			t.Errorf("an exec that was left: %v", err)
		}
		for range 3 {
			p.say(t, "to nobody") // does not block
		}
		if err := c.Signal(t.Context(), "e1", 15); err != nil || len(p.signals) != 1 {
			t.Errorf("signal to an exec that was left: %v", err)
		}
		p.exit(guest.Exit{})
		main.exit(guest.Exit{})
	})
}

// Archives are there while the mounts are, and no longer than a grace after the process's end: then whoever reads or writes one hears why.
func TestArchivesEndWithTheMounts(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := &system{}
		c := NewCore(s, nil)
		if _, err := c.Stat(t.Context(), guest.StatRequest{}); !fault.Is(err, fault.Conflict) {
			t.Errorf("before the config: %v", err)
		}
		c, p := started(t, s)
		if l, err := c.Stat(t.Context(), guest.StatRequest{}); err != nil || l.Path != "/found" {
			t.Errorf("%+v, %v", l, err)
		}
		stop := errors.New("stop")
		if _, err := c.Archive(t.Context(), guest.ArchiveRequest{}, func([]byte) error { return stop }); !errors.Is(err, stop) {
			t.Errorf("an archive that is not taken: %v", err)
		}
		ctx, cancel := context.WithCancel(t.Context())
		if _, err := c.Archive(ctx, guest.ArchiveRequest{}, func([]byte) error { cancel(); return nil }); !errors.Is(err, context.Canceled) {
			t.Errorf("an archive that was given up: %v", err)
		}
		if err := c.Extract(t.Context(), guest.ExtractRequest{}, bytes.NewReader(make([]byte, 5000))); err != nil {
			t.Error(err)
		}

		out, in := make(chan error, 1), make(chan error, 1)
		taken := make(chan struct{})
		go func() {
			_, err := c.Archive(t.Context(), guest.ArchiveRequest{}, func([]byte) error { <-taken; return nil }) // a client that stalls
			out <- err
		}()
		stalled, typed := io.Pipe()
		go func() { in <- c.Extract(t.Context(), guest.ExtractRequest{}, stalled) }()
		synctest.Wait()
		p.exit(guest.Exit{})
		synctest.Wait()
		if st := c.Status(); st.Phase != guest.Running || s.releases() != 0 {
			t.Errorf("unmounted below an archive: %s, released %d times", st.Phase, s.releases())
		}
		if _, err := c.Stat(t.Context(), guest.StatRequest{}); !fault.Is(err, fault.Conflict) {
			t.Errorf("a new one after the end: %v", err)
		}
		time.Sleep(copyGrace)
		synctest.Wait()
		if st := c.Status(); st.Phase != guest.Exited || s.releases() != 1 {
			t.Errorf("after the grace: %s, released %d times", st.Phase, s.releases())
		}
		close(taken)
		if err := <-out; !fault.Is(err, fault.Conflict) {
			t.Errorf("an archive that was cut off: %v", err)
		}
		if err := <-in; !fault.Is(err, fault.Conflict) {
			t.Errorf("an extraction that was cut off: %v", err)
		}
		typed.Close()
	})
}

// A machine without a process serves archives until its shutdown, which unmounts.
func TestServing(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := &system{}
		c := NewCore(s, nil)
		cfg := guest.ExecutorConfig{ID: "c1", Serve: true}
		for range 2 {
			if err := c.Configure(t.Context(), cfg); err != nil {
				t.Fatal(err)
			}
		}
		if st := c.Status(); st.Phase != guest.Running || st.Pid != 0 || s.prepared != 1 || s.releases() != 0 {
			t.Errorf("%+v, prepared %d times, released %d times", st, s.prepared, s.releases())
		}
		if l, err := c.Stat(t.Context(), guest.StatRequest{}); err != nil || l.Path != "/found" {
			t.Errorf("%+v, %v", l, err)
		}
		if err := c.Signal(t.Context(), "", 15); !fault.Is(err, fault.Conflict) {
			t.Errorf("a signal to no process: %v", err)
		}
		if err := c.Shutdown(t.Context()); err != nil {
			t.Error(err)
		}
		if st := c.Status(); st.Phase != guest.Exited || s.releases() != 1 || !s.off {
			t.Errorf("after the shutdown: %+v, released %d times, off %v", st, s.releases(), s.off)
		}
		if _, err := c.Stat(t.Context(), guest.StatRequest{}); !fault.Is(err, fault.Conflict) {
			t.Errorf("after the shutdown: %v", err)
		}
	})
}

// Only a rehearsal leaves a machine that can be used again, and then nothing of it is left to see.
func TestReset(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := &system{}
		c := NewCore(s, []guest.Timing{{Name: "boot", Took: 5}})
		if err := c.Reset(t.Context()); !fault.Is(err, fault.Conflict) {
			t.Errorf("reset of a machine that waits: %v", err)
		}
		cfg := config("rehearsal")
		cfg.Rehearsal = true
		if err := c.Configure(t.Context(), cfg); err != nil {
			t.Fatal(err)
		}
		if err := c.Reset(t.Context()); !fault.Is(err, fault.Conflict) {
			t.Errorf("reset while the process runs: %v", err)
		}
		s.procs[0].say(t, "hello")
		s.procs[0].exit(guest.Exit{Code: 3})
		synctest.Wait()
		if err := c.Reset(t.Context()); err != nil || s.renewed != 1 {
			t.Fatalf("reset: %v, renewed %d times", err, s.renewed)
		}
		if st := c.Status(); !reflect.DeepEqual(st, guest.Status{Phase: guest.Waiting}) {
			t.Errorf("status after the reset: %+v", st)
		}
		if err := c.Configure(t.Context(), config("c1")); err != nil {
			t.Fatal(err)
		}
		if st := c.Status(); slices.ContainsFunc(st.Timings, func(x guest.Timing) bool { return x.Name == "boot" || x.Name == "tether" }) {
			t.Errorf("a machine that was used again tells of its boot: %v", st.Timings)
		}
		s.procs[1].say(t, "world")
		f, err := c.Output(t.Context(), 0, 1)
		if err != nil || string(f.Data) != "world" {
			t.Errorf("the first output is %q, %v", f.Data, err)
		}
		s.procs[1].exit(guest.Exit{})
		synctest.Wait()
		if err := c.Reset(t.Context()); !fault.Is(err, fault.Conflict) {
			t.Errorf("reset after a container's process: %v", err)
		}
	})
}
