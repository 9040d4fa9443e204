package rules

import (
	"bytes"
	"fmt"
	"go/ast"
	"go/format"
	"go/parser"
	"go/token"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
)

// file is one parsed Go file.
type file struct {
	room string // of its package
	path string // in the repository
	test bool
	ast  *ast.File
	set  *token.FileSet
}

func (f file) at(n ast.Node) string {
	return fmt.Sprintf("%s:%d", f.path, f.set.Position(n.Pos()).Line)
}

func parsed(t *testing.T) (files []file) {
	t.Helper()
	here, err := filepath.Abs(root)
	if err != nil {
		t.Fatal(err)
	}
	for _, p := range packages(t) {
		for _, path := range goFiles(p) {
			set := token.NewFileSet()
			tree, err := parser.ParseFile(set, path, nil, parser.ParseComments)
			if err != nil {
				t.Fatal(err)
			}
			rel, err := filepath.Rel(here, path)
			if err != nil {
				t.Fatal(err)
			}
			files = append(files, file{p.room(), rel, strings.HasSuffix(path, "_test.go"), tree, set})
		}
	}
	return files
}

// Every package says in 3 to 15 lines what it is, what it promises, what it does not do.
func TestPackageComments(t *testing.T) {
	comments := map[string][]string{}
	for _, f := range parsed(t) {
		if _, ok := comments[f.room]; !ok {
			comments[f.room] = nil
		}
		if f.ast.Doc != nil {
			comments[f.room] = append(comments[f.room], f.ast.Doc.Text())
		}
	}
	for room, texts := range comments {
		if room == pinned {
			continue
		}
		if len(texts) != 1 {
			t.Errorf("package %s has %d package comments, not one", room, len(texts))
			continue
		}
		lines := strings.Count(strings.TrimSpace(texts[0]), "\n") + 1
		if lines < 3 || lines > 15 {
			t.Errorf("package %s: its comment has %d lines, not 3 to 15", room, lines)
		}
		if base := filepath.Base(room); !strings.HasPrefix(texts[0], "Package "+base+" ") && !strings.HasPrefix(texts[0], "Command "+base+" ") {
			t.Errorf("package %s: its comment begins %q", room, strings.SplitN(texts[0], "\n", 2)[0])
		}
	}
}

var vagueName = regexp.MustCompile(`(?i)(^|_|-)(utils?|common|helpers?|managers?|types|misc|shared|base|lib)$`)

// No room is called by a name that says nothing.
func TestNames(t *testing.T) {
	for _, p := range packages(t) {
		for _, part := range strings.Split(p.room(), "/") {
			if vagueName.MatchString(part) {
				t.Errorf("%s: %q says nothing about what is in it", p.room(), part)
			}
		}
	}
	for _, f := range parsed(t) {
		name := strings.TrimSuffix(strings.TrimSuffix(filepath.Base(f.path), ".go"), "_test")
		if vagueName.MatchString(name) {
			t.Errorf("%s: %q says nothing about what is in it", f.path, name)
		}
	}
}

// renames are the files that rename, and why that is not a durable file's way to its name.
var renames = map[string]string{
	"hypervisor/qemu/process.go":        "the directory of a fork that was kept ready becomes its machine's, while it is in it",
	"internal/atomicfile/atomicfile.go": "the one place",
	"internal/atomicfile/dir.go":        "the one place for a directory with its files",
	"hypervisor/qemu/disks.go":          "moves and removes whole disks and directories; small files go through atomicfile",
	"hypervisor/vsphere/vcsim/files.go": "moves files and directories of a test's datastores, as a vCenter does",
	"hypervisor/fake/disks.go":          "as qemu's",
	"hypervisor/fake/disks_change.go":   "as qemu's",
	"portlayer/exec/logs.go":            "rotates a log",
	"tether/copy.go":                    "in the guest: content of a volume, synced as a whole before the container runs",
	"tether/copy_concurrent.go":         "in the guest: content of a volume that others may have, whole and synced before it is renamed into its place",
	"portlayer/image/blobs.go":          "moves a blob that was verified and synced into its place",
	"portlayer/image/store.go":          "moves a blob that was verified and synced into its place",
}

// forbidden are calls that production code does not make, and what to do instead.
var forbidden = []struct {
	call    string // package.Function, by the package's last element
	allowed []string
	instead string
}{
	{"os.Exit", []string{"cmd/", "internal/failpoint/", "scripts/", "test/"}, "libraries never exit; return an error"},
	{"log.Fatal", nil, "return an error"},
	{"slog.Default", nil, "loggers are passed in"},
	{"slog.SetDefault", nil, "loggers are passed in"},
	{"slog.Info", nil, "loggers are passed in"},
	{"slog.Warn", nil, "loggers are passed in"},
	{"slog.Error", nil, "loggers are passed in"},
	{"slog.Debug", nil, "loggers are passed in"},
	{"ioutil.ReadAll", nil, "io.ReadAll"},
	{"context.TODO", nil, "pass the context on"},
}

// No init, no exits from libraries, no loggers from nowhere, and one place that renames.
func TestCalls(t *testing.T) {
	used := map[string]bool{}
	for _, f := range parsed(t) {
		if f.test {
			continue
		}
		ast.Inspect(f.ast, func(n ast.Node) bool {
			switch n := n.(type) {
			case *ast.FuncDecl:
				if n.Name.Name == "init" && n.Recv == nil {
					t.Errorf("%s: init runs before anybody asked; construct in cmd and pass values", f.at(n))
				}
			case *ast.SelectorExpr:
				x, ok := n.X.(*ast.Ident)
				if !ok {
					return true
				}
				call := x.Name + "." + n.Sel.Name
				if call == "os.Rename" || strings.HasPrefix(call, "unix.Rename") || strings.HasPrefix(call, "syscall.Rename") {
					used[f.path] = true
					if renames[f.path] == "" {
						t.Errorf("%s renames: a durable file is written by internal/atomicfile; another reason has to stand in test/rules", f.at(n))
					}
				}
				for _, rule := range forbidden {
					if call == rule.call && !anyPrefix(rule.allowed, f.path) {
						t.Errorf("%s calls %s: %s", f.at(n), call, rule.instead)
					}
				}
			}
			return true
		})
	}
	if !used["internal/atomicfile/atomicfile.go"] {
		t.Error("internal/atomicfile does not rename: this test looks for the wrong thing")
	}
}

func anyPrefix(prefixes []string, path string) bool {
	for _, p := range prefixes {
		if strings.HasPrefix(path, p) {
			return true
		}
	}
	return false
}

// A package variable is set once, where it is declared.
func TestPackageVariables(t *testing.T) {
	vars := map[string]map[string]bool{} // room -> names
	files := parsed(t)
	for _, f := range files {
		if f.test {
			continue
		}
		for _, d := range f.ast.Decls {
			gen, ok := d.(*ast.GenDecl)
			if !ok || gen.Tok != token.VAR {
				continue
			}
			for _, s := range gen.Specs {
				for _, name := range s.(*ast.ValueSpec).Names {
					if vars[f.room] == nil {
						vars[f.room] = map[string]bool{}
					}
					vars[f.room][name.Name] = name.Name != "_"
				}
			}
		}
	}
	for _, f := range files {
		if f.test {
			continue
		}
		for _, d := range f.ast.Decls {
			fn, ok := d.(*ast.FuncDecl)
			if !ok || fn.Body == nil {
				continue
			}
			local := localNames(fn)
			ast.Inspect(fn.Body, func(n ast.Node) bool {
				var targets []ast.Expr
				switch n := n.(type) {
				case *ast.AssignStmt:
					if n.Tok != token.DEFINE {
						targets = n.Lhs
					}
				case *ast.IncDecStmt:
					targets = []ast.Expr{n.X}
				}
				for _, x := range targets {
					if id := rootOf(x); id != nil && vars[f.room][id.Name] && !local[id.Name] {
						t.Errorf("%s changes package variable %s: construct in cmd and pass values", f.at(n), id.Name)
					}
				}
				return true
			})
		}
	}
}

// rootOf is the identifier that an assignment to x changes; nil for one behind a call or a pointer.
func rootOf(x ast.Expr) *ast.Ident {
	for {
		switch e := x.(type) {
		case *ast.Ident:
			return e
		case *ast.SelectorExpr:
			x = e.X
		case *ast.IndexExpr:
			x = e.X
		case *ast.ParenExpr:
			x = e.X
		default:
			return nil
		}
	}
}

// localNames are the names that fn declares anywhere in it.
func localNames(fn *ast.FuncDecl) map[string]bool {
	names := map[string]bool{}
	ast.Inspect(fn, func(n ast.Node) bool {
		switch n := n.(type) {
		case *ast.AssignStmt:
			if n.Tok == token.DEFINE {
				for _, x := range n.Lhs {
					if id, ok := x.(*ast.Ident); ok {
						names[id.Name] = true
					}
				}
			}
		case *ast.ValueSpec:
			for _, id := range n.Names {
				names[id.Name] = true
			}
		case *ast.Field:
			for _, id := range n.Names {
				names[id.Name] = true
			}
		case *ast.RangeStmt:
			for _, x := range []ast.Expr{n.Key, n.Value} {
				if id, ok := x.(*ast.Ident); ok && n.Tok == token.DEFINE {
					names[id.Name] = true
				}
			}
		}
		return true
	})
	return names
}

// The marks of work that was put off, written so that this file does not carry them.
var putOff = regexp.MustCompile(`\b(TO` + `DO|FIX` + `ME|X` + `XX|HA` + `CK)\b`)

// Nothing is put off in a comment: what is missing is refused by name, and stands in an issue.
func TestNothingIsPutOff(t *testing.T) {
	for _, f := range parsed(t) {
		for _, group := range f.ast.Comments {
			for _, c := range group.List {
				if m := putOff.FindString(c.Text); m != "" {
					t.Errorf("%s: %s in a comment", f.at(c), m)
				}
			}
		}
	}
}

// Every Go file is formatted.
func TestFormatted(t *testing.T) {
	for _, f := range parsed(t) {
		text, err := os.ReadFile(filepath.Join(root, f.path))
		if err != nil {
			t.Fatal(err)
		}
		want, err := format.Source(text)
		if err != nil {
			t.Fatal(err)
		}
		if !bytes.Equal(text, want) {
			t.Errorf("%s is not formatted: gofmt -w %s", f.path, f.path)
		}
	}
}

// What git ignores is not needed to build: a fresh clone has every source file, every script and every test's data.
func TestNothingNeededIsIgnored(t *testing.T) {
	cmd := exec.Command("git", "ls-files", "--others", "--ignored", "--exclude-standard", "--", "*.go", "*.sh", "*.md", "*.txtar", "*/testdata/*", "scripts/*", "go.mod", "go.sum")
	cmd.Dir = root
	out, err := cmd.CombinedOutput()
	if err != nil {
		t.Fatalf("git ls-files: %v\n%s", err, out)
	}
	for _, path := range strings.Fields(string(out)) {
		t.Errorf("%s is there and git ignores it: a fresh clone would lack it (.gitignore)", path)
	}
}
