package nfsclient

import (
	"bytes"
	"errors"
	"slices"
	"testing"
)

func TestXDR(t *testing.T) {
	t.Parallel()
	var e encoder
	e.u32(7)
	e.u64(1 << 40)
	e.flag(true)
	e.text("abcde")
	e.opaque(nil)
	e.words([]uint32{1, 2})
	d := decoder{b: e.b}
	if d.u32() != 7 || d.u64() != 1<<40 || !d.flag() || d.text(5) != "abcde" || len(d.opaque(1)) != 0 || len(d.words(2)) != 2 || d.err != nil || len(d.b) != 0 {
		t.Errorf("%x: %v", e.b, d.err)
	}
	for name, take := range map[string]func(*decoder){
		"opaque over its limit":     func(d *decoder) { d.opaque(4) },
		"opaque over what there is": func(d *decoder) { d.opaque(1 << 31) },
		"words over their limit":    func(d *decoder) { d.words(4) },
		"words over what there is":  func(d *decoder) { d.words(1 << 31) },
		"a bool that is none":       func(d *decoder) { d.flag() },
		"padding that is not there": func(d *decoder) { d.u32(); d.fixed(5) },
		"a long word, half of it":   func(d *decoder) { d.u64(); d.u64() },
	} {
		d := decoder{b: []byte{0, 0, 0, 5, 'a', 'b', 'c', 'd', 'e'}}
		if take(&d); !errors.Is(d.err, errMalformed) || d.u32() != 0 || d.flag() || d.opaque(9) != nil {
			t.Errorf("%s: %v", name, d.err)
		}
	}
}

// OPEN's answer with each delegation that a server may grant, wanted or not: what follows it is found.
func TestOpenReply(t *testing.T) {
	t.Parallel()
	head := slices.Concat(bytes.Repeat([]byte{7}, 16), words(1, 0, 0, 0, 1, 0, 0))
	ace := append(words(0, 0, 0), text("who")...)
	for name, delegation := range map[string][]byte{
		"none":            words(0),
		"read":            slices.Concat(words(1), make([]byte, 16), words(0), ace),
		"write by size":   slices.Concat(words(2), make([]byte, 16), words(0, 1, 0, 9), ace),
		"write by blocks": slices.Concat(words(2), make([]byte, 16), words(1, 2, 5, 9), ace),
		"not wanted":      words(3, 0),
		"contention":      words(3, 1, 1),
		"resource":        words(3, 2, 0),
		"no support":      words(3, 4),
	} {
		d := decoder{b: slices.Concat(head, delegation)}
		if state := openReply(&d); d.err != nil || len(d.b) != 0 || state[15] != 7 {
			t.Errorf("%s: %v, %d bytes left", name, d.err, len(d.b))
		}
	}
	d := decoder{b: slices.Concat(head, words(9))}
	if openReply(&d); d.err == nil {
		t.Error("an unknown delegation was passed over")
	}
}

// results3 are all decoders of version 3, MOUNT and the portmapper.
func results3() []func(*decoder) {
	return []func(*decoder){
		func(d *decoder) { fattr3(d) },
		func(d *decoder) { d.opaque(maxHandle3); postOpAttr(d); postOpAttr(d) },
		func(d *decoder) { readDir3(d, cursor{}, true) },
		func(d *decoder) { readDir3(d, cursor{}, false) },
		func(d *decoder) { postOpHandle(d); postOpAttr(d); wcc(d) },
		func(d *decoder) { _, d.err = mountReply(d.b) },
		func(d *decoder) { _, d.err = exportList(d.b) },
	}
}

func FuzzResult3(f *testing.F) {
	var page encoder
	page.b = bytes.Join([][]byte{some(attr3(Dir)), make([]byte, 8), words(1, 0, 9)}, nil)
	page.text("name")
	page.u64(1)
	page.b = append(page.b, append(some(attr3(File)), words(1, 4, 5, 0, 1)...)...)
	var list encoder
	list.u32(1)
	list.text("/export")
	list.b = append(list.b, words(0, 0)...)
	f.Add(uint8(0), attr3(Link))
	f.Add(uint8(1), append(append(words(4, 9), some(attr3(Dir))...), words(0)...))
	f.Add(uint8(2), page.b)
	f.Add(uint8(3), page.b)
	f.Add(uint8(4), append(append(words(1, 4, 5), some(attr3(Dir))...), words(0, 0)...))
	f.Add(uint8(5), words(0, 4, 5, 1, 1))
	f.Add(uint8(6), list.b)
	f.Fuzz(func(t *testing.T, which uint8, body []byte) {
		all := results3()
		d := decoder{b: body}
		all[int(which)%len(all)](&d)
		if d.err == nil && len(d.b) > len(body) {
			t.Error("more is left than there was")
		}
	})
}

// everything is a compound of all operations that have a result.
func everything() []op {
	var h []byte
	var a values
	return []op{
		{num: opSequence, result: func(d *decoder) { d.fixed(36) }},
		putFH(nil), getFH(&h), getAttr(&a, statAttrs()...),
		{num: opReadDir, result: func(d *decoder) { readDir4(d, cursor{}) }},
		{num: opOpen, result: func(d *decoder) { openReply(d) }},
		{num: opExchangeID, result: func(d *decoder) { exchangeReply(d) }},
		{num: opCreateSession, result: func(d *decoder) { sessionReply(d) }},
		setAttr(stateID{}, Set{}, nil),
	}
}

func FuzzCompound(f *testing.F) {
	attrs := encodeAttrs(Set{UID: p32(5), Mode: p32(0o755)}, new(uint64))
	var whole encoder
	result := func(num uint32, body ...[]byte) {
		whole.b = append(whole.b, words(num, 0)...)
		whole.b = append(whole.b, bytes.Join(body, nil)...)
	}
	whole.b = words(0, 0, 9)
	result(opSequence, make([]byte, 36))
	result(opPutFH)
	result(opGetFH, words(4, 1))
	result(opGetAttr, attrs)
	result(opReadDir, make([]byte, 8), words(1, 0, 3), text("name"), attrs, words(0, 1))
	result(opOpen, make([]byte, 16), words(1, 0, 0, 0, 1, 0, 0), words(3, 2, 0))
	result(opExchangeID, make([]byte, 12), words(0, 0, 0, 1), text("owner"), text("scope"), words(1), text("domain"), text("name"), make([]byte, 12))
	result(opCreateSession, make([]byte, 16), words(1, 0), words(0, 1<<20, 1<<20, 4096, 16, 64, 0), words(0, 4096, 4096, 0, 2, 1, 0))
	result(opSetAttr, words(1, 0))
	if _, err := decodeCompound(whole.b, everything()); err != nil {
		f.Fatal(err)
	}
	f.Add(whole.b)
	f.Add(append(words(0, 0, 9), whole.b[12:60]...))
	f.Add(words(10021, 0, 0))
	f.Add(words(10052, 0, 1, opSequence, 10052))
	f.Fuzz(func(t *testing.T, body []byte) {
		all := everything()
		done, err := decodeCompound(body, all)
		if err == nil && done != len(all) {
			t.Errorf("%d operations, and no error", done)
		}
		var e *Error
		if err != nil && (!errors.As(err, &e) || e.Error() == "") {
			t.Errorf("%v", err)
		}
		sequenceTaken(body)
	})
}

func FuzzReply(f *testing.F) {
	f.Add([]byte{0x80, 0, 0, 24, 0, 0, 0, 1, 0, 0, 0, 1, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0})
	for _, says := range []answer{accepted(0, words(0)), accepted(1), accepted(2, words(2, 3)), denied(5), answer(words(1, 0, 2, 2))} {
		reply := append(words(9, 1), says...)
		f.Add(append(words(1<<31|uint32(len(reply))), reply...))
		f.Add(append(append(append(words(4), reply[:4]...), words(1<<31|uint32(len(reply)-4))...), reply[4:]...))
	}
	f.Fuzz(func(t *testing.T, stream []byte) {
		r := bytes.NewReader(stream)
		for {
			record, err := readRecord(r)
			if err != nil {
				return
			}
			if len(record) > len(stream) {
				t.Error("a record is longer than what was sent")
			}
			xid, body, err := parseReply(record)
			if err != nil && body != nil || len(body) > len(record) || err != nil && errors.Is(err, errMalformed) && xid != 0 {
				t.Errorf("%d, %x, %v", xid, body, err)
			}
		}
	})
}
