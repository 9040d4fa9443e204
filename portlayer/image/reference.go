package image

import (
	"crypto/sha256"
	"encoding/hex"
	"strings"

	"github.com/distribution/reference"

	"vch/internal/fault"
)

// diffID is "sha256:" and the digest of a layer's uncompressed tar (OCI image-spec config.md, rootfs.diff_ids).
type diffID string

func (d diffID) hex() string { return strings.TrimPrefix(string(d), "sha256:") }

// valid keeps anything but a digest from becoming a path.
func validDigest(s string) bool {
	h, ok := strings.CutPrefix(s, "sha256:")
	return ok && len(h) == 64 && strings.Trim(h, "0123456789abcdef") == ""
}

// short is a digest as a human sees it: 12 digits.
func short(digest string) string {
	h := strings.TrimPrefix(digest, "sha256:")
	return h[:min(12, len(h))]
}

// diskName names the disk that the list of layers makes. Images that differ only in their configuration share one.
func diskName(layers []diffID) string {
	h := sha256.New()
	for _, l := range layers {
		h.Write([]byte(l))
		h.Write([]byte{'\n'})
	}
	return hex.EncodeToString(h.Sum(nil))
}

// parseName reads a reference, with the tag latest if it has neither tag nor digest. A tag beside a digest is dropped, as Docker does.
func parseName(name string) (reference.Named, error) {
	ref, err := reference.ParseNormalizedNamed(name)
	if err != nil {
		return nil, fault.New(fault.Invalid, "invalid reference format: %q: %w", name, err)
	}
	if canonical, ok := ref.(reference.Canonical); ok {
		if ref, err = reference.WithDigest(reference.TrimNamed(ref), canonical.Digest()); err != nil {
			return nil, fault.As(fault.Invalid, err)
		}
		return ref, nil
	}
	return reference.TagNameOnly(ref), nil
}

// parseTag is parseName for a name that is to be given to an image.
func parseTag(name string) (reference.NamedTagged, error) {
	ref, err := parseName(name)
	if err != nil {
		return nil, err
	}
	if _, ok := ref.(reference.Digested); ok {
		return nil, fault.New(fault.Invalid, "refusing to create a tag with a digest reference: %s", name)
	}
	if reference.FamiliarName(ref) == "sha256" {
		return nil, fault.New(fault.Invalid, "refusing to create an ambiguous tag using digest algorithm as name")
	}
	tagged, ok := ref.(reference.NamedTagged)
	if !ok {
		return nil, fault.New(fault.Invalid, "invalid reference format: %q has no tag", name)
	}
	return tagged, nil
}

// familiar is a stored name as a human sees it.
func familiar(canonical string) string {
	ref, err := reference.ParseNormalizedNamed(canonical)
	if err != nil {
		return canonical
	}
	return reference.FamiliarString(ref)
}

// repository is the part of a stored name before tag or digest.
func repository(canonical string) string {
	ref, err := reference.ParseNormalizedNamed(canonical)
	if err != nil {
		return canonical
	}
	return ref.Name()
}

// isDigestName tells "name@sha256:…" from "name:tag" among the stored names.
func isDigestName(canonical string) bool { return strings.Contains(canonical, "@") }

func tagOrDigest(ref reference.Named) string {
	switch r := ref.(type) {
	case reference.Digested:
		return r.Digest().String()
	case reference.Tagged:
		return r.Tag()
	}
	return ""
}
