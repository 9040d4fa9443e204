package qemu

import (
	"context"
	"os"
	"path/filepath"

	"golang.org/x/sys/unix"

	"vch/guest"
	"vch/internal/fault"
	"vch/internal/qmp"
)

// fork makes a machine in dir that goes on where the template t stopped, of the shape s. It is stopped: its disks are plugged before it runs. The caller closes q.
func (h *Hypervisor) fork(ctx context.Context, dir string, s shape, t *template) (p *process, q *qmp.Client, err error) {
	s.life, s.drives = forkedOf, nil
	state, err := memfd("vch-state", 0)
	if err != nil {
		return nil, nil, err
	}
	defer state.Close()
	if _, err := state.WriteAt(t.state, 0); err != nil {
		return nil, nil, err
	}
	if p, q, err = h.launch(ctx, dir, s, t.memory); err != nil {
		return nil, nil, err
	}
	stop := context.AfterFunc(ctx, q.HangUp)
	defer stop()
	err = migrate(ctx, q, "migrate-incoming", state)
	// Until it has run, QEMU lets others write what comes into its seats (7.2 block/block-backend.c, blk_root_activate).
	for _, command := range []string{"cont", "stop"} {
		if err == nil {
			err = q.Call(ctx, command, nil, nil)
		}
	}
	if err != nil {
		q.Close()
		h.end(p)
		return nil, nil, fault.New(fault.KindOf(err), "cannot go on from the template: %w%s", err, said(p.words()))
	}
	return p, q, nil
}

func said(words string) string {
	if words == "" {
		return ""
	}
	return "; QEMU: " + words
}

// pooled makes a machine of the shape s in dir run as one of the pool; nil if that has none that does.
func (h *Hypervisor) pooled(ctx context.Context, dir string, s shape) (*process, error) {
	for {
		w := h.pool.take(s.key)
		if w == nil {
			return nil, nil
		}
		err := w.p.move(dir)
		if err == nil {
			err = s.drives.run(ctx, w.p, w.q)
		}
		w.q.Close()
		if err == nil {
			return w.p, nil
		}
		h.end(w.p)
		if !forksFault(err) || ctx.Err() != nil {
			return nil, err
		}
		h.o.Log.Warn("a machine that was kept ready failed", "err", err)
		if err := os.RemoveAll(w.p.home()); err != nil {
			return nil, kindOf(err)
		}
	}
}

// forked makes a machine of the shape s in dir run as a new fork; nil if there is no template, or it turned out broken.
func (h *Hypervisor) forked(ctx context.Context, dir string, s shape) (*process, error) {
	t := h.shelf.find(ctx, s)
	if t == nil {
		return nil, nil
	}
	defer h.shelf.release(t)
	if err := os.Mkdir(dir, 0o700); err != nil {
		return nil, noRoom(kindOf(err), filepath.Dir(dir))
	}
	p, q, err := h.fork(ctx, dir, s, t)
	if err == nil {
		if err = s.drives.run(ctx, p, q); err != nil {
			h.end(p)
		}
		q.Close()
	}
	if err == nil {
		return p, nil
	}
	if !forksFault(err) || ctx.Err() != nil {
		return nil, err
	}
	h.shelf.condemn(t, err)
	return nil, nil
}

// forksFault says whether an error is to be laid to the fork, and not to the disks or the host: a boot may do better.
func forksFault(err error) bool {
	return fault.KindOf(err) == fault.Internal
}

// seats are those that disks come into.
func (d drives) seats() map[string]guest.Seat {
	taken := map[string]guest.Seat{}
	for _, v := range d {
		if v.seat != "" {
			taken[v.serial] = guest.Seat{Serial: v.seat, Size: int64(v.size)}
		}
	}
	return taken
}

// run has the stopped machine of p run with its disks.
func (d drives) run(ctx context.Context, p *process, q *qmp.Client) error {
	stop := context.AfterFunc(ctx, q.HangUp)
	defer stop()
	for i, v := range d {
		if v.lun = i; v.seat != "" {
			v.lun = seatLUN(v.seat)
		}
		if err := v.plug(ctx, q); err != nil {
			return err
		}
	}
	p.seats = d.seats()
	return q.Call(ctx, "cont", nil, nil)
}

// drives are a machine's, in the order of their units.
type drives []drive

// prioritize sets how much a process's threads have to give way to others, as nice(2). An ordinary user could not take it back, and leaves it.
func (p *process) prioritize(nice int) {
	if os.Geteuid() != 0 {
		return
	}
	for _, tid := range p.threads() {
		_ = unix.Setpriority(unix.PRIO_PROCESS, tid, nice)
	}
}
