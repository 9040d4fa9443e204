package image

import (
	"bytes"
	"errors"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"vch/internal/fault"
	"vch/portlayer"
)

// effects is a Remove's answer as text, ids replaced by what they are.
func effects(list []portlayer.ImageDeleted, imgs ...portlayer.Image) string {
	var out []string
	for _, e := range list {
		switch {
		case e.Untagged != "":
			out = append(out, "untagged "+e.Untagged)
		case slices.ContainsFunc(imgs, func(i portlayer.Image) bool { return string(i.ID) == e.Deleted }):
			out = append(out, "deleted image")
		default:
			out = append(out, "deleted layer")
		}
	}
	return strings.Join(out, ", ")
}

const user = portlayer.ContainerID("0123456789abcdef0123456789abcdef0123456789abcdef0123456789abcdef")

// Every rule of removal: who asks how, what the image has, and what comes of it.
func TestRemove(t *testing.T) {
	const all = "deleted image, deleted layer, deleted layer"
	for _, c := range []struct {
		name  string
		tags  []string
		used  bool
		ref   string // "ID" and "SHORT" stand for the image's
		force bool
		want  string
		kind  fault.Kind
		text  string
	}{
		{name: "last tag", tags: []string{"a:1"}, ref: "a:1", want: "untagged a:1, " + all},
		{name: "default tag", tags: []string{"a:latest"}, ref: "a", want: "untagged a:latest, " + all},
		{name: "one of two tags", tags: []string{"a:1", "a:2"}, ref: "a:1", want: "untagged a:1"},
		{name: "one of two repositories", tags: []string{"a:1", "b:1"}, ref: "b:1", want: "untagged b:1"},
		{name: "id", tags: []string{"a:1"}, ref: "ID", want: "untagged a:1, " + all},
		{name: "short id", tags: []string{"a:1"}, ref: "SHORT", want: "untagged a:1, " + all},
		{name: "id without tags", ref: "ID", want: all},
		{name: "id with several tags", tags: []string{"a:1", "b:1"}, ref: "ID", kind: fault.Conflict, text: "conflict: unable to delete SHORT (must be forced) - image is referenced in multiple repositories"},
		{name: "id with several tags, forced", tags: []string{"a:1", "b:1"}, ref: "ID", force: true, want: "untagged a:1, untagged b:1, " + all},
		{name: "used, last tag", tags: []string{"a:1"}, used: true, ref: "a:1", kind: fault.InUse, text: `conflict: unable to remove repository reference "a:1" (must force) - container 0123456789ab is using its referenced image SHORT`},
		{name: "used, one of two tags", tags: []string{"a:1", "a:2"}, used: true, ref: "a:1", want: "untagged a:1"},
		{name: "used, last tag, forced", tags: []string{"a:1"}, used: true, ref: "a:1", force: true, want: "untagged a:1"},
		{name: "used, id", tags: []string{"a:1"}, used: true, ref: "ID", kind: fault.InUse, text: "conflict: unable to delete SHORT (must be forced) - image is being used by container 0123456789ab"},
		{name: "used, id, forced", tags: []string{"a:1"}, used: true, ref: "ID", force: true, want: "untagged a:1"},
		{name: "used, id without tags, forced", used: true, ref: "ID", force: true, kind: fault.InUse, text: "(cannot be forced)"},
		{name: "unknown", tags: []string{"a:1"}, ref: "nope", kind: fault.NotFound, text: "No such image: nope:latest"},
		{name: "unknown tag", tags: []string{"a:1"}, ref: "a:2", kind: fault.NotFound, text: "No such image: a:2"},
		{name: "nonsense", tags: []string{"a:1"}, ref: "A:2", kind: fault.Invalid, text: "invalid reference format"},
	} {
		t.Run(c.name, func(t *testing.T) {
			b := newBox(t)
			img := b.load(sample(t, c.tags...))[0]
			if c.used {
				b.use(img.ID, user)
			}
			fill := strings.NewReplacer("ID", string(img.ID), "SHORT", short(string(img.ID)))
			got, err := b.Remove(t.Context(), fill.Replace(c.ref), c.force, false)
			if c.text != "" {
				wantKind(t, err, c.kind, fill.Replace(c.text))
				if after, err := b.Get(t.Context(), string(img.ID)); err != nil || !slices.Equal(after.Tags, img.Tags) {
					t.Errorf("a refused removal changed something: %v, %v", after.Tags, err)
				}
				return
			}
			if err != nil || effects(got, img) != c.want {
				t.Errorf("got %s, %v; want %s", effects(got, img), err, c.want)
			}
			gone := strings.Contains(c.want, "deleted image")
			if _, err := b.Get(t.Context(), string(img.ID)); fault.Is(err, fault.NotFound) != gone {
				t.Errorf("afterwards: %v", err)
			}
			if n := b.keysHere(); (n == 0) != gone {
				t.Errorf("%d files left", n)
			}
			if events := strings.Join(b.events, ","); strings.Contains(events, "delete "+string(img.ID)) != gone || strings.Count(events, "untag") != strings.Count(c.want, "untagged") {
				t.Errorf("events %s", events)
			}
			b.restart()
			if _, err := b.Get(t.Context(), string(img.ID)); fault.Is(err, fault.NotFound) != gone {
				t.Errorf("after a restart: %v", err)
			}
		})
	}
}

// A pulled image has a digest beside its tag: both go with the tag, and neither stands in the way of removal by id.
func TestRemovePulled(t *testing.T) {
	h := newHub(t)
	img := twoLayers(t)
	ref := h.push("app:1", img)
	digest, _ := img.Digest()
	for _, by := range []string{"tag", "id"} {
		b := newBox(t)
		got, err := b.Pull(t.Context(), ref, "", portlayer.Credentials{}, nil)
		if err != nil {
			t.Fatal(err)
		}
		arg := ref
		if by == "id" {
			arg = short(string(got.ID))
		}
		gone, err := b.Remove(t.Context(), arg, false, false)
		text := effects(gone, got)
		if err != nil || !strings.Contains(text, "untagged "+ref) || !strings.Contains(text, "untagged "+h.host+"/app@"+digest.String()) || b.keysHere() != 0 {
			t.Errorf("by %s: %s, %v", by, text, err)
		}
	}
}

// Layers and disks that another image has stay until the last one goes.
func TestRemoveKeepsShared(t *testing.T) {
	b := newBox(t)
	one, twin := sample(t, "a:1"), sample(t, "twin:1")
	twin.env = "X=y"
	more := savedImage{tags: []string{"b:1"}, layers: append(slices.Clone(one.layers), makeTar(t, ent{name: "c"}))}
	imgs := b.load(one, twin, more)
	for _, step := range []struct {
		ref, want string
		left      int
	}{
		{"a:1", "untagged a:1, deleted image", 5}, // 3 layers, 2 disks
		{"b:1", "untagged b:1, deleted image, deleted layer", 3},
		{"twin:1", "untagged twin:1, deleted image, deleted layer, deleted layer", 0},
	} {
		got, err := b.Remove(t.Context(), step.ref, false, false)
		if err != nil || effects(got, imgs...) != step.want || b.keysHere() != step.left {
			t.Errorf("%s: %s, %v, %d left", step.ref, effects(got, imgs...), err, b.keysHere())
		}
	}
}

// Prune takes images without tags, or with all every unused one that is picked, and counts what that freed on disk.
func TestPrune(t *testing.T) {
	for _, c := range []struct {
		name string
		all  bool
		pick func(portlayer.Image) bool
		want string // tags that are left
	}{
		{"dangling", false, nil, "a:1 b:1 used"},
		{"all", true, nil, "used"},
		{"all, picked", true, func(i portlayer.Image) bool { return !slices.Contains(i.Tags, "b:1") }, "b:1 used"},
		{"nothing picked", true, func(portlayer.Image) bool { return false }, "a:1 b:1 dangling used"},
	} {
		t.Run(c.name, func(t *testing.T) {
			b := newBox(t)
			mk := func(file string, tags ...string) savedImage {
				return savedImage{tags: tags, layers: [][]byte{makeTar(t, ent{name: file, body: strings.Repeat(file, 5000)})}}
			}
			imgs := b.load(mk("a", "a:1"), mk("b", "b:1"), mk("d"), mk("u"))
			b.use(imgs[3].ID, user)
			before := diskUse(t, b.Service.dir)
			_, freed, err := b.Prune(t.Context(), c.all, c.pick)
			if err != nil {
				t.Fatal(err)
			}
			if after := diskUse(t, b.Service.dir); before-after != freed {
				t.Errorf("freed %d, says %d", before-after, freed)
			}
			var left []string
			list, err := b.List(t.Context())
			if err != nil {
				t.Fatal(err)
			}
			for _, img := range list {
				switch {
				case img.ID == imgs[3].ID:
					left = append(left, "used")
				case len(img.Tags) == 0:
					left = append(left, "dangling")
				default:
					left = append(left, img.Tags...)
				}
			}
			slices.Sort(left)
			if strings.Join(left, " ") != c.want {
				t.Errorf("left %v, want %s", left, c.want)
			}
			if !slices.Contains(b.events, "prune") {
				t.Errorf("events %q", b.events)
			}
		})
	}
}

// diskUse is the length of all layers and extents.
func diskUse(t testing.TB, dir string) (sum portlayer.Bytes) {
	t.Helper()
	for _, pattern := range []string{"layers/*", "disks/*-flat.vmdk"} {
		files, err := filepath.Glob(filepath.Join(dir, pattern))
		if err != nil {
			t.Fatal(err)
		}
		for _, f := range files {
			fi, err := os.Stat(f)
			if err != nil {
				t.Fatal(err)
			}
			sum += portlayer.Bytes(fi.Size())
		}
	}
	return sum
}

// Prune takes what a pull that was never finished has left, and nothing that one under way stands on.
func TestPruneUnfinished(t *testing.T) {
	b := newBox(t)
	layer := makeTar(t, ent{name: "x"})
	path := b.layerPath(diffID(idOf(layer)))
	if err := os.WriteFile(path, layer, 0o600); err != nil {
		t.Fatal(err)
	}
	release, err := b.catalog.hold(t.Context(), string(idOf(layer)))
	if err != nil {
		t.Fatal(err)
	}
	if _, freed, err := b.Prune(t.Context(), false, nil); err != nil || freed != 0 {
		t.Errorf("held: %d, %v", freed, err)
	}
	release()
	if _, freed, err := b.Prune(t.Context(), false, nil); err != nil || freed != portlayer.Bytes(len(layer)) {
		t.Errorf("left over: %d, %v", freed, err)
	}
}

func TestTag(t *testing.T) {
	b := newBox(t)
	imgs := b.load(sample(t, "a:1"), savedImage{tags: []string{"b:1"}})
	for _, c := range []struct {
		ref, name string
		kind      fault.Kind
		text      string
	}{
		{"a:1", "copy", 0, ""},
		{string(imgs[0].ID), "localhost:5000/x/y:z", 0, ""},
		{"b:1", "copy:latest", 0, ""}, // moves
		{"nope", "x", fault.NotFound, "No such image: nope:latest"},
		{"a:1", "UPPER", fault.Invalid, "must be lowercase"},
		{"a:1", "x@sha256:" + strings.Repeat("a", 64), fault.Invalid, "refusing to create a tag with a digest reference"},
		{"a:1", "sha256:1", fault.Invalid, "refusing to create an ambiguous tag using digest algorithm as name"},
	} {
		err := b.Tag(t.Context(), c.ref, c.name)
		if c.text == "" && err != nil {
			t.Errorf("tag %s %s: %v", c.ref, c.name, err)
		} else if c.text != "" {
			wantKind(t, err, c.kind, c.text)
		}
	}
	b.restart()
	if img, err := b.Get(t.Context(), string(imgs[0].ID)); err != nil || !slices.Equal(img.Tags, []string{"a:1", "localhost:5000/x/y:z"}) {
		t.Errorf("a: %v, %v", img.Tags, err)
	}
	if img, err := b.Get(t.Context(), "copy"); err != nil || img.ID != imgs[1].ID {
		t.Errorf("copy: %v, %v", img.ID, err)
	}
	if want := "load,load,tag copy:latest,tag localhost:5000/x/y:z,tag copy:latest"; strings.Join(simple(b.events), ",") != want {
		t.Errorf("events %q", b.events)
	}
}

// simple drops the names of events about ids.
func simple(events []string) []string {
	var out []string
	for _, e := range events {
		verb, name, _ := strings.Cut(e, " ")
		if !strings.HasPrefix(name, "sha256:") {
			verb = e
		}
		out = append(out, verb)
	}
	return out
}

// A prefix of an id finds it while it is the only one.
func TestPrefix(t *testing.T) {
	b := newBox(t)
	byDigit := map[byte]int{}
	var ids []portlayer.ImageID
	for i := range 20 {
		id := b.load(savedImage{env: strings.Repeat("x", i)})[0].ID
		ids = append(ids, id)
		byDigit[id[7]]++
	}
	for _, id := range ids {
		_, err := b.Get(t.Context(), "sha256:"+string(id[7]))
		if byDigit[id[7]] == 1 != (err == nil) {
			t.Errorf("prefix %c of %d images: %v", id[7], byDigit[id[7]], err)
		}
		if byDigit[id[7]] > 1 {
			wantKind(t, err, fault.Invalid, "several images")
		}
	}
	if list, err := b.List(t.Context()); err != nil || len(list) != 20 {
		t.Errorf("%d images, %v", len(list), err)
	}
}

// A restart removes what a crash left half done, keeps whole layers, and makes a missing or damaged disk anew.
func TestRestart(t *testing.T) {
	b := newBox(t)
	img := b.load(sample(t, "a:1"))[0]
	disk := b.diskOf(img.ID)
	want, err := os.ReadFile(disk)
	if err != nil {
		t.Fatal(err)
	}
	layer := makeTar(t, ent{name: "later"})
	orphan := strings.Repeat("ab", 32)
	for name, data := range map[string][]byte{
		"tmp/upload-1": []byte("x"), "layers/.tmp-x-1": []byte("x"), "disks/.tmp-x-1": []byte("x"), "layers/" + diffID(idOf(layer)).hex(): layer,
		"disks/" + orphan + ".vmdk": []byte("1"), "disks/" + orphan + "-flat.vmdk": []byte("x"), "disks/" + orphan + ".index": []byte("x"),
	} {
		if err := os.WriteFile(filepath.Join(b.Service.dir, name), data, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	for _, damage := range []func() error{
		func() error { return nil },
		func() error { return os.Remove(disk) },
		func() error { return os.Truncate(disk, 1000) },
		func() error {
			return os.Remove(b.indexPath(diskName([]diffID{diffID(img.DiffIDs[0]), diffID(img.DiffIDs[1])})))
		},
	} {
		if err := damage(); err != nil {
			t.Fatal(err)
		}
		b.restart()
		if got, err := os.ReadFile(disk); err != nil || !bytes.Equal(got, want) {
			t.Errorf("the disk is not what it was: %d bytes, %v", len(got), err)
		}
		if kind, err := b.Entries(t.Context(), img.ID, "/b"); kind != "file" || err != nil {
			t.Errorf("entries: %q, %v", kind, err)
		}
		if err := b.Join(t.Context(), &portlayer.Handle{}, img.ID); err != nil {
			t.Error(err)
		}
	}
	if _, ok, err := b.layerSize(diffID(idOf(layer))); !ok || err != nil {
		t.Errorf("a whole layer went: %v", err)
	}
	if left, _ := filepath.Glob(filepath.Join(b.Service.dir, "disks", orphan+"*")); len(left) > 0 {
		t.Errorf("left: %v", left)
	}
}

// With a layer damaged and the disk gone, the image is listed but not joined, and a load mends it.
func TestRestartDamagedLayer(t *testing.T) {
	b := newBox(t)
	img := b.load(sample(t, "a:1"))[0]
	err := errors.Join(os.Truncate(b.layerPath(diffID(img.DiffIDs[0])), 100), os.Remove(b.diskOf(img.ID)))
	if err != nil {
		t.Fatal(err)
	}
	b.restart()
	if _, err := b.Get(t.Context(), "a:1"); err != nil {
		t.Error(err)
	}
	wantKind(t, b.Join(t.Context(), &portlayer.Handle{}, img.ID), fault.Conflict, "pull or load the image again")
	b.load(sample(t, "a:1"))
	if err := b.Join(t.Context(), &portlayer.Handle{}, img.ID); err != nil {
		t.Error(err)
	}
	fsck(t, b.diskOf(img.ID))
}

// A disk that was found is believed for as long as was said, and not when it was removed here.
func TestBelieve(t *testing.T) {
	b := newBox(t)
	b.believe = time.Hour
	img := b.load(sample(t, "a:1"))[0]
	join := func() error { return b.Join(t.Context(), &portlayer.Handle{}, img.ID) }
	if err := errors.Join(join(), os.Remove(b.diskOf(img.ID)), join()); err != nil {
		t.Error(err)
	}
	b.believe = 0
	wantKind(t, join(), fault.Conflict, "pull or load the image again")
	b.believe = time.Hour
	wantKind(t, join(), fault.Conflict, "pull or load the image again")
	b.load(sample(t, "a:1"))
	if err := join(); err != nil {
		t.Error(err)
	}
	k, _ := b.catalog.get(img.ID)
	if _, err := b.deleteDisk(t.Context(), k.disk); err != nil {
		t.Error(err)
	}
	wantKind(t, join(), fault.Conflict, "pull or load the image again")
	b.load(sample(t, "a:1"))
}

// A store that is full, or cannot be written, says so and what to do.
func TestStoreErrors(t *testing.T) {
	b := newBox(t)
	full, err := os.OpenFile("/dev/full", os.O_WRONLY, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer full.Close()
	_, err = full.Write([]byte("x"))
	wantKind(t, b.storage(err), fault.Unavailable, "no space left for images in "+b.Service.dir+"; free some (docker image prune)")
	_, err = os.Create("/proc/nothing")
	if wantErr := b.storage(err); fault.KindOf(wantErr) != fault.Internal || wantErr != err {
		t.Errorf("another error was changed: %v", wantErr)
	}
	wantKind(t, b.storage(&os.PathError{Op: "open", Path: "x", Err: os.ErrPermission}), fault.Denied, "cannot be written")
}
