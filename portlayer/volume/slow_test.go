package volume

import (
	"context"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"vch/internal/fault"
	"vch/portlayer"
	"vch/portlayer/volume/volumetest"
)

// clock says whether what was done since the last call took as long as it should have. Time stands still but for waiting (synctest).
type clock struct {
	t    *testing.T
	last time.Time
}

func (c *clock) took(what string, least, most time.Duration) {
	c.t.Helper()
	if d := time.Since(c.last); d < least || d > most {
		c.t.Errorf("%s took %v, not between %v and %v", what, d, least, most)
	}
	c.last = time.Now()
}

// A store that hangs, in calls that nobody can interrupt, slows nothing that names another store, holds up the lookup of a plain name once, and is then
// degraded like one that fails, until it answers.
func TestHungStoreSlowsNoOther(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		good, bad := volumetest.NewStore(portlayer.DefaultStore), volumetest.NewStore("bad")
		h := newHost(t, good, bad)
		ctx := t.Context()
		h.create("here")
		if _, err := h.Create(ctx, portlayer.VolumeRequest{Name: "there", Options: map[string]string{"VolumeStore": "bad"}}); err != nil {
			t.Fatal(err)
		}
		release := bad.Hang()
		defer release()
		c := &clock{t: t, last: time.Now()}

		// What names its store, or has no name to look for, asks no other.
		here := portlayer.VolumeID{Name: "here", Store: portlayer.DefaultStore}
		if _, err := h.Get(ctx, here); err != nil {
			t.Error(err)
		}
		if _, err := h.Create(ctx, portlayer.VolumeRequest{Name: "more", Store: portlayer.DefaultStore}); err != nil {
			t.Error(err)
		}
		if err := h.Remove(ctx, portlayer.VolumeID{Name: "more", Store: portlayer.DefaultStore}); err != nil {
			t.Error(err)
		}
		if _, err := h.Create(ctx, portlayer.VolumeRequest{}); err != nil {
			t.Error(err)
		}
		m, _, err := h.Reserve(ctx, "c", portlayer.Mount{Kind: portlayer.VolumeMount, Volume: "here", Store: portlayer.DefaultStore, Target: "/data"})
		if err != nil {
			t.Error(err)
		}
		var draft portlayer.Handle
		if err := h.Join(ctx, &draft, m); err != nil {
			t.Error(err)
		}
		if at := h.Locations(); len(at) != 2 {
			t.Errorf("locations %v", at)
		}
		c.took("what names a store", 0, 0)

		// A plain name may be in any store. The first to look waits, and those who come meanwhile.
		met := make(chan struct{})
		go func() {
			if _, err := h.Get(ctx, portlayer.VolumeID{Name: "here"}); err != nil {
				t.Error(err)
			}
			close(met)
		}()
		if _, err := h.Get(ctx, portlayer.VolumeID{Name: "here"}); err != nil {
			t.Error(err)
		}
		<-met
		c.took("the first lookup", patience, 2*patience)

		// From then on nobody does. What was in the store is neither missing nor made anew.
		if _, err := h.Get(ctx, portlayer.VolumeID{Name: "here"}); err != nil {
			t.Error(err)
		}
		for _, name := range []portlayer.VolumeName{"there", "none"} {
			_, err := h.Get(ctx, portlayer.VolumeID{Name: name})
			unavailable(t, err)
			_, err = h.Create(ctx, portlayer.VolumeRequest{Name: name})
			unavailable(t, err)
			unavailable(t, h.Remove(ctx, portlayer.VolumeID{Name: name, Store: "bad"}))
		}
		_, err = h.Create(ctx, portlayer.VolumeRequest{Options: map[string]string{"VolumeStore": "bad"}})
		unavailable(t, err)
		vols, warnings, err := h.List(ctx)
		if err != nil || len(vols) != 2 || len(warnings) != 1 || !strings.Contains(warnings[0], "does not answer") {
			t.Errorf("%d volumes, %q, %v", len(vols), warnings, err)
		}
		gone, _, err := h.Prune(ctx, func(portlayer.Volume) bool { return true })
		if err != nil || len(gone) != 1 {
			t.Errorf("pruned %v, %v", gone, err)
		}
		for _, st := range h.Stores(ctx, "") {
			if (st.Name == "bad") != strings.Contains(st.Status.Degraded, "does not answer") {
				t.Errorf("%+v", st)
			}
		}
		c.took("what came after", 0, 0)

		// Once it answers, all is as it was.
		release()
		synctest.Wait()
		if vol, err := h.Get(ctx, portlayer.VolumeID{Name: "there"}); err != nil || vol.Store != "bad" {
			t.Errorf("%+v, %v", vol, err)
		}
		if vols, warnings, err := h.List(ctx); err != nil || len(vols) != 2 || len(warnings) != 0 {
			t.Errorf("%d volumes, %q, %v", len(vols), warnings, err)
		}
		c.took("what came when it answered", 0, 0)
	})
}

func unavailable(t *testing.T, err error) {
	t.Helper()
	if !fault.Is(err, fault.Unavailable) || !strings.Contains(err.Error(), "does not answer") {
		t.Errorf("%v (%v)", err, fault.KindOf(err))
	}
}

// slow is a store that is busy with some volumes for as long as gate is open, and says how it is at once.
type slow struct {
	*volumetest.Store
	busy map[portlayer.VolumeName]bool
	gate chan struct{}
}

func (s *slow) Get(ctx context.Context, name portlayer.VolumeName) (portlayer.Volume, error) {
	if s.busy[name] {
		<-s.gate
	}
	return s.Store.Get(ctx, name)
}

func (s *slow) Ensure(ctx context.Context, spec portlayer.VolumeSpec) (portlayer.Volume, bool, error) {
	if s.busy[spec.Name] {
		<-s.gate
	}
	return s.Store.Ensure(ctx, spec)
}

// A store that is slow with one volume is not degraded: whoever asks for that one waits, however long, and nobody else does, in this store or another.
func TestSlowVolumeSlowsNoOther(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		st := &slow{Store: volumetest.NewStore("slow"), busy: map[portlayer.VolumeName]bool{}, gate: make(chan struct{})}
		h := newHost(t, volumetest.NewStore(portlayer.DefaultStore), st)
		ctx := t.Context()
		if _, err := h.Create(ctx, portlayer.VolumeRequest{Name: "large", Store: "slow"}); err != nil {
			t.Fatal(err)
		}
		st.busy["large"], st.busy["larger"] = true, true
		c := &clock{t: t, last: time.Now()}
		done := make(chan error, 2)
		go func() { _, err := h.Get(ctx, portlayer.VolumeID{Name: "large"}); done <- err }()
		go func() {
			_, err := h.Create(ctx, portlayer.VolumeRequest{Options: map[string]string{"VolumeStore": "slow"}, Name: "larger"})
			done <- err
		}()
		time.Sleep(10 * patience)
		c.took("a wait", 10*patience, 10*patience)
		for _, store := range []string{"default", "slow"} {
			name := portlayer.VolumeName("in-" + store)
			if _, err := h.Create(ctx, portlayer.VolumeRequest{Name: name, Options: map[string]string{"VolumeStore": store}}); err != nil {
				t.Error(err)
			}
			if _, err := h.Get(ctx, portlayer.VolumeID{Name: name}); err != nil {
				t.Error(err)
			}
			if err := h.Remove(ctx, portlayer.VolumeID{Name: name}); err != nil {
				t.Error(err)
			}
		}
		c.took("what is about other volumes", 0, 0)
		// Who does not want to wait any more does not.
		short, cancel := context.WithTimeout(ctx, time.Second)
		defer cancel()
		if _, err := h.Get(short, portlayer.VolumeID{Name: "large"}); err == nil {
			t.Error("an answer from a busy store")
		}
		c.took("a short wait", time.Second, time.Second)
		close(st.gate)
		for range 2 {
			if err := <-done; err != nil {
				t.Error(err)
			}
		}
		c.took("what had waited", 0, 0)
	})
}
