package nfs

import (
	"fmt"
	"os"
	"strings"
	"testing"
)

// row is an option as doc/nfs-volumes.md has it.
func row(k KnownOption) string {
	where := "store"
	if k.Volume {
		where = "store, volume"
	}
	return fmt.Sprintf("| `%s` | %s | %s | %s |", k.Name, strings.ReplaceAll(k.Values, "|", `\|`), where, k.Meaning)
}

// doc/nfs-volumes.md has a row for every option, and for nothing else.
func TestOptionsAreDocumented(t *testing.T) {
	text, err := os.ReadFile("../../../doc/nfs-volumes.md")
	if err != nil {
		t.Fatal(err)
	}
	have := map[string]bool{}
	_, table, _ := strings.Cut(string(text), "\n| option | values | of | |\n|---|---|---|---|\n")
	table, _, _ = strings.Cut(table, "\n\n")
	for _, line := range strings.Split(table, "\n") {
		have[line] = true
	}
	for _, k := range Known() {
		if !have[row(k)] {
			t.Errorf("no row: %s", row(k))
		}
		delete(have, row(k))
	}
	for line := range have {
		t.Errorf("a row of nothing: %s", line)
	}
}
