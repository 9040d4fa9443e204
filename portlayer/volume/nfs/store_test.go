package nfs

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"vch/internal/fault"
	"vch/internal/nfsclient"
	"vch/portlayer"
)

// opened is a store on a directory of this machine.
func opened(t *testing.T, l *local, options, vch string) *Store {
	t.Helper()
	where, err := ParseLocation("nfs://server/export?" + options)
	if err != nil {
		t.Fatal(err)
	}
	s, err := Open(t.Context(), StoreOptions{Name: "remote", Location: where, Driver: "test-nfs", VCH: vch, Timeout: 5 * time.Second,
		Open: func(_ context.Context, uid, _ uint32) (Export, error) { return user{l, uid}, nil }})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = s.Close() })
	return s
}

// user is an export as one of its users sees it: what he makes is his, unless the export squashes him.
type user struct {
	*local
	uid uint32
}

func (u user) Mkdir(ctx context.Context, name string, mode uint32) (nfsclient.Attr, error) {
	a, err := u.local.Mkdir(ctx, name, mode)
	a.UID = u.uid
	if u.squash == "all" || u.squash == "root" && u.uid == 0 {
		a.UID = 65534
	}
	return a, err
}

func wants(t *testing.T, err error, k fault.Kind, words ...string) {
	t.Helper()
	if !fault.Is(err, k) {
		t.Errorf("%v (%v), want %v", err, fault.KindOf(err), k)
		return
	}
	for _, w := range words {
		if !strings.Contains(err.Error(), w) {
			t.Errorf("%q does not say %q", err, w)
		}
	}
}

func mkdirs(t *testing.T, dirs ...string) {
	t.Helper()
	for _, d := range dirs {
		if err := os.MkdirAll(d, 0o755); err != nil {
			t.Fatal(err)
		}
	}
}

// A directory that is there becomes a volume where it is, and what is in it or around it, or another volume's, does not become two.
func TestAdopt(t *testing.T) {
	l := &local{dir: t.TempDir()}
	s := opened(t, l, "", "one")
	mkdirs(t, filepath.Join(l.dir, "projects/site/sub"), filepath.Join(l.dir, volumesDir, "plain"), filepath.Join(l.dir, ".hidden"))
	if err := errors.Join(os.WriteFile(filepath.Join(l.dir, "projects/site/page"), []byte("x"), 0o644), os.Symlink("projects/site", filepath.Join(l.dir, "link")),
		os.WriteFile(filepath.Join(l.dir, "file"), nil, 0o644)); err != nil {
		t.Fatal(err)
	}
	adopt := func(name portlayer.VolumeName, dir string) (portlayer.Volume, error) {
		return s.Adopt(t.Context(), portlayer.VolumeSpec{Name: name, VCH: "one"}, dir)
	}
	before := tree(t, l.dir)
	for dir, kind := range map[string]fault.Kind{
		"": fault.Invalid, "/": fault.Invalid, ".": fault.Invalid, "..": fault.Invalid, "metadata": fault.Invalid, "metadata/x": fault.Invalid, "volumes": fault.Invalid, ".hidden": fault.Invalid,
		"link": fault.Invalid, "file": fault.Invalid, "file/x": fault.Invalid, "none": fault.NotFound, "projects/none": fault.NotFound,
	} {
		_, err := adopt("site", dir)
		wants(t, err, kind)
	}
	_, err := adopt("a/b", "projects/site")
	wants(t, err, fault.Invalid, "a/b")
	_, err = adopt("another", "volumes/plain")
	wants(t, err, fault.Invalid, "can only be volume plain")
	if after := tree(t, l.dir); !slices.Equal(before, after) {
		t.Fatalf("%v became %v", before, after)
	}
	vol, err := adopt("site", "/export/projects/site")
	if err != nil || vol.Source != "nfs://server:2049/export/projects/site" || vol.VCH != "one" || !vol.Shared {
		t.Fatalf("%+v, %v", vol, err)
	}
	if _, err := adopt("plain", "volumes/plain"); err != nil {
		t.Error(err)
	}
	for _, dir := range []string{"projects/site", "projects/site/sub", "projects", "volumes/plain"} {
		_, err := adopt("more", dir)
		wants(t, err, fault.Conflict, "of volume")
	}
	_, err = adopt("site", "projects/site")
	wants(t, err, fault.Conflict, "site is in store remote already")
	if vols, err := s.List(t.Context()); err != nil || len(vols) != 2 || vols[1].Source != vol.Source {
		t.Errorf("%+v, %v", vols, err)
	}
	// A plain directory with something in it is nobody's to take.
	mkdirs(t, filepath.Join(l.dir, volumesDir, "full/x"))
	_, _, err = s.Ensure(t.Context(), portlayer.VolumeSpec{Name: "full"})
	wants(t, err, fault.Conflict, "vch volume adopt remote volumes/full")
	// Renamed, it stays where it is; removed, it goes, and nothing beside it.
	if vol, err = s.Rename(t.Context(), "site", "web"); err != nil || !strings.HasSuffix(vol.Source, "/export/projects/site") {
		t.Errorf("%+v, %v", vol, err)
	}
	if err := s.Remove(t.Context(), "web"); err != nil {
		t.Error(err)
	}
	if have := tree(t, l.dir); slices.Contains(have, "projects/site") || !slices.Contains(have, "projects") || !slices.Contains(have, "volumes/full/x") {
		t.Errorf("left: %v", have)
	}
}

// Two VCHs have one export: what one is making the other leaves, what both make one has made, and what one removes is gone for both.
func TestTwoVCHs(t *testing.T) {
	l := &local{dir: t.TempDir()}
	one, two := opened(t, l, "", "one"), opened(t, l, "", "two")
	made := 0
	var mu sync.Mutex
	var all sync.WaitGroup
	for _, s := range []*Store{one, two, one, two} {
		all.Go(func() {
			for i := range 20 {
				vol, m, err := s.Ensure(t.Context(), portlayer.VolumeSpec{Name: portlayer.VolumeName(fmt.Sprintf("vol%d", i))})
				if err != nil || vol.Name == "" {
					t.Errorf("%+v, %v", vol, err)
				}
				mu.Lock()
				if m {
					made++
				}
				mu.Unlock()
			}
		})
	}
	all.Wait()
	if made != 20 {
		t.Errorf("20 volumes were made %d times", made)
	}
	mkdirs(t, filepath.Join(l.dir, metadataDir, makingMark+"two-abc"), filepath.Join(l.dir, volumesDir, removingMark+"two-abc"), filepath.Join(l.dir, metadataDir, makingMark+"old-abc"))
	old := time.Now().Add(-2 * abandoned)
	if err := os.Chtimes(filepath.Join(l.dir, metadataDir, makingMark+"old-abc"), old, old); err != nil {
		t.Fatal(err)
	}
	again := opened(t, l, "", "one")
	have := tree(t, l.dir)
	if !slices.Contains(have, metadataDir+"/"+makingMark+"two-abc") || !slices.Contains(have, volumesDir+"/"+removingMark+"two-abc") || slices.Contains(have, metadataDir+"/"+makingMark+"old-abc") {
		t.Errorf("%v", have)
	}
	if vols, err := again.List(t.Context()); err != nil || len(vols) != 20 {
		t.Errorf("%d volumes, %v", len(vols), err)
	}
	if err := two.Remove(t.Context(), "vol3"); err != nil {
		t.Error(err)
	}
	_, err := one.Get(t.Context(), "vol3")
	wants(t, err, fault.NotFound)
}

// A removal that its server cuts off is finished when that is back; the volume is gone at once.
func TestRemovalGoesOn(t *testing.T) {
	l := &local{dir: t.TempDir()}
	s := opened(t, l, "", "one")
	if _, _, err := s.Ensure(t.Context(), portlayer.VolumeSpec{Name: "data"}); err != nil {
		t.Fatal(err)
	}
	mkdirs(t, filepath.Join(l.dir, volumesDir, "data/sub"))
	l.onRemove(func() error { return &nfsclient.Error{Op: "remove", Reason: nfsclient.Lost} })
	if err := s.Remove(t.Context(), "data"); err != nil {
		t.Fatal(err)
	}
	_, err := s.Get(t.Context(), "data")
	wants(t, err, fault.NotFound)
	if have := tree(t, l.dir); len(have) < 5 {
		t.Fatalf("it was removed: %v", have)
	}
	if _, made, err := s.Ensure(t.Context(), portlayer.VolumeSpec{Name: "data"}); err != nil || !made {
		t.Fatalf("made anew: %v, %v", made, err)
	}
	l.onRemove(nil)
	for end := time.Now().Add(30 * time.Second); ; time.Sleep(20 * time.Millisecond) {
		have := tree(t, l.dir)
		if slices.Equal(have, []string{".", "metadata", "metadata/data", "metadata/data/volume.json", "volumes", "volumes/data"}) {
			break
		}
		if time.Now().After(end) {
			t.Fatalf("left: %v", have)
		}
	}
}

// What the administrator says of the export's users is what it does, or the store is degraded and says so.
func TestSquash(t *testing.T) {
	for _, tc := range []struct {
		is, options, says string
	}{
		{"", "squash=none", ""},
		{"", "squash=none&uid=5", ""},
		{"root", "squash=root&uid=5", ""},
		{"all", "squash=all", ""},
		{"all", "squash=all&uid=5", ""},
		{"all", "squash=all&uid=65534", ""}, // anonuid, which from here looks as if root alone were squashed
		{"root", "squash=root&uid=65534", ""},
		{"root", "squash=none", "does squash=root"},
		{"all", "squash=none&uid=5", "does squash=all"},
		{"", "squash=root&uid=5", "does squash=none"},
		{"", "squash=all", "does squash=none"},
	} {
		l := &local{dir: t.TempDir(), squash: tc.is}
		s := opened(t, l, tc.options, "one")
		st := s.Status(t.Context())
		if (tc.says == "") != (st.Degraded == "") || !strings.Contains(st.Degraded, tc.says) {
			t.Errorf("an export that squashes %q, with %s: %q", tc.is, tc.options, st.Degraded)
		}
		if have := tree(t, l.dir); len(have) != 3 {
			t.Errorf("left: %v", have)
		}
	}
}

// Every way in which a server can fail is said in a sentence of its own.
func TestSentences(t *testing.T) {
	said := map[string]nfsclient.Reason{}
	l := &local{dir: t.TempDir()}
	s := opened(t, l, "", "one")
	for r := nfsclient.Unresolved; r <= nfsclient.Protocol; r++ {
		if !isAway(r) && !slices.Contains([]nfsclient.Reason{nfsclient.Denied, nfsclient.ReadOnly, nfsclient.Full}, r) {
			continue
		}
		text := s.explain(&nfsclient.Error{Reason: r})
		if other, twice := said[text]; twice || !strings.Contains(text, ":") || strings.HasPrefix(text, "server server: ") {
			t.Errorf("%v (as %v): %q", r, other, text)
		}
		said[text] = r
	}
}

// While a server is away calls fail at once, and when it is back the store is, by itself.
func TestDegradedRecovers(t *testing.T) {
	l := &local{dir: t.TempDir()}
	l.setDown(&nfsclient.Error{Op: "mount", Reason: nfsclient.Silent})
	s := opened(t, l, "", "one") // it was away from the start
	_, err := s.Get(t.Context(), "data")
	wants(t, err, fault.Unavailable, "remote is degraded", "a firewall on the way drops")
	l.setDown(nil)
	for end := time.Now().Add(60 * time.Second); ; time.Sleep(50 * time.Millisecond) {
		_, _, err := s.Ensure(t.Context(), portlayer.VolumeSpec{Name: "data"})
		if err == nil {
			break
		}
		if time.Now().After(end) {
			t.Fatal(err)
		}
	}
}

// A store of published data sets shows what another has made, mounts it read-only, and changes nothing.
func TestReadOnlyStore(t *testing.T) {
	l := &local{dir: t.TempDir()}
	if st := opened(t, l, "ro", "two").Status(t.Context()); !strings.Contains(st.Degraded, "no volumes that another store has published") {
		t.Errorf("%+v", st)
	}
	rw := opened(t, l, "", "one")
	vol, _, err := rw.Ensure(t.Context(), portlayer.VolumeSpec{Name: "data"})
	if err != nil {
		t.Fatal(err)
	}
	ro := opened(t, l, "ro", "two")
	before := tree(t, l.dir)
	got, made, err := ro.Ensure(t.Context(), portlayer.VolumeSpec{Name: "data"})
	if err != nil || made || got.Source != vol.Source {
		t.Errorf("%+v, %v, %v", got, made, err)
	}
	_, _, ensure := ro.Ensure(t.Context(), portlayer.VolumeSpec{Name: "more"})
	_, label := ro.SetLabels(t.Context(), "data", nil)
	_, rename := ro.Rename(t.Context(), "data", "more")
	_, adopt := ro.Adopt(t.Context(), portlayer.VolumeSpec{Name: "more"}, "volumes/data")
	for _, err := range []error{ensure, label, rename, adopt, ro.Remove(t.Context(), "data")} {
		wants(t, err, fault.Denied, "published data sets")
	}
	h := &portlayer.Handle{}
	wants(t, ro.Join(t.Context(), h, got, portlayer.Mount{Volume: "data", Target: "/srv"}), fault.Invalid, "-v data:/srv:ro")
	if len(h.Config.Mounts) != 0 || len(h.Reaches) != 0 {
		t.Errorf("%+v", h)
	}
	if err := ro.Join(t.Context(), h, got, portlayer.Mount{Volume: "data", Target: "/srv", ReadOnly: true}); err != nil || h.Config.Mounts[0].Copy || !slices.Contains(h.Config.Mounts[0].Options, "ro") {
		t.Errorf("%v, %+v", err, h.Config.Mounts)
	}
	if after := tree(t, l.dir); !slices.Equal(before, after) {
		t.Errorf("%v became %v", before, after)
	}
}

// What a machine is to reach, and how its guest mounts it.
func TestJoinOptions(t *testing.T) {
	for _, tc := range []struct {
		place   string
		own     map[string]string
		options []string
		reaches []string
	}{
		{"nfs://nas/e", nil, []string{"vers=4", "addr=", "port=2049", "tcp", "hard", "sec=sys"}, []string{"2049 nfs+tcp://nas:2049"}},
		{"nfs://nas:5000/e?vers=4.1&soft&timeo=50&proto=tcp6&allow=retrans,sync", map[string]string{"Retrans": "7", "sync": "", "VolumeStore": "x"},
			[]string{"vers=4.1", "addr=", "port=2049", "tcp", "soft", "sec=sys", "timeo=50", "retrans=7", "sync"}, []string{"2049 nfs+tcp6://nas:5000"}},
		{"nfs://[fd00::1]/e?vers=3&mountport=30000", nil, []string{"vers=3", "addr=", "port=2049", "mountvers=3", "mountaddr=", "mountport=20048", "tcp", "hard", "sec=sys", "nolock"},
			[]string{"2049 nfs+tcp://[fd00::1]:2049", "20048 mountd+tcp://[fd00::1]:30000"}},
		{"nfs://nas/e?vers=3", nil, []string{"vers=3", "addr=", "port=2049", "mountvers=3", "mountaddr=", "mountport=20048", "tcp", "hard", "sec=sys", "nolock"},
			[]string{"2049 nfs+tcp://nas:2049", "20048 mountd+tcp://nas:0"}},
	} {
		where, err := ParseLocation(tc.place)
		if err != nil {
			t.Fatal(err)
		}
		s := &Store{o: StoreOptions{Name: "remote", Location: where}}
		h := &portlayer.Handle{}
		vol := portlayer.Volume{Name: "data", Store: "remote", Source: where.source("volumes/data"), Options: tc.own}
		for range 2 {
			if err := s.Join(t.Context(), h, vol, portlayer.Mount{Target: "/a"}); err != nil {
				t.Fatal(err)
			}
		}
		var options, reaches []string
		for _, o := range h.Config.Mounts[0].Options {
			if key, value, _ := strings.Cut(o, "="); key == "addr" || key == "mountaddr" {
				if value != where.virtual().String() || !strings.HasPrefix(value, "10.") {
					t.Errorf("%s", o)
				}
				o = key + "="
			}
			options = append(options, o)
		}
		for _, r := range h.Reaches {
			reaches = append(reaches, fmt.Sprintf("%d %s", r.Address.Port(), r.Service))
		}
		if !slices.Equal(options, tc.options) || !slices.Equal(reaches, tc.reaches) {
			t.Errorf("%s: %q, %q", tc.place, options, reaches)
		}
	}
}
