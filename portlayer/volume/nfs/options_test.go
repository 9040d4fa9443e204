package nfs

import (
	"fmt"
	"maps"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"pgregory.net/rapid"

	"vch/internal/fault"
)

func given(n uint32) Number { return Number{n, true} }

func parsed(t *testing.T, options string) Options {
	t.Helper()
	l, err := ParseLocation("nfs://filer/export?" + options)
	if err != nil {
		t.Fatalf("%s: %v", options, err)
	}
	return l.Options
}

func TestOptions(t *testing.T) {
	used := map[string]bool{}
	for _, c := range []struct {
		text      string
		want      Options
		canonical string
	}{
		{"", Options{}, "vers=4"},
		{"vers=4&proto=tcp&port=2049&sec=sys&rw&async&hard&ac&lock&mode=755&uid=0&gid=0", Options{}, "vers=4"},
		{"nfsvers=4.2", Options{Vers: V42}, "vers=4.2"},
		{"vers=4.1", Options{Vers: V41}, "vers=4.1"},
		{"vers=3&nolock&mountport=22050", Options{Vers: V3, MountPort: 22050}, "vers=3&mountport=22050"},
		{"proto=tcp6", Options{Proto: TCP6}, "vers=4&proto=tcp6"},
		{"VERS=4&Soft", Options{Soft: true}, "vers=4&soft"},
		{"gid=4294967294&uid=1000&mode=02775", Options{UID: 1000, GID: 4294967294, Mode: given(0o2775)}, "vers=4&uid=1000&gid=4294967294&mode=2775"},
		{"mode=0", Options{Mode: given(0)}, "vers=4&mode=0000"},
		{"mode=07777", Options{Mode: given(0o7777)}, "vers=4&mode=7777"},
		{"squash=none", Options{Squash: SquashNone}, "vers=4&squash=none"},
		{"squash=root&uid=7", Options{Squash: SquashRoot, UID: 7}, "vers=4&squash=root&uid=7"},
		{"squash=all", Options{Squash: SquashAll}, "vers=4&squash=all"},
		{"ro", Options{ReadOnly: true}, "vers=4&ro"},
		{"noatime&timeo=50&soft&sync", Options{Sync: true, Soft: true, Timeo: given(50), NoAtime: true}, "vers=4&sync&soft&timeo=50&noatime"},
		{"timeo=60000&retrans=0", Options{Timeo: given(60000), Retrans: given(0)}, "vers=4&timeo=60000&retrans=0"},
		{
			"rsize=1024&wsize=1048576&nconnect=16&retrans=100",
			Options{RSize: given(1024), WSize: given(1 << 20), NConnect: given(16), Retrans: given(100)},
			"vers=4&retrans=100&rsize=1024&wsize=1048576&nconnect=16",
		},
		{"noac", Options{NoAC: true}, "vers=4&noac"},
		{"noac&sync", Options{NoAC: true, Sync: true}, "vers=4&sync&noac"},
		{"actimeo=0", Options{AcRegMin: given(0), AcRegMax: given(0), AcDirMin: given(0), AcDirMax: given(0)}, "vers=4&actimeo=0"},
		{"acregmin=5&acregmax=5&acdirmin=5&acdirmax=5&ac", Options{AcRegMin: given(5), AcRegMax: given(5), AcDirMin: given(5), AcDirMax: given(5)}, "vers=4&actimeo=5"},
		{
			"acregmin=0&acregmax=86400&acdirmin=1&acdirmax=1",
			Options{AcRegMin: given(0), AcRegMax: given(86400), AcDirMin: given(1), AcDirMax: given(1)},
			"vers=4&acregmin=0&acregmax=86400&acdirmin=1&acdirmax=1",
		},
		{"acregmin=60&acdirmax=30", Options{AcRegMin: given(60), AcDirMax: given(30)}, "vers=4&acregmin=60&acdirmax=30"},
		{"allow=retrans,Sync,soft", Options{Allow: "sync,soft,retrans"}, "vers=4&allow=sync,soft,retrans"},
		{"ro&allow=soft", Options{ReadOnly: true, Allow: "soft"}, "vers=4&ro&allow=soft"},
	} {
		if got := parsed(t, c.text); got != c.want || got.String() != c.canonical {
			t.Errorf("%s is %s, want %s: %s", c.text, got, c.canonical, cmp.Diff(c.want, got))
		}
		for item := range strings.SplitSeq(c.text, "&") {
			name, _, _ := strings.Cut(strings.ToLower(item), "=")
			used[name] = true
		}
	}
	for _, k := range Known() {
		if !used[k.Name] {
			t.Errorf("no case has option %s", k.Name)
		}
	}
}

func TestOptionsRefuse(t *testing.T) {
	type refusal struct {
		text string
		kind fault.Kind
		says string
	}
	cases := []refusal{
		{"vers=2", fault.Unsupported, "nfs option vers=2: vch speaks 4.1 and later, and 3"},
		{"vers=4.0", fault.Unsupported, "nfs option vers=4.0: vch speaks 4.1"},
		{"nfsvers=4.0", fault.Unsupported, "nfs option nfsvers=4.0: vch speaks 4.1"},
		{"vers=5", fault.Invalid, `nfs option vers: "5" is none of 4, 4.1, 4.2, 3`},
		{"vers=4&nfsvers=4", fault.Invalid, "vers and nfsvers"},
		{"minorversion=1", fault.Invalid, "nfs option minorversion is not one of vch's: say vers=4.1"},
		{"retries=3", fault.Invalid, "nfs option retries is not one of vch's: say retrans"},
		{"udp", fault.Unsupported, "nfs option udp"},
		{"rdma", fault.Unsupported, "nfs option rdma"},
		{"tcp", fault.Invalid, "say proto=tcp"},
		{"proto=udp", fault.Unsupported, "nfs option proto=udp: the guests' kernel, Debian's, has no NFS over UDP"},
		{"proto=udp6", fault.Unsupported, "proto=udp6"},
		{"proto=rdma", fault.Unsupported, "proto=rdma: container VMs have no RDMA device"},
		{"proto=sctp", fault.Invalid, `nfs option proto: "sctp" is none of tcp, tcp6`},
		{"sec=krb5", fault.Unsupported, "nfs option sec=krb5: it needs Kerberos credentials"},
		{"sec=krb5i", fault.Unsupported, "sec=krb5i"},
		{"sec=krb5p", fault.Unsupported, "sec=krb5p"},
		{"sec=none", fault.Unsupported, "sec=none: it makes everybody nobody"},
		{"sec=sys:krb5", fault.Invalid, "nfs option sec"},
		{"lock&vers=3", fault.Unsupported, "file locks of version 3 stay within one container VM"},
		{"nolock", fault.Invalid, "nfs option nolock contradicts vers=4"},
		{"nolock&vers=4.2", fault.Invalid, "nfs option nolock contradicts vers=4.2"},
		{"vers=3&lock&nolock", fault.Invalid, "lock and nolock"},
		{"mountport=20048", fault.Invalid, "nfs option mountport contradicts vers=4"},
		{"squash=root", fault.Invalid, "squash=root needs a uid other than 0"},
		{"squash=root&uid=0", fault.Invalid, "squash=root needs a uid other than 0"},
		{"squash=no_root_squash", fault.Invalid, `nfs option squash: "no_root_squash" is none of none, root, all`},
		{"sync&async", fault.Invalid, "sync and async"},
		{"hard&soft", fault.Invalid, "hard and soft"},
		{"ac&noac", fault.Invalid, "ac and noac"},
		{"ro&rw", fault.Invalid, "ro and rw"},
		{"ro&uid=0", fault.Invalid, "nfs option uid contradicts ro"},
		{"gid=5&ro", fault.Invalid, "nfs option gid contradicts ro"},
		{"ro&mode=0755", fault.Invalid, "nfs option mode contradicts ro"},
		{"ro&squash=all", fault.Invalid, "nfs option squash contradicts ro"},
		{"ro&allow=soft,mode", fault.Invalid, "nfs option mode contradicts ro"},
		{"noac&async", fault.Invalid, "nfs option async contradicts noac"},
		{"noac&actimeo=3", fault.Invalid, "nfs option actimeo contradicts noac"},
		{"noac&acdirmax=300", fault.Invalid, "nfs option acdirmax contradicts noac"},
		{"acregmin=3&noac", fault.Invalid, "nfs option acregmin contradicts noac"},
		{"actimeo=3&acregmin=3", fault.Invalid, "actimeo and acregmin"},
		{"actimeo=3&acregmax=3", fault.Invalid, "actimeo and acregmax"},
		{"actimeo=3&acdirmin=3", fault.Invalid, "actimeo and acdirmin"},
		{"actimeo=3&acdirmax=3", fault.Invalid, "actimeo and acdirmax"},
		{"acregmin=10&acregmax=9", fault.Invalid, "acregmin=10 is more than acregmax=9"},
		{"acregmin=61", fault.Invalid, "acregmin=61 is more than acregmax=60 (the default)"},
		{"acregmax=2", fault.Invalid, "acregmin=3 (the default) is more than acregmax=2"},
		{"acdirmin=61", fault.Invalid, "acdirmin=61 is more than acdirmax=60 (the default)"},
		{"acdirmax=29", fault.Invalid, "acdirmin=30 (the default) is more than acdirmax=29"},
		{"rsize=1500", fault.Invalid, "nfs option rsize: 1500 is not a multiple of 1024"},
		{"wsize=1025", fault.Invalid, "nfs option wsize: 1025 is not a multiple of 1024"},
		{"mode=10000", fault.Invalid, `nfs option mode: "10000" is not an octal number`},
		{"mode=0o755", fault.Invalid, "nfs option mode"},
		{"mode=888", fault.Invalid, "nfs option mode"},
		{"mode=-1", fault.Invalid, "nfs option mode"},
		{"soft=1", fault.Invalid, "nfs option soft takes no value"},
		{"soft=", fault.Invalid, "nfs option soft takes no value"},
		{"timeo= 50", fault.Invalid, `nfs option timeo: " 50" has spaces`},
		{"timeo=50\n", fault.Invalid, "nfs option timeo"},
		{"vers=4\u00a0", fault.Invalid, "nfs option vers"},
		{"soft,timeo=50", fault.Invalid, "separate options by &"},
		{"timeo=50,soft", fault.Invalid, "separate options by &"},
		{"soft&&sync", fault.Invalid, "an empty one"},
		{"soft&", fault.Invalid, "an empty one"},
		{"=4", fault.Invalid, `nfs option "" is not known`},
		{"atime", fault.Invalid, `nfs option "atime" is not known; the options are vers, nfsvers, proto, port,`},
		{"relatime", fault.Invalid, `nfs option "relatime" is not known`},
		{"x\ny=1", fault.Invalid, `nfs option "x\ny" is not known`},
		{"noatime&NOATIME", fault.Invalid, "nfs option noatime is there twice"},
		{"allow=soft,soft", fault.Invalid, "nfs option allow: soft is there twice"},
		{"allow=soft,", fault.Invalid, `nfs option allow: "" is no option; it takes names joined by commas, of uid, gid, mode, ro, sync,`},
		{"allow=soft,timeo=50", fault.Invalid, `nfs option allow: "timeo=50" is no option`},
		{"allow=all", fault.Invalid, `nfs option allow: "all" is no option`},
	}
	// The bounds of each number, and what is no number.
	for name, bounds := range map[string][2]uint64{
		"port": {1, 65535}, "mountport": {1, 65535}, "uid": {0, 4294967294}, "gid": {0, 4294967294}, "timeo": {1, 60000}, "retrans": {0, 100}, "rsize": {1024, 1048576},
		"wsize": {1024, 1048576}, "nconnect": {1, 16}, "acregmin": {0, 86400}, "acregmax": {0, 86400}, "acdirmin": {0, 86400}, "acdirmax": {0, 86400}, "actimeo": {0, 86400},
	} {
		says := fmt.Sprintf("is not a whole number between %d and %d", bounds[0], bounds[1])
		wrong := []string{fmt.Sprint(bounds[1] + 1), "-1", "+5", "0x10", "5s", "1e3", "1_000", "007", "4294967296", "99999999999999999999"}
		if bounds[0] > 0 {
			wrong = append(wrong, fmt.Sprint(bounds[0]-1))
		}
		for _, value := range wrong {
			cases = append(cases, refusal{name + "=" + value, fault.Invalid, fmt.Sprintf("nfs option %s: %q %s", name, value, says)})
		}
	}
	for _, k := range Known() {
		if k.Values != "" {
			cases = append(cases, refusal{k.Name, fault.Invalid, "nfs option " + k.Name + " needs a value"}, refusal{k.Name + "=", fault.Invalid, "nfs option " + k.Name + " needs a value"})
			cases = append(cases, refusal{k.Name + "=x&" + k.Name + "=x", fault.Invalid, "nfs option " + k.Name + " is there twice"})
		} else {
			cases = append(cases, refusal{k.Name + "=true", fault.Invalid, "nfs option " + k.Name + " takes no value"})
		}
		if !k.Volume {
			cases = append(cases, refusal{"allow=" + k.Name, fault.Invalid, "nfs option allow: " + k.Name + " is the store's"})
		}
	}
	for _, c := range cases {
		l, err := ParseLocation("nfs://filer/export?" + c.text)
		refused(t, c.text, err, c.kind, c.says)
		if l != (Location{}) {
			t.Errorf("%s is refused and is %+v", c.text, l)
		}
	}
}

// What a volume may set is what was decided, not what the table happens to say.
func TestAllowable(t *testing.T) {
	want := strings.Fields("uid gid mode ro sync async hard soft timeo retrans rsize wsize nconnect noatime ac noac actimeo acregmin acregmax acdirmin acdirmax")
	if diff := cmp.Diff(want, allowable()); diff != "" {
		t.Error(diff)
	}
	if o := parsed(t, "allow="+strings.Join(want, ",")); !slices.Equal(o.Allow.Names(), want) {
		t.Errorf("all of them: %s", o.Allow)
	}
	for _, k := range table() {
		if k.Volume != (k.own == "") || k.Meaning == "" {
			t.Errorf("option %s has Volume %v, its own reason %q, its meaning %q", k.Name, k.Volume, k.own, k.Meaning)
		}
	}
}

func TestForVolume(t *testing.T) {
	const times = "acregmin,acregmax,acdirmin,acdirmax,actimeo,ac,noac"
	for _, c := range []struct {
		store  string
		volume map[string]string
		want   string
	}{
		{"allow=soft", nil, "vers=4"},
		{"vers=3&sync&uid=7&squash=root&allow=retrans", map[string]string{"Retrans": "5"}, "vers=3&squash=root&uid=7&sync&retrans=5"},
		{"sync&soft&timeo=50&allow=async,hard,timeo", map[string]string{"ASYNC": "", "hard": "", "timeo": "600"}, "vers=4&timeo=600"},
		{"uid=1000&gid=1000&mode=0700&allow=uid,gid,mode", map[string]string{"uid": "0", "gid": "5", "mode": "755"}, "vers=4&gid=5"},
		{"allow=ro,uid", map[string]string{"ro": "", "uid": "5"}, "vers=4&uid=5&ro"},
		{"ro&allow=ro", map[string]string{"ro": ""}, "vers=4&ro"},
		{"ro&allow=soft", map[string]string{"soft": ""}, "vers=4&ro&soft"},
		{"actimeo=5&allow=" + times, map[string]string{"noac": ""}, "vers=4&noac"},
		{"acregmax=5&allow=" + times, map[string]string{"noac": ""}, "vers=4&noac"},
		{"noac&allow=" + times, map[string]string{"ac": "", "acregmin": "1"}, "vers=4&acregmin=1"},
		{"actimeo=5&allow=" + times, map[string]string{"acregmax": "9"}, "vers=4&acregmin=5&acregmax=9&acdirmin=5&acdirmax=5"},
		{"acregmax=5&allow=" + times, map[string]string{"actimeo": "1"}, "vers=4&actimeo=1"},
		{"allow=rsize,wsize,nconnect,noatime", map[string]string{"rsize": "4096", "wsize": "8192", "nconnect": "4", "noatime": ""}, "vers=4&rsize=4096&wsize=8192&nconnect=4&noatime"},
	} {
		store := parsed(t, c.store)
		before := store
		got, err := store.ForVolume(c.volume)
		if err != nil || got.String() != c.want || got.Allow != "" {
			t.Errorf("%v in %s is %s (%v), want %s", c.volume, c.store, got, err, c.want)
		}
		if store != before {
			t.Errorf("%v in %s changed the store to %s", c.volume, c.store, store)
		}
	}
}

func TestForVolumeRefuses(t *testing.T) {
	for _, c := range []struct {
		store  string
		volume map[string]string
		kind   fault.Kind
		says   string
	}{
		{"", map[string]string{"retrans": "5"}, fault.Denied, "option retrans is not allowed for volumes of this store; its administrator can allow it: ?allow=retrans"},
		{"allow=wsize,sync", map[string]string{"Retrans": "5"}, fault.Denied, "option retrans is not allowed for volumes of this store; its administrator can allow it: ?allow=sync,retrans,wsize"},
		{"allow=sync", map[string]string{"async": ""}, fault.Denied, "option async is not allowed"},
		{"", map[string]string{"ro": ""}, fault.Denied, "option ro is not allowed"},
		{"", map[string]string{"bogus": "1"}, fault.Invalid, `nfs option "bogus" is not known; this store lets its volumes set none`},
		{"allow=soft,sync", map[string]string{"bogus": "1"}, fault.Invalid, `nfs option "bogus" is not known; this store lets its volumes set sync, soft`},
		{"allow=retrans", map[string]string{"retries": "1"}, fault.Invalid, "say retrans"},
		{"ro", map[string]string{"rw": ""}, fault.Invalid, "option rw is the store's, not a volume's: a volume can be made ro, never rw"},
		{"", map[string]string{"vers": "3"}, fault.Invalid, "option vers is the store's"},
		{"vers=3", map[string]string{"nolock": ""}, fault.Invalid, "option nolock is the store's"},
		{"", map[string]string{"squash": "none"}, fault.Invalid, "option squash is the store's"},
		{"allow=soft", map[string]string{"allow": "sync"}, fault.Invalid, "option allow is the store's"},
		{"ro&allow=soft", map[string]string{"uid": "1"}, fault.Invalid, "option uid is for new volumes, and this store is ro"},
		{"allow=soft", map[string]string{"soft": "true"}, fault.Invalid, "nfs option soft takes no value"},
		{"allow=timeo", map[string]string{"timeo": ""}, fault.Invalid, "nfs option timeo needs a value"},
		{"allow=timeo", map[string]string{"timeo": "0"}, fault.Invalid, `nfs option timeo: "0"`},
		{"allow=timeo", map[string]string{"timeo": "5,sec=none"}, fault.Invalid, "nfs option timeo"},
		{"allow=timeo", map[string]string{"timeo": "5\n"}, fault.Invalid, "nfs option timeo"},
		{"allow=sync", map[string]string{"sync": "", "SYNC": ""}, fault.Invalid, "nfs option sync is there twice"},
		{"allow=sync,async", map[string]string{"sync": "", "async": ""}, fault.Invalid, "sync and async"},
		{"squash=root&uid=7&allow=uid", map[string]string{"uid": "0"}, fault.Invalid, "squash=root needs a uid other than 0"},
		{"noac&allow=acregmin", map[string]string{"acregmin": "1"}, fault.Invalid, "nfs option acregmin contradicts noac"},
		{"noac&allow=async", map[string]string{"async": ""}, fault.Invalid, "nfs option async contradicts noac"},
		{"acregmax=5&allow=acregmin", map[string]string{"acregmin": "6"}, fault.Invalid, "acregmin=6 is more than acregmax=5"},
		{"allow=rsize", map[string]string{"rsize": "1025"}, fault.Invalid, "nfs option rsize"},
	} {
		got, err := parsed(t, c.store).ForVolume(c.volume)
		refused(t, fmt.Sprintf("%v in %s", c.volume, c.store), err, c.kind, c.says)
		if got != (Options{}) {
			t.Errorf("%v in %s is refused and is %s", c.volume, c.store, got)
		}
	}
}

func TestMount(t *testing.T) {
	for _, c := range []struct{ text, data, flags string }{
		{"", "tcp,hard,sec=sys", ""},
		{"vers=3&mountport=5&port=6&uid=1&mode=0700&squash=none&allow=soft", "tcp,hard,sec=sys,nolock", ""},
		{"proto=tcp6&vers=4.2&lock", "proto=tcp6,hard,sec=sys", ""},
		{"sync&noatime&ro", "tcp,hard,sec=sys", "ro,sync,noatime"},
		{"nconnect=4&wsize=2048&rsize=1024&retrans=0&timeo=50&soft&actimeo=0", "tcp,soft,sec=sys,timeo=50,retrans=0,rsize=1024,wsize=2048,nconnect=4,actimeo=0", ""},
		{"noac", "tcp,hard,sec=sys,noac", ""},
		{"acdirmax=90&acdirmin=70&acregmax=61&acregmin=1", "tcp,hard,sec=sys,acregmin=1,acregmax=61,acdirmin=70,acdirmax=90", ""},
	} {
		data, flags := parsed(t, c.text).Mount()
		if strings.Join(data, ",") != c.data || strings.Join(flags, ",") != c.flags {
			t.Errorf("%s is mounted with %v and %v, want %s and %s", c.text, data, flags, c.data, c.flags)
		}
	}
}

func TestShown(t *testing.T) {
	for _, c := range []struct{ text, want string }{
		{"", "ac=true async=true gid=0 hard=true lock=true mode=0755 proto=tcp rw=true sec=sys uid=0 vers=4"},
		{
			"vers=3&mountport=5&soft&timeo=50&sync&ro&noatime&allow=timeo,soft&actimeo=3",
			"ac=true actimeo=3 allow=soft,timeo gid=0 mode=0755 mountport=5 noatime=true nolock=true proto=tcp ro=true sec=sys soft=true sync=true timeo=50 uid=0 vers=3",
		},
		{"noac&uid=7&gid=8&mode=1777&squash=root&proto=tcp6", "gid=8 hard=true lock=true mode=1777 noac=true proto=tcp6 rw=true sec=sys squash=root sync=true uid=7 vers=4"},
	} {
		if got := strings.Join(parsed(t, c.text).Shown(), " "); got != c.want {
			t.Errorf("%s shows\n%s, want\n%s", c.text, got, c.want)
		}
	}
}

// storeOptions draws any Options that a store can have, by its fields.
func storeOptions() *rapid.Generator[Options] {
	return rapid.Custom(func(t *rapid.T) Options {
		number := func(name string, least, most, step uint32) Number {
			if !rapid.Bool().Draw(t, name+" is given") {
				return Number{}
			}
			return given(rapid.Uint32Range(least/step, most/step).Draw(t, name) * step)
		}
		flag := func(name string) bool { return rapid.Bool().Draw(t, name) }
		o := Options{
			Vers: rapid.SampledFrom([]Version{V4, V3, V41, V42}).Draw(t, "vers"), Proto: rapid.SampledFrom([]Proto{TCP, TCP6}).Draw(t, "proto"),
			Sync: flag("sync"), Soft: flag("soft"), NoAtime: flag("noatime"), NoAC: flag("noac"), ReadOnly: flag("ro"),
			Timeo: number("timeo", 1, 60000, 1), Retrans: number("retrans", 0, 100, 1), NConnect: number("nconnect", 1, 16, 1),
			RSize: number("rsize", 1024, 1<<20, 1024), WSize: number("wsize", 1024, 1<<20, 1024),
		}
		if o.Vers == V3 {
			o.MountPort = uint16(number("mountport", 1, 65535, 1).N)
		}
		may := allowable()
		if o.ReadOnly {
			may = slices.DeleteFunc(may, func(name string) bool { return name == "uid" || name == "gid" || name == "mode" })
		} else {
			o.UID, o.GID = number("uid", 0, 1<<32-2, 1).N, number("gid", 0, 1<<32-2, 1).N
			if o.Mode = number("mode", 0, 0o7777, 1); o.Mode.N == defaultMode {
				o.Mode = Number{}
			}
			o.Squash = rapid.SampledFrom([]Squash{SquashUnsaid, SquashNone, SquashRoot, SquashAll}).Draw(t, "squash")
			if o.Squash == SquashRoot {
				o.UID = max(1, o.UID)
			}
		}
		switch {
		case o.NoAC:
		case flag("actimeo"):
			o.setTimes(number("actimeo", 0, 86400, 1))
		default:
			o.AcRegMin, o.AcRegMax = number("acregmin", 0, 60, 1), number("acregmax", 60, 86400, 1)
			o.AcDirMin, o.AcDirMax = number("acdirmin", 0, 60, 1), number("acdirmax", 60, 86400, 1)
		}
		o.Allow = allowed(rapid.SliceOfDistinct(rapid.SampledFrom(may), rapid.ID).Draw(t, "allow"))
		return o
	})
}

// A volume that sets one thing gets that and nothing else, as a store that says so itself has it; and only where the store allows it.
func TestVolumeSetsWhatIsAllowed(t *testing.T) {
	values := map[string]string{"uid": "5", "gid": "5", "mode": "0711", "timeo": "5", "retrans": "5", "rsize": "2048", "wsize": "2048", "nconnect": "5", "noatime": "", "sync": "", "soft": "", "ro": ""}
	rapid.Check(t, func(t *rapid.T) {
		store := storeOptions().Draw(t, "store")
		name := rapid.SampledFrom(slices.Sorted(maps.Keys(values))).Draw(t, "option")
		got, err := store.ForVolume(map[string]string{strings.ToUpper(name): values[name]})
		if !store.Allow.Has(name) {
			if err == nil {
				t.Fatalf("%s is set, %s does not allow it", name, store)
			}
			return
		}
		if err != nil {
			t.Fatalf("%s in %s: %v", name, store, err)
		}
		want := slices.DeleteFunc(strings.Split(store.String(), "&"), func(item string) bool {
			key, _, _ := strings.Cut(item, "=")
			return key == name || key == "allow"
		})
		item := name
		if values[name] != "" {
			item += "=" + values[name]
		}
		want = append(want, item)
		have := strings.Split(got.String(), "&")
		slices.Sort(want)
		slices.Sort(have)
		if !slices.Equal(have, want) {
			t.Fatalf("%s in %s is %s, want %v", item, store, got, want)
		}
	})
}
