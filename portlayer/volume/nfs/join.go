package nfs

import (
	"context"
	"fmt"
	"net/netip"
	"strconv"
	"strings"

	"crypto/sha256"

	"github.com/docker/go-units"

	"vch/guest"
	"vch/internal/fault"
	"vch/portlayer"
)

// Where a guest finds a server on its link: at an address made of the server's name and port, at the ports that are NFS's and mountd's own, whatever the server's are.
const (
	guestPort      = 2049
	guestMountPort = 20048
)

// virtual is the address that stands for a server on a machine's link. It lies in 10.0.0.0/8, of which nothing else is on the link.
func (l Location) virtual() netip.Addr {
	sum := sha256.Sum256([]byte(fmt.Sprintf("%s %s %d %d", l.Options.Proto, l.Host, l.Port, l.Options.MountPort)))
	return netip.AddrFrom4([4]byte{10, sum[0], sum[1], 1 + sum[2]%254})
}

// source is what a guest calls a directory below the export.
func (l Location) source(dir string) guest.Source {
	host := l.Host
	if strings.Contains(host, ":") {
		host = "[" + host + "]"
	}
	return fmt.Sprintf("nfs://%s:%d%s/%s", host, l.Port, strings.TrimSuffix(l.Path, "/"), dir)
}

// Join is portlayer.VolumeStore.Join: a mount spec for the guest, and the server for its machine to reach.
func (s *Store) Join(ctx context.Context, h *portlayer.Handle, vol portlayer.Volume, m portlayer.Mount) error {
	if err := ctx.Err(); err != nil {
		return err
	}
	if vol.Store != s.o.Name {
		return fault.New(fault.Internal, "volume %s of store %s was given to store %s to join", vol.Name, vol.Store, s.o.Name)
	}
	o, err := s.optionsOf(vol.Options)
	if err != nil {
		return fault.Wrap("join volume", string(vol.Name), err)
	}
	if o.ReadOnly && !m.ReadOnly {
		return fault.New(fault.Invalid, "volume %s can only be read (option ro of the volume or of its store %s): mount it read-only, as in -v %s:%s:ro", vol.Name, s.o.Name, vol.Ref(), m.Target)
	}
	reaches, options := s.o.Location.reach(o)
	for _, r := range reaches {
		for _, have := range h.Reaches {
			if have.Address == r.Address && have.Service != r.Service {
				return fault.New(fault.Conflict, "volume %s cannot be joined beside the others: %s and %s look the same to a machine; call one of the servers by another of its names or addresses", vol.Name, have.Service, r.Service)
			}
		}
	}
	for _, r := range reaches {
		h.AddReach(r)
	}
	h.Config.Mounts = append(h.Config.Mounts, guest.MountSpec{
		Source:   vol.Source,
		Target:   m.Target,
		Subpath:  m.Subpath,
		ReadOnly: m.ReadOnly,
		Copy:     !m.NoCopy && !o.ReadOnly,
		Options:  options,
		Name:     string(vol.Name),
		Patience: s.o.Timeout,
	})
	return nil
}

// reach is what a machine has to reach for a volume with options o, and how its guest mounts what is there.
func (l Location) reach(o Options) (reaches []portlayer.Reach, options []string) {
	at := l.virtual()
	reaches = append(reaches, portlayer.Reach{Address: netip.AddrPortFrom(at, guestPort), Service: l.service(nfsService)})
	options = []string{"vers=" + o.Vers.String(), "addr=" + at.String(), "port=" + strconv.Itoa(guestPort)}
	if o.Vers == V3 {
		reaches = append(reaches, portlayer.Reach{Address: netip.AddrPortFrom(at, guestMountPort), Service: l.service(mountService)})
		options = append(options, "mountvers=3", "mountaddr="+at.String(), "mountport="+strconv.Itoa(guestMountPort))
	}
	o.Proto = TCP // on the link; how the server is reached from here is another thing
	data, flags := o.Mount()
	return reaches, append(append(options, data...), flags...)
}

// size is a size as messages show it.
func size(b portlayer.Bytes) string { return units.BytesSize(float64(b)) }
