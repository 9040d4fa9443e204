package qemu

import (
	"bytes"
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"golang.org/x/sys/unix"
	"pgregory.net/rapid"

	"vch/guest"
	"vch/hypervisor/hypertest"
	"vch/internal/fault"
	"vch/portlayer"
)

// forking is a Hypervisor of which machines of suiteMemory are forks, and its log.
func forking(t *testing.T, dir, cache string, tether []byte, warm int) (sure, *lines) {
	t.Helper()
	log := &lines{}
	h, err := New(t.Context(), Options{StateDir: dir, Tether: tether, Accel: "tcg", Cache: cache, Template: true, Warm: warm, Log: slog.New(slog.NewTextHandler(log, nil))})
	if err != nil {
		t.Fatal(err)
	}
	return sure{h, t, "-incoming"}, log
}

// lines is a log that can be looked at.
type lines struct {
	mu   sync.Mutex // guards below
	text bytes.Buffer
}

func (l *lines) Write(p []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.text.Write(p)
}

func (l *lines) count(part string) int {
	l.mu.Lock()
	defer l.mu.Unlock()
	return strings.Count(l.text.String(), part)
}

func closed(t *testing.T, h sure) {
	t.Helper()
	if err := h.Close(); err != nil {
		t.Error(err)
	}
	if left := processes(h.poolRoot()); len(left) > 0 {
		t.Errorf("processes left of the pool: %v", left)
	}
}

var suiteShape = definition{Memory: suiteMemory, CPUs: 1}

// ran runs a shell's script in a machine of its own and gives what it said.
func (h sure) ran(ctx context.Context, image portlayer.DiskPath, id, script string) (string, error) {
	m, err := h.Hypervisor.Define(ctx, portlayer.MachineSpec{ID: portlayer.ContainerID(id), Memory: suiteMemory, CPUs: 1, Devices: []portlayer.DeviceChange{
		{Op: portlayer.Add, Disk: portlayer.Disk{Serial: "image", File: image, ReadOnly: true}}, {Op: portlayer.Add, Disk: portlayer.Disk{Serial: "own", Size: 64 * portlayer.MiB}}}})
	if err != nil {
		return "", err
	}
	said, err := h.speak(ctx, m, id, script)
	return said, errors.Join(err, m.Undefine(context.WithoutCancel(ctx)))
}

func (h sure) speak(ctx context.Context, m portlayer.Machine, id, script string) (string, error) {
	if err := m.PowerOn(ctx); err != nil {
		return "", err
	}
	conn, err := m.Channel(ctx)
	if err != nil {
		return "", err
	}
	c, err := guest.Connect(ctx, conn)
	if err != nil {
		return "", err
	}
	defer c.Close()
	cfg := guest.ExecutorConfig{ID: id, Hostname: id, Seats: m.Seats(), Root: guest.Root{Image: "disk://image", Writable: "disk://own"}, Clock: time.Now(), Entropy: make([]byte, 64),
		Process: &guest.Process{Args: []string{"sh", "-c", script}, Capabilities: []string{"CAP_SYS_ADMIN"}}}
	rand.Read(cfg.Entropy)
	if _, err := c.Configure(ctx, cfg); err != nil {
		return "", err
	}
	var said []byte
	_, err = c.Output(ctx, 0, func(f guest.Frame) error { said = append(said, f.Data...); return nil })
	return string(said), err
}

// What a machine has that no other may have, one a line. The address where the kernel put the process's random bytes tells of its address layout (getauxval(3), AT_RANDOM is 25).
const identity = `busybox od -An -v -tx1 -N32 /dev/urandom | busybox tr -d ' \n'; echo
cat /proc/sys/kernel/random/boot_id /proc/sys/kernel/random/uuid
busybox od -An -v -tx8 -w16 /proc/self/auxv | busybox grep '^ 0000000000000019'
busybox hostname
busybox date +%s
busybox ls /sys/class/net
cat /sys/class/dmi/id/product_uuid 2>/dev/null || echo none`

// kept is a Hypervisor that keeps warm machines of suiteShape ready, and an image.
func kept(t *testing.T, warm int) (context.Context, sure, portlayer.DiskPath) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 10*time.Minute)
	t.Cleanup(cancel)
	dir := t.TempDir()
	h, _ := forking(t, dir, "", hypertest.Tether(t), warm)
	t.Cleanup(func() { closed(t, h) })
	image := hypertest.Busybox(t, h.Hypervisor, portlayer.DiskPath(dir))
	h.awaitWay(ctx, h.shape(suiteShape))
	return ctx, h, image
}

// Fifty forks, half of them from the pool, have nothing in common that only one may have.
func TestForksDiffer(t *testing.T) {
	if testing.Short() {
		t.Skip("runs QEMU")
	}
	ctx, h, image := kept(t, 2)
	time.Sleep(2 * time.Second) // that the clock of those that wait is wrong by
	const forks, atOnce = 50, 4
	var (
		mu   sync.Mutex // guards said
		said = map[string]string{}
		work sync.WaitGroup
		slot = make(chan struct{}, atOnce)
	)
	for i := range forks {
		work.Go(func() {
			slot <- struct{}{}
			defer func() { <-slot }()
			id := fmt.Sprintf("fork-%d", i)
			text, err := h.ran(ctx, image, id, identity)
			if err != nil {
				t.Errorf("%s: %v", id, err)
			}
			mu.Lock()
			said[id] = text
			mu.Unlock()
			now := time.Now().Unix()
			f := strings.Split(strings.TrimSpace(text), "\n")
			if len(f) != 8 {
				t.Errorf("%s said %q", id, text)
				return
			}
			if clock, err := strconv.ParseInt(f[5], 10, 64); err != nil || clock < now-60 || clock > now+1 {
				t.Errorf("%s: its clock says %s at %d", id, f[5], now)
			}
			if f[4] != id || f[6] != "lo" {
				t.Errorf("%s: host name %q, network %q", id, f[4], f[6])
			}
		})
	}
	work.Wait()
	for what, name := range []string{"random bytes", "boot id", "random UUID", "address of its random bytes"} {
		had := map[string]string{}
		for id, text := range said {
			f := strings.Split(text, "\n")
			if len(f) <= what || f[what] == "" {
				continue // was told above
			}
			if other := had[f[what]]; other != "" {
				t.Errorf("%s and %s have the same %s: %s", id, other, name, f[what])
			}
			had[f[what]] = id
		}
	}
}

// A template that was damaged on disk is found out, said once, and made anew; machines run all the same. One that is whole is read again, and one whose key
// fits no more is left until nobody has used it for a day.
func TestTemplateOnDisk(t *testing.T) {
	if testing.Short() {
		t.Skip("runs QEMU")
	}
	ctx, cancel := context.WithTimeout(t.Context(), 10*time.Minute)
	defer cancel()
	tether, cache := hypertest.Tether(t), t.TempDir()
	var key string
	use := func(t *testing.T, tether []byte, read, made, broken int) {
		t.Helper()
		dir := t.TempDir()
		h, log := forking(t, dir, cache, tether, 0)
		defer closed(t, h)
		s := h.shape(suiteShape)
		h.Expect(portlayer.MachineSpec{Memory: suiteMemory, CPUs: 1})
		image := hypertest.Busybox(t, h.Hypervisor, portlayer.DiskPath(dir))
		// At once, as it comes: booted while there is no template.
		if said, err := h.ran(ctx, image, "first", "echo one"); err != nil || said != "one\n" {
			t.Errorf("first: %q, %v", said, err)
		}
		h.awaitWay(ctx, s)
		if said, err := h.ran(ctx, image, "second", "echo two"); err != nil || said != "two\n" {
			t.Errorf("second: %q, %v", said, err)
		}
		for text, n := range map[string]int{"template read": read, "template made": made, "a template is of no use": broken} {
			if got := log.count(text); got != n {
				t.Errorf("the log says %q %d times, not %d:\n%s", text, got, n, log.text.String())
			}
		}
		key = s.key
	}
	use(t, tether, 0, 1, 0)
	use(t, tether, 1, 0, 0)
	for _, c := range []struct {
		name string
		hurt func(dir string) error
	}{
		{"a byte of the memory is another", func(dir string) error { return flip(filepath.Join(dir, templateMemory), 1<<20) }},
		{"the memory ends early", func(dir string) error { return os.Truncate(filepath.Join(dir, templateMemory), 3<<20) }},
		{"a byte of the state is another", func(dir string) error { return flip(filepath.Join(dir, templateState), 1000) }},
		{"the state is gone", func(dir string) error { return os.Remove(filepath.Join(dir, templateState)) }},
		{"nothing says what it is", func(dir string) error { return os.Truncate(filepath.Join(dir, templateAbout), 0) }},
	} {
		t.Run(c.name, func(t *testing.T) {
			if err := c.hurt(filepath.Join(cache, templatesDir, key)); err != nil {
				t.Fatal(err)
			}
			use(t, tether, 0, 1, 1)
		})
	}
	old := key
	use(t, append(bytes.Clone(tether), 0), 0, 1, 0) // another initramfs, as after an upgrade
	if key == old {
		t.Error("another tether has the same template")
	}
	// Two of them on one cache: what one uses the other does not drop.
	a, _ := forking(t, t.TempDir(), cache, tether, 0)
	defer closed(t, a)
	a.awaitWay(ctx, a.shape(suiteShape))
	b, _ := forking(t, t.TempDir(), cache, tether, 0)
	defer closed(t, b)
	b.awaitWay(ctx, b.shape(suiteShape))
	if err := b.shelf.tidy(ctx, time.Now().Add(2*unusedFor)); err != nil {
		t.Error(err)
	}
	if left, err := Templates(ctx, cache); err != nil || len(left) != 1 || left[0].Key != old || !left[0].InUse {
		t.Errorf("after two days there are %+v, %v; %s is used", left, err, old)
	}
	if err := DropTemplate(ctx, cache, old); !fault.Is(err, fault.InUse) {
		t.Errorf("drop a template that is used: %v", err)
	}
}

func flip(file string, at int64) error {
	f, err := os.OpenFile(file, os.O_RDWR, 0)
	if err != nil {
		return err
	}
	var b [1]byte
	_, err = f.ReadAt(b[:], at)
	if err == nil {
		b[0] ^= 1
		_, err = f.WriteAt(b[:], at)
	}
	return errors.Join(err, f.Close())
}

// A full disk keeps a template from being kept, and nothing else.
func TestTemplateWithoutRoom(t *testing.T) {
	if testing.Short() {
		t.Skip("runs QEMU")
	}
	if os.Geteuid() != 0 {
		t.Skip("mounts a small file system")
	}
	ctx, cancel := context.WithTimeout(t.Context(), 5*time.Minute)
	defer cancel()
	cache, dir := t.TempDir(), t.TempDir()
	templates := filepath.Join(cache, templatesDir)
	if err := os.Mkdir(templates, 0o700); err != nil {
		t.Fatal(err)
	}
	if err := unix.Mount("tmpfs", templates, "tmpfs", 0, "size=8m"); err != nil {
		t.Fatal(err)
	}
	defer func() { _ = unix.Unmount(templates, unix.MNT_DETACH) }()
	h, log := forking(t, dir, cache, hypertest.Tether(t), 0)
	defer closed(t, h)
	h.awaitWay(ctx, h.shape(suiteShape))
	said, err := h.ran(ctx, hypertest.Busybox(t, h.Hypervisor, portlayer.DiskPath(dir)), "full", "echo works")
	if err != nil || said != "works\n" {
		t.Errorf("%q, %v", said, err)
	}
	if n := log.count("cannot be kept on disk"); n != 1 {
		t.Errorf("it was said %d times:\n%s", n, log.text.String())
	}
	if left, _ := os.ReadDir(templates); len(left) > 0 {
		t.Errorf("left behind: %v", left)
	}
}

// What is kept ready may be killed by anybody, and given back at any time; a start does not fail for that.
func TestPoolLosesForks(t *testing.T) {
	if testing.Short() {
		t.Skip("runs QEMU")
	}
	ctx, h, image := kept(t, 2)
	for _, was := range processes(h.poolRoot()) {
		if err := unix.Kill(was.pid, unix.SIGKILL); err != nil {
			t.Error(err)
		}
	}
	if said, err := h.ran(ctx, image, "bereft", "echo works"); err != nil || said != "works\n" {
		t.Errorf("%q, %v", said, err)
	}
	h.awaitWay(ctx, h.shape(suiteShape))
	h.pool.giveBack()
	if left := processes(h.poolRoot()); len(left) > 0 {
		t.Errorf("given back, and there are %v", left)
	}
	if said, err := h.ran(ctx, image, "poor", "echo works"); err != nil || said != "works\n" {
		t.Errorf("%q, %v", said, err)
	}
}

func TestPlenty(t *testing.T) {
	const total = "MemTotal:       16000000 kB\nMemFree:          100000 kB\n"
	for text, want := range map[string]bool{total + "MemAvailable:    2000000 kB\n": true, total + "MemAvailable:    1999999 kB\n": false, total: false} {
		if plenty(text) != want {
			t.Errorf("plenty is %v for\n%s", !want, text)
		}
	}
}

func TestClass(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		m := portlayer.Bytes(rapid.Int64Range(16<<20, 1<<40).Draw(t, "memory"))
		c := class(m)
		if c < m || c > m+m/4+portlayer.MiB || class(c) != c || c%portlayer.MiB != 0 {
			t.Fatalf("class(%d) is %d", m, c)
		}
	})
}

// What comes into the seat of a fork is held before the fork goes on: of two that come at once with the same disk, one does not get it.
func TestSeatHoldsItsDisk(t *testing.T) {
	if testing.Short() {
		t.Skip("runs QEMU")
	}
	ctx, h, _ := kept(t, 0)
	s := h.shape(suiteShape)
	file := filepath.Join(t.TempDir(), "disk")
	if err := errors.Join(os.WriteFile(file, nil, 0o600), os.Truncate(file, 1<<20)); err != nil {
		t.Fatal(err)
	}
	template := h.shelf.find(ctx, s)
	if template == nil {
		t.Fatal("no template")
	}
	defer h.shelf.release(template)
	plug := func(name string, readOnly bool) error {
		dir := filepath.Join(h.poolRoot(), name)
		if err := os.Mkdir(dir, 0o700); err != nil {
			t.Fatal(err)
		}
		s.name = processName(name)
		p, q, err := h.fork(ctx, dir, s, template)
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() {
			q.Close()
			h.end(p)
		})
		d := drive{serial: name, seat: volumeSeat, file: file, readOnly: readOnly}
		if readOnly {
			d.seat = readableSeat
		}
		d.lun = seatLUN(d.seat)
		return d.plug(ctx, q)
	}
	if err := plug("first", false); err != nil {
		t.Fatal(err)
	}
	for name, readOnly := range map[string]bool{"writer": false, "reader": true} {
		if err := plug(name, readOnly); !fault.Is(err, fault.InUse) {
			t.Errorf("%s beside a writer: %v", name, err)
		}
	}
}
