package hypertest

import (
	"archive/tar"
	"bytes"
	"io"
	"slices"
	"testing"

	"vch/guest"
	"vch/internal/fault"
)

// counts asks a guest what its container uses and what it has changed, gives it other limits, and archives its root alone.
func (s *suite) counts(t *testing.T) {
	m := s.define(t, s.spec("counted"))
	s.powerOn(t, m)
	c := s.connect(t, m)
	if _, err := c.Stats(s.limit(t)); !fault.Is(err, fault.Conflict) {
		t.Errorf("stats before there is a container: %v", err)
	}
	want(t, "limits before there is a container", c.SetLimits(s.limit(t), guest.Limits{}), fault.Conflict)
	want(t, "standing still before there is a container", c.SetStill(s.limit(t), true), fault.Conflict)
	cfg := config("counted", []string{s.Commands.Write("/marked", "text"), "cat"})
	cfg.Limits = guest.Limits{Memory: 64 << 20, PidsMax: 9}
	s.configure(t, c, cfg)
	memory, cpus, err := m.Size(t.Context())
	if err != nil || memory != s.Memory || cpus != 1 {
		t.Errorf("the machine has %d bytes and %d processors, %v", memory, cpus, err)
	}
	st, err := c.Stats(s.limit(t))
	if err != nil || st.Read.IsZero() || st.Pids != 1 || st.PidsMax != 9 || st.Memory.Limit != 64<<20 || st.Memory.Usage == 0 || st.CPU.Total == 0 || st.CPU.Machine == 0 || st.CPU.Online != 1 {
		t.Errorf("%+v, %v", st, err)
	}
	if err := c.SetLimits(s.limit(t), guest.Limits{Memory: 48 << 20, CPUs: 5e8}); err != nil {
		t.Fatal(err)
	}
	want(t, "a limit that its processes cannot do with", c.SetLimits(s.limit(t), guest.Limits{Memory: 1}), fault.Invalid)
	if st, err := c.Stats(s.limit(t)); err != nil || st.PidsMax != 0 || st.Memory.Limit != 48<<20 {
		t.Errorf("after other limits: %+v, %v", st, err)
	}
	s.changed(t, c)
	s.undefine(t, m)
}

// changed waits for the file /marked, and looks for it in what changes and archives tell.
func (s *suite) changed(t *testing.T, c *guest.Client) {
	for {
		if _, err := c.Stat(s.limit(t), guest.StatRequest{Place: guest.Place{Path: "/marked"}}); err == nil {
			break
		} else if !fault.Is(err, fault.NotFound) {
			t.Fatal(err)
		}
	}
	var changes []guest.Change
	if err := c.Changes(s.limit(t), func(some []guest.Change) error { changes = append(changes, some...); return nil }); err != nil {
		t.Fatal(err)
	}
	if want := []guest.Change{{Path: "/marked", Kind: guest.Added}}; !slices.Equal(changes, want) {
		t.Errorf("changes: %+v, want %+v", changes, want)
	}
	for _, extent := range []guest.Extent{guest.RootAlone, guest.ChangesOf} {
		var raw bytes.Buffer
		r := guest.ArchiveRequest{Place: guest.Place{Path: "/"}, Extent: extent, Still: true}
		if _, err := c.Archive(s.limit(t), r, func(data []byte) error { raw.Write(data); return nil }); err != nil {
			t.Fatal(err)
		}
		var names []string
		for tr := tar.NewReader(&raw); ; {
			h, err := tr.Next()
			if err == io.EOF {
				break
			}
			if err != nil {
				t.Fatal(err)
			}
			names = append(names, h.Name)
		}
		if !slices.Contains(names, "marked") || extent == guest.ChangesOf && len(names) != 1 {
			t.Errorf("%s: %q", extent, names)
		}
	}
	// They stood still for it, and go on; and stay as they are where they stood still before.
	for _, still := range []bool{true, true, false, false} {
		if err := c.SetStill(s.limit(t), still); err != nil {
			t.Fatal(err)
		}
	}
	if _, err := c.Exec(s.limit(t), "later", *config("later", []string{"exit 0"}).Process, nil, nil, nil); err != nil {
		t.Error(err)
	}
}
