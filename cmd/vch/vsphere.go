package main

import (
	"encoding/hex"
	"net/url"
	"strings"

	"github.com/spf13/pflag"

	"vch/machine"
)

// vsphere is the vCenter or ESXi host that runs a VCH's machines, and where in it.
type vsphere struct {
	URL          string // https://HOST[:PORT]
	User         string
	PasswordFile string // "": the environment, VCH_PASSWORD
	Thumbprint   string // SHA-256 of the server's certificate in lower-case hex; "": an authority that this machine trusts signed it
	Datacenter   string
	Pool         string
	Folder       string
	Network      string
}

// vsphereWords are the same as they are written.
type vsphereWords struct {
	target, user, passwordFile, thumbprint, datacenter, pool, folder, network string
}

func (w *vsphereWords) flags(f *pflag.FlagSet) {
	f.StringVar(&w.target, "target", machine.Local, "`WHERE` machines run: local, this machine; or the URL of a vCenter or an ESXi host")
	f.StringVar(&w.user, "user", "", "`WHO` to be at --target; the password is in --password-file, or in the environment: VCH_PASSWORD")
	f.StringVar(&w.passwordFile, "password-file", "", "the `FILE` that holds the password at --target")
	f.StringVar(&w.thumbprint, "thumbprint", "", "the SHA-256 `THUMBPRINT` of the certificate at --target (vch thumbprint shows it); without: an authority that this machine trusts has to have signed it")
	f.StringVar(&w.datacenter, "datacenter", "", "the `DATACENTER` at --target")
	f.StringVar(&w.pool, "pool", "", "the resource `POOL` at --target that machines are made in")
	f.StringVar(&w.folder, "folder", "", "the `FOLDER` at --target that machines are made in")
	f.StringVar(&w.network, "network", "", "the `NETWORK` at --target that machines reach this daemon by")
}

// parse gives nil for the local target.
func (w vsphereWords) parse() (*vsphere, error) {
	if w.target == machine.Local {
		for _, more := range []struct{ flag, value string }{
			{"user", w.user}, {"password-file", w.passwordFile}, {"thumbprint", w.thumbprint}, {"datacenter", w.datacenter}, {"pool", w.pool}, {"folder", w.folder}, {"network", w.network},
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
	v := &vsphere{URL: "https://" + u.Host, User: w.user, PasswordFile: w.passwordFile, Datacenter: w.datacenter, Pool: w.pool, Folder: w.folder, Network: w.network}
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
