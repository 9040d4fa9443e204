package personality

import (
	"cmp"
	"context"
	"fmt"
	"net/http"
	"net/netip"
	"runtime"
	"slices"
	"strconv"
	"time"

	"github.com/docker/go-units"
	"github.com/moby/moby/api/types/container"
	"github.com/moby/moby/api/types/registry"
	"github.com/moby/moby/api/types/swarm"
	"github.com/moby/moby/api/types/system"
	"golang.org/x/sys/unix"

	"vch/internal/fault"
	"vch/portlayer"
)

// machine is what runs the containers; the zero value, and why, where it does not say.
func (s *Server) machine(ctx context.Context) (portlayer.HypervisorInfo, string) {
	info, err := s.Machine(ctx)
	if err != nil {
		return portlayer.HypervisorInfo{}, "the hypervisor does not say what it is: " + err.Error()
	}
	return info, ""
}

// version answers docker version. The kernel is the containers', as in Docker, and so the guests'.
func (s *Server) version(w http.ResponseWriter, r *http.Request) error {
	m, _ := s.machine(r.Context())
	v := system.VersionResponse{
		Platform:      system.PlatformInfo{Name: "vch: containers as virtual machines"},
		Version:       s.Version,
		APIVersion:    maxVersion.String(),
		MinAPIVersion: minVersion.String(),
		Os:            "linux",
		Arch:          runtime.GOARCH,
		GitCommit:     s.Commit,
		GoVersion:     runtime.Version(),
		KernelVersion: m.Kernel,
		BuildTime:     s.BuildTime,
	}
	v.Components = []system.ComponentVersion{{Name: "Engine", Version: v.Version, Details: map[string]string{
		"ApiVersion": v.APIVersion, "Arch": v.Arch, "BuildTime": v.BuildTime, "Experimental": "false", "GitCommit": v.GitCommit,
		"GoVersion": v.GoVersion, "KernelVersion": v.KernelVersion, "MinAPIVersion": v.MinAPIVersion, "Os": v.Os,
	}}}
	if m.Name != "" {
		v.Components = append(v.Components,
			system.ComponentVersion{Name: m.Name, Version: m.Version, Details: details(m)},
			system.ComponentVersion{Name: "guest kernel", Version: m.Kernel})
	}
	return writeJSON(w, http.StatusOK, v)
}

// storageDriver is what Docker calls the way that a container's root is made: an overlay of its own ext4 disk on the image's.
const storageDriver = "ext4-overlay"

// info answers docker info.
func (s *Server) info(w http.ResponseWriter, r *http.Request) error {
	ctx := r.Context()
	containers, err := s.Containers.List(ctx)
	if err != nil {
		return err
	}
	images, err := s.Images.List(ctx)
	if err != nil {
		return err
	}
	m, trouble := s.machine(ctx)
	stores := s.Volumes.Stores(ctx, "")
	memory, err := hostMemory()
	if err != nil {
		return err
	}
	processors := runtime.NumCPU()
	if m.CPUs > 0 { // of the hosts that machines run on
		processors, memory = m.CPUs, int64(m.Memory)
	}
	v := system.Info{
		ID:                 s.ID,
		Containers:         len(containers),
		Images:             len(images),
		Driver:             storageDriver,
		DriverStatus:       s.driverStatus(m, stores),
		Plugins:            system.PluginsInfo{Volume: driversOf(stores), Network: []string{bridgeDriver, nullDriver}, Log: []string{logJSON}},
		MemoryLimit:        true,
		CPUCfsPeriod:       true,
		CPUCfsQuota:        true,
		PidsLimit:          true,
		NGoroutines:        runtime.NumGoroutine(),
		SystemTime:         time.Now().Format(time.RFC3339Nano),
		LoggingDriver:      logJSON,
		CgroupDriver:       "none", // of the host: a container's cgroup is in its machine, and is below no other
		CgroupVersion:      "2",
		KernelVersion:      m.Kernel,
		OperatingSystem:    "vch " + s.Version,
		OSType:             "linux",
		Architecture:       unameMachine(),
		IndexServerAddress: "https://index.docker.io/v1/",
		RegistryConfig:     registryConfig(s.Registries),
		NCPU:               processors,
		MemTotal:           memory,
		DockerRootDir:      s.StateDir,
		Name:               s.Name,
		Labels:             []string{},
		ServerVersion:      s.Version,
		Runtimes:           map[string]system.RuntimeWithStatus{defaultRuntime: {Runtime: system.Runtime{Path: "vch-tether"}}},
		DefaultRuntime:     defaultRuntime,
		Swarm:              swarm.Info{LocalNodeState: swarm.LocalNodeStateInactive},
		LiveRestoreEnabled: true, // containers are machines of their own, and outlive the daemon
		Isolation:          container.IsolationDefault,
		InitBinary:         "vch-tether",
		SecurityOptions:    []string{},
		CDISpecDirs:        []string{},
		Warnings:           storeWarnings(stores),
	}
	for _, c := range containers {
		if c.State.Phase == portlayer.Paused {
			v.ContainersPaused++
		} else if alive(c.State) {
			v.ContainersRunning++
		} else {
			v.ContainersStopped++
		}
	}
	if trouble != "" {
		v.Warnings = append(v.Warnings, "WARNING: "+trouble)
	}
	if versionOf(r).atLeast(1, 50) {
		return writeJSON(w, http.StatusOK, v)
	}
	return writeJSON(w, http.StatusOK, struct {
		system.Info
		// Gone with 1.50. There is no bridge to filter on.
		BridgeNfIptables, BridgeNfIP6Tables bool
	}{Info: v})
}

// details are those of the hypervisor.
func details(m portlayer.HypervisorInfo) map[string]string {
	if m.Accel == "" {
		return nil
	}
	return map[string]string{"Acceleration": m.Accel}
}

// driverStatus is the part of docker info that is vch's own.
func (s *Server) driverStatus(m portlayer.HypervisorInfo, stores []portlayer.StoreInfo) [][2]string {
	rows := [][2]string{{"Hypervisor", m.Name + " " + m.Version}}
	detail := "Hypervisor Detail"
	if m.Accel != "" {
		rows, detail = append(rows, [2]string{"Acceleration", m.Accel}), "Acceleration Detail"
	}
	if m.Detail != "" {
		rows = append(rows, [2]string{detail, m.Detail})
	}
	rows = append(rows, [2]string{"Guest Kernel", m.Kernel}, [2]string{"Default Memory", units.BytesSize(float64(s.Defaults.Memory))},
		[2]string{"Default CPUs", strconv.FormatFloat(float64(s.Defaults.CPUs)/1e9, 'g', -1, 64)})
	if m.Starts != "" {
		rows = append(rows, [2]string{"Machine Starts", m.Starts})
	}
	for _, st := range stores {
		text := fmt.Sprintf("%s %s, %s free of %s", st.Driver, st.Location, units.BytesSize(float64(st.Status.Free)), units.BytesSize(float64(st.Status.Total)))
		if st.Status.Degraded != "" {
			text = fmt.Sprintf("%s %s, degraded: %s", st.Driver, st.Location, st.Status.Degraded)
		}
		rows = append(rows, [2]string{"Volume Store " + string(st.Name), text})
	}
	return rows
}

func driversOf(stores []portlayer.StoreInfo) []string {
	drivers := []string{}
	for _, st := range stores {
		drivers = append(drivers, st.Driver)
	}
	slices.Sort(drivers)
	return slices.Compact(drivers)
}

// storeWarnings says what an administrator has to do about the stores.
func storeWarnings(stores []portlayer.StoreInfo) []string {
	warnings := []string{}
	for _, st := range stores {
		if st.Status.Degraded != "" {
			warnings = append(warnings, fmt.Sprintf("WARNING: volume store %s is degraded: %s", st.Name, st.Status.Degraded))
		}
	}
	if !slices.ContainsFunc(stores, func(st portlayer.StoreInfo) bool { return st.Name == portlayer.DefaultStore }) {
		warnings = append(warnings, fmt.Sprintf("WARNING: there is no volume store named %q: volumes that name no store are refused; start vch serve with --volume-store PATH:%[1]s", portlayer.DefaultStore))
	}
	return warnings
}

// Registries is how registries are spoken to, for /info.
type Registries struct {
	Mirrors  []string       // of Docker Hub: http[s]://HOST[:PORT]
	Insecure []string       // HOST[:PORT]
	Networks []netip.Prefix // of insecure ones
}

// registryConfig is how registries are spoken to: http on this host and where it is told so, https elsewhere.
func registryConfig(r Registries) *registry.ServiceConfig {
	c := &registry.ServiceConfig{
		InsecureRegistryCIDRs: append([]netip.Prefix{netip.MustParsePrefix("::1/128"), netip.MustParsePrefix("127.0.0.0/8")}, r.Networks...),
		IndexConfigs:          map[string]*registry.IndexInfo{"docker.io": {Name: "docker.io", Mirrors: []string{}, Secure: true, Official: true}},
		Mirrors:               []string{},
	}
	for _, m := range r.Mirrors {
		c.Mirrors = append(c.Mirrors, m+"/") // as Moby has them
	}
	c.IndexConfigs["docker.io"].Mirrors = c.Mirrors
	for _, host := range r.Insecure {
		c.IndexConfigs[host] = &registry.IndexInfo{Name: host, Mirrors: []string{}}
	}
	return c
}

func hostMemory() (int64, error) {
	var si unix.Sysinfo_t
	if err := unix.Sysinfo(&si); err != nil {
		return 0, fmt.Errorf("cannot read the host's memory: %w", err)
	}
	return int64(si.Totalram) * int64(si.Unit), nil
}

// unameMachine is the processor as uname(2) calls it, which is what docker info shows.
func unameMachine() string {
	var u unix.Utsname
	if err := unix.Uname(&u); err != nil {
		return runtime.GOARCH
	}
	return unix.ByteSliceToString(u.Machine[:])
}

// login answers docker login: it checks credentials against their registry.
func (s *Server) login(w http.ResponseWriter, r *http.Request) error {
	var auth registry.AuthConfig
	if err := decodeJSON(r, &auth); err != nil {
		return err
	}
	cred, err := credentials(&auth)
	if err != nil {
		return err
	}
	status, err := s.Images.Login(r.Context(), cmp.Or(auth.ServerAddress, "docker.io"), cred)
	if fault.Is(err, fault.Denied) {
		return statusError{http.StatusUnauthorized, err}
	}
	if err != nil {
		return err
	}
	return writeJSON(w, http.StatusOK, registry.AuthResponse{Status: status})
}
