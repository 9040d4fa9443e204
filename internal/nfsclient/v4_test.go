package nfsclient

import (
	"context"
	"strconv"
	"sync"
	"testing"
	"time"

	"vch/internal/nfsclient/nfstest"
)

func openV4(t *testing.T, c nfstest.Config) (*nfstest.Server, *Export, *v4) {
	t.Helper()
	s := nfstest.Start(t, c)
	e := open(t, optionsOf(s, V4))
	return s, e, e.p.(*v4)
}

func sessionOf(t *testing.T, v *v4) *session {
	t.Helper()
	s, err := v.session(t.Context())
	check(t, err)
	return s
}

// behind sends one operation as the client's own, behind its back.
func behind(t *testing.T, v *v4, o op) {
	t.Helper()
	ctx, err := v.turn.take(t.Context())
	check(t, err)
	defer v.turn.give()
	check(t, v.alone(ctx, o))
}

// A session, and then the whole client, is gone on the server's side, as after a long idle time: many calls at once see nothing of it.
func TestSessionIsGone(t *testing.T) {
	t.Parallel()
	_, e, v := openV4(t, nfstest.Config{})
	for _, all := range []bool{false, true, false} {
		old := sessionOf(t, v)
		behind(t, v, op{num: opDestroySession, args: old.id[:]})
		if all {
			var id encoder
			id.u64(v.client.id)
			behind(t, v, op{num: opDestroyClientID, args: id.b})
		}
		var calls sync.WaitGroup
		for i := range 20 {
			calls.Go(func() {
				if err := e.WriteFile(t.Context(), "file"+strconv.Itoa(i), []byte("x"), 0o644); err != nil {
					t.Error(err)
				}
			})
		}
		calls.Wait()
		if s := sessionOf(t, v); s.id == old.id {
			t.Error("the session is the old one")
		}
	}
}

// The lease runs out while nothing is done.
func TestLeaseExpires(t *testing.T) {
	t.Parallel()
	_, e, v := openV4(t, nfstest.Config{Lease: time.Second})
	check(t, e.WriteFile(t.Context(), "file", []byte("x"), 0o644))
	old := sessionOf(t, v)
	for end := time.Now().Add(30 * time.Second); ; {
		time.Sleep(3 * time.Second) // longer than the lease: each call renews it
		check(t, e.WriteFile(t.Context(), "file", []byte("y"), 0o644))
		if sessionOf(t, v).id != old.id {
			return
		}
		if time.Now().After(end) {
			t.Fatal("the server does not forget the session")
		}
	}
}

// A connection that broke when nothing was in flight is replaced, and the session stays; with a reply outstanding the session is replaced too.
func TestSessionMoves(t *testing.T) {
	t.Parallel()
	s, e, v := openV4(t, nfstest.Config{})
	old := sessionOf(t, v)
	sequence := old.slots[0].sequence
	old.conn.close()
	_, err := e.Mkdir(t.Context(), "d", 0o755)
	check(t, err)
	moved := sessionOf(t, v)
	if moved.id != old.id || moved == old || moved.slots[0].sequence <= sequence {
		t.Errorf("session %x went on as %x", old.id, moved.id)
	}
	s.Stop()
	ctx, cancel := context.WithTimeout(t.Context(), 100*time.Millisecond)
	defer cancel()
	_, err = e.Stat(ctx, "d")
	wantReason(t, err, Silent)
	moved.conn.close()
	s.Continue()
	_, err = e.Stat(t.Context(), "d")
	check(t, err)
	if sessionOf(t, v).id == moved.id {
		t.Error("a session with a slot in doubt was used again")
	}
}

// While the server is in its grace period it opens nothing: that is waited out, and no longer than the context.
func TestGrace(t *testing.T) {
	t.Parallel()
	s, another, _ := openV4(t, nfstest.Config{Grace: true, Lease: 3 * time.Second})
	check(t, another.WriteFile(t.Context(), "another", nil, 0o644)) // the period is for clients that were there before
	s.Kill()
	s.Restart()
	e := open(t, optionsOf(s, V4))
	ctx, cancel := context.WithTimeout(t.Context(), 300*time.Millisecond)
	defer cancel()
	wantReason(t, e.WriteFile(ctx, "file", []byte("x"), 0o644), Busy)
	ctx, cancel = context.WithTimeout(t.Context(), 30*time.Second)
	defer cancel()
	check(t, e.WriteFile(ctx, "file", []byte("x"), 0o644))
}

// A slot counts only what the server took, and no slot is used twice at once.
func TestSlots(t *testing.T) {
	t.Parallel()
	a, b := tcpPair(t)
	defer b.Close()
	c := newConn(a, nil)
	defer c.close()
	s := newSession(c, [16]byte{1}, channel{slots: 3})
	for want := range 3 {
		if i, _, err := s.acquire(t.Context()); err != nil || i != want {
			t.Errorf("slot %d, %v", i, err)
		}
	}
	ctx, cancel := context.WithTimeout(t.Context(), 10*time.Millisecond)
	defer cancel()
	_, _, err := s.acquire(ctx)
	wantReason(t, err, Silent)
	s.release(1, true)
	s.release(0, false)
	for want, sequence := range []uint32{1, 2} {
		i, o, err := s.acquire(t.Context())
		d := decoder{b: o.args}
		d.fixed(16)
		if got := d.u32(); err != nil || i != want || got != sequence || d.u32() != uint32(i) || d.u32() != 2 {
			t.Errorf("slot %d, sequence %d, %v", i, got, err)
		}
	}
	if s.moved(c) != nil {
		t.Error("a session with slots in doubt moved")
	}
	s.end()
	if _, _, err := s.acquire(t.Context()); err != errNoSession {
		t.Error(err)
	}
}

// Attributes of a server that knows owners by name, and of one that sends what was not asked for.
func TestAttributes4(t *testing.T) {
	t.Parallel()
	for text, want := range map[string]uint32{"0": 0, "1000": 1000, "4294967294": 4294967294, "4294967296": nobody, "root@example.org": nobody, "nobody": nobody, "": nobody, "-1": nobody} {
		if got := owner(text); got != want {
			t.Errorf("%q is %d", text, got)
		}
	}
	mode := uint32(0o750)
	d := decoder{b: encodeAttrs(Set{UID: p32(5), GID: p32(6), Mode: &mode}, nil)}
	if v := fattr4(&d); d.err != nil || v.UID != 5 || v.GID != 6 || v.Mode != mode || len(d.b) != 0 {
		t.Errorf("%+v, %v", v, d.err)
	}
	var e encoder
	e.words(bitmap(attrType, 3)) // 3: change
	e.opaque(words(1, 0, 0))
	d = decoder{b: e.b}
	if fattr4(&d); d.err == nil {
		t.Error("an attribute of unknown length was passed over")
	}
}
