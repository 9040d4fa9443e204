// Command load makes the I/O that iobench measures, and prints how long it took: the same program, doing the same, in a container and in a machine run by hand.
//
// In a container it does one piece of work and ends. As a machine's first process it loads the modules of its initramfs, mounts the disk that comes as vch's
// tether mounts a volume, and takes pieces of work from the console. Times are the guest's own. It has one client, iobench, and checks nothing for another.
package main

import (
	"errors"
	"fmt"
	"os"
	"os/exec"
	"slices"
	"strconv"
	"sync"
	"time"

	"golang.org/x/sys/unix"

	"vch/test/measure/inside"
)

func main() {
	var err error
	switch {
	case inside.First():
		inside.End(first())
	case len(os.Args) == 2 && os.Args[1] == "wait":
		time.Sleep(time.Hour) // what is measured comes by docker exec, and is over by then
	default:
		err = work(os.Args[1:])
	}
	if err != nil {
		fmt.Println("failed:", err)
		os.Exit(1)
	}
}

// first is the life of a machine's first process.
func first() error {
	if err := inside.Boot(); err != nil {
		return err
	}
	disk, err := appears("/dev/sda", "/dev/vda")
	if err != nil {
		return err
	}
	if err := os.MkdirAll("/data", 0o755); err != nil {
		return err
	}
	if err := unix.Mount(disk, "/data", "ext4", 0, "discard"); err != nil { // as tether/linux_mount.go
		return fmt.Errorf("mount %s: %w", disk, err)
	}
	if err := inside.Serve(func(words []string) error {
		// A process for each piece of work, as docker exec makes one.
		cmd := exec.Command("/init", words...)
		cmd.Stdout, cmd.Stderr = os.Stdout, os.Stdout
		return cmd.Run()
	}); err != nil {
		return err
	}
	return errors.New("the console ended")
}

// appears waits for one of the paths.
func appears(paths ...string) (found string, err error) {
	err = inside.Eventually("disk", func() bool {
		i := slices.IndexFunc(paths, func(p string) bool {
			_, err := os.Stat(p)
			return err == nil
		})
		if i >= 0 {
			found = paths[i]
		}
		return i >= 0
	})
	return found, err
}

// kinds are the pieces of work, by name. Blocks of a sequential one have 1 MiB, others 4 KiB; all but the last pass the guest's page cache by (O_DIRECT), so that
// it is the disk's way that is measured, not the guest's memory. Offsets of the random ones are the same at every run.
func kinds() map[string]func(path string, n int) (time.Duration, error) {
	const mib, page = 1 << 20, 4 << 10
	return map[string]func(string, int) (time.Duration, error){
		"seqwrite":  func(p string, n int) (time.Duration, error) { return span(p, mib, n, inside.InOrder, unix.Pwrite) },
		"seqread":   func(p string, n int) (time.Duration, error) { return span(p, mib, n, inside.InOrder, unix.Pread) },
		"randwrite": func(p string, n int) (time.Duration, error) { return span(p, page, n, inside.Scattered, unix.Pwrite) },
		"randread":  func(p string, n int) (time.Duration, error) { return span(p, page, n, inside.Scattered, unix.Pread) },
		"deepread":  deep,
		"fsync":     flushed,
		"sync":      func(p string, _ int) (time.Duration, error) { return synced(p) },
	}
}

// work does one piece: its name, the file, how many blocks; and prints the nanoseconds that it took.
func work(words []string) error {
	if len(words) != 3 {
		return fmt.Errorf("want WORK FILE BLOCKS, not %q", words)
	}
	n, err := strconv.Atoi(words[2])
	if err != nil {
		return err
	}
	do := kinds()[words[0]]
	if do == nil {
		return fmt.Errorf("no work %q", words[0])
	}
	took, err := do(words[1], n)
	if err != nil {
		return err
	}
	fmt.Println("took", took.Nanoseconds())
	return nil
}

type (
	order    func(i, blocks int) int                                 // which block of a file comes i-th
	transfer func(fd int, p []byte, offset int64) (n int, err error) // pread(2) or pwrite(2)
)

// open opens a file for transfers that pass the page cache by, and gives a buffer that may be used for them, and how many blocks the file has.
func open(path string, block int) (fd int, buf []byte, blocks int, err error) {
	if fd, err = unix.Open(path, unix.O_RDWR|unix.O_CREAT|unix.O_DIRECT|unix.O_CLOEXEC, 0o600); err != nil {
		return 0, nil, 0, fmt.Errorf("open %s: %w", path, err)
	}
	var st unix.Stat_t
	if err = unix.Fstat(fd, &st); err == nil {
		buf, err = unix.Mmap(-1, 0, block, unix.PROT_READ|unix.PROT_WRITE, unix.MAP_PRIVATE|unix.MAP_ANON) // aligned to a page
	}
	if err != nil {
		_ = unix.Close(fd)
		return 0, nil, 0, err
	}
	for i := range buf {
		buf[i] = byte(i*7 + 1)
	}
	return fd, buf, int(st.Size) / block, nil
}

// span transfers n blocks and tells how long that took, without opening and closing.
func span(path string, block, n int, next order, do transfer) (took time.Duration, err error) {
	fd, buf, blocks, err := open(path, block)
	if err != nil {
		return 0, err
	}
	defer unix.Close(fd)
	defer func() { _ = unix.Munmap(buf) }()
	blocks = max(blocks, n)
	began := time.Now()
	for i := range n {
		got, err := do(fd, buf, int64(next(i, blocks))*int64(block))
		if err != nil || got != block {
			return 0, fmt.Errorf("block %d of %s: %d bytes, %v", i, path, got, err)
		}
	}
	return time.Since(began), nil
}

// deep reads 4 KiB blocks, eight at a time.
func deep(path string, n int) (time.Duration, error) {
	const at = 8
	errs := make([]error, at)
	var wg sync.WaitGroup
	began := time.Now()
	for w := range at {
		wg.Go(func() {
			_, errs[w] = span(path, 4<<10, n/at, func(i, blocks int) int { return inside.Scattered(i*at+w, blocks) }, unix.Pread)
		})
	}
	wg.Wait()
	took := time.Since(began)
	for _, err := range errs {
		if err != nil {
			return 0, err
		}
	}
	return took, nil
}

// flushed writes n blocks of 4 KiB in order over what is there, through the page cache, each with its own fdatasync(2), as a database's log.
func flushed(path string, n int) (time.Duration, error) {
	f, err := os.OpenFile(path, os.O_RDWR, 0)
	if err != nil {
		return 0, err
	}
	defer f.Close()
	buf := make([]byte, 4<<10)
	began := time.Now()
	for i := range n {
		if _, err := f.WriteAt(buf, int64(i)*int64(len(buf))); err != nil {
			return 0, err
		}
		if err := unix.Fdatasync(int(f.Fd())); err != nil {
			return 0, err
		}
	}
	return time.Since(began), nil
}

// synced is one fsync(2) of the file.
func synced(path string) (time.Duration, error) {
	f, err := os.OpenFile(path, os.O_RDWR, 0)
	if err != nil {
		return 0, err
	}
	defer f.Close()
	began := time.Now()
	err = f.Sync()
	return time.Since(began), err
}
