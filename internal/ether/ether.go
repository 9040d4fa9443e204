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

// Where ARP has what in a frame (RFC 826).
const (
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

// Honest says whether a card with the address mac may send a frame: it has that source, and does not claim to be the gateway. Nothing shorter than a head is one.
func Honest(frame []byte, mac net.HardwareAddr, gateway netip.Addr) bool {
	if len(frame) < Head || !bytes.Equal(frame[6:12], mac) {
		return false
	}
	if Type(frame) != ARP {
		return true
	}
	a := gateway.As4()
	return len(frame) >= arpLong && !bytes.Equal(frame[arpSender:arpSender+4], a[:])
}

// AsksFor says whether a frame asks who has an address.
func AsksFor(frame []byte, address netip.Addr) bool {
	a := address.As4()
	return Type(frame) == ARP && len(frame) >= arpLong && binary.BigEndian.Uint16(frame[arpOperation:]) == arpRequest && bytes.Equal(frame[arpTarget:arpTarget+4], a[:])
}
