package tether

import (
	"context"
	"crypto/tls"
	"encoding/json"
	"fmt"
	"net"
	"time"

	"vch/guest"
	"vch/internal/fault"
)

// remote is the host of a machine that has no device for a guest channel: it is elsewhere, and the guest goes to it (guest.Contact).
type remote struct {
	contact  guest.Contact
	identity tls.Certificate
	dial     func(ctx context.Context, network, address string) (net.Conn, error)
	frames   *tap
	known    bool // the host has let this boot of the machine in; who is known is not thrown out by a host that has forgotten it
}

// redial is how long a guest waits before it calls its host again that did not answer, at first and at most.
const (
	firstRedial = 100 * time.Millisecond
	lastRedial  = 5 * time.Second
)

// callPatience bounds one call.
const callPatience = 30 * time.Second

// findRemote reads whom to call, nil if the host comes by itself, and what the machine carries, nil for nothing.
func findRemote(info guestInfo) (*guest.Contact, *guest.ExecutorConfig, error) {
	if info == nil {
		return nil, nil, nil
	}
	text, found, err := info.Get(guest.ContactKey)
	if err != nil || !found {
		return nil, nil, err
	}
	var contact guest.Contact
	if err := json.Unmarshal([]byte(text), &contact); err != nil {
		return nil, nil, fmt.Errorf("%s cannot be read: %w", guest.ContactKey, err)
	}
	packed := ""
	for n := 0; ; n++ {
		piece, _, err := info.Get(guest.ConfigKey(n))
		if err != nil {
			return nil, nil, err
		}
		if piece == "" {
			break
		}
		packed += piece
	}
	if packed == "" {
		return &contact, nil, nil
	}
	cfg, err := guest.Unpack(packed)
	return &contact, &cfg, err
}

// newRemote brings up what a call needs.
func newRemote(contact guest.Contact, frames *tap) (*remote, error) {
	if err := addEntropy(contact.Entropy); err != nil {
		return nil, fmt.Errorf("cannot seed the random numbers: %w", err)
	}
	r := &remote{contact: contact, frames: frames}
	var err error
	if r.identity, err = guest.NewIdentity(contact.Machine); err != nil {
		return nil, err
	}
	card, err := bringUpManagement(contact.Management)
	if err != nil {
		return nil, err
	}
	r.dial = card.dial
	return r, nil
}

// serve calls the host for ever, for the guest channel and for the card's frames, and serves it. It returns if the host does not let this boot of the machine in: nobody will then.
func (r *remote) serve(core *Core) error {
	// The first call brings the token; the second is let in by what the first was known by.
	channel, err := r.call(guest.ForChannel)
	if err != nil {
		return err
	}
	r.known = true
	go func() {
		for {
			conn, err := r.call(guest.ForFrames)
			if err == nil {
				err = r.frames.pump(conn)
			}
			if err != nil {
				console("the card's connection: %v", err)
			}
		}
	}()
	for {
		if err := guest.Serve(context.Background(), channel, core); err != nil {
			console("guest channel: %v", err)
		}
		if channel, err = r.call(guest.ForChannel); err != nil {
			return err
		}
	}
}

// call calls until the host answers. The only error is that of a host that has denied a machine that it does not know: the token was used by an earlier boot, so that this one is a
// reset, a kernel's panic or somebody else's start. The container has ended with the earlier boot.
func (r *remote) call(purpose guest.Purpose) (net.Conn, error) {
	for wait := firstRedial; ; wait = min(2*wait, lastRedial) {
		conn, err := r.callOnce(purpose)
		if err == nil {
			return conn, nil
		}
		if fault.Is(err, fault.Denied) && !r.known {
			return nil, fmt.Errorf("the host at %s does not let this machine in: %w", r.contact.Address, err)
		}
		console("cannot call the host at %s: %v", r.contact.Address, err)
		time.Sleep(wait)
	}
}

func (r *remote) callOnce(purpose guest.Purpose) (net.Conn, error) {
	ctx, cancel := context.WithTimeout(context.Background(), callPatience)
	defer cancel()
	conn, err := r.dial(ctx, "tcp", r.contact.Address)
	if err != nil {
		return nil, err
	}
	if tcp, ok := conn.(*net.TCPConn); ok {
		_ = tcp.SetKeepAliveConfig(net.KeepAliveConfig{Enable: true, Idle: keepAlive, Interval: keepAlive / 3, Count: 3})
	}
	return r.contact.Call(ctx, conn, r.identity, purpose)
}

// keepAlive is how long a connection may be silent before the host is asked whether it is there.
const keepAlive = 15 * time.Second
