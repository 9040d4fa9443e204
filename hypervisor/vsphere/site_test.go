package vsphere

import (
	"log/slog"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/vmware/govmomi/vim25/mo"

	"vch/hypervisor/vsphere/vcsim"
	"vch/internal/fault"
	"vch/portlayer"
)

// site opens a simulated vCenter as a place of VCHs.
func site(t *testing.T, sim *vcsim.Sim) *Site {
	t.Helper()
	s, err := OpenSite(t.Context(), siteOptions(sim))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(s.Close)
	return s
}

func siteOptions(sim *vcsim.Sim) SiteOptions {
	password, _ := sim.User().Password()
	return SiteOptions{Server: Server{URL: sim.URL().String(), User: sim.User().Username(), Password: password, Thumbprint: sim.Thumbprint()}, Log: slog.New(slog.DiscardHandler)}
}

// A pool, a folder and directories are made and removed, each as often as one likes, and what holds something that is somebody else's stays.
func TestSiteMakesAndRemoves(t *testing.T) {
	sim := simulate(t, vcsim.Options{})
	s := site(t, sim)
	ctx := t.Context()
	pool, err := s.Pool(ctx, "")
	if err != nil {
		t.Fatal(err)
	}
	folder, err := s.Folder(ctx, "")
	if err != nil {
		t.Fatal(err)
	}
	if pool.Path != "/DC0/host/DC0_C0/Resources" || folder.Path != "/DC0/vm" || s.Datacenter() != "/DC0" || !s.VCenter() {
		t.Errorf("%+v, %+v, %s", pool, folder, s.Datacenter())
	}
	own, ownFolder := pool.Path+"/web", folder.Path+"/web"
	for range 2 {
		for what, err := range map[string]error{
			"pool": s.MakePool(ctx, own), "folder": s.MakeFolder(ctx, ownFolder), "inner": s.MakeFolder(ctx, ownFolder+"/theirs"), "directory": s.MakeDir(ctx, "[datastore1] a/b"),
			"extension": s.Register(ctx, "org.vch.web", "web", "v1"),
		} {
			if err != nil {
				t.Errorf("%s: %v", what, err)
			}
		}
	}
	if there, err := s.There(ctx, folder, "web"); err != nil || !there {
		t.Errorf("%v, %v", there, err)
	}
	if names, err := s.Foreign(ctx, own, ownFolder, "this"); err != nil || len(names) != 1 || names[0] != ownFolder+"/theirs" {
		t.Errorf("%v, %v", names, err)
	}
	if err := s.RemoveFolder(ctx, ownFolder); !fault.Is(err, fault.InUse) || !strings.Contains(err.Error(), "theirs") {
		t.Errorf("a folder that is not empty: %v", err)
	}
	if err := s.RemoveFolder(ctx, ownFolder+"/theirs"); err != nil {
		t.Error(err)
	}
	if err := s.RemoveEmpty(ctx, "[datastore1] a"); err != nil {
		t.Error(err)
	}
	if _, err := os.Stat(sim.Path("[datastore1] a/b")); err != nil {
		t.Errorf("a directory that is not empty was removed: %v", err)
	}
	for range 2 {
		for what, err := range map[string]error{
			"pool": s.RemovePool(ctx, own), "folder": s.RemoveFolder(ctx, ownFolder), "directory": s.RemoveDir(ctx, "[datastore1] a"), "extension": s.Unregister(ctx, "org.vch.web"),
		} {
			if err != nil {
				t.Errorf("%s: %v", what, err)
			}
		}
	}
	if _, err := s.Folder(ctx, ownFolder); !fault.Is(err, fault.NotFound) {
		t.Errorf("it is there still: %v", err)
	}
	if err := s.RemoveDir(ctx, "[datastore1]"); !fault.Is(err, fault.Invalid) {
		t.Errorf("a datastore: %v", err)
	}
}

// A place on a datastore is tried without a trace, where it is or will be.
func TestSiteTry(t *testing.T) {
	sim := simulate(t, vcsim.Options{Datastores: []string{"datastore1", "away"}})
	s := site(t, sim)
	if err := s.MakeDir(t.Context(), "[datastore1] there"); err != nil {
		t.Fatal(err)
	}
	for dir, want := range map[portlayer.DiskPath]bool{"[datastore1]": true, "[datastore1] there": true, "[datastore1] not/yet": false} {
		total, free, there, err := s.Try(t.Context(), dir)
		if err != nil || there != want || free <= 0 || total < free {
			t.Errorf("%s: %v, %v, %d of %d", dir, there, err, free, total)
		}
	}
	sim.Datastore("away").Lose()
	for dir, want := range map[portlayer.DiskPath]string{"[away] x": "no host reaches datastore away", "[none] x": "no datastore none that this user sees; there are away, datastore1"} {
		for end := time.Now().Add(5 * time.Second); ; time.Sleep(10 * time.Millisecond) { // the news of it comes a moment later
			if _, _, _, err := s.Try(t.Context(), dir); err != nil && strings.Contains(err.Error(), want) {
				break
			} else if err == nil || time.Now().After(end) {
				t.Errorf("%s: %v", dir, err)
				break
			}
		}
	}
	left, err := filepath.Glob(filepath.Join(sim.Path("[datastore1]"), "*"))
	if err != nil || len(left) != 1 {
		t.Errorf("%v, %v", left, err)
	}
}

// Who may not log in hears why.
func TestSiteRefused(t *testing.T) {
	sim := simulate(t, vcsim.Options{})
	for want, change := range map[string]func(*SiteOptions){
		"check the user and the password": func(o *SiteOptions) { o.Server.Password = "no" },
		"is not the one that was given":   func(o *SiteOptions) { o.Server.Thumbprint = strings.Repeat("ab", 32) },
		"datacenter nowhere":              func(o *SiteOptions) { o.Datacenter = "nowhere" },
	} {
		o := siteOptions(sim)
		change(&o)
		if _, err := OpenSite(t.Context(), o); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%s: %v", want, err)
		}
	}
}

// What a user lacks is said with the object and what it is for.
func TestSiteLacks(t *testing.T) {
	sim := simulate(t, vcsim.Options{Lacks: []string{"Datastore.FileManagement", "Folder.Create", "Extension.Register"}})
	s := site(t, sim)
	pool, perr := s.Pool(t.Context(), "")
	folder, ferr := s.Folder(t.Context(), "")
	network, nerr := s.Network(t.Context(), vcsim.Network)
	if perr != nil || ferr != nil || nerr != nil {
		t.Fatal(perr, ferr, nerr)
	}
	lacks, err := s.Lacks(t.Context(), folder, pool, network, []portlayer.DiskPath{"[datastore1] a", "[datastore1] b", "[none]"})
	if err != nil {
		t.Fatal(err)
	}
	needed, optional := Lacking(lacks)
	want := []string{"Datastore.FileManagement on datastore datastore1 (to make, copy, move and remove volumes and images)", "Folder.Create on VM folder /DC0/vm (to make the VCH's folder)"}
	if !slices.Equal(needed, want) || len(optional) != 1 || !strings.HasPrefix(optional[0], "Extension.Register on vCenter ") {
		t.Errorf("%q, %q", needed, optional)
	}
}

// Every call that this package makes has its privileges in the table, or reads only.
func TestEveryCallHasItsPrivilege(t *testing.T) {
	reads := []string{"CreateFilter", "GetCurrentTime", "ModifyListView", "RetrieveProperties", "WaitForUpdatesEx", "HasPrivilegeOnEntities", "FindExtension"}
	known := map[string]bool{}
	for _, p := range Privileges() {
		for _, call := range p.calls {
			known[call] = true
		}
		if p.ID == "" || p.For == "" || len(p.calls) == 0 {
			t.Errorf("%+v", p)
		}
	}
	files, err := filepath.Glob("*.go")
	if err != nil {
		t.Fatal(err)
	}
	made := map[string]bool{}
	for _, file := range files {
		if strings.HasSuffix(file, "_test.go") {
			continue
		}
		text, err := os.ReadFile(file)
		if err != nil {
			t.Fatal(err)
		}
		for _, m := range regexp.MustCompile(`methods\.([A-Za-z_]+)\(`).FindAllStringSubmatch(string(text), -1) {
			made[m[1]] = true
			if !known[m[1]] && !slices.Contains(reads, m[1]) {
				t.Errorf("%s calls %s, and Privileges does not say what it wants", file, m[1])
			}
		}
	}
	for call := range known {
		if !made[call] {
			t.Errorf("nothing calls %s, which Privileges wants privileges for", call)
		}
	}
	for _, r := range Roles() {
		if len(r.Privileges) == 0 || strings.ContainsAny(r.Name, " ") {
			t.Errorf("%+v", r)
		}
	}
}

// The disc that machines boot from is made once.
func TestSiteBootDisc(t *testing.T) {
	sim := simulate(t, vcsim.Options{})
	s := site(t, sim)
	o := BootOptions{Datastore: "datastore1", StateDir: t.TempDir(), Tether: []byte("tether")}
	first, err := s.BootDisc(t.Context(), o)
	if err != nil {
		t.Fatal(err)
	}
	again, err := s.BootDisc(t.Context(), o)
	if err != nil || first != again || !strings.HasPrefix(string(first), string(SharedDir("datastore1"))+"/boot-") {
		t.Errorf("%s, %s, %v", first, again, err)
	}
	if n := sim.Calls(false)["PUT /folder"]; n != 1 {
		t.Errorf("%d files were written", n)
	}
	for _, tool := range Tools(Options{}) {
		if !tool.OK {
			t.Errorf("%+v", tool)
		}
	}
}

// A VCH's machines are told from others in its folder, and its volumes are listed, while no daemon runs.
func TestSiteSeesMachinesAndVolumes(t *testing.T) {
	sim := simulate(t, vcsim.Options{})
	o := options(t, sim, t.TempDir())
	o.Extension = "org.vch.web"
	h := open(t, o)
	if _, err := h.Define(t.Context(), spec("m1")); err != nil {
		t.Fatal(err)
	}
	for _, dir := range []string{"data", ".hidden"} {
		at := h.Disks().Join("[datastore1] vols/volumes", dir)
		if err := h.Disks().MakeDir(t.Context(), at); err != nil {
			t.Fatal(err)
		}
		if err := h.Disks().WriteFile(t.Context(), h.Disks().Join(at, "volume.json"), []byte("{}")); err != nil {
			t.Fatal(err)
		}
	}
	s := site(t, sim)
	if all, err := s.Machines(t.Context(), "/DC0/vm", "this"); err != nil || len(all) != 1 || all[0].ID != "m1" || all[0].Power != "poweredOff" {
		t.Errorf("%+v, %v", all, err)
	}
	var vm mo.VirtualMachine
	if err := s.s.properties(t.Context(), h.watch.find("m1").ref, []string{"config.managedBy"}, &vm); err != nil || vm.Config.ManagedBy == nil || vm.Config.ManagedBy.ExtensionKey != "org.vch.web" {
		t.Errorf("it is managed by nobody: %+v, %v", vm.Config, err)
	}
	if all, err := s.Machines(t.Context(), "/DC0/vm", "another"); err != nil || len(all) != 0 {
		t.Errorf("%+v, %v", all, err)
	}
	if names, err := s.Foreign(t.Context(), "/DC0/host/DC0_C0/Resources", "/DC0/vm", "this"); err != nil || len(names) != 0 {
		t.Errorf("%v, %v", names, err)
	}
	if names, err := s.Foreign(t.Context(), "/DC0/host/DC0_C0/Resources", "/DC0/vm", "another"); err != nil || len(names) != 2 {
		t.Errorf("%v, %v", names, err)
	}
	if all, err := s.Volumes(t.Context(), "[datastore1] vols"); err != nil || len(all) != 1 || all[0] != "[datastore1] vols/volumes/data" {
		t.Errorf("%v, %v", all, err)
	}
	if all, err := s.Volumes(t.Context(), "[datastore1] none"); err != nil || len(all) != 0 {
		t.Errorf("%v, %v", all, err)
	}
}
