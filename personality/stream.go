package personality

import (
	"encoding/binary"
	"io"
	"sync"

	"github.com/moby/moby/api/types"

	"vch/guest"
)

// Two outputs on one connection. Without a TTY each piece of output is preceded by a header of eight bytes (Docker API, "Stream format"):
// the stream's number, three zeros, and the length of what follows, big-endian. A TTY has one output, sent as it is.

// streamHeader is the length of that header.
const streamHeader = 8

// mux puts the outputs of one process on one writer. Its writers may be used at once.
type mux struct {
	mu  sync.Mutex // keeps a header and its piece together
	out io.Writer
}

// stream is the writer for one of the outputs.
func (m *mux) stream(number guest.Stream) io.Writer { return muxStream{m, number} }

type muxStream struct {
	mux    *mux
	number guest.Stream
}

// Write sends p as one piece, in one write where the connection takes it.
func (s muxStream) Write(p []byte) (int, error) {
	if len(p) == 0 {
		return 0, nil
	}
	piece := make([]byte, streamHeader, streamHeader+len(p))
	piece[0] = byte(s.number)
	binary.BigEndian.PutUint32(piece[4:], uint32(len(p)))
	piece = append(piece, p...)
	s.mux.mu.Lock()
	defer s.mux.mu.Unlock()
	n, err := s.mux.out.Write(piece)
	return max(n-streamHeader, 0), err
}

// outputs gives the writers for a process's outputs on out, and the media type that this makes of it. Before 1.42 there was one type for both forms.
func outputs(out io.Writer, tty bool, v apiVersion) (stdout, stderr io.Writer, mediaType string) {
	if tty {
		return out, out, types.MediaTypeRawStream
	}
	m := &mux{out: out}
	mediaType = types.MediaTypeRawStream
	if v.atLeast(1, 42) {
		mediaType = types.MediaTypeMultiplexedStream
	}
	return m.stream(guest.Stdout), m.stream(guest.Stderr), mediaType
}
