package personality

import (
	"encoding/json"

	"github.com/moby/moby/api/types/container"
	"github.com/moby/moby/api/types/network"

	"vch/internal/fault"
	"vch/portlayer"
)

// door is what the personality keeps with a container, to show it back.
type door struct {
	Config     container.Config
	HostConfig container.HostConfig
}

// doorOf is a configuration, merged with its image's, and a HostConfig, with what was left open filled in as it came to be. Where Docker's
// engine would say something that is not so here (masked paths, twice the memory as swap), it says what is.
func doorOf(c container.Config, h container.HostConfig) door {
	if h.NetworkMode == "" || h.NetworkMode == network.NetworkDefault {
		h.NetworkMode = network.NetworkBridge
	}
	if c.NetworkDisabled {
		h.NetworkMode = network.NetworkNone
	}
	if h.LogConfig.Type == "" {
		h.LogConfig.Type = logJSON
	}
	if h.LogConfig.Config == nil {
		h.LogConfig.Config = map[string]string{}
	}
	if h.RestartPolicy.Name == "" {
		h.RestartPolicy.Name = container.RestartPolicyDisabled
	}
	if h.IpcMode == "" {
		h.IpcMode = container.IPCModePrivate
	}
	if h.CgroupnsMode == "" {
		h.CgroupnsMode = container.CgroupnsModePrivate
	}
	if h.ShmSize == 0 {
		h.ShmSize = defaultShm
	}
	if h.Runtime == "" {
		h.Runtime = defaultRuntime
	}
	if h.MemorySwap == 0 {
		h.MemorySwap = h.Memory
	}
	if h.PidsLimit != nil && *h.PidsLimit <= 0 {
		h.PidsLimit = nil
	}
	h.MemorySwappiness = nil
	h.MaskedPaths, h.ReadonlyPaths = []string{}, []string{}
	if h.PortBindings == nil {
		h.PortBindings = network.PortMap{}
	}
	return door{Config: c, HostConfig: h}
}

// openDoor is what was kept with c. A container that another door made has none: it is shown by what its spec says.
func openDoor(c portlayer.Container) (door, error) {
	var d door
	if len(c.Spec.Door) > 0 {
		if err := json.Unmarshal(c.Spec.Door, &d); err != nil {
			return d, fault.New(fault.Internal, "what was kept of container %s cannot be read: %w", c.ID, err)
		}
	} else {
		d = doorOf(container.Config{Cmd: c.Spec.Process.Args, Env: c.Spec.Process.Env, User: c.Spec.Process.User, WorkingDir: c.Spec.Process.Cwd, Tty: c.Spec.Process.TTY},
			container.HostConfig{AutoRemove: c.Spec.AutoRemove, ReadonlyRootfs: c.Spec.ReadOnly})
	}
	// The name's part in it is known only after the create.
	d.Config.Hostname, d.Config.Domainname = c.Spec.Hostname, c.Spec.Domain
	d.Config.Image, d.Config.Labels = c.Spec.Image, c.Spec.Labels
	if d.Config.Labels == nil {
		d.Config.Labels = map[string]string{}
	}
	return d, nil
}
