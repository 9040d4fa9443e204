package nfs

import (
	"context"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"vch/internal/fault"
	"vch/internal/nfsclient"
	"vch/portlayer"
)

// made makes a volume with a file in it.
func made(t *testing.T, l *local, s *Store, name portlayer.VolumeName) {
	t.Helper()
	if _, _, err := s.Ensure(t.Context(), portlayer.VolumeSpec{Name: name}); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(l.dir, volumesDir, string(name), "file"), []byte(name), 0o644); err != nil {
		t.Fatal(err)
	}
}

// edit changes a volume's record behind the store's back.
func edit(t *testing.T, s *Store, name portlayer.VolumeName, change func(*record)) {
	t.Helper()
	rec, err := s.readRecord(t.Context(), name)
	if err != nil {
		t.Fatal(err)
	}
	change(&rec)
	if err := s.rewrite(t.Context(), name, rec); err != nil {
		t.Fatal(err)
	}
}

// settled waits until no removal has left anything.
func settled(t *testing.T, l *local) (have []string) {
	t.Helper()
	for end := time.Now().Add(60 * time.Second); ; time.Sleep(20 * time.Millisecond) {
		have = tree(t, l.dir)
		if !slices.ContainsFunc(have, func(p string) bool { return strings.Contains(p, removingMark) }) {
			return have
		}
		if time.Now().After(end) {
			t.Fatalf("left: %v", have)
		}
	}
}

// A volume whose renaming was cut off at any point is removed with its own content, and no other's.
func TestRemoveAfterACutRename(t *testing.T) {
	t.Run("content has moved", func(t *testing.T) {
		l := &local{dir: t.TempDir()}
		s := opened(t, l, "", "one")
		made(t, l, s, "bb")
		edit(t, s, "bb", func(r *record) { r.At = "volumes/aa" })
		made(t, l, s, "aa")
		if err := s.Remove(t.Context(), "bb"); err != nil {
			t.Fatal(err)
		}
		if have := settled(t, l); !slices.Contains(have, "volumes/aa/file") || slices.Contains(have, "volumes/bb") {
			t.Errorf("left: %v", have)
		}
	})
	t.Run("metadata has its old name", func(t *testing.T) {
		l := &local{dir: t.TempDir()}
		s := opened(t, l, "", "one")
		made(t, l, s, "aa")
		edit(t, s, "aa", func(r *record) { r.Name, r.At = "bb", "volumes/aa" })
		mkdirs(t, filepath.Join(l.dir, "volumes/bb/theirs"))
		if _, err := s.SetLabels(t.Context(), "aa", map[string]string{"a": "b"}); err != nil {
			t.Fatal(err)
		}
		if err := s.Remove(t.Context(), "aa"); err != nil {
			t.Fatal(err)
		}
		if have := settled(t, l); slices.Contains(have, "volumes/aa") || !slices.Contains(have, "volumes/bb/theirs") {
			t.Errorf("left: %v", have)
		}
	})
}

// What is at a removed volume's place by the time that a removal can go on is not that volume's.
func TestRemovalLeavesWhatCameLater(t *testing.T) {
	l := &local{dir: t.TempDir()}
	s := opened(t, l, "", "one")
	site := filepath.Join(l.dir, "projects/site")
	mkdirs(t, filepath.Join(site, "old"))
	adopt := func() {
		t.Helper()
		if _, err := s.Adopt(t.Context(), portlayer.VolumeSpec{Name: "site"}, "projects/site"); err != nil {
			t.Fatal(err)
		}
	}
	adopt()
	l.onRemove(func() error { return &nfsclient.Error{Op: "remove", Reason: nfsclient.Denied} })
	if err := s.Remove(t.Context(), "site"); err != nil {
		t.Fatal(err)
	}
	if have := tree(t, l.dir); slices.Contains(have, "projects/site") {
		t.Fatalf("it is there still: %v", have)
	}
	mkdirs(t, filepath.Join(site, "new"))
	adopt()
	l.onRemove(nil)
	if have := settled(t, l); !slices.Contains(have, "projects/site/new") || slices.Contains(have, "projects/site/old") {
		t.Errorf("left: %v", have)
	}
	if _, err := s.Get(t.Context(), "site"); err != nil {
		t.Error(err)
	}
}

// keeping is an export that does not let contents be moved.
type keeping struct{ user }

func (k keeping) Rename(ctx context.Context, from, to string) error {
	if strings.HasPrefix(from, volumesDir) {
		return &nfsclient.Error{Op: "rename", Path: from, Reason: nfsclient.Denied}
	}
	return k.user.Rename(ctx, from, to)
}

// A volume whose content the server does not let go is there still, and why is said.
func TestRemoveRefused(t *testing.T) {
	l := &local{dir: t.TempDir()}
	where, err := ParseLocation("nfs://server/export")
	if err != nil {
		t.Fatal(err)
	}
	s, err := Open(t.Context(), StoreOptions{Name: "remote", Location: where, Driver: "test-nfs", VCH: "one", Timeout: 5 * time.Second,
		Open: func(context.Context, uint32, uint32) (Export, error) { return keeping{user{l, 0}}, nil }})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = s.Close() })
	made(t, l, s, "data")
	wants(t, s.Remove(t.Context(), "data"), fault.Denied, "volumes/data cannot be removed")
	if vol, err := s.Get(t.Context(), "data"); err != nil || vol.Name != "data" {
		t.Errorf("%+v, %v", vol, err)
	}
	if have := settled(t, l); !slices.Contains(have, "volumes/data/file") {
		t.Errorf("left: %v", have)
	}
}

// A server that is silent for longer than it is given degrades the store at once, however short that is.
func TestSilentFromTheStart(t *testing.T) {
	where, err := ParseLocation("nfs://server/export")
	if err != nil {
		t.Fatal(err)
	}
	s, err := Open(t.Context(), StoreOptions{Name: "remote", Location: where, Driver: "test-nfs", VCH: "one", Timeout: 100 * time.Millisecond,
		Open: func(ctx context.Context, _, _ uint32) (Export, error) {
			<-ctx.Done()
			return nil, &nfsclient.Error{Op: "mount", Reason: nfsclient.Silent, Err: ctx.Err()}
		}})
	if err != nil {
		t.Fatal(err)
	}
	defer s.Close()
	_, err = s.List(t.Context())
	wants(t, err, fault.Unavailable, "does not answer")
}

// What is of new directories only is refused for one that is there.
func TestAdoptRefusesOwners(t *testing.T) {
	l := &local{dir: t.TempDir()}
	s := opened(t, l, "allow=uid,gid,mode", "one")
	mkdirs(t, filepath.Join(l.dir, "site"))
	for _, name := range []string{"uid", "gid", "mode"} {
		_, err := s.Adopt(t.Context(), portlayer.VolumeSpec{Name: "site", Options: map[string]string{name: "5"}}, "site")
		wants(t, err, fault.Invalid, name)
	}
}
