package main

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"net/http/pprof"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"sync"
	"syscall"
	"time"

	"vch/hypervisor/vsphere/vcsim"
	"vch/internal/pause"
)

// datastore is the simulated vCenter's one.
const datastore = "datastore1"

// told is what a simulated vCenter says when it serves.
type told struct{ URL, User, Password, Thumbprint, Control string }

// serveSim is the process that the simulated vCenter is: its memory and processor time are not the daemon's. Beside the vCenter it serves what a bench wants to know.
func serveSim(ctx context.Context, dir string) error {
	var mu sync.Mutex
	var calls []call
	s, err := vcsim.Start(vcsim.Options{Dir: dir, Datastores: []string{datastore}, Machines: hollow{}, Log: slog.New(slog.NewTextHandler(os.Stderr, nil)),
		Called: func(name string, arrived, answered time.Time) {
			mu.Lock()
			defer mu.Unlock()
			calls = append(calls, call{name, arrived, answered})
		}})
	if err != nil {
		return err
	}
	defer s.Close()
	mux := http.NewServeMux()
	mux.HandleFunc("/calls", func(w http.ResponseWriter, _ *http.Request) {
		mu.Lock()
		all := calls
		calls = nil
		mu.Unlock()
		_ = json.NewEncoder(w).Encode(all)
	})
	mux.HandleFunc("/latency", func(w http.ResponseWriter, r *http.Request) {
		d, err := time.ParseDuration(r.FormValue("d"))
		if err != nil {
			http.Error(w, err.Error(), http.StatusBadRequest)
			return
		}
		s.SetLatency(d)
		for _, method := range []string{"GET", "PUT", "HEAD"} {
			s.Delay(method+" /folder", d)
		}
	})
	mux.HandleFunc("/debug/pprof/", pprof.Index)
	mux.HandleFunc("/debug/pprof/profile", pprof.Profile)
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return err
	}
	control := &http.Server{Handler: mux}
	go func() { _ = control.Serve(l) }()
	defer control.Close()
	password, _ := s.User().Password()
	if err := json.NewEncoder(os.Stdout).Encode(told{s.URL().String(), s.User().Username(), password, s.Thumbprint(), "http://" + l.Addr().String()}); err != nil {
		return err
	}
	<-ctx.Done()
	return s.Close()
}

// vcenter is a simulated vCenter that runs as another process.
type vcenter struct {
	told
	dir string
	cmd *exec.Cmd
}

// startSim starts one in dir, which has its files.
func startSim(dir string) (*vcenter, error) {
	self, err := os.Executable()
	if err != nil {
		return nil, err
	}
	v := &vcenter{dir: dir, cmd: exec.Command(self, "-sim", dir)}
	v.cmd.Stderr = os.Stderr
	v.cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true} // a Ctrl-C is for this program
	out, err := v.cmd.StdoutPipe()
	if err == nil {
		err = v.cmd.Start()
	}
	if err != nil {
		return nil, err
	}
	line, err := bufio.NewReader(out).ReadBytes('\n')
	if err == nil {
		err = json.Unmarshal(line, &v.told)
	}
	if err != nil {
		return nil, errors.Join(fmt.Errorf("the simulated vCenter says %q: %w", line, err), v.end())
	}
	return v, nil
}

func (v *vcenter) end() error {
	if err := v.cmd.Process.Signal(syscall.SIGTERM); err != nil {
		return err
	}
	return v.cmd.Wait()
}

// path is a local file of the datastore.
func (v *vcenter) path(elem ...string) string {
	return filepath.Join(append([]string{v.dir, datastore}, elem...)...)
}

func (v *vcenter) ask(ctx context.Context, what string, into any) error {
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, v.Control+what, nil)
	if err != nil {
		return err
	}
	res, err := http.DefaultClient.Do(req)
	if err != nil {
		return err
	}
	defer res.Body.Close()
	text, err := io.ReadAll(res.Body)
	if err == nil && res.StatusCode != http.StatusOK {
		err = fmt.Errorf("%s: %s: %s", what, res.Status, text)
	}
	if err != nil || into == nil {
		return err
	}
	return json.Unmarshal(text, into)
}

// latency gives every call one from now on.
func (v *vcenter) latency(ctx context.Context, d time.Duration) error {
	return v.ask(ctx, "/latency?d="+d.String(), nil)
}

// calls gives what was answered since it was asked last.
func (v *vcenter) calls(ctx context.Context) (all []call, err error) {
	err = v.ask(ctx, "/calls", &all)
	return all, err
}

// settled waits until nobody has called for a while, and gives what was answered since calls was asked last.
func (v *vcenter) settled(ctx context.Context) (all []call, err error) {
	const quiet = 300 * time.Millisecond
	for last := time.Now(); time.Since(last) < quiet; {
		if err := pause.For(ctx, quiet/6); err != nil {
			return all, err
		}
		more, err := v.calls(ctx)
		if err != nil {
			return all, err
		}
		if count(more).asked() > 0 {
			last = time.Now()
		}
		all = append(all, more...)
	}
	return all, nil
}

// simulate is this program as the simulated vCenter.
func simulate(dir string) error {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	return serveSim(ctx, dir)
}
