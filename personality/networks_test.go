package personality

import (
	"encoding/json"
	"fmt"
	"strings"
	"testing"

	"github.com/moby/moby/api/types/container"
	"github.com/moby/moby/api/types/network"
	"github.com/moby/moby/client"

	"vch/internal/fault"
)

// names are those of the networks that a list shows.
func (w *world) networkNames(filters string) string {
	w.t.Helper()
	var list []network.Inspect
	w.ask(&list, "GET", "/networks"+filters, "")
	var names []string
	for _, n := range list {
		names = append(names, n.Name)
	}
	return strings.Join(names, " ")
}

func filter(text string) string {
	return "?filters=" + strings.NewReplacer(`"`, "%22", "{", "%7B", "}", "%7D").Replace(text)
}

func TestNetworkList(t *testing.T) {
	w := newWorld(t)
	w.ask(nil, "POST", "/networks/create", `{"Name":"app","Labels":{"a":"b"}}`)
	for text, want := range map[string]string{
		"":                              "app bridge none",
		filter(`{"name":["app"]}`):      "app",
		filter(`{"driver":["null"]}`):   "none",
		filter(`{"type":["custom"]}`):   "app",
		filter(`{"type":["builtin"]}`):  "bridge none",
		filter(`{"label":["a=b"]}`):     "app",
		filter(`{"dangling":["true"]}`): "app",
		filter(`{"scope":["swarm"]}`):   "",
	} {
		if got := w.networkNames(text); got != want {
			t.Errorf("%s: %q, want %q", text, got, want)
		}
	}
	w.refused(400, "invalid filter", "GET", "/networks"+filter(`{"x":["y"]}`), "")
	list, err := w.client("").NetworkList(t.Context(), client.NetworkListOptions{})
	if err != nil || len(list.Items) != 3 || list.Items[0].Name != "app" {
		t.Errorf("%+v, %v", list, err)
	}
}

func TestNetworkInspect(t *testing.T) {
	w := newWorld(t)
	var made network.CreateResponse
	w.ask(&made, "POST", "/networks/create", `{"Name":"app","Internal":true,"IPAM":{"Config":[{"Subnet":"10.5.0.0/24","Gateway":"10.5.0.9","IPRange":"10.5.0.64/26","AuxiliaryAddresses":{"printer":"10.5.0.65"}}]},"Options":{"com.docker.network.driver.mtu":"1400"}}`)
	for _, ref := range []string{"app", made.ID, made.ID[:12]} {
		var n network.Inspect
		w.ask(&n, "GET", "/networks/"+ref, "")
		c := n.IPAM.Config[0]
		if n.ID != made.ID || !n.Internal || c.Subnet.String() != "10.5.0.0/24" || c.Gateway.String() != "10.5.0.9" || c.AuxAddress["printer"].String() != "10.5.0.65" || n.Options["com.docker.network.driver.mtu"] != "1400" {
			t.Errorf("%+v", n)
		}
	}
	w.importImage("img:latest")
	w.ask(nil, "POST", "/containers/create?name=web", `{"Image":"img","Cmd":["sleep","1000"],"HostConfig":{"NetworkMode":"app"},"NetworkingConfig":{"EndpointsConfig":{"app":{"Aliases":["www"]}}}}`)
	w.ask(nil, "POST", "/containers/web/start", "")
	var n network.Inspect
	w.ask(&n, "GET", "/networks/app", "")
	if len(n.Containers) != 1 {
		t.Errorf("on it are %+v", n.Containers)
	}
	for _, on := range n.Containers {
		if on.Name != "web" || on.IPv4Address.String() != "10.5.0.64/24" || on.MacAddress.String() != "02:42:0a:05:00:40" {
			t.Errorf("%+v", on)
		}
	}
	var c container.InspectResponse
	w.ask(&c, "GET", "/containers/web/json", "")
	if e := c.NetworkSettings.Networks["app"]; e == nil || e.IPAddress.String() != "10.5.0.64" || e.IPPrefixLen != 24 || e.Gateway.IsValid() || strings.Join(e.DNSNames[:2], " ") != "web www" {
		t.Errorf("%+v", e)
	}
	w.refused(404, "network nosuch not found", "GET", "/networks/nosuch", "")
	w.ask(&n, "GET", "/networks/none", "")
	if n.Driver != "null" {
		t.Errorf("%+v", n)
	}
}

func TestNetworkCreate(t *testing.T) {
	w := newWorld(t)
	w.ask(nil, "POST", "/networks/create", `{"Name":"app","Driver":"bridge","EnableIPv6":false,"IPAM":{"Driver":"default","Config":[{"Subnet":"10.5.0.0/24"}]},"Options":{"com.docker.network.bridge.enable_icc":"true"}}`)
	for body, want := range map[string]string{
		`{"Name":"app"}`:                   "409 network with name app already exists",
		`{"Name":""}`:                      "400 invalid network name",
		`{"Name":"a b"}`:                   "400 invalid network name",
		`{"Name":"none"}`:                  "403 predefined none network",
		`{"Name":"host"}`:                  "403 predefined host network",
		`{"Name":"n","Driver":"overlay"}`:  "400 Driver (--driver overlay) is not supported",
		`{"Name":"n","EnableIPv6":true}`:   "400 EnableIPv6 (--ipv6) is not supported",
		`{"Name":"n","Options":{"x":"y"}}`: "400 Options (--opt x=y) is not supported",
		`{"Name":"n","Options":{"com.docker.network.driver.mtu":"9000"}}`:                "400 an MTU is 576 to 1500 bytes, not 9000",
		`{"Name":"n","Options":{"com.docker.network.bridge.enable_icc":"false"}}`:        "400 Options (--opt com.docker.network.bridge.enable_icc=false)",
		`{"Name":"n","IPAM":{"Config":[{"Subnet":"10.5.0.0/16"}]}}`:                      "409 overlaps that of network app",
		`{"Name":"n","IPAM":{"Config":[{"Subnet":"192.0.2.128/25"}]}}`:                   "409 overlaps 192.0.2.0/24, which this host is in",
		`{"Name":"n","IPAM":{"Config":[{"Subnet":"10.6.0.1/24"}]}}`:                      "400 it should be 10.6.0.0/24",
		`{"Name":"n","IPAM":{"Config":[{"Subnet":"fd00::/64"}]}}`:                        "400 IPv4 addresses only",
		`{"Name":"n","IPAM":{"Config":[{"Subnet":"127.0.0.0/24"}]}}`:                     "400 meaning of their own",
		`{"Name":"n","IPAM":{"Config":[{"Subnet":"10.6.0.0/24","Gateway":"10.7.0.1"}]}}`: "400 gateway 10.7.0.1 is not an address in subnet",
		`{"Name":"n","IPAM":{"Config":[{"Gateway":"10.7.0.1"}]}}`:                        "400 needs the subnet that it is in",
		`{"Name":"n","IPAM":{"Driver":"x"}}`:                                             "400 IPAM.Driver (--ipam-driver x) is not supported",
	} {
		var status int
		words := ""
		fmt.Sscanf(want, "%d", &status)
		_, words, _ = strings.Cut(want, " ")
		w.refused(status, words, "POST", "/networks/create", body)
	}
	if got := w.networkNames(""); got != "app bridge none" {
		t.Errorf("there are %s", got)
	}
}

func TestNetworkRemove(t *testing.T) {
	w := newWorld(t)
	w.importImage("img:latest")
	w.ask(nil, "POST", "/networks/create", `{"Name":"app"}`)
	w.ask(nil, "POST", "/containers/create?name=web", `{"Image":"img","Cmd":["sleep","1000"],"HostConfig":{"NetworkMode":"app"}}`)
	w.ask(nil, "POST", "/containers/web/start", "")
	w.refused(403, "has active endpoints (web)", "DELETE", "/networks/app", "")
	w.refused(403, "pre-defined network", "DELETE", "/networks/bridge", "")
	w.refused(403, "pre-defined network", "DELETE", "/networks/none", "")
	w.refused(404, "network nosuch not found", "DELETE", "/networks/nosuch", "")
	w.ask(nil, "POST", "/containers/web/stop?t=0", "")
	if status, answer := w.call("DELETE", "/networks/app", ""); status != 204 {
		t.Errorf("%d %s", status, answer)
	}
	w.refused(400, "network app not found", "POST", "/containers/web/start", "")
}

func TestNetworkConnect(t *testing.T) {
	w := newWorld(t)
	w.importImage("img:latest")
	w.ask(nil, "POST", "/networks/create", `{"Name":"app","IPAM":{"Config":[{"Subnet":"10.5.0.0/24"}]}}`)
	w.run("web", "", "sleep", "1000")
	w.ask(nil, "POST", "/networks/app/connect", `{"Container":"web","EndpointConfig":{"IPAMConfig":{"IPv4Address":"10.5.0.77"},"Aliases":["www"],"MacAddress":"02:00:00:00:00:77"}}`)
	on := func() string {
		var c container.InspectResponse
		w.ask(&c, "GET", "/containers/web/json", "")
		text, _ := json.Marshal(c.NetworkSettings.Networks)
		return string(text)
	}
	if got := on(); !strings.Contains(got, `"IPAddress":"10.5.0.77"`) || !strings.Contains(got, `"bridge":`) || !strings.Contains(got, `02:00:00:00:00:77`) {
		t.Errorf("%s", got)
	}
	w.refused(403, "endpoint with name web already exists in network app", "POST", "/networks/app/connect", `{"Container":"web"}`)
	w.refused(404, "No such container: none", "POST", "/networks/app/connect", `{"Container":"none"}`)
	w.refused(404, "network nosuch not found", "POST", "/networks/nosuch/connect", `{"Container":"web"}`)
	w.ask(nil, "POST", "/networks/bridge/disconnect", `{"Container":"web"}`)
	if got := on(); strings.Contains(got, `"bridge":`) {
		t.Errorf("%s", got)
	}
	w.refused(404, "is not connected to network", "POST", "/networks/bridge/disconnect", `{"Container":"web"}`)
	w.ask(nil, "POST", "/networks/bridge/disconnect", `{"Container":"web","Force":true}`)
	w.ask(nil, "POST", "/networks/app/disconnect", `{"Container":"web"}`)
	if got := on(); !strings.Contains(got, `"none":`) {
		t.Errorf("%s", got)
	}
	// One that does not run gets its address when it starts.
	w.ask(nil, "POST", "/containers/web/stop?t=0", "")
	w.ask(nil, "POST", "/networks/app/connect", `{"Container":"web"}`)
	if got := on(); !strings.Contains(got, `"app":`) || strings.Contains(got, "10.5.0") {
		t.Errorf("%s", got)
	}
	w.ask(nil, "POST", "/containers/web/start", "")
	if got := on(); !strings.Contains(got, "10.5.0.") {
		t.Errorf("%s", got)
	}
}

func TestNetworkPrune(t *testing.T) {
	w := newWorld(t)
	w.importImage("img:latest")
	for _, name := range []string{"app", "idle", "kept"} {
		w.ask(nil, "POST", "/networks/create", `{"Name":"`+name+`","Labels":{"is":"`+name+`"}}`)
	}
	w.ask(nil, "POST", "/containers/create?name=web", `{"Image":"img","Cmd":["true"],"HostConfig":{"NetworkMode":"app"}}`)
	var report network.PruneReport
	w.ask(&report, "POST", "/networks/prune"+filter(`{"label!":["is=kept"]}`), "")
	if strings.Join(report.NetworksDeleted, " ") != "idle" || w.networkNames("") != "app bridge kept none" {
		t.Errorf("%v; left %s", report.NetworksDeleted, w.networkNames(""))
	}
}

// Ports are published as they are asked for, and shown as they came to be.
func TestPorts(t *testing.T) {
	w := newWorld(t)
	w.importImage("img:latest")
	w.ask(nil, "POST", "/containers/create?name=web", `{"Image":"img","Cmd":["sleep","1000"],"ExposedPorts":{"80/tcp":{},"53/udp":{},"9/tcp":{}},
		"HostConfig":{"PortBindings":{"80/tcp":[{"HostIp":"127.0.0.1","HostPort":""}],"53/udp":[{"HostIp":"127.0.0.1"}]}}}`)
	var c container.InspectResponse
	w.ask(&c, "GET", "/containers/web/json", "")
	if len(c.NetworkSettings.Ports) != 0 {
		t.Errorf("before its start it has %v", c.NetworkSettings.Ports)
	}
	w.ask(nil, "POST", "/containers/web/start", "")
	w.ask(&c, "GET", "/containers/web/json", "")
	ports := c.NetworkSettings.Ports
	tcp, udp := ports[network.MustParsePort("80/tcp")], ports[network.MustParsePort("53/udp")]
	if len(ports) != 3 || len(tcp) != 1 || len(udp) != 1 || tcp[0].HostPort == "0" || tcp[0].HostIP.String() != "127.0.0.1" || ports[network.MustParsePort("9/tcp")] != nil {
		t.Fatalf("%v", ports)
	}
	var list []container.Summary
	w.ask(&list, "GET", "/containers/json", "")
	if len(list) != 1 || len(list[0].Ports) != 3 || list[0].Ports[0].PrivatePort != 9 || fmt.Sprint(list[0].Ports[2].PublicPort) != tcp[0].HostPort {
		t.Errorf("%+v", list)
	}
	taken := fmt.Sprintf(`{"Image":"img","Cmd":["sleep","1000"],"HostConfig":{"PortBindings":{"80/tcp":[{"HostIp":"127.0.0.1","HostPort":"%s"}]}}}`, tcp[0].HostPort)
	w.ask(nil, "POST", "/containers/create?name=second", taken)
	w.refused(503, "port is already allocated", "POST", "/containers/second/start", "")
	w.ask(nil, "POST", "/containers/web/stop?t=0", "")
	w.ask(nil, "POST", "/containers/second/start", "")
	w.refused(400, "invalid port specification", "POST", "/containers/create", `{"Image":"img","Cmd":["true"],"HostConfig":{"PortBindings":{"80/tcp":[{"HostPort":"90-80"}]}}}`)
}

// What clients may send of ports and networks makes a spec or an error with a kind.
func FuzzPorts(f *testing.F) {
	f.Add(`{"80/tcp":[{"HostIp":"","HostPort":"8000-8010"}]}`, true)
	f.Add(`{"80":null}`, false)
	f.Fuzz(func(t *testing.T, text string, all bool) {
		var h container.HostConfig
		if json.Unmarshal([]byte(text), &h.PortBindings) != nil {
			return
		}
		h.PublishAllPorts = all
		ports, err := portsOf(&h, network.PortSet{network.MustParsePort("80/tcp"): {}})
		if err != nil && fault.KindOf(err) == fault.Internal {
			t.Errorf("%v", err)
		}
		for _, p := range ports {
			if p.HostEnd < p.HostPort {
				t.Errorf("%+v", p)
			}
		}
	})
}
