package main

import (
	"fmt"
	"strings"
	"time"

	"vch/test/measure"
)

// ratio is the median of what was measured in the same round, a to b, and the quartiles.
type ratio struct{ median, low, high float64 }

func ratioOf(a, b []float64) ratio {
	all := measure.Ratios(a, b)
	return ratio{measure.Quantile(all, 0.5), measure.Quantile(all, 0.25), measure.Quantile(all, 0.75)}
}

func (r ratio) String() string {
	return fmt.Sprintf("%s (%s to %s)", short(r.median), short(r.low), short(r.high))
}

// short is a ratio with the digits that tell something.
func short(x float64) string {
	switch {
	case x >= 100:
		return fmt.Sprintf("%.0f", x)
	case x < 0.1:
		return fmt.Sprintf("%.4f", x)
	}
	return fmt.Sprintf("%.2f", x)
}

// rates are a work's in a place: MiB or operations a second.
func (r results) rates(place string, w work) (all []float64) {
	for _, t := range r.told[place][w.name] {
		all = append(all, float64(w.amount)/t.took.Seconds())
	}
	return all
}

// medians are those of one operation of a work in a place, in µs.
func (r results) medians(place string, w work) (all []float64) {
	for _, t := range r.told[place][w.name] {
		all = append(all, float64(t.median)/float64(time.Microsecond))
	}
	return all
}

func (w work) unit() string {
	if w.mib {
		return "MiB/s"
	}
	return "1/s"
}

// page is the results as Markdown.
func (r results) page(o options, at time.Time) string {
	var b strings.Builder
	fmt.Fprintf(&b, "# NFS volumes: throughput and latency\n\nMeasured on %s by `make bench-nfs` (`test/nfsbench`) in %.0f min, medians of %d rounds, in which the three places take turns. This page is written by it: do not edit it.\n\n",
		at.Format("2006-01-02"), r.took.Minutes(), o.rounds)
	for _, line := range r.about {
		fmt.Fprintf(&b, "- %s\n", line)
	}
	fmt.Fprintf(&b, `
One NFS server (NFS-Ganesha, version 4.2) on the host's loopback exports a directory on the host's disk. **vch** is a container with a [volume](volumes.md) of it. **By hand** is a QEMU
with the same kernel and command line, processor, memory and acceleration, on QEMU's user network (-netdev user, virtio-net), that mounts the same export. **Disk** is the exported
directory itself, on the host. The same program does the same work in each. Reads pass the client's page cache by (O_DIRECT), and the server's host has forgotten the file before, so
that all of them are from the disk; writes go through the client's page cache. Sequential: %d MiB in blocks of 1 MiB. Random and append: 4 KiB. Created files have 1 KiB. One operation
at a time. A statx from the client's memory asks no server: it tells whether one guest is slower than the other by itself.

A ratio is that of one round; in brackets: the quartiles. No bar is set.

## Throughput

More is better; a ratio below 1 means that vch is slower.

| | vch | by hand | vch / by hand | disk | vch / disk |
|---|---:|---:|---:|---:|---:|
`, o.mib)
	all := works(o.mib)
	for _, w := range all {
		r.row(&b, fmt.Sprintf("%s, %s", w.name, w.unit()), "%.0f", func(place string) []float64 { return r.rates(place, w) })
	}
	b.WriteString("\n## Latency\n\nThe median of one operation in µs. Less is better; a ratio above 1 means that vch is slower.\n\n| | vch | by hand | vch / by hand | disk | vch / disk |\n|---|---:|---:|---:|---:|---:|\n")
	for _, w := range all {
		if !w.mib {
			r.row(&b, w.name, "%.1f", func(place string) []float64 { return r.medians(place, w) })
		}
	}
	b.WriteString("\n" + r.verdict(all) + r.processors(all) + reasons + r.starts())
	return b.String()
}

// row is a line of a table: the places, and vch beside each other.
func (r results) row(b *strings.Builder, name, format string, of func(place string) []float64) {
	ours := of(inVCH)
	fmt.Fprintf(b, "| %s | "+format+" |", name, measure.Quantile(ours, 0.5))
	for _, place := range []string{byHand, onDisk} {
		theirs := of(place)
		fmt.Fprintf(b, " "+format+" | %v |", measure.Quantile(theirs, 0.5), ratioOf(ours, theirs))
	}
	b.WriteString("\n")
}

// verdict says where vch and the machine by hand differ: where the quartiles of the ratio are on one side of 1.
func (r results) verdict(all []work) string {
	var slower, faster, alike []string
	for _, w := range all {
		switch q := ratioOf(r.rates(inVCH, w), r.rates(byHand, w)); {
		case q.high < 1:
			slower = append(slower, fmt.Sprintf("%s (%.2f)", w.name, q.median))
		case q.low > 1:
			faster = append(faster, fmt.Sprintf("%s (%.2f)", w.name, q.median))
		default:
			alike = append(alike, w.name)
		}
	}
	var b strings.Builder
	b.WriteString("By throughput, and by the quartiles of the ratio to the machine by hand:\n\n")
	for _, part := range []struct {
		title string
		which []string
	}{{"vch is slower", slower}, {"vch is faster", faster}, {"neither is", alike}} {
		if len(part.which) == 0 {
			part.which = []string{"nowhere"}
		}
		fmt.Fprintf(&b, "- %s: %s.\n", part.title, strings.Join(part.which, "; "))
	}
	return b.String()
}

// processors is where the time went.
func (r results) processors(all []work) string {
	var b strings.Builder
	b.WriteString(`
## Processors

Processor time of each process by operation, or by MiB where the work is sequential, in µs (/proc/PID/stat, all rounds). QEMU's is its guest's, the NFS client's and the network's work
there, and its own. The machine by hand has its network in QEMU; vch has the end of the guest's connection, and the connection to the server, in its own process. vch has no profiling
endpoint: what its time is spent on was not profiled.

| | vch: QEMU | vch | server | by hand: QEMU | server |
|---|---:|---:|---:|---:|---:|
`)
	for _, w := range all {
		fmt.Fprintf(&b, "| %s |", w.name)
		for _, c := range []struct{ place, who string }{{inVCH, "QEMU"}, {inVCH, "vch"}, {inVCH, "server"}, {byHand, "QEMU"}, {byHand, "server"}} {
			done := w.amount * len(r.told[c.place][w.name])
			fmt.Fprintf(&b, " %.0f |", r.spent[c.place][w.name][c.who].Seconds()*1e6/float64(done))
		}
		b.WriteString("\n")
	}
	return b.String()
}

// reasons says what is behind the difference, as far as it was found out. Whoever runs this again reads the tables first.
const reasons = `
## Why

What follows was measured on 2026-11-26, without KVM, by variants of this program.

- Sequential transfers: a guest without offloads pays by the packet, and the frames of vch's link are longer than the 1500 bytes of QEMU's user network. Beside an MTU of 9000, in 9
  rounds: 1500 wrote at 0.42 and read at 0.66 of its speed, 16384 at 1.15 and 1.01, 32768 at 0.98 and 1.12, 60000 at 1.16 and 1.25; the small operations took as long with each but
  1500. So it is 60000; a machine with 128 MiB of memory gained as much.
- Small operations: a round trip costs more in QEMU and its guest, and some in vch's process. For statx from the server, in µs: 539 in vch, 527 where its machine booted instead of being
  a fork; 389 by hand, 394 by hand in QEMU's sandbox as vch has it; 382 by hand, 407 by hand in a cgroup with the container's controllers. So none of these is the reason. vch's end
  acknowledges each call by a packet of its own before the answer; holding that back for up to 1 ms gained nothing (515 beside 507). What is left, and was not told apart: the tag on each
  frame (802.1Q), QEMU's stream backend, and the way through vch's process.
- docker run: the start's mount phase, as vch's log has it, takes some 125 ms with an NFS volume and 30 ms without a volume. The rest of the difference was not looked for.
`

// starts is what a volume costs a docker run.
func (r results) starts() string {
	var b strings.Builder
	fmt.Fprintf(&b, "\n## docker run\n\n`docker run --rm IMAGE true` by the docker CLI, in ms, with machines kept ready ([templates.md](templates.md)): medians of %d, in turns, with %v between two.\n\n| | ms | to the one without a volume |\n|---|---:|---:|\n", len(r.runs[0]), rest)
	ms := make([][]float64, len(r.runs))
	for i, all := range r.runs {
		for _, t := range all {
			ms[i] = append(ms[i], t.Seconds()*1000)
		}
	}
	for i, w := range ways() {
		if i == 0 {
			fmt.Fprintf(&b, "| %s | %.0f | |\n", w.name, measure.Quantile(ms[i], 0.5))
			continue
		}
		fmt.Fprintf(&b, "| %s | %.0f | %v |\n", w.name, measure.Quantile(ms[i], 0.5), ratioOf(ms[i], ms[0]))
	}
	nfs, disk := len(ms)-1, len(ms)-2
	fmt.Fprintf(&b, "\nWith an NFS volume, to one on a disk: %v.\n", ratioOf(ms[nfs], ms[disk]))
	return b.String()
}
