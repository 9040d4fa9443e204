package personality

import (
	"bytes"
	"encoding/json"
	"flag"
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/moby/moby/api/types/volume"

	"vch/portlayer"
)

// update writes what the tests compare with: testdata/golden and doc/docker-api.md.
var update = flag.Bool("update", false, "write golden files and doc/docker-api.md")

// golden compares v, as JSON, with testdata/golden/name.json.
func golden(t *testing.T, name string, v any) {
	t.Helper()
	data, err := json.MarshalIndent(v, "", "  ")
	if err != nil {
		t.Fatal(err)
	}
	data = append(data, '\n')
	path := filepath.Join("testdata", "golden", name+".json")
	if *update {
		if err := os.WriteFile(path, data, 0o644); err != nil {
			t.Fatal(err)
		}
	}
	want, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	if !bytes.Equal(data, want) {
		t.Errorf("%s: %s", path, cmp.Diff(string(want), string(data)))
	}
}

func goldenImage() portlayer.Image {
	created := time.Date(2026, 11, 24, 20, 0, 0, 5, time.UTC)
	return portlayer.Image{
		ID: "sha256:" + "ab", Tags: []string{"busybox:latest"}, Digests: []string{"busybox@sha256:cd"}, Created: created, Loaded: created,
		Architecture: "amd64", OS: "linux", Author: "someone", Comment: "made by hand", Size: 5 << 20, DiffIDs: []string{"sha256:ef"},
		History: []portlayer.ImageHistory{{Created: created, CreatedBy: "ADD file", Size: 5 << 20}, {Created: created, CreatedBy: `CMD ["sh"]`, EmptyLayer: true}},
		Config: portlayer.ImageConfig{
			User: "1:2", Env: []string{"PATH=/bin"}, Cmd: []string{"sh"}, Volumes: []string{"/data"}, WorkingDir: "/srv", Labels: map[string]string{"a": "<b>"},
			StopSignal: "SIGINT", ExposedPorts: []string{"80/tcp"}, Healthcheck: []byte(`{"Test":["CMD","true"]}`),
		},
	}
}

// TestGoldenShapes proves that each client is shown the fields that the API of its version has. The files are compared by eye with docs/v1.41.yaml and v1.50 of Moby's API.
func TestGoldenShapes(t *testing.T) {
	for _, v := range []apiVersion{124, 141, 149, 150} {
		golden(t, "image_summary_"+v.String(), summarize(goldenImage(), v))
		golden(t, "image_summary_untagged_"+v.String(), summarize(portlayer.Image{ID: "sha256:ab"}, v))
		shown, err := inspectImage(goldenImage(), v)
		if err != nil {
			t.Fatal(err)
		}
		golden(t, "image_inspect_"+v.String(), shown)
	}
	bare, err := inspectImage(portlayer.Image{ID: "sha256:ab", OS: "linux", Architecture: "amd64"}, maxVersion)
	if err != nil {
		t.Fatal(err)
	}
	golden(t, "image_inspect_bare", bare)

	at := time.Date(2026, 11, 24, 20, 0, 0, 7, time.UTC)
	golden(t, "event_container", toMessage(portlayer.Event{Time: at, Noun: "container", Verb: "die", ID: "c0ffee", Attrs: map[string]string{"image": "busybox", "name": "web", "exitCode": "0"}}))
	golden(t, "event_volume", toMessage(portlayer.Event{Time: at, Noun: "volume", Verb: "mount", ID: "data", Attrs: map[string]string{"container": "c0ffee", "driver": "qemu-vmdk"}}))
	golden(t, "event_image", toMessage(portlayer.Event{Time: at, Noun: "image", Verb: "pull", ID: "busybox:latest"}))

	vol := portlayer.Volume{Name: "data", Store: "default", Driver: "qemu-vmdk", Label: "00112233445566778899aabbccddeeff", Capacity: 1 << 30, Created: at}
	golden(t, "volume", showVolume(vol, map[portlayer.StoreName]string{"default": "/srv/vols"}))
	golden(t, "df_1.41", diskUsage{LayersSize: 5, Images: []imageSummary{summarize(goldenImage(), 141)}, Volumes: []volume.Volume{}, BuildCache: []struct{}{}, BuilderSize: new(int64)})
}
