package main

import (
	"fmt"
	"io"
	"os"

	"github.com/spf13/cobra"

	"vch/internal/fault"
	"vch/machine"
)

func upgradeCommand(stdout io.Writer) *cobra.Command {
	c := life{out: stdout}
	rollback := false
	cmd := &cobra.Command{
		Use:   "upgrade NAME",
		Short: "Have a VCH run by this version of vch, or, with --rollback, by the one before",
		Long: `vch upgrade has the daemon of a VCH be the vch that is being run. It keeps a copy of it, stops the daemon and starts the new one; containers go on. If the new one does not answer within
--wait, or does not list the containers that there were, the old one is started again, and vch upgrade ends with exit code 1 and says why.

The program before is kept: --rollback goes back to it.`,
		Example: "  ./vch-new upgrade web\n  vch upgrade web --rollback",
		Args:    cobra.ExactArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			if err := c.checkFormat("text", "json"); err != nil {
				return err
			}
			ctx := cmd.Context()
			s, err := c.whole(args[0], machine.Upgrade)
			if err != nil {
				return err
			}
			o, record, found, err := s.observe(ctx)
			if err != nil {
				return err
			}
			d := s.unchanged(o, record, found)
			if d.Program, err = s.versionOf(); err != nil {
				return err
			}
			again := commandOf(machine.Upgrade, s.Name, cmd.Flags())
			if rollback {
				if d.Program = record.Previous; d.Program == "" {
					return fault.New(fault.NotFound, "VCH %s was never upgraded: there is no version to go back to", s.Name)
				}
				if _, err := os.Stat(s.place.program(d.Program)); err != nil {
					return fault.New(fault.NotFound, "the copy of vch %s is gone: %w; run that version, and vch upgrade %s with it", d.Program, err, s.Name)
				}
			}
			if was, ok := s.cutOff(machine.Upgrade, again); ok && (rollback || was.Program == d.Program) {
				d = was
			}
			did, err := c.change(ctx, s, machine.Upgrade, d, nil, again, func() (machine.Plan, error) {
				return machine.PlanFor(machine.Upgrade, d, o, s.own(d, o))
			}, nil)
			if err == nil && did && c.format == "text" {
				_, err = fmt.Fprintf(stdout, "VCH %s is vch %s now; it was %s. Back: vch upgrade %s --rollback%s\n", s.Name, d.Program, record.Program, s.Name, c.rootWord())
			}
			return err
		},
	}
	cmd.Flags().BoolVar(&rollback, "rollback", false, "go back to the version before")
	c.flags(cmd.Flags())
	return cmd
}
