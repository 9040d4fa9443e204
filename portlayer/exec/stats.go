package exec

import (
	"context"
	"time"

	"vch/guest"
	"vch/internal/fault"
	"vch/portlayer"
)

// lastWordLimit is how long a pause waits for a guest that it is about to stop, and an unpause for one that goes on.
const lastWordLimit = 2 * time.Second

// Stats is portlayer.Containers.Stats.
func (s *Service) Stats(ctx context.Context, ref string) (guest.Stats, error) {
	_, r, err := s.up(ref)
	if err != nil {
		return guest.Stats{}, err
	}
	if r.isPaused() {
		return r.before, nil
	}
	client, err := r.talk(ctx)
	if err != nil {
		return guest.Stats{}, err
	}
	return client.Stats(ctx)
}

// remember keeps what a run has used, for as long as its guest cannot be asked. Owner only; nobody is told that it is paused yet.
func (r *run) remember(ctx context.Context) {
	client := r.now()
	if client == nil {
		return
	}
	ctx, cancel := context.WithTimeout(ctx, lastWordLimit)
	defer cancel()
	if st, err := client.Stats(ctx); err == nil {
		r.before = st
	}
}

// Update is portlayer.Containers.Update.
func (s *Service) Update(ctx context.Context, ref string, up portlayer.ContainerUpdate) error {
	u, err := s.find(ref)
	if err != nil {
		return err
	}
	return u.alone(ctx, func() error {
		ctx, cancel := context.WithTimeout(s.ctx, talkLimit)
		defer cancel()
		return u.update(ctx, up)
	})
}

// update changes the limits and policy of a container: of one that runs in its guest first, so that what is recorded was possible. Owner only.
func (u *unit) update(ctx context.Context, up portlayer.ContainerUpdate) (err error) {
	if err := u.changeable(ctx); err != nil {
		return err
	}
	spec := u.c.Spec
	up.Apply(&spec)
	if err := u.s.complete(u.c.ID, &spec); err != nil {
		return err
	}
	if spec.AutoRemove && spec.Restart.When != portlayer.RestartNever {
		return fault.New(fault.Invalid, "Restart policy cannot be updated because AutoRemove is enabled for the container")
	}
	was, will := limitsOf(u.c.Spec), limitsOf(spec)
	if u.run != nil && was != will {
		if err := u.fitsMachine(ctx, spec); err != nil {
			return err
		}
		client, err := u.run.talk(ctx)
		if err != nil {
			return err
		}
		if err := client.SetLimits(ctx, will); err != nil {
			return fault.Wrap("update container", u.c.Spec.Name, err)
		}
		defer func() {
			if err != nil {
				if berr := client.SetLimits(context.WithoutCancel(ctx), was); berr != nil {
					u.s.o.Log.Error("a container has limits that are not recorded", "container", string(u.c.ID), "err", berr)
				}
			}
		}()
	}
	if err := u.s.o.Failpoints.Hit("update.record"); err != nil {
		return err
	}
	if err := u.save(func(c *portlayer.Container) { c.Spec = spec }); err != nil {
		return err
	}
	u.s.publish(u.c, "update")
	return nil
}

// fitsMachine refuses limits that the machine which runs cannot keep: it has the memory and the processors that it was made with.
func (u *unit) fitsMachine(ctx context.Context, spec portlayer.ContainerSpec) error {
	memory, cpus, err := u.run.machine.Size(ctx)
	if err != nil {
		return err
	}
	need := MachineFor(spec.Memory, spec.CPUs)
	switch {
	case need.Memory > memory:
		return fault.New(fault.Unsupported, "the machine of container %s has memory for a limit of %d bytes, and cannot get more while it runs: stop the container, update it, and start it again", u.c.Spec.Name, memory-machineOverhead)
	case need.CPUs > cpus:
		return fault.New(fault.Unsupported, "the machine of container %s has %d processors, and cannot get more while it runs: stop the container, update it, and start it again", u.c.Spec.Name, cpus)
	}
	return nil
}
