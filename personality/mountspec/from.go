package mountspec

import (
	"slices"
	"strings"

	"vch/internal/fault"
	"vch/portlayer"
)

// From is one of HostConfig.VolumesFrom, its container found.
type From struct {
	Container portlayer.ContainerID
	Mounts    []portlayer.Mount // of that container
	ReadOnly  bool
}

// ParseFrom reads CONTAINER or CONTAINER:MODE; which container that is, the caller finds out.
func ParseFrom(text string) (ref string, readOnly bool, err error) {
	if text == "" {
		return "", false, fault.New(fault.Invalid, "volumes-from specification cannot be an empty string")
	}
	ref, mode, given := strings.Cut(text, ":")
	if !given {
		return ref, false, nil
	}
	l, ok := parseList(mode)
	if !ok || l.propagation != "" || l.noCopy || l.options != nil {
		return "", false, fault.New(fault.Invalid, "invalid mode: %s", mode)
	}
	return ref, l.readOnly, nil
}

// fromOthers gives the mounts of other containers, but for targets that are taken. Those that --tmpfs made are not handed on (moby daemon/volumes.go,
// registerMountPoints); nothing is copied up through them.
func fromOthers(from []From, taken map[string]bool) []portlayer.Mount {
	var all []portlayer.Mount
	for _, f := range slices.Backward(from) {
		for _, m := range f.Mounts { // its targets are unique
			if taken[m.Target] || m.Origin == portlayer.FromTmpfs {
				continue
			}
			taken[m.Target] = true
			m.ReadOnly = m.ReadOnly || f.ReadOnly
			m.NoCopy, m.Mode, m.Options, m.Labels = true, "", nil, nil
			if m.Kind == portlayer.VolumeMount {
				m.Origin = portlayer.FromContainer
				if m.From == "" {
					m.From = f.Container
				}
			}
			all = append(all, m)
		}
	}
	return all
}
