package personality

import (
	"encoding/json"
	"net/http"
	"slices"
	"sort"
	"strconv"
	"strings"
	"time"

	"vch/internal/fault"
)

// filters are what a list or prune request narrows itself to: values by key, sorted. Values of one key are alternatives, unless its user says otherwise.
type filters map[string][]string

// filtersOf reads the filters of a query, in both of Docker's forms: {"key":{"value":true}} and, before 1.22, {"key":["value"]}. A
// value that says false counts too, as in Moby.
func filtersOf(r *http.Request) (filters, error) {
	text := r.URL.Query().Get("filters")
	f := filters{}
	if text == "" {
		return f, nil
	}
	var sets map[string]map[string]bool
	if err := json.Unmarshal([]byte(text), &sets); err == nil {
		for key, set := range sets {
			values := []string{}
			for v := range set {
				values = append(values, v)
			}
			sort.Strings(values)
			f[key] = values
		}
		return f, nil
	}
	var lists map[string][]string
	if err := json.Unmarshal([]byte(text), &lists); err != nil {
		return nil, fault.New(fault.Invalid, "invalid filter")
	}
	for key, values := range lists {
		values = slices.Clone(values)
		sort.Strings(values)
		f[key] = slices.Compact(values)
	}
	return f, nil
}

// only refuses every key but those given, by name.
func (f filters) only(keys ...string) error {
	var wrong []string
	for key := range f {
		if !slices.Contains(keys, key) {
			wrong = append(wrong, key)
		}
	}
	if len(wrong) == 0 {
		return nil
	}
	sort.Strings(wrong)
	return fault.New(fault.Invalid, "invalid filter '%s'", wrong[0])
}

// boolean is the value of a filter that is true or false: "true", "1", "false", "0"; otherwise where it is not given.
func (f filters) boolean(key string, otherwise bool) (bool, error) {
	values := f[key]
	if len(values) == 0 {
		return otherwise, nil
	}
	isTrue := slices.Contains(values, "1") || slices.Contains(values, "true")
	isFalse := slices.Contains(values, "0") || slices.Contains(values, "false")
	if isTrue == isFalse {
		return false, fault.New(fault.Invalid, "invalid filter '%s=[%s]'", key, strings.Join(values, " "))
	}
	return isTrue, nil
}

// labels reports whether have passes the filters "label" and "label!": k or k=v, all of the first and none of the second.
func (f filters) labels(have map[string]string) bool {
	for _, want := range f["label"] {
		if !hasLabel(have, want) {
			return false
		}
	}
	for _, unwanted := range f["label!"] {
		if hasLabel(have, unwanted) {
			return false
		}
	}
	return true
}

func hasLabel(have map[string]string, want string) bool {
	key, value, exact := strings.Cut(want, "=")
	got, ok := have[key]
	return ok && (!exact || got == value)
}

// single is the one value of a filter that takes one; "" where it is not given.
func (f filters) single(key string) (string, error) {
	switch values := f[key]; len(values) {
	case 0:
		return "", nil
	case 1:
		return values[0], nil
	default:
		return "", fault.New(fault.Invalid, "invalid filter '%s=[%s]': only one value is expected", key, strings.Join(values, " "))
	}
}

// pruneAll is the filter "all" of a prune, as Moby reads it: one boolean.
func (f filters) pruneAll() (all, given bool, err error) {
	text, err := f.single("all")
	if err != nil || text == "" {
		return false, false, err
	}
	all, err = strconv.ParseBool(text)
	if err != nil {
		return false, true, fault.New(fault.Invalid, "invalid filter 'all': %w", err)
	}
	return all, true, nil
}

// until is the filter "until" of a prune: the time before which a thing must have been made; zero where it is not given.
func (f filters) until(now time.Time) (time.Time, error) {
	text, err := f.single("until")
	if err != nil || text == "" {
		return time.Time{}, err
	}
	return parseMoment(text, now)
}
