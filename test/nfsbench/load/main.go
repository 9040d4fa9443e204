// Command load does the works that nfsbench measures: the same program, doing the same, in a container, in a machine run by hand, and on the server's own disk.
//
//	load serve DIR    do what each line of standard input says, WORK AMOUNT, in DIR, and print how long it took, then "ready"
//	load true         end at once
//
// As a machine's first process it loads the modules of its initramfs, gives its card an address, mounts what /mount says, and serves its console. Times are by the clock of where it
// runs. It has one client, nfsbench, and checks nothing for another.
package main

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"vch/test/measure/inside"
)

func main() {
	var err error
	switch {
	case inside.First():
		inside.End(first())
	case len(os.Args) == 2 && os.Args[1] == "true":
	case len(os.Args) == 3 && os.Args[1] == "serve":
		err = serve(os.Args[2])
	default:
		err = fmt.Errorf("no such words: %q", os.Args[1:])
	}
	if err != nil {
		fmt.Println("failed:", err)
		os.Exit(1)
	}
}

// serve does what it is told, until nobody tells any more.
func serve(dir string) error {
	return inside.Serve(func(words []string) error { return work(dir, words) })
}

// first is the life of a machine's first process.
func first() error {
	if err := inside.Boot(); err != nil {
		return err
	}
	if err := network(); err != nil {
		return err
	}
	text, err := os.ReadFile("/mount")
	if err != nil {
		return err
	}
	words := strings.Fields(string(text)) // what, its options, where to work below it
	if err := os.MkdirAll("/data", 0o755); err != nil {
		return err
	}
	if err := unix.Sethostname([]byte("hand")); err != nil { // of which the client's name is made (fs/nfs/nfs4proc.c)
		return err
	}
	if err := unix.Mount(words[0], "/data", "nfs4", 0, words[1]); err != nil {
		return fmt.Errorf("mount %s, %s: %w", words[0], words[1], err)
	}
	if err := serve(filepath.Join("/data", words[2])); err != nil {
		return err
	}
	return errors.New("the console ended")
}

// network gives the card the address that QEMU's user network has for its guest (net/slirp.c).
func network() error {
	const card, carrier = "eth0", "/sys/class/net/eth0/carrier"
	fd, err := unix.Socket(unix.AF_INET, unix.SOCK_DGRAM, 0)
	if err != nil {
		return err
	}
	defer unix.Close(fd)
	req, err := unix.NewIfreq(card)
	if err != nil {
		return err
	}
	for _, set := range []struct {
		what uint
		addr []byte
	}{{unix.SIOCSIFADDR, []byte{10, 0, 2, 15}}, {unix.SIOCSIFNETMASK, []byte{255, 255, 255, 0}}} {
		if err := req.SetInet4Addr(set.addr); err != nil {
			return err
		}
		if err := unix.IoctlIfreq(fd, set.what, req); err != nil {
			return fmt.Errorf("the card's address: %w", err)
		}
	}
	req.SetUint16(unix.IFF_UP | unix.IFF_RUNNING)
	if err := unix.IoctlIfreq(fd, unix.SIOCSIFFLAGS, req); err != nil {
		return fmt.Errorf("the card: %w", err)
	}
	return inside.Eventually("carrier", func() bool {
		text, err := os.ReadFile(carrier)
		return err == nil && strings.TrimSpace(string(text)) == "1"
	})
}

const (
	mib   = 1 << 20
	page  = 4 << 10
	small = 1 << 10
)

// times are those of each operation. What is before and after them, such as making the file, is in none.
type times []time.Duration

// kinds are the works by name. All reads pass the client's page cache by (O_DIRECT).
func kinds() map[string]func(dir string, n int) (times, error) {
	return map[string]func(string, int) (times, error){
		"seqwrite": written,
		"seqread":  func(dir string, n int) (times, error) { return read(dir, mib, n, inside.InOrder) },
		"randread": func(dir string, n int) (times, error) { return read(dir, page, n, inside.Scattered) },
		"append":   appended,
		"files":    files,
		"open":     opened,
		"stat":     func(dir string, n int) (times, error) { return statted(dir, n, unix.AT_STATX_FORCE_SYNC) },
		"cached":   func(dir string, n int) (times, error) { return statted(dir, n, unix.AT_STATX_DONT_SYNC) },
	}
}

// work does one, and prints the nanoseconds that all of it took, and the median of its operations.
func work(dir string, words []string) error {
	if len(words) == 1 {
		switch words[0] {
		case "mount":
			return mounted(dir)
		case "kernel":
			return kernel()
		}
	}
	if len(words) != 2 {
		return fmt.Errorf("want WORK AMOUNT, not %q", words)
	}
	n, err := strconv.Atoi(words[1])
	if err != nil {
		return err
	}
	do := kinds()[words[0]]
	if do == nil {
		return fmt.Errorf("no work %q", words[0])
	}
	all, err := do(dir, n)
	if err != nil {
		return err
	}
	var sum time.Duration
	for _, t := range all {
		sum += t
	}
	slices.Sort(all)
	fmt.Println("took", sum.Nanoseconds(), all[len(all)/2].Nanoseconds())
	return nil
}

// mounted prints what is mounted where dir is: the line of /proc/mounts that is the last whose place is above it.
func mounted(dir string) error {
	text, err := os.ReadFile("/proc/mounts")
	if err != nil {
		return err
	}
	line := ""
	for _, l := range strings.Split(string(text), "\n") {
		words := strings.Fields(l)
		if len(words) > 3 && (words[1] == "/" || dir == words[1] || strings.HasPrefix(dir, words[1]+"/")) {
			line = l
		}
	}
	fmt.Println("mount", line)
	return nil
}

// kernel prints the kernel's command line.
func kernel() error {
	text, err := os.ReadFile("/proc/cmdline")
	if err != nil {
		return err
	}
	fmt.Println("kernel", strings.TrimSpace(string(text)))
	return nil
}

// each does n operations and tells the time of each.
func each(n int, do func(i int) error) (times, error) {
	all := make(times, n)
	for i := range n {
		began := time.Now()
		if err := do(i); err != nil {
			return nil, fmt.Errorf("number %d: %w", i, err)
		}
		all[i] = time.Since(began)
	}
	return all, nil
}

func file(dir string) string { return filepath.Join(dir, "file") }

// written makes the file anew, of n MiB, through the page cache; the last operation is its fsync(2).
func written(dir string, n int) (times, error) {
	f, err := os.OpenFile(file(dir), os.O_WRONLY|os.O_CREATE|os.O_TRUNC, 0o600)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	buf := make([]byte, mib)
	for i := range buf {
		buf[i] = byte(i*7 + 1)
	}
	return each(n+1, func(i int) error {
		if i == n {
			return f.Sync()
		}
		_, err := f.Write(buf)
		return err
	})
}

// read reads n blocks of the file.
func read(dir string, block, n int, next func(i, blocks int) int) (times, error) {
	fd, err := unix.Open(file(dir), unix.O_RDONLY|unix.O_DIRECT|unix.O_CLOEXEC, 0)
	if err != nil {
		return nil, err
	}
	defer unix.Close(fd)
	var st unix.Stat_t
	if err := unix.Fstat(fd, &st); err != nil {
		return nil, err
	}
	buf, err := unix.Mmap(-1, 0, block, unix.PROT_READ|unix.PROT_WRITE, unix.MAP_PRIVATE|unix.MAP_ANON) // aligned to a page
	if err != nil {
		return nil, err
	}
	defer func() { _ = unix.Munmap(buf) }()
	return each(n, func(i int) error {
		got, err := unix.Pread(fd, buf, int64(next(i, int(st.Size)/block))*int64(block))
		if err == nil && got != block {
			err = fmt.Errorf("%d bytes", got)
		}
		return err
	})
}

// appended appends n blocks of 4 KiB to a new file, each with its own fsync(2), as a log does.
func appended(dir string, n int) (times, error) {
	f, err := os.OpenFile(filepath.Join(dir, "log"), os.O_WRONLY|os.O_CREATE|os.O_TRUNC|os.O_APPEND, 0o600)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	buf := make([]byte, page)
	return each(n, func(int) error {
		if _, err := f.Write(buf); err != nil {
			return err
		}
		return f.Sync()
	})
}

// files makes a file of 1 KiB, closes it and removes it, n times.
func files(dir string, n int) (times, error) {
	buf := make([]byte, small)
	return each(n, func(i int) error {
		name := filepath.Join(dir, "small"+strconv.Itoa(i))
		if err := os.WriteFile(name, buf, 0o600); err != nil {
			return err
		}
		return os.Remove(name)
	})
}

// opened is open, fstat, close: an NFS client asks the server at each open (nfs(5), close-to-open consistency).
func opened(dir string, n int) (times, error) {
	var st unix.Stat_t
	return each(n, func(int) error {
		fd, err := unix.Open(file(dir), unix.O_RDONLY|unix.O_CLOEXEC, 0)
		if err != nil {
			return err
		}
		if err := unix.Fstat(fd, &st); err != nil {
			return err
		}
		return unix.Close(fd)
	})
}

// statted asks for attributes: by statx(2), those that the server has now (AT_STATX_FORCE_SYNC) are one round trip, those that the client has anyhow (AT_STATX_DONT_SYNC) are none.
func statted(dir string, n, how int) (times, error) {
	fd, err := unix.Open(file(dir), unix.O_RDONLY|unix.O_CLOEXEC, 0)
	if err != nil {
		return nil, err
	}
	defer unix.Close(fd)
	var st unix.Statx_t
	return each(n, func(int) error {
		return unix.Statx(fd, "", unix.AT_EMPTY_PATH|how, unix.STATX_BASIC_STATS, &st)
	})
}
