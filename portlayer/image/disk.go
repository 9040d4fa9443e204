package image

import (
	"archive/tar"
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"slices"
	"sort"
	"time"

	"github.com/Microsoft/hcsshim/ext4/tar2ext4"

	"vch/internal/atomicfile"
	"vch/internal/fault"
	"vch/portlayer"
)

// each calls fn for every name below the root, a directory before what is in it, siblings sorted.
func (t *tree) each(fn func(path string, n *node)) {
	var walk func(prefix string, dir *node)
	walk = func(prefix string, dir *node) {
		names := make([]string, 0, len(dir.children))
		for name := range dir.children {
			names = append(names, name)
		}
		slices.Sort(names)
		for _, name := range names {
			n := dir.children[name]
			fn(prefix+name, n)
			walk(prefix+name+"/", n)
		}
	}
	walk("", t.root)
}

// readTree lays all layers on each other.
func (s *Service) readTree(ctx context.Context, layers []diffID) (*tree, error) {
	t := newTree()
	for i, l := range layers {
		f, err := os.Open(s.layerPath(l))
		if errors.Is(err, os.ErrNotExist) {
			return nil, fault.New(fault.Conflict, "layer %s is missing from %s; pull or load the image again", l, s.layerDir())
		}
		if err != nil {
			return nil, s.storage(err)
		}
		err = t.apply(i, f, ctx.Err)
		if err = errors.Join(err, f.Close()); err != nil {
			return nil, fault.Wrap("read layer", string(l), err)
		}
	}
	return t, nil
}

// header writes an inode as a tar entry for tar2ext4.
func (in *inode) header(name string) *tar.Header {
	h := &tar.Header{
		Format: tar.FormatPAX, Typeflag: in.typ, Name: name, Mode: in.mode, Uid: in.uid, Gid: in.gid, Size: in.size, Linkname: in.target,
		Devmajor: in.major, Devminor: in.minor, ModTime: in.mtime, AccessTime: in.mtime, ChangeTime: in.mtime, PAXRecords: in.xattrs,
	}
	if in.typ == tar.TypeDir {
		h.Name += "/"
	}
	return h
}

// writeTar writes the merged tree as one tar: directories, then what has no content, then files in the order in which the layers hold them.
func (s *Service) writeTar(ctx context.Context, w io.Writer, t *tree, layers []diffID) error {
	tw := tar.NewWriter(w)
	names := map[*inode][]string{} // of what is no directory
	var order []*inode
	var failed error
	if t.root.given {
		failed = tw.WriteHeader(t.root.header("."))
	}
	t.each(func(p string, n *node) {
		switch {
		case failed != nil:
		case n.typ == tar.TypeDir:
			failed = tw.WriteHeader(n.header(p))
		default:
			if names[n.inode] == nil {
				order = append(order, n.inode)
			}
			names[n.inode] = append(names[n.inode], p)
		}
	})
	if failed != nil {
		return failed
	}
	links := func(in *inode) error {
		for _, name := range names[in][1:] {
			if err := tw.WriteHeader(&tar.Header{Format: tar.FormatPAX, Typeflag: tar.TypeLink, Name: name, Linkname: names[in][0]}); err != nil {
				return err
			}
		}
		return nil
	}
	sort.SliceStable(order, func(i, j int) bool {
		a, b := order[i], order[j]
		if (a.size == 0) != (b.size == 0) {
			return a.size == 0
		}
		if a.size == 0 {
			return false
		}
		return a.layer < b.layer || a.layer == b.layer && a.entry < b.entry
	})
	empty, _ := slices.BinarySearchFunc(order, 0, func(in *inode, _ int) int {
		if in.size == 0 {
			return -1
		}
		return 1
	})
	for _, in := range order[:empty] {
		if err := tw.WriteHeader(in.header(names[in][0])); err != nil {
			return err
		}
		if err := links(in); err != nil {
			return err
		}
	}
	for rest := order[empty:]; len(rest) > 0; {
		layer := rest[0].layer
		n := sort.Search(len(rest), func(i int) bool { return rest[i].layer > layer })
		err := s.copyContent(ctx, tw, layers[layer], rest[:n], func(in *inode) string { return names[in][0] }, links)
		if err != nil {
			return err
		}
		rest = rest[n:]
	}
	return tw.Close()
}

// copyContent writes the files of one layer, in which want is sorted by entry.
func (s *Service) copyContent(ctx context.Context, tw *tar.Writer, l diffID, want []*inode, name func(*inode) string, after func(*inode) error) error {
	f, err := os.Open(s.layerPath(l))
	if err != nil {
		return s.storage(err)
	}
	defer f.Close()
	tr := tar.NewReader(f)
	buf := make([]byte, 256<<10)
	for entry := 0; len(want) > 0; entry++ {
		if _, err := tr.Next(); err != nil {
			return fmt.Errorf("cannot read layer %s again: %w", l, err)
		}
		if want[0].entry != entry {
			continue
		}
		if err := ctx.Err(); err != nil {
			return err
		}
		in := want[0]
		want = want[1:]
		if err := tw.WriteHeader(in.header(name(in))); err != nil {
			return err
		}
		if _, err := io.CopyBuffer(struct{ io.Writer }{tw}, onlyReader{tr}, buf); err != nil {
			return err
		}
		if err := after(in); err != nil {
			return err
		}
	}
	return nil
}

// writeDisk writes the tree as an ext4 file system into f.
func (s *Service) writeDisk(ctx context.Context, f *os.File, t *tree, layers []diffID, name string) error {
	pr, pw := io.Pipe()
	done := make(chan error, 1)
	go func() { // ends at the latest when pr is closed, below
		b := bufio.NewWriterSize(pw, 256<<10)
		err := s.writeTar(ctx, b, t, layers)
		if err == nil {
			err = b.Flush()
		}
		pw.CloseWithError(err)
		done <- err
	}()
	err := tar2ext4.ConvertTarToExt4(pr, f, tar2ext4.MaximumDiskSize(maxDisk))
	_ = pr.CloseWithError(errors.Join(err, io.ErrClosedPipe))
	if made := <-done; made != nil && (err == nil || !errors.Is(made, io.ErrClosedPipe)) {
		err = made
	}
	if err != nil {
		var path *os.PathError
		if fault.KindOf(err) != fault.Internal || errors.As(err, &path) {
			return s.storage(err)
		}
		return fault.New(fault.Unsupported, "the image's files do not fit an ext4 file system: %w", err)
	}
	return s.storage(finishExt4(f, name, t.root.children[lostAndFound] != nil))
}

// maxDisk is how large an image's disk may get, in bytes. The room for group descriptors that it costs is 256 KiB.
const maxDisk = 1 << 40

// diskReady reports whether the disk and its index are here, whole.
func (s *Service) diskReady(ctx context.Context, disk string) (bool, error) {
	if _, err := os.Stat(s.indexPath(disk)); err != nil {
		if errors.Is(err, os.ErrNotExist) {
			return false, nil
		}
		return false, s.storage(err)
	}
	_, err := s.disks.Stat(ctx, s.diskPath(disk))
	s.mu.Lock()
	defer s.mu.Unlock()
	if err == nil {
		s.found[disk] = time.Now()
	} else {
		delete(s.found, disk)
	}
	switch fault.KindOf(err) {
	case fault.NotFound, fault.Conflict:
		return err == nil, nil
	}
	return err == nil, err
}

// foundLately reports whether the disk was here, whole, a moment ago. A machine cannot be made with one that is not, so that a look before is for the sentence alone.
func (s *Service) foundLately(disk string) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	return time.Since(s.found[disk]) < s.believe
}

// lost notes that the disk goes.
func (s *Service) lost(disk string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	delete(s.found, disk)
}

// ensureDisk has the disk of layers made if it is not here, once however many ask at the same time. The caller holds disk and layers.
func (s *Service) ensureDisk(ctx context.Context, layers []diffID) error {
	disk := diskName(layers)
	return s.flights.join(ctx, "disk "+disk, func(ctx context.Context, _ func(string, int64, int64)) error {
		ready, err := s.diskReady(ctx, disk)
		if ready || err != nil {
			return err
		}
		start := time.Now()
		if err := s.makeDisk(ctx, disk, layers); err != nil {
			return err
		}
		s.log.Info("image disk made", "disk", disk, "layers", len(layers), "took", time.Since(start))
		return nil
	}, nil)
}

// makeDisk flattens layers into a disk. The index goes last: with it, the disk is whole.
func (s *Service) makeDisk(ctx context.Context, disk string, layers []diffID) error {
	t, err := s.readTree(ctx, layers)
	if err != nil {
		return err
	}
	f, done, err := s.spool("disk")
	if err != nil {
		return err
	}
	defer done()
	if err := s.writeDisk(ctx, f, t, layers, disk); err != nil {
		return err
	}
	if err := f.Sync(); err != nil {
		return s.storage(err)
	}
	s.lost(disk)
	if err := s.disks.Delete(ctx, s.diskPath(disk)); err != nil { // a damaged one
		return err
	}
	if err := s.disks.Import(ctx, f.Name(), s.diskPath(disk)); err != nil {
		return s.storage(err)
	}
	return s.storage(atomicfile.WriteFrom(s.indexPath(disk), 0o600, func(w io.Writer) error { return writeIndex(w, t) }))
}

// Join implements portlayer.Images.
func (s *Service) Join(ctx context.Context, h *portlayer.Handle, id portlayer.ImageID) error {
	if err := ctx.Err(); err != nil {
		return err
	}
	k, ok := s.catalog.get(id)
	if !ok {
		return fault.New(fault.NotFound, "No such image: %s", id)
	}
	have := platform{OS: k.image.OS, Architecture: k.image.Architecture, Variant: k.image.Variant}
	if host := hostPlatform(); have.OS != "" && have.Architecture != "" && !host.fits(have) {
		return fault.New(fault.Unsupported, "image %s is for %s and this VCH runs %s", short(string(id)), have, host)
	}
	ready := s.foundLately(k.disk)
	if !ready {
		var err error
		if ready, err = s.diskReady(ctx, k.disk); err != nil {
			return err
		}
	}
	if !ready {
		return fault.New(fault.Conflict, "the disk of image %s is missing or damaged; pull or load the image again", short(string(id)))
	}
	h.AddDisk(portlayer.Disk{Serial: serial, File: s.diskPath(k.disk), ReadOnly: true})
	h.Config.Root.Image = "disk://" + serial
	return nil
}
