package personality

import (
	"bufio"
	"encoding/json"
	"fmt"
	"net/http"
	"net/url"
	"os"
	"path/filepath"
	"regexp"
	"sort"
	"strconv"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/moby/moby/api/types/container"
	"github.com/moby/moby/api/types/volume"
)

// mobyAnswers is a line of testdata/moby-volumes.jsonl: what a real engine answered, step by step, ids and paths replaced. Beside mountspec's
// testdata/moby.jsonl it holds all cases that were measured.
type mobyAnswers struct {
	Case string
	Got  []map[string]any
}

// elsewhere says of the cases that need a machine with a kernel where they are proved, by the beginning of their names.
var elsewhere = map[string]string{
	"combo ReadonlyRootfs + vol":              "test/e2e/testdata/container_read_only.txtar",
	"combo bind over file":                    "test/e2e/testdata/volume_over_file.txtar",
	"copyup anon":                             "test/e2e/testdata/volume_copyup_owner.txtar",
	"copyup mount volume":                     "test/e2e/testdata/volume_copyup_owner.txtar",
	"copyup emptied before start":             "test/e2e/testdata/volume_copyup_at_first_start.txtar",
	"copyup happens at create not start":      "test/e2e/testdata/volume_copyup_at_first_start.txtar",
	"copyup mount nocopy":                     "test/e2e/testdata/volume_nocopy.txtar",
	"copyup nonexistent target":               "test/e2e/testdata/volume_fresh.txtar",
	"copyup over empty dir":                   "test/e2e/testdata/volume_copyup_again_while_empty.txtar",
	"copyup second container other image dir": "test/e2e/testdata/volume_copyup_again_while_empty.txtar",
	"copyup subpath":                          "test/e2e/testdata/volume_subpath.txtar",
	"copyup tmpfs no copy":                    "test/e2e/testdata/mount_tmpfs.txtar",
	"copyup user on fresh dir":                "test/e2e/testdata/volume_fresh.txtar",
	"create while removing":                   "portlayer/volume/model_test.go",
	"events":                                  "test/e2e/testdata/volume_mount_events.txtar",
	"runtime: rw/ro/noexec":                   "test/e2e/testdata/volume_readonly.txtar",
	"system df volumes":                       "test/e2e/testdata/volume_df.txtar",
	"two running containers share":            "test/e2e/testdata/volume_one_writer.txtar",
	"archive into volume":                     "doc/docker-api.md", // unsupported yet: 501
	"export excludes volumes":                 "doc/docker-api.md", // unsupported yet: 501
}

func TestMobyVolumes(t *testing.T) {
	differ := map[string]struct {
		Case, Step, Why string
		Got             any
	}{}
	lines(t, "testdata/moby-volumes-differences.jsonl", func(line []byte) {
		var d struct {
			Case, Step, Why string
			Got             any
		}
		if err := json.Unmarshal(line, &d); err != nil || d.Why == "" {
			t.Fatalf("%s: %v", line, err)
		}
		differ[d.Case+" | "+d.Step] = d
	})
	replayed := 0
	lines(t, "testdata/moby-volumes.jsonl", func(line []byte) {
		var c mobyAnswers
		if err := json.Unmarshal(line, &c); err != nil {
			t.Fatal(err)
		}
		for prefix, file := range elsewhere {
			if strings.HasPrefix(c.Case, prefix) {
				if _, err := os.Stat(filepath.Join("..", file)); err != nil {
					t.Errorf("%s is proved by %s: %v", c.Case, file, err)
				}
				return
			}
		}
		replayed++
		t.Run(c.Case, func(t *testing.T) {
			got := (&replay{newWorld(t)}).steps(c)
			for _, step := range c.Got {
				for name, want := range step {
					if name == "volumes left" || strings.HasPrefix(name, "run") {
						continue // what other cases left, and what needs a machine
					}
					want = shape(want)
					have, ok := got[name]
					if d, listed := differ[c.Case+" | "+name]; listed {
						if cmp.Equal(want, d.Got) {
							t.Errorf("%s is no difference", name)
						}
						want = d.Got
						delete(differ, c.Case+" | "+name)
					}
					if diff := cmp.Diff(want, have); diff != "" || !ok {
						t.Errorf("%s: %s", name, diff)
					}
				}
			}
		})
	})
	if replayed < 70 {
		t.Errorf("only %d cases were replayed", replayed)
	}
	for name := range differ {
		t.Errorf("there is no case %s", name)
	}
}

func lines(t *testing.T, name string, line func([]byte)) {
	t.Helper()
	f, err := os.Open(name)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	s := bufio.NewScanner(f)
	s.Buffer(nil, 1<<20)
	for s.Scan() {
		line(s.Bytes())
	}
	if err := s.Err(); err != nil {
		t.Fatal(err)
	}
}

var (
	hexID     = regexp.MustCompile(`[0-9a-f]{64}`)
	mountDir  = regexp.MustCompile(`"(Mountpoint|Source)":"[^"]*"`)
	createdAt = regexp.MustCompile(`"CreatedAt":"[^"]*"`)
)

// shape makes an answer comparable: ids, times, paths and the driver's name are those of the engine that answered.
func shape(v any) any {
	text, err := json.Marshal(v)
	if err != nil {
		panic(err) // it came out of JSON
	}
	text = hexID.ReplaceAll(text, []byte("<ID>"))
	text = mountDir.ReplaceAll(text, []byte(`"$1":"<PATH>"`))
	text = createdAt.ReplaceAll(text, []byte(`"CreatedAt":"<TIME>"`))
	text = []byte(strings.NewReplacer("fake-vmdk", "local", `s*255`, strings.Repeat("s", 255)).Replace(string(text)))
	var out any
	if err := json.Unmarshal(text, &out); err != nil {
		panic(err)
	}
	return out
}

// replay sends what a case sent, and gives the answers by the names of the steps.
type replay struct{ *world }

// answer is a status and the message, as the cases have them.
func (r *replay) answer(method, path, body string) string {
	status, text := r.call(method, path, body)
	var m struct{ Message *string }
	if err := json.Unmarshal([]byte(text), &m); err == nil && m.Message != nil {
		text = *m.Message
	} else if status/100 == 2 {
		text = ""
	}
	return strconv.Itoa(status) + " " + text
}

func (r *replay) steps(c mobyAnswers) map[string]any {
	got := map[string]any{}
	put := func(name string, v any) { got[name] = shape(v) }
	method, rest, _ := strings.Cut(c.Case, " ")
	switch {
	case strings.HasPrefix(rest, "/volumes/"):
		put("status", r.answer(method, rest, ""))
		if method == "DELETE" {
			put("force", r.answer(method, rest+"?force=1", ""))
		}
	case method == "name":
		r.name(rest, put)
	case strings.HasPrefix(c.Case, "create body"):
		r.body(strings.TrimPrefix(c.Case, "create body "), put)
	case c.Case == "create ctype":
		status, text := r.send("POST", "/volumes/create", http.Header{"Content-Type": {"application/x-tar"}}, strings.NewReader("{}"))
		var m struct{ Message string }
		r.decode(text, &m)
		put("application/x-tar", fmt.Sprint(status, " ", m.Message))
	case c.Case == "create idempotent":
		r.idempotent(put)
	case method == "driveropts":
		r.driverOptions(rest, put)
	case method == "prune":
		r.prune(rest, put)
	case c.Case == "list filters":
		r.filters(c, put)
	case c.Case == "rm in use":
		r.inUse(put)
	case strings.HasPrefix(c.Case, "container rm "):
		r.containerRemove(strings.TrimPrefix(c.Case, "container rm "), put)
	case strings.HasPrefix(c.Case, "explicitly created"):
		r.explicit(put)
	case c.Case == "volumes-from":
		r.volumesFrom(c, put)
	case strings.HasPrefix(c.Case, "combo "):
		r.importImage("img")
		put("create", r.answer("POST", "/containers/create", `{"Image":"img","Cmd":["x"],"HostConfig":`+map[string]string{
			"combo AutoRemove+restart":  `{"AutoRemove":true,"RestartPolicy":{"Name":"always"}}`,
			"combo volumes-from empty":  `{"VolumesFrom":[""]}`,
			"combo volumes-from nocopy": `{"VolumesFrom":["none:nocopy"]}`,
			"combo volumes-from prop":   `{"VolumesFrom":["none:rslave"]}`,
		}[c.Case]+`}`))
	}
	return got
}

func (r *replay) decode(text string, v any) {
	r.t.Helper()
	if err := json.Unmarshal([]byte(text), v); err != nil {
		r.t.Fatalf("%v in %s", err, text)
	}
}

func (r *replay) name(quoted string, put func(string, any)) {
	name, err := strconv.Unquote(quoted)
	if err != nil {
		r.t.Fatal(err)
	}
	if letter, count, ok := strings.Cut(name, "*"); ok {
		n, err := strconv.Atoi(count)
		if err != nil {
			r.t.Fatal(err)
		}
		name = strings.Repeat(letter, n)
	}
	body, err := json.Marshal(volume.CreateRequest{Name: name})
	if err != nil {
		r.t.Fatal(err)
	}
	status, text := r.call("POST", "/volumes/create", string(body))
	if status != http.StatusCreated {
		var m struct{ Message string }
		r.decode(text, &m)
		put("create", fmt.Sprint(status, " ", m.Message))
		return
	}
	var v volume.Volume
	r.decode(text, &v)
	put("create", map[string]any{"labels": v.Labels, "len": len(v.Name), "nameSame": v.Name == name, "status": status})
}

func (r *replay) body(name string, put func(string, any)) {
	body := map[string]string{
		"array": "[]", "bad json": "{bad", "empty": "", "labels null": `{"Name":"sp-t","Labels":null}`, "null": "null", "wrong type": `{"Name":5}`, "{}": "{}",
	}[name]
	status, text := r.call("POST", "/volumes/create", body)
	if status != http.StatusCreated {
		put("status", r.answer("POST", "/volumes/create", body))
		return
	}
	var v any
	r.decode(text, &v)
	put("created", v)
}

// made is a create's status and what came back.
func (r *replay) made(body string) []any {
	status, text := r.call("POST", "/volumes/create", body)
	var v any
	r.decode(text, &v)
	return []any{status, v}
}

func (r *replay) idempotent(put func(string, any)) {
	put("first", r.made(`{"Name":"sp-i","Labels":{"a":"1"}}`))
	put("second no labels", r.made(`{"Name":"sp-i"}`))
	put("third other labels", r.made(`{"Name":"sp-i","Labels":{"b":"2"}}`))
	put("other opts", r.made(`{"Name":"sp-i","DriverOpts":{"type":"tmpfs","device":"tmpfs"}}`))
	status, text := r.call("POST", "/volumes/create", `{"Name":"sp-i","Driver":"sp-nope"}`)
	put("other driver unknown", []any{status, text})
	var v map[string]any
	r.ask(&v, "GET", "/volumes/sp-i", "")
	delete(v, "Status") // Moby's local driver has none
	put("inspect", v)
}

func (r *replay) driverOptions(name string, put func(string, any)) {
	put("create", r.made(`{"Name":"sp-o","DriverOpts":`+map[string]string{
		"bind": `{"type":"none","o":"bind","device":"/srv/probe-src"}`, "bogus": `{"bogus":"1"}`, "cifs port": `{"type":"cifs","device":"//host:445/share","o":"addr=host"}`,
		"o only": `{"o":"bind"}`, "size": `{"size":"1g"}`, "size 0": `{"size":"0"}`, "size bad": `{"size":"xx"}`, "type only": `{"type":"tmpfs"}`,
	}[name]+`}`))
}

// container makes one and gives its id.
func (r *replay) container(body string) string {
	r.t.Helper()
	var c container.CreateResponse
	r.ask(&c, "POST", "/containers/create", `{"Image":"img","Cmd":["x"],`+body+`}`)
	return c.ID
}

func (r *replay) has(name string) bool {
	status, _ := r.call("GET", "/volumes/"+name, "")
	return status == http.StatusOK
}

func (r *replay) prune(rest string, put func(string, any)) {
	r.importImage("img")
	var anon volume.Volume
	r.ask(&anon, "POST", "/volumes/create", "{}")
	for _, body := range []string{`{"Name":"sp-named"}`, `{"Name":"sp-labelled","Labels":{"keep":"1"}}`, `{"Name":"sp-withopts","DriverOpts":{"size":"4M"}}`} {
		r.ask(nil, "POST", "/volumes/create", body)
	}
	r.container(`"HostConfig":{"Binds":["sp-inuse:/mnt"]}`)
	version, filter, _ := strings.Cut(rest, " ")
	version = map[string]string{"@1.41": "/v1.41", "@max": ""}[version]
	answer := r.answer("POST", version+"/volumes/prune?filters="+url.QueryEscape(filter), "")
	if code, message, _ := strings.Cut(answer, " "); message == "" {
		put("prune", json.Number(code))
	} else {
		put("prune", answer)
	}
	put("left", map[string]any{"anon": r.has(anon.Name), "inuse": r.has("sp-inuse"), "labelled": r.has("sp-labelled"), "named": r.has("sp-named"), "withopts": r.has("sp-withopts")})
}

func (r *replay) filters(c mobyAnswers, put func(string, any)) {
	r.importImage("img")
	for _, body := range []string{`{"Name":"sp-f1","Labels":{"k":"v","e":""}}`, `{"Name":"sp-f2","Labels":{"k":"w"}}`, `{"Name":"sp-f10"}`} {
		r.ask(nil, "POST", "/volumes/create", body)
	}
	r.container(`"HostConfig":{"Binds":["sp-f2:/mnt"]}`)
	for _, step := range c.Got {
		for filter := range step {
			sent := strings.ReplaceAll(filter, `"driver":{"local"`, `"driver":{"fake-vmdk"`)
			status, text := r.call("GET", "/volumes?filters="+url.QueryEscape(sent), "")
			if status != http.StatusOK {
				put(filter, r.answer("GET", "/volumes?filters="+url.QueryEscape(sent), ""))
				continue
			}
			var list volume.ListResponse
			r.decode(text, &list)
			names := []string{}
			for _, v := range list.Volumes {
				names = append(names, v.Name)
			}
			sort.Strings(names)
			put(filter, names)
		}
	}
}

func (r *replay) mounts(id string) []container.MountPoint {
	var c container.InspectResponse
	r.ask(&c, "GET", "/containers/"+id+"/json", "")
	return c.Mounts
}

func (r *replay) inUse(put func(string, any)) {
	r.importImage("img")
	id := r.container(`"HostConfig":{"Binds":["sp-u:/mnt"]}`)
	put("create", http.StatusCreated)
	put("Mounts", r.mounts(id))
	put("rm", r.answer("DELETE", "/volumes/sp-u", ""))
	put("rm force", r.answer("DELETE", "/volumes/sp-u?force=1", ""))
	put("container rm", strings.TrimSpace(r.answer("DELETE", "/containers/"+id, "")))
	put("rm after", r.answer("DELETE", "/volumes/sp-u", ""))
	put("rm again", r.answer("DELETE", "/volumes/sp-u", ""))
	put("rm again force", r.answer("DELETE", "/volumes/sp-u?force=1", ""))
}

func (r *replay) containerRemove(query string, put func(string, any)) {
	r.importImage("img", "VOLUME /vol")
	id := r.container(`"Volumes":{"/a":{}},"HostConfig":{"Binds":["sp-n:/n"],"Mounts":[{"Type":"volume","Target":"/m"}]}`)
	var anon []string
	for _, m := range r.mounts(id) {
		if m.Name != "sp-n" {
			anon = append(anon, m.Name)
		}
	}
	put("anon count", len(anon))
	put("rm", strings.TrimSpace(r.answer("DELETE", "/containers/"+id+query, "")))
	left := 0
	for _, name := range anon {
		if r.has(name) {
			left++
		}
	}
	put("anon left", left)
	put("named left", r.has("sp-n"))
}

func (r *replay) explicit(put func(string, any)) {
	r.importImage("img")
	var v volume.Volume
	r.ask(&v, "POST", "/volumes/create", "{}")
	put("labels", v.Labels)
	id := r.container(`"HostConfig":{"Binds":["` + v.Name + `:/mnt"]}`)
	put("rm -v", strings.TrimSpace(r.answer("DELETE", "/containers/"+id+"?v=1", "")))
	put("left", r.has(v.Name))
}

// volumesFrom replays the requests in their order; their answers have one name each, so that it compares them itself. A host path, which the case's source
// has, cannot be mounted here, and no machine runs.
func (r *replay) volumesFrom(c mobyAnswers, put func(string, any)) {
	r.importImage("img", "VOLUME /vol")
	source := r.container(`"HostConfig":{"Binds":["sp-v:/data","sp-r:/ro:ro"]}`)
	r.ask(nil, "POST", "/containers/"+source+"/rename?name=sp-src", "")
	var sharers []string
	ask := ""
	for _, step := range c.Got {
		if text, ok := step["from"].(string); ok {
			switch text {
			case "override by -v":
				ask = `"HostConfig":{"VolumesFrom":["sp-src"],"Binds":["sp-o:/data"]}`
			case "override by mount":
				ask = `"HostConfig":{"VolumesFrom":["sp-src"],"Mounts":[{"Type":"volume","Source":"sp-o","Target":"/data"}]}`
			case "override by tmpfs": // there the volume is shown, and is not what the container sees; here it is neither
				ask = ""
			case "Volumes same path":
				ask = `"Volumes":{"/data":{}},"HostConfig":{"VolumesFrom":["sp-src"]}`
			default:
				refs := strings.Fields(strings.Trim(strings.ReplaceAll(text, "<SHORTID>", source[:12]), "[]"))
				quoted, err := json.Marshal(refs)
				if err != nil {
					r.t.Fatal(err)
				}
				ask = `"HostConfig":{"VolumesFrom":` + string(quoted) + `}`
			}
			continue
		}
		if ask == "" {
			continue
		}
		if refusal, ok := step["create"].(string); ok {
			if got := r.answer("POST", "/containers/create", `{"Image":"img","Cmd":["x"],`+ask+`}`); got != refusal {
				r.t.Errorf("%s: %s, want %s", ask, got, refusal)
			}
		}
		if mounts, ok := step["Mounts"].([]any); ok {
			id := r.container(ask)
			sharers = append(sharers, id)
			var want []any
			for _, m := range mounts {
				if m.(map[string]any)["Destination"] != "/host" {
					want = append(want, m)
				}
			}
			if d := cmp.Diff(shape(want), shape(r.mounts(id))); d != "" {
				r.t.Errorf("%s: %s", ask, d)
			}
		}
	}
	anon := ""
	for _, m := range r.mounts(source) {
		if m.Destination == "/vol" {
			anon = m.Name
		}
	}
	if len(sharers) < 8 {
		r.t.Errorf("only %d containers were made", len(sharers))
	}
	for _, id := range sharers[1:] {
		r.ask(nil, "DELETE", "/containers/"+id, "")
	}
	put("rm source -v", strings.TrimSpace(r.answer("DELETE", "/containers/"+source+"?v=1", "")))
	put("anon of source left while shared", r.has(anon))
	put("rm sharer -v", strings.TrimSpace(r.answer("DELETE", "/containers/"+sharers[0]+"?v=1", "")))
	put("anon left after sharer rm -v", r.has(anon))
	for _, step := range c.Got { // compared above
		for _, name := range []string{"from", "create", "Mounts", "content via volumes-from"} {
			if _, ok := step[name]; ok {
				step[name] = nil
				put(name, nil)
			}
		}
	}
}
