package main

import (
	"bytes"
	"context"
	"net"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"vch/internal/fault"
	"vch/machine"
)

// What a VCH on vSphere has of its own is added to what an administrator said, and taken away again where that is shown.
func TestSettingsOfTarget(t *testing.T) {
	l := place{Name: "web", Home: "/r/web", State: "/r/web/state", Socket: "/r/web/vch.sock"}
	said := machine.Settings{"target": {"https://vc"}, "user": {"ops"}, "image-store": {"ds://ssd/vch"}, "pool": {"/DC/host/C/Resources"}, "folder": {"/DC/vm"}, "password-file": {"/home/ops/secret"}}
	full := complete(said, l)
	for key, want := range map[string]string{"pool": "/DC/host/C/Resources/web", "folder": "/DC/vm/web", "extension": "org.vch.web", "password-file": "/r/web/password"} {
		if got := first(full[key]); got != want {
			t.Errorf("%s: %s", key, got)
		}
	}
	delete(said, "password-file")
	if diff := cmp.Diff(said, asked(full, l)); diff != "" {
		t.Error(diff)
	}
	if diff := cmp.Diff(full, complete(asked(full, l), l)); diff != "" {
		t.Error(diff)
	}
	local := complete(machine.Settings{"target": {"local"}}, l)
	if local["password-file"] != nil || local["extension"] != nil {
		t.Errorf("%v", local)
	}
	host := complete(machine.Settings{"target": {"https://esx"}, "pool": {"/ha/host/h/Resources"}}, l) // an ESX host has no folders, and no extensions
	if host["folder"] != nil || host["extension"] != nil {
		t.Errorf("%v", host)
	}
}

// Directories of datastores are no directories of this host.
func TestStoresOnDatastores(t *testing.T) {
	for dir, want := range map[string]string{"[ds]": "[ds] volumes", "[ds] a/b": "[ds] a/b/volumes", "/srv": "/srv/volumes"} {
		if got := volumesDir(dir); got != want {
			t.Errorf("%s: %s", dir, got)
		}
	}
	stores := []storePlace{{Name: "a", Path: "[ds] a", Datastore: true}, {Name: "b", Path: "/b"}, {Name: "c", Path: "[ds]", Datastore: true}}
	if diff := cmp.Diff([]string{"/b"}, localStores(stores)); diff != "" {
		t.Error(diff)
	}
	var words []string
	for _, s := range stores {
		words = append(words, s.words())
	}
	if diff := cmp.Diff([]string{"ds://ds/a", "/b", "ds://ds/"}, words); diff != "" {
		t.Error(diff)
	}
	if !within("[ds]", "[ds] a") || within("[ds] a", "[ds] ab") || within("[d]", "[ds] a") {
		t.Error("what is within a datastore")
	}
	// The same directory at two targets is two.
	a := settings{VSphere: &vsphereTarget{URL: "https://a"}}
	b := settings{VSphere: &vsphereTarget{URL: "https://b"}, Stores: stores}
	for name, other := range map[string]settings{"another target": b, "this host": {Stores: stores}} {
		if c := checkStore(t.Context(), a, stores[0], map[string]settings{"other": other}, &survey{}); c.Verdict == machine.Fail {
			t.Errorf("%s: %+v", name, c)
		}
	}
	b.VSphere.URL = "https://a"
	if c := checkStore(t.Context(), a, stores[0], map[string]settings{"other": b}, &survey{}); c.Verdict != machine.Fail {
		t.Errorf("one directory for two VCHs: %+v", c)
	}
}

// The password is in the file that was named, in the environment, or where the VCH keeps it, in this order.
func TestFindPassword(t *testing.T) {
	dir := t.TempDir()
	s := site{place: place{Home: machine.Home(dir)}}
	null, err := os.Open(os.DevNull)
	if err != nil {
		t.Fatal(err)
	}
	defer null.Close()
	target := &vsphereTarget{URL: "https://vc", User: "ops"}
	t.Setenv("VCH_PASSWORD", "")
	if _, err := s.findPassword(target, "", null, os.Stderr); err == nil || !strings.Contains(err.Error(), "neither in --password-file nor") {
		t.Errorf("none: %v", err)
	}
	if err := (site{place: s.place}).writePassword(""); !fault.Is(err, fault.Conflict) {
		t.Errorf("none is written: %v", err)
	}
	s.password = "kept"
	if err := s.writePassword(""); err != nil {
		t.Fatal(err)
	}
	if info, err := os.Stat(s.passwordFile()); err != nil || info.Mode() != 0o600 {
		t.Errorf("%v, %v", info, err)
	}
	file := filepath.Join(dir, "named")
	if err := os.WriteFile(file, []byte("named\r\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	for want, set := range map[string]struct{ file, env string }{"kept": {}, "said": {"", "said"}, "named": {file, "said"}} {
		t.Setenv("VCH_PASSWORD", set.env)
		if got, err := s.findPassword(target, set.file, null, os.Stderr); got != want || err != nil {
			t.Errorf("%s: %s, %v", want, got, err)
		}
	}
}

// A password that was changed is the one before again when that is taken back, however often either is done.
func TestPasswordIsTakenBack(t *testing.T) {
	dir := t.TempDir()
	s := site{place: place{Home: machine.Home(dir)}, at: asRoot, password: "old"}
	if err := s.writePassword(""); err != nil {
		t.Fatal(err)
	}
	s.password = "new"
	for range 2 {
		if err := s.writePassword("a"); err != nil || s.keptPassword() != "new" {
			t.Errorf("%s, %v", s.keptPassword(), err)
		}
	}
	if err := s.restorePassword("b"); err != nil || s.keptPassword() != "new" { // a change that did not come so far
		t.Errorf("%s, %v", s.keptPassword(), err)
	}
	for range 2 {
		if err := (onVSphere{s}).Do(t.Context(), machine.Step{Kind: restorePassword, Data: map[string]string{changeKey: "a"}}); err != nil || s.keptPassword() != "old" {
			t.Errorf("%s, %v", s.keptPassword(), err)
		}
	}
	set := machine.Settings{"target": {"https://vc"}, "user": {"ops"}, "image-store": {"ds://ssd/vch"}}
	own := s.own(machine.Desired{Settings: set}, machine.Observed{Supervisor: "process"})
	if len(own.Before) != 1 || own.Before[0].Kind != writePassword || len(own.Back) != 1 || own.Back[0].Data[changeKey] == "" || own.Back[0].Data[changeKey] != own.Before[0].Data[changeKey] {
		t.Errorf("%+v", own)
	}
	s.password = "old"
	if own := s.own(machine.Desired{Settings: set}, machine.Observed{Supervisor: "process"}); own.Before != nil || own.Back != nil {
		t.Errorf("nothing changes, and there is %+v", own)
	}
}

// A target that takes a connection and says nothing is given up.
func TestTargetThatIsSilent(t *testing.T) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	ctx, cancel := context.WithTimeout(t.Context(), 200*time.Millisecond)
	defer cancel()
	if _, err := openTarget(ctx, &vsphereTarget{URL: "https://" + l.Addr().String(), User: "ops", Thumbprint: strings.Repeat("ab", 32)}, "x"); !fault.Is(err, fault.Unavailable) || !strings.Contains(err.Error(), "has not answered") {
		t.Error(err)
	}
}

func TestRole(t *testing.T) {
	for format, want := range map[string]string{"text": "Network.Assign", "govc": "govc permissions.set -principal 'EX\\ops' -role vch-network -propagate=true", "json": `"privilege": "Network.Assign"`} {
		var out, diag bytes.Buffer
		if code := run(t.Context(), []string{"role", "--format", format, "--user", `EX\ops`}, &out, &diag); code != 0 || !strings.Contains(out.String(), want) {
			t.Errorf("%s: %d: %s%s", format, code, out.String(), diag.String())
		}
	}
	if code := run(t.Context(), []string{"role", "--format", "xml"}, new(bytes.Buffer), new(bytes.Buffer)); code != exitUsage {
		t.Errorf("xml: %d", code)
	}
}
