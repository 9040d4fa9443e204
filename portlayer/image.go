package portlayer

import (
	"context"
	"io"
	"time"
)

// Image is an image that the VCH holds.
type Image struct {
	ID           ImageID
	Tags         []string // familiar references with tag: "busybox:latest", sorted
	Digests      []string // "name@sha256:…" it was pulled by, sorted
	Created      time.Time
	Loaded       time.Time // when it came here
	Architecture string
	Variant      string
	OS           string
	Author       string
	Comment      string
	Size         Bytes // of the uncompressed layers
	DiffIDs      []string
	History      []ImageHistory // oldest first, as in the image's configuration
	Config       ImageConfig
}

// ImageConfig is what an image says about running it (OCI image-spec config.md).
type ImageConfig struct {
	User         string
	Env          []string
	Entrypoint   []string
	Cmd          []string
	Volumes      []string // targets, sorted
	WorkingDir   string
	Labels       map[string]string
	StopSignal   string
	ExposedPorts []string // "80/tcp", sorted
	Shell        []string
	ArgsEscaped  bool
	OnBuild      []string
	Healthcheck  []byte // the JSON of Docker's extension; nil for none
}

// ImageHistory is one step of an image's making.
type ImageHistory struct {
	Created    time.Time
	CreatedBy  string
	Author     string
	Comment    string
	EmptyLayer bool
	Size       Bytes // of the uncompressed layer; 0 for an empty one
}

// Progress is one line of a pull's, load's or import's progress.
type Progress struct {
	ID      string // the layer's short digest; "" for the whole
	Status  string // "Pulling fs layer", "Downloading", "Download complete", "Extracting", "Pull complete", "Already exists", …
	Current int64  // bytes; 0 with Total 0: no figure
	Total   int64
}

// Credentials are for a registry. The zero value is anonymous.
type Credentials struct {
	Username, Password, IdentityToken, RegistryToken string
}

// ImageDeleted is one effect of Images.Remove.
type ImageDeleted struct {
	Untagged string // a reference, or ""
	Deleted  string // an image id or layer digest, or ""
}

// Derived is what is said of an image that is made from another.
type Derived struct {
	Name      string // its tag; "": none
	Author    string
	Comment   string
	CreatedBy string // the command that its layer came from
	Config    ImageConfig
}

// Distribution is what a name means in a registry (Docker API registry.DistributionInspect).
type Distribution struct {
	MediaType string
	Digest    string
	Size      int64 // of the manifest or index, in bytes
	Platforms []Platform
}

// Platform is what an image runs on, in the words of OCI image-spec image-index.md.
type Platform struct {
	Architecture, OS, OSVersion, Variant string
	OSFeatures                           []string
}

// Images is what a door does with images. ref is a familiar or full reference, "name@sha256:…", an id with or without "sha256:", or a unique prefix of one. Unknown: NotFound ("No such image: REF").
type Images interface {
	// Pull fetches name (a reference; no tag or digest: "latest") for platform ("os/arch[/variant]", "" the host's). The kinds: NotFound, Denied, Unavailable. A layer whose
	// digest is wrong is refused by name; nothing is kept of a pull that failed but whole layers.
	Pull(ctx context.Context, name, platform string, cred Credentials, progress func(Progress)) (Image, error)
	// Load reads an OCI layout or docker-save archive (tar, also gzip or zstd) and returns what it held. A corrupt one is Invalid; nothing is kept of it.
	Load(ctx context.Context, r io.Reader, progress func(Progress)) ([]Image, error)
	// Import makes an image of one layer from a tar of a root file system (also gzip, bzip2, xz, zstd), applying config, tagged name ("" for none).
	Import(ctx context.Context, r io.Reader, name, message, platform string, config ImageConfig, progress func(Progress)) (Image, error)
	// Derive makes an image of base and one layer more, a tar that is not compressed, with whiteouts (OCI image-spec layer.md) for what it takes away; one without any entry adds no layer.
	Derive(ctx context.Context, base ImageID, layer io.Reader, o Derived) (Image, error)
	// Save writes images, with their tags where refs names those, as an OCI layout that is a docker-save archive, too. Nothing is written where an image is not there.
	Save(ctx context.Context, refs []string, w io.Writer) error
	// Push sends what name, a tag of this VCH's, means to its registry, and gives what it is there. The kinds: NotFound, Denied, Unavailable.
	Push(ctx context.Context, name string, cred Credentials, progress func(Progress)) (Distribution, error)
	// Look asks a registry for what a name means there, and pulls nothing.
	Look(ctx context.Context, name string, cred Credentials) (Distribution, error)
	Get(ctx context.Context, ref string) (Image, error)
	// List gives every image, newest first.
	List(ctx context.Context) ([]Image, error)
	Tag(ctx context.Context, ref, name string) error
	// Remove takes a tag away, and the image with its last one. An image that a container uses is InUse, naming it, unless force untags it only.
	Remove(ctx context.Context, ref string, force, noPrune bool) ([]ImageDeleted, error)
	// Prune removes images without tags, or with all every image that no container uses, for which pick (nil: all) says yes, and returns the bytes freed.
	Prune(ctx context.Context, all bool, pick func(Image) bool) ([]ImageDeleted, Bytes, error)
	// Login checks credentials against a registry and returns what it answered: Denied if they are wrong.
	Login(ctx context.Context, registry string, cred Credentials) (string, error)
	// Join puts the image's read-only disk into the draft h, and names it in h.Config.Root.Image. Like every Join it changes h and nothing else.
	Join(ctx context.Context, h *Handle, id ImageID) error
	// Entries says what the image has at an absolute path: "" nothing, "file", "dir" (an empty directory) or "tree" (a directory with content). Symlinks are followed inside the image.
	Entries(ctx context.Context, id ImageID, path string) (string, error)
}
