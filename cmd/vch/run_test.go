package main

import (
	"bytes"
	"io/fs"
	"net"
	"os"
	"path/filepath"
	"strings"
	"testing"
)

// Each of these is refused before anything is touched: one line that says what to do (a second points at --help where the command line is at fault),
// an exit code, and not a file more or less than before.
func TestServeRefuses(t *testing.T) {
	dir, err := os.MkdirTemp("", "v") // short: a socket's path has 107 bytes
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(dir) })
	at := func(elem ...string) string { return filepath.Join(append([]string{dir}, elem...)...) }
	for _, name := range []string{"store", "other"} {
		if err := os.Mkdir(at(name), 0o700); err != nil {
			t.Fatal(err)
		}
	}
	for name, text := range map[string]string{"file": "mine", "bad.toml": "colour = 1\n", "not.toml": "=\n"} {
		if err := os.WriteFile(at(name), []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	live, err := net.Listen("unix", at("live"))
	if err != nil {
		t.Fatal(err)
	}
	defer live.Close()

	for _, tc := range []struct {
		name string
		args []string
		code int
		want string
	}{
		{"a store that is a file", []string{"--volume-store", at("file") + ":default"}, exitFailure, "volume store default: " + at("file") + " is not a directory; give a directory"},
		{"a store below a file", []string{"--volume-store", at("file", "x") + ":default"}, exitFailure, at("file") + " is not a directory; give a directory"},
		{"a store without a parent", []string{"--volume-store", at("no", "x") + ":default"}, exitFailure, "make it first, as in: mkdir -p " + at("no", "x")},
		{"a state without room", []string{"--state", "/sys/fs"}, exitFailure, "state directory /sys/fs: there is no space"},
		{"a good store and a bad one", []string{"--volume-store", at("new") + ":default", "--volume-store", at("file") + ":x"}, exitFailure, "volume store x: "},
		{"two stores of one name", []string{"--volume-store", at("store") + ":default", "--volume-store", at("other") + ":default"}, exitUsage, "two volume stores are called default"},
		{"a bad name", []string{"--volume-store", at("store") + ":a b"}, exitUsage, "cannot be a store's name"},
		{"a state that is a file", []string{"--state", at("file")}, exitFailure, "state directory " + at("file") + ": " + at("file") + " is not a directory; give another with --state"},
		{"a socket that is a file", []string{"--listen", "unix://" + at("file")}, exitFailure, "there is something else, which is no socket; choose another with --listen"},
		{"a socket that is alive", []string{"--listen", "unix://" + at("live")}, exitFailure, "another program answers there; stop it first"},
		{"an unknown flag", []string{"--colour"}, exitUsage, "unknown flag: --colour"},
		{"an argument", []string{"now"}, exitUsage, "now"},
		{"a bad configuration file", []string{"--config", at("bad.toml")}, exitUsage, `there is no setting "colour"`},
		{"no configuration file", []string{"--config", at("no.toml")}, exitUsage, "cannot read configuration file"},
		{"a configuration file that is none", []string{"--config", at("not.toml")}, exitUsage, "is not TOML"},
	} {
		t.Run(tc.name, func(t *testing.T) {
			before := tree(t, dir)
			var out, diag bytes.Buffer
			args := append([]string{"serve", "--state", at("state"), "--listen", "unix://" + at("s"), "--log-level", "error"}, tc.args...)
			if tc.args[0] == "--listen" {
				args = append([]string{"serve", "--state", at("state"), "--log-level", "error"}, tc.args...)
			}
			code := run(t.Context(), args, &out, &diag)
			if code != tc.code || !strings.Contains(diag.String(), tc.want) {
				t.Errorf("exit code %d, not %d, or no %q in\n%s", code, tc.code, tc.want, diag.String())
			}
			lines := 1
			if tc.code == exitUsage {
				lines = 2
			}
			if n := strings.Count(diag.String(), "\n"); n != lines {
				t.Errorf("%d lines, not %d:\n%s", n, lines, diag.String())
			}
			if out.Len() > 0 {
				t.Errorf("standard output: %s", out.String())
			}
			if after := tree(t, dir); after != before {
				t.Errorf("before:\n%s\nafter:\n%s", before, after)
			}
		})
	}
}

// tree is what is in dir, by name and size.
func tree(t *testing.T, dir string) string {
	t.Helper()
	var b strings.Builder
	err := filepath.WalkDir(dir, func(path string, d fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		info, err := d.Info()
		if err == nil {
			b.WriteString(path + " " + info.ModTime().String() + "\n")
		}
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	return b.String()
}

func TestVersionAndHelp(t *testing.T) {
	for _, tc := range []struct{ args, want string }{
		{"version", "vch unknown"},
		{"serve --help", "Every container is a virtual machine"},
		{"doctor --help", "It changes nothing"},
		{"completion bash", "bash completion"},
		{"", "The life of a VCH"},
	} {
		var out, diag bytes.Buffer
		if code := run(t.Context(), strings.Fields(tc.args), &out, &diag); code != 0 || !strings.Contains(out.String(), tc.want) {
			t.Errorf("vch %s: exit code %d, no %q in\n%s%s", tc.args, code, tc.want, out.String(), diag.String())
		}
	}
	var out, diag bytes.Buffer
	if code := run(t.Context(), []string{"nonsense"}, &out, &diag); code != exitUsage || !strings.Contains(diag.String(), "nonsense") {
		t.Errorf("vch nonsense: exit code %d, %s", code, diag.String())
	}
}
