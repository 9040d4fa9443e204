package guest

import (
	"bytes"
	"context"
	"errors"
	"net"
	"reflect"
	"sync/atomic"
	"testing"
	"time"

	"pgregory.net/rapid"

	"vch/internal/fault"
)

// cutConn breaks after it has carried a number of bytes, both ways together.
type cutConn struct {
	net.Conn
	left *atomic.Int64
}

func (c cutConn) Read(p []byte) (int, error) {
	n, err := c.Conn.Read(p)
	return n, c.count(n, err)
}

func (c cutConn) Write(p []byte) (int, error) {
	if left := c.left.Load(); int64(len(p)) > left { // a part of it still goes through
		n, err := c.Conn.Write(p[:max(left, 0)])
		return n, errors.Join(err, c.count(len(p), nil))
	}
	n, err := c.Conn.Write(p)
	return n, c.count(n, err)
}

func (c cutConn) count(n int, err error) error {
	if c.left.Add(-int64(n)) < 0 {
		c.Close()
		return errors.Join(err, net.ErrClosed)
	}
	return err
}

// A host may be cut off at any byte, and come back with what it kept. It then gets every frame once, in order, whether the process still writes or has ended.
func TestOutputSurvivesCuts(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		frames := rapid.SliceOfN(rapid.SliceOfN(rapid.Byte(), 1, 200), 0, 40).Draw(t, "frames")
		for range rapid.IntRange(0, 2).Draw(t, "large") {
			frames = append(frames, bytes.Repeat([]byte{7}, MaxFrame))
		}
		before := rapid.IntRange(0, len(frames)).Draw(t, "frames before the first host")
		cuts := rapid.SliceOfN(rapid.IntRange(0, 6000), 0, 12).Draw(t, "cuts")
		h := newHandler()
		write := func(from, to int) {
			for i := from; i < to; i++ {
				h.wrote(Stream(1+i%2), frames[i], i == len(frames)-1)
			}
			if len(frames) == 0 {
				h.mu.Lock()
				h.done = true
				h.change()
				h.mu.Unlock()
			}
		}
		write(0, before)
		written := make(chan struct{})
		go func() { write(before, len(frames)); close(written) }()
		defer func() { <-written }()

		var kept []Frame
		for try := 0; ; try++ {
			left := new(atomic.Int64)
			left.Store(1 << 40) // the last one holds
			if try < len(cuts) {
				left.Store(int64(cuts[try]))
			}
			err := once(h, left, func(c *Client) error {
				last := uint64(len(kept))
				_, err := c.Output(context.Background(), last, func(f Frame) error {
					kept = append(kept, f)
					return nil
				})
				return err
			})
			if err == nil {
				break
			}
			if !fault.Is(err, fault.Unavailable) {
				t.Fatalf("cut %d: %v", try, err)
			}
			if try > len(cuts) {
				t.Fatalf("the whole connection failed, too: %v", err)
			}
		}
		if len(kept) != len(frames) {
			t.Fatalf("%d frames, want %d", len(kept), len(frames))
		}
		for i, f := range kept {
			if f.Number != uint64(i+1) || f.Stream != Stream(1+i%2) || !bytes.Equal(f.Data, frames[i]) {
				t.Fatalf("frame %d is %d of stream %d, %d bytes", i+1, f.Number, f.Stream, len(f.Data))
			}
		}
		h.mu.Lock()
		defer h.mu.Unlock()
		if len(h.frames) != 0 {
			t.Fatalf("the guest still holds %d frames", len(h.frames))
		}
	})
}

// once connects, does one thing, and waits for both ends.
func once(h Handler, left *atomic.Int64, do func(*Client) error) error {
	ours, theirs := net.Pipe()
	served := make(chan struct{})
	go func() { defer close(served); _ = Serve(context.Background(), theirs, h); theirs.Close() }()
	defer func() { <-served }()
	ctx, cancel := context.WithTimeout(context.Background(), 20*time.Second)
	defer cancel()
	c, err := Connect(ctx, cutConn{ours, left})
	if err != nil {
		return err
	}
	defer c.Close()
	return do(c)
}

// The end of the output is told only to a host that acknowledged all of it: a process that has ended does not excuse a loss.
func TestUnacknowledgedEndStays(t *testing.T) {
	h := newHandler()
	h.wrote(Stdout, []byte("last words"), true)
	c := meet(t, h)
	stop := errors.New("not kept")
	if _, err := c.Output(limited(t), 0, func(Frame) error { return stop }); !errors.Is(err, stop) {
		t.Fatal(err)
	}
	var got []byte
	st, err := c.Output(limited(t), 0, func(f Frame) error { got = append(got, f.Data...); return nil })
	if err != nil || string(got) != "last words" {
		t.Errorf("the second time: %q, %v", got, err)
	}
	if !reflect.DeepEqual(st, h.Status()) {
		t.Errorf("with the status %+v, not %+v", st, h.Status())
	}
}

// A host that is slow to keep what it gets holds the guest back: no more than the window is on its way.
func TestWindowBoundsWhatIsOnItsWay(t *testing.T) {
	h := newHandler()
	const frames, ahead = 3 * window / MaxFrame, window / MaxFrame
	for i := range frames {
		h.wrote(Stdout, make([]byte, MaxFrame), i == frames-1)
	}
	c := meet(t, h)
	asked := func() uint64 {
		// Calls go to and fro meanwhile, so that a guest that would go further has the time to.
		for range 5 {
			if _, err := c.Status(limited(t)); err != nil {
				t.Fatal(err)
			}
		}
		h.mu.Lock()
		defer h.mu.Unlock()
		return h.asked
	}
	var taken uint64
	_, err := c.Output(limited(t), 0, func(f Frame) error {
		for taken == 0 && asked() < ahead {
		}
		if n := asked(); n > taken+ahead && n <= frames {
			t.Errorf("%d frames were asked for beyond the %d taken, want %d at most", n-taken, taken, ahead)
		}
		taken = f.Number
		return nil
	})
	if err != nil || taken != frames {
		t.Errorf("%d frames, %v", taken, err)
	}
}

// A frame that was acknowledged is gone; asking for it again is told, not answered with another.
func TestAcknowledgedFrameIsGone(t *testing.T) {
	h := newHandler()
	h.wrote(Stdout, []byte("a"), false)
	h.wrote(Stdout, []byte("b"), true)
	h.Forget(1)
	c := meet(t, h)
	if _, err := c.Output(limited(t), 0, func(Frame) error { return nil }); !fault.Is(err, fault.Invalid) {
		t.Errorf("err = %v", err)
	}
}
