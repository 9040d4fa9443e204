package personality

import (
	"context"
	"encoding/json"
	"fmt"
	"net/http"
	"runtime"
	"strings"

	"github.com/moby/moby/api/types/container"

	"vch/internal/fault"
	"vch/personality/mountspec"
	"vch/portlayer"
)

// containerCreate is POST /containers/create.
func (s *Server) containerCreate(w http.ResponseWriter, r *http.Request) error {
	var raw json.RawMessage
	if err := decodeJSON(r, &raw); err != nil {
		return err
	}
	req, err := parseCreate(raw)
	if err != nil {
		return err
	}
	v := versionOf(r)
	forVersion(&req, v)
	if err := refuseRequest(req); err != nil { // before the image is looked for: the CLI would pull it in vain
		return err
	}
	img, err := s.Images.Get(r.Context(), req.Config.Image)
	if err != nil {
		return err
	}
	platform := ""
	if v.atLeast(1, 41) {
		platform = r.URL.Query().Get("platform")
	}
	if err := checkPlatform(platform, req.Config.Image, img); err != nil {
		return err
	}
	spec, warnings, err := specOf(req, around{image: img, version: v, basic: s.Defaults.Anonymous, other: s.other(r.Context())})
	if err != nil {
		return err
	}
	spec.Name = strings.TrimPrefix(r.URL.Query().Get("name"), "/")
	c, more, err := s.Containers.Create(r.Context(), spec)
	if err != nil {
		return err
	}
	if p := spec.Process; p.Rows != 0 || p.Cols != 0 { // what the TTY starts with is asked of Resize, whatever the spec said
		if err := s.Containers.Resize(r.Context(), string(c.ID), p.Rows, p.Cols); err != nil {
			s.Log.Warn("a container's terminal will not start with its client's size", "container", string(c.ID), "err", err)
		}
	}
	if platform == "" && img.Architecture != runtime.GOARCH {
		warnings = append(warnings, fmt.Sprintf("The requested image's platform (%s) does not match the detected host platform (linux/%s) and no specific platform was requested", platformOf(img), runtime.GOARCH))
	}
	warnings = append(append([]string{}, warnings...), more...)
	return writeJSON(w, http.StatusCreated, container.CreateResponse{ID: string(c.ID), Warnings: warnings})
}

// forVersion takes out what an older API version did not have and Moby ignores there (api/server/router/container postContainersCreate).
func forVersion(req *createRequest, v apiVersion) {
	if !v.atLeast(1, 42) {
		req.HostConfig.ConsoleSize = [2]uint{}
	}
	if !v.atLeast(1, 43) {
		req.HostConfig.Annotations = nil
	}
}

// refuseRequest refuses what vch cannot do, whatever the image says.
func refuseRequest(req createRequest) error {
	if err := refuseHost(req.HostConfig); err != nil {
		return err
	}
	for name, e := range req.NetworkingConfig.EndpointsConfig {
		if e != nil {
			if _, err := endpointOf(portlayer.NetworkName(name), e); err != nil {
				return err
			}
		}
	}
	return nil
}

// around is what a create request's meaning depends on.
type around struct {
	image   portlayer.Image
	version apiVersion
	basic   mountspec.Basic
	other   func(ref string) (portlayer.Container, error) // finds another container, for --volumes-from
}

// specOf is what a request means, given what is around it: the container that it asks for, and sentences for the user. It changes nothing. Every field of the
// request is honoured in the spec, kept in Door because it is only ever shown, or refused by name (refuseRequest, which is asked here too).
func specOf(req createRequest, at around) (spec portlayer.ContainerSpec, warnings []string, err error) {
	if err := refuseRequest(req); err != nil {
		return spec, nil, err
	}
	config, err := mergeImage(req.Config, at.image.Config)
	if err != nil {
		return spec, nil, err
	}
	if err := applyConfig(&spec, config); err != nil {
		return spec, nil, err
	}
	if err := applyHost(&spec, req.HostConfig); err != nil {
		return spec, nil, err
	}
	h := req.HostConfig
	from, err := volumesFrom(h.VolumesFrom, at.other)
	if err != nil {
		return spec, nil, err
	}
	spec.Mounts, warnings, err = mountspec.Parse(mountspec.Input{
		Binds: h.Binds, Mounts: h.Mounts, Tmpfs: h.Tmpfs,
		Volumes: req.Config.Volumes, ImageVolumes: at.image.Config.Volumes,
		VolumeDriver: h.VolumeDriver, Basic: at.basic, From: from,
	}, mountspec.Version{Major: int(at.version) / 100, Minor: int(at.version) % 100})
	if err != nil {
		return spec, nil, err
	}
	more, err := applyNetworks(&spec, req, config.ExposedPorts)
	if err != nil {
		return spec, nil, err
	}
	warnings = append(warnings, more...)
	if spec.Health, err = healthOf(config.Healthcheck, config.Shell); err != nil {
		return spec, nil, err
	}
	spec.Door, err = json.Marshal(doorOf(config, *h))
	if err != nil {
		return spec, nil, fault.New(fault.Internal, "the container's configuration cannot be kept: %w", err)
	}
	return spec, warnings, nil
}

// other finds another container. One that is not there is the request's fault, as in Moby (400).
func (s *Server) other(ctx context.Context) func(ref string) (portlayer.Container, error) {
	return func(ref string) (portlayer.Container, error) {
		c, err := s.Containers.Get(ctx, ref)
		if fault.Is(err, fault.NotFound) {
			err = fault.New(fault.Invalid, "No such container: %s", ref)
		}
		return c, err
	}
}

func volumesFrom(texts []string, other func(ref string) (portlayer.Container, error)) (from []mountspec.From, err error) {
	for _, text := range texts {
		ref, readOnly, err := mountspec.ParseFrom(text)
		if err != nil {
			return nil, err
		}
		c, err := other(ref)
		if err != nil {
			return nil, err
		}
		from = append(from, mountspec.From{Container: c.ID, Mounts: c.Spec.Mounts, ReadOnly: readOnly})
	}
	return from, nil
}

func platformOf(img portlayer.Image) string {
	p := img.OS + "/" + img.Architecture
	if img.Variant != "" {
		p += "/" + img.Variant
	}
	return p
}

// checkPlatform refuses an image that is not for the platform asked for ("" any): as NotFound, upon which the CLI pulls the right one.
func checkPlatform(asked, ref string, img portlayer.Image) error {
	if asked == "" {
		return nil
	}
	parts := strings.Split(strings.ToLower(asked), "/")
	if len(parts) == 1 && parts[0] != "linux" { // an architecture alone
		parts = []string{"linux", parts[0]}
	}
	have := []string{img.OS, img.Architecture, img.Variant}
	for i, p := range parts {
		if i == 1 {
			p = architecture(p)
		}
		if i >= len(have) || p == "" {
			return fault.New(fault.Invalid, "platform %q is not os/architecture or os/architecture/variant", asked)
		}
		if p != have[i] && (i != 2 || have[i] != "") {
			return fault.New(fault.NotFound, "image with reference %s was found but its platform (%s) does not match the specified platform (%s)", ref, platformOf(img), asked)
		}
	}
	return nil
}

// architecture is a processor architecture's name in Go (containerd platforms.normalizeArch).
func architecture(name string) string {
	switch name {
	case "x86_64", "x86-64":
		return "amd64"
	case "aarch64":
		return "arm64"
	}
	return name
}
