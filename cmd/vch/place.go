package main

import (
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"

	"github.com/spf13/pflag"

	"vch/internal/supervise"
	"vch/machine"
)

// place is where the parts of one VCH are on this host.
type place struct {
	Name   string
	Home   machine.Home // its directory: record, journal, programs, and all that follows but the configuration and root's socket
	Config string       // vch.toml
	Socket string       // that its daemon always listens at
	State  string
	Client string // certificates of a client
	Log    string // where systemd does not take it
}

// placesFlag is --root.
type placesFlag struct{ root string }

func (p *placesFlag) flags(f *pflag.FlagSet) {
	f.StringVar(&p.root, "root", "", "the `DIRECTORY` of all VCHs (root: /var/lib/vch/hosts, with configurations in /etc/vch; otherwise vch/hosts in $XDG_DATA_HOME or ~/.local/share)")
}

// dir is the directory of all VCHs; usual says that nobody asked for another.
func (p *placesFlag) dir(at surroundings) (dir string, usual bool, err error) {
	if p.root != "" {
		return absolute(p.root, at), false, nil
	}
	state, err := statePath("", at)
	return filepath.Join(state, "hosts"), true, err
}

// of is the place of the VCH called name.
func (p *placesFlag) of(name string, at surroundings) (place, error) {
	if err := machine.CheckName(name); err != nil {
		return place{}, usageError{err}
	}
	root, usual, err := p.dir(at)
	if err != nil {
		return place{}, err
	}
	home := filepath.Join(root, name)
	l := place{
		Name: name, Home: machine.Home(home), Config: filepath.Join(home, "vch.toml"), Socket: filepath.Join(home, "vch.sock"),
		State: filepath.Join(home, "state"), Client: filepath.Join(home, "client"), Log: filepath.Join(home, "log"),
	}
	if at.Root && usual {
		l.Config, l.Socket = filepath.Join("/etc/vch", name, "vch.toml"), "/var/run/vch-"+name+".sock"
	}
	if len(l.Socket) > socketPathMax {
		return l, usagef("%s: a unix socket's path has at most %d bytes, and this one has %d; choose a shorter --root", l.Socket, socketPathMax, len(l.Socket))
	}
	return l, nil
}

// all are the places in which there is a VCH, or a part of one, by name.
func (p *placesFlag) all(at surroundings) (places []place, err error) {
	root, _, err := p.dir(at)
	if err != nil {
		return nil, err
	}
	entries, err := os.ReadDir(root)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	for _, e := range entries {
		if l, err := p.of(e.Name(), at); err == nil && l.there() {
			places = append(places, l)
		}
	}
	return places, err
}

// there says whether there is a VCH, or a part of one: an empty directory is none.
func (l place) there() bool {
	entries, err := os.ReadDir(string(l.Home))
	return err == nil && len(entries) > 0
}

// program is where a version of vch is kept.
func (l place) program(version string) string {
	return filepath.Join(string(l.Home), "bin", "vch-"+notInNames.ReplaceAllString(version, "_"))
}

var notInNames = regexp.MustCompile(`[^a-zA-Z0-9._+-]`)

// daemon is the program that is looked after.
func (l place) daemon(version string) supervise.Program {
	return supervise.Program{
		Name: "vch-" + l.Name, What: "vch " + l.Name + ", a virtual container host",
		Path: l.program(version), Args: []string{"serve", "--config", l.Config}, Log: l.Log,
	}
}

// containers are those that the state directory knows, for when no daemon can be asked.
func (l place) containers() (all []machine.Container) {
	seen := map[string]bool{}
	for _, dir := range []string{"containers", "machines"} {
		entries, _ := os.ReadDir(filepath.Join(l.State, dir)) // none: there is nothing
		for _, e := range entries {
			if containerID.MatchString(e.Name()) && !seen[e.Name()] {
				seen[e.Name()] = true
				all = append(all, machine.Container{ID: e.Name()})
			}
		}
	}
	return all
}

var containerID = regexp.MustCompile(`^[0-9a-f]{64}$`)

// volumesOf are those that stores on this host have, for when no daemon can be asked.
func volumesOf(stores []storePlace) (all []machine.Volume) {
	for _, s := range stores {
		if s.NFS != nil || s.Datastore {
			continue
		}
		entries, _ := os.ReadDir(filepath.Join(s.Path, "volumes")) // none: there is nothing
		for _, e := range entries {
			dir := filepath.Join(s.Path, "volumes", e.Name())
			if _, err := os.Stat(filepath.Join(dir, "volume.json")); err == nil && !strings.HasPrefix(e.Name(), ".") {
				all = append(all, machine.Volume{Name: e.Name(), Store: string(s.Name), Where: dir})
			}
		}
	}
	return all
}

// supervisorOf gives a supervisor by its name.
func supervisorOf(name string) (supervise.Supervisor, error) {
	for _, s := range []supervise.Supervisor{supervise.Process{}, systemd()} {
		if s.Name() == name {
			return s, nil
		}
	}
	return nil, usagef("--supervisor %q is none of auto, systemd, process", name)
}

func systemd() supervise.Systemd {
	return supervise.Systemd{Dir: "/etc/systemd/system", Systemctl: "systemctl", Journal: "journalctl"}
}

// supervisorName is who is to look after a daemon; auto is systemd where that runs and this is root.
func supervisorName(asked string, at surroundings, systemdRuns bool) (string, error) {
	switch {
	case asked == "auto" && at.Root && systemdRuns:
		return "systemd", nil
	case asked == "auto":
		return "process", nil
	case asked == "systemd" && (!at.Root || !systemdRuns):
		return "", usagef("--supervisor systemd needs root, and a machine that systemd runs; use --supervisor process")
	case slices.Contains([]string{"systemd", "process"}, asked):
		return asked, nil
	}
	return "", usagef("--supervisor %q is none of auto, systemd, process", asked)
}
