package image

import (
	"archive/tar"
	"bytes"
	"slices"
	"strings"
	"testing"

	"vch/internal/fault"
	"vch/portlayer"
)

// Derive adds a layer with whiteouts to an image, which is not changed by it.
func TestDerive(t *testing.T) {
	b := newBox(t)
	base := b.load(sample(t, "app:1"))[0]
	b.events = nil
	layer := makeTar(t, ent{name: "c", body: "three"}, ent{name: ".wh.a"})
	o := portlayer.Derived{Name: "app:2", Author: "ann", Comment: "why", CreatedBy: "sh", Config: portlayer.ImageConfig{Env: []string{"A=c"}, Cmd: []string{"/c"}}}
	img, err := b.Derive(t.Context(), base.ID, bytes.NewReader(layer), o)
	if err != nil {
		t.Fatal(err)
	}
	last := img.History[len(img.History)-1]
	if len(img.DiffIDs) != 3 || !slices.Equal(img.DiffIDs[:2], base.DiffIDs) || img.Author != "ann" || img.Comment != "why" || last.CreatedBy != "sh" || last.EmptyLayer || last.Size == 0 || !slices.Equal(img.Tags, []string{"app:2"}) ||
		!slices.Equal(img.Config.Env, []string{"A=c"}) || len(img.Config.Volumes) != 0 {
		t.Errorf("%+v", img)
	}
	if got := debugfs(t, b.diskOf(img.ID), "cat /c"); got != "three" {
		t.Errorf("content %q", got)
	}
	if kind, err := b.Entries(t.Context(), img.ID, "/a"); err != nil || kind != "" {
		t.Errorf("what the layer takes away is there: %q, %v", kind, err)
	}
	if !slices.Equal(b.events, []string{"create " + string(img.ID), "tag app:2"}) {
		t.Errorf("events %q", b.events)
	}
	if again, err := b.Get(t.Context(), "app:1"); err != nil || len(again.DiffIDs) != 2 {
		t.Errorf("the base: %+v, %v", again, err)
	}
	// Nothing in it: no layer, and the history says so.
	empty, err := b.Derive(t.Context(), base.ID, bytes.NewReader(makeTar(t)), portlayer.Derived{})
	if err != nil || !slices.Equal(empty.DiffIDs, base.DiffIDs) || !empty.History[len(empty.History)-1].EmptyLayer {
		t.Errorf("%+v, %v", empty, err)
	}
	here := b.keysHere()
	for _, c := range []struct {
		what  string
		base  portlayer.ImageID
		name  string
		layer []byte
		kind  fault.Kind
		text  string
	}{
		{"no base", "sha256:" + portlayer.ImageID(strings.Repeat("0", 64)), "", layer, fault.NotFound, "No such image"},
		{"no tar", base.ID, "", []byte(strings.Repeat("x", 2000)), fault.Invalid, "no tar"},
		{"cut short", base.ID, "", layer[:514], fault.Invalid, ""},
		{"bad name", base.ID, "UPPER", layer, fault.Invalid, "invalid reference format"},
	} {
		_, err := b.Derive(t.Context(), c.base, bytes.NewReader(c.layer), portlayer.Derived{Name: c.name})
		wantKind(t, err, c.kind, c.text)
		if n := b.keysHere(); n != here {
			t.Errorf("%s: %d things kept", c.what, n-here)
		}
	}
}

// What Save writes is what Load reads; layers that several images share are in it once.
func TestSave(t *testing.T) {
	b := newBox(t)
	first := b.load(sample(t, "app:1", "app:2"))[0]
	second, err := b.Derive(t.Context(), first.ID, bytes.NewReader(makeTar(t, ent{name: "c", body: "three"})), portlayer.Derived{Name: "app:3"})
	if err != nil {
		t.Fatal(err)
	}
	var saved bytes.Buffer
	if err := b.Save(t.Context(), []string{"app", string(first.ID)}, &saved); err != nil {
		t.Fatal(err)
	}
	raw := bytes.Clone(saved.Bytes())
	names := map[string]int{}
	for tr := tar.NewReader(&saved); ; {
		h, err := tr.Next()
		if err != nil {
			break
		}
		names[h.Name]++
	}
	for _, layer := range second.DiffIDs {
		if n := names["blobs/sha256/"+strings.TrimPrefix(layer, "sha256:")]; n != 1 {
			t.Errorf("layer %s is in it %d times", layer, n)
		}
	}
	other := newBox(t)
	imgs, err := other.Load(t.Context(), bytes.NewReader(raw), nil)
	if err != nil || len(imgs) != 2 {
		t.Fatal(imgs, err)
	}
	for _, img := range []portlayer.Image{first, second} {
		got, err := other.Get(t.Context(), string(img.ID))
		if err != nil || !slices.Equal(got.Tags, img.Tags) || got.Size != img.Size {
			t.Errorf("%+v, %v; want %+v", got, err, img)
		}
	}
	// The index says the same to those who read an OCI layout.
	if err := b.Save(t.Context(), []string{"none"}, &saved); !fault.Is(err, fault.NotFound) || saved.Len() != 0 {
		t.Errorf("%v, %d bytes", err, saved.Len())
	}
}
