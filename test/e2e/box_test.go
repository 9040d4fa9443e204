package e2e

import (
	"archive/tar"
	"bytes"
	"compress/gzip"
	"crypto/sha256"
	"encoding/json"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"sort"
	"strings"
	"sync"
	"time"

	"github.com/rogpeppe/go-internal/testscript"
)

// entry is a file of a tar.
type entry struct {
	name     string // a directory's ends with /
	content  []byte
	mode     int64
	uid, gid int
	link     string // a symlink's target
}

// pack makes a tar. Everything in it has one time, so that an image made twice is one image.
func pack(entries []entry) ([]byte, error) {
	var buf bytes.Buffer
	w := tar.NewWriter(&buf)
	for _, e := range entries {
		h := &tar.Header{Name: e.name, Mode: e.mode, Uid: e.uid, Gid: e.gid, ModTime: time.Unix(1700000000, 0), Typeflag: tar.TypeReg, Size: int64(len(e.content))}
		switch {
		case strings.HasSuffix(e.name, "/"):
			h.Typeflag = tar.TypeDir
		case e.link != "":
			h.Typeflag, h.Linkname = tar.TypeSymlink, e.link
		}
		if err := w.WriteHeader(h); err != nil {
			return nil, err
		}
		if _, err := w.Write(e.content); err != nil {
			return nil, err
		}
	}
	err := w.Close()
	return buf.Bytes(), err
}

// boxEntries is the root file system of the image box: busybox with all its names, three users, and a directory to copy up.
func boxEntries() ([]entry, error) {
	path, err := exec.LookPath("busybox")
	if err != nil {
		return nil, fmt.Errorf("busybox is missing: %w; make setup installs it", err)
	}
	program, err := os.ReadFile(path)
	if err != nil {
		return nil, err
	}
	names, err := exec.Command(path, "--list").Output()
	if err != nil {
		return nil, err
	}
	ledger, err := ledgerProgram()
	if err != nil {
		return nil, err
	}
	entries := []entry{
		{name: "bin/", mode: 0o755}, {name: "bin/busybox", content: program, mode: 0o755}, {name: "bin/ledger", content: ledger, mode: 0o755},
		{name: "dev/", mode: 0o755}, {name: "etc/", mode: 0o755}, {name: "proc/", mode: 0o755}, {name: "sys/", mode: 0o755},
		{name: "root/", mode: 0o700}, {name: "tmp/", mode: 0o1777}, {name: "var/", mode: 0o755}, {name: "home/", mode: 0o755},
		{name: "home/ann/", mode: 0o750, uid: 1000, gid: 1000},
		{name: "etc/passwd", mode: 0o644, content: []byte("root:x:0:0:root:/root:/bin/sh\nann:x:1000:1000:Ann:/home/ann:/bin/sh\nben:x:1001:1001:Ben:/:/bin/sh\n")},
		{name: "etc/group", mode: 0o644, content: []byte("root:x:0:\nann:x:1000:\nben:x:1001:\nstaff:x:50:ann\n")},
		{name: "seed/", mode: 0o750, uid: 7, gid: 8},
		{name: "seed/file", mode: 0o640, uid: 7, gid: 8, content: []byte("from the image\n")},
		{name: "seed/sub/", mode: 0o711, uid: 9, gid: 9},
		{name: "seed/sub/deep", mode: 0o600, uid: 9, gid: 9, content: []byte("deep\n")},
		{name: "seed/link", link: "file", mode: 0o777},
		{name: "way", link: "seed", mode: 0o777},
		{name: "noexec", mode: 0o644, content: []byte("not a program\n")},
	}
	applets := strings.Fields(string(names))
	sort.Strings(applets)
	for _, a := range applets {
		if a != "busybox" {
			entries = append(entries, entry{name: "bin/" + a, link: "busybox", mode: 0o777})
		}
	}
	return entries, nil
}

// ledgerProgram is what test/e2e/ledger is built to, once.
var ledgerProgram = sync.OnceValues(func() ([]byte, error) {
	dir, err := os.MkdirTemp("", "ledger")
	if err != nil {
		return nil, err
	}
	defer os.RemoveAll(dir)
	at := filepath.Join(dir, "ledger")
	cmd := exec.Command("go", "build", "-trimpath", "-ldflags", "-s -w -buildid=", "-o", at, "./ledger")
	cmd.Env = append(os.Environ(), "CGO_ENABLED=0")
	if out, err := cmd.CombinedOutput(); err != nil {
		return nil, fmt.Errorf("go build ./ledger: %w: %s", err, out)
	}
	return os.ReadFile(at)
})

// writeBox writes box.tar, what docker import makes the image box of.
func writeBox(path string) error {
	entries, err := boxEntries()
	if err != nil {
		return err
	}
	data, err := pack(entries)
	if err != nil {
		return err
	}
	return os.WriteFile(path, data, 0o644)
}

// layers are the two layers of the images that archives and the registry hold: box, and one that adds, replaces and deletes.
func layers() ([][]byte, error) {
	entries, err := boxEntries()
	if err != nil {
		return nil, err
	}
	base, err := pack(entries)
	if err != nil {
		return nil, err
	}
	top, err := pack([]entry{
		{name: "added", mode: 0o644, content: []byte("by the second layer\n")},
		{name: "noexec", mode: 0o644, content: []byte("replaced\n")},
		{name: "seed/", mode: 0o750, uid: 7, gid: 8},
		{name: "seed/.wh.sub", mode: 0o600},
	})
	return [][]byte{base, top}, err
}

func digest(data []byte) string { return fmt.Sprintf("%x", sha256.Sum256(data)) }

// imageConfig is the configuration of the two-layer image (OCI image-spec config.md).
func imageConfig(layers [][]byte) ([]byte, error) {
	var diffs []string
	for _, l := range layers {
		diffs = append(diffs, "sha256:"+digest(l))
	}
	return json.Marshal(map[string]any{
		"architecture": "amd64", "os": "linux", "created": "2024-01-02T03:04:05Z",
		"config": map[string]any{"Cmd": []string{"cat", "/added"}, "Env": []string{"FROM=archive"}, "Labels": map[string]string{"made": "by-hand"}},
		"rootfs": map[string]any{"type": "layers", "diff_ids": diffs},
		"history": []map[string]any{
			{"created": "2024-01-02T03:04:05Z", "created_by": "box"},
			{"created": "2024-01-02T03:04:05Z", "created_by": "second layer"},
		},
	})
}

func archiveCmd(ts *testscript.TestScript, neg bool, args []string) {
	usage(ts, !neg && len(args) == 2, "archive docker|oci|truncated|badlayer|notatar FILE")
	ls, err := layers()
	ts.Check(err)
	config, err := imageConfig(ls)
	ts.Check(err)
	var data []byte
	switch kind := args[0]; kind {
	case "docker", "badlayer", "truncated":
		if kind == "badlayer" {
			ls[1] = append(bytes.Clone(ls[1]), make([]byte, 1024)...) // not what its digest says
		}
		data, err = dockerArchive(ls, config)
		ts.Check(err)
		if kind == "truncated" {
			data = data[:len(data)/2]
		}
	case "oci":
		data, err = ociArchive(ls, config)
		ts.Check(err)
	case "notatar":
		data = bytes.Repeat([]byte("this is not a tar archive\n"), 1000)
	default:
		usage(ts, false, "archive docker|oci|truncated|badlayer|notatar FILE")
	}
	ts.Check(os.WriteFile(ts.MkAbs(args[1]), data, 0o644))
}

// dockerArchive is what docker save writes (the image is called archived:v1).
func dockerArchive(layers [][]byte, config []byte) ([]byte, error) {
	manifest, err := json.Marshal([]map[string]any{{"Config": digest(config) + ".json", "RepoTags": []string{"archived:v1"}, "Layers": []string{"0/layer.tar", "1/layer.tar"}}})
	if err != nil {
		return nil, err
	}
	return pack([]entry{
		{name: digest(config) + ".json", mode: 0o644, content: config},
		{name: "0/layer.tar", mode: 0o644, content: layers[0]}, {name: "1/layer.tar", mode: 0o644, content: layers[1]},
		{name: "manifest.json", mode: 0o644, content: manifest},
	})
}

// ociArchive is an OCI image layout (image-layout.md) with gzip layers, in a tar.
func ociArchive(layers [][]byte, config []byte) ([]byte, error) {
	var blobs []entry
	type descriptor struct {
		MediaType   string            `json:"mediaType"`
		Digest      string            `json:"digest"`
		Size        int               `json:"size"`
		Annotations map[string]string `json:"annotations,omitempty"`
	}
	add := func(media string, data []byte) descriptor {
		blobs = append(blobs, entry{name: "blobs/sha256/" + digest(data), mode: 0o644, content: data})
		return descriptor{MediaType: media, Digest: "sha256:" + digest(data), Size: len(data)}
	}
	var ls []descriptor
	for _, l := range layers {
		var z bytes.Buffer
		w := gzip.NewWriter(&z)
		if _, err := w.Write(l); err != nil {
			return nil, err
		}
		if err := w.Close(); err != nil {
			return nil, err
		}
		ls = append(ls, add("application/vnd.oci.image.layer.v1.tar+gzip", z.Bytes()))
	}
	manifest, err := json.Marshal(map[string]any{"schemaVersion": 2, "mediaType": "application/vnd.oci.image.manifest.v1+json",
		"config": add("application/vnd.oci.image.config.v1+json", config), "layers": ls})
	if err != nil {
		return nil, err
	}
	m := add("application/vnd.oci.image.manifest.v1+json", manifest)
	m.Annotations = map[string]string{"org.opencontainers.image.ref.name": "archived:oci", "io.containerd.image.name": "docker.io/library/archived:oci"}
	index, err := json.Marshal(map[string]any{"schemaVersion": 2, "mediaType": "application/vnd.oci.image.index.v1+json", "manifests": []descriptor{m}})
	if err != nil {
		return nil, err
	}
	return pack(append([]entry{
		{name: "oci-layout", mode: 0o644, content: []byte(`{"imageLayoutVersion":"1.0.0"}`)},
		{name: "index.json", mode: 0o644, content: index},
		{name: "blobs/", mode: 0o755}, {name: "blobs/sha256/", mode: 0o755},
	}, blobs...))
}
