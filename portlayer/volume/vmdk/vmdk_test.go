package vmdk

import (
	"context"
	"testing"

	"vch/portlayer"
	"vch/portlayer/volume/volumetest"
)

// memory is a place on a medium in memory.
func memory(*testing.T, string) volumetest.Place {
	d := volumetest.NewDisks()
	faulty := volumetest.NewFaulty(d)
	at := func(n portlayer.VolumeName, file string) portlayer.DiskPath {
		return d.Join("/store", "volumes", string(n), file)
	}
	return volumetest.Place{
		Open: func(ctx context.Context) (portlayer.VolumeStore, error) {
			return Open(ctx, Options{Name: portlayer.DefaultStore, Location: "/store", Root: "/store", Disks: faulty, Driver: "test-vmdk"})
		},
		TooSmall: portlayer.MiB,
		Disks:    true,
		Tree:     d.Tree,
		Degrade: map[string]func(bool){
			"unmounted": func(on bool) { d.Unmount(when(on, "/store")) },
			"emptied":   func(on bool) { d.Unmount(when(on, "/store/volumes")) },
			"read-only": d.SetReadOnly,
		},
		Damage: map[string]func(portlayer.VolumeName){
			"truncated":           func(n portlayer.VolumeName) { d.Truncate(at(n, string(n)+".vmdk"), portlayer.MiB) },
			"emptied":             func(n portlayer.VolumeName) { d.Truncate(at(n, string(n)+".vmdk"), 0) },
			"no extent":           func(n portlayer.VolumeName) { d.Put(at(n, string(n)+"-flat.vmdk"), nil) },
			"no descriptor":       func(n portlayer.VolumeName) { d.Put(at(n, string(n)+".vmdk"), nil) },
			"bad descriptor":      func(n portlayer.VolumeName) { d.Put(at(n, string(n)+".vmdk"), []byte("KDMV\x00")) },
			"smaller disk":        func(n portlayer.VolumeName) { shrink(d, at(n, string(n)+".vmdk")) },
			"no volume.json":      func(n portlayer.VolumeName) { d.Put(at(n, "volume.json"), nil) },
			"empty volume.json":   func(n portlayer.VolumeName) { d.Put(at(n, "volume.json"), []byte{}) },
			"garbled volume.json": func(n portlayer.VolumeName) { d.Put(at(n, "volume.json"), []byte(`{"format":1,"size":`)) },
			"hollow volume.json":  func(n portlayer.VolumeName) { d.Put(at(n, "volume.json"), []byte(`{}`)) },
		},
		Fill:   d.Fill,
		Faults: &faulty.Faults,
	}
}

func when(on bool, dir portlayer.DiskPath) portlayer.DiskPath {
	if on {
		return dir
	}
	return ""
}

// shrink puts a smaller, whole disk in a disk's place.
func shrink(d *volumetest.Disks, p portlayer.DiskPath) {
	ctx := context.Background()
	if err := d.Delete(ctx, p); err != nil {
		panic(err)
	}
	if err := d.Create(ctx, p, portlayer.DiskSpec{Size: 4 * portlayer.MiB, Label: portlayer.Label(hash("x"))}); err != nil {
		panic(err)
	}
}

func TestStoreOnDisksInMemory(t *testing.T) { volumetest.Run(t, memory) }
