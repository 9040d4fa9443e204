// Command ledger writes lines into a file that others write to at the same time, in the ways that programs have to agree on that; the scripts of test/e2e run it in containers.
//
//	ledger add flock|posix FILE N TAG   N times: lock the file, write a line "TAG NUMBER" to its end, unlock
//	ledger add mkdir FILE N TAG         N times: make the directory FILE.lock, write such a line to a file opened anew, close it, remove the directory
//	ledger hold flock|posix FILE        lock the file, say so, and keep it until standard input ends
//	ledger try flock|posix FILE         say whether the file could be locked: "free" or "taken"
//	ledger keep FILE                    for ever: write the next number, fsync, and only then say it
package main

import (
	"bufio"
	"errors"
	"fmt"
	"io"
	"os"
	"strconv"
	"time"

	"golang.org/x/sys/unix"
)

func main() {
	if err := run(os.Args[1:]); err != nil {
		fmt.Fprintln(os.Stderr, "ledger:", err)
		os.Exit(1)
	}
}

func run(args []string) error {
	switch {
	case len(args) == 5 && args[0] == "add":
		n, err := strconv.Atoi(args[3])
		if err != nil {
			return err
		}
		if args[1] == "mkdir" {
			return addByDirectory(args[2], n, args[4])
		}
		return add(args[1], args[2], n, args[4])
	case len(args) == 3 && (args[0] == "hold" || args[0] == "try"):
		f, err := open(args[2])
		if err != nil {
			return err
		}
		defer f.Close()
		if args[0] == "try" {
			return try(args[1], f)
		}
		if err := lock(f, args[1], true); err != nil {
			return err
		}
		fmt.Println("held")
		_, err = io.Copy(io.Discard, os.Stdin)
		return err
	case len(args) == 2 && args[0] == "keep":
		return keep(args[1])
	}
	return errors.New("see its source for what it does")
}

func open(file string) (*os.File, error) {
	return os.OpenFile(file, os.O_CREATE|os.O_RDWR|os.O_APPEND, 0o666)
}

// lock takes the whole file, by flock(2) or by fcntl(2).
func lock(f *os.File, how string, wait bool) error {
	if how == "flock" {
		flags := unix.LOCK_EX
		if !wait {
			flags |= unix.LOCK_NB
		}
		return unix.Flock(int(f.Fd()), flags)
	}
	cmd := unix.F_SETLKW
	if !wait {
		cmd = unix.F_SETLK
	}
	return unix.FcntlFlock(f.Fd(), cmd, &unix.Flock_t{Type: unix.F_WRLCK})
}

func unlock(f *os.File, how string) error {
	if how == "flock" {
		return unix.Flock(int(f.Fd()), unix.LOCK_UN)
	}
	return unix.FcntlFlock(f.Fd(), unix.F_SETLK, &unix.Flock_t{Type: unix.F_UNLCK})
}

func add(how, file string, n int, tag string) error {
	f, err := open(file)
	if err != nil {
		return err
	}
	defer f.Close()
	for i := range n {
		if err := lock(f, how, true); err != nil {
			return err
		}
		if _, err := fmt.Fprintf(f, "%s %d\n", tag, i); err != nil {
			return err
		}
		if err := unlock(f, how); err != nil {
			return err
		}
	}
	return nil
}

// addByDirectory is what programs do where there are no locks: who has made the directory has the file.
func addByDirectory(file string, n int, tag string) error {
	for i := range n {
		for {
			err := os.Mkdir(file+".lock", 0o777)
			if err == nil {
				break
			}
			if !errors.Is(err, os.ErrExist) {
				return err
			}
			time.Sleep(5 * time.Millisecond)
		}
		f, err := open(file)
		if err != nil {
			return err
		}
		_, err = fmt.Fprintf(f, "%s %d\n", tag, i)
		if err := errors.Join(err, f.Close(), os.Remove(file+".lock")); err != nil {
			return err
		}
	}
	return nil
}

func try(how string, f *os.File) error {
	err := lock(f, how, false)
	switch {
	case err == nil:
		fmt.Println("free")
	case errors.Is(err, unix.EAGAIN), errors.Is(err, unix.EACCES):
		fmt.Println("taken")
	default:
		return err
	}
	return nil
}

func keep(file string) error {
	f, err := open(file)
	if err != nil {
		return err
	}
	defer f.Close()
	out := bufio.NewWriter(os.Stdout)
	for n := 1; ; n++ {
		if _, err := fmt.Fprintln(f, n); err != nil {
			return err
		}
		if err := f.Sync(); err != nil {
			return err
		}
		fmt.Fprintln(out, n)
		if err := out.Flush(); err != nil {
			return err
		}
		time.Sleep(10 * time.Millisecond)
	}
}
