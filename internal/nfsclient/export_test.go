package nfsclient

import (
	"context"
	"errors"
	"net"
	"os"
	"path/filepath"
	"sync"
	"testing"
	"time"

	"github.com/go-git/go-billy/v5"
	"github.com/go-git/go-billy/v5/osfs"
	gonfs "github.com/willscott/go-nfs"
	"github.com/willscott/go-nfs/helpers"
	"go.uber.org/goleak"

	"vch/internal/nfsclient/nfstest"
)

// No Open leaves a goroutine behind its Close.
func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// served is a server to be tested against.
type served struct {
	options Options
	dir     string            // on this machine's disk
	lacks   map[string]string // subtest: why the server cannot do it
}

// servers are all servers that every test of the suite runs against.
var servers = []struct {
	name  string
	start func(t *testing.T) served
}{
	{"go-nfs", startGoNFS},
	{"ganesha-v3", func(t *testing.T) served { return ganesha(t, nfstest.Config{V3: true}) }},
	{"ganesha-v4.1", func(t *testing.T) served { return ganesha(t, nfstest.Config{}) }},
}

func optionsOf(s *nfstest.Server, v Version) Options {
	return Options{Host: s.Host, Port: s.Port, Version: v, Path: s.Path, Dial: func(ctx context.Context, network, address string) (net.Conn, error) {
		return s.DialBy(ctx, network, address, func(ctx context.Context, network, address string) (net.Conn, error) {
			c, _, err := DialReserved(ctx, network, address)
			return c, err
		})
	}}
}

func ganesha(t *testing.T, c nfstest.Config) served {
	s := nfstest.Start(t, c)
	if c.V3 {
		return served{options: optionsOf(s, V3), dir: s.Dir}
	}
	return served{options: optionsOf(s, V4), dir: s.Dir}
}

// changing is an osfs whose attributes can be changed, as go-nfs wants it.
type changing struct{ billy.Filesystem }

func (c changing) on(name string) string { return filepath.Join(c.Root(), name) }

func (c changing) Chmod(name string, mode os.FileMode) error { return os.Chmod(c.on(name), mode) }
func (c changing) Lchown(name string, uid, gid int) error    { return os.Lchown(c.on(name), uid, gid) }
func (c changing) Chown(name string, uid, gid int) error     { return os.Chown(c.on(name), uid, gid) }
func (c changing) Chtimes(name string, atime, mtime time.Time) error {
	return os.Chtimes(c.on(name), atime, mtime)
}

// heard is a listener that knows its connections: go-nfs never closes one.
type heard struct {
	net.Listener
	mu    sync.Mutex
	conns []net.Conn
}

func (h *heard) Accept() (net.Conn, error) {
	c, err := h.Listener.Accept()
	if err == nil {
		h.mu.Lock()
		h.conns = append(h.conns, c)
		h.mu.Unlock()
	}
	return c, err
}

func startGoNFS(t *testing.T) served {
	dir := t.TempDir()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	h := &heard{Listener: l}
	gonfs.Log.SetLevel(gonfs.PanicLevel)
	done := make(chan struct{})
	ctx, cancel := context.WithCancel(context.Background())
	server := gonfs.Server{Handler: helpers.NewCachingHandler(helpers.NewNullAuthHandler(changing{osfs.New(dir)}), 200000), Context: ctx}
	go func() {
		_ = server.Serve(h)
		close(done)
	}()
	t.Cleanup(func() {
		cancel()
		l.Close()
		<-done
		for _, c := range h.conns {
			c.Close()
		}
	})
	port := l.Addr().(*net.TCPAddr).Port
	s := served{options: Options{Host: "127.0.0.1", Port: port, MountPort: port, Version: V3, Path: "/"}, dir: dir, lacks: map[string]string{
		"special bits": "it passes on Go's FileMode, which has setuid, setgid and sticky elsewhere",
		"kinds":        "it says NFS3ERR_ACCES for mkdir on a file's name and below a file, and its REMOVE removes directories",
		"not empty":    "it says NFS3ERR_IO for a directory that is not empty",
		"dangling":     "it makes the file that a link points to, where there is none yet",
		"long name":    "it allows 255 characters more than the disk",
		"changed dir":  "it lists a directory from a cache",
	}}
	if os.Geteuid() != 0 {
		s.lacks["owners"] = "it runs in this process, which is not root's"
	}
	return s
}

func open(t *testing.T, o Options) *Export {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second)
	defer cancel()
	e, err := Open(ctx, o)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { e.Close() })
	return e
}

// cannot skips a part of a test that a server is known to fail, and says so.
func (s served) cannot(t *testing.T, what string) bool {
	t.Helper()
	why, ok := s.lacks[what]
	if ok {
		t.Logf("left out, %s: %s", what, why)
	}
	return ok
}

func wantReason(t *testing.T, err error, want Reason) {
	t.Helper()
	var e *Error
	if !errors.As(err, &e) {
		t.Errorf("%v is no *Error; want %q", err, want)
	} else if e.Reason != want {
		t.Errorf("%v has reason %q; want %q", err, e.Reason, want)
	}
}

func check(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

func p32(v uint32) *uint32 { return &v }
