package nfs

import (
	"context"
	"encoding/json"
	"io/fs"
	"path"
	"time"

	"vch/internal/fault"
	"vch/internal/nfsclient"
	"vch/internal/pause"
	"vch/portlayer"
)

// recordFile describes a volume, in its metadata directory.
const recordFile = "volume.json"

const (
	format = 1
	// maxRecord is more than a volume.json has, in bytes: what is longer is none.
	maxRecord = 1 << 20
)

// record is what volume.json holds.
type record struct {
	Format  int                  `json:"format"`
	Driver  string               `json:"driver"`
	Name    portlayer.VolumeName `json:"name"`         // as it was made, adopted or renamed: whose content it is once its directory has no volume's name any more
	At      string               `json:"at,omitempty"` // where the content is, below the export; "": volumes/<name>
	Options map[string]string    `json:"options,omitempty"`
	Labels  map[string]string    `json:"labels,omitempty"`
	Created time.Time            `json:"created"`
	Maker   string               `json:"maker,omitempty"`
	VCH     string               `json:"vch,omitempty"`
}

// content is where the content of a volume called name is, below the export.
func (r record) content(name portlayer.VolumeName) string {
	if r.At != "" {
		return r.At
	}
	return path.Join(volumesDir, string(name))
}

// good says whether a record of this format has what it should have.
func (r record) good() bool {
	return r.Format == format && !r.Created.IsZero() && volumeName(r.Name) && (r.At == "" || isBelow(r.At))
}

// renamed says whether the content of a volume is where its last name had it.
func (r record) renamed() bool {
	dir, was := path.Split(r.At)
	return path.Clean(dir) == volumesDir && volumeName(portlayer.VolumeName(was))
}

func metadataOf(name portlayer.VolumeName) string { return path.Join(metadataDir, string(name)) }

// isBelow says whether a directory is one below an export, written as nfsclient takes it.
func isBelow(dir string) bool { return fs.ValidPath(dir) && dir != "." }

func encode(rec record) ([]byte, error) {
	data, err := json.MarshalIndent(rec, "", "  ")
	return append(data, '\n'), err
}

// reads is how often a volume that looks damaged is looked at: it may be coming or going just now, by somebody else's hand.
const reads = 4

// read gives the record of a volume, which is NotFound if there is no metadata of it, and Conflict if that is damaged, or its content is missing.
func (s *Store) read(ctx context.Context, name portlayer.VolumeName) (rec record, err error) {
	for n := range reads {
		if n > 0 {
			if err := pause.For(ctx, time.Duration(n*n)*10*time.Millisecond); err != nil {
				return rec, err
			}
		}
		if rec, err = s.readOnce(ctx, name); !fault.Is(err, fault.Conflict) {
			break
		}
	}
	return rec, err
}

func (s *Store) readOnce(ctx context.Context, name portlayer.VolumeName) (rec record, err error) {
	rec, err = s.readRecord(ctx, name)
	if err != nil {
		return rec, err
	}
	rec.Name = name // a renaming may have been cut off
	var a nfsclient.Attr
	err = s.do(ctx, false, func(ctx context.Context, e Export) (err error) {
		if rec.renamed() { // its content may have moved before the record could say so
			own := rec
			own.At = ""
			if a, err = e.Stat(ctx, own.content(name)); !hasReason(err, nfsclient.NotFound) {
				rec = own
				return err
			}
		}
		a, err = e.Stat(ctx, rec.content(name))
		return err
	})
	switch {
	case hasReason(err, nfsclient.NotFound):
		return rec, s.damage(name, "its directory %s is missing", rec.content(name))
	case hasReason(err, nfsclient.NotDir), err == nil && a.Type != nfsclient.Dir:
		return rec, s.damage(name, "%s is no directory", rec.content(name))
	}
	return rec, s.said(err)
}

// readRecord is read, whatever has become of the content.
func (s *Store) readRecord(ctx context.Context, name portlayer.VolumeName) (rec record, err error) {
	file := path.Join(metadataOf(name), recordFile)
	var data []byte
	err = s.do(ctx, false, func(ctx context.Context, e Export) (err error) {
		data, err = e.ReadFile(ctx, file, maxRecord)
		return err
	})
	switch {
	case hasReason(err, nfsclient.NotFound), hasReason(err, nfsclient.NotDir):
		return rec, s.noRecord(ctx, name)
	case hasReason(err, nfsclient.TooLarge), hasReason(err, nfsclient.IsDir), hasReason(err, nfsclient.Inval):
		return rec, s.damage(name, "%s is no file that vch has written: %w", recordFile, err)
	case err != nil:
		return rec, s.said(err)
	}
	switch err := json.Unmarshal(data, &rec); {
	case err != nil:
		return rec, s.damage(name, "%s cannot be read: %w", recordFile, err)
	case rec.Format > format:
		return rec, fault.New(fault.Conflict, "volume %s in store %s was written by a newer vch (format %d, this one knows %d); use that one", name, s.o.Name, rec.Format, format)
	case !rec.good():
		return rec, s.damage(name, "%s lacks what it should have", recordFile)
	}
	return rec, nil
}

// noRecord tells a volume that is not there from one whose volume.json is not, and from a store that is not.
func (s *Store) noRecord(ctx context.Context, name portlayer.VolumeName) error {
	var there bool
	err := s.do(ctx, false, func(ctx context.Context, e Export) error {
		_, err := e.Stat(ctx, metadataOf(name))
		if there = err == nil; there || !hasReason(err, nfsclient.NotFound) {
			return err
		}
		_, err = e.Stat(ctx, metadataDir)
		return err
	})
	switch {
	case hasReason(err, nfsclient.NotFound), hasReason(err, nfsclient.NotDir):
		return s.gone(ctx)
	case err != nil:
		return s.said(err)
	case there:
		return s.damage(name, "%s is missing", recordFile)
	}
	return s.missing(name)
}

// gone is why a store whose metadata is not there is degraded.
func (s *Store) gone(ctx context.Context) error {
	if err := s.look(ctx); err != nil {
		return err
	}
	return s.degraded("its directory " + metadataDir + " was missing for a moment")
}

// damage is the error for a volume whose files are not what they were.
func (s *Store) damage(name portlayer.VolumeName, text string, args ...any) error {
	why := fault.New(fault.Conflict, text, args...)
	return fault.New(fault.Conflict, "volume %s in store %s is damaged: %w (it is described in %s of %s; restore that from a backup, or remove the volume)",
		name, s.o.Name, why, metadataOf(name), s.Location())
}

// volume is the volume that rec describes.
func (s *Store) volume(name portlayer.VolumeName, rec record) portlayer.Volume {
	return portlayer.Volume{
		Name:    name,
		Store:   s.o.Name,
		Driver:  s.o.Driver,
		Label:   s.label(name),
		Source:  s.o.Location.source(rec.content(name)),
		Shared:  true,
		Options: rec.Options,
		Labels:  rec.Labels,
		Created: rec.Created,
		Maker:   rec.Maker,
		VCH:     rec.VCH,
	}
}
