package vmdk

import (
	"context"
	"maps"
	"slices"
	"time"

	"vch/portlayer"
)

// A store is shared by VCHs, and its directory is open to anybody's hand, so that what a volume is, its files say, each time. But they need not be read for it: a look at
// them tells that they are the same as when they were read last (portlayer.Disks.Look). Of 10,000 volumes that is three questions to the kernel each, and no file opened.

// sight is a whole volume as it was read, and the mark of a look at its files before that.
type sight struct {
	mark   [9]uint64
	volume portlayer.Volume
	disk   bool // its disk was looked at, too; else its size is what a look told
}

// look looks at the files of volumes.
func (s *Store) look(ctx context.Context, names ...portlayer.VolumeName) []portlayer.Look {
	files := make([]string, len(names))
	for i, name := range names {
		files[i] = string(name) + "/" + fileOf(name)
	}
	return s.o.Disks.Look(ctx, s.volumes, files, recordFile)
}

// again gives the volume called name as it was read last, its disk too, if a look finds its files as they were then. No lock is needed for it: nobody who changes a volume leaves it with the
// same mark.
func (s *Store) again(name portlayer.VolumeName, look portlayer.Look) (vol portlayer.Volume, info portlayer.DiskInfo, ok bool) {
	s.mu.Lock()
	was, known := s.seen[name]
	s.mu.Unlock()
	if !known || look.Mark != was.mark || !was.disk {
		return vol, info, false
	}
	return own(was.volume), portlayer.DiskInfo{Size: was.volume.Capacity, Allocated: look.Allocated}, true
}

// remember keeps what was read of a volume after look was taken; disk says whether its disk was looked at.
func (s *Store) remember(look portlayer.Look, vol portlayer.Volume, disk bool) {
	if look.Mark == [9]uint64{} {
		return
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.seen == nil {
		s.seen = map[portlayer.VolumeName]sight{}
	}
	s.seen[vol.Name] = sight{look.Mark, own(vol), disk}
}

// forget drops what was seen of volumes that are no more; names are all that are, sorted.
func (s *Store) forget(names []portlayer.VolumeName) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if len(s.seen) <= len(names) {
		return
	}
	maps.DeleteFunc(s.seen, func(name portlayer.VolumeName, _ sight) bool {
		_, there := slices.BinarySearch(names, name)
		return !there
	})
}

// missedFor is how long it is remembered that a volume was not there: until who has looked for it makes it.
const missedFor = 5 * time.Second

// miss notes that there is no volume called name.
func (s *Store) miss(name portlayer.VolumeName) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.missed == nil {
		s.missed = map[portlayer.VolumeName]time.Time{}
	}
	maps.DeleteFunc(s.missed, func(_ portlayer.VolumeName, at time.Time) bool { return time.Since(at) > missedFor })
	s.missed[name] = time.Now()
}

// missedNow says once whether there was no volume called name a moment ago. Another VCH may have made it since.
func (s *Store) missedNow(name portlayer.VolumeName) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	at, ok := s.missed[name]
	delete(s.missed, name)
	return ok && time.Since(at) < missedFor
}

// own is a volume that shares nothing with vol, so that its holder may change it.
func own(vol portlayer.Volume) portlayer.Volume {
	vol.Options, vol.Labels, vol.Was = maps.Clone(vol.Options), maps.Clone(vol.Labels), slices.Clone(vol.Was)
	return vol
}
