package nfsclient

import (
	"context"
	"errors"
)

// maxRestarts is how often ReadDir begins again with a directory that changes while it is read.
const maxRestarts = 16

// ReadDir gives a directory's entries in pages, without "." and "..", in the server's order. It ends with the first error of yield, as it is. An entry that comes
// or goes meanwhile may be missed; where the server cannot read on in a directory that changed, it begins again, and entries come twice.
func (e *Export) ReadDir(ctx context.Context, name string, yield func([]Entry) error) error {
	names, err := split(name)
	if err != nil {
		return named("read directory", name, err)
	}
	dir := place{names: names}
	var from cursor
	for restarts := 0; ; {
		var l listing
		err := e.look(ctx, "read directory", name, func() (err error) {
			l, err = e.p.page(ctx, dir, from)
			return err
		})
		if isBadCookie(err) && from != (cursor{}) && restarts < maxRestarts {
			restarts++
			from = cursor{}
			continue
		}
		if err == nil {
			l.entries, err = e.complete(ctx, dir, l.entries)
		}
		if err != nil {
			return named("read directory", name, err)
		}
		if len(l.entries) > 0 {
			if err := yield(l.entries); err != nil {
				return err
			}
		}
		if l.end {
			return nil
		}
		from = l.next
	}
}

// complete asks for the attributes that a listing lacks; an entry that is gone meanwhile is left out.
func (e *Export) complete(ctx context.Context, dir place, entries []Entry) ([]Entry, error) {
	kept := entries[:0]
	for _, n := range entries {
		if n.Attr.Type == Unknown {
			var got node
			err := insist(ctx, func() (err error) {
				got, err = e.p.stat(ctx, place{dir.from, append(dir.names[:len(dir.names):len(dir.names)], n.Name)})
				return err
			})
			if hasReason(err, NotFound) {
				continue
			}
			if err != nil {
				return nil, err
			}
			n.Attr = got.attr
		}
		kept = append(kept, n)
	}
	return kept, nil
}

// isBadCookie reports whether the server cannot read on from where it was: NFS3ERR_BAD_COOKIE, and in version 4 also NFS4ERR_NOT_SAME (RFC 8881 section 18.23.3).
func isBadCookie(err error) bool {
	var e *Error
	return errors.As(err, &e) && (e.Status == nfsBadCookie || e.Status == nfsNotSame4)
}
