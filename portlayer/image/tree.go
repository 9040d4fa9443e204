package image

import (
	"archive/tar"
	"errors"
	"io"
	"path"
	"strings"
	"time"

	"vch/internal/fault"
)

// The whiteout names of OCI image-spec layer.md.
const (
	whiteout       = ".wh."
	whiteoutOpaque = ".wh..wh..opq"
	whiteoutMeta   = ".wh..wh." // of AUFS, which left them in old images
)

// Bounds. A layer that exceeds one is refused by name.
const (
	maxNodes     = 4 << 20         // entries of one image
	maxName      = 255             // bytes of one name, NAME_MAX of ext4
	maxPath      = 4095            // bytes of a path or a symlink's target, PATH_MAX without its NUL
	maxFile      = 339 * 128 << 20 // bytes of a file; tar2ext4 writes a broken extent tree from 340 extents on (compactext4.writeExtents)
	maxHops      = 40              // symlinks in one path, MAXSYMLINKS
	maxLinkCount = 65000           // EXT4_LINK_MAX
)

// inode is a file of any kind; several names may have the same one.
type inode struct {
	typ          byte // tar.TypeReg, TypeDir, TypeSymlink, TypeChar, TypeBlock, TypeFifo
	mode         int64
	uid, gid     int
	mtime        time.Time
	size         int64
	target       string // of a symlink
	major, minor int64
	xattrs       map[string]string // PAX records, "SCHILY.xattr.…"
	layer, entry int               // where a file's content is: which layer, which entry of its tar
	links        int
}

// node is one name in the tree.
type node struct {
	*inode
	children map[string]*node // of a directory
	touched  int              // the topmost layer that named it or something below it
	given    bool             // some layer described it; false for a directory that is only implied
}

// tree is what the layers make when one is laid on the other. Only names and attributes: content stays in the layers.
type tree struct {
	root  *node
	nodes int
}

func newTree() *tree {
	return &tree{root: &node{inode: implied(time.Unix(0, 0)), children: map[string]*node{}}}
}

func implied(t time.Time) *inode {
	return &inode{typ: tar.TypeDir, mode: 0o755, mtime: t, layer: -1}
}

func invalid(format string, args ...any) error { return fault.New(fault.Invalid, format, args...) }

// apply lays the tar r on the tree as layer number layer, counted from 0.
func (t *tree) apply(layer int, r io.Reader, stop func() error) error {
	tr := tar.NewReader(r)
	for entry := 0; ; entry++ {
		if entry%256 == 0 {
			if err := stop(); err != nil {
				return err
			}
		}
		h, err := tr.Next()
		if errors.Is(err, io.EOF) {
			return nil
		}
		if err != nil {
			return invalid("it is no valid tar, or cut short: %w", err)
		}
		if h.Typeflag == tar.TypeXGlobalHeader {
			continue
		}
		if err := t.add(layer, entry, h); err != nil {
			return err
		}
	}
}

// clean gives the parts of an entry's name. Absolute names are taken from the root, as Docker does; one that climbs out of it is refused.
func clean(name string) ([]string, error) {
	if len(name) > maxPath {
		return nil, invalid("entry %.60q… has a name longer than %d bytes", name, maxPath)
	}
	if strings.IndexByte(name, 0) >= 0 {
		return nil, invalid("entry %q has a zero byte in its name", name)
	}
	p := path.Clean(strings.TrimLeft(name, "/"))
	if p == ".." || strings.HasPrefix(p, "../") {
		return nil, invalid("entry %q lies outside the image's root", name)
	}
	if p == "." {
		return nil, nil
	}
	parts := strings.Split(p, "/")
	for _, s := range parts {
		if len(s) > maxName {
			return nil, invalid("entry %.60q… has a part longer than %d bytes", name, maxName)
		}
	}
	return parts, nil
}

func (t *tree) add(layer, entry int, h *tar.Header) error {
	parts, err := clean(h.Name)
	if err != nil {
		return err
	}
	if len(parts) == 0 {
		if h.Typeflag != tar.TypeDir {
			return invalid("entry %q would replace the root by something else than a directory", h.Name)
		}
		in, err := describe(layer, entry, h)
		if err != nil {
			return err
		}
		t.root.inode, t.root.touched, t.root.given = in, layer, true
		return nil
	}
	dirParts, base := parts[:len(parts)-1], parts[len(parts)-1]
	if strings.HasPrefix(base, whiteout) {
		return t.hide(layer, h.Name, dirParts, base)
	}
	if len(dirParts) > 0 && strings.HasPrefix(dirParts[0], whiteoutMeta) {
		return nil // below .wh..wh.plnk
	}
	var in *inode
	if h.Typeflag == tar.TypeLink {
		if in, err = t.linked(h); err != nil {
			return err
		}
	} else if in, err = describe(layer, entry, h); err != nil {
		return err
	}
	dir, err := t.directory(layer, dirParts, h)
	if err != nil {
		return err
	}
	return t.set(layer, dir, base, in)
}

// set puts in under the name base in dir. A directory on a directory keeps what is in it; anything else replaces what was there.
func (t *tree) set(layer int, dir *node, base string, in *inode) error {
	old := dir.children[base]
	if old != nil && old.inode == in { // a link to itself
		old.touched = layer
		return nil
	}
	if in.typ == tar.TypeDir && old != nil && old.typ == tar.TypeDir {
		old.inode, old.touched, old.given = in, layer, true
		return nil
	}
	if in.typ != tar.TypeDir {
		if in.links++; in.links >= maxLinkCount {
			return fault.New(fault.Unsupported, "entry %q has more than %d hard links", base, maxLinkCount)
		}
	}
	if old != nil {
		t.nodes -= old.count() - 1
		old.forget()
	} else if t.nodes++; t.nodes > maxNodes {
		return fault.New(fault.Unsupported, "the image has more than %d entries", maxNodes)
	}
	n := &node{inode: in, touched: layer, given: true}
	if in.typ == tar.TypeDir {
		n.children = map[string]*node{}
	}
	dir.children[base] = n
	return nil
}

// forget counts the links of what goes away.
func (n *node) forget() {
	if n.typ != tar.TypeDir {
		n.links--
	}
	for _, c := range n.children {
		c.forget()
	}
}

// linked finds the inode that a hard link names. The last part is not followed, as with link(2).
func (t *tree) linked(h *tar.Header) (*inode, error) {
	parts, err := clean(h.Linkname)
	if err != nil {
		return nil, err
	}
	if len(parts) == 0 {
		return nil, invalid("entry %q is a hard link to a directory, %q", h.Name, h.Linkname)
	}
	dir, err := t.walk(parts[:len(parts)-1])
	if err != nil {
		return nil, err
	}
	var n *node
	if dir != nil {
		n = dir.children[parts[len(parts)-1]]
	}
	if n == nil {
		return nil, invalid("entry %q is a hard link to %q, which is not there", h.Name, h.Linkname)
	}
	if n.typ == tar.TypeDir {
		return nil, invalid("entry %q is a hard link to a directory, %q", h.Name, h.Linkname)
	}
	return n.inode, nil
}

// hide does what a whiteout says: it takes away what lower layers put there, and nothing of its own layer (layer.md, "Whiteouts").
func (t *tree) hide(layer int, name string, dirParts []string, base string) error {
	dir, err := t.walk(dirParts)
	if err != nil {
		return err
	}
	if base == whiteoutOpaque {
		if dir != nil {
			t.drop(layer, dir)
		}
		return nil
	}
	if strings.HasPrefix(base, whiteoutMeta) {
		return nil
	}
	hidden := strings.TrimPrefix(base, whiteout)
	if hidden == "" || hidden == "." || hidden == ".." {
		return invalid("entry %q is a whiteout of nothing", name)
	}
	if dir == nil {
		return nil
	}
	if n := dir.children[hidden]; n != nil {
		t.dropOne(layer, dir, hidden, n)
	}
	return nil
}

// drop takes away all in dir that layer did not put there.
func (t *tree) drop(layer int, dir *node) {
	for name, n := range dir.children {
		t.dropOne(layer, dir, name, n)
	}
}

func (t *tree) dropOne(layer int, dir *node, name string, n *node) {
	if n.touched < layer {
		t.nodes -= n.count()
		n.forget()
		delete(dir.children, name)
		return
	}
	if n.children != nil {
		if n.layer < layer { // only what is below it is of this layer
			n.inode, n.given = implied(n.mtime), false
		}
		t.drop(layer, n)
	}
}

func (n *node) count() int {
	sum := 1
	for _, c := range n.children {
		sum += c.count()
	}
	return sum
}

// directory finds the directory at parts, through symlinks inside the root, and makes what is missing. A file in the way is replaced.
func (t *tree) directory(layer int, parts []string, h *tar.Header) (*node, error) {
	return t.resolve(parts, func(dir *node, name string) (*node, error) {
		if err := t.set(layer, dir, name, implied(h.ModTime)); err != nil {
			return nil, err
		}
		n := dir.children[name]
		n.given = false
		return n, nil
	}, func(n *node) { n.touched = layer })
}

// walk is directory without making anything: nil if it is not there.
func (t *tree) walk(parts []string) (*node, error) {
	return t.resolve(parts, func(*node, string) (*node, error) { return nil, nil }, func(*node) {})
}

// resolve walks parts from the root. missing is called for a part that is not there or no directory; nil from it ends the walk.
func (t *tree) resolve(parts []string, missing func(dir *node, name string) (*node, error), visit func(*node)) (*node, error) {
	trail := []*node{t.root}
	todo := parts
	hops := 0
	for len(todo) > 0 {
		name := todo[0]
		todo = todo[1:]
		dir := trail[len(trail)-1]
		visit(dir)
		switch name {
		case "", ".":
			continue
		case "..":
			if len(trail) > 1 {
				trail = trail[:len(trail)-1]
			}
			continue
		}
		n := dir.children[name]
		switch {
		case n != nil && n.typ == tar.TypeDir:
		case n != nil && n.typ == tar.TypeSymlink:
			if hops++; hops > maxHops {
				return nil, invalid("entry %q leads through more than %d symlinks", strings.Join(parts, "/"), maxHops)
			}
			if strings.HasPrefix(n.target, "/") {
				trail = trail[:1]
			}
			todo = append(strings.Split(n.target, "/"), todo...)
			continue
		default:
			made, err := missing(dir, name)
			if made == nil || err != nil {
				return nil, err
			}
			n = made
		}
		trail = append(trail, n)
	}
	last := trail[len(trail)-1]
	visit(last)
	return last, nil
}

// describe reads an entry's attributes.
func describe(layer, entry int, h *tar.Header) (*inode, error) {
	in := &inode{typ: h.Typeflag, mode: h.Mode & 0o7777, uid: h.Uid, gid: h.Gid, mtime: clamp(h.ModTime), layer: layer, entry: entry}
	if h.Uid < 0 || h.Gid < 0 || int64(h.Uid) > 1<<32-2 || int64(h.Gid) > 1<<32-2 {
		return nil, invalid("entry %q has the owner %d:%d, which no file can have", h.Name, h.Uid, h.Gid)
	}
	switch h.Typeflag {
	case tar.TypeReg, tar.TypeCont, tar.TypeGNUSparse:
		in.typ, in.size = tar.TypeReg, h.Size
		if h.Size > maxFile {
			return nil, fault.New(fault.Unsupported, "entry %q is larger than %d bytes", h.Name, int64(maxFile))
		}
	case tar.TypeDir, tar.TypeFifo:
	case tar.TypeSymlink:
		if h.Linkname == "" || len(h.Linkname) > maxPath || strings.IndexByte(h.Linkname, 0) >= 0 {
			return nil, invalid("entry %q is a symlink whose target is empty or longer than %d bytes", h.Name, maxPath)
		}
		in.target, in.mode = h.Linkname, 0o777
	case tar.TypeChar, tar.TypeBlock:
		in.major, in.minor = h.Devmajor, h.Devminor
		if in.major < 0 || in.minor < 0 || in.major > 1<<12-1 || in.minor > 1<<20-1 { // MINORBITS, include/linux/kdev_t.h
			return nil, invalid("entry %q is device %d:%d, which Linux cannot have", h.Name, in.major, in.minor)
		}
	default:
		return nil, invalid("entry %q is of the unknown tar type %q", h.Name, h.Typeflag)
	}
	in.xattrs = xattrs(h.PAXRecords)
	return in, nil
}

// clamp keeps a time inside what tar2ext4 writes right.
func clamp(t time.Time) time.Time {
	switch {
	case t.Unix() < 0:
		return time.Unix(0, 0)
	case t.Unix() > 1<<31-1:
		return time.Unix(1<<31-1, 0)
	}
	return t
}
