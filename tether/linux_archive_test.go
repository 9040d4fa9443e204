package tether

import (
	"archive/tar"
	"bytes"
	"fmt"
	"io"
	"io/fs"
	"os"
	osexec "os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"vch/guest"
	"vch/internal/fault"
)

// privileged runs body where mounting is allowed: here if this is root, else in a user namespace, by this program once more.
func privileged(t *testing.T, body func(t *testing.T, root bool)) {
	t.Helper()
	const inner = "VCH_TEST_INNER"
	if os.Getuid() == 0 {
		body(t, os.Getenv(inner) == "")
		return
	}
	cmd := osexec.CommandContext(t.Context(), os.Args[0], "-test.run=^"+t.Name()+"$")
	cmd.Env = append(os.Environ(), inner+"=1")
	cmd.SysProcAttr = &syscall.SysProcAttr{Cloneflags: syscall.CLONE_NEWUSER | syscall.CLONE_NEWNS,
		UidMappings: []syscall.SysProcIDMap{{HostID: os.Getuid(), Size: 1}}, GidMappings: []syscall.SysProcIDMap{{HostID: os.Getgid(), Size: 1}}}
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Fatalf("in a user namespace: %v\n%s", err, out)
	}
}

const label = "label://0"

// volumes is a Linux with one volume mounted, whose content is a directory of the test.
func volumes(t *testing.T) (*Linux, string) {
	dir := filepath.Join(t.TempDir(), "content")
	if err := os.Mkdir(dir, 0o755); err != nil {
		t.Fatal(err)
	}
	return &Linux{volumes: map[guest.Source]volume{label: {content: dir}}}, dir
}

func must(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

// describe gives a line for everything in a tree.
func describe(t *testing.T, dir string) string {
	t.Helper()
	var b strings.Builder
	inodes := map[uint64]string{}
	must(t, filepath.WalkDir(dir, func(p string, _ fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		var st unix.Stat_t
		if err := unix.Lstat(p, &st); err != nil {
			return err
		}
		rel, _ := filepath.Rel(dir, p)
		fmt.Fprintf(&b, "%q %o %d:%d %d.%09d", rel, st.Mode, st.Uid, st.Gid, st.Mtim.Sec, st.Mtim.Nsec)
		switch st.Mode & unix.S_IFMT {
		case unix.S_IFREG:
			data, err := os.ReadFile(p)
			if err != nil {
				return err
			}
			fmt.Fprintf(&b, " %q", data)
		case unix.S_IFLNK:
			to, _ := os.Readlink(p)
			fmt.Fprintf(&b, " -> %q", to)
		case unix.S_IFCHR, unix.S_IFBLK:
			fmt.Fprintf(&b, " %x", st.Rdev)
		}
		if st.Nlink > 1 && st.Mode&unix.S_IFMT != unix.S_IFDIR {
			if inodes[st.Ino] == "" {
				inodes[st.Ino] = rel
			}
			fmt.Fprintf(&b, " = %q", inodes[st.Ino])
		}
		records, err := xattrsOf(p)
		fmt.Fprintf(&b, " %v\n", records)
		return err
	}))
	return b.String()
}

// What comes out of one volume's archive goes into another one, and is the same to the last attribute.
func TestArchiveOfAVolume(t *testing.T) {
	privileged(t, func(t *testing.T, root bool) {
		l, from := volumes(t)
		at := func(name string) string { return filepath.Join(from, name) }
		must(t, os.MkdirAll(at("dir/empty"), 0o711))
		must(t, os.WriteFile(at("dir/file"), []byte("text"), 0o640))
		must(t, os.WriteFile(at("name \xff\n"), bytes.Repeat([]byte("0123456789"), 20_000), 0o600))
		must(t, os.WriteFile(at(strings.Repeat("long", 50)), nil, 0o600))
		must(t, os.Link(at("dir/file"), at("again")))
		must(t, os.Symlink("../../../outside", at("dir/climbs")))
		must(t, os.Symlink("/etc/passwd", at("absolute")))
		must(t, unix.Mkfifo(at("pipe"), 0o622))
		must(t, unix.Chmod(at("dir/file"), 0o4755))
		must(t, unix.Chmod(at("dir"), 0o1777))
		if err := unix.Lsetxattr(at("again"), "user.x", []byte("\x00value\n"), 0); ignoreNotsup(err) != nil {
			t.Fatal(err)
		}
		if root {
			must(t, unix.Mknod(at("null"), unix.S_IFCHR|0o666, int(unix.Mkdev(1, 3))))
			must(t, os.Lchown(at("absolute"), 7, 8))
			must(t, os.Chown(at("dir"), 1000, 3_000_000))
			must(t, unix.Lsetxattr(at("dir"), "trusted.y", []byte("z"), 0))
		}
		for i, name := range []string{"dir/file", "absolute", "pipe", "dir/empty", "dir", "."} {
			ts := unix.NsecToTimespec(time.Date(1960+10*i, 1, 2, 3, 4, 5, 123456789, time.UTC).UnixNano())
			must(t, unix.UtimesNanoAt(unix.AT_FDCWD, at(name), []unix.Timespec{ts, ts}, unix.AT_SYMLINK_NOFOLLOW))
		}
		want := describe(t, from)

		var archive bytes.Buffer
		if _, err := l.Archive(guest.ArchiveRequest{Place: guest.Place{Source: label, Path: "."}, Name: "."}, &archive); err != nil {
			t.Fatal(err)
		}
		l, to := volumes(t)
		if err := l.Extract(guest.ExtractRequest{Place: guest.Place{Source: label, Path: "."}, Whole: true}, &archive); err != nil {
			t.Fatal(err)
		}
		if got := describe(t, to); got != want {
			t.Errorf("went in:\n%s\ncame out:\n%s", want, got)
		}
	})
}

// entry makes a tar's header from a few words.
type entry struct {
	kind       byte
	name, link string
	text       string
}

func pack(t *testing.T, entries ...entry) *bytes.Buffer {
	t.Helper()
	var b bytes.Buffer
	w := tar.NewWriter(&b)
	for _, e := range entries {
		must(t, w.WriteHeader(&tar.Header{Typeflag: e.kind, Name: e.name, Linkname: e.link, Size: int64(len(e.text)), Mode: 0o755, ModTime: time.Unix(1, 0), Uid: os.Getuid(), Gid: os.Getgid()}))
		_, err := io.WriteString(w, e.text)
		must(t, err)
	}
	must(t, w.Close())
	return &b
}

// An archive reaches nothing outside of the volume, and as with Docker's engine not even out of the directory that it is extracted into.
func TestHostileArchives(t *testing.T) {
	reg, dir, sym, hard := byte(tar.TypeReg), byte(tar.TypeDir), byte(tar.TypeSymlink), byte(tar.TypeLink)
	for _, c := range []struct {
		name    string
		entries []entry
		whole   bool
		kind    fault.Kind // of the error
		says    string     // "": no error
		there   string     // made inside the volume all the same
	}{
		{name: "climbs", entries: []entry{{reg, "../../evil", "", "x"}}, says: `"../../evil" is outside of "/dest"`, kind: fault.Invalid},
		{name: "climbs a step", entries: []entry{{reg, "../evil", "", "x"}}, says: "outside", kind: fault.Invalid},
		{name: "is the parent", entries: []entry{{dir, "..", "", ""}}, says: "outside", kind: fault.Invalid},
		{name: "climbs on the way", entries: []entry{{reg, "a/../../evil", "", "x"}}, says: "outside", kind: fault.Invalid},
		{name: "climbs and comes back", entries: []entry{{reg, "a/../evil", "", "x"}}, there: "dest/evil"},
		{name: "is absolute", entries: []entry{{reg, "/evil", "", "x"}}, there: "dest/evil"},
		{name: "is absolute and climbs", entries: []entry{{reg, "/../evil", "", "x"}}, there: "dest/evil"},
		{name: "links out", entries: []entry{{sym, "l", "../../outside", ""}}, says: "invalid symlink", kind: fault.Invalid},
		{name: "goes through its link", entries: []entry{{sym, "l", "/", ""}, {reg, "l/evil", "", "x"}}, there: "evil"},
		{name: "goes through its climbing link", entries: []entry{{sym, "l", "../../../../..", ""}, {reg, "l/evil", "", "x"}}, whole: true, there: "evil"},
		{name: "goes through a link that was there", entries: []entry{{reg, "was/evil", "", "x"}}, there: "evil"},
		{name: "hard links out", entries: []entry{{hard, "evil", "../../outside/secret", ""}}, says: "invalid hardlink", kind: fault.Invalid},
		{name: "hard links through a link", entries: []entry{{sym, "l", "/", ""}, {hard, "evil", "l/outside/secret", ""}}, says: "no such file", kind: fault.NotFound},
		{name: "replaces a directory by a file", entries: []entry{{reg, "full", "", "x"}}, says: "cannot overwrite directory", kind: fault.Conflict},
		{name: "replaces a file by a directory", entries: []entry{{dir, "file", "", ""}}, says: "cannot overwrite non-directory", kind: fault.Conflict},
		{name: "replaces the destination", entries: []entry{{sym, ".", "x", ""}}, whole: true, says: "cannot", kind: fault.Conflict},
		{name: "has a kind that nobody knows", entries: []entry{{'Z', "evil", "", ""}}, says: "unhandled", kind: fault.Invalid},
	} {
		t.Run(c.name, func(t *testing.T) {
			privileged(t, func(t *testing.T, _ bool) {
				l, content := volumes(t)
				at := func(name string) string { return filepath.Join(content, name) }
				must(t, os.MkdirAll(at("dest/full/x"), 0o755))
				must(t, os.WriteFile(at("dest/file"), nil, 0o600))
				must(t, os.Symlink("/", at("dest/was")))
				outside := filepath.Join(filepath.Dir(content), "outside")
				must(t, os.Mkdir(outside, 0o755))
				must(t, os.WriteFile(filepath.Join(outside, "secret"), []byte("kept"), 0o600))
				before := describe(t, outside)
				err := l.Extract(guest.ExtractRequest{Place: guest.Place{Source: label, Path: "/dest"}, NoOverwrite: true, Whole: c.whole}, pack(t, c.entries...))
				switch {
				case c.says == "" && err != nil:
					t.Error(err)
				case c.says != "" && (err == nil || !strings.Contains(err.Error(), c.says) || !fault.Is(err, c.kind)):
					t.Errorf("%v (%v); want %v, %q", err, fault.KindOf(err), c.kind, c.says)
				}
				if c.there != "" {
					if data, err := os.ReadFile(at(c.there)); err != nil || string(data) != "x" {
						t.Errorf("%s: %q, %v", c.there, data, err)
					}
				}
				if after := describe(t, outside); after != before {
					t.Errorf("outside was\n%s\nand is\n%s", before, after)
				}
				if names, _ := os.ReadDir(filepath.Dir(content)); len(names) != 2 {
					t.Errorf("beside the volume: %v", names)
				}
				for _, evil := range []string{"/evil", "/l"} {
					if _, err := os.Lstat(evil); err == nil {
						t.Errorf("%s was made", evil)
					}
				}
			})
		})
	}
}

// An archive that is torn or is none is told, and one of nothing is fine.
func TestBrokenArchives(t *testing.T) {
	privileged(t, func(t *testing.T, _ bool) {
		whole := pack(t, entry{tar.TypeReg, "f", "", strings.Repeat("x", 5000)}).Bytes()
		for name, c := range map[string]struct {
			in []byte
			ok bool
		}{"nothing": {nil, true}, "no end": {whole[:len(whole)-1024], true}, "torn": {whole[:2000], false}, "no tar": {bytes.Repeat([]byte("no tar\n"), 500), false}} {
			l, _ := volumes(t)
			err := l.Extract(guest.ExtractRequest{Place: guest.Place{Source: label, Path: "/"}}, bytes.NewReader(c.in))
			if c.ok && err != nil || !c.ok && !fault.Is(err, fault.Invalid) {
				t.Errorf("%s: %v", name, err)
			}
		}
	})
}

// A path leads where the kernel would lead it, but never out, and says where it leaves the volume.
func TestWaysThroughAVolume(t *testing.T) {
	privileged(t, func(t *testing.T, _ bool) {
		l, content := volumes(t)
		at := func(name string) string { return filepath.Join(content, name) }
		must(t, os.MkdirAll(at("a/b/other"), 0o755))
		must(t, os.WriteFile(at("a/file"), []byte("12345"), 0o644))
		must(t, os.Symlink("a/b", at("way")))
		must(t, os.Symlink("/etc/x", at("out")))
		must(t, os.Symlink("../up", at("climb")))
		must(t, os.Symlink("loop", at("loop")))
		must(t, os.Symlink("nowhere/at/all", at("dangling")))
		for _, c := range []struct {
			path   string
			follow bool
			want   guest.Located // Path, Elsewhere, Stat.Name, Stat.LinkTarget
			kind   fault.Kind
		}{
			{path: "/", want: guest.Located{Path: "/", Stat: guest.PathStat{Name: "/"}}},
			{path: "/a/file", want: guest.Located{Path: "/a/file", Stat: guest.PathStat{Name: "file"}}},
			{path: "a/./b/..//file", want: guest.Located{Path: "/a/file", Stat: guest.PathStat{Name: "file"}}},
			{path: "/way", want: guest.Located{Path: "/way", Stat: guest.PathStat{Name: "way", LinkTarget: "/in/c/a/b"}}},
			{path: "/way", follow: true, want: guest.Located{Path: "/a/b", Stat: guest.PathStat{Name: "way"}}},
			{path: "/way/", want: guest.Located{Path: "/a/b/", Stat: guest.PathStat{Name: "way"}}},
			{path: "/way/.", want: guest.Located{Path: "/a/b/.", Stat: guest.PathStat{Name: "way"}}},
			{path: "/way/../file", want: guest.Located{Path: "/a/file", Stat: guest.PathStat{Name: "file"}}},
			{path: "/dangling", want: guest.Located{Path: "/dangling", Stat: guest.PathStat{Name: "dangling", LinkTarget: "/in/c/nowhere/at/all"}}},
			{path: "/out", want: guest.Located{Path: "/out", Stat: guest.PathStat{Name: "out", LinkTarget: "/etc/x"}}},
			{path: "/out/more", want: guest.Located{Elsewhere: "/etc/x/more"}},
			{path: "/climb", follow: true, want: guest.Located{Elsewhere: "/in/up"}},
			{path: "/../..", want: guest.Located{Elsewhere: "/in/.."}},
			{path: "/a/b/other/f", want: guest.Located{Elsewhere: "/in/c/a/b/other/f"}},
			{path: "/way/other", want: guest.Located{Elsewhere: "/in/c/a/b/other"}},
			{path: "/gone", kind: fault.NotFound},
			{path: "/dangling", follow: true, kind: fault.NotFound},
			{path: "/a/file/", kind: fault.Invalid},
			{path: "/a/file/x", kind: fault.Invalid},
			{path: "/loop/x", kind: fault.Invalid},
		} {
			got, err := l.Stat(guest.StatRequest{Place: guest.Place{Source: label, Path: guest.Path(c.path)}, Follow: c.follow, At: "/in/c", Apart: []string{"/a/b/other"}})
			if c.kind != fault.Internal || err != nil {
				if !fault.Is(err, c.kind) || c.kind == fault.Internal {
					t.Errorf("%s: %v", c.path, err)
				}
				continue
			}
			short := guest.Located{Path: got.Path, Elsewhere: got.Elsewhere, Stat: guest.PathStat{Name: got.Stat.Name, LinkTarget: got.Stat.LinkTarget}}
			if short != c.want {
				t.Errorf("%s: %+v; want %+v", c.path, short, c.want)
			}
		}
	})
}

// Nothing of a view is left: neither this process's root nor its mounts have changed, and each thread of it has gone or is what it was.
func TestConfinedLeavesNothing(t *testing.T) {
	privileged(t, func(t *testing.T, _ bool) {
		before, err := os.ReadFile("/proc/self/mountinfo")
		must(t, err)
		dir := t.TempDir()
		must(t, os.WriteFile(filepath.Join(dir, "inside"), nil, 0o600))
		for range 20 {
			must(t, confined(dir, func() error { return unix.Mount("none", dir, "tmpfs", 0, "") }, func() error {
				if _, err := os.Stat("/inside"); err == nil {
					return fmt.Errorf("what was mounted is not there")
				}
				return os.WriteFile("/made", nil, 0o600)
			}))
			if _, err := os.Stat(filepath.Join(dir, "made")); err == nil {
				t.Fatal("a mount of the view is seen outside")
			}
			if _, err := os.Stat(filepath.Join(dir, "inside")); err != nil {
				t.Fatal(err)
			}
		}
		after, err := os.ReadFile("/proc/self/mountinfo")
		must(t, err)
		if !bytes.Equal(before, after) {
			t.Errorf("mounts were\n%s\nand are\n%s", before, after)
		}
	})
}
