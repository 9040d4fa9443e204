package exec

import (
	"fmt"
	"io"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"vch/guest"
	"vch/portlayer"
)

// logUnit is a container with nothing but its log.
func logUnit(t *testing.T, limit portlayer.LogLimit) *unit {
	t.Helper()
	s := &Service{o: Options{Dir: t.TempDir(), Log: slog.New(slog.DiscardHandler)}, ctx: t.Context()}
	u := &unit{s: s, c: portlayer.Container{ID: "c0ffee", Spec: portlayer.ContainerSpec{LogMax: limit}}}
	u.snap.Store(&snapshot{container: u.c, changed: make(chan struct{})})
	s.units = map[portlayer.ContainerID]*unit{u.c.ID: u}
	if err := u.beginLog(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(u.endLog)
	return u
}

func keepAll(t *testing.T, u *unit, from uint64, pieces ...string) {
	t.Helper()
	for i, p := range pieces {
		stream := guest.Stdout
		if strings.HasPrefix(p, "E:") {
			stream, p = guest.Stderr, p[2:]
		}
		if err := u.keep(guest.Frame{Number: from + uint64(i), Stream: stream, Data: []byte(p)}); err != nil {
			t.Fatal(err)
		}
	}
}

func readLog(t *testing.T, u *unit, o portlayer.LogOptions) []string {
	t.Helper()
	o.Stdout, o.Stderr = true, true
	var got []string
	err := u.s.Logs(t.Context(), string(u.c.ID), o, func(e portlayer.LogEntry) error {
		got = append(got, fmt.Sprintf("%d:%s", e.Stream, e.Data))
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	return got
}

func TestLogJoinsPiecesOfALinePerStream(t *testing.T) {
	u := logUnit(t, portlayer.LogLimit{})
	keepAll(t, u, 1, "one\ntw", "E:err", "o\n", "E:or\n", "bin\xff\n", "open")
	got := strings.Join(readLog(t, u, portlayer.LogOptions{Tail: -1}), "|")
	want := "1:one\n|1:two\n|2:error\n|1:bin\xff\n|1:open"
	if got != want {
		t.Errorf("got  %q\nwant %q", got, want)
	}
}

func TestLogTailCountsLinesNotPieces(t *testing.T) {
	u := logUnit(t, portlayer.LogLimit{})
	keepAll(t, u, 1, "a\nb\nc", "c\nd", "d\n")
	for tail, want := range map[int]string{0: "", 1: "1:dd\n", 2: "1:cc\n1:dd\n", 9: "1:a\n1:b\n1:cc\n1:dd\n"} {
		if got := strings.Join(readLog(t, u, portlayer.LogOptions{Tail: tail}), ""); got != want {
			t.Errorf("tail %d: %q, want %q", tail, got, want)
		}
	}
}

// After a crash in the middle of a frame, that frame is cut off and asked for again; a run without output yet does not take the number of the run before.
func TestResumeCutsTornFrames(t *testing.T) {
	u := logUnit(t, portlayer.LogLimit{})
	keepAll(t, u, 1, "one\n", "two\nthree\n")
	u.endLog()
	path := u.s.logPath(u.c.ID)
	whole, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	lines := strings.SplitAfter(strings.TrimSuffix(string(whole), "\n"), "\n")
	for cut, want := range map[string]uint64{
		string(whole):                            2,
		strings.Join(lines[:3], ""):              1, // "two" without "three": not whole
		strings.Join(lines[:2], ""):              1,
		strings.Join(lines[:2], "") + `{"log":"`: 1,
		lines[0]:                                 0, // the marker of a new run
		"":                                       0,
	} {
		if err := os.WriteFile(path, []byte(cut), 0o600); err != nil {
			t.Fatal(err)
		}
		got, err := u.resumeLog()
		if err != nil || got != want {
			t.Errorf("log of %d bytes resumes after frame %d (%v), want %d", len(cut), got, err, want)
		}
		keepAll(t, u, want+1, "again\n")
		u.endLog()
		if got, err := u.resumeLog(); err != nil || got != want+1 {
			t.Errorf("after one more frame: %d, %v", got, err)
		}
		u.endLog()
	}
}

func TestLogRotatesAndKeepsOrder(t *testing.T) {
	u := logUnit(t, portlayer.LogLimit{Size: 300, Files: 3})
	for i := range 12 {
		keepAll(t, u, uint64(i+1), fmt.Sprintf("line %02d\n", i))
	}
	names, _ := filepath.Glob(u.s.logPath(u.c.ID) + "*")
	if len(names) != 3 {
		t.Errorf("%d files kept: %v", len(names), names)
	}
	got := readLog(t, u, portlayer.LogOptions{Tail: -1})
	if len(got) < 3 || got[len(got)-1] != "1:line 11\n" {
		t.Fatalf("got %q", got)
	}
	for i := 1; i < len(got); i++ {
		if got[i-1] >= got[i] {
			t.Errorf("out of order: %q before %q", got[i-1], got[i])
		}
	}
	u.endLog()
	if last, err := u.resumeLog(); err != nil || last != 12 {
		t.Errorf("resume after rotation: %d, %v", last, err)
	}
}

// A client that joins in the middle gets what was logged before and what comes after, once each.
func TestJoinHasNoGap(t *testing.T) {
	u := logUnit(t, portlayer.LogLimit{})
	keepAll(t, u, 1, "before\n")
	k, size := u.hub.join()
	keepAll(t, u, 2, "after\n")
	var replayed strings.Builder
	if err := replay(u.s.logPath(u.c.ID), size, func(_ guest.Stream, b []byte) error { replayed.Write(b); return nil }); err != nil {
		t.Fatal(err)
	}
	u.hub.finish()
	f, ok := <-k.frames
	if replayed.String() != "before\n" || !ok || string(f.Data) != "after\n" {
		t.Errorf("replayed %q, live %q", replayed.String(), f.Data)
	}
	if _, ok := <-k.frames; ok {
		t.Error("a frame too many")
	}
	u.hub.leave(k)
}

// A client that went away does not hold the container up, however many frames follow.
func TestClientThatLeftIsNotWaitedFor(t *testing.T) {
	u := logUnit(t, portlayer.LogLimit{})
	k, _ := u.hub.join()
	u.hub.leave(k)
	for i := range 100 {
		keepAll(t, u, uint64(i+1), "x\n")
	}
}

func TestLastFrameOfNoLog(t *testing.T) {
	if last, found, end, err := lastFrame(strings.NewReader("")); last != 0 || found || end != 0 || err != nil {
		t.Error(last, found, end, err)
	}
	if _, _, _, err := lastFrame(io.MultiReader(strings.NewReader("x"), failing{})); err == nil {
		t.Error("a read error is swallowed")
	}
}

type failing struct{}

func (failing) Read([]byte) (int, error) { return 0, io.ErrUnexpectedEOF }
