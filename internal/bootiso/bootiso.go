// Package bootiso makes the disc image from which a machine boots a kernel and an initramfs where nobody can hand it these directly, as on vSphere.
//
// The disc is for a BIOS: El Torito without emulation, and the boot loader ISOLINUX, which loads at once and asks nothing. It is not for EFI. The same input gives
// the same bytes, so that a digest of what Write writes may name a file. The file system is plain ISO 9660 with names of its first level, of one directory: only the boot loader reads it.
package bootiso

import (
	"encoding/binary"
	"fmt"
	"io"
	"os"
	"strings"

	"vch/internal/fault"
)

// Loader is the boot loader, as it is installed on this host.
type Loader struct {
	image  []byte // isolinux.bin: what the BIOS loads
	module []byte // ldlinux.c32: what that loads, of the same version
}

// Where Debian has the boot loader (packages isolinux and syslinux-common).
const (
	loaderImage  = "/usr/lib/ISOLINUX/isolinux.bin"
	loaderModule = "/usr/lib/syslinux/modules/bios/ldlinux.c32"
)

// Find finds the boot loader on this host. NotFound says what to install.
func Find() (Loader, error) { return find(loaderImage, loaderModule) }

func find(image, module string) (l Loader, err error) {
	if l.image, err = readPart(image, "isolinux"); err != nil {
		return Loader{}, err
	}
	if l.module, err = readPart(module, "syslinux-common"); err != nil {
		return Loader{}, err
	}
	if len(l.image) < infoTableAt+infoTableSize {
		return Loader{}, fault.New(fault.Unsupported, "%s is no boot loader: it has %d bytes", image, len(l.image))
	}
	return l, nil
}

func readPart(path, pack string) ([]byte, error) {
	data, err := os.ReadFile(path)
	if os.IsNotExist(err) {
		return nil, fault.New(fault.NotFound, "the boot loader for discs is not on this host: %w; install it with Debian's package %s", err, pack)
	}
	if err != nil {
		return nil, fault.New(fault.KindOf(err), "the boot loader for discs: %w", err)
	}
	return data, nil
}

// Files are what a machine boots.
type Files struct {
	Kernel    []byte // a bzImage
	Initramfs []byte // as the kernel takes it: plain, or compressed in one of its ways
	Append    string // the kernel's command line
}

// maxAppend is what fits in a line of the boot loader's configuration, with its keyword, and in the kernel's (syslinux core/include/syslinux.h; arch/x86/include/asm/setup.h,
// COMMAND_LINE_SIZE), beside what the loader adds itself: BOOT_IMAGE= and initrd=.
const maxAppend = 1900 // bytes

// configuration is isolinux.cfg. NOESCAPE: no key that is held down gets a prompt.
func configuration(line string) string {
	text := "DEFAULT vch\nPROMPT 0\nTIMEOUT 0\nNOESCAPE 1\nLABEL vch\nLINUX vmlinuz\nINITRD initrd\n"
	if line != "" {
		text += "APPEND " + line + "\n"
	}
	return text
}

// Write writes the disc. Invalid for what cannot be on one.
func (l Loader) Write(w io.Writer, f Files) error {
	if len(f.Append) > maxAppend {
		return fault.New(fault.Invalid, "the kernel's command line has %d bytes, and a disc takes %d", len(f.Append), maxAppend)
	}
	if strings.ContainsFunc(f.Append, func(r rune) bool { return r < ' ' || r > '~' }) {
		return fault.New(fault.Invalid, "the kernel's command line %q is not plain text of one line", f.Append)
	}
	for name, part := range map[string][]byte{"kernel": f.Kernel, "initramfs": f.Initramfs} {
		if len(part) == 0 || int64(len(part)) > maxFile {
			return fault.New(fault.Invalid, "the %s has %d bytes, and a disc takes 1 to %d", name, len(part), maxFile)
		}
	}
	// In the order of the directory (ECMA-119 section 9.3).
	return write(w, l.image, []entry{
		{"INITRD.;1", f.Initramfs},
		{"ISOLINUX.BIN;1", nil}, // patched
		{"ISOLINUX.CFG;1", []byte(configuration(f.Append))},
		{"LDLINUX.C32;1", l.module},
		{"VMLINUZ.;1", f.Kernel},
	})
}

// entry is a file of the disc.
type entry struct {
	name string // ECMA-119 section 7.5.1: eight characters, a dot, three, and the version
	data []byte
}

// The sectors of the disc. What comes after these are the files.
const (
	sector       = 2048
	primaryAt    = 16 // ECMA-119 section 6.2.1
	bootRecordAt = 17 // El Torito, figure 1
	terminatorAt = 18
	pathsLittle  = 19
	pathsBig     = 20
	rootAt       = 21
	catalogAt    = 22
	filesAt      = 23

	maxFile = 1<<32 - sector // bytes; a length is of 32 bits
)

// The table that isolinux.bin wants to find in itself (mkisofs(8), -boot-info-table), by which it finds the disc's directory, and checks that all of it was loaded.
const (
	infoTableAt   = 8
	infoTableSize = 56 // bytes; what is checked begins behind it, at 64
)

// write writes a file system of one directory with these files. The one without data is the boot loader's image.
func write(w io.Writer, image []byte, files []entry) error {
	places := make([]uint32, len(files)) // first sectors
	at, boot := uint32(filesAt), uint32(0)
	for i := range files {
		places[i] = at
		if files[i].data == nil {
			boot = at
			files[i].data = withInfoTable(image, at)
		}
		n := sectors(len(files[i].data))
		if at+n < at {
			return fault.New(fault.Invalid, "the disc is too large")
		}
		at += n
	}
	root := record(nil, "\x00", rootAt, sector, true)
	root = record(root, "\x01", rootAt, sector, true)
	for i, f := range files {
		root = record(root, f.name, places[i], uint32(len(f.data)), false)
	}
	if len(root) > sector {
		return fmt.Errorf("the directory has %d bytes, and one sector was meant for it", len(root))
	}
	for _, part := range [][]byte{
		make([]byte, primaryAt*sector), primary(at), bootRecord(), descriptor(255), pathTable(binary.LittleEndian), pathTable(binary.BigEndian), root, catalog(boot),
	} {
		if err := padded(w, part); err != nil {
			return err
		}
	}
	for _, f := range files {
		if err := padded(w, f.data); err != nil {
			return err
		}
	}
	return nil
}

func sectors(bytes int) uint32 { return uint32((int64(bytes) + sector - 1) / sector) }

// padded writes whole sectors.
func padded(w io.Writer, part []byte) error {
	if _, err := w.Write(part); err != nil {
		return err
	}
	if rest := len(part) % sector; rest != 0 {
		_, err := w.Write(make([]byte, sector-rest))
		return err
	}
	return nil
}

// withInfoTable is the boot loader's image, which begins at a sector, with its table, in a multiple of four bytes.
func withInfoTable(image []byte, at uint32) []byte {
	data := append([]byte(nil), image...)
	for len(data)%4 != 0 {
		data = append(data, 0)
	}
	var sum uint32
	for i := infoTableAt + infoTableSize; i < len(data); i += 4 {
		sum += binary.LittleEndian.Uint32(data[i:])
	}
	table := data[infoTableAt : infoTableAt+infoTableSize]
	clear(table)
	for i, v := range []uint32{primaryAt, at, uint32(len(image)), sum} {
		binary.LittleEndian.PutUint32(table[4*i:], v)
	}
	return data
}

// both32 is a number in both byte orders (ECMA-119 sections 7.2.3 and 7.3.3).
func both32(b []byte, v uint32) []byte {
	return binary.BigEndian.AppendUint32(binary.LittleEndian.AppendUint32(b, v), v)
}

// both16 is one of 16 bits.
func both16(b []byte, v uint16) []byte {
	return binary.BigEndian.AppendUint16(binary.LittleEndian.AppendUint16(b, v), v)
}

// record appends a record of a directory (ECMA-119 section 9.1), with no date: seven zeros.
func record(b []byte, name string, at, size uint32, directory bool) []byte {
	pad := 1 - len(name)%2
	b = append(b, byte(33+len(name)+pad), 0)
	b = both32(both32(b, at), size)
	b = append(b, make([]byte, 7)...)
	flags := byte(0)
	if directory {
		flags = 2
	}
	b = append(b, flags, 0, 0)
	b = both16(b, 1) // the disc, of one
	b = append(append(b, byte(len(name))), name...)
	return append(b, make([]byte, pad)...)
}

// pathTable has the one directory (ECMA-119 section 9.4).
func pathTable(order binary.AppendByteOrder) []byte {
	b := order.AppendUint32([]byte{1, 0}, rootAt)
	b = order.AppendUint16(b, 1) // its parent: itself
	return append(b, 0, 0)       // its name, padded
}

// descriptor is a volume descriptor (ECMA-119 section 8.1) with nothing in it.
func descriptor(kind byte) []byte {
	b := make([]byte, sector)
	copy(b, "\x00CD001\x01")
	b[0] = kind
	return b
}

// primary is the primary volume descriptor (ECMA-119 section 8.4) of a disc of so many sectors.
func primary(size uint32) []byte {
	d := descriptor(1)
	b := append(d[:8:sector], text("LINUX", 32)...)
	b = append(b, text("VCH", 32)...)
	b = append(b, make([]byte, 8)...)
	b = both32(b, size)
	b = append(b, make([]byte, 32)...)
	b = both16(b, 1) // discs
	b = both16(b, 1) // the number of this one
	b = both16(b, sector)
	b = both32(b, uint32(len(pathTable(binary.LittleEndian))))
	b = binary.LittleEndian.AppendUint32(b, pathsLittle)
	b = binary.LittleEndian.AppendUint32(b, 0)
	b = binary.BigEndian.AppendUint32(b, pathsBig)
	b = binary.BigEndian.AppendUint32(b, 0)
	b = record(b, "\x00", rootAt, sector, true)
	b = append(b, text("", 4*128+3*37)...) // who made it, and files that say so
	for range 4 {                          // dates: not given
		b = append(append(b, "0000000000000000"...), 0)
	}
	b = append(b, 1)  // version of the structure
	return b[:sector] // the rest is nothing
}

func text(s string, size int) string { return s + strings.Repeat(" ", size-len(s)) }

// bootRecord leads to the boot catalog (El Torito, figure 7).
func bootRecord() []byte {
	d := descriptor(0)
	copy(d[7:], "EL TORITO SPECIFICATION")
	binary.LittleEndian.PutUint32(d[0x47:], catalogAt)
	return d
}

// loadedSectors are those of 512 bytes of the image that the BIOS loads; the image loads the rest.
const loadedSectors = 4

// catalog is the boot catalog (El Torito, figures 2 and 3): the image at a sector, for a BIOS, loaded as it is.
func catalog(at uint32) []byte {
	validation := make([]byte, 32)
	validation[0] = 1 // header; platform 0 is 80x86
	validation[30], validation[31] = 0x55, 0xaa
	var sum uint16
	for i := 0; i < len(validation); i += 2 {
		sum += binary.LittleEndian.Uint16(validation[i:])
	}
	binary.LittleEndian.PutUint16(validation[28:], -sum)
	boot := make([]byte, 32)
	boot[0] = 0x88 // bootable; medium 0 is no emulation, segment 0 is 7C0
	binary.LittleEndian.PutUint16(boot[6:], loadedSectors)
	binary.LittleEndian.PutUint32(boot[8:], at)
	return append(validation, boot...)
}
