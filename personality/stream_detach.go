package personality

import (
	"errors"
	"io"
	"strings"

	"vch/internal/fault"
)

// defaultDetach is Docker's: ctrl-p, ctrl-q.
const defaultDetach = "\x10\x11"

// errDetached is what a reader ends with when the user typed the detach keys.
var errDetached = errors.New("detached")

// parseDetachKeys reads "ctrl-p,ctrl-q" or "a,b"; "" is the default (moby/term ToBytes).
func parseDetachKeys(text string) (string, error) {
	if text == "" {
		return defaultDetach, nil
	}
	var keys strings.Builder
	for _, key := range strings.Split(text, ",") {
		ctrl, isCtrl := strings.CutPrefix(key, "ctrl-")
		switch {
		case len(key) == 1:
			keys.WriteByte(key[0])
		case isCtrl && len(ctrl) == 1 && ctrl[0] >= 'a' && ctrl[0] <= 'z':
			keys.WriteByte(ctrl[0] - 'a' + 1)
		case isCtrl && len(ctrl) == 1 && (ctrl[0] == '@' || ctrl[0] >= '[' && ctrl[0] <= '_'):
			keys.WriteByte(ctrl[0] & 0x1f)
		default:
			return "", fault.New(fault.Invalid, "Invalid detach keys (%s) provided: unknown key %q; use one character or ctrl- and one of a-z @ [ \\ ] ^ _", text, key)
		}
	}
	return keys.String(), nil
}

// detachReader reads what a user types, without the detach keys: those end it with errDetached, and call detached first. Keys that only begin the sequence
// are held back until it is clear what they are.
type detachReader struct {
	in       io.Reader
	keys     string
	detached func()
	held     int    // how many of keys have been typed
	ready    []byte // to hand out before more is read
	err      error  // to return when ready is empty
}

func (d *detachReader) Read(p []byte) (int, error) {
	for len(d.ready) == 0 {
		if d.err != nil {
			return 0, d.err
		}
		buf := make([]byte, max(len(p), 1))
		n, err := d.in.Read(buf)
		d.take(buf[:n])
		if err != nil && d.err == nil {
			d.ready = append(d.ready, d.keys[:d.held]...) // no more will come: they were no detach keys
			d.held, d.err = 0, err
		}
	}
	n := copy(p, d.ready)
	d.ready = d.ready[n:]
	return n, nil
}

// take sorts what was typed into ready and held.
func (d *detachReader) take(typed []byte) {
	for _, c := range typed {
		pending := d.keys[:d.held] + string([]byte{c})
		for !strings.HasPrefix(d.keys, pending) {
			d.ready, pending = append(d.ready, pending[0]), pending[1:]
		}
		d.held = len(pending)
		if d.held == len(d.keys) {
			d.held, d.err = 0, errDetached
			d.detached()
			return
		}
	}
}
