package machine

import (
	"encoding/json"
	"maps"
	"reflect"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"pgregory.net/rapid"

	"vch/internal/fault"
)

// model is what there is after a step: how a perfect site behaves.
func model(o Observed, s Step) Observed {
	switch s.Kind {
	case MakeDirectory:
		o.Directories = with(o.Directories, s.Subject)
	case RemoveDirectory:
		o.Directories = without(o.Directories, s.Subject)
	case MakeStore:
		o.Stores = with(o.Stores, s.Subject)
	case CopyProgram:
		o.Programs = with(o.Programs, s.Subject)
	case RemoveProgram:
		o.Programs = without(o.Programs, s.Subject)
	case MakeCertificates:
		for _, n := range s.Names {
			o.Certificates = with(o.Certificates, n)
		}
	case WriteSettings:
		o.Settings = s.Settings.Clone()
	case RemoveSettings:
		o.Settings = nil
	case Register:
		o.Supervisor, o.Program = s.Subject, s.Program
	case Unregister:
		o.Supervisor = ""
	case StartDaemon:
		o.Running = true
	case StopDaemon:
		o.Running = false
	case RemoveContainer:
		o.Containers = slices.DeleteFunc(slices.Clone(o.Containers), func(c Container) bool { return c.ID == s.Subject })
	case RemoveVolume:
		o.Volumes = slices.DeleteFunc(slices.Clone(o.Volumes), func(v Volume) bool { return v.Name+"@"+v.Store == s.Subject })
	}
	return o
}

// done says whether o is as d wants it.
func done(d Desired, o Observed) string {
	for _, dir := range d.Directories {
		if !slices.Contains(o.Directories, dir.Path) {
			return "there is no directory " + dir.Path
		}
	}
	for _, path := range d.Stores {
		if !slices.Contains(o.Stores, path) {
			return "there is no store " + path
		}
	}
	switch {
	case !d.Settings.Equal(o.Settings):
		return cmp.Diff(d.Settings, o.Settings)
	case !holds(o.Certificates, d.Certificates):
		return "a name is not in the certificate"
	case d.Program != o.Program || d.Supervisor != o.Supervisor || d.Running != o.Running:
		return "another program, supervisor, or not running"
	case !slices.Contains(o.Programs, d.Program):
		return "the program is not kept"
	}
	return ""
}

var some = rapid.SampledFrom([]string{"a", "b", "c"})

func settingsOf(t *rapid.T, label string) Settings {
	s := Settings{}
	for _, key := range rapid.SliceOfNDistinct(some, 0, 3, rapid.ID[string]).Draw(t, label) {
		s[key] = rapid.SliceOfN(some, 1, 2).Draw(t, label+" "+key)
	}
	return s
}

func desiredOf(t *rapid.T) Desired {
	d := Desired{Name: "x", Target: Local, Settings: settingsOf(t, "settings"), Program: some.Draw(t, "program"), Supervisor: some.Draw(t, "supervisor"), Running: rapid.Bool().Draw(t, "running")}
	for _, dir := range rapid.SliceOfNDistinct(some, 0, 3, rapid.ID[string]).Draw(t, "directories") {
		d.Directories = append(d.Directories, Directory{Path: "/" + dir, Mode: 0o700})
	}
	d.Certificates = rapid.SliceOfNDistinct(some, 0, 2, rapid.ID[string]).Draw(t, "certificates")
	d.Stores = rapid.SliceOfNDistinct(some, 0, 2, rapid.ID[string]).Draw(t, "stores")
	return d
}

// wild is anything that there can be, half-made things too.
func wild(t *rapid.T) Observed {
	o := Observed{Program: some.Draw(t, "o.program"), Running: rapid.Bool().Draw(t, "o.running"), Programs: rapid.SliceOfNDistinct(some, 0, 3, rapid.ID[string]).Draw(t, "o.programs")}
	if rapid.Bool().Draw(t, "registered") {
		o.Supervisor = some.Draw(t, "o.supervisor")
	}
	if rapid.Bool().Draw(t, "configured") {
		o.Settings = settingsOf(t, "o.settings")
	}
	for _, dir := range rapid.SliceOfNDistinct(some, 0, 3, rapid.ID[string]).Draw(t, "o.directories") {
		o.Directories = append(o.Directories, "/"+dir)
	}
	o.Certificates = rapid.SliceOfNDistinct(some, 0, 2, rapid.ID[string]).Draw(t, "o.certificates")
	for _, c := range rapid.SliceOfNDistinct(some, 0, 2, rapid.ID[string]).Draw(t, "containers") {
		o.Containers = append(o.Containers, Container{ID: c, Name: "c" + c})
	}
	for _, v := range rapid.SliceOfNDistinct(some, 0, 3, rapid.ID[string]).Draw(t, "volumes") {
		o.Volumes = append(o.Volumes, Volume{Name: "v" + v, Store: "default", Where: "/s/" + v})
	}
	return o
}

// From whatever there is, a plan leads to what is wanted; there the plan is empty; and the daemon is never changed under its feet.
func TestPlanLeadsThere(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		d, o := desiredOf(t), wild(t)
		p, err := PlanFor(Configure, d, o, Own{})
		if err != nil {
			t.Fatal(err)
		}
		now := o
		for _, s := range p.Steps {
			if (s.Kind == WriteSettings || s.Kind == Register || s.Kind == MakeCertificates) && now.Running {
				t.Fatalf("%s while the daemon runs", s.Text)
			}
			now = model(now, s)
		}
		if why := done(d, now); why != "" {
			t.Fatalf("%s\nafter %s", why, texts(p.Steps))
		}
		if again, err := PlanFor(Configure, d, now, Own{}); err != nil || len(again.Steps) > 0 {
			t.Fatalf("a plan of what is done: %v, %v", texts(again.Steps), err)
		}
		if (len(p.Changes) > 0) != !d.Settings.Equal(o.Settings) {
			t.Fatalf("changes %v", p.Changes)
		}
	})
}

// Wherever a plan fails, its way back leads to what there was, as far as it can be seen from outside.
func TestPlanLeadsBack(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		d, o := desiredOf(t), wild(t)
		if o.Supervisor == "" || o.Settings == nil {
			t.Skip("there was no VCH")
		}
		p, err := PlanFor(Configure, d, o, Own{})
		if err != nil || len(p.Steps) == 0 {
			t.Skip("nothing to do")
		}
		now := o
		for _, s := range p.Steps[:rapid.IntRange(0, len(p.Steps)).Draw(t, "fails at")] {
			now = model(now, s)
		}
		if p.Back == nil {
			if !now.Settings.Equal(o.Settings) || now.Program != o.Program || now.Supervisor != o.Supervisor {
				t.Fatalf("there is no way back from %s", texts(p.Steps))
			}
			return
		}
		for _, s := range p.Back {
			now = model(now, s)
		}
		if !now.Settings.Equal(o.Settings) || now.Program != o.Program || now.Supervisor != o.Supervisor || now.Running != o.Running {
			t.Fatalf("back at %+v\nwas %+v\nby %s", now, o, texts(p.Back))
		}
	})
}

// A plan to be gone leaves nothing, but the volumes that were not named; it says which. It has the daemon running for what only that can do.
func TestPlanGone(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		o := wild(t)
		d := Desired{Name: "x", Gone: true}
		for _, c := range o.Containers {
			d.Containers = append(d.Containers, c.ID)
		}
		for _, v := range o.Volumes {
			if rapid.Bool().Draw(t, "delete "+v.Name) {
				d.Volumes = append(d.Volumes, v.Name)
			}
		}
		p, err := PlanFor(Delete, d, o, Own{After: []Step{{Kind: "own"}}})
		if err != nil {
			t.Fatal(err)
		}
		now, owned := o, false
		for _, s := range p.Steps {
			if (s.Kind == RemoveContainer || s.Kind == RemoveVolume) != now.Running && (s.Kind == RemoveContainer || s.Kind == RemoveVolume || s.Kind == RemoveDirectory || s.Kind == RemoveSettings || s.Kind == "own") {
				t.Fatalf("%s, and running is %v", s.Kind, now.Running)
			}
			owned = owned || s.Kind == "own"
			now = model(now, s)
		}
		want := Observed{Certificates: o.Certificates, Program: o.Program, Volumes: p.Keeps} // the first two go with the directories
		for _, l := range []*[]string{&now.Directories, &now.Programs, &now.Certificates, &want.Certificates} {
			if len(*l) == 0 {
				*l = nil
			}
		}
		if len(now.Containers) == 0 {
			now.Containers = nil
		}
		if len(now.Volumes) == 0 {
			now.Volumes = nil
		}
		if diff := cmp.Diff(want, now); diff != "" || !owned {
			t.Fatal(diff, owned)
		}
		if len(p.Keeps)+len(d.Volumes) != len(o.Volumes) {
			t.Fatalf("it keeps %v of %v without %v", p.Keeps, o.Volumes, d.Volumes)
		}
	})
}

func texts(steps []Step) string {
	var all []string
	for _, s := range steps {
		all = append(all, s.Text)
	}
	return strings.Join(all, "\n")
}

var (
	made = Observed{
		Directories: []string{"/h", "/h/state"}, Settings: Settings{"memory": {"1G"}}, Program: "1.0", Programs: []string{"1.0"}, Supervisor: "systemd", Running: true,
		Containers: []Container{{ID: "0123456789abcdef", Name: "web"}}, Volumes: []Volume{{"data", "default", "/s/volumes/data"}, {"data", "big", "/b/volumes/data"}, {"logs", "big", "/b/volumes/logs"}},
	}
	wanted = Desired{Name: "x", Target: Local, Directories: []Directory{{"/h", 0o711}, {"/h/state", 0o700}}, Settings: Settings{"memory": {"1G"}}, Program: "1.0", Supervisor: "systemd", Running: true}
)

// The plans of the commands, as an administrator reads them.
func TestPlansInWords(t *testing.T) {
	change := func(f func(*Desired)) Desired {
		d := wanted
		d.Settings = wanted.Settings.Clone()
		f(&d)
		return d
	}
	for _, tc := range []struct {
		name    string
		command Command
		d       Desired
		o       Observed
		want    string
		kind    fault.Kind
	}{
		{"create", Create, change(func(d *Desired) { d.Certificates = []string{"h.example"} }), Observed{}, `make the directory /h
make the directory /h/state
keep a copy of this program, vch 1.0
own before
make certificates for h.example
write the configuration
make vch 1.0 (supervisor systemd) its daemon
start the daemon, vch 1.0
wait until it answers`, 0},
		{"create one that is there", Create, wanted, made, "there is a VCH x already", fault.Conflict},
		{"configure nothing", Configure, wanted, made, "own before\nstop the daemon; containers go on\nstart the daemon, vch 1.0\nwait until it answers, with the containers that there are (1)", 0},
		{"configure", Configure, change(func(d *Desired) { d.Settings["memory"] = []string{"2G"} }), made, `own before
stop the daemon; containers go on
write the configuration
start the daemon, vch 1.0
wait until it answers, with the containers that there are (1)`, 0},
		{"upgrade", Upgrade, change(func(d *Desired) { d.Program = "2.0" }), made, `keep a copy of this program, vch 2.0
own before
stop the daemon; containers go on
make vch 2.0 (supervisor systemd) its daemon
start the daemon, vch 2.0
wait until it answers, with the containers that there are (1)`, 0},
		{"delete with containers", Delete, Desired{Name: "x", Gone: true}, made, "VCH x has containers: web; remove them first", fault.InUse},
		{"delete", Delete, Desired{Name: "x", Gone: true, Containers: []string{"0123456789abcdef"}, Volumes: []string{"logs", "data@big"}}, made, `remove the container web
delete the volume data of store big and what is in it
delete the volume logs of store big and what is in it
stop the daemon
take it from the supervisor systemd
own after
remove the configuration
remove the copy of vch 1.0
remove the directory /h/state
remove the directory /h`, 0},
		{"delete a volume of two stores", Delete, Desired{Name: "x", Gone: true, Containers: []string{"0123456789abcdef"}, Volumes: []string{"data"}}, made, "say data@default or data@big", fault.Invalid},
		{"delete no volume", Delete, Desired{Name: "x", Gone: true, Containers: []string{"0123456789abcdef"}, Volumes: []string{"none"}}, made, "there is no volume none to delete", fault.NotFound},
	} {
		t.Run(tc.name, func(t *testing.T) {
			p, err := PlanFor(tc.command, tc.d, tc.o, Own{Before: []Step{{Kind: "own-before", Text: "own before"}}, After: []Step{{Kind: "own-after", Text: "own after"}}})
			if tc.kind != 0 {
				if !fault.Is(err, tc.kind) || !strings.Contains(err.Error(), tc.want) {
					t.Fatalf("%v", err)
				}
				return
			}
			if err != nil {
				t.Fatal(err)
			}
			if diff := cmp.Diff(tc.want, texts(p.Steps)); diff != "" {
				t.Error(diff)
			}
			for _, s := range append(p.Steps, p.Back...) {
				if s.Kind != "own-before" && s.Kind != "own-after" && (s.Text == "" || s.Done == "" || strings.Contains(s.Text+s.Done, "%!")) {
					t.Errorf("sentences of %+v", s)
				}
			}
			text, err := json.Marshal(p)
			var back Plan
			if err != nil || json.Unmarshal(text, &back) != nil || !reflect.DeepEqual(canonicalPlan(p), canonicalPlan(back)) {
				t.Errorf("as JSON, %v: %s", err, text)
			}
		})
	}
}

func canonicalPlan(p Plan) string {
	text, _ := json.Marshal(p)
	return string(text)
}

func TestStoreChange(t *testing.T) {
	stores := []string{"/ssd:default", "nfs://nas:2049/vch?ro:shared"}
	for _, tc := range []struct {
		change StoreChange
		want   string // or a part of the error
	}{
		{StoreChange{}, "/ssd:default|nfs://nas:2049/vch?ro:shared"},
		{StoreChange{Add: []string{"/big:archive"}}, "/ssd:default|nfs://nas:2049/vch?ro:shared|/big:archive"},
		{StoreChange{Add: []string{"/big:shared"}}, "there is a volume store shared already, nfs://nas:2049/vch?ro:shared"},
		{StoreChange{Set: []string{"shared=nfs://other/vch"}}, "/ssd:default|nfs://other/vch:shared"},
		{StoreChange{Set: []string{"/fast:default"}}, "/fast:default|nfs://nas:2049/vch?ro:shared"},
		{StoreChange{Set: []string{"/fast:none"}}, "names no volume store that could be changed"},
		{StoreChange{Remove: []string{"default"}}, "nfs://nas:2049/vch?ro:shared"},
		{StoreChange{Remove: []string{"none"}}, "there is no volume store none to remove; there are default, shared"},
		{StoreChange{Remove: []string{"default"}, Add: []string{"/x:default"}}, "nfs://nas:2049/vch?ro:shared|/x:default"},
	} {
		got, err := tc.change.Stores(stores)
		text := strings.Join(got, "|")
		if err != nil {
			text = err.Error()
		}
		if text != tc.want && (err == nil || !strings.Contains(text, tc.want)) {
			t.Errorf("%+v gives %s, not %s", tc.change, text, tc.want)
		}
	}
}

func TestDiff(t *testing.T) {
	was := Settings{"memory": {"1G"}, "cpus": {"2"}, StoresSetting: {"/a:default", "/b:big"}}
	is := maps.Clone(was)
	is["memory"] = []string{"2G"}
	delete(is, "cpus")
	is["warm"] = []string{"3"}
	is[StoresSetting] = []string{"/a:default", "/c:new"}
	var got []string
	for _, c := range Diff(was, is) {
		got = append(got, c.String())
	}
	want := []string{"cpus: the default (was 2)", "memory: 2G (was 1G)", "volume-store: + /c:new, - /b:big", "warm: 3 (was the default)"}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Error(diff)
	}
	if n := Diff(was, was.Clone()); n != nil {
		t.Errorf("%v", n)
	}
}

func TestNames(t *testing.T) {
	for text, good := range map[string]bool{"a": true, "web-1.b_c": true, "": false, "-a": false, "a/b": false, "..": false, "a b": false, strings.Repeat("a", 41): false} {
		if err := CheckName(text); (err == nil) != good {
			t.Errorf("%q: %v", text, err)
		}
	}
}

func TestJudge(t *testing.T) {
	checks := []Check{{"a", OK, "fine", false}, {"store x", Fail, "gone", true}}
	if _, err := Judge(checks, false); !fault.Is(err, fault.Unavailable) || !strings.Contains(err.Error(), "store x: gone; mend that, or go on with --force") {
		t.Errorf("%v", err)
	}
	judged, err := Judge(checks, true)
	if err != nil || judged[1].Verdict != Warn {
		t.Errorf("%v, %v", judged, err)
	}
	if _, err := Judge(append(checks, Check{"qemu", Fail, "missing", false}), true); err == nil || strings.Contains(err.Error(), "--force") {
		t.Errorf("%v", err)
	}
}

// What a site has of its own is taken back before the daemon is started as it was.
func TestOwnStepsAreTakenBack(t *testing.T) {
	o := Observed{Supervisor: "process", Program: "v1", Programs: []string{"v1"}, Settings: Settings{"a": {"1"}}, Running: true}
	d := Desired{Name: "web", Supervisor: "process", Program: "v1", Settings: Settings{"a": {"1"}}, Running: true}
	p, err := PlanFor(Configure, d, o, Own{Before: []Step{{Kind: "own"}}, Back: []Step{{Kind: "own-back"}}})
	if err != nil {
		t.Fatal(err)
	}
	var kinds []Kind
	for _, s := range p.Back {
		kinds = append(kinds, s.Kind)
	}
	if diff := cmp.Diff([]Kind{StopDaemon, "own-back", StartDaemon, AwaitDaemon}, kinds); diff != "" {
		t.Error(diff)
	}
}
