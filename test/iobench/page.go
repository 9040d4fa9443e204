package main

import (
	"fmt"
	"strings"
	"time"

	"vch/test/measure"
)

// bar is how far vch may be below the machine by hand.
const bar = 0.05

// figure is the median, and half the distance of the quartiles in per cent of it.
func figure(all []float64) string {
	m := measure.Quantile(all, 0.5)
	return fmt.Sprintf("%.0f ±%.0f", m, 50*(measure.Quantile(all, 0.75)-measure.Quantile(all, 0.25))/m)
}

// page is the results as Markdown.
func (r results) page(o options, at time.Time) string {
	var b strings.Builder
	fmt.Fprintf(&b, "# The I/O of a volume\n\nMeasured on %s by `make bench-io` in %.0f min (`go run ./test/iobench -h` lists its options). This page is written by it: do not edit it.\n\n", at.Format("2006-01-02"), r.took.Minutes())
	for _, line := range r.about {
		fmt.Fprintf(&b, "- %s\n", line)
	}
	fmt.Fprintf(&b, `
The same program does the same work in a container of vch, on a volume, and in machines run by hand, each on a volume's extent file attached as raw: the same kernel,
processor, memory and acceleration. They take turns in every round. A sequential work moves %d MiB in blocks of 1 MiB, a random one blocks of 4 KiB, one at a time if
nothing else is said; both pass the guest's page cache by. "write and fsync" writes 4 KiB through it and has each flushed by fdatasync(2). "cold" is after the host
dropped the disk from its page cache. Sequential: MiB/s. Others: operations a second.

## vch and a machine by hand

The machine by hand has the settings that vch has (%s), once with nothing else, once in the sandbox (-sandbox on,…) that every machine of vch is in. A ratio is
that of one round, vch to the machine by hand; 1 is as fast, above it faster. In brackets: the quartiles.

| | vch | by hand | ratio | within %.0f %% | sandbox, by hand | ratio | within %.0f %% |
|---|---:|---:|---:|---|---:|---:|---|
`, o.mib, chosen, 100*bar, 100*bar)
	for _, w := range works(o.mib) {
		ours := r.rates[vchName][w.name]
		fmt.Fprintf(&b, "| %s, %s | %.0f |", w.name, w.unit(), measure.Quantile(ours, 0.5))
		for _, name := range []string{chosen, jailed} {
			theirs := r.rates[name][w.name]
			all := measure.Ratios(ours, theirs)
			verdict := "yes"
			if measure.Quantile(all, 0.5) < 1-bar {
				verdict = "no"
			}
			fmt.Fprintf(&b, " %.0f | %.3f (%.2f to %.2f) | %s |", measure.Quantile(theirs, 0.5), measure.Quantile(all, 0.5), measure.Quantile(all, 0.25), measure.Quantile(all, 0.75), verdict)
		}
		b.WriteString("\n")
	}
	fmt.Fprintf(&b, "\nRounds: %d.\n", len(r.rates[vchName][works(o.mib)[0].name]))
	b.WriteString(r.matrix(o))
	b.WriteString(reasons)
	return b.String()
}

// matrix is the tunings beside each other.
func (r results) matrix(o options) string {
	var b strings.Builder
	fmt.Fprintf(&b, "\n## The settings\n\nMachines by hand: medians of %d rounds, and ± half the distance of the quartiles in per cent. The last column is what of the disk the host's page cache held,\nbeside what the guest has in its own, before it was dropped for what is cold.\n\n| |", r.all)
	for _, w := range works(o.mib) {
		fmt.Fprintf(&b, " %s |", w.name)
	}
	b.WriteString(" host's cache, MiB |\n|---|" + strings.Repeat("---:|", len(works(o.mib))+1) + "\n")
	for _, t := range tunings() {
		name := t.name
		if t.name == chosen {
			name = "**" + name + "**"
		}
		fmt.Fprintf(&b, "| %s |", name)
		for _, w := range works(o.mib) {
			all := r.rates[t.name][w.name]
			fmt.Fprintf(&b, " %s |", figure(all[:min(len(all), r.all)]))
		}
		fmt.Fprintf(&b, " %.0f |\n", float64(r.cached[t.name])/(1<<20))
	}
	return b.String()
}

// reasons says why the tuning is what it is. Whoever runs this again reads the tables first.
const reasons = `
## The choice

Disks stay on the host's page cache, with QEMU's threads, on one virtio-scsi controller without an iothread. No other setting was better in most columns by more
than its spread, and a few rounds on a busy host do not carry a change; more rounds (-n, -limit) may.

- All settings are as durable: a flush of the guest is an fdatasync of the disk's file (hypervisor/qemu, TestDurable), and a QEMU that is killed loses nothing.
- direct (O_DIRECT) keeps nothing of the disk on the host, and a durable sequential write is quicker: nothing is copied first. What is read or written at random,
  or a second time, is slower, as it waits for the host's disk. The host may take its page cache back when it wants, so the double caching costs it no machine.
- io_uring read quicker at random what the host had cached, and was no quicker at the rest. A host may forbid it
  (kernel.io_uring_disabled, a container's seccomp), and then QEMU refuses the disk.
- An iothread gained nothing that holds in all columns, and would have to be in a template before its forks' disks are plugged.
- virtio-blk is quicker at small transfers. Each disk is then a PCI device: it needs a root port that is there at boot, where virtio-scsi plugs hundreds.
- Queues: QEMU's choice, one a processor, is the best of those compared.

Where vch is below the machine by hand with the same settings and sandbox, the disk's settings are not the reason, as they are the same. What differs is in the guest:
the container's cgroup and namespaces, the tether, and a docker exec for each piece of work.
`
