package tether

import (
	"archive/tar"
	"bytes"
	"errors"
	"io"
	"io/fs"
	"os"
	"path"
	"slices"
	"strings"
	"time"

	"github.com/moby/sys/user"
	"golang.org/x/sys/unix"

	"vch/guest"
	"vch/internal/fault"
)

// xattrRecord is where a tar keeps an extended attribute: a PAX record of this prefix and its name, as GNU tar, Go and Docker have it.
const xattrRecord = "SCHILY.xattr."

// Stat is Files.Stat.
func (l *Linux) Stat(r guest.StatRequest) (found guest.Located, err error) {
	err = l.within(r.Place, func(v *view) error {
		v.at, v.apart = r.At, r.Apart
		found, err = v.stat(r)
		return err
	})
	return found, placeFault(err)
}

func (v *view) stat(r guest.StatRequest) (found guest.Located, err error) {
	s, fi, err := v.find(string(r.Path), r.Follow)
	if s.away() {
		return guest.Located{Elsewhere: guest.Path(s.elsewhere), Absent: s.absent}, nil
	}
	if err != nil {
		return found, err
	}
	suffix, _ := asDirectory(string(r.Path))
	found.Path = guest.Path(s.at)
	if suffix != "" {
		found.Path = guest.Path(strings.TrimSuffix(s.at, "/") + suffix)
	}
	found.Stat = guest.PathStat{Name: guest.Path(path.Base(path.Join("/", string(r.Path)))), Size: fi.Size(), Mode: fi.Mode(), Mtime: fi.ModTime()}
	if fi.Mode()&fs.ModeSymlink != 0 {
		to, err := v.walk(s.at, true)
		if err != nil {
			return found, err
		}
		switch {
		case to.absent != "":
			found.Stat.LinkTarget = guest.Path(path.Join(to.absent, to.elsewhere))
		case to.elsewhere != "":
			found.Stat.LinkTarget = guest.Path(path.Clean(to.elsewhere))
		default:
			found.Stat.LinkTarget = guest.Path(path.Join("/", v.at, to.at))
		}
	}
	var on unix.Statfs_t
	if err := unix.Statfs(s.at, &on); err != nil && fi.Mode()&fs.ModeSymlink == 0 { // a link that leads nowhere is on no file system
		return found, &fs.PathError{Op: "statfs", Path: s.at, Err: err}
	}
	found.ReadOnly = on.Flags&unix.ST_RDONLY != 0
	if found.Mounted = v.volume; !v.volume {
		mine, err := mountOf(s.at)
		if err != nil {
			return found, err
		}
		roots, err := mountOf("/")
		if err != nil {
			return found, err
		}
		found.Mounted = mine != roots
	}
	if r.User != "" {
		u, err := user.GetExecUserPath(r.User, &user.ExecUser{}, "/etc/passwd", "/etc/group")
		if err != nil {
			return found, fault.New(fault.Invalid, "%w", err)
		}
		found.UID, found.GID = u.Uid, u.Gid
	}
	return found, nil
}

// mountOf tells the mount that a file is on (statx(2) stx_mnt_id, Linux 5.8).
func mountOf(at string) (uint64, error) {
	var st unix.Statx_t
	if err := unix.Statx(unix.AT_FDCWD, at, unix.AT_SYMLINK_NOFOLLOW, unix.STATX_MNT_ID, &st); err != nil {
		return 0, &fs.PathError{Op: "statx", Path: at, Err: err}
	}
	return st.Mnt_id, nil
}

// Archive is Files.Archive.
func (l *Linux) Archive(r guest.ArchiveRequest, out io.Writer) (skipped []guest.Skipped, err error) {
	if r.Still {
		release, err := l.hold()
		if err != nil {
			return nil, err
		}
		defer release()
	}
	if r.Extent != guest.WithMounts {
		return nil, placeFault(l.archiveRoot(r, out))
	}
	err = l.within(r.Place, func(v *view) error {
		at, fi, err := v.literal(string(r.Path))
		if err != nil {
			return err
		}
		a := archiver{view: v, tw: tar.NewWriter(out), skip: r.Skip, links: map[inode]string{}}
		if err := a.tree(at, string(r.Name), fi); err != nil {
			return err
		}
		skipped = a.skipped
		if r.Open {
			return a.tw.Flush()
		}
		return a.tw.Close()
	})
	return skipped, placeFault(err)
}

// archiveRoot is Archive of the root file system alone.
func (l *Linux) archiveRoot(r guest.ArchiveRequest, out io.Writer) error {
	var changes []guest.Change
	if r.Extent == guest.ChangesOf {
		var err error
		if changes, err = l.Changes(); err != nil {
			return err
		}
	}
	return l.looking(r.Place, false, func(v *view) error {
		a := archiver{view: v, tw: tar.NewWriter(out), links: map[inode]string{}}
		if r.Extent == guest.ChangesOf {
			if err := a.layer(changes); err != nil {
				return err
			}
		} else if err := a.below("/", ""); err != nil {
			return err
		}
		if r.Open {
			return a.tw.Flush()
		}
		return a.tw.Close()
	})
}

// literal is a path that was found already, with its file: links on the way are the kernel's to follow, and what is absent may lie on it.
func (v *view) literal(p string) (at string, fi fs.FileInfo, err error) {
	at = path.Join(v.start, p)
	asked := at
	if suffix, ok := asDirectory(p); ok {
		asked += suffix
	}
	fi, err = os.Lstat(asked)
	return at, fi, err
}

// archiver writes one tar.
type archiver struct {
	view    *view
	tw      *tar.Writer
	skip    []string
	links   map[inode]string // where a file with several names was written
	skipped []guest.Skipped
}

// tree writes the file at, called name, and what is below it. What has gone since it was listed is left out.
func (a *archiver) tree(at, name string, fi fs.FileInfo) error {
	if err := a.entry(at, name); err != nil {
		if errors.Is(err, fs.ErrNotExist) {
			return nil
		}
		return err
	}
	if !fi.IsDir() {
		return nil
	}
	return a.below(at, name+"/")
}

// below writes what is in the directory at, with names that begin so.
func (a *archiver) below(at, prefix string) error {
	entries, err := os.ReadDir(at)
	if err != nil {
		if errors.Is(err, fs.ErrNotExist) {
			return nil
		}
		return err
	}
	for _, e := range entries {
		below := path.Join(at, e.Name())
		if slices.Contains(a.skip, below) {
			continue
		}
		if target, ok := a.view.absent[below]; ok {
			a.skipped = append(a.skipped, guest.Skipped{Target: target, Name: guest.Path(prefix + e.Name())})
			continue
		}
		fi, err := os.Lstat(below)
		if errors.Is(err, fs.ErrNotExist) {
			continue
		}
		if err != nil {
			return err
		}
		if err := a.tree(below, prefix+e.Name(), fi); err != nil {
			return err
		}
	}
	return nil
}

// entry writes one file.
func (a *archiver) entry(at, name string) error {
	var st unix.Stat_t
	if err := unix.Lstat(at, &st); err != nil {
		return &fs.PathError{Op: "lstat", Path: at, Err: err}
	}
	h := &tar.Header{Name: name, Format: tar.FormatPAX}
	var content *os.File
	switch kind := st.Mode & unix.S_IFMT; {
	case kind == unix.S_IFDIR:
		h.Typeflag, h.Name = tar.TypeDir, name+"/"
	case kind == unix.S_IFSOCK:
		return nil
	case st.Nlink > 1 && a.links[inode{st.Dev, st.Ino}] != "":
		h.Typeflag, h.Linkname = tar.TypeLink, a.links[inode{st.Dev, st.Ino}]
	case kind == unix.S_IFREG:
		// Neither a link nor a pipe that has taken its place meanwhile.
		f, err := os.OpenFile(at, os.O_RDONLY|unix.O_NOFOLLOW|unix.O_NONBLOCK, 0)
		if errors.Is(err, unix.ELOOP) {
			err = fs.ErrNotExist
		}
		if err != nil {
			return err
		}
		defer f.Close()
		if err := unix.Fstat(int(f.Fd()), &st); err != nil {
			return &fs.PathError{Op: "stat", Path: at, Err: err}
		}
		if st.Mode&unix.S_IFMT != unix.S_IFREG {
			return nil
		}
		content = f
		h.Typeflag, h.Size = tar.TypeReg, st.Size
	case kind == unix.S_IFLNK:
		to, err := os.Readlink(at)
		if err != nil {
			return err
		}
		h.Typeflag, h.Linkname = tar.TypeSymlink, to
	case kind == unix.S_IFIFO:
		h.Typeflag = tar.TypeFifo
	case kind == unix.S_IFCHR:
		h.Typeflag, h.Devmajor, h.Devminor = tar.TypeChar, int64(unix.Major(st.Rdev)), int64(unix.Minor(st.Rdev))
	case kind == unix.S_IFBLK:
		h.Typeflag, h.Devmajor, h.Devminor = tar.TypeBlock, int64(unix.Major(st.Rdev)), int64(unix.Minor(st.Rdev))
	}
	h.Mode, h.Uid, h.Gid = int64(st.Mode&0o7777), int(st.Uid), int(st.Gid)
	h.ModTime = time.Unix(st.Mtim.Unix())
	if h.Typeflag != tar.TypeLink {
		var err error
		if h.PAXRecords, err = xattrsOf(at); err != nil {
			return err
		}
		if st.Nlink > 1 && h.Typeflag != tar.TypeDir {
			a.links[inode{st.Dev, st.Ino}] = name
		}
	}
	if err := a.tw.WriteHeader(h); err != nil {
		return err
	}
	if content == nil {
		return nil
	}
	n, err := io.Copy(a.tw, io.LimitReader(content, h.Size))
	if err == nil && n < h.Size {
		_, err = io.CopyN(a.tw, zeros{}, h.Size-n)
	}
	return err
}

// zeros never ends.
type zeros struct{}

func (zeros) Read(p []byte) (int, error) {
	clear(p)
	return len(p), nil
}

// xattrsOf gives a file's extended attributes as records of a tar; nil for none. Those of the overlay itself are not the file's.
func xattrsOf(at string) (map[string]string, error) {
	size, err := unix.Llistxattr(at, nil)
	if err != nil || size == 0 {
		return nil, ignoreNotsup(err)
	}
	names := make([]byte, size)
	if size, err = unix.Llistxattr(at, names); err != nil {
		return nil, ignoreNotsup(err)
	}
	records := map[string]string{}
	for _, raw := range bytes.Split(names[:size], []byte{0}) {
		name := string(raw)
		if name == "" || strings.HasPrefix(name, "trusted.overlay.") || strings.Contains(name, "=") { // POSIX pax: a keyword has no "="
			continue
		}
		size, err := unix.Lgetxattr(at, name, nil)
		if err == nil {
			value := make([]byte, size)
			if size, err = unix.Lgetxattr(at, name, value); err == nil {
				records[xattrRecord+name] = string(value[:size])
			}
		}
		if ignoreNotsup(err) != nil {
			return nil, &fs.PathError{Op: "getxattr " + name, Path: at, Err: err}
		}
	}
	return records, nil
}

// Extract is Files.Extract.
func (l *Linux) Extract(r guest.ExtractRequest, in io.Reader) error {
	return placeFault(l.within(r.Place, func(v *view) error {
		at, fi, err := v.literal(string(r.Path))
		if err != nil {
			return err
		}
		if !fi.IsDir() {
			return fault.New(fault.Invalid, "extraction point is not a directory")
		}
		x := extractor{ExtractRequest: r, dest: at}
		err = x.all(tar.NewReader(in))
		if errors.Is(err, unix.EROFS) {
			err = l.blame(v, x.now, err)
		}
		if err != nil {
			return err
		}
		dest, err := os.Open(at)
		if err != nil {
			return err
		}
		defer dest.Close()
		if err := unix.Syncfs(int(dest.Fd())); err != nil {
			return err
		}
		unix.Sync() // and what else is mounted below
		return nil
	}))
}

// blame says of a path that cannot be written whether its volume is in another machine, and where.
func (l *Linux) blame(v *view, at string, err error) error {
	s, werr := v.walk(at, false)
	if werr != nil || s.absent == "" {
		return err
	}
	for _, m := range l.mounts {
		if m.Target == s.absent {
			return fault.New(fault.InUse, "%s lies in %s, and %s; copy into %s itself, which goes through it, or stop it first", at, mountName(m), m.Absent, m.Target)
		}
	}
	return err
}

// extractor extracts one tar below dest. Its rules are those of Docker's engine (moby/go-archive, Unpack and createTarFile).
type extractor struct {
	guest.ExtractRequest
	dest string
	now  string // the path that is being made
	dirs []*tar.Header
}

func (x *extractor) all(tr *tar.Reader) error {
	for {
		h, err := tr.Next()
		if err == io.EOF {
			break
		}
		if err != nil {
			return archiveFault(err)
		}
		if h.Typeflag == tar.TypeXGlobalHeader {
			continue
		}
		h.Name = path.Clean(h.Name)
		if err := x.entry(h, tr); err != nil {
			return err
		}
	}
	for _, h := range x.dirs { // what was put into them changed their times
		if err := setTimes(x.at(h.Name), h); err != nil {
			return err
		}
	}
	return nil
}

// archiveFault is the error of a tar that cannot be read.
func archiveFault(err error) error {
	if f := (*fault.Error)(nil); errors.As(err, &f) {
		return err
	}
	return fault.New(fault.Invalid, "the archive cannot be read: %w", err)
}

func (x *extractor) at(name string) string { return path.Join(x.dest, name) }

// inside says whether a path is dest or below it.
func (x *extractor) inside(p string) bool {
	return x.dest == "/" || p == x.dest || strings.HasPrefix(p, x.dest+"/")
}

func (x *extractor) entry(h *tar.Header, content io.Reader) error {
	at := x.at(h.Name)
	x.now = at
	if h.Name == ".." || strings.HasPrefix(h.Name, "../") || strings.HasPrefix(h.Name, "/..") || !x.inside(at) {
		return fault.New(fault.Invalid, "%q is outside of %q", h.Name, x.dest)
	}
	for _, other := range x.Apart {
		if strings.HasPrefix(at+"/", other+"/") {
			return fault.New(fault.InUse, "%s lies in another volume, which is mounted below this one: copy into it by itself", at)
		}
	}
	if err := os.MkdirAll(path.Dir(at), 0o755); err != nil {
		return err
	}
	dir := h.Typeflag == tar.TypeDir
	fi, err := os.Lstat(at)
	switch {
	case errors.Is(err, fs.ErrNotExist):
	case err != nil:
		return err
	case x.NoOverwrite && fi.IsDir() && !dir:
		return fault.New(fault.Conflict, "cannot overwrite directory %q with non-directory %q", at, x.dest)
	case x.NoOverwrite && !fi.IsDir() && dir:
		return fault.New(fault.Conflict, "cannot overwrite non-directory %q with directory %q", at, x.dest)
	case fi.IsDir() && h.Name == "." && !x.Whole:
		return nil
	case fi.IsDir() && dir:
	case at == x.dest:
		return fault.New(fault.Invalid, "%q cannot replace the directory that is extracted into", h.Name)
	default:
		if err := os.RemoveAll(at); err != nil {
			return err
		}
	}
	if err := x.make(at, h, content); err != nil || h.Typeflag == tar.TypeLink {
		return err
	}
	return x.attributes(at, h)
}

// make makes the file of an entry; a directory may be there.
func (x *extractor) make(at string, h *tar.Header, content io.Reader) error {
	mode := uint32(h.Mode & 0o7777)
	switch h.Typeflag {
	case tar.TypeDir:
		if err := os.Mkdir(at, 0o700); err != nil && !errors.Is(err, fs.ErrExist) {
			return err
		}
		x.dirs = append(x.dirs, h)
		return nil
	case tar.TypeReg, tar.TypeGNUSparse:
		f, err := os.OpenFile(at, os.O_CREATE|os.O_EXCL|os.O_WRONLY, 0o600)
		if err != nil {
			return err
		}
		_, err = io.Copy(f, readOnlyArchive{content})
		return errors.Join(err, f.Close())
	case tar.TypeChar, tar.TypeBlock, tar.TypeFifo:
		kind := map[byte]uint32{tar.TypeChar: unix.S_IFCHR, tar.TypeBlock: unix.S_IFBLK, tar.TypeFifo: unix.S_IFIFO}[h.Typeflag]
		if err := unix.Mknod(at, kind|mode, int(unix.Mkdev(uint32(h.Devmajor), uint32(h.Devminor)))); err != nil {
			return &fs.PathError{Op: "mknod", Path: at, Err: err}
		}
		return nil
	case tar.TypeLink:
		to := x.at(h.Linkname)
		if !x.inside(to) {
			return fault.New(fault.Invalid, "invalid hardlink %q -> %q", to, h.Linkname)
		}
		return os.Link(to, at)
	case tar.TypeSymlink:
		// A path, not where links lead: what leads out of the view does not lead anywhere.
		if to := path.Join(path.Dir(at), h.Linkname); !x.Whole && !x.inside(to) {
			return fault.New(fault.Invalid, "invalid symlink %q -> %q", at, h.Linkname)
		}
		return os.Symlink(h.Linkname, at)
	}
	return fault.New(fault.Invalid, "unhandled tar header type %d of %q", h.Typeflag, h.Name)
}

// readOnlyArchive tells the errors of an archive from those of the file that it is written to, and keeps io.Copy to plain reads and writes.
type readOnlyArchive struct{ in io.Reader }

func (r readOnlyArchive) Read(p []byte) (int, error) {
	n, err := r.in.Read(p)
	if err != nil && err != io.EOF {
		err = archiveFault(err)
	}
	return n, err
}

// attributes gives a file its owner, extended attributes, mode and times, in the order in which none undoes another.
func (x *extractor) attributes(at string, h *tar.Header) error {
	uid, gid := h.Uid, h.Gid
	if x.Owner != nil {
		uid, gid = x.Owner.UID, x.Owner.GID
	}
	if err := os.Lchown(at, uid, gid); err != nil {
		return err
	}
	for key, value := range h.PAXRecords {
		name, ok := strings.CutPrefix(key, xattrRecord)
		if !ok {
			continue
		}
		if err := unix.Lsetxattr(at, name, []byte(value), 0); err != nil && !errors.Is(err, unix.ENOTSUP) && !errors.Is(err, unix.EPERM) {
			return &fs.PathError{Op: "setxattr " + name, Path: at, Err: err}
		}
	}
	if h.Typeflag != tar.TypeSymlink {
		if err := unix.Chmod(at, uint32(h.Mode&0o7777)); err != nil {
			return &fs.PathError{Op: "chmod", Path: at, Err: err}
		}
	}
	return setTimes(at, h)
}

// setTimes sets both times of a file. An archive that says nothing of the access means the change.
func setTimes(at string, h *tar.Header) error {
	accessed := h.AccessTime
	if accessed.IsZero() {
		accessed = h.ModTime
	}
	times := make([]unix.Timespec, 2)
	for i, t := range []time.Time{accessed, h.ModTime} {
		ts, err := unix.TimeToTimespec(t)
		if err != nil {
			return fault.New(fault.Invalid, "the time of %q cannot be kept: %w", h.Name, err)
		}
		times[i] = ts
	}
	if err := unix.UtimesNanoAt(unix.AT_FDCWD, at, times, unix.AT_SYMLINK_NOFOLLOW); err != nil {
		return &fs.PathError{Op: "utimes", Path: at, Err: err}
	}
	return nil
}
