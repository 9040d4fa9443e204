// Package supervise starts a program in the background and looks after it: by systemd where that runs, otherwise as a process of a session of its own.
//
// A program is known by its arguments, which no other process has: there is no file with a number in it that could be out of date, so that a process that
// got a recycled number is never taken for it, and one that was started by a supervisor that was killed a moment later is found all the same. All
// calls can be made again: what is so already stays so.
package supervise

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"time"

	"vch/internal/atomicfile"
	"vch/internal/fault"
)

// Program is what is looked after.
type Program struct {
	Name string   // of the unit, without .service
	What string   // a line for people
	Path string   // absolute; it may change from one start to the next
	Args []string // that no other process has
	Log  string   // where its output goes, if systemd does not take it
}

// Supervisor is one way to look after a program.
type Supervisor interface {
	// Name is what people call it.
	Name() string
	// Register makes it known, and has it start with the machine, where the supervisor can do that.
	Register(ctx context.Context, p Program) error
	// Unregister is the opposite; the program has ended.
	Unregister(ctx context.Context, p Program) error
	// Start starts it, unless it runs. It may end at once: Given says so.
	Start(ctx context.Context, p Program) error
	// Stop ends it by SIGTERM and returns when it has ended; what goes on after limit is killed.
	Stop(ctx context.Context, p Program, limit time.Duration) error
	// Given reports that the supervisor will not start a program again that has ended.
	Given(ctx context.Context, p Program) bool
	// Tail is the end of the program's output.
	Tail(ctx context.Context, p Program, lines int) (string, error)
}

// Find gives the process that runs with args; 0 if there is none.
func Find(args []string) int {
	procs, _ := filepath.Glob("/proc/[0-9]*") // the pattern is a good one
	for _, dir := range procs {
		pid, err := strconv.Atoi(filepath.Base(dir))
		if err == nil && has(pid, args) {
			return pid
		}
	}
	return 0
}

// has says whether process pid runs with args, and has not ended: a zombie has no arguments (proc(5)).
func has(pid int, args []string) bool {
	line, err := os.ReadFile(fmt.Sprintf("/proc/%d/cmdline", pid))
	if err != nil {
		return false
	}
	words := strings.Split(strings.TrimSuffix(string(line), "\x00"), "\x00")
	return slices.Equal(words[1:], args)
}

// end ends the process that runs with args.
func end(ctx context.Context, args []string, limit time.Duration) error {
	kill := time.Now().Add(limit)
	for sig := syscall.SIGTERM; ; {
		pid := Find(args)
		if pid == 0 {
			return nil
		}
		process, err := os.FindProcess(pid) // a pidfd: from here on it is one process and no other
		if err != nil || !has(pid, args) {
			continue
		}
		err = process.Signal(sig)
		if err != nil && !errors.Is(err, os.ErrProcessDone) {
			return fault.New(fault.Denied, "cannot end process %d: %w", pid, err)
		}
		for has(pid, args) {
			if time.Now().After(kill) {
				sig = syscall.SIGKILL
				break
			}
			select {
			case <-ctx.Done():
				return ctx.Err()
			case <-time.After(20 * time.Millisecond):
			}
		}
		_ = process.Release()
	}
}

// EndIn kills the processes whose working directory is in dir.
func EndIn(dir string) error {
	in := func(pid int) bool {
		cwd, err := os.Readlink(fmt.Sprintf("/proc/%d/cwd", pid))
		return err == nil && strings.HasPrefix(cwd+"/", strings.TrimSuffix(dir, "/")+"/")
	}
	procs, _ := filepath.Glob("/proc/[0-9]*") // the pattern is a good one
	for _, path := range procs {
		pid, err := strconv.Atoi(filepath.Base(path))
		if err != nil || pid == os.Getpid() || !in(pid) {
			continue
		}
		process, err := os.FindProcess(pid) // a pidfd, as above
		if err != nil || !in(pid) {
			continue
		}
		err = process.Kill()
		_ = process.Release()
		if err != nil && !errors.Is(err, os.ErrProcessDone) {
			return fault.New(fault.Denied, "cannot end process %d: %w", pid, err)
		}
	}
	return nil
}

// Process is a program that is nobody's child: it goes on when its starter has ended, and starts again when somebody says so.
type Process struct{}

// Name is Supervisor.Name.
func (Process) Name() string { return "process" }

// Register is Supervisor.Register: there is nothing to do.
func (Process) Register(context.Context, Program) error { return nil }

// Unregister is Supervisor.Unregister.
func (Process) Unregister(context.Context, Program) error { return nil }

// A log is cut to what is kept of it when the program is started and it has become too long; while it runs, it only grows.
const (
	longLog = 16 << 20
	keptLog = 2 << 20
)

// Start is Supervisor.Start.
func (Process) Start(_ context.Context, p Program) error {
	if Find(p.Args) != 0 {
		return nil
	}
	if err := cut(p.Log); err != nil {
		return err
	}
	log, err := os.OpenFile(p.Log, os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o600)
	if err != nil {
		return fault.New(fault.Denied, "cannot open its log: %w", err)
	}
	defer log.Close()
	cmd := exec.Command(p.Path, p.Args...)
	cmd.Dir, cmd.Env = "/", environment(os.Environ())
	cmd.Stdout, cmd.Stderr = log, log
	cmd.SysProcAttr = &syscall.SysProcAttr{Setsid: true}
	if err := cmd.Start(); err != nil {
		return fault.New(fault.Unavailable, "cannot start it: %w", err)
	}
	go func() { _ = cmd.Wait() }() // so that it is no zombie if it ends before this process does
	return nil
}

// environment is what of this process's a program gets: nothing that is about the command that was given.
func environment(all []string) []string {
	return slices.DeleteFunc(slices.Clone(all), func(v string) bool {
		name, _, _ := strings.Cut(v, "=")
		return strings.HasPrefix(name, "VCH_") || strings.HasPrefix(name, "DOCKER_") || name == "PWD" || name == "OLDPWD" || name == "LISTEN_FDS" || name == "NOTIFY_SOCKET"
	})
}

func cut(path string) error {
	info, err := os.Stat(path)
	if err != nil || info.Size() < longLog {
		return nil
	}
	text, err := tail(path, keptLog)
	if err != nil {
		return err
	}
	return atomicfile.Write(path, text, 0o600)
}

// tail is the last bytes of a file, whole lines.
func tail(path string, most int64) ([]byte, error) {
	f, err := os.Open(path)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	info, err := f.Stat()
	if err != nil {
		return nil, err
	}
	skip := max(0, info.Size()-most)
	text := make([]byte, info.Size()-skip)
	n, err := f.ReadAt(text, skip)
	text = text[:n]
	if n < len(text) && err != nil {
		return nil, err
	}
	if i := bytes.IndexByte(text, '\n'); skip > 0 && i >= 0 {
		text = text[i+1:]
	}
	return text, nil
}

// Stop is Supervisor.Stop.
func (Process) Stop(ctx context.Context, p Program, limit time.Duration) error {
	return end(ctx, p.Args, limit)
}

// Given is Supervisor.Given: nobody starts it again.
func (Process) Given(context.Context, Program) bool { return true }

// Tail is Supervisor.Tail.
func (Process) Tail(_ context.Context, p Program, lines int) (string, error) {
	text, err := tail(p.Log, keptLog)
	if errors.Is(err, os.ErrNotExist) {
		return "", nil
	}
	all := strings.SplitAfter(string(text), "\n")
	return strings.Join(all[max(0, len(all)-lines-1):], ""), err
}

// Systemd is systemd's system manager.
type Systemd struct {
	Dir       string // of units: /etc/systemd/system
	Systemctl string // the program; Journalctl likewise
	Journal   string
}

// SystemdRuns says whether systemd is this machine's (sd_booted(3)).
func SystemdRuns() bool {
	info, err := os.Lstat("/run/systemd/system")
	return err == nil && info.IsDir()
}

// Name is Supervisor.Name.
func (Systemd) Name() string { return "systemd" }

func (s Systemd) unit(p Program) string { return filepath.Join(s.Dir, p.Name+".service") }

// quoted is a word of a command line as systemd.service(5) has it.
func quoted(word string) string {
	return `"` + strings.NewReplacer(`\`, `\\`, `"`, `\"`, "%", "%%", "$", "$$").Replace(word) + `"`
}

// Unit is the text of a program's unit. Its processes outlive it: containers are such. One that ends with an error is started again, but not for ever.
func Unit(p Program) string {
	words := []string{quoted(p.Path)}
	for _, a := range p.Args {
		words = append(words, quoted(a))
	}
	return fmt.Sprintf(`[Unit]
Description=%s
Wants=network-online.target
After=network-online.target remote-fs.target local-fs.target
StartLimitIntervalSec=300
StartLimitBurst=5

[Service]
ExecStart=%s
KillMode=process
Restart=on-failure
RestartSec=3
RestartPreventExitStatus=2
TimeoutStopSec=60
LimitNOFILE=1048576

[Install]
WantedBy=multi-user.target
`, strings.ReplaceAll(p.What, "%", "%%"), strings.Join(words, " "))
}

func (s Systemd) ctl(ctx context.Context, args ...string) error {
	out, err := exec.CommandContext(ctx, s.Systemctl, args...).CombinedOutput()
	if err != nil {
		return fault.New(fault.Unavailable, "systemctl %s: %w: %s", strings.Join(args, " "), err, bytes.TrimSpace(out))
	}
	return nil
}

// Register is Supervisor.Register.
func (s Systemd) Register(ctx context.Context, p Program) error {
	if err := atomicfile.Write(s.unit(p), []byte(Unit(p)), 0o644); err != nil {
		return fault.New(fault.Denied, "cannot write its unit: %w", err)
	}
	if err := s.ctl(ctx, "daemon-reload"); err != nil {
		return err
	}
	return s.ctl(ctx, "enable", p.Name+".service")
}

// Unregister is Supervisor.Unregister.
func (s Systemd) Unregister(ctx context.Context, p Program) error {
	if _, err := os.Stat(s.unit(p)); err == nil {
		if err := s.ctl(ctx, "disable", p.Name+".service"); err != nil {
			return err
		}
		if err := os.Remove(s.unit(p)); err != nil {
			return err
		}
	}
	return s.ctl(ctx, "daemon-reload")
}

// Start is Supervisor.Start. That it failed too often before does not keep it from being tried now.
func (s Systemd) Start(ctx context.Context, p Program) error {
	if Find(p.Args) != 0 {
		return nil
	}
	_ = s.ctl(ctx, "reset-failed", p.Name+".service") // an error is that it has not failed
	return s.ctl(ctx, "start", p.Name+".service")
}

// Stop is Supervisor.Stop. It also ends one that somebody started by hand.
func (s Systemd) Stop(ctx context.Context, p Program, limit time.Duration) error {
	if _, err := os.Stat(s.unit(p)); err == nil {
		if err := s.ctl(ctx, "stop", p.Name+".service"); err != nil {
			return err
		}
	}
	return end(ctx, p.Args, limit)
}

// Given is Supervisor.Given.
func (s Systemd) Given(ctx context.Context, p Program) bool {
	return exec.CommandContext(ctx, s.Systemctl, "is-failed", "--quiet", p.Name+".service").Run() == nil
}

// Tail is Supervisor.Tail.
func (s Systemd) Tail(ctx context.Context, p Program, lines int) (string, error) {
	out, err := exec.CommandContext(ctx, s.Journal, "--unit", p.Name+".service", "--output", "cat", "--no-pager", "--lines", strconv.Itoa(lines)).Output()
	return string(out), err
}
