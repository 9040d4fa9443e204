package main

import (
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/spf13/pflag"

	"vch/machine"
)

// What a command line says is written to a file, read from it, and written as a command line: the same settings all along, and what is absolute is so.
func TestWrittenAndRead(t *testing.T) {
	l := place{Name: "x", Home: "/h/x", Config: "/h/x/vch.toml", Socket: "/h/x/vch.sock", State: "/h/x/state"}
	var w words
	f := pflag.NewFlagSet("vch", pflag.ContinueOnError)
	w.flags(f)
	line := []string{"--volume-store", "vols:default", "--volume-store", "nfs://nas/e?soft:shared", "--memory", "1G", "--cpus", "1", "--listen", "tcp://0.0.0.0:2376", "--tls-cname", "it's.example", "--image-store", "pics", "--qemu", "qemu-kvm", "--bind-allow", "/srv/a b"}
	if err := f.Parse(line); err != nil {
		t.Fatal(err)
	}
	want := machine.Settings{
		"volume-store": {"/work/vols:default", "nfs://nas/e?soft:shared"}, "memory": {"1G"}, "listen": {"tcp://0.0.0.0:2376"}, "tls-cname": {"it's.example"},
		"image-store": {"/work/pics"}, "qemu": {"qemu-kvm"}, "bind-allow": {"/srv/a b"},
	}
	got := said(f, asRoot)
	if diff := cmp.Diff(want, got); diff != "" {
		t.Fatal(diff)
	}
	full := complete(got, l)
	if full["tlsverify"] == nil || full["listen"][0] != "unix:///h/x/vch.sock" {
		t.Errorf("%v", full)
	}
	path := filepath.Join(t.TempDir(), "vch.toml")
	if err := os.WriteFile(path, []byte(tomlOf(full, "x")), 0o600); err != nil {
		t.Fatal(err)
	}
	back, err := read(path)
	if err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(full, back); diff != "" {
		t.Error(diff)
	}
	if diff := cmp.Diff(want, asked(back, l)); diff != "" {
		t.Error(diff)
	}
	const text = `vch create --name x --bind-allow '/srv/a b' --image-store /work/pics --listen tcp://0.0.0.0:2376 --memory 1G --qemu qemu-kvm --tls-cname 'it'\''s.example' --volume-store /work/vols:default --volume-store 'nfs://nas/e?soft:shared'`
	if got := commandLine("x", "", "", asked(back, l)); got != text {
		t.Errorf("%s\nnot\n%s", got, text)
	}
	delete(full, "tls-cname") // no name of a host
	s, err := checked(full, asRoot)
	if err != nil || s.State != "/h/x/state" || s.TLS == nil || !s.Degrade || len(s.Stores) != 2 {
		t.Errorf("%+v, %v", s, err)
	}
}

func TestPlaces(t *testing.T) {
	for _, tc := range []struct {
		root                 string
		at                   surroundings
		home, config, socket string
	}{
		{"", asRoot, "/var/lib/vch/hosts/x", "/etc/vch/x/vch.toml", "/var/run/vch-x.sock"},
		{"", asUser, "/home/ann/.local/share/vch/hosts/x", "/home/ann/.local/share/vch/hosts/x/vch.toml", "/home/ann/.local/share/vch/hosts/x/vch.sock"},
		{"r", asRoot, "/work/r/x", "/work/r/x/vch.toml", "/work/r/x/vch.sock"},
	} {
		l, err := (&placesFlag{tc.root}).of("x", tc.at)
		if err != nil || string(l.Home) != tc.home || l.Config != tc.config || l.Socket != tc.socket {
			t.Errorf("%+v, %v", l, err)
		}
	}
	if _, err := (&placesFlag{"/" + strings.Repeat("a", 100)}).of("x", asRoot); err == nil || !strings.Contains(err.Error(), "choose a shorter --root") {
		t.Errorf("%v", err)
	}
	if _, err := (&placesFlag{}).of("../x", asRoot); err == nil {
		t.Error("a name with a slash")
	}
	if p := (place{Home: "/h"}).program("v1.0/é"); p != "/h/bin/vch-v1.0__" {
		t.Error(p)
	}
}

func TestSupervisorName(t *testing.T) {
	for _, tc := range []struct {
		asked string
		at    surroundings
		runs  bool
		want  string
	}{{"auto", asRoot, true, "systemd"}, {"auto", asUser, true, "process"}, {"auto", asRoot, false, "process"}, {"process", asRoot, true, "process"}, {"systemd", asRoot, true, "systemd"}, {"systemd", asRoot, false, ""}, {"systemd", asUser, true, ""}, {"init", asRoot, true, ""}} {
		if got, err := supervisorName(tc.asked, tc.at, tc.runs); got != tc.want || (err == nil) != (tc.want != "") {
			t.Errorf("%+v: %s, %v", tc, got, err)
		}
	}
}
