package machine

import (
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"time"

	"vch/internal/atomicfile"
	"vch/internal/fault"
)

// The files of a VCH's directory that are this package's.
const (
	recordFile  = "host.json"
	journalFile = "journal.json"
)

// Record is what is known of a VCH beside its configuration.
type Record struct {
	Name       string    `json:"name"`
	Target     string    `json:"target"`
	Created    time.Time `json:"created"`
	Program    string    `json:"program,omitempty"`    // the version of vch that its daemon is
	Previous   string    `json:"previous,omitempty"`   // that it was before: what an upgrade goes back to
	Programs   []string  `json:"programs,omitempty"`   // that are kept
	Supervisor string    `json:"supervisor,omitempty"` // "": nobody looks after it yet, or any more
	Made       []string  `json:"made,omitempty"`       // directories that were made for it, and go with it
	History    []Event   `json:"history,omitempty"`    // newest last
}

// Event is one command that changed a VCH, or did not.
type Event struct {
	Time    time.Time `json:"time"` // when it ended
	Began   time.Time `json:"began"`
	Command Command   `json:"command"`
	From    string    `json:"from,omitempty"`  // the program before, where that changed
	To      string    `json:"to,omitempty"`    // and the one that it was to be
	Error   string    `json:"error,omitempty"` // "": it went well. Otherwise it was taken back, and why
}

// mostEvents keeps a record from growing without end.
const mostEvents = 100

// after is the record when step s is done.
func (r Record) after(s Step) Record {
	switch s.Kind {
	case MakeDirectory:
		r.Made = with(r.Made, s.Subject)
	case RemoveDirectory:
		r.Made = without(r.Made, s.Subject)
	case CopyProgram:
		r.Programs = with(r.Programs, s.Subject)
	case RemoveProgram:
		r.Programs = without(r.Programs, s.Subject)
	case Register:
		if r.Program != s.Program {
			r.Previous = r.Program
		}
		r.Program, r.Supervisor = s.Program, s.Subject
	case Unregister:
		r.Supervisor = ""
	}
	return r
}

func with(list []string, item string) []string {
	if slices.Contains(list, item) {
		return list
	}
	return append(slices.Clone(list), item)
}

func without(list []string, item string) []string {
	return slices.DeleteFunc(slices.Clone(list), func(s string) bool { return s == item })
}

// Ways are the command lines by which it goes on after a command was cut off.
type Ways struct {
	Again  string `json:"again"`  // with it
	Delete string `json:"delete"` // without the VCH
}

// Journal is a command that is being applied, or was cut off.
type Journal struct {
	Command Command `json:"command"`
	Ways
	Began   time.Time `json:"began"`
	Desired Desired   `json:"desired"`
	Plan    Plan      `json:"plan"`
	Done    int       `json:"done"`             // so many steps of the plan, or of its way back, are done
	Doing   bool      `json:"doing"`            // the next one was begun
	Why     string    `json:"why,omitempty"`    // it goes back, and this is why
	Before  string    `json:"before,omitempty"` // the program before
	Former  string    `json:"former,omitempty"` // and the one before that, which it is again if it goes back
}

// steps are those that it is at.
func (j Journal) steps() []Step {
	if j.Why != "" {
		return j.Plan.Back
	}
	return j.Plan.Steps
}

// At is the step that was not finished, in words.
func (j Journal) At() string {
	if steps := j.steps(); j.Done < len(steps) {
		return fmt.Sprintf("step %d of %d, %s", j.Done+1, len(steps), steps[j.Done].Text)
	}
	return "its end"
}

// State is a VCH's state with a command that was cut off.
func (j Journal) State() string {
	switch j.Command {
	case Create:
		return "half-made"
	case Delete:
		return "half-deleted"
	}
	return "half-changed"
}

// Refusal is what any other command hears.
func (j Journal) Refusal() error {
	name := j.Plan.Name
	ways := fmt.Sprintf("run it again (%s), or remove the VCH: %s", j.Again, j.Ways.Delete)
	if j.Command == Delete {
		ways = "run it again: " + j.Again
	}
	return fault.New(fault.Conflict, "vch %s of VCH %s was cut off at %s; %s", j.Command, name, j.At(), ways)
}

// Home is the directory of one VCH, as far as its record and its journal go.
type Home string

// Record reads the record; NotFound if there is none.
func (h Home) Record() (r Record, err error) { return r, h.read(recordFile, &r) }

// Known is the record with what a command that was cut off may have done by then. NotFound if nothing is known.
func (h Home) Known() (Record, error) {
	r, err := h.Record()
	j, jerr := h.Journal()
	if jerr != nil || err != nil && !fault.Is(err, fault.NotFound) {
		return r, err
	}
	if err != nil {
		r = Record{Name: j.Plan.Name, Target: j.Desired.Target, Created: j.Began}
	}
	if steps := j.steps(); j.Doing && j.Done < len(steps) {
		r = r.after(steps[j.Done])
	}
	return r, nil
}

// Journal reads the journal; NotFound if nothing was cut off.
func (h Home) Journal() (j Journal, err error) { return j, h.read(journalFile, &j) }

func (h Home) read(file string, into any) error {
	path := filepath.Join(string(h), file)
	text, err := os.ReadFile(path)
	if errors.Is(err, fs.ErrNotExist) {
		return fault.New(fault.NotFound, "%s is missing", path)
	}
	if err != nil {
		return fault.New(fault.Denied, "cannot read: %w", err)
	}
	if err := json.Unmarshal(text, into); err != nil {
		return fault.New(fault.Internal, "%s is damaged: %w", path, err)
	}
	return nil
}

func (h Home) write(file string, what any) error {
	text, err := json.MarshalIndent(what, "", "  ")
	if err != nil {
		return err
	}
	return atomicfile.Write(filepath.Join(string(h), file), append(text, '\n'), 0o600)
}

// end takes the journal away, as nothing is under way any more.
func (h Home) end() error {
	err := os.Remove(filepath.Join(string(h), journalFile))
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	return err
}

// leave removes the directory with the record and the journal, in this order: what is left by a crash is still known as half-deleted, or is empty.
func (h Home) leave() error {
	for _, path := range []string{filepath.Join(string(h), recordFile), filepath.Join(string(h), journalFile), string(h)} {
		if err := os.Remove(path); err != nil && !errors.Is(err, fs.ErrNotExist) {
			return fault.New(fault.Conflict, "cannot remove %s: %w", path, err)
		}
	}
	return nil
}
