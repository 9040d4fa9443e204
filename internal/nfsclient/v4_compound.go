package nfsclient

import (
	"strconv"
	"time"
)

// Operations of RFC 8881 section 18.
const (
	opClose           = 4
	opCommit          = 5
	opCreate          = 6
	opGetAttr         = 9
	opGetFH           = 10
	opLookup          = 15
	opNVerify         = 17
	opOpen            = 18
	opPutFH           = 22
	opPutRootFH       = 24
	opRead            = 25
	opReadDir         = 26
	opRemove          = 28
	opRename          = 29
	opRestoreFH       = 31
	opSaveFH          = 32
	opSetAttr         = 34
	opVerify          = 37
	opWrite           = 38
	opBindConn        = 41
	opExchangeID      = 42
	opCreateSession   = 43
	opDestroySession  = 44
	opSequence        = 53
	opDestroyClientID = 57
	opReclaimComplete = 58
)

// Attributes of RFC 8881 section 5.
const (
	attrType       = 1
	attrSize       = 4
	attrFSID       = 8
	attrReadErr    = 11
	attrFileID     = 20
	attrMaxRead    = 30
	attrMaxWrite   = 31
	attrMode       = 33
	attrNumLinks   = 35
	attrOwner      = 36
	attrGroup      = 37
	attrSpaceAvail = 42
	attrSpaceTotal = 44
	attrSpaceUsed  = 45
	attrMtime      = 53
)

const (
	maxHandle4 = 128
	maxOwner   = 1024  // bytes of an owner's name
	maxOpaque4 = 1024  // NFS4_OPAQUE_LIMIT
	nobody     = 65534 // for an owner that has no number here
	maxOps     = 64    // of a compound, if the server lets it
	minOps     = 16    // without which it cannot be worked: SEQUENCE, two short walks with SAVEFH, RENAME
)

// op is one operation of a compound: its arguments, and what to do with its result, which is decoded only if it succeeded.
type op struct {
	num    uint32
	args   []byte
	result func(*decoder)
}

func words(v ...uint32) []byte {
	var e encoder
	for _, w := range v {
		e.u32(w)
	}
	return e.b
}

func text(v string) []byte {
	var e encoder
	e.text(v)
	return e.b
}

// encodeCompound is COMPOUND4args of minor version 1, without a tag.
func encodeCompound(ops []op) []byte {
	var e encoder
	e.u32(0)
	e.u32(1)
	e.u32(uint32(len(ops)))
	for _, o := range ops {
		e.u32(o.num)
		e.b = append(e.b, o.args...)
	}
	return e.b
}

// decodeCompound hands the results to the operations. done is how many succeeded; err is the failure of the next, or that the reply is malformed.
func decodeCompound(body []byte, ops []op) (done int, err error) {
	d := decoder{b: body}
	overall := d.u32()
	d.opaque(maxOpaque4)
	n := d.u32()
	if d.err != nil || n > uint32(len(ops)) {
		return 0, malformed()
	}
	for i := range ops[:n] {
		num, code := d.u32(), d.u32()
		// 10044 is OP_ILLEGAL, which a server may put in place of what it does not know.
		if d.err != nil || num != ops[i].num && num != 10044 {
			return i, malformed()
		}
		if code != 0 {
			return i, opError(ops[i].num, code)
		}
		if ops[i].result != nil {
			ops[i].result(&d)
		}
		if d.err != nil {
			return i, malformed()
		}
	}
	if overall != 0 { // refused as a whole
		return int(n), statusError4(overall)
	}
	if n != uint32(len(ops)) {
		return int(n), malformed()
	}
	return int(n), nil
}

// opError is a status as the operation means it: a link is no directory to walk, and no file to read.
func opError(num, code uint32) *Error {
	err := statusError4(code)
	if code == nfsSymlink4 && (num == opOpen || num == opRead) {
		err.Reason = Inval
	}
	return err
}

// bitmap is a bitmap4 with these attributes.
func bitmap(attrs ...uint32) []uint32 {
	var m []uint32
	for _, a := range attrs {
		for uint32(len(m)) <= a/32 {
			m = append(m, 0)
		}
		m[a/32] |= 1 << (a % 32)
	}
	return m
}

// statAttrs are what an Attr needs, in the order of their numbers.
func statAttrs() []uint32 {
	return []uint32{attrType, attrSize, attrFSID, attrFileID, attrMode, attrNumLinks, attrOwner, attrGroup, attrSpaceUsed, attrMtime}
}

// values are the attributes that this package asks for.
type values struct {
	Attr
	readErr           uint32 // why an entry of a directory has no attributes
	maxRead, maxWrite uint64
	avail, total      uint64
}

// fattr4 decodes attributes. One that was not asked for ends it, for nothing says how long it is.
func fattr4(d *decoder) (v values) {
	mask := d.words(8)
	in := decoder{b: d.opaque(maxReply)}
	for i, w := range mask {
		for bit := range uint32(32) {
			if w&(1<<bit) != 0 {
				v.take(&in, uint32(i)*32+bit)
			}
		}
	}
	if in.err != nil || len(in.b) != 0 {
		d.fail()
	}
	return v
}

func (v *values) take(d *decoder, attr uint32) {
	switch attr {
	case attrType:
		if v.Type = Type(d.u32()); v.Type > Fifo {
			v.Type = Unknown
		}
	case attrSize:
		v.Size = d.u64()
	case attrFSID:
		v.FSID = FSID{d.u64(), d.u64()}
	case attrReadErr:
		v.readErr = d.u32()
	case attrFileID:
		v.FileID = d.u64()
	case attrMaxRead:
		v.maxRead = d.u64()
	case attrMaxWrite:
		v.maxWrite = d.u64()
	case attrMode:
		v.Mode = d.u32() & 0o7777
	case attrNumLinks:
		v.Nlink = d.u32()
	case attrOwner:
		v.UID = owner(d.text(maxOwner))
	case attrGroup:
		v.GID = owner(d.text(maxOwner))
	case attrSpaceAvail:
		v.avail = d.u64()
	case attrSpaceTotal:
		v.total = d.u64()
	case attrSpaceUsed:
		v.Used = d.u64()
	case attrMtime:
		seconds, nanoseconds := int64(d.u64()), int64(d.u32())
		v.Mtime = time.Unix(seconds, nanoseconds)
	default:
		d.fail()
	}
}

// owner is the number that an owner is given as (RFC 8881 section 5.9); this side knows no names.
func owner(s string) uint32 {
	n, err := strconv.ParseUint(s, 10, 32)
	if err != nil {
		return nobody
	}
	return uint32(n)
}

// encodeAttrs is a fattr4 with what is to be set.
func encodeAttrs(set Set, size *uint64) []byte {
	var attrs []uint32
	var in encoder
	if size != nil {
		attrs = append(attrs, attrSize)
		in.u64(*size)
	}
	if set.Mode != nil {
		attrs = append(attrs, attrMode)
		in.u32(*set.Mode)
	}
	if set.UID != nil {
		attrs = append(attrs, attrOwner)
		in.text(strconv.FormatUint(uint64(*set.UID), 10))
	}
	if set.GID != nil {
		attrs = append(attrs, attrGroup)
		in.text(strconv.FormatUint(uint64(*set.GID), 10))
	}
	var e encoder
	e.words(bitmap(attrs...))
	e.opaque(in.b)
	return e.b
}

func putFH(handle []byte) op {
	var e encoder
	e.opaque(handle)
	return op{num: opPutFH, args: e.b}
}

func getFH(into *[]byte) op {
	return op{num: opGetFH, result: func(d *decoder) { *into = d.opaque(maxHandle4) }}
}

func getAttr(into *values, attrs ...uint32) op {
	var e encoder
	e.words(bitmap(attrs...))
	return op{num: opGetAttr, args: e.b, result: func(d *decoder) { *into = fattr4(d) }}
}

func lookups(names []string) (ops []op) {
	for _, n := range names {
		ops = append(ops, op{num: opLookup, args: text(n)})
	}
	return ops
}

// isType fails with NFS4ERR_NOT_SAME (num opVerify) or NFS4ERR_SAME (opNVerify) by whether the current entry is a directory.
func isType(num uint32) op {
	var e encoder
	e.words(bitmap(attrType))
	e.opaque(words(uint32(Dir)))
	return op{num: num, args: e.b}
}

// changeInfo skips a change_info4.
func changeInfo(d *decoder) {
	d.flag()
	d.u64()
	d.u64()
}

// stateID is a stateid4; the zero value is the anonymous one, with which a file can be read that is not open (RFC 8881 section 8.2.3).
type stateID [16]byte
