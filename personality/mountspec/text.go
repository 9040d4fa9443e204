package mountspec

import (
	"path"
	"strings"

	"github.com/moby/moby/api/types/mount"

	"vch/internal/fault"
	"vch/portlayer"
)

// mode is what the third part of a -v text says.
type mode struct {
	readOnly    bool
	noCopy      bool
	propagation bool
}

// parseMode reads "ro,nocopy,…": at most one word of each class. The words z, Z (SELinux labels: no container VM has SELinux) and those of consistency do
// nothing, as on any Linux engine without SELinux. "" is a mode.
func parseMode(text string) (m mode, ok bool) {
	if text == "" {
		return m, true
	}
	seen := map[string]bool{}
	for _, word := range strings.Split(text, ",") {
		class := ""
		switch word {
		case "rw", "ro":
			class, m.readOnly = "access", word == "ro"
		case "nocopy":
			class, m.noCopy = "copy", true
		case "z", "Z":
			class = "label"
		case "shared", "slave", "private", "rshared", "rslave", "rprivate":
			class, m.propagation = "propagation", true
		case "consistent", "cached", "delegated":
			class = "consistency"
		}
		if class == "" || seen[class] {
			return mode{}, false
		}
		seen[class] = true
	}
	return m, true
}

// fromText reads one of HostConfig.Binds: TARGET, NAME:TARGET or NAME:TARGET:MODE.
func fromText(raw string) (portlayer.Mount, error) {
	parts := strings.Split(raw, ":")
	badSpec := fault.New(fault.Invalid, "invalid volume specification: '%s'", raw)
	var source, target, modeText string
	switch {
	case parts[0] == "" || len(parts) > 3:
		return portlayer.Mount{}, badSpec
	case len(parts) == 1:
		target = parts[0]
	default:
		source, target = parts[0], parts[1]
		if len(parts) == 3 {
			modeText = parts[2]
		} else if _, isMode := parseMode(target); isMode { // "/mnt:ro", "name:"
			return portlayer.Mount{}, badSpec
		}
	}
	m, ok := parseMode(modeText)
	if !ok {
		return portlayer.Mount{}, fault.New(fault.Invalid, "invalid mode: %s", modeText)
	}
	kind := mount.TypeVolume
	if path.IsAbs(source) {
		kind = mount.TypeBind
	}
	err := checkTarget(target)
	switch {
	case err != nil:
	case kind == mount.TypeVolume && m.propagation:
		err = fault.New(fault.Invalid, "field BindOptions must not be specified")
	case kind == mount.TypeBind && m.noCopy:
		err = fault.New(fault.Invalid, "field VolumeOptions must not be specified")
	}
	if err != nil {
		return portlayer.Mount{}, fault.New(fault.Invalid, "invalid volume specification: '%s': %w", raw, invalidConfig(kind, err))
	}
	target = path.Clean(target)
	if kind == mount.TypeBind {
		return portlayer.Mount{}, hostPath(path.Clean(source), target)
	}
	if source != "" {
		if err := checkName(source); err != nil {
			return portlayer.Mount{}, err
		}
	}
	return portlayer.Mount{Kind: portlayer.VolumeMount, Volume: portlayer.VolumeName(source), Target: target, ReadOnly: m.readOnly, NoCopy: m.noCopy, Mode: modeText, Origin: portlayer.FromSpec}, nil
}
