package exec

import (
	"context"
	"io"
	"testing"
	"time"

	"vch/guest"
	"vch/portlayer"
)

// TestLookAtPaused: who looks at a paused container's files gets them, whatever is paused, goes on or ends meanwhile, and the machine stands still afterwards.
func TestLookAtPaused(t *testing.T) {
	h := newHost(t, "")
	h.create(cmd("ct", "sleep", "1000"))
	h.start("ct")
	do := func(what string, f func(context.Context, string) error) {
		t.Helper()
		ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
		defer cancel()
		if err := f(ctx, "ct"); err != nil {
			t.Fatalf("%s: %v", what, err)
		}
	}
	look := func(ctx context.Context, ref string) error {
		return h.s.CopyOut(ctx, ref, "/", func(guest.PathStat) (io.Writer, error) { return io.Discard, nil })
	}
	// slowly looks until it is let go, and gives how that ended.
	slowly := func() (letGo func() error) {
		t.Helper()
		begun, release, done := make(chan struct{}), make(chan struct{}), make(chan error, 1)
		go func() {
			done <- h.s.CopyOut(context.WithoutCancel(t.Context()), "ct", "/", func(guest.PathStat) (io.Writer, error) {
				close(begun)
				<-release
				return io.Discard, nil
			})
		}()
		select {
		case <-begun:
		case err := <-done:
			t.Fatalf("a look: %v", err)
		}
		return func() error { close(release); return <-done }
	}
	stands := func() bool {
		u, r, err := h.s.up("ct")
		if err != nil {
			t.Fatal(err)
		}
		ctx, cancel := context.WithTimeout(t.Context(), 200*time.Millisecond)
		defer cancel()
		_, err = r.now().Top(ctx)
		return err != nil && u.snapshot().container.State.Phase == portlayer.Paused
	}

	do("pause", h.s.Pause)
	do("a look", look)
	if !stands() {
		t.Error("the machine goes on after a look")
	}
	letGo := slowly()
	do("unpause", h.s.Unpause)
	do("pause again", h.s.Pause)
	do("a look beside one from before", look)
	if err := letGo(); err != nil {
		t.Errorf("the slow look: %v", err)
	}
	if !stands() {
		t.Error("the machine goes on after the last look")
	}

	letGo = slowly()
	zero := 0
	do("restart", func(ctx context.Context, ref string) error { return h.s.Restart(ctx, ref, 0, &zero) })
	do("pause of the next run", h.s.Pause)
	do("a look at the next run", look)
	if !stands() {
		t.Error("the next run's machine goes on")
	}
	_ = letGo() // its machine has ended
	if !stands() {
		t.Error("the next run's machine goes on after a look at the one before")
	}
	do("unpause of the next run", h.s.Unpause)
	do("top", func(ctx context.Context, ref string) error { _, err := h.s.Top(ctx, ref); return err })
}
