package vmdk

import (
	"context"
	"encoding/json"
	"fmt"
	"hash/crc32"
	"maps"
	"path"
	"reflect"
	"sync"
	"testing"
	"time"

	"vch/internal/fault"
	"vch/portlayer"
	"vch/portlayer/volume/volumetest"
)

// counting counts the calls that cost a medium something.
type counting struct {
	portlayer.Disks
	mu    sync.Mutex // guards below
	calls map[string]int
}

func (c *counting) count(call string) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.calls[call]++
}

func (c *counting) ReadFile(ctx context.Context, p portlayer.DiskPath) ([]byte, error) {
	c.count("read")
	return c.Disks.ReadFile(ctx, p)
}

func (c *counting) Stat(ctx context.Context, p portlayer.DiskPath) (portlayer.DiskInfo, error) {
	c.count("stat") // reads the descriptor
	return c.Disks.Stat(ctx, p)
}

func (c *counting) List(ctx context.Context, p portlayer.DiskPath) ([]string, error) {
	c.count("list")
	return c.Disks.List(ctx, p)
}

func (c *counting) MakeDir(ctx context.Context, p portlayer.DiskPath) error {
	c.count("write")
	return c.Disks.MakeDir(ctx, p)
}

func (c *counting) WriteFile(ctx context.Context, p portlayer.DiskPath, data []byte) error {
	c.count("write")
	return c.Disks.WriteFile(ctx, p, data)
}

func (c *counting) Create(ctx context.Context, p portlayer.DiskPath, spec portlayer.DiskSpec) error {
	c.count("write")
	return c.Disks.Create(ctx, p, spec)
}

func (c *counting) CreateDir(ctx context.Context, p portlayer.DiskPath, spec portlayer.DirSpec) error {
	c.count("write")
	return c.Disks.CreateDir(ctx, p, spec)
}

// taken is what was counted since the last call.
func (c *counting) taken() map[string]int {
	c.mu.Lock()
	defer c.mu.Unlock()
	was := c.calls
	c.calls = map[string]int{}
	return was
}

// Listing and finding volumes that nobody has changed reads none of their files, however many there are; making one is one write. What another VCH makes or changes is seen.
func TestNothingIsReadTwice(t *testing.T) {
	d := volumetest.NewDisks()
	c := &counting{Disks: d, calls: map[string]int{}}
	s := mustOpen(t, c, "/s")
	other := mustOpen(t, d, "/s")
	c.taken()
	const many = 50
	for i := range many {
		mustEnsure(t, s, portlayer.VolumeName(fmt.Sprintf("v%02d", i)))
	}
	if got := c.taken()["write"]; got != many {
		t.Errorf("%d volumes took %d writes, want one each", many, got)
	}
	list := func(want int, reads int) {
		t.Helper()
		vols, err := s.List(t.Context())
		if err != nil || len(vols) != want {
			t.Fatalf("%d volumes, %v; want %d", len(vols), err, want)
		}
		wanted := map[string]int{"list": 1}
		if reads > 0 {
			wanted["read"], wanted["stat"] = reads, reads
		}
		if got := c.taken(); !maps.Equal(got, wanted) {
			t.Errorf("listing %d volumes made the calls %v, want %v", want, got, wanted)
		}
	}
	list(many, 0)
	made := s
	s = mustOpen(t, c, "/s")
	if got := c.taken(); got["read"] != many || got["stat"] != many { // once, to see whether it is whole
		t.Errorf("opening a store of %d volumes made the calls %v", many, got)
	}
	list(many, 0)
	for _, name := range []portlayer.VolumeName{"v03", "v33"} {
		was, err := made.Get(t.Context(), name)
		is, ierr := s.Get(t.Context(), name)
		if err != nil || ierr != nil || !reflect.DeepEqual(was, is) {
			t.Errorf("known as made %+v, %v; as read %+v, %v", was, err, is, ierr)
		}
	}
	if _, err := s.Get(t.Context(), "v07"); err != nil {
		t.Error(err)
	}
	if got := c.taken(); len(got) != 0 {
		t.Errorf("finding a volume made the calls %v", got)
	}
	mustEnsure(t, other, "theirs")
	list(many+1, 1)
	if _, err := other.SetLabels(t.Context(), "v07", map[string]string{"who": "other"}); err != nil {
		t.Fatal(err)
	}
	if vol, err := s.Get(t.Context(), "v07"); err != nil || vol.Labels["who"] != "other" {
		t.Errorf("another VCH's change: %+v, %v", vol, err)
	}
	c.taken()
	list(many+1, 0)
	if err := other.Remove(t.Context(), "v07"); err != nil {
		t.Fatal(err)
	}
	list(many, 0)
	if len(s.seen) != many {
		t.Errorf("%d volumes are remembered, of %d", len(s.seen), many)
	}
	// What a caller does to its answer stays there.
	vol, err := s.Get(t.Context(), "v08")
	if err != nil {
		t.Fatal(err)
	}
	was := vol.Created
	if _, err := s.SetLabels(t.Context(), "v08", map[string]string{"a": "b"}); err != nil {
		t.Fatal(err)
	}
	vol, _ = s.Get(t.Context(), "v08")
	vol.Labels["a"], vol.Created = "spoilt", time.Time{}
	if again, err := s.Get(t.Context(), "v08"); err != nil || again.Labels["a"] != "b" || !again.Created.Equal(was) {
		t.Errorf("found %+v, %v", again, err)
	}
}

// telling is a datastore whose looks tell what its browser says of disks, and nothing of their extents.
type telling struct{ portlayer.Disks }

func (d telling) Look(ctx context.Context, dir portlayer.DiskPath, disks []string, beside string) []portlayer.Look {
	looks := make([]portlayer.Look, len(disks))
	for i, disk := range disks {
		text, err := d.ReadFile(ctx, d.Join(dir, disk))
		small, serr := d.ReadFile(ctx, d.Join(dir, path.Dir(disk), beside))
		_, lerr := d.List(ctx, d.Join(dir, path.Dir(disk)))
		looks[i].Gone = fault.Is(lerr, fault.NotFound)
		var desc struct{ Size portlayer.Bytes }
		if err != nil || serr != nil || json.Unmarshal(text, &desc) != nil {
			continue
		}
		looks[i] = portlayer.Look{Mark: [9]uint64{1, uint64(crc32.ChecksumIEEE(text)), uint64(crc32.ChecksumIEEE(small))}, Allocated: 1}
		if len(disks) > 1 {
			looks[i].Size, looks[i].Alone = desc.Size, true
		}
	}
	return looks
}

// Where looks tell sizes, a store is opened and listed without a look at each disk; who comes to use a volume looks at its disk, once.
func TestListsBelieveLooks(t *testing.T) {
	d := volumetest.NewDisks()
	c := &counting{Disks: d, calls: map[string]int{}}
	s := mustOpen(t, d, "/s")
	const many = 5
	for i := range many {
		mustEnsure(t, s, portlayer.VolumeName(fmt.Sprintf("v%d", i)))
	}
	s = mustOpen(t, tellingOver{c, telling{d}}, "/s")
	want := func(what string, calls map[string]int) {
		t.Helper()
		delete(calls, "write")
		if got := c.taken(); !maps.Equal(got, calls) {
			t.Errorf("%s made the calls %v, want %v", what, got, calls)
		}
	}
	delete(c.calls, "write")
	want("opening a store", map[string]int{"read": many, "list": 1})
	list := func() {
		t.Helper()
		if vols, uses, err := s.ListUsage(t.Context()); err != nil || len(vols) != many || vols[0].Capacity != uses[0].Capacity || uses[0].Allocated != 1 {
			t.Errorf("%v, %v, %v", vols, uses, err)
		}
		want("listing", map[string]int{"list": 1})
	}
	list()
	if _, err := s.Get(t.Context(), "v1"); err != nil {
		t.Error(err)
	}
	want("using a volume", map[string]int{"read": 1, "stat": 1})
	if _, err := s.Get(t.Context(), "v1"); err != nil {
		t.Error(err)
	}
	want("using it again", map[string]int{})
	if _, err := s.Get(t.Context(), "none"); !fault.Is(err, fault.NotFound) {
		t.Error(err)
	}
	want("looking for one that is not there", map[string]int{})
	mustEnsure(t, mustOpen(t, d, "/s"), "none") // by another VCH, in between
	if vol, made, err := s.Ensure(t.Context(), portlayer.VolumeSpec{Name: "none"}); err != nil || made || vol.Name != "none" {
		t.Errorf("%+v, %v, %v", vol, made, err)
	}
	c.taken()
	if err := s.Remove(t.Context(), "none"); err != nil {
		t.Error(err)
	}
	c.taken()
	if _, err := s.Get(t.Context(), "new"); !fault.Is(err, fault.NotFound) {
		t.Error(err)
	}
	if _, made, err := s.Ensure(t.Context(), portlayer.VolumeSpec{Name: "new"}); err != nil || !made {
		t.Errorf("%v, %v", made, err)
	}
	if got := c.taken(); got["read"] != 0 {
		t.Errorf("making one that was looked for made the calls %v", got)
	}
	if _, made, err := s.Ensure(t.Context(), portlayer.VolumeSpec{Name: "new"}); err != nil || made {
		t.Errorf("%v, %v", made, err)
	}
	if got := c.taken(); got["write"] != 0 {
		t.Errorf("finding it made the calls %v", got)
	}
	if err := s.Remove(t.Context(), "new"); err != nil {
		t.Error(err)
	}
	c.taken()
	d.Truncate(s.disk("v2"), 1)
	list()
	if _, err := s.Get(t.Context(), "v2"); !fault.Is(err, fault.Conflict) {
		t.Errorf("a volume whose extent was cut off: %v", err)
	}
	want("finding damage", map[string]int{"read": 1, "stat": 1})
}

// tellingOver has looks from one, and all else from the other.
type tellingOver struct {
	portlayer.Disks
	looks telling
}

func (d tellingOver) Look(ctx context.Context, dir portlayer.DiskPath, disks []string, beside string) []portlayer.Look {
	return d.looks.Look(ctx, dir, disks, beside)
}
