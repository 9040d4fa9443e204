package mountspec

import (
	"bufio"
	"encoding/json"
	"os"
	"path"
	"strconv"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/moby/moby/api/types/mount"

	"vch/internal/fault"
	"vch/portlayer"
)

func newest() Version { return Version{1, 50} }

// mobyCase is a line of testdata/moby.jsonl: what a real engine answered.
type mobyCase struct {
	Case string
	Got  []struct {
		Create any
		Mounts []mobyMount
	}
}

type mobyMount struct {
	Destination, Name, Type string
	Mode                    string
	RW                      bool
}

func readLines(t *testing.T, name string, line func([]byte)) {
	t.Helper()
	f, err := os.Open(name)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	for s := bufio.NewScanner(f); s.Scan(); {
		line(s.Bytes())
	}
}

// structures is what the cases named "mount …" sent.
func structures() map[string]mount.Mount {
	vol := func(source, target string, o *mount.VolumeOptions) mount.Mount {
		return mount.Mount{Type: mount.TypeVolume, Source: source, Target: target, VolumeOptions: o}
	}
	bind := func(source, target string, o *mount.BindOptions) mount.Mount {
		return mount.Mount{Type: mount.TypeBind, Source: source, Target: target, BindOptions: o}
	}
	image := func(source string) mount.Mount {
		return mount.Mount{Type: mount.TypeImage, Source: source, Target: "/mnt"}
	}
	tmpfs := func(o *mount.TmpfsOptions) mount.Mount {
		return mount.Mount{Type: mount.TypeTmpfs, Target: "/mnt", TmpfsOptions: o}
	}
	of := func(t mount.Type) mount.Mount { return mount.Mount{Type: t, Source: "sp-m", Target: "/mnt"} }
	driver := func(name string, options map[string]string) *mount.VolumeOptions {
		return &mount.VolumeOptions{DriverConfig: &mount.Driver{Name: name, Options: options}}
	}
	return map[string]mount.Mount{
		"anon":                    vol("", "/mnt", nil),
		"bind bad propagation":    bind("/opt", "/mnt", &mount.BindOptions{Propagation: "bogus"}),
		"bind no source":          bind("", "/mnt", nil),
		"bind no target":          bind("/opt", "", nil),
		"bind nonexist":           bind("/srv/probe-nonexist", "/mnt", nil),
		"bind nonexist create":    bind("/srv/probe-nonexist", "/mnt", &mount.BindOptions{CreateMountpoint: true}),
		"bind ok":                 bind("/opt", "/mnt", nil),
		"bind rel":                bind("tmp", "/mnt", nil),
		"bind target root":        bind("/opt", "/", nil),
		"bind with volumeopts":    {Type: mount.TypeBind, Source: "/opt", Target: "/mnt", VolumeOptions: &mount.VolumeOptions{}},
		"cluster":                 of(mount.TypeCluster),
		"driver nope":             vol("sp-m", "/mnt", driver("sp-nope", nil)),
		"driver opts bogus":       vol("sp-m", "/mnt", driver("local", map[string]string{"bogus": "1"})),
		"driver opts no name":     vol("sp-m", "/mnt", driver("", map[string]string{"type": "tmpfs", "device": "tmpfs"})),
		"driver opts tmpfs":       vol("sp-m", "/mnt", driver("local", map[string]string{"type": "tmpfs", "device": "tmpfs", "o": "size=1m"})),
		"empty":                   {},
		"image":                   image("semprobe:latest"),
		"image no source":         image(""),
		"image nonexist":          image("sp-noimage:latest"),
		"labels":                  vol("sp-m", "/mnt", &mount.VolumeOptions{Labels: map[string]string{"k": "v"}}),
		"nocopy":                  vol("sp-m", "/mnt", &mount.VolumeOptions{NoCopy: true}),
		"npipe":                   of(mount.TypeNamedPipe),
		"source 1char":            vol("x", "/mnt", nil),
		"source abs":              vol("/opt", "/mnt", nil),
		"source bad":              vol("sp/m", "/mnt", nil),
		"subpath abs":             vol("sp-m", "/mnt", &mount.VolumeOptions{Subpath: "/x"}),
		"subpath anon":            vol("", "/mnt", &mount.VolumeOptions{Subpath: "x"}),
		"subpath dotdot":          vol("sp-m", "/mnt", &mount.VolumeOptions{Subpath: "../x"}),
		"subpath inner dotdot":    vol("sp-m", "/mnt", &mount.VolumeOptions{Subpath: "x/../y"}),
		"subpath ok nonexist":     vol("sp-m", "/mnt", &mount.VolumeOptions{Subpath: "x/y"}),
		"target dotdot root":      vol("sp-m", "/a/..", nil),
		"target only":             {Target: "/mnt"},
		"target rel":              vol("sp-m", "mnt", nil),
		"target unclean":          vol("sp-m", "/a/../b/", nil),
		"tmpfs":                   tmpfs(nil),
		"tmpfs options bad":       tmpfs(&mount.TmpfsOptions{Options: [][]string{{"bogus"}}}),
		"tmpfs options exec":      tmpfs(&mount.TmpfsOptions{Options: [][]string{{"exec"}}}),
		"tmpfs options long":      tmpfs(&mount.TmpfsOptions{Options: [][]string{{"exec", "x"}}}),
		"tmpfs opts":              tmpfs(&mount.TmpfsOptions{SizeBytes: 1 << 20, Mode: 0o700}),
		"tmpfs ro":                {Type: mount.TypeTmpfs, Target: "/mnt", ReadOnly: true},
		"tmpfs source":            {Type: mount.TypeTmpfs, Source: "sp-m", Target: "/mnt"},
		"type bogus":              of("bogus"),
		"type only":               {Type: mount.TypeVolume},
		"type upper":              of("Volume"),
		"unknown field tolerated": vol("sp-m", "/mnt", nil),
		"volume consistency":      {Type: mount.TypeVolume, Source: "sp-m", Target: "/mnt", Consistency: "cached"},
		"volume consistency bad":  {Type: mount.TypeVolume, Source: "sp-m", Target: "/mnt", Consistency: "bogus"},
	}
}

// combos is what the cases named "combo …" and "image VOLUME …" sent.
func combos() map[string]Input {
	empty := struct{}{}
	vol := func(source, target string) mount.Mount {
		return mount.Mount{Type: mount.TypeVolume, Source: source, Target: target}
	}
	return map[string]Input{
		"combo VolumeDriver nope":      {Binds: []string{"sp-b:/mnt"}, VolumeDriver: "sp-nope"},
		"combo VolumeDriver nope anon": {Volumes: map[string]struct{}{"/mnt": empty}, VolumeDriver: "sp-nope"},
		"combo Volumes anon":           {Volumes: map[string]struct{}{"/mnt": empty}, ImageVolumes: []string{"/vol"}},
		"combo Volumes rel":            {Volumes: map[string]struct{}{"mnt": empty}},
		"combo Volumes with bind spec": {Volumes: map[string]struct{}{"sp-b:/mnt": empty}},
		"combo bind+tmpfs same":        {Binds: []string{"sp-b:/mnt"}, Tmpfs: map[string]string{"/mnt": ""}},
		"combo mount+mount same":       {Mounts: []mount.Mount{vol("sp-b", "/mnt"), vol("sp-c", "/mnt/")}},
		"combo mount+tmpfs same":       {Mounts: []mount.Mount{vol("sp-b", "/mnt")}, Tmpfs: map[string]string{"/mnt": ""}},
		"combo tmpfs bad opt":          {Tmpfs: map[string]string{"/mnt": "bogus"}},
		"combo tmpfs rel":              {Tmpfs: map[string]string{"mnt": ""}},
		"image VOLUME semproberoot":    {ImageVolumes: []string{"/"}},
		"image VOLUME semprobevol":     {ImageVolumes: []string{"/vol"}},
	}
}

// request is what a case sent.
func request(t *testing.T, name string) (Input, Version) {
	t.Helper()
	if raw, ok := strings.CutPrefix(name, "bind "); ok {
		text, err := strconv.Unquote(raw)
		if err != nil {
			t.Fatal(err)
		}
		return Input{Binds: []string{text}}, newest()
	}
	if raw, ok := strings.CutPrefix(name, "binds "); ok {
		var in Input
		for _, quoted := range strings.Fields(strings.Trim(raw, "[]")) {
			text, err := strconv.Unquote(quoted)
			if err != nil {
				t.Fatal(err)
			}
			in.Binds = append(in.Binds, text)
		}
		return in, newest()
	}
	if in, ok := combos()[name]; ok {
		return in, newest()
	}
	v := newest()
	sent, ok := strings.CutPrefix(name, "mount @max ")
	if !ok {
		sent, v = strings.TrimPrefix(name, "mount @1.41 "), Version{1, 41}
	}
	m, ok := structures()[sent]
	if !ok {
		t.Fatalf("what did the case %q send?", name)
	}
	return Input{Mounts: []mount.Mount{m}}, v
}

// TestMobyCases proves that every recorded answer of a real engine is ours too, or is in the list of differences with what we answer and why.
func TestMobyCases(t *testing.T) {
	type difference struct{ Case, Got, Why string }
	differ := map[string]difference{}
	readLines(t, "testdata/differences.jsonl", func(line []byte) {
		var d difference
		if err := json.Unmarshal(line, &d); err != nil || d.Why == "" {
			t.Fatalf("%s: %v", line, err)
		}
		differ[d.Case] = d
	})
	count := 0
	readLines(t, "testdata/moby.jsonl", func(line []byte) {
		var c mobyCase
		if err := json.Unmarshal(line, &c); err != nil {
			t.Fatal(err)
		}
		count++
		t.Run(c.Case, func(t *testing.T) {
			in, v := request(t, c.Case)
			mounts, _, err := Parse(in, v)
			got := show(mounts, err)
			want := showMoby(c)
			if d, ok := differ[c.Case]; ok {
				if d.Got == want {
					t.Errorf("is no difference: %s", want)
				}
				want = d.Got
				delete(differ, c.Case)
			}
			if got != want {
				t.Errorf("got  %s\nwant %s", got, want)
			}
			if err != nil && !fault.Is(err, fault.Invalid) && !fault.Is(err, fault.Unsupported) {
				t.Errorf("kind %v", fault.KindOf(err))
			}
		})
	})
	if count < 100 {
		t.Errorf("only %d cases", count)
	}
	for name := range differ {
		t.Errorf("a difference without a case: %s", name)
	}
}

// show writes a result as showMoby writes Moby's.
func show(mounts []portlayer.Mount, err error) string {
	if err != nil {
		return err.Error()
	}
	var parts []string
	for _, m := range mounts {
		if m.Origin == portlayer.FromTmpfs {
			continue // Docker does not show those
		}
		rw := "rw"
		if m.ReadOnly {
			rw = "ro"
		}
		parts = append(parts, string(m.Kind)+" "+string(m.Volume)+" "+m.Target+" "+rw+" "+m.Mode)
	}
	return strings.Join(parts, "; ")
}

func showMoby(c mobyCase) string {
	if text, failed := c.Got[0].Create.(string); failed {
		_, text, _ = strings.Cut(text, " ") // the status: 500 there where it is 400 here, see the package comment
		return text
	}
	var parts []string
	for _, m := range c.Got[1].Mounts {
		rw := "rw"
		if !m.RW {
			rw = "ro"
		}
		if m.Name == "<ID>" {
			m.Name = ""
		}
		if m.Mode == "z" && !strings.Contains(c.Case, ":z") { // a default of the local driver, added when it is shown
			m.Mode = ""
		}
		parts = append(parts, m.Type+" "+m.Name+" "+m.Destination+" "+rw+" "+m.Mode)
	}
	return strings.Join(parts, "; ")
}

func TestParse(t *testing.T) {
	empty := struct{}{}
	marked := map[string]string{AnonymousLabel: ""}
	for _, tt := range []struct {
		name     string
		in       Input
		want     []portlayer.Mount
		warnings []string
	}{
		{"nothing", Input{}, nil, nil},
		{"text", Input{Binds: []string{"data:/srv/:ro,nocopy"}, VolumeDriver: "local"},
			[]portlayer.Mount{{Kind: portlayer.VolumeMount, Volume: "data", Driver: "local", Target: "/srv", ReadOnly: true, NoCopy: true, Mode: "ro,nocopy", Origin: portlayer.FromSpec}}, nil},
		{"bare text is anonymous", Input{Binds: []string{"/srv"}},
			[]portlayer.Mount{{Kind: portlayer.VolumeMount, Labels: marked, Target: "/srv", Origin: portlayer.FromSpec}}, nil},
		{"options of a named volume", Input{Binds: []string{"data:/srv:ro,Capacity=2G,VolumeStore=fast"}},
			[]portlayer.Mount{{Kind: portlayer.VolumeMount, Volume: "data", Target: "/srv", ReadOnly: true, Options: map[string]string{"Capacity": "2G", "VolumeStore": "fast"},
				Mode: "ro,Capacity=2G,VolumeStore=fast", Origin: portlayer.FromSpec}}, nil},
		{"options of an anonymous volume", Input{Binds: []string{"/mnt/./pnt:nocopy,size=10000"}},
			[]portlayer.Mount{{Kind: portlayer.VolumeMount, Labels: marked, Target: "/mnt/pnt", NoCopy: true, Options: map[string]string{"size": "10000"},
				Mode: "nocopy,size=10000", Origin: portlayer.FromSpec}}, nil},
		{"the basic set, where nothing is said of modes", Input{
			Basic: Basic{ReadOnly: true, NoCopy: true}, Binds: []string{"/a", "/b:rw", "/c:size=5M", "data:/d"}, ImageVolumes: []string{"/e"},
			Mounts: []mount.Mount{{Type: mount.TypeVolume, Target: "/f"}, {Type: mount.TypeVolume, Target: "/g", VolumeOptions: &mount.VolumeOptions{NoCopy: true}}}},
			[]portlayer.Mount{
				{Kind: portlayer.VolumeMount, Labels: marked, Target: "/a", ReadOnly: true, NoCopy: true, Origin: portlayer.FromSpec},
				{Kind: portlayer.VolumeMount, Labels: marked, Target: "/b", Mode: "rw", Origin: portlayer.FromSpec},
				{Kind: portlayer.VolumeMount, Labels: marked, Target: "/c", ReadOnly: true, NoCopy: true, Options: map[string]string{"size": "5M"}, Mode: "size=5M", Origin: portlayer.FromSpec},
				{Kind: portlayer.VolumeMount, Volume: "data", Target: "/d", Origin: portlayer.FromSpec},
				{Kind: portlayer.VolumeMount, Labels: marked, Target: "/e", ReadOnly: true, NoCopy: true, Origin: portlayer.FromImage},
				{Kind: portlayer.VolumeMount, Labels: marked, Target: "/f", ReadOnly: true, NoCopy: true, Origin: portlayer.FromMount},
				{Kind: portlayer.VolumeMount, Labels: marked, Target: "/g", NoCopy: true, Origin: portlayer.FromMount},
			}, nil},
		{"everything of a structure", Input{Mounts: []mount.Mount{{Type: mount.TypeVolume, Source: "data", Target: "/srv", ReadOnly: true, VolumeOptions: &mount.VolumeOptions{
			NoCopy: true, Subpath: "a//b/", Labels: map[string]string{"a": "b"}, DriverConfig: &mount.Driver{Name: "qemu-vmdk", Options: map[string]string{"Capacity": "2GB"}}}}}},
			[]portlayer.Mount{{Kind: portlayer.VolumeMount, Volume: "data", Driver: "qemu-vmdk", Options: map[string]string{"Capacity": "2GB"}, Labels: map[string]string{"a": "b"},
				Target: "/srv", Subpath: "a/b", ReadOnly: true, NoCopy: true, Origin: portlayer.FromMount}}, nil},
		{"tmpfs structure", Input{Mounts: []mount.Mount{{Type: mount.TypeTmpfs, Target: "/t", TmpfsOptions: &mount.TmpfsOptions{SizeBytes: 65536, Mode: 0o1770, Options: [][]string{{"exec"}}}}}},
			[]portlayer.Mount{{Kind: portlayer.TmpfsMount, Target: "/t", Tmpfs: []string{"exec", "size=65536", "mode=1770"}, Origin: portlayer.FromMount}}, nil},
		{"tmpfs text", Input{Tmpfs: map[string]string{"/run/": "rw,ro,size=64m,uid=5,nosuid,rprivate"}},
			[]portlayer.Mount{{Kind: portlayer.TmpfsMount, Target: "/run", ReadOnly: true, Tmpfs: []string{"size=64m", "uid=5", "nosuid"}, Origin: portlayer.FromTmpfs}}, nil},
		{"explicit before image", Input{Binds: []string{"data:/a/"}, Tmpfs: map[string]string{"/b": ""}, Volumes: map[string]struct{}{"/c": empty, "/a": empty}, ImageVolumes: []string{"/a", "/b", "/c/", "/d"}},
			[]portlayer.Mount{
				{Kind: portlayer.VolumeMount, Volume: "data", Target: "/a", Origin: portlayer.FromSpec},
				{Kind: portlayer.TmpfsMount, Target: "/b", Origin: portlayer.FromTmpfs},
				{Kind: portlayer.VolumeMount, Labels: marked, Target: "/c", Origin: portlayer.FromImage},
				{Kind: portlayer.VolumeMount, Labels: marked, Target: "/d", Origin: portlayer.FromImage},
			}, nil},
		{"paths of the host", Input{Binds: []string{"/etc/:/x/y:ro,rslave", "/srv/a:/z"}, VolumeDriver: "qemu-vmdk", Mounts: []mount.Mount{
			{Type: mount.TypeBind, Source: "/opt/", Target: "/o", ReadOnly: true, BindOptions: &mount.BindOptions{CreateMountpoint: true, NonRecursive: true, ReadOnlyNonRecursive: true}}}},
			[]portlayer.Mount{
				{Kind: portlayer.BindMount, Source: "/opt", Make: true, Bind: portlayer.BindOptions{NonRecursive: true, WritableBelow: true}, Target: "/o", ReadOnly: true, Origin: portlayer.FromMount},
				{Kind: portlayer.BindMount, Source: "/etc", Make: true, Bind: portlayer.BindOptions{Follow: true}, Target: "/x/y", ReadOnly: true, Mode: "ro,rslave", Origin: portlayer.FromSpec},
				{Kind: portlayer.BindMount, Source: "/srv/a", Make: true, Target: "/z", Origin: portlayer.FromSpec},
			}, nil},
		{"a driver is not for structures", Input{Mounts: []mount.Mount{{Type: mount.TypeVolume, Source: "data", Target: "/a"}}, VolumeDriver: "qemu-vmdk"},
			[]portlayer.Mount{{Kind: portlayer.VolumeMount, Volume: "data", Target: "/a", Origin: portlayer.FromMount}},
			[]string{`the volume driver "qemu-vmdk" is for -v and not for --mount: the mount at /a uses the default one; add volume-driver=qemu-vmdk to it`}},
	} {
		t.Run(tt.name, func(t *testing.T) {
			got, warnings, err := Parse(tt.in, newest())
			if err != nil {
				t.Fatal(err)
			}
			if d := cmp.Diff(tt.want, got); d != "" {
				t.Error(d)
			}
			if d := cmp.Diff(tt.warnings, warnings); d != "" {
				t.Error(d)
			}
		})
	}
}

// TestRefused proves that what a container VM cannot do is refused by name.
func TestRefused(t *testing.T) {
	one := func(m mount.Mount) Input { return Input{Mounts: []mount.Mount{m}} }
	for _, tt := range []struct {
		in   Input
		v    Version
		kind fault.Kind
		text string
	}{
		{Input{Binds: []string{"/etc/:/x/y:rshared"}}, newest(), fault.Unsupported, "propagation mode rshared of host path /etc is not supported by vch"},
		{one(mount.Mount{Type: mount.TypeBind, Source: "/etc", Target: "/x", BindOptions: &mount.BindOptions{Propagation: "shared"}}), newest(), fault.Unsupported, "use rslave to see what the host mounts"},
		{one(mount.Mount{Type: mount.TypeBind, Source: "/etc", Target: "/x", BindOptions: &mount.BindOptions{ReadOnlyForceRecursive: true}}), newest(), fault.Invalid, "mount options conflict"},
		{Input{Binds: []string{"/x:ro,bogus"}}, newest(), fault.Invalid, "invalid mode: ro,bogus"},
		{Input{Binds: []string{"/x:ro,ro"}}, newest(), fault.Invalid, "invalid mode: ro,ro"},
		{Input{Binds: []string{"/x:size=1G,size=2G"}}, newest(), fault.Invalid, "invalid mode: size=1G,size=2G"},
		{Input{Binds: []string{"/x:=1G"}}, newest(), fault.Invalid, "mount path must be absolute"},
		{Input{Binds: []string{"/x:rslave"}}, newest(), fault.Invalid, "field BindOptions must not be specified"},
		{Input{Binds: []string{"/:ro"}}, newest(), fault.Invalid, "destination can't be '/'"},
		{Input{Binds: []string{"/x:"}}, newest(), fault.Invalid, "invalid volume specification: '/x:'"},
		{Input{Binds: []string{"/etc:/x:size=1G"}}, newest(), fault.Invalid, "field VolumeOptions must not be specified"},
		{one(mount.Mount{Type: mount.TypeImage, Source: "busybox", Target: "/x"}), newest(), fault.Unsupported, `mount type "image" is not supported by vch`},
		{one(mount.Mount{Type: mount.TypeVolume, Source: "data", Target: "/x", TmpfsOptions: &mount.TmpfsOptions{}}), Version{1, 41}, fault.Invalid, "field TmpfsOptions must not be specified"},
		{one(mount.Mount{Type: mount.TypeTmpfs, Target: "/x", BindOptions: &mount.BindOptions{}}), newest(), fault.Invalid, `BindOptions must not be specified on mount type "tmpfs"`},
		{one(mount.Mount{Type: mount.TypeTmpfs, Target: "/x", TmpfsOptions: &mount.TmpfsOptions{SizeBytes: -1}}), newest(), fault.Invalid, "invalid size: -1"},
		{Input{Tmpfs: map[string]string{"/x": "size=-1"}}, newest(), fault.Invalid, `invalid tmpfs option "size=-1"`},
		{Input{Tmpfs: map[string]string{"/x": "mode=9"}}, newest(), fault.Invalid, `invalid tmpfs option "mode=9"`},
		{Input{Tmpfs: map[string]string{"/x": "ro=1"}}, newest(), fault.Invalid, `invalid tmpfs option "ro=1"`},
		{Input{Tmpfs: map[string]string{"/x": "shared"}}, newest(), fault.Unsupported, `tmpfs option "shared" is not supported by vch`},
		{Input{Tmpfs: map[string]string{"/x": "", "/x/": ""}}, newest(), fault.Invalid, "Duplicate mount point: /x/"},
		{Input{Binds: []string{strings.Repeat("n", 256) + ":/x"}}, newest(), fault.Invalid, "volume name is too long"},
		{Input{Volumes: map[string]struct{}{"/": {}}}, newest(), fault.Invalid, "destination can't be '/'"},
	} {
		_, _, err := Parse(tt.in, tt.v)
		if !fault.Is(err, tt.kind) || !strings.Contains(err.Error(), tt.text) {
			t.Errorf("%+v: %v\nwant %s", tt.in, err, tt.text)
		}
	}
}

// FuzzParse proves that no text makes Parse panic, and that what it accepts can be written again and means the same.
func FuzzParse(f *testing.F) {
	for _, seed := range []string{"data:/srv", "data:/srv:ro,nocopy", "/srv", "a:/b:c:d", ":", "x:", "da:/a/../b:z", "/host:/x", "da:\\mnt", "/srv:ro", "/srv:nocopy,Capacity=2G", "da:/x:size=1,ro"} {
		f.Add(seed, "/tmp", "size=64m,mode=1777,exec", "/vol", "data")
	}
	f.Fuzz(func(t *testing.T, bind, tmpfsTarget, tmpfsOptions, bare, source string) {
		in := Input{
			Binds:        []string{bind},
			Tmpfs:        map[string]string{tmpfsTarget: tmpfsOptions},
			ImageVolumes: []string{bare},
			Mounts:       []mount.Mount{{Type: mount.TypeVolume, Source: source, Target: "/from/mount/" + source}},
		}
		first, _, err := Parse(in, newest())
		if err != nil {
			return
		}
		for _, m := range first {
			if path.Clean(m.Target) != m.Target || !path.IsAbs(m.Target) || m.Target == "/" {
				t.Fatalf("target %q", m.Target)
			}
		}
		again, _, err := Parse(printed(first), newest())
		if err != nil {
			t.Fatalf("%+v printed is %+v: %v", first, printed(first), err)
		}
		if d := cmp.Diff(first, again); d != "" {
			t.Fatal(d)
		}
	})
}

// printed is an Input that asks for exactly these mounts.
func printed(mounts []portlayer.Mount) Input {
	in := Input{Tmpfs: map[string]string{}}
	for _, m := range mounts {
		switch m.Origin {
		case portlayer.FromSpec:
			text := m.Target
			switch {
			case m.Kind == portlayer.BindMount:
				text = m.Source + ":" + m.Target + ":" + m.Mode
			case m.Volume != "":
				text = string(m.Volume) + ":" + m.Target + ":" + m.Mode
			case m.Mode != "":
				text = m.Target + ":" + m.Mode
			}
			in.Binds = append(in.Binds, text)
		case portlayer.FromTmpfs:
			options := m.Tmpfs
			if m.ReadOnly {
				options = append([]string{"ro"}, options...)
			}
			in.Tmpfs[m.Target] = strings.Join(options, ",")
		case portlayer.FromImage:
			in.ImageVolumes = append(in.ImageVolumes, m.Target)
		case portlayer.FromMount:
			in.Mounts = append(in.Mounts, mount.Mount{Type: mount.TypeVolume, Source: string(m.Volume), Target: m.Target, ReadOnly: m.ReadOnly})
		}
	}
	return in
}

func TestParseBasic(t *testing.T) {
	got, err := ParseBasic("ro,nocopy,Capacity=2G,VolumeStore=fast")
	want := Basic{ReadOnly: true, NoCopy: true, Options: map[string]string{"Capacity": "2G", "VolumeStore": "fast"}}
	if d := cmp.Diff(want, got); d != "" || err != nil {
		t.Error(d, err)
	}
	if got, err := ParseBasic(""); err != nil || got.Options != nil || got.ReadOnly || got.NoCopy {
		t.Errorf("%+v, %v", got, err)
	}
	for _, text := range []string{"bogus", "ro,ro", "rshared", "=1", ","} {
		if _, err := ParseBasic(text); !fault.Is(err, fault.Invalid) {
			t.Errorf("%q: %v", text, err)
		}
	}
}

func TestParseFrom(t *testing.T) {
	for text, want := range map[string]struct {
		ref      string
		readOnly bool
	}{
		"data": {"data", false}, "data:": {"data", false}, "data:ro": {"data", true}, "data:rw": {"data", false}, "data:ro,z": {"data", true}, "0f3:Z,cached": {"0f3", false},
	} {
		if ref, readOnly, err := ParseFrom(text); ref != want.ref || readOnly != want.readOnly || err != nil {
			t.Errorf("%q: %q, %v, %v", text, ref, readOnly, err)
		}
	}
	for text, want := range map[string]string{
		"": "volumes-from specification cannot be an empty string", "data:bogus": "invalid mode: bogus", "data:nocopy": "invalid mode: nocopy", "data:rslave": "invalid mode: rslave",
		"data:ro:rw": "invalid mode: ro:rw", "data:size=1G": "invalid mode: size=1G", "data:ro,ro": "invalid mode: ro,ro",
	} {
		if _, _, err := ParseFrom(text); !fault.Is(err, fault.Invalid) || err.Error() != want {
			t.Errorf("%q: %v", text, err)
		}
	}
}

// A container takes over another's mounts as they are, but for what it says itself; the later of two containers wins.
func TestFrom(t *testing.T) {
	vol := func(name, target string) portlayer.Mount {
		return portlayer.Mount{Kind: portlayer.VolumeMount, Volume: portlayer.VolumeName(name), Store: "default", Driver: "qemu-vmdk", Target: target}
	}
	anonymous := vol("0f", "/anon")
	anonymous.Anonymous, anonymous.Labels, anonymous.Mode, anonymous.Options = true, map[string]string{AnonymousLabel: ""}, "size=5M", map[string]string{"size": "5M"}
	writable, readOnly := vol("ww", "/w"), vol("rr", "/r")
	writable.From = "c0" // which c2 took it over from
	readOnly.ReadOnly, readOnly.Mode = true, "ro"
	tmpfs := portlayer.Mount{Kind: portlayer.TmpfsMount, Target: "/t", Tmpfs: []string{"size=1"}, Origin: portlayer.FromMount}
	hidden := portlayer.Mount{Kind: portlayer.TmpfsMount, Target: "/hidden", Origin: portlayer.FromTmpfs}
	got, _, err := Parse(Input{
		From: []From{
			{Container: "c1", Mounts: []portlayer.Mount{vol("early", "/both"), anonymous, readOnly, vol("mine", "/own")}},
			{Container: "c2", Mounts: []portlayer.Mount{vol("late", "/both"), writable, tmpfs, hidden}, ReadOnly: true},
		},
		Binds: []string{"mm:/own"}, ImageVolumes: []string{"/w", "/image"},
	}, newest())
	if err != nil {
		t.Fatal(err)
	}
	taken := func(m portlayer.Mount, from portlayer.ContainerID, readOnly bool) portlayer.Mount {
		m.From, m.Origin, m.NoCopy, m.ReadOnly, m.Mode, m.Options, m.Labels = from, portlayer.FromContainer, true, readOnly, "", nil, nil
		return m
	}
	tmpfs.ReadOnly, tmpfs.NoCopy = true, true
	want := []portlayer.Mount{
		taken(anonymous, "c1", false), taken(vol("late", "/both"), "c2", true),
		{Kind: portlayer.VolumeMount, Target: "/image", Labels: map[string]string{AnonymousLabel: ""}, Origin: portlayer.FromImage},
		{Kind: portlayer.VolumeMount, Volume: "mm", Target: "/own", Origin: portlayer.FromSpec},
		taken(readOnly, "c1", true), tmpfs, taken(writable, "c0", true),
	}
	if d := cmp.Diff(want, got); d != "" {
		t.Error(d)
	}
}
