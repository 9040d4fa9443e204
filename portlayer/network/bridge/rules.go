package bridge

import (
	"bytes"
	"fmt"
	"net/netip"
	"os/exec"
	"strings"
	"sync"

	"vch/internal/fault"
	"vch/portlayer"
)

// rules is one table of nftables (nft(8)), which nobody else has a say in. Its chains stay; what they ask for is in sets, whose elements come and go. What another table drops
// stays dropped: an accept is this table's only.
type rules struct {
	table string

	mu        sync.Mutex // guards below; held while nft runs, so that what is counted is what is there
	published map[portlayer.Published]int
}

// base is the table without its elements. The order in input: what was begun by the host or is a known connection's goes on, what may be reached is let through, and the rest refused.
const base = `
table inet %[1]s
delete table inet %[1]s
table inet %[1]s {
	set networks { type ifname; }
	set internals { type ifname; }
	set same { type ifname . ifname; }
	set gateways { type ipv4_addr; }
	set outgoing { type ipv4_addr; flags interval; }
	set tohost { type ipv4_addr . ipv4_addr; }
	set published { type inet_proto . inet_service; }
	set publishedat { type ipv4_addr . inet_proto . inet_service; }
	chain forward {
		type filter hook forward priority filter; policy accept;
		iifname . oifname @same accept comment "what stays on a bridge comes here on hosts with br_netfilter"
		iifname @networks oifname @networks drop comment "one network does not reach another"
		iifname @internals drop
		oifname @internals drop
		iifname @networks ip daddr { 0.0.0.0/8, 127.0.0.0/8, 169.254.0.0/16, 224.0.0.0/4, 255.255.255.255 } reject comment "this host, its links, groups"
		oifname @networks ct state established,related accept
		oifname @networks drop comment "the ways in are published ports"
	}
	chain input {
		type filter hook input priority filter; policy accept;
		iifname != @networks accept
		ct state established,related accept
		ct status dnat accept comment "host.docker.internal"
		ip daddr 127.0.0.0/8 drop comment "route_localnet would let through to a published port who makes packets by hand"
		ip protocol icmp icmp type echo-request ip daddr @gateways accept
		iifname @internals reject
		meta l4proto . th dport @published accept
		ip daddr . meta l4proto . th dport @publishedat accept
		meta l4proto tcp reject with tcp reset
		reject
	}
	chain prerouting {
		type nat hook prerouting priority dstnat; policy accept;
		iifname @networks ip saddr . ip daddr @tohost dnat ip to 127.0.0.1
	}
	chain postrouting {
		type nat hook postrouting priority srcnat; policy accept;
		oifname != @networks ip saddr @outgoing masquerade
	}
}
`

func newRules(table string) (*rules, error) {
	r := &rules{table: table, published: map[portlayer.Published]int{}}
	if _, err := exec.LookPath("nft"); err != nil {
		return nil, fault.New(fault.NotFound, "the network backend bridge needs nft, which sets the kernel's packet filter up: install Debian's package nftables, or use --network-backend user")
	}
	return r, r.run(fmt.Sprintf(base, table))
}

// run has nft do commands, all of them or none.
func (r *rules) run(commands string) error {
	cmd := exec.Command("nft", "-f", "-")
	cmd.Stdin = strings.NewReader(commands)
	var said bytes.Buffer
	cmd.Stdout, cmd.Stderr = &said, &said
	if err := cmd.Run(); err != nil {
		first, _, _ := strings.Cut(strings.TrimSpace(said.String()), "\n")
		kind := fault.Internal
		if strings.Contains(first, "Operation not permitted") {
			kind = fault.Denied
			first += "; the network backend bridge needs root: run vch as root, or use --network-backend user"
		}
		return fault.New(kind, "cannot set the packet filter up: %w: %s", err, first)
	}
	return nil
}

// element adds an element to a set, or deletes it.
func (r *rules) element(set, element string, there bool) string {
	verb := "delete"
	if there {
		verb = "add"
	}
	return fmt.Sprintf("%s element inet %s %s { %s }\n", verb, r.table, set, element)
}

// network is a network's elements.
func (r *rules) network(name string, n portlayer.Network, there bool) string {
	quoted := `"` + name + `"`
	all := r.element("networks", quoted, there) + r.element("same", quoted+" . "+quoted, there) + r.element("gateways", n.Gateway.String(), there)
	if n.Internal {
		return all + r.element("internals", quoted, there)
	}
	return all + r.element("outgoing", n.Subnet.String(), there)
}

func (r *rules) open(name string, n portlayer.Network) error {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.run(r.network(name, n, true))
}

func (r *rules) shut(name string, n portlayer.Network) error {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.run(r.network(name, n, false))
}

// toHost has a container find the host's loopback at its gateway.
func (r *rules) toHost(container, gateway netip.Addr, there bool) error {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.run(r.element("tohost", container.String()+" . "+gateway.String(), there))
}

// publish has containers reach a port of this host. One that is open at IPv6 addresses only is not for them.
func (r *rules) publish(p portlayer.Published, open bool) error {
	p.Port = 0
	if !p.HostIP.Is4() {
		return nil
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	was := r.published[p]
	now := was + 1
	if !open {
		now = was - 1
	}
	set, element := "published", fmt.Sprintf("%s . %d", p.Proto, p.HostPort)
	if !p.HostIP.IsUnspecified() {
		set, element = "publishedat", p.HostIP.String()+" . "+element
	}
	var err error
	if (was == 0) != (now == 0) {
		err = r.run(r.element(set, element, open))
	}
	if err != nil && open {
		return err
	}
	if r.published[p] = now; now <= 0 {
		delete(r.published, p)
	}
	return err
}

// close takes the table away.
func (r *rules) close() error {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.run("delete table inet " + r.table + "\n")
}
