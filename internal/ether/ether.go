// Package ether knows the heads of Ethernet frames: as much of them as a switch has to look at, and no more.
//
// What it says of a frame holds whatever else is in that: it reads nothing behind what it names.
package ether

import (
	"bytes"
	"encoding/binary"
	"net"
	"net/netip"
)

// Sizes, in bytes, and types of frames (IEEE 802.3, RFC 894, RFC 826).
const (
	Head = 14 // two addresses and a type

	IPv4 = 0x0800
	ARP  = 0x0806
)

// Where IPv4 and ARP have what in a frame (RFC 791, RFC 826).
const (
	ipv4Source = Head + 12

	arpLong      = Head + 28
	arpOperation = Head + 6
	arpSender    = Head + 14
	arpTarget    = Head + 24
	arpRequest   = 1
)

// Type is a frame's type; 0 for what is too short for one.
func Type(frame []byte) uint16 {
	if len(frame) < Head {
		return 0
	}
	return binary.BigEndian.Uint16(frame[12:])
}

// Honest says whether a card with the address mac may send a frame: it has that source, and the Internet address that it comes from, by IPv4 or ARP, is not an other's. Nothing
// that is too short to say is honest.
func Honest(frame []byte, mac net.HardwareAddr, others func(netip.Addr) bool) bool {
	if len(frame) < Head || !bytes.Equal(frame[6:12], mac) {
		return false
	}
	var from int
	switch Type(frame) {
	case IPv4:
		from = ipv4Source
	case ARP:
		from = arpSender
	default:
		return true
	}
	return len(frame) >= from+4 && !others(netip.AddrFrom4([4]byte(frame[from:])))
}

// AsksFor says whether a frame asks who has an address.
func AsksFor(frame []byte, address netip.Addr) bool {
	a := address.As4()
	return Type(frame) == ARP && len(frame) >= arpLong && binary.BigEndian.Uint16(frame[arpOperation:]) == arpRequest && bytes.Equal(frame[arpTarget:arpTarget+4], a[:])
}
