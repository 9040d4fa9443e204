package fake

import (
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"maps"
	"os"
	"slices"
	"strings"
	"sync"

	"golang.org/x/sys/unix"

	"vch/portlayer"
)

// The simulated file system in an extent: magic, label (32 digits, or as many zero bytes), the length of the list, padding to contentAt, the list.
// The list is a JSON object from paths below the content directory to what the files hold.
const (
	magic     = "vch simulated fs"
	labelAt   = int64(len(magic))
	lengthAt  = labelAt + 32
	contentAt = 4096
)

// format writes an empty file system into an extent.
func format(f io.WriterAt, label portlayer.Label) error {
	head := make([]byte, contentAt)
	copy(head, magic)
	copy(head[labelAt:], label)
	_, err := f.WriteAt(head, 0)
	return err
}

// content is a mounted file system.
type content struct {
	readOnly bool
	label    portlayer.Label
	serial   string   // of its disk; "" in memory
	room     int64    // bytes that the list may take
	extent   *os.File // nil: in memory, as a tmpfs

	frozen sync.RWMutex // read by whoever writes; held while it is frozen

	mu    sync.Mutex // guards below, and the extent, which is this file system's memory
	files map[string]string
	gone  bool // its disk was pulled
}

// pull is what the end of its disk does.
func (c *content) pull() {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.gone = true
}

// newMemory makes a file system in memory.
func newMemory() *content {
	const most = 64 << 20
	return &content{room: most, files: map[string]string{}}
}

// mountExtent opens the file system in a disk.
func mountExtent(d portlayer.Disk) (_ *content, err error) {
	path, fi, err := openExtent(d.File)
	if err != nil {
		return nil, err
	}
	flag := os.O_RDWR
	if d.ReadOnly {
		flag = os.O_RDONLY
	}
	f, err := os.OpenFile(path, flag, 0)
	if err != nil {
		return nil, err
	}
	defer func() {
		if err != nil {
			err = errors.Join(err, f.Close())
		}
	}()
	head := make([]byte, contentAt)
	if _, err := f.ReadAt(head, 0); err != nil {
		return nil, fmt.Errorf("cannot read its superblock: %w", err)
	}
	if !strings.HasPrefix(string(head), magic) {
		return nil, errors.New("its disk holds no file system that the fake hypervisor knows")
	}
	c := &content{readOnly: d.ReadOnly, serial: d.Serial, extent: f, room: fi.Size() - contentAt, files: map[string]string{}}
	c.label = portlayer.Label(strings.TrimRight(string(head[labelAt:lengthAt]), "\x00"))
	n := binary.BigEndian.Uint64(head[lengthAt:])
	if n == 0 {
		return c, nil
	}
	if int64(n) > c.room {
		return nil, errors.New("its file system is damaged")
	}
	list := make([]byte, n)
	if _, err := f.ReadAt(list, contentAt); err != nil {
		return nil, err
	}
	if err := json.Unmarshal(list, &c.files); err != nil {
		return nil, fmt.Errorf("its file system is damaged: %w", err)
	}
	return c, nil
}

// listLength is how much is written in the extent at path.
func listLength(path string) (portlayer.Bytes, error) {
	f, err := os.Open(path)
	if err != nil {
		return 0, err
	}
	defer f.Close()
	var n [8]byte
	if _, err := f.ReadAt(n[:], lengthAt); err != nil {
		return 0, err
	}
	return portlayer.Bytes(binary.BigEndian.Uint64(n[:])), nil
}

// unmount lets go of the extent.
func (c *content) unmount() error {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.extent == nil {
		return nil
	}
	return c.extent.Close()
}

// write replaces a file. Its errors are the kernel's.
func (c *content) write(path, text string) error {
	c.frozen.RLock()
	defer c.frozen.RUnlock()
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.gone {
		return unix.EIO
	}
	if c.readOnly {
		return unix.EROFS
	}
	next := maps.Clone(c.files)
	next[path] = text
	list, err := json.Marshal(next)
	if err != nil {
		return err
	}
	if int64(len(list)) > c.room {
		return unix.ENOSPC
	}
	if c.extent != nil {
		if _, err := c.extent.WriteAt(list, contentAt); err != nil {
			return err
		}
		if _, err := c.extent.WriteAt(binary.BigEndian.AppendUint64(nil, uint64(len(list))), lengthAt); err != nil {
			return err
		}
	}
	c.files = next
	return nil
}

// rename gives the file system another label.
func (c *content) rename(label portlayer.Label) error {
	if c.label == label {
		return nil
	}
	if _, err := c.extent.WriteAt([]byte(label), labelAt); err != nil {
		return err
	}
	c.label = label
	return nil
}

// used is how many bytes the list takes.
func (c *content) used() int64 {
	c.mu.Lock()
	defer c.mu.Unlock()
	list, err := json.Marshal(c.files)
	if err != nil {
		return c.room
	}
	return int64(len(list))
}

// has reports whether path is a file, or a directory that holds one.
func (c *content) has(path string) bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	for file := range c.files {
		if file == path || strings.HasPrefix(file, path+"/") {
			return true
		}
	}
	return false
}

// names gives the paths of all files.
func (c *content) names() []string {
	c.mu.Lock()
	defer c.mu.Unlock()
	return slices.Collect(maps.Keys(c.files))
}

// read gives what a file holds.
func (c *content) read(path string) (string, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.gone {
		return "", unix.EIO
	}
	text, ok := c.files[path]
	if !ok {
		return "", unix.ENOENT
	}
	return text, nil
}

// errText is an error of the kernel as a program prints it.
func errText(err error) string {
	switch {
	case errors.Is(err, unix.EROFS):
		return "Read-only file system"
	case errors.Is(err, fs.ErrNotExist):
		return "No such file or directory"
	case errors.Is(err, unix.ENOSPC):
		return "No space left on device"
	case errors.Is(err, unix.EIO):
		return "I/O error"
	}
	return err.Error()
}
