package hypertest

import (
	"os"
	"path/filepath"
	"testing"
	"time"

	"vch/guest"
	"vch/internal/fault"
	"vch/portlayer"
)

// shares has a machine share directories and files of the host, and no more of it than that.
func (s *suite) shares(t *testing.T) {
	if !s.Shares {
		spec := s.spec("sharing")
		spec.Shares = []portlayer.Share{{Path: s.root, Below: s.root}}
		_, err := s.h.Define(t.Context(), spec)
		want(t, "a machine that shares a directory of the host", err, fault.Unsupported)
		return
	}
	root, err := filepath.EvalSymlinks(t.TempDir())
	if err != nil {
		t.Fatal(err)
	}
	write := func(name, text string) {
		t.Helper()
		if err := os.WriteFile(filepath.Join(root, name), []byte(text), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	for _, dir := range []string{"writable", "readable"} {
		if err := os.Mkdir(filepath.Join(root, dir), 0o755); err != nil {
			t.Fatal(err)
		}
	}
	write("writable/f", "first\n")
	write("readable/g", "second\n")
	write("file", "third\n")
	if err := os.Symlink("/etc", filepath.Join(root, "writable/link")); err != nil {
		t.Fatal(err)
	}
	spec := s.spec("sharing")
	spec.Shares = []portlayer.Share{{Path: root + "/writable", Below: root}, {Path: root + "/readable", Below: root, ReadOnly: true}, {Path: root + "/file", Below: root}}
	m := s.define(t, spec)
	defer func() { s.undefine(t, m) }()
	s.powerOn(t, m)
	c := s.connect(t, m)
	at := func(n int, target string, readOnly bool) guest.MountSpec {
		return guest.MountSpec{Source: guest.Share(n), Target: target, ReadOnly: readOnly, Name: target}
	}
	read := s.Commands.Read
	script := []string{read("/w/f"), read("/r/g"), read("/file"), s.Commands.Write("/w/made", "out"), s.Commands.Write("/file", "changed"), s.Commands.Write("/r/no", "x"), read("/w/link/passwd"), "cat"}
	s.configure(t, c, config("sharing", script, at(0, "/w", false), at(1, "/r", true), at(2, "/file", false)))
	eventually(t, s.Limit, func() bool {
		text, err := os.ReadFile(filepath.Join(root, "file"))
		return err == nil && string(text) == "changed"
	})
	if text, err := os.ReadFile(filepath.Join(root, "writable/made")); err != nil || string(text) != "out" {
		t.Errorf("what the guest wrote is %q, %v", text, err)
	}
	if _, err := os.Stat(filepath.Join(root, "readable/no")); err == nil {
		t.Error("a share that is read-only was written to")
	}
	// What the host changes is there at once, and the machine goes on with a later daemon.
	write("writable/f", "later\n")
	c.Close()
	s.restart(t)
	if m, err = s.h.Machine(t.Context(), m.ID()); err != nil {
		t.Fatal(err)
	}
	c = s.connect(t, m)
	var said []byte
	_, err = c.Exec(s.limit(t), "later", *config("later", []string{read("/w/f")}).Process, nil, nil, func(_ guest.Stream, data []byte) error { said = append(said, data...); return nil })
	if err != nil || string(said) != "later\n" {
		t.Errorf("the guest reads %q, %v", said, err)
	}
	if err := m.PowerOff(s.limit(t)); err != nil {
		t.Fatal(err)
	}
	// A link where the directory was: it is not followed.
	if err := os.RemoveAll(filepath.Join(root, "readable")); err != nil {
		t.Fatal(err)
	}
	if err := os.Symlink("/etc", filepath.Join(root, "readable")); err != nil {
		t.Fatal(err)
	}
	if err := m.PowerOn(s.limit(t)); err == nil {
		t.Error("a machine shares what a link leads to that came later")
	}
	s.power(t, m, portlayer.PoweredOff)
}

// eventually waits for a condition that no event tells of.
func eventually(t *testing.T, limit time.Duration, ok func() bool) {
	t.Helper()
	const step = 20 * time.Millisecond
	for end := time.Now().Add(limit); !ok(); time.Sleep(step) {
		if time.Now().After(end) {
			t.Fatal("it did not come to be in time")
		}
	}
}
