package fake

import (
	"context"
	"math"
	"net"
	"sync"
	"time"

	"vch/guest"
	"vch/internal/fault"
	"vch/portlayer"
	"vch/tether"
)

// running is a machine from power on to off. Its goroutine is live.
type running struct {
	world *World
	id    portlayer.ContainerID
	slot  *slot
	sys   *system
	core  *tether.Core

	ctx    context.Context // ends with the machine
	cancel context.CancelFunc
	off    chan struct{}  // closed when nothing of the machine is left
	conns  sync.WaitGroup // one for each connection that is served

	mu       sync.Mutex // guards below
	disks    []portlayer.Disk
	released bool     // the disks are others' to have
	conn     net.Conn // the guest's end of the last connection
	card     net.Conn // likewise, of the card's
	why      string   // why it ends; "" while it does not
	halt     chan struct{}
}

// boot makes a machine whose disks are acquired.
func boot(w *World, id portlayer.ContainerID, sl *slot, d definition) *running {
	began := time.Now()
	r := &running{world: w, id: id, slot: sl, disks: d.Disks, off: make(chan struct{}), halt: make(chan struct{})}
	r.ctx, r.cancel = context.WithCancel(context.Background())
	r.sys = newSystem(d.Disks, &w.servers, func() { r.stop("reboot: Power down") })
	r.core = tether.NewCore(r.sys, []guest.Timing{{Name: "boot", Took: time.Since(began)}})
	return r
}

// live waits for the end, then takes the machine apart: connections, processes, disks, in this order.
func (r *running) live() {
	<-r.halt
	r.cancel()
	r.conns.Wait()
	r.sys.die()
	// The process is dead, but its last output may wait for a host to take what is held.
	r.core.Forget(math.MaxUint64)
	for {
		changed := r.core.Changed()
		st := r.core.Status()
		if st.Phase != guest.Starting && st.Phase != guest.Running {
			break
		}
		if st.Phase == guest.Running && st.Pid == 0 { // it serves archives, and no process's end ends that
			_ = r.core.Shutdown(context.Background())
			break
		}
		<-changed
	}
	r.mu.Lock()
	r.released = true
	r.world.release(r.id, r.disks)
	r.mu.Unlock()
	r.slot.mu.Lock()
	r.slot.run, r.slot.end = nil, r.why
	r.slot.mu.Unlock()
	close(r.off)
}

// stop begins the end. A second call changes nothing.
func (r *running) stop(why string) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.why == "" {
		r.why = why
		close(r.halt)
	}
}

// connect puts a host on the guest channel, in place of the one that was there, for as long as host lasts.
func (r *running) connect(host context.Context) (net.Conn, error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.why != "" {
		return nil, fault.New(fault.Conflict, "machine %s is off", r.id)
	}
	if r.conn != nil {
		r.conn.Close()
	}
	ours, theirs := net.Pipe()
	r.conn = theirs
	gone := context.AfterFunc(host, func() { theirs.Close() })
	r.conns.Go(func() {
		defer theirs.Close()
		defer gone()
		_ = guest.Serve(r.ctx, newStalling(theirs, r), r.core) // a host that spoke nonsense is gone, as any other
	})
	return ours, nil
}
