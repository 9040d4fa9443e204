// Package nfs is the volume store in which a volume is a directory on an NFS server, which any number of machines may have at once.
//
// This host makes, finds and removes the directories from user space (internal/nfsclient); what is in them, only the guests see, whose kernels mount them:
//
//	<export>/volumes/<name>/               the volume's content
//	<export>/metadata/<name>/volume.json   what the volume is (record.go)
//
// A volume is there when its metadata is, which comes and goes by one rename of a directory that has all that belongs in it: a half-made one is never seen, and of several who make the
// same, on whatever hosts, one does. What a removal leaves is taken away in the background, also after the end of this process. Several VCHs may use one export at a time.
//
// A server that does not answer degrades the store: from then on every call fails at once, until the server is heard again, which is tried every now and then.
package nfs

import (
	"context"
	"crypto/md5"
	"encoding/hex"
	"errors"
	"log/slog"
	"strings"
	"sync"
	"time"

	"vch/internal/fault"
	"vch/internal/keylock"
	"vch/internal/nfsclient"
	"vch/portlayer"
)

// StoreOptions is what a Store is opened with.
type StoreOptions struct {
	Name     portlayer.StoreName
	Location Location
	Driver   string        // what its volumes are called: "qemu-nfs"
	VCH      string        // this VCH's id, which tells what it has left behind from what others are at
	Timeout  time.Duration // how long the server may take for what is small; 0: 10 s
	Log      *slog.Logger
	Open     func(ctx context.Context, uid, gid uint32) (Export, error) // nil: by nfsclient, from a reserved port where that can be had
}

// Export is what a Store needs of an export: nfsclient.Export, whose laws these are.
type Export interface {
	Stat(ctx context.Context, name string) (nfsclient.Attr, error)
	ReadDir(ctx context.Context, name string, yield func([]nfsclient.Entry) error) error
	Mkdir(ctx context.Context, name string, mode uint32) (nfsclient.Attr, error)
	SetAttr(ctx context.Context, name string, set nfsclient.Set) error
	ReadFile(ctx context.Context, name string, limit int) ([]byte, error)
	WriteFile(ctx context.Context, name string, data []byte, mode uint32) error
	Rmdir(ctx context.Context, name string) error
	RemoveAll(ctx context.Context, name string) error
	Rename(ctx context.Context, from, to string) error
	Space(ctx context.Context) (total, free uint64, err error)
	Close() error
}

const (
	defaultTimeout = 10 * time.Second
	// probeLimit bounds a look at how the server is: who asks is not kept longer than by a disk (package volume, patience).
	probeLimit = 4 * time.Second
	// glance is how long who asks a store that is degraded waits for better news.
	glance = 300 * time.Millisecond
	// again is how long a degraded store waits before it looks again by itself, and how long what could not be removed does.
	again = 5 * time.Second
)

// Where things are, below the export.
const (
	volumesDir  = "volumes"
	metadataDir = "metadata"
)

// Store implements portlayer.VolumeStore.
type Store struct {
	o    StoreOptions
	busy keylock.Set[portlayer.VolumeName]

	ctx  context.Context // ends with Close
	stop context.CancelFunc
	work sync.WaitGroup

	looking keylock.Set[struct{}] // held by whoever looks how the server is
	placing sync.Mutex            // held by whoever makes a directory from outside volumes a volume, or takes one that was out

	mu       sync.Mutex    // guards below
	export   Export        // nil: it was not reached
	prepared bool          // the export has what the store needs
	why      string        // why the store is degraded; "" when it is not
	left     bool          // removals have left something
	halfMade []string      // metadata of volumes that have not come to be, which could not be taken back
	sweeping chan struct{} // closed when nobody takes that away any more; nil: nobody does
	trouble  string        // why it could not be taken away the last time
	tending  bool          // somebody tends to the store in the background
}

// Open opens the store. What has to be made or taken away in the export is, once the server is reached: one that is not there now degrades the store and keeps nobody, and Status
// says in a sentence what is the matter and what to do.
func Open(ctx context.Context, o StoreOptions) (*Store, error) {
	if o.Timeout == 0 {
		o.Timeout = defaultTimeout
	}
	if o.Log == nil {
		o.Log = slog.New(slog.DiscardHandler)
	}
	if o.Open == nil {
		o.Open = o.Location.open
	}
	s := &Store{o: o}
	s.ctx, s.stop = context.WithCancel(context.Background())
	if err := s.look(ctx); err != nil && ctx.Err() != nil {
		return nil, errors.Join(ctx.Err(), s.Close())
	}
	limited, cancel := context.WithTimeout(ctx, min(probeLimit, o.Timeout))
	defer cancel()
	s.sweepSoon(limited)
	return s, nil
}

// Close ends what the store does in the background. Volumes stay as they are.
func (s *Store) Close() error {
	s.stop()
	s.work.Wait()
	s.mu.Lock()
	e := s.export
	s.mu.Unlock()
	if e == nil {
		return nil
	}
	return e.Close()
}

// Name is portlayer.VolumeStore.Name.
func (s *Store) Name() portlayer.StoreName { return s.o.Name }

// Driver is portlayer.VolumeStore.Driver.
func (s *Store) Driver() string { return s.o.Driver }

// Location is portlayer.VolumeStore.Location.
func (s *Store) Location() string { return s.o.Location.String() }

// Settings is portlayer.DirectoryStore.Settings.
func (s *Store) Settings(vol portlayer.Volume) []string {
	o, err := s.optionsOf(vol.Options)
	if err != nil { // the store's, which may have changed since
		o = s.o.Location.Options
	}
	return o.Shown()
}

// CheckOptions is portlayer.DirectoryStore.CheckOptions.
func (s *Store) CheckOptions(own map[string]string) error {
	_, err := s.o.Location.Options.ForVolume(own)
	return err
}

// optionsOf is how a volume with options is kept and mounted.
func (s *Store) optionsOf(options map[string]string) (Options, error) {
	own := map[string]string{}
	for key, value := range options {
		if !strings.EqualFold(key, "VolumeStore") {
			own[key] = value
		}
	}
	return s.o.Location.Options.ForVolume(own)
}

// label is the identity of a volume that is called name.
func (s *Store) label(name portlayer.VolumeName) portlayer.Label {
	sum := md5.Sum([]byte(string(s.o.Name) + "/" + string(name)))
	return portlayer.Label(hex.EncodeToString(sum[:]))
}

// volumeName is the grammar that package portlayer gives for the type.
func volumeName(n portlayer.VolumeName) bool {
	for i, c := range n {
		switch {
		case c >= 'a' && c <= 'z', c >= 'A' && c <= 'Z', c >= '0' && c <= '9':
		case i > 0 && strings.ContainsRune("_.-", c):
		default:
			return false
		}
	}
	return len(n) >= 2 && len(n) <= 255
}

func (s *Store) missing(name portlayer.VolumeName) error {
	return fault.New(fault.NotFound, "no such volume: %s in store %s", name, s.o.Name)
}

func badName(name portlayer.VolumeName) error {
	return fault.New(fault.Invalid, "volume name %q: a name begins with a letter or digit, holds letters, digits, _ . and - only, and has 2 to 255 bytes", name)
}
