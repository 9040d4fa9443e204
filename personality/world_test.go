package personality

import (
	"archive/tar"
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"io"
	"log/slog"
	"net"
	"net/http"
	"net/http/httptest"
	"net/netip"
	"net/url"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/moby/moby/client"
	"go.uber.org/goleak"

	"vch/hypervisor/fake"
	"vch/internal/broadcast"
	"vch/portlayer"
	"vch/portlayer/exec"
	"vch/portlayer/image"
	"vch/portlayer/network"
	"vch/portlayer/network/user"
	"vch/portlayer/record"
	"vch/portlayer/volume"
	"vch/portlayer/volume/vmdk"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// world is a whole VCH but for its virtual machines: the real services over the fake hypervisor, behind a Server that listens on a unix socket. Only tests
// name implementations here.
type world struct {
	t          *testing.T
	dir        string
	socket     string
	store      portlayer.DiskPath // of the volume store "default"
	more       []portlayer.VolumeStore
	server     *Server
	containers *exec.Service
	volumes    *volume.Service
	images     *image.Service
	events     *broadcast.Topic[portlayer.Event]
	http       *http.Client // whatever the host of a URL is, it talks to the Server
}

func newWorld(t *testing.T, more ...portlayer.VolumeStore) *world {
	t.Helper()
	ctx := t.Context()
	w := &world{t: t, dir: t.TempDir(), events: &broadcast.Topic[portlayer.Event]{}, more: more}
	must := func(err error) {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
	}
	log := slog.New(slog.DiscardHandler)
	db, err := record.Open(filepath.Join(w.dir, "records"))
	must(err)
	hv, err := fake.New(fake.Options{Dir: filepath.Join(w.dir, "fake")})
	must(err)
	w.store = hv.Disks().Join(portlayer.DiskPath(w.dir), "store")
	must(hv.Disks().MakeDir(ctx, w.store))
	store, err := vmdk.Open(ctx, vmdk.Options{Name: portlayer.DefaultStore, Location: string(w.store), Root: w.store, Disks: hv.Disks(), Driver: "fake-vmdk", DefaultCapacity: 8 * portlayer.MiB})
	must(err)
	w.volumes, err = volume.New(volume.Options{Stores: append(w.more, store), AnonymousCapacity: 8 * portlayer.MiB, DefaultCapacity: 8 * portlayer.MiB, Publish: w.events.Publish, Log: log})
	must(err)
	w.images, err = image.New(ctx, image.Options{Dir: filepath.Join(w.dir, "images"), Disks: hv.Disks(), DB: db, Publish: w.events.Publish, Log: log,
		InUse: func(id portlayer.ImageID) []portlayer.ContainerID { return w.containers.InUse(id) }})
	must(err)
	// Of no host are these addresses (RFC 5737): what a container is given does not depend on where the test runs.
	hosts := func() []netip.Prefix { return []netip.Prefix{netip.MustParsePrefix("192.0.2.0/24")} }
	networks, err := network.New(ctx, network.Options{DB: db, Backend: user.New(user.Options{Log: log}), Publish: w.events.Publish, Log: log, Hosts: hosts})
	must(err)
	w.containers, err = exec.New(ctx, exec.Options{DB: db, Hypervisor: hv, Volumes: w.volumes, Binder: w.volumes, Images: w.images, Wiring: networks, Publish: w.events.Publish, Log: log,
		Dir: filepath.Join(w.dir, "containers"), Memory: 256 * portlayer.MiB, CPUs: 1e9})
	must(err)
	w.volumes.Reach(w.containers)
	w.server, err = New(Options{Containers: w.containers, Volumes: w.volumes, Images: w.images, Networks: networks, Events: w.events, Machine: hv.Info,
		ID: "4d65822a-c6c1-4e5e-9b86-2f4a7c1b1f0e", Name: "box", Version: "0.1.0", Commit: "abc", BuildTime: "2026-11-24T20:00:00Z", StateDir: w.dir, Defaults: Defaults{Memory: 256 * portlayer.MiB, CPUs: 1e9}, Log: log})
	must(err)
	w.listen()
	t.Cleanup(func() {
		ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
		defer cancel()
		all, err := w.containers.List(ctx)
		for _, c := range all {
			err = errors.Join(err, w.containers.Remove(ctx, string(c.ID), true, true))
		}
		if err := errors.Join(err, w.containers.Close(ctx), networks.Close(), w.images.Close(), hv.Close(), db.Close()); err != nil {
			t.Error(err)
		}
	})
	return w
}

// listen serves on a socket of its own: a path of t.TempDir may be longer than a socket's may be.
func (w *world) listen() {
	dir, err := os.MkdirTemp("", "vch")
	if err != nil {
		w.t.Fatal(err)
	}
	w.socket = filepath.Join(dir, "s")
	l, err := net.Listen("unix", w.socket)
	if err != nil {
		w.t.Fatal(err)
	}
	srv := httptest.NewUnstartedServer(w.server)
	srv.Listener.Close()
	srv.Listener = l
	srv.Start()
	transport := &http.Transport{DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
		return (&net.Dialer{}).DialContext(ctx, "unix", w.socket)
	}}
	w.http = &http.Client{Transport: transport}
	w.t.Cleanup(func() {
		transport.CloseIdleConnections()
		srv.CloseClientConnections()
		srv.Close()
		if err := os.RemoveAll(dir); err != nil {
			w.t.Error(err)
		}
	})
}

// client is the real Go client; version "" negotiates.
func (w *world) client(version string) *client.Client {
	w.t.Helper()
	opts := []client.Opt{client.WithHost("unix://" + w.socket)}
	if version != "" {
		opts = append(opts, client.WithAPIVersion(version))
	}
	c, err := client.New(opts...)
	if err != nil {
		w.t.Fatal(err)
	}
	w.t.Cleanup(func() {
		if err := c.Close(); err != nil {
			w.t.Error(err)
		}
	})
	return c
}

// call sends one request, with a JSON body unless it is "", and gives the status and the answer.
func (w *world) call(method, path, body string) (int, string) {
	w.t.Helper()
	header := http.Header{}
	if body != "" {
		header.Set("Content-Type", "application/json")
	}
	return w.send(method, path, header, strings.NewReader(body))
}

func (w *world) send(method, path string, header http.Header, body io.Reader) (int, string) {
	w.t.Helper()
	r, err := http.NewRequestWithContext(w.t.Context(), method, "http://docker"+path, body)
	if err != nil {
		w.t.Fatal(err)
	}
	r.Header = header
	answer, err := w.http.Do(r)
	if err != nil {
		w.t.Fatal(err)
	}
	defer answer.Body.Close()
	data, err := io.ReadAll(answer.Body)
	if err != nil {
		w.t.Fatal(err)
	}
	return answer.StatusCode, strings.TrimSpace(string(data))
}

// ask is call for an answer that must be good, decoded.
func (w *world) ask(v any, method, path, body string) {
	w.t.Helper()
	status, answer := w.call(method, path, body)
	if status/100 != 2 {
		w.t.Fatalf("%s %s: %d %s", method, path, status, answer)
	}
	if v != nil {
		if err := json.Unmarshal([]byte(answer), v); err != nil {
			w.t.Fatalf("%s %s: %v in %s", method, path, err, answer)
		}
	}
}

// refused checks that a request is answered with status and a message that has text in it.
func (w *world) refused(status int, text, method, path, body string) {
	w.t.Helper()
	got, answer := w.call(method, path, body)
	var m struct{ Message string }
	if err := json.Unmarshal([]byte(answer), &m); err != nil || got != status || !strings.Contains(m.Message, text) {
		w.t.Errorf("%s %s: %d %s\nwant %d %s", method, path, got, answer, status, text)
	}
}

// importImage makes an image of a small root file system and gives its id.
func (w *world) importImage(name string, changes ...string) string {
	w.t.Helper()
	repo, tag, _ := strings.Cut(name, ":")
	q := url.Values{"fromSrc": {"-"}, "repo": {repo}, "tag": {tag}, "changes": changes}
	status, answer := w.send("POST", "/images/create?"+q.Encode(), http.Header{}, bytes.NewReader(rootTar(w.t, map[string]string{"etc/name": name})))
	lines := strings.Split(answer, "\n")
	var last struct{ Status string }
	if err := json.Unmarshal([]byte(lines[len(lines)-1]), &last); err != nil || status != http.StatusOK || !strings.HasPrefix(last.Status, "sha256:") {
		w.t.Fatalf("import %s: %d %s", name, status, answer)
	}
	return last.Status
}

// rootTar is a root file system with these files.
func rootTar(t *testing.T, files map[string]string) []byte {
	t.Helper()
	var b bytes.Buffer
	tw := tar.NewWriter(&b)
	for name, content := range files {
		err := tw.WriteHeader(&tar.Header{Name: name, Mode: 0o644, Size: int64(len(content)), Typeflag: tar.TypeReg})
		if err == nil {
			_, err = io.WriteString(tw, content)
		}
		if err != nil {
			t.Fatal(err)
		}
	}
	if err := tw.Close(); err != nil {
		t.Fatal(err)
	}
	return b.Bytes()
}
