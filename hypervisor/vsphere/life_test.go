package vsphere

import (
	"context"
	"fmt"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/vmware/govmomi/object"
	vimsession "github.com/vmware/govmomi/session"
	"github.com/vmware/govmomi/vim25"
	"github.com/vmware/govmomi/vim25/soap"
	"github.com/vmware/govmomi/vim25/types"

	"vch/guest"
	"vch/hypervisor/vsphere/vcsim"
	"vch/internal/fault"
	"vch/portlayer"
)

// scene is a hypervisor on a simulated vCenter whose machines do nothing.
type scene struct {
	*testing.T
	sim *vcsim.Sim
	h   *Hypervisor
	dir portlayer.DiskPath
}

func newScene(t *testing.T) *scene {
	t.Helper()
	return sceneAfter(t, func(*vcsim.Sim) {})
}

// sceneAfter is newScene on a vCenter that was prepared.
func sceneAfter(t *testing.T, prepare func(*vcsim.Sim)) *scene {
	t.Helper()
	sim := simulate(t, vcsim.Options{Datastores: []string{"datastore1", "other"}})
	prepare(sim)
	o := options(t, sim, t.TempDir())
	o.Tether = []byte("a tether")
	s := &scene{T: t, sim: sim, h: open(t, o)}
	s.dir = s.h.Disks().Join("[datastore1]", "vols")
	s.must(s.h.Disks().MakeDir(t.Context(), s.dir))
	return s
}

func (s *scene) must(err error) {
	s.Helper()
	if err != nil {
		s.Fatal(err)
	}
}

// want checks an error's kind, and that its text has all words.
func (s *scene) want(what string, err error, kind fault.Kind, words ...string) {
	s.Helper()
	if !fault.Is(err, kind) {
		s.Errorf("%s: %v, want kind %q", what, err, kind)
		return
	}
	for _, w := range words {
		if !strings.Contains(err.Error(), w) {
			s.Errorf("%s: %q does not say %q", what, err, w)
		}
	}
}

// disk makes a disk.
func (s *scene) disk(name string) portlayer.DiskPath {
	s.Helper()
	p := s.h.Disks().Join(s.dir, name+".vmdk")
	s.must(s.h.Disks().Create(s.Context(), p, portlayer.DiskSpec{Size: 16 * portlayer.MiB, Label: portlayer.Label(strings.Repeat("ab", 16))}))
	return p
}

// spec is a machine with its own disk and others.
func spec(id string, files ...portlayer.DiskPath) portlayer.MachineSpec {
	m := portlayer.MachineSpec{ID: portlayer.ContainerID(id), Name: "web", Memory: 64 * portlayer.MiB, CPUs: 1, Config: guest.ExecutorConfig{ID: id, Hostname: "h"}}
	m.Devices = append(m.Devices, portlayer.DeviceChange{Op: portlayer.Add, Disk: portlayer.Disk{Serial: "own", Size: 16 * portlayer.MiB}})
	for i, f := range files {
		m.Devices = append(m.Devices, portlayer.DeviceChange{Op: portlayer.Add, Disk: portlayer.Disk{Serial: fmt.Sprintf("d%d", i), File: f}})
		m.Config.Mounts = append(m.Config.Mounts, guest.MountSpec{Source: fmt.Sprintf("label://%032d", i), Target: fmt.Sprintf("/srv%d", i)})
	}
	return m
}

// left says what is on the server beside what all VCHs share and what the test keeps.
func (s *scene) left(keep ...string) {
	s.Helper()
	var left []string
	for end := time.Now().Add(5 * time.Second); ; time.Sleep(5 * time.Millisecond) { // what has lost its name goes a moment later
		left = nil
		for _, l := range s.sim.Left() {
			kept := strings.Contains(l, "] "+goldenDir) || strings.HasSuffix(l, "] vols")
			for _, k := range keep {
				kept = kept || strings.HasSuffix(l, k)
			}
			if !kept {
				left = append(left, l)
			}
		}
		if len(left) == 0 {
			return
		}
		if time.Now().After(end) {
			s.Errorf("left: %v", left)
			return
		}
	}
}

// life is all that happens to a machine with a volume.
func (s *scene) life(ctx context.Context, id string, file portlayer.DiskPath) error {
	m, err := s.h.Define(ctx, spec(id, file))
	if err != nil {
		return err
	}
	for _, step := range []func(context.Context) error{m.PowerOn, m.Pause, m.Resume, m.PowerOff, func(ctx context.Context) error {
		return m.Reconfigure(ctx, []portlayer.DeviceChange{{Op: portlayer.Remove, Disk: portlayer.Disk{Serial: "d0"}}})
	}, m.PowerOn, m.PowerOff, m.Undefine} {
		if err := step(ctx); err != nil {
			return err
		}
	}
	return nil
}

// What a join asks for is in the machine's definition: the disk as it is, kept when the machine goes; and for the guest, the mount.
func TestJoinIsInTheDefinition(t *testing.T) {
	s := newScene(t)
	data := s.disk("data")
	m, err := s.h.Define(t.Context(), spec("abc", data))
	s.must(err)
	read, err := s.h.watch.detail(t.Context(), s.h.watch.find("abc").ref)
	s.must(err)
	vm := read[s.h.watch.find("abc").ref]
	var found *types.VirtualDisk
	for _, dev := range vm.devices {
		if d, ok := dev.(*types.VirtualDisk); ok && fileOf(d) == string(data) {
			found = d
		}
	}
	if found == nil || found.Backing.(*types.VirtualDiskFlatVer2BackingInfo).DiskMode != string(types.VirtualDiskModeIndependent_persistent) {
		t.Fatalf("the machine has %v", vm.devices)
	}
	if seat := m.Seats()["d0"]; seat.Slot != 160 || seat.Unit != 1 || int32(seat.Unit) != *found.UnitNumber {
		t.Errorf("the guest is told %+v", seat)
	}
	if vm.name != "web-abc" {
		t.Errorf("it is called %s", vm.name)
	}
	extra, err := vmExtra(t.Context(), object.NewVirtualMachine(s.client(), vm.ref))
	s.must(err)
	text := object.OptionValueList(extra)
	packed, _ := text.GetString(guest.ConfigKey(0))
	cfg, err := guest.Unpack(packed)
	if err != nil || len(cfg.Mounts) != 1 || cfg.Mounts[0].Target != "/srv0" || !m.Carries() {
		t.Errorf("the guest is to mount %+v, %v", cfg.Mounts, err)
	}
	// Nothing has changed: nothing is asked of the server.
	s.sim.Calls(true)
	_, err = s.h.Define(t.Context(), spec("abc", data))
	s.must(err)
	for method, n := range s.sim.Calls(true) {
		if method != "WaitForUpdatesEx" && n > 0 {
			t.Errorf("the same definition took %d of %s", n, method)
		}
	}
	s.must(m.Undefine(t.Context()))
	s.left("data.vmdk", "data-flat.vmdk")
	if _, err := s.h.Disks().Stat(t.Context(), data); err != nil {
		t.Errorf("the volume went with its machine: %v", err)
	}
}

// client is another who is logged in.
func (s *scene) client() *vim25.Client {
	s.Helper()
	u := s.sim.URL()
	c, err := vim25.NewClient(s.Context(), soap.NewClient(u, true))
	s.must(err)
	s.must(vimsession.NewManager(c).Login(s.Context(), s.sim.User()))
	s.Cleanup(func() { c.CloseIdleConnections() })
	return c
}

// slow skips a test that takes thousands of the simulator's ticks, of 20 ms.
func slow(t *testing.T) {
	t.Helper()
	if testing.Short() {
		t.Skip("takes half a minute")
	}
}

// Many at once are made, each once, and go.
func TestFiftyAtOnce(t *testing.T) {
	slow(t)
	s := newScene(t)
	data := s.disk("data")
	var wg sync.WaitGroup
	const many = 50
	for i := range many {
		wg.Go(func() {
			id := fmt.Sprintf("c%02d", i)
			m, err := s.h.Define(t.Context(), spec(id))
			if err == nil {
				_, err = s.h.Define(t.Context(), spec(id))
			}
			if err == nil {
				err = m.PowerOn(t.Context())
			}
			if err != nil {
				t.Error(err)
			}
		})
	}
	wg.Wait()
	ids, err := s.h.List(t.Context())
	if err != nil || len(ids) != many {
		t.Errorf("%d machines, %v", len(ids), err)
	}
	for _, id := range ids {
		wg.Go(func() {
			m, err := s.h.Machine(t.Context(), id)
			if err == nil {
				err = m.Undefine(t.Context())
			}
			if err != nil {
				t.Error(err)
			}
		})
	}
	wg.Wait()
	s.must(s.h.Disks().Delete(t.Context(), data))
	s.left()
}

// calls are those that a machine's and a disk's life makes.
var calls = []string{"CreateVM_Task", "ReconfigVM_Task", "PowerOnVM_Task", "PowerOffVM_Task", "SuspendVM_Task", "Destroy_Task", "MakeDirectory", "MoveDatastoreFile_Task", "DeleteDatastoreFile_Task",
	"CopyVirtualDisk_Task", "ExtendVirtualDisk_Task", "SearchDatastore_Task", "PUT /folder", "GET /folder"}

// volume makes a volume's directory, as a store does, and a machine that uses it, and removes all.
func (s *scene) volume(ctx context.Context, id string) error {
	d := s.h.Disks()
	dir := d.Join(s.dir, id)
	if err := d.CreateDir(ctx, dir, portlayer.DirSpec{Disk: portlayer.DiskSpec{Size: 32 * portlayer.MiB, Label: portlayer.Label(strings.Repeat("ab", 16))}, Name: id + ".vmdk", File: "volume.json", Data: []byte("{}")}); err != nil {
		return err
	}
	if err := s.life(ctx, id, d.Join(dir, id+".vmdk")); err != nil {
		return err
	}
	return d.RemoveDir(ctx, dir)
}

// An answer that is lost makes no second object, and no failure.
func TestLostAnswers(t *testing.T) {
	slow(t)
	s := newScene(t)
	s.must(s.volume(t.Context(), "first"))
	for _, call := range calls {
		id := "c" + strings.ToLower(strings.NewReplacer("_", "", "/", "", " ", "").Replace(call))
		s.sim.LoseAnswer(call)
		if err := s.volume(t.Context(), id); err != nil {
			t.Fatalf("without the answer to %s: %v", call, err)
		}
		s.sim.ClearFaults()
		if ids, err := s.h.List(t.Context()); err != nil || len(ids) != 0 {
			t.Errorf("%s: machines %v, %v", call, ids, err)
		}
		s.left()
	}
}

// The tasks of a server that does not tell of its recent ones are put on a list.
func TestTasksAreListed(t *testing.T) {
	s := sceneAfter(t, func(sim *vcsim.Sim) { // machines, the list, recent tasks
		sim.FailAfter(2, "CreateFilter", &types.InvalidArgument{InvalidProperty: "recentTask"})
	})
	s.sim.Calls(true)
	s.must(s.volume(t.Context(), "first"))
	if c := s.sim.Calls(true); c["ModifyListView"] == 0 {
		t.Errorf("the calls were %v", c)
	}
	s.sim.LoseAnswer("ModifyListView")
	s.must(s.volume(t.Context(), "second"))
	s.sim.ClearFaults()
	s.left()
}

// A session that ends is renewed by who finds it ended, in the middle of whatever.
func TestSessionEnds(t *testing.T) {
	slow(t)
	s := newScene(t)
	s.must(s.volume(t.Context(), "first"))
	stop, ended := make(chan struct{}), make(chan struct{})
	calls := func() (n int) {
		for _, times := range s.sim.Calls(false) {
			n += times
		}
		return n
	}
	times := 0
	go func() {
		defer close(ended)
		for last := calls(); ; {
			select {
			case <-stop:
				return
			case <-time.After(time.Millisecond):
			}
			if now := calls(); now-last >= 25 { // a login and a new question are a dozen
				s.sim.EndSessions()
				last = now
				times++
			}
		}
	}()
	for i := range 4 {
		if err := s.volume(t.Context(), fmt.Sprintf("c%d", i)); err != nil {
			t.Error(err)
		}
	}
	close(stop)
	<-ended
	if times < 4 {
		t.Errorf("only %d sessions ended", times)
	}
	s.left()
}

// A call that fails has its kind, and what was begun is taken back; the next try works.
func TestCallsFail(t *testing.T) {
	slow(t)
	s := newScene(t)
	s.must(s.volume(t.Context(), "first"))
	for _, call := range calls {
		if strings.Contains(call, "/") {
			continue
		}
		id := "c" + strings.ToLower(strings.ReplaceAll(call, "_", ""))
		s.sim.FailOnce(call, &types.NoDiskSpace{FileFault: types.FileFault{File: "x"}, Datastore: "datastore1"})
		err := s.volume(t.Context(), id)
		s.sim.ClearFaults()
		if err != nil {
			s.want(call, err, fault.Unavailable)
		}
		if m, err := s.h.Machine(t.Context(), portlayer.ContainerID(id)); err == nil {
			s.must(m.Undefine(t.Context()))
		}
		s.must(s.h.Disks().RemoveDir(t.Context(), s.h.Disks().Join(s.dir, id)))
		if err := s.volume(t.Context(), id); err != nil {
			t.Errorf("after %s had failed: %v", call, err)
		}
		s.left()
	}
}

// A disk that another machine has open is in use, and the machine is named.
func TestLockedDisk(t *testing.T) {
	s := newScene(t)
	data := s.disk("data")
	holder, err := s.h.Define(t.Context(), spec("holder", data))
	s.must(err)
	s.must(holder.PowerOn(t.Context()))
	rival, err := s.h.Define(t.Context(), spec("rival", data))
	s.must(err)
	s.want("power on", rival.PowerOn(t.Context()), fault.InUse, "web-holder", "data.vmdk")
	s.want("copy", s.h.Disks().Copy(t.Context(), data, s.h.Disks().Join(s.dir, "copy.vmdk"), nil), fault.InUse, "web-holder")
	s.must(holder.Undefine(t.Context()))
	s.must(rival.PowerOn(t.Context()))
	s.must(rival.Undefine(t.Context()))
}

// A machine that somebody removes or changes in vCenter is seen, and what somebody has attached to it is not deleted with it.
func TestBehindOurBack(t *testing.T) {
	s := newScene(t)
	byHand, mine := s.disk("byhand"), s.disk("mine")
	m, err := s.h.Define(t.Context(), spec("abc", mine))
	s.must(err)
	c := s.client()
	vm := object.NewVirtualMachine(c, s.h.watch.find("abc").ref)
	devices, err := vm.Device(t.Context())
	s.must(err)
	controller, err := devices.FindDiskController("")
	s.must(err)
	disk := devices.CreateDisk(controller, types.ManagedObjectReference{}, string(byHand))
	s.must(vm.AddDevice(t.Context(), disk))
	s.must(m.Undefine(t.Context()))
	s.left("byhand.vmdk", "mine.vmdk", "byhand-flat.vmdk", "mine-flat.vmdk")
	for _, p := range []portlayer.DiskPath{byHand, mine} {
		if _, err := s.h.Disks().Stat(t.Context(), p); err != nil {
			t.Errorf("%s went with the machine: %v", p, err)
		}
	}

	// Nor is one that somebody has put where the machine's own was.
	m, err = s.h.Define(t.Context(), spec("swapped"))
	s.must(err)
	vm = object.NewVirtualMachine(c, s.h.watch.find("swapped").ref)
	devices, err = vm.Device(t.Context())
	s.must(err)
	own := devices.SelectByType((*types.VirtualDisk)(nil))[0].(*types.VirtualDisk)
	s.must(vm.RemoveDevice(t.Context(), false, own))
	disk = devices.CreateDisk(controller, types.ManagedObjectReference{}, string(byHand))
	disk.ControllerKey, disk.UnitNumber = own.ControllerKey, own.UnitNumber
	s.must(vm.AddDevice(t.Context(), disk))
	s.must(m.Undefine(t.Context()))
	if _, err := s.h.Disks().Stat(t.Context(), byHand); err != nil {
		t.Errorf("a disk in the place of the machine's own went with it: %v", err)
	}

	m, err = s.h.Define(t.Context(), spec("def"))
	s.must(err)
	vm = object.NewVirtualMachine(c, s.h.watch.find("def").ref)
	s.must(m.PowerOn(t.Context()))
	waited := make(chan error, 1)
	go func() { waited <- m.WaitOff(t.Context()) }()
	task, err := vm.PowerOff(t.Context())
	s.must(err)
	s.must(task.Wait(t.Context()))
	if err := <-waited; err != nil {
		t.Error(err)
	}
	// Who switches a container on in vCenter has a machine whose guest is nobody's: it goes off again.
	task, err = vm.PowerOn(t.Context())
	s.must(err)
	s.must(task.Wait(t.Context()))
	for end := time.Now().Add(10 * time.Second); ; time.Sleep(5 * time.Millisecond) {
		if state, err := vm.PowerState(t.Context()); err == nil && state == types.VirtualMachinePowerStatePoweredOff {
			break
		}
		if time.Now().After(end) {
			t.Fatal("a machine that was switched on by hand stays on")
		}
	}
	task, err = vm.Destroy(t.Context())
	s.must(err)
	s.must(task.Wait(t.Context()))
	for end := time.Now().Add(5 * time.Second); time.Now().Before(end); time.Sleep(time.Millisecond) {
		if _, err = s.h.Machine(t.Context(), "def"); err != nil {
			break
		}
	}
	s.want("a machine that was removed", err, fault.NotFound)
	s.must(m.Undefine(t.Context()))
	// One of another VCH in the same folder is nobody's here.
	o := options(t, s.sim, t.TempDir())
	o.VCH, o.Tether = "another", []byte("a tether")
	other := open(t, o)
	_, err = other.Define(t.Context(), spec("theirs"))
	s.must(err)
	if ids, err := s.h.List(t.Context()); err != nil || len(ids) != 0 {
		t.Errorf("machines of another VCH are taken for one's own: %v, %v", ids, err)
	}
}

// A datastore that is lost is its disks' only.
func TestLostDatastore(t *testing.T) {
	s := newScene(t)
	s.disk("data")
	d := s.h.Disks()
	s.must(d.MakeDir(t.Context(), "[other] dir"))
	s.sim.Datastore("other").Lose()
	var err error
	for end := time.Now().Add(5 * time.Second); err == nil && time.Now().Before(end); time.Sleep(time.Millisecond) {
		_, _, err = d.Space(t.Context(), "[other] dir")
	}
	s.want("a datastore that is lost", err, fault.Unavailable, "other")
	s.must(s.volume(t.Context(), "abc"))
	s.sim.Datastore("other").Restore()
	for end := time.Now().Add(5 * time.Second); err != nil && time.Now().Before(end); time.Sleep(time.Millisecond) {
		_, _, err = d.Space(t.Context(), "[other] dir")
	}
	s.must(err)
}
