package fake

import (
	"os"
	"path/filepath"
	"testing"

	"go.uber.org/goleak"

	"vch/hypervisor/hypertest"
	"vch/portlayer"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// image is a disk of nothing: the fake's guests have their commands built in.
func image(t *testing.T, h portlayer.Hypervisor, dir portlayer.DiskPath) portlayer.DiskPath {
	t.Helper()
	raw := filepath.Join(t.TempDir(), "raw")
	if err := os.WriteFile(raw, make([]byte, 4096), 0o600); err != nil {
		t.Fatal(err)
	}
	p := h.Disks().Join(dir, "image.vmdk")
	if err := h.Disks().Import(t.Context(), raw, p); err != nil {
		t.Fatal(err)
	}
	return p
}

func TestSuite(t *testing.T) {
	world := NewWorld()
	hypertest.Run(t, hypertest.Options{
		New: func(t *testing.T, dir string) portlayer.Hypervisor {
			t.Helper()
			h, err := New(Options{Dir: dir, World: world})
			if err != nil {
				t.Fatal(err)
			}
			return h
		},
		Image: image,
	})
}
