package main

import (
	"encoding/hex"
	"errors"
	"net"
	"net/netip"
	"net/url"
	"os"
	"strconv"
	"strings"

	"github.com/spf13/pflag"

	"vch/internal/fault"
	"vch/machine"
)

// vsphereTarget is the vCenter or ESXi host that runs a VCH's machines, and where in it.
type vsphereTarget struct {
	URL          string // https://HOST[:PORT]
	User         string
	PasswordFile string // "": the environment, VCH_PASSWORD
	Thumbprint   string // SHA-256 of the server's certificate in lower-case hex; "": an authority that this machine trusts signed it
	Datacenter   string
	Pool         string
	Folder       string
	Network      string
	Extension    string // key of who manages the machines; "": nobody is named
	GuestListen  string // HOST:PORT that this daemon listens at for its machines' guests
	GuestAddress string // HOST:PORT by which they reach it; "": this machine's address, and the port of GuestListen
}

// vsphereWords are the same as they are written.
type vsphereWords struct {
	target, user, passwordFile, thumbprint, datacenter, pool, folder, network, extension string
	guestListen, guestAddress                                                            string
}

func (w *vsphereWords) flags(f *pflag.FlagSet) {
	f.StringVar(&w.target, "target", machine.Local, "`WHERE` machines run: local, this machine; or the URL of a vCenter or an ESXi host")
	f.StringVar(&w.user, "user", "", "`WHO` to be at --target; the password is in --password-file, or in the environment: VCH_PASSWORD")
	f.StringVar(&w.passwordFile, "password-file", "", "the `FILE` that holds the password at --target")
	f.StringVar(&w.thumbprint, "thumbprint", "", "the SHA-256 `THUMBPRINT` of the certificate at --target (vch thumbprint shows it); without: an authority that this machine trusts has to have signed it")
	f.StringVar(&w.datacenter, "datacenter", "", "the `DATACENTER` at --target")
	f.StringVar(&w.pool, "pool", "", "the resource `POOL` at --target that machines are made in, by name or path; vch create makes the VCH's own in it")
	f.StringVar(&w.folder, "folder", "", "the `FOLDER` at --target that machines are made in, by name or path; vch create makes the VCH's own in it")
	f.StringVar(&w.network, "network", "", "the `NETWORK` at --target that machines reach this daemon by: a port group, on which a DHCP server gives them addresses")
	f.StringVar(&w.extension, "extension", "", "the `KEY` of the vCenter extension that machines say manages them; vch create gives each VCH one of its own")
	f.StringVar(&w.guestListen, "guest-listen", "", "listen at this `ADDRESS`, HOST:PORT, for the machines at --target (default: 0.0.0.0:2378)")
	f.StringVar(&w.guestAddress, "guest-address", "", "the `ADDRESS`, HOST or HOST:PORT, by which the machines at --target reach --guest-listen (default: this machine's)")
}

// defaultGuestPort is where guests come to that nothing is said of.
const defaultGuestPort = "2378"

// parse gives nil for the local target.
func (w vsphereWords) parse() (*vsphereTarget, error) {
	if w.target == machine.Local {
		for _, more := range []struct{ flag, value string }{
			{"user", w.user}, {"password-file", w.passwordFile}, {"thumbprint", w.thumbprint}, {"datacenter", w.datacenter}, {"pool", w.pool}, {"folder", w.folder}, {"network", w.network}, {"extension", w.extension}, {"guest-listen", w.guestListen}, {"guest-address", w.guestAddress},
		} {
			if more.value != "" {
				return nil, usagef("--%s has a meaning with --target URL only", more.flag)
			}
		}
		return nil, nil
	}
	text := w.target
	if !strings.Contains(text, "://") {
		text = "https://" + text
	}
	u, err := url.Parse(text)
	switch {
	case err != nil || u.Host == "" || u.Scheme != "https":
		return nil, usagef("--target %q is neither %s nor the URL of a vCenter or an ESXi host, https://HOST[:PORT]", w.target, machine.Local)
	case u.User != nil:
		return nil, usagef("--target has a user or a password in it, which everybody who lists processes would see: say --user, and --password-file or VCH_PASSWORD")
	}
	v := &vsphereTarget{URL: "https://" + u.Host, User: w.user, PasswordFile: w.passwordFile, Datacenter: w.datacenter, Pool: w.pool, Folder: w.folder, Network: w.network, Extension: w.extension}
	if v.User == "" {
		return nil, usagef("--target %s wants --user: who vch is to be there", w.target)
	}
	if err := v.guests(w.guestListen, w.guestAddress); err != nil {
		return nil, err
	}
	if w.thumbprint != "" {
		const sha256Bytes = 32
		digits := strings.ToLower(strings.ReplaceAll(w.thumbprint, ":", ""))
		if raw, err := hex.DecodeString(digits); err != nil || len(raw) != sha256Bytes {
			return nil, usagef("--thumbprint %q is no SHA-256 thumbprint: 64 hexadecimal digits, with colons or without; see vch thumbprint %s", w.thumbprint, u.Host)
		}
		v.Thumbprint = digits
	}
	return v, nil
}

// guests says where guests come to.
func (v *vsphereTarget) guests(listen, address string) error {
	if listen == "" {
		listen = net.JoinHostPort("0.0.0.0", defaultGuestPort)
	}
	host, port, err := net.SplitHostPort(listen)
	if _, perr := strconv.ParseUint(port, 10, 16); err != nil || perr != nil {
		return usagef("--guest-listen %q is not HOST:PORT", listen)
	}
	v.GuestListen = listen
	if address == "" {
		if ip, err := netip.ParseAddr(host); err == nil && !ip.IsUnspecified() {
			address = listen
		}
	}
	if address != "" {
		if _, _, err := net.SplitHostPort(address); err != nil {
			address = net.JoinHostPort(address, port)
		}
		if host, port, err := net.SplitHostPort(address); err != nil || host == "" || port == "0" {
			return usagef("--guest-address %q is not HOST or HOST:PORT", address)
		}
	}
	v.GuestAddress = address
	return nil
}

// password is what the user of the target has for one.
func (v *vsphereTarget) password() (string, error) {
	if v.PasswordFile == "" {
		if p := os.Getenv("VCH_PASSWORD"); p != "" {
			return p, nil
		}
		return "", usagef("the password of user %s at %s is neither in --password-file nor in the environment as VCH_PASSWORD", v.User, v.URL)
	}
	text, err := os.ReadFile(v.PasswordFile)
	if err != nil {
		return "", usagef("--password-file: %w", err)
	}
	return strings.TrimRight(string(text), "\r\n"), nil
}

// listen begins to listen for guests, and says by which address they come.
func (v *vsphereTarget) listen() (l net.Listener, advertise string, err error) {
	if l, err = net.Listen("tcp", v.GuestListen); err != nil {
		return nil, "", fault.New(fault.Conflict, "cannot listen for guests: %w; choose another address with --guest-listen", err)
	}
	host, port, _ := net.SplitHostPort(v.GuestAddress)
	if v.GuestAddress == "" {
		if host, err = ownAddress(v.URL); err != nil {
			return nil, "", errors.Join(err, l.Close())
		}
	}
	if _, p, err := net.SplitHostPort(l.Addr().String()); err == nil && (port == "" || port == "0") {
		port = p
	}
	return l, net.JoinHostPort(host, port), nil
}

// ownAddress is the address of this machine that has the way to the target.
func ownAddress(target string) (string, error) {
	u, err := url.Parse(target)
	if err != nil {
		return "", err
	}
	port := u.Port()
	if port == "" {
		port = "443"
	}
	c, err := net.Dial("udp", net.JoinHostPort(u.Hostname(), port)) // sends nothing
	if err != nil {
		return "", fault.New(fault.Unavailable, "no way leads to %s: %w; say with --guest-address how machines reach this one", u.Host, err)
	}
	defer c.Close()
	host, _, err := net.SplitHostPort(c.LocalAddr().String())
	return host, err
}
