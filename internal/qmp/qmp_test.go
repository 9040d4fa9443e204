package qmp

import (
	"context"
	"encoding/json"
	"errors"
	"net"
	"strings"
	"testing"
	"time"
)

// far is QEMU's end of a connection.
type far struct {
	net.Conn
	dec *json.Decoder
}

func (f far) say(v any) { _ = json.NewEncoder(f).Encode(v) }

// next is the next command.
func (f far) next() (id uint64, command string) {
	var m struct {
		Execute string
		ID      uint64
	}
	if f.dec.Decode(&m) != nil {
		return 0, ""
	}
	return m.ID, m.Execute
}

func (f far) answer(id uint64) { f.say(map[string]any{"return": map[string]any{}, "id": id}) }

func (f far) deleted(device string) {
	f.say(map[string]any{"event": "DEVICE_DELETED", "data": map[string]any{"device": device, "path": "/machine/peripheral/" + device}})
}

// connect has serve be QEMU after the negotiation.
func connect(t *testing.T, serve func(far)) *Client {
	t.Helper()
	ours, theirs := net.Pipe()
	served := make(chan struct{})
	go func() {
		defer close(served)
		defer theirs.Close()
		f := far{theirs, json.NewDecoder(theirs)}
		go f.say(map[string]any{"QMP": map[string]any{"version": map[string]any{}}})
		id, _ := f.next()
		f.answer(id)
		serve(f)
	}()
	c, err := Connect(t.Context(), ours)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		c.Close()
		<-served
	})
	return c
}

// QEMU's side of QMP: a greeting, replies out of order and longer than 64 KiB, events in between.
func TestCalls(t *testing.T) {
	long := strings.Repeat("x", 200<<10)
	c := connect(t, func(f far) {
		a, _ := f.next()
		b, _ := f.next()
		f.say(map[string]any{"event": "STOP"})
		f.say(map[string]any{"return": long, "id": b})
		f.say(map[string]any{"error": map[string]any{"class": "GenericError", "desc": "no such thing"}, "id": a})
		f.next()
		f.next() // the end
	})
	ctx := t.Context()
	first := make(chan error, 1)
	sent := make(chan struct{})
	go func() { close(sent); first <- c.Call(ctx, "fails", nil, nil) }()
	<-sent
	var got string
	errSecond := c.Call(ctx, "works", nil, &got)
	errFirst := <-first
	// Which of the two went first is open; one has the long answer, the other the refusal.
	if errSecond != nil {
		errFirst, errSecond = errSecond, errFirst
	} else if got != long {
		t.Errorf("%d bytes came back", len(got))
	}
	if e := (*Error)(nil); errSecond != nil || !errors.As(errFirst, &e) || e.Desc != "no such thing" {
		t.Errorf("%v, %v", errFirst, errSecond)
	}
	cancelled, cancel := context.WithCancel(ctx)
	cancel()
	if err := c.Call(cancelled, "never answered", nil, nil); err != context.Canceled {
		t.Errorf("cancelled: %v", err)
	}
	c.Close()
	if err := c.Call(ctx, "after the end", nil, nil); err == nil {
		t.Error("a call on a closed connection works")
	}
}

// Devices that go at once are told apart, whether the event comes before the reply or after it; and events that nobody waits for, however many, are in nobody's way.
func TestUnplug(t *testing.T) {
	c := connect(t, func(f far) {
		for range 1000 {
			f.say(map[string]any{"event": "RTC_CHANGE", "data": map[string]any{"offset": 1}})
		}
		id, _ := f.next()
		f.deleted("early")
		f.answer(id)
		a, _ := f.next()
		b, _ := f.next()
		f.answer(a)
		f.answer(b)
		f.deleted("another")
		f.deleted("two")
		f.deleted("one")
		f.next()
	})
	ctx := t.Context()
	if err := c.Unplug(ctx, "early"); err != nil {
		t.Error(err)
	}
	both := make(chan error, 2)
	for _, device := range []string{"one", "two"} {
		go func() { both <- c.Unplug(ctx, device) }()
	}
	for range cap(both) {
		if err := <-both; err != nil {
			t.Error(err)
		}
	}
	if len(c.wanted) != 0 || len(c.waiting) != 0 {
		t.Errorf("%d events and %d replies are still waited for", len(c.wanted), len(c.waiting))
	}
}

// An event that does not come is waited for as long as the caller wants to, or until QEMU ends.
func TestCallUntilEnds(t *testing.T) {
	answered := make(chan struct{})
	c := connect(t, func(f far) {
		for range 2 {
			id, _ := f.next()
			f.answer(id)
			answered <- struct{}{}
		}
	})
	never := func(Event) bool { return false }
	ctx, cancel := context.WithCancel(t.Context())
	go func() { <-answered; cancel() }()
	if err := c.CallUntil(ctx, "stop", nil, never); err != context.Canceled {
		t.Errorf("cancelled: %v", err)
	}
	go func() { <-answered }()
	if err := c.CallUntil(t.Context(), "stop", nil, never); err == nil || err.Error() != "QEMU closed its control socket" {
		t.Errorf("QEMU ended: %v", err)
	}
	select {
	case <-c.Ended():
	case <-time.After(time.Minute):
		t.Error("it has not ended")
	}
}
