package image

import (
	"archive/tar"
	"bufio"
	"bytes"
	"context"
	"errors"
	"io"
	"os"
	"path"
	"sort"
	"strings"

	"vch/internal/fault"
	"vch/portlayer"
)

// The index of a disk is a text file, a line per name, sorted by bytes: PATH NUL KIND [TARGET] LF, with KIND d (an empty directory), t (one with
// content), l (a symlink, to TARGET) or f (anything else). Backslash and line feed are escaped with a backslash.

var escaper = strings.NewReplacer(`\`, `\\`, "\n", `\n`)
var unescaper = strings.NewReplacer(`\\`, `\`, `\n`, "\n")

// writeIndex writes the index of t.
func writeIndex(w io.Writer, t *tree) error {
	type line struct {
		key  string
		node *node
	}
	lines := make([]line, 0, t.nodes+1)
	lines = append(lines, line{"", t.root})
	t.each(func(p string, n *node) { lines = append(lines, line{escaper.Replace(p), n}) })
	sort.Slice(lines, func(i, j int) bool { return lines[i].key < lines[j].key })
	b := bufio.NewWriter(w)
	for _, l := range lines {
		kind := "f"
		switch {
		case l.node.typ == tar.TypeDir && len(l.node.children) > 0:
			kind = "t"
		case l.node.typ == tar.TypeDir:
			kind = "d"
		case l.node.typ == tar.TypeSymlink:
			kind = "l" + escaper.Replace(l.node.target)
		}
		if _, err := b.WriteString(l.key + "\x00" + kind + "\n"); err != nil {
			return err
		}
	}
	return b.Flush()
}

// index is one read into memory: some 60 bytes a file of the image.
type index []byte

// find gives the kind at the clean path p without a leading slash: 0 if nothing is there.
func (x index) find(p string) (kind byte, target string) {
	key := []byte(escaper.Replace(p) + "\x00")
	lo, hi := 0, len(x) // a line that begins in [lo, hi) is the one, if any
	for lo < hi {
		mid := lo + (hi-lo)/2
		start := lo + bytes.LastIndexByte(x[lo:mid], '\n') + 1
		end := start + bytes.IndexByte(x[start:], '\n')
		if end < start {
			return 0, ""
		}
		line := x[start:end]
		nul := bytes.IndexByte(line, 0)
		if nul < 0 || nul+1 >= len(line) {
			return 0, ""
		}
		switch bytes.Compare(line[:nul+1], key) {
		case 0:
			return line[nul+1], unescaper.Replace(string(line[nul+2:]))
		case -1:
			lo = end + 1
		default:
			hi = start
		}
	}
	return 0, ""
}

// resolve follows p from the image's root, symlinks included, and never leaves it. It gives the kind of what p ends at, 0 for nothing.
func (x index) resolve(p string) byte {
	todo := strings.Split(p, "/")
	at, kind := "", byte('t')
	for hops := 0; len(todo) > 0; {
		name := todo[0]
		todo = todo[1:]
		if name == "" || name == "." {
			continue
		}
		if kind == 'f' {
			return 0 // below a file
		}
		if name == ".." {
			if at = path.Dir(at); at == "." {
				at = ""
			}
			kind = 't'
			continue
		}
		next := path.Join(at, name)
		k, target := x.find(next)
		switch k {
		case 0:
			return 0
		case 'l':
			if hops++; hops > maxHops {
				return 0
			}
			if strings.HasPrefix(target, "/") {
				at = ""
			}
			todo = append(strings.Split(target, "/"), todo...)
		default:
			at, kind = next, k
		}
	}
	kind, _ = x.find(at)
	return kind
}

// Entries implements portlayer.Images.
func (s *Service) Entries(ctx context.Context, id portlayer.ImageID, p string) (string, error) {
	if err := ctx.Err(); err != nil {
		return "", err
	}
	k, ok := s.catalog.get(id)
	if !ok {
		return "", fault.New(fault.NotFound, "No such image: %s", id)
	}
	if !path.IsAbs(p) {
		return "", fault.New(fault.Invalid, "path %q is not absolute", p)
	}
	data, err := os.ReadFile(s.indexPath(k.disk))
	if errors.Is(err, os.ErrNotExist) {
		return "", fault.New(fault.Conflict, "the index of image %s is missing; pull or load the image again", short(string(id)))
	}
	if err != nil {
		return "", s.storage(err)
	}
	switch index(data).resolve(p) {
	case 't':
		return "tree", nil
	case 'd':
		return "dir", nil
	case 'f':
		return "file", nil
	}
	return "", nil
}
