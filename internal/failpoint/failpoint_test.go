package failpoint

import "testing"

func TestParse(t *testing.T) {
	s, err := Parse("commit.define=error,commit.record=exit")
	if err != nil {
		t.Fatal(err)
	}
	if s.Hit("commit.define") == nil {
		t.Error("armed point did not fail")
	}
	if s.Hit("elsewhere") != nil || (Set{}).Hit("commit.define") != nil {
		t.Error("a point that is not armed failed")
	}
	for _, bad := range []string{"x", "=exit", "x=boom"} {
		if _, err := Parse(bad); err == nil {
			t.Errorf("Parse(%q) accepted", bad)
		}
	}
}
