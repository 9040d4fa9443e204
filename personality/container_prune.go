package personality

import (
	"net/http"
	"time"

	"github.com/moby/moby/api/types/container"

	"vch/internal/fault"
)

// containerPrune is POST /containers/prune: it removes what does not run, and leaves volumes alone.
func (s *Server) containerPrune(w http.ResponseWriter, r *http.Request) error {
	f, err := filtersOf(r)
	if err != nil {
		return err
	}
	if err := f.only("until", "label", "label!"); err != nil {
		return err
	}
	before, err := f.until(time.Now())
	if err != nil {
		return err
	}
	all, err := s.Containers.List(r.Context())
	if err != nil {
		return err
	}
	report := container.PruneReport{ContainersDeleted: []string{}}
	for _, c := range all {
		if alive(c.State) || !f.labels(c.Spec.Labels) || !before.IsZero() && !c.Created.Before(before) {
			continue
		}
		written, err := s.written(r.Context(), c)
		if err != nil {
			return err
		}
		err = s.Containers.Remove(r.Context(), string(c.ID), false, false)
		if fault.Is(err, fault.Conflict) || fault.Is(err, fault.NotFound) {
			continue // started or removed meanwhile
		}
		if err != nil {
			return err
		}
		report.SpaceReclaimed += uint64(written)
		report.ContainersDeleted = append(report.ContainersDeleted, string(c.ID))
	}
	return writeJSON(w, http.StatusOK, report)
}
