// Command load makes the I/O that iobench measures, and prints how long it took: the same program, doing the same, in a container and in a machine run by hand.
//
// In a container it does one piece of work and ends. As a machine's first process it loads the modules of its initramfs, mounts the disk that comes as vch's
// tether mounts a volume, and takes pieces of work from the console. Times are the guest's own. It has one client, iobench, and checks nothing for another.
package main

import (
	"bufio"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"time"

	"golang.org/x/sys/unix"
)

func main() {
	var err error
	switch {
	case os.Getpid() == 1 && len(os.Args) < 2: // a container's first process has a word to go by
		err = first()
		fmt.Println("failed:", err)
		_ = unix.Reboot(unix.LINUX_REBOOT_CMD_RESTART)
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
	for _, m := range []struct{ kind, at string }{{"proc", "/proc"}, {"sysfs", "/sys"}, {"devtmpfs", "/dev"}} {
		if err := os.MkdirAll(m.at, 0o755); err != nil {
			return err
		}
		if err := unix.Mount(m.kind, m.at, m.kind, 0, ""); err != nil {
			return fmt.Errorf("mount %s: %w", m.at, err)
		}
	}
	order, err := os.ReadFile("/modules/order")
	if err != nil {
		return err
	}
	for _, name := range strings.Fields(string(order)) {
		f, err := os.Open(filepath.Join("/modules", name))
		if err != nil {
			return err
		}
		err = unix.FinitModule(int(f.Fd()), "", 0)
		f.Close()
		if err != nil {
			return fmt.Errorf("module %s: %w", name, err)
		}
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
	for in := bufio.NewScanner(os.Stdin); ; {
		fmt.Println("ready")
		if !in.Scan() {
			return fmt.Errorf("the console ended: %w", in.Err())
		}
		// A process for each piece of work, as docker exec makes one.
		cmd := exec.Command("/init", strings.Fields(in.Text())...)
		cmd.Stdout, cmd.Stderr = os.Stdout, os.Stdout
		if err := cmd.Run(); err != nil {
			fmt.Println("failed:", err)
		}
	}
}

// appears waits for one of the paths.
func appears(paths ...string) (string, error) {
	for limit := time.Now().Add(time.Minute); time.Now().Before(limit); time.Sleep(10 * time.Millisecond) {
		for _, p := range paths {
			if _, err := os.Stat(p); err == nil {
				return p, nil
			}
		}
	}
	return "", fmt.Errorf("no disk: %v", paths)
}

// kinds are the pieces of work, by name. Blocks of a sequential one have 1 MiB, others 4 KiB; all but the last pass the guest's page cache by (O_DIRECT), so that
// it is the disk's way that is measured, not the guest's memory. Offsets of the random ones are the same at every run.
func kinds() map[string]func(path string, n int) (time.Duration, error) {
	const mib, page = 1 << 20, 4 << 10
	return map[string]func(string, int) (time.Duration, error){
		"seqwrite":  func(p string, n int) (time.Duration, error) { return span(p, mib, n, inOrder, unix.Pwrite) },
		"seqread":   func(p string, n int) (time.Duration, error) { return span(p, mib, n, inOrder, unix.Pread) },
		"randwrite": func(p string, n int) (time.Duration, error) { return span(p, page, n, scattered, unix.Pwrite) },
		"randread":  func(p string, n int) (time.Duration, error) { return span(p, page, n, scattered, unix.Pread) },
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

func inOrder(i, _ int) int { return i }

// scattered jumps about in a fixed way: i through the multipliers of minstd_rand and minstd_rand0.
func scattered(i, blocks int) int {
	return int(uint64(i+1) * 48271 % 2147483647 * 16807 % 2147483647 % uint64(blocks))
}

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
			_, errs[w] = span(path, 4<<10, n/at, func(i, blocks int) int { return scattered(i*at+w, blocks) }, unix.Pread)
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
