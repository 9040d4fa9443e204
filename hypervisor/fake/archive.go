package fake

import (
	"archive/tar"
	"errors"
	"io"
	"io/fs"
	"maps"
	"path"
	"slices"
	"sort"
	"strings"

	"golang.org/x/sys/unix"

	"vch/guest"
	"vch/internal/fault"
)

// The simulated file system has files and what follows from their names: a directory is there when a file is below it, or a mount. It has no links, owners,
// modes or times.

const (
	fakeFile = fs.FileMode(0o644)
	fakeDir  = fs.ModeDir | 0o755
)

// node is a path that was looked up.
type node struct {
	mount mount
	inner string // in the mount's content
	mode  fs.FileMode
	text  string // of a file
}

// tree is what a place shows. at is the path of the container that its "/" is; "/" for the container's root.
type tree struct {
	mounts []mount // as system.mounts
	absent []string
}

// place gives the tree that a place is in, and the absolute path in it.
func (s *system) place(p guest.Place) (tree, string, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if p.Source == "" {
		if p.Mount != "" && !slices.ContainsFunc(s.mounts, func(m mount) bool { return m.target == p.Mount }) {
			return tree{}, "", fault.New(fault.NotFound, "the machine has nothing mounted at %s", p.Mount)
		}
		return tree{s.mounts, s.absent}, path.Join("/", p.Mount, string(p.Path)), nil
	}
	for _, m := range s.mounts {
		if m.source == p.Source {
			return tree{[]mount{{target: "/", content: m.content, part: p.Sub, readOnly: m.content.readOnly}}, nil}, path.Join("/", string(p.Path)), nil
		}
	}
	return tree{}, "", fault.New(fault.NotFound, "the machine has not mounted the volume %s", p.Source)
}

// look finds what is at a path.
func (t tree) look(p string) (node, error) {
	for _, m := range t.mounts {
		rest, ok := strings.CutPrefix(strings.TrimSuffix(p, "/")+"/", strings.TrimSuffix(m.target, "/")+"/")
		if !ok {
			continue
		}
		n := node{mount: m, inner: strings.Trim(path.Join(m.part, rest), "/")}
		text, err := m.content.read(n.inner)
		switch {
		case err == nil:
			n.mode, n.text = fakeFile, text
		case n.inner == "" || p == m.target || m.content.has(n.inner) || t.above(p):
			n.mode = fakeDir
		default:
			return n, &fs.PathError{Op: "lstat", Path: p, Err: unix.ENOENT}
		}
		return n, nil
	}
	return node{}, &fs.PathError{Op: "lstat", Path: p, Err: unix.ENOENT}
}

// above says whether a mount is below a path.
func (t tree) above(p string) bool {
	below := func(target string) bool { return strings.HasPrefix(target, strings.TrimSuffix(p, "/")+"/") }
	return slices.ContainsFunc(t.mounts, func(m mount) bool { return below(m.target) }) || slices.ContainsFunc(t.absent, below)
}

// leaves says where a path goes on elsewhere.
func (t tree) leaves(p, at string, apart []string) (l guest.Located, ok bool) {
	for _, target := range t.absent {
		if rest, ok := strings.CutPrefix(p+"/", target+"/"); ok {
			return guest.Located{Absent: target, Elsewhere: guest.Path(strings.TrimSuffix(rest, "/"))}, true
		}
	}
	for _, other := range apart {
		if strings.HasPrefix(p+"/", other+"/") {
			return guest.Located{Elsewhere: guest.Path(path.Join(at, p))}, true
		}
	}
	return l, false
}

// Stat is tether.Files.Stat.
func (s *system) Stat(r guest.StatRequest) (guest.Located, error) {
	t, p, err := s.place(r.Place)
	if err != nil {
		return guest.Located{}, err
	}
	if r.Mount == "" || !strings.HasPrefix(p+"/", r.Mount+"/") {
		if l, ok := t.leaves(p, r.At, r.Apart); ok {
			return l, nil
		}
	}
	n, err := t.look(p)
	if err != nil {
		return guest.Located{}, fault.As(fault.NotFound, err)
	}
	asked := string(r.Path)
	dir := strings.HasSuffix(asked, "/") || strings.HasSuffix(asked, "/.")
	if dir && !n.mode.IsDir() {
		return guest.Located{}, fault.New(fault.Invalid, "lstat %s: not a directory", r.Path)
	}
	l := guest.Located{Path: guest.Path(p), ReadOnly: n.mount.readOnly || n.mount.content.readOnly, Mounted: r.Source != "" || n.mount.target != "/"}
	if dir && p != "/" {
		l.Path += guest.Path(asked[strings.LastIndex(asked, "/"):])
	}
	l.Stat = guest.PathStat{Name: guest.Path(path.Base(p)), Size: int64(len(n.text)), Mode: n.mode}
	return l, nil
}

// Archive is tether.Files.Archive.
func (s *system) Archive(r guest.ArchiveRequest, out io.Writer) ([]guest.Skipped, error) {
	t, p, err := s.place(r.Place)
	if err != nil {
		return nil, err
	}
	n, err := t.look(p)
	if err != nil {
		return nil, fault.As(fault.NotFound, err)
	}
	a := archiver{t, tar.NewWriter(out), r.Skip, nil}
	if r.Extent == guest.WithMounts {
		err = a.write(p, string(r.Name))
	} else { // an image is opaque: all that is known has changed
		a.tree = tree{mounts: t.mounts[len(t.mounts)-1:]}
		n.mount = a.tree.mounts[0]
		err = a.below(p, "", n)
	}
	if err != nil {
		return nil, err
	}
	if r.Open {
		return a.skipped, a.tw.Flush()
	}
	return a.skipped, a.tw.Close()
}

// archiver writes one tar.
type archiver struct {
	tree    tree
	tw      *tar.Writer
	skip    []string
	skipped []guest.Skipped
}

func (a *archiver) write(p, name string) error {
	n, err := a.tree.look(p)
	if err != nil {
		return err
	}
	if !n.mode.IsDir() {
		if err := a.tw.WriteHeader(&tar.Header{Typeflag: tar.TypeReg, Name: name, Size: int64(len(n.text)), Mode: int64(n.mode.Perm())}); err != nil {
			return err
		}
		_, err := io.WriteString(a.tw, n.text)
		return err
	}
	if err := a.tw.WriteHeader(&tar.Header{Typeflag: tar.TypeDir, Name: name + "/", Mode: int64(n.mode.Perm())}); err != nil {
		return err
	}
	return a.below(p, name+"/", n)
}

// below writes what is in the directory p, with names that begin so.
func (a *archiver) below(p, prefix string, n node) error {
	for _, e := range a.tree.list(p, n) {
		below := path.Join(p, e)
		switch {
		case slices.Contains(a.skip, below):
			continue
		case slices.Contains(a.tree.absent, below):
			a.skipped = append(a.skipped, guest.Skipped{Target: below, Name: guest.Path(prefix + e)})
			continue
		}
		if err := a.write(below, prefix+e); err != nil {
			return err
		}
	}
	return nil
}

// list gives the names in a directory.
func (t tree) list(p string, n node) []string {
	names := map[string]bool{}
	add := func(at, full string) {
		if rest, ok := strings.CutPrefix(full, at); ok && rest != "" {
			name, _, _ := strings.Cut(rest, "/")
			names[name] = true
		}
	}
	inner := ""
	if n.inner != "" {
		inner = n.inner + "/"
	}
	for _, file := range n.mount.content.names() {
		add(inner, file)
	}
	for _, m := range t.mounts {
		add(strings.TrimSuffix(p, "/")+"/", m.target)
	}
	for _, target := range t.absent {
		add(strings.TrimSuffix(p, "/")+"/", target)
	}
	var sorted []string
	for name := range names {
		sorted = append(sorted, name)
	}
	sort.Strings(sorted)
	return sorted
}

// Changes is tether.Files.Changes: every file of the root and the directories that they are in, for an image is opaque.
func (s *system) Changes() ([]guest.Change, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if len(s.mounts) == 0 {
		return nil, fault.New(fault.Unsupported, "the machine has no root disk of its own to tell changes of")
	}
	added := map[string]bool{}
	for _, name := range s.mounts[len(s.mounts)-1].content.names() {
		for p := path.Join("/", name); p != "/"; p = path.Dir(p) {
			added[p] = true
		}
	}
	var all []guest.Change
	for _, p := range slices.Sorted(maps.Keys(added)) {
		all = append(all, guest.Change{Path: guest.Path(p), Kind: guest.Added})
	}
	return all, nil
}

// Extract is tether.Files.Extract.
func (s *system) Extract(r guest.ExtractRequest, in io.Reader) error {
	t, dest, err := s.place(r.Place)
	if err != nil {
		return err
	}
	if n, err := t.look(dest); err != nil {
		return fault.As(fault.NotFound, err)
	} else if !n.mode.IsDir() {
		return fault.New(fault.Invalid, "extraction point is not a directory")
	}
	tr := tar.NewReader(in)
	for {
		h, err := tr.Next()
		if err == io.EOF {
			return nil
		}
		var text []byte
		if err == nil && h.Typeflag == tar.TypeReg {
			text, err = io.ReadAll(tr)
		}
		if f := (*fault.Error)(nil); err != nil && !errors.As(err, &f) {
			err = fault.New(fault.Invalid, "the archive cannot be read: %w", err)
		}
		if err != nil {
			return err
		}
		at := path.Join(dest, h.Name)
		if clean := path.Clean(h.Name); clean == ".." || strings.HasPrefix(clean, "../") {
			return fault.New(fault.Invalid, "%q is outside of %q", clean, dest)
		}
		n, lerr := t.look(at)
		if l, ok := t.leaves(at, "", nil); ok && len(n.mount.target) < len(l.Absent) {
			return fault.New(fault.InUse, "%s lies in the volume at %s, which is in another machine", at, l.Absent)
		}
		for _, other := range r.Apart {
			if strings.HasPrefix(at+"/", other+"/") {
				return fault.New(fault.InUse, "%s lies in another volume, which is mounted below this one: copy into it by itself", at)
			}
		}
		if h.Typeflag != tar.TypeReg {
			continue // a directory is there with what is in it
		}
		if lerr == nil && n.mode.IsDir() {
			return fault.New(fault.Conflict, "cannot overwrite directory %q with non-directory %q", at, dest)
		}
		if n.mount.readOnly {
			return fault.New(fault.Denied, "open %s: read-only file system", at)
		}
		if err := n.mount.content.write(n.inner, string(text)); err != nil {
			return &fs.PathError{Op: "open", Path: at, Err: err}
		}
	}
}
