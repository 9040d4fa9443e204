package tether

import (
	"context"
	"net"
	"testing"

	"vch/guest"
	"vch/internal/fault"
)

// A machine that its host does not let in gives up, so that it goes off: it has booted again by itself. One that was let in once, or whose host cannot be asked, calls on.
func TestCallDenied(t *testing.T) {
	identity, err := guest.NewIdentity("host")
	if err != nil {
		t.Fatal(err)
	}
	stranger, err := guest.NewIdentity("stranger")
	if err != nil {
		t.Fatal(err)
	}
	own, err := guest.NewIdentity("guest")
	if err != nil {
		t.Fatal(err)
	}
	denied := fault.New(fault.Denied, "another guest is machine m")
	for name, c := range map[string]struct {
		known    bool
		stranger int     // how many calls somebody else answers first
		answers  []error // of the host, one call after the other
		refused  bool
	}{
		"let in":                     {answers: []error{nil}},
		"not known":                  {answers: []error{denied}, refused: true},
		"the host is not ready yet":  {answers: []error{fault.New(fault.Unavailable, "closing"), fault.New(fault.Internal, "no descriptors"), nil}},
		"not ready, then refused":    {answers: []error{fault.New(fault.Internal, "no descriptors"), denied}, refused: true},
		"known":                      {known: true, answers: []error{denied, nil}},
		"who denies is not the host": {stranger: 1, answers: []error{nil}},
	} {
		t.Run(name, func(t *testing.T) {
			l, err := net.Listen("tcp", "127.0.0.1:0")
			if err != nil {
				t.Fatal(err)
			}
			defer l.Close()
			met := make(chan struct{})
			go func() {
				defer close(met)
				for n := range c.stranger + len(c.answers) {
					conn, err := l.Accept()
					if err != nil {
						return
					}
					is, answer := stranger, denied
					if n >= c.stranger {
						is, answer = identity, c.answers[n-c.stranger]
					}
					if _, in, err := guest.Meet(t.Context(), conn, is, func(guest.Introduction, string) error { return answer }); err == nil {
						defer in.Close()
					}
				}
			}()
			calls := 0
			r := &remote{contact: guest.Contact{Address: l.Addr().String(), Host: guest.Fingerprint(identity.Certificate[0]), Machine: "m"}, identity: own, known: c.known,
				dial: func(ctx context.Context, network, address string) (net.Conn, error) {
					if calls++; calls > c.stranger+len(c.answers) {
						t.Fatal("it calls on")
					}
					return new(net.Dialer).DialContext(ctx, network, address)
				}}
			conn, err := r.call(guest.ForChannel)
			if err == nil {
				conn.Close()
			}
			if c.refused != fault.Is(err, fault.Denied) || !c.refused && err != nil {
				t.Errorf("got %v", err)
			}
			<-met
		})
	}
}
