package main

import (
	"context"
	"fmt"
	"math/rand/v2"
	"net/url"
	"sort"
	"time"
)

// figure is one thing with many volumes: the time of each of its runs.
type figure struct {
	what string
	runs []time.Duration
}

// users is how many containers refer to one of many volumes each: what stays of them at a prune, and what a restart has to find again.
const users = 100

// many measures what takes longer the more volumes there are. It leaves nothing.
func many(ctx context.Context, h *host, o options, r *results) error {
	if o.volumes < 2*users {
		return nil
	}
	if err := h.api(ctx, "DELETE", "/volumes/bench", nil, nil); err != nil { // what was measured before
		return err
	}
	m := &crowd{host: h, n: o.volumes, runs: o.runs}
	for _, step := range []func(context.Context) error{m.restart("restart of the daemon with no volume"), m.create, m.refer, m.inspect, m.list,
		m.restart(fmt.Sprintf("restart of the daemon with these, and %d containers", users)), m.prune, m.leave} {
		if err := step(ctx); err != nil {
			return err
		}
	}
	r.many = m.figures
	return nil
}

// crowd is many volumes.
type crowd struct {
	*host
	n, runs int
	figures []figure
}

func (m *crowd) name(i int) string { return fmt.Sprintf("many-%05d", i) }

// time measures n runs of do.
func (m *crowd) time(what string, n int, do func(i int) error) error {
	f := figure{what: what}
	for i := range n {
		took, err := timed(func() error { return do(i) })
		if err != nil {
			return fmt.Errorf("%s: %w", what, err)
		}
		f.runs = append(f.runs, took)
	}
	m.figures = append(m.figures, f)
	return nil
}

// halves are the labels by which the two prunes pick their volumes.
var halves = []string{"even", "odd"}

func (m *crowd) create(ctx context.Context) error {
	return m.time("volume create, durable", m.n, func(i int) error {
		return m.api(ctx, "POST", "/volumes/create", map[string]any{"Name": m.name(i), "Labels": map[string]string{"half": halves[i%2]}}, nil)
	})
}

// refer makes containers, which are not started.
func (m *crowd) refer(ctx context.Context) error {
	return m.time("create -v v:/data", users, func(i int) error {
		return m.api(ctx, "POST", fmt.Sprintf("/containers/create?name=many-%d", i),
			map[string]any{"Image": image, "Cmd": []string{"true"}, "HostConfig": map[string]any{"Binds": []string{m.name(i) + ":/data"}}}, nil)
	})
}

func (m *crowd) inspect(ctx context.Context) error {
	return m.time("volume inspect, of any", 10*users, func(int) error {
		return m.api(ctx, "GET", "/volumes/"+m.name(rand.IntN(m.n)), nil, nil)
	})
}

func (m *crowd) list(ctx context.Context) error {
	for _, ask := range []struct {
		what, path string
		want       int
	}{
		{"volume ls", "/volumes", m.n},
		{"volume ls, one by its name", "/volumes?filters=" + url.QueryEscape(`{"name":["^`+m.name(m.n/2)+`$"]}`), 1},
		{"volume ls, what no container refers to", "/volumes?filters=" + url.QueryEscape(`{"dangling":["true"]}`), m.n - users},
		{"system df, of volumes", "/system/df?type=volume", -1},
	} {
		if err := m.time(ask.what, m.runs, func(int) error {
			var got struct{ Volumes []struct{ Name string } }
			err := m.api(ctx, "GET", ask.path, nil, &got)
			if err == nil && ask.want >= 0 && len(got.Volumes) != ask.want {
				err = fmt.Errorf("%d volumes, not %d", len(got.Volumes), ask.want)
			}
			return err
		}); err != nil {
			return err
		}
	}
	return m.time("`docker volume ls`", m.runs, func(int) error { return m.docker(ctx, "volume", "ls") })
}

// restart is from the end of one daemon to the first answer of the next.
func (m *crowd) restart(what string) func(context.Context) error {
	return func(ctx context.Context) error {
		f := figure{what: what}
		for range 3 {
			if err := m.stop(ctx); err != nil {
				return err
			}
			took, err := timed(func() error { return m.launch(ctx) })
			if err != nil {
				return err
			}
			f.runs = append(f.runs, took)
		}
		m.figures = append(m.figures, f)
		return nil
	}
}

// prune takes one half by the API and the other by the CLI.
func (m *crowd) prune(ctx context.Context) error {
	half := (m.n - users) / 2
	if err := m.time(fmt.Sprintf("volume prune, of %d", half), 1, func(int) error {
		var gone struct{ VolumesDeleted []string }
		err := m.api(ctx, "POST", "/volumes/prune?filters="+url.QueryEscape(`{"all":["true"],"label":["half=`+halves[0]+`"]}`), nil, &gone)
		if err == nil && len(gone.VolumesDeleted) != half {
			err = fmt.Errorf("%d volumes were removed, not %d", len(gone.VolumesDeleted), half)
		}
		return err
	}); err != nil {
		return err
	}
	return m.time(fmt.Sprintf("`docker volume prune -f -a`, of %d", half), 1, func(int) error { return m.docker(ctx, "volume", "prune", "-f", "-a") })
}

// leave removes what the prunes had to leave.
func (m *crowd) leave(ctx context.Context) error {
	if err := m.time("rm of a container", users, func(i int) error { return m.remove(ctx, fmt.Sprintf("many-%d", i)) }); err != nil {
		return err
	}
	return m.time("volume rm", users, func(i int) error { return m.api(ctx, "DELETE", "/volumes/"+m.name(i), nil, nil) })
}

// quantile is the time that a share q of the runs do not exceed.
func (f figure) quantile(q float64) time.Duration {
	all := append([]time.Duration(nil), f.runs...)
	sort.Slice(all, func(i, j int) bool { return all[i] < all[j] })
	return all[int(q*float64(len(all)-1)+0.5)]
}

func (f figure) mean() time.Duration {
	var sum time.Duration
	for _, d := range f.runs {
		sum += d
	}
	return sum / time.Duration(len(f.runs))
}
