package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"strings"
	"text/tabwriter"
	"time"

	"github.com/spf13/pflag"

	"vch/internal/failpoint"
	"vch/internal/fault"
	"vch/machine"
)

// life is what the commands of a VCH's life have in common: where VCHs are, and how what is done is shown.
type life struct {
	placesFlag
	format   string
	dryRun   bool
	patience time.Duration
	out      io.Writer
}

// flags are those of a command that changes a VCH.
func (c *life) flags(f *pflag.FlagSet) {
	f.BoolVar(&c.dryRun, "dry-run", false, "print the plan, and do nothing")
	f.StringVar(&c.format, "format", "text", "print the plan and what is done as `FORM`: text, or json: an object a line")
	const patience = 2 * time.Minute
	f.DurationVar(&c.patience, "wait", patience, "how long a daemon may take to answer, a `DURATION`")
	c.placesFlag.flags(f)
}

func (c *life) checkFormat(forms ...string) error {
	for _, form := range forms {
		if c.format == form {
			return nil
		}
	}
	return usagef("--format %q is none of %s", c.format, strings.Join(forms, ", "))
}

// site is the place of the VCH called name, as this program changes it.
func (c *life) site(name string) (site, error) {
	at := here()
	l, err := c.of(name, at)
	if err != nil {
		return site{}, err
	}
	program, err := os.Executable()
	if err != nil {
		return site{}, err
	}
	return site{place: l, at: at, program: program, patience: c.patience, seen: l.print()}, nil
}

// existing is site for a VCH that has to be there.
func (c *life) existing(name string) (site, error) {
	s, err := c.site(name)
	if err != nil {
		return s, err
	}
	if !s.there() {
		root, _, _ := c.dir(s.at)
		return s, fault.New(fault.NotFound, "there is no VCH %s in %s; see vch ls, and --root", name, root)
	}
	return s, nil
}

// whole is existing for a VCH of which nothing was cut off, but by the command itself.
func (c *life) whole(name string, command machine.Command) (site, error) {
	s, err := c.existing(name)
	if err != nil {
		return s, err
	}
	if j, err := s.Home.Journal(); err == nil && j.Command != command {
		return s, j.Refusal()
	}
	if _, err := s.Home.Known(); err != nil {
		return s, fault.New(fault.KindOf(err), "VCH %s is broken: %w; remove it: vch delete %s", name, err, name)
	}
	return s, nil
}

// printed is how a plan is shown.
type printed struct {
	Checks []machine.Check `json:"checks,omitempty"`
	Plan   machine.Plan    `json:"plan"`
}

// change does what leads to d: it goes on with what was cut off, or plans, shows the plan, and applies it. ready is called with the plan before anything is done; nil: nothing
// more is to be asked. It reports whether anything was done.
func (c *life) change(ctx context.Context, s site, command machine.Command, d machine.Desired, checks []machine.Check, again string, plan func() (machine.Plan, error), ready func(machine.Plan) error) (did bool, err error) {
	points, err := failpoint.FromEnv()
	if err != nil {
		return false, usageError{err}
	}
	j, err := s.Home.Resume(command, d)
	resumed := err == nil
	if err != nil && !fault.Is(err, fault.NotFound) {
		return false, err
	}
	p := j.Plan
	if !resumed {
		if plan == nil { // it was to go on, and somebody else has done that
			return false, nil
		}
		if p, err = plan(); err != nil {
			return false, err
		}
	}
	if err := c.show(printed{checks, p}, j, resumed, again); err != nil || c.dryRun {
		return false, err
	}
	if len(p.Steps) == 0 {
		return false, nil
	}
	if ready != nil && !resumed {
		if err := ready(p); err != nil {
			return false, err
		}
	}
	unlock, err := s.Home.Lock()
	if err != nil {
		return false, err
	}
	defer unlock()
	if s.print() != s.seen {
		return false, fault.New(fault.Conflict, "nothing was changed: another vch has changed VCH %s meanwhile; look, and run it again", s.Name)
	}
	if !resumed {
		if j, err = machine.Begin(s.Home, p, d, machine.Ways{Again: again, Delete: "vch delete " + s.Name + c.rootWord()}, time.Now()); err != nil {
			return false, err
		}
	}
	return true, machine.Apply(ctx, j, machine.Options{Home: s.Home, Site: onVSphere{s}, Points: points, Now: time.Now, Say: c.say})
}

// show prints a plan.
func (c *life) show(p printed, j machine.Journal, resumed bool, again string) error {
	if c.format == "json" {
		e := json.NewEncoder(c.out)
		if c.dryRun {
			e.SetIndent("", "  ")
		}
		return e.Encode(p)
	}
	var b strings.Builder
	if len(p.Checks) > 0 {
		b.WriteString("checked:\n")
		t := tabwriter.NewWriter(&b, 0, 0, 2, ' ', 0)
		for _, k := range p.Checks {
			fmt.Fprintf(t, "  %s\t%s\t%s\n", k.Name, k.Verdict, strings.ReplaceAll(k.Detail, "\n", "; "))
		}
		t.Flush()
	}
	for i, change := range p.Plan.Changes {
		if i == 0 {
			b.WriteString("what changes:\n")
		}
		fmt.Fprintf(&b, "  %s\n", change)
	}
	switch {
	case resumed:
		fmt.Fprintf(&b, "vch %s of VCH %s was cut off at %s, and goes on from there\n", j.Command, p.Plan.Name, j.At())
	case len(p.Plan.Steps) == 0:
		fmt.Fprintf(&b, "VCH %s is so already: nothing is to be done\n", p.Plan.Name)
	default:
		fmt.Fprintf(&b, "plan to %s VCH %s:\n", p.Plan.Command, p.Plan.Name)
		for i, step := range p.Plan.Steps {
			fmt.Fprintf(&b, "  %2d. %s\n", i+1, step.Text)
		}
	}
	if p.Plan.Keeps != nil {
		b.WriteString("volumes that stay where they are:\n")
		t := tabwriter.NewWriter(&b, 0, 0, 2, ' ', 0)
		for _, v := range p.Plan.Keeps {
			fmt.Fprintf(t, "  %s\tstore %s\t%s\n", v.Name, v.Store, v.Where)
		}
		t.Flush()
	}
	_, err := io.WriteString(c.out, b.String())
	return err
}

// say prints that a step has ended. That nobody reads it does not end what is done.
func (c *life) say(p machine.Progress) {
	if !p.Ended {
		return
	}
	if c.format == "json" {
		line := map[string]any{"step": p.N, "of": p.Of, "back": p.Back, "kind": p.Step.Kind, "subject": p.Step.Subject, "ok": p.Err == nil, "seconds": p.Took.Seconds()}
		if p.Err != nil {
			line["error"] = p.Err.Error()
		}
		_ = json.NewEncoder(c.out).Encode(line)
		return
	}
	head, text, verdict := "", p.Step.Done, "ok"
	if p.Back {
		head = "back "
	}
	if p.Err != nil {
		text, verdict = p.Step.Text, "failed"
	}
	_, _ = fmt.Fprintf(c.out, "%s[%d/%d] %s: %s (%.1f s)\n", head, p.N, p.Of, text, verdict, p.Took.Seconds())
}

// rootWord is --root again, for command lines that are printed.
func (c *life) rootWord() string {
	if c.root == "" {
		return ""
	}
	return " --root " + shellQuote(absolute(c.root, here()))
}

// kindly makes a fault that whoever wrote the command line can mend one of usage.
func kindly(err error) error {
	if fault.Is(err, fault.Invalid) {
		var usage usageError
		if !errors.As(err, &usage) {
			return usageError{err}
		}
	}
	return err
}
