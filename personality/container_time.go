package personality

import (
	"net/http"
	"strconv"
	"strings"
	"time"

	"vch/internal/fault"
)

// unixTime is a bound in time of logs and events: seconds since 1970 with or without a fraction, or what else pruneTime knows. "" and 0 are none.
func unixTime(r *http.Request, name string) (time.Time, error) {
	text := r.URL.Query().Get(name)
	if text == "" || text == "0" {
		return time.Time{}, nil
	}
	t, err := pruneTime(text, time.Now())
	if err != nil {
		return t, fault.New(fault.Invalid, "%s: %w", name, err)
	}
	return t, nil
}

// pruneTime reads a point in time as Docker's "until" filters have it: seconds since 1970 with up to nine digits of a fraction, a duration before now
// ("24h"), or RFC 3339 and its beginnings, in UTC where they name no zone.
func pruneTime(text string, now time.Time) (time.Time, error) {
	whole, fraction, _ := strings.Cut(text, ".")
	if seconds, err := strconv.ParseInt(whole, 10, 64); err == nil {
		nanos, err := strconv.ParseUint((fraction + "000000000")[:9], 10, 64)
		if err == nil {
			return time.Unix(seconds, int64(nanos)), nil
		}
	}
	if d, err := time.ParseDuration(text); err == nil {
		return now.Add(-d), nil
	}
	for _, layout := range []string{time.RFC3339Nano, "2006-01-02T15:04:05.999999999", "2006-01-02T15:04", "2006-01-02T15", "2006-01-02Z07:00", "2006-01-02"} {
		if t, err := time.Parse(layout, text); err == nil {
			return t, nil
		}
	}
	return time.Time{}, fault.New(fault.Invalid, "%q is no time: give seconds since 1970, a duration such as 24h, or a date such as 2006-01-02T15:04:05", text)
}
