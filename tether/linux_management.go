package tether

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"sync"
	"time"

	"github.com/insomniacslk/dhcp/dhcpv4"
	"github.com/insomniacslk/dhcp/dhcpv4/nclient4"
	"github.com/vishvananda/netlink"
	"github.com/vishvananda/netns"
	"golang.org/x/sys/unix"

	"vch/guest"
	"vch/internal/fault"
	"vch/internal/pause"
)

// management is the machine's card for the tether. It is in a network namespace of its own, with its address and its way out, where no process of the container is; sockets are made
// there, and used from anywhere.
type management struct {
	home  netns.NsHandle // the container's, where threads belong
	ns    netns.NsHandle
	in    *netlink.Handle // there
	index int             // of the card there
	end   context.CancelFunc
	work  sync.WaitGroup // what keeps the lease

	mu      sync.Mutex   // guards below
	servers []netip.Addr // of names
}

// managementCard is what the card is called there.
const managementCard = "management"

// leasePatience bounds the wait for a DHCP server, at the beginning: a port of a switch may take half a minute to let frames pass (IEEE 802.1D, forward delay, twice).
const leasePatience = time.Minute

// bringUpManagement takes the card into its namespace, and gives it its address. Once up, it stays, and so does its lease.
func bringUpManagement(cfg guest.Management) (m *management, err error) {
	static, err := staticSettings(cfg)
	if err != nil {
		return nil, err
	}
	m = &management{home: netns.None(), ns: netns.None(), end: func() {}}
	defer func() {
		if err != nil {
			err = errors.Join(fault.Wrap("bring up the management card", cfg.MAC, err), m.close())
			m = nil
		}
	}()
	if err := m.take(cfg.MAC); err != nil {
		return m, err
	}
	if cfg.Address != "" {
		return m, m.apply(static)
	}
	ctx, end := context.WithTimeout(context.Background(), leasePatience)
	defer end()
	lease, err := m.lease(ctx)
	if err != nil {
		return m, fault.New(fault.Unavailable, "no DHCP server gave it an address within %v: %w", leasePatience, err)
	}
	s, err := leasedSettings(static, lease.ACK)
	if err != nil {
		return m, err
	}
	if err := m.apply(s); err != nil {
		return m, err
	}
	ctx, m.end = context.WithCancel(context.Background())
	m.work.Go(func() { m.keep(ctx, static, lease) })
	return m, nil
}

// close ends what keeps the lease, and lets the namespace go, and with it, in time, what is in it: a card of hardware comes back to where it was at boot.
func (m *management) close() error {
	m.end()
	m.work.Wait()
	if m.in != nil {
		m.in.Close()
	}
	var errs []error
	for _, ns := range []*netns.NsHandle{&m.ns, &m.home} {
		if ns.IsOpen() {
			errs = append(errs, ns.Close())
		}
	}
	return errors.Join(errs...)
}

// take puts the card with a hardware address into a namespace, and up.
func (m *management) take(address string) (err error) {
	var mac net.HardwareAddr
	if address != "" {
		if mac, err = net.ParseMAC(address); err != nil {
			return fault.As(fault.Invalid, err)
		}
	}
	if m.home, err = netns.Get(); err != nil {
		return err
	}
	here, err := netlink.NewHandleAt(m.home, unix.NETLINK_ROUTE)
	if err != nil {
		return err
	}
	defer here.Close()
	link, err := cardWith(here, mac)
	if err != nil {
		return err
	}
	if m.ns, err = newNamespace(m.home); err != nil {
		return err
	}
	if m.in, err = netlink.NewHandleAt(m.ns, unix.NETLINK_ROUTE); err != nil {
		return err
	}
	if err := here.LinkSetNsFd(link, int(m.ns)); err != nil {
		return err
	}
	if link, err = cardWith(m.in, link.Attrs().HardwareAddr); err != nil {
		return err
	}
	m.index = link.Attrs().Index
	if err := m.in.LinkSetName(link, managementCard); err != nil {
		return err
	}
	return m.in.LinkSetUp(link)
}

// cardWith finds a card by its hardware address; nil: the first that is there.
func cardWith(in *netlink.Handle, mac net.HardwareAddr) (netlink.Link, error) {
	links, err := in.LinkList()
	if err != nil {
		return nil, err
	}
	for _, l := range links {
		if _, tag := l.(*netlink.Vlan); !tag && (mac != nil && bytes.Equal(l.Attrs().HardwareAddr, mac) || mac == nil && isCard(l)) {
			return l, nil
		}
	}
	return nil, fault.New(fault.NotFound, "the machine has no such network card")
}

// isCard says whether an interface is a piece of hardware.
func isCard(l netlink.Link) bool {
	_, err := os.Stat(filepath.Join("/sys/class/net", l.Attrs().Name, "device"))
	return err == nil
}

// settings are what a card gets.
type settings struct {
	address netip.Prefix
	routes  []wayOut
	servers []netip.Addr // of names
	mtu     int          // bytes; 0: what it has
}

// wayOut is a route.
type wayOut struct {
	to netip.Prefix
	by netip.Addr // 0.0.0.0: nobody, what it leads to is on the link (RFC 3442)
}

var everywhere = netip.PrefixFrom(netip.IPv4Unspecified(), 0)

// staticSettings are what a configuration says itself. What it does not say is zero.
func staticSettings(cfg guest.Management) (s settings, err error) {
	if cfg.Address != "" {
		if s.address, err = netip.ParsePrefix(cfg.Address); err == nil && !s.address.Addr().Is4() {
			err = errors.New("not an address of IPv4")
		}
		if err != nil {
			return s, fault.New(fault.Invalid, "the management card's address %q: %w", cfg.Address, err)
		}
	}
	if cfg.Gateway != "" {
		by, err := netip.ParseAddr(cfg.Gateway)
		if err == nil && !by.Is4() {
			err = errors.New("not an address of IPv4")
		}
		if err != nil {
			return s, fault.New(fault.Invalid, "the management card's gateway %q: %w", cfg.Gateway, err)
		}
		s.routes = []wayOut{{everywhere, by}}
	}
	for _, text := range cfg.DNS {
		a, err := netip.ParseAddr(text)
		if err == nil && !a.Is4() {
			err = errors.New("not an address of IPv4")
		}
		if err != nil {
			return s, fault.New(fault.Invalid, "the management card's server of names %q: %w", text, err)
		}
		s.servers = append(s.servers, a)
	}
	s.mtu = cfg.MTU
	return s, nil
}

// leastMTU is what every link of IPv4 carries (RFC 791 section 3.2).
const leastMTU = 68

// leasedSettings are what a server's answer says beside what is said already.
func leasedSettings(s settings, ack *dhcpv4.DHCPv4) (settings, error) {
	ip, ok := netip.AddrFromSlice(ack.YourIPAddr.To4())
	if !ok || ip.IsUnspecified() {
		return s, fault.New(fault.Unavailable, "the DHCP server %v gave it no address", ack.ServerIdentifier())
	}
	mask := ack.SubnetMask()
	if mask == nil {
		mask = ack.YourIPAddr.DefaultMask() // RFC 1122 section 3.3.1.1
	}
	bits, of := mask.Size()
	if of != 32 {
		return s, fault.New(fault.Unavailable, "the DHCP server %v gave it the network mask %v, which is none", ack.ServerIdentifier(), mask)
	}
	s.address = netip.PrefixFrom(ip, bits)
	if s.routes == nil {
		s.routes = leasedRoutes(ack)
	}
	if s.servers == nil {
		for _, server := range ack.DNS() {
			if a, ok := netip.AddrFromSlice(server.To4()); ok {
				s.servers = append(s.servers, a)
			}
		}
	}
	if mtu, err := dhcpv4.GetUint16(dhcpv4.OptionInterfaceMTU, ack.Options); err == nil && s.mtu == 0 && mtu >= leastMTU {
		s.mtu = int(mtu)
	}
	return s, nil
}

// leasedRoutes are the routes of an answer: those with a destination take the place of the one without (RFC 3442).
func leasedRoutes(ack *dhcpv4.DHCPv4) (routes []wayOut) {
	for _, r := range ack.ClasslessStaticRoute() {
		to, ok := netip.AddrFromSlice(r.Dest.IP.To4())
		by, bok := netip.AddrFromSlice(r.Router.To4())
		if bits, _ := r.Dest.Mask.Size(); ok && bok {
			routes = append(routes, wayOut{netip.PrefixFrom(to, bits).Masked(), by})
		}
	}
	if routes != nil {
		return routes
	}
	for _, r := range ack.Router() {
		if by, ok := netip.AddrFromSlice(r.To4()); ok {
			return []wayOut{{everywhere, by}} // in the order of preference (RFC 2132 section 3.5)
		}
	}
	return nil
}

// apply gives the card its settings, and takes off what addresses it had. Again, nothing happens.
func (m *management) apply(s settings) error {
	link, err := m.in.LinkByIndex(m.index)
	if err != nil {
		return err
	}
	if s.mtu != 0 && link.Attrs().MTU != s.mtu {
		if err := m.in.LinkSetMTU(link, s.mtu); err != nil {
			return err
		}
	}
	if err := m.withdraw(s.address); err != nil {
		return err
	}
	broadcast := binary.BigEndian.Uint32(s.address.Addr().AsSlice()) | uint32(1<<(32-s.address.Bits())-1)
	if err := m.in.AddrReplace(link, &netlink.Addr{IPNet: ipNet(s.address), Broadcast: binary.BigEndian.AppendUint32(nil, broadcast)}); err != nil {
		return err
	}
	for _, r := range s.routes {
		route := netlink.Route{LinkIndex: m.index, Dst: ipNet(r.to)}
		if r.by.IsUnspecified() {
			route.Scope = netlink.SCOPE_LINK
		} else {
			route.Gw = r.by.AsSlice()
		}
		if err := m.in.RouteReplace(&route); err != nil {
			return fmt.Errorf("route to %v by %v: %w", r.to, r.by, err)
		}
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	m.servers = s.servers
	return nil
}

// withdraw takes all addresses off but one.
func (m *management) withdraw(but netip.Prefix) error {
	link, err := m.in.LinkByIndex(m.index)
	if err != nil {
		return err
	}
	has, err := m.in.AddrList(link, netlink.FAMILY_V4)
	if err != nil {
		return err
	}
	for _, a := range has {
		if a.IPNet.String() == but.String() {
			continue
		}
		if err := m.in.AddrDel(link, &a); err != nil {
			return err
		}
	}
	return nil
}

func ipNet(p netip.Prefix) *net.IPNet {
	return &net.IPNet{IP: p.Addr().AsSlice(), Mask: net.CIDRMask(p.Bits(), 32)}
}

// firstAnswer is how long a DHCP server may take for its first answer; after that, twice as long, and so on.
const firstAnswer = time.Second

// leaseClient is a client on the card, which needs no address for it. It is to be closed.
func (m *management) leaseClient() (client *nclient4.Client, err error) {
	err = within(m.ns, m.home, func() (err error) {
		client, err = nclient4.New(managementCard, nclient4.WithTimeout(firstAnswer), nclient4.WithRetry(-1)) // until the context's end
		return err
	})
	return client, err
}

// asksFor is what a server is asked for beside an address, a mask, routers and servers of names.
func asksFor() dhcpv4.Modifier {
	return dhcpv4.WithRequestedOptions(dhcpv4.OptionClasslessStaticRoute, dhcpv4.OptionInterfaceMTU)
}

// lease asks all DHCP servers for an address, until ctx ends.
func (m *management) lease(ctx context.Context) (*nclient4.Lease, error) {
	client, err := m.leaseClient()
	if err != nil {
		return nil, err
	}
	defer client.Close()
	for {
		lease, err := client.Request(ctx, asksFor())
		if err == nil || ctx.Err() != nil || !errors.As(err, new(*nclient4.ErrNak)) { // somebody else has got what was offered: again
			return lease, err
		}
	}
}

// renew asks the server of a lease to go on with it, until ctx ends.
func (m *management) renew(ctx context.Context, lease *nclient4.Lease) (*nclient4.Lease, error) {
	client, err := m.leaseClient()
	if err != nil {
		return nil, err
	}
	defer client.Close()
	return client.Renew(ctx, lease, asksFor())
}

const (
	// infinite is a lease that does not end (RFC 2131 section 3.3).
	infinite = 0xffffffff * time.Second
	// leaseRest is the least time between questions for one lease (RFC 2131 section 4.4.5).
	leaseRest = time.Minute
	// leasePause is how long to wait with the next question where one could not even be asked.
	leasePause = 5 * time.Second
)

// term is a lease's times.
type term struct {
	renew, expire time.Time // both zero: it does not end
}

func termOf(lease *nclient4.Lease) term {
	long := lease.ACK.IPAddressLeaseTime(infinite)
	if long == infinite {
		return term{}
	}
	long = max(long, time.Second)
	renew := lease.ACK.IPAddressRenewalTime(long / 2) // RFC 2131 section 4.4.5
	return term{lease.CreationTime.Add(min(renew, long)), lease.CreationTime.Add(long)}
}

// wait is how long to wait at a time with the next question.
func (t term) wait(now time.Time) time.Duration {
	if left := t.renew.Sub(now); left > 0 {
		return left
	}
	left := max(t.expire.Sub(now), 0)
	return min(max(left/2, leaseRest), left)
}

// keep renews a lease, and gets another when it is over, until ctx ends.
func (m *management) keep(ctx context.Context, static settings, lease *nclient4.Lease) {
	for {
		t := termOf(lease)
		if t == (term{}) || pause.For(ctx, t.wait(time.Now())) != nil {
			return
		}
		next, err := m.again(ctx, lease, t.expire)
		if ctx.Err() != nil {
			return
		}
		if err == nil {
			lease = next
			var s settings
			if s, err = leasedSettings(static, lease.ACK); err == nil {
				err = m.apply(s)
			}
		}
		if err != nil {
			fmt.Fprintf(os.Stderr, "tether: management card: lease: %v\n", err)
		}
	}
}

// again renews a lease. One that has ended, or that the server ends, is over: the card has no address until there is another.
func (m *management) again(ctx context.Context, lease *nclient4.Lease, expire time.Time) (*nclient4.Lease, error) {
	if left := time.Until(expire); left > 0 {
		limited, end := context.WithTimeout(ctx, min(left, leaseRest/2))
		defer end()
		next, err := m.renew(limited, lease)
		if err == nil || !errors.As(err, new(*nclient4.ErrNak)) {
			return next, err
		}
	}
	for {
		err := m.withdraw(netip.Prefix{})
		if err == nil {
			var next *nclient4.Lease
			limited, end := context.WithTimeout(ctx, leasePatience)
			next, err = m.lease(limited)
			end()
			if err == nil {
				return next, nil
			}
		}
		fmt.Fprintf(os.Stderr, "tether: management card: %v\n", err)
		if err := pause.For(ctx, leasePause); err != nil {
			return nil, err
		}
	}
}

// dial connects to an address by the card, as net.Dialer does: host:port, with an address of IPv4, or a name that the card's servers know.
func (m *management) dial(ctx context.Context, network, address string) (net.Conn, error) {
	host, port, err := net.SplitHostPort(address)
	if err != nil {
		return nil, fault.As(fault.Invalid, err)
	}
	if host == "" {
		return nil, fault.New(fault.Invalid, "%q has no host", address)
	}
	if a, err := netip.ParseAddr(host); err == nil {
		if !a.Unmap().Is4() {
			return nil, fault.New(fault.Unsupported, "%s is not an address of IPv4, which is what the management card has", host)
		}
		return m.dialThere(ctx, network, net.JoinHostPort(a.Unmap().String(), port))
	}
	found, err := m.lookUp(ctx, host)
	if err != nil {
		return nil, err
	}
	var errs []error
	for _, a := range found {
		conn, err := m.dialThere(ctx, network, net.JoinHostPort(a.Unmap().String(), port))
		if err == nil {
			return conn, nil
		}
		errs = append(errs, err)
	}
	return nil, errors.Join(errs...)
}

// dialThere has a socket made in the card's namespace: it stays there, whichever thread uses it. A dialer makes one to an address in the goroutine that called it.
func (m *management) dialThere(ctx context.Context, network, address string) (conn net.Conn, err error) {
	err = within(m.ns, m.home, func() (err error) {
		conn, err = new(net.Dialer).DialContext(ctx, network, address)
		return err
	})
	if err != nil && conn != nil {
		err = errors.Join(err, conn.Close())
	}
	if err != nil {
		return nil, fault.As(fault.Unavailable, err)
	}
	return conn, nil
}

// nameServerWait bounds the wait for one server of names, when there is another.
const nameServerWait = 5 * time.Second

// lookUp asks the card's servers for the addresses of a name, one after the other until one knows.
func (m *management) lookUp(ctx context.Context, name string) ([]netip.Addr, error) {
	m.mu.Lock()
	servers := m.servers
	m.mu.Unlock()
	if len(servers) == 0 {
		return nil, fault.New(fault.Unavailable, "nobody knows who %s is: the management card has no server of names", name)
	}
	var errs []error
	for i, server := range servers {
		limited, end := ctx, context.CancelFunc(func() {})
		if i < len(servers)-1 {
			limited, end = context.WithTimeout(ctx, nameServerWait)
		}
		r := net.Resolver{PreferGo: true, Dial: func(ctx context.Context, network, _ string) (net.Conn, error) {
			return m.dialThere(ctx, network, net.JoinHostPort(server.String(), "53"))
		}}
		found, err := r.LookupNetIP(limited, "ip4", rooted(name))
		end()
		if err == nil {
			return found, nil
		}
		var dns *net.DNSError
		if errors.As(err, &dns) && dns.IsNotFound {
			return nil, fault.New(fault.NotFound, "the server of names %v does not know %s", server, name)
		}
		errs = append(errs, err)
		if ctx.Err() != nil {
			break
		}
	}
	return nil, fault.As(fault.Unavailable, errors.Join(errs...))
}

// rooted is a name as it is, to which nothing is to be appended: not the domain of the container's host name, either (resolv.conf(5), search).
func rooted(name string) string {
	if name[len(name)-1] == '.' {
		return name
	}
	return name + "."
}
