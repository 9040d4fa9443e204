package image

import (
	"archive/tar"
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"io"
	"os"
	"slices"
	"time"

	"github.com/distribution/reference"
	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/tarball"
	"github.com/google/go-containerregistry/pkg/v1/types"

	"vch/internal/fault"
	"vch/portlayer"
)

// saved is one image to save, and the tags that it was asked for by.
type saved struct {
	known
	tags []reference.NamedTagged
}

// Save implements portlayer.Images. The archive has the form that Docker's engine writes since 25.0: an OCI layout (image-layout.md) with docker-save's manifest.json beside it,
// the layers as they are here.
func (s *Service) Save(ctx context.Context, refs []string, w io.Writer) error {
	list, err := s.asked(refs)
	if err != nil {
		return err
	}
	var held []string
	for _, img := range list {
		held = append(held, keys(img.layers)...)
	}
	release, err := s.catalog.hold(ctx, held...)
	if err != nil {
		return err
	}
	defer release()
	for _, img := range list {
		if _, err := s.requireLayers(img.layers); err != nil {
			return err
		}
	}
	a := archiveWriter{ctx: ctx, tw: tar.NewWriter(w), has: map[string]bool{}}
	if err := s.saveAll(&a, list); err != nil {
		return err
	}
	for _, img := range list {
		s.event("save", string(img.image.ID), string(img.image.ID))
	}
	return a.tw.Close()
}

// asked finds images, each once, in the order that they are asked for. A name of a repository without a tag means all its tags, as for Docker's engine.
func (s *Service) asked(refs []string) ([]*saved, error) {
	var list []*saved
	add := func(id portlayer.ImageID, canonical string) error {
		k, ok := s.catalog.get(id)
		if !ok {
			return fault.New(fault.NotFound, "No such image: %s", id)
		}
		i := slices.IndexFunc(list, func(have *saved) bool { return have.image.ID == id })
		if i < 0 {
			i, list = len(list), append(list, &saved{known: k})
		}
		if named, err := reference.ParseNamed(canonical); err == nil {
			if tag, ok := named.(reference.NamedTagged); ok && !slices.Contains(list[i].tags, tag) {
				list[i].tags = append(list[i].tags, tag)
			}
		}
		return nil
	}
	for _, ref := range refs {
		if named, err := reference.ParseNormalizedNamed(ref); err == nil && reference.IsNameOnly(named) {
			if tags := s.catalog.tagsOf(named.Name()); len(tags) > 0 {
				for name, id := range tags {
					if err := add(id, name); err != nil {
						return nil, err
					}
				}
				continue
			}
		}
		id, canonical, err := s.catalog.find(ref)
		if err != nil {
			return nil, err
		}
		if err := add(id, canonical); err != nil {
			return nil, err
		}
	}
	for _, img := range list {
		slices.SortFunc(img.tags, func(a, b reference.NamedTagged) int { return bytes.Compare([]byte(a.String()), []byte(b.String())) })
	}
	return list, nil
}

// archiveWriter writes a saved archive; each blob once.
type archiveWriter struct {
	ctx context.Context // of the one call that this is a part of
	tw  *tar.Writer
	has map[string]bool
}

// file writes a file. Its time is the same each time, so that what is saved twice is the same.
func (a *archiveWriter) file(name string, size int64, content io.Reader) error {
	if err := a.tw.WriteHeader(&tar.Header{Typeflag: tar.TypeReg, Name: name, Size: size, Mode: 0o644, ModTime: time.Unix(0, 0), Format: tar.FormatPAX}); err != nil {
		return err
	}
	_, err := io.CopyBuffer(a.tw, &meter{ctx: a.ctx, r: content}, make([]byte, 256<<10))
	return err
}

func (a *archiveWriter) json(name string, v any) error {
	raw, err := json.Marshal(v)
	if err != nil {
		return err
	}
	return a.file(name, int64(len(raw)), bytes.NewReader(raw))
}

// blob writes a small one, and gives its descriptor.
func (a *archiveWriter) blob(raw []byte, kind types.MediaType) (v1.Descriptor, error) {
	sum := sha256.Sum256(raw)
	d := v1.Descriptor{MediaType: kind, Size: int64(len(raw)), Digest: v1.Hash{Algorithm: "sha256", Hex: hex.EncodeToString(sum[:])}}
	if a.has[d.Digest.Hex] {
		return d, nil
	}
	a.has[d.Digest.Hex] = true
	return d, a.file(blobName(d.Digest), d.Size, bytes.NewReader(raw))
}

func (s *Service) saveAll(a *archiveWriter, list []*saved) error {
	index := v1.IndexManifest{SchemaVersion: 2, MediaType: types.OCIImageIndex, Manifests: []v1.Descriptor{}}
	docker := tarball.Manifest{}
	for _, img := range list {
		m := v1.Manifest{SchemaVersion: 2, MediaType: types.OCIManifestSchema1, Layers: []v1.Descriptor{}}
		d := tarball.Descriptor{Layers: []string{}}
		for _, l := range img.layers {
			layer, err := s.saveLayer(a, l)
			if err != nil {
				return err
			}
			m.Layers, d.Layers = append(m.Layers, layer), append(d.Layers, blobName(layer.Digest))
		}
		var err error
		if m.Config, err = a.blob(img.record.Config, types.OCIConfigJSON); err != nil {
			return err
		}
		raw, err := json.Marshal(m)
		if err != nil {
			return err
		}
		desc, err := a.blob(raw, types.OCIManifestSchema1)
		if err != nil {
			return err
		}
		desc.Platform = &v1.Platform{OS: img.image.OS, Architecture: img.image.Architecture, Variant: img.image.Variant}
		d.Config = blobName(m.Config.Digest)
		for _, tag := range img.tags {
			named := desc
			named.Annotations = map[string]string{"io.containerd.image.name": tag.String(), "org.opencontainers.image.ref.name": tag.Tag()}
			index.Manifests, d.RepoTags = append(index.Manifests, named), append(d.RepoTags, reference.FamiliarString(tag))
		}
		if len(img.tags) == 0 {
			index.Manifests = append(index.Manifests, desc)
		}
		docker = append(docker, d)
	}
	if err := a.json("index.json", index); err != nil {
		return err
	}
	if err := a.json("manifest.json", docker); err != nil {
		return err
	}
	return a.json("oci-layout", map[string]string{"imageLayoutVersion": "1.0.0"})
}

func (s *Service) saveLayer(a *archiveWriter, l diffID) (v1.Descriptor, error) {
	size, _, err := s.layerSize(l)
	d := v1.Descriptor{MediaType: types.OCIUncompressedLayer, Size: int64(size), Digest: v1.Hash{Algorithm: "sha256", Hex: l.hex()}}
	if err != nil || a.has[l.hex()] {
		return d, err
	}
	a.has[l.hex()] = true
	f, err := os.Open(s.layerPath(l))
	if err != nil {
		return d, s.storage(err)
	}
	defer f.Close()
	return d, a.file(blobName(d.Digest), d.Size, f)
}
