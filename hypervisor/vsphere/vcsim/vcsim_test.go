package vcsim_test

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/vmware/govmomi"
	"github.com/vmware/govmomi/fault"
	"github.com/vmware/govmomi/find"
	"github.com/vmware/govmomi/object"
	"github.com/vmware/govmomi/property"
	"github.com/vmware/govmomi/session"
	"github.com/vmware/govmomi/vim25"
	"github.com/vmware/govmomi/vim25/methods"
	"github.com/vmware/govmomi/vim25/mo"
	"github.com/vmware/govmomi/vim25/soap"
	"github.com/vmware/govmomi/vim25/types"
	"go.uber.org/goleak"

	"vch/hypervisor/vsphere/vcsim"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// rig is a simulated vCenter with a client that is logged in.
type rig struct {
	*vcsim.Sim
	*testing.T
	ctx    context.Context
	c      *govmomi.Client
	dc     *object.Datacenter
	ds     *object.Datastore
	folder *object.Folder
	pool   *object.ResourcePool
	files  *object.FileManager
	disks  *object.VirtualDiskManager
}

func start(t *testing.T, o vcsim.Options) *rig {
	t.Helper()
	if o.Dir == "" {
		o.Dir = t.TempDir()
	}
	sim, err := vcsim.Start(o)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := sim.Close(); err != nil {
			t.Error(err)
		}
	})
	ctx, cancel := context.WithTimeout(context.Background(), 2*time.Minute)
	t.Cleanup(cancel)
	r := &rig{Sim: sim, T: t, ctx: ctx}
	r.c = r.login()
	t.Cleanup(r.c.CloseIdleConnections)
	finder := find.NewFinder(r.c.Client)
	must := func(err error) {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
	}
	r.dc, err = finder.Datacenter(ctx, vcsim.Datacenter)
	must(err)
	finder.SetDatacenter(r.dc)
	r.ds, err = finder.DefaultDatastore(ctx)
	if err != nil { // several
		r.ds, err = finder.Datastore(ctx, o.Datastores[0])
	}
	must(err)
	r.pool, err = finder.ResourcePool(ctx, "/"+vcsim.Datacenter+"/host/"+vcsim.Cluster+"/Resources")
	must(err)
	folders, err := r.dc.Folders(ctx)
	must(err)
	r.folder = folders.VmFolder
	r.files, r.disks = object.NewFileManager(r.c.Client), object.NewVirtualDiskManager(r.c.Client)
	return r
}

func (r *rig) login() *govmomi.Client {
	r.Helper()
	sc := soap.NewClient(r.URL(), false)
	sc.SetThumbprint(r.URL().Host, r.ThumbprintSHA1())
	vc, err := vim25.NewClient(r.ctx, sc)
	if err != nil {
		r.Fatal(err)
	}
	c := &govmomi.Client{Client: vc, SessionManager: session.NewManager(vc)}
	if err := c.Login(r.ctx, r.User()); err != nil {
		r.Fatal(err)
	}
	return c
}

// wait waits for a task that has been begun.
func (r *rig) wait(task *object.Task, err error) error {
	if err != nil {
		return err
	}
	return task.Wait(r.ctx)
}

func (r *rig) must(task *object.Task, err error) {
	r.Helper()
	if err := r.wait(task, err); err != nil {
		r.Fatal(err)
	}
}

func (r *rig) mkdir(path string) {
	r.Helper()
	if err := r.files.MakeDirectory(r.ctx, path, r.dc, true); err != nil {
		r.Fatal(err)
	}
}

func (r *rig) newDisk(path string, kb int64) {
	r.Helper()
	r.must(r.disks.CreateVirtualDisk(r.ctx, path, r.dc, thin(kb)))
}

func thin(kb int64) *types.FileBackedVirtualDiskSpec {
	return &types.FileBackedVirtualDiskSpec{VirtualDiskSpec: types.VirtualDiskSpec{DiskType: "thin", AdapterType: "lsiLogic"}, CapacityKb: kb}
}

// is fails the test unless err is the fault want is one of.
func is[F types.BaseMethodFault](t *testing.T, err error) (f F) {
	t.Helper()
	if _, ok := fault.As(err, &f); !ok {
		t.Fatalf("%v (%T) is not a %T", err, err, f)
	}
	return f
}

func size(t *testing.T, path string) int64 {
	t.Helper()
	st, err := os.Stat(path)
	if err != nil {
		t.Fatal(err)
	}
	return st.Size()
}

// A disk has its size, takes no room, and is made once, however many ask at once.
func TestDisks(t *testing.T) {
	r := start(t, vcsim.Options{})
	const kb = 10 << 20
	r.mkdir("[datastore1] volumes/a")
	var wg sync.WaitGroup
	errs := make(chan error, 8)
	for range cap(errs) {
		wg.Go(func() {
			errs <- r.wait(r.disks.CreateVirtualDisk(r.ctx, "[datastore1] volumes/a/a.vmdk", r.dc, thin(kb)))
		})
	}
	wg.Wait()
	won := 0
	for range cap(errs) {
		if err := <-errs; err == nil {
			won++
		} else {
			is[*types.FileAlreadyExists](t, err)
		}
	}
	if won != 1 {
		t.Errorf("%d of %d made the disk", won, cap(errs))
	}
	flat := r.Path("[datastore1] volumes/a/a-flat.vmdk")
	if n := size(t, flat); n != kb<<10 {
		t.Errorf("the extent has %d bytes", n)
	}
	if err := os.WriteFile(filepath.Join(filepath.Dir(flat), "volume.json"), []byte("{}"), 0o600); err != nil {
		t.Fatal(err)
	}
	write(t, flat, "hello", 5<<30)

	if err := r.wait(r.disks.CreateVirtualDisk(r.ctx, "[datastore1] nowhere/a.vmdk", r.dc, thin(kb))); err == nil {
		t.Error("a disk in no directory")
	} else {
		is[*types.FileNotFound](t, err)
	}
	is[*types.InvalidDatastore](t, r.wait(r.disks.CreateVirtualDisk(r.ctx, "[other] a.vmdk", r.dc, thin(kb))))

	r.must(r.disks.ExtendVirtualDisk(r.ctx, "[datastore1] volumes/a/a.vmdk", r.dc, 2*kb, nil))
	if n := size(t, flat); n != 2*kb<<10 {
		t.Errorf("grown, the extent has %d bytes", n)
	}
	if err := r.wait(r.disks.ExtendVirtualDisk(r.ctx, "[datastore1] volumes/a/a.vmdk", r.dc, kb, nil)); err == nil {
		t.Error("a disk was made smaller")
	}

	for range cap(errs) {
		wg.Go(func() {
			errs <- r.wait(r.disks.CopyVirtualDisk(r.ctx, "[datastore1] volumes/a/a.vmdk", r.dc, "[datastore1] volumes/a/b.vmdk", r.dc, nil, false))
		})
	}
	wg.Wait()
	won = 0
	for range cap(errs) {
		if err := <-errs; err == nil {
			won++
		} else {
			is[*types.FileAlreadyExists](t, err)
		}
	}
	if won != 1 {
		t.Errorf("%d of %d copied the disk", won, cap(errs))
	}
	copied := r.Path("[datastore1] volumes/a/b-flat.vmdk")
	if got := read(t, copied, 5, 5<<30); got != "hello" || size(t, copied) != 2*kb<<10 {
		t.Errorf("the copy holds %q, and has %d bytes", got, size(t, copied))
	}
	if text, err := os.ReadFile(r.Path("[datastore1] volumes/a/b.vmdk")); err != nil || !strings.Contains(string(text), `"b-flat.vmdk"`) {
		t.Errorf("the copy's descriptor: %v\n%s", err, text)
	}
	is[*types.FileNotFound](t, r.wait(r.disks.CopyVirtualDisk(r.ctx, "[datastore1] no.vmdk", r.dc, "[datastore1] c.vmdk", r.dc, nil, false)))

	r.must(r.disks.MoveVirtualDisk(r.ctx, "[datastore1] volumes/a/b.vmdk", r.dc, "[datastore1] volumes/a/c.vmdk", r.dc, false))
	if err := os.Remove(r.Path("[datastore1] volumes/a/c-flat.vmdk")); err != nil {
		t.Fatal(err)
	}
	r.must(r.disks.DeleteVirtualDisk(r.ctx, "[datastore1] volumes/a/c.vmdk", r.dc))
	is[*types.FileNotFound](t, r.wait(r.disks.DeleteVirtualDisk(r.ctx, "[datastore1] volumes/a/c.vmdk", r.dc)))
	r.must(r.disks.DeleteVirtualDisk(r.ctx, "[datastore1] volumes/a/a.vmdk", r.dc))
	if left := r.Left(); len(left) != 1 || left[0] != "[datastore1] volumes/a/volume.json" {
		t.Errorf("left: %q", left)
	}
	if calls := r.Calls(true); calls["CopyVirtualDisk_Task"] != cap(errs)+1 || calls["RetrieveServiceContent"] == 0 {
		t.Errorf("calls: %v", calls)
	}
	if calls := r.Calls(false); len(calls) != 0 {
		t.Errorf("calls after a reset: %v", calls)
	}
}

func write(t *testing.T, path, text string, at int64) {
	t.Helper()
	f, err := os.OpenFile(path, os.O_WRONLY, 0)
	if err == nil {
		_, err = f.WriteAt([]byte(text), at)
		err = errors.Join(err, f.Close())
	}
	if err != nil {
		t.Fatal(err)
	}
}

func read(t *testing.T, path string, n int, at int64) string {
	t.Helper()
	f, err := os.Open(path)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	buf := make([]byte, n)
	if _, err := f.ReadAt(buf, at); err != nil {
		t.Fatal(err)
	}
	return string(buf)
}

// Names are taken by one.
func TestFiles(t *testing.T) {
	r := start(t, vcsim.Options{})
	r.mkdir("[datastore1] a/b/c")
	is[*types.FileAlreadyExists](t, r.files.MakeDirectory(r.ctx, "[datastore1] a/b", r.dc, true))
	is[*types.FileNotFound](t, r.files.MakeDirectory(r.ctx, "[datastore1] x/y", r.dc, false))
	const n = 8
	for i := range n {
		r.mkdir(fmt.Sprintf("[datastore1] from%d", i))
	}
	var wg sync.WaitGroup
	errs := make(chan error, n)
	for i := range n {
		wg.Go(func() {
			errs <- r.wait(r.files.MoveDatastoreFile(r.ctx, fmt.Sprintf("[datastore1] from%d", i), r.dc, "[datastore1] to", r.dc, false))
		})
	}
	wg.Wait()
	won := 0
	for range n {
		if err := <-errs; err == nil {
			won++
		} else {
			is[*types.FileAlreadyExists](t, err)
		}
	}
	if won != 1 {
		t.Errorf("%d of %d moved", won, n)
	}
	is[*types.FileNotFound](t, r.wait(r.files.MoveDatastoreFile(r.ctx, "[datastore1] no", r.dc, "[datastore1] to2", r.dc, false)))
	r.must(r.files.DeleteDatastoreFile(r.ctx, "[datastore1] a", r.dc))
	is[*types.FileNotFound](t, r.wait(r.files.DeleteDatastoreFile(r.ctx, "[datastore1] a", r.dc)))
	is[*types.InvalidDatastorePath](t, r.wait(r.files.DeleteDatastoreFile(r.ctx, "[datastore1] ../other", r.dc)))
	is[*types.InvalidDatastorePath](t, r.wait(r.files.DeleteDatastoreFile(r.ctx, "[datastore1]", r.dc)))
}

// A disk is one file to who asks for types; its capacity is told to who asks for that, and for nothing that the query does not name.
func TestBrowser(t *testing.T) {
	for _, extents := range []bool{false, true} {
		r := start(t, vcsim.Options{Extents: extents})
		r.mkdir("[datastore1] a/b")
		r.newDisk("[datastore1] a/b/d.vmdk", 1<<20)
		write(t, r.Path("[datastore1] a/b/d-flat.vmdk"), strings.Repeat("x", 4096), 1<<20)
		if err := r.ds.Upload(r.ctx, strings.NewReader("{}"), "a/b/volume.json", nil); err != nil {
			t.Fatal(err)
		}
		b, err := r.ds.Browser(r.ctx)
		if err != nil {
			t.Fatal(err)
		}
		spec := &types.HostDatastoreBrowserSearchSpec{MatchPattern: []string{"*.vmdk", "volume.json"}, Details: &types.FileQueryFlags{FileType: true, FileSize: true, Modification: true}}
		capacity := int64(0)
		list := func(all []types.HostDatastoreBrowserSearchResults) string {
			var out []string
			for _, in := range all {
				for _, f := range in.File {
					size := f.GetFileInfo().FileSize
					if d, ok := f.(*types.VmDiskFileInfo); ok && (size == 0 || size > 1<<20 || d.CapacityKb != capacity) {
						t.Errorf("%+v", d)
					}
					out = append(out, fmt.Sprintf("%s %s %T", in.FolderPath, f.GetFileInfo().Path, f))
				}
			}
			return strings.Join(out, "\n")
		}
		result := func(task *object.Task, err error) any {
			t.Helper()
			if err != nil {
				t.Fatal(err)
			}
			info, err := task.WaitForResult(r.ctx)
			if err != nil {
				t.Fatal(err)
			}
			return info.Result
		}
		want := "[datastore1] a/b/ d.vmdk *types.VmDiskFileInfo\n[datastore1] a/b/ volume.json *types.FileInfo"
		if extents {
			want = "[datastore1] a/b/ d-flat.vmdk *types.FileInfo\n" + want
		}
		if got := list(result(b.SearchDatastoreSubFolders(r.ctx, "[datastore1] a", spec)).(types.ArrayOfHostDatastoreBrowserSearchResults).HostDatastoreBrowserSearchResults); got != want {
			t.Errorf("%s", got)
		}
		one := result(b.SearchDatastore(r.ctx, "[datastore1] a/b", spec)).(types.HostDatastoreBrowserSearchResults)
		if got := list([]types.HostDatastoreBrowserSearchResults{one}); got != strings.ReplaceAll(want, "b/ ", "b ") {
			t.Errorf("%s", got)
		}
		capacity = 1 << 20
		asking := *spec
		asking.Query = []types.BaseFileQuery{&types.VmDiskFileQuery{Details: &types.VmDiskFileQueryFlags{CapacityKb: true}}}
		one = result(b.SearchDatastore(r.ctx, "[datastore1] a/b", &asking)).(types.HostDatastoreBrowserSearchResults)
		if got := list([]types.HostDatastoreBrowserSearchResults{one}); got != "[datastore1] a/b d.vmdk *types.VmDiskFileInfo" {
			t.Errorf("%s", got)
		}
		is[*types.FileNotFound](t, r.wait(b.SearchDatastore(r.ctx, "[datastore1] no", spec)))
		r.Datastore("datastore1").Lose()
		is[*types.InaccessibleDatastore](t, r.wait(b.SearchDatastore(r.ctx, "[datastore1] a", spec)))
	}
}

// What is put comes back, byte for byte.
func TestFolder(t *testing.T) {
	r := start(t, vcsim.Options{})
	r.mkdir("[datastore1] a dir/b")
	for _, name := range []string{"plain", "a dir/b/with a space & ü.json", "a dir/index.html"} {
		for _, content := range []string{"first, which is longer", "second", ""} {
			if err := r.ds.Upload(r.ctx, strings.NewReader(content), name, nil); err != nil {
				t.Fatal(err)
			}
			body, n, err := r.ds.Download(r.ctx, name, nil)
			if err != nil {
				t.Fatal(err)
			}
			got, err := io.ReadAll(body)
			body.Close()
			if err != nil || string(got) != content || n != int64(len(content)) {
				t.Errorf("%s: %q, length %d, %v", name, got, n, err)
			}
			res, err := r.c.DownloadRequest(r.ctx, r.ds.NewURL(name), &soap.Download{Method: http.MethodHead})
			if err != nil {
				t.Fatal(err)
			}
			res.Body.Close()
			if res.StatusCode != http.StatusOK || res.ContentLength != int64(len(content)) {
				t.Errorf("HEAD %s: %s, length %d", name, res.Status, res.ContentLength)
			}
		}
	}
	if _, _, err := r.ds.Download(r.ctx, "no", nil); err == nil || !strings.Contains(err.Error(), "404") {
		t.Errorf("a file that is not there: %v", err)
	}
	if err := r.ds.Upload(r.ctx, strings.NewReader("x"), "no/such/dir", nil); err == nil || !strings.Contains(err.Error(), "404") {
		t.Errorf("a file in a directory that is not there: %v", err)
	}
	u := *r.ds.NewURL("plain")
	res, err := (&http.Client{Transport: r.c.DefaultTransport()}).Get(u.String())
	if err != nil {
		t.Fatal(err)
	}
	res.Body.Close()
	if res.StatusCode != http.StatusUnauthorized {
		t.Errorf("who is not logged in gets %s", res.Status)
	}
	if calls := r.Calls(false); calls["PUT /folder"] != 10 || calls["HEAD /folder"] != 9 {
		t.Errorf("calls: %v", calls)
	}
}

// machine is a VM with a SCSI adapter and a disk of its own.
func (r *rig) machine(name string, more ...types.BaseVirtualDevice) (*object.VirtualMachine, error) {
	adapter := &types.ParaVirtualSCSIController{VirtualSCSIController: types.VirtualSCSIController{SharedBus: types.VirtualSCSISharingNoSharing,
		VirtualController: types.VirtualController{BusNumber: 0, VirtualDevice: types.VirtualDevice{Key: 1000}}}}
	spec := types.VirtualMachineConfigSpec{Name: name, GuestId: "other5xLinux64Guest", NumCPUs: 1, MemoryMB: 128,
		Files: &types.VirtualMachineFileInfo{VmPathName: "[datastore1]"}}
	for i, d := range append([]types.BaseVirtualDevice{adapter}, more...) {
		c := &types.VirtualDeviceConfigSpec{Operation: types.VirtualDeviceConfigSpecOperationAdd, Device: d}
		if disk, ok := d.(*types.VirtualDisk); ok && disk.CapacityInKB > 0 {
			c.FileOperation = types.VirtualDeviceConfigSpecFileOperationCreate
			disk.Key = int32(-i)
		}
		spec.DeviceChange = append(spec.DeviceChange, c)
	}
	task, err := r.folder.CreateVM(r.ctx, spec, r.pool, nil)
	if err != nil {
		return nil, err
	}
	info, err := task.WaitForResult(r.ctx)
	if err != nil {
		return nil, err
	}
	return object.NewVirtualMachine(r.c.Client, info.Result.(types.ManagedObjectReference)), nil
}

// disk is a disk for unit; kb is 0 for one that is there.
func newDisk(file string, unit int32, kb int64, mode types.VirtualDiskMode) *types.VirtualDisk {
	return &types.VirtualDisk{CapacityInKB: kb, VirtualDevice: types.VirtualDevice{Key: -1, ControllerKey: 1000, UnitNumber: &unit,
		Backing: &types.VirtualDiskFlatVer2BackingInfo{DiskMode: string(mode), VirtualDeviceFileBackingInfo: types.VirtualDeviceFileBackingInfo{FileName: file}}}}
}

func (r *rig) config(vm *object.VirtualMachine) mo.VirtualMachine {
	r.Helper()
	var o mo.VirtualMachine
	if err := property.DefaultCollector(r.c.Client).RetrieveOne(r.ctx, vm.Reference(), []string{"config", "runtime", "summary"}, &o); err != nil {
		r.Fatal(err)
	}
	return o
}

func (r *rig) attach(vm *object.VirtualMachine, d *types.VirtualDisk) error {
	return r.wait(vm.Reconfigure(r.ctx, types.VirtualMachineConfigSpec{DeviceChange: []types.BaseVirtualDeviceConfigSpec{
		&types.VirtualDeviceConfigSpec{Operation: types.VirtualDeviceConfigSpecOperationAdd, Device: d}}}))
}

// A VM comes with its files and goes with them.
func TestVMs(t *testing.T) {
	r := start(t, vcsim.Options{})
	const persistent = types.VirtualDiskModePersistent
	vm, err := r.machine("one", newDisk("", 0, 1<<20, persistent))
	if err != nil {
		t.Fatal(err)
	}
	if n := size(t, r.Path("[datastore1] one/one-flat.vmdk")); n != 1<<30 {
		t.Errorf("its disk's extent has %d bytes", n)
	}
	_, err = r.machine("one")
	is[*types.DuplicateName](t, err)
	_, err = r.machine("two", newDisk("", 7, 1<<20, persistent))
	is[*types.InvalidDeviceSpec](t, err)
	_, err = r.machine("three", newDisk("[datastore1] no/no.vmdk", 0, 0, persistent))
	is[*types.FileNotFound](t, err)
	for _, left := range r.Left() {
		if !strings.Contains(left, "one") {
			t.Errorf("left of a VM that was not made: %s", left)
		}
	}

	r.mkdir("[datastore1] v")
	r.newDisk("[datastore1] v/v.vmdk", 2<<20)
	if err := r.attach(vm, newDisk("[datastore1] v/v.vmdk", 1, 0, persistent)); err != nil {
		t.Fatal(err)
	}
	o := r.config(vm)
	disks := object.VirtualDeviceList(o.Config.Hardware.Device).SelectByType((*types.VirtualDisk)(nil))
	if len(disks) != 2 || disks[1].(*types.VirtualDisk).CapacityInBytes != 2<<30 {
		t.Fatalf("disks: %v", disks)
	}
	is[*types.ConcurrentAccess](t, r.wait(vm.Reconfigure(r.ctx, types.VirtualMachineConfigSpec{ChangeVersion: "old", Annotation: "x"})))
	r.must(vm.Reconfigure(r.ctx, types.VirtualMachineConfigSpec{ChangeVersion: o.Config.ChangeVersion, Annotation: "x"}))

	r.must(vm.PowerOn(r.ctx))
	is[*types.InvalidPowerState](t, r.wait(vm.PowerOn(r.ctx)))
	is[*types.InvalidPowerState](t, r.wait(vm.Destroy(r.ctx)))
	o = r.config(vm)
	adapter := object.VirtualDeviceList(o.Config.Hardware.Device).FindByKey(1000).GetVirtualDevice()
	if slot, ok := adapter.SlotInfo.(*types.VirtualDevicePciBusSlotInfo); !ok || slot.PciSlotNumber != 160 || o.Runtime.PowerState != types.VirtualMachinePowerStatePoweredOn {
		t.Errorf("slot %#v, power %s", adapter.SlotInfo, o.Runtime.PowerState)
	}

	// Grown while it runs.
	d := *object.VirtualDeviceList(o.Config.Hardware.Device).SelectByType((*types.VirtualDisk)(nil))[1].(*types.VirtualDisk)
	d.CapacityInKB, d.CapacityInBytes = 3<<20, 3<<30
	r.must(vm.Reconfigure(r.ctx, types.VirtualMachineConfigSpec{DeviceChange: []types.BaseVirtualDeviceConfigSpec{
		&types.VirtualDeviceConfigSpec{Operation: types.VirtualDeviceConfigSpecOperationEdit, Device: &d}}}))
	if n := size(t, r.Path("[datastore1] v/v-flat.vmdk")); n != 3<<30 {
		t.Errorf("grown, the extent has %d bytes", n)
	}

	// Detached, it stays.
	r.must(vm.Reconfigure(r.ctx, types.VirtualMachineConfigSpec{DeviceChange: []types.BaseVirtualDeviceConfigSpec{
		&types.VirtualDeviceConfigSpec{Operation: types.VirtualDeviceConfigSpecOperationRemove, Device: &types.VirtualDisk{VirtualDevice: types.VirtualDevice{Key: d.Key}}}}}))
	r.must(r.files.MoveDatastoreFile(r.ctx, "[datastore1] v", r.dc, "[datastore1] w", r.dc, false))
	r.must(vm.PowerOff(r.ctx))
	r.must(vm.Destroy(r.ctx))
	if left := strings.Join(r.Left(), "\n"); left != "[datastore1] w/v-flat.vmdk\n[datastore1] w/v.vmdk" {
		t.Errorf("left:\n%s", left)
	}
	is[*types.ManagedObjectNotFound](t, r.wait(vm.PowerOn(r.ctx)))
}

// What a machine that runs has open is its own.
func TestLocks(t *testing.T) {
	r := start(t, vcsim.Options{})
	r.mkdir("[datastore1] v")
	r.newDisk("[datastore1] v/v.vmdk", 1<<20)
	r.newDisk("[datastore1] v/image.vmdk", 1<<20)
	var vms []*object.VirtualMachine
	for _, name := range []string{"one", "two"} {
		vm, err := r.machine(name, newDisk("[datastore1] v/v.vmdk", 0, 0, types.VirtualDiskModeIndependent_persistent),
			newDisk("[datastore1] v/image.vmdk", 1, 0, types.VirtualDiskModeIndependent_nonpersistent))
		if err != nil {
			t.Fatal(err)
		}
		vms = append(vms, vm)
	}
	third, err := r.machine("three", newDisk("[datastore1] v/image.vmdk", 1, 0, types.VirtualDiskModeIndependent_nonpersistent))
	if err != nil {
		t.Fatal(err)
	}
	r.must(vms[0].PowerOn(r.ctx))
	r.must(third.PowerOn(r.ctx))
	isLocked := func(err error) {
		t.Helper()
		f := is[*types.GenericVmConfigFault](t, err)
		var keys []string
		for _, m := range f.FaultMessage {
			keys = append(keys, m.Key)
		}
		if got := strings.Join(keys, " "); got != "msg.fileio.lock msg.disk.noBackEnd msg.moduletable.powerOnFailed" || f.FaultMessage[1].Arg[0].Value != "/vmfs/volumes/datastore1/v/v.vmdk" {
			t.Errorf("%s: %+v", got, f.FaultMessage)
		}
		if !strings.Contains(err.Error(), "Failed to lock the file") {
			t.Errorf("its text: %v", err)
		}
	}
	isLocked(r.wait(vms[1].PowerOn(r.ctx)))
	isLocked(r.attach(third, newDisk("[datastore1] v/v.vmdk", 0, 0, types.VirtualDiskModePersistent)))
	is[*types.FileLocked](t, r.wait(r.disks.ExtendVirtualDisk(r.ctx, "[datastore1] v/v.vmdk", r.dc, 2<<20, nil)))
	is[*types.FileLocked](t, r.wait(r.disks.DeleteVirtualDisk(r.ctx, "[datastore1] v/image.vmdk", r.dc)))
	is[*types.FileLocked](t, r.wait(r.disks.CopyVirtualDisk(r.ctx, "[datastore1] v/v.vmdk", r.dc, "[datastore1] v/copy.vmdk", r.dc, nil, false)))
	is[*types.FileLocked](t, r.wait(r.files.MoveDatastoreFile(r.ctx, "[datastore1] v", r.dc, "[datastore1] w", r.dc, false)))
	is[*types.FileLocked](t, r.wait(r.files.DeleteDatastoreFile(r.ctx, "[datastore1] v", r.dc)))
	is[*types.FileLocked](t, r.wait(vms[1].Destroy(r.ctx)))
	r.must(r.disks.CopyVirtualDisk(r.ctx, "[datastore1] v/image.vmdk", r.dc, "[datastore1] v/copy.vmdk", r.dc, nil, false))
	r.must(vms[0].PowerOff(r.ctx))
	r.must(vms[1].PowerOn(r.ctx))
	r.must(vms[1].PowerOff(r.ctx))
	r.must(r.disks.DeleteVirtualDisk(r.ctx, "[datastore1] v/v.vmdk", r.dc))
	f := is[*types.FileNotFound](t, r.wait(vms[1].PowerOn(r.ctx)))
	if f.File != "[datastore1] v/v.vmdk" || len(f.FaultMessage) == 0 {
		t.Errorf("%+v", f)
	}
}

// A datastore that hosts do not see fails what needs it.
func TestLostDatastore(t *testing.T) {
	r := start(t, vcsim.Options{Datastores: []string{"datastore1", "other"}, Hosts: 2})
	r.mkdir("[other] v")
	r.newDisk("[other] v/v.vmdk", 1<<20)
	vm, err := r.machine("one", newDisk("[other] v/v.vmdk", 0, 0, types.VirtualDiskModePersistent))
	if err != nil {
		t.Fatal(err)
	}
	finder := find.NewFinder(r.c.Client)
	finder.SetDatacenter(r.dc)
	other, err := finder.Datastore(r.ctx, "other")
	if err != nil {
		t.Fatal(err)
	}
	summary := func() types.DatastoreSummary {
		var o mo.Datastore
		if err := other.Properties(r.ctx, other.Reference(), []string{"summary"}, &o); err != nil {
			t.Fatal(err)
		}
		return o.Summary
	}
	if s := summary(); !s.Accessible || s.FreeSpace <= 0 || s.FreeSpace >= s.Capacity {
		t.Errorf("%+v", s)
	}
	r.Datastore("other").Lose()
	if s := summary(); s.Accessible {
		t.Errorf("lost: %+v", s)
	}
	is[*types.InaccessibleDatastore](t, r.files.MakeDirectory(r.ctx, "[other] w", r.dc, true))
	is[*types.InaccessibleDatastore](t, r.wait(r.disks.CreateVirtualDisk(r.ctx, "[other] w.vmdk", r.dc, thin(1<<20))))
	is[*types.CannotAccessFile](t, r.wait(vm.PowerOn(r.ctx)))
	if err := other.Upload(r.ctx, strings.NewReader("x"), "x", nil); err == nil || !strings.Contains(err.Error(), "500") {
		t.Errorf("an upload: %v", err)
	}
	r.Datastore("other").Restore()
	r.Datastore("datastore1").Lose() // its own
	if o := r.config(vm); o.Runtime.ConnectionState != types.VirtualMachineConnectionStateInaccessible {
		t.Errorf("a VM on a datastore that is lost: %s", o.Runtime.ConnectionState)
	}
	is[*types.InvalidState](t, r.wait(vm.PowerOn(r.ctx)))
	r.Datastore("datastore1").Restore()
	if o := r.config(vm); o.Runtime.ConnectionState != types.VirtualMachineConnectionStateConnected {
		t.Errorf("a VM on a datastore that is back: %s", o.Runtime.ConnectionState)
	}
	r.must(vm.PowerOn(r.ctx))
}

// What a test asks to go wrong does.
func TestFaults(t *testing.T) {
	r := start(t, vcsim.Options{})
	vm, err := r.machine("one")
	if err != nil {
		t.Fatal(err)
	}
	r.FailOnce("PowerOnVM_Task", &types.InsufficientResourcesFault{})
	task, err := vm.PowerOn(r.ctx)
	if err != nil {
		t.Fatalf("the call failed, not the task: %v", err)
	}
	is[*types.InsufficientResourcesFault](t, task.Wait(r.ctx))
	r.FailAfter(1, "MakeDirectory", &types.NoPermission{})
	r.mkdir("[datastore1] a")
	is[*types.NoPermission](t, r.files.MakeDirectory(r.ctx, "[datastore1] b", r.dc, true))

	// It is done, and who asked does not know.
	r.LoseAnswer("MakeDirectory")
	err = r.files.MakeDirectory(r.ctx, "[datastore1] b", r.dc, true)
	var cut *url.Error
	if !errors.As(err, &cut) {
		t.Errorf("a lost answer: %v", err)
	}
	is[*types.FileAlreadyExists](t, r.files.MakeDirectory(r.ctx, "[datastore1] b", r.dc, true))
	r.LoseAnswer("PUT /folder")
	if err := r.ds.Upload(r.ctx, strings.NewReader("content"), "a/file", nil); err == nil {
		t.Error("a lost answer to an upload is no error")
	}
	if got := read(t, r.Path("[datastore1] a/file"), 7, 0); got != "content" {
		t.Errorf("%q", got)
	}

	r.Hang("MakeDirectory")
	ctx, cancel := context.WithTimeout(r.ctx, 100*time.Millisecond)
	defer cancel()
	if err := r.files.MakeDirectory(ctx, "[datastore1] c", r.dc, true); !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("a call that hangs: %v", err)
	}
	r.Unhang("MakeDirectory")
	r.Delay("PowerOnVM_Task", 50*time.Millisecond)
	begin := time.Now()
	r.must(vm.PowerOn(r.ctx))
	if d := time.Since(begin); d < 50*time.Millisecond {
		t.Errorf("a call with a delay took %v", d)
	}

	waits := make(chan error, 1)
	go func() {
		waits <- property.Wait(r.ctx, property.DefaultCollector(r.c.Client), vm.Reference(), []string{"name"}, func([]types.PropertyChange) bool { return false })
	}()
	for r.Calls(false)["WaitForUpdatesEx"] < 2 {
		time.Sleep(time.Millisecond)
	}
	r.EndSessions()
	is[*types.NotAuthenticated](t, <-waits)
	_, err = vm.PowerOff(r.ctx)
	is[*types.NotAuthenticated](t, err)
	if err := r.ds.Upload(r.ctx, bytes.NewReader(nil), "a/file", nil); err == nil || !strings.Contains(err.Error(), "401") {
		t.Errorf("an upload without a session: %v", err)
	}
	if err := r.c.Login(r.ctx, r.User()); err != nil {
		t.Fatal(err)
	}
	r.must(vm.PowerOff(r.ctx))
	if err := r.c.Login(r.ctx, url.UserPassword("x", "y")); err == nil {
		t.Error("a wrong password is let in")
	}
	if _, err := methods.GetCurrentTime(r.ctx, r.c.Client); err != nil {
		t.Error(err)
	}
}

// A machine that ends by itself is off, and its files are free.
func TestFail(t *testing.T) {
	r := start(t, vcsim.Options{})
	vm, err := r.machine("one", newDisk("", 0, 1<<20, types.VirtualDiskModePersistent))
	if err != nil {
		t.Fatal(err)
	}
	r.must(vm.PowerOn(r.ctx))
	r.Fail("one")
	if err := property.Wait(r.ctx, property.DefaultCollector(r.c.Client), vm.Reference(), []string{"runtime.powerState"}, func(all []types.PropertyChange) bool {
		return all[0].Val == types.VirtualMachinePowerStatePoweredOff
	}); err != nil {
		t.Fatal(err)
	}
	r.must(r.disks.ExtendVirtualDisk(r.ctx, "[datastore1] one/one.vmdk", r.dc, 2<<20, nil))
	r.must(vm.PowerOn(r.ctx))
}

// slow are machines that take until they are let to start.
type slow struct {
	vcsim.Null
	begun, let chan struct{}
}

func (s slow) Start(ctx context.Context, m vcsim.Machine, off func()) (vcsim.Running, error) {
	s.begun <- struct{}{}
	<-s.let
	return s.Null.Start(ctx, m, off)
}

// A VM has one task at a time, and others go on meanwhile.
func TestTaskInProgress(t *testing.T) {
	machines := slow{begun: make(chan struct{}), let: make(chan struct{})}
	r := start(t, vcsim.Options{Machines: machines})
	vm, err := r.machine("one")
	if err != nil {
		t.Fatal(err)
	}
	task, err := vm.PowerOn(r.ctx)
	if err != nil {
		t.Fatal(err)
	}
	<-machines.begun
	if f := is[*types.TaskInProgress](t, r.wait(vm.Reconfigure(r.ctx, types.VirtualMachineConfigSpec{Annotation: "x"}))); f.Task != task.Reference() {
		t.Errorf("the task in progress: %v, not %v", f.Task, task.Reference())
	}
	if o := r.config(vm); o.Runtime.PowerState != types.VirtualMachinePowerStatePoweredOff {
		t.Errorf("not started yet, and %s", o.Runtime.PowerState)
	}
	if _, err := r.machine("two"); err != nil {
		t.Error(err)
	}
	machines.let <- struct{}{}
	r.must(task, nil)
	r.must(vm.Suspend(r.ctx))
	is[*types.InvalidPowerState](t, r.attach(vm, newDisk("[datastore1] no.vmdk", 0, 0, types.VirtualDiskModePersistent)))
	r.must(vm.PowerOn(r.ctx))
}

// Many at once do not get into each other's way.
func TestMany(t *testing.T) {
	r := start(t, vcsim.Options{Datastores: []string{"datastore1", "other"}, Hosts: 2})
	var wg sync.WaitGroup
	for i := range 6 {
		wg.Go(func() {
			for j := range 3 {
				name := fmt.Sprintf("vm%d-%d", i, j)
				err := func() error {
					file := "[other] " + name + ".vmdk"
					if err := r.wait(r.disks.CreateVirtualDisk(r.ctx, file, r.dc, thin(1<<20))); err != nil {
						return err
					}
					vm, err := r.machine(name, newDisk("", 0, 1<<20, types.VirtualDiskModePersistent))
					if err != nil {
						return err
					}
					for _, step := range []func() error{
						func() error { return r.wait(vm.PowerOn(r.ctx)) },
						func() error { return r.attach(vm, newDisk(file, 1, 0, types.VirtualDiskModePersistent)) },
						func() error { return r.wait(vm.PowerOff(r.ctx)) },
						func() error { return r.wait(vm.Destroy(r.ctx)) },
					} {
						if err := step(); err != nil {
							return err
						}
					}
					return nil
				}()
				if err != nil {
					t.Errorf("%s: %v", name, err)
				}
			}
		})
	}
	wg.Wait()
	if left := r.Left(); len(left) > 0 {
		t.Errorf("left: %q", left)
	}
}

// A wait for updates ends with its client, and with the sim.
func TestWaiting(t *testing.T) {
	r := start(t, vcsim.Options{})
	vm, err := r.machine("one")
	if err != nil {
		t.Fatal(err)
	}
	for range 2 {
		ctx, cancel := context.WithTimeout(r.ctx, 100*time.Millisecond)
		err = property.Wait(ctx, property.DefaultCollector(r.c.Client), vm.Reference(), []string{"runtime.powerState"}, func([]types.PropertyChange) bool { return false })
		cancel()
		if err == nil {
			t.Error("nothing has changed")
		}
	}
	on := make(chan error, 1)
	go func() {
		on <- property.Wait(r.ctx, property.DefaultCollector(r.c.Client), vm.Reference(), []string{"runtime.powerState"}, func(all []types.PropertyChange) bool {
			return all[0].Val == types.VirtualMachinePowerStatePoweredOn
		})
	}()
	r.must(vm.PowerOn(r.ctx))
	if err := <-on; err != nil {
		t.Error(err)
	}
	go func() {
		on <- property.Wait(r.ctx, property.DefaultCollector(r.c.Client), vm.Reference(), []string{"name"}, func([]types.PropertyChange) bool { return false })
	}()
	if err := r.Close(); err != nil {
		t.Error(err)
	}
	<-on
}
