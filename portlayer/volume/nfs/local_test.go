package nfs

import (
	"context"
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"sync"
	"syscall"

	"vch/internal/nfsclient"
	"vch/portlayer/volume/volumetest"
)

// local is an Export that is a directory of this machine, whose calls can be made to fail, and whose server can be made to go away.
type local struct {
	dir    string
	squash string // "", "root" or "all" of who makes something
	volumetest.Faults

	mu     sync.Mutex // guards below
	down   *nfsclient.Error
	remove func() error // what becomes of RemoveAll; nil: it is done
}

func (l *local) onRemove(do func() error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.remove = do
}

func (l *local) setDown(e *nfsclient.Error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.down = e
}

// call makes a call as the server would: with its errors, and not after ctx.
func (l *local) call(ctx context.Context, op, name string, do func(at string) error) error {
	if err := ctx.Err(); err != nil {
		return &nfsclient.Error{Op: op, Path: name, Reason: nfsclient.Interrupted, Err: err}
	}
	l.mu.Lock()
	down := l.down
	l.mu.Unlock()
	if down != nil {
		return down
	}
	return l.Pass(func() error { return reasonOf(op, name, do(filepath.Join(l.dir, name))) })
}

func reasonOf(op, name string, err error) error {
	if err == nil {
		return nil
	}
	e := &nfsclient.Error{Op: op, Path: name, Err: err}
	for errno, r := range map[error]nfsclient.Reason{
		syscall.ENOENT: nfsclient.NotFound, syscall.EEXIST: nfsclient.Exists, syscall.ENOTDIR: nfsclient.NotDir, syscall.EISDIR: nfsclient.IsDir, syscall.ENOTEMPTY: nfsclient.NotEmpty,
		syscall.ENAMETOOLONG: nfsclient.LongName, syscall.EACCES: nfsclient.Denied, syscall.EROFS: nfsclient.ReadOnly, syscall.ENOSPC: nfsclient.Full,
	} {
		if errors.Is(err, errno) {
			e.Reason = r
		}
	}
	return e
}

func attrOf(fi fs.FileInfo) nfsclient.Attr {
	a := nfsclient.Attr{Type: nfsclient.File, Mode: uint32(fi.Mode().Perm()), Mtime: fi.ModTime(), Size: uint64(fi.Size())}
	switch {
	case fi.IsDir():
		a.Type = nfsclient.Dir
	case fi.Mode()&fs.ModeSymlink != 0:
		a.Type = nfsclient.Link
	}
	if st, ok := fi.Sys().(*syscall.Stat_t); ok {
		a.UID, a.GID = st.Uid, st.Gid
	}
	return a
}

func (l *local) Stat(ctx context.Context, name string) (a nfsclient.Attr, err error) {
	err = l.call(ctx, "stat", name, func(at string) error {
		fi, err := os.Lstat(at)
		if err == nil {
			a = attrOf(fi)
		}
		return err
	})
	return a, err
}

func (l *local) ReadDir(ctx context.Context, name string, yield func([]nfsclient.Entry) error) error {
	var page []nfsclient.Entry
	err := l.call(ctx, "read directory", name, func(at string) error {
		entries, err := os.ReadDir(at)
		for _, e := range entries {
			if fi, err := e.Info(); err == nil {
				page = append(page, nfsclient.Entry{Name: e.Name(), Attr: attrOf(fi)})
			}
		}
		return err
	})
	if err != nil || len(page) == 0 {
		return err
	}
	return yield(page)
}

func (l *local) Mkdir(ctx context.Context, name string, mode uint32) (a nfsclient.Attr, err error) {
	err = l.call(ctx, "mkdir", name, func(at string) error {
		if err := os.Mkdir(at, fs.FileMode(mode)); err != nil {
			return err
		}
		fi, err := os.Lstat(at)
		if err == nil {
			a = attrOf(fi)
		}
		return err
	})
	return a, err
}

func (l *local) SetAttr(ctx context.Context, name string, set nfsclient.Set) error {
	return l.call(ctx, "set attributes", name, func(at string) error {
		if set.Mode != nil {
			return os.Chmod(at, fs.FileMode(*set.Mode))
		}
		return nil
	})
}

func (l *local) ReadFile(ctx context.Context, name string, limit int) (data []byte, err error) {
	err = l.call(ctx, "read", name, func(at string) error {
		if data, err = os.ReadFile(at); err == nil && len(data) > limit {
			return &nfsclient.Error{Reason: nfsclient.TooLarge}
		}
		return err
	})
	return data, err
}

func (l *local) WriteFile(ctx context.Context, name string, data []byte, mode uint32) error {
	return l.call(ctx, "write", name, func(at string) error { return os.WriteFile(at, data, fs.FileMode(mode)) })
}

func (l *local) Rmdir(ctx context.Context, name string) error {
	return l.call(ctx, "rmdir", name, syscall.Rmdir)
}

func (l *local) RemoveAll(ctx context.Context, name string) error {
	l.mu.Lock()
	instead := l.remove
	l.mu.Unlock()
	if instead != nil {
		return instead()
	}
	return l.call(ctx, "remove", name, os.RemoveAll)
}

func (l *local) Rename(ctx context.Context, from, to string) error {
	return l.call(ctx, "rename", from, func(at string) error { return syscall.Rename(at, filepath.Join(l.dir, to)) })
}

func (l *local) Space(ctx context.Context) (total, free uint64, err error) {
	err = l.call(ctx, "ask the space of", ".", func(string) error { total, free = 1<<40, 1<<39; return nil })
	return total, free, err
}

func (l *local) Close() error { return nil }
