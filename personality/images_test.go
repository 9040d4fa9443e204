package personality

import (
	"bytes"
	"encoding/json"
	"fmt"
	"io"
	"log"
	"net/http"
	"net/http/httptest"
	"net/url"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-containerregistry/pkg/name"
	"github.com/google/go-containerregistry/pkg/registry"
	"github.com/google/go-containerregistry/pkg/v1/mutate"
	"github.com/google/go-containerregistry/pkg/v1/random"
	"github.com/google/go-containerregistry/pkg/v1/remote"
	"github.com/google/go-containerregistry/pkg/v1/tarball"
	"github.com/moby/moby/api/pkg/authconfig"
	"github.com/moby/moby/api/types/image"
	dockerregistry "github.com/moby/moby/api/types/registry"
	"github.com/moby/moby/client"

	"vch/internal/fault"
	"vch/portlayer"
)

func TestImageImport(t *testing.T) {
	w := newWorld(t)
	id := w.importImage("demo:1", `CMD ["sh"]`, "ENV A=b", "EXPOSE 80")
	var shown image.InspectResponse
	w.ask(&shown, "GET", "/images/demo:1/json", "")
	if shown.ID != id || !slices.Equal(shown.RepoTags, []string{"demo:1"}) || shown.Config == nil || !slices.Equal(shown.Config.Cmd, []string{"sh"}) || !slices.Equal(shown.Config.Env, []string{"A=b"}) {
		t.Errorf("%+v", shown)
	}
	w.refused(400, "is not a valid change command", "POST", "/images/create?fromSrc=-&changes="+url.QueryEscape("RUN x"), "")
	w.refused(400, "importing from http://x/y.tar is not supported by vch", "POST", "/images/create?fromSrc="+url.QueryEscape("http://x/y.tar"), "")
	w.refused(400, "neither fromImage nor fromSrc is given", "POST", "/images/create", "")
	w.refused(400, "cannot import digest reference", "POST", "/images/create?fromSrc=-&repo=x&tag=sha256:abc", "")
	status, answer := w.send("POST", "/images/create?fromSrc=-&repo=bad", http.Header{}, strings.NewReader("this is no archive at all"))
	if status != 400 && !strings.Contains(answer, `"errorDetail"`) {
		t.Errorf("a broken archive: %d %s", status, answer)
	}
	if status, _ := w.call("GET", "/images/bad/json", ""); status != 404 {
		t.Errorf("a broken archive made an image")
	}
}

// archive is a docker-save archive of one random image.
func archive(t *testing.T, tag string) []byte {
	t.Helper()
	img, err := random.Image(1024, 2)
	if err != nil {
		t.Fatal(err)
	}
	cfg, err := img.ConfigFile()
	if err != nil {
		t.Fatal(err)
	}
	cfg.OS, cfg.Architecture = "linux", "amd64"
	if img, err = mutate.ConfigFile(img, cfg); err != nil {
		t.Fatal(err)
	}
	ref, err := name.NewTag(tag)
	if err != nil {
		t.Fatal(err)
	}
	var b bytes.Buffer
	if err := tarball.Write(ref, img, &b); err != nil {
		t.Fatal(err)
	}
	return b.Bytes()
}

func TestImageLoad(t *testing.T) {
	w := newWorld(t)
	status, answer := w.send("POST", "/images/load?quiet=1", http.Header{}, bytes.NewReader(archive(t, "loaded:1")))
	if want := `{"stream":"Loaded image: loaded:1\n"}`; status != 200 || answer != want {
		t.Errorf("%d %s, want %s", status, answer, want)
	}
	status, answer = w.send("POST", "/v1.41/images/load?quiet=0", http.Header{}, bytes.NewReader(archive(t, "loaded:2")))
	if status != 200 || !strings.HasSuffix(answer, `{"stream":"Loaded image: loaded:2\n"}`) {
		t.Errorf("%d %s", status, answer)
	}
	status, answer = w.send("POST", "/images/load?quiet=1", http.Header{}, strings.NewReader(strings.Repeat("no archive ", 1000)))
	if status != 400 || !strings.HasPrefix(answer, `{"message":`) {
		t.Errorf("a broken archive: %d %s", status, answer)
	}
	w.refused(400, "is not supported by vch", "POST", "/images/load?platform="+url.QueryEscape(`{"os":"linux"}`), "")
	if got := loadedLines(portlayer.Image{ID: "sha256:ab"}); !slices.Equal(got, []string{"Loaded image ID: sha256:ab\n"}) {
		t.Error(got)
	}
}

func TestImageSave(t *testing.T) {
	w := newWorld(t)
	id := w.importImage("one:1")
	w.ask(nil, "POST", "/images/one:1/tag?repo=one&tag=2", "")
	for _, path := range []string{"/images/one/get", "/images/get?names=one:1&names=one:2", "/v1.41/images/" + id + "/get"} {
		status, saved := w.send("GET", path, http.Header{}, nil)
		if status != 200 {
			t.Fatalf("%s: %d %s", path, status, saved)
		}
		tagged := !strings.Contains(path, id)
		for _, tag := range []string{"one:1", "one:2"} {
			if strings.Contains(saved, `"`+tag+`"`) != tagged {
				t.Errorf("%s: %s is in it: %v", path, tag, !tagged)
			}
		}
		w.ask(nil, "DELETE", "/images/"+id+"?force=1", "")
		if status, answer := w.send("POST", "/images/load?quiet=1", http.Header{}, strings.NewReader(saved)); status != 200 {
			t.Fatalf("%s: what was saved is not loaded: %d %s", path, status, answer)
		}
		if status, answer := w.call("GET", "/images/"+id+"/json", ""); status != 200 {
			t.Fatalf("%s: %d %s", path, status, answer)
		}
	}
	w.refused(404, "No such image: none", "GET", "/images/none/get", "")
	w.refused(400, "say which images are to be saved", "GET", "/images/get", "")
	w.refused(400, "is not supported by vch", "GET", "/images/get?names=one:1&platform=x", "")
}

func TestImagePush(t *testing.T) {
	handler := registry.New(registry.Logger(log.New(io.Discard, "", 0)))
	srv := httptest.NewServer(handler)
	defer srv.Close()
	host := strings.TrimPrefix(srv.URL, "http://")
	w := newWorld(t)
	id := w.importImage("tool:1")
	w.ask(nil, "POST", "/images/tool:1/tag?repo="+host+"/team/tool&tag=1", "")
	w.ask(nil, "POST", "/images/"+id+"/tag?repo="+host+"/team/tool&tag=2", "")
	status, answer := w.call("POST", "/images/"+host+"/team/tool/push?tag=1", "")
	if status != 200 || strings.Contains(answer, "error") {
		t.Fatalf("%d %s", status, answer)
	}
	lines := strings.Split(answer, "\n")
	var last struct{ Aux pushResult }
	if err := json.Unmarshal([]byte(lines[len(lines)-1]), &last); err != nil || last.Aux.Tag != "1" || last.Aux.Size == 0 {
		t.Errorf("%v in %s", err, lines[len(lines)-1])
	}
	var d struct {
		Descriptor struct{ Digest string }
		Platforms  []struct{ OS, Architecture string }
	}
	w.ask(&d, "GET", "/distribution/"+host+"/team/tool:1/json", "")
	if d.Descriptor.Digest != last.Aux.Digest || len(d.Platforms) != 1 || d.Platforms[0].OS != "linux" {
		t.Errorf("%+v is not what was pushed, %+v", d, last)
	}
	w.refused(404, "manifest unknown", "GET", "/distribution/"+host+"/team/tool:2/json", "")
	if status, answer := w.call("POST", "/images/"+host+"/team/tool/push", ""); status != 200 || strings.Count(answer, "digest: sha256:") != 2 {
		t.Errorf("all tags: %d %s", status, answer)
	}
	w.ask(nil, "DELETE", "/images/"+id+"?force=1", "")
	if status, answer := w.call("POST", "/images/create?fromImage="+host+"/team/tool&tag=2", ""); status != 200 {
		t.Fatalf("%d %s", status, answer)
	}
	if status, _ := w.call("GET", "/images/"+id+"/json", ""); status != 200 {
		t.Error("what was pushed is not what is pulled")
	}
	w.refused(404, "does not exist locally with the tag", "POST", "/images/"+host+"/team/none/push?tag=1", "")
	w.refused(404, "does not exist locally with the tag", "POST", "/images/"+host+"/team/none/push", "")
	w.refused(400, "cannot push a digest reference", "POST", "/images/x@"+last.Aux.Digest+"/push", "")
}

// TestImagePull pulls from a registry in this process that wants a password.
func TestImagePull(t *testing.T) {
	handler := registry.New(registry.Logger(log.New(io.Discard, "", 0)))
	const user, password = "me", "secret"
	srv := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if u, p, _ := r.BasicAuth(); strings.HasPrefix(r.URL.Path, "/v2/private/") && r.Method == "GET" && (u != user || p != password) {
			w.Header().Set("WWW-Authenticate", `Basic realm="here"`)
			http.Error(w, "{}", http.StatusUnauthorized)
			return
		}
		if r.URL.Path == "/v2/" {
			w.Header().Set("WWW-Authenticate", `Basic realm="here"`)
			if u, p, _ := r.BasicAuth(); u != user || p != password {
				http.Error(w, "{}", http.StatusUnauthorized)
				return
			}
		}
		handler.ServeHTTP(w, r)
	}))
	defer srv.Close()
	host := strings.TrimPrefix(srv.URL, "http://")
	img, err := random.Image(512, 1)
	if err != nil {
		t.Fatal(err)
	}
	cfg, err := img.ConfigFile()
	if err != nil {
		t.Fatal(err)
	}
	cfg.OS, cfg.Architecture = "linux", "amd64"
	if img, err = mutate.ConfigFile(img, cfg); err != nil {
		t.Fatal(err)
	}
	pushTo, err := name.ParseReference(host + "/private/tool:1")
	if err != nil {
		t.Fatal(err)
	}
	direct := httptest.NewServer(handler) // the same registry by its back door
	defer direct.Close()
	back, err := name.ParseReference(strings.TrimPrefix(direct.URL, "http://") + "/private/tool:1")
	if err != nil {
		t.Fatal(err)
	}
	if err := remote.Write(back, img); err != nil {
		t.Fatal(err)
	}
	http.DefaultTransport.(*http.Transport).CloseIdleConnections()

	w := newWorld(t)
	c := w.client("")
	pull := func(auth string) error {
		out, err := c.ImagePull(t.Context(), pushTo.String(), client.ImagePullOptions{RegistryAuth: auth})
		if err != nil {
			return err
		}
		defer out.Close()
		return out.Wait(t.Context())
	}
	if err := pull(""); err == nil {
		t.Error("pulled without a password")
	}
	auth, err := authconfig.Encode(dockerregistry.AuthConfig{Username: user, Password: password})
	if err != nil {
		t.Fatal(err)
	}
	if err := pull(auth); err != nil {
		t.Fatal(err)
	}
	w.ask(nil, "GET", "/images/"+pushTo.String()+"/json", "") // its name has slashes

	// The lines of the second pull: nothing is fetched.
	q := url.Values{"fromImage": {host + "/private/tool"}, "tag": {"1"}}
	status, answer := w.send("POST", "/images/create?"+q.Encode(), http.Header{"X-Registry-Auth": {auth}}, http.NoBody)
	if status != 200 || !strings.Contains(answer, `"status":"Digest: sha256:`) || !strings.Contains(answer, "Image is up to date") {
		t.Errorf("%d %s", status, answer)
	}
	w.refused(400, "pulling all tags of busybox (--all-tags) is not supported by vch", "POST", "/images/create?fromImage=busybox", "")
	w.refused(400, "give one of them", "POST", "/images/create?fromImage=busybox&tag=1&changes=x", "")
	status, answer = w.send("POST", "/images/create?"+q.Encode(), http.Header{"X-Registry-Auth": {"%%%"}}, http.NoBody)
	if status != 400 || !strings.Contains(answer, "invalid X-Registry-Auth header") {
		t.Errorf("%d %s", status, answer)
	}

	// The same registry for docker login.
	var ok dockerregistry.AuthResponse
	w.ask(&ok, "POST", "/auth", fmt.Sprintf(`{"username":%q,"password":%q,"serveraddress":%q}`, user, password, host))
	if ok.Status == "" {
		t.Error("a login without a status")
	}
	if status, answer := w.call("POST", "/auth", fmt.Sprintf(`{"username":%q,"password":"wrong","serveraddress":%q}`, user, host)); status != 401 {
		t.Errorf("a wrong password: %d %s", status, answer)
	}
}

func TestCredentials(t *testing.T) {
	got, err := credentials(&dockerregistry.AuthConfig{Auth: "bWU6c2VjOnJldA=="})
	if err != nil || got.Username != "me" || got.Password != "sec:ret" {
		t.Errorf("%+v, %v", got, err)
	}
	if _, err := credentials(&dockerregistry.AuthConfig{Auth: "***"}); !fault.Is(err, fault.Invalid) {
		t.Errorf("%v", err)
	}
	got, err = credentials(&dockerregistry.AuthConfig{IdentityToken: "a", RegistryToken: "b"})
	if err != nil || got.IdentityToken != "a" || got.RegistryToken != "b" {
		t.Errorf("%+v, %v", got, err)
	}
}

func TestImageList(t *testing.T) {
	w := newWorld(t)
	one := w.importImage("one:1", "LABEL a=b")
	two := w.importImage("team/two:1", "LABEL a=c")
	w.ask(nil, "POST", "/images/one:1/tag?repo=alias&tag=x", "")
	bare := w.importImage("") // without a name
	for _, tt := range []struct{ filter, want string }{
		{``, "alias:x,one:1 team/two:1 "},
		{`{"dangling":{"true":true}}`, ""},
		{`{"dangling":{"false":true}}`, "alias:x,one:1 team/two:1"},
		{`{"label":{"a":true}}`, "alias:x,one:1 team/two:1"},
		{`{"label":{"a=b":true}}`, "alias:x,one:1"},
		{`{"label!":{"a=b":true}}`, "team/two:1 "},
		{`{"reference":{"one":true}}`, "one:1"},
		{`{"reference":{"*/two:*":true,"alias":true}}`, "alias:x team/two:1"},
		{`{"reference":["none"]}`, "-"},
		{`{"until":{"1h":true}}`, "-"},
		{`{"until":{"-1h":true}}`, "alias:x,one:1 team/two:1 "},
		{`{"since":{"` + one + `":true}}`, "team/two:1 "},
		{`{"before":{"` + two + `":true}}`, "alias:x,one:1"},
	} {
		var list []image.Summary
		w.ask(&list, "GET", "/images/json?shared-size=1&"+url.Values{"filters": {tt.filter}}.Encode(), "")
		lines := []string{}
		for _, img := range list {
			lines = append(lines, strings.Join(img.RepoTags, ","))
			if img.SharedSize < 0 || img.Containers != -1 {
				t.Errorf("%s: %+v", tt.filter, img)
			}
		}
		slices.Sort(lines)
		slices.SortStableFunc(lines, func(a, b string) int { return len(strings.TrimSpace(b+" ")) - len(strings.TrimSpace(a+" ")) })
		want := strings.Split(tt.want, " ")
		if tt.want == "-" {
			want = []string{}
		}
		slices.Sort(want)
		slices.Sort(lines)
		if !slices.Equal(lines, want) {
			t.Errorf("%s: %q, want %q", tt.filter, lines, want)
		}
	}
	w.refused(400, "invalid filter 'bogus'", "GET", "/images/json?filters="+url.QueryEscape(`{"bogus":["x"]}`), "")
	w.refused(400, "invalid filter 'reference=[[]'", "GET", "/images/json?filters="+url.QueryEscape(`{"reference":["["]}`), "")
	w.refused(404, "nothing", "GET", "/images/json?filters="+url.QueryEscape(`{"before":["nothing"]}`), "")
	w.refused(400, "until", "GET", "/images/json?filters="+url.QueryEscape(`{"until":["1h","2h"]}`), "")

	var old []map[string]any
	w.ask(&old, "GET", "/v1.41/images/json?filters="+url.QueryEscape(`{"dangling":["1"]}`), "")
	if len(old) != 1 || old[0]["Id"] != bare || fmt.Sprint(old[0]["RepoTags"]) != "[<none>:<none>]" || old[0]["VirtualSize"] == nil {
		t.Errorf("%v", old)
	}
}

func TestImageInspect(t *testing.T) {
	w := newWorld(t)
	id := w.importImage("team/demo:1", "VOLUME /data", "USER 5")
	for _, ref := range []string{"team/demo:1", "docker.io/team/demo:1", id, strings.TrimPrefix(id, "sha256:")[:12]} {
		var shown image.InspectResponse
		w.ask(&shown, "GET", "/images/"+ref+"/json", "")
		if shown.ID != id || shown.Size == 0 || len(shown.RootFS.Layers) != 1 || shown.Config.User != "5" {
			t.Errorf("%s: %+v", ref, shown)
		}
	}
	w.refused(404, "No such image: none", "GET", "/images/none/json", "")
	w.refused(400, "platform={} is not supported by vch", "GET", "/images/team/demo:1/json?platform={}", "")
}

func TestImageHistory(t *testing.T) {
	w := newWorld(t)
	id := w.importImage("team/demo:1")
	var steps []image.HistoryResponseItem
	w.ask(&steps, "GET", "/images/team/demo:1/history", "")
	if len(steps) != 1 || steps[0].ID != id || !slices.Equal(steps[0].Tags, []string{"team/demo:1"}) || steps[0].Size == 0 {
		t.Errorf("%+v", steps)
	}
	w.refused(404, "No such image", "GET", "/images/none/history", "")
}

func TestImageTag(t *testing.T) {
	w := newWorld(t)
	w.importImage("demo:1")
	if status, answer := w.call("POST", "/images/demo:1/tag?repo=localhost:5000/team/demo&tag=2", ""); status != 201 || answer != "" {
		t.Errorf("%d %s", status, answer)
	}
	w.ask(nil, "GET", "/images/localhost:5000/team/demo:2/json", "")
	w.refused(400, "repository name must have at least one component", "POST", "/images/demo:1/tag", "")
	w.refused(404, "No such image", "POST", "/images/none/tag?repo=x", "")
	if status, answer := w.call("POST", "/images/demo:1/tag?repo=UPPER", ""); status != 400 {
		t.Errorf("%d %s", status, answer)
	}
}

func TestImageRemove(t *testing.T) {
	w := newWorld(t)
	id := w.importImage("demo:1")
	w.ask(nil, "POST", "/images/demo:1/tag?repo=team/other&tag=2", "")
	var gone []image.DeleteResponse
	w.ask(&gone, "DELETE", "/images/team/other:2", "")
	if d := cmp.Diff([]image.DeleteResponse{{Untagged: "team/other:2"}}, gone); d != "" {
		t.Error(d)
	}
	w.ask(&gone, "DELETE", "/images/demo:1?force=1", "")
	if len(gone) < 2 || gone[0].Untagged != "demo:1" || gone[1].Deleted != id {
		t.Errorf("%+v", gone)
	}
	w.refused(404, "No such image", "DELETE", "/images/demo:1", "")
	w.refused(400, "platforms={} is not supported by vch", "DELETE", "/images/demo:1?platforms={}", "")
}

func TestImagePrune(t *testing.T) {
	w := newWorld(t)
	w.importImage("demo:1", "LABEL keep=1")
	w.importImage("")
	prune := func(filter string) image.PruneReport {
		var report image.PruneReport
		w.ask(&report, "POST", "/images/prune?filters="+url.QueryEscape(filter), "")
		return report
	}
	if r := prune(`{"until":["1h"]}`); len(r.ImagesDeleted) != 0 {
		t.Errorf("%+v", r)
	}
	if r := prune(`{"label":["keep"]}`); len(r.ImagesDeleted) != 0 {
		t.Errorf("%+v", r)
	}
	if r := prune(``); len(r.ImagesDeleted) == 0 || r.SpaceReclaimed == 0 {
		t.Errorf("%+v", r)
	}
	w.ask(nil, "GET", "/images/demo:1/json", "")
	if r := prune(`{"dangling":["false"],"label!":["keep"]}`); len(r.ImagesDeleted) != 0 {
		t.Errorf("%+v", r)
	}
	if r := prune(`{"dangling":["0"]}`); len(r.ImagesDeleted) == 0 {
		t.Errorf("%+v", r)
	}
	w.refused(400, "invalid filter 'dangling=[x]'", "POST", "/images/prune?filters="+url.QueryEscape(`{"dangling":["x"]}`), "")
	w.refused(404, "No such image", "GET", "/images/demo:1/json", "")
}

func TestBuildPrune(t *testing.T) {
	w := newWorld(t)
	if status, answer := w.call("POST", "/build/prune", ""); status != 200 || answer != `{"CachesDeleted":[],"SpaceReclaimed":0}` {
		t.Errorf("%d %s", status, answer)
	}
}

// TestImagesByClient proves that the real client, old and new, understands every answer.
func TestImagesByClient(t *testing.T) {
	for _, version := range []string{"", "1.41"} {
		t.Run("version "+version, func(t *testing.T) {
			w, ctx := newWorld(t), t.Context()
			c := w.client(version)
			load, err := c.ImageLoad(ctx, bytes.NewReader(archive(t, "demo:1")))
			if err != nil {
				t.Fatal(err)
			}
			text, err := io.ReadAll(load)
			if err != nil || !strings.Contains(string(text), "Loaded image: demo:1") {
				t.Fatalf("%s, %v", text, err)
			}
			if err := load.Close(); err != nil {
				t.Error(err)
			}
			list, err := c.ImageList(ctx, client.ImageListOptions{})
			if err != nil || len(list.Items) != 1 {
				t.Fatalf("%+v, %v", list, err)
			}
			got, err := c.ImageInspect(ctx, "demo:1")
			if err != nil || got.ID != list.Items[0].ID {
				t.Errorf("%+v, %v", got, err)
			}
			if _, err := c.ImageHistory(ctx, "demo:1"); err != nil {
				t.Error(err)
			}
			if _, err := c.ImageTag(ctx, client.ImageTagOptions{Source: "demo:1", Target: "demo:2"}); err != nil {
				t.Error(err)
			}
			if _, err := c.ImageRemove(ctx, "demo:2", client.ImageRemoveOptions{}); err != nil {
				t.Error(err)
			}
		})
	}
}

// TestProgressStream proves that an error is an answer of its own before the first line, and the last line after.
func TestProgressStream(t *testing.T) {
	boom := fault.New(fault.NotFound, "no such tag")
	rec := httptest.NewRecorder()
	out := newProgressStream(rec)
	if err := out.finish(boom); err != boom || rec.Body.Len() != 0 {
		t.Errorf("%v, %s", err, rec.Body)
	}
	out.progress(portlayer.Progress{ID: "ab", Status: "Downloading", Current: 5, Total: 10})
	out.progress(portlayer.Progress{Status: "Pulling <x>"})
	if err := out.finish(boom); err != nil {
		t.Error(err)
	}
	want := `{"status":"Downloading","progressDetail":{"current":5,"total":10},"id":"ab"}
{"status":"Pulling <x>"}
{"errorDetail":{"message":"no such tag"},"error":"no such tag"}
`
	if rec.Body.String() != want || !rec.Flushed {
		t.Errorf("%s", rec.Body)
	}
}

func TestSharedSizes(t *testing.T) {
	step := func(n portlayer.Bytes) portlayer.ImageHistory {
		return portlayer.ImageHistory{Created: time.Now(), Size: n}
	}
	empty := portlayer.ImageHistory{EmptyLayer: true}
	all := []portlayer.Image{
		{ID: "a", DiffIDs: []string{"x", "y"}, History: []portlayer.ImageHistory{step(10), empty, step(5)}},
		{ID: "b", DiffIDs: []string{"x"}, History: []portlayer.ImageHistory{step(10)}},
		{ID: "c", DiffIDs: []string{"z"}, History: []portlayer.ImageHistory{step(7)}},
	}
	got, err := json.Marshal(sharedSizes(all))
	if err != nil || string(got) != `{"a":10,"b":10,"c":0}` {
		t.Errorf("%s, %v", got, err)
	}
	_, layers := imageUsage(all, nil, maxVersion)
	if layers != 22 {
		t.Errorf("layers %d", layers)
	}
}
