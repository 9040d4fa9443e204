package main

import (
	"bufio"
	"context"
	"errors"
	"log/slog"
	"net"
	"net/http"
	"sync"
	"time"
)

// server answers HTTP and can stop: it lets what is being answered finish, and ends what would go on for ever.
//
// A response that was flushed or hijacked before its end is a stream (events, logs -f, attach, wait): it ends at once when the server stops.
// Anything else is short and has until the limit.
type server struct {
	http     *http.Server // of unix sockets
	remote   *http.Server // of TCP
	handler  http.Handler
	requests sync.WaitGroup

	mu       sync.Mutex // guards below, and the fields of requests that say so
	stopping bool
	open     map[*request]struct{}
}

// request is one request while it is answered, and its ResponseWriter.
type request struct {
	http.ResponseWriter
	server *server
	cancel context.CancelFunc
	stream bool     // guarded by server.mu
	conn   net.Conn // guarded by server.mu; nil if not hijacked
}

func newServer(handler http.Handler, log *slog.Logger) *server {
	s := &server{handler: handler, open: map[*request]struct{}{}}
	errors := slog.NewLogLogger(log.Handler(), slog.LevelDebug)
	// Without timeouts: who may open the socket may do anything, and each request would wind two clocks.
	s.http = &http.Server{Handler: s, ErrorLog: errors}
	s.remote = &http.Server{Handler: s, ErrorLog: errors, ReadHeaderTimeout: headerLimit, IdleTimeout: idleLimit}
	return s
}

// What a client that comes over a network has to be quick with: its handshake and its request's header; and how long a connection is kept without a request.
const (
	headerLimit = 10 * time.Second
	idleLimit   = 2 * time.Minute
)

// serve answers at l until stop.
func (s *server) serve(l net.Listener) error {
	by := s.http
	if l.Addr().Network() != "unix" {
		by = s.remote
	}
	if err := by.Serve(l); !errors.Is(err, http.ErrServerClosed) {
		return err
	}
	return nil
}

// ServeHTTP is http.Handler.
func (s *server) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	ctx, cancel := context.WithCancel(r.Context())
	defer cancel()
	q := &request{ResponseWriter: w, server: s, cancel: cancel}
	s.mu.Lock()
	if s.stopping {
		s.mu.Unlock()
		http.Error(w, `{"message":"vch is stopping"}`, http.StatusServiceUnavailable)
		return
	}
	s.open[q] = struct{}{}
	s.requests.Add(1)
	s.mu.Unlock()
	defer func() {
		s.mu.Lock()
		delete(s.open, q)
		s.mu.Unlock()
		s.requests.Done()
	}()
	s.handler.ServeHTTP(q, r.WithContext(ctx))
}

// stop stops accepting, ends streams, waits limit for the rest, and then ends that too. It returns when no request is left.
func (s *server) stop(limit time.Duration) error {
	s.mu.Lock()
	s.stopping = true
	for q := range s.open {
		if q.stream {
			q.cancel()
		}
	}
	s.mu.Unlock()
	ctx, cancel := context.WithTimeout(context.Background(), limit)
	defer cancel()
	var both sync.WaitGroup
	var remote error
	both.Go(func() { remote = s.remote.Shutdown(ctx) })
	err := s.http.Shutdown(ctx)
	both.Wait()
	err = errors.Join(err, remote)
	gone := make(chan struct{})
	go func() { s.requests.Wait(); close(gone) }()
	if err == nil { // what is left was hijacked and told to end
		select {
		case <-gone:
			return nil
		case <-ctx.Done():
		}
	}
	s.mu.Lock()
	for q := range s.open {
		q.cancel()
		if q.conn != nil {
			q.conn.Close()
		}
	}
	s.mu.Unlock()
	err = errors.Join(s.http.Close(), s.remote.Close())
	select {
	case <-gone:
		return err
	case <-time.After(limit):
		return errors.Join(err, errors.New("requests that were told to end go on; they end with this process"))
	}
}

// began notes that q is a stream.
func (q *request) began(conn net.Conn) {
	q.server.mu.Lock()
	defer q.server.mu.Unlock()
	q.stream = true
	if conn != nil {
		q.conn = conn
	}
	if q.server.stopping {
		q.cancel()
	}
}

// Unwrap is for http.ResponseController.
func (q *request) Unwrap() http.ResponseWriter { return q.ResponseWriter }

// Flush is http.Flusher.
func (q *request) Flush() {
	// A client that is gone is found by the next write or by the request's context.
	_ = q.FlushError()
}

// FlushError is for http.ResponseController.
func (q *request) FlushError() error {
	q.began(nil)
	return http.NewResponseController(q.ResponseWriter).Flush()
}

// Hijack is http.Hijacker.
func (q *request) Hijack() (net.Conn, *bufio.ReadWriter, error) {
	conn, rw, err := http.NewResponseController(q.ResponseWriter).Hijack()
	if err == nil {
		q.began(conn)
	}
	return conn, rw, err
}
