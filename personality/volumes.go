package personality

import (
	"fmt"
	"net/http"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"time"

	"github.com/docker/go-units"
	"github.com/moby/moby/api/types/volume"

	"vch/internal/fault"
	"vch/personality/mountspec"
	"vch/portlayer"
)

// volumeCreate answers docker volume create.
func (s *Server) volumeCreate(w http.ResponseWriter, r *http.Request) error {
	var req volume.CreateRequest
	if _, err := decodeOptionalJSON(r, &req); err != nil {
		return err
	}
	if req.ClusterVolumeSpec != nil {
		return s.noSwarm(w, r)
	}
	id := portlayer.ParseVolumeID(req.Name)
	ask := portlayer.VolumeRequest{Name: id.Name, Store: id.Store, Driver: req.Driver, Options: req.DriverOpts, Labels: req.Labels}
	if req.Name == "" {
		ask.Labels = map[string]string{mountspec.AnonymousLabel: ""}
		for k, v := range req.Labels {
			ask.Labels[k] = v
		}
	}
	vol, err := s.Volumes.Create(r.Context(), ask)
	if err != nil {
		return err
	}
	return writeJSON(w, http.StatusCreated, showVolume(vol, s.Volumes.Locations()))
}

// showVolume is a volume as Docker shows it. The Mountpoint is the disk, or the directory on its server: there is none of the host that holds a volume's content.
func showVolume(v portlayer.Volume, stores map[portlayer.StoreName]string) volume.Volume {
	shown := volume.Volume{
		Name: v.Ref(), Driver: v.Driver, Scope: "local", CreatedAt: v.Created.UTC().Format(time.RFC3339), Labels: v.Labels, Options: v.Options,
	}
	if at, ok := stores[v.Store]; ok && v.Shared {
		shown.Mountpoint = v.Source
	} else if ok {
		shown.Mountpoint = volumeDisk(at, v.Name)
	}
	return shown
}

// volumeDisk is where a store keeps a volume's disk (architecture: "A volume on disk").
func volumeDisk(location string, name portlayer.VolumeName) string {
	return filepath.Join(location, "volumes", string(name), string(name)+".vmdk")
}

// volumeStatus is what vch knows of a volume and Docker has no field for.
func volumeStatus(d portlayer.VolumeDetail) map[string]any {
	status := map[string]any{
		"Store": string(d.Store),
		"Label": string(d.Label),
	}
	if d.Capacity > 0 {
		status["Capacity"] = units.BytesSize(float64(d.Capacity))
	}
	if d.Usage.Allocated >= 0 {
		status["Allocated"] = units.BytesSize(float64(d.Usage.Allocated))
	}
	if d.Settings != nil {
		status["Settings"] = d.Settings
	}
	if d.Throttle.IOPS != 0 {
		status["IOPS"] = d.Throttle.IOPS
	}
	if d.Throttle.BPS != 0 {
		status["BPS"] = units.BytesSize(float64(d.Throttle.BPS)) + "/s"
	}
	if in := d.Inside; in != nil {
		status["Size"] = units.BytesSize(float64(in.Total))
		status["Free"] = units.BytesSize(float64(in.Free))
		status["FreeAsOf"] = in.Time.Format(time.RFC3339)
	}
	if d.Protected() {
		status["Protected"] = true
	}
	attached := []string{}
	for _, a := range d.Attached {
		mode := "rw"
		if a.ReadOnly {
			mode = "ro"
		}
		attached = append(attached, fmt.Sprintf("%s (%s)", a.Container, mode))
	}
	status["AttachedTo"] = attached
	return status
}

// storeState is a store's state in words.
func storeState(st portlayer.StoreStatus) string {
	if st.Degraded != "" {
		return "degraded: " + st.Degraded
	}
	return "ok, " + units.BytesSize(float64(st.Free)) + " free of " + units.BytesSize(float64(st.Total))
}

// volumeInspect answers docker volume inspect.
func (s *Server) volumeInspect(w http.ResponseWriter, r *http.Request) error {
	d, err := s.Volumes.Get(r.Context(), portlayer.ParseVolumeID(r.PathValue("name")))
	if err != nil {
		return err
	}
	shown := showVolume(d.Volume, s.Volumes.Locations())
	shown.Status = volumeStatus(d)
	shown.Status["StoreState"] = storeState(d.Status)
	return writeJSON(w, http.StatusOK, shown)
}

// volumeList answers docker volume ls.
func (s *Server) volumeList(w http.ResponseWriter, r *http.Request) error {
	f, err := filtersOf(r)
	if err != nil {
		return fault.New(fault.Invalid, "error reading volume filters: %w", err)
	}
	if err := f.only("name", "label", "driver", "dangling"); err != nil {
		return err
	}
	dangling, err := f.boolean("dangling", false)
	if err != nil {
		return err
	}
	all, warnings, err := s.Volumes.List(r.Context())
	if err != nil {
		return err
	}
	stores := s.Volumes.Locations()
	list := volume.ListResponse{Volumes: make([]volume.Volume, 0, len(all)), Warnings: warnings}
	for _, d := range all {
		if len(f["dangling"]) > 0 && dangling != (len(d.Refs) == 0) {
			continue
		}
		if f.name(d.Ref()) && f.labels(d.Labels) && (len(f["driver"]) == 0 || slices.Contains(f["driver"], d.Driver)) {
			list.Volumes = append(list.Volumes, showVolume(d.Volume, stores))
		}
	}
	return writeJSON(w, http.StatusOK, list)
}

// name reports whether a name passes the filter "name": it is one of the values, or one of them, as a regular expression, is found in it.
func (f filters) name(have string) bool {
	return len(f["name"]) == 0 || slices.ContainsFunc(f["name"], func(v string) bool {
		if v == have {
			return true
		}
		re, err := regexp.Compile(v)
		return err == nil && re.MatchString(have)
	})
}

// volumeRemove answers docker volume rm. With force, a volume that is not there is no error; one in use stays one.
func (s *Server) volumeRemove(w http.ResponseWriter, r *http.Request) error {
	err := s.Volumes.Remove(r.Context(), portlayer.ParseVolumeID(r.PathValue("name")))
	if err != nil && (!fault.Is(err, fault.NotFound) || !boolValue(r, "force")) {
		return err
	}
	w.WriteHeader(http.StatusNoContent)
	return nil
}

// volumePrune answers docker volume prune: anonymous volumes without references, or, with the filter "all" and for clients before 1.42, named ones, too.
// Volumes made with options are no exception, as they are in Moby: there the option may mean that the content lies elsewhere; here the disk is all.
func (s *Server) volumePrune(w http.ResponseWriter, r *http.Request) error {
	f, err := filtersOf(r)
	if err == nil {
		err = f.only("label", "label!", "all")
	}
	if err != nil {
		return err
	}
	all, _, err := f.pruneAll()
	if err != nil {
		return err
	}
	all = all || !versionOf(r).atLeast(1, 42)
	gone, freed, err := s.Volumes.Prune(r.Context(), func(v portlayer.Volume) bool {
		_, anonymous := v.Labels[mountspec.AnonymousLabel]
		return (all || anonymous) && f.labels(v.Labels)
	})
	if err != nil && len(gone) == 0 {
		return err
	}
	if err != nil { // what is gone is gone: the client hears of that, the log of the rest
		s.Log.Warn("a prune left volumes that it could not remove", "err", strings.ReplaceAll(err.Error(), "\n", "; "))
	}
	report := volume.PruneReport{VolumesDeleted: []string{}, SpaceReclaimed: uint64(freed)}
	for _, v := range gone {
		report.VolumesDeleted = append(report.VolumesDeleted, v.Ref())
	}
	return writeJSON(w, http.StatusOK, report)
}
