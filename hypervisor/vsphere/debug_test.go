package vsphere

import (
	"context"
	"net"
	"testing"
	"time"

	"vch/guest"
	"vch/hypervisor/hypertest"
	"vch/hypervisor/vsphere/vcsim"
	"vch/portlayer"
)

func TestDebugBoot(t *testing.T) {
	sim := simulate(t, vcsim.Options{Machines: vcsim.QEMU{}})
	o := options(t, sim, t.TempDir())
	o.Tether = hypertest.Tether(t)
	h := open(t, o)
	d := h.Disks()
	dir := d.Join("[datastore1]", "disks")
	if err := d.MakeDir(t.Context(), dir); err != nil {
		t.Fatal(err)
	}
	img := hypertest.Busybox(t, h, dir)
	m, err := h.Define(t.Context(), portlayer.MachineSpec{ID: "abc", Memory: 192 << 20, CPUs: 1, Devices: []portlayer.DeviceChange{{Op: portlayer.Add, Disk: portlayer.Disk{Serial: "image", File: img, ReadOnly: true}}, {Op: portlayer.Add, Disk: portlayer.Disk{Serial: "own", Size: 64 << 20}}}})
	if err != nil {
		t.Fatal(err)
	}
	began := time.Now()
	if err := m.PowerOn(t.Context()); err != nil {
		t.Fatal(err)
	}
	t.Log("on", time.Since(began))
	ctx, cancel := context.WithTimeout(t.Context(), 25*time.Second)
	defer cancel()
	c, err := guest.Dial(ctx, func(ctx context.Context) (net.Conn, error) { return m.Channel(ctx) })
	t.Log(time.Since(began), err)
	if err == nil {
		st, err := c.Status(ctx)
		t.Log(st, err)
		c.Close()
	}
	t.Logf("%s", sim.Console("abc"))
	if err := m.Undefine(t.Context()); err != nil {
		t.Error(err)
	}
}
