package machine

import (
	"strings"

	"vch/internal/fault"
)

// Verdict is the outcome of a check.
type Verdict string

// The verdicts. A check that is Forceable and fails can be lived with: what it looked at will be degraded.
const (
	OK   Verdict = "ok"
	Warn Verdict = "warn"
	Fail Verdict = "FAIL"
)

// Check is one thing that was looked at before anything was made.
type Check struct {
	Name      string  `json:"name"`
	Verdict   Verdict `json:"verdict"`
	Detail    string  `json:"detail"`
	Forceable bool    `json:"forceable,omitempty"`
}

// Judge refuses what its checks do not let pass. With force, those that can be lived with become warnings.
func Judge(checks []Check, force bool) ([]Check, error) {
	judged := make([]Check, 0, len(checks))
	var hard, soft []string
	for _, c := range checks {
		switch {
		case c.Verdict != Fail:
		case c.Forceable && force:
			c.Verdict = Warn
			c.Detail += " (--force: it will be degraded until that is mended)"
		case c.Forceable:
			soft = append(soft, c.Name+": "+c.Detail)
		default:
			hard = append(hard, c.Name+": "+c.Detail)
		}
		judged = append(judged, c)
	}
	switch {
	case hard != nil:
		return judged, fault.New(fault.Unavailable, "nothing was changed: %s", strings.Join(append(hard, soft...), "; "))
	case soft != nil:
		return judged, fault.New(fault.Unavailable, "nothing was changed: %s; mend that, or go on with --force: the store is then degraded until it can be reached", strings.Join(soft, "; "))
	}
	return judged, nil
}
