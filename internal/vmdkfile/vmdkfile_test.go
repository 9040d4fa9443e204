package vmdkfile

import (
	"strings"
	"testing"

	"vch/internal/fault"
)

func TestDescriptorRoundTrip(t *testing.T) {
	for _, size := range []int64{4 << 20, 4<<20 + 512, 1 << 30, MaxDisk} {
		for _, text := range []string{Descriptor("data-flat.vmdk", size), OnDatastore("data-flat.vmdk", size)} {
			extent, got, err := Parse(text)
			if err != nil || extent != "data-flat.vmdk" || got != size {
				t.Errorf("%d: %q %d %v", size, extent, got, err)
			}
		}
	}
}

func TestOnDatastoreIsThin(t *testing.T) {
	if text := OnDatastore("data-flat.vmdk", 4<<20); !strings.HasSuffix(text, "\nddb.thinProvisioned = \"1\"\n") {
		t.Error(text)
	}
}

func TestDescriptorsOfOthers(t *testing.T) {
	for name, tc := range map[string]struct {
		text string
		size int64 // 0: refused
	}{
		"vSphere":        {"# Disk DescriptorFile\nversion=1\ncreateType=\"vmfs\"\nRW 2048 VMFS \"x-flat.vmdk\"\n", 1 << 20},
		"two extents":    {"# Disk DescriptorFile\nRW 2048 FLAT \"a\" 0\nRW 2048 FLAT \"b\" 0\n", 0},
		"sparse":         {"# Disk DescriptorFile\nRW 2048 SPARSE \"a\"\n", 0},
		"path in extent": {"# Disk DescriptorFile\nRW 2048 FLAT \"../../etc/shadow\" 0\n", 0},
		"no size":        {"# Disk DescriptorFile\nRW 0 FLAT \"a\" 0\n", 0},
		"huge":           {"# Disk DescriptorFile\nRW 99999999999999999999 FLAT \"a\" 0\n", 0},
		"empty":          {"", 0},
		"not one":        {"KDMV\x01\x00", 0},
	} {
		_, size, err := Parse(tc.text)
		if size != tc.size || (err == nil) != (tc.size > 0) || err != nil && !fault.Is(err, fault.Conflict) {
			t.Errorf("%s: %d %v", name, size, err)
		}
	}
}

// A descriptor lies in a store that others can write: whatever it says, what comes out is a name in the same directory and a size in bounds.
func FuzzParseDescriptor(f *testing.F) {
	f.Add(Descriptor("a-flat.vmdk", 4<<20))
	f.Add("# Disk DescriptorFile\nRW 1 VMFS \"..\"\n")
	f.Fuzz(func(t *testing.T, text string) {
		extent, size, err := Parse(text)
		if err == nil && (strings.ContainsRune(extent, '/') || extent == "" || size <= 0 || size > MaxDisk) {
			t.Errorf("extent %q size %d", extent, size)
		}
	})
}
