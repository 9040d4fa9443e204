package main

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"time"

	"golang.org/x/sys/unix"

	"vch/portlayer"
)

// pair is one thing that was done on vch and on Docker's engine in turns.
type pair struct {
	what      string
	bar       float64 // the most that vch may take of the engine's time, by the median; 0: none is set
	vch, moby []time.Duration
}

// ratios are those of each round, sorted.
func (p pair) ratios() []float64 {
	var all []float64
	for i := range p.vch {
		all = append(all, float64(p.vch[i])/float64(p.moby[i]))
	}
	slices.Sort(all)
	return all
}

// quartile of sorted values.
func quartile(sorted []float64, q float64) float64 {
	at := q * float64(len(sorted)-1)
	low := int(at)
	high := min(low+1, len(sorted)-1)
	return sorted[low] + (sorted[high]-sorted[low])*(at-float64(low))
}

// way is how machines start, and the phases of such a start.
type way struct {
	name   string
	phases []phase
}

// engine starts Docker's engine in dir, with the image in it.
func engine(ctx context.Context, dir, root string) (*host, error) {
	h, err := newHost(dir)
	if err != nil {
		return nil, err
	}
	programs := filepath.Join(root, "usr/sbin") + ":" + filepath.Join(root, "usr/bin")
	h.env = append(os.Environ(), "PATH="+programs+":"+os.Getenv("PATH"),
		"LD_LIBRARY_PATH="+filepath.Join(root, "lib/x86_64-linux-gnu")+":"+filepath.Join(root, "usr/lib/x86_64-linux-gnu"))
	h.args = []string{filepath.Join(root, "usr/sbin/dockerd"), "-H", "unix://" + h.socket, "--data-root", filepath.Join(dir, "data"), "--exec-root", filepath.Join(dir, "exec"),
		"--pidfile", filepath.Join(dir, "pid"), "--bridge=none", "--iptables=false"}
	return h, h.open(ctx, dir)
}

// beside measures vch and Docker's engine in turns.
func beside(ctx context.Context, dir string, o options, r *results) (err error) {
	root, err := filepath.Abs(o.moby)
	if err != nil {
		return err
	}
	if _, err := os.Stat(filepath.Join(root, "usr/sbin/dockerd")); o.moby == "" || err != nil {
		return nil
	}
	at := func(name string) string { return filepath.Join(dir, name) }
	hosts := map[string]*host{}
	for _, h := range []struct {
		name string
		open func(dir string) (*host, error)
	}{
		{"m", func(dir string) (*host, error) { return engine(ctx, dir, root) }},
		{"p", func(dir string) (*host, error) { return serve(ctx, dir, o, "--cache", at("cache")) }},
		{"f", func(dir string) (*host, error) { return serve(ctx, dir, o, "--cache", at("cache"), "--warm", "0") }},
		{"c", func(dir string) (*host, error) {
			return serve(ctx, dir, o, "--cache", at("cache"), "--template", "off")
		}},
	} {
		if err := os.Mkdir(at(h.name), 0o700); err != nil {
			return err
		}
		opened, err := h.open(at(h.name))
		if err != nil {
			return err
		}
		defer func() { err = errors.Join(err, opened.end()) }()
		hosts[h.name] = opened
	}
	moby, pooled, forked, cold := hosts["m"], hosts["p"], hosts["f"], hosts["c"]
	var info struct{ Driver string }
	if err := moby.api(ctx, "GET", "/info", nil, &info); err != nil {
		return err
	}
	version := struct{ Version string }{}
	if err := moby.api(ctx, "GET", "/version", nil, &version); err != nil {
		return err
	}
	r.about = append(r.about, fmt.Sprintf("Beside it: Docker's engine %s (Debian's docker.io), storage driver %s, without networks", version.Version, info.Driver))
	// The first start of each is not like the others: a template is made, an image unpacked.
	for _, h := range hosts {
		if err := h.docker(ctx, "run", "--rm", image, "true"); err != nil {
			return err
		}
	}
	unix.Sync() // what was measured before has the host's disk busy
	time.Sleep(warmUp)
	b := &turner{ctx: ctx, n: o.runs, r: r}
	runRM := func(h *host, _ int) (time.Duration, error) {
		return timed(func() error { return h.docker(ctx, "run", "--rm", "-v", "bench:/data", image, "true") })
	}
	b.turns("`run --rm -v v:/data IMAGE true`", 1, pooled, moby, runRM)
	b.turns("the same, without a pool (`--warm 0`)", 1.5, forked, moby, runRM)
	b.turns("the same, every machine boots (`--template=off`)", 0, cold, moby, runRM)
	b.turns("start to first output", 1, pooled, moby, firstOutput(ctx))
	b.turns("the same, without a pool", 0, forked, moby, firstOutput(ctx))
	b.turns("create", 1, pooled, moby, created(ctx, map[string]any{"Image": image, "Cmd": []string{"true"}}))
	b.turns("create -v v:/data", 1, pooled, moby, created(ctx, sleeper))
	b.turns("stop of what ends at once", 0, pooled, moby, stopped(ctx))
	b.turns("20 containers started at once, to their first output", 0, pooled, moby, atOnce(ctx, 20))
	for _, n := range []int{10, 1000, 10000} {
		if n > o.volumes {
			break
		}
		b.volumes(n, pooled, moby)
	}
	if b.err != nil {
		return b.err
	}
	for _, w := range []struct {
		name string
		h    *host
	}{{"boot", cold}, {"fork", forked}, {"fork kept ready", pooled}} {
		phases, err := medianPhases(ctx, w.h, o.runs)
		if err != nil {
			return err
		}
		r.ways = append(r.ways, way{w.name, phases})
	}
	if err := perContainer(ctx, r, pooled, forked, moby); err != nil {
		return err
	}
	return density(ctx, r, forked)
}

// warmUp is how long the pool has before the first turn.
const warmUp = 20 * time.Second

// rest is what vch's pool has to be filled again between two turns: whoever starts containers all the time has no pool.
const rest = 1500 * time.Millisecond

// lull is what both engines have before each turn with volumes to be done with what they do when nobody waits.
const lull = 100 * time.Millisecond

// turner measures by turns until something goes wrong.
type turner struct {
	ctx context.Context
	n   int
	r   *results
	err error
}

// turns does one thing on a and on b, n times each, in alternating order.
func (t *turner) turns(what string, bar float64, vch, moby *host, do func(h *host, i int) (time.Duration, error)) {
	p := pair{what: what, bar: bar}
	before, after := time.Duration(0), rest
	if strings.HasPrefix(what, "volume ") {
		before, after = lull, 0
	}
	for i := range t.n {
		order := []*host{vch, moby}
		if i%2 == 1 {
			slices.Reverse(order)
		}
		for _, h := range order {
			if t.err != nil {
				return
			}
			time.Sleep(before)
			took, err := do(h, i)
			if err != nil {
				t.err = fmt.Errorf("%s: %w", what, err)
				return
			}
			if h == vch {
				p.vch = append(p.vch, took)
			} else {
				p.moby = append(p.moby, took)
			}
		}
		time.Sleep(after)
	}
	t.r.beside = append(t.r.beside, p)
}

// volumes measures those with so many there.
func (t *turner) volumes(n int, vch, moby *host) {
	const clients = 16
	name := func(i int) string { return fmt.Sprintf("v%06d", i) }
	add := func(h *host, i int) error {
		return h.api(t.ctx, "POST", "/volumes/create", map[string]any{"Name": name(i)}, nil)
	}
	drop := func(h *host, i int) error { return h.api(t.ctx, "DELETE", "/volumes/"+name(i), nil, nil) }
	if t.inARow("create", n, clients, vch, moby, add); t.err != nil {
		return
	}
	for _, how := range []struct {
		many int
		says string
	}{{1, ""}, {clients, fmt.Sprintf(", %d at once", clients)}} {
		of := func(do func(h *host, i int) error) func(h *host, i int) (time.Duration, error) {
			return func(h *host, round int) (time.Duration, error) {
				return timed(func() error {
					return each(how.many, how.many, func(i int) error { return do(h, n+round*how.many+i) })
				})
			}
		}
		says := fmt.Sprintf("volume %%s, %d there%s", n, how.says)
		t.turns(fmt.Sprintf(says, "create"), 1, vch, moby, of(add))
		t.turns(fmt.Sprintf(says, "inspect"), 1, vch, moby, of(func(h *host, i int) error {
			return h.api(t.ctx, "GET", "/volumes/"+name(i%n), nil, nil)
		}))
		t.turns(fmt.Sprintf(says, "ls"), 1, vch, moby, of(func(h *host, _ int) error { return h.api(t.ctx, "GET", "/volumes", nil, nil) }))
		t.turns(fmt.Sprintf(says, "rm"), 0, vch, moby, of(drop))
	}
	t.inARow("rm", n, clients, vch, moby, drop)
}

// inARow measures one thing done to n volumes, by so many clients without a pause: once, for it is many.
func (t *turner) inARow(what string, n, clients int, vch, moby *host, do func(h *host, i int) error) {
	p := pair{what: fmt.Sprintf("volume %s, %d in a row by %d clients", what, n, clients)}
	for _, h := range []*host{vch, moby} {
		took, err := timed(func() error { return each(n, clients, func(i int) error { return do(h, i) }) })
		if err != nil {
			t.err = errors.Join(t.err, err)
			return
		}
		if h == vch {
			p.vch = append(p.vch, took)
		} else {
			p.moby = append(p.moby, took)
		}
	}
	t.r.beside = append(t.r.beside, p)
}

// each does n things, so many at once.
func each(n, atOnce int, do func(i int) error) error {
	var (
		work sync.WaitGroup
		mu   sync.Mutex // guards errs
		errs []error
		next = make(chan int)
	)
	for range atOnce {
		work.Go(func() {
			for i := range next {
				if err := do(i); err != nil {
					mu.Lock()
					errs = append(errs, err)
					mu.Unlock()
				}
			}
		})
	}
	for i := range n {
		next <- i
	}
	close(next)
	work.Wait()
	return errors.Join(errs...)
}

func created(ctx context.Context, config map[string]any) func(h *host, i int) (time.Duration, error) {
	return func(h *host, _ int) (time.Duration, error) {
		took, err := timed(func() error { return h.api(ctx, "POST", "/containers/create?name=bench", config, nil) })
		return took, errors.Join(err, h.remove(ctx, "bench"))
	}
}

// talker says something at once, and ends at SIGTERM.
var talker = map[string]any{"Image": image, "Cmd": []string{"sh", "-c", "trap 'exit 0' TERM; echo x; while :; do sleep 1000000 & wait; done"}}

// attached opens a container's output before it starts, and returns what waits for its first byte.
func (h *host) attached(ctx context.Context, name string) (first func() error, err error) {
	var d net.Dialer
	conn, err := d.DialContext(ctx, "unix", h.socket)
	if err != nil {
		return nil, err
	}
	fmt.Fprintf(conn, "POST /containers/%s/attach?stream=1&stdout=1 HTTP/1.1\r\nHost: x\r\nConnection: Upgrade\r\nUpgrade: tcp\r\n\r\n", name)
	r := bufio.NewReader(conn)
	resp, err := http.ReadResponse(r, nil)
	if err == nil && resp.StatusCode != http.StatusSwitchingProtocols && resp.StatusCode != http.StatusOK {
		err = fmt.Errorf("attach: %s", resp.Status)
	}
	if err != nil {
		return nil, errors.Join(err, conn.Close())
	}
	return func() error {
		_, err := r.ReadByte()
		return errors.Join(err, conn.Close())
	}, nil
}

// begin makes a talker, starts it, and waits for its first output; it gives what the last two took.
func (h *host) begin(ctx context.Context, name string) (time.Duration, error) {
	if err := h.api(ctx, "POST", "/containers/create?name="+name, talker, nil); err != nil {
		return 0, err
	}
	first, err := h.attached(ctx, name)
	if err != nil {
		return 0, err
	}
	return timed(func() error {
		return errors.Join(h.api(ctx, "POST", "/containers/"+name+"/start", nil, nil), first())
	})
}

func firstOutput(ctx context.Context) func(h *host, i int) (time.Duration, error) {
	return func(h *host, _ int) (time.Duration, error) {
		took, err := h.begin(ctx, "bench")
		return took, errors.Join(err, h.remove(ctx, "bench"))
	}
}

func stopped(ctx context.Context) func(h *host, i int) (time.Duration, error) {
	return func(h *host, _ int) (time.Duration, error) {
		_, err := h.begin(ctx, "bench")
		if err != nil {
			return 0, err
		}
		took, err := timed(func() error { return h.api(ctx, "POST", "/containers/bench/stop", nil, nil) })
		return took, errors.Join(err, h.remove(ctx, "bench"))
	}
}

// atOnce starts many at once.
func atOnce(ctx context.Context, many int) func(h *host, i int) (time.Duration, error) {
	return func(h *host, _ int) (time.Duration, error) {
		name := func(i int) string { return fmt.Sprintf("bench-%d", i) }
		var firsts []func() error
		for i := range many {
			if err := h.api(ctx, "POST", "/containers/create?name="+name(i), talker, nil); err != nil {
				return 0, err
			}
			first, err := h.attached(ctx, name(i))
			if err != nil {
				return 0, err
			}
			firsts = append(firsts, first)
		}
		took, err := timed(func() error {
			return each(many, many, func(i int) error {
				return errors.Join(h.api(ctx, "POST", "/containers/"+name(i)+"/start", nil, nil), firsts[i]())
			})
		})
		return took, errors.Join(err, each(many, 4, func(i int) error { return h.remove(ctx, name(i)) }))
	}
}

// medianPhases are those of n starts.
func medianPhases(ctx context.Context, h *host, n int) ([]phase, error) {
	times := map[string][]time.Duration{}
	var order []string
	for range n {
		if err := h.docker(ctx, "run", "--rm", "-v", "bench:/data", image, "true"); err != nil {
			return nil, err
		}
		phases, err := h.lastStart()
		if err != nil {
			return nil, err
		}
		for _, p := range phases {
			if times[p.name] == nil {
				order = append(order, p.name)
			}
			times[p.name] = append(times[p.name], p.took)
		}
		time.Sleep(rest)
	}
	var all []phase
	for _, name := range order {
		all = append(all, phase{name, middle(times[name])})
	}
	return all, nil
}

// perContainer measures what ten that sleep take each. Of the engine's it is the process and its shim.
func perContainer(ctx context.Context, r *results, pooled, forked, moby *host) error {
	const many = 10
	for _, of := range []struct {
		says string
		h    *host
	}{{"a container VM of ten that sleep, forks kept ready: PSS of its QEMU process", pooled}, {"the same, forks made at their start", forked}, {"a container of ten that sleep in Docker's engine: PSS of its process and its shim", moby}} {
		var sum portlayer.Bytes
		for i := range many {
			if err := of.h.docker(ctx, "run", "-d", "--name", fmt.Sprintf("bench-%d", i), image, "sleep", "1000000"); err != nil {
				return err
			}
			if of.h == pooled {
				time.Sleep(rest)
			}
		}
		time.Sleep(rest)
		for i := range many {
			c, err := of.h.inspect(ctx, fmt.Sprintf("bench-%d", i))
			if err != nil {
				return err
			}
			pids := []int{c.State.Pid}
			if of.h == moby {
				parent, err := parentOf(c.State.Pid)
				if err != nil {
					return err
				}
				pids = append(pids, parent)
			}
			for _, pid := range pids {
				n, err := kibibytes(fmt.Sprintf("/proc/%d/smaps_rollup", pid), "Pss:")
				if err != nil {
					return err
				}
				sum += n
			}
		}
		r.memory = append(r.memory, amount{of.says, sum / many})
		if err := each(many, 4, func(i int) error { return of.h.remove(ctx, fmt.Sprintf("bench-%d", i)) }); err != nil {
			return err
		}
	}
	return nil
}

// density measures how much less memory the host has for others with a hundred that sleep, and says how many of them that would make.
func density(ctx context.Context, r *results, h *host) error {
	const many, atOnce = 100, 4
	before, err := kibibytes("/proc/meminfo", "MemAvailable:")
	if err != nil {
		return err
	}
	name := func(i int) string { return fmt.Sprintf("bench-%d", i) }
	if err := each(many, atOnce, func(i int) error {
		return h.docker(ctx, "run", "-d", "--name", name(i), image, "sleep", "1000000")
	}); err != nil {
		return err
	}
	time.Sleep(rest)
	after, err := kibibytes("/proc/meminfo", "MemAvailable:")
	if err != nil {
		return err
	}
	took := max(1, (before-after)/many)
	r.memory = append(r.memory, amount{fmt.Sprintf("what each of a hundred that sleep, forks made at their start, took of the host's available memory, into all of which %d would fit", before/took), took})
	return each(many, atOnce, func(i int) error { return h.remove(ctx, name(i)) })
}

func parentOf(pid int) (parent int, err error) {
	text, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", pid))
	if err != nil {
		return 0, err
	}
	for line := range strings.Lines(string(text)) {
		if rest, ok := strings.CutPrefix(line, "PPid:"); ok {
			_, err := fmt.Sscan(rest, &parent)
			return parent, err
		}
	}
	return 0, fmt.Errorf("process %d has no parent", pid)
}

// besidePage is the part of the page that compares.
func (r results) besidePage() string {
	if len(r.beside) == 0 {
		return "\nDocker's engine was not there to be measured beside it.\n"
	}
	var b strings.Builder
	b.WriteString("\n## Beside Docker's engine\n\nIn one run, by turns on this machine, the same commands and the same image. A ratio is of one turn, vch to the engine: below 1 vch is quicker. In brackets: its quartiles.\n" +
		"`run` is timed with the docker CLI's own start, everything else by the API. Between two turns the pool has 1.5 s to be filled again.\n\n" +
		"| | vch | Docker's engine | ratio | bar |\n|---|---:|---:|---:|---|\n")
	ms := func(all []time.Duration) string {
		return fmt.Sprintf("%.1f ms", float64(middle(slices.Clone(all)))/float64(time.Millisecond))
	}
	for _, p := range r.beside {
		ratios := p.ratios()
		median := quartile(ratios, 0.5)
		bar := "–"
		if p.bar > 0 {
			bar = fmt.Sprintf("%.1f, met", p.bar)
			if median > p.bar {
				bar = fmt.Sprintf("%.1f, **missed**", p.bar)
			}
		}
		fmt.Fprintf(&b, "| %s | %s | %s | %.2f (%.2f to %.2f) | %s |\n", p.what, ms(p.vch), ms(p.moby), median, quartile(ratios, 0.25), quartile(ratios, 0.75), bar)
	}
	fmt.Fprintf(&b, "\n![The phases of a start](%s)\n", picture)
	return b.String()
}
