package ext4

import (
	"bytes"
	"errors"
	"os"
	"os/exec"
	"path/filepath"
	"testing"
)

// A disk that a seed was poured into holds a sound file system, and seeds are small.
func TestSeeds(t *testing.T) {
	m, err := Find()
	if err != nil {
		t.Fatal(err)
	}
	fsck, err := FindTool("e2fsck")
	if err != nil {
		t.Fatal(err)
	}
	dir := t.TempDir()
	var b bytes.Buffer
	sizes := []int64{4 << 20, 20 << 30, 256 << 20}
	if err := m.Seeds(t.Context(), dir, &b, sizes...); err != nil {
		t.Fatal(err)
	}
	if b.Len() > 64<<10 {
		t.Errorf("the seeds have %d bytes", b.Len())
	}
	if names, err := os.ReadDir(dir); err != nil || len(names) != 0 {
		t.Errorf("left: %v, %v", names, err)
	}
	seeds, err := ReadSeeds(&b)
	if err != nil || len(seeds) != 3 || seeds[0].Size != 20<<30 || seeds[2].Size != 4<<20 {
		t.Fatalf("%d seeds, %v", len(seeds), err)
	}
	for _, s := range seeds {
		f, err := os.Create(filepath.Join(dir, "disk"))
		if err != nil {
			t.Fatal(err)
		}
		if err := f.Truncate(2 * s.Size); err != nil {
			t.Fatal(err)
		}
		if err := s.Pour(f); err != nil {
			t.Fatal(err)
		}
		f.Close()
		if out, err := exec.CommandContext(t.Context(), fsck, "-fn", f.Name()).CombinedOutput(); err != nil {
			t.Errorf("%d: %v: %s", s.Size, err, out)
		}
	}
	if _, err := ReadSeeds(bytes.NewReader([]byte("no seeds"))); err == nil {
		t.Error("nonsense was read")
	}
}

// cutDisk loses power after so many operations: of what was not synced before, it has kept what was written last.
type cutDisk struct {
	left   int
	kept   map[int64]byte // by offset, of what was synced
	latest []fsPiece      // written since
	ops    int
}

var errCut = errors.New("the power is off")

func (d *cutDisk) WriteAt(p []byte, at int64) (int, error) {
	if d.ops++; d.ops > d.left {
		return 0, errCut
	}
	d.latest = append(d.latest, fsPiece{at, bytes.Clone(p)})
	return len(p), nil
}

func (d *cutDisk) Sync() error {
	if d.ops++; d.ops > d.left {
		return errCut
	}
	d.settle(d.latest...)
	d.latest = nil
	return nil
}

func (d *cutDisk) settle(pieces ...fsPiece) {
	for _, p := range pieces {
		for i, b := range p.data {
			if b != 0 {
				d.kept[p.at+int64(i)] = b
			}
		}
	}
}

// A disk on which formatting was broken off does not begin like one that is formatted, however it orders its writes, unless all else is there.
func TestPourBrokenOff(t *testing.T) {
	data := func(n int) []byte { return bytes.Repeat([]byte{7}, n) }
	s := Seed{Size: 1 << 30, Pieces: []Piece{{1024, data(3 * Block)}, {1 << 20, data(Block)}, {1 << 21, data(Block)}}}
	all := 3*Block + Block + Block
	for left := 0; ; left++ {
		d := &cutDisk{left: left, kept: map[int64]byte{}}
		err := s.Pour(d)
		if n := len(d.latest); n > 0 {
			d.settle(d.latest[n-1])
		}
		begun := 0
		for at := range d.kept {
			if at < Block {
				begun++
			}
		}
		if begun > 0 && len(d.kept) != all {
			t.Errorf("after %d operations the disk looks formatted and has %d of %d bytes", left, len(d.kept), all)
		}
		if err == nil {
			if len(d.kept) != all || len(d.latest) > 0 {
				t.Errorf("%d of %d bytes, and %d writes are not synced", len(d.kept), all, len(d.latest))
			}
			return
		}
		if !errors.Is(err, errCut) {
			t.Fatal(err)
		}
	}
}
