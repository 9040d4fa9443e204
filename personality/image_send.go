package personality

import (
	"encoding/json"
	"net/http"

	"github.com/distribution/reference"
	"github.com/moby/moby/api/pkg/authconfig"
	"github.com/moby/moby/api/types/jsonstream"
	"github.com/moby/moby/api/types/registry"
	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"vch/internal/fault"
	"vch/portlayer"
)

// refusePlatform refuses to choose among the platforms of an image that is kept.
func refusePlatform(r *http.Request) error {
	if p := r.URL.Query().Get("platform"); p != "" {
		return fault.New(fault.Unsupported, "platform=%s is not supported by vch: an image is kept for one platform; leave the option out", p)
	}
	return nil
}

// imageSave is GET /images/{name}/get, and GET /images/get with any number of names.
func (s *Server) imageSave(w http.ResponseWriter, r *http.Request) error {
	if err := refusePlatform(r); err != nil {
		return err
	}
	names := r.URL.Query()["names"]
	if name := r.PathValue("name"); name != "" {
		names = []string{name}
	}
	if len(names) == 0 {
		return fault.New(fault.Invalid, "say which images are to be saved: names=IMAGE")
	}
	out := &laterWriter{to: w, kind: "application/x-tar"}
	return s.ended(r, out, "images", s.Images.Save(r.Context(), names, out))
}

// imagePush is POST /images/{name}/push.
func (s *Server) imagePush(w http.ResponseWriter, r *http.Request) error {
	q := r.URL.Query()
	if err := refusePlatform(r); err != nil {
		return err
	}
	cred, err := registryAuth(r)
	if err != nil {
		return err
	}
	named, err := reference.ParseNormalizedNamed(r.PathValue("name"))
	if err != nil {
		return fault.New(fault.Invalid, "invalid reference format: %q: %w", r.PathValue("name"), err)
	}
	if _, ok := named.(reference.Digested); ok {
		return fault.New(fault.Invalid, "cannot push a digest reference")
	}
	names := []string{reference.FamiliarString(named)}
	switch {
	case q.Get("tag") != "":
		name, err := joinTag(reference.FamiliarName(named), q.Get("tag"))
		if err != nil {
			return err
		}
		names = []string{name}
	case reference.IsNameOnly(named): // docker push --all-tags
		if names, err = s.tagsOf(r, named); err != nil {
			return err
		}
	}
	out := newProgressStream(w)
	for _, name := range names {
		pushed, err := s.Images.Push(r.Context(), name, cred, out.progress)
		if err == nil {
			err = out.aux(pushResult{Tag: tagOf(name), Digest: pushed.Digest, Size: pushed.Size})
		}
		if err != nil {
			return out.finish(err)
		}
	}
	return out.finish(nil)
}

// pushResult is what a push tells at its end (moby api/types PushResult).
type pushResult struct {
	Tag    string
	Digest string
	Size   int64
}

// aux sends what is for programs.
func (p *progressStream) aux(v any) error {
	raw, err := json.Marshal(v)
	if err != nil {
		return err
	}
	return p.send(progressLine{Message: jsonstream.Message{Aux: (*json.RawMessage)(&raw)}})
}

// registryAuth reads the credentials that come with a request.
func registryAuth(r *http.Request) (portlayer.Credentials, error) {
	auth, err := authconfig.Decode(r.Header.Get(registry.AuthHeader))
	if err != nil {
		return portlayer.Credentials{}, fault.As(fault.Invalid, err)
	}
	return credentials(auth)
}

// tagsOf gives the tags that this VCH has of a repository.
func (s *Server) tagsOf(r *http.Request, repo reference.Named) (names []string, err error) {
	all, err := s.Images.List(r.Context())
	if err != nil {
		return nil, err
	}
	for _, img := range all {
		for _, tag := range img.Tags {
			if named, err := reference.ParseNormalizedNamed(tag); err == nil && named.Name() == repo.Name() {
				names = append(names, tag)
			}
		}
	}
	if len(names) == 0 {
		return nil, fault.New(fault.NotFound, "An image does not exist locally with the tag: %s", reference.FamiliarName(repo))
	}
	return names, nil
}

// tagOf is the tag of a name.
func tagOf(name string) string {
	if named, err := reference.ParseNormalizedNamed(name); err == nil {
		if tagged, ok := reference.TagNameOnly(named).(reference.Tagged); ok {
			return tagged.Tag()
		}
	}
	return ""
}

// distribution is GET /distribution/{name}/json.
func (s *Server) distribution(w http.ResponseWriter, r *http.Request) error {
	cred, err := registryAuth(r)
	if err != nil {
		return err
	}
	d, err := s.Images.Look(r.Context(), r.PathValue("name"), cred)
	if err != nil {
		return err
	}
	out := registry.DistributionInspect{Descriptor: ocispec.Descriptor{MediaType: d.MediaType, Digest: digest.Digest(d.Digest), Size: d.Size}, Platforms: []ocispec.Platform{}}
	for _, p := range d.Platforms {
		out.Platforms = append(out.Platforms, ocispec.Platform{Architecture: p.Architecture, OS: p.OS, OSVersion: p.OSVersion, OSFeatures: p.OSFeatures, Variant: p.Variant})
	}
	return writeJSON(w, http.StatusOK, out)
}
