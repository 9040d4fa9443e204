package personality

import (
	"encoding/json"
	"net/http"
	"slices"
	"strings"

	"github.com/moby/moby/api/types/container"
	"github.com/moby/moby/api/types/network"

	"vch/guest"
	"vch/internal/fault"
	"vch/portlayer"
)

// containerCommit is POST /commit.
func (s *Server) containerCommit(w http.ResponseWriter, r *http.Request) error {
	q := r.URL.Query()
	var asked container.Config
	if _, err := decodeOptionalJSON(r, &asked); err != nil {
		return err
	}
	c, err := s.Containers.Get(r.Context(), q.Get("container"))
	if err != nil {
		return err
	}
	d, err := openDoor(c)
	if err != nil {
		return err
	}
	config, err := committed(asked, q["changes"], d.Config)
	if err != nil {
		return err
	}
	o := portlayer.MakeImage{
		Derived: portlayer.Derived{Author: q.Get("author"), Comment: q.Get("comment"), CreatedBy: strings.Join(c.Spec.Process.Args, " "), Config: config},
		Still:   q.Get("pause") == "" || boolValue(r, "pause"), // since API 1.13
	}
	if q.Get("repo") != "" {
		if o.Name, err = joinTag(q.Get("repo"), q.Get("tag")); err != nil {
			return err
		}
		if strings.Contains(o.Name, "@") {
			return fault.New(fault.Invalid, "refusing to create a tag with a digest reference")
		}
	}
	img, err := s.Containers.MakeImage(r.Context(), string(c.ID), o)
	if err != nil {
		return err
	}
	return writeJSON(w, http.StatusCreated, container.CommitResponse{ID: string(img.ID)})
}

// committed is the configuration of an image that is made of a container: what is asked for, changed by Dockerfile instructions, completed by the container's own, by Moby's
// rules (daemon/commit.go, CreateImageFromContainer).
func committed(asked container.Config, changes []string, own container.Config) (portlayer.ImageConfig, error) {
	changed, err := parseChanges(imageConfigOf(asked), changes)
	if err != nil {
		return changed, err
	}
	on, err := containerConfigOf(changed)
	if err != nil {
		return changed, err
	}
	merged, err := mergeImage(on, imageConfigOf(own))
	return imageConfigOf(merged), err
}

// imageConfigOf is of a container's configuration what an image has.
func imageConfigOf(c container.Config) portlayer.ImageConfig {
	img := portlayer.ImageConfig{
		User: c.User, Env: c.Env, Entrypoint: c.Entrypoint, Cmd: c.Cmd, WorkingDir: c.WorkingDir, Labels: c.Labels, StopSignal: c.StopSignal,
		Shell: c.Shell, OnBuild: c.OnBuild, ArgsEscaped: c.ArgsEscaped,
	}
	for v := range c.Volumes {
		img.Volumes = append(img.Volumes, v)
	}
	for p := range c.ExposedPorts {
		img.ExposedPorts = append(img.ExposedPorts, p.String())
	}
	slices.Sort(img.Volumes)
	slices.Sort(img.ExposedPorts)
	if c.Healthcheck != nil {
		img.Healthcheck, _ = json.Marshal(c.Healthcheck) // strings and numbers
	}
	return img
}

// containerConfigOf is the other way.
func containerConfigOf(img portlayer.ImageConfig) (container.Config, error) {
	c := container.Config{
		User: img.User, Env: img.Env, Entrypoint: img.Entrypoint, Cmd: img.Cmd, WorkingDir: img.WorkingDir, Labels: img.Labels, StopSignal: img.StopSignal,
		Shell: img.Shell, OnBuild: img.OnBuild, ArgsEscaped: img.ArgsEscaped, Volumes: set(img.Volumes),
	}
	if len(img.ExposedPorts) > 0 {
		c.ExposedPorts = network.PortSet{}
	}
	for _, text := range img.ExposedPorts {
		p, err := network.ParsePort(text)
		if err != nil {
			return c, fault.New(fault.Invalid, "invalid containerPort: %s", text)
		}
		c.ExposedPorts[p] = struct{}{}
	}
	if len(img.Healthcheck) > 0 {
		if err := json.Unmarshal(img.Healthcheck, &c.Healthcheck); err != nil {
			return c, fault.New(fault.Invalid, "the health check cannot be read: %w", err)
		}
	}
	return c, nil
}

// containerExport is GET /containers/{id}/export.
func (s *Server) containerExport(w http.ResponseWriter, r *http.Request) error {
	out := &laterWriter{to: w, kind: "application/octet-stream"}
	return s.ended(r, out, "container "+r.PathValue("id"), s.Containers.ExportRoot(r.Context(), r.PathValue("id"), out))
}

// changeTypes are the kinds of changes in Docker's numbers.
var changeTypes = map[guest.ChangeKind]container.ChangeType{guest.Modified: container.ChangeModify, guest.Added: container.ChangeAdd, guest.Deleted: container.ChangeDelete}

// containerChanges is GET /containers/{id}/changes.
func (s *Server) containerChanges(w http.ResponseWriter, r *http.Request) error {
	changes, err := s.Containers.Changes(r.Context(), r.PathValue("id"))
	if err != nil {
		return err
	}
	var list []container.FilesystemChange // null where nothing has changed, as in Moby
	for _, c := range changes {
		list = append(list, container.FilesystemChange{Kind: changeTypes[c.Kind], Path: string(c.Path)})
	}
	return writeJSON(w, http.StatusOK, list)
}
