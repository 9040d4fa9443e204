package image

import (
	"archive/tar"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"io"
	"os"
	"slices"
	"time"

	"vch/internal/fault"
	"vch/portlayer"
)

// receive writes what r holds, uncompressed, into a file of its own. what names it in errors.
func (s *Service) receive(ctx context.Context, r io.Reader, what string, sum io.Writer, moved func(int64)) (f *os.File, done func(), err error) {
	f, done, err = s.spool("upload")
	if err != nil {
		return nil, nil, err
	}
	in := &meter{ctx: ctx, r: r, moved: moved}
	err = unpack(f, sum, in)
	if err == nil {
		_, err = f.Seek(0, io.SeekStart)
	}
	if err == nil {
		return f, done, nil
	}
	done()
	var path *os.PathError
	switch {
	case ctx.Err() != nil:
		return nil, nil, ctx.Err()
	case errors.As(err, &path):
		return nil, nil, s.storage(err)
	case fault.KindOf(err) != fault.Internal:
		return nil, nil, err
	case in.err != nil && in.err != io.EOF:
		return nil, nil, fault.New(fault.Invalid, "the upload of %s broke off after %d bytes: %w", what, in.n, in.err)
	}
	return nil, nil, fault.New(fault.Invalid, "%s is corrupt or cut short: %w", what, err)
}

// Import implements portlayer.Images.
func (s *Service) Import(ctx context.Context, r io.Reader, name, message, platformText string, config portlayer.ImageConfig, progress func(portlayer.Progress)) (portlayer.Image, error) {
	var none portlayer.Image
	var names []string
	if name != "" {
		tag, err := parseTag(name)
		if err != nil {
			return none, err
		}
		names = []string{tag.String()}
	}
	p, err := parsePlatform(platformText)
	if err != nil {
		return none, err
	}
	moved := func(n int64) {
		if progress != nil {
			progress(portlayer.Progress{Status: "Importing", Current: n})
		}
	}
	sum := sha256.New()
	f, done, err := s.receive(ctx, r, "the archive", sum, moved)
	if err != nil {
		return none, err
	}
	defer done()
	if fi, err := f.Stat(); err != nil || fi.Size() == 0 {
		return none, errors.Join(s.storage(err), invalid("the archive is empty; a tar of a root file system was expected"))
	}
	l := diffID("sha256:" + hex.EncodeToString(sum.Sum(nil)))
	raw, err := compose(l, p, message, time.Now().UTC(), config)
	if err != nil {
		return none, err
	}
	img, err := s.keepLayer(ctx, f, l, raw, []diffID{l}, names)
	if err != nil {
		return none, errors.Join(err, s.discard(ctx, keys([]diffID{l})))
	}
	s.event("import", string(img.ID), orElse(name, string(img.ID)))
	return img, nil
}

// keepLayer places the layer that f holds, and records the image of config, which has it among layers.
func (s *Service) keepLayer(ctx context.Context, f *os.File, l diffID, config []byte, layers []diffID, names []string) (portlayer.Image, error) {
	release, err := s.catalog.hold(ctx, keys(layers)...)
	if err != nil {
		return portlayer.Image{}, err
	}
	defer release()
	if slices.Contains(layers, l) {
		src := layerSource{broken: fault.Invalid, open: func(context.Context) (io.ReadCloser, error) {
			_, err := f.Seek(0, io.SeekStart)
			return io.NopCloser(f), err
		}}
		if err := s.ensureLayer(ctx, l, src, nil); err != nil {
			return portlayer.Image{}, err
		}
	}
	img, _, err := s.keep(ctx, config, layers, names...)
	return img, err
}

// Derive implements portlayer.Images.
func (s *Service) Derive(ctx context.Context, base portlayer.ImageID, layer io.Reader, o portlayer.Derived) (portlayer.Image, error) {
	var none portlayer.Image
	var names []string
	if o.Name != "" {
		tag, err := parseTag(o.Name)
		if err != nil {
			return none, err
		}
		names = []string{tag.String()}
	}
	on, ok := s.catalog.get(base)
	if !ok {
		return none, fault.New(fault.NotFound, "No such image: %s", base)
	}
	sum := sha256.New()
	f, done, err := s.receive(ctx, layer, "the layer", sum, nil)
	if err != nil {
		return none, err
	}
	defer done()
	l := diffID("sha256:" + hex.EncodeToString(sum.Sum(nil)))
	empty, err := isEmptyTar(f)
	if err != nil {
		return none, err
	}
	layers := slices.Clone(on.layers)
	if !empty {
		layers = append(layers, l)
	}
	raw, err := extend(on.record.Config, l, empty, time.Now().UTC(), o)
	if err != nil {
		return none, err
	}
	img, err := s.keepLayer(ctx, f, l, raw, layers, names)
	if err != nil {
		return none, errors.Join(err, s.discard(ctx, keys(layers)))
	}
	s.event("create", string(img.ID), string(img.ID))
	for _, name := range names {
		s.event("tag", string(img.ID), familiar(name))
	}
	return img, nil
}

// isEmptyTar says whether f has no entry.
func isEmptyTar(f *os.File) (bool, error) {
	if _, err := f.Seek(0, io.SeekStart); err != nil {
		return false, err
	}
	switch _, err := tar.NewReader(f).Next(); err {
	case io.EOF:
		return true, nil
	case nil:
		return false, nil
	default:
		return false, invalid("the layer is no tar: %w", err)
	}
}

// discard deletes what a call that failed had put into the store, unless somebody else needs it by now. It has its own time limit.
func (s *Service) discard(ctx context.Context, keys []string) error {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), time.Minute)
	defer cancel()
	done, err := s.catalog.change(ctx)
	if err != nil {
		return err
	}
	defer done()
	_, _, err = s.sweep(ctx, keys)
	return err
}
