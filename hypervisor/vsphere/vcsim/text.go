package vcsim

import (
	"fmt"
	"strings"

	"github.com/vmware/govmomi/vim25/types"
)

// textOf is the text that a real vCenter sends along with a fault: what a user reads.
func textOf(f types.BaseMethodFault) string {
	switch f := f.(type) {
	case *types.FileNotFound:
		return fmt.Sprintf("File %s was not found", f.File)
	case *types.FileAlreadyExists:
		return fmt.Sprintf("The specified key, name, or identifier '%s' already exists.", f.File)
	case *types.FileLocked:
		return fmt.Sprintf("Unable to access file %s since it is locked", f.File)
	case *types.CannotAccessFile:
		return fmt.Sprintf("Unable to access file %s", f.File)
	case *types.CannotDeleteFile:
		return fmt.Sprintf("Cannot delete file %s", f.File)
	case *types.NoDiskSpace:
		return fmt.Sprintf("Insufficient disk space on datastore '%s'.", f.Datastore)
	case *types.InaccessibleDatastore:
		return fmt.Sprintf("Unable to access datastore: '%s'", f.Name)
	case *types.InvalidDatastorePath:
		return fmt.Sprintf("Invalid datastore path '%s'.", f.DatastorePath)
	case *types.InvalidDatastore:
		return fmt.Sprintf("Invalid datastore '%s'.", f.Name)
	case *types.DuplicateName:
		return fmt.Sprintf("The name '%s' already exists.", f.Name)
	case *types.InvalidPowerState:
		return fmt.Sprintf("The attempted operation cannot be performed in the current state (%s).", words(string(f.ExistingState)))
	case *types.InvalidState:
		return "The operation is not allowed in the current state."
	case *types.ConcurrentAccess:
		return "The operation cannot complete because of concurrent modification by another operation."
	case *types.TaskInProgress:
		return "Another task is already in progress."
	case *types.RequestCanceled:
		return "The task was canceled by a user."
	case *types.InvalidDeviceSpec:
		return fmt.Sprintf("Invalid configuration for device '%d'.", f.DeviceIndex)
	}
	if said := f.GetMethodFault().FaultMessage; len(said) > 0 {
		return strings.TrimSpace(said[0].Message)
	}
	return strings.TrimPrefix(fmt.Sprintf("%T", f), "*types.")
}

func words(state string) string {
	return map[string]string{"poweredOn": "Powered on", "poweredOff": "Powered off", "suspended": "Suspended"}[state]
}
