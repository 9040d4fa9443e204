package nfsclient

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"net"
	"slices"
	"sync"
	"sync/atomic"
	"testing"
	"time"
)

const (
	notSupported3 = 10004 // NFS3ERR_NOTSUPP
	jukebox3      = 10008 // NFS3ERR_JUKEBOX
)

// call is what a scripted server was asked.
type call struct {
	service
	proc uint32
	args decoder
}

// answer is what it says: an accept_stat with what follows, or more bluntly what follows the xid and the message type. nil is silence.
type answer []byte

func accepted(stat uint32, body ...[]byte) answer {
	return answer(slices.Concat(append([][]byte{words(0, 0, 0, stat)}, body...)...))
}

func denied(auth uint32) answer { return answer(words(1, 1, auth)) }

// scripted is an RPC server that answers as told, in fragments of that many bytes (0: one). Real servers do not do on demand what it does.
func scripted(t *testing.T, fragment int, script func(call) answer) Options {
	t.Helper()
	port := listen(t, func(c net.Conn) {
		for {
			record, err := readRecord(c)
			if err != nil {
				return
			}
			d := decoder{b: record}
			xid := d.u32()
			d.u64()
			asked := call{service{d.u32(), d.u32()}, d.u32(), decoder{}}
			for range 2 {
				d.u32()
				d.opaque(400)
			}
			asked.args = d
			says := script(asked)
			if says == nil {
				continue
			}
			reply := append(words(xid, 1), says...)
			for first := true; first || len(reply) > 0; first = false {
				n := len(reply)
				if fragment > 0 {
					n = min(n, fragment)
				}
				mark := uint32(n)
				if n == len(reply) {
					mark |= 1 << 31
				}
				if _, err := c.Write(append(binary.BigEndian.AppendUint32(nil, mark), reply[:n]...)); err != nil {
					return
				}
				reply = reply[n:]
			}
		}
	})
	return Options{Host: "127.0.0.1", Port: port, MountPort: port, Version: V3, Path: "/export/dir"}
}

// What version 3's results are made of.
func attr3(kind Type) []byte {
	var e encoder
	e.b = words(uint32(kind), 0o755, 2, 10, 20)
	e.u64(100)
	e.u64(4096)
	e.u64(0)
	e.u64(77)
	e.u64(5)
	e.b = append(e.b, words(1, 2, 1700000000, 5, 3, 4)...)
	return e.b
}

func some(v []byte) []byte { return append(words(1), v...) }

func noWCC() []byte { return words(0, 0) }

func mounted() answer {
	return accepted(0, words(0), []byte{0, 0, 0, 4, 'r', 'o', 'o', 't'}, words(1, 1))
}

// script3 is a server of one directory; other gets what it does not know.
func script3(other func(call) answer) func(call) answer {
	return func(c call) answer {
		switch {
		case c.program == programMount && c.proc == procMount:
			return mounted()
		case c.program == programNFS && c.proc == procGetAttr:
			return accepted(0, words(0), attr3(Dir))
		case c.program == programNFS && c.proc == procFSInfo:
			return accepted(0, words(0, 0), words(1024, 1024, 1, 1024, 1024, 1))
		}
		return other(c)
	}
}

func nothing(call) answer { return accepted(3) }

func TestFragments(t *testing.T) {
	t.Parallel()
	for _, fragment := range []int{1, 3, 4, 100, 0} {
		a, err := open(t, scripted(t, fragment, script3(nothing))).Stat(t.Context(), "")
		check(t, err)
		want := Attr{Type: Dir, Mode: 0o755, Nlink: 2, UID: 10, GID: 20, Size: 100, Used: 4096, FSID: FSID{77}, FileID: 5, Mtime: time.Unix(1700000000, 5)}
		if a != want {
			t.Errorf("%+v, want %+v", a, want)
		}
	}
	var endless bytes.Buffer
	endless.Write(make([]byte, 4*(maxFragments+1)))
	for name, b := range map[string][]byte{"empty fragments": endless.Bytes(), "too long": words(1<<31 | maxReply + 1), "too long together": append(append(words(maxReply), make([]byte, maxReply)...), words(1)...)} {
		if _, err := readRecord(bytes.NewReader(b)); !errors.Is(err, errMalformed) {
			t.Errorf("%s: %v", name, err)
		}
	}
}

// What an RPC server refuses, before any NFS.
func TestRefusals(t *testing.T) {
	t.Parallel()
	for _, tc := range []struct {
		name   string
		says   answer
		v3, v4 Reason
		status string
	}{
		{"program", accepted(1), NoMountd, NoVersion, "PROG_UNAVAIL"},
		{"version", accepted(2, words(2, 3)), NoVersion, NoVersion, "PROG_MISMATCH"},
		{"procedure", accepted(3), Unsupported, Unsupported, "PROC_UNAVAIL"},
		{"arguments", accepted(4), Protocol, Protocol, "GARBAGE_ARGS"},
		{"system", accepted(5), ServerFault, ServerFault, "SYSTEM_ERR"},
		{"rpc version", answer(words(1, 0, 3, 3)), Protocol, Protocol, "RPC_MISMATCH"},
		{"too weak", denied(5), InsecurePort, InsecurePort, "AUTH_TOOWEAK"},
		{"bad credential", denied(1), InsecurePort, InsecurePort, "AUTH_BADCRED"},
		{"short", answer(words(0, 0)), Protocol, Protocol, ""},
		{"no such reply", answer(words(2, 0)), Protocol, Protocol, ""},
	} {
		o := scripted(t, 0, func(call) answer { return tc.says })
		o.Dial = (&net.Dialer{}).DialContext
		for v, want := range map[Version]Reason{V3: tc.v3, V4: tc.v4} {
			o.Version = v
			if err := failsToOpen(t, o, want); err.Name != tc.status && want != NoMountd || err.Reserved {
				t.Errorf("%s: %+v", tc.name, err)
			}
		}
	}
}

func TestMountRefusals(t *testing.T) {
	t.Parallel()
	list := func(dirs ...string) []byte {
		var e encoder
		for _, d := range dirs {
			e.u32(1)
			e.text(d)
			e.u32(1)
			e.text("*")
			e.u32(0)
		}
		e.u32(0)
		return e.b
	}
	for _, tc := range []struct {
		name    string
		status  uint32
		exports answer
		want    Reason
	}{
		{"no entry", 2, nil, NoExport},
		{"not in the list", 13, accepted(0, list("/other", "/export/dir2", "/export/d")), NoExport},
		{"in the list", 13, accepted(0, list("/", "/export", "/export/dir/")), InsecurePort},
		{"no list", 13, accepted(3), InsecurePort},
		{"broken list", 13, accepted(0, words(1, 1<<30)), InsecurePort},
		{"a file", 20, nil, NotDir},
		{"unknown", 4711, nil, ServerFault},
	} {
		o := scripted(t, 0, func(c call) answer {
			if c.proc == procExport {
				return tc.exports
			}
			return accepted(0, words(tc.status))
		})
		o.Dial = (&net.Dialer{}).DialContext
		if err := failsToOpen(t, o, tc.want); err.Status != tc.status {
			t.Errorf("%s: %+v", tc.name, err)
		}
	}
	// Below an export that can be mounted itself only.
	o := scripted(t, 0, script3(func(c call) answer {
		if c.proc == procExport {
			return accepted(0, list("/export"))
		}
		return accepted(0, words(0), []byte{0, 0, 0, 3, 'd', 'i', 'r', 0}, words(0), words(0)) // LOOKUP
	}))
	o.Path = "/export"
	open(t, o)
	asked := scripted(t, 0, func(c call) answer {
		if name := c.args.text(100); c.program == programMount && c.proc == procMount && name != "/export" {
			return accepted(0, words(13))
		}
		return script3(func(c call) answer {
			if c.proc == procExport {
				return accepted(0, list("/export"))
			}
			return accepted(0, words(0), []byte{0, 0, 0, 3, 'd', 'i', 'r', 0}, words(0), words(0))
		})(c)
	})
	if got := string(open(t, asked).p.(*v3).root()); got != "dir" {
		t.Errorf("the root is %q", got)
	}
}

// The portmapper at port 111 is a scripted server too, that Dial leads to.
func TestPortmapper(t *testing.T) {
	t.Parallel()
	for _, tc := range []struct {
		name string
		port answer
		want Reason
	}{
		{"no mountd", accepted(0, words(0)), NoMountd},
		{"no port", accepted(0, words(70000)), Protocol},
		{"nothing", accepted(0), Protocol},
		{"another version", accepted(2, words(3, 4)), NoVersion},
	} {
		o := scripted(t, 0, func(c call) answer { return tc.port })
		at := net.JoinHostPort(o.Host, "111")
		port := o.Port
		o.MountPort = 0
		o.Dial = func(ctx context.Context, network, address string) (net.Conn, error) {
			if address != at {
				t.Errorf("%s: it asks %s", tc.name, address)
			}
			return (&net.Dialer{}).DialContext(ctx, network, (&net.TCPAddr{IP: net.IPv4(127, 0, 0, 1), Port: port}).String())
		}
		failsToOpen(t, o, tc.want)
		_, err := MountPort(t.Context(), o)
		wantReason(t, err, tc.want)
	}
	o := scripted(t, 0, func(c call) answer {
		if c.service != (service{programPortmap, 2}) || c.proc != procGetPort || !bytes.Equal(c.args.b, words(programMount, 3, 6, 0)) {
			t.Errorf("%+v", c)
		}
		return accepted(0, words(20048))
	})
	port := o.Port
	o.Dial = func(ctx context.Context, network, address string) (net.Conn, error) {
		return (&net.Dialer{}).DialContext(ctx, network, (&net.TCPAddr{IP: net.IPv4(127, 0, 0, 1), Port: port}).String())
	}
	if port, err := MountPort(t.Context(), o); err != nil || port != 20048 {
		t.Errorf("%d, %v", port, err)
	}
}

// NFS3ERR_JUKEBOX is waited out, and no longer than the context.
func TestJukebox(t *testing.T) {
	t.Parallel()
	var left atomic.Int64
	e := open(t, scripted(t, 0, script3(func(c call) answer {
		if left.Add(-1) >= 0 {
			return accepted(0, words(jukebox3))
		}
		return accepted(0, words(0), noWCC())
	})))
	left.Store(2)
	check(t, e.Remove(t.Context(), "file"))
	left.Store(1 << 40)
	ctx, cancel := context.WithTimeout(t.Context(), 200*time.Millisecond)
	defer cancel()
	err := e.Remove(ctx, "file")
	wantReason(t, err, Busy)
	if !errors.Is(err, context.DeadlineExceeded) {
		t.Error(err)
	}
}

// A server that writes less than it was asked for, and not stably: the rest follows, and a COMMIT whose verifier has to be the same.
func TestUnstableWrite(t *testing.T) {
	t.Parallel()
	for _, same := range []bool{true, false} {
		var mu sync.Mutex
		var written []byte
		e := open(t, scripted(t, 0, script3(func(c call) answer {
			switch c.proc {
			case procCreate:
				return accepted(0, words(0), words(1), []byte{0, 0, 0, 1, 'f', 0, 0, 0}, words(0), noWCC())
			case procWrite:
				c.args.opaque(maxHandle3)
				offset := c.args.u64()
				c.args.u64()
				data := c.args.opaque(maxChunk)
				data = data[:min(len(data), 300)]
				mu.Lock()
				defer mu.Unlock()
				if offset != uint64(len(written)) {
					t.Errorf("a write at %d, not %d", offset, len(written))
				}
				written = append(written, data...)
				return accepted(0, words(0), noWCC(), words(uint32(len(data)), 0), []byte("verifier"))
			case procCommit:
				if same {
					return accepted(0, words(0), noWCC(), []byte("verifier"))
				}
				return accepted(0, words(0), noWCC(), []byte("another1"))
			}
			return nothing(c)
		})))
		data := bytes.Repeat([]byte("abcdefg"), 500)
		err := e.WriteFile(t.Context(), "file", data, 0o644)
		if !same {
			wantReason(t, err, ServerFault)
		} else if err != nil || !bytes.Equal(data, written) {
			t.Errorf("%v, %d bytes", err, len(written))
		}
	}
}

// A server without READDIRPLUS is asked by READDIR, and each entry looked up; one that vanished is left out.
func TestPlainReadDir(t *testing.T) {
	t.Parallel()
	e := open(t, scripted(t, 0, script3(func(c call) answer {
		switch c.proc {
		case procReadDirPlus:
			return accepted(0, words(notSupported3, 0))
		case procReadDir:
			var e encoder
			for i, n := range []string{".", "..", "a", "gone", "b"} {
				e.u32(1)
				e.u64(uint64(i + 1))
				e.text(n)
				e.u64(uint64(i + 1))
			}
			return accepted(0, words(0), words(0), words(0, 0), e.b, words(0, 1))
		case procLookup:
			c.args.opaque(maxHandle3)
			if c.args.text(maxName) == "gone" {
				return accepted(0, words(2, 0))
			}
			return accepted(0, words(0), []byte{0, 0, 0, 1, 'h', 0, 0, 0}, some(attr3(File)), words(0))
		}
		return nothing(c)
	})))
	if got := names(t, e, ""); !slices.Equal(got, []string{"a", "b"}) {
		t.Errorf("%q", got)
	}
}

// A name that is no name does not reach a caller, who might use it as one.
func TestHostileNames(t *testing.T) {
	t.Parallel()
	for _, name := range []string{"", "../up", "a/b", "nul\x00"} {
		var plus encoder
		plus.u32(1)
		plus.u64(9)
		plus.text(name)
		plus.u64(9)
		e := open(t, scripted(t, 0, script3(func(c call) answer {
			return accepted(0, words(0), words(0), words(0, 0), plus.b, words(0, 0), words(0, 1))
		})))
		wantReason(t, e.ReadDir(t.Context(), "", func([]Entry) error { return nil }), Protocol)
	}
}

// RemoveAll stays in its file system: where another one begins, it goes no further.
func TestRemoveAllStaysInItsFileSystem(t *testing.T) {
	t.Parallel()
	elsewhere := attr3(Dir)
	elsewhere[51]++ // the last byte of fsid
	e := open(t, scripted(t, 0, script3(func(c call) answer {
		switch c.proc {
		case procLookup:
			c.args.opaque(maxHandle3)
			name := c.args.text(maxName)
			a := attr3(Dir)
			if name == "mounted" {
				a = elsewhere
			}
			return accepted(0, words(0), text(name), some(a), words(0))
		case procReadDirPlus:
			if handle := c.args.text(maxHandle3); handle != "tree" {
				t.Errorf("%q is read", handle)
			}
			return accepted(0, words(0), words(0), words(0, 0), words(1, 0, 9), text("mounted"), words(0, 1), some(elsewhere), words(0), words(0, 1))
		}
		t.Errorf("procedure %d", c.proc)
		return nothing(c)
	})))
	wantReason(t, e.RemoveAll(t.Context(), "tree"), Unsupported)
}

// A failure of the server's own does not end a call that only looks, if it passes.
func TestLookingInsists(t *testing.T) {
	t.Parallel()
	for _, faults := range []int64{2, maxFaults + 1} {
		var left atomic.Int64
		e := open(t, scripted(t, 0, script3(func(c call) answer {
			if left.Add(-1) >= 0 {
				return accepted(0, words(5, 0, 0))
			}
			switch c.proc {
			case procLookup:
				return accepted(0, words(0), text("file"), some(attr3(File)), words(0))
			case procRead:
				return accepted(0, words(0, 0, 1, 1), text("x"))
			case procReadDirPlus:
				return accepted(0, words(0), words(0), words(0, 0), words(0, 1))
			case procFSStat:
				return accepted(0, words(0, 0), make([]byte, 52))
			}
			return nothing(c)
		})))
		for name, look := range map[string]func() error{
			"stat":  func() error { _, err := e.Stat(t.Context(), "file"); return err },
			"read":  func() error { _, err := e.ReadFile(t.Context(), "file", 10); return err },
			"list":  func() error { return e.ReadDir(t.Context(), "", func([]Entry) error { return nil }) },
			"space": func() error { _, _, err := e.Space(t.Context()); return err },
		} {
			left.Store(faults)
			err := look()
			if faults > maxFaults {
				wantReason(t, err, ServerFault)
			} else if err != nil {
				t.Errorf("%s: %v", name, err)
			}
		}
	}
}

// A failure of the server's own does not end RemoveAll, if it passes.
func TestRemoveAllInsists(t *testing.T) {
	t.Parallel()
	for _, faults := range []int64{2, maxFaults + 1} {
		var left atomic.Int64
		left.Store(faults)
		e := open(t, scripted(t, 0, script3(func(c call) answer {
			switch c.proc {
			case procLookup:
				return accepted(0, words(0), text("tree"), some(attr3(Dir)), words(0))
			case procReadDirPlus:
				return accepted(0, words(0), words(0), words(0, 0), words(0, 1))
			case procRmdir:
				if left.Add(-1) >= 0 {
					return accepted(0, words(5))
				}
				return accepted(0, words(0), noWCC())
			}
			return nothing(c)
		})))
		err := e.RemoveAll(t.Context(), "tree")
		if faults > maxFaults {
			wantReason(t, err, ServerFault)
		} else if err != nil {
			t.Error(err)
		}
	}
}
