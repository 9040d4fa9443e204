package nfsclient

import (
	"context"
	"sync"
	"sync/atomic"
	"time"
)

// Procedures of RFC 1813 section 3.3.
const (
	procGetAttr     = 1
	procSetAttr     = 2
	procLookup      = 3
	procRead        = 6
	procWrite       = 7
	procCreate      = 8
	procMkdir       = 9
	procRemove      = 12
	procRmdir       = 13
	procRename      = 14
	procReadDir     = 16
	procReadDirPlus = 17
	procFSStat      = 18
	procFSInfo      = 19
	procCommit      = 21
)

const (
	maxHandle3 = 64
	maxName    = 4096     // of a name in a listing; servers have 255, the protocols have no limit
	pageBytes  = 64 << 10 // of a page of a directory
	maxChunk   = 1 << 20  // of a READ or WRITE
	defPort    = 2049     // RFC 1813 section 4.1
)

// v3 is version 3. The connection is made anew when it broke; the root's handle is kept.
type v3 struct {
	opts   Options
	dialer dialer

	turn *turn // guards conn
	conn *conn
	last atomic.Pointer[conn] // conn, as it was seen last

	mu     sync.Mutex // guards the rest
	handle []byte     // of the root
	chunkR uint32     // bytes, of one READ
	chunkW uint32
}

func open3(ctx context.Context, o Options) (*v3, error) {
	if o.Port == 0 {
		o.Port = defPort
	}
	v := &v3{opts: o, dialer: newDialer(o), turn: newTurn(), chunkR: 32 << 10, chunkW: 32 << 10}
	handle, err := v.mount(ctx)
	if err != nil {
		return nil, err
	}
	v.handle = handle
	if err := v.first(ctx); err != nil {
		v.close()
		return nil, err
	}
	return v, nil
}

// first is the first use of the root: some servers refuse here what they let pass at MOUNT.
func (v *v3) first(ctx context.Context) error {
	n, err := v.stat(ctx, place{})
	if err != nil {
		return err
	}
	if n.attr.Type != Dir {
		return &Error{Reason: NotDir}
	}
	var e encoder
	e.opaque(n.handle)
	return v.call(ctx, procFSInfo, e.b, func(d *decoder) {
		postOpAttr(d)
		read := d.u32()
		d.u64() // preferred, multiple
		write := d.u32()
		v.mu.Lock()
		defer v.mu.Unlock()
		if read >= 512 {
			v.chunkR = min(read, maxChunk)
		}
		if write >= 512 {
			v.chunkW = min(write, maxChunk)
		}
	})
}

func (v *v3) connection(ctx context.Context) (*conn, error) {
	ctx, err := v.turn.take(ctx)
	if err != nil {
		return nil, err
	}
	defer v.turn.give()
	if v.conn != nil && !v.conn.isBroken() {
		return v.conn, nil
	}
	if v.conn != nil {
		v.conn.close()
		v.conn = nil
	}
	c, err := v.dialer.connect(ctx, v.opts.Port)
	if err == nil {
		v.conn = c
		v.last.Store(c)
	}
	return c, err
}

func (v *v3) lost() bool {
	c := v.last.Load()
	return c != nil && c.isBroken()
}

func (v *v3) close() {
	if v.turn.end() && v.conn != nil {
		v.conn.close()
	}
}

// call does one procedure; result decodes what follows the status NFS3_OK.
func (v *v3) call(ctx context.Context, proc uint32, args []byte, result func(*decoder)) error {
	return patiently(ctx, func() error {
		c, err := v.connection(ctx)
		if err != nil {
			return err
		}
		body, err := c.call(ctx, service{programNFS, 3}, proc, args)
		if err != nil {
			return err
		}
		d := decoder{b: body}
		if n := d.u32(); n != 0 {
			err := statusError3(n)
			err.Reserved = c.reserved
			return err
		}
		if result != nil {
			result(&d)
		}
		if d.err != nil {
			c.fail(d.err)
			return malformed()
		}
		return nil
	})
}

// fattr3 (RFC 1813 section 2.6).
func fattr3(d *decoder) Attr {
	a := Attr{Type: Type(d.u32()), Mode: d.u32() & 0o7777, Nlink: d.u32(), UID: d.u32(), GID: d.u32(), Size: d.u64(), Used: d.u64()}
	if a.Type == Unknown || a.Type > Fifo {
		d.fail()
	}
	d.u64() // device numbers
	a.FSID[0], a.FileID = d.u64(), d.u64()
	d.u64() // atime
	a.Mtime = time.Unix(int64(d.u32()), int64(d.u32()))
	d.u64() // ctime
	return a
}

func postOpAttr(d *decoder) (a Attr) {
	if d.flag() {
		a = fattr3(d)
	}
	return a
}

func postOpHandle(d *decoder) (h []byte) {
	if d.flag() {
		h = d.opaque(maxHandle3)
	}
	return h
}

// wcc skips the attributes before and after.
func wcc(d *decoder) {
	if d.flag() {
		d.fixed(24)
	}
	postOpAttr(d)
}

// sattr3 (RFC 1813 section 2.6): times stay as they are.
func sattr3(e *encoder, set Set, size *uint64) {
	for _, v := range []*uint32{set.Mode, set.UID, set.GID} {
		e.flag(v != nil)
		if v != nil {
			e.u32(*v)
		}
	}
	e.flag(size != nil)
	if size != nil {
		e.u64(*size)
	}
	e.u32(0)
	e.u32(0)
}

func dirOp(dir []byte, name string) *encoder {
	var e encoder
	e.opaque(dir)
	e.text(name)
	return &e
}

func (v *v3) root() []byte {
	v.mu.Lock()
	defer v.mu.Unlock()
	return v.handle
}

func (v *v3) getAttr(ctx context.Context, handle []byte) (n node, err error) {
	var e encoder
	e.opaque(handle)
	err = v.call(ctx, procGetAttr, e.b, func(d *decoder) { n = node{handle, fattr3(d)} })
	return n, err
}

func (v *v3) lookup(ctx context.Context, dir []byte, name string) (n node, err error) {
	err = v.call(ctx, procLookup, dirOp(dir, name).b, func(d *decoder) { n = node{d.opaque(maxHandle3), postOpAttr(d)} })
	if err == nil && n.attr.Type == Unknown {
		return v.getAttr(ctx, n.handle)
	}
	return n, err
}

// walk looks the names up one by one. It checks itself that each is a directory, so that no server can lead it through a link.
func (v *v3) walk(ctx context.Context, at place) (n node, err error) {
	n = node{handle: at.from, attr: Attr{Type: Dir}}
	if n.handle == nil {
		n.handle = v.root()
	}
	for _, name := range at.names {
		if n.attr.Type != Dir {
			return node{}, &Error{Reason: NotDir}
		}
		if n, err = v.lookup(ctx, n.handle, name); err != nil {
			return node{}, err
		}
	}
	return n, nil
}

// dir is the handle of a directory.
func (v *v3) dir(ctx context.Context, at place) ([]byte, error) {
	n, err := v.walk(ctx, at)
	if err == nil && n.attr.Type != Dir {
		err = &Error{Reason: NotDir}
	}
	return n.handle, err
}

func (v *v3) stat(ctx context.Context, at place) (node, error) {
	n, err := v.walk(ctx, at)
	if err == nil && len(at.names) == 0 {
		return v.getAttr(ctx, n.handle)
	}
	return n, err
}

func (v *v3) renewRoot(ctx context.Context) error {
	ctx, stop := v.turn.until(ctx)
	defer stop()
	handle, err := v.mount(ctx)
	if err != nil {
		return err
	}
	v.mu.Lock()
	defer v.mu.Unlock()
	v.handle = handle
	return nil
}
