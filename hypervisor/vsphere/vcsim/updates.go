package vcsim

import (
	"context"
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/vmware/govmomi/simulator"
	"github.com/vmware/govmomi/vim25/methods"
	"github.com/vmware/govmomi/vim25/mo"
	"github.com/vmware/govmomi/vim25/soap"
	"github.com/vmware/govmomi/vim25/types"
)

// The simulator answers WaitForUpdatesEx by reading every object of every filter, by way of XML, for each change: a hundred VMs that are being made take it minutes of a processor. Here
// those that have changed are read, once.

// collector is a session's property collector while it is waited on.
type collector struct {
	*simulator.PropertyCollector
	news *news
}

// news is what has changed since a collector's last answer.
type news struct {
	ref    types.ManagedObjectReference // of the handler
	wake   chan struct{}                // has a value if something has changed
	cancel chan struct{}                // has a value if the wait is to end

	waiting sync.Mutex // held by the one who waits; guards below
	inner   bool       // the simulator has to answer: there is a filter that is not simple
	begun   bool
	known   map[types.ManagedObjectReference]map[types.ManagedObjectReference]bool // objects, by filter
	pending []types.PropertyFilterUpdate                                           // that did not fit in
	version int

	mu      sync.Mutex // guards below
	changed map[types.ManagedObjectReference]map[string]bool
}

// Reference makes it one of the registry's handlers.
func (n *news) Reference() types.ManagedObjectReference { return n.ref }

// PutObject is called with what is new.
func (n *news) PutObject(_ *simulator.Context, obj mo.Reference) { n.note(obj.Reference()) }

// RemoveObject is called with what goes.
func (n *news) RemoveObject(_ *simulator.Context, ref types.ManagedObjectReference) { n.note(ref) }

// UpdateObject is called with what changed, under the object's lock.
func (n *news) UpdateObject(_ *simulator.Context, obj mo.Reference, changes []types.PropertyChange) {
	var names []string
	for _, c := range changes {
		names = append(names, c.Name)
	}
	n.note(obj.Reference(), names...)
}

func (n *news) note(ref types.ManagedObjectReference, names ...string) {
	n.mu.Lock()
	defer n.mu.Unlock()
	all := n.changed[ref]
	if all == nil {
		all = map[string]bool{}
		n.changed[ref] = all
	}
	for _, name := range names {
		all[name] = true
	}
	signal(n.wake)
}

func signal(ch chan struct{}) {
	select {
	case ch <- struct{}{}:
	default:
	}
}

// newsOf gives what a session's collector has to tell; it begins with the first call.
func (v *server) newsOf(ctx *simulator.Context, this types.ManagedObjectReference) *news {
	key := ctx.Session.Key + " " + this.Value
	v.mu.Lock()
	defer v.mu.Unlock()
	n := v.news[key]
	if n == nil {
		n = &news{ref: types.ManagedObjectReference{Type: "Rig", Value: "news " + key}, wake: make(chan struct{}, 1), cancel: make(chan struct{}, 1),
			known: map[types.ManagedObjectReference]map[types.ManagedObjectReference]bool{}, changed: map[types.ManagedObjectReference]map[string]bool{}}
		v.news[key] = n
		ctx.Map.AddHandler(n)
	}
	return n
}

// noNews forgets a collector that is destroyed.
func (v *server) noNews(ctx *simulator.Context, this types.ManagedObjectReference) {
	key := ctx.Session.Key + " " + this.Value
	v.mu.Lock()
	defer v.mu.Unlock()
	if n := v.news[key]; n != nil {
		ctx.Map.RemoveHandler(n)
		delete(v.news, key)
	}
}

// stop ends a wait that goes on, or the next.
func (c collector) stop() {
	signal(c.news.cancel)
	c.PropertyCollector.CancelWaitForUpdates(&types.CancelWaitForUpdates{})
}

// CancelWaitForUpdates ends a wait.
func (c collector) CancelWaitForUpdates(*types.CancelWaitForUpdates) soap.HasFault {
	c.stop()
	return &methods.CancelWaitForUpdatesBody{Res: new(types.CancelWaitForUpdatesResponse)}
}

// gathering is how long changes have to come together in one answer.
const gathering = 2 * time.Millisecond

// maxUpdates is the most objects in an answer (vCenter's default).
const maxUpdates = 100

// WaitForUpdatesEx waits for a change.
func (c collector) WaitForUpdatesEx(ctx *simulator.Context, req *types.WaitForUpdatesEx) soap.HasFault {
	n := c.news
	n.waiting.Lock()
	defer n.waiting.Unlock()
	select {
	case <-n.cancel: // it was the last wait's; who wants this one to end says so again
	default:
	}
	if !n.begun {
		n.begun, n.inner = true, !c.simple(ctx)
	}
	if n.inner {
		return c.PropertyCollector.WaitForUpdatesEx(ctx, req)
	}
	wait, most := context.Background(), maxUpdates
	if o := req.Options; o != nil {
		if o.MaxWaitSeconds != nil {
			var cancel context.CancelFunc
			wait, cancel = context.WithTimeout(wait, time.Duration(*o.MaxWaitSeconds)*time.Second)
			defer cancel()
		}
		if o.MaxObjectUpdates > 0 {
			most = min(most, int(o.MaxObjectUpdates))
		}
	}
	if req.Version == "" {
		clear(n.known)
		n.pending = nil
		signal(n.wake) // what is there is news
	}
	for {
		if len(n.pending) > 0 {
			n.version++
			set := &types.UpdateSet{Version: strconv.Itoa(n.version)}
			set.FilterSet, n.pending = page(n.pending, most)
			if len(n.pending) > 0 {
				set.Truncated = o2b(true)
			}
			return &methods.WaitForUpdatesExBody{Res: &types.WaitForUpdatesExResponse{Returnval: set}}
		}
		select {
		case <-n.wake:
			time.Sleep(gathering)
		default:
			select {
			case <-n.wake:
				time.Sleep(gathering)
			case <-n.cancel:
				return &methods.WaitForUpdatesExBody{Fault_: simulator.Fault("", &types.RequestCanceled{})}
			case <-wait.Done():
				return &methods.WaitForUpdatesExBody{Res: &types.WaitForUpdatesExResponse{}}
			}
		}
		n.mu.Lock()
		changed := n.changed
		n.changed = map[types.ManagedObjectReference]map[string]bool{}
		n.mu.Unlock()
		for _, ref := range c.Filter {
			if f, ok := ctx.Session.Get(ref).(*simulator.PropertyFilter); ok {
				if u := c.look(ctx, f, changed); len(u.ObjectSet) > 0 {
					n.pending = append(n.pending, u)
				}
			}
		}
	}
}

// page splits updates after so many objects.
func page(all []types.PropertyFilterUpdate, most int) (first, rest []types.PropertyFilterUpdate) {
	for i, u := range all {
		if len(u.ObjectSet) > most {
			later := u
			u.ObjectSet, later.ObjectSet = u.ObjectSet[:most], u.ObjectSet[most:]
			if most > 0 {
				first = append(first, u)
			}
			return first, append([]types.PropertyFilterUpdate{later}, all[i+1:]...)
		}
		most -= len(u.ObjectSet)
		first = append(first, u)
	}
	return first, nil
}

// simple says whether all filters ask for objects that they name, that are in a view, or for the recent tasks.
func (c collector) simple(ctx *simulator.Context) bool {
	for _, ref := range c.Filter {
		f, ok := ctx.Session.Get(ref).(*simulator.PropertyFilter)
		if !ok {
			return false
		}
		for _, o := range f.Spec.ObjectSet {
			if len(o.SelectSet) == 0 {
				continue
			}
			t, ok := o.SelectSet[0].(*types.TraversalSpec)
			if !ok || len(o.SelectSet) > 1 || t.Path != "view" && t.Path != "recentTask" || len(t.SelectSet) > 0 || o.Skip == nil || !*o.Skip {
				return false
			}
			if _, ok := view(ctx, o.Obj); !ok {
				return false
			}
		}
		for _, p := range f.Spec.PropSet {
			for _, path := range p.PathSet {
				if strings.Contains(path, "[") {
					return false
				}
			}
		}
	}
	return true
}

// view is what is in a view, or the task manager's recent tasks.
func view(ctx *simulator.Context, ref types.ManagedObjectReference) (refs []types.ManagedObjectReference, ok bool) {
	if m, is := ctx.Map.Get(ref).(*simulator.TaskManager); is {
		m.Lock()
		defer m.Unlock()
		return append(refs, m.RecentTask...), true
	}
	unlock := ctx.Map.AcquireLock(ctx, ref)
	defer unlock()
	switch v := ctx.Session.Get(ref).(type) {
	case *simulator.ContainerView:
		return append(refs, v.View...), true
	case *simulator.ListView:
		return append(refs, v.View...), true
	}
	return nil, false
}

// look tells how what a filter asks for has changed.
func (c collector) look(ctx *simulator.Context, f *simulator.PropertyFilter, changed map[types.ManagedObjectReference]map[string]bool) types.PropertyFilterUpdate {
	u := types.PropertyFilterUpdate{Filter: f.Self}
	known := c.news.known[f.Self]
	if known == nil {
		known = map[types.ManagedObjectReference]bool{}
		c.news.known[f.Self] = known
	}
	there := map[types.ManagedObjectReference]bool{}
	for _, o := range f.Spec.ObjectSet {
		if len(o.SelectSet) == 0 {
			there[o.Obj] = true
			continue
		}
		in, _ := view(ctx, o.Obj)
		for _, ref := range in {
			there[ref] = true
		}
	}
	for ref := range known {
		if !there[ref] || changed[ref] != nil && ctx.Session.Get(ref) == nil {
			delete(known, ref)
			u.ObjectSet = append(u.ObjectSet, types.ObjectUpdate{Kind: types.ObjectUpdateKindLeave, Obj: ref})
		}
	}
	for ref := range there {
		names := changed[ref]
		if known[ref] && names == nil {
			continue
		}
		o, ok := c.read(ctx, f, ref)
		if !ok {
			continue
		}
		up := types.ObjectUpdate{Kind: types.ObjectUpdateKindModify, Obj: ref}
		if !known[ref] {
			known[ref], names, up.Kind, up.MissingSet = true, nil, types.ObjectUpdateKindEnter, o.MissingSet
		}
		for _, p := range o.PropSet {
			if names == nil || touched(names, p.Name) {
				up.ChangeSet = append(up.ChangeSet, types.PropertyChange{Op: types.PropertyChangeOpAssign, Name: p.Name, Val: p.Val})
			}
		}
		if names == nil || len(up.ChangeSet) > 0 {
			u.ObjectSet = append(u.ObjectSet, up)
		}
	}
	return u
}

// touched says whether the property at path changes with one of names.
func touched(names map[string]bool, path string) bool {
	for name := range names {
		if name == path || strings.HasPrefix(name, path+".") || strings.HasPrefix(path, name+".") || strings.HasPrefix(name, path+"[") {
			return true
		}
	}
	return false
}

// read gives an object with the properties that a filter wants of it.
func (c collector) read(ctx *simulator.Context, f *simulator.PropertyFilter, ref types.ManagedObjectReference) (o types.ObjectContent, ok bool) {
	body, _ := c.RetrievePropertiesEx(ctx, &types.RetrievePropertiesEx{This: c.Self, SpecSet: []types.PropertyFilterSpec{{PropSet: f.Spec.PropSet, ObjectSet: []types.ObjectSpec{{Obj: ref}}}}}).(*methods.RetrievePropertiesExBody)
	if body == nil || body.Res == nil || body.Res.Returnval == nil || len(body.Res.Returnval.Objects) == 0 {
		return o, false
	}
	return body.Res.Returnval.Objects[0], true
}
