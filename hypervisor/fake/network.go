package fake

import (
	"bytes"
	"context"
	"encoding/binary"
	"io"
	"net"
	"net/netip"
	"slices"

	"vch/guest"
	"vch/internal/fault"
)

// Frames is portlayer.Machine.Frames.
func (m *Machine) Frames(context.Context) (net.Conn, error) {
	r := m.slot.running()
	if r == nil {
		return nil, fault.New(fault.Unavailable, "machine %s is off", m.id)
	}
	return r.connectCard(m.h.ctx)
}

// connectCard is connect for the network card.
func (r *running) connectCard(host context.Context) (net.Conn, error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.why != "" {
		return nil, fault.New(fault.Unavailable, "machine %s is off", r.id)
	}
	if r.card != nil {
		r.card.Close()
	}
	ours, theirs := net.Pipe()
	r.card = theirs
	gone := context.AfterFunc(host, func() { theirs.Close() })
	ended := context.AfterFunc(r.ctx, func() { theirs.Close() })
	r.conns.Go(func() {
		defer theirs.Close()
		defer gone()
		defer ended()
		r.sys.network(theirs)
	})
	return ours, nil
}

// Network is tether.System.Network.
func (s *system) Network(n guest.Network, ask func(ctx context.Context, query []byte) ([]byte, error)) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.interfaces, s.ask, s.storage = slices.Clone(n.Interfaces), nil, s.storage || n.Storage != nil
	if n.Resolver {
		s.ask = ask
	}
	return nil
}

// A frame that asks who has an address (RFC 826, with the tag of IEEE 802.1Q), and where in it things are.
const (
	arpSize   = 18 + 28
	tagAt     = 14
	opAt      = 18 + 7
	senderAt  = 18 + 8
	targetAt  = 18 + 18
	addressAt = 18 + 24
)

// network answers those who ask for the addresses of the machine's interfaces. That is all the network that a simulated machine has.
func (s *system) network(conn io.ReadWriter) {
	for {
		var size [4]byte
		if _, err := io.ReadFull(conn, size[:]); err != nil {
			return
		}
		frame := make([]byte, binary.BigEndian.Uint32(size[:]))
		if _, err := io.ReadFull(conn, frame); err != nil {
			return
		}
		if len(frame) < arpSize || !bytes.Equal(frame[12:14], []byte{0x81, 0}) || !bytes.Equal(frame[16:18], []byte{8, 6}) || frame[opAt] != 1 {
			continue
		}
		address, _ := netip.AddrFromSlice(frame[addressAt : addressAt+4])
		mac := s.interfaceOf(binary.BigEndian.Uint16(frame[tagAt:])&0xfff, address)
		if mac == nil {
			continue
		}
		reply := bytes.Clone(frame[:arpSize])
		copy(reply, frame[6:12])
		copy(reply[6:], mac)
		reply[opAt] = 2
		copy(reply[senderAt:], mac)
		copy(reply[senderAt+6:], frame[addressAt:addressAt+4])
		copy(reply[targetAt:], frame[senderAt:senderAt+10])
		if _, err := conn.Write(append(binary.BigEndian.AppendUint32(nil, arpSize), reply...)); err != nil {
			return
		}
	}
}

// interfaceOf is the hardware address of the interface with a tag and an address; nil if there is none.
func (s *system) interfaceOf(tag uint16, address netip.Addr) net.HardwareAddr {
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, i := range s.interfaces {
		if p, err := netip.ParsePrefix(i.Address); err == nil && i.Tag == tag && p.Addr() == address {
			mac, _ := net.ParseMAC(i.MAC)
			return mac
		}
	}
	return nil
}
