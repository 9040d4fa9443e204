package vcsim

import (
	"context"
	"fmt"
	"strings"
	"sync"
	"time"

	"github.com/vmware/govmomi/simulator"
	"github.com/vmware/govmomi/vim25/mo"
	"github.com/vmware/govmomi/vim25/types"
)

// work is a task that runs. The simulator's own tasks hold the lock of their object from beginning to end: a copy of a disk would stop every other
// call to the disk manager, and a machine that starts would stop all who look at it. Those of the rig hold none.
type work struct {
	s    *Sim
	ctx  *simulator.Context // to call the simulator with
	done context.Context    // ends when the sim does, or the task is cancelled
	task *simulator.Task
}

// run starts a task of the method called method, as "PowerOnVM_Task", on the object of.
func (s *Sim) run(ctx *simulator.Context, of mo.Reference, method string, do func(*work) (types.AnyType, types.BaseMethodFault)) types.ManagedObjectReference {
	c := *ctx // the request's holds a lock, which this is not to share
	name := strings.TrimSuffix(method, "_Task")
	t := simulator.CreateTask(of, strings.ToLower(name[:1])+name[1:], nil)
	s.mu.Lock()
	s.tasks++
	t.Self = types.ManagedObjectReference{Type: "Task", Value: fmt.Sprintf("task-rig-%d", s.tasks)}
	s.mu.Unlock()
	now := time.Now()
	t.Info.Key, t.Info.Task, t.Info.StartTime, t.Info.State = t.Self.Value, t.Self, &now, types.TaskInfoStateRunning
	// The registry's task manager notes the task with its object, without a lock.
	ctx.WithLock(of.Reference(), func() { c.Map.Put(t) })
	w := &work{s: s, ctx: &c, task: t}
	if !s.enter() {
		w.finish(nil, &types.RequestCanceled{})
		return t.Self
	}
	var cancel context.CancelFunc
	w.done, cancel = context.WithCancel(s.ctx)
	go func() {
		defer s.wg.Done()
		defer cancel()
		unwatch := s.watch.cancelled(t.Self, cancel)
		defer unwatch()
		if f := s.control.taskFault(method); f != nil {
			w.finish(nil, f)
			return
		}
		w.finish(do(w))
	}()
	return t.Self
}

// progress sets how far the task is, in percent.
func (w *work) progress(percent int32) {
	w.ctx.WithLock(w.task, func() {
		if w.task.Info.State == types.TaskInfoStateRunning && w.task.Info.Progress != percent {
			w.ctx.Update(w.task, []types.PropertyChange{{Name: "info.progress", Val: percent}})
		}
	})
}

func (w *work) finish(result types.AnyType, f types.BaseMethodFault) {
	changes := []types.PropertyChange{{Name: "info.completeTime", Val: time.Now()}, {Name: "info.state", Val: types.TaskInfoStateSuccess}}
	if f != nil {
		changes[1].Val = types.TaskInfoStateError
		changes = append(changes, types.PropertyChange{Name: "info.error", Val: types.LocalizedMethodFault{Fault: f, LocalizedMessage: textOf(f)}})
	} else if result != nil {
		changes = append(changes, types.PropertyChange{Name: "info.result", Val: result})
	}
	w.ctx.WithLock(w.task, func() {
		if w.task.Info.State == types.TaskInfoStateRunning { // not cancelled
			w.ctx.Update(w.task, changes)
		}
	})
}

// inner runs a task of the simulator's on an object that begin begins; it gives nil if it could not.
func (w *work) inner(on types.ManagedObjectReference, begin func() *types.ManagedObjectReference) (types.AnyType, types.BaseMethodFault) {
	w.s.inner.Lock()
	defer w.s.inner.Unlock()
	var ref *types.ManagedObjectReference
	w.ctx.WithLock(on, func() { ref = begin() })
	if ref == nil {
		return nil, &types.InvalidState{}
	}
	return w.await(*ref)
}

// await waits for a task of the simulator's.
func (w *work) await(ref types.ManagedObjectReference) (types.AnyType, types.BaseMethodFault) {
	t, ok := w.ctx.Map.Get(ref).(*simulator.Task)
	if !ok {
		return nil, &types.ManagedObjectNotFound{Obj: ref}
	}
	changed := w.s.watch.wait(ref)
	defer w.s.watch.forget(ref)
	for {
		var info types.TaskInfo
		w.s.model.Map().WithLock(&simulator.Context{}, t, func() { info = t.Info })
		switch info.State {
		case types.TaskInfoStateSuccess:
			return info.Result, nil
		case types.TaskInfoStateError:
			return nil, info.Error.Fault
		}
		<-changed // the simulator's tasks end; they do file operations at most
	}
}

// watcher hears of every change of the inventory, on behalf of those who wait for a task.
type watcher struct {
	mu      sync.Mutex // guards below
	waiting map[types.ManagedObjectReference]chan struct{}
	stops   map[types.ManagedObjectReference]func()
}

// Reference makes it one of the registry's handlers.
func (*watcher) Reference() types.ManagedObjectReference {
	return types.ManagedObjectReference{Type: "Rig", Value: "watcher"}
}

// PutObject is called with what is new.
func (*watcher) PutObject(*simulator.Context, mo.Reference) {}

// RemoveObject is called with what goes.
func (*watcher) RemoveObject(*simulator.Context, types.ManagedObjectReference) {}

// UpdateObject is called with what changed, under the object's lock.
func (w *watcher) UpdateObject(_ *simulator.Context, obj mo.Reference, changes []types.PropertyChange) {
	ref := obj.Reference()
	if ref.Type != "Task" {
		return
	}
	w.mu.Lock()
	defer w.mu.Unlock()
	for _, c := range changes {
		if c.Name == "info.state" {
			if ch := w.waiting[ref]; ch != nil {
				select {
				case ch <- struct{}{}:
				default:
				}
			}
		}
		if c.Name == "info.cancelled" && w.stops[ref] != nil {
			w.stops[ref]()
		}
	}
}

func (w *watcher) wait(ref types.ManagedObjectReference) <-chan struct{} {
	w.mu.Lock()
	defer w.mu.Unlock()
	ch := make(chan struct{}, 1)
	w.waiting[ref] = ch
	return ch
}

func (w *watcher) forget(ref types.ManagedObjectReference) {
	w.mu.Lock()
	defer w.mu.Unlock()
	delete(w.waiting, ref)
}

// cancelled calls stop when somebody cancels the task.
func (w *watcher) cancelled(ref types.ManagedObjectReference, stop func()) (forget func()) {
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.stops == nil {
		w.stops = map[types.ManagedObjectReference]func(){}
	}
	w.stops[ref] = stop
	return func() {
		w.mu.Lock()
		defer w.mu.Unlock()
		delete(w.stops, ref)
	}
}
