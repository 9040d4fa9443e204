package main

import (
	"log/slog"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/spf13/pflag"

	"vch/portlayer"
	"vch/portlayer/volume/nfs"
)

// parse is what serve does with a command line, up to where the machine is touched.
func parse(at surroundings, file string, args ...string) (settings, error) {
	var w words
	f := pflag.NewFlagSet("vch", pflag.ContinueOnError)
	w.flags(f)
	if err := f.Parse(args); err != nil {
		return settings{}, err
	}
	if file != "" {
		if err := fromText(f, "vch.toml", file); err != nil {
			return settings{}, err
		}
	}
	return w.settings(at)
}

var (
	asRoot = surroundings{Root: true, Home: "/root", Dir: "/work", Env: map[string]string{}}
	asUser = surroundings{Home: "/home/ann", Dir: "/home/ann/src", Env: map[string]string{}}
)

func TestDefaults(t *testing.T) {
	common := settings{AnonymousCapacity: portlayer.GiB, DefaultCapacity: portlayer.GiB, Memory: 512 * portlayer.MiB, CPUs: 1e9, Accel: "auto", Template: true, Warm: -1, LogLevel: slog.LevelInfo, NFSTimeout: 10 * time.Second}
	for _, tc := range []struct {
		name          string
		at            surroundings
		state, socket string
	}{
		{"root", asRoot, "/var/lib/vch", "/var/run/vch.sock"},
		{"user", asUser, "/home/ann/.local/share/vch", "/home/ann/.local/share/vch/vch.sock"},
		{"user with XDG", surroundings{Home: "/home/ann", Env: map[string]string{"XDG_DATA_HOME": "/data", "XDG_RUNTIME_DIR": "/run/user/7"}}, "/data/vch", "/run/user/7/vch.sock"},
		{"a relative XDG directory does not count", surroundings{Home: "/home/ann", Env: map[string]string{"XDG_DATA_HOME": "data", "XDG_RUNTIME_DIR": "run"}}, "/home/ann/.local/share/vch", "/home/ann/.local/share/vch/vch.sock"},
	} {
		t.Run(tc.name, func(t *testing.T) {
			want := common
			want.State, want.Listen, want.Cache, want.Images = tc.state, []address{{"unix", tc.socket}}, tc.state+"/cache", tc.state+"/images"
			got, err := parse(tc.at, "")
			if err != nil {
				t.Fatal(err)
			}
			if diff := cmp.Diff(want, got); diff != "" {
				t.Error(diff)
			}
		})
	}
}

func TestEverySetting(t *testing.T) {
	want := settings{
		State: "/work/st", Listen: []address{{"unix", "/run/a"}, {"tcp", "[::1]:2376"}, {"unix", "/run/b"}},
		TLS: &tlsFiles{CA: "/work/c", Cert: "/s", Key: "/k2"},
		Stores: []storePlace{{Path: "/disks:with colon", Name: "default"}, {Path: "/work/rel", Name: "fast-1"},
			{Name: "nas", NFS: &nfs.Location{Host: "h", Port: 2050, Path: "/e", Options: nfs.Options{Soft: true, UID: 5, Allow: "sync,retrans"}}}, {Name: "again", NFS: &nfs.Location{Host: "h", Port: 2050, Path: "/e", Options: nfs.Options{ReadOnly: true}}}},
		NFSTimeout:      90 * time.Second,
		DefaultCapacity: 2 * portlayer.GiB, AnonymousCapacity: 64 * portlayer.MiB, Memory: portlayer.GiB, CPUs: 15e8,
		Accel: "tcg", Warm: 3, Cache: "/work/kept", Images: "/work/pictures", Degrade: true, QEMU: "/opt/qemu", Kernel: "/k", LogLevel: slog.LevelDebug, LogJSON: true,
	}
	byFlags := []string{"--state", "st", "--listen", "unix:///run/a", "--listen", "tcp://[::1]", "--listen", "unix:///run/./b", "--tlsverify", "--tlscacert", "c", "--tlscert", "/s", "--tlskey", "/k2", "--volume-store", "/disks:with colon:default", "--volume-store", "rel/:fast-1",
		"--volume-store", "nfs://h:2050/e?soft&uid=5&allow=retrans,sync:nas", "--volume-store", "NFS://H/e?port=2050&ro:again", "--nfs-timeout", "1m30s",
		"--default-capacity", "2G", "--anonymous-capacity", "64m", "--memory", "1g", "--cpus", "1.5", "--accel", "tcg", "--template", "off", "--warm", "3", "--cache", "kept", "--image-store", "pictures", "--absent-stores", "degrade", "--qemu", "/opt/qemu", "--kernel", "/k", "--log-level", "debug", "--log-format", "json"}
	const byFile = `
state = "st"
listen = ["unix:///run/a", "tcp://[::1]:2376", "unix:///run/b"]
tlsverify = true
tlscacert = "c"
tlscert = "/s"
tlskey = "/k2"
volume-store = ["/disks:with colon:default", "rel/:fast-1", "nfs://h:2050/e?soft&uid=5&allow=retrans,sync:nas", "nfs://h:2050/e?ro:again"]
nfs-timeout = "90s"
default-capacity = "2G"
anonymous-capacity = "64m"
memory = "1g"
cpus = 1.5
accel = "tcg"
template = "off"
warm = 3
cache = "kept"
image-store = "pictures"
absent-stores = "degrade"
target = "local"
qemu = "/opt/qemu"
kernel = "/k"
log-level = "debug"
log-format = "json"
`
	for _, tc := range []struct {
		name, file string
		args       []string
	}{
		{"by flags", "", byFlags},
		{"by file", byFile, nil},
		{"flags win", strings.NewReplacer("64m", "8m", "off", "auto", "= 3", "= 4", "/run/a", "/run/c", "tcg", "kvm").Replace(byFile), byFlags},
	} {
		t.Run(tc.name, func(t *testing.T) {
			got, err := parse(asRoot, tc.file, tc.args...)
			if err != nil {
				t.Fatal(err)
			}
			if diff := cmp.Diff(want, got); diff != "" {
				t.Error(diff)
			}
		})
	}
}

func TestRefused(t *testing.T) {
	long := "unix:///" + strings.Repeat("x", 107)
	for _, tc := range []struct {
		args []string
		file string
		want string
	}{
		{[]string{"--listen", "tcp://0.0.0.0:2375"}, "", "whoever reaches it could do everything"},
		{[]string{"--listen", "tcp://0.0.0.0:2375", "--plain-tcp", "tcp://0.0.0.0:2376"}, "", "whoever reaches it could do everything"},
		{[]string{"--plain-tcp", "tcp://0.0.0.0:2376"}, "", "there is no --listen tcp://0.0.0.0:2376"},
		{[]string{"--listen", "tcp://a:1", "--plain-tcp", "tcp://a:1", "--tlsverify"}, "", "leave one of the two out"},
		{[]string{"--listen", "tcp://a:b"}, "", "is no port"},
		{[]string{"--listen", "tcp://a:70000"}, "", "is no port"},
		{[]string{"--listen", "http://a:1"}, "", "is neither unix:///PATH nor tcp://HOST:PORT"},
		{[]string{"--tlscert", "/x"}, "", "have a meaning with --tlsverify only"},
		{[]string{"--tlsverify", "--tlscert", "/x"}, "", "are given together"},
		{[]string{"--listen", "/run/vch.sock"}, "", "is neither unix:///PATH"},
		{[]string{"--listen", "unix://run/vch.sock"}, "", "three slashes"},
		{[]string{"--listen", long}, "", "has 108; choose a shorter one"},
		{[]string{"--listen", "unix:///a", "--listen", "unix:////a"}, "", "twice"},
		{[]string{"--volume-store", "/a"}, "", `"/a" is not PATH:NAME`},
		{[]string{"--volume-store", ":default"}, "", "is not PATH:NAME"},
		{[]string{"--volume-store", "/a:"}, "", "is not PATH:NAME"},
		{[]string{"--volume-store", "/a:de fault"}, "", "cannot be a store's name"},
		{[]string{"--volume-store", "/a:../x"}, "", "cannot be a store's name"},
		{[]string{"--volume-store", "/a:ü"}, "", "cannot be a store's name"},
		{[]string{"--volume-store", "/a\"b:x"}, "", "quotation mark"},
		{[]string{"--volume-store", "cifs://host/export:nas"}, "", "no stores of the kind cifs://"},
		{[]string{"--volume-store", "nfs://host/export?bogus=1:nas"}, "", `nfs option "bogus" is not known`},
		{[]string{"--volume-store", "nfs://host:2049/export"}, "", "is not nfs://HOST[:PORT]/EXPORT?OPTIONS:NAME"},
		{[]string{"--volume-store", "nfs://host:nas"}, "", "name the exported directory"},
		{[]string{"--volume-store", "nfs://host/e:aa", "--volume-store", "nfs://host/e?soft:bb"}, "", "are one export"},
		{[]string{"--nfs-timeout", "10"}, "", "is not a duration from 1s to 10m"},
		{[]string{"--nfs-timeout", "1h"}, "", "is not a duration from 1s to 10m"},
		{[]string{"--volume-store", "ds://store/dir:x"}, "", "a datastore keeps volumes of a VCH with --target only"},
		{[]string{"--volume-store", "[store] dir:x"}, "", "a datastore keeps volumes of a VCH with --target only"},
		{[]string{"--volume-store", "/a:x", "--volume-store", "/b:x"}, "", "two volume stores are called x: /a and /b"},
		{[]string{"--volume-store", "/a:x", "--volume-store", "/a/:y"}, "", "x and y are one directory, /a"},
		{[]string{"--volume-store", "/a:x", "--volume-store", "/a/b:y"}, "", "one inside the other"},
		{[]string{"--volume-store", "/a/b:x", "--volume-store", "/a:y"}, "", "one inside the other"},
		{[]string{"--default-capacity", "much"}, "", `--default-capacity "much" is not a size`},
		{[]string{"--default-capacity", "-1G"}, "", "is not a size"},
		{[]string{"--anonymous-capacity", "1M"}, "", "the least is 4MiB"},
		{[]string{"--memory", "1M"}, "", "the least is 6MiB"},
		{[]string{"--cpus", "0"}, "", "--cpus"},
		{[]string{"--cpus", "NaN"}, "", "--cpus"},
		{[]string{"--cpus", "1e9"}, "", "--cpus"},
		{[]string{"--accel", "hvf"}, "", "none of auto, kvm, tcg"},
		{[]string{"--template", "on"}, "", "none of auto, off"},
		{[]string{"--warm", "-1"}, "", `--warm "-1" is neither auto nor a number`},
		{[]string{"--warm", "many"}, "", "neither auto nor a number from 0 to 1000"},
		{[]string{"--log-level", "loud"}, "", "none of debug, info, warn, error"},
		{[]string{"--log-format", "xml"}, "", "none of text, json"},
		{nil, "colour = \"red\"", `there is no setting "colour"; the settings are listen, tlsverify`},
		{nil, "config = \"x\"", `there is no setting "config"`},
		{nil, "listen = [1]", "a list of strings is wanted"},
		{nil, "memory = [\"1G\", \"2G\"]", "one value is wanted"},
		{nil, "memory = true", "is not a size"},
		{nil, "[memory]\nx = 1", "a string, a number, true, false or a list"},
		{nil, "memory = ", "is not TOML"},
		{nil, "memory = 512", "the least is 6MiB"},
	} {
		t.Run(strings.Join(tc.args, " ")+tc.file, func(t *testing.T) {
			_, err := parse(asRoot, tc.file, tc.args...)
			if err == nil {
				t.Fatal("accepted")
			}
			if !strings.Contains(err.Error(), tc.want) {
				t.Errorf("error %q does not say %q", err, tc.want)
			}
			if strings.Contains(err.Error(), "\n") && !strings.Contains(err.Error(), "TOML") {
				t.Errorf("error %q has more than one line", err)
			}
		})
	}
	if _, err := parse(surroundings{}, ""); err == nil || !strings.Contains(err.Error(), "give --state") {
		t.Errorf("without a home: %v", err)
	}
}
