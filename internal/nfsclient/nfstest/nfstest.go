// Package nfstest runs a real NFS server, NFS-Ganesha, for the time of a test: version 4 at a port of the loopback, or version 3 with portmapper and mountd in a
// network namespace of its own, which Server.Dial reaches. Nothing outside the test's temporary directory is touched, and no process outlives the test.
//
// It needs root, since Ganesha opens files by handle (open_by_handle_at(2)). Without Ganesha a test is skipped; make setup-tests installs it.
package nfstest

import (
	"bytes"
	"context"
	"fmt"
	"math/rand/v2"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// Config says what is served; its zero value is version 4, read and write, root is root.
type Config struct {
	V3         bool          // version 3, in a namespace of its own
	Both       bool          // with V3: version 4 too
	ReadOnly   bool          // the export is
	Squash     string        // Ganesha's word: "" is No_Root_Squash, Root_Squash, All_Squash
	Privileged bool          // only calls from reserved ports are taken
	Minor0     bool          // version 4.0 only
	Lease      time.Duration // version 4; in seconds; 0 is Ganesha's 60 s
	Grace      bool          // after a start version 4 lets nobody make state anew for the time of a lease
}

// Server is a running server.
type Server struct {
	Dir       string // what is exported, on this machine's disk
	Path      string // the export's path, in both versions
	Host      string
	Port      int
	MountPort int // V3

	t      testing.TB
	config Config
	work   string
	fsid   int
	holder *exec.Cmd // holds the namespace, and rpcbind below it; nil without one
	server *exec.Cmd
	exited chan struct{} // of server
}

const (
	starting = 20 * time.Second // to start a server in; it takes 0.1 s on an idle machine
	address  = "10.111.0.1"     // in the namespace
)

// Start starts a server that ends with the test.
func Start(t testing.TB, config Config) *Server {
	t.Helper()
	for _, program := range []string{"ganesha.nfsd", "rpcbind"} {
		if _, err := find(program); err != nil {
			t.Skipf("%s is not installed: make setup-tests (Debian: nfs-ganesha, nfs-ganesha-vfs, rpcbind)", program)
		}
	}
	if os.Geteuid() != 0 {
		t.Skip("NFS-Ganesha opens files by handle, which takes root")
	}
	work := t.TempDir()
	s := &Server{Dir: filepath.Join(work, "export"), Host: "127.0.0.1", t: t, config: config, work: work, fsid: 1 + rand.IntN(60000)}
	s.Path = s.Dir
	if err := os.Mkdir(s.Dir, 0o755); err != nil {
		t.Fatal(err)
	}
	if config.V3 {
		s.Host, s.Port, s.MountPort = address, 2049, 20048
		s.namespace()
	} else {
		s.Port = freePort(t)
	}
	t.Cleanup(func() {
		s.Kill()
		if t.Failed() {
			t.Logf("Ganesha's log:\n%s", s.log())
		}
	})
	s.Restart()
	return s
}

// find is LookPath, also where administrators' programs are.
func find(program string) (string, error) {
	if p, err := exec.LookPath(program); err == nil {
		return p, nil
	}
	return exec.LookPath("/usr/sbin/" + program)
}

// freePort is one that nobody has now, below those that the kernel gives away.
func freePort(t testing.TB) int {
	t.Helper()
	for range 100 {
		port := 20000 + rand.IntN(12000)
		if l, err := net.Listen("tcp", "127.0.0.1:"+strconv.Itoa(port)); err == nil {
			l.Close()
			return port
		}
	}
	t.Fatal("no port is free")
	return 0
}

// process starts a command that dies with this process.
func process(name string, args ...string) *exec.Cmd {
	cmd := exec.Command(name, args...)
	cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	return cmd
}

// namespace makes the namespace with its portmapper. Ganesha registers at rpcbind by an address of its own, so that loopback alone does not do; rpcbind's socket is
// /run/rpcbind.sock, so that /run is the namespace's own. The shell, first in a PID namespace, takes rpcbind along when it ends: rpcbind changes its user, which rids
// it of a signal for the death of a parent (prctl(2)).
func (s *Server) namespace() {
	s.t.Helper()
	const script = `set -e
mount -t tmpfs tmpfs /run
mkdir -p /run/rpcbind /run/ganesha
ip link set lo up
ip link add nfs0 type veth peer name nfs1
ip addr add ` + address + `/24 dev nfs0
ip link set nfs0 up
ip link set nfs1 up
PATH=$PATH:/usr/sbin:/sbin rpcbind -f -w &
wait`
	var out bytes.Buffer
	s.holder = process("unshare", "--net", "--mount", "--pid", "--fork", "--kill-child", "sh", "-c", script)
	s.holder.Stdout, s.holder.Stderr = &out, &out
	if err := s.holder.Start(); err != nil {
		s.t.Fatal(err)
	}
	exited := make(chan struct{})
	go func() { _ = s.holder.Wait(); close(exited) }()
	s.t.Cleanup(func() {
		_ = s.holder.Process.Kill()
		<-exited
	})
	// The first namespace that is seen may still be this process's own, in which somebody else's portmapper may run.
	for end := time.Now().Add(starting); ; time.Sleep(5 * time.Millisecond) {
		if own, err := os.Readlink("/proc/thread-self/ns/net"); err == nil {
			if its, err := os.Readlink(s.netns()); err == nil && its != own && s.answers(111) {
				return
			}
		}
		select {
		case <-exited:
			s.t.Fatalf("rpcbind ended: %s", out.String())
		default:
		}
		if time.Now().After(end) {
			s.t.Fatal("rpcbind does not answer")
		}
	}
}

// Namespace is the path of the network namespace in which the server is; "": in the test's own.
func (s *Server) Namespace() string {
	if s.holder == nil {
		return ""
	}
	return s.netns()
}

func (s *Server) netns() string { return fmt.Sprintf("/proc/%d/ns/net", s.holder.Process.Pid) }

func (s *Server) answers(port int) bool {
	ctx, cancel := context.WithTimeout(context.Background(), time.Second)
	defer cancel()
	c, err := s.Dial(ctx, "tcp", net.JoinHostPort(s.Host, strconv.Itoa(port)))
	if err == nil {
		c.Close()
	}
	return err == nil
}

// Restart starts the server, again after Kill, and returns when it serves. What is on the disk stays, and so do the ports.
func (s *Server) Restart() {
	s.t.Helper()
	s.Kill()
	conf := filepath.Join(s.work, "ganesha.conf")
	if err := os.WriteFile(conf, []byte(s.conf()), 0o644); err != nil {
		s.t.Fatal(err)
	}
	if err := os.MkdirAll(filepath.Join(s.work, "recovery"), 0o755); err != nil {
		s.t.Fatal(err)
	}
	_ = os.Remove(s.logPath())
	ganesha, err := find("ganesha.nfsd")
	if err != nil {
		s.t.Fatal(err)
	}
	args := []string{ganesha, "-F", "-f", conf, "-L", s.logPath(), "-p", filepath.Join(s.work, "pid")}
	if s.holder != nil {
		args = append([]string{"nsenter", "--target", strconv.Itoa(s.holder.Process.Pid), "--net", "--mount"}, args...)
	}
	s.server = process(args[0], args[1:]...)
	var out bytes.Buffer
	s.server.Stdout, s.server.Stderr = &out, &out
	if err := s.server.Start(); err != nil {
		s.t.Fatal(err)
	}
	exited, server := make(chan struct{}), s.server
	s.exited = exited
	go func() { _ = server.Wait(); close(exited) }()
	for end := time.Now().Add(starting); ; time.Sleep(5 * time.Millisecond) {
		if strings.Contains(s.log(), "NFS SERVER INITIALIZED") && s.answers(s.Port) && (!s.config.V3 || s.answers(s.MountPort)) {
			return
		}
		select {
		case <-exited:
			s.t.Fatalf("Ganesha ended: %s\n%s", out.String(), s.log())
		default:
		}
		if time.Now().After(end) {
			s.t.Fatalf("Ganesha does not serve:\n%s", s.log())
		}
	}
}

// Kill ends the server at once, as a power failure would; a portmapper stays, and still knows it. A second call does nothing.
func (s *Server) Kill() {
	if s.server == nil {
		return
	}
	_ = s.server.Process.Kill()
	<-s.exited
	s.server = nil
}

// Stop makes the server silent until Continue, or Kill.
func (s *Server) Stop() {
	s.t.Helper()
	s.signal(syscall.SIGSTOP)
	stat := fmt.Sprintf("/proc/%d/stat", s.server.Process.Pid)
	for end := time.Now().Add(starting); ; time.Sleep(time.Millisecond) {
		// The state stands behind the name in brackets (proc_pid_stat(5)).
		text, err := os.ReadFile(stat)
		if err != nil || time.Now().After(end) {
			s.t.Fatalf("Ganesha does not stop: %v", err)
		}
		if _, state, _ := strings.Cut(string(text), ") "); strings.HasPrefix(state, "T") {
			return
		}
	}
}

// Continue lets it speak again.
func (s *Server) Continue() {
	s.t.Helper()
	s.signal(syscall.SIGCONT)
}

func (s *Server) signal(sig os.Signal) {
	s.t.Helper()
	if err := s.server.Process.Signal(sig); err != nil {
		s.t.Fatal(err)
	}
}

func (s *Server) logPath() string { return filepath.Join(s.work, "ganesha.log") }

func (s *Server) log() string {
	text, err := os.ReadFile(s.logPath())
	if err != nil {
		return err.Error()
	}
	return string(text)
}

// conf is Ganesha's configuration (ganesha-core-config(8), ganesha-export-config(8)).
func (s *Server) conf() string {
	protocols, squash, access := "4", s.config.Squash, "RW"
	if s.config.V3 {
		protocols = "3"
		if s.config.Both {
			protocols = "3, 4"
		}
	}
	minor := "0,1,2"
	if s.config.Minor0 {
		minor = "0"
	}
	if squash == "" {
		squash = "No_Root_Squash"
	}
	if s.config.ReadOnly {
		access = "RO"
	}
	var b strings.Builder
	fmt.Fprintf(&b, "NFS_CORE_PARAM { Bind_addr = %s; NFS_Port = %d; Protocols = %s; Enable_NLM = false; Enable_RQUOTA = false; Enable_UDP = false;", s.Host, s.Port, protocols)
	if s.config.V3 {
		fmt.Fprintf(&b, " MNT_Port = %d;", s.MountPort)
	}
	fmt.Fprintf(&b, " }\nNFSV4 { Graceless = %t; Minor_Versions = %s; RecoveryBackend = fs; RecoveryRoot = %q; Only_Numeric_Owners = true;", !s.config.Grace, minor, filepath.Join(s.work, "recovery"))
	if s.config.Lease > 0 {
		fmt.Fprintf(&b, " Lease_Lifetime = %d; Grace_Period = %d;", int(s.config.Lease/time.Second), int(s.config.Lease/time.Second))
	}
	fmt.Fprintf(&b, " }\nEXPORT { Export_Id = %d; Path = %q; Pseudo = %q; Filesystem_Id = %d.%d; Access_Type = %s; Squash = %s; PrivilegedPort = %t; SecType = sys; Protocols = %s; Transports = TCP; FSAL { Name = VFS; } }\n",
		s.fsid, s.Dir, s.Path, s.fsid, s.fsid, access, squash, s.config.Privileged, protocols)
	return b.String()
}

// Dial connects to the server: in its namespace, if it has one. The connection may come from a reserved port.
func (s *Server) Dial(ctx context.Context, network, address string) (net.Conn, error) {
	var d net.Dialer
	return s.DialBy(ctx, network, address, d.DialContext)
}

// DialBy connects by dial, in the server's namespace.
func (s *Server) DialBy(ctx context.Context, network, address string, dial func(context.Context, string, string) (net.Conn, error)) (c net.Conn, err error) {
	if s.holder == nil {
		return dial(ctx, network, address)
	}
	err = s.within(func() (err error) {
		c, err = dial(ctx, network, address)
		return err
	})
	return c, err
}

// within runs do on a thread in the server's network namespace. A socket stays in the namespace in which it was made. Nothing that do starts in another goroutine
// is there, so that addresses are to be numbers.
func (s *Server) within(do func() error) error {
	done := make(chan error, 1)
	go func() {
		runtime.LockOSThread()
		own, err := unix.Open("/proc/thread-self/ns/net", unix.O_RDONLY|unix.O_CLOEXEC, 0)
		if err != nil {
			done <- err
			return
		}
		defer unix.Close(own)
		its, err := unix.Open(s.netns(), unix.O_RDONLY|unix.O_CLOEXEC, 0)
		if err != nil {
			runtime.UnlockOSThread()
			done <- err
			return
		}
		defer unix.Close(its)
		if err := unix.Setns(its, unix.CLONE_NEWNET); err != nil {
			runtime.UnlockOSThread()
			done <- err
			return
		}
		err = do()
		// A thread that cannot come back ends with this goroutine, for it stays locked.
		if unix.Setns(own, unix.CLONE_NEWNET) == nil {
			runtime.UnlockOSThread()
		}
		done <- err
	}()
	return <-done
}
