package vsphere

import (
	"testing"

	"vch/hypervisor/vsphere/vcsim"
	"vch/internal/fault"
	"vch/portlayer"
)

// That something is missing in a directory makes it worth a look whether that is there, and no more: to see that it takes files, one is written, and not for every name that is new.
func TestSpaceAsksLittle(t *testing.T) {
	sim := simulate(t, vcsim.Options{})
	h := open(t, options(t, sim, t.TempDir()))
	d := h.Disks()
	store := portlayer.DiskPath("[datastore1] volumes")
	space := func() error { _, _, err := d.Space(t.Context(), store); return err }
	if err := d.MakeDir(t.Context(), store); err != nil {
		t.Fatal(err)
	}
	if err := space(); err != nil {
		t.Fatal(err)
	}
	sim.Calls(true)
	if _, err := d.ReadFile(t.Context(), d.Join(store, "new", "volume.json")); !fault.Is(err, fault.NotFound) {
		t.Fatalf("a missing file: %v", err)
	}
	for range 2 {
		if err := space(); err != nil {
			t.Fatal(err)
		}
	}
	if c := sim.Calls(true); c["PUT /folder"] != 0 || c["SearchDatastore_Task"] != 1 {
		t.Errorf("after a file was missing: %v", c)
	}
	spec := portlayer.DirSpec{Disk: portlayer.DiskSpec{Size: portlayer.GiB, Label: "0123456789abcdef0123456789abcdef"}, Name: "a.vmdk", File: "volume.json", Data: []byte("{}")}
	dir := d.Join(store, "a")
	if err := d.CreateDir(t.Context(), dir, spec); err != nil {
		t.Fatal(err)
	}
	if err := d.RemoveDir(t.Context(), dir); err != nil {
		t.Fatal(err)
	}
	sim.Calls(true)
	if err := space(); err != nil {
		t.Fatal(err)
	}
	if c := sim.Calls(true); c["PUT /folder"]+c["SearchDatastore_Task"] != 0 {
		t.Errorf("after a directory was made and removed: %v", c)
	}
	// One that is gone is noticed.
	if err := d.RemoveDir(t.Context(), store); err != nil {
		t.Fatal(err)
	}
	if err := space(); !fault.Is(err, fault.NotFound) {
		t.Errorf("a directory that is gone: %v", err)
	}
}
