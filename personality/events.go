package personality

import (
	"context"
	"encoding/json"
	"errors"
	"net/http"
	"slices"
	"strings"

	"github.com/moby/moby/api/types/events"

	"vch/internal/broadcast"
	"vch/internal/fault"
	"vch/portlayer"
)

// eventMessage is Docker's event, with what clients before 1.52 read.
type eventMessage struct {
	Status string `json:"status,omitempty"`
	ID     string `json:"id,omitempty"`
	From   string `json:"from,omitempty"`
	events.Message
}

func toMessage(ev portlayer.Event) eventMessage {
	m := eventMessage{Message: events.Message{
		Type:     events.Type(ev.Noun),
		Action:   events.Action(ev.Verb),
		Actor:    events.Actor{ID: ev.ID, Attributes: ev.Attrs},
		Scope:    "local",
		Time:     ev.Time.Unix(),
		TimeNano: ev.Time.UnixNano(),
	}}
	if m.Actor.Attributes == nil {
		m.Actor.Attributes = map[string]string{}
	}
	switch m.Type {
	case events.ContainerEventType:
		m.Status, m.ID, m.From = ev.Verb, ev.ID, ev.Attrs["image"]
	case events.ImageEventType:
		m.Status, m.ID = ev.Verb, ev.ID
	}
	return m
}

// eventStream answers docker events: what was kept since "since", then what happens, up to "until".
func (s *Server) eventStream(w http.ResponseWriter, r *http.Request) error {
	since, err := unixTime(r, "since")
	if err != nil {
		return err
	}
	until, err := unixTime(r, "until")
	if err != nil {
		return err
	}
	if !since.IsZero() && !until.IsZero() && until.Before(since) {
		return fault.New(fault.Invalid, "`since` time (%s) cannot be after `until` time (%s)", r.URL.Query().Get("since"), r.URL.Query().Get("until"))
	}
	f, err := filtersOf(r)
	if err == nil {
		err = f.only("config", "container", "daemon", "event", "image", "label", "network", "node", "plugin", "scope", "secret", "service", "type", "volume")
	}
	if err != nil {
		return err
	}
	ctx := r.Context()
	if !until.IsZero() {
		var cancel context.CancelFunc
		ctx, cancel = context.WithDeadline(ctx, until)
		defer cancel()
	}
	past, live := s.Events.Subscribe()
	defer live.Close()
	w.Header().Set("Content-Type", "application/json")
	w.WriteHeader(http.StatusOK)
	out := flushWriter{w}
	if _, err := out.Write(nil); err != nil { // the header: a client that has it misses nothing
		return err
	}
	enc := json.NewEncoder(out)
	enc.SetEscapeHTML(false)
	if !since.IsZero() || !until.IsZero() {
		for _, ev := range past {
			if ev.Time.Before(since) || !until.IsZero() && ev.Time.After(until) || !f.event(ev) {
				continue
			}
			if err := enc.Encode(toMessage(ev)); err != nil {
				return err
			}
		}
	}
	for {
		ev, err := live.Next(ctx)
		switch {
		case errors.Is(err, broadcast.ErrLagged):
			return err
		case err != nil: // the time is up, or the client is gone
			return nil
		case !f.event(ev):
			continue
		}
		if err := enc.Encode(toMessage(ev)); err != nil {
			return err
		}
	}
}

// event reports whether ev passes the filters of docker events, which match as Moby's do: names and ids also by their beginning.
func (f filters) event(ev portlayer.Event) bool {
	exact := func(key, have string) bool { return len(f[key]) == 0 || slices.Contains(f[key], have) }
	begins := func(key string) bool {
		return len(f[key]) == 0 || slices.ContainsFunc(f[key], func(v string) bool {
			return strings.HasPrefix(ev.ID, v) || strings.HasPrefix(ev.Attrs["name"], v)
		})
	}
	own := func(noun string) bool { return len(f[noun]) == 0 || ev.Noun == noun && begins(noun) }
	action := len(f["event"]) == 0 || slices.ContainsFunc(f["event"], func(v string) bool {
		return ev.Verb == v || strings.HasPrefix(ev.Verb, v+":") // "exec_start: ls"
	})
	foreign := slices.ContainsFunc([]string{"config", "daemon", "node", "plugin", "secret", "service"}, func(noun string) bool { return len(f[noun]) > 0 })
	return action && exact("type", ev.Noun) && exact("scope", "local") && own("container") && own("volume") && own("network") && f.eventImage(ev) && !foreign && f.labels(ev.Attrs)
}

// eventImage is the filter "image": an image's own events and those of its containers, by id, name or name without its tag.
func (f filters) eventImage(ev portlayer.Event) bool {
	name := ev.Attrs["image"]
	if ev.Noun == string(events.ImageEventType) {
		name = ev.Attrs["name"]
	}
	return len(f["image"]) == 0 || slices.ContainsFunc(f["image"], func(v string) bool {
		return v == name || v == ev.ID || v == withoutTag(name)
	})
}

// withoutTag is a reference without tag and digest.
func withoutTag(name string) string {
	name, _, _ = strings.Cut(name, "@")
	if i := strings.LastIndexByte(name, ':'); i > strings.LastIndexByte(name, '/') {
		name = name[:i]
	}
	return name
}
