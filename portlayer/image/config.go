package image

import (
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"maps"
	"runtime"
	"slices"
	"time"

	dockerspec "github.com/moby/docker-image-spec/specs-go/v1"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"vch/internal/fault"
	"vch/portlayer"
)

// maxConfig bounds what is taken for an image's configuration or manifest, in bytes; moby's distribution code allows 4 MiB.
const maxConfig = 4 << 20

// maxLayers is overlay2's old limit in dockerd (layer.MaxLayerDepth is 125, for images that run there); here it only stops nonsense.
const maxLayers = 1024

// document is an image's configuration, with what Docker writes beside OCI's.
type document struct {
	dockerspec.DockerOCIImage
	Comment string `json:"comment,omitempty"`
}

// known is an image's record and what follows from it.
type known struct {
	record imageRecord
	image  portlayer.Image // Tags and Digests are not filled in
	layers []diffID
	disk   string // diskName of layers
}

func idOf(config []byte) portlayer.ImageID {
	sum := sha256.Sum256(config)
	return portlayer.ImageID("sha256:" + hex.EncodeToString(sum[:]))
}

// parseConfig reads the parts of a configuration that decide which layers are needed.
func parseConfig(raw []byte) (document, []diffID, error) {
	var doc document
	if err := json.Unmarshal(raw, &doc); err != nil {
		return doc, nil, fault.New(fault.Invalid, "the image's configuration cannot be read: %w", err)
	}
	if t := doc.RootFS.Type; t != "layers" && t != "" {
		return doc, nil, fault.New(fault.Invalid, "the image's configuration has a root file system of type %q; only layers are known", t)
	}
	if n := len(doc.RootFS.DiffIDs); n > maxLayers {
		return doc, nil, fault.New(fault.Invalid, "the image has %d layers; more than %d are refused", n, maxLayers)
	}
	layers := make([]diffID, 0, len(doc.RootFS.DiffIDs))
	for _, d := range doc.RootFS.DiffIDs {
		if !validDigest(d.String()) {
			return doc, nil, fault.New(fault.Invalid, "the image's configuration names a layer %q, which is no sha256 digest", d)
		}
		layers = append(layers, diffID(d))
	}
	return doc, layers, nil
}

// understand turns a record into an image.
func understand(rec imageRecord) (known, error) {
	doc, layers, err := parseConfig(rec.Config)
	if err != nil {
		return known{}, err
	}
	img := portlayer.Image{
		ID: idOf(rec.Config), Loaded: rec.Loaded, Architecture: doc.Architecture, Variant: doc.Variant, OS: doc.OS, Author: doc.Author, Comment: doc.Comment,
		Config: portlayer.ImageConfig{
			User: doc.Config.User, Env: doc.Config.Env, Entrypoint: doc.Config.Entrypoint, Cmd: doc.Config.Cmd, WorkingDir: doc.Config.WorkingDir,
			Volumes: slices.Sorted(maps.Keys(doc.Config.Volumes)), ExposedPorts: slices.Sorted(maps.Keys(doc.Config.ExposedPorts)),
			Labels: doc.Config.Labels, StopSignal: doc.Config.StopSignal, Shell: doc.Config.Shell, OnBuild: doc.Config.OnBuild,
			ArgsEscaped: doc.Config.ArgsEscaped, //lint:ignore SA1019 old images carry it, and doors show it
		},
	}
	if doc.Created != nil {
		img.Created = *doc.Created
	}
	if h := doc.Config.Healthcheck; h != nil {
		if img.Config.Healthcheck, err = json.Marshal(h); err != nil {
			return known{}, err
		}
	}
	for i, d := range layers {
		img.DiffIDs = append(img.DiffIDs, string(d))
		if i < len(rec.LayerSizes) {
			img.Size += rec.LayerSizes[i]
		}
	}
	next := 0
	for _, h := range doc.History {
		step := portlayer.ImageHistory{CreatedBy: h.CreatedBy, Author: h.Author, Comment: h.Comment, EmptyLayer: h.EmptyLayer}
		if h.Created != nil {
			step.Created = *h.Created
		}
		if !h.EmptyLayer {
			if next < len(rec.LayerSizes) {
				step.Size = rec.LayerSizes[next]
			}
			next++
		}
		img.History = append(img.History, step)
	}
	return known{record: rec, image: img, layers: layers, disk: diskName(layers)}, nil
}

// compose writes the configuration of an image of one layer.
func compose(layer diffID, p platform, message string, created time.Time, c portlayer.ImageConfig) ([]byte, error) {
	doc := document{Comment: message}
	doc.Created = &created
	doc.OS, doc.Architecture, doc.Variant = p.OS, p.Architecture, p.Variant
	doc.RootFS = ocispec.RootFS{Type: "layers"}
	doc.RootFS.DiffIDs = append(doc.RootFS.DiffIDs, digestOf(layer))
	doc.History = []ocispec.History{{Created: &created, Comment: message}}
	return doc.configured(c)
}

// extend writes the configuration of an image that adds a layer, unless it is empty, to the one with the configuration base.
func extend(base []byte, layer diffID, empty bool, created time.Time, o portlayer.Derived) ([]byte, error) {
	doc, _, err := parseConfig(base)
	if err != nil {
		return nil, err
	}
	doc.Comment, doc.Author, doc.Created = o.Comment, o.Author, &created
	doc.History = append(doc.History, ocispec.History{Created: &created, Author: o.Author, Comment: o.Comment, CreatedBy: o.CreatedBy, EmptyLayer: empty})
	if doc.RootFS.Type = "layers"; !empty {
		doc.RootFS.DiffIDs = append(doc.RootFS.DiffIDs, digestOf(layer))
	}
	return doc.configured(o.Config)
}

// configured is doc with what is said about running it.
func (doc document) configured(c portlayer.ImageConfig) ([]byte, error) {
	doc.Config = dockerspec.DockerOCIImageConfig{}
	doc.Config.ImageConfig = ocispec.ImageConfig{
		User: c.User, Env: c.Env, Entrypoint: c.Entrypoint, Cmd: c.Cmd, WorkingDir: c.WorkingDir, Labels: c.Labels, StopSignal: c.StopSignal,
		Volumes: set(c.Volumes), ExposedPorts: set(c.ExposedPorts),
	}
	doc.Config.Shell, doc.Config.OnBuild = c.Shell, c.OnBuild
	if len(c.Healthcheck) > 0 {
		if err := json.Unmarshal(c.Healthcheck, &doc.Config.Healthcheck); err != nil {
			return nil, fault.New(fault.Invalid, "the health check cannot be read: %w", err)
		}
	}
	return json.Marshal(doc)
}

func set(keys []string) map[string]struct{} {
	if len(keys) == 0 {
		return nil
	}
	m := make(map[string]struct{}, len(keys))
	for _, k := range keys {
		m[k] = struct{}{}
	}
	return m
}

// hostPlatform is what this VCH's machines run.
func hostPlatform() platform { return platform{OS: "linux", Architecture: runtime.GOARCH} }
