package hypertest

import (
	"bytes"
	"encoding/binary"
	"io"
	"net"
	"testing"
	"time"

	"vch/guest"
	"vch/internal/fault"
)

// arp asks who has an address, in the frames of a tag, as the card's stream has it (RFC 826, IEEE 802.1Q).
func arp(tag uint16, address [4]byte) []byte {
	f := append(bytes.Repeat([]byte{0xff}, 6), 2, 0, 0, 0, 0, 1, 0x81, 0)
	f = binary.BigEndian.AppendUint16(f, tag)
	f = append(f, 8, 6, 0, 1, 8, 0, 6, 4, 0, 1, 2, 0, 0, 0, 0, 1, 192, 0, 2, 1, 0, 0, 0, 0, 0, 0)
	f = append(f, address[:]...)
	return append(binary.BigEndian.AppendUint32(nil, uint32(len(f))), f...)
}

// answered reads frames until one with the tag answers arp, for a while, and gives whose it is.
func answered(conn net.Conn, tag uint16, address [4]byte, wait time.Duration) net.HardwareAddr {
	_ = conn.SetReadDeadline(time.Now().Add(wait))
	for {
		var size [4]byte
		if _, err := io.ReadFull(conn, size[:]); err != nil {
			return nil
		}
		f := make([]byte, binary.BigEndian.Uint32(size[:]))
		if _, err := io.ReadFull(conn, f); err != nil {
			return nil
		}
		if len(f) >= 46 && binary.BigEndian.Uint16(f[14:])&0xfff == tag && bytes.Equal(f[16:18], []byte{8, 6}) && f[25] == 2 && bytes.Equal(f[32:36], address[:]) {
			return net.HardwareAddr(f[26:32])
		}
	}
}

// network has a guest come to networks and leave them while it runs. It answers on the tags that it has, by the addresses that it got there, and on no other.
func (s *suite) network(t *testing.T) {
	m := s.define(t, s.spec("networked"))
	_, err := m.Frames(t.Context())
	want(t, "frames of a machine that is off", err, fault.Unavailable)
	s.powerOn(t, m)
	c := s.connect(t, m)
	want(t, "a network before the start", c.SetNetwork(s.limit(t), guest.Network{}), fault.Conflict)
	cfg := config("networked", []string{"cat"})
	seven := guest.Interface{Name: "eth0", Tag: 7, MAC: "02:00:00:00:00:07", Address: "192.0.2.7/24", Gateway: "192.0.2.1", MTU: 1500}
	eight := guest.Interface{Name: "eth1", Tag: 8, MAC: "02:00:00:00:00:08", Address: "198.51.100.8/24", MTU: 1400}
	cfg.Network = guest.Network{Interfaces: []guest.Interface{seven}}
	s.configure(t, c, cfg)
	conn, err := m.Frames(s.limit(t))
	if err != nil {
		t.Fatal(err)
	}
	has := func(i guest.Interface, address [4]byte, has bool) {
		t.Helper()
		for end := time.Now().Add(s.Limit); ; { // a frame may be lost while nobody listened
			if _, err := conn.Write(arp(i.Tag, address)); err != nil {
				t.Fatal(err)
			}
			wait := time.Second
			if !has {
				wait = 300 * time.Millisecond
			}
			got := answered(conn, i.Tag, address, wait)
			if has && got.String() == i.MAC || !has && got == nil {
				return
			}
			if !has || time.Now().After(end) {
				t.Fatalf("asked for %v with tag %d: %s answers", address, i.Tag, got)
			}
		}
	}
	has(seven, [4]byte{192, 0, 2, 7}, true)
	has(eight, [4]byte{198, 51, 100, 8}, false)
	set := func(all ...guest.Interface) {
		t.Helper()
		if err := c.SetNetwork(s.limit(t), guest.Network{Interfaces: all}); err != nil {
			t.Fatal(err)
		}
	}
	set(seven, eight)
	set(seven, eight)
	has(eight, [4]byte{198, 51, 100, 8}, true)
	has(seven, [4]byte{192, 0, 2, 7}, true)
	// Another connection takes the place of the first, as does the next daemon's.
	if conn, err = m.Frames(s.limit(t)); err != nil {
		t.Fatal(err)
	}
	has(seven, [4]byte{192, 0, 2, 7}, true)
	conn.Close()
	c.Close()
	s.restart(t)
	if m, err = s.h.Machine(t.Context(), m.ID()); err != nil {
		t.Fatal(err)
	}
	c = s.connect(t, m)
	if conn, err = m.Frames(s.limit(t)); err != nil {
		t.Fatal(err)
	}
	has(eight, [4]byte{198, 51, 100, 8}, true)
	set(eight)
	has(seven, [4]byte{192, 0, 2, 7}, false)
	has(eight, [4]byte{198, 51, 100, 8}, true)
	set()
	has(eight, [4]byte{198, 51, 100, 8}, false)
	conn.Close()
	if err := m.PowerOff(s.limit(t)); err != nil {
		t.Fatal(err)
	}
	s.undefine(t, m)
}
