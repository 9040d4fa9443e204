package personality

import (
	"bytes"
	"fmt"
	"go/ast"
	"go/parser"
	"go/token"
	"net/http/httptest"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
)

const endpointDocument = "../doc/docker-api.md"

// TestEndpointTable proves that doc/docker-api.md is the route table, and that every test that it names exists.
func TestEndpointTable(t *testing.T) {
	functions := testFunctions(t)
	for _, rt := range routes() {
		isSwarm := rt.handler != nil && rt.test == ""
		if isSwarm && !strings.HasPrefix(answerOf(rt), "503 ") {
			t.Errorf("%s %s has a handler and no test", rt.method, rt.path)
		}
		if rt.handler == nil && rt.test != "" {
			t.Errorf("%s %s has a test and no handler", rt.method, rt.path)
		}
		for _, name := range strings.Fields(rt.test) {
			if strings.HasSuffix(name, ".txtar") {
				if _, err := os.Stat(filepath.Join("..", "test", "e2e", "testdata", name)); err != nil {
					t.Errorf("%s %s: %v", rt.method, rt.path, err)
				}
			} else if !functions[name] {
				t.Errorf("%s %s: there is no test %s", rt.method, rt.path, name)
			}
		}
	}
	want := endpointTable()
	if *update {
		if err := os.WriteFile(endpointDocument, want, 0o644); err != nil {
			t.Fatal(err)
		}
	}
	have, err := os.ReadFile(endpointDocument)
	if err != nil {
		t.Fatal(err)
	}
	if !bytes.Equal(have, want) {
		t.Errorf("%s is not the route table any more: run go test ./personality -run TestEndpointTable -update", endpointDocument)
	}
}

// answerOf is what the handler of a row without a test answers.
func answerOf(rt route) string {
	err := rt.handler(&Server{}, nil, httptest.NewRequest(rt.method, "/x", nil))
	if err == nil {
		return "200"
	}
	return fmt.Sprintf("%d %v", statusOf(err), err)
}

// testFunctions is the tests of this package.
func testFunctions(t *testing.T) map[string]bool {
	t.Helper()
	names, err := filepath.Glob("*_test.go")
	if err != nil {
		t.Fatal(err)
	}
	found := map[string]bool{}
	for _, name := range names {
		file, err := parser.ParseFile(token.NewFileSet(), name, nil, parser.SkipObjectResolution)
		if err != nil {
			t.Fatal(err)
		}
		for _, d := range file.Decls {
			if f, ok := d.(*ast.FuncDecl); ok && f.Recv == nil && strings.HasPrefix(f.Name.Name, "Test") {
				found[f.Name.Name] = true
			}
		}
	}
	return found
}

// endpointTable writes the document.
func endpointTable() []byte {
	var b bytes.Buffer
	all, supported := 0, 0
	for _, rt := range routes() {
		if sectionOf(rt.path) == ownSection {
			continue
		}
		all++
		if rt.test != "" {
			supported++
		}
	}
	fmt.Fprintf(&b, `# The Docker Engine API in vch

vch speaks the Engine API, versions %s to %s, with or without the version in the path (`+"`/v1.41/info`, `/info`"+`). These are all
endpoints of the API: %d, of which %d are supported. The test beside an endpoint is what proves it: a Go test of package
personality, or a script of test/e2e/testdata that drives the stock docker CLI against real machines. An unsupported one
answers 501 with its name, or, where it needs a swarm, 503 as an engine outside a swarm does. An option of a supported endpoint that vch
cannot honour is refused by name with 400; none is ignored. What stands below /vch/ is no endpoint of Docker's: the command vch volume uses it.

Written by `+"`go test ./personality -run TestEndpointTable -update`"+` from personality/routes.go; the same test fails when the two differ.
`, minVersion, maxVersion, all, supported)
	section := ""
	for _, rt := range routes() {
		if s := sectionOf(rt.path); s != section {
			section = s
			fmt.Fprintf(&b, "\n## %s\n\n| endpoint | proved by |\n|---|---|\n", section)
		}
		proof := "*unsupported*"
		if rt.test != "" {
			proof = "`" + strings.Join(strings.Fields(rt.test), "`, `") + "`"
		}
		fmt.Fprintf(&b, "| `%s %s` | %s |\n", rt.method, rt.path, proof)
	}
	return b.Bytes()
}

const ownSection = "Beside Docker's"

// sectionOf is the heading that a path stands under.
func sectionOf(path string) string {
	switch first := strings.Split(path, "/")[1]; first {
	case "containers", "exec", "volumes", "networks", "plugins":
		return strings.ToUpper(first[:1]) + first[1:]
	case "vch":
		return ownSection
	case "images", "distribution", "commit", "build":
		return "Images and builds"
	case "swarm", "nodes", "services", "tasks", "secrets", "configs":
		return "Swarm"
	default:
		return "System"
	}
}

// TestEveryEndpointIsListed compares the route table with the API's own description, of the version that go.mod names.
func TestEveryEndpointIsListed(t *testing.T) {
	dir, err := exec.CommandContext(t.Context(), "go", "list", "-m", "-f", "{{.Dir}}", "github.com/moby/moby/api").Output()
	if err != nil {
		t.Fatal(err)
	}
	text, err := os.ReadFile(filepath.Join(strings.TrimSpace(string(dir)), "swagger.yaml"))
	if err != nil {
		t.Fatal(err)
	}
	variable := regexp.MustCompile(`\{[^}]*\}`)
	listed := map[string]bool{}
	for _, rt := range routes() {
		listed[rt.method+" "+variable.ReplaceAllString(rt.path, "{}")] = true
	}
	pathLine := regexp.MustCompile(`^  (/[^:]*):`)
	verbLine := regexp.MustCompile(`^    (get|head|post|put|delete):`)
	path, count := "", 0
	for _, line := range strings.Split(string(text), "\n") {
		if m := pathLine.FindStringSubmatch(line); m != nil {
			path = variable.ReplaceAllString(m[1], "{}")
		}
		if m := verbLine.FindStringSubmatch(line); m != nil && path != "" {
			count++
			if row := strings.ToUpper(m[1]) + " " + path; !listed[row] {
				t.Errorf("%s is not in routes.go", row)
			}
		}
	}
	if count < 100 {
		t.Errorf("only %d endpoints found in swagger.yaml", count)
	}
}
