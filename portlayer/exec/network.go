package exec

import (
	"context"
	"net/netip"
	"slices"
	"strings"

	"vch/guest"
	"vch/internal/fault"
	"vch/portlayer"
)

// wants is what the network service has to know of a container.
func wants(c portlayer.ContainerID, spec portlayer.ContainerSpec) (portlayer.Wired, error) {
	w := portlayer.Wired{Container: c, Name: spec.Name, Networks: spec.Networks, Ports: spec.Ports}
	for _, text := range spec.DNS {
		a, err := netip.ParseAddr(text)
		if err != nil {
			return w, fault.New(fault.Invalid, "%s is not an IP address of a name server", text)
		}
		w.DNS = append(w.DNS, a)
	}
	w.ToHost = slices.ContainsFunc(spec.ExtraHosts, func(line string) bool { return strings.HasSuffix(line, ":"+portlayer.HostGateway) })
	return w, nil
}

// plug gives the container of h its networks, and h's config what its guest has of them. Owner only.
func (u *unit) plug(ctx context.Context, h *portlayer.Handle) (got portlayer.Plugged, err error) {
	s, spec := u.s, u.c.Spec
	if s.o.Wiring == nil {
		return got, s.unlinked(h)
	}
	w, err := wants(u.c.ID, spec)
	if err != nil {
		return got, err
	}
	w.Reaches = h.Reaches
	if got, err = s.o.Wiring.Plug(ctx, w); err != nil {
		return got, err
	}
	h.Config.Network = s.o.Wiring.Config(u.c.ID)
	for i, f := range h.Config.Files {
		switch f.Path {
		case "/etc/hosts":
			h.Config.Files[i].Content = hostsFile(spec, h.Config.Network)
		case "/etc/resolv.conf":
			h.Config.Files[i].Content = resolvFile(spec, h.Config.Network.Resolver)
		}
	}
	return got, nil
}

// unplug takes the container off its networks. Owner only.
func (u *unit) unplug() {
	if u.s.o.Wiring != nil {
		u.s.o.Wiring.Unplug(u.c.ID)
	}
}

// replug gives a container that was found running what it had. Owner only.
func (u *unit) replug(ctx context.Context) {
	s := u.s
	if s.o.Wiring == nil {
		return
	}
	w, err := wants(u.c.ID, u.c.Spec)
	if err == nil {
		w.Reaches = u.c.State.Reaches // as recorded: the stores that asked for it may be away now
		err = s.o.Wiring.Replug(ctx, w, portlayer.Plugged{Links: u.c.State.Links, Ports: u.c.State.Ports})
	}
	if err != nil {
		s.o.Log.Warn("a container's network is not again what it was", "container", short(u.c.ID), "name", u.c.Spec.Name, "err", err)
	}
}

// unlinked refuses a handle whose machine has to reach something, where there is nothing to reach it by.
func (s *Service) unlinked(h *portlayer.Handle) error {
	if len(h.Reaches) > 0 && s.o.Wiring == nil {
		return fault.New(fault.Unsupported, "this VCH has no networks, by which its machines could reach the servers of volumes")
	}
	return nil
}

// link has a machine in which no container runs reach what h says, and h's config have that, until the end that it returns.
func (s *Service) link(ctx context.Context, h *portlayer.Handle, who string) (end func(), err error) {
	if len(h.Reaches) == 0 || s.o.Wiring == nil {
		return func() {}, s.unlinked(h)
	}
	if _, err := s.o.Wiring.Plug(ctx, portlayer.Wired{Container: h.Container, Name: who, Reaches: h.Reaches}); err != nil {
		return nil, err
	}
	h.Config.Network = s.o.Wiring.Config(h.Container)
	return func() { s.o.Wiring.Unplug(h.Container) }, nil
}

// relink has a running container, and its guest, reach what rs say, and nothing else. Owner only.
func (u *unit) relink(ctx context.Context, client *guest.Client, rs []portlayer.Reach) error {
	s := u.s
	if s.o.Wiring == nil || len(rs) == 0 && len(u.c.State.Reaches) == 0 {
		return s.unlinked(&portlayer.Handle{Reaches: rs})
	}
	if err := s.o.Wiring.Reach(u.c.ID, rs); err != nil {
		return err
	}
	return client.SetNetwork(ctx, s.o.Wiring.Config(u.c.ID))
}

// both are what is in one of two.
func both(a, b []portlayer.Reach) []portlayer.Reach {
	h := &portlayer.Handle{Reaches: slices.Clone(a)}
	for _, r := range b {
		h.AddReach(r)
	}
	return h.Reaches
}

// asker answers the guest of a container.
type asker struct {
	s  *Service
	id portlayer.ContainerID
}

// Resolve is guest.Asker.Resolve.
func (a asker) Resolve(ctx context.Context, query []byte) ([]byte, error) {
	return a.s.o.Wiring.Resolve(ctx, a.id, query)
}

// wire joins the frames of a machine that is on to the networks of its container, or what else it was plugged for, and answers its guest.
func (s *Service) wire(ctx context.Context, m portlayer.Machine, client *guest.Client) error {
	if s.o.Wiring == nil {
		return nil
	}
	client.Answer(asker{s, m.ID()})
	frames, err := m.Frames(ctx)
	if err != nil {
		return err
	}
	s.o.Wiring.Connect(m.ID(), frames)
	return nil
}

// ConnectNetwork is portlayer.Containers.ConnectNetwork.
func (s *Service) ConnectNetwork(ctx context.Context, ref string, e portlayer.Endpoint) error {
	return s.rewire(ctx, ref, func(ctx context.Context, u *unit) ([]portlayer.Endpoint, error) {
		had := u.c.Spec.Networks
		if slices.ContainsFunc(had, func(h portlayer.Endpoint) bool { return h.Network == e.Network }) {
			return nil, fault.New(fault.Denied, "endpoint with name %s already exists in network %s", u.c.Spec.Name, e.Name)
		}
		all, err := s.o.Wiring.Refer(ctx, u.c.ID, append(slices.Clone(had), e))
		if err != nil || u.run == nil {
			return all, err
		}
		if _, err := s.o.Wiring.Add(ctx, u.c.ID, all[len(all)-1]); err != nil {
			s.o.Wiring.Recall(u.c.ID, had)
			return nil, err
		}
		return all, nil
	})
}

// DisconnectNetwork is portlayer.Containers.DisconnectNetwork.
func (s *Service) DisconnectNetwork(ctx context.Context, ref, network string) error {
	return s.rewire(ctx, ref, func(ctx context.Context, u *unit) ([]portlayer.Endpoint, error) {
		i := slices.IndexFunc(u.c.Spec.Networks, func(e portlayer.Endpoint) bool { return string(e.Name) == network || string(e.Network) == network })
		if i < 0 {
			return nil, fault.New(fault.NotFound, "container %s is not connected to network %s", u.c.Spec.Name, network)
		}
		e := u.c.Spec.Networks[i]
		if u.run != nil {
			if err := s.o.Wiring.Drop(ctx, u.c.ID, e.Network); err != nil && !fault.Is(err, fault.NotFound) {
				return nil, err
			}
		}
		all := slices.Delete(slices.Clone(u.c.Spec.Networks), i, i+1)
		s.o.Wiring.Recall(u.c.ID, all)
		return all, nil
	})
}

// rewire changes a container's networks, at once in its guest if it runs, and records that.
func (s *Service) rewire(ctx context.Context, ref string, change func(context.Context, *unit) ([]portlayer.Endpoint, error)) error {
	u, err := s.find(ref)
	if err != nil {
		return err
	}
	return u.alone(ctx, func() error {
		ctx, cancel := context.WithTimeout(s.ctx, changeLimit)
		defer cancel()
		if s.o.Wiring == nil {
			return fault.New(fault.Unsupported, "this VCH has no networks")
		}
		if u.run != nil && u.run.isPaused() {
			return errPaused
		}
		all, err := change(ctx, u)
		if err != nil {
			return err
		}
		if u.run != nil {
			client, err := u.run.talk(ctx)
			if err == nil {
				err = client.SetNetwork(ctx, s.o.Wiring.Config(u.c.ID))
			}
			if err != nil { // the record says what is wanted, and the next start does it
				s.o.Log.Warn("a running container's interfaces are not yet what its networks are", "container", short(u.c.ID), "name", u.c.Spec.Name, "err", err)
			}
		}
		return u.save(func(c *portlayer.Container) {
			c.Spec.Networks = all
			if u.run != nil {
				c.State.Links = s.o.Wiring.Links(c.ID)
			}
		})
	})
}
