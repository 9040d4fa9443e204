package personality

import (
	"context"
	"fmt"
	"net/http"
	"net/url"
	"path"
	"regexp"
	"slices"
	"strconv"
	"strings"

	"vch/internal/fault"
)

// apiVersion is a version of the Engine API, in hundredths: 1.41 is 141. It is that of the request's path, or, without one there, the newest.
type apiVersion int

// The versions whose shapes are tested. Docker 28.2 speaks 1.50, Docker 20.10 speaks 1.41.
const (
	minVersion apiVersion = 124
	maxVersion apiVersion = 150
)

// String is the version as a client writes it.
func (v apiVersion) String() string { return fmt.Sprintf("%d.%d", int(v)/100, int(v)%100) }

// atLeast reports whether v is major.minor or newer.
func (v apiVersion) atLeast(major, minor int) bool { return v >= apiVersion(major*100+minor) }

type versionKey struct{}

// versionOf is the API version that the client of r speaks.
func versionOf(r *http.Request) apiVersion {
	if v, ok := r.Context().Value(versionKey{}).(apiVersion); ok {
		return v
	}
	return maxVersion
}

// versionPrefix as Moby's router has it: /v1.41/…
var versionPrefix = regexp.MustCompile(`^/v([0-9]+)\.([0-9]+)(/.*)$`)

// resolve takes the version off r's path, checks it, and makes the path one that the router can match: a name with slashes becomes one segment.
func (s *Server) resolve(r *http.Request) (*http.Request, error) {
	rest, v := r.URL.EscapedPath(), maxVersion
	if m := versionPrefix.FindStringSubmatch(rest); m != nil {
		rest = m[3]
		major, err1 := strconv.Atoi(m[1])
		minor, err2 := strconv.Atoi(m[2])
		given := m[1] + "." + m[2]
		switch {
		case err1 != nil || err2 != nil || major > 1 || major == 1 && minor > int(maxVersion)%100:
			return nil, fault.New(fault.Invalid, "client version %s is too new. Maximum supported API version is %s", given, maxVersion)
		case major < 1 || minor < int(minVersion)%100:
			return nil, fault.New(fault.Invalid, "client version %s is too old. Minimum supported API version is %s, please upgrade your client to a newer version", given, minVersion)
		}
		v = apiVersion(major*100 + minor)
	}
	// The standard router would redirect a path that is not clean; Moby's finds nothing there.
	if clean := path.Clean(rest); rest != clean && rest != clean+"/" {
		return nil, fault.New(fault.NotFound, "page not found")
	}
	rest = foldName(r.Method, rest)
	decoded, err := url.PathUnescape(rest)
	if err != nil {
		return nil, fault.New(fault.Invalid, "cannot read the path %s: %w", rest, err)
	}
	out := r.WithContext(context.WithValue(r.Context(), versionKey{}, v))
	u := *r.URL
	u.Path, u.RawPath = decoded, rest
	out.URL = &u
	return out, nil
}

// foldName makes one segment of an image's or plugin's name, in which clients leave the slashes as they are:
// /images/library/busybox/json becomes /images/library%2Fbusybox/json.
func foldName(method, escaped string) string {
	segments := strings.Split(strings.TrimPrefix(escaped, "/"), "/")
	if len(segments) < 3 || !slices.Contains([]string{"images", "plugins", "distribution"}, segments[0]) {
		return escaped
	}
	end := len(segments) - 1 // the last one is the verb,
	if method == http.MethodDelete {
		end = len(segments) // which DELETE has not
	}
	folded := append([]string{segments[0], strings.Join(segments[1:end], "%2F")}, segments[end:]...)
	return "/" + strings.Join(folded, "/")
}
