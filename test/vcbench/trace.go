package main

import (
	"cmp"
	"maps"
	"slices"
	"time"

	"vch/test/measure"
)

// waitCall is the question that is open at all times: not a call that somebody waits for the answer of.
const waitCall = "WaitForUpdatesEx"

// call is one that the simulated vCenter has answered. A request for a file is "GET /folder", and so on.
type call struct {
	Name     string    `json:"name"`
	Arrived  time.Time `json:"arrived"`
	Answered time.Time `json:"answered"`
}

// counts are calls by name.
type counts map[string]int

func count(calls []call) counts {
	c := counts{}
	for _, x := range calls {
		c[x.Name]++
	}
	return c
}

// asked is how many calls there are without the open question.
func (c counts) asked() (n int) {
	for name, k := range c {
		if name != waitCall {
			n += k
		}
	}
	return n
}

// names are sorted: the most frequent first, the open question left out.
func (c counts) names() []string {
	names := slices.DeleteFunc(slices.Collect(maps.Keys(c)), func(n string) bool { return n == waitCall })
	slices.SortFunc(names, func(a, b string) int { return cmp.Or(cmp.Compare(c[b], c[a]), cmp.Compare(a, b)) })
	return names
}

// median is, of each call, the median of how often it was made in several rounds, rounded.
func median(rounds []counts) counts {
	all := map[string]bool{}
	for _, r := range rounds {
		for name := range r {
			all[name] = true
		}
	}
	m := counts{}
	for name := range all {
		var figures []float64
		for _, r := range rounds {
			figures = append(figures, float64(r[name]))
		}
		if n := int(measure.Quantile(figures, 0.5) + 0.5); n > 0 {
			m[name] = n
		}
	}
	return m
}

// inARow is how many calls there are at most of which each begins after the one before was answered: what cannot be less than so many round trips, if all of them wait for each other.
func inARow(calls []call) (n int) {
	sorted := slices.SortedFunc(slices.Values(calls), func(a, b call) int { return a.Answered.Compare(b.Answered) })
	var end time.Time
	for _, c := range sorted {
		if c.Name != waitCall && !c.Arrived.Before(end) {
			n++
			end = c.Answered
		}
	}
	return n
}

// until splits calls in those that began before at and the others.
func until(calls []call, at time.Time) (before, after []call) {
	for _, c := range calls {
		if c.Arrived.Before(at) {
			before = append(before, c)
		} else {
			after = append(after, c)
		}
	}
	return before, after
}

// own is how long the calls took beyond the latency that each was given: the simulator's own work.
func own(calls []call, latency time.Duration) (sum time.Duration) {
	for _, c := range calls {
		if c.Name != waitCall {
			sum += max(0, c.Answered.Sub(c.Arrived)-latency)
		}
	}
	return sum
}
