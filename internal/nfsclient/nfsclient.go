// Package nfsclient speaks NFS to a server from user space: version 3 (RFC 1813, with MOUNT and the portmapper) and version 4.1 (RFC 8881, AUTH_SYS, one session).
// It makes and removes directories and small files, and needs no NFS in the kernel.
//
// Laws: no symbolic link is ever followed. All methods may be called at once; their calls share one connection. A call whose context ends returns at once. A
// connection that breaks fails the calls in flight with reason Lost, and the next call connects anew; whether a lost call was done is the caller's to find out. A
// server that asks to wait is waited for until the context ends. Every error is an *Error.
//
// It does not cache but for the root's handle, does not lock, takes no delegation, and does not encrypt. No Go module speaks version 4; that for version 3
// (willscott/go-nfs-client) has no contexts, sends what is not idempotent again, and believes a length that the server announces, so that nothing of it is used.
package nfsclient

import (
	"context"
	"errors"
	"io/fs"
	"net"
	"path"
	"strconv"
	"strings"
	"time"
)

// Version is a version of the protocol; the zero value is none.
type Version int

// The versions.
const (
	V3 Version = 3
	V4 Version = 4 // 4.1
)

// Options say what to open.
type Options struct {
	Host      string // name or address
	Port      int    // of NFS; 0 means 2049
	MountPort int    // V3: of mountd, TCP; 0 means to ask the portmapper at port 111
	Version   Version
	Path      string // absolute, of an exported directory or one below it: the root of what is seen
	UID, GID  uint32 // AUTH_SYS, of every call; there are no further groups

	// Dial connects; nil means DialReserved.
	Dial func(ctx context.Context, network, address string) (net.Conn, error)
}

// Type is what an entry is; the numbers are ftype3's (RFC 1813 section 2.6).
type Type uint32

// The types. Version 4's others, which no directory lists, are Unknown.
const (
	Unknown Type = iota
	File
	Dir
	Block
	Char
	Link
	Socket
	Fifo
)

// Attr is what the server says of an entry itself, never of what a link points to.
type Attr struct {
	Type     Type
	Mode     uint32 // permissions with setuid, setgid, sticky: 07777 at most
	Nlink    uint32
	UID, GID uint32 // 65534 where version 4 gives a name and not a number
	Size     uint64 // bytes
	Used     uint64 // bytes on the server's disk
	FSID     FSID   // which of the server's file systems it is in
	FileID   uint64
	Mtime    time.Time
}

// FSID tells file systems of one server apart; version 3 has the first number only.
type FSID [2]uint64

// Entry is one entry of a directory.
type Entry struct {
	Name string
	Attr Attr
}

// Set is what SetAttr changes; nil leaves a thing as it is.
type Set struct{ UID, GID, Mode *uint32 }

// place is a path of names from a handle; from nil means the root. Walking it follows no link.
type place struct {
	from  []byte
	names []string
}

// node is an entry with the handle to reach it.
type node struct {
	handle []byte
	attr   Attr
}

// cursor is where in a directory to read on; the zero value is its beginning.
type cursor struct {
	cookie   uint64
	verifier [8]byte
}

// listing is one page of a directory. Entries of a server that gives no attributes with them are of type Unknown.
type listing struct {
	entries []Entry
	next    cursor
	end     bool
}

// want says what remove is to check before.
type want uint8

const (
	anything want = iota // whatever the server removes by its call for files; version 4 has one call for all
	noDir
	onlyDir
)

// protocol is what the two versions have in common. Its errors are *Error, without operation and path.
type protocol interface {
	stat(ctx context.Context, at place) (node, error)
	page(ctx context.Context, dir place, from cursor) (listing, error)
	mkdir(ctx context.Context, dir place, name string, mode uint32) (Attr, error)
	setAttr(ctx context.Context, at place, set Set) error
	read(ctx context.Context, at place, limit int) ([]byte, error)
	write(ctx context.Context, dir place, name string, data []byte, mode uint32) error
	remove(ctx context.Context, dir place, name string, want want) error
	rename(ctx context.Context, fromDir place, from string, toDir place, to string) error
	space(ctx context.Context) (total, free uint64, err error)
	renewRoot(ctx context.Context) error // looks the root up again
	lost() bool                          // the connection broke, and there is no other yet
	close()
}

// Export is a directory of a server, open.
type Export struct{ p protocol }

// Open connects and looks Path up.
func Open(ctx context.Context, o Options) (*Export, error) {
	where := o.Host + ":" + o.Path
	if !path.IsAbs(o.Path) || strings.ContainsRune(o.Path, 0) || o.Host == "" {
		return nil, named("mount", where, &Error{Reason: Inval, Err: errors.New("a host and an absolute path are needed")})
	}
	o.Path = path.Clean(o.Path)
	var p protocol
	var err error
	switch o.Version {
	case V3:
		p, err = open3(ctx, o)
	case V4:
		p, err = open4(ctx, o)
	default:
		err = &Error{Reason: NoVersion, Err: errors.New("version " + strconv.Itoa(int(o.Version)) + " is unknown here")}
	}
	if err != nil {
		return nil, named("mount", where, refusal(err))
	}
	return &Export{p}, nil
}

// refusal is an error of opening, where a missing path is a missing export, and being denied may be for the port that we come from.
func refusal(err error) error {
	var e *Error
	if !errors.As(err, &e) {
		return err
	}
	c := *e
	switch {
	case c.Reason == NotFound:
		c.Reason = NoExport
	case c.Reason == Denied && !c.Reserved:
		c.Reason = InsecurePort
	}
	return &c
}

// Close ends the session and the connection, within a second. Calls in flight fail.
func (e *Export) Close() error {
	e.p.close()
	return nil
}

// do makes a call on behalf of op. A stale handle is given one more chance, for the root may have been exported anew, or a directory been replaced meanwhile. So may it where the
// connection broke, and another server, or another file system, be what is exported now; where that cannot be found out, the call itself says what is the matter.
func (e *Export) do(ctx context.Context, op, name string, call func() error) error {
	if e.p.lost() {
		e.lookAgain(ctx)
	}
	err := call()
	if hasReason(err, Stale) {
		if e.p.renewRoot(ctx) == nil {
			err = call()
		}
	}
	return named(op, name, err)
}

// look is do for a call that only looks.
func (e *Export) look(ctx context.Context, op, name string, call func() error) error {
	return e.do(ctx, op, name, func() error { return insist(ctx, call) })
}

// lookAgain leaves the call that it is done for half of its time: version 3 asks another program than the one that serves files, and it may be the only silent one.
func (e *Export) lookAgain(ctx context.Context) {
	most := 5 * time.Second
	if end, ok := ctx.Deadline(); ok {
		most = min(most, time.Until(end)/2)
	}
	ctx, cancel := context.WithTimeout(ctx, most)
	defer cancel()
	_ = e.p.renewRoot(ctx)
}

// orphan is the error of making something in dir: if dir is the root, and is not found, it is stale. Ganesha keeps a directory open that was removed beside it,
// and answers what the kernel says of making a file in that.
func orphan(dir place, err error) error {
	var e *Error
	if len(dir.names) > 0 || !errors.As(err, &e) || e.Reason != NotFound {
		return err
	}
	c := *e
	c.Reason = Stale
	return &c
}

// split checks a path and takes it apart; the root has no names.
func split(name string) ([]string, error) {
	if name == "" || name == "." {
		return nil, nil
	}
	if !fs.ValidPath(name) || strings.ContainsRune(name, 0) {
		return nil, &Error{Reason: Inval, Err: errors.New("not a clean relative path")}
	}
	return strings.Split(name, "/"), nil
}

// parent is split, for what the root cannot be: reason says why not.
func parent(name string, reason Reason) (dir place, last string, err error) {
	names, err := split(name)
	if err == nil && len(names) == 0 {
		err = &Error{Reason: reason, Err: errors.New("it is the root")}
	}
	if err != nil {
		return place{}, "", err
	}
	return place{names: names[:len(names)-1]}, names[len(names)-1], nil
}

// Stat tells of an entry itself, as lstat(2) does.
func (e *Export) Stat(ctx context.Context, name string) (Attr, error) {
	names, err := split(name)
	if err != nil {
		return Attr{}, named("stat", name, err)
	}
	var n node
	err = e.look(ctx, "stat", name, func() (err error) {
		n, err = e.p.stat(ctx, place{names: names})
		return err
	})
	return n.attr, err
}

// Mkdir makes a directory. Its mode is not masked here; the server may.
func (e *Export) Mkdir(ctx context.Context, name string, mode uint32) (a Attr, err error) {
	dir, last, err := parent(name, Exists)
	if err != nil {
		return Attr{}, named("mkdir", name, err)
	}
	err = e.do(ctx, "mkdir", name, func() (err error) {
		a, err = e.p.mkdir(ctx, dir, last, mode&0o7777)
		return orphan(dir, err)
	})
	return a, err
}

// SetAttr changes owner, group and mode. Setuid and setgid are set last, in a call of their own, for a server may take them away with the new owner (chown(2);
// Ganesha does, in one call too).
func (e *Export) SetAttr(ctx context.Context, name string, set Set) error {
	names, err := split(name)
	if err != nil {
		return named("set attributes", name, err)
	}
	parts := []Set{set}
	if (set.UID != nil || set.GID != nil) && set.Mode != nil && *set.Mode&0o6000 != 0 {
		parts = []Set{{UID: set.UID, GID: set.GID}, {Mode: set.Mode}}
	}
	for _, part := range parts {
		if err := e.do(ctx, "set attributes", name, func() error { return e.p.setAttr(ctx, place{names: names}, part) }); err != nil {
			return err
		}
	}
	return nil
}

// ReadFile reads a regular file of at most limit bytes, and never more than 1 GiB. A longer one has reason TooLarge.
func (e *Export) ReadFile(ctx context.Context, name string, limit int) (data []byte, err error) {
	names, err := split(name)
	if err != nil {
		return nil, named("read", name, err)
	}
	limit = min(max(limit, 0), 1<<30)
	err = e.look(ctx, "read", name, func() (err error) {
		data, err = e.p.read(ctx, place{names: names}, limit)
		return err
	})
	return data, err
}

// WriteFile makes a regular file with that mode, or empties the one that is there, which keeps its mode, and writes data. When it returns nil the data is on the
// server's stable storage. After an error the file may be there with a part of it.
func (e *Export) WriteFile(ctx context.Context, name string, data []byte, mode uint32) error {
	dir, last, err := parent(name, IsDir)
	if err != nil {
		return named("write", name, err)
	}
	return e.do(ctx, "write", name, func() error { return orphan(dir, e.p.write(ctx, dir, last, data, mode&0o7777)) })
}

// Remove removes what is not a directory.
func (e *Export) Remove(ctx context.Context, name string) error {
	dir, last, err := parent(name, IsDir)
	if err != nil {
		return named("remove", name, err)
	}
	return e.do(ctx, "remove", name, func() error { return e.p.remove(ctx, dir, last, noDir) })
}

// Rmdir removes an empty directory.
func (e *Export) Rmdir(ctx context.Context, name string) error {
	dir, last, err := parent(name, Inval)
	if err != nil {
		return named("rmdir", name, err)
	}
	return e.do(ctx, "rmdir", name, func() error { return e.p.remove(ctx, dir, last, onlyDir) })
}

// Rename gives an entry another name, in place of what has it, as rename(2) does.
func (e *Export) Rename(ctx context.Context, from, to string) error {
	fromDir, fromName, err := parent(from, Inval)
	if err != nil {
		return named("rename", from, err)
	}
	toDir, toName, err := parent(to, Inval)
	if err != nil {
		return named("rename", to, err)
	}
	return e.do(ctx, "rename", from+" to "+to, func() error { return e.p.rename(ctx, fromDir, fromName, toDir, toName) })
}

// Space is the size of the file system and what of it this user may still fill, in bytes.
func (e *Export) Space(ctx context.Context) (total, free uint64, err error) {
	err = e.look(ctx, "ask the space of", ".", func() (err error) {
		total, free, err = e.p.space(ctx)
		return err
	})
	return total, free, err
}
