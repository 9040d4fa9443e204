package crash

import (
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"
)

// A daemon killed while it makes a template leaves a machine that nobody wants, and perhaps a part of a template: the next start ends the one, drops the other, and
// makes it anew. The same for what it kept ready.
func TestTemplateKilled(t *testing.T) {
	h := newHost(t)
	h.kill()
	h.cache = filepath.Join(h.dir, "cache")
	h.up("")
	await := func(what string, ok func() bool) {
		t.Helper()
		for deadline := time.Now().Add(limit); !ok(); time.Sleep(time.Millisecond) {
			if time.Now().After(deadline) {
				t.Fatalf("there is no %s", what)
			}
		}
	}
	pool := func() []string { return h.processes("state/pool/") }
	await("machine that is to be a template", func() bool { return len(pool()) > 0 })
	making := pool()
	h.kill()
	// As if it had been killed while it wrote it.
	part := filepath.Join(h.cache, "templates", ".making-1")
	if err := os.MkdirAll(part, 0o700); err != nil {
		t.Fatal(err)
	}
	h.up("")
	for _, pid := range making {
		if _, err := os.Stat("/proc/" + pid + "/cwd"); err == nil {
			if line, _ := os.ReadFile("/proc/" + pid + "/cmdline"); strings.Contains(string(line), "qemu-system") {
				t.Errorf("machine %s goes on", pid)
			}
		}
	}
	if _, err := os.Stat(part); err == nil {
		t.Error("a part of a template is left")
	}
	templates := func() (n int) {
		list, _ := os.ReadDir(filepath.Join(h.cache, "templates"))
		for _, e := range list {
			if !strings.HasPrefix(e.Name(), ".making-") {
				n++
			}
		}
		return n
	}
	await("template", func() bool { return templates() == 1 })
	await("fork that is kept ready", func() bool {
		text, _ := os.ReadFile(h.log.Name())
		return strings.Contains(string(text), "template made") && len(pool()) == 1
	})
	kept := pool()
	h.kill()
	h.up("")
	if out := h.docker("run", "--rm", "box", "busybox", "echo", "works"); out != "works\n" {
		t.Errorf("run said %q", out)
	}
	for _, pid := range kept {
		if cwd, err := os.Readlink("/proc/" + pid + "/cwd"); err == nil && strings.HasPrefix(cwd, h.dir) {
			t.Errorf("the fork of the daemon that was killed goes on: %s in %s", pid, cwd)
		}
	}
}
