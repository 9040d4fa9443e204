package personality

import (
	"archive/tar"
	"bytes"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"strings"
	"testing"

	"vch/portlayer/volume/volumetest"
)

// outcome is the end of a long answer.
func (w *world) outcome(method, path, body string, result any) (failure string) {
	w.t.Helper()
	status, answer := w.call(method, path, body)
	if status != 200 {
		return answer
	}
	for lines := json.NewDecoder(strings.NewReader(answer)); ; {
		var line struct {
			Done, Total int64
			Error       string
			Result      json.RawMessage
		}
		if err := lines.Decode(&line); err != nil {
			w.t.Fatalf("%s: %v", answer, err)
		}
		switch {
		case line.Error != "":
			return line.Error
		case line.Result != nil:
			if err := json.Unmarshal(line.Result, result); err != nil {
				w.t.Fatal(err)
			}
			return ""
		case line.Done > line.Total:
			w.t.Errorf("%d of %d bytes", line.Done, line.Total)
		}
	}
}

func TestVolumeProtect(t *testing.T) {
	w := newWorld(t)
	w.ask(nil, "POST", "/volumes/create", `{"Name":"data","Labels":{"a":"b"}}`)
	if status, answer := w.call("POST", "/vch/volumes/data/protect", ""); status != 200 || !strings.Contains(answer, `"vch.protect":"true"`) || !strings.Contains(answer, `"a":"b"`) {
		t.Errorf("%d %s", status, answer)
	}
	w.refused(409, "remove data: the volume is protected by its label vch.protect; take that away first: vch volume unprotect data", "DELETE", "/volumes/data?force=1", "")
	if status, answer := w.call("POST", "/volumes/prune?filters=%7B%22all%22%3A%5B%22true%22%5D%7D", ""); status != 200 || strings.Contains(answer, "data") {
		t.Errorf("%d %s", status, answer)
	}
	if status, answer := w.call("DELETE", "/vch/volumes/data@default/protect", ""); status != 200 || strings.Contains(answer, "vch.protect") || !strings.Contains(answer, `"a":"b"`) {
		t.Errorf("%d %s", status, answer)
	}
	if status, answer := w.call("DELETE", "/volumes/data", ""); status != 204 {
		t.Errorf("%d %s", status, answer)
	}
	w.refused(404, "get data: no such volume", "POST", "/vch/volumes/data/protect", "")
}

func TestVolumeResize(t *testing.T) {
	w := newWorld(t)
	w.ask(nil, "POST", "/volumes/create", `{"Name":"data"}`)
	var v struct {
		Name   string
		Status map[string]any
	}
	w.ask(&v, "POST", "/vch/volumes/data/resize", `{"Capacity":"12M"}`)
	w.ask(&v, "GET", "/volumes/data", "")
	if v.Name != "data" || v.Status["Capacity"] != "12MiB" {
		t.Errorf("%+v", v)
	}
	w.refused(400, "volume data has 12MiB (12582912 bytes), and cannot shrink to 8MiB (8388608 bytes)", "POST", "/vch/volumes/data/resize", `{"Capacity":"8M"}`)
	w.refused(404, "get none: no such volume", "POST", "/vch/volumes/none/resize", `{"Capacity":"8M"}`)
	if status, answer := w.call("POST", "/vch/volumes/data/resize", `{"Capacity":"much"}`); status != 400 || !strings.Contains(answer, "much") {
		t.Errorf("%d %s", status, answer)
	}
}

func TestVolumeRename(t *testing.T) {
	w := newWorld(t)
	w.ask(nil, "POST", "/volumes/create", `{"Name":"data","Labels":{"a":"b"}}`)
	w.ask(nil, "POST", "/volumes/create", `{"Name":"other"}`)
	w.refused(409, "rename data: there is a volume other already (other@default); choose another name", "POST", "/vch/volumes/data/rename", `{"Name":"other"}`)
	var v struct {
		Name   string
		Labels map[string]string
	}
	w.ask(&v, "POST", "/vch/volumes/data/rename", `{"Name":"new"}`)
	if v.Name != "new" || v.Labels["a"] != "b" {
		t.Errorf("%+v", v)
	}
	w.refused(404, "get data: no such volume", "GET", "/volumes/data", "")
	if status, answer := w.call("POST", "/vch/volumes/new/rename", `{"Name":"a/b"}`); status != 400 {
		t.Errorf("%d %s", status, answer)
	}
}

// A directory of a store that has such becomes a volume, which shows how it is kept, has no capacity, and takes its store's options.
func TestVolumeAdopt(t *testing.T) {
	w := newWorld(t, volumetest.NewDirectories("remote", "projects/site", "old"))
	var v struct{ Name string }
	w.ask(&v, "POST", "/vch/volumes/site/adopt", `{"Store":"remote","Directory":"projects/site","Labels":{"a":"b"},"Options":{"soft":""}}`)
	if v.Name != "site" {
		t.Errorf("%+v", v)
	}
	var shown struct {
		Driver, Mountpoint string
		Labels, Options    map[string]string
		Status             map[string]any
	}
	w.ask(&shown, "GET", "/volumes/site", "")
	_, capacity := shown.Status["Capacity"]
	_, allocated := shown.Status["Allocated"]
	if shown.Driver != volumetest.DirectoriesDriver || shown.Mountpoint != "nfs://memory/remote/volumes/site" || shown.Labels["a"] != "b" || fmt.Sprint(shown.Status["Settings"]) != "[soft=true]" || capacity || allocated {
		t.Errorf("%+v", shown)
	}
	w.refused(409, "volume site is in store remote already", "POST", "/vch/volumes/site/adopt", `{"Store":"remote","Directory":"old"}`)
	w.refused(404, "there is no directory none in nfs://memory/remote", "POST", "/vch/volumes/more/adopt", `{"Store":"remote","Directory":"none"}`)
	for body, says := range map[string]string{
		`{"Store":"default","Directory":"old"}`:                             "store default keeps volumes as disks",
		`{"Store":"nowhere","Directory":"old"}`:                             "no volume store is called nowhere",
		`{"Store":"remote","Directory":"old","Options":{"Capacity":"1G"}}`:  "option Capacity: store remote cannot limit a volume",
		`{"Store":"remote","Directory":"old","Options":{"bogus":"1"}}`:      "bogus",
		`{"Store":"remote","Directory":"old","Labels":{"vch.protect":"x"}}`: "vch.protect",
	} {
		if status, answer := w.call("POST", "/vch/volumes/more/adopt", body); status < 400 || status >= 500 && status != 501 || !strings.Contains(answer, says) {
			t.Errorf("%s: %d %s", body, status, answer)
		}
	}
	w.ask(nil, "POST", "/vch/volumes/old/adopt", `{"Store":"remote","Directory":"old"}`)
	w.ask(nil, "DELETE", "/volumes/old", "")
	w.refused(404, "get old: no such volume", "GET", "/volumes/old", "")
}

// There is one store here; the rest is volume_move.txtar's.
func TestVolumeMove(t *testing.T) {
	w := newWorld(t)
	w.ask(nil, "POST", "/volumes/create", `{"Name":"data"}`)
	w.refused(409, "volume data is in store default already", "POST", "/vch/volumes/data/move", `{"Store":"default"}`)
	if why := w.outcome("POST", "/vch/volumes/data/move", `{"Store":"none"}`, nil); !strings.Contains(why, "no volume store is called none") {
		t.Error(why)
	}
}

func TestVolumeSnapshots(t *testing.T) {
	w := newWorld(t)
	w.ask(nil, "POST", "/volumes/create", `{"Name":"data"}`)
	var made struct {
		Name     string
		Capacity int64
	}
	for _, name := range []string{"one", ""} {
		if why := w.outcome("POST", "/vch/volumes/data/snapshots", `{"Name":"`+name+`"}`, &made); why != "" || made.Name == "" || made.Capacity != 8<<20 {
			t.Errorf("%q, %+v", why, made)
		}
	}
	var list []struct{ Name string }
	w.ask(&list, "GET", "/vch/volumes/data/snapshots", "")
	if len(list) != 2 || list[0].Name != "one" || list[1].Name != made.Name {
		t.Errorf("%+v", list)
	}
	w.ask(nil, "POST", "/volumes/create", `{"Name":"copy","DriverOpts":{"from":"data@one"}}`)
	w.refused(409, "remove data: the volume has snapshots (one, "+made.Name+"), which would be lost; remove them first: vch volume snapshot rm data SNAPSHOT", "DELETE", "/volumes/data", "")
	for _, name := range []string{"one", made.Name} {
		if status, answer := w.call("DELETE", "/vch/volumes/data/snapshots/"+name, ""); status != 204 {
			t.Errorf("%d %s", status, answer)
		}
	}
	w.refused(404, "volume data in store default has no snapshot one", "DELETE", "/vch/volumes/data/snapshots/one", "")
	if status, answer := w.call("DELETE", "/volumes/data", ""); status != 204 {
		t.Errorf("%d %s", status, answer)
	}
}

func TestVolumeExport(t *testing.T) {
	w := newWorld(t)
	var archive bytes.Buffer
	tw := tar.NewWriter(&archive)
	for _, h := range []tar.Header{{Typeflag: tar.TypeDir, Name: "./", Mode: 0o755}, {Typeflag: tar.TypeReg, Name: "./f", Mode: 0o644, Size: 5}} {
		if err := tw.WriteHeader(&h); err != nil {
			t.Fatal(err)
		}
		if h.Size > 0 {
			if _, err := tw.Write([]byte("hello")); err != nil {
				t.Fatal(err)
			}
		}
	}
	if err := tw.Close(); err != nil {
		t.Fatal(err)
	}
	sum := sha256.Sum256(archive.Bytes())
	want := "sha256:" + hex.EncodeToString(sum[:])
	send := func(name, query string, body io.Reader) (int, string) {
		t.Helper()
		resp, err := w.http.Post("http://vch/vch/volumes/"+name+"/import?"+query, "application/x-tar", body)
		if err != nil {
			t.Fatal(err)
		}
		defer resp.Body.Close()
		text, err := io.ReadAll(resp.Body)
		if err != nil {
			t.Fatal(err)
		}
		return resp.StatusCode, string(text)
	}
	if status, answer := send("data", "opt=Capacity=12M&label=a=b&checksum="+want, bytes.NewReader(archive.Bytes())); status != 200 || !strings.Contains(answer, want) || !strings.Contains(answer, `"Name":"data"`) {
		t.Fatalf("%d %s", status, answer)
	}
	for query, body := range map[string]string{"checksum=sha256:00": archive.String(), "": "", "opt=none=1": archive.String(), "opt=from=data": archive.String()} {
		if status, answer := send("bad", query, strings.NewReader(body)); status != 400 {
			t.Errorf("%s: %d %s", query, status, answer)
		}
		w.refused(404, "get bad: no such volume", "GET", "/volumes/bad", "")
	}
	if status, answer := send("data", "", bytes.NewReader(archive.Bytes())); status != 409 || !strings.Contains(answer, "exists already") {
		t.Errorf("%d %s", status, answer)
	}
	resp, err := w.http.Get("http://vch/vch/volumes/data/export")
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	out, err := io.ReadAll(resp.Body)
	if err != nil || resp.StatusCode != http.StatusOK || resp.Header.Get("Content-Type") != "application/x-tar" {
		t.Fatalf("%d, %v", resp.StatusCode, err)
	}
	sum = sha256.Sum256(out)
	if got := resp.Trailer.Get("X-Vch-Checksum"); got != "sha256:"+hex.EncodeToString(sum[:]) {
		t.Errorf("checksum %s", got)
	}
	found := ""
	for tr := tar.NewReader(bytes.NewReader(out)); ; {
		h, err := tr.Next()
		if err == io.EOF {
			break
		}
		if err != nil {
			t.Fatal(err)
		}
		if h.Name == "./f" {
			text, err := io.ReadAll(tr)
			if err != nil {
				t.Fatal(err)
			}
			found = string(text)
		}
	}
	if found != "hello" {
		t.Errorf("the file holds %q", found)
	}
	w.refused(404, "get none: no such volume", "GET", "/vch/volumes/none/export", "")
}

func TestVolumeAttach(t *testing.T) {
	w := newWorld(t)
	w.importImage("img")
	w.create("web", "", "sleep", "1000")
	for _, running := range []bool{false, true} {
		if running {
			w.ask(nil, "POST", "/containers/web/start", "")
		}
		var m struct {
			Type, Name, Destination string
			RW                      bool
		}
		w.ask(&m, "POST", "/vch/containers/web/volumes", `{"Mount":"data:/srv:ro"}`)
		if m.Type != "volume" || m.Name != "data" || m.Destination != "/srv" || m.RW {
			t.Errorf("running %v: %+v", running, m)
		}
		var inspect struct {
			Mounts []struct{ Name string }
		}
		w.ask(&inspect, "GET", "/containers/web/json", "")
		if len(inspect.Mounts) != 1 || inspect.Mounts[0].Name != "data" {
			t.Errorf("running %v: %+v", running, inspect)
		}
		if status, answer := w.call("POST", "/vch/containers/web/volumes", `{"Mount":"other:/srv"}`); status != 409 || !strings.Contains(answer, "data mounted at /srv already") {
			t.Errorf("running %v: %d %s", running, status, answer)
		}
		w.ask(&m, "DELETE", "/vch/containers/web/volumes?target=/srv", "")
		if m.Name != "data" {
			t.Errorf("running %v: %+v", running, m)
		}
		if status, answer := w.call("DELETE", "/vch/containers/web/volumes?target=/srv", ""); status != 404 {
			t.Errorf("running %v: %d %s", running, status, answer)
		}
		if status, answer := w.call("DELETE", "/volumes/data", ""); status != 204 {
			t.Errorf("running %v: %d %s", running, status, answer)
		}
	}
	if status, answer := w.call("POST", "/vch/containers/web/volumes", `{"Mount":"/host:/srv"}`); status != 400 && status != 501 {
		t.Errorf("%d %s", status, answer)
	}
	if status, answer := w.call("POST", "/vch/containers/none/volumes", `{"Mount":"data:/srv"}`); status != 404 {
		t.Errorf("%d %s", status, answer)
	}
	if status, answer := w.call("DELETE", "/vch/containers/web/volumes", ""); status != 400 {
		t.Errorf("%d %s", status, answer)
	}
}
