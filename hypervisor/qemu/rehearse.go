package qemu

import (
	"archive/tar"
	"bytes"
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"sync"
	"time"

	"github.com/Microsoft/hcsshim/ext4/tar2ext4"

	"vch/guest"
	"vch/internal/fault"
	"vch/portlayer"
)

// A rehearsal is a container's whole life in a machine that waits for one: its disks come, they are mounted, a process runs and writes, all is unmounted, the disks
// go. What a guest does for the first time is slow: its kernel sets things up, and an emulator translates every piece of code that runs, which is 70 % of the
// time of a start. A template has rehearsed before it is copied; a fork that is kept ready has rehearsed again, since translations are not copied.

// The disks of a rehearsal.
const (
	rehearsalImage = "rehearsal-image"
	rehearsalOwn   = "rehearsal-own"
	rehearsalLabel = "72656865617273616c00000000000000" // portlayer.Label
	rehearsalSize  = 64 * portlayer.MiB
)

// firstRehearsalLUN is beyond the units that a machine's disks begin with. The guest may still be letting go of them when those come.
const firstRehearsalLUN = 250

// rehearsalLimit bounds a rehearsal: a boot is in it.
const rehearsalLimit = 5 * time.Minute

// rehearsalProgram is a static x86-64 ELF program that writes "ok\n" and exits with 0. Its one segment is the file (ELF-64 Object File Format, figures 2 and 6).
var rehearsalProgram = func() []byte {
	const base, start = 0x400000, 0x78
	code := []byte{
		0xb8, 1, 0, 0, 0, // mov eax, 1 (write)
		0xbf, 1, 0, 0, 0, // mov edi, 1
		0x48, 0x8d, 0x35, 16, 0, 0, 0, // lea rsi, [rip+16]
		0xba, 3, 0, 0, 0, // mov edx, 3
		0x0f, 0x05, // syscall
		0xb8, 60, 0, 0, 0, // mov eax, 60 (exit)
		0x31, 0xff, // xor edi, edi
		0x0f, 0x05, // syscall
		'o', 'k', '\n',
	}
	size := uint64(start + len(code))
	le := func(n int, v uint64) []byte {
		b := make([]byte, n)
		for i := range b {
			b[i] = byte(v >> (8 * i))
		}
		return b
	}
	return bytes.Join([][]byte{
		{0x7f, 'E', 'L', 'F', 2, 1, 1, 0, 0, 0, 0, 0, 0, 0, 0, 0},
		le(2, 2), le(2, 62), le(4, 1), le(8, base+start), le(8, 64), le(8, 0), le(4, 0), le(2, 64), le(2, 56), le(2, 1), le(2, 0), le(2, 0), le(2, 0),
		le(4, 1), le(4, 5), le(8, 0), le(8, base), le(8, base), le(8, size), le(8, size), le(8, 0x1000),
		code,
	}, nil)
}()

// rehearsalDisk makes the disk of an image that holds the program, once.
var rehearsalDisk = sync.OnceValues(func() ([]byte, error) {
	var image bytes.Buffer
	w := tar.NewWriter(&image)
	for _, dir := range []string{"etc/", "data/", "dev/", "proc/", "sys/"} {
		if err := w.WriteHeader(&tar.Header{Name: dir, Typeflag: tar.TypeDir, Mode: 0o755}); err != nil {
			return nil, err
		}
	}
	files := map[string][]byte{"true": rehearsalProgram, "etc/passwd": []byte("root:x:0:0:root:/:/true\n"), "etc/group": []byte("root:x:0:\n")}
	for name, content := range files {
		if err := w.WriteHeader(&tar.Header{Name: name, Typeflag: tar.TypeReg, Mode: 0o755, Size: int64(len(content))}); err != nil {
			return nil, err
		}
		if _, err := w.Write(content); err != nil {
			return nil, err
		}
	}
	if err := w.Close(); err != nil {
		return nil, err
	}
	raw, err := memfd("vch-rehearsal", 0)
	if err != nil {
		return nil, err
	}
	defer raw.Close()
	if err := tar2ext4.ConvertTarToExt4(&image, raw); err != nil {
		return nil, err
	}
	return os.ReadFile(fmt.Sprintf("/proc/self/fd/%d", raw.Fd()))
})

// rehearse has the machine of p go through a rehearsal. A fork (stopped) is made to run for it. Afterwards the machine runs, and has come to rest.
func (h *Hypervisor) rehearse(ctx context.Context, p *process, q *qmp, fork bool) (err error) {
	defer func() { err = fault.Wrap("rehearse a start", "", err) }()
	ctx, cancel := context.WithTimeout(ctx, rehearsalLimit)
	defer cancel()
	drives, err := h.rehearsalDrives(ctx, p.home())
	if err != nil {
		return err
	}
	defer func() {
		for _, d := range drives {
			err = errors.Join(err, os.Remove(d.file))
		}
	}()
	var client *guest.Client
	if !fork {
		if client, err = p.talk(ctx); err != nil {
			return err
		}
		defer client.Close()
	}
	for _, d := range drives {
		if err := d.plug(ctx, q); err != nil {
			return err
		}
	}
	if fork {
		if err := q.call(ctx, "cont", nil, nil); err != nil {
			return err
		}
		if client, err = p.talk(ctx); err != nil {
			return err
		}
		defer client.Close()
	}
	if err := actOut(ctx, client); err != nil {
		return err
	}
	if err := client.Reset(ctx); err != nil {
		return err
	}
	client.Close()
	for _, d := range drives {
		if err := d.unplug(ctx, q); err != nil {
			return err
		}
	}
	return p.rest(ctx)
}

// rehearsalDrives makes the disks of a rehearsal in dir.
func (h *Hypervisor) rehearsalDrives(ctx context.Context, dir string) (drives []drive, err error) {
	image, err := rehearsalDisk()
	if err != nil {
		return nil, err
	}
	uuid, err := labelUUID(rehearsalLabel)
	if err != nil {
		return nil, err
	}
	for i, serial := range []string{rehearsalImage, rehearsalOwn, rehearsalLabel} {
		d := drive{serial: serial, lun: firstRehearsalLUN + i, file: filepath.Join(dir, serial+".img"), readOnly: serial == rehearsalImage}
		drives = append(drives, d)
		switch serial {
		case rehearsalImage:
			err = os.WriteFile(d.file, image, 0o600)
		case rehearsalOwn:
			err = h.disks.pour(ctx, d.file, rehearsalSize, "", "", "")
		default:
			err = h.disks.pour(ctx, d.file, rehearsalSize, rehearsalLabel[:16], uuid, guest.VolumeDir)
		}
		if err != nil {
			return nil, noRoom(kindOf(err), dir)
		}
	}
	return drives, nil
}

// talk says hello to the tether.
func (p *process) talk(ctx context.Context) (*guest.Client, error) {
	conn, err := p.connect(ctx)
	if err != nil {
		return nil, err
	}
	stop := context.AfterFunc(ctx, func() { conn.Close() })
	defer stop()
	ended := make(chan struct{})
	defer close(ended)
	go func() {
		select {
		case <-p.ended:
			conn.Close()
		case <-ended:
		}
	}()
	return guest.Connect(ctx, conn)
}

// actOut runs the program of a rehearsal as a container's process.
func actOut(ctx context.Context, client *guest.Client) error {
	var entropy [64]byte
	rand.Read(entropy[:])
	cfg := guest.ExecutorConfig{
		ID: "rehearsal", Hostname: "rehearsal", Rehearsal: true, Clock: time.Now(), Entropy: entropy[:],
		Root:   guest.Root{Image: "disk://" + rehearsalImage, Writable: "disk://" + rehearsalOwn},
		Mounts: []guest.MountSpec{{Source: "label://" + rehearsalLabel, Target: "/data", Copy: true, Name: "rehearsal"}},
		Files:  []guest.File{{Path: "/etc/hostname", Content: []byte("rehearsal\n"), Mode: 0o644}, {Path: "/etc/hosts", Content: []byte("127.0.0.1\tlocalhost\n"), Mode: 0o644}, {Path: "/etc/resolv.conf", Mode: 0o644}},
		Memory: int64(rehearsalSize), CPUs: 1e9,
		Process: &guest.Process{Args: []string{"true"}, Env: []string{"PATH=/"}, Cwd: "/", Capabilities: []string{"CAP_CHOWN", "CAP_KILL"}},
	}
	if _, err := client.Configure(ctx, cfg); err != nil {
		return err
	}
	var said []byte
	if err := client.Output(ctx, 0, func(f guest.Frame) error { said = append(said, f.Data...); return nil }); err != nil {
		return err
	}
	var last guest.Status
	if err := client.Watch(ctx, func(st guest.Status) bool { last = st; return st.Phase != guest.Exited }); err != nil {
		return err
	}
	if string(said) != "ok\n" || last.Exit.Code != 0 || last.Error != nil {
		return fault.New(fault.Internal, "its process said %q and exited with %d (%v)", said, last.Exit.Code, last.Error)
	}
	return nil
}

// A machine is at rest when its processors have used less than restless in each of so many looks, one every restLook: the timers of an idle kernel take a tenth of that.
const (
	restLook  = 25 * time.Millisecond
	restLooks = 6
	restless  = 2 * time.Millisecond
)

// rest waits until the guest does nothing. That it does, or the host is too busy to say, is no error: a machine may be stopped at any time.
func (p *process) rest(ctx context.Context) error {
	look := time.NewTicker(restLook)
	defer look.Stop()
	limit := time.NewTimer(5 * time.Second)
	defer limit.Stop()
	last := p.used()
	for calm := 0; calm < restLooks; {
		select {
		case <-look.C:
		case <-limit.C:
			return nil
		case <-p.ended:
			return refusal("QEMU ended", p.words())
		case <-ctx.Done():
			return ctx.Err()
		}
		now := p.used()
		if calm++; now-last > restless {
			calm = 0
		}
		last = now
	}
	return nil
}

// used is the processor time that all threads of the process have had (kernel Documentation/scheduler/sched-stats.rst, /proc/<pid>/schedstat).
func (p *process) used() (sum time.Duration) {
	for _, tid := range p.threads() {
		var ns time.Duration
		_, _ = fmt.Sscan(readFile(fmt.Sprintf("/proc/%d/task/%d/schedstat", p.pid, tid)), &ns)
		sum += ns
	}
	return sum
}

// threads are the ids of the process's threads.
func (p *process) threads() (ids []int) {
	tasks, _ := os.ReadDir(fmt.Sprintf("/proc/%d/task", p.pid))
	for _, t := range tasks {
		if id, err := strconv.Atoi(t.Name()); err == nil {
			ids = append(ids, id)
		}
	}
	return ids
}
