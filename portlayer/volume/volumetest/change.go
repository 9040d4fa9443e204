package volumetest

import (
	"bytes"
	"errors"
	"io"
	"slices"
	"strings"

	"vch/internal/fault"
	"vch/portlayer"
)

// Labels are replaced, for every later process, and nothing else is.
func labelsLaw(b *bench) {
	p, s := b.fresh()
	vol := b.ensure(s, portlayer.VolumeSpec{Name: "data", Labels: map[string]string{"a": "1", "b": "2"}, Options: map[string]string{"VolumeStore": "here"}, Maker: "c", VCH: "here"})
	vol.Labels = map[string]string{"b": "3"}
	got, err := s.SetLabels(b.Context(), "data", map[string]string{"b": "3"})
	if err != nil {
		b.Fatal(err)
	}
	b.equal("changed", vol, got)
	b.shows(b.open(p), vol)
	vol.Labels = nil
	if _, err := s.SetLabels(b.Context(), "data", nil); err != nil {
		b.Fatal(err)
	}
	b.shows(b.open(p), vol)
	_, err = s.SetLabels(b.Context(), "gone", nil)
	b.kind(err, fault.NotFound, "gone")
	for how, harm := range p.Damage {
		p, s := b.fresh()
		b.ensure(s, portlayer.VolumeSpec{Name: "data"})
		_ = harm
		p.Damage[how]("data")
		_, err := s.SetLabels(b.Context(), "data", map[string]string{"x": "y"})
		b.kind(err, fault.Conflict, "data")
	}
}

// A volume grows, for every later process, and does not shrink.
func growLaw(b *bench) {
	p, s := b.fresh()
	vol := b.ensure(s, portlayer.VolumeSpec{Name: "data", Capacity: small, Labels: map[string]string{"a": "1"}})
	vol.Capacity = 2 * small
	for range 2 { // twice the same is once
		got, err := s.Grow(b.Context(), "data", 2*small-1)
		if err != nil {
			b.Fatal(err)
		}
		b.equal("grown", vol, got)
	}
	b.shows(b.open(p), vol)
	_, err := s.Grow(b.Context(), "data", small)
	b.kind(err, fault.Invalid, "shrink")
	_, err = s.Grow(b.Context(), "gone", small)
	b.kind(err, fault.NotFound, "gone")
	b.shows(s, vol)
	b.interruptions([]Way{Refused, LostAnswer, DiesBefore, DiesAfter}, func(what string, n int, w Way) bool {
		p, s := b.fresh()
		vol := b.ensure(s, portlayer.VolumeSpec{Name: "data", Capacity: small})
		p.Faults.Arm(n, w)
		_, err := s.Grow(b.Context(), "data", 2*small)
		met := p.Faults.Disarm()
		if !met && err != nil {
			b.Fatalf("%s: %v", what, err)
		}
		s = b.open(p)
		got, gerr := s.Get(b.Context(), "data")
		if gerr != nil || got.Capacity != small && got.Capacity != 2*small || err == nil && got.Capacity != 2*small {
			b.Fatalf("%s: %v, then %+v, %v", what, err, got, gerr)
		}
		if vol, err = s.Grow(b.Context(), "data", 2*small); err != nil || vol.Capacity != 2*small {
			b.Fatalf("%s: again: %+v, %v", what, vol, err)
		}
		return met
	})
}

// A renamed volume is what it was, under the label of its new name; its snapshots come with it.
func renameLaw(b *bench) {
	p, s := b.fresh()
	vol := b.ensure(s, portlayer.VolumeSpec{Name: "data", Capacity: small, Labels: map[string]string{"a": "1"}, Maker: "c"})
	other := b.ensure(s, portlayer.VolumeSpec{Name: "other", Capacity: small})
	if p.Disks {
		if _, err := s.Snapshot(b.Context(), "data", "first", nil); err != nil {
			b.Fatal(err)
		}
	}
	_, err := s.Rename(b.Context(), "data", "other")
	b.kind(err, fault.Conflict, "other")
	_, err = s.Rename(b.Context(), "gone", "new")
	b.kind(err, fault.NotFound, "gone")
	_, err = s.Rename(b.Context(), "data", "a/b")
	b.kind(err, fault.Invalid)
	b.shows(s, vol, other)
	got, err := s.Rename(b.Context(), "data", "renamed")
	if err != nil {
		b.Fatal(err)
	}
	made := b.ensure(s, portlayer.VolumeSpec{Name: "data", Capacity: small}) // a new one of the old name
	if got.Label == vol.Label || made.Label != vol.Label {
		b.Errorf("labels: %s was %s; a new volume of the old name has %s", got.Label, vol.Label, made.Label)
	}
	if p.Disks {
		vol.Was = labelsOf(p, vol.Label)
	}
	vol.Name, vol.Label, vol.Source = "renamed", got.Label, got.Source
	b.equal("renamed", vol, got)
	s = b.open(p)
	b.shows(s, made, other, vol)
	if list, err := s.Snapshots(b.Context(), "renamed"); err != nil || p.Disks && (len(list) != 1 || list[0].Name != "first") {
		b.Errorf("snapshots %+v, %v", list, err)
	}
	if err := s.Remove(b.Context(), "renamed"); err != nil {
		b.Error(err)
	}
	b.shows(s, made, other)
}

// A name may be what a file of a volume of the other name would be called.
func renameToFileLaw(b *bench) {
	p, s := b.fresh()
	vol := b.ensure(s, portlayer.VolumeSpec{Name: "data", Capacity: small})
	for _, to := range []portlayer.VolumeName{"data-flat", "data", "data.vmdk", "data-flat.vmdk", "data-flat-flat", "data-flat", "data"} {
		was := vol
		var err error
		if vol, err = s.Rename(b.Context(), was.Name, to); err != nil {
			b.Fatalf("%s to %s: %v", was.Name, to, err)
		}
		b.shows(s, vol)
		s = b.open(p)
		b.shows(s, vol)
	}
}

func interruptedRenameLaw(b *bench) {
	b.interruptions([]Way{Refused, LostAnswer, DiesBefore, DiesAfter}, func(what string, n int, w Way) bool {
		p, s := b.fresh()
		b.ensure(s, portlayer.VolumeSpec{Name: "data", Capacity: small, Maker: "me"})
		p.Faults.Arm(n, w)
		_, err := s.Rename(b.Context(), "data", "renamed")
		met := p.Faults.Disarm()
		if !met && err != nil {
			b.Fatalf("%s: %v", what, err)
		}
		s = b.open(p)
		old, renamed := b.present(what, s, "data"), b.present(what, s, "renamed")
		if old == renamed || err == nil && old {
			b.Fatalf("%s: %v; old name %v, new name %v", what, err, old, renamed)
		}
		if old {
			if _, err := s.Rename(b.Context(), "data", "renamed"); err != nil {
				b.Fatalf("%s: again: %v", what, err)
			}
		}
		if vol, err := s.Get(b.Context(), "renamed"); err != nil || vol.Maker != "me" || p.Disks && vol.Capacity != small {
			b.Fatalf("%s: %+v, %v", what, vol, err)
		}
		if err := s.Remove(b.Context(), "renamed"); err != nil {
			b.Fatalf("%s: %v", what, err)
		}
		return met
	})
}

// A copy is a volume of its own, at least as large, that says what its file system was called.
func copyLaw(b *bench) {
	p, s := b.fresh()
	vol := b.ensure(s, portlayer.VolumeSpec{Name: "data", Capacity: small})
	src, err := s.Source(b.Context(), "data", "")
	if err != nil {
		b.Fatal(err)
	}
	b.equal("source", portlayer.VolumeSource{Disk: src.Disk, Capacity: small, Labels: labelsOf(p, vol.Label)}, src)
	told := false
	same := b.ensure(s, portlayer.VolumeSpec{Name: "same", From: &src, Progress: func(done, total portlayer.Bytes) { told = done > 0 && done <= total }})
	larger := b.ensure(s, portlayer.VolumeSpec{Name: "larger", Capacity: 2 * small, From: &src})
	if same.Capacity != small || larger.Capacity != 2*small || same.Label == vol.Label || !slices.Equal(same.Was, labelsOf(p, vol.Label)) || !told {
		b.Errorf("%+v, %+v, told %v", same, larger, told)
	}
	_, _, err = s.Ensure(b.Context(), portlayer.VolumeSpec{Name: "smaller", Capacity: small - 512, From: &src})
	b.kind(err, fault.Invalid)
	again, err := s.Source(b.Context(), "same", "")
	if err != nil {
		b.Fatal(err)
	}
	b.equal("labels of a copy", append(labelsOf(p, vol.Label), same.Label), again.Labels)
	b.shows(b.open(p), vol, larger, same)
	_, err = s.Source(b.Context(), "gone", "")
	b.kind(err, fault.NotFound, "gone")
	_, err = s.Source(b.Context(), "data", "gone")
	b.kind(err, fault.NotFound, "gone")
}

// Snapshots are kept, listed oldest first, and go alone or with their volume.
func snapshotLaw(b *bench) {
	p, s := b.fresh()
	before := tree(p)
	vol := b.ensure(s, portlayer.VolumeSpec{Name: "data", Capacity: small})
	for _, name := range []string{"zz", "1.aa"} {
		snap, err := s.Snapshot(b.Context(), "data", name, nil)
		if err != nil || snap.Name != name || snap.Capacity != small || snap.Created.IsZero() {
			b.Fatalf("%+v, %v", snap, err)
		}
	}
	_, err := s.Snapshot(b.Context(), "data", "zz", nil)
	b.kind(err, fault.Conflict, "zz")
	for _, bad := range []string{"", ".", "..", "a/b", "-x", "a b"} {
		_, err := s.Snapshot(b.Context(), "data", bad, nil)
		b.kind(err, fault.Invalid, bad)
		b.kind(s.RemoveSnapshot(b.Context(), "data", bad), fault.NotFound)
	}
	_, err = s.Snapshot(b.Context(), "gone", "zz", nil)
	b.kind(err, fault.NotFound, "gone")
	_, err = s.Snapshots(b.Context(), "gone")
	b.kind(err, fault.NotFound, "gone")
	if _, err := s.Grow(b.Context(), "data", 2*small); err != nil {
		b.Fatal(err)
	}
	vol.Capacity = 2 * small
	s = b.open(p)
	b.shows(s, vol)
	list, err := s.Snapshots(b.Context(), "data")
	if err != nil || len(list) != 2 || list[0].Name != "zz" || list[1].Name != "1.aa" || list[0].Capacity != small {
		b.Fatalf("%+v, %v", list, err)
	}
	src, err := s.Source(b.Context(), "data", "zz")
	if err != nil || src.Capacity != small || !slices.Equal(src.Labels, labelsOf(p, vol.Label)) {
		b.Errorf("%+v, %v", src, err)
	}
	back := b.ensure(s, portlayer.VolumeSpec{Name: "back", From: &src})
	if back.Capacity != small {
		b.Errorf("%+v", back)
	}
	if err := s.RemoveSnapshot(b.Context(), "data", "zz"); err != nil {
		b.Error(err)
	}
	b.kind(s.RemoveSnapshot(b.Context(), "data", "zz"), fault.NotFound, "zz")
	if list, err := s.Snapshots(b.Context(), "data"); err != nil || len(list) != 1 {
		b.Errorf("%+v, %v", list, err)
	}
	for _, name := range []portlayer.VolumeName{"data", "back"} {
		if err := s.Remove(b.Context(), name); err != nil {
			b.Error(err)
		}
	}
	b.equal("medium at the end", before, tree(p))
}

func interruptedSnapshotLaw(b *bench) {
	b.interruptions([]Way{Refused, LostAnswer, DiesBefore, DiesAfter}, func(what string, n int, w Way) bool {
		p, s := b.fresh()
		vol := b.ensure(s, portlayer.VolumeSpec{Name: "data", Capacity: small})
		p.Faults.Arm(n, w)
		_, err := s.Snapshot(b.Context(), "data", "snap", nil)
		met := p.Faults.Disarm()
		if !met && err != nil {
			b.Fatalf("%s: %v", what, err)
		}
		s = b.open(p)
		b.shows(s, vol)
		list, lerr := s.Snapshots(b.Context(), "data")
		if len(list) == 0 && slices.ContainsFunc(tree(p), func(at string) bool { return strings.Contains(at, "snap-flat") }) {
			b.Fatalf("%s: left %v", what, tree(p))
		}
		if lerr != nil || len(list) > 1 || err == nil && len(list) == 0 || err != nil && w == Refused && len(list) > 0 {
			b.Fatalf("%s: %v; %+v, %v", what, err, list, lerr)
		}
		if len(list) == 0 {
			if _, err := s.Snapshot(b.Context(), "data", "snap", nil); err != nil {
				b.Fatalf("%s: again: %v", what, err)
			}
		}
		return met
	})
}

// A packed volume becomes one again, whole or not at all.
func packLaw(b *bench) {
	p, s := b.fresh()
	vol := b.ensure(s, portlayer.VolumeSpec{Name: "data", Capacity: small})
	if _, err := s.Snapshot(b.Context(), "data", "snap", nil); err != nil {
		b.Fatal(err)
	}
	var pack, snap bytes.Buffer
	if err := errors.Join(s.Pack(b.Context(), "data", "", &pack), s.Pack(b.Context(), "data", "snap", &snap)); err != nil {
		b.Fatal(err)
	}
	b.kind(s.Pack(b.Context(), "gone", "", io.Discard), fault.NotFound, "gone")
	b.kind(s.Pack(b.Context(), "data", "gone", io.Discard), fault.NotFound, "gone")
	before := tree(p)
	for what, text := range map[string]string{"empty": "", "nonsense": "nonsense", "cut": pack.String()[:pack.Len()/2], "cut at its beginning": pack.String()[:20]} {
		_, _, err := s.Ensure(b.Context(), portlayer.VolumeSpec{Name: "bad", Packed: strings.NewReader(text)})
		if !fault.Is(err, fault.Invalid) {
			b.Errorf("%s: %v", what, err)
		}
		b.equal(what+": medium", before, tree(p))
	}
	for name, text := range map[portlayer.VolumeName]string{"whole": pack.String(), "snap": snap.String()} {
		rest := strings.NewReader(text)
		made := b.ensure(s, portlayer.VolumeSpec{Name: name, Packed: rest})
		if made.Capacity != small || !slices.Equal(made.Was, labelsOf(p, vol.Label)) || rest.Len() != 0 {
			b.Errorf("%s: %+v; %d bytes were not read", name, made, rest.Len())
		}
	}
	if larger := b.ensure(s, portlayer.VolumeSpec{Name: "larger", Capacity: 2 * small, Packed: bytes.NewReader(pack.Bytes())}); larger.Capacity != 2*small {
		b.Errorf("%+v", larger)
	}
	_, _, err := s.Ensure(b.Context(), portlayer.VolumeSpec{Name: "smaller", Capacity: small - 512, Packed: bytes.NewReader(pack.Bytes())})
	b.kind(err, fault.Invalid)
}

// What a directory cannot be is refused by name, and changes nothing.
func directoriesLaw(b *bench) {
	p, s := b.fresh()
	dirs, ok := s.(portlayer.DirectoryStore)
	if ok == p.Disks {
		b.Fatalf("disks %v, and a DirectoryStore %v", p.Disks, ok)
	}
	if !ok {
		return
	}
	vol := b.ensure(s, portlayer.VolumeSpec{Name: "data"})
	before := tree(p)
	_, grow := s.Grow(b.Context(), "data", small)
	_, snapshot := s.Snapshot(b.Context(), "data", "one", nil)
	_, source := s.Source(b.Context(), "data", "")
	_, _, from := s.Ensure(b.Context(), portlayer.VolumeSpec{Name: "copy", From: &portlayer.VolumeSource{Capacity: small}})
	_, _, packed := s.Ensure(b.Context(), portlayer.VolumeSpec{Name: "copy", Packed: strings.NewReader("")})
	for _, err := range []error{grow, snapshot, source, from, packed, s.Pack(b.Context(), "data", "", io.Discard)} {
		b.kind(err, fault.Unsupported, string(s.Name()))
	}
	list, err := s.Snapshots(b.Context(), "data")
	if err != nil || len(list) != 0 {
		b.Errorf("snapshots %+v, %v", list, err)
	}
	b.kind(s.RemoveSnapshot(b.Context(), "data", "one"), fault.NotFound, "one")
	for _, gone := range []func() error{
		func() error { _, err := s.Grow(b.Context(), "none", small); return err },
		func() error { _, err := s.Snapshot(b.Context(), "none", "one", nil); return err },
		func() error { _, err := s.Snapshots(b.Context(), "none"); return err },
		func() error { _, err := s.Source(b.Context(), "none", ""); return err },
	} {
		b.kind(gone(), fault.NotFound, "none")
	}
	b.kind(dirs.CheckOptions(map[string]string{"no-such-option": "1"}), fault.Invalid, "no-such-option")
	_, _, err = s.Ensure(b.Context(), portlayer.VolumeSpec{Name: "copy", Options: map[string]string{"no-such-option": "1"}})
	b.kind(err, fault.Invalid, "no-such-option")
	if len(dirs.Settings(vol)) == 0 {
		b.Error("nothing is said of how a volume is mounted")
	}
	b.equal("medium", before, tree(p))
	b.shows(s, vol)
}

// labelsOf is what the file system of a volume may be called that came from one with a label, which nobody has mounted.
func labelsOf(p Place, label portlayer.Label) []portlayer.Label {
	return append(slices.Clone(p.Born), label)
}
