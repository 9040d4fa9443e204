package personality

import (
	"encoding/json"
	"fmt"
	"net/url"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/moby/moby/api/types/volume"
	"github.com/moby/moby/client"

	"vch/personality/mountspec"
	"vch/portlayer"
)

func TestVolumeCreate(t *testing.T) {
	w := newWorld(t)
	var v volume.Volume
	w.ask(&v, "POST", "/volumes/create", `{"Name":"data","DriverOpts":{"Capacity":"8MB"},"Labels":{"a":"b"},"Driver":"local"}`)
	disk := filepath.Join(string(w.store), "volumes", "data", "data.vmdk")
	want := volume.Volume{Name: "data", Driver: "fake-vmdk", Scope: "local", Mountpoint: disk, CreatedAt: v.CreatedAt, Labels: map[string]string{"a": "b"}, Options: map[string]string{"Capacity": "8MB"}}
	if d := cmp.Diff(want, v); d != "" || v.CreatedAt == "" {
		t.Error(d)
	}
	if _, err := os.Stat(disk); err != nil {
		t.Errorf("the mountpoint is no disk: %v", err)
	}

	// Again it is the same one; asked for otherwise it is a conflict.
	var again volume.Volume
	w.ask(&again, "POST", "/volumes/create", `{"Name":"data","Labels":{"other":"1"}}`)
	if d := cmp.Diff(v, again); d != "" {
		t.Error(d)
	}
	w.refused(409, "create data: the volume exists with a capacity of 8MiB", "POST", "/volumes/create", `{"Name":"data","DriverOpts":{"Capacity":"16MB"}}`)

	// Without a name it is anonymous, and says so.
	for _, body := range []string{"", "null", "{}"} {
		var anon volume.Volume
		w.ask(&anon, "POST", "/volumes/create", body)
		if _, marked := anon.Labels[mountspec.AnonymousLabel]; len(anon.Name) != 64 || !marked {
			t.Errorf("body %q: %+v", body, anon)
		}
	}
	status, answer := w.call("POST", "/volumes/create", `{"Name":"plain"}`)
	if status != 201 || !strings.Contains(answer, `"Labels":null`) || !strings.Contains(answer, `"Options":null`) {
		t.Errorf("%d %s", status, answer)
	}
}

// TestVolumeCreateRefusals replays what Moby was seen to refuse.
func TestVolumeCreateRefusals(t *testing.T) {
	w := newWorld(t)
	for body, text := range map[string]string{
		`{"Name":"a"}`:    "create a: volume name is too short, names should be at least two alphanumeric characters",
		`{"Name":"-sp"}`:  `create -sp: "-sp" includes invalid characters for a local volume name, only "[a-zA-Z0-9][a-zA-Z0-9_.-]" are allowed. If you intended to pass a host directory, use absolute path`,
		`{"Name":"sp/x"}`: `create sp/x: "sp/x" includes invalid characters`,
		`{"Name":"sp\n"}`: `"sp\n" includes invalid characters`,
		`[]`:              "invalid JSON: json: cannot unmarshal array into Go value of type volume.CreateRequest",
		`{bad`:            "invalid JSON: invalid character 'b' looking for beginning of object key string",
		`{"Name":5}`:      "invalid JSON: json: cannot unmarshal number into Go struct field CreateRequest.Name of type string",
		`{"Name":"sp-o","DriverOpts":{"bogus":"1"}}`:       `invalid option: "bogus"`,
		`{"Name":"sp-o","DriverOpts":{"VolumeStore":"x"}}`: "no volume store is called x",
		`{"Name":"sp-o","DriverOpts":{"size":"xx"}}`:       `"xx" is not a capacity`,
		`{"Name":"sp-o","Driver":"sp-nope"}`:               "no volume driver sp-nope",
	} {
		w.refused(400, text, "POST", "/volumes/create", body)
	}
	var list volume.ListResponse
	w.ask(&list, "GET", "/volumes", "")
	if len(list.Volumes) != 0 {
		t.Errorf("left behind: %+v", list.Volumes)
	}
	w.refused(503, "swarm", "POST", "/volumes/create", `{"ClusterVolumeSpec":{}}`)
}

func TestVolumeInspect(t *testing.T) {
	w := newWorld(t)
	w.ask(nil, "POST", "/volumes/create", `{"Name":"data"}`)
	var v volume.Volume
	w.ask(&v, "GET", "/v1.41/volumes/data", "")
	for _, key := range []string{"Store", "Label", "Capacity", "Allocated", "AttachedTo"} {
		if _, ok := v.Status[key]; !ok {
			t.Errorf("no %s in %v", key, v.Status)
		}
	}
	if v.Status["Capacity"] != "8MiB" || v.Status["Store"] != "default" || v.UsageData != nil {
		t.Errorf("%+v", v)
	}
	for path, text := range map[string]string{"none": "get none: no such volume", "": "get: no such volume", "a%2Fb": "get a/b: no such volume", "prune": "get prune: no such volume", "s": "get s: no such volume"} {
		w.refused(404, text, "GET", "/volumes/"+path, "")
	}
}

// TestVolumeList replays the filters that were sent to Moby.
func TestVolumeList(t *testing.T) {
	w := newWorld(t)
	w.ask(nil, "POST", "/volumes/create", `{"Name":"sp-f1","Labels":{"k":"v","e":""}}`)
	w.ask(nil, "POST", "/volumes/create", `{"Name":"sp-f2","Labels":{"k":"w"}}`)
	w.ask(nil, "POST", "/volumes/create", `{"Name":"sp-f10"}`)
	if _, _, err := w.volumes.Reserve(t.Context(), "c", portlayer.Mount{Kind: portlayer.VolumeMount, Volume: "sp-f2"}); err != nil {
		t.Fatal(err)
	}
	for _, tt := range []struct{ filter, want string }{
		{``, "sp-f1 sp-f10 sp-f2"},
		{`{}`, "sp-f1 sp-f10 sp-f2"},
		{`{"name":{"sp-f1":true}}`, "sp-f1 sp-f10"},
		{`{"name":["sp-f1"]}`, "sp-f1 sp-f10"},
		{`{"name":{"f1":true}}`, "sp-f1 sp-f10"},
		{`{"name":{"^sp-f1$":true}}`, "sp-f1"},
		{`{"name":{"sp-f.":true}}`, "sp-f1 sp-f10 sp-f2"},
		{`{"name":{"[":true}}`, ""},
		{`{"name":{"sp-f1":true,"sp-f2":true}}`, "sp-f1 sp-f10 sp-f2"},
		{`{"name":{"sp-f1":false}}`, "sp-f1 sp-f10"},
		{`{"name":{"":true}}`, "sp-f1 sp-f10 sp-f2"},
		{`{"label":{"k":true}}`, "sp-f1 sp-f2"},
		{`{"label":{"k=v":true}}`, "sp-f1"},
		{`{"label":{"k=":true}}`, ""},
		{`{"label":{"e=":true}}`, "sp-f1"},
		{`{"label":{"k":true,"e":true}}`, "sp-f1"},
		{`{"driver":{"fake-vmdk":true},"name":{"sp-f":true}}`, "sp-f1 sp-f10 sp-f2"},
		{`{"driver":{"fake":true}}`, ""},
		{`{"dangling":{"true":true}}`, "sp-f1 sp-f10"},
		{`{"dangling":{"1":true}}`, "sp-f1 sp-f10"},
		{`{"dangling":{"false":true}}`, "sp-f2"},
		{`{"dangling":{"0":true}}`, "sp-f2"},
	} {
		var list volume.ListResponse
		w.ask(&list, "GET", "/volumes?"+url.Values{"filters": {tt.filter}}.Encode(), "")
		names := []string{}
		for _, v := range list.Volumes {
			names = append(names, v.Name)
		}
		if got := strings.Join(names, " "); got != tt.want {
			t.Errorf("%s: %s, want %s", tt.filter, got, tt.want)
		}
	}
	for filter, text := range map[string]string{
		`{"label!":{"k":true}}`:                   "invalid filter 'label!'",
		`{"bogus":{"x":true}}`:                    "invalid filter 'bogus'",
		`{"dangling":{"maybe":true}}`:             "invalid filter 'dangling=[maybe]'",
		`{"dangling":{"true":true,"false":true}}`: "invalid filter 'dangling=[false true]'",
		`{bad`: "error reading volume filters: invalid filter",
	} {
		w.refused(400, text, "GET", "/volumes?"+url.Values{"filters": {filter}}.Encode(), "")
	}
	if _, answer := w.call("GET", "/volumes", ""); !strings.Contains(answer, `"Warnings":null`) {
		t.Error(answer)
	}
}

func TestVolumeRemove(t *testing.T) {
	w := newWorld(t)
	w.ask(nil, "POST", "/volumes/create", `{"Name":"data"}`)
	if _, _, err := w.volumes.Reserve(t.Context(), "c0ffee", portlayer.Mount{Kind: portlayer.VolumeMount, Volume: "data"}); err != nil {
		t.Fatal(err)
	}
	w.refused(409, "remove data: volume is in use - [c0ffee]", "DELETE", "/volumes/data", "")
	w.refused(409, "remove data: volume is in use - [c0ffee]", "DELETE", "/volumes/data?force=1", "")
	w.volumes.Release("c0ffee")
	if status, answer := w.call("DELETE", "/volumes/data", ""); status != 204 || answer != "" {
		t.Errorf("%d %s", status, answer)
	}
	w.refused(404, "get data: no such volume", "DELETE", "/volumes/data?force=0", "")
	for _, name := range []string{"data", "s", "prune"} {
		if status, answer := w.call("DELETE", "/volumes/"+name+"?force=1", ""); status != 204 {
			t.Errorf("%s: %d %s", name, status, answer)
		}
	}
	w.refused(404, "get prune: no such volume", "DELETE", "/volumes/prune", "")
}

// TestVolumePrune replays what Moby's prune was seen to leave, but that a volume made with options is no exception here.
func TestVolumePrune(t *testing.T) {
	const all = "anon inuse labelled named withopts"
	for _, tt := range []struct{ version, filter, left, refusal string }{
		{"1.50", ``, "inuse labelled named withopts", ""},
		{"1.50", `{"all":{"1":true}}`, "inuse", ""},
		{"1.50", `{"all":{"false":true}}`, "inuse labelled named withopts", ""},
		{"1.50", `{"all":{"true":true},"label!":{"keep":true}}`, "inuse labelled", ""},
		{"1.50", `{"all":{"true":true},"label":{"keep":true}}`, "anon inuse named withopts", ""},
		{"1.50", `{"label":{"keep":true}}`, all, ""},
		{"1.50", `{"all":{"xyz":true}}`, all, `invalid filter 'all': strconv.ParseBool: parsing "xyz": invalid syntax`},
		{"1.50", `{"all":{"true":true,"1":true}}`, all, "invalid filter 'all=[1 true]': only one value is expected"},
		{"1.50", `{"until":{"1h":true}}`, all, "invalid filter 'until'"},
		{"1.41", ``, "inuse", ""},
		{"1.41", `{"label":{"keep":true}}`, "anon inuse named withopts", ""},
		{"1.41", `{"label":{"keep=1":true}}`, "anon inuse named withopts", ""},
		{"1.41", `{"label":{"keep=2":true}}`, all, ""},
		{"1.41", `{"all":{"true":true}}`, "inuse", ""},
		{"1.41", `{"dangling":{"true":true}}`, all, "invalid filter 'dangling'"},
		{"1.41", `{bad`, all, "invalid filter"},
	} {
		t.Run(tt.version+" "+tt.filter, func(t *testing.T) {
			w := newWorld(t)
			for name, more := range map[string]string{
				"anon": `,"Labels":{"` + mountspec.AnonymousLabel + `":""}`, "inuse": "", "labelled": `,"Labels":{"keep":"1"}`, "named": "", "withopts": `,"DriverOpts":{"size":"8MB"}`,
			} {
				w.ask(nil, "POST", "/volumes/create", `{"Name":"`+name+`"`+more+`}`)
			}
			if _, _, err := w.volumes.Reserve(t.Context(), "c", portlayer.Mount{Kind: portlayer.VolumeMount, Volume: "inuse"}); err != nil {
				t.Fatal(err)
			}
			path := "/v" + tt.version + "/volumes/prune?" + url.Values{"filters": {tt.filter}}.Encode()
			if tt.refusal != "" {
				w.refused(400, tt.refusal, "POST", path, "")
			} else {
				var report volume.PruneReport
				w.ask(&report, "POST", path, "")
				gone := 5 - len(strings.Fields(tt.left))
				if len(report.VolumesDeleted) != gone || (report.SpaceReclaimed > 0) != (gone > 0) {
					t.Errorf("%+v", report)
				}
			}
			var list volume.ListResponse
			w.ask(&list, "GET", "/volumes", "")
			left := []string{}
			for _, v := range list.Volumes {
				left = append(left, v.Name)
			}
			if got := strings.Join(left, " "); got != tt.left {
				t.Errorf("left %s, want %s", got, tt.left)
			}
		})
	}
}

// TestVolumesByClient proves that the real client, old and new, understands every answer.
func TestVolumesByClient(t *testing.T) {
	for _, version := range []string{"", "1.41"} {
		t.Run("version "+version, func(t *testing.T) {
			w, ctx := newWorld(t), t.Context()
			c := w.client(version)
			made, err := c.VolumeCreate(ctx, client.VolumeCreateOptions{Name: "data", DriverOpts: map[string]string{"Capacity": "16MB"}, Labels: map[string]string{"a": "b"}})
			if err != nil || made.Volume.Name != "data" {
				t.Fatalf("%+v, %v", made, err)
			}
			got, err := c.VolumeInspect(ctx, "data", client.VolumeInspectOptions{})
			if err != nil || got.Volume.Mountpoint != made.Volume.Mountpoint || fmt.Sprint(got.Volume.Status["Capacity"]) != "16MiB" {
				t.Errorf("%+v, %v", got.Volume, err)
			}
			list, err := c.VolumeList(ctx, client.VolumeListOptions{Filters: make(client.Filters).Add("label", "a=b")})
			if err != nil || len(list.Items) != 1 {
				t.Errorf("%+v, %v", list, err)
			}
			if _, err := c.VolumeRemove(ctx, "data", client.VolumeRemoveOptions{}); err != nil {
				t.Error(err)
			}
			pruned, err := c.VolumePrune(ctx, client.VolumePruneOptions{})
			if err != nil || len(pruned.Report.VolumesDeleted) != 0 {
				t.Errorf("%+v, %v", pruned, err)
			}
		})
	}
}

func TestVolumeStatusNamesWhoHoldsIt(t *testing.T) {
	status := volumeStatus(portlayer.VolumeDetail{Attached: []portlayer.Attachment{{Container: "c1"}, {Container: "c2", ReadOnly: true}}})
	data, err := json.Marshal(status["AttachedTo"])
	if err != nil || string(data) != `["c1 (rw)","c2 (ro)"]` {
		t.Errorf("%s, %v", data, err)
	}
}
