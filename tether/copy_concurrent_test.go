package tether

import (
	"context"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// shared makes an image's directory with things in it, and an empty volume.
func shared(t *testing.T) *sharedCopy {
	t.Helper()
	dir := t.TempDir()
	s := &sharedCopy{from: filepath.Join(dir, "image"), content: filepath.Join(dir, "volume"), every: 5 * time.Millisecond, limit: 2 * time.Second, poll: time.Millisecond}
	for _, d := range []string{s.from, s.content, filepath.Join(s.from, "sub")} {
		if err := os.Mkdir(d, 0o755); err != nil {
			t.Fatal(err)
		}
	}
	for name, text := range map[string]string{"a": "1", "b": "2", "sub/c": "3"} {
		put(t, filepath.Join(s.from, name), text)
	}
	if err := os.Chmod(s.from, 0o711); err != nil {
		t.Fatal(err)
	}
	return s
}

func put(t *testing.T, file, text string) {
	t.Helper()
	if err := os.WriteFile(file, []byte(text), 0o644); err != nil {
		t.Fatal(err)
	}
}

// isWhole fails unless the volume has exactly the image's files, and its mode.
func (s *sharedCopy) isWhole(t *testing.T) {
	t.Helper()
	var got []string
	err := filepath.WalkDir(s.content, func(p string, d os.DirEntry, err error) error {
		if err == nil && p != s.content {
			rel, _ := filepath.Rel(s.content, p)
			got = append(got, rel)
		}
		return err
	})
	if err != nil || !slices.Equal(got, []string{"a", "b", "sub", "sub/c"}) {
		t.Errorf("the volume holds %q, %v", got, err)
	}
	if text, err := os.ReadFile(filepath.Join(s.content, "sub/c")); string(text) != "3" || err != nil {
		t.Errorf("sub/c is %q, %v", text, err)
	}
	if fi, err := os.Stat(s.content); err != nil || fi.Mode().Perm() != 0o711 {
		t.Errorf("mode %v, %v", fi.Mode(), err)
	}
}

// Each of many who fill a volume at once finds it whole when it is done, and one of them did it.
func TestCopyUpSharedAtOnce(t *testing.T) {
	for range 20 {
		s := shared(t)
		var all sync.WaitGroup
		for range 8 {
			all.Go(func() {
				if err := s.run(t.Context()); err != nil {
					t.Error(err)
				}
				s.isWhole(t)
			})
		}
		all.Wait()
	}
}

// What somebody has left who ended while copying is thrown away, and what was whole is moved in.
func TestCopyUpSharedAfterADeath(t *testing.T) {
	for name, leave := range map[string]func(t *testing.T, s *sharedCopy){
		"nothing yet": func(t *testing.T, s *sharedCopy) {},
		"half a copy": func(t *testing.T, s *sharedCopy) {
			put(t, s.at("alive"), ".")
			if err := os.MkdirAll(s.at("content"), 0o755); err != nil {
				t.Fatal(err)
			}
			put(t, s.at("content", "a"), "half")
		},
		"half moved": func(t *testing.T, s *sharedCopy) {
			put(t, s.at("alive"), ".")
			if err := copyTree(s.from, s.at("content")); err != nil {
				t.Fatal(err)
			}
			put(t, s.at("whole"), "")
			if err := os.Rename(s.at("content", "a"), filepath.Join(s.content, "a")); err != nil {
				t.Fatal(err)
			}
		},
		"taken over by one who died, too": func(t *testing.T, s *sharedCopy) {
			if err := os.Rename(s.at(), s.at()+".1"); err != nil {
				t.Fatal(err)
			}
		},
	} {
		t.Run(strings.ReplaceAll(name, " ", "_"), func(t *testing.T) {
			s := shared(t)
			s.limit = 50 * time.Millisecond
			if err := os.Mkdir(s.at(), 0o700); err != nil {
				t.Fatal(err)
			}
			leave(t, s)
			var all sync.WaitGroup
			for range 4 {
				all.Go(func() {
					one := *s
					if err := one.run(t.Context()); err != nil {
						t.Error(err)
					}
				})
			}
			all.Wait()
			s.isWhole(t)
		})
	}
}

// Who made the staging so long ago that it was taken over, and is another's by now, leaves it to him.
func TestCopyUpSharedOpensAnothers(t *testing.T) {
	s := shared(t)
	if err := os.Mkdir(s.at(), 0o700); err != nil {
		t.Fatal(err)
	}
	put(t, s.at("alive"), ".")
	if err := s.fill(); err != errTakenOver {
		t.Error(err)
	}
	if entries, err := os.ReadDir(s.at()); err != nil || len(entries) != 1 {
		t.Errorf("%v, %v", entries, err)
	}
}

// One who says that it is at work is waited for, and not longer than its own start may take.
func TestCopyUpSharedWaits(t *testing.T) {
	s := shared(t)
	s.limit = 200 * time.Millisecond
	if err := os.Mkdir(s.at(), 0o700); err != nil {
		t.Fatal(err)
	}
	stage, err := openDirectory(s.at())
	if err != nil {
		t.Fatal(err)
	}
	defer stage.Close()
	stop, err := s.live(stage)
	if err != nil {
		t.Fatal(err)
	}
	defer stop()
	ctx, cancel := context.WithTimeout(t.Context(), time.Second)
	defer cancel()
	if err := s.run(ctx); err == nil || !strings.Contains(err.Error(), "another container fills the volume") {
		t.Errorf("err = %v", err)
	}
	if _, err := os.Stat(s.at("alive")); err != nil {
		t.Error(err)
	}
}

// A volume with something in it stays as it is.
func TestCopyUpSharedLeavesContent(t *testing.T) {
	s := shared(t)
	put(t, filepath.Join(s.content, "mine"), "x")
	if err := s.run(t.Context()); err != nil {
		t.Fatal(err)
	}
	if have, err := os.ReadDir(s.content); err != nil || len(have) != 1 {
		t.Errorf("%v, %v", have, err)
	}
}

// What others put in the way leads nobody out of the volume, and keeps nobody waiting for ever.
func TestCopyUpSharedFollowsNoLink(t *testing.T) {
	for name, plant := range map[string]func(t *testing.T, s *sharedCopy, out string){
		"whole staging": func(t *testing.T, s *sharedCopy, out string) { link(t, out, s.at()) },
		"content, whole": func(t *testing.T, s *sharedCopy, out string) {
			put(t, s.at("alive"), ".")
			put(t, s.at("whole"), "")
			link(t, out, s.at("content"))
		},
		"marker": func(t *testing.T, s *sharedCopy, out string) { link(t, filepath.Join(out, "f"), s.at("alive")) },
		"fifo": func(t *testing.T, s *sharedCopy, out string) {
			if err := unix.Mkfifo(s.at("alive"), 0o600); err != nil {
				t.Fatal(err)
			}
		},
	} {
		t.Run(strings.ReplaceAll(name, " ", "_"), func(t *testing.T) {
			s := shared(t)
			s.limit = 50 * time.Millisecond
			out := t.TempDir()
			put(t, filepath.Join(out, "f"), "precious")
			put(t, filepath.Join(out, "alive"), "precious")
			if name != "whole staging" {
				if err := os.Mkdir(s.at(), 0o700); err != nil {
					t.Fatal(err)
				}
			}
			plant(t, s, out)
			ctx, cancel := context.WithTimeout(t.Context(), 30*time.Second)
			defer cancel()
			if err := s.run(ctx); err != nil {
				t.Error(err)
			}
			for _, f := range []string{"f", "alive"} {
				if text, err := os.ReadFile(filepath.Join(out, f)); string(text) != "precious" || err != nil {
					t.Errorf("%s is %q, %v", f, text, err)
				}
			}
			if have, err := os.ReadDir(out); err != nil || len(have) != 2 {
				t.Errorf("outside: %v, %v", have, err)
			}
			if _, err := os.Lstat(filepath.Join(s.content, "f")); err == nil {
				t.Error("what is outside came into the volume")
			}
		})
	}
}

func link(t *testing.T, to, at string) {
	t.Helper()
	if err := os.Symlink(to, at); err != nil {
		t.Fatal(err)
	}
}

// What a container that wants no copy writes meanwhile stays as it is.
func TestCopyUpSharedOverwritesNothing(t *testing.T) {
	s := shared(t)
	if err := os.Mkdir(s.at(), 0o700); err != nil {
		t.Fatal(err)
	}
	if err := copyTree(s.from, s.at("content")); err != nil {
		t.Fatal(err)
	}
	put(t, s.at("whole"), "")
	put(t, filepath.Join(s.content, "a"), "mine")
	if err := os.Mkdir(filepath.Join(s.content, "sub"), 0o755); err != nil {
		t.Fatal(err)
	}
	put(t, filepath.Join(s.content, "sub", "mine"), "mine")
	s.limit = 50 * time.Millisecond
	if err := s.run(t.Context()); err != nil {
		t.Fatal(err)
	}
	for file, want := range map[string]string{"a": "mine", "b": "2", "sub/mine": "mine"} {
		if text, err := os.ReadFile(filepath.Join(s.content, file)); string(text) != want || err != nil {
			t.Errorf("%s is %q, %v", file, text, err)
		}
	}
	if _, err := os.Lstat(s.at()); err == nil {
		t.Error("staging is there still")
	}
}

// One who was not heard for a while, and is alive, leaves the volume to who has taken over.
func TestCopyUpSharedTakenOver(t *testing.T) {
	s := shared(t)
	if err := os.Mkdir(s.at(), 0o700); err != nil {
		t.Fatal(err)
	}
	stage, err := openDirectory(s.at())
	if err != nil {
		t.Fatal(err)
	}
	defer stage.Close()
	if !s.mine(stage) {
		t.Error("it is not its own")
	}
	if err := os.Rename(s.at(), s.at()+".1"); err != nil {
		t.Fatal(err)
	}
	if err := os.Mkdir(s.at(), 0o700); err != nil {
		t.Fatal(err)
	}
	put(t, s.at("other"), "")
	if s.mine(stage) {
		t.Error("it takes another's for its own")
	}
	if err := s.drop(stage); err != nil {
		t.Error(err)
	}
	if _, err := os.Lstat(s.at("other")); err != nil {
		t.Error(err)
	}
	quiet := *s
	quiet.limit = 0 // nobody is heard often enough
	stop, err := quiet.live(stage)
	if err != nil {
		t.Fatal(err)
	}
	if stop() {
		t.Error("it was heard")
	}
}
