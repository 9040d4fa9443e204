package qemu

import (
	"context"
	"errors"
	"io"
	"io/fs"
	"os"
	"path/filepath"

	"vch/internal/atomicfile"
	"vch/internal/fault"
	"vch/internal/sparsefile"
	"vch/internal/vmdkfile"
	"vch/portlayer"
)

// absent is a Conflict if one of a disk's files is there.
func absent(file string) error {
	for _, f := range []string{file, vmdkfile.Extent(file)} {
		if _, err := os.Lstat(f); err == nil {
			return fault.New(fault.Conflict, "disk file %s exists already", f)
		}
	}
	return nil
}

// place makes the disk file of size bytes: its extent by fill, which leaves nothing after its error, then its descriptor. After an error there is none.
func place(file string, size portlayer.Bytes, fill func(extent string) error) error {
	extent := vmdkfile.Extent(file)
	if err := absent(file); err != nil {
		return err
	}
	if err := fill(extent); err != nil {
		return noRoom(kindOf(err), filepath.Dir(file))
	}
	if err := atomicfile.Write(file, []byte(vmdkfile.Descriptor(filepath.Base(extent), int64(size))), 0o600); err != nil {
		return errors.Join(noRoom(kindOf(err), filepath.Dir(file)), os.Remove(extent))
	}
	return nil
}

// Copy is portlayer.Disks.Copy.
func (d Disks) Copy(ctx context.Context, from, to portlayer.DiskPath, progress portlayer.Progressed) error {
	source, info, err := locate(string(from))
	if err != nil {
		return err
	}
	err = place(string(to), info.Size, func(extent string) error {
		return sparsefile.Copy(ctx, source, extent, func(done, total int64) {
			if progress != nil {
				progress(portlayer.Bytes(done), portlayer.Bytes(total))
			}
		})
	})
	if cerr := ctx.Err(); err != nil && cerr != nil {
		return cerr // whatever the medium was like
	}
	return err
}

// Open is portlayer.Disks.Open.
func (d Disks) Open(_ context.Context, path portlayer.DiskPath) (io.ReadCloser, portlayer.DiskInfo, error) {
	extent, info, err := locate(string(path))
	if err != nil {
		return nil, info, err
	}
	f, err := os.Open(extent)
	if err != nil {
		return nil, info, kindOf(err)
	}
	return bounded{io.LimitReader(f, int64(info.Size)), f}, info, nil
}

// bounded is a file of which no more is read than the descriptor says.
type bounded struct {
	io.Reader
	io.Closer
}

// CreateFrom is portlayer.Disks.CreateFrom.
func (d Disks) CreateFrom(ctx context.Context, path portlayer.DiskPath, size portlayer.Bytes, r io.Reader) error {
	if size <= 0 || size%vmdkfile.Sector != 0 || size > vmdkfile.MaxDisk {
		return fault.New(fault.Invalid, "a disk cannot have %d bytes", size)
	}
	return place(string(path), size, func(extent string) error {
		err := sparsefile.Write(ctx, extent, int64(size), r)
		if errors.Is(err, sparsefile.ErrLength) {
			return fault.New(fault.Invalid, "the disk does not have the %d bytes that it should have: it was cut off on its way", size)
		}
		return err
	})
}

// Grow is portlayer.Disks.Grow. The extent comes first: longer than its descriptor says, it does no harm.
func (d Disks) Grow(_ context.Context, path portlayer.DiskPath, size portlayer.Bytes) error {
	extent, info, err := locate(string(path))
	if err != nil {
		return err
	}
	size = (size + vmdkfile.Sector - 1) / vmdkfile.Sector * vmdkfile.Sector
	switch {
	case size < info.Size:
		return fault.New(fault.Invalid, "a disk of %d bytes cannot become one of %d: it would lose what is at its end", info.Size, size)
	case size > vmdkfile.MaxDisk:
		return fault.New(fault.Invalid, "a disk of %d bytes cannot be made: the most is %d TiB", size, int64(vmdkfile.MaxDisk>>40))
	case size == info.Size:
		return nil
	}
	if err := os.Truncate(extent, int64(size)); err != nil {
		return noRoom(kindOf(err), filepath.Dir(extent))
	}
	if err := syncFile(extent); err != nil {
		return kindOf(err)
	}
	return noRoom(kindOf(atomicfile.Write(string(path), []byte(vmdkfile.Descriptor(filepath.Base(extent), int64(size))), 0o600)), filepath.Dir(extent))
}

// Link is portlayer.Disks.Link.
func (d Disks) Link(_ context.Context, from, to portlayer.DiskPath) error {
	source, info, err := locate(string(from))
	if err != nil {
		return err
	}
	return place(string(to), info.Size, func(extent string) error { return os.Link(source, extent) })
}

// MoveDir is portlayer.Disks.MoveDir.
func (d Disks) MoveDir(_ context.Context, from, to portlayer.DiskPath) error {
	err := atomicfile.RenameNew(string(from), string(to))
	if errors.Is(err, fs.ErrExist) {
		return fault.New(fault.Conflict, "%s exists already", to)
	}
	if err != nil {
		return kindOf(err)
	}
	return kindOf(errors.Join(atomicfile.SyncDir(filepath.Dir(string(from))), atomicfile.SyncDir(filepath.Dir(string(to)))))
}
