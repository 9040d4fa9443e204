package tether

import (
	"context"
	"time"

	"vch/guest"
	"vch/internal/fault"
)

// frozen is a volume that is kept as it is.
type frozen struct {
	thaw  func() error
	timer *time.Timer
}

// mostFrozen bounds how long a volume stands still, whatever a host asks for.
const mostFrozen = 5 * time.Minute

// Freeze is guest.Handler.Freeze.
func (c *Core) Freeze(ctx context.Context, source guest.Source, limit time.Duration) error {
	if limit <= 0 || limit > mostFrozen {
		return fault.New(fault.Invalid, "a volume stands still for up to %v, not for %v", mostFrozen, limit)
	}
	return c.remount(ctx, func(context.Context) error {
		c.mu.Lock()
		_, already := c.frozen[source]
		c.mu.Unlock()
		if already {
			return fault.New(fault.Conflict, "%s is frozen already", source)
		}
		thaw, err := c.sys.Freeze(source)
		if err != nil {
			return err
		}
		f := &frozen{thaw: thaw}
		c.mu.Lock()
		defer c.mu.Unlock()
		c.frozen[source] = f
		f.timer = time.AfterFunc(limit, func() { _ = c.thaw(source, f) })
		return nil
	})
}

// Thaw is guest.Handler.Thaw. It takes no turn: what a frozen volume holds up may be before it.
func (c *Core) Thaw(_ context.Context, source guest.Source) error {
	c.mu.Lock()
	f := c.frozen[source]
	c.mu.Unlock()
	if f == nil {
		return fault.New(fault.Conflict, "%s is not frozen, or was for longer than it was to be", source)
	}
	return c.thaw(source, f)
}

// thaw ends the freezing f, unless it has ended.
func (c *Core) thaw(source guest.Source, f *frozen) error {
	c.mu.Lock()
	if c.frozen[source] != f {
		c.mu.Unlock()
		return fault.New(fault.Conflict, "%s was thawed already", source)
	}
	delete(c.frozen, source)
	f.timer.Stop()
	c.mu.Unlock()
	return f.thaw()
}

// thawAll lets everything be written to, so that it can be unmounted.
func (c *Core) thawAll() {
	c.mu.Lock()
	all := map[guest.Source]*frozen{}
	for source, f := range c.frozen {
		all[source] = f
	}
	c.mu.Unlock()
	for source, f := range all {
		_ = c.thaw(source, f) // one that has ended by itself is as good
	}
}

// Grow is guest.Handler.Grow.
func (c *Core) Grow(ctx context.Context, source guest.Source, size int64) error {
	return c.remount(ctx, func(ctx context.Context) error { return c.sys.Grow(ctx, source, size) })
}

// Rooms is guest.Handler.Rooms.
func (c *Core) Rooms(ctx context.Context) (rooms []guest.Room, err error) {
	err = c.remount(ctx, func(context.Context) (err error) { rooms, err = c.sys.Rooms(); return err })
	return rooms, err
}
