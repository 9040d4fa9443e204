package personality

import (
	"io"
	"net/http"

	"vch/internal/fault"
)

// ping is how a client finds out what it talks to: the headers say it.
func (s *Server) ping(w http.ResponseWriter, r *http.Request) error {
	h := w.Header()
	h.Set("Builder-Version", "1") // the classic builder; BuildKit (2) would make the CLI open sessions
	h.Set("Cache-Control", "no-cache, no-store, must-revalidate")
	h.Set("Content-Type", "text/plain; charset=utf-8")
	h.Set("Pragma", "no-cache")
	h.Set("Swarm", "inactive")
	if r.Method == http.MethodHead {
		h.Set("Content-Length", "0")
		return nil
	}
	_, err := io.WriteString(w, "OK")
	return err
}

// noSwarm answers everything that needs a swarm.
func (s *Server) noSwarm(_ http.ResponseWriter, r *http.Request) error {
	return fault.New(fault.Unavailable, "This node is not a swarm manager: %s %s is not supported by vch, which has no swarm mode", r.Method, r.URL.Path)
}
