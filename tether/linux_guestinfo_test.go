package tether

import (
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/vmware/vmw-guestinfo/vmcheck"
	"golang.org/x/sys/unix"
)

func TestConfigFiles(t *testing.T) {
	dir := t.TempDir()
	at := filepath.Join(dir, "by_name/opt/vch/guestinfo.vch.contact")
	if err := os.MkdirAll(at, 0o700); err != nil {
		t.Fatal(err)
	}
	c := configFiles(dir)
	if v, found, err := c.Get("guestinfo.vch.contact"); v != "" || found || err != nil {
		t.Errorf("before it is there: %q, %v, %v", v, found, err)
	}
	if err := os.WriteFile(filepath.Join(at, "raw"), []byte("{\"a\": 1}"), 0o600); err != nil {
		t.Fatal(err)
	}
	if v, found, err := c.Get("guestinfo.vch.contact"); v != "{\"a\": 1}" || !found || err != nil {
		t.Errorf("%q, %v, %v", v, found, err)
	}
	if err := os.Mkdir(filepath.Join(dir, "by_name/opt/vch/odd"), 0o700); err != nil {
		t.Fatal(err)
	}
	if err := os.Mkdir(filepath.Join(dir, "by_name/opt/vch/odd/raw"), 0o700); err != nil {
		t.Fatal(err)
	}
	if _, _, err := c.Get("odd"); err == nil {
		t.Error("a directory was read")
	}
}

func TestBackdoorAsks(t *testing.T) {
	broken := errors.New("broken off")
	for _, tc := range []struct {
		name  string
		fails int
		ok    bool
		want  string
		found bool
		err   bool
	}{
		{"there", 0, true, "text", true, false},
		{"not there", 0, false, "", false, false},
		{"there, after the machine has moved", attempts - 1, true, "text", true, false},
		{"no answer", attempts, true, "", false, true},
	} {
		asked := 0
		b := &backdoor{ask: func(request []byte) ([]byte, bool, error) {
			if string(request) != "info-get guestinfo.vch.contact" {
				t.Errorf("asked %q", request)
			}
			if asked++; asked <= tc.fails {
				return nil, false, broken
			}
			if !tc.ok {
				return []byte("No value found"), false, nil
			}
			return []byte("text"), true, nil
		}}
		v, found, err := b.Get("guestinfo.vch.contact")
		if v != tc.want || found != tc.found || (err != nil) != tc.err || err != nil && !errors.Is(err, broken) {
			t.Errorf("%s: %q, %v, %v", tc.name, v, found, err)
		}
	}
}

// What the processor refuses is an error, not the end of the program.
func TestRefusedPortIsAnError(t *testing.T) {
	b := &backdoor{ask: func(request []byte) ([]byte, bool, error) {
		_ = unix.Iopl(0) // as of a kernel that is locked down
		return askBackdoor(request)
	}}
	if vmcheck.IsVirtualCPU() { // which answers
		b.ask = func([]byte) ([]byte, bool, error) { panic("refused") }
	}
	if _, _, err := b.Get("x"); err == nil || !strings.Contains(err.Error(), "does not answer") {
		t.Errorf("%v", err)
	}
}

// This host is no machine of VMware's: its port is not touched.
func TestFindGuestInfo(t *testing.T) {
	found := findGuestInfo()
	if _, ok := found.(*backdoor); ok {
		return // this host is a machine of VMware's
	}
	if found == nil {
		return
	}
	if v, is, err := found.Get("nothing"); v != "" || is || err != nil {
		t.Errorf("%q, %v, %v", v, is, err)
	}
}
