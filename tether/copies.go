package tether

import (
	"bufio"
	"context"
	"io"
	"sync"
	"time"

	"vch/guest"
	"vch/internal/fault"
)

// copyGrace is how long a container whose process has ended goes on serving the archives that are under way. It is less than a host waits for the end of
// what it killed.
const copyGrace = 3 * time.Second

// copies are the archives that are read and written while the mounts are there: nothing is unmounted below their feet.
type copies struct {
	ctx    context.Context // ends when they have to
	cancel context.CancelFunc

	mu     sync.Mutex // guards below
	closed bool
	users  int
	idle   chan struct{} // closed when closed and without users
}

func newCopies() *copies {
	c := &copies{idle: make(chan struct{})}
	c.ctx, c.cancel = context.WithCancel(context.Background())
	return c
}

func (c *copies) enter() bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	if !c.closed {
		c.users++
	}
	return !c.closed
}

func (c *copies) leave() {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.users--; c.users == 0 && c.closed {
		close(c.idle)
	}
}

// end lets nobody in any more, and returns when all are out: by themselves within grace, or cut off.
func (c *copies) end(grace time.Duration) {
	c.mu.Lock()
	if c.closed = true; c.users == 0 {
		close(c.idle)
	}
	c.mu.Unlock()
	limit := time.NewTimer(grace)
	defer limit.Stop()
	select {
	case <-c.idle:
	case <-limit.C:
	}
	c.cancel()
	<-c.idle
}

func (c *Core) setCopies(now *copies) (before *copies) {
	c.mu.Lock()
	defer c.mu.Unlock()
	before, c.copies = c.copies, now
	return before
}

func (c *Core) endCopies(grace time.Duration) {
	if now := c.setCopies(nil); now != nil {
		now.end(grace)
	}
}

// copying runs do while the mounts are there. stop is called where do has to come to its end early: ctx ended, or the mounts go.
func (c *Core) copying(ctx context.Context, stop func(error), do func()) error {
	c.mu.Lock()
	now := c.copies
	c.mu.Unlock()
	if now == nil || !now.enter() {
		return errNotMounted
	}
	defer now.leave()
	defer context.AfterFunc(now.ctx, func() { stop(errNotMounted) })()
	defer context.AfterFunc(ctx, func() { stop(ctx.Err()) })()
	do()
	return nil
}

var errNotMounted = fault.New(fault.Conflict, "the container's process has ended, and its files with it")

// Stat is guest.Archives.Stat.
func (c *Core) Stat(ctx context.Context, r guest.StatRequest) (l guest.Located, err error) {
	if e := c.copying(ctx, func(error) {}, func() { l, err = c.sys.Stat(r) }); e != nil {
		return l, e
	}
	return l, err
}

// Archive is guest.Archives.Archive. Between the one who reads files and the one who may be slow to take them is a pipe, so that the first can be stopped.
func (c *Core) Archive(ctx context.Context, r guest.ArchiveRequest, out func([]byte) error) (skipped []guest.Skipped, err error) {
	pr, pw := io.Pipe()
	refused := make(chan error, 1)
	go func() {
		refused <- c.copying(ctx, func(why error) { pw.CloseWithError(why) }, func() {
			w := bufio.NewWriterSize(pw, guest.MaxFrame)
			skipped, err = c.sys.Archive(r, w)
			if err == nil {
				err = w.Flush()
			}
		})
		pw.Close()
	}()
	buf := make([]byte, guest.MaxFrame)
	for {
		n, rerr := pr.Read(buf)
		if n > 0 && rerr == nil {
			rerr = out(buf[:n])
		}
		if rerr == io.EOF {
			break
		}
		if rerr != nil {
			pr.CloseWithError(rerr)
			<-refused
			return nil, rerr
		}
	}
	if e := <-refused; e != nil {
		return nil, e
	}
	return skipped, err
}

// Changes is guest.Archives.Changes.
func (c *Core) Changes(ctx context.Context, out func([]guest.Change) error) (err error) {
	var all []guest.Change
	if e := c.copying(ctx, func(error) {}, func() { all, err = c.sys.Changes() }); e != nil {
		return e
	}
	if err != nil || len(all) == 0 {
		return err
	}
	return out(all)
}

// Extract is guest.Archives.Extract.
func (c *Core) Extract(ctx context.Context, r guest.ExtractRequest, in io.Reader) (err error) {
	pr, pw := io.Pipe()
	go func() { // ends with in, or when nobody reads any more
		_, err := io.Copy(pw, in)
		pw.CloseWithError(err)
	}()
	defer pr.Close()
	e := c.copying(ctx, func(why error) { pw.CloseWithError(why) }, func() {
		if err = c.sys.Extract(r, pr); err == nil {
			_, err = io.Copy(io.Discard, pr) // what pads it
		}
	})
	if e != nil {
		return e
	}
	return err
}
