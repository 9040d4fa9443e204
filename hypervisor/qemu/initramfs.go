package qemu

import (
	"bytes"
	"crypto/sha256"
	"encoding/hex"
	"io"
	"os"
	"path/filepath"
	"strings"

	"github.com/u-root/u-root/pkg/cpio"

	"vch/internal/atomicfile"
	"vch/internal/fault"
)

// bootFiles is what QEMU boots.
type bootFiles struct {
	kernel string // vmlinux, or the bzImage where that could not be had
	initrd string
}

// prepareBoot writes kernel and initramfs to the cache directory, named by the hash of what they are made of; those of another make are dropped.
func prepareBoot(cache string, k Kernel, tether []byte) (bootFiles, error) {
	var b bootFiles
	if err := os.MkdirAll(cache, 0o700); err != nil {
		return b, err
	}
	image, err := os.ReadFile(k.Image)
	if err != nil {
		return b, err
	}
	b.kernel = filepath.Join(cache, "vmlinux-"+digest(image))
	if _, err := os.Stat(b.kernel); err != nil {
		err := atomicfile.WriteFrom(b.kernel, 0o444, func(w io.Writer) error { return vmlinux(image, w) })
		if fault.Is(err, fault.Unsupported) {
			b.kernel = k.Image
		} else if err != nil {
			return b, err
		}
	}
	var initrd bytes.Buffer
	if err := writeInitramfs(&initrd, k.Modules, tether); err != nil {
		return b, err
	}
	b.initrd = filepath.Join(cache, "initramfs-"+digest(initrd.Bytes()))
	if _, err := os.Stat(b.initrd); err != nil {
		if err := atomicfile.Write(b.initrd, initrd.Bytes(), 0o444); err != nil {
			return b, err
		}
	}
	// Machines that run have read theirs.
	old, _ := os.ReadDir(cache)
	for _, e := range old {
		p := filepath.Join(cache, e.Name())
		if p != b.kernel && p != b.initrd && (strings.HasPrefix(e.Name(), "vmlinux-") || strings.HasPrefix(e.Name(), "initramfs-")) {
			_ = os.Remove(p)
		}
	}
	return b, nil
}

func digest(b []byte) string {
	sum := sha256.Sum256(b)
	return hex.EncodeToString(sum[:8])
}

// writeInitramfs writes the guest's first file system: the tether as /init, the modules in load order, a console to complain on.
func writeInitramfs(w io.Writer, modules []string, tether []byte) error {
	rw := cpio.Newc.Writer(w)
	var order strings.Builder
	records := []cpio.Record{
		cpio.Directory("dev", 0o755),
		cpio.CharDev("dev/console", 0o600, 5, 1),
		cpio.CharDev("dev/null", 0o666, 1, 3),
		cpio.Directory("modules", 0o755),
	}
	for _, m := range modules {
		data, err := os.ReadFile(m)
		if err != nil {
			return err
		}
		name := filepath.Base(m)
		order.WriteString(name + "\n")
		records = append(records, cpio.StaticFile("modules/"+name, string(data), 0o600))
	}
	records = append(records, cpio.StaticFile("modules/order", order.String(), 0o600), cpio.StaticFile("init", string(tether), 0o755))
	for _, r := range records {
		if err := rw.WriteRecord(r); err != nil {
			return err
		}
	}
	return cpio.WriteTrailer(rw)
}
