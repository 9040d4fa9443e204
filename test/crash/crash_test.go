package crash

import (
	"archive/tar"
	"bytes"
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"sort"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"vch/internal/failpoint"
)

// limit is generous: everything here waits for an event, never for a time.
const limit = 5 * time.Minute

// host is one VCH whose daemon is killed again and again.
type host struct {
	t      *testing.T
	dir    string
	daemon *exec.Cmd
	log    *os.File
	cache  string // of templates; "": all tests' own
}

var built struct {
	dir string
	err error
}

func TestMain(m *testing.M) {
	code := func() int {
		dir, err := os.MkdirTemp("", "vch-crash-")
		if err != nil {
			fmt.Fprintln(os.Stderr, err)
			return 1
		}
		defer os.RemoveAll(dir)
		built.dir = dir
		out, err := exec.Command("make", "-C", "../..", "build", "BIN="+dir).CombinedOutput()
		if err != nil {
			built.err = fmt.Errorf("make build: %w\n%s", err, out)
		}
		return m.Run()
	}()
	os.Exit(code)
}

func newHost(t *testing.T) *host {
	t.Helper()
	if testing.Short() {
		t.Skip("needs the whole machine; make test runs it")
	}
	if built.err != nil {
		t.Fatal(built.err)
	}
	dir, err := os.MkdirTemp("", "vchc") // short: a socket's path has 107 bytes
	if err != nil {
		t.Fatal(err)
	}
	h := &host{t: t, dir: dir}
	if err := os.Mkdir(filepath.Join(dir, "store"), 0o755); err != nil {
		t.Fatal(err)
	}
	if h.log, err = os.Create(filepath.Join(dir, "log")); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		h.kill()
		h.up("")
		for _, id := range strings.Fields(h.docker("ps", "-aq")) {
			h.docker("rm", "-f", "-v", id)
		}
		h.stop()
		if t.Failed() {
			text, _ := os.ReadFile(h.log.Name())
			t.Logf("daemon's log:\n%s", text)
		}
		if left := h.processes(""); len(left) > 0 {
			t.Errorf("machines left running: %v", left)
		}
		h.log.Close()
		os.RemoveAll(dir)
	})
	h.up("")
	h.importImage()
	return h
}

// up starts a daemon with fail points armed and waits until it answers.
func (h *host) up(points string) {
	h.t.Helper()
	h.daemon = exec.Command(filepath.Join(built.dir, "vch"), "serve", "--state", filepath.Join(h.dir, "state"), "--listen", "unix://"+h.dir+"/s",
		"--volume-store", filepath.Join(h.dir, "store")+":default", "--accel", "tcg", "--default-capacity", "32M", "--anonymous-capacity", "32M",
		"--warm", "1", "--cache", cmp.Or(h.cache, filepath.Join(built.dir, "cache")))
	h.daemon.Env = append(os.Environ(), failpoint.Env+"="+points)
	h.daemon.Stdout, h.daemon.Stderr = h.log, h.log
	if err := h.daemon.Start(); err != nil {
		h.t.Fatal(err)
	}
	for deadline := time.Now().Add(limit); ; time.Sleep(20 * time.Millisecond) {
		if _, err := h.try("version"); err == nil {
			return
		}
		if time.Now().After(deadline) {
			h.t.Fatal("the daemon does not answer")
		}
	}
}

// kill ends the daemon as kill -9 does.
func (h *host) kill() {
	if h.daemon != nil {
		h.daemon.Process.Kill()
		h.daemon.Wait()
		h.daemon = nil
	}
}

// stop ends the daemon as an administrator does.
func (h *host) stop() {
	if h.daemon != nil {
		h.daemon.Process.Signal(syscall.SIGTERM)
		h.daemon.Wait()
		h.daemon = nil
	}
}

// died waits for the daemon to end at its fail point.
func (h *host) died() {
	h.t.Helper()
	done := make(chan error, 1)
	go func() { done <- h.daemon.Wait() }()
	select {
	case err := <-done:
		var exit *exec.ExitError
		if !errors.As(err, &exit) || exit.ExitCode() != failpoint.ExitCode {
			h.t.Fatalf("the daemon ended with %v, not at its fail point", err)
		}
	case <-time.After(limit):
		h.t.Fatal("the daemon passed its fail point")
	}
	h.daemon = nil
}

func (h *host) try(args ...string) (string, error) {
	ctx, cancel := context.WithTimeout(context.Background(), limit)
	defer cancel()
	cmd := exec.CommandContext(ctx, "docker", args...)
	cmd.Env = append(os.Environ(), "DOCKER_HOST=unix://"+h.dir+"/s", "DOCKER_CONFIG="+h.dir)
	out, err := cmd.CombinedOutput()
	return string(out), err
}

func (h *host) docker(args ...string) string {
	h.t.Helper()
	out, err := h.try(args...)
	if err != nil {
		h.t.Errorf("docker %s: %v\n%s", strings.Join(args, " "), err, out)
	}
	return out
}

// importImage makes the image "box": busybox, and a directory to copy up.
func (h *host) importImage() {
	h.t.Helper()
	box, err := os.ReadFile("/bin/busybox")
	if err != nil {
		h.t.Fatal(err)
	}
	var buf bytes.Buffer
	w := tar.NewWriter(&buf)
	for _, f := range []struct {
		h    tar.Header
		data []byte
	}{
		{tar.Header{Name: "bin/", Typeflag: tar.TypeDir, Mode: 0o755}, nil},
		{tar.Header{Name: "bin/busybox", Typeflag: tar.TypeReg, Mode: 0o755, Size: int64(len(box))}, box},
		{tar.Header{Name: "bin/sh", Typeflag: tar.TypeSymlink, Linkname: "busybox"}, nil},
		{tar.Header{Name: "seed/", Typeflag: tar.TypeDir, Mode: 0o755}, nil},
		{tar.Header{Name: "seed/f", Typeflag: tar.TypeReg, Mode: 0o644, Size: 4}, []byte("seed")},
	} {
		if err := w.WriteHeader(&f.h); err != nil {
			h.t.Fatal(err)
		}
		if _, err := w.Write(f.data); err != nil {
			h.t.Fatal(err)
		}
	}
	if err := w.Close(); err != nil {
		h.t.Fatal(err)
	}
	path := filepath.Join(h.dir, "box.tar")
	if err := os.WriteFile(path, buf.Bytes(), 0o600); err != nil {
		h.t.Fatal(err)
	}
	h.docker("import", path, "box")
}

// qemus gives the pids of this host's machines: QEMU processes that have its directory in their command line or working directory.
func (h *host) qemus() (pids []string) { return h.processes("state/machines/") }

// processes are those of machines in a directory of the host's; "" is any, and of forks that are kept ready, too.
func (h *host) processes(dir string) (pids []string) {
	procs, _ := filepath.Glob("/proc/[0-9]*")
	for _, p := range procs {
		line, _ := os.ReadFile(filepath.Join(p, "cmdline"))
		cwd, _ := os.Readlink(filepath.Join(p, "cwd"))
		if bytes.Contains(line, []byte("qemu-system")) && strings.HasPrefix(cwd, h.dir+"/"+dir) {
			pids = append(pids, filepath.Base(p))
		}
	}
	return pids
}

// left is what a host holds, by its own account and on disk.
func (h *host) left() string {
	names := func(dir string) string {
		list, _ := os.ReadDir(filepath.Join(h.dir, dir))
		var out []string
		for _, e := range list {
			out = append(out, e.Name())
		}
		sort.Strings(out)
		return strings.Join(out, " ")
	}
	return fmt.Sprintf("containers[%s] volumes[%s] machines[%s] store[%s] processes%v",
		strings.TrimSpace(h.docker("ps", "-aq", "--no-trunc")), strings.TrimSpace(h.docker("volume", "ls", "-q")), names("state/machines"), names("store/volumes"), h.qemus())
}

// A daemon killed at any step of a create leaves, after its next start, either the whole container or nothing but the named volume.
func TestCreateKilledAtEveryStep(t *testing.T) {
	h := newHost(t)
	for _, point := range []string{"create.journal", "create.volumes", "create.populate", "create.define", "create.record", "create.recorded"} {
		t.Run(point, func(t *testing.T) {
			h.t = t
			h.kill()
			h.up(point + "=exit")
			if out, err := h.try("create", "--name", "con", "-v", "named:/n", "-v", "/anon", "--mount", "type=volume,target=/seed,readonly", "box", "sh"); err == nil {
				t.Fatalf("create answered: %s", out)
			}
			h.died()
			h.up("")
			if point == "create.recorded" { // on record: it exists, whole
				h.docker("start", "con")
				h.docker("rm", "-f", "-v", "con")
			}
			volumes := strings.Fields(h.docker("volume", "ls", "-q"))
			for _, v := range volumes {
				h.docker("volume", "rm", v)
			}
			if len(volumes) > 1 || len(volumes) == 1 && volumes[0] != "named" {
				t.Errorf("volumes left: %v", volumes)
			}
			if got, want := h.left(), "containers[] volumes[] machines[] store[] processes[]"; got != want {
				t.Errorf("left %s", got)
			}
			// The name is free, and a create without a crash works.
			h.docker("create", "--name", "con", "box", "sh")
			h.docker("rm", "con")
		})
	}
}

// A daemon killed in the middle of a remove finishes it at its next start.
func TestRemoveKilledAtEveryStep(t *testing.T) {
	h := newHost(t)
	for _, point := range []string{"remove.journal", "remove.machine", "remove.record"} {
		t.Run(point, func(t *testing.T) {
			h.t = t
			h.kill()
			h.up(point + "=exit")
			h.docker("create", "--name", "con", "-v", "/anon", "box", "sh")
			if out, err := h.try("rm", "-v", "con"); err == nil {
				t.Fatalf("rm answered: %s", out)
			}
			h.died()
			h.up("")
			if got, want := h.left(), "containers[] volumes[] machines[] store[] processes[]"; got != want {
				t.Errorf("left %s", got)
			}
		})
	}
}

// A daemon killed at any step of a start leaves no machine running that it does not know, and the container starts afterwards.
func TestStartKilledAtEveryStep(t *testing.T) {
	h := newHost(t)
	h.docker("create", "--name", "con", "-v", "data:/d", "box", "sh", "-c", "busybox echo run >>/d/f; busybox cat /d/f")
	for _, point := range []string{"start.power", "start.configure", "start.record"} {
		t.Run(point, func(t *testing.T) {
			h.t = t
			h.kill()
			h.up(point + "=exit")
			if out, err := h.try("start", "con"); err == nil {
				t.Fatalf("start answered: %s", out)
			}
			h.died()
			h.up("")
			if left := h.qemus(); len(left) > 0 {
				t.Errorf("machines running: %v", left)
			}
			out := h.docker("start", "-a", "con")
			if !strings.HasPrefix(out, "run\n") {
				t.Errorf("start said %q", out)
			}
		})
	}
}

// A daemon killed while a machine serves the files of a container that does not run leaves none on, and copies and starts go on afterwards.
func TestCopyKilled(t *testing.T) {
	h := newHost(t)
	h.docker("create", "--name", "con", "-v", "data:/d", "box", "busybox", "ls", "/d", "/bin")
	for _, point := range []string{"start.configure", "copy.serve"} {
		t.Run(point, func(t *testing.T) {
			h.t = t
			h.kill()
			h.up(point + "=exit")
			if out, err := h.try("cp", "con:/d", "-"); err == nil {
				t.Fatalf("cp answered: %s", out)
			}
			h.died()
			h.up("")
			if left := h.qemus(); len(left) > 0 {
				t.Errorf("machines running: %v", left)
			}
			if out := h.docker("cp", "con:/d", "-"); !strings.Contains(out, "d/") {
				t.Errorf("cp said %q", out)
			}
			if out := h.docker("start", "-a", "con"); !strings.Contains(out, "busybox") {
				t.Errorf("start said %q", out)
			}
		})
	}
}

// A daemon killed while it mends a volume that a killed machine left unclean loses nothing of it, and mends it at the next start.
func TestMendKilled(t *testing.T) {
	h := newHost(t)
	h.docker("run", "-d", "--name", "wri", "-v", "data:/d", "box", "sh", "-c", "busybox echo kept >/d/f; busybox sync; busybox echo synced; busybox sleep 1000")
	for deadline := time.Now().Add(limit); !strings.Contains(h.docker("logs", "wri"), "synced"); time.Sleep(20 * time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatal("the container does not write")
		}
	}
	for _, pid := range h.qemus() {
		if out, err := exec.Command("busybox", "kill", "-9", pid).CombinedOutput(); err != nil {
			t.Fatalf("kill %s: %v %s", pid, err, out)
		}
	}
	h.docker("wait", "wri")
	h.docker("create", "--name", "rea", "-v", "data:/d:ro", "box", "busybox", "cat", "/d/f")
	h.kill()
	h.up("mend.journal=exit")
	if out, err := h.try("start", "-a", "rea"); err == nil {
		t.Fatalf("start answered: %s", out)
	}
	h.died()
	h.up("")
	if left := h.qemus(); len(left) > 0 {
		t.Errorf("machines running: %v", left)
	}
	if out := h.docker("start", "-a", "rea"); out != "kept\n" {
		t.Errorf("start said %q", out)
	}
}

// A daemon killed while a utility machine fills a volume takes the machine and the create back at its next start.
func TestPopulateKilled(t *testing.T) {
	h := newHost(t)
	done := make(chan error, 1)
	go func() {
		_, err := h.try("create", "--name", "con", "--mount", "type=volume,source=named,target=/seed,readonly", "box", "sh")
		done <- err
	}()
	for deadline := time.Now().Add(limit); len(h.qemus()) == 0; time.Sleep(time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatal("no machine fills the volume")
		}
	}
	h.kill()
	if err := <-done; err == nil {
		t.Fatal("create answered")
	}
	h.up("")
	if got, want := h.left(), "containers[] volumes[named] machines[] store[named] processes[]"; got != want {
		t.Errorf("left %s", got)
	}
	if out := h.docker("run", "--rm", "-v", "named:/seed:ro", "box", "busybox", "cat", "/seed/f"); out != "seed" {
		t.Errorf("the volume holds %q", out)
	}
	h.docker("volume", "rm", "named")
}

// A daemon killed at times that nobody chose, in the middle of everything at once, knows at its next start all that there is.
func TestKilledAnywhere(t *testing.T) {
	h := newHost(t)
	when := rand.New(rand.NewPCG(1, 2))
	for round := range 8 {
		var work sync.WaitGroup
		for n := range 3 {
			work.Go(func() {
				name := fmt.Sprintf("con-%d-%d", round, n)
				steps := [][]string{
					{"create", "--name", name, "-v", name + ":/n", "-v", "/anon", "box", "sh", "-c", "busybox echo x >>/n/f; busybox sleep 1000"},
					{"start", name}, {"kill", name}, {"rm", "-v", name}, {"volume", "rm", name},
				}
				for _, step := range steps {
					if _, err := h.try(step...); err != nil {
						return // cut off
					}
				}
			})
		}
		time.Sleep(time.Duration(when.IntN(8000)) * time.Millisecond)
		h.kill()
		work.Wait()
		h.up("")
		h.consistent()
	}
	for _, id := range strings.Fields(h.docker("ps", "-aq")) {
		h.docker("rm", "-f", "-v", id)
	}
	for _, v := range strings.Fields(h.docker("volume", "ls", "-q")) {
		h.docker("volume", "rm", v)
	}
	if got, want := h.left(), "containers[] volumes[] machines[] store[] processes[]"; got != want {
		t.Errorf("left %s", got)
	}
}

// A daemon killed while it takes an image in keeps nothing of it but a whole layer, and prune takes that.
func TestImportKilled(t *testing.T) {
	h := newHost(t)
	var buf bytes.Buffer
	w := tar.NewWriter(&buf)
	noise := make([]byte, 48<<20)
	rand.NewChaCha8([32]byte{1}).Read(noise)
	if err := errors.Join(w.WriteHeader(&tar.Header{Name: "big", Typeflag: tar.TypeReg, Mode: 0o644, Size: int64(len(noise))}), write(w, noise), w.Close()); err != nil {
		t.Fatal(err)
	}
	path := filepath.Join(h.dir, "big.tar")
	if err := os.WriteFile(path, buf.Bytes(), 0o600); err != nil {
		t.Fatal(err)
	}
	before := h.files("state/images")
	for _, after := range []time.Duration{20, 80, 150, 250, 400, 600} {
		done := make(chan error, 1)
		go func() {
			_, err := h.try("import", path, "big")
			done <- err
		}()
		time.Sleep(after * time.Millisecond)
		h.kill()
		err := <-done
		h.up("")
		images := h.docker("images", "--format", "{{.Repository}}")
		if strings.Contains(images, "big") { // it was whole, whether or not its client heard so
			h.docker("create", "--name", "con", "big", "x")
			h.docker("rm", "con")
			h.docker("rmi", "big")
		} else if err == nil {
			t.Errorf("after %d ms: import answered, and there are the images %s", after, images)
		}
		h.docker("image", "prune", "-f") // a whole layer may have stayed, for another try
		if now := h.files("state/images"); !slices.Equal(before, now) {
			t.Errorf("after %d ms: left %v", after, slices.DeleteFunc(now, func(f string) bool { return slices.Contains(before, f) }))
		}
	}
}

func write(w io.Writer, data []byte) error {
	_, err := w.Write(data)
	return err
}

// files are the paths of the files below dir.
func (h *host) files(dir string) (paths []string) {
	h.t.Helper()
	err := filepath.WalkDir(filepath.Join(h.dir, dir), func(path string, d os.DirEntry, err error) error {
		if err == nil && d.Type().IsRegular() {
			paths = append(paths, path)
		}
		return err
	})
	if err != nil {
		h.t.Fatal(err)
	}
	return paths
}

// consistent checks that containers, machines, processes and volumes agree.
func (h *host) consistent() {
	h.t.Helper()
	containers := strings.Fields(h.docker("ps", "-aq", "--no-trunc"))
	sort.Strings(containers)
	defined, err := os.ReadDir(filepath.Join(h.dir, "state/machines"))
	if err != nil {
		h.t.Fatal(err)
	}
	var machines []string
	for _, m := range defined {
		machines = append(machines, m.Name())
	}
	if !slices.Equal(containers, machines) {
		h.t.Errorf("containers %v, machines %v", containers, machines)
	}
	var running []string
	for _, id := range strings.Fields(h.docker("ps", "-q", "--no-trunc")) {
		running = append(running, strings.TrimSpace(h.docker("container", "inspect", "--format", "{{.State.Pid}}", id)))
	}
	sort.Strings(running)
	processes := h.qemus()
	sort.Strings(processes)
	if !slices.Equal(running, processes) {
		h.t.Errorf("containers run as %v, and there are processes %v", running, processes)
	}
	for _, v := range strings.Fields(h.docker("volume", "ls", "-q", "--filter", "dangling=true")) {
		if !strings.HasPrefix(v, "con-") {
			h.t.Errorf("anonymous volume %s is no one's", v)
		}
	}
}

// A running container goes on over kill -9 of its daemon: no output is lost or doubled, and its exit is known.
func TestRunningContainerOutlivesTheDaemon(t *testing.T) {
	h := newHost(t)
	h.docker("run", "-d", "--name", "con", "-v", "data:/d", "box", "sh", "-c",
		`i=0; while [ $i -lt 300 ]; do busybox echo line $i; i=$((i+1)); [ -e /d/go ] || busybox usleep 20000; done; exit 9`)
	for range 3 {
		h.kill()
		h.up("")
	}
	h.docker("exec", "con", "busybox", "touch", "/d/go")
	h.kill()
	h.up("")
	if got := strings.TrimSpace(h.docker("wait", "con")); got != "9" {
		t.Errorf("exit code %s", got)
	}
	var want strings.Builder
	for i := range 300 {
		fmt.Fprintf(&want, "line %d\n", i)
	}
	if got := h.docker("logs", "con"); got != want.String() {
		t.Errorf("log differs: %d bytes, want %d", len(got), want.Len())
	}
}
