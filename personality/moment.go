package personality

import (
	"strconv"
	"strings"
	"time"

	"vch/internal/fault"
)

// parseMoment reads a point in time as Docker's "until" filters have it (moby timestamp.GetTimestamp): seconds since 1970 with or without a fraction, a
// duration before now ("24h"), or RFC 3339 and its beginnings, in the host's zone where they say none.
func parseMoment(text string, now time.Time) (time.Time, error) {
	if d, err := time.ParseDuration(text); err == nil && text != "0" {
		return now.Add(-d), nil
	}
	whole, fraction, _ := strings.Cut(text, ".")
	if seconds, err := strconv.ParseInt(whole, 10, 64); err == nil {
		if nanos, err := strconv.ParseUint((fraction + "000000000")[:9], 10, 64); err == nil {
			return time.Unix(seconds, int64(nanos)), nil
		}
	}
	for _, layout := range []string{time.RFC3339Nano, "2006-01-02T15:04:05.999999999", "2006-01-02T15:04", "2006-01-02T15", "2006-01-02Z07:00", "2006-01-02"} {
		if t, err := time.ParseInLocation(layout, text, now.Location()); err == nil {
			return t, nil
		}
	}
	return time.Time{}, fault.New(fault.Invalid, "%q is no time: give seconds since 1970, a duration such as 24h, or a date such as 2006-01-02T15:04:05", text)
}
