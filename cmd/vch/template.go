package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"strings"
	"text/tabwriter"
	"time"

	"github.com/docker/go-units"
	"github.com/spf13/cobra"

	"vch/hypervisor/qemu"
	"vch/internal/fault"
	"vch/portlayer/exec"
)

// templateCommand is what vch can do with the templates of a cache, whether a daemon uses that or not.
func templateCommand(stdout io.Writer) *cobra.Command {
	cmd := &cobra.Command{
		Use:   "template",
		Short: "Make, list and delete the templates that machines are forked from",
		Long: `A template is a machine that was booted once and stopped before it got its container. vch serve makes them as they are wanted; vch template makes one ahead of
time, lists those that are there, and deletes them. It works beside a vch serve that runs, and without one. Say --state or --cache as vch serve is told.`,
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error { return cmd.Help() },
	}
	var w words
	w.flags(cmd.PersistentFlags())
	w.hide(cmd.PersistentFlags(), "state", "memory", "cpus", "accel", "cache", "qemu", "kernel", configFlag)
	listed := func(run func(ctx context.Context, cache string, all []qemu.Template, args []string) error) func(*cobra.Command, []string) error {
		return func(cmd *cobra.Command, args []string) error {
			s, err := w.resolve(cmd.Flags())
			if err != nil {
				return err
			}
			all, err := qemu.Templates(cmd.Context(), s.Cache)
			if err != nil {
				return err
			}
			return run(cmd.Context(), s.Cache, all, args)
		}
	}
	cmd.AddCommand(
		&cobra.Command{
			Use:     "make",
			Short:   "Make the template for containers of a size, if it is not there",
			Long:    "It makes the template for containers of --memory and --cpus, and prints its key. One that is there is left as it is.",
			Example: "  vch template make --memory 2G --cpus 2",
			Args:    cobra.NoArgs,
			RunE: func(cmd *cobra.Command, _ []string) error {
				s, err := w.resolve(cmd.Flags())
				if err != nil {
					return err
				}
				key, err := makeTemplate(cmd.Context(), s)
				if err != nil {
					return err
				}
				_, err = fmt.Fprintln(stdout, key)
				return err
			},
		},
		&cobra.Command{
			Use:   "ls",
			Short: "List the templates, the last used first",
			Args:  cobra.NoArgs,
			RunE: listed(func(_ context.Context, _ string, all []qemu.Template, _ []string) error {
				return printTemplates(stdout, all, time.Now())
			}),
		},
		&cobra.Command{
			Use:   "rm KEY...",
			Short: "Delete templates that no vch uses",
			Long:  "A key may be cut short as far as it is clear.",
			Args:  cobra.MinimumNArgs(1),
			RunE: listed(func(ctx context.Context, cache string, all []qemu.Template, keys []string) error {
				return removeTemplates(ctx, stdout, cache, all, keys)
			}),
		},
		&cobra.Command{
			Use:   "prune",
			Short: "Delete all templates that no vch uses",
			Args:  cobra.NoArgs,
			RunE: listed(func(ctx context.Context, cache string, all []qemu.Template, _ []string) error {
				var keys []string
				for _, t := range all {
					if !t.InUse {
						keys = append(keys, t.Key)
					}
				}
				return removeTemplates(ctx, stdout, cache, all, keys)
			}),
		},
	)
	return cmd
}

// makeTemplate makes the template for containers of the default size of s. It has a state directory of its own, so that it disturbs no daemon.
func makeTemplate(ctx context.Context, s settings) (key string, err error) {
	o := machineOptions(s, newLog(settings{LogLevel: s.LogLevel}, io.Discard))
	if o.StateDir, err = os.MkdirTemp("", "vch-template-"); err != nil {
		return "", err
	}
	defer func() { err = errors.Join(err, os.RemoveAll(o.StateDir)) }()
	o.Template, o.Warm = true, 0
	h, err := qemu.New(ctx, o)
	if err != nil {
		return "", err
	}
	defer closing(&err, h.Close)
	spec := exec.MachineFor(s.Memory, s.CPUs)
	return h.MakeTemplate(ctx, spec.Memory, spec.CPUs)
}

// removeTemplates deletes those of all whose keys begin with one of keys.
func removeTemplates(ctx context.Context, stdout io.Writer, cache string, all []qemu.Template, keys []string) error {
	var errs []error
	for _, key := range keys {
		var found []string
		for _, t := range all {
			if key != "" && strings.HasPrefix(t.Key, key) {
				found = append(found, t.Key)
			}
		}
		switch len(found) {
		case 0:
			errs = append(errs, fault.New(fault.NotFound, "no template %q in %s", key, cache))
			continue
		case 1:
		default:
			errs = append(errs, fault.New(fault.Invalid, "%q begins the keys of %d templates: give more of it", key, len(found)))
			continue
		}
		if err := qemu.DropTemplate(ctx, cache, found[0]); err != nil {
			errs = append(errs, err)
			continue
		}
		if _, err := fmt.Fprintln(stdout, found[0]); err != nil {
			return err
		}
	}
	return errors.Join(errs...)
}

// shortKey is how much of a key a table shows.
const shortKey = 12

func printTemplates(stdout io.Writer, all []qemu.Template, now time.Time) error {
	w := tabwriter.NewWriter(stdout, 0, 0, 3, ' ', 0)
	fmt.Fprintln(w, "TEMPLATE\tMEMORY\tCPUS\tACCEL\tQEMU\tKERNEL\tMADE\tUSED\tSIZE\tIN USE")
	for _, t := range all {
		used := "no"
		if t.InUse {
			used = "yes"
		}
		fmt.Fprintf(w, "%s\t%s\t%d\t%s\t%s\t%s\t%s ago\t%s ago\t%s\t%s\n", t.Key[:min(shortKey, len(t.Key))], units.BytesSize(float64(t.Memory)), t.CPUs, t.Accel, t.QEMU, t.Kernel,
			units.HumanDuration(now.Sub(t.Made)), units.HumanDuration(now.Sub(t.Used)), units.HumanSize(float64(t.Size)), used)
	}
	return w.Flush()
}
