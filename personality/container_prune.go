package personality

import (
	"net/http"
	"strconv"
	"time"

	"github.com/moby/moby/api/types/container"

	"vch/internal/fault"
	"vch/portlayer"
)

// containerPrune is POST /containers/prune: it removes what does not run, and leaves volumes alone. The space that a container's own disk took is not
// known when it is gone: SpaceReclaimed is 0.
func (s *Server) containerPrune(w http.ResponseWriter, r *http.Request) error {
	f, err := filtersOf(r)
	if err != nil {
		return err
	}
	if err := f.only("until", "label", "label!"); err != nil {
		return err
	}
	text, err := f.single("until")
	if err != nil {
		return err
	}
	var before time.Time
	if text != "" {
		if before, err = pruneTime(text, time.Now()); err != nil {
			return err
		}
	}
	all, err := s.Containers.List(r.Context())
	if err != nil {
		return err
	}
	report := container.PruneReport{ContainersDeleted: []string{}}
	for _, c := range all {
		if c.State.Phase == portlayer.Running || !f.labels(c.Spec.Labels) || !before.IsZero() && !c.Created.Before(before) {
			continue
		}
		err := s.Containers.Remove(r.Context(), string(c.ID), false, false)
		if fault.Is(err, fault.Conflict) || fault.Is(err, fault.NotFound) {
			continue // started or removed meanwhile
		}
		if err != nil {
			return err
		}
		report.ContainersDeleted = append(report.ContainersDeleted, string(c.ID))
	}
	return writeJSON(w, http.StatusOK, report)
}

// pruneTime reads "until": how long ago, a time, or seconds since 1970 (moby timestamp.GetTimestamp).
func pruneTime(text string, now time.Time) (time.Time, error) {
	if d, err := time.ParseDuration(text); err == nil {
		return now.Add(-d), nil
	}
	for _, layout := range []string{time.RFC3339Nano, "2006-01-02T15:04:05", "2006-01-02T15:04", "2006-01-02T15", "2006-01-02"} {
		if t, err := time.ParseInLocation(layout, text, now.Location()); err == nil {
			return t, nil
		}
	}
	if seconds, err := strconv.ParseFloat(text, 64); err == nil && seconds >= 0 && seconds < 1<<40 {
		return time.UnixMilli(int64(seconds * 1000)), nil
	}
	return time.Time{}, fault.New(fault.Invalid, "invalid filter 'until=[%s]': it takes a duration, as 24h, or a time, as 2006-01-02T15:04:05", text)
}
