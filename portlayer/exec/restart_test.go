package exec

import (
	"context"
	"errors"
	"strings"
	"testing"
	"time"

	"vch/internal/fault"
	"vch/portlayer"
)

func TestRestartRules(t *testing.T) {
	always, stopped, failure := portlayer.RestartPolicy{When: portlayer.RestartAlways}, portlayer.RestartPolicy{When: portlayer.RestartUnlessStopped}, portlayer.RestartPolicy{When: portlayer.RestartOnFailure}
	twice := portlayer.RestartPolicy{When: portlayer.RestartOnFailure, Most: 2}
	ended := portlayer.State{Phase: portlayer.Exited, StartedAt: time.Now()}
	with := func(change func(*portlayer.State)) portlayer.State {
		st := ended
		change(&st)
		return st
	}
	byHand := with(func(st *portlayer.State) { st.ByHand = true })
	failed := with(func(st *portlayer.State) { st.ExitCode = 1 })
	for _, c := range []struct {
		name          string
		p             portlayer.RestartPolicy
		st            portlayer.State
		then, withVCH bool
	}{
		{"none", portlayer.RestartPolicy{}, failed, false, false},
		{"always", always, ended, true, true},
		{"always, by hand", always, byHand, false, true},
		{"always, never started", always, portlayer.State{Phase: portlayer.Exited}, true, false},
		{"unless-stopped", stopped, ended, true, true},
		{"unless-stopped, by hand", stopped, byHand, false, false},
		{"on-failure, success", failure, ended, false, false},
		{"on-failure", failure, failed, true, false},
		{"on-failure, by hand", failure, with(func(st *portlayer.State) { st.ByHand, st.ExitCode = true, 137 }), false, false},
		{"on-failure, often", failure, with(func(st *portlayer.State) { st.ExitCode, st.Restarts = 1, 1000 }), true, false},
		{"twice, once", twice, with(func(st *portlayer.State) { st.ExitCode, st.Restarts = 1, 1 }), true, false},
		{"twice, twice", twice, with(func(st *portlayer.State) { st.ExitCode, st.Restarts = 1, 2 }), false, false},
	} {
		if then, withVCH := restarts(c.p, c.st), restartsWithVCH(c.p, c.st); then != c.then || withVCH != c.withVCH {
			t.Errorf("%s: %v, when vch starts %v; want %v, %v", c.name, then, withVCH, c.then, c.withVCH)
		}
	}
	var waits []time.Duration
	for last := time.Duration(0); len(waits) < 12; waits = append(waits, last) {
		last = nextWait(last, longRun-1)
	}
	if waits[0] != firstWait || waits[3] != 8*firstWait || waits[11] != mostWait || nextWait(mostWait, longRun) != firstWait {
		t.Errorf("the waits are %v", waits)
	}
}

// withRestart is a container that ends with a code.
func withRestart(name, code string, p portlayer.RestartPolicy) portlayer.ContainerSpec {
	spec := cmd(name, "exit", code)
	spec.Restart = p
	return spec
}

// becomes waits until a container's state is what ok says.
func (h *host) becomes(ref string, ok func(portlayer.State) bool) portlayer.State {
	h.t.Helper()
	ctx, cancel := context.WithTimeout(h.t.Context(), time.Minute)
	defer cancel()
	u, err := h.s.find(ref)
	if err != nil {
		h.t.Fatal(err)
	}
	snap, err := u.await(ctx, func(s *snapshot) bool { return ok(s.container.State) })
	if err != nil {
		h.t.Fatalf("%s stays %+v: %v", ref, snap.container.State, err)
	}
	return snap.container.State
}

func (h *host) count(event string) (n int) {
	h.mu.Lock()
	defer h.mu.Unlock()
	for _, e := range h.events {
		if e == event {
			n++
		}
	}
	return n
}

func exited(st portlayer.State) bool { return st.Phase == portlayer.Exited }

// A container that fails is started again as often as it may, and as often again after its user has started it.
func TestRestartOnFailure(t *testing.T) {
	h := newHost(t, "")
	h.create(withRestart("cc", "3", portlayer.RestartPolicy{When: portlayer.RestartOnFailure, Most: 2}))
	for try := 1; try <= 2; try++ {
		h.start("cc")
		if st := h.becomes("cc", exited); st.Restarts != 2 || st.ExitCode != 3 || st.ByHand {
			t.Errorf("it ended as %+v", st)
		}
		if n := h.count("container start"); n != 3*try {
			t.Errorf("it was started %d times, not %d", n, 3*try)
		}
	}
	h.create(withRestart("good", "0", portlayer.RestartPolicy{When: portlayer.RestartOnFailure}))
	h.start("good")
	if st := h.becomes("good", exited); st.Restarts != 0 {
		t.Errorf("what succeeds was started again: %+v", st)
	}
}

// What its user stops, between two runs or in one, stays stopped, until vch starts again or its user starts it.
func TestRestartUntilStopped(t *testing.T) {
	h := newHost(t, "")
	again := func(st portlayer.State) bool { return st.Restarts >= 1 }
	waits := func(st portlayer.State) bool { return st.Phase == portlayer.Restarting && st.Restarts >= 2 }
	runs := func(st portlayer.State) bool { return st.Phase == portlayer.Running }
	for name, when := range map[string]portlayer.RestartWhen{"always": portlayer.RestartAlways, "unless": portlayer.RestartUnlessStopped} {
		h.create(withRestart(name, "0", portlayer.RestartPolicy{When: when}))
		h.start(name)
		h.becomes(name, waits)
	}
	for _, name := range []string{"always", "unless"} {
		if err := h.s.Stop(t.Context(), name, 0, nil); err != nil {
			t.Fatal(err)
		}
		if st := h.becomes(name, exited); !st.ByHand {
			t.Errorf("%s was stopped: %+v", name, st)
		}
		if err := h.s.Stop(t.Context(), name, 0, nil); !errors.Is(err, portlayer.ErrNotModified) {
			t.Errorf("stopped twice: %v", err)
		}
	}
	sleeper := cmd("sleeper", "sleep", "1000")
	sleeper.Restart.When = portlayer.RestartAlways
	h.create(sleeper)
	h.start("sleeper")
	if err := h.s.Kill(t.Context(), "sleeper", sigkill); err != nil {
		t.Fatal(err)
	}
	if st := h.becomes("sleeper", exited); !st.ByHand || st.ExitCode != 137 {
		t.Errorf("killed by its user: %+v", st)
	}
	before, was := h.count("container start"), h.becomes("always", exited).Restarts
	h.down()
	h.up("")
	h.becomes("sleeper", runs)
	h.becomes("always", func(st portlayer.State) bool { return st.Restarts > was })
	if st := h.becomes("unless", exited); !st.ByHand {
		t.Errorf("unless-stopped: %+v", st)
	}
	if n := h.count("container start"); n < before+2 {
		t.Errorf("%d starts, after %d", n, before)
	}
	// Its machine ends, and nobody asked for it.
	u, err := h.s.find("sleeper")
	if err != nil {
		t.Fatal(err)
	}
	if err := u.snapshot().run.machine.PowerOff(t.Context()); err != nil {
		t.Fatal(err)
	}
	h.becomes("sleeper", again)
	h.becomes("sleeper", runs)
	for _, name := range []string{"sleeper", "always"} {
		if err := h.s.Remove(t.Context(), name, true, false); err != nil {
			t.Error(err)
		}
	}
}

// A container that waits to be started again is removed by force only.
func TestRemoveWhileRestarting(t *testing.T) {
	h := newHost(t, "")
	h.create(withRestart("cc", "1", portlayer.RestartPolicy{When: portlayer.RestartAlways}))
	h.start("cc")
	h.becomes("cc", func(st portlayer.State) bool { return st.Phase == portlayer.Restarting && st.Restarts >= 3 })
	if err := h.s.Remove(t.Context(), "cc", false, false); !fault.Is(err, fault.Conflict) || !strings.Contains(err.Error(), "force remove") {
		t.Errorf("remove: %v", err)
	}
	if err := h.s.Remove(t.Context(), "cc", true, false); err != nil {
		t.Error(err)
	}
	if _, err := h.s.Get(t.Context(), "cc"); !fault.Is(err, fault.NotFound) {
		t.Errorf("it is there: %v", err)
	}
}

// One whose volume another has taken meanwhile is told why, and is not tried again.
func TestRestartThatFails(t *testing.T) {
	h := newHost(t, "")
	spec := withVolume(withRestart("cc", "1", portlayer.RestartPolicy{When: portlayer.RestartAlways}), "vol", "/v", false)
	h.create(spec)
	h.create(withVolume(cmd("holder", "sleep", "1000"), "vol", "/v", false))
	h.start("cc")
	for {
		err := h.s.Start(t.Context(), "holder")
		if err == nil {
			break
		}
		if !fault.Is(err, fault.InUse) {
			t.Fatal(err)
		}
	}
	if st := h.becomes("cc", exited); !strings.Contains(st.Error, "holder") {
		t.Errorf("it ended as %+v", st)
	}
	if err := h.s.Remove(t.Context(), "holder", true, false); err != nil {
		t.Error(err)
	}
}
