// Package keylock serialises work on things that have names, one lock a name.
//
// It is for work that does I/O, which no mutex over fields may be held across: a waiter gives up when its context ends. Names that
// nobody works on take no memory. Locks are not reentrant.
package keylock

import (
	"context"
	"sync"
)

// Set is the locks of one family of names. The zero value is ready. All methods may be called at once.
type Set[K comparable] struct {
	mu   sync.Mutex // guards below
	held map[K]*lock
}

type lock struct {
	token chan struct{} // full while somebody holds the lock
	users int           // holder and waiters; guarded by Set.mu
}

// Lock waits until nobody else holds key and returns the function that lets go of it, to be called once. After an error, which is ctx's,
// nothing is held.
func (s *Set[K]) Lock(ctx context.Context, key K) (unlock func(), err error) {
	s.mu.Lock()
	l := s.held[key]
	if l == nil {
		l = &lock{token: make(chan struct{}, 1)}
		if s.held == nil {
			s.held = map[K]*lock{}
		}
		s.held[key] = l
	}
	l.users++
	s.mu.Unlock()
	select {
	case l.token <- struct{}{}:
		return func() { <-l.token; s.leave(key, l) }, nil
	case <-ctx.Done():
		s.leave(key, l)
		return nil, ctx.Err()
	}
}

func (s *Set[K]) leave(key K, l *lock) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if l.users--; l.users == 0 {
		delete(s.held, key)
	}
}
