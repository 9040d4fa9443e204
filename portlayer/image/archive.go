package image

import (
	"archive/tar"
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"path"
	"strings"

	"github.com/distribution/reference"
	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/tarball"

	"vch/internal/fault"
)

// maxArchiveFiles bounds the files of an archive: those of thousands of images.
const maxArchiveFiles = 1 << 18

// archive is a saved image, an uncompressed tar, with the place of every file in it.
type archive struct {
	f     *os.File
	files map[string]section
	links map[string]string // old docker-save archives hold a layer once and link to it
}

type section struct{ at, size int64 }

// archived is one image of an archive.
type archived struct {
	config  []byte
	layers  []diffID
	sources []layerSource
	names   []string // canonical
}

// openArchive finds the files of f.
func openArchive(ctx context.Context, f *os.File) (*archive, error) {
	a := &archive{f: f, files: map[string]section{}, links: map[string]string{}}
	tr := tar.NewReader(f)
	for n := 0; ; n++ {
		if err := ctx.Err(); err != nil {
			return nil, err
		}
		h, err := tr.Next()
		if errors.Is(err, io.EOF) {
			return a, nil
		}
		if errors.Is(err, tar.ErrHeader) && n == 0 {
			return nil, invalid("it is not an image archive: no tar")
		}
		if err != nil {
			return nil, invalid("the archive is corrupt or cut short after %d files: %w", n, err)
		}
		if n > maxArchiveFiles {
			return nil, invalid("the archive has more than %d files", maxArchiveFiles)
		}
		name := inArchive(h.Name)
		switch h.Typeflag {
		case tar.TypeReg:
			at, err := f.Seek(0, io.SeekCurrent)
			if err != nil {
				return nil, err
			}
			a.files[name] = section{at, h.Size}
		case tar.TypeLink:
			a.links[name] = inArchive(h.Linkname)
		case tar.TypeSymlink:
			a.links[name] = inArchive(path.Join(path.Dir(name), h.Linkname))
		}
	}
}

// inArchive is a file's name in the archive's own, flat sense: it is never a path on the host.
func inArchive(name string) string { return strings.TrimPrefix(path.Clean("/"+name), "/") }

func (a *archive) find(name string) (section, bool) {
	name = inArchive(name)
	for range maxHops {
		if s, ok := a.files[name]; ok {
			return s, true
		}
		next, ok := a.links[name]
		if !ok {
			break
		}
		name = next
	}
	return section{}, false
}

// small reads a file that has to be small.
func (a *archive) small(name string) ([]byte, error) {
	s, ok := a.find(name)
	if !ok {
		return nil, invalid("the archive lacks %s", name)
	}
	if s.size > maxConfig {
		return nil, invalid("%s in the archive has %d bytes; more than %d are refused", name, s.size, maxConfig)
	}
	b := make([]byte, s.size)
	if _, err := a.f.ReadAt(b, s.at); err != nil {
		return nil, invalid("%s in the archive is cut short: %w", name, err)
	}
	return b, nil
}

// layer is a file as the source of a layer.
func (a *archive) layer(name, digest string) (layerSource, error) {
	s, ok := a.find(name)
	if !ok {
		return layerSource{}, invalid("the archive lacks layer %s", name)
	}
	return layerSource{digest: digest, size: s.size, broken: fault.Invalid, open: func(context.Context) (io.ReadCloser, error) {
		return io.NopCloser(io.NewSectionReader(a.f, s.at, s.size)), nil
	}}, nil
}

func (a *archive) images() ([]archived, error) {
	if _, ok := a.find("manifest.json"); ok {
		return a.dockerImages()
	}
	if _, ok := a.find("index.json"); ok {
		return a.ociImages()
	}
	return nil, invalid("it is not an image archive: it has neither manifest.json (docker save) nor index.json (OCI layout); for a root file system use docker import")
}

// dockerImages reads docker save's manifest.json.
func (a *archive) dockerImages() ([]archived, error) {
	raw, err := a.small("manifest.json")
	if err != nil {
		return nil, err
	}
	var manifest tarball.Manifest
	if err := json.Unmarshal(raw, &manifest); err != nil {
		return nil, invalid("the archive's manifest.json cannot be read: %w", err)
	}
	if len(manifest) == 0 {
		return nil, invalid("the archive's manifest.json names no image")
	}
	var list []archived
	for _, m := range manifest {
		img, err := a.image(m.Config, "")
		if err != nil {
			return nil, err
		}
		if len(m.Layers) != len(img.layers) {
			return nil, invalid("the archive is inconsistent: manifest.json has %d layers for image %s, its configuration %d", len(m.Layers), short(string(idOf(img.config))), len(img.layers))
		}
		for _, file := range m.Layers {
			digest := ""
			if h, ok := strings.CutPrefix(inArchive(file), "blobs/sha256/"); ok {
				digest = "sha256:" + h
			}
			src, err := a.layer(file, digest)
			if err != nil {
				return nil, err
			}
			img.sources = append(img.sources, src)
		}
		for _, t := range m.RepoTags {
			tag, err := parseTag(t)
			if err != nil {
				return nil, invalid("the archive's manifest.json has the tag %q: %w", t, err)
			}
			img.names = append(img.names, tag.String())
		}
		list = append(list, img)
	}
	return list, nil
}

// image reads a configuration; digest, if known, is checked.
func (a *archive) image(config, digest string) (archived, error) {
	raw, err := a.small(config)
	if err != nil {
		return archived{}, err
	}
	if got := string(idOf(raw)); digest != "" && got != digest {
		return archived{}, invalid("the archive's image configuration %s has the digest %s; it was refused", digest, got)
	}
	_, layers, err := parseConfig(raw)
	return archived{config: raw, layers: layers}, err
}

// blob reads a small blob of an OCI layout and checks its digest.
func (a *archive) blob(h v1.Hash) ([]byte, error) {
	if !validDigest(h.String()) {
		return nil, invalid("the archive names the blob %q, which is no sha256 digest", h)
	}
	raw, err := a.small(blobName(h))
	if err != nil {
		return nil, err
	}
	sum := sha256.Sum256(raw)
	if got := hex.EncodeToString(sum[:]); got != h.Hex {
		return nil, invalid("blob %s in the archive has the digest sha256:%s; it was refused", h, got)
	}
	return raw, nil
}

func blobName(h v1.Hash) string { return "blobs/" + h.Algorithm + "/" + h.Hex }

// ociImages reads an OCI layout's index.json: an image per name, and of several platforms under one name the host's.
func (a *archive) ociImages() ([]archived, error) {
	raw, err := a.small("index.json")
	if err != nil {
		return nil, err
	}
	index, err := v1.ParseIndexManifest(bytes.NewReader(raw))
	if err != nil {
		return nil, invalid("the archive's index.json cannot be read: %w", err)
	}
	var list []archived
	for _, d := range perName(index.Manifests) {
		img, err := a.ociImage(d, 0)
		if err != nil {
			return nil, err
		}
		if name := nameIn(d.Annotations); name != "" {
			img.names = append(img.names, name)
		}
		list = append(list, img)
	}
	if len(list) == 0 {
		return nil, invalid("the archive's index.json names no image")
	}
	return list, nil
}

// perName drops the attestations, and the other platforms of what is there for the host's under the same name.
func perName(all []v1.Descriptor) []v1.Descriptor {
	groups := map[string][]v1.Descriptor{}
	var order []string
	for _, d := range all {
		if d.Annotations["vnd.docker.reference.type"] == "attestation-manifest" {
			continue
		}
		name := nameIn(d.Annotations)
		if groups[name] == nil {
			order = append(order, name)
		}
		groups[name] = append(groups[name], d)
	}
	var keep []v1.Descriptor
	for _, name := range order {
		group := groups[name]
		if best, err := choose(group, hostPlatform()); err == nil && len(group) > 1 && allHavePlatforms(group) {
			group = []v1.Descriptor{best}
		}
		keep = append(keep, group...)
	}
	return keep
}

func allHavePlatforms(list []v1.Descriptor) bool {
	seen := map[string]bool{}
	for _, d := range list {
		if d.Platform == nil || seen[d.Platform.String()] {
			return false
		}
		seen[d.Platform.String()] = true
	}
	return true
}

// nameIn is the canonical name in a descriptor's annotations. containerd writes the whole name; others write the whole one or just a tag, which
// names nothing by itself, under OCI's key.
func nameIn(annotations map[string]string) string {
	for _, key := range []string{"io.containerd.image.name", "org.opencontainers.image.ref.name"} {
		text := annotations[key]
		if !strings.ContainsAny(text, ":/") || strings.Contains(text, "@") {
			continue
		}
		if tag, err := parseTag(text); err == nil {
			return reference.Named(tag).String()
		}
	}
	return ""
}

func (a *archive) ociImage(d v1.Descriptor, depth int) (archived, error) {
	raw, err := a.blob(d.Digest)
	if err != nil {
		return archived{}, err
	}
	if d.MediaType.IsIndex() {
		if depth >= maxIndexDepth {
			return archived{}, invalid("the archive's indexes name each other more than %d deep", maxIndexDepth)
		}
		index, err := v1.ParseIndexManifest(bytes.NewReader(raw))
		if err != nil {
			return archived{}, invalid("the archive's index %s cannot be read: %w", d.Digest, err)
		}
		child, err := choose(index.Manifests, hostPlatform())
		if err != nil {
			return archived{}, fmt.Errorf("the archive's index %s: %w", d.Digest, err)
		}
		return a.ociImage(child, depth+1)
	}
	if !d.MediaType.IsImage() {
		return archived{}, fault.New(fault.Unsupported, "the archive holds %s of type %q, which is not an image", d.Digest, d.MediaType)
	}
	m, err := v1.ParseManifest(bytes.NewReader(raw))
	if err != nil {
		return archived{}, invalid("the archive's manifest %s cannot be read: %w", d.Digest, err)
	}
	img, err := a.image(blobName(m.Config.Digest), m.Config.Digest.String())
	if err != nil {
		return img, err
	}
	if len(m.Layers) != len(img.layers) {
		return img, invalid("the archive is inconsistent: manifest %s has %d layers, its configuration %d", d.Digest, len(m.Layers), len(img.layers))
	}
	for _, l := range m.Layers {
		if !validDigest(l.Digest.String()) {
			return img, invalid("the archive names the layer %q, which is no sha256 digest", l.Digest)
		}
		src, err := a.layer(blobName(l.Digest), l.Digest.String())
		if err != nil {
			return img, err
		}
		img.sources = append(img.sources, src)
	}
	return img, nil
}
