package guest

import (
	"context"
	"time"

	"vch/internal/fault"
)

// Room is how full a volume's file system is.
type Room struct {
	Source Source `json:"source"`
	Total  int64  `json:"total"` // bytes for content, all told
	Free   int64  `json:"free"`  // bytes
}

// Freeze is Handler.Freeze.
func (c *Client) Freeze(ctx context.Context, source Source, limit time.Duration) error {
	return c.call(ctx, "freeze", volumeRequest{Source: source, Limit: limit}, nil)
}

// Thaw is Handler.Thaw.
func (c *Client) Thaw(ctx context.Context, source Source) error {
	return c.call(ctx, "thaw", volumeRequest{Source: source}, nil)
}

// Grow is Handler.Grow.
func (c *Client) Grow(ctx context.Context, source Source, size int64) error {
	return c.call(ctx, "grow", volumeRequest{Source: source, Size: size}, nil)
}

// Rooms is Handler.Rooms.
func (c *Client) Rooms(ctx context.Context) (rooms []Room, err error) {
	err = c.call(ctx, "rooms", nil, &rooms)
	return rooms, err
}

type volumeRequest struct {
	Source Source        `json:"source"`
	Limit  time.Duration `json:"limit,omitempty"` // nanoseconds
	Size   int64         `json:"size,omitempty"`  // bytes
}

// serveVolume answers the calls about one volume.
func serveVolume(ctx context.Context, h Handler, req request) error {
	r, err := decodeBody[volumeRequest](req)
	if err != nil {
		return err
	}
	switch req.Op {
	case "freeze":
		return h.Freeze(ctx, r.Source, r.Limit)
	case "thaw":
		return h.Thaw(ctx, r.Source)
	case "grow":
		return h.Grow(ctx, r.Source, r.Size)
	}
	return fault.New(fault.Unsupported, "guest channel: unknown call %q", req.Op)
}
