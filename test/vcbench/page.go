package main

import (
	"fmt"
	"runtime"
	"strings"
	"time"

	"vch/test/measure"
)

// page is the results as Markdown.
func (r results) page(o options, at time.Time) string {
	var b strings.Builder
	fmt.Fprintf(&b, "# vSphere: calls, round trips and scale\n\nMeasured on %s by `make bench-vsphere` (`test/vcbench`) in %.0f min. This page is written by it: do not edit it.\n", at.Format("2006-01-02"), r.took.Minutes())
	for i, line := range r.about {
		if i == 0 {
			b.WriteString("\n")
		}
		fmt.Fprintf(&b, "- %s\n", line)
	}
	r.commands(&b, o)
	r.beside(&b, o)
	r.atScale(&b, o)
	return b.String()
}

// commands are the calls of single commands.
func (r results) commands(b *strings.Builder, o options) {
	fmt.Fprintf(b, `
The vCenter is the simulated one, in a process of its own; **a latency of %v of each call is assumed**, and everything that is told in time depends on it. Counts do not. Its machines are hollow: a guest that answers at once and no VM, so that a start has no boot in it.

## Calls of a command

Medians of %d rounds. **Calls** are those before the user has the answer: SOAP calls and requests for files (/folder). **In a row** are those of which each begins after the one before was
answered: round trips that the user waits for. **Waits** are the answers to the one question that is open at all times (WaitForUpdatesEx), by which the daemon hears of the end of every task,
and which costs no call of its own. **After** are calls that go on when the user has the answer. **Time** is with the latency, and without; the rest of their difference over the latency
is what waits cost.

| command | calls | in a row | waits | after | ms | ms without latency | difference / latency |
|---|---:|---:|---:|---:|---:|---:|---:|
`, o.latency, o.rounds)
	for _, w := range works() {
		fast, slow := r.at[0][w.name], r.at[o.latency][w.name]
		c, t0, t := slow.counted(false), measure.Quantile(fast.times(), 0.5), measure.Quantile(slow.times(), 0.5)
		fmt.Fprintf(b, "| `%s` | %d | %d | %d | %d | %.0f | %.0f | %.1f |\n", w.name, c.asked(), slow.inARow(), c[waitCall], slow.counted(true).asked(), t, t0, (t-t0)/ms(o.latency))
	}
	b.WriteString("\nBy method:\n\n| command | calls |\n|---|---|\n")
	for _, w := range works() {
		slow := r.at[o.latency][w.name]
		text := slow.counted(false).String()
		if after := slow.counted(true); after.asked() > 0 {
			text += "; after: " + after.String()
		}
		fmt.Fprintf(b, "| `%s` | %s |\n", w.name, text)
	}
	if o.trace {
		for _, w := range works() {
			fmt.Fprintf(b, "\n%s:\n\n", w.name)
			for _, x := range append(r.at[o.latency][w.name][0].before, r.at[o.latency][w.name][0].after...) {
				fmt.Fprintf(b, "    %s\n", x.Name)
			}
		}
	}
}

func ms(d time.Duration) float64 { return float64(d) / float64(time.Millisecond) }

// String is the calls by name, the most frequent first.
func (c counts) String() string {
	var parts []string
	for _, name := range c.names() {
		parts = append(parts, fmt.Sprintf("%d %s", c[name], name))
	}
	if len(parts) == 0 {
		return "none"
	}
	return strings.Join(parts, ", ")
}

// ancestor is what vSphere Integrated Containers called for the same, at the least, by its sources (lib/portlayer and pkg/vsphere of vmware/vic). Each of its tasks costs five
// calls and more: the task's own, and those of govmomi's property.Wait, which makes a collector and a filter, waits, and destroys the collector.
var ancestor = []struct {
	work  string
	least int
	what  string
}{
	{"docker create", 8, "Datacenter.Folders, CreateVM_Task and its wait (5), the new machine's path (Finder.Element), DisableMethods: `exec.Commit`, `vm.NewVirtualMachine`"},
	{"docker start, the first", 15, "properties of the machine, ReconfigVM_Task and its wait (5), PowerOnVM_Task and its wait (5), the wait for guestinfo (4): `exec.Commit`, `containerBase.start`"},
	{"docker rm", 18, "path and name of the machine, its devices, ReconfigVM_Task, Destroy_Task and DeleteDatastoreFile_Task with their waits (15): `Container.Remove`, `vm.DeleteExceptDisks`"},
	{"docker volume create", 15, "MakeDirectory twice, ReconfigVM_Task of the appliance's own machine twice with its wait (10), its devices twice, an upload; and mkfs on the attached disk: `VolumeStore.VolumeCreate`, `disk.Manager`"},
	{"docker volume rm", 5, "DeleteDatastoreFile_Task and its wait (5): `VolumeStore.VolumeDestroy`"},
}

// beside puts VIC's calls beside ours.
func (r results) beside(b *strings.Builder, o options) {
	b.WriteString(`
## Beside vSphere Integrated Containers

VIC waits for every one of its calls. Its numbers are read from its sources (vmware/vic, lib/portlayer and pkg/vsphere), not measured, and are the least: what its own caches, events and
retries ask is left out. Each of its tasks costs five calls and more: its start, and those of govmomi's property.Wait (CreatePropertyCollector, CreateFilter, WaitForUpdates,
DestroyPropertyCollector). One of vch's costs its start: of its end the daemon hears by the one question that is open, which asks for the server's recent tasks (a task that is not told of in half a second
is put on a list, by ModifyListView). An image's disk is looked at by the first container of a minute.

| command | VIC, at least | vch, in a row | VIC's calls |
|---|---:|---:|---|
`)
	for _, a := range ancestor {
		fmt.Fprintf(b, "| `%s` | %d | %d | %s |\n", a.work, a.least, r.at[o.latency][a.work].inARow(), a.what)
	}
}

// atScale is what many containers and volumes take.
func (r results) atScale(b *strings.Builder, o options) {
	if len(r.phases) == 0 {
		return
	}
	fmt.Fprintf(b, `
## %d containers, %d volumes

Each step once, in this order; %d clients ask at once; %d containers are started, in hollow machines. %d volumes are made one by one; the others are copies of the directory of one of them, put
onto the datastore's own directory while the daemon is away. Volumes that were made or changed in the last minute are read anew each time, as datastores tell times in seconds; the
copies are older. The daemon has started when docker ps -a tells all containers, and all that run as running. Calls go on a little while after a step, and count for it. Processor times are
of both processes, each by itself: what the simulator takes is not the daemon's, but they share %s. Golden disks are made sparse before, so that a copy writes what is in them alone, and
the boot disc is there. The answer to one search of a whole store, of which the simulator makes copies by way of XML, is most of the time of docker volume ls with all volumes: how long a vCenter
takes for it is not known here.

| step | times | s | ms each, or in all | calls | daemon's memory, MiB | daemon's processor, s | simulator's processor, s |
|---|---:|---:|---:|---:|---:|---:|---:|
`, o.containers, o.volumes, o.clients, o.started, o.made, processors())
	for _, p := range r.phases {
		n := max(p.n, 1)
		fmt.Fprintf(b, "| %s | %d | %.1f | %.0f | %d | %d | %.1f | %.1f |\n", p.name, n, p.took.Seconds(), ms(p.took)/float64(n), p.calls.asked(), p.rss>>20, p.daemonCPU.Seconds(), p.simCPU.Seconds())
	}
	b.WriteString("\nTheir calls by method, and how long the simulator had each on average beyond the latency:\n\n| step | calls | waits | simulator's own, ms a call |\n|---|---|---:|---:|\n")
	for _, p := range r.phases {
		each := 0.0
		if n := p.calls.asked(); n > 0 {
			each = ms(p.own) / float64(n)
		}
		fmt.Fprintf(b, "| %s | %s | %d | %.1f |\n", p.name, p.calls, p.calls[waitCall], each)
	}
}

func processors() string {
	if n := runtime.NumCPU(); n > 1 {
		return fmt.Sprintf("%d processors", n)
	}
	return "one processor"
}
