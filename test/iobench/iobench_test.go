package main

import (
	"strings"
	"testing"
	"time"
)

func TestTaken(t *testing.T) {
	if got, err := taken("noise\r\ntook 1500\r\n"); err != nil || got != 1500 {
		t.Errorf("%v, %v", got, err)
	}
	if _, err := taken("failed: no room\n"); err == nil {
		t.Error("no time is taken for one")
	}
}

// The verdict is by the ratio of rounds, and the matrix by the rounds that all had.
func TestPage(t *testing.T) {
	r := results{rates: map[string]map[string][]float64{}, cached: map[string]int64{chosen: 3 << 20}, all: 1}
	for name, rate := range map[string]float64{vchName: 90, chosen: 100, jailed: 94} {
		r.rates[name] = map[string][]float64{}
		for _, w := range works(8) {
			r.rates[name][w.name] = []float64{rate, rate}
		}
	}
	page := r.page(options{mib: 8}, time.Date(2026, 1, 2, 0, 0, 0, 0, time.UTC))
	for _, want := range []string{"on 2026-01-02", "| random write, 1/s | 90 | 100 | 0.900 (0.90 to 0.90) | no | 94 | 0.957 (0.96 to 0.96) | yes |", "| **" + chosen + "** | 100 ±0 |", " 3 |", "Rounds: 2."} {
		if !strings.Contains(page, want) {
			t.Errorf("no %q in\n%s", want, page)
		}
	}
}
