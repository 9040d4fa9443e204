package hypertest

import (
	"archive/tar"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"testing"

	"github.com/Microsoft/hcsshim/ext4/tar2ext4"

	"vch/portlayer"
)

// What suites of real machines need.

// Tether compiles the guest's /init.
func Tether(t *testing.T) []byte {
	t.Helper()
	bin := filepath.Join(t.TempDir(), "tether")
	cmd := exec.Command("go", "build", "-trimpath", "-ldflags", "-s -w", "-o", bin, "vch/cmd/tether")
	cmd.Env = append(os.Environ(), "CGO_ENABLED=0")
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Fatalf("build the tether: %v\n%s", err, out)
	}
	data, err := os.ReadFile(bin)
	if err != nil {
		t.Fatal(err)
	}
	return data
}

// Busybox makes the disk of a root file system of busybox alone.
func Busybox(t *testing.T, h portlayer.Hypervisor, dir portlayer.DiskPath) portlayer.DiskPath {
	t.Helper()
	path, err := exec.LookPath("busybox")
	if err != nil {
		t.Fatalf("%v: install Debian's package busybox-static, or run make setup", err)
	}
	busybox, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	raw, err := os.Create(filepath.Join(t.TempDir(), "raw"))
	if err != nil {
		t.Fatal(err)
	}
	defer raw.Close()
	r, w := io.Pipe()
	go func() {
		tw := tar.NewWriter(w)
		add := func(hdr tar.Header, content []byte) error {
			hdr.Size, hdr.Mode = int64(len(content)), 0o755
			if err := tw.WriteHeader(&hdr); err != nil {
				return err
			}
			_, err := tw.Write(content)
			return err
		}
		err := add(tar.Header{Name: "bin/", Typeflag: tar.TypeDir}, nil)
		if err == nil {
			err = add(tar.Header{Name: "bin/busybox", Typeflag: tar.TypeReg}, busybox)
		}
		for _, applet := range []string{"sh", "cat", "sleep", "echo"} {
			if err == nil {
				err = add(tar.Header{Name: "bin/" + applet, Typeflag: tar.TypeSymlink, Linkname: "busybox"}, nil)
			}
		}
		if err == nil {
			err = tw.Close()
		}
		w.CloseWithError(err) // which ends the conversion
	}()
	if err := tar2ext4.ConvertTarToExt4(r, raw); err != nil {
		t.Fatal(err)
	}
	image := h.Disks().Join(dir, "image.vmdk")
	if err := h.Disks().Import(t.Context(), raw.Name(), image); err != nil {
		t.Fatal(err)
	}
	return image
}
