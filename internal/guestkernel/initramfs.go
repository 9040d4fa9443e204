package guestkernel

import (
	"io"
	"os"
	"path/filepath"
	"strings"

	"github.com/u-root/u-root/pkg/cpio"
)

// File is another file in the root of an initramfs.
type File struct {
	Name string
	Data []byte
}

// WriteInitramfs writes the guest's first file system: the tether as /init, the modules with their load orders, a console to complain on.
func WriteInitramfs(w io.Writer, k Kernel, tether []byte, more ...File) error {
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
	for _, f := range more {
		records = append(records, cpio.StaticFile(f.Name, string(f.Data), 0o600))
	}
	records = append(records, cpio.StaticFile("init", string(tether), 0o755))
	for _, r := range records {
		if err := rw.WriteRecord(r); err != nil {
			return err
		}
	}
	return cpio.WriteTrailer(rw)
}
