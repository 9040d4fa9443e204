package qemu

import (
	"bufio"
	"context"
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"hash/crc32"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"time"

	"golang.org/x/sys/unix"

	"vch/internal/atomicfile"
	"vch/internal/fault"
	"vch/internal/qmp"
	"vch/internal/sparsefile"
	"vch/portlayer"
)

// A template is a machine that was booted to where its tether waits for its config, and stopped there: its memory, and the state of its processor and its devices. A
// fork maps the memory privately and goes on from the state, in a fraction of the time of a boot and of its memory.
//
// While it is used, the memory is a memfd that is sealed: QEMU opens its memory for writing even where it maps it privately, and a guest that broke out of one
// QEMU must not be able to write into the memory of the others. On disk it is kept in a directory named by its key.
type template struct {
	key    string
	memory *os.File // a sealed memfd
	state  []byte   // QEMU's migration stream, without the memory
	held   *os.File // the directory on disk, locked against its deletion; nil if the template could not be kept
	unkept error    // why not

	leaving int // once it is off the shelf: how many still make forks of it; guarded by the shelf's mu
}

func (t *template) close() {
	t.memory.Close()
	if t.held != nil {
		t.held.Close()
	}
}

// The files of a template's directory.
const (
	templateMemory = "memory" // extents, see writeMemory
	templateState  = "state"
	templateAbout  = "template.json"
)

// templateFormat changes when what is in a template's files, or how a machine is prepared before it becomes one, does.
const templateFormat = 1

// about is what templateAbout holds.
type about struct {
	Key       string          `json:"key"`
	Made      time.Time       `json:"made"`
	QEMU      string          `json:"qemu"` // version
	Kernel    string          `json:"kernel"`
	Accel     string          `json:"accel"`
	Memory    portlayer.Bytes `json:"memory"` // of the machine
	CPUs      int             `json:"cpus"`
	MemorySum uint32          `json:"memory_sum"` // CRC-32C of the file
	StateSum  uint32          `json:"state_sum"`  // CRC-32C of the file
}

// shared lets QEMU leave memory that is in a file out of its stream (QEMU 7.2 qapi/migration.json, MigrationCapability), and tell how it goes on.
var shared = map[string]any{"capabilities": []any{
	map[string]any{"capability": "x-ignore-shared", "state": true},
	map[string]any{"capability": "events", "state": true},
}}

// makeTemplate boots a machine of the shape s in dir, which it may litter, and stops it where it waits.
func (h *Hypervisor) makeTemplate(ctx context.Context, dir string, s shape) (t *template, err error) {
	s.life, s.name, s.drives = pattern, processName("template"), nil
	memory, err := newMemory(s.memory)
	if err != nil {
		return nil, err
	}
	defer func() {
		if err != nil {
			memory.Close()
		}
	}()
	p, q, err := h.launch(ctx, dir, s, memory)
	if err != nil {
		return nil, err
	}
	defer func() {
		q.Close()
		h.end(p)
	}()
	stop := context.AfterFunc(ctx, q.HangUp)
	defer stop()
	// What is done for the first time takes longest: the guest's kernel and its tether have done it all before they are copied.
	if err := h.rehearse(ctx, p, q, false); err != nil {
		return nil, err
	}
	if err := q.Call(ctx, "stop", nil, nil); err != nil {
		return nil, err
	}
	state, err := memfd("vch-state", 0)
	if err != nil {
		return nil, err
	}
	defer state.Close()
	if err := migrate(ctx, q, "migrate", state); err != nil {
		return nil, err
	}
	q.Close()
	h.end(p)
	if err := seal(memory); err != nil {
		return nil, err
	}
	t = &template{key: s.key, memory: memory}
	if t.state, err = io.ReadAll(io.NewSectionReader(state, 0, maxState)); err != nil {
		return nil, err
	}
	return t, nil
}

// maxState bounds a template's state, which takes 350 kB.
const maxState = 64 << 20

// memfd makes a file that is nowhere but in memory.
func memfd(name string, flags int) (*os.File, error) {
	fd, err := unix.MemfdCreate(name, flags|unix.MFD_CLOEXEC)
	if err != nil {
		return nil, fmt.Errorf("cannot make a file in memory: %w", err)
	}
	return os.NewFile(uintptr(fd), name), nil
}

// newMemory makes the file that is a template's memory.
func newMemory(size portlayer.Bytes) (*os.File, error) {
	f, err := memfd("vch-template", unix.MFD_ALLOW_SEALING)
	if err != nil {
		return nil, err
	}
	if err := f.Truncate(int64(size)); err != nil {
		return nil, errors.Join(kindOf(err), f.Close())
	}
	return f, nil
}

// seal lets nobody write into a template's memory any more.
func seal(memory *os.File) error {
	if _, err := unix.FcntlInt(memory.Fd(), unix.F_ADD_SEALS, unix.F_SEAL_WRITE|unix.F_SEAL_GROW|unix.F_SEAL_SHRINK|unix.F_SEAL_SEAL); err != nil {
		return fmt.Errorf("cannot seal the memory of a template: %w", err)
	}
	return nil
}

// migrate runs a migration command with the state in a file, and waits for its end.
func migrate(ctx context.Context, q *qmp.Client, command string, state *os.File) error {
	if err := q.Call(ctx, "migrate-set-capabilities", shared, nil); err != nil {
		return err
	}
	if err := q.Send(ctx, "getfd", map[string]any{"fdname": "state"}, nil, state); err != nil {
		return err
	}
	failed := false
	err := q.CallUntil(ctx, command, map[string]any{"uri": "fd:state"}, func(e qmp.Event) bool {
		var data struct {
			Status string `json:"status"`
		}
		if e.Event != "MIGRATION" || json.Unmarshal(e.Data, &data) != nil {
			return false
		}
		failed = data.Status == "failed" || data.Status == "cancelled"
		return failed || data.Status == "completed"
	})
	if err == nil && failed {
		err = fault.New(fault.Internal, "%s failed", command)
	}
	return err
}

// save keeps a template on disk, in dir/KEY. Another daemon may have been quicker: then its own stays.
func (t *template) save(dir string, a about) error {
	path := filepath.Join(dir, t.key)
	err := atomicfile.MakeDir(path, func(in *atomicfile.Dir) (err error) {
		if a.MemorySum, err = writeSummed(in, templateMemory, t.writeMemory); err != nil {
			return err
		}
		if a.StateSum, err = writeSummed(in, templateState, func(w io.Writer) error { _, err := w.Write(t.state); return err }); err != nil {
			return err
		}
		text, err := json.MarshalIndent(a, "", "\t")
		if err != nil {
			return err
		}
		return in.Write(templateAbout, append(text, '\n'))
	})
	if err != nil && !errors.Is(err, fs.ErrExist) {
		return noRoom(kindOf(err), dir)
	}
	t.held, err = lockDir(path, unix.LOCK_SH)
	return err
}

// writeSummed makes a file and gives the CRC-32C of what is in it.
func writeSummed(in *atomicfile.Dir, name string, fill func(io.Writer) error) (uint32, error) {
	f, err := in.Create(name)
	if err != nil {
		return 0, err
	}
	sum := crc32.New(crc32.MakeTable(crc32.Castagnoli))
	w := bufio.NewWriterSize(io.MultiWriter(f, sum), 1<<20)
	if err := fill(w); err != nil {
		return 0, err
	}
	err = w.Flush()
	return sum.Sum32(), err
}

// writeMemory writes what memory holds: for each piece its offset and its length (8 bytes each, little endian), then its bytes.
func (t *template) writeMemory(w io.Writer) error {
	info, err := t.memory.Stat()
	if err != nil {
		return err
	}
	return sparsefile.Data(t.memory, info.Size(), func(begin, end int64) error {
		head := binary.LittleEndian.AppendUint64(nil, uint64(begin))
		if _, err := w.Write(binary.LittleEndian.AppendUint64(head, uint64(end-begin))); err != nil {
			return err
		}
		_, err := io.Copy(w, io.NewSectionReader(t.memory, begin, end-begin))
		return err
	})
}

// readMemory is what writeMemory wrote.
func readMemory(r io.Reader, memory *os.File) error {
	info, err := memory.Stat()
	if err != nil {
		return err
	}
	for {
		var head [16]byte
		if _, err := io.ReadFull(r, head[:]); err == io.EOF {
			return nil
		} else if err != nil {
			return err
		}
		begin, length := int64(binary.LittleEndian.Uint64(head[:])), int64(binary.LittleEndian.Uint64(head[8:]))
		if begin < 0 || length < 0 || begin > info.Size() || length > info.Size()-begin {
			return fmt.Errorf("it has %d bytes at %d, beyond its end", length, begin)
		}
		if n, err := io.Copy(io.NewOffsetWriter(memory, begin), io.LimitReader(r, length)); err != nil || n < length {
			return errors.Join(err, io.ErrUnexpectedEOF)
		}
	}
}

// load reads the template with a key from disk. NotFound if it is not there, Conflict if it is damaged.
func load(dir, key string, memory portlayer.Bytes) (_ *template, err error) {
	held, err := lockDir(filepath.Join(dir, key), unix.LOCK_SH)
	if err != nil {
		return nil, err
	}
	read := &template{key: key, held: held}
	defer func() {
		if err != nil {
			if read.memory != nil {
				read.memory.Close()
			}
			held.Close()
		}
	}()
	damaged := func(name string, err error) error {
		return fault.New(fault.Conflict, "template %s is damaged: %s: %w", key, filepath.Join(held.Name(), name), err)
	}
	text, err := readSmall(filepath.Join(held.Name(), templateAbout))
	if err != nil {
		return nil, damaged(templateAbout, err)
	}
	var a about
	if err := json.Unmarshal(text, &a); err != nil {
		return nil, damaged(templateAbout, err)
	}
	if a.Key != key || a.Memory != memory {
		return nil, damaged(templateAbout, errors.New("it is another's"))
	}
	if read.memory, err = newMemory(memory); err != nil {
		return nil, err
	}
	if err := readSummed(filepath.Join(held.Name(), templateMemory), a.MemorySum, func(r io.Reader) error { return readMemory(r, read.memory) }); err != nil {
		return nil, damaged(templateMemory, err)
	}
	if err := readSummed(filepath.Join(held.Name(), templateState), a.StateSum, func(r io.Reader) (err error) {
		read.state, err = io.ReadAll(io.LimitReader(r, maxState))
		return err
	}); err != nil {
		return nil, damaged(templateState, err)
	}
	if err := seal(read.memory); err != nil {
		return nil, err
	}
	now := time.Now()
	_ = os.Chtimes(held.Name(), now, now) // when it was used last
	return read, nil
}

// readSummed hands a file to read, and compares its CRC-32C.
func readSummed(path string, want uint32, read func(io.Reader) error) error {
	f, err := os.Open(path)
	if err != nil {
		return err
	}
	defer f.Close()
	sum := crc32.New(crc32.MakeTable(crc32.Castagnoli))
	r := io.TeeReader(bufio.NewReaderSize(f, 1<<20), sum)
	if err := read(r); err != nil {
		return err
	}
	if _, err := io.Copy(io.Discard, r); err != nil {
		return err
	}
	// It is in memory now: twice would be too much.
	_ = unix.Fadvise(int(f.Fd()), 0, 0, unix.FADV_DONTNEED)
	if got := sum.Sum32(); got != want {
		return fmt.Errorf("its checksum is %08x, not %08x", got, want)
	}
	return nil
}

// lockDir opens a directory and locks it, as flock(2): LOCK_SH for who uses it, LOCK_EX for who deletes it. NotFound if it is not there, or about to go; InUse if another
// has it the other way.
func lockDir(dir string, how int) (*os.File, error) {
	d, err := os.Open(dir)
	if err != nil {
		return nil, kindOf(err)
	}
	if err := unix.Flock(int(d.Fd()), how|unix.LOCK_NB); err != nil {
		d.Close()
		if errors.Is(err, unix.EWOULDBLOCK) && how == unix.LOCK_EX {
			return nil, fault.New(fault.InUse, "%s is used", dir)
		}
		return nil, fault.As(fault.NotFound, err)
	}
	var at, has unix.Stat_t // whoever deletes it renames it first
	if unix.Stat(dir, &at) != nil || unix.Fstat(int(d.Fd()), &has) != nil || at.Ino != has.Ino {
		d.Close()
		return nil, fault.New(fault.NotFound, "%s is gone", dir)
	}
	return d, nil
}
