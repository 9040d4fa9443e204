package image

import (
	"context"
	"errors"
	"io"
	"net/http"
	"os"
	"strconv"
	"strings"

	"github.com/distribution/reference"
	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/partial"
	"github.com/google/go-containerregistry/pkg/v1/remote"
	"github.com/google/go-containerregistry/pkg/v1/remote/transport"
	"github.com/google/go-containerregistry/pkg/v1/types"
	"github.com/opencontainers/go-digest"

	"vch/internal/fault"
	"vch/portlayer"
)

// The steps of a push, in Docker's words.
const (
	stepPreparing = "Preparing"
	stepPushing   = "Pushing"
	stepPushed    = "Pushed"
)

// Push implements portlayer.Images. Layers are kept uncompressed, and are compressed on their way.
func (s *Service) Push(ctx context.Context, what string, cred portlayer.Credentials, progress func(portlayer.Progress)) (portlayer.Distribution, error) {
	var none portlayer.Distribution
	tag, err := parseTag(what)
	if err != nil {
		return none, err
	}
	id, canonical, err := s.catalog.find(tag.String())
	if err != nil || canonical == "" {
		return none, fault.New(fault.NotFound, "An image does not exist locally with the tag: %s", reference.FamiliarName(tag))
	}
	k, ok := s.catalog.get(id)
	if !ok {
		return none, fault.New(fault.NotFound, "An image does not exist locally with the tag: %s", reference.FamiliarName(tag))
	}
	release, err := s.catalog.hold(ctx, keys(k.layers)...)
	if err != nil {
		return none, err
	}
	defer release()
	sizes, err := s.requireLayers(k.layers)
	if err != nil {
		return none, err
	}
	dest, err := s.remoteName(ctx, tag)
	if err != nil {
		return none, err
	}
	line := func(p portlayer.Progress) {
		if progress != nil {
			progress(p)
		}
	}
	line(portlayer.Progress{Status: "The push refers to repository [" + tag.Name() + "]"})
	for _, l := range k.layers {
		line(portlayer.Progress{ID: short(string(l)), Status: stepPreparing})
	}
	pusher, err := remote.NewPusher(s.remoteOptions(cred)...)
	if err != nil {
		return none, err
	}
	img, err := partial.UncompressedToImage(&pushed{s: s, known: k})
	if err != nil {
		return none, err
	}
	layers, err := img.Layers()
	if err != nil {
		return none, err
	}
	seen := map[diffID]bool{}
	for i, l := range k.layers { // one after the other: each is compressed, and here is one user's time
		if seen[l] {
			continue
		}
		seen[l] = true
		id := short(string(l))
		line(portlayer.Progress{ID: id, Status: stepPushing, Total: int64(sizes[i])})
		if err := pusher.Upload(ctx, dest.Context(), layers[i]); err != nil {
			return none, pushRefused(ctx, tag, err)
		}
		line(portlayer.Progress{ID: id, Status: stepPushed})
	}
	if err := pusher.Push(ctx, dest, img); err != nil {
		return none, pushRefused(ctx, tag, err)
	}
	sum, err := img.Digest()
	if err != nil {
		return none, err
	}
	size, err := img.Size()
	if err != nil {
		return none, err
	}
	if err := s.pushedAs(ctx, tag, sum, id); err != nil {
		return none, err
	}
	line(portlayer.Progress{Status: tag.Tag() + ": digest: " + sum.String() + " size: " + strconv.FormatInt(size, 10)})
	s.event("push", reference.FamiliarString(tag), reference.FamiliarName(tag))
	return portlayer.Distribution{MediaType: string(types.DockerManifestSchema2), Digest: sum.String(), Size: size}, nil
}

// pushedAs records the digest that an image has in a repository now, as a pull would.
func (s *Service) pushedAs(ctx context.Context, tag reference.NamedTagged, sum v1.Hash, id portlayer.ImageID) error {
	canonical, err := reference.WithDigest(reference.TrimNamed(tag), digest.Digest(sum.String()))
	if err != nil {
		return err
	}
	done, err := s.catalog.change(ctx)
	if err != nil {
		return err
	}
	defer done()
	if _, ok := s.catalog.get(id); !ok {
		return nil // removed meanwhile; the registry has it all the same
	}
	_, err = s.catalog.name(canonical.String(), id)
	return s.storage(err)
}

// pushed is an image of this store as go-containerregistry pushes one.
type pushed struct {
	s *Service
	known
}

// RawConfigFile is partial.UncompressedImageCore's.
func (p *pushed) RawConfigFile() ([]byte, error) { return p.record.Config, nil }

// MediaType is partial.UncompressedImageCore's.
func (p *pushed) MediaType() (types.MediaType, error) { return types.DockerManifestSchema2, nil }

// LayerByDiffID is partial.UncompressedImageCore's.
func (p *pushed) LayerByDiffID(h v1.Hash) (partial.UncompressedLayer, error) {
	return &pushedLayer{p.s, h}, nil
}

// pushedLayer is a layer of this store as go-containerregistry pushes one.
type pushedLayer struct {
	s *Service
	h v1.Hash
}

// DiffID is partial.UncompressedLayer's.
func (l *pushedLayer) DiffID() (v1.Hash, error) { return l.h, nil }

// Uncompressed is partial.UncompressedLayer's.
func (l *pushedLayer) Uncompressed() (io.ReadCloser, error) {
	f, err := os.Open(l.s.layerPath(diffID(l.h.String())))
	return f, l.s.storage(err)
}

// MediaType is partial.UncompressedLayer's.
func (l *pushedLayer) MediaType() (types.MediaType, error) { return types.DockerLayer, nil }

// pushRefused gives a registry's error about a push its kind.
func pushRefused(ctx context.Context, ref reference.Named, err error) error {
	var te *transport.Error
	if ctx.Err() == nil && errors.As(err, &te) && (te.StatusCode == http.StatusUnauthorized || te.StatusCode == http.StatusForbidden) {
		return fault.New(fault.Denied, "push access denied to %s: you may need to log in (docker login %s): %w", reference.FamiliarName(ref), reference.Domain(ref), err)
	}
	return refused(ctx, ref, err)
}

// Look implements portlayer.Images.
func (s *Service) Look(ctx context.Context, what string, cred portlayer.Credentials) (portlayer.Distribution, error) {
	var none portlayer.Distribution
	ref, err := parseName(what)
	if err != nil {
		return none, err
	}
	at, err := s.remoteName(ctx, ref)
	if err != nil {
		return none, err
	}
	puller, err := s.puller(cred)
	if err != nil {
		return none, err
	}
	desc, err := puller.Get(ctx, at)
	if err != nil {
		return none, refused(ctx, ref, err)
	}
	d := portlayer.Distribution{MediaType: string(desc.MediaType), Digest: desc.Digest.String(), Size: desc.Size, Platforms: []portlayer.Platform{}}
	p := &pull{s: s, ref: ref, remote: at, puller: puller, want: hostPlatform()}
	if desc.MediaType.IsIndex() {
		index, err := v1.ParseIndexManifest(strings.NewReader(string(desc.Manifest)))
		if err != nil {
			return none, fault.New(fault.Unavailable, "the registry's index %s cannot be read: %w", desc.Digest, err)
		}
		for _, m := range index.Manifests {
			if m.Platform != nil {
				d.Platforms = append(d.Platforms, portlayer.Platform{Architecture: m.Platform.Architecture, OS: m.Platform.OS, OSVersion: m.Platform.OSVersion, Variant: m.Platform.Variant, OSFeatures: m.Platform.OSFeatures})
			}
		}
		return d, nil
	}
	m, err := p.manifest(ctx, desc)
	if err != nil {
		return none, err
	}
	raw, _, err := p.config(ctx, m)
	if err != nil {
		return none, err
	}
	doc, _, err := parseConfig(raw)
	d.Platforms = append(d.Platforms, portlayer.Platform{Architecture: doc.Architecture, OS: doc.OS, OSVersion: doc.OSVersion, Variant: doc.Variant, OSFeatures: doc.OSFeatures})
	return d, err
}
