package qemu

import (
	"context"

	"vch/internal/fault"
)

// Pause is portlayer.Machine.Pause.
func (m *machine) Pause(ctx context.Context) error { return m.tell(ctx, "stop") }

// Resume is portlayer.Machine.Resume.
func (m *machine) Resume(ctx context.Context) error { return m.tell(ctx, "cont") }

// tell gives a running machine's QEMU a command without arguments (QEMU docs, QMP reference: both do nothing where it is so already).
func (m *machine) tell(ctx context.Context, command string) error {
	l := m.h.lock(m.id)
	defer l.Unlock()
	p := m.process()
	if p == nil {
		return fault.New(fault.Conflict, "machine %s is off", m.id)
	}
	ctx, q, done, err := p.change(ctx)
	if err != nil {
		return err
	}
	defer done()
	return q.Call(ctx, command, nil, nil)
}
