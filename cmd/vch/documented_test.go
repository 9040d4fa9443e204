package main

import (
	"os"
	"regexp"
	"strings"
	"testing"

	"github.com/spf13/pflag"
)

// doc/configuration.md has a row for every flag with its default, and for nothing else; its example is a configuration file.
func TestConfigurationIsDocumented(t *testing.T) {
	data, err := os.ReadFile("../../doc/configuration.md")
	if err != nil {
		t.Fatal(err)
	}
	var w words
	f := pflag.NewFlagSet("vch", pflag.ContinueOnError)
	w.flags(f)
	rows := map[string]string{}
	for _, m := range regexp.MustCompile("(?m)^\\| `--([a-z-]+)` \\| (.*)$").FindAllStringSubmatch(string(data), -1) {
		rows[m[1]] = m[2]
		if f.Lookup(m[1]) == nil {
			t.Errorf("there is no flag --%s", m[1])
		}
	}
	f.VisitAll(func(flag *pflag.Flag) {
		row, ok := rows[flag.Name]
		if !ok {
			t.Errorf("--%s has no row", flag.Name)
		} else if d := flag.DefValue; d != "" && d != "[]" && !strings.HasPrefix(row, "`"+d+"` |") {
			t.Errorf("--%s: the default is %s, the row says %s", flag.Name, d, row)
		}
	})
	example := regexp.MustCompile("(?s)```toml\n(.*?)```").FindSubmatch(data)
	if example == nil {
		t.Fatal("no example")
	}
	if _, err := parse(asRoot, string(example[1])); err != nil {
		t.Errorf("the example: %v", err)
	}
}
