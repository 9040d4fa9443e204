package vsphere

import (
	"bytes"
	"context"
	"crypto/rand"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"maps"
	"net/http"
	"net/url"
	"path"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/vmware/govmomi/vim25"
	"github.com/vmware/govmomi/vim25/methods"
	"github.com/vmware/govmomi/vim25/mo"
	"github.com/vmware/govmomi/vim25/types"

	"vch/internal/fault"
	"vch/internal/pause"
	"vch/portlayer"
)

// unfinishedPrefix begins the names of what is being made, and tombPrefix those of what is being removed. List shows neither.
const (
	unfinishedPrefix = ".vch-new-"
	tombPrefix       = ".vch-removed-"
)

// smallFile bounds descriptors and metadata, in bytes: a damaged one is not read into memory whole.
const smallFile = 1 << 20

// Disks implements portlayer.Disks on the datastores of a datacenter: small files and whole disks by HTTP (vSphere Web Services Programming Guide, "Datastore access"), all else by
// tasks of its FileManager and VirtualDiskManager.
type Disks struct {
	s          *session
	w          *watcher
	datacenter types.ManagedObjectReference
	dcPath     string // of the datacenter in the inventory, for HTTP
	golden     *golden

	owner string // begins the names of what this VCH makes: unfinishedPrefix, and who it is
	maker string // begins those of what this process makes

	closing context.Context // ends when removals that go on are to stop
	work    *sync.WaitGroup // removals that go on

	mu       sync.Mutex // guards below
	browsers map[string]types.ManagedObjectReference
	sweeps   map[datastorePath]time.Time // when a directory is to be looked through again for what others have left
	proven   map[datastorePath]time.Time // when a directory was last seen to be there and to take files
	doubted  map[datastorePath]bool      // those of them that may be gone: something was missing in them
	made     map[datastorePath]time.Time // when this process has made a directory with a disk, lately
}

// newDisks are the disks that a VCH sees, whose work in the background is counted in work and stops when closing ends. It has no golden disks yet.
func newDisks(closing context.Context, work *sync.WaitGroup, w *watcher, datacenter types.ManagedObjectReference, dcPath, vch string) *Disks {
	d := &Disks{s: w.s, w: w, datacenter: datacenter, dcPath: dcPath, closing: closing, work: work,
		browsers: map[string]types.ManagedObjectReference{}, sweeps: map[datastorePath]time.Time{}, proven: map[datastorePath]time.Time{}, doubted: map[datastorePath]bool{}, made: map[datastorePath]time.Time{}}
	d.owner, d.maker = makers(vch)
	return d
}

// provenFor is how long a directory is believed to be there without being asked for. What is done in one that is gone says so.
const provenFor = time.Minute

// change runs a task that ends with what was wanted, however often it is done: done says so of the error of one that was started again because no answer came to the first.
func (d *Disks) change(ctx context.Context, start func(ctx context.Context, c *vim25.Client) (types.ManagedObjectReference, error), done func(error) bool) error {
	lost := false
	for n := 1; ; n++ {
		_, err := d.w.unhurried(ctx, start)
		switch {
		case err == nil, lost && done != nil && done(err):
			return nil
		case !unreached(err), n == callTries:
			return translated(d.s.server.address(), err)
		}
		lost = true
		if err := pause.For(ctx, time.Duration(n)*backoff); err != nil {
			return err
		}
	}
}

func isMissing(err error) bool { return isA(err, new(types.FileNotFound)) }

// makeDir makes a directory with its parents; existing: nothing happens.
func (d *Disks) makeDir(ctx context.Context, p datastorePath) error {
	if p.path == "" {
		return nil
	}
	return d.s.read(ctx, func(ctx context.Context, c *vim25.Client) error {
		_, err := methods.MakeDirectory(ctx, c, &types.MakeDirectory{This: *c.ServiceContent.FileManager, Name: p.String(), Datacenter: &d.datacenter, CreateParentDirectories: types.NewBool(true)})
		if isA(err, new(types.FileAlreadyExists)) {
			return nil
		}
		return err
	})
}

// remove removes a file, or a directory with all that is in it; missing: nothing happens.
func (d *Disks) remove(ctx context.Context, p datastorePath) error {
	return d.away(ctx, func(ctx context.Context, c *vim25.Client) (types.ManagedObjectReference, error) {
		res, err := methods.DeleteDatastoreFile_Task(ctx, c, &types.DeleteDatastoreFile_Task{This: *c.ServiceContent.FileManager, Name: p.String(), Datacenter: &d.datacenter})
		if err != nil {
			return types.ManagedObjectReference{}, err
		}
		return res.Returnval, nil
	})
}

// away is change for a task that removes something; missing: nothing happens.
func (d *Disks) away(ctx context.Context, start func(ctx context.Context, c *vim25.Client) (types.ManagedObjectReference, error)) error {
	err := d.change(ctx, start, isMissing)
	if fault.Is(err, fault.NotFound) {
		return nil
	}
	return err
}

// move gives a file or a directory another path on the same datastore. Conflict if something is at to, unless force; NotFound if from is missing.
func (d *Disks) move(ctx context.Context, from, to datastorePath, force bool) error {
	return d.change(ctx, func(ctx context.Context, c *vim25.Client) (types.ManagedObjectReference, error) {
		res, err := methods.MoveDatastoreFile_Task(ctx, c, &types.MoveDatastoreFile_Task{This: *c.ServiceContent.FileManager, SourceName: from.String(), SourceDatacenter: &d.datacenter,
			DestinationName: to.String(), DestinationDatacenter: &d.datacenter, Force: &force})
		if err != nil {
			return types.ManagedObjectReference{}, err
		}
		return res.Returnval, nil
	}, func(err error) bool {
		// Nobody else moves what has a name that nobody knows, and of what has another the caller has the turn: it is where it should be.
		return isMissing(err) || isA(err, new(types.FileAlreadyExists)) && d.missing(ctx, from)
	})
}

// missing says whether something is not there.
func (d *Disks) missing(ctx context.Context, p datastorePath) bool {
	found, err := d.search(ctx, p.dir(), p.base())
	return err == nil && len(found) == 0 || fault.Is(err, fault.NotFound)
}

// browser gives the one that lists a datastore's files.
func (d *Disks) browser(ctx context.Context, store string) (types.ManagedObjectReference, error) {
	d.mu.Lock()
	b, known := d.browsers[store]
	d.mu.Unlock()
	if known {
		return b, nil
	}
	ref, _, err := d.w.store(store)
	if err != nil {
		return b, err
	}
	var ds mo.Datastore
	if err := d.s.properties(ctx, ref, []string{"browser"}, &ds); err != nil {
		return b, err
	}
	d.mu.Lock()
	defer d.mu.Unlock()
	d.browsers[store] = ds.Browser
	return ds.Browser, nil
}

// searchSpec asks for files with all that Stat and Look want of them.
func searchSpec(patterns ...string) *types.HostDatastoreBrowserSearchSpec {
	return &types.HostDatastoreBrowserSearchSpec{
		MatchPattern: patterns,
		Details:      &types.FileQueryFlags{FileType: true, FileSize: true, Modification: true},
	}
}

// sizeSpec asks for disks with their capacity, and for nothing else: what a query does not name is not found (HostDatastoreBrowserSearchSpec).
func sizeSpec() *types.HostDatastoreBrowserSearchSpec {
	return &types.HostDatastoreBrowserSearchSpec{
		Query:   []types.BaseFileQuery{&types.VmDiskFileQuery{Details: &types.VmDiskFileQueryFlags{CapacityKb: true}}},
		Details: &types.FileQueryFlags{FileType: true},
	}
}

// search gives the files of a directory whose names fit one of patterns. NotFound if the directory is missing.
func (d *Disks) search(ctx context.Context, dir datastorePath, patterns ...string) ([]types.BaseFileInfo, error) {
	all, err := d.searchAll(ctx, dir, false, searchSpec(patterns...))
	if err != nil || len(all) == 0 {
		return nil, err
	}
	return all[0].File, nil
}

// searchAll is search in a directory, or also in all below it.
func (d *Disks) searchAll(ctx context.Context, dir datastorePath, below bool, spec *types.HostDatastoreBrowserSearchSpec) ([]types.HostDatastoreBrowserSearchResults, error) {
	if err := d.reach(dir.store); err != nil {
		return nil, err
	}
	b, err := d.browser(ctx, dir.store)
	if err != nil {
		return nil, err
	}
	for n := 1; ; n++ {
		info, err := d.w.task(ctx, func(ctx context.Context, c *vim25.Client) (types.ManagedObjectReference, error) {
			if below {
				res, err := methods.SearchDatastoreSubFolders_Task(ctx, c, &types.SearchDatastoreSubFolders_Task{This: b, DatastorePath: dir.String(), SearchSpec: spec})
				if err != nil {
					return types.ManagedObjectReference{}, err
				}
				return res.Returnval, nil
			}
			res, err := methods.SearchDatastore_Task(ctx, c, &types.SearchDatastore_Task{This: b, DatastorePath: dir.String(), SearchSpec: spec})
			if err != nil {
				return types.ManagedObjectReference{}, err
			}
			return res.Returnval, nil
		}, nil)
		if err == nil {
			switch found := info.Result.(type) {
			case types.HostDatastoreBrowserSearchResults:
				return []types.HostDatastoreBrowserSearchResults{found}, nil
			case types.ArrayOfHostDatastoreBrowserSearchResults:
				return found.HostDatastoreBrowserSearchResults, nil
			}
			return nil, nil
		}
		if !unreached(err) || n == callTries {
			err = translated(d.s.server.address(), err)
			if fault.Is(err, fault.NotFound) {
				d.doubt(dir)
			}
			return nil, err
		}
		if err := pause.For(ctx, time.Duration(n)*backoff); err != nil {
			return nil, err
		}
	}
}

// doubt notes that a directory, or one that it is in, may be gone.
func (d *Disks) doubt(p datastorePath) {
	d.mu.Lock()
	defer d.mu.Unlock()
	for ; ; p = p.dir() {
		if _, there := d.proven[p]; there {
			d.doubted[p] = true
		}
		if p.path == "" {
			return
		}
	}
}

// changed notes that something in a directory was made or has got another name: it is there and takes files.
func (d *Disks) changed(dir datastorePath) {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.proven[dir] = time.Now()
	delete(d.doubted, dir)
}

// reach is Unavailable for a datastore that the server cannot use now.
func (d *Disks) reach(store string) error {
	_, s, err := d.w.store(store)
	if err == nil && !s.accessible {
		err = fault.New(fault.Unavailable, "no host reaches datastore %s", store)
	}
	return err
}

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

// random makes a name that nobody has.
func random(prefix string) string {
	var b [8]byte
	rand.Read(b[:]) // never fails (crypto/rand)
	return prefix + hex.EncodeToString(b[:])
}

// makers gives what the names begin with of all that a VCH makes, and of what this process of it makes.
func makers(vch string) (owner, maker string) {
	sum := sha256.Sum256([]byte(vch))
	owner = unfinishedPrefix + hex.EncodeToString(sum[:4]) + "-"
	return owner, random(owner) + "-"
}

// unfinished makes the name of what is being made.
func (d *Disks) unfinished(suffix string) string { return random(d.maker) + suffix }

const (
	abandonedFor = 24 * time.Hour   // how long nothing may have changed in what another VCH is making before it is taken for left
	sweepAgain   = 10 * time.Minute // how long a sweep that has left something is not done again: it may never succeed
)

// sweep removes what earlier processes of this VCH, and long ago others, left in a directory of what they were making, and what anybody has removed. Once in a while is enough.
func (d *Disks) sweep(ctx context.Context, dir datastorePath) {
	now := time.Now()
	d.mu.Lock()
	due := !now.Before(d.sweeps[dir])
	if due {
		d.sweeps[dir] = now.Add(abandonedFor)
	}
	d.mu.Unlock()
	if !due {
		return
	}
	if d.sweepNow(ctx, dir) != nil {
		d.mu.Lock()
		defer d.mu.Unlock()
		d.sweeps[dir] = now.Add(sweepAgain)
	}
}

func (d *Disks) sweepNow(ctx context.Context, dir datastorePath) error {
	found, err := d.search(ctx, dir, unfinishedPrefix+"*", tombPrefix+"*")
	if err != nil || len(found) == 0 {
		return err
	}
	// Times are the hosts' that write. One clock that is wrong, the server's or this host's, makes nothing old.
	now := time.Now()
	err = d.s.read(ctx, func(ctx context.Context, c *vim25.Client) error {
		server, err := methods.GetCurrentTime(ctx, c)
		if err == nil && server.Before(now) {
			now = *server
		}
		return err
	})
	if err != nil {
		return err
	}
	for _, f := range found {
		if info := f.GetFileInfo(); d.isLeft(info, now) {
			err = errors.Join(err, d.remove(ctx, dir.join(info.Path)))
		}
	}
	return err
}

// isLeft says whether nobody wants a file any more that is not finished, or was removed.
func (d *Disks) isLeft(f *types.FileInfo, now time.Time) bool {
	switch {
	case strings.HasPrefix(f.Path, d.maker):
		return false
	case strings.HasPrefix(f.Path, tombPrefix), strings.HasPrefix(f.Path, d.owner):
		return true
	}
	return f.Modification != nil && now.Sub(*f.Modification) > abandonedFor
}

// Join is portlayer.Disks.Join.
func (d *Disks) Join(dir portlayer.DiskPath, elem ...string) portlayer.DiskPath {
	p, err := parsePath(dir)
	if err != nil {
		return portlayer.DiskPath(path.Join(append([]string{string(dir)}, elem...)...)) // every call with it says what is wrong
	}
	return p.join(elem...).disk()
}

// MakeDir is portlayer.Disks.MakeDir.
func (d *Disks) MakeDir(ctx context.Context, dir portlayer.DiskPath) error {
	p, err := parsePath(dir)
	if err != nil {
		return err
	}
	if err := d.reach(p.store); err != nil {
		return err
	}
	return d.makeDir(ctx, p)
}

// left notes that a directory has another name now.
func (d *Disks) left(p datastorePath) {
	d.mu.Lock()
	maps.DeleteFunc(d.proven, func(q datastorePath, _ time.Time) bool {
		return q.store == p.store && strings.HasPrefix(q.path+"/", p.path+"/")
	})
	d.mu.Unlock()
	d.changed(p.dir())
}

// RemoveDir is portlayer.Disks.RemoveDir: a move takes the name away, then the content goes while nobody waits.
func (d *Disks) RemoveDir(ctx context.Context, dir portlayer.DiskPath) error {
	p, err := parsePath(dir)
	if err != nil {
		return err
	}
	if err := d.reach(p.store); err != nil {
		return err
	}
	d.sweep(ctx, p.dir())
	tomb := p.dir().join(random(tombPrefix))
	err = d.move(ctx, p, tomb, false)
	if fault.Is(err, fault.NotFound) {
		return nil
	}
	if err != nil {
		return err
	}
	d.left(p)
	d.work.Go(func() { d.bury(tomb) })
	return nil
}

// bury removes a tomb. What cannot be removed is left for a sweep.
func (d *Disks) bury(tomb datastorePath) {
	ctx, cancel := context.WithTimeout(d.closing, clearFor)
	defer cancel()
	for wait := backoff; d.remove(ctx, tomb) != nil; wait = min(2*wait, maxBackoff) {
		if pause.For(ctx, wait) != nil {
			d.mu.Lock()
			defer d.mu.Unlock()
			d.sweeps[tomb.dir()] = time.Now().Add(sweepAgain)
			return
		}
	}
}

// MoveDir is portlayer.Disks.MoveDir.
func (d *Disks) MoveDir(ctx context.Context, from, to portlayer.DiskPath) error {
	a, err := parsePath(from)
	if err != nil {
		return err
	}
	b, err := parsePath(to)
	if err != nil {
		return err
	}
	err = d.move(ctx, a, b, false)
	if err != nil {
		d.doubt(a)
	} else {
		d.left(a)
		d.changed(b.dir())
	}
	if fault.Is(err, fault.Conflict) {
		return fault.New(fault.Conflict, "%s exists already", to)
	}
	return err
}

// List is portlayer.Disks.List.
func (d *Disks) List(ctx context.Context, dir portlayer.DiskPath) ([]string, error) {
	p, err := parsePath(dir)
	if err != nil {
		return nil, err
	}
	found, err := d.search(ctx, p, "*")
	if err != nil {
		return nil, err
	}
	names := []string{}
	for _, f := range found {
		name := f.GetFileInfo().Path
		if !strings.HasPrefix(name, tombPrefix) && !strings.HasPrefix(name, unfinishedPrefix) {
			names = append(names, name)
		}
	}
	slices.Sort(names)
	return names, nil
}

// WriteFile is portlayer.Disks.WriteFile: a whole file takes the other's place.
func (d *Disks) WriteFile(ctx context.Context, file portlayer.DiskPath, data []byte) error {
	p, err := parsePath(file)
	if err != nil {
		return err
	}
	beside := p.dir().join(d.unfinished(""))
	if err := d.putBytes(ctx, beside, data); err != nil {
		return err
	}
	if err := d.move(ctx, beside, p, true); err != nil {
		return errors.Join(err, d.remove(context.WithoutCancel(ctx), beside))
	}
	return nil
}

// ReadFile is portlayer.Disks.ReadFile.
func (d *Disks) ReadFile(ctx context.Context, file portlayer.DiskPath) ([]byte, error) {
	p, err := parsePath(file)
	if err != nil {
		return nil, err
	}
	return d.getBytes(ctx, p)
}

// Space is portlayer.Disks.Space. That a directory is there and takes files is tried once in a while; that its datastore is reached is known at all times.
func (d *Disks) Space(ctx context.Context, dir portlayer.DiskPath) (total, free portlayer.Bytes, err error) {
	p, err := parsePath(dir)
	if err != nil {
		return 0, 0, err
	}
	_, s, err := d.w.store(p.store)
	if err != nil {
		return 0, 0, err
	}
	if !s.accessible {
		return 0, 0, fault.New(fault.Unavailable, "no host reaches datastore %s", p.store)
	}
	d.mu.Lock()
	fresh, doubted := time.Since(d.proven[p]) < provenFor, d.doubted[p]
	delete(d.doubted, p) // who doubts meanwhile is heard
	d.mu.Unlock()
	switch {
	case !fresh:
		if err := d.prove(ctx, p); err != nil {
			return 0, 0, err
		}
		d.changed(p)
	case doubted:
		if err := d.there(ctx, p); err != nil {
			d.doubt(p)
			return 0, 0, err
		}
	}
	return portlayer.Bytes(s.total), portlayer.Bytes(s.free), nil
}

// there finds out whether a directory is there.
func (d *Disks) there(ctx context.Context, p datastorePath) error {
	if p.path == "" {
		return nil
	}
	found, err := d.search(ctx, p.dir(), p.base())
	if err != nil {
		return err
	}
	if len(found) == 0 {
		return fault.New(fault.NotFound, "%s is missing", p)
	}
	if _, ok := found[0].(*types.FolderFileInfo); !ok {
		return fault.New(fault.Invalid, "%s is not a directory", p)
	}
	return nil
}

// prove finds out whether a directory is there and takes files.
func (d *Disks) prove(ctx context.Context, p datastorePath) error {
	if err := d.there(ctx, p); err != nil {
		return err
	}
	probe := p.join(d.unfinished(""))
	if err := d.putBytes(ctx, probe, nil); err != nil {
		if fault.Is(err, fault.Unavailable) {
			return err
		}
		return fault.New(fault.Denied, "%s cannot be written: %w", p, err)
	}
	return d.remove(ctx, probe)
}
