package image

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/netip"
	"net/url"
	"slices"
	"strconv"
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

// Mirror is a registry that has Docker Hub's images, too: HOST[:PORT], reached by https or http.
type Mirror struct {
	Scheme, Host string
}

// ParseMirror reads http[s]://HOST[:PORT], as dockerd's --registry-mirror.
func ParseMirror(text string) (Mirror, error) {
	u, err := url.Parse(text)
	switch {
	case err != nil, u.Scheme != "https" && u.Scheme != "http", u.Host == "":
		return Mirror{}, fault.New(fault.Invalid, "invalid mirror: %q is not https://HOST[:PORT] or http://HOST[:PORT]", text)
	case strings.Trim(u.Path, "/") != "" || u.RawQuery != "" || u.Fragment != "":
		return Mirror{}, fault.New(fault.Invalid, "invalid mirror: path, query, or fragment at end of the URI %q", text)
	case u.User != nil:
		return Mirror{}, fault.New(fault.Invalid, "invalid mirror: username/password not allowed in URI %q", u.Redacted())
	}
	return Mirror{u.Scheme, u.Host}, nil
}

// Insecure are registries: by HOST[:PORT], or by the networks that their addresses are in.
type Insecure struct {
	Hosts    []string
	Networks []netip.Prefix
}

// ParseInsecure reads HOST[:PORT] and CIDR texts, as dockerd's --insecure-registry.
func ParseInsecure(texts []string) (Insecure, error) {
	var all Insecure
	for _, text := range texts {
		if p, err := netip.ParsePrefix(text); err == nil {
			all.Networks = append(all.Networks, p.Masked())
			continue
		}
		if u, err := url.Parse("//" + text); err != nil || u.Host != text || text == "" {
			return all, fault.New(fault.Invalid, "insecure registry %q is neither HOST[:PORT] nor a network such as 10.0.0.0/8", text)
		}
		all.Hosts = append(all.Hosts, text)
	}
	return all, nil
}

// has says whether the registry at host[:port] is one of them.
func (i Insecure) has(ctx context.Context, host string) bool {
	u := url.URL{Host: host}
	if slices.Contains(i.Hosts, host) || slices.Contains(i.Hosts, u.Hostname()) {
		return true
	}
	if len(i.Networks) == 0 {
		return false
	}
	addresses, err := net.DefaultResolver.LookupNetIP(ctx, "ip", u.Hostname()) // an address is its own
	return err == nil && slices.ContainsFunc(addresses, func(a netip.Addr) bool {
		return slices.ContainsFunc(i.Networks, func(n netip.Prefix) bool { return n.Contains(a.Unmap()) })
	})
}

// guarded refuses plain HTTP to anything but this machine, the insecure registries and plain mirrors, as dockerd does: go-containerregistry would also use it, password and all,
// for every private address.
type guarded struct {
	s    *Service
	next http.RoundTripper // nil: the service's own
}

func (t guarded) RoundTrip(r *http.Request) (*http.Response, error) {
	insecure := t.s.insecure.has(r.Context(), r.URL.Host)
	if r.URL.Scheme != "https" && !insecure && !isLoopback(r.URL.Hostname()) && !slices.Contains(t.s.mirrors, Mirror{"http", r.URL.Host}) {
		return nil, fault.New(fault.Unavailable, "%s speaks no https; plain http is only used on this machine's own addresses, and for what --insecure-registry names", r.URL.Host)
	}
	next := t.next
	switch {
	case next != nil:
	case insecure:
		next = t.s.trusting
	default:
		next = t.s.transport
	}
	return next.RoundTrip(r)
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
		remote.WithTransport(guarded{s: s}), remote.WithAuth(authenticator(c)), remote.WithUserAgent("vch"),
		remote.WithRetryBackoff(remote.Backoff{Duration: 200 * time.Millisecond, Factor: 3, Jitter: 0.1, Steps: 3}),
	}
}

func (s *Service) puller(c portlayer.Credentials) (*remote.Puller, error) {
	return remote.NewPuller(s.remoteOptions(c)...)
}

// remoteName turns a reference into go-containerregistry's form, part by part: parsed as a whole, localhost/x would be Docker Hub's.
func (s *Service) remoteName(ctx context.Context, ref reference.Named) (name.Reference, error) {
	reg, err := s.registryAt(ctx, reference.Domain(ref))
	if err != nil {
		return nil, err
	}
	return nameAt(ref, reg)
}

// nameAt is ref's name in a registry.
func nameAt(ref reference.Named, reg name.Registry) (name.Reference, error) {
	repo := reg.Repo(reference.Path(ref))
	switch r := ref.(type) {
	case reference.Digested:
		return repo.Digest(r.Digest().String()), nil
	case reference.Tagged:
		return repo.Tag(r.Tag()), nil
	}
	return nil, fault.New(fault.Invalid, "invalid reference format: %q has neither tag nor digest", ref)
}

// registryAt is the registry at host[:port], where plain HTTP is tried if it is this machine, or insecure.
func (s *Service) registryAt(ctx context.Context, host string) (name.Registry, error) {
	var options []name.Option
	if u := (&url.URL{Host: host}); isLoopback(u.Hostname()) || s.insecure.has(ctx, host) || slices.Contains(s.mirrors, Mirror{"http", host}) {
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
	reg, err := s.registryAt(ctx, host)
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
	base := guarded{s: s}
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

// from gives a blob of size bytes of a repository from an offset on. A registry that does not know ranges is read to there.
func (s *Service) from(repo name.Repository, digest string, size int64, cred portlayer.Credentials) func(ctx context.Context, offset int64) (io.ReadCloser, error) {
	return func(ctx context.Context, offset int64) (io.ReadCloser, error) {
		base := guarded{s: s}
		rt, err := transport.NewWithContext(ctx, repo.Registry, authenticator(cred), base, []string{repo.Scope(transport.PullScope)})
		if err != nil {
			return nil, err
		}
		ping, err := transport.Ping(ctx, repo.Registry, base)
		if err != nil {
			return nil, err
		}
		scheme := "https"
		if ping.Insecure {
			scheme = "http"
		}
		u := url.URL{Scheme: scheme, Host: repo.RegistryStr(), Path: "/v2/" + repo.RepositoryStr() + "/blobs/" + digest}
		req, err := http.NewRequestWithContext(ctx, http.MethodGet, u.String(), nil)
		if err != nil {
			return nil, err
		}
		req.Header.Set("Range", fmt.Sprintf("bytes=%d-%d", offset, size-1)) // some registries take no open end
		resp, err := (&http.Client{Transport: rt}).Do(req)
		if err != nil {
			return nil, err
		}
		if err := transport.CheckError(resp, http.StatusOK, http.StatusPartialContent); err != nil {
			return nil, errors.Join(err, resp.Body.Close())
		}
		if resp.StatusCode == http.StatusOK {
			if _, err := io.CopyN(io.Discard, resp.Body, offset); err != nil {
				return nil, errors.Join(err, resp.Body.Close())
			}
		} else if at := resp.Header.Get("Content-Range"); !strings.HasPrefix(at, "bytes "+strconv.FormatInt(offset, 10)+"-") {
			return nil, errors.Join(fault.New(fault.Unavailable, "the registry %s answered a request for bytes from %d on with %q", repo.RegistryStr(), offset, at), resp.Body.Close())
		}
		return resp.Body, nil
	}
}
