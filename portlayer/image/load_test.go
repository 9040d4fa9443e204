package image

import (
	"bytes"
	"compress/gzip"
	"context"
	"encoding/json"
	"errors"
	"io"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"testing/iotest"

	"github.com/google/go-containerregistry/pkg/name"
	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/empty"
	"github.com/google/go-containerregistry/pkg/v1/layout"
	"github.com/google/go-containerregistry/pkg/v1/mutate"
	"github.com/google/go-containerregistry/pkg/v1/tarball"
	"github.com/klauspost/compress/zstd"

	"archive/tar"

	"vch/internal/fault"
	"vch/portlayer"
)

func gzipped(t testing.TB, b []byte) []byte {
	t.Helper()
	var out bytes.Buffer
	w := gzip.NewWriter(&out)
	if _, err := w.Write(b); err != nil {
		t.Fatal(err)
	}
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	return out.Bytes()
}

func zstdded(t testing.TB, b []byte) []byte {
	t.Helper()
	w, err := zstd.NewWriter(nil)
	if err != nil {
		t.Fatal(err)
	}
	defer w.Close()
	return w.EncodeAll(b, nil)
}

func sample(t testing.TB, tags ...string) savedImage {
	return savedImage{tags: tags, env: "A=b", layers: [][]byte{makeTar(t, ent{name: "a", body: "one"}), makeTar(t, ent{name: "b", body: "two"})}}
}

// What docker save writes comes back with its configuration, whatever the whole is compressed with.
func TestLoadDockerSave(t *testing.T) {
	raw := dockerSave(t, sample(t, "app:1", "registry.example/team/app:2"))
	for name, data := range map[string][]byte{"plain": raw, "gzip": gzipped(t, raw), "zstd": zstdded(t, raw)} {
		t.Run(name, func(t *testing.T) {
			b := newBox(t)
			var r recorder
			imgs, err := b.Load(t.Context(), bytes.NewReader(data), r.add)
			if err != nil || len(imgs) != 1 {
				t.Fatal(imgs, err)
			}
			img := imgs[0]
			if !slices.Equal(img.Tags, []string{"app:1", "registry.example/team/app:2"}) || img.ID != idOf(sample(t).config(t)) {
				t.Errorf("got %s %v", img.ID, img.Tags)
			}
			if !slices.Equal(img.Config.Env, []string{"A=b"}) || !slices.Equal(img.Config.Volumes, []string{"/b", "/data"}) || img.Created.Year() != 2024 || img.OS != "linux" {
				t.Errorf("configuration %+v", img)
			}
			if len(img.History) != 2 || img.History[0].Size != 0 || img.History[1].Size != 2048 || img.Size != 4096 || len(img.DiffIDs) != 2 {
				t.Errorf("sizes %d, history %+v", img.Size, img.History)
			}
			if !slices.Equal(b.events, []string{"load " + string(img.ID)}) || len(r.lines) != 2 {
				t.Errorf("events %q, progress %q", b.events, r.lines)
			}
			if again := b.load(sample(t, "app:1")); again[0].ID != img.ID || b.disks.imports != 1 {
				t.Errorf("a second load made %v, %d disks", again[0].ID, b.disks.imports)
			}
		})
	}
}

// Several images, one without tags, a tag that moves, and layers that old archives only link to.
func TestLoadSeveral(t *testing.T) {
	b := newBox(t)
	one, two := sample(t, "a:1", "b:1"), sample(t)
	two.env = "C=d"
	imgs := b.load(one, two)
	if len(imgs) != 2 || len(imgs[0].Tags) != 2 || len(imgs[1].Tags) != 0 || b.disks.imports != 1 {
		t.Fatalf("got %+v, %d disks", imgs, b.disks.imports)
	}
	two.tags = []string{"a:1"}
	b.load(two)
	first, err := b.Get(t.Context(), string(imgs[0].ID))
	if err != nil || !slices.Equal(first.Tags, []string{"b:1"}) {
		t.Errorf("tags %v, %v", first.Tags, err)
	}
	layer := makeTar(t, ent{name: "x", body: "linked"})
	s := savedImage{layers: [][]byte{layer, layer}}
	manifest, err := json.Marshal([]map[string]any{{"Config": "c.json", "RepoTags": nil, "Layers": []string{"1/layer.tar", "2/layer.tar"}}})
	if err != nil {
		t.Fatal(err)
	}
	data := makeTar(t, ent{name: "c.json", body: string(s.config(t))}, ent{name: "1/layer.tar", body: string(layer)}, ent{name: "2/layer.tar", typ: tar.TypeSymlink, link: "../1/layer.tar"}, ent{name: "manifest.json", body: string(manifest)})
	if _, err := b.Load(t.Context(), bytes.NewReader(data), nil); err != nil {
		t.Error(err)
	}
}

// go-containerregistry's own docker archive, whose layers are compressed.
func TestLoadForeignDockerArchive(t *testing.T) {
	b := newBox(t)
	img := twoLayers(t)
	tag, err := name.NewTag("example.com/x:y")
	if err != nil {
		t.Fatal(err)
	}
	var out bytes.Buffer
	if err := tarball.Write(tag, img, &out); err != nil {
		t.Fatal(err)
	}
	got, err := b.Load(t.Context(), &out, nil)
	if config, _ := img.ConfigName(); err != nil || string(got[0].ID) != config.String() || !slices.Equal(got[0].Tags, []string{"example.com/x:y"}) {
		t.Errorf("got %+v, %v", got, err)
	}
}

// ociTar is an OCI layout of index as one tar.
func ociTar(t testing.TB, index v1.ImageIndex) []byte {
	t.Helper()
	dir := t.TempDir()
	if _, err := layout.Write(dir, index); err != nil {
		t.Fatal(err)
	}
	out, err := exec.Command("tar", "-C", dir, "-c", ".").Output()
	if err != nil {
		t.Fatal(err)
	}
	return out
}

func annotated(img mutate.Appendable, key, value string, p *v1.Platform) mutate.IndexAddendum {
	a := mutate.IndexAddendum{Add: img, Descriptor: v1.Descriptor{Platform: p}}
	if key != "" {
		a.Annotations = map[string]string{key: value}
	}
	return a
}

// OCI layouts: names from both annotations, the host's image out of several platforms, attestations passed over.
func TestLoadOCI(t *testing.T) {
	const containerd, oci = "io.containerd.image.name", "org.opencontainers.image.ref.name"
	host := &v1.Platform{OS: "linux", Architecture: hostPlatform().Architecture}
	other := &v1.Platform{OS: "linux", Architecture: "s390x"}
	img, foreign := twoLayers(t), makeImage(t, "s390x", makeTar(t, ent{name: "x"}))
	multi := mutate.AppendManifests(empty.Index, annotated(foreign, "", "", other), annotated(img, "", "", host))
	attestation := annotated(makeImage(t, "unknown"), "vnd.docker.reference.type", "attestation-manifest", &v1.Platform{OS: "unknown", Architecture: "unknown"})
	for _, c := range []struct {
		name  string
		index v1.ImageIndex
		want  []string // tags of each image
	}{
		{"containerd's name", mutate.AppendManifests(empty.Index, annotated(img, containerd, "docker.io/library/app:1", nil)), []string{"app:1"}},
		{"whole name under OCI's key", mutate.AppendManifests(empty.Index, annotated(img, oci, "quay.io/a/b:2", nil)), []string{"quay.io/a/b:2"}},
		{"a bare tag names nothing", mutate.AppendManifests(empty.Index, annotated(img, oci, "latest", nil)), []string{""}},
		{"no name", mutate.AppendManifests(empty.Index, annotated(img, "", "", nil)), []string{""}},
		{"index in index", mutate.AppendManifests(empty.Index, annotated(multi, containerd, "docker.io/library/m:1", nil)), []string{"m:1"}},
		{"platforms side by side", mutate.AppendManifests(empty.Index, annotated(foreign, "", "", other), annotated(img, "", "", host), attestation), []string{""}},
		{"two images", mutate.AppendManifests(empty.Index, annotated(img, oci, "a:1", host), annotated(foreign, oci, "b:1", other)), []string{"a:1", "b:1"}},
	} {
		t.Run(c.name, func(t *testing.T) {
			b := newBox(t)
			imgs, err := b.Load(t.Context(), bytes.NewReader(ociTar(t, c.index)), nil)
			if err != nil {
				t.Fatal(err)
			}
			var got []string
			for _, i := range imgs {
				got = append(got, strings.Join(i.Tags, ","))
			}
			if !slices.Equal(got, c.want) {
				t.Errorf("tags %q, want %q", got, c.want)
			}
			if config, _ := img.ConfigName(); string(imgs[0].ID) != config.String() {
				t.Errorf("image %s is not the host's", imgs[0].ID)
			}
		})
	}
	b := newBox(t)
	_, err := b.Load(t.Context(), bytes.NewReader(ociTar(t, mutate.AppendManifests(empty.Index, annotated(mutate.AppendManifests(empty.Index, annotated(foreign, "", "", other)), "", "", nil)))), nil)
	wantKind(t, err, fault.NotFound, "no matching manifest for linux/")
}

// A bad archive is refused in a sentence that says what is wrong, and nothing of it is kept.
func TestLoadRefuses(t *testing.T) {
	good := dockerSave(t, sample(t, "app:1"))
	layer := makeTar(t, ent{name: "a", body: strings.Repeat("one ", 1000)})
	s := savedImage{layers: [][]byte{layer}}
	with := func(config, manifest string, more ...ent) []byte {
		return makeTar(t, append(more, ent{name: "c.json", body: config}, ent{name: "manifest.json", body: manifest})...)
	}
	const manifest = `[{"Config":"c.json","Layers":["l.tar"]}]`
	blob := ociTar(t, mutate.AppendManifests(empty.Index, annotated(twoLayers(t), "", "", nil)))
	for _, c := range []struct {
		name string
		data []byte
		text string
	}{
		{"empty", nil, "neither manifest.json"},
		{"text", []byte(strings.Repeat("no tar at all ", 100)), "not an image archive: no tar"},
		{"short text", []byte("hello"), "corrupt or cut short"},
		{"a root file system", makeTar(t, ent{name: "bin/sh"}), "for a root file system use docker import"},
		{"cut short", good[:len(good)/2], "cut short"},
		{"gzip cut short", gzipped(t, good)[:300], "corrupt or cut short"},
		{"gzip damaged", flip(gzipped(t, good)), "corrupt or cut short"},
		{"zstd cut short", zstdded(t, good)[:200], "corrupt or cut short"},
		{"manifest is no JSON", with("{}", "nope"), "manifest.json cannot be read"},
		{"no images", with("{}", "[]"), "names no image"},
		{"configuration missing", makeTar(t, ent{name: "manifest.json", body: manifest}), "lacks c.json"},
		{"configuration is no JSON", with("nope", manifest), "configuration cannot be read"},
		{"configuration with a path for a layer", with(`{"rootfs":{"type":"layers","diff_ids":["sha256:../../etc/passwd"]}}`, manifest), "no sha256 digest"},
		{"layer missing", with(string(s.config(t)), manifest), "lacks layer l.tar"},
		{"wrong count", with(string(s.config(t)), `[{"Config":"c.json","Layers":[]}]`), "inconsistent"},
		{"layer damaged", with(string(s.config(t)), manifest, ent{name: "l.tar", body: string(flip(bytes.Clone(layer)))}), "filesystem layer verification failed for layer " + string(idOf(layer))},
		{"layer is no tar", with(string(savedImage{layers: [][]byte{[]byte(strings.Repeat("x", 600))}}.config(t)), manifest, ent{name: "l.tar", body: strings.Repeat("x", 600)}), "no valid tar"},
		{"bad tag", with(string(s.config(t)), `[{"Config":"c.json","RepoTags":["UPPER:1"],"Layers":["l.tar"]}]`, ent{name: "l.tar", body: string(layer)}), "UPPER"},
		{"oci blob damaged", bytes.Replace(blob, []byte(`"architecture"`), []byte(`"Architecture"`), 1), "it was refused"},
		{"second image bad", dockerSave(t, sample(t, "x:1"), savedImage{layers: [][]byte{makeTar(t, ent{name: "../x"})}}), "lies outside"},
	} {
		t.Run(c.name, func(t *testing.T) {
			b := newBox(t)
			_, err := b.Load(t.Context(), bytes.NewReader(c.data), nil)
			wantKind(t, err, fault.Invalid, c.text)
			if list, _ := b.List(t.Context()); len(list) != 0 || b.keysHere() != 0 || len(b.events) != 0 {
				t.Errorf("kept: %d images, %d files, events %q", len(list), b.keysHere(), b.events)
			}
		})
	}
}

// A failed load takes nothing away that another image has.
func TestLoadFailureKeepsShared(t *testing.T) {
	b := newBox(t)
	good := b.load(sample(t, "app:1"))[0]
	bad := savedImage{layers: append(sample(t).layers, makeTar(t, ent{name: "../x"}))}
	if _, err := b.Load(t.Context(), bytes.NewReader(dockerSave(t, bad)), nil); !fault.Is(err, fault.Invalid) {
		t.Fatal(err)
	}
	if n := b.keysHere(); n != 3 {
		t.Errorf("%d things, want two layers and a disk", n)
	}
	fsck(t, b.diskOf(good.ID))
}

// A client that goes away, or breaks, in the middle of an upload leaves nothing.
func TestUploadBreaks(t *testing.T) {
	b := newBox(t)
	good := dockerSave(t, sample(t, "app:1"))
	broken := io.MultiReader(bytes.NewReader(good[:2000]), iotest.ErrReader(errors.New("connection reset")))
	_, err := b.Load(t.Context(), broken, nil)
	wantKind(t, err, fault.Invalid, "broke off after 2000 bytes: connection reset")
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	_, err = b.Load(ctx, bytes.NewReader(good), nil)
	wantKind(t, err, fault.Unavailable, "canceled")
	_, err = b.Import(ctx, bytes.NewReader(good), "x", "", "", portlayer.ImageConfig{}, nil)
	wantKind(t, err, fault.Unavailable, "canceled")
	if b.keysHere() != 0 {
		t.Error("something was kept")
	}
}

// Import makes one layer of a root file system, in any compression, and applies the configuration.
func TestImport(t *testing.T) {
	raw := makeTar(t, ent{name: "bin/"}, ent{name: "bin/sh", body: "#!", mode: 0o755})
	config := portlayer.ImageConfig{Cmd: []string{"/bin/sh"}, Env: []string{"A=b"}, Volumes: []string{"/data"}, ExposedPorts: []string{"80/tcp"}, Labels: map[string]string{"l": "v"}, User: "1:1", WorkingDir: "/w", StopSignal: "SIGINT",
		Shell: []string{"/bin/bash"}, OnBuild: []string{"RUN x"}, Healthcheck: []byte(`{"Test":["CMD","true"],"Interval":1000}`)}
	bz := exec.Command("busybox", "bzip2", "-c")
	bz.Stdin = bytes.NewReader(raw)
	bzipped, err := bz.Output()
	if err != nil {
		t.Fatal(err)
	}
	for name, data := range map[string][]byte{"plain": raw, "gzip": gzipped(t, raw), "zstd": zstdded(t, raw), "bzip2": bzipped} {
		t.Run(name, func(t *testing.T) {
			b := newBox(t)
			img, err := b.Import(t.Context(), bytes.NewReader(data), "mine", "from a tar", "linux/arm64/v8", config, nil)
			if err != nil {
				t.Fatal(err)
			}
			if !slices.Equal(img.Tags, []string{"mine:latest"}) || img.Architecture != "arm64" || img.Variant != "v8" || img.Comment != "from a tar" || img.History[0].Comment != "from a tar" || img.History[0].Size != img.Size {
				t.Errorf("got %+v", img)
			}
			want, _ := json.Marshal(config)
			if got, _ := json.Marshal(img.Config); !bytes.Equal(got, want) {
				t.Errorf("configuration\n%s\nwant\n%s", got, want)
			}
			if got := debugfs(t, b.diskOf(img.ID), "cat /bin/sh"); got != "#!" {
				t.Errorf("content %q", got)
			}
			if !slices.Equal(b.events, []string{"import mine"}) {
				t.Errorf("events %q", b.events)
			}
			b.restart()
			if again, err := b.Get(t.Context(), "mine"); err != nil || again.ID != img.ID {
				t.Errorf("after a restart: %v, %v", again.ID, err)
			}
		})
	}
	b := newBox(t)
	for _, c := range []struct {
		name, tag, platform string
		data                []byte
		kind                fault.Kind
		text                string
	}{
		{"nothing", "x", "", nil, fault.Invalid, "the archive is empty"},
		{"no tar", "x", "", []byte(strings.Repeat("x", 2000)), fault.Invalid, "no valid tar"},
		{"xz", "x", "", []byte{0xfd, '7', 'z', 'X', 'Z', 0, 0, 0}, fault.Unsupported, "xz compression is not supported"},
		{"bad tag", "UPPER", "", raw, fault.Invalid, "invalid reference format"},
		{"digest as tag", "x@sha256:" + strings.Repeat("0", 64), "", raw, fault.Invalid, "digest reference"},
		{"bad platform", "x", "a/b/c/d", raw, fault.Invalid, "invalid platform"},
		{"climbs", "x", "", makeTar(t, ent{name: "../x"}), fault.Invalid, "lies outside"},
	} {
		_, err := b.Import(t.Context(), bytes.NewReader(c.data), c.tag, "", c.platform, portlayer.ImageConfig{}, nil)
		wantKind(t, err, c.kind, c.text)
	}
	if b.keysHere() != 0 || len(b.events) != 0 {
		t.Errorf("%d things kept, events %q", b.keysHere(), b.events)
	}
}

// Join adds the shared disk, read-only, and changes the handle only.
func TestJoin(t *testing.T) {
	b := newBox(t)
	img := b.load(sample(t, "app:1"))[0]
	for range 2 {
		var h portlayer.Handle
		if err := b.Join(t.Context(), &h, img.ID); err != nil {
			t.Fatal(err)
		}
		if len(h.Devices) != 1 || h.Config.Root.Image != "disk://vch-image" {
			t.Fatalf("handle %+v", h)
		}
		d := h.Devices[0].Disk
		if !d.ReadOnly || d.Serial != "vch-image" || filepath.Dir(string(d.File)) != filepath.Join(b.Service.dir, "disks") {
			t.Errorf("disk %+v", d)
		}
		if _, err := b.disks.Stat(t.Context(), d.File); err != nil {
			t.Error(err)
		}
	}
	wantKind(t, b.Join(t.Context(), &portlayer.Handle{}, "sha256:no"), fault.NotFound, "No such image")
}

// FuzzLoad: whatever comes, Load answers with an image or a kind that tells the user, and keeps nothing of what it refused.
func FuzzLoad(f *testing.F) {
	f.Add(dockerSave(f, sample(f, "app:1")))
	f.Add(gzipped(f, dockerSave(f, sample(f))))
	f.Add(zstdded(f, dockerSave(f, sample(f))))
	f.Add(ociTar(f, mutate.AppendManifests(empty.Index, annotated(twoLayers(f), "", "", nil))))
	f.Add([]byte("BZh"))
	f.Fuzz(func(t *testing.T, data []byte) {
		b := newBox(t)
		_, err := b.Load(t.Context(), bytes.NewReader(data), nil)
		if err == nil {
			return
		}
		switch fault.KindOf(err) {
		case fault.Invalid, fault.Unsupported, fault.NotFound:
		default:
			t.Fatalf("kind %v: %v", fault.KindOf(err), err)
		}
		if b.keysHere() != 0 {
			t.Fatalf("kept something after %v", err)
		}
	})
}
