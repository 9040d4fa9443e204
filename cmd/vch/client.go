package main

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/url"
	"os"
	"strings"

	"github.com/spf13/pflag"
)

// client speaks to a running vch serve.
type client struct {
	host string // unix:///PATH; "": $VCH_HOST, $DOCKER_HOST, or where vch serve listens by default
}

func (c *client) flags(f *pflag.FlagSet) {
	f.StringVarP(&c.host, "host", "H", "", "`ADDRESS` of the vch to speak to, unix:///PATH (default: $VCH_HOST, $DOCKER_HOST, or where vch serve listens)")
}

// socket is the path of the daemon's socket.
func (c *client) socket(at surroundings, env func(string) string) (string, error) {
	for _, text := range []string{c.host, env("VCH_HOST"), env("DOCKER_HOST")} {
		if text != "" {
			paths, err := socketPaths([]string{text}, "", at)
			if err != nil {
				return "", usagef("%s is no address of a vch: it is unix:///PATH", text)
			}
			return paths[0], nil
		}
	}
	state, err := statePath("", at)
	if err != nil {
		return "", err
	}
	paths, err := socketPaths(nil, state, at)
	if err != nil {
		return "", err
	}
	return paths[0], nil
}

// send makes a request below /vch and gives the answer, whose body the caller closes. An answer that is an error becomes one, in the daemon's words.
func (c *client) send(ctx context.Context, method, path string, body io.Reader, mediaType string) (*http.Response, error) {
	socket, err := c.socket(here(), os.Getenv)
	if err != nil {
		return nil, err
	}
	transport := &http.Transport{DisableKeepAlives: true, DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
		var d net.Dialer
		return d.DialContext(ctx, "unix", socket)
	}}
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
			return nil, fmt.Errorf("no vch answers at unix://%s (%w): start vch serve, or say with --host where it listens", socket, op.Err)
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
		return nil, fmt.Errorf("what listens at unix://%s does not know this command: is it a vch of this version?", socket)
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
