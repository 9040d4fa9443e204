package nfsclient

import (
	"bufio"
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"io"
	"math/rand/v2"
	"net"
	"strconv"
	"sync"
	"time"
)

// Programs and versions (RFC 1833 section 3, RFC 1813, RFC 7530 section 16).
const (
	programPortmap = 100000
	programNFS     = 100003
	programMount   = 100005
)

// service is a program in one version.
type service struct{ program, version uint32 }

const (
	maxReply     = 2 << 20 // bytes of a reply; nothing that is asked for is longer than half of it
	maxFragments = 4096    // of one reply; servers send one, or a few

	// A server of version 3 may drop a call and wait for it to come again, as Ganesha was seen to do with a REMOVE amid other changes: so it comes again, with the
	// xid and on the connection by which the server knows it if it did not drop it. Linux's client does so after 60 s (nfs(5), timeo).
	resendAfter = 10 * time.Second
	resendMost  = time.Minute
)

// conn is one connection to one RPC service (RFC 5531). Calls are in flight together, and a reply finds its call by xid. It breaks once and for all.
//
// Two goroutines serve it, a reader and a writer; close waits for them.
type conn struct {
	net      net.Conn
	reserved bool
	cred     []byte // AUTH_SYS and an empty verifier, encoded
	out      chan []byte
	broken   chan struct{} // closed when err is set
	ends     sync.WaitGroup

	mu      sync.Mutex // guards what follows
	xid     uint32
	pending map[uint32]func([]byte, error)
	err     *Error
}

// newConn takes over c.
func newConn(c net.Conn, cred []byte) *conn {
	boundSilence(c)
	r := &conn{net: c, reserved: isReserved(c), cred: cred, out: make(chan []byte), broken: make(chan struct{}), xid: rand.Uint32(), pending: map[uint32]func([]byte, error){}}
	r.ends.Go(r.read)
	r.ends.Go(r.write)
	return r
}

// authSys encodes a credential of AUTH_SYS (RFC 5531 appendix A), without further groups, and the empty verifier that goes with it.
func authSys(machine string, uid, gid uint32) []byte {
	var body encoder
	body.u32(rand.Uint32())
	body.text(machine[:min(len(machine), 255)])
	body.u32(uid)
	body.u32(gid)
	body.u32(0)
	var e encoder
	e.u32(1)
	e.opaque(body.b)
	e.u32(0)
	e.u32(0)
	return e.b
}

// start sends a call. done gets the reply, or why there is none: once, from one of the connection's goroutines, which it must not hold up. If start itself fails,
// the call was not sent, and done is not called. It gives the number for forget, and the record to send again.
func (c *conn) start(ctx context.Context, s service, proc uint32, args []byte, done func([]byte, error)) (uint32, []byte, error) {
	c.mu.Lock()
	if c.err != nil {
		defer c.mu.Unlock()
		return 0, nil, c.err
	}
	c.xid++
	if c.xid == 0 { // what parseReply gives for a message that is no reply
		c.xid++
	}
	xid := c.xid
	c.pending[xid] = done
	c.mu.Unlock()
	e := encoder{b: make([]byte, 4, 28+len(c.cred)+len(args))}
	for _, v := range []uint32{xid, 0, 2, s.program, s.version, proc} {
		e.u32(v)
	}
	e.b = append(append(e.b, c.cred...), args...)
	binary.BigEndian.PutUint32(e.b, 1<<31|uint32(len(e.b)-4))
	select {
	case c.out <- e.b:
	case <-c.broken: // whoever broke it calls done
	case <-ctx.Done():
		if c.forget(xid) {
			return 0, nil, ended(ctx)
		}
	}
	return xid, e.b, nil
}

// forget drops a call whose reply nobody waits for, and reports whether it was still without one.
func (c *conn) forget(xid uint32) bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	_, ok := c.pending[xid]
	delete(c.pending, xid)
	return ok
}

// call sends a call and waits for its result, or for the end of ctx.
func (c *conn) call(ctx context.Context, s service, proc uint32, args []byte) ([]byte, error) {
	type result struct {
		body []byte
		err  error
	}
	got := make(chan result, 1)
	xid, record, err := c.start(ctx, s, proc, args, func(body []byte, err error) { got <- result{body, err} })
	if err != nil {
		return nil, err
	}
	resend := time.NewTimer(resendAfter)
	defer resend.Stop()
	again := resend.C
	if s == (service{programNFS, 4}) {
		again = nil // forbidden there (RFC 8881 section 2.9.2)
	}
	var out chan []byte
	for wait := resendAfter; ; {
		select {
		case r := <-got:
			return r.body, r.err
		case <-again:
			out = c.out
		case out <- record:
			out = nil
			wait = min(2*wait, resendMost)
			resend.Reset(wait)
		case <-ctx.Done():
			c.forget(xid)
			return nil, ended(ctx)
		}
	}
}

// fail breaks the connection and every call in flight.
func (c *conn) fail(why error) { c.failAs(Lost, why) }

func (c *conn) failAs(reason Reason, why error) {
	c.mu.Lock()
	if c.err != nil {
		c.mu.Unlock()
		return
	}
	lost := &Error{Reason: reason, Reserved: c.reserved, Err: why}
	c.err = lost
	waiting := c.pending
	c.pending = nil
	close(c.broken)
	c.mu.Unlock()
	c.net.Close()
	for _, done := range waiting {
		done(nil, lost)
	}
}

// close breaks the connection and waits for its goroutines.
func (c *conn) close() {
	c.fail(net.ErrClosed)
	c.ends.Wait()
}

func (c *conn) isBroken() bool {
	select {
	case <-c.broken:
		return true
	default:
		return false
	}
}

func (c *conn) write() {
	for {
		select {
		case b := <-c.out:
			if _, err := c.net.Write(b); err != nil {
				c.fail(err)
				return
			}
		case <-c.broken:
			return
		}
	}
}

func (c *conn) read() {
	r := bufio.NewReaderSize(c.net, 64<<10)
	for {
		record, err := readRecord(r)
		if err != nil {
			switch {
			case errors.Is(err, errMalformed): // such as what a web server says
				c.failAs(Protocol, err)
			case errors.Is(err, io.EOF):
				c.fail(io.ErrUnexpectedEOF)
			default:
				c.fail(err)
			}
			return
		}
		xid, body, err := parseReply(record)
		if errors.Is(err, errMalformed) {
			c.failAs(Protocol, err)
			return
		}
		var refused *Error
		if errors.As(err, &refused) {
			refused.Reserved = c.reserved
			if refused.Reason == Denied && !c.reserved {
				refused.Reason = InsecurePort
			}
		}
		c.mu.Lock()
		done := c.pending[xid]
		delete(c.pending, xid)
		c.mu.Unlock()
		if done != nil { // nil: the reply to a call whose context ended, or a call of the server's, which it was told not to make
			done(body, err)
		}
	}
}

// readRecord reads one record (RFC 5531 section 11), which may come in fragments. Memory is taken as bytes come, not as they are announced.
func readRecord(r io.Reader) ([]byte, error) {
	var record bytes.Buffer
	for range maxFragments {
		var head [4]byte
		if _, err := io.ReadFull(r, head[:]); err != nil {
			return nil, err
		}
		mark := binary.BigEndian.Uint32(head[:])
		n := int(mark &^ (1 << 31))
		if n > maxReply-record.Len() {
			return nil, errMalformed
		}
		if _, err := io.CopyN(&record, r, int64(n)); err != nil {
			return nil, err
		}
		if mark>>31 == 1 {
			return record.Bytes(), nil
		}
	}
	return nil, errMalformed
}

// parseReply takes the head off a reply (RFC 5531 section 9). The error is errMalformed, or an *Error that says why the server did not do the call.
func parseReply(record []byte) (xid uint32, body []byte, err error) {
	d := decoder{b: record}
	xid = d.u32()
	if kind := d.u32(); kind == 0 && d.err == nil {
		return 0, nil, nil
	} else if kind != 1 {
		return 0, nil, errMalformed
	}
	var why *Error
	switch d.u32() {
	case 0: // MSG_ACCEPTED
		d.u32()
		d.opaque(400)
		accept := d.u32()
		if accept == 2 { // PROG_MISMATCH
			low, high := d.u32(), d.u32()
			why = &Error{Reason: NoVersion, Status: accept, Name: "PROG_MISMATCH", Err: errors.New("served are " + strconv.Itoa(int(low)) + " to " + strconv.Itoa(int(high)))}
		} else if accept != 0 {
			why = acceptError(accept)
		}
	case 1: // MSG_DENIED
		reject := d.u32()
		switch reject {
		case 0: // RPC_MISMATCH
			d.u64()
			why = &Error{Reason: Protocol, Status: reject, Name: "RPC_MISMATCH"}
		case 1: // AUTH_ERROR
			why = authError(d.u32())
		default:
			d.fail()
		}
	default:
		d.fail()
	}
	if d.err != nil {
		return 0, nil, errMalformed
	}
	if why != nil {
		return xid, nil, why
	}
	return xid, d.b, nil
}

func acceptError(n uint32) *Error {
	switch n {
	case 1:
		return &Error{Reason: NoVersion, Status: n, Name: "PROG_UNAVAIL"}
	case 3:
		return &Error{Reason: Unsupported, Status: n, Name: "PROC_UNAVAIL"}
	case 4:
		return &Error{Reason: Protocol, Status: n, Name: "GARBAGE_ARGS"}
	}
	return &Error{Reason: ServerFault, Status: n, Name: "SYSTEM_ERR"}
}

// authError is auth_stat of RFC 5531 section 9.
func authError(n uint32) *Error {
	names := []string{1: "AUTH_BADCRED", 2: "AUTH_REJECTEDCRED", 3: "AUTH_BADVERF", 4: "AUTH_REJECTEDVERF", 5: "AUTH_TOOWEAK", 6: "AUTH_INVALIDRESP", 7: "AUTH_FAILED"}
	name := "AUTH_ERROR " + strconv.FormatUint(uint64(n), 10)
	if n > 0 && n < uint32(len(names)) {
		name = names[n]
	}
	return &Error{Reason: Denied, Status: n, Name: name}
}
