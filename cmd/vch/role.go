package main

import (
	"encoding/json"
	"fmt"
	"io"
	"text/tabwriter"

	"github.com/spf13/cobra"

	"vch/hypervisor/vsphere"
)

func roleCommand(stdout io.Writer) *cobra.Command {
	format, user := "text", "USER"
	cmd := &cobra.Command{
		Use:   "role",
		Short: "Show what a VCH's user needs to be allowed on vSphere",
		Long: `vch role lists the least that the user of a VCH (vch create --target URL --user USER) needs on vSphere, each privilege with the object that it is needed on and what it is for. Every role has
System.Anonymous, System.Read and System.View beside them; the user needs these on the vCenter, too, to find things. vch create checks all of it.

With --format govc it prints the commands that make the roles and give them to the user; put your own paths into them.`,
		Example: "  vch role\n  vch role --format govc --user 'EXAMPLE\\ops'",
		Args:    cobra.NoArgs,
		RunE: func(*cobra.Command, []string) error {
			switch format {
			case "text":
				return printRoles(stdout)
			case "govc":
				return printGovc(stdout, user)
			case "json":
				e := json.NewEncoder(stdout)
				e.SetIndent("", "  ")
				return e.Encode(vsphere.Roles())
			}
			return usagef("--format %q is none of text, govc, json", format)
		},
	}
	cmd.Flags().StringVar(&format, "format", format, "print as `FORM`: text, govc (command lines), or json")
	cmd.Flags().StringVar(&user, "user", user, "the `USER` in the command lines")
	return cmd
}

func printRoles(w io.Writer) error {
	t := tabwriter.NewWriter(w, 0, 0, 2, ' ', 0)
	fmt.Fprintln(t, "ON\tPRIVILEGE\tFOR")
	for _, r := range vsphere.Roles() {
		for _, p := range r.Privileges {
			purpose := p.For
			if p.Optional {
				purpose += "; a VCH works without it"
			}
			fmt.Fprintf(t, "%s\t%s\t%s\n", p.On, p.ID, purpose)
		}
	}
	return t.Flush()
}

// printGovc prints commands of govc (github.com/vmware/govmomi, govc/USAGE.md).
func printGovc(w io.Writer, user string) error {
	at := map[vsphere.Object]string{vsphere.OnFolder: "/DATACENTER/vm/FOLDER", vsphere.OnPool: "/DATACENTER/host/CLUSTER/Resources/POOL", vsphere.OnNetwork: "/DATACENTER/network/NETWORK",
		vsphere.OnDatastore: "/DATACENTER/datastore/DATASTORE", vsphere.OnServer: "/"}
	for _, r := range vsphere.Roles() {
		line := "govc role.create " + r.Name
		for _, p := range r.Privileges {
			line += " " + p.ID
		}
		propagate := r.On != vsphere.OnServer
		if _, err := fmt.Fprintf(w, "%s\ngovc permissions.set -principal %s -role %s -propagate=%t %s\n", line, shellQuote(user), r.Name, propagate, at[r.On]); err != nil {
			return err
		}
	}
	return nil
}
