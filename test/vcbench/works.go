package main

import (
	"context"
	"fmt"
	"time"

	"vch/test/measure"
)

// work is one command of the user's that is measured. before makes what it needs, after undoes what the next round would trip over; both may be nil.
type work struct {
	name              string
	before, do, after func(ctx context.Context, d *daemon) error
}

// The volumes of works.
const (
	oldVolume = "old"
	newVolume = "new"
)

// works are done in this order in every round.
func works() []work {
	id := ""
	create := func(binds ...string) func(context.Context, *daemon) error {
		return func(ctx context.Context, d *daemon) (err error) {
			id, err = d.create(ctx, "", container{HostConfig: hostConfig{Binds: binds}})
			return err
		}
	}
	start := func(ctx context.Context, d *daemon) error { return d.begin(ctx, id) }
	kill := func(ctx context.Context, d *daemon) error { return d.kill(ctx, id) }
	remove := func(ctx context.Context, d *daemon) error { return d.remove(ctx, id, "") }
	noVolume := func(name string) func(context.Context, *daemon) error {
		return func(ctx context.Context, d *daemon) error { return d.noVolume(ctx, name) }
	}
	return []work{
		{name: "docker volume create", do: func(ctx context.Context, d *daemon) error { return d.volume(ctx, "made") }},
		{name: "docker volume rm", do: noVolume("made")},
		{name: "docker create", do: create()},
		{name: "docker start, the first", do: start},
		{name: "docker kill", do: kill},
		{name: "docker start, the second", do: start, after: kill},
		{name: "docker rm", do: remove},
		{name: "docker create -v NEW:/x", do: create(newVolume + ":/x")},
		{name: "docker start, with a volume", do: start, after: kill},
		{name: "docker rm, with a volume", do: remove, after: noVolume(newVolume)},
		{name: "docker create -v EXISTING:/x", do: create(oldVolume + ":/x"), after: remove},
		{name: "docker run --rm", do: func(ctx context.Context, d *daemon) error { return d.run(ctx) }},
		{name: "docker run --rm -v EXISTING:/x", do: func(ctx context.Context, d *daemon) error { return d.run(ctx, oldVolume+":/x") }},
		{name: "docker ps -a", do: func(ctx context.Context, d *daemon) error { _, _, err := d.containers(ctx); return err }},
		{name: "docker volume ls", do: func(ctx context.Context, d *daemon) error { _, err := d.volumes(ctx); return err }},
	}
}

// done is one round of a work.
type done struct {
	took          time.Duration
	before, after []call // the answer to the user
}

// result is what a work gave at a latency.
type result []done

// times are how long it took, in ms.
func (r result) times() (all []float64) {
	for _, d := range r {
		all = append(all, float64(d.took)/float64(time.Millisecond))
	}
	return all
}

// counted is the median of each call, before or after the answer.
func (r result) counted(after bool) counts {
	var rounds []counts
	for _, d := range r {
		if after {
			rounds = append(rounds, count(d.after))
		} else {
			rounds = append(rounds, count(d.before))
		}
	}
	return median(rounds)
}

// inARow is the median of how many calls follow each other before the answer.
func (r result) inARow() int {
	var rounds []float64
	for _, d := range r {
		rounds = append(rounds, float64(inARow(d.before)))
	}
	return int(measure.Quantile(rounds, 0.5) + 0.5)
}

// perform does all works, rounds times and once more before, which does not count: golden disks, the boot disc and connections are made then.
func perform(ctx context.Context, d *daemon, v *vcenter, rounds int) (map[string]result, error) {
	all := map[string]result{}
	for round := range 1 + rounds {
		for _, w := range works() {
			t, err := w.once(ctx, d, v)
			if err != nil {
				return nil, fmt.Errorf("%s: %w", w.name, err)
			}
			if round > 0 {
				all[w.name] = append(all[w.name], t)
			}
		}
	}
	return all, nil
}

func (w work) once(ctx context.Context, d *daemon, v *vcenter) (t done, err error) {
	if w.before != nil {
		if err := w.before(ctx, d); err != nil {
			return t, err
		}
	}
	if _, err := v.settled(ctx); err != nil {
		return t, err
	}
	began := time.Now()
	if err := w.do(ctx, d); err != nil {
		return t, err
	}
	ended := time.Now()
	t.took = ended.Sub(began)
	calls, err := v.settled(ctx)
	if err != nil {
		return t, err
	}
	t.before, t.after = until(calls, ended)
	if w.after != nil {
		err = w.after(ctx, d)
	}
	return t, err
}
