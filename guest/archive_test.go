package guest

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"reflect"
	"strings"
	"testing"
	"time"

	"vch/internal/fault"
)

func TestArchivesCarryEverything(t *testing.T) {
	h := newHandler()
	c := meet(t, h)
	ctx := limited(t)
	st := StatRequest{Place: Place{Source: "label://x", Sub: "s/t", Path: "/a\xff/."}, Follow: true, Apart: []string{"/p"}, At: "/at", User: "u:g"}
	l, err := c.Stat(ctx, st)
	want, _ := h.Stat(ctx, st)
	if err != nil || !reflect.DeepEqual(l, want) || l.Stat.Mode != fs.ModeDir|fs.ModeSticky|0o755 {
		t.Errorf("stat %+v, %v; want %+v", l, err, want)
	}
	if l, err := c.Stat(ctx, StatRequest{Place: Place{Mount: "/m", Path: "gone"}}); err != nil || l.Absent != "/a" || l.Elsewhere != "/e" {
		t.Errorf("stat of what is elsewhere: %+v, %v", l, err)
	}

	var got bytes.Buffer
	long := strings.Repeat("abc", MaxFrame)
	ar := ArchiveRequest{Place: Place{Path: "2"}, Name: Path(long), Skip: []string{"/s"}, Open: true}
	skipped, err := c.Archive(ctx, ar, func(b []byte) error { _, err := got.Write(b); return err })
	if err != nil || got.String() != long+long || !reflect.DeepEqual(skipped, []Skipped{{Target: "/t", Name: "n/t"}}) {
		t.Errorf("archive: %d bytes, %v, %v", got.Len(), skipped, err)
	}

	ex := ExtractRequest{Place: Place{Path: "/d"}, NoOverwrite: true, Owner: &OwnerIDs{1, 2}, Whole: true, Apart: []string{"/q"}}
	if err := c.Extract(ctx, ex, strings.NewReader(long)); err != nil {
		t.Error(err)
	}
	if in := <-h.extracted; in != long {
		t.Errorf("%d bytes came, want %d", len(in), len(long))
	}
	for i, r := range []any{st, st, StatRequest{Place: Place{Mount: "/m", Path: "gone"}}, ar, ex} {
		sent := fmt.Sprintf("%+v", r)
		if told := h.told[i][strings.IndexByte(h.told[i], ' ')+1:]; i != 4 && told != sent { // the last holds a pointer
			t.Errorf("told %s, sent %s", told, sent)
		}
	}
}

// Who takes no more of an archive, or gives no more, is left alone by the guest, and hears an error.
func TestArchivesCutOff(t *testing.T) {
	h := newHandler()
	c := meet(t, h)
	enough := errors.New("enough")
	if _, err := c.Archive(limited(t), ArchiveRequest{Place: Place{Path: "1000000000"}, Name: Path(strings.Repeat("x", MaxFrame))}, func([]byte) error { return enough }); !errors.Is(err, enough) {
		t.Errorf("an archive that is not taken: %v", err)
	}
	select {
	case <-h.busy:
	case <-limited(t).Done():
		t.Error("the guest did not see the host leave an archive")
	}
	broken := io.MultiReader(strings.NewReader("part"), errReader{})
	if err := c.Extract(limited(t), ExtractRequest{Place: Place{Path: "/d"}}, broken); !fault.Is(err, fault.Invalid) || !strings.Contains(err.Error(), "torn") {
		t.Errorf("an archive that cannot be read: %v", err)
	}
	if in := <-h.extracted; in != "part" {
		t.Errorf("of a torn archive came %q", in)
	}
	// The guest refuses at once, whatever comes: an endless archive does not keep its answer.
	h.fail = fault.New(fault.Denied, "no")
	if err := c.Extract(limited(t), ExtractRequest{Place: Place{Path: "/d"}}, endless{}); !fault.Is(err, fault.Denied) {
		t.Errorf("an endless archive that is refused: %v", err)
	}
	ctx, cancel := context.WithTimeout(t.Context(), 50*time.Millisecond)
	defer cancel()
	h.fail = nil
	if err := c.Extract(ctx, ExtractRequest{Place: Place{Path: "/d"}}, endless{}); !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("an endless archive that is given up: %v", err)
	}
	<-h.extracted
}

type errReader struct{}

func (errReader) Read([]byte) (int, error) { return 0, errors.New("torn") }

type endless struct{}

func (endless) Read(p []byte) (int, error) { return len(p), nil }

// A host that names what no place is is refused before anything is looked at.
func TestPlacesAreChecked(t *testing.T) {
	h := newHandler()
	c := meet(t, h)
	for _, r := range []StatRequest{
		{Place: Place{Path: "a\x00b"}}, {Place: Place{Mount: "/m\x00"}}, {Place: Place{Source: "label://x", Mount: "/m"}}, {Place: Place{Sub: "s"}},
		{Place: Place{Source: "label://x", Sub: "../s"}}, {Place: Place{Source: "label://x", Sub: "/s"}}, {Apart: []string{"a"}}, {Apart: []string{"/a/.."}},
	} {
		if _, err := c.Stat(limited(t), r); !fault.Is(err, fault.Invalid) {
			t.Errorf("%+v: %v", r, err)
		}
	}
	if _, err := c.Archive(limited(t), ArchiveRequest{Skip: []string{"x"}}, nil); !fault.Is(err, fault.Invalid) {
		t.Errorf("archive: %v", err)
	}
	if err := c.Extract(limited(t), ExtractRequest{Apart: []string{"x"}}, strings.NewReader("")); !fault.Is(err, fault.Invalid) {
		t.Errorf("extract: %v", err)
	}
	if len(h.told) != 0 {
		t.Errorf("the guest was told %v", h.told)
	}
}
