package vmdk

import (
	"context"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"vch/hypervisor/fake"
	"vch/hypervisor/qemu"
	"vch/portlayer"
	"vch/portlayer/volume/volumetest"
)

// onFiles is a place on real files, made by the fake hypervisor's Disks.
func onFiles(t *testing.T, dir string) volumetest.Place {
	hv, err := fake.New(fake.Options{Dir: filepath.Join(dir, "hv")})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := hv.Close(); err != nil {
			t.Error(err)
		}
	})
	return onDisks(t, dir, hv.Disks(), "fake-vmdk")
}

// onQEMU is a place on real files with real file systems in them.
func onQEMU(t *testing.T, dir string) volumetest.Place {
	disks, err := qemu.FindDisks()
	if err != nil {
		t.Fatal(err)
	}
	return onDisks(t, dir, disks, "qemu-vmdk")
}

func onDisks(t *testing.T, dir string, disks portlayer.Disks, driver string) volumetest.Place {
	root := filepath.Join(dir, "store")
	faulty := volumetest.NewFaulty(disks)
	must := func(err error) {
		if err != nil {
			t.Fatal(err)
		}
	}
	at := func(n portlayer.VolumeName, file string) string {
		return filepath.Join(root, "volumes", string(n), file)
	}
	return volumetest.Place{
		Open: func(ctx context.Context) (portlayer.VolumeStore, error) {
			return Open(ctx, Options{Name: "disks", Location: root, Root: portlayer.DiskPath(root), Disks: faulty, Driver: driver})
		},
		TooSmall: portlayer.MiB,
		Disks:    true,
		Tree:     func() []string { return files(t, root) },
		Degrade: map[string]func(bool){
			"unmounted": func(on bool) {
				from, to := root, root+".away"
				if !on {
					from, to = to, from
				}
				must(os.Rename(from, to))
			},
			"a file in its place": func(on bool) {
				volumes := filepath.Join(root, "volumes")
				if on {
					must(os.Rename(volumes, root+".away"))
					must(os.WriteFile(volumes, []byte("x"), 0o600))
					return
				}
				must(os.Remove(volumes))
				must(os.Rename(root+".away", volumes))
			},
		},
		Damage: map[string]func(portlayer.VolumeName){
			"truncated":     func(n portlayer.VolumeName) { must(os.Truncate(at(n, string(n)+"-flat.vmdk"), 4096)) },
			"no extent":     func(n portlayer.VolumeName) { must(os.Remove(at(n, string(n)+"-flat.vmdk"))) },
			"no descriptor": func(n portlayer.VolumeName) { must(os.Remove(at(n, string(n)+".vmdk"))) },
			"no record":     func(n portlayer.VolumeName) { must(os.Remove(at(n, "volume.json"))) },
			"half a record": func(n portlayer.VolumeName) { must(os.Truncate(at(n, "volume.json"), 20)) },
		},
		Faults: &faulty.Faults,
	}
}

// files lists what is below root, sorted.
func files(t *testing.T, root string) []string {
	var all []string
	err := filepath.WalkDir(root, func(path string, d fs.DirEntry, err error) error {
		if err == nil {
			all = append(all, strings.TrimPrefix(path, root))
		}
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	return all
}

func TestStoreOnFiles(t *testing.T) { volumetest.Run(t, onFiles) }

func TestStoreOnQEMU(t *testing.T) { volumetest.Run(t, onQEMU) }

// What a person sees in the directory is what architecture.md lays out.
func TestLayout(t *testing.T) {
	dir := t.TempDir()
	s, err := onFiles(t, dir).Open(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	if _, _, err := s.Ensure(t.Context(), portlayer.VolumeSpec{Name: "data", Capacity: 8 * portlayer.MiB}); err != nil {
		t.Fatal(err)
	}
	want := []string{"", "/volumes", "/volumes/data", "/volumes/data/data-flat.vmdk", "/volumes/data/data.vmdk", "/volumes/data/volume.json"}
	if got := files(t, filepath.Join(dir, "store")); strings.Join(got, " ") != strings.Join(want, " ") {
		t.Errorf("files %q, want %q", got, want)
	}
	text, err := os.ReadFile(filepath.Join(dir, "store", "volumes", "data", "volume.json"))
	if err != nil {
		t.Fatal(err)
	}
	for _, word := range []string{`"format": 1`, `"driver": "fake-vmdk"`, `"size": 8388608`, `"label": "` + hash("disks/data") + `"`, `"created": "2`} {
		if !strings.Contains(string(text), word) {
			t.Errorf("volume.json lacks %s:\n%s", word, text)
		}
	}
}
