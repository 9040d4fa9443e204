// Package broadcast hands every value published to every subscriber, in order, and keeps the last ones for
// subscribers that come late.
//
// Publish never waits: a subscriber that falls more than its buffer behind is cut off, and its Next says so.
package broadcast

import (
	"context"
	"errors"
	"sync"
)

// ErrLagged is what Next returns once a subscriber was too slow, after the values that it still had.
var ErrLagged = errors.New("subscriber fell behind and lost values")

// History is how many values a Topic keeps for late subscribers; Docker's engine keeps 256 events.
const History = 256

// buffer is how many values a subscriber may lag.
const buffer = 4096

// Topic is a stream of values. The zero value is ready. All methods may be called at once.
type Topic[T any] struct {
	mu   sync.Mutex // guards below
	last []T
	subs map[*Subscription[T]]struct{}
}

// Subscription is one reader of a Topic. Only one goroutine may call Next.
type Subscription[T any] struct {
	topic *Topic[T]
	ch    chan T
}

// Publish hands v to every subscriber.
func (t *Topic[T]) Publish(v T) {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.last = append(t.last, v)
	if len(t.last) > History {
		t.last = t.last[len(t.last)-History:]
	}
	for s := range t.subs {
		select {
		case s.ch <- v:
		default:
			delete(t.subs, s)
			close(s.ch)
		}
	}
}

// Subscribe returns the values kept so far and a subscription to all that follow, without a gap.
func (t *Topic[T]) Subscribe() ([]T, *Subscription[T]) {
	t.mu.Lock()
	defer t.mu.Unlock()
	s := &Subscription[T]{topic: t, ch: make(chan T, buffer)}
	if t.subs == nil {
		t.subs = map[*Subscription[T]]struct{}{}
	}
	t.subs[s] = struct{}{}
	return append([]T(nil), t.last...), s
}

// Next waits for the next value.
func (s *Subscription[T]) Next(ctx context.Context) (T, error) {
	var zero T
	select {
	case v, ok := <-s.ch:
		if !ok {
			return zero, ErrLagged
		}
		return v, nil
	case <-ctx.Done():
		return zero, ctx.Err()
	}
}

// Close ends the subscription. A second call does nothing.
func (s *Subscription[T]) Close() {
	s.topic.mu.Lock()
	defer s.topic.mu.Unlock()
	delete(s.topic.subs, s)
}
