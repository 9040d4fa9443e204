package guest

import "strconv"

// Management is a machine's card for the tether alone, by which it reaches the VCH where there is no guest channel. No process of the container sees it.
type Management struct {
	MAC     string   `json:"mac,omitempty"`     // of the card; "": it has one
	Address string   `json:"address,omitempty"` // with the prefix of its network: 10.0.0.7/24; "": a DHCP server gives it, and what follows where that is not said here
	Gateway string   `json:"gateway,omitempty"` // "": none
	DNS     []string `json:"dns,omitempty"`     // addresses of servers, in the order in which they are asked
	MTU     int      `json:"mtu,omitempty"`     // bytes; 0: what the card has, or the DHCP server says
}

// ContactKey is the name of the entry, among those that a hypervisor lets its guest read, that has the Contact in JSON.
const ContactKey = "guestinfo.vch.contact"

// ConfigKey names the entry that has the nth piece of what a machine carries (ExecutorConfig.Pack), from 0. After the last there is an empty one, or none.
func ConfigKey(n int) string {
	if n == 0 {
		return "guestinfo.vch.config"
	}
	return "guestinfo.vch.config." + strconv.Itoa(n)
}
