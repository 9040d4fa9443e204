package personality

import (
	"net/http"

	"vch/internal/fault"
	"vch/personality/mountspec"
	"vch/portlayer"
)

// volumeAttach answers vch volume attach. The mount is a text as of -v, read by the same grammar; the answer is the mount as inspect shows it.
func (s *Server) volumeAttach(w http.ResponseWriter, r *http.Request) error {
	var req struct{ Mount string }
	if err := decodeJSON(r, &req); err != nil {
		return err
	}
	at := versionOf(r)
	mounts, _, err := mountspec.Parse(mountspec.Input{Binds: []string{req.Mount}}, mountspec.Version{Major: int(at) / 100, Minor: int(at) % 100})
	if err != nil {
		return err
	}
	m, err := s.Containers.AttachVolume(r.Context(), r.PathValue("id"), mounts[0])
	if err != nil {
		return err
	}
	return s.showMount(w, m)
}

// volumeDetach answers vch volume detach.
func (s *Server) volumeDetach(w http.ResponseWriter, r *http.Request) error {
	target := r.URL.Query().Get("target")
	if target == "" {
		return fault.New(fault.Invalid, "say where the volume is mounted: target=/path")
	}
	m, err := s.Containers.DetachVolume(r.Context(), r.PathValue("id"), target)
	if err != nil {
		return err
	}
	return s.showMount(w, m)
}

func (s *Server) showMount(w http.ResponseWriter, m portlayer.Mount) error {
	return writeJSON(w, http.StatusOK, mountPoints([]portlayer.Mount{m}, s.Volumes.Locations())[0])
}
