package qemu

import "vch/internal/guestkernel"

// guestModules are the drivers of the machines made here.
var guestModules = guestkernel.Modules{
	Boot: []guestkernel.Module{
		{Name: "virtio_pci", What: "the machine's virtio devices"},
		{Name: "virtio_console", What: "the guest channel"},
		{Name: "virtio_scsi", What: "disks"},
		{Name: "sd_mod", What: "disks"},
		{Name: "ext4", What: "file systems"},
		{Name: "overlay", What: "the container's root"},
		{Name: "virtio_net", What: "networks"},
		{Name: "8021q", What: "networks"},
		{Name: "virtiofs"},       // directories of the host
		{Name: "virtio_balloon"}, // gives free memory back to the host
	},
	Later: []guestkernel.Module{{Name: "nfsv3"}, {Name: "nfsv4"}}, // 5 MB
}
