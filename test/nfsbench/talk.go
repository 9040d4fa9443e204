package main

import (
	"context"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"time"

	"vch/test/measure"
)

// talk is with a ./load that serves.
type talk struct{ *measure.Console }

// begin starts a command, and returns when the ./load in it is ready.
func begin(ctx context.Context, cmd *exec.Cmd) (t talk, err error) {
	t.Console, err = measure.Begin(ctx, cmd)
	return t, err
}

func (t talk) do(ctx context.Context, kind string, amount int) (told, error) {
	said, err := t.Ask(ctx, kind, amount)
	if err != nil {
		return told{}, err
	}
	return toldBy(said)
}

// tell asks for what is said in one line: mount, what is mounted where the work is done; kernel, the kernel's command line.
func (t talk) tell(ctx context.Context, what string) (string, error) {
	said, err := t.Ask(ctx, what)
	_, line, _ := strings.Cut(strings.TrimSpace(said), what+" ")
	return line, err
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
