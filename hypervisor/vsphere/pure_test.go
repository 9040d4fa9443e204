package vsphere

import (
	"fmt"
	"net"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/vmware/govmomi/task"
	"github.com/vmware/govmomi/vim25/soap"
	"github.com/vmware/govmomi/vim25/types"

	"vch/guest"
	"vch/internal/fault"
	"vch/portlayer"
)

// Disks get the first places that are free, keep them, and never the controller's own.
func TestPlaces(t *testing.T) {
	var disks []portlayer.Disk
	for i := range maxDisks {
		disks = append(disks, portlayer.Disk{Serial: fmt.Sprint("d", i), File: "[s] x"})
	}
	full, err := definition{}.with(disks)
	if err != nil {
		t.Fatal(err)
	}
	seen := map[[2]int32]bool{}
	for i, p := range full.Disks {
		at := [2]int32{p.Bus, p.Unit}
		if p.Unit == ownUnit || p.Unit > 15 || p.Bus >= maxControllers || seen[at] || p.Serial != disks[i].Serial {
			t.Errorf("disk %d is at %v", i, at)
		}
		seen[at] = true
	}
	if seat := full.seats()["d15"]; seat.Slot != 224 || seat.Unit != 0 {
		t.Errorf("the sixteenth is in %+v", seat)
	}
	if _, err := full.with(append(disks, portlayer.Disk{Serial: "more", File: "[s] x"})); !fault.Is(err, fault.Invalid) || !strings.Contains(err.Error(), "at most 60 disks, on 4 SCSI controllers with 15 each") {
		t.Errorf("one more: %v", err)
	}
	// One goes, another comes: all others stay, and it comes where there is room.
	rest := slices.Delete(slices.Clone(disks), 3, 4)
	changed, err := full.with(append(rest, portlayer.Disk{Serial: "new", File: "[s] x"}))
	if err != nil {
		t.Fatal(err)
	}
	for _, p := range changed.Disks {
		if p.Serial == "new" {
			if p.Bus != 0 || p.Unit != 3 {
				t.Errorf("the new one is at %d:%d", p.Bus, p.Unit)
			}
		} else if !slices.Contains(full.Disks, p) {
			t.Errorf("%s has moved", p.Serial)
		}
	}
	if _, err := (definition{}).with([]portlayer.Disk{{Serial: "d", File: "[s] x", Throttle: portlayer.Throttle{BPS: 1}}}); !fault.Is(err, fault.Unsupported) || !strings.Contains(err.Error(), "iops") {
		t.Errorf("bytes a second: %v", err)
	}
}

// A change says what is different, and nothing else: controllers that are missing come first, files of disks that are not the machine's own stay.
func TestChange(t *testing.T) {
	old, err := definition{ID: "c", Memory: 64 << 20, CPUs: 1}.with([]portlayer.Disk{{Serial: "image", File: "[s] image.vmdk", ReadOnly: true}, {Serial: "own", Size: 1 << 30}})
	if err != nil {
		t.Fatal(err)
	}
	create := old.create(lookout{name: "n", store: "s"})
	var kinds []string
	var devices []types.BaseVirtualDevice
	for _, c := range create.DeviceChange {
		spec := c.GetVirtualDeviceConfigSpec()
		kinds = append(kinds, strings.TrimPrefix(fmt.Sprintf("%T", spec.Device), "*types.Virtual")+string(spec.FileOperation))
		devices = append(devices, spec.Device)
	}
	if got := strings.Join(kinds, " "); got != "AHCIController Cdrom Vmxnet3 *types.ParaVirtualSCSIController Disk Diskcreate" {
		t.Errorf("devices %s", got)
	}
	if create.MemoryMB != 64 || create.NumCPUs != 1 || create.Firmware != "bios" {
		t.Errorf("%+v", create)
	}
	mode := create.DeviceChange[4].GetVirtualDeviceConfigSpec().Device.(*types.VirtualDisk).Backing.(*types.VirtualDiskFlatVer2BackingInfo).DiskMode
	if mode != string(types.VirtualDiskModeIndependent_nonpersistent) {
		t.Errorf("the image is %s", mode)
	}
	var same types.VirtualMachineConfigSpec
	if old.changeFrom(old, devices, &same) || len(same.DeviceChange)+len(same.ExtraConfig) > 0 {
		t.Errorf("no change is %+v", same)
	}
	next, err := old.with([]portlayer.Disk{{Serial: "image", File: "[s] image.vmdk", ReadOnly: true}, {Serial: "data", File: "[s] data.vmdk", Throttle: portlayer.Throttle{IOPS: 7}}})
	if err != nil {
		t.Fatal(err)
	}
	next.CPUs = 2
	var spec types.VirtualMachineConfigSpec
	if !next.changeFrom(old, devices, &spec) || len(spec.DeviceChange) != 2 || spec.NumCPUs != 2 || spec.MemoryMB != 0 {
		t.Fatalf("%+v", spec)
	}
	gone, came := spec.DeviceChange[0].GetVirtualDeviceConfigSpec(), spec.DeviceChange[1].GetVirtualDeviceConfigSpec()
	if gone.Operation != "remove" || gone.FileOperation != "destroy" || came.Operation != "add" || came.FileOperation != "" || *came.Device.(*types.VirtualDisk).StorageIOAllocation.Limit != 7 {
		t.Errorf("%+v, %+v", gone, came)
	}
	var back types.VirtualMachineConfigSpec
	old.changeFrom(next, []types.BaseVirtualDevice{devices[3], came.Device}, &back)
	if c := back.DeviceChange[0].GetVirtualDeviceConfigSpec(); c.Operation != "remove" || c.FileOperation != "" {
		t.Errorf("a volume's disk is taken away by %+v", c)
	}
}

func TestPaths(t *testing.T) {
	for text, want := range map[portlayer.DiskPath]datastorePath{
		"[a b] c/d.vmdk": {"a b", "c/d.vmdk"}, "[a]": {"a", ""}, "[a] ": {"a", ""}, "[a]c": {"a", "c"}, "[a] /c//d/": {"a", "c/d"}, "[a] c/../d": {"a", "d"},
	} {
		if got, err := parsePath(text); err != nil || got != want {
			t.Errorf("%q: %+v, %v", text, got, err)
		}
	}
	for _, bad := range []portlayer.DiskPath{"", "/srv/x", "[] x", "a] x", "[a] ../x", "[a] x\ny"} {
		if got, err := parsePath(bad); !fault.Is(err, fault.Invalid) {
			t.Errorf("%q: %+v, %v", bad, got, err)
		}
	}
	p := datastorePath{"a", "b"}
	if got := p.join("c", "..", "..", "..", "d"); got != (datastorePath{"a", "d"}) {
		t.Errorf("%v", got)
	}
	if p.dir().String() != "[a]" || p.String() != "[a] b" || (datastorePath{"a", ""}).dir().path != "" {
		t.Error("directories")
	}
}

// What vSphere says has a kind, and its words, without what SOAP puts around them.
func TestTranslated(t *testing.T) {
	failed := func(f types.BaseMethodFault, text string) error {
		return task.Error{LocalizedMethodFault: &types.LocalizedMethodFault{Fault: f, LocalizedMessage: text}}
	}
	lock := &types.GenericVmConfigFault{Reason: "Failed to lock the file"}
	lock.FaultMessage = []types.LocalizableMessage{{Key: "msg.fileio.lock", Message: "Failed to lock the file"}, {Key: "msg.disk.noBackEnd", Message: "Cannot open the disk '/vmfs/volumes/s/x.vmdk'."}}
	denied := &types.NoPermission{PrivilegeId: "VirtualMachine.Inventory.Create"}
	for _, c := range []struct {
		err   error
		kind  fault.Kind
		words []string
	}{
		{failed(lock, "A general system error occurred"), fault.InUse, []string{"another machine has it open", "/vmfs/volumes/s/x.vmdk"}},
		{failed(&types.FileNotFound{FileFault: types.FileFault{File: "[s] y.vmdk"}}, "File was not found"), fault.NotFound, []string{"File was not found", "[s] y.vmdk"}},
		{failed(&types.NoDiskSpace{}, "no room"), fault.Unavailable, []string{"no room"}},
		{soap.WrapVimFault(denied), fault.Denied, []string{"VirtualMachine.Inventory.Create is missing"}},
		{soap.WrapVimFault(&types.ConcurrentAccess{}), fault.Conflict, []string{"ConcurrentAccess"}},
		{failed(&types.InsufficientMemoryResourcesFault{}, "too little memory"), fault.Unavailable, []string{"too little memory"}},
		{&net.OpError{Op: "dial", Err: fmt.Errorf("refused")}, fault.Unavailable, []string{"vc cannot be reached", "refused"}},
		{fault.New(fault.Invalid, "as it is"), fault.Invalid, []string{"as it is"}},
		{failed(&types.SystemError{}, "who knows"), fault.Internal, []string{"vc: who knows"}},
	} {
		got := translated("vc", c.err)
		if fault.KindOf(got) != c.kind {
			t.Errorf("%v: kind %q, want %q", got, fault.KindOf(got), c.kind)
		}
		for _, w := range c.words {
			if !strings.Contains(got.Error(), w) {
				t.Errorf("%q does not say %q", got, w)
			}
		}
	}
	if translated("vc", nil) != nil {
		t.Error("no error is one")
	}
}

// A token lets one guest in, once; that guest comes again, over a restart of the daemon; no other does.
func TestEndpoint(t *testing.T) {
	dir := t.TempDir()
	var e *endpoint
	var hangUp func()
	rebooted := make(chan portlayer.ContainerID, 9)
	begin := func() {
		l, err := net.Listen("tcp", "127.0.0.1:0")
		if err == nil {
			e, hangUp, err = newEndpoint(l, filepath.Join(dir, "guests"), func(id portlayer.ContainerID) { rebooted <- id }, quiet())
		}
		if err != nil {
			t.Fatal(err)
		}
	}
	begin()
	defer func() { hangUp() }()
	first, err := guest.NewIdentity("first")
	if err != nil {
		t.Fatal(err)
	}
	second, err := guest.NewIdentity("second")
	if err != nil {
		t.Fatal(err)
	}
	token, err := e.invite("m")
	if err != nil {
		t.Fatal(err)
	}
	contact := guest.Contact{Host: guest.Fingerprint(e.identity.Certificate[0]), Machine: "m", Token: token}
	call := func(c guest.Contact, who int) error {
		conn, err := net.Dial("tcp", e.listener.Addr().String())
		if err != nil {
			t.Fatal(err)
		}
		identity := first
		if who == 2 {
			identity = second
		}
		got, err := c.Call(t.Context(), conn, identity, guest.ForChannel)
		if err == nil {
			t.Cleanup(func() { got.Close() })
		}
		return err
	}
	other, wrong := contact, contact
	other.Machine, wrong.Token = "another", "guessed"
	for what, c := range map[string]guest.Contact{"a machine that is not there": other, "a wrong token": wrong} {
		if err := call(c, 1); !fault.Is(err, fault.Denied) {
			t.Errorf("%s: %v", what, err)
		}
	}
	if err := call(contact, 1); err != nil {
		t.Fatal(err)
	}
	if err := call(contact, 2); !fault.Is(err, fault.Denied) {
		t.Errorf("the token a second time: %v", err)
	}
	if len(rebooted) > 0 {
		t.Error("a machine whose guest is there was taken for one that booted again")
	}
	hangUp()
	begin()
	if err := call(contact, 2); !fault.Is(err, fault.Denied) {
		t.Errorf("the token after the guest has gone: %v", err)
	}
	if id := <-rebooted; id != "m" {
		t.Errorf("%s has booted again", id)
	}
	contact.Token = "" // it has no meaning any more
	if err := call(contact, 1); err != nil {
		t.Errorf("after a restart: %v", err)
	}
	conn, err := e.take(t.Context(), "m", guest.ForChannel)
	if err != nil {
		t.Fatal(err)
	}
	conn.Close()
	// The next start's guest is another, and the one before is nobody then.
	if contact.Token, err = e.invite("m"); err != nil {
		t.Fatal(err)
	}
	if err := call(contact, 2); err != nil {
		t.Error(err)
	}
	if err := call(contact, 1); !fault.Is(err, fault.Denied) {
		t.Errorf("the guest of an earlier start: %v", err)
	}
	for range 2 {
		if err := e.forget("m"); err != nil {
			t.Error(err)
		}
	}
	if err := call(contact, 2); !fault.Is(err, fault.Denied) {
		t.Errorf("the guest of a machine that is gone: %v", err)
	}
	// A machine that is denied goes off: what is not known for sure is no denial.
	if err := os.WriteFile(e.file("m"), []byte("{"), 0o600); err != nil {
		t.Fatal(err)
	}
	if err := call(contact, 2); err == nil || fault.Is(err, fault.Denied) {
		t.Errorf("a guest of which the host cannot read what it knows: %v", err)
	}
	for _, bad := range []portlayer.ContainerID{"", "../x", "a/b", ".hidden"} {
		if _, err := e.take(t.Context(), bad, guest.ForChannel); err == nil {
			t.Errorf("id %q was taken", bad)
		}
	}
}
