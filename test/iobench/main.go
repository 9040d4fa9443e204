// Command iobench measures the I/O of a volume in a container of vch beside that of the same disk in a QEMU run by hand, and what QEMU's settings make of it.
//
// It starts a vch serve of its own in a temporary directory and a container with a volume there, and a machine by hand for each setting: the same kernel, the
// same processor, memory and acceleration, and an extent file that vch made, attached as raw. The same program (./load) does the same work in all of them, in
// turns, so that what else the host does falls on all. It ends all that it started, and writes a page of Markdown that keeps the figures, the choice and why.
// It is no test: nothing here passes or fails by a number.
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"os"
	"os/signal"
	"path/filepath"
	"slices"
	"syscall"
	"time"

	"vch/test/measure"
)

func main() {
	var o options
	flag.StringVar(&o.vch, "vch", "bin/vch", "the vch to measure")
	flag.StringVar(&o.into, "into", "", "file to write the page to, beside standard output")
	flag.StringVar(&o.accel, "accel", "auto", "as vch serve --accel")
	flag.StringVar(&o.template, "template", "auto", "as vch serve --template")
	flag.IntVar(&o.mib, "mib", 64, "the file that is written and read, in MiB")
	flag.IntVar(&o.rounds, "n", 11, "rounds of every setting")
	flag.IntVar(&o.pairs, "pairs", 30, "more rounds of vch and the machines by hand that have its settings")
	flag.DurationVar(&o.limit, "limit", 7*time.Minute, "after 0.7 of it there are no more rounds of every setting, after it none at all")
	flag.Parse()
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	err := bench(ctx, o)
	stop()
	if err != nil {
		fmt.Fprintf(os.Stderr, "iobench: %v\n", err)
		os.Exit(1)
	}
}

type options struct {
	vch, into, accel, template string
	mib, rounds, pairs         int
	limit                      time.Duration
}

// place is where work is done: the container, or a machine by hand.
type place struct {
	name   string
	extent string // the disk's file on the host
	do     func(ctx context.Context, kind, file string, blocks int) (time.Duration, error)
}

// vchName is the container's place; the others are called as their tuning.
const vchName = "vch"

// work is one measured piece.
type work struct {
	name   string
	kind   string // as ./load calls it
	blocks int
	bytes  int  // of a block, if it is told in MiB/s; 0: in operations a second
	cold   bool // the host forgets the disk first
	more   bool // its time is added to that of the work before
}

// works are done in this order in every round.
func works(mib int) []work {
	return []work{
		{name: "sequential write", kind: "seqwrite", blocks: mib, bytes: 1 << 20},
		{name: "the same and fsync", kind: "sync", blocks: mib, bytes: 1 << 20, more: true},
		{name: "sequential read", kind: "seqread", blocks: mib, bytes: 1 << 20},
		{name: "random read", kind: "randread", blocks: 500},
		{name: "random read, 8 at once", kind: "deepread", blocks: 1600},
		{name: "random write", kind: "randwrite", blocks: 500},
		{name: "write and fsync", kind: "fsync", blocks: 200},
		{name: "sequential read, cold", kind: "seqread", blocks: mib, bytes: 1 << 20, cold: true},
		{name: "random read, cold", kind: "randread", blocks: 250, cold: true},
	}
}

// results is all that was measured: rates[place][work] has one figure a round, in MiB/s or operations a second.
type results struct {
	about  []string
	rates  map[string]map[string][]float64
	cached map[string]int64 // bytes of the disk in the host's page cache after the works that are not cold
	took   time.Duration
	all    int // rounds of every setting
}

func bench(ctx context.Context, o options) (err error) {
	if o.rounds < 1 || o.mib < 8 || o.pairs < 0 {
		return errors.New("-n wants at least 1, -mib at least 8, -pairs at least 0")
	}
	dir, err := os.MkdirTemp("", "vio") // short: a socket's path has 107 bytes
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, os.RemoveAll(dir)) }()
	load, err := measure.Build(ctx, dir, "vch/test/iobench/load")
	if err != nil {
		return err
	}
	h, err := serve(ctx, dir, o)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, h.End()) }()
	r := results{rates: map[string]map[string][]float64{}, cached: map[string]int64{}}
	began := time.Now()
	if r.about, err = h.about(ctx); err != nil {
		return err
	}
	container, like, err := h.container(ctx, load)
	if err != nil {
		return err
	}
	places := []place{container}
	for i, t := range tunings() {
		extent, err := h.volume(ctx, fmt.Sprintf("hand%d", i))
		if err != nil {
			return err
		}
		m, err := boot(ctx, filepath.Join(dir, fmt.Sprintf("m%d", i)), t, like, load, extent)
		if err != nil {
			return fmt.Errorf("%s: %w", t.name, err)
		}
		defer m.End()
		places = append(places, place{t.name, extent, m.do})
	}
	compared := func(p place) bool { return p.name == vchName || p.name == chosen || p.name == jailed }
	all := 0 // rounds of every setting that were measured
	for round := range 1 + o.rounds + o.pairs {
		if time.Since(began) > o.limit && all > 0 {
			break
		}
		now := slices.Clone(places)
		if round > o.rounds || all > 0 && time.Since(began) > o.limit*7/10 {
			now = slices.DeleteFunc(now, func(p place) bool { return !compared(p) })
		}
		if round%2 == 1 { // what comes first is another one each time
			slices.Reverse(now)
		}
		for _, p := range now {
			rates, held, err := p.round(ctx, works(o.mib))
			if err != nil {
				return fmt.Errorf("%s: %w", p.name, err)
			}
			if round > 0 { // the first makes the file
				r.add(p.name, rates)
				r.cached[p.name] = held
			}
		}
		if round > 0 && len(now) == len(places) {
			all++
		}
		fmt.Fprintf(os.Stderr, "iobench: round %d of %d\n", round, o.rounds+o.pairs)
	}
	r.took, r.all = time.Since(began), all
	page := r.page(o, time.Now())
	return measure.Page(page, o.into)
}

// add takes the figures of one round.
func (r results) add(place string, rates map[string]float64) {
	if r.rates[place] == nil {
		r.rates[place] = map[string][]float64{}
	}
	for name, rate := range rates {
		r.rates[place][name] = append(r.rates[place][name], rate)
	}
}

// round does all works once, and tells what of the disk the host's page cache held (bytes) before the host was made to forget it.
func (p place) round(ctx context.Context, all []work) (rates map[string]float64, held int64, err error) {
	rates = map[string]float64{}
	var before time.Duration
	forgotten := false
	for _, w := range all {
		if w.cold {
			if !forgotten {
				if held, err = resident(p.extent); err != nil {
					return nil, 0, err
				}
			}
			if err := measure.Forget(p.extent); err != nil {
				return nil, 0, err
			}
			forgotten = true
		}
		took, err := p.do(ctx, w.kind, "/data/file", w.blocks)
		if err != nil {
			return nil, 0, fmt.Errorf("%s: %w", w.name, err)
		}
		sum := took
		if w.more {
			sum += before
		}
		before = took
		rates[w.name] = w.rate(sum)
	}
	return rates, held, nil
}

func (w work) rate(took time.Duration) float64 {
	amount := float64(w.blocks)
	if w.bytes > 0 {
		amount *= float64(w.bytes) / (1 << 20)
	}
	return amount / took.Seconds()
}

func (w work) unit() string {
	if w.bytes > 0 {
		return "MiB/s"
	}
	return "1/s"
}
