package vmdk

import (
	"context"
	"encoding/json"
	"errors"
	"slices"
	"time"

	"vch/internal/atonce"
	"vch/internal/fault"
	"vch/internal/undo"
	"vch/portlayer"
)

// A snapshot is a copy of the disk, in a directory of its own:
//
//	<volume>/snapshots/<snapshot>/<snapshot>.vmdk, <snapshot>-flat.vmdk, snapshot.json

// snapshotFile describes a snapshot, beside its disk.
const snapshotFile = "snapshot.json"

// snapshotRecord is what snapshot.json holds.
type snapshotRecord struct {
	Format  int               `json:"format"`
	Size    portlayer.Bytes   `json:"size"`
	Created time.Time         `json:"created"`
	Was     []portlayer.Label `json:"was"` // what its file system may be called
	Making  bool              `json:"making,omitempty"`
}

// snapshotsDir has the directories of a volume's snapshots.
const snapshotsDir = "snapshots"

// longSnapshot is the most bytes of a snapshot's name, which names files, too.
const longSnapshot = 128

func snapshotName(name string) bool { return len(name) <= longSnapshot && wordOf(name, "_.-") }

func (s *Store) snapshots(name portlayer.VolumeName) portlayer.DiskPath {
	return s.o.Disks.Join(s.dir(name), snapshotsDir)
}

func (s *Store) snapshotDir(name portlayer.VolumeName, snapshot string) portlayer.DiskPath {
	return s.o.Disks.Join(s.snapshots(name), snapshot)
}

func (s *Store) snapshotDisk(name portlayer.VolumeName, snapshot string) portlayer.DiskPath {
	return s.o.Disks.Join(s.snapshotDir(name, snapshot), fileOf(portlayer.VolumeName(snapshot)))
}

// readSnapshot is NotFound for one that is not there whole.
func (s *Store) readSnapshot(ctx context.Context, name portlayer.VolumeName, snapshot string) (rec snapshotRecord, err error) {
	missing := fault.New(fault.NotFound, "volume %s in store %s has no snapshot %s", name, s.o.Name, snapshot)
	if !snapshotName(snapshot) {
		return rec, missing
	}
	data, err := s.o.Disks.ReadFile(ctx, s.o.Disks.Join(s.snapshotDir(name, snapshot), snapshotFile))
	switch {
	case fault.Is(err, fault.NotFound):
		return rec, s.blame(ctx, missing)
	case err != nil:
		return rec, s.blame(ctx, err)
	}
	switch err := json.Unmarshal(data, &rec); {
	case err != nil:
		return rec, fault.New(fault.Conflict, "snapshot %s of volume %s is damaged: %s is not readable: %w", snapshot, name, snapshotFile, err)
	case rec.Format > format:
		return rec, fault.New(fault.Conflict, "snapshot %s of volume %s was written by a newer vch (format %d, this one knows %d); use that one", snapshot, name, rec.Format, format)
	case rec.Making:
		return rec, missing
	}
	return rec, nil
}

// Snapshot is portlayer.VolumeStore.Snapshot.
func (s *Store) Snapshot(ctx context.Context, name portlayer.VolumeName, snapshot string, progress portlayer.Progressed) (out portlayer.Snapshot, err error) {
	if !snapshotName(snapshot) {
		return out, fault.New(fault.Invalid, "snapshot name %q: a name begins with a letter or digit, holds letters, digits, _ . and - only, and has at most %d bytes", snapshot, longSnapshot)
	}
	leave, err := s.enter(ctx, name)
	if err != nil {
		return out, err
	}
	defer leave()
	if !volumeName(name) {
		return out, s.missing(name)
	}
	vol, _, err := s.load(ctx, name)
	if err != nil {
		return out, err
	}
	_, err = s.readSnapshot(ctx, name, snapshot)
	if err == nil {
		return out, fault.New(fault.Conflict, "volume %s has a snapshot %s already", name, snapshot)
	}
	if !fault.Is(err, fault.NotFound) {
		return out, err
	}
	d, dir := s.o.Disks, s.snapshotDir(name, snapshot)
	if err := d.RemoveDir(ctx, dir); err != nil { // of a try that was cut off
		return out, s.blame(ctx, err)
	}
	rec := snapshotRecord{Format: format, Size: vol.Capacity, Created: time.Now().UTC(), Was: append(slices.Clone(vol.Was), vol.Label), Making: true}
	var back undo.Stack
	defer func() {
		if err != nil {
			err = s.blame(ctx, errors.Join(fault.Wrap("make snapshot "+snapshot+" of volume", string(name), err), back.Run(ctx)))
		}
	}()
	back.Push(func(ctx context.Context) error { return d.RemoveDir(ctx, dir) })
	if err := d.MakeDir(ctx, dir); err != nil {
		return out, err
	}
	write := func() error {
		data, err := json.MarshalIndent(rec, "", "  ")
		if err != nil {
			return err
		}
		return d.WriteFile(ctx, d.Join(dir, snapshotFile), append(data, '\n'))
	}
	if err := write(); err != nil {
		return out, err
	}
	if err := d.Copy(ctx, s.disk(name), s.snapshotDisk(name, snapshot), progress); err != nil {
		return out, err
	}
	rec.Making = false
	if err := write(); err != nil {
		return out, err
	}
	return s.showSnapshot(ctx, name, snapshot, rec)
}

func (s *Store) showSnapshot(ctx context.Context, name portlayer.VolumeName, snapshot string, rec snapshotRecord) (portlayer.Snapshot, error) {
	info, err := s.o.Disks.Stat(ctx, s.snapshotDisk(name, snapshot))
	if err != nil {
		return portlayer.Snapshot{}, s.blame(ctx, fault.New(fault.Conflict, "snapshot %s of volume %s is damaged: %w", snapshot, name, err))
	}
	return portlayer.Snapshot{Name: snapshot, Created: rec.Created, Capacity: info.Size, Allocated: info.Allocated}, nil
}

// Snapshots is portlayer.VolumeStore.Snapshots. Damaged ones are left out and reported together in the error beside the good ones.
func (s *Store) Snapshots(ctx context.Context, name portlayer.VolumeName) ([]portlayer.Snapshot, error) {
	leave, err := s.enter(ctx, name)
	if err != nil {
		return nil, err
	}
	defer leave()
	if !volumeName(name) {
		return nil, s.missing(name)
	}
	var files, entries []string
	var lerr error
	questions := []func(){
		func() { _, _, err = s.load(ctx, name) },
		func() { files, lerr = s.o.Disks.List(ctx, s.dir(name)) }, // a directory that is missing is a doubt; one that is not in a list is none
	}
	atonce.Do(len(questions), len(questions), func(i int) { questions[i]() })
	if err != nil {
		return nil, err
	}
	list := []portlayer.Snapshot{}
	if lerr == nil && slices.Contains(files, snapshotsDir) {
		entries, lerr = s.o.Disks.List(ctx, s.snapshots(name))
	}
	if fault.Is(lerr, fault.NotFound) {
		return list, nil
	}
	if lerr != nil {
		return nil, s.blame(ctx, lerr)
	}
	var harm []error
	for _, entry := range entries {
		rec, err := s.readSnapshot(ctx, name, entry)
		if fault.Is(err, fault.NotFound) {
			continue
		}
		var shown portlayer.Snapshot
		if err == nil {
			shown, err = s.showSnapshot(ctx, name, entry, rec)
		}
		if err != nil {
			harm = append(harm, err)
			continue
		}
		list = append(list, shown)
	}
	slices.SortStableFunc(list, func(a, b portlayer.Snapshot) int { return a.Created.Compare(b.Created) })
	return list, errors.Join(harm...)
}

// cleanSnapshots removes what is provably the unfinished make of a snapshot: nobody would see it, and it takes room.
func (s *Store) cleanSnapshots(ctx context.Context, name portlayer.VolumeName) {
	entries, _ := s.o.Disks.List(ctx, s.snapshots(name))
	for _, entry := range entries {
		if !snapshotName(entry) {
			continue
		}
		var rec snapshotRecord
		data, err := s.o.Disks.ReadFile(ctx, s.o.Disks.Join(s.snapshotDir(name, entry), snapshotFile))
		if err == nil && json.Unmarshal(data, &rec) == nil && rec.Making {
			_ = s.o.Disks.RemoveDir(ctx, s.snapshotDir(name, entry)) // the next open tries again
		}
	}
}

// RemoveSnapshot is portlayer.VolumeStore.RemoveSnapshot. A damaged one can be removed, too.
func (s *Store) RemoveSnapshot(ctx context.Context, name portlayer.VolumeName, snapshot string) error {
	leave, err := s.enter(ctx, name)
	if err != nil {
		return err
	}
	defer leave()
	if !volumeName(name) {
		return s.missing(name)
	}
	if _, err := s.readSnapshot(ctx, name, snapshot); err != nil && !fault.Is(err, fault.Conflict) {
		return err
	}
	if err := s.o.Disks.RemoveDir(ctx, s.snapshotDir(name, snapshot)); err != nil {
		return s.blame(ctx, err)
	}
	return nil
}
