package e2e

import (
	"bytes"
	"io"
	"log"
	"net/http"
	"net/http/httptest"
	"strings"

	"github.com/google/go-containerregistry/pkg/authn"
	"github.com/google/go-containerregistry/pkg/name"
	"github.com/google/go-containerregistry/pkg/registry"
	"github.com/google/go-containerregistry/pkg/v1/remote"
	"github.com/google/go-containerregistry/pkg/v1/tarball"
	"github.com/rogpeppe/go-internal/testscript"
)

// The one user of a registry that asks for credentials.
const registryUser, registryPassword = "ann", "secret"

// cutAfter is how many bytes of a layer a registry gives that cuts every transfer off.
const cutAfter = 1500 << 10

// cutWriter breaks the connection after so many bytes.
type cutWriter struct {
	http.ResponseWriter
	left int
}

func (c *cutWriter) Write(b []byte) (int, error) {
	if len(b) > c.left {
		c.ResponseWriter.Write(b[:c.left])
		http.NewResponseController(c.ResponseWriter).Flush()
		panic(http.ErrAbortHandler)
	}
	c.left -= len(b)
	return c.ResponseWriter.Write(b)
}

func registryCmd(ts *testscript.TestScript, neg bool, args []string) {
	usage(ts, !neg && len(args) > 0, "registry start [auth|corrupt|cut] | registry push NAME")
	switch args[0] {
	case "start":
		kind := strings.Join(args[1:], "")
		inner := registry.New(registry.Logger(log.New(io.Discard, "", 0)))
		server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			if kind == "auth" {
				if user, password, _ := r.BasicAuth(); user != registryUser || password != registryPassword {
					w.Header().Set("WWW-Authenticate", `Basic realm="test"`)
					http.Error(w, `{"errors":[{"code":"UNAUTHORIZED","message":"authentication required"}]}`, http.StatusUnauthorized)
					return
				}
			}
			if kind == "corrupt" && r.Method == http.MethodGet && strings.Contains(r.URL.Path, "/blobs/") {
				rec := httptest.NewRecorder()
				inner.ServeHTTP(rec, r)
				body := rec.Body.Bytes()
				if len(body) > 4096 { // a layer, not the configuration
					body[len(body)/2] ^= 0xff
				}
				for k, v := range rec.Header() {
					w.Header()[k] = v
				}
				w.WriteHeader(rec.Code)
				w.Write(body)
				return
			}
			if kind == "cut" && r.Method == http.MethodGet && strings.Contains(r.URL.Path, "/blobs/") {
				w = &cutWriter{w, cutAfter}
			}
			inner.ServeHTTP(w, r)
		}))
		of(ts).stop = append(of(ts).stop, server.Close)
		ts.Setenv("REGISTRY", strings.TrimPrefix(server.URL, "http://"))
	case "push":
		usage(ts, len(args) == 2, "registry push NAME")
		ls, err := layers()
		ts.Check(err)
		config, err := imageConfig(ls)
		ts.Check(err)
		data, err := dockerArchive(ls, config)
		ts.Check(err)
		image, err := tarball.Image(func() (io.ReadCloser, error) { return io.NopCloser(bytes.NewReader(data)), nil }, nil)
		ts.Check(err)
		ref, err := name.ParseReference(ts.Getenv("REGISTRY")+"/"+args[1], name.Insecure)
		ts.Check(err)
		ts.Check(remote.Write(ref, image, remote.WithAuth(&authn.Basic{Username: registryUser, Password: registryPassword})))
	default:
		usage(ts, false, "registry start [auth|corrupt|cut] | registry push NAME")
	}
}
