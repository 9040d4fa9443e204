package e2e

import (
	"context"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/rogpeppe/go-internal/testscript"

	"vch/internal/nfsclient/nfstest"
)

// limit bounds every wait for an event. It is generous: a busy host without KVM is slow, and no test here is about time.
const limit = 5 * time.Minute

// world is what all scripts share.
type world struct {
	bin     string // directory of the vch that was built for this run
	box     string // path of box.tar: a root file system of busybox
	compose string // path of Docker Compose, which is the docker CLI's plugin
	shared  *host
	cli     int  // the docker CLI's major version
	rig     *rig // where machines are; nil: QEMU's, on this one
}

func newWorld(t *testing.T) *world { return newWorldOn(t, func(*testing.T, *world) {}) }

// newWorldOn is newWorld with what prepare adds to it.
func newWorldOn(t *testing.T, prepare func(*testing.T, *world)) *world {
	t.Helper()
	if testing.Short() {
		t.Skip("needs real VMs; make test runs it")
	}
	w := &world{bin: t.TempDir()}
	for _, dir := range []string{filepath.Dir(w.bin), w.bin} {
		if err := os.Chmod(dir, 0o755); err != nil { // an ordinary user's daemon is run from there
			t.Fatal(err)
		}
	}
	ctx, cancel := context.WithTimeout(t.Context(), 2*limit)
	defer cancel()
	if out, err := exec.CommandContext(ctx, "make", "-C", "../..", "build", "BIN="+w.bin).CombinedOutput(); err != nil {
		t.Fatalf("make build: %v\n%s", err, out)
	}
	var err error
	if w.compose, err = filepath.Abs("../../bin/docker-compose"); err != nil {
		t.Fatal(err)
	}
	if out, err := exec.CommandContext(ctx, "../../scripts/compose", w.compose).CombinedOutput(); err != nil {
		t.Fatalf("scripts/compose: %v\n%s", err, out)
	}
	w.box = filepath.Join(w.bin, "box.tar")
	if err := writeBox(w.box); err != nil {
		t.Fatal(err)
	}
	text, err := exec.CommandContext(ctx, "docker", "--version").Output()
	if err != nil {
		t.Fatalf("docker --version: %v; make setup gets a docker CLI", err)
	}
	if _, err := fmt.Sscanf(string(text), "Docker version %d.", &w.cli); err != nil {
		t.Fatalf("docker --version says %q", text)
	}
	prepare(t, w)
	w.shared = newHost(w)
	t.Cleanup(func() {
		for _, wrong := range append(w.shared.held(), w.shared.end()...) {
			t.Error(wrong)
		}
		if t.Failed() {
			t.Logf("the shared daemon's log:\n%s", w.shared.logTail(200))
		}
		os.RemoveAll(w.shared.dir)
	})
	if err := w.shared.serve(); err != nil {
		t.Fatal(err)
	}
	if out, err := w.shared.docker("import", w.box, "box"); err != nil {
		t.Fatalf("docker import: %v\n%s", err, out)
	}
	return w
}

// TestScripts runs every script, and in the end looks once more at what the shared daemon holds: nothing.
func TestScripts(t *testing.T) {
	w := newWorld(t)
	t.Run("script", func(t *testing.T) { w.run(t, nil) })
}

// TestAPI141 runs scripts of every noun once more as a client of Docker 20.10 speaks: with API version 1.41.
func TestAPI141(t *testing.T) {
	w := newWorld(t)
	var files []string
	for _, name := range []string{
		"attach_stdin", "container_exit_code", "container_inspect", "container_lifecycle", "exec_runs", "image_import", "logs_options",
		"system_info", "volume_anonymous_rm", "volume_inspect", "volume_named_persists", "volume_readonly",
	} {
		files = append(files, filepath.Join("testdata", name+".txtar"))
	}
	t.Run("script", func(t *testing.T) { w.run(t, files, "DOCKER_API_VERSION=1.41") })
}

func (w *world) run(t *testing.T, files []string, vars ...string) {
	dir := "testdata"
	if files != nil {
		dir = ""
	}
	testscript.Run(t, testscript.Params{
		Dir:                dir,
		Files:              files,
		RequireUniqueNames: true,
		Cmds:               commands(),
		Condition:          w.condition,
		Setup: func(env *testscript.Env) error {
			name := strings.TrimPrefix(filepath.Base(env.WorkDir), "script-")
			s := &script{world: w, host: w.shared, me: name, work: env.WorkDir}
			home := filepath.Join(env.WorkDir, ".home")
			plugins := filepath.Join(home, ".docker", "cli-plugins")
			if err := os.MkdirAll(plugins, 0o700); err != nil {
				return err
			}
			if err := os.Symlink(w.compose, filepath.Join(plugins, "docker-compose")); err != nil {
				return err
			}
			env.Setenv("ME", name)
			env.Setenv("PATH", w.bin+":"+os.Getenv("PATH")+":/usr/sbin:/sbin")
			env.Setenv("HOME", home)
			env.Setenv("DOCKER_CONFIG", filepath.Join(home, ".docker"))
			w.shared.setenv(env.Setenv)
			env.Setenv("BOX", w.box)
			driver := "qemu-vmdk"
			if w.rig != nil {
				driver = "vsphere-vmdk"
			}
			env.Setenv("DRIVER", driver)
			env.Setenv("CACHE", filepath.Join(w.bin, "cache"))
			for _, v := range vars {
				key, value, _ := strings.Cut(v, "=")
				env.Setenv(key, value)
			}
			env.Values[scriptKey{}] = s
			env.Defer(func() {
				if wrong := s.end(); len(wrong) > 0 {
					env.T().Fatal(fmt.Sprintf("the script left something behind:\n%s", strings.Join(wrong, "\n")))
				}
			})
			return nil
		},
	})
}

// condition is what scripts may ask in brackets: new-cli, a docker CLI of 23.0 or later, which knows flags that 20.10 did not have; vsphere, machines are on vSphere.
func (w *world) condition(name string) (bool, error) {
	switch name {
	case "new-cli":
		return w.cli >= 23, nil
	case "vsphere":
		return w.rig != nil, nil
	}
	return false, fmt.Errorf("there is no condition %q", name)
}

// script is one running script.
type script struct {
	world *world
	host  *host // the shared one, or its own
	me    string
	work  string // its directory
	stop  []func()
	last  []func() // after the script's own daemon has ended
	nfs   *nfstest.Server

	vcenter *rig // the script's own; nil: it has none
}

// scriptKey is the script's key among testscript's values.
type scriptKey struct{}

func of(ts *testscript.TestScript) *script { return ts.Value(scriptKey{}).(*script) }

// end removes what the script made, and says what should not be there then.
func (s *script) end() (wrong []string) {
	for i := len(s.stop) - 1; i >= 0; i-- {
		s.stop[i]()
	}
	if s.host != s.world.shared {
		wrong = s.host.end()
		if len(wrong) > 0 {
			wrong = append(wrong, "the daemon's log:\n"+s.host.logTail(60))
		}
		os.RemoveAll(s.host.dir)
	}
	for i := len(s.last) - 1; i >= 0; i-- {
		s.last[i]()
	}
	for _, pid := range append(running("vch", s.work+"/"), qemus(s.work+"/")...) { // of VCHs that vch create made
		line, _ := os.ReadFile(fmt.Sprintf("/proc/%d/cmdline", pid))
		wrong = append(wrong, fmt.Sprintf("process %d was left running: %.200q", pid, line))
		syscall.Kill(pid, syscall.SIGKILL)
	}
	return append(wrong, s.world.shared.sweep(s.me)...)
}
