package fake

import (
	"context"
	"strings"
	"testing"
	"time"

	"vch/guest"
	"vch/internal/fault"
	"vch/portlayer"
)

const (
	dataLabel  = "00112233445566778899aabbccddeeff"
	smallLabel = "ffeeddccbbaa99887766554433221100"
)

// machine is a running machine with a volume at /data, and a way to run commands in it.
type machine struct {
	portlayer.Machine
	h *Hypervisor
	c *guest.Client
}

func newMachine(t *testing.T, p guest.Process) *machine {
	t.Helper()
	dir := t.TempDir()
	h, err := New(Options{Dir: dir})
	if err != nil {
		t.Fatal(err)
	}
	d := h.Disks()
	vol := d.Join(portlayer.DiskPath(dir), "data.vmdk")
	if err := d.Create(t.Context(), vol, portlayer.DiskSpec{Size: 4 * portlayer.MiB, Label: dataLabel}); err != nil {
		t.Fatal(err)
	}
	m, err := h.Define(t.Context(), portlayer.MachineSpec{ID: "m", Memory: 1, CPUs: 1, Devices: []portlayer.DeviceChange{
		{Op: portlayer.Add, Disk: portlayer.Disk{Serial: dataLabel, File: vol}},
	}})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := m.Undefine(context.Background()); err != nil {
			t.Error(err)
		}
		if err := h.Close(); err != nil {
			t.Error(err)
		}
	})
	if err := m.PowerOn(t.Context()); err != nil {
		t.Fatal(err)
	}
	conn, err := m.Channel(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	c, err := guest.Connect(limited(t), conn)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { c.Close() })
	_, err = c.Configure(limited(t), guest.ExecutorConfig{ID: "m", Process: &p, Mounts: []guest.MountSpec{
		{Source: "label://" + dataLabel, Target: "/data"},
		{Source: "label://" + dataLabel, Target: "/data/ro", ReadOnly: true},
		{Source: "tmpfs:", Target: "/tmp"},
	}})
	if err != nil {
		t.Fatal(err)
	}
	return &machine{m, h, c}
}

func limited(t *testing.T) context.Context {
	ctx, cancel := context.WithTimeout(t.Context(), 10*time.Second)
	t.Cleanup(cancel)
	return ctx
}

// exit waits for the container's own process.
func (m *machine) exit(t *testing.T) (e guest.Exit) {
	t.Helper()
	if err := m.c.Watch(limited(t), func(st guest.Status) bool { e = st.Exit; return st.Phase != guest.Exited }); err != nil {
		t.Fatal(err)
	}
	return e
}

func TestCommands(t *testing.T) {
	m := newMachine(t, guest.Process{Args: []string{"sleep", "1000"}})
	for _, c := range []struct {
		args           []string
		stdin          string
		code           int
		stdout, stderr string
	}{
		{args: []string{"echo", "a", "b  c"}, stdout: "a b  c\n"},
		{args: []string{"/bin/echo"}, stdout: "\n"},
		{args: []string{"cat"}, stdin: "in\nout", stdout: "in\nout"},
		{args: []string{"true"}},
		{args: []string{"false"}, code: 1},
		{args: []string{"exit", "42"}, code: 42},
		{args: []string{"exit", "300"}, code: 44},
		{args: []string{"sleep", "0.001"}},
		{args: []string{"sleep", "x"}, code: 1, stderr: "sleep: invalid number 'x'\n"},
		{args: []string{"oom"}, code: 137},
		{args: []string{"sh", "-c", "echo a; echo b >&2; nope; echo c"}, stdout: "a\nc\n", stderr: "b\nsh: nope: not found\n"},
		{args: []string{"sh", "-c", "nope"}, code: 127, stderr: "sh: nope: not found\n"},
		{args: []string{"sh", "-c", "false; exit; echo no"}, code: 1},
		{args: []string{"sh", "-c", "exit 7; echo no"}, code: 7},
		{args: []string{"sh", "-c", "oom; echo no"}, code: 137},
		{args: []string{"write", "/data/d/f", "some", "text"}},
		{args: []string{"read", "/data/d/../d/f"}, stdout: "some text"},
		{args: []string{"read", "/data/ro/d/f"}, stdout: "some text"},
		{args: []string{"write", "/data/ro/f", "x"}, code: 1, stderr: "write: /data/ro/f: Read-only file system\n"},
		{args: []string{"read", "/data/none"}, code: 1, stderr: "read: /data/none: No such file or directory\n"},
		{args: []string{"write", "/data", "x"}, code: 1, stderr: "write: /data: Is a directory\n"},
		{args: []string{"write", "/data/f", strings.Repeat("x", 4<<20)}, code: 1, stderr: "write: /data/f: No space left on device\n"},
		{args: []string{"sh", "-c", "write /tmp/f t; read /tmp/f; write f root; read /f"}, stdout: "troot"},
		{args: []string{"read", "/database"}, code: 1, stderr: "read: /database: No such file or directory\n"},
	} {
		var out, errs strings.Builder
		p := guest.Process{Args: c.args, Stdin: c.stdin != ""}
		e, err := m.c.Exec(limited(t), "x", p, strings.NewReader(c.stdin), nil, func(s guest.Stream, b []byte) error {
			if s == guest.Stderr {
				errs.Write(b)
			} else {
				out.Write(b)
			}
			return nil
		})
		if err != nil || e.Code != c.code || out.String() != c.stdout || errs.String() != c.stderr {
			t.Errorf("%.60q: %v, exit %+v, stdout %q, stderr %q", c.args, err, e, out.String(), errs.String())
		}
		if oom := strings.Contains(strings.Join(c.args, " "), "oom"); e.OOM != oom {
			t.Errorf("%q: exit %+v", c.args, e)
		}
	}
	for args, text := range map[string]string{"nope": `exec: "nope": executable file not found in $PATH`, "/nope": `exec: "/nope": stat /nope: no such file or directory`} {
		_, err := m.c.Exec(limited(t), "x", guest.Process{Args: []string{args}}, nil, nil, nil)
		if !fault.Is(err, fault.NotFound) || err.Error() != text {
			t.Errorf("%s: %v", args, err)
		}
	}
}

func TestSignals(t *testing.T) {
	for _, args := range [][]string{{"sleep", "1000"}, {"cat"}, {"sh", "-c", "sleep 1000; echo no"}} {
		for _, n := range []int{1, 2, 9, 15} {
			m := newMachine(t, guest.Process{Args: args, Stdin: true})
			for _, harmless := range []int{0, 17, 28} {
				if err := m.c.Signal(limited(t), "", harmless); err != nil {
					t.Error(err)
				}
			}
			if err := m.c.Signal(limited(t), "", 65); !fault.Is(err, fault.Invalid) {
				t.Errorf("signal 65: %v", err)
			}
			if err := m.c.Signal(limited(t), "", n); err != nil {
				t.Error(err)
			}
			if e := m.exit(t); e != (guest.Exit{Code: 128 + n, Signal: n}) {
				t.Errorf("%v, signal %d: exit %+v", args, n, e)
			}
			if err := m.c.Signal(limited(t), "", n); !fault.Is(err, fault.Conflict) {
				t.Errorf("signal after the end: %v", err)
			}
		}
	}
}

func TestTerminal(t *testing.T) {
	m := newMachine(t, guest.Process{Args: []string{"sh", "-c", "echo out; echo err >&2; cat"}, TTY: true, Stdin: true})
	if err := m.c.Resize(limited(t), "", 10, 20); err != nil {
		t.Error(err)
	}
	ps, err := m.c.Top(limited(t))
	if err != nil || len(ps) != 1 || ps[0].PID != 1 || ps[0].TTY == "?" || !strings.HasPrefix(ps[0].Args, "sh -c") {
		t.Errorf("top: %+v, %v", ps, err)
	}
	in, err := m.c.Stdin(limited(t))
	if err != nil {
		t.Fatal(err)
	}
	if err := in.Close(); err != nil { // no end-of-file for a terminal
		t.Error(err)
	}
	var got strings.Builder
	_, err = m.c.Output(limited(t), 0, func(f guest.Frame) error {
		if f.Stream != guest.Stdout {
			t.Errorf("a terminal has stream %d", f.Stream)
		}
		if got.Write(f.Data); got.String() == "out\nerr\n" {
			return m.c.Signal(limited(t), "", 15)
		}
		return nil
	})
	if err != nil || got.String() != "out\nerr\n" {
		t.Errorf("output %q, %v", got.String(), err)
	}
	if e := m.exit(t); e.Signal != 15 {
		t.Errorf("exit %+v", e)
	}
}

// The plug is pulled on a process whose output nobody takes, with more held than the guest may hold: nothing hangs.
func TestPowerOffUnderFullOutput(t *testing.T) {
	m := newMachine(t, guest.Process{Args: []string{"cat"}, Stdin: true})
	in, err := m.c.Stdin(limited(t))
	if err != nil {
		t.Fatal(err)
	}
	flooded := make(chan struct{})
	go func() {
		defer close(flooded)
		for chunk := make([]byte, 64<<10); ; {
			if _, err := in.Write(chunk); err != nil {
				return
			}
		}
	}()
	const held = 1 << 20        // by the tether
	for more := 50; more > 0; { // calls to and fro once it is full, so that the process comes to wait
		st, err := m.c.Status(limited(t))
		if err != nil {
			t.Fatal(err)
		}
		if st.Frames*guest.MaxFrame >= held {
			more--
		}
	}
	if err := m.PowerOff(limited(t)); err != nil {
		t.Fatal(err)
	}
	<-flooded
	if d := m.Diagnosis(); !strings.Contains(d, "by the host") {
		t.Errorf("diagnosis %q", d)
	}
}

// Another world is the host after a power cut: definitions and disks are there, machines are off.
func TestHostRestart(t *testing.T) {
	m := newMachine(t, guest.Process{Args: []string{"sleep", "1000"}})
	next, err := New(Options{Dir: strings.TrimSuffix(m.h.site.dir, "/machines")})
	if err != nil {
		t.Fatal(err)
	}
	defer next.Close()
	again, err := next.Machine(t.Context(), "m")
	if err != nil {
		t.Fatal(err)
	}
	if st, err := again.State(t.Context()); err != nil || st != portlayer.PoweredOff {
		t.Errorf("state %q, %v", st, err)
	}
}

// Closing a hypervisor drops the connections made through it, as a killed daemon's.
func TestCloseDropsConnections(t *testing.T) {
	m := newMachine(t, guest.Process{Args: []string{"sleep", "1000"}})
	if err := m.h.Close(); err != nil {
		t.Fatal(err)
	}
	select {
	case <-m.c.Done():
	case <-limited(t).Done():
		t.Error("the connection lives on")
	}
	if st, err := m.State(t.Context()); err != nil || st != portlayer.PoweredOn {
		t.Errorf("the machine is %q, %v", st, err)
	}
}
