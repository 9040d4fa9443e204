package tether

import (
	"context"
	"time"

	"vch/guest"
	"vch/internal/fault"
)

// SetNetwork is guest.Handler.SetNetwork.
func (c *Core) SetNetwork(_ context.Context, n guest.Network) error {
	c.mounting.Lock()
	defer c.mounting.Unlock()
	if phase := c.Status().Phase; phase != guest.Running {
		return fault.New(fault.Conflict, "the container does not run")
	}
	return c.sys.Network(n, c.ask)
}

// SetClock is guest.Handler.SetClock.
func (c *Core) SetClock(_ context.Context, now time.Time) error { return c.sys.SetClock(now) }

// Host is guest.Handler.Host.
func (c *Core) Host(a guest.Asker) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.host = a
}

// ask asks the host for a name.
func (c *Core) ask(ctx context.Context, query []byte) ([]byte, error) {
	c.mu.Lock()
	host := c.host
	c.mu.Unlock()
	if host == nil {
		return nil, fault.New(fault.Unavailable, "the host is away")
	}
	return host.Resolve(ctx, query)
}
