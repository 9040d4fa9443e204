package personality

import (
	"net/http"
	"strconv"

	"vch/guest"
	"vch/internal/fault"
	"vch/portlayer"
)

// logTime is the form of a log's timestamps: RFC 3339 with all nine digits, so that they line up (moby jsonmessage.RFC3339NanoFixed).
const logTime = "2006-01-02T15:04:05.000000000Z07:00"

// containerLogs is GET /containers/{id}/logs.
func (s *Server) containerLogs(w http.ResponseWriter, r *http.Request) error {
	o, err := logOptions(r)
	if err != nil {
		return err
	}
	c, err := s.Containers.Get(r.Context(), r.PathValue("id"))
	if err != nil {
		return err
	}
	if c.Spec.LogMax.None { // before the answer begins
		return statusError{http.StatusNotImplemented, portlayer.ErrNoLog}
	}
	out := flushWriter{w}
	stdout, stderr, mediaType := outputs(out, c.Spec.Process.TTY, versionOf(r))
	w.Header().Set("Content-Type", mediaType)
	w.WriteHeader(http.StatusOK)
	if err := http.NewResponseController(w).Flush(); err != nil { // a follower of a silent container wants to know that it is heard
		return err
	}
	write := logWriter{timestamps: boolValue(r, "timestamps"), details: boolValue(r, "details"), midLine: map[guest.Stream]bool{}}
	return s.Containers.Logs(r.Context(), string(c.ID), o, func(e portlayer.LogEntry) error {
		to := stdout
		if e.Stream == guest.Stderr {
			to = stderr
		}
		_, err := to.Write(write.line(e))
		return err
	})
}

// logWriter puts before each line what was asked for, once, however many pieces the line comes in.
type logWriter struct {
	timestamps, details bool
	midLine             map[guest.Stream]bool // a line of that stream is not ended yet
}

// line is what the client gets for e.
func (l logWriter) line(e portlayer.LogEntry) []byte {
	if len(e.Data) == 0 {
		return nil
	}
	var line []byte
	if !l.midLine[e.Stream] {
		if l.timestamps {
			line = append(e.Time.UTC().AppendFormat(line, logTime), ' ')
		}
		if l.details { // the attributes that --log-opt labels and env would give: there are none, and a space ends them
			line = append(line, ' ')
		}
	}
	l.midLine[e.Stream] = e.Data[len(e.Data)-1] != '\n'
	return append(line, e.Data...)
}

// logOptions reads which entries are wanted.
func logOptions(r *http.Request) (o portlayer.LogOptions, err error) {
	o = portlayer.LogOptions{Follow: boolValue(r, "follow"), Stdout: boolValue(r, "stdout"), Stderr: boolValue(r, "stderr"), Tail: -1}
	if !o.Stdout && !o.Stderr {
		return o, fault.New(fault.Invalid, "Bad parameters: you must choose at least one stream")
	}
	if n, err := strconv.Atoi(r.URL.Query().Get("tail")); err == nil { // anything else is "all", as in Moby
		o.Tail = n
	}
	if o.Since, err = unixTime(r, "since"); err != nil {
		return o, err
	}
	o.Until, err = unixTime(r, "until")
	return o, err
}
