package tether

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"

	"vch/guest"
	"vch/internal/fault"
	"vch/internal/undo"
)

// bind is a volume's mount in the container's root. Its id finds it wherever the container's processes have moved its parents to.
type bind struct {
	spec guest.MountSpec
	id   uint64 // statx(2) stx_mnt_id
}

// scsiPlace is where a disk was that its volume's last Unmount has forgotten.
type scsiPlace struct{ scan, address string } // the host's file to write the address to (kernel Documentation/scsi/scsi_mid_low_api.rst), "channel id lun"

// Mount is System.Mount. The container's processes run meanwhile: what they may change between two steps is held by descriptor.
func (l *Linux) Mount(ctx context.Context, m guest.MountSpec) (err error) {
	label, onDisk := strings.CutPrefix(m.Source, "label://")
	if !isVolume(m.Source) {
		return fault.New(fault.Unsupported, "only volumes are mounted in a container that runs, not %q", m.Source)
	}
	if have, ok := l.binds[m.Target]; ok && sameMount(have.spec, m) {
		return nil
	}
	path, err := freeTarget(m)
	if err != nil {
		return err
	}
	if onDisk && m.Seat != nil {
		l.take(label, *m.Seat)
	} else if onDisk {
		l.leaveSeat(m, label)
	}
	if place, ok := l.forgotten[label]; ok { // at the same address only if it was never pulled; elsewhere it comes by itself
		_ = os.WriteFile(place.scan, []byte(place.address), 0)
		delete(l.forgotten, label)
	}
	var back undo.Stack
	defer func() {
		if err != nil {
			err = errors.Join(err, back.Run(ctx))
			if j, ok := err.(interface{ Unwrap() []error }); ok && len(j.Unwrap()) == 1 {
				err = j.Unwrap()[0]
			}
		}
	}()
	have, shared := l.volumes[m.Source]
	if shared && have.readOnly && !m.ReadOnly {
		return fault.New(fault.Conflict, "%s is mounted read-only in this container already, and so is its disk; unmount it there first", mountName(m))
	}
	if !shared {
		back.Push(func(context.Context) error { return l.closeVolume(m) })
	}
	content, err := l.openVolume(ctx, m, []guest.MountSpec{m})
	if err != nil {
		return err
	}
	part, file, err := partOf(content, m)
	if err != nil {
		return err
	}
	target, err := openTarget(path, file, m)
	if err != nil {
		return err
	}
	defer unix.Close(target)
	// A volume that is mounted elsewhere in the container is being used, and is as its user wants it.
	if m.Copy && !shared && !l.volumes[m.Source].readOnly {
		if err := l.fill(ctx, m, byDescriptor(target)+"/.", part, content); err != nil {
			return fault.New(fault.KindOf(err), "cannot copy the container's %s into %s: %w", m.Target, mountName(m), err)
		}
	}
	source, _, err := openPart(content, m)
	if err != nil {
		return err
	}
	defer unix.Close(source)
	id, err := bindAt(source, target, m.ReadOnly)
	if err != nil {
		return fault.New(fault.Internal, "cannot mount %s at %s: %w", mountName(m), m.Target, err)
	}
	l.binds[m.Target] = bind{spec: m, id: id}
	l.show(m.Target, strings.TrimPrefix(path, rootDir))
	return nil
}

// leaveSeat looks whether a volume that was unmounted is in its seat still.
func (l *Linux) leaveSeat(m guest.MountSpec, label string) {
	if _, mounted := l.volumes[m.Source]; mounted {
		return
	}
	if seat, ok := l.seats[label]; ok {
		sb, err := readSuper(diskWithSerial(seat.Serial))
		if err == nil {
			_, err = sb.isCalled(label, m.Was)
		}
		if err != nil {
			delete(l.seats, label)
		}
	}
}

func sameMount(a, b guest.MountSpec) bool {
	return a.Source == b.Source && a.Subpath == b.Subpath && a.ReadOnly == b.ReadOnly
}

// byDescriptor is a path of what fd has open, whatever it is called by now.
func byDescriptor(fd int) string { return fmt.Sprintf("/proc/self/fd/%d", fd) }

// freeTarget resolves m's target, and refuses one where, or below which, something is mounted: it would be hidden now, and visible after the next start.
func freeTarget(m guest.MountSpec) (string, error) {
	path, err := resolveIn(rootDir, m.Target)
	if err != nil {
		return "", fault.New(fault.Invalid, "mount target %s: %w", m.Target, err)
	}
	if path == rootDir {
		return "", fault.New(fault.Invalid, "mount target %s is the root of the container", m.Target)
	}
	for _, have := range mountTable() {
		switch inside := strings.TrimPrefix(have.at, rootDir); {
		case have.at == path:
			return "", fault.New(fault.Conflict, "something is mounted at %s already", inside)
		case strings.HasPrefix(have.at, path+"/"):
			return "", fault.New(fault.Conflict, "something is mounted at %s, below %s, and would be hidden", inside, m.Target)
		}
	}
	return path, nil
}

// openTarget opens the mount point of m at a resolved path below rootDir, and makes it where it is missing. A link that a process has put there since it was
// resolved is not followed.
func openTarget(path string, file bool, m guest.MountSpec) (fd int, err error) {
	fd, err = unix.Open(rootDir, unix.O_PATH|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
	parts := strings.Split(strings.TrimPrefix(path, rootDir+"/"), "/")
	for i, name := range parts {
		if err != nil {
			break
		}
		var next int
		next, err = openOrMake(fd, name, file && i == len(parts)-1)
		unix.Close(fd)
		fd = next
	}
	switch {
	case errors.Is(err, unix.EROFS):
		return -1, fault.New(fault.Conflict, "cannot make mount target %s: %w; mount at a directory that is there, or stop the container first", m.Target, err)
	case err != nil:
		return -1, fault.New(fault.Conflict, "cannot make mount target %s: %w", m.Target, err)
	}
	var st unix.Stat_t
	if err := unix.Fstat(fd, &st); err != nil {
		unix.Close(fd)
		return -1, err
	}
	if kind := st.Mode & unix.S_IFMT; kind == unix.S_IFLNK || (kind == unix.S_IFDIR) == file {
		unix.Close(fd)
		return -1, wrongKind(m)
	}
	return fd, nil
}

// openOrMake opens a name in a directory, as a path only, and makes it where it is missing.
func openOrMake(dir int, name string, file bool) (int, error) {
	const how = unix.O_PATH | unix.O_NOFOLLOW | unix.O_CLOEXEC
	fd, err := unix.Openat(dir, name, how, 0)
	if !errors.Is(err, unix.ENOENT) {
		return fd, err
	}
	if file {
		var f int
		if f, err = unix.Openat(dir, name, unix.O_CREAT|unix.O_EXCL|unix.O_WRONLY|unix.O_NOFOLLOW|unix.O_CLOEXEC, 0o644); err == nil {
			err = unix.Close(f)
		}
	} else {
		err = unix.Mkdirat(dir, name, 0o755)
	}
	if err != nil && !errors.Is(err, unix.EEXIST) {
		return -1, err
	}
	return unix.Openat(dir, name, how, 0)
}

// bindAt mounts what source has open over target and gives the mount's id. It is read-only before anybody can see it.
func bindAt(source, target int, readOnly bool) (id uint64, err error) {
	tree, err := unix.OpenTree(source, "", unix.AT_EMPTY_PATH|unix.OPEN_TREE_CLONE|unix.OPEN_TREE_CLOEXEC)
	if err != nil {
		return 0, err
	}
	defer unix.Close(tree)
	if readOnly {
		if err := unix.MountSetattr(tree, "", unix.AT_EMPTY_PATH, &unix.MountAttr{Attr_set: unix.MOUNT_ATTR_RDONLY}); err != nil {
			return 0, err
		}
	}
	var st unix.Statx_t
	if err := unix.Statx(tree, "", unix.AT_EMPTY_PATH, unix.STATX_MNT_ID, &st); err != nil {
		return 0, err
	}
	return st.Mnt_id, unix.MoveMount(tree, "", target, "", unix.MOVE_MOUNT_F_EMPTY_PATH|unix.MOVE_MOUNT_T_EMPTY_PATH)
}

// remember makes a volume's mount at a path of the machine known to Unmount.
func (l *Linux) remember(m guest.MountSpec, path string) error {
	var st unix.Statx_t
	if err := unix.Statx(unix.AT_FDCWD, path, unix.AT_SYMLINK_NOFOLLOW, unix.STATX_MNT_ID, &st); err != nil {
		return err
	}
	l.binds[m.Target] = bind{spec: m, id: st.Mnt_id}
	return nil
}

// Unmount is System.Unmount.
func (l *Linux) Unmount(target string) error {
	b, ok := l.binds[target]
	if !ok {
		return nil
	}
	if err := b.unmount(); err != nil {
		return err
	}
	delete(l.binds, target)
	l.hide(target)
	for _, other := range l.binds {
		if other.spec.Source == b.spec.Source {
			return nil
		}
	}
	if err := l.closeVolume(b.spec); err != nil {
		m := b.spec
		m.Copy = false
		return errors.Join(err, l.Mount(context.Background(), m))
	}
	return nil
}

// unmount takes the mount away. One that the container has unmounted by itself is no error.
func (b bind) unmount() error {
	table := mountTable()
	at := slices.IndexFunc(table, func(m mountPoint) bool { return m.id == b.id })
	if at < 0 {
		return nil
	}
	for _, m := range table {
		if m.parent == b.id {
			return fault.New(fault.InUse, "%s is mounted on it; unmount that first", strings.TrimPrefix(m.at, rootDir))
		}
	}
	err := unix.Unmount(table[at].at, unix.UMOUNT_NOFOLLOW)
	if errors.Is(err, unix.EBUSY) {
		return fault.New(fault.InUse, "%s", heldBy(func(st unix.Statx_t) bool { return st.Mnt_id == b.id }))
	}
	if err != nil {
		return fault.New(fault.Internal, "cannot unmount %s: %w", b.spec.Target, err)
	}
	return nil
}

// closeVolume unmounts the file system of m's volume, which has no mount in the container any more, and forgets its disk. After an error it is mounted still,
// or again. One that is not mounted is no error.
func (l *Linux) closeVolume(m guest.MountSpec) error {
	if isRemote(m.Source) {
		return l.closeRemote(m)
	}
	v := l.volumes[m.Source]
	label := strings.TrimPrefix(m.Source, "label://")
	at := filepath.Join(volumesDir, label)
	var st unix.Statx_t
	onIt := func(o unix.Statx_t) bool { return o.Dev_major == st.Dev_major && o.Dev_minor == st.Dev_minor }
	if slices.Contains(l.mounted, at) {
		if err := unix.Statx(unix.AT_FDCWD, at, 0, unix.STATX_BASIC_STATS, &st); err != nil {
			return err
		}
		if err := unix.Unmount(at, unix.UMOUNT_NOFOLLOW); errors.Is(err, unix.EBUSY) {
			return fault.New(fault.InUse, "%s", heldBy(onIt))
		} else if err != nil {
			return fault.New(fault.Internal, "cannot unmount the file system of %s: %w", mountName(m), err)
		}
		it := func(have string) bool { return have == at }
		l.mounted, l.written = slices.DeleteFunc(l.mounted, it), slices.DeleteFunc(l.written, it)
		l.plug.Lock()
		delete(l.volumes, m.Source)
		l.plug.Unlock()
	}
	dev := l.disk(label)
	if dev == "" {
		return nil
	}
	// A file system that is mounted anywhere, as in a mount namespace that a process has made, has its disk for itself (open(2) O_EXCL of a block device).
	f, err := os.OpenFile(dev, os.O_RDONLY|unix.O_EXCL, 0)
	if err == nil {
		err = errors.Join(f.Sync(), f.Close())
	}
	if err != nil {
		again := m
		again.ReadOnly = v.readOnly
		_, merr := l.openVolume(context.Background(), again, []guest.MountSpec{again})
		if errors.Is(err, unix.EBUSY) {
			err = fault.New(fault.InUse, "%s", heldBy(onIt))
		}
		return errors.Join(err, merr)
	}
	l.forget(label, dev)
	return nil
}

// forget has the kernel drop a disk, so that the next one with its serial is not taken for it. Where it cannot, the disk's end does it. A seat stays.
func (l *Linux) forget(label, dev string) {
	if _, ok := l.seats[label]; ok {
		return
	}
	device := filepath.Join("/sys/block", filepath.Base(dev), "device")
	at, err := filepath.EvalSymlinks(device)
	if err != nil {
		return
	}
	address := strings.Split(filepath.Base(at), ":") // host:channel:id:lun
	if err := os.WriteFile(filepath.Join(device, "delete"), []byte("1"), 0); err == nil && len(address) == 4 {
		l.forgotten[label] = scsiPlace{scan: "/sys/class/scsi_host/host" + address[0] + "/scan", address: strings.Join(address[1:], " ")}
	}
}

// mountPoint is a line of /proc/self/mountinfo (proc(5)).
type mountPoint struct {
	id, parent uint64
	at         string
}

func mountTable() (table []mountPoint) {
	data, err := os.ReadFile("/proc/self/mountinfo")
	if err != nil {
		return nil
	}
	for _, line := range strings.Split(string(data), "\n") {
		fields := strings.Fields(line)
		if len(fields) < 5 {
			continue
		}
		m := mountPoint{at: unescape(fields[4])}
		m.id, _ = strconv.ParseUint(fields[0], 10, 64)
		m.parent, _ = strconv.ParseUint(fields[1], 10, 64)
		table = append(table, m)
	}
	return table
}

// maxHolders bounds how many processes an error names.
const maxHolders = 5

// heldBy says which of the container's processes have something open, work or are mapped from where match says yes.
func heldBy(match func(unix.Statx_t) bool) string {
	var held []string
	entries, _ := os.ReadDir("/proc")
	var pids []int
	for _, e := range entries {
		if pid, err := strconv.Atoi(e.Name()); err == nil && pid != os.Getpid() {
			pids = append(pids, pid)
		}
	}
	slices.Sort(pids)
	for _, pid := range pids {
		dir := filepath.Join("/proc", strconv.Itoa(pid))
		why := holds(dir, match)
		if why == "" {
			continue
		}
		comm, _ := os.ReadFile(filepath.Join(dir, "comm"))
		held = append(held, fmt.Sprintf("%s (pid %s, %s)", strings.TrimSpace(string(comm)), innerPid(dir), why))
	}
	switch n := len(held) - maxHolders; {
	case len(held) == 0:
		return "it is in use, by no process that can be named: by a mount namespace or a mount that the container made, a loop device, swap space, or files that are being copied (docker cp)"
	case n > 0:
		held = append(held[:maxHolders], fmt.Sprintf("and %d more", n))
	}
	return "it is in use by " + strings.Join(held, ", ") + "; end these first"
}

// holds says by what a process holds something that match says yes to; "" if by nothing.
func holds(dir string, match func(unix.Statx_t) bool) string {
	on := func(link string) bool {
		var st unix.Statx_t
		err := unix.Statx(unix.AT_FDCWD, filepath.Join(dir, link), unix.AT_STATX_DONT_SYNC, unix.STATX_BASIC_STATS|unix.STATX_MNT_ID, &st)
		return err == nil && match(st)
	}
	for _, link := range []struct{ name, text string }{{"cwd", "its working directory"}, {"root", "its root"}, {"exe", "its program"}} {
		if on(link.name) {
			return link.text
		}
	}
	for _, list := range []struct{ name, text string }{{"fd", "an open file"}, {"map_files", "a mapped file"}} {
		entries, _ := os.ReadDir(filepath.Join(dir, list.name))
		if slices.ContainsFunc(entries, func(e fs.DirEntry) bool { return on(filepath.Join(list.name, e.Name())) }) {
			return list.text
		}
	}
	return ""
}

// innerPid is a process's id as the container sees it (proc(5) status, NSpid).
func innerPid(dir string) string {
	status, _ := os.ReadFile(filepath.Join(dir, "status"))
	for _, line := range strings.Split(string(status), "\n") {
		if ids, ok := strings.CutPrefix(line, "NSpid:"); ok {
			if fields := strings.Fields(ids); len(fields) > 0 {
				return fields[len(fields)-1]
			}
		}
	}
	return filepath.Base(dir)
}
