// Package personality speaks Docker: it is the Engine API, versions 1.24 to 1.50, over the port layer.
//
// One route table (routes.go) names every endpoint of the API: what answers it and the test that proves it, or nothing, and then the
// answer is 501 with the endpoint's name. There is one file for each noun. A handler translates and returns an error; the frame
// writes it once, with the status that the one table in status.go gives its kind. What a client asks for is done or refused by name,
// never ignored. Shapes are those of API 1.50; what an older client expects beside is added where version.go's versions say so.
//
// The personality decides nothing about containers, volumes or images and keeps no state but the engine's id. It does no swarm, and no
// builds. It serves HTTP and does not listen: package cmd/vch does.
package personality

import (
	"context"
	"fmt"
	"log/slog"
	"net/http"
	"os"
	"runtime/debug"

	"vch/internal/broadcast"
	"vch/internal/fault"
	"vch/personality/mountspec"
	"vch/portlayer"
)

// Options are what a Server stands on.
type Options struct {
	Containers portlayer.Containers
	Volumes    portlayer.Volumes
	Images     portlayer.Images
	Networks   portlayer.Networks
	Events     *broadcast.Topic[portlayer.Event]
	Machine    func(context.Context) (portlayer.HypervisorInfo, error) // what runs the containers

	ID         string // of the VCH, which never changes
	Name       string // of the VCH; "" : the host's name
	Version    string // of vch
	Commit     string
	BuildTime  string
	StateDir   string // shown as the engine's root
	Registries Registries
	Defaults   Defaults
	Log        *slog.Logger // nil: nothing is logged
}

// Defaults are what a container gets that does not ask.
type Defaults struct {
	Memory    portlayer.Bytes
	CPUs      int64           // billionths of a processor
	Anonymous mountspec.Basic // of its anonymous volumes
}

// Server is the Engine API. All of its methods may be called at once.
type Server struct {
	Options
	mux *http.ServeMux
}

// New makes the Server. It touches no file.
func New(o Options) (*Server, error) {
	if o.Containers == nil || o.Volumes == nil || o.Images == nil || o.Networks == nil || o.Events == nil || o.Machine == nil {
		return nil, fault.New(fault.Internal, "personality: a service is missing")
	}
	if o.Log == nil {
		o.Log = slog.New(slog.DiscardHandler)
	}
	if o.Name == "" {
		host, err := os.Hostname()
		if err != nil {
			return nil, fmt.Errorf("cannot read the host's name: %w", err)
		}
		o.Name = host
	}
	s := &Server{Options: o, mux: http.NewServeMux()}
	for _, rt := range routes() {
		s.mux.Handle(rt.method+" "+rt.path, s.endpoint(rt))
	}
	s.mux.Handle("/", s.endpoint(route{handler: (*Server).notFound}))
	return s, nil
}

// ServeHTTP answers one request.
func (s *Server) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	h := w.Header()
	h.Set("Api-Version", maxVersion.String())
	h.Set("Docker-Experimental", "false")
	h.Set("Ostype", "linux")
	h.Set("Server", "vch/"+s.Version+" (linux)")

	out := &response{ResponseWriter: w}
	routed, err := s.resolve(r)
	if err != nil {
		s.fail(out, r, err)
		return
	}
	s.mux.ServeHTTP(out, routed)
}

// endpoint makes an http.Handler of a row.
func (s *Server) endpoint(rt route) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		out := w.(*response) // ServeHTTP gave it
		defer func() {
			p := recover()
			switch {
			case p == nil:
			case p == http.ErrAbortHandler:
				panic(p)
			default:
				s.Log.Error("a handler panicked", "method", r.Method, "path", r.URL.Path, "panic", p, "stack", string(debug.Stack()))
				if !out.began {
					s.writeError(out, http.StatusInternalServerError, "vch met a defect of its own; its log says where")
				}
			}
		}()
		if rt.handler == nil {
			s.writeError(out, http.StatusNotImplemented, r.Method+" "+rt.path+": not supported by vch")
			return
		}
		if err := rt.handler(s, out, r); err != nil {
			s.fail(out, r, err)
		}
	})
}

// fail answers err, once; what is too late to be answered is logged.
func (s *Server) fail(w *response, r *http.Request, err error) {
	status := statusOf(err)
	switch {
	case w.began:
		if r.Context().Err() == nil { // a client that went away is no news
			s.Log.Warn("a stream ended early", "method", r.Method, "path", r.URL.Path, "err", err)
		}
		return
	case status == http.StatusNotModified:
		w.WriteHeader(status)
		return
	case status >= 500 && r.Context().Err() == nil && !fault.Is(err, fault.Unavailable):
		s.Log.Error("a request failed", "method", r.Method, "path", r.URL.Path, "err", err)
	}
	s.writeError(w, status, err.Error())
}

// writeError sends Docker's error body. The client may be gone: there is no one to tell then.
func (s *Server) writeError(w http.ResponseWriter, status int, text string) {
	if err := writeJSON(w, status, map[string]string{"message": text}); err != nil {
		s.Log.Debug("cannot send an error", "err", err)
	}
}

// notFound is Moby's answer to a path that is no endpoint, or an endpoint's with another method.
func (s *Server) notFound(http.ResponseWriter, *http.Request) error {
	return fault.New(fault.NotFound, "page not found")
}
