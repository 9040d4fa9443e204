package guest

import (
	"context"

	"vch/internal/fault"
)

// Mount is Handler.Mount.
func (c *Client) Mount(ctx context.Context, m MountSpec) error {
	return c.call(ctx, "mount", m, nil)
}

// Unmount is Handler.Unmount.
func (c *Client) Unmount(ctx context.Context, target string) error {
	return c.call(ctx, "unmount", unmountRequest{Target: target}, nil)
}

type unmountRequest struct {
	Target string `json:"target"`
}

// serveMount answers the calls that change a running container's mounts. Once begun they go to their end, whether the host stays or not: a host that
// lost its connection asks again, and hears the outcome.
func serveMount(ctx context.Context, h Handler, req request) error {
	ctx = context.WithoutCancel(ctx)
	switch req.Op {
	case "mount":
		m, err := decodeBody[MountSpec](req)
		if err != nil {
			return err
		}
		return h.Mount(ctx, m)
	case "unmount":
		r, err := decodeBody[unmountRequest](req)
		if err != nil {
			return err
		}
		return h.Unmount(ctx, r.Target)
	}
	return fault.New(fault.Unsupported, "guest channel: unknown call %q", req.Op)
}
