package measure

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"syscall"
	"time"
)

// Daemon is a vch serve. It may be started again after it was stopped; its containers go on meanwhile.
type Daemon struct {
	VCH   string        // the program
	Dir   string        // has all its files; short: a socket's path has 107 bytes
	Args  []string      // beside those that say where it is
	Env   []string      // beside this program's
	Limit time.Duration // for it to answer; 0 means Wait

	HTTP  *http.Client // over its socket; Start makes it
	cmd   *exec.Cmd    // nil: it does not run
	ended chan error
}

// Over is HTTP over a unix socket.
func Over(socket string) *http.Client {
	return &http.Client{Transport: &http.Transport{MaxIdleConnsPerHost: 64, DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
		var d net.Dialer
		return d.DialContext(ctx, "unix", socket)
	}}}
}

func (d *Daemon) socket() string  { return filepath.Join(d.Dir, "s") }
func (d *Daemon) address() string { return "unix://" + d.socket() }
func (d *Daemon) log() string     { return filepath.Join(d.Dir, "log") }

// Start starts it, and returns when it answers. After an error it does not run.
func (d *Daemon) Start(ctx context.Context) error {
	log, err := os.OpenFile(d.log(), os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o600)
	if err != nil {
		return err
	}
	defer log.Close()
	cmd := exec.Command(d.VCH, append([]string{"serve", "--state", filepath.Join(d.Dir, "state"), "--listen", d.address()}, d.Args...)...)
	cmd.Stdout, cmd.Stderr = log, log
	cmd.Env = append(os.Environ(), d.Env...)
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true} // a Ctrl-C is for this program, which then ends containers and daemon in order
	if err := cmd.Start(); err != nil {
		return err
	}
	d.cmd, d.ended = cmd, make(chan error, 1)
	go func(ended chan<- error) { ended <- cmd.Wait() }(d.ended)
	if d.HTTP == nil {
		d.HTTP = Over(d.socket())
	}
	ctx, cancel := context.WithTimeout(ctx, cmp.Or(d.Limit, Wait))
	defer cancel()
	tick := time.NewTicker(5 * time.Millisecond)
	defer tick.Stop()
	for {
		if err := d.ping(ctx); err == nil {
			return nil
		}
		select {
		case status := <-d.ended:
			d.cmd = nil
			said, err := os.ReadFile(d.log())
			return errors.Join(fmt.Errorf("vch serve ended at once (%v):\n%s", status, said), err)
		case <-ctx.Done():
			return errors.Join(fmt.Errorf("vch serve does not answer: %w", ctx.Err()), d.Stop())
		case <-tick.C:
		}
	}
}

func (d *Daemon) ping(ctx context.Context) error {
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, "http://vch/_ping", nil)
	if err != nil {
		return err
	}
	res, err := d.HTTP.Do(req)
	if err != nil {
		return err
	}
	defer res.Body.Close()
	if res.StatusCode != http.StatusOK {
		return errors.New(res.Status)
	}
	return nil
}

// Running says whether it was started and not stopped.
func (d *Daemon) Running() bool { return d.cmd != nil }

// PID is its process, while it runs.
func (d *Daemon) PID() int { return d.cmd.Process.Pid }

// Stop ends it, if it runs.
func (d *Daemon) Stop() error {
	if d.cmd == nil {
		return nil
	}
	cmd := d.cmd
	d.cmd = nil
	defer d.HTTP.CloseIdleConnections()
	err := cmd.Process.Signal(syscall.SIGTERM)
	select {
	case status := <-d.ended:
		return errors.Join(err, status)
	case <-time.After(Wait):
		return errors.Join(err, errors.New("vch serve does not end"), cmd.Process.Kill())
	}
}
