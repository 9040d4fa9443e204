package vcsim

import (
	"context"
	"maps"
	"strings"
	"sync"
	"time"

	"github.com/vmware/govmomi/vim25/types"
)

// control counts calls and spoils them. A call is named as its SOAP method is, "PowerOnVM_Task"; one of /folder "GET /folder", "PUT /folder", ….
type control struct {
	mu      sync.Mutex // guards below
	latency time.Duration
	calls   map[string]int
	delays  map[string]time.Duration
	faults  map[string][]types.BaseMethodFault // to come, in order; nil lets one pass
	lose    map[string]int                     // answers still to be lost
	hang    map[string]chan struct{}           // closed by Sim.Unhang
}

func (c *control) init(o Options) {
	c.latency = o.Latency
	c.calls, c.faults, c.lose, c.hang = map[string]int{}, map[string][]types.BaseMethodFault{}, map[string]int{}, map[string]chan struct{}{}
	c.delays = map[string]time.Duration{}
	maps.Copy(c.delays, o.Latencies)
}

// Calls is how many calls of each name there were since the last reset. reset sets all to zero.
func (s *Sim) Calls(reset bool) map[string]int {
	s.control.mu.Lock()
	defer s.control.mu.Unlock()
	calls := maps.Clone(s.control.calls)
	if reset {
		clear(s.control.calls)
	}
	return calls
}

// FailOnce makes the next call of method fail with f: one of a task that the rig runs fails as a task, every other call at once.
func (s *Sim) FailOnce(method string, f types.BaseMethodFault) { s.FailNext(1, method, f) }

// FailNext makes the next n calls of method fail.
func (s *Sim) FailNext(n int, method string, f types.BaseMethodFault) {
	s.control.mu.Lock()
	defer s.control.mu.Unlock()
	for range n {
		s.control.faults[method] = append(s.control.faults[method], f)
	}
}

// FailAfter lets n calls of method pass, and makes the one after them fail.
func (s *Sim) FailAfter(n int, method string, f types.BaseMethodFault) {
	s.FailNext(n, method, nil)
	s.FailOnce(method, f)
}

// LoseAnswer has the next call of method carried out (a task begun), and the connection cut without an answer.
func (s *Sim) LoseAnswer(method string) {
	s.control.mu.Lock()
	defer s.control.mu.Unlock()
	s.control.lose[method]++
}

// Delay makes every call of method wait d before it is carried out; 0 ends that.
func (s *Sim) Delay(method string, d time.Duration) {
	s.control.mu.Lock()
	defer s.control.mu.Unlock()
	s.control.delays[method] = d
}

// SetLatency gives every SOAP call another Options.Latency from now on.
func (s *Sim) SetLatency(d time.Duration) {
	s.control.mu.Lock()
	defer s.control.mu.Unlock()
	s.control.latency = d
}

// Hang makes calls of method wait, until Unhang, or their client goes away, or the sim ends.
func (s *Sim) Hang(method string) {
	s.control.mu.Lock()
	defer s.control.mu.Unlock()
	if s.control.hang[method] == nil {
		s.control.hang[method] = make(chan struct{})
	}
}

// Unhang lets calls of method go on.
func (s *Sim) Unhang(method string) {
	s.control.mu.Lock()
	defer s.control.mu.Unlock()
	if ch := s.control.hang[method]; ch != nil {
		close(ch)
		delete(s.control.hang, method)
	}
}

// ClearFaults forgets all faults, losses, delays and hangs that are to come.
func (s *Sim) ClearFaults() {
	c := &s.control
	c.mu.Lock()
	defer c.mu.Unlock()
	for _, ch := range c.hang {
		close(ch)
	}
	clear(c.hang)
	clear(c.faults)
	clear(c.lose)
	clear(c.delays)
}

// arrived counts a call and waits as it is to; false if its client is gone or the sim ends.
func (c *control) arrived(ctx, sim context.Context, method string) bool {
	c.mu.Lock()
	c.calls[method]++
	wait, hang := c.delays[method], c.hang[method]
	if !strings.Contains(method, " ") {
		wait += c.latency
	}
	c.mu.Unlock()
	if hang != nil {
		select {
		case <-hang:
		case <-ctx.Done():
			return false
		case <-sim.Done():
			return false
		}
	}
	if wait > 0 {
		timer := time.NewTimer(wait)
		defer timer.Stop()
		select {
		case <-timer.C:
		case <-ctx.Done():
			return false
		case <-sim.Done():
			return false
		}
	}
	return true
}

// lost says that the answer of a call is to be lost.
func (c *control) lost(method string) bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.lose[method] == 0 {
		return false
	}
	c.lose[method]--
	return true
}

func (c *control) fault(method string) types.BaseMethodFault {
	c.mu.Lock()
	defer c.mu.Unlock()
	all := c.faults[method]
	if len(all) == 0 {
		return nil
	}
	c.faults[method] = all[1:]
	return all[0]
}

// taskFault is what the task of method is to fail with.
func (c *control) taskFault(method string) types.BaseMethodFault { return c.fault(method) }

// ownTasks are the methods whose tasks the rig runs.
var ownTasks = map[string]bool{"CreateVM_Task": true, "Destroy_Task": true, "PowerOnVM_Task": true, "PowerOffVM_Task": true, "SuspendVM_Task": true, "ResetVM_Task": true,
	"ReconfigVM_Task": true, "CreateVirtualDisk_Task": true, "ExtendVirtualDisk_Task": true, "DeleteVirtualDisk_Task": true, "MoveVirtualDisk_Task": true,
	"CopyVirtualDisk_Task": true, "DeleteDatastoreFile_Task": true, "MoveDatastoreFile_Task": true, "CopyDatastoreFile_Task": true,
	"SearchDatastore_Task": true, "SearchDatastoreSubFolders_Task": true}
