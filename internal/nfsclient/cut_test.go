package nfsclient

import (
	"context"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"strconv"
	"sync"
	"sync/atomic"
	"testing"
	"time"
)

// proxy is a wire between client and server that can be cut, delayed and spoilt.
type proxy struct {
	l      net.Listener
	target func() (net.Conn, error)
	spoil  func([]byte) []byte // of what the server says; nil leaves it
	mu     sync.Mutex
	conns  map[net.Conn]bool
	all    sync.WaitGroup
}

func newProxy(t *testing.T, o Options, spoil func([]byte) []byte) *proxy {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	dial := newDialer(o).dial
	p := &proxy{l: l, spoil: spoil, conns: map[net.Conn]bool{}, target: func() (net.Conn, error) {
		return dial(context.Background(), "tcp", net.JoinHostPort(o.Host, strconv.Itoa(o.Port)))
	}}
	p.all.Go(func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			p.all.Go(func() { p.serve(c) })
		}
	})
	t.Cleanup(func() {
		l.Close()
		p.cut()
		p.all.Wait()
	})
	return p
}

func (p *proxy) port() int { return p.l.Addr().(*net.TCPAddr).Port }

func (p *proxy) keep(c net.Conn) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.conns[c] = true
}

func (p *proxy) serve(near net.Conn) {
	far, err := p.target()
	if err != nil {
		near.Close()
		return
	}
	p.keep(near)
	p.keep(far)
	var both sync.WaitGroup
	both.Go(func() {
		_, _ = io.Copy(far, near)
		far.Close()
	})
	both.Go(func() {
		buf := make([]byte, 64<<10)
		for {
			n, err := far.Read(buf)
			if n > 0 {
				b := buf[:n]
				if p.spoil != nil {
					b = p.spoil(b)
				}
				if _, err := near.Write(b); err != nil {
					break
				}
			}
			if err != nil {
				break
			}
		}
		near.Close()
	})
	both.Wait()
}

// cut breaks every connection that there is.
func (p *proxy) cut() {
	p.mu.Lock()
	defer p.mu.Unlock()
	for c := range p.conns {
		c.Close()
	}
	clear(p.conns)
}

// through is o by way of the proxy; MOUNT goes the same way if the server has one port for both.
func (p *proxy) through(o Options) Options {
	o.Host = "127.0.0.1"
	if o.MountPort == o.Port {
		o.MountPort = p.port()
	}
	o.Port = p.port()
	o.Dial = nil
	return o
}

// The connection is cut again and again amid calls: each is done, or Lost, and the end is as if nothing had been.
func TestCut(t *testing.T) {
	onEvery(t, func(t *testing.T, s served, _ *Export) {
		p := newProxy(t, s.options, nil)
		o := p.through(s.options)
		if s.options.Version == V3 && s.options.MountPort == 0 {
			o.MountPort = mountBy(t, s.options)
		}
		e := open(t, o)
		var done, lost atomic.Int64
		var all sync.WaitGroup
		for i := range 8 {
			all.Go(func() {
				for j := range 200 {
					err := e.WriteFile(t.Context(), fmt.Sprintf("file%d", i), []byte(strconv.Itoa(j)), 0o644)
					if err == nil {
						done.Add(1)
					} else if wantReason(t, err, Lost); hasReason(err, Lost) {
						lost.Add(1)
					}
				}
			})
		}
		stop := make(chan struct{})
		var cutter sync.WaitGroup
		cutter.Go(func() {
			for {
				select {
				case <-stop:
					return
				case <-time.After(20 * time.Millisecond):
					p.cut()
				}
			}
		})
		all.Wait()
		close(stop)
		cutter.Wait()
		t.Logf("%d done, %d lost", done.Load(), lost.Load())
		if done.Load() == 0 {
			t.Error("no call was done")
		}
		for i := range 8 {
			name := fmt.Sprintf("file%d", i)
			for err := error(&Error{}); err != nil; {
				if err = e.WriteFile(t.Context(), name, []byte("end"), 0o644); err != nil {
					wantReason(t, err, Lost)
				}
			}
			if data, err := e.ReadFile(t.Context(), name, 10); err != nil || string(data) != "end" {
				t.Errorf("%q, %v", data, err)
			}
		}
	})
}

// mountBy is a port through which a server's mountd is reached, whose namespace it may be in.
func mountBy(t *testing.T, o Options) int {
	t.Helper()
	o.Port = 20048
	return newProxy(t, o, nil).port()
}

// What the server says is spoilt: calls fail in one of the ways that there are, and nothing else happens.
func TestSpoilt(t *testing.T) {
	onEvery(t, func(t *testing.T, s served, _ *Export) {
		var on atomic.Bool
		p := newProxy(t, s.options, func(b []byte) []byte {
			if on.Load() {
				for range 1 + rand.IntN(3) {
					b[rand.IntN(len(b))] ^= 1 << rand.IntN(8)
				}
			}
			return b
		})
		o := p.through(s.options)
		if s.options.Version == V3 && s.options.MountPort == 0 {
			o.MountPort = mountBy(t, s.options)
		}
		e := open(t, o)
		on.Store(true)
		for i := range 100 {
			ctx, cancel := context.WithTimeout(t.Context(), 20*time.Millisecond)
			name := strconv.Itoa(i)
			_, err := e.Mkdir(ctx, name, 0o755)
			err = errors.Join(err, e.WriteFile(ctx, name+"/file", []byte("x"), 0o644))
			_, why := e.Stat(ctx, name)
			err = errors.Join(err, why, e.ReadDir(ctx, "", func([]Entry) error { return nil }), e.RemoveAll(ctx, name))
			cancel()
			if err != nil && i < 3 {
				t.Log(err)
			}
		}
		on.Store(false)
		p.cut()
		for end := time.Now().Add(20 * time.Second); ; {
			ctx, cancel := context.WithTimeout(t.Context(), 5*time.Second)
			_, err := e.Stat(ctx, "")
			cancel()
			if err == nil {
				break
			}
			if time.Now().After(end) {
				t.Fatal(err)
			}
		}
	})
}
