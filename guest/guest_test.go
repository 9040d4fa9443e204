package guest

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net"
	"reflect"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"go.uber.org/goleak"

	"vch/internal/fault"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// handler is a guest of a few lines: it keeps what it was told, and its frames until they are acknowledged.
type handler struct {
	fail error         // what every call answers, if set
	in   chan []byte   // what came on stdin
	eof  chan struct{} // closed by stdin's end
	busy chan struct{} // closed when an exec's context ended, or an archive was not taken any more

	extracted chan string
	host      chan Asker

	mu      sync.Mutex // guards below
	config  ExecutorConfig
	status  Status
	changed chan struct{}
	told    []string
	first   uint64 // number of frames[0]
	frames  []Frame
	done    bool
	asked   uint64 // the greatest frame that was asked for
}

func newHandler() *handler {
	return &handler{in: make(chan []byte, 100), eof: make(chan struct{}), busy: make(chan struct{}), extracted: make(chan string, 100), host: make(chan Asker, 100), changed: make(chan struct{}), status: Status{Phase: Waiting}, first: 1}
}

// wrote appends output.
func (h *handler) wrote(s Stream, data []byte, last bool) {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.frames = append(h.frames, Frame{Number: h.first + uint64(len(h.frames)), Stream: s, Data: data})
	h.done = last
	h.change()
}

// change tells of a change. The caller holds mu.
func (h *handler) change() {
	close(h.changed)
	h.changed = make(chan struct{})
}

func (h *handler) note(format string, args ...any) error {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.told = append(h.told, fmt.Sprintf(format, args...))
	return h.fail
}

func (h *handler) Configure(_ context.Context, cfg ExecutorConfig) error {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.config = cfg
	h.status.Phase = Running
	h.change()
	return h.fail
}

func (h *handler) Reset(context.Context) error { return h.note("reset") }

func (h *handler) Status() Status {
	h.mu.Lock()
	defer h.mu.Unlock()
	return h.status
}

func (h *handler) Changed() <-chan struct{} {
	h.mu.Lock()
	defer h.mu.Unlock()
	return h.changed
}

func (h *handler) Output(ctx context.Context, acked, n uint64) (Frame, error) {
	h.Forget(acked)
	for {
		h.mu.Lock()
		h.asked = max(h.asked, n)
		end, changed := h.first+uint64(len(h.frames)), h.changed
		switch {
		case n < h.first:
			h.mu.Unlock()
			return Frame{}, fault.New(fault.Invalid, "frame %d is gone", n)
		case n < end:
			f := h.frames[n-h.first]
			h.mu.Unlock()
			return f, nil
		case h.done:
			h.mu.Unlock()
			return Frame{}, io.EOF
		}
		h.mu.Unlock()
		select {
		case <-changed:
		case <-ctx.Done():
			return Frame{}, ctx.Err()
		}
	}
}

func (h *handler) Forget(acked uint64) {
	h.mu.Lock()
	defer h.mu.Unlock()
	for len(h.frames) > 0 && h.first <= acked {
		h.first, h.frames = h.first+1, h.frames[1:]
	}
}

type stdinOf struct{ h *handler }

func (w stdinOf) Write(p []byte) (int, error) {
	w.h.in <- bytes.Clone(p)
	return len(p), nil
}
func (w stdinOf) Close() error { close(w.h.eof); return nil }

func (h *handler) Stdin() (io.WriteCloser, error) { return stdinOf{h}, h.fail }

func (h *handler) Signal(_ context.Context, exec string, n int) error {
	return h.note("signal %q %d", exec, n)
}

func (h *handler) Resize(_ context.Context, exec string, rows, cols uint16) error {
	return h.note("resize %q %d %d", exec, rows, cols)
}

// Exec sends its input back in capitals, a note on stderr, and the length as its exit code; "hang" waits for its context.
func (h *handler) Exec(ctx context.Context, id string, p Process, stdin io.Reader, started func(int), out func(Stream, []byte) error) (Exit, error) {
	if err := h.note("exec %q %v", id, p.Args); err != nil {
		return Exit{}, err
	}
	started(42)
	if p.Args[0] == "hang" {
		<-ctx.Done()
		close(h.busy)
		return Exit{}, ctx.Err()
	}
	data, err := io.ReadAll(stdin)
	if err != nil {
		return Exit{}, err
	}
	if err := out(Stderr, []byte("noted")); err != nil {
		return Exit{}, err
	}
	if err := out(Stdout, bytes.ToUpper(data)); err != nil {
		return Exit{}, err
	}
	return Exit{Code: len(data)}, nil
}

func (h *handler) Top(context.Context) ([]ProcessInfo, error) {
	return []ProcessInfo{{PID: 1, UID: "root", CPU: time.Second, Start: time.Unix(7, 0).UTC(), TTY: "?", Args: "a b"}}, h.note("top")
}

func (h *handler) Mount(_ context.Context, m MountSpec) error { return h.note("mount %+v", m) }

func (h *handler) Unmount(_ context.Context, target string) error {
	return h.note("unmount %q", target)
}

func (h *handler) Freeze(_ context.Context, source Source, limit time.Duration) error {
	return h.note("freeze %s %v", source, limit)
}

func (h *handler) Thaw(_ context.Context, source Source) error { return h.note("thaw %s", source) }

func (h *handler) Grow(_ context.Context, source Source, size int64) error {
	return h.note("grow %s %d", source, size)
}

func (h *handler) SetNetwork(_ context.Context, n Network) error { return h.note("network %+v", n) }

func (h *handler) SetClock(_ context.Context, now time.Time) error {
	return h.note("clock %d", now.Unix())
}

func (h *handler) Stats(context.Context) (Stats, error) {
	return Stats{Read: time.Unix(7, 0).UTC(), CPU: CPUStats{Total: 1 << 60, Online: 2}, Memory: MemoryStats{Usage: 1 << 40, Detail: map[string]uint64{"file": 1 << 63}}, PidsMax: 3,
		Disks: []DiskStats{{Major: 8, Writes: 1 << 63}}, Interfaces: map[string]InterfaceStats{"eth0": {RxBytes: 1 << 63}}}, h.note("stats")
}

func (h *handler) SetStill(_ context.Context, still bool) error { return h.note("still %v", still) }

func (h *handler) SetLimits(_ context.Context, l Limits) error { return h.note("limits %+v", l) }

// Changes tells of more than one message holds.
func (h *handler) Changes(_ context.Context, out func([]Change) error) error {
	all := make([]Change, 2*changesAtOnce+1)
	for i := range all {
		all[i] = Change{Path: Path(fmt.Sprintf("/\xff%d", i)), Kind: Added}
	}
	if err := h.note("changes"); err != nil {
		return err
	}
	return out(all)
}

func (h *handler) Host(a Asker) {
	if a != nil {
		h.host <- a
	}
}

func (h *handler) Rooms(context.Context) ([]Room, error) {
	return []Room{{Source: "label://x", Total: 1 << 40, Free: 3}}, h.note("rooms")
}

// Stat finds every path but what leads to "gone".
func (h *handler) Stat(_ context.Context, r StatRequest) (Located, error) {
	err := h.note("stat %+v", r)
	if r.Path == "gone" {
		return Located{Elsewhere: "/e", Absent: "/a"}, err
	}
	return Located{Path: r.Path, Stat: PathStat{Name: "n", Size: 1 << 40, Mode: fs.ModeDir | fs.ModeSticky | 0o755, Mtime: time.Unix(7, 8).UTC(), LinkTarget: "/l"}, ReadOnly: true, Mounted: true, UID: 5, GID: 6}, err
}

// Archive sends its name as often as Path says, in pieces of one write each.
func (h *handler) Archive(ctx context.Context, r ArchiveRequest, out func([]byte) error) ([]Skipped, error) {
	if err := h.note("archive %+v", r); err != nil {
		return nil, err
	}
	n, _ := strconv.Atoi(string(r.Path))
	for range n {
		if err := out([]byte(r.Name)); err != nil {
			close(h.busy)
			return nil, err
		}
	}
	return []Skipped{{Target: "/t", Name: "n/t"}}, nil
}

// Extract keeps what comes; with the Path "not" it does not read it.
func (h *handler) Extract(_ context.Context, r ExtractRequest, in io.Reader) error {
	if err := h.note("extract %+v", r); err != nil || r.Path == "not" {
		return err
	}
	data, err := io.ReadAll(in)
	h.extracted <- string(data)
	return err
}

func (h *handler) Shutdown(context.Context) error { return h.note("shutdown") }

// limited is a context for a call that has to answer soon.
func limited(t *testing.T) context.Context {
	ctx, cancel := context.WithTimeout(t.Context(), 10*time.Second)
	t.Cleanup(cancel)
	return ctx
}

// meet connects a host to a guest that serves h, until the test ends.
func meet(t *testing.T, h Handler) *Client {
	t.Helper()
	ours, theirs := net.Pipe()
	served := make(chan error, 1)
	go func() { served <- Serve(context.Background(), theirs, h) }()
	c, err := Connect(limited(t), ours)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := c.Close(); err != nil {
			t.Error(err)
		}
		<-c.Done()
		if err := <-served; err != nil {
			t.Errorf("the guest's end: %v", err)
		}
	})
	return c
}

func TestConfigureCarriesEverything(t *testing.T) {
	h := newHandler()
	c := meet(t, h)
	cfg := ExecutorConfig{
		ID: "id", Hostname: "host", Domain: "dom", Serve: true, Rehearsal: true, AtStart: true, Seats: map[string]Seat{"image": {Serial: "seat", Size: 1 << 40, Slot: 160, Unit: 2, ReadOnly: true}}, Root: Root{Image: "disk://image", Writable: "disk://own", ReadOnly: true, Ephemeral: true},
		Mounts:  []MountSpec{{Source: "label://x", Target: "/data", Subpath: "s", ReadOnly: true, Copy: true, Options: []string{"size=1"}, Name: "data", Was: []string{"y"}, Absent: "elsewhere", Patience: 7, Seat: &Seat{Slot: 192}}},
		Files:   []File{{Path: "/etc/hosts", Content: []byte{0, 255}, Mode: 0o644}},
		Network: Network{Resolver: true, Interfaces: []Interface{{Name: "eth0", Tag: 1, MAC: "m", Address: "a", Gateway: "g", MTU: 2}}},
		Sysctls: []Sysctl{{"a.b", "1"}}, ShmSize: 1, Limits: Limits{Memory: 2, CPUs: 3, PidsMax: 4},
		Process: &Process{Args: []string{"a", "é\n"}, Env: []string{"A=b"}, Cwd: "/c", User: "u:g", Groups: []string{"w"}, TTY: true, Rows: 1, Cols: 2, Stdin: true,
			Rlimits: []Rlimit{{"nofile", 1, 1<<64 - 1}}, Capabilities: []string{"CAP_CHOWN"}, NoNewPrivs: true, Init: true, OOMScoreAdj: -5},
		Clock: time.Unix(5, 6).UTC(), Entropy: []byte("entropy"),
	}
	if _, err := c.Configure(limited(t), cfg); err != nil {
		t.Fatal(err)
	}
	if !reflect.DeepEqual(h.config, cfg) {
		t.Errorf("sent %+v, got %+v", cfg, h.config)
	}
	// Every field was set above, so that a new one is not forgotten on the wire.
	for _, v := range []reflect.Value{reflect.ValueOf(cfg), reflect.ValueOf(*cfg.Process), reflect.ValueOf(cfg.Mounts[0]), reflect.ValueOf(cfg.Root)} {
		for i := range v.NumField() {
			if v.Field(i).IsZero() {
				t.Errorf("this test does not set %s.%s", v.Type(), v.Type().Field(i).Name)
			}
		}
	}
}

func TestPlainCalls(t *testing.T) {
	h := newHandler()
	c := meet(t, h)
	ctx := limited(t)
	vol := MountSpec{Source: "label://x", Target: "/data", Subpath: "s", ReadOnly: true, Copy: true, Options: []string{"o"}, Name: "data"}
	if err := errors.Join(c.Signal(ctx, "x", 15), c.Resize(ctx, "", 3, 4), c.Mount(ctx, vol), c.Unmount(ctx, "/data")); err != nil {
		t.Error(err)
	}
	if err := errors.Join(c.Freeze(ctx, "label://x", time.Minute), c.Thaw(ctx, "label://x"), c.Grow(ctx, "label://x", 1<<50)); err != nil {
		t.Error(err)
	}
	if rooms, err := c.Rooms(ctx); err != nil || len(rooms) != 1 || rooms[0] != (Room{Source: "label://x", Total: 1 << 40, Free: 3}) {
		t.Errorf("%+v, %v", rooms, err)
	}
	ps, err := c.Top(ctx)
	if want, _ := h.Top(ctx); err != nil || !reflect.DeepEqual(ps, want) {
		t.Errorf("top %+v, %v", ps, err)
	}
	if err := c.Shutdown(ctx); err != nil {
		t.Error(err)
	}
	if got, want := strings.Join(h.told, ";"), fmt.Sprintf(`signal "x" 15;resize "" 3 4;mount %+v;unmount "/data";freeze label://x 1m0s;thaw label://x;grow label://x 1125899906842624;rooms;top;top;shutdown`, vol); got != want {
		t.Errorf("the guest was told %s, want %s", got, want)
	}
}

func TestStatusAndWatch(t *testing.T) {
	h := newHandler()
	h.status = Status{Phase: Waiting, Pid: 7, Exit: Exit{Code: 137, Signal: 9, OOM: true}, Error: &Fault{Kind: "in use", Text: "t"}, Frames: 9, Timings: []Timing{{"boot", time.Second}}}
	c := meet(t, h)
	st, err := c.Status(limited(t))
	if err != nil || !reflect.DeepEqual(st, h.status) {
		t.Errorf("status %+v, %v", st, err)
	}
	var seen []Phase
	err = c.Watch(limited(t), func(st Status) bool {
		seen = append(seen, st.Phase)
		if st.Phase == Waiting {
			go func() { _, _ = c.Configure(context.Background(), ExecutorConfig{ID: "x"}) }()
		}
		return st.Phase == Waiting
	})
	if err != nil || !reflect.DeepEqual(seen, []Phase{Waiting, Running}) {
		t.Errorf("watched %v, %v", seen, err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	if err := c.Watch(ctx, func(Status) bool { cancel(); return true }); !errors.Is(err, context.Canceled) {
		t.Errorf("a watch that was cancelled: %v", err)
	}
}

func TestExec(t *testing.T) {
	h := newHandler()
	c := meet(t, h)
	long := strings.Repeat("abc", MaxFrame) // three messages
	for _, in := range []io.Reader{strings.NewReader(long), nil} {
		var out, errs bytes.Buffer
		pid := 0
		exit, err := c.Exec(limited(t), "e", Process{Args: []string{"run"}}, in, func(p int) { pid = p }, func(s Stream, b []byte) error {
			if s == Stderr {
				errs.Write(b)
			} else {
				out.Write(b)
			}
			return nil
		})
		want := ""
		if in != nil {
			want = strings.ToUpper(long)
		}
		if err != nil || pid != 42 || exit != (Exit{Code: len(want)}) || out.String() != want || errs.String() != "noted" {
			t.Errorf("exec: %v, pid %d, exit %+v, %d bytes, stderr %q", err, pid, exit, out.Len(), &errs)
		}
	}
	ctx, cancel := context.WithCancel(t.Context())
	_, err := c.Exec(ctx, "h", Process{Args: []string{"hang"}}, nil, func(int) { cancel() }, nil)
	if !errors.Is(err, context.Canceled) {
		t.Errorf("an exec that was left: %v", err)
	}
	select {
	case <-h.busy:
	case <-limited(t).Done():
		t.Error("the guest did not see the host leave an exec")
	}
	stop := errors.New("enough")
	if _, err := c.Exec(limited(t), "e", Process{Args: []string{"run"}}, nil, nil, func(Stream, []byte) error { return stop }); !errors.Is(err, stop) {
		t.Errorf("an exec whose reader has enough: %v", err)
	}
}

func TestStdin(t *testing.T) {
	h := newHandler()
	c := meet(t, h)
	// Left without an end-of-file: the process goes on waiting for the next host.
	ctx, cancel := context.WithCancel(t.Context())
	w, err := c.Stdin(ctx)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := io.WriteString(w, "one"); err != nil {
		t.Fatal(err)
	}
	got := <-h.in
	cancel()
	if w, err = c.Stdin(limited(t)); err != nil {
		t.Fatal(err)
	}
	long := bytes.Repeat([]byte("x"), 3*MaxFrame+1)
	if n, err := w.Write(long); n != len(long) || err != nil {
		t.Fatalf("wrote %d, %v", n, err)
	}
	select {
	case <-h.eof:
		t.Error("a host that left was taken for the end of input")
	default:
	}
	if err := w.Close(); err != nil {
		t.Error(err)
	}
	select {
	case <-h.eof: // before Close returns
	default:
		t.Error("Close returned before the process had the end of its input")
	}
	if err := w.Close(); err != nil {
		t.Errorf("close again: %v", err)
	}
	close(h.in)
	for b := range h.in {
		got = append(got, b...)
	}
	if want := "one" + string(long); string(got) != want {
		t.Errorf("the process got %d bytes, want %d", len(got), len(want))
	}
}

func TestKindsCrossUnchanged(t *testing.T) {
	for k := fault.Internal; k <= fault.Unsupported; k++ {
		h := newHandler()
		h.fail = fault.New(k, "the reason %d", k)
		c := meet(t, h)
		ctx := limited(t)
		_, topErr := c.Top(ctx)
		_, stdinErr := c.Stdin(ctx)
		_, execErr := c.Exec(ctx, "", Process{Args: []string{"x"}}, nil, nil, nil)
		_, statErr := c.Stat(ctx, StatRequest{})
		_, archiveErr := c.Archive(ctx, ArchiveRequest{}, nil)
		st, configureErr := c.Configure(ctx, ExecutorConfig{ID: "x"})
		if st.Phase != Running {
			t.Errorf("a configure that is refused tells the phase %q, not the guest's", st.Phase)
		}
		for name, err := range map[string]error{"configure": configureErr, "reset": c.Reset(ctx), "signal": c.Signal(ctx, "", 1), "top": topErr, "stdin": stdinErr, "exec": execErr,
			"stat": statErr, "archive": archiveErr, "extract": c.Extract(ctx, ExtractRequest{}, strings.NewReader("x"))} {
			if !fault.Is(err, k) || err.Error() != h.fail.Error() {
				t.Errorf("%s: sent %q %v, got %q %v", name, k, h.fail, fault.KindOf(err), err)
			}
		}
	}
}

func TestTooLargeAConfigIsRefusedHere(t *testing.T) {
	c := meet(t, newHandler())
	_, err := c.Configure(limited(t), ExecutorConfig{ID: "x", Entropy: make([]byte, maxMessage)})
	if !fault.Is(err, fault.Invalid) {
		t.Errorf("err = %v", err)
	}
	if _, err := c.Status(limited(t)); err != nil {
		t.Errorf("the connection did not outlive it: %v", err)
	}
}

func TestCallsEndWithTheConnection(t *testing.T) {
	ours, theirs := net.Pipe()
	h := newHandler()
	ctx, leave := context.WithCancel(t.Context())
	served := make(chan error, 1)
	go func() { served <- Serve(ctx, theirs, h) }()
	c, err := Connect(limited(t), ours)
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	waiting := make(chan error, 1)
	go func() {
		_, err := c.Output(limited(t), 0, func(Frame) error { return nil })
		waiting <- err
	}()
	if err := c.Watch(limited(t), func(Status) bool { leave(); return true }); !fault.Is(err, fault.Unavailable) {
		t.Errorf("watch: %v", err)
	}
	if err := <-waiting; !fault.Is(err, fault.Unavailable) {
		t.Errorf("output: %v", err)
	}
	<-c.Done()
	if _, err := c.Status(limited(t)); !fault.Is(err, fault.Unavailable) {
		t.Errorf("status: %v", err)
	}
	if err := c.Shutdown(limited(t)); err != nil {
		t.Errorf("shutdown of a machine that is gone: %v", err)
	}
	if err := <-served; err != nil {
		t.Error(err)
	}
}

// What a host has frozen and not thawed is thawed when it is gone.
func TestFrozenByAHostThatIsGone(t *testing.T) {
	h := newHandler()
	host, guest := net.Pipe()
	served := make(chan error, 1)
	go func() { served <- Serve(t.Context(), guest, h) }()
	c, err := Connect(limited(t), host)
	if err != nil {
		t.Fatal(err)
	}
	ctx := limited(t)
	if err := errors.Join(c.Freeze(ctx, "label://a", time.Minute), c.Freeze(ctx, "label://b", time.Minute), c.Thaw(ctx, "label://a")); err != nil {
		t.Fatal(err)
	}
	if err := c.Close(); err != nil {
		t.Fatal(err)
	}
	if err := <-served; err != nil {
		t.Error(err)
	}
	if got, want := strings.Join(h.told, ";"), "freeze label://a 1m0s;freeze label://b 1m0s;thaw label://a;thaw label://b"; got != want {
		t.Errorf("the guest was told %s, want %s", got, want)
	}
}
