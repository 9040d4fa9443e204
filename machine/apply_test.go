package machine

import (
	"context"
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"vch/internal/failpoint"
	"vch/internal/fault"
)

// memory is a site that is a variable.
type memory struct {
	now    Observed
	did    []string
	broken map[Kind]error
}

func (m *memory) Do(_ context.Context, s Step) error {
	m.did = append(m.did, s.Text)
	if err := m.broken[s.Kind]; err != nil {
		return err
	}
	m.now = model(m.now, s)
	return nil
}

func options(h Home, m *memory, points string) Options {
	set, err := failpoint.Parse(points)
	if err != nil {
		panic(err)
	}
	return Options{Home: h, Site: m, Points: set, Now: time.Now, Say: func(Progress) {}}
}

// do is what a command does: it goes on with what was cut off, or plans and begins.
func do(t *testing.T, h Home, m *memory, c Command, d Desired, points string) error {
	t.Helper()
	unlock, err := h.Lock()
	if err != nil {
		return err
	}
	defer unlock()
	j, err := h.Resume(c, d)
	if fault.Is(err, fault.NotFound) {
		var p Plan
		if p, err = PlanFor(c, d, m.now, Own{}); err == nil {
			j, err = Begin(h, p, d, Ways{"vch " + string(c), "vch delete x"}, time.Now())
		}
	}
	if err != nil {
		return err
	}
	return Apply(t.Context(), j, options(h, m, points))
}

func newHome(t *testing.T) Home { return Home(filepath.Join(t.TempDir(), "vchs", "x")) }

// Each command, cut off at each of its points, ends where it would have ended if it is run again; meanwhile any other is refused.
func TestCutOffAnywhere(t *testing.T) {
	gone := Desired{Name: "x", Gone: true, Containers: []string{"0123456789abcdef"}, Volumes: []string{"logs"}}
	other := wanted
	other.Settings, other.Program = Settings{"cpus": {"2"}}, "2.0"
	for _, tc := range []struct {
		command Command
		d       Desired
		from    Observed
	}{{Create, wanted, Observed{}}, {Configure, other, made}, {Delete, gone, made}} {
		for n := 1; n <= 12; n++ {
			for _, where := range []string{"begun", "done", "noted"} {
				point := "life-" + itoa(n) + "-" + where
				h, m := newHome(t), &memory{now: tc.from}
				if tc.from.Supervisor != "" {
					if err := do(t, h, &memory{}, Create, wanted, ""); err != nil {
						t.Fatal(err)
					}
				}
				set := options(h, m, point+"=error")
				p, err := PlanFor(tc.command, tc.d, m.now, Own{})
				if err != nil {
					t.Fatal(err)
				}
				if n > len(p.Steps) {
					continue
				}
				p.Back = nil // as if the process were killed: nobody takes anything back
				unlock, err := h.Lock()
				if err != nil {
					t.Fatal(err)
				}
				j, err := Begin(h, p, tc.d, Ways{"vch again", "vch delete x"}, time.Now())
				if err != nil {
					t.Fatal(err)
				}
				if err := Apply(t.Context(), j, set); err == nil {
					t.Fatalf("%s %s: it was not cut off", tc.command, point)
				}
				unlock()
				if err := do(t, h, m, Start, wanted, ""); !fault.Is(err, fault.Conflict) || !strings.Contains(err.Error(), "was cut off at step") && !strings.Contains(err.Error(), "its end") || !strings.Contains(err.Error(), "vch again") {
					t.Fatalf("%s %s: another command: %v", tc.command, point, err)
				}
				before := len(m.did)
				if err := do(t, h, m, tc.command, tc.d, ""); err != nil {
					t.Fatalf("%s %s: again: %v", tc.command, point, err)
				}
				again := 0
				for _, text := range m.did[before:] {
					if text != "" { // which is the stop before a start
						again++
					}
				}
				if again > len(p.Steps)-n+1 {
					t.Errorf("%s %s: %d of %d steps were done again", tc.command, point, again, len(p.Steps))
				}
				if _, err := h.Journal(); !fault.Is(err, fault.NotFound) {
					t.Errorf("%s %s: the journal: %v", tc.command, point, err)
				}
				if tc.d.Gone {
					if _, err := os.Stat(string(h)); !errors.Is(err, os.ErrNotExist) {
						t.Errorf("%s %s: the directory: %v", tc.command, point, err)
					}
					continue
				}
				if why := done(tc.d, m.now); why != "" {
					t.Errorf("%s %s: %s", tc.command, point, why)
				}
				r, err := h.Record()
				if err != nil || r.Program != tc.d.Program || r.Supervisor != tc.d.Supervisor || len(r.History) == 0 || r.History[len(r.History)-1].Command != tc.command {
					t.Errorf("%s %s: record %+v, %v", tc.command, point, r, err)
				}
			}
		}
	}
}

func itoa(n int) string { return strings.TrimLeft(string(rune('0'+n/10))+string(rune('0'+n%10)), "0") }

// A create that was cut off anywhere can be deleted instead.
func TestDeleteHalfMade(t *testing.T) {
	for n := 1; n <= 7; n++ {
		h, m := newHome(t), &memory{}
		if err := do(t, h, m, Create, wanted, "life-"+itoa(n)+"-done=error"); err == nil {
			t.Fatal("it was not cut off")
		}
		known, err := h.Known()
		if err != nil {
			t.Fatal(err)
		}
		if diff := cmp.Diff(m.now.Directories, known.Made); diff != "" {
			t.Errorf("step %d: %s", n, diff)
		}
		m.now.Supervisor = known.Supervisor
		if err := do(t, h, m, Delete, Desired{Name: "x", Gone: true}, ""); err != nil {
			t.Errorf("step %d: %v", n, err)
		}
		if m.now.Running || m.now.Settings != nil || len(m.now.Directories) > 0 || m.now.Supervisor != "" {
			t.Errorf("step %d leaves %+v", n, m.now)
		}
	}
}

// A change that fails is taken back, and says so; one whose way back was cut off goes on back, and says why it did.
func TestTakenBack(t *testing.T) {
	h, m := newHome(t), &memory{}
	if err := do(t, h, m, Create, wanted, ""); err != nil {
		t.Fatal(err)
	}
	was := m.now
	up := wanted
	up.Program = "2.0"
	bad := errors.New("the daemon has ended: no such kernel")
	fails := &failsOnce{memory: m, kind: AwaitDaemon, err: bad}
	unlock, err := h.Lock()
	if err != nil {
		t.Fatal(err)
	}
	defer unlock()
	p, err := PlanFor(Upgrade, up, m.now, Own{})
	if err != nil {
		t.Fatal(err)
	}
	j, err := Begin(h, p, up, Ways{"vch upgrade x", "vch delete x"}, time.Now())
	if err != nil {
		t.Fatal(err)
	}
	o := options(h, m, "life-back-1-done=error")
	o.Site = fails
	if err := Apply(t.Context(), j, o); err == nil || !strings.Contains(err.Error(), "could not be taken back") {
		t.Fatalf("%v", err)
	}
	j, err = h.Resume(Upgrade, up)
	if err != nil || j.Why == "" {
		t.Fatalf("%+v, %v", j, err)
	}
	err = Apply(t.Context(), j, options(h, m, ""))
	if err == nil || !strings.Contains(err.Error(), "no such kernel") || !strings.Contains(err.Error(), "as it was before") {
		t.Fatalf("%v", err)
	}
	was.Programs = []string{"1.0", "2.0"}
	if diff := cmp.Diff(was, m.now); diff != "" {
		t.Error(diff)
	}
	r, err := h.Record()
	if err != nil {
		t.Fatal(err)
	}
	if e := r.History[len(r.History)-1]; r.Program != "1.0" || r.Previous != "" || e.From != "1.0" || e.To != "2.0" || !strings.Contains(e.Error, "no such kernel") {
		t.Errorf("%+v", r)
	}
}

// A start that fails, and a way back whose daemon does not come up, leave a VCH that can be changed: nothing is half.
func TestDaemonThatDoesNotComeUp(t *testing.T) {
	h, m := newHome(t), &memory{}
	if err := do(t, h, m, Create, wanted, ""); err != nil {
		t.Fatal(err)
	}
	m.broken = map[Kind]error{AwaitDaemon: errors.New("no QEMU")}
	other := wanted
	other.Settings = Settings{"memory": {"3G"}}
	err := do(t, h, m, Configure, other, "")
	if err == nil || !strings.Contains(err.Error(), "it has what it had before, but its daemon does not come up with that either: cannot wait until it answers: no QEMU") {
		t.Errorf("%v", err)
	}
	if !m.now.Settings.Equal(wanted.Settings) {
		t.Errorf("%v", m.now.Settings)
	}
	m.now.Running = false
	if err := do(t, h, m, Start, wanted, ""); err == nil || strings.Contains(err.Error(), "before") {
		t.Errorf("%v", err)
	}
	if _, err := h.Journal(); !fault.Is(err, fault.NotFound) {
		t.Errorf("journal: %v", err)
	}
	m.broken, m.now.Running = nil, false
	if err := do(t, h, m, Configure, other, ""); err != nil || !m.now.Running {
		t.Errorf("%v", err)
	}
}

// failsOnce is a site at which one step fails the first time.
type failsOnce struct {
	*memory
	kind Kind
	err  error
}

func (f *failsOnce) Do(ctx context.Context, s Step) error {
	if s.Kind == f.kind && f.err != nil {
		err := f.err
		f.err = nil
		return err
	}
	return f.memory.Do(ctx, s)
}

// A create that fails stays half-made, so that it can go on; with other settings it is refused.
func TestFailedCreateGoesOn(t *testing.T) {
	h, m := newHome(t), &memory{broken: map[Kind]error{StartDaemon: errors.New("no QEMU")}}
	if err := do(t, h, m, Create, wanted, ""); err == nil || !strings.Contains(err.Error(), "cannot start the daemon, vch 1.0: no QEMU") {
		t.Fatalf("%v", err)
	}
	j, err := h.Journal()
	if err != nil || j.State() != "half-made" || !strings.HasPrefix(j.At(), "step 6 of 7, start the daemon") {
		t.Errorf("%v: %s, %s", err, j.State(), j.At())
	}
	other := wanted
	other.Settings = Settings{}
	if err := do(t, h, m, Create, other, ""); !fault.Is(err, fault.Conflict) || !strings.Contains(err.Error(), "vch delete x") {
		t.Errorf("other settings: %v", err)
	}
	m.broken = nil
	if err := do(t, h, m, Create, wanted, ""); err != nil {
		t.Error(err)
	}
}

// A daemon that came up while a change was cut off, as with its machine, is stopped before the new one is started.
func TestResumedStartStops(t *testing.T) {
	h, m := newHome(t), &memory{}
	if err := do(t, h, m, Create, wanted, ""); err != nil {
		t.Fatal(err)
	}
	other := wanted
	other.Settings = Settings{"memory": {"3G"}}
	unlock, err := h.Lock()
	if err != nil {
		t.Fatal(err)
	}
	p, err := PlanFor(Configure, other, m.now, Own{})
	if err != nil {
		t.Fatal(err)
	}
	p.Back = nil
	j, err := Begin(h, p, other, Ways{"vch again", "vch delete x"}, time.Now())
	if err != nil {
		t.Fatal(err)
	}
	if err := Apply(t.Context(), j, options(h, m, "life-2-noted=error")); err == nil {
		t.Fatal("it was not cut off")
	}
	unlock()
	m.now.Running, m.did = true, nil // with the settings of some moment
	if err := do(t, h, m, Configure, other, ""); err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff([]string{"", "start the daemon, vch 1.0", "wait until it answers"}, m.did); diff != "" {
		t.Error(diff)
	}
}

// One at a time; and a directory in which nothing was made does not stay.
func TestLock(t *testing.T) {
	h := newHome(t)
	unlock, err := h.Lock()
	if err != nil {
		t.Fatal(err)
	}
	if _, err := h.Lock(); !fault.Is(err, fault.InUse) {
		t.Errorf("locked twice: %v", err)
	}
	unlock()
	if _, err := os.Stat(string(h)); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("it stays: %v", err)
	}
	if unlock, err = h.Lock(); err != nil {
		t.Fatal(err)
	}
	unlock()
}
