package vmdk

import (
	"context"
	"encoding/json"
	"strings"
	"time"

	"vch/internal/atonce"
	"vch/internal/fault"
	"vch/portlayer"
)

// recordFile describes a volume, beside its disk.
const recordFile = "volume.json"

// format is the version of record that this code writes, and the newest that it reads.
const format = 1

// record is what volume.json holds.
type record struct {
	Format  int               `json:"format"`
	Driver  string            `json:"driver"` // that made it; a copied store may have another
	Label   portlayer.Label   `json:"label"`  // md5 of "store/name" at the making; what the disk's file system is called for good
	Size    portlayer.Bytes   `json:"size"`
	IOPS    int64             `json:"iops,omitempty"` // at most, a second; 0: no bound
	BPS     portlayer.Bytes   `json:"bps,omitempty"`  // at most, a second; 0: no bound
	Options map[string]string `json:"options,omitempty"`
	Labels  map[string]string `json:"labels,omitempty"`
	Created time.Time         `json:"created"`
	Maker   string            `json:"maker,omitempty"`
	VCH     string            `json:"vch,omitempty"`    // id of the VCH that made it
	Was     []portlayer.Label `json:"was,omitempty"`    // what its file system may be called instead of label
	Making  bool              `json:"making,omitempty"` // the disk is not ready: nobody has used it, and it may go
}

// state is what is found where a volume should be.
//
//	absent ──────────────────────CreateDir, with an empty disk─────────────────▶ whole
//	absent ──MakeDir──▶ unfinished ──volume.json (making), copy, volume.json──▶ whole
//	   ◀──────────────────────────RemoveDir, from any────────────────────────────┘
type state int

const (
	absent     state = iota // nothing
	unfinished              // an interrupted make, with nothing in it that anybody has used
	whole                   // a volume
	damaged                 // a volume that cannot be used; err says why
	unknown                 // it cannot be told; err says why
)

// read finds out what is in the directory of volume name, without looking at the disk. err is nil but for damaged and unknown. The volume's
// lock is held.
func (s *Store) read(ctx context.Context, name portlayer.VolumeName) (rec record, st state, err error) {
	data, err := s.o.Disks.ReadFile(ctx, s.record(name))
	switch {
	case fault.Is(err, fault.NotFound):
		st, err = s.withoutRecord(ctx, name)
		return rec, st, err
	case fault.Is(err, fault.Unavailable):
		return rec, unknown, s.blame(ctx, err)
	case err != nil:
		st, err = s.illegible(ctx, name, err)
		return rec, st, err
	}
	if err := json.Unmarshal(data, &rec); err != nil {
		return rec, damaged, s.damage(name, "%s is not readable: %w", recordFile, err)
	}
	switch {
	case rec.Format > format:
		return rec, unknown, fault.New(fault.Conflict, "volume %s in store %s was written by a newer vch (format %d, this one knows %d); use that one", name, s.o.Name, rec.Format, format)
	case rec.Making:
		return rec, unfinished, nil
	case rec.Format < 1 || rec.Size <= 0 || !isLabel(rec.Label):
		return rec, damaged, s.damage(name, "%s lacks its format, size or label", recordFile)
	}
	return rec, whole, nil
}

// isLabel reports whether l is 32 lower-case hex digits.
func isLabel(l portlayer.Label) bool {
	return len(l) == 32 && strings.Trim(string(l), "0123456789abcdef") == ""
}

// withoutRecord tells a make that was interrupted at its very beginning from a volume that lost its volume.json.
func (s *Store) withoutRecord(ctx context.Context, name portlayer.VolumeName) (state, error) {
	files, err := s.o.Disks.List(ctx, s.dir(name))
	if fault.Is(err, fault.NotFound) {
		if gone := s.reach(ctx); gone != nil {
			return unknown, gone
		}
		return absent, nil
	}
	if err != nil {
		return unknown, s.blame(ctx, err)
	}
	for _, f := range files {
		if !strings.HasPrefix(f, ".") { // others are left-overs of an atomic write
			return damaged, s.damage(name, "%s is missing beside %s", recordFile, f)
		}
	}
	return unfinished, nil
}

// illegible tells a volume whose volume.json cannot be read from what is no volume's directory at all: somebody's file.
func (s *Store) illegible(ctx context.Context, name portlayer.VolumeName, why error) (state, error) {
	if gone := s.reach(ctx); gone != nil {
		return unknown, gone
	}
	if _, err := s.o.Disks.List(ctx, s.dir(name)); err != nil {
		return unknown, fault.New(fault.Conflict, "%s in volume store %s is not a volume's directory, or cannot be read; move it elsewhere: %w", s.dir(name), s.o.Name, err)
	}
	return damaged, s.damage(name, "%s cannot be read: %w", recordFile, why)
}

// damage is the error for a volume whose files are not what they were.
func (s *Store) damage(name portlayer.VolumeName, text string, args ...any) error {
	why := fault.New(fault.Conflict, text, args...)
	return fault.New(fault.Conflict, "volume %s in store %s is damaged: %w (files in %s; restore them from a backup, or remove the volume)", name, s.o.Name, why, s.dir(name))
}

// check looks at the disk of a whole volume, and gives the volume as it is now.
func (s *Store) check(ctx context.Context, name portlayer.VolumeName, rec record) (portlayer.Volume, portlayer.DiskInfo, error) {
	info, err := s.o.Disks.Stat(ctx, s.disk(name))
	return s.checked(ctx, name, rec, info, err)
}

// checked is check with what Stat said.
func (s *Store) checked(ctx context.Context, name portlayer.VolumeName, rec record, info portlayer.DiskInfo, err error) (portlayer.Volume, portlayer.DiskInfo, error) {
	switch {
	case fault.Is(err, fault.NotFound), fault.Is(err, fault.Conflict), fault.Is(err, fault.Invalid):
		return portlayer.Volume{}, info, s.blame(ctx, s.damage(name, "%w", err))
	case err != nil:
		return portlayer.Volume{}, info, s.blame(ctx, fault.Wrap("read volume", string(name), err))
	case info.Size < rec.Size:
		return portlayer.Volume{}, info, s.damage(name, "its disk has %d bytes, and %s says %d", info.Size, recordFile, rec.Size)
	}
	return s.volume(name, rec, info.Size), info, nil
}

// volume is the volume that rec describes, whose disk has capacity bytes.
func (s *Store) volume(name portlayer.VolumeName, rec record, capacity portlayer.Bytes) portlayer.Volume {
	return portlayer.Volume{
		Name:     name,
		Store:    s.o.Name,
		Driver:   s.o.Driver,
		Label:    rec.Label,
		Source:   rec.Label.Source(),
		Capacity: capacity,
		Throttle: portlayer.Throttle{IOPS: rec.IOPS, BPS: rec.BPS},
		Options:  rec.Options,
		Labels:   rec.Labels,
		Created:  rec.Created,
		Maker:    rec.Maker,
		VCH:      rec.VCH,
		Was:      rec.Was,
	}
}

// load is read and check for callers to whom an unfinished volume is none: NotFound.
func (s *Store) load(ctx context.Context, name portlayer.VolumeName) (portlayer.Volume, portlayer.DiskInfo, error) {
	look := s.look(ctx, name)[0]
	if vol, info, ok := s.again(name, look); ok {
		return vol, info, nil
	}
	none := portlayer.Volume{}
	if look.Gone {
		if gone := s.reach(ctx); gone != nil {
			return none, portlayer.DiskInfo{}, gone
		}
		s.miss(name)
		return none, portlayer.DiskInfo{}, s.missing(name)
	}
	// What each of the two says is of no use without the other, and a medium answers both as soon as one.
	var rec record
	var st state
	var info portlayer.DiskInfo
	var err, derr error
	questions := []func(){
		func() { rec, st, err = s.read(ctx, name) },
		func() { info, derr = s.o.Disks.Stat(ctx, s.disk(name)) },
	}
	atonce.Do(len(questions), len(questions), func(i int) { questions[i]() })
	switch {
	case err != nil:
		return none, portlayer.DiskInfo{}, err
	case st != whole:
		return none, portlayer.DiskInfo{}, s.missing(name)
	}
	vol, info, err := s.checked(ctx, name, rec, info, derr)
	if err == nil {
		s.remember(look, vol, true)
	}
	return vol, info, err
}

// listed is load for a list, which has looked at all volumes at once and not read this one as it was then.
func (s *Store) listed(ctx context.Context, name portlayer.VolumeName, look portlayer.Look) (portlayer.Volume, portlayer.DiskInfo, error) {
	rec, st, err := s.read(ctx, name)
	switch {
	case err != nil:
		return portlayer.Volume{}, portlayer.DiskInfo{}, err
	case st != whole:
		return portlayer.Volume{}, portlayer.DiskInfo{}, s.missing(name)
	}
	return s.believe(ctx, name, rec, look)
}

// believe is check, but for a disk whose size a look tells: of many, each would be some questions. Who comes to use it looks at the disk itself.
func (s *Store) believe(ctx context.Context, name portlayer.VolumeName, rec record, look portlayer.Look) (vol portlayer.Volume, info portlayer.DiskInfo, err error) {
	told := look.Mark != [9]uint64{} && look.Size >= rec.Size
	if told {
		info = portlayer.DiskInfo{Size: look.Size, Allocated: look.Allocated}
		vol = s.volume(name, rec, info.Size)
	} else if vol, info, err = s.check(ctx, name, rec); err != nil {
		return vol, info, err
	}
	s.remember(look, vol, !told)
	return vol, info, nil
}

func (s *Store) missing(name portlayer.VolumeName) error {
	return fault.New(fault.NotFound, "no such volume: %s in store %s", name, s.o.Name)
}
