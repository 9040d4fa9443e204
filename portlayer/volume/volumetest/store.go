package volumetest

import (
	"context"
	"crypto/md5"
	"encoding/hex"
	"encoding/json"
	"errors"
	"io"
	"maps"
	"regexp"
	"slices"
	"sync"
	"time"

	"vch/guest"
	"vch/internal/fault"
	"vch/portlayer"
)

// StoreDriver is the driver of stores that NewStore makes.
const StoreDriver = "fake-vmdk"

// Store is a portlayer.VolumeStore in memory, whose volumes are disks that no machine can open. NewStore makes one.
type Store struct {
	name   portlayer.StoreName
	medium *medium
}

// medium is what survives a Reopen.
type medium struct {
	mu       sync.Mutex // guards below
	volumes  map[portlayer.VolumeName]portlayer.Volume
	damage   map[portlayer.VolumeName]string
	snaps    map[portlayer.VolumeName][]portlayer.Snapshot
	degraded string
	full     bool
	hung     chan struct{} // open: calls wait for it, whatever their context says; nil: they do not
}

// NewStore makes an empty store.
func NewStore(name portlayer.StoreName) *Store {
	return &Store{name: name, medium: &medium{volumes: map[portlayer.VolumeName]portlayer.Volume{}, damage: map[portlayer.VolumeName]string{}, snaps: map[portlayer.VolumeName][]portlayer.Snapshot{}}}
}

// Reopen gives a store on the same medium, as a later process has it; name may differ from the first's.
func (s *Store) Reopen(name portlayer.StoreName) *Store { return &Store{name: name, medium: s.medium} }

// Degrade makes the store degraded for the reason why, or with "" lets it recover.
func (s *Store) Degrade(why string) {
	s.medium.mu.Lock()
	defer s.medium.mu.Unlock()
	s.medium.degraded = why
}

// Hang makes calls wait, whatever their context says, as those into a dead network file system do, until release is called.
func (s *Store) Hang() (release func()) {
	hung := make(chan struct{})
	s.medium.mu.Lock()
	defer s.medium.mu.Unlock()
	s.medium.hung = hung
	return sync.OnceFunc(func() {
		s.medium.mu.Lock()
		defer s.medium.mu.Unlock()
		s.medium.hung = nil
		close(hung)
	})
}

// lock locks the medium, when it answers.
func (s *Store) lock() {
	s.medium.mu.Lock()
	for hung := s.medium.hung; hung != nil; hung = s.medium.hung {
		s.medium.mu.Unlock()
		<-hung
		s.medium.mu.Lock()
	}
}

// Damage makes a volume's files damaged.
func (s *Store) Damage(name portlayer.VolumeName, why string) {
	s.medium.mu.Lock()
	defer s.medium.mu.Unlock()
	s.medium.damage[name] = why
}

// Fill makes the store full, or takes that back.
func (s *Store) Fill(full bool) {
	s.medium.mu.Lock()
	defer s.medium.mu.Unlock()
	s.medium.full = full
}

// Name is portlayer.VolumeStore.Name.
func (s *Store) Name() portlayer.StoreName { return s.name }

// Driver is portlayer.VolumeStore.Driver.
func (s *Store) Driver() string { return StoreDriver }

// Location is portlayer.VolumeStore.Location.
func (s *Store) Location() string { return "memory:" + string(s.name) }

// Status is portlayer.VolumeStore.Status.
func (s *Store) Status(context.Context) portlayer.StoreStatus {
	s.lock()
	defer s.medium.mu.Unlock()
	switch {
	case s.medium.degraded != "":
		return portlayer.StoreStatus{Degraded: s.medium.degraded}
	case s.medium.full:
		return portlayer.StoreStatus{Total: portlayer.GiB}
	}
	return portlayer.StoreStatus{Total: portlayer.GiB, Free: portlayer.GiB}
}

// enter begins a call: with the medium locked, or with an error.
func (s *Store) enter(ctx context.Context) (leave func(), err error) {
	if err := ctx.Err(); err != nil {
		return nil, err
	}
	s.lock()
	if why := s.medium.degraded; why != "" {
		s.medium.mu.Unlock()
		return nil, fault.New(fault.Unavailable, "volume store %s is degraded: %s", s.name, why)
	}
	return s.medium.mu.Unlock, nil
}

// Ensure is portlayer.VolumeStore.Ensure.
func (s *Store) Ensure(ctx context.Context, spec portlayer.VolumeSpec) (portlayer.Volume, bool, error) {
	leave, err := s.enter(ctx)
	if err != nil {
		return portlayer.Volume{}, false, err
	}
	defer leave()
	if !regexp.MustCompile(`^[a-zA-Z0-9][a-zA-Z0-9_.-]{1,254}$`).MatchString(string(spec.Name)) {
		return portlayer.Volume{}, false, fault.New(fault.Invalid, "volume name %q cannot be used", spec.Name)
	}
	if vol, err := s.get(spec.Name); !fault.Is(err, fault.NotFound) {
		return vol, false, err
	}
	capacity, created := spec.Capacity, spec.Created
	if created.IsZero() {
		created = time.Now().UTC()
	}
	var was []portlayer.Label
	if spec.Packed != nil {
		var p pack
		data, err := io.ReadAll(spec.Packed)
		if err == nil {
			err = json.Unmarshal(data, &p)
		}
		if err != nil {
			return portlayer.Volume{}, false, fault.New(fault.Invalid, "no packed volume: %w", err)
		}
		spec.From = &portlayer.VolumeSource{Capacity: p.Capacity, Labels: p.Labels}
	}
	if spec.From != nil {
		if was = spec.From.Labels; capacity == 0 {
			capacity = spec.From.Capacity
		}
		if capacity < spec.From.Capacity {
			return portlayer.Volume{}, false, fault.New(fault.Invalid, "a copy cannot have less than its source")
		}
		if spec.Progress != nil {
			spec.Progress(diskCost, diskCost)
		}
	}
	if capacity == 0 {
		capacity = portlayer.GiB
	}
	capacity = (capacity + 511) / 512 * 512
	switch {
	case capacity < minDisk:
		return portlayer.Volume{}, false, fault.New(fault.Invalid, "cannot make volume %s: %d bytes are too few", spec.Name, spec.Capacity)
	case s.medium.full:
		return portlayer.Volume{}, false, fault.New(fault.Unavailable, "cannot make volume %s in store %s (0B free): no space left", spec.Name, s.name)
	}
	vol := portlayer.Volume{
		Name:     spec.Name,
		Label:    s.label(spec.Name),
		Source:   s.label(spec.Name).Source(),
		Capacity: capacity,
		Throttle: spec.Throttle,
		Options:  maps.Clone(spec.Options),
		Labels:   maps.Clone(spec.Labels),
		Created:  created,
		Maker:    spec.Maker,
		VCH:      spec.VCH,
		Was:      slices.Clone(was),
	}
	s.medium.volumes[spec.Name] = vol
	return s.own(vol), true, nil
}

func (s *Store) label(name portlayer.VolumeName) portlayer.Label {
	sum := md5.Sum([]byte(string(s.name) + "/" + string(name)))
	return portlayer.Label(hex.EncodeToString(sum[:]))
}

// own is a volume as this store shows it, which the caller may change.
func (s *Store) own(v portlayer.Volume) portlayer.Volume {
	v.Store, v.Driver = s.name, StoreDriver
	v.Options, v.Labels, v.Was = maps.Clone(v.Options), maps.Clone(v.Labels), slices.Clone(v.Was)
	return v
}

func (s *Store) get(name portlayer.VolumeName) (portlayer.Volume, error) {
	vol, ok := s.medium.volumes[name]
	if !ok {
		return portlayer.Volume{}, fault.New(fault.NotFound, "no such volume: %s in store %s", name, s.name)
	}
	if why := s.medium.damage[name]; why != "" {
		return portlayer.Volume{}, fault.New(fault.Conflict, "volume %s in store %s is damaged: %s", name, s.name, why)
	}
	return s.own(vol), nil
}

// Get is portlayer.VolumeStore.Get.
func (s *Store) Get(ctx context.Context, name portlayer.VolumeName) (portlayer.Volume, error) {
	leave, err := s.enter(ctx)
	if err != nil {
		return portlayer.Volume{}, err
	}
	defer leave()
	return s.get(name)
}

// List is portlayer.VolumeStore.List.
func (s *Store) List(ctx context.Context) ([]portlayer.Volume, error) {
	leave, err := s.enter(ctx)
	if err != nil {
		return nil, err
	}
	defer leave()
	vols := []portlayer.Volume{}
	var harm []error
	for _, name := range slices.Sorted(maps.Keys(s.medium.volumes)) {
		vol, err := s.get(name)
		if err != nil {
			harm = append(harm, err)
			continue
		}
		vols = append(vols, vol)
	}
	return vols, errors.Join(harm...)
}

// Remove is portlayer.VolumeStore.Remove.
func (s *Store) Remove(ctx context.Context, name portlayer.VolumeName) error {
	leave, err := s.enter(ctx)
	if err != nil {
		return err
	}
	defer leave()
	if _, err := s.get(name); fault.Is(err, fault.NotFound) {
		return err
	}
	delete(s.medium.volumes, name)
	delete(s.medium.damage, name)
	delete(s.medium.snaps, name)
	return nil
}

// Usage is portlayer.VolumeStore.Usage.
func (s *Store) Usage(ctx context.Context, name portlayer.VolumeName) (portlayer.VolumeUsage, error) {
	leave, err := s.enter(ctx)
	if err != nil {
		return portlayer.VolumeUsage{}, err
	}
	defer leave()
	vol, err := s.get(name)
	if err != nil {
		return portlayer.VolumeUsage{}, err
	}
	return portlayer.VolumeUsage{Capacity: vol.Capacity, Allocated: diskCost}, nil
}

// Join is portlayer.VolumeStore.Join.
func (s *Store) Join(ctx context.Context, h *portlayer.Handle, vol portlayer.Volume, m portlayer.Mount) error {
	if err := ctx.Err(); err != nil {
		return err
	}
	if vol.Store != s.name {
		return fault.New(fault.Internal, "volume %s is of store %s, not %s", vol.Name, vol.Store, s.name)
	}
	h.AddDisk(portlayer.Disk{Serial: string(vol.Label), File: portlayer.DiskPath(s.Location() + "/" + string(vol.Name)), ReadOnly: m.ReadOnly, Throttle: vol.Throttle})
	h.Config.Mounts = append(h.Config.Mounts, guest.MountSpec{
		Source: vol.Source, Target: m.Target, Subpath: m.Subpath, ReadOnly: m.ReadOnly, Copy: !m.NoCopy, Name: string(vol.Name), Was: was(vol),
	})
	return nil
}

func was(vol portlayer.Volume) (all []string) {
	for _, l := range vol.Was {
		all = append(all, string(l))
	}
	return all
}
