package main

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"time"

	"vch/test/measure"
)

// daemon is the vch serve that is measured. It is asked over its socket, as the docker CLI does it.
type daemon struct {
	measure.Daemon
	profiles *http.Client // of a vch that gives profiles
}

// apiVersion is that of the requests.
const apiVersion = "v1.45"

// image is the name of the image that all containers have.
const image = "nothing"

// newDaemon has all that a daemon on v needs; dir is short: a socket's path has 107 bytes.
func newDaemon(vch, dir string, v *vcenter) (*daemon, error) {
	l, err := net.Listen("tcp", "127.0.0.1:0") // a port for guests that is free, and the same after a restart
	if err != nil {
		return nil, err
	}
	port := l.Addr().String()
	if err := l.Close(); err != nil {
		return nil, err
	}
	password := filepath.Join(dir, "password")
	if err := os.WriteFile(password, []byte(v.Password), 0o600); err != nil {
		return nil, err
	}
	at := "ds://" + datastore + "/vch"
	profiles := filepath.Join(dir, pprofSocket)
	return &daemon{measure.Daemon{VCH: vch, Dir: dir, Limit: startLimit, Env: []string{"VCBENCH_PPROF=" + profiles},
		Args: []string{"--target", v.URL, "--user", v.User, "--password-file", password, "--thumbprint", v.Thumbprint, "--network", "VM Network",
			"--guest-listen", port, "--guest-address", "127.0.0.1", "--image-store", at, "--volume-store", at + "/store:default"}}, measure.Over(profiles)}, nil
}

// startLimit is how long a daemon has that finds 10,000 volumes.
const startLimit = 30 * time.Minute

// call does a request; body and into may be nil.
func (d *daemon) call(ctx context.Context, method, path string, body, into any) error {
	var r io.Reader
	kind := "application/json"
	switch b := body.(type) {
	case nil:
	case []byte:
		r, kind = bytes.NewReader(b), "application/x-tar"
	default:
		text, err := json.Marshal(b)
		if err != nil {
			return err
		}
		r = bytes.NewReader(text)
	}
	req, err := http.NewRequestWithContext(ctx, method, "http://vch/"+apiVersion+path, r)
	if err != nil {
		return err
	}
	req.Header.Set("Content-Type", kind)
	res, err := d.HTTP.Do(req)
	if err != nil {
		return err
	}
	defer res.Body.Close()
	text, err := io.ReadAll(res.Body)
	if err != nil {
		return err
	}
	if res.StatusCode/100 != 2 && res.StatusCode != http.StatusNotModified {
		return fmt.Errorf("%s %s: %s: %s", method, path, res.Status, bytes.TrimSpace(text))
	}
	if into == nil || len(text) == 0 {
		return nil
	}
	return json.Unmarshal(text, into)
}

// importImage makes the image: a file, which never runs.
func (d *daemon) importImage(ctx context.Context) error {
	layer, err := measure.Layer([]byte("this never runs\n"))
	if err != nil {
		return err
	}
	return d.call(ctx, http.MethodPost, "/images/create?fromSrc=-&repo="+image+"&tag=latest", layer, nil)
}

// container is what a create asks for.
type container struct {
	Image      string
	Cmd        []string
	HostConfig hostConfig
}

type hostConfig struct {
	Binds      []string `json:",omitempty"`
	AutoRemove bool
}

// create is docker create.
func (d *daemon) create(ctx context.Context, name string, c container) (id string, err error) {
	c.Image = image
	if c.Cmd == nil {
		c.Cmd = []string{"/load"}
	}
	var made struct{ ID string }
	err = d.call(ctx, http.MethodPost, "/containers/create?name="+name, c, &made)
	return made.ID, err
}

// begin is docker start.
func (d *daemon) begin(ctx context.Context, id string) error {
	return d.call(ctx, http.MethodPost, "/containers/"+id+"/start", nil, nil)
}

// kill is docker kill, and waits until it is off.
func (d *daemon) kill(ctx context.Context, id string) error {
	if err := d.call(ctx, http.MethodPost, "/containers/"+id+"/kill", nil, nil); err != nil {
		return err
	}
	return d.call(ctx, http.MethodPost, "/containers/"+id+"/wait?condition=not-running", nil, nil)
}

// remove is docker rm, with the flags that query has.
func (d *daemon) remove(ctx context.Context, id, query string) error {
	return d.call(ctx, http.MethodDelete, "/containers/"+id+query, nil, nil)
}

// run is docker run --rm, as the CLI does it: its wait is asked for before the start.
func (d *daemon) run(ctx context.Context, binds ...string) error {
	id, err := d.create(ctx, "", container{Cmd: []string{"/load", exitWord}, HostConfig: hostConfig{Binds: binds, AutoRemove: true}})
	if err != nil {
		return err
	}
	gone := make(chan error, 1)
	go func() {
		gone <- d.call(ctx, http.MethodPost, "/containers/"+id+"/wait?condition=removed", nil, nil)
	}()
	if err := d.begin(ctx, id); err != nil {
		return err
	}
	return <-gone
}

// volume is docker volume create.
func (d *daemon) volume(ctx context.Context, name string) error {
	return d.call(ctx, http.MethodPost, "/volumes/create", map[string]string{"Name": name}, nil)
}

// noVolume is docker volume rm.
func (d *daemon) noVolume(ctx context.Context, name string) error {
	return d.call(ctx, http.MethodDelete, "/volumes/"+name, nil, nil)
}

// containers is docker ps -a: how many there are, and how many of them run.
func (d *daemon) containers(ctx context.Context) (all, running int, err error) {
	var list []struct{ State string }
	err = d.call(ctx, http.MethodGet, "/containers/json?all=1", nil, &list)
	for _, c := range list {
		if c.State == "running" {
			running++
		}
	}
	return len(list), running, err
}

// volumes is docker volume ls: how many there are.
func (d *daemon) volumes(ctx context.Context) (int, error) {
	var list struct{ Volumes []struct{ Name string } }
	err := d.call(ctx, http.MethodGet, "/volumes", nil, &list)
	return len(list.Volumes), err
}

// used is what a process has used so far.
type used struct {
	cpu time.Duration
	rss int64 // bytes, now
}

// usedBy reads /proc/PID/stat (proc_pid_stat(5): utime, stime, rss in pages).
func usedBy(pid int) (u used, err error) {
	text, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
	if err != nil {
		return u, err
	}
	return usedOf(string(text))
}

// ticks are those of a second in /proc/PID/stat: USER_HZ, which is 100 on every architecture that vch has.
const ticks = 100

func usedOf(stat string) (u used, err error) {
	_, rest, _ := strings.Cut(stat[strings.LastIndex(stat, ")")+1:], " ")
	fields := strings.Fields(rest) // the first is the third of the line
	if len(fields) < 22 {
		return u, fmt.Errorf("no line of /proc/PID/stat: %q", stat)
	}
	var n [3]int64
	for i, f := range []int{14 - 3, 15 - 3, 24 - 3} {
		if n[i], err = strconv.ParseInt(fields[f], 10, 64); err != nil {
			return u, err
		}
	}
	return used{time.Duration(n[0]+n[1]) * time.Second / ticks, n[2] * int64(os.Getpagesize())}, nil
}
