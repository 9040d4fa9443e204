package vcsim

import (
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"strings"

	"github.com/vmware/govmomi/simulator"
	"github.com/vmware/govmomi/vim25/methods"
	"github.com/vmware/govmomi/vim25/soap"
	"github.com/vmware/govmomi/vim25/types"

	"vch/internal/sparsefile"
	"vch/internal/vmdkfile"
)

// fileManager is the simulator's with operations that one of several callers wins.
type fileManager struct {
	*simulator.FileManager
	s *Sim
}

// MakeDirectory is FileAlreadyExists for a directory that is there, with CreateParentDirectories, too.
func (m fileManager) MakeDirectory(_ *simulator.Context, req *types.MakeDirectory) soap.HasFault {
	body := &methods.MakeDirectoryBody{}
	f := m.s.makeDirectory(req.Name, req.CreateParentDirectories != nil && *req.CreateParentDirectories)
	if f != nil {
		body.Fault_ = simulator.Fault(textOf(f), f)
		return body
	}
	body.Res = &types.MakeDirectoryResponse{}
	return body
}

func (s *Sim) makeDirectory(name string, parents bool) types.BaseMethodFault {
	p, f := s.resolve(name)
	if f != nil {
		return f
	}
	s.names.Lock()
	defer s.names.Unlock()
	if parents {
		if err := os.MkdirAll(filepath.Dir(p.local), 0o755); err != nil {
			return fileFault(p, err)
		}
	}
	if err := os.Mkdir(p.local, 0o755); err != nil {
		return fileFault(p, err)
	}
	return nil
}

// DeleteDatastoreFileTask deletes a file, or a directory with all in it.
func (m fileManager) DeleteDatastoreFileTask(ctx *simulator.Context, req *types.DeleteDatastoreFile_Task) soap.HasFault {
	ref := m.s.run(ctx, m, "DeleteDatastoreFile_Task", func(*work) (types.AnyType, types.BaseMethodFault) {
		p, f := m.s.resolve(req.Name)
		if f != nil {
			return nil, f
		}
		return nil, m.s.remove(p)
	})
	return &methods.DeleteDatastoreFile_TaskBody{Res: &types.DeleteDatastoreFile_TaskResponse{Returnval: ref}}
}

// remove deletes what is at p.
func (s *Sim) remove(p place) types.BaseMethodFault {
	if p.rel == "" {
		return &types.InvalidDatastorePath{InvalidDatastore: types.InvalidDatastore{Name: p.store.name}, DatastorePath: p.String()}
	}
	s.names.Lock()
	defer s.names.Unlock()
	if _, err := os.Lstat(p.local); err != nil {
		return fileFault(p, err)
	}
	if f := s.unlocked(p); f != nil {
		return f
	}
	if err := os.RemoveAll(p.local); err != nil {
		return fileFault(p, err)
	}
	return nil
}

// unlocked is FileLocked if p, or something in it, is open. A disk is open by its extent.
func (s *Sim) unlocked(p place) types.BaseMethodFault {
	at := s.locks.below(p.local)
	if at == "" && strings.HasSuffix(p.local, ".vmdk") {
		at = s.locks.below(vmdkfile.Extent(p.local))
	}
	if at == "" {
		return nil
	}
	rel, err := filepath.Rel(p.store.dir, at)
	if err != nil {
		return locked(p)
	}
	return locked(place{p.store, filepath.ToSlash(rel), at})
}

// MoveDatastoreFileTask gives a file or directory another name.
func (m fileManager) MoveDatastoreFileTask(ctx *simulator.Context, req *types.MoveDatastoreFile_Task) soap.HasFault {
	ref := m.s.run(ctx, m, "MoveDatastoreFile_Task", func(*work) (types.AnyType, types.BaseMethodFault) {
		from, to, f := m.s.two(req.SourceName, req.DestinationName)
		if f != nil {
			return nil, f
		}
		m.s.names.Lock()
		defer m.s.names.Unlock()
		return nil, m.s.move(from, to, req.Force != nil && *req.Force)
	})
	return &methods.MoveDatastoreFile_TaskBody{Res: &types.MoveDatastoreFile_TaskResponse{Returnval: ref}}
}

func (s *Sim) two(from, to string) (place, place, types.BaseMethodFault) {
	a, f := s.resolve(from)
	if f != nil {
		return a, place{}, f
	}
	b, f := s.resolve(to)
	return a, b, f
}

// move renames; s.names is held.
func (s *Sim) move(from, to place, force bool) types.BaseMethodFault {
	if from.rel == "" || to.rel == "" {
		return &types.InvalidDatastorePath{DatastorePath: from.String()}
	}
	if _, err := os.Lstat(from.local); err != nil {
		return fileFault(from, err)
	}
	if f := s.unlocked(from); f != nil {
		return f
	}
	if st, err := os.Lstat(to.local); err == nil {
		if !force || st.IsDir() {
			return fileFault(to, fs.ErrExist)
		}
		if f := s.unlocked(to); f != nil {
			return f
		}
	}
	if err := os.Rename(from.local, to.local); err != nil {
		return fileFault(to, err)
	}
	return nil
}

// replace writes a small file: who reads it finds the old or the new one. It is not durable, as nothing of a test's needs to be.
func replace(path, text string) error {
	f, err := os.CreateTemp(filepath.Dir(path), ".new-*")
	if err != nil {
		return err
	}
	_, err = f.WriteString(text)
	if err = errors.Join(err, f.Close()); err == nil {
		err = os.Rename(f.Name(), path)
	}
	if err != nil {
		err = errors.Join(err, os.Remove(f.Name()))
	}
	return err
}

// CopyDatastoreFileTask copies one file, or a directory with all in it.
func (m fileManager) CopyDatastoreFileTask(ctx *simulator.Context, req *types.CopyDatastoreFile_Task) soap.HasFault {
	ref := m.s.run(ctx, m, "CopyDatastoreFile_Task", func(w *work) (types.AnyType, types.BaseMethodFault) {
		from, to, f := m.s.two(req.SourceName, req.DestinationName)
		if f != nil {
			return nil, f
		}
		return nil, m.s.copy(w, from, to, req.Force != nil && *req.Force)
	})
	return &methods.CopyDatastoreFile_TaskBody{Res: &types.CopyDatastoreFile_TaskResponse{Returnval: ref}}
}

func (s *Sim) copy(w *work, from, to place, force bool) types.BaseMethodFault {
	st, err := os.Stat(from.local)
	if err != nil {
		return fileFault(from, err)
	}
	if st.IsDir() {
		if err := os.Mkdir(to.local, 0o755); err != nil && !(force && errors.Is(err, fs.ErrExist)) {
			return fileFault(to, err)
		}
		all, err := os.ReadDir(from.local)
		if err != nil {
			return fileFault(from, err)
		}
		for _, e := range all {
			inner := func(p place) place { return place{p.store, p.rel + "/" + e.Name(), filepath.Join(p.local, e.Name())} }
			if f := s.copy(w, inner(from), inner(to), force); f != nil {
				return f
			}
		}
		return nil
	}
	if !s.locks.take(from.local, w.task.Self.Value, false) {
		return locked(from)
	}
	defer s.locks.drop(from.local, w.task.Self.Value)
	if force {
		if f := s.unlocked(to); f != nil {
			return f
		}
		if err := os.Remove(to.local); err != nil && !errors.Is(err, fs.ErrNotExist) {
			return fileFault(to, err)
		}
	}
	return w.copyFile(from, to)
}

// copyFile copies the data of one file, telling the task how far it is. to must not exist.
func (w *work) copyFile(from, to place) types.BaseMethodFault {
	err := sparsefile.Copy(w.done, from.local, to.local, func(done, total int64) {
		w.progress(int32(done * 100 / max(total, 1)))
	})
	switch {
	case w.done.Err() != nil:
		return &types.RequestCanceled{}
	case err != nil:
		return fileFault(to, err)
	}
	return nil
}
