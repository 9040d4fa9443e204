package vsphere

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"time"

	"github.com/vmware/govmomi/vim25"

	"vch/internal/fault"
	"vch/internal/pause"
)

// statusError is an answer of HTTP that is no success.
type statusError int

func (e statusError) Error() string {
	return fmt.Sprintf("HTTP status %d (%s)", int(e), http.StatusText(int(e)))
}

// flow ends a request when nothing of it has moved for a while: files may be long. What whoever gives or takes the bytes takes his time for does not count.
type flow struct {
	limit time.Duration
	timer *time.Timer
	ctx   context.Context // the request's
	end   context.CancelCauseFunc
}

func newFlow(ctx context.Context, limit time.Duration) *flow {
	f := &flow{limit: limit}
	f.ctx, f.end = context.WithCancelCause(ctx)
	f.timer = time.AfterFunc(limit, func() { f.end(silent(limit)) })
	return f
}

func (f *flow) close() {
	f.timer.Stop()
	f.end(nil)
}

// said is err, or that nothing moved if that is its reason.
func (f *flow) said(err error) error {
	if why, is := context.Cause(f.ctx).(silent); is && err != nil {
		return why
	}
	return err
}

// carry has the flow see what a request sends.
func (f *flow) carry(req *http.Request) {
	if req.Body == http.NoBody {
		return
	}
	req.Body = sent{req.Body, f}
	if again := req.GetBody; again != nil {
		req.GetBody = func() (io.ReadCloser, error) {
			body, err := again()
			return sent{body, f}, err
		}
	}
}

// sent is what goes to the server: while it is not asked for more, nothing moves.
type sent struct {
	io.ReadCloser
	f *flow
}

func (s sent) Read(p []byte) (int, error) {
	s.f.timer.Stop()
	defer s.f.timer.Reset(s.f.limit)
	return s.ReadCloser.Read(p)
}

// got is what comes from the server: while nobody wants more, nothing need move.
type got struct {
	io.ReadCloser
	f      *flow
	closed bool
	kept   bool // the flow ends with it
}

func (g *got) Read(p []byte) (int, error) {
	g.f.timer.Reset(g.f.limit)
	defer g.f.timer.Stop()
	n, err := g.ReadCloser.Read(p)
	if err == io.EOF {
		return n, err
	}
	return n, g.f.said(err)
}

func (g *got) Close() error {
	g.closed = true
	if g.kept {
		defer g.f.close()
	}
	return g.ReadCloser.Close()
}

// file does one request for a file of a datastore. take has the answer; who keeps its body closes it.
func (d *Disks) file(ctx context.Context, method string, p datastorePath, body func() (io.Reader, error), size int64, take func(*http.Response) error) error {
	if err := d.reach(p.store); err != nil {
		return err
	}
	for n := 1; ; n++ {
		flow := newFlow(ctx, d.s.limit)
		answer := &got{f: flow}
		err := d.s.do(flow.ctx, func(ctx context.Context, c *vim25.Client) error {
			flow.timer.Reset(flow.limit)
			u := c.URL()
			u.Path = "/folder/" + p.path
			u.RawQuery = url.Values{"dcPath": {d.dcPath}, "dsName": {p.store}}.Encode()
			var r io.Reader
			if body != nil {
				var err error
				if r, err = body(); err != nil {
					return err
				}
			}
			req, err := http.NewRequestWithContext(ctx, method, u.String(), r)
			if err != nil {
				return err
			}
			if body != nil {
				req.ContentLength = size
				req.Header.Set("Content-Type", "application/octet-stream")
				flow.carry(req)
			}
			res, err := c.Client.Client.Do(req)
			if err != nil {
				return err
			}
			flow.timer.Stop()
			answer.ReadCloser, res.Body = res.Body, answer
			if res.StatusCode/100 != 2 {
				_, _ = io.CopyN(io.Discard, res.Body, smallFile)
				res.Body.Close()
				if res.StatusCode == http.StatusUnauthorized {
					flow.timer.Reset(flow.limit) // for the login
					return notAuthenticated()
				}
				return statusError(res.StatusCode)
			}
			answer.closed = false
			return take(res)
		})
		err = flow.said(err)
		if answer.kept = err == nil && !answer.closed; !answer.kept {
			flow.close()
		}
		var status statusError
		switch {
		case err == nil:
			return nil
		case errors.As(err, &status):
			return d.refused(p, method, status)
		case !unreached(err) || n == callTries || body != nil && n > 1:
			return translated(d.s.server.address(), err)
		}
		if err := pause.For(ctx, time.Duration(n)*backoff); err != nil {
			return err
		}
	}
}

// refused is the error of a status.
func (d *Disks) refused(p datastorePath, method string, status statusError) error {
	kind := fault.Internal
	switch status {
	case http.StatusNotFound:
		d.doubt(p)
		return fault.New(fault.NotFound, "%s is missing", p)
	case http.StatusForbidden:
		kind = fault.Denied
	case http.StatusInsufficientStorage:
		kind = fault.Unavailable
	case http.StatusInternalServerError, http.StatusServiceUnavailable, http.StatusBadGateway, http.StatusGatewayTimeout:
		kind = fault.Unavailable
		if err := d.reach(p.store); err != nil {
			return err
		}
	}
	return fault.New(kind, "%s of %s: %s answers %w", method, p, d.s.server.address(), status)
}

// put writes a file anew.
func (d *Disks) put(ctx context.Context, p datastorePath, body func() (io.Reader, error), size int64) error {
	return d.file(ctx, http.MethodPut, p, body, size, func(res *http.Response) error {
		_, err := io.Copy(io.Discard, res.Body)
		return errors.Join(err, res.Body.Close())
	})
}

// putBytes writes a small file anew, which is not whole until it returns.
func (d *Disks) putBytes(ctx context.Context, p datastorePath, data []byte) error {
	return d.put(ctx, p, func() (io.Reader, error) { return bytes.NewReader(data), nil }, int64(len(data)))
}

// getBytes reads a small file.
func (d *Disks) getBytes(ctx context.Context, p datastorePath) (data []byte, err error) {
	err = d.file(ctx, http.MethodGet, p, nil, 0, func(res *http.Response) error {
		defer res.Body.Close()
		data, err = io.ReadAll(io.LimitReader(res.Body, smallFile+1))
		if len(data) > smallFile {
			return fault.New(fault.Conflict, "%s has more than %d bytes: it is not what it should be", p, smallFile)
		}
		return err
	})
	return data, err
}

// length is a file's, by HTTP.
func (d *Disks) length(ctx context.Context, p datastorePath) (n int64, err error) {
	err = d.file(ctx, http.MethodHead, p, nil, 0, func(res *http.Response) error {
		n = res.ContentLength
		return res.Body.Close()
	})
	return n, err
}
