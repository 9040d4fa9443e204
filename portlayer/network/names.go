package network

import (
	"context"
	"net"
	"net/netip"
	"slices"
	"strings"
	"time"

	"github.com/miekg/dns"

	"vch/internal/fault"
	"vch/portlayer"
)

// nameTTL is how long an answer about a container may be kept, in seconds: Docker's (libnetwork/resolver.go).
const nameTTL = 600

// Resolve is portlayer.Wiring.Resolve.
func (s *Service) Resolve(ctx context.Context, c portlayer.ContainerID, query []byte) ([]byte, error) {
	var q dns.Msg
	if err := q.Unpack(query); err != nil {
		return nil, fault.New(fault.Invalid, "not a DNS message: %w", err)
	}
	if len(q.Question) != 1 || q.Opcode != dns.OpcodeQuery {
		return pack(new(dns.Msg).SetRcode(&q, dns.RcodeNotImplemented))
	}
	records, known, outside, servers := s.lookUp(c, q.Question[0])
	if known {
		reply := new(dns.Msg).SetReply(&q)
		reply.RecursionAvailable = true
		reply.Answer = records
		return pack(reply)
	}
	if !outside {
		return pack(new(dns.Msg).SetRcode(&q, dns.RcodeServerFailure))
	}
	reply, err := s.o.Upstream(ctx, servers, query)
	if err != nil {
		s.o.Log.Debug("a name could not be looked up", "name", q.Question[0].Name, "err", err)
		return pack(new(dns.Msg).SetRcode(&q, dns.RcodeServerFailure))
	}
	return reply, nil
}

func pack(m *dns.Msg) ([]byte, error) {
	m.Compress = true
	return m.Pack()
}

// lookUp answers a question from what is known here. known says that the name is a container's, outside whether the asker may ask elsewhere, and servers whom.
func (s *Service) lookUp(c portlayer.ContainerID, q dns.Question) (records []dns.RR, known, outside bool, servers []netip.Addr) {
	s.mu.Lock()
	defer s.mu.Unlock()
	w := s.wired[c]
	if w == nil {
		return nil, false, false, nil
	}
	head := dns.RR_Header{Name: q.Name, Class: dns.ClassINET, Ttl: nameTTL}
	name := strings.ToLower(strings.TrimSuffix(q.Name, "."))
	if q.Qtype == dns.TypePTR {
		if a, ok := reversed(name); ok {
			for _, l := range w.links {
				if other := s.wired[s.networks[l.Network].taken[a]]; other != nil && named(s.networks[l.Network]) {
					head.Rrtype = dns.TypePTR
					return []dns.RR{&dns.PTR{Hdr: head, Ptr: dns.Fqdn(other.Name + "." + string(s.networks[l.Network].Name))}}, true, false, nil
				}
			}
		}
	}
	for _, l := range w.links {
		n := s.networks[l.Network]
		if !named(n) {
			continue
		}
		plain := strings.TrimSuffix(name, "."+strings.ToLower(string(n.Name))) // NAME.NETWORK, too
		for _, a := range s.called(n, plain) {
			known = true
			if q.Qtype == dns.TypeA {
				head.Rrtype = dns.TypeA
				records = append(records, &dns.A{Hdr: head, A: net.IP(a.AsSlice())})
			}
		}
		if known {
			return records, true, false, nil
		}
	}
	return nil, false, s.way(w).Network != "", w.DNS
}

// named reports whether containers have names on a network.
func named(n *segment) bool { return n.Name != portlayer.DefaultNetwork }

// called are the addresses of those on n that answer to a name, in no order, so that several share what is asked of them. s.mu is held.
func (s *Service) called(n *segment, name string) (all []netip.Addr) {
	for _, w := range s.wired { // the order of a map is another each time
		i := slices.IndexFunc(w.links, func(l portlayer.Link) bool { return l.Network == n.ID })
		if i < 0 {
			continue
		}
		is := func(have string) bool { return strings.EqualFold(have, name) }
		if is(w.Name) || len(w.Container) >= 12 && is(string(w.Container[:12])) || slices.ContainsFunc(w.as[n.ID].Aliases, is) {
			all = append(all, w.links[i].Address)
		}
	}
	return all
}

// reversed is the address that a name below in-addr.arpa is for (RFC 1035 section 3.5).
func reversed(name string) (netip.Addr, bool) {
	text, ok := strings.CutSuffix(name, ".in-addr.arpa")
	if !ok {
		return netip.Addr{}, false
	}
	parts := strings.Split(text, ".")
	slices.Reverse(parts)
	a, err := netip.ParseAddr(strings.Join(parts, "."))
	return a, err == nil && a.Is4()
}

// resolvConf says whom this host asks (resolv.conf(5)).
const resolvConf = "/etc/resolv.conf"

// upstreamWait is how long one server may take, before the next is asked.
const upstreamWait = 4 * time.Second

// upstream asks servers, or whom this host asks, one after the other.
func upstream(ctx context.Context, servers []netip.Addr, query []byte) ([]byte, error) {
	var at []string
	for _, a := range servers {
		at = append(at, net.JoinHostPort(a.String(), "53"))
	}
	if len(at) == 0 {
		conf, err := dns.ClientConfigFromFile(resolvConf)
		if err != nil {
			return nil, fault.New(fault.Unavailable, "this host has no %s: %w", resolvConf, err)
		}
		for _, a := range conf.Servers {
			at = append(at, net.JoinHostPort(a, conf.Port))
		}
	}
	var q dns.Msg
	if err := q.Unpack(query); err != nil {
		return nil, err
	}
	err := fault.New(fault.Unavailable, "this host has nobody to ask: %s names no server", resolvConf)
	for _, server := range at {
		reply, _, e := (&dns.Client{Timeout: upstreamWait}).ExchangeContext(ctx, &q, server)
		if e == nil && reply.Truncated {
			reply, _, e = (&dns.Client{Net: "tcp", Timeout: upstreamWait}).ExchangeContext(ctx, &q, server)
		}
		if e == nil {
			return pack(reply)
		}
		err = e
	}
	return nil, err
}
