package e2e

import (
	"bufio"
	"encoding/json"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
)

// rig is a simulated vCenter whose machines are real (hypervisor/vsphere/vcsim).
type rig struct {
	dir                             string
	cmd                             *exec.Cmd
	URL, User, Password, Thumbprint string
}

// datastore is the rig's one.
const datastore = "datastore1"

func newRig(t *testing.T) *rig {
	t.Helper()
	dir, err := os.MkdirTemp("", "r")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(dir) })
	program := filepath.Join(dir, "vcsim")
	if out, err := exec.CommandContext(t.Context(), "go", "build", "-o", program, "../vcsim").CombinedOutput(); err != nil {
		t.Fatalf("go build: %v\n%s", err, out)
	}
	log, err := os.Create(filepath.Join(dir, "log"))
	if err != nil {
		t.Fatal(err)
	}
	defer log.Close()
	r := &rig{dir: dir, cmd: exec.Command(program, "--dir", dir, "--datastore", datastore)}
	r.cmd.Stderr = log
	out, err := r.cmd.StdoutPipe()
	if err == nil {
		err = r.cmd.Start()
	}
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		_ = r.cmd.Process.Signal(syscall.SIGTERM)
		if err := r.cmd.Wait(); err != nil {
			t.Errorf("the simulated vCenter: %v", err)
		}
		if t.Failed() {
			text, _ := os.ReadFile(log.Name())
			t.Logf("the simulated vCenter's log:\n%s", text[max(0, len(text)-4000):])
		}
	})
	line, err := bufio.NewReader(out).ReadBytes('\n')
	if err == nil {
		err = json.Unmarshal(line, r)
	}
	if err != nil {
		t.Fatalf("the simulated vCenter says %q: %v", line, err)
	}
	return r
}

// place is where a host keeps things on the rig, by a path of the rig's and by one of this machine's.
func (r *rig) place(h *host) (path, local string) {
	name := filepath.Base(h.dir)
	return "ds://" + datastore + "/" + name, filepath.Join(r.dir, datastore, name)
}

// machine gives the processes that are the machine of a container.
func (r *rig) machine(id string) []int { return running("qemu-system", "-"+id[:12]+"/") }

// arguments have a host's daemon make machines on the rig.
func (r *rig) arguments(h *host, said string) []string {
	at, _ := r.place(h)
	args := []string{"--target", r.URL, "--user", r.User, "--thumbprint", r.Thumbprint, "--network", "VM Network", "--guest-listen", fmt.Sprintf("127.0.0.1:%d", h.port), "--guest-address", "10.0.2.2"}
	if !strings.Contains(said, "--image-store") {
		args = append(args, "--image-store", at)
	}
	if !strings.Contains(said, "--volume-store") {
		args = append(args, "--volume-store", at+"/a:default", "--volume-store", at+"/b:second")
	}
	return args
}

// TestVSphere runs scripts on a simulated vCenter with real machines.
func TestVSphere(t *testing.T) {
	w := newWorldOn(t, newRigFor)
	var files []string
	if list := os.Getenv("VCH_VSPHERE_SCRIPTS"); list != "" {
		for _, name := range strings.Fields(list) {
			files = append(files, filepath.Join("testdata", name+".txtar"))
		}
	} else {
		for _, name := range onVSphere {
			files = append(files, filepath.Join("testdata", name+".txtar"))
		}
	}
	t.Run("script", func(t *testing.T) { w.run(t, files) })
}

func newRigFor(t *testing.T, w *world) { w.rig = newRig(t) }

// onVSphere are the scripts that TestVSphere runs each time; doc/vsphere.md has which others do there, and which cannot.
var onVSphere = []string{
	"attach_stdin", "container_cp_volumes", "container_lifecycle", "container_machine_killed", "container_pause", "container_restart_policy", "container_stats", "container_tty",
	"daemon_killed", "daemon_restart", "exec_runs", "exec_tty", "image_import", "logs_follow", "network_names", "network_ports", "system_info",
	"volume_anonymous_rm", "volume_attach_stopped", "volume_attach_writable", "volume_capacity", "volume_copyup_at_first_start", "volume_named_persists", "volume_nfs", "volume_one_writer",
	"volume_readers_share", "volume_readonly", "volume_rename", "volume_resize", "volume_survives_kill", "volume_two_stores", "volume_unclean_read_only",
}
