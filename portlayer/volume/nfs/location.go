package nfs

import (
	"net/netip"
	"net/url"
	"path"
	"strconv"
	"strings"
	"unicode"
	"unicode/utf8"

	"vch/internal/fault"
)

// DefaultPort is where servers listen (RFC 7530, section 3.1; RFC 8881, section 2.9.3). Version 3 is looked for there as well: no rpcbind is asked for it.
const DefaultPort = 2049

const (
	scheme  = "nfs://"
	grammar = "write nfs://HOST[:PORT]/EXPORT?OPTIONS"
	// Bytes. What version 3 mounts is a volume's directory below it: MNTPATHLEN of RFC 1813, section 5.1.1, NFS_MAXPATHLEN of include/uapi/linux/nfs.h.
	maxPath = 1024 - len("/volumes/") - 255
	maxHost = 253 // bytes of a name in DNS (RFC 1035, section 3.1, without the length bytes)
)

// Location is where a store is and how it is reached. Two texts that mean the same give equal Locations.
type Location struct {
	Host    string // a name in lower case, an IPv4 address, or an IPv6 address without brackets
	Port    int    // 1 to 65535; DefaultPort where none was given
	Path    string // absolute, clean, not encoded; at most maxPath bytes
	Options Options
}

// ParseLocation reads nfs://HOST[:PORT]/EXPORT?OPTIONS; the options are those of Known, joined by &. What makes no sense is Invalid, what makes sense and vch does not
// do is Unsupported.
func ParseLocation(text string) (Location, error) {
	if len(text) < len(scheme) || !strings.EqualFold(text[:len(scheme)], scheme) {
		return Location{}, fault.New(fault.Invalid, "%q is not the place of an NFS export: %s", text, grammar)
	}
	rest, options, _ := strings.Cut(text[len(scheme):], "?")
	server, dir := rest, ""
	if i := strings.IndexByte(rest, '/'); i >= 0 {
		server, dir = rest[:i], rest[i:]
	}
	// First, so that no other refusal shows a password.
	if strings.Contains(server, "@") {
		return Location{}, fault.New(fault.Invalid, "an NFS server takes no user name and no password; %s, and options uid and gid for whom the VCH is there", grammar)
	}
	if strings.Contains(text, "#") {
		return Location{}, fault.New(fault.Invalid, "the place of an NFS export ends before the #; write %%23 for one that is part of the directory's name")
	}
	host, port, err := parseServer(server)
	if err != nil {
		return Location{}, err
	}
	l := Location{Host: host, Port: port}
	if l.Path, err = parsePath(dir); err != nil {
		return Location{}, err
	}
	o, given, err := parseOptions(options)
	if err != nil {
		return Location{}, err
	}
	l.Options = o
	return l.settle(given)
}

// settle is where what is said beside the host meets the options.
func (l Location) settle(given said) (Location, error) {
	if text, ok := given["port"]; ok {
		port, err := parsePort(text)
		if err != nil {
			return Location{}, err
		}
		if l.Port != 0 && l.Port != port {
			return Location{}, fault.New(fault.Invalid, "nfs option port=%d contradicts port %d beside host %s; say it once", port, l.Port, l.Host)
		}
		l.Port = port
	}
	if l.Port == 0 {
		l.Port = DefaultPort
	}
	if a, err := netip.ParseAddr(l.Host); err == nil && a.Is4() && l.Options.Proto == TCP6 {
		return Location{}, fault.New(fault.Invalid, "nfs option proto=tcp6 contradicts host %s, which is an IPv4 address; leave proto out, or name the server", l.Host)
	}
	return l, nil
}

// String is the canonical text: ParseLocation of it is l.
func (l Location) String() string {
	host := l.Host
	if strings.Contains(host, ":") {
		host = "[" + host + "]"
	}
	if l.Port != DefaultPort {
		host += ":" + strconv.Itoa(l.Port)
	}
	return scheme + host + (&url.URL{Path: l.Path}).EscapedPath() + "?" + l.Options.String()
}

// parseServer reads HOST[:PORT]; port 0 is none.
func parseServer(text string) (host string, port int, err error) {
	var rest string
	if strings.HasPrefix(text, "[") {
		var closed bool
		if host, rest, closed = strings.Cut(text[1:], "]"); !closed {
			return "", 0, fault.New(fault.Invalid, "NFS server %q: the bracket of an IPv6 address is not closed; write [ADDRESS] or [ADDRESS]:PORT", text)
		}
		host, err = parseIPv6(host)
	} else {
		if strings.Count(text, ":") > 1 {
			return "", 0, fault.New(fault.Invalid, "NFS server %q has more than one colon; write an IPv6 address in brackets: [ADDRESS] or [ADDRESS]:PORT", text)
		}
		if i := strings.IndexByte(text, ':'); i >= 0 {
			text, rest = text[:i], text[i:]
		}
		host, err = parseName(text)
	}
	if err != nil || rest == "" {
		return host, 0, err
	}
	digits, colon := strings.CutPrefix(rest, ":")
	if !colon {
		return "", 0, fault.New(fault.Invalid, "NFS server %q: %q follows the address; write [ADDRESS] or [ADDRESS]:PORT", text, rest)
	}
	if digits == "" {
		return "", 0, fault.New(fault.Invalid, "the port of NFS server %s is empty; write %s:PORT, or leave the colon out for %d", host, host, DefaultPort)
	}
	if port, err = parsePort(digits); err != nil {
		return "", 0, fault.New(fault.Invalid, "port of NFS server %s: %w", host, err)
	}
	return host, port, nil
}

func parsePort(text string) (int, error) {
	n, ok := parseNumber(text, 10)
	if !ok || n < 1 || n > 65535 {
		return 0, fault.New(fault.Invalid, "%q is not a port; write a number between 1 and 65535", text)
	}
	return int(n), nil
}

func parseIPv6(text string) (string, error) {
	if strings.Contains(text, "%") {
		return "", fault.New(fault.Unsupported, "NFS server [%s]: an address with a zone means something on one machine only, and container VMs have interfaces of their own; "+
			"write one that is reached by routing", text)
	}
	a, err := netip.ParseAddr(text)
	if err != nil || !a.Is6() {
		return "", fault.New(fault.Invalid, "NFS server [%s] is not an IPv6 address; brackets are for those alone", text)
	}
	return usableAddress(a.Unmap())
}

func usableAddress(a netip.Addr) (string, error) {
	if a.IsUnspecified() || a.IsMulticast() || a == netip.AddrFrom4([4]byte{255, 255, 255, 255}) {
		return "", fault.New(fault.Invalid, "NFS server %s is no machine's own address; name the server", a)
	}
	return a.String(), nil
}

// parseName reads a host name or an IPv4 address.
func parseName(text string) (string, error) {
	if text == "" {
		return "", fault.New(fault.Invalid, "the place of an NFS export names no server: %s", grammar)
	}
	if a, err := netip.ParseAddr(text); err == nil {
		return usableAddress(a)
	}
	labels := strings.Split(strings.TrimSuffix(text, "."), ".")
	for _, label := range labels {
		if !nameLabel(label) {
			return "", fault.New(fault.Invalid, "NFS server %q is not the name of a host: letters, digits, - and _ in parts of at most 63, with dots between; write other letters as xn--…", text)
		}
	}
	if last := labels[len(labels)-1]; strings.Trim(last, "0123456789") == "" {
		return "", fault.New(fault.Invalid, "NFS server %q is neither a name nor an IPv4 address; write four numbers below 256 without leading zeros", text)
	}
	if len(text) > maxHost {
		return "", fault.New(fault.Invalid, "NFS server %q is longer than a name of %d bytes, which is what DNS has; write its address", text, maxHost)
	}
	return strings.ToLower(text), nil
}

func nameLabel(s string) bool {
	bad := func(c rune) bool {
		return !(c >= 'a' && c <= 'z' || c >= 'A' && c <= 'Z' || c >= '0' && c <= '9' || c == '-' || c == '_')
	}
	return s != "" && len(s) <= 63 && s[0] != '-' && s[len(s)-1] != '-' && !strings.ContainsFunc(s, bad)
}

// parsePath decodes and cleans the exported directory.
func parsePath(text string) (string, error) {
	if text == "" {
		return "", fault.New(fault.Invalid, "the place of an NFS export has no directory; name the exported directory: %s", grammar)
	}
	decoded, err := url.PathUnescape(text)
	switch {
	case err != nil:
		return "", fault.New(fault.Invalid, "exported directory %q has a %% that two hexadecimal digits do not follow; write %%25 for one that is part of its name", text)
	case !utf8.ValidString(decoded) || strings.ContainsFunc(decoded, unicode.IsControl):
		return "", fault.New(fault.Invalid, "exported directory %q has control characters or is not UTF-8; export it by another name", decoded)
	}
	for part := range strings.SplitSeq(decoded, "/") {
		if part == ".." { // the server's own links decide what is above, not this text
			return "", fault.New(fault.Invalid, "exported directory %q goes up with ..; write the directory that is meant", decoded)
		}
	}
	clean := path.Clean(decoded)
	if len(clean) > maxPath {
		return "", fault.New(fault.Invalid, "exported directory %q is longer than %d bytes, with which a volume's directory below it can be mounted; export a shorter one", clean, maxPath)
	}
	return clean, nil
}
