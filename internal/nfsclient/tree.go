package nfsclient

import (
	"context"
	"fmt"
	"sync"
	"time"

	"vch/internal/pause"
)

const (
	atOnce    = 16 // removals in flight
	maxPasses = 16 // over one directory that gets new entries while it is emptied
)

// RemoveAll removes an entry with all below it, many removals at once. It follows no link and does not leave the file system that the entry is in: where another
// one begins it fails with reason Unsupported. What vanishes meanwhile is fine, and so is a name that is not there at all; a directory that gets new entries faster
// than a few rounds remove them fails with NotEmpty. It holds a page of each directory that it is in, never a whole one. After an error a part may be left.
func (e *Export) RemoveAll(ctx context.Context, name string) error {
	dir, last, err := parent(name, Inval)
	if err != nil {
		return named("remove all of", name, err)
	}
	return e.do(ctx, "remove all of", name, func() error {
		n, err := e.p.stat(ctx, place{names: append(dir.names[:len(dir.names):len(dir.names)], last)})
		if err != nil {
			return gone(err)
		}
		s := sweep{p: e.p, fsid: n.attr.FSID, free: make(chan struct{}, atOnce-1)} // the caller itself is the last
		if n.attr.Type != Dir {
			return gone(e.p.remove(ctx, dir, last, noDir))
		}
		return s.tree(ctx, dir, last, n)
	})
}

// sweep is one RemoveAll.
type sweep struct {
	p    protocol
	fsid FSID
	free chan struct{} // takes a token for each goroutine
}

// gone is err, unless it says that there is nothing any more.
func gone(err error) error {
	if hasReason(err, NotFound) {
		return nil
	}
	return err
}

// vanished is gone for what is reached by a handle.
func vanished(err error) error {
	if hasReason(err, Stale) {
		return nil
	}
	return gone(err)
}

func (s *sweep) remove(ctx context.Context, dir place, name string, want want) error {
	return insist(ctx, func() error { return s.p.remove(ctx, dir, name, want) })
}

// tree empties the directory n, which is name in dir, and removes it.
func (s *sweep) tree(ctx context.Context, dir place, name string, n node) error {
	if n.attr.FSID != s.fsid {
		return &Error{Reason: Unsupported, Err: fmt.Errorf("another file system begins at %s", name)}
	}
	for pass := 0; ; pass++ {
		if err := s.empty(ctx, place{from: n.handle}); err != nil {
			return err
		}
		err := s.remove(ctx, dir, name, onlyDir)
		if !hasReason(err, NotEmpty) || pass == maxPasses {
			if dir.from == nil {
				return gone(err) // a stale root says nothing of what is in it
			}
			return vanished(err)
		}
		if pause.For(ctx, time.Duration(pass)*10*time.Millisecond) != nil { // a file that is still open on the server's side takes its time to go
			return ended(ctx)
		}
	}
}

// empty removes what a directory has, page by page. A server that cannot read on after removals is asked from the beginning.
func (s *sweep) empty(ctx context.Context, dir place) error {
	var from cursor
	for {
		var l listing
		err := insist(ctx, func() (err error) {
			l, err = s.p.page(ctx, dir, from)
			return err
		})
		if isBadCookie(err) && from != (cursor{}) {
			from = cursor{}
			continue
		}
		if err != nil {
			return vanished(err)
		}
		if err := s.entries(ctx, dir, l.entries); err != nil {
			return err
		}
		if l.end {
			return nil
		}
		from = l.next
	}
}

// entries removes a page's entries: as many at once as there are tokens, and one in this goroutine. The first error ends it.
func (s *sweep) entries(ctx context.Context, dir place, entries []Entry) error {
	var all sync.WaitGroup
	var mu sync.Mutex // guards first
	var first error
	note := func(err error) {
		mu.Lock()
		defer mu.Unlock()
		if first == nil {
			first = err
		}
	}
	failed := func() bool {
		mu.Lock()
		defer mu.Unlock()
		return first != nil
	}
	for _, n := range entries {
		if failed() {
			break
		}
		select {
		case s.free <- struct{}{}:
			all.Go(func() {
				defer func() { <-s.free }()
				note(s.entry(ctx, dir, n))
			})
		default:
			note(s.entry(ctx, dir, n))
		}
	}
	all.Wait()
	return first
}

// entry removes one entry. What the listing said of it may be old, so that the server's refusal is looked into.
func (s *sweep) entry(ctx context.Context, dir place, e Entry) error {
	if e.Attr.Type != Dir && e.Attr.Type != Unknown {
		err := vanished(s.remove(ctx, dir, e.Name, anything))
		if r, ok := ReasonOf(err); !ok || r != IsDir && r != NotEmpty && r != Denied && r != Inval {
			return err
		}
	}
	var n node
	err := insist(ctx, func() (err error) {
		n, err = s.p.stat(ctx, place{dir.from, []string{e.Name}})
		return err
	})
	if err != nil {
		return vanished(err)
	}
	if n.attr.Type == Dir {
		err = s.tree(ctx, dir, e.Name, n)
		if !hasReason(err, NotDir) {
			return err
		}
	}
	return vanished(s.remove(ctx, dir, e.Name, noDir))
}
