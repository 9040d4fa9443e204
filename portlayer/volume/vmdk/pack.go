package vmdk

import (
	"archive/tar"
	"context"
	"encoding/json"
	"errors"
	"io"
	"path"
	"strings"
	"time"

	"vch/internal/fault"
	"vch/portlayer"
)

// A packed volume is a tar of three files, in this order: packFile, the disk's descriptor, its extent. Taken out of it, the last two are the disk, as VMware and QEMU
// read it.

// packFile says what the disk is.
const packFile = "volume.json"

// packRecord is what it holds.
type packRecord struct {
	Format int               `json:"format"`
	Size   portlayer.Bytes   `json:"size"`
	Was    []portlayer.Label `json:"was"` // what the file system may be called
}

// Pack is portlayer.VolumeStore.Pack.
func (s *Store) Pack(ctx context.Context, name portlayer.VolumeName, snapshot string, w io.Writer) error {
	src, err := s.Source(ctx, name, snapshot)
	if err != nil {
		return err
	}
	descriptor, err := s.o.Disks.ReadFile(ctx, src.Disk)
	if err != nil {
		return s.blame(ctx, err)
	}
	disk, info, err := s.o.Disks.Open(ctx, src.Disk)
	if err != nil {
		return s.blame(ctx, err)
	}
	defer disk.Close()
	head, err := json.MarshalIndent(packRecord{Format: format, Size: info.Size, Was: src.Labels}, "", "  ")
	if err != nil {
		return err
	}
	base := path.Base(string(src.Disk))
	t := tar.NewWriter(w)
	put := func(name string, size int64, r io.Reader) error {
		if err := t.WriteHeader(&tar.Header{Typeflag: tar.TypeReg, Name: name, Mode: 0o600, Size: size, ModTime: time.Now(), Format: tar.FormatPAX}); err != nil {
			return err
		}
		_, err := io.Copy(t, reader{ctx, r})
		return err
	}
	if err := put(packFile, int64(len(head)), strings.NewReader(string(head))); err != nil {
		return err
	}
	if err := put(base, int64(len(descriptor)), strings.NewReader(string(descriptor))); err != nil {
		return err
	}
	if err := put(strings.TrimSuffix(base, ".vmdk")+"-flat.vmdk", int64(info.Size), disk); err != nil {
		return err
	}
	return t.Close()
}

// reader ends with its context.
type reader struct {
	ctx context.Context
	r   io.Reader
}

func (r reader) Read(p []byte) (int, error) {
	if err := r.ctx.Err(); err != nil {
		return 0, err
	}
	return r.r.Read(p)
}

// packed is a packed volume whose disk is next to be read.
type packed struct {
	packRecord
	disk io.Reader
	rest io.Reader // of the whole
}

// unpack reads a packed volume as far as its disk. Invalid: it is none.
func unpack(r io.Reader) (packed, error) {
	p := packed{rest: r}
	t := tar.NewReader(r)
	none := func(why error) (packed, error) {
		if k := fault.KindOf(why); k == fault.Invalid || errors.Is(why, context.Canceled) {
			return p, why
		}
		return p, fault.New(fault.Invalid, "this is no disk that vch volume export --format vmdk has written: %w", why)
	}
	h, err := t.Next()
	if err != nil {
		return none(err)
	}
	if h.Name != packFile {
		return none(errors.New("its first file is not " + packFile))
	}
	const most = 1 << 20
	if err := json.NewDecoder(io.LimitReader(t, most)).Decode(&p.packRecord); err != nil {
		return none(err)
	}
	if p.Format != format || p.Size <= 0 || p.Size%sector != 0 || len(p.Was) == 0 {
		return none(errors.New(packFile + " lacks its format, size or labels, or is a newer vch's"))
	}
	for _, l := range p.Was {
		if !isLabel(l) {
			return none(errors.New("a label in " + packFile + " is not 32 hex digits"))
		}
	}
	for _, suffix := range []string{".vmdk", "-flat.vmdk"} { // what the descriptor says is for others: it is written anew
		if h, err = t.Next(); err != nil {
			return none(err)
		}
		if h.Typeflag != tar.TypeReg || !strings.HasSuffix(h.Name, suffix) {
			return none(errors.New(h.Name + " is not the disk's " + suffix))
		}
	}
	if h.Size != int64(p.Size) {
		return none(errors.New("its disk has not the size that " + packFile + " says"))
	}
	p.disk = t
	return p, nil
}

// fillFrom makes the disk of a volume of a packed one, and reads that to its end.
func (s *Store) fillFrom(ctx context.Context, disk portlayer.DiskPath, p packed) error {
	if err := s.o.Disks.CreateFrom(ctx, disk, p.Size, reader{ctx, p.disk}); err != nil {
		if errors.Is(err, io.ErrUnexpectedEOF) {
			return fault.New(fault.Invalid, "the disk was cut off on its way: %w", err)
		}
		return err
	}
	_, err := io.Copy(io.Discard, reader{ctx, p.rest})
	return err
}
