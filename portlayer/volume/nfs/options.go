package nfs

import (
	"fmt"
	"maps"
	"slices"
	"strconv"
	"strings"
	"unicode"

	"vch/internal/fault"
)

// Options is how a store, or one volume of it, is reached and kept. The zero value is every default. Values can be compared by ==, and equal ones mean the same.
type Options struct {
	Vers      Version
	Proto     Proto
	MountPort uint16 // of the server's mountd; version 3 only; 0: its rpcbind says
	UID       uint32 // owner of new volumes' directories, and whom the VCH's own calls are from
	GID       uint32
	Mode      Number // permission bits, as chmod(2) has them, of new volumes' directories; DirMode has the default
	Squash    Squash
	ReadOnly  bool // of a store: nothing is made or removed in it
	Sync      bool
	Soft      bool
	NoAtime   bool
	NoAC      bool

	// The guest kernel decides what is not given.
	Timeo    Number // tenths of a second
	Retrans  Number
	RSize    Number // bytes
	WSize    Number // bytes
	NConnect Number
	AcRegMin Number // seconds, as the other three; option actimeo gives all of them
	AcRegMax Number
	AcDirMin Number
	AcDirMax Number

	Allow Allowed // "": a volume may set nothing for itself
}

// Number is a number that may not have been given, which is not the same as zero.
type Number struct {
	N     uint32 // 0 unless Given
	Given bool
}

// Version is the NFS version of a store.
type Version uint8

// V4 is the newest of 4.1 and 4.2 that the server speaks.
const (
	V4 Version = iota
	V41
	V42
	V3
)

// String is the version as option vers has it.
func (v Version) String() string { return versions()[v] }

func versions() []string { return []string{"4", "4.1", "4.2", "3"} }

// Proto is what carries NFS.
type Proto uint8

// TCP is over whichever of IPv4 and IPv6 the server is found by.
const (
	TCP  Proto = iota
	TCP6       // over IPv6 alone
)

// String is the transport as option proto has it.
func (p Proto) String() string { return protos()[p] }

func protos() []string { return []string{"tcp", "tcp6"} }

// Squash is what the administrator says that the export does with users: no_root_squash, root_squash, all_squash of exports(5). The store's opening checks it.
type Squash uint8

// SquashUnsaid is that nothing is said.
const (
	SquashUnsaid Squash = iota
	SquashNone
	SquashRoot
	SquashAll
)

// String is the word that option squash has for it; nothing for SquashUnsaid.
func (s Squash) String() string { return squashes()[s] }

func squashes() []string { return []string{"", "none", "root", "all"} }

// Allowed names the options that a volume may set for itself: in the order of Known, joined by commas.
type Allowed string

// Names are the options one by one.
func (a Allowed) Names() []string {
	if a == "" {
		return nil
	}
	return strings.Split(string(a), ",")
}

// Has reports whether a volume may set the option.
func (a Allowed) Has(name string) bool { return slices.Contains(a.Names(), name) }

// NoLock reports whether file locks stay within one container VM. Those of version 3 do: its lock protocol needs a daemon that the guest does not run. Version 4 locks on
// the server.
func (o Options) NoLock() bool { return o.Vers == V3 }

// defaultMode is that of a directory that everybody can read and its owner write.
const defaultMode = 0o755

// DirMode is the permission bits of new volumes' directories, as chmod(2) has them.
func (o Options) DirMode() uint32 {
	if o.Mode.Given {
		return o.Mode.N
	}
	return defaultMode
}

// KnownOption is one option as the documents have it.
type KnownOption struct {
	Name    string
	Values  string // "": a word alone, without a value
	Meaning string
	Volume  bool // a volume may set it where the store's option allow names it
}

// option is the one place of an option: what it is called, read by, and written by.
type option struct {
	KnownOption
	own  string // why a volume cannot set it; "": where the store allows it, it can
	set  func(o *Options, value string) error
	said func(o Options) (value string, ok bool) // as the canonical text has it; !ok: it is the default, or another option says it
	data bool                                    // what is said is mount data as it stands
}

func (k option) text(value string) string {
	if k.Values == "" {
		return k.Name
	}
	return k.Name + "=" + value
}

const (
	oneServer = "all volumes of a store are on one server, which is reached in one way"
	ofServer  = "it says what the server does"
	ofVersion = "it follows from the store's version"
)

// table is every option, in the order of the canonical text. It is a function because option allow reads it.
func table() []option {
	return []option{
		enum("vers", "NFS version; 4 is the newest of 4.1 and 4.2 that the server speaks (default 4)", oneServer, versions(), noVersions, setVersion,
			func(o Options) (string, bool) { return o.Vers.String(), true }),
		enum("nfsvers", "the same as vers", oneServer, versions(), noVersions, setVersion, nil),
		enum("proto", "tcp, or tcp6: the server is reached by IPv6 only (default tcp)", oneServer, protos(), noProtos, func(o *Options, i int) { o.Proto = Proto(i) },
			func(o Options) (string, bool) { return o.Proto.String(), o.Proto != TCP }),
		// Location has the port: it is said there.
		store(number("port", 1, 65535, "port of the server, the same as HOST:PORT (default 2049)", func(*Options, Number) {}, nil), oneServer),
		store(number("mountport", 1, 65535, "port of the server's mountd, with vers=3 only (default: as its rpcbind says)",
			func(o *Options, n Number) { o.MountPort = uint16(n.N) }, func(o Options) Number { return Number{uint32(o.MountPort), o.MountPort != 0} }), oneServer),
		enum("sec", "how users are told apart; sys: by their numbers (default sys)", oneServer, []string{"sys"}, noSecurities, func(*Options, int) {}, nil),
		store(word("lock", "file locks are the server's, as they always are with version 4", func(*Options) {}, nil), ofVersion),
		store(word("nolock", "file locks stay within one container VM, as they always do with vers=3", func(*Options) {}, nil), ofVersion),
		enum("squash", "what the export does with users, no_root_squash, root_squash or all_squash; checked when the store is opened (default: not checked)", ofServer,
			squashes()[1:], nil, func(o *Options, i int) { o.Squash = SquashNone + Squash(i) }, func(o Options) (string, bool) { return o.Squash.String(), o.Squash != SquashUnsaid }),
		number("uid", 0, 1<<32-2, "owner of new volumes' directories; of a store also whom the VCH's own calls are from (default 0)",
			func(o *Options, n Number) { o.UID = n.N }, func(o Options) Number { return Number{o.UID, o.UID != 0} }),
		number("gid", 0, 1<<32-2, "their group (default 0)",
			func(o *Options, n Number) { o.GID = n.N }, func(o Options) Number { return Number{o.GID, o.GID != 0} }),
		mode(),
		word("ro", "a store of published data, in which nothing is made or removed; of a volume: it is never written to", func(o *Options) { o.ReadOnly = true },
			func(o Options) bool { return o.ReadOnly }),
		store(word("rw", "the opposite of ro (the default)", func(o *Options) { o.ReadOnly = false }, nil), "a volume can be made ro, never rw"),
		word("sync", "a write returns when the server has it", func(o *Options) { o.Sync = true }, func(o Options) bool { return o.Sync }),
		word("async", "a write returns at once; fsync and close wait for the server (the default)", func(o *Options) { o.Sync = false }, nil),
		word("hard", "calls wait for a server that does not answer (the default)", func(o *Options) { o.Soft = false }, nil),
		word("soft", "calls fail after retrans tries; what was being written may be lost", func(o *Options) { o.Soft = true }, func(o Options) bool { return o.Soft }),
		tuned("timeo", 1, 60000, 1, "tenths of a second until a call is sent again (default: the guest kernel's, 600)", func(o *Options) *Number { return &o.Timeo }),
		tuned("retrans", 0, 100, 1, "how often a call is sent again before soft gives up (default: the guest kernel's, 2)", func(o *Options) *Number { return &o.Retrans }),
		tuned("rsize", 1024, 1<<20, 1024, "most bytes of one read, a multiple of 1024 (default: as the server says)", func(o *Options) *Number { return &o.RSize }),
		tuned("wsize", 1024, 1<<20, 1024, "most bytes of one write, a multiple of 1024 (default: as the server says)", func(o *Options) *Number { return &o.WSize }),
		tuned("nconnect", 1, 16, 1, "TCP connections of a container VM to the server (default: the guest kernel's, 1)", func(o *Options) *Number { return &o.NConnect }),
		word("noatime", "times of access need not be fresh", func(o *Options) { o.NoAtime = true }, func(o Options) bool { return o.NoAtime }),
		word("ac", "a container VM keeps files' attributes for some seconds (the default)", func(o *Options) { o.NoAC = false }, nil),
		// Before the times: those that a store has go, those that stand beside it contradict it.
		data(word("noac", "it asks for them every time, and writes as with sync", func(o *Options) { o.NoAC = true; o.setTimes(Number{}) }, func(o Options) bool { return o.NoAC })),
		data(number("actimeo", 0, 86400, "seconds, for all of the four that follow", (*Options).setTimes, Options.oneTime)),
		ofTimes("acregmin", "least seconds that a file's attributes are kept (default: the guest kernel's, 3)", func(o *Options) *Number { return &o.AcRegMin }),
		ofTimes("acregmax", "most seconds that a file's attributes are kept (default: the guest kernel's, 60)", func(o *Options) *Number { return &o.AcRegMax }),
		ofTimes("acdirmin", "least seconds that a directory's attributes are kept (default: the guest kernel's, 30)", func(o *Options) *Number { return &o.AcDirMin }),
		ofTimes("acdirmax", "most seconds that a directory's attributes are kept (default: the guest kernel's, 60)", func(o *Options) *Number { return &o.AcDirMax }),
		allow(),
	}
}

// unspoken are the names that somebody may bring from nfs(5) or VIC, and what to say instead.
var unspoken = map[string]struct {
	kind fault.Kind
	why  string
}{
	"minorversion": {fault.Invalid, "say vers=4.1 or vers=4.2"},
	"retries":      {fault.Invalid, "say retrans"}, // VIC's word
	"tcp":          {fault.Invalid, "say proto=tcp, or leave it out"},
	"udp":          {fault.Unsupported, noUDP},
	"rdma":         {fault.Unsupported, noRDMA},
}

const (
	noUDP      = "the guests' kernel, Debian's, has no NFS over UDP (CONFIG_NFS_DISABLE_UDP_SUPPORT); leave it out for tcp"
	noRDMA     = "container VMs have no RDMA device; leave it out for tcp"
	noVersion  = "vch speaks 4.1 and later, and 3; leave it out for the newest that the server speaks"
	noKerberos = "it needs Kerberos credentials, and container VMs have none; leave it out for sys"
)

// What exists and vch does not do: value -> why.
var (
	noVersions   = map[string]string{"2": noVersion, "4.0": noVersion}
	noProtos     = map[string]string{"udp": noUDP, "udp6": noUDP, "rdma": noRDMA, "rdma6": noRDMA}
	noSecurities = map[string]string{
		"krb5": noKerberos, "krb5i": noKerberos, "krb5p": noKerberos,
		"none": "it makes everybody nobody, to whom no volume can belong; leave it out for sys",
	}
)

func setVersion(o *Options, i int) { o.Vers = Version(i) }

// Known is every option, in the order of the canonical text.
func Known() []KnownOption {
	all := table()
	known := make([]KnownOption, len(all))
	for i, k := range all {
		known[i] = k.KnownOption
	}
	return known
}

func find(name string) (option, bool) {
	all := table()
	i := slices.IndexFunc(all, func(k option) bool { return k.Name == name })
	if i < 0 {
		return option{}, false
	}
	return all[i], true
}

// word is an option without a value.
func word(name, meaning string, set func(*Options), said func(Options) bool) option {
	return option{
		KnownOption: KnownOption{Name: name, Meaning: meaning, Volume: true},
		set:         func(o *Options, _ string) error { set(o); return nil },
		said:        func(o Options) (string, bool) { return "", said != nil && said(o) },
	}
}

// number is an option whose value is a decimal number; said is nil where the canonical text never has it.
func number(name string, least, most uint32, meaning string, set func(*Options, Number), said func(Options) Number) option {
	return option{
		KnownOption: KnownOption{Name: name, Values: fmt.Sprintf("%d..%d", least, most), Meaning: meaning, Volume: true},
		set: func(o *Options, value string) error {
			n, ok := parseNumber(value, 10)
			if !ok || n < least || n > most {
				return fault.New(fault.Invalid, "nfs option %s: %q is not a whole number between %d and %d", name, value, least, most)
			}
			set(o, Number{n, true})
			return nil
		},
		said: func(o Options) (string, bool) {
			if said == nil {
				return "", false
			}
			n := said(o)
			return strconv.FormatUint(uint64(n.N), 10), n.Given
		},
	}
}

// tuned is a number that goes to the guest's kernel as it stands, a multiple of step.
func tuned(name string, least, most, step uint32, meaning string, field func(*Options) *Number) option {
	k := number(name, least, most, meaning, func(o *Options, n Number) { *field(o) = n }, func(o Options) Number { return *field(&o) })
	read := k.set
	k.set = func(o *Options, value string) error {
		if err := read(o, value); err != nil {
			return err
		}
		if field(o).N%step != 0 {
			return fault.New(fault.Invalid, "nfs option %s: %s is not a multiple of %d; the kernel would round it down", name, value, step)
		}
		return nil
	}
	return data(k)
}

// ofTimes is one of the four that actimeo says at once, where they are one.
func ofTimes(name, meaning string, field func(*Options) *Number) option {
	k := tuned(name, 0, 86400, 1, meaning, field)
	said := k.said
	k.said = func(o Options) (string, bool) {
		if o.oneTime().Given {
			return "", false
		}
		return said(o)
	}
	return k
}

// enum is an option whose value is one of a few words, and not a volume's; set is given the word's place among them.
func enum(name, meaning, own string, values []string, refused map[string]string, set func(*Options, int), said func(Options) (string, bool)) option {
	if said == nil {
		said = func(Options) (string, bool) { return "", false }
	}
	return option{
		KnownOption: KnownOption{Name: name, Values: strings.Join(values, " | "), Meaning: meaning},
		own:         own,
		set: func(o *Options, value string) error {
			if why, ok := refused[value]; ok {
				return fault.New(fault.Unsupported, "nfs option %s=%s: %s", name, value, why)
			}
			i := slices.Index(values, value)
			if i < 0 {
				return fault.New(fault.Invalid, "nfs option %s: %q is none of %s", name, value, strings.Join(values, ", "))
			}
			set(o, i)
			return nil
		},
		said: said,
	}
}

func store(k option, own string) option { k.own, k.Volume = own, false; return k }

func data(k option) option { k.data = true; return k }

func mode() option {
	return option{
		KnownOption: KnownOption{Name: "mode", Values: "0..07777", Meaning: "permissions of new volumes' directories, octal (default 0755)", Volume: true},
		set: func(o *Options, value string) error {
			n, ok := parseNumber(value, 8)
			if !ok || n > 0o7777 {
				return fault.New(fault.Invalid, "nfs option mode: %q is not an octal number between 0 and 07777", value)
			}
			if o.Mode = (Number{n, true}); n == defaultMode {
				o.Mode = Number{}
			}
			return nil
		},
		said: func(o Options) (string, bool) { return fmt.Sprintf("%04o", o.DirMode()), o.Mode.Given },
	}
}

func allow() option {
	return option{
		KnownOption: KnownOption{Name: "allow", Values: "NAME,…", Meaning: "options that a volume of the store may set for itself (default: none)"},
		own:         "only the administrator says what volumes may set",
		set: func(o *Options, value string) error {
			names := strings.Split(strings.ToLower(value), ",")
			for i, name := range names {
				k, ok := find(name)
				switch {
				case !ok:
					return fault.New(fault.Invalid, "nfs option allow: %q is no option; it takes names joined by commas, of %s", name, strings.Join(allowable(), ", "))
				case k.own != "":
					return fault.New(fault.Invalid, "nfs option allow: %s is the store's, not a volume's: %s", name, k.own)
				case slices.Contains(names[:i], name):
					return fault.New(fault.Invalid, "nfs option allow: %s is there twice; name it once", name)
				}
			}
			o.Allow = allowed(names)
			return nil
		},
		said: func(o Options) (string, bool) { return string(o.Allow), o.Allow != "" },
	}
}

// allowable are the names that option allow takes.
func allowable() (names []string) {
	for _, k := range Known() {
		if k.Volume {
			names = append(names, k.Name)
		}
	}
	return names
}

func allowed(names []string) Allowed {
	return Allowed(strings.Join(slices.DeleteFunc(allowable(), func(name string) bool { return !slices.Contains(names, name) }), ","))
}

// setTimes is option actimeo (nfs_fs_context_parse_param of fs/nfs/fs_context.c does the same).
func (o *Options) setTimes(n Number) { o.AcRegMin, o.AcRegMax, o.AcDirMin, o.AcDirMax = n, n, n, n }

// oneTime is what the four times are, where they are one.
func (o Options) oneTime() Number {
	if t := o.AcRegMin; t == o.AcRegMax && t == o.AcDirMin && t == o.AcDirMax {
		return t
	}
	return Number{}
}

// parseNumber reads digits alone: no sign, and no leading zero, which is octal to one and decimal to another. A base of 8 has one.
func parseNumber(text string, base int) (uint32, bool) {
	n, err := strconv.ParseUint(text, base, 32)
	return uint32(n), err == nil && (base == 8 || text == "0" || text[0] != '0')
}

// said is what was given: name -> value.
type said map[string]string

func (s said) has(name string) bool {
	_, ok := s[name]
	return ok
}

// parseOptions reads a store's options.
func parseOptions(text string) (Options, said, error) {
	given := said{}
	if text == "" {
		return Options{}, given, nil
	}
	for item := range strings.SplitSeq(text, "&") {
		name, value, hasValue := strings.Cut(item, "=")
		name = strings.ToLower(name)
		switch {
		case item == "":
			return Options{}, nil, fault.New(fault.Invalid, "the nfs options %q have an empty one; separate options by one &", text)
		case name != "allow" && strings.Contains(item, ","):
			return Options{}, nil, fault.New(fault.Invalid, "nfs option %q has a comma; separate options by &, as in soft&timeo=50", item)
		case given.has(name):
			return Options{}, nil, fault.New(fault.Invalid, "nfs option %s is there twice; give it once", name)
		}
		k, ok := find(name)
		if !ok {
			return Options{}, nil, unknown(name, func() string { return "the options are " + listed(Known()) })
		}
		if err := k.form(value, hasValue); err != nil {
			return Options{}, nil, err
		}
		given[name] = value
	}
	o, err := Options{}.with(given)
	if err != nil {
		return Options{}, nil, err
	}
	return o, given, o.checkStore(given)
}

func listed(known []KnownOption) string {
	names := make([]string, len(known))
	for i, k := range known {
		names[i] = k.Name
	}
	return strings.Join(names, ", ")
}

func unknown(name string, known func() string) error {
	if u, ok := unspoken[name]; ok {
		return fault.New(u.kind, "nfs option %s is not one of vch's: %s", name, u.why)
	}
	return fault.New(fault.Invalid, "nfs option %q is not known; %s", name, known())
}

// form checks that there is a value where there has to be one.
func (k option) form(value string, hasValue bool) error {
	switch {
	case k.Values == "" && hasValue:
		return fault.New(fault.Invalid, "nfs option %s takes no value, and %q is one; write %s alone", k.Name, value, k.Name)
	case k.Values != "" && value == "":
		return fault.New(fault.Invalid, "nfs option %s needs a value; write %s=VALUE, of %s", k.Name, k.Name, k.Values)
	case strings.ContainsFunc(value, func(c rune) bool { return unicode.IsSpace(c) || unicode.IsControl(c) }):
		return fault.New(fault.Invalid, "nfs option %s: %q has spaces or control characters; leave them out", k.Name, value)
	}
	return nil
}

// exclusive are options of which one at most is given.
var exclusive = [][2]string{
	{"vers", "nfsvers"},
	{"lock", "nolock"},
	{"ro", "rw"},
	{"sync", "async"},
	{"hard", "soft"},
	{"ac", "noac"},
	{"actimeo", "acregmin"},
	{"actimeo", "acregmax"},
	{"actimeo", "acdirmin"},
	{"actimeo", "acdirmax"},
}

// with is o and what is given on top. It checks what holds for stores and volumes.
func (o Options) with(given said) (Options, error) {
	for _, pair := range exclusive {
		if given.has(pair[0]) && given.has(pair[1]) {
			return Options{}, fault.New(fault.Invalid, "nfs options %s and %s are two answers to one question; give one of them", pair[0], pair[1])
		}
	}
	for _, k := range table() {
		if value, ok := given[k.Name]; ok {
			if err := k.set(&o, value); err != nil {
				return Options{}, err
			}
		}
	}
	if o.NoAC {
		for _, name := range []string{"async", "actimeo", "acregmin", "acregmax", "acdirmin", "acdirmax"} {
			if given.has(name) {
				return Options{}, fault.New(fault.Invalid, "nfs option %s contradicts noac, which keeps no attributes and writes as with sync; leave one of them out, or say ac", name)
			}
		}
	}
	if err := ordered("acregmin", "acregmax", o.AcRegMin, o.AcRegMax, 3, 60); err != nil {
		return Options{}, err
	}
	if err := ordered("acdirmin", "acdirmax", o.AcDirMin, o.AcDirMax, 30, 60); err != nil {
		return Options{}, err
	}
	if o.Squash == SquashRoot && o.UID == 0 {
		return Options{}, fault.New(fault.Invalid, "nfs option squash=root needs a uid other than 0: the server makes root nobody, who cannot make volumes; say uid=NUMBER of the directory's owner")
	}
	return o, nil
}

// ordered checks one pair of times. The kernel takes any, and then keeps attributes for the least, however long; its defaults (NFS_DEF_AC… of include/linux/nfs_fs.h) count too.
func ordered(least, most string, a, b Number, defaultA, defaultB uint32) error {
	note := func(n *Number, standard uint32) string {
		if n.Given {
			return ""
		}
		n.N = standard
		return " (the default)"
	}
	noteA, noteB := note(&a, defaultA), note(&b, defaultB)
	if a.N <= b.N {
		return nil
	}
	return fault.New(fault.Invalid, "nfs option %s=%d%s is more than %s=%d%s; give both, the first not above the second", least, a.N, noteA, most, b.N, noteB)
}

// checkStore checks what holds for stores alone.
func (o Options) checkStore(given said) error {
	switch {
	case given.has("lock") && o.NoLock():
		return fault.New(fault.Unsupported, "nfs option lock: file locks of version 3 stay within one container VM; say vers=4, which locks on the server, or leave lock out")
	case given.has("nolock") && !o.NoLock():
		return fault.New(fault.Invalid, "nfs option nolock contradicts vers=%s: version 4 always locks on the server; leave it out", o.Vers)
	case o.MountPort != 0 && o.Vers != V3:
		return fault.New(fault.Invalid, "nfs option mountport contradicts vers=%s: only version 3 has a mountd; say vers=3, or leave mountport out", o.Vers)
	}
	for _, name := range []string{"uid", "gid", "mode", "squash"} {
		if o.ReadOnly && (given.has(name) || o.Allow.Has(name)) {
			return fault.New(fault.Invalid, "nfs option %s contradicts ro: nothing is made in a store that is ro; leave one of them out", name)
		}
	}
	return nil
}

// ForVolume is o with what a volume sets for itself (docker volume create -o soft -o timeo=50), names in any case. It is given what the volume service does not understand
// itself. Only what o.Allow names is taken. Where a volume says noac, the store's times of attributes do not hold; ro it can turn on, never off. Volumes have no Allow.
func (o Options) ForVolume(driverOpts map[string]string) (Options, error) {
	given := said{}
	for _, key := range slices.Sorted(maps.Keys(driverOpts)) {
		name, value := strings.ToLower(key), driverOpts[key]
		if given.has(name) {
			return Options{}, fault.New(fault.Invalid, "nfs option %s is there twice, in different case; give it once", name)
		}
		if err := o.lets(name); err != nil {
			return Options{}, err
		}
		k, _ := find(name)                                 // lets found it
		if err := k.form(value, value != ""); err != nil { // Docker's CLI has "" for -o soft
			return Options{}, err
		}
		given[name] = value
	}
	o.Allow = ""
	return o.with(given)
}

// lets checks that a volume may set the option.
func (o Options) lets(name string) error {
	k, ok := find(name)
	switch {
	case !ok:
		return unknown(name, func() string {
			if o.Allow == "" {
				return "this store lets its volumes set none"
			}
			return "this store lets its volumes set " + strings.Join(o.Allow.Names(), ", ")
		})
	case k.own != "":
		return fault.New(fault.Invalid, "option %s is the store's, not a volume's: %s", name, k.own)
	case o.ReadOnly && (name == "uid" || name == "gid" || name == "mode"):
		return fault.New(fault.Invalid, "option %s is for new volumes, and this store is ro: nothing is made in it", name)
	case !o.Allow.Has(name):
		return fault.New(fault.Denied, "option %s is not allowed for volumes of this store; its administrator can allow it: ?allow=%s", name, allowed(append(o.Allow.Names(), name)))
	}
	return nil
}

// Mount is how the guest's kernel mounts it: data for mount(2) as fs/nfs/fs_context.c reads it, and words of mount(8) that are flags of mount(2), which are no data (NFS
// refuses noatime there). The caller adds what depends on addresses and on what was negotiated: vers, addr, port, clientaddr, mountaddr, mountport.
func (o Options) Mount() (data, flags []string) {
	// Not proto=tcp: that is IPv4 alone, and EINVAL with an IPv6 addr (nfs_fs_context_validate).
	if o.Proto == TCP6 {
		data = append(data, "proto=tcp6")
	} else {
		data = append(data, "tcp")
	}
	if o.Soft {
		data = append(data, "soft")
	} else {
		data = append(data, "hard")
	}
	data = append(data, "sec=sys")
	if o.NoLock() {
		data = append(data, "nolock")
	}
	for _, k := range table() {
		if value, ok := k.said(o); ok && k.data {
			data = append(data, k.text(value))
		}
	}
	for _, f := range []struct {
		on   bool
		word string
	}{{o.ReadOnly, "ro"}, {o.Sync, "sync"}, {o.NoAtime, "noatime"}} {
		if f.on {
			flags = append(flags, f.word)
		}
	}
	return data, flags
}

// String is the canonical text: vers, and whatever is not the default.
func (o Options) String() string {
	var items []string
	for _, k := range table() {
		if value, ok := k.said(o); ok {
			items = append(items, k.text(value))
		}
	}
	return strings.Join(items, "&")
}

// Shown is everything that holds, the defaults of vch too, as sorted NAME=VALUE; a word without a value is NAME=true. What the guest's kernel decides is not in it.
func (o Options) Shown() []string {
	shown := map[string]string{
		"proto": o.Proto.String(),
		"sec":   "sys",
		"uid":   strconv.FormatUint(uint64(o.UID), 10),
		"gid":   strconv.FormatUint(uint64(o.GID), 10),
		"mode":  fmt.Sprintf("%04o", o.DirMode()),
	}
	for _, k := range table() {
		if value, ok := k.said(o); ok && k.Values != "" {
			shown[k.Name] = value
		} else if ok {
			shown[k.Name] = "true"
		}
	}
	for _, pair := range []struct {
		first       bool
		name, other string
	}{
		{o.ReadOnly, "ro", "rw"},
		{o.Sync || o.NoAC, "sync", "async"}, // nfs(5): noac writes as with sync
		{o.Soft, "soft", "hard"},
		{o.NoAC, "noac", "ac"},
		{o.NoLock(), "nolock", "lock"},
	} {
		if pair.first {
			shown[pair.name] = "true"
		} else {
			shown[pair.other] = "true"
		}
	}
	items := make([]string, 0, len(shown))
	for name, value := range shown {
		items = append(items, name+"="+value)
	}
	slices.Sort(items)
	return items
}
