package vsphere

import (
	"net"
	"slices"
	"sync"
	"time"
)

// A lobby has the connections whose other ends have not said who they are. Whoever reaches the endpoint's address can make any number, as a guest's certificate is known only by what comes
// with it. So none is waited for when there are too many: one is closed, and a guest calls again. The zero value is empty.
type lobby struct {
	mu      sync.Mutex // guards below
	waiting []net.Conn // the oldest first
}

// mostWaiting is how many connections a lobby has: those of 256 guests that come back at once.
const mostWaiting = 512

// enter takes a connection in. If there are too many it closes the oldest from the address that has most: guests behind one address are not fewer for it, and a stranger's connections
// make room for the stranger's.
func (l *lobby) enter(conn net.Conn) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.waiting = append(l.waiting, conn)
	if len(l.waiting) <= mostWaiting {
		return
	}
	count, most := map[string]int{}, 0
	for _, c := range l.waiting {
		count[source(c)]++
		most = max(most, count[source(c)])
	}
	n := slices.IndexFunc(l.waiting, func(c net.Conn) bool { return count[source(c)] == most })
	l.waiting[n].Close()
	l.waiting = slices.Delete(l.waiting, n, n+1)
}

// leave lets a connection go, which stays open. Again, or after it was closed: nothing happens.
func (l *lobby) leave(conn net.Conn) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if n := slices.Index(l.waiting, conn); n >= 0 {
		l.waiting = slices.Delete(l.waiting, n, n+1)
	}
}

// source is the address that a connection comes from, without its port.
func source(conn net.Conn) string {
	text := conn.RemoteAddr().String()
	if host, _, err := net.SplitHostPort(text); err == nil {
		return host
	}
	return text
}

// refusals bounds what strangers can make the log say. The zero value has heard nothing.
type refusals struct {
	mu     sync.Mutex // guards below
	since  time.Time
	said   int // since then
	unsaid int // since the last that was said
}

// What is said of refusals: so many in so long.
const (
	mostRefusals = 10
	refusalSpan  = time.Minute
)

// next says whether one more is to be said, and how many before it were not.
func (r *refusals) next(now time.Time) (say bool, unsaid int) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if now.Sub(r.since) >= refusalSpan {
		r.since, r.said = now, 0
	}
	if r.said == mostRefusals {
		r.unsaid++
		return false, 0
	}
	r.said++
	unsaid, r.unsaid = r.unsaid, 0
	return true, unsaid
}

// brief is a text that a stranger has a part in, as long as a log wants it.
func brief(text string) string {
	const most = 256 // bytes
	if len(text) <= most {
		return text
	}
	return text[:most] + "…"
}
