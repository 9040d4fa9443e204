package personality

import (
	"net/http"
	"strconv"
	"time"

	"github.com/docker/go-units"
	"github.com/moby/moby/api/types/container"
	"github.com/moby/moby/api/types/mount"
	"github.com/moby/moby/api/types/network"
	"github.com/moby/moby/api/types/storage"

	"vch/portlayer"
)

// The shapes of API 1.50 that the types of 1.56 no longer have.

// inspectResponse is container.InspectResponse with them.
type inspectResponse struct {
	container.InspectResponse
	HostConfig      hostConfig
	NetworkSettings networkSettings
}

// hostConfig adds the limits on kernel memory, gone with 1.42.
type hostConfig struct {
	container.HostConfig
	KernelMemory    *int64 `json:",omitempty"`
	KernelMemoryTCP *int64 `json:",omitempty"`
}

// networkSettings adds the addresses on the default bridge, gone with 1.52. They are empty for a container that is not on it.
type networkSettings struct {
	Bridge                 string
	SandboxID              string
	SandboxKey             string
	Ports                  network.PortMap
	HairpinMode            bool
	LinkLocalIPv6Address   string
	LinkLocalIPv6PrefixLen int
	SecondaryIPAddresses   []string
	SecondaryIPv6Addresses []string
	EndpointID             string
	Gateway                string
	GlobalIPv6Address      string
	GlobalIPv6PrefixLen    int
	IPAddress              string
	IPPrefixLen            int
	IPv6Gateway            string
	MacAddress             string
	Networks               map[string]*network.EndpointSettings
}

// containerInspect is GET /containers/{id}/json.
func (s *Server) containerInspect(w http.ResponseWriter, r *http.Request) error {
	c, err := s.Containers.Get(r.Context(), r.PathValue("id"))
	if err != nil {
		return err
	}
	d, err := openDoor(c)
	if err != nil {
		return err
	}
	all, err := s.nets(r.Context())
	if err != nil {
		return err
	}
	answer := inspectOf(c, d, s.Volumes.Locations(), all, versionOf(r))
	if boolValue(r, "size") {
		written, err := s.Containers.Written(r.Context(), string(c.ID))
		if err != nil {
			return err
		}
		answer.SizeRw = (*int64)(&written)
		if img, err := s.Images.Get(r.Context(), string(c.Image)); err == nil {
			size := int64(img.Size)
			answer.SizeRootFs = &size
		}
	}
	return writeJSON(w, http.StatusOK, answer)
}

// inspectOf is what inspect shows of a container. It is pure.
func inspectOf(c portlayer.Container, d door, stores map[portlayer.StoreName]string, all nets, v apiVersion) inspectResponse {
	args := c.Spec.Process.Args
	host := d.HostConfig
	answer := inspectResponse{
		InspectResponse: container.InspectResponse{
			ID:           string(c.ID),
			Created:      c.Created.UTC().Format(time.RFC3339Nano),
			Path:         args[0],
			Args:         append([]string{}, args[1:]...),
			State:        stateOf(c.State),
			Image:        string(c.Image),
			LogPath:      c.LogPath,
			Name:         "/" + c.Spec.Name,
			Driver:       storageDriver,
			Platform:     "linux",
			ExecIDs:      c.Execs,
			RestartCount: c.State.Restarts,
			GraphDriver:  &storage.DriverData{Name: storageDriver},
			Mounts:       mountPoints(c.Spec.Mounts, stores),
			Config:       &d.Config,
		},
		HostConfig:      hostConfig{HostConfig: host},
		NetworkSettings: settingsOf(c, d.Config.ExposedPorts, all),
	}
	if !v.atLeast(1, 42) {
		none := int64(0)
		answer.HostConfig.KernelMemory, answer.HostConfig.KernelMemoryTCP = &none, &none
	}
	return answer
}

// stateOf is a container's state in Docker's words.
func stateOf(st portlayer.State) *container.State {
	return &container.State{
		Status:     container.ContainerState(st.Phase), // the port layer's words are Docker's too
		Running:    alive(st),
		Paused:     st.Phase == portlayer.Paused,
		Restarting: st.Phase == portlayer.Restarting,
		OOMKilled:  st.OOMKilled,
		Health:     healthShown(st.Health),
		Dead:       st.Phase == portlayer.Dead,
		Pid:        st.Pid,
		ExitCode:   st.ExitCode,
		Error:      st.Error,
		StartedAt:  st.StartedAt.UTC().Format(time.RFC3339Nano),
		FinishedAt: st.FinishedAt.UTC().Format(time.RFC3339Nano),
	}
}

// alive says whether Docker counts a container as running, as it does one that is about to be started again.
func alive(st portlayer.State) bool {
	return st.Phase == portlayer.Running || st.Phase == portlayer.Paused || st.Phase == portlayer.Restarting
}

// statusText is the STATUS column of docker ps.
func statusText(st portlayer.State, now time.Time) string {
	switch {
	case st.Phase == portlayer.Running:
		return "Up " + units.HumanDuration(now.Sub(st.StartedAt)) + healthText(st.Health)
	case st.Phase == portlayer.Paused:
		return "Up " + units.HumanDuration(now.Sub(st.StartedAt)) + " (Paused)"
	case st.Phase == portlayer.Removing:
		return "Removal In Progress"
	case st.Phase == portlayer.Dead:
		return "Dead"
	case st.StartedAt.IsZero():
		return "Created"
	case st.FinishedAt.IsZero():
		return ""
	}
	word := "Exited"
	if st.Phase == portlayer.Restarting {
		word = "Restarting"
	}
	return word + " (" + strconv.Itoa(st.ExitCode) + ") " + units.HumanDuration(now.Sub(st.FinishedAt)) + " ago"
}

// mountPoints is what Docker calls a container's Mounts. Those of --tmpfs are in HostConfig.Tmpfs only, as in Moby.
func mountPoints(mounts []portlayer.Mount, stores map[portlayer.StoreName]string) []container.MountPoint {
	points := []container.MountPoint{}
	for _, m := range mounts {
		p := container.MountPoint{Destination: m.Target, Mode: m.Mode, RW: !m.ReadOnly}
		switch {
		case m.Kind == portlayer.VolumeMount:
			p.Type, p.Name, p.Driver = mount.TypeVolume, m.VolumeRef(), m.Driver
			if p.Mode == "" && m.Origin != portlayer.FromImage && m.Origin != portlayer.FromContainer {
				p.Mode = "z" // what Moby shows where a local volume was given no mode (daemon/volume/mounts)
			}
			if at, ok := stores[m.Store]; ok {
				p.Source = volumeDisk(at, m.Volume)
			}
		case m.Kind == portlayer.BindMount:
			p.Type, p.Source, p.Propagation = mount.TypeBind, m.Source, mount.PropagationRPrivate
			if m.Bind.Follow {
				p.Propagation = mount.PropagationRSlave
			}
		case m.Origin == portlayer.FromTmpfs:
			continue
		default:
			p.Type = mount.TypeTmpfs
		}
		points = append(points, p)
	}
	return points
}
