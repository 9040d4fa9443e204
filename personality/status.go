package personality

import (
	"errors"
	"net/http"

	"vch/internal/fault"
	"vch/portlayer"
)

// statusOf is the HTTP status of an error: the one place where kinds become statuses. The classes are those of Moby's httpstatus.FromError.
func statusOf(err error) int {
	var own statusError
	if errors.As(err, &own) {
		return own.status
	}
	if errors.Is(err, portlayer.ErrNotModified) {
		return http.StatusNotModified
	}
	switch fault.KindOf(err) {
	case fault.Invalid:
		return http.StatusBadRequest
	case fault.Unsupported: // an option of an endpoint that vch has; an endpoint that it has not is a 501 without any error
		return http.StatusBadRequest
	case fault.Denied:
		return http.StatusForbidden
	case fault.NotFound:
		return http.StatusNotFound
	case fault.Conflict, fault.InUse:
		return http.StatusConflict
	case fault.Unavailable:
		return http.StatusServiceUnavailable
	default:
		return http.StatusInternalServerError
	}
}

// statusError gives an error the status that Moby has for it where the kind alone would not.
type statusError struct {
	status int
	err    error
}

func (e statusError) Error() string { return e.err.Error() }
func (e statusError) Unwrap() error { return e.err }
