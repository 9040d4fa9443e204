package tether

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"runtime"
	"strconv"
	"sync"
	"time"

	"github.com/vishvananda/netlink"
	"github.com/vishvananda/netns"
	"golang.org/x/sys/unix"

	"vch/guest"
	"vch/internal/fault"
)

// card is the machine's one network card. It lives in a network namespace of its own, where the container does not see it: there are interfaces in the container's that are tags of
// it, as a container of Docker's engine has ends of pairs whose other ends are elsewhere.
type card struct {
	ns       netns.NsHandle  // the card's namespace
	mu       sync.Mutex      // guards below; held while interfaces change
	there    *netlink.Handle // in the card's namespace; nil: the machine has no card
	index    int             // of the card there
	here     *netlink.Handle // in the container's
	self     netns.NsHandle  // the container's
	has      map[uint16]guest.Interface
	storage  netns.NsHandle // where the storage link is, with NFS's mounts; -1 (netns.None): there is none
	resolver io.Closer      // nil: nobody answers
}

// findCard takes the machine's card, if it has one, into its namespace.
func findCard() (*card, error) {
	all, _ := filepath.Glob("/sys/class/net/*/device")
	if len(all) == 0 {
		return &card{ns: netns.None(), has: map[uint16]guest.Interface{}, storage: netns.None()}, nil
	}
	name := filepath.Base(filepath.Dir(all[0]))
	return newCard(func(c *card) (netlink.Link, error) {
		link, err := c.here.LinkByName(name)
		if err != nil {
			return nil, err
		}
		if err := c.here.LinkSetNsFd(link, int(c.ns)); err != nil {
			return nil, err
		}
		return c.there.LinkByName(name)
	})
}

// newCard makes the card of a link that put puts into its namespace.
func newCard(put func(c *card) (netlink.Link, error)) (*card, error) {
	c := &card{ns: netns.None(), has: map[uint16]guest.Interface{}, storage: netns.None()}
	var err error
	if c.self, err = netns.Get(); err != nil {
		return nil, err
	}
	if c.ns, err = newNamespace(c.self); err != nil {
		return nil, err
	}
	if c.here, err = netlink.NewHandleAt(c.self, unix.NETLINK_ROUTE); err != nil {
		return nil, err
	}
	if c.there, err = netlink.NewHandleAt(c.ns, unix.NETLINK_ROUTE); err != nil {
		return nil, err
	}
	link, err := put(c)
	if err != nil {
		return nil, err
	}
	c.index = link.Attrs().Index
	if err := c.there.LinkSetName(link, "card"); err != nil { // an interface cannot be made there with a name that is taken there, wherever it goes
		return nil, err
	}
	return c, c.there.LinkSetUp(link)
}

// newNamespace makes a network namespace, where a card itself says nothing: it has no IPv6. The thread is in home again when it returns.
func newNamespace(home netns.NsHandle) (netns.NsHandle, error) {
	runtime.LockOSThread() // and, where something fails, for good: such a thread is nobody else's, it ends with its goroutine
	ns, err := netns.New() // and this thread is in it
	if err != nil {
		return netns.None(), err
	}
	_ = os.WriteFile("/proc/sys/net/ipv6/conf/default/disable_ipv6", []byte("1"), 0)
	if err := netns.Set(home); err != nil {
		return netns.None(), errors.Join(err, ns.Close())
	}
	runtime.UnlockOSThread()
	return ns, nil
}

// Network is System.Network.
func (l *Linux) Network(n guest.Network, ask func(ctx context.Context, query []byte) ([]byte, error)) error {
	return l.card.set(n, ask)
}

// set gives the container the interfaces of n and no others.
func (c *card) set(n guest.Network, ask func(ctx context.Context, query []byte) ([]byte, error)) error {
	c.mu.Lock()
	defer c.mu.Unlock()
	if (len(n.Interfaces) > 0 || n.Storage != nil) && c.there == nil {
		return fault.New(fault.Unsupported, "the machine has no network card")
	}
	if n.Storage != nil {
		if err := c.makeStorage(*n.Storage); err != nil {
			return fmt.Errorf("cannot set up the storage link: %w", err)
		}
	}
	wanted := map[uint16]guest.Interface{}
	for _, i := range n.Interfaces {
		wanted[i.Tag] = i
	}
	for tag, has := range c.has {
		if wanted[tag] != has {
			if err := c.drop(has); err != nil {
				return err
			}
			delete(c.has, tag)
		}
	}
	for _, i := range n.Interfaces {
		if c.has[i.Tag] == i {
			continue
		}
		if err := c.add(i); err != nil {
			return errors.Join(fmt.Errorf("cannot set up network interface %s: %w", i.Name, err), c.drop(i))
		}
		c.has[i.Tag] = i
	}
	if n.Resolver && c.resolver == nil {
		r, err := listenForNames(ask)
		if err != nil {
			return fmt.Errorf("cannot answer questions for names: %w", err)
		}
		c.resolver = r
	} else if !n.Resolver && c.resolver != nil {
		_ = c.resolver.Close()
		c.resolver = nil
	}
	return nil
}

// drop takes an interface away. One that the container has taken away itself is gone.
func (c *card) drop(i guest.Interface) error {
	link, err := c.here.LinkByName(i.Name)
	if errors.As(err, new(netlink.LinkNotFoundError)) {
		return nil
	}
	if err == nil {
		err = c.here.LinkDel(link)
	}
	if errors.Is(err, unix.ENODEV) {
		return nil
	}
	return err
}

func (c *card) add(i guest.Interface) error {
	made, err := c.tag(i, c.self, c.here)
	if err != nil {
		return err
	}
	// As Docker has it where a network has no IPv6 addresses. A kernel without IPv6 has nothing to turn off.
	_ = os.WriteFile(filepath.Join("/proc/sys/net/ipv6/conf", i.Name, "disable_ipv6"), []byte("1"), 0)
	return bringUp(made, i, c.here)
}

// tag makes an interface of a tag of the card, in a namespace of which in is the handle.
func (c *card) tag(i guest.Interface, ns netns.NsHandle, in *netlink.Handle) (netlink.Link, error) {
	mac, err := net.ParseMAC(i.MAC)
	if err != nil {
		return nil, err
	}
	link := &netlink.Vlan{LinkAttrs: netlink.NewLinkAttrs(), VlanId: int(i.Tag), VlanProtocol: netlink.VLAN_PROTOCOL_8021Q}
	link.Name, link.ParentIndex, link.MTU, link.HardwareAddr, link.Namespace = i.Name, c.index, i.MTU, mac, netlink.NsFd(ns)
	if err := c.there.LinkAdd(link); err != nil {
		return nil, err
	}
	return in.LinkByName(i.Name)
}

// bringUp gives an interface its address and its way out.
func bringUp(made netlink.Link, i guest.Interface, in *netlink.Handle) error {
	address, err := netip.ParsePrefix(i.Address)
	if err != nil {
		return err
	}
	broadcast := binary.BigEndian.Uint32(address.Addr().AsSlice()) | (1<<(32-address.Bits()) - 1)
	ip := &net.IPNet{IP: address.Addr().AsSlice(), Mask: net.CIDRMask(address.Bits(), 32)}
	if err := in.AddrAdd(made, &netlink.Addr{IPNet: ip, Broadcast: binary.BigEndian.AppendUint32(nil, broadcast)}); err != nil {
		return err
	}
	if err := in.LinkSetUp(made); err != nil {
		return err
	}
	if i.Gateway == "" {
		return nil
	}
	gateway, err := netip.ParseAddr(i.Gateway)
	if err != nil {
		return err
	}
	return in.RouteReplace(&netlink.Route{LinkIndex: made.Attrs().Index, Dst: &net.IPNet{IP: net.IPv4zero.To4(), Mask: net.CIDRMask(0, 32)}, Gw: gateway.AsSlice()})
}

// makeStorage makes the storage link, in a namespace of its own, unless it is there.
func (c *card) makeStorage(i guest.Interface) (err error) {
	if c.storage.IsOpen() {
		return nil
	}
	ns, err := newNamespace(c.self)
	if err != nil {
		return err
	}
	defer func() {
		if err != nil {
			err = errors.Join(err, ns.Close())
		}
	}()
	in, err := netlink.NewHandleAt(ns, unix.NETLINK_ROUTE)
	if err != nil {
		return err
	}
	defer in.Close()
	card, err := c.there.LinkByIndex(c.index)
	if err != nil {
		return err
	}
	if card.Attrs().MTU < i.MTU {
		if err := c.there.LinkSetMTU(card, i.MTU); err != nil {
			return err
		}
	}
	made, err := c.tag(i, ns, in)
	if err != nil {
		return err
	}
	if err := bringUp(made, i, in); err != nil {
		return err
	}
	c.storage = ns
	return nil
}

// nameWait bounds how long a question is asked: a process asks again, and after a while gives up (resolv.conf(5)).
const nameWait = 20 * time.Second

// names answers questions for names, by datagram and by stream (RFC 1035 section 4.2).
type names struct {
	packets net.PacketConn
	streams net.Listener
	ask     func(ctx context.Context, query []byte) ([]byte, error)
	busy    chan struct{}
}

// mostNames is how many questions are asked at once.
const mostNames = 64

func listenForNames(ask func(ctx context.Context, query []byte) ([]byte, error)) (*names, error) {
	n := &names{ask: ask, busy: make(chan struct{}, mostNames)}
	at := net.JoinHostPort(guest.ResolverAddress, strconv.Itoa(53))
	var err error
	if n.packets, err = net.ListenPacket("udp4", at); err != nil {
		return nil, err
	}
	if n.streams, err = net.Listen("tcp4", at); err != nil {
		return nil, errors.Join(err, n.packets.Close())
	}
	go n.servePackets()
	go n.serveStreams()
	return n, nil
}

// Close ends the answers.
func (n *names) Close() error { return errors.Join(n.packets.Close(), n.streams.Close()) }

func (n *names) answer(query []byte) ([]byte, error) {
	ctx, cancel := context.WithTimeout(context.Background(), nameWait)
	defer cancel()
	return n.ask(ctx, query)
}

func (n *names) servePackets() {
	buf := make([]byte, 4096) // questions are short
	for {
		size, from, err := n.packets.ReadFrom(buf)
		if errors.Is(err, net.ErrClosed) {
			return
		}
		if err != nil {
			continue
		}
		query := append([]byte(nil), buf[:size]...)
		n.busy <- struct{}{}
		go func() {
			defer func() { <-n.busy }()
			if reply, err := n.answer(query); err == nil {
				_, _ = n.packets.WriteTo(shortened(query, reply), from)
			}
		}()
	}
}

func (n *names) serveStreams() {
	for {
		conn, err := n.streams.Accept()
		if err != nil {
			return
		}
		n.busy <- struct{}{}
		go func() {
			defer func() { <-n.busy }()
			defer conn.Close()
			for {
				_ = conn.SetDeadline(time.Now().Add(nameWait))
				var size [2]byte
				if _, err := io.ReadFull(conn, size[:]); err != nil {
					return
				}
				query := make([]byte, binary.BigEndian.Uint16(size[:]))
				if _, err := io.ReadFull(conn, query); err != nil {
					return
				}
				reply, err := n.answer(query)
				if err != nil {
					return
				}
				if _, err := conn.Write(append(binary.BigEndian.AppendUint16(nil, uint16(len(reply))), reply...)); err != nil {
					return
				}
			}
		}()
	}
}
