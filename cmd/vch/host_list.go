package main

import (
	"context"
	"encoding/json"
	"fmt"
	"io"
	"strings"
	"sync"
	"text/tabwriter"

	"github.com/spf13/cobra"

	"vch/internal/fault"
	"vch/internal/supervise"
	"vch/machine"
)

// The states of a VCH, beside those of one at which a command was cut off (machine.Journal.State).
const (
	stateRunning = "running"
	stateStopped = "stopped"
	stateBroken  = "broken"
)

// overview is what vch ls shows of a VCH.
type overview struct {
	Name       string   `json:"name"`
	Target     string   `json:"target"`
	State      string   `json:"state"`
	Why        string   `json:"why,omitempty"` // of a state that is not good
	Listen     []string `json:"listen"`
	Version    string   `json:"version"`
	Containers int      `json:"containers"`
	Running    int      `json:"running"`
	Directory  string   `json:"directory"`
}

// overview says how a VCH is, quickly.
func (s site) overview(ctx context.Context) overview {
	v := overview{Name: s.Name, Target: machine.Local, Directory: string(s.Home), Listen: []string{}, State: stateBroken}
	record, err := s.Home.Known()
	if err != nil {
		v.Why = err.Error()
		return v
	}
	if record.Target != "" {
		v.Target = record.Target
	}
	v.Version = record.Program
	set, err := read(s.Config)
	if err == nil {
		var found settings
		if found, err = checked(set, s.at); err == nil {
			for _, a := range found.Listen {
				v.Listen = append(v.Listen, a.String())
			}
		}
	}
	v.Containers = len(s.containers())
	if supervise.Find(s.daemon("").Args) != 0 {
		info, ierr := endpoint{s.Socket}.info(ctx)
		if ierr != nil {
			v.Why = ierr.Error()
		} else {
			v.State, v.Containers, v.Running = stateRunning, info.Containers, info.ContainersRunning
		}
	} else if err == nil {
		v.State = stateStopped
		if by, serr := supervisorOf(record.Supervisor); serr == nil && record.Supervisor != (supervise.Process{}).Name() && by.Given(ctx, s.daemon(record.Program)) {
			v.State, v.Why = stateBroken, "its daemon ended too often and is not started again: "+s.lastWords(ctx, by, s.daemon(record.Program))
		}
	}
	if j, jerr := s.Home.Journal(); jerr == nil {
		v.State, v.Why = j.State(), j.Refusal().Error()
	} else if !fault.Is(jerr, fault.NotFound) {
		v.State, v.Why = stateBroken, jerr.Error()
	} else if err != nil {
		v.State, v.Why = stateBroken, err.Error()
	}
	return v
}

func lsCommand(stdout io.Writer) *cobra.Command {
	c := life{out: stdout}
	quiet := false
	cmd := &cobra.Command{
		Use:     "ls",
		Aliases: []string{"list"},
		Short:   "List the VCHs of this machine",
		Long: `vch ls lists the VCHs that vch create has made on this machine. A state is running, stopped, broken, or, where a command was cut off, half-made, half-changed or half-deleted: the reason
follows the table.`,
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			if err := c.checkFormat("text", "json"); err != nil {
				return err
			}
			at := here()
			places, err := c.all(at)
			if err != nil {
				return err
			}
			rows := make([]overview, len(places))
			var all sync.WaitGroup
			for i, l := range places {
				all.Go(func() { rows[i] = site{place: l, at: at}.overview(cmd.Context()) })
			}
			all.Wait()
			return c.list(rows, quiet)
		},
	}
	cmd.Flags().BoolVarP(&quiet, "quiet", "q", false, "names only")
	cmd.Flags().StringVar(&c.format, "format", "text", "print as `FORM`: text, or json")
	c.placesFlag.flags(cmd.Flags())
	return cmd
}

func (c *life) list(rows []overview, quiet bool) error {
	if quiet {
		for _, r := range rows {
			if err := printLine(c.out, r.Name); err != nil {
				return err
			}
		}
		return nil
	}
	if c.format == "json" {
		return c.json(rows)
	}
	t := tabwriter.NewWriter(c.out, 0, 0, 3, ' ', 0)
	fmt.Fprintln(t, "NAME\tTARGET\tSTATE\tLISTEN\tVERSION\tCONTAINERS")
	for _, r := range rows {
		count := fmt.Sprintf("%d", r.Containers)
		if r.Running > 0 {
			count += fmt.Sprintf(" (%d running)", r.Running)
		}
		fmt.Fprintf(t, "%s\t%s\t%s\t%s\t%s\t%s\n", r.Name, r.Target, r.State, strings.Join(r.Listen, ", "), r.Version, count)
	}
	if err := t.Flush(); err != nil {
		return err
	}
	for _, r := range rows {
		if r.Why != "" {
			if _, err := fmt.Fprintf(c.out, "%s: %s\n", r.Name, strings.ReplaceAll(r.Why, "\n", "; ")); err != nil {
				return err
			}
		}
	}
	return nil
}

// json prints a value for programs.
func (c *life) json(v any) error {
	e := json.NewEncoder(c.out)
	e.SetIndent("", "  ")
	e.SetEscapeHTML(false)
	return e.Encode(v)
}
