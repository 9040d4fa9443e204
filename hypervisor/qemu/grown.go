package qemu

import (
	"context"
	"slices"

	"vch/internal/fault"
	"vch/portlayer"
)

// Grown is portlayer.Machine.Grown.
func (m *machine) Grown(ctx context.Context, serial string) error {
	l := m.h.lock(m.id)
	defer l.Unlock()
	def, err := m.definition()
	if err != nil {
		return err
	}
	at := slices.IndexFunc(def.Disks, func(d portlayer.Disk) bool { return d.Serial == serial })
	if at < 0 {
		return fault.New(fault.NotFound, "the machine has no disk with serial %s", serial)
	}
	p := m.process()
	if p == nil {
		return nil
	}
	_, info, err := locate(string(def.Disks[at].File))
	if err != nil {
		return err
	}
	ctx, q, done, err := p.change(ctx)
	if err != nil {
		return err
	}
	defer done()
	have, err := plugged(ctx, q)
	if err != nil {
		return err
	}
	lun, ok := have[serial]
	if !ok {
		return fault.New(fault.NotFound, "the machine has no disk with serial %s", serial)
	}
	// The file has this length already: QEMU looks at it anew, and tells the guest.
	return refused("grow disk "+serial, q.Call(ctx, "block_resize", map[string]any{"node-name": drive{lun: lun}.node(), "size": int64(info.Size)}, nil))
}
