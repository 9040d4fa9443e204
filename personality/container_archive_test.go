package personality

import (
	"archive/tar"
	"bytes"
	"compress/gzip"
	"encoding/base64"
	"encoding/json"
	"io"
	"net/http"
	"net/url"
	"strings"
	"testing"

	"github.com/moby/moby/api/types/container"
)

// archive sends a request for a container's path.
func (w *world) archive(method, ref, path, more string, body io.Reader) (*http.Response, []byte) {
	w.t.Helper()
	r, err := http.NewRequestWithContext(w.t.Context(), method, "http://docker/containers/"+ref+"/archive?path="+url.QueryEscape(path)+more, body)
	if err != nil {
		w.t.Fatal(err)
	}
	answer, err := w.http.Do(r)
	if err != nil {
		w.t.Fatal(err)
	}
	defer answer.Body.Close()
	data, err := io.ReadAll(answer.Body)
	if err != nil {
		w.t.Fatal(err)
	}
	return answer, data
}

// An archive goes in, plain or compressed, and comes out with what the path is in the header; what cannot be is refused as Moby refuses it.
func TestContainerArchive(t *testing.T) {
	w := newWorld(t)
	w.importImage("box:1")
	w.ask(nil, "POST", "/containers/create?name=web", `{"Image":"box:1","Cmd":["sleep","100"],"HostConfig":{"Binds":["data:/data","data:/ro:ro"]}}`)
	var zipped bytes.Buffer
	z := gzip.NewWriter(&zipped)
	if _, err := z.Write(rootTar(t, map[string]string{"zipped": "two"})); err != nil {
		t.Fatal(err)
	}
	if err := z.Close(); err != nil {
		t.Fatal(err)
	}
	for _, body := range []io.Reader{bytes.NewReader(rootTar(t, map[string]string{"plain": "one"})), &zipped} {
		if answer, text := w.archive("PUT", "web", "/data", "&noOverwriteDirNonDir=true&copyUIDGID=1", body); answer.StatusCode != 200 || len(text) != 0 {
			t.Errorf("put: %d %s", answer.StatusCode, text)
		}
	}
	head, _ := w.archive("HEAD", "web", "/data/zipped", "", nil)
	get, content := w.archive("GET", "web", "/data/zipped", "", nil)
	for _, answer := range []*http.Response{head, get} {
		text, err := base64.StdEncoding.DecodeString(answer.Header.Get("X-Docker-Container-Path-Stat"))
		var st container.PathStat
		if err == nil {
			err = json.Unmarshal(text, &st)
		}
		if err != nil || answer.StatusCode != 200 || st.Name != "zipped" || st.Size != 3 || !st.Mode.IsRegular() {
			t.Errorf("%s: %d, %s, %v", answer.Request.Method, answer.StatusCode, text, err)
		}
	}
	if kind := get.Header.Get("Content-Type"); kind != "application/x-tar" {
		t.Errorf("content type %s", kind)
	}
	tr := tar.NewReader(bytes.NewReader(content))
	h, err := tr.Next()
	if err != nil {
		t.Fatal(err)
	}
	data, err := io.ReadAll(tr)
	if err != nil || h.Name != "zipped" || string(data) != "two" {
		t.Errorf("got %s: %q, %v", h.Name, data, err)
	}
	if _, err := tr.Next(); err != io.EOF {
		t.Errorf("after it: %v", err)
	}

	climbing := rootTar(t, map[string]string{"../evil": "x"})
	for _, c := range []struct {
		method, ref, path string
		body              []byte
		status            int
		text              string
	}{
		{"GET", "web", "", nil, 400, "bad parameter"},
		{"PUT", "web", "", nil, 400, "bad parameter"},
		{"GET", "web", "/nope", nil, 404, "Could not find the file /nope in container web"},
		{"PUT", "web", "/nope", nil, 404, "Could not find the file /nope in container web"},
		{"GET", "none", "/", nil, 404, "No such container: none"},
		{"PUT", "none", "/", nil, 404, "No such container: none"},
		{"PUT", "web", "/data/plain", nil, 400, "extraction point is not a directory"},
		{"PUT", "web", "/ro", climbing, 400, "mounted volume is marked read-only"},
		{"PUT", "web", "/data", climbing, 500, `"../evil" is outside of "/data"`},
		{"PUT", "web", "/data", []byte(strings.Repeat("no tar ", 200)), 500, "cannot be read"},
	} {
		answer, text := w.archive(c.method, c.ref, c.path, "", bytes.NewReader(c.body))
		var m struct{ Message string }
		if err := json.Unmarshal(text, &m); err != nil || answer.StatusCode != c.status || !strings.Contains(m.Message, c.text) {
			t.Errorf("%s %s:%s: %d %s; want %d %s", c.method, c.ref, c.path, answer.StatusCode, text, c.status, c.text)
		}
	}
	for path, status := range map[string]int{"/nope": 404, "/data": 200, "": 400} {
		if answer, _ := w.archive("HEAD", "web", path, "", nil); answer.StatusCode != status {
			t.Errorf("HEAD %s: %d, want %d", path, answer.StatusCode, status)
		}
	}
}
