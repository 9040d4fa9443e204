package personality

import (
	"net/http"

	"vch/portlayer"
)

// What vch can do with a volume and the Engine API has no word for stands below /vch/ (doc/adr/0006). vch volume asks for it.

// volumeProtect answers vch volume protect and unprotect.
func (s *Server) volumeProtect(w http.ResponseWriter, r *http.Request) error {
	vol, err := s.Volumes.Protect(r.Context(), portlayer.ParseVolumeID(r.PathValue("name")), r.Method == http.MethodPost)
	if err != nil {
		return err
	}
	return writeJSON(w, http.StatusOK, showVolume(vol, s.Volumes.Locations()))
}
