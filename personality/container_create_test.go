package personality

import (
	"encoding/json"
	"net/netip"
	"reflect"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"

	"vch/guest"
	"vch/internal/fault"
	"vch/portlayer"
)

// theImage says something of everything that an image can say.
var theImage = portlayer.Image{
	ID: "sha256:1", OS: "linux", Architecture: "amd64",
	Config: portlayer.ImageConfig{
		User: "app", Env: []string{"PATH=/bin", "A=image"}, Entrypoint: []string{"/entry"}, Cmd: []string{"serve", "now"},
		Volumes: []string{"/data"}, WorkingDir: "/srv", Labels: map[string]string{"from": "image", "both": "image"},
		StopSignal: "SIGQUIT", ExposedPorts: []string{"80/tcp"},
	},
}

// imageMount is what its VOLUME comes to; the mounts themselves are mountspec's matter.
var imageMount = []portlayer.Mount{{Kind: portlayer.VolumeMount, Target: "/data", Origin: portlayer.FromImage, Labels: map[string]string{"com.docker.volume.anonymous": ""}}}

// The golden translations: what the CLI 28.2.2 sends for the command in the name (but for fields that say nothing), and what it means.
func TestCreateTranslations(t *testing.T) {
	for _, c := range []struct {
		name, body string
		want       portlayer.ContainerSpec
	}{
		{
			"docker create img",
			`{"Image":"img","Cmd":null,"Entrypoint":null,"Env":null,"Labels":{},"Volumes":{},"HostConfig":{"NetworkMode":"default","RestartPolicy":{"Name":"no"},"MemorySwappiness":-1,"OomKillDisable":false,"PidsLimit":0,"ConsoleSize":[0,0],"MaskedPaths":null},"NetworkingConfig":{"EndpointsConfig":{"default":{"IPAMConfig":null,"MacAddress":"","Gateway":""}}}}`,
			portlayer.ContainerSpec{
				Image: "img", Labels: map[string]string{"from": "image", "both": "image"}, StopSignal: 3,
				Process: guest.Process{Args: []string{"/entry", "serve", "now"}, Env: []string{"PATH=/bin", "A=image"}, User: "app", Cwd: "/srv", Capabilities: defaultsInOrder()},
				Mounts:  imageMount,
			},
		}, {
			"docker run -it --rm -v data:/data:ro -e A=user -w /x -u 1:2 -l both=user --stop-timeout 4 --entrypoint sh img -c ls",
			`{"Image":"img","Cmd":["-c","ls"],"Entrypoint":["sh"],"Env":["A=user"],"Labels":{"both":"user"},"WorkingDir":"/x/../y","User":"1:2","Tty":true,"OpenStdin":true,"StdinOnce":true,"AttachStdin":true,"StopTimeout":4,"HostConfig":{"Binds":["data:/data:ro"],"AutoRemove":true,"ConsoleSize":[40,120]}}`,
			portlayer.ContainerSpec{
				Image: "img", Labels: map[string]string{"from": "image", "both": "user"}, StopSignal: 3, StopTimeout: ptr(4), StdinOnce: true, AutoRemove: true,
				Process: guest.Process{Args: []string{"sh", "-c", "ls"}, Env: []string{"A=user", "PATH=/bin"}, User: "1:2", Cwd: "/y", TTY: true, Stdin: true, Rows: 40, Cols: 120, Capabilities: defaultsInOrder()},
				Mounts:  []portlayer.Mount{{Kind: portlayer.VolumeMount, Volume: "data", Target: "/data", ReadOnly: true, Mode: "ro", Origin: portlayer.FromSpec}},
			},
		}, {
			"docker create --entrypoint '' --cap-drop ALL --cap-add NET_ADMIN --memory 64m --memory-swap 64m --cpus 1.5 --pids-limit 7 --read-only --ulimit nofile=10:-1 --log-opt max-size=2m --log-opt max-file=3 img ls",
			`{"Image":"img","Cmd":["ls"],"Entrypoint":[""],"HostConfig":{"CapDrop":["ALL"],"CapAdd":["net_admin"],"Memory":67108864,"MemorySwap":67108864,"NanoCpus":1500000000,"PidsLimit":7,"ReadonlyRootfs":true,"Ulimits":[{"Name":"nofile","Soft":10,"Hard":-1}],"LogConfig":{"Type":"json-file","Config":{"max-size":"2m","max-file":"3"}},"SecurityOpt":["no-new-privileges:true","seccomp=unconfined"]}}`,
			portlayer.ContainerSpec{
				Image: "img", Labels: map[string]string{"from": "image", "both": "image"}, StopSignal: 3, Memory: 64 << 20, CPUs: 15e8, PidsMax: 7, ReadOnly: true,
				LogMax: portlayer.LogLimit{Size: 2e6, Files: 3},
				Process: guest.Process{
					Args: []string{"ls"}, Env: []string{"PATH=/bin", "A=image"}, User: "app", Cwd: "/srv", Capabilities: []string{"CAP_NET_ADMIN"}, NoNewPrivs: true,
					Rlimits: []guest.Rlimit{{Type: "nofile", Soft: 10, Hard: 1<<64 - 1}},
				},
				Mounts: imageMount,
			},
		}, {
			"an old client: command and entrypoint as one string each",
			`{"Image":"img","Cmd":"ls","Entrypoint":"sh","HostConfig":{"LogConfig":{"Type":"local"},"CpuQuota":150000,"Sysctls":{"kernel.msgmax":"1"}}}`,
			portlayer.ContainerSpec{
				Image: "img", Labels: map[string]string{"from": "image", "both": "image"}, StopSignal: 3, CPUs: 15e8, Sysctls: map[string]string{"kernel.msgmax": "1"},
				LogMax:  portlayer.LogLimit{Size: 20 << 20, Files: 5},
				Process: guest.Process{Args: []string{"sh", "ls"}, Env: []string{"PATH=/bin", "A=image"}, User: "app", Cwd: "/srv", Capabilities: defaultsInOrder()},
				Mounts:  imageMount,
			},
		},
	} {
		t.Run(c.name, func(t *testing.T) {
			req, err := parseCreate([]byte(c.body))
			if err != nil {
				t.Fatal(err)
			}
			c.want.Networks = []portlayer.Endpoint{{Name: portlayer.DefaultNetwork}} // of all that ask for none
			got, warnings, err := specOf(req, around{image: theImage, version: maxVersion})
			if err != nil || len(warnings) > 0 {
				t.Fatal(err, warnings)
			}
			if d := cmp.Diff(c.want, got, cmpopts.EquateEmpty(), cmpopts.EquateComparable(netip.Addr{}), cmpopts.IgnoreFields(portlayer.ContainerSpec{}, "Door")); d != "" {
				t.Error(d)
			}
		})
	}
}

func defaultsInOrder() []string {
	caps, _ := capabilitiesOf(false, nil, nil)
	return caps
}

// What Entrypoint and Cmd, each absent, empty or given, come to with an image that has both, one or none (Moby's merge).
func TestEntrypointAndCommand(t *testing.T) {
	both := portlayer.ImageConfig{Entrypoint: []string{"ie"}, Cmd: []string{"ic"}}
	for _, c := range []struct {
		body string
		img  portlayer.ImageConfig
		want string // "" : no command specified
	}{
		{`{"Cmd":null}`, both, "ie ic"},
		{`{"Cmd":[]}`, both, "ie ic"},
		{`{"Cmd":["c"]}`, both, "ie c"},
		{`{"Entrypoint":["e"],"Cmd":null}`, both, "e"},
		{`{"Entrypoint":["e"],"Cmd":["c"]}`, both, "e c"},
		{`{"Entrypoint":[],"Cmd":null}`, both, "ic"},
		{`{"Entrypoint":[""],"Cmd":["c"]}`, both, "c"},
		{`{"Entrypoint":[""],"Cmd":null}`, both, ""},
		{`{"Cmd":null}`, portlayer.ImageConfig{}, ""},
		{`{"Cmd":null}`, portlayer.ImageConfig{Entrypoint: []string{"ie"}}, "ie"},
		{`{"Cmd":["c"]}`, portlayer.ImageConfig{}, "c"},
	} {
		c.body = strings.Replace(c.body, "{", `{"Image":"i",`, 1)
		req, err := parseCreate([]byte(c.body))
		if err != nil {
			t.Fatal(err)
		}
		spec, _, err := specOf(req, around{image: portlayer.Image{Config: c.img}, version: maxVersion})
		if got := strings.Join(spec.Process.Args, " "); got != c.want || (c.want == "") != (err != nil && strings.Contains(err.Error(), "no command specified")) {
			t.Errorf("%s with %v: %q, %v; want %q", c.body, c.img, got, err, c.want)
		}
	}
}

func TestCapabilities(t *testing.T) {
	n := len(allCapabilities)
	for _, c := range []struct {
		privileged bool
		add, drop  []string
		count      int
		has, not   string
	}{
		{false, nil, nil, 14, "CAP_CHOWN", "CAP_SYS_ADMIN"},
		{true, nil, []string{"ALL"}, n, "CAP_SYS_ADMIN", ""},
		{false, []string{"all"}, nil, n, "CAP_SYS_ADMIN", ""},
		{false, []string{"ALL"}, []string{"cap_sys_admin"}, n - 1, "CAP_BPF", "CAP_SYS_ADMIN"},
		{false, nil, []string{"ALL"}, 0, "", "CAP_CHOWN"},
		{false, []string{"CAP_SYS_TIME", "sys_time"}, []string{"ALL"}, 1, "CAP_SYS_TIME", "CAP_CHOWN"},
		{false, []string{"SYS_TIME"}, []string{"chown", "KILL"}, 13, "CAP_SYS_TIME", "CAP_KILL"},
	} {
		got, err := capabilitiesOf(c.privileged, c.add, c.drop)
		if err != nil || len(got) != c.count || c.has != "" && !slices.Contains(got, c.has) || slices.Contains(got, c.not) {
			t.Errorf("privileged %v, add %v, drop %v: %v, %v", c.privileged, c.add, c.drop, got, err)
		}
	}
	for _, list := range [][]string{{"FLY"}, {"CAP_ALL"}, {""}} {
		if _, err := capabilitiesOf(false, list, nil); !fault.Is(err, fault.Invalid) {
			t.Errorf("%v: %v", list, err)
		}
		if _, err := capabilitiesOf(true, nil, list); !fault.Is(err, fault.Invalid) {
			t.Errorf("drop %v: %v", list, err)
		}
	}
}

func TestSignals(t *testing.T) {
	for text, want := range map[string]int{"9": 9, "KILL": 9, "SIGKILL": 9, "sigterm": 15, "hup": 1, "RTMIN": 34, "SIGRTMIN+3": 37, "RTMAX-14": 50, "rtmax": 64, "64": 64} {
		if got, err := parseSignal(text); got != want || err != nil {
			t.Errorf("%s: %d, %v; want %d", text, got, err, want)
		}
	}
	for _, text := range []string{"", "0", "-1", "65", "SIG", "NOPE", "RTMIN+16", "RTMAX-15", "RTMIN+", "9 "} {
		if got, err := parseSignal(text); !fault.Is(err, fault.Invalid) {
			t.Errorf("%q: %d, %v", text, got, err)
		}
	}
}

// Values that make no sense anywhere are bad requests that quote them.
func TestBadCreateValues(t *testing.T) {
	for body, want := range map[string]string{
		`{"Hostname":"` + strings.Repeat("h", 65) + `"}`:                    "65 characters",
		`{"WorkingDir":"rel"}`:                                              "'rel' is invalid, it needs to be an absolute path",
		`{"Env":["=x"]}`:                                                    "invalid environment variable: =x",
		`{"StopSignal":"SIGNOPE"}`:                                          "invalid signal: SIGNOPE",
		`{"HostConfig":{"CapAdd":["FLY"]}}`:                                 `unknown capability: "CAP_FLY"`,
		`{"HostConfig":{"OomScoreAdj":1001}}`:                               "range for oom score adj",
		`{"HostConfig":{"ShmSize":-1}}`:                                     "SHM size can not be less than 0",
		`{"HostConfig":{"Memory":4096}}`:                                    "Minimum memory limit allowed is 6MB",
		`{"HostConfig":{"MemorySwap":4096}}`:                                "always set the Memory limit",
		`{"HostConfig":{"NanoCpus":1,"CpuQuota":1000}}`:                     "Conflicting options",
		`{"HostConfig":{"CpuPeriod":1,"CpuQuota":1000}}`:                    "CPU cfs period",
		`{"HostConfig":{"CpuQuota":9223372036854775807}}`:                   "processors",
		`{"HostConfig":{"CpuQuota":10}}`:                                    "CPU cfs quota",
		`{"HostConfig":{"ExtraHosts":["nocolon"]}}`:                         `bad format for add-host: "nocolon"`,
		`{"HostConfig":{"ExtraHosts":["a:1.2.3"]}}`:                         `invalid IP address in add-host: "1.2.3"`,
		`{"HostConfig":{"Dns":["x"]}}`:                                      "x",
		`{"HostConfig":{"DnsSearch":["a b"]}}`:                              `"a b"`,
		`{"HostConfig":{"Sysctls":{"net/../../etc":"1"}}}`:                  `sysctl "net/../../etc"`,
		`{"HostConfig":{"Ulimits":[{"Name":"files","Soft":1,"Hard":1}]}}`:   "invalid ulimit type: files",
		`{"HostConfig":{"Ulimits":[{"Name":"nofile","Soft":-1,"Hard":1}]}}`: "soft limit must be less than or equal to hard limit",
		`{"HostConfig":{"Ulimits":[null]}}`:                                 "invalid ulimit type",
		`{"HostConfig":{"LogConfig":{"Config":{"max-size":"big"}}}}`:        "max-size=big",
		`{"HostConfig":{"LogConfig":{"Config":{"max-file":"0"}}}}`:          "max-file=0",
		`{"HostConfig":{"SecurityOpt":["no-new-privileges:perhaps"]}}`:      `"no-new-privileges:perhaps"`,
		`{"HostConfig":{"Binds":["data:relative"]}}`:                        "relative",
		`{"HostConfig":7}`:                                                  "invalid JSON",
		`{"ExposedPorts":{"http":{}}}`:                                      "http",
		`{"Cmd":7}`:                                                         "invalid JSON",
	} {
		t.Run(body, func(t *testing.T) {
			_, _, err := translate(t, body, portlayer.Image{})
			if !fault.Is(err, fault.Invalid) || !strings.Contains(err.Error(), want) {
				t.Errorf("%v; it should say %q", err, want)
			}
		})
	}
	if _, err := parseCreate([]byte(`{"HostConfig":{}}`)); !fault.Is(err, fault.Invalid) || !strings.Contains(err.Error(), "config cannot be empty") {
		t.Errorf("no config: %v", err)
	}
}

// What is accepted though it changes nothing, because here it is so anyway.
func TestAcceptedAsItIs(t *testing.T) {
	for _, body := range []string{
		`{"HostConfig":{"NetworkMode":"none"}}`,
		`{"HostConfig":{"IpcMode":"private","CgroupnsMode":"private","Runtime":"vch","Isolation":"default"}}`,
		`{"HostConfig":{"IpcMode":"shareable"}}`,
		`{"HostConfig":{"SecurityOpt":["seccomp=unconfined","apparmor=unconfined","label=disable","label:disable","no-new-privileges=false"]}}`,
		`{"HostConfig":{"MaskedPaths":[],"ReadonlyPaths":[]}}`,
		`{"HostConfig":{"MemorySwap":-1,"PidsLimit":-1,"OomKillDisable":false,"MemorySwappiness":-1}}`,
		`{"HostConfig":{"Memory":67108864,"MemorySwap":67108864}}`,
		`{"HostConfig":{"KernelMemory":0,"Capabilities":null,"Future":{"a":[],"b":""}}}`,
		`{"Healthcheck":{"Test":["NONE"]}}`,
	} {
		if _, warnings, err := translate(t, body, portlayer.Image{}); err != nil || len(warnings) > 0 {
			t.Errorf("%s: %v %v", body, err, warnings)
		}
	}
}

func TestCreateWarnings(t *testing.T) {
	for _, c := range []struct {
		body string
		img  portlayer.Image
		want string
	}{
		{`{"HostConfig":{"NetworkMode":"none","PublishAllPorts":true}}`, portlayer.Image{}, "Published ports are discarded"},
		{`{"NetworkDisabled":true,"HostConfig":{"PortBindings":{"80/tcp":[{}]}}}`, portlayer.Image{}, "Published ports are discarded"},
	} {
		_, warnings, err := translate(t, c.body, c.img)
		if err != nil || len(warnings) != 1 || !strings.Contains(warnings[0], c.want) {
			t.Errorf("%s: %q, %v", c.body, warnings, err)
		}
	}
}

// A health check is the container's own, filled up with its image's.
func TestCreateHealth(t *testing.T) {
	image := portlayer.Image{Config: portlayer.ImageConfig{Healthcheck: []byte(`{"Test":["CMD-SHELL","ask"],"Interval":2000000000,"Retries":7}`)}}
	shell := []string{"/bin/sh", "-c", "ask"}
	for _, c := range []struct {
		body string
		img  portlayer.Image
		want *portlayer.Healthcheck
	}{
		{`{}`, portlayer.Image{}, nil},
		{`{}`, image, &portlayer.Healthcheck{Args: shell, Interval: 2 * time.Second, Retries: 7}},
		{`{"Healthcheck":{"Test":["NONE"]}}`, image, nil},
		{`{"Healthcheck":{"Retries":2,"StartPeriod":1000000000}}`, image, &portlayer.Healthcheck{Args: shell, Interval: 2 * time.Second, Retries: 2, StartPeriod: time.Second}},
		{`{"Healthcheck":{"Test":["CMD","a","b"],"Timeout":1000000}}`, portlayer.Image{}, &portlayer.Healthcheck{Args: []string{"a", "b"}, Timeout: time.Millisecond}},
		{`{"Shell":["ash"],"Healthcheck":{"Test":["CMD-SHELL","a b"]}}`, portlayer.Image{}, &portlayer.Healthcheck{Args: []string{"ash", "a b"}}},
	} {
		spec, warnings, err := translate(t, c.body, c.img)
		if err != nil || len(warnings) > 0 || !reflect.DeepEqual(spec.Health, c.want) {
			t.Errorf("%s: %+v, %q, %v", c.body, spec.Health, warnings, err)
		}
	}
	for body, want := range map[string]string{
		`{"Healthcheck":{"Test":["HTTP","/"]}}`:                   `unknown type of health check "HTTP": it is NONE, CMD or CMD-SHELL`,
		`{"Healthcheck":{"Test":["CMD"]}}`:                        "the health check CMD says no command",
		`{"Healthcheck":{"Test":["CMD","x"],"Interval":1}}`:       "Interval in Healthcheck cannot be less than 1ms",
		`{"Healthcheck":{"Test":["CMD","x"],"StartInterval":-5}}`: "StartInterval in Healthcheck cannot be less than 1ms",
		`{"Healthcheck":{"Test":["CMD","x"],"Retries":-1}}`:       "Retries in Healthcheck cannot be negative",
	} {
		if _, _, err := translate(t, body, portlayer.Image{}); !fault.Is(err, fault.Invalid) || !strings.Contains(err.Error(), want) {
			t.Errorf("%s: %v", body, err)
		}
	}
}

// What an API version did not have is as if it had not been sent.
func TestCreateByVersion(t *testing.T) {
	body := `{"Image":"i","Cmd":["c"],"HostConfig":{"ConsoleSize":[3,4],"Annotations":{"a":"b"}}}`
	for v, want := range map[apiVersion][2]bool{141: {false, false}, 142: {true, false}, 143: {true, true}, 150: {true, true}} {
		req, err := parseCreate([]byte(body))
		if err != nil {
			t.Fatal(err)
		}
		forVersion(&req, v)
		if got := [2]bool{req.HostConfig.ConsoleSize != [2]uint{}, req.HostConfig.Annotations != nil}; got != want {
			t.Errorf("%s: %v", v, got)
		}
	}
}

func TestPlatform(t *testing.T) {
	arm := portlayer.Image{OS: "linux", Architecture: "arm64", Variant: "v8"}
	for asked, want := range map[string]bool{"": true, "linux": true, "linux/arm64": true, "linux/arm64/v8": true, "arm64": true, "linux/aarch64": true, "Linux/ARM64": true} {
		if err := checkPlatform(asked, "img", arm); (err == nil) != want {
			t.Errorf("%q: %v", asked, err)
		}
	}
	for _, asked := range []string{"linux/amd64", "windows/arm64", "amd64", "linux/arm64/v7"} {
		if err := checkPlatform(asked, "img", arm); !fault.Is(err, fault.NotFound) { // the CLI pulls upon this
			t.Errorf("%q: %v", asked, err)
		}
	}
	for _, asked := range []string{"linux//v8", "a/b/c/d"} {
		if err := checkPlatform(asked, "img", arm); err == nil {
			t.Errorf("%q is accepted", asked)
		}
	}
}

// What is kept with a container comes back as it was.
func TestDoorKeeps(t *testing.T) {
	spec, _, err := translate(t, `{"Hostname":"h","Env":["A=b"],"ExposedPorts":{"80":{}},"HostConfig":{"Dns":["1.1.1.1"],"Binds":["vol:/v"],"Memory":67108864,"NetworkMode":"bridge"}}`, theImage)
	if err != nil {
		t.Fatal(err)
	}
	d, err := openDoor(portlayer.Container{Spec: spec})
	if err != nil {
		t.Fatal(err)
	}
	got, err := json.Marshal(d)
	if err != nil {
		t.Fatal(err)
	}
	for _, want := range []string{`"Hostname":"h"`, `"80/tcp":{}`, `"Dns":["1.1.1.1"]`, `"Binds":["vol:/v"]`, `"NetworkMode":"bridge"`, `"MemorySwap":67108864`, `"ShmSize":67108864`, `"Type":"json-file"`, `"Volumes":{"/data":{}}`, `"Runtime":"vch"`, `"MaskedPaths":[]`} {
		if !strings.Contains(string(got), want) {
			t.Errorf("%s is not in %s", want, got)
		}
	}
	if _, err := openDoor(portlayer.Container{Spec: portlayer.ContainerSpec{Door: []byte("{")}}); err == nil {
		t.Error("a torn record is taken")
	}
}

// Whatever a client sends: no panic, an error with a kind, or a spec that the port layer can take.
func FuzzCreate(f *testing.F) {
	f.Add(`{"Image":"i","Cmd":["c"]}`)
	f.Add(`{"Image":"i","Cmd":"c","HostConfig":{"Binds":["a:/b:ro"],"CapAdd":["ALL"],"Ulimits":[{"Name":"core","Soft":0,"Hard":0}]}}`)
	f.Add(`{"Cmd":null,"Entrypoint":[],"HostConfig":{"LogConfig":{"Config":{"max-size":"1g"}},"CpuQuota":1000,"CpuPeriod":1000}}`)
	f.Add(`{"HostConfig":null,"NetworkingConfig":{"EndpointsConfig":{"default":null}}}`)
	f.Add(`{"Env":["A"],"HostConfig":{"Sysctls":{"a.b":"c"},"ExtraHosts":["a:[::1]"],"SecurityOpt":["x"]}}`)
	f.Fuzz(func(t *testing.T, body string) {
		req, err := parseCreate([]byte(body))
		if err == nil {
			var spec portlayer.ContainerSpec
			spec, _, err = specOf(req, around{version: maxVersion})
			if err == nil {
				if len(spec.Process.Args) == 0 || spec.CPUs < 0 || spec.Memory < 0 || spec.ShmSize < 0 || spec.PidsMax < 0 {
					t.Fatalf("%s makes %+v", body, spec)
				}
				if _, err := openDoor(portlayer.Container{Spec: spec}); err != nil {
					t.Fatalf("%s: %v", body, err)
				}
			}
		}
		if err != nil && fault.KindOf(err) == fault.Internal {
			t.Fatalf("%s: %v", body, err)
		}
	})
}
