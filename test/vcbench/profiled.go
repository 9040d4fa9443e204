package main

import (
	"context"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"time"
)

// server is a file of package main that is added to vch when it is to give profiles. The vch that users have has no such thing.
const server = `package main

import (
	"net"
	"net/http"
	"net/http/pprof"
	"os"
)

var _ = func() bool {
	mux := http.NewServeMux()
	mux.HandleFunc("/debug/pprof/", pprof.Index)
	mux.HandleFunc("/debug/pprof/profile", pprof.Profile)
	_ = os.Remove(os.Getenv("VCBENCH_PPROF"))
	if l, err := net.Listen("unix", os.Getenv("VCBENCH_PPROF")); err == nil {
		go http.Serve(l, mux)
	}
	return true
}()
`

// pprofSocket is where such a vch gives its profiles.
const pprofSocket = "pprof"

// profiled builds a vch that gives profiles, from this module's sources as they are.
func profiled(ctx context.Context, dir string) (string, error) {
	out, err := exec.CommandContext(ctx, "go", "list", "-f", "{{.Dir}}", "vch/cmd/vch").Output()
	if err != nil {
		return "", err
	}
	added := filepath.Join(dir, "added.go")
	overlay := filepath.Join(dir, "overlay.json")
	text, err := json.Marshal(map[string]map[string]string{"Replace": {filepath.Join(strings.TrimSpace(string(out)), "vcbench_pprof.go"): added}})
	if err == nil {
		err = os.WriteFile(added, []byte(server), 0o600)
	}
	if err == nil {
		err = os.WriteFile(overlay, text, 0o600)
	}
	if err != nil {
		return "", err
	}
	program := filepath.Join(dir, "vch")
	if out, err := exec.CommandContext(ctx, "go", "build", "-overlay", overlay, "-o", program, "vch/cmd/vch").CombinedOutput(); err != nil {
		return "", fmt.Errorf("%w: %s", err, out)
	}
	return program, nil
}

// profile takes processor profiles of daemon and vCenter during a phase, if they are asked for. They are of the 30 s at most that it has begun with.
func (r *results) profile(ctx context.Context, o options, d *daemon, v *vcenter, phase string) (stop func()) {
	if o.profiles == "" {
		return func() {}
	}
	ctx, cancel := context.WithCancel(ctx)
	var all sync.WaitGroup
	take := func(c *http.Client, address, who string) {
		all.Go(func() {
			name := strings.Map(func(r rune) rune {
				if strings.ContainsRune(" /:,", r) {
					return '-'
				}
				return r
			}, phase)
			for n := 0; ctx.Err() == nil; n++ {
				if err := fetch(ctx, c, address+"/debug/pprof/profile?seconds=5", filepath.Join(o.profiles, fmt.Sprintf("%s.%s.%d", name, who, n))); err != nil {
					time.Sleep(100 * time.Millisecond) // it is starting
				}
			}
		})
	}
	take(d.profiles, "http://vch", "daemon")
	take(http.DefaultClient, v.Control, "vcenter")
	return func() { cancel(); all.Wait() }
}

func fetch(ctx context.Context, c *http.Client, address, into string) error {
	req, err := http.NewRequestWithContext(context.WithoutCancel(ctx), http.MethodGet, address, nil)
	if err != nil {
		return err
	}
	res, err := c.Do(req)
	if err != nil {
		return err
	}
	defer res.Body.Close()
	text, err := io.ReadAll(res.Body)
	if err != nil || res.StatusCode != http.StatusOK {
		return fmt.Errorf("%s: %s: %w", address, res.Status, err)
	}
	return os.WriteFile(into, text, 0o600)
}
