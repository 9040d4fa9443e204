package nfs

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strconv"
	"time"

	"vch/internal/fault"
	"vch/internal/nfsclient"
	"vch/portlayer"
)

// do makes a call to the export, in the time that the server has for what is small. A call that changes nothing is made again where the connection broke.
func (s *Store) do(ctx context.Context, changes bool, call func(ctx context.Context, e Export) error) error {
	if err := ctx.Err(); err != nil {
		return err
	}
	e, err := s.reached()
	if err != nil {
		return err
	}
	limited, cancel := context.WithTimeout(ctx, s.o.Timeout)
	defer cancel()
	err = call(limited, e)
	if r, ok := nfsclient.ReasonOf(err); ok && r == nfsclient.Lost && !changes {
		err = call(limited, e)
	}
	switch r, ok := nfsclient.ReasonOf(err); {
	case err == nil || !ok:
		return err
	case ctx.Err() != nil:
		return ctx.Err()
	case isAway(r):
		return s.degrade(s.explain(err))
	}
	return err
}

// isAway says whether a reason is one for which no call can be answered.
func isAway(r nfsclient.Reason) bool {
	return slices.Contains([]nfsclient.Reason{
		nfsclient.Unresolved, nfsclient.Refused, nfsclient.Silent, nfsclient.Unreachable, nfsclient.Lost, nfsclient.Busy, nfsclient.NoPortmapper, nfsclient.NoMountd,
		nfsclient.NoVersion, nfsclient.NoExport, nfsclient.InsecurePort, nfsclient.Stale, nfsclient.Protocol,
	}, r)
}

// reached is the export of a store that is not degraded.
func (s *Store) reached() (Export, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.why != "" {
		return nil, s.degraded(s.why)
	}
	if s.export == nil {
		return nil, s.degraded("its server was not asked yet")
	}
	return s.export, nil
}

func (s *Store) degraded(why string) error {
	return fault.New(fault.Unavailable, "volume store %s is degraded: %s", s.o.Name, why)
}

// degrade puts down why the store cannot be used, and has somebody look whether it can again.
func (s *Store) degrade(why string) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.why == "" {
		s.o.Log.Warn("volume store is degraded", "store", string(s.o.Name), "why", why)
	}
	s.why = why
	s.tend()
	return s.degraded(why)
}

// tend has what is the matter looked after in the background, until nothing is. s.mu is held.
func (s *Store) tend() {
	if s.tending || s.ctx.Err() != nil {
		return
	}
	s.tending = true
	s.work.Go(func() {
		wait := time.NewTimer(again)
		defer wait.Stop()
		for {
			select {
			case <-wait.C:
			case <-s.ctx.Done():
				return
			}
			if s.look(s.ctx) == nil {
				s.sweep()
			}
			s.mu.Lock()
			if s.why == "" && (s.sweeping != nil || !s.left && len(s.halfMade) == 0) { // a sweep that fails has the store tended again
				s.tending = false
				s.mu.Unlock()
				return
			}
			s.mu.Unlock()
			wait.Reset(again)
		}
	})
}

// look asks the server how it is, and puts that down. The first look that goes well makes the export ready.
func (s *Store) look(ctx context.Context) error {
	unlock, err := s.looking.Lock(ctx, struct{}{})
	if err != nil {
		return err
	}
	defer unlock()
	limited, cancel := context.WithTimeout(ctx, min(probeLimit, s.o.Timeout))
	defer cancel()
	err = s.prepare(limited)
	if err == nil {
		var a nfsclient.Attr
		a, err = s.export.Stat(limited, metadataDir)
		switch r, _ := nfsclient.ReasonOf(err); {
		case err == nil && a.Type != nfsclient.Dir, r == nfsclient.NotFound, r == nfsclient.NotDir:
			err = fault.New(fault.Unavailable, "%s on server %s has no directory %s any more: is the file system that belongs there mounted on the server?", s.o.Location.Path, s.o.Location.Host, metadataDir)
		}
	}
	if err != nil {
		if ctx.Err() != nil {
			return ctx.Err()
		}
		return s.degrade(s.explain(err))
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.why != "" {
		s.o.Log.Info("volume store can be used again", "store", string(s.o.Name))
	}
	s.why = ""
	return nil
}

// lookAgain is look for who asks a store that may be known to be degraded: he is not kept for what is known already.
func (s *Store) lookAgain(ctx context.Context) error {
	if _, err := s.reached(); err == nil || s.ctx.Err() != nil {
		return s.look(ctx)
	}
	seen := make(chan error, 1)
	s.work.Go(func() { seen <- s.look(s.ctx) })
	late := time.NewTimer(glance)
	defer late.Stop()
	select {
	case err := <-seen:
		return err
	case <-late.C:
	case <-ctx.Done():
		return ctx.Err()
	}
	_, err := s.reached()
	return err
}

// Status is portlayer.VolumeStore.Status.
func (s *Store) Status(ctx context.Context) portlayer.StoreStatus {
	if err := s.lookAgain(ctx); err != nil {
		s.mu.Lock()
		defer s.mu.Unlock()
		if s.why == "" { // who asks has gone
			return portlayer.StoreStatus{Degraded: err.Error()}
		}
		return portlayer.StoreStatus{Degraded: s.why}
	}
	return s.room(ctx)
}

// room is Status of a store that answered just now.
func (s *Store) room(ctx context.Context) (status portlayer.StoreStatus) {
	err := s.do(ctx, false, func(ctx context.Context, e Export) error {
		total, free, err := e.Space(ctx)
		status = portlayer.StoreStatus{Total: portlayer.Bytes(total), Free: portlayer.Bytes(free)}
		return err
	})
	if err != nil {
		status.Degraded = s.explain(err)
	}
	return status
}

// explain says what an error of the export means, and what to do about it.
func (s *Store) explain(err error) string {
	l := s.o.Location
	var e *nfsclient.Error
	if !errors.As(err, &e) {
		return err.Error()
	}
	at := "port " + strconv.Itoa(l.Port)
	switch e.Reason {
	case nfsclient.Unresolved:
		return fmt.Sprintf("the name of its server, %s, has no address: correct it, or see this host's DNS (%v)", l.Host, e)
	case nfsclient.Refused:
		return fmt.Sprintf("server %s refuses connections at %s: see that its NFS service runs, or name the port: nfs://%s:PORT%s (%v)", l.Host, at, l.Host, l.Path, e)
	case nfsclient.Silent:
		return fmt.Sprintf("server %s does not answer at %s: it is down or overloaded, or a firewall on the way drops what is sent (%v)", l.Host, at, e)
	case nfsclient.Unreachable:
		return fmt.Sprintf("there is no way to server %s: see this host's routes, and the server's network (%v)", l.Host, e)
	case nfsclient.Lost:
		return fmt.Sprintf("the connection to server %s broke: it restarts, or a firewall cuts connections (%v)", l.Host, e)
	case nfsclient.Busy:
		return fmt.Sprintf("server %s asks to wait: it is in its grace period after a restart, or overloaded (%v)", l.Host, e)
	case nfsclient.NoPortmapper:
		return fmt.Sprintf("server %s has no portmapper at port 111, which would say where its mountd is: start rpcbind there, or say mountport=PORT (%v)", l.Host, e)
	case nfsclient.NoMountd:
		return fmt.Sprintf("server %s has no mountd, without which there is no version 3: start it there, say its port by mountport=PORT, or use vers=4 (%v)", l.Host, e)
	case nfsclient.NoVersion:
		other := "4"
		if l.Options.Vers != V3 {
			other = "3"
		}
		return fmt.Sprintf("server %s does not speak NFS version %s: enable it there, or say vers=%s (%v)", l.Host, l.Options.Vers, other, e)
	case nfsclient.NoExport:
		insecure := ""
		if !e.Reserved { // some servers hide what they give to such ports only
			insecure = " (with the option insecure, for vch did not come from a reserved port, which takes root or CAP_NET_BIND_SERVICE)"
		}
		return fmt.Sprintf("server %s does not export %s to this host: export it there%s, or correct the path, which version 4 counts from the server's pseudo-root and version 3 from the root of its files (%v)", l.Host, l.Path, insecure, e)
	case nfsclient.InsecurePort:
		return fmt.Sprintf("server %s refuses this host at %s, and vch did not come from a reserved port, which takes root or CAP_NET_BIND_SERVICE: export it to this host with the option insecure, or give vch that right (%v)", l.Host, l.Path, e)
	case nfsclient.Denied:
		return fmt.Sprintf("server %s denies user %d of group %d what is needed at %s: export it to this host with no_root_squash, or give the store the uid and gid of the directory's owner (%v)", l.Host, l.Options.UID, l.Options.GID, l.Path, e)
	case nfsclient.ReadOnly:
		return fmt.Sprintf("server %s exports %s read-only: export it with rw, or give the store the option ro (%v)", l.Host, l.Path, e)
	case nfsclient.Stale:
		return fmt.Sprintf("server %s has forgotten %s, as after the file system behind it was changed: export it anew there (%v)", l.Host, l.Path, e)
	case nfsclient.Full:
		return fmt.Sprintf("there is no space left on server %s at %s, or the quota of user %d is used up: make room there, or raise the quota (%v)", l.Host, l.Path, l.Options.UID, e)
	case nfsclient.Protocol:
		return fmt.Sprintf("what answers on %s at %s does not speak NFS: correct the port (%v)", l.Host, at, e)
	}
	return fmt.Sprintf("server %s: %v", l.Host, e)
}

// said is err as a user is to hear it, of its kind.
func (s *Store) said(err error) error {
	if _, ok := nfsclient.ReasonOf(err); !ok {
		return err
	}
	return fault.New(fault.KindOf(err), "%s", s.explain(err))
}
