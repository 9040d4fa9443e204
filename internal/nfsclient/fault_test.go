package nfsclient

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"net"
	"os"
	"path/filepath"
	"strconv"
	"sync"
	"syscall"
	"testing"
	"time"

	"vch/internal/fault"
	"vch/internal/nfsclient/nfstest"
)

// failsToOpen opens what cannot be opened, in two seconds at most.
func failsToOpen(t *testing.T, o Options, want Reason) *Error {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 2*time.Second)
	defer cancel()
	e, err := Open(ctx, o)
	if err == nil {
		e.Close()
		t.Fatalf("it opens; want %q", want)
	}
	wantReason(t, err, want)
	var why *Error
	if errors.As(err, &why) && why.Op != "mount" {
		t.Errorf("%+v", why)
	}
	return why
}

// listen is a port where accept gets each connection.
func listen(t *testing.T, accept func(net.Conn)) int {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	var all sync.WaitGroup
	all.Go(func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			all.Go(func() {
				defer c.Close()
				accept(c)
			})
		}
	})
	t.Cleanup(func() { l.Close(); all.Wait() })
	return l.Addr().(*net.TCPAddr).Port
}

// What is wrong before a server answers, in both versions.
func TestNoServer(t *testing.T) {
	t.Parallel()
	closed := listen(t, func(net.Conn) {})
	silent := listen(t, func(c net.Conn) {
		buf := make([]byte, 4096)
		for {
			if _, err := c.Read(buf); err != nil {
				return
			}
		}
	})
	garbage := listen(t, func(c net.Conn) {
		_, _ = c.Write([]byte("HTTP/1.1 400 Bad Request\r\nContent-Length: 1000000\r\n\r\n"))
		_, _ = c.Read(make([]byte, 1))
	})
	gone := func() int { // nothing listens there any more
		l, err := net.Listen("tcp", "127.0.0.1:0")
		check(t, err)
		defer l.Close()
		return l.Addr().(*net.TCPAddr).Port
	}()
	failing := func(err error) func(context.Context, string, string) (net.Conn, error) {
		return func(context.Context, string, string) (net.Conn, error) {
			return nil, &net.OpError{Op: "dial", Err: err}
		}
	}
	for _, tc := range []struct {
		name   string
		port   int
		dial   func(context.Context, string, string) (net.Conn, error)
		v3, v4 Reason
	}{
		{"closes", closed, nil, Lost, Lost},
		{"silent", silent, nil, Silent, Silent},
		{"garbage", garbage, nil, Protocol, Protocol},
		{"refused", gone, nil, NoMountd, Refused},
		{"unknown name", 1, failing(&net.DNSError{IsNotFound: true}), Unresolved, Unresolved},
		{"no route", 1, failing(os.NewSyscallError("connect", syscall.EHOSTUNREACH)), Unreachable, Unreachable},
		{"time-out", 1, failing(os.NewSyscallError("connect", syscall.ETIMEDOUT)), Silent, Silent},
	} {
		for v, want := range map[Version]Reason{V3: tc.v3, V4: tc.v4} {
			t.Run(fmt.Sprintf("%s v%d", tc.name, v), func(t *testing.T) {
				t.Parallel()
				o := Options{Host: "127.0.0.1", Port: tc.port, MountPort: tc.port, Version: v, Path: "/export", Dial: tc.dial}
				if err := failsToOpen(t, o, want); err.Path != "127.0.0.1:/export" || err.Kind() != fault.Unavailable {
					t.Errorf("%+v, %v", err, err.Kind())
				}
			})
		}
	}
	failsToOpen(t, Options{Host: "127.0.0.1", Version: 5, Path: "/"}, NoVersion)
	failsToOpen(t, Options{Host: "127.0.0.1", Version: V4, Path: "relative"}, Inval)
	failsToOpen(t, Options{Host: "127.0.0.1", Version: V3, Path: "/", Dial: failing(os.NewSyscallError("connect", syscall.ECONNREFUSED))}, NoPortmapper)
}

func TestWrongVersion(t *testing.T) {
	t.Parallel()
	three := optionsOf(nfstest.Start(t, nfstest.Config{V3: true}), V4)
	failsToOpen(t, three, NoVersion)
	s := nfstest.Start(t, nfstest.Config{})
	four := optionsOf(s, V3)
	four.MountPort = four.Port
	failsToOpen(t, four, NoMountd)
	failsToOpen(t, optionsOf(nfstest.Start(t, nfstest.Config{Minor0: true}), V4), NoVersion)

	// One server with both: what the one makes, the other sees.
	both := nfstest.Start(t, nfstest.Config{V3: true, Both: true})
	a, b := open(t, optionsOf(both, V3)), open(t, optionsOf(both, V4))
	check(t, a.WriteFile(t.Context(), "file", []byte("x"), 0o600))
	one, err := a.Stat(t.Context(), "file")
	check(t, err)
	other, err := b.Stat(t.Context(), "file")
	check(t, err)
	if one.FSID, other.FSID = (FSID{}), (FSID{}); one != other {
		t.Errorf("%+v\n%+v", one, other)
	}
}

// What an export refuses, in both versions. config is completed by the version.
func onGanesha(t *testing.T, config nfstest.Config, test func(t *testing.T, s *nfstest.Server, o Options)) {
	for _, v := range []Version{V3, V4} {
		t.Run(fmt.Sprintf("v%d", v), func(t *testing.T) {
			t.Parallel()
			c := config
			c.V3 = v == V3
			s := nfstest.Start(t, c)
			test(t, s, optionsOf(s, v))
		})
	}
}

func TestNoExport(t *testing.T) {
	onGanesha(t, nfstest.Config{}, func(t *testing.T, s *nfstest.Server, o Options) {
		file := o
		o.Path += "-not"
		failsToOpen(t, o, NoExport)
		o.Path = s.Path + "/none"
		failsToOpen(t, o, NoExport)
		check(t, os.WriteFile(filepath.Join(s.Dir, "file"), nil, 0o644))
		file.Path += "/file"
		failsToOpen(t, file, NotDir)
	})
}

func TestReadOnly(t *testing.T) {
	onGanesha(t, nfstest.Config{ReadOnly: true}, func(t *testing.T, s *nfstest.Server, o Options) {
		e := open(t, o)
		check(t, os.WriteFile(filepath.Join(s.Dir, "file"), []byte("x"), 0o644))
		_, err := e.Mkdir(t.Context(), "d", 0o755)
		wantReason(t, err, ReadOnly)
		if !fault.Is(err, fault.Denied) {
			t.Errorf("%v", fault.KindOf(err))
		}
		wantReason(t, e.WriteFile(t.Context(), "new", nil, 0o644), ReadOnly)
		wantReason(t, e.Remove(t.Context(), "file"), ReadOnly)
		wantReason(t, e.RemoveAll(t.Context(), "file"), ReadOnly)
		if data, err := e.ReadFile(t.Context(), "file", 10); err != nil || string(data) != "x" {
			t.Errorf("%q, %v", data, err)
		}
	})
}

func TestRootSquash(t *testing.T) {
	onGanesha(t, nfstest.Config{Squash: "Root_Squash"}, func(t *testing.T, s *nfstest.Server, o Options) {
		_, err := open(t, o).Mkdir(t.Context(), "d", 0o755)
		wantReason(t, err, Denied)
		var e *Error
		if errors.As(err, &e) && (!e.Reserved || e.Name == "" || e.Kind() != fault.Denied) {
			t.Errorf("%+v", e)
		}
		check(t, os.Chmod(s.Dir, 0o777))
		a, err := open(t, o).Mkdir(t.Context(), "d", 0o755)
		if err != nil || a.UID == 0 {
			t.Errorf("%+v, %v", a, err)
		}
		o.UID, o.GID = 4242, 4243
		a, err = open(t, o).Mkdir(t.Context(), "mine", 0o755)
		if err != nil || a.UID != 4242 || a.GID != 4243 {
			t.Errorf("%+v, %v", a, err)
		}
	})
}

func TestInsecurePort(t *testing.T) {
	onGanesha(t, nfstest.Config{Privileged: true}, func(t *testing.T, s *nfstest.Server, o Options) {
		e := open(t, o)
		_, err := e.Mkdir(t.Context(), "d", 0o755)
		check(t, err)
		o.Dial = s.Dial
		want := InsecurePort
		if o.Version == V4 {
			want = NoExport // Ganesha hides it
		}
		if err := failsToOpen(t, o, want); err.Reserved || err.Status == 0 {
			t.Errorf("%+v", err)
		}
	})
}

// The root goes on the server's disk: that is said, and the export works again when it is back.
func TestStale(t *testing.T) {
	onGanesha(t, nfstest.Config{}, func(t *testing.T, s *nfstest.Server, o Options) {
		sub := filepath.Join(s.Dir, "sub")
		check(t, os.Mkdir(sub, 0o755))
		o.Path += "/sub"
		e := open(t, o)
		check(t, e.WriteFile(t.Context(), "file", nil, 0o644))
		check(t, os.RemoveAll(sub))
		_, err := e.Mkdir(t.Context(), "d", 0o755)
		wantReason(t, err, Stale)
		wantReason(t, e.RemoveAll(t.Context(), "file"), Stale)
		if !fault.Is(err, fault.Unavailable) {
			t.Errorf("%v", fault.KindOf(err))
		}
		check(t, os.Mkdir(sub, 0o755))
		_, err = e.Mkdir(t.Context(), "d", 0o755)
		check(t, err)
	})
}

// A server that crashed and is back is used again, without a word: only the calls in flight know.
func TestServerRestart(t *testing.T) {
	onGanesha(t, nfstest.Config{}, func(t *testing.T, s *nfstest.Server, o Options) {
		e := open(t, o)
		for i := range 3 {
			check(t, e.WriteFile(t.Context(), "file", []byte(strconv.Itoa(i)), 0o644))
			s.Kill()
			ctx, cancel := context.WithTimeout(t.Context(), time.Second)
			_, err := e.Stat(ctx, "file")
			cancel()
			if r, _ := ReasonOf(err); r != Refused && r != Lost {
				t.Errorf("%v", err)
			}
			s.Restart()
			ctx, cancel = context.WithTimeout(t.Context(), 20*time.Second)
			data, err := e.ReadFile(ctx, "file", 10)
			cancel()
			if err != nil || string(data) != strconv.Itoa(i) {
				t.Errorf("%q, %v", data, err)
			}
		}
	})
}

// What is at the path after a server's restart is what is seen, although the directory that was there is there still, elsewhere.
func TestAnotherDirectoryAfterRestart(t *testing.T) {
	onGanesha(t, nfstest.Config{}, func(t *testing.T, s *nfstest.Server, o Options) {
		sub := filepath.Join(s.Dir, "sub")
		check(t, os.Mkdir(sub, 0o755))
		check(t, os.WriteFile(filepath.Join(sub, "old"), nil, 0o644))
		o.Path += "/sub"
		e := open(t, o)
		_, err := e.Stat(t.Context(), "old")
		check(t, err)
		s.Kill()
		check(t, os.Rename(sub, filepath.Join(s.Dir, "away")))
		check(t, os.Mkdir(sub, 0o755))
		check(t, os.WriteFile(filepath.Join(sub, "new"), nil, 0o644))
		s.Restart()
		ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second)
		defer cancel()
		_, err = e.Stat(ctx, "new")
		check(t, err)
		_, err = e.Stat(ctx, "old")
		wantReason(t, err, NotFound)
	})
}

// A stopped server is silent, and no call waits longer than its context; when it goes on, so do calls, in slots whose replies came late.
func TestSilence(t *testing.T) {
	onGanesha(t, nfstest.Config{}, func(t *testing.T, s *nfstest.Server, o Options) {
		e := open(t, o)
		s.Stop()
		ctx, cancel := context.WithTimeout(t.Context(), 300*time.Millisecond)
		defer cancel()
		var all sync.WaitGroup
		begun := time.Now()
		for range 100 {
			all.Go(func() {
				_, err := e.Stat(ctx, "none")
				wantReason(t, err, Silent)
			})
		}
		all.Wait()
		if took := time.Since(begun); took > 2*time.Second {
			t.Errorf("it took %v", took)
		}
		s.Continue()
		for range 100 {
			all.Go(func() {
				_, err := e.Mkdir(t.Context(), fmt.Sprint(rand.Uint64()), 0o755)
				if err != nil {
					t.Error(err)
				}
			})
		}
		all.Wait()
	})
}

// Close is bounded also where the server says nothing.
func TestCloseInSilence(t *testing.T) {
	onGanesha(t, nfstest.Config{}, func(t *testing.T, s *nfstest.Server, o Options) {
		e := open(t, o)
		s.Stop()
		var all sync.WaitGroup
		all.Go(func() {
			_, err := e.Stat(t.Context(), "")
			wantReason(t, err, Lost)
		})
		begun := time.Now()
		check(t, e.Close())
		all.Wait()
		if took := time.Since(begun); took > 2*time.Second {
			t.Errorf("it took %v", took)
		}
		s.Continue()
	})
}
