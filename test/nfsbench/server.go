package main

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"vch/internal/nfsclient/nfstest"
)

// unable is why nothing can be measured here.
type unable string

func (u unable) Error() string { return string(u) }

// served is an NFS server with one export.
type served struct {
	*nfstest.Server
	pid int
	tb  *noTest
}

// noTest is as much of a test as the server needs.
type noTest struct {
	testing.TB
	disk string
	last []func() error
}

// given is what a noTest ends by.
type given struct{ error }

func (b *noTest) Helper()                         {}
func (b *noTest) Failed() bool                    { return false }
func (b *noTest) Fatal(args ...any)               { panic(given{errors.New(fmt.Sprint(args...))}) }
func (b *noTest) Fatalf(text string, args ...any) { panic(given{fmt.Errorf(text, args...)}) }
func (b *noTest) Skip(args ...any)                { panic(given{unable(fmt.Sprint(args...))}) }
func (b *noTest) Skipf(text string, args ...any)  { panic(given{unable(fmt.Sprintf(text, args...))}) }
func (b *noTest) Logf(string, ...any)             {}
func (b *noTest) Cleanup(do func())               { b.last = append(b.last, func() error { do(); return nil }) }

func (b *noTest) TempDir() string {
	dir, err := os.MkdirTemp(b.disk, "nfsbench")
	if err != nil {
		b.Fatal(err)
	}
	b.last = append(b.last, func() error { return os.RemoveAll(dir) })
	return dir
}

// end does what was put off, the last first.
func (b *noTest) end() error {
	var errs []error
	for i := len(b.last) - 1; i >= 0; i-- {
		errs = append(errs, b.last[i]())
	}
	b.last = nil
	return errors.Join(errs...)
}

// export starts a server that exports a new directory below disk.
func export(disk string) (s *served, err error) {
	var fs unix.Statfs_t
	if err := unix.Statfs(disk, &fs); err != nil {
		return nil, fmt.Errorf("%s: %w", disk, err)
	}
	if fs.Type == unix.TMPFS_MAGIC || fs.Type == unix.OVERLAYFS_SUPER_MAGIC {
		return nil, unable(disk + " is not on a disk whose files can be opened by handle; give -disk another directory")
	}
	s = &served{tb: &noTest{disk: disk}}
	defer func() {
		why := recover()
		g, ok := why.(given)
		switch {
		case ok:
			s, err = nil, errors.Join(g.error, s.tb.end())
		case why != nil:
			panic(why)
		}
	}()
	s.Server = nfstest.Start(s.tb, nfstest.Config{})
	text, err := os.ReadFile(filepath.Join(filepath.Dir(s.Dir), "pid"))
	if err == nil {
		s.pid, err = strconv.Atoi(strings.TrimSpace(string(text)))
	}
	if err != nil {
		return nil, errors.Join(err, s.tb.end())
	}
	return s, nil
}

func (s *served) end() error { return s.tb.end() }

// directory makes one in the export, with any work's file below it.
func (s *served) directory(name string) (file string, err error) {
	dir := filepath.Join(s.Dir, name)
	return filepath.Join(dir, "file"), os.Mkdir(dir, 0o700)
}
