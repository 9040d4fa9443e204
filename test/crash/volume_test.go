package crash

import (
	"archive/tar"
	"os"
	"path/filepath"
	"strings"
	"testing"
)

// A daemon killed at any step of an import leaves no volume, and one killed amid a resize leaves the volume whole, as large as it was or was to be. No utility machine is
// left, and the next try works.
func TestVolumeWorkKilledAtEveryStep(t *testing.T) {
	h := newHost(t)
	archive := filepath.Join(h.dir, "v.tar")
	f, err := os.Create(archive)
	if err != nil {
		t.Fatal(err)
	}
	w := tar.NewWriter(f)
	if err := w.WriteHeader(&tar.Header{Typeflag: tar.TypeReg, Name: "f", Mode: 0o644, Size: 4}); err != nil {
		t.Fatal(err)
	}
	if _, err := w.Write([]byte("kept")); err != nil {
		t.Fatal(err)
	}
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	if err := f.Close(); err != nil {
		t.Fatal(err)
	}
	for _, c := range []struct {
		point string
		args  []string
	}{
		{"import.journal", []string{"volume", "import", "-i", archive, "--label", "vch.protect", "new"}},
		{"import.made", []string{"volume", "import", "-i", archive, "--label", "vch.protect", "new"}},
		{"volume.journal", []string{"volume", "import", "-i", archive, "new"}},
		{"volume.done", []string{"volume", "import", "-i", archive, "new"}},
		{"volume.journal", []string{"volume", "resize", "data", "100M"}},
		{"volume.done", []string{"volume", "resize", "data", "120M"}},
	} {
		t.Run(c.args[1]+" "+c.point, func(t *testing.T) {
			h.t = t
			h.docker("volume", "create", "--opt", "Capacity=32M", "data")
			h.docker("run", "--rm", "-v", "data:/d", "box", "sh", "-c", "busybox echo kept >/d/f")
			h.kill()
			h.up(c.point + "=exit")
			if out, err := h.vch(c.args...); err == nil {
				t.Fatalf("vch answered: %s", out)
			}
			h.died()
			h.up("")
			if names := h.docker("volume", "ls", "-q"); strings.Contains(names, "new") {
				t.Errorf("volumes %s", names)
			}
			if pids := h.qemus(); len(pids) > 0 {
				t.Errorf("machines are left: %v", pids)
			}
			if out, err := h.vch(c.args...); err != nil {
				t.Errorf("again: %v: %s", err, out)
			}
			name := map[string]string{"import": "new", "resize": "data"}[c.args[1]]
			if out := strings.TrimSpace(h.docker("run", "--rm", "-v", name+":/d", "box", "sh", "-c", "busybox cat /d/f")); out != "kept" {
				t.Errorf("the volume holds %q", out)
			}
			for _, v := range []string{name, "data"} {
				_, _ = h.vch("volume", "unprotect", v)
				h.docker("volume", "rm", "-f", v)
			}
			h.consistent()
		})
	}
}
