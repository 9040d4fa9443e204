package qemu

import (
	"context"
	"crypto/rand"
	"encoding/hex"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"time"

	"golang.org/x/sys/unix"

	"vch/internal/fault"
	"vch/internal/qmp"
	"vch/portlayer"
)

// pool keeps forks that are paused after a rehearsal, of the shape that is asked for most: a machine that is powered on takes one of them and has only its disks
// plugged. It is refilled in the background, by one fork at a time that gives way to everything else, and is given back when the host's memory gets short.
type pool struct {
	h    *Hypervisor
	size int // how many are kept; 0: no pool
	kick chan struct{}

	mu       sync.Mutex // guards below
	ready    []*paused
	recent   []shape   // that were asked for, the last one last
	starting int       // machines that were powered on less than afterStart ago
	urgent   int       // less than firstMoments ago
	filling  *process  // that is being made ready; stopped by a signal while something is urgent
	short    time.Time // when memory was short last
}

// paused is a fork that waits in the pool.
type paused struct {
	key string
	p   *process
	q   *qmp.Client
}

const (
	// recentShapes is how many of the last starts decide which shape the pool holds.
	recentShapes = 8
	// forkMemory is what a fork in the pool takes of the host's memory, measured: 60 MB.
	forkMemory = 64 * portlayer.MiB
	// mostByDefault is how many forks are kept where nobody says how many.
	mostByDefault = 4
	// shortFor is how long no fork is made after memory was short.
	shortFor = 30 * time.Second
	// afterStart is how long after a start the pool waits before it is refilled: the container has the processors first.
	afterStart = 500 * time.Millisecond
	// firstMoments is how long after a start even a fork that is being made stands still: giving way is not enough where processors share a core.
	firstMoments = 200 * time.Millisecond
	niceRefill   = 19 // nice(2): gives way to everything
)

// DefaultWarm is the size of a pool where nobody says: what fits into a twentieth of the memory that is free now, and a handful at most.
func DefaultWarm() int {
	return int(min(mostByDefault, available()/20/forkMemory))
}

// available is how much memory can still be had without swapping (proc(5) meminfo, MemAvailable).
func available() portlayer.Bytes { return meminfo(readFile("/proc/meminfo"), "MemAvailable") }

// meminfo reads a value of /proc/meminfo; 0 if it is not there.
func meminfo(text, name string) portlayer.Bytes {
	for line := range strings.Lines(text) {
		var kib int64
		if n, _ := fmt.Sscanf(line, name+": %d kB", &kib); n == 1 {
			return portlayer.Bytes(kib) << 10
		}
	}
	return 0
}

// plenty says that an eighth of the memory and more can be had. Whoever stalls for memory then, as within a limit of its own, or for pages that lie side by side, would not be
// helped by more of it.
func plenty(text string) bool { return meminfo(text, "MemAvailable") >= meminfo(text, "MemTotal")/8 }

func newPool(h *Hypervisor, size int) *pool {
	return &pool{h: h, size: size, kick: make(chan struct{}, 1)}
}

// wake has the pool look whether there is something to do.
func (l *pool) wake() {
	select {
	case l.kick <- struct{}{}:
	default:
	}
}

// expect tells that machines of a shape will be asked for.
func (l *pool) expect(s shape) {
	l.mu.Lock()
	l.recent = append(l.recent, s)
	if n := len(l.recent) - recentShapes; n > 0 {
		l.recent = l.recent[n:]
	}
	l.mu.Unlock()
	l.wake()
}

// begin says that a machine is being powered on; the pool is not refilled meanwhile. What it returns says that it is.
func (l *pool) begin() (done func()) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.starting++
	l.urgent++
	if l.filling != nil {
		l.filling.signal(unix.SIGSTOP)
	}
	return func() {
		time.AfterFunc(firstMoments, func() {
			l.mu.Lock()
			defer l.mu.Unlock()
			if l.urgent--; l.urgent == 0 && l.filling != nil {
				l.filling.signal(unix.SIGCONT)
			}
		})
		time.AfterFunc(afterStart, func() {
			l.mu.Lock()
			l.starting--
			l.mu.Unlock()
			l.wake()
		})
	}
}

// count is how many forks are ready.
func (l *pool) count() int {
	l.mu.Lock()
	defer l.mu.Unlock()
	return len(l.ready)
}

// fill says which process is being made ready; nil: none.
func (l *pool) fill(p *process) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.filling != nil {
		l.filling.signal(unix.SIGCONT)
	}
	if l.filling = p; p != nil && l.urgent > 0 {
		p.signal(unix.SIGSTOP)
	}
}

// take gives a fork of a template, or nil.
func (l *pool) take(key string) *paused {
	l.mu.Lock()
	defer l.mu.Unlock()
	for i, w := range l.ready {
		if w.key == key {
			l.ready = append(l.ready[:i:i], l.ready[i+1:]...)
			return w
		}
	}
	return nil
}

// favourite is the shape that was asked for most lately, of equals the last. The caller holds mu.
func (l *pool) favourite() (s shape, ok bool) {
	count := map[string]int{}
	most := 0
	for _, r := range l.recent {
		if count[r.key]++; count[r.key] >= most {
			s, most = r, count[r.key]
		}
	}
	return s, most > 0
}

// run keeps the pool full until the hypervisor is closed.
func (l *pool) run() {
	ctx := l.h.work
	var later <-chan time.Time
	for {
		select {
		case <-l.kick:
		case <-later:
		case <-ctx.Done():
			l.drop(func(*paused) bool { return true })
			return
		}
		later = nil
		for l.refill(ctx) {
		}
		l.mu.Lock()
		if wait := time.Until(l.short.Add(shortFor)); wait > 0 {
			later = time.After(wait)
		}
		l.mu.Unlock()
	}
}

// refill makes one fork, if one is wanted and may be made now. It reports whether to go on.
func (l *pool) refill(ctx context.Context) bool {
	l.mu.Lock()
	s, ok := l.favourite()
	busy := l.starting > 0 || time.Since(l.short) < shortFor
	l.mu.Unlock()
	if !ok || ctx.Err() != nil {
		return false
	}
	l.drop(func(w *paused) bool { return w.key != s.key })
	l.mu.Lock()
	full := len(l.ready) >= l.size
	l.mu.Unlock()
	if full || busy || available() < 2*forkMemory {
		return false
	}
	t := l.h.shelf.find(ctx, s)
	if t == nil {
		return false // its coming wakes the pool
	}
	began := time.Now()
	w, err := l.prepare(ctx, s, t)
	l.h.shelf.release(t)
	switch {
	case err == nil:
	case ctx.Err() != nil:
		return false
	case forksFault(err):
		l.h.shelf.condemn(t, err)
		return false
	default: // the host has no room for it
		l.h.o.Log.Warn("no machine can be kept ready", "err", err)
		l.mu.Lock()
		l.short = time.Now()
		l.mu.Unlock()
		return false
	}
	l.mu.Lock()
	l.ready = append(l.ready, w)
	l.mu.Unlock()
	l.h.o.Log.Debug("a machine is kept ready", "took", time.Since(began))
	return true
}

// prepare makes a fork ready.
func (l *pool) prepare(ctx context.Context, s shape, t *template) (_ *paused, err error) {
	var id [8]byte
	rand.Read(id[:])
	name := hex.EncodeToString(id[:])
	dir := filepath.Join(l.h.poolRoot(), name)
	if err := os.Mkdir(dir, 0o700); err != nil {
		return nil, kindOf(err)
	}
	defer func() {
		if err != nil {
			_ = os.RemoveAll(dir) // the next start of vch deletes what is left
		}
	}()
	s.name = processName("fork-" + name)
	p, q, err := l.h.fork(ctx, dir, s, t)
	if err != nil {
		return nil, err
	}
	p.prioritize(niceRefill)
	l.fill(p)
	defer l.fill(nil)
	stop := context.AfterFunc(ctx, q.HangUp)
	defer stop()
	if err = l.h.rehearse(ctx, p, q, true); err == nil {
		err = q.Call(ctx, "stop", nil, nil)
	}
	if err != nil {
		q.Close()
		l.h.end(p)
		return nil, err
	}
	p.prioritize(0)
	return &paused{key: t.key, p: p, q: q}, nil
}

// drop ends those forks that which says.
func (l *pool) drop(which func(*paused) bool) {
	l.mu.Lock()
	var stay, leave []*paused
	for _, w := range l.ready {
		if which(w) {
			leave = append(leave, w)
		} else {
			stay = append(stay, w)
		}
	}
	l.ready = stay
	l.mu.Unlock()
	for _, w := range leave {
		w.q.Close()
		w.p.kill()
		<-w.p.ended
		_ = os.RemoveAll(w.p.home())
	}
}

// giveBack ends all forks, because the host's memory is short.
func (l *pool) giveBack() {
	l.mu.Lock()
	n := len(l.ready)
	l.short = time.Now()
	l.mu.Unlock()
	if n > 0 {
		l.h.o.Log.Info("memory is short: the machines that were kept ready are given back", "machines", n)
	}
	l.drop(func(*paused) bool { return true })
	l.wake()
}

// The kernel tells of stalls for want of memory that add up to a tenth of two seconds (kernel Documentation/accounting/psi.rst; two seconds are what an ordinary user may
// ask for). Where it does not, the free memory is looked at.
const (
	pressureFile    = "/proc/pressure/memory"
	pressureTrigger = "some 200000 2000000"
	memoryLook      = 5 * time.Second
)

// watchMemory gives the pool back when memory is short, until the hypervisor is closed.
func (l *pool) watchMemory() {
	f, err := os.OpenFile(pressureFile, os.O_RDWR|unix.O_NONBLOCK, 0)
	if err == nil {
		defer f.Close()
		_, err = f.Write(append([]byte(pressureTrigger), 0))
	}
	if err != nil {
		l.lookAtMemory()
		return
	}
	wake, err := unix.Eventfd(0, unix.EFD_CLOEXEC)
	if err != nil {
		l.lookAtMemory()
		return
	}
	var stopper sync.WaitGroup
	stopper.Go(func() {
		<-l.h.work.Done()
		_, _ = unix.Write(wake, []byte{1, 0, 0, 0, 0, 0, 0, 0})
	})
	defer func() {
		stopper.Wait()
		_ = unix.Close(wake)
	}()
	for {
		fds := []unix.PollFd{{Fd: int32(f.Fd()), Events: unix.POLLPRI}, {Fd: int32(wake), Events: unix.POLLIN}}
		if _, err := unix.Poll(fds, -1); err != nil && err != unix.EINTR {
			return
		}
		if fds[1].Revents != 0 {
			return
		}
		if fds[0].Revents&unix.POLLPRI != 0 && !plenty(readFile("/proc/meminfo")) {
			l.giveBack()
		}
	}
}

func (l *pool) lookAtMemory() {
	ticks := time.NewTicker(memoryLook)
	defer ticks.Stop()
	for {
		select {
		case <-ticks.C:
			if available() < 2*forkMemory {
				l.giveBack()
			}
		case <-l.h.work.Done():
			return
		}
	}
}

// clearPool ends the forks that an earlier process has left, and deletes what it left behind.
func (h *Hypervisor) clearPool() error {
	if err := os.MkdirAll(h.poolRoot(), 0o700); err != nil {
		return kindOf(err)
	}
	for name, was := range processes(h.poolRoot()) {
		p, err := h.watch(was.dir, was.pid, nil)
		if err != nil {
			continue // it ended just now
		}
		h.end(p)
		h.o.Log.Debug("ended a fork that an earlier vch kept ready", "name", name)
	}
	entries, err := os.ReadDir(h.poolRoot())
	if err != nil {
		return kindOf(err)
	}
	for _, e := range entries {
		if err := os.RemoveAll(filepath.Join(h.poolRoot(), e.Name())); err != nil {
			return fault.Wrap("delete what is left of", e.Name(), kindOf(err))
		}
	}
	return nil
}

// poolRoot is where forks are until they become machines, and templates while they are made.
func (h *Hypervisor) poolRoot() string { return filepath.Join(h.o.StateDir, "pool") }
