package nfsclient

import (
	"context"
	"errors"
	"net"
	"strings"
	"syscall"

	"vch/internal/fault"
)

// Reason says why something failed, finely enough for a caller to say what the user can do about it.
type Reason uint8

// The reasons.
const (
	ServerFault  Reason = iota // the server failed in a way of its own; the zero value
	Unresolved                 // the host's name has no address
	Refused                    // nothing listens at the port
	Silent                     // no answer before the context's time was over
	Interrupted                // the context was cancelled
	Unreachable                // there is no way to the host
	Lost                       // the connection broke while the call was under way: it may have been done or not
	Busy                       // the server asked to wait (NFS4ERR_GRACE, NFS4ERR_DELAY, NFS3ERR_JUKEBOX) until the context ended
	NoPortmapper               // version 3: nothing answers at port 111, which would know mountd's port
	NoMountd                   // version 3: there is no MOUNT service
	NoVersion                  // the server does not speak this version of NFS
	NoExport                   // the path is not exported, or is not there; version 4 servers may say so too of what is exported, but not to this host, or to reserved ports only
	Denied                     // not allowed for this user, or this host
	InsecurePort               // not allowed, and the call did not come from a reserved port, which may be why
	ReadOnly                   // the export, or what is below it, is read-only
	Stale                      // what the handle meant is gone
	Full                       // no space, or the quota is used up
	NotFound
	Exists
	NotDir
	IsDir
	NotEmpty
	LongName
	Inval       // the server or this package finds no sense in the request: a bad name, a read of what is no regular file
	TooLarge    // the file has more bytes than the caller wants
	Unsupported // the server cannot do this
	Protocol    // what the server sent is not what the protocol says
	reasons     // count of reasons
)

// meaning is what a reason says in a text, and the kind of fault it is.
type meaning struct {
	text string
	kind fault.Kind
}

var meanings = [reasons]meaning{
	ServerFault:  {"the server failed", fault.Unavailable},
	Unresolved:   {"unknown host", fault.Unavailable},
	Refused:      {"connection refused", fault.Unavailable},
	Silent:       {"no answer", fault.Unavailable},
	Interrupted:  {"interrupted", fault.Unavailable},
	Unreachable:  {"host unreachable", fault.Unavailable},
	Lost:         {"connection lost", fault.Unavailable},
	Busy:         {"the server is not ready", fault.Unavailable},
	NoPortmapper: {"no portmapper", fault.Unavailable},
	NoMountd:     {"no mount service", fault.Unavailable},
	NoVersion:    {"this NFS version is not served", fault.Unsupported},
	NoExport:     {"not exported", fault.Unavailable},
	Denied:       {"permission denied", fault.Denied},
	InsecurePort: {"permission denied, and the call did not come from a reserved port", fault.Denied},
	ReadOnly:     {"read-only file system", fault.Denied},
	Stale:        {"stale file handle", fault.Unavailable},
	Full:         {"no space left", fault.Unavailable},
	NotFound:     {"no such file or directory", fault.NotFound},
	Exists:       {"exists already", fault.Conflict},
	NotDir:       {"not a directory", fault.Invalid},
	IsDir:        {"is a directory", fault.Invalid},
	NotEmpty:     {"directory not empty", fault.Conflict},
	LongName:     {"name too long", fault.Invalid},
	Inval:        {"invalid argument", fault.Invalid},
	TooLarge:     {"file too large", fault.Invalid},
	Unsupported:  {"not supported by the server", fault.Unsupported},
	Protocol:     {"protocol error", fault.Unavailable},
}

// String is the reason in words, lower case.
func (r Reason) String() string {
	if r < reasons {
		return meanings[r].text
	}
	return meanings[ServerFault].text
}

// Error is every error of this package. errors.As finds it, and fault.KindOf its kind.
type Error struct {
	Op       string // "mkdir"; "mount" for Open
	Path     string // as the caller gave it; host:path for Open
	Reason   Reason
	Status   uint32 // the protocol's number; 0 if no status of a protocol is behind the error
	Name     string // its name, such as NFS3ERR_ACCES; empty as above
	Reserved bool   // the connection came from a reserved port (below 1024); false also where there was none
	Err      error  // the cause, where it is not a status: of the network, of the context
}

// Error reads "OP PATH: reason (STATUS: cause)".
func (e *Error) Error() string {
	var b strings.Builder
	b.WriteString(e.Op)
	if e.Path != "" {
		b.WriteString(" " + e.Path)
	}
	if b.Len() > 0 {
		b.WriteString(": ")
	}
	b.WriteString(e.Reason.String())
	switch {
	case e.Name != "" && e.Err != nil:
		b.WriteString(" (" + e.Name + ": " + e.Err.Error() + ")")
	case e.Name != "":
		b.WriteString(" (" + e.Name + ")")
	case e.Err != nil:
		b.WriteString(" (" + e.Err.Error() + ")")
	}
	return b.String()
}

// Unwrap gives the cause.
func (e *Error) Unwrap() error { return e.Err }

// Kind is the reason's kind of fault.
func (e *Error) Kind() fault.Kind {
	if e.Reason < reasons {
		return meanings[e.Reason].kind
	}
	return fault.Unavailable
}

// As lets fault.KindOf, which looks for a fault.Error, find the kind.
func (e *Error) As(target any) bool {
	f, ok := target.(**fault.Error)
	if ok {
		*f = &fault.Error{Kind: e.Kind(), Err: e}
	}
	return ok
}

// ReasonOf is the reason of the Error in err's chain, and whether there is one.
func ReasonOf(err error) (Reason, bool) {
	var e *Error
	if errors.As(err, &e) {
		return e.Reason, true
	}
	return ServerFault, false
}

func hasReason(err error, r Reason) bool {
	got, ok := ReasonOf(err)
	return ok && got == r
}

// named gives err an operation and a path. The error may be another call's too, as when a connection broke, so that it is copied.
func named(op, path string, err error) error {
	if err == nil {
		return nil
	}
	var e *Error
	if !errors.As(err, &e) {
		e = &Error{Err: err}
	}
	c := *e
	c.Op, c.Path = op, path
	return &c
}

// ended is why a wait for the server ended with ctx.
func ended(ctx context.Context) *Error {
	err := ctx.Err()
	if errors.Is(err, context.DeadlineExceeded) {
		return &Error{Reason: Silent, Err: err}
	}
	return &Error{Reason: Interrupted, Err: err}
}

// dialError is why there is no connection.
func dialError(ctx context.Context, err error) *Error {
	var name *net.DNSError
	var slow net.Error
	switch {
	case ctx.Err() != nil:
		return ended(ctx)
	case errors.As(err, &name):
		return &Error{Reason: Unresolved, Err: err}
	case errors.Is(err, syscall.ECONNREFUSED):
		return &Error{Reason: Refused, Err: err}
	case errors.Is(err, syscall.ECONNRESET):
		return &Error{Reason: Lost, Err: err}
	case errors.As(err, &slow) && slow.Timeout():
		return &Error{Reason: Silent, Err: err}
	}
	return &Error{Reason: Unreachable, Err: err}
}

func malformed() *Error { return &Error{Reason: Protocol, Err: errMalformed} }
