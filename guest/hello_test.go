package guest

import (
	"bytes"
	"context"
	"errors"
	"io"
	"net"
	"strings"
	"sync"
	"testing"
	"time"

	"vch/internal/fault"
)

func hello(version byte, nonce string) []byte {
	b := append(append([]byte{}, helloMagic[:]...), version)
	return append(b, (nonce + strings.Repeat("-", nonceLen))[:nonceLen]...)
}

// port plays a virtio-serial port: hosts come and go at one end, and the guest's end sees one stream of bytes without an end, with all that hosts left in it.
type port struct{ net.Conn }

func (port) Close() error { return nil }

// soon is a wait before the next hello that a test has the time for.
const soon = 2 * time.Millisecond

// late is a host's end of a pipe in which others left stale.
type late struct {
	net.Conn
	stale []byte
}

func (c *late) Write(p []byte) (int, error) {
	if stale := c.stale; len(stale) > 0 {
		c.stale = nil
		if _, err := c.Conn.Write(stale); err != nil {
			return 0, err
		}
	}
	return c.Conn.Write(p)
}

// What hosts before left in the pipe, hellos of theirs included, does not keep the next one out.
func TestStaleBytesBeforeTheHello(t *testing.T) {
	partial := hello(Version, "cut off")
	for name, stale := range map[string][]byte{
		"nothing":                   nil,
		"noise":                     []byte("\x00noise\xf5vch"),
		"a hello":                   hello(Version, "stale"),
		"two hellos":                append(hello(Version, "stale"), hello(Version, "staler")...),
		"a hello of another vch":    hello(Version+1, "stale"),
		"half a hello":              partial[:12],
		"a hello and a session":     append(hello(Version, "stale"), 0, 1, 0, 1, 0, 0, 0, 1, 0, 0, 0, 0), // yamux: window update, SYN, stream 1
		"a hello and half a header": append(hello(Version, "stale"), 0, 1, 0),
	} {
		t.Run(name, func(t *testing.T) {
			ours, theirs := net.Pipe()
			ctx, cancel := context.WithCancel(t.Context())
			served := make(chan struct{})
			go func() { // as the tether does: whatever ends a session, the port is served again
				defer close(served)
				for ctx.Err() == nil {
					_ = Serve(ctx, port{theirs}, newHandler())
				}
			}()
			c, err := connect(limited(t), &late{Conn: ours, stale: stale}, soon)
			if err != nil {
				t.Fatal(err)
			}
			if st, err := c.Status(limited(t)); err != nil || st.Phase != Waiting {
				t.Errorf("status %+v, %v", st, err)
			}
			c.Close()
			cancel()
			theirs.Close()
			<-served
		})
	}
}

// A host that was away finds bytes of the guest to an earlier one.
func TestStaleBytesBeforeTheAnswer(t *testing.T) {
	ours, theirs := net.Pipe()
	served := make(chan struct{})
	go func() {
		defer close(served)
		_, _ = theirs.Write(append([]byte("\x00left over\xf5vch\xfa"), hello(Version, "somebody else's")...))
		_ = Serve(context.Background(), theirs, newHandler())
	}()
	c, err := Connect(limited(t), ours)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := c.Status(limited(t)); err != nil {
		t.Error(err)
	}
	c.Close()
	<-served
}

// The guest boots slowly: the host repeats its hello, and every answer that comes late is skipped.
func TestHellosPileUpWhileTheGuestBoots(t *testing.T) {
	ours, near := net.Pipe()
	far, theirs := net.Pipe()
	var wires, serving sync.WaitGroup
	serving.Go(func() {
		piled := make([]byte, 5*helloLen) // the pipe between has room, as a real one
		if _, err := io.ReadFull(near, piled); err != nil {
			t.Error(err)
		}
		wires.Go(func() { _, _ = io.Copy(near, far); near.Close() })
		wires.Go(func() { _, _ = io.Copy(far, io.MultiReader(bytes.NewReader(piled), near)); far.Close() })
		if err := Serve(context.Background(), theirs, newHandler()); err != nil {
			t.Error(err)
		}
	})
	c, err := connect(limited(t), ours, soon)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := c.Status(limited(t)); err != nil {
		t.Error(err)
	}
	c.Close()
	serving.Wait()
	wires.Wait()
}

func TestOtherVersionIsRefused(t *testing.T) {
	ours, theirs := net.Pipe()
	go func() {
		theirs.Write([]byte("noise"))
		var nonce []byte
		_ = scanHello(theirs, func(_ byte, n []byte) bool { nonce = bytes.Clone(n); return true })
		theirs.Write(hello(Version+1, string(nonce)))
	}()
	_, err := Connect(limited(t), ours)
	if !fault.Is(err, fault.Unavailable) || !strings.Contains(err.Error(), "version 2") {
		t.Errorf("err = %v", err)
	}
	if _, err := theirs.Write([]byte{0}); err == nil {
		t.Error("the refused connection is still open")
	}
}

// Connect owns the connection also when it fails, and honours its context.
func TestConnectGivesUp(t *testing.T) {
	ours, theirs := net.Pipe()
	ctx, cancel := context.WithTimeout(t.Context(), 20*time.Millisecond)
	defer cancel()
	if _, err := Connect(ctx, ours); !fault.Is(err, fault.Unavailable) {
		t.Errorf("a guest that is silent: %v", err)
	}
	if _, err := theirs.Read(make([]byte, 1)); err != io.EOF {
		t.Errorf("the connection is still open: %v", err)
	}
	ours, theirs = net.Pipe()
	theirs.Close()
	if _, err := Connect(limited(t), ours); !fault.Is(err, fault.Unavailable) {
		t.Errorf("a guest that is gone: %v", err)
	}
}

// A host that leaves before, in or after its hello is no error of the guest's.
func TestHostLeavesEarly(t *testing.T) {
	for _, n := range []int{0, 5, helloLen} {
		ours, theirs := net.Pipe()
		served := make(chan error, 1)
		go func() { served <- Serve(context.Background(), theirs, newHandler()) }()
		if _, err := ours.Write(hello(Version, "n")[:n]); err != nil {
			t.Fatal(err)
		}
		if n == helloLen {
			if _, err := io.ReadFull(ours, make([]byte, helloLen)); err != nil {
				t.Fatal(err)
			}
		}
		ours.Close()
		if err := <-served; err != nil {
			t.Errorf("left after %d bytes: %v", n, err)
		}
		if _, err := theirs.Read(make([]byte, 1)); !errors.Is(err, io.ErrClosedPipe) { // EOF: only the host's end is closed
			t.Errorf("left after %d bytes: the guest did not close its end: %v", n, err)
		}
	}
}
