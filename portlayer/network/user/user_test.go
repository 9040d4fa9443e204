package user

import (
	"context"
	"log/slog"
	"net"
	"net/netip"
	"testing"

	"vch/portlayer"
	"vch/portlayer/network/networktest"
)

func TestSuite(t *testing.T) {
	networktest.Run(t, networktest.Options{New: func(t *testing.T, own []netip.Addr, dial func(ctx context.Context, network, to string) (net.Conn, error)) portlayer.NetworkBackend {
		return New(Options{Log: slog.New(slog.DiscardHandler), Own: func() []netip.Addr { return own }, Dial: dial})
	}})
}

// A port that is published is reached by a container as by everybody, at the gateway and at the host's own addresses; nothing else of the host is.
func TestPublished(t *testing.T) {
	own := netip.MustParseAddr("203.0.113.9")
	b := New(Options{Log: slog.New(slog.DiscardHandler), Own: func() []netip.Addr { return []netip.Addr{own, netip.MustParseAddr("127.0.0.1")} },
		Published: func(network string, at netip.AddrPort) bool { return network == "tcp" && at.Port() == 8080 }})
	n := portlayer.Network{Name: "n", Subnet: netip.MustParsePrefix("192.0.2.0/24"), Gateway: netip.MustParseAddr("192.0.2.1")}
	open, err := b.Open(t.Context(), n)
	if err != nil {
		t.Fatal(err)
	}
	s := open.(*segment)
	from := netip.MustParseAddr("192.0.2.5")
	for text, want := range map[string]string{
		"tcp 192.0.2.1:8080": "127.0.0.1:8080", "tcp 203.0.113.9:8080": "203.0.113.9:8080", "tcp 198.51.100.1:443": "198.51.100.1:443",
		"udp 192.0.2.1:8080": "", "tcp 192.0.2.1:22": "", "tcp 203.0.113.9:22": "", "tcp 127.0.0.1:8080": "", "tcp 192.0.2.77:8080": "", "tcp 169.254.169.254:8080": "",
	} {
		to, err := s.outside(text[:3], from, netip.MustParseAddrPort(text[4:]))
		if (err == nil) != (want != "") || err == nil && to.String() != want {
			t.Errorf("%s leads to %s, %v; want %q", text, to, err, want)
		}
	}
	if err := s.Close(); err != nil {
		t.Error(err)
	}
}
