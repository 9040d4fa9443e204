package tether

import (
	"bytes"
	"errors"
	"io"
	"io/fs"
	"os"
	"path/filepath"

	"golang.org/x/sys/unix"
)

// copySuffix names the unfinished copy beside a volume's content directory.
const copySuffix = ".copying"

// copyUp fills an empty content directory with the directory from: what it holds with owner, mode, times, xattrs, links; the content directory itself takes
// from's owner and mode also when from is empty. A content that holds anything or is a file, and a from that is no directory, change nothing.
//
// The copy is made at part, which lies in the same file system and outside of what a user sees, and exchanged with the content when it is whole and on disk,
// so that a copy that was cut off is not taken for done.
func copyUp(from, content, part string) error {
	fi, err := os.Lstat(from)
	if err != nil || !fi.IsDir() {
		return nil
	}
	if fi, err := os.Stat(content); err != nil || !fi.IsDir() {
		return err
	}
	have, err := os.ReadDir(content)
	if err != nil || len(have) > 0 {
		return err
	}
	if err := os.RemoveAll(part); err != nil {
		return err
	}
	if entries, err := os.ReadDir(from); err != nil || len(entries) == 0 {
		if err != nil {
			return err
		}
		return likeEmpty(from, content)
	}
	if err := copyTree(from, part); err != nil {
		return err
	}
	f, err := os.Open(part)
	if err != nil {
		return err
	}
	err = unix.Syncfs(int(f.Fd()))
	if cerr := f.Close(); err == nil {
		err = cerr
	}
	if err != nil {
		return err
	}
	if err := unix.Renameat2(unix.AT_FDCWD, part, unix.AT_FDCWD, content, unix.RENAME_EXCHANGE); err != nil {
		return &os.LinkError{Op: "exchange", Old: part, New: content, Err: err}
	}
	return os.Remove(part) // empty, as was seen above
}

// likeEmpty gives an empty content directory the owner, mode and xattrs of an empty directory. One that has them stays untouched, as most do.
func likeEmpty(from, content string) error {
	var have, want unix.Stat_t
	if err := unix.Lstat(from, &want); err != nil {
		return &fs.PathError{Op: "lstat", Path: from, Err: err}
	}
	if err := unix.Lstat(content, &have); err != nil {
		return &fs.PathError{Op: "lstat", Path: content, Err: err}
	}
	if size, err := unix.Llistxattr(from, nil); have.Uid == want.Uid && have.Gid == want.Gid && have.Mode == want.Mode && (err != nil || size == 0) {
		return nil
	}
	return copyAttributes(from, content)
}

type inode struct{ dev, ino uint64 }

// copier copies a tree, keeping hard links within it. It goes by descriptors, and follows no link: others may have the place where it copies to, and put some there.
type copier struct {
	root  *os.Root         // what is copied to
	links map[inode]string // where the first of several links is, below root
}

// copyTree makes to, which is not there, a copy of a directory.
func copyTree(from, to string) error {
	if err := os.Mkdir(to, 0o700); err != nil {
		return err
	}
	dir, err := openDirectory(to)
	if err != nil {
		return err
	}
	defer dir.Close()
	root, err := os.OpenRoot(inside(dir))
	if err != nil {
		return err
	}
	defer root.Close()
	return (&copier{root: root, links: map[inode]string{}}).fill(from, dir, "")
}

// openDirectory opens a directory that is one itself.
func openDirectory(name string) (*os.File, error) {
	return os.OpenFile(name, os.O_RDONLY|unix.O_DIRECTORY|unix.O_NOFOLLOW, 0)
}

// inside is a path of an open directory itself, wherever it is by now.
func inside(dir *os.File) string { return byDescriptor(int(dir.Fd())) + "/." }

// fill copies what is in the directory from into the empty one that is at, and is called below in root.
func (c *copier) fill(from string, at *os.File, below string) error {
	entries, err := os.ReadDir(from)
	if err != nil {
		return err
	}
	for _, e := range entries {
		if err := c.entry(filepath.Join(from, e.Name()), at, filepath.Join(below, e.Name())); err != nil {
			return err
		}
	}
	return copyAttributes(from, inside(at)) // last: what was put into it changed its times
}

func (c *copier) entry(from string, dir *os.File, below string) error {
	to := inside(dir) + "/" + filepath.Base(below)
	var st unix.Stat_t
	if err := unix.Lstat(from, &st); err != nil {
		return &fs.PathError{Op: "lstat", Path: from, Err: err}
	}
	kind := st.Mode & unix.S_IFMT
	if kind == unix.S_IFDIR {
		if err := os.Mkdir(to, 0o700); err != nil {
			return err
		}
		sub, err := openDirectory(to)
		if err != nil {
			return err
		}
		defer sub.Close()
		return c.fill(from, sub, below)
	}
	if st.Nlink > 1 {
		id := inode{st.Dev, st.Ino}
		if first, ok := c.links[id]; ok {
			return c.root.Link(first, below)
		}
		c.links[id] = below
	}
	var err error
	switch kind {
	case unix.S_IFREG:
		err = copyFile(from, to)
	case unix.S_IFLNK:
		var target string
		if target, err = os.Readlink(from); err == nil {
			err = os.Symlink(target, to)
		}
	case unix.S_IFIFO, unix.S_IFCHR, unix.S_IFBLK, unix.S_IFSOCK:
		if err = unix.Mknod(to, st.Mode, int(st.Rdev)); err != nil {
			err = &fs.PathError{Op: "mknod", Path: to, Err: err}
		}
	}
	if err != nil {
		return err
	}
	return copyAttributes(from, to)
}

func copyFile(from, to string) error {
	in, err := os.Open(from)
	if err != nil {
		return err
	}
	defer in.Close()
	out, err := os.OpenFile(to, os.O_CREATE|os.O_EXCL|os.O_WRONLY, 0o600)
	if err != nil {
		return err
	}
	if _, err := io.Copy(out, in); err != nil {
		return errors.Join(err, out.Close())
	}
	return out.Close()
}

// copyAttributes gives to the owner, mode, xattrs and times of from, in the order in which none undoes another.
func copyAttributes(from, to string) error {
	var st unix.Stat_t
	if err := unix.Lstat(from, &st); err != nil {
		return &fs.PathError{Op: "lstat", Path: from, Err: err}
	}
	if err := unix.Lchown(to, int(st.Uid), int(st.Gid)); err != nil {
		return &fs.PathError{Op: "chown", Path: to, Err: err}
	}
	if err := copyXattrs(from, to); err != nil {
		return err
	}
	if st.Mode&unix.S_IFMT != unix.S_IFLNK {
		if err := chmod(to, st.Mode); err != nil {
			return &fs.PathError{Op: "chmod", Path: to, Err: err}
		}
	}
	times := []unix.Timespec{st.Atim, st.Mtim}
	if err := unix.UtimesNanoAt(unix.AT_FDCWD, to, times, unix.AT_SYMLINK_NOFOLLOW); err != nil {
		return &fs.PathError{Op: "utimes", Path: to, Err: err}
	}
	return nil
}

// chmod gives what is at a path mode's permissions, if it is of mode's kind: it follows no link that is there by now (chmod(2) would).
func chmod(at string, mode uint32) error {
	fd, err := unix.Open(at, unix.O_PATH|unix.O_NOFOLLOW|unix.O_CLOEXEC, 0)
	if err != nil {
		return err
	}
	defer unix.Close(fd)
	var have unix.Stat_t
	if err := unix.Fstat(fd, &have); err != nil {
		return err
	}
	if have.Mode&unix.S_IFMT != mode&unix.S_IFMT {
		return unix.ESTALE
	}
	return unix.Chmod(byDescriptor(fd), mode&0o7777)
}

func copyXattrs(from, to string) error {
	size, err := unix.Llistxattr(from, nil)
	if err != nil || size == 0 {
		return ignoreNotsup(err)
	}
	names := make([]byte, size)
	if size, err = unix.Llistxattr(from, names); err != nil {
		return ignoreNotsup(err)
	}
	for _, name := range bytes.Split(names[:size], []byte{0}) {
		if len(name) == 0 || bytes.HasPrefix(name, []byte("trusted.overlay.")) {
			continue
		}
		size, err := unix.Lgetxattr(from, string(name), nil)
		if err != nil {
			return ignoreNotsup(err)
		}
		value := make([]byte, size)
		if size, err = unix.Lgetxattr(from, string(name), value); err != nil {
			return err
		}
		if err := ignoreNotsup(unix.Lsetxattr(to, string(name), value[:size], 0)); err != nil {
			return &fs.PathError{Op: "setxattr " + string(name), Path: to, Err: err}
		}
	}
	return nil
}

func ignoreNotsup(err error) error {
	if errors.Is(err, unix.ENOTSUP) || errors.Is(err, unix.ENODATA) {
		return nil
	}
	return err
}
