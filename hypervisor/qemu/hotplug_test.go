package qemu

import (
	"context"
	"maps"
	"slices"
	"testing"
	"time"

	"vch/hypervisor/hypertest"
	"vch/internal/fault"
	"vch/internal/qmp"
	"vch/portlayer"
)

// A change that the daemon's end cut off is finished by the next, whichever way it was going.
func TestInterruptedPlug(t *testing.T) {
	if testing.Short() {
		t.Skip("runs QEMU")
	}
	dir := t.TempDir()
	h, err := New(t.Context(), Options{StateDir: dir, Tether: hypertest.Tether(t), Accel: "tcg"})
	if err != nil {
		t.Fatal(err)
	}
	disk := func(name string) portlayer.Disk {
		p := h.Disks().Join(portlayer.DiskPath(dir), name+".vmdk")
		if err := h.Disks().Create(t.Context(), p, portlayer.DiskSpec{Size: portlayer.MinDisk, Label: "00112233445566778899aabbccddeeff"}); err != nil {
			t.Fatal(err)
		}
		return portlayer.Disk{Serial: name, File: p, Throttle: portlayer.Throttle{IOPS: 10}}
	}
	stays, goes, comes := disk("stays"), disk("goes"), disk("comes")
	made, err := h.Define(t.Context(), portlayer.MachineSpec{ID: "cut", Memory: 128 * portlayer.MiB, CPUs: 1,
		Devices: []portlayer.DeviceChange{{Op: portlayer.Add, Disk: stays}, {Op: portlayer.Add, Disk: goes}}})
	if err != nil {
		t.Fatal(err)
	}
	m := made.(*machine)
	t.Cleanup(func() {
		if err := m.Undefine(context.Background()); err != nil {
			t.Error(err)
		}
		if err := h.Close(); err != nil {
			t.Error(err)
		}
	})
	if err := m.PowerOn(t.Context()); err != nil {
		t.Fatal(err)
	}
	has := func() map[string]int {
		t.Helper()
		ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
		defer cancel()
		conn, err := dial(ctx, m.process().home(), qmpSocket)
		if err != nil {
			t.Fatal(err)
		}
		q, err := qmp.Connect(ctx, conn)
		if err != nil {
			t.Fatal(err)
		}
		defer q.Close()
		have, err := plugged(ctx, q)
		if err != nil {
			t.Fatal(err)
		}
		return have
	}
	def, err := m.definition()
	if err != nil {
		t.Fatal(err)
	}
	def.Disks = []portlayer.Disk{stays, comes}
	if err := m.write(def); err != nil {
		t.Fatal(err)
	}
	if got := has(); !maps.Equal(got, map[string]int{"stays": 0, "goes": 1}) {
		t.Fatalf("before: %v", got)
	}
	if err := m.Reconfigure(t.Context(), nil); err != nil {
		t.Fatal(err)
	}
	if got := has(); !maps.Equal(got, map[string]int{"stays": 0, "comes": 2}) {
		t.Errorf("after: %v", got)
	}
	// A unit is not taken again before all others were, so that a guest that is slow to notice confuses no disk with the one before.
	change := func(c ...portlayer.DeviceChange) {
		t.Helper()
		if err := m.Reconfigure(t.Context(), c); err != nil {
			t.Fatal(err)
		}
	}
	for n := 3; n <= luns; n++ {
		change(portlayer.DeviceChange{Op: portlayer.Remove, Disk: comes})
		change(portlayer.DeviceChange{Op: portlayer.Add, Disk: comes})
		if want, got := n, has()["comes"]; got != want && (n < luns || got != 1) {
			t.Fatalf("unit %d, want %d", got, want)
		}
	}
	// A machine whose disks have no names, as one that an earlier daemon started, is left as it is.
	change(portlayer.DeviceChange{Op: portlayer.Remove, Disk: comes}, portlayer.DeviceChange{Op: portlayer.Remove, Disk: stays})
	def.Disks = []portlayer.Disk{goes}
	if err := m.write(def); err != nil {
		t.Fatal(err)
	}
	if err := m.Reconfigure(t.Context(), []portlayer.DeviceChange{{Op: portlayer.Add, Disk: comes}}); !fault.Is(err, fault.Unsupported) {
		t.Errorf("a machine of an earlier daemon: %v", err)
	}
	if now, err := m.Disks(t.Context()); err != nil || !slices.Equal(now, def.Disks) {
		t.Errorf("its definition: %v, %v", now, err)
	}
}
