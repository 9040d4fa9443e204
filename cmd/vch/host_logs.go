package main

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"os/exec"
	"regexp"
	"strconv"
	"strings"
	"time"

	"github.com/spf13/cobra"
)

func logsCommand(stdout io.Writer) *cobra.Command {
	c := life{out: stdout}
	follow, since, lines := false, "", -1
	cmd := &cobra.Command{
		Use:     "logs NAME",
		Short:   "Show the log of a VCH's daemon",
		Example: "  vch logs web -f --since 10m",
		Args:    cobra.ExactArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			s, err := c.existing(args[0])
			if err != nil {
				return err
			}
			from, err := sinceTime(since, time.Now())
			if err != nil {
				return err
			}
			record, err := s.Home.Known()
			if err == nil && record.Supervisor == systemd().Name() {
				return journal(cmd.Context(), stdout, cmd.ErrOrStderr(), s.daemon("").Name, follow, from, lines)
			}
			return showLog(cmd.Context(), stdout, s.Log, follow, from, lines)
		},
	}
	cmd.Flags().BoolVarP(&follow, "follow", "f", false, "go on with what comes")
	cmd.Flags().StringVar(&since, "since", "", "only what is not older than `WHEN`: a duration as 10m, or a time as 2006-01-02T15:04:05Z")
	cmd.Flags().IntVarP(&lines, "tail", "n", -1, "only the last `N` lines; -1: all")
	c.placesFlag.flags(cmd.Flags())
	return cmd
}

// sinceTime reads --since; the zero time is from the beginning.
func sinceTime(text string, now time.Time) (time.Time, error) {
	if text == "" {
		return time.Time{}, nil
	}
	if d, err := time.ParseDuration(text); err == nil {
		return now.Add(-d), nil
	}
	for _, form := range []string{time.RFC3339, "2006-01-02T15:04:05", "2006-01-02"} {
		if t, err := time.ParseInLocation(form, text, time.Local); err == nil {
			return t, nil
		}
	}
	return time.Time{}, usagef("--since %q is neither a duration, as 10m, nor a time, as 2006-01-02T15:04:05Z", text)
}

// journal has journalctl show it.
func journal(ctx context.Context, stdout, stderr io.Writer, unit string, follow bool, from time.Time, lines int) error {
	args := []string{"--unit", unit + ".service", "--output", "cat", "--no-pager"}
	if follow {
		args = append(args, "--follow")
	}
	if !from.IsZero() {
		args = append(args, "--since", from.Local().Format("2006-01-02 15:04:05"))
	}
	if lines >= 0 {
		args = append(args, "--lines", strconv.Itoa(lines))
	} else if follow {
		args = append(args, "--no-tail")
	}
	cmd := exec.CommandContext(ctx, systemd().Journal, args...)
	cmd.Stdout, cmd.Stderr = stdout, stderr
	err := cmd.Run()
	if ctx.Err() != nil {
		return nil
	}
	return err
}

// logTime is the time in a line of the daemon's log, as text or as JSON (log/slog).
var logTime = regexp.MustCompile(`^(?:time=|\{"time":")([0-9T:.+Z-]+)`)

// showLog writes the file's lines from a time on; one without a time belongs to the one before. With follow it waits for more until ctx ends.
func showLog(ctx context.Context, w io.Writer, path string, follow bool, from time.Time, last int) error {
	f, err := os.Open(path)
	if errors.Is(err, fs.ErrNotExist) {
		return fmt.Errorf("there is no log %s yet: the daemon has not been started", path)
	}
	if err != nil {
		return err
	}
	defer f.Close()
	var kept []string
	shown := from.IsZero()
	r := bufio.NewReader(f)
	line := ""
	for {
		part, err := r.ReadString('\n')
		line += part
		if err == nil {
			shown = shown || !older(line, from)
			if shown {
				kept = append(kept, line)
				if last >= 0 && len(kept) > last {
					kept = kept[1:]
				}
			}
			line = ""
			if last >= 0 {
				continue
			}
		}
		if err != nil && !errors.Is(err, io.EOF) {
			return err
		}
		if err != nil || last < 0 { // at the end, or there is no end to wait for
			if _, err := io.WriteString(w, strings.Join(kept, "")); err != nil {
				return err
			}
			kept = nil
		}
		if err == nil {
			continue
		}
		last = -1
		if !follow {
			_, err := io.WriteString(w, line)
			return err
		}
		select {
		case <-ctx.Done():
			return nil
		case <-time.After(100 * time.Millisecond):
		}
		now, serr := os.Stat(path)
		mine, merr := f.Stat()
		if serr == nil && merr == nil && !os.SameFile(now, mine) { // it was cut: a new file
			next, err := os.Open(path)
			if err != nil {
				return err
			}
			f.Close()
			f, line = next, ""
			if _, err := f.Seek(0, io.SeekEnd); err != nil {
				return err
			}
			r.Reset(f)
		}
	}
}

// older says whether a line of the log is from before a time; one that has none is not known to be anything, and is.
func older(line string, from time.Time) bool {
	m := logTime.FindStringSubmatch(line)
	if m == nil {
		return true
	}
	t, err := time.Parse(time.RFC3339Nano, m[1])
	return err != nil || t.Before(from)
}
