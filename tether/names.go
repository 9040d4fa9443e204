package tether

import "encoding/binary"

// The header of a DNS message (RFC 1035 section 4.1.1) and what an answer by datagram may have.
const (
	dnsHead      = 12
	dnsShort     = 512  // bytes; RFC 1035 section 4.2.1
	dnsLong      = 1232 // for those who say that they take more (RFC 6891): what no network cuts up
	dnsTruncated = 0x0200
)

// shortened is a reply as it goes into a datagram: one that is too long has its head and its question only, and says so, so that the question is asked again by stream.
func shortened(query, reply []byte) []byte {
	most := dnsShort
	if len(query) >= dnsHead && binary.BigEndian.Uint16(query[10:]) > 0 { // additional records: EDNS
		most = dnsLong
	}
	if len(reply) <= most || len(reply) < dnsHead || len(query) < dnsHead {
		return reply
	}
	end := endOfQuestion(query)
	if end == 0 {
		return reply[:dnsHead]
	}
	short := append(append([]byte(nil), reply[:dnsHead]...), query[dnsHead:end]...)
	binary.BigEndian.PutUint16(short[2:], binary.BigEndian.Uint16(short[2:])|dnsTruncated)
	binary.BigEndian.PutUint16(short[4:], 1)
	for _, count := range []int{6, 8, 10} {
		binary.BigEndian.PutUint16(short[count:], 0)
	}
	return short
}

// endOfQuestion is where the one question of a query ends; 0 if it is none.
func endOfQuestion(query []byte) int {
	if len(query) < dnsHead || binary.BigEndian.Uint16(query[4:]) != 1 {
		return 0
	}
	for at := dnsHead; at < len(query); {
		n := int(query[at])
		switch {
		case n == 0 && at+5 <= len(query):
			return at + 5 // type and class
		case n == 0 || n > 63:
			return 0
		}
		at += 1 + n
	}
	return 0
}
