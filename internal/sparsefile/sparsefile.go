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
func Copy(ctx context.Context, from, to string, progress func(done, total int64)) error {
	in, err := os.Open(from)
	if err != nil {
		return err
	}
	defer in.Close()
	st, err := in.Stat()
	if err != nil {
		return err
	}
	if progress == nil {
		progress = func(int64, int64) {}
	}
	return create(to, func(out *os.File) error {
		if err := unix.IoctlFileClone(int(out.Fd()), int(in.Fd())); err == nil {
			progress(st.Size(), st.Size())
			return nil
		}
		total := st.Size()
		if sys, ok := st.Sys().(*syscall.Stat_t); ok {
			total = min(total, sys.Blocks*512) // stat(2)
		}
		done := int64(0)
		err := Data(in, st.Size(), func(begin, end int64) error {
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
			return nil
		})
		if err != nil {
			return err
		}
		total = max(done, total) // blocks that hold no data are done, too
		progress(total, total)
		return out.Truncate(st.Size())
	})
}

// create makes the file to, which must not exist, has fill fill it, and makes that durable; after an error there is none.
func create(to string, fill func(out *os.File) error) (err error) {
	out, err := os.OpenFile(to, os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o600)
	if err != nil {
		return err
	}
	if err = fill(out); err == nil {
		err = out.Sync()
	}
	if err = errors.Join(err, out.Close()); err != nil {
		err = errors.Join(err, os.Remove(to))
	}
	return err
}

// Data calls each for every piece of data in the first size bytes of f, in order, and not for the holes between them.
func Data(f *os.File, size int64, each func(begin, end int64) error) error {
	for at := int64(0); at < size; {
		begin, err := unix.Seek(int(f.Fd()), at, unix.SEEK_DATA)
		if errors.Is(err, syscall.ENXIO) {
			return nil // a hole to the end
		}
		if err != nil {
			return err
		}
		end, err := unix.Seek(int(f.Fd()), begin, unix.SEEK_HOLE)
		if err != nil {
			return err
		}
		if err := each(begin, end); err != nil {
			return err
		}
		at = end
	}
	return nil
}

// Write makes the file to of the size bytes that r gives, durably, with holes where they are zero. to must not exist; after an error it does not. ErrLength if r gives less
// or more.
func Write(ctx context.Context, to string, size int64, r io.Reader) error {
	return create(to, func(out *os.File) error {
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
		return out.Truncate(size)
	})
}

// ErrLength is Write's error for a reader of another length.
var ErrLength = errors.New("not as many bytes as there should be")
