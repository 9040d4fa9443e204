package mountspec

import (
	"fmt"
	"path"
	"regexp"
	"slices"
	"strings"

	"github.com/moby/moby/api/types/mount"

	"vch/internal/fault"
	"vch/portlayer"
)

// fromTmpfs reads one of HostConfig.Tmpfs.
func fromTmpfs(target, options string) (portlayer.Mount, error) {
	if err := checkTarget(target); err != nil {
		return portlayer.Mount{}, err
	}
	m := portlayer.Mount{Kind: portlayer.TmpfsMount, Target: path.Clean(target), Origin: portlayer.FromTmpfs}
	if options == "" {
		return m, nil
	}
	for _, o := range strings.Split(options, ",") {
		if err := checkTmpfsOption(o); err != nil {
			return portlayer.Mount{}, fault.New(fault.KindOf(err), "tmpfs %s: %w", m.Target, err)
		}
		switch o {
		case "ro", "rw": // the port layer has a word of its own for it; the last one counts
			m.ReadOnly = o == "ro"
		case "private", "rprivate": // what every mount in a VM of its own is
		default:
			m.Tmpfs = append(m.Tmpfs, o)
		}
	}
	return m, nil
}

// Sizes and modes as mount(8) and tmpfs (Documentation/filesystems/tmpfs.rst) read them.
var (
	tmpfsSize   = regexp.MustCompile(`^[0-9]+[kKmMgG]?$`)
	tmpfsShare  = regexp.MustCompile(`^[0-9]+%$`)
	tmpfsMode   = regexp.MustCompile(`^[0-7]{1,4}$`)
	tmpfsNumber = regexp.MustCompile(`^[0-9]{1,10}$`)
)

// checkTmpfsOption accepts what Moby's MergeTmpfsOptions does and a machine of its own can honour.
func checkTmpfsOption(o string) error {
	key, value, hasValue := strings.Cut(o, "=")
	ok := false
	switch key {
	case "ro", "rw", "suid", "nosuid", "dev", "nodev", "exec", "noexec", "sync", "async", "atime", "noatime",
		"diratime", "nodiratime", "relatime", "norelatime", "strictatime", "nostrictatime", "private", "rprivate":
		ok = !hasValue
	case "size":
		ok = tmpfsSize.MatchString(value) || tmpfsShare.MatchString(value)
	case "nr_blocks", "nr_inodes":
		ok = tmpfsSize.MatchString(value)
	case "mode":
		ok = tmpfsMode.MatchString(value)
	case "uid", "gid":
		ok = tmpfsNumber.MatchString(value)
	case "mpol", "dirsync", "shared", "rshared", "slave", "rslave", "unbindable", "runbindable":
		return fault.New(fault.Unsupported, "tmpfs option %q is not supported by vch: it has no meaning in a container VM", o)
	}
	if !ok {
		return fault.New(fault.Invalid, "invalid tmpfs option %q", o)
	}
	return nil
}

// tmpfsMount reads one of HostConfig.Mounts with type tmpfs.
func tmpfsMount(m mount.Mount) (portlayer.Mount, error) {
	if err := checkForeign(m); err != nil {
		return portlayer.Mount{}, err
	}
	out := portlayer.Mount{Kind: portlayer.TmpfsMount}
	if m.Source != "" {
		return portlayer.Mount{}, invalidConfig(m.Type, fault.New(fault.Invalid, "field Source must not be specified"))
	}
	o := m.TmpfsOptions
	if o == nil {
		return out, nil
	}
	for _, words := range o.Options {
		switch {
		case len(words) != 1:
			return portlayer.Mount{}, invalidConfig(m.Type, fault.New(fault.Invalid, "invalid option array length"))
		case !slices.Contains([]string{"exec", "noexec"}, words[0]):
			return portlayer.Mount{}, invalidConfig(m.Type, fault.New(fault.Invalid, "invalid option: %s", words[0]))
		}
		out.Tmpfs = append(out.Tmpfs, words[0])
	}
	if o.SizeBytes < 0 {
		return portlayer.Mount{}, invalidConfig(m.Type, fault.New(fault.Invalid, "invalid size: %d", o.SizeBytes))
	}
	if o.SizeBytes > 0 {
		out.Tmpfs = append(out.Tmpfs, fmt.Sprintf("size=%d", o.SizeBytes))
	}
	if o.Mode > 0o7777 { // the wire has the twelve bits of chmod(2), not Go's
		return portlayer.Mount{}, invalidConfig(m.Type, fault.New(fault.Invalid, "invalid mode: %o", uint32(o.Mode)))
	}
	if o.Mode != 0 {
		out.Tmpfs = append(out.Tmpfs, fmt.Sprintf("mode=%o", uint32(o.Mode)))
	}
	return out, nil
}
