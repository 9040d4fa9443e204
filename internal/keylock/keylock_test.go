package keylock

import (
	"context"
	"errors"
	"sync"
	"testing"
)

func TestOneHolderAKey(t *testing.T) {
	var s Set[string]
	var wg sync.WaitGroup
	var a, b int // guarded by the locks under test
	for i := range 100 {
		wg.Go(func() {
			key, n := "a", &a
			if i%2 == 0 {
				key, n = "b", &b
			}
			unlock, err := s.Lock(t.Context(), key)
			if err != nil {
				t.Error(err)
				return
			}
			*n++
			unlock()
		})
	}
	wg.Wait()
	if a != 50 || b != 50 {
		t.Errorf("counted %d and %d, want 50 each", a, b)
	}
	if len(s.held) != 0 {
		t.Errorf("%d locks left", len(s.held))
	}
}

func TestWaiterGivesUpWithItsContext(t *testing.T) {
	var s Set[int]
	unlock, err := s.Lock(t.Context(), 1)
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if _, err := s.Lock(ctx, 1); !errors.Is(err, context.Canceled) {
		t.Fatalf("second holder: %v", err)
	}
	unlock()
	unlock, err = s.Lock(t.Context(), 1)
	if err != nil {
		t.Fatal(err)
	}
	unlock()
	if len(s.held) != 0 {
		t.Errorf("%d locks left", len(s.held))
	}
}
