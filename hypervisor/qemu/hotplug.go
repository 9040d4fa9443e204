package qemu

import (
	"context"
	"encoding/json"
	"errors"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"vch/internal/atomicfile"
	"vch/internal/fault"
	"vch/internal/qmp"
	"vch/internal/undo"
	"vch/portlayer"
)

// Hot-plug. The definition is written first, and says what a running machine is to have: a change that was cut off is finished by the next one, which compares it
// with what QEMU has. A disk comes as a descriptor over QMP (add-fd), opened here, as those of a cold start are: QEMU's user has the right to open nothing.

// plugLimit bounds all that is asked of QEMU in one change, so that one that hangs does not keep the machine from being switched off.
const plugLimit = time.Minute

// luns is how many logical units the disks of a running machine take turns on. Each new disk takes the next, so that the guest has long noticed the end of the one
// before. Then come those of a rehearsal, and the seats; below 256 a number is its own address (SAM-5 4.7, peripheral device addressing).
const (
	luns          = 240
	rehearsalLUNs = 8
)

// unchangeable refuses what a machine that is on cannot do.
func unchangeable(changes []portlayer.DeviceChange) error {
	seen := map[string]bool{}
	for _, c := range changes {
		if seen[c.Disk.Serial] {
			return fault.New(fault.Unsupported, "disk %s cannot be removed and added again in one change of a machine that is on; make it two", c.Disk.Serial)
		}
		seen[c.Disk.Serial] = true
	}
	return nil
}

// replug makes the disks of the running process p what def says, and def the definition in place of was; all or nothing.
func (m *machine) replug(ctx context.Context, p *process, def, was definition) (err error) {
	for _, d := range def.Disks {
		if d.File == "" && !owns(was, d.Serial) {
			return fault.New(fault.Unsupported, "a machine makes disks of its own only while it is off")
		}
	}
	for _, d := range was.Disks {
		if d.File == "" && !owns(def, d.Serial) {
			return fault.New(fault.Unsupported, "a machine deletes disks of its own only while it is off")
		}
	}
	ctx, q, done, err := p.change(ctx)
	if err != nil {
		return err
	}
	defer done()
	var back undo.Stack
	defer func() {
		if err == nil {
			return
		}
		uerr := back.Run(ctx)
		select {
		case <-q.Ended(): // it closed its control socket: it is ending, and its disks with it
			select {
			case <-p.ended:
				err = fault.New(fault.Unavailable, "the machine ended meanwhile: %w", err)
				return
			case <-ctx.Done():
			}
		default:
		}
		err = errors.Join(err, uerr)
	}()
	have, err := plugged(ctx, q)
	if err != nil {
		return err
	}
	if len(have) == 0 && len(was.Disks) > 0 {
		return errNameless
	}
	// What can be wrong with a disk is found out before anything is done.
	var add, remove []drive
	for _, d := range def.Disks {
		if _, ok := have[d.Serial]; !ok {
			v, err := m.drive(d)
			if err != nil {
				return err
			}
			add = append(add, v)
		}
	}
	for serial, lun := range have {
		if !slices.ContainsFunc(def.Disks, func(d portlayer.Disk) bool { return d.Serial == serial }) {
			v := drive{serial: serial}
			if i := slices.IndexFunc(was.Disks, func(d portlayer.Disk) bool { return d.Serial == serial }); i >= 0 {
				if v, err = m.drive(was.Disks[i]); err != nil { // its file is away: it can go, and would not come back
					v = drive{serial: serial}
				}
			}
			if v.lun = lun; lun >= firstSeat {
				v.seat = seats[lun-firstSeat]
			}
			remove = append(remove, v)
		}
	}
	def.NextLUN = was.NextLUN
	for i := range add {
		add[i].lun = freeLUN(have, &def.NextLUN)
		have[add[i].serial] = add[i].lun
	}
	if err := m.write(def); err != nil {
		return err
	}
	back.Push(func(context.Context) error { was.NextLUN = def.NextLUN; return m.write(was) })
	for _, v := range add {
		if err := v.plug(ctx, q); err != nil {
			return err
		}
		back.Push(func(ctx context.Context) error { return v.unplug(ctx, q) })
	}
	for _, v := range remove {
		if err := v.unplug(ctx, q); err != nil {
			return err
		}
		if v.file != "" {
			back.Push(func(ctx context.Context) error { return v.plug(ctx, q) })
		}
	}
	return nil
}

// change is control for a change, which goes to its end whether its caller stays or not, within plugLimit: that of the context that it gives.
func (p *process) change(ctx context.Context) (limited context.Context, q *qmp.Client, done func(), err error) {
	limited, cancel := context.WithTimeout(context.WithoutCancel(ctx), plugLimit)
	q, end, err := p.control(limited)
	if err != nil {
		cancel()
		return nil, nil, nil, err
	}
	return limited, q, func() { end(); cancel() }, nil
}

// control is the process's control socket, for one piece of work; it breaks when ctx ends.
func (p *process) control(ctx context.Context) (q *qmp.Client, done func(), err error) {
	conn, err := dial(ctx, p.home(), qmpSocket)
	if err != nil {
		return nil, nil, err
	}
	stop := context.AfterFunc(ctx, func() { conn.Close() })
	if q, err = qmp.Connect(ctx, conn); err != nil {
		stop()
		return nil, nil, fault.New(fault.Unavailable, "cannot reach the machine: %w", err)
	}
	return q, func() { stop(); q.Close() }, nil
}

// freeLUN takes the next unit that no disk has.
func freeLUN(have map[string]int, next *int) int {
	taken := map[int]bool{}
	for _, lun := range have {
		taken[lun] = true
	}
	for taken[*next%luns] { // there are at most maxDisks
		*next++
	}
	lun := *next % luns
	*next = lun + 1
	return lun
}

// write makes def the machine's definition.
func (m *machine) write(def definition) error {
	text, err := json.Marshal(def)
	if err != nil {
		return err
	}
	if err := atomicfile.Write(filepath.Join(m.dir(), definitionFile), text, 0o600); err != nil {
		return noRoom(kindOf(err), m.dir())
	}
	return nil
}

// takeSeats says which of a machine's disks come into the seats of a fork, by serial: the first that is read-only, which is the image's, the first of its own, and the
// first volume of either kind. One that is throttled does not: a seat's device would have to know.
func takeSeats(disks []portlayer.Disk) map[string]string {
	taken := map[string]string{}
	free := slices.Clone(seats)
	for _, d := range disks {
		if d.Throttle != (portlayer.Throttle{}) {
			continue
		}
		fit := []string{volumeSeat}
		switch {
		case d.File == "":
			fit = []string{ownSeat}
		case d.ReadOnly:
			fit = []string{imageSeat, readableSeat}
		}
		if i := slices.IndexFunc(free, func(seat string) bool { return slices.Contains(fit, seat) }); i >= 0 {
			taken[d.Serial] = free[i]
			free = slices.Delete(free, i, i+1)
		}
	}
	return taken
}

var errNameless = fault.New(fault.Unsupported, "this machine was started by an earlier vch, which gave its disks no names: restart the container, then its disks can be changed")

// plugged gives the units of the disks that QEMU has, by serial.
func plugged(ctx context.Context, q *qmp.Client) (map[string]int, error) {
	var devices []struct {
		Name string `json:"name"`
	}
	if err := q.Call(ctx, "qom-list", map[string]any{"path": "/machine/peripheral"}, &devices); err != nil {
		return nil, refused("tell its disks", err)
	}
	have := map[string]int{}
	seated := map[int]string{} // by their units, the disks whose descriptors came for a seat
	for _, d := range devices {
		get := func(property string, value any) error {
			return refused("tell its disks", q.Call(ctx, "qom-get", map[string]any{"path": "/machine/peripheral/" + d.Name, "property": property}, value))
		}
		if serial, ok := strings.CutPrefix(d.Name, diskID("")); ok {
			var lun int
			if err := get("lun", &lun); err != nil {
				return nil, err
			}
			have[serial] = lun
		}
		if !slices.Contains(seats, d.Name) {
			continue
		}
		var node string
		if err := get("drive", &node); err != nil {
			return nil, err
		}
		if node == emptySeat(d.Name) {
			continue
		}
		if len(seated) == 0 {
			var err error
			if seated, err = descriptors(ctx, q); err != nil {
				return nil, err
			}
		}
		serial := seated[seatLUN(d.Name)]
		if serial == "" {
			return nil, errNameless
		}
		have[serial] = seatLUN(d.Name)
	}
	return have, nil
}

// descriptors tells for which disks QEMU has descriptors, by their sets, which are called by units.
func descriptors(ctx context.Context, q *qmp.Client) (map[int]string, error) {
	var sets []struct {
		ID    int `json:"fdset-id"`
		Files []struct {
			Opaque string `json:"opaque"`
		} `json:"fds"`
	}
	if err := q.Call(ctx, "query-fdsets", nil, &sets); err != nil {
		return nil, refused("tell its disks", err)
	}
	all := map[int]string{}
	for _, s := range sets {
		for _, f := range s.Files {
			all[s.ID] = f.Opaque
		}
	}
	return all, nil
}

// plug gives QEMU the disk. After an error it has nothing of it.
func (d drive) plug(ctx context.Context, q *qmp.Client) (err error) {
	var back undo.Stack
	defer func() {
		if err != nil {
			err = errors.Join(refused("add disk "+d.serial, err), back.Run(ctx))
		}
	}()
	f, err := os.OpenFile(d.file, d.flag(), 0)
	if err != nil {
		return kindOf(err)
	}
	defer f.Close()
	if err := q.Send(ctx, "add-fd", map[string]any{"fdset-id": d.lun, "opaque": d.serial}, nil, f); err != nil {
		return err
	}
	back.Push(func(ctx context.Context) error { return d.letGo(ctx, q) })
	throttle, block, device := d.objects()
	if throttle != nil {
		if err := q.Call(ctx, "object-add", throttle, nil); err != nil {
			return err
		}
		back.Push(func(ctx context.Context) error {
			return q.Call(ctx, "object-del", map[string]any{"id": d.group()}, nil)
		})
	}
	if err := q.Call(ctx, "blockdev-add", block, nil); err != nil {
		return err
	}
	back.Push(func(ctx context.Context) error {
		return q.Call(ctx, "blockdev-del", map[string]any{"node-name": d.node()}, nil)
	})
	if d.seat != "" {
		return exchange(ctx, q, d.seat, d.node())
	}
	return q.Call(ctx, "device_add", device, nil)
}

// exchange puts another node behind a seat.
func exchange(ctx context.Context, q *qmp.Client, seat, node string) error {
	return q.Call(ctx, "qom-set", map[string]any{"path": "/machine/peripheral/" + seat, "property": "drive", "value": node}, nil)
}

// unplug takes a disk from QEMU, and lets go of its file.
func (d drive) unplug(ctx context.Context, q *qmp.Client) (err error) {
	defer func() { err = refused("remove disk "+d.serial, err) }()
	if d.seat != "" {
		err = exchange(ctx, q, d.seat, emptySeat(d.seat))
	} else {
		err = q.Unplug(ctx, diskID(d.serial))
	}
	if err != nil {
		return err
	}
	if err := q.Call(ctx, "blockdev-del", map[string]any{"node-name": d.node()}, nil); err != nil {
		return err
	}
	var errs []error
	// Only where there is one: an interrupted change may have left a disk of which no definition says whether it is throttled.
	if err := q.Call(ctx, "object-del", map[string]any{"id": d.group()}, nil); err != nil && d.throttle != (portlayer.Throttle{}) {
		errs = append(errs, err)
	}
	return errors.Join(append(errs, d.letGo(ctx, q))...)
}

// letGo closes what the disk's descriptor was sent as. QEMU may have done so when its last user, the node, went.
func (d drive) letGo(ctx context.Context, q *qmp.Client) error {
	err := q.Call(ctx, "remove-fd", map[string]any{"fdset-id": d.lun}, nil)
	if e := (*qmp.Error)(nil); errors.As(err, &e) {
		return nil
	}
	return err
}

// refused gives QEMU's refusal of a change its kind.
func refused(what string, err error) error {
	if err == nil {
		return nil
	}
	var e *qmp.Error
	if !errors.As(err, &e) {
		return fault.New(fault.KindOf(err), "cannot %s: %w", what, err)
	}
	return refusal("QEMU cannot "+what, e.Desc)
}
