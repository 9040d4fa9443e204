package main

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"github.com/spf13/cobra"

	"vch/internal/fault"
	"vch/internal/supervise"
	"vch/machine"
)

func deleteCommand(stdout io.Writer) *cobra.Command {
	c := life{out: stdout}
	var volumes []string
	force, yes := false, false
	cmd := &cobra.Command{
		Use:   "delete NAME [--volumes VOLUME...]",
		Short: "Remove a VCH; its volumes stay",
		Long: `vch delete stops a VCH's daemon and removes its state, images, certificates and configuration. Volumes stay where they are, and it says where that is; those that --volumes names are deleted,
after a question.

A VCH with containers is not removed; with --force they are removed with it. What a command left that was cut off can be removed, too.`,
		Example: "  vch delete web\n  vch delete web --force --volumes scratch logs@big",
		Args:    cobra.MinimumNArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			if err := c.checkFormat("text", "json"); err != nil {
				return err
			}
			if len(args) > 1 && volumes == nil {
				return usagef("one VCH at a time is removed; %s is one word too many", args[1])
			}
			volumes = append(volumes, args[1:]...)
			ask := func(p machine.Plan) error { return nil }
			if len(volumes) > 0 && !yes {
				ask = func(machine.Plan) error {
					return confirm(cmd.InOrStdin(), cmd.ErrOrStderr(), args[0], volumes)
				}
			}
			again := fmt.Sprintf("vch delete %s%s", args[0], c.rootWord())
			if len(volumes) > 0 {
				again += " --volumes " + strings.Join(volumes, ",")
			}
			if force {
				again += " --force"
			}
			return c.remove(cmd.Context(), args[0], volumes, force, again, ask)
		},
	}
	cmd.Flags().StringSliceVar(&volumes, "volumes", nil, "delete these `VOLUMES`, too, and all that is in them: names, or NAME@STORE")
	cmd.Flags().BoolVar(&force, "force", false, "remove containers, too; and remove a VCH whose record is damaged")
	cmd.Flags().BoolVar(&yes, "yes", false, "do not ask before volumes are deleted")
	c.flags(cmd.Flags())
	return cmd
}

// confirm asks for the VCH's name.
func confirm(in io.Reader, out io.Writer, name string, volumes []string) error {
	fmt.Fprintf(out, "The volumes %s will be deleted with all that is in them. Type the VCH's name to go on: ", strings.Join(volumes, ", "))
	line, err := bufio.NewReader(in).ReadString('\n')
	if err != nil && !errors.Is(err, io.EOF) {
		return err
	}
	if strings.TrimSpace(line) != name {
		return fault.New(fault.Conflict, "nothing was changed: the answer was not %s; say --yes to be asked nothing", name)
	}
	return nil
}

func (c *life) remove(ctx context.Context, name string, volumes []string, force bool, again string, ask func(machine.Plan) error) error {
	s, err := c.existing(name)
	if err != nil {
		return err
	}
	o, record, found, err := s.observe(ctx)
	if err != nil {
		if !force {
			return fmt.Errorf("VCH %s is broken: %w; mend that, or remove it all the same: vch delete %s --force%s", name, err, name, c.rootWord())
		}
		o, found = s.salvage(o, record)
	}
	if o.Settings == nil { // half-made, or half-deleted
		if set, err := s.settings(); err == nil {
			found, _ = checked(set, s.at) // as far as it makes sense
		}
	}
	if found.VSphere != nil {
		if s, o, err = s.leave(ctx, o, found, force); err != nil {
			return err
		}
	}
	if s.forsakes && len(volumes) > 0 {
		return fault.New(fault.Unavailable, "nothing was changed: volumes cannot be deleted while the target is not reached")
	}
	remote := slices.IndexFunc(found.Stores, func(p storePlace) bool { return p.NFS != nil })
	if len(volumes) > 0 && !o.Running && remote >= 0 {
		return fault.New(fault.Conflict, "nothing was changed: while VCH %s is stopped nobody can say which volumes store %s has; start it first: vch start %[1]s%[3]s", name, found.Stores[remote].Name, c.rootWord())
	}
	// What is the VCH's own goes in any case, whether it was noted or not.
	o.Directories = withAll([]string{string(s.Home), s.State}, o.Directories)
	d := machine.Desired{Name: name, Gone: true, Volumes: volumes}
	if force {
		for _, k := range o.Containers {
			d.Containers = append(d.Containers, k.ID)
		}
	}
	did, err := c.change(ctx, s, machine.Delete, d, nil, again, func() (machine.Plan, error) {
		p, err := machine.PlanFor(machine.Delete, d, o, s.own(d, o))
		return p, kindly(err)
	}, ask)
	if err != nil || !did || c.format == "json" {
		return err
	}
	var b strings.Builder
	fmt.Fprintf(&b, "VCH %s is gone; docker forgets it with: docker context rm %s\n", name, name)
	b.WriteString(s.stays(found, record.Target))
	for _, store := range found.Stores {
		if store.NFS != nil && !o.Running {
			fmt.Fprintf(&b, "The volumes of store %s stay on %s.\n", store.Name, store)
		} else {
			fmt.Fprintf(&b, "Store %s stays; another VCH sees its volumes with --volume-store %s\n", store.Name, shellQuote(store.words()+":"+string(store.Name)))
		}
	}
	_, err = io.WriteString(c.out, b.String())
	return err
}

func withAll(first, rest []string) []string {
	for _, dir := range rest {
		if dir != first[0] && dir != first[1] {
			first = append(first, dir)
		}
	}
	return first
}

// salvage is what can be seen of a VCH whose record or configuration is damaged.
func (s site) salvage(o machine.Observed, record machine.Record) (_ machine.Observed, found settings) {
	var err error
	if o.Settings, err = read(s.Config); err == nil {
		found, _ = checked(o.Settings, s.at) // as far as it makes sense
	} else {
		o.Settings = machine.Settings{}
	}
	o.Volumes, o.Programs = volumesOf(found.Stores), nil
	programs, _ := filepath.Glob(filepath.Join(string(s.Home), "bin", "vch-*")) // the pattern is a good one
	for _, path := range programs {
		o.Programs = append(o.Programs, strings.TrimPrefix(filepath.Base(path), "vch-"))
	}
	if record.Supervisor == "" {
		if _, err := os.Stat(filepath.Join(systemd().Dir, s.daemon("").Name+".service")); err == nil {
			o.Supervisor = systemd().Name()
		}
	}
	o.Running = supervise.Find(s.daemon("").Args) != 0
	o.Containers = s.containers()
	return o, found
}
