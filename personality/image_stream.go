package personality

import (
	"encoding/json"
	"errors"
	"net/http"
	"sync"

	"github.com/moby/moby/api/types/jsonstream"

	"vch/portlayer"
)

// progressLine is Docker's message of a pull, load or import, with the fields that older clients read.
type progressLine struct {
	jsonstream.Message
	Error string `json:"error,omitempty"` // the text of errorDetail
}

// progressStream is the answer of a pull, load or import: JSON lines, each sent at once. It begins with the first line; an error before that is an ordinary one,
// after it the last line. All methods may be called at once.
type progressStream struct {
	w    http.ResponseWriter
	mu   sync.Mutex // guards below, and w
	enc  *json.Encoder
	fail error // the client does not read any more
}

func newProgressStream(w http.ResponseWriter) *progressStream {
	// A load's progress is sent while its body is still being read. A server that cannot do both says so, and needs no telling.
	if err := http.NewResponseController(w).EnableFullDuplex(); err != nil && !errors.Is(err, http.ErrNotSupported) {
		return &progressStream{w: w, fail: err}
	}
	return &progressStream{w: w}
}

// send sends one line.
func (p *progressStream) send(line progressLine) error {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.fail != nil {
		return p.fail
	}
	if p.enc == nil {
		p.w.Header().Set("Content-Type", "application/json")
		p.enc = json.NewEncoder(flushWriter{p.w})
		p.enc.SetEscapeHTML(false)
	}
	p.fail = p.enc.Encode(line)
	return p.fail
}

// progress is what a service reports to. A client that went away ends the request's context, so an error is dropped here.
func (p *progressStream) progress(step portlayer.Progress) {
	m := jsonstream.Message{Status: step.Status, ID: step.ID}
	if step.Current != 0 || step.Total != 0 {
		m.Progress = &jsonstream.Progress{Current: step.Current, Total: step.Total}
	}
	_ = p.send(progressLine{Message: m})
}

// finish ends the answer with err, if it is not nil.
func (p *progressStream) finish(err error) error {
	p.mu.Lock()
	began := p.enc != nil
	p.mu.Unlock()
	if err == nil || !began {
		return err
	}
	return p.send(progressLine{Message: jsonstream.Message{Error: &jsonstream.Error{Message: err.Error()}}, Error: err.Error()})
}
