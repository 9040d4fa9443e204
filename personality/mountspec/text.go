package mountspec

import (
	"path"
	"strings"

	"github.com/moby/moby/api/types/mount"

	"vch/internal/fault"
	"vch/portlayer"
)

// list is what stands after a mount's target: modes, and options for a volume that has to be made.
type list struct {
	readOnly    bool
	noCopy      bool
	propagation string
	modes       bool              // any word that is a mode
	options     map[string]string // KEY=VALUE, as written; nil for none
}

// parseList reads "ro,nocopy,Capacity=2G,…": at most one mode of each class, each option once. The modes z, Z (SELinux labels: no container VM has SELinux)
// and those of consistency do nothing, as on any Linux engine without SELinux. "" is a list. What options there are, the volume service knows.
func parseList(text string) (l list, ok bool) {
	if text == "" {
		return l, true
	}
	seen := map[string]bool{}
	for _, word := range strings.Split(text, ",") {
		class := ""
		switch word {
		case "rw", "ro":
			class, l.readOnly = "access", word == "ro"
		case "nocopy":
			class, l.noCopy = "copy", true
		case "z", "Z":
			class = "label"
		case "shared", "slave", "private", "rshared", "rslave", "rprivate":
			class, l.propagation = "propagation", word
		case "consistent", "cached", "delegated":
			class = "consistency"
		}
		if key, value, isOption := strings.Cut(word, "="); isOption && key != "" {
			if l.options == nil {
				l.options = map[string]string{}
			}
			class, l.options[key] = "option "+key, value
		} else {
			l.modes = true
		}
		if class == "" || seen[class] {
			return list{}, false
		}
		seen[class] = true
	}
	return l, true
}

// meantAsList reports whether the second part of "TARGET:TEXT" was meant as a list rather than as a target: some of its words could stand in one.
func meantAsList(text string) bool {
	for _, word := range strings.Split(text, ",") {
		if _, ok := parseList(word); ok && word != "" {
			return !strings.Contains(text, "/")
		}
	}
	return false
}

// fromText reads one of HostConfig.Binds: TARGET, TARGET:LIST, NAME:TARGET or NAME:TARGET:LIST. TARGET:LIST is no text of Docker's: its engine takes the LIST
// for a target, and refuses it because it is no absolute path. Here it is an anonymous volume with options.
func fromText(raw string, v Version) (portlayer.Mount, error) {
	parts := strings.Split(raw, ":")
	badSpec := fault.New(fault.Invalid, "invalid volume specification: '%s'", raw)
	var source, target, listText string
	switch {
	case parts[0] == "" || len(parts) > 3:
		return portlayer.Mount{}, badSpec
	case len(parts) == 1:
		target = parts[0]
	case len(parts) == 2 && path.IsAbs(parts[0]) && meantAsList(parts[1]):
		target, listText = parts[0], parts[1]
	default:
		source, target = parts[0], parts[1]
		if len(parts) == 3 {
			listText = parts[2]
		} else if _, isList := parseList(target); isList { // "name:ro", "name:"
			return portlayer.Mount{}, badSpec
		}
	}
	l, ok := parseList(listText)
	if !ok {
		return portlayer.Mount{}, fault.New(fault.Invalid, "invalid mode: %s", listText)
	}
	kind := mount.TypeVolume
	if path.IsAbs(source) {
		kind = mount.TypeBind
	}
	err := checkTarget(target)
	switch {
	case err != nil:
	case kind == mount.TypeVolume && l.propagation != "":
		err = fault.New(fault.Invalid, "field BindOptions must not be specified")
	case kind == mount.TypeBind && (l.noCopy || l.options != nil):
		err = fault.New(fault.Invalid, "field VolumeOptions must not be specified")
	}
	if err != nil {
		return portlayer.Mount{}, fault.New(fault.Invalid, "invalid volume specification: '%s': %w", raw, invalidConfig(kind, err))
	}
	target = path.Clean(target)
	if kind == mount.TypeBind {
		m := portlayer.Mount{Target: target, ReadOnly: l.readOnly, Mode: listText, Origin: portlayer.FromSpec, Make: true}
		m.Bind.WritableBelow = l.readOnly && !v.atLeast(1, 44)
		return m, bind(&m, source, l.propagation)
	}
	m := portlayer.Mount{
		Kind: portlayer.VolumeMount, Target: target, ReadOnly: l.readOnly, NoCopy: l.noCopy, Options: l.options,
		Mode: listText, Origin: portlayer.FromSpec,
	}
	return m, setVolume(&m, source)
}

// Basic is what an administrator sets for anonymous volumes of which nothing is said. The zero value sets nothing.
type Basic struct {
	ReadOnly, NoCopy bool              // where a mount says no mode
	Options          map[string]string // for the volume service: where a volume has none of its own
}

// ParseBasic reads a Basic: a list as it may follow the target of an anonymous volume, TARGET:LIST.
func ParseBasic(text string) (Basic, error) {
	l, ok := parseList(text)
	switch {
	case !ok:
		return Basic{}, fault.New(fault.Invalid, "%q is no list of modes and options, such as nocopy,Capacity=2G,VolumeStore=fast", text)
	case l.propagation != "":
		return Basic{}, fault.New(fault.Invalid, "%q has a propagation mode, which no volume takes", text)
	}
	return Basic{ReadOnly: l.readOnly, NoCopy: l.noCopy, Options: l.options}, nil
}

// apply puts the modes of b where m says none.
func (b Basic) apply(m *portlayer.Mount) {
	if l, _ := parseList(m.Mode); !l.modes && !m.ReadOnly && !m.NoCopy {
		m.ReadOnly, m.NoCopy = b.ReadOnly, b.NoCopy
	}
}
