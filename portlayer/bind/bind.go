// Package bind says which directories and files of this host containers may mount, and finds them. It implements portlayer.Binds.
//
// It mounts nothing: what it gives is the hypervisor's to share, which sees to it that nothing outside of the allowed directory is reached, whatever becomes of the path meanwhile.
package bind

import (
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"strings"

	"github.com/moby/sys/mountinfo"

	"vch/internal/fault"
	"vch/portlayer"
)

// Policy implements portlayer.Binds.
type Policy struct {
	// Allow are directories of this host, absolute and clean, of which containers may mount what is in them.
	Allow []string
	// Never says why no machine can share a directory, whatever is allowed; "": they can.
	Never string
}

var _ portlayer.Binds = Policy{}

// Share is portlayer.Binds.Share.
func (p Policy) Share(m portlayer.Mount) (portlayer.Share, error) {
	out := portlayer.Share{ReadOnly: m.ReadOnly, WritableBelow: m.Bind.WritableBelow, NonRecursive: m.Bind.NonRecursive, Follow: m.Bind.Follow}
	if p.Never != "" {
		return out, fault.New(fault.Unsupported, "host path %s cannot be mounted at %s: %s; use a volume: -v NAME:%s", m.Source, m.Target, p.Never, m.Target)
	}
	if len(p.Allow) == 0 {
		return out, fault.New(fault.Denied, "host path %s cannot be mounted at %s: this VCH shares no directory of its host with containers; start it with --bind-allow DIRECTORY, or use a volume: -v NAME:%s", m.Source, m.Target, m.Target)
	}
	real, rest, err := existing(m.Source)
	if err != nil {
		return out, fault.New(fault.Invalid, "host path %s: %w", m.Source, err)
	}
	if rest != "" && !m.Make {
		return out, fault.New(fault.Invalid, "invalid mount config for type \"bind\": bind source path does not exist: %s", m.Source)
	}
	out.Path = filepath.Join(real, rest)
	for _, dir := range p.Allow {
		if dir, err = filepath.EvalSymlinks(dir); err != nil {
			continue // it is not there: nothing is in it
		}
		if out.Path == dir || strings.HasPrefix(out.Path, strings.TrimSuffix(dir, "/")+"/") {
			out.Below = dir
			break
		}
	}
	if out.Below == "" {
		where := ""
		if out.Path != m.Source {
			where = ", which is " + out.Path + ","
		}
		return out, fault.New(fault.Denied, "host path %s%s cannot be mounted at %s: it is in none of the directories that --bind-allow of this VCH names (%s)", m.Source, where, m.Target, strings.Join(p.Allow, ", "))
	}
	if out.Follow {
		if err := follows(out.Path); err != nil {
			return out, err
		}
	}
	if rest != "" {
		return out, nil
	}
	fi, err := os.Stat(out.Path)
	switch {
	case err != nil:
		return out, fault.New(fault.Invalid, "host path %s: %w", m.Source, err)
	case fi.Mode()&fs.ModeSocket != 0:
		return out, fault.New(fault.Unsupported, "host path %s is a socket, which a machine of its own cannot connect to: have what listens there listen at an address, and reach it by the name host.docker.internal (--add-host host.docker.internal:host-gateway)", m.Source)
	case !fi.IsDir() && !fi.Mode().IsRegular():
		return out, fault.New(fault.Unsupported, "host path %s is neither a directory nor a regular file: nothing else of the host can be mounted into a container VM", m.Source)
	}
	return out, nil
}

// existing splits a path into what is there of it, links followed, and the rest.
func existing(p string) (real, rest string, err error) {
	for at := p; ; at = filepath.Dir(at) {
		real, err := filepath.EvalSymlinks(at)
		if err == nil {
			return real, rest, nil
		}
		if !errors.Is(err, fs.ErrNotExist) {
			return "", "", err
		}
		if _, lerr := os.Lstat(at); lerr == nil {
			return "", "", fault.New(fault.Invalid, "%s is a link that leads nowhere", at)
		}
		rest = filepath.Join(filepath.Base(at), rest)
	}
}

// follows refuses to follow the host's mounts below a path where the host keeps them to itself.
func follows(path string) error {
	all, err := mountinfo.GetMounts(mountinfo.ParentsFilter(path))
	if err != nil {
		return err
	}
	var on mountinfo.Info
	for _, m := range all {
		if len(m.Mountpoint) >= len(on.Mountpoint) { // of two at one place the later one counts
			on = *m
		}
	}
	if !strings.Contains(on.Optional, "shared:") && !strings.Contains(on.Optional, "master:") {
		return fault.New(fault.Invalid, "path %s is mounted on %s but it is not a shared or slave mount: what the host mounts there would not be seen; make it shared (mount --make-rshared %[2]s), or leave rslave out", path, on.Mountpoint)
	}
	return nil
}

// Make is portlayer.Binds.Make.
func (p Policy) Make(m portlayer.Mount) error {
	share, err := p.Share(m)
	if err != nil || !m.Make {
		return err
	}
	if _, err := os.Stat(share.Path); err == nil {
		return nil
	}
	if err := makeBelow(share.Below, share.Path); err != nil {
		return fault.New(fault.Invalid, "host path %s cannot be made: %w", m.Source, err)
	}
	return nil
}

// makeBelow makes a directory below another, and nothing outside of that: a container that may write there may put a link where there was none when it was looked at.
func makeBelow(below, path string) error {
	rel, err := filepath.Rel(below, path)
	if err != nil {
		return err
	}
	root, err := os.OpenRoot(below)
	if err != nil {
		return err
	}
	return errors.Join(root.MkdirAll(rel, 0o755), root.Close())
}
