package exec

import (
	"context"
	"errors"
	"fmt"
	"io"
	"maps"
	"path"
	"slices"
	"strings"
	"time"

	"vch/guest"
	"vch/internal/fault"
	"vch/portlayer"
)

// files are a container's files for one call: in its own machine, and in the machines of those who hold volumes of it.
type files struct {
	s      *Service
	ref    string // as the user named the container
	c      portlayer.Container
	own    *guest.Client
	run    *run     // nil: it does not run
	served *serving // nil: it runs
	leave  func()   // lets go of the guest of one that runs

	absent []absentMount
	others map[portlayer.VolumeID]other // those that were needed
}

// other is the machine of another container.
type other struct {
	client   *guest.Client
	source   guest.Source // of the volume
	readOnly bool
	leave    func()
}

// spot is a place in one of the machines.
type spot struct {
	guest.Place
	client *guest.Client
	at     string       // of an absent mount: its Target
	apart  []string     // paths of the place where other mounts of the container are
	mount  *absentMount // nil: in the container's own machine
	other  other
}

// openFiles finds or boots a machine that has the container's files. close has to follow.
func (s *Service) openFiles(ctx context.Context, ref string) (*files, error) {
	u, err := s.find(ref)
	if err != nil {
		return nil, err
	}
	f := &files{s: s, ref: ref, others: map[portlayer.VolumeID]other{}}
	for {
		snap := u.snapshot()
		f.c = snap.container
		if snap.run != nil {
			if f.own, f.leave, err = u.look(ctx, snap.run); err == nil {
				f.run = snap.run
				return f, nil
			}
			if !ends(snap.run) {
				return nil, err
			}
			continue // it has ended just now
		}
		err := u.ask(ctx, func() error {
			if u.run != nil {
				return nil
			}
			f.served, err = u.serve()
			f.c = u.c
			return err
		})
		if err != nil {
			return nil, fault.Wrap("reach the files of container", ref, err)
		}
		if f.served != nil {
			f.own, f.absent = f.served.client, f.served.absent
			return f, nil
		}
	}
}

// runEnds is how long it takes at most to see that a machine has ended whose guest says so, or does not answer.
const runEnds = offLimit + killGrace

// ends waits for the end of a run whose guest has said that its process has ended, or has gone.
func ends(r *run) bool {
	limit := time.NewTimer(runEnds)
	defer limit.Stop()
	select {
	case <-r.ended:
		return true
	case <-limit.C:
		return false
	}
}

// close lets go of the machines.
func (f *files) close() {
	for _, o := range f.others {
		o.leave()
	}
	if f.served != nil {
		f.served.leave()
	}
	if f.leave != nil {
		f.leave()
	}
}

// reach finds the machine of whoever holds an absent mount's volume.
func (f *files) reach(ctx context.Context, m *absentMount) (other, error) {
	if o, ok := f.others[m.ID()]; ok {
		return o, nil
	}
	v, err := f.s.o.Volumes.Get(ctx, m.ID())
	if err != nil {
		return other{}, err
	}
	o := other{source: v.Source, leave: func() {}}
	for _, a := range v.Attached {
		u := f.s.unitOf(a.Container)
		if u == nil {
			continue
		}
		o.readOnly = a.ReadOnly
		if r := u.snapshot().run; r != nil {
			o.client, err = r.talk(ctx)
		} else if served := u.serving.Load(); served != nil && served.enter() {
			o.client, o.leave = served.client, served.leave
		} else {
			continue
		}
		if err != nil {
			return other{}, err
		}
		f.others[m.ID()] = o
		return o, nil
	}
	return other{}, fault.New(fault.InUse, "volume %s, mounted at %s, was with container %s and is not any more: try again", m.Volume, m.Target, f.s.nameOf(m.holder))
}

// below gives the Targets below dir, but not those below another of them.
func below(dir string, targets []string) (outer []string) {
	targets = slices.Sorted(slices.Values(targets))
	for _, t := range targets {
		under := func(d string) bool { return strings.HasPrefix(t, strings.TrimSuffix(d, "/")+"/") }
		if under(dir) && !slices.ContainsFunc(outer, under) {
			outer = append(outer, t)
		}
	}
	return outer
}

// targets are those of the container's volumes.
func (f *files) targets() (all []string) {
	for _, m := range f.c.Spec.Mounts {
		if m.Kind == portlayer.VolumeMount {
			all = append(all, m.Target)
		}
	}
	return all
}

func (f *files) absentAt(target string) *absentMount {
	for i := range f.absent {
		if f.absent[i].Target == target {
			return &f.absent[i]
		}
	}
	return nil
}

// away is the spot of a path below an absent mount.
func (f *files) away(ctx context.Context, m *absentMount, rest string) (spot, error) {
	o, err := f.reach(ctx, m)
	if err != nil {
		return spot{}, err
	}
	p := spot{Place: guest.Place{Source: o.source, Sub: m.Subpath, Path: guest.Path(rest)}, client: o.client, at: m.Target, mount: m, other: o}
	for _, t := range below(m.Target, f.targets()) {
		p.apart = append(p.apart, strings.TrimPrefix(t, strings.TrimSuffix(m.Target, "/")))
	}
	return p, nil
}

// spot is where a path of the container is, as far as its text says: it leads to another where a link does.
func (f *files) spot(ctx context.Context, p string) (spot, error) {
	nearest := ""
	for _, t := range f.targets() {
		if strings.HasPrefix(p+"/", t+"/") && len(t) > len(nearest) {
			nearest = t
		}
	}
	if nearest == "" || !slices.ContainsFunc(f.absent, func(m absentMount) bool { return strings.HasPrefix(p+"/", m.Target+"/") }) {
		return spot{Place: guest.Place{Path: guest.Path(p)}, client: f.own}, nil
	}
	rest := strings.TrimPrefix(p, nearest)
	if m := f.absentAt(nearest); m != nil {
		return f.away(ctx, m, rest)
	}
	return spot{Place: guest.Place{Mount: nearest, Path: guest.Path(rest)}, client: f.own}, nil
}

// maxHops bounds the ways from one machine to another on one path: path_resolution(7)'s bound for links, since each takes one or a mount point.
const maxHops = 40

// locate finds a path: where it is, with the spot's Path as the guest knows it, and what it is.
func (f *files) locate(ctx context.Context, p string, follow bool, user string) (spot, guest.Located, error) {
	// The whole path goes to the container's own machine first: it knows the links on the way to every mount.
	at := spot{Place: guest.Place{Path: guest.Path(p)}, client: f.own}
	var ids guest.Located
	for range maxHops {
		r := guest.StatRequest{Place: at.Place, Follow: follow, Apart: at.apart, At: at.at}
		l, err := at.client.Stat(ctx, r)
		switch {
		case fault.Is(err, fault.NotFound):
			return spot{}, l, fault.New(fault.NotFound, "Could not find the file %s in container %s", p, f.ref)
		case err != nil:
			return spot{}, l, err
		case l.Absent != "":
			m := f.absentAt(l.Absent)
			if m == nil {
				return spot{}, l, fault.New(fault.Internal, "the guest says that a mount at %s is absent, and it is not", l.Absent)
			}
			at, err = f.away(ctx, m, string(l.Elsewhere))
		case l.Elsewhere != "":
			at, err = f.spot(ctx, string(l.Elsewhere))
		default:
			l.Stat.Name = guest.Path(path.Base(path.Clean(p)))
			at.Mount, at.Path = "", l.Path
			if user != "" {
				ids, err = f.own.Stat(ctx, guest.StatRequest{Place: guest.Place{Path: "/"}, User: user})
				l.UID, l.GID = ids.UID, ids.GID
			}
			return at, l, err
		}
		if err != nil {
			return spot{}, l, err
		}
	}
	return spot{}, guest.Located{}, fault.New(fault.Invalid, "%s: too many levels of symbolic links", p)
}

// located opens a container's files and finds a path. A container that ends meanwhile is asked again as one that has ended.
func (s *Service) located(ctx context.Context, ref, p string, follow bool, user func(portlayer.ContainerSpec) string) (*files, spot, guest.Located, error) {
	for {
		f, err := s.openFiles(ctx, ref)
		if err != nil {
			return nil, spot{}, guest.Located{}, err
		}
		at, l, err := f.locate(ctx, p, follow, user(f.c.Spec))
		if err == nil {
			return f, at, l, nil
		}
		run := f.run
		f.close()
		if run == nil || !fault.Is(err, fault.Conflict) && !fault.Is(err, fault.Unavailable) || ctx.Err() != nil || !ends(run) {
			return nil, spot{}, l, err
		}
	}
}

// cleanPath is a path of a container as Docker's engine takes it: below "/", without "..", with a slash or "/." at its end if it has that.
func cleanPath(p string) string {
	clean := path.Join("/", p)
	switch {
	case p == "." || strings.HasSuffix(p, "/."):
		return strings.TrimSuffix(clean, "/") + "/."
	case strings.HasSuffix(p, "/") && clean != "/":
		return clean + "/"
	}
	return clean
}

func nobody(portlayer.ContainerSpec) string { return "" }

// StatPath is portlayer.Containers.StatPath.
func (s *Service) StatPath(ctx context.Context, ref, p string) (guest.PathStat, error) {
	f, _, l, err := s.located(ctx, ref, cleanPath(p), false, nobody)
	if err != nil {
		return guest.PathStat{}, err
	}
	defer f.close()
	return l.Stat, nil
}

// CopyOut is portlayer.Containers.CopyOut.
func (s *Service) CopyOut(ctx context.Context, ref, p string, begin func(guest.PathStat) (io.Writer, error)) error {
	p = cleanPath(p)
	f, at, l, err := s.located(ctx, ref, p, false, nobody)
	if err != nil {
		return err
	}
	defer f.close()
	w, err := begin(l.Stat)
	if err != nil {
		return err
	}
	s.publish(f.c, "archive-path")
	name := path.Base(p)
	switch {
	case strings.HasSuffix(p, "/."):
		name = "."
	case p == "/":
		name = ""
	}
	if err := f.archive(ctx, at, name, w); err != nil {
		return err
	}
	_, err = w.Write(make([]byte, endOfArchive))
	return err
}

// endOfArchive is the two blocks of zeros at the end of a tar (POSIX pax).
const endOfArchive = 2 * 512

// archive writes the tree at a spot, and of each mount below it that another machine has, after it. There is no end of the archive.
func (f *files) archive(ctx context.Context, at spot, name string, w io.Writer) error {
	// What is below the spot of what is apart, and what that is called.
	root := path.Join("/", string(at.Path))
	parts := map[string]string{} // Target to name
	for _, a := range at.apart {
		if rest, ok := strings.CutPrefix(a, strings.TrimSuffix(root, "/")+"/"); ok {
			parts[at.at+a] = name + "/" + rest
		}
	}
	skipped, err := at.client.Archive(ctx, guest.ArchiveRequest{Place: at.Place, Name: guest.Path(name), Skip: at.apart, Open: true}, func(data []byte) error {
		_, err := w.Write(data)
		return err
	})
	if err != nil {
		return err
	}
	for _, sk := range skipped {
		parts[sk.Target] = string(sk.Name)
	}
	for _, target := range slices.Sorted(maps.Keys(parts)) {
		next := spot{Place: guest.Place{Mount: target, Path: "/"}, client: f.own}
		if m := f.absentAt(target); m != nil {
			if next, err = f.away(ctx, m, "/"); err != nil {
				return err
			}
		}
		if err := f.archive(ctx, next, parts[target], w); err != nil {
			return err
		}
	}
	return nil
}

// CopyIn is portlayer.Containers.CopyIn.
func (s *Service) CopyIn(ctx context.Context, ref, p string, archive io.Reader, o portlayer.CopyOptions) error {
	user := nobody
	if o.Owned {
		user = func(spec portlayer.ContainerSpec) string { return spec.Process.User }
	}
	p = cleanPath(p)
	f, at, l, err := s.located(ctx, ref, p, true, user)
	if err != nil {
		return err
	}
	defer f.close()
	switch {
	case !l.Stat.Mode.IsDir():
		return fault.New(fault.Invalid, "extraction point is not a directory")
	case at.mount != nil && at.mount.ReadOnly, at.mount == nil && l.ReadOnly && l.Mounted:
		return fault.New(fault.Denied, "mounted volume is marked read-only")
	case at.mount == nil && l.ReadOnly:
		return fault.New(fault.Denied, "container rootfs is marked read-only")
	case at.mount != nil && (at.other.readOnly || l.ReadOnly):
		return fault.New(fault.InUse, "volume %s is with container %s, which has it mounted read-only; a disk has either one writer or readers: stop %[2]s first", at.mount.Volume, f.s.nameOf(at.mount.holder))
	}
	r := guest.ExtractRequest{Place: at.Place, NoOverwrite: o.NoOverwrite, Apart: at.apart}
	if o.Owned && f.c.Spec.Process.User != "" {
		r.Owner = &guest.OwnerIDs{UID: l.UID, GID: l.GID}
	}
	if err := at.client.Extract(ctx, r, archive); err != nil {
		if fault.Is(err, fault.Unavailable) || fault.Is(err, fault.InUse) || errors.Is(err, context.Canceled) {
			return err
		}
		return fault.As(fault.KindOf(err), fmt.Errorf("%w: %w", portlayer.ErrArchive, err))
	}
	s.publish(f.c, "extract-to-dir")
	return nil
}
