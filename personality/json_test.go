package personality

import (
	"net/http/httptest"
	"net/url"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"vch/internal/fault"
)

func TestDecodeJSON(t *testing.T) {
	const typed = "application/json"
	for _, tt := range []struct {
		body, contentType, refusal string
		optional                   bool
	}{
		{`{"Name":"x"}`, typed, "", false},
		{` {"name":"x","later":1} `, typed + "; charset=utf-8", "", false},
		{``, ``, "invalid JSON: got EOF while reading request body", false},
		{``, typed, "invalid JSON: got EOF while reading request body", false},
		{``, ``, "", true},
		{``, typed, "", true},
		{` `, typed, "", true},
		{`{}`, ``, "malformed Content-Type header ()", true},
		{`{}`, `application/x-tar`, "unsupported Content-Type header (application/x-tar): must be 'application/json'", false},
		{`{bad`, typed, "invalid JSON: invalid character 'b' looking for beginning of object key string", false},
		{`[]`, typed, "invalid JSON: json: cannot unmarshal array", false},
		{`{"Name":5}`, typed, "invalid JSON: json: cannot unmarshal number", false},
		{`{}{}`, typed, "unexpected content after JSON", false},
		{`{"Name":"` + strings.Repeat("x", maxBody) + `"}`, typed, "invalid JSON: http: request body too large", false},
	} {
		r := httptest.NewRequest("POST", "/x", strings.NewReader(tt.body))
		if tt.contentType != "" {
			r.Header.Set("Content-Type", tt.contentType)
		}
		var v struct{ Name string }
		var err error
		if tt.optional {
			_, err = decodeOptionalJSON(r, &v)
		} else {
			err = decodeJSON(r, &v)
		}
		name := tt.body[:min(len(tt.body), 20)]
		switch {
		case tt.refusal == "" && (err != nil || strings.Contains(tt.body, "x") && v.Name != "x"):
			t.Errorf("%q: %+v, %v", name, v, err)
		case tt.refusal != "" && (!fault.Is(err, fault.Invalid) || !strings.Contains(err.Error(), tt.refusal)):
			t.Errorf("%q: %v, want %s", name, err, tt.refusal)
		}
	}
}

func TestBoolValue(t *testing.T) {
	for text, want := range map[string]bool{"": false, "0": false, "no": false, "False": false, "none": false, " none ": false, "1": true, "true": true, "yes": true, "x": true} {
		r := httptest.NewRequest("GET", "/x?"+url.Values{"v": {text}}.Encode(), nil)
		if got := boolValue(r, "v"); got != want {
			t.Errorf("%q: %v", text, got)
		}
	}
}

func TestIntValue(t *testing.T) {
	r := httptest.NewRequest("GET", "/x?t=-5&bad=5s", nil)
	if n, given, err := intValue(r, "t"); n != -5 || !given || err != nil {
		t.Errorf("%d %v %v", n, given, err)
	}
	if n, given, err := intValue(r, "none"); n != 0 || given || err != nil {
		t.Errorf("%d %v %v", n, given, err)
	}
	if _, _, err := intValue(r, "bad"); !fault.Is(err, fault.Invalid) {
		t.Errorf("%v", err)
	}
}

func TestFiltersOf(t *testing.T) {
	for text, want := range map[string]filters{
		``:                                  {},
		`{}`:                                {},
		`{"a":{"c":true,"b":false}}`:        {"a": {"b", "c"}},
		`{"a":["c","b","c"],"label":["x"]}`: {"a": {"b", "c"}, "label": {"x"}},
	} {
		got, err := filtersOf(httptest.NewRequest("GET", "/x?"+url.Values{"filters": {text}}.Encode(), nil))
		if err != nil {
			t.Errorf("%s: %v", text, err)
		}
		if d := cmp.Diff(want, got); d != "" {
			t.Errorf("%s: %s", text, d)
		}
	}
	for _, text := range []string{`{bad`, `[]`, `"x"`, `{"a":"x"}`} {
		_, err := filtersOf(httptest.NewRequest("GET", "/x?"+url.Values{"filters": {text}}.Encode(), nil))
		if !fault.Is(err, fault.Invalid) || err.Error() != "invalid filter" {
			t.Errorf("%s: %v", text, err)
		}
	}
	if err := (filters{"b": nil, "a": nil, "c": nil}).only("c"); err == nil || err.Error() != "invalid filter 'a'" {
		t.Errorf("%v", err)
	}
}

func FuzzFilters(f *testing.F) {
	f.Add(`{"a":{"b":true}}`)
	f.Add(`{"a":["b"]}`)
	f.Fuzz(func(t *testing.T, text string) {
		got, err := filtersOf(httptest.NewRequest("GET", "/x?"+url.Values{"filters": {text}}.Encode(), nil))
		if (got == nil) != (err != nil) {
			t.Errorf("%v, %v", got, err)
		}
	})
}

func TestParseMoment(t *testing.T) {
	now := time.Date(2026, 11, 24, 20, 0, 0, 0, time.UTC)
	for text, want := range map[string]time.Time{
		"24h":                       now.Add(-24 * time.Hour),
		"-1h":                       now.Add(time.Hour),
		"0":                         time.Unix(0, 0),
		"1500000000":                time.Unix(1500000000, 0),
		"1500000000.5":              time.Unix(1500000000, 500000000),
		"1500000000.1234567891":     time.Unix(1500000000, 123456789),
		"2026-01-02":                time.Date(2026, 1, 2, 0, 0, 0, 0, time.UTC),
		"2026-01-02T03:04:05":       time.Date(2026, 1, 2, 3, 4, 5, 0, time.UTC),
		"2026-01-02T03:04:05.5Z":    time.Date(2026, 1, 2, 3, 4, 5, 500000000, time.UTC),
		"2026-01-02T03:04:05+02:00": time.Date(2026, 1, 2, 1, 4, 5, 0, time.UTC),
	} {
		got, err := parseMoment(text, now)
		if err != nil || !got.Equal(want) {
			t.Errorf("%s: %v, %v; want %v", text, got, err, want)
		}
	}
	for _, text := range []string{"", "soon", "1.x", "1.-5", "2026-13-01"} {
		if got, err := parseMoment(text, now); !fault.Is(err, fault.Invalid) {
			t.Errorf("%q: %v, %v", text, got, err)
		}
	}
}
