package personality

import (
	"context"
	"encoding/json"
	"net/http"
	"time"

	"github.com/moby/moby/api/types/container"

	"vch/guest"
	"vch/internal/fault"
	"vch/portlayer"
)

// statsEvery is the time between two samples, as in Moby.
const statsEvery = time.Second

// containerStats is GET /containers/{id}/stats.
func (s *Server) containerStats(w http.ResponseWriter, r *http.Request) error {
	c, err := s.Containers.Get(r.Context(), r.PathValue("id"))
	if err != nil {
		return err
	}
	stream := r.URL.Query().Get("stream") == "" || boolValue(r, "stream")
	once := !stream && boolValue(r, "one-shot") && versionOf(r).atLeast(1, 41)
	sample, err := s.statsOf(r.Context(), c)
	if err != nil {
		return err
	}
	if once || !stream && sample.Read.IsZero() {
		return writeJSON(w, http.StatusOK, sample)
	}
	w.Header().Set("Content-Type", "application/json")
	enc := json.NewEncoder(flushWriter{w})
	if stream {
		if err := enc.Encode(sample); err != nil {
			return err
		}
	}
	tick := time.NewTicker(statsEvery)
	defer tick.Stop()
	for {
		select {
		case <-tick.C:
		case <-r.Context().Done():
			return nil
		}
		next, err := s.statsOf(r.Context(), c)
		if fault.Is(err, fault.NotFound) {
			return nil // it was removed
		}
		if err != nil {
			return err
		}
		if !next.Read.IsZero() {
			next.PreRead, next.PreCPUStats = sample.Read, sample.CPUStats
		}
		if err := enc.Encode(next); err != nil || !stream {
			return err
		}
		sample = next
	}
}

// statsOf is a sample of a container; one that does not run has used nothing, and was not read.
func (s *Server) statsOf(ctx context.Context, c portlayer.Container) (container.StatsResponse, error) {
	none := container.StatsResponse{ID: string(c.ID), Name: "/" + c.Spec.Name}
	st, err := s.Containers.Stats(ctx, string(c.ID))
	switch {
	case fault.Is(err, fault.Conflict), fault.Is(err, fault.Unavailable) && ctx.Err() == nil: // it does not run, or has just ended
		return none, nil
	case err != nil:
		return none, err
	}
	return statsResponse(none, st), nil
}

// statsResponse is a sample as Docker's engine shows one of a host with cgroup v2.
func statsResponse(out container.StatsResponse, st guest.Stats) container.StatsResponse {
	out.Read = st.Read.UTC()
	out.CPUStats = container.CPUStats{
		CPUUsage:       container.CPUUsage{TotalUsage: uint64(st.CPU.Total), UsageInUsermode: uint64(st.CPU.User), UsageInKernelmode: uint64(st.CPU.System)},
		SystemUsage:    uint64(st.CPU.Machine),
		OnlineCPUs:     uint32(st.CPU.Online),
		ThrottlingData: container.ThrottlingData{Periods: st.CPU.Periods, ThrottledPeriods: st.CPU.Throttled, ThrottledTime: uint64(st.CPU.Waited)},
	}
	out.MemoryStats = container.MemoryStats{Usage: uint64(st.Memory.Usage), Limit: uint64(st.Memory.Limit), Failcnt: st.Memory.Failed, Stats: st.Memory.Detail}
	out.PidsStats = container.PidsStats{Current: uint64(st.Pids), Limit: uint64(st.PidsMax)}
	for _, d := range st.Disks {
		entry := func(op string, n uint64) container.BlkioStatEntry {
			return container.BlkioStatEntry{Major: d.Major, Minor: d.Minor, Op: op, Value: n}
		}
		b := &out.BlkioStats
		b.IoServiceBytesRecursive = append(b.IoServiceBytesRecursive, entry("read", d.ReadBytes), entry("write", d.WriteBytes))
		b.IoServicedRecursive = append(b.IoServicedRecursive, entry("read", d.Reads), entry("write", d.Writes))
	}
	if len(st.Interfaces) > 0 {
		out.Networks = map[string]container.NetworkStats{}
	}
	for name, i := range st.Interfaces {
		out.Networks[name] = container.NetworkStats{
			RxBytes: i.RxBytes, RxPackets: i.RxPackets, RxErrors: i.RxErrors, RxDropped: i.RxDropped,
			TxBytes: i.TxBytes, TxPackets: i.TxPackets, TxErrors: i.TxErrors, TxDropped: i.TxDropped,
		}
	}
	return out
}
