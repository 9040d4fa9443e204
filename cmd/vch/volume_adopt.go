package main

import (
	"cmp"
	"fmt"
	"io"
	"net/http"
	"path"
	"strings"

	"github.com/spf13/cobra"

	"vch/portlayer"
)

func adoptCommand(c *client, stdout io.Writer) *cobra.Command {
	var name string
	var labels, options []string
	var free bool
	cmd := &cobra.Command{
		Use:   "adopt STORE DIRECTORY",
		Short: "Make a directory of an NFS store a volume, where it is",
		Long: `DIRECTORY is one that is there already, by its path below the store's export. It becomes a volume without moving a byte: it stays where it is, with what is in it and who else uses
it. To remove the volume is to remove the directory; so that nobody does that by mistake, the volume is protected (vch volume unprotect) unless --no-protect is given.`,
		Example: "  vch volume adopt shared projects/site\n  docker run -v site:/srv:ro IMAGE",
		Args:    cobra.ExactArgs(2),
		RunE: func(cmd *cobra.Command, args []string) error {
			base := path.Base(path.Clean("/" + args[1]))
			if base == "/" {
				return usagef("%q is all of the export, or not in it: name a directory below it", args[1])
			}
			name = cmp.Or(name, base)
			req := struct {
				Store, Directory string
				Options, Labels  map[string]string
			}{args[0], args[1], keysAndValues(options), keysAndValues(labels)}
			if !free {
				req.Labels[portlayer.ProtectLabel] = "true"
			}
			var v named
			if err := c.call(cmd.Context(), http.MethodPost, volumePath(name, "adopt"), req, &v); err != nil {
				return err
			}
			if !free {
				fmt.Fprintf(cmd.ErrOrStderr(), "%s is protected: to remove it is to remove %s with all that is in it, after vch volume unprotect %s\n", v.Name, args[1], v.Name)
			}
			return printLine(stdout, v.Name)
		},
	}
	cmd.Flags().StringVar(&name, "name", "", "call the volume `NAME` (default: the last element of DIRECTORY)")
	cmd.Flags().StringArrayVarP(&options, "opt", "o", nil, "set an `OPTION` of the volume, as with docker volume create -o; may be given several times")
	cmd.Flags().StringArrayVar(&labels, "label", nil, "give the volume a `LABEL`; may be given several times")
	cmd.Flags().BoolVar(&free, "no-protect", false, "let docker volume rm and prune remove the directory")
	return cmd
}

// keysAndValues reads KEY=VALUE texts; one without a value has an empty one.
func keysAndValues(texts []string) map[string]string {
	m := map[string]string{}
	for _, text := range texts {
		key, value, _ := strings.Cut(text, "=")
		m[key] = value
	}
	return m
}
