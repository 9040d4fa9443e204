package exec

import (
	"bufio"
	"context"
	"errors"
	"io"
	"strings"
	"time"

	"vch/guest"
	"vch/internal/compression"
	"vch/internal/fault"
	"vch/portlayer"
)

// Service implements portlayer.Content, too: a volume's file system is reached in the machine of whoever has the volume, or in a utility machine.

const (
	// freezeLimit is how long a volume stands still at most; a copy that takes longer is not taken.
	freezeLimit = time.Minute
	// roomLimit is how long an inspect waits for a guest to say how full a volume is.
	roomLimit = 2 * time.Second
	// volumeTarget is where a utility machine mounts the volume that it is for.
	volumeTarget = "/volume"
)

// Freeze is portlayer.Content.Freeze.
func (s *Service) Freeze(ctx context.Context, c portlayer.ContainerID, vol portlayer.Volume) (thaw func() error, err error) {
	u := s.unitOf(c)
	if u == nil {
		return nil, fault.New(fault.InUse, "volume %s is being worked on by a utility machine; try again when that is done", vol.Ref())
	}
	unlock, err := s.frozen.Lock(ctx, vol.Label)
	if err != nil {
		return nil, err
	}
	client, leave, err := u.guest(ctx)
	if err != nil {
		unlock()
		return nil, fault.Wrap("hold still the volume of container", u.snapshot().container.Spec.Name, err)
	}
	if err := client.Freeze(ctx, vol.Source, freezeLimit); err != nil {
		leave()
		unlock()
		return nil, fault.Wrap("hold still the volume of container", u.snapshot().container.Spec.Name, err)
	}
	return func() error {
		defer unlock()
		defer leave()
		ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), talkLimit)
		defer cancel()
		if err := client.Thaw(ctx, vol.Source); err != nil {
			return fault.New(fault.KindOf(err), "the volume was written to meanwhile: container %s has ended, or the copy took longer than %v, which is how long a container waits; stop the container, and try again: %w",
				u.snapshot().container.Spec.Name, freezeLimit, err)
		}
		return nil
	}, nil
}

// guest is the guest of a machine that is on for the container, to run it or to serve its files; leave lets go of it.
func (u *unit) guest(ctx context.Context) (client *guest.Client, leave func(), err error) {
	if r := u.snapshot().run; r != nil {
		client, err = r.talk(ctx)
		if fault.Is(err, fault.Conflict) { // it does not run
			err = fault.New(fault.Unavailable, "container %s is just ending; try again", u.snapshot().container.Spec.Name)
		}
		return client, func() {}, err
	}
	if v := u.serving.Load(); v != nil && v.enter() {
		return v.client, v.leave, nil
	}
	return nil, nil, fault.New(fault.Unavailable, "container %s has just ended; try again", u.snapshot().container.Spec.Name)
}

// holder finds a container whose machine has the volume: one that writes it, or, unless writable is asked for, one that reads it. reader is the name of one that only
// does that.
func (s *Service) holder(vol portlayer.VolumeID, writable bool) (found *unit, reader string) {
	for _, u := range s.all() {
		snap := u.snapshot()
		if snap.run == nil {
			continue
		}
		mounts := snap.container.Spec.Mounts
		for _, m := range mounts {
			switch {
			case m.Kind != portlayer.VolumeMount || m.ID() != vol:
			case !writable || writes(mounts, vol):
				return u, ""
			case !m.Shared:
				reader = snap.container.Spec.Name
			}
		}
	}
	return nil, reader
}

// inVolume has do work with a guest that has vol mounted, and with that guest's machine.
func (s *Service) inVolume(ctx context.Context, vol portlayer.Volume, writable bool, does string, do func(context.Context, *guest.Client, portlayer.Machine) error) error {
	u, reader := s.holder(vol.ID(), writable)
	switch {
	case u != nil:
		client, leave, err := u.guest(ctx)
		if err != nil {
			return err
		}
		defer leave()
		m, err := s.o.Hypervisor.Machine(ctx, u.snapshot().container.ID)
		if err != nil {
			return err
		}
		return do(ctx, client, m)
	case reader != "":
		return fault.New(fault.InUse, "container %s is running and has volume %s mounted read-only; stop it first", reader, vol.Ref())
	}
	return s.volumeMachine(ctx, vol, does, do)
}

// volumeMachine boots a machine that has a volume, and nothing else, for what do does. A crash leaves the machine, whose journal entry says what it was.
func (s *Service) volumeMachine(ctx context.Context, vol portlayer.Volume, does string, do func(context.Context, *guest.Client, portlayer.Machine) error) (err error) {
	id := portlayer.ContainerID(newID())
	mounts := []portlayer.Mount{{Kind: portlayer.VolumeMount, Volume: vol.Name, Store: vol.Store, Driver: vol.Driver, Qualified: vol.Qualified, Shared: vol.Shared, Target: volumeTarget, NoCopy: true}}
	if err := s.attach(ctx, id, "the utility machine that "+does, mounts); err != nil {
		return err
	}
	defer s.o.Binder.Detach(id)
	if err := s.step(id, entry{Op: opMend, Utility: id}, "volume.journal"); err != nil {
		return err
	}
	defer func() { // also when do failed: the machine is gone, or the entry stays for the next start
		ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), offLimit)
		defer cancel()
		if derr := s.dropMachine(ctx, id); derr != nil {
			err = errors.Join(err, derr)
			return
		}
		err = errors.Join(err, s.journal.Delete(string(id)))
	}()
	spec := portlayer.ContainerSpec{Hostname: "vch-utility", Memory: s.o.Memory, CPUs: 1e9, Mounts: mounts}
	h := &portlayer.Handle{Container: id, Spec: spec, Config: executorConfig(id, spec)}
	h.Config.Process, h.Config.Serve = nil, true
	if err := s.o.Binder.Join(ctx, h, mounts[0]); err != nil {
		return err
	}
	unlink, err := s.link(ctx, h, "the utility machine that "+does)
	if err != nil {
		return err
	}
	defer unlink()
	m, err := s.o.Hypervisor.Define(ctx, machineSpec(h))
	if err != nil {
		return err
	}
	client, err := s.boot(ctx, m)
	if err != nil {
		return err
	}
	defer client.Close()
	if err := s.wire(ctx, m, client); err != nil {
		return err
	}
	limited, cancel := context.WithTimeout(ctx, startLimit)
	defer cancel()
	if _, err := client.Configure(limited, atStart(h.Config, m)); err != nil {
		return err
	}
	s.wrote(ctx, mounts)
	if err := do(ctx, client, m); err != nil {
		return err
	}
	if err := s.o.Failpoints.Hit("volume.done"); err != nil {
		return err
	}
	if rooms, err := client.Rooms(limited); err == nil {
		s.keepRooms(rooms, time.Now().UTC())
	}
	if err := client.Shutdown(limited); err != nil {
		return err
	}
	return m.WaitOff(limited)
}

// Grow is portlayer.Content.Grow.
func (s *Service) Grow(ctx context.Context, vol portlayer.Volume) error {
	return s.inVolume(ctx, vol, true, "grows volume "+vol.Ref(), func(ctx context.Context, client *guest.Client, m portlayer.Machine) error {
		if err := m.Grown(ctx, string(vol.Label)); err != nil {
			return err
		}
		return client.Grow(ctx, vol.Source, int64(vol.Capacity))
	})
}

// Export is portlayer.Content.Export.
func (s *Service) Export(ctx context.Context, vol portlayer.Volume, w io.Writer) error {
	return s.inVolume(ctx, vol, false, "reads volume "+vol.Ref(), func(ctx context.Context, client *guest.Client, _ portlayer.Machine) error {
		_, err := client.Archive(ctx, guest.ArchiveRequest{Place: guest.Place{Source: vol.Source, Path: "/"}, Name: "."}, func(data []byte) error {
			_, err := w.Write(data)
			return err
		})
		return err
	})
}

// Import is portlayer.Content.Import.
func (s *Service) Import(ctx context.Context, id portlayer.VolumeID, maker string, make func() (portlayer.Volume, error), r io.Reader) error {
	sent := bufio.NewReader(r)
	if _, err := sent.Peek(1); err == io.EOF {
		return fault.New(fault.Invalid, "the archive is empty")
	}
	archive, err := compression.Plain(sent)
	if err != nil {
		return fault.New(fault.Invalid, "the archive cannot be read: %w", err)
	}
	defer archive.Close()
	if err := s.step(portlayer.ContainerID(maker), entry{Op: opImport, Named: []portlayer.VolumeID{id}}, "import.journal"); err != nil {
		return err
	}
	vol, err := make()
	if err != nil {
		return errors.Join(err, s.journal.Delete(maker))
	}
	if err := s.o.Failpoints.Hit("import.made"); err != nil {
		return err
	}
	if err := s.extract(ctx, vol, archive, sent); err != nil {
		return err // the entry stays: should the caller not come to remove the volume, the next start does
	}
	return s.journal.Delete(maker)
}

// extract fills a volume from an archive, which is what sent holds, uncompressed.
func (s *Service) extract(ctx context.Context, vol portlayer.Volume, archive, sent io.Reader) error {
	return s.inVolume(ctx, vol, true, "fills volume "+vol.Ref(), func(ctx context.Context, client *guest.Client, _ portlayer.Machine) error {
		if err := client.Extract(ctx, guest.ExtractRequest{Place: guest.Place{Source: vol.Source, Path: "/"}, Whole: true}, archive); err != nil {
			return err
		}
		_, err := io.Copy(io.Discard, sent) // what comes after the archive's end: its own end may be an error
		return err
	})
}

// Inside is portlayer.Content.Inside: what the guest of a container says that has the volume, or what the last one said at its end.
func (s *Service) Inside(ctx context.Context, vol portlayer.Volume) *portlayer.Inside {
	if u, _ := s.holder(vol.ID(), false); u != nil {
		if r := u.snapshot().run; r != nil && r.now() != nil {
			limited, cancel := context.WithTimeout(ctx, roomLimit)
			defer cancel()
			if rooms, err := r.now().Rooms(limited); err == nil {
				for _, room := range rooms {
					if room.Source == vol.Source {
						return &portlayer.Inside{Total: portlayer.Bytes(room.Total), Free: portlayer.Bytes(room.Free), Time: time.Now().UTC()}
					}
				}
			}
		}
	}
	kept, ok, err := s.rooms.Get(string(vol.Label))
	if err != nil || !ok || kept.Time.Before(vol.Created) { // of another volume, which had that identity before
		return nil
	}
	return &kept
}

// keepRooms records how full a machine left its volumes, and when. It is for whoever asks, and worth no more than a try.
func (s *Service) keepRooms(rooms []guest.Room, at time.Time) {
	for _, room := range rooms {
		inside := portlayer.Inside{Total: portlayer.Bytes(room.Total), Free: portlayer.Bytes(room.Free), Time: at}
		if err := s.rooms.Put(strings.TrimPrefix(room.Source, "label://"), inside); err != nil {
			s.o.Log.Warn("how full a volume is is not recorded", "volume", room.Source, "err", err)
		}
	}
}
