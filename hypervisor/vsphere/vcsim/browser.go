package vcsim

import (
	"errors"
	"io/fs"
	"os"
	"path"
	"path/filepath"
	"slices"
	"strings"
	"syscall"

	"github.com/vmware/govmomi/simulator"
	"github.com/vmware/govmomi/vim25/methods"
	"github.com/vmware/govmomi/vim25/soap"
	"github.com/vmware/govmomi/vim25/types"

	"vch/internal/vmdkfile"
)

// browser lists the files of datastores. The simulator's dies of a file that goes while it looks.
type browser struct {
	*simulator.HostDatastoreBrowser
	s *Sim
}

// SearchDatastoreTask lists a directory.
func (b browser) SearchDatastoreTask(ctx *simulator.Context, req *types.SearchDatastore_Task) soap.HasFault {
	ref := b.s.run(ctx, b, "SearchDatastore_Task", func(*work) (types.AnyType, types.BaseMethodFault) {
		p, f := b.s.resolve(req.DatastorePath)
		if f != nil {
			return nil, f
		}
		found, _, f := b.search(p, req.DatastorePath, req.SearchSpec)
		if f != nil {
			return nil, f
		}
		return found, nil
	})
	return &methods.SearchDatastore_TaskBody{Res: &types.SearchDatastore_TaskResponse{Returnval: ref}}
}

// SearchDatastoreSubFoldersTask lists a directory and all below it. Their paths end with a stroke, as those of a vCenter do.
func (b browser) SearchDatastoreSubFoldersTask(ctx *simulator.Context, req *types.SearchDatastoreSubFolders_Task) soap.HasFault {
	ref := b.s.run(ctx, b, "SearchDatastoreSubFolders_Task", func(w *work) (types.AnyType, types.BaseMethodFault) {
		p, f := b.s.resolve(req.DatastorePath)
		if f != nil {
			return nil, f
		}
		var all []types.HostDatastoreBrowserSearchResults
		for todo := []place{p}; len(todo) > 0; todo = todo[1:] {
			if w.done.Err() != nil {
				return nil, &types.RequestCanceled{}
			}
			at := todo[0].String()
			if todo[0].rel != "" {
				at += "/"
			}
			found, dirs, f := b.search(todo[0], at, req.SearchSpec)
			if _, gone := f.(*types.FileNotFound); gone && len(all) > 0 {
				continue
			}
			if f != nil {
				return nil, f
			}
			all = append(all, found)
			for _, name := range dirs {
				todo = append(todo, place{p.store, path.Join(todo[0].rel, name), filepath.Join(todo[0].local, name)})
			}
		}
		return types.ArrayOfHostDatastoreBrowserSearchResults{HostDatastoreBrowserSearchResults: all}, nil
	})
	return &methods.SearchDatastoreSubFolders_TaskBody{Res: &types.SearchDatastoreSubFolders_TaskResponse{Returnval: ref}}
}

// search lists one directory; dirs are all in it, whether they were asked for or not.
func (b browser) search(p place, shown string, spec *types.HostDatastoreBrowserSearchSpec) (found types.HostDatastoreBrowserSearchResults, dirs []string, f types.BaseMethodFault) {
	if spec == nil {
		spec = &types.HostDatastoreBrowserSearchSpec{}
	}
	found = types.HostDatastoreBrowserSearchResults{Datastore: &p.store.ref, FolderPath: shown}
	entries, err := os.ReadDir(p.local)
	if err != nil {
		if errors.Is(err, syscall.ENOTDIR) {
			err = fs.ErrNotExist
		}
		return found, nil, fileFault(p, err)
	}
	extents := map[string]bool{} // of disks that are listed
	if spec.Details != nil && spec.Details.FileType && !b.s.o.Extents {
		for _, e := range entries {
			if path.Ext(e.Name()) != ".vmdk" {
				continue
			}
			text, err := readSmall(filepath.Join(p.local, e.Name()))
			if err != nil {
				continue
			}
			if name, _, err := vmdkfile.Parse(string(text)); err == nil {
				extents[name] = true
			}
		}
	}
	for _, e := range entries {
		if e.IsDir() {
			dirs = append(dirs, e.Name())
		}
		if extents[e.Name()] || !matches(spec, e) {
			continue
		}
		st, err := e.Info()
		if err != nil {
			continue // it has gone
		}
		info := b.info(p, st, spec.Details)
		if disk, is := info.(*types.VmDiskFileInfo); is && !asksCapacity(spec) {
			disk.CapacityKb = 0
		}
		found.File = append(found.File, info)
	}
	return found, dirs, nil
}

// asksCapacity says whether the capacity of disks is asked for.
func asksCapacity(spec *types.HostDatastoreBrowserSearchSpec) bool {
	return slices.ContainsFunc(spec.Query, func(q types.BaseFileQuery) bool {
		disks, is := q.(*types.VmDiskFileQuery)
		return is && disks.Details != nil && disks.Details.CapacityKb
	})
}

// matches says whether a file is one of those that are asked for.
func matches(spec *types.HostDatastoreBrowserSearchSpec, e fs.DirEntry) bool {
	if len(spec.MatchPattern) > 0 && !slices.ContainsFunc(spec.MatchPattern, func(pattern string) bool {
		ok, err := path.Match(pattern, e.Name())
		return ok && err == nil
	}) {
		return false
	}
	if len(spec.Query) == 0 {
		return true
	}
	ext := path.Ext(e.Name())
	return slices.ContainsFunc(spec.Query, func(q types.BaseFileQuery) bool {
		switch q.(type) {
		case *types.FileQuery:
			return true
		case *types.FolderFileQuery:
			return e.IsDir()
		case *types.VmDiskFileQuery:
			return ext == ".vmdk" && !strings.HasSuffix(e.Name(), "-flat.vmdk")
		case *types.VmConfigFileQuery:
			return ext == ".vmx"
		case *types.IsoImageFileQuery:
			return ext == ".iso"
		case *types.VmLogFileQuery:
			return ext == ".log"
		case *types.VmNvramFileQuery:
			return ext == ".nvram"
		}
		return false
	})
}

// info is what is said of a file. The size of a disk is the room that it takes.
func (b browser) info(dir place, st fs.FileInfo, details *types.FileQueryFlags) types.BaseFileInfo {
	info := types.FileInfo{Path: st.Name()}
	if details == nil {
		details = &types.FileQueryFlags{}
	}
	if details.FileSize {
		info.FileSize = st.Size()
	}
	if details.Modification {
		at := st.ModTime()
		info.Modification = &at
	}
	switch {
	case st.IsDir():
		return &types.FolderFileInfo{FileInfo: info}
	case !details.FileType:
		return &info
	}
	switch path.Ext(st.Name()) {
	case ".vmdk":
		d, f := b.s.disk(place{dir.store, path.Join(dir.rel, st.Name()), filepath.Join(dir.local, st.Name())})
		if f != nil {
			return &info
		}
		disk := &types.VmDiskFileInfo{FileInfo: info, DiskType: "VirtualDiskFlatVer2BackingInfo", CapacityKb: d.size >> 10}
		if extent, err := os.Stat(d.extent.local); details.FileSize && err == nil {
			if sys, ok := extent.Sys().(*syscall.Stat_t); ok {
				disk.FileSize = sys.Blocks * 512 // stat(2)
			}
		}
		return disk
	case ".vmx":
		return &types.VmConfigFileInfo{FileInfo: info}
	case ".iso":
		return &types.IsoImageFileInfo{FileInfo: info}
	case ".log":
		return &types.VmLogFileInfo{FileInfo: info}
	case ".nvram":
		return &types.VmNvramFileInfo{FileInfo: info}
	}
	return &info
}
