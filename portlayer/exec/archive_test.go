package exec

import (
	"archive/tar"
	"bytes"
	"context"
	"errors"
	"io"
	"io/fs"
	"slices"
	"strings"
	"testing"
	"time"

	"vch/guest"
	"vch/internal/fault"
	"vch/portlayer"
)

// tarOf is an archive of files: pairs of name and content.
func tarOf(t *testing.T, pairs ...string) *bytes.Buffer {
	t.Helper()
	var b bytes.Buffer
	w := tar.NewWriter(&b)
	for i := 0; i < len(pairs); i += 2 {
		if err := w.WriteHeader(&tar.Header{Typeflag: tar.TypeReg, Name: pairs[i], Size: int64(len(pairs[i+1])), Mode: 0o644}); err != nil {
			t.Fatal(err)
		}
		if _, err := io.WriteString(w, pairs[i+1]); err != nil {
			t.Fatal(err)
		}
	}
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	return &b
}

// out copies a path out and says what came: names, files with their content.
func (h *host) out(ref, path string) string {
	h.t.Helper()
	var b bytes.Buffer
	if err := h.s.CopyOut(h.t.Context(), ref, path, func(guest.PathStat) (io.Writer, error) { return &b, nil }); err != nil {
		h.t.Fatalf("out of %s:%s: %v", ref, path, err)
	}
	var lines []string
	r := tar.NewReader(&b)
	for {
		hd, err := r.Next()
		if err == io.EOF {
			break
		}
		if err != nil {
			h.t.Fatalf("out of %s:%s: %v", ref, path, err)
		}
		line := hd.Name
		if hd.Typeflag == tar.TypeReg {
			data, err := io.ReadAll(r)
			if err != nil {
				h.t.Fatal(err)
			}
			line += "=" + string(data)
		}
		lines = append(lines, line)
	}
	slices.Sort(lines)
	return strings.Join(lines, " ")
}

func (h *host) in(ref, path string, pairs ...string) {
	h.t.Helper()
	if err := h.s.CopyIn(h.t.Context(), ref, path, tarOf(h.t, pairs...), portlayer.CopyOptions{}); err != nil {
		h.t.Fatalf("into %s:%s: %v", ref, path, err)
	}
}

func (h *host) same(what, got, want string) {
	h.t.Helper()
	if got != want {
		h.t.Errorf("%s: %q, want %q", what, got, want)
	}
}

// A container's files are copied while it has never run, while it runs, and when it has ended; with its volumes, one in another.
func TestCopy(t *testing.T) {
	h := newHost(t, "")
	spec := withVolume(withVolume(cmd("c1", "sleep", "1000"), "outer", "/a", false), "inner", "/a/b", false)
	h.create(spec)
	h.in("c1", "/", "own", "1", "a/o", "2", "a/b/i", "3")
	for _, state := range []string{"created", "running", "exited"} {
		switch state {
		case "running":
			h.start("c1")
		case "exited":
			if err := h.s.Kill(t.Context(), "c1", 9); err != nil {
				t.Fatal(err)
			}
			h.exit("c1")
		}
		h.same(state, h.out("c1", "/own"), "own=1")
		h.same(state, h.out("c1", "/"), "/ /a/ /a/b/ /a/b/i=3 /a/o=2 /own=1")
		h.same(state, h.out("c1", "/a/b/."), "./ ./i=3")
		h.same(state, h.out("c1", "a/b/"), "b/ b/i=3")
		st, err := h.s.StatPath(t.Context(), "c1", "/a/../own")
		if err != nil || st.Name != "own" || st.Size != 1 || st.Mode.IsDir() {
			t.Errorf("%s: %+v, %v", state, st, err)
		}
		if _, err := h.s.StatPath(t.Context(), "c1", "/nope"); !fault.Is(err, fault.NotFound) || err.Error() != "Could not find the file /nope in container c1" {
			t.Errorf("%s: what is not there: %v", state, err)
		}
		if err := h.s.CopyIn(t.Context(), "c1", "/own", tarOf(t), portlayer.CopyOptions{}); !fault.Is(err, fault.Invalid) || errors.Is(err, portlayer.ErrArchive) {
			t.Errorf("%s: into a file: %v", state, err)
		}
		if err := h.s.CopyIn(t.Context(), "c1", "/a", tarOf(t, "../own", "x"), portlayer.CopyOptions{}); !fault.Is(err, fault.Invalid) || !errors.Is(err, portlayer.ErrArchive) {
			t.Errorf("%s: out of the way: %v", state, err)
		}
		if got := h.snap("c1").State.Phase; string(got) != state {
			t.Errorf("phase %s, want %s", got, state)
		}
	}
	for _, event := range []string{"container archive-path", "container extract-to-dir", "volume mount", "volume unmount"} {
		if !h.saw(event) {
			t.Errorf("no event %q", event)
		}
	}
	if _, err := h.s.StatPath(t.Context(), "none", "/"); !fault.Is(err, fault.NotFound) {
		t.Errorf("of no container: %v", err)
	}
}

func (h *host) snap(ref string) portlayer.Container {
	h.t.Helper()
	c, err := h.s.Get(h.t.Context(), ref)
	if err != nil {
		h.t.Fatal(err)
	}
	return c
}

// What another container holds is copied through that one, to the last mount below it; where that cannot be, the error says so.
func TestCopyOfHeldVolumes(t *testing.T) {
	h := newHost(t, "")
	holder := h.create(withVolume(cmd("holder", "sleep", "1000"), "shared", "/h", false))
	spec := withVolume(withVolume(withVolume(cmd("c1", "true"), "shared", "/s", false), "mine", "/s/m", false), "shared", "/s/m/again", true)
	h.create(spec)
	h.start("holder")
	h.in("c1", "/s", "f", "1")
	h.in("c1", "/s/m", "g", "2")
	h.same("holder's", h.out("holder", "/h"), "h/ h/f=1")
	h.same("all", h.out("c1", "/"), "/ /s/ /s/f=1 /s/m/ /s/m/again/ /s/m/again/f=1 /s/m/g=2")
	h.same("held", h.out("c1", "/s/f"), "f=1")
	h.same("in what is held", h.out("c1", "/s/m/g"), "g=2")
	h.same("in that what is held", h.out("c1", "/s/m/again"), "again/ again/f=1")
	for _, c := range []struct {
		path string
		file string
		kind fault.Kind
		says string
	}{
		{"/s/m/again", "x", fault.Denied, "mounted volume is marked read-only"},
		{"/", "s/x", fault.InUse, "/s"},
		{"/s", "m/x", fault.InUse, "/m/x"},
	} {
		if err := h.s.CopyIn(t.Context(), "c1", c.path, tarOf(t, c.file, "x"), portlayer.CopyOptions{}); !fault.Is(err, c.kind) || !strings.Contains(err.Error(), c.says) {
			t.Errorf("%s into %s: %v", c.file, c.path, err)
		}
	}
	if err := h.s.Remove(t.Context(), string(holder.ID), true, false); err != nil {
		t.Fatal(err)
	}
	// The machine that serves c has "shared" not, and nobody else has it any more: the next copy finds it at home.
	h.same("no more held", h.out("c1", "/s"), "s/ s/f=1 s/m/ s/m/again/ s/m/again/f=1 s/m/g=2")
	h.in("c1", "/", "s/x", "3")

	h.create(withVolume(cmd("reader", "sleep", "1000"), "shared", "/h", true))
	h.start("reader") // which c's machine, with nothing to do, does not keep from its volume
	h.same("read by another", h.out("c1", "/s/x"), "x=3")
	if err := h.s.CopyIn(t.Context(), "c1", "/s", tarOf(t, "y", "x"), portlayer.CopyOptions{}); !fault.Is(err, fault.InUse) || !strings.Contains(err.Error(), "reader") {
		t.Errorf("into what another reads: %v", err)
	}
}

// stalling is an archive of one file that comes to its middle, and then waits.
type stalling struct {
	head    io.Reader
	reached chan struct{} // closed at the middle
	resume  chan struct{}
	tail    io.Reader
}

func stall(t *testing.T) *stalling {
	whole := tarOf(t, "slow", strings.Repeat("x", 4096)).Bytes()
	return &stalling{bytes.NewReader(whole[:1024]), make(chan struct{}), make(chan struct{}), bytes.NewReader(whole[1024:])}
}

func (s *stalling) Read(p []byte) (int, error) {
	if n, err := s.head.Read(p); err == nil {
		return n, nil
	}
	select {
	case <-s.reached:
	default:
		close(s.reached)
	}
	<-s.resume
	return s.tail.Read(p)
}

// Two copies share a machine; a start, and another container that wants a volume, wait for them; a remove by force does not.
func TestCopyMeanwhile(t *testing.T) {
	h := newHost(t, "")
	h.create(withVolume(cmd("c1", "read", "/v/slow"), "data", "/v", false))
	h.create(withVolume(cmd("rival", "read", "/v/slow"), "data", "/v", false))
	copied := make(chan error, 1)
	slow := stall(t)
	go func() { copied <- h.s.CopyIn(t.Context(), "c1", "/v", slow, portlayer.CopyOptions{}) }()
	<-slow.reached
	h.in("c1", "/v", "quick", "1")
	h.same("beside a copy", h.out("c1", "/v/quick"), "quick=1")
	if machines := h.on(); machines != 1 {
		t.Errorf("%d machines are on for one container", machines)
	}

	started := make(chan error, 2)
	for _, name := range []string{"c1", "rival"} {
		go func() { started <- h.s.Start(t.Context(), name) }()
	}
	if err := h.s.Remove(shortly(t), "c1", false, false); !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("a remove did not wait for the copy: %v", err)
	}
	select {
	case err := <-started:
		t.Errorf("a start did not wait for the copy: %v", err)
	default:
	}
	close(slow.resume)
	if err := <-copied; err != nil {
		t.Errorf("the copy: %v", err)
	}
	won := 0
	for range 2 {
		switch err := <-started; {
		case err == nil:
			won++
		case !fault.Is(err, fault.InUse): // the other was quicker, and had it for the moment that it ran
			t.Error(err)
		}
	}
	if won == 0 {
		t.Error("neither started")
	}
	h.exit("c1")
	h.exit("rival")

	slow = stall(t)
	go func() { copied <- h.s.CopyIn(t.Context(), "c1", "/v", slow, portlayer.CopyOptions{}) }()
	<-slow.reached
	if err := h.s.Remove(t.Context(), "c1", true, true); err != nil {
		t.Error(err)
	}
	if err := <-copied; err == nil {
		t.Error("a copy outlived its container")
	}
	close(slow.resume)
	if machines := h.on(); machines != 0 {
		t.Errorf("%d machines are on", machines)
	}
}

// shortly is a context for what is not to be waited for.
func shortly(t *testing.T) context.Context {
	ctx, cancel := context.WithTimeout(t.Context(), 50*time.Millisecond)
	t.Cleanup(cancel)
	return ctx
}

// on counts machines that are on.
func (h *host) on() (n int) {
	for _, id := range h.machines() {
		m, err := h.hv.Machine(h.t.Context(), id)
		if err != nil {
			h.t.Fatal(err)
		}
		if state, err := m.State(h.t.Context()); err == nil && state == portlayer.PoweredOn {
			n++
		}
	}
	return n
}

// A machine that serves files goes with the service; one that a crash left on is ended by the next, and what needs it goes on.
func TestCopyCutOff(t *testing.T) {
	h := newHost(t, "")
	h.create(withVolume(cmd("c1", "read", "/v/f"), "data", "/v", false))
	h.in("c1", "/v", "f", "kept")
	if h.on() != 1 {
		t.Error("the machine is off at once")
	}
	h.down()
	if h.on() != 0 {
		t.Error("a machine that served files is left on")
	}
	h.up("copy.serve=error")
	if _, err := h.s.StatPath(t.Context(), "c1", "/v"); err == nil {
		t.Error("no error")
	}
	if h.on() != 0 {
		t.Error("a machine that could not serve is left on")
	}
	h.down()
	// A crash: the machine is on, and no record says so.
	c := h.machines()[0]
	m, err := h.hv.Machine(t.Context(), c)
	if err != nil {
		t.Fatal(err)
	}
	if err := m.PowerOn(t.Context()); err != nil {
		t.Fatal(err)
	}
	h.up("")
	if h.on() != 0 {
		t.Error("what a crash left on is on still")
	}
	h.same("after a crash", h.out("c1", "/v/f"), "f=kept")
	h.start("c1")
	h.exit("c1")
	h.same("log", h.logs("c1"), "kept")
}

// What is mounted read-only takes nothing, whether the container runs or not.
func TestCopyIntoReadOnly(t *testing.T) {
	h := newHost(t, "")
	spec := withVolume(withVolume(cmd("c1", "sleep", "1000"), "ro", "/ro", true), "rw", "/rw", false)
	spec.ReadOnly = true
	h.create(spec)
	for _, state := range []portlayer.Phase{portlayer.Created, portlayer.Running} {
		if state == portlayer.Running {
			h.start("c1")
		}
		for path, says := range map[string]string{"/": "container rootfs is marked read-only", "/ro": "mounted volume is marked read-only", "/rw": ""} {
			err := h.s.CopyIn(t.Context(), "c1", path, tarOf(t, "f", "x"), portlayer.CopyOptions{})
			if says == "" && err != nil || says != "" && (!fault.Is(err, fault.Denied) || err.Error() != says) {
				t.Errorf("%s, %s: %v", state, path, err)
			}
		}
		st, err := h.s.StatPath(t.Context(), "c1", "/ro")
		if err != nil || st.Mode&fs.ModeDir == 0 {
			t.Errorf("%s: %+v, %v", state, st, err)
		}
	}
}
