package user

import (
	"context"
	"net"
	"net/netip"
	"slices"
	"sync"
	"time"

	"gvisor.dev/gvisor/pkg/tcpip"
	"gvisor.dev/gvisor/pkg/tcpip/adapters/gonet"
	"gvisor.dev/gvisor/pkg/tcpip/transport/tcp"
	"gvisor.dev/gvisor/pkg/tcpip/transport/udp"
	"gvisor.dev/gvisor/pkg/waiter"

	"vch/internal/fault"
	"vch/internal/splice"
)

const (
	// mostDials is how many connections to the outside may be on their way at once on a network.
	mostDials = 1024
	dialWait  = 60 * time.Second
	// mostPackets is how many of these a network has at once.
	mostPackets = 4096
)

// ownAddresses are this host's, asked anew each time: they come and go.
func ownAddresses() (all []netip.Addr) {
	addresses, _ := net.InterfaceAddrs()
	for _, a := range addresses {
		if p, err := netip.ParsePrefix(a.String()); err == nil {
			all = append(all, p.Addr().Unmap())
		}
	}
	return all
}

// outside is where a connection of a container goes: Denied where it may not. A container that may reach the host finds its loopback at the gateway.
func (s *segment) outside(network string, from netip.Addr, to netip.AddrPort) (netip.AddrPort, error) {
	loopback := netip.AddrPortFrom(netip.AddrFrom4([4]byte{127, 0, 0, 1}), to.Port())
	c := s.of(from)
	switch {
	case to.Addr() == s.net.Gateway && c != nil && c.toHost:
		return loopback, nil
	case s.net.Internal:
		return to, fault.New(fault.Denied, "network %s is internal", s.net.Name)
	case to.Addr() == s.net.Gateway && s.backend.isPublished(network, netip.AddrPortFrom(netip.IPv4Unspecified(), to.Port())):
		return loopback, nil
	case to.Addr() == s.net.Gateway:
		return to, fault.New(fault.Denied, "the host is not to be reached")
	}
	own := slices.Contains(s.backend.o.Own(), to.Addr())
	if own && !to.Addr().IsLoopback() && s.backend.isPublished(network, to) {
		return to, nil
	}
	return to, forbidden(to.Addr(), s.net.Subnet, own)
}

// forbidden is Denied for what is not the outside: the host itself, its links, groups, and the network's own subnet, where nobody has that address.
func forbidden(to netip.Addr, subnet netip.Prefix, own bool) error {
	const what = "is not to be reached from a container"
	switch {
	case !to.Is4() || !to.IsGlobalUnicast() || to.IsLoopback():
		return fault.New(fault.Denied, "%s %s", to, what)
	case subnet.Contains(to):
		return fault.New(fault.Denied, "nobody on the network has %s", to)
	case own:
		return fault.New(fault.Denied, "%s is this host, which %s", to, what)
	}
	return nil
}

func addrPort(a tcpip.Address, port uint16) netip.AddrPort {
	return netip.AddrPortFrom(netip.AddrFrom4(a.As4()), port)
}

// forwardStream connects a container to the outside. What cannot be reached refuses the connection, as it does there.
func (s *segment) forwardStream(r *tcp.ForwarderRequest) {
	id := r.ID()
	to, err := s.outside("tcp", addrPort(id.RemoteAddress, 0).Addr(), addrPort(id.LocalAddress, id.LocalPort))
	if err != nil {
		s.refuse(err)
		r.Complete(true)
		return
	}
	ctx, cancel := context.WithTimeout(s.ctx, dialWait)
	defer cancel()
	conn, err := s.backend.o.Dial(ctx, "tcp4", to.String())
	if err != nil {
		r.Complete(true)
		return
	}
	var wq waiter.Queue
	ep, terr := r.CreateEndpoint(&wq)
	r.Complete(false)
	if terr != nil {
		conn.Close()
		return
	}
	s.backend.work.Go(func() { splice.Streams(s.ctx, gonet.NewTCPConn(&wq, ep), conn) })
}

func (s *segment) refuse(err error) {
	s.backend.o.Log.Debug("a container was refused a connection", "network", string(s.net.Name), "why", err)
}

// packets counts what forwardPackets has open.
type packets struct {
	mu sync.Mutex
	n  int
}

func (p *packets) enter() bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.n >= mostPackets {
		return false
	}
	p.n++
	return true
}

func (p *packets) leave() {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.n--
}

// forwardPackets has a container's datagrams to one target, and what comes back, go by a socket of their own.
func (s *segment) forwardPackets(r *udp.ForwarderRequest) (handled bool) {
	id := r.ID()
	to, err := s.outside("udp", addrPort(id.RemoteAddress, 0).Addr(), addrPort(id.LocalAddress, id.LocalPort))
	if err != nil {
		s.refuse(err)
		return false // which is told: nobody is there
	}
	if !s.flows.enter() {
		return true
	}
	var wq waiter.Queue
	ep, terr := r.CreateEndpoint(&wq)
	if terr != nil {
		s.flows.leave()
		return true
	}
	inside := gonet.NewUDPConn(&wq, ep)
	s.backend.work.Go(func() {
		defer s.flows.leave()
		defer inside.Close()
		conn, err := s.backend.o.Dial(s.ctx, "udp4", to.String())
		if err != nil {
			return
		}
		splice.Packets(s.ctx, inside, conn)
	})
	return true
}
