package exec

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"vch/guest"
	"vch/internal/fault"
	"vch/portlayer"
)

func volumeAt(name, target string, ro bool) portlayer.Mount {
	return portlayer.Mount{Kind: portlayer.VolumeMount, Volume: portlayer.VolumeName(name), Target: target, ReadOnly: ro, Origin: portlayer.FromSpec}
}

func (h *host) attach(ref string, m portlayer.Mount) {
	h.t.Helper()
	if _, err := h.s.AttachVolume(h.t.Context(), ref, m); err != nil {
		h.t.Fatal(err)
	}
}

func (h *host) detach(ref, target string) {
	h.t.Helper()
	if _, err := h.s.DetachVolume(h.t.Context(), ref, target); err != nil {
		h.t.Fatal(err)
	}
}

// says runs a line of the fake's shell in a container and gives what it prints.
func (h *host) says(ref, line string) string {
	h.t.Helper()
	id, err := h.s.ExecCreate(h.t.Context(), ref, guest.Process{Args: []string{"sh", "-c", line}}, nil)
	if err != nil {
		h.t.Fatal(err)
	}
	var out bytes.Buffer
	if err := h.s.ExecStart(h.t.Context(), id, portlayer.AttachStreams{Stdout: &out, Stderr: &out}, false, nil); err != nil {
		h.t.Fatal(err)
	}
	return out.String()
}

// has checks what a container has by every account: its record, its machine's definition, and who refers to and holds the volume.
func (h *host) has(ref string, running bool, targets map[string]string) {
	h.t.Helper()
	c, err := h.s.Get(h.t.Context(), ref)
	if err != nil {
		h.t.Fatal(err)
	}
	want := map[string]bool{}
	for _, m := range c.Spec.Mounts {
		if targets[m.Target] != string(m.Volume) {
			h.t.Errorf("%s has %s mounted at %s", ref, m.Volume, m.Target)
		}
		want[string(m.Volume)] = true
	}
	if len(c.Spec.Mounts) != len(targets) {
		h.t.Errorf("%s has mounts %+v, not %v", ref, c.Spec.Mounts, targets)
	}
	vols, _, err := h.vols.List(h.t.Context())
	if err != nil {
		h.t.Fatal(err)
	}
	var serials []string
	for _, v := range vols {
		held := slices.ContainsFunc(v.Attached, func(a portlayer.Attachment) bool { return a.Container == c.ID })
		if name := string(v.Name); slices.Contains(v.Refs, c.ID) != want[name] || held != (want[name] && running) {
			h.t.Errorf("%s: volume %s is referred to by %v and held by %v", ref, name, v.Refs, v.Attached)
		}
		if want[string(v.Name)] {
			serials = append(serials, string(v.Label))
		}
	}
	m, err := h.hv.Machine(h.t.Context(), c.ID)
	if err != nil {
		h.t.Fatal(err)
	}
	disks, err := m.Disks(h.t.Context())
	var got []string
	for _, d := range disks {
		if d.Serial != rootSerial {
			got = append(got, d.Serial)
		}
	}
	slices.Sort(serials)
	slices.Sort(got)
	if err != nil || !slices.Equal(got, serials) {
		h.t.Errorf("%s: its machine has the disks %v, not %v; %v", ref, got, serials, err)
	}
	if j, err := h.s.journal.All(); err != nil || len(j) != 0 {
		h.t.Errorf("journal: %v, %v", j, err)
	}
}

func TestVolumesComeAndGoWhileRunning(t *testing.T) {
	h := newHost(t, "")
	h.create(cmd("web", "sleep", "1000"))
	h.create(cmd("db", "sleep", "1000"))
	h.start("web")
	h.start("db")
	h.attach("web", volumeAt("data", "/data", false))
	h.has("web", true, map[string]string{"/data": "data"})
	if got := h.says("web", "write /data/f kept; read /data/f"); got != "kept" {
		t.Errorf("read %q", got)
	}
	for _, e := range []string{"volume create", "volume mount"} {
		if !h.saw(e) {
			t.Errorf("no event %q", e)
		}
	}
	refused := func(kind fault.Kind, words, ref string, m portlayer.Mount) {
		t.Helper()
		if _, err := h.s.AttachVolume(t.Context(), ref, m); !fault.Is(err, kind) || !strings.Contains(err.Error(), words) {
			t.Errorf("%s at %s of %s: %v", m.Volume, m.Target, ref, err)
		}
	}
	refused(fault.InUse, "container web is running", "db", volumeAt("data", "/d", true))
	refused(fault.Conflict, "has volume data mounted at /data already", "web", volumeAt("more", "/data", false))
	refused(fault.Invalid, "nothing can be mounted at /proc", "web", volumeAt("more", "/proc", false))
	refused(fault.Invalid, "not an absolute, clean path", "web", volumeAt("more", "/a/../b", false))
	refused(fault.Invalid, "say which volume", "web", volumeAt("", "/anonymous", false))
	refused(fault.NotFound, "none", "none", volumeAt("more", "/m", false))
	h.has("db", true, nil)

	// Below what is there, not above it.
	h.attach("web", volumeAt("more", "/data/more/deep", false))
	refused(fault.Conflict, "/data/more/deep", "web", volumeAt("other", "/data/more", false))
	h.has("web", true, map[string]string{"/data": "data", "/data/more/deep": "more"})
	if _, err := h.s.DetachVolume(t.Context(), "web", "/data"); !fault.Is(err, fault.InUse) || !strings.Contains(err.Error(), "/data/more/deep") {
		t.Errorf("detach below another: %v", err)
	}
	h.has("web", true, map[string]string{"/data": "data", "/data/more/deep": "more"})
	h.detach("web", "/data/more/deep")
	h.detach("web", "/data/")
	h.has("web", true, nil)
	if !h.saw("volume unmount") {
		t.Error("no event of the unmount")
	}
	if _, err := h.s.DetachVolume(t.Context(), "web", "/data"); !fault.Is(err, fault.NotFound) {
		t.Errorf("detach of nothing: %v", err)
	}

	// Readers share; none of them becomes a writer while it runs.
	h.attach("db", volumeAt("data", "/d", true))
	h.attach("web", volumeAt("data", "/d", true))
	refused(fault.Conflict, "mounted read-only at /d", "web", volumeAt("data", "/w", false))
	h.detach("db", "/d")
	refused(fault.Conflict, "detach it there first", "web", volumeAt("data", "/w", false))
	h.attach("web", volumeAt("data", "/also", true))
	h.detach("web", "/d")
	h.has("web", true, map[string]string{"/also": "data"})
	if got := h.says("web", "read /also/f"); got != "kept" {
		t.Errorf("read %q", got)
	}
	h.detach("web", "/also")
	h.attach("web", volumeAt("data", "/w", false))
	h.attach("web", volumeAt("data", "/r", true))
	if _, err := h.s.DetachVolume(t.Context(), "web", "/w"); !fault.Is(err, fault.Conflict) || !strings.Contains(err.Error(), "stays mounted at /r") {
		t.Errorf("the last writable mount of a volume that stays: %v", err)
	}
	h.detach("web", "/r")

	// It stays over stop and start, and the daemon's restart, and goes with the container.
	if err := h.s.Stop(t.Context(), "web", 0, nil); err != nil {
		t.Fatal(err)
	}
	h.has("web", false, map[string]string{"/w": "data"})
	h.start("web")
	h.down()
	h.up("")
	h.has("web", true, map[string]string{"/w": "data"})
	h.attach("web", volumeAt("more", "/m", false))
	if got := h.says("web", "read /w/f"); got != "kept" {
		t.Errorf("read %q", got)
	}
	h.detach("web", "/w")
	if err := h.s.Remove(t.Context(), "web", true, true); err != nil {
		t.Fatal(err)
	}
	for _, name := range []portlayer.VolumeName{"data", "more"} {
		if err := h.vols.Remove(t.Context(), portlayer.VolumeID{Name: name}); err != nil {
			t.Error(err)
		}
	}
}

func TestVolumesOfAStoppedContainer(t *testing.T) {
	h := newHost(t, "")
	h.create(withVolume(cmd("ct", "read", "/b/f"), "aa", "/a", false))
	h.create(withVolume(cmd("writer", "write", "/b/f", "text"), "bb", "/b", false))
	h.start("writer")
	h.exit("writer")
	h.attach("ct", volumeAt("bb", "/b", true))
	h.detach("ct", "/a")
	h.has("ct", false, map[string]string{"/b": "bb"})
	h.start("ct")
	h.exit("ct")
	if got := h.logs("ct"); got != "text" {
		t.Errorf("read %q", got)
	}
	// What nobody has written is filled for a reader, and nothing is left of a fill that fails.
	h.down()
	h.up("create.populate=error")
	if _, err := h.s.AttachVolume(t.Context(), "ct", volumeAt("new", "/n", true)); err == nil {
		t.Error("no machine fills it")
	}
	h.has("ct", false, map[string]string{"/b": "bb"})
	h.down()
	h.up("")
	h.attach("ct", volumeAt("new", "/n", true))
	h.has("ct", false, map[string]string{"/b": "bb", "/n": "new"})
}

// A busy volume stays with its container.
func TestDetachOfABusyVolume(t *testing.T) {
	h := newHost(t, "")
	h.create(withVolume(cmd("ct", "sleep", "1000"), "data", "/d", false))
	h.start("ct")
	id, err := h.s.ExecCreate(t.Context(), "ct", guest.Process{Args: []string{"sleep", "1000"}, Cwd: "/d"}, nil)
	if err != nil {
		t.Fatal(err)
	}
	if err := h.s.ExecStart(t.Context(), id, portlayer.AttachStreams{}, true, nil); err != nil {
		t.Fatal(err)
	}
	_, err = h.s.DetachVolume(t.Context(), "ct", "/d")
	if !fault.Is(err, fault.InUse) || !strings.Contains(err.Error(), "cannot detach volume data from /d") || !strings.Contains(err.Error(), "sleep") {
		t.Errorf("%v", err)
	}
	h.has("ct", true, map[string]string{"/d": "data"})
	if got := h.says("ct", "write /d/f x; read /d/f"); got != "x" {
		t.Errorf("read %q", got)
	}
}

// changePoints are the steps of a change at which it can be cut off: of an attach, and of a detach.
var changePoints = map[string][]string{
	"attach": {"change.journal", "change.plug", "change.mount", "change.record"},
	"detach": {"change.journal", "change.unplug", "change.record"},
}

// Every step of a change can fail; then the container has what it had.
func TestFailedChangeChangesNothing(t *testing.T) {
	for verb, points := range changePoints {
		for _, point := range points {
			t.Run(verb+" "+point, func(t *testing.T) {
				h := newHost(t, "")
				h.create(withVolume(cmd("ct", "sleep", "1000"), "data", "/d", false))
				h.start("ct")
				h.down()
				h.up(point + "=error")
				var err error
				if verb == "attach" {
					_, err = h.s.AttachVolume(t.Context(), "ct", volumeAt("more", "/d/m", false))
				} else {
					_, err = h.s.DetachVolume(t.Context(), "ct", "/d")
				}
				if err == nil {
					t.Fatal("no error")
				}
				h.has("ct", true, map[string]string{"/d": "data"})
				if got := h.says("ct", "write /d/f x; read /d/f"); got != "x" {
					t.Errorf("read %q", got)
				}
				h.down()
				h.up("")
				h.attach("ct", volumeAt("more", "/d/m", false))
				h.detach("ct", "/d/m")
				h.detach("ct", "/d")
				h.has("ct", true, nil)
			})
		}
	}
}

// A daemon that dies in the middle of a change is played by doing what it would have done so far: the next one takes it back, or finds it whole.
func TestNextStartSettlesAChange(t *testing.T) {
	for _, verb := range []string{"attach", "detach"} {
		for steps := range 4 {
			t.Run(fmt.Sprintf("%s after %d steps", verb, steps), func(t *testing.T) {
				h := newHost(t, "")
				h.create(withVolume(cmd("ct", "sleep", "1000"), "data", "/d", false))
				h.start("ct")
				if _, err := h.vols.Create(t.Context(), portlayer.VolumeRequest{Name: "more"}); err != nil {
					t.Fatal(err)
				}
				cutOff(t, h, verb, steps)
				h.down()
				h.up("")
				want := map[string]string{"/d": "data"}
				if steps == 3 && verb == "attach" {
					want["/m"] = "more"
				} else if steps == 3 {
					want = nil
				}
				// Nobody is refused what only looks taken: an attach comes after what is settled.
				h.attach("ct", volumeAt("third", "/t", false))
				h.detach("ct", "/t")
				h.has("ct", true, want)
				if want != nil {
					if got := h.says("ct", "write /d/f x; read /d/f"); got != "x" {
						t.Errorf("read %q", got)
					}
				}
				if err := h.s.Kill(t.Context(), "ct", 9); err != nil {
					t.Fatal(err)
				}
				h.exit("ct")
				h.start("ct")
				h.has("ct", true, want)
			})
		}
	}
}

// cutOff does the first steps of a change as the service does them, and leaves it there.
func cutOff(t *testing.T, h *host, verb string, steps int) {
	t.Helper()
	u, err := h.s.find("ct")
	if err != nil {
		t.Fatal(err)
	}
	err = u.ask(t.Context(), func() error {
		ctx, spec := t.Context(), u.c.Spec
		if verb == "attach" {
			m, _, err := h.vols.Reserve(ctx, u.c.ID, volumeAt("more", "/m", false))
			if err != nil {
				return err
			}
			spec.Mounts = append(slices.Clone(spec.Mounts), m)
		} else {
			spec.Mounts = nil
		}
		was, err := h.s.draft(ctx, u.c.ID, u.c.Version, u.c.Spec, u.c.Image)
		if err != nil {
			return err
		}
		now, err := h.s.draft(ctx, u.c.ID, u.c.Version, spec, u.c.Image)
		if err != nil {
			return err
		}
		p, err := planChange(was, now)
		if err != nil {
			return err
		}
		client, err := u.run.talk(ctx)
		if err != nil {
			return err
		}
		do := []func() error{
			func() error { return client.Unmount(ctx, "/d") },
			func() error { return u.run.machine.Reconfigure(ctx, p.unplug) },
		}
		if verb == "attach" {
			do = []func() error{
				func() error { return u.run.machine.Reconfigure(ctx, p.plug) },
				func() error { return client.Mount(ctx, p.specs["/m"]) },
			}
		}
		do = append(do, func() error { return u.save(func(c *portlayer.Container) { c.Spec = now.Spec }) })
		errs := []error{h.s.journal.Put(string(u.c.ID), entry{Op: opChange, Add: p.add, Gone: p.remove})}
		for _, step := range do[:steps] {
			errs = append(errs, step())
		}
		return errors.Join(errs...)
	})
	if err != nil {
		t.Fatal(err)
	}
}

// A container that ends in the middle of a change ends it.
func TestExitDuringAChange(t *testing.T) {
	h := newHost(t, "")
	h.create(withVolume(cmd("ct", "sleep", "1000"), "data", "/d", false))
	h.start("ct")
	if _, err := h.vols.Create(t.Context(), portlayer.VolumeRequest{Name: "more"}); err != nil {
		t.Fatal(err)
	}
	cutOff(t, h, "attach", 1)
	h.down()
	m, err := h.hv.Machine(t.Context(), h.machines()[0])
	if err != nil {
		t.Fatal(err)
	}
	if err := m.PowerOff(t.Context()); err != nil {
		t.Fatal(err)
	}
	h.up("")
	if st := h.exit("ct"); st.Phase != portlayer.Exited {
		t.Errorf("%+v", st)
	}
	if err := h.vols.Remove(t.Context(), portlayer.VolumeID{Name: "more"}); err != nil {
		t.Errorf("the volume of a change that never was: %v", err)
	}
	h.start("ct")
	h.has("ct", true, map[string]string{"/d": "data"})
}

// A handle of a running container changes its volumes, several at once, and nothing else.
func TestHandleOfARunningContainer(t *testing.T) {
	h := newHost(t, "")
	c := h.create(withVolume(withVolume(cmd("ct", "sleep", "1000"), "data", "/d", false), "deep", "/d/deep", false))
	h.start("ct")
	handle, err := h.s.Open(t.Context(), "ct")
	if err != nil {
		t.Fatal(err)
	}
	handle.Spec.Memory *= 2
	if err := h.s.Commit(t.Context(), handle); !fault.Is(err, fault.Unsupported) {
		t.Errorf("more memory for a machine that runs: %v", err)
	}
	for _, m := range []portlayer.Mount{volumeAt("xx", "/x", false), volumeAt("yy", "/x/y", false)} {
		if _, _, err := h.vols.Reserve(t.Context(), c.ID, m); err != nil {
			t.Fatal(err)
		}
	}
	u, err := h.s.find("ct")
	if err != nil {
		t.Fatal(err)
	}
	now := u.snapshot().container
	spec := now.Spec
	spec.Mounts = nil
	for _, m := range []portlayer.Mount{volumeAt("xx", "/x", false), volumeAt("yy", "/x/y", false)} {
		m.Store = portlayer.DefaultStore
		spec.Mounts = append(spec.Mounts, m)
	}
	if handle, err = h.s.draft(t.Context(), now.ID, now.Version, spec, now.Image); err != nil {
		t.Fatal(err)
	}
	if err := h.s.Commit(t.Context(), handle); err != nil {
		t.Fatal(err)
	}
	h.has("ct", true, map[string]string{"/x": "xx", "/x/y": "yy"})
	if err := h.s.Commit(t.Context(), handle); !fault.Is(err, fault.Conflict) {
		t.Errorf("a handle is committed twice: %v", err)
	}
}

// Many at once on one container: each comes whole, or hears why not.
func TestChangesAtOnce(t *testing.T) {
	h := newHost(t, "")
	h.create(cmd("one", "sleep", "1000"))
	h.create(cmd("two", "sleep", "1000"))
	h.start("one")
	h.start("two")
	var wg sync.WaitGroup
	for n := range 4 {
		for _, ref := range []string{"one", "two"} {
			wg.Go(func() {
				ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
				defer cancel()
				for range 5 {
					name := fmt.Sprintf("vol%d", n)
					_, err := h.s.AttachVolume(ctx, ref, volumeAt(name, "/"+name, false))
					if err == nil {
						_, err = h.s.DetachVolume(ctx, ref, "/"+name)
					} else if fault.Is(err, fault.InUse) {
						continue // the other has it
					}
					if err != nil {
						t.Error(err)
					}
				}
			})
		}
	}
	wg.Wait()
	h.has("one", true, nil)
	h.has("two", true, nil)
}
