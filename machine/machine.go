// Package machine is the life of a virtual container host: how one is made, changed, upgraded and removed.
//
// What an administrator wants is a Desired, what is there is an Observed, and PlanFor gives the way from one to the other: a Plan, a list of steps
// in plain sentences, which can be printed before anything happens. It is pure: it asks no file, no clock and no network. Begin and Apply do a plan,
// step by step, with a journal in the VCH's directory; an apply that was cut off goes on where it stopped when the same command is run again, and any
// other is refused and hears why. How a step is done is not known here: a Site does it, the place where a VCH's daemon, disks and machines are. A site may
// put steps of its own into a plan.
//
// Nothing here knows Docker's API, systemd, or a hypervisor.
package machine

import (
	"regexp"
	"slices"

	"vch/internal/fault"
)

// Local is the target of a VCH whose machines run on the host of its daemon.
const Local = "local"

// longestName is what a unit's, a socket's and a directory's name can hold, with room to spare for what is put around it.
const longestName = 40

var name = regexp.MustCompile(`^[a-zA-Z0-9][a-zA-Z0-9_.-]*$`)

// CheckName says what is wrong with a VCH's name.
func CheckName(text string) error {
	switch {
	case text == "":
		return fault.New(fault.Invalid, "a VCH has a name; give it with --name")
	case len(text) > longestName:
		return fault.New(fault.Invalid, "%q cannot be a VCH's name: it has %d characters, and may have %d", text, len(text), longestName)
	case !name.MatchString(text):
		return fault.New(fault.Invalid, "%q cannot be a VCH's name: it begins with a letter or a digit, and holds letters, digits, _, . and - only", text)
	}
	return nil
}

// Command is what was asked for. It is the word on the command line.
type Command string

// The commands that change a VCH.
const (
	Create    Command = "create"
	Configure Command = "configure"
	Upgrade   Command = "upgrade"
	Start     Command = "start"
	Stop      Command = "stop"
	Delete    Command = "delete"
)

// Desired is what a VCH is to be.
type Desired struct {
	Name   string `json:"name"`
	Target string `json:"target"` // Local, or the URL of what runs its machines

	Directories  []Directory `json:"directories,omitempty"`  // that are made for it and removed with it, parents first
	Stores       []string    `json:"stores,omitempty"`       // directories that are to keep volumes; they stay when the VCH goes
	Settings     Settings    `json:"settings,omitempty"`     // of its daemon
	Certificates []string    `json:"certificates,omitempty"` // the names that the server's certificate is to hold; nil: none are made
	Program      string      `json:"program,omitempty"`      // the version of vch that its daemon is
	Supervisor   string      `json:"supervisor,omitempty"`   // what looks after the daemon
	Running      bool        `json:"running"`

	// Gone is that there is to be no VCH any more: nothing above but Name counts. Containers and volumes that are to be removed are said one by one.
	Gone       bool     `json:"gone,omitempty"`
	Containers []string `json:"containers,omitempty"`
	Volumes    []string `json:"volumes,omitempty"`
}

// Directory is one that is made for a VCH.
type Directory struct {
	Path string `json:"path"`
	Mode uint32 `json:"mode"` // as chmod(2) has it
}

// Observed is what there is of a VCH. The zero value is nothing.
type Observed struct {
	Directories  []string    `json:"directories,omitempty"` // that were made for it
	Stores       []string    `json:"stores,omitempty"`      // of those that are wanted, the ones that are there
	Settings     Settings    `json:"settings,omitempty"`    // nil: there is no configuration
	Certificates []string    `json:"certificates,omitempty"`
	Program      string      `json:"program,omitempty"`    // that its daemon is, or will be when it is started
	Programs     []string    `json:"programs,omitempty"`   // that are kept
	Supervisor   string      `json:"supervisor,omitempty"` // "": nobody looks after it
	Running      bool        `json:"running"`
	Containers   []Container `json:"containers,omitempty"`
	Volumes      []Volume    `json:"volumes,omitempty"`
}

// Container is a container of a VCH, as far as its life goes.
type Container struct {
	ID   string `json:"id"`
	Name string `json:"name,omitempty"`
}

// String is what a user calls it.
func (c Container) String() string {
	if c.Name != "" {
		return c.Name
	}
	return c.ID[:min(len(c.ID), 12)]
}

// Volume is a volume of a VCH, and where it is.
type Volume struct {
	Name  string `json:"name"`
	Store string `json:"store"`
	Where string `json:"where"`
}

// holds says whether the certificate names have all that is wanted.
func holds(have, want []string) bool {
	if len(want) == 0 {
		return true
	}
	return len(have) > 0 && !slices.ContainsFunc(want, func(n string) bool { return !slices.Contains(have, n) })
}
