package volumetest

import (
	"context"
	"io"
	"runtime"
	"sync"

	"vch/internal/fault"
	"vch/portlayer"
)

// Faulty is a portlayer.Disks over another, one of whose calls can be made to fail. NewFaulty makes one.
type Faulty struct {
	portlayer.Disks // the real ones
	Faults
}

// Faults makes one of the calls fail that pass it. The zero value lets all pass.
type Faults struct {
	mu    sync.Mutex // guards below
	armed bool
	left  int // calls before the one that fails
	way   Way
	hit   bool
}

// Way is how a call fails.
type Way int

// The ways.
const (
	Refused    Way = iota // the call does nothing and fails; later ones work
	LostAnswer            // the call does its work and fails; later ones work
	DiesBefore            // the process dies before the call: it and all later ones do nothing
	DiesAfter             // the process dies after the call: all later ones do nothing
	ways
)

// String names the way.
func (w Way) String() string {
	return [ways]string{"refused", "answer lost", "dies before", "dies after"}[w]
}

// NewFaulty makes a Faulty that passes all calls on.
func NewFaulty(d portlayer.Disks) *Faulty { return &Faulty{Disks: d} }

// Arm makes the n-th call from now, counted from 0, fail.
func (f *Faults) Arm(n int, w Way) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.armed, f.left, f.way, f.hit = true, n, w, false
}

// Disarm lets all calls pass again, and reports whether the fault was met.
func (f *Faults) Disarm() bool {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.armed = false
	return f.hit
}

// next says what becomes of a call: whether it is done, and whether it fails.
func (f *Faults) next() (done, fails bool) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if !f.armed {
		return true, false
	}
	if f.hit { // after the fault
		dead := f.way == DiesBefore || f.way == DiesAfter
		return !dead, dead
	}
	if f.left > 0 {
		f.left--
		return true, false
	}
	f.hit = true
	return f.way == LostAnswer || f.way == DiesAfter, true
}

// Pass makes a call or lets it fail. It lets other goroutines run first, so that calls of operations that run at once do interleave.
func (f *Faults) Pass(call func() error) error {
	runtime.Gosched()
	done, fails := f.next()
	var err error
	if done {
		err = call()
	}
	if fails && err == nil {
		err = fault.New(fault.Internal, "injected fault")
	}
	return err
}

// Create is portlayer.Disks.Create.
func (f *Faulty) Create(ctx context.Context, path portlayer.DiskPath, spec portlayer.DiskSpec) error {
	return f.Pass(func() error { return f.Disks.Create(ctx, path, spec) })
}

// CreateDir is portlayer.Disks.CreateDir.
func (f *Faulty) CreateDir(ctx context.Context, dir portlayer.DiskPath, spec portlayer.DirSpec) error {
	return f.Pass(func() error { return f.Disks.CreateDir(ctx, dir, spec) })
}

// Stat is portlayer.Disks.Stat.
func (f *Faulty) Stat(ctx context.Context, path portlayer.DiskPath) (info portlayer.DiskInfo, err error) {
	err = f.Pass(func() (err error) { info, err = f.Disks.Stat(ctx, path); return err })
	return info, err
}

// Look is portlayer.Disks.Look. It has no error, and does not count as a call.
func (f *Faulty) Look(ctx context.Context, dir portlayer.DiskPath, disks []string, beside string) []portlayer.Look {
	runtime.Gosched()
	return f.Disks.Look(ctx, dir, disks, beside)
}

// Delete is portlayer.Disks.Delete.
func (f *Faulty) Delete(ctx context.Context, path portlayer.DiskPath) error {
	return f.Pass(func() error { return f.Disks.Delete(ctx, path) })
}

// Import is portlayer.Disks.Import.
func (f *Faulty) Import(ctx context.Context, local string, path portlayer.DiskPath) error {
	return f.Pass(func() error { return f.Disks.Import(ctx, local, path) })
}

// Copy is portlayer.Disks.Copy.
func (f *Faulty) Copy(ctx context.Context, from, to portlayer.DiskPath, progress portlayer.Progressed) error {
	return f.Pass(func() error { return f.Disks.Copy(ctx, from, to, progress) })
}

// Open is portlayer.Disks.Open.
func (f *Faulty) Open(ctx context.Context, path portlayer.DiskPath) (r io.ReadCloser, info portlayer.DiskInfo, err error) {
	err = f.Pass(func() (err error) { r, info, err = f.Disks.Open(ctx, path); return err })
	return r, info, err
}

// CreateFrom is portlayer.Disks.CreateFrom.
func (f *Faulty) CreateFrom(ctx context.Context, path portlayer.DiskPath, size portlayer.Bytes, r io.Reader) error {
	return f.Pass(func() error { return f.Disks.CreateFrom(ctx, path, size, r) })
}

// Grow is portlayer.Disks.Grow.
func (f *Faulty) Grow(ctx context.Context, path portlayer.DiskPath, size portlayer.Bytes) error {
	return f.Pass(func() error { return f.Disks.Grow(ctx, path, size) })
}

// Link is portlayer.Disks.Link.
func (f *Faulty) Link(ctx context.Context, from, to portlayer.DiskPath) error {
	return f.Pass(func() error { return f.Disks.Link(ctx, from, to) })
}

// MoveDir is portlayer.Disks.MoveDir.
func (f *Faulty) MoveDir(ctx context.Context, from, to portlayer.DiskPath) error {
	return f.Pass(func() error { return f.Disks.MoveDir(ctx, from, to) })
}

// MakeDir is portlayer.Disks.MakeDir.
func (f *Faulty) MakeDir(ctx context.Context, dir portlayer.DiskPath) error {
	return f.Pass(func() error { return f.Disks.MakeDir(ctx, dir) })
}

// RemoveDir is portlayer.Disks.RemoveDir.
func (f *Faulty) RemoveDir(ctx context.Context, dir portlayer.DiskPath) error {
	return f.Pass(func() error { return f.Disks.RemoveDir(ctx, dir) })
}

// List is portlayer.Disks.List.
func (f *Faulty) List(ctx context.Context, dir portlayer.DiskPath) (names []string, err error) {
	err = f.Pass(func() (err error) { names, err = f.Disks.List(ctx, dir); return err })
	return names, err
}

// WriteFile is portlayer.Disks.WriteFile.
func (f *Faulty) WriteFile(ctx context.Context, path portlayer.DiskPath, data []byte) error {
	return f.Pass(func() error { return f.Disks.WriteFile(ctx, path, data) })
}

// ReadFile is portlayer.Disks.ReadFile.
func (f *Faulty) ReadFile(ctx context.Context, path portlayer.DiskPath) (data []byte, err error) {
	err = f.Pass(func() (err error) { data, err = f.Disks.ReadFile(ctx, path); return err })
	return data, err
}

// Space is portlayer.Disks.Space.
func (f *Faulty) Space(ctx context.Context, dir portlayer.DiskPath) (total, free portlayer.Bytes, err error) {
	err = f.Pass(func() (err error) { total, free, err = f.Disks.Space(ctx, dir); return err })
	return total, free, err
}
