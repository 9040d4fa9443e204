package main

import (
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"net"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"sort"
	"strconv"
	"strings"
	"time"

	"github.com/BurntSushi/toml"
	"github.com/docker/go-units"
	"github.com/spf13/pflag"

	"vch/personality/mountspec"
	"vch/portlayer"
	"vch/portlayer/image"
	"vch/portlayer/volume/nfs"
)

// settings is a VCH's configuration, checked as far as that goes without touching the machine.
type settings struct {
	State             string // absolute
	Listen            []address
	TLS               *tlsFiles // nil: no TCP address has TLS
	Stores            []storePlace
	Degrade           bool               // a store that is not there keeps no daemon from starting, and nothing is made in its place
	Images            string             // absolute: the directory of images
	ImageDisks        portlayer.DiskPath // of their disks, with VSphere: a directory of a datastore
	VSphere           *vsphereTarget
	NFSTimeout        time.Duration
	BindAllow         []string // absolute
	Bridges           bool     // networks are the kernel's
	Mirrors           []image.Mirror
	Insecure          image.Insecure
	AnonymousCapacity portlayer.Bytes
	AnonymousBasic    mountspec.Basic
	DefaultCapacity   portlayer.Bytes
	Memory            portlayer.Bytes
	CPUs              int64 // billionths of a processor
	Accel             string
	Template          bool
	Warm              int    // -1: as memory allows
	Cache             string // absolute
	QEMU              string
	Kernel            string
	LogLevel          slog.Level
	LogJSON           bool
}

// storePlace is one --volume-store.
type storePlace struct {
	Path      string // absolute, clean, or a datastore's; "" with NFS
	Name      portlayer.StoreName
	Datastore bool          // Path is "[DATASTORE] PATH"
	NFS       *nfs.Location // nil: it is a directory of this host
}

// String is where the store is, for messages.
func (p storePlace) String() string {
	if p.NFS != nil {
		return p.NFS.String()
	}
	return p.Path
}

// words is where the store is, as a command line says it.
func (p storePlace) words() string {
	if !p.Datastore {
		return p.String()
	}
	name, path, _ := strings.Cut(strings.TrimPrefix(p.Path, "["), "]")
	return "ds://" + name + "/" + strings.TrimSpace(path)
}

// surroundings is what defaults depend on.
type surroundings struct {
	Root bool
	Home string            // "" : unknown
	Dir  string            // the working directory
	Env  map[string]string // XDG_DATA_HOME, XDG_RUNTIME_DIR
}

func here() surroundings {
	s := surroundings{Root: os.Geteuid() == 0, Env: map[string]string{}}
	s.Home, _ = os.UserHomeDir() // "" is what it means to have none
	s.Dir, _ = os.Getwd()
	for _, name := range []string{"XDG_DATA_HOME", "XDG_RUNTIME_DIR"} {
		s.Env[name] = os.Getenv(name)
	}
	return s
}

// words are the settings as they are written: flags, and the same names in the configuration file.
type words struct {
	state, cache, accel, template, warm, qemu, kernel, logLevel, logFormat, config string
	anonymousCapacity, defaultCapacity, memory, cpus                               string
	anonymousOpts, nfsTimeout                                                      string
	listen, plain, stores, bindAllow, mirrors, insecure                            []string
	networkBackend                                                                 string
	tlsVerify                                                                      bool
	tlsCA, tlsCert, tlsKey                                                         string
	tlsNames                                                                       []string
	imageStore, absentStores                                                       string
	vsphereWords
}

// configFlag is the one flag that a configuration file cannot hold.
const configFlag = "config"

// flags adds the flags that fill w.
func (w *words) flags(f *pflag.FlagSet) {
	f.SortFlags = false
	// The word in back quotes stands for the value in the help (pflag.UnquoteUsage).
	f.StringArrayVar(&w.listen, "listen", nil, "listen at this `ADDRESS`, unix:///PATH or tcp://HOST:PORT; may be given several times (root: unix:///var/run/vch.sock; otherwise vch.sock in $XDG_RUNTIME_DIR or the state directory)")
	f.BoolVar(&w.tlsVerify, "tlsverify", false, "TCP addresses speak TLS, and ask clients for a certificate")
	f.StringVar(&w.tlsCA, "tlscacert", "", "check clients' certificates by those in this `FILE` (default: what vch cert makes)")
	f.StringVar(&w.tlsCert, "tlscert", "", "the server's certificate, a `FILE`")
	f.StringVar(&w.tlsKey, "tlskey", "", "its key, a `FILE`")
	f.StringArrayVar(&w.tlsNames, "tls-cname", nil, "a `NAME` or address that the server's certificate that vch makes is to hold, beside this machine's own; may be given several times")
	f.StringArrayVar(&w.plain, "plain-tcp", nil, "have a TCP `ADDRESS` of --listen plain: whoever reaches it can do everything")
	f.StringArrayVar(&w.stores, "volume-store", nil, "keep volumes in the directory PATH, as the store NAME: `PATH:NAME`, with --target on a datastore: ds://DATASTORE/PATH:NAME, or on an NFS server: 'nfs://HOST[:PORT]/EXPORT?OPTIONS:NAME'; may be given several times; the one called default takes anonymous volumes and those that name no store")
	f.StringVar(&w.absentStores, "absent-stores", "refuse", "`WHAT` to do with a volume store that cannot be used at the start: refuse to start; or degrade: start without it, make nothing in its place, and use it when it is there; a --target that cannot be reached is then waited for")
	f.StringVar(&w.imageStore, "image-store", "", "keep images in this `DIRECTORY` (default: images in the state directory); with --target, images' disks and machines on a datastore: ds://DATASTORE/PATH")
	f.StringVar(&w.nfsTimeout, "nfs-timeout", "10s", "how long an NFS server may take to answer before that is an error, a `DURATION` from 1s to 10m")
	f.StringArrayVar(&w.bindAllow, "bind-allow", nil, "let containers mount what is in this `DIRECTORY` of the host (docker run -v /path:/path); may be given several times (default: none)")
	f.StringArrayVar(&w.mirrors, "registry-mirror", nil, "ask the registry at this `URL`, http[s]://HOST[:PORT], for Docker Hub's images first; may be given several times")
	f.StringArrayVar(&w.insecure, "insecure-registry", nil, "let this `REGISTRY`, HOST[:PORT] or a network as 10.0.0.0/8, speak http, or https with any certificate; may be given several times")
	f.StringVar(&w.networkBackend, "network-backend", "user", "`WHAT` networks are made of: user, in this process, without root and without a trace on the host; or bridge, in the kernel, as root")
	f.StringVar(&w.state, "state", "", "keep everything else in this `DIRECTORY` (root: /var/lib/vch; otherwise vch in $XDG_DATA_HOME or ~/.local/share)")
	f.StringVar(&w.defaultCapacity, "default-capacity", "1G", "`SIZE` of a new named volume that names none; sparse: it takes what is written")
	f.StringVar(&w.anonymousCapacity, "anonymous-capacity", "1G", "`SIZE` of a new anonymous volume")
	f.StringVar(&w.anonymousOpts, "anonymous-volume-opts", "", "what holds for an anonymous volume of which nothing is said, a `LIST` as in -v /path:LIST: nocopy,Capacity=2G,VolumeStore=fast")
	f.StringVar(&w.memory, "memory", "512M", "memory of a container that names none, a `SIZE` (docker run --memory)")
	f.StringVar(&w.cpus, "cpus", "1", "processors of a container that names none, a `NUMBER` (docker run --cpus)")
	f.StringVar(&w.accel, "accel", "auto", "`HOW` machines run: kvm, tcg (emulation), or auto: kvm where it really boots a machine")
	f.StringVar(&w.template, "template", "auto", "start machines as forks of a template, which share its memory pages: auto; or boot every one: off, for tenants who must not share them")
	f.StringVar(&w.warm, "warm", "auto", "how many forks to keep ready, a `NUMBER`: each takes about 60 MB and makes a start quicker; 0 keeps none, auto as many as free memory suggests, 4 at most")
	f.StringVar(&w.cache, "cache", "", "keep the guests' kernel and templates in this `DIRECTORY`, which several vch of one user may share (default: cache in the state directory)")
	f.StringVar(&w.qemu, "qemu", "", "QEMU's `PROGRAM` (default: qemu-system-x86_64 in PATH)")
	f.StringVar(&w.kernel, "kernel", "", "the guests' kernel, a `FILE` whose modules are in /lib/modules (default: the newest in /boot that has them)")
	f.StringVar(&w.logLevel, "log-level", "info", "`LEVEL` to log from: debug, info, warn, error")
	f.StringVar(&w.logFormat, "log-format", "text", "`FORMAT` of the log: text, json")
	w.vsphereWords.flags(f)
	f.StringVar(&w.config, configFlag, "", "a TOML `FILE` with the same names; flags win")
}

// fromFile puts what a configuration file says into the flags that the command line left alone.
func fromFile(f *pflag.FlagSet, path string) error {
	text, err := os.ReadFile(path)
	if err != nil {
		var pe *fs.PathError
		if errors.As(err, &pe) {
			err = pe.Err
		}
		return usagef("cannot read configuration file %s: %w", path, err)
	}
	return fromText(f, path, string(text))
}

func fromText(f *pflag.FlagSet, path, text string) error {
	var table map[string]any
	if _, err := toml.Decode(text, &table); err != nil {
		return usagef("configuration file %s is not TOML: %w", path, err)
	}
	keys := make([]string, 0, len(table))
	for key := range table {
		keys = append(keys, key)
	}
	sort.Strings(keys)
	for _, key := range keys {
		flag := f.Lookup(key)
		if flag == nil || key == configFlag || key == "help" {
			return usagef("configuration file %s: there is no setting %q; the settings are %s", path, key, names(f))
		}
		if flag.Changed {
			continue
		}
		values, err := textsOf(table[key])
		if err != nil {
			return usagef("configuration file %s: %s: %w", path, key, err)
		}
		list, many := flag.Value.(pflag.SliceValue)
		if many {
			err = list.Replace(values)
		} else if len(values) != 1 {
			err = fmt.Errorf("one value is wanted, not a list")
		} else {
			err = flag.Value.Set(values[0])
		}
		if err != nil {
			return usagef("configuration file %s: %s: %w", path, key, err)
		}
	}
	return nil
}

func names(f *pflag.FlagSet) string {
	var all []string
	f.VisitAll(func(flag *pflag.Flag) {
		if flag.Name != configFlag && flag.Name != "help" {
			all = append(all, flag.Name)
		}
	})
	return strings.Join(all, ", ")
}

// textsOf gives a TOML value as it would be written on a command line.
func textsOf(value any) ([]string, error) {
	switch v := value.(type) {
	case string:
		return []string{v}, nil
	case int64:
		return []string{strconv.FormatInt(v, 10)}, nil
	case float64:
		return []string{strconv.FormatFloat(v, 'f', -1, 64)}, nil
	case bool:
		return []string{strconv.FormatBool(v)}, nil
	case []any:
		texts := []string{}
		for _, item := range v {
			text, ok := item.(string)
			if !ok {
				return nil, fmt.Errorf("a list of strings is wanted; %v is none", item)
			}
			texts = append(texts, text)
		}
		return texts, nil
	}
	return nil, fmt.Errorf("a string, a number, true, false or a list of strings is wanted, not %v", value)
}

// settings checks the words and fills in the defaults.
func (w words) settings(at surroundings) (settings, error) {
	s := settings{Accel: w.accel, QEMU: w.qemu, Kernel: w.kernel}
	var err error
	if s.State, err = statePath(w.state, at); err != nil {
		return s, err
	}
	if s.Listen, err = addresses(w.listen, w.plain, w.tlsVerify, s.State, at); err != nil {
		return s, err
	}
	if s.TLS, err = w.tls(s, at); err != nil {
		return s, err
	}
	if s.VSphere, err = w.vsphereWords.parse(); err != nil {
		return s, err
	}
	if s.VSphere != nil {
		if err := w.onlyLocal(); err != nil {
			return s, err
		}
	}
	switch w.absentStores {
	case "refuse", "degrade":
		s.Degrade = w.absentStores == "degrade"
	default:
		return s, usagef("--absent-stores %q is none of refuse, degrade", w.absentStores)
	}
	s.Images = filepath.Join(s.State, "images")
	switch {
	case s.VSphere != nil:
		place, err := parseDatastore(w.imageStore)
		if err != nil {
			return s, usagef("--image-store %q: with --target it says on which datastore images and machines are: ds://DATASTORE/PATH", w.imageStore)
		}
		s.ImageDisks = place
	case w.imageStore != "":
		s.Images = absolute(w.imageStore, at)
	}
	if s.NFSTimeout, err = time.ParseDuration(w.nfsTimeout); err != nil || s.NFSTimeout < time.Second || s.NFSTimeout > 10*time.Minute {
		return s, usagef("--nfs-timeout %q is not a duration from 1s to 10m, such as 10s or 1m30s", w.nfsTimeout)
	}
	if s.Stores, err = storePlaces(w.stores, at, s.VSphere != nil); err != nil {
		return s, err
	}
	for _, dir := range w.bindAllow {
		if dir == "" {
			return s, usagef("--bind-allow takes a directory of this host")
		}
		s.BindAllow = append(s.BindAllow, absolute(dir, at))
	}
	switch w.networkBackend {
	case "user", "bridge":
		s.Bridges = w.networkBackend == "bridge"
	default:
		return s, usagef("--network-backend %q is none of user, bridge", w.networkBackend)
	}
	for _, text := range w.mirrors {
		m, err := image.ParseMirror(text)
		if err != nil {
			return s, usagef("--registry-mirror: %w", err)
		}
		s.Mirrors = append(s.Mirrors, m)
	}
	if s.Insecure, err = image.ParseInsecure(w.insecure); err != nil {
		return s, usagef("--insecure-registry: %w", err)
	}
	// The least that a file system (portlayer.DiskSpec) and a container (Docker's own bound) can be.
	for _, size := range []struct {
		into  *portlayer.Bytes
		flag  string
		text  string
		least portlayer.Bytes
	}{
		{&s.DefaultCapacity, "default-capacity", w.defaultCapacity, 4 * portlayer.MiB},
		{&s.AnonymousCapacity, "anonymous-capacity", w.anonymousCapacity, 4 * portlayer.MiB},
		{&s.Memory, "memory", w.memory, 6 * portlayer.MiB},
	} {
		n, err := units.RAMInBytes(size.text)
		if err != nil {
			return s, usagef("--%s %q is not a size; write a number and a unit, as in 512M or 2G", size.flag, size.text)
		}
		if portlayer.Bytes(n) < size.least {
			return s, usagef("--%s %s is too small; the least is %s", size.flag, size.text, units.BytesSize(float64(size.least)))
		}
		*size.into = portlayer.Bytes(n)
	}
	if s.AnonymousBasic, err = mountspec.ParseBasic(w.anonymousOpts); err != nil {
		return s, usagef("--anonymous-volume-opts %w", err)
	}
	cpus, err := strconv.ParseFloat(w.cpus, 64)
	if err != nil || !(cpus >= 0.01 && cpus <= 255) { // NaN is not either
		return s, usagef("--cpus %q is not a number of processors between 0.01 and 255", w.cpus)
	}
	s.CPUs = int64(cpus*1e9 + 0.5)
	switch s.Accel {
	case "auto", "kvm", "tcg":
	default:
		return s, usagef("--accel %q is none of auto, kvm, tcg", w.accel)
	}
	switch w.template {
	case "auto", "off":
		s.Template = w.template == "auto"
	default:
		return s, usagef("--template %q is none of auto, off", w.template)
	}
	if s.Warm, err = warm(w.warm); err != nil {
		return s, err
	}
	if s.Cache = filepath.Join(s.State, "cache"); w.cache != "" {
		s.Cache = absolute(w.cache, at)
	}
	switch w.logLevel {
	case "debug":
		s.LogLevel = slog.LevelDebug
	case "info":
		s.LogLevel = slog.LevelInfo
	case "warn":
		s.LogLevel = slog.LevelWarn
	case "error":
		s.LogLevel = slog.LevelError
	default:
		return s, usagef("--log-level %q is none of debug, info, warn, error", w.logLevel)
	}
	switch w.logFormat {
	case "text", "json":
		s.LogJSON = w.logFormat == "json"
	default:
		return s, usagef("--log-format %q is none of text, json", w.logFormat)
	}
	return s, nil
}

// mostWarm is more forks than any host's memory would hold with use.
const mostWarm = 1000

// onlyLocal refuses what has no meaning for machines that are not on this host. What asks for how it is there anyway, as --template off, may be said.
func (w words) onlyLocal() error {
	for _, more := range []struct {
		flag, value string
		may         []string
		why         string
	}{
		{"accel", w.accel, []string{"auto"}, "the hosts there choose how machines run"},
		{"qemu", w.qemu, []string{""}, "no QEMU runs them"},
		{"template", w.template, []string{"auto", "off"}, "every machine there boots"},
		{"warm", w.warm, []string{"auto", "0"}, "every machine there boots, and none is kept ready"},
		{"bind-allow", strings.Join(w.bindAllow, " "), []string{""}, noBinds},
	} {
		if !slices.Contains(more.may, more.value) {
			return usagef("--%s has no meaning for machines at --target: %s; leave it out", more.flag, more.why)
		}
	}
	return nil
}

// noBinds is why no machine on vSphere mounts what this host has.
const noBinds = "machines on vSphere share no directory of this VCH's host"

// warm reads --warm; -1 is auto.
func warm(text string) (int, error) {
	if text == "auto" {
		return -1, nil
	}
	n, err := strconv.Atoi(text)
	if err != nil || n < 0 || n > mostWarm {
		return 0, usagef("--warm %q is neither auto nor a number from 0 to %d", text, mostWarm)
	}
	return n, nil
}

func statePath(text string, at surroundings) (string, error) {
	switch {
	case text != "":
		return absolute(text, at), nil
	case at.Root:
		return "/var/lib/vch", nil
	case filepath.IsAbs(at.Env["XDG_DATA_HOME"]): // XDG Base Directory Specification: a relative one is ignored
		return filepath.Join(at.Env["XDG_DATA_HOME"], "vch"), nil
	case at.Home != "":
		return filepath.Join(at.Home, ".local/share/vch"), nil
	}
	return "", usagef("this user has no home directory to keep state in; give --state DIRECTORY")
}

// tls gives the certificates that are to be used.
func (w words) tls(s settings, at surroundings) (*tlsFiles, error) {
	given := 0
	for _, file := range []string{w.tlsCA, w.tlsCert, w.tlsKey} {
		if file != "" {
			given++
		}
	}
	for _, name := range w.tlsNames {
		if net.ParseIP(name) == nil && !hostName.MatchString(name) {
			return nil, usagef("--tls-cname %q is neither a host's name nor an address", name)
		}
	}
	switch {
	case !w.tlsVerify && given > 0:
		return nil, usagef("--tlscacert, --tlscert and --tlskey have a meaning with --tlsverify only")
	case len(w.tlsNames) > 0 && (!w.tlsVerify || given > 0):
		return nil, usagef("--tls-cname is for the certificate that vch makes: with --tlsverify, and without --tlscert")
	case !w.tlsVerify:
		return nil, nil
	case given == 0:
		own := filepath.Join(s.State, "tls")
		return &tlsFiles{CA: filepath.Join(own, caFile), Cert: filepath.Join(own, serverFile), Key: filepath.Join(own, serverKeyFile), Own: own, Names: w.tlsNames}, nil
	case given < 3:
		return nil, usagef("--tlscacert, --tlscert and --tlskey are given together, or none of them")
	}
	return &tlsFiles{CA: absolute(w.tlsCA, at), Cert: absolute(w.tlsCert, at), Key: absolute(w.tlsKey, at)}, nil
}

// hide takes all flags but some out of a command's help: a configuration file may hold them.
func (w *words) hide(f *pflag.FlagSet, but ...string) {
	var all words
	names := pflag.NewFlagSet("", pflag.ContinueOnError)
	all.flags(names)
	names.VisitAll(func(flag *pflag.Flag) {
		if !slices.Contains(but, flag.Name) {
			_ = f.MarkHidden(flag.Name) // w.flags has added it
		}
	})
}

// hostName is a name as certificates hold it (RFC 6125), a wildcard in its first place.
var hostName = regexp.MustCompile(`^(\*\.)?[a-zA-Z0-9]([a-zA-Z0-9-]*[a-zA-Z0-9])?(\.[a-zA-Z0-9]([a-zA-Z0-9-]*[a-zA-Z0-9])?)*$`)

// storeName is portlayer.StoreName's rule.
var storeName = regexp.MustCompile(`^[a-zA-Z0-9][a-zA-Z0-9_-]*$`)

func storePlaces(texts []string, at surroundings, datastores bool) (places []storePlace, err error) {
	for _, text := range texts {
		place, err := parseStorePlace(text, at, datastores)
		if err != nil {
			return nil, err
		}
		for _, other := range places {
			switch {
			case other.Name == place.Name:
				return nil, usagef("two volume stores are called %s: %s and %s; give one another name", place.Name, other, place)
			case place.NFS != nil && other.NFS != nil && sameExport(*place.NFS, *other.NFS):
				return nil, usagef("volume stores %s and %s are one export, %s; leave one out, or give one of them the option ro", other.Name, place.Name, place)
			case place.NFS != nil || other.NFS != nil:
			case other.Path == place.Path:
				return nil, usagef("volume stores %s and %s are one directory, %s; leave one out", other.Name, place.Name, place.Path)
			case within(other.Path, place.Path) || within(place.Path, other.Path):
				return nil, usagef("volume stores %s and %s lie one inside the other (%s, %s); give them separate directories", other.Name, place.Name, other.Path, place.Path)
			}
		}
		places = append(places, place)
	}
	return places, nil
}

// sameExport says whether two stores would make the same volumes.
func sameExport(a, b nfs.Location) bool {
	return a.Host == b.Host && a.Port == b.Port && a.Path == b.Path && !a.Options.ReadOnly && !b.Options.ReadOnly
}

func parseStorePlace(text string, at surroundings, datastores bool) (place storePlace, err error) {
	scheme, _, remote := strings.Cut(text, "://")
	onDatastore := strings.EqualFold(scheme, "ds") || datastores && (!remote || strings.HasPrefix(text, "["))
	if onDatastore {
		return parseDatastoreStore(text, datastores)
	}
	if remote && !strings.EqualFold(scheme, "nfs") {
		return place, usagef("--volume-store %s: there are no stores of the kind %s://; use a directory of this host, PATH:NAME, an NFS export, nfs://HOST/EXPORT:NAME, or, with --target, a datastore, ds://DATASTORE/PATH:NAME", text, scheme)
	}
	// The name stands after the last colon: a path may hold others.
	colon := strings.LastIndexByte(text, ':')
	if colon <= 0 || colon == len(text)-1 || remote && strings.ContainsAny(text[colon:], "/?&") {
		grammar := "PATH:NAME"
		if remote {
			grammar = "nfs://HOST[:PORT]/EXPORT?OPTIONS:NAME"
		}
		return place, usagef("--volume-store %q is not %s", text, grammar)
	}
	place.Name = portlayer.StoreName(text[colon+1:])
	if strings.HasPrefix(text, "[") {
		return place, usagef("--volume-store %s: a datastore keeps volumes of a VCH with --target only; use a directory of this host: PATH:NAME", text)
	}
	if !storeName.MatchString(string(place.Name)) {
		return place, usagef("--volume-store %s: %q cannot be a store's name: it begins with a letter or a digit, and holds letters, digits, _ and - only", text, place.Name)
	}
	if remote {
		location, err := nfs.ParseLocation(text[:colon])
		if err != nil {
			return place, usagef("--volume-store %s: %w", text, err)
		}
		place.NFS = &location
		return place, nil
	}
	place.Path = absolute(text[:colon], at)
	if strings.ContainsAny(place.Path, "\x00\n\r\"") {
		return place, usagef("--volume-store %q: a path with a line break or a quotation mark cannot be written into a disk's descriptor", text)
	}
	return place, nil
}

// parseDatastoreStore reads ds://DATASTORE/PATH:NAME, or the same without ds://, or [DATASTORE] PATH:NAME.
func parseDatastoreStore(text string, datastores bool) (place storePlace, err error) {
	if !datastores {
		return place, usagef("--volume-store %s: a datastore keeps volumes of a VCH with --target only; use a directory of this host: PATH:NAME", text)
	}
	colon := strings.LastIndexByte(text, ':')
	if colon <= 0 || colon == len(text)-1 || strings.ContainsAny(text[colon:], "/]") {
		return place, usagef("--volume-store %q is not ds://DATASTORE/PATH:NAME", text)
	}
	place.Name = portlayer.StoreName(text[colon+1:])
	if !storeName.MatchString(string(place.Name)) {
		return place, usagef("--volume-store %s: %q cannot be a store's name: it begins with a letter or a digit, and holds letters, digits, _ and - only", text, place.Name)
	}
	at, err := parseDatastore(text[:colon])
	if err != nil {
		return place, usagef("--volume-store %s: %w", text, err)
	}
	place.Path, place.Datastore = string(at), true
	return place, nil
}

// parseDatastore reads ds://DATASTORE/PATH, or the same without ds://, or [DATASTORE] PATH.
func parseDatastore(text string) (portlayer.DiskPath, error) {
	store, path, bracketed := strings.Cut(strings.TrimPrefix(text, "["), "]")
	if !strings.HasPrefix(text, "[") || !bracketed {
		rest := text
		if len(rest) >= 5 && strings.EqualFold(rest[:5], "ds://") {
			rest = rest[5:]
		}
		store, path, _ = strings.Cut(rest, "/")
	}
	path = strings.TrimPrefix(filepath.Clean("/"+strings.TrimSpace(path)), "/")
	switch {
	case store == "":
		return "", fmt.Errorf("it names no datastore: ds://DATASTORE/PATH")
	case strings.ContainsAny(store+path, "\x00\n\r\"[]\\%"):
		return "", fmt.Errorf("a datastore's path holds none of [ ] \\ %% and quotation marks")
	case path == "":
		return portlayer.DiskPath("[" + store + "]"), nil
	}
	return portlayer.DiskPath("[" + store + "] " + path), nil
}

// within says whether path lies below dir.
func within(dir, path string) bool {
	if strings.HasSuffix(dir, "]") && strings.HasPrefix(path, dir+" ") { // a datastore's root
		return true
	}
	return strings.HasPrefix(path, strings.TrimSuffix(dir, "/")+"/")
}

func absolute(path string, at surroundings) string {
	if filepath.IsAbs(path) {
		return filepath.Clean(path)
	}
	return filepath.Join(at.Dir, path)
}
