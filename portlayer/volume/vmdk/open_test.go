package vmdk

import (
	"context"
	"encoding/json"
	"slices"
	"strings"
	"testing"

	"vch/internal/fault"
	"vch/portlayer"
	"vch/portlayer/volume/volumetest"
)

const mib = portlayer.MiB

func options(d portlayer.Disks, root portlayer.DiskPath) Options {
	return Options{Name: "fast", Location: string(root), Root: root, Disks: d, Driver: "test-vmdk", SizeUnit: sector, DefaultCapacity: 16 * mib}
}

func mustOpen(t *testing.T, d portlayer.Disks, root portlayer.DiskPath) *Store {
	t.Helper()
	s, err := Open(t.Context(), options(d, root))
	if err != nil {
		t.Fatal(err)
	}
	return s
}

func mustEnsure(t *testing.T, s *Store, name portlayer.VolumeName) portlayer.Volume {
	t.Helper()
	vol, _, err := s.Ensure(t.Context(), portlayer.VolumeSpec{Name: name})
	if err != nil {
		t.Fatal(err)
	}
	return vol
}

// A bad place is refused with what is wrong and what to do, and nothing is made in it.
func TestOpenRefuses(t *testing.T) {
	tests := []struct {
		name   string
		root   portlayer.DiskPath
		spoil  func(*volumetest.Disks)
		change func(*Options)
		kind   fault.Kind
		words  []string
	}{
		{name: "a file", root: "/f", spoil: func(d *volumetest.Disks) { d.Put("/f", []byte("x")) }, kind: fault.Invalid, words: []string{"fast", "/f is not a directory", "give a directory"}},
		{name: "below a file", root: "/f/store", spoil: func(d *volumetest.Disks) { d.Put("/f", []byte("x")) }, kind: fault.Invalid, words: []string{"/f/store"}},
		{name: "volumes is a file", root: "/s", spoil: func(d *volumetest.Disks) { d.Put("/s/volumes", []byte("x")) }, kind: fault.Invalid, words: []string{"/s"}},
		{name: "read-only", root: "/s", spoil: func(d *volumetest.Disks) { d.Put("/s/x", []byte("x")); d.SetReadOnly(true) }, kind: fault.Denied, words: []string{"/s cannot be written", "user that runs vch"}},
		{name: "read-only parent", root: "/s", spoil: func(d *volumetest.Disks) { d.SetReadOnly(true) }, kind: fault.Denied, words: []string{"cannot be written"}},
		{name: "no parent", root: "/no/such/store", kind: fault.NotFound, words: []string{"the directory that should hold /no/such/store is missing", "mount"}},
		{name: "full", root: "/s", spoil: func(d *volumetest.Disks) { d.Fill(true) }, kind: fault.Unavailable, words: []string{"no space left"}},
		{name: "name", root: "/s", change: func(o *Options) { o.Name = "a b" }, kind: fault.Invalid, words: []string{`"a b"`, "letters"}},
		{name: "no name", root: "/s", change: func(o *Options) { o.Name = "" }, kind: fault.Invalid},
		{name: "capacity", root: "/s", change: func(o *Options) { o.DefaultCapacity = -1 }, kind: fault.Invalid, words: []string{"negative"}},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			d := volumetest.NewDisks()
			if tt.spoil != nil {
				tt.spoil(d)
			}
			o := options(d, tt.root)
			if tt.change != nil {
				tt.change(&o)
			}
			before := d.Tree()
			_, err := Open(t.Context(), o)
			if !fault.Is(err, tt.kind) {
				t.Fatalf("err = %v (%v), want %v", err, fault.KindOf(err), tt.kind)
			}
			for _, w := range tt.words {
				if !strings.Contains(err.Error(), w) {
					t.Errorf("%q does not say %q", err, w)
				}
			}
			if after := d.Tree(); !slices.Equal(before, after) {
				t.Errorf("medium was %q, is %q", before, after)
			}
		})
	}
}

// A copy of a store, opened under another name, shows the same volumes, whose file systems are still called by their old labels.
func TestCopiedStoreKeepsLabels(t *testing.T) {
	d := volumetest.NewDisks()
	vol := mustEnsure(t, mustOpen(t, d, "/s"), "data")
	o := options(d, "/s")
	o.Name, o.Driver = "renamed", "other-vmdk"
	s, err := Open(t.Context(), o)
	if err != nil {
		t.Fatal(err)
	}
	got, err := s.Get(t.Context(), "data")
	if err != nil || got.Label != vol.Label || got.Store != "renamed" || got.Driver != "other-vmdk" {
		t.Errorf("got %+v, %v; the label was %s", got, err, vol.Label)
	}
}

// What is in the directory and is no volume is neither shown nor touched, and what a newer vch wrote is left to it.
func TestForeignFilesAreLeftAlone(t *testing.T) {
	d := volumetest.NewDisks()
	s := mustOpen(t, d, "/s")
	good := mustEnsure(t, s, "good")
	mustEnsure(t, s, "newer")
	text, err := json.Marshal(record{Format: format + 1, Size: mib, Label: good.Label})
	if err != nil {
		t.Fatal(err)
	}
	d.Put("/s/volumes/newer/volume.json", text)
	d.Put("/s/volumes/lost+found/1", []byte("x"))
	d.Put("/s/volumes/.snapshot/good/good.vmdk", []byte("x"))
	d.Put("/s/volumes/notes", []byte("x"))
	d.Put("/s/volumes/backup/old.tar", []byte("x"))
	before := d.Tree()
	s = mustOpen(t, d, "/s")
	vols, err := s.List(t.Context())
	if len(vols) != 1 || vols[0].Name != "good" {
		t.Errorf("volumes %+v", vols)
	}
	for _, word := range []string{"newer vch", "/s/volumes/notes", "volume.json is missing beside old.tar"} {
		if err == nil || !strings.Contains(err.Error(), word) {
			t.Errorf("err = %v, does not say %q", err, word)
		}
	}
	for _, n := range []portlayer.VolumeName{"newer", "notes"} {
		if err := s.Remove(t.Context(), n); !fault.Is(err, fault.Conflict) {
			t.Errorf("remove %s: %v", n, err)
		}
	}
	for _, n := range []portlayer.VolumeName{"newer", "notes", "backup"} {
		if _, _, err := s.Ensure(t.Context(), portlayer.VolumeSpec{Name: n}); !fault.Is(err, fault.Conflict) {
			t.Errorf("ensure %s: %v", n, err)
		}
	}
	if after := d.Tree(); !slices.Equal(before, after) {
		t.Errorf("medium was %q, is %q", before, after)
	}
}

// A copy whose making died is not a volume, whoever looks first: Open clears it away, Ensure makes it anew, Remove calls it missing and clears it away.
func TestUnfinishedMakes(t *testing.T) {
	medium := func(t *testing.T) *volumetest.Disks {
		d := volumetest.NewDisks()
		if err := d.Create(t.Context(), "/source.vmdk", portlayer.DiskSpec{Size: mib * 8, Label: portlayer.Label(hash("source"))}); err != nil {
			t.Fatal(err)
		}
		return d
	}
	data := portlayer.VolumeSpec{Name: "data", From: &portlayer.VolumeSource{Disk: "/source.vmdk", Capacity: mib * 8}}
	leave := func(t *testing.T, calls int) *volumetest.Disks {
		d := medium(t)
		f := volumetest.NewFaulty(d)
		s := mustOpen(t, f, "/s")
		f.Arm(calls, volumetest.DiesAfter)
		if _, _, err := s.Ensure(t.Context(), data); err == nil || !f.Disarm() {
			t.Fatalf("ensure: %v", err)
		}
		if !slices.Contains(d.Tree(), "/s/volumes/data/") {
			t.Fatal("nothing is left of the make")
		}
		return d
	}
	for calls := 4; calls <= 6; calls++ { // after the directory, the first record, the disk
		clean := medium(t)
		mustOpen(t, clean, "/s")

		d := leave(t, calls)
		mustOpen(t, d, "/s")
		if !slices.Equal(d.Tree(), clean.Tree()) {
			t.Errorf("after %d calls: left after Open: %q", calls, d.Tree())
		}

		d = leave(t, calls)
		s := &Store{o: options(d, "/s"), volumes: "/s/volumes"} // not opened: nothing is cleared away
		if vols, err := s.List(t.Context()); len(vols) > 0 || err != nil {
			t.Errorf("after %d calls: listed %v, %v", calls, vols, err)
		}
		if _, err := s.Get(t.Context(), "data"); !fault.Is(err, fault.NotFound) {
			t.Errorf("after %d calls: get: %v", calls, err)
		}
		if _, made, err := s.Ensure(t.Context(), data); !made || err != nil {
			t.Errorf("after %d calls: made %v, %v", calls, made, err)
		}

		d = leave(t, calls)
		s = &Store{o: options(d, "/s"), volumes: "/s/volumes"}
		if err := s.Remove(t.Context(), "data"); !fault.Is(err, fault.NotFound) {
			t.Errorf("after %d calls: remove: %v", calls, err)
		}
		if !slices.Equal(d.Tree(), clean.Tree()) {
			t.Errorf("after %d calls: left after Remove: %q", calls, d.Tree())
		}
	}
}

// Two volumes with one label cannot be told apart by a guest; the second is refused instead of mounting the first in its place.
func TestJoinRefusesACopyBesideItsOriginal(t *testing.T) {
	d := volumetest.NewDisks()
	s := mustOpen(t, d, "/s")
	a, b := mustEnsure(t, s, "aa"), mustEnsure(t, s, "bb")
	b.Label = a.Label
	h := &portlayer.Handle{}
	if err := s.Join(t.Context(), h, a, portlayer.Mount{Target: "/a"}); err != nil {
		t.Fatal(err)
	}
	if err := s.Join(t.Context(), h, b, portlayer.Mount{Target: "/b"}); !fault.Is(err, fault.Conflict) || len(h.Devices) != 1 || len(h.Config.Mounts) != 1 {
		t.Errorf("join: %v, %+v", err, h)
	}
	b.Store = "elsewhere"
	if err := s.Join(t.Context(), h, b, portlayer.Mount{Target: "/b"}); !fault.Is(err, fault.Internal) {
		t.Errorf("join of another store's volume: %v", err)
	}
}

// vanishing is a medium that goes away just before a directory is removed.
type vanishing struct{ *volumetest.Disks }

func (v vanishing) RemoveDir(ctx context.Context, dir portlayer.DiskPath) error {
	v.Unmount("/s")
	return v.Disks.RemoveDir(ctx, dir)
}

// Disks.RemoveDir of what is not there is no error, also when all of the medium is not there: the volume is then not reported removed.
func TestRemoveOnAVanishingMedium(t *testing.T) {
	d := volumetest.NewDisks()
	s := mustOpen(t, vanishing{d}, "/s")
	mustEnsure(t, s, "data")
	if err := s.Remove(t.Context(), "data"); !fault.Is(err, fault.Unavailable) {
		t.Errorf("remove: %v", err)
	}
	d.Unmount("")
	if _, err := s.Get(t.Context(), "data"); err != nil {
		t.Errorf("get: %v", err)
	}
}

// A full medium is named with what is free on it.
func TestFullSaysHowMuchIsFree(t *testing.T) {
	d := volumetest.NewDisks()
	s := mustOpen(t, d, "/s")
	d.Fill(true)
	_, _, err := s.Ensure(t.Context(), portlayer.VolumeSpec{Name: "data"})
	if want := "cannot make volume data in store fast (0B of 1GiB free): no space left"; err == nil || !strings.HasPrefix(err.Error(), want) {
		t.Errorf("err = %v, want %s…", err, want)
	}
}

// A store that may be away is opened whatever is at its place, in which it makes nothing; it is degraded, and comes by itself when it is there, without what an
// interrupted Ensure has left in it.
func TestOpenOfWhatMayBeAway(t *testing.T) {
	for name, spoil := range map[string]func(*volumetest.Disks){
		"nothing":       func(*volumetest.Disks) {},
		"a mount point": func(d *volumetest.Disks) { d.Put("/m/s/x", nil) },
		"a file":        func(d *volumetest.Disks) { d.Put("/m/s", nil) },
		"read-only":     func(d *volumetest.Disks) { d.Put("/m/s/volumes/x", nil); d.SetReadOnly(true) },
	} {
		t.Run(name, func(t *testing.T) {
			d := volumetest.NewDisks()
			spoil(d)
			o := options(d, "/m/s")
			o.MayBeAway = true
			before := d.Tree()
			s, err := Open(t.Context(), o)
			if err != nil {
				t.Fatal(err)
			}
			if st := s.Status(t.Context()); !strings.Contains(st.Degraded, "/m/s/volumes ") {
				t.Errorf("status %+v", st)
			}
			if _, _, err := s.Ensure(t.Context(), portlayer.VolumeSpec{Name: "data"}); !fault.Is(err, fault.Unavailable) {
				t.Errorf("a volume in it: %v", err)
			}
			if after := d.Tree(); !slices.Equal(before, after) {
				t.Errorf("before %v, after %v", before, after)
			}
		})
	}
	d := volumetest.NewDisks()
	o := options(d, "/m/s")
	o.MayBeAway = true
	s, err := Open(t.Context(), o)
	if err != nil {
		t.Fatal(err)
	}
	mustEnsure(t, mustOpen(t, d, "/m"), "other") // the medium comes
	d.Put("/m/s/volumes/half/x", nil)
	if err := d.MakeDir(t.Context(), "/m/s/volumes/empty"); err != nil {
		t.Fatal(err)
	}
	mustEnsure(t, s, "data")
	if st := s.Status(t.Context()); st.Degraded != "" {
		t.Errorf("status %+v", st)
	}
	if tree := d.Tree(); slices.ContainsFunc(tree, func(p string) bool { return strings.Contains(p, "/empty") }) {
		t.Errorf("what was half made is there: %v", tree)
	}
}
