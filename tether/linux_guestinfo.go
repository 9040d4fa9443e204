package tether

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"runtime"
	"runtime/debug"
	"strings"

	"github.com/vmware/vmw-guestinfo/rpcout"
	"github.com/vmware/vmw-guestinfo/vmcheck"
	"golang.org/x/sys/unix"
)

// guestInfo is what a hypervisor lets its guest read before there is a channel: texts, by keys of letters, digits and dots.
type guestInfo interface {
	// Get reads a key's text. One that is not set is not found, and no error.
	Get(key string) (value string, found bool, err error)
}

// findGuestInfo gives what this machine has; nil for none. QEMU's is only there with its module.
func findGuestInfo() guestInfo {
	if vmcheck.IsVirtualCPU() { // by CPUID: on another machine nobody knows what answers at the port
		return &backdoor{ask: askBackdoor}
	}
	if _, err := os.Stat(configDevice); err == nil {
		return configFiles(configDevice)
	}
	return nil
}

// backdoor is VMware's: a machine's ExtraConfig "guestinfo.…", by I/O port 0x5658 (open-vm-tools lib/include/backdoor_def.h).
type backdoor struct {
	ask     func(request []byte) (reply []byte, ok bool, err error)
	request []byte // in the heap, as the library tells the hypervisor its address as a number, which a stack that grows would not follow
}

// attempts is how often a question is asked: one that is asked while the machine moves to another host, or is saved, is broken off (lib/message/message.c,
// MESSAGE_STATUS_CPT).
const attempts = 3

// Get is guestInfo.Get.
func (b *backdoor) Get(key string) (value string, found bool, err error) {
	b.request = []byte("info-get " + key)
	var reply []byte
	for range attempts {
		err = withPorts(func() (err error) {
			reply, found, err = b.ask(b.request)
			return err
		})
		if err == nil {
			break
		}
	}
	if err != nil {
		return "", false, fmt.Errorf("cannot read %s: %w", key, err)
	}
	if !found { // "No value found"
		return "", false, nil
	}
	return string(reply), true, nil
}

// askBackdoor asks with a channel of its own: a machine has eight.
func askBackdoor(request []byte) (reply []byte, ok bool, err error) {
	var out rpcout.RPCOut
	if err := out.Start(); err != nil {
		return nil, false, err
	}
	defer func() { err = errors.Join(err, out.Stop()) }()
	return out.Send(request)
}

// withPorts runs do on a thread that may use I/O ports. A kernel that is locked down allows no thread that (kernel_lockdown(7)); VMware's ports answer also to one that may not, unless
// the machine's monitor_control.restrict_backdoor is set: then, and where there is no such port, the processor refuses, which is an error here. The right is taken off the thread again:
// a process that it starts would inherit it (arch/x86/kernel/process.c).
func withPorts(do func() error) (err error) {
	runtime.LockOSThread()
	refused := unix.Iopl(3)
	defer func() {
		if refused == nil {
			if err := unix.Iopl(0); err != nil {
				return // the thread is nobody else's: it ends with its goroutine
			}
		}
		runtime.UnlockOSThread()
	}()
	defer debug.SetPanicOnFault(debug.SetPanicOnFault(true))
	defer func() {
		if r := recover(); r != nil {
			err = errors.Join(fmt.Errorf("the hypervisor's port does not answer: %v", r), refused)
		}
	}()
	return do()
}

// configDevice is QEMU's configuration device, by the module qemu_fw_cfg (QEMU docs/specs/fw_cfg.rst; Documentation/ABI/testing/sysfs-firmware-qemu_fw_cfg).
const configDevice = "/sys/firmware/qemu_fw_cfg"

// configFiles is QEMU's: its argument -fw_cfg name=opt/vch/KEY,string=TEXT.
type configFiles string

// Get is guestInfo.Get.
func (c configFiles) Get(key string) (value string, found bool, err error) {
	data, err := os.ReadFile(filepath.Join(string(c), "by_name/opt/vch", filepath.Base(key), "raw"))
	if errors.Is(err, fs.ErrNotExist) {
		return "", false, nil
	}
	if err != nil {
		return "", false, fmt.Errorf("cannot read what the machine was given as %s: %w", key, err)
	}
	return strings.TrimSuffix(string(data), "\x00"), true, nil
}
