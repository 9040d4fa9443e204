package hypertest

import (
	"bytes"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"vch/internal/fault"
	"vch/portlayer"
)

func (s *suite) testDisks(t *testing.T) {
	t.Run("a new disk is thin, as large as asked, and two files", s.newDisk)
	t.Run("of many that create one disk, one does", s.createAtOnce)
	t.Run("a directory with a disk is there whole or not at all", s.createDir)
	t.Run("one of many directories with disks is like one of few", s.createDirAgain)
	t.Run("a look tells what was changed", s.look)
	t.Run("a disk that cannot be made leaves nothing", s.badDisks)
	t.Run("a damaged disk is told from a missing one", s.damagedDisks)
	t.Run("delete takes what is there, twice", s.deleteDisk)
	t.Run("delete takes nothing of another disk", s.deleteBeside)
	t.Run("import moves an image into place", s.importDisk)
	t.Run("a copy holds what its source holds", s.copyDisk)
	t.Run("a disk is read and made of what was read", s.fillDisk)
	t.Run("a disk grows and does not shrink", s.growDisk)
	t.Run("a linked disk has two paths", s.linkDisk)
	t.Run("a directory moves whole", s.moveDir)
}

func (s *suite) newDisk(t *testing.T) {
	d := s.h.Disks()
	p := d.Join(s.disks, "new.vmdk")
	const odd = 64*portlayer.MiB + 1
	before := time.Now().Add(-2 * time.Second) // file systems round times
	if err := d.Create(t.Context(), p, portlayer.DiskSpec{Size: odd, Label: label("new")}); err != nil {
		t.Fatal(err)
	}
	i, err := d.Stat(t.Context(), p)
	if err != nil {
		t.Fatal(err)
	}
	if want := odd + s.SizeUnit - 1; i.Size != want {
		t.Errorf("size %d, want %d: rounded up to %d", i.Size, want, s.SizeUnit)
	}
	if i.Allocated >= i.Size/2 {
		t.Errorf("%d of %d bytes are allocated: not thin", i.Allocated, i.Size)
	}
	if i.Modified.Before(before) || i.Modified.After(time.Now().Add(2*time.Second)) {
		t.Errorf("modified at %v", i.Modified)
	}
	names, err := d.List(t.Context(), s.disks)
	if err != nil || !slices.Equal(names, s.shown("new-flat.vmdk", "new.vmdk")) {
		t.Errorf("files %v, %v", names, err)
	}
	was, err := os.ReadFile(s.extent(p))
	if err != nil {
		t.Fatal(err)
	}
	want(t, "create again", d.Create(t.Context(), p, portlayer.DiskSpec{Size: 8 * portlayer.MiB, Label: label("other")}), fault.Conflict)
	if is, err := os.ReadFile(s.extent(p)); err != nil || !bytes.Equal(is, was) {
		t.Errorf("the second create changed the disk (%v)", err)
	}
	if err := d.Delete(t.Context(), p); err != nil {
		t.Error(err)
	}
}

func (s *suite) createAtOnce(t *testing.T) {
	d := s.h.Disks()
	p := d.Join(s.disks, "once.vmdk")
	var made atomic.Int32
	var wg sync.WaitGroup
	for range 4 {
		wg.Go(func() {
			err := d.Create(t.Context(), p, portlayer.DiskSpec{Size: 4 * portlayer.MiB, Label: label("once")})
			if err == nil {
				made.Add(1)
			} else if !fault.Is(err, fault.Conflict) {
				t.Error(err)
			}
		})
	}
	wg.Wait()
	if n := made.Load(); n != 1 {
		t.Errorf("%d made it", n)
	}
	if _, err := d.Stat(t.Context(), p); err != nil {
		t.Error(err)
	}
	if err := d.Delete(t.Context(), p); err != nil {
		t.Error(err)
	}
}

func (s *suite) createDir(t *testing.T) {
	d := s.h.Disks()
	dir := d.Join(s.disks, "home")
	spec := portlayer.DirSpec{Disk: portlayer.DiskSpec{Size: 4 * portlayer.MiB, Label: label("home")}, Name: "in.vmdk", File: "note", Data: []byte("text")}
	var made atomic.Int32
	var wg sync.WaitGroup
	for range 4 {
		wg.Go(func() {
			if err := d.CreateDir(t.Context(), dir, spec); err == nil {
				made.Add(1)
			} else if !fault.Is(err, fault.Conflict) {
				t.Error(err)
			}
		})
	}
	wg.Wait()
	if n := made.Load(); n != 1 {
		t.Errorf("%d made it", n)
	}
	names, err := d.List(t.Context(), dir)
	if err != nil || !slices.Equal(names, s.shown("in-flat.vmdk", "in.vmdk", "note")) {
		t.Errorf("files %v, %v", names, err)
	}
	if i, err := d.Stat(t.Context(), d.Join(dir, "in.vmdk")); err != nil || i.Size != spec.Disk.Size {
		t.Errorf("disk %+v, %v", i, err)
	}
	if text, err := d.ReadFile(t.Context(), d.Join(dir, "note")); err != nil || string(text) != "text" {
		t.Errorf("note %q, %v", text, err)
	}
	small := spec
	small.Disk.Size = 512
	want(t, "too small", d.CreateDir(t.Context(), d.Join(s.disks, "small"), small), fault.Invalid)
	want(t, "below nothing", d.CreateDir(t.Context(), d.Join(s.disks, "nowhere", "x"), spec), fault.NotFound)
	// Not even under another name is anything left of those that were not made.
	all, err := os.ReadDir(s.local(s.disks))
	if err != nil || len(all) != 1 || all[0].Name() != "home" {
		t.Errorf("left: %v, %v", all, err)
	}
	if err := d.RemoveDir(t.Context(), dir); err != nil {
		t.Error(err)
	}
}

// createDirAgain: what may be kept ready changes nothing of what is made, and is never seen.
func (s *suite) createDirAgain(t *testing.T) {
	d := s.h.Disks()
	at := d.Join(s.disks, "again")
	if err := d.MakeDir(t.Context(), at); err != nil {
		t.Fatal(err)
	}
	make := func(i int, size portlayer.Bytes) (name string, err error) {
		name = fmt.Sprintf("home%02d", i)
		return name, d.CreateDir(t.Context(), d.Join(at, name), portlayer.DirSpec{
			Disk: portlayer.DiskSpec{Size: size, Label: label(name)}, Name: name + ".vmdk", File: "note", Data: []byte(strings.Repeat(name, i+1)), Again: true})
	}
	const many = 24
	size := func(i int) portlayer.Bytes { return portlayer.Bytes(4+i%2) * portlayer.MiB }
	var wanted []string
	for i := range many {
		name, err := make(i, size(i))
		if err != nil {
			t.Fatal(err)
		}
		wanted = append(wanted, name)
		if i > many/2 {
			time.Sleep(50 * time.Millisecond) // so that some may be ready
		}
		_, err = make(i, size(i))
		want(t, "the same again", err, fault.Conflict)
		if names, err := d.List(t.Context(), at); err != nil || !slices.Equal(names, wanted) {
			t.Fatalf("there are %v, %v", names, err)
		}
	}
	for i, name := range wanted {
		dir := d.Join(at, name)
		names, err := d.List(t.Context(), dir)
		if err != nil || !slices.Equal(names, s.shown(name+"-flat.vmdk", name+".vmdk", "note")) {
			t.Errorf("%s has %v, %v", name, names, err)
		}
		if is, err := d.Stat(t.Context(), d.Join(dir, name+".vmdk")); err != nil || is.Size != size(i) {
			t.Errorf("%s: disk %+v, %v", name, is, err)
		}
		if text, err := d.ReadFile(t.Context(), d.Join(dir, "note")); err != nil || string(text) != strings.Repeat(name, i+1) {
			t.Errorf("%s: note %q, %v", name, text, err)
		}
		if err := d.RemoveDir(t.Context(), dir); err != nil {
			t.Error(err)
		}
	}
	if names, err := d.List(t.Context(), at); err != nil || len(names) != 0 {
		t.Errorf("left: %v, %v", names, err)
	}
	if err := d.RemoveDir(t.Context(), at); err != nil {
		t.Error(err)
	}
}

// look: what is changed in any of a disk's files is seen. An implementation may see nothing at all.
func (s *suite) look(t *testing.T) {
	d := s.h.Disks()
	dir := d.Join(s.disks, "seen")
	spec := portlayer.DirSpec{Disk: portlayer.DiskSpec{Size: 4 * portlayer.MiB, Label: label("seen")}, Name: "in.vmdk", File: "note", Data: []byte("text")}
	if err := d.CreateDir(t.Context(), dir, spec); err != nil {
		t.Fatal(err)
	}
	type mark = [9]uint64
	var zero mark
	full := func() portlayer.Look {
		all := d.Look(t.Context(), s.disks, []string{"none/none.vmdk", "seen/in.vmdk"}, "note")
		if none := all[0]; none.Mark != zero || none.Size != 0 || none.Alone {
			t.Errorf("of what is not there it is told: %+v", none)
		}
		if all[1].Size != 0 && all[1].Size != spec.Disk.Size || all[1].Gone {
			t.Errorf("of a disk of %d bytes it is told: %+v", spec.Disk.Size, all[1])
		}
		return all[1]
	}
	look := func() mark { return full().Mark }
	settled := func() (l mark) { // what is new is not told apart at once
		for end := time.Now().Add(5 * time.Second); l == zero && time.Now().Before(end); time.Sleep(20 * time.Millisecond) {
			l = look()
		}
		return l
	}
	was := settled()
	if again := look(); again != was {
		t.Errorf("nothing changed: %v, then %v", was, again)
	}
	file := func(name string) string { return filepath.Join(s.local(dir), name) }
	for i := range 500 { // faster than a clock ticks
		if was == zero {
			break // this hypervisor tells nothing apart without reading it
		}
		before := look()
		if err := os.WriteFile(file("note"), []byte(fmt.Sprintf("t%03d", i)), 0o600); err != nil {
			t.Fatal(err)
		}
		if after := look(); before != zero && after == before {
			t.Fatalf("change %d at once after a look: not seen", i)
		}
	}
	was = settled()
	for _, c := range []struct {
		what   string
		stays  bool // the disk is whole afterwards
		change func() error
	}{
		{"small file in place", true, func() error { return os.WriteFile(file("note"), []byte("tixt"), 0o600) }},
		{"small file anew", true, func() error { return d.WriteFile(t.Context(), d.Join(dir, "note"), []byte("toxt")) }},
		{"descriptor in place", true, func() error {
			text, err := os.ReadFile(file("in.vmdk"))
			if err != nil {
				return err
			}
			return os.WriteFile(file("in.vmdk"), text, 0o600)
		}},
		{"extent cut off", false, func() error { return os.Truncate(file("in-flat.vmdk"), 4096) }},
		{"extent gone", false, func() error { return os.Remove(file("in-flat.vmdk")) }},
		{"descriptor gone", false, func() error { return os.Remove(file("in.vmdk")) }},
		{"small file gone", false, func() error { return os.Remove(file("note")) }},
	} {
		if was == zero {
			break
		}
		if err := c.change(); err != nil {
			t.Fatalf("%s: %v", c.what, err)
		}
		is := look()
		if c.stays && is == zero {
			is = settled()
		}
		if is == was || c.stays && is == zero {
			t.Errorf("%s: not seen", c.what)
		}
		if c.stays {
			was = is
		}
	}
	if none := d.Look(t.Context(), s.disks, []string{"none/none.vmdk"}, "note"); len(none) != 1 || none[0].Mark != zero || none[0].Size != 0 {
		t.Errorf("a look at nothing: %v", none)
	}
	below := d.Join(dir, "deep", "below")
	if err := d.MakeDir(t.Context(), below); err != nil {
		t.Fatal(err)
	}
	if err := d.Create(t.Context(), d.Join(below, "other.vmdk"), portlayer.DiskSpec{Size: 4 * portlayer.MiB, Label: label("other")}); err != nil {
		t.Fatal(err)
	}
	if full().Alone {
		t.Error("it is said to be alone, and there is a disk below")
	}
	if err := d.RemoveDir(t.Context(), dir); err != nil {
		t.Error(err)
	}
}

func (s *suite) badDisks(t *testing.T) {
	d := s.h.Disks()
	small := portlayer.DiskSpec{Size: 4*portlayer.MiB - 512, Label: label("small")}
	want(t, "too small", d.Create(t.Context(), d.Join(s.disks, "small.vmdk"), small), fault.Invalid)
	if err := d.Create(t.Context(), d.Join(s.disks, "nowhere", "x.vmdk"), portlayer.DiskSpec{Size: 4 * portlayer.MiB, Label: label("x")}); err == nil {
		t.Error("a disk was made in a directory that is not there")
	}
	if names, err := d.List(t.Context(), s.disks); err != nil || len(names) != 0 {
		t.Errorf("left: %v, %v", names, err)
	}
}

func (s *suite) damagedDisks(t *testing.T) {
	d := s.h.Disks()
	stat := func(p portlayer.DiskPath) error { _, err := d.Stat(t.Context(), p); return err }
	want(t, "missing disk", stat(d.Join(s.disks, "none.vmdk")), fault.NotFound)

	p := s.disk(t, "damaged")
	i, err := d.Stat(t.Context(), p)
	if err != nil {
		t.Fatal(err)
	}
	truncate(t, s.extent(p), int64(i.Size)-512)
	want(t, "truncated extent", stat(p), fault.Conflict)
	truncate(t, s.extent(p), int64(i.Size)+512)
	if longer, err := d.Stat(t.Context(), p); err != nil || longer.Size != i.Size { // a Grow that was cut off leaves it so
		t.Errorf("extent that is longer: %+v, %v", longer, err)
	}
	truncate(t, s.extent(p), int64(i.Size))
	if err := stat(p); err != nil {
		t.Errorf("mended: %v", err)
	}
	descriptor, err := os.ReadFile(s.local(p))
	if err != nil {
		t.Fatal(err)
	}
	for what, text := range map[string][]byte{"empty": nil, "cut": descriptor[:20], "binary": bytes.Repeat([]byte{0, 255}, 300)} {
		if err := os.WriteFile(s.local(p), text, 0o600); err != nil {
			t.Fatal(err)
		}
		want(t, what+" descriptor", stat(p), fault.Conflict)
	}
	if err := os.WriteFile(s.local(p), descriptor, 0o600); err != nil {
		t.Fatal(err)
	}
	if err := os.Remove(s.extent(p)); err != nil {
		t.Fatal(err)
	}
	want(t, "lost extent", stat(p), fault.NotFound)
}

func (s *suite) deleteDisk(t *testing.T) {
	d := s.h.Disks()
	for _, lost := range []string{"", "descriptor", "extent"} {
		p := s.disk(t, "deleted")
		var err error
		switch lost {
		case "descriptor":
			err = os.Remove(s.local(p))
		case "extent":
			err = os.Remove(s.extent(p))
		}
		if err != nil {
			t.Fatal(err)
		}
		for range 2 {
			if err := d.Delete(t.Context(), p); err != nil {
				t.Errorf("without its %s: %v", lost, err)
			}
		}
		if names, err := d.List(t.Context(), s.disks); err != nil || len(names) != 0 {
			t.Errorf("without its %s: left %v, %v", lost, names, err)
		}
	}
}

// A disk may be called as another's extent would be, and a path of which there is nothing may have such a disk beside it.
func (s *suite) deleteBeside(t *testing.T) {
	d := s.h.Disks()
	dir, one := s.made(t, "beside")
	flat := d.Join(dir, "two-flat.vmdk")
	if err := d.Create(t.Context(), flat, portlayer.DiskSpec{Size: 8 * portlayer.MiB, Label: label("two")}); err != nil {
		t.Fatal(err)
	}
	if err := d.Link(t.Context(), one, d.Join(dir, "three.vmdk")); err != nil {
		t.Fatal(err)
	}
	want(t, "an extent", d.Delete(t.Context(), d.Join(dir, "one-flat.vmdk")), fault.Conflict)
	for range 2 { // the second time there is no descriptor, and its extent may be the linked disk's
		for _, p := range []portlayer.DiskPath{d.Join(dir, "two.vmdk"), one} {
			if err := d.Delete(t.Context(), p); err != nil {
				t.Error(err)
			}
		}
	}
	for _, p := range []portlayer.DiskPath{flat, d.Join(dir, "three.vmdk")} {
		if _, err := d.Stat(t.Context(), p); err != nil {
			t.Errorf("it went with another: %v", err)
		}
	}
	if err := d.Delete(t.Context(), flat); err != nil {
		t.Error(err)
	}
	if _, err := d.Stat(t.Context(), flat); !fault.Is(err, fault.NotFound) {
		t.Errorf("deleted: %v", err)
	}
}

func (s *suite) importDisk(t *testing.T) {
	d := s.h.Disks()
	local := filepath.Join(t.TempDir(), "raw")
	image := bytes.Repeat([]byte("an image "), 100_000)
	put := func() {
		t.Helper()
		if err := os.WriteFile(local, image, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	p := d.Join(s.disks, "imported.vmdk")
	put()
	if err := d.Import(t.Context(), local, p); err != nil {
		t.Fatal(err)
	}
	if _, err := os.Stat(local); !os.IsNotExist(err) {
		t.Errorf("the local file is still there (%v)", err)
	}
	i, err := d.Stat(t.Context(), p)
	if whole := portlayer.Bytes((len(image) + 511) / 512 * 512); err != nil || i.Size != whole {
		t.Errorf("size %d, want %d, %v", i.Size, whole, err)
	}
	if is, err := os.ReadFile(s.extent(p)); err != nil || !bytes.HasPrefix(is, image) {
		t.Errorf("the disk does not hold the image (%v)", err)
	}
	put()
	want(t, "import over a disk", d.Import(t.Context(), local, p), fault.Conflict)
	if _, err := os.Stat(local); err != nil {
		t.Errorf("the refused import took the local file: %v", err)
	}
	if err := d.Delete(t.Context(), p); err != nil {
		t.Error(err)
	}
	if err := d.Import(t.Context(), filepath.Join(t.TempDir(), "none"), p); err == nil {
		t.Error("a file that is not there was imported")
	}
	if names, err := d.List(t.Context(), s.disks); err != nil || len(names) != 0 {
		t.Errorf("left: %v, %v", names, err)
	}
}

func (s *suite) testFiles(t *testing.T) {
	t.Run("directories come with their parents and go with their content", s.dirs)
	t.Run("a small file is replaced whole", s.files)
	t.Run("space proves that a directory can be written", s.space)
}

func (s *suite) dirs(t *testing.T) {
	d := s.h.Disks()
	deep := d.Join(s.disks, "a", "b")
	for range 2 {
		if err := d.MakeDir(t.Context(), deep); err != nil {
			t.Fatal(err)
		}
	}
	for _, name := range []string{"z", "y", "x"} {
		if err := d.WriteFile(t.Context(), d.Join(deep, name), nil); err != nil {
			t.Fatal(err)
		}
	}
	if names, err := d.List(t.Context(), deep); err != nil || !slices.Equal(names, []string{"x", "y", "z"}) {
		t.Errorf("list: %v, %v", names, err)
	}
	for range 2 {
		if err := d.RemoveDir(t.Context(), d.Join(s.disks, "a")); err != nil {
			t.Error(err)
		}
	}
	_, err := d.List(t.Context(), deep)
	want(t, "list a removed directory", err, fault.NotFound)
	if names, err := d.List(t.Context(), s.disks); err != nil || len(names) != 0 {
		t.Errorf("left: %v, %v", names, err)
	}
}

func (s *suite) files(t *testing.T) {
	d := s.h.Disks()
	p := d.Join(s.disks, "volume.json")
	_, err := d.ReadFile(t.Context(), p)
	want(t, "read a missing file", err, fault.NotFound)
	for _, text := range []string{"a first text, longer than the second", "second", ""} {
		if err := d.WriteFile(t.Context(), p, []byte(text)); err != nil {
			t.Fatal(err)
		}
		if got, err := d.ReadFile(t.Context(), p); err != nil || string(got) != text {
			t.Errorf("read %q, %v, want %q", got, err, text)
		}
	}
	if names, err := d.List(t.Context(), s.disks); err != nil || !slices.Equal(names, []string{"volume.json"}) {
		t.Errorf("files %v, %v", names, err)
	}
	if err := os.Remove(s.local(p)); err != nil {
		t.Error(err)
	}
}

func (s *suite) space(t *testing.T) {
	d := s.h.Disks()
	total, free, err := d.Space(t.Context(), s.disks)
	if err != nil || free <= 0 || total < free {
		t.Errorf("total %d, free %d, %v", total, free, err)
	}
	if names, err := d.List(t.Context(), s.disks); err != nil || len(names) != 0 {
		t.Errorf("the probe left %v, %v", names, err)
	}
	space := func(p portlayer.DiskPath) error { _, _, err := d.Space(t.Context(), p); return err }
	want(t, "missing directory", space(d.Join(s.disks, "none")), fault.NotFound)
	file := d.Join(s.disks, "file")
	if err := d.WriteFile(t.Context(), file, nil); err != nil {
		t.Fatal(err)
	}
	want(t, "file", space(file), fault.Invalid)
	if err := os.Remove(s.local(file)); err != nil {
		t.Error(err)
	}
	if s.Datastore != nil { // its server may do what it likes to files
		return
	}
	shut := "/sys" // sysfs lets nobody make files, root included; for others a mode is enough
	if os.Getuid() != 0 {
		shut = t.TempDir()
		if err := os.Chmod(shut, 0o500); err != nil {
			t.Fatal(err)
		}
	}
	want(t, "directory that cannot be written", space(portlayer.DiskPath(shut)), fault.Denied)
}
