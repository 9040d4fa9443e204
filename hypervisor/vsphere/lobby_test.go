package vsphere

import (
	"bytes"
	"context"
	"fmt"
	"log/slog"
	"net"
	"strings"
	"sync"
	"testing"
	"time"

	"vch/guest"
	"vch/internal/fault"
	"vch/portlayer"
)

// waiter is a connection from an address, which notes whether it was closed.
type waiter struct {
	net.Conn
	from   net.TCPAddr
	closed bool
}

func (w *waiter) RemoteAddr() net.Addr { return &w.from }
func (w *waiter) Close() error         { w.closed = true; return nil }

// Who has most waiting makes room, and its oldest does.
func TestLobby(t *testing.T) {
	var l lobby
	from := func(host byte, port int) *waiter {
		return &waiter{from: net.TCPAddr{IP: net.IPv4(10, 0, 0, host), Port: port}}
	}
	honest := from(1, 1)
	l.enter(honest)
	var strangers []*waiter
	for n := range 2 * mostWaiting {
		strangers = append(strangers, from(2, n))
		l.enter(strangers[n])
	}
	for n, w := range strangers {
		if old := n <= mostWaiting; w.closed != old {
			t.Fatalf("%d of %d: closed is %v", n, len(strangers), w.closed)
		}
	}
	if honest.closed || len(l.waiting) != mostWaiting {
		t.Errorf("the only one from its address is closed: %v; %d wait", honest.closed, len(l.waiting))
	}
	for range 2 {
		l.leave(honest)
	}
	l.leave(strangers[0])
	if honest.closed || len(l.waiting) != mostWaiting-1 {
		t.Errorf("after one has left, closed: %v, %d wait", honest.closed, len(l.waiting))
	}
}

// Not all refusals are said, and how many were not is.
func TestRefusals(t *testing.T) {
	var r refusals
	now := time.Unix(1e9, 0)
	said := 0
	for range 3 * mostRefusals {
		if say, _ := r.next(now); say {
			said++
		}
	}
	if say, unsaid := r.next(now.Add(refusalSpan)); said != mostRefusals || !say || unsaid != 2*mostRefusals {
		t.Errorf("%d were said, then %v after %d", said, say, unsaid)
	}
}

// quietWriter is what a log has said.
type quietWriter struct {
	mu   sync.Mutex // guards below
	said bytes.Buffer
}

func (w *quietWriter) Write(p []byte) (int, error) {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.said.Write(p)
}

// Strangers who say nothing do not keep a guest out, though they come from its address; those who say much fill no log, and nothing is done by the name that they say.
func TestEndpointStrangers(t *testing.T) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	var log quietWriter
	e, hangUp, err := newEndpoint(l, t.TempDir(), func(portlayer.ContainerID) {}, slog.New(slog.NewTextHandler(&log, nil)))
	if err != nil {
		t.Fatal(err)
	}
	defer hangUp()
	dial := func() net.Conn {
		t.Helper()
		conn, err := net.Dial("tcp", l.Addr().String())
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { conn.Close() })
		return conn
	}
	identity, err := guest.NewIdentity("guest")
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithTimeout(t.Context(), 15*time.Second) // less than a silent one is heard for (guest.Meet)
	defer cancel()
	contact := guest.Contact{Host: guest.Fingerprint(e.identity.Certificate[0]), Machine: "../" + strings.Repeat("x", 3000)}
	for n := range 3 * mostRefusals {
		if n%2 == 1 {
			contact.Machine = fmt.Sprintf("<%d>", n)
		}
		if _, err := contact.Call(ctx, dial(), identity, guest.ForChannel); !fault.Is(err, fault.Invalid) {
			t.Fatalf("machine %.20q: %v", contact.Machine, err)
		}
	}
	for range mostWaiting + 20 {
		dial()
	}
	contact.Machine = "m"
	if contact.Token, err = e.invite("m"); err != nil {
		t.Fatal(err)
	}
	conn, err := contact.Call(ctx, dial(), identity, guest.ForChannel)
	if err != nil {
		t.Fatalf("a guest among silent strangers: %v", err)
	}
	conn.Close()
	hangUp()
	lines := strings.Split(strings.TrimSpace(log.said.String()), "\n")
	if len(lines) > mostRefusals {
		t.Errorf("%d lines are in the log", len(lines))
	}
	for _, line := range lines {
		if len(line) > 600 || !strings.Contains(line, `machine=""`) {
			t.Errorf("the log says %s", line)
		}
	}
}
