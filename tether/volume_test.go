package tether

import (
	"errors"
	"slices"
	"testing"
	"testing/synctest"
	"time"

	"vch/guest"
	"vch/internal/fault"
)

// A frozen volume is thawed once: by its host, by itself, or by the end of the container; a host that comes too late hears of it.
func TestFreeze(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := &system{}
		c := NewCore(s, nil)
		const vol = "label://x"
		if err := c.Freeze(t.Context(), vol, time.Minute); !fault.Is(err, fault.Conflict) {
			t.Errorf("before the start: %v", err)
		}
		if err := c.Configure(t.Context(), config("c1")); err != nil {
			t.Fatal(err)
		}
		for _, bad := range []time.Duration{0, -1, time.Hour} {
			if err := c.Freeze(t.Context(), vol, bad); !fault.Is(err, fault.Invalid) {
				t.Errorf("for %v: %v", bad, err)
			}
		}
		if err := c.Freeze(t.Context(), vol, time.Minute); err != nil {
			t.Fatal(err)
		}
		if err := c.Freeze(t.Context(), vol, time.Minute); !fault.Is(err, fault.Conflict) {
			t.Errorf("twice: %v", err)
		}
		if err := c.Thaw(t.Context(), vol); err != nil {
			t.Error(err)
		}
		if err := c.Thaw(t.Context(), vol); !fault.Is(err, fault.Conflict) {
			t.Errorf("thawed twice: %v", err)
		}
		if err := c.Freeze(t.Context(), vol, time.Minute); err != nil {
			t.Fatal(err)
		}
		time.Sleep(time.Minute)
		synctest.Wait()
		if err := c.Thaw(t.Context(), vol); !fault.Is(err, fault.Conflict) {
			t.Errorf("too late: %v", err)
		}
		if err := errors.Join(c.Grow(t.Context(), vol, 7), c.Freeze(t.Context(), vol, time.Minute)); err != nil {
			t.Fatal(err)
		}
		if rooms, err := c.Rooms(t.Context()); err != nil || len(rooms) != 1 {
			t.Errorf("%v, %v", rooms, err)
		}
		s.procs[0].exit(guest.Exit{})
		synctest.Wait()
		if want := []string{"freeze " + vol, "thaw " + vol, "freeze " + vol, "thaw " + vol, "grow " + vol + " 7", "freeze " + vol, "thaw " + vol}; !slices.Equal(s.mounts, want) {
			t.Errorf("%q, want %q", s.mounts, want)
		}
		if st := c.Status(); st.Phase != guest.Exited || len(st.Rooms) != 1 {
			t.Errorf("%+v", st)
		}
		time.Sleep(time.Minute) // the timer of the last one has nothing left to do
		synctest.Wait()
		if len(s.mounts) != 7 {
			t.Errorf("%q", s.mounts)
		}
	})
}
