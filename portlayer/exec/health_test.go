package exec

import (
	"strings"
	"testing"
	"time"

	"vch/portlayer"
)

// Failures in a row make a container unhealthy, but for those before its first success in the start period; one success makes it healthy.
func TestJudge(t *testing.T) {
	began := time.Now()
	check := portlayer.Healthcheck{Retries: 2, StartPeriod: 10 * time.Second}
	h := portlayer.Health{Is: portlayer.Starting}
	for i, step := range []struct {
		after  time.Duration
		code   int
		is     portlayer.Wellness
		streak int
	}{
		{1 * time.Second, 1, portlayer.Starting, 0},
		{2 * time.Second, -1, portlayer.Starting, 0},
		{3 * time.Second, 0, portlayer.Healthy, 0},
		{4 * time.Second, 1, portlayer.Healthy, 1},
		{5 * time.Second, 1, portlayer.Unhealthy, 2},
		{6 * time.Second, 1, portlayer.Unhealthy, 3},
		{7 * time.Second, 0, portlayer.Healthy, 0},
		{20 * time.Second, 1, portlayer.Healthy, 1},
	} {
		h = judge(h, portlayer.Probe{Start: began.Add(step.after), ExitCode: step.code}, check, began)
		if h.Is != step.is || h.Streak != step.streak || len(h.Log) != min(i+1, probesKept) || h.Log[len(h.Log)-1].ExitCode != step.code {
			t.Errorf("after step %d: %+v", i, h)
		}
	}
	if h := judge(portlayer.Health{Is: portlayer.Starting, Streak: 2}, portlayer.Probe{Start: began, ExitCode: 1}, portlayer.Healthcheck{}, began); h.Is != portlayer.Unhealthy {
		t.Errorf("three failures: %+v", h)
	}
	check = portlayer.Healthcheck{Interval: time.Hour, StartPeriod: time.Minute, StartInterval: time.Second}
	starting, healthy := portlayer.Health{Is: portlayer.Starting}, portlayer.Health{Is: portlayer.Healthy}
	for _, c := range []struct {
		h    portlayer.Health
		ran  time.Duration
		want time.Duration
	}{{starting, 0, time.Second}, {starting, time.Minute, time.Hour}, {healthy, 0, time.Hour}} {
		if got := pace(c.h, check, c.ran); got != c.want {
			t.Errorf("%s after %v: the next in %v, not %v", c.h.Is, c.ran, got, c.want)
		}
	}
}

func (h *host) health(ref string, is portlayer.Wellness) portlayer.Health {
	h.t.Helper()
	return *h.becomes(ref, func(st portlayer.State) bool {
		return st.Health != nil && st.Health.Is == is && (is == portlayer.Starting || len(st.Health.Log) > 0)
	}).Health
}

func TestHealth(t *testing.T) {
	h := newHost(t, "")
	with := func(name string, check portlayer.Healthcheck) {
		spec := cmd(name, "sleep", "1000")
		check.Interval = 10 * time.Millisecond
		spec.Health = &check
		h.create(spec)
		h.start(name)
	}
	with("bad", portlayer.Healthcheck{Args: []string{"exit", "7"}, Retries: 2})
	with("good", portlayer.Healthcheck{Args: []string{"echo", strings.Repeat("x", 2*probeOutput)}})
	with("slow", portlayer.Healthcheck{Args: []string{"sleep", "1000"}, Timeout: 50 * time.Millisecond, Retries: 1})
	with("none", portlayer.Healthcheck{Args: []string{"no-such-program"}, Retries: 1})
	if got := h.health("bad", portlayer.Unhealthy); got.Streak < 2 || got.Log[0].ExitCode != 7 {
		t.Errorf("bad: %+v", got)
	}
	if got := h.health("good", portlayer.Healthy).Log[0]; got.Output != strings.Repeat("x", probeOutput)+"..." || got.End.Before(got.Start) {
		t.Errorf("good: %+v", got)
	}
	if got := h.health("slow", portlayer.Unhealthy).Log[0]; got.ExitCode != -1 || got.Output != "Health check exceeded timeout (50ms)" {
		t.Errorf("slow: %+v", got)
	}
	if got := h.health("none", portlayer.Unhealthy).Log[0]; got.ExitCode != -1 || !strings.Contains(got.Output, "no-such-program") {
		t.Errorf("none: %+v", got)
	}
	if !h.saw("container health_status: unhealthy") || !h.saw("container health_status: healthy") {
		t.Errorf("events: %v", h.events)
	}
	// The next vch goes on asking. What does not run is not well.
	h.down()
	h.up("")
	h.health("good", portlayer.Healthy)
	if err := h.s.Stop(t.Context(), "good", 0, nil); err != nil {
		t.Fatal(err)
	}
	if st := h.becomes("good", exited); st.Health.Is != portlayer.Unhealthy {
		t.Errorf("stopped: %+v", st.Health)
	}
	for _, name := range []string{"bad", "slow", "none"} {
		if err := h.s.Remove(t.Context(), name, true, false); err != nil {
			t.Error(err)
		}
	}
}
