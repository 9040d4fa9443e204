package personality

import (
	"slices"
	"strings"

	"vch/internal/fault"
)

// Capabilities in a container VM. The process runs on a kernel of its own: a capability that it has is power over its own machine and nothing
// else, so --privileged gives away nothing of the host. It means every capability, and nothing more: no device of the host appears. --cap-drop
// means what it means elsewhere: programs in the container cannot do these things to their machine.

// defaultCapabilities are what a container has without any option (moby daemon/pkg/oci/caps/defaults.go).
var defaultCapabilities = [...]string{
	"CAP_CHOWN", "CAP_DAC_OVERRIDE", "CAP_FSETID", "CAP_FOWNER", "CAP_MKNOD", "CAP_NET_RAW", "CAP_SETGID", "CAP_SETUID", "CAP_SETFCAP",
	"CAP_SETPCAP", "CAP_NET_BIND_SERVICE", "CAP_SYS_CHROOT", "CAP_KILL", "CAP_AUDIT_WRITE",
}

// allCapabilities are those of the guest's kernel, by number (capabilities(7), Linux 5.9 and later).
var allCapabilities = [...]string{
	"CAP_CHOWN", "CAP_DAC_OVERRIDE", "CAP_DAC_READ_SEARCH", "CAP_FOWNER", "CAP_FSETID", "CAP_KILL", "CAP_SETGID", "CAP_SETUID", "CAP_SETPCAP",
	"CAP_LINUX_IMMUTABLE", "CAP_NET_BIND_SERVICE", "CAP_NET_BROADCAST", "CAP_NET_ADMIN", "CAP_NET_RAW", "CAP_IPC_LOCK", "CAP_IPC_OWNER",
	"CAP_SYS_MODULE", "CAP_SYS_RAWIO", "CAP_SYS_CHROOT", "CAP_SYS_PTRACE", "CAP_SYS_PACCT", "CAP_SYS_ADMIN", "CAP_SYS_BOOT", "CAP_SYS_NICE",
	"CAP_SYS_RESOURCE", "CAP_SYS_TIME", "CAP_SYS_TTY_CONFIG", "CAP_MKNOD", "CAP_LEASE", "CAP_AUDIT_WRITE", "CAP_AUDIT_CONTROL", "CAP_SETFCAP",
	"CAP_MAC_OVERRIDE", "CAP_MAC_ADMIN", "CAP_SYSLOG", "CAP_WAKE_ALARM", "CAP_BLOCK_SUSPEND", "CAP_AUDIT_READ", "CAP_PERFMON", "CAP_BPF",
	"CAP_CHECKPOINT_RESTORE",
}

const everyCapability = "ALL"

// capabilitiesOf is Docker's rule (moby caps.TweakCapabilities): --privileged is all and wins; --cap-add ALL is all but the dropped; --cap-drop ALL is
// only the added; otherwise the defaults without the dropped, with the added. The result is in the kernel's order.
func capabilitiesOf(privileged bool, add, drop []string) ([]string, error) {
	add, err := capabilityNames(add)
	if err != nil {
		return nil, err
	}
	drop, err = capabilityNames(drop)
	if err != nil {
		return nil, err
	}
	has := func(c string) bool {
		dropped, added := slices.Contains(drop, c), slices.Contains(add, c)
		switch {
		case privileged:
			return true
		case slices.Contains(add, everyCapability):
			return !dropped
		case slices.Contains(drop, everyCapability):
			return added
		}
		return added || slices.Contains(defaultCapabilities[:], c) && !dropped
	}
	caps := []string{}
	for _, c := range allCapabilities {
		if has(c) {
			caps = append(caps, c)
		}
	}
	return caps, nil
}

// capabilityNames spells names as the kernel does: upper case, with CAP_.
func capabilityNames(names []string) ([]string, error) {
	var full []string
	for _, n := range names {
		c := strings.ToUpper(n)
		if c != everyCapability && !strings.HasPrefix(c, "CAP_") {
			c = "CAP_" + c
		}
		if c != everyCapability && !slices.Contains(allCapabilities[:], c) {
			return nil, fault.New(fault.Invalid, "unknown capability: %q", c)
		}
		full = append(full, c)
	}
	return full, nil
}
