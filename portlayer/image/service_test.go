package image

import (
	"archive/tar"
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"

	"go.uber.org/goleak"

	"vch/internal/fault"
	"vch/portlayer"
	"vch/portlayer/record"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// dirDisks is portlayer.Disks over plain files: a descriptor that holds the extent's length, and the extent. Methods that images do not need are not there.
type dirDisks struct {
	portlayer.Disks // nil: anything else panics
	mu              sync.Mutex
	imports         int // guarded by mu
}

func flat(p portlayer.DiskPath) string { return strings.TrimSuffix(string(p), ".vmdk") + "-flat.vmdk" }

func (d *dirDisks) Join(dir portlayer.DiskPath, elem ...string) portlayer.DiskPath {
	return portlayer.DiskPath(filepath.Join(append([]string{string(dir)}, elem...)...))
}

func (d *dirDisks) MakeDir(_ context.Context, dir portlayer.DiskPath) error {
	return os.MkdirAll(string(dir), 0o700)
}

func (d *dirDisks) Import(_ context.Context, local string, p portlayer.DiskPath) error {
	fi, err := os.Stat(local)
	if err != nil {
		return err
	}
	d.mu.Lock()
	d.imports++
	d.mu.Unlock()
	return errors.Join(os.Rename(local, flat(p)), os.WriteFile(string(p), fmt.Append(nil, fi.Size()), 0o600))
}

func (d *dirDisks) Stat(_ context.Context, p portlayer.DiskPath) (portlayer.DiskInfo, error) {
	text, err := os.ReadFile(string(p))
	fi, ferr := os.Stat(flat(p))
	if err != nil || ferr != nil {
		return portlayer.DiskInfo{}, fault.New(fault.NotFound, "no disk %s", p)
	}
	if string(text) != fmt.Sprint(fi.Size()) {
		return portlayer.DiskInfo{}, fault.New(fault.Conflict, "disk %s is damaged", p)
	}
	return portlayer.DiskInfo{Size: portlayer.Bytes(fi.Size()), Allocated: portlayer.Bytes(fi.Size())}, nil
}

func (d *dirDisks) Delete(_ context.Context, p portlayer.DiskPath) error {
	for _, f := range []string{string(p), flat(p)} {
		if err := os.Remove(f); err != nil && !errors.Is(err, os.ErrNotExist) {
			return err
		}
	}
	return nil
}

func (d *dirDisks) List(_ context.Context, dir portlayer.DiskPath) ([]string, error) {
	entries, err := os.ReadDir(string(dir))
	var names []string
	for _, e := range entries {
		names = append(names, e.Name())
	}
	return names, err
}

// box is a service with all that it stands on.
type box struct {
	*Service
	t     testing.TB
	dir   string
	db    *record.DB
	disks *dirDisks

	mu     sync.Mutex // guards below
	events []string
	users  map[portlayer.ImageID][]portlayer.ContainerID
}

func newBox(t testing.TB) *box {
	t.Helper()
	b := &box{t: t, dir: t.TempDir(), disks: &dirDisks{}, users: map[portlayer.ImageID][]portlayer.ContainerID{}}
	b.open()
	t.Cleanup(b.finish)
	return b
}

func (b *box) open() {
	b.t.Helper()
	db, err := record.Open(filepath.Join(b.dir, "db"))
	if err != nil {
		b.t.Fatal(err)
	}
	b.db = db
	b.Service, err = New(b.t.Context(), Options{Dir: filepath.Join(b.dir, "images"), Disks: b.disks, DB: db, Log: slog.New(slog.DiscardHandler),
		InUse: func(id portlayer.ImageID) []portlayer.ContainerID {
			b.mu.Lock()
			defer b.mu.Unlock()
			return b.users[id]
		},
		Publish: func(e portlayer.Event) {
			b.mu.Lock()
			defer b.mu.Unlock()
			b.events = append(b.events, strings.TrimSpace(e.Verb+" "+e.Attrs["name"]))
		}})
	if err != nil {
		b.t.Fatal(err)
	}
}

// restart is what a daemon's does.
func (b *box) restart() {
	b.t.Helper()
	b.Close()
	if err := b.db.Close(); err != nil {
		b.t.Fatal(err)
	}
	b.open()
}

// use says which containers use an image.
func (b *box) use(id portlayer.ImageID, c ...portlayer.ContainerID) {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.users[id] = c
}

// finish checks the store after each test: what records name is there, nothing half done is left, nobody holds anything.
func (b *box) finish() {
	b.t.Helper()
	b.Close()
	if err := b.db.Close(); err != nil {
		b.t.Error(err)
	}
	tmp, err := os.ReadDir(b.tmpDir())
	if err != nil || len(tmp) > 0 {
		b.t.Errorf("left in tmp: %v, %v", tmp, err)
	}
	for _, dir := range []string{"layers", "disks"} {
		if halves, _ := filepath.Glob(filepath.Join(b.Service.dir, dir, ".tmp-*")); len(halves) > 0 {
			b.t.Errorf("left: %v", halves)
		}
	}
	if len(b.catalog.held) > 0 || len(b.flights.runs) > 0 || len(b.downloads) > 0 {
		b.t.Errorf("still held: %v, flights %v, downloads %d", b.catalog.held, b.flights.runs, len(b.downloads))
	}
	here, err := b.stored(context.Background())
	if err != nil {
		b.t.Error(err)
	}
	for key := range b.catalog.needed() {
		if !slices.Contains(here, key) {
			b.t.Errorf("%s is needed and not there", key)
		}
	}
	for _, key := range here {
		if !validDigest(key) && !b.catalog.needed()[key] {
			b.t.Errorf("disk %s is there and nobody needs it", key)
		}
	}
}

// keysHere is what the store holds.
func (b *box) keysHere() int {
	b.t.Helper()
	here, err := b.stored(b.t.Context())
	if err != nil {
		b.t.Fatal(err)
	}
	return len(here)
}

// one entry of a hand-made layer.
type ent struct {
	name   string
	typ    byte // 0: a file, or a directory when name ends in a slash
	body   string
	link   string
	mode   int64
	uid    int
	header func(*tar.Header)
}

func makeTar(t testing.TB, entries ...ent) []byte {
	t.Helper()
	var b bytes.Buffer
	w := tar.NewWriter(&b)
	for _, e := range entries {
		h := &tar.Header{Name: e.name, Typeflag: e.typ, Size: int64(len(e.body)), Linkname: e.link, Mode: e.mode, Uid: e.uid, Gid: e.uid}
		if e.typ == 0 {
			h.Typeflag = tar.TypeReg
			if strings.HasSuffix(e.name, "/") {
				h.Typeflag = tar.TypeDir
			}
		}
		if h.Mode == 0 {
			h.Mode = 0o644
			if h.Typeflag == tar.TypeDir {
				h.Mode = 0o755
			}
		}
		if e.header != nil {
			e.header(h)
		}
		if err := w.WriteHeader(h); err != nil {
			t.Fatalf("%s: %v", e.name, err)
		}
		if _, err := io.WriteString(w, e.body); err != nil {
			t.Fatal(err)
		}
	}
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	return b.Bytes()
}

// debugfs runs one debugfs(8) request on a disk.
func debugfs(t testing.TB, disk, request string) string {
	t.Helper()
	out, err := exec.Command("/usr/sbin/debugfs", "-R", request, disk).Output()
	if err != nil {
		t.Fatalf("debugfs %s: %v", request, err)
	}
	return string(out)
}

// fsck is e2fsck's verdict on a disk, which has to be spotless.
func fsck(t testing.TB, disk string) {
	t.Helper()
	if out, err := exec.Command("/usr/sbin/e2fsck", "-fn", disk).CombinedOutput(); err != nil || bytes.Contains(out, []byte("? no")) || bytes.Contains(out, []byte("WARNING")) {
		t.Errorf("e2fsck: %v\n%s", err, out)
	}
}

// diskOf is the raw extent of an image's disk.
func (b *box) diskOf(id portlayer.ImageID) string {
	b.t.Helper()
	k, ok := b.catalog.get(id)
	if !ok {
		b.t.Fatalf("no image %s", id)
	}
	return flat(b.diskPath(k.disk))
}

// wantKind checks an error's kind and that it says text.
func wantKind(t testing.TB, err error, kind fault.Kind, text string) {
	t.Helper()
	if !fault.Is(err, kind) || !strings.Contains(err.Error(), text) {
		t.Errorf("error %q of kind %v; want %q of kind %v", err, fault.KindOf(err), text, kind)
	}
}

// saved makes a docker-save archive of images given as config JSON fields, tags and layers.
type savedImage struct {
	tags   []string
	layers [][]byte
	env    string // makes the configuration differ
	arch   string
}

func (s savedImage) config(t testing.TB) []byte {
	t.Helper()
	var diffs []string
	for _, l := range s.layers {
		diffs = append(diffs, string(idOf(l)))
	}
	raw, err := json.Marshal(map[string]any{"architecture": orElse(s.arch, hostPlatform().Architecture), "os": "linux", "created": "2024-01-02T03:04:05Z",
		"config": map[string]any{"Env": []string{s.env}, "Cmd": []string{"/bin/sh"}, "Volumes": map[string]any{"/data": struct{}{}, "/b": struct{}{}}},
		"rootfs": map[string]any{"type": "layers", "diff_ids": diffs}, "history": []map[string]any{{"created_by": "x", "empty_layer": true}, {"created_by": "y"}}})
	if err != nil {
		t.Fatal(err)
	}
	return raw
}

func dockerSave(t testing.TB, images ...savedImage) []byte {
	t.Helper()
	var entries []ent
	var manifest []map[string]any
	for _, s := range images {
		raw := s.config(t)
		name := strings.TrimPrefix(string(idOf(raw)), "sha256:") + ".json"
		entries = append(entries, ent{name: name, body: string(raw)})
		var files []string
		for i, l := range s.layers {
			file := fmt.Sprintf("%s-%d/layer.tar", name, i)
			entries = append(entries, ent{name: file, body: string(l)})
			files = append(files, file)
		}
		manifest = append(manifest, map[string]any{"Config": name, "RepoTags": s.tags, "Layers": files})
	}
	raw, err := json.Marshal(manifest)
	if err != nil {
		t.Fatal(err)
	}
	return makeTar(t, append(entries, ent{name: "manifest.json", body: string(raw)})...)
}

// load loads an archive that has to be good.
func (b *box) load(images ...savedImage) []portlayer.Image {
	b.t.Helper()
	got, err := b.Load(b.t.Context(), bytes.NewReader(dockerSave(b.t, images...)), nil)
	if err != nil {
		b.t.Fatal(err)
	}
	return got
}
