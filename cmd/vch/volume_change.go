package main

import (
	"fmt"
	"io"
	"net/http"
	"net/url"
	"text/tabwriter"
	"time"

	"github.com/docker/go-units"
	"github.com/spf13/cobra"
)

// named is what the daemon says of a volume that was changed.
type named struct{ Name string }

func resizeCommand(c *client, stdout io.Writer) *cobra.Command {
	return &cobra.Command{
		Use:   "resize VOLUME SIZE",
		Short: "Give a volume more room, also while a container runs with it",
		Long: `The volume's disk and the file system in it grow to SIZE (512M, 10G; binary units, a number alone is megabytes). A container that has it mounted writable sees the
room at once. It cannot shrink, nor grow while running containers have it mounted read-only.`,
		Args: cobra.ExactArgs(2),
		RunE: func(cmd *cobra.Command, args []string) error {
			var v named
			if err := c.call(cmd.Context(), http.MethodPost, volumePath(args[0], "resize"), map[string]string{"Capacity": args[1]}, &v); err != nil {
				return err
			}
			return printLine(stdout, v.Name)
		},
	}
}

func renameCommand(c *client, stdout io.Writer) *cobra.Command {
	return &cobra.Command{
		Use:   "rename VOLUME NAME",
		Short: "Give a volume another name",
		Long:  "The volume stays in its store, with all that it has. No container may refer to it, running or not.",
		Args:  cobra.ExactArgs(2),
		RunE: func(cmd *cobra.Command, args []string) error {
			var v named
			if err := c.call(cmd.Context(), http.MethodPost, volumePath(args[0], "rename"), map[string]string{"Name": args[1]}, &v); err != nil {
				return err
			}
			return printLine(stdout, v.Name)
		},
	}
}

func moveCommand(c *client, stdout io.Writer) *cobra.Command {
	return &cobra.Command{
		Use:   "move VOLUME STORE",
		Short: "Put a volume into another store",
		Long:  "The volume is copied, and removed where it was when the copy is whole. No container may refer to it, running or not, and it may have no snapshots.",
		Args:  cobra.ExactArgs(2),
		RunE: func(cmd *cobra.Command, args []string) error {
			var v named
			if err := c.long(cmd.Context(), volumePath(args[0], "move"), map[string]string{"Store": args[1]}, cmd.ErrOrStderr(), &v); err != nil {
				return err
			}
			return printLine(stdout, v.Name)
		},
	}
}

func printLine(w io.Writer, text string) error {
	_, err := fmt.Fprintln(w, text)
	return err
}

// snapshot is what the daemon says of one.
type snapshot struct {
	Name                string
	CreatedAt           time.Time
	Capacity, Allocated int64
}

func snapshotCommand(c *client, stdout io.Writer) *cobra.Command {
	cmd := &cobra.Command{
		Use:   "snapshot",
		Short: "Keep a volume as it is now: create, ls, rm",
		Long: `A snapshot is a copy of the volume at one moment; where the store's file system can (XFS, Btrfs), it shares what has not changed. A container that writes to the
volume waits while it is made. Back to it, or on from it: docker volume create --opt from=VOLUME@SNAPSHOT NAME.`,
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error { return cmd.Help() },
	}
	cmd.AddCommand(&cobra.Command{
		Use:   "create VOLUME [SNAPSHOT]",
		Short: "Make a snapshot; without a name it gets the time",
		Args:  cobra.RangeArgs(1, 2),
		RunE: func(cmd *cobra.Command, args []string) error {
			name := ""
			if len(args) == 2 {
				name = args[1]
			}
			var made snapshot
			if err := c.long(cmd.Context(), volumePath(args[0], "snapshots"), map[string]string{"Name": name}, cmd.ErrOrStderr(), &made); err != nil {
				return err
			}
			return printLine(stdout, made.Name)
		},
	}, &cobra.Command{
		Use:     "ls VOLUME",
		Aliases: []string{"list"},
		Short:   "List a volume's snapshots, oldest first",
		Args:    cobra.ExactArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			var list []snapshot
			if err := c.call(cmd.Context(), http.MethodGet, volumePath(args[0], "snapshots"), nil, &list); err != nil {
				return err
			}
			t := tabwriter.NewWriter(stdout, 0, 0, 3, ' ', 0)
			fmt.Fprintln(t, "SNAPSHOT\tCREATED\tCAPACITY\tALLOCATED")
			for _, s := range list {
				fmt.Fprintf(t, "%s\t%s\t%s\t%s\n", s.Name, s.CreatedAt.Format(time.RFC3339), units.BytesSize(float64(s.Capacity)), units.BytesSize(float64(s.Allocated)))
			}
			return t.Flush()
		},
	}, &cobra.Command{
		Use:     "rm VOLUME SNAPSHOT...",
		Aliases: []string{"remove"},
		Short:   "Remove snapshots; the volume stays as it is",
		Args:    cobra.MinimumNArgs(2),
		RunE: func(cmd *cobra.Command, args []string) error {
			for _, name := range args[1:] {
				if err := c.call(cmd.Context(), http.MethodDelete, volumePath(args[0], "snapshots/"+url.PathEscape(name)), nil, nil); err != nil {
					return err
				}
				if err := printLine(stdout, name); err != nil {
					return err
				}
			}
			return nil
		},
	})
	return cmd
}
