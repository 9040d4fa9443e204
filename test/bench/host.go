package main

import (
	"archive/tar"
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"time"
)

// image is what containers are made of here.
const image = "box"

// wait bounds every wait; a host without KVM is slow.
const wait = 3 * time.Minute

// host is the VCH that is measured, or Docker's engine beside it.
type host struct {
	socket string
	args   []string // of the daemon
	env    []string // of the daemon; nil: this process's
	daemon *exec.Cmd
	ended  chan error
	log    *os.File
	client *http.Client
}

// inspected is what is of interest in a container's inspect.
type inspected struct {
	State struct{ Pid int }
}

// serve starts a VCH in dir, with the image in it; more are further flags.
func serve(ctx context.Context, dir string, o options, more ...string) (*host, error) {
	h, err := newHost(dir)
	if err != nil {
		return nil, err
	}
	store := filepath.Join(dir, "store")
	if err := os.Mkdir(store, 0o700); err != nil {
		return nil, err
	}
	h.args = []string{o.vch, "serve", "--state", filepath.Join(dir, "state"), "--listen", "unix://" + h.socket, "--volume-store", store + ":default",
		"--accel", o.accel, "--memory", o.memory, "--log-format", "json"}
	h.args = append(h.args, more...)
	return h, h.open(ctx, dir)
}

// newHost is one whose daemon is not there yet.
func newHost(dir string) (*host, error) {
	h := &host{socket: filepath.Join(dir, "s"), ended: make(chan error, 1)}
	h.client = &http.Client{Timeout: wait, Transport: &http.Transport{MaxIdleConnsPerHost: 32, DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
		var d net.Dialer
		return d.DialContext(ctx, "unix", h.socket)
	}}}
	var err error
	h.log, err = os.Create(filepath.Join(dir, "log"))
	return h, err
}

// open starts the daemon and gives it the image. After an error nothing runs.
func (h *host) open(ctx context.Context, dir string) error {
	if err := h.launch(ctx); err != nil {
		if h.daemon.Process == nil {
			return err
		}
		return errors.Join(err, h.end())
	}
	box, err := rootfs()
	if err != nil {
		return errors.Join(err, h.end())
	}
	file := filepath.Join(dir, "box.tar")
	if err := os.WriteFile(file, box, 0o600); err != nil {
		return errors.Join(err, h.end())
	}
	if err := h.docker(ctx, "import", file, image); err != nil {
		return errors.Join(err, h.end())
	}
	return nil
}

// launch starts the daemon and waits until it answers.
func (h *host) launch(ctx context.Context) error {
	h.daemon = exec.Command(h.args[0], h.args[1:]...)
	h.daemon.Env = h.env
	h.daemon.Stdout, h.daemon.Stderr = h.log, h.log
	// A Ctrl-C is for this program, which then ends containers and daemon in order.
	h.daemon.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	if err := h.daemon.Start(); err != nil {
		return err
	}
	daemon := h.daemon
	go func() { h.ended <- daemon.Wait() }()
	return h.ready(ctx)
}

// ready waits until the daemon answers.
func (h *host) ready(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, wait)
	defer cancel()
	tick := time.NewTicker(20 * time.Millisecond)
	defer tick.Stop()
	for {
		if err := h.api(ctx, "GET", "/_ping", nil, nil); err == nil {
			return nil
		}
		select {
		case err := <-h.ended:
			h.ended <- err
			return fmt.Errorf("%s ended at once (%v):\n%s", filepath.Base(h.args[0]), err, h.said())
		case <-ctx.Done():
			return fmt.Errorf("%s does not answer:\n%s", filepath.Base(h.args[0]), h.said())
		case <-tick.C:
		}
	}
}

func (h *host) said() string {
	text, err := os.ReadFile(h.log.Name())
	if err != nil {
		return err.Error()
	}
	return string(text)
}

// stop ends the daemon in order, and leaves what it has.
func (h *host) stop(ctx context.Context) error {
	h.client.CloseIdleConnections()
	if err := h.daemon.Process.Signal(syscall.SIGTERM); err != nil && !errors.Is(err, os.ErrProcessDone) {
		return err
	}
	select {
	case status := <-h.ended:
		return status
	case <-ctx.Done():
		return errors.Join(errors.New("the daemon does not end"), h.daemon.Process.Kill())
	}
}

// end removes what is there and stops the daemon.
func (h *host) end() error {
	defer h.log.Close()
	ctx, cancel := context.WithTimeout(context.Background(), wait)
	defer cancel()
	var list []struct{ ID string }
	err := h.api(ctx, "GET", "/containers/json?all=1", nil, &list)
	for _, c := range list {
		err = errors.Join(err, h.remove(ctx, c.ID))
	}
	return errors.Join(err, h.stop(ctx))
}

// api says one thing to the daemon; in and out are JSON, or nil.
func (h *host) api(ctx context.Context, method, path string, in, out any) error {
	var body io.Reader
	if in != nil {
		data, err := json.Marshal(in)
		if err != nil {
			return err
		}
		body = bytes.NewReader(data)
	}
	req, err := http.NewRequestWithContext(ctx, method, "http://vch"+path, body)
	if err != nil {
		return err
	}
	if in != nil {
		req.Header.Set("Content-Type", "application/json")
	}
	resp, err := h.client.Do(req)
	if err != nil {
		return err
	}
	defer resp.Body.Close()
	text, err := io.ReadAll(resp.Body)
	if err != nil {
		return err
	}
	if resp.StatusCode >= 400 {
		return fmt.Errorf("%s %s: %s: %s", method, path, resp.Status, bytes.TrimSpace(text))
	}
	if out == nil {
		return nil
	}
	return json.Unmarshal(text, out)
}

func (h *host) inspect(ctx context.Context, name string) (c inspected, err error) {
	err = h.api(ctx, "GET", "/containers/"+name+"/json", nil, &c)
	return c, err
}

// lastStart is the phases of the last start, as the daemon logged them: what follows "took" in the line, in nanoseconds.
func (h *host) lastStart() (phases []phase, err error) {
	for _, line := range strings.Split(h.said(), "\n") {
		if !strings.Contains(line, `"msg":"container started"`) {
			continue
		}
		phases = nil
		dec := json.NewDecoder(strings.NewReader(line))
		if _, err := dec.Token(); err != nil {
			return nil, err
		}
		for told := false; dec.More(); {
			key, err := dec.Token()
			if err != nil {
				return nil, err
			}
			value, err := dec.Token()
			if err != nil {
				return nil, err
			}
			if ns, ok := value.(float64); ok && told {
				phases = append(phases, phase{fmt.Sprint(key), time.Duration(ns)})
			}
			told = told || key == "took"
		}
	}
	return phases, nil
}

// docker runs the CLI.
func (h *host) docker(ctx context.Context, args ...string) error {
	cmd := exec.CommandContext(ctx, "docker", args...)
	cmd.Env = append(os.Environ(), "DOCKER_HOST=unix://"+h.socket, "DOCKER_CONTEXT=", "DOCKER_API_VERSION=")
	if out, err := cmd.CombinedOutput(); err != nil {
		return fmt.Errorf("docker %s: %w: %s", strings.Join(args, " "), err, bytes.TrimSpace(out))
	}
	return nil
}

// rootfs is a root file system of busybox, as a tar.
func rootfs() ([]byte, error) {
	path, err := exec.LookPath("busybox")
	if err != nil {
		return nil, fmt.Errorf("%w; make setup installs it", err)
	}
	program, err := os.ReadFile(path)
	if err != nil {
		return nil, err
	}
	var b bytes.Buffer
	w := tar.NewWriter(&b)
	for _, f := range []struct {
		head tar.Header
		data []byte
	}{
		{tar.Header{Name: "bin/", Typeflag: tar.TypeDir, Mode: 0o755}, nil},
		{tar.Header{Name: "bin/busybox", Typeflag: tar.TypeReg, Mode: 0o755, Size: int64(len(program))}, program},
		{tar.Header{Name: "bin/sh", Typeflag: tar.TypeSymlink, Linkname: "busybox"}, nil},
		{tar.Header{Name: "bin/true", Typeflag: tar.TypeSymlink, Linkname: "busybox"}, nil},
		{tar.Header{Name: "bin/sleep", Typeflag: tar.TypeSymlink, Linkname: "busybox"}, nil},
	} {
		if err := w.WriteHeader(&f.head); err != nil {
			return nil, err
		}
		if _, err := w.Write(f.data); err != nil {
			return nil, err
		}
	}
	return b.Bytes(), w.Close()
}
