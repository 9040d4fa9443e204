package personality

import (
	"context"
	"encoding/json"
	"fmt"
	"net/http"
	"slices"
	"strings"

	"github.com/moby/moby/api/types/container"

	"vch/guest"
	"vch/internal/fault"
	"vch/portlayer"
)

// execDoor is what the personality keeps with an exec.
type execDoor struct {
	AttachStdin, AttachStdout, AttachStderr bool
	Privileged                              bool
	DetachKeys                              string
}

// execCreate is POST /containers/{id}/exec.
func (s *Server) execCreate(w http.ResponseWriter, r *http.Request) error {
	var req container.ExecCreateRequest
	if err := decodeJSON(r, &req); err != nil {
		return err
	}
	if len(req.Cmd) == 0 {
		return fault.New(fault.Invalid, "No exec command specified")
	}
	if _, err := parseDetachKeys(req.DetachKeys); err != nil {
		return err
	}
	if !versionOf(r).atLeast(1, 42) {
		req.ConsoleSize = nil
	}
	c, err := s.Containers.Get(r.Context(), r.PathValue("id"))
	if err != nil {
		return err
	}
	p, err := execProcess(req, c.Spec.Process)
	if err != nil {
		return err
	}
	kept, err := json.Marshal(execDoor{req.AttachStdin, req.AttachStdout, req.AttachStderr, req.Privileged, req.DetachKeys})
	if err != nil {
		return fault.New(fault.Internal, "the exec's configuration cannot be kept: %w", err)
	}
	id, err := s.Containers.ExecCreate(r.Context(), string(c.ID), p, kept)
	if err != nil {
		return err
	}
	return writeJSON(w, http.StatusCreated, container.ExecCreateResponse{ID: id})
}

// execProcess is the process that req asks for in a container whose own process is main: what req leaves open is as main has it.
func execProcess(req container.ExecCreateRequest, main guest.Process) (guest.Process, error) {
	if err := checkEnv(req.Env); err != nil {
		return guest.Process{}, err
	}
	p := guest.Process{
		Args:         req.Cmd,
		Env:          overrideEnv(main.Env, req.Env),
		Cwd:          main.Cwd,
		User:         main.User,
		Groups:       main.Groups,
		TTY:          req.Tty,
		Stdin:        req.AttachStdin,
		Rlimits:      main.Rlimits,
		Capabilities: main.Capabilities,
		NoNewPrivs:   main.NoNewPrivs,
		OOMScoreAdj:  main.OOMScoreAdj,
	}
	if req.WorkingDir != "" {
		if !strings.HasPrefix(req.WorkingDir, "/") {
			return p, fault.New(fault.Invalid, "the working directory '%s' is invalid, it needs to be an absolute path", req.WorkingDir)
		}
		p.Cwd = req.WorkingDir
	}
	if req.User != "" {
		p.User = req.User
	}
	if req.Privileged {
		p.Capabilities = slices.Clone(allCapabilities[:])
	}
	if req.ConsoleSize != nil && req.Tty {
		p.Rows, p.Cols = consoleSize(*req.ConsoleSize)
	}
	return p, nil
}

// overrideEnv is base with the variables of more set, or, as in Moby, taken away where more names one without a value.
func overrideEnv(base, more []string) []string {
	env := slices.Clone(base)
	for _, kv := range more {
		key, _, set := strings.Cut(kv, "=")
		same := func(have string) bool { k, _, _ := strings.Cut(have, "="); return k == key }
		switch i := slices.IndexFunc(env, same); {
		case !set:
			env = slices.DeleteFunc(env, same)
		case i >= 0:
			env[i] = kv
		default:
			env = append(env, kv)
		}
	}
	return env
}

// execStart is POST /exec/{id}/start. Attached, the answer goes out before the process runs, as in Moby: why it does not run is then told on its
// output, and its exit code is 127 or 126.
func (s *Server) execStart(w http.ResponseWriter, r *http.Request) error {
	var req container.ExecStartRequest
	if _, err := decodeOptionalJSON(r, &req); err != nil {
		return err
	}
	x, err := s.Containers.ExecGet(r.Context(), r.PathValue("id"))
	if err != nil {
		return err
	}
	if x.Running || x.Exit != nil {
		return fault.New(fault.Conflict, "exec %s has already run; create a new one", x.ID)
	}
	if req.Detach {
		if err := startError(s.Containers.ExecStart(r.Context(), x.ID, portlayer.AttachStreams{}, true, nil)); err != nil {
			return err
		}
		w.WriteHeader(http.StatusOK)
		return nil
	}
	var d execDoor
	if err := json.Unmarshal(x.Door, &d); err != nil {
		return fault.New(fault.Internal, "what was kept of exec %s cannot be read: %w", x.ID, err)
	}
	return s.execAttached(w, r, x, d, req)
}

// execAttached runs an exec with the client's connection as its terminal or pipes.
func (s *Server) execAttached(w http.ResponseWriter, r *http.Request, x portlayer.Exec, d execDoor, req container.ExecStartRequest) error {
	keys, err := parseDetachKeys(d.DetachKeys)
	if err != nil {
		return err
	}
	ctx, cancel := context.WithCancel(r.Context())
	defer cancel()
	conn := newDuplex(w, r)
	stdout, stderr, mediaType := outputs(conn, req.Tty, versionOf(r))
	conn.mediaType = mediaType
	streams := portlayer.AttachStreams{Live: true}
	detached := make(chan struct{})
	if d.AttachStdin {
		streams.Stdin = conn
		if x.Process.TTY {
			streams.Stdin = &detachReader{in: conn, keys: keys, detached: func() { close(detached); cancel() }}
		}
	}
	if d.AttachStdout {
		streams.Stdout = stdout
	}
	if d.AttachStderr {
		streams.Stderr = stderr
	}
	// The size of the client's terminal is set as soon as there is one to set; this goroutine ends with the exec.
	running, sized := make(chan struct{}), make(chan struct{})
	go func() {
		defer close(sized)
		select {
		case <-running:
		case <-ctx.Done():
			return
		}
		if req.Tty && req.ConsoleSize != nil && versionOf(r).atLeast(1, 42) {
			rows, cols := consoleSize(*req.ConsoleSize)
			if err := s.Containers.ExecResize(ctx, x.ID, rows, cols); err != nil && ctx.Err() == nil {
				s.Log.Warn("an exec's terminal has not the client's size", "exec", x.ID, "err", err)
			}
		}
	}()
	conn.begin()
	if !conn.began() {
		cancel()
		<-sized
		return conn.err
	}
	err = s.Containers.ExecStart(ctx, x.ID, streams, false, func() { close(running) })
	select {
	case <-detached:
		err = nil
	default:
	}
	if err != nil && !conn.lost.Load() {
		fmt.Fprintf(stderr, "%v\r\n", err)
	}
	conn.close()
	cancel()
	<-sized
	if fault.Is(startError(err), fault.Invalid) || conn.lost.Load() {
		return nil // the client's mistake, or its leaving
	}
	return err
}

// execInspect is GET /exec/{id}/json.
func (s *Server) execInspect(w http.ResponseWriter, r *http.Request) error {
	x, err := s.Containers.ExecGet(r.Context(), r.PathValue("id"))
	if err != nil {
		return err
	}
	var d execDoor
	if err := json.Unmarshal(x.Door, &d); err != nil {
		return fault.New(fault.Internal, "what was kept of exec %s cannot be read: %w", x.ID, err)
	}
	keys, err := parseDetachKeys(d.DetachKeys)
	if err != nil {
		return err
	}
	answer := container.ExecInspectResponse{
		ID:      x.ID,
		Running: x.Running,
		ProcessConfig: &container.ExecProcessConfig{
			Tty:        x.Process.TTY,
			Entrypoint: x.Process.Args[0],
			Arguments:  append([]string{}, x.Process.Args[1:]...),
			Privileged: &d.Privileged,
			User:       x.Process.User,
		},
		OpenStdin:   d.AttachStdin,
		OpenStdout:  d.AttachStdout,
		OpenStderr:  d.AttachStderr,
		ContainerID: string(x.Container),
		DetachKeys:  []byte(keys),
		Pid:         x.Pid,
	}
	if x.Exit != nil {
		answer.ExitCode = &x.Exit.Code
	}
	return writeJSON(w, http.StatusOK, answer)
}

// execResize is POST /exec/{id}/resize.
func (s *Server) execResize(w http.ResponseWriter, r *http.Request) error {
	rows, cols, err := terminalSize(r)
	if err != nil {
		return err
	}
	if err := s.Containers.ExecResize(r.Context(), r.PathValue("id"), rows, cols); err != nil {
		return err
	}
	w.WriteHeader(http.StatusOK)
	return nil
}
