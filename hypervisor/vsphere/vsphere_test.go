package vsphere

import (
	"log/slog"
	"net"
	"strings"
	"testing"
	"time"

	"go.uber.org/goleak"

	"vch/hypervisor/hypertest"
	"vch/hypervisor/vsphere/vcsim"
	"vch/portlayer"
)

func TestMain(m *testing.M) {
	// A server that answered before all of a body came waits for half a second before it closes the connection (net/http's rstAvoidanceDelay).
	goleak.VerifyTestMain(m, goleak.IgnoreAnyFunction("net/http.(*conn).closeWriteAndWait"))
}

// simulate starts a vCenter that ends with the test, and looks for what is left there.
func simulate(t *testing.T, o vcsim.Options) *vcsim.Sim {
	t.Helper()
	if o.Dir == "" {
		o.Dir = t.TempDir()
	}
	sim, err := vcsim.Start(o)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := sim.Close(); err != nil {
			t.Error(err)
		}
	})
	return sim
}

// options are those of a hypervisor on a simulated vCenter.
func options(t *testing.T, sim *vcsim.Sim, dir string) Options {
	t.Helper()
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	_, port, _ := net.SplitHostPort(listener.Addr().String())
	user := sim.User().Username()
	password, _ := sim.User().Password()
	return Options{
		Server: Server{URL: sim.URL().String(), User: user, Password: password, Thumbprint: sim.Thumbprint()},
		VCH:    "this", Name: "test", Datastore: "datastore1", Network: vcsim.Network, Folder: "vm", StateDir: dir,
		Listener: listener, Advertise: "10.0.2.2:" + port, Log: slog.New(slog.NewTextHandler(testWriter{t}, nil)),
	}
}

func quiet() *slog.Logger { return slog.New(slog.DiscardHandler) }

// testWriter logs what a hypervisor says.
type testWriter struct{ t *testing.T }

func (w testWriter) Write(p []byte) (int, error) {
	w.t.Log(strings.TrimSuffix(string(p), "\n"))
	return len(p), nil
}

// open opens a hypervisor that is closed at the test's end.
func open(t *testing.T, o Options) *Hypervisor {
	t.Helper()
	h, err := Open(t.Context(), o)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := h.Close(); err != nil {
			t.Error(err)
		}
	})
	return h
}

// The suite, in real machines.
func TestSuite(t *testing.T) {
	if testing.Short() {
		t.Skip("boots VMs")
	}
	program := hypertest.Tether(t)
	sim := simulate(t, vcsim.Options{Machines: vcsim.QEMU{}, Log: slog.New(slog.NewTextHandler(testWriter{t}, nil))})
	// One address for all daemons, as an administrator has it.
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	address := listener.Addr().String()
	listener.Close()
	hypertest.Run(t, hypertest.Options{
		New: func(t *testing.T, dir string) portlayer.Hypervisor {
			t.Helper()
			o := options(t, sim, dir)
			o.Listener.Close()
			if o.Listener, err = net.Listen("tcp", address); err != nil {
				t.Fatal(err)
			}
			_, port, _ := net.SplitHostPort(address)
			o.Advertise, o.Tether = "10.0.2.2:"+port, program
			h, err := Open(t.Context(), o)
			if err != nil {
				t.Fatal(err)
			}
			return h
		},
		Image:    hypertest.Busybox,
		Commands: hypertest.Commands{Write: func(p, text string) string { return "echo -n " + text + " > " + p }, Read: func(p string) string { return "cat " + p }},
		Limit:    40 * time.Second,
		Memory:   192 * portlayer.MiB,
		SizeUnit: SizeUnit, HidesExtents: true, NoByteRate: true, Uploads: true,
		Datastore: func(string) (portlayer.DiskPath, func(portlayer.DiskPath) string) {
			return "[datastore1]", func(p portlayer.DiskPath) string { return sim.Path(string(p)) }
		},
	})
	for _, left := range sim.Left() {
		if !strings.Contains(left, "] "+goldenDir) && left != "[datastore1] disks" { // the suite's own directory, which is listed because nothing is in it
			t.Errorf("left on vSphere: %s", left)
		}
	}
}
