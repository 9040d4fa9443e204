// Package splice joins two streams to one: what comes from either goes to the other, until both have ended.
//
// It is for a connection that ends here and goes on elsewhere, as at a network's gateway or a published port. An end of one direction is passed on as such, for
// there are protocols in which one side says that it has no more to ask and the other answers then.
package splice

import (
	"context"
	"io"
	"net"
	"sync"
	"time"
)

// halfCloser is a stream that can end in one direction.
type halfCloser interface{ CloseWrite() error }

// Streams copies between two streams until both have ended, or ctx has. It closes both. An end of one is told the other, which may still have something to say.
func Streams(ctx context.Context, a, b net.Conn) {
	stop := context.AfterFunc(ctx, func() { a.Close(); b.Close() })
	defer stop()
	defer a.Close()
	defer b.Close()
	var both sync.WaitGroup
	one := func(to, from net.Conn) {
		_, err := io.Copy(to, from)
		if h, ok := to.(halfCloser); ok && err == nil {
			_ = h.CloseWrite()
			return
		}
		to.Close()
		from.Close()
	}
	both.Go(func() { one(a, b) })
	both.Go(func() { one(b, a) })
	both.Wait()
}

// PacketIdle is how long datagrams of one sender and one target may be apart and belong together: Linux's conntrack (nf_conntrack_udp_timeout_stream).
const PacketIdle = 2 * time.Minute

// MaxPacket is the longest datagram, in bytes.
const MaxPacket = 65507

// Packets copies datagrams both ways until there have been none for a while, or ctx ends. It closes both.
func Packets(ctx context.Context, a, b net.Conn) {
	stop := context.AfterFunc(ctx, func() { a.Close(); b.Close() })
	defer stop()
	defer a.Close()
	defer b.Close()
	one := func(to, from net.Conn) {
		buf := make([]byte, MaxPacket)
		for {
			_ = from.SetReadDeadline(time.Now().Add(PacketIdle))
			n, err := from.Read(buf)
			if err != nil {
				to.Close()
				return
			}
			if _, err := to.Write(buf[:n]); err != nil {
				from.Close()
				return
			}
		}
	}
	var both sync.WaitGroup
	both.Go(func() { one(a, b) })
	both.Go(func() { one(b, a) })
	both.Wait()
}
