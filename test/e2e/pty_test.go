package e2e

import (
	"bufio"
	"bytes"
	"errors"
	"fmt"
	"io"
	"os/exec"
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/creack/pty"
	"github.com/rogpeppe/go-internal/testscript"
)

// screen collects what a program writes to its terminal.
type screen struct {
	mu    sync.Mutex // guards below
	text  bytes.Buffer
	seen  int // how far expect has read
	grown chan struct{}
	ended bool
}

func (s *screen) read(r io.Reader) {
	buf := make([]byte, 4096)
	for {
		n, err := r.Read(buf)
		s.mu.Lock()
		s.text.Write(buf[:n])
		s.ended = err != nil // EIO once nobody holds the terminal
		close(s.grown)
		s.grown = make(chan struct{})
		s.mu.Unlock()
		if err != nil {
			return
		}
	}
}

// expect waits for want after what was expected before it.
func (s *screen) expect(want string) error {
	timeout := time.After(limit)
	for {
		s.mu.Lock()
		rest := s.text.Bytes()[s.seen:]
		if i := bytes.Index(rest, []byte(want)); i >= 0 {
			s.seen += i + len(want)
			s.mu.Unlock()
			return nil
		}
		grown, ended, tail := s.grown, s.ended, string(rest)
		s.mu.Unlock()
		if ended {
			return fmt.Errorf("the program ended before it wrote %q; after the last match it wrote %q", want, tail)
		}
		select {
		case <-grown:
		case <-timeout:
			return fmt.Errorf("%q did not come; after the last match there is %q", want, tail)
		}
	}
}

// ptyrunCmd runs a program on a terminal of its own and plays a script's file against it, a line at a time:
//
//	expect TEXT     wait until TEXT appears after what was expected before
//	send TEXT       type TEXT and Enter
//	keys TEXT       type TEXT as a quoted Go string: "\x10\x11"
//	size ROWS COLS  change the terminal's size
//	code N          the program ends with exit code N (otherwise 0)
func ptyrunCmd(ts *testscript.TestScript, neg bool, args []string) {
	usage(ts, !neg && len(args) >= 2, "ptyrun SCRIPT CMD ARG…")
	cmd := exec.Command(args[1], args[2:]...)
	cmd.Dir = ts.MkAbs(".")
	cmd.Env = environment(ts)
	term, err := pty.StartWithSize(cmd, &pty.Winsize{Rows: 24, Cols: 80})
	ts.Check(err)
	defer term.Close()
	s := &screen{grown: make(chan struct{})}
	read := make(chan struct{})
	go func() { s.read(term); close(read) }()

	code := 0
	play := func() error {
		lines := bufio.NewScanner(strings.NewReader(ts.ReadFile(args[0])))
		for lines.Scan() {
			verb, rest, _ := strings.Cut(lines.Text(), " ")
			var err error
			switch verb {
			case "":
			case "expect":
				err = s.expect(rest)
			case "send":
				_, err = io.WriteString(term, rest+"\r")
			case "keys":
				var text string
				if text, err = strconv.Unquote(rest); err == nil {
					_, err = io.WriteString(term, text)
				}
			case "size":
				var size pty.Winsize
				if _, err = fmt.Sscan(rest, &size.Rows, &size.Cols); err == nil {
					err = pty.Setsize(term, &size)
				}
			case "code":
				code, err = strconv.Atoi(rest)
			default:
				err = fmt.Errorf("no verb %q", verb)
			}
			if err != nil {
				return fmt.Errorf("%s: %w", lines.Text(), err)
			}
		}
		return nil
	}
	played := play()
	if played != nil {
		cmd.Process.Kill()
	}
	done := make(chan error, 1)
	go func() { done <- cmd.Wait() }()
	select {
	case err = <-done:
	case <-time.After(limit):
		cmd.Process.Kill()
		err = <-done
		played = errors.Join(played, errors.New("the program did not end"))
	}
	<-read
	fmt.Fprint(ts.Stdout(), strings.ReplaceAll(s.text.String(), "\r", ""))
	if played != nil {
		ts.Fatalf("%v\nthe terminal shows:\n%s", played, s.text.String())
	}
	var exit *exec.ExitError
	if got := cmd.ProcessState.ExitCode(); got != code || err != nil && !errors.As(err, &exit) {
		ts.Fatalf("ended with %d (%v), not %d", got, err, code)
	}
}
