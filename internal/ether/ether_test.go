package ether

import (
	"net"
	"net/netip"
	"testing"
)

func TestHonest(t *testing.T) {
	mac, gateway := net.HardwareAddr{2, 0, 0, 0, 0, 1}, netip.MustParseAddr("192.0.2.1")
	frame := func(src byte, kind uint16, rest ...byte) []byte {
		f := append(make([]byte, 6), 2, 0, 0, 0, 0, src, byte(kind>>8), byte(kind))
		return append(f, append(rest, make([]byte, 46-len(rest))...)...)
	}
	arp := func(op, last byte) []byte {
		return frame(1, ARP, 0, 1, 8, 0, 6, 4, 0, op, 2, 0, 0, 0, 0, 1, 192, 0, 2, last, 0, 0, 0, 0, 0, 0, 192, 0, 2, 1)
	}
	ip := func(last byte) []byte {
		return frame(1, IPv4, 0x45, 0, 0, 20, 0, 0, 0, 0, 64, 17, 0, 0, 192, 0, 2, last, 192, 0, 2, 9)
	}
	others := func(a netip.Addr) bool { return a == gateway || a == netip.MustParseAddr("192.0.2.7") }
	for what, tt := range map[string]struct {
		frame []byte
		want  bool
	}{
		"its own": {frame(1, IPv4), true}, "another's": {frame(2, IPv4), false}, "short": {frame(1, IPv4)[:13], false}, "its own address": {arp(1, 5), true},
		"the gateway's": {arp(2, 1), false}, "a short claim": {arp(2, 5)[:31], false}, "nothing": {nil, false}, "a neighbour's": {arp(1, 7), false},
		"a packet": {ip(5), true}, "a packet of a neighbour's": {ip(7), false}, "a packet of the gateway's": {ip(1), false}, "a short packet": {ip(5)[:29], false},
		"another protocol": {frame(1, 0x86dd), true},
	} {
		if got := Honest(tt.frame, mac, others); got != tt.want {
			t.Errorf("%s: %v", what, got)
		}
	}
	if !AsksFor(arp(1, 5), gateway) || AsksFor(arp(2, 5), gateway) || AsksFor(arp(1, 5), netip.MustParseAddr("192.0.2.2")) || AsksFor(frame(1, IPv4), gateway) {
		t.Error("who asks for what is mistaken")
	}
}
