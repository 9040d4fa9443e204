package main

import (
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"vch/internal/fault"
)

func TestLookAtStore(t *testing.T) {
	dir := t.TempDir()
	if err := os.WriteFile(filepath.Join(dir, "file"), nil, 0o600); err != nil {
		t.Fatal(err)
	}
	for _, tc := range []struct {
		name, path string
		kind       fault.Kind
		want       string // in the detail, or in the error
	}{
		{"a directory", dir, 0, " free"},
		{"one to be made", filepath.Join(dir, "new"), 0, "will be made in " + dir},
		{"a file", filepath.Join(dir, "file"), fault.Invalid, "is not a directory; give a directory that this user can write: --volume-store DIRECTORY:fast"},
		{"below a file", filepath.Join(dir, "file", "x"), fault.Invalid, "file is not a directory"},
		{"no parent", filepath.Join(dir, "no", "x"), fault.NotFound, "is missing; make it first, as in: mkdir -p"},
		{"no room", "/sys/fs", 0, "0B free"}, // a file system without blocks: a warning
	} {
		t.Run(tc.name, func(t *testing.T) {
			found, err := lookAtStore(storePlace{Path: tc.path, Name: "fast"})
			if tc.want != "" && err == nil && tc.kind == 0 {
				if !strings.Contains(found.detail, tc.want) {
					t.Errorf("detail %q", found.detail)
				}
				return
			}
			if !fault.Is(err, tc.kind) || !strings.Contains(err.Error(), tc.want) || !strings.HasPrefix(err.Error(), "volume store fast: ") {
				t.Errorf("%v: %v", fault.KindOf(err), err)
			}
		})
	}
	if found, err := lookAtStore(storePlace{Path: "/sys/fs", Name: "fast"}); err != nil || !strings.HasPrefix(found.warning, "little room: 0B") {
		t.Errorf("a full store: %+v, %v", found, err)
	}
	if left, _ := os.ReadDir(dir); len(left) != 1 {
		t.Errorf("looking made something: %v", left)
	}
}

func TestLookAtState(t *testing.T) {
	dir := t.TempDir()
	if found, err := lookAtState(filepath.Join(dir, "a", "b")); err != nil || !strings.Contains(found.detail, "will be made in "+dir) {
		t.Errorf("%+v, %v", found, err)
	}
	file := filepath.Join(dir, "file")
	if err := os.WriteFile(file, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := lookAtState("/sys/fs"); !fault.Is(err, fault.Unavailable) || !strings.Contains(err.Error(), "there is no space") {
		t.Errorf("a full medium: %v", err)
	}
	if _, err := lookAtState(file); !fault.Is(err, fault.Invalid) || !strings.Contains(err.Error(), "give another with --state") {
		t.Errorf("a file: %v", err)
	}
}

func TestDoctorTable(t *testing.T) {
	var out strings.Builder
	checks := []check{tetherCheck(nil), dockerCheck(address{"unix", "/run/s"}, func(string) (string, error) { return "/bin/docker", nil }), dockerCheck(address{"unix", "/run/s"}, func(string) (string, error) { return "", os.ErrNotExist })}
	checks = append(checks, bindChecks([]string{"/", "/none"})...)
	checks = append(checks, bridgeCheck(func(string) (string, error) { return "", os.ErrNotExist }))
	if err := printChecks(&out, append(checks, storeChecks(t.Context(), []storePlace{{Path: t.TempDir(), Name: "fast"}}, time.Second)...)); err != nil {
		t.Fatal(err)
	}
	for _, want := range []string{"CHECK", "FAIL     this vch was built without its tether", "export DOCKER_HOST=unix:///run/s", "make setup gets one", "bind-allow     ok       /\n", "/none is no directory", "use --network-backend user", "store default  warn"} {
		if !strings.Contains(out.String(), want) {
			t.Errorf("no %q in\n%s", want, out.String())
		}
	}
}
