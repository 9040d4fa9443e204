package splice

import (
	"context"
	"io"
	"net"
	"testing"
	"time"
)

// pair is two ends of a connection.
func pair(t *testing.T) (near, far net.Conn) {
	t.Helper()
	l, err := net.Listen("tcp4", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	if near, err = net.Dial("tcp4", l.Addr().String()); err != nil {
		t.Fatal(err)
	}
	if far, err = l.Accept(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { near.Close(); far.Close() })
	for _, c := range []net.Conn{near, far} {
		c.SetDeadline(time.Now().Add(30 * time.Second))
	}
	return near, far
}

// What one says the other hears, and that it has no more to say; the answer still comes.
func TestStreams(t *testing.T) {
	a, nearA := pair(t)
	b, nearB := pair(t)
	done := make(chan struct{})
	go func() { Streams(t.Context(), nearA, nearB); close(done) }()
	io.WriteString(a, "question")
	a.(*net.TCPConn).CloseWrite()
	if got, err := io.ReadAll(b); err != nil || string(got) != "question" {
		t.Errorf("%q, %v", got, err)
	}
	io.WriteString(b, "answer")
	b.Close()
	if got, err := io.ReadAll(a); err != nil || string(got) != "answer" {
		t.Errorf("%q, %v", got, err)
	}
	<-done
}

// The end of ctx ends both.
func TestStreamsCut(t *testing.T) {
	a, nearA := pair(t)
	b, nearB := pair(t)
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan struct{})
	go func() { Streams(ctx, nearA, nearB); close(done) }()
	cancel()
	<-done
	for _, c := range []net.Conn{a, b} {
		if _, err := c.Read(make([]byte, 1)); err == nil {
			t.Error("a stream goes on")
		}
	}
}
