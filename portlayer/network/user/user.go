// Package user makes networks in this process: it needs no right that its user has not, and changes nothing on the host.
//
// A network is a switch between its cards and a stack of its own (gVisor's netstack), which is the network's gateway: what a container sends to the outside ends there and goes
// on by a connection of this process, if it may (door.go). What it may not reach is this host: not its loopback, not its other addresses, not what is known on a link only.
package user

import (
	"bytes"
	"context"
	"log/slog"
	"net"
	"net/netip"
	"sync"

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

	"vch/internal/ether"
	"vch/internal/fault"
	"vch/portlayer"
)

// Options is what a Backend is opened with.
type Options struct {
	Log *slog.Logger
	// Own gives this host's own addresses; nil: it is asked.
	Own func() []netip.Addr
	// Dial connects to the outside; nil: this host does.
	Dial func(ctx context.Context, network, to string) (net.Conn, error)
}

// Backend implements portlayer.NetworkBackend.
type Backend struct {
	o    Options
	work sync.WaitGroup // what segments have running

	mu        sync.Mutex                  // guards below
	published map[portlayer.Published]int // by their host's side; how often
}

// New makes a backend.
func New(o Options) *Backend {
	if o.Own == nil {
		o.Own = ownAddresses
	}
	if o.Dial == nil {
		o.Dial = new(net.Dialer).DialContext
	}
	return &Backend{o: o, published: map[portlayer.Published]int{}}
}

// Name is portlayer.NetworkBackend.Name.
func (b *Backend) Name() string { return "user" }

// Close is portlayer.NetworkBackend.Close.
func (b *Backend) Close() error {
	b.work.Wait()
	return nil
}

// Publish is portlayer.NetworkBackend.Publish.
func (b *Backend) Publish(p portlayer.Published, open bool) error {
	p.Port = 0
	b.mu.Lock()
	defer b.mu.Unlock()
	if open {
		b.published[p]++
	} else if b.published[p]--; b.published[p] <= 0 {
		delete(b.published, p)
	}
	return nil
}

// isPublished says whether a container has a port of this host open at an address.
func (b *Backend) isPublished(network string, at netip.AddrPort) bool {
	b.mu.Lock()
	defer b.mu.Unlock()
	for _, host := range []netip.Addr{at.Addr(), netip.IPv4Unspecified()} {
		if b.published[portlayer.Published{Proto: portlayer.Proto(network), HostIP: host, HostPort: at.Port()}] > 0 {
			return true
		}
	}
	return false
}

// segment implements portlayer.Segment.
type segment struct {
	backend *Backend
	net     portlayer.Network
	gateway net.HardwareAddr
	stack   *stack.Stack
	link    *channel.Endpoint // the gateway's card
	ctx     context.Context   // ends with Close
	cancel  context.CancelFunc

	flows packets

	mu        sync.RWMutex // guards below
	cards     map[[6]byte]*card
	addresses map[netip.Addr]*card
}

// card implements portlayer.Card.
type card struct {
	segment *segment
	mac     [6]byte
	address netip.Addr
	toHost  bool
	deliver func([]byte)
}

// everybody is the address of all on a link (RFC 919).
var everybody = netip.AddrFrom4([4]byte{255, 255, 255, 255})

const (
	nic        = 1
	defaultMTU = 1500
	// queue is how many frames of the gateway may wait to be delivered.
	queue = 1024
)

// Open is portlayer.NetworkBackend.Open.
func (b *Backend) Open(_ context.Context, n portlayer.Network) (portlayer.Segment, error) {
	mtu := n.MTU
	if mtu == 0 {
		mtu = defaultMTU
	}
	a := n.Gateway.As4()
	s := &segment{backend: b, net: n, gateway: net.HardwareAddr{0x02, 0x42, a[0], a[1], a[2], a[3]}, cards: map[[6]byte]*card{}, addresses: map[netip.Addr]*card{}}
	var err error
	if s.stack, s.link, err = newStack(netip.PrefixFrom(n.Gateway, n.Subnet.Bits()), s.gateway, mtu, udp.NewProtocol, icmp.NewProtocol4); err != nil {
		return nil, err
	}
	s.ctx, s.cancel = context.WithCancel(context.Background())
	s.stack.SetTransportProtocolHandler(tcp.ProtocolNumber, tcp.NewForwarder(s.stack, 0, mostDials, s.forwardStream).HandlePacket)
	s.stack.SetTransportProtocolHandler(udp.ProtocolNumber, udp.NewForwarder(s.stack, s.forwardPackets).HandlePacket)
	b.work.Go(s.fromGateway)
	return s, nil
}

// newStack makes a stack that speaks TCP and protocols, has one address, and takes and answers what is for any other, by a card that is the channel.
func newStack(at netip.Prefix, mac net.HardwareAddr, mtu int, protocols ...stack.TransportProtocolFactory) (*stack.Stack, *channel.Endpoint, error) {
	st := stack.New(stack.Options{
		NetworkProtocols:   []stack.NetworkProtocolFactory{ipv4.NewProtocol, arp.NewProtocol},
		TransportProtocols: append(protocols, tcp.NewProtocol),
	})
	sack := tcpip.TCPSACKEnabled(true)
	st.SetTransportProtocolOption(tcp.ProtocolNumber, &sack)
	link := channel.New(queue, uint32(mtu+ether.Head), tcpip.LinkAddress(mac))
	address := tcpip.AddressWithPrefix{Address: tcpip.AddrFrom4(at.Addr().As4()), PrefixLen: at.Bits()}
	for _, err := range []tcpip.Error{
		st.CreateNIC(nic, ethernet.New(link)),
		st.AddProtocolAddress(nic, tcpip.ProtocolAddress{Protocol: ipv4.ProtocolNumber, AddressWithPrefix: address}, stack.AddressProperties{}),
		st.SetSpoofing(nic, true),        // it answers for the outside
		st.SetPromiscuousMode(nic, true), // and takes what is for it
	} {
		if err != nil {
			st.Close()
			return nil, nil, fault.New(fault.Internal, "a network stack cannot be made: %s", err)
		}
	}
	st.SetRouteTable([]tcpip.Route{{Destination: header.IPv4EmptySubnet, NIC: nic}})
	return st, link, nil
}

// Close is portlayer.Segment.Close.
func (s *segment) Close() error {
	s.cancel()
	s.link.Close()
	s.stack.Destroy()
	return nil
}

// Attach is portlayer.Segment.Attach.
func (s *segment) Attach(mac net.HardwareAddr, address netip.Addr, toHost bool, deliver func([]byte)) (portlayer.Card, error) {
	c := &card{segment: s, mac: [6]byte(mac), address: address, toHost: toHost, deliver: deliver}
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.cards[c.mac] != nil || bytes.Equal(mac, s.gateway) {
		return nil, fault.New(fault.Conflict, "hardware address %s is in use on network %s", mac, s.net.Name)
	}
	if s.addresses[address] != nil {
		return nil, fault.New(fault.Conflict, "address %s is in use on network %s", address, s.net.Name)
	}
	s.cards[c.mac], s.addresses[address] = c, c
	s.stack.AddStaticNeighbor(nic, ipv4.ProtocolNumber, tcpip.AddrFrom4(address.As4()), tcpip.LinkAddress(mac))
	return c, nil
}

// Close is portlayer.Card.Close.
func (c *card) Close() {
	s := c.segment
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.cards[c.mac] == c {
		delete(s.cards, c.mac)
		delete(s.addresses, c.address)
		s.stack.RemoveNeighbor(nic, ipv4.ProtocolNumber, tcpip.AddrFrom4(c.address.As4()))
	}
}

// of is the card with an address; nil if there is none.
func (s *segment) of(address netip.Addr) *card {
	s.mu.RLock()
	defer s.mu.RUnlock()
	return s.addresses[address]
}

// others says whether an address is not c's, but the gateway's or another card's.
func (c *card) others(address netip.Addr) bool {
	owner := c.segment.of(address)
	return owner != nil && owner != c || address == c.segment.net.Gateway
}

// Send is portlayer.Card.Send.
func (c *card) Send(frame []byte) {
	s := c.segment
	if !ether.Honest(frame, c.mac[:], c.others) {
		return
	}
	to := [6]byte(frame[:6])
	switch {
	case to[0]&1 != 0: // everybody, or a group
		s.mu.RLock()
		var others []*card
		for _, other := range s.cards {
			if other != c {
				others = append(others, other)
			}
		}
		s.mu.RUnlock()
		for _, other := range others {
			other.deliver(frame)
		}
		// The stack would answer for every address.
		if ether.Type(frame) != ether.ARP || ether.AsksFor(frame, s.net.Gateway) {
			s.toGateway(frame)
		}
	case bytes.Equal(to[:], s.gateway):
		s.toGateway(frame)
	default:
		s.mu.RLock()
		other := s.cards[to]
		s.mu.RUnlock()
		if other != nil {
			other.deliver(frame)
		}
	}
}

// toGateway gives the stack a frame that may be for it.
func (s *segment) toGateway(frame []byte) {
	switch ether.Type(frame) {
	case ether.ARP:
	case ether.IPv4:
		if !s.admits(frame[ether.Head:]) {
			return
		}
	default:
		return
	}
	p := stack.NewPacketBuffer(stack.PacketBufferOptions{Payload: buffer.MakeWithData(frame)}) // a copy
	s.link.InjectInbound(0, p)
	p.DecRef()
}

// admits reports whether the stack is to see an IPv4 packet. It would answer a ping of any address, as if that had.
func (s *segment) admits(packet []byte) bool {
	h := header.IPv4(packet)
	if !h.IsValid(len(packet)) {
		return false
	}
	to := netip.AddrFrom4(h.DestinationAddress().As4())
	switch h.TransportProtocol() {
	case header.ICMPv4ProtocolNumber:
		return to == s.net.Gateway
	case header.TCPProtocolNumber, header.UDPProtocolNumber:
		return !to.IsMulticast() && to != everybody
	}
	return false
}

// fromGateway delivers what the stack sends, until the segment is closed.
func (s *segment) fromGateway() {
	for {
		p := s.link.ReadContext(s.ctx)
		if p == nil {
			return
		}
		view := p.ToView()
		frame := view.AsSlice()
		if len(frame) >= ether.Head {
			s.mu.RLock()
			c := s.cards[[6]byte(frame[:6])]
			s.mu.RUnlock()
			if c != nil {
				c.deliver(frame)
			}
		}
		view.Release()
		p.DecRef()
	}
}

// Dial is portlayer.Segment.Dial.
func (s *segment) Dial(ctx context.Context, network string, to netip.AddrPort) (net.Conn, error) {
	from := tcpip.FullAddress{NIC: nic, Addr: tcpip.AddrFrom4(s.net.Gateway.As4())}
	at := tcpip.FullAddress{NIC: nic, Addr: tcpip.AddrFrom4(to.Addr().As4()), Port: to.Port()}
	if s.of(to.Addr()) == nil {
		return nil, fault.New(fault.Unavailable, "%s is not on network %s", to.Addr(), s.net.Name)
	}
	if network == "udp" {
		return gonet.DialUDP(s.stack, &from, &at, ipv4.ProtocolNumber)
	}
	return gonet.DialTCPWithBind(ctx, s.stack, from, at, ipv4.ProtocolNumber)
}
