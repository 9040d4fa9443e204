package vcsim

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path"
	"path/filepath"
	"sort"
	"strings"
	"sync/atomic"

	"github.com/vmware/govmomi/object"
	"github.com/vmware/govmomi/simulator"
	"github.com/vmware/govmomi/vim25/types"
	"golang.org/x/sys/unix"
)

// Datastore is a directory that hosts see as a datastore.
type Datastore struct {
	name   string
	dir    string
	ref    types.ManagedObjectReference
	sim    *Sim
	lost   atomic.Bool
	unread map[types.ManagedObjectReference]*types.VirtualMachineConfigInfo // what is not told of machines while it is lost; Sim.inner is held
	told   atomic.Int64                                                     // free space that watchers have heard of
}

// worthTelling is the change of free space, in bytes, that those who wait for changes hear of: it changes all the time.
const worthTelling = 64 << 20

// Lose takes the datastore from the hosts, as a cut cable does. Machines that run go on; of those that are off, nothing but their names is known then.
func (d *Datastore) Lose() { d.turn(true) }

// Restore gives it back.
func (d *Datastore) Restore() { d.turn(false) }

func (d *Datastore) turn(lost bool) {
	d.sim.inner.Lock()
	defer d.sim.inner.Unlock()
	d.lost.Store(lost)
	ctx := d.sim.context()
	d.refresh(ctx)
	state := types.VirtualMachineConnectionStateConnected
	if lost {
		state = types.VirtualMachineConnectionStateInaccessible
	}
	for _, e := range ctx.Map.All("VirtualMachine") {
		vm, ok := e.(*simulator.VirtualMachine)
		if !ok {
			continue
		}
		ctx.WithLock(vm, func() {
			config := vm.Config
			if config == nil {
				config = d.unread[vm.Self]
			}
			if config == nil {
				return
			}
			p, f := d.sim.parse(config.Files.VmPathName)
			if f == nil && p.store == d && (vm.Runtime.PowerState != types.VirtualMachinePowerStatePoweredOn || !lost) && vm.Runtime.ConnectionState != state {
				shown := config
				if lost {
					d.unread[vm.Self], shown = config, nil
				} else {
					delete(d.unread, vm.Self)
				}
				vm.Config = shown
				ctx.Update(vm, []types.PropertyChange{{Name: "runtime.connectionState", Val: state}, {Name: "summary.runtime.connectionState", Val: state}})
			}
		})
	}
}

// refresh tells the inventory the datastore's space and whether it is there; Sim.inner is held.
func (d *Datastore) refresh(ctx *simulator.Context) {
	ds, ok := ctx.Map.Get(d.ref).(*simulator.Datastore)
	if !ok {
		return
	}
	var st unix.Statfs_t
	if err := unix.Statfs(d.dir, &st); err != nil {
		return
	}
	capacity, free := int64(st.Blocks)*st.Bsize, int64(st.Bavail)*st.Bsize
	accessible := !d.lost.Load()
	ctx.WithLock(ds, func() {
		// The simulator reads a datastore's URL without its lock, and Update writes all of the summary: it is given another object, of the same reference, and
		// tells those who wait of that.
		told := &simulator.Datastore{}
		told.Self = ds.Self
		var changes []types.PropertyChange
		if ds.Summary.Capacity != capacity || ds.Summary.FreeSpace != free {
			info := ds.Info.GetDatastoreInfo()
			info.FreeSpace, info.MaxFileSize = free, capacity
			ds.Summary.Capacity, ds.Summary.FreeSpace = capacity, free
			if off := free - d.told.Load(); off > worthTelling || off < -worthTelling {
				d.told.Store(free)
				changes = append(changes, types.PropertyChange{Name: "summary.capacity", Val: capacity}, types.PropertyChange{Name: "summary.freeSpace", Val: free})
			}
		}
		if ds.Summary.Accessible != accessible {
			hosts := append([]types.DatastoreHostMount(nil), ds.Host...)
			for i := range hosts {
				hosts[i].MountInfo.Accessible, hosts[i].MountInfo.InaccessibleReason = o2b(accessible), ""
				if !accessible {
					hosts[i].MountInfo.InaccessibleReason = string(types.HostMountInfoInaccessibleReasonAllPathsDown_Start)
				}
			}
			ds.Summary.Accessible, ds.Host = accessible, hosts
			changes = append(changes, types.PropertyChange{Name: "summary.accessible", Val: accessible}, types.PropertyChange{Name: "host", Val: hosts})
		}
		if len(changes) > 0 {
			ctx.Update(told, changes)
		}
	})
}

// place is a path on a datastore.
type place struct {
	store *Datastore
	rel   string // within it, clean; "" is its root
	local string
}

func (p place) String() string {
	d := object.DatastorePath{Datastore: p.store.name, Path: p.rel}
	return d.String()
}

// sibling is the file name beside p.
func (p place) sibling(name string) place {
	return place{p.store, path.Join(path.Dir(p.rel), name), filepath.Join(filepath.Dir(p.local), name)}
}

// resolve finds what a datastore path names; the file need not be there, the datastore must.
func (s *Sim) resolve(dsPath string) (place, types.BaseMethodFault) {
	p, f := s.parse(dsPath)
	if f == nil && p.store.lost.Load() {
		return place{}, &types.InaccessibleDatastore{InvalidDatastore: types.InvalidDatastore{Datastore: &p.store.ref, Name: p.store.name}}
	}
	return p, f
}

// parse is resolve without a look at whether the hosts see the datastore.
func (s *Sim) parse(dsPath string) (place, types.BaseMethodFault) {
	var p object.DatastorePath
	if !p.FromString(dsPath) {
		return place{}, &types.InvalidDatastorePath{InvalidDatastore: types.InvalidDatastore{Name: dsPath}, DatastorePath: dsPath}
	}
	store := s.stores[p.Datastore]
	if store == nil {
		return place{}, &types.InvalidDatastore{Name: p.Datastore}
	}
	rel := strings.TrimPrefix(path.Clean("/"+p.Path), "/")
	if strings.Contains("/"+p.Path+"/", "/../") {
		return place{}, &types.InvalidDatastorePath{InvalidDatastore: types.InvalidDatastore{Name: p.Datastore}, DatastorePath: dsPath}
	}
	return place{store, rel, filepath.Join(store.dir, filepath.FromSlash(rel))}, nil
}

// fileFault is the fault of a file operation that failed with err.
func fileFault(p place, err error) types.BaseMethodFault {
	f := types.FileFault{File: p.String()}
	switch {
	case errors.Is(err, fs.ErrNotExist):
		return &types.FileNotFound{FileFault: f}
	case errors.Is(err, fs.ErrExist):
		return &types.FileAlreadyExists{FileFault: f}
	case errors.Is(err, unix.ENOSPC):
		return &types.NoDiskSpace{FileFault: f, Datastore: p.store.name}
	}
	f.FaultMessage = []types.LocalizableMessage{{Key: "vch.rig", Message: err.Error()}}
	return &types.CannotAccessFile{FileFault: f}
}

func locked(p place) types.BaseMethodFault {
	return &types.FileLocked{FileFault: types.FileFault{File: p.String()}}
}

// Left is what is there: VMs by name, files and empty directories as datastore paths; sorted.
func (s *Sim) Left() []string {
	var left []string
	for _, vm := range s.model.Map().All("VirtualMachine") {
		left = append(left, "VM "+vm.Entity().Name)
	}
	for _, d := range s.stores {
		err := filepath.WalkDir(d.dir, func(at string, e fs.DirEntry, err error) error {
			if err != nil || at == d.dir {
				return err
			}
			if e.IsDir() {
				if all, err := os.ReadDir(at); err != nil || len(all) > 0 {
					return err
				}
			}
			rel, err := filepath.Rel(d.dir, at)
			left = append(left, place{store: d, rel: rel}.String())
			return err
		})
		if err != nil {
			left = append(left, fmt.Sprintf("[%s]: %v", d.name, err))
		}
	}
	sort.Strings(left)
	return left
}
