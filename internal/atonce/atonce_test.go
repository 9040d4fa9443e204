package atonce

import (
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"
)

// Each is done once, and as many at once as may be, no more.
func TestDo(t *testing.T) {
	for _, tc := range []struct{ n, most, together int }{{0, 4, 0}, {1, 4, 1}, {3, 8, 3}, {100, 8, 8}, {5, 1, 1}} {
		synctest.Test(t, func(t *testing.T) {
			done := make([]int, tc.n)
			var now, peak atomic.Int64
			Do(tc.n, tc.most, func(i int) {
				if at := now.Add(1); at > peak.Load() {
					peak.Store(at)
				}
				time.Sleep(time.Second) // until all that may are here
				now.Add(-1)
				done[i]++
			})
			if int(peak.Load()) != tc.together {
				t.Errorf("%+v: %d at once", tc, peak.Load())
			}
			for i, n := range done {
				if n != 1 {
					t.Errorf("%+v: %d was done %d times", tc, i, n)
				}
			}
		})
	}
}
