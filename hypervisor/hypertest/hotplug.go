package hypertest

import (
	"context"
	"io"
	"slices"
	"strings"
	"testing"

	"vch/guest"
	"vch/internal/fault"
	"vch/portlayer"
)

// hotplug gives a running machine disks and takes them away, with the guest's part in it. A second machine is on only to hold a disk.
func (s *suite) hotplug(t *testing.T) {
	first, second, ro := s.disk(t, "first"), s.disk(t, "second"), s.disk(t, "readable")
	add := func(name string, file portlayer.DiskPath, readOnly bool) portlayer.DeviceChange {
		return portlayer.DeviceChange{Op: portlayer.Add, Disk: volumeDisk(name, file, readOnly)}
	}
	remove := func(name string) portlayer.DeviceChange {
		return portlayer.DeviceChange{Op: portlayer.Remove, Disk: portlayer.Disk{Serial: string(label(name))}}
	}
	spec := s.spec("plugged")
	m := s.define(t, spec)
	s.powerOn(t, m)
	reconfigure := func(changes ...portlayer.DeviceChange) error { return m.Reconfigure(s.limit(t), changes) }
	// seated says where the machine has a disk that its guest does not know by its serial.
	seated := func(v guest.MountSpec) guest.MountSpec {
		if seat, ok := m.Seats()[strings.TrimPrefix(v.Source, "label://")]; ok && seat.Slot != 0 {
			v.Seat = &seat
		}
		return v
	}
	// disks checks the definition's, beside the root's.
	disks := func(want ...string) {
		t.Helper()
		all, err := m.Disks(t.Context())
		var got []string
		for _, d := range all {
			if d.Serial != imageSerial && d.Serial != ownSerial {
				got = append(got, d.Serial)
			}
		}
		for i := range want {
			want[i] = string(label(want[i]))
		}
		if err != nil || !slices.Equal(got, want) {
			t.Errorf("the machine has the disks %v, %v; want %v", got, err, want)
		}
	}
	c := s.connect(t, m)
	want(t, "mount before the start", c.Mount(s.limit(t), s.volume("first", false)), fault.Conflict)
	s.configure(t, c, config("plugged", []string{"cat"}))

	// A disk that another machine holds stays with it, and a change that cannot be whole is not begun.
	holder := s.define(t, s.spec("rival", volumeDisk("first", first, false)))
	s.powerOn(t, holder)
	for _, change := range [][]portlayer.DeviceChange{{add("first", first, false)}, {add("first", first, true)}, {add("second", second, false), add("first", first, false)}} {
		want(t, "a disk that another machine writes", reconfigure(change...), fault.InUse)
		disks()
	}
	if err := holder.PowerOff(s.limit(t)); err != nil {
		t.Fatal(err)
	}
	s.undefine(t, holder)
	// A disk that comes to a machine without an image is no image: it can go again.
	bare := s.define(t, portlayer.MachineSpec{ID: "bare", Memory: spec.Memory, CPUs: spec.CPUs, Devices: []portlayer.DeviceChange{{Op: portlayer.Add, Disk: portlayer.Disk{Serial: ownSerial, Size: portlayer.MinDisk}}}})
	s.powerOn(t, bare)
	for _, change := range []portlayer.DeviceChange{add("readable", ro, true), remove("readable")} {
		if err := bare.Reconfigure(s.limit(t), []portlayer.DeviceChange{change}); err != nil {
			t.Error(err)
		}
	}
	if err := bare.PowerOff(s.limit(t)); err != nil {
		t.Fatal(err)
	}
	s.undefine(t, bare)
	for _, bad := range []struct {
		what    string
		kind    fault.Kind
		changes []portlayer.DeviceChange
	}{
		{"a disk that is not there is removed", fault.NotFound, []portlayer.DeviceChange{add("second", second, false), remove("none")}},
		{"a disk that is there is added", fault.Conflict, []portlayer.DeviceChange{add("second", second, false), {Op: portlayer.Add, Disk: portlayer.Disk{Serial: ownSerial, File: first}}}},
		{"a disk without a file", fault.NotFound, []portlayer.DeviceChange{add("second", second, false), add("lost", s.h.Disks().Join(s.disks, "lost.vmdk"), false)}},
		{"a disk of its own", fault.Unsupported, []portlayer.DeviceChange{add("second", second, false), {Op: portlayer.Add, Disk: portlayer.Disk{Serial: "more", Size: portlayer.MinDisk}}}},
		{"its own disk is removed", fault.Unsupported, []portlayer.DeviceChange{add("second", second, false), {Op: portlayer.Remove, Disk: portlayer.Disk{Serial: ownSerial}}}},
	} {
		want(t, bad.what, reconfigure(bad.changes...), bad.kind)
		disks()
	}

	// Two disks at once, one after the other used, and gone.
	if err := reconfigure(add("first", first, false), add("second", second, false)); err != nil {
		t.Fatal(err)
	}
	disks("first", "second")
	want(t, "one disk in two steps", reconfigure(remove("first"), add("first", first, false)), fault.Unsupported)
	vol, deep := s.volume("first", false), s.volume("second", false)
	deep.Target = "/data/second"
	for range 2 { // the second time nothing happens
		for _, v := range []guest.MountSpec{vol, deep} {
			if err := c.Mount(s.limit(t), seated(v)); err != nil {
				t.Fatal(err)
			}
		}
	}
	other := s.volume("second", false)
	want(t, "mount where something is mounted", c.Mount(s.limit(t), seated(other)), fault.Conflict, "/data")
	if out := s.exec(t, c, "/", s.Commands.Write("/data/f", "plugged"), s.Commands.Write("/data/second/f", "too"), s.Commands.Read("/data/f")); out != "plugged" {
		t.Errorf("what was written to a plugged disk reads as %q", out)
	}

	// What is in use stays: for what is mounted on it, and for a process in it, which is named.
	want(t, "unmount below another mount", c.Unmount(s.limit(t), "/data"), fault.InUse, "/data/second")
	if err := c.Unmount(s.limit(t), "/data/second"); err != nil {
		t.Fatal(err)
	}
	ctx, leave := context.WithCancel(t.Context())
	started, ended := make(chan int, 1), make(chan error, 1)
	go func() {
		_, err := c.Exec(ctx, "worker", guest.Process{Args: []string{"sleep", "1000"}, Cwd: "/data"}, nil, func(pid int) { started <- pid }, func(guest.Stream, []byte) error { return nil })
		ended <- err
	}()
	<-started
	want(t, "unmount below a process", c.Unmount(s.limit(t), "/data"), fault.InUse, "sleep", "working directory")
	if out := s.exec(t, c, "/", s.Commands.Read("/data/f")); out != "plugged" {
		t.Errorf("after a refused unmount the volume reads as %q", out)
	}
	if err := c.Signal(s.limit(t), "worker", 9); err != nil {
		t.Error(err)
	}
	if err := <-ended; err != nil {
		t.Error(err)
	}
	leave()
	for range 2 { // the second time nothing happens
		if err := c.Unmount(s.limit(t), "/data"); err != nil {
			t.Fatal(err)
		}
	}

	// The daemon's end changes nothing; the next one takes the disks away.
	c.Close()
	s.restart(t)
	var err error
	if m, err = s.h.Machine(t.Context(), machineID("plugged")); err != nil {
		t.Fatal(err)
	}
	disks("first", "second")
	if err := reconfigure(); err != nil {
		t.Errorf("a change of nothing: %v", err)
	}
	if err := reconfigure(remove("first"), remove("second")); err != nil {
		t.Fatal(err)
	}
	disks()
	// They are free, and can come again, also at once and read-only.
	holder = s.define(t, s.spec("rival", volumeDisk("second", second, false)))
	s.powerOn(t, holder)
	if err := holder.PowerOff(s.limit(t)); err != nil {
		t.Fatal(err)
	}
	s.undefine(t, holder)
	c = s.connect(t, m)
	bounded := portlayer.Disk{Serial: string(label("readable")), File: ro, ReadOnly: true, Throttle: portlayer.Throttle{IOPS: 1000, BPS: 50 * portlayer.MiB}}
	if s.NoByteRate {
		want(t, "bytes a second", reconfigure(portlayer.DeviceChange{Op: portlayer.Add, Disk: bounded}), fault.Unsupported)
		bounded.Throttle.BPS = 0
	}
	if err := reconfigure(add("first", first, true), portlayer.DeviceChange{Op: portlayer.Add, Disk: bounded}); err != nil {
		t.Fatal(err)
	}
	bold := s.volume("readable", false)
	want(t, "mount a read-only disk writable", c.Mount(s.limit(t), seated(bold)), fault.Internal, "volume readable")
	if err := reconfigure(remove("readable")); err != nil {
		t.Fatal(err)
	}
	vol.ReadOnly = true
	if err := c.Mount(s.limit(t), seated(vol)); err != nil {
		t.Fatal(err)
	}
	also := s.volume("first", false)
	also.Target = "/also"
	want(t, "mount a read-only volume writable as well", c.Mount(s.limit(t), seated(also)), fault.Conflict, "volume first")
	also.ReadOnly = true
	if err := c.Mount(s.limit(t), seated(also)); err != nil {
		t.Error(err)
	}
	if out := s.exec(t, c, "/", s.Commands.Read("/data/f"), s.Commands.Read("/also/f"), s.Commands.Write("/data/f", "changed")); !strings.HasPrefix(out, "pluggedplugged") || !strings.Contains(out, "Read-only file system") {
		t.Errorf("a plugged read-only disk: %q", out)
	}

	// What is plugged in belongs to the machine: it has it again after it was off.
	if err := m.PowerOff(s.limit(t)); err != nil {
		t.Fatal(err)
	}
	<-c.Done()
	disks("first")
	s.powerOn(t, m)
	holder = s.define(t, s.spec("rival", volumeDisk("first", first, false)))
	want(t, "the disk of a machine that was off and on", holder.PowerOn(s.limit(t)), fault.InUse)
	s.undefine(t, holder)
	if err := reconfigure(remove("first")); err != nil {
		t.Error(err)
	}
	if err := m.PowerOff(s.limit(t)); err != nil {
		t.Fatal(err)
	}
	disks()
	s.undefine(t, m)
}

// exec runs commands beside the machine's process and gives what they print, their errors last.
func (s *suite) exec(t *testing.T, c *guest.Client, cwd string, commands ...string) string {
	t.Helper()
	var out, errs strings.Builder
	_, err := c.Exec(s.limit(t), "exec", guest.Process{Args: []string{"sh", "-c", strings.Join(commands, "; ")}, Cwd: cwd}, nil, func(int) {}, func(stream guest.Stream, data []byte) error {
		w := io.Writer(&out)
		if stream == guest.Stderr {
			w = &errs
		}
		_, err := w.Write(data)
		return err
	})
	if err != nil {
		t.Error(err)
	}
	return out.String() + errs.String()
}
