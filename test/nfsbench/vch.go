package main

import (
	"archive/tar"
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"time"
)

// The volumes, and the stores that they are in.
const (
	remote     = "shared" // on the server
	local      = "own"    // on a disk
	localStore = "disk"
)

// host is the VCH that is measured.
type host struct {
	dir    string
	daemon *exec.Cmd
	ended  chan error
	log    *os.File
}

func (h *host) socket() string { return filepath.Join(h.dir, "s") }

// open starts a VCH in dir, with the server's export as its default store, and waits until it answers.
func open(ctx context.Context, dir string, o options, server *served) (*host, error) {
	h := &host{dir: dir, ended: make(chan error, 1)}
	store := filepath.Join(dir, "store")
	if err := os.Mkdir(store, 0o700); err != nil {
		return nil, err
	}
	var err error
	if h.log, err = os.Create(filepath.Join(dir, "log")); err != nil {
		return nil, err
	}
	h.daemon = exec.Command(o.vch, "serve", "--state", filepath.Join(dir, "state"), "--listen", "unix://"+h.socket(), "--accel", o.accel,
		"--volume-store", fmt.Sprintf("nfs://%s:%d%s:default", server.Host, server.Port, server.Path), "--volume-store", store+":"+localStore)
	h.daemon.Stdout, h.daemon.Stderr = h.log, h.log
	h.daemon.SysProcAttr = &syscall.SysProcAttr{Setpgid: true} // a Ctrl-C is for this program, which then ends containers and daemon in order
	if err := h.daemon.Start(); err != nil {
		return nil, errors.Join(err, h.log.Close())
	}
	go func() { h.ended <- h.daemon.Wait() }()
	limit := time.After(wait)
	tick := time.NewTicker(20 * time.Millisecond)
	defer tick.Stop()
	for {
		if _, err = h.docker(ctx, "info"); err == nil {
			return h, nil
		}
		select {
		case status := <-h.ended:
			said, rerr := os.ReadFile(h.log.Name())
			return nil, errors.Join(fmt.Errorf("vch serve ended at once (%v):\n%s", status, said), rerr, h.log.Close())
		case <-limit:
			return nil, errors.Join(err, h.end())
		case <-ctx.Done():
			return nil, errors.Join(ctx.Err(), h.end())
		case <-tick.C:
		}
	}
}

// end removes the containers and stops the daemon.
func (h *host) end() error {
	defer h.log.Close()
	ctx, cancel := context.WithTimeout(context.Background(), wait)
	defer cancel()
	ids, err := h.docker(ctx, "ps", "-aq")
	if ids := strings.Fields(ids); len(ids) > 0 {
		_, rerr := h.docker(ctx, append([]string{"rm", "-fv"}, ids...)...)
		err = errors.Join(err, rerr)
	}
	err = errors.Join(err, h.daemon.Process.Signal(syscall.SIGTERM))
	select {
	case status := <-h.ended:
		return errors.Join(err, status)
	case <-ctx.Done():
		return errors.Join(err, errors.New("the daemon does not end"), h.daemon.Process.Kill())
	}
}

// command is one of the docker CLI's.
func (h *host) command(ctx context.Context, args ...string) *exec.Cmd {
	cmd := exec.CommandContext(ctx, "docker", args...)
	cmd.Env = append(os.Environ(), "DOCKER_HOST=unix://"+h.socket(), "DOCKER_CONTEXT=", "DOCKER_API_VERSION=")
	return cmd
}

// docker runs the CLI and gives its output.
func (h *host) docker(ctx context.Context, args ...string) (string, error) {
	cmd := h.command(ctx, args...)
	var out, complaint bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &complaint
	if err := cmd.Run(); err != nil {
		return out.String(), fmt.Errorf("docker %s: %w: %s%s", strings.Join(args, " "), err, bytes.TrimSpace(out.Bytes()), bytes.TrimSpace(complaint.Bytes()))
	}
	return out.String(), nil
}

// container makes image and volumes, and starts the container that is measured.
func (h *host) container(ctx context.Context, load string, server *served) (p place, err error) {
	program, err := os.ReadFile(load)
	if err != nil {
		return p, err
	}
	var image bytes.Buffer
	w := tar.NewWriter(&image)
	if err := w.WriteHeader(&tar.Header{Name: "load", Typeflag: tar.TypeReg, Mode: 0o755, Size: int64(len(program))}); err != nil {
		return p, err
	}
	if _, err := w.Write(program); err != nil {
		return p, err
	}
	if err := w.Close(); err != nil {
		return p, err
	}
	file := filepath.Join(h.dir, "load.tar")
	if err := os.WriteFile(file, image.Bytes(), 0o600); err != nil {
		return p, err
	}
	for _, args := range [][]string{
		{"import", file, "load"},
		{"volume", "create", remote},
		{"volume", "create", "--opt", "VolumeStore=" + localStore, "--opt", "Capacity=1G", local},
	} {
		if _, err := h.docker(ctx, args...); err != nil {
			return p, err
		}
	}
	p = place{name: inVCH, file: filepath.Join(server.Dir, "volumes", remote, "file")}
	if p.talk, err = begin(ctx, h.command(context.WithoutCancel(ctx), "run", "-i", "--name", "bench", "-v", remote+":/data", "load", "/load", "serve", "/data")); err != nil {
		return p, err
	}
	pid, err := h.pid(ctx)
	p.pids = map[string]int{"QEMU": pid, "vch": h.daemon.Process.Pid, "server": server.pid}
	return p, err
}

// pid is that of the container's QEMU.
func (h *host) pid(ctx context.Context) (int, error) {
	text, err := h.docker(ctx, "inspect", "--format", "{{.State.Pid}}", "bench")
	if err != nil {
		return 0, err
	}
	return strconv.Atoi(strings.TrimSpace(text))
}

// likeness looks at the container's QEMU.
func (h *host) likeness(ctx context.Context) (l likeness, err error) {
	pid, err := h.pid(ctx)
	if err != nil {
		return l, err
	}
	proc := filepath.Join("/proc", strconv.Itoa(pid))
	if l.qemu, err = os.Readlink(filepath.Join(proc, "exe")); err != nil {
		return l, err
	}
	line, err := os.ReadFile(filepath.Join(proc, "cmdline"))
	if err != nil {
		return l, err
	}
	args := strings.Split(string(line), "\x00")
	for i, a := range args[:len(args)-1] {
		switch a {
		case "-accel":
			l.accel = args[i+1]
		case "-cpu":
			l.cpu = args[i+1]
		case "-m":
			l.memory = args[i+1]
		case "-smp":
			l.smp = args[i+1]
		}
	}
	release, err := h.status(ctx, "Guest Kernel")
	l.kernel, l.modules = "/boot/vmlinuz-"+release, "/lib/modules/"+release
	return l, err
}

// status is a line of docker info's DriverStatus.
func (h *host) status(ctx context.Context, key string) (string, error) {
	text, err := h.docker(ctx, "info", "--format", "{{json .DriverStatus}}")
	if err != nil {
		return "", err
	}
	var lines [][2]string
	if err := json.Unmarshal([]byte(text), &lines); err != nil {
		return "", err
	}
	for _, line := range lines {
		if line[0] == key {
			return line[1], nil
		}
	}
	return "", fmt.Errorf("docker info tells no %s", key)
}

// about says what was measured on.
func (h *host) about(ctx context.Context) ([]string, error) {
	text, err := h.docker(ctx, "info", "--format", "vch {{.ServerVersion}}, {{.NCPU}} processors")
	if err != nil {
		return nil, err
	}
	accel, err := h.status(ctx, "Acceleration")
	if err != nil {
		return nil, err
	}
	kernel, err := h.status(ctx, "Guest Kernel")
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
func (h *host) runs(ctx context.Context, n int) ([][]time.Duration, error) {
	all := make([][]time.Duration, len(ways()))
	for i := range 1 + n {
		for turn := range ways() {
			which := (i + turn) % len(all)
			time.Sleep(rest)
			args := append(append([]string{"run", "--rm"}, ways()[which].args...), "load", "/load", "true")
			began := time.Now()
			if _, err := h.docker(ctx, args...); err != nil {
				return nil, err
			}
			if i > 0 { // the first makes the volume's file system
				all[which] = append(all[which], time.Since(began))
			}
		}
	}
	return all, nil
}
