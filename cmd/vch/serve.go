package main

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"os"
	"path/filepath"
	"runtime/debug"
	"sync/atomic"
	"time"

	"github.com/spf13/cobra"
	"github.com/spf13/pflag"

	"vch/hypervisor/qemu"
	"vch/hypervisor/vsphere"
	"vch/internal/broadcast"
	"vch/internal/failpoint"
	"vch/internal/fault"
	"vch/internal/pause"
	"vch/personality"
	"vch/portlayer"
	"vch/portlayer/bind"
	"vch/portlayer/exec"
	"vch/portlayer/image"
	"vch/portlayer/network"
	"vch/portlayer/network/bridge"
	"vch/portlayer/network/user"
	"vch/portlayer/record"
	"vch/portlayer/volume"
	"vch/portlayer/volume/nfs"
	"vch/portlayer/volume/vmdk"
)

// stopLimit bounds how long a stop waits for requests that are being answered, and then again for the services.
const stopLimit = 10 * time.Second

func serveCommand(stderr io.Writer) *cobra.Command {
	var w words
	cmd := &cobra.Command{
		Use:   "serve",
		Short: "Run the daemon that the docker CLI speaks to",
		Long: `vch serve answers the docker CLI at a unix socket, or over TCP with certificates. Every container is a virtual machine, every volume a disk in a volume store.

It runs in the foreground and logs to standard error. SIGTERM or Ctrl-C stops it; running containers go on, and the next vch serve
with the same --state finds them again. A second signal ends it at once. It needs no root.

Sizes are a number and a unit, as in 512M or 2G. Every flag but --config may also stand in the configuration file, under the same name.`,
		Example: `  vch serve --volume-store ~/volumes:default
  export DOCKER_HOST=unix://$XDG_RUNTIME_DIR/vch.sock

  vch serve --config /etc/vch.toml --log-format json
  vch serve --volume-store /srv/ssd:default --volume-store /srv/big:archive`,
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			s, err := w.resolve(cmd.Flags())
			if err != nil {
				return err
			}
			return serve(cmd.Context(), s, newLog(s, stderr))
		},
	}
	w.flags(cmd.Flags())
	return cmd
}

// resolve is the settings of the flags f, the configuration file and the defaults.
func (w *words) resolve(f *pflag.FlagSet) (settings, error) {
	if w.config != "" {
		if err := fromFile(f, w.config); err != nil {
			return settings{}, err
		}
	}
	return w.settings(here())
}

func newLog(s settings, stderr io.Writer) *slog.Logger {
	o := &slog.HandlerOptions{Level: s.LogLevel}
	if s.LogJSON {
		return slog.New(slog.NewJSONHandler(stderr, o))
	}
	return slog.New(slog.NewTextHandler(stderr, o))
}

// serve runs a VCH until ctx ends. What can be seen to be wrong without changing anything is looked at first.
func serve(ctx context.Context, s settings, log *slog.Logger) (err error) {
	points, err := failpoint.FromEnv()
	if err != nil {
		return usageError{err}
	}
	host, err := preflight(ctx, s, log)
	if err != nil {
		return err
	}
	if err := os.MkdirAll(s.State, 0o700); err != nil {
		return fault.New(fault.Denied, "cannot make the state directory: %w; give another with --state", err)
	}
	db, err := record.Open(filepath.Join(s.State, "vch.db"))
	if err != nil {
		return err
	}
	defer closing(&err, db.Close)
	var secure *tls.Config
	if s.TLS != nil {
		if secure, err = s.TLS.config(s.Listen); err != nil {
			return err
		}
	}
	id, err := identity(filepath.Join(s.State, "engine-id"))
	if err != nil {
		return err
	}
	open := func() (portlayer.Hypervisor, error) { return openHypervisor(ctx, s, id, host, log) }
	var hypervisor portlayer.Hypervisor
	if s.VSphere != nil && s.Degrade {
		hypervisor, err = untilReached(ctx, log, open)
	} else {
		hypervisor, err = open()
	}
	if err != nil {
		return stopped(ctx, log, err)
	}
	defer closing(&err, hypervisor.Close)
	info, err := hypervisor.Info(ctx)
	if err != nil {
		return stopped(ctx, log, err)
	}
	log.Info("machines", info.Name, info.Version, "accel", info.Accel, "kernel", info.Kernel, "detail", info.Detail)
	var events broadcast.Topic[portlayer.Event]
	backend, err := networkBackend(s, id, log)
	if err != nil {
		return err
	}
	links := user.NewLinks(nfs.Dial, log)
	defer closing(&err, links.Close)
	networks, err := network.New(ctx, network.Options{DB: db, Backend: backend, Reacher: links, Publish: events.Publish, Log: log})
	if err != nil {
		return stopped(ctx, log, err)
	}
	defer closing(&err, networks.Close)
	stores, closeStores, err := openStores(ctx, s, id, hypervisor, log)
	defer closing(&err, closeStores)
	if err != nil {
		return stopped(ctx, log, err)
	}
	containers, handler, err := connect(ctx, s, id, db, hypervisor, stores, networks, &events, points, log)
	if err != nil {
		return stopped(ctx, log, err)
	}
	defer closing(&err, func() error {
		ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), stopLimit)
		defer cancel()
		return containers.Close(ctx)
	})
	debug.FreeOSMemory() // unpacking a kernel took 60 MB that are not wanted again
	return answer(ctx, s.Listen, secure, handler, log)
}

// closing closes a room at the end, and joins what goes wrong there to what went wrong before.
func closing(err *error, close func() error) { *err = errors.Join(*err, close()) }

// stopped is the outcome of a start that failed: none, if that is because it was told to stop.
func stopped(ctx context.Context, log *slog.Logger, err error) error {
	if ctx.Err() == nil {
		return err
	}
	log.Info("stopped before it listened")
	return nil
}

// machineOptions is what QEMU is to be run with.
func machineOptions(s settings, log *slog.Logger) qemu.Options {
	o := qemu.Options{StateDir: s.State, QEMU: s.QEMU, Kernel: s.Kernel, Tether: tetherProgram(), Accel: s.Accel, Cache: s.Cache, Template: s.Template, Warm: s.Warm, Log: log}
	if o.Warm < 0 {
		o.Warm = qemu.DefaultWarm()
	}
	return o
}

// untilReached opens what makes the machines again and again while it is Unavailable: a vCenter may come later than its clients, as after a loss of power.
func untilReached(ctx context.Context, log *slog.Logger, open func() (portlayer.Hypervisor, error)) (portlayer.Hypervisor, error) {
	const most = 10 * time.Second
	told := ""
	for wait := time.Second; ; wait = min(2*wait, most) {
		h, err := open()
		if !fault.Is(err, fault.Unavailable) || ctx.Err() != nil {
			return h, err
		}
		if why := err.Error(); why != told {
			told = why
			log.Warn("no machines can be reached; trying until they can", "err", err)
		}
		if err := pause.For(ctx, wait); err != nil {
			return nil, err
		}
	}
}

// openHypervisor opens what makes the machines: QEMU, of which host was found, or vSphere.
func openHypervisor(ctx context.Context, s settings, id string, host qemu.Host, log *slog.Logger) (portlayer.Hypervisor, error) {
	if s.VSphere == nil {
		return qemu.Open(ctx, machineOptions(s, log), host)
	}
	password, err := s.VSphere.password()
	if err != nil {
		return nil, err
	}
	listener, advertise, err := s.VSphere.listen()
	if err != nil {
		return nil, err
	}
	name := filepath.Base(s.State)
	if name == "state" { // of a VCH that vch create made
		name = filepath.Base(filepath.Dir(s.State))
	}
	h, err := vsphere.Open(ctx, vsphere.Options{
		Server: s.VSphere.server(password),
		VCH:    id, Name: name, Datacenter: s.VSphere.Datacenter, Pool: s.VSphere.Pool, Folder: s.VSphere.Folder, Datastore: datastoreOf(s.ImageDisks), Network: s.VSphere.Network, Extension: s.VSphere.Extension,
		Listener: listener, Advertise: advertise, StateDir: s.State, Kernel: s.Kernel, Tether: tetherProgram(), Seeds: bootSeeds(), Log: log,
	})
	if err != nil {
		return nil, err
	}
	log.Info("guests come here", "listen", listener.Addr().String(), "by", advertise)
	return h, nil
}

// driversOf are what volumes are called that are disks, and those that are directories of a server.
func driversOf(s settings) (disk, directory string) {
	if s.VSphere != nil {
		return "vsphere-vmdk", "vsphere-nfs"
	}
	return "qemu-vmdk", "qemu-nfs"
}

// openStores opens the volume stores. close has to follow, also after an error.
func openStores(ctx context.Context, s settings, id string, hypervisor portlayer.Hypervisor, log *slog.Logger) (stores []portlayer.VolumeStore, close func() error, err error) {
	var back []func() error
	close = func() (err error) {
		for _, do := range back {
			err = errors.Join(err, do())
		}
		return err
	}
	driver, nfsDriver := driversOf(s)
	unit := portlayer.Bytes(0)
	if s.VSphere != nil {
		unit = vsphere.SizeUnit
	}
	for _, place := range s.Stores {
		if place.NFS != nil {
			store, err := nfs.Open(ctx, nfs.StoreOptions{Name: place.Name, Location: *place.NFS, Driver: nfsDriver, VCH: id, Timeout: s.NFSTimeout, Log: log})
			if err != nil {
				return nil, close, err
			}
			back = append(back, store.Close)
			stores = append(stores, store)
		} else {
			store, err := vmdk.Open(ctx, vmdk.Options{
				Name: place.Name, Location: place.Path, Root: portlayer.DiskPath(place.Path),
				Disks: hypervisor.Disks(), Driver: driver, DefaultCapacity: s.DefaultCapacity, MayBeAway: s.Degrade, NoByteRate: s.VSphere != nil, SizeUnit: unit,
			})
			if err != nil {
				return nil, close, err
			}
			if why := store.Status(ctx).Degraded; why != "" {
				log.Warn("volume store is degraded", "name", place.Name, "why", why)
			}
			stores = append(stores, store)
		}
		log.Info("volume store", "name", place.Name, "at", place.String())
	}
	return stores, close, nil
}

// connect constructs the rooms bottom up: services, the door.
func connect(ctx context.Context, s settings, id string, db *record.DB, hypervisor portlayer.Hypervisor, stores []portlayer.VolumeStore, networks *network.Service, events *broadcast.Topic[portlayer.Event], points failpoint.Set, log *slog.Logger) (*exec.Service, *personality.Server, error) {
	volumes, err := volume.New(volume.Options{
		VCH: id, DB: db, Stores: stores, AnonymousCapacity: s.AnonymousCapacity, DefaultCapacity: s.DefaultCapacity, AnonymousOptions: s.AnonymousBasic.Options, Publish: events.Publish, Log: log,
	})
	if err != nil {
		return nil, nil, err
	}
	// Images ask who uses them, and containers are made of images: the answer comes a little later than the question.
	var users atomic.Pointer[exec.Service]
	binds := bind.Policy{Allow: s.BindAllow}
	var believe time.Duration // here a look at a disk costs nothing; at a vCenter it takes as long as making the machine
	if s.VSphere != nil {
		believe, binds.Never = time.Minute, noBinds
	}
	images, err := image.New(ctx, image.Options{
		Dir: s.Images, DiskDir: imageDisks(s, id, hypervisor.Disks()), Believe: believe, Disks: hypervisor.Disks(), DB: db, Publish: events.Publish, Log: log, Mirrors: s.Mirrors, Insecure: s.Insecure,
		InUse: func(id portlayer.ImageID) []portlayer.ContainerID {
			if containers := users.Load(); containers != nil {
				return containers.InUse(id)
			}
			return nil
		},
	})
	if err != nil {
		return nil, nil, err
	}
	containers, err := exec.New(ctx, exec.Options{
		DB: db, Hypervisor: hypervisor, Volumes: volumes, Binder: volumes, Images: images, Wiring: networks, Publish: events.Publish, Log: log,
		Dir: filepath.Join(s.State, "containers"), Memory: s.Memory, CPUs: s.CPUs, Binds: binds, Failpoints: points,
	})
	if err != nil {
		return nil, nil, err
	}
	users.Store(containers)
	volumes.Reach(containers)
	name, err := os.Hostname()
	if err != nil {
		name = "vch"
	}
	server, err := personality.New(personality.Options{
		Containers: containers, Volumes: volumes, Images: images, Networks: networks, Events: events, Machine: hypervisor.Info,
		ID: id, Name: name, Version: version, Commit: commit, BuildTime: built, StateDir: s.State,
		Defaults: personality.Defaults{Memory: s.Memory, CPUs: s.CPUs, Anonymous: s.AnonymousBasic}, Registries: registries(s), Log: log,
	})
	if err != nil {
		ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), stopLimit)
		defer cancel()
		return nil, nil, errors.Join(err, containers.Close(ctx))
	}
	return containers, server, nil
}

// imageDisks is where the disks of images are, "" for beside all else of them. What a VCH finds there that it does not know it removes, so that its directory is its own.
func imageDisks(s settings, id string, disks portlayer.Disks) portlayer.DiskPath {
	if s.VSphere == nil {
		return ""
	}
	return disks.Join(s.ImageDisks, "images-"+id)
}

// networkBackend is what networks are made of.
func networkBackend(s settings, id string, log *slog.Logger) (portlayer.NetworkBackend, error) {
	if s.Bridges {
		return bridge.New(bridge.Options{Log: log, VCH: id})
	}
	return user.New(user.Options{Log: log}), nil
}

// registries is what /info says of them.
func registries(s settings) personality.Registries {
	r := personality.Registries{Insecure: s.Insecure.Hosts, Networks: s.Insecure.Networks}
	for _, m := range s.Mirrors {
		r.Mirrors = append(r.Mirrors, m.Scheme+"://"+m.Host)
	}
	return r
}

// preflight looks at what is named in the settings, changes nothing, and fails where a start could not work. It gives what it found of QEMU.
func preflight(ctx context.Context, s settings, log *slog.Logger) (host qemu.Host, err error) {
	for _, a := range s.Listen {
		if _, err := lookAt(a); err != nil {
			return host, err
		}
	}
	if _, err := lookAtState(s.State); err != nil {
		return host, err
	}
	for _, dir := range s.BindAllow {
		if info, err := os.Stat(dir); err != nil || !info.IsDir() {
			log.Warn("what --bind-allow names is no directory: nothing in it can be mounted until it is", "path", dir)
		}
	}
	withDefault := false
	var named []portlayer.StoreName
	for _, place := range s.Stores {
		named = append(named, place.Name)
		found, err := lookAtStore(place)
		if err != nil && !s.Degrade {
			return host, err
		}
		if found.warning != "" {
			log.Warn(fmt.Sprintf("volume store %s: %s", place.Name, found.warning))
		}
		withDefault = withDefault || place.Name == portlayer.DefaultStore
	}
	if err := volume.CheckAnonymousOptions(s.AnonymousBasic.Options, named); err != nil {
		return host, usagef("--anonymous-volume-opts: %w", err)
	}
	if !withDefault {
		log.Warn(noDefaultStore)
	}
	if len(tetherProgram()) == 0 {
		return host, fault.New(fault.Unsupported, "%s", noTether)
	}
	if s.VSphere != nil {
		return host, nil
	}
	return qemu.Find(ctx, machineOptions(s, log))
}

// noTether is what is wrong with a vch that go build made.
const noTether = "this vch was built without its tether, the program that runs in every container VM; build it with make build"

// noDefaultStore is what an administrator hears who gave no default store.
const noDefaultStore = "there is no volume store called default: anonymous volumes, and new volumes that name no store, will be refused; add one with --volume-store PATH:default"
