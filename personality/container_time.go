package personality

import (
	"net/http"
	"time"

	"vch/internal/fault"
)

// unixTime is a bound in time of logs and events: seconds since 1970 with or without a fraction, or what else parseMoment knows. "" and 0 are none.
func unixTime(r *http.Request, name string) (time.Time, error) {
	text := r.URL.Query().Get(name)
	if text == "" || text == "0" {
		return time.Time{}, nil
	}
	t, err := parseMoment(text, time.Now())
	if err != nil {
		return t, fault.New(fault.Invalid, "%s: %w", name, err)
	}
	return t, nil
}
