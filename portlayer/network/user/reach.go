package user

import (
	"context"
	"log/slog"
	"net"
	"net/netip"
	"sync"
	"time"

	"gvisor.dev/gvisor/pkg/buffer"
	"gvisor.dev/gvisor/pkg/tcpip"
	"gvisor.dev/gvisor/pkg/tcpip/adapters/gonet"
	"gvisor.dev/gvisor/pkg/tcpip/header"
	"gvisor.dev/gvisor/pkg/tcpip/link/channel"
	"gvisor.dev/gvisor/pkg/tcpip/network/ipv4"
	"gvisor.dev/gvisor/pkg/tcpip/stack"
	"gvisor.dev/gvisor/pkg/tcpip/transport/tcp"
	"gvisor.dev/gvisor/pkg/waiter"

	"vch/guest"
	"vch/internal/ether"
	"vch/internal/fault"
	"vch/internal/splice"
	"vch/portlayer"
)

// A link to what a machine must reach has the machine at one end and a stack at the other, with nobody else on it, so that it looks the same in every machine. Its addresses are
// TEST-NET-1's (RFC 5737): they are in no one's way, for the guest has them in a namespace of their own.
var (
	reachGateway = netip.MustParsePrefix("192.0.2.1/24")
	reachGuest   = netip.MustParsePrefix("192.0.2.2/24")
	gatewayCard  = net.HardwareAddr{0x02, 0x76, 0x63, 0x68, 0, 1}
	guestCard    = net.HardwareAddr{0x02, 0x76, 0x63, 0x68, 0, 2}
)

const (
	// reachMTU is what a link carries, in bytes: a guest without offloads pays by the packet (doc/nfs-speed.md). IPv4 ends at 65535.
	reachMTU = 60000
	// privileged is the first port that is anybody's (bind(2), CAP_NET_BIND_SERVICE).
	privileged = 1024
	// timeWait is how long the end of a connection that was closed here first is kept.
	timeWait = 10 * time.Millisecond
	// mostReaches is how many connections a machine may have by its link at once: a mount has 16 at most (nfs(5), nconnect), and a host has 359 reserved ports to a server, which all
	// its machines share.
	mostReaches = 64
)

// Links implements portlayer.Reacher.
type Links struct {
	log  *slog.Logger
	dial func(ctx context.Context, service string) (net.Conn, error)
	work sync.WaitGroup
}

// NewLinks makes a Reacher; dial connects to a service.
func NewLinks(dial func(ctx context.Context, service string) (net.Conn, error), log *slog.Logger) *Links {
	return &Links{log: log, dial: dial}
}

// Close waits until what links that are closed had running has ended.
func (l *Links) Close() error {
	l.work.Wait()
	return nil
}

// reachLink implements portlayer.ReachLink.
type reachLink struct {
	links   *Links
	stack   *stack.Stack
	link    *channel.Endpoint
	deliver func([]byte)
	ctx     context.Context // ends with Close
	cancel  context.CancelFunc

	mu      sync.Mutex // guards below
	allowed map[netip.AddrPort]allowance
	open    int
}

// allowance is one service that is reached.
type allowance struct {
	service string
	ctx     context.Context // ends when it is not any more
	cancel  context.CancelFunc
}

// Open is portlayer.Reacher.Open.
func (l *Links) Open(deliver func(frame []byte)) (portlayer.ReachLink, error) {
	r := &reachLink{links: l, deliver: deliver, allowed: map[netip.AddrPort]allowance{}}
	var err error
	if r.stack, r.link, err = newStack(reachGateway, gatewayCard, reachMTU); err != nil {
		return nil, err
	}
	// The kernel's NFS client connects again from the port that it had, as its server's memory of calls needs it: an end must not lie in wait there (RFC 9293 section 3.6.1), and on a
	// link of two nothing old can come late.
	wait := tcpip.TCPTimeWaitTimeoutOption(timeWait)
	if err := r.stack.SetTransportProtocolOption(tcp.ProtocolNumber, &wait); err != nil {
		r.stack.Close()
		return nil, fault.New(fault.Internal, "a network stack cannot be made: %s", err)
	}
	if err := r.stack.AddStaticNeighbor(nic, ipv4.ProtocolNumber, tcpip.AddrFrom4(reachGuest.Addr().As4()), tcpip.LinkAddress(guestCard)); err != nil {
		r.stack.Close()
		return nil, fault.New(fault.Internal, "a network stack cannot be made: %s", err)
	}
	r.ctx, r.cancel = context.WithCancel(context.Background())
	r.stack.SetTransportProtocolHandler(tcp.ProtocolNumber, tcp.NewForwarder(r.stack, 0, mostReaches, r.forward).HandlePacket)
	l.work.Go(r.toGuest)
	return r, nil
}

// Close is portlayer.Card.Close.
func (r *reachLink) Close() {
	r.cancel()
	r.link.Close()
	r.stack.Destroy()
}

// Interface is portlayer.ReachLink.Interface.
func (r *reachLink) Interface() guest.Interface {
	return guest.Interface{Name: "storage", MAC: guestCard.String(), Address: reachGuest.String(), Gateway: reachGateway.Addr().String(), MTU: reachMTU}
}

// Allow is portlayer.ReachLink.Allow.
func (r *reachLink) Allow(rs []portlayer.Reach) {
	r.mu.Lock()
	defer r.mu.Unlock()
	now := map[netip.AddrPort]allowance{}
	for _, want := range rs {
		if have, ok := r.allowed[want.Address]; ok && have.service == want.Service {
			now[want.Address] = have
			continue
		}
		a := allowance{service: want.Service}
		a.ctx, a.cancel = context.WithCancel(r.ctx)
		now[want.Address] = a
	}
	for at, had := range r.allowed {
		if now[at].ctx != had.ctx {
			had.cancel()
		}
	}
	r.allowed = now
}

// Send is portlayer.Card.Send.
func (r *reachLink) Send(frame []byte) {
	isOther := func(a netip.Addr) bool { return a != reachGuest.Addr() }
	if !ether.Honest(frame, guestCard, isOther) || !r.admits(frame) {
		return
	}
	p := stack.NewPacketBuffer(stack.PacketBufferOptions{Payload: buffer.MakeWithData(frame)}) // a copy
	r.link.InjectInbound(0, p)
	p.DecRef()
}

// admits reports whether the stack is to see a frame: it would answer a question for any address.
func (r *reachLink) admits(frame []byte) bool {
	switch ether.Type(frame) {
	case ether.ARP:
		return ether.AsksFor(frame, reachGateway.Addr())
	case ether.IPv4:
		h := header.IPv4(frame[ether.Head:])
		return h.IsValid(len(h)) && h.TransportProtocol() == header.TCPProtocolNumber
	}
	return false
}

// toGuest delivers what the stack sends, until the link is closed.
func (r *reachLink) toGuest() {
	for {
		p := r.link.ReadContext(r.ctx)
		if p == nil {
			return
		}
		view := p.ToView()
		r.deliver(view.AsSlice())
		view.Release()
		p.DecRef()
	}
}

// enter says what is at an address that the guest connects to, and counts it.
func (r *reachLink) enter(to netip.AddrPort, from uint16) (a allowance, ok bool) {
	r.mu.Lock()
	defer r.mu.Unlock()
	a, ok = r.allowed[to]
	if !ok || from >= privileged || r.open >= mostReaches {
		return a, false
	}
	r.open++
	return a, true
}

func (r *reachLink) leave() {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.open--
}

// forward connects the guest to a service that it may reach. What cannot be reached refuses the connection.
func (r *reachLink) forward(q *tcp.ForwarderRequest) {
	id := q.ID()
	to := addrPort(id.LocalAddress, id.LocalPort)
	a, ok := r.enter(to, id.RemotePort)
	if !ok {
		r.links.log.Debug("a machine was refused a connection by its storage link", "to", to.String(), "from port", id.RemotePort)
		q.Complete(true)
		return
	}
	ctx, cancel := context.WithTimeout(a.ctx, dialWait)
	defer cancel()
	conn, err := r.links.dial(ctx, a.service)
	if err != nil {
		r.leave()
		q.Complete(true)
		return
	}
	var wq waiter.Queue
	ep, terr := q.CreateEndpoint(&wq)
	q.Complete(false)
	if terr != nil {
		r.leave()
		conn.Close()
		return
	}
	r.links.work.Go(func() {
		defer r.leave()
		splice.Streams(a.ctx, gonet.NewTCPConn(&wq, ep), conn)
	})
}
