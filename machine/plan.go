package machine

import (
	"fmt"
	"slices"
	"strings"

	"vch/internal/fault"
)

// Kind is what a step does.
type Kind string

// The kinds of steps that every site knows. Each can be done again: one that is done already changes nothing and is no error.
const (
	MakeDirectory    Kind = "make-directory"    // Subject is its path
	MakeStore        Kind = "make-store"        // Subject is its path
	CopyProgram      Kind = "copy-program"      // Subject is the version: the vch that plans is put among those that the VCH keeps
	MakeCertificates Kind = "make-certificates" // Names are those that the server's is to hold; one for a client is made beside it
	WriteSettings    Kind = "write-settings"    // Settings
	Register         Kind = "register"          // Subject is the supervisor, Program the version that it is to run
	Unregister       Kind = "unregister"        // Subject is the supervisor
	StartDaemon      Kind = "start-daemon"
	AwaitDaemon      Kind = "await-daemon" // it answers, and lists the Containers
	StopDaemon       Kind = "stop-daemon"
	RemoveContainer  Kind = "remove-container" // Subject is its id
	RemoveVolume     Kind = "remove-volume"    // Subject is NAME or NAME@STORE
	RemoveProgram    Kind = "remove-program"   // Subject is the version
	RemoveSettings   Kind = "remove-settings"
	RemoveDirectory  Kind = "remove-directory" // Subject is its path
)

// Step is one step of a plan, with all that is needed to do it.
type Step struct {
	Kind    Kind   `json:"kind"`
	Subject string `json:"subject"`
	Text    string `json:"text"` // what will be done: "make the directory /var/lib/x"
	Done    string `json:"done"` // that it was: "made the directory /var/lib/x"

	Mode       uint32            `json:"mode,omitempty"`
	Program    string            `json:"program,omitempty"`
	Settings   Settings          `json:"settings,omitempty"`
	Names      []string          `json:"names,omitempty"`
	Containers []Container       `json:"containers,omitempty"`
	Data       map[string]string `json:"data,omitempty"` // of kinds that only one site knows
}

// Plan is the way from what is there to what is wanted.
type Plan struct {
	Command Command  `json:"command"`
	Name    string   `json:"name"`
	Changes []Change `json:"changes,omitempty"` // of settings
	Steps   []Step   `json:"steps"`
	Back    []Step   `json:"back,omitempty"`  // done in this order if one of Steps fails: the way back to what was there
	Keeps   []Volume `json:"keeps,omitempty"` // what a Delete leaves where it is
}

// Own are the steps that only one site has. They are idempotent as all steps are, and the site plans them by what it has observed.
type Own struct {
	Before []Step // the daemon's start, after all else is there
	After  []Step // the daemon's end, before what was made for it goes
	Back   []Step // that take Before back, of a VCH that is there: done before its daemon is started as it was
}

// PlanFor is the way from o to d. An empty plan is that o is as d wants it. Conflict: d is to be made, and there is one. NotFound: a volume that is to be
// removed is not there. InUse: d is to be gone, and there are containers that d does not say to remove.
func PlanFor(c Command, d Desired, o Observed, own Own) (Plan, error) {
	p := Plan{Command: c, Name: d.Name, Steps: []Step{}}
	if d.Gone {
		return p.gone(d, o, own)
	}
	if c == Create && o.Supervisor != "" {
		return p, fault.New(fault.Conflict, "there is a VCH %s already; change it with vch configure %[1]s, or give the new one another name", d.Name)
	}
	for _, dir := range d.Directories {
		if !slices.Contains(o.Directories, dir.Path) {
			p.add(Step{Kind: MakeDirectory, Subject: dir.Path, Mode: dir.Mode}, "make the directory %s", "made the directory %s", dir.Path)
		}
	}
	for _, path := range d.Stores {
		if !slices.Contains(o.Stores, path) {
			p.add(Step{Kind: MakeStore, Subject: path}, "make a volume store of %s", "made a volume store of %s", path)
		}
	}
	if !slices.Contains(o.Programs, d.Program) {
		p.add(Step{Kind: CopyProgram, Subject: d.Program}, "keep a copy of this program, vch %s", "kept a copy of this program, vch %s", d.Program)
	}
	p.Steps = append(p.Steps, own.Before...)
	certified := holds(o.Certificates, d.Certificates)
	p.Changes = Diff(o.Settings, d.Settings)
	settled := o.Settings != nil && len(p.Changes) == 0
	registered := o.Program == d.Program && o.Supervisor == d.Supervisor
	same := certified && settled && registered && len(own.Before) == 0
	if c == Create {
		p.Changes = nil // all of them: the settings are printed as such
	}
	if o.Running && (!same || !d.Running) {
		p.stop(o.Containers)
	}
	if !certified {
		p.certificates(d.Certificates)
	}
	if !settled {
		p.settings(d.Settings)
	}
	if !registered {
		p.register(o.Supervisor, d.Supervisor, d.Program)
	}
	if d.Running && (!o.Running || !same) {
		p.start(d.Program, o.Containers)
	}
	for _, v := range o.Programs { // one can be gone back to, and that is enough
		if !registered && v != d.Program && v != o.Program {
			p.add(Step{Kind: RemoveProgram, Subject: v}, "remove the copy of vch %s", "removed the copy of vch %s", v)
		}
	}
	if o.Supervisor != "" && !same { // there is a way back: it was a VCH before
		p.Back = back(d, o, own, settled, registered)
	}
	return p, nil
}

// back is how to be again what was there: it stops what runs, and goes on from there.
func back(d Desired, o Observed, own Own, settled, registered bool) []Step {
	var b Plan
	b.stop(nil)
	b.Steps = append(b.Steps, own.Back...)
	if !settled && o.Settings != nil {
		b.settings(o.Settings)
	}
	if !registered {
		b.register(d.Supervisor, o.Supervisor, o.Program)
	}
	if o.Running {
		b.start(o.Program, o.Containers)
	}
	return b.Steps
}

// gone is the way to nothing.
func (p Plan) gone(d Desired, o Observed, own Own) (Plan, error) {
	var left []string
	for _, c := range o.Containers {
		if !slices.Contains(d.Containers, c.ID) {
			left = append(left, c.String())
		}
	}
	if left != nil {
		return p, fault.New(fault.InUse, "VCH %s has containers: %s; remove them first (docker rm -f), or have them removed with it: --force", d.Name, strings.Join(left, ", "))
	}
	remove := map[int]bool{}
	for _, text := range d.Volumes {
		i, err := findVolume(o.Volumes, text)
		if err != nil {
			return p, err
		}
		remove[i] = true
	}
	running := o.Running
	if len(o.Containers)+len(remove) > 0 && !running { // only the daemon can remove what is the machines'
		p.start(o.Program, nil)
		running = true
	}
	for _, c := range o.Containers {
		p.add(Step{Kind: RemoveContainer, Subject: c.ID}, "remove the container %s", "removed the container %s", c.String())
	}
	for i, v := range o.Volumes {
		if !remove[i] {
			p.Keeps = append(p.Keeps, v)
			continue
		}
		p.add(Step{Kind: RemoveVolume, Subject: v.Name + "@" + v.Store}, "delete the volume %s and what is in it", "deleted the volume %s", fmt.Sprintf("%s of store %s", v.Name, v.Store))
	}
	if running {
		p.stop(nil)
	}
	if o.Supervisor != "" {
		p.add(Step{Kind: Unregister, Subject: o.Supervisor}, "take it from the supervisor %s", "took it from the supervisor %s", o.Supervisor)
	}
	p.Steps = append(p.Steps, own.After...)
	if o.Settings != nil {
		p.add(Step{Kind: RemoveSettings}, "remove the configuration%s", "removed the configuration%s", "")
	}
	for _, v := range o.Programs {
		p.add(Step{Kind: RemoveProgram, Subject: v}, "remove the copy of vch %s", "removed the copy of vch %s", v)
	}
	for _, dir := range slices.Backward(o.Directories) {
		p.add(Step{Kind: RemoveDirectory, Subject: dir}, "remove the directory %s", "removed the directory %s", dir)
	}
	return p, nil
}

// findVolume finds a volume by NAME, or NAME@STORE.
func findVolume(all []Volume, text string) (int, error) {
	found := -1
	for i, v := range all {
		switch {
		case v.Name+"@"+v.Store == text:
			return i, nil
		case v.Name == text && found >= 0:
			return 0, fault.New(fault.Invalid, "there is a volume %s in several stores: say %[1]s@%[2]s or %[1]s@%[3]s", text, all[found].Store, v.Store)
		case v.Name == text:
			found = i
		}
	}
	if found < 0 {
		return 0, fault.New(fault.NotFound, "there is no volume %s to delete; nothing was changed", text)
	}
	return found, nil
}

// add puts a step into the plan, with its sentences: will and done have one %s, for what.
func (p *Plan) add(s Step, will, done, what string) {
	s.Text, s.Done = fmt.Sprintf(will, what), fmt.Sprintf(done, what)
	p.Steps = append(p.Steps, s)
}

func (p *Plan) certificates(names []string) {
	p.add(Step{Kind: MakeCertificates, Names: names}, "make certificates for %s", "made certificates for %s", strings.Join(names, ", "))
}

func (p *Plan) settings(s Settings) {
	p.add(Step{Kind: WriteSettings, Settings: s}, "write the configuration%s", "wrote the configuration%s", "")
}

// register has supervisor now look after program; was is who did before.
func (p *Plan) register(was, now, program string) {
	if was != "" && was != now {
		p.add(Step{Kind: Unregister, Subject: was}, "take it from the supervisor %s", "took it from the supervisor %s", was)
	}
	p.add(Step{Kind: Register, Subject: now, Program: program}, "make vch %s its daemon", "made vch %s its daemon", fmt.Sprintf("%s (supervisor %s)", program, now))
}

func (p *Plan) stop(containers []Container) {
	note := ""
	if len(containers) > 0 {
		note = "; containers go on"
	}
	p.add(Step{Kind: StopDaemon}, "stop the daemon%s", "stopped the daemon%s", note)
}

// start starts the daemon, and waits until it answers and knows the containers.
func (p *Plan) start(program string, containers []Container) {
	p.add(Step{Kind: StartDaemon, Program: program}, "start the daemon, vch %s", "started the daemon, vch %s", program)
	note := ""
	if n := len(containers); n > 0 {
		note = fmt.Sprintf(", with the containers that there are (%d)", n)
	}
	p.add(Step{Kind: AwaitDaemon, Containers: containers}, "wait until it answers%s", "it answers%s", note)
}
