package personality

import (
	"encoding/base64"
	"encoding/json"
	"errors"
	"io"
	"net/http"

	"github.com/moby/moby/api/types/container"

	"vch/guest"
	"vch/internal/compression"
	"vch/internal/fault"
	"vch/portlayer"
)

// pathStatHeader carries what a path is (moby daemon/server/router/container/copy.go).
const pathStatHeader = "X-Docker-Container-Path-Stat"

// archivePath reads path, which all three ask for.
func archivePath(r *http.Request) (string, error) {
	p := r.URL.Query().Get("path")
	if p == "" {
		return "", fault.New(fault.Invalid, "bad parameter: path cannot be empty")
	}
	return p, nil
}

// setPathStat puts what a path is into the answer's header.
func setPathStat(w http.ResponseWriter, st guest.PathStat) error {
	text, err := json.Marshal(container.PathStat{Name: string(st.Name), Size: st.Size, Mode: st.Mode, Mtime: st.Mtime, LinkTarget: string(st.LinkTarget)})
	if err != nil {
		return err
	}
	w.Header().Set(pathStatHeader, base64.StdEncoding.EncodeToString(text))
	return nil
}

// containerArchiveStat is HEAD /containers/{id}/archive.
func (s *Server) containerArchiveStat(w http.ResponseWriter, r *http.Request) error {
	p, err := archivePath(r)
	if err != nil {
		return err
	}
	st, err := s.Containers.StatPath(r.Context(), r.PathValue("id"), p)
	if err != nil {
		return err
	}
	if err := setPathStat(w, st); err != nil {
		return err
	}
	w.WriteHeader(http.StatusOK)
	return nil
}

// containerArchiveGet is GET /containers/{id}/archive.
func (s *Server) containerArchiveGet(w http.ResponseWriter, r *http.Request) error {
	p, err := archivePath(r)
	if err != nil {
		return err
	}
	out := &laterWriter{to: w, kind: "application/x-tar"}
	err = s.Containers.CopyOut(r.Context(), r.PathValue("id"), p, func(st guest.PathStat) (io.Writer, error) {
		return out, setPathStat(w, st)
	})
	if err != nil && !out.begun {
		w.Header().Del(pathStatHeader)
	}
	return s.ended(r, out, p+" of container "+r.PathValue("id"), err)
}

// ended is how an archive of what ended: an error, or, once the header is out, a connection that breaks, by which the client hears of it.
func (s *Server) ended(r *http.Request, out *laterWriter, what string, err error) error {
	if err == nil || !out.begun {
		return err
	}
	if r.Context().Err() == nil {
		s.Log.Warn("an archive ended early", "of", what, "err", err)
	}
	panic(http.ErrAbortHandler)
}

// laterWriter sends the header with the first bytes, so that what fails before them is an error with its status.
type laterWriter struct {
	to    http.ResponseWriter
	kind  string // its media type
	begun bool
}

func (l *laterWriter) Write(p []byte) (int, error) {
	if !l.begun {
		l.begun = true
		l.to.Header().Set("Content-Type", l.kind)
		l.to.WriteHeader(http.StatusOK)
	}
	return l.to.Write(p)
}

// containerArchivePut is PUT /containers/{id}/archive.
func (s *Server) containerArchivePut(w http.ResponseWriter, r *http.Request) error {
	p, err := archivePath(r)
	if err != nil {
		return err
	}
	o := portlayer.CopyOptions{NoOverwrite: boolValue(r, "noOverwriteDirNonDir"), Owned: boolValue(r, "copyUIDGID")}
	archive, err := compression.Plain(r.Body)
	if err != nil {
		return archiveError(err)
	}
	defer archive.Close()
	if err := archiveError(s.Containers.CopyIn(r.Context(), r.PathValue("id"), p, archive, o)); err != nil {
		return err
	}
	w.WriteHeader(http.StatusOK)
	return nil
}

// archiveError gives an extraction's failure its status: what is mounted read-only is a bad request, and what goes wrong with the archive itself is not
// told apart from what goes wrong with the engine (moby daemon/archive.go, ContainerExtractToDir).
func archiveError(err error) error {
	switch {
	case errors.Is(err, portlayer.ErrArchive):
		return statusError{http.StatusInternalServerError, err}
	case fault.Is(err, fault.Denied):
		return statusError{http.StatusBadRequest, err}
	}
	return err
}
