package main

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/url"
	"strings"
	"time"

	"vch/machine"
)

// endpoint speaks Docker's API to the daemon of one VCH, by the socket that every VCH has.
type endpoint struct{ socket string }

// askLimit is how long a daemon may take to say how it is.
const askLimit = 5 * time.Second

// call makes one request; answer nil: what comes is not read.
func (e endpoint) call(ctx context.Context, method, path string, answer any) error {
	transport := &http.Transport{DisableKeepAlives: true, DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
		var d net.Dialer
		return d.DialContext(ctx, "unix", e.socket)
	}}
	req, err := http.NewRequestWithContext(ctx, method, "http://vch"+path, nil)
	if err != nil {
		return err
	}
	resp, err := (&http.Client{Transport: transport}).Do(req)
	if err != nil {
		var op *net.OpError
		if errors.As(err, &op) {
			return fmt.Errorf("no daemon answers at %s: %w", e.socket, op.Err)
		}
		return err
	}
	defer resp.Body.Close()
	text, err := io.ReadAll(io.LimitReader(resp.Body, 64<<20))
	if err != nil {
		return err
	}
	if resp.StatusCode >= 400 {
		var said struct {
			Message string `json:"message"`
		}
		if json.Unmarshal(text, &said) != nil || said.Message == "" {
			said.Message = strings.TrimSpace(string(text))
		}
		return refusal{resp.StatusCode, said.Message}
	}
	if answer == nil {
		return nil
	}
	return json.NewDecoder(bytes.NewReader(text)).Decode(answer)
}

// refusal is an error that the daemon answered.
type refusal struct {
	status int
	text   string
}

func (r refusal) Error() string { return r.text }

func refusedWith(err error, status int) bool {
	var r refusal
	return errors.As(err, &r) && r.status == status
}

// daemonInfo is of /info what is shown of a VCH.
type daemonInfo struct {
	ID, Name, ServerVersion, OperatingSystem, KernelVersion                    string
	Containers, ContainersRunning, ContainersPaused, ContainersStopped, Images int
	DriverStatus                                                               [][2]string
	Warnings                                                                   []string
}

func (e endpoint) ping(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, askLimit)
	defer cancel()
	return e.call(ctx, http.MethodGet, "/_ping", nil)
}

func (e endpoint) info(ctx context.Context) (info daemonInfo, err error) {
	ctx, cancel := context.WithTimeout(ctx, askLimit)
	defer cancel()
	return info, e.call(ctx, http.MethodGet, "/info", &info)
}

// daemonContainer is of the list of containers what is needed here. Commands, labels and environments are nobody's business: they may hold secrets.
type daemonContainer struct {
	ID      string `json:"Id"`
	Names   []string
	Image   string
	Created int64
	State   string
	Status  string
	Mounts  []struct{ Type, Name, Destination string }
}

func (c daemonContainer) noun() machine.Container {
	m := machine.Container{ID: c.ID}
	if len(c.Names) > 0 {
		m.Name = strings.TrimPrefix(c.Names[0], "/")
	}
	return m
}

func (e endpoint) containers(ctx context.Context) (all []daemonContainer, err error) {
	ctx, cancel := context.WithTimeout(ctx, askLimit)
	defer cancel()
	return all, e.call(ctx, http.MethodGet, "/containers/json?all=1", &all)
}

// volumes are those that the daemon lists, with their stores; warnings tell of stores that are away.
func (e endpoint) volumes(ctx context.Context, stores []storePlace) (all []machine.Volume, warnings []string, err error) {
	ctx, cancel := context.WithTimeout(ctx, 2*askLimit)
	defer cancel()
	var list struct {
		Volumes  []struct{ Name, Driver, Mountpoint string }
		Warnings []string
	}
	if err := e.call(ctx, http.MethodGet, "/volumes", &list); err != nil {
		return nil, nil, err
	}
	for _, v := range list.Volumes {
		name, store, _ := strings.Cut(v.Name, "@")
		for _, s := range stores {
			if s.NFS == nil && within(volumesDir(s.Path), v.Mountpoint) {
				store = string(s.Name)
			}
		}
		if store == "" {
			var one struct{ Status struct{ Store string } }
			if err := e.call(ctx, http.MethodGet, "/volumes/"+url.PathEscape(v.Name), &one); err != nil && !refusedWith(err, http.StatusNotFound) {
				return nil, nil, err
			}
			store = one.Status.Store
		}
		all = append(all, machine.Volume{Name: name, Store: store, Where: v.Mountpoint})
	}
	return all, list.Warnings, nil
}

// removeContainer ends and removes one; its volumes stay. One that is not there is removed.
func (e endpoint) removeContainer(ctx context.Context, id string) error {
	err := e.call(ctx, http.MethodDelete, "/containers/"+id+"?force=1", nil)
	if refusedWith(err, http.StatusNotFound) {
		return nil
	}
	return err
}

// removeVolume deletes one, NAME@STORE. One that is not there is deleted.
func (e endpoint) removeVolume(ctx context.Context, ref string) error {
	err := e.call(ctx, http.MethodDelete, "/volumes/"+url.PathEscape(ref), nil)
	if refusedWith(err, http.StatusNotFound) {
		return nil
	}
	return err
}
