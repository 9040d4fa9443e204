package network

import (
	"fmt"
	"math/rand/v2"
	"net/netip"
	"slices"
	"testing"

	"vch/internal/fault"
	"vch/portlayer"
)

func prefix(text string) netip.Prefix { return netip.MustParsePrefix(text) }
func addr(text string) netip.Addr     { return netip.MustParseAddr(text) }

// Whatever is taken, a network that is planned has a subnet of its own, a gateway in it, and addresses to give that are neither.
func TestPlanned(t *testing.T) {
	hosts := []netip.Prefix{prefix("172.17.0.0/16"), prefix("192.0.2.0/24")}
	taken := map[portlayer.NetworkName]netip.Prefix{}
	for i := range 30 { // all pools but the one that the host is in
		name := portlayer.NetworkName(fmt.Sprint("n", i))
		n, err := planned(portlayer.NetworkRequest{Name: name}, taken, hosts)
		if err != nil {
			t.Fatal(err)
		}
		for other, p := range taken {
			if p.Overlaps(n.Subnet) {
				t.Errorf("%s has %s, and %s %s", name, n.Subnet, other, p)
			}
		}
		if n.Subnet.Overlaps(hosts[0]) || !isHost(n.Subnet, n.Gateway) {
			t.Errorf("%+v", n)
		}
		taken[name] = n.Subnet
	}
	if _, err := planned(portlayer.NetworkRequest{Name: "more"}, taken, hosts); !fault.Is(err, fault.Conflict) {
		t.Errorf("when all pools are taken: %v", err)
	}
	n, err := planned(portlayer.NetworkRequest{Name: "x", Subnet: prefix("10.0.0.0/24"), Range: prefix("10.0.0.128/25"), Reserved: []netip.Addr{addr("10.0.0.128"), addr("10.0.0.129")}}, taken, hosts)
	if err != nil || n.Gateway != addr("10.0.0.130") {
		t.Errorf("gateway %s, %v", n.Gateway, err)
	}
}

// Addresses are given once, in order and round, until there are none; what somebody asks for he gets, if it can be given.
func TestPick(t *testing.T) {
	n := portlayer.Network{Name: "n", Subnet: prefix("10.0.0.0/28"), Gateway: addr("10.0.0.1"), Reserved: []netip.Addr{addr("10.0.0.7")}}
	taken := map[netip.Addr]bool{}
	is := func(a netip.Addr) bool { return taken[a] }
	var last netip.Addr
	for range 12 { // of 14 without gateway and the reserved one
		a, err := pick(n, netip.Addr{}, last, is)
		if err != nil {
			t.Fatal(err)
		}
		if taken[a] || a == n.Gateway || slices.Contains(n.Reserved, a) || !isHost(n.Subnet, a) {
			t.Errorf("%s was given", a)
		}
		taken[a], last = true, a
	}
	if _, err := pick(n, netip.Addr{}, last, is); !fault.Is(err, fault.Unavailable) {
		t.Errorf("all are taken: %v", err)
	}
	delete(taken, addr("10.0.0.3"))
	delete(taken, addr("10.0.0.9"))
	if a, _ := pick(n, netip.Addr{}, addr("10.0.0.3"), is); a != addr("10.0.0.9") {
		t.Errorf("after 10.0.0.3 comes %s", a)
	}
	if a, err := pick(n, addr("10.0.0.7"), last, is); err != nil || a != addr("10.0.0.7") {
		t.Errorf("a reserved one that is asked for: %s, %v", a, err)
	}
	for text, kind := range map[string]fault.Kind{"10.0.0.1": fault.Conflict, "10.0.0.2": fault.Conflict, "10.0.0.0": fault.Invalid, "10.0.0.15": fault.Invalid, "10.0.1.1": fault.Invalid, "fd00::1": fault.Invalid} {
		if _, err := pick(n, addr(text), last, is); !fault.Is(err, kind) {
			t.Errorf("%s: %v", text, err)
		}
	}
}

// Comings and goings in any order never give one address to two.
func TestPickNeverTwice(t *testing.T) {
	r := rand.New(rand.NewPCG(1, 2))
	n := portlayer.Network{Name: "n", Subnet: prefix("10.0.0.0/26"), Gateway: addr("10.0.0.1")}
	taken := map[netip.Addr]bool{}
	var last netip.Addr
	for range 5000 {
		if len(taken) > 0 && r.IntN(3) == 0 {
			for a := range taken {
				delete(taken, a)
				break
			}
			continue
		}
		a, err := pick(n, netip.Addr{}, last, func(a netip.Addr) bool { return taken[a] })
		if err != nil && len(taken) == 61 {
			clear(taken)
			continue
		}
		if err != nil || taken[a] {
			t.Fatalf("%s with %d taken: %v", a, len(taken), err)
		}
		taken[a], last = true, a
	}
}

func TestCards(t *testing.T) {
	if got := cardOf(addr("172.17.0.2")); got != "02:42:ac:11:00:02" {
		t.Errorf("%s", got)
	}
	if got, err := checkCard("02-00-00-00-00-0A"); err != nil || got != "02:00:00:00:00:0a" {
		t.Errorf("%s, %v", got, err)
	}
	for _, bad := range []string{"", "x", "01:00:00:00:00:00", "00:00:00:00:00:00", "02:00:00:00:00:00:00:01"} {
		if _, err := checkCard(bad); !fault.Is(err, fault.Invalid) {
			t.Errorf("%q: %v", bad, err)
		}
	}
}
