package image

import (
	"context"
	"sync"
)

// flights runs one piece of work per key for all who ask for it while it runs.
//
// The work has a goroutine of its own, so that it goes on while anybody wants it: its ctx ends when the last who asked has left, and that
// one waits for it. The zero value is ready.
type flights struct {
	mu   sync.Mutex // guards below and the riders of every flight
	runs map[string]*flight
}

type flight struct {
	riders int
	cancel context.CancelFunc
	done   chan struct{} // closed after err is set
	err    error

	mu      sync.Mutex // guards below
	steps   []step     // all so far; the last one changes in place while its name stays
	changed chan struct{}
}

type step struct {
	name           string
	current, total int64
}

// join runs work, or waits for the run under way, and shows its steps to progress, from this goroutine only. A slow progress misses figures, never steps.
func (fs *flights) join(ctx context.Context, key string, work func(context.Context, func(string, int64, int64)) error, progress func(string, int64, int64)) error {
	f := fs.board(ctx, key, work)
	defer fs.leave(key, f)
	at, last := 0, step{}
	for {
		steps, changed := f.since(at)
		for _, s := range steps {
			if s != last && progress != nil {
				progress(s.name, s.current, s.total)
			}
			last = s
		}
		if len(steps) > 0 {
			at += len(steps) - 1 // the last one may still change
		}
		select {
		case <-changed:
		case <-f.done:
			rest, _ := f.since(at)
			for _, s := range rest {
				if s != last && progress != nil {
					progress(s.name, s.current, s.total)
				}
				last = s
			}
			return f.err
		case <-ctx.Done():
			return ctx.Err()
		}
	}
}

// board finds the flight for key or starts it.
func (fs *flights) board(ctx context.Context, key string, work func(context.Context, func(string, int64, int64)) error) *flight {
	fs.mu.Lock()
	defer fs.mu.Unlock()
	if f := fs.runs[key]; f != nil {
		f.riders++
		return f
	}
	runCtx, cancel := context.WithCancel(context.WithoutCancel(ctx))
	f := &flight{riders: 1, cancel: cancel, done: make(chan struct{}), changed: make(chan struct{})}
	if fs.runs == nil {
		fs.runs = map[string]*flight{}
	}
	fs.runs[key] = f
	go func() {
		err := work(runCtx, f.report)
		fs.mu.Lock()
		if fs.runs[key] == f {
			delete(fs.runs, key)
		}
		fs.mu.Unlock()
		f.err = err
		close(f.done)
	}()
	return f
}

// leave gets off. The last one ends the work and waits for it; nobody can board it then any more.
func (fs *flights) leave(key string, f *flight) {
	fs.mu.Lock()
	f.riders--
	last := f.riders == 0
	if last && fs.runs[key] == f {
		delete(fs.runs, key)
	}
	fs.mu.Unlock()
	if last {
		f.cancel()
		<-f.done
	}
}

func (f *flight) report(name string, current, total int64) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if n := len(f.steps); n > 0 && f.steps[n-1].name == name {
		f.steps[n-1] = step{name, current, total}
	} else {
		f.steps = append(f.steps, step{name, current, total})
	}
	close(f.changed)
	f.changed = make(chan struct{})
}

// since gives a copy of the steps from number at on, and a channel that is closed at the next change.
func (f *flight) since(at int) ([]step, <-chan struct{}) {
	f.mu.Lock()
	defer f.mu.Unlock()
	return append([]step(nil), f.steps[at:]...), f.changed
}
