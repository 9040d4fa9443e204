// Command vcbench measures vch on vSphere: how many calls a user's command makes at the vCenter and how many of them wait for each other, and how long 1,000 containers and 10,000 volumes
// take to make, to list, and to be found again by a daemon that was started anew.
//
// The vCenter is the simulated one (hypervisor/vsphere/vcsim) in a process of its own, in which every call has a latency; its machines are hollow: the guest's end of the protocol
// without a VM. The daemon is the real vch serve. Nothing here passes or fails by a number, and no figure is that of a real vCenter but the counts.
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"net/http"
	"os"
	"os/signal"
	"path/filepath"
	"syscall"
	"time"

	"vch/test/measure"
)

func main() {
	var o options
	sim := flag.String("sim", "", "be the simulated vCenter, with its files in this directory")
	flag.StringVar(&o.vch, "vch", "bin/vch", "the vch to measure")
	flag.StringVar(&o.into, "into", "", "file to write the page to, beside standard output")
	flag.StringVar(&o.disk, "disk", os.TempDir(), "where the datastore's files are")
	flag.StringVar(&o.profiles, "profiles", "", "directory for processor profiles of daemon and vCenter; with it, a vch is built that gives them")
	flag.DurationVar(&o.latency, "latency", 20*time.Millisecond, "of each call")
	flag.BoolVar(&o.trace, "trace", false, "print the calls of the first round in their order, too")
	flag.IntVar(&o.rounds, "n", 7, "rounds of each command")
	flag.IntVar(&o.containers, "containers", 1000, "how many are made; 0: the calls of single commands alone are measured")
	flag.IntVar(&o.started, "started", 200, "how many of them are started")
	flag.IntVar(&o.volumes, "volumes", 10000, "how many there are in the end")
	flag.IntVar(&o.made, "made", 300, "how many of those are made one by one; the others are copied onto the datastore")
	flag.IntVar(&o.clients, "clients", 8, "how many ask the daemon at once")
	flag.Parse()
	var err error
	if *sim != "" {
		err = simulate(*sim)
	} else {
		ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
		err = bench(ctx, o)
		stop()
	}
	if err != nil {
		fmt.Fprintf(os.Stderr, "vcbench: %v\n", err)
		os.Exit(1)
	}
}

type options struct {
	vch, into, disk, profiles                           string
	latency                                             time.Duration
	trace                                               bool
	rounds, containers, started, volumes, made, clients int
}

// results is all that was measured.
type results struct {
	about  []string
	at     map[time.Duration]map[string]result // latency, work
	phases []phase
	took   time.Duration
}

func bench(ctx context.Context, o options) (err error) {
	if o.rounds < 1 || o.clients < 1 || o.containers > 0 && (o.started > o.containers || o.made > o.volumes) {
		return errors.New("-n and -clients want at least 1, -started no more than -containers, -made no more than -volumes")
	}
	began := time.Now()
	dir, err := os.MkdirTemp(o.disk, "vcb") // short: a socket's path has 107 bytes
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, os.RemoveAll(dir)) }()
	if o.profiles != "" {
		if o.vch, err = profiled(ctx, dir); err != nil {
			return err
		}
	}
	r := results{at: map[time.Duration]map[string]result{}}
	if err := onRig(ctx, o, filepath.Join(dir, "a"), func(d *daemon, v *vcenter) error { return r.single(ctx, o, d, v) }); err != nil {
		return err
	}
	if o.containers > 0 {
		if err := onRig(ctx, o, filepath.Join(dir, "b"), func(d *daemon, v *vcenter) error { return r.scale(ctx, o, d, v) }); err != nil {
			return err
		}
	}
	r.took = time.Since(began)
	page := r.page(o, time.Now())
	return measure.Page(page, o.into)
}

// onRig does work with a simulated vCenter and a daemon on it, in dir, and ends both.
func onRig(ctx context.Context, o options, dir string, do func(*daemon, *vcenter) error) (err error) {
	if err := os.MkdirAll(filepath.Join(dir, "d"), 0o700); err != nil {
		return err
	}
	v, err := startSim(filepath.Join(dir, "v"))
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, v.end()) }()
	if err := os.Mkdir(v.path("vch"), 0o755); err != nil {
		return err
	}
	d, err := newDaemon(o.vch, filepath.Join(dir, "d"), v)
	if err != nil {
		return err
	}
	if err := d.Start(ctx); err != nil {
		return err
	}
	err = do(d, v)
	if err != nil {
		said, _ := os.ReadFile(filepath.Join(dir, "d", "log"))
		err = fmt.Errorf("%w; the daemon's log ends:\n%s", err, said[max(0, len(said)-4000):])
	}
	return errors.Join(err, d.Stop())
}

// single measures the commands one by one, without latency and with it.
func (r *results) single(ctx context.Context, o options, d *daemon, v *vcenter) (err error) {
	var said struct{ Version string }
	if err := d.call(ctx, http.MethodGet, "/version", nil, &said); err != nil {
		return err
	}
	r.about = append(r.about, fmt.Sprintf("vch %s, %s for daemon, simulated vCenter and clients", said.Version, processors()))
	if err := d.importImage(ctx); err != nil {
		return err
	}
	if err := d.volume(ctx, oldVolume); err != nil {
		return err
	}
	if err := sparse(ctx, v); err != nil {
		return err
	}
	for _, latency := range []time.Duration{0, o.latency} {
		if err := v.latency(ctx, latency); err != nil {
			return err
		}
		if r.at[latency], err = perform(ctx, d, v, o.rounds); err != nil {
			return err
		}
	}
	return nil
}
