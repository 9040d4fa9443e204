// Command nfsbench measures the mount of an NFS volume in a container of vch beside the same mount in a QEMU run by hand, and beside the server's own disk; and how long a docker run
// takes with such a volume, with one on a disk, and without any.
//
// It starts an NFS server (NFS-Ganesha, version 4, on the loopback), a vch serve of its own whose volume store is its export, and a machine by hand with the same kernel and command line,
// processor, memory and acceleration, on QEMU's user network. The same program (./load) does the same work in all three places, in turns. It needs root, as the server does; without root or
// server it says so and measures nothing. Nothing here passes or fails by a number.
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"os"
	"os/signal"
	"path/filepath"
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
	flag.StringVar(&o.disk, "disk", "/var/tmp", "a directory on the disk that the server exports a new directory of; not in memory")
	flag.IntVar(&o.mib, "mib", 32, "the file that is written and read, in MiB")
	flag.IntVar(&o.rounds, "n", 11, "rounds; one takes some 5 s without KVM")
	flag.Parse()
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	err := bench(ctx, o)
	stop()
	var without unable
	switch {
	case errors.As(err, &without):
		fmt.Printf("nfsbench: NFS volumes are not measured: %v\n", without)
	case err != nil:
		fmt.Fprintf(os.Stderr, "nfsbench: %v\n", err)
		os.Exit(1)
	}
}

type options struct {
	vch, into, accel, disk string
	mib, rounds            int
}

// work is one measured piece.
type work struct {
	name   string
	kind   string // as ./load calls it
	amount int    // of operations; of MiB, if it is told in MiB/s
	mib    bool
	cold   bool // the server's host forgets the file first, so that all read it from the disk
}

// works are done in this order in every round. Amounts are such that a round takes seconds without KVM.
func works(mib int) []work {
	return []work{
		{name: "sequential write and fsync", kind: "seqwrite", amount: mib, mib: true},
		{name: "sequential read", kind: "seqread", amount: mib, mib: true, cold: true},
		{name: "random read", kind: "randread", amount: 400, cold: true},
		{name: "append and fsync", kind: "append", amount: 150},
		{name: "create, write, close, remove", kind: "files", amount: 100},
		{name: "open, fstat, close", kind: "open", amount: 400},
		{name: "statx, from the server", kind: "stat", amount: 400},
		{name: "statx, from the client's memory", kind: "cached", amount: 4000}, // no network: how fast the guest is by itself
	}
}

// place is where work is done.
type place struct {
	name string
	file string // ./load's file, as the server's host has it
	talk talk
	pids map[string]int // whose processor time is counted, by what they are; the server's is there too
}

// The places, as tables have them.
const (
	inVCH  = "vch"
	byHand = "by hand"
	onDisk = "disk"
)

// told is what one piece of work gave.
type told struct{ took, median time.Duration }

// results is all that was measured.
type results struct {
	about []string
	told  map[string]map[string][]told                   // place, work: one a round
	spent map[string]map[string]map[string]time.Duration // place, work, process: processor time, of all rounds
	runs  [][]time.Duration                              // of docker run, as ways has them
	took  time.Duration
}

func bench(ctx context.Context, o options) (err error) {
	if o.rounds < 1 || o.mib < 8 {
		return errors.New("-n wants at least 1, -mib at least 8")
	}
	dir, err := os.MkdirTemp("", "vnf") // short: a socket's path has 107 bytes
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, os.RemoveAll(dir)) }()
	load, err := measure.Build(ctx, dir, "vch/test/nfsbench/load")
	if err != nil {
		return err
	}
	began := time.Now()
	server, err := export(o.disk)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, server.end()) }()
	h, err := open(ctx, dir, o, server)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, h.End()) }()
	r := results{told: map[string]map[string][]told{}, spent: map[string]map[string]map[string]time.Duration{}}
	if r.about, err = h.about(ctx); err != nil {
		return err
	}
	places, end, err := settle(ctx, h, dir, load, server)
	defer end()
	if err != nil {
		return err
	}
	for _, p := range places {
		line, err := p.talk.tell(ctx, "mount")
		if err != nil {
			return err
		}
		r.about = append(r.about, fmt.Sprintf("%s: `%s`", p.name, strings.ReplaceAll(line, server.Path, "/EXPORT")))
	}
	for round := range 1 + o.rounds {
		for _, w := range works(o.mib) {
			for turn := range places {
				p := places[(round+turn)%len(places)] // who begins changes
				if err := r.measure(ctx, p, w, round > 0); err != nil {
					return fmt.Errorf("%s: %s: %w", p.name, w.name, err)
				}
			}
		}
		fmt.Fprintf(os.Stderr, "nfsbench: round %d of %d\n", round, o.rounds)
	}
	if r.runs, err = h.runs(ctx, 2*o.rounds); err != nil {
		return err
	}
	r.took = time.Since(began)
	page := r.page(o, time.Now())
	return measure.Page(page, o.into)
}

// settle makes the three places. end ends what was made, also after an error.
func settle(ctx context.Context, h host, dir, load string, server *served) (_ []place, end func(), _ error) {
	var places []place
	end = func() {
		for _, p := range places {
			p.talk.End()
		}
	}
	add := func(p place, err error) error {
		if p.talk.Console != nil {
			places = append(places, p)
		}
		return err
	}
	container, like, err := h.container(ctx, load, server)
	if err := add(container, err); err != nil {
		return nil, end, err
	}
	line, err := container.talk.tell(ctx, "kernel")
	if err != nil {
		return nil, end, err
	}
	if err := add(machine(ctx, filepath.Join(dir, "hand"), load, like, line, server)); err != nil {
		return nil, end, err
	}
	err = add(disk(ctx, load, server))
	return places, end, err
}

// measure has a work done once in a place. What is not to count is only done.
func (r results) measure(ctx context.Context, p place, w work, counts bool) error {
	if w.cold {
		if err := measure.Forget(p.file); err != nil {
			return err
		}
	}
	before, err := spent(p.pids)
	if err != nil {
		return err
	}
	t, err := p.talk.do(ctx, w.kind, w.amount)
	if err != nil {
		return err
	}
	after, err := spent(p.pids)
	if err != nil || !counts {
		return err
	}
	if r.told[p.name] == nil {
		r.told[p.name], r.spent[p.name] = map[string][]told{}, map[string]map[string]time.Duration{}
	}
	r.told[p.name][w.name] = append(r.told[p.name][w.name], t)
	if r.spent[p.name][w.name] == nil {
		r.spent[p.name][w.name] = map[string]time.Duration{}
	}
	for who := range after {
		r.spent[p.name][w.name][who] += after[who] - before[who]
	}
	return nil
}
