package main

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"time"

	"vch/test/measure"
)

// The volumes, and the stores that they are in.
const (
	remote     = "shared" // on the server
	local      = "own"    // on a disk
	localStore = "disk"
)

// host is the VCH that is measured.
type host struct{ *measure.Host }

// open starts a VCH in dir, with the server's export as its default store.
func open(ctx context.Context, dir string, o options, server *served) (h host, err error) {
	store := filepath.Join(dir, "store")
	if err := os.Mkdir(store, 0o700); err != nil {
		return h, err
	}
	h.Host, err = measure.Serve(ctx, o.vch, dir, "--accel", o.accel,
		"--volume-store", fmt.Sprintf("nfs://%s:%d%s:default", server.Host, server.Port, server.Path), "--volume-store", store+":"+localStore)
	return h, err
}

// container makes image and volumes, and starts the container that is measured. It tells what its machine is like.
func (h host) container(ctx context.Context, load string, server *served) (p place, like measure.Machine, err error) {
	if err := h.Import(ctx, load, "load"); err != nil {
		return p, like, err
	}
	for _, args := range [][]string{{"volume", "create", remote}, {"volume", "create", "--opt", "VolumeStore=" + localStore, "--opt", "Capacity=1G", local}} {
		if _, err := h.Docker(ctx, args...); err != nil {
			return p, like, err
		}
	}
	p = place{name: inVCH, file: filepath.Join(server.Dir, "volumes", remote, "file")}
	if p.talk, err = begin(ctx, h.Command(context.WithoutCancel(ctx), "run", "-i", "--name", "bench", "-v", remote+":/data", "load", "/load", "serve", "/data")); err != nil {
		return p, like, err
	}
	like, err = h.Machine(ctx, "bench")
	p.pids = map[string]int{"QEMU": like.PID, "vch": h.PID(), "server": server.pid}
	return p, like, err
}

// about says what was measured on.
func (h host) about(ctx context.Context) ([]string, error) {
	text, err := h.Docker(ctx, "info", "--format", "vch {{.ServerVersion}}, {{.NCPU}} processors")
	if err != nil {
		return nil, err
	}
	accel, err := h.Status(ctx, "Acceleration")
	if err != nil {
		return nil, err
	}
	kernel, err := h.Status(ctx, "Guest Kernel")
	if err != nil {
		return nil, err
	}
	return []string{strings.TrimSpace(text) + ", acceleration " + accel + ", guests' kernel " + kernel}, nil
}

// way is a docker run that is measured.
type way struct {
	name string
	args []string
}

// ways are compared with the first.
func ways() []way {
	return []way{{"without a volume", nil}, {"with a volume on a disk", []string{"-v", local + ":/data"}}, {"with an NFS volume", []string{"-v", remote + ":/data"}}}
}

// rest is what the pool of warm forks has to be filled again between two turns.
const rest = 1500 * time.Millisecond

// runs takes the time of each way, n times each, in turns.
func (h host) runs(ctx context.Context, n int) ([][]time.Duration, error) {
	all := make([][]time.Duration, len(ways()))
	for i := range 1 + n {
		for turn := range ways() {
			which := (i + turn) % len(all)
			time.Sleep(rest)
			args := append(append([]string{"run", "--rm"}, ways()[which].args...), "load", "/load", "true")
			began := time.Now()
			if _, err := h.Docker(ctx, args...); err != nil {
				return nil, err
			}
			if i > 0 { // the first makes the volume's file system
				all[which] = append(all[which], time.Since(began))
			}
		}
	}
	return all, nil
}
