package personality

import (
	"slices"

	"github.com/moby/moby/api/types/container"

	"vch/internal/fault"
)

// The reasons that several options share.
const (
	noIPv6     = "networks have IPv4 addresses only"
	noLinks    = "containers on one network of your own (docker network create) find each other by their names, and by --network-alias"
	noShare    = "every container is a machine of its own and shares nothing with the host or another container"
	noIOLimit  = "vch does not limit the input and output of a container's disks"
	noDevice   = "a container's machine has no devices of the host"
	noWindows  = "it has a meaning on Windows only"
	noRealtime = "a container has its machine's processors to itself; limit them with --cpus"
)

// refused is the error for an option that vch cannot honour. flag is the docker CLI's name for it, "" where it has none.
func refused(field, flag, why string) error {
	if flag != "" {
		field += " (" + flag + ")"
	}
	return fault.New(fault.Unsupported, "%s is not supported by vch: %s", field, why)
}

// refusal is one option that is never honoured, and whether a request asks for it.
type refusal struct {
	asked            bool
	field, flag, why string
}

func first(rows []refusal) error {
	for _, r := range rows {
		if r.asked {
			return refused(r.field, r.flag, r.why)
		}
	}
	return nil
}

// refuseHost refuses what vch cannot do of a HostConfig. What is honoured, or depends on a value's finer form, is in container_host.go.
func refuseHost(h *container.HostConfig) error {
	if err := first([]refusal{
		{h.NetworkMode.IsHost(), "HostConfig.NetworkMode", "--network host", noShare + "; publish its ports with -p"},
		{h.NetworkMode.IsContainer(), "HostConfig.NetworkMode", "--network " + string(h.NetworkMode), "one machine has one network stack; put both on a network of your own, where they find each other by name"},
		{len(h.Links) > 0, "HostConfig.Links", "--link", noLinks},
		{h.CgroupnsMode.IsHost() || !h.CgroupnsMode.Valid(), "HostConfig.CgroupnsMode", "--cgroupns", noShare},
		{h.Cgroup != "", "HostConfig.Cgroup", "", noShare},
		{!slices.Contains([]container.IpcMode{"", container.IPCModePrivate, container.IPCModeShareable}, h.IpcMode), "HostConfig.IpcMode", "--ipc", noShare},
		{h.PidMode != "", "HostConfig.PidMode", "--pid", noShare},
		{h.UTSMode != "", "HostConfig.UTSMode", "--uts", noShare},
		{h.UsernsMode != "", "HostConfig.UsernsMode", "--userns", noShare},
		{len(h.StorageOpt) > 0, "HostConfig.StorageOpt", "--storage-opt", "the size of a container's own disk is fixed; keep large data in a volume"},
		{h.Runtime != "" && h.Runtime != defaultRuntime, "HostConfig.Runtime", "--runtime " + h.Runtime, "every container runs as a machine; leave the option out"},
		{h.Umask != nil, "HostConfig.Umask", "", "the image's process sets its own umask"},
		{!h.Isolation.IsDefault(), "HostConfig.Isolation", "--isolation", noWindows},
		{len(h.MaskedPaths) > 0, "HostConfig.MaskedPaths", "", "no path is masked: /proc and /sys are the container's own machine's"},
		{len(h.ReadonlyPaths) > 0, "HostConfig.ReadonlyPaths", "", "no path is made read-only: /proc and /sys are the container's own machine's"},
	}); err != nil {
		return err
	}
	return refuseResources(h.Resources)
}

// refuseResources refuses the limits that vch does not set.
func refuseResources(r container.Resources) error {
	return first([]refusal{
		{r.CPUShares != 0, "HostConfig.CpuShares", "-c, --cpu-shares", "a weight among containers has no meaning where each has its own processors; use --cpus"},
		{r.CgroupParent != "", "HostConfig.CgroupParent", "--cgroup-parent", noShare},
		{r.BlkioWeight != 0, "HostConfig.BlkioWeight", "--blkio-weight", noIOLimit},
		{len(r.BlkioWeightDevice) > 0, "HostConfig.BlkioWeightDevice", "--blkio-weight-device", noIOLimit},
		{len(r.BlkioDeviceReadBps) > 0, "HostConfig.BlkioDeviceReadBps", "--device-read-bps", noIOLimit},
		{len(r.BlkioDeviceWriteBps) > 0, "HostConfig.BlkioDeviceWriteBps", "--device-write-bps", noIOLimit},
		{len(r.BlkioDeviceReadIOps) > 0, "HostConfig.BlkioDeviceReadIOps", "--device-read-iops", noIOLimit},
		{len(r.BlkioDeviceWriteIOps) > 0, "HostConfig.BlkioDeviceWriteIOps", "--device-write-iops", noIOLimit},
		{r.CPURealtimePeriod != 0, "HostConfig.CpuRealtimePeriod", "--cpu-rt-period", noRealtime},
		{r.CPURealtimeRuntime != 0, "HostConfig.CpuRealtimeRuntime", "--cpu-rt-runtime", noRealtime},
		{r.CpusetCpus != "", "HostConfig.CpusetCpus", "--cpuset-cpus", noRealtime},
		{r.CpusetMems != "", "HostConfig.CpusetMems", "--cpuset-mems", "a container's machine has one memory node"},
		{len(r.Devices) > 0, "HostConfig.Devices", "--device", noDevice},
		{len(r.DeviceCgroupRules) > 0, "HostConfig.DeviceCgroupRules", "--device-cgroup-rule", noDevice},
		{len(r.DeviceRequests) > 0, "HostConfig.DeviceRequests", "--gpus", noDevice},
		{r.MemoryReservation != 0, "HostConfig.MemoryReservation", "--memory-reservation", "a machine's memory is one amount; use --memory"},
		{r.MemorySwappiness != nil && *r.MemorySwappiness != -1, "HostConfig.MemorySwappiness", "--memory-swappiness", "a container's machine has no swap"},
		{r.OomKillDisable != nil && *r.OomKillDisable, "HostConfig.OomKillDisable", "--oom-kill-disable", "a machine without free memory would stand still; give it more with --memory"},
		{r.CPUCount != 0, "HostConfig.CpuCount", "--cpu-count", noWindows + "; use --cpus"},
		{r.CPUPercent != 0, "HostConfig.CpuPercent", "--cpu-percent", noWindows + "; use --cpus"},
		{r.IOMaximumIOps != 0, "HostConfig.IOMaximumIOps", "--io-maxiops", noWindows},
		{r.IOMaximumBandwidth != 0, "HostConfig.IOMaximumBandwidth", "--io-maxbandwidth", noWindows},
	})
}
