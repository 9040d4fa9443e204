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

	"vch/internal/atomicfile"
	"vch/internal/fault"
	"vch/internal/guestkernel"
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
func prepareBoot(cache string, k guestkernel.Kernel, tether []byte) (b bootFiles, err error) {
	if err := os.MkdirAll(cache, 0o700); err != nil {
		return b, err
	}
	image, err := os.ReadFile(k.Image)
	if err != nil {
		return b, err
	}
	kernel := filepath.Join(cache, "vmlinux-"+digest(image))
	if _, err := os.Stat(kernel); err != nil {
		err := atomicfile.WriteFrom(kernel, 0o444, func(w io.Writer) error { return guestkernel.Vmlinux(image, w) })
		if fault.Is(err, fault.Unsupported) {
			kernel = k.Image
		} else if err != nil {
			return b, err
		}
	}
	var text bytes.Buffer
	if err := guestkernel.WriteInitramfs(&text, k, tether); err != nil {
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
