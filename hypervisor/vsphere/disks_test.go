package vsphere

import (
	"bytes"
	"errors"
	"io"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"testing/iotest"
	"time"

	"github.com/vmware/govmomi/vim25/types"

	"vch/internal/fault"
	"vch/internal/vmdkfile"
	"vch/portlayer"
)

// New disks, copies and renamed ones are thin, and a rename loses nothing that the server wrote into a descriptor.
func TestDisksAreThin(t *testing.T) {
	s := newScene(t)
	d := s.h.Disks()
	one := s.disk("one")
	two, three := d.Join(s.dir, "two.vmdk"), d.Join(s.dir, "three.vmdk")
	s.must(d.Copy(t.Context(), one, two, nil))
	const own = "ddb.uuid = \"60 00 C2 9a\"\n"
	text, err := os.ReadFile(s.sim.Path(string(two)))
	s.must(err)
	s.must(os.WriteFile(s.sim.Path(string(two)), append(text, own...), 0o600))
	s.must(d.Link(t.Context(), two, three))
	s.must(d.Delete(t.Context(), two))
	s.must(d.Grow(t.Context(), three, 32*portlayer.MiB))
	for _, p := range []portlayer.DiskPath{one, three} {
		text, err := os.ReadFile(s.sim.Path(string(p)))
		s.must(err)
		if strings.Count(string(text), vmdkfile.Thin) != 1 || p == three && !strings.Contains(string(text), own) {
			t.Errorf("%s is\n%s", p, text)
		}
	}
}

// Of an upload that breaks nothing stays, wherever it breaks.
func TestBrokenUploadsLeaveNothing(t *testing.T) {
	s := newScene(t)
	d := s.h.Disks()
	const size = 8 * portlayer.MiB
	part := func() io.Reader { return bytes.NewReader(make([]byte, size/2)) }
	whole := func() io.Reader { return bytes.NewReader(make([]byte, size)) }
	local := filepath.Join(t.TempDir(), "raw")
	s.must(os.WriteFile(local, make([]byte, size), 0o600))
	create := func(r io.Reader) error {
		return d.CreateFrom(t.Context(), d.Join(s.dir, "new.vmdk"), size, r)
	}
	broken := errors.New("broken")
	for what, try := range map[string]func() error{
		"its source breaks":     func() error { return create(io.MultiReader(part(), iotest.ErrReader(broken))) },
		"its source is short":   func() error { return create(part()) },
		"its source is long":    func() error { return create(io.MultiReader(whole(), part())) },
		"no answer comes to it": func() error { s.sim.LoseAnswer("PUT /folder"); return create(whole()) },
		"it cannot get its name": func() error {
			s.sim.FailOnce("MoveVirtualDisk_Task", &types.NoDiskSpace{FileFault: types.FileFault{File: "x"}, Datastore: "datastore1"})
			return d.Import(t.Context(), local, d.Join(s.dir, "new.vmdk"))
		},
		"no answer comes to an import": func() error {
			for range 6 {
				s.sim.LoseAnswer("PUT /folder")
			}
			return d.Import(t.Context(), local, d.Join(s.dir, "new.vmdk"))
		},
	} {
		if err := try(); err == nil {
			t.Errorf("%s: no error", what)
		}
		s.sim.ClearFaults()
		s.left()
		if t.Failed() {
			t.Fatalf("where %s", what)
		}
	}
	s.want("a disk that is not there", func() error { _, err := d.Stat(t.Context(), d.Join(s.dir, "new.vmdk")); return err }(), fault.NotFound)
}

// A look at several disks tells what the datastore's browser says of them, once they have not changed for a while.
func TestLookTells(t *testing.T) {
	s := newScene(t)
	d := s.h.Disks()
	sizes := map[string]portlayer.Bytes{"a": 16 * portlayer.MiB, "b": portlayer.GiB, "young": portlayer.GiB}
	for name, size := range sizes {
		s.must(d.CreateDir(t.Context(), d.Join(s.dir, name), portlayer.DirSpec{Disk: portlayer.DiskSpec{Size: size, Label: "0123456789abcdef0123456789abcdef"}, Name: name + ".vmdk", File: "note", Data: []byte("{}")}))
	}
	s.must(d.MakeDir(t.Context(), d.Join(s.dir, "b", "deep", "below")))
	s.must(d.Copy(t.Context(), d.Join(s.dir, "a", "a.vmdk"), d.Join(s.dir, "b", "deep", "below", "c.vmdk"), nil))
	then := time.Now().Add(-time.Hour)
	for _, name := range []string{"a", "b"} {
		files, err := os.ReadDir(s.sim.Path(string(d.Join(s.dir, name))))
		s.must(err)
		for _, f := range files {
			s.must(os.Chtimes(s.sim.Path(string(d.Join(s.dir, name, f.Name()))), then, then))
		}
	}
	looks := d.Look(t.Context(), s.dir, []string{"a/a.vmdk", "b/b.vmdk", "young/young.vmdk", "none/none.vmdk"}, "note")
	for i, want := range []portlayer.Look{{Size: sizes["a"], Alone: true}, {Size: sizes["b"]}, {Alone: true}, {}} {
		got := looks[i]
		if got.Size != want.Size || got.Alone != want.Alone || got.Gone || (got.Mark != [9]uint64{}) != (want.Size > 0) || (got.Allocated > 0) != (want.Size > 0) {
			t.Errorf("look %d: %+v, want %+v", i, got, want)
		}
	}
	if alone := d.Look(t.Context(), s.dir, []string{"none/none.vmdk"}, "note"); !alone[0].Gone {
		t.Errorf("of what is not there: %+v", alone[0])
	}
	for _, name := range []string{"a", "b", "young"} {
		s.must(d.RemoveDir(t.Context(), d.Join(s.dir, name)))
	}
}
