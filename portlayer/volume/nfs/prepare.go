package nfs

import (
	"context"
	"crypto/rand"
	"encoding/hex"
	"encoding/json"
	"path"
	"strings"
	"time"

	"vch/internal/fault"
	"vch/internal/nfsclient"
	"vch/portlayer"
)

// What is neither a volume nor its metadata yet, or any more, has a name that no volume can have: the mark, the id of the VCH that made it, and some random digits.
const (
	makingMark   = ".making-"
	removingMark = ".removing-"
	probeMark    = ".probe-"
)

// abandoned is how old a thing of another VCH's has to be, by the server's clock, to be taken for left behind.
const abandoned = 24 * time.Hour

// temporary is a new name with a mark.
func (s *Store) temporary(mark string) string {
	var b [8]byte
	rand.Read(b[:]) // never fails (crypto/rand)
	return mark + s.o.VCH + "-" + hex.EncodeToString(b[:])
}

// prepare reaches the export, once, and sees that it has what the store needs. s.looking is held.
func (s *Store) prepare(ctx context.Context) error {
	s.mu.Lock()
	e, prepared := s.export, s.prepared
	s.mu.Unlock()
	if prepared {
		return nil
	}
	if e == nil {
		o := s.o.Location.Options
		var err error
		if e, err = s.o.Open(ctx, o.UID, o.GID); err != nil {
			return err
		}
		s.mu.Lock()
		s.export = e
		s.mu.Unlock()
	}
	if err := s.makeReady(ctx, e); err != nil {
		return err
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	s.prepared = true
	return nil
}

// makeReady makes the store's directories, proves that they can be written, and takes away what this VCH has left.
func (s *Store) makeReady(ctx context.Context, e Export) error {
	if s.o.Location.Options.ReadOnly {
		if _, err := e.Stat(ctx, metadataDir); fault.Is(err, fault.NotFound) {
			return fault.New(fault.Unavailable, "%s on server %s holds no volumes that another store has published; open it without ro first, and make or adopt some", s.o.Location.Path, s.o.Location.Host)
		} else if err != nil {
			return err
		}
		return nil
	}
	for _, dir := range []string{volumesDir, metadataDir} {
		if _, err := e.Mkdir(ctx, dir, 0o755); err != nil && !hasReason(err, nfsclient.Exists) {
			if _, serr := e.Stat(ctx, dir); serr != nil { // one who may not make it may still use it
				return err
			}
		}
	}
	probe := path.Join(metadataDir, s.temporary(probeMark))
	a, err := e.Mkdir(ctx, probe, 0o700)
	if err != nil {
		return err
	}
	if err := e.Rmdir(ctx, probe); err != nil {
		return err
	}
	if err := s.checkSquash(ctx, a); err != nil {
		return err
	}
	return s.clear(ctx, e)
}

// checkSquash compares what the administrator says the export does with users with what it did. made is what the store's user has made.
func (s *Store) checkSquash(ctx context.Context, made nfsclient.Attr) error {
	o := s.o.Location.Options
	if o.Squash == SquashUnsaid {
		return nil
	}
	is, err := s.squashOf(ctx, made)
	if err != nil {
		return err
	}
	if is != o.Squash {
		return fault.New(fault.Unavailable, "the store says squash=%s, and server %s does squash=%s at %s: export it otherwise, or correct the option", o.Squash, s.o.Location.Host, is, s.o.Location.Path)
	}
	return nil
}

// squashOf finds out what the export does with users: what one of them makes is his, or somebody else's.
func (s *Store) squashOf(ctx context.Context, made nfsclient.Attr) (Squash, error) {
	o := s.o.Location.Options
	if o.UID != 0 && made.UID != o.UID {
		return SquashAll, nil
	}
	if o.UID != 0 {
		root, err := s.o.Open(ctx, 0, 0)
		if err != nil {
			return SquashUnsaid, err
		}
		defer root.Close()
		probe := path.Join(metadataDir, s.temporary(probeMark))
		made, err = root.Mkdir(ctx, probe, 0o700)
		if hasReason(err, nfsclient.Denied) {
			return SquashRoot, nil
		}
		if err != nil {
			return SquashUnsaid, err
		}
		if err := root.Rmdir(ctx, probe); err != nil {
			return SquashUnsaid, err
		}
	}
	if made.UID == 0 {
		return SquashNone, nil
	}
	if o.Squash == SquashAll && o.UID == 0 { // of root alone, or of all: seen as root it is the same
		return SquashAll, nil
	}
	return SquashRoot, nil
}

// clear takes away what is half-made: this VCH's, which nobody is at any more, and what others have left long ago.
func (s *Store) clear(ctx context.Context, e Export) error {
	now, err := s.serverTime(ctx, e)
	if err != nil {
		return err
	}
	var stale []string
	err = e.ReadDir(ctx, metadataDir, func(page []nfsclient.Entry) error {
		for _, entry := range page {
			for _, mark := range []string{makingMark, probeMark} {
				rest, ok := strings.CutPrefix(entry.Name, mark)
				if ok && (strings.HasPrefix(rest, s.o.VCH+"-") || now.Sub(entry.Attr.Mtime) > abandoned) {
					stale = append(stale, entry.Name)
				}
			}
		}
		return nil
	})
	if err != nil {
		return err
	}
	for _, name := range stale {
		if err := s.unmake(ctx, e, path.Join(metadataDir, name)); err != nil {
			return err
		}
	}
	s.mu.Lock()
	s.left = true // it may be
	s.mu.Unlock()
	s.sweepSoon(ctx, e)
	return nil
}

// serverTime is the time by the server's clock: that of what was changed there just now.
func (s *Store) serverTime(ctx context.Context, e Export) (time.Time, error) {
	a, err := e.Stat(ctx, metadataDir) // in which a probe was made
	return a.Mtime, err
}

// unmake takes away a volume that was being made, whose metadata is still in the directory at: what it has of content is empty, or not its own.
func (s *Store) unmake(ctx context.Context, e Export, at string) error {
	data, err := e.ReadFile(ctx, path.Join(at, recordFile), maxRecord)
	if err := ignore(err, nfsclient.NotFound, nfsclient.NotDir, nfsclient.TooLarge); err != nil {
		return err
	}
	var rec record
	if json.Unmarshal(data, &rec) == nil && volumeName(rec.Name) && rec.At == "" {
		_, err := e.Stat(ctx, path.Join(metadataDir, string(rec.Name)))
		if hasReason(err, nfsclient.NotFound) {
			err = e.Rmdir(ctx, rec.content(rec.Name))
		}
		if err != nil && !hasReason(err, nfsclient.NotFound) && !hasReason(err, nfsclient.NotEmpty) {
			return err
		}
	}
	if err := e.RemoveAll(ctx, at); err != nil && !hasReason(err, nfsclient.NotFound) {
		return err
	}
	return nil
}

// sweepSoon takes away what removals have left, and waits for that as long as the server has for what is small. What takes longer, and what fails, goes on in the background.
func (s *Store) sweepSoon(ctx context.Context, e Export) {
	done := make(chan struct{})
	s.work.Go(func() {
		defer close(done)
		s.sweep(e)
	})
	late := time.NewTimer(s.o.Timeout)
	defer late.Stop()
	select {
	case <-done:
	case <-late.C:
	case <-ctx.Done():
	}
}

// sweep takes away what removals have left: this VCH's, and what others left long ago. What fails is tried again in the background.
func (s *Store) sweep(e Export) {
	s.sweeping.Lock()
	defer s.sweeping.Unlock()
	s.mu.Lock()
	left := s.left
	s.left = false
	s.mu.Unlock()
	if !left || s.ctx.Err() != nil {
		return
	}
	if err := s.sweepAll(s.ctx, e); err != nil {
		s.o.Log.Debug("what removals have left is there still; trying again", "store", string(s.o.Name), "err", err)
		s.mu.Lock()
		defer s.mu.Unlock()
		s.left = true
		s.tend()
	}
}

func (s *Store) sweepAll(ctx context.Context, e Export) error {
	now, err := s.serverTime(ctx, e)
	if err != nil {
		return err
	}
	removed, err := s.stale(ctx, e, metadataDir, now)
	if err != nil {
		return err
	}
	for _, name := range removed { // what a removal was cut off at
		if err := s.takeOut(ctx, e, name, ""); err != nil {
			return err
		}
	}
	contents, err := s.stale(ctx, e, volumesDir, now)
	if err != nil {
		return err
	}
	for _, list := range []struct {
		dir   string
		names []string
	}{{volumesDir, contents}, {metadataDir, removed}} {
		for _, name := range list.names {
			if err := ignore(e.RemoveAll(ctx, path.Join(list.dir, name)), nfsclient.NotFound); err != nil {
				return err
			}
		}
	}
	return nil
}

// stale are the entries of a directory that removals have left.
func (s *Store) stale(ctx context.Context, e Export, dir string, now time.Time) (names []string, err error) {
	err = e.ReadDir(ctx, dir, func(page []nfsclient.Entry) error {
		for _, entry := range page {
			rest, ok := strings.CutPrefix(entry.Name, removingMark)
			if ok && (strings.HasPrefix(rest, s.o.VCH+"-") || now.Sub(entry.Attr.Mtime) > abandoned) {
				names = append(names, entry.Name)
			}
		}
		return nil
	})
	return names, err
}

// takeOut gives the content of a volume whose metadata has become metadata/<removed> the same name below volumes, from where it is removed. Where a volume of its name is there by
// now, that has the content's place. name is the volume's, for one whose record cannot be read; "": it is not known, and what it had stays for the administrator.
func (s *Store) takeOut(ctx context.Context, e Export, removed string, name portlayer.VolumeName) error {
	data, err := e.ReadFile(ctx, path.Join(metadataDir, removed, recordFile), maxRecord)
	if err := ignore(err, nfsclient.NotFound, nfsclient.NotDir, nfsclient.IsDir, nfsclient.TooLarge); err != nil {
		return err
	}
	var rec record
	if json.Unmarshal(data, &rec) != nil || !rec.good() {
		rec = record{Name: name}
	}
	if !volumeName(rec.Name) {
		return nil
	}
	_, err = e.Stat(ctx, path.Join(metadataDir, string(rec.Name)))
	switch {
	case err == nil && rec.At == "":
		return nil
	case err != nil && !hasReason(err, nfsclient.NotFound):
		return err
	}
	return ignore(e.Rename(ctx, rec.content(rec.Name), path.Join(volumesDir, removed)), nfsclient.NotFound, nfsclient.Exists, nfsclient.NotEmpty)
}

func hasReason(err error, r nfsclient.Reason) bool {
	is, ok := nfsclient.ReasonOf(err)
	return ok && is == r
}

func ignore(err error, reasons ...nfsclient.Reason) error {
	for _, r := range reasons {
		if hasReason(err, r) {
			return nil
		}
	}
	return err
}
