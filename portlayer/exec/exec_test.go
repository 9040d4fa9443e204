package exec

import (
	"bytes"
	"context"
	"errors"
	"io"
	"log/slog"
	"net"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"vch/guest"
	"vch/hypervisor/fake"
	"vch/internal/failpoint"
	"vch/internal/fault"
	"vch/portlayer"
	"vch/portlayer/record"
	"vch/portlayer/volume"
	"vch/portlayer/volume/vmdk"
	"vch/portlayer/volume/volumetest"
)

// host is a VCH without doors: real volume service and store over the fake hypervisor.
type host struct {
	wiring *wiring                 // nil: there are no networks
	dirs   *volumetest.Directories // nil: there is one store
	t      *testing.T
	dir    string
	hv     *fake.Hypervisor
	hidden atomic.Bool // no machine is reached
	db     *record.DB
	vols   *volume.Service
	s      *Service

	mu     sync.Mutex // guards events
	events []string
}

func newHost(t *testing.T, fp string) *host {
	t.Helper()
	h := &host{t: t, dir: t.TempDir()}
	hv, err := fake.New(fake.Options{Dir: filepath.Join(h.dir, "fake")})
	if err != nil {
		t.Fatal(err)
	}
	h.hv = hv
	h.up(fp)
	t.Cleanup(func() {
		h.down()
		for _, id := range h.machines() {
			m, err := hv.Machine(context.Background(), id)
			if err == nil {
				err = m.Undefine(context.Background())
			}
			if err != nil {
				t.Error(err)
			}
		}
		if err := hv.Close(); err != nil {
			t.Error(err)
		}
	})
	return h
}

// up starts the services, as a daemon does.
func (h *host) up(fp string) {
	h.t.Helper()
	ctx := h.t.Context()
	log := slog.New(slog.DiscardHandler)
	points, err := failpoint.Parse(fp)
	if err != nil {
		h.t.Fatal(err)
	}
	if h.db, err = record.Open(filepath.Join(h.dir, "db")); err != nil {
		h.t.Fatal(err)
	}
	root := h.hv.Disks().Join(portlayer.DiskPath(h.dir), "fake", "store")
	if err := h.hv.Disks().MakeDir(ctx, root); err != nil {
		h.t.Fatal(err)
	}
	store, err := vmdk.Open(ctx, vmdk.Options{Name: portlayer.DefaultStore, Location: string(root), Root: root, Disks: h.hv.Disks(), Driver: "fake-vmdk", DefaultCapacity: 8 * portlayer.MiB})
	if err != nil {
		h.t.Fatal(err)
	}
	publish := func(e portlayer.Event) {
		h.mu.Lock()
		defer h.mu.Unlock()
		h.events = append(h.events, e.Noun+" "+e.Verb)
	}
	stores := []portlayer.VolumeStore{store}
	if h.dirs != nil {
		stores = append(stores, h.dirs)
	}
	if h.vols, err = volume.New(volume.Options{Stores: stores, AnonymousCapacity: 8 * portlayer.MiB, DefaultCapacity: 8 * portlayer.MiB, Publish: publish, Log: log}); err != nil {
		h.t.Fatal(err)
	}
	o := Options{DB: h.db, Hypervisor: hidden{h.hv, &h.hidden}, Volumes: h.vols, Binder: h.vols, Images: images{}, Publish: publish, Log: log,
		Dir: filepath.Join(h.dir, "containers"), Memory: 256 * portlayer.MiB, CPUs: 1e9, Failpoints: points}
	if h.wiring != nil {
		o.Wiring = h.wiring
	}
	h.s, err = New(ctx, o)
	if err != nil {
		h.t.Fatal(err)
	}
}

// down stops the services without touching a machine.
func (h *host) down() {
	h.t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	defer cancel()
	if err := errors.Join(h.s.Close(ctx), h.db.Close()); err != nil {
		h.t.Error(err)
	}
}

func (h *host) machines() []portlayer.ContainerID {
	ids, err := h.hv.List(context.Background())
	if err != nil {
		h.t.Error(err)
	}
	return ids
}

func (h *host) volumes() (names []string) {
	vols, warnings, err := h.vols.List(context.Background())
	if err != nil || len(warnings) > 0 {
		h.t.Errorf("list volumes: %v %v", warnings, err)
	}
	for _, v := range vols {
		names = append(names, string(v.Name))
	}
	return names
}

func (h *host) saw(event string) bool {
	h.mu.Lock()
	defer h.mu.Unlock()
	for _, e := range h.events {
		if e == event {
			return true
		}
	}
	return false
}

func cmd(name string, args ...string) portlayer.ContainerSpec {
	return portlayer.ContainerSpec{Name: name, Image: "img", Process: guest.Process{Args: args}}
}

func withVolume(spec portlayer.ContainerSpec, vol, target string, ro bool) portlayer.ContainerSpec {
	spec.Mounts = append(spec.Mounts, portlayer.Mount{Kind: portlayer.VolumeMount, Volume: portlayer.VolumeName(vol), Target: target, ReadOnly: ro})
	return spec
}

func (h *host) create(spec portlayer.ContainerSpec) portlayer.Container {
	h.t.Helper()
	c, _, err := h.s.Create(h.t.Context(), spec)
	if err != nil {
		h.t.Fatal(err)
	}
	return c
}

func (h *host) start(ref string) {
	h.t.Helper()
	if err := h.s.Start(h.t.Context(), ref); err != nil {
		h.t.Fatal(err)
	}
}

func (h *host) exit(ref string) portlayer.State {
	h.t.Helper()
	ctx, cancel := context.WithTimeout(h.t.Context(), time.Minute)
	defer cancel()
	st, err := h.s.Wait(ctx, ref, portlayer.UntilNotRunning, nil)
	if err != nil {
		h.t.Fatal(err)
	}
	return st
}

func (h *host) logs(ref string) string {
	h.t.Helper()
	var b strings.Builder
	err := h.s.Logs(h.t.Context(), ref, portlayer.LogOptions{Tail: -1, Stdout: true, Stderr: true}, func(e portlayer.LogEntry) error {
		b.Write(e.Data)
		return nil
	})
	if err != nil {
		h.t.Fatal(err)
	}
	return b.String()
}

// images is one image, "img", that every machine can have.
type images struct{ portlayer.Images }

func (images) Get(_ context.Context, ref string) (portlayer.Image, error) {
	if ref != "img" {
		return portlayer.Image{}, fault.New(fault.NotFound, "No such image: %s", ref)
	}
	return portlayer.Image{ID: "sha256:1"}, nil
}

func (images) Join(_ context.Context, h *portlayer.Handle, _ portlayer.ImageID) error {
	h.Config.Root.Image = "disk://image"
	return nil
}

func (images) Entries(_ context.Context, _ portlayer.ImageID, path string) (string, error) {
	if path == "/etc/passwd" {
		return "file", nil
	}
	return "tree", nil
}

// A volume that nobody has written is filled before it is mounted read-only, whoever made it; one that was written is not looked at again, also
// after a restart, and one that was removed and made anew is a new one.
func TestReadOnlyVolumeIsFilledUntilWritten(t *testing.T) {
	h := newHost(t, "")
	if _, err := h.vols.Create(t.Context(), portlayer.VolumeRequest{Name: "data"}); err != nil {
		t.Fatal(err)
	}
	fills := func(name string) bool {
		t.Helper()
		h.down()
		h.up("create.populate=error")
		c, _, err := h.s.Create(t.Context(), withVolume(cmd(name, "true"), "data", "/seed", true))
		h.down()
		h.up("")
		if err != nil && !strings.Contains(err.Error(), "create.populate") {
			t.Fatal(err)
		}
		if err == nil {
			if err := h.s.Remove(t.Context(), string(c.ID), false, false); err != nil {
				t.Fatal(err)
			}
			return false
		}
		return true
	}
	if !fills("reader") {
		t.Error("a volume that was never written is mounted as it is")
	}
	h.create(withVolume(cmd("writer", "true"), "data", "/data", false))
	if !fills("reader") {
		t.Error("a volume that was only to be written is mounted as it is")
	}
	h.start("writer")
	h.exit("writer")
	if fills("reader") {
		t.Error("a volume that was written is filled")
	}
	if err := h.s.Remove(t.Context(), "writer", false, false); err != nil {
		t.Fatal(err)
	}
	if err := h.vols.Remove(t.Context(), portlayer.VolumeID{Name: "data"}); err != nil {
		t.Fatal(err)
	}
	if _, err := h.vols.Create(t.Context(), portlayer.VolumeRequest{Name: "data"}); err != nil {
		t.Fatal(err)
	}
	if !fills("reader") {
		t.Error("a volume that was made anew is taken for the old one")
	}
	if keys, err := h.s.touched.All(); err != nil || len(keys) != 0 {
		t.Errorf("the old volume is still on record: %v %v", keys, err)
	}
	h.create(withVolume(cmd("reader", "true"), "data", "/seed", true))
	if fills("other") {
		t.Error("a volume that was filled is filled again")
	}
}

func TestNothingCoversTheKernelsFiles(t *testing.T) {
	h := newHost(t, "")
	for _, target := range []string{"/dev", "/sys", "/proc", "/proc/sys/net"} {
		c := h.create(withVolume(cmd("", "true"), "data", target, false))
		if err := h.s.Start(t.Context(), string(c.ID)); !fault.Is(err, fault.Invalid) || !strings.Contains(err.Error(), target) {
			t.Errorf("%s: %v", target, err)
		}
	}
	h.create(withVolume(cmd("beside", "true"), "data", "/dev/queue", false))
	h.start("beside")
	h.exit("beside")
}

func TestAnonymousVolumeOverFileIsRefusedAtCreate(t *testing.T) {
	h := newHost(t, "")
	spec := cmd("over", "true")
	spec.Mounts = []portlayer.Mount{{Kind: portlayer.VolumeMount, Target: "/data", Origin: portlayer.FromImage}, {Kind: portlayer.VolumeMount, Target: "/etc/passwd", Origin: portlayer.FromImage}}
	_, _, err := h.s.Create(t.Context(), spec)
	if !fault.Is(err, fault.Invalid) || !strings.Contains(err.Error(), "cannot mount volume over existing file, file exists /etc/passwd") {
		t.Fatalf("create: %v", err)
	}
	if vols, _, err := h.s.o.Volumes.List(t.Context()); err != nil || len(vols) != 0 {
		t.Errorf("volumes left: %v %v", vols, err)
	}
}

func TestRunToExit(t *testing.T) {
	h := newHost(t, "")
	c := h.create(cmd("web", "sh", "-c", "echo hello; exit 3"))
	if c.State.Phase != portlayer.Created || c.Spec.Hostname != string(c.ID[:12]) {
		t.Fatalf("created: %+v", c.State)
	}
	h.start("web")
	st := h.exit("web")
	if st.Phase != portlayer.Exited || st.ExitCode != 3 {
		t.Fatalf("state %+v", st)
	}
	if got := h.logs("web"); got != "hello\n" {
		t.Errorf("logs %q", got)
	}
	if err := h.s.Remove(t.Context(), string(c.ID[:8]), false, false); err != nil {
		t.Fatal(err)
	}
	if _, err := h.s.Get(t.Context(), "web"); !fault.Is(err, fault.NotFound) {
		t.Errorf("after remove: %v", err)
	}
	for _, e := range []string{"container create", "container start", "container die", "container destroy"} {
		if !h.saw(e) {
			t.Errorf("no event %q", e)
		}
	}
}

func TestVolumeOutlivesItsContainerAndHasOneWriter(t *testing.T) {
	h := newHost(t, "")
	h.create(withVolume(cmd("writer", "write", "/data/f", "kept"), "data", "/data", false))
	h.start("writer")
	if st := h.exit("writer"); st.ExitCode != 0 {
		t.Fatalf("writer: %+v", st)
	}
	if err := h.s.Remove(t.Context(), "writer", false, true); err != nil {
		t.Fatal(err)
	}
	h.create(withVolume(cmd("reader", "read", "/data/f"), "data", "/data", true))
	h.start("reader")
	h.exit("reader")
	if got := strings.TrimSpace(h.logs("reader")); got != "kept" {
		t.Fatalf("read %q", got)
	}
	h.create(withVolume(cmd("holder", "sleep", "1000"), "data", "/data", false))
	h.create(withVolume(cmd("second", "sleep", "1000"), "data", "/data", false))
	h.start("holder")
	err := h.s.Start(t.Context(), "second")
	if !fault.Is(err, fault.InUse) || !strings.Contains(err.Error(), "holder") {
		t.Fatalf("second writer: %v", err)
	}
	if c, _ := h.s.Get(t.Context(), "second"); c.State.Phase != portlayer.Created || c.State.Error == "" {
		t.Errorf("second: %+v", c.State)
	}
	if err := h.s.Kill(t.Context(), "holder", 9); err != nil {
		t.Fatal(err)
	}
	if st := h.exit("holder"); st.ExitCode != 137 {
		t.Errorf("killed: %+v", st)
	}
	h.start("second")
}

func TestRemoveTakesAnonymousVolumesOnly(t *testing.T) {
	h := newHost(t, "")
	h.create(withVolume(withVolume(cmd("ct", "true"), "", "/a", false), "named", "/b", false))
	if n := len(h.volumes()); n != 2 {
		t.Fatalf("%d volumes", n)
	}
	if err := h.s.Remove(t.Context(), "ct", false, true); err != nil {
		t.Fatal(err)
	}
	if got := h.volumes(); len(got) != 1 || got[0] != "named" {
		t.Errorf("left: %v", got)
	}
}

func TestAutoRemove(t *testing.T) {
	h := newHost(t, "")
	spec := withVolume(cmd("ct", "exit", "4"), "", "/a", false)
	spec.AutoRemove = true
	h.create(spec)
	type outcome struct {
		st  portlayer.State
		err error
	}
	waiting, done := make(chan struct{}), make(chan outcome, 1)
	go func() {
		st, err := h.s.Wait(context.Background(), "ct", portlayer.UntilRemoved, func() { close(waiting) })
		done <- outcome{st, err}
	}()
	<-waiting
	h.start("ct")
	if o := <-done; o.err != nil || o.st.ExitCode != 4 {
		t.Fatalf("wait: %+v", o)
	}
	if v, m := h.volumes(), h.machines(); len(v)+len(m) != 0 {
		t.Errorf("left: %v %v", v, m)
	}
}

// Every step of a create can fail; then nothing is left but the named volume.
func TestFailedCreateLeavesNothing(t *testing.T) {
	for _, point := range []string{"create.journal", "create.volumes", "create.populate", "create.define", "create.record"} {
		t.Run(point, func(t *testing.T) {
			h := newHost(t, point+"=error")
			spec := withVolume(withVolume(cmd("ct", "true"), "", "/a", true), "named", "/b", false)
			if _, _, err := h.s.Create(t.Context(), spec); err == nil {
				t.Fatal("no error")
			}
			if m := h.machines(); len(m) != 0 {
				t.Errorf("machines left: %v", m)
			}
			for _, v := range h.volumes() {
				if v != "named" {
					t.Errorf("volume left: %s", v)
				}
			}
			if j, err := h.s.journal.All(); len(j) != 0 || err != nil {
				t.Errorf("journal: %v %v", j, err)
			}
			if _, err := h.s.reserveName("x", "ct"); err != nil {
				t.Errorf("name is still taken: %v", err)
			}
		})
	}
}

// A daemon that dies in the middle of a create or a remove is played by journaling what it would have journaled: the next start makes it good.
func TestNextStartFinishesOrTakesBack(t *testing.T) {
	h := newHost(t, "")
	c := h.create(withVolume(cmd("ct", "true"), "", "/a", false))
	// create cut off after the machine was defined and before the record was written
	if err := errors.Join(h.s.records.Delete(string(c.ID)), h.s.journal.Put(string(c.ID), entry{Op: opCreate})); err != nil {
		t.Fatal(err)
	}
	h.down()
	h.up("")
	if v, m := h.volumes(), h.machines(); len(v)+len(m) != 0 {
		t.Errorf("cut-off create left %v %v", v, m)
	}
	// create cut off just after the record
	c = h.create(withVolume(cmd("dd", "true"), "", "/a", false))
	if err := h.s.journal.Put(string(c.ID), entry{Op: opCreate}); err != nil {
		t.Fatal(err)
	}
	h.down()
	h.up("")
	h.start("dd")
	h.exit("dd")
	// remove cut off after its journal entry
	if err := h.s.journal.Put(string(c.ID), entry{Op: opRemove, Orphans: []portlayer.VolumeID{c.Spec.Mounts[0].ID()}}); err != nil {
		t.Fatal(err)
	}
	h.down()
	h.up("")
	if v, m := h.volumes(), h.machines(); len(v)+len(m) != 0 {
		t.Errorf("cut-off remove left %v %v", v, m)
	}
	if all, _ := h.s.List(t.Context()); len(all) != 0 {
		t.Errorf("containers left: %v", all)
	}
}

func TestFailedStartLeavesNoMachineOn(t *testing.T) {
	for _, point := range []string{"start.power", "start.configure", "start.record"} {
		t.Run(point, func(t *testing.T) {
			h := newHost(t, point+"=error")
			h.create(withVolume(cmd("ct", "sleep", "100"), "data", "/d", false))
			if err := h.s.Start(t.Context(), "ct"); err == nil {
				t.Fatal("no error")
			}
			m, err := h.hv.Machine(t.Context(), h.machines()[0])
			if err != nil {
				t.Fatal(err)
			}
			if st, err := m.State(t.Context()); st != portlayer.PoweredOff || err != nil {
				t.Errorf("machine is %v, %v", st, err)
			}
			d, err := h.vols.Get(t.Context(), portlayer.VolumeID{Name: "data"})
			if err != nil || len(d.Attached) != 0 {
				t.Errorf("volume is still attached: %v, %v", d.Attached, err)
			}
		})
	}
}

func TestUnknownCommandIsExit127(t *testing.T) {
	h := newHost(t, "")
	h.create(cmd("ct", "no-such-command"))
	err := h.s.Start(t.Context(), "ct")
	if !fault.Is(err, fault.NotFound) || !strings.Contains(err.Error(), "executable file not found") {
		t.Fatalf("err = %v", err)
	}
	if c, _ := h.s.Get(t.Context(), "ct"); c.State.ExitCode != 127 {
		t.Errorf("state %+v", c.State)
	}
}

// Containers outlive the daemon: output goes on where it was, an exit while it was away is known, a stopped one stays stopped.
func TestContainersOutliveTheDaemon(t *testing.T) {
	h := newHost(t, "")
	h.create(withVolume(cmd("long", "sh", "-c", "echo one; sleep 1000"), "data", "/d", false))
	spec := cmd("short", "sh", "-c", "echo a; sleep 1; echo b; exit 5")
	h.create(spec)
	h.create(cmd("off", "true"))
	h.start("long")
	h.start("short")
	h.down()
	h.up("")
	if st := h.exit("short"); st.ExitCode != 5 {
		t.Errorf("short: %+v", st)
	}
	if got := h.logs("short"); got != "a\nb\n" {
		t.Errorf("logs %q", got)
	}
	c, err := h.s.Get(t.Context(), "long")
	if err != nil || c.State.Phase != portlayer.Running {
		t.Fatalf("long: %+v, %v", c.State, err)
	}
	if d, err := h.vols.Get(t.Context(), portlayer.VolumeID{Name: "data"}); err != nil || len(d.Attached) != 1 {
		t.Errorf("data is not attached again: %+v, %v", d, err)
	}
	if err := h.s.Stop(t.Context(), "long", 0, nil); err != nil {
		t.Fatal(err)
	}
	if got := h.logs("long"); got != "one\n" {
		t.Errorf("logs %q", got)
	}
	if c, _ := h.s.Get(t.Context(), "off"); c.State.Phase != portlayer.Created {
		t.Errorf("off: %+v", c.State)
	}
}

func TestMachineThatVanishedIsToldOf(t *testing.T) {
	h := newHost(t, "")
	c := h.create(cmd("ct", "sleep", "1000"))
	h.start("ct")
	m, err := h.hv.Machine(t.Context(), c.ID)
	if err != nil {
		t.Fatal(err)
	}
	if err := m.PowerOff(t.Context()); err != nil {
		t.Fatal(err)
	}
	if st := h.exit("ct"); st.ExitCode != 137 || st.Error == "" {
		t.Errorf("state %+v", st)
	}
	h.start("ct")
	h.down()
	if err := m.PowerOff(t.Context()); err != nil {
		t.Fatal(err)
	}
	h.up("")
	if c, _ := h.s.Get(t.Context(), "ct"); c.State.Phase != portlayer.Exited || c.State.ExitCode != exitUnknown {
		t.Errorf("after the daemon was away: %+v", c.State)
	}
}

func TestMachineThatWasRemovedIsToldOf(t *testing.T) {
	h := newHost(t, "")
	c := h.create(cmd("ct", "sleep", "1000"))
	h.start("ct")
	m, err := h.hv.Machine(t.Context(), c.ID)
	if err != nil {
		t.Fatal(err)
	}
	if err := m.Undefine(t.Context()); err != nil { // as an administrator does it in vCenter
		t.Fatal(err)
	}
	if st := h.exit("ct"); st.ExitCode != 137 || st.Error == "" {
		t.Errorf("state %+v", st)
	}
	h.start("ct") // on a machine that is made anew
	if err := h.s.Remove(t.Context(), "ct", true, false); err != nil {
		t.Error(err)
	}
}

// hidden is a hypervisor that cannot reach its machines.
type hidden struct {
	portlayer.Hypervisor
	on *atomic.Bool
}

func (h hidden) Machine(ctx context.Context, id portlayer.ContainerID) (portlayer.Machine, error) {
	if h.on.Load() {
		return nil, fault.New(fault.Unavailable, "no host is reached")
	}
	return h.Hypervisor.Machine(ctx, id)
}

func TestMachineOutOfReachIsFoundLater(t *testing.T) {
	h := newHost(t, "")
	h.create(cmd("ct", "sh", "-c", "sleep 3; exit 5"))
	h.start("ct")
	h.down()
	h.hidden.Store(true)
	h.up("")
	if c, err := h.s.Get(t.Context(), "ct"); err != nil || c.State.Phase != portlayer.Running {
		t.Fatalf("a container whose machine cannot be reached: %+v, %v", c.State, err)
	}
	h.hidden.Store(false)
	if st := h.exit("ct"); st.ExitCode != 5 {
		t.Errorf("state %+v", st)
	}
}

func TestAttachBeforeStartAndStdin(t *testing.T) {
	h := newHost(t, "")
	spec := cmd("ct", "cat")
	spec.Process.Stdin, spec.StdinOnce = true, true
	h.create(spec)
	var out bytes.Buffer
	attached, done := make(chan struct{}), make(chan error, 1)
	go func() {
		done <- h.s.Attach(context.Background(), "ct", portlayer.AttachStreams{Stdin: strings.NewReader("to and fro"), Stdout: &out, Live: true}, func() { close(attached) })
	}()
	<-attached
	h.start("ct")
	if err := <-done; err != nil {
		t.Fatal(err)
	}
	if out.String() != "to and fro" {
		t.Errorf("got %q", out.String())
	}
	if st := h.exit("ct"); st.ExitCode != 0 {
		t.Errorf("state %+v", st)
	}
}

func TestExec(t *testing.T) {
	h := newHost(t, "")
	h.create(cmd("ct", "sleep", "1000"))
	if _, err := h.s.ExecCreate(t.Context(), "ct", guest.Process{Args: []string{"true"}}, nil); !fault.Is(err, fault.Conflict) {
		t.Errorf("exec in a container that does not run: %v", err)
	}
	h.start("ct")
	id, err := h.s.ExecCreate(t.Context(), "ct", guest.Process{Args: []string{"sh", "-c", "echo in; exit 7"}}, nil)
	if err != nil {
		t.Fatal(err)
	}
	var out bytes.Buffer
	if err := h.s.ExecStart(t.Context(), id, portlayer.AttachStreams{Stdout: &out}, false, nil); err != nil {
		t.Fatal(err)
	}
	x, err := h.s.ExecGet(t.Context(), id)
	if err != nil || x.Exit == nil || x.Exit.Code != 7 || out.String() != "in\n" {
		t.Errorf("exec %+v, %v, output %q", x, err, out.String())
	}
	if err := h.s.ExecStart(t.Context(), id, portlayer.AttachStreams{}, false, nil); !fault.Is(err, fault.Conflict) {
		t.Errorf("second start: %v", err)
	}
	bad, err := h.s.ExecCreate(t.Context(), "ct", guest.Process{Args: []string{"nope"}}, nil)
	if err != nil {
		t.Fatal(err)
	}
	if err := h.s.ExecStart(t.Context(), bad, portlayer.AttachStreams{}, false, nil); !fault.Is(err, fault.NotFound) {
		t.Errorf("unknown command: %v", err)
	}
	if x, _ := h.s.ExecGet(t.Context(), bad); x.Exit == nil || x.Exit.Code != 127 {
		t.Errorf("exec %+v", x)
	}
}

func TestStopAndRestart(t *testing.T) {
	h := newHost(t, "")
	h.create(cmd("ct", "sleep", "1000"))
	if err := h.s.Stop(t.Context(), "ct", 0, nil); !errors.Is(err, portlayer.ErrNotModified) {
		t.Errorf("stop of a created container: %v", err)
	}
	h.start("ct")
	if err := h.s.Start(t.Context(), "ct"); !errors.Is(err, portlayer.ErrNotModified) {
		t.Errorf("second start: %v", err)
	}
	if err := h.s.Remove(t.Context(), "ct", false, false); !fault.Is(err, fault.Conflict) {
		t.Errorf("remove of a running container: %v", err)
	}
	if err := h.s.Restart(t.Context(), "ct", 0, nil); err != nil {
		t.Fatal(err)
	}
	if c, _ := h.s.Get(t.Context(), "ct"); c.State.Phase != portlayer.Running {
		t.Errorf("after restart: %+v", c.State)
	}
	if err := h.s.Remove(t.Context(), "ct", true, false); err != nil {
		t.Fatal(err)
	}
}

func TestNamesAndHandles(t *testing.T) {
	h := newHost(t, "")
	c := h.create(cmd("one", "true"))
	if _, _, err := h.s.Create(t.Context(), cmd("one", "true")); !fault.Is(err, fault.Conflict) || !strings.Contains(err.Error(), string(c.ID)) {
		t.Errorf("name twice: %v", err)
	}
	for _, bad := range []string{"-x", "a/b", "ü", "x"} {
		if _, _, err := h.s.Create(t.Context(), cmd(bad, "true")); !fault.Is(err, fault.Invalid) {
			t.Errorf("name %q: %v", bad, err)
		}
	}
	handle, err := h.s.Open(t.Context(), "one")
	if err != nil {
		t.Fatal(err)
	}
	if err := h.s.Rename(t.Context(), "one", "two"); err != nil {
		t.Fatal(err)
	}
	if err := h.s.Commit(t.Context(), handle); !fault.Is(err, fault.Conflict) {
		t.Errorf("stale commit: %v", err)
	}
	if _, err := h.s.Get(t.Context(), "one"); !fault.Is(err, fault.NotFound) {
		t.Errorf("old name: %v", err)
	}
	if _, _, err := h.s.Create(t.Context(), cmd("one", "true")); err != nil {
		t.Errorf("old name is not free: %v", err)
	}
	for _, spec := range []portlayer.ContainerSpec{{Name: "bad1", Image: "img"}, {Name: "bad2", Image: "img", Process: guest.Process{Args: []string{"x"}}, Memory: 5}} {
		if _, _, err := h.s.Create(t.Context(), spec); !fault.Is(err, fault.Invalid) {
			t.Errorf("%s: %v", spec.Name, err)
		}
	}
	if _, _, err := h.s.Create(t.Context(), portlayer.ContainerSpec{Image: "other", Process: guest.Process{Args: []string{"x"}}}); !fault.Is(err, fault.NotFound) {
		t.Errorf("unknown image: %v", err)
	}
}

func TestFollowLogs(t *testing.T) {
	h := newHost(t, "")
	spec := cmd("ct", "cat")
	spec.Process.Stdin, spec.StdinOnce = true, true
	h.create(spec)
	h.start("ct")
	in, typed := io.Pipe()
	go func() {
		_ = h.s.Attach(context.Background(), "ct", portlayer.AttachStreams{Stdin: in, Live: true}, nil)
	}()
	lines, done := make(chan string), make(chan error, 1)
	go func() {
		done <- h.s.Logs(context.Background(), "ct", portlayer.LogOptions{Follow: true, Tail: -1, Stdout: true}, func(e portlayer.LogEntry) error {
			lines <- string(e.Data)
			return nil
		})
	}()
	for _, want := range []string{"one\n", "two\n"} {
		if _, err := io.WriteString(typed, want); err != nil {
			t.Fatal(err)
		}
		if got := <-lines; got != want {
			t.Errorf("followed %q, want %q", got, want)
		}
	}
	typed.Close()
	if err := <-done; err != nil {
		t.Error(err)
	}
}

// deaf makes machines whose guests never answer.
type deaf struct{ portlayer.Hypervisor }

type deafMachine struct{ portlayer.Machine }

func (d deaf) Define(ctx context.Context, spec portlayer.MachineSpec) (portlayer.Machine, error) {
	m, err := d.Hypervisor.Define(ctx, spec)
	return deafMachine{m}, err
}

func (deafMachine) Channel(context.Context) (net.Conn, error) {
	near, far := net.Pipe()
	go func() { _, _ = io.Copy(io.Discard, far) }() // until near is closed
	return near, nil
}

// A guest that never answers does not keep its container from being removed by force: the start that waits for it is given up.
func TestRemoveDuringStart(t *testing.T) {
	h := newHost(t, "")
	h.s.o.Hypervisor = deaf{h.hv}
	c, _, err := h.s.Create(t.Context(), cmd("stuck", "echo"))
	if err != nil {
		t.Fatal(err)
	}
	started := make(chan error, 1)
	go func() { started <- h.s.Start(t.Context(), "stuck") }()
	u, err := h.s.find("stuck")
	if err != nil {
		t.Fatal(err)
	}
	for on := false; !on; time.Sleep(time.Millisecond) { // until its machine is on
		m, err := h.hv.Machine(t.Context(), c.ID)
		if err != nil {
			t.Fatal(err)
		}
		state, err := m.State(t.Context())
		on = err == nil && state == portlayer.PoweredOn && u.starting.Load() != nil
	}
	if err := h.s.Remove(t.Context(), "stuck", true, true); err != nil {
		t.Error(err)
	}
	if err := <-started; !errors.Is(err, errGivenUp) {
		t.Errorf("the start: %v", err)
	}
	if ids := h.machines(); len(ids) != 0 {
		t.Errorf("machines left: %v", ids)
	}
}

// What a container takes over from one that never started is filled from that one's image; from one that ran, it is taken as it is.
func TestTakenOverVolumeIsFilled(t *testing.T) {
	h := newHost(t, "")
	source := h.create(withVolume(cmd("source", "true"), "data", "/seed", false))
	taken := source.Spec.Mounts[0]
	taken.Origin, taken.From, taken.NoCopy = portlayer.FromContainer, source.ID, true
	sharer := cmd("sharer", "true")
	sharer.Mounts = []portlayer.Mount{taken}
	h.down()
	h.up("create.populate=error")
	if _, _, err := h.s.Create(t.Context(), sharer); err == nil || !strings.Contains(err.Error(), "create.populate") {
		t.Errorf("a volume that was never written is taken over as it is: %v", err)
	}
	h.start("source")
	h.exit("source")
	if c, _, err := h.s.Create(t.Context(), sharer); err != nil {
		t.Error(err)
	} else if err := h.s.Remove(t.Context(), string(c.ID), false, false); err != nil {
		t.Error(err)
	}
	if err := h.s.Remove(t.Context(), "source", false, false); err != nil {
		t.Fatal(err)
	}
	if _, _, err := h.s.Create(t.Context(), sharer); err != nil { // its volume is there still
		t.Error(err)
	}
}
