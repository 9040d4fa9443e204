package network

import (
	"context"
	"net"
	"net/netip"
	"slices"
	"strconv"

	"vch/guest"
	"vch/internal/fault"
	"vch/internal/undo"
	"vch/portlayer"
)

// wired is a container that is plugged.
type wired struct {
	portlayer.Wired
	cable *cable
	links []portlayer.Link // in the order in which it came to them
	as    map[portlayer.NetworkID]portlayer.Endpoint
	ports []*publication
	reach portlayer.ReachLink // nil: it has to reach nothing
}

// defaultMTU is what a card carries, in bytes.
const defaultMTU = 1500

// mostLinks is how many networks one container can be on.
const mostLinks = 64

// Refer is portlayer.Wiring.Refer.
func (s *Service) Refer(_ context.Context, c portlayer.ContainerID, es []portlayer.Endpoint) ([]portlayer.Endpoint, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if len(es) > mostLinks {
		return nil, fault.New(fault.Invalid, "a container can be on %d networks, and %d were asked for", mostLinks, len(es))
	}
	es = slices.Clone(es)
	var ids []portlayer.NetworkID
	for i, e := range es {
		ref := string(e.Network)
		if ref == "" {
			ref = string(e.Name)
		}
		n, err := s.find(ref)
		if err != nil {
			return nil, err
		}
		if slices.Contains(ids, n.ID) {
			return nil, fault.New(fault.Invalid, "network %s is asked for twice", n.Name)
		}
		if e.MAC != "" {
			if es[i].MAC, err = checkCard(e.MAC); err != nil {
				return nil, err
			}
		}
		if e.Address.IsValid() {
			if n.Name == portlayer.DefaultNetwork {
				return nil, fault.New(fault.Invalid, "user specified IP address is supported on user defined networks only")
			}
			if _, err := pick(n.Network, e.Address, netip.Addr{}, func(netip.Addr) bool { return false }); err != nil {
				return nil, err
			}
		}
		if len(e.Aliases) > 0 && n.Name == portlayer.DefaultNetwork {
			return nil, fault.New(fault.Invalid, "network-scoped alias is supported only for containers in user defined networks")
		}
		es[i].Network, es[i].Name = n.ID, n.Name
		ids = append(ids, n.ID)
	}
	s.asked[c] = ids
	return es, nil
}

// Recall is portlayer.Wiring.Recall.
func (s *Service) Recall(c portlayer.ContainerID, es []portlayer.Endpoint) {
	s.mu.Lock()
	defer s.mu.Unlock()
	var ids []portlayer.NetworkID
	for _, e := range es {
		ids = append(ids, e.Network)
	}
	s.asked[c] = ids
}

// Links is portlayer.Wiring.Links.
func (s *Service) Links(c portlayer.ContainerID) []portlayer.Link {
	s.mu.Lock()
	defer s.mu.Unlock()
	if w := s.wired[c]; w != nil {
		return slices.Clone(w.links)
	}
	return nil
}

// Release is portlayer.Wiring.Release.
func (s *Service) Release(c portlayer.ContainerID) {
	s.mu.Lock()
	defer s.mu.Unlock()
	delete(s.asked, c)
}

// Plug is portlayer.Wiring.Plug.
func (s *Service) Plug(ctx context.Context, w portlayer.Wired) (portlayer.Plugged, error) {
	p, err := s.plug(ctx, w, nil)
	if err != nil {
		return portlayer.Plugged{}, err
	}
	return p, nil
}

// Replug is portlayer.Wiring.Replug.
func (s *Service) Replug(ctx context.Context, w portlayer.Wired, had portlayer.Plugged) error {
	_, err := s.plug(ctx, w, &had)
	return err
}

// plug makes a container wired. With had it gets what that says, and a port that cannot be opened is an error beside the rest.
func (s *Service) plug(ctx context.Context, want portlayer.Wired, had *portlayer.Plugged) (got portlayer.Plugged, err error) {
	w := &wired{Wired: want, cable: newCable(), as: map[portlayer.NetworkID]portlayer.Endpoint{}}
	s.mu.Lock()
	if s.wired[want.Container] != nil {
		s.mu.Unlock()
		return got, fault.New(fault.Internal, "container %s is on its networks already", want.Name)
	}
	s.wired[want.Container] = w
	s.mu.Unlock()
	var back undo.Stack
	defer func() {
		if err != nil && had == nil {
			_ = back.Run(ctx)
		}
	}()
	back.Push(func(context.Context) error { s.Unplug(want.Container); return nil })
	if err := s.reach(w, want.Reaches); err != nil { // first: what is wrong with a network is not to take a volume's server away
		return got, err
	}
	for _, e := range want.Networks {
		wish := portlayer.Link{Address: e.Address, MAC: e.MAC}
		if had != nil {
			i := slices.IndexFunc(had.Links, func(l portlayer.Link) bool { return l.Network == e.Network })
			if i < 0 {
				continue
			}
			wish = had.Links[i]
		}
		if _, err := s.join(ctx, w, e, wish); err != nil {
			return got, err
		}
	}
	if had != nil {
		err = s.open(w, again(had.Ports))
	} else {
		err = s.open(w, want.Ports)
	}
	s.mu.Lock()
	got.Links = slices.Clone(w.links)
	s.mu.Unlock()
	for _, p := range w.ports {
		got.Ports = append(got.Ports, p.Published)
	}
	return got, err
}

// Reach is portlayer.Wiring.Reach.
func (s *Service) Reach(c portlayer.ContainerID, rs []portlayer.Reach) error {
	s.mu.Lock()
	w := s.wired[c]
	s.mu.Unlock()
	if w == nil {
		return fault.New(fault.Conflict, "the container does not run")
	}
	s.changing.Lock()
	defer s.changing.Unlock()
	return s.reach(w, rs)
}

// reach has a container reach services. Its link is made with the first, and stays: the guest has it.
func (s *Service) reach(w *wired, rs []portlayer.Reach) error {
	s.mu.Lock()
	link := w.reach
	s.mu.Unlock()
	if link == nil && len(rs) == 0 {
		return nil
	}
	if link == nil {
		if s.o.Reacher == nil {
			return fault.New(fault.Unsupported, "machines of this VCH reach no servers of volumes")
		}
		err := w.cable.plug(storageTag, func(deliver func([]byte)) (_ portlayer.Card, err error) {
			link, err = s.o.Reacher.Open(deliver)
			return link, err
		})
		if err != nil {
			return fault.Wrap("make the storage link of", w.Name, err)
		}
		s.mu.Lock()
		w.reach = link
		s.mu.Unlock()
	}
	link.Allow(rs)
	return nil
}

// join puts a container on one network. wish has what it asks for; zero members are chosen.
func (s *Service) join(ctx context.Context, w *wired, e portlayer.Endpoint, wish portlayer.Link) (portlayer.Link, error) {
	none := portlayer.Link{}
	s.changing.Lock()
	defer s.changing.Unlock()
	s.mu.Lock()
	n := s.networks[e.Network]
	s.mu.Unlock()
	if n == nil {
		return none, fault.New(fault.NotFound, "network %s not found: it was removed; take the container off it (docker network disconnect), or make it anew and connect to it", e.Name)
	}
	if n.open == nil {
		open, err := s.o.Backend.Open(ctx, n.Network)
		if err != nil {
			return none, fault.Wrap("open network", string(n.Name), err)
		}
		s.mu.Lock()
		n.open = open
		s.mu.Unlock()
	}
	s.mu.Lock()
	address, err := pick(n.Network, wish.Address, n.last, func(a netip.Addr) bool { _, taken := n.taken[a]; return taken })
	if err == nil {
		n.taken[address] = w.Container
		if !wish.Address.IsValid() {
			n.last = address
		}
	}
	if wish.Tag == 0 {
		wish.Tag = freeTag(w.links)
	}
	s.mu.Unlock()
	if err != nil {
		return none, err
	}
	link := portlayer.Link{Network: n.ID, Address: address, MAC: wish.MAC, Tag: wish.Tag}
	if link.MAC == "" {
		link.MAC = cardOf(address)
	}
	mac, err := net.ParseMAC(link.MAC)
	if err == nil {
		err = w.cable.plug(link.Tag, func(deliver func([]byte)) (portlayer.Card, error) {
			return n.open.Attach(mac, address, w.ToHost, deliver)
		})
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if err != nil {
		delete(n.taken, address)
		return none, fault.Wrap("connect to network", string(n.Name), err)
	}
	w.links = append(w.links, link)
	w.as[n.ID] = e
	s.publish("connect", n.Network, map[string]string{"container": string(w.Container), "type": "bridge"})
	return link, nil
}

// freeTag is the least tag that none of links has.
func freeTag(links []portlayer.Link) uint16 {
	for tag := uint16(1); ; tag++ {
		if !slices.ContainsFunc(links, func(l portlayer.Link) bool { return l.Tag == tag }) {
			return tag
		}
	}
}

// Connect is portlayer.Wiring.Connect.
func (s *Service) Connect(c portlayer.ContainerID, frames net.Conn) {
	s.mu.Lock()
	w := s.wired[c]
	s.mu.Unlock()
	if w == nil {
		frames.Close()
		return
	}
	w.cable.connect(frames)
}

// Add is portlayer.Wiring.Add.
func (s *Service) Add(ctx context.Context, c portlayer.ContainerID, e portlayer.Endpoint) (portlayer.Link, error) {
	s.mu.Lock()
	w := s.wired[c]
	there := w != nil && slices.ContainsFunc(w.links, func(l portlayer.Link) bool { return l.Network == e.Network })
	full := w != nil && len(w.links) >= mostLinks
	s.mu.Unlock()
	switch {
	case w == nil:
		return portlayer.Link{}, fault.New(fault.Conflict, "the container does not run")
	case there:
		return portlayer.Link{}, fault.New(fault.Denied, "endpoint with name %s already exists in network %s", w.Name, e.Name)
	case full:
		return portlayer.Link{}, fault.New(fault.Invalid, "a container can be on %d networks", mostLinks)
	}
	return s.join(ctx, w, e, portlayer.Link{Address: e.Address, MAC: e.MAC})
}

// Drop is portlayer.Wiring.Drop.
func (s *Service) Drop(_ context.Context, c portlayer.ContainerID, id portlayer.NetworkID) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	w := s.wired[c]
	if w == nil {
		return fault.New(fault.Conflict, "the container does not run")
	}
	i := slices.IndexFunc(w.links, func(l portlayer.Link) bool { return l.Network == id })
	if i < 0 {
		return fault.New(fault.NotFound, "container %s is not connected to the network", w.Name)
	}
	s.leave(w, w.links[i])
	w.links = slices.Delete(w.links, i, i+1)
	return nil
}

// leave takes a container off one network. s.mu is held.
func (s *Service) leave(w *wired, l portlayer.Link) {
	w.cable.unplug(l.Tag)
	delete(w.as, l.Network)
	if n := s.networks[l.Network]; n != nil {
		delete(n.taken, l.Address)
		s.publish("disconnect", n.Network, map[string]string{"container": string(w.Container), "type": "bridge"})
	}
}

// Rename is portlayer.Wiring.Rename.
func (s *Service) Rename(c portlayer.ContainerID, name string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if w := s.wired[c]; w != nil {
		w.Name = name
	}
}

// Unplug is portlayer.Wiring.Unplug.
func (s *Service) Unplug(c portlayer.ContainerID) {
	s.mu.Lock()
	w := s.wired[c]
	delete(s.wired, c)
	s.mu.Unlock()
	if w == nil {
		return
	}
	for _, p := range w.ports {
		p.close()
	}
	s.mu.Lock()
	for _, l := range w.links {
		s.leave(w, l)
	}
	s.mu.Unlock()
	w.cable.close()
}

// Config is portlayer.Wiring.Config.
func (s *Service) Config(c portlayer.ContainerID) guest.Network {
	s.mu.Lock()
	defer s.mu.Unlock()
	w := s.wired[c]
	if w == nil {
		return guest.Network{}
	}
	cfg := guest.Network{Resolver: len(w.links) > 0}
	if w.reach != nil {
		i := w.reach.Interface()
		i.Tag = storageTag
		cfg.Storage = &i
	}
	out := s.way(w)
	for _, l := range w.links {
		n := s.networks[l.Network]
		i := guest.Interface{Name: "eth" + strconv.Itoa(int(l.Tag)-1), Tag: l.Tag, MAC: l.MAC, Address: netip.PrefixFrom(l.Address, n.Subnet.Bits()).String(), MTU: n.MTU}
		if i.MTU == 0 {
			i.MTU = defaultMTU
		}
		if l == out {
			i.Gateway = n.Gateway.String()
		}
		cfg.Interfaces = append(cfg.Interfaces, i)
	}
	return cfg
}

// way is the link by which a container comes to the outside, and its ports are reached: its first that is not internal. s.mu is held.
func (s *Service) way(w *wired) portlayer.Link {
	for _, l := range w.links {
		if n := s.networks[l.Network]; n != nil && !n.Internal {
			return l
		}
	}
	return portlayer.Link{}
}
