package coalesce

import (
	"context"
	"errors"
	"sync"
	"testing"
	"testing/synctest"
)

// Nobody gets an answer that was begun before the question, and those who wait together get one.
func TestDo(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var c Call[int]
		began := 0
		open := make(chan struct{})
		find := func(context.Context) int { began++; n := began; <-open; return n }
		var wg sync.WaitGroup
		got := make([]int, 6)
		for i := range got {
			wg.Go(func() { got[i], _ = c.Do(t.Context(), find) })
			synctest.Wait()
		}
		close(open)
		wg.Wait()
		for i, n := range got {
			if want := min(i, 1) + 1; n != want {
				t.Errorf("caller %d got answer %d, want %d", i, n, want)
			}
		}
		if n, err := c.Do(t.Context(), find); n != 3 || err != nil {
			t.Errorf("alone: answer %d, %v; want a third", n, err)
		}
	})
}

// One who leaves gets its context's error, and those who stay get the answer.
func TestLeave(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var c Call[int]
		open := make(chan struct{})
		find := func(ctx context.Context) int { <-open; return 7 }
		ctx, cancel := context.WithCancel(t.Context())
		var wg sync.WaitGroup
		wg.Go(func() {
			if _, err := c.Do(ctx, find); !errors.Is(err, context.Canceled) {
				t.Errorf("left with %v", err)
			}
		})
		synctest.Wait()
		wg.Go(func() {
			if n, err := c.Do(t.Context(), find); n != 7 || err != nil {
				t.Errorf("stayed: %d, %v", n, err)
			}
		})
		synctest.Wait()
		cancel()
		synctest.Wait()
		close(open)
		wg.Wait()
	})
}
