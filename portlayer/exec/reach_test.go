package exec

import (
	"context"
	"fmt"
	"net"
	"slices"
	"strings"
	"sync"
	"testing"

	"vch/guest"
	"vch/internal/fault"
	"vch/portlayer"
	"vch/portlayer/volume/volumetest"
)

// wiring is a portlayer.Wiring without networks that remembers who reaches what.
type wiring struct {
	portlayer.Wiring

	mu      sync.Mutex // guards below
	plugged map[portlayer.ContainerID][]portlayer.Reach
	had     map[portlayer.ContainerID]bool // was ever given something to reach
	log     []string
}

func newWiring() *wiring {
	return &wiring{plugged: map[portlayer.ContainerID][]portlayer.Reach{}, had: map[portlayer.ContainerID]bool{}}
}

func (w *wiring) note(format string, args ...any) {
	w.log = append(w.log, fmt.Sprintf(format, args...))
}

func (w *wiring) plug(p portlayer.Wired) error {
	w.mu.Lock()
	defer w.mu.Unlock()
	if _, twice := w.plugged[p.Container]; twice {
		return fault.New(fault.Internal, "%s is plugged twice", p.Name)
	}
	w.plugged[p.Container], w.had[p.Container] = p.Reaches, len(p.Reaches) > 0
	w.note("plug %s %d", p.Name, len(p.Reaches))
	return nil
}

func (w *wiring) Plug(_ context.Context, p portlayer.Wired) (portlayer.Plugged, error) {
	return portlayer.Plugged{}, w.plug(p)
}
func (w *wiring) Replug(_ context.Context, p portlayer.Wired, _ portlayer.Plugged) error {
	return w.plug(p)
}
func (w *wiring) Unplug(c portlayer.ContainerID) {
	w.mu.Lock()
	defer w.mu.Unlock()
	if _, ok := w.plugged[c]; ok {
		w.note("unplug")
	}
	delete(w.plugged, c)
	delete(w.had, c)
}
func (w *wiring) Reach(c portlayer.ContainerID, rs []portlayer.Reach) error {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.plugged[c] = rs
	w.had[c] = w.had[c] || len(rs) > 0
	return nil
}
func (w *wiring) Config(c portlayer.ContainerID) (n guest.Network) {
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.had[c] {
		n.Storage = &guest.Interface{Name: "storage", Tag: 4094}
	}
	return n
}
func (w *wiring) Connect(_ portlayer.ContainerID, frames net.Conn)   { frames.Close() }
func (w *wiring) Links(portlayer.ContainerID) []portlayer.Link       { return nil }
func (w *wiring) Recall(portlayer.ContainerID, []portlayer.Endpoint) {}
func (w *wiring) Release(portlayer.ContainerID)                      {}
func (w *wiring) Rename(portlayer.ContainerID, string)               {}
func (w *wiring) Refer(_ context.Context, _ portlayer.ContainerID, es []portlayer.Endpoint) ([]portlayer.Endpoint, error) {
	return es, nil
}

// reaches is how many services a container reaches; -1: it is not plugged.
func (w *wiring) reaches(c portlayer.ContainerID) int {
	w.mu.Lock()
	defer w.mu.Unlock()
	if rs, ok := w.plugged[c]; ok {
		return len(rs)
	}
	return -1
}

// withDirectories is a host that has a store of directories beside its own, and links to reach its server by.
func withDirectories(t *testing.T) (*host, *wiring, *volumetest.Directories) {
	h := newHost(t, "")
	dirs := volumetest.NewDirectories("remote")
	h.again(newWiring(), dirs)
	return h, h.s.o.Wiring.(*wiring), dirs
}

// again starts the services anew, with that wiring and a store more.
func (h *host) again(w *wiring, dirs *volumetest.Directories) {
	h.t.Helper()
	h.down()
	h.wiring, h.dirs = w, dirs
	h.up("")
}

func remote(spec portlayer.ContainerSpec, target string, ro bool) portlayer.ContainerSpec {
	spec.Mounts = append(spec.Mounts, portlayer.Mount{Kind: portlayer.VolumeMount, Volume: "data", Store: "remote", Qualified: true, Target: target, ReadOnly: ro})
	return spec
}

// A container reaches the servers of its volumes from its start to its end, also when they are away while the daemon comes back; several have one volume at once; a machine for files, and one
// for a volume, reach them, too.
func TestReachesOfAContainer(t *testing.T) {
	h, w, dirs := withDirectories(t)
	one := h.create(remote(cmd("one", "sleep", "1000"), "/srv", false))
	two := h.create(remote(cmd("two", "sleep", "1000"), "/srv", false))
	plain := h.create(cmd("plain", "sleep", "1000"))
	for _, c := range []string{"one", "two", "plain"} {
		h.start(c)
	}
	if w.reaches(one.ID) != 1 || w.reaches(two.ID) != 1 || w.reaches(plain.ID) != 0 {
		t.Fatalf("%d, %d, %d", w.reaches(one.ID), w.reaches(two.ID), w.reaches(plain.ID))
	}
	c, err := h.s.Get(t.Context(), "one")
	if err != nil || len(c.State.Reaches) != 1 {
		t.Errorf("%+v, %v", c.State, err)
	}
	// One more volume in one that runs, and away again.
	if _, err := h.s.AttachVolume(t.Context(), "plain", portlayer.Mount{Kind: portlayer.VolumeMount, Volume: "data", Store: "remote", Qualified: true, Target: "/late"}); err != nil {
		t.Fatal(err)
	}
	if w.reaches(plain.ID) != 1 {
		t.Errorf("%d", w.reaches(plain.ID))
	}
	if _, err := h.s.DetachVolume(t.Context(), "plain", "/late"); err != nil {
		t.Fatal(err)
	}
	if c, _ := h.s.Get(t.Context(), "plain"); w.reaches(plain.ID) != 0 || len(c.State.Reaches) != 0 {
		t.Errorf("%d, %+v", w.reaches(plain.ID), c.State.Reaches)
	}
	// The daemon comes back while the server is away.
	dirs.Degrade("it does not answer")
	w = newWiring()
	h.again(w, dirs)
	if w.reaches(one.ID) != 1 || w.reaches(plain.ID) != 0 {
		t.Errorf("after a restart: %d, %d; %v", w.reaches(one.ID), w.reaches(plain.ID), w.log)
	}
	// What cannot be asked for fails, and says why; a start that failed reaches nothing.
	if err := h.s.Stop(t.Context(), "two", 9, nil); err != nil {
		t.Fatal(err)
	}
	if err := h.s.Start(t.Context(), "two"); !fault.Is(err, fault.Unavailable) || !strings.Contains(err.Error(), "it does not answer") || w.reaches(two.ID) != -1 {
		t.Errorf("%v, %d", err, w.reaches(two.ID))
	}
	dirs.Degrade("")
	h.start("two")
	// The end.
	for _, name := range []string{"one", "two"} {
		if err := h.s.Kill(t.Context(), name, 9); err != nil {
			t.Fatal(err)
		}
		h.exit(name)
	}
	if c, _ := h.s.Get(t.Context(), "one"); w.reaches(one.ID) != -1 || len(c.State.Reaches) != 0 {
		t.Errorf("%d, %+v", w.reaches(one.ID), c.State.Reaches)
	}
	// Its files, while it does not run, and its volume, while nobody has it.
	if _, err := h.s.StatPath(t.Context(), "one", "/srv"); err != nil {
		t.Error(err)
	}
	if w.reaches(one.ID) != 1 {
		t.Errorf("for its files: %d; %v", w.reaches(one.ID), w.log)
	}
	if err := h.s.Remove(t.Context(), "one", false, false); err != nil {
		t.Error(err)
	}
	if w.reaches(one.ID) != -1 {
		t.Errorf("removed, and %d", w.reaches(one.ID))
	}
	var out strings.Builder
	vol, err := dirs.Get(t.Context(), "data")
	if err != nil {
		t.Fatal(err)
	}
	if err := h.s.Export(t.Context(), vol, &out); err != nil || out.Len() == 0 {
		t.Errorf("%v, %d bytes", err, out.Len())
	}
	if !slices.ContainsFunc(w.log, func(l string) bool {
		return strings.HasPrefix(l, "plug the utility machine that reads volume data") && strings.HasSuffix(l, " 1")
	}) {
		t.Errorf("%q", w.log)
	}
	for _, name := range []string{"two", "plain"} {
		if err := h.s.Remove(t.Context(), name, true, false); err != nil {
			t.Error(err)
		}
	}
	w.mu.Lock()
	defer w.mu.Unlock()
	if len(w.plugged) != 0 {
		t.Errorf("left: %v", w.plugged)
	}
}

// What was written last may be lost where a server does not answer, and the container's record says so; where it answers, a machine is given its time.
func TestWritesOut(t *testing.T) {
	h, _, dirs := withDirectories(t)
	h.create(remote(cmd("writer", "sleep", "1000"), "/srv", false))
	h.create(remote(cmd("reader", "sleep", "1000"), "/srv", true))
	for _, name := range []string{"writer", "reader"} {
		h.start(name)
	}
	writes := func(name string) (bool, string) {
		u, err := h.s.find(name)
		if err != nil {
			t.Fatal(err)
		}
		r := u.snapshot().run
		return h.s.writesOut(t.Context(), u, r), r.ending()
	}
	if on, says := writes("writer"); !on || strings.Contains(says, "lost") {
		t.Errorf("%v, %q", on, says)
	}
	if on, says := writes("reader"); on || strings.Contains(says, "lost") {
		t.Errorf("%v, %q", on, says)
	}
	dirs.Degrade("it does not answer")
	if on, says := writes("writer"); on || !strings.Contains(says, "what was written last to volume data@remote may be lost: it does not answer") {
		t.Errorf("%v, %q", on, says)
	}
	dirs.Degrade("")
	for _, name := range []string{"writer", "reader"} {
		if err := h.s.Remove(t.Context(), name, true, false); err != nil {
			t.Error(err)
		}
	}
}

// A VCH without networks says that it cannot have such volumes.
func TestNoLink(t *testing.T) {
	h := newHost(t, "")
	h.down()
	h.dirs = volumetest.NewDirectories("remote")
	h.up("")
	h.create(remote(cmd("one", "sleep", "1000"), "/srv", false))
	if err := h.s.Start(t.Context(), "one"); !fault.Is(err, fault.Unsupported) || !strings.Contains(err.Error(), "reach the servers of volumes") {
		t.Errorf("%v", err)
	}
	if err := h.s.Remove(t.Context(), "one", true, false); err != nil {
		t.Error(err)
	}
}
