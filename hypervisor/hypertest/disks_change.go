package hypertest

import (
	"bytes"
	"context"
	"io"
	"os"
	"slices"
	"testing"

	"vch/internal/fault"
	"vch/portlayer"
)

// made makes a disk of 8 MiB in a directory of its own, with a word near its end.
func (s *suite) made(t *testing.T, name string) (dir, disk portlayer.DiskPath) {
	t.Helper()
	d := s.h.Disks()
	dir = d.Join(s.disks, name)
	disk = d.Join(dir, "one.vmdk")
	if err := d.MakeDir(t.Context(), dir); err != nil {
		t.Fatal(err)
	}
	if err := d.Create(t.Context(), disk, portlayer.DiskSpec{Size: 8 * portlayer.MiB, Label: label(name)}); err != nil {
		t.Fatal(err)
	}
	f, err := os.OpenFile(s.extent(disk), os.O_WRONLY, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	if _, err := f.WriteAt([]byte("word"), int64(8*portlayer.MiB)-512); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = d.RemoveDir(context.Background(), dir) })
	return dir, disk
}

// thin is what a disk of 8 MiB may take that has little in it.
func (s *suite) thin(size portlayer.Bytes) portlayer.Bytes {
	if s.Uploads {
		return size
	}
	return size / 2
}

func (s *suite) copyDisk(t *testing.T) {
	d := s.h.Disks()
	dir, one := s.made(t, "copies")
	two := d.Join(dir, "two.vmdk")
	var done, total portlayer.Bytes
	if err := d.Copy(t.Context(), one, two, func(n, of portlayer.Bytes) { done, total = n, of }); err != nil {
		t.Fatal(err)
	}
	if done == 0 || done != total {
		t.Errorf("progress ended at %d of %d", done, total)
	}
	was, err := os.ReadFile(s.extent(one))
	if err != nil {
		t.Fatal(err)
	}
	if is, err := os.ReadFile(s.extent(two)); err != nil || !bytes.Equal(is, was) {
		t.Errorf("the copy differs (%v)", err)
	}
	if i, err := d.Stat(t.Context(), two); err != nil || i.Size != 8*portlayer.MiB || i.Allocated > s.thin(i.Size) {
		t.Errorf("%+v, %v", i, err)
	}
	want(t, "copy again", d.Copy(t.Context(), one, two, nil), fault.Conflict)
	want(t, "copy of nothing", d.Copy(t.Context(), d.Join(dir, "none.vmdk"), d.Join(dir, "three.vmdk"), nil), fault.NotFound)
	if names, err := d.List(t.Context(), dir); err != nil || len(names) != len(s.shown("one-flat.vmdk", "one.vmdk", "two-flat.vmdk", "two.vmdk")) {
		t.Errorf("%v, %v", names, err)
	}
}

func (s *suite) fillDisk(t *testing.T) {
	d := s.h.Disks()
	dir, one := s.made(t, "fills")
	two := d.Join(dir, "two.vmdk")
	r, info, err := d.Open(t.Context(), one)
	if err != nil || info.Size != 8*portlayer.MiB {
		t.Fatalf("%+v, %v", info, err)
	}
	defer r.Close()
	if err := d.CreateFrom(t.Context(), two, info.Size, r); err != nil {
		t.Fatal(err)
	}
	was, err := os.ReadFile(s.extent(one))
	if err != nil {
		t.Fatal(err)
	}
	if is, err := os.ReadFile(s.extent(two)); err != nil || !bytes.Equal(is, was) {
		t.Errorf("it differs (%v)", err)
	}
	if i, err := d.Stat(t.Context(), two); err != nil || i.Size != info.Size || i.Allocated > s.thin(i.Size) {
		t.Errorf("%+v, %v", i, err)
	}
	want(t, "fill again", d.CreateFrom(t.Context(), two, info.Size, bytes.NewReader(was)), fault.Conflict)
	bad := d.Join(dir, "bad.vmdk")
	for _, size := range []portlayer.Bytes{-512, 0, 100, info.Size - 512, info.Size + 512} {
		want(t, "another size", d.CreateFrom(t.Context(), bad, size, bytes.NewReader(was)), fault.Invalid)
	}
	if _, _, err := d.Open(t.Context(), bad); !fault.Is(err, fault.NotFound) {
		t.Errorf("open: %v", err)
	}
	if names, err := d.List(t.Context(), dir); err != nil || len(names) != len(s.shown("one-flat.vmdk", "one.vmdk", "two-flat.vmdk", "two.vmdk")) {
		t.Errorf("%v, %v", names, err)
	}
}

func (s *suite) growDisk(t *testing.T) {
	d := s.h.Disks()
	_, one := s.made(t, "grows")
	before, err := os.ReadFile(s.extent(one))
	if err != nil {
		t.Fatal(err)
	}
	for range 2 {
		if err := d.Grow(t.Context(), one, 16*portlayer.MiB-1); err != nil {
			t.Fatal(err)
		}
	}
	after, err := os.ReadFile(s.extent(one))
	if err != nil || len(after) != 16<<20 || !bytes.Equal(after[:8<<20], before) {
		t.Errorf("%d bytes, %v", len(after), err)
	}
	if i, err := d.Stat(t.Context(), one); err != nil || i.Size != 16*portlayer.MiB {
		t.Errorf("%+v, %v", i, err)
	}
	want(t, "shrink", d.Grow(t.Context(), one, 8*portlayer.MiB), fault.Invalid)
	// One that was cut off between its two steps is what it was, and can be grown.
	if err := os.Truncate(s.extent(one), 32<<20); err != nil {
		t.Fatal(err)
	}
	if i, err := d.Stat(t.Context(), one); err != nil || i.Size != 16*portlayer.MiB {
		t.Errorf("%+v, %v", i, err)
	}
	if err := d.Grow(t.Context(), one, 32*portlayer.MiB); err != nil {
		t.Error(err)
	}
}

func (s *suite) linkDisk(t *testing.T) {
	d := s.h.Disks()
	dir, one := s.made(t, "links")
	two := d.Join(dir, "two.vmdk")
	if err := d.Link(t.Context(), one, two); err != nil {
		t.Fatal(err)
	}
	want(t, "link again", d.Link(t.Context(), one, two), fault.Conflict)
	was, err := os.ReadFile(s.extent(one))
	if err != nil {
		t.Fatal(err)
	}
	if err := d.Delete(t.Context(), one); err != nil {
		t.Fatal(err)
	}
	r, _, err := d.Open(t.Context(), two) // its extent may be called by either
	if err != nil {
		t.Fatal(err)
	}
	defer r.Close()
	if is, err := io.ReadAll(r); err != nil || !bytes.Equal(is, was) {
		t.Errorf("the other path lost it (%v)", err)
	}
}

func (s *suite) moveDir(t *testing.T) {
	d := s.h.Disks()
	dir, _ := s.made(t, "moves")
	other, _ := s.made(t, "stays")
	want(t, "over another", d.MoveDir(t.Context(), dir, other), fault.Conflict)
	to := d.Join(s.disks, "moved")
	if err := d.MoveDir(t.Context(), dir, to); err != nil {
		t.Fatal(err)
	}
	defer func() { _ = d.RemoveDir(t.Context(), to) }()
	if names, err := d.List(t.Context(), to); err != nil || !slices.Equal(names, s.shown("one-flat.vmdk", "one.vmdk")) {
		t.Errorf("%v, %v", names, err)
	}
	if _, err := d.Stat(t.Context(), d.Join(to, "one.vmdk")); err != nil {
		t.Error(err)
	}
	want(t, "again", d.MoveDir(t.Context(), dir, d.Join(s.disks, "elsewhere")), fault.NotFound)
}
