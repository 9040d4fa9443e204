package main

import (
	"io"
	"strings"
	"testing"
)

func TestReport(t *testing.T) {
	const ok = `{"Action":"run","Package":"p","Test":"A"}
{"Action":"pass","Package":"p","Test":"A","Elapsed":1}
{"Action":"pass","Package":"p","Elapsed":1}
`
	for _, tc := range []struct {
		name, in    string
		skips, good bool
		last        string // a line of the answer
	}{
		{"all passed", ok, false, true, "1 passed, 0 failed, 0 skipped"},
		{"nothing ran", `{"Action":"skip","Package":"p"}`, false, false, "no test ran"},
		{"no output at all", "", false, false, "no test ran"},
		{"a skip fails", ok + `{"Action":"skip","Package":"p","Test":"B"}`, false, false, "1 passed, 0 failed, 1 skipped"},
		{"a skip may be allowed", ok + `{"Action":"skip","Package":"p","Test":"B"}`, true, true, "1 passed, 0 failed, 1 skipped"},
		{"a skipped heading is a skip", ok + `{"Action":"run","Package":"p","Test":"B/c"}` + "\n" + `{"Action":"skip","Package":"p","Test":"B"}`, false, false, "1 passed, 0 failed, 1 skipped"},
		{"a failed subtest counts once", ok + `{"Action":"run","Package":"p","Test":"B/c"}
{"Action":"output","Package":"p","Test":"B/c","Output":"boom\n"}
{"Action":"fail","Package":"p","Test":"B/c"}
{"Action":"fail","Package":"p","Test":"B"}
{"Action":"fail","Package":"p"}`, false, false, "boom"},
		{"the count of the same", ok + `{"Action":"run","Package":"p","Test":"B/c"}
{"Action":"fail","Package":"p","Test":"B/c"}
{"Action":"fail","Package":"p","Test":"B"}
{"Action":"fail","Package":"p"}`, false, false, "1 passed, 1 failed, 0 skipped"},
		{"a package that does not build", `{"ImportPath":"p","Action":"build-output","Output":"p.go:1: syntax error\n"}
{"ImportPath":"p","Action":"build-fail"}
{"Action":"fail","Package":"p","Elapsed":0}`, false, false, "p.go:1: syntax error"},
		{"a package that dies", ok + `{"Action":"output","Package":"q","Output":"panic: x\n"}
{"Action":"fail","Package":"q"}`, false, false, "panic: x"},
		{"a package that never ends", ok + `{"Action":"start","Package":"q"}`, false, false, "1 passed, 1 failed, 0 skipped"},
		{"go itself complains", "go: no such tool\n", false, false, "go: no such tool"},
	} {
		t.Run(tc.name, func(t *testing.T) {
			r, err := read(strings.NewReader(tc.in), io.Discard)
			if err != nil {
				t.Fatal(err)
			}
			var out strings.Builder
			if good := r.print(&out, tc.skips); good != tc.good {
				t.Errorf("good = %v\n%s", good, out.String())
			}
			if !strings.Contains("\n"+out.String(), "\n"+tc.last+"\n") {
				t.Errorf("no line %q in\n%s", tc.last, out.String())
			}
		})
	}
}
