package rules

import (
	"bytes"
	"encoding/json"
	"errors"
	"io"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"testing"
)

// module is this repository's module path.
const module = "vch"

// root is the repository as seen from this package's directory, where its tests run.
const root = "../.."

// pkg is what go list says of a package.
type pkg struct {
	ImportPath   string
	Name         string
	Dir          string
	GoFiles      []string
	TestGoFiles  []string
	XTestGoFiles []string
	Imports      []string
	TestImports  []string
	XTestImports []string
}

// room is the package's path within the module; the module's own directory is ".".
func (p pkg) room() string {
	if p.ImportPath == module {
		return "."
	}
	return strings.TrimPrefix(p.ImportPath, module+"/")
}

// listed runs go list once for all tests here.
var listed = sync.OnceValues(func() ([]pkg, error) {
	cmd := exec.Command("go", "list", "-e", "-json=ImportPath,Name,Dir,GoFiles,TestGoFiles,XTestGoFiles,Imports,TestImports,XTestImports", "./...")
	cmd.Dir = root
	out, err := cmd.Output()
	if err != nil {
		return nil, err
	}
	var all []pkg
	for dec := json.NewDecoder(bytes.NewReader(out)); ; {
		var p pkg
		if err := dec.Decode(&p); errors.Is(err, io.EOF) {
			return all, nil
		} else if err != nil {
			return nil, err
		}
		all = append(all, p)
	}
})

func packages(t *testing.T) []pkg {
	t.Helper()
	all, err := listed()
	if err != nil {
		t.Fatalf("go list: %v", err)
	}
	if len(all) < 10 {
		t.Fatalf("go list knows %d packages only", len(all))
	}
	return all
}

// rooms says which rooms a room may import: the first line whose pattern matches decides. A pattern is a path, or a path and /... for all below it and
// itself. What stands last on the ladder may be imported by all above it.
var rooms = []struct {
	room string
	may  []string
}{
	{"cmd/tether", []string{"tether", "guest", "internal/..."}},
	{"cmd/vch", []string{"personality/...", "machine", "portlayer/...", "hypervisor/qemu", "hypervisor/vsphere", "guest", "internal/..."}},
	{"personality/...", []string{"personality/...", "portlayer", "guest", "internal/..."}},
	{"machine", []string{"portlayer", "internal/..."}},
	{"portlayer", []string{"guest", "internal/..."}},
	{"portlayer/record", []string{"portlayer", "internal/..."}},
	{"portlayer/exec", []string{"portlayer", "portlayer/record", "guest", "internal/..."}},
	{"portlayer/image", []string{"portlayer", "portlayer/record", "guest", "internal/..."}},
	{"portlayer/bind", []string{"portlayer", "internal/..."}},
	{"portlayer/network", []string{"portlayer", "portlayer/record", "guest", "internal/..."}},
	{"portlayer/network/...", []string{"portlayer", "guest", "internal/..."}},
	{"portlayer/volume", []string{"portlayer", "portlayer/record", "guest", "internal/..."}},
	{"portlayer/volume/...", []string{"portlayer", "guest", "internal/..."}},
	{"hypervisor/fake", []string{"portlayer", "guest", "tether", "internal/..."}},
	{"hypervisor/vsphere/vcsim", []string{"portlayer", "guest", "internal/..."}},
	{"hypervisor/...", []string{"portlayer", "guest", "internal/..."}},
	{"tether/...", []string{"tether/...", "guest", "internal/..."}},
	{"guest/...", []string{"guest/...", "internal/..."}},
	{"internal/...", []string{"internal/..."}},
	{"scripts/...", nil},
	{"test/vcsim", []string{"hypervisor/vsphere/vcsim", "internal/..."}},
	{"test/vcbench", []string{"hypervisor/vsphere/vcsim", "test/measure", "guest", "internal/..."}},
	{"test/...", []string{"test/...", "portlayer", "guest", "internal/..."}},
}

// forTests are the rooms that only tests may import.
var forTests = []string{"hypervisor/fake", "hypervisor/hypertest", "hypervisor/vsphere/vcsim", "portlayer/volume/volumetest", "portlayer/network/networktest", "internal/nfsclient/nfstest", "test/..."}

// owners says which rooms alone may import what comes from outside. Tests may import anything but what their room may not know.
var owners = []struct {
	outside string // a prefix of import paths
	rooms   []string
	why     string
}{
	{"github.com/moby/moby/", []string{"personality/...", "test/..."}, "only the personality speaks Docker"},
	{"github.com/docker/docker/", nil, "the old module of Docker's types; use github.com/moby/moby/api, in the personality"},
	{"github.com/vmware/govmomi", []string{"hypervisor/vsphere/..."}, "only the vSphere leaf speaks vSphere"},
	{"github.com/insomniacslk/dhcp", []string{"tether"}, "a machine alone asks for an address"},
	{"github.com/vmware/vmw-guestinfo", []string{"tether"}, "the guest alone is at the hypervisor's port"},
	{"k8s.io/", []string{"kubelet/..."}, "only the kubelet speaks Kubernetes"},
	{"github.com/spf13/", []string{"cmd/vch"}, "flags are cmd's"},
	{"github.com/BurntSushi/toml", []string{"cmd/vch"}, "the configuration file is cmd's"},
	{"go.etcd.io/bbolt", []string{"portlayer/record"}, "records have one room"},
	{"github.com/hashicorp/yamux", []string{"guest/..."}, "the guest channel has one room"},
	{"github.com/google/go-containerregistry", []string{"portlayer/image/...", "test/..."}, "image formats have one room"},
	{"gvisor.dev/gvisor", []string{"portlayer/network/user", "portlayer/network/networktest"}, "the network stack has one room"},
	{"github.com/miekg/dns", []string{"portlayer/network"}, "names have one room"},
	{"github.com/moby/sys/mountinfo", []string{"portlayer/bind"}, "what the host has mounted is one room's to ask"},
	{"github.com/vishvananda/netlink", []string{"tether", "portlayer/network/bridge"}, "interfaces are made in the guest, and by the backend that is the kernel's"},
	{"github.com/Microsoft/hcsshim", []string{"portlayer/image/...", "hypervisor/hypertest"}, "image disks have one room"},
	{"net/http", []string{"cmd/vch", "personality/...", "portlayer/image/...", "hypervisor/vsphere/...", "test/..."}, "HTTP is a door's, the registry client's, and vSphere's"},
	{"testing", []string{"hypervisor/hypertest", "portlayer/volume/volumetest", "portlayer/network/networktest", "internal/nfsclient/nfstest", "test/..."}, "suites are in packages of their own"},
	{"log", nil, "loggers are passed in (log/slog)"},
}

// pinned is the room that holds modules in go.mod while others are being built.
const pinned = "internal/deps"

func matches(pattern, path string) bool {
	dir, below := strings.CutSuffix(pattern, "/...")
	return path == dir || below && strings.HasPrefix(path, dir+"/")
}

func anyMatches(patterns []string, path string) bool {
	for _, p := range patterns {
		if matches(p, path) {
			return true
		}
	}
	return false
}

// mayImport says why room may not import path; "" if it may.
func mayImport(room, path string) string {
	if inner, ok := strings.CutPrefix(path, module+"/"); ok {
		if anyMatches(forTests, inner) && !anyMatches(forTests, room) {
			return "only tests may import " + inner
		}
		for _, r := range rooms {
			if matches(r.room, room) {
				if anyMatches(r.may, inner) {
					return ""
				}
				return room + " may import " + strings.Join(r.may, ", ")
			}
		}
		return "room " + room + " has no line in the table of rooms (test/rules/imports_test.go)"
	}
	for _, o := range owners {
		if (path == o.outside || strings.HasPrefix(path, strings.TrimSuffix(o.outside, "/")+"/") && o.outside != "log" && o.outside != "testing" && o.outside != "net/http") && !anyMatches(o.rooms, room) && !strings.HasPrefix(room, "scripts/") {
			return o.why
		}
	}
	return ""
}

// Imports point down.
func TestImports(t *testing.T) {
	for _, p := range packages(t) {
		if p.room() == pinned {
			continue
		}
		for _, path := range p.Imports {
			if why := mayImport(p.room(), path); why != "" {
				t.Errorf("%s imports %s: %s", p.room(), path, why)
			}
		}
	}
}

// The table above refuses what it should: a rule that lets everything pass keeps nothing.
func TestImportTableRefuses(t *testing.T) {
	for _, tc := range []struct {
		room, path string
		may        bool
	}{
		{"personality", "vch/portlayer", true},
		{"personality", "vch/portlayer/exec", false},
		{"personality", "vch/hypervisor/qemu", false},
		{"personality", "github.com/moby/moby/api/types/volume", true},
		{"portlayer", "vch/portlayer/record", false},
		{"portlayer/exec", "github.com/moby/moby/api/types/volume", false},
		{"portlayer/exec", "vch/personality", false},
		{"portlayer/volume/vmdk", "vch/hypervisor/qemu", false},
		{"portlayer/volume", "vch/portlayer/volume/vmdk", false},
		{"hypervisor/qemu", "vch/tether", false},
		{"hypervisor/fake", "vch/tether", true},
		{"cmd/vch", "vch/hypervisor/fake", false},
		{"cmd/vch", "vch/hypervisor/qemu", true},
		{"cmd/vch", "vch/machine", true},
		{"machine", "vch/personality", false},
		{"machine", "net/http", false},
		{"tether", "vch/portlayer", false},
		{"guest", "vch/portlayer", false},
		{"internal/undo", "vch/portlayer", false},
		{"brand/new", "vch/portlayer", false},
		{"portlayer/exec", "go.etcd.io/bbolt", false},
		{"portlayer/exec", "net/http", false},
		{"portlayer/exec", "net/http/httptest", true},
		{"portlayer/exec", "log", false},
		{"portlayer/exec", "log/slog", true},
	} {
		if why := mayImport(tc.room, tc.path); (why == "") != tc.may {
			t.Errorf("%s importing %s: %q", tc.room, tc.path, why)
		}
	}
}

// Every line of the table is about a room that is there.
func TestTableOfRooms(t *testing.T) {
	for _, r := range rooms {
		found := false
		for _, p := range packages(t) {
			found = found || matches(r.room, p.room())
		}
		if !found {
			t.Errorf("no room is %s", r.room)
		}
	}
}

func goFiles(p pkg) (files []string) {
	for _, list := range [][]string{p.GoFiles, p.TestGoFiles, p.XTestGoFiles} {
		for _, f := range list {
			files = append(files, filepath.Join(p.Dir, f))
		}
	}
	return files
}
