package personality

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"net/http"
	"net/netip"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/moby/moby/api/types/network"

	"vch/internal/fault"
	"vch/portlayer"
)

// The drivers that Docker's clients know: that of every network here, and that of the network "none", which is a container's that is on none.
const (
	bridgeDriver = "bridge"
	nullDriver   = "null"
)

// networkDoor is what the personality keeps with a network, to show it back.
type networkDoor struct {
	Attachable bool                  `json:",omitempty"`
	Options    map[string]string     `json:",omitempty"`
	Reserved   map[string]netip.Addr `json:",omitempty"`
}

// noneID is the id of the network "none", the same in every VCH.
func noneID() string {
	sum := sha256.Sum256([]byte("vch network none"))
	return hex.EncodeToString(sum[:])
}

func none() network.Inspect {
	return network.Inspect{Network: network.Network{
		Name: network.NetworkNone, ID: noneID(), Created: time.Unix(0, 0).UTC(), Scope: "local", Driver: nullDriver, EnableIPv4: true,
		IPAM: network.IPAM{Driver: "default", Options: map[string]string{}, Config: []network.IPAMConfig{}}, Options: map[string]string{}, Labels: map[string]string{},
	}, Containers: map[string]network.EndpointResource{}}
}

// showNetwork is a network as inspect has it.
func showNetwork(d portlayer.NetworkDetail) network.Inspect {
	var kept networkDoor
	if len(d.Door) > 0 {
		_ = json.Unmarshal(d.Door, &kept) // another door's says nothing here
	}
	n := network.Inspect{Network: network.Network{
		Name: string(d.Name), ID: string(d.ID), Created: d.Created, Scope: "local", Driver: bridgeDriver, EnableIPv4: true, Internal: d.Internal, Attachable: kept.Attachable,
		IPAM:    network.IPAM{Driver: "default", Options: map[string]string{}, Config: []network.IPAMConfig{{Subnet: d.Subnet, IPRange: d.Range, Gateway: d.Gateway, AuxAddress: kept.Reserved}}},
		Options: kept.Options, Labels: d.Labels,
	}, Containers: map[string]network.EndpointResource{}}
	if n.Options == nil {
		n.Options = map[string]string{}
	}
	if n.Labels == nil {
		n.Labels = map[string]string{}
	}
	for _, m := range d.On {
		n.Containers[string(m.Container)] = network.EndpointResource{
			Name: m.Name, EndpointID: endpointID(m.Container, d.ID), MacAddress: macOf(m.Link.MAC), IPv4Address: netip.PrefixFrom(m.Link.Address, d.Subnet.Bits()),
		}
	}
	return n
}

// isBuiltin reports whether a network was there from the start.
func isBuiltin(name string) bool {
	return name == network.NetworkNone || name == string(portlayer.DefaultNetwork)
}

// networks are all that there are, those that are built in included, and those that no container is on.
func (s *Server) networks(ctx context.Context) ([]network.Inspect, error) {
	all := []network.Inspect{none()}
	details, err := s.Networks.List(ctx)
	for _, d := range details {
		all = append(all, showNetwork(d))
	}
	slices.SortFunc(all, func(a, b network.Inspect) int { return strings.Compare(a.Name, b.Name) })
	return all, err
}

// nets are the networks as containers are shown with them.
func (s *Server) nets(ctx context.Context) (nets, error) {
	details, err := s.Networks.List(ctx)
	all := nets{}
	for _, d := range details {
		all[d.ID] = d.Network
	}
	return all, err
}

// networkList answers docker network ls.
func (s *Server) networkList(w http.ResponseWriter, r *http.Request) error {
	f, err := filtersOf(r)
	if err == nil {
		err = f.only("dangling", "driver", "id", "label", "name", "scope", "type")
	}
	if err != nil {
		return err
	}
	all, err := s.networks(r.Context())
	if err != nil {
		return err
	}
	found := []network.Inspect{}
	for _, n := range all {
		if networkMatches(f, n) {
			n.Containers = map[string]network.EndpointResource{}
			found = append(found, n)
		}
	}
	return writeJSON(w, http.StatusOK, found)
}

// networkMatches reports whether a network passes f. One that is built in is neither custom nor dangling.
func networkMatches(f filters, n network.Inspect) bool {
	any := func(key string, ok func(string) bool) bool {
		return len(f[key]) == 0 || slices.ContainsFunc(f[key], ok)
	}
	is := func(text string) func(string) bool { return func(v string) bool { return v == text } }
	kind := "custom"
	if isBuiltin(n.Name) {
		kind = "builtin"
	}
	dangling := kind == "custom" && len(n.Containers) == 0
	return any("name", func(v string) bool { return strings.Contains(n.Name, v) }) &&
		any("id", func(v string) bool { return strings.HasPrefix(n.ID, v) }) &&
		any("driver", is(n.Driver)) && any("scope", is(n.Scope)) && any("type", is(kind)) &&
		any("dangling", func(v string) bool { on, err := strconv.ParseBool(v); return err == nil && on == dangling }) && f.labels(n.Labels)
}

// networkInspect answers docker network inspect.
func (s *Server) networkInspect(w http.ResponseWriter, r *http.Request) error {
	ref := r.PathValue("id")
	if isNone(ref) {
		return writeJSON(w, http.StatusOK, none())
	}
	d, err := s.Networks.Get(r.Context(), ref)
	if err != nil {
		return err
	}
	return writeJSON(w, http.StatusOK, showNetwork(d))
}

// isNone reports whether a reference is to the network "none": by its name, or by so much of its id that it is no other's.
func isNone(ref string) bool {
	return ref == network.NetworkNone || len(ref) >= 12 && strings.HasPrefix(noneID(), ref)
}

// networkCreate answers docker network create.
func (s *Server) networkCreate(w http.ResponseWriter, r *http.Request) error {
	var req network.CreateRequest
	if err := decodeJSON(r, &req); err != nil {
		return err
	}
	ask, err := networkOf(req)
	if err != nil {
		return err
	}
	n, err := s.Networks.Create(r.Context(), ask)
	if err != nil {
		return err
	}
	return writeJSON(w, http.StatusCreated, network.CreateResponse{ID: string(n.ID)})
}

// The options of Docker's bridge driver that have a meaning here, and the values with which others change nothing.
const mtuOption = "com.docker.network.driver.mtu"

var defaultOptions = map[string]string{
	"com.docker.network.bridge.enable_icc": "true", "com.docker.network.bridge.enable_ip_masquerade": "true", "com.docker.network.bridge.host_binding_ipv4": "0.0.0.0",
	"com.docker.network.bridge.default_bridge": "false", "com.docker.network.bridge.gateway_mode_ipv4": "nat",
}

// networkOf is what a request to make a network means.
func networkOf(req network.CreateRequest) (portlayer.NetworkRequest, error) {
	ask := portlayer.NetworkRequest{Name: portlayer.NetworkName(req.Name), Internal: req.Internal, Labels: req.Labels}
	ipam := req.IPAM
	if ipam == nil {
		ipam = &network.IPAM{}
	}
	if err := first([]refusal{
		{req.Driver != "" && req.Driver != bridgeDriver && req.Driver != "default", "Driver", "--driver " + req.Driver, "a network is one of this VCH's own; use bridge, or leave the option out"},
		{req.Scope != "" && req.Scope != "local", "Scope", "--scope", "a network is this VCH's alone"},
		{req.EnableIPv6 != nil && *req.EnableIPv6, "EnableIPv6", "--ipv6", noIPv6},
		{req.EnableIPv4 != nil && !*req.EnableIPv4, "EnableIPv4", "--ipv4=false", noIPv6},
		{req.Ingress, "Ingress", "--ingress", "there is no swarm"},
		{req.ConfigOnly, "ConfigOnly", "--config-only", "there is no swarm"},
		{req.ConfigFrom != nil && req.ConfigFrom.Network != "", "ConfigFrom", "--config-from", "there is no swarm"},
		{ipam.Driver != "" && ipam.Driver != "default", "IPAM.Driver", "--ipam-driver " + ipam.Driver, "vch gives the addresses itself"},
		{len(ipam.Options) > 0, "IPAM.Options", "--ipam-opt", "vch gives the addresses itself"},
		{len(ipam.Config) > 1, "IPAM.Config", "--subnet", "a network has one subnet"},
	}); err != nil {
		return ask, err
	}
	kept := networkDoor{Attachable: req.Attachable, Options: req.Options}
	if len(ipam.Config) == 1 {
		c := ipam.Config[0]
		ask.Subnet, ask.Gateway, ask.Range, kept.Reserved = c.Subnet, c.Gateway, c.IPRange, c.AuxAddress
		for _, a := range c.AuxAddress {
			ask.Reserved = append(ask.Reserved, a)
		}
		slices.SortFunc(ask.Reserved, netip.Addr.Compare)
	}
	for key, value := range req.Options {
		if key == mtuOption {
			mtu, err := strconv.Atoi(value)
			if err != nil || mtu == 0 {
				return ask, fault.New(fault.Invalid, "option %s=%s: it takes a number of bytes", key, value)
			}
			ask.MTU = mtu
		} else if usual, known := defaultOptions[key]; !known || value != usual {
			return ask, refused("Options", "--opt "+key+"="+value, "of a network's options there is "+mtuOption+" only")
		}
	}
	var err error
	if ask.Door, err = json.Marshal(kept); err != nil {
		return ask, fault.New(fault.Internal, "the network's configuration cannot be kept: %w", err)
	}
	return ask, nil
}

// networkRemove answers docker network rm.
func (s *Server) networkRemove(w http.ResponseWriter, r *http.Request) error {
	ref := r.PathValue("id")
	if isNone(ref) {
		return fault.New(fault.Denied, "none is a pre-defined network and cannot be removed")
	}
	if err := s.Networks.Remove(r.Context(), ref); err != nil {
		return err
	}
	w.WriteHeader(http.StatusNoContent)
	return nil
}

// networkConnect answers docker network connect.
func (s *Server) networkConnect(w http.ResponseWriter, r *http.Request) error {
	var req network.ConnectRequest
	if err := decodeJSON(r, &req); err != nil {
		return err
	}
	ref := r.PathValue("id")
	if isNone(ref) {
		return fault.New(fault.Denied, "a container that is on network none is on no other, and cannot come to it: disconnect it from what it is on")
	}
	n, err := s.Networks.Get(r.Context(), ref)
	if err != nil {
		return err
	}
	e := portlayer.Endpoint{Name: n.Name}
	if req.EndpointConfig != nil {
		if e, err = endpointOf(n.Name, req.EndpointConfig); err != nil {
			return err
		}
	}
	e.Network = n.ID
	if err := s.Containers.ConnectNetwork(r.Context(), req.Container, e); err != nil {
		return err
	}
	w.WriteHeader(http.StatusOK)
	return nil
}

// networkDisconnect answers docker network disconnect.
func (s *Server) networkDisconnect(w http.ResponseWriter, r *http.Request) error {
	var req network.DisconnectRequest
	if err := decodeJSON(r, &req); err != nil {
		return err
	}
	ref := r.PathValue("id")
	if n, err := s.Networks.Get(r.Context(), ref); err == nil {
		ref = string(n.ID)
	} else if !req.Force {
		return err
	}
	err := s.Containers.DisconnectNetwork(r.Context(), req.Container, ref)
	if err != nil && (!req.Force || !fault.Is(err, fault.NotFound)) {
		return err
	}
	w.WriteHeader(http.StatusOK)
	return nil
}

// networkPrune answers docker network prune: what is built in is never removed.
func (s *Server) networkPrune(w http.ResponseWriter, r *http.Request) error {
	f, err := filtersOf(r)
	if err == nil {
		err = f.only("label", "label!", "until")
	}
	if err != nil {
		return err
	}
	before, err := f.until(time.Now())
	if err != nil {
		return err
	}
	gone, err := s.Networks.Prune(r.Context(), func(n portlayer.Network) bool {
		return f.labels(n.Labels) && (before.IsZero() || n.Created.Before(before))
	})
	if err != nil && len(gone) == 0 {
		return err
	}
	report := network.PruneReport{NetworksDeleted: []string{}}
	for _, n := range gone {
		report.NetworksDeleted = append(report.NetworksDeleted, string(n.Name))
	}
	return writeJSON(w, http.StatusOK, report)
}
