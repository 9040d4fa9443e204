package main

import (
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"vch/portlayer"
)

func TestMiddle(t *testing.T) {
	for _, tc := range []struct {
		in   []time.Duration
		want time.Duration
	}{{[]time.Duration{7}, 7}, {[]time.Duration{9, 1, 5}, 5}, {[]time.Duration{8, 2, 4, 6}, 5}} {
		if got := middle(tc.in); got != tc.want {
			t.Errorf("%v: %v", tc.in, got)
		}
	}
}

// The phases are what follows "took" in the last line that tells of a start.
func TestLastStart(t *testing.T) {
	log, err := os.Create(filepath.Join(t.TempDir(), "log"))
	if err != nil {
		t.Fatal(err)
	}
	defer log.Close()
	h := &host{log: log}
	if phases, err := h.lastStart(); err != nil || phases != nil {
		t.Errorf("an empty log: %v, %v", phases, err)
	}
	_, err = log.WriteString(`{"time":"2026-01-01T00:00:00Z","level":"INFO","msg":"container started","container":"a","name":"x","took":9,"define":1}
{"time":"2026-01-01T00:00:01Z","level":"INFO","msg":"container started","container":"b","name":"x","took":1000,"define":100,"boot":900}
{"time":"2026-01-01T00:00:02Z","level":"INFO","msg":"container exited","container":"b","took":3}
`)
	if err != nil {
		t.Fatal(err)
	}
	phases, err := h.lastStart()
	if err != nil || len(phases) != 2 || phases[0] != (phase{"define", 100}) || phases[1] != (phase{"boot", 900}) {
		t.Errorf("%v, %v", phases, err)
	}
}

func TestPage(t *testing.T) {
	r := results{
		about:  []string{"a machine"},
		rows:   []row{{"start", 1500 * time.Microsecond, 0}},
		phases: []phase{{"define", 25}, {"boot", 75}},
		memory: []amount{{"the daemon", 3 * portlayer.MiB}},
	}
	page := r.page(options{runs: 3}, time.Date(2026, 1, 2, 0, 0, 0, 0, time.UTC))
	for _, want := range []string{"on 2026-01-02 by `make bench` (medians of 3 runs", "- a machine\n", "| start | 1.5 ms | – |", "| boot | 0.0 ms | 75 % |", "| the daemon | 3.0 MiB |"} {
		if !strings.Contains(page, want) {
			t.Errorf("no %q in\n%s", want, page)
		}
	}
}

// Ratios are of each turn; a bar is missed by the median alone.
func TestBeside(t *testing.T) {
	ms := time.Millisecond
	r := results{beside: []pair{
		{what: "run", bar: 1, vch: []time.Duration{2 * ms, 3 * ms, 8 * ms}, moby: []time.Duration{4 * ms, 3 * ms, 4 * ms}},
		{what: "create", bar: 1, vch: []time.Duration{9 * ms, 9 * ms}, moby: []time.Duration{6 * ms, 6 * ms}},
		{what: "rm", vch: []time.Duration{ms}, moby: []time.Duration{ms}},
	}}
	page := r.besidePage()
	for _, want := range []string{"| run | 3.0 ms | 4.0 ms | 1.00 (0.75 to 1.50) | 1.0, met |", "| create | 9.0 ms | 6.0 ms | 1.50 (1.50 to 1.50) | 1.0, **missed** |", "| rm | 1.0 ms | 1.0 ms | 1.00 (1.00 to 1.00) | – |", picture} {
		if !strings.Contains(page, want) {
			t.Errorf("no %q in\n%s", want, page)
		}
	}
	if page := (results{}).besidePage(); !strings.Contains(page, "not there") {
		t.Errorf("without the engine: %q", page)
	}
}

// The bars are as long as their times, on one scale.
func TestDrawn(t *testing.T) {
	svg := drawn([]way{{"boot", []phase{{"boot", 900 * time.Millisecond}, {"mount", 100 * time.Millisecond}}}, {"fork", []phase{{"boot", 500 * time.Millisecond}}}})
	for _, want := range []string{"<svg ", `width="486.0"`, `width="54.0"`, `width="270.0"`, ">1000 ms<", ">500 ms<", ">mount<"} {
		if !strings.Contains(svg, want) {
			t.Errorf("no %q in\n%s", want, svg)
		}
	}
}
