package qemu

import (
	"bytes"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"

	"github.com/u-root/u-root/pkg/cpio"

	"vch/internal/atomicfile"
	"vch/internal/fault"
)

// bootFiles is what QEMU boots. They are open, so that it does not matter who cleans up the directory in which they are.
type bootFiles struct {
	kernel *os.File // vmlinux, or the bzImage where that could not be had
	initrd *os.File
}

func (b bootFiles) close() error { return errors.Join(b.kernel.Close(), b.initrd.Close()) }

// again opens a file anew that is open, under whatever name or none, at its beginning.
func again(f *os.File) (*os.File, error) { return os.Open(fmt.Sprintf("/proc/self/fd/%d", f.Fd())) }

// prepareBoot writes kernel and initramfs to the cache directory, named by the hash of what they are made of; those of another make are dropped.
func prepareBoot(cache string, k Kernel, tether []byte) (b bootFiles, err error) {
	if err := os.MkdirAll(cache, 0o700); err != nil {
		return b, err
	}
	image, err := os.ReadFile(k.Image)
	if err != nil {
		return b, err
	}
	kernel := filepath.Join(cache, "vmlinux-"+digest(image))
	if _, err := os.Stat(kernel); err != nil {
		err := atomicfile.WriteFrom(kernel, 0o444, func(w io.Writer) error { return vmlinux(image, w) })
		if fault.Is(err, fault.Unsupported) {
			kernel = k.Image
		} else if err != nil {
			return b, err
		}
	}
	var text bytes.Buffer
	if err := writeInitramfs(&text, k, tether); err != nil {
		return b, err
	}
	initrd := filepath.Join(cache, "initramfs-"+digest(text.Bytes()))
	if _, err := os.Stat(initrd); err != nil {
		if err := atomicfile.Write(initrd, text.Bytes(), 0o444); err != nil {
			return b, err
		}
	}
	if b.kernel, err = os.Open(kernel); err != nil {
		return b, err
	}
	if b.initrd, err = os.Open(initrd); err != nil {
		return b, errors.Join(err, b.kernel.Close())
	}
	// Machines that run have read theirs.
	old, _ := os.ReadDir(cache)
	for _, e := range old {
		p := filepath.Join(cache, e.Name())
		if p != kernel && p != initrd && (strings.HasPrefix(e.Name(), "vmlinux-") || strings.HasPrefix(e.Name(), "initramfs-")) {
			_ = os.Remove(p)
		}
	}
	return b, nil
}

func digest(b []byte) string {
	sum := sha256.Sum256(b)
	return hex.EncodeToString(sum[:8])
}

// writeInitramfs writes the guest's first file system: the tether as /init, the modules with their load orders, a console to complain on.
func writeInitramfs(w io.Writer, k Kernel, tether []byte) error {
	rw := cpio.Newc.Writer(w)
	records := []cpio.Record{
		cpio.Directory("dev", 0o755),
		cpio.CharDev("dev/console", 0o600, 5, 1),
		cpio.CharDev("dev/null", 0o666, 1, 3),
		cpio.Directory("modules", 0o755),
	}
	for _, list := range []struct {
		name    string
		modules []string
	}{{"order", k.Modules}, {"later", k.Later}} {
		var order strings.Builder
		for _, m := range list.modules {
			data, err := os.ReadFile(m)
			if err != nil {
				return err
			}
			name := filepath.Base(m)
			order.WriteString(name + "\n")
			records = append(records, cpio.StaticFile("modules/"+name, string(data), 0o600))
		}
		records = append(records, cpio.StaticFile("modules/"+list.name, order.String(), 0o600))
	}
	records = append(records, cpio.StaticFile("init", string(tether), 0o755))
	for _, r := range records {
		if err := rw.WriteRecord(r); err != nil {
			return err
		}
	}
	return cpio.WriteTrailer(rw)
}
