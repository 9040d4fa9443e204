package personality

import (
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"net/netip"
	"slices"
	"strconv"
	"strings"

	"github.com/moby/moby/api/types/container"
	"github.com/moby/moby/api/types/network"

	"vch/internal/fault"
	"vch/portlayer"
)

// modeNetwork is the network that a NetworkMode names; "" for none.
func modeNetwork(m container.NetworkMode) portlayer.NetworkName {
	switch m {
	case "", network.NetworkDefault, network.NetworkBridge:
		return portlayer.DefaultNetwork
	case network.NetworkNone:
		return ""
	}
	return portlayer.NetworkName(m)
}

// applyNetworks puts what a request says of networks and ports into spec. img has the exposed ports.
func applyNetworks(spec *portlayer.ContainerSpec, req createRequest, exposed network.PortSet) (warnings []string, err error) {
	mode := modeNetwork(req.HostConfig.NetworkMode)
	if mode != "" && !req.Config.NetworkDisabled {
		if spec.Networks, err = endpointsOf(mode, req.NetworkingConfig.EndpointsConfig); err != nil {
			return nil, err
		}
	} else if len(req.HostConfig.PortBindings) > 0 || req.HostConfig.PublishAllPorts {
		warnings = append(warnings, "Published ports are discarded when using network mode none")
		return warnings, nil
	}
	spec.Ports, err = portsOf(req.HostConfig, exposed)
	return warnings, err
}

// endpointsOf are the networks that a container is asked to be on: the one of its mode, and others by name. The first that has a way out is its way out: of the greatest
// priority, and of these the first by name.
func endpointsOf(mode portlayer.NetworkName, config map[string]*network.EndpointSettings) ([]portlayer.Endpoint, error) {
	type wish struct {
		portlayer.Endpoint
		priority int
	}
	wishes := map[portlayer.NetworkName]wish{mode: {Endpoint: portlayer.Endpoint{Name: mode}}}
	for name, e := range config {
		n := modeNetwork(container.NetworkMode(name))
		if n == "" {
			return nil, fault.New(fault.Invalid, "container cannot be connected to network endpoints: %s, %s: on network none it is on no other", mode, name)
		}
		got := wish{Endpoint: portlayer.Endpoint{Name: n}}
		if e != nil {
			var err error
			if got.Endpoint, err = endpointOf(n, e); err != nil {
				return nil, err
			}
			got.priority = e.GwPriority
		}
		wishes[n] = got
	}
	var all []wish
	for _, w := range wishes {
		all = append(all, w)
	}
	slices.SortFunc(all, func(a, b wish) int {
		if a.priority != b.priority {
			return b.priority - a.priority
		}
		return strings.Compare(string(a.Name), string(b.Name))
	})
	var es []portlayer.Endpoint
	for _, w := range all {
		es = append(es, w.Endpoint)
	}
	return es, nil
}

// endpointOf is one place on a network. What only an engine fills in is not looked at, as in Moby: clients send back what inspect showed.
func endpointOf(name portlayer.NetworkName, e *network.EndpointSettings) (portlayer.Endpoint, error) {
	field := func(f string) string { return fmt.Sprintf("NetworkingConfig.EndpointsConfig[%s].%s", name, f) }
	ipam := e.IPAMConfig
	if ipam == nil {
		ipam = &network.EndpointIPAMConfig{}
	}
	if err := first([]refusal{
		{ipam.IPv6Address.IsValid(), field("IPAMConfig.IPv6Address"), "--ip6", noIPv6},
		{len(ipam.LinkLocalIPs) > 0, field("IPAMConfig.LinkLocalIPs"), "--link-local-ip", "an interface has one address"},
		{len(e.Links) > 0, field("Links"), "--link", noLinks},
		{len(e.DriverOpts) > 0, field("DriverOpts"), "--network driver-opt", "a place on a network has no options"},
	}); err != nil {
		return portlayer.Endpoint{}, err
	}
	p := portlayer.Endpoint{Name: name, Aliases: slices.Clone(e.Aliases), Address: ipam.IPv4Address}
	if len(e.MacAddress) > 0 {
		p.MAC = e.MacAddress.String()
	}
	return p, nil
}

// portsOf are the ports that a container is asked to publish, in an order that does not change.
func portsOf(h *container.HostConfig, exposed network.PortSet) (ports []portlayer.Port, err error) {
	bound := map[network.Port][]network.PortBinding{}
	for p, bindings := range h.PortBindings {
		bound[p] = bindings
	}
	if h.PublishAllPorts {
		for p := range exposed {
			if len(bound[p]) == 0 {
				bound[p] = []network.PortBinding{{}}
			}
		}
	}
	for p, bindings := range bound {
		proto := portlayer.Proto(p.Proto())
		if proto != portlayer.TCP && proto != portlayer.UDP {
			return nil, refused("HostConfig.PortBindings", "-p "+p.String(), "ports are published for tcp and udp only")
		}
		for _, b := range bindings {
			port := portlayer.Port{Port: p.Num(), Proto: proto, HostIP: b.HostIP}
			if b.HostIP.IsValid() && b.HostIP.Is4In6() {
				port.HostIP = b.HostIP.Unmap()
			}
			if b.HostPort != "" {
				from, to, isRange := strings.Cut(b.HostPort, "-")
				first, err := strconv.ParseUint(from, 10, 16)
				last := first
				if err == nil && isRange {
					last, err = strconv.ParseUint(to, 10, 16)
				}
				if err != nil || last < first {
					return nil, fault.New(fault.Invalid, "invalid port specification: %q: it is a number up to 65535, or two of them with a dash", b.HostPort)
				}
				port.HostPort, port.HostEnd = uint16(first), uint16(last)
			}
			ports = append(ports, port)
		}
	}
	slices.SortFunc(ports, func(a, b portlayer.Port) int {
		if a.Port != b.Port {
			return int(a.Port) - int(b.Port)
		}
		if a.Proto != b.Proto {
			return strings.Compare(string(a.Proto), string(b.Proto))
		}
		return int(a.HostPort) - int(b.HostPort)
	})
	return ports, nil
}

// nets are the networks that containers may be on, by their ids.
type nets map[portlayer.NetworkID]portlayer.Network

// endpointID names a container's place on a network.
func endpointID(c portlayer.ContainerID, n portlayer.NetworkID) string {
	sum := sha256.Sum256([]byte(string(c) + " on " + string(n)))
	return hex.EncodeToString(sum[:])
}

// networksOf are the places that a container has on networks.
func networksOf(c portlayer.Container, all nets) map[string]*network.EndpointSettings {
	if len(c.Spec.Networks) == 0 {
		return map[string]*network.EndpointSettings{network.NetworkNone: {NetworkID: noneID()}}
	}
	places := map[string]*network.EndpointSettings{}
	for _, e := range c.Spec.Networks {
		p := &network.EndpointSettings{NetworkID: string(e.Network), Aliases: e.Aliases}
		if e.Address.IsValid() {
			p.IPAMConfig = &network.EndpointIPAMConfig{IPv4Address: e.Address}
		}
		n, there := all[e.Network]
		if there && n.Name != portlayer.DefaultNetwork {
			p.DNSNames = append([]string{c.Spec.Name}, e.Aliases...)
			for _, name := range []string{string(c.ID[:min(12, len(c.ID))]), c.Spec.Hostname} {
				if !slices.Contains(p.DNSNames, name) && name != "" {
					p.DNSNames = append(p.DNSNames, name)
				}
			}
		}
		if i := slices.IndexFunc(c.State.Links, func(l portlayer.Link) bool { return l.Network == e.Network }); i >= 0 {
			l := c.State.Links[i]
			p.EndpointID, p.IPAddress, p.MacAddress = endpointID(c.ID, e.Network), l.Address, macOf(l.MAC)
			if there {
				p.IPPrefixLen = n.Subnet.Bits()
				if !n.Internal {
					p.Gateway = n.Gateway
				}
			}
		}
		places[string(e.Name)] = p
	}
	return places
}

func macOf(text string) (mac network.HardwareAddr) {
	_ = mac.UnmarshalText([]byte(text))
	return mac
}

// portMap are a running container's ports: those that are published, and those that it exposes.
func portMap(c portlayer.Container, exposed network.PortSet) network.PortMap {
	ports := network.PortMap{}
	if !alive(c.State) {
		return ports
	}
	for p := range exposed {
		ports[p] = nil
	}
	for _, o := range c.State.Ports {
		if p, ok := network.PortFrom(o.Port, network.IPProtocol(o.Proto)); ok {
			ports[p] = append(ports[p], network.PortBinding{HostIP: o.HostIP, HostPort: strconv.Itoa(int(o.HostPort))})
		}
	}
	return ports
}

// portSummaries are the same as docker ps has them.
func portSummaries(c portlayer.Container, exposed network.PortSet) []container.PortSummary {
	all := []container.PortSummary{}
	for p, bindings := range portMap(c, exposed) {
		if len(bindings) == 0 {
			all = append(all, container.PortSummary{PrivatePort: p.Num(), Type: string(p.Proto())})
		}
		for _, b := range bindings {
			public, _ := strconv.ParseUint(b.HostPort, 10, 16)
			all = append(all, container.PortSummary{IP: b.HostIP, PrivatePort: p.Num(), PublicPort: uint16(public), Type: string(p.Proto())})
		}
	}
	slices.SortFunc(all, func(a, b container.PortSummary) int {
		if a.PrivatePort != b.PrivatePort {
			return int(a.PrivatePort) - int(b.PrivatePort)
		}
		if a.Type != b.Type {
			return strings.Compare(a.Type, b.Type)
		}
		return a.IP.Compare(b.IP)
	})
	return all
}

// settingsOf is a container's NetworkSettings.
func settingsOf(c portlayer.Container, exposed network.PortSet, all nets) networkSettings {
	s := networkSettings{Ports: portMap(c, exposed), Networks: networksOf(c, all)}
	if on := s.Networks[string(portlayer.DefaultNetwork)]; on != nil && on.IPAddress.IsValid() {
		s.EndpointID, s.Gateway, s.IPAddress, s.IPPrefixLen, s.MacAddress = on.EndpointID, text(on.Gateway), text(on.IPAddress), on.IPPrefixLen, on.MacAddress.String()
	}
	return s
}

// text is an address; "" for none.
func text(a netip.Addr) string {
	if !a.IsValid() {
		return ""
	}
	return a.String()
}
