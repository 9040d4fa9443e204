package portlayer

import "errors"

// ErrNotModified is returned by Start and Stop for a container that is already as asked.
var ErrNotModified = errors.New("already in that state")
