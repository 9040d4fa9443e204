package vmdk

import (
	"context"
	"fmt"
	"log/slog"
	"net"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"vch/hypervisor/vsphere"
	"vch/hypervisor/vsphere/vcsim"
	"vch/portlayer"
	"vch/portlayer/volume/volumetest"
)

// The laws on a simulated vCenter: places share a datastore, but where one is to go away.
func TestStoreOnVSphere(t *testing.T) {
	if testing.Short() {
		t.Skip("a simulated vCenter takes 20 ms for each of thousands of tasks")
	}
	stores := []string{"common", "lost1", "lost2", "lost3", "lost4"}
	sim, err := vcsim.Start(vcsim.Options{Dir: t.TempDir(), Datastores: stores})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := sim.Close(); err != nil {
			t.Error(err)
		}
	})
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	password, _ := sim.User().Password()
	h, err := vsphere.Open(t.Context(), vsphere.Options{
		Server: vsphere.Server{URL: sim.URL().String(), User: sim.User().Username(), Password: password, Thumbprint: sim.Thumbprint()},
		VCH:    "laws", Datastore: stores[0], Network: vcsim.Network, Listener: listener, Advertise: listener.Addr().String(), StateDir: t.TempDir(), Log: slog.New(slog.DiscardHandler),
	})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := h.Close(); err != nil {
			t.Error(err)
		}
	})
	var mu sync.Mutex
	next, lost := 0, 0
	// Not in parallel with others: the laws are parallel among themselves, and end before this does.
	t.Run("laws", func(t *testing.T) {
		volumetest.Run(t, func(t *testing.T, _ string) volumetest.Place {
			mu.Lock()
			defer mu.Unlock()
			next++
			if !strings.Contains(t.Name(), "degraded") {
				return onDatastore(t, sim, h.Disks(), stores[0], fmt.Sprint(next))
			}
			if lost++; lost == len(stores) {
				t.Fatal("there are too few datastores")
			}
			return onDatastore(t, sim, h.Disks(), stores[lost], "x")
		})
	})
}

func onDatastore(t *testing.T, sim *vcsim.Sim, disks portlayer.Disks, name, dir string) volumetest.Place {
	root := disks.Join(portlayer.DiskPath("["+name+"]"), dir, "vols")
	if err := disks.MakeDir(t.Context(), disks.Join(root, "..")); err != nil {
		t.Fatal(err)
	}
	local := sim.Path(string(root))
	faulty := volumetest.NewFaulty(disks)
	must := func(err error) {
		if err != nil {
			t.Fatal(err)
		}
	}
	at := func(n portlayer.VolumeName, file string) string {
		return filepath.Join(local, "volumes", string(n), file)
	}
	return volumetest.Place{
		Open: func(ctx context.Context) (portlayer.VolumeStore, error) {
			return Open(ctx, Options{Name: "disks", Location: string(root), Root: root, Disks: faulty, Driver: "vsphere-vmdk", SizeUnit: vsphere.SizeUnit})
		},
		TooSmall: portlayer.MiB,
		Disks:    true,
		Born:     disks.Born(),
		Tree: func() (all []string) {
			for end := time.Now().Add(10 * time.Second); ; time.Sleep(5 * time.Millisecond) { // what has lost its name goes a moment later
				all = files(t, local)
				if !strings.Contains(strings.Join(all, "\n"), "/.vch-removed-") || time.Now().After(end) {
					return all
				}
			}
		},
		Degrade: map[string]func(bool){
			"lost": func(on bool) {
				if on {
					sim.Datastore(name).Lose()
				} else {
					sim.Datastore(name).Restore()
				}
				known := func() bool { // by the watcher: a call may find out earlier
					_, _, err := disks.Space(t.Context(), "["+portlayer.DiskPath(name)+"]")
					return (err != nil && strings.Contains(err.Error(), "no host reaches")) == on
				}
				for end := time.Now().Add(10 * time.Second); !known() && time.Now().Before(end); time.Sleep(5 * time.Millisecond) { // the news takes a moment
				}
			},
		},
		Damage: map[string]func(portlayer.VolumeName){
			"truncated":     func(n portlayer.VolumeName) { must(os.Truncate(at(n, string(n)+"-flat.vmdk"), 4096)) },
			"no extent":     func(n portlayer.VolumeName) { must(os.Remove(at(n, string(n)+"-flat.vmdk"))) },
			"no descriptor": func(n portlayer.VolumeName) { must(os.Remove(at(n, string(n)+".vmdk"))) },
			"no record":     func(n portlayer.VolumeName) { must(os.Remove(at(n, "volume.json"))) },
			"half a record": func(n portlayer.VolumeName) { must(os.Truncate(at(n, "volume.json"), 20)) },
		},
		Faults: &faulty.Faults,
	}
}
