package image

import (
	"archive/tar"
	"bytes"
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"

	"vch/internal/fault"
	"vch/portlayer"
)

// listing is every name on a disk as "type path [=content|->target]", sorted, read back by debugfs and not by anything of ours.
func listing(t *testing.T, disk string) []string {
	t.Helper()
	var out []string
	var walk func(dir string)
	walk = func(dir string) {
		for _, line := range strings.Split(debugfs(t, disk, fmt.Sprintf("ls -p %q", dir)), "\n") {
			f := strings.Split(line, "/") // /inode/mode/uid/gid/name/size/
			if len(f) < 7 || f[5] == "" || f[5] == "." || f[5] == ".." {
				continue
			}
			p := strings.TrimSuffix(dir, "/") + "/" + f[5]
			switch f[2][:2] {
			case "04":
				out = append(out, "d "+p)
				walk(p)
			case "10":
				out = append(out, "f "+p+" ="+debugfs(t, disk, fmt.Sprintf("cat %q", p)))
			case "12":
				_, target, _ := strings.Cut(debugfs(t, disk, fmt.Sprintf("stat %q", p)), "Fast link dest: ")
				out = append(out, "l "+p+" ->"+strings.Trim(strings.TrimSpace(target), `"`))
			default:
				out = append(out, "s "+p)
			}
		}
	}
	walk("/")
	slices.Sort(out)
	return out
}

// What lies over what: each case is a stack of layers and the tree that containers must see.
func TestFlatten(t *testing.T) {
	link := func(name, to string) ent { return ent{name: name, typ: tar.TypeLink, link: to} }
	sym := func(name, to string) ent { return ent{name: name, typ: tar.TypeSymlink, link: to} }
	file := func(name, body string) ent { return ent{name: name, body: body} }
	cases := []struct {
		name   string
		layers [][]ent
		want   string
	}{
		{"no layers", nil, ""},
		{"upper file wins", [][]ent{{file("a", "1")}, {file("a", "2")}}, "f /a =2"},
		{"same layer, later wins", [][]ent{{file("a", "1"), file("a", "2")}}, "f /a =2"},
		{"whiteout", [][]ent{{file("d/a", "1"), file("d/b", "1")}, {file("d/.wh.a", "")}}, "d /d|f /d/b =1"},
		{"whiteout of a tree", [][]ent{{file("d/x/a", "1")}, {file("d/.wh.x", "")}}, "d /d"},
		{"whiteout of nothing there", [][]ent{{file("a", "1")}, {file("no/.wh.b", "")}}, "f /a =1"},
		{"whiteout leaves its own layer alone", [][]ent{{file("d/old", "1")}, {file("d/new", "2"), file(".wh.d", "")}}, "d /d|f /d/new =2"},
		{"whiteout before its own layer", [][]ent{{file("d/old", "1")}, {file(".wh.d", ""), file("d/new", "2")}}, "d /d|f /d/new =2"},
		{"opaque", [][]ent{{file("d/a", "1"), file("d/s/b", "1"), file("o", "1")}, {{name: "d/"}, file("d/.wh..wh..opq", ""), file("d/c", "2")}}, "d /d|f /d/c =2|f /o =1"},
		{"opaque after its own layer", [][]ent{{file("d/a", "1")}, {file("d/c", "2"), file("d/.wh..wh..opq", "")}}, "d /d|f /d/c =2"},
		{"opaque root", [][]ent{{file("a", "1")}, {file(".wh..wh..opq", ""), file("b", "2")}}, "f /b =2"},
		{"aufs leftovers", [][]ent{{{name: ".wh..wh.plnk/"}, file(".wh..wh.plnk/1.2", "x"), file(".wh..wh.aufs", ""), file("a", "1")}}, "f /a =1"},
		{"directory by file", [][]ent{{file("d/a", "1")}, {file("d", "2")}}, "f /d =2"},
		{"file by directory", [][]ent{{file("d", "1")}, {{name: "d/"}, file("d/a", "2")}}, "d /d|f /d/a =2"},
		{"file by implied directory", [][]ent{{file("d", "1")}, {file("d/a", "2")}}, "d /d|f /d/a =2"},
		{"symlink by directory", [][]ent{{{name: "x/"}, sym("d", "x")}, {{name: "d/"}, file("d/a", "2")}}, "d /d|d /x|f /d/a =2"},
		{"directory stays below directory", [][]ent{{file("d/a", "1")}, {{name: "d/", mode: 0o700}}}, "d /d|f /d/a =1"},
		{"through a symlink", [][]ent{{{name: "usr/bin/"}, sym("bin", "usr/bin")}, {file("bin/a", "2")}}, "d /usr|d /usr/bin|f /usr/bin/a =2|l /bin ->usr/bin"},
		{"through an absolute symlink, inside the root", [][]ent{{sym("bin", "/usr/bin")}, {file("bin/a", "2")}}, "d /usr|d /usr/bin|f /usr/bin/a =2|l /bin ->/usr/bin"},
		{"through a symlink that climbs", [][]ent{{sym("bin", "../../x")}, {file("bin/a", "2")}}, "d /x|f /x/a =2|l /bin ->../../x"},
		{"hard link", [][]ent{{file("a", "1"), link("b", "a")}}, "f /a =1|f /b =1"},
		{"hard link into a lower layer", [][]ent{{file("a", "1")}, {link("b", "/a")}}, "f /a =1|f /b =1"},
		{"hard link outlives its target", [][]ent{{file("a", "1"), link("b", "a")}, {file(".wh.a", "")}}, "f /b =1"},
		{"hard link's target replaced", [][]ent{{file("a", "1"), link("b", "a")}, {file("a", "2")}}, "f /a =2|f /b =1"},
		{"hard link to itself", [][]ent{{file("a", "1"), link("a", "a")}}, "f /a =1"},
		{"hard link over a directory", [][]ent{{file("a", "1"), file("d/x", "1")}, {link("d", "a")}}, "f /a =1|f /d =1"},
		{"hard link to a symlink", [][]ent{{sym("s", "nowhere"), link("b", "s")}}, "l /b ->nowhere|l /s ->nowhere"},
		{"empty files linked", [][]ent{{file("a", ""), link("b", "a")}}, "f /a =|f /b ="},
		{"absolute and untidy names", [][]ent{{file("/etc//x/./y", "1"), file("./z", "2"), file("a/../b", "3")}}, "d /etc|d /etc/x|f /b =3|f /etc/x/y =1|f /z =2"},
		{"lost+found of the image's own", [][]ent{{file("lost+found/x", "1")}}, "d /lost+found|f /lost+found/x =1"},
		{"long names", [][]ent{{file(strings.Repeat("d/", 12)+strings.Repeat("n", 200), "1")}}, ""},
		{"devices and fifos", [][]ent{{{name: "null", typ: tar.TypeChar, header: func(h *tar.Header) { h.Devmajor, h.Devminor = 1, 3 }}, {name: "p", typ: tar.TypeFifo}}}, "s /null|s /p"},
	}
	for _, c := range cases {
		t.Run(c.name, func(t *testing.T) {
			t.Parallel()
			b := newBox(t)
			var layers [][]byte
			for _, l := range c.layers {
				layers = append(layers, makeTar(t, l...))
			}
			disk := b.diskOf(b.load(savedImage{layers: layers})[0].ID)
			fsck(t, disk)
			got := strings.Join(listing(t, disk), "|")
			if c.name == "long names" {
				if !strings.HasSuffix(got, "/"+strings.Repeat("n", 200)+" =1") {
					t.Errorf("got %s", got)
				}
				return
			}
			if got != c.want {
				t.Errorf("got  %s\nwant %s", got, c.want)
			}
		})
	}
}

// What is dangerous or makes no sense is refused with the entry's name, and leaves nothing.
func TestFlattenRefuses(t *testing.T) {
	loop := ent{name: "l", typ: tar.TypeSymlink, link: "l"}
	for _, c := range []struct {
		name string
		ents []ent
		kind fault.Kind
		text string
	}{
		{"climbs", []ent{{name: "../x"}}, fault.Invalid, `"../x" lies outside`},
		{"climbs further in", []ent{{name: "a/../../x"}}, fault.Invalid, "lies outside"},
		{"link climbs", []ent{{name: "a", typ: tar.TypeLink, link: "../../etc/passwd"}}, fault.Invalid, "lies outside"},
		{"link to nothing", []ent{{name: "a", typ: tar.TypeLink, link: "b"}}, fault.Invalid, `hard link to "b", which is not there`},
		{"link to a directory", []ent{{name: "d/"}, {name: "a", typ: tar.TypeLink, link: "d"}}, fault.Invalid, "hard link to a directory"},
		{"symlink loop", []ent{loop, {name: "l/x"}}, fault.Invalid, "more than 40 symlinks"},
		{"whiteout of the parent", []ent{{name: ".wh..."}}, fault.Invalid, "whiteout of nothing"},
		{"long part", []ent{{name: strings.Repeat("n", 256)}}, fault.Invalid, "longer than 255"},
		{"impossible device", []ent{{name: "x", typ: tar.TypeChar, header: func(h *tar.Header) { h.Devmajor = 5000 }}}, fault.Invalid, "device 5000:0"},
		{"root is a file", []ent{{name: "./", typ: tar.TypeSymlink, link: "x"}}, fault.Invalid, "replace the root"},
	} {
		t.Run(c.name, func(t *testing.T) {
			b := newBox(t)
			_, err := b.Load(t.Context(), bytes.NewReader(dockerSave(t, savedImage{layers: [][]byte{makeTar(t, c.ents...)}})), nil)
			wantKind(t, err, c.kind, c.text)
			if n := b.keysHere(); n != 0 {
				t.Errorf("%d layers and disks are left", n)
			}
		})
	}
}

// Owner, mode, times, attributes and link counts come through, and a directory's are those of the topmost layer that has it.
func TestFlattenMetadata(t *testing.T) {
	when := time.Date(2021, 5, 6, 7, 8, 9, 123456789, time.UTC)
	acl := "\x02\x00\x00\x00" + "\x01\x00\x06\x00\xff\xff\xff\xff" + "\x02\x00\x04\x00\xe8\x03\x00\x00" + "\x04\x00\x04\x00\xff\xff\xff\xff" + "\x10\x00\x04\x00\xff\xff\xff\xff" + "\x20\x00\x04\x00\xff\xff\xff\xff"
	meta := func(h *tar.Header) {
		h.Format, h.ModTime = tar.FormatPAX, when
		h.PAXRecords = map[string]string{
			paxXattr + "security.capability":        "\x01\x00\x00\x02\x00\x04\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00",
			paxXattr + "user.note":                  "hello",
			paxXattr + "trusted.overlay.opaque":     "y",
			paxXattr + "com.example.odd":            "x",
			paxXattr + "user.toolong":               strings.Repeat("x", 5000),
			paxXattr + "system.posix_acl_access":    acl,
			paxXattr + "user.second":                strings.Repeat("y", 300),
			paxXattr + "user.with\x20space":         "z",
			"SCHILY.other":                          "no",
			paxXattr + "trusted.mine":               "t",
			paxXattr + "user.empty-ish-but-not-too": ".",
		}
	}
	b := newBox(t)
	img := b.load(savedImage{layers: [][]byte{
		makeTar(t, ent{name: "./", mode: 0o711, uid: 7}, ent{name: "d/", mode: 0o700, uid: 1}, ent{name: "d/f", body: "body", mode: 0o4755, uid: 100000, header: meta}),
		makeTar(t, ent{name: "d/", mode: 0o1777, uid: 42}, ent{name: "g", typ: tar.TypeLink, link: "d/f"}),
		makeTar(t, ent{name: "old", header: func(h *tar.Header) { h.Format, h.ModTime = tar.FormatGNU, time.Unix(-1e9, 0) }},
			ent{name: "far", header: func(h *tar.Header) { h.Format, h.ModTime = tar.FormatPAX, time.Date(2300, 1, 1, 0, 0, 0, 0, time.UTC) }},
			ent{name: "long", typ: tar.TypeSymlink, link: strings.Repeat("t/", 100)}),
	}})[0]
	disk := b.diskOf(img.ID)
	fsck(t, disk)
	for p, want := range map[string][]string{
		"/":     {"Mode:  0711", "User:     7"},
		"/d":    {"Mode:  01777", "User:    42"},
		"/d/f":  {"Mode:  04755", "User: 100000", "Links: 2", fmt.Sprintf("mtime: 0x%08x", when.Unix()), "security.capability", `user.note (5) = "hello"`, "system.posix_acl_access", "user.second (300)", "trusted.mine", "Size: 4"},
		"/old":  {"mtime: 0x00000000"},
		"/far":  {"mtime: 0x7fffffff"},
		"/long": {"Type: symlink", "Size: 200"},
	} {
		got := debugfs(t, disk, "stat "+p)
		for _, w := range want {
			if !strings.Contains(got, w) {
				t.Errorf("%s lacks %q:\n%s", p, w, got)
			}
		}
		for _, bad := range []string{"overlay", "com.example", "toolong", "SCHILY"} {
			if strings.Contains(got, bad) {
				t.Errorf("%s has %q:\n%s", p, bad, got)
			}
		}
	}
	if list := debugfs(t, disk, "ls /"); strings.Contains(list, "lost+found") {
		t.Errorf("lost+found shows: %s", list)
	}
	// debugfs turns ext4's own form back into that of getxattr(2), the unused ids as 0.
	if acl := debugfs(t, disk, "ea_get -x /d/f system.posix_acl_access"); !strings.Contains(acl, "(44) = 02 00 00 00 01 00 06 00 00 00 00 00 02 00 04 00 e8 03 00 00 04 00 04 00") {
		t.Errorf("the ACL is %s", acl)
	}
}

// Many files, of every size around a block, survive: content, order and the count of groups.
func TestFlattenManyFiles(t *testing.T) {
	var ents []ent
	for i := range 3000 {
		ents = append(ents, ent{name: fmt.Sprintf("d%d/f%d", i%37, i), body: strings.Repeat("x", i*7%9000)})
	}
	b := newBox(t)
	disk := b.diskOf(b.load(savedImage{layers: [][]byte{makeTar(t, ents...)}})[0].ID)
	fsck(t, disk)
	if got := debugfs(t, disk, "cat /d36/f36"); got != ents[36].body {
		t.Errorf("content of %d bytes, want %d", len(got), len(ents[36].body))
	}
}

// Entries answers for the merged tree, follows symlinks inside the root, and never leaves it.
func TestEntries(t *testing.T) {
	b := newBox(t)
	sym := func(name, to string) ent { return ent{name: name, typ: tar.TypeSymlink, link: to} }
	img := b.load(savedImage{layers: [][]byte{
		makeTar(t, ent{name: "etc/"}, ent{name: "etc/passwd", body: "x"}, ent{name: "empty/"}, ent{name: "gone/x", body: "x"}, ent{name: "a-b"}, ent{name: "a/b"}, ent{name: "we\nird\\/x"}),
		makeTar(t, ent{name: ".wh.gone"}, sym("up", "../../../etc"), sym("abs", "/etc/passwd"), sym("loop", "loop"), sym("dangling", "nowhere"), sym("chain", "up/../empty"), sym("run", "/"), ent{name: "dev", typ: tar.TypeFifo}),
	}})[0]
	for p, want := range map[string]string{
		"/": "tree", "/etc": "tree", "/etc/": "tree", "/etc/passwd": "file", "/etc/passwd/x": "", "/empty": "dir", "/gone": "", "/gone/x": "", "/none": "", "/a": "tree", "/a-b": "file", "/a/b": "file",
		"/up": "tree", "/up/passwd": "file", "/abs": "file", "/abs/x": "", "/loop": "", "/loop/x": "", "/dangling": "", "/chain": "dir", "/run/etc/../empty": "dir", "/../../etc": "tree", "/dev": "file", "/we\nird\\": "tree", "/run": "tree",
	} {
		got, err := b.Entries(t.Context(), img.ID, p)
		if err != nil || got != want {
			t.Errorf("%q: %q, %v; want %q", p, got, err, want)
		}
	}
	if _, err := b.Entries(t.Context(), img.ID, "relative"); !fault.Is(err, fault.Invalid) {
		t.Errorf("relative: %v", err)
	}
	if _, err := b.Entries(t.Context(), "sha256:x", "/"); !fault.Is(err, fault.NotFound) {
		t.Errorf("unknown: %v", err)
	}
	empty := b.load(savedImage{})[0]
	if got, err := b.Entries(t.Context(), empty.ID, "/"); got != "dir" || err != nil {
		t.Errorf("root of nothing: %q, %v", got, err)
	}
}

// FuzzFlatten: no tar makes apply panic, climb out, or produce a tree that cannot be written; the bounds hold.
func FuzzFlatten(f *testing.F) {
	f.Add(makeTar(f, ent{name: "d/"}, ent{name: "d/a", body: "1"}, ent{name: "b", typ: tar.TypeLink, link: "d/a"}), makeTar(f, ent{name: "d/.wh.a"}, ent{name: "s", typ: tar.TypeSymlink, link: "/d"}, ent{name: "s/x"}))
	f.Add(makeTar(f, ent{name: "../x"}), makeTar(f, ent{name: "l", typ: tar.TypeSymlink, link: "l"}, ent{name: "l/x"}))
	f.Add(makeTar(f, ent{name: "d"}, ent{name: "d/e"}, ent{name: "d/.wh..wh..opq"}), []byte("garbage"))
	f.Fuzz(func(t *testing.T, a, b []byte) {
		tr := newTree()
		for i, l := range [][]byte{a, b} {
			if err := tr.apply(i, bytes.NewReader(l), t.Context().Err); err != nil {
				if k := fault.KindOf(err); k != fault.Invalid && k != fault.Unsupported {
					t.Fatalf("kind %v: %v", k, err)
				}
				return
			}
		}
		n, links := 0, map[*inode]int{}
		tr.each(func(p string, nd *node) {
			n++
			for _, part := range strings.Split(p, "/") {
				if part == "" || part == "." || part == ".." || len(part) > maxName {
					t.Fatalf("name %q", p)
				}
			}
			if nd.typ != tar.TypeDir {
				links[nd.inode]++
				if len(nd.children) > 0 {
					t.Fatalf("%q is no directory and has children", p)
				}
			}
		})
		if n != tr.nodes {
			t.Fatalf("%d names, counted %d", n, tr.nodes)
		}
		for in, k := range links {
			if in.links != k {
				t.Fatalf("%d links, counted %d", k, in.links)
			}
		}
		var x bytes.Buffer
		if err := writeIndex(&x, tr); err != nil {
			t.Fatal(err)
		}
		tr.each(func(p string, nd *node) {
			if kind, target := index(x.Bytes()).find(p); kind == 0 || kind == 'l' && target != nd.target {
				t.Fatalf("index: %q is %q, %q", p, kind, target)
			}
		})
	})
}

var _ portlayer.Disks = (*dirDisks)(nil)
