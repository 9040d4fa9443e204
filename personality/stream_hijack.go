package personality

import (
	"fmt"
	"io"
	"net"
	"net/http"
	"sync"
	"sync/atomic"
)

// duplex is a connection that a client turns into a stream both ways: attach and exec. It is taken over from HTTP not before begin, so that what fails
// earlier is answered as any error; reads and writes wait for that.
type duplex struct {
	w         http.ResponseWriter
	r         *http.Request
	mediaType string

	once  sync.Once
	ready chan struct{} // closed when the fields below are set for good
	conn  net.Conn
	in    io.Reader // what the client has sent already, then conn
	err   error     // why the connection could not be taken over

	lost atomic.Bool // a write failed: the client has gone
}

func newDuplex(w http.ResponseWriter, r *http.Request) *duplex {
	return &duplex{w: w, r: r, ready: make(chan struct{})}
}

// begin takes the connection over and answers the request: 101 to a client that asked for an upgrade, else 200 with a body that lasts as
// long as the connection. A second call does nothing.
func (d *duplex) begin() {
	d.once.Do(func() {
		defer close(d.ready)
		conn, rw, err := http.NewResponseController(d.w).Hijack()
		if err != nil {
			d.err = fmt.Errorf("cannot take the connection over: %w", err)
			return
		}
		// Past what is buffered the connection itself is read: net/http's reader would cancel the request's context at the client's half-close.
		d.conn, d.in = conn, io.MultiReader(io.LimitReader(rw.Reader, int64(rw.Reader.Buffered())), conn)
		head := "HTTP/1.1 200 OK\r\nContent-Type: " + d.mediaType + "\r\n"
		if d.r.Header.Get("Upgrade") != "" {
			head = "HTTP/1.1 101 UPGRADED\r\nContent-Type: " + d.mediaType + "\r\nConnection: Upgrade\r\nUpgrade: tcp\r\n"
		}
		_, d.err = io.WriteString(conn, head)
		if d.err == nil {
			d.err = d.w.Header().Write(conn) // Api-Version and its like
		}
		if d.err == nil {
			_, d.err = io.WriteString(conn, "\r\n")
		}
	})
}

// began reports whether the connection has been taken over, so that an error can no longer be answered.
func (d *duplex) began() bool {
	select {
	case <-d.ready:
		return d.conn != nil
	default:
		return false
	}
}

// Read is what the client sends; its half-close is io.EOF.
func (d *duplex) Read(p []byte) (int, error) {
	<-d.ready
	if d.err != nil {
		return 0, d.err
	}
	return d.in.Read(p)
}

func (d *duplex) Write(p []byte) (int, error) {
	<-d.ready
	if d.err != nil {
		return 0, d.err
	}
	n, err := d.conn.Write(p)
	if err != nil {
		d.lost.Store(true)
	}
	return n, err
}

// close ends the stream. What reads from it then fails.
func (d *duplex) close() {
	d.once.Do(func() { // never begun: let nobody wait
		d.err = net.ErrClosed
		close(d.ready)
	})
	if d.conn != nil {
		d.conn.Close()
	}
}
