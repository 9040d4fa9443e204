package main

import (
	"fmt"
	"io"
	"net/http"

	"github.com/spf13/cobra"
)

// volumeCommand is what vch can do with volumes beside docker volume. Each command prints the name of the volume that it changed.
func volumeCommand(stdout io.Writer) *cobra.Command {
	cmd := &cobra.Command{
		Use:   "volume",
		Short: "What docker volume has no words for: resize, snapshot, export, attach and more",
		Long: `vch volume does with volumes what the docker CLI has no words for. It speaks to a running vch serve, through the same socket.

A volume is NAME, or NAME@STORE where several stores know the name.`,
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error { return cmd.Help() },
	}
	var c client
	c.flags(cmd.PersistentFlags())
	cmd.AddCommand(
		protectCommand(&c, stdout, "protect", "Keep a volume from being removed", http.MethodPost,
			"A protected volume has the label vch.protect. docker volume rm, prune, docker rm -v and --rm leave it until it is unprotected.\nThe label can be given at creation, too: docker volume create --label vch.protect NAME."),
		protectCommand(&c, stdout, "unprotect", "Let a protected volume be removed again", http.MethodDelete, ""),
		attachCommand(&c, stdout), detachCommand(&c, stdout),
		adoptCommand(&c, stdout), resizeCommand(&c, stdout), renameCommand(&c, stdout), moveCommand(&c, stdout), snapshotCommand(&c, stdout),
		exportCommand(&c, stdout), importCommand(&c, stdout),
	)
	return cmd
}

func protectCommand(c *client, stdout io.Writer, verb, short, method, long string) *cobra.Command {
	return &cobra.Command{
		Use:   verb + " VOLUME...",
		Short: short,
		Long:  long,
		Args:  cobra.MinimumNArgs(1),
		RunE: func(cmd *cobra.Command, names []string) error {
			for _, name := range names {
				if err := c.call(cmd.Context(), method, volumePath(name, "protect"), nil, nil); err != nil {
					return err
				}
				if _, err := fmt.Fprintln(stdout, name); err != nil {
					return err
				}
			}
			return nil
		},
	}
}
