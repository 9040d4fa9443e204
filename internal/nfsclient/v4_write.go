package nfsclient

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
)

// open4 flags (RFC 8881 section 18.16).
const (
	shareWrite  = 2
	shareNoDelg = 0x0400 // OPEN4_SHARE_ACCESS_WANT_NO_DELEG
)

// openReply is OPEN4resok. A server that grants a delegation that nobody wanted gets it back when the client ends, or its lease.
func openReply(d *decoder) (state stateID) {
	copy(state[:], d.fixed(16))
	changeInfo(d)
	d.u32()
	d.words(8)
	ace := func() {
		d.fixed(12)
		d.opaque(maxOwner)
	}
	switch d.u32() {
	case 0: // OPEN_DELEGATE_NONE
	case 1: // _READ
		d.fixed(16)
		d.flag()
		ace()
	case 2: // _WRITE
		d.fixed(16)
		d.flag()
		d.fixed(4 + 8) // by size, or by blocks: both take as much
		ace()
	case 3: // _NONE_EXT
		if why := d.u32(); why == 1 || why == 2 {
			d.flag()
		}
	default:
		d.fail()
	}
	return state
}

// open opens a file for writing: makes one that is not there, or takes the one that is. Each open has an owner of its own, so that two of one file do not share a
// state, which the first to close would end (RFC 8881 section 9.1.3).
func (v *v4) open(ctx context.Context, dir place, name string, mode uint32, create bool) (handle []byte, state stateID, err error) {
	var e encoder
	e.b = words(0, shareWrite|shareNoDelg, 0) // sequence, access, nothing denied to others
	e.u64(0)                                  // the session knows the client
	e.opaque(binary.BigEndian.AppendUint64(v.owner[:len(v.owner):len(v.owner)], v.opens.Add(1)))
	if create {
		e.b = append(e.b, words(1, 1)...) // OPEN4_CREATE, GUARDED4
		e.b = append(e.b, encodeAttrs(Set{Mode: &mode}, nil)...)
	} else {
		e.u32(0)
	}
	e.u32(0) // CLAIM_NULL
	e.text(name)
	err = v.at(ctx, dir, op{num: opOpen, args: e.b, result: func(d *decoder) { state = openReply(d) }}, getFH(&handle))
	return handle, state, err
}

func (v *v4) write(ctx context.Context, dir place, name string, data []byte, mode uint32) (err error) {
	handle, state, err := v.open(ctx, dir, name, mode, true)
	there := hasReason(err, Exists)
	if there {
		handle, state, err = v.open(ctx, dir, name, mode, false)
	}
	if err != nil {
		return v.notFile(ctx, dir, err)
	}
	defer func() {
		if e := v.closeFile(ctx, handle, state); err == nil {
			err = e
		}
	}()
	if there {
		if err := v.at(ctx, place{from: handle}, setAttr(state, Set{}, new(uint64))); err != nil {
			return err
		}
	}
	_, chunk, err := v.chunks(ctx)
	if err != nil {
		return err
	}
	for offset := 0; offset < len(data); {
		n, err := v.writeChunk(ctx, handle, state, offset, data[offset:min(len(data), offset+chunk)])
		if err != nil {
			return err
		}
		offset += n
	}
	return nil
}

// notFile looks at an error of OPEN again: NFS4ERR_SYMLINK can be said of the file and of its directory.
func (v *v4) notFile(ctx context.Context, dir place, err error) error {
	var e *Error
	if !errors.As(err, &e) || e.Status != nfsSymlink4 {
		return err
	}
	if n, why := v.stat(ctx, dir); why == nil && n.attr.Type != Dir {
		e.Reason = NotDir
	}
	return e
}

// closeFile is done also after the end of ctx, in a time of its own.
func (v *v4) closeFile(ctx context.Context, handle []byte, state stateID) error {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), closing)
	defer cancel()
	return v.at(ctx, place{from: handle}, op{num: opClose, args: append(words(0), state[:]...), result: func(d *decoder) { d.fixed(16) }})
}

// writeChunk writes to stable storage, and says how much.
func (v *v4) writeChunk(ctx context.Context, handle []byte, state stateID, offset int, data []byte) (n int, err error) {
	var e encoder
	e.fixed(state[:])
	e.u64(uint64(offset))
	e.u32(2) // FILE_SYNC4
	e.opaque(data)
	var stable uint32
	var verifier, again []byte
	err = v.at(ctx, place{from: handle}, op{num: opWrite, args: e.b, result: func(d *decoder) {
		n = int(d.u32())
		stable = d.u32()
		verifier = d.fixed(8)
		if n < 1 || n > len(data) {
			d.fail()
		}
	}})
	if err != nil || stable == 2 {
		return n, err
	}
	// As in version 3.
	err = v.at(ctx, place{from: handle}, op{num: opCommit, args: make([]byte, 12), result: func(d *decoder) { again = d.fixed(8) }})
	if err == nil && !bytes.Equal(verifier, again) {
		err = errRestarted()
	}
	return n, err
}
