package exec

import (
	"cmp"
	"context"
	"crypto/rand"
	"fmt"
	"path"
	"slices"
	"strings"
	"time"

	"vch/guest"
	"vch/internal/fault"
	"vch/internal/undo"
	"vch/portlayer"
)

const (
	// machineOverhead is what a machine gets beyond its container's limit, for kernel, initramfs and tether: measured, a Debian 12
	// cloud kernel with the tether waiting takes about 60 MB.
	machineOverhead = 96 * portlayer.MiB
	// minMemory is the least limit accepted: Docker's own (6 MiB).
	minMemory = 6 * portlayer.MiB
	// rootSerial names the container's own disk in its machine.
	rootSerial = "vch-root"
	// maxCPUs is what one machine may have here.
	maxCPUs = 64
)

// RootSize is the size of a container's own writable disk; thin, so it costs what is written.
const RootSize = 20 * portlayer.GiB

// Open opens a handle on an existing container: a fresh draft with image and volumes joined, at the container's version.
func (s *Service) Open(ctx context.Context, ref string) (*portlayer.Handle, error) {
	u, err := s.find(ref)
	if err != nil {
		return nil, err
	}
	c := u.snapshot().container
	return s.draft(ctx, c.ID, c.Version, c.Spec, c.Image)
}

// Commit makes an existing container what h says, whose volumes are reserved. The container's version must still be the one that h was opened on: otherwise
// Conflict, and nothing is done. Of a running container only the volumes can be changed, while it runs (hotplug.go): anything else is Unsupported.
func (s *Service) Commit(ctx context.Context, h *portlayer.Handle) error {
	u, err := s.find(string(h.Container))
	if err != nil {
		return err
	}
	return u.alone(ctx, func() error {
		ctx, cancel := context.WithTimeout(s.ctx, changeLimit)
		defer cancel()
		return u.become(ctx, h)
	})
}

// current is a Conflict if the container was changed since h was opened. Owner only.
func (u *unit) current(h *portlayer.Handle) error {
	if h.Version != u.c.Version {
		return fault.New(fault.Conflict, "container %s was changed meanwhile (version %d, the handle has %d): open a new handle", u.c.Spec.Name, u.c.Version, h.Version)
	}
	return nil
}

// commit defines the machine that h asks for, of a container that does not run. Owner only.
func (u *unit) commit(ctx context.Context, h *portlayer.Handle) (portlayer.Machine, error) {
	if err := u.current(h); err != nil {
		return nil, err
	}
	return u.s.o.Hypervisor.Define(ctx, machineSpec(h))
}

// draft builds a handle from a spec whose volumes are reserved. It changes nothing.
func (s *Service) draft(ctx context.Context, id portlayer.ContainerID, version uint64, spec portlayer.ContainerSpec, image portlayer.ImageID) (*portlayer.Handle, error) {
	h := &portlayer.Handle{Container: id, Version: version, Spec: spec}
	h.Config = executorConfig(id, spec)
	if err := s.o.Images.Join(ctx, h, image); err != nil {
		return nil, err
	}
	h.AddDisk(portlayer.Disk{Serial: rootSerial, Size: RootSize})
	h.Config.Root.Writable = "disk://" + rootSerial
	for _, m := range spec.Mounts {
		switch m.Kind {
		case portlayer.TmpfsMount:
			h.Config.Mounts = append(h.Config.Mounts, guest.MountSpec{Source: "tmpfs:", Target: m.Target, ReadOnly: m.ReadOnly, Options: m.Tmpfs})
		case portlayer.VolumeMount:
			if err := s.o.Binder.Join(ctx, h, m); err != nil {
				return nil, err
			}
		case portlayer.BindMount:
			share, err := s.o.Binds.Share(m)
			if err != nil {
				return nil, err
			}
			h.Config.Mounts = append(h.Config.Mounts, guest.MountSpec{Source: guest.Share(len(h.Shares)), Target: m.Target, ReadOnly: m.ReadOnly && !m.Bind.WritableBelow, Name: m.Source})
			h.Shares = append(h.Shares, share)
		default:
			return nil, fault.New(fault.Internal, "mount at %s has unknown kind %q", m.Target, m.Kind)
		}
	}
	return h, nil
}

// machineSpec is the machine that a handle asks for.
func machineSpec(h *portlayer.Handle) portlayer.MachineSpec {
	spec := MachineFor(h.Spec.Memory, h.Spec.CPUs)
	spec.ID, spec.Devices, spec.Shares, spec.Name, spec.Config = h.Container, h.Devices, h.Shares, h.Spec.Name, h.Config
	return spec
}

// MachineFor is the machine of a container with a limit of so much memory and so many billionths of a processor, without its ID and Devices.
func MachineFor(memory portlayer.Bytes, cpus int64) portlayer.MachineSpec {
	return portlayer.MachineSpec{Memory: memory + machineOverhead, CPUs: int((cpus + 1e9 - 1) / 1e9)}
}

// executorConfig is what the guest must do for spec, but for the disks that Join adds and what is only known at start.
func executorConfig(id portlayer.ContainerID, spec portlayer.ContainerSpec) guest.ExecutorConfig {
	p := spec.Process
	cfg := guest.ExecutorConfig{
		ID:       string(id),
		Hostname: spec.Hostname,
		Domain:   spec.Domain,
		Root:     guest.Root{ReadOnly: spec.ReadOnly, Ephemeral: spec.AutoRemove},
		Files: []guest.File{
			{Path: "/etc/hostname", Content: []byte(spec.Hostname + "\n"), Mode: 0o644},
			{Path: "/etc/hosts", Content: hostsFile(spec, guest.Network{}), Mode: 0o644},
			{Path: "/etc/resolv.conf", Content: resolvFile(spec, false), Mode: 0o644},
		},
		ShmSize: int64(spec.ShmSize),
		Limits:  limitsOf(spec),
		Process: &p,
	}
	for k, v := range spec.Sysctls {
		cfg.Sysctls = append(cfg.Sysctls, guest.Sysctl{Key: k, Value: v})
	}
	slices.SortFunc(cfg.Sysctls, func(a, b guest.Sysctl) int { return strings.Compare(a.Key, b.Key) })
	return cfg
}

func limitsOf(spec portlayer.ContainerSpec) guest.Limits {
	return guest.Limits{Memory: int64(spec.Memory), CPUs: spec.CPUs, PidsMax: spec.PidsMax}
}

func hostsFile(spec portlayer.ContainerSpec, n guest.Network) []byte {
	gateway := ""
	for _, i := range n.Interfaces {
		gateway = cmp.Or(gateway, i.Gateway)
	}
	var b strings.Builder
	b.WriteString("127.0.0.1\tlocalhost\n::1\tlocalhost ip6-localhost ip6-loopback\nfe00::\tip6-localnet\nff00::\tip6-mcastprefix\nff02::1\tip6-allnodes\nff02::2\tip6-allrouters\n")
	for _, line := range spec.ExtraHosts {
		name, addr, _ := strings.Cut(line, ":")
		if addr == portlayer.HostGateway {
			addr = gateway
		}
		if addr != "" {
			fmt.Fprintf(&b, "%s\t%s\n", addr, name)
		}
	}
	names := spec.Hostname
	if spec.Domain != "" {
		names = spec.Hostname + "." + spec.Domain + " " + spec.Hostname
	}
	for _, i := range n.Interfaces {
		addr, _, _ := strings.Cut(i.Address, "/")
		fmt.Fprintf(&b, "%s\t%s\n", addr, names)
	}
	if len(n.Interfaces) == 0 { // it has to find its own name all the same
		fmt.Fprintf(&b, "127.0.1.1\t%s\n", names)
	}
	return []byte(b.String())
}

func resolvFile(spec portlayer.ContainerSpec, resolver bool) []byte {
	var b strings.Builder
	servers := spec.DNS
	if resolver { // which asks these
		servers = []string{guest.ResolverAddress}
	}
	for _, d := range servers {
		fmt.Fprintf(&b, "nameserver %s\n", d)
	}
	if len(spec.DNSSearch) > 0 {
		fmt.Fprintf(&b, "search %s\n", strings.Join(spec.DNSSearch, " "))
	}
	if len(spec.DNSOptions) > 0 {
		fmt.Fprintf(&b, "options %s\n", strings.Join(spec.DNSOptions, " "))
	}
	return []byte(b.String())
}

// complete fills in what spec leaves to the VCH and refuses what cannot be.
func (s *Service) complete(id portlayer.ContainerID, spec *portlayer.ContainerSpec) error {
	if len(spec.Process.Args) == 0 {
		return fault.New(fault.Invalid, "no command specified")
	}
	if spec.Hostname == "" {
		spec.Hostname = short(id)
	}
	if len(spec.Hostname) > 64 {
		return fault.New(fault.Invalid, "hostname %q is longer than 64 characters, the most that sethostname(2) takes", spec.Hostname)
	}
	if spec.StopSignal == 0 {
		spec.StopSignal = 15
	}
	if spec.Memory == 0 {
		spec.Memory = s.o.Memory
	}
	if spec.Memory < minMemory {
		return fault.New(fault.Invalid, "Minimum memory limit allowed is 6MB; %d bytes were asked for", spec.Memory)
	}
	if spec.CPUs == 0 {
		spec.CPUs = s.o.CPUs
	}
	if spec.CPUs < 1e7 || spec.CPUs > maxCPUs*1e9 {
		return fault.New(fault.Invalid, "range of CPUs is from 0.01 to %d.00", maxCPUs)
	}
	if s.o.Wiring == nil && len(spec.Networks) > 0 {
		return fault.New(fault.Unsupported, "this VCH has no networks")
	}
	if _, err := wants(id, *spec); err != nil {
		return err
	}
	seen := map[string]bool{}
	for _, m := range spec.Mounts {
		if !path.IsAbs(m.Target) || path.Clean(m.Target) != m.Target || m.Target == "/" {
			return fault.New(fault.Invalid, "mount target %q is not an absolute, clean path below /", m.Target)
		}
		if seen[m.Target] {
			return fault.New(fault.Invalid, "Duplicate mount point: %s", m.Target)
		}
		seen[m.Target] = true
	}
	return nil
}

// makeSources makes what bind mounts name and say that is to be made.
func (s *Service) makeSources(mounts []portlayer.Mount) error {
	for _, m := range mounts {
		if m.Kind == portlayer.BindMount {
			if err := s.o.Binds.Make(m); err != nil {
				return err
			}
		}
	}
	return nil
}

// covered refuses mounts over what a container cannot be without. As in Docker, that is the start's to say.
func covered(mounts []portlayer.Mount) error {
	for _, m := range mounts {
		if m.Target == "/dev" || m.Target == "/sys" || m.Target == "/proc" || strings.HasPrefix(m.Target, "/proc/") {
			return fault.New(fault.Invalid, "nothing can be mounted at %s: the container's devices and its kernel's files are there; choose another target", m.Target)
		}
	}
	return nil
}

// Create is portlayer.Containers.Create. Each step is journaled before it is done, and its undo stands beside it.
func (s *Service) Create(ctx context.Context, spec portlayer.ContainerSpec) (_ portlayer.Container, warnings []string, err error) {
	var none portlayer.Container
	began := time.Now()
	image, err := s.o.Images.Get(ctx, spec.Image)
	if err != nil {
		return none, nil, err
	}
	id := portlayer.ContainerID(newID())
	if err := s.complete(id, &spec); err != nil {
		return none, nil, err
	}
	for _, m := range spec.Mounts {
		if m.Kind != portlayer.BindMount {
			continue
		}
		if s.o.Binds == nil {
			return none, nil, fault.New(fault.Unsupported, "host path %s: containers of this VCH mount nothing of its host", m.Source)
		}
		if _, err := s.o.Binds.Share(m); err != nil {
			return none, nil, err
		}
	}
	if spec.Name, err = s.reserveName(id, spec.Name); err != nil {
		return none, nil, err
	}
	var back undo.Stack
	defer func() {
		if err != nil {
			if uerr := back.Run(ctx); uerr != nil {
				s.o.Log.Error("create could not be taken back whole; the next start tries again", "container", string(id), "err", uerr)
			}
		}
	}()
	name := spec.Name
	back.Push(func(context.Context) error { s.freeName(name); return nil })

	e := entry{Op: opCreate}
	for _, m := range spec.Mounts {
		if m.Kind == portlayer.VolumeMount && m.Volume != "" {
			e.Named = append(e.Named, m.ID())
		}
	}
	// From here on one undo covers everything, the same that recovery runs after a crash.
	back.Push(func(ctx context.Context) error { return s.unCreate(ctx, id, e) })
	if err := s.step(id, e, "create.journal"); err != nil {
		return none, nil, err
	}
	if err := s.checkTargets(ctx, image.ID, spec.Mounts); err != nil {
		return none, nil, err
	}
	spec.Mounts = slices.Clone(spec.Mounts)
	for i, m := range spec.Mounts {
		if m.Kind != portlayer.VolumeMount {
			continue
		}
		reserved, _, err := s.o.Binder.Reserve(ctx, id, m)
		if err != nil {
			return none, nil, err
		}
		spec.Mounts[i] = reserved
	}
	if len(spec.Networks) > 0 {
		if spec.Networks, err = s.o.Wiring.Refer(ctx, id, spec.Networks); fault.Is(err, fault.NotFound) {
			err = fault.New(fault.Invalid, "%w: make it first (docker network create)", err) // what a create does not find is its image
		}
		if err != nil {
			return none, nil, err
		}
	}
	if err := s.o.Failpoints.Hit("create.volumes"); err != nil {
		return none, nil, err
	}
	if err := s.populate(ctx, id, &e, image.ID, spec); err != nil {
		return none, nil, err
	}
	h, err := s.draft(ctx, id, 0, spec, image.ID)
	if err != nil {
		return none, nil, err
	}
	if err := s.o.Failpoints.Hit("create.define"); err != nil { // journaled: the machine has the container's id
		return none, nil, err
	}
	if _, err := s.o.Hypervisor.Define(ctx, machineSpec(h)); err != nil {
		return none, nil, err
	}
	if err := s.o.Failpoints.Hit("create.record"); err != nil {
		return none, nil, err
	}
	c := portlayer.Container{ID: id, Version: 1, Created: time.Now().UTC(), Image: image.ID, Spec: spec, State: portlayer.State{Phase: portlayer.Created}}
	if err := s.o.DB.Do(s.records.Putting(string(id), c), s.journal.Deleting(string(id))); err != nil {
		return none, nil, err
	}
	back.Keep()                               // recorded: the container is, whatever comes
	_ = s.o.Failpoints.Hit("create.recorded") // only "exit" has a meaning here
	u := s.adopt(c)
	s.publish(c, "create")
	s.o.Log.Info("container created", "container", short(id), "name", spec.Name, "image", spec.Image, "took", time.Since(began))
	return s.show(u), warnings, nil
}

// checkTargets refuses a VOLUME whose target is a file of the image, as Docker's engine does at create (moby daemon/create_unix.go); a named volume
// there fails at start, in both.
func (s *Service) checkTargets(ctx context.Context, image portlayer.ImageID, mounts []portlayer.Mount) error {
	for _, m := range mounts {
		if m.Kind != portlayer.VolumeMount || m.Origin != portlayer.FromImage {
			continue
		}
		kind, err := s.o.Images.Entries(ctx, image, m.Target)
		if err != nil {
			return err
		}
		if kind == "file" {
			return fault.New(fault.Invalid, "cannot mount volume over existing file, file exists %s", m.Target)
		}
	}
	return nil
}

// populate fills volumes that may be empty from the image, where Docker's engine does it, for those that the first start of this container would not: what it
// mounts read-only, for those disks will be read-only in its machine, and what it takes over from a container that never started. A utility machine does it
// for each of their images. All others are populated by their first start.
func (s *Service) populate(ctx context.Context, id portlayer.ContainerID, e *entry, image portlayer.ImageID, spec portlayer.ContainerSpec) error {
	var own []portlayer.Mount
	for _, m := range spec.Mounts {
		if !writes(spec.Mounts, m.ID()) {
			own = append(own, m)
		}
	}
	if err := s.fill(ctx, id, e, image, spec.Name, own); err != nil {
		return err
	}
	done := map[portlayer.ContainerID]bool{"": true}
	for _, taken := range spec.Mounts {
		if done[taken.From] {
			continue
		}
		done[taken.From] = true
		u, err := s.find(string(taken.From))
		if fault.Is(err, fault.NotFound) {
			continue // it is gone, and left its volumes as they are
		}
		if err != nil {
			return err
		}
		from := u.snapshot().container
		var theirs []portlayer.Mount
		for _, m := range from.Spec.Mounts {
			if slices.ContainsFunc(spec.Mounts, func(o portlayer.Mount) bool { return o.From == taken.From && o.ID() == m.ID() }) {
				theirs = append(theirs, m)
			}
		}
		if err := s.fill(ctx, id, e, from.Image, from.Spec.Name, theirs); err != nil {
			return err
		}
	}
	return nil
}

// fill has a utility machine copy an image's content into those volumes of mounts that were never written.
func (s *Service) fill(ctx context.Context, id portlayer.ContainerID, e *entry, image portlayer.ImageID, name string, all []portlayer.Mount) error {
	var mounts []portlayer.Mount
	for _, m := range all {
		if m.Kind != portlayer.VolumeMount || m.NoCopy || m.Subpath != "" { // a part of a volume that was never written is not there
			continue
		}
		kind, err := s.o.Images.Entries(ctx, image, m.Target)
		if err != nil {
			return err
		}
		if kind != "dir" && kind != "tree" {
			continue
		}
		written, err := s.everWritten(ctx, m.ID())
		if err != nil {
			return err
		}
		if !written {
			m.ReadOnly = false
			mounts = append(mounts, m)
		}
	}
	if len(mounts) == 0 {
		return nil
	}
	e.Utility = portlayer.ContainerID(newID())
	if err := s.step(id, *e, "create.populate"); err != nil {
		return err
	}
	err := s.utility(ctx, e.Utility, image, "populates the volumes of "+name, mounts)
	switch {
	case fault.Is(err, fault.InUse): // someone has it now, as it is; nothing is copied below their feet
		s.o.Log.Info("a volume in use is not filled from the image", "container", short(id), "name", name, "why", err)
	case err != nil:
		return fault.Wrap("populate the volumes of", name, err)
	default:
		s.wrote(ctx, mounts)
	}
	e.Utility = ""
	return nil
}

// mend replays the journals of volumes whose last writer ended without unmounting them. Nobody may hold them.
func (s *Service) mend(ctx context.Context, image portlayer.ImageID, who string, mounts []portlayer.Mount) (err error) {
	id := portlayer.ContainerID(newID())
	if err := s.step(id, entry{Op: opMend, Utility: id}, "mend.journal"); err != nil {
		return err
	}
	for i := range mounts {
		mounts[i].ReadOnly, mounts[i].NoCopy = false, true
	}
	if err := s.utility(ctx, id, image, "mends volumes for "+who, mounts); err != nil {
		return fault.Wrap("mend the volumes of", who, err)
	}
	return s.journal.Delete(string(id))
}

// utility runs a machine that mounts volumes, does what their mounts say, and is gone when it returns.
func (s *Service) utility(ctx context.Context, id portlayer.ContainerID, image portlayer.ImageID, does string, mounts []portlayer.Mount) error {
	h, err := s.draft(ctx, id, 0, portlayer.ContainerSpec{Hostname: "vch-utility", Memory: s.o.Memory, CPUs: 1e9, Mounts: mounts}, image)
	if err != nil {
		return err
	}
	h.Config.Process = nil
	if err := s.attach(ctx, id, "the utility machine that "+does, mounts); err != nil {
		return err
	}
	defer s.o.Binder.Detach(id)
	unlink, err := s.link(ctx, h, "the utility machine that "+does)
	if err != nil {
		return err
	}
	defer unlink()
	m, err := s.o.Hypervisor.Define(ctx, machineSpec(h))
	if err != nil {
		return err
	}
	client, err := s.boot(ctx, m)
	if err == nil {
		if err = s.wire(ctx, m, client); err == nil {
			_, err = client.Configure(ctx, atStart(h.Config, m))
		}
		if err == nil {
			err = client.Shutdown(ctx)
		}
		client.Close()
	}
	if uerr := m.Undefine(context.WithoutCancel(ctx)); err == nil {
		err = uerr
	}
	return err
}

// atStart adds to a config what is only true at the moment of sending it to m.
func atStart(cfg guest.ExecutorConfig, m portlayer.Machine) guest.ExecutorConfig {
	cfg.Seats = m.Seats()
	cfg.Entropy = make([]byte, 64)
	rand.Read(cfg.Entropy)
	cfg.Clock = time.Now()
	if m.Carries() {
		return cfg.Rest()
	}
	return cfg
}
