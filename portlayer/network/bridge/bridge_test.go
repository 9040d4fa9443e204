package bridge

import (
	"log/slog"
	"net"
	"net/netip"
	"os"
	"os/exec"
	"runtime"
	"strings"
	"syscall"
	"testing"

	"github.com/vishvananda/netlink"
	"github.com/vishvananda/netns"
	"golang.org/x/sys/unix"

	"vch/internal/fault"
	"vch/portlayer"
	"vch/portlayer/network/networktest"
)

// inside is set in the environment of the process that has a network namespace of its own: these tests change the kernel's networks.
const inside = "VCH_TEST_NETWORK_NAMESPACE"

// apart runs the test that calls it once more, in a process with a network namespace of its own, and reports whether this is that one.
func apart(t *testing.T) bool {
	t.Helper()
	return apartAs(t, nil)
}

// apartAs is apart as another user; nil: as root.
func apartAs(t *testing.T, who *syscall.Credential) bool {
	t.Helper()
	if os.Getenv(inside) != "" {
		return true
	}
	if os.Geteuid() != 0 {
		t.Skip("needs root: bridges and rules are the kernel's")
	}
	if _, err := exec.LookPath("nft"); err != nil {
		t.Skip("needs nft: scripts/setup installs it")
	}
	self, err := os.Open("/proc/self/exe") // another user may not come there by the path
	must(t, err)
	defer self.Close()
	cmd := exec.Command("/proc/self/fd/3", "-test.run=^"+t.Name()+"$", "-test.v", "-test.timeout=4m")
	cmd.Env = append(os.Environ(), inside+"=1")
	cmd.ExtraFiles = []*os.File{self}
	cmd.SysProcAttr = &syscall.SysProcAttr{Cloneflags: syscall.CLONE_NEWNET | syscall.CLONE_NEWNS, Pdeathsig: syscall.SIGKILL, Credential: who}
	out, err := cmd.CombinedOutput()
	if err != nil || !strings.Contains(string(out), "--- PASS: "+t.Name()) {
		t.Errorf("in its namespace: %v\n%s", err, out)
	}
	return false
}

func must(t *testing.T, errs ...error) {
	t.Helper()
	for _, err := range errs {
		if err != nil {
			t.Fatal(err)
		}
	}
}

func address(t *testing.T, text string) *netlink.Addr {
	t.Helper()
	a, err := netlink.ParseAddr(text)
	must(t, err)
	return a
}

// world is one namespace further, by a cable: there is Server, and the host's end of the cable has HostOwn.
func world(t *testing.T) *networktest.World {
	t.Helper()
	must(t, unix.Mount("proc", "/proc", "proc", 0, "")) // its /proc/sys/net
	w := networktest.NewWorld()
	w.Apart = true
	lo, err := netlink.LinkByName("lo")
	must(t, err, netlink.LinkSetUp(lo))
	far, servers := outside(t)
	attrs := netlink.NewLinkAttrs()
	attrs.Name = "wire"
	must(t, netlink.LinkAdd(&netlink.Veth{LinkAttrs: attrs, PeerName: "far", PeerNamespace: netlink.NsFd(far)}))
	wire, err := netlink.LinkByName("wire")
	must(t, err, netlink.AddrAdd(wire, address(t, networktest.HostOwn.String()+"/24")), netlink.LinkSetUp(wire),
		netlink.RouteAdd(&netlink.Route{LinkIndex: wire.Attrs().Index, Gw: networktest.Server.AsSlice()}))
	h, err := netlink.NewHandleAt(far)
	must(t, err)
	defer h.Close()
	link, err := h.LinkByName("far")
	must(t, err, h.AddrAdd(link, address(t, networktest.Server.String()+"/24")), h.LinkSetUp(link))
	servers(w)
	for _, at := range []string{"127.0.0.1:80", networktest.HostOwn.String() + ":80", "192.0.2.1:80"} {
		listen(t, w, at)
	}
	return w
}

// listen has an echo of the world at an address, which may come later (IP_FREEBIND).
func listen(t *testing.T, w *networktest.World, at string) {
	t.Helper()
	c := net.ListenConfig{Control: func(_, _ string, raw syscall.RawConn) error {
		var err error
		cerr := raw.Control(func(fd uintptr) { err = unix.SetsockoptInt(int(fd), unix.SOL_IP, unix.IP_FREEBIND, 1) })
		if cerr != nil {
			return cerr
		}
		return err
	}}
	l, err := c.Listen(t.Context(), "tcp4", at)
	must(t, err)
	u, err := c.ListenPacket(t.Context(), "udp4", at)
	must(t, err)
	t.Cleanup(func() { l.Close(); u.Close() })
	w.Echo(l, u, at)
}

// outside makes the namespace of the world. servers, called once it has its address, has an echo there.
func outside(t *testing.T) (far netns.NsHandle, servers func(*networktest.World)) {
	t.Helper()
	begin, made, done := make(chan *networktest.World), make(chan netns.NsHandle), make(chan struct{})
	go func() {
		runtime.LockOSThread() // never unlocked: the thread ends with the namespace in it
		defer close(done)
		ns, err := netns.New()
		if err != nil {
			t.Error(err)
		}
		made <- ns
		if w := <-begin; w != nil {
			listen(t, w, networktest.Server.String()+":80") // its sockets stay where they were made
		}
	}()
	far = <-made
	t.Cleanup(func() { far.Close() })
	return far, func(w *networktest.World) { begin <- w; <-done }
}

func open(t *testing.T) *Backend {
	t.Helper()
	b, err := New(Options{Log: slog.New(slog.DiscardHandler), VCH: "0123abcd-0000"})
	must(t, err)
	return b
}

// ours are the interfaces and the tables that are there.
func ours(t *testing.T) (names []string) {
	t.Helper()
	links, err := netlink.LinkList()
	must(t, err)
	for _, l := range links {
		if strings.HasPrefix(l.Attrs().Alias, "vch ") {
			names = append(names, l.Attrs().Name)
		}
	}
	out, err := exec.Command("nft", "list", "tables").CombinedOutput()
	must(t, err)
	return append(names, strings.Fields(string(out))...)
}

func TestSuite(t *testing.T) {
	if !apart(t) {
		return
	}
	networktest.Run(t, networktest.Options{
		New:   func(t *testing.T, _ *networktest.World) portlayer.NetworkBackend { return open(t) },
		World: world,
	})
	if left := ours(t); len(left) != 0 {
		t.Errorf("left: %v", left)
	}
}

// TestTakesOver: what a process that was killed has left is gone when the next one opens, and another VCH's stays.
func TestTakesOver(t *testing.T) {
	if !apart(t) {
		return
	}
	must(t, unix.Mount("proc", "/proc", "proc", 0, ""))
	n := portlayer.Network{ID: "abcdefabcdef", Name: "n", Subnet: netip.MustParsePrefix("192.0.2.0/24"), Gateway: netip.MustParseAddr("192.0.2.1")}
	other, err := New(Options{Log: slog.New(slog.DiscardHandler), VCH: "ffffffff-1111"})
	must(t, err)
	m := n
	m.ID, m.Subnet, m.Gateway = "123456123456", netip.MustParsePrefix("198.51.100.0/24"), netip.MustParseAddr("198.51.100.1")
	theirs, err := other.Open(t.Context(), m)
	must(t, err)
	killed := open(t)
	_, err = killed.Open(t.Context(), n)
	must(t, err, killed.Publish(portlayer.Published{Proto: portlayer.TCP, HostIP: netip.IPv4Unspecified(), HostPort: 80}, true))
	b := open(t)
	if left := strings.Join(ours(t), " "); strings.Contains(left, "vb-abcdef") || !strings.Contains(left, "vb-123456") {
		t.Errorf("there are %s", left)
	}
	s, err := b.Open(t.Context(), n)
	must(t, err)
	if _, err := s.Attach(net.HardwareAddr{2, 0, 0, 0, 0, 5}, netip.MustParseAddr("192.0.2.5"), true, func([]byte) {}); err != nil {
		t.Fatal(err)
	}
	if out, err := exec.Command("nft", "list", "table", "inet", "vch_0123abcd").CombinedOutput(); err != nil || !strings.Contains(string(out), "192.0.2.5 . 192.0.2.1") || strings.Contains(string(out), "tcp . 80") {
		t.Errorf("%v: %s", err, out)
	}
	must(t, theirs.Close(), other.Close())
}

func TestNeedsRoot(t *testing.T) {
	const nobody = 65534
	if !apartAs(t, &syscall.Credential{Uid: nobody, Gid: nobody}) {
		return
	}
	if _, err := New(Options{Log: slog.New(slog.DiscardHandler), VCH: "0123abcd"}); !fault.Is(err, fault.Denied) || !strings.Contains(err.Error(), "run vch as root, or use --network-backend user") {
		t.Errorf("without rights: %v", err)
	}
}
