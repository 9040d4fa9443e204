package tether

import (
	"errors"
	"os"
	"path/filepath"
	"strconv"

	"golang.org/x/sys/unix"

	"vch/guest"
	"vch/internal/fault"
)

// openShares mounts what the machine shares with its host, where any of mounts is a share, and notes in targets what each of them is.
func (l *Linux) openShares(mounts []guest.MountSpec, targets []target) error {
	there := false
	for i, m := range mounts {
		n, ok := guest.ShareOf(m.Source)
		if !ok {
			continue
		}
		if !there {
			if err := l.mountShares(); err != nil {
				return err
			}
			there = true
		}
		t := &targets[i]
		t.content = filepath.Join(sharesDir, strconv.Itoa(n))
		fi, err := os.Stat(t.content)
		if err != nil {
			return fault.New(fault.NotFound, "%s is not among what the machine shares with its host: %w", mountName(m), err)
		}
		t.file = !fi.IsDir()
		if err := makeTarget(m, t.path, t.file); err != nil {
			return err
		}
	}
	return nil
}

func (l *Linux) mountShares() error {
	if err := os.MkdirAll(sharesDir, 0o755); err != nil {
		return err
	}
	err := l.mount(guest.ShareTag, sharesDir, "virtiofs", 0, "")
	if errors.Is(err, unix.ENODEV) {
		return fault.New(fault.Unsupported, "directories of the host cannot be mounted: the guests' kernel has no virtiofs")
	}
	if err != nil {
		return fault.New(fault.Internal, "what the machine shares with its host cannot be mounted: %w", err)
	}
	return nil
}

// mountShare binds a share to a path of the container, with what is mounted below it.
func (l *Linux) mountShare(m guest.MountSpec, path string, t target) error {
	if err := unix.Mount(t.content, path, "", unix.MS_BIND|unix.MS_REC, ""); err != nil {
		return fault.New(fault.Internal, "cannot mount %s at %s: %w", mountName(m), m.Target, err)
	}
	if !m.ReadOnly {
		return nil
	}
	// The host has it read-only as well, and with what is mounted below it, where that is asked for.
	if err := unix.Mount("", path, "", unix.MS_BIND|unix.MS_REMOUNT|unix.MS_RDONLY, ""); err != nil {
		return fault.New(fault.Internal, "cannot make the mount at %s read-only: %w", m.Target, err)
	}
	return nil
}
