package qemu

import (
	"context"
	"encoding/hex"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"testing"
	"testing/synctest"
	"time"

	"vch/guest"
	"vch/internal/ext4"
	"vch/portlayer"
)

// makeReady makes a directory by way of one that is ready.
func makeReady(d Disks, dir string, spec portlayer.DirSpec) error {
	size, uuid, err := checked(spec.Disk)
	if err != nil {
		return err
	}
	stage, err := d.buildReady(stockKind{filepath.Dir(dir), ext4.Shape{Size: int64(size), Dir: guest.VolumeDir}})
	if err != nil {
		return err
	}
	return d.createReady(stage, dir, spec, size, uuid)
}

// A disk from a directory that was ready is sound, and has its own name.
func TestReadyDisk(t *testing.T) {
	d, err := FindDisks()
	if err != nil {
		t.Fatal(err)
	}
	fsck, err := ext4.FindTool("e2fsck")
	if err != nil {
		t.Fatal(err)
	}
	const label = portlayer.Label("0123456789abcdef0123456789abcdef")
	home := filepath.Join(t.TempDir(), "home")
	if err := makeReady(d, home, portlayer.DirSpec{Disk: portlayer.DiskSpec{Size: portlayer.GiB, Label: label}, Name: "x.vmdk", File: "note", Data: []byte("text")}); err != nil {
		t.Fatal(err)
	}
	extent := filepath.Join(home, "x-flat.vmdk")
	if out, err := exec.CommandContext(t.Context(), fsck, "-fn", extent).CombinedOutput(); err != nil {
		t.Errorf("%v: %s", err, out)
	}
	f, err := os.Open(extent)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	uuid := make([]byte, 16)
	if _, err := f.ReadAt(uuid, 1024+0x68); err != nil || hex.EncodeToString(uuid) != string(label) {
		t.Errorf("it is called %x, %v", uuid, err)
	}
}

// bench is errands whose directories are empty ones.
type bench struct {
	*errands
	dir   string
	made  int
	fails bool
	lost  []string
	end   context.CancelFunc
	ended chan struct{}
}

func newBench(t *testing.T) *bench {
	b := &bench{dir: t.TempDir(), ended: make(chan struct{})}
	work, end := context.WithCancel(t.Context())
	b.end = end
	b.errands = newErrands(work, func(kind stockKind) (string, error) {
		if b.fails {
			return "", errors.New("no")
		}
		b.made++
		stage := filepath.Join(kind.parent, fmt.Sprintf("stage%d", b.made))
		return stage, os.Mkdir(stage, 0o700)
	})
	go func() {
		defer close(b.ended)
		b.run(func(tomb string) { b.lost = append(b.lost, tomb) })
	}()
	return b
}

func (b *bench) close() {
	b.end()
	<-b.ended
}

// The first of a kind has nothing made ready; as more are asked for, more are, in a lull. At the end nothing is left.
func TestStock(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := newBench(t)
		kind := stockKind{b.dir, ext4.Shape{Size: 1 << 30, Dir: guest.VolumeDir}}
		quiet := func() { time.Sleep(10 * lull); synctest.Wait() }
		expect := func(made int) {
			t.Helper()
			if b.made != made {
				t.Fatalf("%d were made, want %d", b.made, made)
			}
		}
		if b.take(kind) != "" {
			t.Error("one was ready from the start")
		}
		quiet()
		expect(0)
		b.take(kind)
		time.Sleep(lull / 2)
		synctest.Wait()
		expect(0) // somebody may still be at it
		quiet()
		expect(2)
		seen := map[string]bool{}
		for range 2 {
			stage := b.take(kind)
			if stage == "" || seen[stage] {
				t.Errorf("took %q, after %v", stage, seen)
			}
			seen[stage] = true
		}
		if b.take(kind) != "" {
			t.Error("a third was ready")
		}
		quiet()
		expect(2 + 4)
		for range 100 {
			b.take(kind)
		}
		quiet()
		if ready := len(b.stock[kind].stages); ready != mostReady {
			t.Errorf("%d are ready, want %d", ready, mostReady)
		}
		// What cannot be made is not tried on and on.
		other := stockKind{b.dir, ext4.Shape{Size: 2 << 30, Dir: guest.VolumeDir}}
		b.fails = true
		b.take(other)
		b.take(other)
		quiet()
		if p := b.stock[other]; p.want != 0 {
			t.Errorf("%d are wanted where none can be made", p.want)
		}
		// Kinds that nobody asks for again are forgotten.
		for i := range 10 * mostKinds {
			b.take(stockKind{b.dir, ext4.Shape{Size: int64(i)}})
		}
		if len(b.stock) > mostKinds {
			t.Errorf("%d kinds are known", len(b.stock))
		}
		b.close()
		if got := len(b.left(t)); got != b.made-mostReady {
			t.Errorf("%d are left of %d, want those that were taken", got, b.made)
		}
	})
}

func (b *bench) left(t *testing.T) (names []string) {
	t.Helper()
	entries, err := os.ReadDir(b.dir)
	if err != nil {
		t.Fatal(err)
	}
	for _, e := range entries {
		names = append(names, e.Name())
	}
	return names
}

// A small directory goes in a moment; one with more in it, or at the end, is its remover's.
func TestBury(t *testing.T) {
	b := newBench(t)
	tomb := func(name string, size int) string {
		dir := filepath.Join(b.dir, name)
		if err := errors.Join(os.Mkdir(dir, 0o700), os.WriteFile(filepath.Join(dir, "x"), make([]byte, size), 0o600)); err != nil {
			t.Fatal(err)
		}
		return dir
	}
	if !b.bury(tomb("small", 4096)) {
		t.Error("a small one was not taken")
	}
	if b.bury(tomb("large", smallDir+1)) {
		t.Error("a large one was taken")
	}
	if err := os.MkdirAll(filepath.Join(b.dir, "deep", "er"), 0o700); err != nil || b.bury(filepath.Join(b.dir, "deep")) {
		t.Errorf("one with a directory in it was taken (%v)", err)
	}
	b.close()
	if b.bury(tomb("late", 1)) {
		t.Error("one was taken after the end")
	}
	if got := b.left(t); len(got) != 3 || len(b.lost) != 0 {
		t.Errorf("left %v, lost %v", got, b.lost)
	}
}

// Where what was ready is gone, as with the medium, the directory is made as if it had never been.
func TestReadyIsGone(t *testing.T) {
	d, err := FindDisks()
	if err != nil {
		t.Fatal(err)
	}
	dir := t.TempDir()
	stages := 0
	work, end := context.WithCancel(t.Context())
	d.errands = newErrands(work, func(kind stockKind) (string, error) {
		stage, err := d.buildReady(kind)
		stages++
		return stage, errors.Join(err, os.Remove(filepath.Join(stage, stockNames[2])))
	})
	ended := make(chan struct{})
	go func() { d.errands.run(func(string) {}); close(ended) }()
	for i := range 4 {
		at := portlayer.DiskPath(filepath.Join(dir, fmt.Sprint(i)))
		spec := portlayer.DirSpec{Disk: portlayer.DiskSpec{Size: portlayer.MinDisk, Label: portlayer.Label(fmt.Sprintf("%032x", i))}, Name: "x.vmdk", File: "note", Again: true}
		if err := d.CreateDir(t.Context(), at, spec); err != nil {
			t.Fatal(err)
		}
		if names, err := d.List(t.Context(), at); err != nil || len(names) != 3 {
			t.Errorf("made %v, %v", names, err)
		}
		time.Sleep(5 * lull)
	}
	end()
	<-ended
	if names, err := os.ReadDir(dir); err != nil || len(names) != 4 || stages == 0 {
		t.Errorf("left %v of %d, %v", names, stages, err)
	}
}
