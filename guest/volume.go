package guest

import (
	"context"
	"maps"
	"slices"
	"sync"
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

// freezing is a Handler for one host: what that has frozen is thawed when it is gone, for it would have thawed it itself.
type freezing struct {
	Handler

	mu    sync.Mutex // guards below
	held  map[Source]bool
	ended bool
}

// Freeze is Handler.Freeze.
func (f *freezing) Freeze(ctx context.Context, source Source, limit time.Duration) error {
	if err := f.Handler.Freeze(ctx, source, limit); err != nil {
		return err
	}
	f.mu.Lock()
	late := f.ended
	f.held[source] = true
	f.mu.Unlock()
	if late {
		return f.Thaw(ctx, source)
	}
	return nil
}

// Thaw is Handler.Thaw.
func (f *freezing) Thaw(ctx context.Context, source Source) error {
	f.mu.Lock()
	delete(f.held, source)
	f.mu.Unlock()
	return f.Handler.Thaw(ctx, source)
}

// end thaws what the host has left frozen.
func (f *freezing) end() {
	f.mu.Lock()
	f.ended = true
	left := slices.Collect(maps.Keys(f.held))
	f.mu.Unlock()
	for _, source := range left {
		_ = f.Thaw(context.Background(), source) // it may have thawed by itself
	}
}
