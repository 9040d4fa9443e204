package vsphere

import (
	"context"
	"fmt"
	"io"
	"os"
	"sync"

	"vch/guest"
	"vch/internal/ext4"
	"vch/internal/fault"
	"vch/internal/keylock"
	"vch/portlayer"
)

// A new volume is a copy, made by the datastore, of a disk with an empty file system that was uploaded once. A copy that is longer than what is in it is made whole by its first machine,
// which mounts it writable: the file system grows, and gets its volume's name.

// goldenLabel is what file systems are called that nobody has mounted: the md5 of "vch golden disk".
const goldenLabel portlayer.Label = "f5b7a6299670a7bea3bb62df46dbbe2a"

// goldenDir is where golden disks are on a datastore. It is for all VCHs that use it.
const goldenDir = ".vch"

// goldenShapes are those of golden disks: each for disks of so many bytes and more. A copy may take all of its room at once, where the datastore does not leave zeros out, so that they are
// small; a file system keeps the journal that it was made with, so that those of large disks have one that is larger than mke2fs gives them. They can grow in place up to Most.
var goldenShapes = []struct {
	from  portlayer.Bytes
	shape ext4.Shape
}{
	{512 * portlayer.MiB, ext4.Shape{Size: 64 << 20, Dir: guest.VolumeDir, Journal: 16 << 20, Most: 1 << 40}},
	{16 * portlayer.MiB, ext4.Shape{Size: 16 << 20, Dir: guest.VolumeDir, Most: 1 << 30}},
	{portlayer.MinDisk, ext4.Shape{Size: int64(portlayer.MinDisk), Dir: guest.VolumeDir}},
}

// golden has what is known of golden disks.
type golden struct {
	maker ext4.Maker
	dir   string                     // of this host, where they are made
	busy  keylock.Set[datastorePath] // held by whoever makes one

	mu    sync.Mutex // guards below
	there map[datastorePath]bool
}

func newGolden(maker ext4.Maker, dir string) *golden {
	return &golden{maker: maker, dir: dir, there: map[datastorePath]bool{}}
}

// goldenName is the name of the disk of a size. The number is that of the form: what is made otherwise has another.
func goldenName(size portlayer.Bytes) string {
	return fmt.Sprintf("ext4-2-%d.vmdk", size/portlayer.MiB)
}

// disk ensures that a datastore has the golden disk for disks of a size, and gives it with its own size, which is not more.
func (g *golden) disk(ctx context.Context, d *Disks, store string, size portlayer.Bytes) (datastorePath, portlayer.Bytes, error) {
	shape := goldenShapes[len(goldenShapes)-1].shape
	for _, s := range goldenShapes {
		if s.from <= size {
			shape = s.shape
			break
		}
	}
	own := portlayer.Bytes(shape.Size)
	p := datastorePath{store: store}.join(goldenDir, goldenName(own))
	unlock, err := g.busy.Lock(ctx, p)
	if err != nil {
		return p, 0, err
	}
	defer unlock()
	if g.has(p) {
		return p, own, nil
	}
	if _, err := d.Stat(ctx, p.disk()); err == nil {
		g.note(p)
		return p, own, nil
	} else if !fault.Is(err, fault.NotFound) {
		return p, 0, err
	}
	if err := g.upload(ctx, d, p, shape); err != nil && !fault.Is(err, fault.Conflict) { // another VCH may have been quicker
		return p, 0, fault.Wrap("make golden disk", p.String(), err)
	}
	g.note(p)
	return p, own, nil
}

func (g *golden) has(p datastorePath) bool {
	g.mu.Lock()
	defer g.mu.Unlock()
	return g.there[p]
}

func (g *golden) note(p datastorePath) {
	g.mu.Lock()
	defer g.mu.Unlock()
	g.there[p] = true
}

// forget has a golden disk looked for again.
func (g *golden) forget(p datastorePath) {
	g.mu.Lock()
	defer g.mu.Unlock()
	delete(g.there, p)
}

// uuidOf is a label as mkfs.ext4 takes it.
func uuidOf(l portlayer.Label) string {
	return fmt.Sprintf("%s-%s-%s-%s-%s", l[:8], l[8:12], l[12:16], l[16:20], l[20:])
}

// upload makes a golden disk on this host and puts it onto a datastore.
func (g *golden) upload(ctx context.Context, d *Disks, p datastorePath, shape ext4.Shape) error {
	f, err := os.CreateTemp(g.dir, "golden-*")
	if err != nil {
		return err
	}
	defer func() {
		f.Close()
		_ = os.Remove(f.Name())
	}()
	if err := g.maker.Format(ctx, f, shape, string(goldenLabel[:16]), uuidOf(goldenLabel)); err != nil {
		return err
	}
	if err := d.makeDir(ctx, p.dir()); err != nil {
		return err
	}
	return d.place(ctx, p, func(beside datastorePath) error {
		return d.upload(ctx, beside, shape.Size, func() (io.Reader, error) { return io.NewSectionReader(f, 0, shape.Size), nil })
	})
}
