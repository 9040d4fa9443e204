package vsphere

import (
	"path"
	"strings"

	"vch/internal/fault"
	"vch/portlayer"
)

// datastorePath is a place on a datastore: "[NAME] PATH" as vSphere writes it (vSphere Web Services Programming Guide, "Datastore paths").
type datastorePath struct {
	store string
	path  string // clean, relative; "" is the datastore's root
}

func (p datastorePath) String() string {
	if p.path == "" {
		return "[" + p.store + "]"
	}
	return "[" + p.store + "] " + p.path
}

// disk is p as the port layer has it.
func (p datastorePath) disk() portlayer.DiskPath { return portlayer.DiskPath(p.String()) }

// dir is the directory that p is in, which for the root is the root.
func (p datastorePath) dir() datastorePath {
	dir := path.Dir(p.path)
	if dir == "." {
		dir = ""
	}
	return datastorePath{p.store, dir}
}

func (p datastorePath) base() string { return path.Base(p.path) }

func (p datastorePath) join(elem ...string) datastorePath {
	joined := path.Join(append([]string{"/", p.path}, elem...)...) // nothing leads out of the datastore
	return datastorePath{p.store, strings.TrimPrefix(joined, "/")}
}

// parsePath reads "[NAME] PATH". Invalid for anything else, and for a path that leads out of the datastore.
func parsePath(text portlayer.DiskPath) (datastorePath, error) {
	rest, ok := strings.CutPrefix(string(text), "[")
	store, rest, found := strings.Cut(rest, "]")
	if !ok || !found || store == "" {
		return datastorePath{}, fault.New(fault.Invalid, "%q is not a place on a datastore: [DATASTORE] PATH", text)
	}
	rest = strings.TrimLeft(rest, " ")
	if clean := path.Clean("/" + rest); rest != "" && strings.HasPrefix(path.Clean(rest), "..") || strings.ContainsAny(rest, "\x00\n\r") {
		return datastorePath{}, fault.New(fault.Invalid, "%q is not a place on a datastore", text)
	} else {
		return datastorePath{store, strings.TrimPrefix(clean, "/")}, nil
	}
}
