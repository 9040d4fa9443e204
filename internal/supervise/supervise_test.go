package supervise

import (
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"
)

// sleeper is a program that nobody else runs: a shell whose arguments hold a path of this test's own.
func sleeper(t *testing.T, script string) Program {
	t.Helper()
	dir := t.TempDir()
	p := Program{Name: "vch-test", What: "100% a test", Path: "/bin/sh", Args: []string{"-c", script, filepath.Join(dir, "sleeper")}, Log: filepath.Join(dir, "log")}
	t.Cleanup(func() { _ = (Process{}).Stop(t.Context(), p, 0) })
	return p
}

func wait(t *testing.T, what string, holds func() bool) {
	t.Helper()
	for end := time.Now().Add(time.Minute); !holds(); time.Sleep(10 * time.Millisecond) {
		if time.Now().After(end) {
			t.Fatal(what)
		}
	}
}

// A process is started once, found by its arguments, in a session of its own, and ended; another's is left alone.
func TestProcess(t *testing.T) {
	p := sleeper(t, `echo hello; trap 'echo bye; exit 0' TERM; while :; do sleep 0.05; done`)
	other := exec.Command("sleep", "60")
	if err := other.Start(); err != nil {
		t.Fatal(err)
	}
	defer func() { other.Process.Kill(); other.Wait() }()
	var s Process
	for range 2 {
		if err := s.Start(t.Context(), p); err != nil {
			t.Fatal(err)
		}
	}
	pid := Find(p.Args)
	if pid == 0 {
		t.Fatal("it does not run")
	}
	if sid, _, _ := syscall.Syscall(syscall.SYS_GETSID, uintptr(pid), 0, 0); int(sid) != pid {
		t.Errorf("its session is %d", sid)
	}
	wait(t, "it says nothing", func() bool { text, _ := s.Tail(t.Context(), p, 5); return strings.Contains(text, "hello") })
	for range 2 {
		if err := s.Stop(t.Context(), p, time.Minute); err != nil {
			t.Fatal(err)
		}
	}
	if text, err := s.Tail(t.Context(), p, 1); Find(p.Args) != 0 || text != "bye\n" {
		t.Errorf("it said %q, %v", text, err)
	}
	if other.Process.Signal(syscall.Signal(0)) != nil {
		t.Error("another process was ended")
	}
}

// What works in a directory, or below it, is killed; what is beside it is not.
func TestEndIn(t *testing.T) {
	dir := t.TempDir()
	start := func(name string) *exec.Cmd {
		at := filepath.Join(dir, name)
		if err := os.MkdirAll(at, 0o755); err != nil {
			t.Fatal(err)
		}
		cmd := exec.Command("sleep", "60")
		cmd.Dir = at
		if err := cmd.Start(); err != nil {
			t.Fatal(err)
		}
		return cmd
	}
	in, beside := start("a/b"), start("ab")
	if err := EndIn(filepath.Join(dir, "a")); err != nil {
		t.Fatal(err)
	}
	if err := in.Wait(); err == nil {
		t.Error("it went on")
	}
	if err := beside.Process.Signal(syscall.Signal(0)); err != nil {
		t.Error("one beside it was ended")
	}
	beside.Process.Kill()
	beside.Wait()
}

// One that does not want to end is killed.
func TestProcessThatGoesOn(t *testing.T) {
	p := sleeper(t, `trap '' TERM; echo ready; while :; do sleep 0.05; done`)
	var s Process
	if err := s.Start(t.Context(), p); err != nil {
		t.Fatal(err)
	}
	wait(t, "it is not ready", func() bool { text, _ := s.Tail(t.Context(), p, 5); return text == "ready\n" })
	if err := s.Stop(t.Context(), p, 100*time.Millisecond); err != nil || Find(p.Args) != 0 {
		t.Errorf("%v, and it runs", err)
	}
}

// A log that has become long is cut at a line when the program starts.
func TestLogIsCut(t *testing.T) {
	p := sleeper(t, "exit 0")
	if err := os.WriteFile(p.Log, []byte(strings.Repeat("a line of the log\n", longLog/18+1)), 0o600); err != nil {
		t.Fatal(err)
	}
	if err := (Process{}).Start(t.Context(), p); err != nil {
		t.Fatal(err)
	}
	text, err := os.ReadFile(p.Log)
	if err != nil || len(text) > keptLog || !strings.HasPrefix(string(text), "a line of") {
		t.Errorf("%d bytes, %v", len(text), err)
	}
}

func TestEnvironment(t *testing.T) {
	got := environment([]string{"PATH=/bin", "VCH_FAILPOINTS=x", "DOCKER_HOST=y", "PWD=/", "HOME=/root"})
	if strings.Join(got, " ") != "PATH=/bin HOME=/root" {
		t.Errorf("%v", got)
	}
}

// A systemd of a shell script: what is asked of it, in order; the unit that it gets is one that the real one takes.
func TestSystemd(t *testing.T) {
	dir := t.TempDir()
	said := filepath.Join(dir, "said")
	script := "#!/bin/sh\necho \"$@\" >>" + said + "\n"
	for _, name := range []string{"systemctl", "journalctl"} {
		if err := os.WriteFile(filepath.Join(dir, name), []byte(script), 0o755); err != nil {
			t.Fatal(err)
		}
	}
	s := Systemd{Dir: dir, Systemctl: filepath.Join(dir, "systemctl"), Journal: filepath.Join(dir, "journalctl")}
	p := Program{Name: "vch-x", What: "vch x, a host of 100% VMs", Path: "/var/lib/vch/ho sts/$x/vch", Args: []string{"serve", "--config", dir + "/50%"}, Log: ""}
	for _, do := range []func() error{
		func() error { return s.Register(t.Context(), p) },
		func() error { return s.Start(t.Context(), p) },
		func() error { return s.Stop(t.Context(), p, time.Second) },
		func() error { return s.Unregister(t.Context(), p) },
		func() error { return s.Unregister(t.Context(), p) },
	} {
		if err := do(); err != nil {
			t.Fatal(err)
		}
	}
	text, err := os.ReadFile(said)
	want := "daemon-reload\nenable vch-x.service\nreset-failed vch-x.service\nstart vch-x.service\nstop vch-x.service\ndisable vch-x.service\ndaemon-reload\ndaemon-reload\n"
	if err != nil || string(text) != want {
		t.Errorf("%v:\n%s", err, text)
	}
	if !s.Given(t.Context(), p) {
		t.Error("is-failed was not asked")
	}
	unit := Unit(p)
	for _, line := range []string{`ExecStart="/var/lib/vch/ho sts/$$x/vch" "serve" "--config" "` + dir + `/50%%"`, "KillMode=process", "Restart=on-failure", "StartLimitBurst=5", "Description=vch x, a host of 100%% VMs"} {
		if !strings.Contains(unit, line+"\n") {
			t.Errorf("no line %s in\n%s", line, unit)
		}
	}
	verify, err := exec.LookPath("systemd-analyze")
	if err != nil {
		return // Debian's machines have it; the words above are checked everywhere
	}
	p.Path = "/bin/sh"
	file := filepath.Join(dir, "vch-verify.service")
	if err := os.WriteFile(file, []byte(Unit(p)), 0o644); err != nil {
		t.Fatal(err)
	}
	if out, err := exec.Command(verify, "verify", "--man=no", file).CombinedOutput(); err != nil && strings.Contains(string(out), "vch-verify.service:") {
		t.Errorf("systemd-analyze verify: %v\n%s", err, out)
	}
}
