package qemu

import (
	"context"
	"fmt"
	"os"

	"vch/internal/ext4"
	"vch/internal/guestkernel"
)

// Check is one thing that a machine needs for vch, as it was found.
type Check struct {
	Name   string
	OK     bool
	Detail string // what was found, or what to do
}

// Checks looks at what New needs, one by one, and changes nothing: what it has to write goes to a temporary directory. Options.StateDir is not used.
func Checks(ctx context.Context, o Options) []Check {
	var checks []Check
	add := func(name string, err error, found string) {
		c := Check{Name: name, OK: err == nil, Detail: found}
		if err != nil {
			c.Detail = err.Error()
		}
		checks = append(checks, c)
	}
	qemu, err := findQEMU(o.QEMU)
	found := ""
	if err == nil {
		found, err = version(ctx, qemu)
		found = qemu + ", version " + found
	}
	add("QEMU", err, found)
	for _, name := range []string{"mkfs.ext4", "debugfs"} {
		path, err := ext4.FindTool(name)
		add(name, err, path)
	}
	kernel, err := guestkernel.Find(o.Kernel, o.Modules, guestModules)
	add("guest kernel", err, fmt.Sprintf("%s, %d modules to load", kernel.Image, len(kernel.Modules)))
	for _, c := range checks {
		if !c.OK {
			add("accelerator", fmt.Errorf("not tried: %s has to be there first", c.Name), "")
			return checks
		}
	}
	if len(o.Tether) == 0 {
		add("accelerator", fmt.Errorf("not tried: this vch was built without its tether; build it with make build"), "")
		return checks
	}
	name, detail, err := tryAccel(ctx, o)
	add("accelerator", err, fmt.Sprintf("%s (%s)", name, detail))
	return checks
}

// tryAccel is New's decision, made in a directory of its own.
func tryAccel(ctx context.Context, o Options) (name, detail string, err error) {
	if o.StateDir, err = os.MkdirTemp("", "vch-doctor-"); err != nil {
		return "", "", err
	}
	defer os.RemoveAll(o.StateDir)
	o.Cache, o.Template = "", false
	h, err := New(ctx, o)
	if err != nil {
		return "", "", err
	}
	return h.info.Accel, h.info.Detail, h.Close()
}

// ShareCheck looks for what shares directories of the host with machines, which only those need that share any.
func ShareCheck() Check {
	path, err := findVirtiofsd()
	if err != nil {
		return Check{Name: "virtiofsd", Detail: err.Error()}
	}
	return Check{Name: "virtiofsd", OK: true, Detail: path}
}
