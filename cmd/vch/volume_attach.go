package main

import (
	"fmt"
	"io"
	"net/http"
	"net/url"

	"github.com/spf13/cobra"
)

// containerVolumes is the path of a container's volumes.
func containerVolumes(container string) string {
	return "/containers/" + url.PathEscape(container) + "/volumes"
}

// mounted is a mount as the daemon shows it.
type mounted struct{ Name string }

func attachCommand(c *client, stdout io.Writer) *cobra.Command {
	return &cobra.Command{
		Use:   "attach CONTAINER VOLUME:/path[:MODES]",
		Short: "Mount a volume in a container, while it runs",
		Long: `A container that runs has the volume at /path when the command ends: its machine gets the disk, and its tether mounts it. One that does not run has it from
its next start on. It stays until it is detached. VOLUME:/path[:MODES] is what docker run -v takes, and a volume that is not there is made, too.`,
		Args: cobra.ExactArgs(2),
		RunE: func(cmd *cobra.Command, args []string) error {
			var m mounted
			if err := c.call(cmd.Context(), http.MethodPost, containerVolumes(args[0]), map[string]string{"Mount": args[1]}, &m); err != nil {
				return err
			}
			_, err := fmt.Fprintln(stdout, m.Name)
			return err
		},
	}
}

func detachCommand(c *client, stdout io.Writer) *cobra.Command {
	return &cobra.Command{
		Use:   "detach CONTAINER /path",
		Short: "Take a volume away from a container, while it runs",
		Long: `The volume at /path is unmounted, written out and free for others when the command ends. It is refused while a process of the container uses it. The volume
itself stays, also one without a name.`,
		Args: cobra.ExactArgs(2),
		RunE: func(cmd *cobra.Command, args []string) error {
			var m mounted
			if err := c.call(cmd.Context(), http.MethodDelete, containerVolumes(args[0])+"?target="+url.QueryEscape(args[1]), nil, &m); err != nil {
				return err
			}
			_, err := fmt.Fprintln(stdout, m.Name)
			return err
		},
	}
}
