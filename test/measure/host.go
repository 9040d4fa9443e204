// Package measure is what the commands have in common that measure vch beside something else.
//
// Daemon is a vch serve to measure, Host one with the docker CLI. Machine is what a machine run by hand takes over from vch's, and Console the talk with the program that does the same work in both; test/measure/inside is that
// program's half. Quantile and Ratios make figures of rounds, and Page is where they go. Nothing passes or fails by a number.
package measure

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
	"time"
)

// Wait bounds every wait; a host without KVM is slow.
const Wait = 3 * time.Minute

// Build builds a command of this module for containers and machines, and gives its file, which is in dir.
func Build(ctx context.Context, dir, pkg string) (string, error) {
	program := filepath.Join(dir, "load")
	build := exec.CommandContext(ctx, "go", "build", "-trimpath", "-ldflags", "-s -w", "-o", program, pkg)
	build.Env = append(os.Environ(), "CGO_ENABLED=0")
	if out, err := build.CombinedOutput(); err != nil {
		return "", fmt.Errorf("%w: %s", err, out)
	}
	return program, nil
}

// Host is the VCH that is measured, and the docker CLI that speaks to it.
type Host struct{ Daemon }

// Serve starts a VCH in dir, with args beside those that say where it is, and waits until it answers.
func Serve(ctx context.Context, vch, dir string, args ...string) (*Host, error) {
	h := &Host{Daemon{VCH: vch, Dir: dir, Args: args}}
	if err := h.Start(ctx); err != nil {
		return nil, err
	}
	return h, nil
}

// End removes the containers and stops the daemon.
func (h *Host) End() error {
	ctx, cancel := context.WithTimeout(context.Background(), Wait)
	defer cancel()
	ids, err := h.Docker(ctx, "ps", "-aq")
	if ids := strings.Fields(ids); len(ids) > 0 {
		_, rerr := h.Docker(ctx, append([]string{"rm", "-fv"}, ids...)...)
		err = errors.Join(err, rerr)
	}
	return errors.Join(err, h.Stop())
}

// Command is one of the docker CLI's.
func (h *Host) Command(ctx context.Context, args ...string) *exec.Cmd {
	cmd := exec.CommandContext(ctx, "docker", args...)
	cmd.Env = append(os.Environ(), "DOCKER_HOST="+h.address(), "DOCKER_CONTEXT=", "DOCKER_API_VERSION=")
	return cmd
}

// Docker runs the CLI and gives its output.
func (h *Host) Docker(ctx context.Context, args ...string) (string, error) {
	cmd := h.Command(ctx, args...)
	var out, complaint bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &complaint
	if err := cmd.Run(); err != nil {
		return out.String(), fmt.Errorf("docker %s: %w: %s%s", strings.Join(args, " "), err, bytes.TrimSpace(out.Bytes()), bytes.TrimSpace(complaint.Bytes()))
	}
	return out.String(), nil
}

// Status is a line of docker info's DriverStatus.
func (h *Host) Status(ctx context.Context, key string) (string, error) {
	text, err := h.Docker(ctx, "info", "--format", "{{json .DriverStatus}}")
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

// Layer is a program alone, which is /load, as docker import takes it.
func Layer(program []byte) ([]byte, error) {
	var layer bytes.Buffer
	w := tar.NewWriter(&layer)
	err := w.WriteHeader(&tar.Header{Name: "load", Typeflag: tar.TypeReg, Mode: 0o755, Size: int64(len(program))})
	if err == nil {
		_, err = w.Write(program)
	}
	return layer.Bytes(), errors.Join(err, w.Close())
}

// Import makes an image of a program alone, which is /load in it.
func (h *Host) Import(ctx context.Context, program, image string) error {
	content, err := os.ReadFile(program)
	if err != nil {
		return err
	}
	layer, err := Layer(content)
	if err != nil {
		return err
	}
	file := filepath.Join(h.Dir, "load.tar")
	if err := os.WriteFile(file, layer, 0o600); err != nil {
		return err
	}
	_, err = h.Docker(ctx, "import", file, image)
	return err
}

// Machine looks at a container's QEMU.
func (h *Host) Machine(ctx context.Context, container string) (m Machine, err error) {
	text, err := h.Docker(ctx, "inspect", "--format", "{{.State.Pid}}", container)
	if err != nil {
		return m, err
	}
	if m.PID, err = strconv.Atoi(strings.TrimSpace(text)); err != nil {
		return m, err
	}
	proc := filepath.Join("/proc", strconv.Itoa(m.PID))
	if m.QEMU, err = os.Readlink(filepath.Join(proc, "exe")); err != nil {
		return m, err
	}
	line, err := os.ReadFile(filepath.Join(proc, "cmdline"))
	if err != nil {
		return m, err
	}
	args := strings.Split(string(line), "\x00")
	for i, a := range args[:len(args)-1] {
		switch a {
		case "-accel":
			m.Accel = args[i+1]
		case "-cpu":
			m.CPU = args[i+1]
		case "-m":
			m.Memory = args[i+1]
		case "-smp":
			m.SMP = args[i+1]
		}
	}
	release, err := h.Status(ctx, "Guest Kernel")
	m.Kernel, m.Modules = "/boot/vmlinuz-"+release, "/lib/modules/"+release
	return m, err
}
