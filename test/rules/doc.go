// Package rules holds the rules of this repository that a machine can check, as tests: which room may import which, what a package has to
// say about itself, what no code may do, and what the documents promise.
//
// A rule that is said twice in a review becomes a test here. The table of rooms is that of doc/architecture.md; a new room gets its line in
// rooms (imports_test.go). Nothing here looks at behaviour.
package rules
