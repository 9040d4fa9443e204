// Package pause is a wait that a context can end, as there is before something is tried again.
//
// It waits by a timer, never for an event: what can be waited for is to be waited for. How long, and whether longer each time, is the caller's to know; nothing is
// added by chance.
package pause

import (
	"context"
	"time"
)

// For waits, and gives the context's error if that ends before.
func For(ctx context.Context, d time.Duration) error {
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-t.C:
		return nil
	case <-ctx.Done():
		return ctx.Err()
	}
}
