package volume

import (
	"context"
	"fmt"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"

	"vch/internal/fault"
	"vch/portlayer"
	"vch/portlayer/record"
	"vch/portlayer/volume/volumetest"
)

const (
	mib = portlayer.MiB
	gib = portlayer.GiB
)

// host is a service over stores in memory, with what it published.
type host struct {
	*Service
	t      *testing.T
	mu     sync.Mutex // guards events
	events []string
}

func newHost(t *testing.T, stores ...portlayer.VolumeStore) *host {
	t.Helper()
	h := &host{t: t}
	s, err := New(Options{Stores: stores, AnonymousCapacity: 16 * mib, DefaultCapacity: 32 * mib, Publish: h.publish})
	if err != nil {
		t.Fatal(err)
	}
	h.Service = s
	return h
}

// publish keeps an event as text, its attributes sorted.
func (h *host) publish(e portlayer.Event) {
	text := e.Verb + " " + e.ID
	for _, k := range sortedKeys(e.Attrs) {
		text += fmt.Sprintf(" %s=%s", k, e.Attrs[k])
	}
	if e.Noun != "volume" || e.Time.IsZero() {
		text = "bad event " + text
	}
	h.mu.Lock()
	defer h.mu.Unlock()
	h.events = append(h.events, text)
}

// expect fails unless just these events came since the last expect.
func (h *host) expect(want ...string) {
	h.t.Helper()
	h.mu.Lock()
	defer h.mu.Unlock()
	if !slices.Equal(h.events, want) {
		h.t.Errorf("events %q, want %q", h.events, want)
	}
	h.events = nil
}

func (h *host) create(name portlayer.VolumeName) portlayer.Volume {
	h.t.Helper()
	vol, err := h.Create(h.t.Context(), portlayer.VolumeRequest{Name: name})
	if err != nil {
		h.t.Fatal(err)
	}
	return vol
}

func (h *host) reserve(c portlayer.ContainerID, name portlayer.VolumeName) (portlayer.Mount, bool) {
	h.t.Helper()
	m, made, err := h.Reserve(h.t.Context(), c, portlayer.Mount{Kind: portlayer.VolumeMount, Volume: name, Target: "/data"})
	if err != nil {
		h.t.Fatal(err)
	}
	return m, made
}

func is(t *testing.T, err error, k fault.Kind, words ...string) {
	t.Helper()
	if !fault.Is(err, k) {
		t.Errorf("err = %v (%v), want %v", err, fault.KindOf(err), k)
		return
	}
	for _, w := range words {
		if !strings.Contains(err.Error(), w) {
			t.Errorf("%q does not say %q", err, w)
		}
	}
}

func opts(kv ...string) map[string]string {
	m := map[string]string{}
	for i := 0; i < len(kv); i += 2 {
		m[kv[i]] = kv[i+1]
	}
	return m
}

func TestNewRefusesOneNameTwice(t *testing.T) {
	_, err := New(Options{Stores: []portlayer.VolumeStore{volumetest.NewStore("a"), volumetest.NewStore("b"), volumetest.NewStore("a")}})
	is(t, err, fault.Invalid, "two volume stores are called a", "memory:a")
	_, err = New(Options{DefaultCapacity: -1})
	is(t, err, fault.Invalid, "negative")
}

// The words are Moby's where a client may know them (docker-volumes.md), and every refusal leaves nothing.
func TestCreateRefusals(t *testing.T) {
	long := strings.Repeat("x", 256)
	tests := []struct {
		req   portlayer.VolumeRequest
		kind  fault.Kind
		words []string
	}{
		{portlayer.VolumeRequest{Name: "a"}, fault.Invalid, []string{"create a: volume name is too short, names should be at least two alphanumeric characters"}},
		{portlayer.VolumeRequest{Name: "."}, fault.Invalid, []string{"create .: volume name is too short"}},
		{portlayer.VolumeRequest{Name: "sp x"}, fault.Invalid, []string{`create sp x: "sp x" includes invalid characters for a local volume name, only "[a-zA-Z0-9][a-zA-Z0-9_.-]" are allowed. If you intended to pass a host directory, use absolute path`}},
		{portlayer.VolumeRequest{Name: "sp\n"}, fault.Invalid, []string{`create sp` + "\n" + `: "sp\n" includes invalid characters`}},
		{portlayer.VolumeRequest{Name: "é"}, fault.Invalid, []string{`create é: "é" includes invalid characters`}},
		{portlayer.VolumeRequest{Name: "-dash"}, fault.Invalid, []string{"includes invalid characters"}},
		{portlayer.VolumeRequest{Name: "../rel"}, fault.Invalid, []string{"includes invalid characters"}},
		{portlayer.VolumeRequest{Name: portlayer.VolumeName(long)}, fault.Invalid, []string{"256 bytes", "at most 255"}},
		{portlayer.VolumeRequest{Name: "data", Driver: "nope"}, fault.Invalid, []string{"no volume driver nope; drivers here: fake-vmdk", "data"}},
		{portlayer.VolumeRequest{Name: "data", Options: opts("bogus", "1")}, fault.Invalid, []string{`invalid option: "bogus"`, "Capacity", "VolumeStore", "data"}},
		{portlayer.VolumeRequest{Name: "data", Options: opts("type", "nfs", "o", "addr=x")}, fault.Invalid, []string{`invalid option: "o"`}},
		{portlayer.VolumeRequest{Name: "data", Options: opts("Capacity", "1G", "size", "1G")}, fault.Invalid, []string{`options "Capacity" and "size" mean the same`}},
		{portlayer.VolumeRequest{Name: "data", Options: opts("Capacity", "1G", "capacity", "1G")}, fault.Invalid, []string{"mean the same"}},
		{portlayer.VolumeRequest{Name: "data", Options: opts("CAPACITY", "lots")}, fault.Invalid, []string{`option CAPACITY: "lots" is not a capacity`}},
		{portlayer.VolumeRequest{Name: "data", Options: opts("Capacity", "0")}, fault.Invalid, []string{"nothing"}},
		{portlayer.VolumeRequest{Name: "data", Options: opts("Capacity", "1")}, fault.Invalid, []string{"data"}}, // 1 MiB: the store says that it is too small
		{portlayer.VolumeRequest{Name: "data", Options: opts("VolumeStore", "")}, fault.Invalid, []string{"VolumeStore is empty"}},
		{portlayer.VolumeRequest{Name: "data", Options: opts("VolumeStore", "nas")}, fault.Invalid, []string{"no volume store is called nas (the stores are default, fast)", "--volume-store PATH:nas"}},
		{portlayer.VolumeRequest{Name: "data", Labels: opts("", "x")}, fault.Invalid, []string{"empty name"}},
		{portlayer.VolumeRequest{Name: "data", Labels: opts("a\nb", "x")}, fault.Invalid, []string{`label "a\nb"`}},
		{portlayer.VolumeRequest{Name: "data", Labels: opts("a", "\xff")}, fault.Invalid, []string{"not UTF-8"}},
	}
	h := newHost(t, volumetest.NewStore("default"), volumetest.NewStore("fast"))
	for _, tt := range tests {
		_, err := h.Create(t.Context(), tt.req)
		is(t, err, tt.kind, tt.words...)
		// A container that asks the same is refused the same.
		_, made, rerr := h.Reserve(t.Context(), "c", portlayer.Mount{Kind: portlayer.VolumeMount, Volume: tt.req.Name, Driver: tt.req.Driver, Options: tt.req.Options, Labels: tt.req.Labels})
		is(t, rerr, tt.kind, tt.words...)
		if made {
			t.Errorf("%+v: made", tt.req)
		}
	}
	if vols, warnings, err := h.List(t.Context()); len(vols)+len(warnings) > 0 || err != nil {
		t.Errorf("left: %v %v %v", vols, warnings, err)
	}
	h.expect()
}

func TestCreate(t *testing.T) {
	h := newHost(t, volumetest.NewStore("default"), volumetest.NewStore("fast"))
	tests := []struct {
		req      portlayer.VolumeRequest
		store    portlayer.StoreName
		capacity portlayer.Bytes
	}{
		{portlayer.VolumeRequest{Name: "plain"}, "default", 32 * mib},
		{portlayer.VolumeRequest{Name: "plain.local", Driver: "local"}, "default", 32 * mib},
		{portlayer.VolumeRequest{Name: "plain.own", Driver: "fake-vmdk", Labels: opts("com.example", "1")}, "default", 32 * mib},
		{portlayer.VolumeRequest{Name: "sized", Options: opts("Capacity", "64")}, "default", 64 * mib},
		{portlayer.VolumeRequest{Name: "sized2", Options: opts("size", "64M")}, "default", 64 * mib},
		{portlayer.VolumeRequest{Name: "there", Options: opts("volumestore", "fast", "SIZE", "1GiB")}, "fast", gib},
		{portlayer.VolumeRequest{Name: longName(255)}, "default", 32 * mib},
	}
	for _, tt := range tests {
		vol, err := h.Create(t.Context(), tt.req)
		if err != nil || vol.Name != tt.req.Name || vol.Store != tt.store || vol.Capacity != tt.capacity || vol.Maker != "" {
			t.Errorf("%+v: %+v, %v", tt.req, vol, err)
		}
		if !sameText(vol.Options, tt.req.Options) || !sameText(vol.Labels, tt.req.Labels) {
			t.Errorf("%+v: options %v, labels %v", tt.req, vol.Options, vol.Labels)
		}
		h.expect("create " + string(tt.req.Name) + " driver=fake-vmdk")
		again, err := h.Create(t.Context(), tt.req)
		if err != nil || !again.Created.Equal(vol.Created) {
			t.Errorf("%+v again: %+v, %v", tt.req, again, err)
		}
		h.expect()
	}
}

func longName(n int) portlayer.VolumeName { return portlayer.VolumeName(strings.Repeat("x", n)) }

func sameText(a, b map[string]string) bool {
	return fmt.Sprint(a) == fmt.Sprint(b) && (len(a) > 0 || a == nil)
}

func TestCreateAnonymous(t *testing.T) {
	h := newHost(t, volumetest.NewStore("default"))
	a, b := h.create(""), h.create("")
	if len(a.Name) != 64 || strings.Trim(string(a.Name), "0123456789abcdef") != "" || a.Name == b.Name {
		t.Errorf("names %s, %s", a.Name, b.Name)
	}
	if a.Capacity != 16*mib || a.Labels != nil || a.Options != nil {
		t.Errorf("anonymous volume %+v", a)
	}
}

// Re-created with the same or no wishes a volume is as it was; with others the refusal shows both.
func TestCreateExisting(t *testing.T) {
	h := newHost(t, volumetest.NewStore("default"), otherDriver{volumetest.NewStore("fast")})
	first, err := h.Create(t.Context(), portlayer.VolumeRequest{Name: "data", Options: opts("Capacity", "1G"), Labels: opts("a", "1")})
	if err != nil {
		t.Fatal(err)
	}
	for _, same := range []portlayer.VolumeRequest{
		{Name: "data"}, {Name: "data", Labels: opts("b", "2")}, {Name: "data", Driver: "local"}, {Name: "data", Driver: "fake-vmdk"},
		{Name: "data", Options: opts("size", "1024")}, {Name: "data", Options: opts("VolumeStore", "default")},
	} {
		got, err := h.Create(t.Context(), same)
		if err != nil || !sameText(got.Labels, first.Labels) || !got.Created.Equal(first.Created) {
			t.Errorf("%+v: %+v, %v", same, got, err)
		}
	}
	for _, other := range []struct {
		req   portlayer.VolumeRequest
		words []string
	}{
		{portlayer.VolumeRequest{Name: "data", Options: opts("Capacity", "2G")}, []string{"create data", "1GiB", "2GiB"}},
		{portlayer.VolumeRequest{Name: "data", Options: opts("Capacity", "1025")}, []string{"1073741824 bytes", "1074790400 bytes"}},
		{portlayer.VolumeRequest{Name: "data", Options: opts("VolumeStore", "fast")}, []string{"store default", "store fast"}},
		{portlayer.VolumeRequest{Name: "data", Options: opts("VolumeStore", "none")}, []string{"store default", "store none"}},
		{portlayer.VolumeRequest{Name: "data", Driver: "other-vmdk"}, []string{"create data: driver 'fake-vmdk' already has volume 'data': volume name must be unique", "other-vmdk"}},
	} {
		_, err := h.Create(t.Context(), other.req)
		is(t, err, fault.Conflict, other.words...)
		_, _, err = h.Reserve(t.Context(), "c", portlayer.Mount{Volume: "data", Driver: other.req.Driver, Options: other.req.Options})
		is(t, err, fault.Conflict, other.words...)
	}
	// With its store the name is another volume's.
	m, made, err := h.Reserve(t.Context(), "c", portlayer.Mount{Volume: "data", Store: "fast"})
	if err != nil || !made || m.Store != "fast" {
		t.Errorf("%+v, %v, %v", m, made, err)
	}
	_, _, err = h.Reserve(t.Context(), "c", portlayer.Mount{Volume: "data", Store: "fast", Options: opts("VolumeStore", "default")})
	is(t, err, fault.Invalid, "two stores, fast and default")
	// A type from a store, and stores from a type.
	if of := h.Stores(t.Context(), "other-vmdk"); len(of) != 1 || of[0].Name != "fast" {
		t.Errorf("%+v", of)
	}
	if of := h.Stores(t.Context(), "none"); len(of) != 0 {
		t.Errorf("%+v", of)
	}
	if st, err := h.Store(t.Context(), "fast"); err != nil || st.Driver != "other-vmdk" {
		t.Errorf("%+v, %v", st, err)
	}
	_, err = h.Store(t.Context(), "none")
	is(t, err, fault.Invalid, "no volume store is called none")
	// A driver that another store has.
	_, err = h.Create(t.Context(), portlayer.VolumeRequest{Name: "new", Driver: "other-vmdk"})
	is(t, err, fault.Invalid, "store default has driver fake-vmdk, not other-vmdk", "VolumeStore")
	vol, err := h.Create(t.Context(), portlayer.VolumeRequest{Name: "new", Driver: "other-vmdk", Options: opts("VolumeStore", "fast")})
	if err != nil || vol.Driver != "other-vmdk" {
		t.Errorf("%+v, %v", vol, err)
	}
}

// otherDriver is a store of another driver.
type otherDriver struct{ *volumetest.Store }

func (o otherDriver) Driver() string { return "other-vmdk" }

func (o otherDriver) Get(ctx context.Context, n portlayer.VolumeName) (portlayer.Volume, error) {
	v, err := o.Store.Get(ctx, n)
	v.Driver = o.Driver()
	return v, err
}

func (o otherDriver) Ensure(ctx context.Context, spec portlayer.VolumeSpec) (portlayer.Volume, bool, error) {
	v, made, err := o.Store.Ensure(ctx, spec)
	v.Driver = o.Driver()
	return v, made, err
}

func TestNoDefaultStore(t *testing.T) {
	for _, h := range []*host{newHost(t), newHost(t, volumetest.NewStore("fast"))} {
		for _, name := range []portlayer.VolumeName{"", "data"} {
			_, err := h.Create(t.Context(), portlayer.VolumeRequest{Name: name})
			is(t, err, fault.Invalid, "--volume-store PATH:default", "no default volume store")
			_, _, err = h.Reserve(t.Context(), "c", portlayer.Mount{Volume: name})
			is(t, err, fault.Invalid, "--volume-store PATH:default")
		}
		_, err := h.Create(t.Context(), portlayer.VolumeRequest{Name: "data", Driver: "nope"})
		is(t, err, fault.Invalid, "no volume driver nope; drivers here: ")
	}
	h := newHost(t, volumetest.NewStore("fast"))
	if vol, err := h.Create(t.Context(), portlayer.VolumeRequest{Name: "data", Options: opts("VolumeStore", "fast")}); err != nil || vol.Store != "fast" {
		t.Errorf("%+v, %v", vol, err)
	}
	if m, made := h.reserve("c", "data"); made || m.Store != "fast" {
		t.Errorf("%+v, %v", m, made)
	}
}

func TestMissing(t *testing.T) {
	h := newHost(t, volumetest.NewStore("default"))
	for _, name := range []portlayer.VolumeName{"none", "s", "a/b", "..", "prune", longName(300)} {
		words := "get " + string(name) + ": no such volume"
		_, err := h.Get(t.Context(), plain(name))
		is(t, err, fault.NotFound, words)
		is(t, h.Remove(t.Context(), plain(name)), fault.NotFound, words)
		is(t, h.Join(t.Context(), &portlayer.Handle{}, portlayer.Mount{Volume: name, Store: "default"}), fault.NotFound, string(name))
		is(t, h.Join(t.Context(), &portlayer.Handle{}, portlayer.Mount{Volume: name}), fault.NotFound, words)
		if err := h.Unmake(t.Context(), plain(name), ""); err != nil {
			t.Error(err)
		}
	}
	_, err := h.Get(t.Context(), plain(""))
	is(t, err, fault.NotFound, "get: no such volume")
	is(t, h.Join(t.Context(), &portlayer.Handle{}, portlayer.Mount{Volume: "data", Store: "nas"}), fault.Unavailable, "nas", "data")
}

func TestReferences(t *testing.T) {
	h := newHost(t, volumetest.NewStore("default"))
	m, made := h.reserve("c2", "data")
	if !made || m.Volume != "data" || m.Store != "default" || m.Driver != volumetest.StoreDriver || m.Anonymous {
		t.Errorf("%+v, %v", m, made)
	}
	if m, made := h.reserve("c1", "data"); made || m.Anonymous {
		t.Errorf("%+v, %v", m, made)
	}
	h.reserve("c1", "data")
	h.expect("create data driver=fake-vmdk")
	d, err := h.Get(t.Context(), plain("data"))
	if err != nil || fmt.Sprint(d.Refs) != "[c1 c2]" || d.Maker != "c2" || d.Usage.Allocated <= 0 || d.Attached != nil {
		t.Errorf("%+v, %v", d, err)
	}
	is(t, h.Remove(t.Context(), plain("data")), fault.InUse, "remove data: volume is in use - [c1, c2]")
	h.Release("c2")
	is(t, h.Remove(t.Context(), plain("data")), fault.InUse, "[c1]")
	for _, maker := range []portlayer.ContainerID{"", "c2"} {
		if err := h.Unmake(t.Context(), plain("data"), maker); err != nil {
			t.Error(err)
		}
	}
	h.expect() // c1 refers to it
	h.Release("c1")
	h.Release("c1")
	if err := h.Unmake(t.Context(), plain("data"), "c1"); err != nil {
		t.Error(err)
	}
	h.expect() // c2 made it
	if err := h.Unmake(t.Context(), plain("data"), "c2"); err != nil {
		t.Error(err)
	}
	h.expect("destroy data driver=fake-vmdk")
	h.Refer("c1", inDefault("gone"))
	_, err = h.Get(t.Context(), plain("gone"))
	is(t, err, fault.NotFound)
}

func TestReserveAnonymous(t *testing.T) {
	h := newHost(t, volumetest.NewStore("default"))
	m, made, err := h.Reserve(t.Context(), "c", portlayer.Mount{Kind: portlayer.VolumeMount, Target: "/v", Labels: opts("com.docker.volume.anonymous", "")})
	if err != nil || !made || !m.Anonymous || len(m.Volume) != 64 {
		t.Fatalf("%+v, %v, %v", m, made, err)
	}
	d, err := h.Get(t.Context(), m.ID())
	if err != nil || d.Capacity != 16*mib || !sameText(d.Labels, opts("com.docker.volume.anonymous", "")) || d.Maker != "c" {
		t.Errorf("%+v, %v", d, err)
	}
	// Used by its name, it is not anonymous for that container.
	if m, made := h.reserve("d", m.Volume); made || m.Anonymous {
		t.Errorf("%+v, %v", m, made)
	}
}

// What the administrator set holds for an anonymous volume without options of its own, and for no other.
func TestAnonymousOptions(t *testing.T) {
	stores := []portlayer.VolumeStore{volumetest.NewStore("default"), volumetest.NewStore("fast")}
	s, err := New(Options{Stores: stores, AnonymousCapacity: 16 * mib, DefaultCapacity: 32 * mib, AnonymousOptions: opts("capacity", "8M", "VolumeStore", "fast")})
	if err != nil {
		t.Fatal(err)
	}
	for _, c := range []struct {
		mount    portlayer.Mount
		store    portlayer.StoreName
		capacity portlayer.Bytes
	}{
		{portlayer.Mount{}, "fast", 8 * mib},
		{portlayer.Mount{Options: opts("size", "12M")}, "default", 12 * mib},
		{portlayer.Mount{Volume: "named"}, "default", 32 * mib},
	} {
		m, _, err := s.Reserve(t.Context(), "c1", c.mount)
		if err != nil {
			t.Fatal(err)
		}
		if d, err := s.Get(t.Context(), m.ID()); err != nil || d.Store != c.store || d.Capacity != c.capacity {
			t.Errorf("%+v: %+v, %v", c.mount, d, err)
		}
	}
	for _, bad := range []map[string]string{opts("bogus", "1"), opts("Capacity", "0"), opts("VolumeStore", "slow")} {
		_, err := New(Options{Stores: stores, AnonymousOptions: bad})
		is(t, err, fault.Invalid, "options of anonymous volumes")
	}
}

// A volume's speed is bounded as it was asked for, and cannot be asked for otherwise afterwards.
func TestThrottle(t *testing.T) {
	h := newHost(t, volumetest.NewStore("default"))
	for text, want := range map[string]portlayer.Throttle{
		"iops=100": {IOPS: 100}, "bps=4096": {BPS: 4096}, "BPS=2M": {BPS: 2 * mib}, "Iops=1000000000000000": {IOPS: 1e15}, "bps=10KiB": {BPS: 10 * portlayer.KiB},
	} {
		key, value, _ := strings.Cut(text, "=")
		v, err := h.Create(t.Context(), portlayer.VolumeRequest{Options: opts(key, value)})
		if err != nil || v.Throttle != want {
			t.Errorf("%s: %+v, %v", text, v.Throttle, err)
		}
	}
	for _, text := range []string{"iops=0", "iops=-1", "iops=many", "iops=1000000000000001", "iops=1.5", "iops=", "bps=0", "bps=4095", "bps=-1", "bps=fast", "bps=", "bps=1M/s", "bps=2000T"} {
		key, value, _ := strings.Cut(text, "=")
		_, err := h.Create(t.Context(), portlayer.VolumeRequest{Name: "bad", Options: opts(key, value)})
		is(t, err, fault.Invalid, "option "+key)
	}
	if _, err := h.Create(t.Context(), portlayer.VolumeRequest{Name: "data", Options: opts("iops", "50", "bps", "1M")}); err != nil {
		t.Fatal(err)
	}
	for _, same := range []map[string]string{nil, opts("iops", "50"), opts("BPS", "1048576")} {
		if _, err := h.Create(t.Context(), portlayer.VolumeRequest{Name: "data", Options: same}); err != nil {
			t.Error(err)
		}
	}
	_, err := h.Create(t.Context(), portlayer.VolumeRequest{Name: "data", Options: opts("iops", "51")})
	is(t, err, fault.Conflict, "iops 50", "51 was asked for")
	_, err = h.Create(t.Context(), portlayer.VolumeRequest{Name: "data", Options: opts("bps", "2M")})
	is(t, err, fault.Conflict, "bps 1048576", "2097152 was asked for")
}

// A mount that another container has is taken over: the volume is found and never made, and stays anonymous.
func TestReserveFromContainer(t *testing.T) {
	h := newHost(t, volumetest.NewStore("default"))
	_, _, err := h.Reserve(t.Context(), "c2", portlayer.Mount{Volume: "gone", Store: "default", Origin: portlayer.FromContainer, Target: "/d"})
	is(t, err, fault.NotFound, "gone@default: no such volume", "/d")
	first, _ := h.reserve("c1", "")
	first.Origin = portlayer.FromContainer
	second, made, err := h.Reserve(t.Context(), "c2", first)
	if err != nil || made || !second.Anonymous || second.Volume != first.Volume {
		t.Errorf("%+v, made %v, %v", second, made, err)
	}
	h.Release("c1")
	is(t, h.Remove(t.Context(), first.ID()), fault.InUse, "c2")
	h.expect("create " + string(first.Volume) + " driver=fake-vmdk")
}

func mount(name portlayer.VolumeName, target string, ro bool) portlayer.Mount {
	return portlayer.Mount{Kind: portlayer.VolumeMount, Volume: name, Store: portlayer.DefaultStore, Target: target, ReadOnly: ro, Driver: "qemu-vmdk"}
}

// One writer or any number of readers; all of a container's volumes or none; the holder is named with what to do.
func TestAttach(t *testing.T) {
	h := newHost(t, volumetest.NewStore("default"))
	h.create("data")
	h.expect("create data driver=fake-vmdk")
	attach := func(c portlayer.ContainerID, who string, mounts ...portlayer.Mount) error {
		return h.Attach(c, who, append(mounts, portlayer.Mount{Kind: portlayer.TmpfsMount, Target: "/tmp"}))
	}
	if err := attach("c1", "web", mount("data", "/a", true), mount("data", "/b", false)); err != nil {
		t.Fatal(err)
	}
	h.expect("mount data container=c1 destination=/a driver=qemu-vmdk propagation= read/write=false",
		"mount data container=c1 destination=/b driver=qemu-vmdk propagation= read/write=true")
	is(t, attach("c2", "db", mount("other", "/o", false), mount("data", "/a", false)), fault.InUse, "cannot attach volume data: container web is running", "read-write", "one writer", "stop web")
	is(t, attach("c2", "db", mount("data", "/a", true)), fault.InUse, "container web", "read-write", "stop web first, or mount the volume read-only there")
	h.expect() // also not for other
	if err := attach("c3", "x", mount("other", "/o", false)); err != nil {
		t.Errorf("all or none: %v", err)
	}
	h.Detach("c3")
	h.expect("mount other container=c3 destination=/o driver=qemu-vmdk propagation= read/write=true", "unmount other container=c3 driver=qemu-vmdk")
	// Again, by the same container: nothing changes.
	if err := attach("c1", "web", mount("data", "/b", false)); err != nil {
		t.Error(err)
	}
	h.expect()
	d, err := h.Get(t.Context(), plain("data"))
	if err != nil || len(d.Attached) != 1 || d.Attached[0] != (portlayer.Attachment{Container: "c1"}) {
		t.Errorf("%+v, %v", d.Attached, err)
	}
	is(t, h.Remove(t.Context(), plain("data")), fault.InUse, "[c1]") // held, though nobody refers to it
	// Mount by mount: it is held for as long, and as, the others need.
	h.DetachMounts("c1", []portlayer.Mount{mount("data", "/b", false), mount("data", "/none", false), mount("other", "/b", false)})
	h.expect("unmount data container=c1 driver=qemu-vmdk")
	if d, err := h.Get(t.Context(), portlayer.VolumeID{Name: "data"}); err != nil || len(d.Attached) != 1 || !d.Attached[0].ReadOnly {
		t.Errorf("%+v, %v", d.Attached, err)
	}
	h.DetachMounts("c1", []portlayer.Mount{mount("data", "/a", true)})
	h.expect("unmount data container=c1 driver=qemu-vmdk")
	if d, err := h.Get(t.Context(), portlayer.VolumeID{Name: "data"}); err != nil || len(d.Attached) != 0 {
		t.Errorf("%+v, %v", d.Attached, err)
	}
	if err := attach("c1", "web", mount("data", "/a", true), mount("data", "/b", false)); err != nil {
		t.Fatal(err)
	}
	h.expect("mount data container=c1 destination=/a driver=qemu-vmdk propagation= read/write=false",
		"mount data container=c1 destination=/b driver=qemu-vmdk propagation= read/write=true")
	h.Detach("c1")
	h.Detach("c1")
	h.expect("unmount data container=c1 driver=qemu-vmdk", "unmount data container=c1 driver=qemu-vmdk")
	// Readers share.
	for _, c := range []portlayer.ContainerID{"r1", "r2", "r3"} {
		if err := attach(c, "reader-"+string(c), mount("data", "/a", true)); err != nil {
			t.Error(err)
		}
	}
	is(t, attach("w", "writer", mount("data", "/a", false)), fault.InUse, "reader-r1, reader-r2, reader-r3", "read-only", "stop them")
	is(t, attach("r1", "reader-r1", mount("data", "/b", false)), fault.InUse, "reader-r2, reader-r3")
	h.Detach("r2")
	h.Detach("r3")
	is(t, attach("w", "writer", mount("data", "/a", false)), fault.InUse, "container reader-r1 is running and has it mounted read-only", "stop reader-r1")
	if err := attach("r1", "reader-r1", mount("data", "/b", false)); err != nil {
		t.Errorf("the only reader becomes the writer: %v", err)
	}
	is(t, attach("r2", "reader-r2", mount("data", "/a", true)), fault.InUse, "reader-r1", "read-write")
}

func TestPrune(t *testing.T) {
	fast, slow := volumetest.NewStore("default"), volumetest.NewStore("slow")
	h := newHost(t, fast, slow)
	h.create("keep")
	h.reserve("c", "used")
	h.create("held")
	if err := h.Attach("d", "d", []portlayer.Mount{mount("held", "/", false)}); err != nil {
		t.Fatal(err)
	}
	if _, err := h.Create(t.Context(), portlayer.VolumeRequest{Name: "away", Options: opts("VolumeStore", "slow")}); err != nil {
		t.Fatal(err)
	}
	h.create("bb")
	h.create("aa")
	h.create("broken")
	fast.Damage("broken", "x")
	h.mu.Lock()
	h.events = nil
	h.mu.Unlock()
	slow.Degrade("unplugged")
	pick := func(v portlayer.Volume) bool { return v.Name != "keep" }
	gone, freed, err := h.Prune(t.Context(), pick)
	if called(gone) != "aa bb" || freed != 2*64*portlayer.KiB || err != nil {
		t.Errorf("%v, %d, %v", gone, freed, err)
	}
	h.mu.Lock()
	slices.Sort(h.events[:len(h.events)-1]) // several go at once, and the prune is the last to tell
	h.mu.Unlock()
	h.expect("destroy aa driver=fake-vmdk", "destroy bb driver=fake-vmdk", "prune  reclaimed=131072")
	slow.Degrade("")
	if gone, _, err := h.Prune(t.Context(), func(portlayer.Volume) bool {
		_, _, err := h.Prune(t.Context(), pick)
		is(t, err, fault.Conflict, "a prune operation is already running")
		return true
	}); called(gone) != "away keep" || err != nil {
		t.Errorf("%v, %v", gone, err)
	}
}

// What was picked is what is removed: a volume that was made anew under its name meanwhile stays.
func TestPruneSparesWhatWasMadeAnew(t *testing.T) {
	h := newHost(t, volumetest.NewStore("default"))
	h.create("data")
	gone, _, err := h.Prune(t.Context(), func(portlayer.Volume) bool {
		if err := h.Remove(t.Context(), plain("data")); err != nil {
			t.Error(err)
		}
		h.create("data")
		return true
	})
	if len(gone) > 0 || err != nil {
		t.Errorf("%v, %v", gone, err)
	}
	if _, err := h.Get(t.Context(), plain("data")); err != nil {
		t.Error(err)
	}
}

// A degraded store: what is elsewhere goes on, what might be in it is neither missing nor made, and its names fall to no other store.
func TestDegradedStore(t *testing.T) {
	def, nas := volumetest.NewStore("default"), volumetest.NewStore("nas")
	h := newHost(t, def, nas)
	h.create("here")
	on := func(store string) map[string]string { return opts("VolumeStore", store) }
	if _, err := h.Create(t.Context(), portlayer.VolumeRequest{Name: "there", Options: on("nas")}); err != nil {
		t.Fatal(err)
	}
	m, _ := h.reserve("c", "here")
	nas.Degrade("the server does not answer")
	if d, err := h.Get(t.Context(), plain("here")); err != nil || d.Store != "default" {
		t.Errorf("%+v, %v", d, err)
	}
	h.reserve("d", "here")
	if err := h.Join(t.Context(), &portlayer.Handle{}, m); err != nil {
		t.Error(err)
	}
	reason := []string{"nas", "does not answer"}
	for _, name := range []portlayer.VolumeName{"there", "unknown"} {
		_, err := h.Get(t.Context(), plain(name))
		is(t, err, fault.Unavailable, append(reason, string(name))...)
		is(t, h.Remove(t.Context(), plain(name)), fault.Unavailable, reason...)
		for _, o := range []map[string]string{nil, on("default"), on("nas")} {
			_, err = h.Create(t.Context(), portlayer.VolumeRequest{Name: name, Options: o})
			is(t, err, fault.Unavailable, reason...)
			_, _, err = h.Reserve(t.Context(), "c", portlayer.Mount{Volume: name, Options: o})
			is(t, err, fault.Unavailable, reason...)
		}
		is(t, h.Unmake(t.Context(), plain(name), ""), fault.Unavailable, reason...)
	}
	// A name that nobody else can have needs no look.
	if anon := h.create(""); anon.Store != "default" {
		t.Errorf("%+v", anon)
	}
	vols, warnings, err := h.List(t.Context())
	if err != nil || len(vols) != 2 || len(warnings) != 1 || !strings.Contains(warnings[0], "store nas is degraded: the server does not answer") {
		t.Errorf("%v, %q, %v", vols, warnings, err)
	}
	st := h.Stores(t.Context(), "")
	if len(st) != 2 || st[0].Name != "default" || st[0].Status.Degraded != "" || st[0].Status.Free == 0 || st[1].Status.Degraded != "the server does not answer" || st[1].Location != "memory:nas" {
		t.Errorf("%+v", st)
	}
	nas.Degrade("")
	if d, err := h.Get(t.Context(), plain("there")); err != nil || d.Store != "nas" {
		t.Errorf("%+v, %v", d, err)
	}
}

func TestDamagedVolume(t *testing.T) {
	def := volumetest.NewStore("default")
	h := newHost(t, def, volumetest.NewStore("more"))
	h.create("good")
	h.create("data")
	h.create("last")
	def.Damage("data", "its extent is short")
	def.Damage("last", "its extent is gone")
	_, err := h.Get(t.Context(), plain("data"))
	is(t, err, fault.Conflict, "its extent is short")
	_, err = h.Create(t.Context(), portlayer.VolumeRequest{Name: "data"})
	is(t, err, fault.Conflict, "its extent is short")
	_, _, err = h.Reserve(t.Context(), "c", portlayer.Mount{Volume: "data"})
	is(t, err, fault.Conflict, "its extent is short")
	is(t, h.Unmake(t.Context(), plain("data"), "somebody"), fault.Conflict)
	vols, warnings, err := h.List(t.Context())
	if err != nil || len(vols) != 1 || len(warnings) != 2 || !strings.Contains(warnings[0], "volume data in store default is damaged") || !strings.Contains(warnings[1], "last") {
		t.Errorf("%v, %q, %v", vols, warnings, err)
	}
	h.Refer("c", inDefault("data"))
	is(t, h.Remove(t.Context(), plain("data")), fault.InUse, "[c]")
	h.Release("c")
	if err := h.Remove(t.Context(), plain("data")); err != nil {
		t.Error(err)
	}
	if err := h.Unmake(t.Context(), plain("last"), ""); err != nil {
		t.Error(err)
	}
	h.create("data")
}

func called(vols []portlayer.Volume) string {
	var refs []string
	for _, v := range vols {
		refs = append(refs, v.Ref())
	}
	return strings.Join(refs, " ")
}

// plain is the identity that a name has without a store.
func plain(name portlayer.VolumeName) portlayer.VolumeID { return portlayer.VolumeID{Name: name} }

func inDefault(name portlayer.VolumeName) portlayer.VolumeID {
	return portlayer.VolumeID{Name: name, Store: portlayer.DefaultStore}
}

// A store may come with volumes in it: nobody guesses which of one name is meant.
func TestOneNameInTwoStores(t *testing.T) {
	a, b := volumetest.NewStore("aa"), volumetest.NewStore("default")
	for _, s := range []*volumetest.Store{a, b} {
		if _, _, err := s.Ensure(t.Context(), portlayer.VolumeSpec{Name: "data", VCH: "another"}); err != nil {
			t.Fatal(err)
		}
	}
	h := newHost(t, b, a)
	_, err := h.Get(t.Context(), plain("data"))
	is(t, err, fault.Conflict, "data@aa or data@default")
	_, err = h.Create(t.Context(), portlayer.VolumeRequest{Name: "data"})
	is(t, err, fault.Conflict)
	is(t, h.Remove(t.Context(), plain("data")), fault.Conflict)
	shown := func(want ...string) {
		t.Helper()
		vols, warnings, err := h.List(t.Context())
		var refs []string
		for _, v := range vols {
			refs = append(refs, v.Ref())
		}
		if err != nil || len(warnings) != 0 || !slices.Equal(refs, want) {
			t.Errorf("%v, %q, %v; want %v", refs, warnings, err, want)
		}
	}
	shown("data@aa", "data@default")
	// A container that reserved it before goes on with its own.
	draft := &portlayer.Handle{}
	if err := h.Join(t.Context(), draft, portlayer.Mount{Volume: "data", Store: "aa", Target: "/d"}); err != nil || draft.Devices[0].Disk.File != "memory:aa/data" {
		t.Errorf("%+v, %v", draft.Devices, err)
	}
	// The one that is used first has the plain name from then on.
	m, _, err := h.Reserve(t.Context(), "c", portlayer.Mount{Kind: portlayer.VolumeMount, Volume: "data", Store: "default", Target: "/d"})
	if err != nil || m.Store != "default" {
		t.Fatalf("%+v, %v", m, err)
	}
	if d, err := h.Get(t.Context(), plain("data")); err != nil || d.Store != "default" || d.Ref() != "data" {
		t.Errorf("%+v, %v", d, err)
	}
	shown("data@aa", "data")
	if d, err := h.Get(t.Context(), portlayer.VolumeID{Name: "data", Store: "aa"}); err != nil || d.Ref() != "data@aa" {
		t.Errorf("%+v, %v", d, err)
	}
	_, err = h.Get(t.Context(), portlayer.VolumeID{Name: "data", Store: "gone"})
	is(t, err, fault.NotFound, "no volume store is called gone")
	is(t, h.Remove(t.Context(), plain("data")), fault.InUse)
	h.Release("c")
	if err := h.Remove(t.Context(), plain("data")); err != nil {
		t.Fatal(err)
	}
	shown("data")
}

// What was used first is remembered by the next process of the VCH, and only by this VCH.
func TestFirstUseIsKept(t *testing.T) {
	a, b := volumetest.NewStore("aa"), volumetest.NewStore("default")
	for _, s := range []*volumetest.Store{a, b} {
		if _, _, err := s.Ensure(t.Context(), portlayer.VolumeSpec{Name: "data", VCH: "another"}); err != nil {
			t.Fatal(err)
		}
	}
	path := filepath.Join(t.TempDir(), "vch.db")
	open := func() (*Service, *record.DB) {
		db, err := record.Open(path)
		if err != nil {
			t.Fatal(err)
		}
		s, err := New(Options{Stores: []portlayer.VolumeStore{a, b}, VCH: "this", DB: db})
		if err != nil {
			t.Fatal(err)
		}
		return s, db
	}
	s, db := open()
	if _, err := s.Create(t.Context(), portlayer.VolumeRequest{Name: "data", Store: "aa"}); err != nil {
		t.Fatal(err)
	}
	if err := db.Close(); err != nil {
		t.Fatal(err)
	}
	s, db = open()
	defer db.Close()
	if d, err := s.Get(t.Context(), plain("data")); err != nil || d.Store != "aa" {
		t.Errorf("%+v, %v", d, err)
	}
	// While its store cannot be used, the name does not fall over to the other.
	a.Degrade("unplugged")
	_, err := s.Get(t.Context(), plain("data"))
	is(t, err, fault.Unavailable, "data is in store aa", "unplugged", "data@default")
	if err := s.Remove(t.Context(), inDefault("data")); err != nil {
		t.Error(err)
	}
}

func TestCancelled(t *testing.T) {
	h := newHost(t, volumetest.NewStore("default"))
	h.create("data")
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if _, err := h.Get(ctx, plain("data")); !fault.Is(err, fault.Unavailable) || strings.Contains(err.Error(), "store") {
		t.Errorf("get: %v", err)
	}
	if _, _, err := h.List(ctx); err == nil {
		t.Error("list went on")
	}
	if _, _, err := h.Prune(ctx, func(portlayer.Volume) bool { return true }); err == nil {
		t.Error("prune went on")
	}
	if err := h.Remove(ctx, plain("data")); err == nil {
		t.Error("remove went on")
	}
	if _, err := h.Get(t.Context(), plain("data")); err != nil {
		t.Error(err)
	}
}

// Volumes that are directories of a server: any number of containers write them at once; they take options of their own and none of disks'; and what another VCH has made is not pruned.
func TestDirectoryStores(t *testing.T) {
	dirs := volumetest.NewDirectories("remote")
	disks := volumetest.NewStore(portlayer.DefaultStore)
	s, err := New(Options{Stores: []portlayer.VolumeStore{dirs, disks}, VCH: "one", DefaultCapacity: portlayer.GiB, AnonymousCapacity: portlayer.GiB})
	if err != nil {
		t.Fatal(err)
	}
	ctx := t.Context()
	remote := func(options map[string]string) portlayer.VolumeRequest {
		return portlayer.VolumeRequest{Name: "data", Store: "remote", Options: options}
	}
	for key, kind := range map[string]fault.Kind{"Capacity": fault.Unsupported, "iops": fault.Unsupported, "bps": fault.Unsupported, "from": fault.Unsupported, "bogus": fault.Invalid} {
		value := "5000"
		if _, err := s.Create(ctx, remote(map[string]string{key: value})); !fault.Is(err, kind) || !strings.Contains(err.Error(), key) {
			t.Errorf("%s: %v", key, err)
		}
	}
	if _, err := s.Create(ctx, portlayer.VolumeRequest{Name: "disk", Options: map[string]string{"soft": ""}}); !fault.Is(err, fault.Invalid) || !strings.Contains(err.Error(), `"soft"`) {
		t.Errorf("an option of directories for a disk: %v", err)
	}
	vol, err := s.Create(ctx, remote(map[string]string{"soft": ""}))
	if err != nil || !vol.Shared || vol.Capacity != 0 {
		t.Fatalf("%+v, %v", vol, err)
	}
	if _, err := s.Create(ctx, remote(map[string]string{"soft": "x"})); !fault.Is(err, fault.Conflict) {
		t.Errorf("other options: %v", err)
	}
	if _, err := s.Create(ctx, remote(map[string]string{"bogus": "x"})); !fault.Is(err, fault.Invalid) {
		t.Errorf("an unknown option of one that is there: %v", err)
	}
	for _, c := range []portlayer.ContainerID{"aa", "bb", "cc"} {
		m, _, err := s.Reserve(ctx, c, portlayer.Mount{Kind: portlayer.VolumeMount, Volume: "data", Store: "remote", Qualified: true, Target: "/srv", ReadOnly: c == "cc"})
		if err != nil || !m.Shared {
			t.Fatalf("%+v, %v", m, err)
		}
		if err := s.Attach(c, string(c), []portlayer.Mount{m}); err != nil {
			t.Errorf("%s: %v", c, err)
		}
		h := &portlayer.Handle{}
		if err := s.Join(ctx, h, m); err != nil || len(h.Reaches) != 1 || len(h.Devices) != 0 {
			t.Errorf("%+v, %v", h, err)
		}
	}
	d, err := s.Get(ctx, portlayer.VolumeID{Name: "data", Store: "remote"})
	if err != nil || len(d.Attached) != 3 || len(d.Settings) == 0 || d.Usage.Allocated != -1 {
		t.Errorf("%+v, %v", d, err)
	}
	if _, _, err := dirs.Ensure(ctx, portlayer.VolumeSpec{Name: "theirs", VCH: "two"}); err != nil {
		t.Fatal(err)
	}
	if _, _, err := dirs.Ensure(ctx, portlayer.VolumeSpec{Name: "ours", VCH: "one"}); err != nil {
		t.Fatal(err)
	}
	gone, freed, err := s.Prune(ctx, func(portlayer.Volume) bool { return true })
	if err != nil || len(gone) != 1 || gone[0].Name != "ours" || freed != 0 {
		t.Errorf("%+v, %d, %v", gone, freed, err)
	}
	// Options of anonymous volumes are those of the store that takes them.
	for options, ok := range map[string]bool{"soft": true, "bogus": false} {
		_, err := New(Options{Stores: []portlayer.VolumeStore{volumetest.NewDirectories(portlayer.DefaultStore)}, AnonymousOptions: map[string]string{options: ""}})
		if (err == nil) != ok {
			t.Errorf("%s: %v", options, err)
		}
	}
}
