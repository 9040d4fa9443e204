package measure

import (
	"math"
	"slices"
	"testing"
)

func TestQuantile(t *testing.T) {
	all := []float64{4, 1, 3, 2, 5}
	for q, want := range map[float64]float64{0: 1, 0.25: 2, 0.5: 3, 0.625: 3.5, 1: 5} {
		if got := Quantile(all, q); got != want {
			t.Errorf("%v: %v, want %v", q, got, want)
		}
	}
	if got := Quantile([]float64{7}, 0.5); got != 7 {
		t.Errorf("of one: %v", got)
	}
	if got := Quantile(nil, 0.5); !math.IsNaN(got) {
		t.Errorf("of none: %v", got)
	}
}

func TestRatios(t *testing.T) {
	if got := Ratios([]float64{1, 6, 9}, []float64{2, 3}); !slices.Equal(got, []float64{0.5, 2}) {
		t.Errorf("%v", got)
	}
}

func TestClosure(t *testing.T) {
	dep := "k/top.ko: k/mid.ko k/low.ko\nk/mid.ko: k/low.ko\nk/low.ko:\nk/else.ko:\n"
	if got := closure(dep, "mid", "top", "builtin"); !slices.Equal(got, []string{"k/low.ko", "k/mid.ko", "k/top.ko"}) {
		t.Errorf("%v", got)
	}
}
