package vcsim

import (
	"github.com/vmware/govmomi/simulator"
	"github.com/vmware/govmomi/vim25/mo"
	"github.com/vmware/govmomi/vim25/types"
)

// handle is called by the simulator before each method (simulator.Registry.Handler): it may refuse the call, or give another object to call.
func (s *Sim) handle(ctx *simulator.Context, m *simulator.Method) (mo.Reference, types.BaseMethodFault) {
	obj := ctx.Map.Get(m.This)
	h := s.wrap(obj, m.Name)
	if h == nil || !ownTasks[m.Name] {
		if f := s.control.fault(m.Name); f != nil {
			return nil, f
		}
	}
	switch m.Name {
	case "RetrieveProperties", "RetrievePropertiesEx", "CreateFilter":
		if s.inner.TryLock() { // what goes on may have changed it anyway
			for _, d := range s.stores {
				d.refresh(ctx)
			}
			s.inner.Unlock()
		}
	case "WaitForUpdatesEx", "CancelWaitForUpdates", "DestroyPropertyCollector":
		if ctx.Session == nil {
			break
		}
		pc, ok := ctx.Session.Get(m.This).(*simulator.PropertyCollector)
		if !ok {
			break
		}
		if m.Name == "DestroyPropertyCollector" {
			s.server.noNews(ctx, m.This)
			break
		}
		c := &collector{pc, s.server.newsOf(ctx, m.This)}
		if h = c; m.Name == "WaitForUpdatesEx" {
			s.server.waits(ctx.Session.Key, m.This.Value, c)
		}
	case "AcquireGenericServiceTicket":
		return nil, &types.NotSupported{} // files are served by the vCenter alone
	}
	if h == nil {
		return nil, nil
	}
	// The simulator prefers what the session knows by the reference, which is the object itself, to what is given here (Service.call in simulator.go):
	// it must not find it. The request's own copy of the reference stays, and what is asked for the caller.
	this := m.This
	ctx.Caller = &this
	m.This.Value = "rig:" + m.This.Value
	return h, nil
}
