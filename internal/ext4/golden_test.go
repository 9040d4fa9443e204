package ext4

import (
	"bytes"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
)

// A file system that was poured is one that mkfs has made, but for its name: e2fsck finds nothing to mend, in it or in its copies of the superblock.
func TestGolden(t *testing.T) {
	m, err := Find()
	if err != nil {
		t.Fatal(err)
	}
	fsck, err := FindTool("e2fsck")
	if err != nil {
		t.Fatal(err)
	}
	dumpe2fs, err := FindTool("dumpe2fs")
	if err != nil {
		t.Fatal(err)
	}
	dir := t.TempDir()
	for _, size := range []int64{4 << 20, 31 << 20, 700<<20 + 512, 1 << 30, 20 << 30} {
		made, seeds := map[string]bool{}, map[string]bool{}
		for i := range 3 {
			uuid, label := fmt.Sprintf("00000000-0000-0000-0000-0000abcdef%02x", i), fmt.Sprintf("label%d", i)
			file := filepath.Join(dir, fmt.Sprintf("%d-%d", size, i))
			f, err := os.Create(file)
			if err != nil {
				t.Fatal(err)
			}
			first, second := label, uuid
			if i == 2 { // the third gets its name afterwards
				first, second = "", ""
			}
			if err = m.Format(t.Context(), f, Shape{Size: size, Dir: "data"}, first, second); err == nil && i == 2 {
				err = Rename(f, size, label, uuid)
			}
			if err != nil {
				t.Fatal(err)
			}
			f.Close()
			if _, known := m.golden.get(Shape{Size: size, Dir: "data"}); !known {
				t.Errorf("%d: not kept", size)
			}
			if out, err := exec.CommandContext(t.Context(), fsck, "-fn", file).CombinedOutput(); err != nil {
				t.Errorf("%d, %d: %v: %s", size, i, err, out)
			}
			heads := [][]string{{"-h"}}
			if size > 2*superGroup { // the first copy, whose checksum is looked at, too
				heads = append(heads, []string{"-h", "-o", "superblock=32768", "-o", "blocksize=4096"})
			}
			for _, args := range heads {
				text, err := exec.CommandContext(t.Context(), dumpe2fs, append(args, file)...).CombinedOutput()
				if err != nil {
					t.Fatalf("%d, %d %v: %v: %s", size, i, args, err, text)
				}
				kept := fmt.Sprintln(args)
				for _, line := range strings.Split(string(text), "\n") {
					key, value, _ := strings.Cut(line, ":")
					value = strings.TrimSpace(value)
					switch key {
					case "Filesystem UUID":
						if value != uuid {
							t.Errorf("%d, %d %v: UUID %s, want %s", size, i, args, value, uuid)
						}
					case "Filesystem volume name":
						if value != label {
							t.Errorf("%d, %d %v: name %s", size, i, args, value)
						}
					case "Directory Hash Seed":
						seeds[value] = true
					case "Checksum":
					default:
						kept += line + "\n"
					}
				}
				made[kept] = true
			}
			if len(made) != len(heads) {
				t.Errorf("%d, %d: the file systems differ: %v", size, i, made)
			}
		}
		if len(seeds) != 3 {
			t.Errorf("%d: %d seeds for the hashes of names", size, len(seeds))
		}
	}
	if m.golden.held == 0 || m.golden.held > mostGolden {
		t.Errorf("%d bytes are kept", m.golden.held)
	}
}

// What is kept is bounded.
func TestGoldensForget(t *testing.T) {
	g := &goldens{}
	piece := golden{pieces: []fsPiece{{0, bytes.Repeat([]byte{1}, mostGolden/3)}}}
	for i := range 10 {
		g.put(Shape{Size: int64(i)}, piece)
		if g.held > mostGolden || len(g.known) > 3 {
			t.Fatalf("%d shapes, %d bytes", len(g.known), g.held)
		}
		if _, ok := g.get(Shape{Size: int64(i)}); !ok {
			t.Errorf("%d is not there", i)
		}
	}
	g.put(Shape{Size: -1}, golden{pieces: []fsPiece{{0, make([]byte, mostGolden+1)}}})
	if _, ok := g.get(Shape{Size: -1}); ok {
		t.Error("one that is too large was kept")
	}
}
