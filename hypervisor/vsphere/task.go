package vsphere

import (
	"context"
	"time"

	vimtask "github.com/vmware/govmomi/task"
	"github.com/vmware/govmomi/vim25"
	"github.com/vmware/govmomi/vim25/methods"
	"github.com/vmware/govmomi/vim25/mo"
	"github.com/vmware/govmomi/vim25/types"

	"vch/internal/pause"
	"vch/portlayer"
)

// cancelLimit is how long a task may take to end that nobody wants any more.
const cancelLimit = 30 * time.Second

// task starts a task and waits for its end. progress may be nil; it hears percents. A start of which no answer came is an error for which unreached is true: the task may run.
func (w *watcher) task(ctx context.Context, start func(ctx context.Context, c *vim25.Client) (types.ManagedObjectReference, error), progress portlayer.Progressed) (*types.TaskInfo, error) {
	var ref types.ManagedObjectReference
	err := w.s.call(ctx, func(ctx context.Context, c *vim25.Client) (err error) {
		ref, err = start(ctx, c)
		return err
	})
	if err != nil {
		return nil, err
	}
	return w.wait(ctx, ref, progress)
}

// busyFor is how long another task may keep a machine.
const busyFor = time.Minute

// unhurried is task, again while the machine has another task to end: one whose answer was lost, an administrator's, or a backup's.
func (w *watcher) unhurried(ctx context.Context, start func(ctx context.Context, c *vim25.Client) (types.ManagedObjectReference, error)) (*types.TaskInfo, error) {
	for end := time.Now().Add(busyFor); ; {
		info, err := w.task(ctx, start, nil)
		if err == nil || !isA(err, new(types.TaskInProgress)) || time.Now().After(end) {
			return info, err
		}
		if err := pause.For(ctx, backoff); err != nil {
			return nil, err
		}
	}
}

// wait waits for a task. When ctx ends, the task is told to, and waited for: what it leaves is not changed by it later.
func (w *watcher) wait(ctx context.Context, ref types.ManagedObjectReference, progress portlayer.Progressed) (*types.TaskInfo, error) {
	w.mu.Lock()
	w.tasks[ref] = w.recent[ref]
	delete(w.recent, ref)
	prompt := w.prompt
	w.mu.Unlock()
	defer func() {
		w.mu.Lock()
		delete(w.tasks, ref)
		if w.listed[ref] {
			w.ended = append(w.ended, ref)
		}
		w.mu.Unlock()
	}()
	if !prompt || !w.heard(ctx, ref) {
		if err := w.list(ctx); err != nil && ctx.Err() == nil && !unreached(err) && !isA(err, new(types.ManagedObjectNotFound)) { // of a task that is on no list, as where that went with its session, end asks
			return nil, err
		}
	}
	info, err := w.end(ctx, ref, progress)
	if err != nil && ctx.Err() != nil {
		ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), cancelLimit)
		defer cancel()
		_ = w.s.call(ctx, func(ctx context.Context, c *vim25.Client) error {
			_, err := methods.CancelTask(ctx, c, &types.CancelTask{This: ref})
			return err
		})
		_, _ = w.end(ctx, ref, nil)
	}
	if err != nil {
		return nil, err
	}
	if info.State == types.TaskInfoStateError {
		return info, vimtask.Error{LocalizedMethodFault: info.Error, Description: info.Description}
	}
	return info, nil
}

// hearFor is how long the server may take to tell of a task among the recent ones.
const hearFor = 500 * time.Millisecond

// heard says whether the server tells of a task without being asked to. Where it does not, those that follow are put on the list at once, until it has told of one after all.
func (w *watcher) heard(ctx context.Context, ref types.ManagedObjectReference) bool {
	ctx, cancel := context.WithTimeout(ctx, hearFor)
	defer cancel()
	if w.await(ctx, func() bool { return w.tasks[ref] != nil }) == nil {
		return true
	}
	w.mu.Lock()
	defer w.mu.Unlock()
	w.prompt = false
	return false
}

// askAgain is how long nothing may be heard of a task before the server is asked.
const askAgain = 10 * time.Second

// end waits for the news of a task's end. Where none comes it asks: a server that is asked by many may forget one.
func (w *watcher) end(ctx context.Context, ref types.ManagedObjectReference, progress portlayer.Progressed) (info *types.TaskInfo, err error) {
	var told int32 = -1
	ended := func() bool {
		info = w.tasks[ref]
		if info == nil {
			return false
		}
		if progress != nil && info.Progress != told && info.State == types.TaskInfoStateRunning {
			told = info.Progress
			progress(portlayer.Bytes(told), 100)
		}
		return info.State == types.TaskInfoStateSuccess || info.State == types.TaskInfoStateError
	}
	for {
		limited, cancel := context.WithTimeout(ctx, askAgain)
		err = w.await(limited, ended)
		cancel()
		if err == nil || ctx.Err() != nil {
			return info, err
		}
		var t mo.Task
		if err := w.s.properties(ctx, ref, []string{"info"}, &t); err != nil {
			return nil, err
		}
		w.mu.Lock()
		if _, waited := w.tasks[ref]; waited {
			if w.tasks[ref] == nil || w.tasks[ref].State != t.Info.State {
				w.log.Debug("nothing was heard of a task", "task", ref.Value, "state", string(t.Info.State), "listed", w.listed[ref])
			}
			w.tasks[ref] = &t.Info
		}
		w.mu.Unlock()
	}
}

// list brings the server's list of the tasks that are waited for up to date. Those who come while one call is on its way share the next.
func (w *watcher) list(ctx context.Context) error {
	err := within(ctx, min(w.s.limit, askAgain), func(ctx context.Context) error { // where there is no list for long, who waits asks
		select {
		case w.adding <- struct{}{}:
		case <-ctx.Done():
			return ctx.Err()
		}
		err := w.await(ctx, func() bool { return w.tasking != nil })
		if err != nil {
			<-w.adding
		}
		return err
	})
	if err != nil {
		return err
	}
	defer func() { <-w.adding }()
	w.mu.Lock()
	list := w.tasking
	var add []types.ManagedObjectReference
	for ref, info := range w.tasks {
		if info == nil && !w.listed[ref] {
			add = append(add, ref)
		}
	}
	remove := w.ended
	w.mu.Unlock()
	if len(add) == 0 || list == nil {
		return nil
	}
	err = w.s.call(ctx, func(ctx context.Context, c *vim25.Client) error {
		_, err := methods.ModifyListView(ctx, c, &types.ModifyListView{This: list.Reference(), Add: add, Remove: remove})
		return err
	})
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.tasking != list { // the next question has them from its beginning
		return nil
	}
	if err != nil {
		return err
	}
	w.ended = w.ended[len(remove):]
	for _, ref := range remove {
		delete(w.listed, ref)
	}
	for _, ref := range add {
		w.listed[ref] = true
		if _, waited := w.tasks[ref]; !waited {
			w.ended = append(w.ended, ref)
		}
	}
	return nil
}
