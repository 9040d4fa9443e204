package vmdk

import (
	"io"
	"os"
	"strings"
	"testing"

	"vch/hypervisor/fake"
	"vch/hypervisor/qemu"
	"vch/internal/vmdkfile"
	"vch/portlayer"
)

// What is in a volume stays in it when it gets the name that its extent has, and back.
func TestRenameKeepsContent(t *testing.T) {
	disks, err := qemu.FindDisks()
	if err != nil {
		t.Fatal(err)
	}
	for name, d := range map[string]portlayer.Disks{"qemu": disks, "fake": fake.Disks{}} {
		root := portlayer.DiskPath(t.TempDir())
		s, err := Open(t.Context(), Options{Name: "disks", Location: string(root), Root: root, Disks: d, Driver: "x"})
		if err != nil {
			t.Fatal(err)
		}
		vol, _, err := s.Ensure(t.Context(), portlayer.VolumeSpec{Name: "data", Capacity: 8 * portlayer.MiB})
		if err != nil {
			t.Fatal(err)
		}
		f, err := os.OpenFile(vmdkfile.Extent(string(s.disk("data"))), os.O_WRONLY, 0)
		if err != nil {
			t.Fatal(err)
		}
		_, err = f.WriteAt([]byte("word"), 5<<20)
		f.Close()
		if err != nil {
			t.Fatal(err)
		}
		for _, to := range []portlayer.VolumeName{"data-flat", "data", "data-flat-flat", "data-flat", "other"} {
			if vol, err = s.Rename(t.Context(), vol.Name, to); err != nil {
				t.Fatalf("%s: to %s: %v", name, to, err)
			}
			r, _, err := d.Open(t.Context(), s.disk(to))
			if err != nil {
				t.Fatalf("%s: %s: %v", name, to, err)
			}
			all, err := io.ReadAll(r)
			r.Close()
			if err != nil || len(all) != 8<<20 || !strings.HasPrefix(string(all[5<<20:]), "word") {
				t.Errorf("%s: %s has lost its content (%d bytes, %v)", name, to, len(all), err)
			}
		}
	}
}
