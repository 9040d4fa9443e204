package personality

import (
	"context"
	"fmt"
	"net/http"
	"sync/atomic"

	"vch/internal/fault"
	"vch/portlayer"
)

// containerAttach is POST /containers/{id}/attach. The answer goes out when no output can be missed any more: docker run starts the container upon it.
func (s *Server) containerAttach(w http.ResponseWriter, r *http.Request) error {
	c, err := s.Containers.Get(r.Context(), r.PathValue("id"))
	if err != nil {
		return err
	}
	keys, err := parseDetachKeys(r.URL.Query().Get("detachKeys"))
	if err != nil {
		return err
	}
	ctx, cancel := context.WithCancel(r.Context())
	defer cancel()
	tty := c.Spec.Process.TTY
	d := newDuplex(w, r)
	defer d.close()
	stdout, stderr, mediaType := outputs(d, tty, versionOf(r))
	d.mediaType = mediaType

	streams := portlayer.AttachStreams{Replay: boolValue(r, "logs"), Live: boolValue(r, "stream")}
	var detached atomic.Bool
	if boolValue(r, "stdin") && streams.Live {
		streams.Stdin = d
		if tty { // without one the keys are input as any other, as in Moby
			streams.Stdin = &detachReader{in: d, keys: keys, detached: func() { detached.Store(true); cancel() }}
		}
	}
	if boolValue(r, "stdout") {
		streams.Stdout = stdout
	}
	if boolValue(r, "stderr") && !tty {
		streams.Stderr = stderr
	}
	err = s.Containers.Attach(ctx, string(c.ID), streams, d.begin)
	switch {
	case detached.Load(), d.lost.Load():
		return nil // the client left, which is no failure
	case err != nil && d.began():
		fmt.Fprintf(stderr, "%v\r\n", err)
	case err == nil && !d.began():
		return fault.New(fault.Internal, "container %s was not attached", c.ID)
	}
	return err
}

// containerResize is POST /containers/{id}/resize.
func (s *Server) containerResize(w http.ResponseWriter, r *http.Request) error {
	rows, cols, err := terminalSize(r)
	if err != nil {
		return err
	}
	if err := s.Containers.Resize(r.Context(), r.PathValue("id"), rows, cols); err != nil {
		return err
	}
	w.WriteHeader(http.StatusOK)
	return nil
}

// terminalSize reads h and w.
func terminalSize(r *http.Request) (rows, cols uint16, err error) {
	for _, side := range []struct {
		name string
		to   *uint16
	}{{"h", &rows}, {"w", &cols}} {
		n, given, err := intValue(r, side.name)
		if err != nil {
			return 0, 0, err
		}
		if !given || n < 0 || n > 1<<16-1 {
			return 0, 0, fault.New(fault.Invalid, "invalid resize: %s must be a number of characters, 0 to 65535", side.name)
		}
		*side.to = uint16(n)
	}
	return rows, cols, nil
}
