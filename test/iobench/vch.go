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

// wait bounds every wait; a host without KVM is slow.
const wait = 3 * time.Minute

// host is the VCH that is measured.
type host struct {
	dir    string
	daemon *exec.Cmd
	ended  chan error
	log    *os.File
}

func (h *host) socket() string { return filepath.Join(h.dir, "s") }
func (h *host) store() string  { return filepath.Join(h.dir, "store") }

// serve starts a VCH in dir and waits until it answers.
func serve(ctx context.Context, dir string, o options) (*host, error) {
	h := &host{dir: dir, ended: make(chan error, 1)}
	if err := os.Mkdir(h.store(), 0o700); err != nil {
		return nil, err
	}
	var err error
	if h.log, err = os.Create(filepath.Join(dir, "log")); err != nil {
		return nil, err
	}
	h.daemon = exec.Command(o.vch, "serve", "--state", filepath.Join(dir, "state"), "--listen", "unix://"+h.socket(), "--volume-store", h.store()+":default", "--accel", o.accel, "--template", o.template)
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

// end removes the container and stops the daemon.
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

// docker runs the CLI and gives its output.
func (h *host) docker(ctx context.Context, args ...string) (string, error) {
	cmd := exec.CommandContext(ctx, "docker", args...)
	cmd.Env = append(os.Environ(), "DOCKER_HOST=unix://"+h.socket(), "DOCKER_CONTEXT=", "DOCKER_API_VERSION=")
	var out, complaint bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &complaint
	if err := cmd.Run(); err != nil {
		return out.String(), fmt.Errorf("docker %s: %w: %s%s", strings.Join(args, " "), err, bytes.TrimSpace(out.Bytes()), bytes.TrimSpace(complaint.Bytes()))
	}
	return out.String(), nil
}

// volume makes a volume and gives its extent's file.
func (h *host) volume(ctx context.Context, name string) (string, error) {
	if _, err := h.docker(ctx, "volume", "create", "--opt", "Capacity=1G", name); err != nil {
		return "", err
	}
	extent := filepath.Join(h.store(), "volumes", name, name+"-flat.vmdk")
	_, err := os.Stat(extent)
	return extent, err
}

// likeness is what a machine by hand takes over from vch's, to differ in the disk's settings alone.
type likeness struct {
	qemu, kernel, modules   string // paths: QEMU, its kernel, the kernel's modules
	accel, cpu, memory, smp string // values of -accel, -cpu, -m, -smp
}

// container starts the container that is measured, and tells what its machine is like.
func (h *host) container(ctx context.Context, load string) (p place, like likeness, err error) {
	program, err := os.ReadFile(load)
	if err != nil {
		return p, like, err
	}
	var image bytes.Buffer
	w := tar.NewWriter(&image)
	if err := w.WriteHeader(&tar.Header{Name: "load", Typeflag: tar.TypeReg, Mode: 0o755, Size: int64(len(program))}); err != nil {
		return p, like, err
	}
	if _, err := w.Write(program); err != nil {
		return p, like, err
	}
	if err := w.Close(); err != nil {
		return p, like, err
	}
	file := filepath.Join(h.dir, "load.tar")
	if err := os.WriteFile(file, image.Bytes(), 0o600); err != nil {
		return p, like, err
	}
	if _, err := h.docker(ctx, "import", file, "load"); err != nil {
		return p, like, err
	}
	if p.extent, err = h.volume(ctx, "data"); err != nil {
		return p, like, err
	}
	if _, err := h.docker(ctx, "run", "-d", "--name", "bench", "-v", "data:/data", "load", "/load", "wait"); err != nil {
		return p, like, err
	}
	p.name = vchName
	p.do = func(ctx context.Context, kind, file string, blocks int) (time.Duration, error) {
		out, err := h.docker(ctx, "exec", "bench", "/load", kind, file, strconv.Itoa(blocks))
		if err != nil {
			return 0, err
		}
		return taken(out)
	}
	like, err = h.likeness(ctx)
	return p, like, err
}

// likeness looks at the container's QEMU.
func (h *host) likeness(ctx context.Context) (l likeness, err error) {
	pid, err := h.docker(ctx, "inspect", "--format", "{{.State.Pid}}", "bench")
	if err != nil {
		return l, err
	}
	proc := filepath.Join("/proc", strings.TrimSpace(pid))
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

// taken reads what ./load prints.
func taken(out string) (time.Duration, error) {
	var ns int64
	for _, line := range strings.Split(out, "\n") {
		if _, err := fmt.Sscanf(strings.TrimSpace(line), "took %d", &ns); err == nil && ns > 0 {
			return time.Duration(ns), nil
		}
	}
	return 0, fmt.Errorf("it tells no time: %q", out)
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
	text, err := h.docker(ctx, "info", "--format", "vch {{.ServerVersion}}\n{{.NCPU}} processors{{range .DriverStatus}}\n{{index . 0}}: {{index . 1}}{{end}}")
	if err != nil {
		return nil, err
	}
	kernel, err := os.ReadFile("/proc/sys/kernel/osrelease")
	if err != nil {
		return nil, err
	}
	loads, err := os.ReadFile("/proc/loadavg")
	if err != nil {
		return nil, err
	}
	lines := strings.Split(strings.TrimSpace(strings.ReplaceAll(text, h.dir, "DIR")), "\n")
	return append(lines, "Host Kernel: "+strings.TrimSpace(string(kernel)), "load average at the start: "+strings.Join(strings.Fields(string(loads))[:3], " ")+" (what else runs here is in the numbers)"), nil
}
