package vsphere

import (
	"context"
	"encoding/hex"
	"errors"
	"io"
	"net/http"
	"os"
	"strings"
	"time"

	"github.com/vmware/govmomi/vim25"
	"github.com/vmware/govmomi/vim25/methods"
	"github.com/vmware/govmomi/vim25/types"

	"vch/internal/atonce"
	"vch/internal/fault"
	"vch/internal/pause"
	"vch/internal/vmdkfile"
	"vch/portlayer"
)

// SizeUnit is what the size of a disk is a multiple of, in bytes: vSphere counts capacities in KiB.
const SizeUnit = 1024

// maxDisk bounds a disk, in bytes: what ext4 holds with blocks of 4 KiB. vSphere's own bound, 62 TiB, is larger.
const maxDisk = vmdkfile.MaxDisk

// rounded is a size as a disk has it.
func rounded(size portlayer.Bytes) portlayer.Bytes {
	return (size + SizeUnit - 1) / SizeUnit * SizeUnit
}

// checkedSize is a new disk's.
func checkedSize(spec portlayer.DiskSpec) (portlayer.Bytes, error) {
	size := rounded(spec.Size)
	if spec.Size < portlayer.MinDisk || size > maxDisk {
		return 0, fault.New(fault.Invalid, "a disk of %d bytes cannot be made: the least is %d MiB, the most %d TiB", spec.Size, portlayer.MinDisk/portlayer.MiB, int64(maxDisk>>40))
	}
	if raw, err := hex.DecodeString(string(spec.Label)); err != nil || len(raw) != 16 {
		return 0, fault.New(fault.Invalid, "a label is 32 hex digits, not %q", spec.Label)
	}
	return size, nil
}

// Born is portlayer.Disks.Born: a new disk is a copy, and has the name of what it was copied from.
func (d *Disks) Born() []portlayer.Label { return []portlayer.Label{goldenLabel} }

// Create is portlayer.Disks.Create.
func (d *Disks) Create(ctx context.Context, file portlayer.DiskPath, spec portlayer.DiskSpec) error {
	size, err := checkedSize(spec)
	if err != nil {
		return err
	}
	p, err := parsePath(file)
	if err != nil {
		return err
	}
	return d.place(ctx, p, func(beside datastorePath) error { return d.newDisk(ctx, beside, size) })
}

// newDisk makes an empty disk: a copy of a golden one, made longer.
func (d *Disks) newDisk(ctx context.Context, at datastorePath, size portlayer.Bytes) error {
	from, have, err := d.golden.disk(ctx, d, at.store, size)
	if err != nil {
		return err
	}
	err = d.copyDisk(ctx, from, at, nil)
	if fault.Is(err, fault.NotFound) && d.missing(ctx, from) { // somebody has removed it
		d.golden.forget(from)
		if from, have, err = d.golden.disk(ctx, d, at.store, size); err == nil {
			err = d.copyDisk(ctx, from, at, nil)
		}
	}
	if err != nil {
		return err
	}
	if have == size {
		return nil
	}
	return d.extend(ctx, at, size)
}

// place makes a disk by fill, under a name that nobody has, and then gives it its own, so that a call of which no answer comes leaves nothing that is taken for a disk. Conflict if one of
// its files is there.
func (d *Disks) place(ctx context.Context, p datastorePath, fill func(beside datastorePath) error) error {
	found, err := d.search(ctx, p.dir(), p.base(), vmdkfile.Extent(p.base()))
	if err != nil {
		return err
	}
	if len(found) > 0 {
		return fault.New(fault.Conflict, "disk %s exists already", p)
	}
	d.sweep(ctx, p.dir())
	return d.afresh(ctx, func() error {
		beside := p.dir().join(d.unfinished(".vmdk"))
		err := fill(beside)
		if err == nil {
			err = d.moveDisk(ctx, beside, p)
		}
		if err != nil {
			d.clear(beside, d.discard)
		}
		return err
	})
}

// clearFor is how long it is tried to clear away what a task may be writing still that is not wanted any more.
const clearFor = 2 * time.Minute

// clear removes what was made under a name that nobody knows, while nobody waits; what cannot be removed is the next process's (sweep).
func (d *Disks) clear(p datastorePath, remove func(context.Context, datastorePath) error) {
	d.work.Go(func() {
		ctx, cancel := context.WithTimeout(d.closing, clearFor)
		defer cancel()
		for wait := backoff; remove(ctx, p) != nil || d.comes(ctx, p); wait = min(2*wait, maxBackoff) {
			if pause.For(ctx, wait) != nil {
				return
			}
		}
	})
}

// comes says whether something is there that was removed: a task that nobody waited for has made it.
func (d *Disks) comes(ctx context.Context, p datastorePath) bool {
	if pause.For(ctx, backoff) != nil {
		return false
	}
	found, err := d.search(ctx, p.dir(), p.base(), vmdkfile.Extent(p.base()))
	return !(err == nil && len(found) == 0 || fault.Is(err, fault.NotFound))
}

// discard removes what there is of a disk that may be none: an extent without its descriptor, where an upload broke, is nothing to the server's tasks for disks.
func (d *Disks) discard(ctx context.Context, p datastorePath) error {
	_ = d.deleteDisk(ctx, p) // whatever it says, the files tell
	return errors.Join(d.remove(ctx, p.dir().join(vmdkfile.Extent(p.base()))), d.remove(ctx, p))
}

// errLost is that no answer came, so that what was done is not known.
var errLost = errors.New("no answer came")

// afresh does work that makes something under a name that nobody has, again where it is not known what came of it.
func (d *Disks) afresh(ctx context.Context, work func() error) error {
	for n := 1; ; n++ {
		err := work()
		if err == nil || !errors.Is(err, errLost) || n == callTries {
			return err
		}
		if err := pause.For(ctx, time.Duration(n)*backoff); err != nil {
			return err
		}
	}
}

// once runs a task that must not be started twice. errLost is in its error when no answer came.
func (d *Disks) once(ctx context.Context, start func(ctx context.Context, c *vim25.Client) (types.ManagedObjectReference, error), progress portlayer.Progressed) error {
	_, err := d.w.task(ctx, start, progress)
	if err != nil && unreached(err) {
		return fault.New(fault.Unavailable, "%w: %w", errLost, translated(d.s.server.address(), err))
	}
	return translated(d.s.server.address(), err)
}

// thin is what copies are: without it they are preallocated (VirtualDiskManager.CopyVirtualDisk_Task, destSpec). Not a FileBackedVirtualDiskSpec, which has a capacity: a copy's is
// its source's.
func thin() *types.VirtualDiskSpec {
	return &types.VirtualDiskSpec{DiskType: string(types.VirtualDiskTypeThin), AdapterType: string(types.VirtualDiskAdapterTypeLsiLogic)}
}

// copyDisk makes the disk to, thin, as a copy of from.
func (d *Disks) copyDisk(ctx context.Context, from, to datastorePath, progress portlayer.Progressed) error {
	return d.once(ctx, func(ctx context.Context, c *vim25.Client) (types.ManagedObjectReference, error) {
		res, err := methods.CopyVirtualDisk_Task(ctx, c, &types.CopyVirtualDisk_Task{This: *c.ServiceContent.VirtualDiskManager, SourceName: from.String(), SourceDatacenter: &d.datacenter,
			DestName: to.String(), DestDatacenter: &d.datacenter, DestSpec: thin(), Force: types.NewBool(false)})
		if err != nil {
			return types.ManagedObjectReference{}, err
		}
		return res.Returnval, nil
	}, progress)
}

// extend makes a disk that no machine has open longer, and fills no more with zeros than its kind asks for; as long already: nothing happens.
func (d *Disks) extend(ctx context.Context, p datastorePath, size portlayer.Bytes) error {
	return d.change(ctx, func(ctx context.Context, c *vim25.Client) (types.ManagedObjectReference, error) {
		res, err := methods.ExtendVirtualDisk_Task(ctx, c, &types.ExtendVirtualDisk_Task{This: *c.ServiceContent.VirtualDiskManager, Name: p.String(), Datacenter: &d.datacenter,
			NewCapacityKb: int64(size / SizeUnit), EagerZero: types.NewBool(false)})
		if err != nil {
			return types.ManagedObjectReference{}, err
		}
		return res.Returnval, nil
	}, nil)
}

// moveDisk gives a disk another path on the same datastore.
func (d *Disks) moveDisk(ctx context.Context, from, to datastorePath) error {
	err := d.change(ctx, func(ctx context.Context, c *vim25.Client) (types.ManagedObjectReference, error) {
		res, err := methods.MoveVirtualDisk_Task(ctx, c, &types.MoveVirtualDisk_Task{This: *c.ServiceContent.VirtualDiskManager, SourceName: from.String(), SourceDatacenter: &d.datacenter,
			DestName: to.String(), DestDatacenter: &d.datacenter, Force: types.NewBool(false)})
		if err != nil {
			return types.ManagedObjectReference{}, err
		}
		return res.Returnval, nil
	}, func(err error) bool { return isMissing(err) && !d.missing(ctx, to) })
	if fault.Is(err, fault.Conflict) {
		return fault.New(fault.Conflict, "disk %s exists already", to)
	}
	return err
}

// deleteDisk deletes a disk; missing: nothing happens.
func (d *Disks) deleteDisk(ctx context.Context, p datastorePath) error {
	return d.away(ctx, func(ctx context.Context, c *vim25.Client) (types.ManagedObjectReference, error) {
		res, err := methods.DeleteVirtualDisk_Task(ctx, c, &types.DeleteVirtualDisk_Task{This: *c.ServiceContent.VirtualDiskManager, Name: p.String(), Datacenter: &d.datacenter})
		if err != nil {
			return types.ManagedObjectReference{}, err
		}
		return res.Returnval, nil
	})
}

// CreateDir is portlayer.Disks.CreateDir: all is made in a directory whose name nobody knows, which then gets its own.
func (d *Disks) CreateDir(ctx context.Context, dir portlayer.DiskPath, spec portlayer.DirSpec) error {
	size, err := checkedSize(spec.Disk)
	if err != nil {
		return err
	}
	p, err := parsePath(dir)
	if err != nil {
		return err
	}
	d.sweep(ctx, p.dir())
	return d.afresh(ctx, func() (err error) {
		stage := p.dir().join(d.unfinished(""))
		defer func() {
			if err != nil {
				d.clear(stage, d.remove)
			}
		}()
		if err := d.makeIn(ctx, stage); err != nil {
			return err
		}
		var derr, ferr error
		parts := []func(){
			func() { derr = d.newDisk(ctx, stage.join(spec.Name), size) },
			func() { ferr = d.putBytes(ctx, stage.join(spec.File), spec.Data) },
		}
		atonce.Do(len(parts), len(parts), func(i int) { parts[i]() })
		if derr != nil {
			return derr
		}
		if ferr != nil {
			return ferr
		}
		if err = d.move(ctx, stage, p, false); err == nil {
			d.changed(p.dir())
			d.young(p)
		}
		if fault.Is(err, fault.Conflict) {
			err = fault.New(fault.Conflict, "%s exists already", dir)
		}
		return err
	})
}

// makeIn makes a directory in one that has to be there.
func (d *Disks) makeIn(ctx context.Context, p datastorePath) error {
	return d.s.read(ctx, func(ctx context.Context, c *vim25.Client) error {
		_, err := methods.MakeDirectory(ctx, c, &types.MakeDirectory{This: *c.ServiceContent.FileManager, Name: p.String(), Datacenter: &d.datacenter, CreateParentDirectories: types.NewBool(false)})
		if isA(err, new(types.FileAlreadyExists)) { // nobody else knows the name
			return nil
		}
		return err
	})
}

// Stat is portlayer.Disks.Stat.
func (d *Disks) Stat(ctx context.Context, file portlayer.DiskPath) (portlayer.DiskInfo, error) {
	_, info, err := d.locate(ctx, file)
	return info, err
}

// locate reads a descriptor and checks that the extent is as it says.
func (d *Disks) locate(ctx context.Context, file portlayer.DiskPath) (extent datastorePath, info portlayer.DiskInfo, err error) {
	p, err := parsePath(file)
	if err != nil {
		return extent, info, err
	}
	// Almost every extent has the name that belongs to its descriptor's, so that all can be asked for at once.
	var text []byte
	var found []types.BaseFileInfo
	var ferr, lerr error
	var flat int64
	usual := vmdkfile.Extent(p.base())
	questions := []func(){
		func() { text, err = d.getBytes(ctx, p) },
		func() { found, ferr = d.search(ctx, p.dir(), p.base(), usual) },
		func() { flat, lerr = d.length(ctx, p.dir().join(usual)) },
	}
	atonce.Do(len(questions), len(questions), func(i int) { questions[i]() })
	if fault.Is(err, fault.NotFound) {
		return extent, info, fault.New(fault.NotFound, "disk %s is missing", file)
	}
	if err != nil {
		return extent, info, err
	}
	name, size, err := vmdkfile.Parse(string(text))
	if err != nil {
		return extent, info, fault.Wrap("use disk", string(file), err)
	}
	extent = p.dir().join(name)
	if name != usual { // another path of the same disk (Link)
		found, ferr = d.search(ctx, p.dir(), p.base(), name)
		flat, lerr = d.length(ctx, extent)
	}
	if ferr != nil {
		return extent, info, ferr
	}
	length := int64(-1)
	for _, f := range found {
		i := f.GetFileInfo()
		if _, is := f.(*types.VmDiskFileInfo); is && i.Path == p.base() {
			info.Allocated = portlayer.Bytes(i.FileSize) // of a disk it is what it takes (VmDiskFileInfo)
			if i.Modification != nil {
				info.Modified = *i.Modification
			}
		} else if i.Path == name {
			length = i.FileSize
			if i.Modification != nil && i.Modification.After(info.Modified) {
				info.Modified = *i.Modification
			}
		}
	}
	if length < 0 { // a browser may show a disk as one file
		if length, err = flat, lerr; fault.Is(err, fault.NotFound) {
			return extent, info, fault.New(fault.NotFound, "disk %s has lost its extent %s", file, name)
		} else if err != nil {
			return extent, info, err
		}
	}
	if length < size {
		return extent, info, fault.New(fault.Conflict, "disk %s is damaged: its extent %s has %d bytes, and its descriptor says %d; restore it from a backup", file, name, length, size)
	}
	info.Size = portlayer.Bytes(size)
	return extent, info, nil
}

// Delete is portlayer.Disks.Delete. A disk that shares its extent with another path of it (Link) loses its descriptor alone.
func (d *Disks) Delete(ctx context.Context, file portlayer.DiskPath) error {
	p, err := parsePath(file)
	if err != nil {
		return err
	}
	found, err := d.search(ctx, p.dir(), "*.vmdk")
	if fault.Is(err, fault.NotFound) {
		return nil
	}
	if err != nil {
		return err
	}
	own, err := d.described(ctx, p)
	if err != nil {
		return err
	}
	there, of, err := d.extents(ctx, p, found)
	if err != nil {
		return err
	}
	if other := of[p.base()]; other != "" {
		return fault.New(fault.Conflict, "%s is the extent of disk %s: delete that", file, p.dir().join(other))
	}
	extent := own
	if own == "" { // what has its extent's name may be something else
		extent = vmdkfile.Extent(p.base())
		if name, err := d.described(ctx, p.dir().join(extent)); err != nil {
			return err
		} else if name != "" {
			return d.remove(ctx, p)
		}
	}
	if of[extent] != "" {
		return d.remove(ctx, p)
	}
	if own == vmdkfile.Extent(p.base()) && there[own] {
		return d.deleteDisk(ctx, p)
	}
	if err := d.remove(ctx, p.dir().join(extent)); err != nil {
		return err
	}
	return d.remove(ctx, p)
}

// extents says of files found beside p which are there, and of which disk each is the extent; p itself is not asked.
func (d *Disks) extents(ctx context.Context, p datastorePath, found []types.BaseFileInfo) (there map[string]bool, of map[string]string, err error) {
	there, of = map[string]bool{}, map[string]string{}
	var late []string // names as extents have them: what a descriptor names as one is not read
	read := func(name string) error {
		extent, err := d.described(ctx, p.dir().join(name))
		if err == nil && extent != "" {
			of[extent] = name
		}
		return err
	}
	for _, f := range found {
		name := f.GetFileInfo().Path
		there[name] = true
		switch {
		case name == p.base():
		case isExtentName(name):
			late = append(late, name)
		default:
			if err := read(name); err != nil {
				return nil, nil, err
			}
		}
	}
	for _, name := range late {
		if of[name] != "" || name == vmdkfile.Extent(p.base()) { // p's is the caller's to look at
			continue
		}
		if err := read(name); err != nil {
			return nil, nil, err
		}
	}
	return there, of, nil
}

func isExtentName(name string) bool { return strings.HasSuffix(name, "-flat.vmdk") }

// described is the name of the extent that the descriptor at p gives; "" if there is none. An extent is larger than any descriptor, and its text is its guest's.
func (d *Disks) described(ctx context.Context, p datastorePath) (extent string, err error) {
	var text []byte
	size := int64(0)
	if isExtentName(p.base()) { // likely gigabytes
		size, err = d.length(ctx, p)
	}
	if err == nil && size <= smallFile {
		text, err = d.getBytes(ctx, p)
	}
	if fault.Is(err, fault.NotFound) || fault.Is(err, fault.Conflict) {
		return "", nil
	}
	if err != nil {
		return "", err
	}
	extent, _, err = vmdkfile.Parse(string(text))
	if err != nil {
		return "", nil // something else
	}
	return extent, nil
}

// Import is portlayer.Disks.Import.
func (d *Disks) Import(ctx context.Context, local string, file portlayer.DiskPath) error {
	st, err := os.Stat(local)
	if err != nil {
		return fault.As(fault.NotFound, err)
	}
	if st.Size() == 0 {
		return fault.New(fault.Invalid, "%s is empty: not a disk", local)
	}
	p, err := parsePath(file)
	if err != nil {
		return err
	}
	size := (st.Size() + vmdkfile.Sector - 1) / vmdkfile.Sector * vmdkfile.Sector
	err = d.place(ctx, p, func(beside datastorePath) error {
		return d.upload(ctx, beside, size, func() (io.Reader, error) {
			f, err := os.Open(local)
			if err != nil {
				return nil, err
			}
			return io.LimitReader(io.MultiReader(f, zeros{}), size), nil // closed with the request that reads it to its end, or by the collector
		})
	})
	if err != nil {
		return err
	}
	return os.Remove(local)
}

// zeros reads as zeros for ever.
type zeros struct{}

func (zeros) Read(p []byte) (int, error) {
	clear(p)
	return len(p), nil
}

// upload writes a disk's extent and then its descriptor.
func (d *Disks) upload(ctx context.Context, p datastorePath, size int64, body func() (io.Reader, error)) error {
	extent := vmdkfile.Extent(p.base())
	if err := d.put(ctx, p.dir().join(extent), body, size); err != nil {
		return err
	}
	return d.putBytes(ctx, p, []byte(vmdkfile.OnDatastore(extent, size)))
}

// Copy is portlayer.Disks.Copy.
func (d *Disks) Copy(ctx context.Context, from, to portlayer.DiskPath, progress portlayer.Progressed) error {
	_, info, err := d.locate(ctx, from)
	if err != nil {
		return err
	}
	source, err := parsePath(from)
	if err != nil {
		return err
	}
	target, err := parsePath(to)
	if err != nil {
		return err
	}
	if vm := d.holder(source); vm != nil {
		return fault.New(fault.InUse, "machine %s has disk %s open, and vSphere copies no disk that is: stop it first", vm.name, from)
	}
	bytes := func(done, _ portlayer.Bytes) {
		if progress != nil {
			progress(info.Size/100*done, info.Size)
		}
	}
	if err := d.place(ctx, target, func(beside datastorePath) error { return d.copyDisk(ctx, source, beside, bytes) }); err != nil {
		return err
	}
	bytes(100, 100)
	if progress != nil {
		progress(info.Size, info.Size)
	}
	return nil
}

// holder is the machine of this VCH that is on and has a disk, nil if there is none.
func (d *Disks) holder(p datastorePath) *vmState {
	for _, vm := range d.w.all() {
		if !vm.on() {
			continue
		}
		for _, have := range vm.def.Disks {
			if at, err := parsePath(have.File); err == nil && have.File != "" && at == p {
				return vm
			}
		}
	}
	return nil
}

// Open is portlayer.Disks.Open.
func (d *Disks) Open(ctx context.Context, file portlayer.DiskPath) (io.ReadCloser, portlayer.DiskInfo, error) {
	extent, info, err := d.locate(ctx, file)
	if err != nil {
		return nil, info, err
	}
	var body io.ReadCloser
	err = d.file(ctx, http.MethodGet, extent, nil, 0, func(res *http.Response) error { body = res.Body; return nil })
	if err != nil {
		return nil, info, err
	}
	return bounded{io.LimitReader(body, int64(info.Size)), body}, info, nil
}

// bounded is a file of which no more is read than the descriptor says.
type bounded struct {
	io.Reader
	io.Closer
}

// CreateFrom is portlayer.Disks.CreateFrom.
func (d *Disks) CreateFrom(ctx context.Context, file portlayer.DiskPath, size portlayer.Bytes, r io.Reader) error {
	if size <= 0 || size%vmdkfile.Sector != 0 || size > maxDisk {
		return fault.New(fault.Invalid, "a disk cannot have %d bytes", size)
	}
	p, err := parsePath(file)
	if err != nil {
		return err
	}
	if err := d.s.read(ctx, awake); err != nil { // what r gives comes once, so that the session has to be there
		return err
	}
	exact := &exactReader{r: r, left: int64(size)}
	begun := false
	err = d.place(ctx, p, func(beside datastorePath) error {
		if begun {
			return fault.New(fault.Unavailable, "the upload of disk %s was cut off", file)
		}
		begun = true
		if err := d.upload(ctx, beside, int64(size), func() (io.Reader, error) { return exact, nil }); err != nil {
			if exact.err != nil {
				return exact.err
			}
			return err
		}
		return exact.end()
	})
	return err
}

// awake is a call that does nothing but want a session.
func awake(ctx context.Context, c *vim25.Client) error {
	_, err := methods.GetCurrentTime(ctx, c)
	return err
}

// exactReader gives just as many bytes as it should, or says that there were others.
type exactReader struct {
	r    io.Reader
	left int64
	err  error
}

func (e *exactReader) wrong() error {
	e.err = fault.New(fault.Invalid, "the disk does not have the bytes that it should have: it was cut off on its way")
	return e.err
}

func (e *exactReader) Read(p []byte) (int, error) {
	if e.left == 0 {
		return 0, io.EOF
	}
	n, err := e.r.Read(p[:min(int64(len(p)), e.left)])
	e.left -= int64(n)
	if err == io.EOF && e.left > 0 {
		return n, e.wrong()
	}
	if err == io.EOF {
		err = nil
	}
	return n, err
}

// end is an error if more is there.
func (e *exactReader) end() error {
	if n, err := io.ReadFull(e.r, make([]byte, 1)); n > 0 || err != io.EOF {
		return e.wrong()
	}
	return nil
}

// Grow is portlayer.Disks.Grow. The disk of a machine that is on grows by way of the machine.
func (d *Disks) Grow(ctx context.Context, file portlayer.DiskPath, size portlayer.Bytes) error {
	_, info, err := d.locate(ctx, file)
	if err != nil {
		return err
	}
	p, err := parsePath(file)
	if err != nil {
		return err
	}
	size = rounded(size)
	switch {
	case size < info.Size:
		return fault.New(fault.Invalid, "a disk of %d bytes cannot become one of %d: it would lose what is at its end", info.Size, size)
	case size > maxDisk:
		return fault.New(fault.Invalid, "a disk of %d bytes cannot be made: the most is %d TiB", size, int64(maxDisk>>40))
	case size == info.Size:
		return nil
	}
	if vm := d.holder(p); vm != nil {
		return d.growIn(ctx, vm, p, size)
	}
	return d.extend(ctx, p, size)
}

// growIn makes a disk of a machine that is on longer.
func (d *Disks) growIn(ctx context.Context, vm *vmState, p datastorePath, size portlayer.Bytes) error {
	read, err := d.w.fetch(ctx, []types.ManagedObjectReference{vm.ref}) // without the machine's turn: what is noted of it may be newer
	if err != nil {
		return err
	}
	if vm = read[vm.ref]; vm == nil {
		return d.extend(ctx, p, size) // it is gone
	}
	for _, dev := range vm.devices {
		disk, ok := dev.(*types.VirtualDisk)
		if !ok || fileOf(disk) != p.String() {
			continue
		}
		longer := *disk
		longer.CapacityInBytes, longer.CapacityInKB = int64(size), int64(size/SizeUnit)
		spec := types.VirtualMachineConfigSpec{DeviceChange: []types.BaseVirtualDeviceConfigSpec{&types.VirtualDeviceConfigSpec{Operation: types.VirtualDeviceConfigSpecOperationEdit, Device: &longer}}}
		return d.change(ctx, func(ctx context.Context, c *vim25.Client) (types.ManagedObjectReference, error) {
			res, err := methods.ReconfigVM_Task(ctx, c, &types.ReconfigVM_Task{This: vm.ref, Spec: spec})
			if err != nil {
				return types.ManagedObjectReference{}, err
			}
			return res.Returnval, nil
		}, nil)
	}
	return fault.New(fault.Internal, "machine %s has no disk %s", vm.name, p)
}

// Link is portlayer.Disks.Link: a second descriptor of the same extent, with all that vSphere wrote into the first.
func (d *Disks) Link(ctx context.Context, from, to portlayer.DiskPath) error {
	extent, _, err := d.locate(ctx, from)
	if err != nil {
		return err
	}
	text, err := d.ReadFile(ctx, from)
	if err != nil {
		return err
	}
	p, err := parsePath(to)
	if err != nil {
		return err
	}
	if p.dir() != extent.dir() {
		return fault.New(fault.Unsupported, "disk %s cannot have a second path in another directory", from)
	}
	found, err := d.search(ctx, p.dir(), p.base())
	if err != nil {
		return err
	}
	if len(found) > 0 {
		return fault.New(fault.Conflict, "disk %s exists already", to)
	}
	return d.WriteFile(ctx, to, text)
}
