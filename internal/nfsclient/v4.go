package nfsclient

import (
	"context"
	"strings"
)

// renewRoot looks Path up from the server's root, and asks for what of the server does not change.
func (v *v4) renewRoot(ctx context.Context) error {
	s, err := v.session(ctx)
	if err != nil {
		return err
	}
	at := op{num: opPutRootFH}
	names := strings.FieldsFunc(v.opts.Path, func(r rune) bool { return r == '/' })
	var handle []byte
	var a values
	for first := true; first || len(names) > 0; first = false {
		n := min(len(names), int(s.fore.ops)-4)
		ops := append([]op{at}, lookups(names[:n])...)
		if err := v.compound(ctx, append(ops, getFH(&handle), getAttr(&a, attrType, attrMaxRead, attrMaxWrite))...); err != nil {
			return err
		}
		at, names = putFH(handle), names[n:]
	}
	if a.Type != Dir {
		return &Error{Reason: NotDir}
	}
	v.mu.Lock()
	defer v.mu.Unlock()
	v.root = root4{handle, a.maxRead, a.maxWrite}
	return nil
}

func (v *v4) found() root4 {
	v.mu.Lock()
	defer v.mu.Unlock()
	return v.root
}

// chunks are how many bytes to read and to write at once.
func (v *v4) chunks(ctx context.Context) (read, write int, err error) {
	s, err := v.session(ctx)
	if err != nil {
		return 0, 0, err
	}
	r := v.found()
	return chunk(r.maxRead, s.fore.response), chunk(r.maxWrite, s.fore.request), nil
}

// chunk is what fits into a message, and what the server takes of a file at once, if it says so.
func chunk(most uint64, message uint32) int {
	n := min(uint64(message)-spare, maxChunk)
	if most >= 512 {
		n = min(n, most)
	}
	return int(n)
}

// to gives the operations that make a place the current one, in at most half of a compound: what is too long to walk at once is walked ahead.
func (v *v4) to(ctx context.Context, at place) ([]op, error) {
	if at.from == nil {
		at.from = v.found().handle
	}
	const most = minOps/2 - 3 // two walks, and up to five operations with SEQUENCE
	for len(at.names) > most {
		var handle []byte
		ops := append([]op{putFH(at.from)}, lookups(at.names[:most])...)
		if err := v.compound(ctx, append(ops, getFH(&handle))...); err != nil {
			return nil, err
		}
		at = place{handle, at.names[most:]}
	}
	return append([]op{putFH(at.from)}, lookups(at.names)...), nil
}

// at does operations at a place.
func (v *v4) at(ctx context.Context, where place, ops ...op) error {
	walk, err := v.to(ctx, where)
	if err != nil {
		return err
	}
	return v.compound(ctx, append(walk, ops...)...)
}

func (v *v4) stat(ctx context.Context, where place) (n node, err error) {
	var a values
	err = v.at(ctx, where, getFH(&n.handle), getAttr(&a, statAttrs()...))
	n.attr = a.Attr
	return n, err
}

func (v *v4) page(ctx context.Context, dir place, from cursor) (l listing, err error) {
	s, err := v.session(ctx)
	if err != nil {
		return l, err
	}
	size := min(pageBytes, s.fore.response-spare)
	var e encoder
	e.u64(from.cookie)
	e.fixed(from.verifier[:])
	e.u32(size / 4) // of names and cookies alone
	e.u32(size)
	e.words(bitmap(append(statAttrs(), attrReadErr)...))
	err = v.at(ctx, dir, op{num: opReadDir, args: e.b, result: func(d *decoder) { l = readDir4(d, from) }})
	return l, err
}

// readDir4 is what READDIR answers (RFC 8881 section 18.23.2). An entry whose attributes the server cannot give, as it is just vanishing, is of type Unknown.
func readDir4(d *decoder, from cursor) (l listing) {
	l.next = from
	copy(l.next.verifier[:], d.fixed(8))
	moved := false
	for d.flag() {
		moved = true
		l.next.cookie = d.u64()
		name := d.text(maxName)
		l.add(d, Entry{Name: name, Attr: fattr4(d).Attr})
	}
	l.end = d.flag()
	if !l.end && (!moved || l.next.cookie == from.cookie) {
		d.fail() // it would go on for ever
	}
	return l
}

func (v *v4) mkdir(ctx context.Context, dir place, name string, mode uint32) (Attr, error) {
	var a values
	create := op{num: opCreate, result: func(d *decoder) { changeInfo(d); d.words(8) }}
	create.args = append(append(words(uint32(Dir)), text(name)...), encodeAttrs(Set{Mode: &mode}, nil)...)
	err := v.at(ctx, dir, create, getAttr(&a, statAttrs()...))
	return a.Attr, err
}

func setAttr(state stateID, set Set, size *uint64) op {
	return op{num: opSetAttr, args: append(state[:], encodeAttrs(set, size)...), result: func(d *decoder) { d.words(8) }}
}

func (v *v4) setAttr(ctx context.Context, where place, set Set) error {
	return v.at(ctx, where, setAttr(stateID{}, set, nil))
}

func (v *v4) read(ctx context.Context, where place, limit int) (data []byte, err error) {
	n, err := v.stat(ctx, where)
	if err == nil {
		err = regular(n.attr)
	}
	if err != nil {
		return nil, err
	}
	chunk, _, err := v.chunks(ctx)
	if err != nil {
		return nil, err
	}
	for end := false; !end; {
		most := min(int64(chunk), int64(limit)-int64(len(data))+1)
		var e encoder
		e.fixed(make([]byte, 16)) // anonymous: see stateID
		e.u64(uint64(len(data)))
		e.u32(uint32(most))
		err := v.at(ctx, place{from: n.handle}, op{num: opRead, args: e.b, result: func(d *decoder) {
			end = d.flag()
			got := d.opaque(uint32(most))
			if len(got) == 0 && !end {
				d.fail()
			}
			data = append(data, got...)
		}})
		if err != nil {
			return nil, err
		}
		if len(data) > limit {
			return nil, &Error{Reason: TooLarge, Err: errTooLarge}
		}
	}
	return data, nil
}

func (v *v4) remove(ctx context.Context, dir place, name string, want want) error {
	rm := op{num: opRemove, args: text(name), result: changeInfo}
	if want == anything {
		return v.at(ctx, dir, rm)
	}
	// REMOVE takes both, so that the compound looks first.
	check := isType(opVerify)
	if want == noDir {
		check = isType(opNVerify)
	}
	return v.at(ctx, dir, op{num: opSaveFH}, op{num: opLookup, args: text(name)}, check, op{num: opRestoreFH}, rm)
}

func (v *v4) rename(ctx context.Context, fromDir place, from string, toDir place, to string) error {
	walk, err := v.to(ctx, toDir)
	if err != nil {
		return err
	}
	ops := append([]op{{num: opSaveFH}}, walk...)
	return v.at(ctx, fromDir, append(ops, op{num: opRename, args: append(text(from), text(to)...), result: func(d *decoder) { changeInfo(d); changeInfo(d) }})...)
}

func (v *v4) space(ctx context.Context) (total, free uint64, err error) {
	var a values
	err = v.at(ctx, place{}, getAttr(&a, attrSpaceAvail, attrSpaceTotal))
	return a.total, a.avail, err
}
