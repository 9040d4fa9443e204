package volumetest

import (
	"net/netip"
	"strings"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"

	"vch/guest"
	"vch/portlayer"
)

// joinLaw: Join changes the draft by one mount, and by one disk where volumes are disks, and touches nothing else.
func joinLaw(b *bench) {
	p, s := b.fresh()
	vol := b.ensure(s, portlayer.VolumeSpec{Name: "data", Capacity: small, Throttle: portlayer.Throttle{IOPS: 100, BPS: portlayer.MiB}})
	before := tree(p)
	for _, m := range []portlayer.Mount{
		{Kind: portlayer.VolumeMount, Volume: "data", Target: "/srv"},
		{Kind: portlayer.VolumeMount, Volume: "data", Target: "/srv/a b", Subpath: "a/b c", ReadOnly: true},
		{Kind: portlayer.VolumeMount, Volume: "data", Target: "/x", NoCopy: true},
		{Kind: portlayer.VolumeMount, Volume: "data", Target: "/y", NoCopy: true, ReadOnly: true, Options: map[string]string{"size": "1"}, Mode: "ro,nocopy"},
	} {
		h := &portlayer.Handle{
			Container: "c", Version: 3,
			Devices: []portlayer.DeviceChange{{Op: portlayer.Add, Disk: portlayer.Disk{Serial: "root", Size: small}}},
			Config:  guest.ExecutorConfig{ID: "c", Mounts: []guest.MountSpec{{Source: "tmpfs:", Target: "/tmp"}}},
		}
		want := *h
		if err := s.Join(b.Context(), h, vol, m); err != nil {
			b.Fatal(err)
		}
		mount := h.Config.Mounts[len(h.Config.Mounts)-1]
		if mount.Source == "" {
			b.Errorf("mount has no source: %+v", mount)
		}
		want.Config.Mounts = []guest.MountSpec{{Source: "tmpfs:", Target: "/tmp"},
			{Source: mount.Source, Target: m.Target, Subpath: m.Subpath, ReadOnly: m.ReadOnly, Copy: !m.NoCopy, Name: "data", Options: mount.Options, Patience: mount.Patience, Was: textsOf(p.Born)}}
		want.Reaches = h.Reaches
		if !p.Disks && (len(h.Reaches) == 0 || mount.Source != vol.Source) {
			b.Errorf("reaches %v, source %q of volume %q", h.Reaches, mount.Source, vol.Source)
		}
		if p.Disks {
			disk := h.Devices[len(h.Devices)-1].Disk
			if !strings.HasPrefix(mount.Source, "label://") || disk.Serial != string(vol.Label) || mount.Source != "label://"+string(vol.Label) || disk.File == "" {
				b.Errorf("disk %+v does not belong to mount %+v", disk, mount)
			}
			want.Devices = append(want.Devices, portlayer.DeviceChange{Op: portlayer.Add,
				Disk: portlayer.Disk{Serial: string(vol.Label), File: disk.File, ReadOnly: m.ReadOnly, Throttle: vol.Throttle}})
		}
		if diff := cmp.Diff(&want, h, cmpopts.EquateComparable(netip.AddrPort{})); diff != "" {
			b.Errorf("%s (-want +got):\n%s", m.Target, diff)
		}
	}
	b.equal("medium", before, tree(p))
	b.shows(s, vol)
}

// joinTwiceLaw: one volume at several targets is one disk, read-only only if every join is; another volume is another disk.
func joinTwiceLaw(b *bench) {
	p, s := b.fresh()
	data := b.ensure(s, portlayer.VolumeSpec{Name: "data", Capacity: small})
	other := b.ensure(s, portlayer.VolumeSpec{Name: "other", Capacity: small})
	for _, ro := range [][]bool{{true, true}, {true, false}, {false, true}, {false, false}} {
		h := &portlayer.Handle{Container: "c"}
		for i, target := range []string{"/a", "/b"} {
			if err := s.Join(b.Context(), h, data, portlayer.Mount{Kind: portlayer.VolumeMount, Volume: "data", Target: target, ReadOnly: ro[i]}); err != nil {
				b.Fatal(err)
			}
		}
		if err := s.Join(b.Context(), h, other, portlayer.Mount{Kind: portlayer.VolumeMount, Volume: "other", Target: "/o", ReadOnly: true}); err != nil {
			b.Fatal(err)
		}
		if len(h.Config.Mounts) != 3 || h.Config.Mounts[0].Source != h.Config.Mounts[1].Source || h.Config.Mounts[0].Source == h.Config.Mounts[2].Source {
			b.Errorf("mounts = %+v", h.Config.Mounts)
		}
		if h.Config.Mounts[0].ReadOnly != ro[0] || h.Config.Mounts[1].ReadOnly != ro[1] {
			b.Errorf("mounts %+v, asked for read-only %v", h.Config.Mounts, ro)
		}
		if !p.Disks {
			continue
		}
		if len(h.Devices) != 2 || h.Devices[0].Disk.ReadOnly != (ro[0] && ro[1]) || !h.Devices[1].Disk.ReadOnly {
			b.Errorf("devices for read-only %v: %+v", ro, h.Devices)
		}
	}
}

// textsOf are labels as a mount has them.
func textsOf(labels []portlayer.Label) (texts []string) {
	for _, l := range labels {
		texts = append(texts, string(l))
	}
	return texts
}
