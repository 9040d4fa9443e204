package bootiso

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
	"time"

	"vch/internal/fault"
	"vch/internal/guestkernel"
)

// made is a loader that is none, and files for it.
func made() (Loader, Files) {
	image := make([]byte, 5001)
	for i := range image {
		image[i] = byte(i * 7)
	}
	return Loader{image: image, module: []byte("module")}, Files{Kernel: bytes.Repeat([]byte("k"), 3*sector), Initramfs: []byte("initramfs"), Append: "console=ttyS0 quiet"}
}

func disc(t *testing.T, l Loader, f Files) []byte {
	t.Helper()
	var b bytes.Buffer
	if err := l.Write(&b, f); err != nil {
		t.Fatal(err)
	}
	return b.Bytes()
}

// read reads the files of a disc by its directory, as a BIOS's boot loader does.
func read(t *testing.T, d []byte) map[string][]byte {
	t.Helper()
	files := map[string][]byte{}
	volume := d[primaryAt*sector:][:sector]
	if string(volume[:7]) != "\x01CD001\x01" || int(binary.LittleEndian.Uint32(volume[80:]))*sector != len(d) || binary.BigEndian.Uint32(volume[84:]) != binary.LittleEndian.Uint32(volume[80:]) {
		t.Fatalf("the volume descriptor is wrong: %x of a disc of %d bytes", volume[:88], len(d))
	}
	if volume[881] != 1 || !bytes.Equal(volume[882:], make([]byte, sector-882)) {
		t.Errorf("the volume descriptor ends with %x", volume[881:900])
	}
	root := volume[156:]
	list := d[binary.LittleEndian.Uint32(root[2:])*sector:][:binary.LittleEndian.Uint32(root[10:])]
	last := ""
	for len(list) > 0 && list[0] != 0 {
		r := list[:list[0]]
		name := string(r[33:][:r[32]])
		if name <= last && last != "" {
			t.Errorf("%q comes after %q", name, last)
		}
		last = name
		if r[25] == 0 {
			files[name] = d[binary.LittleEndian.Uint32(r[2:])*sector:][:binary.LittleEndian.Uint32(r[10:])]
		}
		list = list[len(r):]
	}
	return files
}

func TestDisc(t *testing.T) {
	l, f := made()
	d := disc(t, l, f)
	files := read(t, d)
	for name, want := range map[string][]byte{"INITRD.;1": f.Initramfs, "VMLINUZ.;1": f.Kernel, "LDLINUX.C32;1": l.module} {
		if !bytes.Equal(files[name], want) {
			t.Errorf("%s has %d bytes, not these %d", name, len(files[name]), len(want))
		}
	}
	if !strings.HasSuffix(string(files["ISOLINUX.CFG;1"]), "\nAPPEND console=ttyS0 quiet\n") {
		t.Errorf("configuration %q", files["ISOLINUX.CFG;1"])
	}
	record := d[bootRecordAt*sector:]
	if string(record[:30]) != "\x00CD001\x01EL TORITO SPECIFICATION" {
		t.Fatalf("boot record %q", record[:30])
	}
	catalog := d[binary.LittleEndian.Uint32(record[0x47:])*sector:]
	var sum uint16
	for i := 0; i < 32; i += 2 {
		sum += binary.LittleEndian.Uint16(catalog[i:])
	}
	if sum != 0 || catalog[0] != 1 || catalog[32] != 0x88 {
		t.Errorf("boot catalog %x, sum %x", catalog[:64], sum)
	}
	boot := d[binary.LittleEndian.Uint32(catalog[40:])*sector:]
	image := files["ISOLINUX.BIN;1"]
	if !bytes.HasPrefix(boot, image) || !bytes.Equal(image[64:len(l.image)], l.image[64:]) || !bytes.Equal(image[:8], l.image[:8]) {
		t.Error("the catalog does not lead to the boot loader")
	}
	var check uint32
	for i := 64; i < len(image); i += 4 {
		check += binary.LittleEndian.Uint32(image[i:])
	}
	for i, want := range []uint32{primaryAt, binary.LittleEndian.Uint32(catalog[40:]), uint32(len(l.image)), check} {
		if got := binary.LittleEndian.Uint32(image[8+4*i:]); got != want {
			t.Errorf("word %d of the loader's table is %d, not %d", i, got, want)
		}
	}
}

func TestSameBytes(t *testing.T) {
	l, f := made()
	first := disc(t, l, f)
	if !bytes.Equal(first, disc(t, l, f)) {
		t.Error("the same files make another disc")
	}
	f.Append += " "
	if bytes.Equal(first, disc(t, l, f)) {
		t.Error("another command line makes the same disc")
	}
}

type fullDisk struct{ room int }

func (d *fullDisk) Write(p []byte) (int, error) {
	if d.room -= len(p); d.room < 0 {
		return 0, errFull
	}
	return len(p), nil
}

var errFull = errors.New("full")

func TestWriteRefuses(t *testing.T) {
	l, good := made()
	for name, change := range map[string]func(*Files){
		"no kernel":      func(f *Files) { f.Kernel = nil },
		"no initramfs":   func(f *Files) { f.Initramfs = nil },
		"two lines":      func(f *Files) { f.Append = "a\nDEFAULT b" },
		"a long line":    func(f *Files) { f.Append = strings.Repeat("a", maxAppend+1) },
		"not plain text": func(f *Files) { f.Append = "ä" },
	} {
		f := good
		change(&f)
		if err := l.Write(&bytes.Buffer{}, f); !fault.Is(err, fault.Invalid) {
			t.Errorf("%s: %v", name, err)
		}
	}
	for room := 0; room < len(disc(t, l, good)); room += sector / 2 {
		if err := l.Write(&fullDisk{room}, good); !errors.Is(err, errFull) {
			t.Fatalf("with room for %d bytes: %v", room, err)
		}
	}
}

func TestFindSaysWhatToInstall(t *testing.T) {
	dir := t.TempDir()
	image, module := filepath.Join(dir, "isolinux.bin"), filepath.Join(dir, "ldlinux.c32")
	_, err := find(image, module)
	if !fault.Is(err, fault.NotFound) || !strings.Contains(err.Error(), "package isolinux") {
		t.Errorf("without both: %v", err)
	}
	if err := os.WriteFile(image, make([]byte, 100), 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err = find(image, module); !fault.Is(err, fault.NotFound) || !strings.Contains(err.Error(), "package syslinux-common") {
		t.Errorf("without the module: %v", err)
	}
	if err := os.WriteFile(module, []byte("m"), 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err = find(image, module); err != nil {
		t.Error(err)
	}
	if err := os.WriteFile(image, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err = find(image, module); !fault.Is(err, fault.Unsupported) {
		t.Errorf("an empty image: %v", err)
	}
}

// A machine with a BIOS boots the real kernel from the disc, and an init in the initramfs, with the command line.
func TestBoots(t *testing.T) {
	if testing.Short() {
		t.Skip("boots a machine")
	}
	l, err := Find()
	if err != nil {
		t.Fatalf("%v, or run make setup", err)
	}
	k, err := guestkernel.Find("", "", guestkernel.Modules{})
	if err != nil {
		t.Fatal(err)
	}
	kernel, err := os.ReadFile(k.Image)
	if err != nil {
		t.Fatal(err)
	}
	dir := t.TempDir()
	bin := filepath.Join(dir, "init")
	build := exec.Command("go", "build", "-trimpath", "-ldflags", "-s -w", "-o", bin, "./testdata/init")
	build.Env = append(os.Environ(), "CGO_ENABLED=0")
	if out, err := build.CombinedOutput(); err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
	init, err := os.ReadFile(bin)
	if err != nil {
		t.Fatal(err)
	}
	var initramfs bytes.Buffer
	if err := guestkernel.WriteInitramfs(&initramfs, k, init); err != nil {
		t.Fatal(err)
	}
	line := "console=ttyS0 quiet panic=-1 tsc=reliable no_timer_check vch.word=42"
	cpus, err := os.ReadFile("/proc/cpuinfo")
	if err != nil {
		t.Fatal(err)
	}
	// An emulated guest that calibrates against an emulated timer may do so for long.
	if m := regexp.MustCompile(`(?m)^cpu MHz\s*:\s*([0-9]+)`).FindSubmatch(cpus); m != nil {
		line += " tsc_early_khz=" + string(m[1]) + "000"
	}
	iso := filepath.Join(dir, "boot.iso")
	if err := os.WriteFile(iso, disc(t, l, Files{Kernel: kernel, Initramfs: initramfs.Bytes(), Append: line}), 0o600); err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithTimeout(t.Context(), 2*time.Minute)
	defer cancel()
	qemu := exec.CommandContext(ctx, "qemu-system-x86_64", "-M", "q35", "-accel", "tcg", "-cpu", "max,la57=off", "-m", "256M", "-nodefaults", "-no-user-config", "-display", "none", "-no-reboot",
		"-serial", "stdio", "-drive", "if=none,id=disc,media=cdrom,readonly=on,format=raw,file="+iso, "-device", "ide-cd,drive=disc,bus=ide.0,bootindex=0")
	out, err := qemu.CombinedOutput()
	if err != nil || !bytes.Contains(out, []byte("init is here: ")) || !bytes.Contains(out, []byte(line)) {
		t.Errorf("%v\n%s", err, out)
	}
}
