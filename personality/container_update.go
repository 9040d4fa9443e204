package personality

import (
	"encoding/json"
	"net/http"

	"github.com/moby/moby/api/types/container"

	"vch/internal/fault"
	"vch/portlayer"
)

// containerUpdate is POST /containers/{id}/update. What a request leaves out, or gives as 0, stays as it is.
func (s *Server) containerUpdate(w http.ResponseWriter, r *http.Request) error {
	var req container.UpdateConfig
	if err := decodeJSON(r, &req); err != nil {
		return err
	}
	c, err := s.Containers.Get(r.Context(), r.PathValue("id"))
	if err != nil {
		return err
	}
	up, err := updateOf(req, c)
	if err != nil {
		return err
	}
	if err := s.Containers.Update(r.Context(), string(c.ID), up); err != nil {
		return err
	}
	return writeJSON(w, http.StatusOK, container.UpdateResponse{Warnings: []string{}})
}

// updateOf is what a request changes of a container, read as a create's.
func updateOf(req container.UpdateConfig, c portlayer.Container) (up portlayer.ContainerUpdate, err error) {
	if err := refuseResources(req.Resources); err != nil {
		return up, err
	}
	if len(req.Ulimits) > 0 {
		return up, refused("Ulimits", "--ulimit", "the limits of a process are set when it starts; make another container")
	}
	h := container.HostConfig{Resources: req.Resources, RestartPolicy: req.RestartPolicy, AutoRemove: c.Spec.AutoRemove}
	var spec portlayer.ContainerSpec
	if h.Memory == 0 && (h.MemorySwap == -1 || h.MemorySwap == int64(c.Spec.Memory)) {
		h.MemorySwap = 0 // as it is
	}
	if h.CPUQuota == -1 { // no quota: as many processors as the VCH gives
		h.CPUQuota, h.CPUPeriod = 0, 0
		up.CPUs = new(int64)
	}
	for _, step := range []func(*portlayer.ContainerSpec, *container.HostConfig) error{applyRestart, applyMemory, applyCPU, applyLimits} {
		if err := step(&spec, &h); err != nil {
			return up, err
		}
	}
	d, err := openDoor(c)
	if err != nil {
		return up, err
	}
	shown := &d.HostConfig
	if h.Memory != 0 {
		up.Memory = &spec.Memory
		shown.Memory, shown.MemorySwap = h.Memory, h.Memory
	}
	if spec.CPUs != 0 {
		up.CPUs = &spec.CPUs
	}
	if up.CPUs != nil {
		shown.NanoCPUs, shown.CPUQuota, shown.CPUPeriod = h.NanoCPUs, h.CPUQuota, h.CPUPeriod
	}
	if h.PidsLimit != nil {
		up.PidsMax = &spec.PidsMax
		if shown.PidsLimit = h.PidsLimit; *h.PidsLimit <= 0 {
			shown.PidsLimit = nil
		}
	}
	if h.RestartPolicy.Name != "" {
		up.Restart = &spec.Restart
		shown.RestartPolicy = h.RestartPolicy
	}
	if up.Door, err = json.Marshal(d); err != nil {
		return up, fault.New(fault.Internal, "the container's configuration cannot be kept: %w", err)
	}
	return up, nil
}
