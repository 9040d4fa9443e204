package vsphere

import (
	"context"
	"crypto/rand"
	"crypto/sha256"
	"crypto/subtle"
	"crypto/tls"
	"encoding/hex"
	"encoding/json"
	"errors"
	"io/fs"
	"log/slog"
	"net"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"time"

	"golang.org/x/sys/unix"

	"vch/guest"
	"vch/internal/atomicfile"
	"vch/internal/fault"
	"vch/internal/keylock"
	"vch/internal/pause"
	"vch/portlayer"
)

// An endpoint is where guests come to (guest.Contact). It knows a machine's guest by the certificate that came with the machine's token, once; both are on disk, as hashes, so that the
// guests of machines that run find the next daemon.
type endpoint struct {
	listener net.Listener
	identity tls.Certificate
	dir      string // of what is known of guests
	// rebooted hears of a machine whose guest has gone, and another come, with the token that was used: it was reset, or started again elsewhere.
	rebooted func(portlayer.ContainerID)
	log      *slog.Logger
	ctx      context.Context
	work     sync.WaitGroup
	lobby    lobby
	refusals refusals
	turns    keylock.Set[portlayer.ContainerID] // held by whoever changes what is known of a machine's guest

	mu    sync.Mutex // guards below
	lines map[portlayer.ContainerID]*line
	open  map[net.Conn]bool
}

// line is what connects one machine.
type line struct {
	known   credential
	coming  int                        // guests that are let in and not parked yet
	parked  map[guest.Purpose]net.Conn // come, and not asked for yet
	taken   map[guest.Purpose]net.Conn
	arrival chan struct{} // closed when one comes
}

// credential is what a guest is known by.
type credential struct {
	Token string `json:"token"`         // SHA-256 of the one that lets a guest in that is not known
	Key   string `json:"key,omitempty"` // fingerprint of the guest that came with it
}

// idle is how long a connection may be silent before its other end is asked whether it is there.
const idle = 15 * time.Second

// newEndpoint serves guests on listener, which it closes, until close.
func newEndpoint(listener net.Listener, dir string, rebooted func(portlayer.ContainerID), log *slog.Logger) (*endpoint, func(), error) {
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return nil, nil, err
	}
	identity, err := keptIdentity(filepath.Join(dir, "endpoint.pem"))
	if err != nil {
		return nil, nil, err
	}
	ctx, cancel := context.WithCancel(context.Background())
	e := &endpoint{listener: listener, identity: identity, dir: dir, rebooted: rebooted, log: log, ctx: ctx, lines: map[portlayer.ContainerID]*line{}, open: map[net.Conn]bool{}}
	e.work.Go(e.accept)
	return e, func() {
		cancel()
		listener.Close()
		e.mu.Lock()
		for conn := range e.open {
			conn.Close()
		}
		e.mu.Unlock()
		e.work.Wait()
	}, nil
}

func (e *endpoint) accept() {
	for {
		conn, err := e.listener.Accept()
		if errors.Is(err, net.ErrClosed) || e.ctx.Err() != nil {
			return
		}
		if err != nil { // out of descriptors, say
			if pause.For(e.ctx, backoff) != nil {
				return
			}
			continue
		}
		e.lobby.enter(conn)
		e.work.Go(func() {
			defer e.lobby.leave(conn)
			e.meet(conn)
		})
	}
}

// meet lets a guest in.
func (e *endpoint) meet(conn net.Conn) {
	if tcp, ok := conn.(*net.TCPConn); ok {
		_ = tcp.SetKeepAliveConfig(net.KeepAliveConfig{Enable: true, Idle: idle, Interval: idle / 3, Count: 3})
	}
	var in *line
	i, secure, err := guest.Meet(e.ctx, conn, e.identity, func(i guest.Introduction, fingerprint string) (err error) {
		e.lobby.leave(conn)
		in, err = e.admit(i, fingerprint)
		return err
	})
	if in != nil {
		defer e.came(in)
	}
	if err != nil {
		e.refused(conn, i, err)
		return
	}
	e.park(portlayer.ContainerID(i.Machine), i.Purpose, secure)
}

// refused says in the log who was not let in, now and then: anybody can come, and say anything.
func (e *endpoint) refused(conn net.Conn, i guest.Introduction, err error) {
	say, unsaid := e.refusals.next(time.Now())
	if e.ctx.Err() != nil || !say {
		return
	}
	if checkID(portlayer.ContainerID(i.Machine)) != nil {
		i.Machine = ""
	}
	e.log.Warn("who came to the guests' endpoint was not let in", "from", conn.RemoteAddr().String(), "machine", i.Machine, "err", brief(err.Error()), "unsaid", unsaid)
}

// admit says whether a guest may come in. The first that has the machine's token is the machine's from then on. Denied makes a machine that was never let in go off (tether, remote.call):
// what may be otherwise in a while, as a file that cannot be read now, is another kind.
// It is connected until came is called.
func (e *endpoint) admit(i guest.Introduction, fingerprint string) (l *line, err error) {
	id := portlayer.ContainerID(i.Machine)
	if err := checkID(id); err != nil {
		return nil, err
	}
	back, err := e.turns.Lock(e.ctx, id)
	if err != nil {
		return nil, err
	}
	defer back()
	l, err = e.line(id)
	if err != nil {
		return nil, err
	}
	if l == nil {
		return nil, fault.New(fault.Denied, "there is no machine %q here", i.Machine)
	}
	e.mu.Lock()
	known := l.known
	e.mu.Unlock()
	switch {
	case known.Key != "" && subtle.ConstantTimeCompare([]byte(known.Key), []byte(fingerprint)) == 1:
	case known.Key != "":
		if subtle.ConstantTimeCompare([]byte(known.Token), []byte(digest(i.Token))) == 1 && !e.connected(l) {
			e.work.Go(func() { e.rebooted(id) })
		}
		return nil, fault.New(fault.Denied, "another guest is machine %s", i.Machine)
	case subtle.ConstantTimeCompare([]byte(known.Token), []byte(digest(i.Token))) != 1:
		return nil, fault.New(fault.Denied, "the token of machine %s is another", i.Machine)
	default:
		if err := e.keep(id, l, credential{Token: known.Token, Key: fingerprint}); err != nil {
			return nil, err
		}
	}
	e.mu.Lock()
	defer e.mu.Unlock()
	l.coming++
	return l, nil
}

// came notes that a guest that was let in has its place, or has gone.
func (e *endpoint) came(l *line) {
	e.mu.Lock()
	defer e.mu.Unlock()
	l.coming--
}

func digest(text string) string {
	sum := sha256.Sum256([]byte(text))
	return hex.EncodeToString(sum[:])
}

// line finds what is known of a machine, nil if nothing is.
func (e *endpoint) line(id portlayer.ContainerID) (*line, error) {
	e.mu.Lock()
	l := e.lines[id]
	e.mu.Unlock()
	if l != nil {
		return l, nil
	}
	if err := checkID(id); err != nil {
		return nil, err
	}
	data, err := os.ReadFile(e.file(id))
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	l = newLine()
	if err == nil {
		err = json.Unmarshal(data, &l.known)
	}
	if err != nil {
		return nil, fault.New(fault.Internal, "what is known of the guest of machine %s cannot be read: %w", id, err)
	}
	e.mu.Lock()
	defer e.mu.Unlock()
	if have := e.lines[id]; have != nil { // somebody was quicker
		return have, nil
	}
	e.lines[id] = l
	return l, nil
}

func newLine() *line {
	return &line{parked: map[guest.Purpose]net.Conn{}, taken: map[guest.Purpose]net.Conn{}, arrival: make(chan struct{})}
}

func (e *endpoint) file(id portlayer.ContainerID) string {
	return filepath.Join(e.dir, string(id)+".json")
}

// keep notes what a machine's guest is known by, on disk first. The caller has the turn.
func (e *endpoint) keep(id portlayer.ContainerID, l *line, c credential) error {
	data, err := json.Marshal(c)
	if err != nil {
		return err
	}
	if err := atomicfile.Write(e.file(id), data, 0o600); err != nil {
		return err
	}
	e.mu.Lock()
	defer e.mu.Unlock()
	l.known = c
	e.lines[id] = l
	return nil
}

// invite makes a token for the next guest of a machine, and forgets the one before.
func (e *endpoint) invite(id portlayer.ContainerID) (token string, err error) {
	back, err := e.turns.Lock(e.ctx, id)
	if err != nil {
		return "", err
	}
	defer back()
	l, err := e.line(id)
	if err != nil {
		return "", err
	}
	if l == nil {
		l = newLine()
	}
	var b [32]byte
	rand.Read(b[:]) // never fails (crypto/rand)
	token = hex.EncodeToString(b[:])
	if err := e.keep(id, l, credential{Token: digest(token)}); err != nil {
		return "", err
	}
	e.drop(id)
	return token, nil
}

// invited says whether the token with that hash lets the next guest of a machine in.
func (e *endpoint) invited(id portlayer.ContainerID, hash string) bool {
	l, err := e.line(id)
	if err != nil || l == nil {
		return false
	}
	e.mu.Lock()
	defer e.mu.Unlock()
	return l.known.Key == "" && hash != "" && l.known.Token == hash
}

// forget ends all that connects a machine, and its guest is nobody's. Again: nothing happens.
func (e *endpoint) forget(id portlayer.ContainerID) error {
	back, err := e.turns.Lock(e.ctx, id)
	if err != nil {
		return err
	}
	defer back()
	e.drop(id)
	e.mu.Lock()
	delete(e.lines, id)
	e.mu.Unlock()
	if err := os.Remove(e.file(id)); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	return nil
}

// drop ends the connections of a machine that is off.
func (e *endpoint) drop(id portlayer.ContainerID) {
	e.mu.Lock()
	defer e.mu.Unlock()
	if l := e.lines[id]; l != nil {
		e.hangUp(l)
	}
}

// connected says whether a guest is there still, as far as the kernel knows: one that vanished is missed after half a minute (idle).
func (e *endpoint) connected(l *line) bool {
	e.mu.Lock()
	defer e.mu.Unlock()
	if l.coming > 0 {
		return true
	}
	for _, conns := range []map[guest.Purpose]net.Conn{l.parked, l.taken} {
		for _, conn := range conns {
			if established(conn) {
				return true
			}
		}
	}
	return false
}

// established says whether the TCP connection below conn stands (tcp(7), TCP_INFO).
func established(conn net.Conn) bool {
	if secure, ok := conn.(*tls.Conn); ok {
		conn = secure.NetConn()
	}
	tcp, ok := conn.(*net.TCPConn)
	if !ok {
		return false
	}
	raw, err := tcp.SyscallConn()
	if err != nil {
		return false
	}
	up := false
	err = raw.Control(func(fd uintptr) {
		info, err := unix.GetsockoptTCPInfo(int(fd), unix.IPPROTO_TCP, unix.TCP_INFO)
		up = err == nil && info.State == tcpEstablished
	})
	return err == nil && up
}

// tcpEstablished is TCP_ESTABLISHED (include/net/tcp_states.h).
const tcpEstablished = 1

// hangUp closes a line's connections. The caller holds mu.
func (e *endpoint) hangUp(l *line) {
	for _, conns := range []map[guest.Purpose]net.Conn{l.parked, l.taken} {
		for purpose, conn := range conns {
			conn.Close()
			delete(e.open, conn)
			delete(conns, purpose)
		}
	}
}

// park keeps a connection until it is asked for. A guest has one of a kind: with a new one its old ones are dead.
func (e *endpoint) park(id portlayer.ContainerID, purpose guest.Purpose, conn net.Conn) {
	e.mu.Lock()
	defer e.mu.Unlock()
	l := e.lines[id]
	if l == nil || e.ctx.Err() != nil { // forgotten meanwhile
		conn.Close()
		return
	}
	for _, conns := range []map[guest.Purpose]net.Conn{l.parked, l.taken} {
		if old, ok := conns[purpose]; ok {
			old.Close()
			delete(e.open, old)
			delete(conns, purpose)
		}
	}
	l.parked[purpose] = conn
	e.open[conn] = true
	close(l.arrival)
	l.arrival = make(chan struct{})
}

// take gives the connection that a guest has made for a purpose. The one that was taken before ends, and its guest makes another.
func (e *endpoint) take(ctx context.Context, id portlayer.ContainerID, purpose guest.Purpose) (net.Conn, error) {
	for first := true; ; first = false {
		l, err := e.line(id)
		if err != nil || l == nil {
			return nil, errors.Join(err, fault.New(fault.Conflict, "machine %s was never told how to reach this host", id))
		}
		e.mu.Lock()
		if old, ok := l.taken[purpose]; ok && first {
			old.Close()
			delete(e.open, old)
			delete(l.taken, purpose)
		}
		conn, ok := l.parked[purpose]
		if ok {
			delete(l.parked, purpose)
			l.taken[purpose] = conn
		}
		arrival := l.arrival
		e.mu.Unlock()
		if ok {
			return conn, nil
		}
		select {
		case <-arrival:
		case <-ctx.Done():
			return nil, fault.New(fault.Unavailable, "the guest of machine %s has not come to %s: %w", id, e.listener.Addr(), ctx.Err())
		case <-e.ctx.Done():
			return nil, fault.New(fault.Unavailable, "the guests' endpoint is closed")
		}
	}
}

// checkID refuses an id that could name a file elsewhere.
func checkID(id portlayer.ContainerID) error {
	if id == "" || len(id) > 128 || strings.Trim(string(id), "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789_.-") != "" || id[0] == '.' {
		return fault.New(fault.Invalid, "machine id %.128q is too long, or has characters that are not letters, digits, dots, dashes or underscores", id)
	}
	return nil
}
