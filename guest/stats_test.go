package guest

import (
	"errors"
	"fmt"
	"reflect"
	"strings"
	"testing"

	"vch/internal/fault"
)

func TestStatsAndLimitsCross(t *testing.T) {
	h := newHandler()
	c := meet(t, h)
	st, err := c.Stats(t.Context())
	if want, _ := h.Stats(t.Context()); err != nil || !reflect.DeepEqual(st, want) {
		t.Errorf("stats came as %+v, %v; want %+v", st, err, want)
	}
	l := Limits{Memory: 1 << 40, CPUs: 5e8, PidsMax: 7}
	if err := c.SetLimits(t.Context(), l); err != nil || !strings.Contains(strings.Join(h.told, "\n"), fmt.Sprintf("limits %+v", l)) {
		t.Errorf("the handler was told %q, %v", h.told, err)
	}
	if err := errors.Join(c.SetStill(t.Context(), true), c.SetStill(t.Context(), false)); err != nil || !strings.HasSuffix(strings.Join(h.told, "\n"), "still true\nstill false") {
		t.Errorf("the handler was told %q, %v", h.told, err)
	}
}

func TestChangesCross(t *testing.T) {
	h := newHandler()
	c := meet(t, h)
	var got []Change
	if err := c.Changes(t.Context(), func(some []Change) error { got = append(got, some...); return nil }); err != nil {
		t.Fatal(err)
	}
	if len(got) != 2*changesAtOnce+1 {
		t.Fatalf("%d changes came", len(got))
	}
	for i, change := range got {
		if want := (Change{Path: Path(fmt.Sprintf("/\xff%d", i)), Kind: Added}); change != want {
			t.Fatalf("change %d is %+v, want %+v", i, change, want)
		}
	}
	h.fail = fault.New(fault.Denied, "no")
	if err := c.Changes(t.Context(), func([]Change) error { return nil }); !fault.Is(err, fault.Denied) {
		t.Errorf("a refusal came as %v", err)
	}
}

func TestArchiveOfARootIsOfAllOfIt(t *testing.T) {
	c := meet(t, newHandler())
	for _, r := range []ArchiveRequest{
		{Place: Place{Path: "/etc"}, Extent: RootAlone},
		{Place: Place{Path: "/"}, Name: "x", Extent: ChangesOf},
		{Place: Place{Path: "/", Source: "label://x"}, Extent: RootAlone},
	} {
		if _, err := c.Archive(t.Context(), r, func([]byte) error { return nil }); !fault.Is(err, fault.Invalid) {
			t.Errorf("%+v: %v", r, err)
		}
	}
}
