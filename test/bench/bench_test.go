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
