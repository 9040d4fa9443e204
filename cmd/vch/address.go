package main

import (
	"net"
	"path/filepath"
	"strconv"
	"strings"
)

// address is where a VCH listens, or is reached.
type address struct {
	Network string // "unix" or "tcp"
	At      string // an absolute path, or HOST:PORT
}

func (a address) String() string { return a.Network + "://" + a.At }

const (
	// socketPathMax is what sun_path holds beside its final zero (unix(7)).
	socketPathMax = 107
	// The ports that IANA has for Docker's API, with TLS and without.
	portTLS, portPlain = "2376", "2375"
)

// parseAddress reads unix:///PATH or tcp://HOST[:PORT]; port is the one where none is said.
func parseAddress(text, port string) (address, error) {
	scheme, rest, ok := strings.Cut(text, "://")
	switch {
	case ok && scheme == "tcp":
		at, err := hostPort(rest, port)
		if err != nil {
			return address{}, usagef("%s: %w", text, err)
		}
		return address{"tcp", at}, nil
	case !ok || scheme != "unix":
		return address{}, usagef("%q is neither unix:///PATH nor tcp://HOST:PORT", text)
	case !filepath.IsAbs(rest):
		return address{}, usagef("%s: the path must be absolute, with three slashes: unix:///run/vch.sock", text)
	}
	path := filepath.Clean(rest)
	if len(path) > socketPathMax {
		return address{}, usagef("%s: a unix socket's path has at most %d bytes, and this one has %d; choose a shorter one", text, socketPathMax, len(path))
	}
	return address{"unix", path}, nil
}

// hostPort completes HOST[:PORT]. Without a host it is every address of this machine.
func hostPort(text, port string) (string, error) {
	text = strings.TrimSuffix(text, "/")
	if host := strings.Trim(text, "[]"); !strings.Contains(host, ":") || net.ParseIP(host) != nil {
		return net.JoinHostPort(host, port), nil // no port
	}
	host, number, err := net.SplitHostPort(text)
	if err != nil {
		return "", usagef("it is not HOST:PORT")
	}
	if n, err := strconv.ParseUint(number, 10, 16); err != nil || n == 0 && number != "0" {
		return "", usagef("%q is no port: it is a number from 1 to 65535", number)
	}
	return net.JoinHostPort(host, number), nil
}

// addresses are those that --listen says, or the default one. What is plain TCP has to stand in plain, too.
func addresses(listen, plain []string, tls bool, state string, at surroundings) (all []address, err error) {
	if len(listen) == 0 {
		dir := state
		switch {
		case at.Root:
			dir = "/var/run"
		case filepath.IsAbs(at.Env["XDG_RUNTIME_DIR"]):
			dir = at.Env["XDG_RUNTIME_DIR"]
		}
		listen = []string{"unix://" + filepath.Join(dir, "vch.sock")}
	}
	said := map[address]bool{}
	for _, text := range plain {
		a, err := parseAddress(text, portPlain)
		if err != nil || a.Network != "tcp" {
			return nil, usagef("--plain-tcp %s is not tcp://HOST:PORT", text)
		}
		said[a] = false
	}
	port := portPlain
	if tls {
		port = portTLS
	}
	have := map[address]bool{}
	for _, text := range listen {
		a, err := parseAddress(text, port)
		if err != nil {
			return nil, usagef("--listen %w", err)
		}
		if have[a] {
			return nil, usagef("--listen %s is given twice", text)
		}
		have[a] = true
		_, twice := said[a]
		switch {
		case a.Network != "tcp":
		case tls && twice:
			return nil, usagef("--plain-tcp %s: with --tlsverify no TCP address is plain; leave one of the two out", a)
		case !tls && !twice:
			return nil, usagef("--listen %s: whoever reaches it could do everything that the daemon can, unasked; add --tlsverify, with which clients need a certificate (vch cert), or say it again to have it plain all the same: --plain-tcp %s", a, a)
		}
		said[a] = true
		all = append(all, a)
	}
	for a, listened := range said {
		if !listened {
			return nil, usagef("--plain-tcp %s: there is no --listen %s", a, a)
		}
	}
	return all, nil
}
