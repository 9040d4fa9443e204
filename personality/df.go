package personality

import (
	"net/http"
	"slices"
	"time"

	"github.com/moby/moby/api/types/container"
	"github.com/moby/moby/api/types/system"
	"github.com/moby/moby/api/types/volume"

	"vch/internal/fault"
	"vch/portlayer"
)

// diskUsage is the answer of /system/df up to 1.51.
type diskUsage struct {
	LayersSize  int64
	Images      []imageSummary
	Containers  []container.Summary
	Volumes     []volume.Volume
	BuildCache  []struct{}
	BuilderSize *int64 `json:",omitempty"` // before 1.42
}

// systemDF answers docker system df. There is no build cache.
func (s *Server) systemDF(w http.ResponseWriter, r *http.Request) error {
	ctx, v := r.Context(), versionOf(r)
	types := r.URL.Query()["type"]
	if !v.atLeast(1, 42) {
		types = nil
	}
	for _, t := range types {
		if !slices.Contains([]system.DiskUsageObject{system.ContainerObject, system.ImageObject, system.VolumeObject, system.BuildCacheObject}, system.DiskUsageObject(t)) {
			return fault.New(fault.Invalid, "unknown object type: %s", t)
		}
	}
	wants := func(t system.DiskUsageObject) bool { return len(types) == 0 || slices.Contains(types, string(t)) }

	var u diskUsage
	containers, err := s.Containers.List(ctx)
	if err != nil {
		return err
	}
	if wants(system.ImageObject) {
		images, err := s.Images.List(ctx)
		if err != nil {
			return err
		}
		u.Images, u.LayersSize = imageUsage(images, containers, v)
	}
	if wants(system.ContainerObject) {
		u.Containers = []container.Summary{}
		stores := s.Volumes.Locations()
		on, err := s.nets(ctx)
		if err != nil {
			return err
		}
		for _, c := range containers {
			summary, err := summaryOf(c, stores, on, time.Now())
			if err != nil {
				return err
			}
			written, err := s.written(ctx, c)
			if err != nil {
				return err
			}
			summary.SizeRw = int64(written)
			u.Containers = append(u.Containers, summary)
		}
	}
	if wants(system.VolumeObject) {
		if u.Volumes, err = s.volumeUsage(r); err != nil {
			return err
		}
	}
	if wants(system.BuildCacheObject) {
		u.BuildCache = []struct{}{}
		if !v.atLeast(1, 42) {
			u.BuilderSize = new(int64)
		}
	}
	return writeJSON(w, http.StatusOK, u)
}

// imageUsage counts who uses the images, and the layers, each once.
func imageUsage(images []portlayer.Image, containers []portlayer.Container, v apiVersion) ([]imageSummary, int64) {
	layers := map[string]portlayer.Bytes{}
	shared := sharedSizes(images)
	list := []imageSummary{}
	for _, img := range images {
		for layer, size := range layerSizes(img) {
			layers[layer] = size
		}
		summary := summarize(img, v)
		summary.SharedSize, summary.Containers = int64(shared[img.ID]), 0
		for _, c := range containers {
			if c.Image == img.ID {
				summary.Containers++
			}
		}
		list = append(list, summary)
	}
	total := int64(0)
	for _, size := range layers {
		total += int64(size)
	}
	return list, total
}

func (s *Server) volumeUsage(r *http.Request) ([]volume.Volume, error) {
	all, warnings, err := s.Volumes.List(r.Context())
	if err != nil {
		return nil, err
	}
	for _, text := range warnings { // df has no field for them
		s.Log.Warn("the usage of volumes is not complete", "why", text)
	}
	stores := s.Volumes.Locations()
	list := []volume.Volume{}
	for _, d := range all {
		shown := showVolume(d.Volume, stores)
		shown.UsageData = &volume.UsageData{Size: int64(d.Usage.Allocated), RefCount: int64(len(d.Refs))}
		list = append(list, shown)
	}
	return list, nil
}
