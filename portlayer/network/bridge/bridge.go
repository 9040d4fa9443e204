// Package bridge makes networks of this host's kernel: a bridge for each, with the gateway's address, a TAP for each card, and rules of nftables that are the walls between them and
// around the host. It needs root, and changes the host for as long as it is open: what a process that was killed has left, the next one takes away.
//
// What a container sends to the outside the kernel routes, from the host's own address. What it may not reach is what package user says.
package bridge

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"sync"

	"github.com/vishvananda/netlink"

	"vch/internal/ether"
	"vch/internal/fault"
	"vch/portlayer"
)

// Options is what a Backend is opened with.
type Options struct {
	Log *slog.Logger
	VCH string // whose networks they are: its interfaces and rules are told from others' by it
}

// Backend implements portlayer.NetworkBackend.
type Backend struct {
	o     Options
	rules *rules
	work  sync.WaitGroup // what cards have running
}

// aliasPrefix begins the alias of every interface that is ours.
func (b *Backend) alias() string { return "vch " + b.o.VCH }

// New takes away what an earlier process of the VCH left, and sets the rules up. Denied without the right to.
func New(o Options) (*Backend, error) {
	if o.VCH == "" {
		return nil, fault.New(fault.Internal, "a bridge backend without a VCH")
	}
	b := &Backend{o: o}
	var err error
	if b.rules, err = newRules("vch_" + strings.ReplaceAll(o.VCH, "-", "")[:8]); err != nil {
		return nil, err
	}
	if err := b.sweep(); err != nil {
		return nil, errors.Join(denied("clear what an earlier process left", err), b.rules.close())
	}
	if err := forwarding(); err != nil {
		return nil, errors.Join(err, b.rules.close())
	}
	return b, nil
}

// forwarding has the kernel route, which it does between networks only where it is told so.
func forwarding() error {
	const path = "/proc/sys/net/ipv4/ip_forward"
	if now, err := os.ReadFile(path); err == nil && strings.TrimSpace(string(now)) == "1" {
		return nil
	}
	if err := os.WriteFile(path, []byte("1"), 0); err != nil {
		return denied("have the kernel route", err)
	}
	return nil
}

// denied says what root is needed for.
func denied(what string, err error) error {
	if errors.Is(err, os.ErrPermission) {
		return fault.New(fault.Denied, "cannot %s: %w; the network backend bridge needs root: run vch as root, or use --network-backend user", what, err)
	}
	return fault.New(fault.Internal, "cannot %s: %w", what, err)
}

// sweep removes this VCH's interfaces.
func (b *Backend) sweep() error {
	links, err := netlink.LinkList()
	if err != nil {
		return err
	}
	var errs []error
	for _, l := range links {
		if l.Attrs().Alias == b.alias() {
			errs = append(errs, netlink.LinkDel(l))
		}
	}
	return errors.Join(errs...)
}

// Name is portlayer.NetworkBackend.Name.
func (b *Backend) Name() string { return "bridge" }

// Publish is portlayer.NetworkBackend.Publish.
func (b *Backend) Publish(p portlayer.Published, open bool) error { return b.rules.publish(p, open) }

// Close is portlayer.NetworkBackend.Close.
func (b *Backend) Close() error {
	b.work.Wait()
	return b.rules.close()
}

// segment implements portlayer.Segment.
type segment struct {
	backend *Backend
	net     portlayer.Network
	bridge  netlink.Link

	mu        sync.Mutex // guards below
	cards     map[[6]byte]*card
	addresses map[netip.Addr]*card
	next      int // of the next TAP's number
}

// card implements portlayer.Card.
type card struct {
	segment *segment
	mac     net.HardwareAddr
	address netip.Addr
	toHost  bool
	tap     *os.File
	once    sync.Once
}

const (
	defaultMTU = 1500
	// idDigits is how much of a network's id its interfaces' names have; a name has 15 characters.
	idDigits = 10
)

// Open is portlayer.NetworkBackend.Open.
func (b *Backend) Open(_ context.Context, n portlayer.Network) (_ portlayer.Segment, err error) {
	a := n.Gateway.As4()
	attrs := netlink.NewLinkAttrs()
	attrs.Name, attrs.MTU = "vb-"+digits(n.ID), mtuOf(n)
	attrs.HardwareAddr = net.HardwareAddr{0x02, 0x42, a[0], a[1], a[2], a[3]}
	s := &segment{backend: b, net: n, bridge: &netlink.Bridge{LinkAttrs: attrs}, cards: map[[6]byte]*card{}, addresses: map[netip.Addr]*card{}}
	if err := netlink.LinkAdd(s.bridge); err != nil {
		return nil, denied("make a bridge for network "+string(n.Name), err)
	}
	defer func() {
		if err != nil {
			err = errors.Join(denied("set up network "+string(n.Name), err), netlink.LinkDel(s.bridge))
		}
	}()
	if err := netlink.LinkSetAlias(s.bridge, b.alias()); err != nil {
		return nil, err
	}
	for file, value := range map[string]string{
		"ipv6/conf/" + attrs.Name + "/disable_ipv6":   "1",
		"ipv4/conf/" + attrs.Name + "/route_localnet": "1", // for those that may reach the host's loopback; the rules keep others off
		"ipv4/conf/" + attrs.Name + "/rp_filter":      "1", // nobody has another network's address
	} {
		if err := os.WriteFile(filepath.Join("/proc/sys/net", file), []byte(value), 0); err != nil && !errors.Is(err, os.ErrNotExist) { // a kernel without IPv6
			return nil, err
		}
	}
	gateway := &net.IPNet{IP: a[:], Mask: net.CIDRMask(n.Subnet.Bits(), 32)}
	if err := netlink.AddrAdd(s.bridge, &netlink.Addr{IPNet: gateway}); err != nil {
		return nil, err
	}
	if err := b.rules.open(attrs.Name, n); err != nil { // before anybody can come
		return nil, err
	}
	if err := netlink.LinkSetUp(s.bridge); err != nil {
		return nil, errors.Join(err, b.rules.shut(attrs.Name, n))
	}
	return s, nil
}

func digits(id portlayer.NetworkID) string { return string(id[:min(idDigits, len(id))]) }

func mtuOf(n portlayer.Network) int {
	if n.MTU == 0 {
		return defaultMTU
	}
	return n.MTU
}

// Close is portlayer.Segment.Close.
func (s *segment) Close() error {
	return errors.Join(netlink.LinkDel(s.bridge), s.backend.rules.shut(s.bridge.Attrs().Name, s.net))
}

// Attach is portlayer.Segment.Attach.
func (s *segment) Attach(mac net.HardwareAddr, address netip.Addr, toHost bool, deliver func([]byte)) (portlayer.Card, error) {
	c := &card{segment: s, mac: bytes.Clone(mac), address: address, toHost: toHost}
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.cards[[6]byte(mac)] != nil || bytes.Equal(mac, s.bridge.Attrs().HardwareAddr) {
		return nil, fault.New(fault.Conflict, "hardware address %s is in use on network %s", mac, s.net.Name)
	}
	if s.addresses[address] != nil {
		return nil, fault.New(fault.Conflict, "address %s is in use on network %s", address, s.net.Name)
	}
	if err := s.plug(c); err != nil {
		return nil, denied("plug into network "+string(s.net.Name), err)
	}
	if toHost {
		if err := s.backend.rules.toHost(address, s.net.Gateway, true); err != nil {
			return nil, errors.Join(err, c.tap.Close())
		}
	}
	s.cards[[6]byte(mac)], s.addresses[address] = c, c
	s.backend.work.Go(func() { c.receive(deliver, mtuOf(s.net)) })
	return c, nil
}

// plug makes the TAP of a card, which is there for as long as its file is open. s.mu is held.
func (s *segment) plug(c *card) error {
	attrs := netlink.NewLinkAttrs()
	s.next++
	attrs.Name = fmt.Sprintf("vt%s%x", digits(s.net.ID)[:min(6, len(digits(s.net.ID)))], s.next)
	tap := &netlink.Tuntap{LinkAttrs: attrs, Mode: netlink.TUNTAP_MODE_TAP, Flags: netlink.TUNTAP_NO_PI, Queues: 1, NonPersist: true}
	if err := netlink.LinkAdd(tap); err != nil {
		return err
	}
	c.tap = tap.Fds[0]
	err := netlink.LinkSetAlias(tap, s.backend.alias())
	if err == nil {
		err = os.WriteFile("/proc/sys/net/ipv6/conf/"+attrs.Name+"/disable_ipv6", []byte("1"), 0)
		if errors.Is(err, os.ErrNotExist) {
			err = nil
		}
	}
	if err == nil {
		err = netlink.LinkSetMTU(tap, mtuOf(s.net))
	}
	if err == nil {
		err = netlink.LinkSetMaster(tap, s.bridge)
	}
	if err == nil {
		err = netlink.LinkSetUp(tap)
	}
	if err != nil {
		return errors.Join(err, c.tap.Close())
	}
	return nil
}

// receive delivers what the bridge has for a card, until that is closed.
func (c *card) receive(deliver func([]byte), mtu int) {
	frame := make([]byte, mtu+ether.Head)
	for {
		n, err := c.tap.Read(frame)
		if err != nil {
			return
		}
		deliver(frame[:n])
	}
}

// of is the card with an address; nil if there is none.
func (s *segment) of(address netip.Addr) *card {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.addresses[address]
}

// others says whether an address is not c's, but the gateway's or another card's.
func (c *card) others(address netip.Addr) bool {
	owner := c.segment.of(address)
	return owner != nil && owner != c || address == c.segment.net.Gateway
}

// Send is portlayer.Card.Send.
func (c *card) Send(frame []byte) {
	if ether.Honest(frame, c.mac, c.others) {
		_, _ = c.tap.Write(frame) // what the bridge does not take is lost, as on a wire
	}
}

// Close is portlayer.Card.Close.
func (c *card) Close() {
	c.once.Do(func() {
		s := c.segment
		s.mu.Lock()
		if s.cards[[6]byte(c.mac)] == c {
			delete(s.cards, [6]byte(c.mac))
			delete(s.addresses, c.address)
		}
		s.mu.Unlock()
		err := c.tap.Close()
		if c.toHost {
			err = errors.Join(err, s.backend.rules.toHost(c.address, s.net.Gateway, false))
		}
		if err != nil {
			s.backend.o.Log.Warn("a container's card could not be taken off whole", "network", string(s.net.Name), "err", err)
		}
	})
}

// Dial is portlayer.Segment.Dial.
func (s *segment) Dial(ctx context.Context, network string, to netip.AddrPort) (net.Conn, error) {
	if s.of(to.Addr()) == nil {
		return nil, fault.New(fault.Unavailable, "%s is not on network %s", to.Addr(), s.net.Name)
	}
	var from net.Addr = net.TCPAddrFromAddrPort(netip.AddrPortFrom(s.net.Gateway, 0))
	if network == "udp" {
		from = net.UDPAddrFromAddrPort(netip.AddrPortFrom(s.net.Gateway, 0))
	}
	d := net.Dialer{LocalAddr: from}
	return d.DialContext(ctx, network+"4", to.String())
}
