package nfs

import (
	"context"
	"path"
	"strings"
	"time"

	"vch/internal/fault"
	"vch/internal/nfsclient"
	"vch/internal/undo"
	"vch/portlayer"
)

// Adopt is portlayer.DirectoryStore.Adopt.
func (s *Store) Adopt(ctx context.Context, spec portlayer.VolumeSpec, dir string) (vol portlayer.Volume, err error) {
	dir = strings.TrimPrefix(path.Clean("/"+strings.TrimPrefix(dir, s.o.Location.Path+"/")), "/")
	top, _, _ := strings.Cut(dir, "/")
	switch {
	case !isBelow(dir):
		return vol, fault.New(fault.Invalid, "name a directory below %s of %s: all of an export cannot be a volume of it", s.o.Location.Path, s.Location())
	case top == metadataDir || dir == volumesDir || strings.HasPrefix(path.Base(dir), "."):
		return vol, fault.New(fault.Invalid, "%s of %s is the store's own, or hidden; name another directory", dir, s.Location())
	case !volumeName(spec.Name):
		return vol, badName(spec.Name)
	}
	for _, name := range []string{"uid", "gid", "mode"} {
		if _, ok := spec.Options[name]; ok {
			return vol, fault.New(fault.Invalid, "%s is of new volumes' directories; one that is adopted stays as it is: leave the option out", name)
		}
	}
	leave, err := s.enter(ctx, spec.Name)
	if err != nil {
		return vol, err
	}
	defer leave()
	if err := s.writable("make", spec.Name); err != nil {
		return vol, err
	}
	if _, err := s.readRecord(ctx, spec.Name); err == nil {
		return vol, fault.New(fault.Conflict, "volume %s is in store %s already; give the directory's volume another name", spec.Name, s.o.Name)
	} else if !fault.Is(err, fault.NotFound) {
		return vol, err
	}
	s.placing.Lock() // two at once could take one directory, or one what a removal takes out
	defer s.placing.Unlock()
	if err := s.unowned(ctx, dir, ""); err != nil {
		return vol, err
	}
	var a nfsclient.Attr
	err = s.do(ctx, false, func(ctx context.Context, e Export) (err error) { a, err = e.Stat(ctx, dir); return err })
	switch {
	case hasReason(err, nfsclient.NotFound):
		return vol, fault.New(fault.NotFound, "there is no directory %s in %s", dir, s.Location())
	case hasReason(err, nfsclient.NotDir), err == nil && a.Type != nfsclient.Dir:
		return vol, fault.New(fault.Invalid, "%s in %s is no directory (or a link, which is not followed): name the directory itself", dir, s.Location())
	case err != nil:
		return vol, s.said(err)
	}
	rec := record{Format: format, Driver: s.o.Driver, Name: spec.Name, At: dir, Options: spec.Options, Labels: spec.Labels, Created: time.Now().UTC(), VCH: spec.VCH}
	if dir == path.Join(volumesDir, string(spec.Name)) {
		rec.At = ""
	} else if rec.renamed() { // it is another volume's place, and looks as if that had been renamed
		return vol, fault.New(fault.Invalid, "%s in %s can only be volume %s: name it so, or leave the name out", dir, s.Location(), path.Base(dir))
	}
	var back undo.Stack
	making := path.Join(metadataDir, s.temporary(makingMark))
	defer func() {
		if err != nil && back.Run(ctx) != nil {
			s.leftovers(making)
		}
	}()
	if err := s.stage(ctx, making, rec, &back); err != nil {
		return vol, s.said(err)
	}
	lost, err := s.publish(ctx, making, spec.Name)
	if err == nil && lost {
		err = fault.New(fault.Conflict, "volume %s is in store %s already; give the directory's volume another name", spec.Name, s.o.Name)
	}
	if err != nil {
		return vol, s.said(err)
	}
	back.Keep()
	return s.volume(spec.Name, rec), nil
}
