// Command guest is the init of the machine that the rig's test boots. It finds its contact in guestinfo, as a container VM's tether does, connects to
// it, and does what it is told there, a line each: what its answers are begins with "ok" or "error".
//
// It stands for no part of vch: what it proves is what a guest finds in a machine of the rig.
package main

import (
	"bufio"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"sort"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

func main() {
	err := run()
	fmt.Println("guest:", err)
	_ = unix.Reboot(unix.LINUX_REBOOT_CMD_POWER_OFF)
}

func run() error {
	for _, m := range [][2]string{{"proc", "/proc"}, {"sysfs", "/sys"}, {"devtmpfs", "/dev"}} {
		if err := os.MkdirAll(m[1], 0o755); err != nil {
			return err
		}
		if err := unix.Mount(m[0], m[1], m[0], 0, ""); err != nil {
			return fmt.Errorf("mount %s: %w", m[1], err)
		}
	}
	fmt.Println("guest: here after", uptime())
	order, err := os.ReadFile("/modules/order")
	if err != nil {
		return err
	}
	for _, name := range strings.Fields(string(order)) {
		f, err := os.Open("/modules/" + name)
		if err != nil {
			return err
		}
		if err := unix.FinitModule(int(f.Fd()), "", 0); err != nil {
			return fmt.Errorf("%s: %w", name, err)
		}
		f.Close()
	}
	contact, err := info("guestinfo.vch.contact")
	if err != nil {
		return err
	}
	if err := up(); err != nil {
		return err
	}
	conn, err := net.DialTimeout("tcp", contact, 20*time.Second)
	if err != nil {
		return err
	}
	fmt.Println("guest: connected after", uptime())
	fmt.Fprintln(conn, "ok", uptime())
	for lines := bufio.NewScanner(conn); lines.Scan(); {
		words := strings.Fields(lines.Text())
		if words[0] == "off" {
			return fmt.Errorf("told to go")
		}
		answer, err := do(words)
		if err != nil {
			answer = "error " + err.Error()
		} else {
			answer = "ok " + answer
		}
		if _, err := fmt.Fprintln(conn, answer); err != nil {
			return err
		}
	}
	return fmt.Errorf("the contact has gone")
}

func uptime() string {
	b, _ := os.ReadFile("/proc/uptime")
	return strings.Fields(string(b) + " ?")[0]
}

func do(words []string) (string, error) {
	switch words[0] {
	case "info":
		return info(words[1])
	case "slots":
		return slots()
	case "links":
		return links()
	case "disk": // SLOT UNIT
		name, err := disk(words[1], words[2])
		if err != nil {
			return "", err
		}
		b, err := os.ReadFile("/sys/block/" + name + "/size")
		return strings.TrimSpace(string(b)), err
	case "rescan": // SLOT UNIT
		name, err := disk(words[1], words[2])
		if err != nil {
			return "", err
		}
		if err := os.WriteFile("/sys/block/"+name+"/device/rescan", []byte("1"), 0); err != nil {
			return "", err
		}
		return do([]string{"disk", words[1], words[2]})
	case "read": // SLOT UNIT OFFSET LENGTH
		f, at, err := open(words)
		if err != nil {
			return "", err
		}
		defer f.Close()
		n, _ := strconv.Atoi(words[4])
		buf := make([]byte, n)
		_, err = f.ReadAt(buf, at)
		return string(buf), err
	case "write": // SLOT UNIT OFFSET TEXT
		f, at, err := open(words)
		if err != nil {
			return "", err
		}
		defer f.Close()
		if _, err := f.WriteAt([]byte(words[4]), at); err != nil {
			return "", err
		}
		return "", f.Sync()
	}
	return "", fmt.Errorf("%q is not known", words)
}

func info(key string) (string, error) {
	b, err := os.ReadFile("/sys/firmware/qemu_fw_cfg/by_name/opt/vch/" + key + "/raw")
	return string(b), err
}

func slots() (string, error) {
	all, err := filepath.Glob("/sys/bus/pci/slots/*/address")
	var out []string
	for _, a := range all {
		b, err := os.ReadFile(a)
		if err != nil {
			return "", err
		}
		out = append(out, filepath.Base(filepath.Dir(a))+"="+strings.TrimSpace(string(b)))
	}
	sort.Strings(out)
	return strings.Join(out, " "), err
}

func links() (string, error) {
	all, err := net.Interfaces()
	var out []string
	for _, l := range all {
		driver, _ := os.Readlink("/sys/class/net/" + l.Name + "/device/driver")
		if driver != "" {
			out = append(out, l.HardwareAddr.String()+"="+filepath.Base(driver))
		}
	}
	return strings.Join(out, " "), err
}

// disk is the block device of a SCSI target of the adapter in a PCI slot.
func disk(slot, unit string) (string, error) {
	address, err := os.ReadFile("/sys/bus/pci/slots/" + slot + "/address")
	if err != nil {
		return "", err
	}
	found, err := filepath.Glob("/sys/bus/pci/devices/" + strings.TrimSpace(string(address)) + ".0/host*/target*:0:" + unit + "/*/block/*")
	if err != nil || len(found) != 1 {
		return "", fmt.Errorf("%d disks", len(found))
	}
	return filepath.Base(found[0]), nil
}

func open(words []string) (*os.File, int64, error) {
	name, err := disk(words[1], words[2])
	if err != nil {
		return nil, 0, err
	}
	at, err := strconv.ParseInt(words[3], 10, 64)
	if err != nil {
		return nil, 0, err
	}
	f, err := os.OpenFile("/dev/"+name, os.O_RDWR|unix.O_SYNC, 0)
	return f, at, err
}

// up gives the first card the address that QEMU's user network has for its first guest (QEMU docs, "User Networking").
func up() error {
	fd, err := unix.Socket(unix.AF_INET, unix.SOCK_DGRAM, 0)
	if err != nil {
		return err
	}
	defer unix.Close(fd)
	for _, set := range []struct {
		request uint
		addr    []byte
	}{{unix.SIOCSIFADDR, []byte{10, 0, 2, 15}}, {unix.SIOCSIFNETMASK, []byte{255, 255, 255, 0}}} {
		r, err := unix.NewIfreq("eth0")
		if err != nil {
			return err
		}
		if err := r.SetInet4Addr(set.addr); err != nil {
			return err
		}
		if err := unix.IoctlIfreq(fd, set.request, r); err != nil {
			return fmt.Errorf("address of eth0: %w", err)
		}
	}
	r, err := unix.NewIfreq("eth0")
	if err != nil {
		return err
	}
	r.SetUint16(unix.IFF_UP | unix.IFF_RUNNING)
	return unix.IoctlIfreq(fd, unix.SIOCSIFFLAGS, r)
}
