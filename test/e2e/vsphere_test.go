package e2e

import (
	"bufio"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"

	"github.com/rogpeppe/go-internal/testscript"
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
	r, err := startRig(dir, "--datastore", datastore)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := r.stop(); err != nil {
			t.Errorf("the simulated vCenter: %v", err)
		}
		if t.Failed() {
			text, _ := os.ReadFile(filepath.Join(dir, "log"))
			t.Logf("the simulated vCenter's log:\n%s", text[max(0, len(text)-4000):])
		}
	})
	return r
}

// startRig builds and starts one in dir, with flags of test/vcsim.
func startRig(dir string, flags ...string) (*rig, error) {
	program := filepath.Join(dir, "vcsim")
	if out, err := exec.Command("go", "build", "-o", program, "../vcsim").CombinedOutput(); err != nil {
		return nil, fmt.Errorf("go build: %w\n%s", err, out)
	}
	log, err := os.Create(filepath.Join(dir, "log"))
	if err != nil {
		return nil, err
	}
	defer log.Close()
	r := &rig{dir: dir, cmd: exec.Command(program, append([]string{"--dir", dir}, flags...)...)}
	r.cmd.Stderr = log
	out, err := r.cmd.StdoutPipe()
	if err == nil {
		err = r.cmd.Start()
	}
	if err != nil {
		return nil, err
	}
	line, err := bufio.NewReader(out).ReadBytes('\n')
	if err == nil {
		err = json.Unmarshal(line, r)
	}
	if err != nil {
		return nil, errors.Join(fmt.Errorf("the simulated vCenter says %q: %w", line, err), r.stop())
	}
	return r, nil
}

// stop ends it with all its machines.
func (r *rig) stop() error {
	_ = r.cmd.Process.Signal(syscall.SIGTERM)
	return r.cmd.Wait()
}

func vcenterCmd(ts *testscript.TestScript, neg bool, args []string) {
	usage(ts, !neg && len(args) > 0, "vcenter start [FLAG…] | stop")
	s := of(ts)
	switch {
	case args[0] == "start" && s.vcenter == nil:
		dir, err := os.MkdirTemp(s.work, "r")
		ts.Check(err)
		s.vcenter, err = startRig(dir, append([]string{"--password", "s3cret-of-ops"}, args[1:]...)...)
		ts.Check(err)
		for name, value := range map[string]string{"TARGET": s.vcenter.URL, "TUSER": s.vcenter.User, "TPASSWORD": s.vcenter.Password, "THUMBPRINT": s.vcenter.Thumbprint, "DATASTORES": dir} {
			ts.Setenv(name, value)
		}
		started := s.vcenter
		s.stop = append(s.stop, func() {
			if s.vcenter == started {
				_ = started.stop()
			}
		})
	case args[0] == "stop" && s.vcenter != nil:
		ts.Check(s.vcenter.stop())
		s.vcenter = nil
	default:
		usage(ts, false, "vcenter start [FLAG…] | stop")
	}
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

// stores are arguments in which volume stores that are directories of the rig are where they are on its datastore.
func (r *rig) stores(args []string) []string {
	all := slices.Clone(args)
	for i, arg := range all {
		if rest, is := strings.CutPrefix(arg, filepath.Join(r.dir, datastore)+"/"); is && i > 0 && all[i-1] == "--volume-store" {
			all[i] = "ds://" + datastore + "/" + rest
		}
	}
	return all
}

// TestVSphere runs scripts on a simulated vCenter with real machines.
func TestVSphere(t *testing.T) {
	w := newWorldOn(t, newRigFor)
	names := onVSphere
	switch list := os.Getenv("VCH_VSPHERE_SCRIPTS"); list {
	case "":
	case "all":
		names = nil
		all, err := filepath.Glob("testdata/*.txtar")
		if err != nil {
			t.Fatal(err)
		}
		for _, file := range all {
			name := strings.TrimSuffix(filepath.Base(file), ".txtar")
			if why, cannot := notOnVSphere[name]; cannot {
				t.Logf("%s cannot run: %s", name, why)
				continue
			}
			names = append(names, name)
		}
	default:
		names = strings.Fields(list)
	}
	var files []string
	for _, name := range names {
		files = append(files, filepath.Join("testdata", name+".txtar"))
	}
	t.Run("script", func(t *testing.T) { w.run(t, files) })
}

func newRigFor(t *testing.T, w *world) { w.rig = newRig(t) }

// onVSphere are the scripts that TestVSphere runs each time. With VCH_VSPHERE_SCRIPTS=all it runs all that can run there, in half an hour and more.
var onVSphere = []string{
	"attach_stdin", "container_cp_volumes", "container_lifecycle", "container_machine_killed", "container_pause", "container_restart_policy", "container_stats", "container_tty",
	"daemon_killed", "daemon_restart", "exec_runs", "exec_tty", "image_import", "logs_follow", "network_names", "network_ports", "system_info",
	"volume_anonymous_rm", "volume_attach_stopped", "volume_attach_writable", "volume_capacity", "volume_copyup_at_first_start", "volume_named_persists", "volume_nfs", "volume_one_writer",
	"volume_readers_share", "volume_readonly", "volume_rename", "volume_resize", "volume_survives_kill", "volume_two_stores", "volume_unclean_read_only",
}

// Why scripts cannot run on vSphere; doc/vsphere.md has them, too.
const (
	noBinds     = "bind mounts are refused: the machine is on another host"
	hostsOwn    = "it has directories of the daemon's host as stores"
	qemusOwn    = "it is about QEMU and the guest kernel of the daemon's host"
	ownDaemon   = "it starts its daemon by itself, on this machine"
	ownNetns    = "it cuts the daemon off in a network namespace of its own, and the rig is outside"
	noOpenCopy  = "vSphere copies no disk that a machine has open"
	noByteRate  = "vSphere bounds requests a second, not bytes"
	otherFormat = "it reads the descriptor that QEMU's disks have"
	otherFull   = "it fills a file system of the daemon's host"
	tooMany     = "a hundred machines that have each booted take 26 GB under emulation, more than the test machine has"
)

// notOnVSphere are the scripts that cannot run there, with the reason.
var notOnVSphere = map[string]string{
	"mount_bind": noBinds, "mount_bind_follow": noBinds, "mount_bind_ordinary": noBinds, "mount_bind_refused": noBinds, "mount_bind_server": noBinds, "compose_files": noBinds,
	"daemon_config_stores": hostsOwn, "daemon_store_full": hostsOwn, "daemon_store_is_file": hostsOwn, "daemon_store_missing": hostsOwn,
	"daemon_two_stores_one_name": hostsOwn, "volume_no_default_store": hostsOwn, "volume_store_comes_and_goes": hostsOwn,
	"template": qemusOwn, "daemon_qemu_missing": qemusOwn, "daemon_kernel_without_modules": qemusOwn, "daemon_no_tether": qemusOwn, "system_doctor": qemusOwn, "system_doctor_fails": qemusOwn,
	"daemon_ordinary_user": ownDaemon, "volume_nfs_ordinary": ownDaemon, "vch_configure": ownDaemon, "vch_create": ownDaemon, "vch_cut_off": ownDaemon, "vch_nfs": ownDaemon,
	"vch_ordinary_user": ownDaemon, "vch_refused": ownDaemon, "vch_systemd": ownDaemon, "vch_upgrade": ownDaemon, "vch_vsphere": ownDaemon, "vch_vsphere_cut_off": ownDaemon,
	"network_bridge": ownNetns, "volume_nfs_firewall": ownNetns, "volume_nfs_v3": ownNetns, "volume_nfs_v3_writers": ownNetns, "volume_nfs_reach": hostsOwn,
	"volume_snapshot": noOpenCopy, "volume_export": noOpenCopy, "volume_throttle": noByteRate, "volume_layout": otherFormat, "volume_copy_full": otherFull, "volume_store_fills": otherFull,
	"network_hundred": tooMany,
}

// A script runs on vSphere or has a reason not to, and the documentation has all of those.
func TestVSphereScripts(t *testing.T) {
	doc, err := os.ReadFile("../../doc/vsphere.md")
	if err != nil {
		t.Fatal(err)
	}
	for name, why := range notOnVSphere {
		if _, err := os.Stat(filepath.Join("testdata", name+".txtar")); err != nil {
			t.Error(err)
		}
		if slices.Contains(onVSphere, name) {
			t.Errorf("%s runs on vSphere, and cannot: %s", name, why)
		}
		if !strings.Contains(string(doc), "`"+name+"`") || !strings.Contains(string(doc), why) {
			t.Errorf("doc/vsphere.md does not say of %s that %s", name, why)
		}
	}
}
