package undo

import (
	"context"
	"errors"
	"reflect"
	"testing"
)

func TestRunIsReversedAndSurvivesCancel(t *testing.T) {
	ctx, cancel := context.WithCancel(context.Background())
	cancel()
	var s Stack
	var got []int
	for i := range 3 {
		s.Push(func(ctx context.Context) error {
			got = append(got, i)
			if i == 1 {
				return errors.New("one")
			}
			return ctx.Err()
		})
	}
	if err := s.Run(ctx); err == nil || err.Error() != "one" {
		t.Errorf("err = %v, want that of step one only", err)
	}
	if want := []int{2, 1, 0}; !reflect.DeepEqual(got, want) {
		t.Errorf("order %v, want %v", got, want)
	}
	if err := s.Run(ctx); err != nil || len(got) != 3 {
		t.Error("a second Run did something")
	}
}

func TestKeepDropsSteps(t *testing.T) {
	var s Stack
	s.Push(func(context.Context) error { t.Error("undone after Keep"); return nil })
	s.Keep()
	if err := s.Run(context.Background()); err != nil {
		t.Error(err)
	}
}
