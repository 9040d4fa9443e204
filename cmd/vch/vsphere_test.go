package main

import (
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
)

func TestVSphereWords(t *testing.T) {
	print := strings.Repeat("AB:", 31) + "ab"
	got, err := vsphereWords{target: "vc.example:8443", user: "ops", thumbprint: print, datacenter: "dc", network: "n"}.parse()
	if err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(&vsphereTarget{URL: "https://vc.example:8443", User: "ops", Thumbprint: strings.Repeat("ab", 32), Datacenter: "dc", Network: "n", GuestListen: "0.0.0.0:2378"}, got); diff != "" {
		t.Error(diff)
	}
	if v, err := (vsphereWords{target: "local"}).parse(); v != nil || err != nil {
		t.Errorf("local: %v, %v", v, err)
	}
	for want, w := range map[string]vsphereWords{
		"--user has a meaning with --target URL only": {target: "local", user: "ops"},
		"is neither local nor the URL":                {target: "ftp://x"},
		"has a user or a password in it":              {target: "https://ops:secret@vc"},
		"is no SHA-256 thumbprint":                    {target: "vc", user: "u", thumbprint: "ab"},
		"wants --user":                                {target: "vc"},
		"--guest-listen \"here\" is not HOST:PORT":    {target: "vc", user: "u", guestListen: "here"},
	} {
		if _, err := w.parse(); err == nil || !strings.Contains(err.Error(), want) || strings.Contains(err.Error(), "secret") {
			t.Errorf("%+v: %v", w, err)
		}
	}
	s, err := parse(asRoot, "", "--target", "vc", "--user", "ops", "--image-store", "ds://fast/vch", "--volume-store", "ds://big/vols:default", "--volume-store", "big/more:b", "--volume-store", "[big] third:c")
	if err != nil || s.ImageDisks != "[fast] vch" || s.Stores[0].Path != "[big] vols" || s.Stores[1].Path != "[big] more" || s.Stores[2].Path != "[big] third" || !s.Stores[2].Datastore {
		t.Errorf("%+v, %v", s, err)
	}
	for _, bad := range []string{"", "/srv", "ds:///x"} {
		if _, err := parse(asRoot, "", "--target", "vc", "--user", "ops", "--image-store", bad); err == nil || !strings.Contains(err.Error(), "ds://DATASTORE/PATH") {
			t.Errorf("image store %q: %v", bad, err)
		}
	}
	for _, flag := range []string{"qemu", "bind-allow"} { // auto is a name like others there
		if _, err := parse(asRoot, "", "--target", "vc", "--user", "ops", "--image-store", "ds://fast/vch", "--"+flag, "auto"); err == nil {
			t.Errorf("--%s auto is accepted", flag)
		}
	}
	for flag, value := range map[string]string{"accel": "tcg", "qemu": "/usr/bin/qemu", "template": "auto", "warm": "0", "bind-allow": "/srv"} {
		_, err := parse(asRoot, "", "--target", "vc", "--user", "ops", "--image-store", "ds://fast/vch", "--"+flag, value)
		if same := flag == "template" || flag == "warm"; same != (err == nil) || err != nil && !strings.Contains(err.Error(), "--"+flag+" has no meaning for machines at --target: ") {
			t.Errorf("--%s %s: %v", flag, value, err)
		}
	}
}

// Guests reach a daemon by the address it listens at, or by the one that is given.
func TestGuestAddress(t *testing.T) {
	for _, c := range []struct{ listen, address, want string }{
		{"", "", ""}, {"10.0.0.5:99", "", "10.0.0.5:99"}, {"", "vch.example", "vch.example:2378"}, {"0.0.0.0:99", "10.0.0.7", "10.0.0.7:99"}, {"", "10.0.0.7:1", "10.0.0.7:1"},
	} {
		v, err := vsphereWords{target: "vc", user: "u", guestListen: c.listen, guestAddress: c.address}.parse()
		if err != nil || v.GuestAddress != c.want {
			t.Errorf("%+v: %+v, %v", c, v, err)
		}
	}
}
