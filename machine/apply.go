package machine

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"reflect"
	"slices"
	"time"

	"golang.org/x/sys/unix"

	"vch/internal/failpoint"
	"vch/internal/fault"
)

// Site is where a VCH's daemon, disks and machines are. It does the steps of a plan.
//
// Do may be called again for a step that was done, wholly or in part, by a process that has ended: it finishes it, and a step that is done already changes
// nothing and is no error. Nobody else changes the same VCH meanwhile. An error is a sentence that says what to do.
type Site interface {
	Do(ctx context.Context, s Step) error
}

// Progress is what there is to say of a step: first without Took, when it begins.
type Progress struct {
	N, Of int // the Nth step of so many
	Back  bool
	Step  Step
	Ended bool
	Took  time.Duration
	Err   error
}

// Options is what a plan is applied with.
type Options struct {
	Home   Home
	Site   Site
	Points failpoint.Set
	Now    func() time.Time
	Say    func(Progress)
}

// Lock keeps everybody else from changing the VCH in h, until unlock. The directory is made if it is missing. InUse: somebody is at it.
func (h Home) Lock() (unlock func(), err error) {
	for {
		if err := os.MkdirAll(filepath.Dir(string(h)), 0o755); err != nil {
			return nil, fault.New(fault.Denied, "cannot make the directory of VCHs: %w; choose another with --root", err)
		}
		if err := os.Mkdir(string(h), 0o711); err != nil && !os.IsExist(err) {
			return nil, fault.New(fault.Denied, "cannot make the VCH's directory: %w; choose another place with --root", err)
		}
		dir, err := os.Open(string(h))
		if os.IsNotExist(err) {
			continue // whoever had it has removed it
		}
		if err != nil {
			return nil, fault.New(fault.Denied, "cannot open the VCH's directory: %w", err)
		}
		if err := unix.Flock(int(dir.Fd()), unix.LOCK_EX|unix.LOCK_NB); err != nil {
			return nil, errors.Join(fault.New(fault.InUse, "another vch is changing the VCH in %s at this moment; wait for its end", string(h)), dir.Close())
		}
		if mine, err := dir.Stat(); err == nil {
			if now, err := os.Stat(string(h)); err == nil && os.SameFile(mine, now) {
				return func() {
					_ = os.Remove(string(h)) // an empty directory is nobody's; one with a VCH in it stays
					_ = dir.Close()          // the lock goes with it
				}, nil
			}
		}
		_ = dir.Close() // it was removed meanwhile: the next turn makes it anew
	}
}

// Resume gives the journal of a command that was cut off, if d is what it wanted. NotFound: nothing was cut off, or it was and c is to remove what it left.
// Conflict: something else was.
func (h Home) Resume(c Command, d Desired) (Journal, error) {
	j, err := h.Journal()
	switch {
	case err != nil:
		return j, err
	case j.Command == c && reflect.DeepEqual(canonical(j.Desired), canonical(d)):
		return j, nil
	case c == Delete:
		return j, fault.New(fault.NotFound, "what was cut off is to be removed")
	}
	return j, j.Refusal()
}

// canonical is d so that two that want the same are equal.
func canonical(d Desired) Desired {
	d.Settings = d.Settings.Clone()
	d.Stores, d.Certificates = nil, nil // what could be reached, and this host's names of the moment: the settings have the rest
	if d.Gone {                         // the containers are whatever was left
		d.Containers = nil
	}
	for _, list := range []*[]string{&d.Containers, &d.Volumes} {
		*list = slices.Clone(*list)
		slices.Sort(*list)
		if len(*list) == 0 {
			*list = nil
		}
	}
	if len(d.Directories) == 0 {
		d.Directories = nil
	}
	return d
}

// Begin notes in h that plan p is begun. The caller holds the lock.
func Begin(h Home, p Plan, d Desired, ways Ways, now time.Time) (Journal, error) {
	j := Journal{Command: p.Command, Ways: ways, Began: now, Desired: d, Plan: p}
	r, err := h.Known()
	if err == nil {
		j.Before, j.Former = r.Program, r.Previous
		if old, err := h.Journal(); err == nil && old.Doing { // what is not certain to have been made is to be removed all the same
			if err := h.write(recordFile, r); err != nil {
				return j, err
			}
		}
	}
	return j, h.write(journalFile, j)
}

// Apply does what is left of j. The caller holds the lock. If a step fails, what was changed is taken back where the plan says how; otherwise the
// journal stays, and the same command goes on from there; but for a Start and a Stop, which leave nothing half. The error is the failed step's.
func Apply(ctx context.Context, j Journal, o Options) error {
	record, err := o.Home.Record()
	if fault.Is(err, fault.NotFound) {
		record, err = Record{Name: j.Plan.Name, Target: j.Desired.Target, Created: j.Began}, nil
	}
	if err != nil && j.Command != Delete {
		return err
	}
	a := applying{Options: o, j: j, record: record, resumed: j.Doing || j.Done > 0}
	var failed error
	if a.j.Why == "" {
		failed = a.run(ctx)
		switch {
		case failed == nil:
		case ctx.Err() != nil || errors.Is(failed, errJournal):
			return failed
		case len(j.Plan.Back) == 0 && j.Command != Start && j.Command != Stop: // what these two begin is nothing half
			return fault.New(fault.KindOf(failed), "%w; mend that and go on, or remove the VCH: %s; %s", failed, j.Again, j.Ways.Delete)
		default:
			a.j.Why, a.j.Done, a.j.Doing = failed.Error(), 0, false
			if err := o.Home.write(journalFile, a.j); err != nil {
				return errors.Join(failed, err)
			}
		}
	}
	after := "it is again as it was before"
	if len(j.Plan.Back) == 0 {
		after = ""
	}
	if a.j.Why != "" {
		if failed == nil {
			failed = fault.New(fault.Unavailable, "%s", a.j.Why)
		}
		if err := a.run(ctx); err != nil {
			if kind := a.j.Plan.Back[a.j.Done].Kind; ctx.Err() != nil || kind != StartDaemon && kind != AwaitDaemon {
				return fmt.Errorf("%w; and then it could not be taken back: %w; run it again: %s", failed, err, j.Again)
			}
			after = fmt.Sprintf("it has what it had before, but its daemon does not come up with that either: %v", err) // all has been put back by then
		}
	}
	if err := a.end(); err != nil {
		return errors.Join(failed, err)
	}
	if failed != nil && after != "" {
		return fault.New(fault.KindOf(failed), "%w; %s", failed, after)
	}
	return failed
}

// errJournal is that what was done could not be noted: then nothing is taken back, as that could not be noted either.
var errJournal = errors.New("cannot note what was done")

type applying struct {
	Options
	j       Journal
	record  Record
	resumed bool // a process before this one did a part
}

// run does the steps that are left.
func (a *applying) run(ctx context.Context) error {
	steps, back := a.j.steps(), a.j.Why != ""
	name := "life"
	if back {
		name = "life-back"
	}
	for a.j.Done < len(steps) {
		step := steps[a.j.Done]
		p := Progress{N: a.j.Done + 1, Of: len(steps), Back: back, Step: step}
		if err := ctx.Err(); err != nil {
			return fault.New(fault.Unavailable, "it was told to stop before %s; go on with: %s", step.Text, a.j.Again)
		}
		a.j.Doing = true
		if err := a.Home.write(journalFile, a.j); err != nil {
			return fmt.Errorf("%w: %w", errJournal, err)
		}
		if err := a.Points.Hit(fmt.Sprintf("%s-%d-begun", name, p.N)); err != nil {
			return err
		}
		a.Say(p)
		began := a.Now()
		var err error
		if a.resumed && step.Kind == StartDaemon { // one that came up meanwhile, as with the machine, is not the one that is to be
			err = a.Site.Do(ctx, Step{Kind: StopDaemon})
		}
		if err == nil {
			err = a.Site.Do(ctx, step)
		}
		p.Ended, p.Took, p.Err = true, a.Now().Sub(began), err
		a.Say(p)
		if err != nil {
			return fault.Wrap(step.Text, "", err)
		}
		if err := a.Points.Hit(fmt.Sprintf("%s-%d-done", name, p.N)); err != nil {
			return err
		}
		after := a.record.after(step)
		if back && step.Kind == Register {
			after.Previous = a.j.Former
		}
		if !reflect.DeepEqual(after, a.record) {
			if err := a.Home.write(recordFile, after); err != nil {
				return fmt.Errorf("%w: %w", errJournal, err)
			}
			a.record = after
		}
		a.j.Done++
		a.j.Doing = false
		if err := a.Home.write(journalFile, a.j); err != nil {
			return fmt.Errorf("%w: %w", errJournal, err)
		}
		if err := a.Points.Hit(fmt.Sprintf("%s-%d-noted", name, p.N)); err != nil {
			return err
		}
	}
	return nil
}

// end notes in the record how it went, and that nothing is under way.
func (a *applying) end() error {
	if err := a.Points.Hit("life-end"); err != nil {
		return err
	}
	if a.j.Plan.Command == Delete {
		return a.Home.leave()
	}
	e := Event{Time: a.Now().UTC(), Began: a.j.Began.UTC(), Command: a.j.Command, Error: a.j.Why}
	if to := a.j.Desired.Program; to != "" && to != a.j.Before {
		e.From, e.To = a.j.Before, to
	}
	if !slices.ContainsFunc(a.record.History, func(old Event) bool { return old.Began.Equal(e.Began) && old.Command == e.Command }) {
		a.record.History = append(a.record.History, e)
	}
	if n := len(a.record.History); n > mostEvents {
		a.record.History = a.record.History[n-mostEvents:]
	}
	if err := a.Home.write(recordFile, a.record); err != nil {
		return err
	}
	return a.Home.end()
}
