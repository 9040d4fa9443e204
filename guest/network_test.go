package guest

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"vch/internal/fault"
)

// echo answers what it is asked, and fails on "bad".
type echo struct{}

func (echo) Resolve(_ context.Context, query []byte) ([]byte, error) {
	if string(query) == "bad" {
		return nil, errors.New("no")
	}
	return append([]byte("re:"), query...), nil
}

// The guest asks its host, many at once, while the host calls the guest; what has no answer, and what is no question, is told as such.
func TestAnswer(t *testing.T) {
	h := newHandler()
	c := meet(t, h)
	c.Answer(echo{})
	if _, err := c.Status(t.Context()); err != nil { // a host speaks first
		t.Fatal(err)
	}
	host := <-h.host
	var wg sync.WaitGroup
	for i := range 3 * asking {
		wg.Go(func() {
			q := fmt.Append(nil, "name", i)
			if reply, err := host.Resolve(t.Context(), q); err != nil || string(reply) != "re:"+string(q) {
				t.Errorf("%q, %v", reply, err)
			}
		})
	}
	if err := c.SetNetwork(t.Context(), Network{Interfaces: []Interface{{Name: "eth0"}}}); err != nil {
		t.Error(err)
	}
	if err := c.SetClock(t.Context(), time.Unix(7, 0)); err != nil || !strings.Contains(strings.Join(h.told, "\n"), "clock 7") {
		t.Errorf("%v", err)
	}
	wg.Wait()
	if !strings.Contains(strings.Join(h.told, "\n"), "network {Interfaces:[{Name:eth0") {
		t.Errorf("told %v", h.told)
	}
	if _, err := host.Resolve(t.Context(), []byte("bad")); !fault.Is(err, fault.Unavailable) {
		t.Errorf("%v", err)
	}
	if _, err := host.Resolve(t.Context(), bytes.Repeat([]byte{1}, maxQuery+1)); err == nil {
		t.Error("a question longer than one can be is answered")
	}
	c.Close()
	if _, err := host.Resolve(t.Context(), []byte("late")); err == nil {
		t.Error("a host that is gone answers")
	}
}

// A connection that is not answered is given up for another.
func TestDial(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		h := newHandler()
		tries := 0
		c, err := Dial(t.Context(), func(context.Context) (net.Conn, error) {
			tries++
			near, far := net.Pipe()
			if tries < 3 {
				go io.Copy(io.Discard, far) // it takes all, and says nothing
			} else {
				go Serve(t.Context(), far, h)
			}
			return near, nil
		})
		if err != nil || tries != 3 {
			t.Fatalf("%d tries, %v", tries, err)
		}
		if _, err := c.Status(t.Context()); err != nil {
			t.Error(err)
		}
		c.Close()
		gone := errors.New("off")
		if _, err := Dial(t.Context(), func(context.Context) (net.Conn, error) { return nil, gone }); err != gone {
			t.Errorf("%v", err)
		}
	})
}
