package volumetest

import (
	"context"
	"crypto/md5"
	"encoding/binary"
	"encoding/json"
	"fmt"
	"io"
	"maps"
	"path"
	"slices"
	"strings"
	"sync"
	"time"

	"vch/internal/fault"
	"vch/portlayer"
)

// minDisk is the least size of a disk (portlayer.DiskSpec).
const minDisk = 4 * portlayer.MiB

// diskCost is what an empty disk takes of a medium here.
const diskCost = 64 * portlayer.KiB

// Disks is a portlayer.Disks in memory, on a medium that can fill up, go read-only and go away. Paths are absolute, with slashes. NewDisks makes
// one. It is what a medium holds, too: stores that are opened on it one after the other see the same files.
type Disks struct {
	mu       sync.Mutex // guards below
	files    map[string][]byte
	extents  map[string]portlayer.Bytes // paths of -flat.vmdk files and their sizes
	dirs     map[string]bool
	total    portlayer.Bytes
	full     bool
	readOnly bool
	gone     string // the directory whose medium is away; "": none
}

// NewDisks makes an empty medium of 1 GiB, with the directory /.
func NewDisks() *Disks {
	return &Disks{files: map[string][]byte{}, extents: map[string]portlayer.Bytes{}, dirs: map[string]bool{"/": true}, total: portlayer.GiB}
}

// Fill makes the medium full, or takes that back.
func (d *Disks) Fill(full bool) {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.full = full
}

// SetReadOnly makes the medium read-only, or takes that back.
func (d *Disks) SetReadOnly(on bool) {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.readOnly = on
}

// Unmount takes all below dir away, and dir with it, until Unmount("").
func (d *Disks) Unmount(dir portlayer.DiskPath) {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.gone = string(dir)
}

// Truncate cuts the extent of the disk at p to n bytes.
func (d *Disks) Truncate(p portlayer.DiskPath, n portlayer.Bytes) {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.extents[extentOf(string(p))] = n
}

// Put writes a file (or with nil data deletes it), whatever it was, as an administrator's hand would. Directories on its way are made.
func (d *Disks) Put(p portlayer.DiskPath, data []byte) {
	d.mu.Lock()
	defer d.mu.Unlock()
	delete(d.extents, string(p))
	delete(d.files, string(p))
	if data != nil {
		d.files[string(p)] = data
		d.mkdirs(path.Dir(string(p)))
	}
}

// Tree lists every file and directory, sorted; a directory ends in a slash.
func (d *Disks) Tree() []string {
	d.mu.Lock()
	defer d.mu.Unlock()
	var all []string
	for p := range d.files {
		all = append(all, p)
	}
	for p := range d.extents {
		all = append(all, p)
	}
	for p := range d.dirs {
		all = append(all, strings.TrimSuffix(p, "/")+"/")
	}
	slices.Sort(all)
	return all
}

func extentOf(descriptor string) string {
	return strings.TrimSuffix(descriptor, ".vmdk") + "-flat.vmdk"
}

// descriptor is what a disk's .vmdk holds here.
type descriptor struct {
	Size  portlayer.Bytes
	Label portlayer.Label
}

// under reports whether p is dir or below it.
func under(p, dir string) bool {
	return p == dir || strings.HasPrefix(p, strings.TrimSuffix(dir, "/")+"/")
}

// usable is how every call begins: NotFound for what is on a medium that is away, Invalid below a file. d.mu is held.
func (d *Disks) usable(ctx context.Context, p string) error {
	if err := ctx.Err(); err != nil {
		return err
	}
	if d.gone != "" && under(p, d.gone) {
		return fault.New(fault.NotFound, "%s is not there", p)
	}
	for dir := path.Dir(p); dir != "/"; dir = path.Dir(dir) {
		if d.isFile(dir) {
			return fault.New(fault.Invalid, "%s is below a file", p)
		}
	}
	return nil
}

// writable is usable for calls that write a new name p.
func (d *Disks) writable(ctx context.Context, p string) error {
	if err := d.usable(ctx, p); err != nil {
		return err
	}
	switch {
	case d.readOnly:
		return fault.New(fault.Denied, "%s is on a read-only medium", p)
	case d.full:
		return fault.New(fault.Unavailable, "no space left for %s", p)
	case len(path.Base(p)) > 255:
		return fault.New(fault.Invalid, "%s: file name too long", p)
	case !d.dirs[path.Dir(p)]:
		return fault.New(fault.NotFound, "no directory %s", path.Dir(p))
	}
	return nil
}

func (d *Disks) isFile(p string) bool {
	_, isFile := d.files[p]
	_, isExtent := d.extents[p]
	return isFile || isExtent
}

func (d *Disks) mkdirs(dir string) {
	for ; !d.dirs[dir]; dir = path.Dir(dir) {
		d.dirs[dir] = true
	}
}

// Create is portlayer.Disks.Create.
func (d *Disks) Create(ctx context.Context, p portlayer.DiskPath, spec portlayer.DiskSpec) error {
	d.mu.Lock()
	defer d.mu.Unlock()
	file, extent := string(p), extentOf(string(p))
	size := (spec.Size + 511) / 512 * 512
	switch {
	case size < minDisk:
		return fault.New(fault.Invalid, "a disk of %d bytes is too small: it has at least %d", spec.Size, minDisk)
	case !isLabel(spec.Label):
		return fault.New(fault.Invalid, "label %q is not 32 hex digits", spec.Label)
	case d.isFile(file) || d.isFile(extent):
		return fault.New(fault.Conflict, "disk %s exists", p)
	}
	if err := d.writable(ctx, extent); err != nil {
		return err
	}
	data, err := json.Marshal(descriptor{Size: size, Label: spec.Label})
	if err != nil {
		return err
	}
	d.files[file], d.extents[extent] = data, size
	return nil
}

// CreateDir is portlayer.Disks.CreateDir.
func (d *Disks) CreateDir(ctx context.Context, dir portlayer.DiskPath, spec portlayer.DirSpec) error {
	d.mu.Lock()
	p := string(dir)
	err := d.writable(ctx, p)
	switch {
	case err != nil:
	case d.dirs[p] || d.isFile(p):
		err = fault.New(fault.Conflict, "%s exists", dir)
	default:
		d.dirs[p] = true
	}
	d.mu.Unlock()
	if err != nil {
		return err
	}
	err = d.Create(ctx, d.Join(dir, spec.Name), spec.Disk)
	d.mu.Lock()
	defer d.mu.Unlock()
	if err != nil {
		delete(d.dirs, p)
		return err
	}
	d.files[path.Join(p, spec.File)] = slices.Clone(spec.Data)
	return nil
}

func isLabel(l portlayer.Label) bool {
	return len(l) == 32 && strings.Trim(string(l), "0123456789abcdef") == ""
}

// Stat is portlayer.Disks.Stat.
func (d *Disks) Stat(ctx context.Context, p portlayer.DiskPath) (portlayer.DiskInfo, error) {
	d.mu.Lock()
	defer d.mu.Unlock()
	if err := d.usable(ctx, string(p)); err != nil {
		return portlayer.DiskInfo{}, err
	}
	data, ok := d.files[string(p)]
	if !ok {
		return portlayer.DiskInfo{}, fault.New(fault.NotFound, "no disk %s", p)
	}
	var desc descriptor
	if err := json.Unmarshal(data, &desc); err != nil {
		return portlayer.DiskInfo{}, fault.New(fault.Conflict, "descriptor %s cannot be read: %w", p, err)
	}
	size, ok := d.extents[extentOf(string(p))]
	if !ok {
		return portlayer.DiskInfo{}, fault.New(fault.NotFound, "disk %s has no extent", p)
	}
	if size < desc.Size {
		return portlayer.DiskInfo{}, fault.New(fault.Conflict, "extent of %s has %d bytes, its descriptor says %d", p, size, desc.Size)
	}
	return portlayer.DiskInfo{Size: desc.Size, Allocated: diskCost, Modified: time.Now()}, nil
}

// Look is portlayer.Disks.Look: a sum of what there is.
func (d *Disks) Look(ctx context.Context, dir portlayer.DiskPath, disks []string, beside string) []portlayer.Look {
	d.mu.Lock()
	defer d.mu.Unlock()
	looks := make([]portlayer.Look, len(disks))
	for i, disk := range disks {
		p := path.Join(string(dir), disk)
		text, ok := d.files[p]
		small, there := d.files[path.Join(path.Dir(p), beside)]
		size, has := d.extents[extentOf(p)]
		if d.usable(ctx, p) != nil || !ok || !there || !has {
			continue
		}
		h := md5.New()
		fmt.Fprintf(h, "%q %q %d", text, small, size)
		sum := h.Sum(nil)
		looks[i] = portlayer.Look{Mark: [9]uint64{binary.LittleEndian.Uint64(sum), binary.LittleEndian.Uint64(sum[8:])}, Allocated: diskCost}
	}
	return looks
}

// Born is portlayer.Disks.Born: a file system is made with its name.
func (*Disks) Born() []portlayer.Label { return nil }

// Delete is portlayer.Disks.Delete.
func (d *Disks) Delete(ctx context.Context, p portlayer.DiskPath) error {
	d.mu.Lock()
	defer d.mu.Unlock()
	if err := d.erasable(ctx, string(p)); err != nil {
		return err
	}
	if _, is := d.extents[string(p)]; is && d.files[strings.TrimSuffix(string(p), "-flat.vmdk")+".vmdk"] != nil {
		return fault.New(fault.Conflict, "%s is the extent of a disk", p)
	}
	delete(d.extents, extentOf(string(p)))
	delete(d.files, string(p))
	return nil
}

// erasable is usable for calls that delete p: a full medium allows that.
func (d *Disks) erasable(ctx context.Context, p string) error {
	if err := d.usable(ctx, p); err != nil {
		return err
	}
	if d.readOnly {
		return fault.New(fault.Denied, "%s is on a read-only medium", p)
	}
	return nil
}

// Import is portlayer.Disks.Import. This medium cannot hold content.
func (d *Disks) Import(context.Context, string, portlayer.DiskPath) error {
	return fault.New(fault.Unsupported, "disks in memory cannot hold an image")
}

// sized gives what the descriptor of the disk at p says. d.mu is held.
func (d *Disks) sized(ctx context.Context, p portlayer.DiskPath) (desc descriptor, err error) {
	if err := d.usable(ctx, string(p)); err != nil {
		return desc, err
	}
	data, ok := d.files[string(p)]
	if _, has := d.extents[extentOf(string(p))]; !ok || !has {
		return desc, fault.New(fault.NotFound, "no disk %s", p)
	}
	return desc, json.Unmarshal(data, &desc)
}

// put writes a descriptor and its extent where no disk is. d.mu is held.
func (d *Disks) put(ctx context.Context, p portlayer.DiskPath, desc descriptor) error {
	file, extent := string(p), extentOf(string(p))
	if d.isFile(file) || d.isFile(extent) {
		return fault.New(fault.Conflict, "disk %s exists", p)
	}
	if err := d.writable(ctx, extent); err != nil {
		return err
	}
	data, err := json.Marshal(desc)
	d.files[file], d.extents[extent] = data, desc.Size
	return err
}

// Copy is portlayer.Disks.Copy.
func (d *Disks) Copy(ctx context.Context, from, to portlayer.DiskPath, progress portlayer.Progressed) error {
	d.mu.Lock()
	defer d.mu.Unlock()
	desc, err := d.sized(ctx, from)
	if err != nil {
		return err
	}
	if progress != nil {
		progress(diskCost, diskCost)
	}
	return d.put(ctx, to, desc)
}

// zeros is an endless reader: a disk in memory holds nothing else.
type zeros struct{}

func (zeros) Read(p []byte) (int, error) { clear(p); return len(p), nil }

// Open is portlayer.Disks.Open.
func (d *Disks) Open(ctx context.Context, p portlayer.DiskPath) (io.ReadCloser, portlayer.DiskInfo, error) {
	info, err := d.Stat(ctx, p)
	return io.NopCloser(io.LimitReader(zeros{}, int64(info.Size))), info, err
}

// CreateFrom is portlayer.Disks.CreateFrom. What it is filled with is counted, and forgotten.
func (d *Disks) CreateFrom(ctx context.Context, p portlayer.DiskPath, size portlayer.Bytes, r io.Reader) error {
	n, err := io.Copy(io.Discard, r)
	if err != nil {
		return err
	}
	if n != int64(size) {
		return fault.New(fault.Invalid, "%d bytes for a disk of %d", n, size)
	}
	d.mu.Lock()
	defer d.mu.Unlock()
	return d.put(ctx, p, descriptor{Size: size})
}

// Grow is portlayer.Disks.Grow.
func (d *Disks) Grow(ctx context.Context, p portlayer.DiskPath, size portlayer.Bytes) error {
	d.mu.Lock()
	defer d.mu.Unlock()
	desc, err := d.sized(ctx, p)
	size = (size + 511) / 512 * 512
	switch {
	case err != nil:
		return err
	case size < desc.Size:
		return fault.New(fault.Invalid, "disk %s has %d bytes, and cannot have %d", p, desc.Size, size)
	case size == desc.Size:
		return nil
	}
	if err := d.writable(ctx, string(p)); err != nil {
		return err
	}
	desc.Size = size
	data, err := json.Marshal(desc)
	d.files[string(p)], d.extents[extentOf(string(p))] = data, size
	return err
}

// Link is portlayer.Disks.Link.
func (d *Disks) Link(ctx context.Context, from, to portlayer.DiskPath) error {
	d.mu.Lock()
	defer d.mu.Unlock()
	desc, err := d.sized(ctx, from)
	if err != nil {
		return err
	}
	return d.put(ctx, to, desc)
}

// MoveDir is portlayer.Disks.MoveDir.
func (d *Disks) MoveDir(ctx context.Context, from, to portlayer.DiskPath) error {
	d.mu.Lock()
	defer d.mu.Unlock()
	src, dst := string(from), string(to)
	if err := d.usable(ctx, src); err != nil {
		return err
	}
	switch {
	case !d.dirs[src]:
		return fault.New(fault.NotFound, "no directory %s", src)
	case d.dirs[dst] || d.isFile(dst):
		return fault.New(fault.Conflict, "%s exists", dst)
	case d.readOnly:
		return fault.New(fault.Denied, "%s is on a read-only medium", src)
	}
	move(d.files, src, dst)
	move(d.extents, src, dst)
	move(d.dirs, src, dst)
	return nil
}

// move gives what is at or below one path another.
func move[V any](m map[string]V, from, to string) {
	for p, v := range maps.Clone(m) {
		if under(p, from) {
			delete(m, p)
			m[to+strings.TrimPrefix(p, from)] = v
		}
	}
}

// Join is portlayer.Disks.Join.
func (d *Disks) Join(dir portlayer.DiskPath, elem ...string) portlayer.DiskPath {
	return portlayer.DiskPath(path.Join(append([]string{string(dir)}, elem...)...))
}

// MakeDir is portlayer.Disks.MakeDir.
func (d *Disks) MakeDir(ctx context.Context, dir portlayer.DiskPath) error {
	d.mu.Lock()
	defer d.mu.Unlock()
	p := string(dir)
	if err := d.usable(ctx, p); err != nil {
		return err
	}
	if d.dirs[p] {
		return nil
	}
	if d.isFile(p) {
		return fault.New(fault.Invalid, "%s is a file", p)
	}
	d.mkdirs(path.Dir(p))
	if err := d.writable(ctx, p); err != nil {
		return err
	}
	d.dirs[p] = true
	return nil
}

// RemoveDir is portlayer.Disks.RemoveDir.
func (d *Disks) RemoveDir(ctx context.Context, dir portlayer.DiskPath) error {
	d.mu.Lock()
	defer d.mu.Unlock()
	err := d.erasable(ctx, string(dir))
	if fault.Is(err, fault.NotFound) {
		return nil
	}
	if err != nil {
		return err
	}
	for p := range d.files {
		if under(p, string(dir)) {
			delete(d.files, p)
		}
	}
	for p := range d.extents {
		if under(p, string(dir)) {
			delete(d.extents, p)
		}
	}
	for p := range d.dirs {
		if under(p, string(dir)) {
			delete(d.dirs, p)
		}
	}
	return nil
}

// List is portlayer.Disks.List.
func (d *Disks) List(ctx context.Context, dir portlayer.DiskPath) ([]string, error) {
	d.mu.Lock()
	defer d.mu.Unlock()
	if err := d.usable(ctx, string(dir)); err != nil {
		return nil, err
	}
	if d.isFile(string(dir)) {
		return nil, fault.New(fault.Invalid, "%s is a file", dir)
	}
	if !d.dirs[string(dir)] {
		return nil, fault.New(fault.NotFound, "no directory %s", dir)
	}
	names := []string{}
	add := func(p string) {
		if p != "/" && path.Dir(p) == string(dir) {
			names = append(names, path.Base(p))
		}
	}
	for p := range d.files {
		add(p)
	}
	for p := range d.extents {
		add(p)
	}
	for p := range d.dirs {
		add(p)
	}
	slices.Sort(names)
	return names, nil
}

// WriteFile is portlayer.Disks.WriteFile.
func (d *Disks) WriteFile(ctx context.Context, p portlayer.DiskPath, data []byte) error {
	d.mu.Lock()
	defer d.mu.Unlock()
	if err := d.writable(ctx, string(p)); err != nil {
		return err
	}
	d.files[string(p)] = slices.Clone(data)
	return nil
}

// ReadFile is portlayer.Disks.ReadFile.
func (d *Disks) ReadFile(ctx context.Context, p portlayer.DiskPath) ([]byte, error) {
	d.mu.Lock()
	defer d.mu.Unlock()
	if err := d.usable(ctx, string(p)); err != nil {
		return nil, err
	}
	data, ok := d.files[string(p)]
	if !ok {
		return nil, fault.New(fault.NotFound, "no file %s", p)
	}
	return slices.Clone(data), nil
}

// Space is portlayer.Disks.Space.
func (d *Disks) Space(ctx context.Context, dir portlayer.DiskPath) (total, free portlayer.Bytes, err error) {
	d.mu.Lock()
	defer d.mu.Unlock()
	p := string(dir)
	if err := d.usable(ctx, p); err != nil {
		return 0, 0, err
	}
	switch {
	case d.isFile(p):
		return 0, 0, fault.New(fault.Invalid, "%s is a file", p)
	case !d.dirs[p]:
		return 0, 0, fault.New(fault.NotFound, "no directory %s", p)
	case d.readOnly:
		return 0, 0, fault.New(fault.Denied, "%s is on a read-only medium", p)
	case d.full:
		return d.total, 0, nil
	}
	return d.total, d.total - diskCost*portlayer.Bytes(len(d.extents)), nil
}
