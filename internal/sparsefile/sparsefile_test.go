package sparsefile

import (
	"bytes"
	"context"
	"errors"
	"os"
	"path/filepath"
	"syscall"
	"testing"
)

func TestCopy(t *testing.T) {
	dir := t.TempDir()
	from, to := filepath.Join(dir, "from"), filepath.Join(dir, "to")
	f, err := os.Create(from)
	if err != nil {
		t.Fatal(err)
	}
	const size = 64 << 20
	word := bytes.Repeat([]byte("data"), 1<<10)
	for _, at := range []int64{0, 20 << 20, size - 4096} {
		if _, err := f.WriteAt(word, at); err != nil {
			t.Fatal(err)
		}
	}
	if err := f.Close(); err != nil {
		t.Fatal(err)
	}
	var last, total int64
	if err := Copy(t.Context(), from, to, func(d, n int64) { last, total = d, n }); err != nil {
		t.Fatal(err)
	}
	want, err := os.ReadFile(from)
	if err != nil {
		t.Fatal(err)
	}
	got, err := os.ReadFile(to)
	if err != nil || !bytes.Equal(got, want) {
		t.Errorf("the copy differs (%v)", err)
	}
	st, err := os.Stat(to)
	if err != nil {
		t.Fatal(err)
	}
	if blocks := st.Sys().(*syscall.Stat_t).Blocks * 512; st.Size() != size || blocks > 1<<20 {
		t.Errorf("size %d, %d bytes allocated", st.Size(), blocks)
	}
	if last == 0 || last != total {
		t.Errorf("progress ended at %d of %d", last, total)
	}
	if err := Copy(t.Context(), from, to, nil); !os.IsExist(err) {
		t.Errorf("over an existing file: %v", err)
	}
	// After an error there is no copy.
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	third := filepath.Join(dir, "third")
	if err := Copy(ctx, from, third, nil); err != nil { // a file system that shares blocks is done before it looks
		if _, err := os.Stat(third); !os.IsNotExist(err) {
			t.Errorf("left: %v", err)
		}
	}
	if err := Copy(t.Context(), filepath.Join(dir, "none"), third, nil); !os.IsNotExist(err) {
		t.Errorf("%v", err)
	}
}

func TestWrite(t *testing.T) {
	dir := t.TempDir()
	data := make([]byte, 10<<20)
	copy(data[5<<20:], "here")
	copy(data[len(data)-1:], "x")
	to := filepath.Join(dir, "to")
	if err := Write(t.Context(), to, int64(len(data)), bytes.NewReader(data)); err != nil {
		t.Fatal(err)
	}
	got, err := os.ReadFile(to)
	if err != nil || !bytes.Equal(got, data) {
		t.Errorf("%d bytes, %v", len(got), err)
	}
	st, err := os.Stat(to)
	if err != nil || st.Sys().(*syscall.Stat_t).Blocks*512 > 1<<20 {
		t.Errorf("not sparse: %v", err)
	}
	for _, size := range []int64{0, 1, int64(len(data)) - 1, int64(len(data)) + 1} {
		bad := filepath.Join(dir, "bad")
		if err := Write(t.Context(), bad, size, bytes.NewReader(data)); !errors.Is(err, ErrLength) {
			t.Errorf("%d: %v", size, err)
		}
		if _, err := os.Stat(bad); !os.IsNotExist(err) {
			t.Errorf("%d: left: %v", size, err)
		}
	}
}
