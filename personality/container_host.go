package personality

import (
	"net/netip"
	"path"
	"slices"
	"strconv"
	"strings"

	"github.com/docker/go-units"
	"github.com/moby/moby/api/types/container"

	"vch/guest"
	"vch/internal/fault"
	"vch/portlayer"
)

const (
	// defaultRuntime is the name of the only runtime there is, as /info and inspect show it: every container is a machine.
	defaultRuntime = "vch"
	// defaultShm is /dev/shm's size, as in Docker, in bytes.
	defaultShm = 64 << 20
	// defaultPeriod is the kernel's CFS period in microseconds (cgroup-v2.rst, cpu.max).
	defaultPeriod = 100_000
	// maxProcessors keeps the arithmetic of quotas in bounds; the port layer's own limit is far below.
	maxProcessors = 1 << 16
	// minMemory is Docker's least memory limit, in bytes.
	minMemory = 6 << 20
)

// The log drivers that a container's log can pass for: it is a file of JSON lines, rotated as both rotate.
const (
	logJSON  = "json-file"
	logLocal = "local"
	logNone  = "none" // nothing is kept
)

// applyHost puts what is honoured of a HostConfig into spec, but for mounts. refuseHost has refused the rest.
func applyHost(spec *portlayer.ContainerSpec, h *container.HostConfig) error {
	spec.AutoRemove = h.AutoRemove
	spec.ReadOnly = h.ReadonlyRootfs
	spec.Process.Init = h.Init != nil && *h.Init
	p := &spec.Process
	p.Groups = h.GroupAdd
	if h.OomScoreAdj < -1000 || h.OomScoreAdj > 1000 {
		return fault.New(fault.Invalid, "invalid value %d, range for oom score adj is [-1000, 1000]", h.OomScoreAdj)
	}
	p.OOMScoreAdj = h.OomScoreAdj
	p.Rows, p.Cols = consoleSize(h.ConsoleSize)
	if h.ShmSize < 0 {
		return fault.New(fault.Invalid, "SHM size can not be less than 0")
	}
	spec.ShmSize = portlayer.Bytes(h.ShmSize)
	steps := []func(*portlayer.ContainerSpec, *container.HostConfig) error{
		applyRestart, applyCapabilities, applySecurity, applyNames, applySysctls, applyLog, applyMemory, applyCPU, applyLimits,
	}
	for _, step := range steps {
		if err := step(spec, h); err != nil {
			return err
		}
	}
	return nil
}

// consoleSize is Docker's [height, width] as a terminal has it.
func consoleSize(size [2]uint) (rows, cols uint16) {
	const most = 1<<16 - 1
	return uint16(min(size[0], most)), uint16(min(size[1], most))
}

func applyRestart(spec *portlayer.ContainerSpec, h *container.HostConfig) error {
	p := h.RestartPolicy
	if err := container.ValidateRestartPolicy(p); err != nil {
		return fault.New(fault.Invalid, "%w", err)
	}
	if p.Name == "" || p.IsNone() {
		return nil
	}
	if h.AutoRemove {
		return fault.New(fault.Invalid, "can't create 'AutoRemove' container with restart policy")
	}
	spec.Restart = portlayer.RestartPolicy{When: portlayer.RestartWhen(p.Name), Most: p.MaximumRetryCount}
	return nil
}

func applyCapabilities(spec *portlayer.ContainerSpec, h *container.HostConfig) (err error) {
	spec.Process.Capabilities, err = capabilitiesOf(h.Privileged, h.CapAdd, h.CapDrop)
	return err
}

// applySecurity honours no-new-privileges, and takes what switches off something that is not there: no seccomp filter, AppArmor profile or SELinux label
// confines a process here, its machine does.
func applySecurity(spec *portlayer.ContainerSpec, h *container.HostConfig) error {
	for _, opt := range h.SecurityOpt {
		// Docker takes = and, from before 1.11, a colon.
		key, value, given := strings.Cut(opt, "=")
		if !given {
			key, value, given = strings.Cut(opt, ":")
		}
		switch {
		case key == "no-new-privileges" && !given:
			spec.Process.NoNewPrivs = true
		case key == "no-new-privileges":
			on, err := strconv.ParseBool(value)
			if err != nil {
				return fault.New(fault.Invalid, "invalid --security-opt 2: %q", opt)
			}
			spec.Process.NoNewPrivs = on
		case value == "unconfined" && (key == "seccomp" || key == "apparmor" || key == "systempaths"):
		case value == "disable" && key == "label":
		default:
			return refused("HostConfig.SecurityOpt", "--security-opt "+opt, "only no-new-privileges, seccomp=unconfined, apparmor=unconfined and label=disable are; the machine confines the container")
		}
	}
	return nil
}

// applyNames is what the container's files say of names: /etc/hosts and /etc/resolv.conf.
func applyNames(spec *portlayer.ContainerSpec, h *container.HostConfig) error {
	for _, line := range h.ExtraHosts {
		name, addr, ok := strings.Cut(line, ":")
		if !ok || name == "" || strings.ContainsAny(name, " \t\n") {
			return fault.New(fault.Invalid, "bad format for add-host: %q", line)
		}
		if addr == portlayer.HostGateway {
			spec.ExtraHosts = append(spec.ExtraHosts, line)
			continue
		}
		ip, err := netip.ParseAddr(strings.Trim(addr, "[]"))
		if err != nil {
			return fault.New(fault.Invalid, "invalid IP address in add-host: %q", addr)
		}
		spec.ExtraHosts = append(spec.ExtraHosts, name+":"+ip.String())
	}
	for _, addr := range h.DNS {
		spec.DNS = append(spec.DNS, addr.String())
	}
	for _, list := range [][]string{h.DNSSearch, h.DNSOptions} {
		for _, word := range list {
			if word == "" || strings.ContainsAny(word, " \t\n") {
				return fault.New(fault.Invalid, "%q is no word for /etc/resolv.conf", word)
			}
		}
	}
	spec.DNSSearch, spec.DNSOptions = h.DNSSearch, h.DNSOptions
	return nil
}

// applySysctls takes any kernel parameter: the kernel is the container's own, so the ones that Docker must refuse work here too.
func applySysctls(spec *portlayer.ContainerSpec, h *container.HostConfig) error {
	for key := range h.Sysctls {
		if key == "" || path.Clean("/"+key) != "/"+key || strings.ContainsFunc(key, func(r rune) bool {
			return !strings.ContainsRune("._-/:@*", r) && (r < '0' || r > '9') && (r < 'a' || r > 'z') && (r < 'A' || r > 'Z')
		}) {
			return fault.New(fault.Invalid, "sysctl %q is no name of a kernel parameter", key)
		}
	}
	spec.Sysctls = h.Sysctls
	return nil
}

func applyLog(spec *portlayer.ContainerSpec, h *container.HostConfig) error {
	switch h.LogConfig.Type {
	case "", logJSON:
	case logLocal: // its defaults (moby daemon/logger/local)
		spec.LogMax = portlayer.LogLimit{Size: 20 * portlayer.MiB, Files: 5}
	case logNone:
		spec.LogMax = portlayer.LogLimit{None: true}
		if len(h.LogConfig.Config) > 0 {
			return fault.New(fault.Invalid, "log driver none takes no options: leave --log-opt out")
		}
	default:
		return refused("HostConfig.LogConfig", "--log-driver "+h.LogConfig.Type, "a container's log is kept by vch; use json-file, local or none")
	}
	for key, value := range h.LogConfig.Config {
		switch key {
		case "max-size":
			if value == "-1" { // json-file's own way to say: no limit
				continue
			}
			n, err := units.FromHumanSize(value) // decimal, as in Moby's json-file
			if err != nil || n <= 0 {
				return fault.New(fault.Invalid, "log option max-size=%s: it takes a size, as 10m", value)
			}
			spec.LogMax.Size = portlayer.Bytes(n)
		case "max-file":
			n, err := strconv.Atoi(value)
			if err != nil || n < 1 {
				return fault.New(fault.Invalid, "log option max-file=%s: it takes a number of files, 1 or more", value)
			}
			spec.LogMax.Files = n
		case "mode":
			if value != string(container.LogModeBlocking) {
				return refused("HostConfig.LogConfig", "--log-opt mode="+value, "no output is ever dropped; use mode=blocking")
			}
		case "compress":
			if on, err := strconv.ParseBool(value); err != nil || on {
				return refused("HostConfig.LogConfig", "--log-opt compress="+value, "log files are not compressed; use compress=false")
			}
		default:
			return refused("HostConfig.LogConfig", "--log-opt "+key, "only max-size, max-file, mode=blocking and compress=false are")
		}
	}
	return nil
}

// applyMemory: a machine has no swap, so a limit on memory and swap together is one on memory.
func applyMemory(spec *portlayer.ContainerSpec, h *container.HostConfig) error {
	if h.Memory < 0 || h.Memory > 0 && h.Memory < minMemory {
		return fault.New(fault.Invalid, "Minimum memory limit allowed is 6MB")
	}
	switch {
	case h.MemorySwap == 0, h.MemorySwap == -1, h.MemorySwap == h.Memory:
	case h.Memory == 0:
		return fault.New(fault.Invalid, "You should always set the Memory limit when using Memoryswap limit, see usage")
	default:
		return refused("HostConfig.MemorySwap", "--memory-swap", "a container's machine has no swap; set it to the same as --memory")
	}
	spec.Memory = portlayer.Bytes(h.Memory)
	return nil
}

// applyCPU: --cpus, or a quota and period, which say the same.
func applyCPU(spec *portlayer.ContainerSpec, h *container.HostConfig) error {
	if h.NanoCPUs != 0 && (h.CPUQuota != 0 || h.CPUPeriod != 0) {
		return fault.New(fault.Invalid, "Conflicting options: Nano CPUs and CPU Period/Quota cannot both be set")
	}
	if h.NanoCPUs < 0 {
		return fault.New(fault.Invalid, "range of CPUs is from 0.01 up; %d billionths were asked for", h.NanoCPUs)
	}
	spec.CPUs = h.NanoCPUs
	if h.CPUPeriod != 0 && (h.CPUPeriod < 1000 || h.CPUPeriod > 1_000_000) {
		return fault.New(fault.Invalid, "CPU cfs period can not be less than 1ms (i.e. 1000) or larger than 1s (i.e. 1000000)")
	}
	switch {
	case h.CPUQuota > 0 && h.CPUQuota < 1000:
		return fault.New(fault.Invalid, "CPU cfs quota can not be less than 1ms (i.e. 1000)")
	case h.CPUQuota > 0:
		period := h.CPUPeriod
		if period == 0 {
			period = defaultPeriod
		}
		whole, rest := h.CPUQuota/period, h.CPUQuota%period
		if whole > maxProcessors {
			return fault.New(fault.Invalid, "--cpu-quota and --cpu-period ask for %d processors", whole)
		}
		spec.CPUs = whole*1e9 + rest*1e9/period
	case h.CPUQuota < 0:
		return refused("HostConfig.CpuQuota", "--cpu-quota", "a machine has a number of processors; leave the option out for the default")
	case h.CPUPeriod != 0:
		return refused("HostConfig.CpuPeriod", "--cpu-period", "a period without --cpu-quota limits nothing")
	}
	return nil
}

// ulimits are the names that setrlimit(2)'s limits have in Docker.
var ulimits = [...]string{"core", "cpu", "data", "fsize", "locks", "memlock", "msgqueue", "nice", "nofile", "nproc", "rss", "rtprio", "rttime", "sigpending", "stack"}

func applyLimits(spec *portlayer.ContainerSpec, h *container.HostConfig) error {
	if h.PidsLimit != nil && *h.PidsLimit > 0 { // 0 and -1 are no limit
		spec.PidsMax = *h.PidsLimit
	}
	for _, u := range h.Ulimits {
		if u == nil || !slices.Contains(ulimits[:], u.Name) {
			name := ""
			if u != nil {
				name = u.Name
			}
			return fault.New(fault.Invalid, "invalid ulimit type: %s", name)
		}
		soft, hard := uint64(u.Soft), uint64(u.Hard) // -1 is RLIM_INFINITY
		if soft > hard {
			return fault.New(fault.Invalid, "ulimit %s: soft limit must be less than or equal to hard limit: %d > %d", u.Name, u.Soft, u.Hard)
		}
		spec.Process.Rlimits = append(spec.Process.Rlimits, guest.Rlimit{Type: u.Name, Soft: soft, Hard: hard})
	}
	return nil
}
