package main

import (
	"archive/tar"
	"bytes"
	"compress/gzip"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"time"

	"github.com/spf13/cobra"

	"vch/internal/atomicfile"
)

func debugCommand(stdout io.Writer) *cobra.Command {
	c := life{out: stdout}
	output := ""
	cmd := &cobra.Command{
		Use:   "debug NAME",
		Short: "Collect what a helper wants to know of a VCH, without secrets",
		Long: `vch debug writes a tar.gz with versions, the configuration, the end of the daemon's log, doctor's table, and the state of containers, volumes and stores. No key, password, command, environment or label
is in it.`,
		Example: "  vch debug web -o web.tar.gz",
		Args:    cobra.ExactArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			s, err := c.existing(args[0])
			if err != nil {
				return err
			}
			if output != "" {
				return atomicfile.WriteFrom(output, 0o600, func(w io.Writer) error { return s.debug(cmd.Context(), w) })
			}
			if f, ok := stdout.(*os.File); ok && isTerminal(f) {
				return usagef("a tar.gz does not belong on a terminal: write > FILE, or -o FILE")
			}
			return s.debug(cmd.Context(), stdout)
		},
	}
	cmd.Flags().StringVarP(&output, "output", "o", "", "write to this `FILE` instead of standard output")
	c.placesFlag.flags(cmd.Flags())
	return cmd
}

// debug writes what there is to know. What cannot be found out says why in its place.
func (s site) debug(ctx context.Context, w io.Writer) error {
	z := gzip.NewWriter(w)
	t := tar.NewWriter(z)
	now := time.Now()
	add := func(name string, text []byte, err error) error {
		if err != nil {
			name, text = name+".error", []byte(err.Error()+"\n")
		}
		if err := t.WriteHeader(&tar.Header{Name: filepath.Join("vch-debug-"+s.Name, name), Mode: 0o600, Size: int64(len(text)), ModTime: now, Typeflag: tar.TypeReg}); err != nil {
			return err
		}
		_, err = t.Write(text)
		return err
	}
	for _, part := range s.parts(ctx) {
		text, err := part.text()
		if err := add(part.name, text, err); err != nil {
			return err
		}
	}
	if err := t.Close(); err != nil {
		return err
	}
	return z.Close()
}

type part struct {
	name string
	text func() ([]byte, error)
}

// parts are what goes into the archive. All of it is said by vch itself: nothing is copied that a user wrote into a container.
func (s site) parts(ctx context.Context) []part {
	e := endpoint{s.Socket}
	pretty := func(v any, err error) ([]byte, error) {
		if err != nil {
			return nil, err
		}
		return json.MarshalIndent(v, "", "  ")
	}
	set, serr := s.settings()
	found, ferr := settings{}, serr
	if serr == nil {
		found, ferr = checked(set, s.at)
	}
	return []part{
		{"version.txt", func() ([]byte, error) {
			return fmt.Appendf(nil, "vch %s (commit %s, built %s)\n%s\n", version, commit, built, now()), nil
		}},
		{"overview.json", func() ([]byte, error) { return pretty(s.overview(ctx), nil) }},
		{"record.json", func() ([]byte, error) { r, err := s.Home.Known(); return pretty(r, err) }},
		{"cut-off.json", func() ([]byte, error) { j, err := s.Home.Journal(); return pretty(j, err) }},
		{"vch.toml", func() ([]byte, error) { return []byte(tomlOf(set, s.Name)), serr }},
		{"doctor.txt", func() ([]byte, error) {
			if ferr != nil {
				return nil, ferr
			}
			var b bytes.Buffer
			err := printChecks(&b, examine(ctx, found))
			return b.Bytes(), err
		}},
		{"vsphere.json", func() ([]byte, error) {
			if ferr != nil || found.VSphere == nil {
				return []byte("null"), ferr
			}
			ctx, cancel := context.WithTimeout(ctx, lookLimit)
			defer cancel()
			what, err := s.look(ctx, found)
			return pretty(map[string]any{"machines": what.machines, "volumes": what.volumes, "others": what.foreign}, err)
		}},
		{"info.json", func() ([]byte, error) { v, err := e.info(ctx); return pretty(v, err) }},
		{"containers.json", func() ([]byte, error) { v, err := e.containers(ctx); return pretty(v, err) }},
		{"volumes.json", func() ([]byte, error) { v, _, err := e.volumes(ctx, found.Stores); return pretty(v, err) }},
		{"log.txt", func() ([]byte, error) {
			const lines = 5000
			r, err := s.Home.Known()
			if err != nil {
				return nil, err
			}
			by, err := supervisorOf(r.Supervisor)
			if err != nil {
				return nil, err
			}
			text, err := by.Tail(ctx, s.daemon(r.Program), lines)
			return []byte(text), err
		}},
		{"host.txt", func() ([]byte, error) {
			var b bytes.Buffer
			for _, path := range []string{"/proc/version", "/proc/uptime", "/proc/loadavg", "/proc/meminfo"} {
				text, err := os.ReadFile(path)
				if err != nil {
					return nil, err
				}
				fmt.Fprintf(&b, "== %s\n%s", path, text)
			}
			return b.Bytes(), nil
		}},
	}
}

func now() string { return time.Now().UTC().Format(time.RFC3339) }
