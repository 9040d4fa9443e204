package nfsclient

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"sync"
	"sync/atomic"
	"time"
)

// v4 is version 4.1. It is one client of the server's, with one session at a time:
//
//	no client --EXCHANGE_ID--> client --CREATE_SESSION, RECLAIM_COMPLETE--> session
//	session --connection lost, every reply came--> BIND_CONN_TO_SESSION --> session
//	session --connection lost, a reply did not come--> client
//	session --BADSESSION and the like, since idle for longer than the lease, or the server restarted--> client
//	client --STALE_CLIENTID--> no client
//
// Each call takes the way that is needed, one call for all that wait; no lease is kept alive, since nothing is held open between calls.
type v4 struct {
	opts   Options
	dialer dialer
	owner  []byte // of this client alone
	opens  atomic.Uint64

	turn   *turn // guards what follows
	conn   *conn
	last   atomic.Pointer[conn] // conn, as it was seen last
	client *client4
	sess   *session

	mu   sync.Mutex // guards the rest
	root root4
}

// root4 is what looking Path up gave.
type root4 struct {
	handle            []byte
	maxRead, maxWrite uint64 // bytes; 0 where the server does not say
}

// client4 is what EXCHANGE_ID gave.
type client4 struct {
	id       uint64
	sequence uint32 // of the next CREATE_SESSION
	ready    bool   // RECLAIM_COMPLETE is done
}

const closing = time.Second // for the good-bye

func open4(ctx context.Context, o Options) (*v4, error) {
	if o.Port == 0 {
		o.Port = defPort
	}
	owner := make([]byte, 16)
	_, _ = rand.Read(owner) // never fails (crypto/rand)
	v := &v4{opts: o, dialer: newDialer(o), owner: fmt.Appendf(nil, "vch %x", owner), turn: newTurn()}
	if err := v.renewRoot(ctx); err != nil {
		v.close()
		return nil, err
	}
	return v, nil
}

// session is the session to call in, made anew if there is none.
func (v *v4) session(ctx context.Context) (*session, error) {
	ctx, err := v.turn.take(ctx)
	if err != nil {
		return nil, err
	}
	defer v.turn.give()
	if v.sess != nil && v.sess.usable() {
		return v.sess, nil
	}
	if v.conn != nil && v.conn.isBroken() {
		v.conn.close()
		v.conn = nil
	}
	if v.conn == nil {
		c, err := v.dialer.connect(ctx, v.opts.Port)
		if err != nil {
			return nil, err
		}
		v.conn = c
		v.last.Store(c)
	}
	for range 3 {
		if err = v.advance(ctx); err == nil {
			return v.sess, nil
		}
		var e *Error
		if !errors.As(err, &e) {
			return nil, err
		}
		switch e.Status {
		case nfsStaleID4, nfsExpired4, nfsBadSess4, nfsDeadSess4, nfsMisorder4, nfsFalse4:
			v.client = nil
		default:
			return nil, err
		}
	}
	return nil, err
}

func (v *v4) lost() bool {
	c := v.last.Load()
	return c != nil && c.isBroken()
}

// advance takes the steps from what is there to a session.
func (v *v4) advance(ctx context.Context) error {
	if old := v.sess; old != nil {
		v.sess = nil
		if next := old.moved(v.conn); next != nil && v.bind(ctx, next.id) == nil {
			v.sess = next
		}
		old.end()
		if v.sess != nil {
			return nil
		}
		if v.conn.isBroken() {
			return &Error{Reason: Lost}
		}
		// It may be gone already.
		_ = v.alone(ctx, op{num: opDestroySession, args: old.id[:]})
	}
	if v.client == nil {
		c, err := v.exchangeID(ctx)
		if err != nil {
			return err
		}
		v.client = c
	}
	s, err := v.createSession(ctx)
	if err != nil {
		return err
	}
	if !v.client.ready {
		err := patiently(ctx, func() error { return s.compound(ctx, []op{{num: opReclaimComplete, args: words(0)}}) })
		var e *Error
		if errors.As(err, &e) && e.Status == nfsDone4 {
			err = nil
		}
		if err != nil {
			if errors.Is(err, errNoSession) {
				err = &Error{Reason: Lost, Err: err}
			}
			return err
		}
		v.client.ready = true
	}
	v.sess = s
	return nil
}

// alone sends one of the operations that need no session. The server must be there and willing: it is asked again while it is not.
func (v *v4) alone(ctx context.Context, o op) error {
	c := v.conn
	return patiently(ctx, func() error {
		ops := []op{o}
		body, err := c.call(ctx, service{programNFS, 4}, 1, encodeCompound(ops))
		if err != nil {
			return err
		}
		_, err = decodeCompound(body, ops)
		var e *Error
		if errors.As(err, &e) {
			e.Reserved = c.reserved
			if e.Reason == Protocol && e.Name == "" {
				c.fail(errMalformed)
			}
		}
		return err
	})
}

// exchangeID makes this side known (RFC 8881 section 18.35). The verifier is new each time, so that the server drops what it still knows of this owner.
func (v *v4) exchangeID(ctx context.Context) (*client4, error) {
	var e encoder
	verifier := make([]byte, 8)
	_, _ = rand.Read(verifier)
	e.fixed(verifier)
	e.opaque(v.owner)
	e.u32(0) // flags
	e.u32(0) // SP4_NONE
	e.u32(0) // no implementation id
	var c client4
	err := v.alone(ctx, op{num: opExchangeID, args: e.b, result: func(d *decoder) { c = exchangeReply(d) }})
	return &c, err
}

func exchangeReply(d *decoder) (c client4) {
	c.id = d.u64()
	c.sequence = d.u32()
	d.u32() // flags
	if d.u32() != 0 {
		d.fail() // a protection that was not asked for
	}
	d.u64()
	d.opaque(maxOpaque4) // the server's owner
	d.opaque(maxOpaque4) // its scope
	if d.flag() {        // its implementation, an array of one at most
		d.opaque(maxOpaque4)
		d.opaque(maxOpaque4)
		d.fixed(12)
	}
	return c
}

// createSession makes a session for the client (RFC 8881 section 18.36). Nothing may come back on the connection, as there is no delegation to take back.
func (v *v4) createSession(ctx context.Context) (*session, error) {
	var e encoder
	e.u64(v.client.id)
	e.u32(v.client.sequence)
	e.u32(0)                                                                          // neither persistent nor a back channel
	e.b = append(e.b, words(0, maxRequest, maxRequest, 4096, maxOps, maxSlots, 0)...) // fore channel
	e.b = append(e.b, words(0, 4096, 4096, 0, 2, 1, 0)...)                            // back channel, which must be said all the same
	e.b = append(e.b, words(0, 1, 0)...)                                              // callback program; its security: AUTH_NONE
	var id [16]byte
	var fore channel
	err := v.alone(ctx, op{num: opCreateSession, args: e.b, result: func(d *decoder) { id, fore = sessionReply(d) }})
	if err != nil {
		return nil, err
	}
	v.client.sequence++
	if fore.ops < minOps || fore.request < 4*spare || fore.response < 4*spare {
		return nil, &Error{Reason: Unsupported, Err: errors.New("the server's sessions are too small")}
	}
	return newSession(v.conn, id, fore), nil
}

func sessionReply(d *decoder) (id [16]byte, fore channel) {
	copy(id[:], d.fixed(16))
	d.u64() // sequence, flags
	d.u32()
	fore.request = min(d.u32(), maxRequest)
	fore.response = min(d.u32(), maxRequest)
	d.u32()
	fore.ops = min(d.u32(), maxOps)
	fore.slots = min(d.u32(), maxSlots)
	d.words(1)
	d.fixed(6 * 4)
	d.words(1)
	if fore.slots == 0 {
		d.fail()
	}
	return id, fore
}

// bind gives a session this connection (RFC 8881 section 18.34).
func (v *v4) bind(ctx context.Context, id [16]byte) error {
	args := append(id[:len(id):len(id)], words(1, 0)...) // the fore channel; no RDMA
	return v.alone(ctx, op{num: opBindConn, args: args, result: func(d *decoder) { d.fixed(16 + 2*4) }})
}

// compound does operations in a session, in another if the server forgot the one.
func (v *v4) compound(ctx context.Context, ops ...op) error {
	return patiently(ctx, func() error {
		for range 4 {
			s, err := v.session(ctx)
			if err != nil {
				return err
			}
			if err = s.compound(ctx, ops); !errors.Is(err, errNoSession) {
				return err
			}
		}
		return &Error{Reason: Lost, Err: errNoSession}
	})
}

func (v *v4) close() {
	if !v.turn.end() || v.conn == nil {
		return
	}
	ctx, cancel := context.WithTimeout(context.Background(), closing)
	defer cancel()
	if v.sess != nil {
		v.sess.end()
		_ = v.alone(ctx, op{num: opDestroySession, args: v.sess.id[:]})
	}
	if v.client != nil {
		var e encoder
		e.u64(v.client.id)
		_ = v.alone(ctx, op{num: opDestroyClientID, args: e.b})
	}
	v.conn.close()
}
