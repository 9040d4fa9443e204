package nfsclient

import "context"

// MountPort asks the portmapper of o.Host for the TCP port of its mountd. Of o, Host and Dial are used.
func MountPort(ctx context.Context, o Options) (int, error) {
	v := &v3{opts: o, dialer: newDialer(o)}
	port, err := v.mountPort(ctx)
	return port, named("find mountd of", o.Host, err)
}
