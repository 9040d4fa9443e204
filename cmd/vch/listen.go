package main

import (
	"context"
	"crypto/tls"
	"errors"
	"io/fs"
	"log/slog"
	"net"
	"net/http"
	"os"
	"os/user"
	"path/filepath"
	"strconv"
	"syscall"

	"golang.org/x/sys/unix"

	"vch/internal/fault"
)

// socketGroup may use the socket beside its owner, where root serves: the group that Docker's own packages make.
const socketGroup = "docker"

// answer serves handler at the addresses until ctx ends; TCP with TLS, if secure is not nil.
func answer(ctx context.Context, at []address, secure *tls.Config, handler http.Handler, log *slog.Logger) error {
	srv := newServer(handler, log)
	var listeners []net.Listener
	var err error
	for _, a := range at {
		var l net.Listener
		if a.Network == "unix" {
			l, err = listen(ctx, a.At)
		} else {
			l, err = listenTCP(ctx, a, secure)
		}
		if err != nil {
			break
		}
		listeners = append(listeners, l)
	}
	if err != nil {
		for _, l := range listeners {
			err = errors.Join(err, l.Close())
		}
		return err
	}
	ended := make(chan error, len(listeners))
	for i, l := range listeners {
		go func() { ended <- srv.serve(l) }()
		attrs := []any{"address", at[i].Network + "://" + l.Addr().String()}
		if at[i].Network == "tcp" {
			attrs = append(attrs, "tls", secure != nil)
		}
		log.Info("listening", attrs...)
		if at[i].Network == "tcp" && secure == nil {
			log.Warn("whoever reaches this address can do everything that this daemon can", "address", at[i].String())
		}
	}
	waits := len(listeners)
	select {
	case <-ctx.Done():
		log.Info("stopping: containers go on")
	case err = <-ended:
		waits--
	}
	err = errors.Join(err, srv.stop(stopLimit))
	for range waits {
		err = errors.Join(err, <-ended)
	}
	if err == nil {
		log.Info("stopped")
	}
	return err
}

// listenTCP listens at a; with TLS, if secure is not nil.
func listenTCP(ctx context.Context, a address, secure *tls.Config) (net.Listener, error) {
	var config net.ListenConfig
	l, err := config.Listen(ctx, "tcp", a.At)
	switch {
	case errors.Is(err, syscall.EADDRINUSE):
		return nil, fault.New(fault.InUse, "cannot listen at %s: another program does; choose another port with --listen", a)
	case err != nil:
		return nil, fault.New(fault.Denied, "cannot listen at %s: %w; choose another address with --listen", a, err)
	}
	if secure != nil {
		l = tls.NewListener(l, secure)
	}
	return l, nil
}

// listen makes the socket path, which nobody but its owner, or the group docker where root serves, can connect to at any moment.
func listen(ctx context.Context, path string) (net.Listener, error) {
	stale, err := lookAtSocket(path)
	if err != nil {
		return nil, err
	}
	if stale {
		if err := os.Remove(path); err != nil && !errors.Is(err, fs.ErrNotExist) {
			return nil, fault.New(fault.Denied, "cannot remove the socket of a daemon that has died: %w; choose another with --listen", err)
		}
	}
	config := net.ListenConfig{Control: func(_, _ string, c syscall.RawConn) error {
		// The mode that a socket has before bind is the mode that its file is made with (net/unix/af_unix.c, unix_bind_bsd).
		var chmod error
		err := c.Control(func(fd uintptr) { chmod = unix.Fchmod(int(fd), 0o600) })
		return errors.Join(err, chmod)
	}}
	l, err := config.Listen(ctx, "unix", path)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, fault.New(fault.NotFound, "cannot listen at %s: there is no directory %s; make it, or choose another with --listen", path, filepath.Dir(path))
	}
	if err != nil {
		return nil, fault.New(fault.Denied, "cannot listen: %w; choose another with --listen", err)
	}
	if err := share(path); err != nil {
		return nil, errors.Join(fault.New(fault.Denied, "cannot set who may use %s: %w", path, err), l.Close())
	}
	return l, nil
}

// share lets the group of the socket at path use it: docker, if there is such a group and this is root, otherwise the user's own.
func share(path string) error {
	if os.Geteuid() == 0 {
		if group, err := user.LookupGroup(socketGroup); err == nil {
			gid, err := strconv.Atoi(group.Gid)
			if err != nil {
				return err
			}
			if err := os.Chown(path, -1, gid); err != nil {
				return err
			}
		}
	}
	return os.Chmod(path, 0o660)
}
