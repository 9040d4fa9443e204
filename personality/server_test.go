package personality

import (
	"bytes"
	"errors"
	"fmt"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"

	"github.com/moby/moby/client"

	"vch/internal/fault"
	"vch/portlayer"
)

func TestPing(t *testing.T) {
	w := newWorld(t)
	for _, method := range []string{"HEAD", "GET"} {
		r, err := http.NewRequestWithContext(t.Context(), method, "http://docker/_ping", nil)
		if err != nil {
			t.Fatal(err)
		}
		answer, err := w.http.Do(r)
		if err != nil {
			t.Fatal(err)
		}
		answer.Body.Close()
		for key, want := range map[string]string{
			"Api-Version": "1.50", "Ostype": "linux", "Docker-Experimental": "false", "Server": "vch/0.1.0 (linux)", "Builder-Version": "1", "Swarm": "inactive",
			"Cache-Control": "no-cache, no-store, must-revalidate",
		} {
			if got := answer.Header.Get(key); got != want {
				t.Errorf("%s: %s is %q, want %q", method, key, got, want)
			}
		}
		if answer.StatusCode != http.StatusOK {
			t.Errorf("%s: %s", method, answer.Status)
		}
	}
	if status, body := w.call("GET", "/v1.24/_ping", ""); status != 200 || body != "OK" {
		t.Errorf("%d %q", status, body)
	}
	c := w.client("")
	ping, err := c.Ping(t.Context(), client.PingOptions{NegotiateAPIVersion: true})
	if err != nil || ping.APIVersion != "1.50" || c.ClientVersion() != "1.50" {
		t.Errorf("%+v, %v; client speaks %s", ping, err, c.ClientVersion())
	}
}

func TestVersionsAreNegotiated(t *testing.T) {
	w := newWorld(t)
	for _, path := range []string{"/version", "/v1.24/version", "/v1.41/version", "/v1.50/version"} {
		w.ask(nil, "GET", path, "")
	}
	w.refused(400, "client version 1.99 is too new. Maximum supported API version is 1.50", "GET", "/v1.99/version", "")
	w.refused(400, "client version 2.0 is too new", "GET", "/v2.0/version", "")
	w.refused(400, "client version 1.23 is too old. Minimum supported API version is 1.24, please upgrade your client to a newer version", "GET", "/v1.23/version", "")
	w.refused(400, "client version 0.9 is too old", "GET", "/v0.9/version", "")
	w.refused(404, "page not found", "GET", "/v1.41", "")
	w.refused(404, "page not found", "GET", "/vx/version", "")
}

func TestUnknownPaths(t *testing.T) {
	w := newWorld(t)
	for _, path := range []string{"/", "/nothing", "/containers", "/images/x", "/volumes/x/..", "//info", "/v1.41//info"} {
		w.refused(404, "page not found", "GET", path, "")
	}
	w.refused(404, "page not found", "PATCH", "/info", "")
	w.refused(404, "page not found", "POST", "/info", "")
}

// TestUnsupportedEndpoints proves that each endpoint that is not there says so and names itself.
func TestUnsupportedEndpoints(t *testing.T) {
	w := newWorld(t)
	count := 0
	for _, rt := range routes() {
		if rt.handler != nil || rt.method == "HEAD" {
			continue
		}
		count++
		path := strings.NewReplacer("{id}", "x", "{name}", "library/x", "{checkpoint}", "y").Replace(rt.path)
		w.refused(501, rt.method+" "+rt.path+": not supported by vch", rt.method, "/v1.41"+path, "")
	}
	if count == 0 {
		t.Error("every endpoint is supported: take this test away")
	}
}

func TestSwarmEndpointsAnswerAsOutsideASwarm(t *testing.T) {
	w := newWorld(t)
	w.refused(503, "This node is not a swarm manager", "GET", "/services", "")
	w.refused(503, "POST /swarm/init is not supported by vch", "POST", "/swarm/init", "{}")
	w.refused(503, "This node is not a swarm manager", "PUT", "/volumes/x?version=1", "{}")
}

func TestStatusOfKinds(t *testing.T) {
	for _, tt := range []struct {
		err  error
		want int
	}{
		{fault.New(fault.Invalid, "x"), 400},
		{fault.New(fault.Unsupported, "x"), 400},
		{fault.New(fault.Denied, "x"), 403},
		{fault.New(fault.NotFound, "x"), 404},
		{fault.New(fault.Conflict, "x"), 409},
		{fault.New(fault.InUse, "x"), 409},
		{fault.New(fault.Unavailable, "x"), 503},
		{fault.New(fault.Internal, "x"), 500},
		{errors.New("x"), 500},
		{fmt.Errorf("stop: %w", portlayer.ErrNotModified), 304},
		{statusError{401, fault.New(fault.Denied, "x")}, 401},
		{fault.Wrap("attach volume", "data", fault.New(fault.InUse, "x")), 409},
	} {
		if got := statusOf(tt.err); got != tt.want {
			t.Errorf("%v: %d, want %d", tt.err, got, tt.want)
		}
	}
}

// TestFrame proves what the frame does with a handler's outcome: it answers once, or, when an answer has begun, not at all.
func TestFrame(t *testing.T) {
	for _, tt := range []struct {
		name    string
		handler func(*Server, http.ResponseWriter, *http.Request) error
		status  int
		body    string
		logged  string
	}{
		{"error", func(*Server, http.ResponseWriter, *http.Request) error { return fault.New(fault.Invalid, "a <b> & c") }, 400, `{"message":"a <b> & c"}`, ""},
		{"not modified", func(*Server, http.ResponseWriter, *http.Request) error { return portlayer.ErrNotModified }, 304, "", ""},
		{"defect", func(*Server, http.ResponseWriter, *http.Request) error { return errors.New("disk on fire") }, 500, `{"message":"disk on fire"}`, "disk on fire"},
		{"late error", func(_ *Server, w http.ResponseWriter, _ *http.Request) error {
			fmt.Fprint(w, "half")
			return errors.New("broken pipe")
		}, 200, "half", "broken pipe"},
		{"panic", func(*Server, http.ResponseWriter, *http.Request) error { panic("ouch") }, 500, `{"message":"vch met a defect of its own; its log says where"}`, "ouch"},
		{"late panic", func(_ *Server, w http.ResponseWriter, _ *http.Request) error {
			fmt.Fprint(w, "half")
			panic("ouch")
		}, 200, "half", "ouch"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			var log bytes.Buffer
			s := &Server{Options: Options{Log: slog.New(slog.NewTextHandler(&log, nil))}}
			rec := httptest.NewRecorder()
			s.endpoint(route{handler: tt.handler}).ServeHTTP(&response{ResponseWriter: rec}, httptest.NewRequest("GET", "/x", nil))
			if rec.Code != tt.status || strings.TrimSpace(rec.Body.String()) != tt.body {
				t.Errorf("%d %s, want %d %s", rec.Code, rec.Body, tt.status, tt.body)
			}
			if (tt.logged == "") != (log.Len() == 0) || strings.Count(log.String(), "level=") > 1 || !strings.Contains(log.String(), tt.logged) {
				t.Errorf("log: %s, want %s", &log, tt.logged)
			}
		})
	}
}

func TestNewNeedsItsServices(t *testing.T) {
	if _, err := New(Options{StateDir: t.TempDir()}); err == nil {
		t.Error("a server without services")
	}
}

func TestFoldName(t *testing.T) {
	for _, tt := range []struct{ method, in, want string }{
		{"GET", "/images/busybox/json", "/images/busybox/json"},
		{"GET", "/images/library/busybox/json", "/images/library%2Fbusybox/json"},
		{"GET", "/images/localhost:5000/a/b:1/history", "/images/localhost:5000%2Fa%2Fb:1/history"},
		{"POST", "/images/a/b/tag", "/images/a%2Fb/tag"},
		{"DELETE", "/images/a/b", "/images/a%2Fb"},
		{"DELETE", "/images/a", "/images/a"},
		{"GET", "/images/json", "/images/json"},
		{"GET", "/distribution/a/b/json", "/distribution/a%2Fb/json"},
		{"GET", "/containers/a/b/json", "/containers/a/b/json"},
	} {
		if got := foldName(tt.method, tt.in); got != tt.want {
			t.Errorf("%s %s: %s, want %s", tt.method, tt.in, got, tt.want)
		}
	}
}
