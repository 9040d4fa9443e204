package guest

import (
	"context"
	"encoding/json"
	"io"

	"github.com/hashicorp/yamux"

	"vch/internal/fault"
)

// ChangeKind is how a file of the container's root differs from its image.
type ChangeKind string

// The kinds.
const (
	Modified ChangeKind = "modified" // also a directory something below which has changed
	Added    ChangeKind = "added"
	Deleted  ChangeKind = "deleted" // with all that was below it
)

// Change is one file of the container's root that differs from its image.
type Change struct {
	Path Path       `json:"path"` // absolute
	Kind ChangeKind `json:"kind"`
}

// Extent says how much of the container's root an Archive holds.
type Extent string

// The extents. Those but the first take the Path "/", and name what is in it by relative paths.
const (
	WithMounts Extent = ""        // with all that is mounted in it
	RootAlone  Extent = "root"    // without; a mount point is what the root has there
	ChangesOf  Extent = "changes" // of RootAlone what differs from the image, as a layer (OCI image-spec layer.md): what was deleted is a whiteout
)

// changesAtOnce bounds the changes of one message.
const changesAtOnce = 512

// Changes is Archives.Changes.
func (c *Client) Changes(ctx context.Context, out func([]Change) error) error {
	return c.follow(ctx, "changes", nil, func(_ io.Writer, kind byte, msg []byte) (bool, error) {
		if kind != msgData {
			return true, readAnswer(kind, msg, nil)
		}
		var some []Change
		if err := json.Unmarshal(msg, &some); err != nil {
			return true, fault.New(fault.Internal, "guest channel: %w", err)
		}
		return false, out(some)
	})
}

func serveChanges(ctx context.Context, cancel context.CancelFunc, st *yamux.Stream, h Handler) error {
	go drain(cancel, st)
	return h.Changes(ctx, func(all []Change) error {
		for len(all) > 0 {
			n := min(len(all), changesAtOnce)
			if err := writeJSON(st, msgData, all[:n]); err != nil {
				return err
			}
			all = all[n:]
		}
		return nil
	})
}
