package machine

import (
	"fmt"
	"maps"
	"slices"
	"strings"

	"vch/internal/fault"
)

// Settings are a daemon's settings as they are written: name -> values, one for a setting that is no list. What is not in it has its default.
type Settings map[string][]string

// StoresSetting is the setting that has the volume stores, each WHERE:NAME.
const StoresSetting = "volume-store"

// Clone is a copy.
func (s Settings) Clone() Settings {
	c := make(Settings, len(s))
	for key, values := range s {
		c[key] = slices.Clone(values)
	}
	return c
}

// Names are the settings' names, sorted.
func (s Settings) Names() []string { return slices.Sorted(maps.Keys(s)) }

// Equal says whether two say the same.
func (s Settings) Equal(other Settings) bool {
	return maps.EqualFunc(s, other, func(a, b []string) bool { return slices.Equal(a, b) })
}

// Change is one setting that is to be another.
type Change struct {
	Setting string   `json:"setting"`
	Was     []string `json:"was"` // nil: the default
	Is      []string `json:"is"`  // nil: the default
	Restart bool     `json:"restart"`
}

// String is the change as a sentence.
func (c Change) String() string {
	was, is := strings.Join(c.Was, ", "), strings.Join(c.Is, ", ")
	switch {
	case c.Setting == StoresSetting:
		var parts []string
		for _, text := range c.Is {
			if !slices.Contains(c.Was, text) {
				parts = append(parts, "+ "+text)
			}
		}
		for _, text := range c.Was {
			if !slices.Contains(c.Is, text) {
				parts = append(parts, "- "+text)
			}
		}
		return c.Setting + ": " + strings.Join(parts, ", ")
	case c.Was == nil:
		return fmt.Sprintf("%s: %s (was the default)", c.Setting, is)
	case c.Is == nil:
		return fmt.Sprintf("%s: the default (was %s)", c.Setting, was)
	}
	return fmt.Sprintf("%s: %s (was %s)", c.Setting, is, was)
}

// Diff says what differs, by name. A daemon reads its settings once, at its start: every change needs a restart of one that runs.
func Diff(was, is Settings) (changes []Change) {
	all := maps.Clone(was)
	if all == nil {
		all = Settings{}
	}
	maps.Copy(all, is)
	for _, key := range all.Names() {
		if !slices.Equal(was[key], is[key]) {
			changes = append(changes, Change{Setting: key, Was: was[key], Is: is[key], Restart: true})
		}
	}
	return changes
}

// StoreName is the name of a store WHERE:NAME: a place may hold colons.
func StoreName(text string) string { return text[strings.LastIndexByte(text, ':')+1:] }

// StoreChange is what is to become of the volume stores. A store that it does not name stays as it is.
type StoreChange struct {
	Add    []string // WHERE:NAME, of names that are new
	Set    []string // WHERE:NAME or NAME=WHERE, of names that there are
	Remove []string // NAME
}

// Stores gives the stores after a change, in the order in which they were, new ones last.
func (c StoreChange) Stores(stores []string) ([]string, error) {
	after := slices.Clone(stores)
	find := func(name string) int {
		return slices.IndexFunc(after, func(text string) bool { return StoreName(text) == name })
	}
	named := func() string {
		var names []string
		for _, text := range stores {
			names = append(names, StoreName(text))
		}
		if names == nil {
			return "there are none"
		}
		return "there are " + strings.Join(names, ", ")
	}
	for _, name := range c.Remove {
		i := find(name)
		if i < 0 {
			return nil, fault.New(fault.NotFound, "there is no volume store %s to remove; %s", name, named())
		}
		after = slices.Delete(after, i, i+1)
	}
	for _, text := range c.Set {
		where := text
		if name, place, ok := strings.Cut(text, "="); ok && find(name) >= 0 {
			where = place + ":" + name
		}
		i := find(StoreName(where))
		if i < 0 {
			return nil, fault.New(fault.NotFound, "%q names no volume store that could be changed, as NAME=WHERE; %s; add one with --add-volume-store", text, named())
		}
		after[i] = where
	}
	for _, text := range c.Add {
		if i := find(StoreName(text)); i >= 0 {
			return nil, fault.New(fault.Conflict, "there is a volume store %s already, %s; change it with --set-volume-store, or give the new one another name", StoreName(text), after[i])
		}
		after = append(after, text)
	}
	return after, nil
}
