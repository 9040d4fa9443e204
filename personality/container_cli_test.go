package personality

import (
	"bytes"
	"context"
	"errors"
	"io"
	"os"
	osexec "os/exec"
	"regexp"
	"strings"
	"testing"
	"time"

	"github.com/creack/pty"
)

// command is the real docker CLI on the world's socket.
func (w *world) command(args ...string) *osexec.Cmd {
	ctx, cancel := context.WithTimeout(context.Background(), patience)
	w.t.Cleanup(cancel)
	cmd := osexec.CommandContext(ctx, "docker", args...)
	cmd.Env = append(os.Environ(), "DOCKER_HOST=unix://"+w.socket, "DOCKER_CONFIG="+w.dir)
	return cmd
}

// dockerWith runs the CLI with input and gives what it said and its exit code.
func (w *world) dockerWith(input string, args ...string) (stdout, stderr string, code int) {
	w.t.Helper()
	cmd := w.command(args...)
	var out, errs bytes.Buffer
	cmd.Stdin, cmd.Stdout, cmd.Stderr = strings.NewReader(input), &out, &errs
	err := cmd.Run()
	var exit *osexec.ExitError
	if err != nil && !errors.As(err, &exit) {
		w.t.Fatalf("docker %s: %v (the docker CLI is needed: make setup)", strings.Join(args, " "), err)
	}
	return out.String(), errs.String(), cmd.ProcessState.ExitCode()
}

// Everything that the CLI does with a container and its streams, against the real services.
func TestContainersByCLI(t *testing.T) {
	w := newWorld(t)
	w.importImage("img:latest", "CMD sleep 1000")
	long := strings.Repeat("a line that goes in and comes out\n", 5000)
	for _, c := range []struct {
		input, args string
		code        int
		out, errs   string // regular expressions
	}{
		{"", "run img echo hello", 0, `^hello\n$`, `^$`},
		{"", "run --rm img exit 42", 42, `^$`, `^$`},
		{long, "run --rm -i img cat", 0, "^" + long + "$", `^$`},
		{"", "run -d --name web -v data:/srv -e A=b -l app=web img", 0, `^[0-9a-f]{64}\n$`, `^$`},
		{"", "ps --format {{.Names}}:{{.Image}}:{{.Command}}:{{.Mounts}}", 0, `^web:img:"/bin/sh -c 'sleep.+":data\n$`, `^$`},
		{"", "ps -q --filter label=app=web", 0, `^[0-9a-f]{12}\n$`, `^$`},
		{"", "inspect -f {{.State.Running}}:{{.Config.Env}} web", 0, `^true:\[A=b\]\n$`, `^$`},
		{"", "exec web echo inside", 0, `^inside\n$`, `^$`},
		{"typed\n", "exec -i web cat", 0, `^typed\n$`, `^$`},
		{"", "exec web exit 9", 9, `^$`, `^$`},
		{"", "exec web nosuch", 127, `^$`, `executable file not found in \$PATH`},
		{"", "exec -d web sleep 1000", 0, `^$`, `^$`},
		{"", "top web -o pid,cmd", 0, `(?s)^PID +CMD\n1 .*sleep`, `^$`},
		{"", "rename web site", 0, `^$`, `^$`},
		{"", "kill -s WINCH site", 0, `^site\n$`, `^$`},
		{"", "restart -t 1 site", 0, `^site\n$`, `^$`},
		{"", "stop -t 1 site", 0, `^site\n$`, `^$`},
		{"", "wait site", 0, `^143\n$`, `^$`},
		{"", "start site", 0, `^site\n$`, `^$`},
		{"", "rm site", 1, `^$`, `container is running`},
		{"", "rm -f site", 0, `^site\n$`, `^$`},
		{"", "run --rm img nosuch", 127, `^$`, `exec: "nosuch": executable file not found in \$PATH`},
		{"", "run --rm -p 80/sctp img true", 125, `^$`, `HostConfig.PortBindings \(-p 80/sctp\) is not supported by vch`},
		{"", "run --rm --network bridge img true", 0, `^$`, `^$`},
		{"", "run --rm --network host img true", 125, `^$`, `HostConfig.NetworkMode \(--network host\) is not supported by vch`},
		{"", "run --rm --network nosuch img true", 125, `^$`, `network nosuch not found`},
		{"", "run --rm --network none -p 80:80 img true", 0, `^$`, `WARNING: Published ports are discarded when using network mode none`},
		{"", "create --name idle --link web:web img true", 1, `^$`, `HostConfig.Links \(--link\) is not supported by vch`},
		{"", "create --name idle img echo late", 0, `^[0-9a-f]{64}\n$`, `^$`},
		{"", "start -a idle", 0, `^late\n$`, `^$`},
		{"", "logs idle", 0, `^late\n$`, `^$`},
		{"", "logs -f -t --tail 1 idle", 0, `^20\d\d-\S+Z late\n$`, `^$`},
		{"", "container prune -f", 0, `(?s)^Deleted Containers:\n[0-9a-f]{64}\n.*Total reclaimed space: 0B\n$`, `^$`},
	} {
		out, errs, code := w.dockerWith(c.input, strings.Fields(c.args)...)
		if code != c.code || !regexp.MustCompile(c.out).MatchString(out) || !regexp.MustCompile(c.errs).MatchString(errs) {
			t.Fatalf("docker %s: exit code %d, want %d\n%.300s\n%.300s\nwant %.100s and %s", c.args, code, c.code, out, errs, c.out, c.errs)
		}
	}
}

// terminal is the CLI on a terminal.
type terminal struct {
	t   *testing.T
	tty *os.File
	cmd *osexec.Cmd
	all bytes.Buffer // what it has shown
}

func (w *world) terminal(args ...string) *terminal {
	w.t.Helper()
	cmd := w.command(args...)
	tty, err := pty.StartWithSize(cmd, &pty.Winsize{Rows: 40, Cols: 100})
	if err != nil {
		w.t.Fatal(err)
	}
	w.t.Cleanup(func() { tty.Close() })
	if err := tty.SetReadDeadline(time.Now().Add(patience)); err != nil && !errors.Is(err, os.ErrNoDeadline) {
		w.t.Fatal(err)
	}
	return &terminal{t: w.t, tty: tty, cmd: cmd}
}

// see reads until text is shown. The CLI's own time limit ends it if it never is.
func (x *terminal) see(text string) {
	x.t.Helper()
	buf := make([]byte, 1024)
	for !strings.Contains(x.all.String(), text) {
		n, err := x.tty.Read(buf)
		x.all.Write(buf[:n])
		if err != nil {
			x.t.Fatalf("%v after %q; %q never came", err, x.all.String(), text)
		}
	}
	x.all.Reset()
}

func (x *terminal) typed(text string) {
	x.t.Helper()
	if _, err := io.WriteString(x.tty, text); err != nil {
		x.t.Fatal(err)
	}
}

// end reads to the end and gives the CLI's exit code.
func (x *terminal) end() int {
	x.t.Helper()
	_, _ = io.Copy(&x.all, x.tty) // a terminal ends with EIO when its last user leaves
	if err := x.cmd.Wait(); err != nil && x.cmd.ProcessState == nil {
		x.t.Fatal(err)
	}
	return x.cmd.ProcessState.ExitCode()
}

func TestTerminalByCLI(t *testing.T) {
	w := newWorld(t)
	w.importImage("img:latest")
	run := w.terminal("run", "-it", "--name", "term", "img", "cat")
	run.typed("first\n")
	run.see("first\n")
	run.typed("\x10\x11")
	if code := run.end(); code != 0 {
		t.Errorf("after detaching: exit code %d, %q", code, run.all.String())
	}
	attach := w.terminal("attach", "term")
	attach.typed("second\n")
	attach.see("second\n")
	in := w.terminal("exec", "-it", "term", "cat")
	in.typed("third\n")
	in.see("third\n")
	if _, errs, code := w.dockerWith("", "kill", "term"); code != 0 {
		t.Fatal(errs)
	}
	if code := attach.end(); code != 137 {
		t.Errorf("attach to what was killed: exit code %d, %q", code, attach.all.String())
	}
	in.end()
	if out, errs, code := w.dockerWith("", "logs", "term"); !strings.Contains(out, "first\n") || !strings.Contains(out, "second\n") || code != 0 {
		t.Errorf("%q %q %d", out, errs, code)
	}
}
