package vsphere

import (
	"context"
	"log/slog"
	"path"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/vmware/govmomi/find"
	"github.com/vmware/govmomi/vim25"
	"github.com/vmware/govmomi/vim25/methods"
	"github.com/vmware/govmomi/vim25/mo"
	"github.com/vmware/govmomi/vim25/types"

	"vch/internal/bootiso"
	"vch/internal/ext4"
	"vch/internal/fault"
	"vch/internal/guestkernel"
	"vch/portlayer"
)

// SiteOptions is what a Site needs.
type SiteOptions struct {
	Server     Server
	Datacenter string // "": the only one
	Log        *slog.Logger
}

// Site is a server as the place of VCHs that are made, looked at and removed, while their daemons run or not. Each of its changes ends with what was wanted, however often it is made.
type Site struct {
	s      *session
	watch  *watcher
	disks  *Disks
	about  types.AboutInfo
	dc     types.ManagedObjectReference
	dcPath string
	cancel context.CancelFunc
	work   sync.WaitGroup
	ignore func() // ends the watcher
}

// OpenSite logs in and finds the datacenter. It changes nothing.
func OpenSite(ctx context.Context, o SiteOptions) (_ *Site, err error) {
	s := &Site{s: newSession(o.Server, 0, o.Log)}
	own, cancel := context.WithCancel(context.Background())
	s.cancel = cancel
	defer func() {
		if err != nil {
			s.Close()
		}
	}()
	var quiet types.ManagedObjectReference
	var stores []types.ManagedObjectReference
	err = s.s.read(ctx, func(ctx context.Context, c *vim25.Client) error {
		s.about = c.ServiceContent.About
		f := find.NewFinder(c)
		dc, err := f.DatacenterOrDefault(ctx, o.Datacenter)
		if err != nil {
			return named("datacenter", o.Datacenter, "--datacenter", err)
		}
		f.SetDatacenter(dc)
		s.dc, s.dcPath = dc.Reference(), dc.InventoryPath
		folders, err := dc.Folders(ctx)
		if err != nil {
			return err
		}
		quiet = folders.DatastoreFolder.Reference() // of a view of machines that has none
		all, err := f.DatastoreList(ctx, "*")
		if err != nil {
			return named("datastore", "", "--image-store", err)
		}
		stores = nil
		for _, d := range all {
			stores = append(stores, d.Reference())
		}
		return nil
	})
	if err != nil {
		return nil, fault.Wrap("use vSphere at", o.Server.address(), err)
	}
	s.watch = newWatcher(s.s, "", o.Log, quiet, stores, func(_, _ *vmState) {})
	s.disks = newDisks(own, &s.work, s.watch, s.dc, strings.TrimPrefix(s.dcPath, "/"), "")
	s.ignore = s.watch.begin()
	if err := s.watch.sync(ctx); err != nil {
		return nil, fault.Wrap("use vSphere at", o.Server.address(), err)
	}
	return s, nil
}

// Close logs out.
func (s *Site) Close() {
	s.cancel()
	s.work.Wait()
	if s.ignore != nil {
		s.ignore()
	}
	ctx, cancel := context.WithTimeout(context.Background(), logoutLimit)
	defer cancel()
	s.s.close(ctx)
}

// Version is the server's name and version.
func (s *Site) Version() string { return s.about.FullName }

// VCenter says whether it is one: an ESX host has no folders of machines, and no extensions.
func (s *Site) VCenter() bool { return s.about.ApiType == "VirtualCenter" }

// Datacenter is the datacenter's path.
func (s *Site) Datacenter() string { return s.dcPath }

// Spot is an object of the inventory.
type Spot struct {
	Path string
	ref  types.ManagedObjectReference
}

// spot looks a name up with find.
func (s *Site) spot(ctx context.Context, how func(context.Context, *find.Finder) (string, types.ManagedObjectReference, error)) (p Spot, err error) {
	err = s.s.read(ctx, func(ctx context.Context, c *vim25.Client) (err error) {
		f := find.NewFinder(c)
		dc, err := f.Datacenter(ctx, s.dcPath)
		if err != nil {
			return err
		}
		f.SetDatacenter(dc)
		p.Path, p.ref, err = how(ctx, f)
		return err
	})
	return p, err
}

// Pool finds a resource pool by name or path; "": the root of the only cluster or host.
func (s *Site) Pool(ctx context.Context, name string) (Spot, error) {
	return s.spot(ctx, func(ctx context.Context, f *find.Finder) (string, types.ManagedObjectReference, error) {
		pool, err := f.ResourcePoolOrDefault(ctx, name)
		if err != nil {
			return "", types.ManagedObjectReference{}, named("resource pool", name, "--pool", err)
		}
		return pool.InventoryPath, pool.Reference(), nil
	})
}

// Folder finds a folder of machines by name or path; "": the datacenter's.
func (s *Site) Folder(ctx context.Context, name string) (Spot, error) {
	if name == "" {
		name = s.dcPath + "/vm"
	}
	return s.spot(ctx, func(ctx context.Context, f *find.Finder) (string, types.ManagedObjectReference, error) {
		folder, err := f.Folder(ctx, name)
		if err != nil {
			return "", types.ManagedObjectReference{}, named("VM folder", name, "--folder", err)
		}
		return folder.InventoryPath, folder.Reference(), nil
	})
}

// Network finds a network by name or path; "": the only one.
func (s *Site) Network(ctx context.Context, name string) (Spot, error) {
	return s.spot(ctx, func(ctx context.Context, f *find.Finder) (string, types.ManagedObjectReference, error) {
		network, err := f.NetworkOrDefault(ctx, name)
		if err != nil {
			return "", types.ManagedObjectReference{}, named("network", name, "--network", err)
		}
		return network.GetInventoryPath(), network.Reference(), nil
	})
}

// Lacks says which privileges the user lacks on all that a VCH would use. A Spot without a Path, and a datastore that is not there, are left out.
func (s *Site) Lacks(ctx context.Context, folder, pool, network Spot, dirs []portlayer.DiskPath) (lacks []Lack, err error) {
	type object struct {
		on  Object
		at  string
		ref types.ManagedObjectReference
	}
	var objects []object
	for on, spot := range map[Object]Spot{OnFolder: folder, OnPool: pool, OnNetwork: network} {
		if spot.Path != "" {
			objects = append(objects, object{on, spot.Path, spot.ref})
		}
	}
	seen := map[string]bool{}
	for _, dir := range dirs {
		p, err := parsePath(dir)
		if err != nil {
			return nil, err
		}
		if ref, _, err := s.watch.store(p.store); err == nil && !seen[p.store] {
			seen[p.store] = true
			objects = append(objects, object{OnDatastore, p.store, ref})
		}
	}
	if c, _, ok := s.s.now(); ok && s.VCenter() {
		objects = append(objects, object{OnServer, s.s.server.address(), c.ServiceContent.RootFolder})
	}
	for _, o := range objects {
		more, err := s.missing(ctx, o.on, o.at, o.ref)
		if err != nil {
			return nil, fault.Wrap("check the privileges on", o.at, err)
		}
		lacks = append(lacks, more...)
	}
	return lacks, nil
}

// Try writes where a directory of a datastore is, or will be, and takes it away again. there says that it is.
func (s *Site) Try(ctx context.Context, dir portlayer.DiskPath) (total, free portlayer.Bytes, there bool, err error) {
	p, err := parsePath(dir)
	if err != nil {
		return 0, 0, false, err
	}
	_, state, err := s.watch.store(p.store)
	if err != nil {
		return 0, 0, false, fault.New(fault.KindOf(err), "the datacenter %s has no datastore %s that this user sees; there are %s", s.dcPath, p.store, strings.Join(s.stores(), ", "))
	}
	if err := s.disks.reach(p.store); err != nil {
		return 0, 0, false, err
	}
	for there = true; ; there = false {
		err := s.disks.prove(ctx, p)
		if err == nil {
			return portlayer.Bytes(state.total), portlayer.Bytes(state.free), there, nil
		}
		if !fault.Is(err, fault.NotFound) || p.path == "" {
			return 0, 0, false, err
		}
		p = p.dir()
	}
}

// stores are the names of all datastores.
func (s *Site) stores() (names []string) {
	s.watch.mu.Lock()
	defer s.watch.mu.Unlock()
	for _, state := range s.watch.space {
		names = append(names, state.name)
	}
	slices.Sort(names)
	return names
}

// MakeDir makes a directory with its parents.
func (s *Site) MakeDir(ctx context.Context, dir portlayer.DiskPath) error {
	return s.disks.MakeDir(ctx, dir)
}

// Join is a path in a directory of a datastore.
func (s *Site) Join(dir portlayer.DiskPath, elem ...string) portlayer.DiskPath {
	return s.disks.Join(dir, elem...)
}

// RemoveDir removes a directory with all that is in it; missing: nothing happens.
func (s *Site) RemoveDir(ctx context.Context, dir portlayer.DiskPath) error {
	p, err := parsePath(dir)
	if err != nil {
		return err
	}
	if p.path == "" {
		return fault.New(fault.Invalid, "%s is a datastore, and is not removed", dir)
	}
	return s.disks.remove(ctx, p)
}

// RemoveEmpty removes a directory if nothing is in it.
func (s *Site) RemoveEmpty(ctx context.Context, dir portlayer.DiskPath) error {
	names, err := s.disks.List(ctx, dir)
	if p, perr := parsePath(dir); fault.Is(err, fault.NotFound) || len(names) > 0 || perr == nil && p.path == "" {
		return nil
	}
	if err != nil {
		return err
	}
	return s.RemoveDir(ctx, dir)
}

// Volumes are the directories of the volumes that a volume store has.
func (s *Site) Volumes(ctx context.Context, store portlayer.DiskPath) (dirs []portlayer.DiskPath, err error) {
	p, err := parsePath(s.disks.Join(store, "volumes"))
	if err != nil {
		return nil, err
	}
	found, err := s.disks.searchAll(ctx, p, true, searchSpec("volume.json"))
	if fault.Is(err, fault.NotFound) {
		return nil, nil
	}
	for _, r := range found {
		in, perr := parsePath(portlayer.DiskPath(r.FolderPath))
		if perr == nil && len(r.File) > 0 && in.dir() == p && !strings.HasPrefix(in.base(), ".") {
			dirs = append(dirs, in.disk())
		}
	}
	slices.Sort(dirs)
	return dirs, err
}

// There says whether a pool or a folder is there: a Spot by its path, without one of that name if it is not.
func (s *Site) There(ctx context.Context, p Spot, name string) (bool, error) {
	_, err := s.child(ctx, p, name)
	if fault.Is(err, fault.NotFound) {
		return false, nil
	}
	return err == nil, err
}

// child finds what is called name in a pool or a folder. NotFound if there is none.
func (s *Site) child(ctx context.Context, p Spot, name string) (c inhabitant, err error) {
	all, err := s.inhabitants(ctx, p)
	for _, i := range all {
		if i.name == name {
			return i, nil
		}
	}
	if err == nil {
		err = fault.New(fault.NotFound, "there is no %s in %s", name, p.Path)
	}
	return c, err
}

// inhabitant is what is in a pool or a folder.
type inhabitant struct {
	name string
	ref  types.ManagedObjectReference
}

// inhabitants are all that is directly in a pool or a folder.
func (s *Site) inhabitants(ctx context.Context, p Spot) (all []inhabitant, err error) {
	var refs []types.ManagedObjectReference
	if p.ref.Type == "ResourcePool" {
		var pool mo.ResourcePool
		err = s.s.properties(ctx, p.ref, []string{"resourcePool", "vm"}, &pool)
		refs = append(pool.ResourcePool, pool.Vm...)
	} else {
		var folder mo.Folder
		err = s.s.properties(ctx, p.ref, []string{"childEntity"}, &folder)
		refs = folder.ChildEntity
	}
	if err != nil {
		return nil, err
	}
	for _, ref := range refs {
		var e mo.ManagedEntity
		if err := s.s.properties(ctx, ref, []string{"name"}, &e); fault.Is(err, fault.NotFound) {
			continue
		} else if err != nil {
			return nil, err
		}
		all = append(all, inhabitant{e.Name, ref})
	}
	return all, nil
}

// MakePool makes a resource pool, without limits, by its path. Again: nothing happens.
func (s *Site) MakePool(ctx context.Context, at string) error {
	parent, err := s.Pool(ctx, path.Dir(at))
	if err != nil {
		return err
	}
	if there, err := s.There(ctx, parent, path.Base(at)); err != nil || there {
		return err
	}
	return s.made(ctx, func(ctx context.Context, c *vim25.Client) error {
		_, err := methods.CreateResourcePool(ctx, c, &types.CreateResourcePool{This: parent.ref, Name: path.Base(at), Spec: types.DefaultResourceConfigSpec()})
		return err
	})
}

// MakeFolder makes a folder of machines by its path. Again: nothing happens.
func (s *Site) MakeFolder(ctx context.Context, at string) error {
	parent, err := s.Folder(ctx, path.Dir(at))
	if err != nil {
		return err
	}
	if there, err := s.There(ctx, parent, path.Base(at)); err != nil || there {
		return err
	}
	return s.made(ctx, func(ctx context.Context, c *vim25.Client) error {
		_, err := methods.CreateFolder(ctx, c, &types.CreateFolder{This: parent.ref, Name: path.Base(at)})
		return err
	})
}

// made makes what has a name, which nothing else can have: of a call that is made again because no answer came, the name may be there.
func (s *Site) made(ctx context.Context, call func(ctx context.Context, c *vim25.Client) error) error {
	return s.s.read(ctx, func(ctx context.Context, c *vim25.Client) error {
		if err := call(ctx, c); err != nil && !isA(err, new(types.DuplicateName)) {
			return err
		}
		return nil
	})
}

// Foreign are the names of what is in a VCH's own pool and folder and is no machine of the VCH with that id.
func (s *Site) Foreign(ctx context.Context, pool, folder, vch string) (names []string, err error) {
	for _, find := range []func() (Spot, error){func() (Spot, error) { return s.Pool(ctx, pool) }, func() (Spot, error) { return s.Folder(ctx, folder) }} {
		spot, err := find()
		if fault.Is(err, fault.NotFound) {
			continue
		}
		if err != nil {
			return nil, err
		}
		all, err := s.inhabitants(ctx, spot)
		if err != nil {
			return nil, err
		}
		for _, i := range all {
			if i.ref.Type == "VirtualMachine" {
				m, ours, err := s.resident(ctx, i.ref, vch)
				if err != nil {
					return nil, err
				}
				if ours || m.Name == "" { // it has gone meanwhile
					continue
				}
			}
			names = append(names, spot.Path+"/"+i.name)
		}
	}
	return names, nil
}

// resident reads a machine, and whether it is of the VCH with that id. Without a name: there is none.
func (s *Site) resident(ctx context.Context, ref types.ManagedObjectReference, vch string) (m Resident, ours bool, err error) {
	read, err := s.watch.detail(ctx, ref)
	vm := read[ref]
	if err != nil || vm == nil {
		return m, false, err
	}
	vm.learn(vch)
	return Resident{vm.id, vm.name, string(vm.power)}, vm.id != "", nil
}

// Resident is a machine of a VCH.
type Resident struct {
	ID    portlayer.ContainerID `json:"id"`
	Name  string                `json:"name"`
	Power string                `json:"power"`
}

// Machines are those of the VCH with that id, in its folder. A folder that is missing has none.
func (s *Site) Machines(ctx context.Context, folder, vch string) (all []Resident, err error) {
	spot, err := s.Folder(ctx, folder)
	if fault.Is(err, fault.NotFound) {
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	there, err := s.inhabitants(ctx, spot)
	if err != nil {
		return nil, err
	}
	for _, i := range there {
		if i.ref.Type != "VirtualMachine" {
			continue
		}
		m, ours, err := s.resident(ctx, i.ref, vch)
		if err != nil {
			return nil, err
		}
		if ours {
			all = append(all, m)
		}
	}
	return all, nil
}

// RemovePool removes a resource pool by its path. InUse if something is in it; missing: nothing happens.
func (s *Site) RemovePool(ctx context.Context, at string) error {
	spot, err := s.Pool(ctx, at)
	return s.removeSpot(ctx, spot, err, "resource pool")
}

// RemoveFolder removes a folder by its path. InUse if something is in it; missing: nothing happens.
func (s *Site) RemoveFolder(ctx context.Context, at string) error {
	spot, err := s.Folder(ctx, at)
	return s.removeSpot(ctx, spot, err, "VM folder")
}

func (s *Site) removeSpot(ctx context.Context, spot Spot, err error, what string) error {
	if fault.Is(err, fault.NotFound) {
		return nil
	}
	if err != nil {
		return err
	}
	left, err := s.inhabitants(ctx, spot)
	if err != nil {
		return err
	}
	if len(left) > 0 { // vSphere would remove machines with their folder
		var names []string
		for _, i := range left {
			names = append(names, i.name)
		}
		return fault.New(fault.InUse, "%s %s is not empty: %s; move or remove that first", what, spot.Path, strings.Join(names, ", "))
	}
	err = s.disks.change(ctx, func(ctx context.Context, c *vim25.Client) (types.ManagedObjectReference, error) {
		res, err := methods.Destroy_Task(ctx, c, &types.Destroy_Task{This: spot.ref})
		if err != nil {
			return types.ManagedObjectReference{}, err
		}
		return res.Returnval, nil
	}, func(err error) bool { return isA(err, new(types.ManagedObjectNotFound)) })
	if fault.Is(err, fault.NotFound) {
		return nil
	}
	return err
}

// Register has vCenter say what manages the machines with that extension's key. Again: nothing happens.
func (s *Site) Register(ctx context.Context, key, name, version string) error {
	return s.s.read(ctx, func(ctx context.Context, c *vim25.Client) error {
		there, err := extension(ctx, c, key)
		if err != nil || there {
			return err
		}
		x := types.Extension{Description: &types.Description{Label: "vch " + name, Summary: "the virtual container host " + name}, Key: key, Company: "vch", Version: version,
			LastHeartbeatTime: time.Now(), ShownInSolutionManager: types.NewBool(false),
			ManagedEntityInfo: []types.ExtManagedEntityInfo{{Type: "container", Description: "a container of the virtual container host " + name}}}
		_, err = methods.RegisterExtension(ctx, c, &types.RegisterExtension{This: *c.ServiceContent.ExtensionManager, Extension: x})
		return err
	})
}

// Unregister takes Register back. Again: nothing happens.
func (s *Site) Unregister(ctx context.Context, key string) error {
	return s.s.read(ctx, func(ctx context.Context, c *vim25.Client) error {
		there, err := extension(ctx, c, key)
		if err != nil || !there {
			return err
		}
		_, err = methods.UnregisterExtension(ctx, c, &types.UnregisterExtension{This: *c.ServiceContent.ExtensionManager, ExtensionKey: key})
		return err
	})
}

func extension(ctx context.Context, c *vim25.Client, key string) (there bool, err error) {
	if c.ServiceContent.ExtensionManager == nil {
		return false, fault.New(fault.Unsupported, "this server has no extensions: it is no vCenter")
	}
	res, err := methods.FindExtension(ctx, c, &types.FindExtension{This: *c.ServiceContent.ExtensionManager, ExtensionKey: key})
	return err == nil && res.Returnval != nil, err
}

// BootOptions is what the disc that machines boot from is made of, as in Options.
type BootOptions struct {
	Datastore string
	StateDir  string
	Kernel    string
	Modules   string
	Tether    []byte
	Seeds     []portlayer.Bytes
}

// BootDisc ensures that the disc is on the datastore, and says where.
func (s *Site) BootDisc(ctx context.Context, o BootOptions) (portlayer.DiskPath, error) {
	maker, err := ext4.Find()
	if err != nil {
		return "", err
	}
	h := &Hypervisor{o: Options{Datastore: o.Datastore, Tether: o.Tether, Seeds: o.Seeds}, s: s.s, disks: s.disks}
	if h.kernel, err = guestkernel.Find(o.Kernel, o.Modules, guestModules); err != nil {
		return "", err
	}
	if h.loader, err = bootiso.Find(); err != nil {
		return "", err
	}
	s.disks.golden = newGolden(maker, o.StateDir)
	disc, err := h.bootDisc(ctx)
	return disc.disk(), err
}

// Tool is one thing that this machine needs, and whether it is there.
type Tool struct {
	Name   string
	OK     bool
	Detail string // what was found, or what to do
}

// Tools looks at what Open needs on this machine.
func Tools(o Options) []Tool {
	row := func(name, found string, err error) Tool {
		if err != nil {
			return Tool{name, false, err.Error()}
		}
		return Tool{name, true, found}
	}
	_, err := ext4.Find()
	tools := []Tool{row("e2fsprogs", "mkfs.ext4, debugfs", err)}
	kernel, err := guestkernel.Find(o.Kernel, o.Modules, guestModules)
	tools = append(tools, row("guest kernel", kernel.Image, err))
	_, err = bootiso.Find()
	return append(tools, row("boot loader", "ISOLINUX", err))
}

// SharedDir is the directory of a datastore that all VCHs on it share: the discs that machines boot from, and empty disks to copy. It stays when a VCH goes.
func SharedDir(datastore string) portlayer.DiskPath {
	return datastorePath{store: datastore}.join(goldenDir).disk()
}
