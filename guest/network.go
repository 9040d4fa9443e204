package guest

import "context"

// Network is what a guest has of networks: the whole of it, each time.
type Network struct {
	Interfaces []Interface `json:"interfaces,omitempty"`
	// Resolver: names are asked for at ResolverAddress, and the host answers (Asker.Resolve).
	Resolver bool `json:"resolver,omitempty"`
	// Storage is the link by which the guest's kernel reaches the servers of volumes. It is where no process of the container sees it. Once there, it stays.
	Storage *Interface `json:"storage,omitempty"`
}

// ResolverAddress is where a guest's processes ask for names, at port 53: Docker's.
const ResolverAddress = "127.0.0.11"

// Interface is one network interface of the container: a tag of the machine's one card (IEEE 802.1Q).
type Interface struct {
	Name    string `json:"name"`    // eth0
	Tag     uint16 `json:"tag"`     // 1 to 4094; what it is known by
	MAC     string `json:"mac"`     // of its frames
	Address string `json:"address"` // with the prefix of its network: 172.17.0.2/16
	Gateway string `json:"gateway,omitempty"`
	MTU     int    `json:"mtu"` // bytes
}

// Asker is a host that can be asked.
type Asker interface {
	// Resolve answers a DNS message (RFC 1035).
	Resolve(ctx context.Context, query []byte) ([]byte, error)
}

// SetNetwork is Handler.SetNetwork.
func (c *Client) SetNetwork(ctx context.Context, n Network) error {
	return c.call(ctx, "network", n, nil)
}

// Answer has a answer what the guest asks, until the connection ends. Called once.
func (c *Client) Answer(a Asker) { go c.answer(a) }
