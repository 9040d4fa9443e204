package vsphere

import "vch/internal/guestkernel"

// guestModules are the drivers of the machines made here. What plugs in disks and cards is in the kernel (CONFIG_HOTPLUG_PCI_PCIE, CONFIG_HOTPLUG_PCI_ACPI); what
// reads the disc that they boot from is left out, so that no process of a container sees one.
var guestModules = guestkernel.Modules{
	Boot: []guestkernel.Module{
		{Name: "vmw_pvscsi", What: "disks"},
		{Name: "sd_mod", What: "disks"},
		{Name: "ext4", What: "file systems"},
		{Name: "overlay", What: "the container's root"},
		{Name: "vmxnet3", What: "the management card"},
		{Name: "tun", What: "networks"}, // their frames come over a connection
		{Name: "8021q", What: "networks"},
		{Name: "vmw_balloon"}, // gives free memory back to the host; loads nowhere but there
		{Name: "qemu_fw_cfg"}, // what QEMU has instead of guestinfo, where it plays vSphere's part in a test
	},
	Later: []guestkernel.Module{{Name: "nfsv3"}, {Name: "nfsv4"}}, // 5 MB
}
