package vsphere

import (
	"context"
	"maps"
	"path"
	"slices"
	"time"

	"github.com/vmware/govmomi/vim25/types"

	"vch/internal/atonce"
	"vch/internal/fault"
	"vch/internal/vmdkfile"
	"vch/portlayer"
)

// Look is portlayer.Disks.Look, by two searches at once however many disks there are, and by one for a single disk, whose size it does not tell.
func (d *Disks) Look(ctx context.Context, dir portlayer.DiskPath, disks []string, beside string) []portlayer.Look {
	looks := make([]portlayer.Look, len(disks))
	p, err := parsePath(dir)
	if err != nil || len(disks) == 0 {
		return looks
	}
	if len(disks) == 1 {
		from := p.join(path.Dir(disks[0]))
		if d.isYoung(from) { // it has no mark yet
			return looks
		}
		found, err := d.search(ctx, from, "*.vmdk", beside)
		looks[0].Gone = fault.Is(err, fault.NotFound)
		mark(looks, p, disks, beside, map[string]map[string]types.BaseFileInfo{from.path: byName(found)})
		return looks
	}
	var all, sizes []types.HostDatastoreBrowserSearchResults
	var ferr, serr error
	searches := []func(){
		func() { all, ferr = d.searchAll(ctx, p, true, searchSpec("*.vmdk", beside)) },
		func() { sizes, serr = d.searchAll(ctx, p, true, sizeSpec()) },
	}
	atonce.Do(len(searches), len(searches), func(i int) { searches[i]() })
	if ferr != nil {
		return looks
	}
	seen := map[string]map[string]types.BaseFileInfo{} // by directory and name
	more := map[string]bool{}                          // directories that have disks in those below them
	for _, r := range all {
		in, err := parsePath(portlayer.DiskPath(r.FolderPath))
		if err != nil {
			continue
		}
		seen[in.path] = byName(r.File)
		if !slices.ContainsFunc(r.File, func(f types.BaseFileInfo) bool { return path.Ext(f.GetFileInfo().Path) == ".vmdk" }) {
			continue
		}
		for at := in.dir(); len(at.path) > len(p.path); at = at.dir() {
			more[at.path] = true
		}
	}
	mark(looks, p, disks, beside, seen)
	for i, disk := range disks {
		at := p.join(disk)
		looks[i].Alone = seen[at.dir().path] != nil && !more[at.dir().path]
	}
	if serr != nil {
		return looks
	}
	capacity := map[string]portlayer.Bytes{}
	for _, r := range sizes {
		in, err := parsePath(portlayer.DiskPath(r.FolderPath))
		for _, f := range r.File {
			if disk, is := f.(*types.VmDiskFileInfo); is && err == nil {
				capacity[in.join(disk.Path).path] = portlayer.Bytes(disk.CapacityKb) * portlayer.KiB
			}
		}
	}
	for i, disk := range disks {
		if looks[i].Mark != [9]uint64{} {
			looks[i].Size = capacity[p.join(disk).path]
		}
	}
	return looks
}

func byName(files []types.BaseFileInfo) map[string]types.BaseFileInfo {
	all := map[string]types.BaseFileInfo{}
	for _, f := range files {
		all[f.GetFileInfo().Path] = f
	}
	return all
}

// mark gives those disks a mark whose files were found, by directory and name, and have not changed lately.
func mark(looks []portlayer.Look, p datastorePath, disks []string, beside string, seen map[string]map[string]types.BaseFileInfo) {
	type files struct{ descriptor, extent, small types.BaseFileInfo }
	now := time.Now()
	for i, disk := range disks {
		at := p.join(disk)
		in := seen[at.dir().path]
		f := files{in[at.base()], in[vmdkfile.Extent(at.base())], in[beside]}
		if f.descriptor == nil || f.small == nil {
			continue
		}
		mark, ok := settledMark(now, f.descriptor, f.small)
		if !ok {
			continue
		}
		if f.extent != nil {
			mark[6] = uint64(f.extent.GetFileInfo().FileSize)
		}
		looks[i].Mark, looks[i].Allocated = mark, portlayer.Bytes(f.descriptor.GetFileInfo().FileSize)
	}
}

// settledFor is how old a change has to be before the next is sure to look different: datastores tell times in seconds, and their clock is not this host's.
const settledFor = time.Minute

// young notes that a directory was made now.
func (d *Disks) young(dir datastorePath) {
	d.mu.Lock()
	defer d.mu.Unlock()
	maps.DeleteFunc(d.made, func(_ datastorePath, at time.Time) bool { return time.Since(at) > settledFor })
	d.made[dir] = time.Now()
}

func (d *Disks) isYoung(dir datastorePath) bool {
	d.mu.Lock()
	defer d.mu.Unlock()
	at, ok := d.made[dir]
	return ok && time.Since(at) < settledFor
}

// settledMark is what two files look like that were not changed lately.
func settledMark(now time.Time, descriptor, small types.BaseFileInfo) (mark [9]uint64, ok bool) {
	for i, f := range []types.BaseFileInfo{descriptor, small} {
		info := f.GetFileInfo()
		if info.Modification == nil || now.Sub(*info.Modification) < settledFor {
			return [9]uint64{}, false
		}
		mark[2*i] = uint64(info.Modification.UnixNano())
		if i == 1 {
			mark[2*i+1] = uint64(info.FileSize)
		}
	}
	mark[8] = 1
	return mark, true
}
