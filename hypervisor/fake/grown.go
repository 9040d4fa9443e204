package fake

import (
	"context"
	"slices"

	"vch/internal/fault"
	"vch/portlayer"
)

// Grown is portlayer.Machine.Grown. A machine here looks at the extent when it is asked for its size.
func (m *Machine) Grown(ctx context.Context, serial string) error {
	disks, err := m.Disks(ctx)
	if err != nil {
		return err
	}
	if !slices.ContainsFunc(disks, func(d portlayer.Disk) bool { return d.Serial == serial }) {
		return fault.New(fault.NotFound, "the machine has no disk with serial %s", serial)
	}
	return nil
}
