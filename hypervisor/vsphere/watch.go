package vsphere

import (
	"context"
	"encoding/json"
	"log/slog"
	"maps"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/vmware/govmomi/property"
	"github.com/vmware/govmomi/view"
	"github.com/vmware/govmomi/vim25"
	"github.com/vmware/govmomi/vim25/methods"
	"github.com/vmware/govmomi/vim25/soap"
	"github.com/vmware/govmomi/vim25/types"

	"vch/internal/fault"
	"vch/internal/pause"
	"vch/portlayer"
)

// A watcher has one question open at the server at all times, which the server answers when a machine in the VCH's folder, a task that is waited for, or a datastore has changed
// (PropertyCollector.WaitForUpdatesEx). So whether a machine is on costs no call, and neither does a task's end: it is among the server's recent tasks. What a machine is made of is
// read once, when this process begins, and is then what it has made of it; who changes a machine reads it again.
type watcher struct {
	s      *session
	log    *slog.Logger
	vch    string                       // whose machines count
	folder types.ManagedObjectReference // whose machines are watched, those in folders below too
	stores []types.ManagedObjectReference

	adding chan struct{} // has room for the one who changes the list of tasks

	mu      sync.Mutex // guards below
	news    chan struct{}
	synced  bool  // all that was there is known
	broken  error // why nothing is heard now; nil: it is
	vms     map[types.ManagedObjectReference]*vmState
	gone    map[types.ManagedObjectReference]bool // destroyed by this process: late news of them is none
	leaving map[types.ManagedObjectReference]bool // being destroyed by it
	tasks   map[types.ManagedObjectReference]*types.TaskInfo
	recents types.ManagedObjectReference                     // the filter that tells of the server's recent tasks, whosever
	recent  map[types.ManagedObjectReference]*types.TaskInfo // of which it tells, but for those that were waited for
	prompt  bool                                             // it told in time of the last task that was waited for
	listed  map[types.ManagedObjectReference]bool            // tasks that are on the list of tasking
	ended   []types.ManagedObjectReference                   // tasks that nobody waits for any more, still on the server's list
	tasking *view.ListView                                   // of the session's; nil: there is none now
	space   map[types.ManagedObjectReference]storeState
	behind  func(old, new *vmState) // hears of every change; old or new may be nil
}

// vmState is what is known of one machine. It is not changed: another takes its place.
type vmState struct {
	ref     types.ManagedObjectReference
	name    string
	power   types.VirtualMachinePowerState
	connect types.VirtualMachineConnectionState
	version string // config.changeVersion

	known   bool                  // what follows is; all of it by this process, or as it was read. Where it is not, it is what was known last
	id      portlayer.ContainerID // "" : it is none of this VCH's
	def     definition
	uuid    string                    // config.instanceUuid, where it was read
	extra   map[string]string         // of vch's
	devices []types.BaseVirtualDevice // in what detail gives only
	vmx     string                    // likewise: the path of its own file
}

// on says whether the machine is on; one that is suspended is.
func (v *vmState) on() bool { return v.power != types.VirtualMachinePowerStatePoweredOff }

// storeState is a datastore as the server sees it.
type storeState struct {
	name       string
	accessible bool
	total      int64
	free       int64
}

// The properties that are watched.
var (
	vmWatched    = []string{"name", "config.changeVersion", "runtime.powerState", "runtime.connectionState"}
	vmDetails    = append([]string{"config.extraConfig", "config.hardware.device", "config.instanceUuid", "config.files.vmPathName"}, vmWatched...)
	taskWatched  = []string{"info.state", "info.progress", "info.error", "info.result"}
	storeWatched = []string{"name", "summary.accessible", "summary.capacity", "summary.freeSpace"}
)

// maxUpdates bounds an answer, in objects.
const maxUpdates = 200

// longPoll is how long the server keeps a question open, in seconds: a proxy between might not for ever.
const longPoll = 300

func newWatcher(s *session, vch string, log *slog.Logger, folder types.ManagedObjectReference, stores []types.ManagedObjectReference, behind func(old, new *vmState)) *watcher {
	return &watcher{s: s, vch: vch, log: log, folder: folder, stores: stores, behind: behind, news: make(chan struct{}), adding: make(chan struct{}, 1),
		vms: map[types.ManagedObjectReference]*vmState{}, gone: map[types.ManagedObjectReference]bool{}, leaving: map[types.ManagedObjectReference]bool{}, tasks: map[types.ManagedObjectReference]*types.TaskInfo{}, space: map[types.ManagedObjectReference]storeState{}}
}

// begin has it ask until end, which returns when it does no more. Who hears of tasks by it ends before.
func (w *watcher) begin() (end func()) {
	ctx, stop := context.WithCancel(context.Background())
	var asking sync.WaitGroup
	asking.Go(func() { w.run(ctx) })
	return func() { stop(); asking.Wait() }
}

// run asks until ctx ends.
func (w *watcher) run(ctx context.Context) {
	for wait := backoff; ; wait = min(2*wait, maxBackoff) {
		began := time.Now()
		err := w.s.do(ctx, w.listen)
		if ctx.Err() != nil {
			return
		}
		if time.Since(began) > maxBackoff {
			wait = backoff
		}
		err = translated(w.s.server.address(), err)
		w.mu.Lock()
		told := w.broken != nil
		w.broken = err
		w.tasking, w.listed = nil, nil
		w.tell()
		w.mu.Unlock()
		if !told {
			w.log.Warn("nothing is heard from vSphere; asking again", "err", err)
		}
		if pause.For(ctx, wait) != nil {
			return
		}
	}
}

// maxBackoff is the longest that a watcher waits before it asks again.
const maxBackoff = 5 * time.Second

// tell wakes all who wait for news. The caller holds mu.
func (w *watcher) tell() {
	close(w.news)
	w.news = make(chan struct{})
}

// listen sets the question up and asks it until something fails.
func (w *watcher) listen(ctx context.Context, c *vim25.Client) error {
	w.mu.Lock()
	w.tasking, w.listed = nil, nil
	w.mu.Unlock()
	pc, err := property.DefaultCollector(c).Create(ctx)
	if err != nil {
		return err
	}
	defer func() {
		ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), 2*time.Second)
		defer cancel()
		_ = pc.Destroy(ctx) // it goes with the session, too
	}()
	w.mu.Lock()
	w.ended = nil
	open, before := slices.Collect(maps.Keys(w.tasks)), maps.Clone(w.vms)
	w.mu.Unlock()
	m := view.NewManager(c)
	vms, err := m.CreateContainerView(ctx, w.folder, []string{"VirtualMachine"}, true)
	if err != nil {
		return err
	}
	tasks, err := m.CreateListView(ctx, open)
	if err != nil {
		return err
	}
	manager := c.ServiceContent.TaskManager
	members := func(v types.ManagedObjectReference, path string) types.ObjectSpec {
		return types.ObjectSpec{Obj: v, Skip: types.NewBool(true), SelectSet: []types.BaseSelectionSpec{&types.TraversalSpec{Type: v.Type, Path: path}}}
	}
	filters := []types.PropertyFilterSpec{
		{PropSet: []types.PropertySpec{{Type: "VirtualMachine", PathSet: vmWatched}}, ObjectSet: []types.ObjectSpec{members(vms.Reference(), "view")}},
		{PropSet: []types.PropertySpec{{Type: "Task", PathSet: taskWatched}}, ObjectSet: []types.ObjectSpec{members(tasks.Reference(), "view")}},
		{PropSet: []types.PropertySpec{{Type: "Task", PathSet: taskWatched}}, ObjectSet: []types.ObjectSpec{members(*manager, "recentTask")}},
	}
	if len(w.stores) > 0 {
		spec := types.PropertyFilterSpec{PropSet: []types.PropertySpec{{Type: "Datastore", PathSet: storeWatched}}}
		for _, ref := range w.stores {
			spec.ObjectSet = append(spec.ObjectSet, types.ObjectSpec{Obj: ref})
		}
		filters = append(filters, spec)
	}
	for _, spec := range filters {
		res, err := methods.CreateFilter(ctx, c, &types.CreateFilter{This: pc.Reference(), Spec: spec, PartialUpdates: false})
		recent := spec.ObjectSet[0].Obj == *manager
		if err != nil && (!recent || loggedOut(err) || unreached(err)) {
			return err
		}
		if recent {
			w.mu.Lock()
			w.recents, w.recent, w.prompt = types.ManagedObjectReference{}, map[types.ManagedObjectReference]*types.TaskInfo{}, err == nil
			if err == nil {
				w.recents = res.Returnval
			}
			w.mu.Unlock()
		}
	}
	first := true
	known := map[types.ManagedObjectReference]bool{} // in this question
	var version string
	for {
		res, err := methods.WaitForUpdatesEx(ctx, c, &types.WaitForUpdatesEx{This: pc.Reference(), Version: version, Options: &types.WaitOptions{MaxWaitSeconds: types.NewInt32(longPoll), MaxObjectUpdates: maxUpdates}})
		if err != nil {
			return err
		}
		set := res.Returnval
		if set == nil {
			continue // nothing for a while
		}
		version = set.Version
		if err := w.take(set, known); err != nil {
			return err
		}
		if first && (set.Truncated == nil || !*set.Truncated) {
			first = false
			w.mu.Lock()
			for ref, vm := range w.vms { // what has gone while nobody listened; what is new came after the view
				if before[ref] != nil && !known[ref] {
					delete(w.vms, ref)
					w.hear(vm, nil)
				}
			}
			w.tasking, w.synced, w.broken = tasks, true, nil
			w.listed = map[types.ManagedObjectReference]bool{}
			for _, ref := range open {
				w.listed[ref] = true
			}
			w.tell()
			w.mu.Unlock()
		}
	}
}

// hear passes a change on. The caller holds mu.
func (w *watcher) hear(old, new *vmState) {
	if w.behind != nil {
		w.behind(old, new)
	}
}

// take notes a set of updates.
func (w *watcher) take(set *types.UpdateSet, known map[types.ManagedObjectReference]bool) error {
	w.mu.Lock()
	defer w.mu.Unlock()
	defer w.tell()
	for _, f := range set.FilterSet {
		for _, u := range f.ObjectSet {
			for _, missing := range u.MissingSet {
				if err := soap.WrapVimFault(missing.Fault.Fault); loggedOut(err) {
					return err
				}
			}
			switch u.Obj.Type {
			case "VirtualMachine":
				w.takeVM(u, known)
			case "Task":
				w.takeTask(u, f.Filter == w.recents)
			case "Datastore":
				w.takeStore(u)
			}
		}
	}
	return nil
}

func (w *watcher) takeVM(u types.ObjectUpdate, known map[types.ManagedObjectReference]bool) {
	old := w.vms[u.Obj]
	if u.Kind == types.ObjectUpdateKindLeave {
		delete(w.vms, u.Obj)
		delete(w.gone, u.Obj)
		if old != nil && !w.leaving[u.Obj] {
			w.hear(old, nil)
		}
		delete(w.leaving, u.Obj)
		return
	}
	if w.gone[u.Obj] {
		return
	}
	known[u.Obj] = true
	var next vmState
	if old != nil {
		next = *old
	}
	next.ref = u.Obj
	for _, c := range u.ChangeSet {
		next.set(c)
	}
	w.vms[u.Obj] = &next
	w.hear(old, &next)
}

// set notes one property.
func (v *vmState) set(c types.PropertyChange) {
	switch val := c.Val.(type) {
	case string:
		switch c.Name {
		case "name":
			v.name = val
		case "config.changeVersion":
			v.version = val
		case "config.instanceUuid":
			v.uuid = val
		case "config.files.vmPathName":
			v.vmx = val
		}
	case types.VirtualMachinePowerState:
		v.power = val
	case types.VirtualMachineConnectionState:
		v.connect = val
	case types.ArrayOfVirtualDevice:
		v.devices = val.VirtualDevice
	case types.ArrayOfOptionValue:
		v.extra = map[string]string{}
		for _, o := range val.OptionValue {
			if text, ok := o.GetOptionValue().Value.(string); ok && ours(o.GetOptionValue().Key) {
				v.extra[o.GetOptionValue().Key] = text
			}
		}
	}
}

// learn finds out whose a machine is, from what was read of it. vCenter has nothing to tell of one whose files or host it cannot reach: that one stays unknown.
func (v *vmState) learn(vch string) {
	v.known, v.id, v.def = v.version != "" || v.extra != nil, "", definition{}
	var def definition
	if text, ok := v.extra[definitionKey]; ok && json.Unmarshal([]byte(text), &def) == nil && def.VCH == vch {
		v.id, v.def = def.ID, def
	}
}

// detail reads machines anew, all there is to know of them, and notes whose they are and what they are to be. Who calls it has the machines' turns.
func (w *watcher) detail(ctx context.Context, refs ...types.ManagedObjectReference) (map[types.ManagedObjectReference]*vmState, error) {
	read, err := w.fetch(ctx, refs)
	if err == nil {
		w.note(read, func(*vmState) bool { return true })
	}
	return read, err
}

// note notes what was read of machines that are there and of which take says so. Whether they are on is the open question's to say: it is newer.
func (w *watcher) note(read map[types.ManagedObjectReference]*vmState, take func(*vmState) bool) {
	w.mu.Lock()
	defer w.mu.Unlock()
	for ref, vm := range read {
		if have := w.vms[ref]; have != nil && vm.known && take(have) {
			next := *have
			next.known, next.id, next.def, next.extra, next.uuid = true, vm.id, vm.def, vm.extra, vm.uuid
			w.vms[ref] = &next
		}
	}
	w.tell()
}

// fetch reads machines.
func (w *watcher) fetch(ctx context.Context, refs []types.ManagedObjectReference) (map[types.ManagedObjectReference]*vmState, error) {
	read := map[types.ManagedObjectReference]*vmState{}
	for chunk := range slices.Chunk(refs, maxUpdates) {
		spec := types.PropertyFilterSpec{PropSet: []types.PropertySpec{{Type: "VirtualMachine", PathSet: vmDetails}}, ReportMissingObjectsInResults: types.NewBool(true)}
		for _, ref := range chunk {
			spec.ObjectSet = append(spec.ObjectSet, types.ObjectSpec{Obj: ref})
		}
		err := w.s.read(ctx, func(ctx context.Context, c *vim25.Client) error {
			res, err := methods.RetrieveProperties(ctx, c, &types.RetrieveProperties{This: property.DefaultCollector(c).Reference(), SpecSet: []types.PropertyFilterSpec{spec}})
			if err != nil {
				return err
			}
			for _, o := range res.Returnval {
				for _, missing := range o.MissingSet {
					if err := soap.WrapVimFault(missing.Fault.Fault); loggedOut(err) {
						return err
					}
				}
				vm := &vmState{ref: o.Obj}
				for _, p := range o.PropSet {
					vm.set(types.PropertyChange{Name: p.Name, Val: p.Val})
				}
				vm.learn(w.vch)
				read[o.Obj] = vm
			}
			return nil
		})
		if err != nil {
			return nil, err
		}
	}
	return read, nil
}

// anyUnknown says whether there is a machine of which it is not known whose it is. The caller holds mu.
func (w *watcher) anyUnknown() bool {
	for _, vm := range w.vms {
		if !vm.known {
			return true
		}
	}
	return false
}

// classify finds out whose those machines are that this process has not made and does not know.
func (w *watcher) classify(ctx context.Context) error {
	w.mu.Lock()
	var unknown []types.ManagedObjectReference
	for ref, vm := range w.vms {
		if !vm.known {
			unknown = append(unknown, ref)
		}
	}
	w.mu.Unlock()
	if len(unknown) == 0 {
		return nil
	}
	read, err := w.fetch(ctx, unknown)
	if err == nil {
		w.note(read, func(vm *vmState) bool { return !vm.known }) // of others this process knows better
	}
	return err
}

// ours says whether vch has written an entry of a machine's extra configuration.
func ours(key string) bool { return strings.HasPrefix(key, ownPrefix) }

// takeTask notes what is told of a task: one that is on the list, or a recent one, which may be another's, or be waited for in a moment.
func (w *watcher) takeTask(u types.ObjectUpdate, recent bool) {
	info, waited := w.tasks[u.Obj]
	switch {
	case waited:
		w.tasks[u.Obj] = told(info, u.ChangeSet)
		w.prompt = w.prompt || recent
	case recent && u.Kind == types.ObjectUpdateKindLeave:
		delete(w.recent, u.Obj)
	case recent:
		w.recent[u.Obj] = told(w.recent[u.Obj], u.ChangeSet)
	}
}

// told is what is known of a task after changes; nil: nothing is yet.
func told(info *types.TaskInfo, changes []types.PropertyChange) *types.TaskInfo {
	if len(changes) == 0 {
		return info
	}
	var next types.TaskInfo
	if info != nil {
		next = *info
	}
	for _, c := range changes {
		switch val := c.Val.(type) {
		case types.TaskInfoState:
			next.State = val
		case int32:
			next.Progress = val
		case types.LocalizedMethodFault:
			next.Error = &val
		default:
			if c.Name == "info.result" {
				next.Result = val
			}
		}
	}
	return &next
}

func (w *watcher) takeStore(u types.ObjectUpdate) {
	s := w.space[u.Obj]
	for _, c := range u.ChangeSet {
		switch val := c.Val.(type) {
		case string:
			s.name = val
		case bool:
			s.accessible = val
		case int64:
			if c.Name == "summary.capacity" {
				s.total = val
			} else {
				s.free = val
			}
		}
	}
	w.space[u.Obj] = s
}

// await waits until ok says so, which is asked under the lock after every change. A question that is not heard is no reason to give up: ctx is.
func (w *watcher) await(ctx context.Context, ok func() bool) error {
	for {
		w.mu.Lock()
		done, news, broken := ok(), w.news, w.broken
		w.mu.Unlock()
		if done {
			return nil
		}
		select {
		case <-news:
		case <-ctx.Done():
			if broken != nil {
				return broken
			}
			return ctx.Err()
		}
	}
}

// sync waits until all that was there at the beginning is known.
func (w *watcher) sync(ctx context.Context) error {
	if err := w.await(ctx, func() bool { return w.synced }); err != nil {
		return err
	}
	return w.classify(ctx)
}

// find gives the machine called id, nil if there is none. A copy that somebody has made of a machine says of itself that it is called so too: it is not the one that vch has made.
func (w *watcher) find(id portlayer.ContainerID) *vmState {
	w.mu.Lock()
	defer w.mu.Unlock()
	var found *vmState
	for _, vm := range w.vms {
		if vm.id == id && (found == nil || vm.made() && !found.made() || vm.made() == found.made() && vm.ref.Value < found.ref.Value) {
			found = vm
		}
	}
	return found
}

// made says whether the machine is the one for which its definition was written. vCenter gives a copy another UUID.
func (v *vmState) made() bool { return v.uuid == "" || v.uuid == v.def.UUID }

// unread gives a machine that may be the one called id, and of which vCenter tells no more than its name; nil if there is none.
func (w *watcher) unread(id portlayer.ContainerID) *vmState {
	w.mu.Lock()
	defer w.mu.Unlock()
	for _, vm := range w.vms {
		if !vm.known && (vm.id == id || strings.Contains(vm.name, shortOf(id))) {
			return vm
		}
	}
	return nil
}

// present gives the machines that are there, whosever.
func (w *watcher) present() map[types.ManagedObjectReference]bool {
	w.mu.Lock()
	defer w.mu.Unlock()
	refs := map[types.ManagedObjectReference]bool{}
	for ref := range w.vms {
		refs[ref] = true
	}
	return refs
}

// get gives what is known of a machine, nil if it is gone.
func (w *watcher) get(ref types.ManagedObjectReference) *vmState {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.vms[ref]
}

// all gives all machines of this VCH.
func (w *watcher) all() []*vmState {
	w.mu.Lock()
	defer w.mu.Unlock()
	var list []*vmState
	for _, vm := range w.vms {
		if vm.id != "" {
			list = append(list, vm)
		}
	}
	return list
}

// renew notes what this process has done to a machine, if it is there still.
func (w *watcher) renew(ref types.ManagedObjectReference, change func(*vmState)) {
	w.mu.Lock()
	defer w.mu.Unlock()
	if old := w.vms[ref]; old != nil {
		next := *old
		change(&next)
		w.vms[ref] = &next
		w.tell()
	}
}

// put notes a machine that this process has made before the server says so; change gets a copy of what is known.
func (w *watcher) put(ref types.ManagedObjectReference, change func(*vmState)) {
	w.mu.Lock()
	defer w.mu.Unlock()
	next := vmState{ref: ref}
	if old := w.vms[ref]; old != nil {
		next = *old
	}
	change(&next)
	w.vms[ref] = &next
	w.tell()
}

// leave notes that this process is about to destroy a machine.
func (w *watcher) leave(ref types.ManagedObjectReference) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.leaving[ref] = true
}

// drop notes that this process has destroyed a machine.
func (w *watcher) drop(ref types.ManagedObjectReference) {
	w.mu.Lock()
	defer w.mu.Unlock()
	if _, there := w.vms[ref]; there {
		w.gone[ref] = true
		delete(w.vms, ref)
	}
	w.tell()
}

// store gives a datastore by its name.
func (w *watcher) store(name string) (ref types.ManagedObjectReference, s storeState, err error) {
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.broken != nil {
		return ref, s, w.broken
	}
	for ref, s := range w.space {
		if s.name == name {
			return ref, s, nil
		}
	}
	return ref, s, fault.New(fault.NotFound, "this VCH knows no datastore %s", name)
}
