package tether

import (
	"context"
	"errors"

	"vch/guest"
	"vch/internal/fault"
)

// Mount is guest.Handler.Mount. The end of the container's process ends its waiting: the exit is not to wait for a disk.
func (c *Core) Mount(ctx context.Context, m guest.MountSpec) error {
	return c.remount(ctx, func(ctx context.Context) error {
		err := c.sys.Mount(ctx, m)
		var unclean []guest.Source
		if u := (*Unclean)(nil); errors.As(err, &u) {
			unclean = []guest.Source{u.Source}
		}
		c.set(func(st *guest.Status) { st.Unclean = unclean })
		return err
	})
}

// Unmount is guest.Handler.Unmount.
func (c *Core) Unmount(ctx context.Context, target string) error {
	return c.remount(ctx, func(context.Context) error { return c.sys.Unmount(target) })
}

// remount has do change the mounts of a container that runs, one change at a time, and before its Release or not at all.
func (c *Core) remount(ctx context.Context, do func(context.Context) error) error {
	c.mounting.Lock()
	defer c.mounting.Unlock()
	if c.Status().Phase != guest.Running {
		return fault.New(fault.Conflict, "the container's process does not run")
	}
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	defer context.AfterFunc(c.running, cancel)()
	if c.running.Err() != nil {
		return fault.New(fault.Conflict, "the container's process has ended")
	}
	return do(ctx)
}
