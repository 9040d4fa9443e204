package atomicfile

import (
	"crypto/rand"
	"encoding/hex"
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"sync"
	"syscall"

	"golang.org/x/sys/unix"
)

// stagePrefix begins the names of directories that are being made.
const stagePrefix = ".making-"

// Dir is a directory that is being made, under a name that nobody looks for. Its maker ends with Finish, Rest or Abandon.
type Dir struct {
	path  string
	lock  *os.File   // the directory: what is not locked is a dead maker's, or rests
	files []*os.File // all that is in it, open until it is durable
}

// MakeDir makes the directory path (mode 0700) with the files that fill makes in it: a reader, and a machine that lost power, finds it whole or not at all. fs.ErrExist if
// something is at path; after an error nothing is left. The directory above must be there.
//
// Two waits for the medium are needed, however many files there are: one for the content, under another name, and one for the name. The name may not come before the
// content, and nothing but a wait says on every file system that it does not. The first is one for all files at once, because their syncs begin together: ext4 puts
// what they ask for into one commit of its journal, as it does for callers that run at once.
func MakeDir(path string, fill func(*Dir) error) error {
	if err := vacant(path); err != nil {
		return err
	}
	d, err := NewDir(filepath.Dir(path))
	if err != nil {
		return err
	}
	if err := fill(d); err != nil {
		return errors.Join(err, d.Abandon())
	}
	return d.Finish(path)
}

// vacant is fs.ErrExist if something is at path.
func vacant(path string) error {
	if _, err := os.Lstat(path); err == nil {
		return &fs.PathError{Op: "mkdir", Path: path, Err: fs.ErrExist}
	}
	return nil
}

// NewDir begins a directory that will be in parent.
func NewDir(parent string) (*Dir, error) {
	path, lock, err := newStage(parent)
	if err != nil {
		return nil, err
	}
	return &Dir{path: path, lock: lock}, nil
}

// Finish makes d durable, then gives it the name path, durably: fs.ErrExist if something is there. After an error nothing is left.
func (d *Dir) Finish(path string) (err error) {
	err = vacant(path)
	if err == nil {
		err = d.sync()
	}
	if err == nil {
		err = RenameNew(d.path, path)
	}
	if err != nil {
		return errors.Join(err, d.Abandon())
	}
	if err = SyncDir(filepath.Dir(path)); err != nil {
		err = errors.Join(err, os.RemoveAll(path))
	}
	return errors.Join(err, d.close())
}

// Abandon removes d.
func (d *Dir) Abandon() error { return errors.Join(os.RemoveAll(d.path), d.close()) }

// Rest makes d durable and leaves it, holding nothing open. Resume goes on with it by the path that is returned; to a Sweep it is a dead maker's. After an error nothing is left.
func (d *Dir) Rest() (stage string, err error) {
	if err := d.sync(); err != nil {
		return "", errors.Join(err, d.Abandon())
	}
	return d.path, d.close()
}

// Resume goes on with a directory that rests, which has the files names. fs.ErrNotExist if it is not there any more.
func Resume(stage string, names ...string) (d *Dir, err error) {
	lock, err := lockStage(stage)
	if err != nil {
		return nil, err
	}
	d = &Dir{path: stage, lock: lock}
	for _, name := range names {
		f, err := os.OpenFile(d.Path(name), os.O_RDWR, 0)
		if err != nil {
			return nil, errors.Join(err, d.Abandon())
		}
		d.files = append(d.files, f)
	}
	return d, nil
}

// Files are those that d has, in the order in which they came.
func (d *Dir) Files() []*os.File { return d.files }

func (d *Dir) close() (err error) {
	for _, f := range d.files {
		err = errors.Join(err, f.Close())
	}
	return errors.Join(err, d.lock.Close())
}

// newStage makes a directory to make one in, and locks it.
func newStage(parent string) (path string, lock *os.File, err error) {
	for {
		var suffix [8]byte
		rand.Read(suffix[:]) // never fails (crypto/rand)
		path = filepath.Join(parent, stagePrefix+hex.EncodeToString(suffix[:]))
		if err := os.Mkdir(path, 0o700); err != nil {
			return "", nil, err
		}
		lock, err = lockStage(path)
		if errors.Is(err, fs.ErrNotExist) {
			continue // a Sweep took it for a dead maker's
		}
		if err != nil {
			return "", nil, errors.Join(err, os.Remove(path))
		}
		return path, lock, nil
	}
}

// lockStage opens and locks a directory that is being made: fs.ErrNotExist if it is not there, or a Sweep is taking it.
func lockStage(path string) (*os.File, error) {
	lock, err := os.Open(path)
	if err != nil {
		return nil, err
	}
	err = unix.Flock(int(lock.Fd()), unix.LOCK_EX|unix.LOCK_NB)
	var st unix.Stat_t
	if err == nil {
		err = unix.Lstat(path, &st)
	}
	if errors.Is(err, unix.EWOULDBLOCK) {
		err = unix.ENOENT
	}
	if err != nil {
		return nil, errors.Join(&fs.PathError{Op: "lock", Path: path, Err: err}, lock.Close())
	}
	return lock, nil
}

// Path is where the file called name is while the directory is being made.
func (d *Dir) Path(name string) string { return filepath.Join(d.path, name) }

// Create makes a file in d, to be written by the caller, and neither synced nor closed by it.
func (d *Dir) Create(name string) (*os.File, error) {
	f, err := os.OpenFile(d.Path(name), os.O_RDWR|os.O_CREATE|os.O_EXCL, 0o600)
	if err == nil {
		d.files = append(d.files, f)
	}
	return f, err
}

// Write makes a file in d that holds data.
func (d *Dir) Write(name string, data []byte) error {
	f, err := d.Create(name)
	if err == nil {
		_, err = f.Write(data)
	}
	return err
}

// Rename gives a file of d another name.
func (d *Dir) Rename(from, to string) error {
	if from == to {
		return nil
	}
	return os.Rename(d.Path(from), d.Path(to))
}

// sync makes all files of d, and their names, durable.
func (d *Dir) sync() error {
	for _, f := range d.files { // so that blocks are chosen, and on their way, before the first sync commits
		if err := BeginSync(f); err != nil {
			return err
		}
	}
	errs := make([]error, len(d.files)+1)
	var wg sync.WaitGroup
	for i, f := range d.files {
		wg.Go(func() { errs[i] = f.Sync() })
	}
	errs[len(d.files)] = d.lock.Sync()
	wg.Wait()
	return errors.Join(errs...)
}

// BeginSync has the medium begin with what was written to f, and does not wait for it: f's blocks are chosen when it returns, and its Sync is nearer.
func BeginSync(f *os.File) error {
	err := unix.SyncFileRange(int(f.Fd()), 0, 0, unix.SYNC_FILE_RANGE_WRITE)
	if err != nil && !errors.Is(err, syscall.ENOSYS) && !errors.Is(err, syscall.EINVAL) { // some file systems cannot
		return &fs.PathError{Op: "sync_file_range", Path: f.Name(), Err: err}
	}
	return nil
}

// RenameNew is os.Rename to a path that must not exist: fs.ErrExist if it does.
func RenameNew(from, to string) error {
	err := unix.Renameat2(unix.AT_FDCWD, from, unix.AT_FDCWD, to, unix.RENAME_NOREPLACE)
	if errors.Is(err, syscall.EINVAL) { // a file system without RENAME_NOREPLACE, as NFS
		if _, lerr := os.Lstat(to); lerr == nil {
			err = fs.ErrExist
		} else {
			return os.Rename(from, to)
		}
	}
	if err != nil {
		return &os.LinkError{Op: "rename", Old: from, New: to, Err: err}
	}
	return nil
}

// Sweep removes from parent what makers that died left of directories that they were making.
func Sweep(parent string) error {
	stages, err := filepath.Glob(filepath.Join(parent, stagePrefix+"*"))
	if err != nil {
		return err
	}
	var errs []error
	for _, stage := range stages {
		f, err := os.Open(stage)
		if err != nil {
			continue // it has its name by now
		}
		if unix.Flock(int(f.Fd()), unix.LOCK_EX|unix.LOCK_NB) == nil {
			errs = append(errs, os.RemoveAll(stage))
		}
		errs = append(errs, f.Close())
	}
	return errors.Join(errs...)
}

// Unfinished reports whether name is that of a directory that is being made.
func Unfinished(name string) bool {
	return len(name) > len(stagePrefix) && name[:len(stagePrefix)] == stagePrefix
}
