// Package coalesce lets callers who want the same answer at the same time share one.
//
// A caller is never given an answer whose finding began before it asked: what was true then is in it. So those who come while one is being found wait for the next,
// together. Alone, a caller waits for nobody.
package coalesce

import (
	"context"
	"sync"
)

// Call is one question. The zero value is ready. All methods may be called at once.
type Call[T any] struct {
	mu      sync.Mutex // guards below
	running bool
	next    *answer[T] // what those wait for who came while one is running; nil: nobody
}

type answer[T any] struct {
	found chan struct{} // closed when value is there
	value T
}

// Do gives find's answer, which others may have, too: nobody may change it. find's context has the values of the first who asked, and ends with nobody's: one who leaves, with
// ctx's error, leaves the others waiting.
func (c *Call[T]) Do(ctx context.Context, find func(context.Context) T) (T, error) {
	c.mu.Lock()
	mine := c.next
	if mine == nil {
		mine = &answer[T]{found: make(chan struct{})}
		if c.running {
			c.next = mine
		}
	}
	if !c.running {
		c.running = true
		go c.run(context.WithoutCancel(ctx), mine, find)
	}
	c.mu.Unlock()
	select {
	case <-mine.found:
		return mine.value, nil
	case <-ctx.Done():
		var none T
		return none, ctx.Err()
	}
}

// run finds answers until nobody waits for one.
func (c *Call[T]) run(ctx context.Context, a *answer[T], find func(context.Context) T) {
	for a != nil {
		a.value = find(ctx)
		close(a.found)
		c.mu.Lock()
		a, c.next = c.next, nil
		c.running = a != nil
		c.mu.Unlock()
	}
}
