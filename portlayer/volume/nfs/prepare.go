package nfs

import (
	"context"
	"crypto/rand"
	"encoding/hex"
	"encoding/json"
	"errors"
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
	if o.Squash == SquashAll && (made.UID == o.UID || o.UID == 0) { // of root alone, or of all: from here it is the same
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
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, name := range stale {
		s.halfMade = append(s.halfMade, path.Join(metadataDir, name))
	}
	s.left = true // it may be
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
	if err := ignore(err, nfsclient.NotFound, nfsclient.NotDir, nfsclient.IsDir, nfsclient.Inval, nfsclient.TooLarge); err != nil {
		return err
	}
	var rec record
	if json.Unmarshal(data, &rec) == nil && volumeName(rec.Name) && rec.At == "" {
		leave, err := s.enter(ctx, rec.Name) // it may be made again just now
		if err != nil {
			return err
		}
		defer leave()
		_, err = e.Stat(ctx, path.Join(metadataDir, string(rec.Name)))
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
func (s *Store) sweepSoon(ctx context.Context) {
	late := time.NewTimer(s.o.Timeout)
	defer late.Stop()
	select {
	case <-s.sweep():
	case <-late.C:
	case <-ctx.Done():
	}
}

// sweep has taken away, in the background, what removals have left: this VCH's, and what others left long ago. done is closed when nobody is at it any more. What fails is tried again.
func (s *Store) sweep() (done <-chan struct{}) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.sweeping != nil {
		return s.sweeping // who is at it looks again before he ends
	}
	ended := make(chan struct{})
	if s.ctx.Err() != nil {
		close(ended)
		return ended
	}
	s.sweeping = ended
	s.work.Go(func() {
		s.mu.Lock()
		defer s.mu.Unlock()
		for err := error(nil); err == nil && (s.left || len(s.halfMade) > 0) && s.why == "" && s.export != nil && s.ctx.Err() == nil; {
			e, unmade := s.export, s.halfMade
			s.left, s.halfMade = false, nil
			s.mu.Unlock()
			unmade, err = s.sweepAll(s.ctx, e, unmade)
			s.mu.Lock()
			s.halfMade = append(unmade, s.halfMade...)
			s.swept(err)
		}
		s.sweeping = nil
		if s.left || len(s.halfMade) > 0 {
			s.tend()
		}
		close(ended)
	})
	return ended
}

// swept puts down how a sweep went, and says once why it cannot be done. s.mu is held.
func (s *Store) swept(err error) {
	if err == nil {
		s.trouble = ""
		return
	}
	s.left = true
	if why := s.explain(err); why != s.trouble && s.ctx.Err() == nil {
		s.trouble = why
		s.o.Log.Warn("what removed volumes have left cannot be taken away; trying again", "store", string(s.o.Name), "why", why)
	}
}

// sweepAll takes away what has not come to be, and what removals have left. What cannot be does not keep the rest; it gives back what of unmade is there still.
func (s *Store) sweepAll(ctx context.Context, e Export, unmade []string) (still []string, _ error) {
	var errs []error
	for _, at := range unmade {
		if err := s.unmake(ctx, e, at); err != nil {
			still, errs = append(still, at), append(errs, err)
		}
	}
	now, err := s.serverTime(ctx, e)
	if err != nil {
		return still, errors.Join(append(errs, err)...)
	}
	removed, err := s.stale(ctx, e, metadataDir, now)
	errs = append(errs, err)
	moved := map[string]bool{}
	for _, name := range removed { // what a removal was cut off at
		err := s.takeOut(ctx, e, name)
		moved[name] = err == nil
		errs = append(errs, err)
	}
	contents, err := s.stale(ctx, e, volumesDir, now)
	errs = append(errs, err)
	for _, name := range contents {
		if done, known := moved[name]; known && !done {
			continue
		}
		errs = append(errs, ignore(e.RemoveAll(ctx, path.Join(volumesDir, name)), nfsclient.NotFound))
	}
	return still, errors.Join(errs...)
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

// takeOut is moveOut by somebody else than who removes the volume.
func (s *Store) takeOut(ctx context.Context, e Export, removed string) error {
	rec, err := s.removedRecord(ctx, e, removed, "")
	if err != nil {
		return err
	}
	if volumeName(rec.Name) {
		leave, err := s.enter(ctx, rec.Name)
		if err != nil {
			return err
		}
		defer leave()
	}
	if err := s.moveOut(ctx, e, removed, rec); err != nil {
		return err
	}
	return s.dropRemoved(ctx, e, removed)
}

// dropRemoved takes away the metadata of a removed volume whose content is out: so that is never looked for again, whatever is in its place by then.
func (s *Store) dropRemoved(ctx context.Context, e Export, removed string) error {
	return ignore(e.RemoveAll(ctx, path.Join(metadataDir, removed)), nfsclient.NotFound)
}

// removedRecord is that of a volume whose metadata has become metadata/<removed>. name is the volume's, for one whose record cannot be read; "": it is not known, and what it had stays
// for the administrator.
func (s *Store) removedRecord(ctx context.Context, e Export, removed string, name portlayer.VolumeName) (record, error) {
	data, err := e.ReadFile(ctx, path.Join(metadataDir, removed, recordFile), maxRecord)
	if err := ignore(err, nfsclient.NotFound, nfsclient.NotDir, nfsclient.IsDir, nfsclient.Inval, nfsclient.TooLarge); err != nil {
		return record{}, err
	}
	var rec record
	if json.Unmarshal(data, &rec) != nil || !rec.good() {
		rec = record{Name: name}
	}
	return rec, nil
}

// moveOut gives the content of a volume whose metadata has become metadata/<removed>, and whose record is rec, the same name below volumes, from where it is removed. What is another
// volume's by then stays. The volume's name is held (enter).
func (s *Store) moveOut(ctx context.Context, e Export, removed string, rec record) error {
	if !volumeName(rec.Name) {
		return nil
	}
	out := path.Join(volumesDir, removed)
	if _, err := e.Stat(ctx, out); !hasReason(err, nfsclient.NotFound) {
		return err // nil: it was moved
	}
	own := rec
	own.At = ""
	if rec.renamed() { // its content may have moved before the record could say so
		if err := s.moveIfFree(ctx, e, own, out); !hasReason(err, nfsclient.NotFound) {
			return err
		}
	}
	if rec.At != "" {
		s.placing.Lock()
		defer s.placing.Unlock()
	}
	return ignore(s.moveIfFree(ctx, e, rec, out), nfsclient.NotFound)
}

// moveIfFree moves the content of a removed volume, where its place is not another's by now.
func (s *Store) moveIfFree(ctx context.Context, e Export, rec record, out string) error {
	at := rec.content(rec.Name)
	if _, err := e.Stat(ctx, at); err != nil {
		return err
	}
	if rec.At == "" {
		if _, err := e.Stat(ctx, metadataOf(rec.Name)); !hasReason(err, nfsclient.NotFound) {
			return err
		}
	} else {
		vols, err := s.records(ctx)
		if fault.Is(err, fault.Unavailable) {
			return err
		}
		if _, taken := owner(vols, at, ""); taken {
			return nil
		}
	}
	return ignore(e.Rename(ctx, at, out), nfsclient.Exists, nfsclient.NotEmpty)
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
