package nfsclient

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"sync"
	"syscall"
	"testing"
	"testing/synctest"
	"time"

	"vch/internal/fault"
)

func tcpPair(t *testing.T) (near, far net.Conn) {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	check(t, err)
	defer l.Close()
	near, err = net.Dial("tcp", l.Addr().String())
	check(t, err)
	far, err = l.Accept()
	check(t, err)
	return near, far
}

// Where the process may, it comes from a reserved port, also many times at once and again at once; else from another.
func TestDialReserved(t *testing.T) {
	t.Parallel()
	var mu sync.Mutex
	ports := map[int]bool{}
	port := listen(t, func(c net.Conn) { _, _ = c.Read(make([]byte, 1)) })
	may := true
	if l, err := net.Listen("tcp", "127.0.0.1:1023"); errors.Is(err, os.ErrPermission) {
		may = false
	} else if err == nil {
		l.Close()
	}
	for range 3 {
		var all sync.WaitGroup
		for range 30 {
			all.Go(func() {
				c, reserved, err := DialReserved(t.Context(), "tcp", fmt.Sprintf("127.0.0.1:%d", port))
				if err != nil {
					t.Error(err)
					return
				}
				defer c.Close()
				mu.Lock()
				ports[c.LocalAddr().(*net.TCPAddr).Port] = true
				mu.Unlock()
				if reserved != may || isReserved(c) != may {
					t.Errorf("from %v; reserved ports may be used: %t", c.LocalAddr(), may)
				}
			})
		}
		all.Wait()
	}
	if len(ports) < 20 {
		t.Errorf("%d ports were used", len(ports))
	}
	gone, far := tcpPair(t)
	address := gone.LocalAddr().String()
	gone.Close()
	far.Close()
	if _, _, err := DialReserved(t.Context(), "tcp", address); !errors.Is(err, syscall.ECONNREFUSED) {
		t.Errorf("%v", err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if _, _, err := DialReserved(ctx, "tcp", fmt.Sprintf("127.0.0.1:%d", port)); err == nil {
		t.Error("it connects after the end of its context")
	}
}

func TestErrorText(t *testing.T) {
	t.Parallel()
	for _, tc := range []struct {
		err  error
		text string
		kind fault.Kind
	}{
		{named("mkdir", "volumes/data", statusError3(13)), "mkdir volumes/data: permission denied (NFS3ERR_ACCES)", fault.Denied},
		{named("mkdir", "d", statusError4(10052)), "mkdir d: connection lost (NFS4ERR_BADSESSION)", fault.Unavailable},
		{named("mount", "h:/p", statusErrorMount(2)), "mount h:/p: not exported (MNT3ERR_NOENT)", fault.Unavailable},
		{named("rmdir", "d", statusError3(66)), "rmdir d: directory not empty (NFS3ERR_NOTEMPTY)", fault.Conflict},
		{named("stat", "d", statusError3(4711)), "stat d: the server failed (NFS3ERR_4711)", fault.Unavailable},
		{named("stat", "d", &Error{Reason: Lost, Err: net.ErrClosed}), "stat d: connection lost (use of closed network connection)", fault.Unavailable},
		{named("stat", "d", &Error{Reason: Reason(250)}), "stat d: the server failed", fault.Unavailable},
		{fmt.Errorf("more: %w", named("stat", "", statusError4(2))), "more: stat: no such file or directory (NFS4ERR_NOENT)", fault.NotFound},
	} {
		if tc.err.Error() != tc.text || fault.KindOf(tc.err) != tc.kind {
			t.Errorf("%q is %v; want %q", tc.err, fault.KindOf(tc.err), tc.text)
		}
	}
	for r := range reasons {
		if meanings[r].text == "" {
			t.Errorf("reason %d has no text", r)
		}
	}
	if _, ok := ReasonOf(net.ErrClosed); ok {
		t.Error("somebody else's error has a reason")
	}
	shared := &Error{Reason: Lost}
	if err := named("stat", "d", shared); err == error(shared) || shared.Op != "" {
		t.Error("an error that calls share was changed")
	}
}

// A call that its context ends leaves nothing behind; its late reply harms nobody.
func TestAbandonedCall(t *testing.T) {
	t.Parallel()
	a, b := tcpPair(t)
	defer b.Close()
	c := newConn(a, authSys("host", 1, 2))
	defer c.close()
	for range 3 {
		ctx, cancel := context.WithTimeout(t.Context(), 5*time.Millisecond)
		_, err := c.call(ctx, service{programNFS, 3}, 0, nil)
		cancel()
		wantReason(t, err, Silent)
	}
	if len(c.pending) != 0 {
		t.Errorf("%d calls are kept", len(c.pending))
	}
	for range 3 {
		record, err := readRecord(b)
		check(t, err)
		_, err = b.Write(append(words(1<<31|24), append(record[:4:4], words(1, 0, 0, 0, 0)...)...))
		check(t, err)
	}
	done := make(chan error, 1)
	go func() {
		body, err := c.call(t.Context(), service{programNFS, 3}, 0, nil)
		if err == nil && string(body) != "okay" {
			err = fmt.Errorf("%q", body)
		}
		done <- err
	}()
	record, err := readRecord(b)
	check(t, err)
	_, err = b.Write(append(append(words(1<<31|28), append(record[:4:4], words(1, 0, 0, 0, 0)...)...), "okay"...))
	check(t, err)
	check(t, <-done)
}

// A call that the server drops comes again, with its number; in version 4, where that is forbidden, it does not.
func TestDroppedCall(t *testing.T) {
	for _, v := range []uint32{3, 4} {
		synctest.Test(t, func(t *testing.T) {
			near, far := net.Pipe()
			c := newConn(near, authSys("host", 1, 2))
			defer c.close()
			var records [][]byte
			served := make(chan struct{})
			go func() {
				defer close(served)
				for {
					record, err := readRecord(far)
					if err != nil {
						return
					}
					if records = append(records, record); len(records) == 3 {
						_, _ = far.Write(append(words(1<<31|24), append(record[:4:4], words(1, 0, 0, 0, 0)...)...))
					}
				}
			}()
			ctx, cancel := context.WithTimeout(t.Context(), 5*time.Minute)
			defer cancel()
			begun := time.Now()
			_, err := c.call(ctx, service{programNFS, v}, procRemove, words(1, 2, 3))
			took := time.Since(begun)
			far.Close()
			<-served
			if v == 4 {
				if wantReason(t, err, Silent); len(records) != 1 {
					t.Errorf("it came %d times", len(records))
				}
				return
			}
			if err != nil || took != 30*time.Second || len(records) != 3 || !bytes.Equal(records[0], records[2]) {
				t.Errorf("%v after %v, %d records", err, took, len(records))
			}
		})
	}
}
