package main

import (
	"strings"
	"testing"
	"time"
)

// Calls that wait for each other are told from those that go on at once, and from the question that is always open.
func TestInARow(t *testing.T) {
	at := func(ms int) time.Time { return time.Unix(0, 0).Add(time.Duration(ms) * time.Millisecond) }
	calls := []call{{waitCall, at(0), at(100)}, {"A", at(0), at(20)}, {"B", at(1), at(22)}, {"C", at(25), at(45)}, {"D", at(30), at(51)}, {"E", at(52), at(72)}}
	if n := inARow(calls); n != 3 {
		t.Errorf("%d in a row", n)
	}
	if c := count(calls); c.asked() != 5 || c[waitCall] != 1 {
		t.Errorf("%v", c)
	}
	before, after := until(calls, at(30))
	if len(before) != 4 || len(after) != 2 {
		t.Errorf("%v, %v", before, after)
	}
	if d := own(calls, 20*time.Millisecond); d != 2*time.Millisecond {
		t.Errorf("the simulator's own time: %v", d)
	}
}

func TestMedian(t *testing.T) {
	m := median([]counts{{"A": 1, "B": 2}, {"A": 3, "B": 2}, {"A": 2, "C": 1}})
	if got := m.String(); got != "2 A, 2 B" {
		t.Error(got)
	}
	if got := (counts{waitCall: 3}).String(); got != "none" {
		t.Error(got)
	}
}

// A process may be called as it likes.
func TestUsedOf(t *testing.T) {
	const stat = "7 (a) S (b) S 1 7 7 0 -1 4194560 1 2 3 4 150 50 9 9 20 0 1 0 100 4096 3 0 0"
	u, err := usedOf(stat)
	if err != nil || u.cpu != 2*time.Second || u.rss <= 0 {
		t.Errorf("%+v, %v", u, err)
	}
	if _, err := usedOf("7 (a) S 1"); err == nil {
		t.Error("half a line is taken for one")
	}
}

func TestPage(t *testing.T) {
	o := options{latency: 20 * time.Millisecond, rounds: 1, containers: 1000, volumes: 10000, made: 300}
	r := results{at: map[time.Duration]map[string]result{0: {}, o.latency: {}}}
	begin := time.Unix(0, 0)
	for _, w := range works() {
		r.at[0][w.name] = result{{took: 10 * time.Millisecond}}
		r.at[o.latency][w.name] = result{{took: 50 * time.Millisecond, before: []call{{"CreateVM_Task", begin, begin.Add(20 * time.Millisecond)}, {waitCall, begin, begin}}, after: []call{{"X", begin, begin}}}}
	}
	r.phases = []phase{{name: "docker create", n: 1000, took: 50 * time.Second, calls: counts{"CreateVM_Task": 1000}, rss: 64 << 20, daemonCPU: 5 * time.Second, simCPU: 10 * time.Second}}
	page := r.page(o, time.Date(2026, 1, 2, 0, 0, 0, 0, time.UTC))
	for _, want := range []string{"on 2026-01-02", "| `docker create` | 1 | 1 | 1 | 1 | 50 | 10 | 2.0 |", "| `docker create` | 1 CreateVM_Task; after: 1 X |", "| `docker create` | 8 | 1 |",
		"| docker create | 1000 | 50.0 | 50 | 1000 | 64 | 5.0 | 10.0 |"} {
		if !strings.Contains(page, want) {
			t.Errorf("no %q in\n%s", want, page)
		}
	}
}
