package main

import (
	"bufio"
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"go.uber.org/goleak"

	"vch/internal/fault"
	"vch/portlayer"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// fixture is a handler with one path for every way to answer; at tells when a request is there.
type fixture struct {
	at      chan string
	release chan struct{}
}

func (f fixture) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	switch r.URL.Path {
	case "/short": // an answer that is worked on
		f.at <- r.URL.Path
		select {
		case <-f.release:
			fmt.Fprint(w, "done")
		case <-r.Context().Done():
			fmt.Fprint(w, "cut")
		}
	case "/events":
		w.WriteHeader(http.StatusOK)
		if err := http.NewResponseController(w).Flush(); err != nil {
			panic(err)
		}
		f.at <- r.URL.Path
		<-r.Context().Done()
		fmt.Fprint(w, "end")
	case "/attach", "/deaf":
		conn, rw, err := http.NewResponseController(w).Hijack()
		if err != nil {
			panic(err)
		}
		defer conn.Close()
		fmt.Fprint(rw, "HTTP/1.1 101 UPGRADED\r\nConnection: Upgrade\r\nUpgrade: tcp\r\n\r\n")
		rw.Flush()
		f.at <- r.URL.Path
		if r.URL.Path == "/attach" {
			<-r.Context().Done()
			fmt.Fprint(conn, "end")
		} else {
			io.Copy(io.Discard, conn) // heeds nothing but its connection
		}
	}
}

// starts a server with every kind of request under way but short ones.
func start(t *testing.T) (f fixture, path string, stop context.CancelFunc, ended chan error) {
	t.Helper()
	f = fixture{at: make(chan string), release: make(chan struct{})}
	path = filepath.Join(t.TempDir(), "s")
	ctx, cancel := context.WithCancel(t.Context())
	ended = make(chan error, 1)
	listening := make(chan struct{})
	log := slog.New(slog.NewTextHandler(writerFunc(func(b []byte) (int, error) {
		if strings.Contains(string(b), "msg=listening") {
			close(listening)
		}
		return len(b), nil
	}), nil))
	go func() { ended <- answer(ctx, []address{{"unix", path}}, nil, f, log) }()
	<-listening
	return f, path, cancel, ended
}

type writerFunc func([]byte) (int, error)

func (w writerFunc) Write(b []byte) (int, error) { return w(b) }

// ask sends a request and gives what comes back, all of it.
func ask(t *testing.T, path, url string) <-chan string {
	t.Helper()
	conn, err := net.Dial("unix", path)
	if err != nil {
		t.Fatal(err)
	}
	fmt.Fprintf(conn, "GET %s HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n", url)
	answer := make(chan string, 1)
	go func() {
		defer conn.Close()
		text, _ := io.ReadAll(bufio.NewReader(conn))
		answer <- string(text)
	}()
	return answer
}

func TestStopEndsStreamsAndLetsTheRestFinish(t *testing.T) {
	f, path, stop, ended := start(t)
	answers := map[string]<-chan string{}
	for _, url := range []string{"/short", "/events", "/attach"} {
		answers[url] = ask(t, path, url)
		<-f.at
	}
	stop()
	for _, url := range []string{"/events", "/attach"} {
		if got := <-answers[url]; !strings.Contains(got, "end") {
			t.Errorf("%s did not hear of the end: %q", url, got)
		}
	}
	select {
	case err := <-ended:
		t.Fatalf("stopped while a request was under way: %v", err)
	default:
	}
	for end := time.Now().Add(time.Minute); ; time.Sleep(time.Millisecond) { // streams hear of the end while the listener closes
		conn, err := net.Dial("unix", path)
		if err != nil {
			break
		}
		conn.Close()
		if time.Now().After(end) {
			t.Fatal("still accepting")
		}
	}
	close(f.release)
	if got := <-answers["/short"]; !strings.HasSuffix(got, "done") {
		t.Errorf("the short request was not finished: %q", got)
	}
	if err := <-ended; err != nil {
		t.Error(err)
	}
	if _, err := os.Lstat(path); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("the socket is left: %v", err)
	}
}

// A handler that heeds no context ends with its connection, and a short one that never ends is cut, both at the limit.
func TestStopHasALimit(t *testing.T) {
	f := fixture{at: make(chan string), release: make(chan struct{})}
	s := newServer(f, slog.New(slog.DiscardHandler))
	path := filepath.Join(t.TempDir(), "s")
	l, err := listen(t.Context(), path)
	if err != nil {
		t.Fatal(err)
	}
	served := make(chan error, 1)
	go func() { served <- s.serve(l) }()
	deaf, short := ask(t, path, "/deaf"), (<-chan string)(nil)
	<-f.at
	short = ask(t, path, "/short")
	<-f.at
	if err := s.stop(50 * time.Millisecond); err != nil {
		t.Error(err)
	}
	if err := <-served; err != nil {
		t.Error(err)
	}
	<-deaf
	<-short
}

func TestListen(t *testing.T) {
	dir := t.TempDir()
	path := filepath.Join(dir, "s")
	l, err := listen(t.Context(), path)
	if err != nil {
		t.Fatal(err)
	}
	info, err := os.Stat(path)
	if err != nil {
		t.Fatal(err)
	}
	if info.Mode().Perm() != 0o660 {
		t.Errorf("mode %o", info.Mode().Perm())
	}
	accepted := make(chan struct{})
	go func() {
		defer close(accepted)
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			c.Close()
		}
	}()
	if _, err := listen(t.Context(), path); !fault.Is(err, fault.InUse) || !strings.Contains(err.Error(), "another program answers there") {
		t.Errorf("a live socket: %v", err)
	}
	l.(*net.UnixListener).SetUnlinkOnClose(false) // as a daemon leaves it that is killed
	l.Close()
	<-accepted
	again, err := listen(t.Context(), path)
	if err != nil {
		t.Fatalf("a dead daemon's socket: %v", err)
	}
	again.Close()

	file := filepath.Join(dir, "file")
	if err := os.WriteFile(file, []byte("mine"), 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := listen(t.Context(), file); !fault.Is(err, fault.Conflict) {
		t.Errorf("a file: %v", err)
	}
	if text, _ := os.ReadFile(file); string(text) != "mine" {
		t.Error("the file was changed")
	}
	if _, err := listen(t.Context(), filepath.Join(dir, "no", "s")); !fault.Is(err, fault.NotFound) || !strings.Contains(err.Error(), "there is no directory") {
		t.Errorf("no directory: %v", err)
	}
}

// Of two sockets of which one cannot be had, none is left.
func TestAllSocketsOrNone(t *testing.T) {
	dir := t.TempDir()
	err := answer(t.Context(), []address{{"unix", filepath.Join(dir, "a")}, {"unix", filepath.Join(dir, "no", "b")}}, nil, http.NotFoundHandler(), slog.New(slog.DiscardHandler))
	if !fault.Is(err, fault.NotFound) {
		t.Errorf("err = %v", err)
	}
	if left, _ := os.ReadDir(dir); len(left) != 0 {
		t.Errorf("left: %v", left)
	}
}

// A daemon that starts whatever is away waits for its vCenter, and says why once; what waiting does not mend it says at once.
func TestUntilReached(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		away := fault.New(fault.Unavailable, "vc cannot be reached")
		wrong := fault.New(fault.Denied, "vc lets nobody in")
		for _, c := range []struct {
			errs  []error
			want  error
			after time.Duration
			said  int
		}{
			{[]error{nil}, nil, 0, 0},
			{[]error{away, away, away, nil}, nil, 7 * time.Second, 1},
			{[]error{away, wrong}, wrong, time.Second, 1},
			{[]error{wrong}, wrong, 0, 0},
		} {
			var log bytes.Buffer
			began := time.Now()
			_, err := untilReached(t.Context(), slog.New(slog.NewTextHandler(&log, nil)), func() (portlayer.Hypervisor, error) {
				err := c.errs[0]
				c.errs = c.errs[1:]
				return nil, err
			})
			if err != c.want || time.Since(began) != c.after || strings.Count(log.String(), "vc cannot be reached") != c.said {
				t.Errorf("%v after %v, want %v after %v; it said\n%s", err, time.Since(began), c.want, c.after, log.String())
			}
		}
		ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
		defer cancel()
		if _, err := untilReached(ctx, slog.New(slog.DiscardHandler), func() (portlayer.Hypervisor, error) { return nil, away }); !errors.Is(err, context.DeadlineExceeded) {
			t.Error(err)
		}
	})
}
