package image

import (
	"strings"

	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/opencontainers/go-digest"

	"vch/internal/fault"
)

// platform is "os/arch[/variant]". An empty Variant matches every variant.
type platform struct{ OS, Architecture, Variant string }

func digestOf(d diffID) digest.Digest { return digest.Digest(d) }

func parsePlatform(s string) (platform, error) {
	if s == "" {
		return hostPlatform(), nil
	}
	part := strings.Split(strings.ToLower(s), "/")
	p := hostPlatform()
	switch {
	case len(part) > 3 || strings.Contains(s, "//") || strings.HasSuffix(s, "/") || strings.HasPrefix(s, "/"):
		return p, fault.New(fault.Invalid, "invalid platform %q: write os/arch or os/arch/variant, for example linux/amd64", s)
	case len(part) == 1 && part[0] == "linux":
	case len(part) == 1:
		p.Architecture = part[0]
	default:
		p.OS, p.Architecture = part[0], part[1]
	}
	if len(part) == 3 {
		p.Variant = part[2]
	}
	switch p.Architecture { // containerd platforms/database.go normalises these
	case "x86_64", "x86-64":
		p.Architecture = "amd64"
	case "aarch64":
		p.Architecture = "arm64"
	}
	return p, nil
}

func (p platform) String() string {
	s := p.OS + "/" + p.Architecture
	if p.Variant != "" {
		s += "/" + p.Variant
	}
	return s
}

// fits reports whether an image for have is one for p. arm64 without a variant is v8, amd64 without one v1 (containerd platforms).
func (p platform) fits(have platform) bool {
	if p.OS != have.OS || p.Architecture != have.Architecture {
		return false
	}
	return p.Variant == "" || p.Variant == have.Variant || have.Variant == "" && (p.Variant == "v8" || p.Variant == "v1")
}

// choose picks the manifest for p in an index: an exact one before one of another variant. Attestations have the platform unknown/unknown.
func choose(manifests []v1.Descriptor, p platform) (v1.Descriptor, error) {
	best, rank := v1.Descriptor{}, 0
	for _, m := range manifests {
		if m.Platform == nil || m.Annotations["vnd.docker.reference.type"] == "attestation-manifest" {
			continue
		}
		have := platform{OS: m.Platform.OS, Architecture: m.Platform.Architecture, Variant: m.Platform.Variant}
		r := 0
		if p.fits(have) {
			if r = 1; have.Variant == p.Variant {
				r = 2
			}
		}
		if r > rank {
			best, rank = m, r
		}
	}
	if rank == 0 {
		return best, fault.New(fault.NotFound, "no matching manifest for %s in the manifest list entries", p)
	}
	return best, nil
}
