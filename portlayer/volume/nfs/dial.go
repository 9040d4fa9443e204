package nfs

import (
	"context"
	"crypto/rand"
	"net"
	"net/url"
	"strconv"

	"vch/internal/fault"
	"vch/internal/nfsclient"
	"vch/portlayer"
)

// The services that machines reach, as portlayer.Reach calls them: nfs+tcp://HOST:PORT, and mountd+tcp://HOST:PORT, where port 0 means that the server's portmapper is asked.
const (
	nfsService   = "nfs"
	mountService = "mountd"
)

func (l Location) service(what string) string {
	port := l.Port
	if what == mountService {
		port = int(l.Options.MountPort)
	}
	u := url.URL{Scheme: what + "+" + l.Options.Proto.String(), Host: net.JoinHostPort(l.Host, strconv.Itoa(port))}
	return u.String()
}

// Dial connects to a service that a Store has had a machine reach: from a reserved port where this process may have one.
func Dial(ctx context.Context, service string) (net.Conn, error) {
	u, err := url.Parse(service)
	if err != nil {
		return nil, err
	}
	port, err := strconv.Atoi(u.Port())
	if err != nil {
		return nil, fault.New(fault.Internal, "%q is no service of a volume's server", service)
	}
	var network string
	switch u.Scheme {
	case nfsService + "+tcp", mountService + "+tcp":
		network = "tcp"
	case nfsService + "+tcp6", mountService + "+tcp6":
		network = "tcp6"
	default:
		return nil, fault.New(fault.Internal, "%q is no service of a volume's server", service)
	}
	if port == 0 {
		if port, err = nfsclient.MountPort(ctx, nfsclient.Options{Host: u.Hostname(), Dial: dialer(network)}); err != nil {
			return nil, err
		}
	}
	conn, _, err := nfsclient.DialReserved(ctx, network, net.JoinHostPort(u.Hostname(), strconv.Itoa(port)))
	return conn, err
}

// dialer connects from a reserved port, by one network.
func dialer(network string) func(ctx context.Context, _, address string) (net.Conn, error) {
	return func(ctx context.Context, _, address string) (net.Conn, error) {
		conn, _, err := nfsclient.DialReserved(ctx, network, address)
		return conn, err
	}
}

// open opens the export, as the store does that nobody gave another way.
func (l Location) open(ctx context.Context, uid, gid uint32) (Export, error) {
	o := nfsclient.Options{Host: l.Host, Port: l.Port, Version: nfsclient.V4, Path: l.Path, UID: uid, GID: gid, Dial: dialer(l.Options.Proto.String())}
	if l.Options.Vers == V3 {
		o.Version, o.MountPort = nfsclient.V3, int(l.Options.MountPort)
	}
	e, err := nfsclient.Open(ctx, o)
	if err != nil { // not a nil *Export in an Export
		return nil, err
	}
	return e, nil
}

// Look asks the server of a location how much room there is, and changes nothing there. An error is a sentence that says what to do.
func Look(ctx context.Context, l Location) (total, free portlayer.Bytes, err error) {
	said := (&Store{o: StoreOptions{Location: l}}).said
	e, err := l.open(ctx, l.Options.UID, l.Options.GID)
	if err != nil {
		return 0, 0, said(err)
	}
	defer e.Close()
	t, f, err := e.Space(ctx)
	return portlayer.Bytes(t), portlayer.Bytes(f), said(err)
}

// Try is Look that also makes a directory there and removes it, unless the location is read-only: what the server lets a store do.
func Try(ctx context.Context, l Location) (total, free portlayer.Bytes, err error) {
	if total, free, err = Look(ctx, l); err != nil || l.Options.ReadOnly {
		return total, free, err
	}
	said := (&Store{o: StoreOptions{Location: l}}).said
	e, err := l.open(ctx, l.Options.UID, l.Options.GID)
	if err != nil {
		return 0, 0, said(err)
	}
	defer e.Close()
	name := ".vch-try-" + rand.Text()
	if _, err := e.Mkdir(ctx, name, 0o700); err != nil {
		return 0, 0, said(err)
	}
	return total, free, said(e.Rmdir(ctx, name))
}
