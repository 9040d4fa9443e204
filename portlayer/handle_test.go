package portlayer

import (
	"testing"

	"github.com/google/go-cmp/cmp"

	"vch/internal/fault"
)

func TestVolumeID(t *testing.T) {
	for text, want := range map[string]VolumeID{
		"": {}, "data": {Name: "data"}, "data@fast": {Name: "data", Store: "fast"}, "data@a@b": {Name: "data", Store: "a@b"},
		"data@": {Name: "data@"}, "@fast": {Name: "@fast"}, "@": {Name: "@"},
	} {
		id := ParseVolumeID(text)
		if id != want || id.String() != text {
			t.Errorf("%q: %+v, %s", text, id, id)
		}
		var back VolumeID
		if raw, err := id.MarshalText(); err != nil || back.UnmarshalText(raw) != nil || back != id {
			t.Errorf("%q: %+v, %v", text, back, err)
		}
	}
}

func TestApplyChanges(t *testing.T) {
	disk := func(serial string) Disk {
		return Disk{Serial: serial, File: DiskPath("/" + serial)}
	}
	add := func(serial string) DeviceChange {
		return DeviceChange{Op: Add, Disk: disk(serial)}
	}
	remove := func(serial string) DeviceChange {
		return DeviceChange{Op: Remove, Disk: Disk{Serial: serial}}
	}
	for _, tc := range []struct {
		name    string
		have    []Disk
		changes []DeviceChange
		want    []Disk
		kind    fault.Kind
	}{
		{name: "add two", changes: []DeviceChange{add("a"), add("b")}, want: []Disk{disk("a"), disk("b")}},
		{name: "remove one", have: []Disk{disk("a"), disk("b")}, changes: []DeviceChange{remove("a")}, want: []Disk{disk("b")}},
		{name: "replace", have: []Disk{disk("a")}, changes: []DeviceChange{remove("a"), add("a")}, want: []Disk{disk("a")}},
		{name: "twice", changes: []DeviceChange{add("a"), add("a")}, kind: fault.Conflict},
		{name: "missing", changes: []DeviceChange{remove("a")}, kind: fault.NotFound},
		{name: "bad serial", changes: []DeviceChange{add("a,share-rw=on")}, kind: fault.Invalid},
		{name: "neither file nor size", changes: []DeviceChange{{Op: Add, Disk: Disk{Serial: "a", Size: MinDisk - 1}}}, kind: fault.Invalid},
		{name: "unknown", changes: []DeviceChange{{Op: "swap", Disk: disk("a")}}, kind: fault.Invalid},
	} {
		before := append([]Disk(nil), tc.have...)
		got, err := ApplyChanges(tc.have, tc.changes)
		if tc.want == nil {
			if !fault.Is(err, tc.kind) {
				t.Errorf("%s: %v, want kind %v", tc.name, err, tc.kind)
			}
		} else if diff := cmp.Diff(tc.want, got); diff != "" || err != nil {
			t.Errorf("%s: %v %s", tc.name, err, diff)
		}
		if diff := cmp.Diff(before, tc.have); diff != "" {
			t.Errorf("%s changed what it was given: %s", tc.name, diff)
		}
	}
}
