package exec

import (
	"cmp"
	"context"
	"fmt"
	"slices"
	"strings"
	"sync/atomic"
	"time"

	"vch/guest"
	"vch/portlayer"
)

// Health checks follow Moby's rules (daemon/health.go).

const (
	probeInterval = 30 * time.Second
	probeTimeout  = 30 * time.Second
	startingPace  = 5 * time.Second
	probeRetries  = 3
	probesKept    = 5
	probeOutput   = 4096             // bytes
	probeGrace    = 10 * time.Second // for the end of a probe that was killed
)

// judge is what a probe makes of a container's health. since is when it was started.
func judge(h portlayer.Health, p portlayer.Probe, check portlayer.Healthcheck, since time.Time) portlayer.Health {
	log := slices.Clone(h.Log[max(0, len(h.Log)+1-probesKept):])
	h.Log = append(log, p)
	switch {
	case p.ExitCode == 0:
		h.Is, h.Streak = portlayer.Healthy, 0
	case h.Is == portlayer.Starting && p.Start.Sub(since) < check.StartPeriod:
	default:
		if h.Streak++; h.Streak >= cmp.Or(check.Retries, probeRetries) {
			h.Is = portlayer.Unhealthy
		}
	}
	return h
}

// pace is how long the next probe waits.
func pace(h portlayer.Health, check portlayer.Healthcheck, ran time.Duration) time.Duration {
	if h.Is == portlayer.Starting && ran < check.StartPeriod {
		return cmp.Or(check.StartInterval, startingPace)
	}
	return cmp.Or(check.Interval, probeInterval)
}

// keepWell probes a run until it ends. Owner only.
func (u *unit) keepWell(r *run) {
	check := u.c.Spec.Health
	if check == nil {
		return
	}
	health := portlayer.Health{Is: portlayer.Starting}
	u.c.State.Health = &health
	u.show(false, false)
	s, since := u.s, u.c.State.StartedAt
	ctx, cancel := context.WithCancel(s.ctx)
	s.wg.Go(func() {
		defer cancel()
		select {
		case <-r.ended:
		case <-ctx.Done():
		}
	})
	s.wg.Go(func() {
		defer cancel()
		for health := health; ; {
			next := time.NewTimer(pace(health, *check, time.Since(since)))
			select {
			case <-next.C:
			case <-ctx.Done():
				next.Stop()
				return
			}
			if r.isPaused() {
				continue // nobody can say
			}
			was := health.Is
			health = judge(health, u.probe(ctx, r, *check), *check, since)
			if u.ask(ctx, func() error { u.found(r, was, health); return nil }) != nil {
				return // removed, or vch ends
			}
		}
	})
}

// found makes the health of a run known, which was something else before. Owner only.
func (u *unit) found(r *run, was portlayer.Wellness, health portlayer.Health) {
	if u.run != r {
		return
	}
	u.c.State.Health = &health
	u.show(false, false)
	if health.Is != was {
		u.s.publish(u.c, "health_status: "+string(health.Is))
		u.s.o.Log.Info("container's health changed", "container", short(u.c.ID), "name", u.c.Spec.Name, "health", health.Is)
	}
}

// probe runs one probe, and ends it when its time is over.
func (u *unit) probe(ctx context.Context, r *run, check portlayer.Healthcheck) (p portlayer.Probe) {
	p = portlayer.Probe{Start: time.Now().UTC(), ExitCode: -1}
	defer func() { p.End = time.Now().UTC() }()
	client, err := r.talk(ctx)
	if err != nil {
		p.Output = err.Error()
		return p
	}
	process := u.snapshot().container.Spec.Process
	process.Args, process.TTY, process.Stdin, process.Init = check.Args, false, false, false
	limit, id := cmp.Or(check.Timeout, probeTimeout), newID()
	ctx, cancel := context.WithTimeout(ctx, limit+probeGrace)
	defer cancel()
	var late atomic.Bool
	timeout := time.AfterFunc(limit, func() {
		late.Store(true)
		_ = client.Signal(ctx, id, sigkill)
	})
	defer timeout.Stop()
	var said []byte
	exit, err := client.Exec(ctx, id, process, nil, func(int) {}, func(_ guest.Stream, data []byte) error {
		said = append(said, data[:min(len(data), probeOutput+1-len(said))]...)
		return nil
	})
	p.Output = string(said)
	if len(said) > probeOutput {
		p.Output = string(said[:probeOutput]) + "..."
	}
	switch {
	case late.Load():
		p.Output = strings.TrimSuffix(fmt.Sprintf("Health check exceeded timeout (%v): %s", limit, p.Output), ": ")
	case err != nil:
		p.Output = err.Error()
	default:
		p.ExitCode = exit.Code
	}
	return p
}
