// Package vmdkfile is the text of a flat VMDK's descriptor: written for disks that vch makes, read from those that anyone has made, vSphere included, and fuzzed.
//
// A flat VMDK is two files, NAME.vmdk, the descriptor, and NAME-flat.vmdk, the extent, which is the disk's bytes as they are. This package opens neither.
package vmdkfile

import (
	"fmt"
	"regexp"
	"strconv"
	"strings"

	"vch/internal/fault"
)

// Extent is the path of the extent of the disk whose descriptor is at path, where vch and vSphere put it.
func Extent(path string) string { return strings.TrimSuffix(path, ".vmdk") + "-flat.vmdk" }

// Sector is the unit of a VMDK's extents, in bytes (VMware Virtual Disk Format 5.0, "The Extent Description").
const Sector = 512

// Descriptor is the text of a monolithic flat VMDK whose one extent is a raw file beside it, of size bytes.
func Descriptor(extent string, size int64) string {
	return describe("monolithicFlat", fmt.Sprintf("FLAT \"%s\" 0", extent), size)
}

// Thin is the line by which vSphere knows a disk that takes no more room than what is written needs; without it, it takes all of its own.
const Thin = "ddb.thinProvisioned = \"1\"\n"

// OnDatastore is Descriptor for a thin disk on a datastore of vSphere, which calls the same thing otherwise.
func OnDatastore(extent string, size int64) string {
	return describe("vmfs", fmt.Sprintf("VMFS \"%s\"", extent), size) + Thin
}

func describe(kind, extent string, size int64) string {
	sectors := size / Sector
	const heads, track = 255, 63 // what VMware writes for a disk on an lsilogic adapter
	return fmt.Sprintf(`# Disk DescriptorFile
version=1
CID=fffffffe
parentCID=ffffffff
createType="%s"

# Extent description
RW %d %s

# The Disk Data Base
#DDB

ddb.virtualHWVersion = "13"
ddb.geometry.cylinders = "%d"
ddb.geometry.heads = "%d"
ddb.geometry.sectors = "%d"
ddb.adapterType = "lsilogic"
`, kind, sectors, extent, max(1, sectors/(heads*track)), heads, track)
}

// vSphere writes VMFS where others write FLAT; both are a raw file.
var extentRule = regexp.MustCompile(`(?m)^\s*RW\s+([0-9]+)\s+(?:FLAT|VMFS)\s+"([^"/]+)"(?:\s+0)?\s*$`)

// Parse gives the extent's name and size. Conflict: it is not a descriptor of one flat extent.
func Parse(text string) (extent string, size int64, err error) {
	found := extentRule.FindAllStringSubmatch(text, 2)
	if !strings.HasPrefix(text, "# Disk DescriptorFile") || len(found) != 1 {
		return "", 0, fault.New(fault.Conflict, "its descriptor is damaged, or is not that of a flat VMDK with one extent")
	}
	sectors, err := strconv.ParseInt(found[0][1], 10, 64)
	if err != nil || sectors <= 0 || sectors > MaxDisk/Sector {
		return "", 0, fault.New(fault.Conflict, "its descriptor is damaged: it claims %s sectors", found[0][1])
	}
	return found[0][2], sectors * Sector, nil
}

// MaxDisk bounds a disk, in bytes: 16 TiB, the most that ext4 with 4 KiB blocks and 32-bit block numbers holds.
const MaxDisk = 16 << 40
