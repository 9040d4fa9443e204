package network

import (
	"context"
	"errors"
	"net"
	"net/netip"
	"sync"
	"syscall"
	"time"

	"vch/internal/fault"
	"vch/internal/splice"
	"vch/portlayer"
)

// publication is one port that the host has open for a container.
type publication struct {
	portlayer.Published
	ends   func() error
	hide   func() // undoes NetworkBackend.Publish
	cancel context.CancelFunc
	work   sync.WaitGroup
}

func (p *publication) close() {
	p.hide()
	p.cancel()
	_ = p.ends()
	p.work.Wait()
}

// again are the ports that were open, as they are asked for.
func again(had []portlayer.Published) (ports []portlayer.Port) {
	for _, p := range had {
		ports = append(ports, portlayer.Port{Port: p.Port, Proto: p.Proto, HostIP: p.HostIP, HostPort: p.HostPort})
	}
	return ports
}

// open opens ports for w. After an error what was opened stays, for Unplug.
func (s *Service) open(w *wired, ports []portlayer.Port) error {
	var errs []error
	for _, p := range ports {
		hosts := []netip.Addr{p.HostIP}
		if !p.HostIP.IsValid() {
			hosts = []netip.Addr{netip.IPv4Unspecified(), netip.IPv6Unspecified()}
		}
		var first error
		for try := int(p.HostPort); try <= max(int(p.HostPort), int(p.HostEnd)); try++ {
			opened, err := s.openAt(w, p, hosts, uint16(try))
			if err == nil {
				s.mu.Lock()
				w.ports, first = append(w.ports, opened...), nil
				s.mu.Unlock()
				break
			}
			if first == nil {
				first = err
			}
		}
		if first != nil {
			errs = append(errs, first)
		}
	}
	return errors.Join(errs...)
}

// openAt opens one port on several addresses, the same on all; 0: any that is free. A host without IPv6 has it on the others.
func (s *Service) openAt(w *wired, p portlayer.Port, hosts []netip.Addr, port uint16) (all []*publication, err error) {
	defer func() {
		if err != nil {
			for _, o := range all {
				o.close()
			}
			all = nil
		}
	}()
	for i, host := range hosts {
		at := netip.AddrPortFrom(host, port)
		o, err := s.listen(w, p, at)
		if i > 0 && host.Is6() && (errors.Is(err, syscall.EAFNOSUPPORT) || errors.Is(err, syscall.EADDRNOTAVAIL)) {
			continue
		}
		if err != nil {
			why := "port is already allocated"
			switch {
			case errors.Is(err, syscall.EADDRNOTAVAIL):
				why = "cannot assign requested address: it is none of this host's"
			case errors.Is(err, syscall.EACCES):
				why = "permission denied: a port below 1024 is root's (net.ipv4.ip_unprivileged_port_start)"
			case !errors.Is(err, syscall.EADDRINUSE):
				why = err.Error()
			}
			return all, fault.New(fault.Unavailable, "driver failed programming external connectivity on endpoint %s: Bind for %s/%s failed: %s", w.Name, at, p.Proto, why)
		}
		port = o.HostPort
		all = append(all, o)
		if err := s.announce(o); err != nil {
			return all, err
		}
	}
	return all, nil
}

// announce tells the backend of a port that is open.
func (s *Service) announce(o *publication) error {
	if err := s.o.Backend.Publish(o.Published, true); err != nil {
		return err
	}
	o.hide = func() {
		if err := s.o.Backend.Publish(o.Published, false); err != nil {
			s.o.Log.Warn("a port that is closed may still be let through to", "port", o.HostPort, "err", err)
		}
	}
	return nil
}

// listen opens one port and has what comes to it go to the container.
func (s *Service) listen(w *wired, p portlayer.Port, at netip.AddrPort) (*publication, error) {
	family := "4"
	if at.Addr().Is6() {
		family = "6"
	}
	ctx, cancel := context.WithCancel(context.Background())
	o := &publication{Published: portlayer.Published{Port: p.Port, Proto: p.Proto, HostIP: at.Addr()}, cancel: cancel, hide: func() {}}
	dial := func(ctx context.Context) (net.Conn, error) { return s.dialIn(ctx, w, p) }
	if p.Proto == portlayer.UDP {
		conn, err := net.ListenUDP("udp"+family, net.UDPAddrFromAddrPort(at))
		if err != nil {
			cancel()
			return nil, err
		}
		o.HostPort, o.ends = conn.LocalAddr().(*net.UDPAddr).AddrPort().Port(), conn.Close
		o.work.Go(func() { forwardPackets(ctx, conn, dial) })
		return o, nil
	}
	l, err := net.Listen("tcp"+family, at.String())
	if err != nil {
		cancel()
		return nil, err
	}
	o.HostPort, o.ends = l.Addr().(*net.TCPAddr).AddrPort().Port(), l.Close
	o.work.Go(func() { forwardStreams(ctx, &o.work, l, dial) })
	return o, nil
}

// dialIn connects to a port of a container.
func (s *Service) dialIn(ctx context.Context, w *wired, p portlayer.Port) (net.Conn, error) {
	s.mu.Lock()
	l := s.way(w)
	var segment portlayer.Segment
	if n := s.networks[l.Network]; n != nil {
		segment = n.open
	}
	s.mu.Unlock()
	if segment == nil {
		return nil, fault.New(fault.Unavailable, "container %s is on no network with a way in", w.Name)
	}
	return segment.Dial(ctx, string(p.Proto), netip.AddrPortFrom(l.Address, p.Port))
}

// dialWait bounds a connection to a container: one whose guest is busy answers late, and one that is not there, never.
const dialWait = 30 * time.Second

// forwardStreams connects what comes to l with what dial gives, until ctx ends.
func forwardStreams(ctx context.Context, work *sync.WaitGroup, l net.Listener, dial func(context.Context) (net.Conn, error)) {
	for {
		conn, err := l.Accept()
		if ctx.Err() != nil {
			if err == nil {
				conn.Close()
			}
			return
		}
		if err != nil { // no more descriptors
			time.Sleep(100 * time.Millisecond)
			continue
		}
		work.Go(func() {
			defer conn.Close()
			dctx, cancel := context.WithTimeout(ctx, dialWait)
			defer cancel()
			inside, err := dial(dctx)
			if err != nil {
				if tcp, ok := conn.(*net.TCPConn); ok {
					_ = tcp.SetLinger(0) // refused, as there
				}
				return
			}
			splice.Streams(ctx, conn, inside)
		})
	}
}

// mostSenders bounds how many senders have a way in at once.
const mostSenders = 4096

// forwardPackets has each sender's datagrams go by a connection of its own, until conn is closed.
func forwardPackets(ctx context.Context, conn *net.UDPConn, dial func(context.Context) (net.Conn, error)) {
	var mu sync.Mutex
	ways := map[netip.AddrPort]net.Conn{}
	var work sync.WaitGroup
	defer work.Wait()
	defer func() {
		mu.Lock()
		defer mu.Unlock()
		for _, way := range ways {
			way.Close()
		}
	}()
	buf := make([]byte, splice.MaxPacket)
	for {
		n, from, err := conn.ReadFromUDPAddrPort(buf)
		if ctx.Err() != nil {
			return
		}
		if err != nil {
			continue
		}
		mu.Lock()
		way, full := ways[from], len(ways) >= mostSenders
		mu.Unlock()
		if way == nil {
			if full {
				continue
			}
			if way, err = dial(ctx); err != nil {
				continue
			}
			mu.Lock()
			ways[from] = way
			mu.Unlock()
			work.Go(func() {
				defer way.Close()
				reply := make([]byte, splice.MaxPacket)
				for {
					_ = way.SetReadDeadline(time.Now().Add(splice.PacketIdle))
					n, err := way.Read(reply)
					if err != nil {
						break
					}
					_, _ = conn.WriteToUDPAddrPort(reply[:n], from)
				}
				mu.Lock()
				delete(ways, from)
				mu.Unlock()
			})
		}
		_ = way.SetReadDeadline(time.Now().Add(splice.PacketIdle))
		_, _ = way.Write(buf[:n])
	}
}
