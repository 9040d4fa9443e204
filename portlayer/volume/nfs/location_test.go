package nfs

import (
	"strings"
	"testing"

	"pgregory.net/rapid"

	"vch/internal/fault"
)

func TestParseLocation(t *testing.T) {
	for _, c := range []struct {
		text      string
		host      string
		port      int
		path      string
		canonical string
	}{
		{"nfs://filer/export", "filer", 2049, "/export", "nfs://filer/export?vers=4"},
		{"NFS://Filer.Example.COM./export/?", "filer.example.com.", 2049, "/export", "nfs://filer.example.com./export?vers=4"},
		{"nfs://filer/", "filer", 2049, "/", "nfs://filer/?vers=4"},
		{"nfs://filer:2049//a/./b//", "filer", 2049, "/a/b", "nfs://filer/a/b?vers=4"},
		{"nfs://filer:65535/export", "filer", 65535, "/export", "nfs://filer:65535/export?vers=4"},
		{"nfs://filer/export?port=1", "filer", 1, "/export", "nfs://filer:1/export?vers=4"},
		{"nfs://filer:22049/export?port=22049", "filer", 22049, "/export", "nfs://filer:22049/export?vers=4"},
		{"nfs://filer/export?port=2049", "filer", 2049, "/export", "nfs://filer/export?vers=4"},
		{"nfs://filer/my%20data/50%25/a%23b/c%3fd/e:f,g", "filer", 2049, "/my data/50%/a#b/c?d/e:f,g", "nfs://filer/my%20data/50%25/a%23b/c%3Fd/e:f,g?vers=4"},
		{"nfs://filer/my data/ä", "filer", 2049, "/my data/ä", "nfs://filer/my%20data/%C3%A4?vers=4"},
		{"nfs://filer/a..b/...", "filer", 2049, "/a..b/...", "nfs://filer/a..b/...?vers=4"},
		{"nfs://filer/what?soft", "filer", 2049, "/what", "nfs://filer/what?vers=4&soft"},
		{"nfs://192.0.2.7/export", "192.0.2.7", 2049, "/export", "nfs://192.0.2.7/export?vers=4"},
		{"nfs://[2001:DB8:0::7]/export", "2001:db8::7", 2049, "/export", "nfs://[2001:db8::7]/export?vers=4"},
		{"nfs://[2001:db8::7]:111/export?proto=tcp6", "2001:db8::7", 111, "/export", "nfs://[2001:db8::7]:111/export?vers=4&proto=tcp6"},
		{"nfs://[::ffff:192.0.2.7]/export", "192.0.2.7", 2049, "/export", "nfs://192.0.2.7/export?vers=4"},
		{"nfs://3com-7.my_lab/export", "3com-7.my_lab", 2049, "/export", "nfs://3com-7.my_lab/export?vers=4"},
	} {
		l, err := ParseLocation(c.text)
		if err != nil {
			t.Errorf("%s: %v", c.text, err)
			continue
		}
		if l.Host != c.host || l.Port != c.port || l.Path != c.path {
			t.Errorf("%s is %q %d %q, want %q %d %q", c.text, l.Host, l.Port, l.Path, c.host, c.port, c.path)
		}
		if l.String() != c.canonical {
			t.Errorf("%s is written %s, want %s", c.text, l, c.canonical)
		}
	}
}

func TestParseLocationRefuses(t *testing.T) {
	for _, c := range []struct {
		text string
		kind fault.Kind
		says string
	}{
		{"", fault.Invalid, "write nfs://HOST[:PORT]/EXPORT?OPTIONS"},
		{"/srv/volumes", fault.Invalid, `"/srv/volumes" is not the place of an NFS export`},
		{"filer:/export", fault.Invalid, "write nfs://HOST"},
		{"nfs:/filer/export", fault.Invalid, "write nfs://HOST"},
		{"nfs:///export", fault.Invalid, "names no server"},
		{"nfs://:2049/export", fault.Invalid, "names no server"},
		{"nfs://", fault.Invalid, "names no server"},
		{"nfs://me@filer/export", fault.Invalid, "no user name"},
		{"nfs://me:secret@filer/export#x", fault.Invalid, "options uid and gid"},
		{"nfs://filer/export#part", fault.Invalid, "write %23"},
		{"nfs://filer/export?soft#part", fault.Invalid, "write %23"},
		{"nfs://filer", fault.Invalid, "name the exported directory"},
		{"nfs://filer?soft", fault.Invalid, "name the exported directory"},
		{"nfs://filer:2049", fault.Invalid, "name the exported directory"},
		{"nfs://filer:export", fault.Invalid, `"export" is not a port`},
		{"nfs://filer:/export", fault.Invalid, "the port of NFS server filer is empty"},
		{"nfs://filer:0/export", fault.Invalid, `"0" is not a port`},
		{"nfs://filer:65536/export", fault.Invalid, `"65536" is not a port`},
		{"nfs://filer:+1/export", fault.Invalid, `"+1" is not a port`},
		{"nfs://filer:0111/export", fault.Invalid, `"0111" is not a port`},
		{"nfs://filer:99999999999/export", fault.Invalid, "is not a port"},
		{"nfs://filer:111/export?port=112", fault.Invalid, "port=112 contradicts port 111 beside host filer"},
		{"nfs://filer:2049/export?port=1", fault.Invalid, "port=1 contradicts port 2049"},
		{"nfs://2001:db8::7/export", fault.Invalid, "in brackets"},
		{"nfs://[2001:db8::7/export", fault.Invalid, "not closed"},
		{"nfs://[2001:db8::7]2049/export", fault.Invalid, `"2049" follows`},
		{"nfs://[2001:db8::7]:/export", fault.Invalid, "port of NFS server 2001:db8::7 is empty"},
		{"nfs://[192.0.2.7]/export", fault.Invalid, "not an IPv6 address"},
		{"nfs://[]/export", fault.Invalid, "not an IPv6 address"},
		{"nfs://[filer]/export", fault.Invalid, "[filer] is not an IPv6 address"},
		{"nfs://[fe80::1%25eth0]/export", fault.Unsupported, "zone"},
		{"nfs://[::]/export", fault.Invalid, "NFS server :: is no machine's own"},
		{"nfs://0.0.0.0/export", fault.Invalid, "0.0.0.0 is no machine's own"},
		{"nfs://224.0.0.1/export", fault.Invalid, "224.0.0.1 is no machine's own"},
		{"nfs://255.255.255.255/export", fault.Invalid, "is no machine's own"},
		{"nfs://192.0.2.256/export", fault.Invalid, "neither a name nor an IPv4 address"},
		{"nfs://192.0.2/export", fault.Invalid, "neither a name nor an IPv4 address"},
		{"nfs://192.0.2.07/export", fault.Invalid, "leading zeros"},
		{"nfs://192.0.2.7/export?proto=tcp6", fault.Invalid, "proto=tcp6 contradicts host 192.0.2.7"},
		{"nfs://[::ffff:192.0.2.7]/export?proto=tcp6", fault.Invalid, "proto=tcp6 contradicts host 192.0.2.7"},
		{"nfs://fi ler/export", fault.Invalid, `"fi ler" is not the name of a host`},
		{"nfs://fi\x00ler/export", fault.Invalid, "is not the name of a host"},
		{"nfs://a,b/export", fault.Invalid, `"a,b" is not the name of a host`},
		{"nfs://-filer/export", fault.Invalid, "is not the name of a host"},
		{"nfs://filer-/export", fault.Invalid, "is not the name of a host"},
		{"nfs://filer..lab/export", fault.Invalid, "is not the name of a host"},
		{"nfs://./export", fault.Invalid, "is not the name of a host"},
		{"nfs://müller/export", fault.Invalid, "xn--"},
		{"nfs://fil%65r/export", fault.Invalid, "is not the name of a host"},
		{"nfs://" + strings.Repeat("a", 64) + "/export", fault.Invalid, "at most 63"},
		{"nfs://" + strings.Repeat("abc.", 63) + "de/export", fault.Invalid, "longer than a name of 253 bytes"},
		{"nfs://filer/../etc", fault.Invalid, "goes up with .."},
		{"nfs://filer/a/..", fault.Invalid, "goes up with .."},
		{"nfs://filer/a/%2e%2E/b", fault.Invalid, "goes up with .."},
		{"nfs://filer/a%2f..%2fb", fault.Invalid, "goes up with .."},
		{"nfs://filer/a%00b", fault.Invalid, "control characters"},
		{"nfs://filer/a%0Ab", fault.Invalid, "control characters"},
		{"nfs://filer/a\nb", fault.Invalid, "control characters"},
		{"nfs://filer/a%7f", fault.Invalid, "control characters"},
		{"nfs://filer/a%FF", fault.Invalid, "not UTF-8"},
		{"nfs://filer/100%", fault.Invalid, "write %25"},
		{"nfs://filer/%zz", fault.Invalid, "write %25"},
		{"nfs://filer/" + strings.Repeat("a", maxPath), fault.Invalid, "longer than 760 bytes"},
		{"nfs://filer/export?softer", fault.Invalid, `nfs option "softer"`},
	} {
		l, err := ParseLocation(c.text)
		refused(t, c.text, err, c.kind, c.says)
		if l != (Location{}) {
			t.Errorf("%q is refused and is %+v", c.text, l)
		}
		if err != nil && strings.Contains(err.Error(), "secret") {
			t.Errorf("%q: a password is in %q", c.text, err)
		}
	}
	if l, err := ParseLocation("nfs://filer/" + strings.Repeat("a", maxPath-1)); err != nil || len(l.Path) != maxPath {
		t.Errorf("the longest path: %v", err)
	}
}

// refused checks the kind of a refusal, and that its sentence has what it must, on one line.
func refused(t *testing.T, what string, err error, kind fault.Kind, says string) {
	t.Helper()
	switch {
	case err == nil:
		t.Errorf("%q is taken, want %v: %s", what, kind, says)
	case !fault.Is(err, kind) || !strings.Contains(err.Error(), says):
		t.Errorf("%q: %v: %v; want %v: %s", what, fault.KindOf(err), err, kind, says)
	case strings.ContainsAny(err.Error(), "\n\x00"):
		t.Errorf("%q: %q is not one line of text", what, err)
	}
}

// locations draws any Location that a text can give, by its fields, not by a text.
func locations() *rapid.Generator[Location] {
	return rapid.Custom(func(t *rapid.T) Location {
		l := Location{
			Host:    rapid.OneOf(rapid.SampledFrom([]string{"192.0.2.7", "2001:db8::7", "::1", "filer."}), rapid.StringMatching(`[a-z]([a-z0-9_-]{0,8}[a-z])?(\.[a-z0-9]{0,3}[a-z])?`)).Draw(t, "host"),
			Port:    rapid.OneOf(rapid.Just(DefaultPort), rapid.IntRange(1, 65535)).Draw(t, "port"),
			Options: storeOptions().Draw(t, "options"),
		}
		if l.Host == "192.0.2.7" {
			l.Options.Proto = TCP
		}
		parts := rapid.SliceOfN(rapid.StringOfN(rapid.RuneFrom([]rune("aB0.-_~ %#?&=:;,+@!$'()*[]\\\"<>|^`{}äß漢🙂")), 1, 8, -1).
			Filter(func(s string) bool { return s != "." && s != ".." }), 0, 4).Draw(t, "path")
		l.Path = "/" + strings.Join(parts, "/")
		return l
	})
}

// The canonical text of a Location is that Location, and no other has it.
func TestLocationRoundTrip(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		l := locations().Draw(t, "location")
		got, err := ParseLocation(l.String())
		if err != nil {
			t.Fatalf("%s: %v", l, err)
		}
		if got != l {
			t.Fatalf("%s is read as\n%+v, was\n%+v", l, got, l)
		}
	})
}

// Whatever is taken has one canonical text, names an absolute directory, and gives mount data that stay apart; whatever is refused is so with a kind and a sentence.
func FuzzParseLocation(f *testing.F) {
	for _, text := range []string{
		"nfs://filer/export", "nfs://[2001:db8::7]:22049/a%20b?vers=3&mountport=22050&nolock", "nfs://192.0.2.7/?soft&timeo=50&allow=sync,retrans",
		"nfs://me:pw@filer/", "nfs://filer:x/..#", "nfs://filer/e?ro&noac&rsize=1024&squash=root&uid=7", "nfs://filer/e?allow=ACTIMEO&actimeo=0&proto=tcp6", "nfs://filer/%00?=&&,",
	} {
		f.Add(text)
	}
	f.Fuzz(func(t *testing.T, text string) {
		l, err := ParseLocation(text)
		if err != nil {
			if k := fault.KindOf(err); k != fault.Invalid && k != fault.Unsupported || l != (Location{}) {
				t.Fatalf("%q: %v %v and %+v", text, k, err, l)
			}
			return
		}
		if again, err := ParseLocation(l.String()); err != nil || again != l || again.String() != l.String() {
			t.Fatalf("%q is %+v, written %s, read again %+v (%v)", text, l, l, again, err)
		}
		if !strings.HasPrefix(l.Path, "/") || strings.Contains("/"+l.Path+"/", "/../") || strings.ContainsAny(l.Path+l.Host, "\x00\n") || l.Host == "" || l.Port < 1 || l.Port > 65535 {
			t.Fatalf("%q is %+v", text, l)
		}
		words, flags := l.Options.Mount()
		for _, word := range append(words, flags...) {
			if word == "" || strings.ContainsAny(word, ", \n\x00") {
				t.Fatalf("%q has mount data %q", text, word)
			}
		}
		if v, err := l.Options.ForVolume(nil); err != nil || v.Allow != "" {
			t.Fatalf("%q: a volume that says nothing: %+v, %v", text, v, err)
		}
	})
}
