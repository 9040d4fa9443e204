package qemu

import (
	"encoding/json"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"vch/internal/fault"
	"vch/portlayer"
)

func TestDisksAreBounded(t *testing.T) {
	many := make([]portlayer.DeviceChange, maxDisks+1)
	for i := range many {
		many[i] = portlayer.DeviceChange{Op: portlayer.Add, Disk: portlayer.Disk{File: "/x", Serial: "d" + strings.Repeat("x", i%30) + string(rune('a'+i%26)) + string(rune('a'+i/26))}}
	}
	if _, err := apply(nil, many); !fault.Is(err, fault.Invalid) {
		t.Errorf("%d disks: %v", len(many), err)
	}
	if _, err := apply(nil, many[1:]); err != nil {
		t.Errorf("%d disks: %v", len(many)-1, err)
	}
}

// One thread emulates all processors of a machine where QEMU's TCG is not safe with several; nowhere else is parallelism given up.
func TestAccelerator(t *testing.T) {
	for _, c := range []struct {
		accel, qemu string
		cpus        int
		want        string
	}{
		{"tcg", "7.2.22", 2, "tcg,thread=single"},
		{"tcg", "7.2.22", 1, "tcg"},
		{"tcg", "8.0.5", 4, "tcg,thread=single"},
		{"tcg", "8.1.0", 4, "tcg"},
		{"tcg", "10.0.2", 2, "tcg"},
		{"tcg", "unheard-of", 2, "tcg,thread=single"},
		{"kvm", "7.2.22", 2, "kvm"},
	} {
		if got := accelerator(shape{accel: c.accel, qemu: c.qemu, cpus: c.cpus}); got != c.want {
			t.Errorf("%d processors by %s in QEMU %s: %s, want %s", c.cpus, c.accel, c.qemu, got, c.want)
		}
	}
}

// A bounded disk has a filter above its image, and a group of its own.
func TestThrottledDisk(t *testing.T) {
	args := arguments(shape{name: "vch-1", accel: "tcg", cpus: 1, drives: []drive{{serial: "s0", file: "/image"}, {serial: "s1", file: "/w", readOnly: true, throttle: portlayer.Throttle{IOPS: 5, BPS: 4096}}}})
	line := strings.Join(args, " ")
	for _, want := range []string{
		`-object {"id":"throttle1","limits":{"bps-total":4096,"iops-total":5},"qom-type":"throttle-group"}`,
		`"discard":"unmap","driver":"throttle","file":{"discard":"unmap","driver":"raw"`, `"node-name":"disk1","read-only":true,"throttle-group":"throttle1"`, `"drive":"disk1"`,
	} {
		if !strings.Contains(line, want) {
			t.Errorf("no %s in %s", want, line)
		}
	}
	if strings.Contains(line, "throttle0") || strings.Count(line, "throttle-group") != 2 {
		t.Errorf("a disk without bounds has some: %s", line)
	}
}

// QEMU opens no disk by its path: each is a descriptor that it inherits, in the order of the drives.
func TestArguments(t *testing.T) {
	args := arguments(shape{name: "vch-1", accel: "tcg", qemu: "9.2.0", memory: 100<<20 + 1, cpus: 2, append: "quiet",
		drives: []drive{{serial: "s0", file: "/image", readOnly: true}, {serial: "s1", file: "/w"}}})
	var files []string
	var readOnly []bool
	for i, a := range args {
		if a != "-blockdev" {
			continue
		}
		var b struct {
			ReadOnly bool `json:"read-only"`
			File     struct {
				Filename string
				ReadOnly bool `json:"read-only"`
			}
		}
		if err := json.Unmarshal([]byte(args[i+1]), &b); err != nil {
			t.Fatal(err)
		}
		if b.ReadOnly != b.File.ReadOnly {
			t.Errorf("%s is read-only on one floor only", b.File.Filename)
		}
		files, readOnly = append(files, b.File.Filename), append(readOnly, b.ReadOnly)
	}
	if diff := cmp.Diff([]string{"/dev/fdset/0", "/dev/fdset/1"}, files); diff != "" {
		t.Error(diff)
	}
	if diff := cmp.Diff([]bool{true, false}, readOnly); diff != "" {
		t.Error(diff)
	}
	line := " " + strings.Join(args, " ") + " "
	for _, want := range []string{" -m 101M ", " -smp 2 ", " -accel tcg ", " -nodefaults ", "spawn=deny", " -no-reboot ", " -add-fd fd=11,set=0 ", " -add-fd fd=12,set=1 ", " stream,id=card,server=on,addr.type=fd,addr.str=6 "} {
		if !strings.Contains(line, want) {
			t.Errorf("no %q in %s", want, line)
		}
	}
	for _, never := range []string{"-nic", " user", "-netdev tap", "/image", "/w ", "/k ", "/i "} {
		if strings.Contains(line, never) {
			t.Errorf("%q in %s", never, line)
		}
	}
}

// Two machines never share a user, and none is anyone's.
func TestNobody(t *testing.T) {
	a, b := nobody("vch-a"), nobody("vch-b")
	if a.Uid == b.Uid || a.Uid < 0x70000000 || a.Uid > 0x7fffffff || a.Gid != a.Uid || len(a.Groups) > 0 {
		t.Errorf("%+v %+v", a, b)
	}
}

func TestTSC(t *testing.T) {
	for name, tc := range map[string]struct {
		cpuinfo string
		khz     int
	}{
		"bare metal":      {"model name\t: A CPU @ 2.60GHz\ncpu MHz\t\t: 800.031\nflags\t\t: fpu tsc\n", 2600000},
		"virtual machine": {"model name\t: A CPU @ 2.60GHz\ncpu MHz\t\t: 2596.144\nflags\t\t: fpu hypervisor tsc\n", 2596144},
		"no clock in it":  {"model name\t: EPYC\ncpu MHz\t\t: 2450.000\nflags\t\t: fpu\n", 2450000},
		"nothing":         {"", 0},
	} {
		if got := tscKHz(tc.cpuinfo); got != tc.khz {
			t.Errorf("%s: %d, want %d", name, got, tc.khz)
		}
	}
}

func TestTailKeepsTheEnd(t *testing.T) {
	var c tail
	for range 3000 {
		c.add([]byte("something went by\n"))
	}
	c.add([]byte("panic: \x1b[31mno\x00 init\n\n"))
	lines := c.lines(2)
	if len(c.kept) > tailSize || len(lines) != 2 || lines[1] != "panic:  [31mno  init" {
		t.Errorf("%d bytes, %q", len(c.kept), lines)
	}
}

func TestRefusal(t *testing.T) {
	for words, kind := range map[string]fault.Kind{
		`-blockdev {}: Failed to get "write" lock; Is another process using the image [/x]?`: fault.InUse,
		`Could not open '/x': No such file or directory`:                                     fault.NotFound,
		`Could not open '/x': Permission denied`:                                             fault.Denied,
		`cannot set up guest memory 'pc.ram': Cannot allocate memory`:                        fault.Unavailable,
		``: fault.Internal,
	} {
		if err := refusal("QEMU would not start", words); !fault.Is(err, kind) {
			t.Errorf("%q is %v, want %v", words, fault.KindOf(err), kind)
		}
	}
}

// A machine is found by where it works, not by a number in a file.
func TestProcessesAreOurOwnOnly(t *testing.T) {
	root := t.TempDir()
	if err := os.Mkdir(filepath.Join(root, "a"), 0o700); err != nil {
		t.Fatal(err)
	}
	if found := processes(root); len(found) != 0 {
		t.Errorf("found %v where nothing runs", found)
	}
	// This test itself works elsewhere, and what works below root without our name is not ours.
	wd, err := os.Getwd()
	if err != nil {
		t.Fatal(err)
	}
	if found := processes(filepath.Dir(wd)); len(found) != 0 {
		t.Errorf("took a stranger for a machine: %v", found)
	}
}

// What a removal that was interrupted left goes with the first removal beside it, and what one left that failed with the next.
func TestRemoveDirClearsLeftovers(t *testing.T) {
	d, err := FindDisks()
	if err != nil {
		t.Fatal(err)
	}
	parent := t.TempDir()
	left := filepath.Join(parent, tombPrefix+"0123", "deep")
	remove := func(name string) error {
		return d.RemoveDir(t.Context(), portlayer.DiskPath(filepath.Join(parent, name)))
	}
	for _, failing := range []bool{false, true} {
		if err := os.MkdirAll(left, 0o700); err != nil {
			t.Fatal(err)
		}
		if failing {
			if err := remove(strings.Repeat("x", 300)); err == nil {
				t.Fatal("a name that is too long was removed")
			}
		}
		if err := os.Mkdir(filepath.Join(parent, "a"), 0o700); err != nil {
			t.Fatal(err)
		}
		if err := remove("a"); err != nil {
			t.Fatal(err)
		}
		if entries, err := os.ReadDir(parent); err != nil || len(entries) > 0 {
			t.Errorf("left: %v, %v", entries, err)
		}
	}
}
