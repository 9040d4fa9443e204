package image

import (
	"context"
	"errors"
	"io"

	"vch/internal/fault"
	"vch/portlayer"
)

// Load implements portlayer.Images. All layers and disks are made before the first record is written.
func (s *Service) Load(ctx context.Context, r io.Reader, progress func(portlayer.Progress)) ([]portlayer.Image, error) {
	imgs, err := s.load(ctx, r, progress)
	if err != nil {
		return nil, fault.Wrap("load image", "", err)
	}
	for _, img := range imgs {
		s.event("load", string(img.ID), string(img.ID))
	}
	return imgs, nil
}

func (s *Service) load(ctx context.Context, r io.Reader, progress func(portlayer.Progress)) ([]portlayer.Image, error) {
	f, done, err := s.receive(ctx, r, "the archive", io.Discard, nil)
	if err != nil {
		return nil, err
	}
	defer done()
	a, err := openArchive(ctx, f)
	if err != nil {
		return nil, err
	}
	list, err := a.images()
	if err != nil {
		return nil, err
	}
	var all []string
	for _, img := range list {
		all = append(all, keys(img.layers)...)
	}
	imgs, err := s.loadAll(ctx, list, all, progress)
	if err != nil {
		return nil, errors.Join(err, s.discard(ctx, all))
	}
	return imgs, nil
}

func (s *Service) loadAll(ctx context.Context, list []archived, all []string, progress func(portlayer.Progress)) ([]portlayer.Image, error) {
	release, err := s.catalog.hold(ctx, all...)
	if err != nil {
		return nil, err
	}
	defer release()
	for _, img := range list {
		for i, l := range img.layers {
			show := func(step string, current, total int64) {
				if progress != nil && step == stepDownloading {
					progress(portlayer.Progress{ID: short(string(l)), Status: stepLoading, Current: current, Total: total})
				}
			}
			if err := s.ensureLayer(ctx, l, img.sources[i], show); err != nil {
				return nil, err
			}
		}
		if err := s.ensureDisk(ctx, img.layers); err != nil {
			return nil, err
		}
	}
	var imgs []portlayer.Image
	for _, img := range list {
		kept, _, err := s.keep(ctx, img.config, img.layers, img.names...)
		if err != nil {
			return nil, err
		}
		imgs = append(imgs, kept)
	}
	return imgs, nil
}
