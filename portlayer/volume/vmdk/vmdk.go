// Package vmdk is the volume store in which a volume is a disk.
//
// It is written once, over the hypervisor's Disks contract, and touches no file itself:
//
//	<root>/volumes/<name>/<name>.vmdk        the disk's descriptor
//	<root>/volumes/<name>/<name>-flat.vmdk   its extent
//	<root>/volumes/<name>/volume.json        what the volume is (record.go)
//	<root>/volumes/<name>/snapshots/         what it was (snapshot.go)
//
// (Files of a volume whose name is long, or ends in -flat, are called by the name's md5.)
//
// The store describes itself: opened by another VCH, after a crash or from a copy, it shows the same volumes. A volume is made between two
// writes of volume.json, so that an unfinished one is known as such and is never listed, and a damaged one is never taken for it. One process
// at a time may use a store; within it all methods may be called at once. What the disk's file system holds is none of its business.
package vmdk

import (
	"context"
	"crypto/md5"
	"encoding/hex"
	"errors"
	"fmt"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/docker/go-units"

	"vch/internal/atonce"
	"vch/internal/coalesce"
	"vch/internal/fault"
	"vch/internal/keylock"
	"vch/portlayer"
)

// Options is what a Store is opened with.
type Options struct {
	Name            portlayer.StoreName
	Location        string             // as the administrator gave it, for messages
	Root            portlayer.DiskPath // directory that holds, or will hold, volumes/
	Disks           portlayer.Disks
	Driver          string          // what its volumes are called: "qemu-vmdk"
	NoByteRate      bool            // volumes are bounded in requests a second alone, for their machines' disks are
	SizeUnit        portlayer.Bytes // what sizes of disks are multiples of; 0: 512
	DefaultCapacity portlayer.Bytes // of a volume that asks for none; 0: 1 GiB, as VIC had it
	MayBeAway       bool            // Open makes nothing, and does not fail for what Root is: the store is degraded until volumes/ is there and can be written
}

// Store implements portlayer.VolumeStore.
type Store struct {
	o       Options
	volumes portlayer.DiskPath                // the directory of the volumes' directories
	busy    keylock.Set[portlayer.VolumeName] // held by whoever reads or changes the directory of that volume

	surveys coalesce.Call[survey] // of all volumes, for all who list them

	ready  atomic.Bool          // its directories are there, and what an interrupted Ensure left is gone
	coming coalesce.Call[error] // of a store that may be away: is it there by now?

	mu     sync.Mutex // guards below; not held while the medium works
	seen   map[portlayer.VolumeName]sight
	missed map[portlayer.VolumeName]time.Time // when a volume was looked for that is not there
}

// sector is the least that a disk's size counts in, in bytes.
const sector = 512

// defaultCapacity is for Options that name none.
const defaultCapacity = portlayer.GiB

// Open opens the store below o.Root, making that directory where only its last element is missing, and takes away what an interrupted
// Ensure left. Invalid: Root is a file, or o makes no sense. Denied: it cannot be written. NotFound: its parent is missing.
func Open(ctx context.Context, o Options) (*Store, error) {
	if !storeName(o.Name) {
		return nil, fault.New(fault.Invalid, "volume store name %q: a name begins with a letter or digit and holds letters, digits, _ and - only", o.Name)
	}
	if o.DefaultCapacity < 0 {
		return nil, fault.New(fault.Invalid, "volume store %s: default capacity %d is negative", o.Name, o.DefaultCapacity)
	}
	if o.DefaultCapacity == 0 {
		o.DefaultCapacity = defaultCapacity
	}
	if o.SizeUnit == 0 {
		o.SizeUnit = sector
	}
	s := &Store{o: o, volumes: o.Disks.Join(o.Root, "volumes")}
	if o.MayBeAway {
		_ = s.come(ctx) // Status says so
		return s, ctx.Err()
	}
	if err := s.prepare(ctx); err != nil {
		return nil, fault.Wrap("open volume store", string(o.Name), err)
	}
	s.ready.Store(true)
	return s, nil
}

// come makes a store ready that may have been away, once its directory is there; before that it is Unavailable with the reason.
func (s *Store) come(ctx context.Context) error {
	if s.ready.Load() {
		return nil
	}
	found, err := s.coming.Do(ctx, func(ctx context.Context) error {
		if s.ready.Load() {
			return nil
		}
		err := s.reach(ctx)
		if err == nil {
			err = s.clean(ctx)
		}
		s.ready.Store(err == nil)
		return err
	})
	return errors.Join(found, err)
}

// prepare makes the store's directories where they are missing and cleans up.
func (s *Store) prepare(ctx context.Context) error {
	d := s.o.Disks
	_, _, err := d.Space(ctx, s.o.Root)
	if fault.Is(err, fault.NotFound) {
		if _, _, perr := d.Space(ctx, d.Join(s.o.Root, "..")); perr != nil {
			return s.rootFault(fault.KindOf(perr), perr)
		}
		err = d.MakeDir(ctx, s.o.Root)
	}
	if err != nil {
		return s.rootFault(fault.KindOf(err), err)
	}
	if err := d.MakeDir(ctx, s.volumes); err != nil {
		return s.rootFault(fault.KindOf(err), err)
	}
	if _, _, err := d.Space(ctx, s.volumes); err != nil {
		return s.rootFault(fault.KindOf(err), err)
	}
	return s.clean(ctx)
}

// rootFault says what is wrong with the store's directory, and what to do.
func (s *Store) rootFault(k fault.Kind, err error) error {
	switch k {
	case fault.Invalid:
		return fault.New(k, "%s is not a directory, or lies below a file; give a directory: %w", s.o.Location, err)
	case fault.NotFound:
		return fault.New(k, "the directory that should hold %s is missing; make it, or mount what belongs there: %w", s.o.Location, err)
	case fault.Denied:
		return fault.New(k, "%s cannot be written; give it to the user that runs vch, or choose another: %w", s.o.Location, err)
	}
	return fault.New(k, "%s cannot be used: %w", s.o.Location, err)
}

// clean removes what is provably an unfinished make of this store: an empty directory, or one whose volume.json says so. What cannot be
// removed now is no harm: it is never listed, and the next Ensure or Open of that name tries again.
func (s *Store) clean(ctx context.Context) error {
	names, err := s.names(ctx)
	if err != nil {
		return err
	}
	looks := s.look(ctx, names...)
	atonce.Do(len(names), readers, func(i int) {
		if ctx.Err() != nil {
			return
		}
		switch rec, st, _ := s.read(ctx, names[i]); st {
		case unfinished:
			_ = s.o.Disks.RemoveDir(ctx, s.dir(names[i]))
		case whole:
			_, _, _ = s.believe(ctx, names[i], rec, looks[i]) // the first survey does not read it again
			if !looks[i].Alone {
				s.cleanSnapshots(ctx, names[i])
			}
		}
	})
	return ctx.Err()
}

// Name is portlayer.VolumeStore.Name.
func (s *Store) Name() portlayer.StoreName { return s.o.Name }

// Driver is portlayer.VolumeStore.Driver.
func (s *Store) Driver() string { return s.o.Driver }

// Location is portlayer.VolumeStore.Location.
func (s *Store) Location() string { return s.o.Location }

// Status is portlayer.VolumeStore.Status.
func (s *Store) Status(ctx context.Context) portlayer.StoreStatus {
	if err := s.come(ctx); err != nil {
		if status := s.medium(ctx); status.Degraded != "" {
			return status
		}
		return portlayer.StoreStatus{Degraded: err.Error()}
	}
	return s.medium(ctx)
}

// medium is Status, but for what an interrupted Ensure left.
func (s *Store) medium(ctx context.Context) portlayer.StoreStatus {
	total, free, err := s.o.Disks.Space(ctx, s.volumes)
	if err != nil {
		return portlayer.StoreStatus{Degraded: s.why(err)}
	}
	return portlayer.StoreStatus{Total: total, Free: free}
}

// space is Status of a store that is not degraded; else it is Unavailable with the reason.
func (s *Store) space(ctx context.Context) (portlayer.StoreStatus, error) {
	if err := ctx.Err(); err != nil {
		return portlayer.StoreStatus{}, err
	}
	status := s.medium(ctx)
	if status.Degraded != "" {
		return status, fault.New(fault.Unavailable, "volume store %s is degraded: %s", s.o.Name, status.Degraded)
	}
	return status, nil
}

// reach is nil if the store's medium is there and can be written, and Unavailable with the reason otherwise.
func (s *Store) reach(ctx context.Context) error {
	_, err := s.space(ctx)
	return err
}

// why says what is the matter with the store's medium.
func (s *Store) why(err error) string {
	what := "cannot be used"
	switch fault.KindOf(err) {
	case fault.NotFound:
		what = "is missing; is its file system mounted?"
	case fault.Denied:
		what = "cannot be written"
	case fault.Invalid:
		what = "is not a directory any more"
	}
	return fmt.Sprintf("%s %s (%v)", s.volumes, what, err)
}

// blame returns err, or, when the medium went away meanwhile, that: what is missing then was not lost.
func (s *Store) blame(ctx context.Context, err error) error {
	if gone := s.reach(ctx); gone != nil {
		return gone
	}
	return err
}

// enter begins a call that needs volume name: it checks the medium and takes the volume's lock.
func (s *Store) enter(ctx context.Context, name portlayer.VolumeName) (leave func(), err error) {
	if err := s.come(ctx); err != nil {
		return nil, err
	}
	if err := s.reach(ctx); err != nil {
		return nil, err
	}
	return s.busy.Lock(ctx, name)
}

// names gives the names of all directories that can be a volume's, sorted. Others (lost+found, snapshots) are nobody's business here.
func (s *Store) names(ctx context.Context) ([]portlayer.VolumeName, error) {
	all, err := s.o.Disks.List(ctx, s.volumes)
	if err != nil {
		return nil, s.blame(ctx, err)
	}
	var names []portlayer.VolumeName
	for _, n := range all {
		if volumeName(portlayer.VolumeName(n)) {
			names = append(names, portlayer.VolumeName(n))
		}
	}
	return names, nil
}

// longName is the most bytes that a volume's name may have to name the files of its disk, too: with "-flat.vmdk" and what a hypervisor adds
// while it writes them, they stay below the 255 bytes that file systems allow (NAME_MAX, limits.h).
const longName = 200

func (s *Store) dir(name portlayer.VolumeName) portlayer.DiskPath {
	return s.o.Disks.Join(s.volumes, string(name))
}

// disk is where the disk of volume name is.
func (s *Store) disk(name portlayer.VolumeName) portlayer.DiskPath {
	return s.o.Disks.Join(s.dir(name), fileOf(name))
}

// fileOf is the name of the descriptor of volume name. A long name gives its hash; so does one that ends as extents do, for data-flat.vmdk is the extent of data.vmdk, which
// a rename from one of the two names to the other would delete.
func fileOf(name portlayer.VolumeName) string {
	base := string(name)
	if len(base) > longName || strings.HasSuffix(base, "-flat") {
		base = hash(base)
	}
	return base + ".vmdk"
}

func (s *Store) record(name portlayer.VolumeName) portlayer.DiskPath {
	return s.o.Disks.Join(s.dir(name), recordFile)
}

func hash(text string) string {
	sum := md5.Sum([]byte(text))
	return hex.EncodeToString(sum[:])
}

// volumeName and storeName are the grammars that package portlayer gives for these types.
func volumeName(n portlayer.VolumeName) bool {
	return len(n) >= 2 && len(n) <= 255 && wordOf(string(n), "_.-")
}

func storeName(n portlayer.StoreName) bool { return wordOf(string(n), "_-") }

// wordOf reports whether text begins with an ASCII letter or digit and holds only those and what extra has.
func wordOf(text, extra string) bool {
	for i, c := range text {
		switch {
		case c >= 'a' && c <= 'z', c >= 'A' && c <= 'Z', c >= '0' && c <= '9':
		case i > 0 && strings.ContainsRune(extra, c):
		default:
			return false
		}
	}
	return text != ""
}

// size is a size as messages show it.
func size(b portlayer.Bytes) string { return units.BytesSize(float64(b)) }
