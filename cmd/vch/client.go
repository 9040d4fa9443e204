package main

import (
	"bytes"
	"context"
	"crypto/tls"
	"crypto/x509"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/url"
	"os"
	"path/filepath"
	"strings"

	"github.com/spf13/pflag"
)

// client speaks to a running vch serve.
type client struct {
	host string // as --listen; "": $VCH_HOST, $DOCKER_HOST, or where vch serve listens by default
}

func (c *client) flags(f *pflag.FlagSet) {
	f.StringVarP(&c.host, "host", "H", "", "`ADDRESS` of the vch to speak to, unix:///PATH or tcp://HOST:PORT (default: $VCH_HOST, $DOCKER_HOST, or where vch serve listens)")
}

// address is where the daemon is.
func (c *client) address(at surroundings, env func(string) string) (address, error) {
	for _, text := range []string{c.host, env("VCH_HOST"), env("DOCKER_HOST")} {
		if text == "" {
			continue
		}
		port := portPlain
		if env("DOCKER_TLS_VERIFY") != "" {
			port = portTLS
		}
		a, err := parseAddress(text, port)
		if err != nil {
			return a, usagef("%s is no address of a vch: it is unix:///PATH or tcp://HOST:PORT", text)
		}
		return a, nil
	}
	state, err := statePath("", at)
	if err != nil {
		return address{}, err
	}
	all, err := addresses(nil, nil, false, state, at)
	if err != nil {
		return address{}, err
	}
	return all[0], nil
}

// dialer connects to a; over TCP as the docker CLI does, by DOCKER_TLS_VERIFY and DOCKER_CERT_PATH.
func dialer(a address, at surroundings, env func(string) string) (func(ctx context.Context) (net.Conn, error), error) {
	if a.Network == "unix" || env("DOCKER_TLS_VERIFY") == "" {
		var d net.Dialer
		return func(ctx context.Context) (net.Conn, error) { return d.DialContext(ctx, a.Network, a.At) }, nil
	}
	dir := env("DOCKER_CERT_PATH")
	if dir == "" {
		dir = filepath.Join(at.Home, ".docker")
	}
	pair, err := tls.LoadX509KeyPair(filepath.Join(dir, certFile), filepath.Join(dir, keyFile))
	if err != nil {
		return nil, usagef("DOCKER_TLS_VERIFY is set, and there is no certificate to show: %w; make one with vch cert, and say with DOCKER_CERT_PATH where it is", err)
	}
	pool := x509.NewCertPool()
	if text, err := os.ReadFile(filepath.Join(dir, caFile)); err != nil || !pool.AppendCertsFromPEM(text) {
		return nil, usagef("DOCKER_TLS_VERIFY is set, and %s holds no certificate to check the server's by", filepath.Join(dir, caFile))
	}
	d := tls.Dialer{Config: &tls.Config{Certificates: []tls.Certificate{pair}, RootCAs: pool, MinVersion: tls.VersionTLS12}}
	return func(ctx context.Context) (net.Conn, error) { return d.DialContext(ctx, a.Network, a.At) }, nil
}

// send makes a request below /vch and gives the answer, whose body the caller closes. An answer that is an error becomes one, in the daemon's words.
func (c *client) send(ctx context.Context, method, path string, body io.Reader, mediaType string) (*http.Response, error) {
	at, err := c.address(here(), os.Getenv)
	if err != nil {
		return nil, err
	}
	dial, err := dialer(at, here(), os.Getenv)
	if err != nil {
		return nil, err
	}
	transport := &http.Transport{DisableKeepAlives: true, DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) { return dial(ctx) }}
	req, err := http.NewRequestWithContext(ctx, method, "http://vch/vch"+path, body)
	if err != nil {
		return nil, err
	}
	if mediaType != "" {
		req.Header.Set("Content-Type", mediaType)
	}
	resp, err := (&http.Client{Transport: transport}).Do(req)
	if err != nil {
		var op *net.OpError
		if errors.As(err, &op) && op.Op == "dial" {
			return nil, fmt.Errorf("no vch answers at %s (%w): start vch serve, or say with --host where it listens", at, op.Err)
		}
		return nil, err
	}
	if resp.StatusCode < 400 {
		return resp, nil
	}
	defer resp.Body.Close()
	text, err := io.ReadAll(io.LimitReader(resp.Body, 1<<20))
	if err != nil {
		return nil, err
	}
	var said struct {
		Message string `json:"message"`
	}
	if json.Unmarshal(text, &said) != nil || said.Message == "" {
		said.Message = strings.TrimSpace(string(text))
	}
	if resp.StatusCode == http.StatusNotFound && said.Message == "page not found" {
		return nil, fmt.Errorf("what listens at %s does not know this command: is it a vch of this version?", at)
	}
	return nil, errors.New(said.Message)
}

// call sends request as JSON (nil: nothing) and reads the answer into answer (nil: it is not read).
func (c *client) call(ctx context.Context, method, path string, request, answer any) error {
	var body io.Reader
	mediaType := ""
	if request != nil {
		text, err := json.Marshal(request)
		if err != nil {
			return err
		}
		body, mediaType = bytes.NewReader(text), "application/json"
	}
	resp, err := c.send(ctx, method, path, body, mediaType)
	if err != nil {
		return err
	}
	defer resp.Body.Close()
	if answer == nil {
		return nil
	}
	return json.NewDecoder(resp.Body).Decode(answer)
}

// volumePath is the path of what is done to a volume.
func volumePath(name, verb string) string { return "/volumes/" + url.PathEscape(name) + "/" + verb }
