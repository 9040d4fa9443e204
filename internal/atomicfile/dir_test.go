package atomicfile

import (
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"testing"
)

func fill(d *Dir) error { return errors.Join(d.Write("a", []byte("1")), d.Write("b", []byte("2"))) }

// names lists what is in dir, hidden or not.
func names(t *testing.T, dir string) (all []string) {
	t.Helper()
	entries, err := os.ReadDir(dir)
	if err != nil {
		t.Fatal(err)
	}
	for _, e := range entries {
		all = append(all, e.Name())
	}
	return all
}

// A directory comes whole, only where nothing is, and leaves nothing when it cannot come.
func TestMakeDir(t *testing.T) {
	root := t.TempDir()
	path := filepath.Join(root, "d")
	if err := MakeDir(path, func(d *Dir) error {
		if _, err := os.Lstat(path); !errors.Is(err, fs.ErrNotExist) {
			t.Errorf("it has its name before its content: %v", err)
		}
		return fill(d)
	}); err != nil {
		t.Fatal(err)
	}
	for name, text := range map[string]string{"a": "1", "b": "2"} {
		if got, err := os.ReadFile(filepath.Join(path, name)); err != nil || string(got) != text {
			t.Errorf("%s holds %q, %v", name, got, err)
		}
	}
	if err := MakeDir(path, func(*Dir) error { return os.ErrInvalid }); !errors.Is(err, fs.ErrExist) {
		t.Errorf("made twice: %v", err)
	}
	late := filepath.Join(root, "late")
	if err := MakeDir(late, func(d *Dir) error { return errors.Join(fill(d), os.Mkdir(late, 0o700)) }); !errors.Is(err, fs.ErrExist) {
		t.Errorf("somebody else made it first: %v", err)
	}
	if got := names(t, late); len(got) != 0 {
		t.Errorf("somebody else's directory has %v", got)
	}
	if err := MakeDir(filepath.Join(root, "bad"), func(d *Dir) error { return errors.Join(fill(d), os.ErrInvalid) }); !errors.Is(err, os.ErrInvalid) {
		t.Errorf("fill's error: %v", err)
	}
	if got := names(t, root); len(got) != 2 {
		t.Errorf("left: %v", got)
	}
}

// What a dead maker left goes; what a live one is at stays.
func TestSweep(t *testing.T) {
	root := t.TempDir()
	dead := filepath.Join(root, stagePrefix+"dead")
	if err := os.MkdirAll(filepath.Join(dead, "x"), 0o700); err != nil {
		t.Fatal(err)
	}
	path := filepath.Join(root, "d")
	if err := MakeDir(path, func(d *Dir) error { return errors.Join(fill(d), Sweep(root)) }); err != nil {
		t.Fatal(err)
	}
	if got := names(t, root); len(got) != 1 || got[0] != "d" {
		t.Errorf("left: %v", got)
	}
	if got := names(t, path); len(got) != 2 {
		t.Errorf("the live one's has %v", got)
	}
}
