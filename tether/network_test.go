package tether

import (
	"context"
	"encoding/binary"
	"errors"
	"slices"
	"testing"

	"vch/guest"
	"vch/internal/fault"
)

// asked is a host.
type asked struct{ reply string }

func (a asked) Resolve(_ context.Context, query []byte) ([]byte, error) {
	return append(slices.Clone(query), a.reply...), nil
}

// The config's network is there when the process starts; it changes while that runs, and not before or after. Who asks for a name asks the host of the moment.
func TestNetwork(t *testing.T) {
	s := &system{}
	c := NewCore(s, nil)
	set := func(n guest.Network) error { return c.SetNetwork(t.Context(), n) }
	if err := set(guest.Network{}); !fault.Is(err, fault.Conflict) {
		t.Errorf("before the start: %v", err)
	}
	one := guest.Network{Resolver: true, Interfaces: []guest.Interface{{Name: "eth0", Tag: 1}}}
	if err := c.Configure(t.Context(), guest.ExecutorConfig{ID: "a", Network: one, Process: &guest.Process{Args: []string{"x"}}}); err != nil {
		t.Fatal(err)
	}
	if err := set(guest.Network{}); err != nil {
		t.Error(err)
	}
	if len(s.networks) != 2 || len(s.networks[0].Interfaces) != 1 || len(s.networks[1].Interfaces) != 0 {
		t.Errorf("networks %+v", s.networks)
	}
	if _, err := s.ask(t.Context(), []byte("q")); !fault.Is(err, fault.Unavailable) {
		t.Errorf("nobody is there: %v", err)
	}
	c.Host(asked{"!"})
	if reply, err := s.ask(t.Context(), []byte("q")); err != nil || string(reply) != "q!" {
		t.Errorf("%q, %v", reply, err)
	}
	// A network that cannot be set up fails the start.
	broken := NewCore(&system{networkErr: errors.New("no card")}, nil)
	if err := broken.Configure(t.Context(), guest.ExecutorConfig{ID: "a", Process: &guest.Process{Args: []string{"x"}}}); err == nil || err.Error() != "no card" {
		t.Errorf("%v", err)
	}
}

// query is a question for a name of one label, with additional records or without.
func query(label string, more uint16) []byte {
	b := []byte{1, 2, 1, 0, 0, 1, 0, 0, 0, 0, byte(more >> 8), byte(more)}
	b = append(append(b, byte(len(label))), label...)
	b = append(b, 0, 0, 1, 0, 1)
	return append(b, make([]byte, 11*more)...)
}

// What is too long for a datagram says so, and has nothing else.
func TestShortened(t *testing.T) {
	for _, tc := range []struct {
		size    int
		more    uint16
		shorter bool
	}{{512, 0, false}, {513, 0, true}, {1232, 1, false}, {1233, 1, true}} {
		q := query("abc", tc.more)
		reply := append(slices.Clone(q), make([]byte, tc.size-len(q))...)
		reply[2], reply[7] = 0x81, 9
		got := shortened(q, reply)
		if !tc.shorter {
			if len(got) != tc.size {
				t.Errorf("%+v: %d bytes", tc, len(got))
			}
			continue
		}
		if len(got) != dnsHead+len("abc")+2+4 || binary.BigEndian.Uint16(got[2:])&dnsTruncated == 0 || got[5] != 1 || got[7] != 0 || got[11] != 0 || got[0] != 1 {
			t.Errorf("%+v: % x", tc, got)
		}
	}
}

func FuzzShortened(f *testing.F) {
	f.Add(query("abc", 0), make([]byte, 600))
	f.Add([]byte{}, make([]byte, 600))
	f.Fuzz(func(t *testing.T, q, reply []byte) {
		if got := shortened(q, reply); len(got) > dnsLong && len(reply) >= dnsHead && len(q) >= dnsHead && len(got) > len(q) {
			t.Errorf("%d bytes of %d", len(got), len(reply))
		}
	})
}
