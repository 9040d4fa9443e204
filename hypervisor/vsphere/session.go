package vsphere

import (
	"cmp"
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"log/slog"
	"net/url"
	"strings"
	"sync"
	"time"

	"github.com/vmware/govmomi/property"
	vimsession "github.com/vmware/govmomi/session"
	"github.com/vmware/govmomi/vim25"
	"github.com/vmware/govmomi/vim25/methods"
	"github.com/vmware/govmomi/vim25/mo"
	"github.com/vmware/govmomi/vim25/soap"
	"github.com/vmware/govmomi/vim25/types"

	"vch/internal/fault"
	"vch/internal/pause"
)

// Server is a vCenter, or an ESX host, and who logs in there.
type Server struct {
	URL        string // https://HOST[:PORT][/sdk]; the scheme may be left out
	User       string
	Password   string
	Thumbprint string // of its certificate, SHA-256 or SHA-1, hex with colons; "": a certificate authority of this host has to know it
}

// address is the server's as the user knows it.
func (s Server) address() string {
	if u, err := s.parsed(); err == nil {
		return u.Host
	}
	return s.URL
}

func (s Server) parsed() (*url.URL, error) {
	u, err := soap.ParseURL(s.URL)
	if err != nil || u == nil || u.Host == "" {
		return nil, fault.New(fault.Invalid, "target %q is not an address of vSphere: https://HOST", s.URL)
	}
	u.User = nil
	return u, nil
}

// session is who is logged in. An operation that finds that it is not any more logs in again, and is done once more: sessions end by idleness, by an administrator, or with the server.
type session struct {
	server Server
	log    *slog.Logger

	limit time.Duration // callLimit, except in tests
	login chan struct{} // has room for the one who logs in: others wait no longer than they want to

	mu     sync.Mutex // guards below
	client *vim25.Client
	epoch  int // counts logins
	in     bool
}

// agent is what the server's list of sessions shows.
const agent = "vch"

// maxIdle is how many connections stay open that nobody uses. Of the two that net/http keeps by itself, a daemon with more to do makes a new one for almost every call, of several round trips.
const maxIdle = 32

// callTries is how often a call that only reads is made when no answer comes.
const callTries = 3

// newSession is of nobody who is logged in yet. A limit of 0 is callLimit.
func newSession(s Server, limit time.Duration, log *slog.Logger) *session {
	return &session{server: s, log: log, limit: cmp.Or(limit, callLimit), login: make(chan struct{}, 1)}
}

// ready gives the client of a session, logging in where there is none. epoch names the session.
func (s *session) ready(ctx context.Context) (client *vim25.Client, epoch int, err error) {
	if client, epoch, ok := s.now(); ok {
		return client, epoch, nil
	}
	select {
	case s.login <- struct{}{}:
		defer func() { <-s.login }()
	case <-ctx.Done():
		return nil, 0, ctx.Err()
	}
	err = within(ctx, s.limit, func(ctx context.Context) error {
		client, epoch, err = s.enter(ctx)
		return err
	})
	return client, epoch, err
}

// enter logs in. The caller has the place in login.
func (s *session) enter(ctx context.Context) (client *vim25.Client, epoch int, err error) {
	if client, epoch, ok := s.now(); ok {
		return client, epoch, nil
	}
	s.mu.Lock()
	client = s.client
	s.mu.Unlock()
	if client == nil {
		if client, err = s.dial(ctx); err != nil {
			return nil, 0, err
		}
	}
	if err := vimsession.NewManager(client).Login(ctx, url.UserPassword(s.server.User, s.server.Password)); err != nil {
		err = translated(s.server.address(), err)
		if fault.Is(err, fault.Denied) {
			err = fault.New(fault.Denied, "%s does not let user %s in: %w; check the user and the password", s.server.address(), s.server.User, err)
		}
		return nil, 0, err
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	s.client, s.in = client, true
	s.epoch++
	if s.epoch > 1 {
		s.log.Info("logged in to vSphere again", "server", s.server.address())
	}
	return client, s.epoch, nil
}

func (s *session) now() (*vim25.Client, int, bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.client, s.epoch, s.in
}

// dial finds the server and checks its certificate.
func (s *session) dial(ctx context.Context) (*vim25.Client, error) {
	u, err := s.server.parsed()
	if err != nil {
		return nil, err
	}
	sc := soap.NewClient(u, s.server.Thumbprint != "")
	sc.UserAgent = agent
	sc.DefaultTransport().MaxIdleConnsPerHost = maxIdle
	sc.DefaultTransport().DialTLSContext = nil // govmomi's heeds neither ctx nor a time limit; net/http's own checks certificates as TLSClientConfig says, too
	sc.DefaultTransport().TLSHandshakeTimeout = min(s.limit, sc.DefaultTransport().TLSHandshakeTimeout)
	if s.server.Thumbprint != "" {
		sc.DefaultTransport().TLSClientConfig.VerifyConnection = func(c tls.ConnectionState) error { return hasThumbprint(c.PeerCertificates[0], s.server.Thumbprint) }
	}
	client, err := vim25.NewClient(ctx, sc)
	switch {
	case err == nil:
		client.RoundTripper = limiter{sc, s.limit}
		return client, nil
	case soap.IsCertificateUntrusted(err):
		return nil, fault.New(fault.Denied, "no certificate authority of this host knows the certificate of %s; compare its thumbprint (vch thumbprint %s), and give it with --thumbprint: %w", u.Host, u.Host, plain(err))
	}
	var other *otherCertificate
	if errors.As(err, &other) {
		return nil, fault.New(fault.Denied, "the certificate of %s is not the one that was given by --thumbprint: it has %w", u.Host, other)
	}
	return nil, translated(u.Host, err)
}

// otherCertificate is a certificate that has another thumbprint.
type otherCertificate struct{ has string }

func (o *otherCertificate) Error() string { return o.has }

// hasThumbprint compares a certificate's thumbprint, SHA-256 or SHA-1, in any spelling.
func hasThumbprint(cert *x509.Certificate, want string) error {
	plain := func(t string) string { return strings.ToUpper(strings.ReplaceAll(t, ":", "")) }
	for _, has := range []string{soap.ThumbprintSHA256(cert), soap.ThumbprintSHA1(cert)} {
		if plain(has) == plain(want) {
			return nil
		}
	}
	return &otherCertificate{soap.ThumbprintSHA256(cert)}
}

// expired notes that the session of that epoch has ended.
func (s *session) expired(epoch int) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.epoch == epoch {
		s.in = false
	}
}

// do does op, again after a new login where the session has ended. What op does must be able to be done twice: with a session that has ended the server does nothing.
func (s *session) do(ctx context.Context, op func(ctx context.Context, c *vim25.Client) error) error {
	for n := 1; ; n++ {
		c, epoch, err := s.ready(ctx)
		if err != nil {
			return err
		}
		err = op(ctx, c)
		if err == nil || !loggedOut(err) || n == callTries {
			if cerr := ctx.Err(); err != nil && cerr != nil {
				return cerr
			}
			return err
		}
		s.expired(epoch)
	}
}

// callLimit is how long an answer to a call may take that does its work at once, or begins a task.
const callLimit = time.Minute

// silent is that no answer came in time. It is a net.Error.
type silent time.Duration

func (s silent) Error() string { return fmt.Sprintf("no answer came in %v", time.Duration(s)) }
func (silent) Timeout() bool   { return true }
func (silent) Temporary() bool { return true }

// within does op for no longer than d: then its error is silent.
func within(ctx context.Context, d time.Duration, op func(ctx context.Context) error) error {
	limited, cancel := context.WithTimeout(ctx, d)
	defer cancel()
	err := op(limited)
	if err != nil && limited.Err() != nil && ctx.Err() == nil {
		return silent(d)
	}
	return err
}

// limiter bounds every call of SOAP, whoever makes it: a server may take calls and answer none.
type limiter struct {
	soap.RoundTripper
	limit time.Duration
}

func (l limiter) RoundTrip(ctx context.Context, req, res soap.HasFault) error {
	d := l.limit
	if body, is := req.(*methods.WaitForUpdatesExBody); is && body.Req != nil && body.Req.Options != nil && body.Req.Options.MaxWaitSeconds != nil {
		d += time.Duration(*body.Req.Options.MaxWaitSeconds) * time.Second
	}
	return within(ctx, d, func(ctx context.Context) error { return l.RoundTripper.RoundTrip(ctx, req, res) })
}

// call is do for one call, which is answered soon or not at all.
func (s *session) call(ctx context.Context, op func(ctx context.Context, c *vim25.Client) error) error {
	return within(ctx, s.limit, func(ctx context.Context) error { return s.do(ctx, op) })
}

// read is call for what changes nothing: it is made again when no answer comes. Its error has a kind.
func (s *session) read(ctx context.Context, op func(ctx context.Context, c *vim25.Client) error) error {
	for n := 1; ; n++ {
		err := s.call(ctx, op)
		if err == nil || n == callTries || !unreached(err) {
			return translated(s.server.address(), err)
		}
		if err := pause.For(ctx, time.Duration(n)*backoff); err != nil {
			return err
		}
	}
}

// backoff is how long a call waits before it is made again the first time.
const backoff = 200 * time.Millisecond

// close logs out.
func (s *session) close(ctx context.Context) {
	if c, _, in := s.now(); in {
		_ = vimsession.NewManager(c).Logout(ctx) // the server forgets it by itself, too
		c.CloseIdleConnections()
	}
}

// properties reads properties of one object into dst, a struct of package mo.
func (s *session) properties(ctx context.Context, obj types.ManagedObjectReference, names []string, dst any) error {
	return s.read(ctx, func(ctx context.Context, c *vim25.Client) error {
		res, err := methods.RetrieveProperties(ctx, c, &types.RetrieveProperties{
			This: property.DefaultCollector(c).Reference(),
			SpecSet: []types.PropertyFilterSpec{{
				PropSet:   []types.PropertySpec{{Type: obj.Type, PathSet: names}},
				ObjectSet: []types.ObjectSpec{{Obj: obj}},
			}},
		})
		if err != nil {
			return err
		}
		if len(res.Returnval) == 0 {
			return soap.WrapVimFault(&types.ManagedObjectNotFound{Obj: obj})
		}
		for _, missing := range res.Returnval[0].MissingSet { // a session that has ended shows here, too
			return soap.WrapVimFault(missing.Fault.Fault)
		}
		if err := mo.LoadObjectContent(res.Returnval, dst); err != nil {
			return fmt.Errorf("properties of %s: %w", obj.Value, err)
		}
		return nil
	})
}
