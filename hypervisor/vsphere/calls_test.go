package vsphere

import (
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net"
	"net/url"
	"os"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"vch/hypervisor/vsphere/vcsim"
	"vch/internal/atonce"
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
	sim.Calls(true)
	if looks := d.Look(t.Context(), store, []string{"a/a.vmdk"}, "volume.json"); looks[0] != (portlayer.Look{}) {
		t.Errorf("what was just made has a mark: %v", looks)
	}
	if c := sim.Calls(true); len(c) > 1 || len(c) == 1 && c["WaitForUpdatesEx"] == 0 {
		t.Errorf("a look at what was just made: %v", c)
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

// Who comes first to a store removes what an earlier process has left there, and nothing that others are just making.
func TestSweepLeavesWhatIsBeingMade(t *testing.T) {
	sim := simulate(t, vcsim.Options{})
	d := open(t, options(t, sim, t.TempDir())).Disks()
	store := portlayer.DiskPath("[datastore1] volumes")
	left := d.Join(store, d.(*Disks).owner+"left")
	if err := errors.Join(d.MakeDir(t.Context(), left), d.MakeDir(t.Context(), "[datastore1] warm")); err != nil {
		t.Fatal(err)
	}
	spec := portlayer.DirSpec{Disk: portlayer.DiskSpec{Size: portlayer.GiB, Label: "0123456789abcdef0123456789abcdef"}, Name: "a.vmdk", File: "volume.json", Data: []byte("{}")}
	if err := d.CreateDir(t.Context(), "[datastore1] warm/a", spec); err != nil { // the golden disk is there then
		t.Fatal(err)
	}
	sim.Delay("SearchDatastore_Task", 20*time.Millisecond) // the others are at work when it looks
	errs := make([]error, 8)
	atonce.Do(len(errs), len(errs), func(i int) { errs[i] = d.CreateDir(t.Context(), d.Join(store, fmt.Sprintf("v%d", i)), spec) })
	if err := errors.Join(errs...); err != nil {
		t.Error(err)
	}
	if _, err := os.Stat(sim.Path(string(left))); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("what an earlier process has left: %v", err)
	}
}

// A connection costs more than a call: those that a daemon had use for stay.
func TestConnectionsStay(t *testing.T) {
	sim := simulate(t, vcsim.Options{})
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	var accepted atomic.Int64
	var all sync.WaitGroup
	all.Go(func() {
		for {
			conn, err := l.Accept()
			if err != nil {
				return
			}
			accepted.Add(1)
			all.Go(func() {
				defer conn.Close()
				server, err := net.Dial("tcp", sim.URL().Host)
				if err != nil {
					return
				}
				defer server.Close()
				go func() { _, _ = io.Copy(server, conn); server.Close() }()
				_, _ = io.Copy(conn, server)
			})
		}
	})
	t.Cleanup(func() { l.Close(); all.Wait() })
	o := options(t, sim, t.TempDir())
	o.Server.URL = (&url.URL{Scheme: "https", Host: l.Addr().String()}).String()
	d := open(t, o).Disks()
	const clients, rounds = 8, 10
	for range rounds {
		atonce.Do(clients, clients, func(int) {
			if _, err := d.ReadFile(t.Context(), "[datastore1] none"); !fault.Is(err, fault.NotFound) {
				t.Error(err)
			}
		})
	}
	if n := accepted.Load(); n > 3*clients {
		t.Errorf("%d connections for %d calls at once, %d times", n, clients, rounds)
	}
}
