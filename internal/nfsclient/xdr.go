package nfsclient

import (
	"encoding/binary"
	"errors"
)

// errMalformed is why a decoder stopped: fewer bytes than promised, a length out of bounds, a value that the protocol does not have.
var errMalformed = errors.New("malformed reply")

// encoder appends values in XDR (RFC 4506).
type encoder struct{ b []byte }

func (e *encoder) u32(v uint32) { e.b = binary.BigEndian.AppendUint32(e.b, v) }
func (e *encoder) u64(v uint64) { e.b = binary.BigEndian.AppendUint64(e.b, v) }

func (e *encoder) flag(v bool) {
	if v {
		e.u32(1)
	} else {
		e.u32(0)
	}
}

// fixed is opaque data of a length that both sides know.
func (e *encoder) fixed(v []byte) {
	e.b = append(e.b, v...)
	for range -len(v) & 3 {
		e.b = append(e.b, 0)
	}
}

func (e *encoder) opaque(v []byte) {
	e.u32(uint32(len(v)))
	e.fixed(v)
}

func (e *encoder) text(v string) { e.opaque([]byte(v)) }

// words is a counted array, as a bitmap4 is.
func (e *encoder) words(v []uint32) {
	e.u32(uint32(len(v)))
	for _, w := range v {
		e.u32(w)
	}
}

// decoder takes XDR values from a reply that is in memory as a whole, so that no length in it can ask for more than there is. After the first fault every value
// is zero, and every list ends.
type decoder struct {
	b   []byte
	err error
}

func (d *decoder) fail() {
	d.err = errMalformed
	d.b = nil
}

func (d *decoder) take(n int) []byte {
	if n < 0 || n > len(d.b) {
		d.fail()
		return nil
	}
	v := d.b[:n]
	d.b = d.b[n:]
	return v
}

func (d *decoder) u32() uint32 {
	if v := d.take(4); v != nil {
		return binary.BigEndian.Uint32(v)
	}
	return 0
}

func (d *decoder) u64() uint64 {
	if v := d.take(8); v != nil {
		return binary.BigEndian.Uint64(v)
	}
	return 0
}

// flag is a bool; RFC 4506 section 4.4 knows 0 and 1 only.
func (d *decoder) flag() bool {
	v := d.u32()
	if v > 1 {
		d.fail()
		return false
	}
	return v == 1
}

// fixed is n bytes and what pads them; it is a part of the reply, not a copy.
func (d *decoder) fixed(n int) []byte {
	v := d.take(n)
	if v != nil {
		d.take(-n & 3)
	}
	if d.err != nil {
		return nil
	}
	return v
}

// opaque is counted bytes, at most limit of them.
func (d *decoder) opaque(limit uint32) []byte {
	n := d.u32()
	if n > limit {
		d.fail()
		return nil
	}
	return d.fixed(int(n))
}

func (d *decoder) text(limit uint32) string { return string(d.opaque(limit)) }

// words is a counted array of at most limit words.
func (d *decoder) words(limit uint32) []uint32 {
	n := d.u32()
	if n > limit {
		d.fail()
	}
	var v []uint32
	for range n {
		if d.err != nil {
			return nil
		}
		v = append(v, d.u32())
	}
	return v
}
