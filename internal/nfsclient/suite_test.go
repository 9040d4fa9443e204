package nfsclient

import (
	"bytes"
	"context"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"vch/internal/fault"
)

// onEvery runs a test against each server, with an export of its own.
func onEvery(t *testing.T, test func(t *testing.T, s served, e *Export)) {
	for _, server := range servers {
		t.Run(server.name, func(t *testing.T) {
			t.Parallel()
			s := server.start(t)
			test(t, s, open(t, s.options))
		})
	}
}

func TestDirectories(t *testing.T) {
	onEvery(t, func(t *testing.T, s served, e *Export) {
		ctx := t.Context()
		a, err := e.Mkdir(ctx, "data", 0o750)
		check(t, err)
		if a.Type != Dir || a.Mode != 0o750 {
			t.Errorf("%+v", a)
		}
		_, err = e.Mkdir(ctx, "data", 0o750)
		wantReason(t, err, Exists)
		if !fault.Is(err, fault.Conflict) || !strings.HasPrefix(err.Error(), "mkdir data: exists already (NFS") {
			t.Errorf("%v", err)
		}
		_, err = e.Mkdir(ctx, "none/below", 0o755)
		wantReason(t, err, NotFound)
		_, err = e.Mkdir(ctx, "data/below", 0o755)
		check(t, err)
		b, err := e.Stat(ctx, "data/below")
		check(t, err)
		root, err := e.Stat(ctx, "")
		check(t, err)
		if b.FileID == 0 || b.FileID == a.FileID || root.FSID != b.FSID || root.Type != Dir || time.Since(b.Mtime).Abs() > time.Hour || b.Nlink < 2 {
			t.Errorf("%+v in %+v", b, root)
		}
		if err := e.Rmdir(ctx, "data"); !s.cannot(t, "not empty") {
			wantReason(t, err, NotEmpty)
		}
		check(t, e.Rename(ctx, "data/below", "other"))
		check(t, e.Rmdir(ctx, "data"))
		wantReason(t, e.Rmdir(ctx, "data"), NotFound)
		wantReason(t, e.Rename(ctx, "data", "third"), NotFound)
		if _, err := os.Stat(filepath.Join(s.dir, "other")); err != nil {
			t.Error(err)
		}
		if !s.cannot(t, "long name") {
			_, err = e.Mkdir(ctx, strings.Repeat("n", 300), 0o755)
			wantReason(t, err, LongName)
		}
		// A path that is longer than one compound.
		deep := "other"
		for i := range 20 {
			deep += fmt.Sprintf("/%d", i)
			_, err := e.Mkdir(ctx, deep, 0o755)
			check(t, err)
		}
		check(t, e.WriteFile(ctx, deep+"/file", []byte("deep"), 0o600))
		check(t, e.Rename(ctx, deep+"/file", deep+"/name"))
		data, err := e.ReadFile(ctx, deep+"/name", 10)
		if err != nil || string(data) != "deep" {
			t.Errorf("%q, %v", data, err)
		}
		check(t, e.RemoveAll(ctx, "other"))
	})
}

func TestFiles(t *testing.T) {
	onEvery(t, func(t *testing.T, s served, e *Export) {
		ctx := t.Context()
		long := bytes.Repeat([]byte("0123456789abcdef"), 3<<20/16+1)
		for _, data := range [][]byte{nil, []byte("a"), []byte("abcde"), long, []byte("short again")} {
			check(t, e.WriteFile(ctx, "file", data, 0o640))
			got, err := e.ReadFile(ctx, "file", len(data))
			if err != nil || !bytes.Equal(got, data) {
				t.Errorf("%d bytes: got %d, %v", len(data), len(got), err)
			}
			onDisk, err := os.ReadFile(filepath.Join(s.dir, "file"))
			if err != nil || !bytes.Equal(onDisk, data) {
				t.Errorf("%d bytes: %d on disk, %v", len(data), len(onDisk), err)
			}
			if len(data) > 0 {
				_, err = e.ReadFile(ctx, "file", len(data)-1)
				wantReason(t, err, TooLarge)
			}
		}
		a, err := e.Stat(ctx, "file")
		check(t, err)
		if a.Type != File || a.Mode != 0o640 || a.Size != 11 || a.Nlink != 1 || a.Used == 0 {
			t.Errorf("%+v", a)
		}
		_, err = e.ReadFile(ctx, "none", 1)
		wantReason(t, err, NotFound)
		check(t, e.WriteFile(ctx, "new", []byte("new"), 0o600))
		check(t, e.Rename(ctx, "new", "file"))
		if got, err := e.ReadFile(ctx, "file", 100); err != nil || string(got) != "new" {
			t.Errorf("%q, %v", got, err)
		}
		check(t, e.Remove(ctx, "file"))
		wantReason(t, e.Remove(ctx, "file"), NotFound)
		total, free, err := e.Space(ctx)
		if err != nil || total == 0 || free == 0 || free > total {
			t.Errorf("%d, %d, %v", total, free, err)
		}
	})
}

// Each kind of entry is what it is to each operation.
func TestKinds(t *testing.T) {
	onEvery(t, func(t *testing.T, s served, e *Export) {
		ctx := t.Context()
		check(t, e.WriteFile(ctx, "file", nil, 0o644))
		_, err := e.Mkdir(ctx, "dir", 0o755)
		check(t, err)
		_, err = e.ReadFile(ctx, "dir", 1)
		wantReason(t, err, IsDir)
		wantReason(t, e.WriteFile(ctx, "", nil, 0o644), IsDir)
		_, err = e.Stat(ctx, "file/below")
		wantReason(t, err, NotDir)
		_, err = e.Mkdir(ctx, "", 0o755)
		wantReason(t, err, Exists)
		wantReason(t, e.RemoveAll(ctx, ""), Inval)
		wantReason(t, e.Rmdir(ctx, "."), Inval)
		for _, bad := range []string{"/file", "../file", "dir//x", "dir/../file", "dir/", "a\x00b", "dir/."} {
			_, err := e.Stat(ctx, bad)
			wantReason(t, err, Inval)
		}
		if s.cannot(t, "kinds") {
			return
		}
		wantReason(t, e.WriteFile(ctx, "dir", nil, 0o644), IsDir)
		wantReason(t, e.Remove(ctx, "dir"), IsDir)
		wantReason(t, e.Rmdir(ctx, "file"), NotDir)
		_, err = e.Mkdir(ctx, "file", 0o755)
		wantReason(t, err, Exists)
		_, err = e.Mkdir(ctx, "file/below", 0o755)
		wantReason(t, err, NotDir)
		wantReason(t, e.ReadDir(ctx, "file", nil), NotDir)
		wantReason(t, e.Rename(ctx, "file/x", "y"), NotDir)
	})
}

func TestSetAttr(t *testing.T) {
	onEvery(t, func(t *testing.T, s served, e *Export) {
		ctx := t.Context()
		_, err := e.Mkdir(ctx, "d", 0o700)
		check(t, err)
		check(t, e.SetAttr(ctx, "d", Set{Mode: p32(0o710)}))
		if a, err := e.Stat(ctx, "d"); err != nil || a.Mode != 0o710 {
			t.Errorf("%+v, %v", a, err)
		}
		if s.cannot(t, "owners") {
			return
		}
		check(t, e.SetAttr(ctx, "d", Set{UID: p32(1234), GID: p32(4294900000), Mode: p32(0o751)}))
		a, err := e.Stat(ctx, "d")
		check(t, err)
		if a.UID != 1234 || a.GID != 4294900000 || a.Mode != 0o751 {
			t.Errorf("%+v", a)
		}
		check(t, e.SetAttr(ctx, "d", Set{UID: p32(0)}))
		if a, err = e.Stat(ctx, "d"); err != nil || a.UID != 0 || a.GID != 4294900000 {
			t.Errorf("%+v, %v", a, err)
		}
		wantReason(t, e.SetAttr(ctx, "none", Set{UID: p32(0)}), NotFound)
		if s.cannot(t, "special bits") {
			return
		}
		check(t, e.WriteFile(ctx, "f", []byte("x"), 0o755))
		check(t, e.SetAttr(ctx, "f", Set{UID: p32(7), GID: p32(8), Mode: p32(0o6755)}))
		if a, err = e.Stat(ctx, "f"); err != nil || a.Mode != 0o6755 || a.UID != 7 {
			t.Errorf("%+v, %v", a, err)
		}
		check(t, e.SetAttr(ctx, "", Set{Mode: p32(0o1777)}))
		if a, err = e.Stat(ctx, "."); err != nil || a.Mode != 0o1777 {
			t.Errorf("%+v, %v", a, err)
		}
	})
}

// The law: a link is seen, never followed, whatever is asked of it, and whatever it points to stays as it is.
func TestLinksAreNotFollowed(t *testing.T) {
	onEvery(t, func(t *testing.T, s served, e *Export) {
		ctx := t.Context()
		outside := t.TempDir()
		check(t, os.WriteFile(filepath.Join(outside, "keep"), []byte("keep"), 0o644))
		check(t, os.Mkdir(filepath.Join(s.dir, "inside"), 0o755))
		check(t, os.WriteFile(filepath.Join(s.dir, "inside", "keep"), []byte("keep"), 0o644))
		for link, to := range map[string]string{"out": outside, "in": "inside", "file": filepath.Join(outside, "keep"), "infile": "inside/keep", "none": "nowhere"} {
			check(t, os.Symlink(to, filepath.Join(s.dir, link)))
			a, err := e.Stat(ctx, link)
			if err != nil || a.Type != Link {
				t.Errorf("stat %s: %+v, %v", link, a, err)
			}
			_, err = e.Stat(ctx, link+"/keep")
			wantReason(t, err, NotDir)
			_, err = e.ReadFile(ctx, link, 100)
			wantReason(t, err, Inval)
			_, err = e.ReadFile(ctx, link+"/keep", 100)
			wantReason(t, err, NotDir)
			wantReason(t, e.WriteFile(ctx, link+"/new", []byte("bad"), 0o644), NotDir)
			_, err = e.Mkdir(ctx, link+"/new", 0o755)
			wantReason(t, err, NotDir)
			wantReason(t, e.Remove(ctx, link+"/keep"), NotDir)
			wantReason(t, e.RemoveAll(ctx, link+"/keep"), NotDir)
			wantReason(t, e.Rename(ctx, link+"/keep", "moved"), NotDir)
			wantReason(t, e.Rename(ctx, "inside/keep", link+"/moved"), NotDir)
			wantReason(t, e.ReadDir(ctx, link, func([]Entry) error { return nil }), NotDir)
			if link != "none" || !s.cannot(t, "dangling") {
				wantReason(t, e.WriteFile(ctx, link, []byte("bad"), 0o644), Inval)
			}
		}
		check(t, e.Remove(ctx, "out"))
		check(t, e.RemoveAll(ctx, "in"))
		for _, dir := range []string{outside, filepath.Join(s.dir, "inside")} {
			names, err := filepath.Glob(dir + "/*")
			data, why := os.ReadFile(filepath.Join(dir, "keep"))
			if err != nil || why != nil || len(names) != 1 || string(data) != "keep" {
				t.Errorf("%v, %q", names, data)
			}
		}
	})
}

func names(t *testing.T, e *Export, dir string) (all []string) {
	t.Helper()
	check(t, e.ReadDir(t.Context(), dir, func(page []Entry) error {
		for _, n := range page {
			all = append(all, n.Name)
			if n.Attr.Type == Unknown {
				t.Errorf("%s has no type", n.Name)
			}
		}
		return nil
	}))
	slices.Sort(all)
	return all
}

func TestReadDir(t *testing.T) {
	onEvery(t, func(t *testing.T, s served, e *Export) {
		ctx := t.Context()
		if got := names(t, e, ""); len(got) != 0 {
			t.Errorf("%q in an empty directory", got)
		}
		check(t, os.Mkdir(filepath.Join(s.dir, "d"), 0o755))
		var want []string
		for i := range 3000 {
			want = append(want, fmt.Sprintf("a name of some length, number %04d", i))
			check(t, os.WriteFile(filepath.Join(s.dir, "d", want[i]), nil, 0o644))
		}
		if got := names(t, e, "d"); !slices.Equal(got, want) {
			t.Errorf("%d entries", len(got))
		}
		pages := 0
		stop := fmt.Errorf("enough")
		if err := e.ReadDir(ctx, "d", func([]Entry) error { pages++; return stop }); err != stop || pages != 1 {
			t.Errorf("%v after %d pages", err, pages)
		}
		wantReason(t, e.ReadDir(ctx, "none", nil), NotFound)
		if s.cannot(t, "changed dir") {
			return
		}
		// Entries go while the directory is read: what stays is seen.
		seen := map[string]bool{}
		check(t, e.ReadDir(ctx, "d", func(page []Entry) error {
			for _, n := range page {
				seen[n.Name] = true
			}
			for _, n := range want[:1500] {
				_ = os.Remove(filepath.Join(s.dir, "d", n))
			}
			return nil
		}))
		for _, n := range want[1500:] {
			if !seen[n] {
				t.Fatalf("%q was not seen", n)
			}
		}
	})
}

// Many callers at once, on one connection.
func TestManyAtOnce(t *testing.T) {
	onEvery(t, func(t *testing.T, s served, e *Export) {
		ctx := t.Context()
		var all sync.WaitGroup
		for i := range 100 {
			all.Go(func() {
				dir := fmt.Sprintf("dir%d", i)
				data := bytes.Repeat([]byte{byte(i)}, 1000*i)
				if _, err := e.Mkdir(ctx, dir, 0o755); err != nil {
					t.Error(err)
					return
				}
				if err := e.WriteFile(ctx, dir+"/file", data, 0o644); err != nil {
					t.Error(err)
				}
				if got, err := e.ReadFile(ctx, dir+"/file", 1<<20); err != nil || !bytes.Equal(got, data) {
					t.Errorf("%d: %d bytes, %v", i, len(got), err)
				}
				if i%2 == 0 {
					if err := e.RemoveAll(ctx, dir); err != nil {
						t.Error(err)
					}
				}
			})
		}
		all.Wait()
		if got := names(t, e, ""); len(got) != 50 {
			t.Errorf("%d left: %q", len(got), got)
		}
	})
}

// Many write one file: each says that it did, and what is there in the end is what one of them wrote, or a part of several.
func TestManyWriteOneFile(t *testing.T) {
	onEvery(t, func(t *testing.T, s served, e *Export) {
		var all sync.WaitGroup
		for range 20 {
			all.Go(func() {
				for range 10 {
					if err := e.WriteFile(t.Context(), "file", []byte("the same"), 0o644); err != nil {
						t.Error(err)
					}
				}
			})
		}
		all.Wait()
		if data, err := e.ReadFile(t.Context(), "file", 100); err != nil || string(data) != "the same" {
			t.Errorf("%q, %v", data, err)
		}
	})
}

// After Close nothing works, and a second Close does nothing.
func TestClose(t *testing.T) {
	onEvery(t, func(t *testing.T, s served, e *Export) {
		for range 3 {
			another := open(t, s.options)
			check(t, another.Close())
			check(t, another.Close())
			_, err := another.Stat(t.Context(), "")
			wantReason(t, err, Lost)
		}
		_, err := e.Stat(t.Context(), "")
		check(t, err)
		ctx, cancel := context.WithCancel(t.Context())
		cancel()
		_, err = e.Stat(ctx, "")
		wantReason(t, err, Interrupted)
	})
}

// An export is also any directory below one.
func TestSubdirectory(t *testing.T) {
	onEvery(t, func(t *testing.T, s served, e *Export) {
		if s.options.Path == "/" {
			t.Log("left out: go-nfs serves one directory, whatever the path")
			return
		}
		_, err := e.Mkdir(t.Context(), "sub", 0o755)
		check(t, err)
		_, err = e.Mkdir(t.Context(), "sub/sub", 0o755)
		check(t, err)
		o := s.options
		o.Path += "/sub"
		if got := names(t, open(t, o), ""); !slices.Equal(got, []string{"sub"}) {
			t.Errorf("%q", got)
		}
	})
}
