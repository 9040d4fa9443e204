package image

import (
	"context"
	"errors"
	"net"
	"net/http"
	"net/url"
	"strings"
	"time"

	"github.com/distribution/reference"
	"github.com/google/go-containerregistry/pkg/authn"
	"github.com/google/go-containerregistry/pkg/name"
	"github.com/google/go-containerregistry/pkg/v1/remote"
	"github.com/google/go-containerregistry/pkg/v1/remote/transport"

	"vch/internal/fault"
	"vch/portlayer"
)

// newTransport is how registries are reached: the environment's proxy, and time limits on everything but the content itself.
func newTransport() *http.Transport {
	return &http.Transport{
		Proxy:                 http.ProxyFromEnvironment,
		DialContext:           (&net.Dialer{Timeout: 10 * time.Second, KeepAlive: 30 * time.Second}).DialContext,
		ForceAttemptHTTP2:     true,
		MaxIdleConnsPerHost:   maxDownloads,
		IdleConnTimeout:       30 * time.Second,
		TLSHandshakeTimeout:   10 * time.Second,
		ResponseHeaderTimeout: 60 * time.Second,
	}
}

// plainOnlyLocal refuses plain HTTP to anything but this machine, as dockerd does by default: go-containerregistry would also use it, password and
// all, for every private address.
type plainOnlyLocal struct{ next http.RoundTripper }

func (t plainOnlyLocal) RoundTrip(r *http.Request) (*http.Response, error) {
	if r.URL.Scheme != "https" && !isLoopback(r.URL.Hostname()) {
		return nil, fault.New(fault.Unavailable, "%s speaks no https; plain http is only used on this machine's own addresses", r.URL.Host)
	}
	return t.next.RoundTrip(r)
}

func isLoopback(host string) bool {
	if host == "localhost" {
		return true
	}
	ip := net.ParseIP(host)
	return ip != nil && ip.IsLoopback()
}

func authenticator(c portlayer.Credentials) authn.Authenticator {
	if c == (portlayer.Credentials{}) {
		return authn.Anonymous
	}
	return authn.FromConfig(authn.AuthConfig{Username: c.Username, Password: c.Password, IdentityToken: c.IdentityToken, RegistryToken: c.RegistryToken})
}

func (s *Service) remoteOptions(c portlayer.Credentials) []remote.Option {
	return []remote.Option{
		remote.WithTransport(plainOnlyLocal{s.transport}), remote.WithAuth(authenticator(c)), remote.WithUserAgent("vch"),
		remote.WithRetryBackoff(remote.Backoff{Duration: 200 * time.Millisecond, Factor: 3, Jitter: 0.1, Steps: 3}),
	}
}

func (s *Service) puller(c portlayer.Credentials) (*remote.Puller, error) {
	return remote.NewPuller(s.remoteOptions(c)...)
}

// remoteName turns a reference into go-containerregistry's form, part by part: parsed as a whole, localhost/x would be Docker Hub's.
func remoteName(ref reference.Named) (name.Reference, error) {
	reg, err := registryAt(reference.Domain(ref))
	if err != nil {
		return nil, err
	}
	repo := reg.Repo(reference.Path(ref))
	switch r := ref.(type) {
	case reference.Digested:
		return repo.Digest(r.Digest().String()), nil
	case reference.Tagged:
		return repo.Tag(r.Tag()), nil
	}
	return nil, fault.New(fault.Invalid, "invalid reference format: %q has neither tag nor digest", ref)
}

// registryAt is the registry at host[:port], where plain HTTP is tried if it is this machine.
func registryAt(host string) (name.Registry, error) {
	var options []name.Option
	if u := (&url.URL{Host: host}); isLoopback(u.Hostname()) {
		options = append(options, name.Insecure)
	}
	reg, err := name.NewRegistry(host, options...)
	if err != nil {
		return reg, fault.New(fault.Invalid, "invalid registry address %q: %w", host, err)
	}
	return reg, nil
}

// refused gives a registry's error its kind, in Docker's words. what is the reference as the user knows it.
func refused(ctx context.Context, ref reference.Named, err error) error {
	if err == nil {
		return nil
	}
	if ctx.Err() != nil {
		return ctx.Err()
	}
	if f := (*fault.Error)(nil); errors.As(err, &f) {
		return err
	}
	what, repo := reference.FamiliarString(ref), reference.FamiliarName(ref)
	var te *transport.Error
	if !errors.As(err, &te) {
		if ue := (*url.Error)(nil); errors.As(err, &ue) {
			return fault.New(fault.Unavailable, "cannot reach the registry %s: %w", reference.Domain(ref), err)
		}
		return fault.New(fault.Unavailable, "the registry %s sent for %s what cannot be used; it was refused: %w", reference.Domain(ref), what, err) // such as a manifest with another digest
	}
	code := transport.ErrorCode("")
	if len(te.Errors) > 0 {
		code = te.Errors[0].Code
	}
	const denied = "pull access denied for %s, repository does not exist or may require 'docker login': %w"
	switch {
	case code == transport.UnauthorizedErrorCode, code == transport.DeniedErrorCode, te.StatusCode == http.StatusUnauthorized, te.StatusCode == http.StatusForbidden:
		return fault.New(fault.Denied, denied, repo, err)
	case code == transport.NameUnknownErrorCode:
		return fault.New(fault.NotFound, denied, repo, err)
	case code == transport.ManifestUnknownErrorCode, te.StatusCode == http.StatusNotFound:
		return fault.New(fault.NotFound, "manifest for %s not found: manifest unknown: %w", what, err)
	}
	return fault.New(fault.Unavailable, "the registry %s cannot serve %s: %w", reference.Domain(ref), what, err)
}

// Login implements portlayer.Images.
func (s *Service) Login(ctx context.Context, registry string, cred portlayer.Credentials) (string, error) {
	host := strings.TrimSuffix(strings.TrimPrefix(strings.TrimPrefix(registry, "https://"), "http://"), "/")
	host, _, _ = strings.Cut(host, "/") // https://index.docker.io/v1/ is what the CLI calls Docker Hub
	if host == "" || host == "docker.io" {
		host = name.DefaultRegistry
	}
	reg, err := registryAt(host)
	if err != nil {
		return "", err
	}
	if err := s.login(ctx, reg, cred); err != nil {
		if ctx.Err() != nil {
			return "", ctx.Err()
		}
		var te *transport.Error
		switch {
		case errors.As(err, &te) && (te.StatusCode == http.StatusUnauthorized || te.StatusCode == http.StatusForbidden || te.StatusCode == http.StatusBadRequest):
			return "", fault.New(fault.Denied, "login attempt to %s failed: unauthorized: incorrect username or password: %w", host, err)
		case fault.KindOf(err) != fault.Internal:
			return "", err
		}
		return "", fault.New(fault.Unavailable, "cannot log in to %s: the registry cannot be reached: %w", host, err)
	}
	return "Login Succeeded", nil
}

// login asks for /v2/ with the credentials, in the way that the registry's challenge asks for.
func (s *Service) login(ctx context.Context, reg name.Registry, cred portlayer.Credentials) error {
	base := plainOnlyLocal{s.transport}
	ping, err := transport.Ping(ctx, reg, base)
	if err != nil {
		return err
	}
	rt, err := transport.NewWithContext(ctx, reg, authenticator(cred), base, nil)
	if err != nil {
		return err
	}
	scheme := "https"
	if ping.Insecure {
		scheme = "http"
	}
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, scheme+"://"+reg.RegistryStr()+"/v2/", nil)
	if err != nil {
		return err
	}
	resp, err := rt.RoundTrip(req)
	if err != nil {
		return err
	}
	defer resp.Body.Close()
	return transport.CheckError(resp, http.StatusOK)
}
