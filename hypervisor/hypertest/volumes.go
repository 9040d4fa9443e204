package hypertest

import (
	"context"
	"testing"
	"time"

	"vch/guest"
	"vch/internal/fault"
	"vch/portlayer"
)

// volumes grows, freezes and renames the file systems of volumes.
func (s *suite) volumes(t *testing.T) {
	d := s.h.Disks()
	data := s.disk(t, "grown")
	// A copy still has its source's name in it.
	copied := d.Join(s.disks, "copied.vmdk")
	if err := d.Copy(t.Context(), data, copied, nil); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := d.Delete(context.Background(), copied); err != nil {
			t.Error(err)
		}
	})
	m := s.define(t, s.spec("volumes", volumeDisk("grown", data, false), volumeDisk("copied", copied, false)))
	if err := m.Grown(t.Context(), string(label("grown"))); err != nil {
		t.Errorf("a machine that is off: %v", err)
	}
	s.powerOn(t, m)
	c := s.connect(t, m)
	grown, other := s.volume("grown", false), s.volume("copied", false)
	other.Target = "/copied"
	other.Was = append(other.Was, string(label("none")), string(label("grown")))
	s.configure(t, c, config("volumes", []string{"cat"}, grown, other))
	total := func(source string) int64 {
		t.Helper()
		rooms, err := c.Rooms(s.limit(t))
		if err != nil {
			t.Fatal(err)
		}
		for _, r := range rooms {
			if r.Source == source {
				if r.Free <= 0 || r.Free > r.Total {
					t.Errorf("%+v", r)
				}
				return r.Total
			}
		}
		t.Fatalf("%s is not in %v", source, rooms)
		return 0
	}
	before := total(grown.Source)

	const size = 80 * portlayer.MiB
	if err := d.Grow(t.Context(), data, size); err != nil {
		t.Fatal(err)
	}
	want(t, "a disk that is not there", m.Grown(s.limit(t), "none"), fault.NotFound)
	if err := m.Grown(s.limit(t), string(label("grown"))); err != nil {
		t.Fatal(err)
	}
	if err := c.Grow(s.limit(t), grown.Source, int64(size)); err != nil {
		t.Fatal(err)
	}
	if after := total(grown.Source); after < before+50<<20 {
		t.Errorf("a volume of %d bytes that grew to %d has %d", before, size, after)
	}
	want(t, "a volume that is not there", c.Grow(s.limit(t), "label://"+string(label("none")), 1), fault.Conflict)

	// Who writes to a frozen volume waits for the thaw.
	if err := c.Freeze(s.limit(t), grown.Source, time.Minute); err != nil {
		t.Fatal(err)
	}
	want(t, "frozen twice", c.Freeze(s.limit(t), grown.Source, time.Minute), fault.Conflict)
	wrote := make(chan string, 1)
	go func() { wrote <- s.exec(t, c, "/", s.Commands.Write("/data/f", "late"), s.Commands.Read("/data/f")) }()
	select {
	case <-wrote:
		t.Error("a frozen volume was written")
	case <-time.After(2 * time.Second):
	}
	if err := c.Thaw(s.limit(t), grown.Source); err != nil {
		t.Fatal(err)
	}
	if out := <-wrote; out != "late" {
		t.Errorf("after the thaw it reads %q", out)
	}
	want(t, "thawed twice", c.Thaw(s.limit(t), grown.Source), fault.Conflict)
	if err := c.Signal(s.limit(t), "", 9); err != nil {
		t.Fatal(err)
	}
	var last guest.Status
	if err := c.Watch(s.limit(t), func(st guest.Status) bool { last = st; return st.Phase == guest.Running }); err != nil || len(last.Rooms) != 2 {
		t.Errorf("%+v, %v", last, err)
	}
	s.undefine(t, m)

	// Mounted writable once, the copy has its own name, and the grown one its size.
	m = s.define(t, s.spec("volumes", volumeDisk("grown", data, true), volumeDisk("copied", copied, true)))
	s.powerOn(t, m)
	c = s.connect(t, m)
	grown.ReadOnly, other.ReadOnly = true, true
	grown.Was, other.Was = nil, nil
	s.configure(t, c, config("volumes", []string{"cat"}, grown, other))
	if after := total(grown.Source); after < before+50<<20 {
		t.Errorf("started again it has %d bytes", after)
	}
	want(t, "a volume that is mounted read-only", c.Freeze(s.limit(t), grown.Source, time.Minute), fault.Conflict)
	s.undefine(t, m)
}
