// Command bench measures what a user of vch waits for, and what a container VM takes of the host's memory.
//
// It starts a vch serve of its own in a temporary directory, imports a busybox image, and takes the median of N runs of each thing, by the API on
// the socket and by the docker CLI (whose own start is most of a short one's time). It ends everything that it started, and prints a page of
// Markdown. It is no test: nothing here passes or fails by a number.
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"sort"
	"strings"
	"syscall"
	"time"

	"vch/internal/atomicfile"
	"vch/portlayer"
	"vch/test/measure"
)

func main() {
	var o options
	flag.StringVar(&o.vch, "vch", "bin/vch", "the vch to measure")
	flag.StringVar(&o.into, "into", "", "file to write the page to, beside standard output")
	flag.StringVar(&o.accel, "accel", "auto", "as vch serve --accel")
	flag.StringVar(&o.memory, "memory", "128M", "as vch serve --memory")
	flag.IntVar(&o.runs, "n", 10, "runs of each thing")
	flag.StringVar(&o.moby, "moby", "", "directory with Docker's engine, as scripts/moby makes it; not there: vch alone is measured")
	flag.IntVar(&o.volumes, "volumes", 10000, "volumes that there are for what takes longer with many; 0: that is not measured")
	flag.Parse()
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	err := bench(ctx, o)
	stop()
	if err != nil {
		fmt.Fprintf(os.Stderr, "bench: %v\n", err)
		os.Exit(1)
	}
}

type options struct {
	vch, moby, into, accel, memory string
	runs, volumes                  int
}

// results is all that was measured.
type results struct {
	rows   []row
	phases []phase
	memory []amount
	many   []figure
	about  []string // lines about the machine and the VCH
	beside []pair   // of what was measured on Docker's engine, too
	ways   []way    // in which a machine starts
}

// row is one thing's medians; zero: not measured that way.
type row struct {
	what     string
	api, cli time.Duration
}

// phase is the median of one phase of a start.
type phase struct {
	name string
	took time.Duration
}

// amount is an amount of memory.
type amount struct {
	what  string
	bytes portlayer.Bytes
}

func bench(ctx context.Context, o options) (err error) {
	if o.runs < 1 {
		return errors.New("-n wants at least 1")
	}
	dir, err := os.MkdirTemp("", "vb") // short: a socket's path has 107 bytes
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, os.RemoveAll(dir)) }()
	h, err := serve(ctx, dir, o)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, h.end()) }()
	var r results
	if r.about, err = h.about(ctx); err != nil {
		return err
	}
	for _, part := range []func(context.Context, *host, int, *results) error{volumes, create, start, run, live, memory} {
		if err := part(ctx, h, o.runs, &r); err != nil {
			return err
		}
	}
	if err := many(ctx, h, o, &r); err != nil {
		return err
	}
	if err := beside(ctx, dir, o, &r); err != nil {
		return err
	}
	page := r.page(o, time.Now())
	if o.into != "" {
		if err := atomicfile.Write(filepath.Join(filepath.Dir(o.into), picture), []byte(drawn(r.ways)), 0o644); err != nil {
			return err
		}
	}
	return measure.Page(page, o.into)
}

// median of the times that do takes in n runs; each run gets its number.
func median(n int, do func(i int) (time.Duration, error)) (time.Duration, error) {
	var all []time.Duration
	for i := range n {
		took, err := do(i)
		if err != nil {
			return 0, err
		}
		all = append(all, took)
	}
	return middle(all), nil
}

func middle(all []time.Duration) time.Duration {
	sort.Slice(all, func(i, j int) bool { return all[i] < all[j] })
	n := len(all)
	return (all[(n-1)/2] + all[n/2]) / 2
}

// timed is how long do takes.
func timed(do func() error) (time.Duration, error) {
	began := time.Now()
	err := do()
	return time.Since(began), err
}

// both measures one thing by the API and by the CLI. after, if not nil, takes each run back, untimed.
func both(n int, what string, api, cli func(i int) error, after func(i int) error) (row, error) {
	r := row{what: what}
	for _, way := range []struct {
		into *time.Duration
		do   func(i int) error
	}{{&r.api, api}, {&r.cli, cli}} {
		var err error
		*way.into, err = median(n, func(i int) (time.Duration, error) {
			took, err := timed(func() error { return way.do(i) })
			if err == nil && after != nil {
				err = after(i)
			}
			return took, err
		})
		if err != nil {
			return r, fmt.Errorf("%s: %w", what, err)
		}
	}
	return r, nil
}

func volumes(ctx context.Context, h *host, n int, r *results) error {
	name := func(i int) string { return fmt.Sprintf("bench-%d", i) }
	remove := func(i int) error { return h.api(ctx, "DELETE", "/volumes/"+name(i), nil, nil) }
	made, err := both(n, "volume create",
		func(i int) error { return h.api(ctx, "POST", "/volumes/create", map[string]any{"Name": name(i)}, nil) },
		func(i int) error { return h.docker(ctx, "volume", "create", name(i)) },
		remove)
	if err != nil {
		return err
	}
	// A store is not empty where it is looked at.
	const population = 20
	for i := range population {
		if err := h.api(ctx, "POST", "/volumes/create", map[string]any{"Name": name(i)}, nil); err != nil {
			return err
		}
	}
	inspect, err := both(n, "volume inspect",
		func(int) error { return h.api(ctx, "GET", "/volumes/"+name(0), nil, nil) },
		func(int) error { return h.docker(ctx, "volume", "inspect", name(0)) }, nil)
	if err != nil {
		return err
	}
	ls, err := both(n, fmt.Sprintf("volume ls (%d volumes)", population),
		func(int) error { return h.api(ctx, "GET", "/volumes", nil, nil) },
		func(int) error { return h.docker(ctx, "volume", "ls") }, nil)
	if err != nil {
		return err
	}
	for i := range population {
		if err := remove(i); err != nil {
			return err
		}
	}
	r.rows = append(r.rows, made, inspect, ls)
	return nil
}

// sleeper is a container that goes on until it is removed.
var sleeper = map[string]any{"Image": image, "Cmd": []string{"sleep", "1000000"}, "HostConfig": map[string]any{"Binds": []string{"bench:/data"}}}

func (h *host) remove(ctx context.Context, name string) error {
	return h.api(ctx, "DELETE", "/containers/"+name+"?force=1&v=1", nil, nil)
}

func create(ctx context.Context, h *host, n int, r *results) error {
	made, err := both(n, "create -v v:/data",
		func(int) error { return h.api(ctx, "POST", "/containers/create?name=bench", sleeper, nil) },
		func(int) error {
			return h.docker(ctx, "create", "--name", "bench", "-v", "bench:/data", image, "sleep", "1000000")
		},
		func(int) error { return h.remove(ctx, "bench") })
	r.rows = append(r.rows, made)
	return err
}

func start(ctx context.Context, h *host, n int, r *results) error {
	times := map[string][]time.Duration{}
	var order []string
	measure := func(start func() error) (time.Duration, error) {
		if err := h.api(ctx, "POST", "/containers/create?name=bench", sleeper, nil); err != nil {
			return 0, err
		}
		took, err := timed(start)
		if err != nil {
			return 0, err
		}
		phases, err := h.lastStart()
		if err != nil {
			return 0, err
		}
		for _, p := range phases {
			if times[p.name] == nil {
				order = append(order, p.name)
			}
			times[p.name] = append(times[p.name], p.took)
		}
		return took, h.remove(ctx, "bench")
	}
	started := row{what: "start"}
	var err error
	if started.api, err = median(n, func(int) (time.Duration, error) {
		return measure(func() error { return h.api(ctx, "POST", "/containers/bench/start", nil, nil) })
	}); err != nil {
		return fmt.Errorf("start: %w", err)
	}
	if started.cli, err = median(n, func(int) (time.Duration, error) {
		return measure(func() error { return h.docker(ctx, "start", "bench") })
	}); err != nil {
		return fmt.Errorf("docker start: %w", err)
	}
	r.rows = append(r.rows, started)
	for _, name := range order {
		r.phases = append(r.phases, phase{name, middle(times[name])})
	}
	if len(order) == 0 {
		return errors.New("the daemon's log does not tell the phases of a start")
	}
	return nil
}

func run(ctx context.Context, h *host, n int, r *results) error {
	took, err := median(n, func(int) (time.Duration, error) {
		return timed(func() error { return h.docker(ctx, "run", "--rm", "-v", "bench:/data", image, "true") })
	})
	r.rows = append(r.rows, row{what: "run --rm -v v:/data IMAGE true", cli: took})
	return err
}

func memory(ctx context.Context, h *host, _ int, r *results) error {
	if err := h.api(ctx, "POST", "/containers/create?name=bench", sleeper, nil); err != nil {
		return err
	}
	if err := h.api(ctx, "POST", "/containers/bench/start", nil, nil); err != nil {
		return err
	}
	c, err := h.inspect(ctx, "bench")
	if err != nil {
		return err
	}
	machine, err := kibibytes(fmt.Sprintf("/proc/%d/smaps_rollup", c.State.Pid), "Pss:")
	if err != nil {
		return err
	}
	daemon, err := kibibytes(fmt.Sprintf("/proc/%d/status", h.daemon.Process.Pid), "VmRSS:")
	if err != nil {
		return err
	}
	r.memory = append(r.memory, amount{"a container VM that sleeps: PSS of its QEMU process", machine}, amount{"the daemon: RSS", daemon})
	return h.remove(ctx, "bench")
}

// kibibytes reads a line "KEY N kB" of a file in /proc (proc(5)).
func kibibytes(path, key string) (portlayer.Bytes, error) {
	text, err := os.ReadFile(path)
	if err != nil {
		return 0, err
	}
	for _, line := range strings.Split(string(text), "\n") {
		if rest, ok := strings.CutPrefix(line, key); ok {
			var n int64
			if _, err := fmt.Sscan(rest, &n); err != nil {
				return 0, err
			}
			return portlayer.Bytes(n) * portlayer.KiB, nil
		}
	}
	return 0, fmt.Errorf("%s has no line %s", path, key)
}

// page is the results as Markdown.
func (r results) page(o options, at time.Time) string {
	var b strings.Builder
	ms := func(d time.Duration) string {
		if d == 0 {
			return "–"
		}
		return fmt.Sprintf("%.1f ms", float64(d)/float64(time.Millisecond))
	}
	fmt.Fprintf(&b, "# Performance\n\nMeasured on %s by `make bench` (medians of %d runs; `go run ./test/bench -h` lists its options). This page is written by it: do not edit it.\n\n", at.Format("2006-01-02"), o.runs)
	for _, line := range r.about {
		fmt.Fprintf(&b, "- %s\n", line)
	}
	b.WriteString(r.besidePage())
	b.WriteString("\n## Time\n\nBy the API on the socket, and as the docker CLI takes, whose own start is part of that.\n\n| | API | docker CLI |\n|---|---:|---:|\n")
	for _, row := range r.rows {
		fmt.Fprintf(&b, "| %s | %s | %s |\n", row.what, ms(row.api), ms(row.cli))
	}
	var sum time.Duration
	for _, p := range r.phases {
		sum += p.took
	}
	b.WriteString("\n## A start, by phase\n\n`define` makes the machine ready on the host, `boot` is from power-on to the tether's first word (the guest's kernel included), `tether` until it waits for its\nconfiguration, `mount` puts the root and the volumes together, `process` starts the container's process. The daemon's log tells them for every start.\n\n| phase | time | share |\n|---|---:|---:|\n")
	for _, p := range r.phases {
		fmt.Fprintf(&b, "| %s | %s | %.0f %% |\n", p.name, ms(p.took), 100*float64(p.took)/float64(max(sum, 1)))
	}
	if len(r.many) > 0 {
		fmt.Fprintf(&b, "\n## With %d volumes\n\nOne client, one thing after the other, by the API if no command is named. A volume is durable when its create is answered.\n\n| | runs | mean | median | 99 %% are below |\n|---|---:|---:|---:|---:|\n", o.volumes)
		for _, f := range r.many {
			fmt.Fprintf(&b, "| %s | %d | %s | %s | %s |\n", f.what, len(f.runs), ms(f.mean()), ms(f.quantile(0.5)), ms(f.quantile(0.99)))
		}
	}
	b.WriteString("\n## Memory\n\n| | |\n|---|---:|\n")
	for _, a := range r.memory {
		fmt.Fprintf(&b, "| %s | %.1f MiB |\n", a.what, float64(a.bytes)/float64(portlayer.MiB))
	}
	return b.String()
}

// about says what was measured on.
func (h *host) about(ctx context.Context) ([]string, error) {
	var info struct {
		DriverStatus  [][2]string
		NCPU          int
		MemTotal      int64
		ServerVersion string
	}
	if err := h.api(ctx, "GET", "/info", nil, &info); err != nil {
		return nil, err
	}
	kernel, err := exec.CommandContext(ctx, "uname", "-sr").Output()
	if err != nil {
		return nil, err
	}
	model := "unknown processor"
	cpuinfo, err := os.ReadFile("/proc/cpuinfo")
	if err != nil {
		return nil, err
	}
	for _, line := range strings.Split(string(cpuinfo), "\n") {
		if key, value, ok := strings.Cut(line, ":"); ok && strings.TrimSpace(key) == "model name" {
			model = strings.TrimSpace(value)
			break
		}
	}
	load, err := os.ReadFile("/proc/loadavg")
	if err != nil {
		return nil, err
	}
	lines := []string{
		fmt.Sprintf("vch %s", info.ServerVersion),
		fmt.Sprintf("%s, %d processors, %d MiB of memory, %s", model, info.NCPU, info.MemTotal>>20, strings.TrimSpace(string(kernel))),
		"load average at the start: " + strings.Join(strings.Fields(string(load))[:3], " ") + " (what else runs here is in the numbers)",
	}
	for _, s := range info.DriverStatus {
		lines = append(lines, s[0]+": "+strings.ReplaceAll(s[1], filepath.Dir(h.socket), "DIR"))
	}
	return lines, nil
}
