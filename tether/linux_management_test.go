package tether

import (
	"context"
	"io"
	"net"
	"net/netip"
	"os"
	osexec "os/exec"
	"slices"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/insomniacslk/dhcp/dhcpv4"
	"github.com/insomniacslk/dhcp/dhcpv4/nclient4"
	"github.com/insomniacslk/dhcp/dhcpv4/server4"
	"github.com/miekg/dns"
	"github.com/vishvananda/netlink"
	"github.com/vishvananda/netns"
	"golang.org/x/sys/unix"

	"vch/guest"
	"vch/internal/fault"
)

// apart runs the test that calls it once more, in a process with a network namespace of its own, and reports whether this is that one. Root is not needed.
func apart(t *testing.T) bool {
	t.Helper()
	const inside = "VCH_TEST_NETWORK_NAMESPACE"
	if os.Getenv(inside) != "" {
		return true
	}
	cmd := osexec.CommandContext(t.Context(), "/proc/self/exe", "-test.run=^"+t.Name()+"$", "-test.v", "-test.timeout=2m")
	cmd.Env = append(os.Environ(), inside+"=1")
	cmd.SysProcAttr = &syscall.SysProcAttr{Cloneflags: syscall.CLONE_NEWNET | syscall.CLONE_NEWNS, Pdeathsig: syscall.SIGKILL}
	if os.Getuid() != 0 {
		cmd.SysProcAttr.Cloneflags |= syscall.CLONE_NEWUSER
		cmd.SysProcAttr.UidMappings = []syscall.SysProcIDMap{{HostID: os.Getuid(), Size: 1}}
		cmd.SysProcAttr.GidMappings = []syscall.SysProcIDMap{{HostID: os.Getgid(), Size: 1}}
	}
	if out, err := cmd.CombinedOutput(); err != nil || !strings.Contains(string(out), "--- PASS: "+t.Name()) {
		t.Errorf("in its namespace: %v\n%s", err, out)
	}
	return false
}

const testMAC = "02:00:00:00:00:07"

// far is another machine on the card's wire: its address is 10.9.0.1, and beyond it is 10.99.0.1.
type far struct {
	home, ns netns.NsHandle
}

// cabled makes a machine's card, and what is at the other end of its wire.
func cabled(t *testing.T) far {
	t.Helper()
	home, err := netns.Get()
	must(t, err)
	ns, err := newNamespace(home)
	must(t, err)
	mac, err := net.ParseMAC(testMAC)
	must(t, err)
	pair := &netlink.Veth{LinkAttrs: netlink.NewLinkAttrs(), PeerName: "far0", PeerNamespace: netlink.NsFd(ns)}
	pair.Name, pair.HardwareAddr = "near0", mac
	must(t, netlink.LinkAdd(pair))
	there, err := netlink.NewHandleAt(ns, unix.NETLINK_ROUTE)
	must(t, err)
	defer there.Close()
	for name, addresses := range map[string][]string{"lo": {"10.99.0.1/32"}, "far0": {"10.9.0.1/24"}} {
		link, err := there.LinkByName(name)
		must(t, err)
		for _, a := range addresses {
			address, err := netlink.ParseAddr(a)
			must(t, err)
			must(t, there.AddrAdd(link, address))
		}
		must(t, there.LinkSetUp(link))
	}
	return far{home, ns}
}

// listen answers connections to an address with a text and the address of who called.
func (f far) listen(t *testing.T, address, text string) {
	t.Helper()
	var l net.Listener
	must(t, within(f.ns, f.home, func() (err error) {
		l, err = net.Listen("tcp4", address)
		return err
	}))
	t.Cleanup(func() { l.Close() })
	go func() {
		for {
			conn, err := l.Accept()
			if err != nil {
				return
			}
			host, _, _ := net.SplitHostPort(conn.RemoteAddr().String())
			_, _ = io.WriteString(conn, text+" "+host)
			conn.Close()
		}
	}()
}

// serveNames answers for names of one address each.
func (f far) serveNames(t *testing.T, at string, names map[string]string) {
	t.Helper()
	var conn net.PacketConn
	must(t, within(f.ns, f.home, func() (err error) {
		conn, err = net.ListenPacket("udp4", at)
		return err
	}))
	s := &dns.Server{PacketConn: conn, Handler: dns.HandlerFunc(func(w dns.ResponseWriter, q *dns.Msg) {
		r := new(dns.Msg).SetReply(q)
		if a, ok := names[q.Question[0].Name]; ok {
			r.Answer = append(r.Answer, &dns.A{Hdr: dns.RR_Header{Name: q.Question[0].Name, Rrtype: dns.TypeA, Class: dns.ClassINET, Ttl: 1}, A: net.ParseIP(a)})
		} else {
			r.Rcode = dns.RcodeNameError
		}
		_ = w.WriteMsg(r)
	})}
	go func() { _ = s.ActivateAndServe() }()
	t.Cleanup(func() { conn.Close() })
}

func said(t *testing.T, m *management, address string) string {
	t.Helper()
	ctx, end := context.WithTimeout(t.Context(), 20*time.Second)
	defer end()
	conn, err := m.dial(ctx, "tcp4", address)
	if err != nil {
		t.Fatalf("%s: %v", address, err)
	}
	defer conn.Close()
	b, err := io.ReadAll(conn)
	must(t, err)
	return string(b)
}

func TestManagementStatic(t *testing.T) {
	if !apart(t) {
		return
	}
	f := cabled(t)
	f.listen(t, "10.9.0.1:80", "near")
	f.listen(t, "10.99.0.1:80", "beyond")
	f.serveNames(t, "10.99.0.1:53", map[string]string{"vch.example.": "10.99.0.1"})
	m, err := bringUpManagement(guest.Management{MAC: testMAC, Address: "10.9.0.7/24", Gateway: "10.9.0.1", DNS: []string{"10.9.0.1", "10.99.0.1"}, MTU: 1400}) // the first server is none
	must(t, err)
	for address, want := range map[string]string{"10.9.0.1:80": "near 10.9.0.7", "10.99.0.1:80": "beyond 10.9.0.7", "vch.example:80": "beyond 10.9.0.7", "vch.example.:80": "beyond 10.9.0.7"} {
		if got := said(t, m, address); got != want {
			t.Errorf("%s says %q, not %q", address, got, want)
		}
	}
	link, err := m.in.LinkByIndex(m.index)
	must(t, err)
	if link.Attrs().MTU != 1400 || link.Attrs().Name != managementCard {
		t.Errorf("the card is %+v", link.Attrs())
	}
	// No process here has it.
	links, err := netlink.LinkList()
	must(t, err)
	for _, l := range links {
		if l.Attrs().Name != "lo" {
			t.Errorf("%s is to be seen", l.Attrs().Name)
		}
	}
	if conn, err := net.Dial("tcp4", "10.9.0.1:80"); err == nil {
		conn.Close()
		t.Error("who does not use the card reaches what is beyond it")
	}
	for address, want := range map[string]fault.Kind{
		"10.9.0.1:81":      fault.Unavailable, // nobody listens
		"nobody.example:1": fault.NotFound,
		"[2001:db8::1]:1":  fault.Unsupported,
		":1":               fault.Invalid,
		"10.9.0.1":         fault.Invalid,
	} {
		if _, err := m.dial(t.Context(), "tcp4", address); !fault.Is(err, want) {
			t.Errorf("%s: %v", address, err)
		}
	}
	must(t, m.close())
}

func TestManagementRefuses(t *testing.T) {
	if !apart(t) {
		return
	}
	cabled(t)
	for name, tc := range map[string]struct {
		cfg  guest.Management
		kind fault.Kind
	}{
		"no such card":   {guest.Management{MAC: "02:00:00:00:00:08", Address: "10.9.0.7/24"}, fault.NotFound},
		"no MAC":         {guest.Management{MAC: "x", Address: "10.9.0.7/24"}, fault.Invalid},
		"no prefix":      {guest.Management{MAC: testMAC, Address: "10.9.0.7"}, fault.Invalid},
		"IPv6":           {guest.Management{MAC: testMAC, Address: "2001:db8::1/64"}, fault.Invalid},
		"a wrong way":    {guest.Management{MAC: testMAC, Address: "10.9.0.7/24", Gateway: "x"}, fault.Invalid},
		"a wrong server": {guest.Management{MAC: testMAC, DNS: []string{"::1"}}, fault.Invalid},
	} {
		m, err := bringUpManagement(tc.cfg)
		if m != nil || !fault.Is(err, tc.kind) {
			t.Errorf("%s: %v, %v", name, m, err)
		}
	}
}

// leases is a DHCP server's.
type leases struct {
	mu       sync.Mutex // guards below
	next     string     // the address that it gives
	renewed  int
	requests []string // what came, in order
	silent   bool
}

// serve answers as a DHCP server whose leases are of two seconds.
func (l *leases) serve(t *testing.T, f far) {
	t.Helper()
	var s *server4.Server
	must(t, within(f.ns, f.home, func() (err error) {
		s, err = server4.NewServer("far0", nil, l.answer)
		return err
	}))
	go func() { _ = s.Serve() }()
	t.Cleanup(func() { s.Close() })
}

func (l *leases) answer(conn net.PacketConn, peer net.Addr, q *dhcpv4.DHCPv4) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.requests = append(l.requests, q.MessageType().String())
	if l.silent {
		return
	}
	kind := dhcpv4.MessageTypeOffer
	if q.MessageType() == dhcpv4.MessageTypeRequest {
		kind = dhcpv4.MessageTypeAck
		if !q.ClientIPAddr.IsUnspecified() { // it has the address, and wants to keep it
			if l.renewed++; q.ClientIPAddr.String() != l.next {
				kind = dhcpv4.MessageTypeNak
			}
		}
	}
	r, err := dhcpv4.NewReplyFromRequest(q,
		dhcpv4.WithMessageType(kind),
		dhcpv4.WithYourIP(net.ParseIP(l.next)),
		dhcpv4.WithOption(dhcpv4.OptServerIdentifier(net.IPv4(10, 9, 0, 1))),
		dhcpv4.WithNetmask(net.CIDRMask(24, 32)),
		dhcpv4.WithRouter(net.IPv4(10, 9, 0, 1)),
		dhcpv4.WithDNS(net.IPv4(10, 9, 0, 1)),
		dhcpv4.WithGeneric(dhcpv4.OptionInterfaceMTU, []byte{5, 0x78}),
		dhcpv4.WithLeaseTime(2))
	if err == nil {
		_, _ = conn.WriteTo(r.ToBytes(), &net.UDPAddr{IP: net.IPv4bcast, Port: nclient4.ClientPort})
	}
}

// A lease is renewed; one that the server does not go on with is replaced; and one that ends is no longer used.
func TestManagementLease(t *testing.T) {
	if !apart(t) {
		return
	}
	f := cabled(t)
	f.listen(t, "10.99.0.1:80", "beyond")
	f.serveNames(t, "10.9.0.1:53", map[string]string{"vch.example.": "10.99.0.1"})
	l := &leases{next: "10.9.0.50"}
	l.serve(t, f)
	m, err := bringUpManagement(guest.Management{MAC: testMAC})
	must(t, err)
	if got := said(t, m, "vch.example:80"); got != "beyond 10.9.0.50" {
		t.Errorf("%q", got)
	}
	link, err := m.in.LinkByIndex(m.index)
	must(t, err)
	if link.Attrs().MTU != 0x578 {
		t.Errorf("MTU %d", link.Attrs().MTU)
	}
	until := func(what string, ok func() bool) {
		t.Helper()
		for end := time.Now().Add(30 * time.Second); !ok(); time.Sleep(10 * time.Millisecond) {
			if time.Now().After(end) {
				l.mu.Lock()
				defer l.mu.Unlock()
				t.Fatalf("%s: not within half a minute; the server heard %v", what, l.requests)
			}
		}
	}
	addresses := func() (all []string) {
		has, err := m.in.AddrList(link, netlink.FAMILY_V4)
		must(t, err)
		for _, a := range has {
			all = append(all, a.IPNet.String())
		}
		return all
	}
	until("renewed twice", func() bool { l.mu.Lock(); defer l.mu.Unlock(); return l.renewed >= 2 })
	if got := said(t, m, "10.99.0.1:80"); got != "beyond 10.9.0.50" {
		t.Errorf("renewed: %q", got)
	}
	l.mu.Lock()
	l.next = "10.9.0.60"
	l.mu.Unlock()
	until("another address", func() bool { return slices.Equal(addresses(), []string{"10.9.0.60/24"}) })
	if got := said(t, m, "vch.example:80"); got != "beyond 10.9.0.60" {
		t.Errorf("%q", got)
	}
	l.mu.Lock()
	l.silent = true
	l.mu.Unlock()
	until("no address without a lease", func() bool { return len(addresses()) == 0 })
	l.mu.Lock()
	l.silent = false
	l.mu.Unlock()
	until("an address again", func() bool { return slices.Equal(addresses(), []string{"10.9.0.60/24"}) })
	must(t, m.close())
}

func TestLeasedSettings(t *testing.T) {
	answer := func(more ...dhcpv4.Modifier) *dhcpv4.DHCPv4 {
		ack, err := dhcpv4.New(append([]dhcpv4.Modifier{dhcpv4.WithYourIP(net.IPv4(10, 1, 2, 3))}, more...)...)
		must(t, err)
		return ack
	}
	a, p := netip.MustParseAddr, netip.MustParsePrefix
	for name, tc := range map[string]struct {
		static settings
		ack    *dhcpv4.DHCPv4
		want   settings
		err    string
	}{
		"all of it": {settings{}, answer(dhcpv4.WithNetmask(net.CIDRMask(16, 32)), dhcpv4.WithRouter(net.IPv4(10, 1, 0, 1), net.IPv4(10, 1, 0, 2)), dhcpv4.WithDNS(net.IPv4(9, 9, 9, 9))),
			settings{address: p("10.1.2.3/16"), routes: []wayOut{{everywhere, a("10.1.0.1")}}, servers: []netip.Addr{a("9.9.9.9")}}, ""},
		"no mask": {settings{}, answer(), settings{address: p("10.1.2.3/8")}, ""},
		"what is said already stays": {settings{routes: []wayOut{{everywhere, a("10.1.0.9")}}, servers: []netip.Addr{a("8.8.8.8")}, mtu: 1400},
			answer(dhcpv4.WithNetmask(net.CIDRMask(16, 32)), dhcpv4.WithRouter(net.IPv4(10, 1, 0, 1)), dhcpv4.WithDNS(net.IPv4(9, 9, 9, 9)), dhcpv4.WithGeneric(dhcpv4.OptionInterfaceMTU, []byte{0x20, 0})),
			settings{address: p("10.1.2.3/16"), routes: []wayOut{{everywhere, a("10.1.0.9")}}, servers: []netip.Addr{a("8.8.8.8")}, mtu: 1400}, ""},
		"routes with destinations": {settings{}, answer(dhcpv4.WithNetmask(net.CIDRMask(32, 32)), dhcpv4.WithRouter(net.IPv4(10, 1, 0, 1)), dhcpv4.WithGeneric(dhcpv4.OptionClasslessStaticRoute,
			[]byte{32, 10, 1, 0, 1, 0, 0, 0, 0, 0, 10, 1, 0, 1})),
			settings{address: p("10.1.2.3/32"), routes: []wayOut{{p("10.1.0.1/32"), a("0.0.0.0")}, {everywhere, a("10.1.0.1")}}}, ""},
		"a tiny MTU":  {settings{}, answer(dhcpv4.WithGeneric(dhcpv4.OptionInterfaceMTU, []byte{0, 5})), settings{address: p("10.1.2.3/8")}, ""},
		"no address":  {settings{}, answer(dhcpv4.WithYourIP(net.IPv4zero)), settings{}, "no address"},
		"an odd mask": {settings{}, answer(dhcpv4.WithNetmask(net.IPv4Mask(255, 0, 255, 0))), settings{}, "which is none"},
	} {
		got, err := leasedSettings(tc.static, tc.ack)
		if tc.err != "" {
			if !fault.Is(err, fault.Unavailable) || !strings.Contains(err.Error(), tc.err) {
				t.Errorf("%s: %v", name, err)
			}
			continue
		}
		if err != nil {
			t.Errorf("%s: %v", name, err)
		}
		if diff := cmp.Diff(tc.want, got, cmp.AllowUnexported(settings{}, wayOut{}), cmp.Comparer(func(a, b netip.Addr) bool { return a == b }), cmp.Comparer(func(a, b netip.Prefix) bool { return a == b })); diff != "" {
			t.Errorf("%s (-want +got):\n%s", name, diff)
		}
	}
}

// RFC 2131 section 4.4.5.
func TestTermWait(t *testing.T) {
	begin := time.Unix(1e9, 0)
	day := term{begin.Add(12 * time.Hour), begin.Add(24 * time.Hour)}
	for after, want := range map[time.Duration]time.Duration{
		0:                          12 * time.Hour,
		12 * time.Hour:             6 * time.Hour,
		23 * time.Hour:             30 * time.Minute,
		24*time.Hour - time.Minute: time.Minute,
		24*time.Hour - time.Second: time.Second,
		24 * time.Hour:             0,
		48 * time.Hour:             0,
	} {
		if got := day.wait(begin.Add(after)); got != want {
			t.Errorf("after %v: %v, not %v", after, got, want)
		}
	}
}
