// Package mountspec reads Docker's three languages for mounts: the texts of -v (HostConfig.Binds, Config.Volumes), the structures of --mount
// (HostConfig.Mounts) and the options of --tmpfs (HostConfig.Tmpfs), into portlayer.Mount.
//
// The grammar, the order of the checks and the messages are Moby's (daemon/volume/mounts, linuxParser), as measured: see testdata. What differs, and why, is
// listed in testdata/differences.jsonl; it comes to this: a bad mount is a bad request, it is found at create, what a container VM cannot
// do (an image as a mount, mounts that come back to the host) is refused by name instead of being done in part, and options of a volume may stand beside the modes.
//
// It is pure: no disk, no clock. It does not know which volumes, stores and drivers there are.
package mountspec

import (
	"fmt"
	"maps"
	"path"
	"sort"
	"strings"

	"github.com/moby/moby/api/types/mount"

	"vch/internal/fault"
	"vch/portlayer"
)

// Input is everything in a request and its image that mounts something.
type Input struct {
	Binds        []string            // HostConfig.Binds
	Mounts       []mount.Mount       // HostConfig.Mounts
	Tmpfs        map[string]string   // HostConfig.Tmpfs: target to options
	Volumes      map[string]struct{} // Config.Volumes: bare targets
	ImageVolumes []string            // the image's VOLUMEs
	VolumeDriver string              // HostConfig.VolumeDriver; "" : the store decides
	Basic        Basic               // for anonymous volumes of which nothing is said
	From         []From              // HostConfig.VolumesFrom, in its order
}

// AnonymousLabel is what Docker marks a volume with that was made without a name; a prune without "all" takes only such ones.
const AnonymousLabel = "com.docker.volume.anonymous"

// Version is the API version that the client speaks: some rules came with one.
type Version struct{ Major, Minor int }

func (v Version) atLeast(major, minor int) bool {
	return v.Major > major || v.Major == major && v.Minor >= minor
}

// Parse gives the mounts that in asks for, targets clean and unique, sorted by target, and warnings for the user. An explicit mount goes
// before those of other containers, of which a later one goes before an earlier one, those before Config.Volumes, and that before the image's VOLUMEs.
func Parse(in Input, v Version) ([]portlayer.Mount, []string, error) {
	// Moby validates Mounts and Tmpfs before it looks at Binds.
	var structured []portlayer.Mount
	for _, m := range in.Mounts {
		parsed, err := fromStructure(m, v)
		if err != nil {
			return nil, nil, err
		}
		structured = append(structured, parsed)
	}
	taken := map[string]bool{}
	var all []portlayer.Mount
	for _, target := range sortedKeys(in.Tmpfs) {
		m, err := fromTmpfs(target, in.Tmpfs[target])
		if err != nil {
			return nil, nil, err
		}
		if taken[m.Target] {
			return nil, nil, duplicate(target)
		}
		taken[m.Target] = true
		all = append(all, m)
	}
	for _, raw := range in.Binds {
		m, err := fromText(raw, v)
		if err != nil {
			return nil, nil, err
		}
		if taken[m.Target] {
			return nil, nil, duplicate(m.Target)
		}
		taken[m.Target] = true
		if m.Kind == portlayer.VolumeMount {
			m.Driver = in.VolumeDriver
		}
		all = append(all, m)
	}
	var warnings []string
	for i, m := range structured {
		if taken[m.Target] {
			return nil, nil, duplicate(in.Mounts[i].Target)
		}
		taken[m.Target] = true
		if in.VolumeDriver != "" && m.Kind == portlayer.VolumeMount && m.Driver == "" {
			warnings = append(warnings, fmt.Sprintf("the volume driver %q is for -v and not for --mount: the mount at %s uses the default one; add volume-driver=%s to it",
				in.VolumeDriver, m.Target, in.VolumeDriver))
		}
		all = append(all, m)
	}
	all = append(all, fromOthers(in.From, taken)...)
	bare, err := fromBareTargets(in, taken)
	if err != nil {
		return nil, nil, err
	}
	all = append(all, bare...)
	for i := range all {
		if m := &all[i]; m.Kind == portlayer.VolumeMount && m.Volume == "" {
			m.Labels = maps.Clone(m.Labels)
			if m.Labels == nil {
				m.Labels = map[string]string{}
			}
			m.Labels[AnonymousLabel] = ""
			in.Basic.apply(m)
		}
	}
	sort.Slice(all, func(a, b int) bool { return all[a].Target < all[b].Target })
	return all, warnings, nil
}

// fromBareTargets gives anonymous volumes for Config.Volumes and the image's VOLUMEs, but for targets that are taken. A relative one is below the
// root, where a runtime puts it.
func fromBareTargets(in Input, taken map[string]bool) ([]portlayer.Mount, error) {
	var all []portlayer.Mount
	for _, raw := range append(sortedKeys(in.Volumes), in.ImageVolumes...) {
		target := path.Clean("/" + raw)
		if err := checkTarget(target); err != nil {
			return nil, invalidConfig(mount.TypeVolume, err)
		}
		if !taken[target] {
			taken[target] = true
			all = append(all, portlayer.Mount{Kind: portlayer.VolumeMount, Driver: in.VolumeDriver, Target: target, Origin: portlayer.FromImage})
		}
	}
	return all, nil
}

// checkTarget is what holds for every target.
func checkTarget(target string) error {
	switch {
	case target == "":
		return fault.New(fault.Invalid, "field Target must not be empty")
	case strings.ContainsRune(target, 0):
		return fault.New(fault.Invalid, "invalid mount path: %q holds a zero byte", target)
	case path.Clean(target) == "/":
		return fault.New(fault.Invalid, "invalid specification: destination can't be '/'")
	case !path.IsAbs(target):
		return notAbsolute(target)
	}
	return nil
}

func notAbsolute(p string) error {
	return fault.New(fault.Invalid, "invalid mount path: '%s' mount path must be absolute", p)
}

func invalidConfig(t mount.Type, err error) error {
	return fault.New(fault.KindOf(err), "invalid mount config for type %q: %w", string(t), err)
}

func duplicate(target string) error {
	return fault.New(fault.Invalid, "Duplicate mount point: %s", target)
}

// bind makes m a mount of a path of the host. Of what Docker's propagation modes say, a machine of its own can have what comes from the host; what a container mounts stays in it.
func bind(m *portlayer.Mount, source, propagation string) error {
	m.Kind, m.Source = portlayer.BindMount, path.Clean(source)
	switch propagation {
	case "", "private", "rprivate":
	case "slave", "rslave":
		m.Bind.Follow = true
	default:
		return fault.New(fault.Unsupported, "propagation mode %s of host path %s is not supported by vch: what a container mounts is in its own machine, and nothing of it comes to the host; use rslave to see what the host mounts, or leave it out", propagation, m.Source)
	}
	return nil
}

// setVolume makes m a mount of the volume source, NAME or NAME@STORE; "" is an anonymous one.
func setVolume(m *portlayer.Mount, source string) error {
	if source == "" {
		return nil
	}
	id := portlayer.ParseVolumeID(source)
	checked := source
	if id.Store != "" {
		checked = string(id.Name)
	}
	if err := checkName(checked); err != nil {
		return err
	}
	m.Volume, m.Store, m.Qualified = id.Name, id.Store, id.Store != ""
	return nil
}

// maxName is portlayer.VolumeName's bound, in bytes.
const maxName = 255

// checkName is Moby's rule for a volume's name (volume/names), with its messages.
func checkName(name string) error {
	const first = "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789"
	switch {
	case len(name) < 2:
		return fault.New(fault.Invalid, "create %s: volume name is too short, names should be at least two alphanumeric characters", name)
	case !strings.ContainsRune(first, rune(name[0])) || strings.Trim(name, first+"_.-") != "":
		return fault.New(fault.Invalid, "create %s: %q includes invalid characters for a local volume name, only \"[a-zA-Z0-9][a-zA-Z0-9_.-]\" are allowed. If you intended to pass a host directory, use absolute path", name, name)
	case len(name) > maxName:
		return fault.New(fault.Invalid, "create %s: volume name is too long, names should be at most %d bytes", name, maxName)
	}
	return nil
}

func sortedKeys[V any](m map[string]V) []string {
	keys := make([]string, 0, len(m))
	for k := range m {
		keys = append(keys, k)
	}
	sort.Strings(keys)
	return keys
}
