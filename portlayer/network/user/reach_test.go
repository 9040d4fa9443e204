package user

import (
	"bytes"
	"context"
	"errors"
	"io"
	"log/slog"
	"net"
	"net/netip"
	"sync"
	"testing"
	"time"

	"gvisor.dev/gvisor/pkg/buffer"
	"gvisor.dev/gvisor/pkg/tcpip"
	"gvisor.dev/gvisor/pkg/tcpip/adapters/gonet"
	"gvisor.dev/gvisor/pkg/tcpip/header"
	"gvisor.dev/gvisor/pkg/tcpip/link/channel"
	"gvisor.dev/gvisor/pkg/tcpip/network/ipv4"
	"gvisor.dev/gvisor/pkg/tcpip/stack"

	"vch/portlayer"
)

const reachLimit = 30 * time.Second

// kernel is the guest's end of a link.
type kernel struct {
	stack *stack.Stack
	card  *channel.Endpoint
	link  portlayer.ReachLink
}

// servers answers who dials with the service's name and what comes, doubled.
type servers struct {
	mu    sync.Mutex // guards below
	asked []string
	down  bool
}

func (s *servers) dial(_ context.Context, service string) (net.Conn, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.asked = append(s.asked, service)
	if s.down {
		return nil, errors.New("down")
	}
	near, far := net.Pipe()
	go func() {
		defer far.Close()
		b := make([]byte, 4)
		for {
			if _, err := io.ReadFull(far, b); err != nil {
				return
			}
			if _, err := far.Write(append([]byte(service+":"), b...)); err != nil {
				return
			}
		}
	}()
	return near, nil
}

func newKernel(t *testing.T, links *Links) *kernel {
	t.Helper()
	k := &kernel{}
	var err error
	if k.link, err = links.Open(func(frame []byte) {
		p := stack.NewPacketBuffer(stack.PacketBufferOptions{Payload: buffer.MakeWithData(bytes.Clone(frame))})
		k.card.InjectInbound(0, p)
		p.DecRef()
	}); err != nil {
		t.Fatal(err)
	}
	i := k.link.Interface()
	mac, err := net.ParseMAC(i.MAC)
	if err != nil {
		t.Fatal(err)
	}
	if k.stack, k.card, err = newStack(netip.MustParsePrefix(i.Address), mac, i.MTU); err != nil {
		t.Fatal(err)
	}
	k.stack.SetSpoofing(nic, true)
	k.stack.SetRouteTable([]tcpip.Route{{Destination: header.IPv4EmptySubnet, Gateway: tcpip.AddrFrom4(netip.MustParseAddr(i.Gateway).As4()), NIC: nic}})
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan struct{})
	go func() {
		defer close(done)
		for {
			p := k.card.ReadContext(ctx)
			if p == nil {
				return
			}
			v := p.ToView()
			k.link.Send(v.AsSlice())
			v.Release()
			p.DecRef()
		}
	}()
	t.Cleanup(func() {
		k.link.Close()
		cancel()
		<-done
		k.card.Close()
		k.stack.Destroy()
	})
	return k
}

// dial connects from a port of the guest's to an address.
func (k *kernel) dial(from uint16, to string) (net.Conn, error) {
	ctx, cancel := context.WithTimeout(context.Background(), reachLimit)
	defer cancel()
	at := netip.MustParseAddrPort(to)
	local := tcpip.FullAddress{NIC: nic, Addr: tcpip.AddrFrom4(reachGuest.Addr().As4()), Port: from}
	remote := tcpip.FullAddress{NIC: nic, Addr: tcpip.AddrFrom4(at.Addr().As4()), Port: at.Port()}
	return gonet.DialTCPWithBind(ctx, k.stack, local, remote, ipv4.ProtocolNumber)
}

func says(t *testing.T, c net.Conn, want string) {
	t.Helper()
	c.SetDeadline(time.Now().Add(reachLimit))
	if _, err := c.Write([]byte("ping")); err != nil {
		t.Fatal(err)
	}
	b := make([]byte, len(want))
	if _, err := io.ReadFull(c, b); err != nil || string(b) != want {
		t.Fatalf("%q, %v; want %q", b, err, want)
	}
}

func ends(t *testing.T, c net.Conn) {
	t.Helper()
	c.SetDeadline(time.Now().Add(reachLimit))
	if n, err := c.Read(make([]byte, 1)); n > 0 || err == nil || errors.Is(err, context.DeadlineExceeded) {
		t.Fatalf("%d, %v", n, err)
	}
	var late net.Error
	if _, err := c.Read(make([]byte, 1)); errors.As(err, &late) && late.Timeout() {
		t.Fatal("the connection goes on")
	}
}

// A machine reaches, by its link, what is allowed to it, from privileged ports, and nothing else; what is not allowed any more is cut off, and what stays goes on.
func TestLinkReachesWhatIsAllowed(t *testing.T) {
	s := &servers{}
	links := NewLinks(s.dial, slog.New(slog.DiscardHandler))
	k := newKernel(t, links)
	one := portlayer.Reach{Address: netip.MustParseAddrPort("10.1.2.3:2049"), Service: "one"}
	two := portlayer.Reach{Address: netip.MustParseAddrPort("10.1.2.4:2049"), Service: "two"}
	if c, err := k.dial(700, "10.1.2.3:2049"); err == nil {
		c.Close()
		t.Fatal("something is reached before anything is allowed")
	}
	k.link.Allow([]portlayer.Reach{one, two})
	first, err := k.dial(701, "10.1.2.3:2049")
	if err != nil {
		t.Fatal(err)
	}
	defer first.Close()
	says(t, first, "one:ping")
	second, err := k.dial(702, "10.1.2.4:2049")
	if err != nil {
		t.Fatal(err)
	}
	defer second.Close()
	says(t, second, "two:ping")
	for i, to := range []string{"10.1.2.3:2050", "10.1.2.5:2049", "192.0.2.1:2049", "192.0.2.1:22", "127.0.0.1:2049", "203.0.113.1:80"} {
		if c, err := k.dial(uint16(710+i), to); err == nil {
			c.Close()
			t.Errorf("%s is reached", to)
		}
	}
	for _, port := range []uint16{1024, 40000} {
		if c, err := k.dial(port, "10.1.2.3:2049"); err == nil {
			c.Close()
			t.Errorf("a server is reached from port %d, which is anybody's", port)
		}
	}
	s.mu.Lock()
	if len(s.asked) != 2 {
		t.Errorf("dialled %q", s.asked)
	}
	s.down = true
	s.mu.Unlock()
	if c, err := k.dial(720, "10.1.2.3:2049"); err == nil {
		c.Close()
		t.Error("a server that is down takes connections")
	}
	k.link.Allow([]portlayer.Reach{two})
	ends(t, first)
	says(t, second, "two:ping")
	k.link.Allow([]portlayer.Reach{{Address: two.Address, Service: "another"}})
	ends(t, second)
}

// What is no TCP to an allowed server gets no answer, whatever a guest's root makes of its frames.
func TestLinkDropsTheRest(t *testing.T) {
	links := NewLinks((&servers{}).dial, slog.New(slog.DiscardHandler))
	got := make(chan []byte, 100)
	link, err := links.Open(func(frame []byte) { got <- bytes.Clone(frame) })
	if err != nil {
		t.Fatal(err)
	}
	link.Allow([]portlayer.Reach{{Address: netip.MustParseAddrPort("10.1.2.3:2049"), Service: "one"}})
	frame := func(from net.HardwareAddr, source, to string, proto byte, payload []byte) []byte {
		b := append(bytes.Clone(gatewayCard), from...)
		b = append(b, 0x08, 0)
		h := header.IPv4(make([]byte, header.IPv4MinimumSize))
		h.Encode(&header.IPv4Fields{TotalLength: uint16(header.IPv4MinimumSize + len(payload)), TTL: 64, Protocol: proto,
			SrcAddr: tcpip.AddrFrom4(netip.MustParseAddr(source).As4()), DstAddr: tcpip.AddrFrom4(netip.MustParseAddr(to).As4())})
		h.SetChecksum(^h.CalculateChecksum())
		return append(append(b, h...), payload...)
	}
	syn := make([]byte, header.TCPMinimumSize)
	header.TCP(syn).Encode(&header.TCPFields{SrcPort: 700, DstPort: 2049, SeqNum: 1, DataOffset: header.TCPMinimumSize, Flags: header.TCPFlagSyn, WindowSize: 1000})
	me := reachGuest.Addr().String()
	arp := append(append(append([]byte{0xff, 0xff, 0xff, 0xff, 0xff, 0xff}, guestCard...), 8, 6, 0, 1, 8, 0, 6, 4, 0, 1), guestCard...)
	arp = append(append(append(arp, reachGuest.Addr().AsSlice()...), 0, 0, 0, 0, 0, 0), 10, 1, 2, 3)
	for what, f := range map[string][]byte{
		"a ping":                       frame(guestCard, me, "10.1.2.3", 1, []byte{8, 0, 0xf7, 0xff, 0, 0, 0, 0}),
		"a datagram":                   frame(guestCard, me, "10.1.2.3", 17, []byte{2, 0xbc, 8, 1, 0, 8, 0, 0}),
		"from another card":            frame(net.HardwareAddr{2, 1, 1, 1, 1, 1}, me, "10.1.2.3", 6, syn),
		"from another address":         frame(guestCard, "192.0.2.9", "10.1.2.3", 6, syn),
		"from the gateway's address":   frame(guestCard, "192.0.2.1", "10.1.2.3", 6, syn),
		"a question for another's":     arp,
		"nothing":                      nil,
		"half a head":                  make([]byte, 10),
		"an IPv6 packet":               append(append(bytes.Clone(gatewayCard), guestCard...), 0x86, 0xdd, 0x60),
		"an IPv4 head that is cut off": append(append(bytes.Clone(gatewayCard), guestCard...), 8, 0, 0x45),
	} {
		link.Send(f)
		select {
		case answer := <-got:
			t.Errorf("%s is answered: % x", what, answer)
		case <-time.After(50 * time.Millisecond):
		}
	}
	link.Close()
	if err := links.Close(); err != nil {
		t.Error(err)
	}
}

// A guest whose server has closed the connection comes again from the same port, as the kernel's NFS client does.
func TestLinkTakesTheSamePortAgain(t *testing.T) {
	var near, far net.Conn
	links := NewLinks(func(context.Context, string) (net.Conn, error) {
		near, far = net.Pipe()
		return near, nil
	}, slog.New(slog.DiscardHandler))
	k := newKernel(t, links)
	k.link.Allow([]portlayer.Reach{{Address: netip.MustParseAddrPort("10.1.2.3:2049"), Service: "one"}})
	for range 3 {
		var c net.Conn
		var err error
		for end := time.Now().Add(5 * time.Second); ; time.Sleep(10 * time.Millisecond) {
			if c, err = k.dial(800, "10.1.2.3:2049"); err == nil || time.Now().After(end) {
				break
			}
		}
		if err != nil {
			t.Fatal(err)
		}
		far.Close()
		ends(t, c)
		c.Close()
	}
}
