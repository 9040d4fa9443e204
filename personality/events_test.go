package personality

import (
	"bufio"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"strings"
	"testing"
	"time"

	"github.com/moby/moby/client"

	"vch/portlayer"
)

// moments publishes one event a second, from base on.
func moments(w *world, base time.Time) {
	for i, ev := range []portlayer.Event{
		{Noun: "image", Verb: "pull", ID: "busybox:1", Attrs: map[string]string{"name": "busybox:1"}},
		{Noun: "volume", Verb: "create", ID: "data", Attrs: map[string]string{"driver": "x"}},
		{Noun: "container", Verb: "create", ID: "c0ffee", Attrs: map[string]string{"name": "web", "image": "busybox:1", "tier": "front"}},
		{Noun: "volume", Verb: "mount", ID: "data", Attrs: map[string]string{"container": "c0ffee"}},
		{Noun: "container", Verb: "exec_start: ls", ID: "c0ffee", Attrs: map[string]string{"name": "web", "image": "busybox:1"}},
	} {
		ev.Time = base.Add(time.Duration(i) * time.Second)
		w.events.Publish(ev)
	}
}

func TestEvents(t *testing.T) {
	w := newWorld(t)
	base := time.Unix(1700000000, 0)
	moments(w, base)
	since, until := "1700000000", "1700000100"
	for _, tt := range []struct{ since, until, filter, want string }{
		{since, until, ``, "pull create create mount exec_start: ls"},
		{"1700000002", until, ``, "create mount exec_start: ls"},
		{since, "1700000001.5", ``, "pull create"},
		{"", until, ``, "pull create create mount exec_start: ls"},
		{since, until, `{"type":["volume"]}`, "create mount"},
		{since, until, `{"event":["create"]}`, "create create"},
		{since, until, `{"event":["exec_start"]}`, "exec_start: ls"},
		{since, until, `{"container":["web"]}`, "create exec_start: ls"},
		{since, until, `{"container":["c0f"]}`, "create exec_start: ls"},
		{since, until, `{"volume":["data"]}`, "create mount"},
		{since, until, `{"image":["busybox"]}`, "pull create exec_start: ls"},
		{since, until, `{"image":["other"]}`, ""},
		{since, until, `{"label":["tier=front"]}`, "create"},
		{since, until, `{"network":["none"]}`, ""},
		{since, until, `{"scope":["local"],"type":["image"]}`, "pull"},
		{since, until, `{"scope":["swarm"]}`, ""},
	} {
		q := url.Values{"filters": {tt.filter}}
		if tt.since != "" {
			q.Set("since", tt.since)
		}
		q.Set("until", tt.until)
		status, answer := w.call("GET", "/events?"+q.Encode(), "")
		verbs := []string{}
		for dec := json.NewDecoder(strings.NewReader(answer)); ; {
			var m struct{ Action string }
			if err := dec.Decode(&m); err == io.EOF {
				break
			} else if err != nil {
				t.Fatalf("%v in %s", err, answer)
			}
			verbs = append(verbs, m.Action)
		}
		if got := strings.Join(verbs, " "); status != 200 || got != tt.want {
			t.Errorf("%+v: %d %s", tt, status, got)
		}
	}
	w.refused(400, "invalid filter 'x'", "GET", `/events?filters={"x":["y"]}`, "")
	w.refused(400, "cannot be after", "GET", `/events?since=2&until=1`, "")
	w.refused(400, `since: "x" is no time`, "GET", `/events?since=x`, "")
}

// TestEventsAreStreamed proves that a client that has the header misses nothing that happens after, and that each event comes at once.
func TestEventsAreStreamed(t *testing.T) {
	w := newWorld(t)
	w.events.Publish(portlayer.Event{Time: time.Now(), Noun: "volume", Verb: "create", ID: "before"})
	r, err := http.NewRequestWithContext(t.Context(), "GET", "http://docker/events?filters="+url.QueryEscape(`{"type":["volume"]}`), nil)
	if err != nil {
		t.Fatal(err)
	}
	answer, err := w.http.Do(r)
	if err != nil {
		t.Fatal(err)
	}
	defer answer.Body.Close()
	lines := bufio.NewScanner(answer.Body)
	for i := range 3 {
		name := fmt.Sprint("v", i)
		w.ask(nil, "POST", "/volumes/create", `{"Name":"`+name+`"}`)
		var m struct {
			Type, Action   string
			Actor          struct{ ID string }
			Time, TimeNano int64
			Scope          string
		}
		if !lines.Scan() {
			t.Fatal(lines.Err())
		}
		if err := json.Unmarshal(lines.Bytes(), &m); err != nil {
			t.Fatal(err)
		}
		if m.Type != "volume" || m.Action != "create" || m.Actor.ID != name || m.Scope != "local" || m.TimeNano/1e9 != m.Time || m.Time == 0 {
			t.Errorf("%s", lines.Text())
		}
	}
}

func TestEventsByClient(t *testing.T) {
	w := newWorld(t)
	moments(w, time.Unix(1700000000, 0))
	got := w.client("").Events(t.Context(), client.EventsListOptions{Since: "1700000000", Until: "1700000100"})
	count := 0
	for {
		select {
		case <-got.Messages:
			count++
			continue
		case err := <-got.Err:
			if err != io.EOF || count != 5 {
				t.Errorf("%d events, then %v", count, err)
			}
		}
		return
	}
}
