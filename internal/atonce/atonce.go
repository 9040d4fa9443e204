// Package atonce does a number of independent things, several at once, and waits for all of them.
//
// It is for things that wait for a medium, which serves several calls as quickly as one. The order in which they are done is not told; what they find out
// they put where their number says.
package atonce

import (
	"sync"
	"sync/atomic"
)

// Do calls do with each number from 0 to n-1, at most most of them at once, and returns when all calls have. One of those who call is the caller.
func Do(n, most int, do func(i int)) {
	var next atomic.Int64
	work := func() {
		for i := next.Add(1) - 1; i < int64(n); i = next.Add(1) - 1 {
			do(int(i))
		}
	}
	var wg sync.WaitGroup
	for range min(n, most) - 1 {
		wg.Go(work)
	}
	work()
	wg.Wait()
}
