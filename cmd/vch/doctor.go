package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"os"
	"os/exec"
	"strings"
	"text/tabwriter"
	"time"

	"github.com/spf13/cobra"

	"vch/hypervisor/qemu"
	"vch/internal/fault"
	"vch/portlayer"
	"vch/portlayer/volume/nfs"
)

// errDoctor is that a check failed; the table has said which.
var errDoctor = errors.New("this machine is not ready for vch")

// check is one row of doctor's table.
type check struct {
	name, verdict, detail string
}

// The verdicts: only fail keeps vch serve from working.
const (
	ok   = "ok"
	warn = "warn"
	fail = "FAIL"
)

func doctorCommand(stdout io.Writer) *cobra.Command {
	var w words
	cmd := &cobra.Command{
		Use:   "doctor",
		Short: "Say whether vch serve would work on this machine, and what to do where not",
		Long: `vch doctor looks at what vch serve with the same flags would need: QEMU, a guest kernel with its modules, e2fsprogs, hardware
virtualisation, the stores and their free space, the socket, the docker CLI. With --target it looks at vSphere instead of QEMU: who logs
in, where machines and volumes would be, what the user may do there. It changes nothing.

It ends with exit code 1 if a check says FAIL. One that says warn does not keep vch from working.`,
		Example: "  vch doctor --volume-store ~/volumes:default",
		Args:    cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			s, err := w.resolve(cmd.Flags())
			if err != nil {
				return err
			}
			checks := examine(cmd.Context(), s)
			if err := printChecks(stdout, checks); err != nil {
				return err
			}
			for _, c := range checks {
				if c.verdict == fail {
					return errDoctor
				}
			}
			return nil
		},
	}
	w.flags(cmd.Flags())
	return cmd
}

// examine looks at everything that a vch serve with s would need.
func examine(ctx context.Context, s settings) []check {
	checks := examineMachine(ctx, s)
	found, err := lookAtState(s.State)
	checks = append(checks, rowOf("state", found, err))
	if s.VSphere != nil {
		checks = append(checks, examineTarget(ctx, s)...)
	}
	checks = append(checks, storeChecks(ctx, s.Stores, s.NFSTimeout)...)
	for _, a := range s.Listen {
		checks = append(checks, socketCheck(a))
	}
	return append(checks, dockerCheck(s.Listen[0], exec.LookPath))
}

// examineMachine looks at what machines and networks need.
func examineMachine(ctx context.Context, s settings) []check {
	checks := []check{tetherCheck(tetherProgram())}
	if s.VSphere != nil {
		checks = append(checks, examineSphere(s)...)
		if s.Bridges {
			checks = append(checks, bridgeCheck(exec.LookPath))
		}
		return checks
	}
	o := machineOptions(s, slog.New(slog.DiscardHandler))
	for _, c := range qemu.Checks(ctx, o) {
		checks = append(checks, check{c.Name, verdictOf(c.OK), c.Detail})
	}
	checks = append(checks, templateCheck(ctx, o))
	if len(s.BindAllow) > 0 {
		checks = append(checks, bindChecks(s.BindAllow)...)
	}
	if s.Bridges {
		checks = append(checks, bridgeCheck(exec.LookPath))
	}
	return checks
}

func verdictOf(good bool) string {
	if good {
		return ok
	}
	return fail
}

// rowOf is the row of a place that was looked at.
func rowOf(name string, f finding, err error) check {
	switch {
	case err != nil:
		return check{name, fail, err.Error()}
	case f.warning != "":
		return check{name, warn, f.warning + " (" + f.detail + ")"}
	}
	return check{name, ok, f.detail}
}

func tetherCheck(program []byte) check {
	if len(program) == 0 {
		return check{"vch", fail, noTether}
	}
	return check{"vch", ok, fmt.Sprintf("%s, tether of %s inside", version, size(portlayer.Bytes(len(program))))}
}

// templateCheck says what starts are made of. That there is no template yet keeps nobody from starting.
func templateCheck(ctx context.Context, o qemu.Options) check {
	if !o.Template {
		return check{"templates", ok, "off: every machine boots"}
	}
	all, err := qemu.Templates(ctx, o.Cache)
	if err != nil {
		return check{"templates", warn, fmt.Sprintf("%v; machines boot", err)}
	}
	return check{"templates", ok, fmt.Sprintf("%d in %s, more come as they are wanted; machines kept ready: %d", len(all), o.Cache, o.Warm)}
}

// bindChecks looks at what --bind-allow needs.
func bindChecks(dirs []string) []check {
	c := qemu.ShareCheck()
	checks := []check{{c.Name, verdictOf(c.OK), c.Detail}}
	for _, dir := range dirs {
		row := check{"bind-allow", ok, dir}
		if info, err := os.Stat(dir); err != nil || !info.IsDir() {
			row = check{"bind-allow", warn, dir + " is no directory: nothing in it can be mounted until it is"}
		}
		checks = append(checks, row)
	}
	return checks
}

// bridgeCheck looks at what --network-backend bridge needs; look is exec.LookPath.
func bridgeCheck(look func(string) (string, error)) check {
	if os.Geteuid() != 0 {
		return check{"networks", fail, "the network backend bridge needs root; use --network-backend user"}
	}
	path, err := look("nft")
	if err != nil {
		return check{"networks", fail, "the network backend bridge needs nft; install Debian's package nftables, or use --network-backend user"}
	}
	return check{"networks", ok, "the kernel's, by " + path}
}

func storeChecks(ctx context.Context, stores []storePlace, patience time.Duration) (checks []check) {
	withDefault := false
	for _, place := range stores {
		if place.NFS != nil {
			checks = append(checks, exportCheck(ctx, place, patience))
			withDefault = withDefault || place.Name == portlayer.DefaultStore
			continue
		}
		if place.Datastore { // its target says how it is
			withDefault = withDefault || place.Name == portlayer.DefaultStore
			continue
		}
		found, err := lookAtStore(place)
		checks = append(checks, rowOf("store "+string(place.Name), found, err))
		withDefault = withDefault || place.Name == portlayer.DefaultStore
	}
	if !withDefault {
		checks = append(checks, check{"store default", warn, noDefaultStore})
	}
	return checks
}

// exportCheck asks a store's server. One that does not answer keeps no VCH from starting.
func exportCheck(ctx context.Context, place storePlace, patience time.Duration) check {
	ctx, cancel := context.WithTimeout(ctx, patience)
	defer cancel()
	total, free, err := nfs.Look(ctx, *place.NFS)
	if err != nil {
		return check{"store " + string(place.Name), warn, fmt.Sprintf("%s: %v; the store is degraded until that is mended", place, err)}
	}
	return check{"store " + string(place.Name), ok, fmt.Sprintf("%s, %s free of %s", place, size(free), size(total))}
}

// socketCheck also finds a VCH that is serving there already, which is no fault of the machine.
func socketCheck(a address) check {
	stale, err := lookAt(a)
	switch {
	case fault.Is(err, fault.InUse):
		return check{"socket", warn, "a program answers at " + a.At + " already; if that is vch serve, all is well"}
	case err != nil:
		return check{"socket", fail, err.Error()}
	case stale:
		return check{"socket", ok, a.At + " was left by a daemon that has died; vch serve will replace it"}
	}
	return check{"socket", ok, a.At}
}

// dockerCheck says how the docker CLI gets to the socket; look is exec.LookPath.
func dockerCheck(a address, look func(string) (string, error)) check {
	path, err := look("docker")
	if err != nil {
		return check{"docker CLI", warn, "there is none in PATH; make setup gets one"}
	}
	return check{"docker CLI", ok, fmt.Sprintf("%s; point it here: export DOCKER_HOST=%s", path, a)}
}

// printChecks prints the table.
func printChecks(w io.Writer, checks []check) error {
	t := tabwriter.NewWriter(w, 0, 0, 2, ' ', 0)
	fmt.Fprintln(t, "CHECK\tVERDICT\tDETAIL")
	for _, c := range checks {
		fmt.Fprintf(t, "%s\t%s\t%s\n", c.name, c.verdict, strings.ReplaceAll(c.detail, "\n", "; "))
	}
	if uid := os.Geteuid(); uid == 0 {
		fmt.Fprintln(t, "user\tok\troot; an ordinary user would do")
	} else {
		fmt.Fprintf(t, "user\tok\tuid %d; root is not needed\n", uid)
	}
	return t.Flush()
}
