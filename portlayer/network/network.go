// Package network is the network service: networks, addresses, names and published ports. It implements portlayer.Networks for doors and portlayer.Wiring for containers.
//
// What a network is made of is its backend's (portlayer.NetworkBackend); what the guest has of it, the tether makes. Between them is a cable for each running machine (cable.go): it
// says which networks a machine's frames come to. Addresses are given at a container's start and taken back at its end (addresses.go, wiring.go); names are answered here, to the
// guest that asks over its channel (names.go), so that they do not depend on a network that may reach nothing; ports are this host's, and lead through the backend into a
// network (publish.go).
package network

import (
	"context"
	"crypto/rand"
	"encoding/hex"
	"log/slog"
	"net"
	"net/netip"
	"slices"
	"strings"
	"sync"
	"time"

	"vch/internal/fault"
	"vch/portlayer"
	"vch/portlayer/record"
)

// Options is what a Service stands on.
type Options struct {
	DB      *record.DB
	Backend portlayer.NetworkBackend
	Reacher portlayer.Reacher // nil: machines reach what their networks let them, and nothing else
	Publish portlayer.Publish
	Log     *slog.Logger
	// Upstream answers a DNS message about a name that is nobody's here. servers are whom to ask; none: whom this host asks.
	Upstream func(ctx context.Context, servers []netip.Addr, query []byte) ([]byte, error)
	Hosts    func() []netip.Prefix // the subnets that this host is in; nil: it is asked
}

// Service implements portlayer.Networks and portlayer.Wiring.
type Service struct {
	o       Options
	records record.Table[portlayer.Network]

	changing sync.Mutex // held by whoever makes, removes or opens a network

	mu       sync.Mutex // guards below; never held across I/O
	networks map[portlayer.NetworkID]*segment
	wired    map[portlayer.ContainerID]*wired
	asked    map[portlayer.ContainerID][]portlayer.NetworkID // by the containers that are, running or not
}

// segment is a network, and what it is made of once it is used.
type segment struct {
	portlayer.Network
	open  portlayer.Segment // nil: nobody was on it yet
	last  netip.Addr        // that was given
	taken map[netip.Addr]portlayer.ContainerID
}

// New reads the records, and makes the default network where it is missing.
func New(ctx context.Context, o Options) (*Service, error) {
	if o.Hosts == nil {
		o.Hosts = hostSubnets
	}
	if o.Upstream == nil {
		o.Upstream = upstream
	}
	s := &Service{o: o, networks: map[portlayer.NetworkID]*segment{}, wired: map[portlayer.ContainerID]*wired{}, asked: map[portlayer.ContainerID][]portlayer.NetworkID{}}
	var err error
	if s.records, err = record.NewTable[portlayer.Network](o.DB, "networks"); err != nil {
		return nil, err
	}
	all, err := s.records.All()
	if err != nil {
		return nil, err
	}
	known := false
	for _, n := range all {
		s.networks[n.ID] = &segment{Network: n, taken: map[netip.Addr]portlayer.ContainerID{}}
		known = known || n.Name == portlayer.DefaultNetwork
	}
	if !known {
		if _, err := s.create(ctx, portlayer.NetworkRequest{Name: portlayer.DefaultNetwork}); err != nil {
			return nil, fault.Wrap("make the default network", "", err)
		}
	}
	return s, nil
}

// hostSubnets are the subnets of this host's addresses, but for its loopback's.
func hostSubnets() (all []netip.Prefix) {
	addresses, _ := net.InterfaceAddrs()
	for _, a := range addresses {
		if p, err := netip.ParsePrefix(a.String()); err == nil && p.Addr().Is4() && !p.Addr().IsLoopback() {
			all = append(all, p.Masked())
		}
	}
	return all
}

// Close takes every container off and closes what was opened. Containers go on; who comes next plugs them again.
func (s *Service) Close() error {
	s.mu.Lock()
	var ids []portlayer.ContainerID
	for id := range s.wired {
		ids = append(ids, id)
	}
	s.mu.Unlock()
	for _, id := range ids {
		s.Unplug(id)
	}
	s.changing.Lock()
	defer s.changing.Unlock()
	for _, n := range s.networks {
		if n.open != nil {
			if err := n.open.Close(); err != nil {
				s.o.Log.Warn("a network could not be closed", "network", string(n.Name), "err", err)
			}
		}
	}
	return s.o.Backend.Close()
}

// Create is portlayer.Networks.Create.
func (s *Service) Create(ctx context.Context, req portlayer.NetworkRequest) (portlayer.Network, error) {
	if err := checkName(req.Name); err != nil {
		return portlayer.Network{}, err
	}
	n, err := s.create(ctx, req)
	if err != nil {
		return portlayer.Network{}, err
	}
	s.publish("create", n, nil)
	s.o.Log.Info("network made", "network", string(n.Name), "subnet", n.Subnet.String(), "internal", n.Internal)
	return n, nil
}

func (s *Service) create(_ context.Context, req portlayer.NetworkRequest) (portlayer.Network, error) {
	s.changing.Lock()
	defer s.changing.Unlock()
	s.mu.Lock()
	taken := map[portlayer.NetworkName]netip.Prefix{}
	for _, n := range s.networks {
		taken[n.Name] = n.Subnet
	}
	s.mu.Unlock()
	if _, there := taken[req.Name]; there {
		return portlayer.Network{}, fault.New(fault.Conflict, "network with name %s already exists", req.Name)
	}
	n, err := planned(req, taken, s.o.Hosts())
	if err != nil {
		return n, err
	}
	var id [32]byte
	rand.Read(id[:]) // never fails (crypto/rand)
	n.ID, n.Created = portlayer.NetworkID(hex.EncodeToString(id[:])), time.Now().UTC()
	if err := s.records.Put(string(n.ID), n); err != nil {
		return n, err
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	s.networks[n.ID] = &segment{Network: n, taken: map[netip.Addr]portlayer.ContainerID{}}
	return n, nil
}

// find is the network that ref means. s.mu is held.
func (s *Service) find(ref string) (*segment, error) {
	var found []*segment
	for _, n := range s.networks {
		if string(n.ID) == ref || string(n.Name) == ref {
			return n, nil
		}
		if ref != "" && strings.HasPrefix(string(n.ID), ref) {
			found = append(found, n)
		}
	}
	switch len(found) {
	case 0:
		return nil, fault.New(fault.NotFound, "network %s not found", ref)
	case 1:
		return found[0], nil
	}
	return nil, fault.New(fault.Invalid, "network %s is ambiguous: %d networks have an id that begins so", ref, len(found))
}

// detail is a network with who is on it. s.mu is held.
func (s *Service) detail(n *segment) portlayer.NetworkDetail {
	d := portlayer.NetworkDetail{Network: n.Network}
	for id, w := range s.wired {
		for _, l := range w.links {
			if l.Network == n.ID {
				d.On = append(d.On, portlayer.NetworkMember{Container: id, Name: w.Name, Link: l})
			}
		}
	}
	slices.SortFunc(d.On, func(a, b portlayer.NetworkMember) int {
		return strings.Compare(string(a.Container), string(b.Container))
	})
	return d
}

// Get is portlayer.Networks.Get.
func (s *Service) Get(_ context.Context, ref string) (portlayer.NetworkDetail, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	n, err := s.find(ref)
	if err != nil {
		return portlayer.NetworkDetail{}, err
	}
	return s.detail(n), nil
}

// List is portlayer.Networks.List.
func (s *Service) List(context.Context) ([]portlayer.NetworkDetail, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	var all []portlayer.NetworkDetail
	for _, n := range s.networks {
		all = append(all, s.detail(n))
	}
	slices.SortFunc(all, func(a, b portlayer.NetworkDetail) int { return strings.Compare(string(a.Name), string(b.Name)) })
	return all, nil
}

// Remove is portlayer.Networks.Remove.
func (s *Service) Remove(_ context.Context, ref string) error {
	s.changing.Lock()
	defer s.changing.Unlock()
	s.mu.Lock()
	n, err := s.find(ref)
	if err == nil {
		err = s.removable(n)
	}
	s.mu.Unlock()
	if err != nil {
		return err
	}
	return s.remove(n)
}

// removable is an error where a network cannot be removed. s.mu is held.
func (s *Service) removable(n *segment) error {
	if n.Name == portlayer.DefaultNetwork {
		return fault.New(fault.Denied, "%s is a pre-defined network and cannot be removed", n.Name)
	}
	var names []string
	for _, m := range s.detail(n).On {
		names = append(names, m.Name)
	}
	if len(names) > 0 {
		return fault.New(fault.Denied, "error while removing network: network %s has active endpoints (%s): stop these containers, or take them off it (docker network disconnect)", n.Name, strings.Join(names, ", "))
	}
	return nil
}

// remove deletes a network that nobody is on. s.changing is held: nobody comes.
func (s *Service) remove(n *segment) error {
	if n.open != nil {
		if err := n.open.Close(); err != nil {
			return err
		}
	}
	s.mu.Lock()
	n.open = nil
	s.mu.Unlock()
	if err := s.records.Delete(string(n.ID)); err != nil {
		return err
	}
	s.mu.Lock()
	delete(s.networks, n.ID)
	s.mu.Unlock()
	s.publish("destroy", n.Network, nil)
	s.o.Log.Info("network removed", "network", string(n.Name))
	return nil
}

// Prune is portlayer.Networks.Prune.
func (s *Service) Prune(_ context.Context, pick func(portlayer.Network) bool) ([]portlayer.Network, error) {
	s.changing.Lock()
	defer s.changing.Unlock()
	s.mu.Lock()
	wanted := map[portlayer.NetworkID]bool{}
	for _, ids := range s.asked {
		for _, id := range ids {
			wanted[id] = true
		}
	}
	var gone []*segment
	for _, n := range s.networks {
		if !wanted[n.ID] && s.removable(n) == nil && pick(n.Network) {
			gone = append(gone, n)
		}
	}
	s.mu.Unlock()
	slices.SortFunc(gone, func(a, b *segment) int { return strings.Compare(string(a.Name), string(b.Name)) })
	var removed []portlayer.Network
	for _, n := range gone {
		if err := s.remove(n); err != nil {
			return removed, err
		}
		removed = append(removed, n.Network)
	}
	s.o.Publish(portlayer.Event{Time: time.Now(), Noun: "network", Verb: "prune", Attrs: map[string]string{"reclaimed": "0"}})
	return removed, nil
}

func (s *Service) publish(verb string, n portlayer.Network, more map[string]string) {
	attrs := map[string]string{"name": string(n.Name)}
	for k, v := range more {
		attrs[k] = v
	}
	s.o.Publish(portlayer.Event{Time: time.Now(), Noun: "network", Verb: verb, ID: string(n.ID), Attrs: attrs})
}
