package nfsclient

import (
	"bytes"
	"context"
	"errors"
	"strings"
)

func (v *v3) page(ctx context.Context, at place, from cursor) (l listing, err error) {
	dir, err := v.dir(ctx, at)
	if err != nil {
		return l, err
	}
	var e encoder
	e.opaque(dir)
	e.u64(from.cookie)
	e.fixed(from.verifier[:])
	plain := bytes.Clone(e.b)
	e.u32(pageBytes / 4) // of names and cookies alone
	e.u32(pageBytes)
	err = v.call(ctx, procReadDirPlus, e.b, func(d *decoder) { l = readDir3(d, from, true) })
	if hasReason(err, Unsupported) {
		e.b = plain
		e.u32(pageBytes)
		err = v.call(ctx, procReadDir, e.b, func(d *decoder) { l = readDir3(d, from, false) })
	}
	return l, err
}

// readDir3 is what READDIR and READDIRPLUS answer.
func readDir3(d *decoder, from cursor, plus bool) (l listing) {
	postOpAttr(d)
	l.next = from
	copy(l.next.verifier[:], d.fixed(8))
	moved := false
	for d.flag() {
		moved = true
		n := Entry{Attr: Attr{FileID: d.u64()}, Name: d.text(maxName)}
		l.next.cookie = d.u64()
		if plus {
			if a := postOpAttr(d); a.Type != Unknown {
				n.Attr = a
			}
			postOpHandle(d)
		}
		l.add(d, n)
	}
	l.end = d.flag()
	if !l.end && (!moved || l.next.cookie == from.cookie) {
		d.fail() // it would go on for ever
	}
	return l
}

// add takes an entry that a directory can have.
func (l *listing) add(d *decoder, n Entry) {
	switch {
	case n.Name == "." || n.Name == "..":
	case d.err != nil || n.Name == "" || strings.ContainsAny(n.Name, "/\x00"):
		d.fail()
	default:
		l.entries = append(l.entries, n)
	}
}

func (v *v3) mkdir(ctx context.Context, at place, name string, mode uint32) (a Attr, err error) {
	dir, err := v.dir(ctx, at)
	if err != nil {
		return a, err
	}
	e := dirOp(dir, name)
	sattr3(e, Set{Mode: &mode}, nil)
	err = v.call(ctx, procMkdir, e.b, func(d *decoder) {
		postOpHandle(d)
		a = postOpAttr(d)
		wcc(d)
	})
	if err == nil && a.Type == Unknown {
		n, err := v.lookup(ctx, dir, name)
		return n.attr, err
	}
	return a, err
}

func (v *v3) setAttr(ctx context.Context, at place, set Set) error {
	n, err := v.walk(ctx, at)
	if err != nil {
		return err
	}
	return v.setAttrOf(ctx, n.handle, set, nil)
}

func (v *v3) setAttrOf(ctx context.Context, handle []byte, set Set, size *uint64) error {
	var e encoder
	e.opaque(handle)
	sattr3(&e, set, size)
	e.flag(false) // no guard
	return v.call(ctx, procSetAttr, e.b, wcc)
}

// regular says why n is not a file to read or write.
func regular(a Attr) error {
	switch a.Type {
	case File:
		return nil
	case Dir:
		return &Error{Reason: IsDir}
	}
	return &Error{Reason: Inval, Err: errors.New("not a regular file")}
}

var errTooLarge = errors.New("it is longer than is read here")

func (v *v3) read(ctx context.Context, at place, limit int) (data []byte, err error) {
	n, err := v.stat(ctx, at)
	if err == nil {
		err = regular(n.attr)
	}
	if err != nil {
		return nil, err
	}
	v.mu.Lock()
	chunk := v.chunkR
	v.mu.Unlock()
	for end := false; !end; {
		var e encoder
		e.opaque(n.handle)
		e.u64(uint64(len(data)))
		e.u32(uint32(min(int64(chunk), int64(limit)-int64(len(data))+1)))
		err := v.call(ctx, procRead, e.b, func(d *decoder) {
			postOpAttr(d)
			d.u32()
			end = d.flag()
			got := d.opaque(chunk)
			if len(got) == 0 && !end {
				d.fail()
			}
			data = append(data, got...)
		})
		if err != nil {
			return nil, err
		}
		if len(data) > limit {
			return nil, &Error{Reason: TooLarge, Err: errTooLarge}
		}
	}
	return data, nil
}

func (v *v3) write(ctx context.Context, at place, name string, data []byte, mode uint32) error {
	dir, err := v.dir(ctx, at)
	if err != nil {
		return err
	}
	handle, err := v.create(ctx, dir, name, mode)
	if hasReason(err, Exists) {
		var n node
		if n, err = v.lookup(ctx, dir, name); err == nil {
			err = regular(n.attr)
		}
		if err == nil {
			err = v.setAttrOf(ctx, n.handle, Set{}, new(uint64))
		}
		handle = n.handle
	}
	if err != nil {
		return err
	}
	v.mu.Lock()
	chunk := v.chunkW
	v.mu.Unlock()
	for offset := 0; offset < len(data); {
		n, err := v.writeChunk(ctx, handle, offset, data[offset:min(len(data), offset+int(chunk))])
		if err != nil {
			return err
		}
		offset += n
	}
	return nil
}

// create makes a file that is not there.
func (v *v3) create(ctx context.Context, dir []byte, name string, mode uint32) (handle []byte, err error) {
	e := dirOp(dir, name)
	e.u32(1) // GUARDED
	sattr3(e, Set{Mode: &mode}, nil)
	err = v.call(ctx, procCreate, e.b, func(d *decoder) {
		handle = postOpHandle(d)
		postOpAttr(d)
		wcc(d)
	})
	if err == nil && handle == nil {
		n, err := v.lookup(ctx, dir, name)
		return n.handle, err
	}
	return handle, err
}

func errRestarted() error {
	return &Error{Reason: ServerFault, Err: errors.New("it restarted before the data was stable")}
}

// writeChunk writes to stable storage, and says how much.
func (v *v3) writeChunk(ctx context.Context, handle []byte, offset int, data []byte) (n int, err error) {
	var e encoder
	e.opaque(handle)
	e.u64(uint64(offset))
	e.u32(uint32(len(data)))
	e.u32(2) // FILE_SYNC
	e.opaque(data)
	var stable uint32
	var verifier []byte
	err = v.call(ctx, procWrite, e.b, func(d *decoder) {
		wcc(d)
		n = int(d.u32())
		stable = d.u32()
		verifier = d.fixed(8)
		if n < 1 || n > len(data) {
			d.fail()
		}
	})
	if err != nil || stable == 2 {
		return n, err
	}
	// The server did less than it was asked for: it has to say that it caught up, and has not begun anew meanwhile.
	e = encoder{}
	e.opaque(handle)
	e.u64(0)
	e.u32(0)
	var again []byte
	err = v.call(ctx, procCommit, e.b, func(d *decoder) {
		wcc(d)
		again = d.fixed(8)
	})
	if err == nil && !bytes.Equal(verifier, again) {
		err = errRestarted()
	}
	return n, err
}

func (v *v3) remove(ctx context.Context, at place, name string, want want) error {
	dir, err := v.dir(ctx, at)
	if err != nil {
		return err
	}
	proc := uint32(procRemove)
	if want == onlyDir {
		proc = procRmdir
	}
	return v.call(ctx, proc, dirOp(dir, name).b, wcc)
}

func (v *v3) rename(ctx context.Context, fromDir place, from string, toDir place, to string) error {
	a, err := v.dir(ctx, fromDir)
	if err != nil {
		return err
	}
	b, err := v.dir(ctx, toDir)
	if err != nil {
		return err
	}
	return v.call(ctx, procRename, append(dirOp(a, from).b, dirOp(b, to).b...), func(d *decoder) {
		wcc(d)
		wcc(d)
	})
}

func (v *v3) space(ctx context.Context) (total, free uint64, err error) {
	var e encoder
	e.opaque(v.root())
	err = v.call(ctx, procFSStat, e.b, func(d *decoder) {
		postOpAttr(d)
		total = d.u64()
		d.u64() // free, with what is set aside for root
		free = d.u64()
		d.fixed(28)
	})
	return total, free, err
}
