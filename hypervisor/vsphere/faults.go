package vsphere

import (
	"context"
	"errors"
	"io"
	"net"
	"net/url"
	"reflect"
	"strings"

	vimfault "github.com/vmware/govmomi/fault"
	"github.com/vmware/govmomi/task"
	"github.com/vmware/govmomi/vim25/soap"
	"github.com/vmware/govmomi/vim25/types"

	"vch/internal/fault"
)

// kinds says what vSphere's faults are in vch's words: the first line that is in a fault, or in its causes, decides (vSphere Web Services API Reference, "Fault Types").
var kinds = []struct {
	is   types.BaseMethodFault
	kind fault.Kind
}{
	{new(types.NotAuthenticated), fault.Denied},
	{new(types.InvalidLogin), fault.Denied},
	{new(types.NoPermission), fault.Denied},
	{new(types.RestrictedVersion), fault.Unsupported},
	{new(types.ConcurrentAccess), fault.Conflict},
	{new(types.FileLocked), fault.InUse},
	{new(types.FileNotFound), fault.NotFound},
	{new(types.FileAlreadyExists), fault.Conflict},
	{new(types.NoDiskSpace), fault.Unavailable},
	{new(types.InaccessibleDatastore), fault.Unavailable},
	{new(types.DatastoreNotWritableOnHost), fault.Unavailable},
	{new(types.InvalidDatastore), fault.Unavailable},
	{new(types.InvalidDatastorePath), fault.Invalid},
	{new(types.HostNotConnected), fault.Unavailable},
	{new(types.HostCommunication), fault.Unavailable},
	{new(types.NoCompatibleHost), fault.Unavailable},
	{new(types.NoHost), fault.Unavailable},
	{new(types.Timedout), fault.Unavailable},
	{new(types.RequestCanceled), fault.Unavailable},
	{new(types.TaskInProgress), fault.Conflict},
	{new(types.DuplicateName), fault.Conflict},
	{new(types.InvalidPowerState), fault.Conflict},
	{new(types.InvalidState), fault.Conflict},
	{new(types.ManagedObjectNotFound), fault.NotFound},
	{new(types.InvalidName), fault.Invalid},
	{new(types.InvalidDeviceSpec), fault.Invalid},
	{new(types.InvalidArgument), fault.Invalid},
	{new(types.MethodNotFound), fault.Unsupported},
	{new(types.NotSupported), fault.Unsupported},
	{new(types.CannotAccessFile), fault.Unavailable},
}

// Keys of the messages that a fault of a disk carries when another machine has it open, and when its file is not there.
const (
	lockMessage    = "msg.fileio.lock"
	missingMessage = "msg.fileio.generic.nofile"
	fileLostText   = "msg.disk.fileNotFound"
)

// translated gives an error of vSphere its kind and a text without SOAP in it; server names who said it.
func translated(server string, err error) error {
	if err == nil {
		return nil
	}
	var known *fault.Error
	if errors.As(err, &known) || errors.Is(err, context.Canceled) || errors.Is(err, context.DeadlineExceeded) {
		return err
	}
	if unreached(err) {
		return fault.New(fault.Unavailable, "%s cannot be reached: %w", server, plain(err))
	}
	if keys := messageKeys(err); keys[lockMessage] {
		return fault.New(fault.InUse, "another machine has it open: %s", saying(err))
	} else if keys[missingMessage] || keys[fileLostText] {
		return fault.New(fault.NotFound, "a file is missing: %s", saying(err))
	}
	if _, ok := faultIn[types.BaseInsufficientResourcesFault](err); ok {
		return fault.New(fault.Unavailable, "%s", saying(err))
	}
	for _, k := range kinds {
		if vimfault.Is(err, k.is) {
			return fault.New(k.kind, "%s", saying(err))
		}
	}
	return fault.New(fault.Internal, "%s: %s", server, saying(err))
}

// unreached says whether no answer came: whether the call was carried out is not known.
func unreached(err error) bool {
	if soap.IsSoapFault(err) || soap.IsVimFault(err) {
		return false
	}
	var netErr net.Error
	var urlErr *url.Error
	return errors.As(err, &netErr) || errors.As(err, &urlErr) || errors.Is(err, io.ErrUnexpectedEOF) || errors.Is(err, io.EOF)
}

// plain is a transport's error without the URL, which may be long.
func plain(err error) error {
	var u *url.Error
	if errors.As(err, &u) {
		return u.Err
	}
	return err
}

// loggedOut says whether a call was refused for want of a session.
func loggedOut(err error) bool { return vimfault.Is(err, new(types.NotAuthenticated)) }

// isA says whether a fault of that type is in err.
func isA(err error, what types.BaseMethodFault) bool { return vimfault.Is(err, what) }

// faultIn gives the first fault in err, or in its causes, that is a T.
func faultIn[T any](err error) (found T, ok bool) {
	vimfault.In(err, func(f types.BaseMethodFault, _ string, _ []types.LocalizableMessage) bool {
		if t, is := f.(T); is && !ok {
			found, ok = t, true
		}
		return ok
	})
	return found, ok
}

// messageKeys are those of all messages in an error's faults.
func messageKeys(err error) map[string]bool {
	keys := map[string]bool{}
	vimfault.In(err, func(f types.BaseMethodFault, _ string, messages []types.LocalizableMessage) bool {
		for _, m := range messages {
			keys[m.Key] = true
		}
		return false
	})
	return keys
}

// saying is what a fault says to people: its text, its reason or file where it has one, and the messages that came with it.
func saying(err error) string {
	var parts []string
	add := func(text string) {
		text = strings.TrimSuffix(strings.Join(strings.Fields(text), " "), ".")
		if text != "" && !strings.Contains(strings.Join(parts, "; "), text) {
			parts = append(parts, text)
		}
	}
	var te task.Error
	switch {
	case errors.As(err, &te) && te.LocalizedMethodFault != nil:
		add(te.LocalizedMessage)
	case soap.IsSoapFault(err):
		add(soap.ToSoapFault(err).String)
	case soap.IsVimFault(err):
	default:
		add(err.Error())
	}
	vimfault.In(err, func(f types.BaseMethodFault, text string, messages []types.LocalizableMessage) bool {
		add(text)
		if file, ok := f.(types.BaseFileFault); ok {
			add(file.GetFileFault().File)
		}
		if g, ok := f.(*types.GenericVmConfigFault); ok {
			add(g.Reason)
		}
		if p, ok := f.(types.BaseNoPermission); ok && p.GetNoPermission().PrivilegeId != "" {
			add("the privilege " + p.GetNoPermission().PrivilegeId + " is missing")
		}
		if len(parts) == 0 {
			add(reflect.TypeOf(f).Elem().Name())
		}
		for _, m := range messages {
			add(m.Message)
		}
		return false
	})
	return strings.Join(parts, "; ")
}

// notAuthenticated is what an answer of HTTP means that wants a login.
func notAuthenticated() error { return soap.WrapVimFault(new(types.NotAuthenticated)) }
