package fake

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"

	"vch/internal/fault"
	"vch/portlayer"
)

// sector is the unit of a VMDK's sizes (VMware, "Virtual Disk Format 5.0", Extent Descriptions).
const sector = 512

// extentRule is the extent line of a monolithic flat disk.
var extentRule = regexp.MustCompile(`(?m)^RW ([0-9]{1,15}) FLAT "([^"/]+)" 0\s*$`)

// extentPath is where the bytes of the disk are.
func extentPath(descriptor string) string {
	return strings.TrimSuffix(descriptor, ".vmdk") + "-flat.vmdk"
}

// describe writes a descriptor for an extent beside it.
func describe(descriptor string, size portlayer.Bytes) []byte {
	sectors := int64(size) / sector
	const heads, perTrack = 16, 63 // the geometry that every disk past 8 GB has; nothing reads it
	return fmt.Appendf(nil, `# Disk DescriptorFile
version=1
CID=fffffffe
parentCID=ffffffff
createType="monolithicFlat"

# Extent description
RW %d FLAT "%s" 0

# The Disk Data Base
#DDB
ddb.virtualHWVersion = "4"
ddb.geometry.cylinders = "%d"
ddb.geometry.heads = "%d"
ddb.geometry.sectors = "%d"
ddb.adapterType = "lsilogic"
`, sectors, filepath.Base(extentPath(descriptor)), min(sectors/(heads*perTrack), 16383), heads, perTrack)
}

// openExtent finds a disk's extent and checks it against the descriptor.
func openExtent(path portlayer.DiskPath) (extent string, fi fs.FileInfo, err error) {
	extent, fi, _, err = sizedExtent(path)
	return extent, fi, err
}

// sizedExtent is openExtent, with the size that the descriptor says.
func sizedExtent(path portlayer.DiskPath) (extent string, fi fs.FileInfo, size portlayer.Bytes, err error) {
	text, err := os.ReadFile(string(path))
	if errors.Is(err, fs.ErrNotExist) {
		return "", nil, 0, fault.New(fault.NotFound, "no disk %s", path)
	}
	if err != nil {
		return "", nil, 0, fault.New(fault.Conflict, "disk %s is damaged: its descriptor cannot be read: %w", path, err)
	}
	m := extentRule.FindSubmatch(text)
	if m == nil {
		return "", nil, 0, fault.New(fault.Conflict, "disk %s is damaged: its descriptor names no flat extent", path)
	}
	sectors, err := strconv.ParseInt(string(m[1]), 10, 64)
	if err != nil {
		return "", nil, 0, fault.New(fault.Conflict, "disk %s is damaged: %w", path, err)
	}
	extent = filepath.Join(filepath.Dir(string(path)), string(m[2]))
	fi, err = os.Stat(extent)
	if errors.Is(err, fs.ErrNotExist) {
		return "", nil, 0, fault.New(fault.NotFound, "disk %s has lost its extent %s", path, m[2])
	}
	if err != nil {
		return "", nil, 0, err
	}
	if want := sectors * sector; fi.Size() < want {
		return "", nil, 0, fault.New(fault.Conflict, "disk %s is damaged: its extent %s has %d bytes, its descriptor says %d; restore it from a backup", path, m[2], fi.Size(), want)
	}
	return extent, fi, portlayer.Bytes(sectors * sector), nil
}
