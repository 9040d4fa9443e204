package personality

import (
	"encoding/json"
	"fmt"
	"net/http"
	"net/url"
	"slices"
	"strings"
	"testing"

	"github.com/moby/moby/api/types/container"
)

// create makes a container of image img that runs args, with more fields of a create body ("" for none), and gives its id.
func (w *world) create(name string, more string, args ...string) string {
	w.t.Helper()
	cmd, err := json.Marshal(args)
	if err != nil {
		w.t.Fatal(err)
	}
	if more != "" {
		more = "," + more
	}
	var made container.CreateResponse
	w.ask(&made, "POST", "/containers/create?name="+name, fmt.Sprintf(`{"Image":"img","Cmd":%s%s}`, cmd, more))
	return made.ID
}

// run is create and start.
func (w *world) run(name string, more string, args ...string) string {
	w.t.Helper()
	id := w.create(name, more, args...)
	w.ask(nil, "POST", "/containers/"+id+"/start", "")
	return id
}

// exit waits for a container's end and gives its exit code.
func (w *world) exit(ref string) int64 {
	w.t.Helper()
	var end container.WaitResponse
	w.ask(&end, "POST", "/containers/"+ref+"/wait", "")
	return end.StatusCode
}

func (w *world) inspect(ref string) container.InspectResponse {
	w.t.Helper()
	var c container.InspectResponse
	w.ask(&c, "GET", "/containers/"+ref+"/json", "")
	return c
}

func TestContainerCreate(t *testing.T) {
	w := newWorld(t)
	w.importImage("img:latest", "VOLUME /data", "ENV A=image")
	status, answer := w.call("POST", "/containers/create?name=/web", `{"Image":"img","Cmd":["sleep","1000"],"HostConfig":{"Binds":["named:/srv"]}}`)
	var made container.CreateResponse
	if err := json.Unmarshal([]byte(answer), &made); err != nil || status != http.StatusCreated || len(made.ID) != 64 {
		t.Fatalf("%d %s", status, answer)
	}
	if !strings.Contains(answer, `"Warnings":[]`) {
		t.Errorf("warnings are not an empty list: %s", answer)
	}
	if c := w.inspect("web"); c.ID != made.ID || c.State.Status != container.StateCreated || len(c.Mounts) != 2 {
		t.Errorf("%+v", c)
	}
	w.refused(http.StatusConflict, `already in use by container`, "POST", "/containers/create?name=web", `{"Image":"img","Cmd":["true"]}`)
	w.refused(http.StatusNotFound, "No such image: missing", "POST", "/containers/create", `{"Image":"missing","Cmd":["true"]}`)
	w.refused(http.StatusNotFound, "does not match the specified platform", "POST", "/containers/create?platform=linux/mips", `{"Image":"img","Cmd":["true"]}`)
	w.refused(http.StatusBadRequest, "no command specified", "POST", "/containers/create", `{"Image":"img"}`)
	w.refused(http.StatusBadRequest, "HostConfig.Links (--link) is not supported by vch", "POST", "/containers/create", `{"Image":"missing","HostConfig":{"Links":["a"]}}`)
	w.refused(http.StatusBadRequest, "Invalid container name", "POST", "/containers/create?name=a%20b", `{"Image":"img","Cmd":["true"]}`)
	w.refused(http.StatusBadRequest, "invalid JSON", "POST", "/containers/create", `{"Image":`)
	w.refused(http.StatusBadRequest, "config cannot be empty", "POST", "/containers/create", `{}`)
	var warned container.CreateResponse
	w.ask(&warned, "POST", "/containers/create", `{"Image":"img","Cmd":["true"],"HostConfig":{"NetworkMode":"none","PublishAllPorts":true}}`)
	if len(warned.Warnings) != 1 || !strings.Contains(warned.Warnings[0], "ports are discarded") {
		t.Errorf("warnings %q", warned.Warnings)
	}
}

func TestContainerInspect(t *testing.T) {
	w := newWorld(t)
	image := w.importImage("img:latest", "VOLUME /data", "ENV A=image", "LABEL from=image")
	id := w.run("web", `"Env":["B=c"],"Tty":true,"HostConfig":{"Binds":["named:/srv:ro"],"Tmpfs":{"/t":"size=1m"},"Mounts":[{"Type":"tmpfs","Target":"/u"}],"Memory":67108864}`, "sleep", "1000")
	c := w.inspect(id[:12])
	if c.Name != "/web" || c.Image != image || c.Path != "sleep" || !slices.Equal(c.Args, []string{"1000"}) || c.Platform != "linux" || c.LogPath == "" {
		t.Errorf("%+v", c)
	}
	if !c.State.Running || c.State.Status != "running" || c.State.StartedAt[:2] != "20" || c.State.FinishedAt != "0001-01-01T00:00:00Z" {
		t.Errorf("state %+v", c.State)
	}
	if c.Config.Hostname != id[:12] || !slices.Equal(c.Config.Env, []string{"B=c", "A=image"}) || c.Config.Labels["from"] != "image" || c.Config.Image != "img" || !c.Config.Tty {
		t.Errorf("config %+v", c.Config)
	}
	if c.HostConfig.Memory != 64<<20 || c.HostConfig.NetworkMode != "bridge" || c.HostConfig.RestartPolicy.Name != "no" || c.HostConfig.Tmpfs["/t"] != "size=1m" {
		t.Errorf("host config %+v", c.HostConfig)
	}
	var targets []string
	for _, m := range c.Mounts {
		targets = append(targets, m.Destination)
		switch m.Destination {
		case "/srv":
			if m.Type != "volume" || m.Name != "named" || m.RW || m.Mode != "ro" || m.Driver != "fake-vmdk" || !strings.HasSuffix(m.Source, "/volumes/named/named.vmdk") {
				t.Errorf("%+v", m)
			}
		case "/data":
			if m.Type != "volume" || len(m.Name) != 64 || !m.RW {
				t.Errorf("%+v", m)
			}
		case "/u":
			if m.Type != "tmpfs" || m.Source != "" {
				t.Errorf("%+v", m)
			}
		}
	}
	slices.Sort(targets)
	if !slices.Equal(targets, []string{"/data", "/srv", "/u"}) { // --tmpfs is in HostConfig only
		t.Errorf("mounts at %v", targets)
	}
	// Shapes that clients of the version expect.
	for path, want := range map[string]map[string]bool{
		"/v1.41/containers/web/json":        {`"KernelMemory":0`: true, `"IPAddress":"172.17.0.2"`: true, `"bridge":{`: true, `"SizeRootFs"`: false, `"GraphDriver":{`: true},
		"/v1.50/containers/web/json":        {`"KernelMemory"`: false, `"IPAddress":"172.17.0.2"`: true, `"Mounts":[{`: true, `"Health"`: false},
		"/v1.50/containers/web/json?size=1": {`"SizeRootFs":`: true, `"SizeRw":0`: true},
	} {
		status, answer := w.call("GET", path, "")
		if status != http.StatusOK {
			t.Fatalf("%s: %d %s", path, status, answer)
		}
		for text, has := range want {
			if strings.Contains(answer, text) != has {
				t.Errorf("%s: %s: %v\n%s", path, text, !has, answer)
			}
		}
	}
	w.refused(http.StatusNotFound, "No such container: nope", "GET", "/containers/nope/json", "")
}

func TestContainerList(t *testing.T) {
	w := newWorld(t)
	w.importImage("img:latest")
	w.importImage("other:1")
	w.run("web", `"Labels":{"app":"web","tier":"front"},"HostConfig":{"Binds":["data:/srv"]}`, "sleep", "1000")
	w.run("job", `"Labels":{"app":"job"}`, "sh", "-c", "echo a b; exit 3")
	w.exit("job")
	w.create("idle", "", "echo", "two words", "x")
	names := func(query string) string {
		t.Helper()
		var list []container.Summary
		w.ask(&list, "GET", "/containers/json?"+query, "")
		var names []string
		for _, c := range list {
			names = append(names, strings.TrimPrefix(c.Names[0], "/"))
		}
		return strings.Join(names, " ")
	}
	filter := func(key string, values ...string) string {
		set := map[string]map[string]bool{key: {}}
		for _, v := range values {
			set[key][v] = true
		}
		text, err := json.Marshal(set)
		if err != nil {
			t.Fatal(err)
		}
		return "filters=" + url.QueryEscape(string(text))
	}
	for query, want := range map[string]string{
		"":                                      "web",
		"all=1":                                 "idle job web",
		"limit=2":                               "idle job",
		"all=1&" + filter("name", "we"):         "web",
		"all=1&" + filter("name", "^/job$"):     "job",
		"all=1&" + filter("name", "web", "job"): "job web",
		"all=1&" + filter("id", w.inspect("idle").ID):   "idle",
		"all=1&" + filter("label", "app"):               "job web",
		"all=1&" + filter("label", "app", "tier=front"): "web",
		filter("status", "exited"):                      "job",
		filter("status", "created", "running"):          "idle web",
		"all=1&" + filter("exited", "3"):                "job",
		"all=1&" + filter("exited", "0"):                "",
		"all=1&" + filter("ancestor", "img:latest"):     "idle job web",
		"all=1&" + filter("ancestor", "other:1"):        "",
		"all=1&" + filter("ancestor", "gone"):           "",
		"all=1&" + filter("before", "idle"):             "job web",
		"all=1&" + filter("since", "web"):               "idle job",
		"all=1&" + filter("volume", "data"):             "web",
		"all=1&" + filter("volume", "/srv"):             "web",
		"all=1&" + filter("network", "none"):            "",
		"all=1&" + filter("network", "bridge"):          "idle job web",
		"all=1&" + filter("is-task", "true"):            "",
		"all=1&" + filter("is-task", "false"):           "idle job web",
		"all=1&" + filter("health", "none"):             "idle job web",
		"all=1&" + filter("health", "healthy"):          "",
		"all=1&" + filter("publish", "80"):              "",
	} {
		if got := names(query); got != want {
			t.Errorf("%s: %q; want %q", query, got, want)
		}
	}
	for query, want := range map[string]string{
		filter("expose", "80"):         "invalid filter 'expose'",
		filter("isolation", "default"): "invalid filter 'isolation'",
		filter("status", "asleep"):     "invalid filter 'status=[asleep]'",
		filter("exited", "many"):       "invalid filter 'exited=[many]'",
		filter("health", "fine"):       "invalid filter 'health=[fine]'",
		filter("is-task", "maybe"):     "invalid filter 'is-task=[maybe]'",
		filter("before", "a", "b"):     "only one value is expected",
		"filters={":                    "invalid filter",
		"limit=some":                   "limit=some",
	} {
		w.refused(http.StatusBadRequest, want, "GET", "/containers/json?"+query, "")
	}
	w.refused(http.StatusNotFound, "No such container: gone", "GET", "/containers/json?"+filter("since", "gone"), "")

	var list []container.Summary
	w.ask(&list, "GET", "/containers/json?all=1&size=1", "")
	idle, job, web := list[0], list[1], list[2]
	if idle.Command != "echo 'two words' x" || idle.Status != "Created" || idle.State != "created" || idle.SizeRootFs == 0 {
		t.Errorf("%+v", idle)
	}
	if !strings.HasPrefix(job.Status, "Exited (3) ") || !strings.HasSuffix(job.Status, " ago") || job.Image != "img" || job.ImageID != w.inspect("job").Image {
		t.Errorf("%+v", job)
	}
	if !strings.HasPrefix(web.Status, "Up ") || web.Ports == nil || len(web.Mounts) != 1 || web.HostConfig.NetworkMode != "bridge" || web.Labels["app"] != "web" {
		t.Errorf("%+v", web)
	}
	// A name that is another image's by now no longer says what a container was made from.
	w.importImage("img:latest", "ENV new=1")
	w.ask(&list, "GET", "/containers/json", "")
	if list[0].Image != list[0].ImageID {
		t.Errorf("image is shown as %s", list[0].Image)
	}
}

func TestContainerLife(t *testing.T) {
	w := newWorld(t)
	w.importImage("img:latest", "VOLUME /data")
	id := w.create("web", "", "sleep", "1000")
	for _, step := range []struct {
		method, path, body string
		status             int
		text               string
	}{
		{"POST", "/containers/web/kill", "", 409, "is not running"},
		{"POST", "/containers/web/stop", "", 304, ""},
		{"POST", "/containers/web/start", `{"Binds":["a:/b"]}`, 400, "non-empty request body"},
		{"POST", "/containers/web/start?checkpoint=c", "", 400, "checkpoint (--checkpoint) is not supported by vch"},
		{"POST", "/containers/web/start", "{}", 204, ""},
		{"POST", "/containers/web/start", "", 304, ""},
		{"DELETE", "/containers/web", "", 409, "container is running"},
		{"POST", "/containers/web/kill?signal=NOPE", "", 400, "invalid signal: NOPE"},
		{"POST", "/containers/web/kill?signal=SIGWINCH", "", 204, ""},
		{"POST", "/containers/web/stop?t=soon", "", 400, "t=soon"},
		{"POST", "/containers/web/stop?signal=65", "", 400, "invalid signal: 65"},
		{"POST", "/containers/web/rename?name=", "", 400, "empty"},
		{"POST", "/containers/web/rename?name=/site", "", 204, ""},
		{"POST", "/containers/site/restart?t=5&signal=INT", "", 204, ""},
		{"POST", "/containers/site/stop?t=30", "", 204, ""},
		{"POST", "/containers/site/restart", "", 204, ""},
		{"POST", "/containers/site/kill", "", 204, ""},
		{"POST", "/containers/gone/start", "", 404, "No such container: gone"},
		{"POST", "/containers/gone/stop", "", 404, "No such container: gone"},
		{"POST", "/containers/gone/kill", "", 404, "No such container: gone"},
		{"POST", "/containers/gone/restart", "", 404, "No such container: gone"},
		{"POST", "/containers/gone/rename?name=x", "", 404, "No such container: gone"},
		{"DELETE", "/containers/gone", "", 404, "No such container: gone"},
		{"DELETE", "/containers/site?link=1", "", 400, "link (--link) is not supported by vch"},
	} {
		status, answer := w.call(step.method, step.path, step.body)
		if status != step.status || !strings.Contains(answer, step.text) {
			t.Fatalf("%s %s: %d %s; want %d %s", step.method, step.path, status, answer, step.status, step.text)
		}
	}
	if code := w.exit("site"); code != 137 {
		t.Errorf("killed: exit code %d", code)
	}
	if c := w.inspect(id); c.Name != "/site" || c.State.Status != "exited" || c.State.ExitCode != 137 {
		t.Errorf("%s %+v", c.Name, c.State)
	}
	volume := w.inspect(id).Mounts[0].Name
	w.ask(nil, "DELETE", "/containers/site?v=1&force=0", "")
	w.refused(http.StatusNotFound, "no such volume", "GET", "/volumes/"+volume, "")
	w.run("busy", "", "sleep", "1000")
	w.ask(nil, "DELETE", "/containers/busy?force=true", "")

	// A start that fails says why, as a bad request: the CLI exits with 127 upon its text. The state keeps it.
	w.create("typo", "", "nosuch")
	w.refused(http.StatusBadRequest, `exec: "nosuch": executable file not found in $PATH`, "POST", "/containers/typo/start", "")
	if st := w.inspect("typo").State; st.ExitCode != 127 || !strings.Contains(st.Error, "executable file not found") || st.Status != "created" {
		t.Errorf("%+v", st)
	}
	// A volume has one writer, and who holds it is said.
	w.run("holder", `"HostConfig":{"Binds":["shared:/d"]}`, "sleep", "1000")
	w.create("second", `"HostConfig":{"Binds":["shared:/d"]}`, "sleep", "1000")
	w.refused(http.StatusConflict, "holder", "POST", "/containers/second/start", "")
}

func TestContainerPrune(t *testing.T) {
	w := newWorld(t)
	w.importImage("img:latest")
	w.create("old", `"Labels":{"keep":"no"}`, "true")
	w.create("kept", `"Labels":{"keep":"yes"}`, "true")
	w.run("runs", "", "sleep", "1000")
	w.refused(http.StatusBadRequest, "invalid filter 'dangling'", "POST", `/containers/prune?filters={"dangling":["1"]}`, "")
	w.refused(http.StatusBadRequest, "soon", "POST", `/containers/prune?filters={"until":["soon"]}`, "")
	var report container.PruneReport
	w.ask(&report, "POST", `/containers/prune?filters={"until":["24h"]}`, "")
	if len(report.ContainersDeleted) != 0 {
		t.Errorf("what is younger than a day went: %v", report.ContainersDeleted)
	}
	old := w.inspect("old").ID
	w.ask(&report, "POST", `/containers/prune?filters={"label!":["keep=yes"]}`, "")
	if !slices.Equal(report.ContainersDeleted, []string{old}) {
		t.Errorf("deleted %v; want %s", report.ContainersDeleted, old)
	}
	var list []container.Summary
	w.ask(&list, "GET", "/containers/json?all=1", "")
	if len(list) != 2 {
		t.Errorf("%d containers are left", len(list))
	}
}

func TestContainerResize(t *testing.T) {
	w := newWorld(t)
	w.importImage("img:latest")
	w.run("term", `"Tty":true`, "sleep", "1000")
	w.ask(nil, "POST", "/containers/term/resize?h=40&w=120", "")
	w.refused(http.StatusBadRequest, "w must be", "POST", "/containers/term/resize?h=40", "")
	w.refused(http.StatusBadRequest, "h=x", "POST", "/containers/term/resize?h=x&w=2", "")
	w.refused(http.StatusBadRequest, "h must be", "POST", "/containers/term/resize?h=70000&w=2", "")
	w.refused(http.StatusNotFound, "No such container: gone", "POST", "/containers/gone/resize?h=1&w=2", "")
	w.run("pipe", "", "sleep", "1000")
	w.refused(http.StatusConflict, "no terminal", "POST", "/containers/pipe/resize?h=1&w=2", "")
}

func TestContainerTop(t *testing.T) {
	w := newWorld(t)
	w.importImage("img:latest")
	w.run("web", `"Tty":true`, "sleep", "1000")
	for args, want := range map[string]string{
		"":                           "UID PID PPID C STIME TTY TIME CMD",
		"-ef":                        "UID PID PPID C STIME TTY TIME CMD",
		"aux":                        "USER PID %CPU TTY STIME TIME CMD",
		"-o pid,comm":                "PID COMMAND",
		"-eo user,pid -o etime,args": "USER PID ELAPSED CMD",
		"-opid,tty":                  "PID TTY",
	} {
		var top container.TopResponse
		w.ask(&top, "GET", "/containers/web/top?ps_args="+url.QueryEscape(args), "")
		if got := strings.Join(top.Titles, " "); got != want || len(top.Processes) != 1 || len(top.Processes[0]) != len(top.Titles) {
			t.Errorf("%q: %+v; want %s", args, top, want)
			continue
		}
		for i, title := range top.Titles {
			known := map[string]string{"UID": "root", "USER": "root", "PID": "1", "TTY": "pts/0", "CMD": "sleep 1000", "COMMAND": "sleep", "TIME": "00:00:00"}
			if want, ok := known[title]; ok && top.Processes[0][i] != want {
				t.Errorf("%s is %q; want %q", title, top.Processes[0][i], want)
			}
		}
	}
	for args, want := range map[string]string{"-o pid,rss": `"rss"`, "-o": "takes a list", "-Z": `"-Z"`, "-o comm": "Couldn't find PID field"} {
		w.refused(http.StatusBadRequest, want, "GET", "/containers/web/top?ps_args="+url.QueryEscape(args), "")
	}
	w.create("idle", "", "true")
	w.refused(http.StatusConflict, "is not running", "GET", "/containers/idle/top", "")
	w.refused(http.StatusNotFound, "No such container: gone", "GET", "/containers/gone/top", "")
}

func TestContainerPause(t *testing.T) {
	w := newWorld(t)
	w.importImage("img:latest")
	w.run("web", "", "sleep", "1000")
	for _, verb := range []string{"pause", "unpause"} {
		if status, answer := w.call("POST", "/containers/web/"+verb, ""); status != 204 {
			t.Errorf("%s: %d %s", verb, status, answer)
		}
		w.refused(409, map[string]string{"pause": "is already paused", "unpause": "is not paused"}[verb], "POST", "/containers/web/"+verb, "")
		if c := w.inspect("web"); c.State.Paused != (verb == "pause") || !c.State.Running {
			t.Errorf("after %s: %+v", verb, c.State)
		}
		w.refused(404, "No such container: none", "POST", "/containers/none/"+verb, "")
		if verb == "pause" {
			w.refused(409, "is paused", "POST", "/containers/web/exec", `{"Cmd":["true"]}`)
			if status, answer := w.call("GET", "/containers/web/top", ""); status != 200 || !strings.Contains(answer, "sleep 1000") {
				t.Errorf("top of a paused container: %d %s", status, answer)
			}
			if status, answer := w.call("GET", "/containers/web/archive?path=/", ""); status != 200 {
				t.Errorf("its files: %d %s", status, answer)
			}
			w.refused(409, "is paused", "POST", "/containers/web/exec", `{"Cmd":["true"]}`)
		}
	}
	w.ask(nil, "POST", "/containers/web/pause", "")
	w.ask(nil, "POST", "/containers/web/stop?t=1", "")
	w.refused(409, "is not running", "POST", "/containers/web/pause", "")
}
