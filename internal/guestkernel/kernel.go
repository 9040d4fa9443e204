// Package guestkernel finds the kernel that container VMs boot, with the modules that they need, on this host, and makes an initramfs of it and the tether.
//
// What the modules are for is its caller's to say: a machine of QEMU has other devices than one of vSphere. Kernels are Debian's or like them: modules that are not
// compressed, and a bzImage.
package guestkernel

import (
	"encoding/binary"
	"errors"
	"io"
	"io/fs"
	"os"
	"path"
	"path/filepath"
	"slices"
	"sort"
	"strconv"
	"strings"

	"github.com/pierrec/lz4/v4"

	"vch/internal/fault"
)

// Module is a driver, by the kernel's name for it.
type Module struct {
	Name string
	What string // that needs it, for messages; "" where a machine does without
}

// Modules are those of a kind of machine.
type Modules struct {
	Boot  []Module // loaded at boot
	Later []Module // loaded when something in the guest needs them
}

// Kernel is a guest kernel on this host.
type Kernel struct {
	Image   string   // path of the bzImage
	Release string   // as in uname -r
	Modules []string // paths of the module files to load, in load order
	Later   []string // of Modules.Later, likewise, after Modules
}

const setupAdvice = "install one with make setup, or Debian's package linux-image-cloud-amd64"

// Find finds a kernel with the modules that are needed: the image given, with its modules in a directory ("": that of its release), or, for "", the newest in /boot.
func Find(image, modules string, need Modules) (Kernel, error) {
	if image != "" {
		if modules == "" {
			modules = filepath.Join("/lib/modules", strings.TrimPrefix(filepath.Base(image), "vmlinuz-"))
		}
		return readKernel(image, modules, need)
	}
	images, _ := filepath.Glob("/boot/vmlinuz-*")
	sort.Slice(images, func(i, j int) bool { return newer(images[i], images[j]) })
	var first error
	for _, image := range images {
		k, err := readKernel(image, filepath.Join("/lib/modules", strings.TrimPrefix(filepath.Base(image), "vmlinuz-")), need)
		if err == nil {
			return k, nil
		}
		if first == nil {
			first = err
		}
	}
	if first == nil {
		first = fault.New(fault.NotFound, "there is no guest kernel in /boot; %s", setupAdvice)
	}
	return Kernel{}, first
}

// newer orders kernel file names: cloud kernels first (they boot quicker and are what vch is tested with), then the higher version.
func newer(a, b string) bool {
	if ca, cb := strings.Contains(a, "cloud"), strings.Contains(b, "cloud"); ca != cb {
		return ca
	}
	na, nb := numbers(a), numbers(b)
	for i := 0; i < len(na) && i < len(nb); i++ {
		if na[i] != nb[i] {
			return na[i] > nb[i]
		}
	}
	return len(na) > len(nb)
}

func numbers(s string) (ns []int) {
	for _, f := range strings.FieldsFunc(s, func(r rune) bool { return r < '0' || r > '9' }) {
		n, _ := strconv.Atoi(f)
		ns = append(ns, n)
	}
	return ns
}

func readKernel(image, modules string, need Modules) (Kernel, error) {
	f, err := os.Open(image)
	if errors.Is(err, fs.ErrPermission) {
		return Kernel{}, fault.New(fault.Denied, "kernel %s cannot be read by this user; make it readable: sudo chmod a+r %s", image, image)
	}
	if err != nil {
		return Kernel{}, fault.New(fault.NotFound, "kernel %s: %w; %s", image, err, setupAdvice)
	}
	f.Close()
	k := Kernel{Image: image, Release: filepath.Base(modules)}
	dep, err := os.ReadFile(filepath.Join(modules, "modules.dep"))
	if err != nil {
		return Kernel{}, fault.New(fault.NotFound, "kernel %s has no modules in %s: %w; %s", image, modules, err, setupAdvice)
	}
	builtin, err := os.ReadFile(filepath.Join(modules, "modules.builtin"))
	if err != nil {
		return Kernel{}, fault.New(fault.NotFound, "kernel %s: %w; %s", image, err, setupAdvice)
	}
	files, later, err := loadOrder(string(dep), string(builtin), need)
	if err != nil {
		return Kernel{}, fault.New(fault.KindOf(err), "kernel %s: %w; %s", image, err, setupAdvice)
	}
	for _, file := range files {
		k.Modules = append(k.Modules, filepath.Join(modules, file))
	}
	for _, file := range later {
		k.Later = append(k.Later, filepath.Join(modules, file))
	}
	for _, file := range slices.Concat(k.Modules, k.Later) {
		if _, err := os.Stat(file); err != nil {
			return Kernel{}, fault.New(fault.NotFound, "kernel %s: module %w; %s", image, err, setupAdvice)
		}
	}
	return k, nil
}

// loadOrder gives the module files to load for need.Boot, and those to load after these for need.Later, dependencies first, by the texts of modules.dep and modules.builtin
// (modules.dep(5)).
func loadOrder(dep, builtin string, need Modules) (first, later []string, err error) {
	inKernel := map[string]bool{}
	for _, line := range strings.Fields(builtin) {
		inKernel[moduleName(line)] = true
	}
	file, needs := map[string]string{}, map[string][]string{}
	for _, line := range strings.Split(dep, "\n") {
		name, deps, ok := strings.Cut(line, ":")
		if !ok {
			continue
		}
		m := moduleName(name)
		file[m] = name
		// A line lists everything below, nearest first.
		needs[m] = strings.Fields(deps)
	}
	var order []string
	seen := map[string]bool{}
	var add func(m string) error
	add = func(m string) error {
		if seen[m] || inKernel[m] {
			return nil
		}
		f, ok := file[m]
		if !ok {
			return fault.New(fault.NotFound, "it has no module %s", m)
		}
		if !strings.HasSuffix(f, ".ko") {
			return fault.New(fault.Unsupported, "its module %s is compressed (%s), which vch does not read", m, f)
		}
		seen[m] = true
		for i := len(needs[m]) - 1; i >= 0; i-- {
			if err := add(moduleName(needs[m][i])); err != nil {
				return err
			}
		}
		order = append(order, f)
		return nil
	}
	for i, n := range slices.Concat(need.Boot, need.Later) {
		if i == len(need.Boot) {
			first, order = order, nil
		}
		if err := add(n.Name); err != nil && n.What != "" {
			return nil, nil, fault.New(fault.KindOf(err), "%w, which %s need", err, n.What)
		}
	}
	if len(need.Later) == 0 {
		return order, nil, nil
	}
	return first, order, nil
}

// moduleName is the kernel's name of a module file: "kernel/fs/foo-bar.ko.xz" is foo_bar.
func moduleName(file string) string {
	name, _, _ := strings.Cut(path.Base(file), ".ko")
	return strings.ReplaceAll(name, "-", "_")
}

// The bzImage's header (kernel Documentation/arch/x86/boot.rst).
const (
	setupSectsAt     = 0x1f1
	headerMagicAt    = 0x202
	headerMagic      = 0x53726448 // "HdrS"
	payloadOffsetAt  = 0x248
	payloadLengthAt  = 0x24c
	legacyLZ4        = 0x184c2102
	maxUncompressed  = 256 << 20
	elfMagic         = "\x7fELF"
	minSetupSectors  = 4
	setupSectorBytes = 512
)

// Vmlinux writes the ELF image inside a bzImage to w. QEMU boots that through PVH without the guest's own decompression, which is slow when emulated:
// 0.4 s less. Unsupported for a payload that is not LZ4.
func Vmlinux(image []byte, w io.Writer) error {
	if len(image) < payloadLengthAt+4 || binary.LittleEndian.Uint32(image[headerMagicAt:]) != headerMagic {
		return fault.New(fault.Unsupported, "not a bzImage")
	}
	setup := int(image[setupSectsAt])
	if setup == 0 {
		setup = minSetupSectors
	}
	start := (setup+1)*setupSectorBytes + int(binary.LittleEndian.Uint32(image[payloadOffsetAt:]))
	length := int(binary.LittleEndian.Uint32(image[payloadLengthAt:]))
	if start < 0 || length < 8 || start+length > len(image) {
		return fault.New(fault.Unsupported, "its payload lies outside the file")
	}
	payload := image[start : start+length]
	if binary.LittleEndian.Uint32(payload) != legacyLZ4 {
		return fault.New(fault.Unsupported, "its payload is not LZ4")
	}
	// The last four bytes are the length of the image, appended by the kernel's build.
	size := int64(binary.LittleEndian.Uint32(payload[length-4:]))
	if size <= 0 || size > maxUncompressed {
		return fault.New(fault.Unsupported, "its payload claims %d bytes", size)
	}
	r := lz4.NewReader(strings.NewReader(string(payload[:length-4])))
	head := make([]byte, len(elfMagic))
	if _, err := io.ReadFull(r, head); err != nil {
		return fault.New(fault.Unsupported, "its payload cannot be unpacked: %w", err)
	}
	if string(head) != elfMagic {
		return fault.New(fault.Unsupported, "its payload is not ELF")
	}
	if _, err := w.Write(head); err != nil {
		return err
	}
	n, err := io.Copy(w, io.LimitReader(r, size-int64(len(head))))
	if err != nil {
		return err
	}
	if n+int64(len(head)) != size {
		return fault.New(fault.Unsupported, "its payload has %d bytes, not %d", n, size)
	}
	return nil
}
