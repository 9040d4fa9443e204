package qemu

import (
	"context"
	"crypto/sha256"
	"debug/elf"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"math/bits"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"time"

	"golang.org/x/sys/unix"

	"vch/internal/fault"
	"vch/portlayer"
)

// shelf is where the templates are: those of this process in memory, and on disk what any process with the same cache has made.
type shelf struct {
	h   *Hypervisor
	dir string

	mu    sync.Mutex // guards below
	known map[string]*spot
}

// spot is a template's on the shelf.
type spot struct {
	shape   shape
	read    chan struct{} // closed when what is on disk was tried; that is worth waiting for
	settled chan struct{} // closed when t is there, or is known not to come, for the reason err
	spoilt  int           // how many turned out broken

	t     *template // nil: there is none, or not yet
	err   error
	users int // forks that are being made of t
	used  time.Time
}

func newSpot(s shape, spoilt int) *spot {
	return &spot{shape: s, spoilt: spoilt, read: make(chan struct{}), settled: make(chan struct{}), used: time.Now()}
}

const (
	// mostInMemory is how many templates a process holds at once, at about 90 MB each. The one that was not used for longest makes room.
	mostInMemory = 4
	// unusedFor is how long a template stays on disk that nobody uses.
	unusedFor = 24 * time.Hour
	// mostSpoilt is how often a template is made anew that turned out broken.
	mostSpoilt = 1
	// loadLimit bounds how long a start waits for a template that is being read; a boot takes longer than that usually does.
	loadLimit = 2 * time.Second
)

// class gives the memory of the machine that is made for one of so much: there are four sizes between a power of two and the next, so that templates fit many. A
// guest's memory takes of the host's only what it touches, and what its container may take is bounded in the guest.
func class(memory portlayer.Bytes) portlayer.Bytes {
	step := portlayer.Bytes(1) << (bits.Len64(uint64(memory-1)) - 3)
	return (memory + step - 1) / step * step
}

// key is the hash of everything that makes a template of the shape s what it is.
func (h *Hypervisor) key(s shape) string {
	s.life, s.name = pattern, processName("template")
	parts := append([]string{fmt.Sprint(templateFormat), h.program, s.qemu, filepath.Base(h.boot.kernel.Name()), filepath.Base(h.boot.initrd.Name()), h.processor}, arguments(s)...)
	sum := sha256.Sum256([]byte(strings.Join(parts, "\x00")))
	return hex.EncodeToString(sum[:16])
}

// hostProcessor is what a guest sees of the host's, with an accelerator.
func hostProcessor(accel string) string {
	if accel != "kvm" {
		return ""
	}
	first, _, _ := strings.Cut(readFile("/proc/cpuinfo"), "\n\n")
	var lines []string
	for line := range strings.Lines(first) {
		if name, _, _ := strings.Cut(line, ":"); slices.Contains([]string{"vendor_id", "cpu family", "model", "stepping", "microcode", "flags"}, strings.TrimSpace(name)) {
			lines = append(lines, line)
		}
	}
	return strings.Join(lines, "")
}

// programID tells one build of a program from another: by its build id (ELF note NT_GNU_BUILD_ID), or by its content.
func programID(path string) (string, error) {
	if f, err := elf.Open(path); err == nil {
		defer f.Close()
		if s := f.Section(".note.gnu.build-id"); s != nil {
			if id, err := s.Data(); err == nil {
				return hex.EncodeToString(id), nil
			}
		}
	}
	f, err := os.Open(path)
	if err != nil {
		return "", kindOf(err)
	}
	defer f.Close()
	sum := sha256.New()
	if _, err := io.Copy(sum, f); err != nil {
		return "", err
	}
	return hex.EncodeToString(sum.Sum(nil)), nil
}

// find gives the template for the shape s, to be handed back with release; nil if there is none to be had now. One that is missing is made meanwhile.
func (f *shelf) find(ctx context.Context, s shape) *template {
	p := f.want(s)
	limit := time.NewTimer(loadLimit)
	defer limit.Stop()
	select {
	case <-p.read:
	case <-limit.C:
	case <-ctx.Done():
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	if p.t == nil {
		return nil
	}
	p.used = time.Now()
	p.users++
	return p.t
}

// release hands a template back.
func (f *shelf) release(t *template) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if p := f.known[t.key]; p != nil && p.t == t {
		p.users--
		return
	}
	// It was taken off the shelf meanwhile.
	t.leaving--
	if t.leaving == 0 {
		t.close()
	}
}

// takeOff removes a template. The caller holds mu.
func (f *shelf) takeOff(p *spot) {
	t := p.t
	p.t = nil
	if t.leaving = p.users; t.leaving == 0 {
		t.close()
	}
	p.users = 0
}

// close lets go of all templates.
func (f *shelf) close() {
	f.mu.Lock()
	defer f.mu.Unlock()
	for _, p := range f.known {
		if p.t != nil {
			f.takeOff(p)
		}
	}
}

// count is how many templates are in memory.
func (f *shelf) count() (n int) {
	f.mu.Lock()
	defer f.mu.Unlock()
	for _, p := range f.known {
		if p.t != nil {
			n++
		}
	}
	return n
}

// want has the template for s read or made, if it is neither there nor on its way.
func (f *shelf) want(s shape) *spot {
	f.mu.Lock()
	defer f.mu.Unlock()
	p := f.known[s.key]
	if p == nil {
		p = newSpot(s, 0)
		f.known[s.key] = p
		f.h.workers.Go(func() { f.settle(p) })
	}
	return p
}

// settle reads the template, or makes it.
func (f *shelf) settle(p *spot) {
	defer close(p.settled)
	ctx := f.h.work
	t, err := f.fetch(ctx, p.shape)
	f.put(p, t, err)
	close(p.read)
	if t != nil || ctx.Err() != nil {
		return
	}
	t, err = f.make(ctx, p.shape)
	f.put(p, t, err)
	if err != nil && ctx.Err() == nil {
		f.h.o.Log.Warn("there is no template for machines of this shape: they boot", "memory", p.shape.size(), "cpus", p.shape.cpus, "err", err)
	}
}

// put gives a spot its template, or the reason why it has none.
func (f *shelf) put(p *spot, t *template, err error) {
	f.mu.Lock()
	p.t, p.err = t, err
	if t != nil {
		f.makeRoom(p)
	}
	f.mu.Unlock()
	if t != nil {
		f.h.pool.wake()
	}
}

// fetch reads a template from disk and tries it. One that is of no use is dropped. NotFound if there is none.
func (f *shelf) fetch(ctx context.Context, s shape) (*template, error) {
	began := time.Now()
	t, err := load(f.dir, s.key, s.memory)
	if err == nil {
		if err = f.try(ctx, s, t); err == nil {
			f.log(s).Info("template read", "took", time.Since(began))
			return t, nil
		}
		t.close()
	}
	if ctx.Err() == nil && !fault.Is(err, fault.NotFound) {
		f.log(s).Warn("a template is of no use; it is made anew", "err", err)
		f.drop(ctx, s.key)
	}
	return nil, err
}

// log is for what is said of the template for s.
func (f *shelf) log(s shape) *slog.Logger {
	return f.h.o.Log.With("template", s.key[:12], "memory", s.size(), "cpus", s.cpus)
}

// make makes a template, tries it and keeps it on disk. That it cannot be kept does not keep it from being used.
func (f *shelf) make(ctx context.Context, s shape) (*template, error) {
	began := time.Now()
	dir, err := os.MkdirTemp(f.h.poolRoot(), "template-")
	if err != nil {
		return nil, kindOf(err)
	}
	defer os.RemoveAll(dir)
	t, err := f.h.makeTemplate(ctx, dir, s)
	if err != nil {
		return nil, fault.Wrap("make a template", "", err)
	}
	if err := f.try(ctx, s, t); err != nil {
		t.close()
		return nil, err
	}
	a := about{Key: t.key, Made: time.Now().UTC(), QEMU: s.qemu, Kernel: f.h.info.Kernel, Accel: s.accel, Memory: s.memory, CPUs: s.cpus}
	if t.unkept = t.save(f.dir, a); t.unkept != nil {
		f.log(s).Warn("a template cannot be kept on disk: the next start of vch makes it anew", "err", t.unkept)
	}
	f.log(s).Info("template made", "took", time.Since(began))
	return t, nil
}

// try forks a machine of a template and asks it whether it is there.
func (f *shelf) try(ctx context.Context, s shape, t *template) (err error) {
	defer func() { err = fault.Wrap("try a template", "", err) }()
	ctx, cancel := context.WithTimeout(ctx, tryLimit)
	defer cancel()
	dir, err := os.MkdirTemp(f.h.poolRoot(), "try-")
	if err != nil {
		return kindOf(err)
	}
	defer os.RemoveAll(dir)
	s.name = processName("try-" + filepath.Base(dir))
	p, q, err := f.h.fork(ctx, dir, s, t)
	if err != nil {
		return err
	}
	defer func() {
		q.Close()
		f.h.end(p)
	}()
	if err := q.Call(ctx, "cont", nil, nil); err != nil {
		return err
	}
	return p.hello(ctx)
}

// makeRoom takes the template off that was not used for longest, if there are too many. The caller holds mu.
func (f *shelf) makeRoom(but *spot) {
	var held []*spot
	for _, p := range f.known {
		if p.t != nil && p != but {
			held = append(held, p)
		}
	}
	if len(held) < mostInMemory {
		return
	}
	slices.SortFunc(held, func(a, b *spot) int { return a.used.Compare(b.used) })
	delete(f.known, held[0].t.key) // it is read again when it is wanted again
	f.takeOff(held[0])
}

// condemn throws away a template of which a fork failed. It is made anew once.
func (f *shelf) condemn(t *template, cause error) {
	f.mu.Lock()
	p := f.known[t.key]
	if p == nil || p.t != t {
		f.mu.Unlock()
		return // somebody did already
	}
	f.h.o.Log.Warn("a template turned out broken; machines boot until it is made anew", "template", t.key[:12], "err", cause)
	// release finds its user here no more: it was counted off.
	f.takeOff(p)
	p = newSpot(p.shape, p.spoilt+1)
	p.err = fault.Wrap("fork a machine of the template", "", cause)
	f.known[t.key] = p
	f.mu.Unlock()
	f.drop(f.h.work, t.key)
	if p.spoilt > mostSpoilt {
		close(p.read)
		close(p.settled)
		return
	}
	f.h.workers.Go(func() { f.settle(p) })
}

// drop deletes a template from disk, whoever uses it: they have it in memory.
func (f *shelf) drop(ctx context.Context, key string) {
	if err := f.h.disks.RemoveDir(ctx, portlayer.DiskPath(filepath.Join(f.dir, key))); err != nil {
		f.h.o.Log.Warn("a template cannot be deleted", "template", key, "err", err)
	}
}

// tidy deletes from disk what nobody has used for a while, and what was cut off.
func (f *shelf) tidy(ctx context.Context, now time.Time) error {
	f.h.disks.sweep(f.dir)
	keys, err := f.h.disks.List(ctx, portlayer.DiskPath(f.dir))
	if err != nil {
		return err
	}
	for _, key := range keys {
		lock, err := lockDir(filepath.Join(f.dir, key), unix.LOCK_EX)
		if err != nil {
			continue // a daemon uses it
		}
		if info, err := lock.Stat(); err == nil && now.Sub(info.ModTime()) >= unusedFor {
			f.h.o.Log.Info("template dropped: nobody used it for a day", "template", key)
			f.drop(ctx, key)
		}
		lock.Close()
	}
	return nil
}

// Template is a template on disk.
type Template struct {
	Key    string
	Made   time.Time
	Used   time.Time // when it was read last; Made if never
	QEMU   string    // version
	Kernel string    // release
	Accel  string
	Memory portlayer.Bytes // of its machines
	CPUs   int
	Size   portlayer.Bytes // on disk
	InUse  bool            // by a daemon
}

// Templates lists the templates in a cache directory, the last used first.
func Templates(ctx context.Context, cache string) ([]Template, error) {
	dir := filepath.Join(cache, templatesDir)
	keys, err := directories().List(ctx, portlayer.DiskPath(dir))
	if fault.Is(err, fault.NotFound) {
		return nil, nil
	}
	var all []Template
	for _, key := range keys {
		if t, ok := lookAt(filepath.Join(dir, key)); ok {
			all = append(all, t)
		}
	}
	slices.SortFunc(all, func(a, b Template) int { return b.Used.Compare(a.Used) })
	return all, err
}

// lookAt tells of the template in a directory, if one is there.
func lookAt(dir string) (t Template, ok bool) {
	var a about
	text, err := readSmall(filepath.Join(dir, templateAbout))
	if err != nil || json.Unmarshal(text, &a) != nil {
		return t, false
	}
	t = Template{Key: filepath.Base(dir), Made: a.Made, QEMU: a.QEMU, Kernel: a.Kernel, Accel: a.Accel, Memory: a.Memory, CPUs: a.CPUs}
	if info, err := os.Stat(dir); err == nil {
		t.Used = info.ModTime()
	}
	for _, name := range []string{templateMemory, templateState, templateAbout} {
		if n, err := allocated(filepath.Join(dir, name)); err == nil {
			t.Size += n
		}
	}
	lock, err := lockDir(dir, unix.LOCK_EX)
	if err == nil {
		lock.Close()
	}
	t.InUse = fault.Is(err, fault.InUse)
	return t, true
}

// DropTemplate deletes a template from a cache directory: NotFound if it is not there, InUse if a daemon uses it.
func DropTemplate(ctx context.Context, cache, key string) error {
	if !keyRule.MatchString(key) {
		return fault.New(fault.NotFound, "no template %q", key)
	}
	dir := filepath.Join(cache, templatesDir, key)
	lock, err := lockDir(dir, unix.LOCK_EX)
	if fault.Is(err, fault.NotFound) {
		return fault.New(fault.NotFound, "no template %q", key)
	}
	if err != nil {
		return fault.New(fault.KindOf(err), "template %s is used by a vch that runs", key)
	}
	return errors.Join(directories().RemoveDir(ctx, portlayer.DiskPath(dir)), lock.Close())
}

// MakeTemplate reads or makes the template for machines of so much memory and so many processors, and waits for it. Invalid if no machine can be like that,
// Unavailable if the template could not be kept.
func (h *Hypervisor) MakeTemplate(ctx context.Context, memory portlayer.Bytes, cpus int) (key string, err error) {
	if h.shelf == nil {
		return "", fault.New(fault.Unsupported, "templates are off")
	}
	if err := possible(memory, cpus); err != nil {
		return "", err
	}
	p := h.shelf.want(h.shape(definition{Memory: memory, CPUs: cpus}))
	select {
	case <-p.settled:
	case <-ctx.Done():
		return "", ctx.Err()
	}
	h.shelf.mu.Lock()
	defer h.shelf.mu.Unlock()
	if p.t == nil {
		return "", p.err
	}
	return p.shape.key, p.t.unkept
}
