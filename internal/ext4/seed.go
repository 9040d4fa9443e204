package ext4

import (
	"compress/gzip"
	"context"
	"encoding/gob"
	"fmt"
	"io"
	"os"
	"slices"
)

// A Seed is an empty file system of one size without its name, small enough to be carried to where a disk is blank: the few blocks that are not zero.
type Seed struct {
	Size   int64 // bytes
	Pieces []Piece
}

// Piece is a part of a file system that is not zero.
type Piece struct {
	At   int64
	Data []byte
}

// Seeds makes those of file systems without a directory, in a file of the directory dir, and writes them as ReadSeeds reads them.
func (m Maker) Seeds(ctx context.Context, dir string, w io.Writer, sizes ...int64) error {
	var all []Seed
	for _, size := range sizes {
		s, err := m.seed(ctx, dir, size)
		if err != nil {
			return err
		}
		all = append(all, s)
	}
	z := gzip.NewWriter(w)
	if err := gob.NewEncoder(z).Encode(all); err != nil {
		return err
	}
	return z.Close()
}

func (m Maker) seed(ctx context.Context, dir string, size int64) (Seed, error) {
	f, err := os.CreateTemp(dir, "seed-*")
	if err != nil {
		return Seed{}, err
	}
	defer func() {
		f.Close()
		_ = os.Remove(f.Name())
	}()
	if err := m.Format(ctx, f, Shape{Size: size}, "", ""); err != nil {
		return Seed{}, err
	}
	g, err := learn(f, size)
	if err != nil {
		return Seed{}, err
	}
	if len(g.pieces) == 0 {
		return Seed{}, fmt.Errorf("the file system of %s has no holes", dir)
	}
	s := Seed{Size: size}
	for _, p := range g.pieces {
		s.Pieces = append(s.Pieces, Piece{p.at, p.data})
	}
	return s, nil
}

// ReadSeeds reads what Maker.Seeds has written, the largest first.
func ReadSeeds(r io.Reader) ([]Seed, error) {
	z, err := gzip.NewReader(r)
	if err != nil {
		return nil, err
	}
	var all []Seed
	if err := gob.NewDecoder(z).Decode(&all); err != nil {
		return nil, err
	}
	slices.SortFunc(all, func(a, b Seed) int { return int(min(max(b.Size-a.Size, -1), 1)) })
	return all, nil
}

// Disk is what a seed is poured into.
type Disk interface {
	io.WriterAt
	// Sync returns when what was written outlasts a power failure.
	Sync() error
}

// Pour writes the file system into a disk that reads as zeros, with secrets and a UUID of its own, and syncs it. The first Block comes when all else is on the disk: one that was broken
// off begins with zeros still, and can be poured again.
func (s Seed) Pour(d Disk) error {
	var g golden
	for _, p := range s.Pieces {
		g.pieces = append(g.pieces, fsPiece{p.At, p.Data})
	}
	id, err := uuidBytes("")
	if err != nil {
		return err
	}
	head, rest := g.named(s.Size, "", id).split(Block)
	for _, part := range []golden{rest, head} {
		if err := part.write(d); err != nil {
			return err
		}
		if err := d.Sync(); err != nil {
			return err
		}
	}
	return nil
}
