package bind

import (
	"net"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"vch/internal/fault"
	"vch/portlayer"
)

// host makes a directory with one that is allowed in it, and gives both.
func host(t *testing.T) (root, allowed string) {
	t.Helper()
	root, err := filepath.EvalSymlinks(t.TempDir())
	if err != nil {
		t.Fatal(err)
	}
	allowed = filepath.Join(root, "allowed")
	for _, dir := range []string{"allowed/sub", "other"} {
		if err := os.MkdirAll(filepath.Join(root, dir), 0o755); err != nil {
			t.Fatal(err)
		}
	}
	for name, to := range map[string]string{"allowed/in": "sub", "allowed/out": "../other", "allowed/dangling": "../other/none", "alias": "allowed", "other/back": "../allowed/sub"} {
		if err := os.Symlink(to, filepath.Join(root, name)); err != nil {
			t.Fatal(err)
		}
	}
	if err := os.WriteFile(filepath.Join(allowed, "file"), nil, 0o644); err != nil {
		t.Fatal(err)
	}
	return root, allowed
}

func TestShare(t *testing.T) {
	root, allowed := host(t)
	l, err := net.Listen("unix", filepath.Join(allowed, "sock"))
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	p := Policy{Allow: []string{filepath.Join(root, "alias"), filepath.Join(root, "missing")}}
	for _, tt := range []struct {
		source string
		made   bool
		want   string // Path below root, or the error's text
		kind   fault.Kind
	}{
		{"allowed", false, "allowed", 0},
		{"alias/sub", false, "allowed/sub", 0},
		{"allowed/in", false, "allowed/sub", 0},
		{"other/back", false, "allowed/sub", 0},
		{"allowed/file", false, "allowed/file", 0},
		{"allowed/new/deep", true, "allowed/new/deep", 0},
		{"allowed/new", false, "bind source path does not exist", fault.Invalid},
		{"allowed/out", false, "which is " + root + "/other, cannot be mounted", fault.Denied},
		{"allowed/out/new", true, "cannot be mounted", fault.Denied},
		{"allowed/dangling", true, "leads nowhere", fault.Invalid},
		{"other", false, "--bind-allow of this VCH names", fault.Denied},
		{"allowedx", true, "cannot be mounted", fault.Denied},
		{"", false, "cannot be mounted", fault.Denied},
		{"allowed/sock", false, "is a socket", fault.Unsupported},
		{"allowed/file/x", true, "not a directory", fault.Invalid},
	} {
		got, err := p.Share(portlayer.Mount{Kind: portlayer.BindMount, Source: filepath.Join(root, tt.source), Make: tt.made, Target: "/x", ReadOnly: true})
		if tt.kind != 0 {
			if !fault.Is(err, tt.kind) || !strings.Contains(err.Error(), tt.want) {
				t.Errorf("%s: %v, want %s", tt.source, err, tt.want)
			}
			continue
		}
		if want := (portlayer.Share{Path: filepath.Join(root, tt.want), Below: allowed, ReadOnly: true}); err != nil || got != want {
			t.Errorf("%s: %+v, %v; want %+v", tt.source, got, err, want)
		}
	}
	if _, err := (Policy{}).Share(portlayer.Mount{Source: allowed, Target: "/x"}); !fault.Is(err, fault.Denied) || !strings.Contains(err.Error(), "start it with --bind-allow DIRECTORY, or use a volume: -v NAME:/x") {
		t.Errorf("nothing is allowed: %v", err)
	}
	if _, err := (Policy{Allow: []string{"/"}, Never: "it is elsewhere"}).Share(portlayer.Mount{Source: allowed, Target: "/x"}); !fault.Is(err, fault.Unsupported) || !strings.Contains(err.Error(), "it is elsewhere; use a volume: -v NAME:/x") {
		t.Errorf("nothing can be shared: %v", err)
	}
	if got, err := (Policy{Allow: []string{"/"}}).Share(portlayer.Mount{Source: allowed, Target: "/x"}); err != nil || got.Below != "/" {
		t.Errorf("all is allowed: %+v, %v", got, err)
	}
}

func TestMake(t *testing.T) {
	root, allowed := host(t)
	p := Policy{Allow: []string{allowed}}
	m := portlayer.Mount{Kind: portlayer.BindMount, Source: filepath.Join(allowed, "new/deep"), Make: true, Target: "/x"}
	for range 2 {
		if err := p.Make(m); err != nil {
			t.Fatal(err)
		}
	}
	if fi, err := os.Stat(m.Source); err != nil || !fi.IsDir() {
		t.Errorf("%v, %v", fi, err)
	}
	m.Source = filepath.Join(root, "outside")
	if err := p.Make(m); !fault.Is(err, fault.Denied) {
		t.Errorf("outside: %v", err)
	}
	if _, err := os.Stat(m.Source); err == nil {
		t.Error("it was made outside")
	}
	m = portlayer.Mount{Source: filepath.Join(allowed, "none"), Target: "/x"}
	if err := p.Make(m); !fault.Is(err, fault.Invalid) {
		t.Errorf("what is not to be made: %v", err)
	}
}

// TestMakeBelow: a link that came after the look leads nowhere outside.
func TestMakeBelow(t *testing.T) {
	root, allowed := host(t)
	if err := makeBelow(allowed, filepath.Join(allowed, "out/new")); err == nil {
		t.Error("it followed a link that leads outside")
	}
	if _, err := os.Lstat(filepath.Join(root, "other/new")); err == nil {
		t.Error("it was made outside")
	}
	if err := makeBelow(allowed, filepath.Join(allowed, "in/new")); err != nil {
		t.Errorf("a link that stays inside: %v", err)
	}
}
