package qemu

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"os"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"vch/guest"
	"vch/hypervisor/hypertest"
	"vch/internal/qmp"
	"vch/portlayer"
)

// An fsync in a container is a FLUSH of its disk, and QEMU answers that after it wrote the disk's file out: on a volume that was there at the start, on one that was
// plugged, and on the container's own disk. The proof is in two parts: QEMU's count of flushes, one for each fsync at least; and the file's pages in the host's page
// cache, which are dirty after a write that nobody flushed and clean after an fsync of a block beside it. With cache.no-flush=on the counts are the same and the
// pages stay dirty. And what is deleted goes back to the host, from each of the three.
func TestDurable(t *testing.T) {
	if testing.Short() {
		t.Skip("runs QEMU")
	}
	for _, way := range []string{"booted", "forked"} {
		t.Run(way, func(t *testing.T) { durable(t, newRig(t, way == "forked")) })
	}
}

func durable(t *testing.T, r *rig) {
	t.Helper()
	for _, d := range []struct{ name, at, file string }{
		{"there at the start", "/data", r.extents["data"]},
		{"plugged", "/late", r.extents["late"]},
		{"the container's own", "", r.own},
	} {
		t.Run(d.name, func(t *testing.T) {
			r.fsync(t, d.at, d.file)
			r.discard(t, d.at, d.file)
		})
	}
	var nodes []struct {
		Name  string `json:"node-name"`
		File  string `json:"file"`
		Cache struct {
			NoFlush bool `json:"no-flush"`
		} `json:"cache"`
	}
	r.call(t, "query-named-block-nodes", &nodes)
	for _, n := range nodes {
		if n.Cache.NoFlush {
			t.Errorf("node %s (%s) ignores flushes", n.Name, n.File)
		}
	}
	if len(nodes) < 8 { // four disks, a format and a file each
		t.Errorf("QEMU has %d block nodes", len(nodes))
	}
}

// rig is a running container VM with a volume at /data, and one that was plugged at /late.
type rig struct {
	m       *machine
	c       *guest.Client
	own     string // the own disk's file
	extents map[string]string
}

// rigLimit bounds what the rig waits for.
const rigLimit = 3 * time.Minute

func newRig(t *testing.T, fork bool) *rig {
	t.Helper()
	dir := t.TempDir()
	ctx, cancel := context.WithTimeout(t.Context(), rigLimit)
	t.Cleanup(cancel)
	h, err := New(ctx, Options{StateDir: dir, Tether: hypertest.Tether(t), Accel: "tcg", Template: fork})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := h.Close(); err != nil {
			t.Error(err)
		}
	})
	const own = "own"
	r := &rig{extents: map[string]string{}}
	labels := map[string]portlayer.Label{"data": "000000000000000000000000000000da", "late": "000000000000000000000000000001a7"}
	change := func(name string) portlayer.DeviceChange {
		p := h.Disks().Join(portlayer.DiskPath(dir), name+".vmdk")
		if err := h.Disks().Create(ctx, p, portlayer.DiskSpec{Size: 128 * portlayer.MiB, Label: labels[name]}); err != nil {
			t.Fatal(err)
		}
		r.extents[name] = strings.TrimSuffix(string(p), ".vmdk") + "-flat.vmdk"
		return portlayer.DeviceChange{Op: portlayer.Add, Disk: portlayer.Disk{Serial: string(labels[name]), File: p}}
	}
	mount := func(name string) guest.MountSpec {
		return guest.MountSpec{Source: "label://" + string(labels[name]), Target: "/" + name, Name: name}
	}
	made, err := h.Define(ctx, portlayer.MachineSpec{ID: "durable", Memory: suiteMemory, CPUs: 1, Devices: []portlayer.DeviceChange{
		{Op: portlayer.Add, Disk: portlayer.Disk{Serial: "image", File: hypertest.Busybox(t, h, portlayer.DiskPath(dir)), ReadOnly: true}},
		{Op: portlayer.Add, Disk: portlayer.Disk{Serial: own, Size: 128 * portlayer.MiB}}, change("data")}})
	if err != nil {
		t.Fatal(err)
	}
	r.m = made.(*machine)
	r.own = r.m.ownDisk(portlayer.Disk{Serial: own})
	t.Cleanup(func() {
		if err := r.m.Undefine(context.Background()); err != nil {
			t.Error(err)
		}
	})
	if fork {
		sure{h, t, "-incoming"}.awaitWay(ctx, h.shape(definition{Memory: suiteMemory, CPUs: 1}))
	}
	if err := r.m.PowerOn(ctx); err != nil {
		t.Fatal(err)
	}
	conn, err := r.m.Channel(ctx)
	if err != nil {
		t.Fatal(err)
	}
	if r.c, err = guest.Connect(ctx, conn); err != nil {
		t.Fatalf("%v; the machine said: %s", err, r.m.Diagnosis())
	}
	t.Cleanup(func() { r.c.Close() })
	cfg := guest.ExecutorConfig{ID: "durable", Hostname: "durable", Root: guest.Root{Image: "disk://image", Writable: "disk://" + own}, Mounts: []guest.MountSpec{mount("data")},
		Process: &guest.Process{Args: []string{"sh", "-c", "cat"}, Stdin: true}, Clock: time.Now(), Entropy: make([]byte, 64)}
	_, _ = rand.Read(cfg.Entropy)
	cfg.Seats = r.m.Seats()
	if _, err := r.c.Configure(ctx, cfg); err != nil {
		t.Fatal(err)
	}
	if err := r.m.Reconfigure(ctx, []portlayer.DeviceChange{change("late")}); err != nil {
		t.Fatal(err)
	}
	if err := r.c.Mount(ctx, mount("late")); err != nil {
		t.Fatal(err)
	}
	return r
}

// sh runs a script in the container.
func (r *rig) sh(t *testing.T, script string) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), rigLimit)
	defer cancel()
	var said strings.Builder
	exit, err := r.c.Exec(ctx, "exec", guest.Process{Args: []string{"sh", "-e", "-c", script}, Cwd: "/"}, nil, func(int) {}, func(_ guest.Stream, data []byte) error {
		said.Write(data)
		return nil
	})
	if err != nil || exit.Code != 0 {
		t.Fatalf("%s: %+v, %v: %s", script, exit, err, &said)
	}
}

// call asks QEMU.
func (r *rig) call(t *testing.T, command string, out any) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), rigLimit)
	defer cancel()
	conn, err := dial(ctx, r.m.process().home(), qmpSocket)
	if err != nil {
		t.Fatal(err)
	}
	q, err := qmp.Connect(ctx, conn)
	if err != nil {
		t.Fatal(err)
	}
	defer q.Close()
	if err := q.Call(ctx, command, nil, out); err != nil {
		t.Fatal(err)
	}
}

// flushes is how many FLUSHes the disks got, together (QAPI BlockDeviceStats).
func (r *rig) flushes(t *testing.T) (n int) {
	t.Helper()
	var all []struct {
		Stats struct {
			Flushes int `json:"flush_operations"`
		} `json:"stats"`
	}
	r.call(t, "query-blockstats", &all)
	for _, d := range all {
		n += d.Stats.Flushes
	}
	return n
}

// fsync checks the disk of the directory at, whose file is file.
func (r *rig) fsync(t *testing.T, at, file string) {
	t.Helper()
	const times = 20
	before := r.flushes(t)
	r.sh(t, fmt.Sprintf("for i in $(busybox seq %d); do busybox dd if=/dev/zero of=%s/f bs=4k count=1 conv=fsync,notrunc 2>/dev/null; done", times, at))
	if n := r.flushes(t) - before; n < times {
		t.Errorf("%d fsyncs were %d flushes", times, n)
	}
	const written = 256 // pages
	var dirty uint64
	for range 5 { // the host writes out by itself now and then
		r.sh(t, fmt.Sprintf("busybox dd if=/dev/zero of=%s/f bs=64k count=16 oflag=direct conv=notrunc 2>/dev/null", at))
		var known bool
		if dirty, known = unwritten(t, file); !known {
			return
		}
		if dirty >= written/2 {
			break
		}
	}
	if dirty < written/2 {
		t.Fatalf("%d pages that nobody flushed are not dirty on the host: this test looks for the wrong thing", written)
	}
	r.sh(t, fmt.Sprintf("busybox dd if=/dev/zero of=%s/f bs=4k count=1 conv=fsync,notrunc 2>/dev/null", at))
	if still, _ := unwritten(t, file); still > written/8 { // the guest's kernel may have written something of its own since
		t.Errorf("after an fsync in the container %d pages of %s are not on the host's disk; before it were %d", still, file, dirty)
	}
}

// unwritten is how many pages of the file the host has still to write to its disk (cachestat(2), Linux 6.5). A kernel or a file system that does not tell is logged.
func unwritten(t *testing.T, file string) (pages uint64, known bool) {
	t.Helper()
	f, err := os.Open(file)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	var fs unix.Statfs_t
	if err := unix.Fstatfs(int(f.Fd()), &fs); err != nil {
		t.Fatal(err)
	}
	var c unix.Cachestat_t
	err = unix.Cachestat(uint(f.Fd()), &unix.CachestatRange{}, &c, 0)
	if errors.Is(err, unix.ENOSYS) || fs.Type == unix.TMPFS_MAGIC {
		t.Log("this host does not tell which pages of a file are dirty: only QEMU's flushes are counted")
		return 0, false
	}
	if err != nil {
		t.Fatal(err)
	}
	return c.Dirty + c.Writeback, true
}

// discard checks that a file that is deleted gives its room back.
func (r *rig) discard(t *testing.T, at, file string) {
	t.Helper()
	const size = 48 << 20
	blocks := func() int64 {
		t.Helper()
		var st unix.Stat_t
		if err := unix.Stat(file, &st); err != nil {
			t.Fatal(err)
		}
		return st.Blocks * 512
	}
	r.sh(t, fmt.Sprintf("busybox dd if=/dev/urandom of=%s/big bs=1M count=%d 2>/dev/null; busybox sync", at, size>>20))
	full := blocks()
	if full < size {
		t.Fatalf("%s has %d bytes of the host's disk with %d in it", file, full, size)
	}
	r.sh(t, fmt.Sprintf("busybox rm %s/big; busybox sync", at))
	// The guest discards after the commit that frees the blocks (fs/ext4/mballoc.c, ext4_process_freed_data).
	limit := time.Now().Add(time.Minute)
	for blocks() > full-size*9/10 {
		if time.Now().After(limit) {
			t.Errorf("a minute after %d bytes were deleted %s still has %d of %d", size, file, blocks(), full)
			return
		}
		time.Sleep(50 * time.Millisecond)
	}
}
