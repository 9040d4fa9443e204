package qemu

import (
	"os"
	"path/filepath"
	"testing"

	"vch/portlayer"
)

// What a dead process left of directories that it was making or removing goes with the first that is made or removed beside it, definitions in them or not, and is never listed.
func TestSweepTakesWhatTheDeadLeft(t *testing.T) {
	d, err := FindDisks()
	if err != nil {
		t.Fatal(err)
	}
	root := t.TempDir()
	for _, name := range []string{tombPrefix + "1", ".making-1"} {
		if err := os.MkdirAll(filepath.Join(root, name), 0o700); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(filepath.Join(root, name, definitionFile), []byte("{}"), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	dir := portlayer.DiskPath(root)
	if names, err := d.List(t.Context(), dir); err != nil || len(names) != 0 {
		t.Errorf("listed %v, %v", names, err)
	}
	if err := d.RemoveDir(t.Context(), d.Join(dir, "none")); err != nil {
		t.Fatal(err)
	}
	if entries, err := os.ReadDir(root); err != nil || len(entries) != 0 {
		t.Errorf("left: %v, %v", entries, err)
	}
}
