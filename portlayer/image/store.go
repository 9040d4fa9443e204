package image

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"time"

	"vch/internal/atomicfile"
	"vch/internal/fault"
	"vch/portlayer"
)

// keep records an image whose layers are here, and gives it names. Its disk is made first. The caller holds layers and disk.
func (s *Service) keep(ctx context.Context, config []byte, layers []diffID, names ...string) (img portlayer.Image, changed bool, err error) {
	sizes, err := s.requireLayers(layers)
	if err != nil {
		return img, false, err
	}
	if err := s.ensureDisk(ctx, layers); err != nil {
		return img, false, err
	}
	k, err := understand(imageRecord{Config: config, Loaded: time.Now().UTC(), LayerSizes: sizes})
	if err != nil {
		return img, false, err
	}
	done, err := s.catalog.change(ctx)
	if err != nil {
		return img, false, err
	}
	defer done()
	if err := s.catalog.put(k); err != nil {
		return img, false, s.storage(err)
	}
	for _, name := range names {
		moved, err := s.catalog.name(name, k.image.ID)
		if err != nil {
			return img, changed, s.storage(err)
		}
		changed = changed || moved
	}
	img, _ = s.catalog.view(k.image.ID)
	return img, changed, nil
}

// keys gives what an image stands on, as hold and sweep take it.
func keys(layers []diffID) []string {
	list := make([]string, 0, len(layers)+1)
	for _, l := range layers {
		list = append(list, string(l))
	}
	return append(list, diskName(layers))
}

// sweep deletes those of keys that no image needs and nobody holds, and gives what went: bytes freed on disk and the layers. The caller has the turn.
func (s *Service) sweep(ctx context.Context, keys []string) (freed portlayer.Bytes, layers []string, err error) {
	need := s.catalog.needed()
	var errs []error
	for _, key := range keys {
		if need[key] {
			continue
		}
		need[key] = true // once is enough
		var n portlayer.Bytes
		if validDigest(key) {
			if n, err = s.deleteLayer(diffID(key)); n > 0 {
				layers = append(layers, key)
			}
		} else {
			n, err = s.deleteDisk(ctx, key)
		}
		freed += n
		errs = append(errs, err)
	}
	return freed, layers, errors.Join(errs...)
}

func (s *Service) deleteLayer(l diffID) (portlayer.Bytes, error) {
	size, ok, err := s.layerSize(l)
	if !ok || err != nil {
		return 0, err
	}
	if err := os.Remove(s.layerPath(l)); err != nil {
		return 0, s.storage(err)
	}
	return size, s.storage(atomicfile.SyncDir(s.layerDir()))
}

func (s *Service) deleteDisk(ctx context.Context, disk string) (portlayer.Bytes, error) {
	info, err := s.disks.Stat(ctx, s.diskPath(disk))
	if err != nil && !fault.Is(err, fault.NotFound) && !fault.Is(err, fault.Conflict) {
		return 0, err
	}
	if err := os.Remove(s.indexPath(disk)); err != nil && !errors.Is(err, os.ErrNotExist) {
		return 0, s.storage(err)
	}
	s.lost(disk)
	return info.Allocated, s.disks.Delete(ctx, s.diskPath(disk))
}

// stored gives the keys of every layer and disk that is here, whether an image needs it or not.
func (s *Service) stored(ctx context.Context) ([]string, error) {
	var list []string
	layers, err := os.ReadDir(s.layerDir())
	if err != nil {
		return nil, s.storage(err)
	}
	for _, e := range layers {
		if d := "sha256:" + e.Name(); validDigest(d) {
			list = append(list, d)
		}
	}
	disks, err := s.disks.List(ctx, s.diskDir)
	if err != nil {
		return nil, err
	}
	seen := map[string]bool{}
	for _, name := range disks {
		disk, _, _ := strings.Cut(name, ".")
		disk = strings.TrimSuffix(disk, "-flat")
		if validDigest("sha256:"+disk) && !seen[disk] {
			seen[disk] = true
			list = append(list, disk)
		}
	}
	return list, nil
}

// tidy makes the directories, removes what a crash left half done, and makes missing disks anew from their layers. It never deletes what a record names.
func (s *Service) tidy(ctx context.Context) error {
	if err := os.RemoveAll(s.tmpDir()); err != nil {
		return s.storage(err)
	}
	for _, dir := range []string{s.layerDir(), s.tmpDir(), s.partialDir(), filepath.Join(s.dir, "disks")} {
		if err := os.MkdirAll(dir, 0o700); err != nil {
			return s.storage(err)
		}
	}
	if err := s.disks.MakeDir(ctx, s.diskDir); err != nil {
		return err
	}
	for _, dir := range []string{s.layerDir(), filepath.Join(s.dir, "disks")} {
		halves, err := filepath.Glob(filepath.Join(dir, ".tmp-*")) // atomicfile's
		if err != nil {
			return err
		}
		for _, half := range halves {
			if err := os.Remove(half); err != nil {
				return s.storage(err)
			}
		}
	}
	if _, err := s.dropPartials(time.Now().Add(-partialLife)); err != nil {
		return err
	}
	here, err := s.stored(ctx)
	if err != nil {
		return err
	}
	var orphans []string // disks whose image was never recorded; such layers stay for the next pull, until Prune
	for _, key := range here {
		if !validDigest(key) {
			orphans = append(orphans, key)
		}
	}
	if _, _, err := s.sweep(ctx, orphans); err != nil {
		return err
	}
	for _, img := range s.catalog.all() {
		k, _ := s.catalog.get(img.ID)
		if err := s.verify(ctx, k); err != nil {
			s.log.Warn("image is damaged; pull or load it again", "image", img.ID, "tags", img.Tags, "reason", err)
		}
	}
	for name, id := range s.catalog.byName { // nobody else is here yet
		if _, ok := s.catalog.byID[id]; !ok {
			if err := s.catalog.unname(name); err != nil {
				return err
			}
		}
	}
	return nil
}

// verify makes an image's disk anew where it is missing, and drops a layer whose length is not the recorded one so that it is fetched again.
func (s *Service) verify(ctx context.Context, k known) error {
	var errs []error
	for i, l := range k.layers {
		size, ok, err := s.layerSize(l)
		switch {
		case err != nil:
			return err
		case !ok:
			errs = append(errs, fmt.Errorf("layer %s is missing", l))
		case i < len(k.record.LayerSizes) && size != k.record.LayerSizes[i]:
			errs = append(errs, fmt.Errorf("layer %s has %d of %d bytes", l, size, k.record.LayerSizes[i]))
			if err := os.Remove(s.layerPath(l)); err != nil {
				return err
			}
		}
	}
	if len(errs) == 0 {
		return s.ensureDisk(ctx, k.layers)
	}
	ready, err := s.diskReady(ctx, k.disk)
	if !ready || err != nil {
		errs = append(errs, errors.New("so its missing disk cannot be made"), err)
	}
	return errors.Join(errs...)
}

// Get implements portlayer.Images.
func (s *Service) Get(ctx context.Context, ref string) (portlayer.Image, error) {
	if err := ctx.Err(); err != nil {
		return portlayer.Image{}, err
	}
	id, _, err := s.catalog.find(ref)
	if err != nil {
		return portlayer.Image{}, err
	}
	img, ok := s.catalog.view(id)
	if !ok {
		return img, fault.New(fault.NotFound, "No such image: %s", ref)
	}
	return img, nil
}

// List implements portlayer.Images.
func (s *Service) List(ctx context.Context) ([]portlayer.Image, error) {
	return s.catalog.all(), ctx.Err()
}

// Tag implements portlayer.Images.
func (s *Service) Tag(ctx context.Context, ref, name string) error {
	tag, err := parseTag(name)
	if err != nil {
		return err
	}
	done, err := s.catalog.change(ctx)
	if err != nil {
		return err
	}
	defer done()
	id, _, err := s.catalog.find(ref)
	if err != nil {
		return err
	}
	if _, err := s.catalog.name(tag.String(), id); err != nil {
		return s.storage(err)
	}
	s.event("tag", string(id), familiar(tag.String()))
	return nil
}
