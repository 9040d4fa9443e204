package tether

import (
	"bytes"
	"cmp"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"sort"
	"strings"
	"sync"
	"time"

	"golang.org/x/sys/unix"

	"vch/guest"
	"vch/internal/fault"
)

// Where things are in the guest, outside the container's root.
const (
	rootDir    = "/run/vch/root"   // the container's root
	imageDir   = "/run/vch/image"  // the image's disk
	ownDir     = "/run/vch/own"    // the container's own disk: upper and work
	filesDir   = "/run/vch/files"  // tmpfs of /etc/hosts and its like
	volumesDir = "/run/vch/volume" // one directory a volume: its whole file system
	sharesDir  = "/run/vch/share"  // what the machine shares with its host, by numbers
)

// diskWait bounds the wait for a disk that the hypervisor has given: they are there within a second of the boot, but an emulator may be very busy.
const diskWait = 2 * time.Minute

// ext4's superblock (kernel Documentation/filesystems/ext4, "The Super Block").
const (
	superOffset  = 1024
	superMagicAt = 0x38
	superUUIDAt  = 0x68
	superMagic   = 0xEF53
)

// mountAll does every mount of cfg, parents first. What it mounts is undone by unmountAll, also after an error.
func (l *Linux) mountAll(ctx context.Context, cfg guest.ExecutorConfig) (copied time.Duration, err error) {
	for _, dir := range []string{rootDir, imageDir, ownDir, volumesDir} {
		if err := os.MkdirAll(dir, 0o755); err != nil {
			return 0, err
		}
	}
	if err := l.reachServers(cfg); err != nil {
		return 0, err
	}
	// Whatever waits for a disk waits while others do something.
	volumes := l.openVolumes(ctx, cfg.Mounts)
	err = l.mountRoot(ctx, cfg.Root)
	opened := volumes()
	if err != nil {
		return 0, fault.Wrap("mount the container's root", "", err)
	}
	targets, err := l.prepareTargets(cfg.Mounts)
	if err != nil {
		return 0, err
	}
	if err := l.openShares(cfg.Mounts, targets); err != nil {
		return 0, err
	}
	// Volumes are populated from the image before anything is mounted over it, so that nested ones come out right in every order.
	began := time.Now()
	for i, m := range cfg.Mounts {
		if !isVolume(m.Source) {
			continue
		}
		content, err := opened[m.Source].content, opened[m.Source].err
		if err != nil {
			return 0, err
		}
		t := &targets[i]
		if t.content, t.file, err = partOf(content, m); err != nil {
			return 0, err
		}
		if err := makeTarget(m, t.path, t.file); err != nil {
			return 0, err
		}
		if m.Copy && !l.volumes[m.Source].readOnly {
			if err := l.fill(ctx, m, t.path, t.content, content); err != nil {
				return 0, fault.New(fault.KindOf(err), "cannot copy the image's %s into volume %s: %w", m.Target, m.Name, err)
			}
		}
	}
	copied = time.Since(began)
	if cfg.Process == nil && !cfg.Serve {
		return copied, nil
	}
	l.mounts = cfg.Mounts
	order := make([]int, len(cfg.Mounts))
	for i := range order {
		order[i] = i
	}
	sort.SliceStable(order, func(a, b int) bool {
		return strings.Count(targets[order[a]].path, "/") < strings.Count(targets[order[b]].path, "/")
	})
	if cfg.Process != nil {
		if err := l.mountSystem(cfg); err != nil {
			return copied, err
		}
	}
	for _, i := range order {
		if cfg.Serve && cfg.Mounts[i].Source == "tmpfs:" {
			continue
		}
		if err := l.mountOne(cfg.Mounts[i], targets[i]); err != nil {
			return copied, err
		}
	}
	for at := range l.absent {
		if err := unix.Mount("", rootDir+at, "", unix.MS_REMOUNT|unix.MS_RDONLY, ""); err != nil {
			return copied, err
		}
	}
	if err := l.mountFiles(cfg); err != nil {
		return copied, err
	}
	if cfg.Root.ReadOnly {
		if err := unix.Mount("", rootDir, "", unix.MS_REMOUNT|unix.MS_RDONLY, ""); err != nil {
			return copied, fmt.Errorf("cannot make the root read-only: %w", err)
		}
	}
	return copied, nil
}

// opening is how opening a volume went.
type opening struct {
	content string // the directory that is its content
	err     error
}

// openVolumes begins to open all volumes of mounts at once. What it returns waits for that, and tells by source how it went.
func (l *Linux) openVolumes(ctx context.Context, mounts []guest.MountSpec) func() map[guest.Source]opening {
	var (
		work sync.WaitGroup
		mu   sync.Mutex // guards opened
	)
	opened, begun := map[guest.Source]opening{}, map[guest.Source]bool{}
	for _, m := range mounts {
		if !isVolume(m.Source) || begun[m.Source] {
			continue
		}
		begun[m.Source] = true
		work.Go(func() {
			content, err := l.openVolume(ctx, m, mounts)
			mu.Lock()
			defer mu.Unlock()
			opened[m.Source] = opening{content, err}
		})
	}
	return func() map[guest.Source]opening { work.Wait(); return opened }
}

func (l *Linux) mountImage(ctx context.Context, root guest.Root) error {
	image, err := l.findDisk(ctx, root.Image, "the image")
	if err != nil {
		return err
	}
	// Programs are read in large pieces: a request takes longer than what it brings.
	_ = os.WriteFile(filepath.Join("/sys/block", filepath.Base(image), "queue/read_ahead_kb"), []byte("512"), 0)
	if err := l.mount(image, imageDir, "ext4", unix.MS_RDONLY|unix.MS_NOATIME, "noload"); err != nil {
		return fault.New(fault.Internal, "the image's disk cannot be mounted: %w", err)
	}
	return nil
}

func (l *Linux) mountOwn(ctx context.Context, root guest.Root) error {
	own, err := l.findDisk(ctx, root.Writable, "the container's own disk")
	if err != nil {
		return err
	}
	data := "discard" // as a volume: what is deleted goes back to the host
	if root.Ephemeral {
		data += ",nobarrier"
	}
	if err := format(own); err != nil {
		return fault.New(fault.Internal, "the container's own disk cannot be formatted: %w", err)
	}
	if err := l.mount(own, ownDir, "ext4", unix.MS_NOATIME, data); err != nil {
		return fault.New(fault.Internal, "the container's own disk cannot be mounted: %w", err)
	}
	stretch(own)
	if root.Ephemeral {
		l.plug.Lock()
		l.written = slices.DeleteFunc(l.written, func(at string) bool { return at == ownDir })
		l.plug.Unlock()
	}
	return nil
}

// mountRoot puts the overlay of the container's own disk on the image's together. Without an image the root is empty, and in memory.
func (l *Linux) mountRoot(ctx context.Context, root guest.Root) error {
	if root.Image == "" {
		return l.mount("tmpfs", rootDir, "tmpfs", unix.MS_NOSUID|unix.MS_NODEV, "mode=0755")
	}
	if root.Writable == "" {
		if err := l.mountImage(ctx, root); err != nil {
			return err
		}
		return l.mount(imageDir, rootDir, "", unix.MS_BIND, "")
	}
	var own error
	var both sync.WaitGroup
	both.Go(func() { own = l.mountOwn(ctx, root) })
	image := l.mountImage(ctx, root)
	both.Wait()
	if image != nil || own != nil {
		return cmp.Or(image, own)
	}
	upper, work := filepath.Join(ownDir, "upper"), filepath.Join(ownDir, "work")
	if err := os.Mkdir(upper, 0o755); err == nil {
		// The root directory of the container has the image's owner and mode.
		if err := copyAttributes(imageDir, upper); err != nil {
			return err
		}
		// What made the image's disk puts this directory into every file system; a whiteout (overlayfs.rst) hides it.
		if _, err := os.Lstat(filepath.Join(imageDir, "lost+found")); err == nil {
			if err := unix.Mknod(filepath.Join(upper, "lost+found"), unix.S_IFCHR, 0); err != nil {
				return err
			}
		}
	} else if !errors.Is(err, fs.ErrExist) {
		return err
	}
	if err := os.MkdirAll(work, 0o700); err != nil {
		return err
	}
	return l.mount("overlay", rootDir, "overlay", unix.MS_NOATIME, "lowerdir="+imageDir+",upperdir="+upper+",workdir="+work)
}

// target is where a mount goes: a path of the machine, below rootDir, its links resolved.
type target struct {
	path    string
	content string // what is mounted there: the volume's content directory, or the part of it that a subpath names
	file    bool   // the content is a file, and the target has to be one
}

// prepareTargets finds every mount point, and makes those of which it is known that they are directories: all but those of subpaths.
func (l *Linux) prepareTargets(mounts []guest.MountSpec) ([]target, error) {
	targets := make([]target, len(mounts))
	for i, m := range mounts {
		path, err := resolveIn(rootDir, m.Target)
		if err != nil {
			return nil, fault.New(fault.Invalid, "mount target %s: %w", m.Target, err)
		}
		if path == rootDir {
			return nil, fault.New(fault.Invalid, "mount target %s is the root of the container", m.Target)
		}
		if _, shared := guest.ShareOf(m.Source); m.Subpath == "" && !shared {
			if err := makeTarget(m, path, false); err != nil {
				return nil, err
			}
		}
		targets[i].path = path
	}
	return targets, nil
}

// makeTarget makes the mount point of m at a path of the machine, unless it is there. One that is a file where a directory is mounted, or the other way, is
// refused, as by every runtime.
func makeTarget(m guest.MountSpec, path string, file bool) error {
	fi, err := os.Lstat(path)
	switch {
	case errors.Is(err, fs.ErrNotExist) && file:
		if err = os.MkdirAll(filepath.Dir(path), 0o755); err == nil {
			err = os.WriteFile(path, nil, 0o644)
		}
	case errors.Is(err, fs.ErrNotExist):
		err = os.MkdirAll(path, 0o755)
	case err == nil && fi.IsDir() == file:
		return wrongKind(m)
	}
	if err != nil {
		return fault.New(fault.KindOf(err), "cannot make mount target %s: %w", m.Target, err)
	}
	return nil
}

// wrongKind is a file where a directory is mounted, or the other way.
func wrongKind(m guest.MountSpec) error {
	return fault.New(fault.Invalid, "cannot mount %s at %s: not a directory: Are you trying to mount a directory onto a file (or vice-versa)? Check if the specified path of the image is a directory", mountName(m), m.Target)
}

// partOf gives what m mounts of a volume's content, and whether that is a file. Nothing else uses the volume meanwhile, so that what was found stays what it is.
func partOf(content string, m guest.MountSpec) (part string, file bool, err error) {
	if m.Subpath == "" {
		return content, false, nil
	}
	fd, file, err := openPart(content, m)
	if err != nil {
		return "", false, err
	}
	defer unix.Close(fd)
	part, err = os.Readlink(byDescriptor(fd))
	return part, file, err
}

// openPart opens what m mounts of a volume's content, as a path only, and says whether it is a file.
func openPart(content string, m guest.MountSpec) (fd int, file bool, err error) {
	root, err := unix.Open(content, unix.O_PATH|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
	if err != nil || m.Subpath == "" {
		return root, false, err
	}
	defer unix.Close(root)
	fd, err = unix.Openat2(root, m.Subpath, &unix.OpenHow{Flags: unix.O_PATH | unix.O_CLOEXEC, Resolve: unix.RESOLVE_BENEATH | unix.RESOLVE_NO_MAGICLINKS})
	switch {
	case errors.Is(err, unix.EXDEV): // openat2(2): it leads out of root
		return -1, false, fault.New(fault.Invalid, "cannot mount %s of %s: path concatenation escapes the base directory: a link in it leads out of the volume", m.Subpath, mountName(m))
	case errors.Is(err, unix.ENOENT), errors.Is(err, unix.ENOTDIR):
		return -1, false, fault.New(fault.NotFound, "cannot access path %s of %s: %w; make it there first, with a container that mounts the whole volume", m.Subpath, mountName(m), err)
	case err != nil:
		return -1, false, fault.New(fault.KindOf(err), "cannot access path %s of %s: %w", m.Subpath, mountName(m), err)
	}
	var st unix.Stat_t
	if err := unix.Fstat(fd, &st); err != nil {
		return -1, false, errors.Join(err, unix.Close(fd))
	}
	return fd, st.Mode&unix.S_IFMT != unix.S_IFDIR, nil
}

func mountName(m guest.MountSpec) string {
	if _, shared := guest.ShareOf(m.Source); shared {
		return "host path " + m.Name
	}
	if m.Name != "" {
		return "volume " + m.Name
	}
	return m.Source
}

// openVolume mounts a volume's file system, once however many targets it has, and returns the directory that is its content.
func (l *Linux) openVolume(ctx context.Context, m guest.MountSpec, all []guest.MountSpec) (string, error) {
	l.plug.RLock()
	v, ok := l.volumes[m.Source]
	l.plug.RUnlock()
	if ok {
		return v.content, nil
	}
	readOnly := !slices.ContainsFunc(all, func(o guest.MountSpec) bool { return o.Source == m.Source && !o.ReadOnly })
	if isRemote(m.Source) {
		return l.openRemote(ctx, m, readOnly)
	}
	label := strings.TrimPrefix(m.Source, "label://")
	dev, err := l.findDisk(ctx, "disk://"+label, mountName(m))
	if err != nil {
		return "", err
	}
	sb, err := readSuper(dev)
	own := false
	if err == nil {
		own, err = sb.isCalled(label, m.Was)
	}
	if err != nil {
		return "", fault.New(fault.Conflict, "%s: %w", mountName(m), err)
	}
	at := filepath.Join(volumesDir, label)
	if err := os.MkdirAll(at, 0o755); err != nil {
		return "", err
	}
	var flags uintptr
	data := "discard" // what is deleted goes back to the host: the disk is sparse, and nobody in a container may run fstrim
	if readOnly {
		flags, data = unix.MS_RDONLY, ""
	}
	err = l.mount(dev, at, "ext4", flags, data)
	if readOnly && errors.Is(err, unix.EROFS) { // fs/ext4/super.c, ext4_load_and_init_journal: "write access unavailable, cannot proceed"
		return "", fault.As(fault.Conflict, &Unclean{Source: m.Source, Name: mountName(m)})
	}
	if err != nil {
		return "", fault.New(fault.Internal, "the file system of %s cannot be mounted: %w", mountName(m), err)
	}
	content := filepath.Join(at, guest.VolumeDir)
	if fi, err := os.Lstat(content); err != nil || !fi.IsDir() {
		return "", fault.New(fault.Conflict, "%s holds no directory %q: it was not made by vch, or was damaged", mountName(m), guest.VolumeDir)
	}
	// A copy-up that was cut off left its part here; the content itself is untouched.
	if !readOnly {
		l.settle(at, dev, sb, label, own)
		if err := os.RemoveAll(content + copySuffix); err != nil {
			return "", err
		}
	}
	l.plug.Lock()
	l.volumes[m.Source] = volume{content: content, readOnly: readOnly}
	l.plug.Unlock()
	return content, nil
}

// isVolume says whether a source is a volume's.
func isVolume(source guest.Source) bool {
	return strings.HasPrefix(source, "label://") || isRemote(source)
}

// fill fills a volume, of which content is all and part what m mounts, from the directory from, if it is empty.
func (l *Linux) fill(ctx context.Context, m guest.MountSpec, from, part, content string) error {
	if isRemote(m.Source) {
		return copyUpShared(ctx, from, part)
	}
	return copyUp(from, part, content+copySuffix)
}

// show has archives show what is mounted for target at a path of the container.
func (l *Linux) show(target, inside string) {
	l.plug.Lock()
	defer l.plug.Unlock()
	l.targets[target] = inside
	l.shown = append(l.shown, inside)
}

// hide undoes show.
func (l *Linux) hide(target string) {
	l.plug.Lock()
	defer l.plug.Unlock()
	inside := l.targets[target]
	delete(l.targets, target)
	l.shown = slices.DeleteFunc(slices.Clone(l.shown), func(at string) bool { return at == inside })
}

func (l *Linux) mountOne(m guest.MountSpec, t target) error {
	// Mounted again: an earlier mount may have covered the directory that was made.
	path, err := resolveIn(rootDir, m.Target)
	if err != nil {
		return fault.New(fault.Invalid, "mount target %s: %w", m.Target, err)
	}
	if err := makeTarget(m, path, t.file); err != nil {
		return err
	}
	inside := strings.TrimPrefix(path, rootDir)
	l.show(m.Target, inside)
	if m.Absent != "" {
		// Its place is kept free, for what is mounted below it, and that nothing is written there.
		l.absent[inside] = m.Target
		return l.mount("tmpfs", path, "tmpfs", unix.MS_NOSUID|unix.MS_NODEV|unix.MS_NOEXEC, "mode=755")
	}
	if m.Source == "tmpfs:" {
		flags, data, err := tmpfsOptions(m.Options)
		if err != nil {
			return err
		}
		if !strings.Contains(data, "mode=") {
			// As runc does: the new root takes the mode of the directory that it covers.
			if fi, err := os.Stat(path); err == nil {
				data += fmt.Sprintf(",mode=%o", unixMode(fi.Mode()))
			}
		}
		if m.ReadOnly {
			flags |= unix.MS_RDONLY
		}
		if err := l.mount("tmpfs", path, "tmpfs", flags, strings.TrimPrefix(data, ",")); err != nil {
			return fault.New(fault.Invalid, "cannot mount tmpfs at %s with %q: %w", m.Target, strings.Join(m.Options, ","), err)
		}
		return nil
	}
	if _, ok := guest.ShareOf(m.Source); ok {
		return l.mountShare(m, path, t)
	}
	if t.content == "" {
		return fault.New(fault.Unsupported, "mount source %q is not known to this tether", m.Source)
	}
	if err := l.mount(t.content, path, "", unix.MS_BIND, ""); err != nil {
		return fault.New(fault.Internal, "cannot mount %s at %s: %w", mountName(m), m.Target, err)
	}
	if m.ReadOnly {
		if err := unix.Mount("", path, "", unix.MS_BIND|unix.MS_REMOUNT|unix.MS_RDONLY, ""); err != nil {
			return fault.New(fault.Internal, "cannot make the mount at %s read-only: %w", m.Target, err)
		}
	}
	return l.remember(m, path)
}

// tmpfsFlags are the words of mount(8) that are flags of mount(2).
var tmpfsFlags = map[string]struct {
	set, clear uintptr
}{
	"ro": {unix.MS_RDONLY, 0}, "rw": {0, unix.MS_RDONLY},
	"noexec": {unix.MS_NOEXEC, 0}, "exec": {0, unix.MS_NOEXEC},
	"nosuid": {unix.MS_NOSUID, 0}, "suid": {0, unix.MS_NOSUID},
	"nodev": {unix.MS_NODEV, 0}, "dev": {0, unix.MS_NODEV},
	"noatime": {unix.MS_NOATIME, 0}, "atime": {0, unix.MS_NOATIME},
	"nodiratime": {unix.MS_NODIRATIME, 0}, "diratime": {0, unix.MS_NODIRATIME},
	"relatime": {unix.MS_RELATIME, 0}, "norelatime": {0, unix.MS_RELATIME},
	"strictatime": {unix.MS_STRICTATIME, 0}, "nostrictatime": {0, unix.MS_STRICTATIME},
	"sync": {unix.MS_SYNCHRONOUS, 0}, "async": {0, unix.MS_SYNCHRONOUS},
}

// tmpfsOptions turns options into flags and data, on top of Docker's defaults.
func tmpfsOptions(options []string) (flags uintptr, data string, err error) {
	flags = unix.MS_NOEXEC | unix.MS_NOSUID | unix.MS_NODEV
	for _, o := range options {
		if o == "" {
			continue
		}
		if f, ok := tmpfsFlags[o]; ok {
			flags = flags&^f.clear | f.set
			continue
		}
		switch key, _, _ := strings.Cut(o, "="); key {
		case "size", "mode", "uid", "gid", "nr_inodes", "nr_blocks", "mpol":
			data += "," + o
		default:
			return 0, "", fault.New(fault.Invalid, "invalid tmpfs option %q", o)
		}
	}
	return flags, data, nil
}

// findDisk waits for the disk with a serial and returns its device.
func (l *Linux) findDisk(ctx context.Context, source guest.Source, what string) (string, error) {
	serial, ok := strings.CutPrefix(source, "disk://")
	if !ok {
		return "", fault.New(fault.Invalid, "%s: %q is not a disk", what, source)
	}
	ctx, cancel := context.WithTimeout(ctx, diskWait)
	defer cancel()
	for {
		// Subscribe before looking, so that a disk that comes in between is not missed.
		news := l.uevents.news()
		// A disk that is just coming has its name before it can be opened (block/genhd.c, device_add_disk); its uevent follows that.
		if dev := l.disk(serial); dev != "" && opens(dev) {
			return dev, l.shut(serial, dev)
		}
		select {
		case <-news:
		case <-ctx.Done():
			return "", fault.New(fault.NotFound, "the disk of %s (serial %s) did not appear in the machine", what, serial)
		}
	}
}

// disk looks for the disk with a serial, in its seat if it has one: its device, or "".
func (l *Linux) disk(serial string) string {
	seat, seated := l.seats[serial]
	switch {
	case seated && seat.Slot != 0:
		return diskInSlot(seat)
	case seated:
		return diskWithSerial(seat.Serial)
	}
	return diskWithSerial(serial)
}

// diskSize is the size in bytes of the disk with a serial, whose device is dev.
func (l *Linux) diskSize(serial, dev string) (int64, error) {
	if seat, ok := l.seats[serial]; ok && seat.Size > 0 {
		return seat.Size, nil
	}
	return deviceSize(dev)
}

// opens reports whether a device is there to be opened.
func opens(dev string) bool {
	f, err := os.Open(dev)
	if err == nil {
		f.Close()
	}
	return !errors.Is(err, unix.ENXIO)
}

// diskWithSerial looks through the disks that are there; "" if none has the serial.
func diskWithSerial(serial string) string {
	disks, _ := os.ReadDir("/sys/block")
	for _, d := range disks {
		name := d.Name()
		dev := "/dev/" + name
		if _, err := os.Stat(dev); err != nil {
			continue
		}
		// SCSI: VPD page 0x80 (SPC-3 7.6.8): 4 bytes of header, then the serial.
		if page, err := os.ReadFile("/sys/block/" + name + "/device/vpd_pg80"); err == nil && len(page) > 4 {
			if strings.TrimSpace(string(bytes.TrimRight(page[4:], "\x00"))) == serial {
				return dev
			}
		} else if s, err := os.ReadFile("/sys/block/" + name + "/serial"); err == nil && strings.TrimSpace(string(s)) == serial {
			return dev
		}
	}
	return ""
}

// mount mounts and remembers it for unmountAll, and a file system on a disk that can be written for settleAll.
func (l *Linux) mount(source, at, fstype string, flags uintptr, data string) error {
	if err := unix.Mount(source, at, fstype, flags, data); err != nil {
		return err
	}
	l.plug.Lock()
	defer l.plug.Unlock()
	l.mounted = append(l.mounted, at)
	if fstype == "ext4" && flags&unix.MS_RDONLY == 0 {
		l.written = append(l.written, at)
	}
	return nil
}

// settleAll writes out every file system on a disk and makes it read-only, which leaves the disk as unmounting does, and takes half the time: the machine ends, and
// what else there is to undo with it. (fs/ext4/super.c, __ext4_remount: the journal is emptied, and the file system marked clean.) After an error some are.
func (l *Linux) settleAll() error {
	errs := make([]error, len(l.written))
	var work sync.WaitGroup
	for i, at := range l.written {
		work.Go(func() {
			if err := unix.Mount("", at, "", unix.MS_REMOUNT|unix.MS_RDONLY, ""); !errors.Is(err, unix.EINVAL) { // not mounted any more
				errs[i] = err
			}
		})
	}
	work.Wait()
	return errors.Join(errs...)
}

// unmountAll takes every mount of the container's back, last first, including those that the container made itself, and syncs.
func (l *Linux) unmountAll() error {
	var errs []error
	// The root goes with whatever the container mounted in it, and what was mounted for it: no process is left that could hold any of that.
	if err := unix.Unmount(rootDir, unix.MNT_DETACH|unix.UMOUNT_NOFOLLOW); err != nil && !errors.Is(err, unix.EINVAL) {
		errs = append(errs, fmt.Errorf("%s: %w", rootDir, err))
	}
	for _, at := range slices.Backward(l.mounted) {
		if at == rootDir || strings.HasPrefix(at, rootDir+"/") {
			continue
		}
		flags := unix.UMOUNT_NOFOLLOW
		if at == sharesDir { // with what its host has mounted below it, which the kernel mounts here by itself
			flags |= unix.MNT_DETACH
		}
		err := unix.Unmount(at, flags)
		if errors.Is(err, unix.EINVAL) {
			err = nil // not mounted any more
		}
		if errors.Is(err, unix.EBUSY) {
			// Somebody still holds it: what was written must be on the disk all the same.
			if f, oerr := os.Open(at); oerr == nil {
				err = unix.Syncfs(int(f.Fd()))
				f.Close()
			}
			err = errors.Join(err, unix.Mount("", at, "", unix.MS_REMOUNT|unix.MS_RDONLY, ""))
		}
		if err != nil {
			errs = append(errs, fmt.Errorf("%s: %w", at, err))
		}
	}
	l.mounted, l.written, l.volumes, l.binds = nil, nil, map[guest.Source]volume{}, map[string]bind{}
	l.mounts, l.shown, l.made, l.targets, l.absent = nil, nil, nil, map[string]string{}, map[string]string{}
	unix.Sync()
	return errors.Join(errs...)
}

// unescape undoes the octal escapes of proc(5) mountinfo.
func unescape(s string) string {
	var b strings.Builder
	for i := 0; i < len(s); i++ {
		if s[i] == '\\' && i+3 < len(s) {
			var n byte
			ok := true
			for _, c := range s[i+1 : i+4] {
				if c < '0' || c > '7' {
					ok = false
					break
				}
				n = n<<3 | byte(c-'0')
			}
			if ok {
				b.WriteByte(n)
				i += 3
				continue
			}
		}
		b.WriteByte(s[i])
	}
	return b.String()
}

// maxLinks is how many symbolic links one path may go through; Linux's own bound (path_resolution(7)).
const maxLinks = 40

// resolveIn gives the path of the machine for path p of the container, following links inside root and never out of it. Components that do not exist are
// taken as they stand.
func resolveIn(root, p string) (string, error) {
	rest := strings.Split(p, "/")
	at := root
	for links := 0; len(rest) > 0; {
		part := rest[0]
		rest = rest[1:]
		switch part {
		case "", ".":
			continue
		case "..":
			if at != root {
				at = filepath.Dir(at)
			}
			continue
		}
		next := filepath.Join(at, part)
		fi, err := os.Lstat(next)
		if err != nil && !errors.Is(err, fs.ErrNotExist) {
			return "", err
		}
		if err == nil && fi.Mode()&fs.ModeSymlink != 0 {
			if links++; links > maxLinks {
				return "", unix.ELOOP
			}
			to, err := os.Readlink(next)
			if err != nil {
				return "", err
			}
			if filepath.IsAbs(to) {
				at = root
			}
			rest = append(strings.Split(to, "/"), rest...)
			continue
		}
		at = next
	}
	return at, nil
}

// unixMode is mode's permission bits with setuid, setgid and sticky where Unix has them.
func unixMode(m fs.FileMode) uint32 {
	mode := uint32(m.Perm())
	if m&fs.ModeSetuid != 0 {
		mode |= unix.S_ISUID
	}
	if m&fs.ModeSetgid != 0 {
		mode |= unix.S_ISGID
	}
	if m&fs.ModeSticky != 0 {
		mode |= unix.S_ISVTX
	}
	return mode
}
