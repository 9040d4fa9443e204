package personality

import (
	"encoding/json"
	"io"
	"net/http"
	"strings"

	"github.com/moby/moby/api/types/container"

	"vch/internal/fault"
	"vch/portlayer"
)

// containerStart is POST /containers/{id}/start.
func (s *Server) containerStart(w http.ResponseWriter, r *http.Request) error {
	if body, err := io.ReadAll(io.LimitReader(r.Body, 16)); err != nil || len(body) > 0 && !emptyJSON(body) {
		return fault.New(fault.Invalid, "starting container with non-empty request body was deprecated since API v1.22 and removed in v1.24")
	}
	for _, option := range []string{"checkpoint", "checkpoint-dir"} {
		if r.URL.Query().Get(option) != "" {
			return refused(option, "--"+option, "a container VM cannot be checkpointed in this version")
		}
	}
	c, err := s.Containers.Get(r.Context(), r.PathValue("id"))
	if err != nil {
		return err
	}
	if err := startError(s.Containers.Start(r.Context(), string(c.ID))); err != nil {
		return err
	}
	w.WriteHeader(http.StatusNoContent)
	return nil
}

// startError gives the failure of a start its status. The container was found: what is missing, or not allowed, is the container's own program, and as
// in Moby (daemon/errors.go translateContainerdStartErr) that is a bad request. The CLI makes its exit code, 127 or 126, of the text.
func startError(err error) error {
	if fault.Is(err, fault.NotFound) || fault.Is(err, fault.Denied) {
		return fault.As(fault.Invalid, err)
	}
	return err
}

// stopQuery reads how to stop: signal (0: the container's), seconds (nil: the container's).
func stopQuery(r *http.Request) (signal int, seconds *int, err error) {
	if text := r.URL.Query().Get("signal"); text != "" {
		if signal, err = parseSignal(text); err != nil {
			return 0, nil, err
		}
	}
	t, given, err := intValue(r, "t")
	if err != nil {
		return 0, nil, err
	}
	if given {
		seconds = &t
	}
	return signal, seconds, nil
}

// containerStop is POST /containers/{id}/stop.
func (s *Server) containerStop(w http.ResponseWriter, r *http.Request) error {
	signal, seconds, err := stopQuery(r)
	if err != nil {
		return err
	}
	if err := s.Containers.Stop(r.Context(), r.PathValue("id"), signal, seconds); err != nil {
		return err
	}
	w.WriteHeader(http.StatusNoContent)
	return nil
}

// containerPause is POST /containers/{id}/pause.
func (s *Server) containerPause(w http.ResponseWriter, r *http.Request) error {
	if err := s.Containers.Pause(r.Context(), r.PathValue("id")); err != nil {
		return err
	}
	w.WriteHeader(http.StatusNoContent)
	return nil
}

// containerUnpause is POST /containers/{id}/unpause.
func (s *Server) containerUnpause(w http.ResponseWriter, r *http.Request) error {
	if err := s.Containers.Unpause(r.Context(), r.PathValue("id")); err != nil {
		return err
	}
	w.WriteHeader(http.StatusNoContent)
	return nil
}

// containerRestart is POST /containers/{id}/restart.
func (s *Server) containerRestart(w http.ResponseWriter, r *http.Request) error {
	signal, seconds, err := stopQuery(r)
	if err != nil {
		return err
	}
	c, err := s.Containers.Get(r.Context(), r.PathValue("id"))
	if err != nil {
		return err
	}
	if err := startError(s.Containers.Restart(r.Context(), string(c.ID), signal, seconds)); err != nil {
		return err
	}
	w.WriteHeader(http.StatusNoContent)
	return nil
}

// containerKill is POST /containers/{id}/kill.
func (s *Server) containerKill(w http.ResponseWriter, r *http.Request) error {
	signal := 9 // SIGKILL
	if text := r.URL.Query().Get("signal"); text != "" {
		var err error
		if signal, err = parseSignal(text); err != nil {
			return err
		}
	}
	if err := s.Containers.Kill(r.Context(), r.PathValue("id"), signal); err != nil {
		return err
	}
	w.WriteHeader(http.StatusNoContent)
	return nil
}

// containerRename is POST /containers/{id}/rename.
func (s *Server) containerRename(w http.ResponseWriter, r *http.Request) error {
	name := strings.TrimPrefix(r.URL.Query().Get("name"), "/")
	if err := s.Containers.Rename(r.Context(), r.PathValue("id"), name); err != nil {
		return err
	}
	w.WriteHeader(http.StatusNoContent)
	return nil
}

// containerRemove is DELETE /containers/{id}.
func (s *Server) containerRemove(w http.ResponseWriter, r *http.Request) error {
	if boolValue(r, "link") {
		return refused("link", "--link", noLinks)
	}
	if err := s.Containers.Remove(r.Context(), r.PathValue("id"), boolValue(r, "force"), boolValue(r, "v")); err != nil {
		return err
	}
	w.WriteHeader(http.StatusNoContent)
	return nil
}

// containerWait is POST /containers/{id}/wait. The header goes out when the wait has begun: docker run starts the container upon it.
func (s *Server) containerWait(w http.ResponseWriter, r *http.Request) error {
	var until portlayer.WaitUntil
	switch condition := r.URL.Query().Get("condition"); condition {
	case "", string(container.WaitConditionNotRunning):
		until = portlayer.UntilNotRunning
	case string(container.WaitConditionNextExit):
		until = portlayer.UntilNextExit
	case string(container.WaitConditionRemoved):
		until = portlayer.UntilRemoved
	default:
		return fault.New(fault.Invalid, "invalid condition: %q", condition)
	}
	begun := false
	begin := func() {
		begun = true
		w.Header().Set("Content-Type", "application/json")
		w.WriteHeader(http.StatusOK)
		// A client that cannot be told now is not told later either: the wait ends with its request.
		_ = http.NewResponseController(w).Flush()
	}
	state, err := s.Containers.Wait(r.Context(), r.PathValue("id"), until, begin)
	if err != nil && !begun {
		return err
	}
	if err != nil {
		panic(http.ErrAbortHandler) // the header is out, and there is no exit code: a connection that breaks is taken for none
	}
	answer := container.WaitResponse{StatusCode: int64(state.ExitCode)}
	// Why a start failed, the start itself says; here it would be said twice.
	if state.Error != "" && state.Phase != portlayer.Created {
		answer.Error = &container.WaitExitError{Message: state.Error}
	}
	if err := json.NewEncoder(w).Encode(answer); err != nil && r.Context().Err() == nil {
		return err
	}
	return nil
}
