package personality

import (
	"encoding/json"
	"errors"
	"io"
	"mime"
	"net/http"
	"strconv"
	"strings"

	"vch/internal/fault"
)

// maxBody bounds a JSON request, in bytes; Docker's largest are well below 1 MiB.
const maxBody = 16 << 20

// writeJSON sends v. HTML is not escaped, as in Moby.
func writeJSON(w http.ResponseWriter, status int, v any) error {
	w.Header().Set("Content-Type", "application/json")
	w.WriteHeader(status)
	enc := json.NewEncoder(w)
	enc.SetEscapeHTML(false)
	return enc.Encode(v)
}

// decodeJSON reads the one JSON value of r's body into v; an empty body is Invalid. Unknown fields are ignored, as in Moby: a newer client may send them.
func decodeJSON(r *http.Request, v any) error {
	empty, err := decodeOptionalJSON(r, v)
	if err == nil && empty {
		return fault.New(fault.Invalid, "invalid JSON: got EOF while reading request body")
	}
	return err
}

// decodeOptionalJSON is decodeJSON for a request that may have no body; empty says that it had none, and v is as it was.
func decodeOptionalJSON(r *http.Request, v any) (empty bool, err error) {
	ct := r.Header.Get("Content-Type")
	if r.Body == nil || r.ContentLength == 0 && len(r.TransferEncoding) == 0 {
		if ct == "" {
			return true, nil
		}
	}
	kind, _, err := mime.ParseMediaType(ct)
	if err != nil {
		return false, fault.New(fault.Invalid, "malformed Content-Type header (%s): %w", ct, err)
	}
	if kind != "application/json" {
		return false, fault.New(fault.Invalid, "unsupported Content-Type header (%s): must be 'application/json'", ct)
	}
	if r.Body == nil {
		return true, nil
	}
	dec := json.NewDecoder(http.MaxBytesReader(nil, r.Body, maxBody))
	if err := dec.Decode(v); errors.Is(err, io.EOF) {
		return true, nil
	} else if err != nil {
		return false, fault.New(fault.Invalid, "invalid JSON: %w", err)
	}
	if dec.More() {
		return false, fault.New(fault.Invalid, "unexpected content after JSON")
	}
	return false, nil
}

// boolValue is Moby's rule for a boolean in a query: anything but "", 0, no, false, none is true.
func boolValue(r *http.Request, name string) bool {
	switch strings.ToLower(strings.TrimSpace(r.URL.Query().Get(name))) {
	case "", "0", "no", "false", "none":
		return false
	}
	return true
}

// intValue is a number in a query; given is false where there is none.
func intValue(r *http.Request, name string) (n int, given bool, err error) {
	text := r.URL.Query().Get(name)
	if text == "" {
		return 0, false, nil
	}
	n, err = strconv.Atoi(text)
	if err != nil {
		return 0, true, fault.New(fault.Invalid, "%s=%s: it takes a whole number", name, text)
	}
	return n, true, nil
}
