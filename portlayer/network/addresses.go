package network

import (
	"encoding/binary"
	"net"
	"net/netip"
	"regexp"
	"slices"

	"vch/internal/fault"
	"vch/portlayer"
)

// pools are where subnets are taken from that nobody chose, in this order: Docker's (libnetwork/ipamutils), so that people find what they know.
var pools = func() (all []netip.Prefix) {
	for i := range 15 {
		all = append(all, netip.PrefixFrom(netip.AddrFrom4([4]byte{172, byte(17 + i), 0, 0}), 16))
	}
	for i := range 16 {
		all = append(all, netip.PrefixFrom(netip.AddrFrom4([4]byte{192, 168, byte(i * 16), 0}), 20))
	}
	return all
}()

// freeSubnet is the first of the pools that overlaps nothing that is taken.
func freeSubnet(taken []netip.Prefix) (netip.Prefix, error) {
	for _, p := range pools {
		if !slices.ContainsFunc(taken, p.Overlaps) {
			return p, nil
		}
	}
	return netip.Prefix{}, fault.New(fault.Conflict, "all predefined address pools have been fully subnetted: give a subnet of your own (--subnet)")
}

// The longest prefix of a subnet: two containers, the gateway, and the two addresses that are nobody's.
const longestPrefix = 29

// planned is the network that req asks for, among those whose subnets are taken; hosts are the subnets of this host's own addresses.
func planned(req portlayer.NetworkRequest, taken map[portlayer.NetworkName]netip.Prefix, hosts []netip.Prefix) (n portlayer.Network, err error) {
	n = portlayer.Network{Name: req.Name, Subnet: req.Subnet, Gateway: req.Gateway, Range: req.Range, Reserved: req.Reserved, Internal: req.Internal, MTU: req.MTU, Labels: req.Labels, Door: req.Door}
	switch {
	case !req.Subnet.IsValid():
		all := slices.Clone(hosts)
		for _, p := range taken {
			all = append(all, p)
		}
		if req.Gateway.IsValid() || req.Range.IsValid() || len(req.Reserved) > 0 {
			return n, fault.New(fault.Invalid, "a gateway, a range or an auxiliary address needs the subnet that it is in: give one (--subnet)")
		}
		if n.Subnet, err = freeSubnet(all); err != nil {
			return n, err
		}
	case !req.Subnet.Addr().Is4():
		return n, fault.New(fault.Unsupported, "subnet %s: networks have IPv4 addresses only", req.Subnet)
	case req.Subnet != req.Subnet.Masked():
		return n, fault.New(fault.Invalid, "invalid subnet %s: it should be %s", req.Subnet, req.Subnet.Masked())
	case req.Subnet.Bits() > longestPrefix || req.Subnet.Bits() < 8:
		return n, fault.New(fault.Invalid, "subnet %s: a network has a prefix of 8 to %d bits", req.Subnet, longestPrefix)
	case !usable(req.Subnet):
		return n, fault.New(fault.Invalid, "subnet %s: addresses there have a meaning of their own, and cannot be a container's", req.Subnet)
	}
	for name, p := range taken {
		if p.Overlaps(n.Subnet) {
			return n, fault.New(fault.Conflict, "invalid pool request: subnet %s overlaps that of network %s, %s", n.Subnet, name, p)
		}
	}
	for _, p := range hosts {
		if p.Overlaps(n.Subnet) {
			return n, fault.New(fault.Conflict, "subnet %s overlaps %s, which this host is in: choose another", n.Subnet, p)
		}
	}
	if n.Range.IsValid() {
		if n.Range != n.Range.Masked() || n.Range.Bits() < n.Subnet.Bits() || !n.Subnet.Contains(n.Range.Addr()) {
			return n, fault.New(fault.Invalid, "range %s is not one in subnet %s", n.Range, n.Subnet)
		}
	}
	if !n.Gateway.IsValid() {
		n.Gateway = first(from(n), func(a netip.Addr) bool { return isHost(n.Subnet, a) && !slices.Contains(n.Reserved, a) })
	}
	if !isHost(n.Subnet, n.Gateway) {
		return n, fault.New(fault.Invalid, "gateway %s is not an address in subnet %s", n.Gateway, n.Subnet)
	}
	for _, a := range n.Reserved {
		if !isHost(n.Subnet, a) || a == n.Gateway {
			return n, fault.New(fault.Invalid, "auxiliary address %s is not one in subnet %s beside its gateway", a, n.Subnet)
		}
	}
	if n.MTU != 0 && (n.MTU < 576 || n.MTU > 1500) { // RFC 791 section 3.1, and what the card carries
		return n, fault.New(fault.Invalid, "an MTU is 576 to 1500 bytes, not %d", n.MTU)
	}
	return n, nil
}

// usable reports whether a subnet can be a network's.
func usable(p netip.Prefix) bool {
	for _, special := range []string{"0.0.0.0/8", "127.0.0.0/8", "169.254.0.0/16", "224.0.0.0/4", "240.0.0.0/4"} { // RFC 6890
		if netip.MustParsePrefix(special).Overlaps(p) {
			return false
		}
	}
	return true
}

// from is what addresses of a network are taken from.
func from(n portlayer.Network) netip.Prefix {
	if n.Range.IsValid() {
		return n.Range
	}
	return n.Subnet
}

// last is the last address of a prefix.
func last(p netip.Prefix) netip.Addr {
	a := p.Masked().Addr().As4()
	n := binary.BigEndian.Uint32(a[:]) | (1<<(32-p.Bits()) - 1)
	binary.BigEndian.PutUint32(a[:], n)
	return netip.AddrFrom4(a)
}

// isHost reports whether a can be a host's in subnet p: the first address names the subnet, the last is everybody's.
func isHost(p netip.Prefix, a netip.Addr) bool {
	return a.Is4() && p.Contains(a) && a != p.Addr() && a != last(p)
}

// first is the first address of p that is good; invalid if none is.
func first(p netip.Prefix, good func(netip.Addr) bool) netip.Addr {
	for a := p.Addr(); p.Contains(a); a = a.Next() {
		if good(a) {
			return a
		}
	}
	return netip.Addr{}
}

// pick is the address that a container gets on n where taken are others'. wanted is one that it asks for. after is the last that was given: those who come and go do not
// get each other's address at once, which their neighbours may still take for the old one.
func pick(n portlayer.Network, wanted, after netip.Addr, taken func(netip.Addr) bool) (netip.Addr, error) {
	if wanted.IsValid() {
		switch {
		case !isHost(n.Subnet, wanted):
			return wanted, fault.New(fault.Invalid, "invalid address %s: it does not belong to the subnet of network %s, %s", wanted, n.Name, n.Subnet)
		case wanted == n.Gateway || taken(wanted):
			return wanted, fault.New(fault.Conflict, "address %s is in use on network %s: choose another, or let vch choose", wanted, n.Name)
		}
		return wanted, nil
	}
	free := func(a netip.Addr) bool {
		return isHost(n.Subnet, a) && a != n.Gateway && !slices.Contains(n.Reserved, a) && !taken(a)
	}
	p := from(n)
	if after.IsValid() && p.Contains(after) {
		for a := after.Next(); p.Contains(a); a = a.Next() {
			if free(a) {
				return a, nil
			}
		}
	}
	if a := first(p, free); a.IsValid() {
		return a, nil
	}
	return netip.Addr{}, fault.New(fault.Unavailable, "no available address on network %s: all of %s are taken", n.Name, p)
}

// cardOf is the hardware address that goes with an address: as Docker makes it, locally administered.
func cardOf(a netip.Addr) string {
	b := a.As4()
	return net.HardwareAddr{0x02, 0x42, b[0], b[1], b[2], b[3]}.String()
}

// checkCard gives a hardware address that somebody chose as it is shown.
func checkCard(text string) (string, error) {
	mac, err := net.ParseMAC(text)
	if err != nil || len(mac) != 6 {
		return "", fault.New(fault.Invalid, "invalid MAC address %q: it is six pairs of hex digits, such as 02:42:ac:11:00:02", text)
	}
	if mac[0]&1 != 0 || mac.String() == "00:00:00:00:00:00" {
		return "", fault.New(fault.Invalid, "invalid MAC address %s: it is that of a group, or of nobody (the first pair is to be even)", mac)
	}
	return mac.String(), nil
}

var nameRule = regexp.MustCompile(`^[a-zA-Z0-9][a-zA-Z0-9_.-]{0,127}$`)

// checkName is an error where a network cannot be called name.
func checkName(name portlayer.NetworkName) error {
	if !nameRule.MatchString(string(name)) {
		return fault.New(fault.Invalid, "invalid network name %q: it begins with a letter or digit, holds letters, digits, _ . and - only, and has at most 128 bytes", string(name))
	}
	for _, reserved := range []portlayer.NetworkName{"none", "host", "container", "default"} {
		if name == reserved {
			return fault.New(fault.Denied, "operation is not permitted on predefined %s network: choose another name", name)
		}
	}
	return nil
}
