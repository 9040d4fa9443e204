package guest

import (
	"bytes"
	"compress/gzip"
	"encoding/base64"
	"encoding/json"
	"io"

	"vch/internal/fault"
)

// An executor config may come to the guest in two parts: what is true from the container's commit on with the machine's definition (Carried), and what is true at its start
// alone with the guest channel (AtStart).

// Carried is the part of c that is true from the commit on.
func (c ExecutorConfig) Carried() ExecutorConfig {
	c.Seats, c.Network, c.Files, c.Entropy, c.AtStart = nil, Network{}, nil, nil, false
	c.Clock = ExecutorConfig{}.Clock
	return c
}

// Rest is the part that Carried leaves out, for the guest that has that.
func (c ExecutorConfig) Rest() ExecutorConfig {
	rest := ExecutorConfig{ID: c.ID, AtStart: true, Seats: c.Seats, Network: c.Network, Files: c.Files, Clock: c.Clock, Entropy: c.Entropy}
	if c.Process != nil { // how large the terminal is
		rest.Process = &Process{Rows: c.Process.Rows, Cols: c.Process.Cols}
	}
	return rest
}

// With puts the two parts together. Conflict if rest is another container's.
func (c ExecutorConfig) With(rest ExecutorConfig) (ExecutorConfig, error) {
	if c.ID != rest.ID {
		return c, fault.New(fault.Conflict, "the machine carries the config of container %s, and was told to start %s", c.ID, rest.ID)
	}
	if c.Process != nil && rest.Process != nil {
		p := *c.Process
		p.Rows, p.Cols = rest.Process.Rows, rest.Process.Cols
		c.Process = &p
	}
	c.Seats, c.Network, c.Files, c.Clock, c.Entropy = rest.Seats, rest.Network, rest.Files, rest.Clock, rest.Entropy
	return c, nil
}

// Pack writes a config as a text without line breaks.
func (c ExecutorConfig) Pack() (string, error) {
	var b bytes.Buffer
	to := base64.NewEncoder(base64.StdEncoding, &b)
	z := gzip.NewWriter(to)
	if err := json.NewEncoder(z).Encode(c); err != nil {
		return "", err
	}
	if err := z.Close(); err != nil {
		return "", err
	}
	err := to.Close()
	return b.String(), err
}

// maxPacked bounds a config that is unpacked, in bytes.
const maxPacked = maxMessage

// Unpack reads what Pack has written.
func Unpack(text string) (c ExecutorConfig, err error) {
	z, err := gzip.NewReader(base64.NewDecoder(base64.StdEncoding, bytes.NewReader([]byte(text))))
	if err != nil {
		return c, fault.New(fault.Invalid, "the config that the machine carries cannot be read: %w", err)
	}
	if err := json.NewDecoder(io.LimitReader(z, maxPacked)).Decode(&c); err != nil {
		return c, fault.New(fault.Invalid, "the config that the machine carries cannot be read: %w", err)
	}
	return c, nil
}
