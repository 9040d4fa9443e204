package measure

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path"
	"path/filepath"
	"strings"
	"syscall"
	"time"

	"github.com/u-root/u-root/pkg/cpio"
)

// Machine is what a machine run by hand takes over from one of vch's, to differ in what is measured alone.
type Machine struct {
	PID                     int    // of vch's
	QEMU, Kernel, Modules   string // paths: QEMU, its kernel, the kernel's modules
	Accel, CPU, Memory, SMP string // values of -accel, -cpu, -m, -smp
}

// Arguments is QEMU's command line of a machine with that and a console on its standard input and output, to which devices are added.
func (m Machine) Arguments(initrd, kernelLine string) []string {
	return []string{"-nodefaults", "-no-user-config", "-display", "none", "-no-reboot", "-M", "q35,usb=off,vmport=off,hpet=off,sata=off,smbus=off",
		"-accel", m.Accel, "-cpu", m.CPU, "-m", m.Memory, "-smp", m.SMP, "-kernel", m.Kernel, "-initrd", initrd, "-append", kernelLine,
		"-chardev", "stdio,id=console,signal=off", "-serial", "chardev:console"}
}

// Initramfs writes the first file system of a machine by hand: program as /init, files (path, content), and modules with what they need, in load order (inside.Boot loads them).
func (m Machine) Initramfs(file, program string, files map[string]string, modules ...string) error {
	dep, err := os.ReadFile(filepath.Join(m.Modules, "modules.dep"))
	if err != nil {
		return err
	}
	f, err := os.Create(file)
	if err != nil {
		return err
	}
	defer f.Close()
	init, err := os.ReadFile(program)
	if err != nil {
		return err
	}
	records := []cpio.Record{cpio.Directory("dev", 0o755), cpio.CharDev("dev/console", 0o600, 5, 1), cpio.CharDev("dev/null", 0o666, 1, 3), cpio.Directory("modules", 0o755),
		cpio.StaticFile("init", string(init), 0o755)}
	for name, content := range files {
		records = append(records, cpio.StaticFile(name, content, 0o600))
	}
	order := ""
	for _, module := range closure(string(dep), modules...) {
		data, err := os.ReadFile(filepath.Join(m.Modules, module))
		if err != nil {
			return err
		}
		order += path.Base(module) + "\n"
		records = append(records, cpio.StaticFile("modules/"+path.Base(module), string(data), 0o600))
	}
	w := cpio.Newc.Writer(f)
	for _, r := range append(records, cpio.StaticFile("modules/order", order, 0o600)) {
		if err := w.WriteRecord(r); err != nil {
			return err
		}
	}
	return cpio.WriteTrailer(w)
}

// closure gives the files of modules and of what they need, that first, by the text of modules.dep (modules.dep(5)). One that is not there is in the kernel.
func closure(dep string, names ...string) (files []string) {
	seen := map[string]bool{}
	for _, name := range names {
		for _, line := range strings.Split(dep, "\n") {
			file, needs, ok := strings.Cut(line, ":")
			if !ok || path.Base(file) != name+".ko" {
				continue
			}
			all := append([]string{file}, strings.Fields(needs)...) // itself, then what it needs, the nearest first
			for i := len(all) - 1; i >= 0; i-- {
				if !seen[all[i]] {
					seen[all[i]] = true
					files = append(files, all[i])
				}
			}
		}
	}
	return files
}

// Console is the input and output of a command in which a program serves (inside.Serve): of a machine, of docker run -i, or of the program itself. One piece of work at a time.
type Console struct {
	cmd   *exec.Cmd
	in    io.WriteCloser
	lines chan string // what it prints; closed at its end
}

// Begin starts a command, and returns when the program in it is ready.
func Begin(ctx context.Context, cmd *exec.Cmd) (*Console, error) {
	c := &Console{cmd: cmd, lines: make(chan string, 16)}
	// A session of its own, as vch's machines have: on a busy host the scheduler gives each session its part (sched(7), autogroup), and one that it shared with others, which are idle,
	// would be quicker than vch's by nothing that vch does.
	cmd.SysProcAttr = &syscall.SysProcAttr{Setsid: true}
	cmd.Stderr = os.Stderr
	var err error
	if c.in, err = cmd.StdinPipe(); err != nil {
		return nil, err
	}
	out, err := cmd.StdoutPipe()
	if err != nil {
		return nil, err
	}
	if err := cmd.Start(); err != nil {
		return nil, err
	}
	go func() {
		defer close(c.lines)
		for s := bufio.NewScanner(out); s.Scan(); {
			c.lines <- strings.TrimSpace(s.Text())
		}
	}()
	if _, err := c.until(ctx, "ready"); err != nil {
		c.End()
		return nil, err
	}
	return c, nil
}

// PID is the command's.
func (c *Console) PID() int { return c.cmd.Process.Pid }

// Ask has the program do what words say, and gives what it prints.
func (c *Console) Ask(ctx context.Context, words ...any) (string, error) {
	if _, err := fmt.Fprintln(c.in, words...); err != nil {
		return "", err
	}
	return c.until(ctx, "ready")
}

// until reads up to a line that is word, and gives what was said before.
func (c *Console) until(ctx context.Context, word string) (said string, err error) {
	limit := time.NewTimer(Wait)
	defer limit.Stop()
	for {
		select {
		case line, ok := <-c.lines:
			switch {
			case !ok:
				return said, fmt.Errorf("it ended: %s", said)
			case strings.HasPrefix(line, "failed:"):
				return said, errors.New(line)
			case line == word:
				return said, nil
			}
			said += line + "\n"
		case <-limit.C:
			return said, fmt.Errorf("it does not answer: %s", said)
		case <-ctx.Done():
			return said, ctx.Err()
		}
	}
}

// End ends the command; nobody wants what it leaves.
func (c *Console) End() {
	_ = c.cmd.Process.Kill()
	for range c.lines { // what it still said, so that its reader ends
	}
	_ = c.cmd.Wait()
}
