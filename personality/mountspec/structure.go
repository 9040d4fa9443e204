package mountspec

import (
	"maps"
	"path"
	"path/filepath"
	"slices"

	"github.com/moby/moby/api/types/mount"

	"vch/internal/fault"
	"vch/portlayer"
)

// fromStructure reads one of HostConfig.Mounts.
func fromStructure(m mount.Mount, v Version) (portlayer.Mount, error) {
	if m.Type == mount.TypeImage && !v.atLeast(1, 48) {
		return portlayer.Mount{}, fault.New(fault.Invalid, `Mount type "Image" needs API v1.48 or newer`)
	}
	if m.VolumeOptions != nil && m.VolumeOptions.Subpath != "" && !v.atLeast(1, 45) {
		return portlayer.Mount{}, fault.New(fault.Invalid, "VolumeOptions.Subpath needs API v1.45 or newer")
	}
	known := []mount.Type{mount.TypeBind, mount.TypeVolume, mount.TypeTmpfs, mount.TypeImage}
	if field := foreignOptions(m); field != "" && slices.Contains(known, m.Type) && v.atLeast(1, 42) {
		return portlayer.Mount{}, fault.New(fault.Invalid, "%s must not be specified on mount type %q", field, string(m.Type))
	}
	if err := checkTarget(m.Target); err != nil {
		return portlayer.Mount{}, invalidConfig(m.Type, err)
	}
	var out portlayer.Mount
	var err error
	switch m.Type {
	case mount.TypeVolume:
		out, err = volumeMount(m)
	case mount.TypeTmpfs:
		out, err = tmpfsMount(m)
	case mount.TypeBind:
		out, err = bindMount(m, v)
	case mount.TypeImage:
		err = refuseImage(m)
	default: // npipe is Windows', cluster is a swarm's
		err = invalidConfig(m.Type, fault.New(fault.Invalid, "mount type unknown"))
	}
	if err != nil {
		return portlayer.Mount{}, err
	}
	out.Target = path.Clean(m.Target)
	out.ReadOnly = m.ReadOnly
	out.Origin = portlayer.FromMount
	return out, nil
}

// foreignOptions names the options of m that belong to another type; "" for none.
func foreignOptions(m mount.Mount) string {
	switch {
	case m.BindOptions != nil && m.Type != mount.TypeBind:
		return "BindOptions"
	case m.VolumeOptions != nil && m.Type != mount.TypeVolume:
		return "VolumeOptions"
	case m.TmpfsOptions != nil && m.Type != mount.TypeTmpfs:
		return "TmpfsOptions"
	case m.ImageOptions != nil && m.Type != mount.TypeImage:
		return "ImageOptions"
	case m.ClusterOptions != nil:
		return "ClusterOptions"
	}
	return ""
}

// checkForeign is foreignOptions for clients before 1.42, with the message of their time.
func checkForeign(m mount.Mount) error {
	if field := foreignOptions(m); field != "" {
		return invalidConfig(m.Type, fault.New(fault.Invalid, "field %s must not be specified", field))
	}
	return nil
}

func volumeMount(m mount.Mount) (portlayer.Mount, error) {
	if err := checkForeign(m); err != nil {
		return portlayer.Mount{}, err
	}
	out := portlayer.Mount{Kind: portlayer.VolumeMount}
	if o := m.VolumeOptions; o != nil {
		if err := checkSubpath(m.Source, o.Subpath); err != nil {
			return portlayer.Mount{}, invalidConfig(m.Type, err)
		}
		if o.Subpath != "" {
			out.Subpath = path.Clean(o.Subpath)
		}
		out.NoCopy = o.NoCopy
		out.Labels = maps.Clone(o.Labels)
		if o.DriverConfig != nil {
			out.Driver = o.DriverConfig.Name
			out.Options = maps.Clone(o.DriverConfig.Options)
		}
	}
	return out, setVolume(&out, m.Source)
}

func checkSubpath(source, subpath string) error {
	switch {
	case subpath == "":
		return nil
	case source == "":
		return fault.New(fault.Invalid, "must not set Subpath when using anonymous volumes")
	case !filepath.IsLocal(subpath):
		return fault.New(fault.Invalid, "subpath must be a relative path within the volume")
	}
	return nil
}

func bindMount(m mount.Mount, v Version) (out portlayer.Mount, err error) {
	o := m.BindOptions
	if o == nil {
		o = &mount.BindOptions{}
	}
	switch {
	case m.Source == "":
		err = fault.New(fault.Invalid, "field Source must not be empty")
	case o.Propagation != "" && !slices.Contains(mount.Propagations, o.Propagation):
		err = fault.New(fault.Invalid, "invalid propagation mode: %s", o.Propagation)
	case foreignOptions(m) != "":
		return out, checkForeign(m)
	case !path.IsAbs(m.Source):
		err = notAbsolute(m.Source)
	case o.ReadOnlyNonRecursive && o.ReadOnlyForceRecursive:
		err = fault.New(fault.Invalid, "mount options conflict: ReadOnlyNonRecursive && ReadOnlyForceRecursive cannot be both true")
	case (o.ReadOnlyNonRecursive || o.ReadOnlyForceRecursive) && !m.ReadOnly:
		err = fault.New(fault.Invalid, "mount options conflict: !ReadOnly && (ReadOnlyNonRecursive || ReadOnlyForceRecursive)")
	default:
		out.Make = o.CreateMountpoint && v.atLeast(1, 42)
		out.Bind.NonRecursive = o.NonRecursive
		out.Bind.WritableBelow = m.ReadOnly && (o.ReadOnlyNonRecursive || !v.atLeast(1, 44))
		return out, bind(&out, m.Source, string(o.Propagation))
	}
	return out, invalidConfig(m.Type, err)
}

func refuseImage(m mount.Mount) error {
	if m.Source == "" {
		return invalidConfig(m.Type, fault.New(fault.Invalid, "field Source must not be empty"))
	}
	return fault.New(fault.Unsupported, "mount type \"image\" is not supported by vch: image %s cannot be mounted at %s", m.Source, path.Clean(m.Target))
}
