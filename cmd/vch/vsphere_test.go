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
	if diff := cmp.Diff(&vsphere{URL: "https://vc.example:8443", User: "ops", Thumbprint: strings.Repeat("ab", 32), Datacenter: "dc", Network: "n"}, got); diff != "" {
		t.Error(diff)
	}
	if v, err := (vsphereWords{target: "local"}).parse(); v != nil || err != nil {
		t.Errorf("local: %v, %v", v, err)
	}
	for want, w := range map[string]vsphereWords{
		"--user has a meaning with --target URL only": {target: "local", user: "ops"},
		"is neither local nor the URL":                {target: "ftp://x"},
		"has a user or a password in it":              {target: "https://ops:secret@vc"},
		"is no SHA-256 thumbprint":                    {target: "vc", thumbprint: "ab"},
	} {
		if _, err := w.parse(); err == nil || !strings.Contains(err.Error(), want) || strings.Contains(err.Error(), "secret") {
			t.Errorf("%+v: %v", w, err)
		}
	}
	if _, err := parse(asRoot, "", "--target", "vc", "--user", "ops"); err == nil || !strings.Contains(err.Error(), "targets of vSphere are not supported yet") {
		t.Errorf("%v", err)
	}
}
