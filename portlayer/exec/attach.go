package exec

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"io"
	"os"
	"time"

	"vch/guest"
	"vch/internal/fault"
	"vch/portlayer"
)

// Attach is portlayer.Containers.Attach. The reader s.Stdin may still be read when it returns: the caller closes what is behind it.
func (s *Service) Attach(ctx context.Context, ref string, streams portlayer.AttachStreams, attached func()) error {
	u, err := s.find(ref)
	if err != nil {
		return err
	}
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	k, size := u.hub.join()
	defer u.hub.leave(k)
	first := u.snapshot()
	if attached != nil {
		attached()
	}
	s.publish(first.container, "attach")
	defer func() { s.publish(u.snapshot().container, "detach") }()

	out := writerOf(streams)
	if streams.Replay {
		if err := replay(s.logPath(first.container.ID), size, out); err != nil {
			return err
		}
	}
	if !streams.Live {
		return nil
	}
	if streams.Stdin != nil && first.container.Spec.Process.Stdin {
		go u.feed(ctx, streams.Stdin)
	}
	for {
		select {
		case f, ok := <-k.frames:
			if !ok {
				return nil
			}
			if err := out(f.Stream, f.Data); err != nil {
				return err
			}
		case <-ctx.Done():
			return ctx.Err()
		case <-s.ctx.Done():
			return fault.New(fault.Unavailable, "vch is stopping")
		}
	}
}

// writerOf sends output to whichever of a client's writers it is for.
func writerOf(s portlayer.AttachStreams) func(guest.Stream, []byte) error {
	return func(stream guest.Stream, data []byte) error {
		w := s.Stdout
		if stream == guest.Stderr {
			w = s.Stderr
		}
		if w == nil {
			return nil
		}
		_, err := w.Write(data)
		return err
	}
}

// replay sends what the first size bytes of the log hold, as they came.
func replay(path string, size int64, out func(guest.Stream, []byte) error) error {
	f, err := os.Open(path)
	if errors.Is(err, os.ErrNotExist) {
		return nil
	}
	if err != nil {
		return err
	}
	defer f.Close()
	dec := json.NewDecoder(bufio.NewReader(io.LimitReader(f, size)))
	for {
		var l logLine
		if err := dec.Decode(&l); err != nil {
			return nil // the end, or a torn line
		}
		data, stream := l.Raw, guest.Stdout
		if data == nil {
			data = []byte(l.Log)
		}
		if l.Stream == streamName[guest.Stderr] {
			stream = guest.Stderr
		}
		if len(data) > 0 {
			if err := out(stream, data); err != nil {
				return err
			}
		}
	}
}

// feed copies a client's input to the process once it runs. The end of the client's input is the process's too when the container
// was made with StdinOnce; otherwise the process goes on waiting for the next client.
func (u *unit) feed(ctx context.Context, in io.Reader) {
	snap, err := u.await(ctx, func(now *snapshot) bool { return now.run != nil || now.gone })
	if err != nil || snap.gone {
		return
	}
	client, err := snap.run.talk(ctx)
	if err != nil {
		return
	}
	w, err := client.Stdin(ctx)
	if err != nil {
		return
	}
	if _, err := io.Copy(w, in); err != nil {
		return
	}
	if snap.container.Spec.StdinOnce && ctx.Err() == nil {
		w.Close()
	}
}

// execution is a process added to a running container.
type execution struct {
	unit  *unit
	run   *run
	x     portlayer.Exec // guarded by Service.mu
	ended time.Time      // guarded by Service.mu
	begun bool           // guarded by Service.mu
}

// execKept is how long an ended exec can still be asked about; Docker's engine keeps them 5 to 10 minutes.
const execKept = 5 * time.Minute

// ExecCreate is portlayer.Containers.ExecCreate.
func (s *Service) ExecCreate(_ context.Context, ref string, p guest.Process, door json.RawMessage) (string, error) {
	if len(p.Args) == 0 {
		return "", fault.New(fault.Invalid, "no exec command specified")
	}
	u, r, err := s.running(ref)
	if err != nil {
		return "", err
	}
	id := newID()
	c := u.snapshot().container
	x := &execution{unit: u, run: r, x: portlayer.Exec{ID: id, Container: c.ID, Process: p, Door: door}}
	s.mu.Lock()
	for old, e := range s.execs {
		if !e.ended.IsZero() && time.Since(e.ended) > execKept {
			delete(s.execs, old)
		}
	}
	s.execs[id] = x
	s.mu.Unlock()
	s.publish(c, "exec_create", "execID", id, "execCommand", commandLine(p.Args))
	return id, nil
}

func commandLine(args []string) string {
	line := ""
	for i, a := range args {
		if i > 0 {
			line += " "
		}
		line += a
	}
	return line
}

func (s *Service) findExec(id string) (*execution, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	x, ok := s.execs[id]
	if !ok {
		return nil, fault.New(fault.NotFound, "No such exec instance: %s", id)
	}
	return x, nil
}

// ExecGet is portlayer.Containers.ExecGet.
func (s *Service) ExecGet(_ context.Context, id string) (portlayer.Exec, error) {
	x, err := s.findExec(id)
	if err != nil {
		return portlayer.Exec{}, err
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	return x.x, nil
}

// ExecStart is portlayer.Containers.ExecStart.
func (s *Service) ExecStart(ctx context.Context, id string, streams portlayer.AttachStreams, detach bool, started func()) error {
	x, err := s.findExec(id)
	if err != nil {
		return err
	}
	s.mu.Lock()
	again := x.begun
	x.begun = true
	s.mu.Unlock()
	if again {
		return fault.New(fault.Conflict, "exec %s has already run; create a new one", id)
	}
	client, err := x.run.talk(ctx)
	if err != nil {
		return err
	}
	running := make(chan struct{})
	outcome := make(chan error, 1)
	onStart := func(pid int) {
		s.mu.Lock()
		x.x.Running, x.x.Pid = true, pid
		s.mu.Unlock()
		s.publish(x.unit.snapshot().container, "exec_start", "execID", id, "execCommand", commandLine(x.x.Process.Args))
		if started != nil && !detach {
			started()
		}
		close(running)
	}
	out := writerOf(streams)
	execute := func(ctx context.Context) {
		exit, err := client.Exec(ctx, id, x.x.Process, streams.Stdin, onStart, out)
		if err != nil && exit.Code == 0 {
			exit.Code = startExitCode(err)
		}
		s.mu.Lock()
		x.x.Running, x.x.Exit, x.ended = false, &exit, time.Now()
		s.mu.Unlock()
		s.publish(x.unit.snapshot().container, "exec_die", "execID", id, "exitCode", itoa(exit.Code))
		outcome <- err
	}
	if !detach {
		execute(ctx)
		return <-outcome
	}
	streams.Stdin, out = nil, func(guest.Stream, []byte) error { return nil }
	s.wg.Add(1)
	go func() {
		defer s.wg.Done()
		execute(s.ctx)
	}()
	select {
	case <-running:
		return nil
	case err := <-outcome:
		return err
	}
}

// ExecResize is portlayer.Containers.ExecResize.
func (s *Service) ExecResize(ctx context.Context, id string, rows, cols uint16) error {
	x, err := s.findExec(id)
	if err != nil {
		return err
	}
	client, err := x.run.talk(ctx)
	if err != nil {
		return err
	}
	return client.Resize(ctx, id, rows, cols)
}
