package main

import "testing"

func TestIdentityIsKept(t *testing.T) {
	path := t.TempDir() + "/engine-id"
	first, err := identity(path)
	if err != nil || len(first) != 36 {
		t.Fatalf("%q, %v", first, err)
	}
	if again, err := identity(path); err != nil || again != first {
		t.Errorf("%q then %q, %v", first, again, err)
	}
	if _, err := identity(path + "/below"); err == nil {
		t.Error("an id below a file")
	}
}
