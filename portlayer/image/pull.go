package image

import (
	"bytes"
	"context"
	"errors"
	"io"
	"sync"

	"github.com/distribution/reference"
	"github.com/google/go-containerregistry/pkg/name"
	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/remote"
	"github.com/google/go-containerregistry/pkg/v1/types"
	"github.com/opencontainers/go-digest"

	"vch/internal/fault"
	"vch/portlayer"
)

// pull is one call of Pull.
type pull struct {
	s      *Service
	ref    reference.Named
	remote name.Reference
	cred   portlayer.Credentials
	puller *remote.Puller
	want   platform
	asked  bool // want was asked for, and is not just the host's

	mu       sync.Mutex // serialises progress
	progress func(portlayer.Progress)
}

// Pull implements portlayer.Images.
func (s *Service) Pull(ctx context.Context, what, platformText string, cred portlayer.Credentials, progress func(portlayer.Progress)) (portlayer.Image, error) {
	ref, err := parseName(what)
	if err != nil {
		return portlayer.Image{}, err
	}
	want, err := parsePlatform(platformText)
	if err != nil {
		return portlayer.Image{}, err
	}
	places, err := s.places(ctx, ref, cred)
	if err != nil {
		return portlayer.Image{}, err
	}
	for i := 0; ; i++ {
		p := &pull{s: s, ref: ref, want: want, asked: platformText != "", progress: progress, remote: places[i].name, cred: places[i].cred}
		if p.puller, err = s.puller(p.cred); err != nil {
			return portlayer.Image{}, err
		}
		img, disk, err := p.run(ctx)
		if err == nil {
			return img, nil
		}
		if disk != "" {
			err = errors.Join(err, s.discard(ctx, []string{disk})) // whole layers stay for the next try
		}
		if i == len(places)-1 || ctx.Err() != nil {
			return img, err
		}
		s.log.Warn("a mirror does not give an image; the next place is asked", "mirror", places[i].name.Context().RegistryStr(), "image", reference.FamiliarString(ref), "reason", err)
	}
}

// place is where an image may be had.
type place struct {
	name name.Reference
	cred portlayer.Credentials
}

// places are a reference's registry, and before it, for Docker Hub's, the mirrors, which get no credentials.
func (s *Service) places(ctx context.Context, ref reference.Named, cred portlayer.Credentials) ([]place, error) {
	var all []place
	if reference.Domain(ref) == dockerHub {
		for _, m := range s.mirrors {
			reg, err := s.registryAt(ctx, m.Host)
			if err != nil {
				return nil, err
			}
			at, err := nameAt(ref, reg)
			if err != nil {
				return nil, err
			}
			all = append(all, place{name: at})
		}
	}
	at, err := s.remoteName(ctx, ref)
	return append(all, place{at, cred}), err
}

// dockerHub is Docker Hub's domain in a canonical reference.
const dockerHub = "docker.io"

func (p *pull) line(id, status string, current, total int64) {
	if p.progress == nil {
		return
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	p.progress(portlayer.Progress{ID: id, Status: status, Current: current, Total: total})
}

// run does it. disk is the one that it may have made, "" if it did not come so far.
func (p *pull) run(ctx context.Context) (img portlayer.Image, disk string, err error) {
	desc, err := p.puller.Get(ctx, p.remote)
	if err != nil {
		return img, "", refused(ctx, p.ref, err)
	}
	p.line(tagOrDigest(p.ref), "Pulling from "+reference.Path(p.ref), 0, 0)
	manifest, err := p.manifest(ctx, desc)
	if err != nil {
		return img, "", err
	}
	config, layers, err := p.config(ctx, manifest)
	if err != nil {
		return img, "", err
	}
	release, err := p.s.catalog.hold(ctx, keys(layers)...)
	if err != nil {
		return img, "", err
	}
	defer release()
	disk = diskName(layers)
	fetched, err := p.layers(ctx, manifest, layers)
	if err != nil {
		return img, disk, err
	}
	for _, m := range fetched {
		p.line(short(m.Digest.String()), stepExtracting, m.Size, m.Size)
	}
	canonical, err := reference.WithDigest(reference.TrimNamed(p.ref), digest.Digest(desc.Digest.String()))
	if err != nil {
		return img, disk, err
	}
	names := []string{canonical.String()}
	if _, ok := p.ref.(reference.Tagged); ok {
		names = append(names, p.ref.String())
	}
	img, changed, err := p.s.keep(ctx, config, layers, names...)
	if err != nil {
		return img, disk, err
	}
	for _, m := range fetched {
		p.line(short(m.Digest.String()), stepComplete, 0, 0)
	}
	what := reference.FamiliarString(p.ref)
	p.line("", "Digest: "+desc.Digest.String(), 0, 0)
	if changed {
		p.line("", "Status: Downloaded newer image for "+what, 0, 0)
	} else {
		p.line("", "Status: Image is up to date for "+what, 0, 0)
	}
	p.s.event("pull", what, reference.FamiliarName(p.ref)) // moby names the reference, not the id, as the one that it happened to
	return img, disk, nil
}

// maxIndexDepth is how many indexes may name each other; registries have one, an index of indexes is allowed by image-index.md.
const maxIndexDepth = 4

// manifest follows indexes to the manifest of the platform wanted.
func (p *pull) manifest(ctx context.Context, desc *remote.Descriptor) (*v1.Manifest, error) {
	for range maxIndexDepth {
		switch {
		case desc.MediaType.IsImage():
			m, err := v1.ParseManifest(bytes.NewReader(desc.Manifest))
			if err != nil {
				return nil, fault.New(fault.Unavailable, "the registry's manifest %s cannot be read: %w", desc.Digest, err)
			}
			return m, nil
		case desc.MediaType.IsIndex():
			index, err := v1.ParseIndexManifest(bytes.NewReader(desc.Manifest))
			if err != nil {
				return nil, fault.New(fault.Unavailable, "the registry's index %s cannot be read: %w", desc.Digest, err)
			}
			child, err := choose(index.Manifests, p.want)
			if err != nil {
				return nil, err
			}
			if desc, err = p.puller.Get(ctx, p.remote.Context().Digest(child.Digest.String())); err != nil {
				return nil, refused(ctx, p.ref, err)
			}
		case desc.MediaType.IsSchema1():
			return nil, fault.New(fault.Unsupported, "%s is in the old image format (schema 1), which is not supported; have its publisher push it again", reference.FamiliarString(p.ref))
		default:
			return nil, fault.New(fault.Unsupported, "%s is not an image: its manifest is of type %s", reference.FamiliarString(p.ref), desc.MediaType)
		}
	}
	return nil, fault.New(fault.Unavailable, "the indexes of %s name each other more than %d deep", reference.FamiliarString(p.ref), maxIndexDepth)
}

// config fetches an image's configuration and checks it against the manifest.
func (p *pull) config(ctx context.Context, m *v1.Manifest) ([]byte, []diffID, error) {
	what := reference.FamiliarString(p.ref)
	if t := m.Config.MediaType; t != types.DockerConfigJSON && t != types.OCIConfigJSON {
		return nil, nil, fault.New(fault.Unsupported, "%s is not an image: its configuration is of type %s", what, t)
	}
	rc, err := p.opener(m.Config.Digest)(ctx)
	if err != nil {
		return nil, nil, err
	}
	raw, err := io.ReadAll(io.LimitReader(rc, maxConfig+1))
	_ = rc.Close()
	if len(raw) > maxConfig {
		return nil, nil, fault.New(fault.Unsupported, "the configuration of %s is larger than %d bytes", what, maxConfig)
	}
	if got := string(idOf(raw)); got != m.Config.Digest.String() && (err == nil || int64(len(raw)) >= m.Config.Size) {
		return nil, nil, fault.New(fault.Unavailable, "image config verification failed for digest %s: what came has the digest %s; it was refused", m.Config.Digest, got)
	}
	if err != nil {
		return nil, nil, refused(ctx, p.ref, err)
	}
	doc, layers, err := parseConfig(raw)
	if err != nil {
		return nil, nil, err
	}
	if len(layers) != len(m.Layers) {
		return nil, nil, fault.New(fault.Unavailable, "%s is inconsistent: its manifest has %d layers, its configuration %d", what, len(m.Layers), len(layers))
	}
	have := platform{OS: doc.OS, Architecture: doc.Architecture, Variant: doc.Variant}
	if p.asked && doc.OS != "" && !p.want.fits(have) {
		return nil, nil, fault.New(fault.NotFound, "image with reference %s was found but its platform (%s) does not match the specified platform (%s)", what, have, p.want)
	}
	return raw, layers, nil
}

// layers has every layer here. It gives the descriptors of those that were not, each once.
func (p *pull) layers(ctx context.Context, m *v1.Manifest, layers []diffID) ([]v1.Descriptor, error) {
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	var fetched []v1.Descriptor
	var wg sync.WaitGroup
	seen := map[diffID]bool{}
	for i, l := range layers {
		d, id := m.Layers[i], short(m.Layers[i].Digest.String())
		if seen[l] {
			continue
		}
		seen[l] = true
		_, here, err := p.s.layerSize(l)
		if err != nil {
			cancel(err)
			break
		}
		if here {
			p.line(id, stepExists, 0, 0)
			continue
		}
		if !d.MediaType.IsDistributable() && len(d.URLs) > 0 {
			cancel(fault.New(fault.Unsupported, "layer %s is not in the registry but at %s; such layers are not supported", d.Digest, d.URLs[0]))
			break
		}
		fetched = append(fetched, d)
		p.line(id, stepPending, 0, 0)
		src := p.s.resumed(layerSource{digest: d.Digest.String(), size: d.Size, broken: fault.Unavailable}, p.from(d))
		wg.Go(func() {
			if err := p.s.ensureLayer(ctx, l, src, func(step string, current, total int64) { p.line(id, step, current, total) }); err != nil {
				cancel(err) // the first one counts
			}
		})
	}
	wg.Wait()
	return fetched, context.Cause(ctx)
}

func (p *pull) opener(h v1.Hash) func(context.Context) (io.ReadCloser, error) {
	return func(ctx context.Context) (io.ReadCloser, error) {
		layer, err := p.puller.Layer(ctx, p.remote.Context().Digest(h.String()))
		if err != nil {
			return nil, refused(ctx, p.ref, err)
		}
		rc, err := layer.Compressed()
		return rc, refused(ctx, p.ref, err)
	}
}

// from is opener from an offset on.
func (p *pull) from(d v1.Descriptor) fetch {
	whole, part := p.opener(d.Digest), p.s.from(p.remote.Context(), d.Digest.String(), d.Size, p.cred)
	return func(ctx context.Context, offset int64) (io.ReadCloser, error) {
		if offset == 0 {
			return whole(ctx)
		}
		rc, err := part(ctx, offset)
		return rc, refused(ctx, p.ref, err)
	}
}
