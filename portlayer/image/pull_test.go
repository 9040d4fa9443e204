package image

import (
	"bytes"
	"context"
	"fmt"
	"io"
	"log"
	"net/http"
	"net/http/httptest"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"

	"github.com/google/go-containerregistry/pkg/compression"
	"github.com/google/go-containerregistry/pkg/name"
	"github.com/google/go-containerregistry/pkg/registry"
	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/empty"
	"github.com/google/go-containerregistry/pkg/v1/mutate"
	"github.com/google/go-containerregistry/pkg/v1/remote"
	"github.com/google/go-containerregistry/pkg/v1/tarball"
	"github.com/google/go-containerregistry/pkg/v1/types"

	"vch/internal/fault"
	"vch/portlayer"
)

// hub is a registry on loopback that a test can make misbehave.
type hub struct {
	t    testing.TB
	host string

	mu     sync.Mutex // guards below
	handle http.HandlerFunc
	seen   map[string]int // "GET /v2/…" → how often
}

// newHub starts one. wrap, if not nil, stands in front of it.
func newHub(t testing.TB) *hub {
	t.Helper()
	h := &hub{t: t, seen: map[string]int{}}
	inner := registry.New(registry.Logger(log.New(io.Discard, "", 0)))
	srv := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		h.mu.Lock()
		h.seen[r.Method+" "+r.URL.Path]++
		f := h.handle
		h.mu.Unlock()
		if f == nil {
			f = inner.ServeHTTP
		}
		f(w, r.WithContext(context.WithValue(r.Context(), innerKey{}, inner)))
	}))
	t.Cleanup(srv.Close)
	h.host = strings.TrimPrefix(srv.URL, "http://")
	return h
}

type innerKey struct{}

func inner(r *http.Request) http.Handler { return r.Context().Value(innerKey{}).(http.Handler) }

func (h *hub) set(f http.HandlerFunc) {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.handle = f
	clear(h.seen)
}

func (h *hub) count(suffix string) int {
	h.mu.Lock()
	defer h.mu.Unlock()
	n := 0
	for k, c := range h.seen {
		if strings.HasPrefix(k, "GET ") && strings.HasSuffix(k, suffix) {
			n += c
		}
	}
	return n
}

// makeImage builds an image for arch from layer tars.
func makeImage(t testing.TB, arch string, layers ...[]byte) v1.Image {
	t.Helper()
	img := empty.Image
	for _, l := range layers {
		layer, err := tarball.LayerFromOpener(func() (io.ReadCloser, error) { return io.NopCloser(bytes.NewReader(l)), nil })
		if err != nil {
			t.Fatal(err)
		}
		if img, err = mutate.AppendLayers(img, layer); err != nil {
			t.Fatal(err)
		}
	}
	cf, err := img.ConfigFile()
	if err != nil {
		t.Fatal(err)
	}
	cf = cf.DeepCopy()
	cf.Architecture, cf.OS = arch, "linux"
	cf.Config.Cmd = []string{"/bin/true"}
	if img, err = mutate.ConfigFile(img, cf); err != nil {
		t.Fatal(err)
	}
	return img
}

func (h *hub) push(tag string, img v1.Image) string {
	h.t.Helper()
	ref, err := name.ParseReference(h.host + "/" + tag)
	if err != nil {
		h.t.Fatal(err)
	}
	if err := remote.Write(ref, img); err != nil {
		h.t.Fatal(err)
	}
	return ref.Name()
}

// twoLayers is an image of two layers for the host.
func twoLayers(t testing.TB) v1.Image {
	return makeImage(t, hostPlatform().Architecture, makeTar(t, ent{name: "a", body: strings.Repeat("layer one ", 1000)}), makeTar(t, ent{name: "b", body: strings.Repeat("layer two ", 2000)}))
}

func digests(t testing.TB, img v1.Image) []string {
	t.Helper()
	m, err := img.Manifest()
	if err != nil {
		t.Fatal(err)
	}
	var list []string
	for _, l := range m.Layers {
		list = append(list, l.Digest.String())
	}
	return list
}

// recorder keeps progress lines; figures are dropped.
type recorder struct {
	busy  atomic.Bool
	lines []string
}

func (r *recorder) add(p portlayer.Progress) {
	if !r.busy.CompareAndSwap(false, true) {
		panic("progress was called twice at once")
	}
	defer r.busy.Store(false)
	line := strings.TrimPrefix(p.ID+": "+p.Status, ": ")
	if len(r.lines) == 0 || r.lines[len(r.lines)-1] != line {
		r.lines = append(r.lines, line)
	}
}

func (r *recorder) of(id string) string {
	var steps []string
	for _, l := range r.lines {
		if s, ok := strings.CutPrefix(l, id+": "); ok && (len(steps) == 0 || steps[len(steps)-1] != s) {
			steps = append(steps, s)
		}
	}
	return strings.Join(steps, ", ")
}

// Layers may be compressed by zstd.
func TestPullZstd(t *testing.T) {
	b, h := newBox(t), newHub(t)
	raw := makeTar(t, ent{name: "a", body: strings.Repeat("layer one ", 1000)})
	layer, err := tarball.LayerFromOpener(func() (io.ReadCloser, error) { return io.NopCloser(bytes.NewReader(raw)), nil }, tarball.WithCompression(compression.ZStd), tarball.WithMediaType(types.OCILayerZStd))
	if err != nil {
		t.Fatal(err)
	}
	img, err := mutate.AppendLayers(makeImage(t, hostPlatform().Architecture), layer)
	if err != nil {
		t.Fatal(err)
	}
	got, err := b.Pull(t.Context(), h.push("app", img), "", portlayer.Credentials{}, nil)
	if err != nil {
		t.Fatal(err)
	}
	if text := debugfs(t, b.diskOf(got.ID), "cat /a"); !strings.HasPrefix(text, "layer one") {
		t.Errorf("content %q", text)
	}
}

// A pull shows Docker's lines, leaves a disk that holds both layers, and a second one finds everything there.
func TestPull(t *testing.T) {
	b, h := newBox(t), newHub(t)
	img := twoLayers(t)
	ref := h.push("team/app:v1", img)
	var r recorder
	got, err := b.Pull(t.Context(), ref, "", portlayer.Credentials{}, r.add)
	if err != nil {
		t.Fatal(err)
	}
	config, _ := img.ConfigName()
	digest, _ := img.Digest()
	if string(got.ID) != config.String() || !slices.Equal(got.Tags, []string{ref}) || !slices.Equal(got.Digests, []string{h.host + "/team/app@" + digest.String()}) {
		t.Errorf("got %s %v %v", got.ID, got.Tags, got.Digests)
	}
	if r.lines[0] != "v1: Pulling from team/app" || !slices.Equal(r.lines[len(r.lines)-2:], []string{"Digest: " + digest.String(), "Status: Downloaded newer image for " + ref}) {
		t.Errorf("lines %q", r.lines)
	}
	for _, d := range digests(t, img) {
		if steps := r.of(short(d)); steps != "Pulling fs layer, Downloading, Verifying Checksum, Download complete, Extracting, Pull complete" {
			t.Errorf("steps of %s: %s", d, steps)
		}
	}
	fsck(t, b.diskOf(got.ID))
	if s := debugfs(t, b.diskOf(got.ID), "cat /b"); !strings.HasPrefix(s, "layer two ") || len(s) != 20000 {
		t.Errorf("content %.20q", s)
	}
	r = recorder{}
	if _, err := b.Pull(t.Context(), ref, "", portlayer.Credentials{}, r.add); err != nil {
		t.Fatal(err)
	}
	if last := r.lines[len(r.lines)-1]; last != "Status: Image is up to date for "+ref || r.of(short(digests(t, img)[0])) != "Already exists" {
		t.Errorf("second pull: %q", r.lines)
	}
	if want := []string{"pull " + h.host + "/team/app", "pull " + h.host + "/team/app"}; !slices.Equal(b.events, want) {
		t.Errorf("events %q", b.events)
	}
	// By digest: no tag, and the same image.
	h.push("team/other:x", makeImage(t, hostPlatform().Architecture))
	byDigest, err := b.Pull(t.Context(), h.host+"/team/app@"+digest.String(), "", portlayer.Credentials{}, nil)
	if err != nil || byDigest.ID != got.ID {
		t.Errorf("by digest: %v, %v", byDigest.ID, err)
	}
	for _, ref := range []string{ref, string(got.ID), strings.TrimPrefix(string(got.ID), "sha256:"), short(string(got.ID)), h.host + "/team/app@" + digest.String(), h.host + "/team/app@" + string(got.ID)} {
		if found, err := b.Get(t.Context(), ref); err != nil || found.ID != got.ID {
			t.Errorf("Get(%s): %v, %v", ref, found.ID, err)
		}
	}
}

// A tag that moves leaves the old image without it.
func TestPullMovesTag(t *testing.T) {
	b, h := newBox(t), newHub(t)
	ref := h.push("app", twoLayers(t))
	first, err := b.Pull(t.Context(), ref, "", portlayer.Credentials{}, nil)
	if err != nil {
		t.Fatal(err)
	}
	h.push("app", makeImage(t, hostPlatform().Architecture, makeTar(t, ent{name: "new", body: "x"})))
	second, err := b.Pull(t.Context(), h.host+"/app", "", portlayer.Credentials{}, nil)
	if err != nil || second.ID == first.ID {
		t.Fatal(second.ID, err)
	}
	old, err := b.Get(t.Context(), string(first.ID))
	if err != nil || len(old.Tags) != 0 || len(old.Digests) != 1 || len(second.Tags) != 1 {
		t.Errorf("old %v %v, new %v: %v", old.Tags, old.Digests, second.Tags, err)
	}
}

// Platforms: the host's by default, another when asked for, and a clear word when there is none.
func TestPullPlatform(t *testing.T) {
	b, h := newBox(t), newHub(t)
	other := "arm64"
	if hostPlatform().Architecture == other {
		other = "amd64"
	}
	mine, theirs := makeImage(t, hostPlatform().Architecture, makeTar(t, ent{name: "mine"})), makeImage(t, other, makeTar(t, ent{name: "theirs"}))
	index := mutate.AppendManifests(empty.Index,
		mutate.IndexAddendum{Add: theirs, Descriptor: v1.Descriptor{Platform: &v1.Platform{OS: "linux", Architecture: other}}},
		mutate.IndexAddendum{Add: mine, Descriptor: v1.Descriptor{Platform: &v1.Platform{OS: "linux", Architecture: hostPlatform().Architecture}}},
		mutate.IndexAddendum{Add: makeImage(t, "x"), Descriptor: v1.Descriptor{Platform: &v1.Platform{OS: "unknown", Architecture: "unknown"}}})
	tag, _ := name.NewTag(h.host + "/multi:1")
	if err := remote.WriteIndex(tag, index); err != nil {
		t.Fatal(err)
	}
	pull := func(platform string) (portlayer.Image, error) {
		return b.Pull(t.Context(), tag.Name(), platform, portlayer.Credentials{}, nil)
	}
	got, err := pull("")
	if id, _ := mine.ConfigName(); err != nil || string(got.ID) != id.String() {
		t.Errorf("default: %v, %v", got.ID, err)
	}
	if digest, _ := index.Digest(); len(got.Digests) != 1 || !strings.HasSuffix(got.Digests[0], digest.String()) {
		t.Errorf("digests %v, want the index's", got.Digests)
	}
	if err := b.Join(t.Context(), &portlayer.Handle{}, got.ID); err != nil {
		t.Errorf("join: %v", err)
	}
	got, err = pull("linux/" + other)
	if err != nil || got.Architecture != other {
		t.Fatalf("other: %v, %v", got.Architecture, err)
	}
	wantKind(t, b.Join(t.Context(), &portlayer.Handle{}, got.ID), fault.Unsupported, "is for linux/"+other+" and this VCH runs linux/"+hostPlatform().Architecture)
	_, err = pull("linux/s390x")
	wantKind(t, err, fault.NotFound, "no matching manifest for linux/s390x in the manifest list entries")
	_, err = pull("linux//x")
	wantKind(t, err, fault.Invalid, "invalid platform")
	_, err = b.Pull(t.Context(), h.push("single", mine), "linux/"+other, portlayer.Credentials{}, nil)
	wantKind(t, err, fault.NotFound, "does not match the specified platform (linux/"+other+")")
}

// Errors of registries get their kind and Docker's words.
func TestPullErrors(t *testing.T) {
	b, h := newBox(t), newHub(t)
	h.push("app:v1", twoLayers(t))
	dead := httptest.NewServer(nil)
	dead.Close()
	for _, c := range []struct {
		ref  string
		kind fault.Kind
		text string
	}{
		{h.host + "/app:v2", fault.NotFound, "manifest for " + h.host + "/app:v2 not found: manifest unknown"},
		{h.host + "/nope:v1", fault.NotFound, "pull access denied for " + h.host + "/nope, repository does not exist or may require 'docker login'"},
		{h.host + "/app@sha256:" + strings.Repeat("0", 64), fault.NotFound, "manifest unknown"},
		{strings.TrimPrefix(dead.URL, "http://") + "/app", fault.Unavailable, "cannot reach the registry"},
		{"UPPER", fault.Invalid, "invalid reference format"},
		{"a b", fault.Invalid, "invalid reference format"},
	} {
		_, err := b.Pull(t.Context(), c.ref, "", portlayer.Credentials{}, nil)
		wantKind(t, err, c.kind, c.text)
	}
	h.set(func(w http.ResponseWriter, r *http.Request) { http.Error(w, "too many", http.StatusTooManyRequests) })
	_, err := b.Pull(t.Context(), h.host+"/app:v1", "", portlayer.Credentials{}, nil)
	wantKind(t, err, fault.Unavailable, "registry")
	if n := b.keysHere(); n != 0 {
		t.Errorf("%d things kept", n)
	}
}

// Plain HTTP goes to this machine only, however private another address is.
func TestPlainHTTPOnlyLocal(t *testing.T) {
	insecure, err := ParseInsecure([]string{"plain.example:5000", "any.example", "10.1.0.0/16"})
	if err != nil {
		t.Fatal(err)
	}
	rt := guarded{&Service{insecure: insecure, mirrors: []Mirror{{"http", "mirror.example"}}}, answer{}}
	for url, ok := range map[string]bool{"http://plain.example:5000/": true, "http://plain.example/": false, "http://any.example:1/": true, "http://10.1.2.3:5000/": true, "http://10.2.0.1/": false, "http://mirror.example/": true, "http://127.0.0.1:5000/": true, "http://localhost/": true, "http://[::1]:1/": true, "https://10.0.0.1/": true, "http://10.0.0.1/": false, "http://192.168.1.1:5000/": false, "http://registry.local/": false} {
		req, err := http.NewRequest(http.MethodGet, url, nil)
		if err != nil {
			t.Fatal(err)
		}
		resp, err := rt.RoundTrip(req)
		if err == nil {
			resp.Body.Close()
		}
		if (err == nil) != ok {
			t.Errorf("%s: %v", url, err)
		}
	}
}

// answer is a RoundTripper that reaches everything.
type answer struct{}

func (answer) RoundTrip(r *http.Request) (*http.Response, error) {
	return &http.Response{StatusCode: http.StatusOK, Body: http.NoBody, Request: r}, nil
}

// Credentials: with the right ones a pull and a login work, basic or by token; with others both are denied.
func TestCredentials(t *testing.T) {
	for _, scheme := range []string{"basic", "bearer"} {
		t.Run(scheme, func(t *testing.T) {
			b, h := newBox(t), newHub(t)
			ref := h.push("private:1", twoLayers(t))
			h.set(func(w http.ResponseWriter, r *http.Request) {
				user, password, _ := r.BasicAuth()
				good := user == "ann" && password == "secret"
				switch {
				case r.URL.Path == "/token" && !good:
					w.WriteHeader(http.StatusUnauthorized)
				case r.URL.Path == "/token":
					fmt.Fprint(w, `{"token":"t0ken","expires_in":300}`)
				case scheme == "basic" && good, scheme == "bearer" && r.Header.Get("Authorization") == "Bearer t0ken":
					inner(r).ServeHTTP(w, r)
				case scheme == "basic":
					w.Header().Set("WWW-Authenticate", `Basic realm="x"`)
					w.WriteHeader(http.StatusUnauthorized)
				default:
					w.Header().Set("WWW-Authenticate", fmt.Sprintf(`Bearer realm="http://%s/token",service="x"`, h.host))
					w.WriteHeader(http.StatusUnauthorized)
				}
			})
			ann := portlayer.Credentials{Username: "ann", Password: "secret"}
			for _, c := range []portlayer.Credentials{{}, {Username: "ann", Password: "wrong"}} {
				_, err := b.Pull(t.Context(), ref, "", c, nil)
				wantKind(t, err, fault.Denied, "pull access denied for "+h.host+"/private, repository does not exist or may require 'docker login'")
			}
			if _, err := b.Pull(t.Context(), ref, "", ann, nil); err != nil {
				t.Error(err)
			}
			if status, err := b.Login(t.Context(), h.host, ann); status != "Login Succeeded" || err != nil {
				t.Errorf("login: %q, %v", status, err)
			}
			_, err := b.Login(t.Context(), "http://"+h.host+"/v1/", portlayer.Credentials{Username: "ann", Password: "wrong"})
			wantKind(t, err, fault.Denied, "incorrect username or password")
		})
	}
	b := newBox(t)
	dead := httptest.NewServer(nil)
	dead.Close()
	_, err := b.Login(t.Context(), strings.TrimPrefix(dead.URL, "http://"), portlayer.Credentials{Username: "a"})
	wantKind(t, err, fault.Unavailable, "cannot be reached")
	_, err = b.Login(t.Context(), "not a host", portlayer.Credentials{})
	wantKind(t, err, fault.Invalid, "invalid registry address")
}

// damage answers for the blob digest with its content changed by f, and passes everything else on.
func damage(digest string, f func([]byte) []byte) http.HandlerFunc {
	return func(w http.ResponseWriter, r *http.Request) {
		if r.Method != http.MethodGet || !strings.HasSuffix(r.URL.Path, digest) {
			inner(r).ServeHTTP(w, r)
			return
		}
		rec := httptest.NewRecorder()
		inner(r).ServeHTTP(rec, r)
		body := f(bytes.Clone(rec.Body.Bytes()))
		if len(body) < rec.Body.Len() {
			w.Header().Set("Content-Length", fmt.Sprint(rec.Body.Len()))
			_, _ = w.Write(body)
			w.(http.Flusher).Flush()
			panic(http.ErrAbortHandler)
		}
		_, _ = w.Write(body)
	}
}

func flip(b []byte) []byte { b[len(b)/2] ^= 0xff; return b }
func cut(b []byte) []byte  { return b[:len(b)/2] }

// A layer that was changed on the way, anywhere, is refused by name; the whole layer stays; and once the way is clean, the pull works.
func TestPullDamagedLayer(t *testing.T) {
	img := twoLayers(t)
	bad := digests(t, img)[1]
	for _, c := range []struct {
		name string
		f    func([]byte) []byte
		text string
	}{
		{"flipped", flip, "filesystem layer verification failed for digest " + bad},
		{"other content", func(b []byte) []byte { return append(makeTarGz(t), make([]byte, len(b))...) }, "filesystem layer verification failed for digest " + bad},
		{"longer", func(b []byte) []byte { return append(b, 0) }, "filesystem layer verification failed for digest " + bad},
		{"cut short", cut, "layer " + bad + " broke after"},
	} {
		t.Run(c.name, func(t *testing.T) {
			b, h := newBox(t), newHub(t)
			ref := h.push("app:v1", img)
			h.set(damage(bad, c.f))
			_, err := b.Pull(t.Context(), ref, "", portlayer.Credentials{}, nil)
			wantKind(t, err, fault.Unavailable, c.text)
			if n := b.keysHere(); n > 1 {
				t.Errorf("%d things kept, want the good layer at most", n)
			}
			if list, _ := b.List(t.Context()); len(list) != 0 {
				t.Errorf("image recorded: %v", list)
			}
			if c.name == "cut short" && h.count(bad) != transferTries {
				t.Errorf("%d tries, want %d", h.count(bad), transferTries)
			}
			h.set(nil)
			if _, err := b.Pull(t.Context(), ref, "", portlayer.Credentials{}, nil); err != nil {
				t.Error(err)
			}
		})
	}
}

func makeTarGz(t testing.TB) []byte {
	m := makeImage(t, "x", makeTar(t, ent{name: "evil", body: "evil"}))
	layers, _ := m.Layers()
	rc, err := layers[0].Compressed()
	if err != nil {
		t.Fatal(err)
	}
	defer rc.Close()
	b, err := io.ReadAll(rc)
	if err != nil {
		t.Fatal(err)
	}
	return b
}

// A layer whose tar is not the one that the configuration names is refused, though its own digest is right.
func TestPullWrongDiffID(t *testing.T) {
	b, h := newBox(t), newHub(t)
	img := makeImage(t, hostPlatform().Architecture, makeTar(t, ent{name: "a", body: "1"}))
	cf, _ := img.ConfigFile()
	cf = cf.DeepCopy()
	cf.RootFS.DiffIDs[0].Hex = strings.Repeat("0", 64)
	lie, err := mutate.ConfigFile(img, cf)
	if err != nil {
		t.Fatal(err)
	}
	_, err = b.Pull(t.Context(), h.push("lie", lie), "", portlayer.Credentials{}, nil)
	wantKind(t, err, fault.Unavailable, digests(t, img)[0])
	wantKind(t, err, fault.Unavailable, "it was refused")
	if n := b.keysHere(); n != 0 {
		t.Errorf("%d things kept", n)
	}
}

// A changed configuration is refused as well.
func TestPullDamagedConfig(t *testing.T) {
	b, h := newBox(t), newHub(t)
	img := twoLayers(t)
	ref := h.push("app", img)
	config, _ := img.ConfigName()
	h.set(damage(config.String(), flip))
	_, err := b.Pull(t.Context(), ref, "", portlayer.Credentials{}, nil)
	wantKind(t, err, fault.Unavailable, "image config verification failed for digest "+config.String())
}

// A manifest that is not the one asked for by digest is refused.
func TestPullDamagedManifest(t *testing.T) {
	b, h := newBox(t), newHub(t)
	img := twoLayers(t)
	h.push("app", img)
	digest, _ := img.Digest()
	h.set(func(w http.ResponseWriter, r *http.Request) {
		w.Header().Set("Content-Type", "application/vnd.oci.image.manifest.v1+json")
		damage(digest.String(), func(b []byte) []byte { return append(b, ' ') })(w, r)
	})
	_, err := b.Pull(t.Context(), h.host+"/app@"+digest.String(), "", portlayer.Credentials{}, nil)
	wantKind(t, err, fault.Unavailable, "it was refused")
}

// A pull whose disk cannot be made keeps the layers, which are whole, and no disk.
func TestPullOfNonsense(t *testing.T) {
	b, h := newBox(t), newHub(t)
	_, err := b.Pull(t.Context(), h.push("app", makeImage(t, hostPlatform().Architecture, makeTar(t, ent{name: "a"}), makeTar(t, ent{name: "../x"}))), "", portlayer.Credentials{}, nil)
	wantKind(t, err, fault.Invalid, `"../x" lies outside`)
	if n := b.keysHere(); n != 2 {
		t.Errorf("%d things kept, want the two layers", n)
	}
}

// Where a reference leads: the registry, the repository, and whether plain HTTP is tried.
func TestRemoteName(t *testing.T) {
	for text, want := range map[string]string{
		"busybox":              "https index.docker.io/library/busybox:latest",
		"a/b:c":                "https index.docker.io/a/b:c",
		"localhost/x":          "http localhost/x:latest",
		"localhost:5000/x":     "http localhost:5000/x:latest",
		"127.0.0.1:5000/x/y:z": "http 127.0.0.1:5000/x/y:z",
		"[::1]:5000/x":         "http [::1]:5000/x:latest",
		"registry.example/x@sha256:" + strings.Repeat("a", 64): "https registry.example/x@sha256:" + strings.Repeat("a", 64),
	} {
		ref, err := parseName(text)
		if err != nil {
			t.Fatal(err)
		}
		r, err := (&Service{}).remoteName(t.Context(), ref)
		if err != nil {
			t.Errorf("%s: %v", text, err)
			continue
		}
		if got := r.Context().Scheme() + " " + r.Name(); got != want {
			t.Errorf("%s leads to %s, want %s", text, got, want)
		}
	}
}

// Eight pulls of one image fetch each layer once and make one disk.
func TestPullsShare(t *testing.T) {
	b, h := newBox(t), newHub(t)
	img := twoLayers(t)
	ref := h.push("app", img)
	gate := make(chan struct{})
	var manifests atomic.Int32
	h.set(func(w http.ResponseWriter, r *http.Request) {
		if strings.Contains(r.URL.Path, "/manifests/") && r.Method == http.MethodGet && manifests.Add(1) == 8 {
			close(gate)
		}
		if strings.HasSuffix(r.URL.Path, digests(t, img)[0]) {
			<-gate // all eight are on their way
		}
		inner(r).ServeHTTP(w, r)
	})
	var wg sync.WaitGroup
	var recorders [8]recorder
	for i := range 8 {
		wg.Go(func() {
			if _, err := b.Pull(t.Context(), ref, "", portlayer.Credentials{}, recorders[i].add); err != nil {
				t.Error(err)
			}
		})
	}
	wg.Wait()
	for _, d := range digests(t, img) {
		if n := h.count(d); n != 1 {
			t.Errorf("layer %s was fetched %d times", d, n)
		}
	}
	if b.disks.imports != 1 {
		t.Errorf("%d disks were made", b.disks.imports)
	}
	for i := range recorders {
		if l := recorders[i].lines; !strings.HasPrefix(l[len(l)-1], "Status: ") {
			t.Errorf("pull %d ended with %q", i, l)
		}
	}
}

// Who gives up gets the reason of his ctx at once; who pulls the same still gets the image.
func TestPullCancelled(t *testing.T) {
	b, h := newBox(t), newHub(t)
	img := twoLayers(t)
	ref := h.push("app", img)
	slow := digests(t, img)[1]
	arrived, gate := make(chan struct{}), make(chan struct{})
	var once sync.Once
	h.set(func(w http.ResponseWriter, r *http.Request) {
		if strings.HasSuffix(r.URL.Path, slow) {
			once.Do(func() { close(arrived) })
			select {
			case <-gate:
			case <-r.Context().Done():
				return
			}
		}
		inner(r).ServeHTTP(w, r)
	})
	ctx, cancel := context.WithCancel(t.Context())
	first, second := make(chan error, 1), make(chan error, 1)
	go func() {
		_, err := b.Pull(ctx, ref, "", portlayer.Credentials{}, nil)
		first <- err
	}()
	<-arrived
	waiting := make(chan struct{})
	var once2 sync.Once
	go func() {
		_, err := b.Pull(t.Context(), ref, "", portlayer.Credentials{}, func(p portlayer.Progress) {
			if p.ID == short(slow) {
				once2.Do(func() { close(waiting) })
			}
		})
		second <- err
	}()
	<-waiting
	key := "layer " + string(mustDiffID(t, img, 1))
	for { // until the second one is aboard
		b.flights.mu.Lock()
		f := b.flights.runs[key]
		riders := 0
		if f != nil {
			riders = f.riders
		}
		b.flights.mu.Unlock()
		if riders == 2 {
			break
		}
		if t.Context().Err() != nil {
			t.Fatal("the second pull never joined")
		}
	}
	cancel()
	if err := <-first; !fault.Is(err, fault.Unavailable) || !strings.Contains(err.Error(), "canceled") {
		t.Errorf("cancelled pull: %v", err)
	}
	close(gate)
	if err := <-second; err != nil {
		t.Errorf("the other pull: %v", err)
	}
	if n := h.count(slow); n != 1 {
		t.Errorf("the layer was fetched %d times", n)
	}
	// All give up: the layer's temporary file goes.
	b2 := newBox(t)
	ctx, cancel = context.WithCancel(t.Context())
	h.set(func(w http.ResponseWriter, r *http.Request) {
		if strings.HasSuffix(r.URL.Path, slow) {
			w.Header().Set("Content-Length", "100000")
			_, _ = w.Write(make([]byte, 1000))
			w.(http.Flusher).Flush()
			cancel()
			<-r.Context().Done()
			return
		}
		inner(r).ServeHTTP(w, r)
	})
	if _, err := b2.Pull(ctx, ref, "", portlayer.Credentials{}, nil); err == nil {
		t.Error("a cancelled pull worked")
	}
}

func mustDiffID(t testing.TB, img v1.Image, i int) diffID {
	t.Helper()
	cf, err := img.ConfigFile()
	if err != nil {
		t.Fatal(err)
	}
	return diffID(cf.RootFS.DiffIDs[i].String())
}
