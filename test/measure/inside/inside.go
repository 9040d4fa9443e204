// Package inside is the half of test/measure that is in the program which does the work that is measured.
//
// The program runs in a container, on the host, or as the first process of a machine run by hand (First, Boot, End), and takes its work from its standard input (Serve). Lines that begin
// with "failed:", and the line "ready", are for measure.Console.
package inside

import (
	"bufio"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

// First tells whether this is the first process of a machine by hand. A container's has words to go by.
func First() bool { return os.Getpid() == 1 && len(os.Args) < 2 }

// End says why the first process of a machine ends, and ends the machine.
func End(why error) {
	fmt.Println("failed:", why)
	_ = unix.Reboot(unix.LINUX_REBOOT_CMD_RESTART)
}

// Boot mounts what a machine's first process needs and loads the modules of its initramfs.
func Boot() error {
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
	return nil
}

// Serve does the words of each line of standard input, until there is no other.
func Serve(do func(words []string) error) error {
	in := bufio.NewScanner(os.Stdin)
	for {
		fmt.Println("ready")
		if !in.Scan() {
			return in.Err()
		}
		if err := do(strings.Fields(in.Text())); err != nil {
			fmt.Println("failed:", err)
		}
	}
}

// Eventually waits for something of a machine's to be there.
func Eventually(what string, there func() bool) error {
	for limit := time.Now().Add(time.Minute); time.Now().Before(limit); time.Sleep(10 * time.Millisecond) {
		if there() {
			return nil
		}
	}
	return fmt.Errorf("there is no %s", what)
}

// Scattered is which of the blocks of a file comes i-th; it jumps about, in a way that is the same each time: i through the multipliers of minstd_rand and minstd_rand0.
func Scattered(i, blocks int) int {
	return int(uint64(i+1) * 48271 % 2147483647 * 16807 % 2147483647 % uint64(blocks))
}

// InOrder is which block comes i-th if it is the i-th.
func InOrder(i, _ int) int { return i }
