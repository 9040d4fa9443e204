package hypertest

import (
	"context"
	"testing"
	"time"

	"vch/internal/fault"
)

// pause has a machine stand still, over a restart of the daemon, and go on where it was.
func (s *suite) pause(t *testing.T) {
	m := s.define(t, s.spec("still"))
	want(t, "pause a machine that is off", m.Pause(s.limit(t)), fault.Conflict)
	want(t, "resume a machine that is off", m.Resume(s.limit(t)), fault.Conflict)
	s.powerOn(t, m)
	c := s.connect(t, m)
	s.configure(t, c, config("still", []string{"cat"}))
	answers := func(does bool) {
		t.Helper()
		limit := s.Limit
		if !does {
			limit = 500 * time.Millisecond
		}
		ctx, cancel := context.WithTimeout(t.Context(), limit)
		defer cancel()
		if _, err := c.Status(ctx); (err == nil) != does {
			t.Fatalf("the guest answers: %v, want %v", err, does)
		}
	}
	for range 2 {
		if err := m.Resume(s.limit(t)); err != nil {
			t.Fatal(err)
		}
	}
	answers(true)
	for range 2 {
		if err := m.Pause(s.limit(t)); err != nil {
			t.Fatal(err)
		}
	}
	answers(false)
	c.Close()
	s.restart(t)
	m, err := s.h.Machine(t.Context(), m.ID())
	if err != nil {
		t.Fatal(err)
	}
	if err := m.Pause(s.limit(t)); err != nil {
		t.Fatal(err)
	}
	if err := m.Resume(s.limit(t)); err != nil {
		t.Fatal(err)
	}
	c = s.connect(t, m)
	answers(true)
	if err := c.SetClock(s.limit(t), time.Now()); err != nil {
		t.Error(err)
	}
	if err := m.Pause(s.limit(t)); err != nil {
		t.Fatal(err)
	}
	if err := m.PowerOff(s.limit(t)); err != nil {
		t.Fatal(err)
	}
	s.undefine(t, m)
}
