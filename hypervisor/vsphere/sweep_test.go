package vsphere

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/vmware/govmomi/vim25/types"

	"vch/internal/atonce"
	"vch/portlayer"
)

// place makes what somebody has left, or is making, last changed a while ago, and gives its path on this host.
func (s *scene) place(name string, ago time.Duration) string {
	s.Helper()
	p := filepath.Join(s.sim.Path(string(s.dir)), name)
	s.must(os.MkdirAll(p, 0o700))
	at := time.Now().Add(-ago)
	s.must(os.Chtimes(p, at, at))
	return p
}

func there(p string) bool { _, err := os.Stat(p); return err == nil }

var small = portlayer.DirSpec{Disk: portlayer.DiskSpec{Size: 16 * portlayer.MiB, Label: portlayer.Label(strings.Repeat("ab", 16))}, Name: "d.vmdk", File: "volume.json", Data: []byte("{}")}

// A process removes what an earlier one of its VCH left, what was removed, and what others left long ago; not what it, or another VCH, is making.
func TestSweepLeavesTheLiving(t *testing.T) {
	s := newScene(t)
	d := s.h.disks
	_, earlier := makers("this")
	_, other := makers("another")
	gone := []string{s.place(random(earlier), 0), s.place(random(earlier)+".vmdk", 0), s.place(random(tombPrefix), 0),
		s.place(random(other), 2*abandonedFor), s.place(random(unfinishedPrefix), 2*abandonedFor)}
	kept := []string{s.place(d.unfinished(""), 2*abandonedFor), s.place(random(other), time.Hour), s.place(random(other)+".iso", 0), s.place(random(unfinishedPrefix), time.Hour)}
	s.must(d.CreateDir(t.Context(), d.Join(s.dir, "v"), small))
	for _, p := range gone {
		if there(p) {
			t.Errorf("%s is there still", p)
		}
	}
	for _, p := range kept {
		if !there(p) {
			t.Errorf("%s was removed", p)
		}
	}
}

// A sweep sees what others begin to make meanwhile.
func TestSweepWhileOthersMake(t *testing.T) {
	s := newScene(t)
	d := s.h.disks
	s.must(d.CreateDir(t.Context(), d.Join(s.dir, "first"), small)) // the golden disk is there
	d.mu.Lock()
	clear(d.sweeps)
	d.mu.Unlock()
	s.sim.Delay("SearchDatastore_Task", 100*time.Millisecond)
	s.sim.Delay("CopyVirtualDisk_Task", 500*time.Millisecond)
	const many = 4
	atonce.Do(many, many, func(i int) {
		if err := d.CreateDir(t.Context(), d.Join(s.dir, fmt.Sprintf("v%d", i)), small); err != nil {
			t.Error(err)
		}
	})
}

// A tomb that cannot be removed is not tried again by every call.
func TestUndeletableTomb(t *testing.T) {
	s := newScene(t)
	d := s.h.disks
	s.must(d.CreateDir(t.Context(), d.Join(s.dir, "first"), small))
	d.mu.Lock()
	clear(d.sweeps)
	d.mu.Unlock()
	s.place(random(tombPrefix), 0)
	s.sim.FailNext(100, "DeleteDatastoreFile_Task", &types.CannotDeleteFile{})
	s.sim.Calls(true)
	for _, name := range []string{"a", "b", "c"} {
		s.must(d.CreateDir(t.Context(), d.Join(s.dir, name), small))
	}
	if n := s.sim.Calls(true)["DeleteDatastoreFile_Task"]; n != 1 {
		t.Errorf("%d tries for one tomb", n)
	}
}

// A directory that could not be removed at once goes all the same.
func TestRemovalIsTriedAgain(t *testing.T) {
	s := newScene(t)
	d := s.h.disks
	dir := d.Join(s.dir, "v")
	s.must(d.CreateDir(t.Context(), dir, small))
	s.sim.FailNext(2, "DeleteDatastoreFile_Task", &types.CannotDeleteFile{})
	s.must(d.RemoveDir(t.Context(), dir))
	s.left()
}

// Who closes does not wait for news that nobody listens to any more: removals that go on end, or are the next process's.
func TestCloseAmidRemovals(t *testing.T) {
	s := newScene(t)
	h, err := Open(t.Context(), options(t, s.sim, t.TempDir()))
	s.must(err)
	d := h.Disks()
	dir := d.Join(s.dir, "v")
	s.must(d.MakeDir(t.Context(), dir))
	_, err = d.List(t.Context(), s.dir) // where the datastore's files are looked for is asked once
	s.must(err)
	s.sim.Delay("WaitForUpdatesEx", 300*time.Millisecond)
	s.sim.Calls(true)
	s.must(d.RemoveDir(t.Context(), dir))
	s.eventually("the content goes", func() bool { return s.sim.Calls(false)["DeleteDatastoreFile_Task"] > 0 })
	s.must(h.Close())
	if c := s.sim.Calls(true); c["RetrieveProperties"] > 0 { // end asks when it has heard nothing for long
		t.Errorf("closing took the calls %v", c)
	}
}
