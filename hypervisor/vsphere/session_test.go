package vsphere

import (
	"bytes"
	"context"
	"errors"
	"io"
	"net"
	"net/url"
	"sync"
	"testing"
	"time"

	"github.com/vmware/govmomi/vim25/methods"
	"github.com/vmware/govmomi/vim25/soap"
	"github.com/vmware/govmomi/vim25/types"

	"vch/internal/fault"
	"vch/portlayer"
)

// wire is a way to a server that can fall silent: connections are there, new ones too, and nothing comes through.
type wire struct {
	net.Listener
	all sync.WaitGroup

	mu    sync.Mutex // guards below
	open  chan struct{}
	conns []net.Conn
}

func newWire(t *testing.T, server string) *wire {
	t.Helper()
	l := &wire{open: make(chan struct{})}
	close(l.open)
	var err error
	if l.Listener, err = net.Listen("tcp", "127.0.0.1:0"); err != nil {
		t.Fatal(err)
	}
	l.all.Go(func() {
		for {
			conn, err := l.Accept()
			if err != nil {
				return
			}
			far, err := net.Dial("tcp", server)
			if err != nil {
				conn.Close()
				continue
			}
			l.mu.Lock()
			l.conns = append(l.conns, conn, far)
			l.mu.Unlock()
			l.all.Go(func() { l.pass(far, conn) })
			l.all.Go(func() { l.pass(conn, far) })
		}
	})
	t.Cleanup(func() {
		l.Close()
		l.silent(false)
		l.mu.Lock()
		for _, c := range l.conns {
			c.Close()
		}
		l.mu.Unlock()
		l.all.Wait()
	})
	return l
}

func (l *wire) pass(to, from net.Conn) {
	defer to.Close()
	buf := make([]byte, 4096)
	for {
		n, err := from.Read(buf)
		l.mu.Lock()
		open := l.open
		l.mu.Unlock()
		<-open
		if _, werr := to.Write(buf[:n]); err != nil || werr != nil {
			return
		}
	}
}

// silent stops what comes through, or lets it go on.
func (l *wire) silent(on bool) {
	l.mu.Lock()
	defer l.mu.Unlock()
	select {
	case <-l.open:
		if on {
			l.open = make(chan struct{})
		}
	default:
		if !on {
			close(l.open)
		}
	}
}

// onLine is a scene whose server can fall silent, with calls of at most a second.
func onLine(t *testing.T) (*scene, *wire) {
	t.Helper()
	s := newScene(t)
	l := newWire(t, s.sim.URL().Host)
	o := options(t, s.sim, t.TempDir())
	o.Server.URL, o.limit, o.Tether = (&url.URL{Scheme: "https", Host: l.Addr().String()}).String(), time.Second, []byte("a tether")
	s.must(s.h.Close())
	s.h = open(t, o)
	return s, l
}

// A server that takes connections and answers nothing makes no call wait for ever, whoever logs in; when it answers again all goes on.
func TestSilentServer(t *testing.T) {
	slow(t)
	for _, out := range []bool{false, true} { // each on a server of its own: what was sent in vain may come when it is not silent any more
		s, l := onLine(t)
		d := s.h.Disks()
		data := s.disk("data")
		off, err := s.h.Define(t.Context(), spec("off"))
		s.must(err)
		on, err := s.h.Define(t.Context(), spec("on"))
		s.must(err)
		s.must(on.PowerOn(t.Context()))
		s.must(d.CreateDir(t.Context(), d.Join(s.dir, "v"), small))
		l.silent(true)
		if out { // all have to wait for the one who logs in
			s.sim.EndSessions()
			_, epoch, _ := s.h.s.now()
			s.h.s.expired(epoch)
		}
		ops := map[string]func(context.Context) error{
			"stat":     func(ctx context.Context) error { _, err := d.Stat(ctx, data); return err },
			"list":     func(ctx context.Context) error { _, err := d.List(ctx, s.dir); return err },
			"read":     func(ctx context.Context) error { _, err := d.ReadFile(ctx, data); return err },
			"write":    func(ctx context.Context) error { return d.WriteFile(ctx, d.Join(s.dir, "file"), []byte("x")) },
			"open":     func(ctx context.Context) error { _, _, err := d.Open(ctx, data); return err },
			"make":     func(ctx context.Context) error { return d.CreateDir(ctx, d.Join(s.dir, "new"), small) },
			"remove":   func(ctx context.Context) error { return d.RemoveDir(ctx, d.Join(s.dir, "v")) },
			"define":   func(ctx context.Context) error { _, err := s.h.Define(ctx, spec("new")); return err },
			"start":    off.PowerOn,
			"stop":     on.PowerOff,
			"undefine": off.Undefine,
		}
		var all sync.WaitGroup
		for name, op := range ops {
			all.Go(func() {
				began := time.Now()
				err := op(t.Context())
				if took := time.Since(began); took > 20*time.Second {
					t.Errorf("%s: %v after %v", name, err, took)
				}
				s.want(name, err, fault.Unavailable)
			})
			all.Go(func() { // and no longer than the caller wants to
				ctx, cancel := context.WithTimeout(t.Context(), 200*time.Millisecond)
				defer cancel()
				began := time.Now()
				if name != "make" && op(ctx) == nil {
					t.Errorf("%s: done", name)
				}
				if took := time.Since(began); took > 3*time.Second {
					t.Errorf("%s ended %v after it began", name, took)
				}
			})
		}
		all.Wait()
		l.silent(false)
		if _, err := d.Stat(t.Context(), data); err != nil {
			t.Errorf("afterwards: %v", err)
		}
		if err := d.WriteFile(t.Context(), d.Join(s.dir, "file"), []byte("x")); err != nil {
			t.Errorf("afterwards: %v", err)
		}
	}
}

// A transfer goes on as long as bytes move: it does not matter how long whoever has them takes.
func TestTransfersMayBeSlow(t *testing.T) {
	s, l := onLine(t)
	d := s.h.Disks()
	file, size := d.Join(s.dir, "long.vmdk"), portlayer.Bytes(32<<20)
	data := bytes.Repeat([]byte("x"), int(size))
	rest := func() io.Reader { time.Sleep(1500 * time.Millisecond); return bytes.NewReader(data[size/2:]) }
	s.must(d.CreateFrom(t.Context(), file, size, io.MultiReader(bytes.NewReader(data[:size/2]), &late{open: rest})))
	r, _, err := d.Open(t.Context(), file)
	s.must(err)
	_, err = io.CopyN(io.Discard, r, int64(size/2))
	s.must(err)
	time.Sleep(1500 * time.Millisecond)
	n, err := io.Copy(io.Discard, r)
	if err != nil || n != int64(size/2) {
		t.Errorf("%d bytes more, %v", n, err)
	}
	s.must(r.Close())
	// But the server has to go on.
	r, _, err = d.Open(t.Context(), file)
	s.must(err)
	l.silent(true)
	if _, err := io.Copy(io.Discard, r); !errors.As(err, new(silent)) {
		t.Errorf("a download from one who is silent: %v", err)
	}
	s.must(r.Close())
	l.silent(false)
	muted := &late{open: func() io.Reader { l.silent(true); return bytes.NewReader(data[size/2:]) }}
	err = d.CreateFrom(t.Context(), d.Join(s.dir, "other.vmdk"), size, io.MultiReader(bytes.NewReader(data[:size/2]), muted))
	s.want("an upload to one who falls silent", err, fault.Unavailable)
	l.silent(false)
}

// late is opened when it is read.
type late struct {
	open func() io.Reader
	io.Reader
}

func (l *late) Read(p []byte) (int, error) {
	if l.Reader == nil {
		l.Reader = l.open()
	}
	return l.Reader.Read(p)
}

// deaf answers nothing.
type deaf struct{}

func (deaf) RoundTrip(ctx context.Context, _, _ soap.HasFault) error {
	<-ctx.Done()
	return ctx.Err()
}

// The question that is open at all times has a limit, too: what the server was asked to wait, and a call's.
func TestWaitForUpdatesHasLimit(t *testing.T) {
	l := limiter{deaf{}, 100 * time.Millisecond}
	for wait, want := range map[int32]time.Duration{0: 100 * time.Millisecond, 1: 1100 * time.Millisecond} {
		_, err := methods.WaitForUpdatesEx(t.Context(), l, &types.WaitForUpdatesEx{Options: &types.WaitOptions{MaxWaitSeconds: &wait}})
		if err != silent(want) {
			t.Errorf("%v, want %v", err, silent(want))
		}
	}
}
