package guest

// Management is a machine's card for the tether alone, by which it reaches the VCH where there is no guest channel. No process of the container sees it.
type Management struct {
	MAC     string   `json:"mac"`               // of the card
	Address string   `json:"address,omitempty"` // with the prefix of its network: 10.0.0.7/24; "": a DHCP server gives it, and what follows where that is not said here
	Gateway string   `json:"gateway,omitempty"` // "": none
	DNS     []string `json:"dns,omitempty"`     // addresses of servers, in the order in which they are asked
	MTU     int      `json:"mtu,omitempty"`     // bytes; 0: what the card has, or the DHCP server says
}
