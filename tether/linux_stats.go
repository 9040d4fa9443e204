package tether

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"runtime"
	"slices"
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"vch/guest"
	"vch/internal/fault"
)

// Stats is System.Stats.
func (l *Linux) Stats() (guest.Stats, error) {
	st := guest.Stats{Read: time.Now()}
	cpu, err := keyed("cpu.stat")
	if err != nil {
		return st, err
	}
	micro := func(key string) time.Duration { return time.Duration(cpu[key]) * time.Microsecond }
	st.CPU = guest.CPUStats{
		Total: micro("usage_usec"), User: micro("user_usec"), System: micro("system_usec"),
		Periods: cpu["nr_periods"], Throttled: cpu["nr_throttled"], Waited: micro("throttled_usec"),
		Online: runtime.NumCPU(),
	}
	if st.CPU.Machine, err = machineTime(); err != nil {
		return st, err
	}
	if st.Memory.Detail, err = keyed("memory.stat"); err != nil {
		return st, err
	}
	events, err := keyed("memory.events")
	if err != nil {
		return st, err
	}
	st.Memory.Failed = events["max"]
	for file, at := range map[string]*int64{"memory.current": &st.Memory.Usage, "memory.max": &st.Memory.Limit, "pids.current": &st.Pids, "pids.max": &st.PidsMax} {
		if *at, err = number(file); err != nil {
			return st, err
		}
	}
	if st.Disks, err = diskStats(); err != nil {
		return st, err
	}
	st.Interfaces, err = l.card.stats()
	return st, err
}

// number reads a file of the container's cgroup with one number in it; "max" is 0.
func number(file string) (int64, error) {
	data, err := os.ReadFile(filepath.Join(cgroupDir, file))
	if err != nil {
		return 0, err
	}
	text := strings.TrimSpace(string(data))
	if text == "max" {
		return 0, nil
	}
	return strconv.ParseInt(text, 10, 64)
}

// keyed reads one of lines with a key and a number (cgroup-v2.rst, "Flat keyed").
func keyed(file string) (map[string]uint64, error) {
	data, err := os.ReadFile(filepath.Join(cgroupDir, file))
	if err != nil {
		return nil, err
	}
	all := map[string]uint64{}
	for line := range strings.Lines(string(data)) {
		key, value, _ := strings.Cut(strings.TrimSpace(line), " ")
		if all[key], err = strconv.ParseUint(value, 10, 64); err != nil {
			return nil, fmt.Errorf("%s: %w", file, err)
		}
	}
	return all, nil
}

// machineTime is what all processors have done and not done (proc(5), /proc/stat).
func machineTime() (time.Duration, error) {
	data, err := os.ReadFile("/proc/stat")
	if err != nil {
		return 0, err
	}
	line, _, _ := strings.Cut(string(data), "\n")
	var ticks int64
	const fields = 8 // user to steal; what comes after is counted in these
	for i, f := range strings.Fields(line) {
		if i == 0 || i > fields {
			continue
		}
		n, err := strconv.ParseInt(f, 10, 64)
		if err != nil {
			return 0, err
		}
		ticks += n
	}
	return time.Duration(ticks) * time.Second / clockTick, nil
}

// diskStats reads io.stat: "8:0 rbytes=1 wbytes=2 rios=3 wios=4 …", a line a disk.
func diskStats() ([]guest.DiskStats, error) {
	data, err := os.ReadFile(filepath.Join(cgroupDir, "io.stat"))
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil // a kernel that does not count it
	}
	if err != nil {
		return nil, err
	}
	var all []guest.DiskStats
	for line := range strings.Lines(string(data)) {
		words := strings.Fields(line)
		if len(words) < 2 {
			continue
		}
		var d guest.DiskStats
		if _, err := fmt.Sscanf(words[0], "%d:%d", &d.Major, &d.Minor); err != nil {
			return nil, fmt.Errorf("io.stat: %w", err)
		}
		fields := map[string]*uint64{"rbytes": &d.ReadBytes, "wbytes": &d.WriteBytes, "rios": &d.Reads, "wios": &d.Writes}
		for _, word := range words[1:] {
			key, value, _ := strings.Cut(word, "=")
			if at := fields[key]; at != nil {
				if *at, err = strconv.ParseUint(value, 10, 64); err != nil {
					return nil, fmt.Errorf("io.stat: %w", err)
				}
			}
		}
		all = append(all, d)
	}
	slices.SortFunc(all, func(a, b guest.DiskStats) int { return int(a.Major<<20+a.Minor) - int(b.Major<<20+b.Minor) })
	return all, nil
}

// stats counts what went through the container's interfaces, by their names.
func (c *card) stats() (map[string]guest.InterfaceStats, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	all := map[string]guest.InterfaceStats{}
	for _, i := range c.has {
		link, err := c.here.LinkByName(i.Name)
		if errors.As(err, new(netlink.LinkNotFoundError)) {
			continue // the container has taken it away
		}
		if err != nil {
			return nil, err
		}
		s := link.Attrs().Statistics
		if s == nil {
			continue
		}
		all[i.Name] = guest.InterfaceStats{
			RxBytes: s.RxBytes, RxPackets: s.RxPackets, RxErrors: s.RxErrors, RxDropped: s.RxDropped,
			TxBytes: s.TxBytes, TxPackets: s.TxPackets, TxErrors: s.TxErrors, TxDropped: s.TxDropped,
		}
	}
	return all, nil
}

// SetLimits is System.SetLimits.
func (l *Linux) SetLimits(limits guest.Limits) (err error) {
	files := cgroupLimits(limits)
	had := make([]string, len(files))
	for i, f := range files {
		data, err := os.ReadFile(filepath.Join(cgroupDir, f.name))
		if err != nil {
			return err
		}
		had[i] = strings.TrimSpace(string(data))
	}
	if limits.Memory > 0 {
		used, err := number("memory.current")
		if err != nil {
			return err
		}
		// The kernel would kill for it. Page cache it can do without, but for what is being written.
		detail, err := keyed("memory.stat")
		if err != nil {
			return err
		}
		if least := used - int64(detail["file"]) - int64(detail["slab_reclaimable"]); least > limits.Memory {
			return fault.New(fault.Invalid, "its processes use %d bytes of memory, and cannot do with %d", least, limits.Memory)
		}
	}
	for i, f := range files {
		if f.value == had[i] {
			continue
		}
		if err := f.set(); err != nil {
			for j := range i {
				err = errors.Join(err, cgroupFile{files[j].name, had[j]}.set())
			}
			return err
		}
	}
	return nil
}

// cgroupFile is a setting of the container's cgroup.
type cgroupFile struct{ name, value string }

func (f cgroupFile) set() error {
	err := os.WriteFile(filepath.Join(cgroupDir, f.name), []byte(f.value), 0)
	switch {
	case errors.Is(err, unix.EBUSY), errors.Is(err, unix.EINVAL), errors.Is(err, unix.ERANGE):
		return fault.New(fault.Invalid, "the container's kernel does not take %s for %s: %w", f.value, f.name, err)
	case err != nil:
		return fault.New(fault.Internal, "cannot set %s of the container to %s: %w", f.name, f.value, err)
	}
	return nil
}

// cgroupLimits are limits as the kernel takes them.
func cgroupLimits(l guest.Limits) []cgroupFile {
	amount := func(n int64) string {
		if n == 0 {
			return "max"
		}
		return strconv.FormatInt(n, 10)
	}
	const period, least = 100000, 1000 // µs
	cpu := "max " + strconv.Itoa(period)
	if l.CPUs > 0 && l.CPUs < int64(runtime.NumCPU())*1e9 { // all that there are is no limit, and one that the kernel keeps costs time
		cpu = fmt.Sprintf("%d %d", max(l.CPUs*period/1e9, least), period)
	}
	return []cgroupFile{{"memory.max", amount(l.Memory)}, {"cpu.max", cpu}, {"pids.max", amount(l.PidsMax)}}
}

// stillness is why the container's processes stand still (cgroup-v2.rst, cgroup.freeze): because they are to, or because somebody reads files that are to be of one moment.
type stillness struct {
	mu    sync.Mutex // guards below; held until they stand
	asked bool
	holds int
}

// stand has them stand still or go on, as there is reason to. mu is held.
func (s *stillness) stand() error {
	if !s.asked && s.holds == 0 {
		return cgroupFile{"cgroup.freeze", "0"}.set()
	}
	if err := (cgroupFile{"cgroup.freeze", "1"}).set(); err != nil {
		return err
	}
	for range holdTries {
		events, err := keyed("cgroup.events")
		if err != nil {
			return err
		}
		if events["frozen"] == 1 || events["populated"] == 0 {
			return nil
		}
		time.Sleep(holdStep)
	}
	return fault.New(fault.Unavailable, "the container's processes do not come to a stop within %v", holdTries*holdStep)
}

// SetStill is System.SetStill.
func (l *Linux) SetStill(still bool) error {
	s := &l.still
	s.mu.Lock()
	defer s.mu.Unlock()
	was := s.asked
	s.asked = still
	err := s.stand()
	if err != nil && still {
		s.asked = was
		err = errors.Join(err, s.stand())
	}
	return err
}

// hold has the container's processes stand still until release.
func (l *Linux) hold() (release func(), err error) {
	s := &l.still
	s.mu.Lock()
	defer s.mu.Unlock()
	let := func() error {
		s.holds--
		return s.stand()
	}
	s.holds++
	if err := s.stand(); err != nil {
		return nil, errors.Join(err, let())
	}
	return func() {
		s.mu.Lock()
		defer s.mu.Unlock()
		_ = let() // what froze it can thaw it
	}, nil
}

const (
	holdTries = 2000
	holdStep  = 5 * time.Millisecond
)
