package guest

import (
	"context"
	"io"
	"io/fs"
	"path"
	"path/filepath"
	"strconv"
	"strings"
	"time"

	"github.com/hashicorp/yamux"

	"vch/internal/fault"
)

// Place says where Stat, Archive and Extract look. The zero value but for Path is the container's root with all that is mounted for it; what its kernel shows
// (/proc, /sys, /dev) is not part of it. Nothing outside of the place is reached, whatever links say.
type Place struct {
	// Source is "" or the Source of a volume that this machine has mounted: its whole content then, whatever part of it the container mounts.
	Source Source `json:"source,omitempty"`
	// Sub is of a volume: the directory in it that is the place, as MountSpec.Subpath. "": all.
	Sub string `json:"sub,omitempty"`
	// Mount is "" or the Target of one of the config's mounts: the place is the container's root still, and Path begins there.
	Mount string `json:"mount,omitempty"`
	// Path is in the place. Absolute or not makes no difference. As for lstat(2), a slash or "/." at the end follows a link there, and asks for a directory.
	Path Path `json:"path"`
}

// Path is a path in a container. On the wire it is quoted: names of files are bytes, and JSON keeps only characters.
type Path string

// MarshalText is the path as strconv.Quote has it.
func (p Path) MarshalText() ([]byte, error) { return []byte(strconv.Quote(string(p))), nil }

// UnmarshalText undoes MarshalText.
func (p *Path) UnmarshalText(text []byte) error {
	s, err := strconv.Unquote(string(text))
	*p = Path(s)
	return err
}

// StatRequest is what Stat looks for.
type StatRequest struct {
	Place
	Follow bool `json:"follow,omitempty"` // a link at the end of Path, too
	// Apart are paths of the place, absolute, where something else is mounted for whoever asks: the way goes on there, and not here.
	Apart []string `json:"apart,omitempty"`
	// At is where the container of whoever asks has a volume's Path "/". Links that lead out of the volume are answered from there. "": nowhere.
	At   string `json:"at,omitempty"`
	User string `json:"user,omitempty"` // as Process.User: looked up in the container's root; "": root
}

// Located is what Stat found, or, with Elsewhere set, where to go on.
type Located struct {
	// Elsewhere is the rest of the way where it leaves the place: an absolute path of the container, its first part without links; or, with Absent set,
	// what of the way is below the mount with that Target, whose volume this machine does not have (MountSpec.Absent).
	Elsewhere Path   `json:"elsewhere,omitempty"`
	Absent    string `json:"absent,omitempty"`

	Path     Path     `json:"path,omitempty"` // of the place, absolute, no link in it but perhaps at its end; "/." or "/" at the end as asked
	Stat     PathStat `json:"stat"`
	ReadOnly bool     `json:"read_only,omitempty"` // nothing can be written there
	Mounted  bool     `json:"mounted,omitempty"`   // it is on a mount of the container's, not on its root file system
	UID      int      `json:"uid,omitempty"`       // of StatRequest.User
	GID      int      `json:"gid,omitempty"`
}

// PathStat is a file. Docker API container.PathStat.
type PathStat struct {
	Name       Path        `json:"name"` // the last element of the path that was asked for
	Size       int64       `json:"size"`
	Mode       fs.FileMode `json:"mode"` // Go's bits; the wire and Docker's API have their number
	Mtime      time.Time   `json:"mtime"`
	LinkTarget Path        `json:"link_target,omitempty"` // of a link: where it leads to, as far as that is there, as an absolute path of the place
}

// ArchiveRequest is a tree, or one file, to be made a tar of.
type ArchiveRequest struct {
	Place
	Name Path     `json:"name"`           // of Path in the archive; what is below it is NAME/… "": its entries begin with a slash
	Skip []string `json:"skip,omitempty"` // paths of the place, absolute, that are left out, with all below them
	Open bool     `json:"open,omitempty"` // no end-of-archive: more follows

	Extent Extent `json:"extent,omitempty"`
	Still  bool   `json:"still,omitempty"` // the container's processes stand still meanwhile, and afterwards if they did before
}

// Skipped is a mount that a tree has, and its archive not, because its volume is absent.
type Skipped struct {
	Target string `json:"target"` // MountSpec.Target
	Name   Path   `json:"name"`   // that it would have in the archive
}

// ExtractRequest says how to extract a tar.
type ExtractRequest struct {
	Place                 // a directory
	NoOverwrite bool      `json:"no_overwrite,omitempty"` // a directory is not replaced by something else, nor the other way
	Owner       *OwnerIDs `json:"owner,omitempty"`        // of everything; nil: what the archive says
	// Whole says that the archive is a volume's whole content: "." in it is Path itself, with owner and mode, and links may lead where they like.
	Whole bool `json:"whole,omitempty"`
	// Apart is StatRequest.Apart: an entry that would go there is InUse.
	Apart []string `json:"apart,omitempty"`
}

// OwnerIDs is an owner and a group.
type OwnerIDs struct {
	UID int `json:"uid"`
	GID int `json:"gid"`
}

// Archives is the part of Handler that is about files. Archive and Extract take a Path that Stat has found: links in it lead nowhere else, but to wherever
// the kernel follows them within the place.
type Archives interface {
	// Stat looks at a path. NotFound if it is not there.
	Stat(ctx context.Context, r StatRequest) (Located, error)
	// Archive gives a tar of Path to out, piece by piece: owner, mode, times, extended attributes, hard links within it, devices. Sockets are left out, which
	// a tar cannot hold. A file that shrinks meanwhile is filled up with zeros. An error of out ends it, and is returned.
	Archive(ctx context.Context, r ArchiveRequest, out func([]byte) error) ([]Skipped, error)
	// Changes tells how the container's root differs from its image, in the order of the paths, a directory before what is below it; nothing that vch has put there itself is told.
	Changes(ctx context.Context, out func([]Change) error) error
	// Extract extracts the tar that in is into Path. An entry that would lead out of it is Invalid; what came before stays. When it returns without an
	// error all is on disk. In is not read to its end after an error.
	Extract(ctx context.Context, r ExtractRequest, in io.Reader) error
}

// Stat is Archives.Stat.
func (c *Client) Stat(ctx context.Context, r StatRequest) (l Located, err error) {
	err = c.call(ctx, "stat", r, &l)
	return l, err
}

// Archive is Archives.Archive. The guest waits for an out that is slow.
func (c *Client) Archive(ctx context.Context, r ArchiveRequest, out func([]byte) error) (skipped []Skipped, err error) {
	err = c.follow(ctx, "archive", r, func(_ io.Writer, kind byte, msg []byte) (bool, error) {
		if kind == msgData {
			return false, out(msg)
		}
		return true, readAnswer(kind, msg, &skipped)
	})
	return skipped, err
}

// Extract is Archives.Extract. In may still be read when it returns an error: the caller closes what is behind it.
func (c *Client) Extract(ctx context.Context, r ExtractRequest, in io.Reader) error {
	return c.extract(ctx, r, in)
}

func (s *session) extract(ctx context.Context, r ExtractRequest, in io.Reader) error {
	st, release, err := s.open(ctx, "extract", r)
	if err != nil {
		return err
	}
	defer release()
	broke := make(chan error, 1) // why in could not be read to its end
	go func() {                  // ends when in does, or with the stream
		buf := make([]byte, MaxFrame)
		for {
			n, err := in.Read(buf)
			if n > 0 && writeMessage(st, msgData, buf[:n]) != nil {
				return
			}
			if err == io.EOF {
				_ = writeMessage(st, msgEOF, nil)
				return
			}
			if err != nil {
				broke <- err
				reset(st) // an archive that was cut off is not taken for whole
				return
			}
		}
	}()
	kind, msg, err := readMessage(st)
	if err != nil {
		err = ended(ctx, err)
	} else {
		err = readAnswer(kind, msg, nil)
	}
	select {
	case cause := <-broke: // the guest's answer, if it came in time, is about the stream that was reset
		return fault.New(fault.Invalid, "the archive cannot be read to its end: %w", cause)
	default:
		return err
	}
}

// tidy makes sure that what a host says of paths is what the Place's comment says.
func (p Place) tidy() error {
	if strings.ContainsRune(string(p.Path), 0) || strings.ContainsRune(p.Mount, 0) {
		return fault.New(fault.Invalid, "a path holds a zero byte")
	}
	if p.Source != "" && p.Mount != "" || p.Source == "" && p.Sub != "" || p.Sub != "" && !filepath.IsLocal(p.Sub) {
		return fault.New(fault.Invalid, "guest channel: no place is source %q, sub %q, mount %q", p.Source, p.Sub, p.Mount)
	}
	return nil
}

// tidyPaths is tidy's for absolute paths of a place.
func tidyPaths(paths []string) error {
	for _, p := range paths {
		if !path.IsAbs(p) || path.Clean(p) != p || strings.ContainsRune(p, 0) {
			return fault.New(fault.Invalid, "guest channel: %q is not an absolute, clean path", p)
		}
	}
	return nil
}

func serveStat(ctx context.Context, h Handler, req request) (any, error) {
	r, err := decodeBody[StatRequest](req)
	if err == nil {
		err = r.tidy()
	}
	if err == nil {
		err = tidyPaths(r.Apart)
	}
	if err != nil {
		return nil, err
	}
	return h.Stat(ctx, r)
}

func serveArchive(ctx context.Context, cancel context.CancelFunc, st *yamux.Stream, h Handler, req request) (any, error) {
	r, err := decodeBody[ArchiveRequest](req)
	if err == nil {
		err = r.tidy()
	}
	if err == nil {
		err = tidyPaths(r.Skip)
	}
	if err != nil {
		return nil, err
	}
	if r.Extent != WithMounts && (r.Place != Place{Path: "/"} || r.Name != "" || len(r.Skip) > 0) {
		return nil, fault.New(fault.Invalid, "guest channel: an archive of %q is of all there is", r.Extent)
	}
	go drain(cancel, st)
	skipped, err := h.Archive(ctx, r, func(data []byte) error {
		for len(data) > 0 {
			n := min(len(data), MaxFrame)
			if err := writeMessage(st, msgData, data[:n]); err != nil {
				return err
			}
			data = data[n:]
		}
		return nil
	})
	return skipped, err
}

func serveExtract(ctx context.Context, cancel context.CancelFunc, st *yamux.Stream, h Handler, req request) error {
	r, err := decodeBody[ExtractRequest](req)
	if err == nil {
		err = r.tidy()
	}
	if err == nil {
		err = tidyPaths(r.Apart)
	}
	if err != nil {
		return err
	}
	in, came := io.Pipe()
	defer in.Close()
	go func() {
		defer cancel() // the host left
		for {
			kind, msg, err := readMessage(st)
			switch {
			case err != nil:
				came.CloseWithError(errLeft) // no end of the archive
				return
			case kind == msgData:
				_, _ = came.Write(msg) // what is not wanted any more is thrown away, to notice the host's leaving
			case kind == msgEOF:
				came.Close()
			default:
				came.CloseWithError(fault.New(fault.Invalid, "guest channel: message %q among an archive", kind))
			}
		}
	}()
	return h.Extract(ctx, r, in)
}
