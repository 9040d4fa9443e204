package exec

import (
	"context"
	"errors"
	"os"

	"vch/internal/fault"
	"vch/portlayer"
	"vch/portlayer/record"
)

// entry is what the journal holds of a change that takes several steps, under the container's id. It is written before the first step and
// again before each that needs more to be undone; it goes when the change is whole.
//
//	create: no record yet -> take back: own machine, utility machine, anonymous volumes that this create made
//	        record there  -> it was whole; only the entry is left over (since both are one write: an earlier vch's)
//	remove: finish it
//	import: remove the volume that it was making, which is not whole; under the volume's maker
//	mend:   drop the utility machine; under the machine's id
//	change: drop the utility machine; of a container that runs: on record -> it was whole
//	        otherwise -> machine and guest become what the record says (hotplug.go)
type entry struct {
	Op      string                `json:"op"`                // opCreate, opRemove, opMend, opChange, opImport
	Utility portlayer.ContainerID `json:"utility,omitempty"` // machine that populates or mends volumes
	Named   []portlayer.VolumeID  `json:"named,omitempty"`   // create: volumes that the user named; they stay. import: the one that it makes
	Orphans []portlayer.VolumeID  `json:"orphans,omitempty"` // remove: anonymous volumes to go with it
	Add     []portlayer.Mount     `json:"add,omitempty"`     // change: mounts that come
	Gone    []portlayer.Mount     `json:"gone,omitempty"`    // change: mounts that go
}

const (
	opCreate = "create"
	opRemove = "remove"
	opMend   = "mend"
	opImport = "import"
	opChange = "change"
)

// step journals e for id and then passes the fail point called name: the place where a crash test ends the process.
func (s *Service) step(id portlayer.ContainerID, e entry, name string) error {
	if err := s.journal.Put(string(id), e); err != nil {
		return err
	}
	return s.o.Failpoints.Hit(name)
}

// recover finishes or takes back every journaled change.
func (s *Service) recover(ctx context.Context) error {
	pending, err := s.journal.All()
	if err != nil {
		return err
	}
	for key, e := range pending {
		id := portlayer.ContainerID(key)
		c, exists, err := s.records.Get(key)
		if err != nil {
			return err
		}
		switch {
		case e.Op == opRemove:
			s.o.Log.Info("finishing an interrupted remove", "container", key)
			err = s.erase(ctx, id, e)
		case e.Op == opImport:
			s.o.Log.Info("taking back an interrupted import", "volume", e.Named)
			for _, vol := range e.Named {
				err = errors.Join(err, s.o.Binder.Unmake(ctx, vol, id))
			}
			if err != nil { // its store is away: the entry stays for a start that finds it
				s.o.Log.Warn("an interrupted import is not taken back yet", "volume", e.Named, "err", err)
				err = nil
				break
			}
			err = s.journal.Delete(key)
		case e.Op == opMend:
			err = errors.Join(s.dropMachine(ctx, e.Utility), s.journal.Delete(key))
		case e.Op == opChange && exists: // the rest is done when its machine is found again
			err = s.dropMachine(ctx, e.Utility)
		case e.Op == opChange:
			err = errors.Join(s.dropMachine(ctx, e.Utility), s.journal.Delete(key))
		case e.Op == opCreate && exists:
			s.o.Log.Info("interrupted create was whole", "container", key, "name", c.Spec.Name)
			err = errors.Join(s.dropMachine(ctx, e.Utility), s.journal.Delete(key))
		case e.Op == opCreate:
			s.o.Log.Info("taking back an interrupted create", "container", key)
			err = s.unCreate(ctx, id, e)
		default:
			err = fault.New(fault.Internal, "journal entry of container %s has unknown operation %q; was this state written by a newer vch?", key, e.Op)
		}
		if err != nil {
			return fault.Wrap(e.Op+" container", key, err)
		}
	}
	return nil
}

// unCreate takes back what a create may have done. Named volumes stay, as they do in Docker.
func (s *Service) unCreate(ctx context.Context, id portlayer.ContainerID, e entry) error {
	errs := []error{s.dropMachine(ctx, e.Utility), s.dropMachine(ctx, id), os.RemoveAll(s.containerDir(id))}
	s.release(id)
	keep := map[portlayer.VolumeID]bool{}
	for _, id := range e.Named {
		keep[id] = true
	}
	vols, _, err := s.o.Volumes.List(ctx)
	errs = append(errs, err)
	for _, v := range vols {
		if v.Maker == string(id) && !keep[v.ID()] && !keep[portlayer.VolumeID{Name: v.Name}] {
			errs = append(errs, s.o.Binder.Unmake(ctx, v.ID(), id))
		}
	}
	if err := errors.Join(errs...); err != nil {
		return err // the entry stays: the next start tries again
	}
	return s.journal.Delete(string(id))
}

// erase deletes a container for good: machine, log, record, anonymous volumes, in an order that a second call can finish.
func (s *Service) erase(ctx context.Context, id portlayer.ContainerID, e entry) error {
	if err := s.dropMachine(ctx, id); err != nil {
		return err
	}
	if err := s.o.Failpoints.Hit("remove.machine"); err != nil {
		return err
	}
	if err := os.RemoveAll(s.containerDir(id)); err != nil {
		return err
	}
	gone := []record.Change{s.records.Deleting(string(id))}
	if len(e.Orphans) == 0 { // nothing is left to do
		gone = append(gone, s.journal.Deleting(string(id)))
	}
	if err := s.o.DB.Do(gone...); err != nil {
		return err
	}
	if err := s.o.Failpoints.Hit("remove.record"); err != nil {
		return err
	}
	s.release(id)
	if len(e.Orphans) == 0 {
		return nil
	}
	var errs []error
	for _, orphan := range e.Orphans {
		errs = append(errs, s.o.Binder.Unmake(ctx, orphan, ""))
	}
	if err := errors.Join(errs...); err != nil {
		// The container is gone; a volume that cannot go now is the next start's work.
		s.o.Log.Warn("anonymous volumes stay until the next start", "container", string(id), "err", err)
		return nil
	}
	return s.journal.Delete(string(id))
}

// release forgets what a container refers to.
func (s *Service) release(id portlayer.ContainerID) {
	s.o.Binder.Release(id)
	if s.o.Wiring != nil {
		s.o.Wiring.Release(id)
	}
}

// dropMachine undefines a machine; one that is not there, or no id, is no error.
func (s *Service) dropMachine(ctx context.Context, id portlayer.ContainerID) error {
	if id == "" {
		return nil
	}
	m, err := s.o.Hypervisor.Machine(ctx, id)
	if fault.Is(err, fault.NotFound) {
		return nil
	}
	if err != nil {
		return err
	}
	return m.Undefine(ctx)
}
