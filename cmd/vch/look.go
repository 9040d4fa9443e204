package main

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"net"
	"os"
	"path/filepath"
	"syscall"

	"github.com/docker/go-units"
	"golang.org/x/sys/unix"

	"vch/internal/fault"
	"vch/portlayer"
)

// Looking changes nothing on this machine: serve looks before it acts, and doctor does nothing else.

// finding is what is to be said of a place that can be used.
type finding struct {
	detail  string
	warning string // "" : none
}

// Room below which a place is refused, or worth a word.
const (
	leastState = 16 * portlayer.MiB // the records and a log can be written
	littleRoom = portlayer.GiB      // soon something will not work
)

// lookAtState says whether path can be the state directory.
func lookAtState(path string) (finding, error) {
	place, made, err := lookAtDir(path)
	if err != nil {
		return finding{}, fault.New(fault.KindOf(err), "state directory %s: %w; give another with --state", path, err)
	}
	free, err := freeAt(place)
	if err != nil {
		return finding{}, fault.New(fault.Unavailable, "state directory %s: %w; give another with --state", path, err)
	}
	if free < leastState {
		return finding{}, fault.New(fault.Unavailable, "state directory %s: there is no space, %s are free; make room, or give another with --state", path, size(free))
	}
	return describe(path, made, free, place), nil
}

// lookAtStore says whether place can be a volume store. One may be full: its volumes can still be read and removed, and no store takes the host down.
func lookAtStore(store storePlace) (finding, error) {
	if store.NFS != nil || store.Datastore { // its server is asked by the one who opens it: no server keeps a VCH from starting
		return finding{}, nil
	}
	advice := fmt.Sprintf("give a directory that this user can write: --volume-store DIRECTORY:%s", store.Name)
	if _, err := os.Stat(filepath.Dir(store.Path)); errors.Is(err, fs.ErrNotExist) {
		return finding{}, fault.New(fault.NotFound, "volume store %s: %s is missing; make it first, as in: mkdir -p %s", store.Name, filepath.Dir(store.Path), store.Path)
	}
	place, made, err := lookAtDir(store.Path)
	if err != nil {
		return finding{}, fault.New(fault.KindOf(err), "volume store %s: %w; %s", store.Name, err, advice)
	}
	free, err := freeAt(place)
	if err != nil {
		return finding{}, fault.New(fault.Unavailable, "volume store %s: %s: %w; %s", store.Name, store.Path, err, advice)
	}
	return describe(store.Path, made, free, place), nil
}

func describe(path string, made bool, free portlayer.Bytes, place string) finding {
	f := finding{detail: fmt.Sprintf("%s, %s free", path, size(free))}
	if !made {
		f.detail = fmt.Sprintf("%s is not there yet and will be made in %s, %s free", path, place, size(free))
	}
	if free < littleRoom {
		f.warning = fmt.Sprintf("little room: %s are free in %s", size(free), place)
	}
	return f
}

// lookAtDir says whether path is a directory that can be written, or could be made: place is then the directory that is there.
func lookAtDir(path string) (place string, made bool, err error) {
	place, made = path, true
	for {
		info, err := os.Stat(place)
		if err == nil && !info.IsDir() {
			return place, made, fault.New(fault.Invalid, "%s is not a directory", place)
		}
		if err == nil {
			break
		}
		if errors.Is(err, syscall.ENOTDIR) || errors.Is(err, fs.ErrNotExist) {
			if place == "/" {
				return place, made, fault.New(fault.NotFound, "%s is missing", path)
			}
			place, made = filepath.Dir(place), false
			continue
		}
		return place, made, fault.New(fault.Denied, "%s cannot be looked at: %w", place, cause(err))
	}
	switch err := unix.Faccessat(unix.AT_FDCWD, place, unix.R_OK|unix.W_OK|unix.X_OK, unix.AT_EACCESS); {
	case errors.Is(err, unix.EROFS):
		return place, made, fault.New(fault.Denied, "%s is on a medium that is mounted read-only", place)
	case err != nil:
		return place, made, fault.New(fault.Denied, "this user (uid %d) cannot write %s", os.Geteuid(), place)
	}
	return place, made, nil
}

// freeAt is the room that this user has in dir.
func freeAt(dir string) (portlayer.Bytes, error) {
	var st unix.Statfs_t
	if err := unix.Statfs(dir, &st); err != nil {
		return 0, err
	}
	return portlayer.Bytes(st.Bavail) * portlayer.Bytes(st.Bsize), nil
}

func size(n portlayer.Bytes) string { return units.BytesSize(float64(n)) }

// cause is an error of a file without the path, which stands in the sentence already.
func cause(err error) error {
	var pe *fs.PathError
	if errors.As(err, &pe) {
		return pe.Err
	}
	return err
}

// lookAt is lookAtSocket for any address: of TCP, that nobody listens there.
func lookAt(a address) (stale bool, err error) {
	if a.Network == "unix" {
		return lookAtSocket(a.At)
	}
	l, err := listenTCP(context.Background(), a, nil)
	if err != nil {
		return false, err
	}
	return false, l.Close()
}

// lookAtSocket says whether a VCH could listen at path; stale means that a socket of a daemon that has died lies there.
func lookAtSocket(path string) (stale bool, err error) {
	info, err := os.Lstat(path)
	if errors.Is(err, fs.ErrNotExist) {
		return false, nil
	}
	if err != nil {
		return false, fault.New(fault.Denied, "cannot listen at %s: %w; choose another with --listen", path, cause(err))
	}
	if info.Mode().Type() != fs.ModeSocket {
		return false, fault.New(fault.Conflict, "cannot listen at %s: there is something else, which is no socket; choose another with --listen", path)
	}
	conn, err := net.Dial("unix", path)
	switch {
	case err == nil:
		conn.Close()
		return false, fault.New(fault.InUse, "cannot listen at %s: another program answers there; stop it first, or choose another with --listen", path)
	case errors.Is(err, syscall.ECONNREFUSED):
		return true, nil
	}
	return false, fault.New(fault.Denied, "cannot listen at %s: %w; choose another with --listen", path, err)
}
