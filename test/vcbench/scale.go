package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"sync"
	"sync/atomic"
	"time"

	"vch/internal/pause"
	"vch/internal/vmdkfile"
	"vch/test/measure"
)

// phase is one step of the measuring at scale, done once.
type phase struct {
	name      string
	n         int // of what was done, 0: once
	took      time.Duration
	calls     counts
	own       time.Duration // the simulator's own time for all those calls
	rss       int64         // of the daemon, after
	daemonCPU time.Duration
	simCPU    time.Duration
}

// measured does a phase and counts what it calls and uses.
func (r *results) measured(ctx context.Context, o options, d *daemon, v *vcenter, name string, n int, do func(ctx context.Context) error) error {
	if _, err := v.settled(ctx); err != nil {
		return err
	}
	var begun used
	var err error
	if d.Running() {
		if begun, err = usedBy(d.PID()); err != nil {
			return err
		}
	}
	sim, err := usedBy(v.cmd.Process.Pid)
	if err != nil {
		return err
	}
	stop := r.profile(ctx, o, d, v, name)
	began := time.Now()
	if err := do(ctx); err != nil {
		return fmt.Errorf("%s: %w", name, err)
	}
	p := phase{name: name, n: n, took: time.Since(began)}
	stop()
	var after used
	if d.Running() {
		if after, err = usedBy(d.PID()); err != nil {
			return err
		}
	} else {
		after = begun
	}
	simAfter, err := usedBy(v.cmd.Process.Pid)
	if err != nil {
		return err
	}
	calls, err := v.settled(ctx)
	if err != nil {
		return err
	}
	p.calls, p.own, p.rss, p.daemonCPU, p.simCPU = count(calls), own(calls, o.latency), after.rss, after.cpu-begun.cpu, simAfter.cpu-sim.cpu
	r.phases = append(r.phases, p)
	fmt.Fprintf(os.Stderr, "vcbench: %s: %.1f s, %d calls, daemon %.1f s of processor and %d MiB, simulator %.1f s\n", name, p.took.Seconds(), p.calls.asked(), p.daemonCPU.Seconds(), p.rss>>20, p.simCPU.Seconds())
	return nil
}

// atOnce does n things, several at once, and ends with the first error.
func atOnce(ctx context.Context, clients, n int, do func(ctx context.Context, i int) error) error {
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	var next atomic.Int64
	var all sync.WaitGroup
	for range clients {
		all.Go(func() {
			for i := int(next.Add(1)) - 1; i < n && ctx.Err() == nil; i = int(next.Add(1)) - 1 {
				if err := do(ctx, i); err != nil {
					cancel(err)
				}
			}
		})
	}
	all.Wait()
	return context.Cause(ctx)
}

// scale makes many containers and volumes, lists them, and starts the daemon anew.
func (r *results) scale(ctx context.Context, o options, d *daemon, v *vcenter) error {
	if err := d.importImage(ctx); err != nil {
		return err
	}
	// The boot disc and the golden disk are there when it begins.
	if err := d.run(ctx, "first:/x"); err != nil {
		return err
	}
	if err := d.noVolume(ctx, "first"); err != nil {
		return err
	}
	if err := errors.Join(sparse(ctx, v), v.latency(ctx, o.latency)); err != nil {
		return err
	}
	ids := make([]string, o.containers)
	step := func(name string, n int, do func(ctx context.Context) error) error {
		return r.measured(ctx, o, d, v, name, n, do)
	}
	list := func(of string) error {
		return step("docker ps -a, "+of, 0, func(ctx context.Context) error { return r.see(ctx, o, d, 0) })
	}
	volumes := func(of string, want int) error {
		return step("docker volume ls, "+of, 0, func(ctx context.Context) error {
			n, err := d.volumes(ctx)
			if err == nil && n != want {
				err = fmt.Errorf("there are %d volumes, not %d", n, want)
			}
			return err
		})
	}
	restart := func(of string) error {
		if err := step("daemon stops, "+of, 0, func(context.Context) error { return d.Stop() }); err != nil {
			return err
		}
		return step("daemon starts, "+of, 0, func(ctx context.Context) error {
			if err := d.Start(ctx); err != nil {
				return err
			}
			return r.see(ctx, o, d, o.started)
		})
	}
	const many = "containers"
	return firstError(
		func() error {
			return step("docker create", o.containers, func(ctx context.Context) error {
				return atOnce(ctx, o.clients, o.containers, func(ctx context.Context, i int) (err error) {
					ids[i], err = d.create(ctx, fmt.Sprintf("c%05d", i), container{})
					return err
				})
			})
		},
		func() error {
			return step("docker start", o.started, func(ctx context.Context) error {
				return atOnce(ctx, o.clients, o.started, func(ctx context.Context, i int) error { return d.begin(ctx, ids[i]) })
			})
		},
		func() error { return list(many) },
		func() error {
			return step("nothing, for 10 s", 0, func(ctx context.Context) error { return pause.For(ctx, 10*time.Second) })
		},
		func() error { return restart(many) },
		func() error {
			return step("docker volume create", o.made, func(ctx context.Context) error {
				return atOnce(ctx, o.clients, o.made, func(ctx context.Context, i int) error { return d.volume(ctx, volumeName(i)) })
			})
		},
		func() error { return volumes("those made", o.made) },
		func() error { return copied(v, o) },
		func() error { return restart("with all volumes") },
		func() error { return volumes("all, the first", o.volumes) },
		func() error { return volumes("all, again", o.volumes) },
		func() error {
			return step("docker create -v EXISTING:/x, among all", 0, func(ctx context.Context) error {
				_, err := d.create(ctx, "one", container{HostConfig: hostConfig{Binds: []string{volumeName(o.volumes-1) + ":/x"}}})
				return err
			})
		},
	)
}

func firstError(all ...func() error) error {
	for _, do := range all {
		if err := do(); err != nil {
			return err
		}
	}
	return nil
}

func volumeName(i int) string { return fmt.Sprintf("v%05d", i) }

// see lists all containers, and waits until as many run as should.
func (r *results) see(ctx context.Context, o options, d *daemon, running int) error {
	for limit := time.Now().Add(measure.Wait); ; {
		n, run, err := d.containers(ctx)
		if err != nil || n >= o.containers && run >= running {
			return err
		}
		if time.Now().After(limit) {
			return fmt.Errorf("%d containers of %d are there, and %d of %d run", n, o.containers, run, running)
		}
		time.Sleep(20 * time.Millisecond)
	}
}

// copied makes the other volumes by copies of a made one's directory on the datastore: the disk's content is left out, which nobody reads here.
func copied(v *vcenter, o options) error {
	store := v.path("vch", "store", "volumes")
	was := volumeName(0)
	st, err := os.Stat(filepath.Join(store, was, vmdkfile.Extent(was+".vmdk")))
	if err != nil {
		return err
	}
	text, err := os.ReadFile(filepath.Join(store, was, "volume.json"))
	if err != nil {
		return err
	}
	var record map[string]any
	if err := json.Unmarshal(text, &record); err != nil {
		return err
	}
	old := time.Now().Add(-time.Hour)
	for i := o.made; i < o.volumes; i++ {
		name := volumeName(i)
		dir := filepath.Join(store, name)
		record["label"] = fmt.Sprintf("%032x", i)
		text, err := json.MarshalIndent(record, "", "  ")
		if err != nil {
			return err
		}
		extent := vmdkfile.Extent(name + ".vmdk")
		if err := errors.Join(os.Mkdir(dir, 0o755),
			os.WriteFile(filepath.Join(dir, "volume.json"), text, 0o600),
			os.WriteFile(filepath.Join(dir, name+".vmdk"), []byte(vmdkfile.OnDatastore(extent, st.Size())), 0o600),
			os.WriteFile(filepath.Join(dir, extent), nil, 0o600),
			os.Truncate(filepath.Join(dir, extent), st.Size())); err != nil {
			return err
		}
		for _, f := range []string{"volume.json", name + ".vmdk", extent} {
			if err := os.Chtimes(filepath.Join(dir, f), old, old); err != nil {
				return err
			}
		}
	}
	return nil
}
