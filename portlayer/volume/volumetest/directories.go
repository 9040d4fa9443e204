package volumetest

import (
	"context"
	"io"
	"maps"
	"net/netip"
	"slices"
	"strings"

	"vch/guest"
	"vch/internal/fault"
	"vch/portlayer"
)

// DirectoriesDriver is the driver of stores that NewDirectories makes.
const DirectoriesDriver = "fake-nfs"

// Directories is a portlayer.DirectoryStore in memory, whose volumes are directories of a server that no machine reaches. They have one option, "soft". NewDirectories makes one.
type Directories struct {
	*Store
	plain map[string]bool // directories that are no volumes yet
}

// NewDirectories makes an empty store, on whose medium there are plain directories, too.
func NewDirectories(name portlayer.StoreName, plain ...string) *Directories {
	d := &Directories{Store: NewStore(name), plain: map[string]bool{}}
	for _, dir := range plain {
		d.plain[dir] = true
	}
	return d
}

// reopen is Store.Reopen.
func (d *Directories) reopen() *Directories {
	return &Directories{Store: d.Store.Reopen(d.Store.Name()), plain: d.plain}
}

// Driver is portlayer.VolumeStore.Driver.
func (d *Directories) Driver() string { return DirectoriesDriver }

// Location is portlayer.VolumeStore.Location.
func (d *Directories) Location() string { return "nfs://memory/" + string(d.Name()) }

// as is a volume as a directory is one.
func (d *Directories) as(v portlayer.Volume) portlayer.Volume {
	if v.Name == "" {
		return v
	}
	v.Driver, v.Shared, v.Capacity, v.Throttle, v.Was = DirectoriesDriver, true, 0, portlayer.Throttle{}, nil
	v.Source = guest.Source(d.Location() + "/volumes/" + string(v.Name))
	return v
}

// CheckOptions is portlayer.DirectoryStore.CheckOptions.
func (d *Directories) CheckOptions(own map[string]string) error {
	for key := range own {
		if key != "soft" {
			return fault.New(fault.Invalid, "option %q is not known", key)
		}
	}
	return nil
}

// Settings is portlayer.DirectoryStore.Settings.
func (d *Directories) Settings(v portlayer.Volume) []string {
	if _, soft := v.Options["soft"]; soft {
		return []string{"soft=true"}
	}
	return []string{"hard=true"}
}

// Ensure is portlayer.VolumeStore.Ensure.
func (d *Directories) Ensure(ctx context.Context, spec portlayer.VolumeSpec) (portlayer.Volume, bool, error) {
	if vol, err := d.Store.Get(ctx, spec.Name); err == nil {
		return d.as(vol), false, nil
	}
	own := maps.Clone(spec.Options)
	maps.DeleteFunc(own, func(key, _ string) bool { return strings.EqualFold(key, "VolumeStore") })
	switch {
	case spec.Capacity < 0:
		return portlayer.Volume{}, false, fault.New(fault.Invalid, "a volume cannot have %d bytes", spec.Capacity)
	case spec.From != nil || spec.Packed != nil:
		return portlayer.Volume{}, false, d.onlyDisks()
	}
	if err := d.CheckOptions(own); err != nil {
		return portlayer.Volume{}, false, err
	}
	spec.Capacity = 0
	vol, made, err := d.Store.Ensure(ctx, spec)
	return d.as(vol), made, err
}

// Adopt is portlayer.DirectoryStore.Adopt.
func (d *Directories) Adopt(ctx context.Context, spec portlayer.VolumeSpec, dir string) (portlayer.Volume, error) {
	if !d.plain[dir] {
		return portlayer.Volume{}, fault.New(fault.NotFound, "there is no directory %s in %s", dir, d.Location())
	}
	vol, made, err := d.Ensure(ctx, spec)
	if err == nil && !made {
		err = fault.New(fault.Conflict, "volume %s is in store %s already", spec.Name, d.Name())
	}
	if err == nil {
		delete(d.plain, dir)
	}
	return vol, err
}

// Get is portlayer.VolumeStore.Get.
func (d *Directories) Get(ctx context.Context, name portlayer.VolumeName) (portlayer.Volume, error) {
	vol, err := d.Store.Get(ctx, name)
	return d.as(vol), err
}

// List is portlayer.VolumeStore.List.
func (d *Directories) List(ctx context.Context) ([]portlayer.Volume, error) {
	vols, err := d.Store.List(ctx)
	for i := range vols {
		vols[i] = d.as(vols[i])
	}
	return vols, err
}

// Usage is portlayer.VolumeStore.Usage.
func (d *Directories) Usage(ctx context.Context, name portlayer.VolumeName) (portlayer.VolumeUsage, error) {
	_, err := d.Store.Usage(ctx, name)
	if err != nil {
		return portlayer.VolumeUsage{}, err
	}
	return portlayer.VolumeUsage{Allocated: -1}, nil
}

// Rename is portlayer.VolumeStore.Rename.
func (d *Directories) Rename(ctx context.Context, from, to portlayer.VolumeName) (portlayer.Volume, error) {
	vol, err := d.Store.Rename(ctx, from, to)
	return d.as(vol), err
}

// SetLabels is portlayer.VolumeStore.SetLabels.
func (d *Directories) SetLabels(ctx context.Context, name portlayer.VolumeName, labels map[string]string) (portlayer.Volume, error) {
	vol, err := d.Store.SetLabels(ctx, name, labels)
	return d.as(vol), err
}

func (d *Directories) onlyDisks() error {
	return fault.New(fault.Unsupported, "store %s keeps volumes as directories", d.Name())
}

func (d *Directories) refuse(ctx context.Context, name portlayer.VolumeName) error {
	if _, err := d.Store.Get(ctx, name); err != nil {
		return err
	}
	return d.onlyDisks()
}

// Grow is portlayer.VolumeStore.Grow.
func (d *Directories) Grow(ctx context.Context, name portlayer.VolumeName, _ portlayer.Bytes) (portlayer.Volume, error) {
	return portlayer.Volume{}, d.refuse(ctx, name)
}

// Source is portlayer.VolumeStore.Source.
func (d *Directories) Source(ctx context.Context, name portlayer.VolumeName, _ string) (portlayer.VolumeSource, error) {
	return portlayer.VolumeSource{}, d.refuse(ctx, name)
}

// Pack is portlayer.VolumeStore.Pack.
func (d *Directories) Pack(ctx context.Context, name portlayer.VolumeName, _ string, _ io.Writer) error {
	return d.refuse(ctx, name)
}

// Snapshot is portlayer.VolumeStore.Snapshot.
func (d *Directories) Snapshot(ctx context.Context, name portlayer.VolumeName, _ string, _ portlayer.Progressed) (portlayer.Snapshot, error) {
	return portlayer.Snapshot{}, d.refuse(ctx, name)
}

// Join is portlayer.VolumeStore.Join.
func (d *Directories) Join(ctx context.Context, h *portlayer.Handle, vol portlayer.Volume, m portlayer.Mount) error {
	if err := ctx.Err(); err != nil {
		return err
	}
	if vol.Store != d.Name() {
		return fault.New(fault.Internal, "volume %s is of store %s, not %s", vol.Name, vol.Store, d.Name())
	}
	h.AddReach(portlayer.Reach{Address: netip.AddrPortFrom(netip.AddrFrom4([4]byte{10, 0, 0, 1}), 2049), Service: d.Location()})
	h.Config.Mounts = append(h.Config.Mounts, guest.MountSpec{
		Source: vol.Source, Target: m.Target, Subpath: m.Subpath, ReadOnly: m.ReadOnly, Copy: !m.NoCopy, Name: string(vol.Name), Options: slices.Clone(d.Settings(vol)),
	})
	return nil
}
