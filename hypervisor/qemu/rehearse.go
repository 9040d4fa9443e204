package qemu

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"time"

	"vch/guest"
	"vch/internal/fault"
	"vch/internal/qmp"
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

	rehearsalImageSize = 8 * portlayer.MiB
)

// rehearsalLimit bounds a rehearsal: a boot is in it.
const rehearsalLimit = 5 * time.Minute

// writeRehearsalImage makes the disk of an image that holds the program, as a link that leads to it: both are looked up and read as a user's are.
func (d Disks) writeRehearsalImage(ctx context.Context, file string) (err error) {
	root, err := os.MkdirTemp(filepath.Dir(file), "image-")
	if err != nil {
		return kindOf(err)
	}
	defer func() { err = errors.Join(err, os.RemoveAll(root)) }()
	for _, dir := range []string{"bin", "etc", "data", "dev", "proc", "sys"} {
		if err := os.Mkdir(filepath.Join(root, dir), 0o755); err != nil {
			return kindOf(err)
		}
	}
	for name, content := range map[string][]byte{"bin/program": rehearsalProgram(), "etc/passwd": []byte("root:x:0:0:root:/:/bin/true\n"), "etc/group": []byte("root:x:0:\n")} {
		if err := os.WriteFile(filepath.Join(root, name), content, 0o755); err != nil {
			return kindOf(err)
		}
	}
	if err := os.Symlink("program", filepath.Join(root, "bin/true")); err != nil {
		return kindOf(err)
	}
	if err := os.WriteFile(file, nil, 0o600); err != nil {
		return kindOf(err)
	}
	if err := os.Truncate(file, int64(rehearsalImageSize)); err != nil {
		return kindOf(err)
	}
	return kindOf(d.ext4.FromDir(ctx, file, root))
}

// rehearse has the machine of p go through a rehearsal. A fork (stopped) is made to run for it. Afterwards the machine runs, and has come to rest.
func (h *Hypervisor) rehearse(ctx context.Context, p *process, q *qmp.Client, fork bool) (err error) {
	defer func() { err = fault.Wrap("rehearse a start", "", err) }()
	ctx, cancel := context.WithTimeout(ctx, rehearsalLimit)
	defer cancel()
	disks, err := h.rehearsalDrives(ctx, p.home())
	if err != nil {
		return err
	}
	defer func() {
		for _, d := range disks {
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
	for _, d := range disks {
		if err := d.plug(ctx, q); err != nil {
			return err
		}
	}
	if fork {
		if err := q.Call(ctx, "cont", nil, nil); err != nil {
			return err
		}
		if client, err = p.talk(ctx); err != nil {
			return err
		}
		defer client.Close()
	}
	if err := actOut(ctx, client, disks.seats()); err != nil {
		return err
	}
	if err := client.Reset(ctx); err != nil {
		return err
	}
	client.Close()
	for _, d := range disks {
		if err := d.unplug(ctx, q); err != nil {
			return err
		}
	}
	return p.rest(ctx)
}

// rehearsalDrives makes the disks of a rehearsal in dir.
func (h *Hypervisor) rehearsalDrives(ctx context.Context, dir string) (all drives, err error) {
	uuid, err := labelUUID(rehearsalLabel)
	if err != nil {
		return nil, err
	}
	make := []struct {
		drive
		fill func(file string) error
	}{
		{drive{serial: rehearsalImage, seat: imageSeat, readOnly: true, size: rehearsalImageSize}, func(file string) error { return h.disks.writeRehearsalImage(ctx, file) }},
		{drive{serial: rehearsalOwn, seat: ownSeat, size: rehearsalSize}, func(file string) error { return h.disks.pour(ctx, file, rehearsalSize, "", "", "") }},
		{drive{serial: rehearsalLabel, seat: volumeSeat, size: rehearsalSize}, func(file string) error {
			return h.disks.pour(ctx, file, rehearsalSize, rehearsalLabel[:16], uuid, guest.VolumeDir)
		}},
	}
	for _, d := range make {
		d.lun, d.file = seatLUN(d.seat), filepath.Join(dir, d.serial+".img")
		all = append(all, d.drive)
		if err := d.fill(d.file); err != nil {
			return nil, noRoom(kindOf(err), dir)
		}
	}
	return all, nil
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

// hello says hello to the tether and lets go.
func (p *process) hello(ctx context.Context) error {
	client, err := p.talk(ctx)
	if err != nil {
		return err
	}
	return client.Close()
}

// actOut runs the program of a rehearsal as a container's process.
func actOut(ctx context.Context, client *guest.Client, seats map[string]guest.Seat) error {
	var entropy [64]byte
	rand.Read(entropy[:])
	cfg := guest.ExecutorConfig{
		ID: "rehearsal", Hostname: "rehearsal", Rehearsal: true, Clock: time.Now(), Entropy: entropy[:],
		Seats:   seats,
		Root:    guest.Root{Image: "disk://" + rehearsalImage, Writable: "disk://" + rehearsalOwn},
		Mounts:  []guest.MountSpec{{Source: "label://" + rehearsalLabel, Target: "/data", Copy: true, Name: "rehearsal"}},
		Files:   []guest.File{{Path: "/etc/hostname", Content: []byte("rehearsal\n"), Mode: 0o644}, {Path: "/etc/hosts", Content: []byte("127.0.0.1\tlocalhost\n"), Mode: 0o644}, {Path: "/etc/resolv.conf", Mode: 0o644}},
		Network: guest.Network{Resolver: true, Interfaces: []guest.Interface{{Name: "eth0", Tag: 4094, MAC: "02:00:00:00:00:02", Address: "192.0.2.2/24", Gateway: "192.0.2.1", MTU: 1500}}}, // RFC 5737
		Limits:  guest.Limits{Memory: int64(rehearsalSize), CPUs: 1e9},
		Process: &guest.Process{Args: []string{"true"}, Env: []string{"PATH=/bin"}, Cwd: "/", Capabilities: []string{"CAP_CHOWN", "CAP_KILL"}},
	}
	if _, err := client.Configure(ctx, cfg); err != nil {
		return err
	}
	var said []byte
	last, err := client.Output(ctx, 0, func(f guest.Frame) error { said = append(said, f.Data...); return nil })
	if err != nil {
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
