package exec

import (
	"context"
	"path"
	"reflect"
	"slices"
	"strings"
	"time"

	"vch/guest"
	"vch/internal/fault"
	"vch/portlayer"
)

// A running container's volumes change in one way: a handle of it is committed (change), which compares it with what is recorded (planChange, pure) and
// has machine and guest do the difference. The journal has the difference from before the first step until the record says it. Whatever cuts a change off
// (an error, the daemon's end), there is one way back (settle): the machine and the guest become what the record says.

// changeLimit bounds a change: a copy-up of a large directory, or a machine that replays a journal, is in it.
const changeLimit = bootLimit + startLimit

// AttachVolume is portlayer.Containers.AttachVolume.
func (s *Service) AttachVolume(ctx context.Context, ref string, m portlayer.Mount) (portlayer.Mount, error) {
	u, err := s.find(ref)
	if err != nil {
		return m, err
	}
	err = u.alone(ctx, func() (err error) { m, err = u.attachVolume(m); return err })
	return m, err
}

// attachVolume reserves m's volume, and commits a handle that has m. Owner only. It does not stop because its client left.
func (u *unit) attachVolume(m portlayer.Mount) (_ portlayer.Mount, err error) {
	s, began := u.s, time.Now()
	ctx, cancel := context.WithTimeout(s.ctx, changeLimit)
	defer cancel()
	if err := u.changeable(ctx); err != nil {
		return m, err
	}
	switch {
	case m.Kind == portlayer.BindMount:
		return m, fault.New(fault.Unsupported, "host path %s cannot be mounted in a container that is there already: only volumes are attached; make another container", m.Source)
	case m.Kind != portlayer.VolumeMount || m.Volume == "":
		return m, fault.New(fault.Invalid, "say which volume is to be attached: VOLUME:/path")
	case !path.IsAbs(m.Target) || path.Clean(m.Target) != m.Target || m.Target == "/":
		return m, fault.New(fault.Invalid, "mount target %q is not an absolute, clean path below /", m.Target)
	}
	if err := covered([]portlayer.Mount{m}); err != nil {
		return m, err
	}
	if have := mountAt(u.c.Spec.Mounts, m.Target); have != nil {
		what := "a tmpfs"
		switch have.Kind {
		case portlayer.VolumeMount:
			what = "volume " + have.VolumeRef()
		case portlayer.BindMount:
			what = "host path " + have.Source
		}
		return m, fault.New(fault.Conflict, "container %s has %s mounted at %s already; detach that first, or choose another target", u.c.Spec.Name, what, m.Target)
	}
	if m, _, err = s.o.Binder.Reserve(ctx, u.c.ID, m); err != nil {
		return m, err
	}
	defer func() {
		if err == nil || u.pending != nil {
			return
		}
		u.letGo([]portlayer.Mount{m})
		u.forgetUtility()
	}()
	spec := u.c.Spec
	spec.Mounts = append(slices.Clone(spec.Mounts), m)
	slices.SortFunc(spec.Mounts, func(a, b portlayer.Mount) int { return strings.Compare(a.Target, b.Target) })
	if !writes(spec.Mounts, m.ID()) {
		e := entry{Op: opChange}
		if err := s.fill(ctx, u.c.ID, &e, u.c.Image, u.c.Spec.Name, []portlayer.Mount{m}); err != nil {
			return m, err
		}
	}
	h, err := s.draft(ctx, u.c.ID, u.c.Version, spec, u.c.Image)
	if err != nil {
		return m, err
	}
	if err := u.become(ctx, h); err != nil {
		return m, err
	}
	s.o.Log.Info("volume attached", "container", short(u.c.ID), "name", u.c.Spec.Name, "volume", m.VolumeRef(), "target", m.Target, "running", u.run != nil, "took", time.Since(began))
	return m, nil
}

// DetachVolume is portlayer.Containers.DetachVolume.
func (s *Service) DetachVolume(ctx context.Context, ref, target string) (m portlayer.Mount, err error) {
	u, err := s.find(ref)
	if err != nil {
		return m, err
	}
	err = u.alone(ctx, func() (err error) { m, err = u.detachVolume(path.Clean(target)); return err })
	return m, err
}

// detachVolume commits a handle that has nothing at target. Owner only.
func (u *unit) detachVolume(target string) (m portlayer.Mount, err error) {
	s, began := u.s, time.Now()
	ctx, cancel := context.WithTimeout(s.ctx, changeLimit)
	defer cancel()
	if err := u.changeable(ctx); err != nil {
		return m, err
	}
	have := mountAt(u.c.Spec.Mounts, target)
	switch {
	case have == nil:
		return m, fault.New(fault.NotFound, "container %s has no volume mounted at %s", u.c.Spec.Name, target)
	case have.Kind != portlayer.VolumeMount:
		what := "a tmpfs"
		if have.Kind == portlayer.BindMount {
			what = "host path " + have.Source
		}
		return m, fault.New(fault.Unsupported, "what container %s has mounted at %s is %s; only volumes are detached", u.c.Spec.Name, target, what)
	}
	m = *have
	spec := u.c.Spec
	spec.Mounts = slices.DeleteFunc(slices.Clone(spec.Mounts), func(o portlayer.Mount) bool { return o.Target == target })
	h, err := s.draft(ctx, u.c.ID, u.c.Version, spec, u.c.Image)
	if err != nil {
		return m, err
	}
	if err := u.become(ctx, h); err != nil {
		return m, err
	}
	s.o.Log.Info("volume detached", "container", short(u.c.ID), "name", u.c.Spec.Name, "volume", m.VolumeRef(), "target", m.Target, "running", u.run != nil, "took", time.Since(began))
	return m, nil
}

// changeable refuses a container that is on its way out, and ends an earlier change.
func (u *unit) changeable(ctx context.Context) error {
	if p := u.c.State.Phase; p == portlayer.Dead || p == portlayer.Removing {
		return fault.New(fault.Conflict, "container %s is marked for removal", u.c.Spec.Name)
	}
	return u.settle(ctx)
}

func mountAt(mounts []portlayer.Mount, target string) *portlayer.Mount {
	if i := slices.IndexFunc(mounts, func(m portlayer.Mount) bool { return m.Target == target }); i >= 0 {
		return &mounts[i]
	}
	return nil
}

// become makes the container what h says, running or not, and records it. Owner only.
func (u *unit) become(ctx context.Context, h *portlayer.Handle) error {
	if u.run != nil {
		return u.change(ctx, h)
	}
	if _, err := u.commit(ctx, h); err != nil {
		return err
	}
	was := u.c.Spec.Mounts
	if err := u.save(func(c *portlayer.Container) { c.Spec = h.Spec }); err != nil {
		return err
	}
	u.letGo(was)
	u.forgetUtility()
	return nil
}

// forgetUtility drops the journal's entry of a utility machine that filled a volume, which is gone.
func (u *unit) forgetUtility() {
	if err := u.s.journal.Delete(string(u.c.ID)); err != nil {
		u.s.o.Log.Warn("journal entry stays until the next start", "container", string(u.c.ID), "err", err)
	}
}

// change makes a running container what h says. Owner only.
func (u *unit) change(ctx context.Context, h *portlayer.Handle) (err error) {
	s := u.s
	if err := u.current(h); err != nil {
		return err
	}
	if err := u.settle(ctx); err != nil {
		return err
	}
	was, err := s.draft(ctx, u.c.ID, u.c.Version, u.c.Spec, u.c.Image)
	if err != nil {
		return err
	}
	p, err := planChange(was, h)
	if err != nil {
		return err
	}
	u.pending = &entry{Op: opChange, Add: p.add, Gone: p.remove}
	defer func() {
		if err == nil {
			return
		}
		ctx, cancel := context.WithTimeout(s.ctx, changeLimit)
		defer cancel()
		if serr := u.settle(ctx); serr != nil {
			s.o.Log.Error("change of a running container could not be taken back whole; the next change or start tries again", "container", string(u.c.ID), "err", serr)
		}
	}()
	if err := s.step(u.c.ID, *u.pending, "change.journal"); err != nil {
		return err
	}
	if err := u.takeOut(ctx, p); err != nil {
		return err
	}
	if err := u.putIn(ctx, p); err != nil {
		return err
	}
	if err := s.o.Failpoints.Hit("change.record"); err != nil {
		return err
	}
	if err := u.save(func(c *portlayer.Container) { c.Spec, c.State.Reaches = h.Spec, h.Reaches }); err != nil {
		return err
	}
	if s.o.Wiring != nil {
		if err := s.o.Wiring.Reach(u.c.ID, h.Reaches); err != nil { // what is unmounted may stay reached until the next change: no harm that would be worth taking back this one
			s.o.Log.Warn("a running container's link to the servers of its volumes is not yet what its volumes are", "container", short(u.c.ID), "name", u.c.Spec.Name, "err", err)
		}
	}
	_ = s.o.Failpoints.Hit("change.recorded") // only "exit" has a meaning here
	if err := u.settle(ctx); err != nil {     // it is recorded: only the entry goes
		s.o.Log.Warn("journal entry stays until the next change or start", "container", string(u.c.ID), "err", err)
	}
	return nil
}

// takeOut unmounts and unplugs what p removes. Its way back is settle.
func (u *unit) takeOut(ctx context.Context, p plan) error {
	if len(p.remove) == 0 {
		return nil
	}
	client, err := u.run.talk(ctx)
	if err != nil {
		return err
	}
	for _, m := range p.remove {
		if err := client.Unmount(ctx, m.Target); err != nil {
			return fault.Wrap("detach volume "+m.VolumeRef()+" from", m.Target, err)
		}
	}
	if err := u.s.o.Failpoints.Hit("change.unplug"); err != nil {
		return err
	}
	return u.run.machine.Reconfigure(ctx, p.unplug)
}

// putIn plugs and mounts what p adds. Its way back is settle.
func (u *unit) putIn(ctx context.Context, p plan) error {
	if len(p.add) == 0 {
		return nil
	}
	s := u.s
	if err := s.attach(ctx, u.c.ID, u.c.Spec.Name, p.add); err != nil {
		return err
	}
	client, err := u.run.talk(ctx)
	if err != nil {
		return err
	}
	if all := both(u.c.State.Reaches, p.reaches); len(all) > len(u.c.State.Reaches) { // first: a daemon that comes next is to let a mount that hangs end
		if err := u.save(func(c *portlayer.Container) { c.State.Reaches = all }); err != nil {
			return err
		}
	}
	if err := u.relink(ctx, client, u.c.State.Reaches); err != nil {
		return err
	}
	if err := s.o.Failpoints.Hit("change.plug"); err != nil {
		return err
	}
	if err := u.run.machine.Reconfigure(ctx, p.plug); err != nil {
		return err
	}
	if err := s.o.Failpoints.Hit("change.mount"); err != nil {
		return err
	}
	for _, m := range p.add {
		spec := seated(p.specs[m.Target], u.run.machine)
		err := client.Mount(ctx, spec)
		if err != nil && unclean(ctx, client, spec.Source) {
			if err = u.mendPlugged(ctx, p, m); err == nil {
				err = client.Mount(ctx, spec)
			}
		}
		if err != nil {
			return err
		}
	}
	s.wrote(ctx, p.add)
	return nil
}

// unclean says whether a mount of source failed for want of a replay of its journal.
func unclean(ctx context.Context, client *guest.Client, source guest.Source) bool {
	st, err := client.Status(ctx)
	return err == nil && slices.Contains(st.Unclean, source)
}

// mendPlugged has m's volume, of which nothing is mounted yet, mended by a machine that may write it, and plugs it in again.
func (u *unit) mendPlugged(ctx context.Context, p plan, m portlayer.Mount) error {
	s := u.s
	s.o.Log.Info("a volume's last writer did not unmount it; replaying its journal", "container", short(u.c.ID), "name", u.c.Spec.Name, "volume", m.VolumeRef())
	var again, out []portlayer.DeviceChange
	for _, c := range p.plug {
		if "label://"+c.Disk.Serial == p.specs[m.Target].Source {
			again = append(again, c)
			out = append(out, portlayer.DeviceChange{Op: portlayer.Remove, Disk: c.Disk})
		}
	}
	var mounts []portlayer.Mount
	for _, o := range p.add {
		if o.ID() == m.ID() {
			mounts = append(mounts, o)
		}
	}
	if err := u.run.machine.Reconfigure(ctx, out); err != nil {
		return err
	}
	s.o.Binder.DetachMounts(u.c.ID, mounts)
	if err := s.mend(ctx, u.c.Image, u.c.Spec.Name, []portlayer.Mount{m}); err != nil {
		return err
	}
	if err := s.attach(ctx, u.c.ID, u.c.Spec.Name, mounts); err != nil {
		return err
	}
	return u.run.machine.Reconfigure(ctx, again)
}

// settle ends a pending change: one that is recorded was whole; the steps of another are taken back, as far as they went. Owner only.
func (u *unit) settle(ctx context.Context) error {
	e := u.pending
	if e == nil {
		return nil
	}
	if u.run != nil && !e.recorded(u.c.Spec.Mounts) {
		if err := u.takeBack(ctx, *e); err != nil {
			return fault.Wrap("take back an unfinished change of container", u.c.Spec.Name, err)
		}
	}
	u.letGo(append(slices.Clone(e.Add), e.Gone...))
	u.pending = nil
	return u.s.journal.Delete(string(u.c.ID))
}

// takeBack makes machine and guest what the record says.
func (u *unit) takeBack(ctx context.Context, e entry) error {
	h, err := u.s.draft(ctx, u.c.ID, u.c.Version, u.c.Spec, u.c.Image)
	if err != nil {
		return err
	}
	client, err := u.run.talk(ctx)
	if err != nil {
		return err
	}
	for i := len(e.Add) - 1; i >= 0; i-- {
		if err := client.Unmount(ctx, e.Add[i].Target); err != nil {
			return err
		}
	}
	have, err := u.run.machine.Disks(ctx)
	if err != nil {
		return err
	}
	if err := u.run.machine.Reconfigure(ctx, difference(have, disksOf(h))); err != nil {
		return err
	}
	if err := u.relink(ctx, client, h.Reaches); err != nil {
		return err
	}
	if len(u.c.State.Reaches) > len(h.Reaches) {
		if err := u.save(func(c *portlayer.Container) { c.State.Reaches = h.Reaches }); err != nil {
			return err
		}
	}
	for i := len(e.Gone) - 1; i >= 0; i-- {
		for _, spec := range h.Config.Mounts {
			if spec.Target == e.Gone[i].Target {
				if err := client.Mount(ctx, seated(spec, u.run.machine)); err != nil {
					return err
				}
			}
		}
	}
	return nil
}

// seated is a mount of a disk that has come to a machine that is on, with its place there, if the guest does not see its serial.
func seated(spec guest.MountSpec, m portlayer.Machine) guest.MountSpec {
	if label, ok := strings.CutPrefix(spec.Source, "label://"); ok {
		if seat, ok := m.Seats()[label]; ok && seat.Slot != 0 {
			spec.Seat = &seat
		}
	}
	return spec
}

// letGo has the volume service forget those of mounts that are not on record, and volumes of which no mount is.
func (u *unit) letGo(mounts []portlayer.Mount) {
	for _, m := range mounts {
		if m.Kind != portlayer.VolumeMount {
			continue
		}
		if have := mountAt(u.c.Spec.Mounts, m.Target); have != nil && have.ID() == m.ID() {
			continue
		}
		u.s.o.Binder.DetachMounts(u.c.ID, []portlayer.Mount{m})
		if !slices.ContainsFunc(u.c.Spec.Mounts, func(o portlayer.Mount) bool { return o.Kind == portlayer.VolumeMount && o.ID() == m.ID() }) {
			u.s.o.Binder.ReleaseVolume(u.c.ID, m.ID())
		}
	}
}

// resume takes up a change that the daemon's end cut off. What the machine may still hold is nobody else's until then.
func (u *unit) resume() {
	s, id := u.s, string(u.c.ID)
	for _, m := range u.pending.Add {
		s.o.Binder.Refer(u.c.ID, m.ID())
		if err := s.o.Binder.Attach(u.c.ID, u.c.Spec.Name, []portlayer.Mount{m}); err != nil {
			s.o.Log.Warn("what an unfinished change has plugged in is another's by now", "container", id, "err", err)
		}
	}
	s.wg.Add(1)
	go func() {
		defer s.wg.Done()
		err := u.ask(s.ctx, func() error {
			ctx, cancel := context.WithTimeout(s.ctx, changeLimit)
			defer cancel()
			return u.settle(ctx)
		})
		switch {
		case s.ctx.Err() != nil:
		case err != nil:
			s.o.Log.Error("an unfinished change of a running container is still there; the next change or start tries again", "container", id, "err", err)
		default:
			s.o.Log.Info("an unfinished change of a running container is settled", "container", id)
		}
	}()
}

// recorded says whether a record with these mounts has the change.
func (e entry) recorded(mounts []portlayer.Mount) bool {
	has := func(m portlayer.Mount) bool {
		have := mountAt(mounts, m.Target)
		return have != nil && have.ID() == m.ID()
	}
	return !slices.ContainsFunc(e.Add, func(m portlayer.Mount) bool { return !has(m) }) && !slices.ContainsFunc(e.Gone, has)
}

// plan is what makes a running container another.
type plan struct {
	add    []portlayer.Mount // parents before what lies below them
	remove []portlayer.Mount // the other way round
	plug   []portlayer.DeviceChange
	unplug []portlayer.DeviceChange
	specs  map[string]guest.MountSpec // of add, by target

	reaches []portlayer.Reach // that add needs
}

// planChange compares two handles of a running container. Mounts of volumes come and go; everything else is Unsupported. A disk that stays, stays as it is.
func planChange(was, now *portlayer.Handle) (p plan, err error) {
	wasSpec, nowSpec, wasConfig, nowConfig := was.Spec, now.Spec, was.Config, now.Config
	wasSpec.Mounts, nowSpec.Mounts, wasConfig.Mounts, nowConfig.Mounts = nil, nil, nil, nil
	if !reflect.DeepEqual(wasSpec, nowSpec) || !reflect.DeepEqual(wasConfig, nowConfig) {
		return p, fault.New(fault.Unsupported, "only the volumes of running container %s can be changed; stop it to change more", was.Spec.Name)
	}
	p.specs, p.reaches = map[string]guest.MountSpec{}, now.Reaches
	for _, m := range now.Spec.Mounts {
		have := mountAt(was.Spec.Mounts, m.Target)
		switch {
		case have != nil && reflect.DeepEqual(*have, m):
			continue
		case m.Kind != portlayer.VolumeMount:
			return p, fault.New(fault.Unsupported, "only volumes are mounted in a container that runs; stop %s first for what is to be at %s", was.Spec.Name, m.Target)
		case have != nil:
			return p, fault.New(fault.Unsupported, "what is mounted at %s of running container %s cannot be exchanged in one step: detach it first", m.Target, was.Spec.Name)
		}
		for _, below := range was.Spec.Mounts {
			if strings.HasPrefix(below.Target, m.Target+"/") && mountAt(now.Spec.Mounts, below.Target) != nil {
				return p, fault.New(fault.Conflict, "container %s has something mounted at %s, below %s, which would be hidden: detach that first", was.Spec.Name, below.Target, m.Target)
			}
		}
		p.add = append(p.add, m)
	}
	for _, m := range was.Spec.Mounts {
		if mountAt(now.Spec.Mounts, m.Target) != nil {
			continue
		}
		if m.Kind != portlayer.VolumeMount {
			return p, fault.New(fault.Unsupported, "only volumes are detached from a container that runs; stop %s first for what is at %s", was.Spec.Name, m.Target)
		}
		p.remove = append(p.remove, m)
	}
	byTarget := func(a, b portlayer.Mount) int { return strings.Compare(a.Target, b.Target) }
	slices.SortFunc(p.add, byTarget)
	slices.SortFunc(p.remove, byTarget)
	slices.Reverse(p.remove)
	for _, spec := range now.Config.Mounts {
		if mountAt(p.add, spec.Target) != nil {
			p.specs[spec.Target] = spec
		}
	}
	have := disksOf(was)
	for _, d := range disksOf(now) {
		i := slices.IndexFunc(have, func(o portlayer.Disk) bool { return o.Serial == d.Serial })
		if i >= 0 && have[i] != d {
			return p, stays(was, now, d, have[i])
		}
	}
	for _, c := range difference(have, disksOf(now)) {
		if c.Op == portlayer.Add {
			p.plug = append(p.plug, c)
		} else {
			p.unplug = append(p.unplug, c)
		}
	}
	return p, nil
}

// stays says why a disk that stays cannot be another.
func stays(was, now *portlayer.Handle, d, have portlayer.Disk) error {
	for _, spec := range was.Config.Mounts {
		kept := slices.ContainsFunc(now.Config.Mounts, func(o guest.MountSpec) bool { return o.Target == spec.Target })
		if spec.Source != "label://"+d.Serial || !kept {
			continue
		}
		if have.ReadOnly && !d.ReadOnly {
			return fault.New(fault.Conflict, "volume %s is mounted read-only at %s, and so is its disk in the running machine of %s: detach it there first, or mount it read-only here, too", spec.Name, spec.Target, was.Spec.Name)
		}
		return fault.New(fault.Conflict, "volume %s stays mounted at %s, and its disk cannot become another in the running machine of %s: detach it there first", spec.Name, spec.Target, was.Spec.Name)
	}
	return fault.New(fault.Unsupported, "disk %s of running container %s cannot become another", d.Serial, was.Spec.Name)
}

// disksOf are the disks of the machine that a handle asks for.
func disksOf(h *portlayer.Handle) (disks []portlayer.Disk) {
	for _, c := range h.Devices {
		if c.Op == portlayer.Add {
			disks = append(disks, c.Disk)
		}
	}
	return disks
}

// difference gives the changes from the disks of one list to those of another, by serial.
func difference(from, to []portlayer.Disk) (changes []portlayer.DeviceChange) {
	lacks := func(list []portlayer.Disk, serial string) bool {
		return !slices.ContainsFunc(list, func(d portlayer.Disk) bool { return d.Serial == serial })
	}
	for _, d := range from {
		if lacks(to, d.Serial) {
			changes = append(changes, portlayer.DeviceChange{Op: portlayer.Remove, Disk: d})
		}
	}
	for _, d := range to {
		if lacks(from, d.Serial) {
			changes = append(changes, portlayer.DeviceChange{Op: portlayer.Add, Disk: d})
		}
	}
	return changes
}
