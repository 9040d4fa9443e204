package main

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"time"

	"vch/test/measure"
)

// host is the VCH that is measured.
type host struct{ *measure.Host }

// serve starts a VCH in dir.
func serve(ctx context.Context, dir string, o options) (h host, err error) {
	store := filepath.Join(dir, "store")
	if err := os.Mkdir(store, 0o700); err != nil {
		return h, err
	}
	h.Host, err = measure.Serve(ctx, o.vch, dir, "--volume-store", store+":default", "--accel", o.accel, "--template", o.template)
	return h, err
}

// volume makes a volume and gives its extent's file.
func (h host) volume(ctx context.Context, name string) (string, error) {
	if _, err := h.Docker(ctx, "volume", "create", "--opt", "Capacity=1G", name); err != nil {
		return "", err
	}
	extent := filepath.Join(h.Dir, "store", "volumes", name, name+"-flat.vmdk")
	_, err := os.Stat(extent)
	return extent, err
}

// container starts the container that is measured, and tells what its machine is like.
func (h host) container(ctx context.Context, load string) (p place, like measure.Machine, err error) {
	if err := h.Import(ctx, load, "load"); err != nil {
		return p, like, err
	}
	if p.extent, err = h.volume(ctx, "data"); err != nil {
		return p, like, err
	}
	if _, err := h.Docker(ctx, "run", "-d", "--name", "bench", "-v", "data:/data", "load", "/load", "wait"); err != nil {
		return p, like, err
	}
	p.name = vchName
	p.do = func(ctx context.Context, kind, file string, blocks int) (time.Duration, error) {
		out, err := h.Docker(ctx, "exec", "bench", "/load", kind, file, strconv.Itoa(blocks))
		if err != nil {
			return 0, err
		}
		return taken(out)
	}
	like, err = h.Machine(ctx, "bench")
	return p, like, err
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

// about says what was measured on.
func (h host) about(ctx context.Context) ([]string, error) {
	text, err := h.Docker(ctx, "info", "--format", "vch {{.ServerVersion}}\n{{.NCPU}} processors{{range .DriverStatus}}\n{{index . 0}}: {{index . 1}}{{end}}")
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
	lines := strings.Split(strings.TrimSpace(strings.ReplaceAll(text, h.Dir, "DIR")), "\n")
	return append(lines, "Host Kernel: "+strings.TrimSpace(string(kernel)), "load average at the start: "+strings.Join(strings.Fields(string(loads))[:3], " ")+" (what else runs here is in the numbers)"), nil
}
