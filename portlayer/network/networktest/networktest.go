// Package networktest is the suite that every backend of networks passes: it holds an implementation of portlayer.NetworkBackend, Segment and Card to what their comments
// promise.
//
// Its guests are TCP/IP stacks whose cards are the backend's, so that what passes here is what a container's kernel would see: neighbours, the gateway, the outside, and the walls
// between them. Nothing leaves this host: the outside is a server of the suite's.
package networktest

import (
	"bytes"
	"context"
	"errors"
	"io"
	"net"
	"net/netip"
	"strings"
	"testing"
	"time"

	"gvisor.dev/gvisor/pkg/buffer"
	"gvisor.dev/gvisor/pkg/tcpip"
	"gvisor.dev/gvisor/pkg/tcpip/adapters/gonet"
	"gvisor.dev/gvisor/pkg/tcpip/header"
	"gvisor.dev/gvisor/pkg/tcpip/link/channel"
	"gvisor.dev/gvisor/pkg/tcpip/link/ethernet"
	"gvisor.dev/gvisor/pkg/tcpip/network/arp"
	"gvisor.dev/gvisor/pkg/tcpip/network/ipv4"
	"gvisor.dev/gvisor/pkg/tcpip/stack"
	"gvisor.dev/gvisor/pkg/tcpip/transport/icmp"
	"gvisor.dev/gvisor/pkg/tcpip/transport/tcp"
	"gvisor.dev/gvisor/pkg/tcpip/transport/udp"

	"vch/internal/fault"
	"vch/portlayer"
)

// Options is a backend to be tested.
type Options struct {
	// New opens it, in world: what leaves a network comes there.
	New func(t *testing.T, world *World) portlayer.NetworkBackend
	// World is what is outside; nil: a simulated one, for a backend that goes there by World.Dial.
	World func(t *testing.T) *World
}

// World is the outside, and the host: whoever asks for it gets an echo at port 80 of Server, of HostOwn and of the host's loopback, by TCP and UDP, and nothing at port 9.
type World struct {
	// Asked has who came: "tcp4 203.0.113.5:80", by the address that was asked for.
	Asked chan string
	// Apart says that what another network of this host's has for its addresses is not outside, but nowhere.
	Apart bool

	Dial func(ctx context.Context, network, to string) (net.Conn, error) // of a simulated one
}

// The addresses of the world (RFC 5737: they are nobody's).
var (
	Server  = netip.MustParseAddr("203.0.113.5") // outside
	HostOwn = netip.MustParseAddr("203.0.113.9") // this host's
)

// limit bounds each wait, and patience is how long nothing has to come.
const (
	limit    = 30 * time.Second
	patience = 250 * time.Millisecond
)

// The networks of the suite (RFC 5737, as above).
var (
	ours   = netip.MustParsePrefix("192.0.2.0/24")
	others = netip.MustParsePrefix("198.51.100.0/24")
)

// guest is a machine's kernel.
type guest struct {
	t       *testing.T
	stack   *stack.Stack
	link    *channel.Endpoint
	card    portlayer.Card
	mac     net.HardwareAddr
	address netip.Addr
}

const nic = 1

func at(a netip.Addr, port uint16) tcpip.FullAddress {
	return tcpip.FullAddress{NIC: nic, Addr: tcpip.AddrFrom4(a.As4()), Port: port}
}

// join puts a new guest on a network.
func join(t *testing.T, s portlayer.Segment, n portlayer.Network, last byte, toHost bool) *guest {
	t.Helper()
	raw := n.Subnet.Addr().As4()
	raw[3] = last
	g := &guest{t: t, mac: net.HardwareAddr{2, 0, 0, raw[1], raw[2], last}, address: netip.AddrFrom4(raw)}
	g.stack = stack.New(stack.Options{NetworkProtocols: []stack.NetworkProtocolFactory{ipv4.NewProtocol, arp.NewProtocol}, TransportProtocols: []stack.TransportProtocolFactory{tcp.NewProtocol, udp.NewProtocol, icmp.NewProtocol4}})
	g.link = channel.New(1024, 1514, tcpip.LinkAddress(g.mac))
	g.stack.CreateNIC(nic, ethernet.New(g.link))
	g.stack.AddProtocolAddress(nic, tcpip.ProtocolAddress{Protocol: ipv4.ProtocolNumber, AddressWithPrefix: tcpip.AddressWithPrefix{Address: tcpip.AddrFrom4(raw), PrefixLen: n.Subnet.Bits()}}, stack.AddressProperties{})
	subnet, _ := tcpip.NewSubnet(tcpip.AddrFrom4(n.Subnet.Addr().As4()), tcpip.MaskFromBytes(net.CIDRMask(n.Subnet.Bits(), 32)))
	g.stack.SetRouteTable([]tcpip.Route{{Destination: subnet, NIC: nic}, {Destination: header.IPv4EmptySubnet, Gateway: tcpip.AddrFrom4(n.Gateway.As4()), NIC: nic}})
	var err error
	g.card, err = s.Attach(g.mac, g.address, toHost, func(frame []byte) {
		p := stack.NewPacketBuffer(stack.PacketBufferOptions{Payload: buffer.MakeWithData(bytes.Clone(frame))})
		g.link.InjectInbound(0, p)
		p.DecRef()
	})
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan struct{})
	go func() {
		defer close(done)
		for {
			p := g.link.ReadContext(ctx)
			if p == nil {
				return
			}
			v := p.ToView()
			g.card.Send(v.AsSlice())
			v.Release()
			p.DecRef()
		}
	}()
	t.Cleanup(func() {
		cancel()
		<-done
		g.card.Close()
		g.link.Close()
		g.stack.Destroy()
	})
	return g
}

// dial connects as a process of the guest.
func (g *guest) dial(network string, to netip.AddrPort) (net.Conn, error) {
	remote := at(to.Addr(), to.Port())
	if network == "udp" {
		return gonet.DialUDP(g.stack, nil, &remote, ipv4.ProtocolNumber)
	}
	ctx, cancel := context.WithTimeout(context.Background(), limit)
	defer cancel()
	return gonet.DialContextTCP(ctx, g.stack, remote, ipv4.ProtocolNumber)
}

// echo has the guest answer at port 7: what comes by a stream when it has ended, and each datagram.
func (g *guest) echo() {
	g.t.Helper()
	l, err := gonet.ListenTCP(g.stack, at(g.address, 7), ipv4.ProtocolNumber)
	if err != nil {
		g.t.Fatal(err)
	}
	local := at(g.address, 7)
	u, err := gonet.DialUDP(g.stack, &local, nil, ipv4.ProtocolNumber)
	if err != nil {
		g.t.Fatal(err)
	}
	g.t.Cleanup(func() { l.Close(); u.Close() })
	go serveStreams(l)
	go servePackets(u)
}

func serveStreams(l net.Listener) {
	for {
		c, err := l.Accept()
		if err != nil {
			return
		}
		go func() {
			defer c.Close()
			data, _ := io.ReadAll(c)
			_, _ = c.Write(append([]byte("re:"), data...))
		}()
	}
}

func servePackets(u net.PacketConn) {
	buf := make([]byte, 2048)
	for {
		n, from, err := u.ReadFrom(buf)
		if err != nil {
			return
		}
		_, _ = u.WriteTo(append([]byte("re:"), buf[:n]...), from)
	}
}

// asks sends text and expects it echoed.
func asks(t *testing.T, what string, c net.Conn, err error, text string) {
	t.Helper()
	if err != nil {
		t.Errorf("%s: %v", what, err)
		return
	}
	defer c.Close()
	_ = c.SetDeadline(time.Now().Add(limit))
	go func() {
		_, _ = io.WriteString(c, text)
		if h, ok := c.(interface{ CloseWrite() error }); ok {
			_ = h.CloseWrite()
		}
	}()
	got := make([]byte, len(text)+3)
	if _, err := io.ReadFull(c, got); err != nil || string(got) != "re:"+text {
		t.Errorf("%s: %.60q, %v", what, got, err)
	}
}

// refuses expects that a connection does not come to be, and a datagram is not answered.
func refuses(t *testing.T, what, network string, g *guest, to netip.AddrPort) {
	t.Helper()
	if network == "tcp" {
		ctx, cancel := context.WithTimeout(context.Background(), 4*patience)
		defer cancel()
		c, err := gonet.DialContextTCP(ctx, g.stack, at(to.Addr(), to.Port()), ipv4.ProtocolNumber)
		if err == nil {
			c.Close()
			t.Errorf("%s: %s is reached", what, to)
		}
		return
	}
	c, err := g.dial("udp", to)
	if err != nil {
		return
	}
	defer c.Close()
	_, _ = io.WriteString(c, "x")
	_ = c.SetReadDeadline(time.Now().Add(patience))
	if n, err := c.Read(make([]byte, 10)); err == nil {
		t.Errorf("%s: %s answers with %d bytes", what, to, n)
	}
}

// Echo serves a listener and a packet socket as the world's, until they are closed. at is what asks for them.
func (w *World) Echo(l net.Listener, u net.PacketConn, at string) {
	go serveStreams(told{l, func() { w.Asked <- "tcp4 " + at }})
	go servePackets(toldPackets{u, func() { w.Asked <- "udp4 " + at }})
}

// told tells of each connection that is accepted.
type told struct {
	net.Listener
	tell func()
}

func (l told) Accept() (net.Conn, error) {
	c, err := l.Listener.Accept()
	if err == nil {
		l.tell()
	}
	return c, err
}

// toldPackets tells of each datagram.
type toldPackets struct {
	net.PacketConn
	tell func()
}

func (u toldPackets) ReadFrom(b []byte) (int, net.Addr, error) {
	n, from, err := u.PacketConn.ReadFrom(b)
	if err == nil {
		u.tell()
	}
	return n, from, err
}

// NewWorld makes one without servers.
func NewWorld() *World { return &World{Asked: make(chan string, 100)} }

// simulated is a world that is reached by Dial: an echo at every address.
func simulated(t *testing.T) *World {
	t.Helper()
	w := NewWorld()
	streams, err := net.Listen("tcp4", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	packets, err := net.ListenPacket("udp4", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { streams.Close(); packets.Close() })
	go serveStreams(streams)
	go servePackets(packets)
	w.Dial = func(ctx context.Context, network, to string) (net.Conn, error) {
		if strings.HasSuffix(to, ":9") {
			return nil, errors.New("connection refused")
		}
		w.Asked <- network + " " + to
		addr := streams.Addr()
		if strings.HasPrefix(network, "udp") {
			addr = packets.LocalAddr()
		}
		return new(net.Dialer).DialContext(ctx, network, addr.String())
	}
	return w
}

// Run runs the suite.
func Run(t *testing.T, o Options) {
	if o.World == nil {
		o.World = simulated
	}
	world := o.World(t)
	b := o.New(t, world)
	a := portlayer.Network{ID: "a", Name: "a", Subnet: ours, Gateway: netip.MustParseAddr("192.0.2.1")}
	c := portlayer.Network{ID: "c", Name: "c", Subnet: others, Gateway: netip.MustParseAddr("198.51.100.1"), Internal: true}
	open := func(n portlayer.Network) portlayer.Segment {
		s, err := b.Open(t.Context(), n)
		if err != nil {
			t.Fatal(err)
		}
		return s
	}
	sa, sc := open(a), open(c)
	t.Run("neighbours", func(t *testing.T) { neighbours(t, sa, a) })
	t.Run("ways in", func(t *testing.T) { waysIn(t, sa, a) })
	t.Run("ways out", func(t *testing.T) { waysOut(t, sa, a, world) })
	t.Run("walls", func(t *testing.T) { walls(t, sa, sc, a, c, world) })
	t.Run("published ports", func(t *testing.T) { published(t, b, sa, sc, a, c, world) })
	t.Run("nobody is somebody else", func(t *testing.T) { impostors(t, sa, a) })
	t.Run("who is there is there once", func(t *testing.T) { conflicts(t, sa, a) })
	for _, s := range []portlayer.Segment{sa, sc} {
		if err := s.Close(); err != nil {
			t.Error(err)
		}
	}
	if err := b.Close(); err != nil {
		t.Error(err)
	}
}

func neighbours(t *testing.T, s portlayer.Segment, n portlayer.Network) {
	one, two := join(t, s, n, 11, false), join(t, s, n, 12, false)
	two.echo()
	to := netip.AddrPortFrom(two.address, 7)
	c, err := one.dial("tcp", to)
	asks(t, "a neighbour by TCP", c, err, strings.Repeat("a long way ", 20000))
	c, err = one.dial("udp", to)
	asks(t, "a neighbour by UDP", c, err, "hello")
	two.card.Close()
	refuses(t, "a neighbour that has left", "udp", one, to)
}

func waysIn(t *testing.T, s portlayer.Segment, n portlayer.Network) {
	g := join(t, s, n, 21, false)
	g.echo()
	ctx, cancel := context.WithTimeout(t.Context(), limit)
	defer cancel()
	for _, network := range []string{"tcp", "udp"} {
		c, err := s.Dial(ctx, network, netip.AddrPortFrom(g.address, 7))
		asks(t, "a guest from the host by "+network, c, err, "hello")
	}
	if c, err := s.Dial(ctx, "tcp", netip.AddrPortFrom(g.address, 8)); err == nil {
		c.Close()
		t.Error("a port where nobody listens was reached")
	}
	if _, err := s.Dial(ctx, "tcp", netip.MustParseAddrPort("192.0.2.99:7")); !fault.Is(err, fault.Unavailable) {
		t.Errorf("an address that nobody has: %v", err)
	}
}

func waysOut(t *testing.T, s portlayer.Segment, n portlayer.Network, world *World) {
	g, friend := join(t, s, n, 31, false), join(t, s, n, 32, true)
	to := netip.AddrPortFrom(Server, 80)
	for _, network := range []string{"tcp", "udp"} {
		c, err := g.dial(network, to)
		asks(t, "the outside by "+network, c, err, "hello")
		if got := <-world.Asked; got != network+"4 "+to.String() {
			t.Errorf("asked for %s", got)
		}
	}
	refuses(t, "what is refused outside", "tcp", g, netip.AddrPortFrom(Server, 9))
	for _, network := range []string{"tcp", "udp"} {
		c, err := friend.dial(network, netip.AddrPortFrom(n.Gateway, 80))
		asks(t, "the host by "+network+", of one that may", c, err, "hello")
		if got := <-world.Asked; got != network+"4 127.0.0.1:80" {
			t.Errorf("asked for %s", got)
		}
	}
}

func walls(t *testing.T, s, internal portlayer.Segment, n, ni portlayer.Network, world *World) {
	g, inside, other := join(t, s, n, 41, false), join(t, internal, ni, 41, false), join(t, internal, ni, 42, false)
	g.echo()
	other.echo()
	c, err := inside.dial("tcp", netip.AddrPortFrom(other.address, 7))
	asks(t, "a neighbour on an internal network", c, err, "hello")
	for _, network := range []string{"tcp", "udp"} {
		for what, to := range map[string]string{
			"the host at the gateway":    "192.0.2.1:80",
			"the host's loopback":        "127.0.0.1:80",
			"the host's own address":     HostOwn.String() + ":80",
			"a link's own addresses":     "169.254.169.254:80",
			"nobody on the network":      "192.0.2.99:80",
			"a guest of another network": other.address.String() + ":7",
			"everybody":                  "255.255.255.255:80",
			"a group":                    "224.0.0.251:80",
			"no address":                 "0.0.0.0:80",
		} {
			if what == "a guest of another network" && !world.Apart {
				leavesForOutside(t, network, g, netip.MustParseAddrPort(to), world)
				continue
			}
			refuses(t, what, network, g, netip.MustParseAddrPort(to))
		}
		refuses(t, "the outside of an internal network", network, inside, netip.AddrPortFrom(Server, 80))
		refuses(t, "the gateway of an internal network", network, inside, netip.AddrPortFrom(ni.Gateway, 80))
		refuses(t, "another network, of an internal one", network, inside, netip.AddrPortFrom(g.address, 7))
	}
	if n := len(world.Asked); n > 0 {
		t.Errorf("somebody asked %d times for the outside, for %s first", n, <-world.Asked)
	}
}

// leavesForOutside: an address of another network is, seen from here, one of the outside, where it is nobody's: what is sent there goes out, and the guest that has it hears nothing.
func leavesForOutside(t *testing.T, network string, g *guest, to netip.AddrPort, world *World) {
	t.Helper()
	c, err := g.dial(network, to)
	asks(t, "the outside, by an address of another network", c, err, "hello")
	if got := <-world.Asked; got != network+"4 "+to.String() {
		t.Errorf("asked for %s", got)
	}
}

// published: a port of the host that is a container's is reached by others, at the gateway and at the host's own address; but not from an internal network, nor at the host's loopback.
func published(t *testing.T, b portlayer.NetworkBackend, s, internal portlayer.Segment, n, ni portlayer.Network, world *World) {
	g, inside := join(t, s, n, 45, false), join(t, internal, ni, 45, false)
	loopback := netip.MustParseAddr("127.0.0.1")
	everywhere := portlayer.Published{Port: 1, HostIP: netip.IPv4Unspecified(), HostPort: 80}
	tell := func(p portlayer.Published, open bool) {
		t.Helper()
		for _, p.Proto = range []portlayer.Proto{portlayer.TCP, portlayer.UDP} {
			if err := b.Publish(p, open); err != nil {
				t.Fatal(err)
			}
		}
	}
	reached := func(what string, at netip.Addr, is bool) {
		t.Helper()
		for _, network := range []string{"tcp", "udp"} {
			to := netip.AddrPortFrom(at, 80)
			if !is {
				refuses(t, what, network, g, to)
				continue
			}
			c, err := g.dial(network, to)
			asks(t, what+" by "+network, c, err, "hello")
			<-world.Asked
		}
	}
	reached("what nobody has published", n.Gateway, false)
	tell(everywhere, true)
	tell(everywhere, true)
	reached("a published port at the gateway", n.Gateway, true)
	reached("a published port at the host's address", HostOwn, true)
	refuses(t, "another port", "tcp", g, netip.AddrPortFrom(n.Gateway, 81))
	for _, network := range []string{"tcp", "udp"} {
		refuses(t, "a published port from an internal network", network, inside, netip.AddrPortFrom(ni.Gateway, 80))
	}
	tell(everywhere, false)
	reached("what one of two still publishes", n.Gateway, true)
	tell(everywhere, false)
	reached("what nobody publishes any more", n.Gateway, false)
	own := everywhere
	own.HostIP = HostOwn
	tell(own, true)
	reached("a port published at the host's address", HostOwn, true)
	reached("the same at the gateway", n.Gateway, false)
	tell(own, false)
	reached("the same, closed", HostOwn, false)
	own.HostIP = loopback
	tell(own, true)
	reached("a port published at the host's loopback only", n.Gateway, false)
	tell(everywhere, true)
	crafted(t, s, n, world)
	tell(own, false)
	tell(everywhere, false)
}

// arpEnd is a frame of ARP's size.
const arpEnd = header.EthernetMinimumSize + header.ARPSize

// crafted: a guest's kernel is its user's, and may send what no kernel sends: to the loopback of who routes for it, where a published port would answer.
func crafted(t *testing.T, s portlayer.Segment, n portlayer.Network, world *World) {
	mac, address := net.HardwareAddr{2, 0, 0, 0, 0, 46}, netip.MustParseAddr("192.0.2.46")
	arps := make(chan []byte, 100)
	card, err := s.Attach(mac, address, false, func(f []byte) {
		if len(f) >= arpEnd && header.Ethernet(f).Type() == header.ARPProtocolNumber {
			arps <- bytes.Clone(f)
		}
	})
	if err != nil {
		t.Fatal(err)
	}
	defer card.Close()
	// arp asks who has an address, or answers (RFC 826).
	arp := func(to net.HardwareAddr, op header.ARPOp, of netip.Addr) []byte {
		f := make([]byte, arpEnd)
		header.Ethernet(f).Encode(&header.EthernetFields{SrcAddr: tcpip.LinkAddress(mac), DstAddr: tcpip.LinkAddress(to), Type: header.ARPProtocolNumber})
		a, mine, theirs := header.ARP(f[header.EthernetMinimumSize:]), address.As4(), of.As4()
		a.SetIPv4OverEthernet()
		a.SetOp(op)
		copy(a.HardwareAddressSender(), mac)
		copy(a.ProtocolAddressSender(), mine[:])
		copy(a.ProtocolAddressTarget(), theirs[:])
		return f
	}
	card.Send(arp(net.HardwareAddr{0xff, 0xff, 0xff, 0xff, 0xff, 0xff}, header.ARPRequest, n.Gateway))
	var gateway net.HardwareAddr
	for gateway == nil {
		select {
		case f := <-arps:
			if a := header.ARP(f[header.EthernetMinimumSize:]); a.Op() == header.ARPReply {
				gateway = bytes.Clone(a.HardwareAddressSender())
			}
		case <-time.After(limit):
			t.Fatal("the gateway does not say who it is")
		}
	}
	card.Send(arp(gateway, header.ARPReply, n.Gateway)) // so that it answers without asking
	datagram := func(to netip.Addr) []byte {
		const size = header.IPv4MinimumSize + header.UDPMinimumSize
		f := make([]byte, header.EthernetMinimumSize+size)
		header.Ethernet(f).Encode(&header.EthernetFields{SrcAddr: tcpip.LinkAddress(mac), DstAddr: tcpip.LinkAddress(gateway), Type: header.IPv4ProtocolNumber})
		ip := header.IPv4(f[header.EthernetMinimumSize:])
		ip.Encode(&header.IPv4Fields{TotalLength: size, TTL: 64, Protocol: uint8(header.UDPProtocolNumber), SrcAddr: tcpip.AddrFrom4(address.As4()), DstAddr: tcpip.AddrFrom4(to.As4())})
		ip.SetChecksum(^ip.CalculateChecksum())
		header.UDP(ip.Payload()).Encode(&header.UDPFields{SrcPort: 4000, DstPort: 80, Length: header.UDPMinimumSize}) // a checksum of 0 is none
		return f
	}
	card.Send(datagram(n.Gateway))
	select {
	case <-world.Asked:
	case <-time.After(limit):
		t.Fatal("a datagram made by hand does not reach a published port")
	}
	card.Send(datagram(netip.MustParseAddr("127.0.0.1")))
	select {
	case at := <-world.Asked:
		t.Errorf("a datagram to the loopback reaches the host's: %s", at)
	case <-time.After(patience):
	}
}

func impostors(t *testing.T, s portlayer.Segment, n portlayer.Network) {
	victim := join(t, s, n, 51, false)
	got := make(chan []byte, 100)
	mac := net.HardwareAddr{2, 0, 0, 0, 0, 52}
	card, err := s.Attach(mac, netip.MustParseAddr("192.0.2.52"), false, func(f []byte) { got <- bytes.Clone(f) })
	if err != nil {
		t.Fatal(err)
	}
	defer card.Close()
	seen := make(chan []byte, 100)
	watcher, err := s.Attach(net.HardwareAddr{2, 0, 0, 0, 0, 53}, netip.MustParseAddr("192.0.2.53"), false, func(f []byte) { seen <- bytes.Clone(f) })
	if err != nil {
		t.Fatal(err)
	}
	defer watcher.Close()
	frame := func(src net.HardwareAddr, kind uint16, rest ...byte) []byte {
		f := append(bytes.Repeat([]byte{0xff}, 6), src...)
		return append(append(f, byte(kind>>8), byte(kind)), append(rest, make([]byte, 46)...)...)
	}
	claim := func(ip netip.Addr) []byte { // an ARP reply to everybody (RFC 826)
		a := ip.As4()
		return append(append(append([]byte{0, 1, 8, 0, 6, 4, 0, 2}, mac...), a[:]...), make([]byte, 10)...)
	}
	packet := func(from netip.Addr) []byte { // to everybody
		ip := make(header.IPv4, header.IPv4MinimumSize+header.UDPMinimumSize)
		ip.Encode(&header.IPv4Fields{TotalLength: uint16(len(ip)), TTL: 64, Protocol: uint8(header.UDPProtocolNumber), SrcAddr: tcpip.AddrFrom4(from.As4()), DstAddr: header.IPv4Broadcast})
		ip.SetChecksum(^ip.CalculateChecksum())
		return ip
	}
	card.Send(frame(victim.mac, 0x0800, 1))                  // another's hardware address
	card.Send(frame(mac, 0x0806, claim(n.Gateway)...))       // the gateway's address
	card.Send(frame(mac, 0x0806, claim(victim.address)...))  // another's address
	card.Send(frame(mac, 0x0800, packet(victim.address)...)) // the same, in a packet
	card.Send(frame(mac, 0x0800, packet(n.Gateway)...))
	card.Send([]byte{1, 2, 3})                                                 // no frame
	card.Send(frame(mac, 0x0806, claim(netip.MustParseAddr("192.0.2.52"))...)) // its own
	select {
	case f := <-seen:
		if f[12] != 8 || f[13] != 6 || !bytes.Equal(f[28:32], []byte{192, 0, 2, 52}) {
			t.Errorf("a frame of an impostor came through: % x", f[:32])
		}
	case <-time.After(limit):
		t.Error("an honest frame did not come through")
	}
	select {
	case f := <-seen:
		t.Errorf("one frame more came through: % x", f)
	case <-time.After(patience):
	}
}

func conflicts(t *testing.T, s portlayer.Segment, n portlayer.Network) {
	drop := func([]byte) {}
	mac, address := net.HardwareAddr{2, 0, 0, 0, 0, 61}, netip.MustParseAddr("192.0.2.61")
	card, err := s.Attach(mac, address, false, drop)
	if err != nil {
		t.Fatal(err)
	}
	for what, try := range map[string]struct {
		mac     net.HardwareAddr
		address netip.Addr
	}{"a hardware address": {mac, netip.MustParseAddr("192.0.2.62")}, "an address": {net.HardwareAddr{2, 0, 0, 0, 0, 62}, address}} {
		if _, err := s.Attach(try.mac, try.address, false, drop); !fault.Is(err, fault.Conflict) {
			t.Errorf("%s of another: %v", what, err)
		}
	}
	card.Close()
	card.Close()
	again, err := s.Attach(mac, address, false, drop)
	if err != nil {
		t.Fatal(err)
	}
	again.Close()
}
