package tether

import (
	"context"
	"errors"
	"slices"
	"testing"
	"testing/synctest"

	"vch/guest"
	"vch/internal/fault"
)

// Mounts change only while the process runs, and an unclean volume is told of until the next mount.
func TestMountsOfARunningContainer(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := &system{}
		c := NewCore(s, nil)
		vol := guest.MountSpec{Source: "label://x", Target: "/data"}
		if err := c.Mount(t.Context(), vol); !fault.Is(err, fault.Conflict) {
			t.Errorf("mount before the start: %v", err)
		}
		if err := c.Configure(t.Context(), config("c1")); err != nil {
			t.Fatal(err)
		}
		s.mountErr = fault.As(fault.Conflict, &Unclean{Source: vol.Source, Name: "volume data"})
		if err := c.Mount(t.Context(), vol); !errors.Is(err, s.mountErr) || !slices.Equal(c.Status().Unclean, []guest.Source{vol.Source}) {
			t.Errorf("unclean volume: %v, status %+v", err, c.Status())
		}
		s.mountErr = nil
		if err := errors.Join(c.Mount(t.Context(), vol), c.Unmount(t.Context(), "/data")); err != nil || c.Status().Unclean != nil || c.Status().Phase != guest.Running {
			t.Errorf("%v, status %+v", err, c.Status())
		}
		// The process's end ends a mount that waits for its disk, and is told after.
		s.waits = true
		mounted := make(chan error)
		go func() { mounted <- c.Mount(t.Context(), vol) }()
		synctest.Wait()
		s.procs[0].exit(guest.Exit{Code: 3})
		if err := <-mounted; !errors.Is(err, context.Canceled) {
			t.Errorf("mount over the process's end: %v", err)
		}
		synctest.Wait()
		if st := c.Status(); st.Phase != guest.Exited || st.Exit.Code != 3 || s.released != 1 {
			t.Errorf("status %+v, released %d times", st, s.released)
		}
		for what, err := range map[string]error{"mount": c.Mount(t.Context(), vol), "unmount": c.Unmount(t.Context(), "/data")} {
			if !fault.Is(err, fault.Conflict) {
				t.Errorf("%s after the end: %v", what, err)
			}
		}
		if want := []string{"mount /data", "mount /data", "unmount /data", "mount /data"}; !slices.Equal(s.mounts, want) {
			t.Errorf("the system was asked for %q, want %q", s.mounts, want)
		}
	})
}
