package guest

import (
	"context"
	"crypto/tls"
	"net"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"vch/internal/fault"
)

// A guest and its host meet only if each is who the other expects.
func TestMeet(t *testing.T) {
	identity := func() (tls.Certificate, string) {
		c, err := NewIdentity("test")
		if err != nil {
			t.Fatal(err)
		}
		return c, Fingerprint(c.Certificate[0])
	}
	host, hostPrint := identity()
	own, ownPrint := identity()
	_, otherPrint := identity()
	meet := func(c Contact, purpose Purpose, admit func(Introduction, string) error) (guestErr, hostErr error) {
		a, b := loopback(t)
		done := make(chan error, 1)
		var hosts net.Conn
		go func() {
			_, conn, err := Meet(t.Context(), b, host, admit)
			hosts = conn
			done <- err
		}()
		conn, err := c.Call(t.Context(), a, own, purpose)
		herr := <-done
		if err == nil && herr == nil {
			go func() { hosts.Write([]byte("hello")) }()
			buf := make([]byte, 5)
			if _, err := conn.Read(buf); err != nil || string(buf) != "hello" {
				t.Errorf("read %q, %v", buf, err)
			}
			conn.Close()
			hosts.Close()
		}
		return err, herr
	}
	good := Contact{Address: "a", Host: hostPrint, Machine: "m", Token: "t"}
	var said Introduction
	var print string
	if g, h := meet(good, ForFrames, func(i Introduction, f string) error { said, print = i, f; return nil }); g != nil || h != nil {
		t.Errorf("%v, %v", g, h)
	}
	if diff := cmp.Diff(Introduction{Version: Version, Machine: "m", Token: "t", Purpose: ForFrames}, said); diff != "" || print != ownPrint {
		t.Errorf("%s: %s", print, diff)
	}
	wrong := good
	wrong.Host = otherPrint
	if g, h := meet(wrong, ForChannel, func(Introduction, string) error { t.Error("a guest that was refused by itself came in"); return nil }); !fault.Is(g, fault.Unavailable) || h == nil {
		t.Errorf("another host: %v, %v", g, h)
	}
	if g, h := meet(good, ForChannel, func(Introduction, string) error { return fault.New(fault.Denied, "no") }); !fault.Is(g, fault.Denied) || !fault.Is(h, fault.Denied) || !strings.Contains(g.Error(), "no") {
		t.Errorf("not let in: %v, %v", g, h)
	}
	long := good
	long.Token = strings.Repeat("t", maxIntroduction)
	if g, h := meet(long, ForChannel, func(Introduction, string) error { t.Error("a long introduction was heard"); return nil }); g == nil || h == nil {
		t.Errorf("a long introduction: %v, %v", g, h)
	}
	if g, h := meet(good, "coffee", func(Introduction, string) error { return nil }); !fault.Is(g, fault.Invalid) || h == nil {
		t.Errorf("for coffee: %v, %v", g, h)
	}
}

// loopback is a connection with buffers, as TLS wants it: both ends may write at once.
func loopback(t *testing.T) (a, b net.Conn) {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	if a, err = net.Dial("tcp", l.Addr().String()); err == nil {
		b, err = l.Accept()
	}
	if err != nil {
		t.Fatal(err)
	}
	return a, b
}

// Who says nothing is not waited for for ever.
func TestMeetSilence(t *testing.T) {
	host, err := NewIdentity("test")
	if err != nil {
		t.Fatal(err)
	}
	a, b := loopback(t)
	defer a.Close()
	ctx, cancel := context.WithTimeout(t.Context(), 50*time.Millisecond)
	defer cancel()
	if _, _, err := Meet(ctx, b, host, nil); err == nil {
		t.Error("a silent guest was met")
	}
}

// What a machine carries and what comes at the start make the config again.
func TestCarried(t *testing.T) {
	whole := ExecutorConfig{ID: "c", Hostname: "h", Mounts: []MountSpec{{Source: "label://x", Target: "/d"}}, Files: []File{{Path: "/etc/hosts"}}, Seats: map[string]Seat{"d": {Slot: 160}},
		Network: Network{Resolver: true}, Clock: time.Unix(5, 0).UTC(), Entropy: []byte{1}, Process: &Process{Args: []string{"sh"}, TTY: true, Rows: 3, Cols: 4}}
	text, err := whole.Carried().Pack()
	if err != nil || strings.ContainsAny(text, "\n ") {
		t.Fatalf("%q, %v", text, err)
	}
	carried, err := Unpack(text)
	if err != nil || carried.Entropy != nil || carried.Files != nil || carried.Seats != nil || !carried.Clock.IsZero() {
		t.Fatalf("%+v, %v", carried, err)
	}
	later := whole
	p := *whole.Process
	p.Rows = 9
	later.Process = &p
	rest := later.Rest()
	if !rest.AtStart || rest.Mounts != nil || rest.Process.Args != nil {
		t.Errorf("the rest is %+v", rest)
	}
	got, err := carried.With(rest)
	if diff := cmp.Diff(later, got); err != nil || diff != "" {
		t.Errorf("%v: %s", err, diff)
	}
	rest.ID = "other"
	if _, err := carried.With(rest); !fault.Is(err, fault.Conflict) {
		t.Errorf("another container's: %v", err)
	}
	for _, bad := range []string{"", "x", "H4sI", text[:len(text)/2]} {
		if _, err := Unpack(bad); !fault.Is(err, fault.Invalid) {
			t.Errorf("%.10q: %v", bad, err)
		}
	}
}
