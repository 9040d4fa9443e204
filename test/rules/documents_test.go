package rules

import (
	"fmt"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
)

// documents gives the repository's Markdown files, by path in it.
func documents(t *testing.T) map[string]string {
	t.Helper()
	texts := map[string]string{}
	err := filepath.WalkDir(root, func(path string, d os.DirEntry, err error) error {
		if err != nil {
			return err
		}
		if name := d.Name(); d.IsDir() && (name == ".git" || name == "testdata" || name == "bin") {
			return filepath.SkipDir
		}
		if d.IsDir() || filepath.Ext(path) != ".md" {
			return nil
		}
		text, err := os.ReadFile(path)
		if err != nil {
			return err
		}
		rel, err := filepath.Rel(root, path)
		texts[rel] = string(text)
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	return texts
}

var (
	makeTarget = regexp.MustCompile(`(?m)^([a-z][a-z-]*):.*## `)
	makeInText = regexp.MustCompile("(?:`|^\\$ |^    |^)make ([a-z][a-z-]*)")
	linkInText = regexp.MustCompile(`\]\(([^)#:]+)(#[^)]*)?\)`)
)

// What the documents tell a reader to make can be made, and the files that they point at are there.
func TestDocumentsAreTrue(t *testing.T) {
	text, err := os.ReadFile(filepath.Join(root, "Makefile"))
	if err != nil {
		t.Fatal(err)
	}
	targets := map[string]bool{}
	for _, m := range makeTarget.FindAllStringSubmatch(string(text), -1) {
		targets[m[1]] = true
	}
	told := map[string]bool{}
	for path, text := range documents(t) {
		for i, line := range strings.Split(text, "\n") {
			for _, m := range makeInText.FindAllStringSubmatch(line, -1) {
				told[m[1]] = true
				if !targets[m[1]] {
					t.Errorf("%s:%d: make %s: the Makefile has no such target", path, i+1, m[1])
				}
			}
			for _, m := range linkInText.FindAllStringSubmatch(line, -1) {
				if _, err := os.Stat(filepath.Join(root, filepath.Dir(path), m[1])); err != nil {
					t.Errorf("%s:%d points at %s, which is not there", path, i+1, m[1])
				}
			}
		}
	}
	for _, want := range []string{"demo", "test", "build"} {
		if !told[want] || !targets[want] {
			t.Errorf("make %s: told %v, there %v", want, told[want], targets[want])
		}
	}
}

// The table of endpoints is there; that it is true is a test of the personality.
func TestEndpointTable(t *testing.T) {
	if !strings.Contains(documents(t)["doc/docker-api.md"], "/containers/create") {
		t.Error("doc/docker-api.md does not name /containers/create")
	}
}

var (
	changeHead = regexp.MustCompile(`^(Bugfix|Change|Enhancement|Security): [A-Z].*[^.]$`)
	changeEnd  = regexp.MustCompile(`^Issue: #[0-9]+$`)
)

// wrongWith says what is wrong with a change's file; "" if nothing.
func wrongWith(text string) string {
	paragraphs := strings.Split(strings.TrimSpace(text), "\n\n")
	switch last := len(paragraphs) - 1; {
	case !strings.HasSuffix(text, "\n") || strings.HasSuffix(text, "\n\n"):
		return "it does not end with one line break"
	case !changeHead.MatchString(paragraphs[0]):
		return "its first line is not \"Enhancement: What is new\" (or Bugfix, Change, Security), without a full stop"
	case last < 2:
		return "it wants three parts with empty lines between: the head, what was and what is, the issue"
	case !changeEnd.MatchString(paragraphs[last]):
		return "its last line is not \"Issue: #N\""
	}
	for _, line := range strings.Split(text, "\n") {
		if len([]rune(line)) > 100 {
			return "a line has more than 100 characters: " + line
		}
	}
	return ""
}

// Every change that a user can see has a file of one form.
func TestChangelog(t *testing.T) {
	n := 0
	for path, text := range documents(t) {
		if filepath.Dir(path) != "changelog/unreleased" {
			continue
		}
		n++
		if why := wrongWith(text); why != "" {
			t.Errorf("%s: %s", path, why)
		}
	}
	if n == 0 {
		t.Error("changelog/unreleased is empty")
	}
	for _, bad := range []string{"", "New: X\n\nIt was.\n\nIssue: #1\n", "Bugfix: X.\n\nIt was.\n\nIssue: #1\n", "Bugfix: X\n\nIssue: #1\n", "Bugfix: X\n\nIt was.\n\n#1\n"} {
		if wrongWith(bad) == "" {
			t.Errorf("%q is let pass", bad)
		}
	}
}

// Every decision has a page of one form, and they are numbered without gaps.
func TestDecisions(t *testing.T) {
	pages, err := filepath.Glob(filepath.Join(root, "doc/adr/*.md"))
	if err != nil || len(pages) == 0 {
		t.Fatalf("%d pages in doc/adr: %v", len(pages), err)
	}
	for i, path := range pages { // sorted by Glob
		if !strings.HasPrefix(filepath.Base(path), fmt.Sprintf("%04d-", i+1)) {
			t.Errorf("%s is not number %d", path, i+1)
		}
		text, err := os.ReadFile(path)
		if err != nil {
			t.Fatal(err)
		}
		for _, part := range []string{"# ", "\n## Context\n", "\n## Choice\n", "\n## Given up\n"} {
			if !strings.Contains(string(text), part) {
				t.Errorf("%s has no part %q", path, strings.TrimSpace(part))
			}
		}
	}
}

// Every module that this one requires by itself has its line among the dependencies, and no other has.
func TestDependencies(t *testing.T) {
	text, err := os.ReadFile(filepath.Join(root, "go.mod"))
	if err != nil {
		t.Fatal(err)
	}
	direct := map[string]bool{}
	for _, m := range regexp.MustCompile(`(?m)^\t(\S+) v\S+$`).FindAllStringSubmatch(string(text), -1) {
		direct[m[1]] = true
	}
	if len(direct) == 0 {
		t.Fatal("go.mod has no requirements")
	}
	table := documents(t)["doc/dependencies.md"]
	listed := map[string]bool{}
	for _, m := range regexp.MustCompile("(?m)^\\| `([^`]+)`").FindAllStringSubmatch(table, -1) {
		listed[m[1]] = true
	}
	for m := range direct {
		if !listed[m] {
			t.Errorf("go.mod requires %s, and doc/dependencies.md does not say what for", m)
		}
	}
	for m := range listed {
		if strings.Contains(m, ".") && strings.Contains(m, "/") && !direct[m] {
			t.Errorf("doc/dependencies.md has %s, which go.mod does not require", m)
		}
	}
}
