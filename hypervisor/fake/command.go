package fake

import (
	"fmt"
	"io"
	"strconv"
	"strings"
	"time"
)

// known says whether the guest has a command: its name alone, or in /bin. The commands:
//
//	echo ARGS          cat (stdin to stdout)     sleep SECONDS     true     false
//	exit N             oom (ends as by the OOM killer)
//	write PATH TEXT    read PATH
//	sh -c "a; b; c"    one after the other; words are split at blanks, a last word >&2 sends echo's output to stderr, and that is all of a shell
func known(name string) bool {
	switch strings.TrimPrefix(name, "/bin/") {
	case "echo", "cat", "sleep", "true", "false", "exit", "oom", "write", "read", "sh":
		return true
	}
	return false
}

// execute runs one command and gives its exit status; oom says that it was killed for want of memory.
func (p *process) execute(args []string) (code int, oom bool) {
	name, args := strings.TrimPrefix(args[0], "/bin/"), args[1:]
	switch name {
	case "echo":
		return p.print(p.out, strings.Join(args, " ")+"\n"), false
	case "cat":
		return p.cat(), false
	case "sleep":
		return p.sleep(args), false
	case "false":
		return 1, false
	case "exit":
		return p.exitStatus(args), false
	case "oom":
		return 0, true
	case "write":
		return p.write(args), false
	case "read":
		return p.read(args), false
	case "sh":
		return p.shell(args)
	}
	return 0, false // true
}

// shell runs the lines of sh -c.
func (p *process) shell(args []string) (code int, oom bool) {
	if len(args) < 2 || args[0] != "-c" {
		return p.complain("sh: only sh -c is simulated", 2), false
	}
	for _, line := range strings.Split(args[1], ";") {
		words := strings.Fields(line)
		if len(words) == 0 {
			continue
		}
		select {
		case <-p.killed:
			return code, false
		default:
		}
		last := len(words) - 1
		switch {
		case !known(words[0]):
			code = p.complain("sh: "+words[0]+": not found", 127)
		case words[0] == "exit":
			if len(words) == 1 {
				return code, false
			}
			return p.exitStatus(words[1:]), false
		case words[0] == "echo" && words[last] == ">&2":
			code = p.print(p.err, strings.Join(words[1:last], " ")+"\n")
		default:
			if code, oom = p.execute(words); oom {
				return code, oom
			}
		}
	}
	return code, false
}

// print writes to a stream; the status is a program's whose output was closed.
func (p *process) print(w io.Writer, text string) int {
	if _, err := io.WriteString(w, text); err != nil {
		return 1
	}
	return 0
}

// complain says what is wrong on stderr and gives code back.
func (p *process) complain(text string, code int) int {
	p.print(p.err, text+"\n")
	return code
}

func (p *process) cat() int {
	if p.stdin == nil {
		return 0
	}
	if _, err := io.Copy(p.out, p.stdin); err != nil {
		return 1
	}
	return 0
}

func (p *process) sleep(args []string) int {
	if len(args) != 1 {
		return p.complain("usage: sleep SECONDS", 1)
	}
	seconds, err := strconv.ParseFloat(args[0], 64)
	if err != nil || seconds < 0 {
		return p.complain(fmt.Sprintf("sleep: invalid number '%s'", args[0]), 1)
	}
	t := time.NewTimer(time.Duration(seconds * float64(time.Second)))
	defer t.Stop()
	select {
	case <-t.C:
	case <-p.killed:
	}
	return 0
}

func (p *process) exitStatus(args []string) int {
	if len(args) == 0 {
		return 0
	}
	n, err := strconv.Atoi(args[0])
	if err != nil {
		return p.complain("exit: Illegal number: "+args[0], 2)
	}
	return n
}

func (p *process) write(args []string) int {
	if len(args) < 1 {
		return p.complain("usage: write PATH TEXT", 1)
	}
	at := absolute(p.cwd, args[0])
	m, rest, ok := p.sys.find(at)
	err := error(nil)
	switch {
	case !ok || rest == "":
		return p.complain("write: "+at+": Is a directory", 1)
	case m.readOnly:
		return p.complain("write: "+at+": Read-only file system", 1)
	default:
		err = m.content.write(rest, strings.Join(args[1:], " "))
	}
	if err != nil {
		return p.complain("write: "+at+": "+errText(err), 1)
	}
	return 0
}

func (p *process) read(args []string) int {
	if len(args) != 1 {
		return p.complain("usage: read PATH", 1)
	}
	at := absolute(p.cwd, args[0])
	m, rest, ok := p.sys.find(at)
	if !ok || rest == "" {
		return p.complain("read: "+at+": Is a directory", 1)
	}
	text, err := m.content.read(rest)
	if err != nil {
		return p.complain("read: "+at+": "+errText(err), 1)
	}
	return p.print(p.out, text)
}
