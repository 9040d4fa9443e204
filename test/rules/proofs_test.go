package rules

import (
	"go/ast"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
)

var (
	scriptInText = regexp.MustCompile("`([a-z0-9_]+\\.txtar)`")
	testInText   = regexp.MustCompile("`([a-z]+)\\.((?:Test|Fuzz)[A-Za-z0-9]+)`")
)

// Every test that a document names as a proof is there.
func TestProofsExist(t *testing.T) {
	functions := map[string]bool{}
	for _, f := range parsed(t) {
		for _, d := range f.ast.Decls {
			if fn, ok := d.(*ast.FuncDecl); ok && f.test && fn.Recv == nil {
				functions[strings.TrimSuffix(f.ast.Name.Name, "_test")+"."+fn.Name.Name] = true
			}
		}
	}
	named := 0
	for path, text := range documents(t) {
		if !strings.HasPrefix(path, "doc/") {
			continue
		}
		for _, m := range scriptInText.FindAllStringSubmatch(text, -1) {
			named++
			if _, err := os.Stat(filepath.Join(root, "test", "e2e", "testdata", m[1])); err != nil {
				t.Errorf("%s names the script %s: %v", path, m[1], err)
			}
		}
		for _, m := range testInText.FindAllStringSubmatch(text, -1) {
			named++
			if !functions[m[1]+"."+m[2]] {
				t.Errorf("%s names the test %s.%s, which is not there", path, m[1], m[2])
			}
		}
	}
	if named == 0 {
		t.Error("no document names a test")
	}
}
