package fault

import (
	"context"
	"errors"
	"fmt"
	"testing"
)

func TestKindSurvivesWrapping(t *testing.T) {
	base := New(InUse, "held by container %s", "web")
	err := fmt.Errorf("later: %w", Wrap("attach volume", "data", base))
	if !Is(err, InUse) {
		t.Fatalf("kind = %v, want in use", KindOf(err))
	}
	if got, want := Wrap("attach volume", "data", base).Error(), "cannot attach volume data: held by container web"; got != want {
		t.Errorf("text %q, want %q", got, want)
	}
}

func TestKindTextRoundTrip(t *testing.T) {
	for k := Kind(0); k < kinds; k++ {
		if ParseKind(k.String()) != k {
			t.Errorf("kind %d does not survive its text %q", k, k)
		}
	}
	if ParseKind("no such kind") != Internal {
		t.Error("an unknown kind is not internal")
	}
}

func TestKindOfForeignErrors(t *testing.T) {
	if KindOf(errors.New("x")) != Internal || KindOf(context.DeadlineExceeded) != Unavailable {
		t.Error("wrong kind for an error without one")
	}
	if Wrap("x", "y", nil) != nil || As(Invalid, nil) != nil || Is(nil, Internal) {
		t.Error("nil is not kept nil")
	}
}
