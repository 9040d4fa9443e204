package guest

import (
	"context"
	"time"
)

// Limits are those of the container's cgroup (cgroup-v2.rst). 0 means none.
type Limits struct {
	Memory  int64 `json:"memory,omitempty"`   // bytes; memory.max
	CPUs    int64 `json:"cpus,omitempty"`     // billionths of a processor; cpu.max
	PidsMax int64 `json:"pids_max,omitempty"` // pids.max
}

// Stats is what the container's processes have used so far, as their cgroup counts it (cgroup-v2.rst), and what has gone through its interfaces.
type Stats struct {
	Read       time.Time                 `json:"read"`
	CPU        CPUStats                  `json:"cpu"`
	Memory     MemoryStats               `json:"memory"`
	Pids       int64                     `json:"pids"`
	PidsMax    int64                     `json:"pids_max,omitempty"` // 0: no limit
	Disks      []DiskStats               `json:"disks,omitempty"`    // of those that were used, sorted
	Interfaces map[string]InterfaceStats `json:"interfaces,omitempty"`
}

// CPUStats is processor time. Durations are nanoseconds on the wire; the kernel counts microseconds.
type CPUStats struct {
	Total     time.Duration `json:"total"`
	User      time.Duration `json:"user"`
	System    time.Duration `json:"system"`
	Periods   uint64        `json:"periods,omitempty"`   // that the limit was enforced in
	Throttled uint64        `json:"throttled,omitempty"` // periods in which it was reached
	Waited    time.Duration `json:"waited,omitempty"`    // for want of allowance
	Machine   time.Duration `json:"machine"`             // of all the machine's processors since it booted, idle or not (proc(5), /proc/stat)
	Online    int           `json:"online"`              // the machine's processors
}

// MemoryStats is memory, in bytes.
type MemoryStats struct {
	Usage  int64             `json:"usage"`           // page cache included: memory.current
	Limit  int64             `json:"limit,omitempty"` // 0: none
	Failed uint64            `json:"failed,omitempty"`
	Detail map[string]uint64 `json:"detail,omitempty"` // memory.stat
}

// DiskStats is a disk of the machine.
type DiskStats struct {
	Major      uint64 `json:"major"`
	Minor      uint64 `json:"minor"`
	ReadBytes  uint64 `json:"read_bytes"`
	WriteBytes uint64 `json:"write_bytes"`
	Reads      uint64 `json:"reads"`
	Writes     uint64 `json:"writes"`
}

// InterfaceStats is an interface as the container sees it.
type InterfaceStats struct {
	RxBytes, RxPackets, RxErrors, RxDropped uint64
	TxBytes, TxPackets, TxErrors, TxDropped uint64
}

// Stats is Handler.Stats.
func (c *Client) Stats(ctx context.Context) (st Stats, err error) {
	err = c.call(ctx, "stats", nil, &st)
	return st, err
}

// SetLimits is Handler.SetLimits.
func (c *Client) SetLimits(ctx context.Context, l Limits) error {
	return c.call(ctx, "limits", l, nil)
}

// SetStill is Handler.SetStill.
func (c *Client) SetStill(ctx context.Context, still bool) error {
	return c.call(ctx, "still", still, nil)
}
