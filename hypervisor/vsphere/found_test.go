package vsphere

import (
	"testing"
	"time"

	"github.com/vmware/govmomi/vim25/types"

	"vch/internal/fault"
)

// eventually waits until ok says so.
func (s *scene) eventually(what string, ok func() bool) {
	s.Helper()
	for end := time.Now().Add(20 * time.Second); !ok(); time.Sleep(5 * time.Millisecond) {
		if time.Now().After(end) {
			s.Fatal(what)
		}
	}
}

// A machine that has just come back to the folder, of which only its name is known yet, is found, and not made again; nothing of it is lost.
func TestDefineFindsWhatCameBack(t *testing.T) {
	s := newScene(t)
	m, err := s.h.Define(t.Context(), spec("abc"))
	s.must(err)
	ref := m.(*Machine).ref
	s.h.watch.put(ref, func(vm *vmState) { vm.known, vm.id, vm.def, vm.extra = false, "", definition{}, nil })
	again, err := s.h.Define(t.Context(), spec("abc"))
	s.must(err)
	if again.(*Machine).ref != ref {
		t.Errorf("%v was made beside %v", again.(*Machine).ref, ref)
	}
	s.must(again.Undefine(t.Context()))
	s.left()
}

// A create that fails because the name is taken destroys nothing, not even what says that it is the same machine.
func TestCreateDestroysOnlyWhatItMade(t *testing.T) {
	s := newScene(t)
	m, err := s.h.Define(t.Context(), spec("abc"))
	s.must(err)
	vm := s.h.watch.find("abc")
	_, err = s.h.create(t.Context(), spec("abc"), vm.def)
	s.want("create", err, fault.Conflict)
	if now := s.h.watch.find("abc"); now == nil || now.ref != vm.ref {
		t.Fatalf("the machine that was there is %v", now)
	}
	s.must(m.PowerOn(t.Context()))
	s.must(m.Undefine(t.Context()))
	s.left()
}

// A machine of which vCenter can tell nothing is not a machine that is not there.
func TestUnreadable(t *testing.T) {
	s := newScene(t)
	_, err := s.h.Define(t.Context(), spec("abc"))
	s.must(err)
	s.sim.Datastore("datastore1").Lose()
	o := options(t, s.sim, t.TempDir())
	o.Tether = []byte("a tether")
	later := open(t, o) // as a daemon that begins then
	_, err = later.Machine(t.Context(), "abc")
	s.want("find", err, fault.Unavailable, "web-abc", "inaccessible")
	_, err = later.Define(t.Context(), spec("abc"))
	s.want("define", err, fault.Unavailable, "web-abc")
	// To the one that has made it, it is not gone either.
	s.eventually("nobody hears that the machine is lost", func() bool {
		vm := s.h.watch.find("abc")
		return vm != nil && vm.connect == types.VirtualMachineConnectionStateInaccessible
	})
	m, err := s.h.Machine(t.Context(), "abc")
	s.must(err)
	s.want("undefine", m.Undefine(t.Context()), fault.Unavailable, "inaccessible")
	s.sim.Datastore("datastore1").Restore()
	s.eventually("the machine is not found again", func() bool {
		m, err := later.Machine(t.Context(), "abc")
		if err != nil {
			return false
		}
		_, err = m.State(t.Context())
		return err == nil
	})
	m, err = later.Machine(t.Context(), "abc")
	s.must(err)
	s.must(m.Undefine(t.Context()))
	s.left()
}

// Of a machine and a copy of it, the machine is the one that was made; whoever is alone is taken as it is.
func TestCopyOfAMachine(t *testing.T) {
	s := newScene(t)
	m, err := s.h.Define(t.Context(), spec("abc"))
	s.must(err)
	mine := s.h.watch.find("abc")
	read, err := s.h.watch.detail(t.Context(), mine.ref)
	s.must(err)
	if uuid := read[mine.ref].uuid; uuid == "" || uuid != mine.def.UUID {
		t.Errorf("the machine's UUID is %q, and %q was asked for", uuid, mine.def.UUID)
	}
	for _, name := range []string{"vm-0", "vm-99999"} { // before it and after it
		copied := types.ManagedObjectReference{Type: "VirtualMachine", Value: name}
		s.h.watch.put(copied, func(vm *vmState) {
			*vm = *read[mine.ref]
			vm.ref, vm.uuid = copied, "another"
		})
		if found := s.h.watch.find("abc"); found.ref != mine.ref {
			t.Errorf("the copy %s is taken for the machine", name)
		}
		s.h.watch.drop(copied)
	}
	s.must(m.Undefine(t.Context()))
}

// A machine is given the contact and the disc of the VCH as it is now, when it is started next.
func TestContactIsRenewed(t *testing.T) {
	s := newScene(t)
	_, err := s.h.Define(t.Context(), spec("abc"))
	s.must(err)
	was := s.h.watch.find("abc")
	calls := func() int { return s.sim.Calls(true)["ReconfigVM_Task"] }
	calls()
	_, err = s.h.Define(t.Context(), spec("abc"))
	s.must(err)
	if n := calls(); n != 0 {
		t.Errorf("%d calls for nothing", n)
	}
	s.h.o.Advertise = "192.0.2.7:2378"
	other, err := parsePath("[datastore1] .vch/other.iso")
	s.must(err)
	s.h.boot = &other
	m, err := s.h.Define(t.Context(), spec("abc"))
	s.must(err)
	if n := calls(); n != 1 {
		t.Errorf("%d reconfigurations", n)
	}
	read, err := s.h.watch.detail(t.Context(), was.ref)
	s.must(err)
	now := read[was.ref]
	if now.extra[meetKey] == was.extra[meetKey] || now.extra[tokenKey] == was.extra[tokenKey] {
		t.Error("the contact is the old one")
	}
	boot := ""
	for _, dev := range now.devices {
		if drive, ok := dev.(*types.VirtualCdrom); ok {
			boot = drive.Backing.(*types.VirtualCdromIsoBackingInfo).FileName
		}
	}
	if boot != other.String() {
		t.Errorf("it boots from %s", boot)
	}
	s.must(m.Undefine(t.Context()))
}
