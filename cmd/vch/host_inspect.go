package main

import (
	"context"
	"fmt"
	"io"
	"strings"
	"text/tabwriter"
	"time"

	"github.com/spf13/cobra"

	"vch/machine"
)

// inspection is everything that is known of a VCH.
type inspection struct {
	overview
	Record     machine.Record      `json:"record"`
	CutOff     *machine.Journal    `json:"cutOff,omitempty"`
	Settings   machine.Settings    `json:"settings"`
	Config     string              `json:"configuration"`
	Socket     string              `json:"socket"`
	Log        string              `json:"log"`
	Client     string              `json:"clientCertificates,omitempty"`
	Names      []string            `json:"certificateNames,omitempty"`
	Context    []string            `json:"dockerContext,omitempty"`
	Containers []machine.Container `json:"containerList"`
	Volumes    []machine.Volume    `json:"volumes"`
	Daemon     *daemonInfo         `json:"daemon,omitempty"`
	Checks     []machine.Check     `json:"checks,omitempty"` // of the target
}

func inspectCommand(stdout io.Writer) *cobra.Command {
	c := life{out: stdout}
	cmd := &cobra.Command{
		Use:   "inspect NAME",
		Short: "Show everything that is known of a VCH",
		Args:  cobra.ExactArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			if err := c.checkFormat("text", "json"); err != nil {
				return err
			}
			s, err := c.existing(args[0])
			if err != nil {
				return err
			}
			v := s.inspect(cmd.Context())
			if c.format == "json" {
				return c.json(v)
			}
			return c.inspected(v)
		},
	}
	cmd.PersistentFlags().StringVar(&c.format, "format", "text", "print as `FORM`: text, or json; inspect config also: toml")
	c.placesFlag.flags(cmd.PersistentFlags())
	cmd.AddCommand(&cobra.Command{
		Use:   "config NAME",
		Short: "Show a VCH's configuration, as the vch create that would make it",
		Long:  "vch inspect config prints the command line that would make a VCH with the same settings; with --format toml the file that its daemon reads, with --format json the settings alone.",
		Args:  cobra.ExactArgs(1),
		RunE: func(_ *cobra.Command, args []string) error {
			if err := c.checkFormat("text", "json", "toml"); err != nil {
				return err
			}
			s, err := c.existing(args[0])
			if err != nil {
				return err
			}
			set, err := s.settings()
			if err != nil {
				return err
			}
			switch c.format {
			case "json":
				return c.json(set)
			case "toml":
				_, err := io.WriteString(c.out, tomlOf(set, s.Name))
				return err
			}
			root := ""
			if c.root != "" {
				root = absolute(c.root, s.at)
			}
			return printLine(c.out, commandLine(s.Name, root, "", asked(set, s.place)))
		},
	})
	return cmd
}

// settings are the VCH's, from its file, or, while it is half-made, from what is to become of it.
func (s site) settings() (machine.Settings, error) {
	set, err := read(s.Config)
	if err != nil {
		if j, jerr := s.Home.Journal(); jerr == nil && j.Desired.Settings != nil {
			return j.Desired.Settings, nil
		}
	}
	return set, err
}

func (s site) inspect(ctx context.Context) inspection {
	v := inspection{overview: s.overview(ctx), Config: s.Config, Socket: s.Socket, Log: s.Log}
	if j, err := s.Home.Journal(); err == nil {
		v.CutOff = &j
	}
	o, record, found, err := s.observe(ctx)
	v.Record, v.Settings, v.Names, v.Containers, v.Volumes = record, o.Settings, o.Certificates, o.Containers, o.Volumes
	if o.Certificates != nil {
		v.Client = s.Client
	}
	if err != nil {
		v.State, v.Why = stateBroken, err.Error()
	} else if o.Settings != nil {
		v.Context = contextLines(s.place, found)
	}
	if found.VSphere != nil {
		v.Checks, v.Volumes = s.inspectTarget(ctx, found, v)
	}
	if record.Supervisor == systemd().Name() {
		v.Log = "journalctl --unit " + s.daemon("").Name
	}
	if v.State == stateRunning {
		if info, err := (endpoint{s.Socket}).info(ctx); err == nil {
			v.Daemon = &info
		}
	}
	return v
}

// inspectTarget looks at the target, and at the volumes on it that no daemon lists.
func (s site) inspectTarget(ctx context.Context, found settings, v inspection) ([]machine.Check, []machine.Volume) {
	ctx, cancel := context.WithTimeout(ctx, lookLimit)
	defer cancel()
	var checks []machine.Check
	for _, c := range examineTarget(ctx, found) {
		checks = append(checks, c.noun())
	}
	if v.State == stateRunning {
		return checks, v.Volumes
	}
	what, err := s.look(ctx, found)
	if err != nil {
		return checks, v.Volumes
	}
	return checks, append(v.Volumes, what.volumes...)
}

// inspected prints what is known, for people.
func (c *life) inspected(v inspection) error {
	t := tabwriter.NewWriter(c.out, 0, 0, 2, ' ', 0)
	row := func(name, text string) {
		if text != "" {
			fmt.Fprintf(t, "%s\t%s\n", name, strings.ReplaceAll(text, "\n", "; "))
		}
	}
	row("name", v.Name)
	row("target", v.Target)
	row("state", v.State)
	row("why", v.Why)
	row("version", v.Version)
	row("version before", v.Record.Previous)
	row("supervisor", v.Record.Supervisor)
	if !v.Record.Created.IsZero() {
		row("created", v.Record.Created.Local().Format(time.RFC3339))
	}
	row("directory", v.Directory)
	row("configuration", v.Config)
	row("log", v.Log)
	for _, a := range v.Listen {
		row("listens at", a)
	}
	row("client's certificates", v.Client)
	row("certificate's names", strings.Join(v.Names, ", "))
	for _, key := range v.Settings.Names() {
		if key != "state" && key != "listen" {
			row("setting "+key, strings.Join(v.Settings[key], ", "))
		}
	}
	if v.Daemon != nil {
		for _, r := range v.Daemon.DriverStatus {
			row(strings.ToLower(r[0][:1])+r[0][1:], r[1])
		}
		row("images", fmt.Sprint(v.Daemon.Images))
		for _, w := range v.Daemon.Warnings {
			row("warning", w)
		}
	}
	for _, k := range v.Checks {
		row("check "+k.Name, string(k.Verdict)+": "+k.Detail)
	}
	for _, k := range v.Containers {
		row("container", k.String())
	}
	for _, vol := range v.Volumes {
		row("volume", fmt.Sprintf("%s, store %s, %s", vol.Name, vol.Store, vol.Where))
	}
	for _, e := range v.Record.History {
		text := e.Time.Local().Format(time.RFC3339) + " " + string(e.Command)
		if e.To != "" {
			text += fmt.Sprintf(" %s -> %s", e.From, e.To)
		}
		if e.Error != "" {
			text += ", which failed: " + e.Error
		}
		row("history", text)
	}
	for _, line := range v.Context {
		row("docker context", line)
	}
	return t.Flush()
}

// startCommand and stopCommand start and stop a VCH's daemon.
func startCommand(stdout io.Writer) *cobra.Command {
	return runningCommand(stdout, machine.Start, true, "Start a VCH's daemon", "vch start starts the daemon of a VCH and waits until it answers. Containers that went on meanwhile are found again.")
}

func stopCommand(stdout io.Writer) *cobra.Command {
	return runningCommand(stdout, machine.Stop, false, "Stop a VCH's daemon; its containers go on", "vch stop stops the daemon of a VCH. Its containers go on, and the next vch start finds them; nobody answers docker meanwhile, and networks of the backend user stand still.")
}

func runningCommand(stdout io.Writer, command machine.Command, running bool, short, long string) *cobra.Command {
	c := life{out: stdout}
	cmd := &cobra.Command{
		Use:   string(command) + " NAME",
		Short: short,
		Long:  long,
		Args:  cobra.ExactArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			if err := c.checkFormat("text", "json"); err != nil {
				return err
			}
			s, err := c.whole(args[0], command)
			if err != nil {
				return err
			}
			o, record, found, err := s.observe(cmd.Context())
			if err != nil {
				return err
			}
			d := s.unchanged(o, record, found)
			d.Running = running
			_, err = c.change(cmd.Context(), s, command, d, nil, fmt.Sprintf("vch %s %s%s", command, s.Name, c.rootWord()), func() (machine.Plan, error) {
				return machine.PlanFor(command, d, o, s.own(d, o))
			}, nil)
			return err
		},
	}
	c.flags(cmd.Flags())
	return cmd
}

// unchanged is the VCH as it is, wanted so.
func (s site) unchanged(o machine.Observed, record machine.Record, found settings) machine.Desired {
	d := s.desired(o.Settings, found)
	d.Program, d.Supervisor, d.Running = record.Program, record.Supervisor, o.Running
	d.Directories = nil
	if !o.Running {
		d.Certificates = nil // serve makes those of names that are new
	} else if o.Certificates != nil {
		d.Certificates = o.Certificates
	}
	return d
}
