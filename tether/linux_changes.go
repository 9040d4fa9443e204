package tether

import (
	"archive/tar"
	"errors"
	"io/fs"
	"maps"
	"os"
	"path"
	"path/filepath"
	"slices"
	"strings"

	"golang.org/x/sys/unix"

	"vch/guest"
	"vch/internal/fault"
)

// Changes is Files.Changes. The overlay's upper directory holds what differs, in the kernel's own terms (overlayfs.rst).
func (l *Linux) Changes() ([]guest.Change, error) {
	upper := filepath.Join(ownDir, "upper")
	if _, err := os.Lstat(upper); err != nil {
		return nil, fault.New(fault.Unsupported, "the machine has no root disk of its own to tell changes of")
	}
	l.plug.RLock()
	made := slices.Clone(l.made)
	l.plug.RUnlock()
	d := differ{upper: upper, lower: imageDir, made: map[string]bool{}, touched: map[string]bool{}}
	for _, p := range append(made, "/proc", "/sys", "/dev", "/lost+found") {
		d.made[p], d.touched[path.Dir(p)] = true, true
	}
	if err := d.directory("/", true, false); err != nil {
		return nil, err
	}
	return d.changes, nil
}

// differ compares the upper directory of an overlay with the lower one.
type differ struct {
	upper, lower string
	made         map[string]bool // what is mounted over by the tether, which made it where the image has nothing
	touched      map[string]bool // directories of those: their times may be the tether's doing
	changes      []guest.Change
}

func (d *differ) tell(p string, kind guest.ChangeKind) {
	d.changes = append(d.changes, guest.Change{Path: guest.Path(p), Kind: kind})
}

// directory tells the changes below p, a directory of upper. merged: the lower one shows through it. hidden: there is a lower one, and it does not.
func (d *differ) directory(p string, merged, hidden bool) error {
	entries, err := os.ReadDir(d.upper + p)
	if err != nil {
		return err
	}
	below := map[string]fs.DirEntry{}
	for _, e := range entries {
		below[e.Name()] = e
	}
	names := slices.Collect(maps.Keys(below))
	if hidden {
		lower, err := os.ReadDir(d.lower + p)
		if err != nil {
			return err
		}
		for _, e := range lower {
			if below[e.Name()] == nil {
				names = append(names, e.Name())
			}
		}
	}
	slices.Sort(names)
	for _, name := range names {
		at := path.Join(p, name)
		if below[name] == nil {
			d.tell(at, guest.Deleted)
			continue
		}
		if err := d.file(at, merged, hidden); err != nil {
			return err
		}
	}
	return nil
}

// file tells the changes of p, which upper has, and of what is below it.
func (d *differ) file(p string, merged, hidden bool) error {
	var up, low unix.Stat_t
	if err := unix.Lstat(d.upper+p, &up); errors.Is(err, unix.ENOENT) {
		return nil // it has gone meanwhile
	} else if err != nil {
		return &fs.PathError{Op: "lstat", Path: p, Err: err}
	}
	had := false
	if merged || hidden {
		err := unix.Lstat(d.lower+p, &low)
		if had = err == nil; err != nil && !errors.Is(err, unix.ENOENT) && !errors.Is(err, unix.ENOTDIR) {
			return &fs.PathError{Op: "lstat", Path: p, Err: err}
		}
	}
	dir := up.Mode&unix.S_IFMT == unix.S_IFDIR
	switch {
	case up.Mode&unix.S_IFMT == unix.S_IFCHR && up.Rdev == 0: // a whiteout
		if had && !d.made[p] {
			d.tell(p, guest.Deleted)
		}
		return nil
	case !had && d.made[p] && (dir || up.Size == 0):
		return nil
	case !dir && had:
		d.tell(p, guest.Modified)
		return nil
	case !dir || !had:
		d.tell(p, guest.Added)
		if dir {
			return d.directory(p, false, false)
		}
		return nil
	}
	lowerDir := low.Mode&unix.S_IFMT == unix.S_IFDIR
	opaque, err := isOpaque(d.upper + p)
	if err != nil {
		return err
	}
	differs := !lowerDir
	if lowerDir {
		if differs, err = d.attributesDiffer(p, up, low); err != nil {
			return err
		}
	}
	before := len(d.changes)
	d.tell(p, guest.Modified)
	if err := d.directory(p, merged && lowerDir && !opaque, lowerDir && (hidden || opaque)); err != nil {
		return err
	}
	if !differs && len(d.changes) == before+1 {
		d.changes = d.changes[:before] // it is there for what was undone in it
	}
	return nil
}

// attributesDiffer compares two directories, but not what is in them.
func (d *differ) attributesDiffer(p string, up, low unix.Stat_t) (bool, error) {
	if up.Mode != low.Mode || up.Uid != low.Uid || up.Gid != low.Gid || up.Mtim != low.Mtim && !d.touched[p] {
		return true, nil
	}
	ours, err := xattrsOf(d.upper + p)
	if err != nil {
		return false, err
	}
	theirs, err := xattrsOf(d.lower + p)
	return !maps.Equal(ours, theirs), err
}

// isOpaque says that a directory of upper hides the lower one.
func isOpaque(at string) (bool, error) {
	var value [8]byte
	n, err := unix.Lgetxattr(at, "trusted.overlay.opaque", value[:])
	if errors.Is(err, unix.ENODATA) || errors.Is(err, unix.ENOTSUP) {
		return false, nil
	}
	return n == 1 && value[0] == 'y', err
}

// whiteoutPrefix begins the name of a whiteout in a layer (OCI image-spec layer.md).
const whiteoutPrefix = ".wh."

// layer writes what has changed, with what is there now.
func (a *archiver) layer(changes []guest.Change) error {
	for _, c := range changes {
		name := strings.TrimPrefix(string(c.Path), "/")
		if c.Kind == guest.Deleted {
			h := &tar.Header{Typeflag: tar.TypeReg, Name: path.Join(path.Dir(name), whiteoutPrefix+path.Base(name)), Mode: 0o644, Format: tar.FormatPAX}
			if err := a.tw.WriteHeader(h); err != nil {
				return err
			}
			continue
		}
		if err := a.entry(string(c.Path), name); err != nil && !errors.Is(err, fs.ErrNotExist) { // it may have gone meanwhile
			return err
		}
	}
	return nil
}
