package personality

import (
	"fmt"
	"net/http"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/moby/moby/api/types/container"

	"vch/guest"
	"vch/internal/fault"
)

// containerTop is GET /containers/{id}/top. No ps runs anywhere: the tether lists the processes, and the columns are made here as procps makes them.
func (s *Server) containerTop(w http.ResponseWriter, r *http.Request) error {
	columns, err := psColumns(r.URL.Query().Get("ps_args"))
	if err != nil {
		return err
	}
	ps, err := s.Containers.Top(r.Context(), r.PathValue("id"))
	if err != nil {
		return err
	}
	now := time.Now()
	top := container.TopResponse{Processes: [][]string{}}
	for _, c := range columns {
		top.Titles = append(top.Titles, c.title)
	}
	for _, p := range ps {
		row := make([]string, len(columns))
		for i, c := range columns {
			row[i] = c.value(p, now)
		}
		top.Processes = append(top.Processes, row)
	}
	return writeJSON(w, http.StatusOK, top)
}

// psColumn is one column of ps(1).
type psColumn struct {
	names []string // as -o takes them
	title string
	value func(p guest.ProcessInfo, now time.Time) string
}

// psKnown are the columns that can be told of a process in a container VM.
func psKnown() []psColumn {
	return []psColumn{
		{[]string{"UID"}, "UID", func(p guest.ProcessInfo, _ time.Time) string { return p.UID }},
		{[]string{"user", "euser", "uname"}, "USER", func(p guest.ProcessInfo, _ time.Time) string { return p.UID }},
		{[]string{"pid", "tgid"}, "PID", func(p guest.ProcessInfo, _ time.Time) string { return strconv.Itoa(p.PID) }},
		{[]string{"ppid"}, "PPID", func(p guest.ProcessInfo, _ time.Time) string { return strconv.Itoa(p.PPID) }},
		{[]string{"c"}, "C", func(p guest.ProcessInfo, now time.Time) string { return strconv.Itoa(int(cpuShare(p, now))) }},
		{[]string{"pcpu", "%cpu"}, "%CPU", func(p guest.ProcessInfo, now time.Time) string { return fmt.Sprintf("%.1f", cpuShare(p, now)) }},
		{[]string{"stime", "start", "start_time"}, "STIME", func(p guest.ProcessInfo, now time.Time) string { return startTime(p.Start, now) }},
		{[]string{"lstart"}, "STARTED", func(p guest.ProcessInfo, _ time.Time) string { return p.Start.Format(time.ANSIC) }},
		{[]string{"etime"}, "ELAPSED", func(p guest.ProcessInfo, now time.Time) string { return elapsed(now.Sub(p.Start)) }},
		{[]string{"tty", "tt", "tname"}, "TTY", func(p guest.ProcessInfo, _ time.Time) string { return p.TTY }},
		{[]string{"time", "cputime"}, "TIME", func(p guest.ProcessInfo, _ time.Time) string { return clock(p.CPU) }},
		{[]string{"cmd", "args", "command"}, "CMD", func(p guest.ProcessInfo, _ time.Time) string { return p.Args }},
		{[]string{"comm", "ucmd", "ucomm"}, "COMMAND", func(p guest.ProcessInfo, _ time.Time) string { return command(p.Args) }},
	}
}

// psColumns are the columns that ps's arguments choose: none or -ef (and -e, -A, -f alike), aux, or lists of -o.
func psColumns(args string) ([]psColumn, error) {
	known := psKnown()
	pick := func(names ...string) []psColumn {
		var columns []psColumn
		for _, n := range names {
			i := slices.IndexFunc(known, func(c psColumn) bool { return slices.Contains(c.names, n) })
			columns = append(columns, known[i])
		}
		return columns
	}
	full := pick("UID", "pid", "ppid", "c", "stime", "tty", "time", "cmd")
	var chosen []psColumn
	words := strings.Fields(args)
	for i := 0; i < len(words); i++ {
		word := words[i]
		switch {
		case slices.Contains([]string{"-ef", "-e", "-A", "-f", "-eF", "ef"}, word):
			continue
		case slices.Contains([]string{"aux", "-aux", "au", "ax", "u"}, word):
			chosen = pick("user", "pid", "pcpu", "tty", "stime", "time", "cmd") // of its columns those that are known of a container VM
			continue
		case word == "-o" || word == "-eo" || word == "o" || word == "-Ao":
			if i++; i == len(words) {
				return nil, fault.New(fault.Invalid, "ps_args %q: -o takes a list of columns", args)
			}
			word = words[i]
		default:
			list, ok := strings.CutPrefix(word, "-o")
			if !ok {
				return nil, fault.New(fault.Unsupported, "ps_args %q is not supported by vch: only -ef and -o are", word)
			}
			word = list
		}
		for _, name := range strings.Split(word, ",") {
			j := slices.IndexFunc(known, func(c psColumn) bool { return slices.Contains(c.names, name) })
			if j < 0 {
				return nil, fault.New(fault.Unsupported, "the ps column %q is not supported by vch: use user, pid, ppid, c, pcpu, stime, lstart, etime, tty, time, cmd or comm", name)
			}
			chosen = append(chosen, known[j])
		}
	}
	if chosen == nil {
		return full, nil
	}
	if !slices.ContainsFunc(chosen, func(c psColumn) bool { return c.title == "PID" }) {
		return nil, fault.New(fault.Invalid, "Couldn't find PID field in ps output") // Moby's own rule and text
	}
	return chosen, nil
}

// cpuShare is the share of a processor that a process has used since its start, in percent.
func cpuShare(p guest.ProcessInfo, now time.Time) float64 {
	life := now.Sub(p.Start)
	if life <= 0 {
		return 0
	}
	return 100 * float64(p.CPU) / float64(life)
}

// startTime is ps's STIME: the time of day, or of an older process the day or the year.
func startTime(start, now time.Time) string {
	switch {
	case now.Sub(start) < 24*time.Hour:
		return start.Format("15:04")
	case start.Year() == now.Year():
		return start.Format("Jan02")
	}
	return start.Format("2006")
}

// clock is ps's TIME: [DD-]HH:MM:SS.
func clock(d time.Duration) string {
	s := int(d / time.Second)
	text := fmt.Sprintf("%02d:%02d:%02d", s/3600%24, s/60%60, s%60)
	if days := s / 86400; days > 0 {
		text = fmt.Sprintf("%d-%s", days, text)
	}
	return text
}

// elapsed is ps's ELAPSED: [[DD-]HH:]MM:SS.
func elapsed(d time.Duration) string {
	if d < time.Hour {
		s := int(max(d, 0) / time.Second)
		return fmt.Sprintf("%02d:%02d", s/60, s%60)
	}
	return clock(d)
}

// command is the program's name without path and arguments.
func command(args string) string {
	first, _, _ := strings.Cut(args, " ")
	return first[strings.LastIndexByte(first, '/')+1:]
}
