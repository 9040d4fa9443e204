package personality

import (
	"bytes"
	"encoding/json"
	"net/netip"
	"reflect"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"
	"github.com/moby/moby/api/types/blkiodev"
	"github.com/moby/moby/api/types/container"
	"github.com/moby/moby/api/types/mount"
	"github.com/moby/moby/api/types/network"

	"vch/internal/fault"
	"vch/portlayer"
)

// outcome is what becomes of a field of a create request.
type outcome string

const (
	acts    outcome = "acts"    // it changes the container that is made, or warns
	shown   outcome = "shown"   // it changes nothing in a container, and inspect shows it back
	refuses outcome = "refuses" // the request is refused, and the error names the field
	engines outcome = "engines" // an engine fills it in; clients send back what inspect has shown
)

// fieldRow sets one field to a value that is not its default.
type fieldRow struct {
	want outcome
	set  func(*createRequest)
}

func ptr[T any](v T) *T { return &v }

type (
	conf = *container.Config
	host = *container.HostConfig
	end  = *network.EndpointSettings
)

func configRows() map[string]fieldRow {
	row := func(want outcome, set func(conf)) fieldRow {
		return fieldRow{want, func(r *createRequest) { set(&r.Config) }}
	}
	return map[string]fieldRow{
		"Hostname":        row(acts, func(c conf) { c.Hostname = "h" }),
		"Domainname":      row(acts, func(c conf) { c.Domainname = "d" }),
		"User":            row(acts, func(c conf) { c.User = "nobody" }),
		"AttachStdin":     row(shown, func(c conf) { c.AttachStdin = true }),
		"AttachStdout":    row(shown, func(c conf) { c.AttachStdout = true }),
		"AttachStderr":    row(shown, func(c conf) { c.AttachStderr = true }),
		"ExposedPorts":    row(shown, func(c conf) { c.ExposedPorts = network.PortSet{network.MustParsePort("80"): {}} }),
		"Tty":             row(acts, func(c conf) { c.Tty = true }),
		"OpenStdin":       row(acts, func(c conf) { c.OpenStdin = true }),
		"StdinOnce":       row(acts, func(c conf) { c.StdinOnce = true }),
		"Env":             row(acts, func(c conf) { c.Env = []string{"A=b"} }),
		"Cmd":             row(acts, func(c conf) { c.Cmd = []string{"other"} }),
		"Healthcheck":     row(acts, func(c conf) { c.Healthcheck = &container.HealthConfig{Test: []string{"CMD", "true"}} }),
		"ArgsEscaped":     row(shown, func(c conf) { c.ArgsEscaped = true }),
		"Image":           row(acts, func(c conf) { c.Image = "other" }),
		"Volumes":         row(acts, func(c conf) { c.Volumes = map[string]struct{}{"/v": {}} }),
		"WorkingDir":      row(acts, func(c conf) { c.WorkingDir = "/w" }),
		"Entrypoint":      row(acts, func(c conf) { c.Entrypoint = []string{"e"} }),
		"NetworkDisabled": row(acts, func(c conf) { c.NetworkDisabled = true }),
		"OnBuild":         row(shown, func(c conf) { c.OnBuild = []string{"RUN x"} }),
		"Labels":          row(acts, func(c conf) { c.Labels = map[string]string{"a": "b"} }),
		"StopSignal":      row(acts, func(c conf) { c.StopSignal = "SIGINT" }),
		"StopTimeout":     row(acts, func(c conf) { c.StopTimeout = ptr(3) }),
		"Shell":           row(shown, func(c conf) { c.Shell = []string{"bash"} }),
	}
}

func hostRows() map[string]fieldRow {
	row := func(want outcome, set func(host)) fieldRow {
		return fieldRow{want, func(r *createRequest) { set(r.HostConfig) }}
	}
	throttle := []*blkiodev.ThrottleDevice{{Path: "/dev/sda", Rate: 1}}
	return map[string]fieldRow{
		"Binds":                row(acts, func(h host) { h.Binds = []string{"vol:/v"} }),
		"ContainerIDFile":      row(shown, func(h host) { h.ContainerIDFile = "/tmp/cid" }), // the CLI writes it
		"LogConfig":            row(acts, func(h host) { h.LogConfig.Config = map[string]string{"max-size": "1m"} }),
		"NetworkMode":          row(refuses, func(h host) { h.NetworkMode = "host" }),
		"PortBindings":         row(acts, func(h host) { h.PortBindings = network.PortMap{network.MustParsePort("80"): {{}}} }),
		"RestartPolicy":        row(acts, func(h host) { h.RestartPolicy.Name = "always" }),
		"AutoRemove":           row(acts, func(h host) { h.AutoRemove = true }),
		"VolumeDriver":         row(acts, func(h host) { h.VolumeDriver = "qemu-vmdk"; h.Binds = []string{"vol:/v"} }),
		"VolumesFrom":          row(acts, func(h host) { h.VolumesFrom = []string{"c"} }),
		"ConsoleSize":          row(acts, func(h host) { h.ConsoleSize = [2]uint{10, 20} }),
		"Annotations":          row(shown, func(h host) { h.Annotations = map[string]string{"a": "b"} }),
		"CapAdd":               row(acts, func(h host) { h.CapAdd = []string{"SYS_TIME"} }),
		"CapDrop":              row(acts, func(h host) { h.CapDrop = []string{"CHOWN"} }),
		"CgroupnsMode":         row(refuses, func(h host) { h.CgroupnsMode = "host" }),
		"DNS":                  row(acts, func(h host) { h.DNS = []netip.Addr{netip.MustParseAddr("1.1.1.1")} }),
		"DNSOptions":           row(acts, func(h host) { h.DNSOptions = []string{"ndots:2"} }),
		"DNSSearch":            row(acts, func(h host) { h.DNSSearch = []string{"example.org"} }),
		"ExtraHosts":           row(acts, func(h host) { h.ExtraHosts = []string{"a:1.2.3.4"} }),
		"GroupAdd":             row(acts, func(h host) { h.GroupAdd = []string{"audio"} }),
		"IpcMode":              row(refuses, func(h host) { h.IpcMode = "host" }),
		"Cgroup":               row(refuses, func(h host) { h.Cgroup = "container:c" }),
		"Links":                row(refuses, func(h host) { h.Links = []string{"a:b"} }),
		"OomScoreAdj":          row(acts, func(h host) { h.OomScoreAdj = 5 }),
		"PidMode":              row(refuses, func(h host) { h.PidMode = "host" }),
		"Privileged":           row(acts, func(h host) { h.Privileged = true }),
		"PublishAllPorts":      row(shown, func(h host) { h.PublishAllPorts = true }),
		"ReadonlyRootfs":       row(acts, func(h host) { h.ReadonlyRootfs = true }),
		"SecurityOpt":          row(acts, func(h host) { h.SecurityOpt = []string{"no-new-privileges"} }),
		"StorageOpt":           row(refuses, func(h host) { h.StorageOpt = map[string]string{"size": "1G"} }),
		"Tmpfs":                row(acts, func(h host) { h.Tmpfs = map[string]string{"/t": "size=1m"} }),
		"UTSMode":              row(refuses, func(h host) { h.UTSMode = "host" }),
		"UsernsMode":           row(refuses, func(h host) { h.UsernsMode = "host" }),
		"ShmSize":              row(acts, func(h host) { h.ShmSize = 1 << 20 }),
		"Sysctls":              row(acts, func(h host) { h.Sysctls = map[string]string{"net.core.somaxconn": "9"} }),
		"Runtime":              row(refuses, func(h host) { h.Runtime = "kata" }),
		"Umask":                row(refuses, func(h host) { h.Umask = ptr(uint32(0o77)) }),
		"Isolation":            row(refuses, func(h host) { h.Isolation = "hyperv" }),
		"Mounts":               row(acts, func(h host) { h.Mounts = []mount.Mount{{Type: "volume", Source: "vol", Target: "/v"}} }),
		"MaskedPaths":          row(refuses, func(h host) { h.MaskedPaths = []string{"/proc/kcore"} }),
		"ReadonlyPaths":        row(refuses, func(h host) { h.ReadonlyPaths = []string{"/proc/sys"} }),
		"Init":                 row(acts, func(h host) { h.Init = ptr(true) }),
		"CPUShares":            row(refuses, func(h host) { h.CPUShares = 512 }),
		"Memory":               row(acts, func(h host) { h.Memory = 64 << 20 }),
		"NanoCPUs":             row(acts, func(h host) { h.NanoCPUs = 5e8 }),
		"CgroupParent":         row(refuses, func(h host) { h.CgroupParent = "/x" }),
		"BlkioWeight":          row(refuses, func(h host) { h.BlkioWeight = 500 }),
		"BlkioWeightDevice":    row(refuses, func(h host) { h.BlkioWeightDevice = []*blkiodev.WeightDevice{{Path: "/dev/sda"}} }),
		"BlkioDeviceReadBps":   row(refuses, func(h host) { h.BlkioDeviceReadBps = throttle }),
		"BlkioDeviceWriteBps":  row(refuses, func(h host) { h.BlkioDeviceWriteBps = throttle }),
		"BlkioDeviceReadIOps":  row(refuses, func(h host) { h.BlkioDeviceReadIOps = throttle }),
		"BlkioDeviceWriteIOps": row(refuses, func(h host) { h.BlkioDeviceWriteIOps = throttle }),
		"CPUPeriod":            row(acts, func(h host) { h.CPUPeriod, h.CPUQuota = 50_000, 25_000 }),
		"CPUQuota":             row(acts, func(h host) { h.CPUQuota = 25_000 }),
		"CPURealtimePeriod":    row(refuses, func(h host) { h.CPURealtimePeriod = 1 }),
		"CPURealtimeRuntime":   row(refuses, func(h host) { h.CPURealtimeRuntime = 1 }),
		"CpusetCpus":           row(refuses, func(h host) { h.CpusetCpus = "0" }),
		"CpusetMems":           row(refuses, func(h host) { h.CpusetMems = "0" }),
		"Devices":              row(refuses, func(h host) { h.Devices = []container.DeviceMapping{{PathOnHost: "/dev/fuse"}} }),
		"DeviceCgroupRules":    row(refuses, func(h host) { h.DeviceCgroupRules = []string{"c 1:3 r"} }),
		"DeviceRequests":       row(refuses, func(h host) { h.DeviceRequests = []container.DeviceRequest{{Count: -1}} }),
		"MemoryReservation":    row(refuses, func(h host) { h.MemoryReservation = 1 << 20 }),
		"MemorySwap":           row(refuses, func(h host) { h.Memory, h.MemorySwap = 64<<20, 128<<20 }),
		"MemorySwappiness":     row(refuses, func(h host) { h.MemorySwappiness = ptr(int64(60)) }),
		"OomKillDisable":       row(refuses, func(h host) { h.OomKillDisable = ptr(true) }),
		"PidsLimit":            row(acts, func(h host) { h.PidsLimit = ptr(int64(9)) }),
		"Ulimits":              row(acts, func(h host) { h.Ulimits = []*container.Ulimit{{Name: "nofile", Soft: 1, Hard: 2}} }),
		"CPUCount":             row(refuses, func(h host) { h.CPUCount = 1 }),
		"CPUPercent":           row(refuses, func(h host) { h.CPUPercent = 1 }),
		"IOMaximumIOps":        row(refuses, func(h host) { h.IOMaximumIOps = 1 }),
		"IOMaximumBandwidth":   row(refuses, func(h host) { h.IOMaximumBandwidth = 1 }),
	}
}

func endpointRows() map[string]fieldRow {
	row := func(want outcome, set func(end)) fieldRow {
		return fieldRow{want, func(r *createRequest) {
			e := &network.EndpointSettings{}
			set(e)
			r.NetworkingConfig.EndpointsConfig = map[string]*network.EndpointSettings{"default": e}
		}}
	}
	addr := netip.MustParseAddr("10.0.0.1")
	return map[string]fieldRow{
		"IPAMConfig": row(acts, func(e end) { e.IPAMConfig = &network.EndpointIPAMConfig{IPv4Address: addr} }),
		"Links":      row(refuses, func(e end) { e.Links = []string{"a"} }),
		"Aliases":    row(acts, func(e end) { e.Aliases = []string{"a"} }),
		"DriverOpts": row(refuses, func(e end) { e.DriverOpts = map[string]string{"a": "b"} }),
		"GwPriority": {acts, func(r *createRequest) {
			r.NetworkingConfig.EndpointsConfig = map[string]*network.EndpointSettings{"default": {GwPriority: -1}, "another": {}}
		}},
		"NetworkID":           row(engines, func(e end) { e.NetworkID = "n" }),
		"EndpointID":          row(engines, func(e end) { e.EndpointID = "e" }),
		"Gateway":             row(engines, func(e end) { e.Gateway = addr }),
		"IPAddress":           row(engines, func(e end) { e.IPAddress = addr }),
		"MacAddress":          row(acts, func(e end) { e.MacAddress = network.HardwareAddr{2, 0, 0, 0, 0, 1} }),
		"IPPrefixLen":         row(engines, func(e end) { e.IPPrefixLen = 8 }),
		"IPv6Gateway":         row(engines, func(e end) { e.IPv6Gateway = addr }),
		"GlobalIPv6Address":   row(engines, func(e end) { e.GlobalIPv6Address = addr }),
		"GlobalIPv6PrefixLen": row(engines, func(e end) { e.GlobalIPv6PrefixLen = 8 }),
		"DNSNames":            row(engines, func(e end) { e.DNSNames = []string{"a"} }),
	}
}

func plainRequest() createRequest {
	return createRequest{
		Config:           container.Config{Image: "img", Cmd: []string{"sh"}},
		HostConfig:       &container.HostConfig{},
		NetworkingConfig: &network.NetworkingConfig{},
	}
}

// Every field of a create request is honoured, shown back because that is all it is for, or refused by name. A field that a newer version of the API's
// types brings fails this test until it is decided which.
func TestEveryCreateFieldIsHonouredOrRefused(t *testing.T) {
	base, _, err := specOf(plainRequest(), around{version: maxVersion})
	if err != nil {
		t.Fatal(err)
	}
	for _, part := range []struct {
		name  string
		t     reflect.Type
		rows  map[string]fieldRow
		value func(createRequest) any
	}{
		{"Config", reflect.TypeFor[container.Config](), configRows(), func(r createRequest) any { return r.Config }},
		{"HostConfig", reflect.TypeFor[container.HostConfig](), hostRows(), func(r createRequest) any { return *r.HostConfig }},
		{"EndpointsConfig", reflect.TypeFor[network.EndpointSettings](), endpointRows(), func(r createRequest) any { return *r.NetworkingConfig.EndpointsConfig["default"] }},
	} {
		known := map[string]bool{}
		for f := range fieldsOf(part.t) {
			known[f.Name] = true
			row, ok := part.rows[f.Name]
			if !ok {
				t.Errorf("%s.%s: nobody has decided what vch does with it", part.name, f.Name)
				continue
			}
			t.Run(part.name+"."+f.Name, func(t *testing.T) {
				req := plainRequest()
				row.set(&req)
				if reflect.ValueOf(part.value(req)).FieldByName(f.Name).IsZero() {
					t.Fatal("the row does not set the field")
				}
				spec, warnings, err := specOf(req, around{version: maxVersion, other: func(string) (portlayer.Container, error) {
					return portlayer.Container{Spec: portlayer.ContainerSpec{Mounts: []portlayer.Mount{{Kind: portlayer.VolumeMount, Volume: "vol", Target: "/v"}}}}, nil
				}})
				if row.want == refuses {
					name, _, _ := strings.Cut(f.Tag.Get("json"), ",")
					if name == "" {
						name = f.Name
					}
					if !fault.Is(err, fault.Unsupported) || !strings.Contains(err.Error(), "."+name) || !strings.Contains(err.Error(), "is not supported by vch: ") {
						t.Fatalf("it is not refused by name: %v", err)
					}
					return
				}
				if err != nil {
					t.Fatal(err)
				}
				if bytes.Equal(spec.Door, base.Door) && part.name != "EndpointsConfig" {
					t.Error("inspect will not show it")
				}
				spec.Door = base.Door
				same := cmp.Equal(spec, base, cmpopts.EquateComparable(netip.Addr{})) && len(warnings) == 0
				if same != (row.want == shown || row.want == engines) {
					t.Errorf("it changes nothing: %v, but the table says that it %s: %s", same, row.want, cmp.Diff(base, spec, cmpopts.EquateComparable(netip.Addr{})))
				}
			})
		}
		for name := range part.rows {
			if !known[name] {
				t.Errorf("%s.%s: the API has no such field any more", part.name, name)
			}
		}
	}
}

// What is refused for a part of a value, and what only another version's fields can say.
func TestRefusedByName(t *testing.T) {
	for body, want := range map[string]string{
		`{"HostConfig":{"NetworkMode":"container:abc"}}`:                                          "HostConfig.NetworkMode (--network container:abc)",
		`{"HostConfig":{"SecurityOpt":["seccomp=/p.json"]}}`:                                      "HostConfig.SecurityOpt (--security-opt seccomp=/p.json)",
		`{"HostConfig":{"SecurityOpt":["label=user:x"]}}`:                                         "HostConfig.SecurityOpt (--security-opt label=user:x)",
		`{"HostConfig":{"LogConfig":{"Type":"syslog"}}}`:                                          "HostConfig.LogConfig (--log-driver syslog)",
		`{"HostConfig":{"LogConfig":{"Config":{"tag":"x"}}}}`:                                     "HostConfig.LogConfig (--log-opt tag)",
		`{"HostConfig":{"LogConfig":{"Config":{"mode":"non-blocking"}}}}`:                         "HostConfig.LogConfig (--log-opt mode=non-blocking)",
		`{"HostConfig":{"LogConfig":{"Config":{"compress":"true"}}}}`:                             "HostConfig.LogConfig (--log-opt compress=true)",
		`{"HostConfig":{"Runtime":"kata"}}`:                                                       "HostConfig.Runtime (--runtime kata)",
		`{"HostConfig":{"CpuPeriod":50000}}`:                                                      "HostConfig.CpuPeriod (--cpu-period)",
		`{"HostConfig":{"CpuQuota":-1}}`:                                                          "HostConfig.CpuQuota (--cpu-quota)",
		`{"HostConfig":{"KernelMemory":1000000}}`:                                                 "HostConfig.KernelMemory",
		`{"HostConfig":{"Frobnicate":{"a":[0,{"b":"x"}]}}}`:                                       "HostConfig.Frobnicate",
		`{"MacAddress":"02:42:ac:11:00:02"}`:                                                      "MacAddress",
		`{"HostConfig":{"IpcMode":"none"}}`:                                                       "HostConfig.IpcMode (--ipc)",
		`{"HostConfig":{"PortBindings":{"80/sctp":[{"HostIp":"","HostPort":"8080"}]}}}`:           "HostConfig.PortBindings (-p 80/sctp)",
		`{"NetworkingConfig":{"EndpointsConfig":{"n":{"IPAMConfig":{"IPv6Address":"fd00::2"}}}}}`: "EndpointsConfig[n].IPAMConfig.IPv6Address (--ip6)",
		`{"HostConfig":{"DeviceRequests":[{"Count":-1,"Capabilities":[["gpu"]]}]}}`:               "HostConfig.DeviceRequests (--gpus)",
		`{"HostConfig":{"MemorySwappiness":0}}`:                                                   "HostConfig.MemorySwappiness (--memory-swappiness)",
		`{"HostConfig":{"Memory":67108864,"MemorySwap":134217728}}`:                               "HostConfig.MemorySwap (--memory-swap)",
		`{"HostConfig":{"Ulimits":[{"Name":"nofile","Soft":1,"Hard":2}],"Links":["a"]}}`:          "HostConfig.Links (--link)",
	} {
		t.Run(body, func(t *testing.T) {
			_, _, err := translate(t, body, portlayer.Image{})
			if !fault.Is(err, fault.Unsupported) || !strings.Contains(err.Error(), want+" is not supported by vch: ") {
				t.Errorf("%v; it should name %s", err, want)
			}
		})
	}
}

// translate is a create body's way to a spec. The body gets an image and a command where it has none.
func translate(t *testing.T, body string, img portlayer.Image) (portlayer.ContainerSpec, []string, error) {
	t.Helper()
	var fields map[string]json.RawMessage
	if err := json.Unmarshal([]byte(body), &fields); err != nil {
		t.Fatal(err)
	}
	if fields["Image"] == nil {
		fields["Image"] = json.RawMessage(`"img"`)
	}
	if fields["Cmd"] == nil {
		fields["Cmd"] = json.RawMessage(`["sh"]`)
	}
	raw, err := json.Marshal(fields)
	if err != nil {
		t.Fatal(err)
	}
	req, err := parseCreate(raw)
	if err != nil {
		return portlayer.ContainerSpec{}, nil, err
	}
	return specOf(req, around{image: img, version: maxVersion})
}
