package user

import (
	"errors"
	"log/slog"
	"net/netip"
	"testing"

	"vch/portlayer"
	"vch/portlayer/network/networktest"
)

func TestSuite(t *testing.T) {
	networktest.Run(t, networktest.Options{New: func(_ *testing.T, world *networktest.World) portlayer.NetworkBackend {
		own := []netip.Addr{networktest.HostOwn, netip.MustParseAddr("127.0.0.1")}
		return New(Options{Log: slog.New(slog.DiscardHandler), Own: func() []netip.Addr { return own }, Dial: world.Dial})
	}})
}

// A port that is published is reached by a container as by everybody, at the gateway and at the host's own addresses; nothing else of the host is.
func TestPublished(t *testing.T) {
	own := netip.MustParseAddr("203.0.113.9")
	b := New(Options{Log: slog.New(slog.DiscardHandler), Own: func() []netip.Addr { return []netip.Addr{own, netip.MustParseAddr("127.0.0.1")} }})
	eight := portlayer.Published{Port: 80, Proto: portlayer.TCP, HostIP: netip.IPv4Unspecified(), HostPort: 8080}
	nine := portlayer.Published{Port: 80, Proto: portlayer.TCP, HostIP: own, HostPort: 9090}
	for _, open := range []bool{true, true, false} {
		if err := errors.Join(b.Publish(eight, open), b.Publish(nine, open)); err != nil {
			t.Fatal(err)
		}
	}
	n := portlayer.Network{Name: "n", Subnet: netip.MustParsePrefix("192.0.2.0/24"), Gateway: netip.MustParseAddr("192.0.2.1")}
	open, err := b.Open(t.Context(), n)
	if err != nil {
		t.Fatal(err)
	}
	s := open.(*segment)
	from := netip.MustParseAddr("192.0.2.5")
	for text, want := range map[string]string{
		"tcp 192.0.2.1:8080": "127.0.0.1:8080", "tcp 203.0.113.9:8080": "203.0.113.9:8080", "tcp 198.51.100.1:443": "198.51.100.1:443",
		"tcp 203.0.113.9:9090": "203.0.113.9:9090", "tcp 192.0.2.1:9090": "", "udp 192.0.2.1:8080": "", "tcp 192.0.2.1:22": "", "tcp 203.0.113.9:22": "", "tcp 127.0.0.1:8080": "", "tcp 192.0.2.77:8080": "", "tcp 169.254.169.254:8080": "",
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
