package personality

import (
	"context"
	"encoding/json"
	"errors"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/moby/moby/api/types/system"
	"github.com/moby/moby/client"

	"vch/portlayer"
)

func TestVersion(t *testing.T) {
	w := newWorld(t)
	var v system.VersionResponse
	w.ask(&v, "GET", "/version", "")
	names := []string{}
	for _, c := range v.Components {
		names = append(names, c.Name)
	}
	if v.APIVersion != "1.50" || v.MinAPIVersion != "1.24" || v.Version != "0.1.0" || v.GitCommit != "abc" || v.Os != "linux" || strings.Join(names, " ") != "Engine fake guest kernel" {
		t.Errorf("%+v", v)
	}
	if d := v.Components[0].Details; d["ApiVersion"] != "1.50" || d["GitCommit"] != "abc" {
		t.Errorf("%v", d)
	}

	// A hypervisor that does not answer takes nothing else away.
	w.server.Machine = func(context.Context) (portlayer.HypervisorInfo, error) {
		return portlayer.HypervisorInfo{}, errors.New("qemu is not installed")
	}
	w.ask(&v, "GET", "/version", "")
	if len(v.Components) != 1 {
		t.Errorf("%+v", v.Components)
	}
	var info system.Info
	w.ask(&info, "GET", "/info", "")
	if !strings.Contains(strings.Join(info.Warnings, "\n"), "qemu is not installed") {
		t.Errorf("%q", info.Warnings)
	}
}

func TestInfo(t *testing.T) {
	w := newWorld(t)
	w.importImage("demo:1", `CMD ["sleep","100"]`)
	run := func(name string) {
		w.ask(nil, "POST", "/containers/create?name="+name, `{"Image":"demo:1"}`)
	}
	run("one")
	run("two")
	if status, answer := w.call("POST", "/containers/one/start", ""); status != 204 {
		t.Fatalf("%d %s", status, answer)
	}
	var v system.Info
	w.ask(&v, "GET", "/info", "")
	if v.Containers != 2 || v.ContainersRunning != 1 || v.ContainersStopped != 1 || v.Images != 1 || v.Name != "box" || v.NCPU < 1 || v.MemTotal <= 0 || v.ServerVersion != "0.1.0" ||
		v.OSType != "linux" || v.Swarm.LocalNodeState != "inactive" || v.DefaultRuntime == "" || v.ID == "" || v.Plugins.Volume[0] != "fake-vmdk" {
		t.Errorf("%+v", v)
	}
	rows := map[string]string{}
	for _, row := range v.DriverStatus {
		rows[row[0]] = row[1]
	}
	if rows["Default Memory"] != "256MiB" || rows["Default CPUs"] != "1" || !strings.HasPrefix(rows["Hypervisor"], "fake") {
		t.Errorf("%v", rows)
	}
	if st := rows["Volume Store default"]; !strings.HasPrefix(st, "fake-vmdk "+string(w.store)+", ") || !strings.Contains(st, " free of ") {
		t.Errorf("store: %s", st)
	}
	if got := strings.Join(v.Warnings, "\n"); got != "" {
		t.Errorf("%s", got)
	}
	var old map[string]json.RawMessage
	w.ask(&old, "GET", "/v1.41/info", "")
	if string(old["BridgeNfIptables"]) != "false" || old["ServerVersion"] == nil {
		t.Errorf("%s", old)
	}
}

func TestStoreWarnings(t *testing.T) {
	got := strings.Join(storeWarnings([]portlayer.StoreInfo{{Name: "fast", Status: portlayer.StoreStatus{Degraded: "the disk is gone"}}}), "\n")
	want := "WARNING: volume store fast is degraded: the disk is gone\n" +
		`WARNING: there is no volume store named "default": volumes that name no store are refused; start vch serve with --volume-store PATH:default`
	if got != want {
		t.Errorf("got %s\nwant %s", got, want)
	}
	s := &Server{}
	rows := s.driverStatus(portlayer.HypervisorInfo{Accel: "tcg", Detail: "/dev/kvm is missing", Starts: "none"}, []portlayer.StoreInfo{{Name: "fast", Driver: "qemu-vmdk", Location: "/x", Status: portlayer.StoreStatus{Degraded: "gone"}}})
	data, err := json.Marshal(rows)
	if err != nil || !strings.Contains(string(data), `["Acceleration Detail","/dev/kvm is missing"]`) || !strings.Contains(string(data), `["Machine Starts","none"]`) || !strings.Contains(string(data), `["Volume Store fast","qemu-vmdk /x, degraded: gone"]`) {
		t.Errorf("%s, %v", data, err)
	}
}

func TestSystemDF(t *testing.T) {
	w := newWorld(t)
	w.importImage("demo:1", `CMD ["true"]`)
	w.ask(nil, "POST", "/containers/create?name=one", `{"Image":"demo:1","HostConfig":{"Binds":["data:/data"]}}`)
	w.ask(nil, "POST", "/volumes/create", `{"Name":"idle"}`)
	var u diskUsage
	w.ask(&u, "GET", "/system/df", "")
	if u.LayersSize <= 0 || len(u.Images) != 1 || u.Images[0].Containers != 1 || len(u.Containers) != 1 || len(u.Volumes) != 2 {
		t.Fatalf("%+v", u)
	}
	for i, refs := range []int64{1, 0} { // data, idle
		if use := u.Volumes[i].UsageData; use == nil || use.RefCount != refs || use.Size <= 0 {
			t.Errorf("%s: %+v", u.Volumes[i].Name, use)
		}
	}
	var part diskUsage
	w.ask(&part, "GET", "/system/df?type=volume", "")
	if part.Images != nil || part.Containers != nil || len(part.Volumes) != 2 {
		t.Errorf("%+v", part)
	}
	w.refused(400, "unknown object type: bogus", "GET", "/system/df?type=bogus", "")
	var old map[string]json.RawMessage
	w.ask(&old, "GET", "/v1.41/system/df?type=bogus", "") // type came with 1.42
	if string(old["BuilderSize"]) != "0" || string(old["BuildCache"]) != "[]" {
		t.Errorf("%s", old)
	}
	usage, err := w.client("").DiskUsage(t.Context(), client.DiskUsageOptions{Containers: true, Images: true, Volumes: true, BuildCache: true, Verbose: true})
	if err != nil || len(usage.Volumes.Items) != 2 || len(usage.Images.Items) != 1 {
		t.Errorf("%+v, %v", usage, err)
	}
}

// TestLogin is the refusals; TestImagePull logs in to a registry.
func TestLogin(t *testing.T) {
	w := newWorld(t)
	w.refused(400, "invalid JSON", "POST", "/auth", "{bad")
	w.refused(400, "the credentials cannot be read", "POST", "/auth", `{"auth":"***"}`)
}

// docker runs the real CLI against the world. It fails the test where there is none: nothing is skipped in silence.
// version is the API version that it is made to speak; "" negotiates.
func (w *world) docker(version string, args ...string) (stdout, stderr string, err error) {
	w.t.Helper()
	ctx, cancel := context.WithTimeout(w.t.Context(), time.Minute)
	defer cancel()
	cmd := exec.CommandContext(ctx, "docker", args...)
	cmd.Env = append(os.Environ(), "DOCKER_HOST=unix://"+w.socket, "DOCKER_CONFIG="+filepath.Join(w.dir, "docker"), "DOCKER_API_VERSION="+version)
	var out, errs strings.Builder
	cmd.Stdout, cmd.Stderr = &out, &errs
	err = cmd.Run()
	return out.String(), errs.String(), err
}

// TestCLI proves that the stock docker CLI understands what is not a container's. (test/e2e has the rest, with real machines.)
func TestCLI(t *testing.T) {
	w := newWorld(t)
	w.importImage("team/demo:1", "LABEL a=b")
	for _, tt := range []cliCase{
		{"version --format {{.Server.APIVersion}}/{{.Server.Version}}", 0, "1.50/0.1.0", ""},
		{"version", 0, "guest kernel:", ""},
		{"info", 0, "Storage Driver: ext4-overlay\n  Hypervisor: fake", ""},
		{"info --format {{.Name}}", 0, "box", ""},
		{"volume create --label a=b -o Capacity=8MB data", 0, "data", ""},
		{"volume ls --filter label=a=b -q", 0, "data", ""},
		{"volume inspect data --format {{.Driver}}", 0, "fake-vmdk", ""},
		{"volume create x/y", 1, "", "includes invalid characters"},
		{"volume rm none", 1, "", "o such volume"},
		{"volume rm -f none", 0, "none", ""},
		{"volume prune -f --filter all=1", 0, "data", ""},
		{"images --format {{.Repository}}:{{.Tag}}", 0, "team/demo:1", ""},
		{"image inspect team/demo:1 --format {{.Config.Labels.a}}", 0, "b", ""},
		{"history team/demo:1 -q --no-trunc", 0, "sha256:", ""},
		{"tag team/demo:1 other:2", 0, "", ""},
		{"rmi other:2", 0, "Untagged: other:2", ""},
		{"image inspect none", 1, "", "No such image: none"},
		{"search x", 1, "", "GET /images/search: not supported by vch"},
		{"save team/demo:1", 0, `"RepoTags":["team/demo:1"]`, ""},
		{"pull -a busybox", 1, "", "pulling all tags of busybox (--all-tags) is not supported by vch"},
		{"network ls --format {{.Name}}", 0, "bridge\nnone", ""},
		{"network create -d overlay x", 1, "", "Driver (--driver overlay) is not supported by vch"},
		{"service ls", 1, "", "This node is not a swarm manager"},
		{"swarm init", 1, "", "is not supported by vch"},
		{"system df --format {{.Type}}", 0, "Local Volumes", ""},
		{"system prune -f --volumes", 0, "Total reclaimed space", ""},
		{"events --since 0 --until 1 ", 0, "", ""},
		{"events --since 1h --until=-1s --filter type=volume --format {{.Action}}", 0, "create\ndestroy\n", ""},
	} {
		t.Run(tt.args, func(t *testing.T) { w.checkCLI(t, "", tt) })
	}
}

// TestCLIOfOldVersion is the same for a CLI that speaks 1.41, as Docker 20.10 does.
func TestCLIOfOldVersion(t *testing.T) {
	w := newWorld(t)
	w.importImage("demo:1")
	for _, tt := range []cliCase{
		{"version --format {{.Client.APIVersion}}", 0, "1.41", ""},
		{"info --format {{.Name}}", 0, "box", ""},
		{"images -q", 0, "", ""},
		{"image inspect demo:1", 0, `"VirtualSize":`, ""},
		{"volume create data", 0, "data", ""},
		{"system df -v", 0, "data", ""},
		{"volume prune -f", 0, "data", ""}, // then, named ones went, too
	} {
		t.Run(tt.args, func(t *testing.T) { w.checkCLI(t, "1.41", tt) })
	}
}

// cliCase is a command of the CLI and what has to be in its answer.
type cliCase struct {
	args           string
	code           int
	stdout, stderr string
}

func (w *world) checkCLI(t *testing.T, version string, tt cliCase) {
	t.Helper()
	stdout, stderr, err := w.docker(version, strings.Fields(tt.args)...)
	code := 0
	var exit *exec.ExitError
	if errors.As(err, &exit) {
		code = exit.ExitCode()
	} else if err != nil {
		t.Fatal(err)
	}
	if code != tt.code || !strings.Contains(stdout, tt.stdout) || !strings.Contains(stderr, tt.stderr) {
		t.Errorf("code %d\nstdout: %s\nstderr: %s", code, stdout, stderr)
	}
}
