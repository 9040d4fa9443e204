package vsphere

import (
	"context"
	"errors"
	"maps"
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
