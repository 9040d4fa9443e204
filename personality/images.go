package personality

import (
	"context"
	"encoding/json"
	"fmt"
	"net/http"
	"slices"
	"strings"
	"time"

	"github.com/distribution/reference"
	"github.com/moby/moby/api/types/image"
	"github.com/moby/moby/api/types/storage"

	"vch/internal/fault"
	"vch/portlayer"
)

// imageSummary is an image's line in a list, with what clients before 1.44 read.
type imageSummary struct {
	image.Summary
	VirtualSize *int64 `json:",omitempty"`
}

// noneTag is how clients before 1.43 are shown an image without a name.
const (
	noneTag    = "<none>:<none>"
	noneDigest = "<none>@<none>"
)

// notCounted is Docker's number for what was not asked for.
const notCounted = -1

func summarize(img portlayer.Image, v apiVersion) imageSummary {
	s := imageSummary{Summary: image.Summary{
		ID: string(img.ID), Created: unixSeconds(img.Created), Labels: img.Config.Labels, RepoTags: orEmpty(img.Tags), RepoDigests: orEmpty(img.Digests),
		Size: int64(img.Size), SharedSize: notCounted, Containers: notCounted,
	}}
	if !v.atLeast(1, 43) && len(img.Tags) == 0 && len(img.Digests) == 0 {
		s.RepoTags, s.RepoDigests = []string{noneTag}, []string{noneDigest}
	}
	if !v.atLeast(1, 44) {
		s.VirtualSize = &s.Size
	}
	return s
}

// unixSeconds is a time as Docker's lists have it; one that is not known is 0.
func unixSeconds(t time.Time) int64 {
	if t.IsZero() {
		return 0
	}
	return t.Unix()
}

func orEmpty(list []string) []string {
	if list == nil {
		return []string{}
	}
	return list
}

// imageList answers docker images. There are no intermediate images: all=1 changes nothing. Nor are there manifests of other platforms.
func (s *Server) imageList(w http.ResponseWriter, r *http.Request) error {
	f, err := filtersOf(r)
	if err == nil {
		err = f.only("dangling", "label", "label!", "before", "since", "reference", "until")
	}
	if err != nil {
		return err
	}
	pick, err := s.imageFilter(r.Context(), f)
	if err != nil {
		return err
	}
	all, err := s.Images.List(r.Context())
	if err != nil {
		return err
	}
	shared := map[portlayer.ImageID]portlayer.Bytes{}
	if boolValue(r, "shared-size") {
		shared = sharedSizes(all)
	}
	list := []imageSummary{}
	for _, img := range all {
		img, ok := pick(img)
		if !ok {
			continue
		}
		summary := summarize(img, versionOf(r))
		if n, counted := shared[img.ID]; counted {
			summary.SharedSize = int64(n)
		}
		list = append(list, summary)
	}
	return writeJSON(w, http.StatusOK, list)
}

// imageFilter gives the test that an image has to pass, which also takes away the names that a reference filter does not match.
func (s *Server) imageFilter(ctx context.Context, f filters) (func(portlayer.Image) (portlayer.Image, bool), error) {
	dangling, err := f.boolean("dangling", false)
	if err != nil {
		return nil, err
	}
	until, err := f.until(time.Now())
	if err != nil {
		return nil, err
	}
	var before, since time.Time
	for key, at := range map[string]*time.Time{"before": &before, "since": &since} {
		ref, err := f.single(key)
		if err != nil {
			return nil, err
		}
		if ref == "" {
			continue
		}
		img, err := s.Images.Get(ctx, ref)
		if err != nil {
			return nil, err
		}
		*at = img.Created
	}
	for _, pattern := range f["reference"] {
		if _, err := familiarMatch(pattern, "docker.io/library/x:latest"); err != nil {
			return nil, fault.New(fault.Invalid, "invalid filter 'reference=[%s]': %w", pattern, err)
		}
	}
	return func(img portlayer.Image) (portlayer.Image, bool) {
		switch {
		case len(f["dangling"]) > 0 && dangling != (len(img.Tags) == 0),
			!before.IsZero() && !img.Created.Before(before),
			!since.IsZero() && !img.Created.After(since),
			!until.IsZero() && !img.Created.Before(until),
			!f.labels(img.Config.Labels):
			return img, false
		}
		if len(f["reference"]) == 0 {
			return img, true
		}
		img.Tags, img.Digests = matching(f["reference"], img.Tags), matching(f["reference"], img.Digests)
		return img, len(img.Tags)+len(img.Digests) > 0
	}, nil
}

// matching keeps the names that one of the patterns matches.
func matching(patterns, names []string) []string {
	var kept []string
	for _, name := range names {
		if slices.ContainsFunc(patterns, func(p string) bool { ok, err := familiarMatch(p, name); return ok && err == nil }) {
			kept = append(kept, name)
		}
	}
	return kept
}

func familiarMatch(pattern, name string) (bool, error) {
	named, err := reference.ParseNormalizedNamed(name)
	if err != nil {
		return false, err
	}
	return reference.FamiliarMatch(pattern, named)
}

// layerSizes is the size of each layer of an image, bottom first.
func layerSizes(img portlayer.Image) map[string]portlayer.Bytes {
	sizes := map[string]portlayer.Bytes{}
	next := 0
	for _, step := range img.History {
		if step.EmptyLayer || next == len(img.DiffIDs) {
			continue
		}
		sizes[img.DiffIDs[next]] = step.Size
		next++
	}
	return sizes
}

// sharedSizes says how much of each image's size other images have, too.
func sharedSizes(all []portlayer.Image) map[portlayer.ImageID]portlayer.Bytes {
	users := map[string]int{}
	for _, img := range all {
		for layer := range layerSizes(img) {
			users[layer]++
		}
	}
	shared := map[portlayer.ImageID]portlayer.Bytes{}
	for _, img := range all {
		shared[img.ID] = 0
		for layer, size := range layerSizes(img) {
			if users[layer] > 1 {
				shared[img.ID] += size
			}
		}
	}
	return shared
}

// imageInspect answers docker image inspect.
func (s *Server) imageInspect(w http.ResponseWriter, r *http.Request) error {
	if p := r.URL.Query().Get("platform"); p != "" {
		return fault.New(fault.Unsupported, "platform=%s is not supported by vch: an image here has one platform", p)
	}
	img, err := s.Images.Get(r.Context(), r.PathValue("name"))
	if err != nil {
		return err
	}
	shown, err := inspectImage(img, versionOf(r))
	if err != nil {
		return err
	}
	return writeJSON(w, http.StatusOK, shown)
}

// imageInspection is image.InspectResponse with what older clients read, and a Config of which each version has its own fields.
type imageInspection struct {
	image.InspectResponse
	Config          map[string]any
	Parent          string  // of an image that was built here: never, as BuildKit does that
	DockerVersion   string  // that built it; not in what vch keeps of an image
	VirtualSize     *int64  `json:",omitempty"` // before 1.44
	Container       *string `json:",omitempty"` // before 1.45: what docker build ran last
	ContainerConfig any     `json:",omitempty"` // before 1.45
}

func inspectImage(img portlayer.Image, v apiVersion) (imageInspection, error) {
	config, err := imageConfig(img.Config, v)
	if err != nil {
		return imageInspection{}, err
	}
	shown := imageInspection{
		InspectResponse: image.InspectResponse{
			ID: string(img.ID), RepoTags: orEmpty(img.Tags), RepoDigests: orEmpty(img.Digests), Comment: img.Comment, Author: img.Author,
			Architecture: img.Architecture, Variant: img.Variant, Os: img.OS, Size: int64(img.Size),
			GraphDriver: &storage.DriverData{Name: storageDriver, Data: map[string]string{}},
			RootFS:      image.RootFS{Type: "layers", Layers: img.DiffIDs},
			Metadata:    image.Metadata{LastTagTime: img.Loaded.UTC()}, // as far as it is known: its names have no times
		},
		Config: config,
	}
	if !img.Created.IsZero() {
		shown.Created = img.Created.UTC().Format(time.RFC3339Nano)
	} else if !v.atLeast(1, 44) { // it was never missing then
		shown.Created = time.Time{}.Format(time.RFC3339Nano)
	}
	if !v.atLeast(1, 44) {
		shown.VirtualSize = &shown.Size
	}
	if !v.atLeast(1, 45) {
		empty := ""
		shown.Container = &empty
		shown.ContainerConfig = emptyConfig()
	}
	return shown, nil
}

// emptyConfig is a container's configuration in which nothing is set, as it was shown before 1.50.
func emptyConfig() map[string]any {
	return map[string]any{
		"Hostname": "", "Domainname": "", "User": "", "AttachStdin": false, "AttachStdout": false, "AttachStderr": false, "Tty": false, "OpenStdin": false, "StdinOnce": false,
		"Env": nil, "Cmd": nil, "Image": "", "Volumes": nil, "WorkingDir": "", "Entrypoint": nil, "OnBuild": nil, "Labels": nil,
	}
}

// imageConfig is an image's configuration as Docker shows it: since 1.50 only what an image can have.
func imageConfig(c portlayer.ImageConfig, v apiVersion) (map[string]any, error) {
	shown := emptyConfig()
	if v.atLeast(1, 50) {
		for _, key := range []string{"Hostname", "Domainname", "AttachStdin", "AttachStdout", "AttachStderr", "Tty", "OpenStdin", "StdinOnce", "Image"} {
			delete(shown, key)
		}
	}
	shown["User"], shown["WorkingDir"] = c.User, c.WorkingDir
	for key, list := range map[string][]string{"Env": c.Env, "Cmd": c.Cmd, "Entrypoint": c.Entrypoint, "OnBuild": c.OnBuild} {
		if list != nil {
			shown[key] = list
		}
	}
	if c.Labels != nil {
		shown["Labels"] = c.Labels
	}
	if len(c.Volumes) > 0 {
		shown["Volumes"] = set(c.Volumes)
	}
	// What is only there when it is set.
	if len(c.ExposedPorts) > 0 {
		shown["ExposedPorts"] = set(c.ExposedPorts)
	}
	if len(c.Shell) > 0 {
		shown["Shell"] = c.Shell
	}
	if c.StopSignal != "" {
		shown["StopSignal"] = c.StopSignal
	}
	if c.ArgsEscaped {
		shown["ArgsEscaped"] = true
	}
	if len(c.Healthcheck) > 0 {
		var check map[string]any
		if err := json.Unmarshal(c.Healthcheck, &check); err != nil {
			return nil, fmt.Errorf("cannot read the image's health check: %w", err)
		}
		shown["Healthcheck"] = check
	}
	return shown, nil
}

func set(keys []string) map[string]struct{} {
	m := map[string]struct{}{}
	for _, k := range keys {
		m[k] = struct{}{}
	}
	return m
}

// imageHistory answers docker history, newest first. Only the last step is an image that is here.
func (s *Server) imageHistory(w http.ResponseWriter, r *http.Request) error {
	if p := r.URL.Query().Get("platform"); p != "" {
		return fault.New(fault.Unsupported, "platform=%s is not supported by vch: an image here has one platform", p)
	}
	img, err := s.Images.Get(r.Context(), r.PathValue("name"))
	if err != nil {
		return err
	}
	items := []image.HistoryResponseItem{}
	for _, step := range slices.Backward(img.History) {
		items = append(items, image.HistoryResponseItem{ID: "<missing>", Created: unixSeconds(step.Created), CreatedBy: step.CreatedBy, Comment: step.Comment, Size: int64(step.Size)})
	}
	if len(items) > 0 {
		items[0].ID, items[0].Tags = string(img.ID), img.Tags
	}
	return writeJSON(w, http.StatusOK, items)
}

// imageTag answers docker tag.
func (s *Server) imageTag(w http.ResponseWriter, r *http.Request) error {
	name, err := joinTag(r.URL.Query().Get("repo"), r.URL.Query().Get("tag"))
	if err != nil {
		return err
	}
	if err := s.Images.Tag(r.Context(), r.PathValue("name"), name); err != nil {
		return err
	}
	w.WriteHeader(http.StatusCreated)
	return nil
}

// joinTag puts a query's two parts of a reference together; a "tag" may be a digest.
func joinTag(name, tag string) (string, error) {
	switch {
	case name == "":
		return "", fault.New(fault.Invalid, "repository name must have at least one component")
	case tag == "":
		return name, nil
	case strings.Contains(tag, ":"):
		return name + "@" + tag, nil
	default:
		return name + ":" + tag, nil
	}
}

// imageRemove answers docker rmi.
func (s *Server) imageRemove(w http.ResponseWriter, r *http.Request) error {
	if p := r.URL.Query()["platforms"]; len(p) > 0 {
		return fault.New(fault.Unsupported, "platforms=%s is not supported by vch: an image here has one platform", strings.Join(p, ","))
	}
	gone, err := s.Images.Remove(r.Context(), r.PathValue("name"), boolValue(r, "force"), boolValue(r, "noprune"))
	if err != nil {
		return err
	}
	return writeJSON(w, http.StatusOK, deleted(gone))
}

func deleted(gone []portlayer.ImageDeleted) []image.DeleteResponse {
	list := []image.DeleteResponse{}
	for _, g := range gone {
		list = append(list, image.DeleteResponse{Untagged: g.Untagged, Deleted: g.Deleted})
	}
	return list
}

// imagePrune answers docker image prune.
func (s *Server) imagePrune(w http.ResponseWriter, r *http.Request) error {
	f, err := filtersOf(r)
	if err == nil {
		err = f.only("dangling", "label", "label!", "until")
	}
	if err != nil {
		return err
	}
	onlyDangling, err := f.boolean("dangling", true)
	if err != nil {
		return err
	}
	until, err := f.until(time.Now())
	if err != nil {
		return err
	}
	gone, freed, err := s.Images.Prune(r.Context(), !onlyDangling, func(img portlayer.Image) bool {
		return (until.IsZero() || img.Created.Before(until)) && f.labels(img.Config.Labels)
	})
	if err != nil {
		return err
	}
	return writeJSON(w, http.StatusOK, image.PruneReport{ImagesDeleted: deleted(gone), SpaceReclaimed: uint64(freed)})
}

// buildPrune answers docker builder prune, which is a part of docker system prune: there is no build cache.
func (s *Server) buildPrune(w http.ResponseWriter, _ *http.Request) error {
	return writeJSON(w, http.StatusOK, map[string]any{"CachesDeleted": []string{}, "SpaceReclaimed": 0})
}
