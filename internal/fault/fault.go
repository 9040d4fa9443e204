// Package fault is the one error type that crosses vch's rooms.
//
// A fault says what was being done (Op), to which thing (ID), what kind of failure it is (Kind)
// and why (Err). The kind is given where it is first known and never changed above; callers decide
// by KindOf or errors.Is, never by text. The kind crosses the guest channel unchanged, and one table
// per door turns kinds into HTTP statuses or exit codes.
//
// Text reads "cannot OP ID: reason". It is lower case, names what the user named, and where the user
// can do something about it, says what.
package fault

import (
	"context"
	"errors"
	"fmt"
	"strings"
)

// Kind says what a caller can do about a failure.
type Kind uint8

// The kinds. Their text form (String) is what crosses the guest channel.
const (
	Internal    Kind = iota // a defect or an unforeseen failure of the host; the zero value
	Invalid                 // the request makes no sense as it stands; change it
	NotFound                // the thing named does not exist
	Conflict                // the thing is in a state, or exists already, so that this cannot be done now
	InUse                   // another container holds or refers to the thing
	Unavailable             // a store, registry or machine cannot be reached now; try again later
	Denied                  // not allowed: credentials or permissions
	Unsupported             // vch does not do this
	kinds                   // count of kinds
)

var kindText = [kinds]string{"internal", "invalid", "not found", "conflict", "in use", "unavailable", "denied", "unsupported"}

// String is the kind's name, as it crosses the guest channel.
func (k Kind) String() string {
	if k < kinds {
		return kindText[k]
	}
	return kindText[Internal]
}

// ParseKind is the inverse of String; an unknown text is Internal.
func ParseKind(s string) Kind {
	for k, t := range kindText {
		if t == s {
			return Kind(k)
		}
	}
	return Internal
}

// Error is a failure with its kind. Op and ID may be empty.
type Error struct {
	Op   string // the verb, with its object: "attach volume", "create container"
	ID   string // what it was done to, as the user named it
	Kind Kind
	Err  error // the reason; never nil
}

// Error reads "cannot OP ID: reason", or the reason alone where there is no Op.
func (e *Error) Error() string {
	var b strings.Builder
	if e.Op != "" {
		b.WriteString("cannot ")
		b.WriteString(e.Op)
		if e.ID != "" {
			b.WriteByte(' ')
			b.WriteString(e.ID)
		}
		b.WriteString(": ")
	} else if e.ID != "" {
		b.WriteString(e.ID)
		b.WriteString(": ")
	}
	b.WriteString(e.Err.Error())
	return b.String()
}

// Unwrap gives the reason.
func (e *Error) Unwrap() error { return e.Err }

// New makes a fault of kind k whose reason is the formatted text; %w works as in fmt.Errorf.
func New(k Kind, format string, args ...any) error {
	return &Error{Kind: k, Err: fmt.Errorf(format, args...)}
}

// Wrap adds a verb and an id to err and keeps its kind. Wrap of nil is nil.
func Wrap(op, id string, err error) error {
	if err == nil {
		return nil
	}
	return &Error{Op: op, ID: id, Kind: KindOf(err), Err: err}
}

// As gives err the kind k, whatever kind it had. As of nil is nil.
func As(k Kind, err error) error {
	if err == nil {
		return nil
	}
	return &Error{Kind: k, Err: err}
}

// KindOf is the kind of the outermost fault in err's chain. A context that ended is Unavailable;
// any other error without a kind is Internal.
func KindOf(err error) Kind {
	var e *Error
	if errors.As(err, &e) {
		return e.Kind
	}
	if errors.Is(err, context.Canceled) || errors.Is(err, context.DeadlineExceeded) {
		return Unavailable
	}
	return Internal
}

// Is reports whether err has kind k. A nil error has none.
func Is(err error, k Kind) bool { return err != nil && KindOf(err) == k }
