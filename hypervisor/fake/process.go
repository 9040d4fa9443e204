package fake

import (
	"io"
	"strings"
	"sync"
	"time"

	"vch/guest"
	"vch/internal/fault"
)

// Signals that mean something here (signal(7)).
const (
	sigKill  = 9
	sigChld  = 17
	sigCont  = 18
	sigUrg   = 23
	sigWinch = 28
	sigLast  = 64
)

// process is a tether.Proc whose program is a goroutine (command.go).
type process struct {
	sys     *system
	pid     int
	main    bool
	args    []string
	cwd     string
	started time.Time

	tty    bool
	stdin  *io.PipeReader // what the program reads; nil: an empty file
	typed  *io.PipeWriter // the other end; nil with stdin
	out    *io.PipeWriter // what the program writes
	err    *io.PipeWriter // with a TTY the same as out
	stdout *io.PipeReader
	stderr *io.PipeReader // nil with a TTY

	killed chan struct{} // closed by the signal that ends it
	gone   chan struct{} // closed when it ended
	exit   guest.Exit    // set before gone closes

	mu     sync.Mutex // guards below
	signal int        // that killed it; 0: none
}

func newProcess(s *system, p guest.Process, pid int, main bool) *process {
	proc := &process{sys: s, pid: pid, main: main, args: p.Args, cwd: p.Cwd, started: time.Now(), tty: p.TTY, killed: make(chan struct{}), gone: make(chan struct{})}
	if p.Stdin {
		proc.stdin, proc.typed = io.Pipe()
	}
	proc.stdout, proc.out = io.Pipe()
	if p.TTY {
		proc.err = proc.out
	} else {
		proc.stderr, proc.err = io.Pipe()
	}
	return proc
}

// run is the process.
func (p *process) run() {
	code, oom := p.execute(p.args)
	p.mu.Lock()
	switch {
	case p.signal != 0:
		p.exit = guest.Exit{Code: 128 + p.signal, Signal: p.signal}
	case oom:
		p.exit = guest.Exit{Code: 128 + sigKill, Signal: sigKill, OOM: true}
	default:
		p.exit = guest.Exit{Code: code & 0xff}
	}
	p.mu.Unlock()
	p.closeStreams()
	p.sys.ended(p)
	close(p.gone)
}

// closeStreams takes the program's ends of its streams away: whoever waits on them goes on.
func (p *process) closeStreams() {
	p.out.Close()
	p.err.Close()
	if p.stdin != nil {
		p.stdin.Close()
	}
}

// kill ends the program by a signal. Only the first one counts.
func (p *process) kill(n int) {
	p.mu.Lock()
	first := p.signal == 0
	if first {
		p.signal = n
	}
	p.mu.Unlock()
	if first {
		close(p.killed)
		p.closeStreams()
	}
}

// Pid is tether.Proc.Pid.
func (p *process) Pid() int { return p.pid }

// Stdin is tether.Proc.Stdin.
func (p *process) Stdin() io.WriteCloser {
	switch {
	case p.typed == nil:
		return nil
	case p.tty:
		return terminal{p.typed}
	}
	return p.typed
}

// terminal is a TTY as input: its end is not an end-of-file.
type terminal struct{ io.Writer }

func (terminal) Close() error { return nil }

// Outputs is tether.Proc.Outputs.
func (p *process) Outputs() (stdout, stderr io.Reader) {
	if p.tty {
		return p.stdout, nil
	}
	return p.stdout, p.stderr
}

// Wait is tether.Proc.Wait.
func (p *process) Wait() guest.Exit {
	<-p.gone
	return p.exit
}

// Signal is tether.Proc.Signal: what a program without handlers does.
func (p *process) Signal(n int) error {
	select {
	case <-p.gone:
		return fault.New(fault.Conflict, "the process has ended")
	default:
	}
	switch {
	case n < 0 || n > sigLast:
		return fault.New(fault.Invalid, "cannot send signal %d: invalid argument", n)
	case n == 0, n == sigChld, n == sigCont, n == sigUrg, n == sigWinch:
		return nil
	}
	p.kill(n)
	return nil
}

// Resize is tether.Proc.Resize.
func (p *process) Resize(uint16, uint16) error {
	if !p.tty {
		return fault.New(fault.Conflict, "the process has no terminal")
	}
	return nil
}

// info is the process as top shows it.
func (p *process) info() guest.ProcessInfo {
	i := guest.ProcessInfo{PID: p.pid, UID: "root", Start: p.started, TTY: "?", Args: strings.Join(p.args, " ")}
	if p.main {
		i.PID = 1
	}
	if p.tty {
		i.TTY = "pts/0"
	}
	return i
}
