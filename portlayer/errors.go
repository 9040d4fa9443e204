package portlayer

import (
	"errors"

	"vch/internal/fault"
)

// ErrNotModified is returned by Start and Stop for a container that is already as asked.
var ErrNotModified = errors.New("already in that state")

// ErrArchive is in the chain of CopyIn's error where the place was right, and extracting into it went wrong.
var ErrArchive = errors.New("cannot extract the archive")

// ErrNoLog is returned by Logs of a container whose log is not kept.
var ErrNoLog = fault.New(fault.Unsupported, "configured logging driver does not support reading: the container was made with --log-driver none")
