package nfsclient

import (
	"context"
	"errors"
	"math/rand/v2"
	"net"
	"os"
	"strconv"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// The reserved ports to come from: those that Linux's NFS client uses (sunrpc.min_resvport, max_resvport). Below are the well-known services.
const (
	firstReserved = 665
	lastReserved  = 1023
)

// unacknowledged is how long sent bytes may go without the host's acknowledgement before the connection counts as broken (TCP_USER_TIMEOUT). Without it a call to a
// host that vanished would hold the connection for a quarter of an hour after the host is back.
const unacknowledged = 30 * time.Second

// DialReserved connects from a reserved port (below 1024), which many servers demand, since only root can use one. Where the process may not bind such a port, or
// all are in use, it connects from any port; the bool says which it was. A connection whose peer acknowledges nothing for half a minute breaks.
func DialReserved(ctx context.Context, network, address string) (net.Conn, bool, error) {
	reuse := func(_, _ string, raw syscall.RawConn) error {
		// A port whose last connection is still in TIME_WAIT can serve for another server.
		return raw.Control(func(fd uintptr) { _ = unix.SetsockoptInt(int(fd), unix.SOL_SOCKET, unix.SO_REUSEADDR, 1) })
	}
	for _, i := range rand.Perm(lastReserved - firstReserved + 1) {
		d := net.Dialer{LocalAddr: &net.TCPAddr{Port: firstReserved + i}, Control: reuse}
		c, err := d.DialContext(ctx, network, address)
		switch {
		case err == nil:
			boundSilence(c)
			return c, true, nil
		case errors.Is(err, syscall.EADDRINUSE) || errors.Is(err, syscall.EADDRNOTAVAIL):
			continue
		case errors.Is(err, syscall.EACCES) || errors.Is(err, syscall.EPERM):
		default:
			return nil, false, err
		}
		break
	}
	var d net.Dialer
	c, err := d.DialContext(ctx, network, address)
	if err == nil {
		boundSilence(c)
	}
	return c, false, err
}

// isReserved reports whether a connection comes from a reserved port.
func isReserved(c net.Conn) bool {
	a, ok := c.LocalAddr().(*net.TCPAddr)
	return ok && a.Port > 0 && a.Port < 1024
}

// boundSilence makes a connection break whose peer acknowledges nothing any more. It is an extra: a connection that is not TCP does without.
func boundSilence(c net.Conn) {
	sc, ok := c.(syscall.Conn)
	if !ok {
		return
	}
	raw, err := sc.SyscallConn()
	if err != nil {
		return
	}
	_ = raw.Control(func(fd uintptr) {
		_ = unix.SetsockoptInt(int(fd), unix.IPPROTO_TCP, unix.TCP_USER_TIMEOUT, int(unacknowledged/time.Millisecond))
	})
}

// dialer connects to the ports of one host.
type dialer struct {
	host string
	dial func(ctx context.Context, network, address string) (net.Conn, error)
	cred []byte
}

func newDialer(o Options) dialer {
	if o.Dial == nil {
		o.Dial = func(ctx context.Context, network, address string) (net.Conn, error) {
			c, _, err := DialReserved(ctx, network, address)
			return c, err
		}
	}
	machine, err := os.Hostname()
	if err != nil {
		machine = "localhost" // the server shows it in its logs at most
	}
	return dialer{o.Host, o.Dial, authSys(machine, o.UID, o.GID)}
}

func (d dialer) connect(ctx context.Context, port int) (*conn, error) {
	c, err := d.dial(ctx, "tcp", net.JoinHostPort(d.host, strconv.Itoa(port)))
	if err != nil {
		return nil, dialError(ctx, err)
	}
	return newConn(c, d.cred), nil
}
