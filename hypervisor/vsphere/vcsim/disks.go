package vcsim

import (
	"errors"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"

	"github.com/vmware/govmomi/simulator"
	"github.com/vmware/govmomi/vim25/methods"
	"github.com/vmware/govmomi/vim25/soap"
	"github.com/vmware/govmomi/vim25/types"

	"vch/internal/vmdkfile"
)

// diskManager is the simulator's with disks that have their size.
type diskManager struct {
	*simulator.VirtualDiskManager
	s *Sim
}

// disk is a flat VMDK on a datastore.
type disk struct {
	descriptor, extent place
	text               string // the descriptor's
	size               int64
}

// disk reads the descriptor at p and looks at the extent.
func (s *Sim) disk(p place) (disk, types.BaseMethodFault) {
	text, err := readSmall(p.local)
	if err != nil {
		return disk{}, fileFault(p, err)
	}
	name, size, err := vmdkfile.Parse(string(text))
	if err != nil {
		return disk{}, &types.InvalidDiskFormat{InvalidFormat: types.InvalidFormat{VmConfigFault: types.VmConfigFault{VimFault: types.VimFault{MethodFault: types.MethodFault{
			FaultMessage: []types.LocalizableMessage{{Key: "msg.disklib.INVALIDDISK", Message: p.String() + ": " + err.Error()}}}}}}}
	}
	d := disk{p, p.sibling(name), string(text), size}
	if _, err := os.Stat(d.extent.local); err != nil {
		return d, fileFault(d.extent, err)
	}
	return d, nil
}

// readSmall reads the beginning of a file, which is all of a descriptor: an extent may be named instead, and have terabytes.
func readSmall(path string) ([]byte, error) {
	f, err := os.Open(path)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	return io.ReadAll(io.LimitReader(f, 64<<10))
}

// createDisk makes a thin disk, or nothing. One of many who ask for it at once gets it.
func (s *Sim) createDisk(p place, size int64) types.BaseMethodFault {
	if size <= 0 || size%vmdkfile.Sector != 0 || !strings.HasSuffix(p.rel, ".vmdk") {
		return &types.InvalidArgument{InvalidProperty: "spec.capacityKb"}
	}
	extent := p.sibling(filepath.Base(vmdkfile.Extent(p.local)))
	s.names.Lock()
	defer s.names.Unlock()
	if _, err := os.Lstat(p.local); err == nil {
		return fileFault(p, fs.ErrExist)
	}
	f, err := os.OpenFile(extent.local, os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o600)
	if err != nil {
		if errors.Is(err, fs.ErrNotExist) {
			return fileFault(p, err)
		}
		return fileFault(extent, err)
	}
	err = errors.Join(f.Truncate(size), f.Close())
	if err == nil {
		err = replace(p.local, vmdkfile.Descriptor(filepath.Base(extent.local), size))
	}
	if err != nil {
		return fileFault(p, errors.Join(err, os.Remove(extent.local)))
	}
	return nil
}

// CreateVirtualDiskTask makes every kind of disk a thin one.
func (m diskManager) CreateVirtualDiskTask(ctx *simulator.Context, req *types.CreateVirtualDisk_Task) soap.HasFault {
	ref := m.s.run(ctx, m, "CreateVirtualDisk_Task", func(*work) (types.AnyType, types.BaseMethodFault) {
		p, f := m.s.resolve(req.Name)
		if f != nil {
			return nil, f
		}
		spec, ok := req.Spec.(types.BaseFileBackedVirtualDiskSpec)
		if !ok {
			return nil, &types.InvalidArgument{InvalidProperty: "spec"}
		}
		if f := m.s.createDisk(p, spec.GetFileBackedVirtualDiskSpec().CapacityKb<<10); f != nil {
			return nil, f
		}
		return p.String(), nil
	})
	return &methods.CreateVirtualDisk_TaskBody{Res: &types.CreateVirtualDisk_TaskResponse{Returnval: ref}}
}

var (
	extentSize = regexp.MustCompile(`(?m)^(\s*RW\s+)[0-9]+(\s)`)
	cylinders  = regexp.MustCompile(`(?m)^(ddb\.geometry\.cylinders = ")[0-9]+(")`)
)

// extend makes a disk longer; the caller has seen that it may.
func (s *Sim) extend(d disk, size int64) types.BaseMethodFault {
	f, err := os.OpenFile(d.extent.local, os.O_WRONLY, 0)
	if err != nil {
		return fileFault(d.extent, err)
	}
	if err := errors.Join(f.Truncate(size), f.Close()); err != nil {
		return fileFault(d.extent, err)
	}
	sectors := size / vmdkfile.Sector
	text := extentSize.ReplaceAllString(d.text, "${1}"+strconv.FormatInt(sectors, 10)+"${2}")
	text = cylinders.ReplaceAllString(text, "${1}"+strconv.FormatInt(max(1, sectors/(255*63)), 10)+"${2}")
	if err := replace(d.descriptor.local, text); err != nil {
		return fileFault(d.descriptor, err)
	}
	return nil
}

// ExtendVirtualDiskTask makes a disk longer that no machine has open.
func (m diskManager) ExtendVirtualDiskTask(ctx *simulator.Context, req *types.ExtendVirtualDisk_Task) soap.HasFault {
	ref := m.s.run(ctx, m, "ExtendVirtualDisk_Task", func(w *work) (types.AnyType, types.BaseMethodFault) {
		p, f := m.s.resolve(req.Name)
		if f != nil {
			return nil, f
		}
		d, f := m.s.disk(p)
		if f != nil {
			return nil, f
		}
		if !m.s.locks.take(d.extent.local, w.task.Self.Value, true) {
			return nil, locked(d.extent)
		}
		defer m.s.locks.drop(d.extent.local, w.task.Self.Value)
		if d, f = m.s.disk(p); f != nil { // nobody else changes it now
			return nil, f
		}
		size := req.NewCapacityKb << 10
		if size < d.size {
			return nil, &types.InvalidArgument{InvalidProperty: "newCapacityKb"}
		}
		if f := m.s.extend(d, size); f != nil {
			return nil, f
		}
		return p.String(), nil
	})
	return &methods.ExtendVirtualDisk_TaskBody{Res: &types.ExtendVirtualDisk_TaskResponse{Returnval: ref}}
}

// DeleteVirtualDiskTask deletes descriptor and extent, or what is there of them.
func (m diskManager) DeleteVirtualDiskTask(ctx *simulator.Context, req *types.DeleteVirtualDisk_Task) soap.HasFault {
	ref := m.s.run(ctx, m, "DeleteVirtualDisk_Task", func(*work) (types.AnyType, types.BaseMethodFault) {
		p, f := m.s.resolve(req.Name)
		if f != nil {
			return nil, f
		}
		return nil, m.s.deleteDisk(p)
	})
	return &methods.DeleteVirtualDisk_TaskBody{Res: &types.DeleteVirtualDisk_TaskResponse{Returnval: ref}}
}

func (s *Sim) deleteDisk(p place) types.BaseMethodFault {
	s.names.Lock()
	defer s.names.Unlock()
	d, f := s.disk(p)
	if _, missing := f.(*types.FileNotFound); f != nil && (!missing || d.extent.local == "") {
		return f
	}
	if s.locks.below(d.extent.local) != "" {
		return locked(d.extent)
	}
	for _, each := range []place{d.extent, d.descriptor} {
		if err := os.Remove(each.local); err != nil && !errors.Is(err, fs.ErrNotExist) {
			return fileFault(each, err)
		}
	}
	return nil
}

// MoveVirtualDiskTask gives a disk another name; its extent's goes with it.
func (m diskManager) MoveVirtualDiskTask(ctx *simulator.Context, req *types.MoveVirtualDisk_Task) soap.HasFault {
	ref := m.s.run(ctx, m, "MoveVirtualDisk_Task", func(*work) (types.AnyType, types.BaseMethodFault) {
		from, to, f := m.s.two(req.SourceName, req.DestName)
		if f != nil {
			return nil, f
		}
		m.s.names.Lock()
		defer m.s.names.Unlock()
		d, f := m.s.disk(from)
		if f != nil {
			return nil, f
		}
		force := req.Force != nil && *req.Force
		for _, p := range []place{to, to.sibling(filepath.Base(vmdkfile.Extent(to.local)))} {
			if _, err := os.Lstat(p.local); err == nil && !force {
				return nil, fileFault(p, fs.ErrExist)
			}
		}
		extent := to.sibling(filepath.Base(vmdkfile.Extent(to.local)))
		if f := m.s.move(d.extent, extent, force); f != nil {
			return nil, f
		}
		if err := replace(to.local, renamed(d, extent)); err != nil {
			return nil, fileFault(to, err)
		}
		if from.local != to.local {
			if err := os.Remove(from.local); err != nil {
				return nil, fileFault(from, err)
			}
		}
		return to.String(), nil
	})
	return &methods.MoveVirtualDisk_TaskBody{Res: &types.MoveVirtualDisk_TaskResponse{Returnval: ref}}
}

// renamed is d's descriptor for an extent of another name.
func renamed(d disk, extent place) string {
	return strings.Replace(d.text, `"`+filepath.Base(d.extent.local)+`"`, `"`+filepath.Base(extent.local)+`"`, 1)
}

// CopyVirtualDiskTask copies the data of a disk that nobody writes to. The copy's descriptor says whether it is thin; its extent is sparse in any case. Of many copies to one name one is made.
func (m diskManager) CopyVirtualDiskTask(ctx *simulator.Context, req *types.CopyVirtualDisk_Task) soap.HasFault {
	ref := m.s.run(ctx, m, "CopyVirtualDisk_Task", func(w *work) (types.AnyType, types.BaseMethodFault) {
		from, to, f := m.s.two(req.SourceName, req.DestName)
		if f != nil {
			return nil, f
		}
		thin := false // what is not asked for is preallocated
		switch spec := req.DestSpec.(type) {
		case nil:
		case *types.VirtualDiskSpec:
			thin = spec.DiskType == string(types.VirtualDiskTypeThin)
		case *types.FileBackedVirtualDiskSpec:
			thin = spec.DiskType == string(types.VirtualDiskTypeThin)
		default:
			return nil, &types.InvalidArgument{InvalidProperty: "destSpec"}
		}
		if f := m.s.copyDisk(w, from, to, thin, req.Force != nil && *req.Force); f != nil {
			return nil, f
		}
		return to.String(), nil
	})
	return &methods.CopyVirtualDisk_TaskBody{Res: &types.CopyVirtualDisk_TaskResponse{Returnval: ref}}
}

func (s *Sim) copyDisk(w *work, from, to place, thin, force bool) (f types.BaseMethodFault) {
	d, f := s.disk(from)
	if f != nil {
		return f
	}
	who := w.task.Self.Value
	if !s.locks.take(d.extent.local, who, false) {
		return locked(d.extent)
	}
	defer s.locks.drop(d.extent.local, who)
	extent := to.sibling(filepath.Base(vmdkfile.Extent(to.local)))
	if force {
		if _, missing := s.deleteDisk(to).(*types.FileNotFound); !missing {
			if f := s.unlocked(to); f != nil {
				return f
			}
		}
	}
	if _, err := os.Lstat(to.local); err == nil {
		return fileFault(to, fs.ErrExist)
	}
	// The extent's name is what one of many gets; it is locked while it is filled.
	if !s.locks.take(extent.local, who, true) {
		return fileFault(to, fs.ErrExist)
	}
	defer s.locks.drop(extent.local, who)
	if f := w.copyFile(d.extent, extent); f != nil {
		if _, taken := f.(*types.FileAlreadyExists); taken {
			return fileFault(to, fs.ErrExist)
		}
		return f
	}
	text := strings.Replace(renamed(d, extent), vmdkfile.Thin, "", 1)
	if thin {
		text += vmdkfile.Thin
	}
	if err := replace(to.local, text); err != nil {
		return fileFault(to, errors.Join(err, os.Remove(extent.local)))
	}
	return nil
}
