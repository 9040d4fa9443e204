package nfsclient

import (
	"context"
	"errors"
	"net"
	"os"
	"testing"
	"time"

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

func startGoNFS(t *testing.T) served {
	dir := t.TempDir()
	port := nfstest.Another(t, dir)
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
