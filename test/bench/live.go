package main

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"time"
)

// live measures what is done with volumes while a container runs: it has one with 32 MiB in it, and writes nothing meanwhile.
func live(ctx context.Context, h *host, n int, r *results) (err error) {
	if err := h.api(ctx, "POST", "/containers/create?name=bench", sleeper, nil); err != nil {
		return err
	}
	defer func() { err = errors.Join(err, h.remove(ctx, "bench")) }()
	if err := h.api(ctx, "POST", "/containers/bench/start", nil, nil); err != nil {
		return err
	}
	if err := h.docker(ctx, "exec", "bench", "sh", "-c", "dd if=/dev/urandom of=/data/f bs=1M count=32 && sync"); err != nil {
		return err
	}
	only := func(what string, do, undo func(i int) error) error {
		took, err := median(n, func(i int) (time.Duration, error) {
			took, err := timed(func() error { return do(i) })
			if err == nil && undo != nil {
				err = undo(i)
			}
			return took, err
		})
		if err != nil {
			return fmt.Errorf("%s: %w", what, err)
		}
		r.rows = append(r.rows, row{what: what, api: took})
		return nil
	}
	ask := func(method, path string, body any) func(int) error {
		return func(int) error { return h.api(ctx, method, path, body, nil) }
	}
	attach, detach := ask("POST", "/vch/containers/bench/volumes", map[string]any{"Mount": "bench-more:/more"}), ask("DELETE", "/vch/containers/bench/volumes?target=/more", nil)
	size := 1100 // MiB
	snapshot := func(i int) string { return fmt.Sprintf("/vch/volumes/bench/snapshots/s%d", i) }
	err = errors.Join(
		only("attach a volume to a running container", attach, detach),
		attach(0),
		only("detach it", detach, attach),
		detach(0),
		h.api(ctx, "DELETE", "/volumes/bench-more", nil, nil),
	)
	if err != nil {
		return err
	}
	err = errors.Join(
		only("resize a volume that is mounted", func(int) error {
			size++
			return h.api(ctx, "POST", "/vch/volumes/bench/resize", map[string]any{"Capacity": fmt.Sprint(size)}, nil)
		}, nil),
		only("snapshot of it, 32 MiB written", func(i int) error {
			return h.api(ctx, "POST", "/vch/volumes/bench/snapshots", map[string]any{"Name": fmt.Sprintf("s%d", i)}, nil)
		}, func(i int) error { return h.api(ctx, "DELETE", snapshot(i), nil, nil) }), // fails if there is none
	)
	if err != nil {
		return err
	}
	copied, err := both(n, "volume create --opt from=it",
		ask("POST", "/volumes/create", map[string]any{"Name": "bench-copy", "DriverOpts": map[string]string{"from": "bench"}}),
		func(int) error { return h.docker(ctx, "volume", "create", "--opt", "from=bench", "bench-copy") },
		ask("DELETE", "/volumes/bench-copy", nil))
	if err != nil {
		return err
	}
	file := filepath.Join(filepath.Dir(h.socket), "file")
	if err := os.WriteFile(file, bytes.Repeat([]byte("content "), 128<<10), 0o600); err != nil {
		return err
	}
	in, err := median(n, func(int) (time.Duration, error) {
		return timed(func() error { return h.docker(ctx, "cp", file, "bench:/data/in") })
	})
	if err != nil {
		return err
	}
	out, err := median(n, func(int) (time.Duration, error) {
		return timed(func() error { return h.docker(ctx, "cp", "bench:/data/in", file) })
	})
	r.rows = append(r.rows, copied, row{what: "cp of 1 MiB into it", cli: in}, row{what: "cp of 1 MiB out of it", cli: out})
	return err
}
