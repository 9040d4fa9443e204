package main

import (
	"strings"
	"testing"
	"time"
)

func TestTold(t *testing.T) {
	if got, err := toldBy("noise\r\ntook 1500 20\r\n"); err != nil || got != (told{1500, 20}) {
		t.Errorf("%v, %v", got, err)
	}
	if _, err := toldBy("failed: no room\n"); err == nil {
		t.Error("no time is taken for one")
	}
}

// A process may be called as it likes.
func TestProcessorTime(t *testing.T) {
	const stat = "7 (a) S (b) S 1 7 7 0 -1 4194560 1 2 3 4 150 50 9 9 20 0 1 0 100 0 0"
	if got, err := processorTime(stat); err != nil || got != 2*time.Second {
		t.Errorf("%v, %v", got, err)
	}
	if _, err := processorTime("7 (a) S 1"); err == nil {
		t.Error("half a line is taken for one")
	}
}

func TestShort(t *testing.T) {
	for x, want := range map[float64]string{334.8: "335", 1.234: "1.23", 0.1: "0.10", 0.0042: "0.0042"} {
		if got := short(x); got != want {
			t.Errorf("%v: %s, want %s", x, got, want)
		}
	}
}

// Ratios are of each round, and the verdict is by their quartiles.
func TestPage(t *testing.T) {
	r := results{told: map[string]map[string][]told{}, spent: map[string]map[string]map[string]time.Duration{}, about: []string{"a machine"}}
	all := works(8)
	slow := func(place string, w work) time.Duration { // in one work vch is faster
		if w.kind == "seqread" && place != onDisk {
			return map[string]time.Duration{inVCH: 1, byHand: 2}[place]
		}
		return map[string]time.Duration{inVCH: 2, byHand: 1, onDisk: 4}[place]
	}
	for _, place := range []string{inVCH, byHand, onDisk} {
		r.told[place], r.spent[place] = map[string][]told{}, map[string]map[string]time.Duration{}
		for _, w := range all {
			s := slow(place, w)
			r.told[place][w.name] = []told{{s * time.Second, s * time.Millisecond}, {2 * s * time.Second, 2 * s * time.Millisecond}}
			r.spent[place][w.name] = map[string]time.Duration{"QEMU": s * time.Second}
		}
	}
	ms := time.Millisecond
	r.runs = [][]time.Duration{{100 * ms, 200 * ms}, {150 * ms, 300 * ms}, {300 * ms, 600 * ms}}
	page := r.page(options{mib: 8, rounds: 2}, time.Date(2026, 1, 2, 0, 0, 0, 0, time.UTC))
	for _, want := range []string{"on 2026-01-02", "- a machine\n", "| sequential write and fsync, MiB/s | 3 | 6 | 0.50 (0.50 to 0.50) | 2 | 2.00 (2.00 to 2.00) |",
		"| append and fsync | 3000.0 | 1500.0 | 2.00 (2.00 to 2.00) | 6000.0 | 0.50 (0.50 to 0.50) |", "vch is faster: sequential read (2.00).", "neither is: nowhere.",
		"| random read | 2500 | 0 | 0 | 1250 | 0 |", "| with an NFS volume | 450 | 3.00 (3.00 to 3.00) |", "to one on a disk: 2.00 (2.00 to 2.00)."} {
		if !strings.Contains(page, want) {
			t.Errorf("no %q in\n%s", want, page)
		}
	}
}
