package fake

import (
	"context"
	"io"
	"net"
	"time"

	"vch/internal/fault"
)

// Pause is portlayer.Machine.Pause. A simulated machine that is paused hears nothing: what comes to it waits.
func (m *Machine) Pause(context.Context) error { return m.stand(true) }

// Resume is portlayer.Machine.Resume.
func (m *Machine) Resume(context.Context) error { return m.stand(false) }

func (m *Machine) stand(still bool) error {
	r := m.slot.running()
	if r == nil {
		return fault.New(fault.Conflict, "machine %s is off", m.id)
	}
	r.sys.mu.Lock()
	defer r.sys.mu.Unlock()
	switch {
	case still && r.sys.still == nil:
		r.sys.still = make(chan struct{})
	case !still && r.sys.still != nil:
		close(r.sys.still)
		r.sys.still = nil
	}
	return nil
}

// SetClock is tether.System.SetClock.
func (s *system) SetClock(now time.Time) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.clock = now
	return nil
}

// stalling is a connection of a machine, on which nothing moves while that is paused: what comes is taken, as by a socket, and waits.
type stalling struct {
	net.Conn
	r    *running
	came chan []byte // closed at the end
	rest []byte
}

// socketRoom is how many pieces a socket takes before its writer waits.
const socketRoom = 1024

func newStalling(conn net.Conn, r *running) *stalling {
	c := &stalling{Conn: conn, r: r, came: make(chan []byte, socketRoom)}
	r.conns.Go(func() {
		defer close(c.came)
		for {
			b := make([]byte, 32<<10)
			n, err := conn.Read(b)
			if err != nil {
				return
			}
			select {
			case c.came <- b[:n]:
			case <-r.ctx.Done():
				return
			}
		}
	})
	return c
}

func (c *stalling) Read(b []byte) (int, error) {
	if len(c.rest) == 0 {
		var open bool
		if c.rest, open = <-c.came; !open {
			return 0, io.EOF
		}
	}
	c.r.awaitResume()
	n := copy(b, c.rest)
	c.rest = c.rest[n:]
	return n, nil
}

func (c *stalling) Write(b []byte) (int, error) {
	c.r.awaitResume()
	return c.Conn.Write(b)
}

// awaitResume waits while the machine is paused, or until it ends.
func (r *running) awaitResume() {
	for {
		r.sys.mu.Lock()
		still := r.sys.still
		r.sys.mu.Unlock()
		if still == nil {
			return
		}
		select {
		case <-still:
		case <-r.ctx.Done():
			return
		}
	}
}
