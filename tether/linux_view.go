package tether

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path"
	"runtime"
	"slices"
	"strings"

	"golang.org/x/sys/unix"

	"vch/guest"
	"vch/internal/fault"
)

// viewDir is where a view's root is put together, each in a mount namespace of its own.
const viewDir = "/run/vch/view"

// view is a place (guest.Place) as the root directory of the thread that looks at it: no path, link or archive leads out of it.
type view struct {
	start  string            // where Path begins
	absent map[string]string // mount points of volumes that are in another machine, to their Targets
	volume bool              // a volume alone

	at    string   // guest.StatRequest.At
	apart []string // guest.StatRequest.Apart
}

// within runs do with p as the root directory, on a thread that ends with it. What do sees of the container is what Docker's engine shows: its root and what was
// mounted for it, but not what its kernel shows in /proc, /sys and /dev; and, other than there, its tmpfs.
func (l *Linux) within(p guest.Place, do func(*view) error) error { return l.looking(p, true, do) }

// looking is within, and without mounts the root file system alone.
func (l *Linux) looking(p guest.Place, mounts bool, do func(*view) error) error {
	v := &view{start: "/"}
	root := viewDir
	l.plug.RLock()
	vol, ok := l.volumes[p.Source]
	at, there := l.targets[p.Mount]
	shown := l.shown // replaced and appended to, never changed
	l.plug.RUnlock()
	if !mounts {
		shown = nil
	}
	if p.Source != "" {
		if !ok {
			return fault.New(fault.NotFound, "the machine has not mounted the volume %s", p.Source)
		}
		part, file, err := partOf(vol.content, guest.MountSpec{Source: p.Source, Subpath: p.Sub})
		if err != nil {
			return err
		}
		if file {
			return fault.New(fault.Unsupported, "%s of the volume is a file: only a directory of a volume can be a place", p.Sub)
		}
		v.volume, root = true, part
	} else if mounts {
		v.absent = l.absent
	}
	if p.Mount != "" {
		if !there {
			return fault.New(fault.NotFound, "the machine has nothing mounted at %s", p.Mount)
		}
		v.start = at
	}
	return confined(root, func() error {
		if v.volume {
			return nil
		}
		if err := os.MkdirAll(viewDir, 0o755); err != nil {
			return err
		}
		if err := unix.Mount(rootDir, viewDir, "", unix.MS_BIND, ""); err != nil { // without the mounts below it
			return err
		}
		for _, at := range shown {
			// The container may have unmounted or covered it: then that is how it is.
			if err := unix.Mount(rootDir+at, viewDir+at, "", unix.MS_BIND, ""); err != nil && !errors.Is(err, fs.ErrNotExist) && !errors.Is(err, unix.ENOTDIR) {
				return fmt.Errorf("%s: %w", at, err)
			}
		}
		return nil
	}, func() error { return do(v) })
}

// confined runs do on a thread with root as its root directory, in a mount namespace of its own where prepare has mounted. When it returns, nothing of it is left.
func confined(root string, prepare, do func() error) error {
	done := make(chan error, 1)
	go func() {
		runtime.LockOSThread() // and never unlocked: the thread ends with this goroutine
		if unix.Gettid() == unix.Getpid() {
			// The process's first thread must stay what it is: /proc/self is its. While it is held here, the next one is another.
			done <- confined(root, prepare, do)
			runtime.UnlockOSThread()
			return
		}
		done <- func() (err error) {
			home, err := os.Open("/proc/thread-self/ns/mnt")
			if err != nil {
				return err
			}
			defer home.Close()
			if err := unix.Unshare(unix.CLONE_NEWNS); err != nil { // and, with it, CLONE_FS
				return err
			}
			// Back home, this namespace goes with its mounts, now and not some time after the thread.
			defer func() { err = errors.Join(err, unix.Setns(int(home.Fd()), unix.CLONE_NEWNS)) }()
			if err := unix.Mount("", "/", "", unix.MS_REC|unix.MS_PRIVATE, ""); err != nil {
				return err
			}
			if err := prepare(); err != nil {
				return err
			}
			if err := unix.Chroot(root); err != nil {
				return err
			}
			if err := unix.Chdir("/"); err != nil {
				return err
			}
			unix.Umask(0) // this thread's alone: CLONE_FS
			return do()
		}()
	}()
	return <-done
}

// step is where a path leads: at a path of the view, or away from it.
type step struct {
	at        string
	elsewhere string // guest.Located.Elsewhere
	absent    string // guest.Located.Absent
}

func (s step) away() bool { return s.elsewhere != "" || s.absent != "" }

// maxSteps bounds the links on one path: Linux's own bound (path_resolution(7)).
const maxSteps = 40

// walk follows p as the kernel does, but says where it leads away. A link at the end is followed if follow says so, or a slash comes after it. What is not
// there is taken as it stands.
func (v *view) walk(p string, follow bool) (step, error) {
	rest := strings.Split(p, "/")
	at := v.start
	for links := 0; len(rest) > 0; {
		part := rest[0]
		rest = rest[1:]
		switch part {
		case "", ".":
			continue
		case "..":
			if at == "/" && v.at != "" {
				return step{elsewhere: join(path.Dir(v.at), rest)}, nil
			}
			at = path.Dir(at)
		default:
			next := path.Join(at, part)
			fi, err := os.Lstat(next)
			if err != nil && !errors.Is(err, fs.ErrNotExist) {
				return step{}, err
			}
			if err == nil && fi.Mode()&fs.ModeSymlink != 0 && (follow || len(rest) > 0) {
				if links++; links > maxSteps {
					return step{}, &fs.PathError{Op: "lstat", Path: p, Err: unix.ELOOP}
				}
				to, err := os.Readlink(next)
				if err != nil {
					return step{}, err
				}
				if path.IsAbs(to) {
					if v.at != "" {
						return step{elsewhere: join(to, rest)}, nil
					}
					at = "/"
				}
				rest = append(strings.Split(to, "/"), rest...)
				continue
			}
			at = next
		}
		if target, ok := v.absent[at]; ok {
			return step{elsewhere: join("", rest), absent: target}, nil
		}
		if slices.Contains(v.apart, at) {
			return step{elsewhere: join(path.Join(v.at, at), rest)}, nil
		}
	}
	return step{at: at}, nil
}

// join puts the rest of a way behind its beginning, as it stands: what ".." in it means is known only on the way.
func join(at string, rest []string) string {
	if len(rest) == 0 {
		return at
	}
	return strings.TrimSuffix(at, "/") + "/" + strings.Join(rest, "/")
}

// asDirectory says that a path asks for a directory, and how it says so.
func asDirectory(p string) (suffix string, ok bool) {
	switch {
	case p == "." || strings.HasSuffix(p, "/."):
		return "/.", true
	case p == "" || strings.HasSuffix(p, "/"):
		return "/", true
	}
	return "", false
}

// find is walk for a path that has to be there, with its file.
func (v *view) find(p string, follow bool) (step, fs.FileInfo, error) {
	s, err := v.walk(p, follow)
	if err != nil || s.away() {
		return s, nil, err
	}
	fi, err := os.Lstat(s.at)
	if err != nil {
		return s, nil, err
	}
	if _, dir := asDirectory(p); dir && !fi.IsDir() {
		return s, nil, &fs.PathError{Op: "lstat", Path: p, Err: unix.ENOTDIR}
	}
	return s, fi, nil
}

// placeFault gives an error of the file system its kind.
func placeFault(err error) error {
	if f := (*fault.Error)(nil); err == nil || errors.As(err, &f) {
		return err
	}
	switch {
	case errors.Is(err, fs.ErrNotExist):
		return fault.As(fault.NotFound, err)
	case errors.Is(err, unix.ENOTDIR), errors.Is(err, unix.ELOOP), errors.Is(err, unix.ENAMETOOLONG):
		return fault.As(fault.Invalid, err)
	case errors.Is(err, unix.EROFS):
		return fault.As(fault.Denied, err)
	}
	return err
}
