package vcsim_test

import (
	"bufio"
	"bytes"
	"errors"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/vmware/govmomi/object"
	"github.com/vmware/govmomi/property"
	"github.com/vmware/govmomi/vim25/types"

	"vch/hypervisor/vsphere/vcsim"
	"vch/internal/guestkernel"
)

// iso makes a CD-ROM that boots testdata/guest.
func iso(t *testing.T) string {
	t.Helper()
	dir := t.TempDir()
	run := func(name string, args ...string) {
		t.Helper()
		cmd := exec.Command(name, args...)
		cmd.Env = append(os.Environ(), "CGO_ENABLED=0")
		if out, err := cmd.CombinedOutput(); err != nil {
			t.Fatalf("%s %q: %v\n%s", name, args, err, out)
		}
	}
	run("go", "build", "-trimpath", "-ldflags", "-s -w", "-o", filepath.Join(dir, "guest"), "./testdata/guest")
	init, err := os.ReadFile(filepath.Join(dir, "guest"))
	if err != nil {
		t.Fatal(err)
	}
	kernel, err := guestkernel.Find("", "", guestkernel.Modules{Boot: []guestkernel.Module{{Name: "vmw_pvscsi", What: "disks"}, {Name: "sd_mod", What: "disks"},
		{Name: "vmxnet3", What: "networks"}, {Name: "qemu_fw_cfg", What: "guestinfo"}}})
	if err != nil {
		t.Fatal(err)
	}
	content := filepath.Join(dir, "content")
	var initramfs bytes.Buffer
	if err := guestkernel.WriteInitramfs(&initramfs, kernel, init); err != nil {
		t.Fatal(err)
	}
	image, err := os.ReadFile(kernel.Image)
	if err != nil {
		t.Fatal(err)
	}
	files := map[string][]byte{"kernel": image, "initrd": initramfs.Bytes(),
		"isolinux.cfg": []byte("DEFAULT guest\nPROMPT 0\nLABEL guest\nKERNEL /kernel\nINITRD /initrd\nAPPEND " + commandLine(t) + "\n")}
	for _, from := range []string{"/usr/lib/ISOLINUX/isolinux.bin", "/usr/lib/syslinux/modules/bios/ldlinux.c32"} {
		data, err := os.ReadFile(from)
		if err != nil {
			t.Fatalf("%v; make setup-tests installs it", err)
		}
		files[filepath.Base(from)] = data
	}
	if err := os.Mkdir(content, 0o755); err != nil {
		t.Fatal(err)
	}
	for name, data := range files {
		if err := os.WriteFile(filepath.Join(content, name), data, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	out := filepath.Join(dir, "guest.iso")
	run("xorriso", "-as", "mkisofs", "-quiet", "-o", out, "-b", "isolinux.bin", "-c", "boot.cat", "-no-emul-boot", "-boot-load-size", "4", "-boot-info-table", content)
	return out
}

// commandLine is a kernel's; the clock part is hypervisor/qemu's, which says why.
func commandLine(t *testing.T) string {
	t.Helper()
	info, err := os.ReadFile("/proc/cpuinfo")
	if err != nil {
		t.Fatal(err)
	}
	line := "console=ttyS0 quiet loglevel=3 panic=-1 reboot=t tsc=reliable no_timer_check cryptomgr.notests rcupdate.rcu_expedited=1 random.trust_cpu=on audit=0 nowatchdog mitigations=off GODEBUG=asyncpreemptoff=1"
	if m := regexp.MustCompile(`(?m)^cpu MHz\s*:\s*([0-9]+)\.([0-9]{3})`).FindSubmatch(info); m != nil {
		khz, _ := strconv.Atoi(string(m[1]) + string(m[2]))
		line += fmt.Sprintf(" tsc_early_khz=%d lpj=%d", khz, khz*4)
	}
	return line
}

// guest is the machine's end of a conversation.
type guest struct {
	*testing.T
	conn  net.Conn
	lines *bufio.Scanner
}

func (g guest) ask(format string, args ...any) string {
	g.Helper()
	question := fmt.Sprintf(format, args...)
	if _, err := fmt.Fprintln(g.conn, question); err != nil {
		g.Fatal(err)
	}
	if !g.lines.Scan() {
		g.Fatalf("%s: %v", question, g.lines.Err())
	}
	answer, ok := strings.CutPrefix(g.lines.Text(), "ok")
	if !ok {
		return g.lines.Text()
	}
	return strings.TrimPrefix(answer, " ")
}

// until asks until the answer is want: the guest hears of some things a moment after.
func (g guest) until(want, format string, args ...any) {
	g.Helper()
	for deadline := time.Now().Add(20 * time.Second); ; {
		got := g.ask(format, args...)
		if got == want {
			return
		}
		if time.Now().After(deadline) {
			g.Fatalf(format+": %q, not %q", append(args, got, want)...)
		}
	}
}

// A machine that runs finds what a real one does.
func TestRealMachine(t *testing.T) {
	if testing.Short() {
		t.Skip("boots a machine")
	}
	image := iso(t)
	r := start(t, vcsim.Options{Machines: vcsim.QEMU{}, PortGroups: []string{"containers"}})
	r.mkdir("[datastore1] iso")
	r.mkdir("[datastore1] v")
	if err := r.ds.UploadFile(r.ctx, image, "iso/guest.iso", nil); err != nil {
		t.Fatal(err)
	}
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	for _, name := range []string{"image", "data", "hot", "second"} {
		r.newDisk("[datastore1] v/"+name+".vmdk", 64<<10)
		write(t, r.Path("[datastore1] v/"+name+"-flat.vmdk"), "this-is-"+name, 4096)
	}
	const slot, slot2 = "160", "192"
	second := newDisk("[datastore1] v/second.vmdk", 15, 0, types.VirtualDiskModePersistent)
	second.ControllerKey = 1001
	devices := []types.BaseVirtualDevice{
		&types.VirtualAHCIController{VirtualSATAController: types.VirtualSATAController{VirtualController: types.VirtualController{VirtualDevice: types.VirtualDevice{Key: 15000}}}},
		&types.VirtualCdrom{VirtualDevice: types.VirtualDevice{Key: -10, ControllerKey: 15000, UnitNumber: types.NewInt32(0),
			Connectable: &types.VirtualDeviceConnectInfo{StartConnected: true},
			Backing:     &types.VirtualCdromIsoBackingInfo{VirtualDeviceFileBackingInfo: types.VirtualDeviceFileBackingInfo{FileName: "[datastore1] iso/guest.iso"}}}},
		&types.VirtualSerialPort{YieldOnPoll: true, VirtualDevice: types.VirtualDevice{Key: -30,
			Backing: &types.VirtualSerialPortFileBackingInfo{VirtualDeviceFileBackingInfo: types.VirtualDeviceFileBackingInfo{FileName: "[datastore1]"}}}},
		newDisk("[datastore1] v/image.vmdk", 0, 0, types.VirtualDiskModeIndependent_nonpersistent),
		newDisk("[datastore1] v/data.vmdk", 3, 0, types.VirtualDiskModePersistent),
		&types.VirtualVmxnet3{VirtualVmxnet: types.VirtualVmxnet{VirtualEthernetCard: types.VirtualEthernetCard{MacAddress: "00:50:56:00:00:42", AddressType: "manual",
			VirtualDevice: types.VirtualDevice{Key: -20, SlotInfo: &types.VirtualDevicePciBusSlotInfo{PciSlotNumber: 224}, Backing: &types.VirtualEthernetCardNetworkBackingInfo{
				VirtualDeviceDeviceBackingInfo: types.VirtualDeviceDeviceBackingInfo{DeviceName: "containers"}}}}}},
	}
	var vms []*object.VirtualMachine
	for _, name := range []string{"one", "two"} {
		mine := append(slices.Clone(devices), &types.ParaVirtualSCSIController{VirtualSCSIController: types.VirtualSCSIController{SharedBus: types.VirtualSCSISharingNoSharing,
			VirtualController: types.VirtualController{BusNumber: 1, VirtualDevice: types.VirtualDevice{Key: 1001}}}}, second)
		if name == "two" { // shares the image alone
			mine = []types.BaseVirtualDevice{devices[0], devices[1], newDisk("[datastore1] v/image.vmdk", 0, 0, types.VirtualDiskModeIndependent_nonpersistent), devices[5]}
		}
		vm, err := r.machine(name, mine...)
		if err != nil {
			t.Fatal(err)
		}
		port := l.Addr().(*net.TCPAddr).Port
		r.must(vm.Reconfigure(r.ctx, types.VirtualMachineConfigSpec{ExtraConfig: []types.BaseOptionValue{
			&types.OptionValue{Key: "guestinfo.vch.contact", Value: fmt.Sprintf("10.0.2.2:%d", port)}, &types.OptionValue{Key: "guestinfo.vch.name", Value: name}}}))
		vms = append(vms, vm)
	}
	t.Cleanup(func() {
		if t.Failed() {
			t.Logf("console of one:\n%s\nof two:\n%s", r.Console("one"), r.Console("two"))
		}
	})
	boot := func(vm *object.VirtualMachine) guest {
		t.Helper()
		begin := time.Now()
		r.must(vm.PowerOn(r.ctx))
		on := time.Since(begin)
		if err := l.(*net.TCPListener).SetDeadline(time.Now().Add(90 * time.Second)); err != nil {
			t.Fatal(err)
		}
		conn, err := l.Accept()
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { conn.Close() })
		g := guest{t, conn, bufio.NewScanner(conn)}
		if !g.lines.Scan() {
			t.Fatal("the guest says nothing")
		}
		t.Logf("powered on after %v; the guest is here %v after that, its kernel's uptime %s", on, time.Since(begin)-on, g.lines.Text())
		return g
	}
	one := boot(vms[0])
	if got := one.ask("info guestinfo.vch.name"); got != "one" {
		t.Errorf("guestinfo: %q", got)
	}
	if got := one.ask("slots"); !strings.Contains(" "+got, " "+slot+"=0000:") || !strings.Contains(" "+got, " 224=0000:") {
		t.Errorf("PCI slots: %s", got)
	}
	if got := one.ask("read %s 15 4096 14", slot2); got != "this-is-second" {
		t.Errorf("on the second adapter: %q", got)
	}
	if got := one.ask("links"); got != "00:50:56:00:00:42=vmxnet3" {
		t.Errorf("cards: %s", got)
	}
	for unit, name := range map[int]string{0: "image", 3: "data"} {
		if got := one.ask("read %s %d 4096 13", slot, unit); !strings.HasPrefix(got, "this-is-"+name) {
			t.Errorf("unit %d: %q", unit, got)
		}
	}

	// Two machines have the image; what each writes into it is its own, and is gone with it.
	two := boot(vms[1])
	one.ask("write %s 0 4096 written1", slot)
	if got := one.ask("read %s 0 4096 8", slot); got != "written1" {
		t.Errorf("written into a shared image: %q", got)
	}
	if got := two.ask("read %s 0 4096 13", slot); got != "this-is-image" {
		t.Errorf("another sees %q", got)
	}

	// Plugged, grown, unplugged.
	if err := r.attach(vms[0], newDisk("[datastore1] v/hot.vmdk", 5, 0, types.VirtualDiskModeIndependent_persistent)); err != nil {
		t.Fatal(err)
	}
	one.until("131072", "disk %s 5", slot)
	if got := one.ask("read %s 5 4096 11", slot); got != "this-is-hot" {
		t.Errorf("plugged: %q", got)
	}
	one.ask("write %s 5 8192 from-the-guest", slot)
	if got := read(t, r.Path("[datastore1] v/hot-flat.vmdk"), 14, 8192); got != "from-the-guest" {
		t.Errorf("the file holds %q", got)
	}
	var hot types.VirtualDisk
	for _, d := range object.VirtualDeviceList(r.config(vms[0]).Config.Hardware.Device).SelectByType((*types.VirtualDisk)(nil)) {
		if *d.GetVirtualDevice().UnitNumber == 5 {
			hot = *d.(*types.VirtualDisk)
		}
	}
	hot.CapacityInKB, hot.CapacityInBytes = 128<<10, 128<<20
	r.must(vms[0].Reconfigure(r.ctx, types.VirtualMachineConfigSpec{DeviceChange: []types.BaseVirtualDeviceConfigSpec{
		&types.VirtualDeviceConfigSpec{Operation: types.VirtualDeviceConfigSpecOperationEdit, Device: &hot}}}))
	one.until("262144", "rescan %s 5", slot)
	is[*types.GenericVmConfigFault](t, r.attach(vms[1], newDisk("[datastore1] v/hot.vmdk", 5, 0, types.VirtualDiskModePersistent)))
	r.must(vms[0].Reconfigure(r.ctx, types.VirtualMachineConfigSpec{DeviceChange: []types.BaseVirtualDeviceConfigSpec{
		&types.VirtualDeviceConfigSpec{Operation: types.VirtualDeviceConfigSpecOperationRemove, Device: &hot}}}))
	one.until("error 0 disks", "disk %s 5", slot)
	if err := r.attach(vms[1], newDisk("[datastore1] v/hot.vmdk", 5, 0, types.VirtualDiskModePersistent)); err != nil {
		t.Fatal(err)
	}
	two.until("262144", "disk %s 5", slot)
	if err := r.attach(vms[1], newDisk("[datastore1] v/image.vmdk", 6, 0, types.VirtualDiskModeIndependent_nonpersistent)); err == nil {
		two.until("131072", "disk %s 6", slot)
	} else {
		t.Error(err)
	}

	// An adapter comes with a disk on it.
	r.newDisk("[datastore1] v/third.vmdk", 64<<10)
	third := newDisk("[datastore1] v/third.vmdk", 0, 0, types.VirtualDiskModePersistent)
	third.ControllerKey, third.Key = -300, -301
	r.must(vms[0].Reconfigure(r.ctx, types.VirtualMachineConfigSpec{DeviceChange: []types.BaseVirtualDeviceConfigSpec{
		&types.VirtualDeviceConfigSpec{Operation: types.VirtualDeviceConfigSpecOperationAdd, Device: &types.ParaVirtualSCSIController{VirtualSCSIController: types.VirtualSCSIController{
			SharedBus: types.VirtualSCSISharingNoSharing, VirtualController: types.VirtualController{BusNumber: 2, VirtualDevice: types.VirtualDevice{Key: -300, ControllerKey: 100,
				SlotInfo: &types.VirtualDevicePciBusSlotInfo{PciSlotNumber: 1184}}}}}},
		&types.VirtualDeviceConfigSpec{Operation: types.VirtualDeviceConfigSpecOperationAdd, Device: third}}}))
	one.until("131072", "disk 1184 0")

	// It stands still, and goes on.
	r.must(vms[0].Suspend(r.ctx))
	r.must(vms[0].PowerOn(r.ctx))
	one.until("one", "info guestinfo.vch.name")

	// A guest that powers itself off.
	if _, err := fmt.Fprintln(one.conn, "off"); err != nil {
		t.Fatal(err)
	}
	if err := property.Wait(r.ctx, property.DefaultCollector(r.c.Client), vms[0].Reference(), []string{"runtime.powerState"}, func(all []types.PropertyChange) bool {
		return all[0].Val == types.VirtualMachinePowerStatePoweredOff
	}); err != nil {
		t.Fatal(err)
	}
	if got := read(t, r.Path("[datastore1] v/image-flat.vmdk"), 13, 4096); got != "this-is-image" {
		t.Errorf("the image holds %q", got)
	}
	if !bytes.Contains(r.Console("one"), []byte("guest: told to go")) {
		t.Errorf("its console: %s", r.Console("one"))
	}
	if text, err := os.ReadFile(r.Path("[datastore1] one/serial1.txt")); err != nil || !bytes.Contains(text, []byte("guest: told to go")) {
		t.Errorf("the file of its serial port: %v, %q", err, text)
	}
	if err := r.wait(vms[0].PowerOn(r.ctx)); err == nil || !strings.Contains(err.Error(), "answer.msg.serial.file.open") {
		t.Errorf("powered on over a file of its serial port: %v", err)
	}
	r.must(vms[0].Reconfigure(r.ctx, types.VirtualMachineConfigSpec{ExtraConfig: []types.BaseOptionValue{&types.OptionValue{Key: "answer.msg.serial.file.open", Value: "Append"}}}))
	again := boot(vms[0])
	if got := again.ask("read %s 0 4096 13", slot); got != "this-is-image" {
		t.Errorf("after the next power-on the image holds %q", got)
	}
	r.must(vms[0].PowerOff(r.ctx))

	// Nothing is left of the one that runs.
	pid := r.Pid("two")
	if err := syscall.Kill(pid, 0); err != nil {
		t.Errorf("process %d: %v", pid, err)
	}
	if err := r.Close(); err != nil {
		t.Error(err)
	}
	if err := syscall.Kill(pid, 0); !errors.Is(err, syscall.ESRCH) {
		t.Errorf("process %d is left: %v", pid, err)
	}
}
