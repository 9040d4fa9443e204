package network

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/netip"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/miekg/dns"

	"vch/guest"
	"vch/internal/fault"
	"vch/portlayer"
	"vch/portlayer/record"
)

// wires is a backend whose segments only remember who is on them. Who dials in talks to an echo.
type wires struct {
	open      map[portlayer.NetworkID]*wire
	published []string
}

type wire struct {
	cards  map[string]netip.Addr // by hardware address
	closed bool
	fails  error
}

func (w *wires) Publish(p portlayer.Published, open bool) error {
	w.published = append(w.published, fmt.Sprintf("%s/%s:%d %v", p.Proto, p.HostIP, p.HostPort, open))
	return nil
}
func (w *wires) Name() string { return "test" }
func (w *wires) Close() error { return nil }
func (w *wires) Open(_ context.Context, n portlayer.Network) (portlayer.Segment, error) {
	if w.open[n.ID] == nil {
		w.open[n.ID] = &wire{cards: map[string]netip.Addr{}}
	}
	w.open[n.ID].closed = false
	return w.open[n.ID], nil
}

func (w *wire) Attach(mac net.HardwareAddr, a netip.Addr, _ bool, _ func([]byte)) (portlayer.Card, error) {
	if w.fails != nil {
		return nil, w.fails
	}
	w.cards[mac.String()] = a
	return plug{w, mac.String()}, nil
}

func (w *wire) Dial(_ context.Context, network string, to netip.AddrPort) (net.Conn, error) {
	near, far := net.Pipe()
	go func() { fmt.Fprintf(far, "%s %s", network, to); io.Copy(io.Discard, far) }()
	return near, nil
}

func (w *wire) Close() error { w.closed = true; return nil }

type plug struct {
	w   *wire
	mac string
}

func (plug) Send([]byte) {}
func (p plug) Close()    { delete(p.w.cards, p.mac) }

type host struct {
	*Service
	t       *testing.T
	wires   *wires
	events  []string
	path    string
	db      *record.DB
	links   []*ropes
	reacher reacher
}

// ropes is a link that remembers what is allowed on it.
type ropes struct {
	allowed []portlayer.Reach
	closed  bool
}

func (r *ropes) Send([]byte)                {}
func (r *ropes) Close()                     { r.closed = true }
func (r *ropes) Interface() guest.Interface { return guest.Interface{Name: "storage", MTU: 60000} }
func (r *ropes) Allow(rs []portlayer.Reach) { r.allowed = rs }
func (h *host) open(func([]byte)) portlayer.ReachLink {
	h.links = append(h.links, &ropes{})
	return h.links[len(h.links)-1]
}

// reacher makes ropes of a host, unless it fails.
type reacher struct {
	h     *host
	fails error
}

func (r *reacher) Open(deliver func([]byte)) (portlayer.ReachLink, error) {
	if r.fails != nil {
		return nil, r.fails
	}
	return r.h.open(deliver), nil
}

func newHost(t *testing.T) *host {
	h := &host{t: t, wires: &wires{open: map[portlayer.NetworkID]*wire{}}, path: filepath.Join(t.TempDir(), "db")}
	h.reacher.h = h
	h.start()
	t.Cleanup(h.stop)
	return h
}

func (h *host) start() {
	h.t.Helper()
	var err error
	if h.db, err = record.Open(h.path); err != nil {
		h.t.Fatal(err)
	}
	h.Service, err = New(h.t.Context(), Options{DB: h.db, Backend: h.wires, Reacher: &h.reacher, Log: slog.New(slog.DiscardHandler),
		Publish: func(e portlayer.Event) { h.events = append(h.events, e.Verb+" "+e.Attrs["name"]) },
		Hosts:   func() []netip.Prefix { return nil },
		Upstream: func(_ context.Context, servers []netip.Addr, query []byte) ([]byte, error) {
			return []byte(fmt.Sprint("asked ", servers)), nil
		}})
	if err != nil {
		h.t.Fatal(err)
	}
}

func (h *host) stop() {
	if err := errors.Join(h.Service.Close(), h.db.Close()); err != nil {
		h.t.Error(err)
	}
}

func (h *host) network(req portlayer.NetworkRequest) portlayer.Network {
	h.t.Helper()
	n, err := h.Create(h.t.Context(), req)
	if err != nil {
		h.t.Fatal(err)
	}
	return n
}

// wired is a container of the tests on the networks called names.
func (h *host) wired(name string, ports []portlayer.Port, names ...portlayer.NetworkName) portlayer.Wired {
	h.t.Helper()
	var es []portlayer.Endpoint
	for _, n := range names {
		es = append(es, portlayer.Endpoint{Name: n})
	}
	id := portlayer.ContainerID(strings.Repeat(name, 64/len(name)+1)[:64])
	es, err := h.Refer(h.t.Context(), id, es)
	if err != nil {
		h.t.Fatal(err)
	}
	return portlayer.Wired{Container: id, Name: name, Networks: es, Ports: ports}
}

func (h *host) plugged(w portlayer.Wired) portlayer.Plugged {
	h.t.Helper()
	p, err := h.Plug(h.t.Context(), w)
	if err != nil {
		h.t.Fatal(err)
	}
	return p
}

var local = netip.MustParseAddr("127.0.0.1")

// A start that does not get all its networks and ports has none of them.
func TestPlugIsAllOrNothing(t *testing.T) {
	h := newHost(t)
	a, b := h.network(portlayer.NetworkRequest{Name: "a"}), h.network(portlayer.NetworkRequest{Name: "b"})
	first := h.wired("aa", []portlayer.Port{{Port: 80, Proto: portlayer.TCP, HostIP: local}}, "a", "b")
	got := h.plugged(first)
	if len(got.Links) != 2 || got.Links[0].Tag != 1 || got.Links[1].Tag != 2 || len(got.Ports) != 1 || got.Ports[0].HostPort == 0 {
		t.Fatalf("%+v", got)
	}
	taken := got.Ports[0].HostPort
	second := h.wired("bb", []portlayer.Port{{Port: 80, Proto: portlayer.UDP, HostIP: local}, {Port: 80, Proto: portlayer.TCP, HostIP: local, HostPort: taken}}, "a")
	if _, err := h.Plug(t.Context(), second); !fault.Is(err, fault.Unavailable) || !strings.Contains(err.Error(), "port is already allocated") {
		t.Errorf("%v", err)
	}
	if cards := h.wires.open[a.ID].cards; len(cards) != 1 {
		t.Errorf("on a are %v", cards)
	}
	// A range has others.
	second.Ports[1].HostEnd = taken + 20
	if taken < 65000 {
		if p := h.plugged(second); p.Ports[1].HostPort == taken || p.Ports[1].HostPort > taken+20 {
			t.Errorf("%+v", p)
		}
		h.Unplug(second.Container)
	}
	h.wires.open[b.ID].fails = errors.New("no")
	if _, err := h.Plug(t.Context(), h.wired("cc", nil, "a", "b")); err == nil {
		t.Error("a network that fails was not told")
	}
	if cards := h.wires.open[a.ID].cards; len(cards) != 1 {
		t.Errorf("on a are %v", cards)
	}
	conn, err := net.Dial("tcp", netip.AddrPortFrom(local, taken).String())
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	conn.SetDeadline(time.Now().Add(10 * time.Second))
	buf := make([]byte, 100)
	n, err := conn.Read(buf)
	if want := "tcp " + got.Links[0].Address.String() + ":80"; err != nil || string(buf[:n]) != want {
		t.Errorf("%q, %v; want %q", buf[:n], err, want)
	}
	h.Unplug(first.Container)
	h.Unplug(first.Container)
	if c, err := net.Dial("tcp", netip.AddrPortFrom(local, taken).String()); err == nil {
		c.Close()
		t.Error("the port is open still")
	}
	for _, n := range []portlayer.Network{a, b} {
		if d, err := h.Get(t.Context(), string(n.Name)); err != nil || len(d.On) != 0 || len(h.wires.open[n.ID].cards) != 0 {
			t.Errorf("%+v, %v", d, err)
		}
	}
}

// After a restart a container has what it had.
func TestReplug(t *testing.T) {
	h := newHost(t)
	h.network(portlayer.NetworkRequest{Name: "a"})
	w := h.wired("aa", []portlayer.Port{{Port: 80, Proto: portlayer.TCP, HostIP: local}}, "bridge", "a")
	had := h.plugged(w)
	cfg := h.Config(w.Container)
	h.stop()
	h.start()
	h.Recall(w.Container, w.Networks)
	if err := h.Replug(t.Context(), w, had); err != nil {
		t.Fatal(err)
	}
	if got := h.Links(w.Container); !slices.Equal(got, had.Links) {
		t.Errorf("%+v, and it had %+v", got, had.Links)
	}
	if got := h.Config(w.Container); fmt.Sprint(got) != fmt.Sprint(cfg) {
		t.Errorf("%+v, and it had %+v", got, cfg)
	}
	if p := h.plugged(h.wired("bb", nil, "a")); p.Links[0].Address == had.Links[1].Address {
		t.Errorf("its address was given to another: %+v", p)
	}
	if gone, err := h.Prune(t.Context(), func(portlayer.Network) bool { return true }); err != nil || len(gone) != 0 {
		t.Errorf("pruned %v, %v", gone, err)
	}
	if err := h.Remove(t.Context(), "a"); !fault.Is(err, fault.Denied) || !strings.Contains(err.Error(), "(aa, bb)") {
		t.Errorf("%v", err)
	}
	h.Unplug(w.Container)
	h.Unplug("bb")
}

// The way out is the first network that has one, and moves when that is left.
func TestWayOut(t *testing.T) {
	h := newHost(t)
	h.network(portlayer.NetworkRequest{Name: "in", Internal: true})
	a, b := h.network(portlayer.NetworkRequest{Name: "a"}), h.network(portlayer.NetworkRequest{Name: "b", MTU: 1400})
	w := h.wired("aa", nil, "in", "a")
	h.plugged(w)
	gateways := func() (all []string) {
		for _, i := range h.Config(w.Container).Interfaces {
			all = append(all, i.Name+" "+i.Gateway)
		}
		return all
	}
	if got := gateways(); !slices.Equal(got, []string{"eth0 ", "eth1 " + a.Gateway.String()}) {
		t.Errorf("%q", got)
	}
	e := portlayer.Endpoint{Name: "b", Network: b.ID}
	if l, err := h.Add(t.Context(), w.Container, e); err != nil || l.Tag != 3 {
		t.Errorf("%+v, %v", l, err)
	}
	if _, err := h.Add(t.Context(), w.Container, e); !fault.Is(err, fault.Denied) {
		t.Errorf("twice: %v", err)
	}
	if err := h.Drop(t.Context(), w.Container, a.ID); err != nil {
		t.Error(err)
	}
	if got := gateways(); !slices.Equal(got, []string{"eth0 ", "eth2 " + b.Gateway.String()}) {
		t.Errorf("%q", got)
	}
	if i := h.Config(w.Container).Interfaces; i[0].MTU != 1500 || i[1].MTU != 1400 {
		t.Errorf("%+v", i)
	}
	if err := h.Drop(t.Context(), w.Container, a.ID); !fault.Is(err, fault.NotFound) {
		t.Errorf("twice: %v", err)
	}
	if !slices.Contains(h.events, "connect b") || !slices.Contains(h.events, "disconnect a") {
		t.Errorf("events %v", h.events)
	}
}

// resolve asks for a name as a container does.
func (h *host) resolve(c portlayer.ContainerID, name string, kind uint16) (rcode int, answers []string) {
	h.t.Helper()
	q, err := new(dns.Msg).SetQuestion(name, kind).Pack()
	if err != nil {
		h.t.Fatal(err)
	}
	reply, err := h.Resolve(h.t.Context(), c, q)
	if err != nil {
		h.t.Fatal(err)
	}
	if strings.HasPrefix(string(reply), "asked") {
		return -1, []string{string(reply)}
	}
	var m dns.Msg
	if err := m.Unpack(reply); err != nil {
		h.t.Fatal(err)
	}
	for _, rr := range m.Answer {
		answers = append(answers, strings.TrimPrefix(rr.String(), rr.Header().String()))
	}
	slices.Sort(answers)
	return m.Rcode, answers
}

// Names are those of who is on a network of one's own with the one that asks; the rest is asked elsewhere, or of nobody.
func TestNames(t *testing.T) {
	h := newHost(t)
	h.network(portlayer.NetworkRequest{Name: "in", Internal: true})
	h.network(portlayer.NetworkRequest{Name: "a"})
	web, db, alone, closed := h.wired("web", nil, "a", "bridge"), h.wired("db", nil, "a"), h.wired("alone", nil, "bridge"), h.wired("closed", nil, "in")
	web.Networks[0].Aliases, db.Networks[0].Aliases = []string{"Both"}, []string{"both", "store"}
	alone.DNS = []netip.Addr{addr("192.0.2.53")}
	at := map[string]string{}
	for _, w := range []portlayer.Wired{web, db, alone, closed} {
		at[w.Name] = h.plugged(w).Links[0].Address.String()
	}
	both := []string{at["web"], at["db"]}
	slices.Sort(both)
	for _, tc := range []struct {
		who  portlayer.Wired
		name string
		kind uint16
		code int
		want []string
	}{
		{db, "web.", dns.TypeA, 0, []string{at["web"]}},
		{db, "WEB.", dns.TypeA, 0, []string{at["web"]}},
		{db, "web.a.", dns.TypeA, 0, []string{at["web"]}},
		{db, string(web.Container[:12]) + ".", dns.TypeA, 0, []string{at["web"]}},
		{db, "both.", dns.TypeA, 0, both},
		{web, "store.", dns.TypeA, 0, []string{at["db"]}},
		{db, "web.", dns.TypeAAAA, 0, nil},
		{db, "web.", dns.TypeMX, 0, nil},
		{db, reverse(at["web"]), dns.TypePTR, 0, []string{"web.a."}},
		{alone, "web.", dns.TypeA, -1, []string{"asked [192.0.2.53]"}},
		{alone, reverse(at["alone"]), dns.TypePTR, -1, []string{"asked [192.0.2.53]"}},
		{db, "example.org.", dns.TypeA, -1, []string{"asked []"}},
		{closed, "example.org.", dns.TypeA, dns.RcodeServerFailure, nil},
		{closed, "web.", dns.TypeA, dns.RcodeServerFailure, nil},
		{portlayer.Wired{Container: "nobody"}, "web.", dns.TypeA, dns.RcodeServerFailure, nil},
	} {
		if code, got := h.resolve(tc.who.Container, tc.name, tc.kind); code != tc.code || !slices.Equal(got, tc.want) {
			t.Errorf("%s asks for %s %d: %d %q, want %d %q", tc.who.Name, tc.name, tc.kind, code, got, tc.code, tc.want)
		}
	}
	h.Rename(web.Container, "site")
	if code, got := h.resolve(db.Container, "site.", dns.TypeA); code != 0 || !slices.Equal(got, []string{at["web"]}) {
		t.Errorf("by its new name: %d %q", code, got)
	}
	if code, got := h.resolve(db.Container, "web.", dns.TypeA); code != -1 {
		t.Errorf("by its old name: %d %q", code, got)
	}
	if _, err := h.Resolve(t.Context(), web.Container, []byte("no message")); !fault.Is(err, fault.Invalid) {
		t.Errorf("%v", err)
	}
	for _, w := range []portlayer.Wired{web, db, alone, closed} {
		h.Unplug(w.Container)
	}
}

func reverse(a string) string {
	name, _ := dns.ReverseAddr(a)
	return name
}

func FuzzResolve(f *testing.F) {
	q, _ := new(dns.Msg).SetQuestion("web.", dns.TypeA).Pack()
	f.Add(q)
	f.Fuzz(func(t *testing.T, query []byte) {
		s := &Service{o: Options{Log: slog.New(slog.DiscardHandler)}, wired: map[portlayer.ContainerID]*wired{}}
		if reply, err := s.Resolve(t.Context(), "c", query); err == nil && new(dns.Msg).Unpack(reply) != nil {
			t.Errorf("% x", reply)
		}
	})
}

// A container reaches the servers that its start asks for, by a link of its own beside its networks, and by none where it asks for none; the link stays until it is unplugged.
func TestReaches(t *testing.T) {
	h := newHost(t)
	h.network(portlayer.NetworkRequest{Name: "a"})
	one := portlayer.Reach{Address: netip.MustParseAddrPort("10.1.2.3:2049"), Service: "one"}
	two := portlayer.Reach{Address: netip.MustParseAddrPort("10.1.2.4:2049"), Service: "two"}
	none := h.wired("nn", nil, "a")
	h.plugged(none)
	if len(h.links) != 0 || h.Config(none.Container).Storage != nil {
		t.Fatalf("%d links", len(h.links))
	}
	// On no network at all.
	w := h.wired("ww", nil)
	w.Reaches = []portlayer.Reach{one}
	h.plugged(w)
	cfg := h.Config(w.Container)
	if len(h.links) != 1 || !slices.Equal(h.links[0].allowed, w.Reaches) || cfg.Storage == nil || cfg.Storage.Tag != storageTag || cfg.Storage.Name != "storage" || cfg.Resolver || len(cfg.Interfaces) != 0 {
		t.Fatalf("%+v, %+v", h.links, cfg)
	}
	// One that runs comes to need more, and less.
	for _, rs := range [][]portlayer.Reach{{one, two}, {two}, nil} {
		if err := h.Reach(w.Container, rs); err != nil || len(h.links) != 1 || !slices.Equal(h.links[0].allowed, rs) || h.Config(w.Container).Storage == nil {
			t.Errorf("%v: %v, %+v", rs, err, h.links)
		}
	}
	if err := h.Reach(none.Container, []portlayer.Reach{two}); err != nil || len(h.links) != 2 || h.Config(none.Container).Storage == nil || len(h.Config(none.Container).Interfaces) != 1 {
		t.Errorf("%v, %d links", err, len(h.links))
	}
	h.Unplug(w.Container)
	if !h.links[0].closed || h.links[1].closed {
		t.Errorf("%+v, %+v", h.links[0], h.links[1])
	}
	if err := h.Reach(w.Container, []portlayer.Reach{one}); !fault.Is(err, fault.Conflict) {
		t.Errorf("unplugged: %v", err)
	}
	// Found running, it gets what it had.
	if err := h.Replug(t.Context(), w, portlayer.Plugged{}); err != nil || len(h.links) != 3 || !slices.Equal(h.links[2].allowed, w.Reaches) {
		t.Errorf("%v, %+v", err, h.links)
	}
	// A start that does not get it has nothing of it.
	h.reacher.fails = fault.New(fault.Unavailable, "no link")
	broken := h.wired("bb", nil, "a")
	broken.Reaches = []portlayer.Reach{one}
	if _, err := h.Plug(t.Context(), broken); !fault.Is(err, fault.Unavailable) || h.Links(broken.Container) != nil {
		t.Errorf("%v, %v", err, h.Links(broken.Container))
	}
}
