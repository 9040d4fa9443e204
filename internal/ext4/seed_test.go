package ext4

import (
	"bytes"
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
