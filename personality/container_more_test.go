package personality

import (
	"encoding/json"
	"net/http"
	"net/url"
	"slices"
	"strings"
	"testing"

	"github.com/moby/moby/api/types/container"
	"github.com/moby/moby/api/types/image"
)

func TestContainerStats(t *testing.T) {
	w := newWorld(t)
	w.importImage("img:latest")
	w.run("web", `"HostConfig":{"Memory":67108864,"PidsLimit":9}`, "sleep", "1000")
	var st container.StatsResponse
	w.ask(&st, "GET", "/containers/web/stats?stream=0&one-shot=1", "")
	if st.Name != "/web" || st.Read.IsZero() || !st.PreRead.IsZero() || st.MemoryStats.Limit != 64<<20 || st.PidsStats.Current != 1 || st.PidsStats.Limit != 9 || st.CPUStats.OnlineCPUs != 1 || st.CPUStats.CPUUsage.TotalUsage == 0 {
		t.Errorf("%+v", st)
	}
	if _, ok := st.Networks["eth0"]; !ok {
		t.Errorf("networks: %+v", st.Networks)
	}
	st = container.StatsResponse{}
	w.ask(&st, "GET", "/containers/web/stats?stream=0", "")
	if st.PreRead.IsZero() || !st.Read.After(st.PreRead) || st.PreCPUStats.SystemUsage == 0 || st.CPUStats.SystemUsage <= st.PreCPUStats.SystemUsage {
		t.Errorf("a sample does not tell of the one before it: %+v", st)
	}
	w.ask(nil, "POST", "/containers/web/pause", "")
	paused := container.StatsResponse{}
	w.ask(&paused, "GET", "/containers/web/stats?stream=0&one-shot=1", "")
	if paused.MemoryStats.Usage != st.MemoryStats.Usage || paused.Read.IsZero() {
		t.Errorf("of a paused container: %+v", paused)
	}
	w.ask(nil, "POST", "/containers/web/stop?t=0", "")
	off := container.StatsResponse{}
	w.ask(&off, "GET", "/containers/web/stats?stream=0", "")
	if !off.Read.IsZero() || off.MemoryStats.Usage != 0 || off.Name != "/web" {
		t.Errorf("of a container that does not run: %+v", off)
	}
	w.refused(404, "No such container: none", "GET", "/containers/none/stats", "")
}

// TestContainerStatsStream reads three samples, and that the stream ends with the container.
func TestContainerStatsStream(t *testing.T) {
	w := newWorld(t)
	w.importImage("img:latest")
	w.run("web", "", "sleep", "1000")
	r, err := http.NewRequestWithContext(t.Context(), "GET", "http://docker/containers/web/stats", nil)
	if err != nil {
		t.Fatal(err)
	}
	answer, err := w.http.Do(r)
	if err != nil {
		t.Fatal(err)
	}
	defer answer.Body.Close()
	dec := json.NewDecoder(answer.Body)
	var last container.StatsResponse
	for i := range 3 {
		var st container.StatsResponse
		if err := dec.Decode(&st); err != nil {
			t.Fatal(err)
		}
		if i > 0 && !st.PreRead.Equal(last.Read) {
			t.Errorf("sample %d follows one of %v, and that was of %v", i, st.PreRead, last.Read)
		}
		last = st
	}
	w.ask(nil, "DELETE", "/containers/web?force=1", "")
	for {
		var st container.StatsResponse
		if err := dec.Decode(&st); err != nil {
			break // the end
		}
	}
}

func TestContainerUpdate(t *testing.T) {
	w := newWorld(t)
	w.importImage("img:latest")
	w.run("web", `"HostConfig":{"Memory":134217728}`, "sleep", "1000")
	limits := func() (int64, uint64, int64) {
		t.Helper()
		var st container.StatsResponse
		w.ask(&st, "GET", "/containers/web/stats?stream=0&one-shot=1", "")
		return int64(st.MemoryStats.Limit), st.PidsStats.Limit, w.inspect("web").HostConfig.Memory
	}
	update := func(body string) {
		t.Helper()
		var answer container.UpdateResponse
		w.ask(&answer, "POST", "/containers/web/update", body)
	}
	update(`{"Memory":67108864,"NanoCpus":500000000,"PidsLimit":7,"RestartPolicy":{"Name":"on-failure","MaximumRetryCount":2}}`)
	if memory, pids, shown := limits(); memory != 64<<20 || pids != 7 || shown != 64<<20 {
		t.Errorf("%d bytes, %d processes, shown %d", memory, pids, shown)
	}
	if h := w.inspect("web").HostConfig; h.NanoCPUs != 5e8 || h.PidsLimit == nil || *h.PidsLimit != 7 || h.RestartPolicy.Name != "on-failure" || h.RestartPolicy.MaximumRetryCount != 2 || h.MemorySwap != 64<<20 {
		t.Errorf("%+v", h)
	}
	// What is not said stays.
	update(`{"PidsLimit":-1}`)
	if memory, pids, shown := limits(); memory != 64<<20 || pids != 0 || shown != 64<<20 || w.inspect("web").HostConfig.PidsLimit != nil || w.inspect("web").HostConfig.RestartPolicy.Name != "on-failure" {
		t.Errorf("%d bytes, %d processes, shown %d", memory, pids, shown)
	}
	for body, text := range map[string]string{
		`{"Memory":1073741824}`:                       "has memory for a limit of 134217728 bytes",
		`{"NanoCpus":4000000000}`:                     "has 1 processors",
		`{"Memory":1024}`:                             "Minimum memory limit allowed is 6MB",
		`{"CpuShares":5}`:                             "CpuShares (-c, --cpu-shares) is not supported by vch",
		`{"Memory":67108864,"MemorySwap":99999999}`:   "--memory-swap",
		`{"Ulimits":[{"Name":"nofile","Soft":1}]}`:    "Ulimits (--ulimit) is not supported by vch",
		`{"RestartPolicy":{"Name":"sometimes"}}`:      "invalid restart policy",
		`{"NanoCpus":500000000,"CpuQuota":50000}`:     "Conflicting options",
		`{"Memory":1073741824,"PidsLimit":3}`:         "has memory for a limit",
		`{"Memory":67108864,"Devices":[{"a":"b"}]}`:   "Devices",
		`{"Memory":"much"}`:                           "invalid JSON",
		`{"RestartPolicy":{"Name":"no"},"Memory":-1}`: "Minimum memory limit",
	} {
		w.refused(400, text, "POST", "/containers/web/update", body)
	}
	if memory, pids, shown := limits(); memory != 64<<20 || pids != 0 || shown != 64<<20 {
		t.Errorf("after refusals: %d bytes, %d processes, shown %d", memory, pids, shown)
	}
	w.ask(nil, "POST", "/containers/web/stop?t=0", "")
	update(`{"Memory":536870912,"NanoCpus":2000000000}`)
	w.ask(nil, "POST", "/containers/web/start", "")
	if memory, _, shown := limits(); memory != 512<<20 || shown != 512<<20 {
		t.Errorf("after a start: %d bytes, shown %d", memory, shown)
	}
	w.refused(404, "No such container: none", "POST", "/containers/none/update", `{"Memory":67108864}`)
	w.run("gone", `"HostConfig":{"AutoRemove":true}`, "sleep", "1000")
	w.refused(400, "AutoRemove", "POST", "/containers/gone/update", `{"RestartPolicy":{"Name":"always"}}`)
}

func TestContainerCommit(t *testing.T) {
	w := newWorld(t)
	base := w.importImage("img:latest", "ENV A=image", "EXPOSE 80")
	w.run("web", `"Env":["B=container"],"Labels":{"l":"1"}`, "sh", "-c", "write /f text; sleep 1000")
	for { // until it has written
		if status, _ := w.call("GET", "/containers/web/archive?path=/f", ""); status == 200 {
			break
		}
	}
	var changes []container.FilesystemChange
	w.ask(&changes, "GET", "/containers/web/changes", "")
	if want := []container.FilesystemChange{{Kind: container.ChangeAdd, Path: "/f"}}; !slices.Equal(changes, want) {
		t.Errorf("changes: %+v, want %+v", changes, want)
	}
	if status, answer := w.call("GET", "/containers/web/export", ""); status != 200 || !strings.Contains(answer, "text") {
		t.Errorf("export: %d %q", status, answer)
	}
	var made container.CommitResponse
	w.ask(&made, "POST", "/commit?container=web&repo=new&tag=1&author=ann&comment=why&changes="+url.QueryEscape("ENV C=change")+"&changes="+url.QueryEscape("CMD true"), "null")
	var img image.InspectResponse
	w.ask(&img, "GET", "/images/new:1/json", "")
	env := slices.Sorted(slices.Values(img.Config.Env))
	if img.ID != made.ID || img.ID == base || img.Author != "ann" || img.Comment != "why" || len(img.RootFS.Layers) != 2 || !slices.Equal(env, []string{"A=image", "B=container", "C=change"}) ||
		!slices.Equal(img.Config.Cmd, []string{"/bin/sh", "-c", "true"}) || img.Config.Labels["l"] != "1" || len(img.Config.ExposedPorts) != 1 {
		t.Errorf("%+v\n%+v", img, img.Config)
	}
	w.refused(404, "No such container: none", "POST", "/commit?container=none", "null")
	w.refused(404, "No such container: none", "GET", "/containers/none/export", "")
	w.refused(404, "No such container: none", "GET", "/containers/none/changes", "")
	w.refused(400, "is not a valid change command", "POST", "/commit?container=web&changes="+url.QueryEscape("RUN x"), "null")
	w.refused(400, "invalid reference format", "POST", "/commit?container=web&repo=UPPER", "null")
	w.ask(nil, "POST", "/containers/web/pause", "")
	w.ask(&made, "POST", "/commit?container=web", "null")
	if c := w.inspect("web"); !c.State.Paused {
		t.Errorf("after a commit of a paused container: %+v", c.State)
	}
}
