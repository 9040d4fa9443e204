// Package sparsefile copies files with holes: their data, and not their zeros.
//
// A disk's extent is such a file: it has the size that the disk may hold, and takes what was written. A copy that wrote the holes out would take all of
// it, and minutes. Where the file system shares blocks between files, a copy takes no time and no room.
package sparsefile

import (
	"bytes"
	"context"
	"errors"
	"io"
	"os"
	"syscall"

	"golang.org/x/sys/unix"
)

// piece is how much is copied between two looks at the context, in bytes.
const piece = 8 << 20

// Copy makes the file to with what from holds, durably. Where the file system can, the two share their blocks (ioctl_ficlonerange(2)) until one is written;
// otherwise the data is copied and the holes stay holes. progress (nil: nobody asks) is called with the bytes that are done, of total bytes of data. to must
// not exist; after an error it does not.
func Copy(ctx context.Context, from, to string, progress func(done, total int64)) (err error) {
	in, err := os.Open(from)
	if err != nil {
		return err
	}
	defer in.Close()
	st, err := in.Stat()
	if err != nil {
		return err
	}
	out, err := os.OpenFile(to, os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o600)
	if err != nil {
		return err
	}
	defer func() {
		err = errors.Join(err, out.Close())
		if err != nil {
			err = errors.Join(err, os.Remove(to))
		}
	}()
	if progress == nil {
		progress = func(int64, int64) {}
	}
	if err := unix.IoctlFileClone(int(out.Fd()), int(in.Fd())); err == nil {
		progress(st.Size(), st.Size())
		return out.Sync()
	}
	total := st.Size()
	if sys, ok := st.Sys().(*syscall.Stat_t); ok {
		total = min(total, sys.Blocks*512) // stat(2)
	}
	done := int64(0)
	for at := int64(0); at < st.Size(); {
		begin, err := unix.Seek(int(in.Fd()), at, unix.SEEK_DATA)
		if errors.Is(err, syscall.ENXIO) {
			break // a hole to the end
		}
		if err != nil {
			return err
		}
		end, err := unix.Seek(int(in.Fd()), begin, unix.SEEK_HOLE)
		if err != nil {
			return err
		}
		for begin < end {
			if err := ctx.Err(); err != nil {
				return err
			}
			n := min(end-begin, piece)
			if _, err := io.Copy(io.NewOffsetWriter(out, begin), io.NewSectionReader(in, begin, n)); err != nil {
				return err
			}
			begin += n
			done += n
			progress(done, max(done, total))
		}
		at = end
	}
	if err := out.Truncate(st.Size()); err != nil {
		return err
	}
	if err := out.Sync(); err != nil {
		return err
	}
	total = max(done, total) // blocks that hold no data are done, too
	progress(total, total)
	return nil
}

// Write makes the file to of the size bytes that r gives, durably, with holes where they are zero. to must not exist; after an error it does not. ErrLength if r gives less
// or more.
func Write(ctx context.Context, to string, size int64, r io.Reader) (err error) {
	out, err := os.OpenFile(to, os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o600)
	if err != nil {
		return err
	}
	defer func() {
		err = errors.Join(err, out.Close())
		if err != nil {
			err = errors.Join(err, os.Remove(to))
		}
	}()
	const block = 64 << 10
	buf, zeros := make([]byte, block), make([]byte, block)
	at := int64(0)
	for {
		if err := ctx.Err(); err != nil {
			return err
		}
		n, err := io.ReadFull(r, buf)
		if at+int64(n) > size {
			return ErrLength
		}
		if !bytes.Equal(buf[:n], zeros[:n]) {
			if _, err := out.WriteAt(buf[:n], at); err != nil {
				return err
			}
		}
		at += int64(n)
		if err == io.EOF || err == io.ErrUnexpectedEOF {
			break
		}
		if err != nil {
			return err
		}
	}
	if at != size {
		return ErrLength
	}
	if err := out.Truncate(size); err != nil {
		return err
	}
	return out.Sync()
}

// ErrLength is Write's error for a reader of another length.
var ErrLength = errors.New("not as many bytes as there should be")
