package tether

import (
	"cmp"
	"context"
	"crypto/md5"
	"encoding/hex"
	"errors"
	"os"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/vishvananda/netns"
	"golang.org/x/sys/unix"

	"vch/guest"
	"vch/internal/fault"
)

// remotePatience is how long a server may take where the mount spec does not say.
const remotePatience = 10 * time.Second

// uniqueID is what the kernel's NFS client calls itself by, beside its host name (Documentation/admin-guide/nfs/nfs-client.rst): containers with one host name are not to be taken for
// one client, and one that comes back after a crash is to be taken for itself, so that its server lets go of its old locks at once.
const (
	uniqueID = "/sys/module/nfs/parameters/nfs4_unique_id"
	idLength = 32 // digits of the container's id: the kernel takes 63 (fs/nfs/super.c, NFS4_CLIENT_ID_UNIQ_LEN)
)

// isRemote says whether a source is a directory of a server.
func isRemote(source guest.Source) bool { return strings.HasPrefix(source, "nfs://") }

// reachServers makes ready what a config's mounts of servers need. A rehearsal has none, but what comes of it will.
func (l *Linux) reachServers(cfg guest.ExecutorConfig) error {
	if cfg.Rehearsal {
		return l.loadLater()
	}
	if cfg.Network.Storage == nil {
		return nil
	}
	l.card.mu.Lock()
	defer l.card.mu.Unlock()
	if l.card.there == nil {
		return fault.New(fault.Unsupported, "the machine has no network card")
	}
	return l.card.makeStorage(*cfg.Network.Storage)
}

// openRemote mounts a server's directory, which is the volume's content as it is.
func (l *Linux) openRemote(ctx context.Context, m guest.MountSpec, readOnly bool) (string, error) {
	if err := l.loadLater(); err != nil {
		return "", fault.New(fault.Unsupported, "%s cannot be mounted: %w", mountName(m), err)
	}
	if err := os.WriteFile(uniqueID, []byte(l.id[:min(len(l.id), idLength)]), 0); err != nil {
		return "", fault.New(fault.Unsupported, "%s cannot be mounted: the guests' kernel has no NFS: %w", mountName(m), err)
	}
	sum := md5.Sum([]byte(m.Source))
	at := filepath.Join(volumesDir, hex.EncodeToString(sum[:]))
	if err := os.MkdirAll(at, 0o755); err != nil {
		return "", err
	}
	if err := l.mountRemote(ctx, m, at, readOnly); err != nil {
		return "", err
	}
	l.plug.Lock()
	defer l.plug.Unlock()
	l.mounted = append(l.mounted, at)
	l.volumes[m.Source] = volume{content: at, readOnly: readOnly, remote: true}
	return at, nil
}

// remoteMount is what mount(2) is called with for a source.
type remoteMount struct {
	device string
	fstype string
	flags  uintptr
	data   []string // to be tried in this order, where a server does not speak the version
}

// remoteMountOf reads a spec. "vers=4" is the newest of 4.2 and 4.1, which mount.nfs(8) finds out by trying, too.
func remoteMountOf(m guest.MountSpec, readOnly bool) remoteMount {
	server, path, _ := strings.Cut(strings.TrimPrefix(m.Source, "nfs://"), "/")
	host := server
	if i := strings.LastIndexByte(server, ':'); i > strings.LastIndexByte(server, ']') {
		host = server[:i]
	}
	r := remoteMount{device: host + ":/" + path, fstype: "nfs4"}
	if readOnly {
		r.flags |= unix.MS_RDONLY
	}
	var data, vers []string
	for _, o := range m.Options {
		key, value, _ := strings.Cut(o, "=")
		switch {
		case o == "noatime":
			r.flags |= unix.MS_NOATIME
		case o == "sync":
			r.flags |= unix.MS_SYNCHRONOUS
		case o == "ro":
			r.flags |= unix.MS_RDONLY
		case key == "vers" && value == "4":
			vers = []string{"vers=4.2", "vers=4.1"}
		case key == "vers":
			vers = []string{o}
			if value == "3" {
				r.fstype = "nfs"
			}
		default:
			data = append(data, o)
		}
	}
	for _, v := range vers {
		r.data = append(r.data, strings.Join(slices.Concat([]string{v}, data), ","))
	}
	return r
}

// mountRemote mounts a server's directory at a path, in the namespace of the storage link. The kernel may wait for a server as long as it likes: one that is given up after the spec's
// patience is unmounted should it come to be.
func (l *Linux) mountRemote(ctx context.Context, m guest.MountSpec, at string, readOnly bool) error {
	l.card.mu.Lock()
	ns := l.card.storage
	l.card.mu.Unlock()
	if !ns.IsOpen() {
		return fault.New(fault.Internal, "%s cannot be mounted: the machine has no storage link", mountName(m))
	}
	r := remoteMountOf(m, readOnly)
	var mu sync.Mutex // guards gaveUp
	gaveUp := false
	done := make(chan error, 1)
	go func() {
		err := within(ns, l.card.self, func() (err error) {
			for _, data := range r.data {
				if err = unix.Mount(r.device, at, r.fstype, r.flags, data); !errors.Is(err, unix.EPROTONOSUPPORT) {
					break
				}
			}
			return err
		})
		mu.Lock()
		defer mu.Unlock()
		if gaveUp && err == nil {
			_ = unix.Unmount(at, unix.MNT_DETACH|unix.UMOUNT_NOFOLLOW)
		}
		done <- err
	}()
	patience := cmp.Or(m.Patience, remotePatience)
	late := time.NewTimer(patience)
	defer late.Stop()
	var why error
	select {
	case err := <-done:
		return remoteFault(m, err)
	case <-late.C:
		why = fault.New(fault.Unavailable, "%s cannot be mounted: its server answered the VCH, but not the container's machine within %v; see whether it is overloaded, or in its grace period after a restart, and start the container again", mountName(m), patience)
	case <-ctx.Done():
		why = ctx.Err()
	}
	mu.Lock()
	defer mu.Unlock()
	select {
	case err := <-done: // just now
		return remoteFault(m, err)
	default:
		gaveUp = true
		return why
	}
}

// within runs do on a thread that is in a network namespace, and gives the thread back to home.
func within(ns, home netns.NsHandle, do func() error) error {
	runtime.LockOSThread()
	if err := netns.Set(ns); err != nil {
		runtime.UnlockOSThread()
		return err
	}
	err := do()
	if serr := netns.Set(home); serr != nil {
		return errors.Join(err, serr) // a thread that is not back is nobody else's: it ends with its goroutine
	}
	runtime.UnlockOSThread()
	return err
}

// remoteFault says what an error of mount(2) means for a server's directory, and what to do.
func remoteFault(m guest.MountSpec, err error) error {
	name := mountName(m)
	switch {
	case err == nil:
		return nil
	case errors.Is(err, unix.ENODEV):
		return fault.New(fault.Unsupported, "%s cannot be mounted: the guests' kernel has no NFS of that version (%w)", name, err)
	case errors.Is(err, unix.ENOENT):
		return fault.New(fault.NotFound, "%s cannot be mounted: its directory is not on the server any more, or the server does not export it to this host (%w)", name, err)
	case errors.Is(err, unix.EACCES), errors.Is(err, unix.EPERM):
		return fault.New(fault.Denied, "%s cannot be mounted: its server refuses this host; have it export the directory to the VCH's host, and, where vch does not run as root, with the option insecure (%w)", name, err)
	case errors.Is(err, unix.ECONNREFUSED), errors.Is(err, unix.ETIMEDOUT), errors.Is(err, unix.EHOSTUNREACH), errors.Is(err, unix.ECONNRESET):
		return fault.New(fault.Unavailable, "%s cannot be mounted: its server does not answer; see that it runs (%w)", name, err)
	case errors.Is(err, unix.EPROTONOSUPPORT):
		return fault.New(fault.Unsupported, "%s cannot be mounted: its server does not speak the NFS version of the store; give the store another vers (%w)", name, err)
	case errors.Is(err, unix.ESTALE):
		return fault.New(fault.Unavailable, "%s cannot be mounted: its server has forgotten the directory, as after the file system behind the export was changed; export it anew (%w)", name, err)
	case errors.Is(err, unix.EINVAL):
		return fault.New(fault.Invalid, "%s cannot be mounted: the guests' kernel does not take its options %s (%w)", name, strings.Join(m.Options, ","), err)
	}
	return fault.New(fault.Unavailable, "%s cannot be mounted: %w", name, err)
}

// leaveServers unmounts what is on servers, after everything is written there: a server that does not answer is waited for, and who does not want to wait ends the machine. Unmounted,
// a client gives back what its server would otherwise keep for it.
func (l *Linux) leaveServers() error {
	remote := map[guest.Source]volume{}
	for source, v := range l.volumes {
		if v.remote {
			remote[source] = v
		}
	}
	if len(remote) == 0 {
		return nil
	}
	var errs []error
	for source, v := range remote {
		if err := flush(v.content); err != nil && !v.readOnly {
			errs = append(errs, fault.New(fault.Unavailable, "not all that was written to %s has reached its server: %w", source, err))
		}
	}
	// What is mounted of them in the container's root, wherever its processes have moved it to.
	if err := unix.Unmount(rootDir, unix.MNT_DETACH|unix.UMOUNT_NOFOLLOW); err != nil && !errors.Is(err, unix.EINVAL) {
		errs = append(errs, err)
	}
	for source, v := range remote {
		err := unix.Unmount(v.content, unix.UMOUNT_NOFOLLOW)
		if errors.Is(err, unix.EBUSY) {
			err = unix.Unmount(v.content, unix.MNT_DETACH|unix.UMOUNT_NOFOLLOW)
		}
		errs = append(errs, err)
		l.plug.Lock()
		l.mounted = slices.DeleteFunc(l.mounted, func(at string) bool { return at == v.content })
		delete(l.volumes, source)
		l.plug.Unlock()
	}
	return errors.Join(errs...)
}

// flush has a server have everything that was written to it from here.
func flush(at string) error {
	f, err := os.Open(at)
	if err != nil {
		return err
	}
	defer f.Close()
	return unix.Syncfs(int(f.Fd()))
}

// closeRemote unmounts a server's directory, of which the container has no mount any more. Unavailable, and it stays, where the server does not answer.
func (l *Linux) closeRemote(m guest.MountSpec) error {
	v, ok := l.volumes[m.Source]
	if !ok {
		return nil
	}
	written := make(chan error, 1)
	go func() { written <- flush(v.content) }()
	select {
	case err := <-written:
		if err != nil && !v.readOnly {
			return fault.New(fault.Unavailable, "%s stays: not all that was written to it has reached its server: %w", mountName(m), err)
		}
	case <-time.After(cmp.Or(m.Patience, remotePatience)):
		return fault.New(fault.Unavailable, "%s stays: its server does not answer, and not all that was written to it may have reached that; try again when it does", mountName(m))
	}
	var st unix.Statx_t
	if err := unix.Statx(unix.AT_FDCWD, v.content, unix.AT_STATX_DONT_SYNC, unix.STATX_BASIC_STATS, &st); err != nil {
		return err
	}
	if err := unix.Unmount(v.content, unix.UMOUNT_NOFOLLOW); errors.Is(err, unix.EBUSY) {
		return fault.New(fault.InUse, "%s", heldBy(func(o unix.Statx_t) bool { return o.Dev_major == st.Dev_major && o.Dev_minor == st.Dev_minor }))
	} else if err != nil {
		return fault.New(fault.Internal, "cannot unmount %s: %w", mountName(m), err)
	}
	l.mounted = slices.DeleteFunc(l.mounted, func(at string) bool { return at == v.content })
	l.plug.Lock()
	delete(l.volumes, m.Source)
	l.plug.Unlock()
	return nil
}
