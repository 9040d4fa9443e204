package nfsclient

import (
	"context"
	"errors"
	"sync"
)

// Bounds that the session is asked for; the server may grant less.
const (
	maxSlots   = 64
	maxRequest = maxChunk + 4096 // bytes
	spare      = 2048            // bytes that a READ's or WRITE's compound needs beside the data
)

// channel is channel_attrs4 (RFC 8881 section 18.36.1), as far as it is decided by here.
type channel struct{ request, response, ops, slots uint32 }

// session is a session on one connection. A slot takes one request at a time, and counts them; one whose reply does not come is never used again, for then nobody
// knows what the server counted (RFC 8881 section 2.10.6).
type session struct {
	conn  *conn
	id    [16]byte
	fore  channel
	free  chan struct{} // as many tokens as there are free slots
	ended chan struct{} // closed when the server no longer knows the session, or it has no connection

	mu    sync.Mutex // guards the rest
	slots []slot
	over  bool
}

type slot struct {
	sequence uint32 // of the last request that the server took
	busy     bool
}

func newSession(c *conn, id [16]byte, fore channel) *session {
	s := &session{conn: c, id: id, fore: fore, free: make(chan struct{}, fore.slots), ended: make(chan struct{}), slots: make([]slot, fore.slots)}
	for range fore.slots {
		s.free <- struct{}{}
	}
	return s
}

// end makes every call that waits for a slot look for another session.
func (s *session) end() {
	s.mu.Lock()
	defer s.mu.Unlock()
	if !s.over {
		s.over = true
		close(s.ended)
	}
}

func (s *session) usable() bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	return !s.over && !s.conn.isBroken()
}

// moved is the same session on another connection; nil if a slot's reply did not come, or the server forgot the session.
func (s *session) moved(c *conn) *session {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.over {
		return nil
	}
	n := newSession(c, s.id, s.fore)
	for i, sl := range s.slots {
		if sl.busy {
			return nil
		}
		n.slots[i] = sl
	}
	return n
}

// errNoSession says that the request was not done, for the session is gone; it can be sent again in another.
var errNoSession = errors.New("the session is gone")

// acquire takes the lowest free slot, as RFC 8881 section 2.10.6.1 wants it, and gives the operation that begins the compound.
func (s *session) acquire(ctx context.Context) (i int, sequence op, err error) {
	select {
	case <-s.free:
	case <-s.ended:
		return 0, op{}, errNoSession
	case <-s.conn.broken:
		return 0, op{}, errNoSession
	case <-ctx.Done():
		return 0, op{}, ended(ctx)
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	highest := 0
	i = -1
	for j := range s.slots {
		if !s.slots[j].busy && i < 0 {
			s.slots[j].busy = true
			i = j
		}
		if s.slots[j].busy {
			highest = j
		}
	}
	args := append(s.id[:len(s.id):len(s.id)], words(s.slots[i].sequence+1, uint32(i), uint32(highest), 0)...)
	return i, op{num: opSequence, args: args, result: func(d *decoder) { d.fixed(16 + 5*4) }}, nil
}

// release frees a slot whose reply came; taken says that the server counted the request.
func (s *session) release(i int, taken bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.slots[i].busy = false
	if taken {
		s.slots[i].sequence++
	}
	s.free <- struct{}{}
}

// compound does operations in the session; errNoSession means that none was done.
func (s *session) compound(ctx context.Context, ops []op) error {
	i, sequence, err := s.acquire(ctx)
	if err != nil {
		return err
	}
	type result struct {
		body []byte
		err  error
	}
	got := make(chan result, 1)
	all := append([]op{sequence}, ops...)
	_, _, err = s.conn.start(ctx, service{programNFS, 4}, 1, encodeCompound(all), func(body []byte, err error) {
		// The slot is freed here, since the caller may have gone: SEQUENCE's own status says whether it counted. After a broken connection it stays busy.
		var refused *Error
		switch {
		case err == nil:
			s.release(i, sequenceTaken(body))
		case errors.As(err, &refused) && refused.Name != "":
			s.release(i, false)
		}
		got <- result{body, err}
	})
	if err != nil { // not sent
		s.release(i, false)
		if s.conn.isBroken() {
			return errNoSession
		}
		return err
	}
	select {
	case r := <-got:
		if r.err != nil {
			return r.err
		}
		done, err := decodeCompound(r.body, all)
		return s.judge(done, err)
	case <-ctx.Done():
		return ended(ctx)
	}
}

// sequenceTaken reports whether the first result, SEQUENCE's, is a success.
func sequenceTaken(body []byte) bool {
	d := decoder{b: body}
	d.u32()
	d.opaque(maxOpaque4)
	return d.u32() > 0 && d.u32() == opSequence && d.u32() == 0 && d.err == nil
}

// judge tells the session's own errors from the others.
func (s *session) judge(done int, err error) error {
	var e *Error
	if !errors.As(err, &e) {
		return err
	}
	e.Reserved = s.conn.reserved
	if e.Reason == Protocol && e.Name == "" {
		s.conn.fail(errMalformed)
		return err
	}
	if done == 0 {
		switch e.Status {
		case nfsBadSess4, nfsDeadSess4, nfsNotBound4, nfsBadSlot4, nfsMisorder4, nfsFalse4, nfsExpired4, nfsStaleID4:
			s.end()
			return errNoSession
		}
	}
	return err
}
