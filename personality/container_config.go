package personality

import (
	"encoding/json"
	"maps"
	"path"
	"slices"
	"strings"

	"github.com/moby/moby/api/types/container"
	"github.com/moby/moby/api/types/network"

	"vch/internal/fault"
	"vch/portlayer"
)

// maxHostname is what sethostname(2) takes, in bytes.
const maxHostname = 64

// mergeImage completes what a request says with what its image says, by Moby's rules (daemon/commit.go merge, daemon.mergeAndVerifyConfig). It
// changes neither.
func mergeImage(c container.Config, img portlayer.ImageConfig) (container.Config, error) {
	if c.User == "" {
		c.User = img.User
	}
	ports, err := mergePorts(c.ExposedPorts, img.ExposedPorts)
	if err != nil {
		return c, err
	}
	c.ExposedPorts = ports
	c.Env = mergeEnv(c.Env, img.Env)
	c.Labels = mergeLabels(c.Labels, img.Labels)
	if len(c.Entrypoint) == 0 {
		if len(c.Cmd) == 0 {
			c.Cmd, c.ArgsEscaped = slices.Clone(img.Cmd), img.ArgsEscaped
		}
		if c.Entrypoint == nil { // an empty list that was given resets the image's
			c.Entrypoint = slices.Clone(img.Entrypoint)
		}
	}
	if c.WorkingDir == "" {
		c.WorkingDir = img.WorkingDir
	}
	if len(img.Volumes) > 0 {
		all := maps.Clone(c.Volumes)
		if all == nil {
			all = map[string]struct{}{}
		}
		for _, v := range img.Volumes {
			all[v] = struct{}{}
		}
		c.Volumes = all
	}
	if c.StopSignal == "" {
		c.StopSignal = img.StopSignal
	}
	if len(img.Healthcheck) > 0 {
		var h container.HealthConfig
		if err := json.Unmarshal(img.Healthcheck, &h); err != nil {
			return c, fault.New(fault.Conflict, "the image's health check cannot be read: %w", err)
		}
		c.Healthcheck = mergeHealth(c.Healthcheck, &h)
	}
	if len(c.Entrypoint) == 1 && c.Entrypoint[0] == "" { // docker run --entrypoint ""
		c.Entrypoint = nil
	}
	if len(c.Entrypoint) == 0 && len(c.Cmd) == 0 {
		return c, fault.New(fault.Invalid, "no command specified")
	}
	return c, nil
}

func mergePorts(asked network.PortSet, image []string) (network.PortSet, error) {
	if len(image) == 0 {
		return asked, nil
	}
	all := maps.Clone(asked)
	if all == nil {
		all = network.PortSet{}
	}
	for _, text := range image {
		p, err := network.ParsePort(text)
		if err != nil {
			return nil, fault.New(fault.Conflict, "the image exposes a port that cannot be read: %w", err)
		}
		all[p] = struct{}{}
	}
	return all, nil
}

// mergeEnv puts those of the image's variables behind asked that asked does not set.
func mergeEnv(asked, image []string) []string {
	set := map[string]bool{}
	for _, kv := range asked {
		key, _, _ := strings.Cut(kv, "=")
		set[key] = true
	}
	all := slices.Clone(asked)
	for _, kv := range image {
		if key, _, _ := strings.Cut(kv, "="); !set[key] {
			all = append(all, kv)
		}
	}
	return all
}

func mergeLabels(asked, image map[string]string) map[string]string {
	all := map[string]string{}
	maps.Copy(all, image)
	maps.Copy(all, asked)
	return all
}

// applyConfig puts a merged configuration into spec. Not in the spec are the fields that change nothing in the container and are only shown
// again: AttachStdin, AttachStdout, AttachStderr, ExposedPorts, OnBuild, Shell, ArgsEscaped, and NetworkDisabled, which every container is here.
func applyConfig(spec *portlayer.ContainerSpec, c container.Config) error {
	if len(c.Hostname) > maxHostname {
		return fault.New(fault.Invalid, "hostname %q has %d characters, at most %d are possible", c.Hostname, len(c.Hostname), maxHostname)
	}
	if c.WorkingDir != "" && !path.IsAbs(c.WorkingDir) {
		return fault.New(fault.Invalid, "the working directory '%s' is invalid, it needs to be an absolute path", c.WorkingDir)
	}
	if err := checkEnv(c.Env); err != nil {
		return err
	}
	if c.StopSignal != "" {
		n, err := parseSignal(c.StopSignal)
		if err != nil {
			return err
		}
		spec.StopSignal = n
	}
	spec.Image = c.Image
	spec.Hostname, spec.Domain = c.Hostname, c.Domainname
	spec.Labels = c.Labels
	spec.StopTimeout = c.StopTimeout
	spec.StdinOnce = c.StdinOnce
	p := &spec.Process
	p.Args = append(slices.Clone(c.Entrypoint), c.Cmd...)
	p.Env = c.Env
	p.User = c.User
	p.TTY, p.Stdin = c.Tty, c.OpenStdin
	if c.WorkingDir != "" {
		p.Cwd = path.Clean(c.WorkingDir)
	}
	return nil
}

// checkEnv refuses a variable without a name.
func checkEnv(env []string) error {
	for _, kv := range env {
		if kv == "" || kv[0] == '=' {
			return fault.New(fault.Invalid, "invalid environment variable: %s", kv)
		}
	}
	return nil
}
