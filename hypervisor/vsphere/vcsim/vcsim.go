// Package vcsim is a vCenter for tests: govmomi's simulator made true where it fakes, with real machines behind it where a test asks for them.
//
// What it promises: the inventory, sessions, properties, tasks and events are the simulator's. Files and disks are real, below Options.Dir: a disk takes
// its full size, sparse; what exists is not made twice, however many ask at once; what a running machine has open is locked, with the faults that a
// real vCenter gives; free space is the medium's. A machine that is powered on is one of Options.Machines, which may be QEMU.
//
// What it does not do: several datacenters, snapshots and clones of disks, vMotion, permissions (it says which are lacking, where a test asks), OVF and NFC transfers, tags' REST API. It is for tests
// and demos on one machine, and serves the loopback interface only.
package vcsim

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net/url"
	"os"
	"path/filepath"
	"sync"
	"time"

	"github.com/vmware/govmomi/object"
	"github.com/vmware/govmomi/simulator"
	"github.com/vmware/govmomi/vim25"
	"github.com/vmware/govmomi/vim25/types"

	"vch/internal/fault"
	"vch/internal/keylock"
)

// The names of the inventory, as the simulator makes them.
const (
	Datacenter = "DC0"
	Cluster    = "DC0_C0"
	Network    = "VM Network" // the port group that is always there
)

// Options are what a simulated vCenter is made of. The zero value of all but Dir does.
type Options struct {
	Dir        string                   // where everything is; each datastore is the directory of its name below it
	Datastores []string                 // default: datastore1
	Hosts      int                      // of the cluster; default 1
	PortGroups []string                 // beside Network
	Listen     string                   // address; default a free port of 127.0.0.1
	User       string                   // default administrator@vsphere.local
	Password   string                   // default "vch"
	Latency    time.Duration            // of each SOAP call
	Latencies  map[string]time.Duration // of calls by their names, "PowerOnVM_Task"; beside Latency
	Extents    bool                     // the browser lists disks' extents as files of their own; a vCenter that is asked for types shows a disk as one
	Machines   Machines                 // default Null{}; Close closes it
	// Called hears of every call when it has been answered, by its name (Calls); nil: nobody does. Calls at once: it is called at once.
	Called func(name string, arrived, answered time.Time)
	Log    *slog.Logger // default: nowhere
	Lacks  []string     // privileges that the user has on nothing, as far as AuthorizationManager tells; calls that want them work all the same
}

// Sim is a vCenter that runs.
type Sim struct {
	o       Options
	model   *simulator.Model
	service *simulator.Service
	server  *server
	dc      types.ManagedObjectReference
	watch   *watcher
	stores  map[string]*Datastore // by name; not changed after Start
	control control
	locks   locks
	busy    keylock.Set[string] // one operation on a VM at a time, by its reference's value

	ctx    context.Context // ends with the sim
	cancel context.CancelFunc
	wg     sync.WaitGroup // every task, and what waits for a machine's end

	names sync.Mutex // held while a name on a datastore is looked for and taken; the holder does file operations that take no time

	// inner is held while the simulator changes VMs, which are no more than fields of its own and small files: it copies a whole datastore without a lock
	// then, and another VM's change of the datastore would be a race.
	inner sync.Mutex

	mu       sync.Mutex // guards below
	closed   bool
	machines map[string]*machineState // by the VM's reference's value
	tasks    int                      // counts them
	cards    int                      // counts addresses that were given
	consoles map[string][]byte        // by VM name, of machines that have ended
}

// Start makes a vCenter and serves it.
func Start(o Options) (*Sim, error) {
	s, err := start(o)
	return s, fault.Wrap("start a simulated vCenter in", o.Dir, err)
}

func start(o Options) (s *Sim, err error) {
	if o.Dir == "" {
		return nil, fault.New(fault.Invalid, "it needs a directory")
	}
	if o.Dir, err = filepath.Abs(o.Dir); err != nil {
		return nil, err
	}
	if len(o.Datastores) == 0 {
		o.Datastores = []string{"datastore1"}
	}
	o.Hosts = max(o.Hosts, 1)
	if o.User == "" {
		o.User = "administrator@vsphere.local"
	}
	if o.Password == "" {
		o.Password = "vch"
	}
	if o.Machines == nil {
		o.Machines = Null{}
	}
	if o.Log == nil {
		o.Log = slog.New(slog.DiscardHandler)
	}
	s = &Sim{o: o, stores: map[string]*Datastore{}, machines: map[string]*machineState{}, consoles: map[string][]byte{}}
	if q, ok := o.Machines.(QEMU); ok && q.Dir == "" {
		q.Dir = o.Dir
		s.o.Machines = q
	}
	s.control.init(o)
	s.locks.open = map[string]*opened{}
	s.ctx, s.cancel = context.WithCancel(context.Background())
	defer func() {
		if err != nil {
			err = errors.Join(err, s.Close())
			s = nil
		}
	}()
	s.model = simulator.VPX()
	s.model.Machine, s.model.Host, s.model.Datastore, s.model.Portgroup = 0, 0, 0, 0
	s.model.ClusterHost = o.Hosts
	if err := s.model.Create(); err != nil {
		return s, err
	}
	s.service = s.model.Service
	if err := s.furnish(); err != nil {
		return s, err
	}
	s.watch = &watcher{waiting: map[types.ManagedObjectReference]chan struct{}{}}
	s.model.Map().AddHandler(s.watch)
	s.model.Map().Handler = s.handle
	s.server, err = s.serve()
	return s, err
}

// furnish makes the datastores and port groups.
func (s *Sim) furnish() error {
	client, err := vim25.NewClient(s.ctx, s.service)
	if err != nil {
		return err
	}
	s.dc = s.model.Map().Any("Datacenter").Reference()
	var hosts []*object.HostSystem
	for _, h := range s.model.Map().All("HostSystem") {
		hosts = append(hosts, object.NewHostSystem(client, h.Reference()))
	}
	for _, name := range s.o.Datastores {
		dir := filepath.Join(s.o.Dir, name)
		if name == "" || filepath.Dir(dir) != s.o.Dir {
			return fault.New(fault.Invalid, "%q cannot be a datastore's name", name)
		}
		if err := os.MkdirAll(dir, 0o755); err != nil {
			return err
		}
		d := &Datastore{name: name, dir: dir, sim: s, unread: map[types.ManagedObjectReference]*types.VirtualMachineConfigInfo{}}
		for _, h := range hosts {
			system, err := h.ConfigManager().DatastoreSystem(s.ctx)
			if err != nil {
				return err
			}
			ds, err := system.CreateLocalDatastore(s.ctx, name, dir)
			if err != nil {
				return err
			}
			if d.ref.Value == "" { // for the hosts after the first, the simulator gives the reference of nothing
				d.ref = ds.Reference()
			}
		}
		s.stores[name] = d
		ds := s.model.Map().Get(d.ref).(*simulator.Datastore)
		several := o2b(len(hosts) > 1)
		ds.Summary.Type, ds.Summary.MultipleHostAccess = "VMFS", several
		d.turn(false)
	}
	for _, name := range s.o.PortGroups {
		system, err := hosts[0].ConfigManager().NetworkSystem(s.ctx)
		if err != nil {
			return err
		}
		if err := system.AddPortGroup(s.ctx, types.HostPortGroupSpec{Name: name, VswitchName: "vSwitch0"}); err != nil {
			return fmt.Errorf("port group %s: %w", name, err)
		}
	}
	return nil
}

func o2b(b bool) *bool { return &b }

// context is a new one to call the simulator with. Contexts are what its locks know their holders by.
func (s *Sim) context() *simulator.Context {
	c := *s.service.Context
	return &c
}

// URL is where it is, with /sdk and without user.
func (s *Sim) URL() *url.URL {
	return &url.URL{Scheme: "https", Host: s.server.listener.Addr().String(), Path: vim25.Path}
}

// User is who may log in.
func (s *Sim) User() *url.Userinfo { return url.UserPassword(s.o.User, s.o.Password) }

// Thumbprint is the SHA-256 of the certificate, as vCenter shows it: AB:CD:…
func (s *Sim) Thumbprint() string { return s.server.sha256 }

// ThumbprintSHA1 is the older kind, which govmomi calls the thumbprint.
func (s *Sim) ThumbprintSHA1() string { return s.server.sha1 }

// Certificate is the server's, in PEM.
func (s *Sim) Certificate() []byte { return s.server.pem }

// Path is the local file of "[datastore1] a/b"; "" if the datastore is not there or the path leaves it.
func (s *Sim) Path(dsPath string) string {
	p, f := s.resolve(dsPath)
	if f != nil {
		return ""
	}
	return p.local
}

// Datastore is one of the datastores; nil if there is none of that name.
func (s *Sim) Datastore(name string) *Datastore { return s.stores[name] }

// machine is what the VM of a name runs on; nil if it is off.
func (s *Sim) machine(vm string) Running {
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, m := range s.machines {
		if m.name == vm {
			return m.running
		}
	}
	return nil
}

// Console is what the console of the VM's machine has said last; of one that has ended, too.
func (s *Sim) Console(vm string) []byte {
	if m := s.machine(vm); m != nil {
		return m.Console()
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.consoles[vm]
}

// Pid is the process of the VM's machine; 0 if there is none.
func (s *Sim) Pid(vm string) int {
	if m := s.machine(vm); m != nil {
		return m.Pid()
	}
	return 0
}

// Fail ends the VM's machine as if it had ended by itself. What follows in the inventory comes a moment after.
func (s *Sim) Fail(vm string) {
	if m := s.machine(vm); m != nil {
		m.Fail()
	}
}

// Close ends every machine and the server, and waits for all that goes on. The files stay.
func (s *Sim) Close() error {
	s.mu.Lock()
	if s.closed {
		s.mu.Unlock()
		return nil
	}
	s.closed = true
	s.mu.Unlock()
	s.cancel()
	var err error
	if s.server != nil {
		err = s.server.close()
	}
	s.mu.Lock()
	var left []Running
	for _, m := range s.machines {
		if m.running != nil {
			left = append(left, m.running)
		}
	}
	s.mu.Unlock()
	for _, m := range left {
		err = errors.Join(err, m.Stop())
	}
	s.wg.Wait()
	err = errors.Join(err, s.o.Machines.Close())
	if s.service != nil {
		s.model.Remove()
	}
	return err
}

// enter counts one more goroutine of the sim's; false if it is closing.
func (s *Sim) enter() bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.closed {
		return false
	}
	s.wg.Add(1)
	return true
}
