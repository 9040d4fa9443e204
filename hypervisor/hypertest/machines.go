package hypertest

import (
	"archive/tar"
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"vch/guest"
	"vch/internal/fault"
	"vch/portlayer"
)

// The serials of a machine's root disks.
const (
	imageSerial = "image"
	ownSerial   = "own"
)

// machineNames are all machines that the suite defines.
var machineNames = [...]string{"defined", "broken", "writer", "holder", "rival", "reader", "sleeper", "mislabelled", "bold", "partial", "plugged", "networked", "still", "counted", "sharing"}

func (s *suite) testMachines(t *testing.T) {
	s.image = s.Image(t, s.h, s.disks)
	t.Run("a definition is found again, changed and deleted", s.definitions)
	t.Run("a machine without a whole disk does not start", s.brokenDisks)
	data := s.disk(t, "data")
	t.Run("a process writes, and its output and exit come back", func(t *testing.T) { s.writer(t, data) })
	t.Run("a running machine outlives the daemon and holds its volume", func(t *testing.T) { s.restarted(t, data) })
	t.Run("readers share a volume and cannot write it", func(t *testing.T) { s.readers(t, data) })
	t.Run("what the guest cannot do comes back with kind and reason", func(t *testing.T) { s.refusals(t, data) })
	t.Run("disks come and go while the machine is on", s.hotplug)
	t.Run("a machine stands still and goes on", s.pause)
	t.Run("what a container uses and changes is told, and its limits change", s.counts)
	t.Run("a machine has directories of its host, and no others", s.shares)
	t.Run("a guest comes to networks and leaves them", s.network)
	t.Run("the file systems of volumes grow, freeze and change their names", s.volumes)
	if _, err := s.h.Disks().Stat(t.Context(), data); err != nil {
		t.Errorf("the volume did not outlive its machines: %v", err)
	}
}

// spec is a machine with root disks and more.
func (s *suite) spec(name string, more ...portlayer.Disk) portlayer.MachineSpec {
	spec := portlayer.MachineSpec{ID: machineID(name), Memory: s.Memory, CPUs: 1}
	disks := append([]portlayer.Disk{{Serial: imageSerial, File: s.image, ReadOnly: true}, {Serial: ownSerial, Size: 64 * portlayer.MiB}}, more...)
	for _, d := range disks {
		spec.Devices = append(spec.Devices, portlayer.DeviceChange{Op: portlayer.Add, Disk: d})
	}
	return spec
}

// volumeDisk is the disk of the volume called name, as a store joins it.
func volumeDisk(name string, file portlayer.DiskPath, readOnly bool) portlayer.Disk {
	return portlayer.Disk{Serial: string(label(name)), File: file, ReadOnly: readOnly}
}

func (s *suite) define(t *testing.T, spec portlayer.MachineSpec) portlayer.Machine {
	t.Helper()
	m, err := s.h.Define(t.Context(), spec)
	if err != nil {
		t.Fatal(err)
	}
	return m
}

// undefine deletes a machine, twice, and looks that it is gone.
func (s *suite) undefine(t *testing.T, m portlayer.Machine) {
	t.Helper()
	for range 2 {
		if err := m.Undefine(t.Context()); err != nil {
			t.Error(err)
		}
	}
	_, err := s.h.Machine(t.Context(), m.ID())
	want(t, "an undefined machine", err, fault.NotFound)
}

func (s *suite) power(t *testing.T, m portlayer.Machine, power portlayer.PowerState) {
	t.Helper()
	got, err := m.State(t.Context())
	if err != nil || got != power {
		t.Errorf("machine is %q, %v; want %q", got, err, power)
	}
	if pid := m.Pid(); power == portlayer.PoweredOff && pid != 0 {
		t.Errorf("a machine that is off has process %d", pid)
	}
}

// limit is the context of a wait for a machine.
func (s *suite) limit(t *testing.T) context.Context {
	ctx, cancel := context.WithTimeout(t.Context(), s.Limit)
	t.Cleanup(cancel)
	return ctx
}

func (s *suite) powerOn(t *testing.T, m portlayer.Machine) {
	t.Helper()
	if err := m.PowerOn(s.limit(t)); err != nil {
		t.Fatal(err)
	}
	s.power(t, m, portlayer.PoweredOn)
}

func (s *suite) connect(t *testing.T, m portlayer.Machine) *guest.Client {
	t.Helper()
	c, err := guest.Dial(s.limit(t), m.Channel)
	if err != nil {
		t.Fatalf("%v; the machine said: %s", err, m.Diagnosis())
	}
	t.Cleanup(func() { c.Close() })
	s.seats.Store(c, m.Seats())
	return c
}

// seen is cfg for the machine that c is connected to, whose disks may be in seats.
func (s *suite) seen(c *guest.Client, cfg guest.ExecutorConfig) guest.ExecutorConfig {
	if seats, ok := s.seats.Load(c); ok {
		cfg.Seats = seats.(map[string]guest.Seat)
	}
	return cfg
}

func (s *suite) configure(t *testing.T, c *guest.Client, cfg guest.ExecutorConfig) {
	t.Helper()
	if _, err := c.Configure(s.limit(t), s.seen(c, cfg)); err != nil {
		t.Fatal(err)
	}
}

// collect takes all output after a frame, until its end.
func (s *suite) collect(t *testing.T, c *guest.Client, after uint64) (stdout, stderr string) {
	t.Helper()
	var out, err strings.Builder
	if _, e := c.Output(s.limit(t), after, func(f guest.Frame) error {
		if f.Stream == guest.Stderr {
			err.Write(f.Data)
		} else {
			out.Write(f.Data)
		}
		return nil
	}); e != nil {
		t.Fatal(e)
	}
	return out.String(), err.String()
}

// exit waits for the process's end.
func (s *suite) exit(t *testing.T, c *guest.Client) guest.Exit {
	t.Helper()
	var last guest.Status
	if err := c.Watch(s.limit(t), func(st guest.Status) bool {
		last = st
		return st.Phase != guest.Exited && st.Phase != guest.Failed
	}); err != nil {
		t.Fatal(err)
	}
	if last.Phase != guest.Exited || last.Error != nil {
		t.Errorf("the process did not exit: %+v", last)
	}
	return last.Exit
}

// shutdown has the guest power its machine off and waits for that.
func (s *suite) shutdown(t *testing.T, m portlayer.Machine, c *guest.Client) {
	t.Helper()
	if err := c.Shutdown(s.limit(t)); err != nil {
		t.Error(err)
	}
	if err := m.WaitOff(s.limit(t)); err != nil {
		t.Fatalf("the machine did not power off: %v", err)
	}
	s.power(t, m, portlayer.PoweredOff)
}

func (s *suite) definitions(t *testing.T) {
	_, err := s.h.Machine(t.Context(), machineID("defined"))
	want(t, "machine that was never defined", err, fault.NotFound)
	if ids, err := s.h.List(t.Context()); err != nil || len(ids) != 0 {
		t.Errorf("machines before: %v, %v", ids, err)
	}
	bad := s.spec("broken")
	bad.Devices = append(bad.Devices, bad.Devices[0])
	if _, err := s.h.Define(t.Context(), bad); err == nil {
		t.Error("two disks with one serial were taken")
	}
	if ids, err := s.h.List(t.Context()); err != nil || len(ids) != 0 {
		t.Errorf("a refused definition left machines: %v, %v", ids, err)
	}

	var wg sync.WaitGroup
	for range 3 {
		wg.Go(func() {
			if _, err := s.h.Define(t.Context(), s.spec("defined")); err != nil {
				t.Error(err)
			}
		})
	}
	wg.Wait()
	other := s.define(t, s.spec("broken"))
	ids := []portlayer.ContainerID{machineID("defined"), machineID("broken")}
	slices.Sort(ids)
	if got, err := s.h.List(t.Context()); err != nil || !slices.Equal(got, ids) {
		t.Errorf("machines %v, %v, want %v", got, err, ids)
	}
	s.undefine(t, other)
	s.restart(t)
	m, err := s.h.Machine(t.Context(), machineID("defined"))
	if err != nil {
		t.Fatalf("not found again after a restart: %v", err)
	}
	if m.ID() != machineID("defined") {
		t.Errorf("id %s", m.ID())
	}
	if n, err := m.Written(t.Context()); err != nil || n != 0 {
		t.Errorf("a machine that never ran has written %d bytes, %v", n, err)
	}
	s.power(t, m, portlayer.PoweredOff)
	if err := m.WaitOff(t.Context()); err != nil {
		t.Errorf("wait for a machine that is off: %v", err)
	}
	for range 2 {
		if err := m.PowerOff(t.Context()); err != nil {
			t.Errorf("power off a machine that is off: %v", err)
		}
	}
	if conn, err := m.Channel(t.Context()); err == nil {
		conn.Close()
		t.Error("a machine that is off has a channel")
	}
	s.undefine(t, m)
}

func (s *suite) brokenDisks(t *testing.T) {
	lost, cut := s.disk(t, "lost"), s.disk(t, "cut")
	truncate(t, s.extent(cut), 4096)
	if err := s.h.Disks().Delete(t.Context(), lost); err != nil {
		t.Fatal(err)
	}
	for _, c := range []struct {
		name string
		file portlayer.DiskPath
		kind fault.Kind
	}{{"lost", lost, fault.NotFound}, {"cut", cut, fault.Conflict}} {
		m, err := s.h.Define(t.Context(), s.spec("broken", volumeDisk(c.name, c.file, false)))
		if err != nil { // some look as early as that
			want(t, c.name+" disk", err, c.kind, c.name+".vmdk")
			continue
		}
		want(t, c.name+" disk", m.PowerOn(s.limit(t)), c.kind, c.name+".vmdk")
		s.power(t, m, portlayer.PoweredOff)
	}
	if m, err := s.h.Machine(t.Context(), machineID("broken")); err == nil {
		s.undefine(t, m)
	}
}

// writer runs one machine twice: it writes to the volume and to its own disk, then reads from its own disk.
func (s *suite) writer(t *testing.T, data portlayer.DiskPath) {
	m := s.define(t, s.spec("writer", volumeDisk("data", data, false)))
	s.powerOn(t, m)
	if err := m.PowerOn(s.limit(t)); err != nil {
		t.Errorf("power on again: %v", err)
	}
	_, err := s.h.Define(t.Context(), s.spec("writer"))
	want(t, "define a machine that is on", err, fault.Conflict)

	c := s.connect(t, m)
	if st, err := c.Status(s.limit(t)); err != nil || st.Phase != guest.Waiting {
		t.Errorf("before its config the guest is %+v, %v", st, err)
	}
	cfg := config("writer", []string{"echo out", "echo err >&2", s.Commands.Write("/data/f", "kept"), s.Commands.Write("/own", "mine"), "exit 3"}, s.volume("data", false))
	s.configure(t, c, cfg)
	if stdout, stderr := s.collect(t, c, 0); stdout != "out\n" || stderr != "err\n" {
		t.Errorf("stdout %q, stderr %q", stdout, stderr)
	}
	if e := s.exit(t, c); e != (guest.Exit{Code: 3}) {
		t.Errorf("exit %+v", e)
	}
	if n, err := m.Written(t.Context()); err != nil || n <= 0 {
		t.Errorf("it wrote to its own disk, and has written %d bytes, %v", n, err)
	}
	if _, err := c.Configure(s.limit(t), s.seen(c, cfg)); err != nil {
		t.Errorf("the same config again: %v", err)
	}
	other := cfg
	other.ID = string(machineID("rival"))
	_, err = c.Configure(s.limit(t), s.seen(c, other))
	want(t, "another container's config", err, fault.Conflict)
	s.power(t, m, portlayer.PoweredOn) // until the exit was collected
	s.shutdown(t, m, c)

	spec := s.spec("writer")
	spec.Memory += 32 * portlayer.MiB
	m = s.define(t, spec)
	s.powerOn(t, m)
	c = s.connect(t, m)
	s.configure(t, c, config("writer", []string{s.Commands.Read("/own")}))
	if stdout, stderr := s.collect(t, c, 0); stdout != "mine" {
		t.Errorf("its own disk did not keep what was written: %q, stderr %q", stdout, stderr)
	}
	s.exit(t, c)
	s.shutdown(t, m, c)

	s.powerOn(t, m)
	c = s.connect(t, m)
	cfg = config("writer", nil)
	cfg.Process, cfg.Serve = nil, true
	s.configure(t, c, cfg)
	if st, err := c.Status(s.limit(t)); err != nil || st.Phase != guest.Running {
		t.Errorf("a machine that serves files is %+v, %v", st, err)
	}
	s.archives(t, c, guest.Place{Path: "/"}, "own", "mine")
	s.shutdown(t, m, c)
	s.undefine(t, m)
}

// archives puts a file into a directory that holds another, and looks for both.
func (s *suite) archives(t *testing.T, c *guest.Client, dir guest.Place, other, text string) {
	t.Helper()
	var in, out bytes.Buffer
	w := tar.NewWriter(&in)
	err := w.WriteHeader(&tar.Header{Typeflag: tar.TypeReg, Name: "came", Size: 4, Mode: 0o644})
	if err == nil {
		_, err = io.WriteString(w, "here")
	}
	if err = errors.Join(err, w.Close()); err != nil {
		t.Fatal(err)
	}
	if err := c.Extract(s.limit(t), guest.ExtractRequest{Place: dir}, &in); err != nil {
		t.Fatal(err)
	}
	file := dir
	file.Path = dir.Path + "/came"
	if l, err := c.Stat(s.limit(t), guest.StatRequest{Place: file}); err != nil || l.Stat.Size != 4 || l.Stat.Mode.IsDir() {
		t.Errorf("stat: %+v, %v", l, err)
	}
	file.Path = dir.Path + "/nowhere"
	_, err = c.Stat(s.limit(t), guest.StatRequest{Place: file})
	want(t, "stat of what is not there", err, fault.NotFound)
	if _, err := c.Archive(s.limit(t), guest.ArchiveRequest{Place: dir, Name: "d", Skip: []string{"/bin"}}, func(b []byte) error { out.Write(b); return nil }); err != nil {
		t.Fatal(err)
	}
	found := map[string]string{}
	for r := tar.NewReader(&out); ; {
		h, err := r.Next()
		if err == io.EOF {
			break
		}
		if err != nil {
			t.Fatal(err)
		}
		data, err := io.ReadAll(r)
		if err != nil {
			t.Fatal(err)
		}
		found[h.Name] = string(data)
	}
	if found["d/came"] != "here" || found["d/"+other] != text {
		t.Errorf("the archive has %q", found)
	}
	again := s.limit(t)
	err = c.Extract(again, guest.ExtractRequest{Place: dir}, strings.NewReader(strings.Repeat("no archive", 100)))
	want(t, "what is no archive", err, fault.Invalid)
}

// errEnough ends an Output early.
var errEnough = errors.New("enough")

// restarted runs a machine over the daemon's end.
func (s *suite) restarted(t *testing.T, data portlayer.DiskPath) {
	m := s.define(t, s.spec("holder", volumeDisk("data", data, false)))
	var wg sync.WaitGroup
	for range 2 {
		wg.Go(func() {
			if err := m.PowerOn(s.limit(t)); err != nil {
				t.Errorf("one of two power-ons at once: %v", err)
			}
		})
	}
	wg.Wait()
	pid := m.Pid()
	old := s.connect(t, m)
	c := s.connect(t, m)
	select {
	case <-old.Done():
	case <-s.limit(t).Done():
		t.Error("a new connection did not end the old one")
	}
	s.configure(t, c, config("holder", []string{"echo one", "sleep 1", "echo two", "cat"}, s.volume("data", false)))

	for _, readOnly := range []bool{false, true} {
		rival := s.define(t, s.spec("rival", volumeDisk("data", data, readOnly)))
		want(t, fmt.Sprintf("a disk that another machine writes, read-only %v", readOnly), rival.PowerOn(s.limit(t)), fault.InUse)
		s.power(t, rival, portlayer.PoweredOff)
		s.undefine(t, rival)
	}

	var last uint64
	_, err := c.Output(s.limit(t), 0, func(f guest.Frame) error {
		if last > 0 {
			return errEnough // not acknowledged: it has to come again
		}
		if string(f.Data) != "one\n" {
			t.Errorf("first frame %q", f.Data)
		}
		last = f.Number
		return nil
	})
	if !errors.Is(err, errEnough) {
		t.Fatal(err)
	}
	c.Close()
	s.restart(t)

	if m, err = s.h.Machine(t.Context(), machineID("holder")); err != nil {
		t.Fatal(err)
	}
	s.power(t, m, portlayer.PoweredOn)
	if got := m.Pid(); got != pid {
		t.Errorf("pid %d, before the restart %d", got, pid)
	}
	c = s.connect(t, m)
	in, err := c.Stdin(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	// As much as the guest keeps for a host that is away, so that the connection below breaks in the middle of it.
	rest := "two\n" + strings.Repeat("0123456789abcde\n", 40_000)
	if _, err := io.WriteString(in, strings.TrimPrefix(rest, "two\n")); err != nil {
		t.Fatal(err)
	}
	if err := in.Close(); err != nil {
		t.Error(err)
	}
	var got strings.Builder
	_, err = c.Output(s.limit(t), last, func(f guest.Frame) error {
		if got.Len() > len(rest)/4 {
			return errEnough
		}
		got.Write(f.Data)
		last = f.Number
		return nil
	})
	if !errors.Is(err, errEnough) {
		t.Fatal(err)
	}
	c.Close()
	c = s.connect(t, m)
	stdout, stderr := s.collect(t, c, last)
	if got.WriteString(stdout); got.String() != rest || stderr != "" {
		t.Errorf("after the restart: %d bytes, want %d; they begin %.20q; stderr %q", got.Len(), len(rest), got.String(), stderr)
	}
	if e := s.exit(t, c); e.Code != 0 {
		t.Errorf("exit %+v", e)
	}
	s.shutdown(t, m, c)
	s.undefine(t, m)
}

// readers runs two machines at once on one volume.
func (s *suite) readers(t *testing.T, data portlayer.DiskPath) {
	sleeper := s.define(t, s.spec("sleeper"))
	add := []portlayer.DeviceChange{{Op: portlayer.Add, Disk: volumeDisk("data", data, true)}}
	if err := sleeper.Reconfigure(t.Context(), add); err != nil {
		t.Fatalf("reconfigure a machine that is off: %v", err)
	}
	nonsense := []portlayer.DeviceChange{{Op: portlayer.Remove, Disk: portlayer.Disk{Serial: string(label("data"))}}, {Op: portlayer.Remove, Disk: portlayer.Disk{Serial: "none"}}}
	if err := sleeper.Reconfigure(t.Context(), nonsense); err == nil {
		t.Error("a disk that is not there was removed")
	}
	reader := s.define(t, s.spec("reader", volumeDisk("data", data, true)))
	s.powerOn(t, sleeper)
	s.powerOn(t, reader)

	c := s.connect(t, reader)
	part := s.volume("data", true)
	part.Target, part.Subpath = "/only", "f"
	s.configure(t, c, config("reader", []string{s.Commands.Read("/data/f"), s.Commands.Read("/only"), s.Commands.Write("/data/f", "changed")}, s.volume("data", true), part))
	stdout, stderr := s.collect(t, c, 0)
	if stdout != "keptkept" {
		t.Errorf("what another machine wrote reads as %q", stdout)
	}
	if !strings.Contains(stderr, "Read-only file system") {
		t.Errorf("the write was not refused: stderr %q", stderr)
	}
	if e := s.exit(t, c); e.Code == 0 {
		t.Error("the refused write was a success")
	}
	s.shutdown(t, reader, c)
	s.undefine(t, reader)

	sc := s.connect(t, sleeper)
	s.configure(t, sc, config("sleeper", []string{s.Commands.Read("/data/f"), "sleep 1000"}, s.volume("data", true)))
	vol := guest.Place{Source: s.volume("data", true).Source, Path: "/"}
	if l, err := sc.Stat(s.limit(t), guest.StatRequest{Place: guest.Place{Path: "/data/f"}}); err != nil || !l.ReadOnly || !l.Mounted || l.Stat.Size != 4 {
		t.Errorf("a file of a read-only volume: %+v, %v", l, err)
	}
	err := sc.Extract(s.limit(t), guest.ExtractRequest{Place: vol}, strings.NewReader(""))
	if err != nil {
		t.Errorf("nothing into a read-only volume: %v", err)
	}
	if _, err := sc.Archive(s.limit(t), guest.ArchiveRequest{Place: vol, Name: "."}, func([]byte) error { return errEnough }); !errors.Is(err, errEnough) {
		t.Errorf("an archive of a volume that is given up: %v", err)
	}
	s.archives(t, sc, guest.Place{Path: "/"}, "data/f", "kept")
	if err := sc.Signal(s.limit(t), "", 9); err != nil {
		t.Error(err)
	}
	if e := s.exit(t, sc); e.Code != 137 || e.Signal != 9 || e.OOM {
		t.Errorf("killed: exit %+v", e)
	}
	ctx, cancel := context.WithTimeout(t.Context(), time.Millisecond)
	defer cancel()
	if err := sleeper.WaitOff(ctx); err == nil {
		t.Error("a machine that is on was waited off")
	}
	waited := make(chan error, 1)
	go func() { waited <- sleeper.WaitOff(s.limit(t)) }()
	if err := sleeper.PowerOff(s.limit(t)); err != nil {
		t.Fatal(err)
	}
	s.power(t, sleeper, portlayer.PoweredOff)
	if err := <-waited; err != nil {
		t.Errorf("wait for a machine that was switched off: %v", err)
	}
	<-sc.Done()
	s.undefine(t, sleeper)
}

// refusals gives the guest what it cannot do.
func (s *suite) refusals(t *testing.T, data portlayer.DiskPath) {
	for _, c := range []struct {
		name    string
		disk    portlayer.Disk
		subpath string
		kind    fault.Kind
	}{
		// Its disk holds the file system of "data", which is not the one that the mount names.
		{"mislabelled", volumeDisk("mislabelled", data, false), "", fault.Conflict},
		// The hypervisor keeps the disk read-only, whatever the guest is told.
		{"bold", volumeDisk("bold", s.disk(t, "bold"), true), "", fault.Internal},
		// A part that the volume does not have.
		{"partial", volumeDisk("partial", s.disk(t, "partial"), false), "not/there", fault.NotFound},
	} {
		t.Run(c.name, func(t *testing.T) {
			m := s.define(t, s.spec(c.name, c.disk))
			s.powerOn(t, m)
			client := s.connect(t, m)
			vol := s.volume(c.name, false)
			vol.Subpath = c.subpath
			_, err := client.Configure(s.limit(t), s.seen(client, config(c.name, []string{"echo no"}, vol)))
			want(t, "configure", err, c.kind, "volume "+c.name)
			st, serr := client.Status(s.limit(t))
			if serr != nil || st.Phase != guest.Failed || st.Error == nil {
				t.Fatalf("status %+v, %v", st, serr)
			}
			if err != nil && (st.Error.Text != err.Error() || st.Error.Kind != c.kind.String()) {
				t.Errorf("status says %+v, the call said %v", *st.Error, err)
			}
			if stdout, stderr := s.collect(t, client, 0); stdout+stderr != "" {
				t.Errorf("output %q %q", stdout, stderr)
			}
			if err := m.PowerOff(s.limit(t)); err != nil {
				t.Fatal(err)
			}
			s.undefine(t, m)
		})
	}
}
