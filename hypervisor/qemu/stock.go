package qemu

import (
	"context"
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"sync"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"vch/guest"
	"vch/internal/atomicfile"
	"vch/internal/ext4"
	"vch/internal/vmdkfile"
	"vch/portlayer"
)

// Most of what a new disk's directory takes is its inodes and blocks, and most of what a removed one takes is to give them back (doc/performance.md). Neither must be waited
// for: errands has directories ready that only need their names, and removes those that have lost theirs.
type errands struct {
	build func(kind stockKind) (stage string, err error)
	work  context.Context
	kick  chan struct{} // has one when there may be something to do

	mu    sync.Mutex // guards below
	stock map[stockKind]*pile
	asked time.Time // when a directory was last asked for
	tombs []string
}

// stockKind is what directories that are ready differ by.
type stockKind struct {
	parent string
	ext4.Shape
}

// pile is what is ready of a kind.
type pile struct {
	stages []string // at rest (atomicfile.Dir)
	want   int
}

const (
	mostReady = 16 // of a kind; when one is missing, twice as many are wanted from then on
	mostKinds = 32
	mostTombs = 64 // a removal beyond them waits
	// smallDir is up to how much content, in bytes, is removed when nobody waits: somebody may count on more.
	smallDir = 16 << 20
	// roomy is how much room a medium has, in bytes, on which a few MiB for a moment are nobody's business.
	roomy = 256 << 20
	// lull is how long nobody asks for a directory before others are made ready: what is written for these would be waited for by those who make one.
	lull = 20 * time.Millisecond
)

func newErrands(work context.Context, build func(stockKind) (string, error)) *errands {
	return &errands{build: build, work: work, kick: make(chan struct{}, 1), stock: map[stockKind]*pile{}}
}

// take gives a directory that is ready, "" for none. The first of a kind wants none for the next: it may be the last.
func (e *errands) take(kind stockKind) string {
	e.mu.Lock()
	defer e.mu.Unlock()
	e.asked = time.Now()
	p, known := e.stock[kind]
	switch {
	case !known:
		if len(e.stock) >= mostKinds {
			for k, other := range e.stock {
				if other.want == 0 {
					delete(e.stock, k)
				}
			}
		}
		if len(e.stock) < mostKinds {
			e.stock[kind] = &pile{}
		}
		return ""
	case len(p.stages) == 0:
		p.want = min(max(2, 2*p.want), mostReady)
		e.wake()
		return ""
	}
	stage := p.stages[0]
	p.stages = p.stages[1:]
	e.wake()
	return stage
}

// bury removes a small directory that has lost its name in a moment, and says whether it will.
func (e *errands) bury(tomb string) bool {
	if !isRoomy(filepath.Dir(tomb)) || !isSmall(tomb) {
		return false
	}
	e.mu.Lock()
	defer e.mu.Unlock()
	if e.work.Err() != nil || len(e.tombs) >= mostTombs {
		return false
	}
	e.tombs = append(e.tombs, tomb)
	e.wake()
	return true
}

func (e *errands) wake() {
	select {
	case e.kick <- struct{}{}:
	default:
	}
}

// run does what there is to do until work ends; then nothing is left of it. lost is told of a tomb of which something is left.
func (e *errands) run(lost func(tomb string)) {
	var later <-chan time.Time
	for e.work.Err() == nil {
		select {
		case <-e.kick:
		case <-later:
		case <-e.work.Done():
		}
		later = nil
		for e.removeOne(lost) {
		}
		if wait, missing := e.missing(); missing && wait > 0 {
			later = time.After(wait)
		} else if missing && e.work.Err() == nil {
			e.buildOne()
			e.wake()
		}
	}
	for e.removeOne(lost) {
	}
	e.mu.Lock()
	defer e.mu.Unlock()
	for _, p := range e.stock {
		for _, stage := range p.stages {
			_ = os.RemoveAll(stage) // else the next process does (atomicfile.Sweep)
		}
	}
	clear(e.stock)
}

func (e *errands) removeOne(lost func(tomb string)) bool {
	e.mu.Lock()
	if len(e.tombs) == 0 {
		e.mu.Unlock()
		return false
	}
	tomb := e.tombs[0]
	e.tombs = e.tombs[1:]
	e.mu.Unlock()
	if os.RemoveAll(tomb) != nil {
		lost(tomb)
	}
	return true
}

// missing reports whether fewer directories are ready than are wanted, and how long it is until there may be a lull.
func (e *errands) missing() (wait time.Duration, missing bool) {
	e.mu.Lock()
	defer e.mu.Unlock()
	_, missing = e.wanted()
	return lull - time.Since(e.asked), missing
}

// wanted is a kind of which fewer are ready than are wanted. e.mu is held.
func (e *errands) wanted() (stockKind, bool) {
	for kind, p := range e.stock {
		if len(p.stages) < p.want {
			return kind, true
		}
	}
	return stockKind{}, false
}

func (e *errands) buildOne() {
	e.mu.Lock()
	kind, _ := e.wanted() // only this goroutine makes that none
	e.mu.Unlock()
	stage := ""
	err := error(syscall.ENOSPC)
	if isRoomy(kind.parent) {
		stage, err = e.build(kind)
	}
	e.mu.Lock()
	defer e.mu.Unlock()
	if p := e.stock[kind]; err != nil {
		p.want = 0
	} else {
		p.stages = append(p.stages, stage)
	}
}

func isRoomy(dir string) bool {
	var st unix.Statfs_t
	return unix.Statfs(dir, &st) == nil && int64(st.Bavail)*st.Bsize >= roomy
}

// isSmall reports whether dir has files only, which take little together.
func isSmall(dir string) bool {
	f, err := os.Open(dir)
	if err != nil {
		return false
	}
	defer f.Close()
	names, err := f.Readdirnames(-1)
	total := int64(0)
	for _, name := range names {
		var st unix.Stat_t
		if unix.Fstatat(int(f.Fd()), name, &st, unix.AT_SYMLINK_NOFOLLOW) != nil || st.Mode&unix.S_IFMT != unix.S_IFREG {
			return false
		}
		total += st.Blocks * vmdkfile.Sector
	}
	return err == nil && total <= smallDir
}

// What files are called in a directory that is ready. The small ones have a block each, so that what is written into them later needs none.
var (
	stockNames = []string{"extent", "descriptor", "file"}
	stockBlock = make([]byte, ext4.Block)
)

// buildReady makes a directory that is ready.
func (d Disks) buildReady(kind stockKind) (stage string, err error) {
	in, err := atomicfile.NewDir(kind.parent)
	if err != nil {
		return "", err
	}
	f, err := in.Create(stockNames[0])
	if err == nil {
		err = d.formatFile(context.Background(), f, kind.Shape, "", "")
	}
	for _, name := range stockNames[1:] {
		if err == nil {
			err = in.Write(name, stockBlock)
		}
	}
	if err != nil {
		return "", errors.Join(err, in.Abandon())
	}
	return in.Rest()
}

// createReady is CreateDir of a directory that is ready. fs.ErrExist if something is at dir; after any other error it can still be made.
func (d Disks) createReady(stage, dir string, spec portlayer.DirSpec, size portlayer.Bytes, uuid string) error {
	in, err := atomicfile.Resume(stage, stockNames...)
	if err != nil {
		return err
	}
	extent := vmdkfile.Extent(spec.Name)
	content := [][]byte{nil, []byte(vmdkfile.Descriptor(extent, int64(size))), spec.Data}
	err = ext4.Rename(in.Files()[0], int64(size), string(spec.Disk.Label[:16]), uuid)
	for i, name := range []string{extent, spec.Name, spec.File} {
		if err == nil {
			err = in.Rename(stockNames[i], name)
		}
		if err == nil && content[i] != nil {
			_, err = in.Files()[i].WriteAt(content[i], 0)
			err = errors.Join(err, in.Files()[i].Truncate(int64(len(content[i]))))
		}
	}
	if err != nil {
		return errors.Join(err, in.Abandon())
	}
	return in.Finish(dir)
}

// createAtOnce is CreateDir where a directory is ready, and done says that it was.
func (d Disks) createAtOnce(dir string, spec portlayer.DirSpec, size portlayer.Bytes, uuid string) (done bool, err error) {
	if d.errands == nil || !spec.Again {
		return false, nil
	}
	if _, err := os.Lstat(dir); err == nil {
		return true, fs.ErrExist
	}
	d.sweep(filepath.Dir(dir)) // before there is anything that it could take for a dead maker's
	stage := d.errands.take(stockKind{filepath.Dir(dir), ext4.Shape{Size: int64(size), Dir: guest.VolumeDir}})
	if stage == "" {
		return false, nil
	}
	err = d.createReady(stage, dir, spec, size, uuid)
	return err == nil || errors.Is(err, fs.ErrExist), err
}
