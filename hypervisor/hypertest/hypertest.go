// Package hypertest is the suite that every hypervisor passes: it holds an implementation of portlayer.Hypervisor, Machine and Disks to what their comments
// promise, with the guest's end of the channel in it, since a machine that cannot be talked to proves nothing.
//
// One hypervisor, in one directory, runs through all of it, so that a real one boots few machines (a dozen). The suite ends by looking for what it left: machines,
// disks and files. It reaches the files of disks on this host, in order to damage them.
package hypertest

import (
	"context"
	"crypto/md5"
	"crypto/rand"
	"crypto/sha256"
	"encoding/hex"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"vch/guest"
	"vch/internal/fault"
	"vch/portlayer"
)

// Options is a hypervisor to be tested.
type Options struct {
	// New opens the hypervisor whose state is below dir. Called again with the same dir, after Close, it is the next daemon on the same host.
	New func(t *testing.T, dir string) portlayer.Hypervisor
	// Image makes the disk of a root image that has the Commands, in dir; the suite deletes it.
	Image func(t *testing.T, h portlayer.Hypervisor, dir portlayer.DiskPath) portlayer.DiskPath
	// Commands are the image's; the zero value is the fake's language.
	Commands Commands
	// Limit bounds each wait for a machine; 0: 10 s.
	Limit time.Duration
	// Memory of a machine; 0: 256 MiB.
	Memory portlayer.Bytes
	// Shares says that machines can share directories of this host.
	Shares bool
	// Datastore is for a hypervisor whose disk paths are none of this host's: where the suite's directory dir is for it, and where the file of a disk path is on this host.
	Datastore func(dir string) (root portlayer.DiskPath, local func(portlayer.DiskPath) string)
	// Uploads says that a disk that is filled from here takes all of its room: its zeros are written, too.
	Uploads bool
	// NoByteRate says that disks are bounded in requests a second alone; in bytes is Unsupported.
	NoByteRate bool
	// HidesExtents says that List shows a disk as its descriptor alone.
	HidesExtents bool
	// SizeUnit is what sizes of disks are rounded up to; 0: 512.
	SizeUnit portlayer.Bytes
}

// Commands says things in the language of sh -c. Paths and texts have no blanks or quotes. "echo TEXT", "echo TEXT >&2", "exit N", "cat", "sleep N" and a
// semicolon between commands are every shell's.
type Commands struct {
	Write func(path, text string) string // makes or replaces a file
	Read  func(path string) string       // prints a file
}

// suite is one run.
type suite struct {
	Options
	root  string             // the test's directory
	disks portlayer.DiskPath // where the suite's disks are
	image portlayer.DiskPath
	local func(portlayer.DiskPath) string // the file of this host that a disk path is
	h     portlayer.Hypervisor

	seats sync.Map // Machine.Seats of those that were connected to, by *guest.Client
}

// Run runs the suite.
func Run(t *testing.T, o Options) {
	if o.Commands.Write == nil {
		o.Commands = Commands{Write: func(p, text string) string { return "write " + p + " " + text }, Read: func(p string) string { return "read " + p }}
	}
	if o.Limit == 0 {
		o.Limit = 10 * time.Second
	}
	if o.Memory == 0 {
		o.Memory = 256 * portlayer.MiB
	}
	if o.SizeUnit == 0 {
		o.SizeUnit = 512
	}
	s := &suite{Options: o, root: t.TempDir(), local: func(p portlayer.DiskPath) string { return string(p) }}
	s.h = o.New(t, s.state())
	t.Cleanup(func() { s.clean(t) })
	root := portlayer.DiskPath(s.root)
	if o.Datastore != nil {
		root, s.local = o.Datastore(s.root)
	}
	s.disks = s.h.Disks().Join(root, "disks")
	if err := s.h.Disks().MakeDir(t.Context(), s.disks); err != nil {
		t.Fatal(err)
	}
	t.Run("says what it is", s.info)
	t.Run("disks", s.testDisks)
	t.Run("directories and files", s.testFiles)
	t.Run("machines", s.testMachines)
	t.Run("leaves nothing", s.leavesNothing)
}

func (s *suite) state() string { return filepath.Join(s.root, "hypervisor") }

// restart plays the daemon's restart.
func (s *suite) restart(t *testing.T) {
	t.Helper()
	if err := s.h.Close(); err != nil {
		t.Fatal(err)
	}
	s.h = s.New(t, s.state())
}

// clean ends what a failed test left running.
func (s *suite) clean(t *testing.T) {
	ctx, cancel := context.WithTimeout(context.Background(), s.Limit)
	defer cancel()
	ids, err := s.h.List(ctx)
	if err != nil {
		t.Error(err)
	}
	for _, id := range ids {
		m, err := s.h.Machine(ctx, id)
		if err == nil {
			err = m.Undefine(ctx)
		}
		if err != nil {
			t.Error(err)
		}
	}
	if err := s.h.Close(); err != nil {
		t.Error(err)
	}
}

func (s *suite) info(t *testing.T) {
	i, err := s.h.Info(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	if i.Name == "" || i.Version == "" || i.Kernel == "" {
		t.Errorf("info %+v lacks a name, a version or a kernel", i)
	}
}

// leavesNothing looks for machines, disks and files after everything was deleted.
func (s *suite) leavesNothing(t *testing.T) {
	d := s.h.Disks()
	if s.image != "" {
		if err := d.Delete(t.Context(), s.image); err != nil {
			t.Error(err)
		}
	}
	if ids, err := s.h.List(t.Context()); err != nil || len(ids) != 0 {
		t.Errorf("machines left: %v, %v", ids, err)
	}
	if names, err := d.List(t.Context(), s.disks); err != nil || len(names) != 0 {
		t.Errorf("left beside the disks: %v, %v", names, err)
	}
	err := filepath.WalkDir(s.root, func(p string, e fs.DirEntry, err error) error {
		for _, name := range machineNames {
			if strings.Contains(e.Name(), string(machineID(name))) {
				t.Errorf("left of machine %s: %s", name, p)
			}
		}
		return err
	})
	if err != nil {
		t.Error(err)
	}
}

// want checks an error's kind, and that its text says each of words.
func want(t *testing.T, what string, err error, kind fault.Kind, words ...string) {
	t.Helper()
	if err == nil {
		t.Errorf("%s: no error; want kind %q", what, kind)
		return
	}
	if got := fault.KindOf(err); got != kind {
		t.Errorf("%s: kind %q, want %q: %v", what, got, kind, err)
	}
	for _, w := range words {
		if !strings.Contains(err.Error(), w) {
			t.Errorf("%s: %q does not say %q", what, err, w)
		}
	}
}

// extent is the file of this host that a disk's bytes are in.
func (s *suite) extent(p portlayer.DiskPath) string {
	return strings.TrimSuffix(s.local(p), ".vmdk") + "-flat.vmdk"
}

// shown is what List shows of files.
func (s *suite) shown(names ...string) []string {
	return slices.DeleteFunc(names, func(name string) bool { return s.HidesExtents && strings.HasSuffix(name, "-flat.vmdk") })
}

func label(name string) portlayer.Label {
	sum := md5.Sum([]byte("hypertest/" + name))
	return portlayer.Label(hex.EncodeToString(sum[:]))
}

func machineID(name string) portlayer.ContainerID {
	sum := sha256.Sum256([]byte("hypertest/" + name))
	return portlayer.ContainerID(hex.EncodeToString(sum[:]))
}

// disk makes a disk for a test and deletes it after.
func (s *suite) disk(t *testing.T, name string) portlayer.DiskPath {
	t.Helper()
	d := s.h.Disks()
	p := d.Join(s.disks, name+".vmdk")
	if err := d.Create(t.Context(), p, portlayer.DiskSpec{Size: 16 * portlayer.MiB, Label: label(name)}); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := s.h.Disks().Delete(context.Background(), p); err != nil {
			t.Error(err)
		}
	})
	return p
}

// config is an executor config that runs script.
func config(name string, script []string, mounts ...guest.MountSpec) guest.ExecutorConfig {
	cfg := guest.ExecutorConfig{
		ID:       string(machineID(name)),
		Hostname: name,
		Root:     guest.Root{Image: "disk://" + imageSerial, Writable: "disk://" + ownSerial},
		Mounts:   mounts,
		Process:  &guest.Process{Args: []string{"sh", "-c", strings.Join(script, "; ")}, Stdin: true},
		Clock:    time.Now(),
		Entropy:  make([]byte, 64),
	}
	rand.Read(cfg.Entropy)
	return cfg
}

// volume is the mount of the volume called name.
func (s *suite) volume(name string, readOnly bool) guest.MountSpec {
	spec := guest.MountSpec{Source: "label://" + string(label(name)), Target: "/data", ReadOnly: readOnly, Name: name}
	for _, l := range s.h.Disks().Born() {
		spec.Was = append(spec.Was, string(l))
	}
	return spec
}

func truncate(t *testing.T, path string, size int64) {
	t.Helper()
	if err := os.Truncate(path, size); err != nil {
		t.Fatal(err)
	}
}
