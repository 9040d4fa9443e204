package fake

import (
	"context"
	"fmt"
	"slices"
	"strings"

	"vch/guest"
	"vch/internal/fault"
	"vch/portlayer"
)

// replug changes the disks of a running machine, which are those of its definition; record makes that say so. All or nothing. The caller has the slot's turn.
func (r *running) replug(ctx context.Context, disks []portlayer.Disk, changes []portlayer.DeviceChange, record func() error) error {
	var add, remove []portlayer.Disk
	seen := map[string]bool{}
	for _, c := range changes {
		switch {
		case seen[c.Disk.Serial]:
			return fault.New(fault.Unsupported, "disk %s cannot be removed and added again in one change of a machine that is on; make it two", c.Disk.Serial)
		case c.Op == portlayer.Add && c.Disk.File == "":
			return fault.New(fault.Unsupported, "a machine makes disks of its own only while it is off")
		case c.Op == portlayer.Add:
			if _, err := (Disks{}).Stat(ctx, c.Disk.File); err != nil {
				return err
			}
			add = append(add, c.Disk)
		default:
			at := slices.IndexFunc(disks, func(d portlayer.Disk) bool { return d.Serial == c.Disk.Serial })
			if disks[at].File == "" {
				return fault.New(fault.Unsupported, "a machine deletes disks of its own only while it is off")
			}
			remove = append(remove, disks[at])
		}
		seen[c.Disk.Serial] = true
	}
	if err := r.world.acquire(r.id, add); err != nil {
		return err
	}
	if err := record(); err != nil {
		r.world.release(r.id, add)
		return err
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.released { // the machine has ended meanwhile, with what it had
		r.world.release(r.id, add)
		return nil
	}
	for _, d := range remove {
		r.disks = slices.DeleteFunc(r.disks, func(have portlayer.Disk) bool { return have.Serial == d.Serial })
	}
	r.disks = append(r.disks, add...)
	r.sys.replug(r.disks)
	r.world.release(r.id, remove)
	return nil
}

// replug gives the system the disks that it has from now on. One that went while it was mounted fails whoever uses it.
func (s *system) replug(disks []portlayer.Disk) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, c := range s.open {
		if !slices.ContainsFunc(disks, func(d portlayer.Disk) bool { return d.Serial == c.serial }) {
			c.pull()
		}
	}
	s.disks = slices.Clone(disks)
}

// Mount is tether.System.Mount.
func (s *system) Mount(_ context.Context, m guest.MountSpec) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.dead {
		return errOff
	}
	if !strings.HasPrefix(m.Source, "label://") && !strings.HasPrefix(m.Source, "nfs://") {
		return fault.New(fault.Unsupported, "only volumes are mounted in a container that runs, not %q", m.Source)
	}
	if m.Target == "/" {
		return fault.New(fault.Invalid, "mount target %s is the root of the container", m.Target)
	}
	if slices.ContainsFunc(s.mounts, func(have mount) bool {
		return have.target == m.Target && have.source == m.Source && have.part == m.Subpath && have.readOnly == m.ReadOnly
	}) {
		return nil
	}
	for _, have := range s.mounts {
		switch {
		case have.target == m.Target:
			return fault.New(fault.Conflict, "something is mounted at %s already", m.Target)
		case strings.HasPrefix(have.target, m.Target+"/"):
			return fault.New(fault.Conflict, "something is mounted at %s, below %s, and would be hidden", have.target, m.Target)
		}
	}
	volumes := map[guest.Source]*content{}
	for _, have := range s.mounts {
		if have.source == m.Source {
			volumes[m.Source] = have.content
		}
	}
	if c := volumes[m.Source]; c != nil && c.readOnly && !m.ReadOnly {
		return fault.New(fault.Conflict, "%s is mounted read-only in this container already, and so is its disk; unmount it there first", mountName(m))
	}
	before := len(s.open)
	if err := s.mountVolume(m, []guest.MountSpec{m}, volumes); err != nil {
		for _, c := range s.open[before:] {
			_ = c.unmount() // nothing was written
		}
		s.open = s.open[:before]
		return err
	}
	s.sortMounts()
	return nil
}

// Unmount is tether.System.Unmount. A process that works below the mount holds it.
func (s *system) Unmount(target string) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	at := slices.IndexFunc(s.mounts, func(m mount) bool { return m.target == target && m.source != "" })
	if at < 0 {
		return nil
	}
	gone := s.mounts[at]
	for _, m := range s.mounts {
		if strings.HasPrefix(m.target, target+"/") {
			return fault.New(fault.InUse, "%s is mounted on it; unmount that first", m.target)
		}
	}
	var held []string
	for _, p := range s.procs {
		if strings.HasPrefix(absolute("", p.cwd)+"/", target+"/") {
			held = append(held, fmt.Sprintf("%s (pid %d, its working directory)", p.args[0], p.pid))
		}
	}
	if len(held) > 0 {
		return fault.New(fault.InUse, "it is in use by %s; end these first", strings.Join(held, ", "))
	}
	s.mounts = slices.Delete(s.mounts, at, at+1)
	if slices.ContainsFunc(s.mounts, func(m mount) bool { return m.content == gone.content }) {
		return nil
	}
	s.open = slices.DeleteFunc(s.open, func(c *content) bool { return c == gone.content })
	return gone.content.unmount()
}
