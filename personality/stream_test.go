package personality

import (
	"bytes"
	"errors"
	"io"
	"strings"
	"sync"
	"testing"
	"testing/iotest"

	"github.com/moby/moby/api/pkg/stdcopy"

	"vch/internal/fault"
)

// Two outputs written at once come apart again, whole, in Docker's own reader.
func TestMux(t *testing.T) {
	var wire, out, errs bytes.Buffer
	stdout, stderr, mediaType := outputs(&wire, false, maxVersion)
	if mediaType != "application/vnd.docker.multiplexed-stream" {
		t.Errorf("media type %s", mediaType)
	}
	var wg sync.WaitGroup
	for _, s := range []struct {
		w    io.Writer
		text string
	}{{stdout, "out"}, {stderr, "error"}} {
		wg.Go(func() {
			for range 500 {
				if n, err := s.w.Write([]byte(s.text)); n != len(s.text) || err != nil {
					t.Errorf("%d, %v", n, err)
				}
			}
		})
	}
	wg.Wait()
	if n, err := stdout.Write(nil); n != 0 || err != nil {
		t.Errorf("nothing: %d, %v", n, err)
	}
	if _, err := stdcopy.StdCopy(&out, &errs, &wire); err != nil {
		t.Fatal(err)
	}
	if out.String() != strings.Repeat("out", 500) || errs.String() != strings.Repeat("error", 500) {
		t.Errorf("%d and %d bytes came through", out.Len(), errs.Len())
	}
}

func TestOutputsByVersion(t *testing.T) {
	for _, c := range []struct {
		tty  bool
		v    apiVersion
		want string
	}{
		{true, 150, "application/vnd.docker.raw-stream"},
		{true, 141, "application/vnd.docker.raw-stream"},
		{false, 141, "application/vnd.docker.raw-stream"},
		{false, 142, "application/vnd.docker.multiplexed-stream"},
	} {
		if _, _, got := outputs(io.Discard, c.tty, c.v); got != c.want {
			t.Errorf("tty %v, %s: %s", c.tty, c.v, got)
		}
	}
	var wire bytes.Buffer
	stdout, _, _ := outputs(&wire, true, maxVersion)
	if _, err := io.WriteString(stdout, "raw"); err != nil || wire.String() != "raw" {
		t.Errorf("a terminal's output: %q, %v", wire.String(), err)
	}
}

func TestDetachKeys(t *testing.T) {
	for text, want := range map[string]string{
		"": "\x10\x11", "ctrl-p,ctrl-q": "\x10\x11", "a": "a", "a,b": "ab", "ctrl-@": "\x00", "ctrl-[": "\x1b", "ctrl-\\": "\x1c", "ctrl-]": "\x1d", "ctrl-^": "\x1e", "ctrl-_": "\x1f", "ctrl-a,x": "\x01x",
	} {
		if got, err := parseDetachKeys(text); got != want || err != nil {
			t.Errorf("%q: %q, %v", text, got, err)
		}
	}
	for _, text := range []string{",", "a,", "ctrl-", "ctrl-1", "ctrl-A", "shift-a", "ab"} {
		if got, err := parseDetachKeys(text); !fault.Is(err, fault.Invalid) {
			t.Errorf("%q: %q, %v", text, got, err)
		}
	}
}

// What is typed arrives, but for the keys that end it; what only looked like them at first is not lost.
func TestDetachReader(t *testing.T) {
	for _, c := range []struct {
		keys, typed, want string
		detached          bool
	}{
		{"\x10\x11", "ls\n", "ls\n", false},
		{"\x10\x11", "ls\x10\x11more", "ls", true},
		{"\x10\x11", "a\x10b\x11c", "a\x10b\x11c", false},
		{"\x10\x11", "\x10\x10\x11", "\x10", true},
		{"\x10\x11", "end\x10", "end\x10", false},
		{"q", "abqc", "ab", true},
		{"aab", "aaab", "a", true},
		{"aab", "aaac", "aaac", false},
		{"abac", "ababac", "ab", true},
	} {
		for name, in := range map[string]io.Reader{"whole": strings.NewReader(c.typed), "one by one": iotest.OneByteReader(strings.NewReader(c.typed))} {
			calls := 0
			got, err := io.ReadAll(&detachReader{in: in, keys: c.keys, detached: func() { calls++ }})
			if string(got) != c.want || (calls == 1) != c.detached || c.detached != errors.Is(err, errDetached) || !c.detached && err != nil {
				t.Errorf("%q typed %s with %q: %q, %v, detached %d times", c.typed, name, c.keys, got, err, calls)
			}
		}
	}
}

func FuzzDetachReader(f *testing.F) {
	f.Add("\x10\x11", "a\x10\x10\x11b", 2)
	f.Fuzz(func(t *testing.T, keys, typed string, size int) {
		if keys == "" || len(keys) > 64 {
			t.Skip()
		}
		want, _, found := strings.Cut(typed, keys)
		r := &detachReader{in: strings.NewReader(typed), keys: keys, detached: func() {}}
		var got bytes.Buffer
		buf := make([]byte, 1+max(size, 0)%7)
		var err error
		for err == nil {
			var n int
			n, err = r.Read(buf)
			got.Write(buf[:n])
		}
		if got.String() != want || found != errors.Is(err, errDetached) {
			t.Fatalf("keys %q, typed %q: %q, %v; want %q, %v", keys, typed, got.String(), err, want, found)
		}
	})
}
