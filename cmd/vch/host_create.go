package main

import (
	"context"
	"fmt"
	"io"
	"net"
	"os"
	"strings"

	"github.com/spf13/cobra"
	"github.com/spf13/pflag"

	"vch/internal/fault"
	"vch/internal/supervise"
	"vch/machine"
)

func createCommand(stdout io.Writer) *cobra.Command {
	c := life{out: stdout}
	var w words
	var name, supervisor string
	force := false
	cmd := &cobra.Command{
		Use:   "create --name NAME [local | --target URL --user USER --image-store ds://DATASTORE/PATH]",
		Short: "Make a VCH: its directory, configuration, certificates and daemon",
		Long: `vch create makes a virtual container host on this machine and starts its daemon, which is looked after by systemd where that runs. It takes the settings of vch serve,
but for --state: everything of a VCH is in a directory of its own.

Everything is checked first; nothing is made if something is wrong. A volume store that cannot be reached is a reason not to begin, or, with --force, degraded until it can be.
With --target its machines are on vSphere: it gets a resource pool and a folder of its own there, in --pool and --folder. What its user may do there is checked; vch role lists what is needed. The
password is in --password-file or in the environment, VCH_PASSWORD, or it is asked for; the VCH keeps it in a file of its own.

The plan is printed and then done step by step. If that is cut off, the same command goes on where it stopped.

With an address of TCP, certificates are made for it and for one client. The end of the output says how docker reaches the VCH.`,
		Example: `  vch create --name web --volume-store /srv/volumes:default
  vch create --name web --volume-store /srv/volumes:default --volume-store nfs://nas/vch:shared --listen tcp://0.0.0.0:2376 --tls-cname vch.example.org
  vch create --name web --volume-store /srv/volumes:default --dry-run --format json
  vch create --name web --target vcenter.example --user ops@example --thumbprint AB:CD:… --network containers --image-store ds://ssd/vch --volume-store ds://big/volumes:default`,
		Args: cobra.MaximumNArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			if err := c.checkFormat("text", "json"); err != nil {
				return err
			}
			if len(args) == 1 && args[0] != machine.Local {
				return usagef("%q is no target; it is local, or --target URL", args[0])
			}
			if len(args) == 1 && w.target != machine.Local {
				return usagef("it is either local or --target %s", w.target)
			}
			return c.create(cmd.Context(), cmd.Flags(), w.config, name, supervisor, force)
		},
	}
	f := cmd.Flags()
	f.SortFlags = false
	f.StringVar(&name, "name", "", "the `NAME` of the VCH")
	f.BoolVar(&force, "force", false, "make it all the same where volume stores cannot be reached: they are degraded")
	f.StringVar(&supervisor, "supervisor", "auto", "`WHO` looks after the daemon: systemd; process: nobody, it is a process in the background; or auto: systemd where that runs and this is root")
	c.flags(f)
	w.flagsOfVCH(f)
	return cmd
}

// flagsOfVCH are the flags of a VCH's settings: those of vch serve, but for what its directory decides.
func (w *words) flagsOfVCH(f *pflag.FlagSet) {
	w.flags(f)
	for _, name := range []string{"state", "absent-stores"} {
		_ = f.MarkHidden(name)
	}
}

// asking are the settings of a command line and its configuration file; the command line wins.
func (s site) asking(f *pflag.FlagSet, config string) (machine.Settings, error) {
	set := machine.Settings{}
	if config != "" {
		var err error
		if set, err = read(config); err != nil {
			return nil, err
		}
	}
	if f.Changed("state") || f.Changed("absent-stores") || set["state"] != nil {
		return nil, usagef("--state and --absent-stores are no settings of a VCH that vch create makes: everything of it is in %s; choose another place with --root", s.Home)
	}
	elsewhere := remote(set) || f.Changed("target") && f.Lookup("target").Value.String() != machine.Local
	for key, values := range set {
		for i, v := range values {
			values[i] = placed(key, v, s.at, elsewhere)
		}
	}
	for key, values := range said(f, s.at) {
		set[key] = values
	}
	f.Visit(func(flag *pflag.Flag) { // its default was said
		if flag.Value.String() == flag.DefValue {
			delete(set, flag.Name)
		}
	})
	delete(set, "absent-stores") // every VCH has it
	return set, nil
}

func (c *life) create(ctx context.Context, f *pflag.FlagSet, config, name, supervisor string, force bool) error {
	s, err := c.site(name)
	if err != nil {
		return err
	}
	if supervisor, err = supervisorName(supervisor, s.at, supervise.SystemdRuns()); err != nil {
		return err
	}
	asked, err := s.asking(f, config)
	if err != nil {
		return err
	}
	root := ""
	if c.root != "" {
		root = absolute(c.root, s.at)
	}
	again := commandLine(name, root, supervisor, asked)
	set := complete(asked, s.place)
	found, err := checked(set, s.at)
	if err != nil {
		return err
	}
	var v *survey
	if found.VSphere != nil {
		if s.password, err = s.findPassword(found.VSphere, first(asked["password-file"]), os.Stdin, os.Stderr); err != nil {
			return err
		}
		if was, ok := s.cutOff(machine.Create, again); ok {
			set = was.Settings
		} else if !s.there() {
			if v, asked, err = s.seek(ctx, asked, name); err != nil {
				return err
			}
			defer v.close()
			s.registers, set = v.registers, complete(asked, s.place)
		}
		if found, err = checked(set, s.at); err != nil {
			return err
		}
	}
	d := s.desired(set, found)
	d.Supervisor = supervisor
	if d.Program, err = s.versionOf(); err != nil {
		return err
	}
	var checks []machine.Check
	if j, err := s.Home.Journal(); err == nil {
		if j.Command != machine.Create {
			return j.Refusal()
		}
	} else if s.there() {
		return fault.New(fault.Conflict, "there is a VCH %s already, in %s; change it with vch configure %[1]s, or give the new one another name", name, s.Home)
	} else {
		others, err := c.others(name, s.at)
		if err != nil {
			return err
		}
		if checks, err = machine.Judge(checkCreate(ctx, found, others, v), force); err != nil {
			return err
		}
	}
	d.Stores = reached(found.Stores, checks)
	did, err := c.change(ctx, s, machine.Create, d, checks, again, func() (machine.Plan, error) {
		o, _, _, err := s.observe(ctx)
		if err != nil {
			return machine.Plan{}, err
		}
		o.Stores = storesThere(d.Stores)
		return machine.PlanFor(machine.Create, d, o, s.own(d, o))
	}, nil)
	if err != nil || !did {
		return err
	}
	return c.summary(ctx, s, found)
}

// first is a setting's only value.
func first(values []string) string {
	if len(values) == 0 {
		return ""
	}
	return values[0]
}

// seek looks at the target of a VCH that is to be made, and gives what was asked for with the places there by their paths. close follows.
func (s site) seek(ctx context.Context, asked machine.Settings, name string) (*survey, machine.Settings, error) {
	found, err := checked(asked, s.at)
	if err != nil {
		return nil, nil, err
	}
	v := surveyed(ctx, found, s.password, name)
	asked = asked.Clone()
	for key, at := range map[string]string{"pool": v.pool, "folder": v.folder} {
		if at != "" {
			asked[key] = []string{at}
		}
	}
	return &v, asked, nil
}

// summary is what an administrator wants to know of a VCH that was just made.
func (c *life) summary(ctx context.Context, s site, found settings) error {
	if c.format == "json" {
		return nil
	}
	var b strings.Builder
	fmt.Fprintf(&b, "\nVCH %s is up.\n", s.Name)
	for _, a := range found.Listen {
		fmt.Fprintf(&b, "  listens at     %s\n", a)
	}
	if t := found.VSphere; t != nil {
		fmt.Fprintf(&b, "  machines       at %s, in %s, resource pool %s\n", t.URL, t.Folder, t.Pool)
	}
	info, err := endpoint{s.Socket}.info(ctx)
	if err != nil {
		return err
	}
	for _, row := range info.DriverStatus {
		if store, is := strings.CutPrefix(row[0], "Volume Store "); is {
			fmt.Fprintf(&b, "  volume store   %s: %s\n", store, row[1])
		}
	}
	if found.TLS != nil && found.TLS.Own != "" {
		fmt.Fprintf(&b, "  certificates   the server's in %s; a client's in %s: who has its key can do everything that the daemon can\n", found.TLS.Own, s.Client)
	}
	fmt.Fprintf(&b, "  configuration  %s\n  directory      %s\n", s.Config, s.Home)
	for _, warning := range info.Warnings {
		fmt.Fprintf(&b, "  %s\n", warning)
	}
	b.WriteString("\nReach it with\n\n")
	for _, line := range contextLines(s.place, found) {
		fmt.Fprintf(&b, "  %s\n", line)
	}
	fmt.Fprintf(&b, "  docker --context %s ps\n", s.Name)
	if r, err := s.Home.Record(); err == nil && r.Supervisor == (supervise.Process{}).Name() {
		fmt.Fprintf(&b, "\nNobody starts its daemon when this machine starts: vch start %s%s does.\n", s.Name, c.rootWord())
	}
	fmt.Fprintf(&b, "\nGo on with: vch ls, vch inspect %[1]s, vch configure %[1]s, vch upgrade %[1]s, vch logs %[1]s, vch delete %[1]s%[2]s\n", s.Name, c.rootWord())
	_, err = io.WriteString(c.out, b.String())
	return err
}

// contextLines are the command lines that make docker contexts of a VCH: one over TCP where there is one, otherwise of the socket.
func contextLines(l place, s settings) (lines []string) {
	var words []string
	for _, a := range s.Listen {
		if a.Network != "tcp" {
			continue
		}
		host := "tcp://" + clientAddress(a, s)
		switch {
		case s.TLS == nil:
			words = append(words, "host="+host)
		case s.TLS.Own != "":
			words = append(words, fmt.Sprintf("host=%s,ca=%s/%s,cert=%[2]s/%[4]s,key=%[2]s/%[5]s", host, l.Client, caFile, certFile, keyFile))
		default:
			words = append(words, fmt.Sprintf("host=%s,ca=CA.pem,cert=YOUR-CERT.pem,key=YOUR-KEY.pem", host))
		}
	}
	if words == nil {
		words = append(words, "host=unix://"+l.Socket)
	}
	for i, w := range words {
		name := l.Name
		if i > 0 {
			name += fmt.Sprintf("-%d", i+1)
		}
		lines = append(lines, fmt.Sprintf("docker context create %s --docker %q", name, w))
	}
	return lines
}

// clientAddress is a TCP address as a client says it: every address of this host is one of its names.
func clientAddress(a address, s settings) string {
	host, port, err := net.SplitHostPort(a.At)
	if ip := net.ParseIP(host); err != nil || host != "" && (ip == nil || !ip.IsUnspecified()) {
		return a.At
	}
	host = "localhost"
	if name, err := os.Hostname(); err == nil {
		host = name
	}
	if s.TLS != nil {
		for _, name := range s.TLS.Names {
			if !strings.HasPrefix(name, "*") {
				host = name
				break
			}
		}
	}
	return net.JoinHostPort(host, port)
}
