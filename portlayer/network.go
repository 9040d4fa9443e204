package portlayer

import (
	"context"
	"encoding/json"
	"io"
	"net"
	"net/netip"
	"time"

	"vch/guest"
)

// NetworkID is 64 lower-case hex digits.
type NetworkID string

// NetworkName names a network: [a-zA-Z0-9][a-zA-Z0-9_.-]*, at most 128 bytes.
type NetworkName string

// DefaultNetwork is the network of a container that asks for none. It is there from the start and is never removed; on it a container has no name that others resolve.
const DefaultNetwork NetworkName = "bridge"

// HostGateway is what an extra host's address says that is to be the host: the gateway of the container's network, which stands for the host's loopback then.
const HostGateway = "host-gateway"

// Network is a virtual network: what is on it reaches what else is on it, the outside unless it is Internal, and nothing on another network.
type Network struct {
	ID       NetworkID
	Name     NetworkName
	Created  time.Time
	Subnet   netip.Prefix // IPv4, masked
	Gateway  netip.Addr   // the network's own address, in Subnet
	Range    netip.Prefix // what addresses are taken from, in Subnet; invalid: all of it
	Reserved []netip.Addr // that no container gets unless it asks for it
	Internal bool         // nothing outside is reached from it
	MTU      int          // bytes; 0: 1500
	Labels   map[string]string
	// Door is what the door that made the network wants back when it shows it. The port layer never reads it.
	Door json.RawMessage
}

// NetworkRequest asks for a network.
type NetworkRequest struct {
	Name     NetworkName
	Subnet   netip.Prefix // invalid: one that is free
	Gateway  netip.Addr   // invalid: the first of the range
	Range    netip.Prefix
	Reserved []netip.Addr
	Internal bool
	MTU      int
	Labels   map[string]string
	Door     json.RawMessage
}

// Endpoint is a container's place on a network, as it was asked for.
type Endpoint struct {
	Network NetworkID   // in a spec for Create "": the network called Name
	Name    NetworkName // as it was called then
	Aliases []string    // names beside the container's own
	Address netip.Addr  // invalid: any that is free
	MAC     string      // "": made from the address
}

// Port is a port of a container that the host is asked to publish.
type Port struct {
	Port     uint16
	Proto    Proto
	HostIP   netip.Addr // invalid: every address of the host
	HostPort uint16     // the first that may be taken; 0: any that is free
	HostEnd  uint16     // the last that may be taken; 0: HostPort
}

// Proto is a transport protocol.
type Proto string

// The protocols that ports have.
const (
	TCP Proto = "tcp"
	UDP Proto = "udp"
)

// Link is a container's place on a network while it runs.
type Link struct {
	Network NetworkID
	Address netip.Addr
	MAC     string
	Tag     uint16 // of its frames on the machine's card (IEEE 802.1Q); 1 to 4094
}

// Published is a port that the host has open for a running container.
type Published struct {
	Port     uint16
	Proto    Proto
	HostIP   netip.Addr // 0.0.0.0 or ::, for every one
	HostPort uint16
}

// NetworkDetail is a network with who is on it.
type NetworkDetail struct {
	Network
	On []NetworkMember // running containers, sorted by id
}

// NetworkMember is a running container on a network.
type NetworkMember struct {
	Container ContainerID
	Name      string
	Link      Link
}

// Networks is what a door does with networks. ref is an id, a unique prefix of one, or a name; a name goes before a prefix.
type Networks interface {
	// Create makes a network. Conflict for a name that is taken; Invalid for a subnet that is another's or the host's own, and for addresses outside of it.
	Create(ctx context.Context, req NetworkRequest) (Network, error)
	Get(ctx context.Context, ref string) (NetworkDetail, error)
	// List gives all networks, sorted by name.
	List(ctx context.Context) ([]NetworkDetail, error)
	// Remove deletes a network. Denied while running containers are on it, naming them, and for the default one. Containers that do not run keep asking for it.
	Remove(ctx context.Context, ref string) error
	// Prune removes every network that no container, running or not, asks for, and for which pick says yes.
	Prune(ctx context.Context, pick func(Network) bool) ([]Network, error)
}

// Wiring is what the container service needs of the network service beside Networks.
type Wiring interface {
	// Refer finds the networks of a spec's Endpoints and records that c asks for them. NotFound for one that is not there; Invalid for an address that it cannot give. After an error nothing is recorded.
	Refer(ctx context.Context, c ContainerID, as []Endpoint) ([]Endpoint, error)
	// Recall records that c asks for networks, whether they are there or not.
	Recall(c ContainerID, es []Endpoint)
	// Release forgets what c asks for.
	Release(c ContainerID)
	// Plug gives a container that is about to start its addresses and opens its ports on the host: all, or none. NotFound for a network that is gone; Conflict for an address that
	// another container has; Unavailable for a port that cannot be opened.
	Plug(ctx context.Context, w Wired) (Plugged, error)
	// Replug is Plug for a container that runs already, after a restart: it gets what it had. What of its ports cannot be opened is told in err, beside the rest.
	Replug(ctx context.Context, w Wired, had Plugged) error
	// Connect joins the frames of a plugged container's card to its networks, until Unplug, the next Connect, or their end.
	Connect(c ContainerID, frames net.Conn)
	// Add plugs a plugged container into one network more; Drop takes it out of one.
	Add(ctx context.Context, c ContainerID, a Endpoint) (Link, error)
	Drop(ctx context.Context, c ContainerID, n NetworkID) error
	// Links are those of a plugged container.
	Links(c ContainerID) []Link
	// Config is what the guest of a plugged container is to have.
	Config(c ContainerID) guest.Network
	// Resolve answers a DNS message (RFC 1035) of a plugged container.
	Resolve(ctx context.Context, c ContainerID, query []byte) ([]byte, error)
	// Rename gives a plugged container another name, by which others find it from now on.
	Rename(c ContainerID, name string)
	// Reach has a plugged container reach these services and no others beside its networks; connections to others end.
	Reach(c ContainerID, rs []Reach) error
	// Unplug takes a container off all networks and closes its ports. Not plugged: nothing happens.
	Unplug(c ContainerID)
}

// Wired is what Wiring has to know of a container.
type Wired struct {
	Container ContainerID
	Name      string
	Networks  []Endpoint
	Ports     []Port
	DNS       []netip.Addr // whom to ask for the names that are nobody's here; none: whom the host asks
	ToHost    bool         // its networks' gateways stand for the host's loopback
	Reaches   []Reach
}

// Plugged is what a container got.
type Plugged struct {
	Links []Link
	Ports []Published
}

// NetworkBackend makes networks real.
type NetworkBackend interface {
	// Name is "user" or "bridge".
	Name() string
	// Open makes a network real until its segment is closed. Opened again after the end of this process it takes over what that left.
	Open(ctx context.Context, n Network) (Segment, error)
	// Publish tells that a port of this host is a container's from now on, or, with open false, is not any more. Others reach it as from everywhere.
	Publish(p Published, open bool) error
	// Close lets go of everything; segments are closed before.
	Close() error
}

// Segment is one network, made real. A frame is an Ethernet frame without tag and check sequence, at most MTU and 14 bytes.
type Segment interface {
	// Attach puts a card on the network; deliver is called with each frame for it, must not wait, and must not keep the frame. A frame from it whose source is not mac is
	// dropped, as is one that says, by IPv4 or ARP, to come from the gateway's or another card's address. Conflict for a mac or an address that another card has.
	Attach(mac net.HardwareAddr, address netip.Addr, toHost bool, deliver func(frame []byte)) (Card, error)
	// Dial connects from the gateway to a card's address. network is "tcp" or "udp".
	Dial(ctx context.Context, network string, to netip.AddrPort) (net.Conn, error)
	io.Closer
}

// Card is a place on a Segment.
type Card interface {
	// Send puts a frame on the network. It does not keep it, and does not wait long.
	Send(frame []byte)
	// Close takes the card off.
	Close()
}

// Reacher makes the links by which machines reach what they must beside their networks.
type Reacher interface {
	// Open makes a link on which nothing is reached yet. deliver is called with each frame for the guest, must not wait, and must not keep the frame.
	Open(deliver func(frame []byte)) (ReachLink, error)
}

// ReachLink is one machine's link to what it must reach. Send takes what the guest sends: connections (TCP) from a privileged port, which nobody but its root can have, to what is
// allowed; all else is refused or dropped.
type ReachLink interface {
	Card
	// Interface is what the guest has of it, but for its tag.
	Interface() guest.Interface
	// Allow has these services reached from now on and no others.
	Allow(rs []Reach)
}
