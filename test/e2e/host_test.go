package e2e

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"time"
)

// host is one VCH: its directory, and its daemon while it runs.
type host struct {
	bin  string
	rig  *rig     // where its machines are; nil: here
	port int      // with rig: where guests come to
	dir  string   // short: a unix socket's path has 107 bytes
	args []string // of the last serve
	bare bool     // serve gets neither stores nor sizes but those in args
	tiny string   // the default store is on a medium of this size; "": it is not
	uid  int      // of the daemon; 0: the test's own
	ns   string   // the network namespace that the daemon is in; "": the test's own
	near string   // the path of another's, in which it is; "": it is in none

	mu      sync.Mutex // guards below
	daemon  *exec.Cmd
	ended   chan struct{} // closed when daemon has ended
	awaited bool          // somebody waited for that
}

func newHost(w *world) *host {
	dir, err := os.MkdirTemp("", "v")
	if err != nil {
		panic(err)
	}
	for _, store := range []string{"a", "b"} {
		if err := os.Mkdir(filepath.Join(dir, store), 0o755); err != nil {
			panic(err)
		}
	}
	h := &host{bin: w.bin, rig: w.rig, dir: dir}
	if h.rig != nil {
		l, err := net.Listen("tcp", "127.0.0.1:0")
		if err != nil {
			panic(err)
		}
		h.port = l.Addr().(*net.TCPAddr).Port
		l.Close()
		_, local := h.rig.place(h)
		if err := os.MkdirAll(local, 0o755); err != nil {
			panic(err)
		}
	}
	return h
}

func (h *host) address() string { return "unix://" + h.dir + "/s" }

// setenv tells a script where things are.
func (h *host) setenv(set func(name, value string)) {
	set("DOCKER_HOST", h.address())
	set("SOCKET", h.dir+"/s")
	set("STATE", h.dir+"/state")
	at := h.dir
	if h.rig != nil {
		_, at = h.rig.place(h)
	}
	set("STORE", at+"/a")
	set("STORE2", at+"/b")
}

// ordinaryUser is nobody's number on Debian (base-passwd).
const ordinaryUser = 65534

// becomeOrdinary gives the host's directory to an ordinary user, who will run the daemon. A test that runs as one has nothing to do.
func (h *host) becomeOrdinary() error {
	if os.Getuid() != 0 {
		return nil
	}
	h.uid = ordinaryUser
	for _, dir := range []string{"", "a", "b"} {
		if err := os.Chown(filepath.Join(h.dir, dir), h.uid, h.uid); err != nil {
			return err
		}
	}
	return nil
}

// stores are the arguments that give a host its two stores; a script that names one of these flags says them all.
func (h *host) stores() []string {
	return []string{"--volume-store", h.dir + "/a:default", "--volume-store", h.dir + "/b:second"}
}

// command is vch serve with args beside the host's own.
func (h *host) command(args ...string) *exec.Cmd {
	all := []string{filepath.Join(h.bin, "vch"), "serve", "--state", h.dir + "/state", "--listen", h.address()}
	if h.rig != nil {
		all = append(all, h.rig.arguments(h, strings.Join(args, " "))...)
		args = h.rig.stores(args)
		all = append(all, "--memory", "128M", "--default-capacity", "64M", "--anonymous-capacity", "32M")
	} else if !h.bare {
		all = append(all, "--accel", "tcg", "--memory", "128M", "--default-capacity", "64M", "--anonymous-capacity", "32M")
		said := strings.Join(args, " ")
		if !strings.Contains(said, "--volume-store") {
			all = append(all, h.stores()...)
		}
		// A pool and a cache are as good as their users' to them all: one template serves every script.
		if !strings.Contains(said, "--warm") {
			all = append(all, "--warm", "1")
		}
		if h.uid == 0 && !strings.Contains(said, "--cache") {
			all = append(all, "--cache", filepath.Join(h.bin, "cache"))
		}
	}
	all = append(all, args...)
	if h.tiny != "" {
		all = append(medium("size="+h.tiny, h.dir+"/a"), all...)
	}
	if h.ns != "" {
		all = append([]string{"ip", "netns", "exec", h.ns}, all...)
	}
	if h.near != "" {
		all = append([]string{"nsenter", "--net=" + h.near}, all...)
	}
	cmd := exec.Command(all[0], all[1:]...)
	cmd.Env = append(os.Environ(), "PATH="+os.Getenv("PATH")+":/usr/sbin:/sbin")
	if h.rig != nil {
		cmd.Env = append(cmd.Env, "VCH_PASSWORD="+h.rig.Password)
	}
	if h.uid != 0 {
		cmd.SysProcAttr = &syscall.SysProcAttr{Credential: &syscall.Credential{Uid: uint32(h.uid), Gid: uint32(h.uid)}}
		cmd.Env = append(cmd.Env, "HOME="+h.dir)
		cmd.Dir = h.dir
	}
	return cmd
}

// outsideOf is where the world outside of a host's own network namespace is (RFC 5737).
const outsideOf = "203.0.113.5"

// beApart has the daemon run in a network namespace of its own, from which outsideOf is reached, another one, where a page is at port 80.
func (h *host) beApart() error {
	h.ns = filepath.Base(h.dir)
	page := filepath.Join(h.dir, "page")
	if err := os.Mkdir(page, 0o755); err != nil {
		return err
	}
	if err := os.WriteFile(filepath.Join(page, "index.html"), []byte("outside\n"), 0o644); err != nil {
		return err
	}
	script := `set -e
ip netns add $1; ip netns add $1-out
ip -n $1 link set lo up; ip -n $1-out link set lo up
ip link add wire netns $1 type veth peer name far netns $1-out
ip -n $1 addr add 203.0.113.9/24 dev wire; ip -n $1 link set wire up; ip -n $1 route add default via $2
ip -n $1-out addr add $2/24 dev far; ip -n $1-out link set far up
ip netns exec $1-out busybox httpd -p 80 -h $3`
	out, err := exec.Command("sh", "-c", script, "sh", h.ns, outsideOf, page).CombinedOutput()
	if err != nil {
		return fmt.Errorf("%w: %s", err, out)
	}
	return nil
}

// leaveApart takes the namespaces away, and says what the daemon has left in its own.
func (h *host) leaveApart() (wrong []string) {
	for _, ask := range [][]string{{"ip", "-br", "link", "show", "type", "bridge"}, {"ip", "-br", "link", "show", "type", "tun"}, {"nft", "list", "tables"}} {
		out, err := exec.Command("ip", append([]string{"netns", "exec", h.ns}, ask...)...).CombinedOutput()
		if err != nil || len(bytes.TrimSpace(out)) > 0 {
			wrong = append(wrong, fmt.Sprintf("the daemon left in its network namespace, by %v: %v %s", ask, err, out))
		}
	}
	out, err := exec.Command("sh", "-c", "ip netns pids $1-out | xargs -r kill -9; ip netns del $1; ip netns del $1-out", "sh", h.ns).CombinedOutput()
	if err != nil {
		wrong = append(wrong, fmt.Sprintf("a network namespace of the test's: %v: %s", err, out))
	}
	return wrong
}

// serve starts the daemon and waits until it answers.
func (h *host) serve(args ...string) error {
	if h.running() {
		return errors.New("the daemon is running already")
	}
	log, err := os.OpenFile(filepath.Join(h.dir, "log"), os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o600)
	if err != nil {
		return err
	}
	defer log.Close()
	h.args = args
	cmd := h.command(args...)
	cmd.Stdout, cmd.Stderr = log, log
	if err := cmd.Start(); err != nil {
		return err
	}
	ended := make(chan struct{})
	go func() { cmd.Wait(); close(ended) }()
	h.mu.Lock()
	h.daemon, h.ended, h.awaited = cmd, ended, false
	h.mu.Unlock()
	deadline := time.Now().Add(limit)
	for {
		conn, err := net.Dial("unix", h.dir+"/s")
		if err == nil {
			conn.Close()
			return nil
		}
		select {
		case <-ended:
			_, _ = h.wait()
			return fmt.Errorf("the daemon ended at once (%v):\n%s", cmd.ProcessState, h.logTail(20))
		case <-time.After(20 * time.Millisecond):
		}
		if time.Now().After(deadline) {
			return fmt.Errorf("the daemon does not answer after %v", limit)
		}
	}
}

func (h *host) running() bool {
	h.mu.Lock()
	defer h.mu.Unlock()
	if h.daemon == nil {
		return false
	}
	select {
	case <-h.ended:
		return false
	default:
		return true
	}
}

// signal sends sig to the daemon and waits for its end.
func (h *host) signal(sig syscall.Signal) (*os.ProcessState, error) {
	h.mu.Lock()
	cmd := h.daemon
	h.mu.Unlock()
	if cmd == nil {
		return nil, errors.New("there is no daemon")
	}
	if err := cmd.Process.Signal(sig); err != nil {
		return nil, err
	}
	return h.wait()
}

// wait waits for the daemon's end.
func (h *host) wait() (*os.ProcessState, error) {
	h.mu.Lock()
	cmd, ended := h.daemon, h.ended
	h.mu.Unlock()
	select {
	case <-ended:
		h.mu.Lock()
		defer h.mu.Unlock()
		h.awaited = h.awaited || h.daemon == cmd
		return cmd.ProcessState, nil
	case <-time.After(limit):
		return nil, errors.New("the daemon goes on")
	}
}

// docker runs the CLI against this host.
func (h *host) docker(args ...string) (string, error) {
	ctx, cancel := context.WithTimeout(context.Background(), limit)
	defer cancel()
	cmd := exec.CommandContext(ctx, "docker", args...)
	cmd.Env = append(os.Environ(), "DOCKER_HOST="+h.address(), "DOCKER_CONFIG="+h.dir, "DOCKER_API_VERSION=")
	var out, diag bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &diag
	if err := cmd.Run(); err != nil {
		return out.String(), fmt.Errorf("docker %s: %w: %s", strings.Join(args, " "), err, diag.String())
	}
	return out.String(), nil
}

// sweep removes the containers, volumes and networks whose names begin with me, and says what is left of them.
func (h *host) sweep(me string) (wrong []string) {
	ids, err := h.docker("ps", "-aq", "--no-trunc", "--filter", "name=^/?"+me+"(-|$)")
	if err != nil {
		return []string{err.Error()}
	}
	for _, id := range strings.Fields(ids) {
		if _, err := h.docker("rm", "-f", "-v", id); err != nil {
			wrong = append(wrong, err.Error())
		}
		wrong = append(wrong, h.traces(id)...)
	}
	volumes, err := h.docker("volume", "ls", "-q", "--filter", "name=^"+me+"(-|$)")
	if err != nil {
		return append(wrong, err.Error())
	}
	for _, v := range strings.Fields(volumes) {
		if _, err := h.docker("volume", "rm", v); err != nil {
			wrong = append(wrong, err.Error())
		}
	}
	networks, err := h.docker("network", "ls", "--format", "{{.Name}}", "--filter", "type=custom", "--filter", "name="+me)
	if err != nil {
		return append(wrong, err.Error())
	}
	for _, n := range strings.Fields(networks) {
		if n != me && !strings.HasPrefix(n, me+"-") {
			continue // that filter is for a part of a name
		}
		if _, err := h.docker("network", "rm", n); err != nil {
			wrong = append(wrong, err.Error())
		}
	}
	images, err := h.docker("images", "--format", "{{.Repository}}:{{.Tag}}")
	if err != nil {
		return append(wrong, err.Error())
	}
	for _, image := range strings.Fields(images) {
		if repository, _, _ := strings.Cut(image, ":"); repository == me || strings.HasPrefix(repository, me+"/") {
			if _, err := h.docker("rmi", image); err != nil {
				wrong = append(wrong, err.Error())
			}
		}
	}
	return wrong
}

// held says what a host holds beside its image box, when it should hold nothing.
func (h *host) held() (wrong []string) {
	for _, ask := range [][]string{{"ps", "-a", "--format", "container {{.Names}} of {{.Image}}"}, {"volume", "ls", "--format", "volume {{.Name}}"},
		{"images", "-a", "--format", "image {{.Repository}}:{{.Tag}} {{.ID}}"}, {"network", "ls", "--filter", "type=custom", "--format", "network {{.Name}}"}} {
		out, err := h.docker(ask...)
		if err != nil {
			return append(wrong, err.Error())
		}
		for line := range strings.Lines(out) {
			if !strings.HasPrefix(line, "image box:latest ") {
				wrong = append(wrong, "some script left "+strings.TrimSpace(line))
			}
		}
	}
	return append(wrong, h.listens()...)
}

// listens says on which ports of this machine the daemon listens, as it does for containers only, but for the one that its script asked for.
func (h *host) listens() (wrong []string) {
	h.mu.Lock()
	daemon := h.daemon
	h.mu.Unlock()
	if daemon == nil {
		return nil
	}
	own := map[string]bool{} // inodes of its sockets
	fds, _ := filepath.Glob(fmt.Sprintf("/proc/%d/fd/*", daemon.Process.Pid))
	for _, fd := range fds {
		if to, err := os.Readlink(fd); err == nil && strings.HasPrefix(to, "socket:[") {
			own[strings.Trim(to, "socket:[]")] = true
		}
	}
	asked := "" // as the kernel shows it
	for _, arg := range h.args {
		if _, port, err := net.SplitHostPort(strings.TrimPrefix(arg, "tcp://")); err == nil && strings.HasPrefix(arg, "tcp://") {
			if n, err := strconv.ParseUint(port, 10, 16); err == nil {
				asked = fmt.Sprintf(":%04X", n)
			}
		}
	}
	for _, table := range []string{"tcp", "tcp6", "udp", "udp6"} {
		text, _ := os.ReadFile("/proc/net/" + table)
		for _, line := range strings.Split(string(text), "\n") {
			f := strings.Fields(line) // proc_pid_net(5): its own address, its state, its inode
			const listening, unconnected = "0A", "07"
			if len(f) > 9 && asked != "" && strings.HasSuffix(f[1], asked) {
				continue
			}
			if len(f) > 9 && h.rig != nil && strings.HasSuffix(f[1], fmt.Sprintf(":%04X", h.port)) {
				continue // guests come there
			}
			if len(f) > 9 && own[f[9]] && (f[3] == listening || strings.HasPrefix(table, "udp") && f[3] == unconnected) {
				wrong = append(wrong, fmt.Sprintf("the daemon listens by %s at %s", table, f[1]))
			}
		}
	}
	return wrong
}

// mark is what the command lines of the host's machines have, or their directories.
func (h *host) mark() string {
	if h.rig != nil { // the path of an image
		return "/" + filepath.Base(h.dir) + "/"
	}
	return h.dir + "/"
}

// traces says what is left on this machine of a container that was removed.
func (h *host) traces(id string) (wrong []string) {
	pids := machines(id)
	if h.rig != nil {
		pids = h.rig.machine(id)
	}
	if len(pids) > 0 {
		wrong = append(wrong, fmt.Sprintf("container %s is gone and its machine runs: %v", id[:12], pids))
	}
	if pids := sharers(id); len(pids) > 0 {
		wrong = append(wrong, fmt.Sprintf("container %s is gone and its directories are served still: %v", id[:12], pids))
	}
	filepath.WalkDir(filepath.Join(h.dir, "state"), func(path string, _ os.DirEntry, err error) error {
		if err == nil && strings.Contains(filepath.Base(path), id) {
			wrong = append(wrong, fmt.Sprintf("container %s is gone and there is %s", id[:12], path))
		}
		return nil
	})
	return wrong
}

// end removes everything of this host, stops its daemon, and says what should not be there then.
func (h *host) end() (wrong []string) {
	defer func() {
		if h.ns != "" {
			wrong = append(wrong, h.leaveApart()...)
		}
	}()
	defer func() {
		if h.running() {
			h.signal(syscall.SIGTERM)
		}
		for _, pid := range qemus(h.mark()) {
			wrong = append(wrong, fmt.Sprintf("machine %d of %s was left running", pid, h.dir))
			syscall.Kill(pid, syscall.SIGKILL)
		}
	}()
	if h.args == nil && h.daemon == nil {
		return nil // it never served
	}
	if !h.running() {
		h.mu.Lock()
		if h.daemon != nil && !h.awaited {
			wrong = append(wrong, fmt.Sprintf("the daemon had ended by itself (%v):\n%s", h.daemon.ProcessState, h.logTail(60)))
		}
		h.mu.Unlock()
		if err := h.serve(h.args...); err != nil {
			return append(wrong, "for cleaning up: "+err.Error())
		}
	}
	ids, err := h.docker("ps", "-aq", "--no-trunc")
	if err != nil {
		return append(wrong, err.Error())
	}
	for _, id := range strings.Fields(ids) {
		if _, err := h.docker("rm", "-f", "-v", id); err != nil {
			wrong = append(wrong, err.Error())
		}
		wrong = append(wrong, h.traces(id)...)
	}
	volumes, err := h.docker("volume", "ls", "-q")
	if err != nil {
		wrong = append(wrong, err.Error())
	}
	for _, v := range strings.Fields(volumes) {
		if _, err := h.docker("volume", "rm", v); err != nil {
			wrong = append(wrong, err.Error())
		}
	}
	wrong = append(wrong, h.listens()...)
	state, err := h.signal(syscall.SIGTERM)
	if err != nil {
		return append(wrong, err.Error())
	}
	if !state.Success() {
		wrong = append(wrong, fmt.Sprintf("SIGTERM ended the daemon with %v", state))
	}
	// Only now: what is ready for the next volumes, and what is being deleted, goes with the daemon.
	at := h.dir
	if h.rig != nil {
		_, at = h.rig.place(h)
	}
	for _, dir := range []string{h.dir + "/state/machines", at + "/a/volumes", at + "/b/volumes"} {
		if left, _ := os.ReadDir(dir); len(left) > 0 {
			wrong = append(wrong, fmt.Sprintf("%s is not empty: %v", dir, left))
		}
	}
	return wrong
}

// logTail is the end of the daemon's log.
func (h *host) logTail(lines int) string {
	text, _ := os.ReadFile(filepath.Join(h.dir, "log"))
	all := strings.Split(strings.TrimSpace(string(text)), "\n")
	return strings.Join(all[max(0, len(all)-lines):], "\n")
}

// machines gives the QEMU processes that have text in their command line or working directory.
func machines(text string) (pids []int) {
	for _, pid := range qemus(text) {
		if cwd, _ := os.Readlink(fmt.Sprintf("/proc/%d/cwd", pid)); !strings.Contains(cwd, "/state/pool/") {
			pids = append(pids, pid)
		}
	}
	return pids
}

// qemus are the processes of machines, of those that are kept ready too, that have text in their command line or their directory.
func qemus(text string) []int { return running("qemu-system", text) }

// sharers are the processes that serve directories of this host to machines, those with text in their command line; each has a moment to end with its machine.
func sharers(text string) (pids []int) {
	for end := time.Now().Add(5 * time.Second); ; time.Sleep(10 * time.Millisecond) {
		if pids = running("virtiofsd", text); len(pids) == 0 || time.Now().After(end) {
			return pids
		}
	}
}

func running(program, text string) (pids []int) {
	procs, _ := filepath.Glob("/proc/[0-9]*")
	for _, p := range procs {
		line, _ := os.ReadFile(filepath.Join(p, "cmdline"))
		cwd, _ := os.Readlink(filepath.Join(p, "cwd"))
		if !bytes.Contains(bytes.SplitN(line, []byte{0}, 2)[0], []byte(program)) {
			continue
		}
		if bytes.Contains(line, []byte(text)) || strings.Contains(cwd+"/", text) {
			var pid int
			fmt.Sscan(filepath.Base(p), &pid)
			pids = append(pids, pid)
		}
	}
	return pids
}
