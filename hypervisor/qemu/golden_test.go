package qemu

import (
	"bytes"
	"fmt"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"vch/guest"
	"vch/portlayer"
)

// A file system that was poured is one that mkfs has made, but for its name: e2fsck finds nothing to mend, in it or in its copies of the superblock.
func TestGolden(t *testing.T) {
	d, err := FindDisks()
	if err != nil {
		t.Fatal(err)
	}
	fsck, err := findTool("e2fsck")
	if err != nil {
		t.Fatal(err)
	}
	dumpe2fs, err := findTool("dumpe2fs")
	if err != nil {
		t.Fatal(err)
	}
	dir := t.TempDir()
	for _, size := range []portlayer.Bytes{portlayer.MinDisk, 31 * portlayer.MiB, 700*portlayer.MiB + 512, portlayer.GiB, 20 * portlayer.GiB} {
		made, seeds := map[string]bool{}, map[string]bool{}
		for i := range 3 {
			label := portlayer.Label(fmt.Sprintf("%032x", 0xabcdef00+i))
			p := portlayer.DiskPath(filepath.Join(dir, fmt.Sprintf("%d-%d.vmdk", size, i)))
			spec := portlayer.DiskSpec{Size: size, Label: label}
			if i < 2 {
				err = d.Create(t.Context(), p, spec)
			} else { // the third gets its name in a directory that was ready
				home := strings.TrimSuffix(string(p), ".vmdk")
				p = portlayer.DiskPath(filepath.Join(home, "x.vmdk"))
				err = makeReady(d, home, portlayer.DirSpec{Disk: spec, Name: "x.vmdk", File: "note", Data: []byte("text")})
			}
			if err != nil {
				t.Fatal(err)
			}
			if _, known := d.golden.get(fsShape{(size + 511) / 512 * 512, guest.VolumeDir}); !known {
				t.Errorf("%d: not kept", size)
			}
			file := extentPath(string(p))
			if out, err := exec.CommandContext(t.Context(), fsck, "-fn", file).CombinedOutput(); err != nil {
				t.Errorf("%d, %d: %v: %s", size, i, err, out)
			}
			uuid, err := labelUUID(label)
			if err != nil {
				t.Fatal(err)
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
						if value != string(label[:16]) {
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
	if d.golden.held == 0 || d.golden.held > mostGolden {
		t.Errorf("%d bytes are kept", d.golden.held)
	}
}

// What is kept is bounded.
func TestGoldensForget(t *testing.T) {
	g := &goldens{}
	piece := golden{pieces: []fsPiece{{0, bytes.Repeat([]byte{1}, mostGolden/3)}}}
	for i := range 10 {
		g.put(fsShape{size: portlayer.Bytes(i)}, piece)
		if g.held > mostGolden || len(g.known) > 3 {
			t.Fatalf("%d shapes, %d bytes", len(g.known), g.held)
		}
		if _, ok := g.get(fsShape{size: portlayer.Bytes(i)}); !ok {
			t.Errorf("%d is not there", i)
		}
	}
	g.put(fsShape{size: -1}, golden{pieces: []fsPiece{{0, make([]byte, mostGolden+1)}}})
	if _, ok := g.get(fsShape{size: -1}); ok {
		t.Error("one that is too large was kept")
	}
}
