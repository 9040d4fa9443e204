// Command netbench measures how fast networks are, and how long a round trip takes: between two containers, from the host to a container through a published port, and from a
// container to the outside, with both backends.
//
// Each backend has a vch serve of its own in a network namespace of its own, with another namespace as the outside. They take turns. It needs root, for the namespaces. Nothing here
// passes or fails by a number.
package main

import (
	"bytes"
	"context"
	"errors"
	"flag"
	"fmt"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"time"

	"vch/test/measure"
)

func main() {
	var o options
	flag.StringVar(&o.vch, "vch", "bin/vch", "the vch to measure")
	flag.StringVar(&o.into, "into", "", "file to write the page to, beside standard output")
	flag.StringVar(&o.accel, "accel", "auto", "as vch serve --accel")
	flag.IntVar(&o.runs, "n", 10, "turns of each thing")
	flag.Parse()
	if os.Geteuid() != 0 {
		fmt.Println("netbench: networks are not measured: their namespaces need root")
		return
	}
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	err := bench(ctx, o)
	stop()
	if err != nil {
		fmt.Fprintf(os.Stderr, "netbench: %v\n", err)
		os.Exit(1)
	}
}

type options struct {
	vch, into, accel string
	runs             int
}

// The world of a site (RFC 5737).
const (
	outside  = "203.0.113.5"
	own      = "203.0.113.9"
	loadPort = "9000"
)

// thing is what is measured: load's verb, from where, and to where.
type thing struct {
	what, verb string
	from       func(*site, ...string) []string // a command that runs load there
	to         func(*site) string
	amount     string // load's last word
}

func things() []thing {
	guest := func(s *site) string { return s.sink + ":" + loadPort }
	out := func(*site) string { return outside + ":" + loadPort }
	published := func(*site) string { return "127.0.0.1:" + loadPort }
	const seconds, trips = "2", "300"
	return []thing{
		{"container to container", "up", (*site).inGuest, guest, seconds},
		{"host to container, through a published port", "up", (*site).onHost, published, seconds},
		{"container to host, likewise", "down", (*site).onHost, published, seconds},
		{"container to the outside", "up", (*site).inGuest, out, seconds},
		{"outside to container", "down", (*site).inGuest, out, seconds},
		{"container to container", "rtt", (*site).inGuest, guest, trips},
		{"host to container, through a published port", "rtt", (*site).onHost, published, trips},
		{"container to the outside", "rtt", (*site).inGuest, out, trips},
	}
}

func bench(ctx context.Context, o options) (err error) {
	dir, err := os.MkdirTemp("", "vn")
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, os.RemoveAll(dir)) }()
	load, err := measure.Build(ctx, dir, "vch/test/netbench/load")
	if err != nil {
		return err
	}
	var sites []*site
	for _, backend := range []string{"user", "bridge"} {
		s := &site{o: o, load: load, dir: filepath.Join(dir, backend), backend: backend, ns: filepath.Base(dir) + backend[:1]}
		defer func() { err = errors.Join(err, s.close()) }()
		if err := s.open(ctx); err != nil {
			return err
		}
		sites = append(sites, s)
	}
	all := things()
	figures := make([][2][]float64, len(all))
	for i := range o.runs {
		for k, t := range all {
			for turn := range sites {
				which := (i + turn) % len(sites) // who begins changes
				f, err := sites[which].measure(ctx, t)
				if err != nil {
					return fmt.Errorf("%s: %s: %w", sites[which].backend, t.what, err)
				}
				figures[k][which] = append(figures[k][which], f)
			}
		}
	}
	page := pageOf(o, sites[0], all, figures)
	return measure.Page(page, o.into)
}

// site is a vch serve with its containers, in a namespace of its own.
type site struct {
	o                      options
	load, dir, backend, ns string
	daemon, far            *exec.Cmd
	sink                   string // address of the container that answers
	version                string
}

func (s *site) open(ctx context.Context) error {
	if err := os.MkdirAll(filepath.Join(s.dir, "store"), 0o700); err != nil {
		return err
	}
	const script = `set -e
ip netns add $1; ip netns add $1o
ip -n $1 link set lo up; ip -n $1o link set lo up
ip link add wire netns $1 type veth peer name far netns $1o
ip -n $1 addr add $3/24 dev wire; ip -n $1 link set wire up; ip -n $1 route add default via $2
ip -n $1o addr add $2/24 dev far; ip -n $1o link set far up`
	if out, err := exec.CommandContext(ctx, "sh", "-c", script, "sh", s.ns, outside, own).CombinedOutput(); err != nil {
		return fmt.Errorf("%w: %s", err, out)
	}
	s.far = exec.Command("ip", "netns", "exec", s.ns+"o", s.load, "serve", ":"+loadPort)
	if err := s.far.Start(); err != nil {
		return err
	}
	log, err := os.Create(filepath.Join(s.dir, "log"))
	if err != nil {
		return err
	}
	defer log.Close()
	s.daemon = exec.Command("ip", "netns", "exec", s.ns, s.o.vch, "serve", "--state", filepath.Join(s.dir, "state"), "--listen", s.host(), "--volume-store", filepath.Join(s.dir, "store")+":default",
		"--accel", s.o.accel, "--memory", "128M", "--network-backend", s.backend)
	s.daemon.Stdout, s.daemon.Stderr = log, log
	if err := s.daemon.Start(); err != nil {
		return err
	}
	const wait, step = 30 * time.Second, 50 * time.Millisecond
	for end := time.Now().Add(wait); ; time.Sleep(step) {
		if s.version, err = s.docker(ctx, "version", "--format", "{{.Server.Version}}"); err == nil {
			break
		}
		if time.Now().After(end) || ctx.Err() != nil {
			said, _ := os.ReadFile(log.Name())
			return fmt.Errorf("%w: %s", err, said)
		}
	}
	return s.people(ctx)
}

// people makes the image and the containers.
func (s *site) people(ctx context.Context) error {
	program, err := os.ReadFile(s.load)
	if err != nil {
		return err
	}
	layer, err := measure.Layer(program)
	if err != nil {
		return err
	}
	file := filepath.Join(s.dir, "load.tar")
	if err := os.WriteFile(file, layer, 0o600); err != nil {
		return err
	}
	for _, args := range [][]string{
		{"import", file, "load"},
		{"network", "create", "wires"},
		{"run", "-d", "--name", "sink", "--network", "wires", "-p", "127.0.0.1:" + loadPort + ":" + loadPort, "load", "/load", "serve", ":" + loadPort},
		{"run", "-d", "--name", "source", "--network", "wires", "load", "/load", "sleep"},
	} {
		if _, err := s.docker(ctx, args...); err != nil {
			return err
		}
	}
	s.sink, err = s.docker(ctx, "inspect", "--format", "{{.NetworkSettings.Networks.wires.IPAddress}}", "sink")
	return err
}

func (s *site) host() string { return "unix://" + filepath.Join(s.dir, "s") }

func (s *site) docker(ctx context.Context, args ...string) (string, error) {
	return output(exec.CommandContext(ctx, "docker", append([]string{"-H", s.host()}, args...)...))
}

func output(cmd *exec.Cmd) (string, error) {
	var out, errs bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &errs
	if err := cmd.Run(); err != nil {
		return "", fmt.Errorf("%s: %w: %s", strings.Join(cmd.Args, " "), err, bytes.TrimSpace(errs.Bytes()))
	}
	return strings.TrimSpace(out.String()), nil
}

func (s *site) inGuest(args ...string) []string {
	return append([]string{"docker", "-H", s.host(), "exec", "source", "/load"}, args...)
}

func (s *site) onHost(args ...string) []string {
	return append([]string{"ip", "netns", "exec", s.ns, s.load}, args...)
}

// measure has load do a thing once, and gives its figure.
func (s *site) measure(ctx context.Context, t thing) (float64, error) {
	const limit = time.Minute
	ctx, cancel := context.WithTimeout(ctx, limit)
	defer cancel()
	args := t.from(s, t.verb, t.to(s), t.amount)
	out, err := output(exec.CommandContext(ctx, args[0], args[1:]...))
	if err != nil {
		return 0, err
	}
	return strconv.ParseFloat(out, 64)
}

// close takes everything away.
func (s *site) close() error {
	const limit = time.Minute
	ctx, cancel := context.WithTimeout(context.Background(), limit)
	defer cancel()
	var errs []error
	if s.daemon != nil && s.daemon.Process != nil {
		_, err := s.docker(ctx, "rm", "-f", "sink", "source")
		errs = append(errs, err, s.daemon.Process.Signal(syscall.SIGTERM), s.daemon.Wait())
	}
	if s.far != nil && s.far.Process != nil {
		errs = append(errs, s.far.Process.Kill())
		_ = s.far.Wait() // it was killed
	}
	for _, ns := range []string{s.ns, s.ns + "o"} {
		if _, err := os.Stat("/run/netns/" + ns); err == nil {
			_, err := output(exec.Command("ip", "netns", "del", ns))
			errs = append(errs, err)
		}
	}
	return errors.Join(errs...)
}

// pageOf is the results as Markdown.
func pageOf(o options, s *site, all []thing, figures [][2][]float64) string {
	var b strings.Builder
	fmt.Fprintf(&b, "# Networks: throughput and latency\n\nMeasured on %s by `make bench` (`test/netbench`), vch %s, medians of %d turns, in which the two backends ([networks.md](networks.md)) alternate. This page is written by it: do not edit it.\n\n", time.Now().Format("2006-01-02"), s.version, o.runs)
	fmt.Fprintf(&b, "Each has a daemon, a network and two containers in a network namespace of its own; the outside is another one, by a veth pair. One TCP connection; `--accel %s`.\n", o.accel)
	for _, part := range []struct {
		title, unit string
		rtt         bool
		scale       float64
	}{{"Throughput", "MiB/s", false, 1 << 20}, {"Round trip of one byte", "µs", true, 1000}} {
		fmt.Fprintf(&b, "\n## %s\n\n| %s | user | bridge | bridge / user (quartiles) |\n|---|---:|---:|---:|\n", part.title, part.unit)
		for k, t := range all {
			if (t.verb == "rtt") != part.rtt {
				continue
			}
			ratios := measure.Ratios(figures[k][1], figures[k][0])
			fmt.Fprintf(&b, "| %s | %.1f | %.1f | %.2f (%.2f to %.2f) |\n", t.what, measure.Quantile(figures[k][0], 0.5)/part.scale, measure.Quantile(figures[k][1], 0.5)/part.scale,
				measure.Quantile(ratios, 0.5), measure.Quantile(ratios, 0.25), measure.Quantile(ratios, 0.75))
		}
	}
	return b.String()
}
