// Package ext4 makes empty ext4 file systems: the first of a size by mkfs.ext4 and debugfs, the next by pouring the few blocks of the first (golden.go).
//
// It never mounts, checks or parses one that a guest has written.
package ext4

import (
	"bytes"
	"context"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"

	"vch/internal/fault"
)

// Maker makes file systems.
type Maker struct {
	mkfs, debugfs string // programs
	golden        *goldens
}

// Find finds the programs that make file systems. NotFound says what to install.
func Find() (m Maker, err error) {
	m.golden = &goldens{}
	if m.mkfs, err = FindTool("mkfs.ext4"); err == nil {
		m.debugfs, err = FindTool("debugfs")
	}
	return m, err
}

// FromDir writes an ext4 without a journal into file, as large as it is, that holds what is in the directory root.
func (m Maker) FromDir(ctx context.Context, file, root string) error {
	return Tool(ctx, m.mkfs, "-q", "-F", "-b", strconv.Itoa(Block), "-O", "^has_journal", "-E", "root_owner=0:0,nodiscard", "-d", root, file)
}

// FindTool finds a program of e2fsprogs, also where administrators' programs are: an ordinary user's PATH lacks them.
func FindTool(name string) (string, error) {
	if path, err := exec.LookPath(name); err == nil {
		return path, nil
	}
	for _, dir := range []string{"/usr/sbin", "/sbin"} {
		if path, err := exec.LookPath(filepath.Join(dir, name)); err == nil {
			return path, nil
		}
	}
	return "", fault.New(fault.NotFound, "%s is missing; install it with make setup, or Debian's package e2fsprogs", name)
}

// Block is the block of file systems, in bytes.
const Block = 4096

// inPlace is how many times its size a volume can have before its kernel must put group descriptors elsewhere (ext4_convert_meta_bg, fs/ext4/resize.c), which it does unasked.
// mke2fs keeps room for 1,024 times, and all of that is written: 127 of the 149 blocks of a file system of 1 GiB, 1,024 of the 1,090 of one of 20 GiB. Of 64 times, it is 7.
const inPlace = 64

// Format writes an empty ext4 into f, a new file, which gets shape.Size, and does not sync it. label and uuid are as mkfs.ext4 takes them by -L and -U; "" is none, and a random one.
func (m Maker) Format(ctx context.Context, f *os.File, shape Shape, label, uuid string) error {
	file, size := f.Name(), shape.Size
	if err := f.Truncate(size); err != nil {
		return err
	}
	if g, ok := m.golden.get(shape); ok {
		id, err := uuidBytes(uuid)
		if err != nil {
			return err
		}
		return g.named(size, label, id).write(f)
	}
	// With its own seed for checksums a file system can get another UUID while it is mounted, as a copy does in its first machine.
	// The file is new and reads as zeros: nothing needs to be zeroed by mkfs now, nor by the guest's kernel later.
	features, extended := "metadata_csum_seed", "root_owner=0:0,nodiscard,assume_storage_prezeroed=1"
	most := size / Block * inPlace
	if shape.Most > 0 {
		most = shape.Most / Block
	}
	if shape.Dir == "" {
		features += ",^resize_inode" // a machine's own disk never grows
	} else if most < 1<<32 { // as far as the room can be (resize_inode has 32 bits)
		extended += ",resize=" + strconv.FormatInt(most, 10)
	}
	args := []string{"-q", "-F", "-b", strconv.Itoa(Block), "-m", "0", "-O", features, "-E", extended}
	if shape.Journal > 0 {
		args = append(args, "-J", "size="+strconv.FormatInt(shape.Journal>>20, 10))
	}
	if label != "" {
		args = append(args, "-L", label)
	}
	if uuid != "" {
		args = append(args, "-U", uuid)
	}
	if err := Tool(ctx, m.mkfs, append(args, file)...); err != nil {
		return err
	}
	if shape.Dir != "" {
		if err := Tool(ctx, m.debugfs, "-w", "-R", "mkdir "+shape.Dir, file); err != nil {
			return err
		}
	}
	g, err := learn(f, size)
	if err == nil && len(g.pieces) > 0 {
		m.golden.put(shape, g)
	}
	return err
}

// Tool runs a program of e2fsprogs; its words become the error. debugfs ends with 0 whatever happens, so that words other than its banner are a failure, too.
func Tool(ctx context.Context, program string, args ...string) error {
	cmd := exec.CommandContext(ctx, program, args...)
	cmd.Env = []string{"LC_ALL=C", "PATH=/usr/sbin:/usr/bin:/sbin:/bin"}
	out, err := cmd.CombinedOutput()
	words := saying(out)
	name := filepath.Base(program)
	switch {
	case ctx.Err() != nil:
		return ctx.Err()
	case err != nil:
		return fault.New(fault.Internal, "%s: %w: %s", name, err, words)
	case name == "debugfs" && words != "":
		return fault.New(fault.Internal, "debugfs: %s", words)
	}
	return nil
}

// saying is a tool's output as one line, without the version banner.
func saying(out []byte) string {
	var lines []string
	for _, line := range bytes.Split(out, []byte("\n")) {
		text := strings.TrimSpace(string(line))
		if text == "" || strings.HasPrefix(text, "debugfs 1.") || strings.HasPrefix(text, "mke2fs 1.") || strings.HasPrefix(text, "Filesystem too small for a journal") {
			continue
		}
		lines = append(lines, text)
	}
	return strings.Join(lines, "; ")
}
