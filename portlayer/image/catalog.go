package image

import (
	"context"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/distribution/reference"
	"github.com/opencontainers/go-digest"

	"vch/internal/fault"
	"vch/portlayer"
	"vch/portlayer/record"
)

// imageRecord is what is kept of an image, by its id.
type imageRecord struct {
	Config     []byte            `json:"config"` // base64, so that it stays byte for byte: the id is its digest
	Loaded     time.Time         `json:"loaded"` // when it came
	LayerSizes []portlayer.Bytes `json:"layer_sizes"`
}

// catalog is the images and their names: records on disk, a copy in memory for readers.
//
// Who changes something holds turn, writes the record, then the copy. Names are canonical references: "docker.io/library/busybox:latest",
// "docker.io/library/busybox@sha256:…".
type catalog struct {
	turn   chan struct{} // holds one token while somebody changes records, or deletes files that no record names
	images record.Table[imageRecord]
	names  record.Table[portlayer.ImageID]

	mu     sync.RWMutex // guards below; never held across I/O
	byID   map[portlayer.ImageID]known
	byName map[string]portlayer.ImageID
	held   map[string]int // layers ("sha256:…") and disks (diskName) that calls under way stand on; nobody deletes those
}

func openCatalog(db *record.DB) (*catalog, error) {
	c := &catalog{turn: make(chan struct{}, 1), byID: map[portlayer.ImageID]known{}, held: map[string]int{}}
	var err error
	if c.images, err = record.NewTable[imageRecord](db, "images"); err != nil {
		return nil, err
	}
	if c.names, err = record.NewTable[portlayer.ImageID](db, "image-names"); err != nil {
		return nil, err
	}
	records, err := c.images.All()
	if err != nil {
		return nil, err
	}
	for id, rec := range records {
		k, err := understand(rec)
		if err != nil {
			return nil, fault.Wrap("read the record of image", id, err)
		}
		c.byID[portlayer.ImageID(id)] = k
	}
	c.byName, err = c.names.All()
	return c, err
}

// change waits for its turn to change the catalog.
func (c *catalog) change(ctx context.Context) (done func(), err error) {
	select {
	case c.turn <- struct{}{}:
		return func() { <-c.turn }, nil
	case <-ctx.Done():
		return nil, ctx.Err()
	}
}

// hold keeps layers and disks from being deleted until release. It waits for a deletion under way, so what is there afterwards stays there.
func (c *catalog) hold(ctx context.Context, keys ...string) (release func(), err error) {
	done, err := c.change(ctx)
	if err != nil {
		return nil, err
	}
	defer done()
	c.mu.Lock()
	defer c.mu.Unlock()
	for _, k := range keys {
		c.held[k]++
	}
	return func() {
		c.mu.Lock()
		defer c.mu.Unlock()
		for _, k := range keys {
			if c.held[k]--; c.held[k] == 0 {
				delete(c.held, k)
			}
		}
	}, nil
}

// needed gives every layer and disk that an image's record names or somebody holds.
func (c *catalog) needed() map[string]bool {
	c.mu.RLock()
	defer c.mu.RUnlock()
	need := map[string]bool{}
	for _, k := range c.byID {
		need[k.disk] = true
		for _, l := range k.layers {
			need[string(l)] = true
		}
	}
	for k := range c.held {
		need[k] = true
	}
	return need
}

// put records an image that is whole on disk. One that is there already stays as it is. The caller has the turn.
func (c *catalog) put(k known) error {
	c.mu.RLock()
	_, ok := c.byID[k.image.ID]
	c.mu.RUnlock()
	if ok {
		return nil
	}
	if err := c.images.Put(string(k.image.ID), k.record); err != nil {
		return err
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	c.byID[k.image.ID] = k
	return nil
}

// drop forgets an image that has no names any more. The caller has the turn.
func (c *catalog) drop(id portlayer.ImageID) error {
	if err := c.images.Delete(string(id)); err != nil {
		return err
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	delete(c.byID, id)
	return nil
}

// name gives canonical to id, taking it from whatever had it. It reports whether that changed anything. The caller has the turn.
func (c *catalog) name(canonical string, id portlayer.ImageID) (changed bool, err error) {
	c.mu.RLock()
	had := c.byName[canonical]
	c.mu.RUnlock()
	if had == id {
		return false, nil
	}
	if err := c.names.Put(canonical, id); err != nil {
		return false, err
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	c.byName[canonical] = id
	return true, nil
}

// unname takes a name away. The caller has the turn.
func (c *catalog) unname(canonical string) error {
	if err := c.names.Delete(canonical); err != nil {
		return err
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	delete(c.byName, canonical)
	return nil
}

// namesOf gives the canonical names of an image, sorted.
func (c *catalog) namesOf(id portlayer.ImageID) []string {
	c.mu.RLock()
	defer c.mu.RUnlock()
	var names []string
	for name, have := range c.byName {
		if have == id {
			names = append(names, name)
		}
	}
	slices.Sort(names)
	return names
}

// tagsOf gives the canonical tags of a repository.
func (c *catalog) tagsOf(repo string) map[string]portlayer.ImageID {
	c.mu.RLock()
	defer c.mu.RUnlock()
	tags := map[string]portlayer.ImageID{}
	for name, id := range c.byName {
		if !isDigestName(name) && repository(name) == repo {
			tags[name] = id
		}
	}
	return tags
}

// view gives a copy of an image with its names filled in.
func (c *catalog) view(id portlayer.ImageID) (portlayer.Image, bool) {
	c.mu.RLock()
	k, ok := c.byID[id]
	c.mu.RUnlock()
	return named(k.image, c.namesOf(id)), ok
}

// named gives img its names.
func named(img portlayer.Image, canonical []string) portlayer.Image {
	for _, name := range canonical {
		if isDigestName(name) {
			img.Digests = append(img.Digests, familiar(name))
		} else {
			img.Tags = append(img.Tags, familiar(name))
		}
	}
	slices.Sort(img.Tags)
	slices.Sort(img.Digests)
	return img
}

// all gives every image, newest first.
func (c *catalog) all() []portlayer.Image {
	c.mu.RLock()
	names := map[portlayer.ImageID][]string{}
	for name, id := range c.byName {
		names[id] = append(names[id], name)
	}
	list := make([]portlayer.Image, 0, len(c.byID))
	for _, k := range c.byID {
		list = append(list, k.image)
	}
	c.mu.RUnlock()
	for i := range list {
		list[i] = named(list[i], names[list[i].ID])
	}
	slices.SortFunc(list, func(a, b portlayer.Image) int {
		if d := b.Created.Compare(a.Created); d != 0 {
			return d
		}
		return strings.Compare(string(a.ID), string(b.ID))
	})
	return list
}

func (c *catalog) get(id portlayer.ImageID) (known, bool) {
	c.mu.RLock()
	defer c.mu.RUnlock()
	k, ok := c.byID[id]
	return k, ok
}

// find resolves what a user wrote: an id, a name, or a unique prefix of an id, in moby's order (daemon/images/image.go, GetImage).
// canonical is the stored name that it was found by, "" for an id.
func (c *catalog) find(ref string) (id portlayer.ImageID, canonical string, err error) {
	parsed, err := reference.ParseAnyReference(ref)
	if err != nil {
		return "", "", fault.New(fault.Invalid, "invalid reference format: %q: %w", ref, err)
	}
	shown := ref
	if named, ok := parsed.(reference.Named); ok {
		shown = reference.FamiliarString(reference.TagNameOnly(named)) // with the tag that was looked for, as moby says it
	}
	missing := fault.New(fault.NotFound, "No such image: %s", shown)
	c.mu.RLock()
	defer c.mu.RUnlock()
	asNamed, ok := parsed.(reference.Named)
	if !ok { // 64 hex digits, with or without sha256:
		if d, ok := parsed.(reference.Digested); ok {
			if _, ok := c.byID[portlayer.ImageID(d.Digest())]; ok {
				return portlayer.ImageID(d.Digest()), "", nil
			}
		}
		return "", "", missing
	}
	if full, err := parseName(asNamed.String()); err == nil {
		if id, ok := c.byName[full.String()]; ok {
			return id, full.String(), nil
		}
		if d, ok := full.(reference.Digested); ok { // name@ID, as moby allows
			id := portlayer.ImageID(d.Digest())
			if k, ok := c.byID[id]; ok && c.repositoryHas(full.Name(), k.image.ID) {
				return id, "", nil
			}
			return "", "", missing
		}
	}
	id, err = c.byPrefix(ref, missing)
	return id, "", err
}

// repositoryHas reports whether a name in repo is id's. The caller has mu.
func (c *catalog) repositoryHas(repo string, id portlayer.ImageID) bool {
	for name, have := range c.byName {
		if have == id && repository(name) == repo {
			return true
		}
	}
	return false
}

// byPrefix finds the one image whose id begins with ref. The caller has mu.
func (c *catalog) byPrefix(ref string, missing error) (portlayer.ImageID, error) {
	prefix := strings.TrimPrefix(ref, digest.SHA256.String()+":")
	if prefix == "" || strings.Trim(prefix, "0123456789abcdef") != "" {
		return "", missing
	}
	var found portlayer.ImageID
	for id := range c.byID {
		if strings.HasPrefix(strings.TrimPrefix(string(id), "sha256:"), prefix) {
			if found != "" {
				return "", fault.New(fault.Invalid, "the id prefix %s is that of several images; give more digits", ref)
			}
			found = id
		}
	}
	if found == "" {
		return "", missing
	}
	return found, nil
}
