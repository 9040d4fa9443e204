package e2e

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
	"syscall"
	"time"

	"github.com/rogpeppe/go-internal/testscript"
)

// commands are what scripts can say beside testscript's own commands:
//
//	docker ARG…                run the docker CLI (with ! it must fail)
//	vch ARG…                   run vch, the program under test (with ! it must fail)
//	code N CMD ARG…            run a program that must end with exit code N
//	same TEXT                  the last standard output is TEXT and a newline, or nothing
//	capture VAR [PATTERN]      put the last standard output, trimmed, or the first match in it, into $VAR
//	waitfor PATTERN CMD ARG…   run a program until its output matches; its exit code does not matter
//	api METHOD PATH [FILE]     speak HTTP to the daemon: status and body become the standard output
//	headers METHOD PATH        the same, for status and headers
//	daemon start [ARG…]        give this script a daemon of its own; $DOCKER_HOST, $STATE and $STORE are its
//	daemon stop|kill9          end it by SIGTERM (exit code 0 is asked for) or SIGKILL
//	daemon restart [ARG…]      SIGTERM, and start
//	daemon refused [ARG…]      a vch serve with these that has to end by itself, exit code not 0; its words become the standard error
//	daemon bare start [ARG…]   start with a state directory, a socket and ARGs only: no store, no capacity
//	daemon tiny [SIZE]         from now on, $STORE of the script's own daemon is on a medium that is all but full, or of SIZE
//	daemon ordinary            from now on, the script's own daemon is an ordinary user's
//	daemon apart               from now on, the script's own daemon is in a network namespace, $NETNS, from which 203.0.113.5 is the outside
//	daemon wait                wait for the end of a daemon that the script killed by itself, by $DAEMON
//	daemon log PATTERN         the daemon's log has a line that matches
//	box                        import the busybox image "box" into the script's own daemon
//	debian IMAGE PACKAGE…      make an image of Debian with packages, as their own scripts set them up; see debian_test.go
//	buildkit                   make buildx the docker CLI's plugin; $BUILDKIT has the programs buildkitd and buildctl
//	nfs start [WORD…]          an NFS server of the script's own, version 4; $NFS is its place, as in nfs://$NFS, and $NFSDIR what it exports; nfs_test.go has the words
//	nfs kill|restart|stop|continue   end it as a power failure would, start it again, make it silent, let it speak
//	machines N                 wait until the script's own daemon has N machines
//	dead PID                   the process PID ends
//	vcenter start [FLAG…]      a simulated vCenter of the script's own, with flags of test/vcsim; $TARGET, $TUSER, $TPASSWORD, $THUMBPRINT and $DATASTORES (where its files are) are its
//	vcenter stop               its end
//	archive KIND FILE          write an image archive: docker, oci, truncated, badlayer, notatar
//	registry start [auth|corrupt|cut]   a registry on loopback; $REGISTRY is its address
//	registry push NAME         put a two-layer image there
//	ptyrun SCRIPT CMD ARG…     run a program on a terminal, as SCRIPT says; see pty_test.go
//	truncate FILE SIZE         cut a file
//	tiny DIR CMD ARG…          run a program with DIR on a medium that is all but full
//	untethered FILE            build a vch without a tether in it
//	versioned FILE VERSION     build a vch of another version
//	readonly DIR CMD ARG…      run a program with DIR on a medium that takes no write
func commands() map[string]func(*testscript.TestScript, bool, []string) {
	return map[string]func(*testscript.TestScript, bool, []string){
		"docker":     dockerCmd,
		"vch":        vchCmd,
		"code":       codeCmd,
		"same":       sameCmd,
		"capture":    captureCmd,
		"waitfor":    waitforCmd,
		"api":        apiCmd,
		"headers":    headersCmd,
		"daemon":     daemonCmd,
		"box":        boxCmd,
		"debian":     debianCmd,
		"buildkit":   buildkitCmd,
		"nfs":        nfsCmd,
		"machines":   machinesCmd,
		"vcenter":    vcenterCmd,
		"pid":        pidCmd,
		"dead":       deadCmd,
		"archive":    archiveCmd,
		"registry":   registryCmd,
		"ptyrun":     ptyrunCmd,
		"truncate":   truncateCmd,
		"untethered": untetheredCmd,
		"versioned":  versionedCmd,
		"tiny":       mediumCmd("tiny"),
		"readonly":   mediumCmd("readonly"),
	}
}

// usage ends the script if a command is called wrongly.
func usage(ts *testscript.TestScript, ok bool, text string) {
	if !ok {
		ts.Fatalf("usage: %s", text)
	}
}

// bounded runs a program that is ended when it takes longer than limit: a script that hangs is to fail, not to stop all others.
func bounded(ts *testscript.TestScript, program string, args ...string) error {
	seconds := strconv.Itoa(int(limit.Seconds()))
	err := ts.Exec("timeout", append([]string{"--kill-after=5", seconds, program}, args...)...)
	var exit *exec.ExitError
	if errors.As(err, &exit) && (exit.ExitCode() == 124 || exit.ExitCode() == -1) { // timeout(1): it timed out, and for -1 had to be killed
		ts.Fatalf("%s did not end within %v", program, limit)
	}
	return err
}

func vchCmd(ts *testscript.TestScript, neg bool, args []string) {
	err := bounded(ts, filepath.Join(of(ts).world.bin, "vch"), args...)
	switch {
	case neg && err == nil:
		ts.Fatalf("vch ended well, and should have failed")
	case !neg && err != nil:
		ts.Fatalf("vch failed: %v", err)
	}
}

func dockerCmd(ts *testscript.TestScript, neg bool, args []string) {
	err := bounded(ts, "docker", args...)
	var exit *exec.ExitError
	if err != nil && !errors.As(err, &exit) {
		ts.Fatalf("docker: %v", err)
	}
	if err != nil && !neg {
		ts.Fatalf("docker failed: %v", err)
	}
	if err == nil && neg {
		ts.Fatalf("docker worked, and it should not have")
	}
}

func codeCmd(ts *testscript.TestScript, neg bool, args []string) {
	usage(ts, !neg && len(args) >= 2, "code N CMD ARG…")
	err := bounded(ts, args[1], args[2:]...)
	code := 0
	var exit *exec.ExitError
	if errors.As(err, &exit) {
		code = exit.ExitCode()
	} else if err != nil {
		ts.Fatalf("%v", err)
	}
	if strconv.Itoa(code) != args[0] {
		ts.Fatalf("exit code %d, not %s", code, args[0])
	}
}

func sameCmd(ts *testscript.TestScript, neg bool, args []string) {
	usage(ts, len(args) == 1, "same TEXT")
	got := strings.TrimSuffix(ts.ReadFile("stdout"), "\n")
	if (got == args[0]) == neg {
		ts.Fatalf("the output is %q; asked for: %q", got, args[0])
	}
}

func captureCmd(ts *testscript.TestScript, neg bool, args []string) {
	usage(ts, !neg && (len(args) == 1 || len(args) == 2), "capture VAR [PATTERN]")
	text := strings.TrimSpace(ts.ReadFile("stdout"))
	if len(args) == 2 {
		pattern, err := regexp.Compile("(?m)" + args[1])
		ts.Check(err)
		match := pattern.FindString(text)
		if match == "" {
			ts.Fatalf("nothing in the output matches %s:\n%s", args[1], text)
		}
		text = match
	}
	ts.Setenv(args[0], text)
}

func waitforCmd(ts *testscript.TestScript, neg bool, args []string) {
	usage(ts, !neg && len(args) >= 2, "waitfor PATTERN CMD ARG…")
	pattern, err := regexp.Compile("(?m)" + args[0])
	ts.Check(err)
	for deadline := time.Now().Add(limit); ; time.Sleep(50 * time.Millisecond) {
		cmd := exec.Command(args[1], args[2:]...)
		cmd.Dir = ts.MkAbs(".")
		cmd.Env = environment(ts)
		if path, err := exec.LookPath(args[1]); err == nil {
			cmd.Path = path
		}
		out, _ := cmd.CombinedOutput()
		if pattern.Match(out) {
			ts.Stdout().Write(out)
			return
		}
		if time.Now().After(deadline) {
			ts.Fatalf("no output matched %s; the last was:\n%s", args[0], out)
		}
	}
}

// environment is what a program that scripts run sees.
func environment(ts *testscript.TestScript) []string {
	env := os.Environ()
	for _, name := range []string{"PATH", "HOME", "DOCKER_CONFIG", "DOCKER_HOST", "DOCKER_API_VERSION", "TERM"} {
		env = append(env, name+"="+ts.Getenv(name))
	}
	return env
}

func apiCmd(ts *testscript.TestScript, neg bool, args []string) {
	usage(ts, !neg && (len(args) == 2 || len(args) == 3), "api METHOD PATH [FILE]")
	var body io.Reader
	if len(args) == 3 {
		body = strings.NewReader(ts.ReadFile(args[2]))
	}
	resp := speak(ts, args[0], args[1], body)
	defer resp.Body.Close()
	text, err := io.ReadAll(resp.Body)
	ts.Check(err)
	fmt.Fprintf(ts.Stdout(), "%d\n%s\n", resp.StatusCode, bytes.TrimSpace(text))
}

func headersCmd(ts *testscript.TestScript, neg bool, args []string) {
	usage(ts, !neg && len(args) == 2, "headers METHOD PATH")
	resp := speak(ts, args[0], args[1], nil)
	ts.Check(resp.Body.Close())
	fmt.Fprintf(ts.Stdout(), "%d\n", resp.StatusCode)
	for key, values := range resp.Header {
		fmt.Fprintf(ts.Stdout(), "%s: %s\n", key, strings.Join(values, ", "))
	}
}

// speak sends one request to the script's daemon.
func speak(ts *testscript.TestScript, method, path string, body io.Reader) *http.Response {
	socket := strings.TrimPrefix(ts.Getenv("DOCKER_HOST"), "unix://")
	client := http.Client{Timeout: limit, Transport: &http.Transport{DisableKeepAlives: true,
		DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
			var d net.Dialer
			return d.DialContext(ctx, "unix", socket)
		}}}
	req, err := http.NewRequest(method, "http://vch"+path, body)
	ts.Check(err)
	if body != nil {
		req.Header.Set("Content-Type", "application/json")
	}
	resp, err := client.Do(req)
	ts.Check(err)
	return resp
}

const daemonUsage = "daemon start|bare start|stop|kill9|wait|restart|refused|tiny|ordinary|apart|log …"

func daemonCmd(ts *testscript.TestScript, neg bool, args []string) {
	usage(ts, !neg && len(args) > 0, daemonUsage)
	s := of(ts)
	verb, rest := args[0], args[1:]
	switch verb {
	case "start", "bare", "refused", "tiny", "ordinary", "apart":
		if s.host == s.world.shared {
			s.host = newHost(s.world)
			s.host.setenv(ts.Setenv)
		}
	default:
		if s.host == s.world.shared {
			ts.Fatalf("this script has no daemon of its own; say daemon start")
		}
	}
	start := func(args ...string) {
		ts.Check(s.host.serve(args...))
		ts.Setenv("DAEMON", strconv.Itoa(s.host.daemon.Process.Pid))
	}
	switch verb {
	case "start":
		start(rest...)
	case "bare":
		usage(ts, len(rest) > 0 && rest[0] == "start", daemonUsage)
		s.host.bare = true
		start(rest[1:]...)
	case "tiny":
		usage(ts, len(rest) <= 1, daemonUsage)
		s.host.tiny = tinySize
		if len(rest) == 1 {
			s.host.tiny = rest[0]
		}
	case "ordinary":
		ts.Check(s.host.becomeOrdinary())
	case "apart":
		ts.Check(s.host.beApart())
		ts.Setenv("NETNS", s.host.ns)
	case "wait":
		_, err := s.host.wait()
		ts.Check(err)
	case "stop", "restart":
		state, err := s.host.signal(syscall.SIGTERM)
		ts.Check(err)
		if !state.Success() {
			ts.Fatalf("SIGTERM ended the daemon with %v:\n%s", state, s.host.logTail(20))
		}
		if verb == "restart" {
			start(rest...)
		}
	case "kill9":
		_, err := s.host.signal(syscall.SIGKILL)
		ts.Check(err)
	case "refused":
		cmd := s.host.command(rest...)
		var diag bytes.Buffer
		cmd.Stderr = &diag
		ts.Check(cmd.Start())
		done := make(chan error, 1)
		go func() { done <- cmd.Wait() }()
		select {
		case err := <-done:
			fmt.Fprintf(ts.Stdout(), "%d\n", cmd.ProcessState.ExitCode())
			ts.Stderr().Write(diag.Bytes())
			if err == nil {
				ts.Fatalf("vch serve ended with exit code 0")
			}
		case <-time.After(limit):
			cmd.Process.Kill()
			<-done
			ts.Fatalf("vch serve was not refused:\n%s", diag.String())
		}
	case "log":
		usage(ts, len(rest) == 1, "daemon log PATTERN")
		pattern, err := regexp.Compile("(?m)" + rest[0])
		ts.Check(err)
		text, err := os.ReadFile(filepath.Join(s.host.dir, "log"))
		ts.Check(err)
		if !pattern.Match(text) {
			ts.Fatalf("no line of the daemon's log matches %s:\n%s", rest[0], s.host.logTail(30))
		}
	default:
		usage(ts, false, daemonUsage)
	}
}

func boxCmd(ts *testscript.TestScript, neg bool, args []string) {
	usage(ts, !neg && len(args) == 0, "box")
	_, err := of(ts).host.docker("import", of(ts).world.box, "box")
	ts.Check(err)
}

func machinesCmd(ts *testscript.TestScript, neg bool, args []string) {
	usage(ts, !neg && len(args) == 1, "machines N")
	s := of(ts)
	if s.host == s.world.shared {
		ts.Fatalf("the shared daemon's machines are not one script's; say daemon start")
	}
	for deadline := time.Now().Add(limit); ; time.Sleep(20 * time.Millisecond) {
		now := machines(s.host.mark())
		if strconv.Itoa(len(now)) == args[0] {
			return
		}
		if time.Now().After(deadline) {
			ts.Fatalf("there are machines %v, not %s", now, args[0])
		}
	}
}

// pidCmd prints the process on this host that is a container's machine.
func pidCmd(ts *testscript.TestScript, neg bool, args []string) {
	usage(ts, !neg && len(args) == 1, "pid CONTAINER")
	format := "{{.State.Pid}}"
	s := of(ts)
	if s.host.rig != nil {
		format = "{{.Id}}"
	}
	dockerCmd(ts, false, []string{"container", "inspect", "--format", format, args[0]})
	if s.host.rig == nil {
		return
	}
	id := strings.TrimSpace(ts.ReadFile("stdout"))
	pids := s.host.rig.machine(id)
	if len(pids) != 1 {
		ts.Fatalf("container %s has the machines %v", args[0], pids)
	}
	ts.Check(ts.Exec("echo", strconv.Itoa(pids[0])))
}

func deadCmd(ts *testscript.TestScript, neg bool, args []string) {
	usage(ts, len(args) == 1, "[!] dead PID")
	pid, err := strconv.Atoi(args[0])
	ts.Check(err)
	if pid <= 1 {
		ts.Fatalf("%d is no machine's process", pid)
	}
	if neg {
		if !alive(pid) {
			ts.Fatalf("process %d has ended", pid)
		}
		return
	}
	for deadline := time.Now().Add(limit); alive(pid); time.Sleep(20 * time.Millisecond) {
		if time.Now().After(deadline) {
			ts.Fatalf("process %d goes on", pid)
		}
	}
}

// alive says whether a process runs; one that is dead and not yet waited for does not.
func alive(pid int) bool {
	stat, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
	if err != nil {
		return false
	}
	_, after, _ := strings.Cut(string(stat), ") ")
	return !strings.HasPrefix(after, "Z")
}

func truncateCmd(ts *testscript.TestScript, neg bool, args []string) {
	usage(ts, !neg && len(args) == 2, "truncate FILE SIZE")
	size, err := strconv.ParseInt(args[1], 10, 64)
	ts.Check(err)
	ts.Check(os.Truncate(ts.MkAbs(args[0]), size))
}

// mediumCmd runs a program with a file system of its own over DIR, in a mount namespace that ends with the program.
func mediumCmd(kind string) func(*testscript.TestScript, bool, []string) {
	return func(ts *testscript.TestScript, neg bool, args []string) {
		usage(ts, len(args) >= 2, "[!] "+kind+" DIR CMD ARG…")
		words := medium(map[string]string{"tiny": "size=" + tinySize, "readonly": "ro"}[kind], ts.MkAbs(args[0]))
		err := ts.Exec(words[0], append(words[1:], args[1:]...)...)
		if (err != nil) != neg {
			ts.Fatalf("ended with: %v", err)
		}
	}
}

// tinySize is too little for anything.
const tinySize = "64k"

// medium is how to begin a command line that runs a program with dir on a tmpfs of its own, mounted with options (tmpfs(5)).
func medium(options, dir string) []string {
	words := []string{"unshare", "--mount"}
	if os.Getuid() != 0 {
		words = append(words, "--map-root-user")
	}
	return append(words, "sh", "-c", `mount -t tmpfs -o "$1" test "$2" && shift 2 && exec "$@"`, "sh", options, dir)
}

// untetheredCmd builds vch as go build does in a fresh checkout, where make has not put a tether into it.
func untetheredCmd(ts *testscript.TestScript, neg bool, args []string) {
	usage(ts, !neg && len(args) == 1, "untethered FILE")
	root, err := filepath.Abs("../..")
	ts.Check(err)
	overlay, err := json.Marshal(map[string]map[string]string{"Replace": {filepath.Join(root, "cmd/vch/embed/tether"): ""}})
	ts.Check(err)
	file := ts.MkAbs(".overlay.json")
	ts.Check(os.WriteFile(file, overlay, 0o600))
	cmd := exec.Command("go", "build", "-overlay", file, "-o", ts.MkAbs(args[0]), "./cmd/vch")
	cmd.Dir = root
	cmd.Env = append(os.Environ(), "CGO_ENABLED=0")
	if out, err := cmd.CombinedOutput(); err != nil {
		ts.Fatalf("go build: %v\n%s", err, out)
	}
}

// versionedCmd builds vch as make build does, with a version of its own.
func versionedCmd(ts *testscript.TestScript, neg bool, args []string) {
	usage(ts, !neg && len(args) == 2, "versioned FILE VERSION")
	cmd := exec.Command("go", "build", "-trimpath", "-ldflags", "-s -w -X main.version="+args[1], "-o", ts.MkAbs(args[0]), "./cmd/vch")
	cmd.Dir = "../.."
	cmd.Env = append(os.Environ(), "CGO_ENABLED=0")
	if out, err := cmd.CombinedOutput(); err != nil {
		ts.Fatalf("go build: %v\n%s", err, out)
	}
}
