// Package vsphere makes container VMs on a vSphere cluster: vCenter places them, datastores keep their disks.
//
//	watch.go       one question open at the server: what machines, tasks and datastores are, without asking
//	session.go     who is logged in, again where a session has ended
//	definition.go  pure: a machine as vSphere is told of it
//	machine.go     machines            disks.go, files.go   disks and small files on datastores
//	endpoint.go    where guests come to: their machines are on other hosts than this process
//
// What vCenter knows is the only record of a machine; beside it are hashes of what guests are known by, in StateDir. A call of which no answer comes is made again, and makes
// no second object. Machines that are in the VCH's folder and have no definition of vch's are somebody else's and are not touched.
package vsphere

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"io"
	"log/slog"
	"net"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/vmware/govmomi/find"
	"github.com/vmware/govmomi/object"
	"github.com/vmware/govmomi/vim25"
	"github.com/vmware/govmomi/vim25/mo"
	"github.com/vmware/govmomi/vim25/types"

	"vch/guest"
	"vch/internal/bootiso"
	"vch/internal/ext4"
	"vch/internal/fault"
	"vch/internal/guestkernel"
	"vch/internal/keylock"
	"vch/portlayer"
)

// Options is what a Hypervisor needs.
type Options struct {
	Server     Server
	VCH        string // its id: machines in the folder that have another are somebody else's
	Name       string // of the VCH, for people
	Datacenter string // "": the only one
	Pool       string // resource pool, by name or path; "": the root of the only cluster or host
	Folder     string // VM folder of the VCH, by name or path; "": the datacenter's
	Datastore  string // of the machines' own files and the boot disc
	Network    string // port group of the management card, by which guests come to Advertise
	Extension  string // key of the extension that manages the machines; "": nobody is named

	Listener   net.Listener     // where guests come to; Open takes it over
	Advertise  string           // HOST:PORT by which guests reach Listener
	Management guest.Management // how their cards get an address

	StateDir string // of this host
	Kernel   string // guestkernel.Find's
	Modules  string // likewise
	Tether   []byte
	Seeds    []portlayer.Bytes // sizes of machines' own disks that are usual: what one holds is made for that size
	Log      *slog.Logger

	limit time.Duration // callLimit in tests; 0: as it is
}

// Hypervisor implements portlayer.Hypervisor.
type Hypervisor struct {
	o        Options
	s        *session
	watch    *watcher
	disks    *Disks
	endpoint *endpoint
	turns    keylock.Set[portlayer.ContainerID] // held by whoever changes a machine

	folder  types.ManagedObjectReference
	pool    types.ManagedObjectReference
	network types.BaseVirtualDeviceBackingInfo
	info    portlayer.HypervisorInfo

	mu       sync.Mutex                           // guards below
	starting map[types.ManagedObjectReference]int // machines that are being switched on here

	kernel guestkernel.Kernel
	loader bootiso.Loader
	discs  keylock.Set[string] // its only key, "", guards boot, and is held while the disc is uploaded
	boot   *datastorePath

	ctx    context.Context // ends with Close
	cancel context.CancelFunc
	work   sync.WaitGroup
	hangUp func()
	ignore func() // ends the watcher, which all work hears of its tasks by
}

// Open logs in, finds what o names, and waits until it knows the machines that are there. It changes nothing on the server.
func Open(ctx context.Context, o Options) (_ *Hypervisor, err error) {
	h := &Hypervisor{o: o, s: newSession(o.Server, o.limit, o.Log), starting: map[types.ManagedObjectReference]int{}}
	h.ctx, h.cancel = context.WithCancel(context.Background())
	defer func() {
		if err != nil {
			_ = h.Close()
			err = fault.Wrap("use vSphere at", o.Server.address(), err)
		}
	}()
	maker, err := ext4.Find()
	if err != nil {
		return nil, err
	}
	if h.kernel, err = guestkernel.Find(o.Kernel, o.Modules, guestModules); err != nil {
		return nil, err
	}
	if h.loader, err = bootiso.Find(); err != nil {
		return nil, err
	}
	dir := filepath.Join(o.StateDir, "vsphere")
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return nil, fault.New(fault.Denied, "cannot make the state directory: %w", err)
	}
	place, err := h.find(ctx)
	if err != nil {
		return nil, err
	}
	h.folder, h.pool, h.network = place.folder, place.pool, place.network
	h.watch = newWatcher(h.s, o.VCH, o.Log, h.folder, place.stores, h.noticed)
	h.disks = newDisks(h.ctx, &h.work, h.watch, place.datacenter, place.dcPath, o.VCH)
	h.disks.golden = newGolden(maker, dir)
	if h.endpoint, h.hangUp, err = newEndpoint(o.Listener, filepath.Join(dir, "guests"), h.rebooted, o.Log); err != nil {
		return nil, err
	}
	h.ignore = h.watch.begin()
	if err := h.watch.sync(ctx); err != nil {
		return nil, err
	}
	if _, _, err := h.watch.store(o.Datastore); err != nil {
		return nil, err
	}
	return h, nil
}

// Close is portlayer.Hypervisor.Close: machines go on, and guests come to the next daemon.
func (h *Hypervisor) Close() error {
	h.cancel()
	if h.hangUp != nil {
		h.hangUp()
	} else if h.o.Listener != nil {
		h.o.Listener.Close()
	}
	h.work.Wait()
	if h.ignore != nil {
		h.ignore()
	}
	ctx, cancel := context.WithTimeout(context.Background(), logoutLimit)
	defer cancel()
	h.s.close(ctx)
	return nil
}

// location is what the names in Options stand for.
type location struct {
	datacenter, folder, pool types.ManagedObjectReference
	dcPath                   string
	network                  types.BaseVirtualDeviceBackingInfo
	stores                   []types.ManagedObjectReference
}

// logoutLimit bounds the last call.
const logoutLimit = 5 * time.Second

// find looks all names up.
func (h *Hypervisor) find(ctx context.Context) (l location, err error) {
	err = h.s.read(ctx, func(ctx context.Context, c *vim25.Client) error {
		about := c.ServiceContent.About
		h.info = portlayer.HypervisorInfo{Name: "vsphere", Version: about.Version, Kernel: h.kernel.Release, Detail: about.FullName + " at " + h.s.server.address(), Starts: "every machine boots"}
		f := find.NewFinder(c)
		dc, err := f.DatacenterOrDefault(ctx, h.o.Datacenter)
		if err != nil {
			return named("datacenter", h.o.Datacenter, "--datacenter", err)
		}
		f.SetDatacenter(dc)
		l.datacenter, l.dcPath = dc.Reference(), strings.TrimPrefix(dc.InventoryPath, "/")
		folder, err := f.FolderOrDefault(ctx, h.o.Folder)
		if err != nil {
			return named("VM folder", h.o.Folder, "--folder", err)
		}
		if h.o.Folder == "" {
			folders, err := dc.Folders(ctx)
			if err != nil {
				return err
			}
			folder = folders.VmFolder
		}
		l.folder = folder.Reference()
		pool, err := f.ResourcePoolOrDefault(ctx, h.o.Pool)
		if err != nil {
			return named("resource pool", h.o.Pool, "--pool", err)
		}
		l.pool = pool.Reference()
		if err := h.measure(ctx, pool); err != nil {
			return err
		}
		network, err := f.NetworkOrDefault(ctx, h.o.Network)
		if err != nil {
			return named("network", h.o.Network, "--network", err)
		}
		if l.network, err = network.EthernetCardBackingInfo(ctx); err != nil {
			return err
		}
		stores, err := f.DatastoreList(ctx, "*")
		if err != nil {
			return named("datastore", "", "--image-store", err)
		}
		l.stores = nil
		for _, s := range stores {
			l.stores = append(l.stores, s.Reference())
		}
		return nil
	})
	return l, err
}

// measure notes what the hosts have that a resource pool is of.
func (h *Hypervisor) measure(ctx context.Context, pool *object.ResourcePool) error {
	owner, err := pool.Owner(ctx)
	if err != nil {
		return err
	}
	var hosts mo.ComputeResource
	if err := pool.Properties(ctx, owner.Reference(), []string{"summary"}, &hosts); err != nil {
		return err
	}
	if sum := hosts.Summary; sum != nil {
		s := sum.GetComputeResourceSummary()
		h.info.CPUs, h.info.Memory = int(s.NumCpuThreads), portlayer.Bytes(s.TotalMemory)
	}
	return nil
}

// named says which name was not found, or stands for several things.
func named(what, name, flag string, err error) error {
	if unreached(err) || loggedOut(err) {
		return err
	}
	if name == "" {
		return fault.New(fault.Invalid, "%s says which %s is meant: %w", flag, what, err)
	}
	return fault.New(fault.NotFound, "%s %s: %w", what, name, err)
}

// noticed is told by the watcher of every change to a machine, which waits meanwhile, and says what nobody here has done. A machine that somebody else has switched on, as vSphere's
// high availability does, is switched off: its guest is not let in, and it would hold its volumes.
func (h *Hypervisor) noticed(old, new *vmState) {
	switch {
	case old == nil || old.id == "":
	case new == nil:
		h.o.Log.Warn("a machine is gone that was not removed by vch", "machine", old.name, "container", string(old.id))
	case old.connect != new.connect:
		h.o.Log.Warn("a machine's connection to vCenter has changed", "machine", new.name, "was", string(old.connect), "is", string(new.connect))
	case !old.on() && new.on():
		h.mu.Lock()
		expected := h.starting[new.ref] > 0
		h.mu.Unlock()
		if !expected {
			h.o.Log.Warn("a machine was switched on that vch has not started: it is switched off", "machine", new.name, "container", string(new.id))
			h.work.Go(func() { h.sendBack(&Machine{h, new.id, new.ref}) })
		}
	}
}

// rebooted is told by the endpoint of a machine that has booted without having been started here. Its container has ended.
func (h *Hypervisor) rebooted(id portlayer.ContainerID) {
	if vm := h.watch.find(id); vm != nil && vm.on() {
		h.o.Log.Warn("a machine was reset or started again elsewhere: its container has ended, and it is switched off", "machine", vm.name, "container", string(id))
		h.sendBack(&Machine{h, id, vm.ref})
	}
}

// sendBack switches a machine off that nobody here has started.
func (h *Hypervisor) sendBack(m *Machine) {
	ctx, cancel := context.WithTimeout(h.ctx, settleLimit)
	defer cancel()
	if err := m.PowerOff(ctx); err != nil && h.ctx.Err() == nil {
		h.o.Log.Warn("a machine that vch has not started stays on", "container", string(m.id), "err", err)
	}
}

// starts notes that a machine is being switched on here, until done.
func (h *Hypervisor) starts(ref types.ManagedObjectReference) (done func()) {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.starting[ref]++
	return func() {
		h.mu.Lock()
		defer h.mu.Unlock()
		if h.starting[ref]--; h.starting[ref] == 0 {
			delete(h.starting, ref)
		}
	}
}

// Info is portlayer.Hypervisor.Info.
func (h *Hypervisor) Info(context.Context) (portlayer.HypervisorInfo, error) { return h.info, nil }

// Disks is portlayer.Hypervisor.Disks.
func (h *Hypervisor) Disks() portlayer.Disks { return h.disks }

// Expect is portlayer.Hypervisor.Expect: the boot disc is made ready.
func (h *Hypervisor) Expect(portlayer.MachineSpec) {
	h.work.Go(func() {
		if _, err := h.bootDisc(h.ctx); err != nil && h.ctx.Err() == nil {
			h.o.Log.Warn("the boot disc is not ready", "err", err)
		}
	})
}

// Machine is portlayer.Hypervisor.Machine.
func (h *Hypervisor) Machine(ctx context.Context, id portlayer.ContainerID) (portlayer.Machine, error) {
	if err := checkID(id); err != nil {
		return nil, err
	}
	if vm := h.watch.find(id); vm != nil {
		return &Machine{h, id, vm.ref}, nil
	}
	if err := h.watch.classify(ctx); err != nil {
		return nil, err
	}
	if vm := h.watch.find(id); vm != nil {
		return &Machine{h, id, vm.ref}, nil
	}
	if hidden := h.watch.unread(id); hidden != nil {
		return nil, unreadable(hidden)
	}
	return nil, fault.New(fault.NotFound, "no machine %s", id)
}

// List is portlayer.Hypervisor.List.
func (h *Hypervisor) List(ctx context.Context) ([]portlayer.ContainerID, error) {
	if err := h.watch.classify(ctx); err != nil {
		return nil, err
	}
	ids := []portlayer.ContainerID{}
	for _, vm := range h.watch.all() {
		ids = append(ids, vm.id)
	}
	slices.Sort(ids)
	return ids, nil
}

// commandLine is the guest kernel's. Its console is the last that there is: the machine's screen, or, where a test gives it one, its serial port. On vSphere a kernel leaves the check of
// its timer out by itself; emulated on a busy host, it would panic of it.
const commandLine = "console=tty0 console=ttyS0 no_timer_check quiet reboot=t panic=-1 scsi_mod.scan=sync cryptomgr.notests rcupdate.rcu_expedited=1 random.trust_cpu=on audit=0 nowatchdog"

// bootDisc ensures that the disc from which machines boot is on the datastore, named by what it is made of.
func (h *Hypervisor) bootDisc(ctx context.Context) (datastorePath, error) {
	unlock, err := h.discs.Lock(ctx, "")
	if err != nil {
		return datastorePath{}, err
	}
	defer unlock()
	if h.boot != nil {
		return *h.boot, nil
	}
	sum, err := h.discSum()
	if err != nil {
		return datastorePath{}, fault.Wrap("make the disc that machines boot from", "", err)
	}
	p := datastorePath{store: h.o.Datastore}.join(goldenDir, "boot-"+hex.EncodeToString(sum[:8])+".iso")
	if found, err := h.disks.search(ctx, p.dir(), p.base()); err == nil && len(found) == 1 && found[0].GetFileInfo().FileSize > 0 { // whole: it got its name last
		h.boot = &p
		return p, nil
	} else if err != nil && !fault.Is(err, fault.NotFound) {
		return p, err
	}
	disc, err := h.makeDisc(ctx)
	if err != nil {
		return datastorePath{}, fault.Wrap("make the disc that machines boot from", "", err)
	}
	if err := h.disks.makeDir(ctx, p.dir()); err != nil {
		return p, err
	}
	beside := p.dir().join(h.disks.unfinished(".iso"))
	if err := h.disks.put(ctx, beside, func() (io.Reader, error) { return bytes.NewReader(disc), nil }, int64(len(disc))); err != nil {
		return p, err
	}
	if err := h.disks.move(ctx, beside, p, true); err != nil {
		return p, err
	}
	h.boot = &p
	return p, nil
}

// discSum is what the disc is named by. The seeds count by their sizes: each that mke2fs makes has another time and another UUID.
func (h *Hypervisor) discSum() (sum [sha256.Size]byte, err error) {
	kernel, err := os.ReadFile(h.kernel.Image)
	if err != nil {
		return sum, err
	}
	const seedForm = 1 // of the seeds: what makes them otherwise has another
	all := sha256.New()
	fmt.Fprintf(all, "%d %v %s %x\n", seedForm, h.seedSizes(), commandLine, sha256.Sum256(kernel))
	if err := guestkernel.WriteInitramfs(all, h.kernel, h.o.Tether); err != nil {
		return sum, err
	}
	all.Sum(sum[:0])
	return sum, nil
}

// seedSizes are the sizes of disks that the tether makes file systems for by copying.
func (h *Hypervisor) seedSizes() []int64 {
	sizes := []int64{int64(portlayer.MinDisk), 64 << 20, 256 << 20}
	for _, s := range h.o.Seeds {
		sizes = append(sizes, int64(s))
	}
	return sizes
}

// makeDisc makes the disc of the kernel, the drivers and the tether.
func (h *Hypervisor) makeDisc(ctx context.Context) ([]byte, error) {
	kernel, err := os.ReadFile(h.kernel.Image)
	if err != nil {
		return nil, err
	}
	var seeds, initramfs, disc bytes.Buffer
	if err := h.disks.golden.maker.Seeds(ctx, h.disks.golden.dir, &seeds, h.seedSizes()...); err != nil {
		return nil, err
	}
	if err := guestkernel.WriteInitramfs(&initramfs, h.kernel, h.o.Tether, guestkernel.File{Name: "seeds", Data: seeds.Bytes()}); err != nil {
		return nil, err
	}
	if err := h.loader.Write(&disc, bootiso.Files{Kernel: kernel, Initramfs: initramfs.Bytes(), Append: commandLine}); err != nil {
		return nil, err
	}
	return disc.Bytes(), nil
}
