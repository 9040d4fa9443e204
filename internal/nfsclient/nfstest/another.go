package nfstest

import (
	"context"
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
)

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

// Another serves dir by the other implementation, go-nfs: version 3, in this process, at a port of the loopback that is mountd's, too; whatever the path. It ends with the test. Its log is off.
func Another(t testing.TB, dir string) (port int) {
	t.Helper()
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
	return l.Addr().(*net.TCPAddr).Port
}
