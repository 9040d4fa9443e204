// Command testreport reads the events of go test -json, shows what failed with its output, and counts.
//
// It ends with a line "N passed, N failed, N skipped" and fails where a test failed, where a package did not build, where nothing ran, or, unless
// -skips is given, where a test was skipped: in this project a test that was not run is a test that failed.
// A test that has subtests is a heading: its subtests are counted, and it only if it fails without one of them failing.
package main

import (
	"bufio"
	"encoding/json"
	"flag"
	"fmt"
	"io"
	"os"
	"sort"
	"strings"
	"time"
)

// event is one line of go test -json (go doc test2json), with what go build -json adds.
type event struct {
	Action     string
	Package    string
	ImportPath string // of build-output and build-fail
	Test       string
	Output     string
	Elapsed    float64 // seconds
}

// key names a test, or with an empty test the package.
type key struct{ pkg, test string }

// report is what the events amount to.
type report struct {
	outcome map[key]string // pass, fail, skip
	output  map[key][]string
	took    map[key]float64
	build   []string // output of builds that failed
	parent  map[key]bool
}

func main() {
	skips := flag.Bool("skips", false, "skipped tests are no failure")
	flag.Parse()
	r, err := read(os.Stdin, os.Stdout)
	if err != nil {
		fmt.Fprintf(os.Stderr, "testreport: %v\n", err)
		os.Exit(1)
	}
	if !r.print(os.Stdout, *skips) {
		os.Exit(1)
	}
}

// read takes all events in, and tells of each package as it ends.
func read(in io.Reader, progress io.Writer) (*report, error) {
	r := &report{outcome: map[key]string{}, output: map[key][]string{}, took: map[key]float64{}, parent: map[key]bool{}}
	lines := bufio.NewScanner(in)
	lines.Buffer(nil, 16<<20)
	for lines.Scan() {
		var e event
		if err := json.Unmarshal(lines.Bytes(), &e); err != nil {
			r.build = append(r.build, lines.Text()+"\n") // go itself speaks outside JSON when it cannot even begin
			continue
		}
		k := key{e.Package, e.Test}
		switch e.Action {
		case "start":
			r.outcome[k] = "fail" // until it is told otherwise: a package that never ends did not pass
		case "output":
			r.output[k] = append(r.output[k], e.Output)
		case "build-output":
			r.build = append(r.build, e.Output)
		case "run":
			if i := strings.LastIndex(e.Test, "/"); i >= 0 {
				r.parent[key{e.Package, e.Test[:i]}] = true
			}
		case "pass", "fail", "skip":
			r.outcome[k], r.took[k] = e.Action, e.Elapsed
			if e.Test == "" && e.Action != "skip" {
				fmt.Fprintf(progress, "%-5s %-45s %s\n", e.Action, e.Package, time.Duration(e.Elapsed*float64(time.Second)).Round(10*time.Millisecond))
			}
		}
	}
	return r, lines.Err()
}

// print shows failures and skips and the count, and says whether all is well.
func (r *report) print(w io.Writer, skipsAllowed bool) bool {
	count := map[string]int{}
	failedBelow := map[key]bool{} // something in it failed and was told
	keys := make([]key, 0, len(r.outcome))
	for k := range r.outcome {
		keys = append(keys, k)
	}
	// Deepest first, so that a heading knows of its subtests.
	sort.Slice(keys, func(i, j int) bool {
		if di, dj := depth(keys[i]), depth(keys[j]); di != dj {
			return di > dj
		}
		if keys[i].pkg != keys[j].pkg {
			return keys[i].pkg < keys[j].pkg
		}
		return keys[i].test < keys[j].test
	})
	for _, k := range keys {
		outcome := r.outcome[k]
		heading := k.test == "" || r.parent[k]
		if outcome == "fail" {
			if !heading || !failedBelow[k] {
				fmt.Fprintf(w, "\n--- FAIL %s %s (%.1fs)\n%s", k.pkg, k.test, r.took[k], strings.Join(r.output[k], ""))
				count["fail"]++
			}
			for up, ok := above(k); ok; up, ok = above(up) {
				failedBelow[up] = true
			}
			continue
		}
		if heading && !(outcome == "skip" && k.test != "") {
			continue
		}
		count[outcome]++
		if outcome == "skip" && !skipsAllowed {
			fmt.Fprintf(w, "\n--- SKIP %s %s\n%s", k.pkg, k.test, strings.Join(r.output[k], ""))
		}
	}
	if len(r.build) > 0 && count["fail"] > 0 {
		fmt.Fprintf(w, "\n%s", strings.Join(r.build, ""))
	}
	fmt.Fprintf(w, "\n%d passed, %d failed, %d skipped\n", count["pass"], count["fail"], count["skip"])
	switch {
	case count["fail"] > 0:
		return false
	case count["pass"] == 0:
		fmt.Fprintf(w, "no test ran\n%s", strings.Join(r.build, ""))
		return false
	case count["skip"] > 0 && !skipsAllowed:
		fmt.Fprintln(w, "a skipped test counts as a failure here")
		return false
	}
	return true
}

func depth(k key) int {
	if k.test == "" {
		return 0
	}
	return 1 + strings.Count(k.test, "/")
}

// above is the heading that k stands under: a test, or its package.
func above(k key) (key, bool) {
	if k.test == "" {
		return key{}, false
	}
	i := strings.LastIndex(k.test, "/")
	if i < 0 {
		return key{k.pkg, ""}, true
	}
	return key{k.pkg, k.test[:i]}, true
}
