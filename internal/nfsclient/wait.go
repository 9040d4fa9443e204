package nfsclient

import (
	"context"
	"errors"
	"sync"
	"time"

	"vch/internal/pause"
)

// backoff is the n-th wait before a server is called again.
func backoff(n int) time.Duration { return min(50*time.Millisecond<<min(n, 6), 2*time.Second) }

// patiently calls until the server no longer asks to wait.
func patiently(ctx context.Context, call func() error) error {
	for n := 0; ; n++ {
		err := call()
		var e *Error
		if !errors.As(err, &e) || e.Reason != Busy {
			return err
		}
		if err := pause.For(ctx, backoff(n)); err != nil {
			busy := *e
			busy.Err = err
			return &busy
		}
	}
}

// maxFaults of the server's own are got over in one call.
const maxFaults = 3

// insist calls again after a failure of the server's own: Ganesha gives NFS4ERR_SERVERFAULT (NFS3ERR_IO) when a directory or a file goes beside it at that moment. It
// is for calls that can be made twice: those that only look, and those of a sweep.
func insist(ctx context.Context, call func() error) error {
	for n := 0; ; n++ {
		err := call()
		if !hasReason(err, ServerFault) || isBadCookie(err) || n == maxFaults {
			return err
		}
		if pause.For(ctx, backoff(n)) != nil {
			return ended(ctx)
		}
	}
}

// turn is a lock that a context can give up waiting for, and that can be taken away for good. What it guards is made over the network, by one caller for all.
type turn struct {
	token chan struct{}

	mu     sync.Mutex // guards the rest
	cancel context.CancelFunc
	life   context.Context // ends with the turn
	over   context.CancelFunc
}

func newTurn() *turn {
	t := &turn{token: make(chan struct{}, 1)}
	t.life, t.over = context.WithCancel(context.Background())
	return t
}

// until is a context that ends with the turn too, for work that does not need it.
func (t *turn) until(ctx context.Context) (context.Context, context.CancelFunc) {
	ctx, cancel := context.WithCancel(ctx)
	stop := context.AfterFunc(t.life, cancel)
	return ctx, func() { stop(); cancel() }
}

// take gives the context to work in.
func (t *turn) take(ctx context.Context) (context.Context, error) {
	select {
	case t.token <- struct{}{}:
	case <-ctx.Done():
		return nil, ended(ctx)
	}
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.life.Err() != nil {
		<-t.token
		return nil, &Error{Reason: Lost, Err: errClosed}
	}
	ctx, t.cancel = context.WithCancel(ctx)
	return ctx, nil
}

func (t *turn) give() {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.cancel()
	<-t.token
}

// end interrupts who has the turn and takes it for ever. The first call reports true.
func (t *turn) end() bool {
	t.mu.Lock()
	was := t.life.Err() != nil
	t.over()
	if t.cancel != nil {
		t.cancel()
	}
	t.mu.Unlock()
	if !was {
		t.token <- struct{}{}
		<-t.token
	}
	return !was
}

var errClosed = errors.New("the export was closed here")
