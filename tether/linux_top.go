package tether

import (
	"os"
	"strconv"
	"strings"
	"time"

	"vch/guest"
)

// row is a process as /proc shows it to the machine.
type row struct {
	pid, parent int
	info        guest.ProcessInfo
}

// clockTick is USER_HZ, the unit of times in proc(5) stat on every Linux architecture.
const clockTick = 100

// readRow reads one process; ok is false for one that is not in a PID namespace below the machine's, or has just ended.
func readRow(dir string, names map[string]string, boot time.Time) (r row, ok bool) {
	status, err := os.ReadFile(dir + "/status")
	if err != nil {
		return r, false
	}
	for _, line := range strings.Split(string(status), "\n") {
		key, value, _ := strings.Cut(line, ":")
		fields := strings.Fields(value)
		if len(fields) == 0 {
			continue
		}
		switch key {
		case "NSpid":
			if len(fields) < 2 {
				return r, false
			}
			r.pid, _ = strconv.Atoi(fields[0])
			r.info.PID, _ = strconv.Atoi(fields[len(fields)-1])
		case "PPid":
			r.parent, _ = strconv.Atoi(fields[0])
		case "Uid":
			r.info.UID = fields[1]
			if name, ok := names[fields[1]]; ok {
				r.info.UID = name
			}
		}
	}
	stat, err := os.ReadFile(dir + "/stat")
	if err != nil || r.pid == 0 {
		return r, false
	}
	// The name may hold anything; what follows its closing bracket does not (proc(5)).
	text := string(stat)
	comm := text[strings.IndexByte(text, '(')+1 : strings.LastIndexByte(text, ')')]
	f := strings.Fields(text[strings.LastIndexByte(text, ')')+1:])
	if len(f) < 20 {
		return r, false
	}
	num := func(i int) int64 { n, _ := strconv.ParseInt(f[i-3], 10, 64); return n } // i as proc(5) counts
	r.info.TTY = "?"
	if tty := num(7); tty != 0 {
		r.info.TTY = "pts/" + strconv.FormatInt(tty&0xff|(tty>>12)&0xfff00, 10)
	}
	r.info.CPU = time.Duration(num(14)+num(15)) * time.Second / clockTick
	r.info.Start = boot.Add(time.Duration(num(22)) * time.Second / clockTick)
	cmdline, _ := os.ReadFile(dir + "/cmdline")
	r.info.Args = strings.TrimRight(strings.ReplaceAll(string(cmdline), "\x00", " "), " ")
	if r.info.Args == "" {
		r.info.Args = "[" + comm + "]"
	}
	return r, true
}

// userNames maps uids to names by a passwd file.
func userNames(path string) map[string]string {
	names := map[string]string{}
	data, _ := os.ReadFile(path)
	for _, line := range strings.Split(string(data), "\n") {
		if f := strings.Split(line, ":"); len(f) > 2 {
			if _, taken := names[f[2]]; !taken {
				names[f[2]] = f[0]
			}
		}
	}
	return names
}

// bootTime is when the machine started, by its present clock.
func bootTime() time.Time {
	data, _ := os.ReadFile("/proc/uptime")
	up, _, _ := strings.Cut(string(data), " ")
	seconds, _ := strconv.ParseFloat(up, 64)
	return time.Now().Add(-time.Duration(seconds * float64(time.Second)))
}
