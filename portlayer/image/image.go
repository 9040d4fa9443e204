// Package image keeps the images of a VCH: it pulls, loads and imports them, and turns each one's layers into one read-only disk that all its
// containers share.
//
//	Dir/layers/HEX            a layer's uncompressed tar; HEX is its diff id, so what is there is whole and right
//	Dir/disks/HEX.vmdk        the flattened layers as ext4, and HEX.index, what is in it; HEX names the list of layers (diskName)
//	Dir/partial/HEX           what has come of the layer with the digest HEX, as it came; its pull goes on there
//	Dir/tmp                   uploads being read and disks being made; emptied at New
//
// The records (images, names) are in portlayer/record, and name only what is whole on disk: files come first, then the image's record, then its
// names. A crash in between leaves a layer or a disk without a record, which New or Prune removes, never a record without its files.
// A layer that was fetched whole stays for the next try. Everything is streamed: no layer is ever in memory.
//
// It does not run images, and does not keep compressed layers.
package image

import (
	"context"
	"crypto/tls"
	"errors"
	"log/slog"
	"net/http"
	"os"
	"path/filepath"
	"sync"
	"syscall"
	"time"

	"vch/internal/fault"
	"vch/portlayer"
	"vch/portlayer/record"
)

// serial names the image's disk in every machine.
const serial = "vch-image"

// Options is what a Service stands on. Publish and InUse may be nil.
type Options struct {
	Dir     string
	Disks   portlayer.Disks
	DiskDir portlayer.DiskPath // of the images' disks; "": disks in Dir
	Believe time.Duration      // how long a disk that was found whole is taken for it when a machine is joined to it; 0: it is looked at each time
	DB      *record.DB
	InUse   func(portlayer.ImageID) []portlayer.ContainerID
	Publish portlayer.Publish
	Log     *slog.Logger
	// Mirrors are registries that are asked for Docker Hub's images before it, in this order.
	Mirrors []Mirror
	// Insecure are the registries that may speak plain HTTP, or HTTPS with any certificate. Those of this machine may speak plain HTTP without being among them.
	Insecure Insecure
}

// Service implements portlayer.Images.
type Service struct {
	dir     string
	disks   portlayer.Disks
	diskDir portlayer.DiskPath
	believe time.Duration
	inUse   func(portlayer.ImageID) []portlayer.ContainerID
	publish portlayer.Publish
	log     *slog.Logger

	catalog   *catalog
	flights   flights
	downloads chan struct{} // one token a layer that is being downloaded
	mirrors   []Mirror
	insecure  Insecure
	transport *http.Transport
	trusting  *http.Transport // checks no certificate

	mu    sync.Mutex           // guards below
	found map[string]time.Time // when a disk was last found whole
}

var _ portlayer.Images = (*Service)(nil)

// maxDownloads is how many layers are fetched at once (dockerd's --max-concurrent-downloads).
const maxDownloads = 3

// New opens the store in o.Dir, removes what a crash left, and makes again what the records name and is missing, where it can.
func New(ctx context.Context, o Options) (*Service, error) {
	if o.DiskDir == "" {
		o.DiskDir = o.Disks.Join(portlayer.DiskPath(o.Dir), "disks")
	}
	s := &Service{dir: o.Dir, disks: o.Disks, diskDir: o.DiskDir, believe: o.Believe, found: map[string]time.Time{}, inUse: o.InUse, publish: o.Publish, log: o.Log, downloads: make(chan struct{}, maxDownloads), mirrors: o.Mirrors, insecure: o.Insecure, transport: newTransport(), trusting: newTransport()}
	s.trusting.TLSClientConfig = &tls.Config{InsecureSkipVerify: true, MinVersion: tls.VersionTLS12} // as the administrator has said
	if s.inUse == nil {
		s.inUse = func(portlayer.ImageID) []portlayer.ContainerID { return nil }
	}
	if s.log == nil {
		s.log = slog.New(slog.DiscardHandler)
	}
	var err error
	if s.catalog, err = openCatalog(o.DB); err != nil {
		return nil, fault.Wrap("open images", o.Dir, err)
	}
	if err := s.tidy(ctx); err != nil {
		return nil, fault.Wrap("open images", o.Dir, err)
	}
	return s, nil
}

// Close lets go of idle connections to registries.
func (s *Service) Close() error {
	s.transport.CloseIdleConnections()
	s.trusting.CloseIdleConnections()
	return nil
}

func (s *Service) layerDir() string             { return filepath.Join(s.dir, "layers") }
func (s *Service) layerPath(d diffID) string    { return filepath.Join(s.layerDir(), d.hex()) }
func (s *Service) tmpDir() string               { return filepath.Join(s.dir, "tmp") }
func (s *Service) indexPath(disk string) string { return filepath.Join(s.dir, "disks", disk+".index") }
func (s *Service) diskPath(disk string) portlayer.DiskPath {
	return s.disks.Join(s.diskDir, disk+".vmdk")
}

// spool makes a file in tmp; done closes and removes it.
func (s *Service) spool(kind string) (f *os.File, done func(), err error) {
	f, err = os.CreateTemp(s.tmpDir(), kind+"-*")
	if err != nil {
		return nil, nil, s.storage(err)
	}
	return f, func() { _ = f.Close(); _ = os.Remove(f.Name()) }, nil // either fails only where New will remove it
}

func (s *Service) event(verb, id, name string) {
	if s.publish != nil {
		s.publish(portlayer.Event{Time: time.Now().UTC(), Noun: "image", Verb: verb, ID: id, Attrs: map[string]string{"name": name}})
	}
}

// storage gives an error of the store's own file system a kind and says what to do about a full one.
func (s *Service) storage(err error) error {
	switch {
	case err == nil:
		return nil
	case errors.Is(err, syscall.ENOSPC), errors.Is(err, syscall.EDQUOT):
		return fault.New(fault.Unavailable, "no space left for images in %s; free some (docker image prune) and try again: %w", s.dir, err)
	case errors.Is(err, os.ErrPermission), errors.Is(err, syscall.EROFS):
		return fault.New(fault.Denied, "the image store %s cannot be written: %w", s.dir, err)
	}
	return err
}
