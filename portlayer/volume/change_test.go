package volume

import (
	"context"
	"errors"
	"io"
	"slices"
	"strings"
	"sync"
	"testing"

	"vch/internal/fault"
	"vch/portlayer"
	"vch/portlayer/volume/volumetest"
)

// content is what a container service says and does here: it keeps what it was asked.
type content struct {
	mu     sync.Mutex // guards below
	asked  []string
	refuse error // what everything but a thaw ends with
	late   error // what a thaw ends with
	inside *portlayer.Inside
}

func (c *content) ask(what string) error {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.asked = append(c.asked, what)
	return c.refuse
}

func (c *content) was(t *testing.T, want ...string) {
	t.Helper()
	c.mu.Lock()
	defer c.mu.Unlock()
	if !slices.Equal(c.asked, want) {
		t.Errorf("asked %q, want %q", c.asked, want)
	}
	c.asked = nil
}

func (c *content) Freeze(_ context.Context, by portlayer.ContainerID, vol portlayer.Volume) (func() error, error) {
	if err := c.ask("freeze " + vol.Ref() + " of " + string(by)); err != nil {
		return nil, err
	}
	return func() error { _ = c.ask("thaw " + vol.Ref()); return c.late }, nil
}

func (c *content) Grow(_ context.Context, vol portlayer.Volume) error {
	return c.ask("grow " + vol.Ref())
}

func (c *content) Export(_ context.Context, vol portlayer.Volume, w io.Writer) error {
	_, err := io.WriteString(w, "content of "+vol.Ref())
	return errors.Join(err, c.ask("export "+vol.Ref()))
}

func (c *content) Import(_ context.Context, id portlayer.VolumeID, maker string, make func() (portlayer.Volume, error), r io.Reader) error {
	vol, err := make()
	if err != nil {
		return err
	}
	if vol.Name != id.Name || vol.Maker != maker {
		return fault.New(fault.Internal, "%+v is not %s of %s", vol, id, maker)
	}
	text, err := io.ReadAll(r)
	return errors.Join(err, c.ask("import "+vol.Ref()+" "+string(text)))
}

func (c *content) Inside(context.Context, portlayer.Volume) *portlayer.Inside { return c.inside }

// changing is a host with two stores and somebody who reaches content.
func changing(t *testing.T) (*host, *content) {
	t.Helper()
	h, c := newHost(t, volumetest.NewStore("default"), volumetest.NewStore("fast")), &content{}
	h.Reach(c)
	return h, c
}

func (h *host) running(c portlayer.ContainerID, name portlayer.VolumeName, ro bool) {
	h.t.Helper()
	if err := h.Attach(c, "web", []portlayer.Mount{mount(name, "/d", ro)}); err != nil {
		h.t.Fatal(err)
	}
}

func TestBeforeReach(t *testing.T) {
	h := newHost(t, volumetest.NewStore("default"))
	h.create("data")
	_, err := h.Resize(t.Context(), plain("data"), "2G")
	is(t, err, fault.Unavailable, "starting")
	is(t, h.Export(t.Context(), plain("data"), io.Discard), fault.Unavailable)
	_, err = h.Import(t.Context(), portlayer.VolumeRequest{Name: "new"}, strings.NewReader("x"))
	is(t, err, fault.Unavailable)
}

func TestResize(t *testing.T) {
	h, c := changing(t)
	h.create("data")
	vol, err := h.Resize(t.Context(), plain("data"), "3G")
	if err != nil || vol.Capacity != 3*gib {
		t.Errorf("%+v, %v", vol, err)
	}
	c.was(t, "grow data")
	_, err = h.Resize(t.Context(), plain("data"), "1G")
	is(t, err, fault.Invalid, "shrink")
	_, err = h.Resize(t.Context(), plain("data"), "-1")
	is(t, err, fault.Invalid, "-1")
	_, err = h.Resize(t.Context(), plain("none"), "1G")
	is(t, err, fault.NotFound, "none")
	c.was(t)
	c.refuse = fault.New(fault.Unavailable, "no machine")
	_, err = h.Resize(t.Context(), plain("data"), "4G")
	is(t, err, fault.Unavailable, "has 4GiB now", "mounted writable next", "no machine")
	c.refuse = nil
	h.running("c", "data", true)
	_, err = h.Resize(t.Context(), plain("data"), "5G")
	is(t, err, fault.InUse, "web", "read-only")
	h.Detach("c")
	h.running("c", "data", false)
	if _, err := h.Resize(t.Context(), plain("data"), "5G"); err != nil {
		t.Error(err)
	}
}

// A copy is made of a volume that stands still: nobody writes to it, or who does waits.
func TestCopies(t *testing.T) {
	h, c := changing(t)
	h.create("data")
	from := func(name portlayer.VolumeName, text string, more ...string) error {
		_, err := h.Create(t.Context(), portlayer.VolumeRequest{Name: name, Options: opts(append([]string{"from", text}, more...)...)})
		return err
	}
	if err := from("one", "data"); err != nil {
		t.Fatal(err)
	}
	if err := from("one", "data"); err != nil {
		t.Errorf("again: %v", err)
	}
	is(t, from("one", "one"), fault.Conflict, "was not made from one")
	is(t, from("data", "one"), fault.Conflict, "was not made from one")
	is(t, from("bad", "none"), fault.NotFound, "none")
	is(t, from("bad", ""), fault.Invalid, "from")
	is(t, from("bad", "data@none"), fault.NotFound, "no snapshot none")
	is(t, from("bad", "data@default@none"), fault.NotFound, "no snapshot none")
	is(t, from("bad", "a@b@c@d"), fault.Invalid, "a@b@c@d")
	is(t, from("bad", "data", "Capacity", "1M"), fault.Invalid)
	c.was(t)
	// While a container writes, it waits.
	h.running("c", "data", false)
	if err := from("two", "data", "VolumeStore", "fast"); err != nil {
		t.Error(err)
	}
	c.was(t, "freeze data of c", "thaw data")
	if d, err := h.Get(t.Context(), plain("two")); err != nil || d.Store != "fast" || len(d.Was) != 1 {
		t.Errorf("%+v, %v", d, err)
	}
	c.late = fault.New(fault.Unavailable, "it took too long")
	is(t, from("three", "data"), fault.Unavailable, "it took too long")
	_, err := h.Snapshot(t.Context(), plain("data"), "s", nil)
	is(t, err, fault.Unavailable, "it took too long")
	_, err = h.Get(t.Context(), plain("three"))
	is(t, err, fault.NotFound)
	if list, err := h.Snapshots(t.Context(), plain("data")); err != nil || len(list) != 0 {
		t.Errorf("a snapshot that is not whole was kept: %v, %v", list, err)
	}
	c.late, c.asked = nil, nil
	// A name that could be a snapshot and a store is said in full.
	for _, name := range []string{"fast", "s"} {
		if _, err := h.Snapshot(t.Context(), plain("data"), name, nil); err != nil {
			t.Fatal(err)
		}
	}
	is(t, from("four", "data@fast"), fault.Conflict, "data@default@fast")
	if err := errors.Join(from("four", "data@default@fast"), from("five", "data@s"), from("six", "data@default"), from("seven", "two@fast")); err != nil {
		t.Error(err)
	}
	h.Detach("c")
	is(t, h.Remove(t.Context(), plain("data")), fault.Conflict, "fast, s", "vch volume snapshot rm data")
	is(t, h.RemoveSnapshot(t.Context(), plain("data"), "none"), fault.NotFound)
	if err := errors.Join(h.RemoveSnapshot(t.Context(), plain("data"), "fast"), h.RemoveSnapshot(t.Context(), plain("data"), "s"), h.Remove(t.Context(), plain("data"))); err != nil {
		t.Error(err)
	}
	if len(h.held) > 0 {
		t.Errorf("held: %v", h.held)
	}
}

// While the VCH works on a volume, others hear what it does.
func TestWork(t *testing.T) {
	h, _ := changing(t)
	vol := h.create("data")
	release, err := h.hold(vol, "volume data is being copied", true)
	if err != nil {
		t.Fatal(err)
	}
	is(t, h.Attach("c", "web", []portlayer.Mount{mount("data", "/d", false)}), fault.InUse, "volume data is being copied; try again")
	is(t, h.Remove(t.Context(), plain("data")), fault.InUse, "being copied")
	_, err = h.Resize(t.Context(), plain("data"), "3G")
	is(t, err, fault.InUse, "being copied")
	is(t, h.RemoveSnapshot(t.Context(), plain("data"), "s"), fault.InUse, "being copied")
	h.running("c", "data", true) // who reads does no harm
	if d, err := h.Get(t.Context(), plain("data")); err != nil || len(d.Attached) != 1 {
		t.Errorf("%+v, %v", d.Attached, err)
	}
	release()
	h.Detach("c")
	h.running("c", "data", false)
	_, err = h.hold(vol, "x", true)
	is(t, err, fault.InUse, "web")
	h.Detach("c")
	h.expect("create data driver=fake-vmdk",
		"mount data container=c destination=/d driver=qemu-vmdk propagation= read/write=false", "unmount data container=c driver=qemu-vmdk",
		"mount data container=c destination=/d driver=qemu-vmdk propagation= read/write=true", "unmount data container=c driver=qemu-vmdk")
}

func TestRenameAndMove(t *testing.T) {
	h, _ := changing(t)
	first := h.create("data")
	h.create("other")
	_, err := h.Rename(t.Context(), plain("data"), "other")
	is(t, err, fault.Conflict, "other@default")
	_, err = h.Rename(t.Context(), plain("data"), "x")
	is(t, err, fault.Invalid, "too short")
	h.reserve("c", "data")
	_, err = h.Rename(t.Context(), plain("data"), "new")
	is(t, err, fault.InUse, "[c]")
	_, err = h.Move(t.Context(), plain("data"), "fast", nil)
	is(t, err, fault.InUse, "[c]")
	h.Release("c")
	vol, err := h.Rename(t.Context(), plain("data"), "new")
	if err != nil || vol.Name != "new" || vol.Label == first.Label || !slices.Equal(vol.Was, []portlayer.Label{first.Label}) {
		t.Fatalf("%+v, %v", vol, err)
	}
	_, err = h.Move(t.Context(), plain("new"), "none", nil)
	is(t, err, fault.Invalid, "none")
	_, err = h.Move(t.Context(), plain("new"), "default", nil)
	is(t, err, fault.Conflict, "in store default already")
	if _, err := h.Create(t.Context(), portlayer.VolumeRequest{Name: "new", Store: "fast"}); err != nil {
		t.Fatal(err)
	}
	_, err = h.Move(t.Context(), plain("new"), "fast", nil)
	is(t, err, fault.Conflict, "new@fast")
	if err := h.Remove(t.Context(), portlayer.VolumeID{Name: "new", Store: "fast"}); err != nil {
		t.Fatal(err)
	}
	moved, err := h.Move(t.Context(), plain("new"), "fast", nil)
	if err != nil || moved.Store != "fast" || !moved.Created.Equal(first.Created) || len(moved.Was) != 2 {
		t.Errorf("%+v, %v", moved, err)
	}
	if d, err := h.Get(t.Context(), plain("new")); err != nil || d.Store != "fast" || d.Ref() != "new" {
		t.Errorf("%+v, %v", d, err)
	}
}

func TestImport(t *testing.T) {
	h, c := changing(t)
	vol, err := h.Import(t.Context(), portlayer.VolumeRequest{Name: "data", Options: opts("Capacity", "2G")}, strings.NewReader("tar"))
	if err != nil || vol.Capacity != 2*gib {
		t.Fatalf("%+v, %v", vol, err)
	}
	c.was(t, "import data tar")
	_, err = h.Import(t.Context(), portlayer.VolumeRequest{Name: "data"}, strings.NewReader("tar"))
	is(t, err, fault.Conflict, "exists already")
	_, err = h.Import(t.Context(), portlayer.VolumeRequest{}, strings.NewReader("tar"))
	is(t, err, fault.Invalid, "name")
	_, err = h.Import(t.Context(), portlayer.VolumeRequest{Name: "new", Options: opts("from", "data")}, strings.NewReader("tar"))
	is(t, err, fault.Invalid, "not both")
	// What fails leaves nothing, whatever protects it.
	c.refuse = fault.New(fault.Invalid, "no archive")
	_, err = h.Import(t.Context(), portlayer.VolumeRequest{Name: "new", Labels: opts(portlayer.ProtectLabel, "")}, strings.NewReader("tar"))
	is(t, err, fault.Invalid, "import volume new", "no archive")
	_, err = h.Get(t.Context(), plain("new"))
	is(t, err, fault.NotFound)
	c.refuse = nil
	// The disk itself, of the volume or of a snapshot; not while somebody writes.
	var disk strings.Builder
	if err := h.ExportDisk(t.Context(), "data", &disk); err != nil {
		t.Fatal(err)
	}
	if vol, err := h.ImportDisk(t.Context(), portlayer.VolumeRequest{Name: "disk", Store: "fast"}, strings.NewReader(disk.String())); err != nil || vol.Capacity != 2*gib || vol.Store != "fast" {
		t.Errorf("%+v, %v", vol, err)
	}
	_, err = h.ImportDisk(t.Context(), portlayer.VolumeRequest{Name: "data"}, strings.NewReader(disk.String()))
	is(t, err, fault.Conflict, "exists already")
	_, err = h.ImportDisk(t.Context(), portlayer.VolumeRequest{Name: "nothing"}, strings.NewReader("nothing"))
	is(t, err, fault.Invalid)
	if _, err := h.Snapshot(t.Context(), plain("data"), "snap", nil); err != nil {
		t.Fatal(err)
	}
	h.running("c", "data", false)
	is(t, h.ExportDisk(t.Context(), "data", io.Discard), fault.InUse, "web", "make a snapshot")
	if err := h.ExportDisk(t.Context(), "data@snap", io.Discard); err != nil {
		t.Error(err)
	}
	h.Detach("c")
	c.asked = nil
	var out strings.Builder
	if err := h.Export(t.Context(), plain("data"), &out); err != nil || out.String() != "content of data" {
		t.Errorf("%q, %v", out.String(), err)
	}
}

func TestProtect(t *testing.T) {
	h, _ := changing(t)
	for label, protected := range map[string]bool{"": true, "true": true, "1": true, "false": false, "0": false} {
		name := portlayer.VolumeName("v-" + label + "x")
		if _, err := h.Create(t.Context(), portlayer.VolumeRequest{Name: name, Labels: opts(portlayer.ProtectLabel, label)}); err != nil {
			t.Fatal(err)
		}
		err := h.Remove(t.Context(), plain(name))
		if protected {
			is(t, err, fault.Conflict, "protected", "vch volume unprotect "+string(name))
		} else if err != nil {
			t.Error(err)
		}
	}
	_, err := h.Create(t.Context(), portlayer.VolumeRequest{Name: "bad", Labels: opts(portlayer.ProtectLabel, "perhaps")})
	is(t, err, fault.Invalid, "true or false")
	// A container's create that fails takes back what it made, protected or not; its removal does not.
	m, _, err := h.Reserve(t.Context(), "c", portlayer.Mount{Kind: portlayer.VolumeMount, Labels: opts(portlayer.ProtectLabel, "")})
	if err != nil {
		t.Fatal(err)
	}
	h.Release("c")
	if err := h.Unmake(t.Context(), m.ID(), ""); err != nil {
		t.Error(err)
	}
	if _, err := h.Get(t.Context(), m.ID()); err != nil {
		t.Error(err)
	}
	if err := h.Unmake(t.Context(), m.ID(), "c"); err != nil {
		t.Error(err)
	}
	_, err = h.Get(t.Context(), m.ID())
	is(t, err, fault.NotFound)
}
