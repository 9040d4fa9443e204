package main

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// wait bounds every wait; a host without KVM is slow.
const wait = 3 * time.Minute

// talk is a ./load that serves at the other end of a command's input and output. One piece of work at a time.
type talk struct {
	cmd   *exec.Cmd
	in    io.WriteCloser
	lines chan string // what it prints; closed at its end
}

// begin starts a command, and returns when the ./load in it is ready.
func begin(ctx context.Context, cmd *exec.Cmd) (*talk, error) {
	t := &talk{cmd: cmd, lines: make(chan string, 16)}
	// A session of its own, as vch's machines have: on a busy host the scheduler gives each session its part (sched(7), autogroup).
	cmd.SysProcAttr = &syscall.SysProcAttr{Setsid: true}
	cmd.Stderr = os.Stderr
	var err error
	if t.in, err = cmd.StdinPipe(); err != nil {
		return nil, err
	}
	out, err := cmd.StdoutPipe()
	if err != nil {
		return nil, err
	}
	if err := cmd.Start(); err != nil {
		return nil, err
	}
	go func() {
		defer close(t.lines)
		for s := bufio.NewScanner(out); s.Scan(); {
			t.lines <- strings.TrimSpace(s.Text())
		}
	}()
	if _, err := t.until(ctx, "ready"); err != nil {
		t.end()
		return nil, err
	}
	return t, nil
}

// until reads up to a line that is word, and gives what was said before.
func (t *talk) until(ctx context.Context, word string) (said string, err error) {
	limit := time.NewTimer(wait)
	defer limit.Stop()
	for {
		select {
		case line, ok := <-t.lines:
			switch {
			case !ok:
				return said, fmt.Errorf("it ended: %s", said)
			case strings.HasPrefix(line, "failed:"):
				return said, errors.New(line)
			case line == word:
				return said, nil
			}
			said += line + "\n"
		case <-limit.C:
			return said, fmt.Errorf("it does not answer: %s", said)
		case <-ctx.Done():
			return said, ctx.Err()
		}
	}
}

func (t *talk) ask(ctx context.Context, words ...any) (string, error) {
	if _, err := fmt.Fprintln(t.in, words...); err != nil {
		return "", err
	}
	return t.until(ctx, "ready")
}

func (t *talk) do(ctx context.Context, kind string, amount int) (told, error) {
	said, err := t.ask(ctx, kind, amount)
	if err != nil {
		return told{}, err
	}
	return toldBy(said)
}

// tell asks for what is said in one line: mount, what is mounted where the work is done; kernel, the kernel's command line.
func (t *talk) tell(ctx context.Context, what string) (string, error) {
	said, err := t.ask(ctx, what)
	_, line, _ := strings.Cut(strings.TrimSpace(said), what+" ")
	return line, err
}

// end ends the command.
func (t *talk) end() {
	_ = t.cmd.Process.Kill()
	for range t.lines { // what it still said, so that its reader ends
	}
	_ = t.cmd.Wait()
}

// toldBy reads what ./load prints of a work.
func toldBy(said string) (told, error) {
	for _, line := range strings.Split(said, "\n") {
		var t told
		if _, err := fmt.Sscanf(strings.TrimSpace(line), "took %d %d", &t.took, &t.median); err == nil && t.took > 0 {
			return t, nil
		}
	}
	return told{}, fmt.Errorf("it tells no time: %q", said)
}

// disk is the place where the server's files are.
func disk(ctx context.Context, load string, server *served) (p place, err error) {
	p = place{name: onDisk}
	if p.file, err = server.directory("disk"); err != nil {
		return p, err
	}
	p.talk, err = begin(ctx, exec.Command(load, "serve", filepath.Dir(p.file)))
	return p, err
}

// forget has the host write the file out and drop it from its page cache (posix_fadvise(2), POSIX_FADV_DONTNEED).
func forget(path string) error {
	f, err := os.OpenFile(path, os.O_RDWR, 0)
	if err != nil {
		return err
	}
	err = f.Sync()
	if err == nil {
		err = unix.Fadvise(int(f.Fd()), 0, 0, unix.FADV_DONTNEED)
	}
	return errors.Join(err, f.Close())
}

// spent is the processor time of processes since they began.
func spent(pids map[string]int) (map[string]time.Duration, error) {
	all := map[string]time.Duration{}
	for who, pid := range pids {
		text, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
		if err != nil {
			return nil, err
		}
		if all[who], err = processorTime(string(text)); err != nil {
			return nil, err
		}
	}
	return all, nil
}

// tick is the unit of a process's times (proc_pid_stat(5)): USER_HZ is 100 wherever QEMU emulates a PC.
const tick = 10 * time.Millisecond

// processorTime is utime and stime of the text of /proc/PID/stat: its fields 14 and 15, the second of which, in brackets, may hold anything.
func processorTime(stat string) (time.Duration, error) {
	_, rest, _ := strings.Cut(stat[strings.LastIndexByte(stat, ')')+1:], " ")
	words := strings.Fields(rest)
	if len(words) < 13 {
		return 0, fmt.Errorf("a process's state is not as in proc_pid_stat(5): %q", stat)
	}
	var sum time.Duration
	for _, word := range words[11:13] {
		n, err := strconv.ParseInt(word, 10, 64)
		if err != nil {
			return 0, err
		}
		sum += time.Duration(n) * tick
	}
	return sum, nil
}
