package personality

import (
	"encoding/json"
	"fmt"
	"maps"
	"path"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/moby/moby/api/types/container"

	"vch/internal/fault"
	"vch/portlayer"
)

// defaultShell runs what an instruction gives as text and not as a JSON list.
func defaultShell() []string { return []string{"/bin/sh", "-c"} }

// parseChanges applies the Dockerfile instructions of docker import --change or docker commit --change to a configuration, in order. Those that say how a container runs are known;
// those that build (RUN, COPY, …) are refused, as by Docker.
func parseChanges(c portlayer.ImageConfig, changes []string) (portlayer.ImageConfig, error) {
	for _, text := range changes {
		for _, line := range instructions(text) {
			if err := applyChange(&c, line); err != nil {
				return c, fault.New(fault.KindOf(err), "cannot apply the change %q: %w", line, err)
			}
		}
	}
	slices.Sort(c.Volumes)
	return c, nil
}

// instructions splits a text in lines, joins those that end in a backslash, and leaves out comments and empty ones.
func instructions(text string) []string {
	var lines []string
	joined := ""
	for _, line := range strings.Split(text, "\n") {
		line = strings.TrimSpace(line)
		if line == "" || strings.HasPrefix(line, "#") {
			continue
		}
		if before, more := strings.CutSuffix(line, `\`); more {
			joined += before
			continue
		}
		lines = append(lines, joined+line)
		joined = ""
	}
	if joined != "" {
		lines = append(lines, joined)
	}
	return lines
}

// applyChange applies one instruction.
func applyChange(c *portlayer.ImageConfig, line string) error {
	name, rest := line, ""
	if i := strings.IndexAny(line, " \t"); i >= 0 {
		name, rest = line[:i], strings.TrimSpace(line[i:])
	}
	name = strings.ToUpper(name)
	if rest == "" {
		return fault.New(fault.Invalid, "%s takes an argument", name)
	}
	switch name {
	case "CMD":
		c.Cmd = commandOf(rest, c.Shell)
	case "ENTRYPOINT":
		c.Entrypoint = commandOf(rest, c.Shell)
	case "ENV":
		pairs, err := pairsOf(name, rest)
		for _, p := range pairs {
			c.Env = setEnv(c.Env, p[0], p[1])
		}
		return err
	case "LABEL":
		pairs, err := pairsOf(name, rest)
		for _, p := range pairs {
			if c.Labels == nil {
				c.Labels = map[string]string{}
			}
			c.Labels[p[0]] = p[1]
		}
		return err
	case "EXPOSE":
		return expose(c, rest)
	case "VOLUME":
		return addVolumes(c, rest)
	case "USER":
		c.User = unquoted(rest)
	case "WORKDIR":
		c.WorkingDir = joinDir(c.WorkingDir, unquoted(rest))
	case "STOPSIGNAL":
		if _, err := parseSignal(unquoted(rest)); err != nil {
			return err
		}
		c.StopSignal = unquoted(rest)
	case "SHELL":
		shell, ok := jsonList(rest)
		if !ok || len(shell) == 0 {
			return fault.New(fault.Invalid, `SHELL takes a JSON list: ["/bin/sh", "-c"]`)
		}
		c.Shell = shell
	case "ONBUILD":
		return onBuild(c, rest)
	case "HEALTHCHECK":
		return healthcheck(c, rest)
	default:
		return fault.New(fault.Invalid, "%s is not a valid change command: it takes CMD, ENTRYPOINT, ENV, EXPOSE, HEALTHCHECK, LABEL, ONBUILD, SHELL, STOPSIGNAL, USER, VOLUME, WORKDIR", name)
	}
	return nil
}

// jsonList reads ["a", "b"]; anything else is text.
func jsonList(text string) ([]string, bool) {
	if !strings.HasPrefix(text, "[") {
		return nil, false
	}
	list := []string{}
	return list, json.Unmarshal([]byte(text), &list) == nil
}

// commandOf reads the two forms of a command: a JSON list, or a text for the shell.
func commandOf(text string, shell []string) []string {
	if list, ok := jsonList(text); ok {
		return list
	}
	if len(shell) == 0 {
		shell = defaultShell()
	}
	return append(slices.Clone(shell), text)
}

// splitWords splits text at white space, but for what is quoted or escaped, as Docker's parser (buildkit instructions, parseWords) does. Quotes stay.
func splitWords(text string) []string {
	var list []string
	var word strings.Builder
	quote := rune(0)
	escaped, inWord := false, false
	for _, r := range text {
		switch {
		case escaped:
			escaped = false
		case r == '\\' && quote != '\'':
			escaped = true
		case quote != 0:
			if r == quote {
				quote = 0
			}
		case r == '"' || r == '\'':
			quote = r
		case r == ' ' || r == '\t':
			if inWord {
				list = append(list, word.String())
				word.Reset()
				inWord = false
			}
			continue
		}
		inWord = true
		word.WriteRune(r)
	}
	if inWord {
		list = append(list, word.String())
	}
	return list
}

// unquoted takes quotes and escapes away. There are no variables: nothing is built that could have set one.
func unquoted(word string) string {
	var out strings.Builder
	quote := rune(0)
	escaped := false
	for _, r := range word {
		switch {
		case escaped:
			if quote == '"' && r != '"' && r != '\\' && r != '$' {
				out.WriteRune('\\')
			}
			escaped = false
			out.WriteRune(r)
		case r == '\\' && quote != '\'':
			escaped = true
		case quote != 0 && r == quote:
			quote = 0
		case quote == 0 && (r == '"' || r == '\''):
			quote = r
		default:
			out.WriteRune(r)
		}
	}
	if escaped {
		out.WriteRune('\\')
	}
	return out.String()
}

// pairsOf reads "k=v k2='v 2'", or the old form "k the rest".
func pairsOf(name, text string) ([][2]string, error) {
	list := splitWords(text)
	if !strings.Contains(list[0], "=") {
		key, value, ok := strings.Cut(text, " ")
		if !ok {
			return nil, fault.New(fault.Invalid, "%s must have two arguments", name)
		}
		return [][2]string{{unquoted(key), unquoted(strings.TrimSpace(value))}}, nil
	}
	var pairs [][2]string
	for _, w := range list {
		key, value, ok := strings.Cut(w, "=")
		key = unquoted(key)
		switch {
		case !ok:
			return nil, fault.New(fault.Invalid, "can't find = in %q: must be of the form: name=value", w)
		case key == "":
			return nil, fault.New(fault.Invalid, "%s names can not be blank", name)
		}
		pairs = append(pairs, [2]string{key, unquoted(value)})
	}
	return pairs, nil
}

// setEnv replaces a variable where it stands, or appends it.
func setEnv(env []string, key, value string) []string {
	for i, have := range env {
		if strings.HasPrefix(have, key+"=") {
			env[i] = key + "=" + value
			return env
		}
	}
	return append(env, key+"="+value)
}

// expose reads "80 443/tcp 8000-8002/udp".
func expose(c *portlayer.ImageConfig, text string) error {
	have := set(c.ExposedPorts)
	for _, w := range splitWords(text) {
		ports, proto, _ := strings.Cut(unquoted(w), "/")
		if proto == "" {
			proto = "tcp"
		}
		proto = strings.ToLower(proto)
		first, last, isRange := strings.Cut(ports, "-")
		if !isRange {
			last = first
		}
		from, err1 := strconv.ParseUint(first, 10, 16)
		to, err2 := strconv.ParseUint(last, 10, 16)
		if err1 != nil || err2 != nil || to < from || !slices.Contains([]string{"tcp", "udp", "sctp"}, proto) {
			return fault.New(fault.Invalid, "invalid containerPort: %s", w)
		}
		for p := from; p <= to; p++ {
			have[fmt.Sprintf("%d/%s", p, proto)] = struct{}{}
		}
	}
	c.ExposedPorts = slices.Sorted(maps.Keys(have))
	return nil
}

func addVolumes(c *portlayer.ImageConfig, text string) error {
	list, ok := jsonList(text)
	if !ok {
		for _, w := range splitWords(text) {
			list = append(list, unquoted(w))
		}
	}
	for _, v := range list {
		if v = strings.TrimSpace(v); v == "" {
			return fault.New(fault.Invalid, "VOLUME specified can not be an empty string")
		}
		if !slices.Contains(c.Volumes, v) {
			c.Volumes = append(c.Volumes, v)
		}
	}
	return nil
}

// joinDir is WORKDIR: a relative one is below the one before.
func joinDir(before, dir string) string {
	if strings.HasPrefix(dir, "/") {
		return path.Clean(dir)
	}
	return path.Clean("/" + before + "/" + dir)
}

// onBuild keeps an instruction for those who build on the image.
func onBuild(c *portlayer.ImageConfig, text string) error {
	switch trigger := strings.ToUpper(strings.Fields(text)[0]); trigger {
	case "ONBUILD":
		return fault.New(fault.Invalid, "chaining ONBUILD via `ONBUILD ONBUILD` isn't allowed")
	case "MAINTAINER", "FROM":
		return fault.New(fault.Invalid, "%s isn't allowed as an ONBUILD trigger", trigger)
	}
	c.OnBuild = append(c.OnBuild, text)
	return nil
}

// healthcheck reads "NONE" or "[--interval=… …] CMD command".
func healthcheck(c *portlayer.ImageConfig, text string) error {
	var h container.HealthConfig
	rest := text
	for strings.HasPrefix(rest, "--") {
		var flag string
		flag, rest, _ = strings.Cut(rest, " ")
		rest = strings.TrimSpace(rest)
		if err := healthFlag(&h, flag); err != nil {
			return err
		}
	}
	kind, command, _ := strings.Cut(rest, " ")
	command = strings.TrimSpace(command)
	switch strings.ToUpper(kind) {
	case "NONE":
		if command != "" {
			return fault.New(fault.Invalid, "HEALTHCHECK NONE takes no arguments")
		}
		h.Test = []string{"NONE"}
	case "CMD":
		if command == "" {
			return fault.New(fault.Invalid, "Missing command after HEALTHCHECK CMD")
		}
		if list, ok := jsonList(command); ok {
			h.Test = append([]string{"CMD"}, list...)
		} else {
			h.Test = []string{"CMD-SHELL", command}
		}
	default:
		return fault.New(fault.Invalid, "Unknown type %q in HEALTHCHECK (try CMD)", kind)
	}
	data, err := json.Marshal(h)
	c.Healthcheck = data
	return err
}

func healthFlag(h *container.HealthConfig, flag string) error {
	name, value, _ := strings.Cut(flag, "=")
	durations := map[string]*time.Duration{"--interval": &h.Interval, "--timeout": &h.Timeout, "--start-period": &h.StartPeriod, "--start-interval": &h.StartInterval}
	if at, ok := durations[name]; ok {
		d, err := time.ParseDuration(value)
		if err != nil || d != 0 && d < time.Millisecond {
			return fault.New(fault.Invalid, "%s takes a time of at least 1ms, not %q", name, value)
		}
		*at = d
		return nil
	}
	if name == "--retries" {
		n, err := strconv.Atoi(value)
		if err != nil || n < 0 {
			return fault.New(fault.Invalid, "--retries cannot be negative (%s)", value)
		}
		h.Retries = n
		return nil
	}
	return fault.New(fault.Invalid, "unknown flag: %s", name)
}
