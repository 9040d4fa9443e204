package nfsclient

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"os"
	"path/filepath"
	"testing"
	"time"
)

// many is how many files TestRemoveAllOfMany removes; 100000 was tried on Ganesha.
var many = flag.Int("many", 5000, "files in one directory")

func isGone(t *testing.T, path string) {
	t.Helper()
	if _, err := os.Lstat(path); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("%s: %v", path, err)
	}
}

// A tree of everything goes, and nothing that its links point to.
func TestRemoveAll(t *testing.T) {
	onEvery(t, func(t *testing.T, s served, e *Export) {
		ctx := t.Context()
		outside := t.TempDir()
		check(t, os.WriteFile(filepath.Join(outside, "keep"), nil, 0o644))
		check(t, os.Mkdir(filepath.Join(s.dir, "beside"), 0o755))
		check(t, os.WriteFile(filepath.Join(s.dir, "beside", "keep"), nil, 0o644))
		var fill func(dir string, depth int)
		fill = func(dir string, depth int) {
			check(t, os.Mkdir(dir, 0o755))
			for i := range 5 {
				check(t, os.WriteFile(filepath.Join(dir, fmt.Sprintf("file%d", i)), []byte("x"), 0o400))
			}
			check(t, os.WriteFile(filepath.Join(dir, ".nfs0000000000c0ffee00000001"), nil, 0o600))
			check(t, os.Symlink(outside, filepath.Join(dir, "out")))
			check(t, os.Symlink("/", filepath.Join(dir, "all")))
			check(t, os.Symlink(filepath.Join(s.dir, "beside"), filepath.Join(dir, "beside")))
			check(t, os.Symlink("..", filepath.Join(dir, "up")))
			check(t, os.Symlink("gone", filepath.Join(dir, "none")))
			check(t, os.Link(filepath.Join(s.dir, "beside", "keep"), filepath.Join(dir, "hard")))
			for i := range depth {
				fill(filepath.Join(dir, fmt.Sprintf("dir%d", i)), depth-1)
			}
		}
		fill(filepath.Join(s.dir, "tree"), 4)
		check(t, e.RemoveAll(ctx, "tree"))
		isGone(t, filepath.Join(s.dir, "tree"))
		for _, kept := range []string{filepath.Join(outside, "keep"), filepath.Join(s.dir, "beside", "keep")} {
			if _, err := os.Stat(kept); err != nil {
				t.Error(err)
			}
		}
		check(t, e.RemoveAll(ctx, "tree"))
		check(t, e.RemoveAll(ctx, "none/at/all"))
		check(t, e.RemoveAll(ctx, "beside/keep"))
		isGone(t, filepath.Join(s.dir, "beside", "keep"))
	})
}

func TestRemoveAllOfMany(t *testing.T) {
	onEvery(t, func(t *testing.T, s served, e *Export) {
		n := *many
		if s.options.Path == "/" {
			n = min(n, 1000) // go-nfs reads and sorts the directory for each page
		}
		dir := filepath.Join(s.dir, "d")
		check(t, os.Mkdir(dir, 0o755))
		for i := range n {
			f, err := os.Create(filepath.Join(dir, fmt.Sprintf("file number %d", i)))
			check(t, err)
			f.Close()
		}
		begun := time.Now()
		check(t, e.RemoveAll(t.Context(), "d"))
		t.Logf("%d files in %v", n, time.Since(begun))
		isGone(t, dir)
	})
}

// Somebody removes the same tree on the server, and somebody fills it: both end well.
func TestRemoveAllAmidChanges(t *testing.T) {
	onEvery(t, func(t *testing.T, s served, e *Export) {
		ctx := t.Context()
		if s.cannot(t, "changed dir") {
			return
		}
		dir := filepath.Join(s.dir, "d")
		fill := func(i int) error {
			sub := filepath.Join(dir, fmt.Sprint(i%20))
			if err := os.MkdirAll(sub, 0o755); err != nil {
				return err
			}
			return os.WriteFile(filepath.Join(sub, fmt.Sprint(i)), nil, 0o644)
		}
		for i := range 1000 {
			check(t, fill(i))
		}
		done := make(chan error)
		go func() { done <- os.RemoveAll(dir) }()
		check(t, e.RemoveAll(ctx, "d"))
		check(t, <-done)
		isGone(t, dir)

		for i := range 1000 {
			check(t, fill(i))
		}
		// The creator comes after the removal has begun, and ends by itself.
		go func() {
			for i := range 300 {
				if err := fill(i); err != nil && !errors.Is(err, os.ErrNotExist) {
					done <- err
					return
				}
			}
			done <- nil
		}()
		err := e.RemoveAll(ctx, "d")
		check(t, <-done)
		if err != nil {
			wantReason(t, err, NotEmpty)
		}
		check(t, e.RemoveAll(ctx, "d"))
		isGone(t, dir)
	})
}

// Removal ends with its context, and leaves what it did not come to.
func TestRemoveAllInterrupted(t *testing.T) {
	onEvery(t, func(t *testing.T, s served, e *Export) {
		dir := filepath.Join(s.dir, "d")
		check(t, os.Mkdir(dir, 0o755))
		for i := range 2000 {
			check(t, os.WriteFile(filepath.Join(dir, fmt.Sprint(i)), nil, 0o644))
		}
		ctx, cancel := context.WithCancel(t.Context())
		go func() {
			for {
				if left, err := os.ReadDir(dir); err != nil || len(left) < 2000 {
					cancel()
					return
				}
			}
		}()
		wantReason(t, e.RemoveAll(ctx, "d"), Interrupted)
		if left, err := os.ReadDir(dir); err != nil || len(left) == 0 {
			t.Errorf("%d left, %v", len(left), err)
		}
		check(t, e.RemoveAll(t.Context(), "d"))
		isGone(t, dir)
	})
}
