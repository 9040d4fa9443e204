package vsphere

import (
	"context"
	"slices"
	"strings"

	vimsession "github.com/vmware/govmomi/session"
	"github.com/vmware/govmomi/vim25"
	"github.com/vmware/govmomi/vim25/methods"
	"github.com/vmware/govmomi/vim25/types"

	"vch/internal/fault"
)

// Object is what a privilege is needed on.
type Object string

// The objects, in the order in which a table shows them. A permission there reaches what is in them.
const (
	OnFolder    Object = "VM folder"     // in which the VCH's own is made, and its machines in that
	OnPool      Object = "resource pool" // likewise
	OnNetwork   Object = "network"
	OnDatastore Object = "datastore" // each that has the image store or a volume store
	OnServer    Object = "vCenter"
)

// Objects are all of them.
func Objects() []Object { return []Object{OnFolder, OnPool, OnNetwork, OnDatastore, OnServer} }

// Privilege is one that the operations user needs.
type Privilege struct {
	ID       string   `json:"privilege"` // as the API names it
	On       Object   `json:"on"`
	For      string   `json:"for"`
	Optional bool     `json:"optional,omitempty"` // without it a VCH works all the same
	calls    []string // of the API that want it
}

// Privileges are all that a VCH's user needs beside those that every role has (System.Anonymous, System.Read, System.View), and no more: each is what the calls that this package
// makes want, by "Required Privileges" of each in the vSphere Web Services API Reference, and by "Reconfigure privilege" of VirtualMachineConfigSpec's properties.
func Privileges() []Privilege {
	create := []string{"CreateVM_Task"}
	change := []string{"ReconfigVM_Task"}
	made := []string{"CreateVM_Task", "ReconfigVM_Task"}
	return []Privilege{
		{ID: "Folder.Create", On: OnFolder, For: "to make the VCH's folder", calls: []string{"CreateFolder"}},
		{ID: "Folder.Delete", On: OnFolder, For: "to remove the VCH's folder with the VCH", calls: []string{"Destroy_Task"}},
		{ID: "VirtualMachine.Inventory.Create", On: OnFolder, For: "to make machines", calls: create},
		{ID: "VirtualMachine.Inventory.Delete", On: OnFolder, For: "to remove machines", calls: []string{"Destroy_Task"}},
		{ID: "VirtualMachine.Interact.PowerOn", On: OnFolder, For: "to start and resume machines", calls: []string{"PowerOnVM_Task"}},
		{ID: "VirtualMachine.Interact.PowerOff", On: OnFolder, For: "to stop machines", calls: []string{"PowerOffVM_Task"}},
		{ID: "VirtualMachine.Interact.Suspend", On: OnFolder, For: "to pause machines", calls: []string{"SuspendVM_Task"}},
		{ID: "VirtualMachine.Config.AddExistingDisk", On: OnFolder, For: "to attach volumes and images", calls: made},
		{ID: "VirtualMachine.Config.AddNewDisk", On: OnFolder, For: "to give machines disks of their own", calls: made},
		{ID: "VirtualMachine.Config.RemoveDisk", On: OnFolder, For: "to detach volumes and images", calls: change},
		{ID: "VirtualMachine.Config.DiskExtend", On: OnFolder, For: "to grow the volumes of machines that are on", calls: change},
		{ID: "VirtualMachine.Config.EditDevice", On: OnFolder, For: "to grow the volumes of machines that are on", calls: change},
		{ID: "VirtualMachine.Config.AddRemoveDevice", On: OnFolder, For: "to give machines controllers, the card and the disc that they boot from", calls: made},
		{ID: "VirtualMachine.Config.AdvancedConfig", On: OnFolder, For: "to tell machines what they are (extraConfig)", calls: made},
		{ID: "VirtualMachine.Config.Settings", On: OnFolder, For: "to say what machines boot from", calls: made},
		{ID: "VirtualMachine.Config.CPUCount", On: OnFolder, For: "to give machines processors", calls: made},
		{ID: "VirtualMachine.Config.Memory", On: OnFolder, For: "to give machines memory", calls: made},
		{ID: "VirtualMachine.Config.Resource", On: OnFolder, For: "to bound the requests of a volume (option iops)", calls: made},
		{ID: "VirtualMachine.Config.ManagedBy", On: OnFolder, For: "to mark machines as the VCH's (managedBy)", calls: create},
		{ID: "Resource.AssignVMToPool", On: OnPool, For: "to make machines in the VCH's resource pool", calls: create},
		{ID: "Resource.CreatePool", On: OnPool, For: "to make the VCH's resource pool", calls: []string{"CreateResourcePool"}},
		{ID: "Resource.DeletePool", On: OnPool, For: "to remove the VCH's resource pool with the VCH", calls: []string{"Destroy_Task"}},
		{ID: "Network.Assign", On: OnNetwork, For: "to connect the machines' card", calls: create},
		{ID: "Datastore.AllocateSpace", On: OnDatastore, For: "to make machines and disks", calls: []string{"CreateVM_Task", "ReconfigVM_Task", "CopyVirtualDisk_Task", "ExtendVirtualDisk_Task"}},
		{ID: "Datastore.Browse", On: OnDatastore, For: "to list volumes and images", calls: []string{"SearchDatastore_Task", "SearchDatastoreSubFolders_Task"}},
		{ID: "Datastore.FileManagement", On: OnDatastore, For: "to make, copy, move and remove volumes and images", calls: []string{
			"MakeDirectory", "DeleteDatastoreFile_Task", "MoveDatastoreFile_Task", "CopyVirtualDisk_Task", "MoveVirtualDisk_Task", "DeleteVirtualDisk_Task", "ExtendVirtualDisk_Task"}},
		{ID: "Extension.Register", On: OnServer, For: "to have vCenter say what manages the machines", Optional: true, calls: []string{"RegisterExtension"}},
		{ID: "Extension.Unregister", On: OnServer, For: "to take that back with the VCH", Optional: true, calls: []string{"UnregisterExtension"}},
		{ID: "Global.CancelTask", On: OnServer, For: "to end the copy of a disk that nobody waits for any more", Optional: true, calls: []string{"CancelTask"}},
	}
}

// Lack is a privilege that the user does not have.
type Lack struct {
	Privilege
	At string // the object's name
}

// Missing says which of the privileges for an object, called name, the user who is logged in lacks.
func (s *Site) missing(ctx context.Context, on Object, name string, ref types.ManagedObjectReference) (lacks []Lack, err error) {
	var all []Privilege
	var ids []string
	for _, p := range Privileges() {
		if p.On == on {
			all, ids = append(all, p), append(ids, p.ID)
		}
	}
	err = s.s.read(ctx, func(ctx context.Context, c *vim25.Client) error {
		lacks = nil
		if c.ServiceContent.AuthorizationManager == nil {
			return nil
		}
		me, err := vimsession.NewManager(c).UserSession(ctx)
		if err != nil {
			return err
		}
		if me == nil {
			return notAuthenticated()
		}
		res, err := methods.HasPrivilegeOnEntities(ctx, c, &types.HasPrivilegeOnEntities{This: *c.ServiceContent.AuthorizationManager, Entity: []types.ManagedObjectReference{ref}, SessionId: me.Key, PrivId: ids})
		if err != nil {
			return err
		}
		granted := map[string]bool{}
		for _, e := range res.Returnval {
			for _, a := range e.PrivAvailability {
				granted[a.PrivId] = a.IsGranted
			}
		}
		for _, p := range all {
			if !granted[p.ID] {
				lacks = append(lacks, Lack{p, name})
			}
		}
		return nil
	})
	if fault.Is(err, fault.Unsupported) { // an ESX host has no such call, and its users are administrators (API reference: "implemented only by vCenter Server")
		return nil, nil
	}
	return lacks, err
}

// Lacking splits what is missing into what a VCH cannot do without, and what it can, as sentences.
func Lacking(lacks []Lack) (needed, optional []string) {
	for _, l := range lacks {
		text := l.ID + " on " + string(l.On) + " " + l.At + " (" + l.For + ")"
		if l.Optional {
			optional = append(optional, text)
		} else {
			needed = append(needed, text)
		}
	}
	slices.Sort(needed)
	return slices.Compact(needed), optional
}

// roleOf is what govc calls the role of an object.
func roleOf(o Object) string {
	return "vch-" + strings.ToLower(strings.ReplaceAll(strings.TrimPrefix(string(o), "VM "), " ", "-"))
}

// Role is the least that a user needs on one kind of object.
type Role struct {
	Name       string      `json:"name"`
	On         Object      `json:"on"`
	Privileges []Privilege `json:"privileges"`
}

// Roles are the privileges by object.
func Roles() (roles []Role) {
	for _, o := range Objects() {
		r := Role{Name: roleOf(o), On: o}
		for _, p := range Privileges() {
			if p.On == o {
				r.Privileges = append(r.Privileges, p)
			}
		}
		roles = append(roles, r)
	}
	return roles
}
