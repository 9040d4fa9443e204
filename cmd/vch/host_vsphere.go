package main

import (
	"bufio"
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"log/slog"
	"os"
	"path"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"vch/hypervisor/vsphere"
	"vch/internal/atomicfile"
	"vch/internal/fault"
	"vch/machine"
	"vch/portlayer"
	"vch/portlayer/exec"
)

// The kinds of steps that only a VCH on vSphere has. Subject is what is made or removed; Settings are those by which it is found, where the plan is to remove it.
const (
	writePassword   machine.Kind = "write-password"
	restorePassword machine.Kind = "restore-password"
	makePool        machine.Kind = "make-resource-pool"
	makeFolder      machine.Kind = "make-vm-folder"
	register        machine.Kind = "register-extension"
	makeDatastore   machine.Kind = "make-datastore-directory"
	uploadBootDisc  machine.Kind = "upload-boot-disc"
	removeDatastore machine.Kind = "remove-datastore-directory" // and the one that it is in, if that is empty then
	removePool      machine.Kind = "remove-resource-pool"
	removeFolder    machine.Kind = "remove-vm-folder"
	unregister      machine.Kind = "unregister-extension"
)

// onVSphere does the steps of a VCH whose machines are on vSphere, and all others as site does.
type onVSphere struct{ site }

// Do is machine.Site.Do.
func (s onVSphere) Do(ctx context.Context, step machine.Step) error {
	var do func(context.Context, *vsphere.Site, settings) error
	at := portlayer.DiskPath(step.Subject)
	switch step.Kind {
	case writePassword:
		return s.writePassword(step.Data[changeKey])
	case restorePassword:
		return s.restorePassword(step.Data[changeKey])
	case makePool:
		do = func(ctx context.Context, v *vsphere.Site, set settings) error {
			if err := v.MakePool(ctx, step.Subject); err != nil {
				return err
			}
			pool, err := v.Pool(ctx, step.Subject)
			if err != nil {
				return err
			}
			return reaching(ctx, v, set, vsphere.Spot{}, pool)
		}
	case makeFolder:
		do = func(ctx context.Context, v *vsphere.Site, set settings) error {
			if err := v.MakeFolder(ctx, step.Subject); err != nil {
				return err
			}
			folder, err := v.Folder(ctx, step.Subject)
			if err != nil {
				return err
			}
			return reaching(ctx, v, set, folder, vsphere.Spot{})
		}
	case register:
		do = func(ctx context.Context, v *vsphere.Site, _ settings) error {
			return v.Register(ctx, step.Subject, s.Name, version)
		}
	case makeDatastore:
		do = func(ctx context.Context, v *vsphere.Site, _ settings) error { return v.MakeDir(ctx, at) }
	case uploadBootDisc:
		do = s.uploadBootDisc
	case removeDatastore:
		do = func(ctx context.Context, v *vsphere.Site, set settings) error {
			if err := v.RemoveDir(ctx, at); err != nil {
				return err
			}
			return v.RemoveEmpty(ctx, set.ImageDisks)
		}
	case removePool:
		do = func(ctx context.Context, v *vsphere.Site, _ settings) error { return v.RemovePool(ctx, step.Subject) }
	case removeFolder:
		do = func(ctx context.Context, v *vsphere.Site, _ settings) error {
			return v.RemoveFolder(ctx, step.Subject)
		}
	case unregister:
		do = func(ctx context.Context, v *vsphere.Site, _ settings) error { return v.Unregister(ctx, step.Subject) }
	case machine.MakeStore:
		if onDatastore(step.Subject) {
			do = func(ctx context.Context, v *vsphere.Site, _ settings) error {
				return v.MakeDir(ctx, v.Join(at, "volumes"))
			}
		}
	}
	if do == nil {
		return s.site.Do(ctx, step)
	}
	set := step.Settings
	if set == nil {
		j, err := s.Home.Journal()
		if err != nil {
			return err
		}
		set = j.Desired.Settings
	}
	found, err := checked(set, s.at)
	if err != nil {
		return err
	}
	ctx, cancel := context.WithTimeoutCause(ctx, s.patience, fmt.Errorf("%s has not done it after %v; give it longer with --wait", found.VSphere.URL, s.patience))
	defer cancel()
	v, err := s.reach(ctx, found)
	if err != nil {
		return err
	}
	defer v.Close()
	if err := do(ctx, v, found); err != nil && ctx.Err() != nil {
		return fault.New(fault.Unavailable, "%w", context.Cause(ctx))
	} else if err != nil {
		return err
	}
	return nil
}

// reaching refuses a folder or a pool that was just made, in which the user may not do what it may do around it.
func reaching(ctx context.Context, v *vsphere.Site, set settings, folder, pool vsphere.Spot) error {
	lacks, err := v.Lacks(ctx, folder, pool, vsphere.Spot{}, nil)
	if err != nil {
		return nil // what cannot be checked is no reason to end: it is found out when it is done
	}
	if needed, _ := vsphere.Lacking(lacks); needed != nil {
		return fault.New(fault.Denied, "user %s has privileges around it that do not reach it: %s; have the permission propagate", set.VSphere.User, strings.Join(needed, ", "))
	}
	return nil
}

// onDatastore says whether a path is a datastore's.
func onDatastore(path string) bool { return strings.HasPrefix(path, "[") }

// inDatastore is name in a directory of a datastore.
func inDatastore(dir, name string) string {
	if strings.HasSuffix(dir, "]") {
		return dir + " " + name
	}
	return dir + "/" + name
}

func (s site) uploadBootDisc(ctx context.Context, v *vsphere.Site, set settings) error {
	dir := filepath.Join(s.State, "vsphere") // as the daemon has it
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return err
	}
	_, err := v.BootDisc(ctx, vsphere.BootOptions{Datastore: datastoreOf(set.ImageDisks), StateDir: dir, Kernel: set.Kernel, Tether: tetherProgram(), Seeds: bootSeeds()})
	return err
}

// bootSeeds are the usual sizes of machines' own disks.
func bootSeeds() []portlayer.Bytes { return []portlayer.Bytes{exec.RootSize} }

// datastoreOf is the name of a datastore in a path.
func datastoreOf(at portlayer.DiskPath) string {
	name, _, _ := strings.Cut(strings.TrimPrefix(string(at), "["), "]")
	return name
}

// passwordFile is where the password of the VCH's user is.
func (l place) passwordFile() string { return filepath.Join(string(l.Home), "password") }

// writePassword keeps the password, and the one before under the name of the change.
func (s site) writePassword(change string) error {
	if s.password == "" {
		return fault.New(fault.Conflict, "the password is not known any more: say it again with --password-file, or in the environment as VCH_PASSWORD")
	}
	if kept := s.keptPassword(); kept != "" && kept != s.password {
		if err := s.forgetPasswords(); err != nil {
			return err
		}
		if err := atomicfile.Write(s.formerPassword(change), []byte(kept+"\n"), 0o600); err != nil {
			return err
		}
	}
	return atomicfile.Write(s.passwordFile(), []byte(s.password+"\n"), 0o600)
}

// changeKey is what a change of the password is called by, in the data of its steps: the way back of one that did not come so far has nothing to take back.
const changeKey = "change"

// formerPassword is where the password is that there was before a change.
func (l place) formerPassword(change string) string { return l.passwordFile() + ".before-" + change }

// forgetPasswords removes those that there were before earlier changes.
func (l place) forgetPasswords() error {
	old, err := filepath.Glob(l.formerPassword("*"))
	for _, file := range old {
		err = errors.Join(err, removeFile(file))
	}
	return err
}

// restorePassword takes writePassword back; done already, nothing happens.
func (s site) restorePassword(change string) error {
	text, err := os.ReadFile(s.formerPassword(change))
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		return err
	}
	return atomicfile.Write(s.passwordFile(), text, 0o600)
}

// keptPassword is the one that the VCH has kept, "" if it has none.
func (s site) keptPassword() string {
	text, err := os.ReadFile(s.passwordFile())
	if err != nil {
		return ""
	}
	return strings.TrimRight(string(text), "\r\n")
}

// reach logs in at the target.
func (s site) reach(ctx context.Context, set settings) (*vsphere.Site, error) {
	password := s.password
	if password == "" {
		password = s.keptPassword()
	}
	if password == "" {
		password = os.Getenv("VCH_PASSWORD")
	}
	if password == "" {
		return nil, fault.New(fault.Denied, "the password of user %s at %s is not known; say it in the environment: VCH_PASSWORD", set.VSphere.User, set.VSphere.URL)
	}
	return openTarget(ctx, set.VSphere, password)
}

// openTarget logs in, or says that nobody answers within openLimit.
func openTarget(ctx context.Context, t *vsphereTarget, password string) (*vsphere.Site, error) {
	ctx, cancel := context.WithTimeout(ctx, openLimit)
	defer cancel()
	site, err := vsphere.OpenSite(ctx, vsphere.SiteOptions{Server: t.server(password), Datacenter: t.Datacenter, Log: slog.New(slog.DiscardHandler)})
	if err != nil && errors.Is(ctx.Err(), context.DeadlineExceeded) {
		return nil, fault.New(fault.Unavailable, "%s has not answered after %v", t.URL, openLimit)
	}
	return site, err
}

// openLimit is longer than a vCenter under load takes for a login.
const openLimit = 30 * time.Second

func (v *vsphereTarget) server(password string) vsphere.Server {
	return vsphere.Server{URL: v.URL, User: v.User, Password: password, Thumbprint: v.Thumbprint}
}

// findPassword finds the password for the first time: in a file that was named, in the environment, where an earlier try has put it, or by asking whoever is at the terminal.
func (s site) findPassword(t *vsphereTarget, file string, in *os.File, out io.Writer) (string, error) {
	if file != "" {
		named := *t
		named.PasswordFile = file
		return named.password()
	}
	if p := os.Getenv("VCH_PASSWORD"); p != "" {
		return p, nil
	}
	if p := s.keptPassword(); p != "" {
		return p, nil
	}
	if !isTerminal(in) {
		return "", usagef("the password of user %s at %s is neither in --password-file nor in the environment as VCH_PASSWORD", t.User, t.URL)
	}
	return askPassword(in, out, fmt.Sprintf("Password of %s at %s: ", t.User, t.URL))
}

// askPassword asks at a terminal, which does not show what is typed (termios(3), ECHO).
func askPassword(in *os.File, out io.Writer, question string) (string, error) {
	fd := int(in.Fd())
	before, err := unix.IoctlGetTermios(fd, unix.TCGETS)
	if err != nil {
		return "", err
	}
	silent := *before
	silent.Lflag &^= unix.ECHO
	if err := unix.IoctlSetTermios(fd, unix.TCSETS, &silent); err != nil {
		return "", err
	}
	fmt.Fprint(out, question)
	line, err := bufio.NewReader(in).ReadString('\n')
	fmt.Fprintln(out)
	if back := unix.IoctlSetTermios(fd, unix.TCSETS, before); back != nil {
		return "", back
	}
	line = strings.TrimRight(line, "\r\n")
	if line == "" {
		return "", fault.New(fault.Denied, "there is no empty password: %w", err)
	}
	return line, nil
}

// survey is what was seen of a target before anything is made there.
type survey struct {
	site         *vsphere.Site // nil: it could not be reached
	checks       []machine.Check
	pool, folder string // in which the VCH's own are, or will be; "": there is no choice
	registers    bool   // the user may register an extension
}

// surveyed looks at the target. own is the name of the VCH that is to be made there; "": nothing is. close follows.
func surveyed(ctx context.Context, s settings, password, own string) (v survey) {
	add := func(name, verdict, detail string) {
		v.checks = append(v.checks, check{name, verdict, detail}.noun())
	}
	t := s.VSphere
	var err error
	if v.site, err = openTarget(ctx, t, password); err != nil {
		add("target", fail, err.Error())
		return v
	}
	add("target", ok, fmt.Sprintf("%s at %s, as %s", v.site.Version(), t.URL, t.User))
	add("datacenter", ok, v.site.Datacenter())
	spot := func(name string, find func() (vsphere.Spot, error)) vsphere.Spot {
		p, err := find()
		detail := p.Path
		if err == nil && own != "" && name != "network" && (name != "VM folder" || v.site.VCenter()) {
			var there bool
			if there, err = v.site.There(ctx, p, own); there {
				err = fault.New(fault.Conflict, "%s has a %s already: another VCH, or something else, is called so; give this one another name", p.Path, own)
			}
			detail = p.Path + "/" + own + " will be made"
		}
		if err != nil {
			add(name, fail, err.Error())
			return p
		}
		if name == "network" {
			detail += "; machines get their addresses there from a DHCP server, which cannot be looked for from here"
		}
		add(name, ok, detail)
		return p
	}
	pool := spot("resource pool", func() (vsphere.Spot, error) { return v.site.Pool(ctx, t.Pool) })
	folder := spot("VM folder", func() (vsphere.Spot, error) { return v.site.Folder(ctx, t.Folder) })
	network := spot("network", func() (vsphere.Spot, error) { return v.site.Network(ctx, t.Network) })
	v.pool = pool.Path
	if v.site.VCenter() {
		v.folder = folder.Path
	}
	v.checks = append(v.checks, v.checkPlace(ctx, "image store", string(s.ImageDisks)))
	v.checks = append(v.checks, v.checkPrivileges(ctx, s, folder, pool, network))
	return v
}

func (v *survey) close() {
	if v.site != nil {
		v.site.Close()
	}
}

// checkPlace looks at a directory of a datastore: reached, writable, with room.
func (v *survey) checkPlace(ctx context.Context, title, at string) machine.Check {
	if v.site == nil {
		return check{title, warn, at + " is not looked at, as the target is not reached"}.noun()
	}
	total, free, there, err := v.site.Try(ctx, portlayer.DiskPath(at))
	if err != nil {
		return check{title, fail, err.Error()}.noun()
	}
	detail := fmt.Sprintf("%s, %s free of %s", at, size(free), size(total))
	if !there {
		detail = fmt.Sprintf("%s is not there yet and will be made, %s free of %s", at, size(free), size(total))
	}
	switch {
	case free < leastState:
		return check{title, fail, "there is no space: " + detail}.noun()
	case free < littleRoom:
		return check{title, warn, "little room: " + detail}.noun()
	}
	return check{title, ok, detail}.noun()
}

func (v *survey) checkPrivileges(ctx context.Context, s settings, folder, pool, network vsphere.Spot) machine.Check {
	const title = "privileges"
	dirs := []portlayer.DiskPath{s.ImageDisks}
	for _, store := range s.Stores {
		if store.Datastore {
			dirs = append(dirs, portlayer.DiskPath(store.Path))
		}
	}
	lacks, err := v.site.Lacks(ctx, folder, pool, network, dirs)
	if err != nil {
		return check{title, warn, fmt.Sprintf("they cannot be checked: %v", err)}.noun()
	}
	needed, optional := vsphere.Lacking(lacks)
	v.registers = v.site.VCenter() && !slices.ContainsFunc(lacks, func(l vsphere.Lack) bool { return strings.HasPrefix(l.ID, "Extension.") })
	switch {
	case needed != nil:
		return check{title, fail, fmt.Sprintf("user %s lacks %s; vch role lists all that is needed", s.VSphere.User, strings.Join(needed, ", "))}.noun()
	case optional != nil:
		return check{title, ok, fmt.Sprintf("user %s has all that are needed, and lacks of the others %s", s.VSphere.User, strings.Join(optional, ", "))}.noun()
	}
	return check{title, ok, fmt.Sprintf("user %s has all that vch role lists", s.VSphere.User)}.noun()
}

// checkGuests looks at the address that guests come to.
func checkGuests(t *vsphereTarget, others map[string]settings) machine.Check {
	const title = "guests"
	for name, other := range others {
		if other.VSphere != nil && other.VSphere.GuestListen == t.GuestListen {
			return check{title, fail, fmt.Sprintf("the guests of VCH %s come to %s; choose another address with --guest-listen", name, t.GuestListen)}.noun()
		}
	}
	l, advertise, err := t.listen()
	if err != nil {
		return check{title, fail, err.Error()}.noun()
	}
	if err := l.Close(); err != nil {
		return check{title, fail, err.Error()}.noun()
	}
	return check{title, ok, fmt.Sprintf("come to %s, by %s; whether machines reach that cannot be looked at from here", t.GuestListen, advertise)}.noun()
}

// examineSphere looks at what this machine needs for machines on vSphere.
func examineSphere(s settings) (checks []check) {
	for _, tool := range vsphere.Tools(vsphere.Options{Kernel: s.Kernel}) {
		checks = append(checks, check{tool.Name, verdictOf(tool.OK), tool.Detail})
	}
	return checks
}

// examineTarget looks at a target of which all is there: what a daemon would use.
func examineTarget(ctx context.Context, s settings) (checks []check) {
	password, err := s.VSphere.password()
	if err != nil {
		return []check{{"target", fail, err.Error()}}
	}
	v := surveyed(ctx, s, password, "")
	defer v.close()
	rows := v.checks
	for _, store := range s.Stores {
		if store.Datastore {
			row := v.checkPlace(ctx, "store "+string(store.Name), store.Path)
			if row.Verdict == machine.Fail { // it keeps no VCH from starting
				row.Verdict, row.Detail = machine.Warn, row.Detail+"; the store is degraded until that is mended"
			}
			rows = append(rows, row)
		}
	}
	for _, r := range rows {
		checks = append(checks, check{r.Name, string(r.Verdict), r.Detail})
	}
	return checks
}

// ownSteps are the steps that a VCH on vSphere has of its own.
func (s site) ownSteps(d machine.Desired, o machine.Observed) (own machine.Own) {
	if d.Gone {
		own.After = s.leaving(o)
		return own
	}
	found, err := checked(d.Settings, s.at)
	if err != nil || found.VSphere == nil {
		return own
	}
	add := func(kind machine.Kind, subject, will, done string) {
		own.Before = append(own.Before, machine.Step{Kind: kind, Subject: subject, Text: fmt.Sprintf(will, subject), Done: fmt.Sprintf(done, subject)})
	}
	if s.password != "" && s.password != s.keptPassword() {
		add(writePassword, s.passwordFile(), "keep the password in %s, which this user alone can read", "kept the password in %s")
	}
	if o.Supervisor != "" { // it is there
		if own.Before != nil {
			change := map[string]string{changeKey: strings.ToLower(rand.Text())}
			own.Before[0].Data = change
			own.Back = []machine.Step{{Kind: restorePassword, Subject: s.passwordFile(), Data: change, Text: "keep the password that there was", Done: "kept the password that there was"}}
		}
		return own
	}
	if found.VSphere.Pool != "" {
		add(makePool, found.VSphere.Pool, "make the resource pool %s", "made the resource pool %s")
	}
	if found.VSphere.Folder != "" {
		add(makeFolder, found.VSphere.Folder, "make the VM folder %s", "made the VM folder %s")
	}
	if s.registers && found.VSphere.Extension != "" {
		add(register, found.VSphere.Extension, "register the extension %s, as which vCenter shows who manages the machines", "registered the extension %s")
	}
	add(makeDatastore, string(found.ImageDisks), "make the directory %s for images and machines", "made the directory %s")
	add(uploadBootDisc, string(vsphere.SharedDir(datastoreOf(found.ImageDisks))), "put the disc that machines boot from into %s", "put the disc that machines boot from into %s")
	return own
}

// leaving are the steps that take a VCH from vSphere.
func (s site) leaving(o machine.Observed) (steps []machine.Step) {
	if s.forsakes {
		return nil
	}
	set := o.Settings
	made := func(machine.Kind) bool { return true }
	if j, err := s.Home.Journal(); err == nil && j.Command == machine.Create { // as far as it came
		set = j.Desired.Settings
		begun := j.Plan.Steps[:j.Done]
		if j.Doing && j.Done < len(j.Plan.Steps) {
			begun = j.Plan.Steps[:j.Done+1]
		}
		made = func(k machine.Kind) bool {
			return slices.ContainsFunc(begun, func(step machine.Step) bool { return step.Kind == k })
		}
	} else if err == nil && set == nil && len(j.Plan.Steps) > 0 {
		for _, step := range j.Plan.Steps {
			if step.Settings["target"] != nil {
				set = step.Settings
			}
		}
	}
	found, err := checked(set, s.at)
	if err != nil || found.VSphere == nil {
		return nil
	}
	by := machine.Settings{}
	for _, key := range []string{"target", "user", "thumbprint", "datacenter", "image-store", "pool", "folder", "extension"} {
		if set[key] != nil {
			by[key] = set[key]
		}
	}
	add := func(kind machine.Kind, subject, will, done string) {
		steps = append(steps, machine.Step{Kind: kind, Subject: subject, Settings: by, Text: fmt.Sprintf(will, subject), Done: fmt.Sprintf(done, subject)})
	}
	if made(makeDatastore) {
		dir := inDatastore(string(found.ImageDisks), "images-none") // what is not there is removed: an empty image store goes
		if id := s.engine(); id != "" {
			dir = inDatastore(string(found.ImageDisks), "images-"+id)
		}
		add(removeDatastore, dir, "remove the images, %s", "removed the images, %s")
	}
	if made(makeFolder) && found.VSphere.Folder != "" {
		add(removeFolder, found.VSphere.Folder, "remove the VM folder %s, if it is empty", "removed the VM folder %s")
	}
	if made(makePool) && found.VSphere.Pool != "" {
		add(removePool, found.VSphere.Pool, "remove the resource pool %s, if it is empty", "removed the resource pool %s")
	}
	if made(register) && found.VSphere.Extension != "" && s.registers {
		add(unregister, found.VSphere.Extension, "unregister the extension %s", "unregistered the extension %s")
	}
	return steps
}

// engine is the id by which a VCH's machines are known; "": its daemon has never run.
func (l place) engine() string {
	text, err := os.ReadFile(filepath.Join(l.State, "engine-id"))
	if err != nil {
		return ""
	}
	return strings.TrimSpace(string(text))
}

// seen is what vSphere has of a VCH, for when no daemon can be asked, and before it is removed.
type seen struct {
	machines  []vsphere.Resident
	volumes   []machine.Volume
	foreign   []string // what is in its folder and pool and is not its own
	registers bool
}

// look asks the target for what there is of the VCH. A store that cannot be reached has no volumes.
func (s site) look(ctx context.Context, set settings) (what seen, err error) {
	v, err := s.reach(ctx, set)
	if err != nil {
		return what, err
	}
	defer v.Close()
	if what.machines, err = v.Machines(ctx, set.VSphere.Folder, s.engine()); err != nil {
		return what, err
	}
	if own := path.Base(set.VSphere.Folder); own == s.Name {
		if what.foreign, err = v.Foreign(ctx, set.VSphere.Pool, set.VSphere.Folder, s.engine()); err != nil {
			return what, err
		}
	}
	for _, store := range set.Stores {
		if !store.Datastore {
			continue
		}
		dirs, err := v.Volumes(ctx, portlayer.DiskPath(store.Path))
		if err != nil {
			continue
		}
		for _, dir := range dirs {
			what.volumes = append(what.volumes, machine.Volume{Name: path.Base(string(dir)), Store: string(store.Name), Where: string(dir)})
		}
	}
	lacks, err := v.Lacks(ctx, vsphere.Spot{}, vsphere.Spot{}, vsphere.Spot{}, nil)
	if err != nil {
		return what, err
	}
	what.registers = v.VCenter() && !slices.ContainsFunc(lacks, func(l vsphere.Lack) bool { return strings.HasPrefix(l.ID, "Extension.") })
	return what, nil
}

// lookLimit is how long a target may take to say what there is.
const lookLimit = 45 * time.Second

// addSeen adds to o what vSphere has of the VCH and o does not.
func addSeen(o machine.Observed, what seen, running bool) machine.Observed {
	for _, m := range what.machines {
		if !slices.ContainsFunc(o.Containers, func(c machine.Container) bool { return c.ID == string(m.ID) }) {
			o.Containers = append(o.Containers, machine.Container{ID: string(m.ID)})
		}
	}
	if !running {
		o.Volumes = append(o.Volumes, what.volumes...)
	}
	return o
}

// leave looks at what is on vSphere before a VCH goes, and refuses where that is somebody else's, or cannot be seen. With force it is left where it is.
func (s site) leave(ctx context.Context, o machine.Observed, found settings, force bool) (site, machine.Observed, error) {
	if _, err := os.Stat(s.passwordFile()); errors.Is(err, fs.ErrNotExist) && os.Getenv("VCH_PASSWORD") == "" {
		if j, err := s.Home.Journal(); err == nil && j.Command == machine.Create { // nothing was made before the password was kept
			s.forsakes, s.untouched = true, true
			return s, o, nil
		}
	}
	ctx, cancel := context.WithTimeout(ctx, lookLimit)
	defer cancel()
	what, err := s.look(ctx, found)
	if err != nil {
		if force {
			s.forsakes = true
			o.Containers, o.Volumes = nil, nil
			return s, o, nil
		}
		return s, o, fault.New(fault.KindOf(err), "nothing was changed: %w; mend that, or have vch forget the VCH, and leave what it has there: --force", err)
	}
	if what.foreign != nil {
		return s, o, fault.New(fault.Conflict, "nothing was changed: in the VM folder and the resource pool of VCH %s there is what is not its own: %s; move or remove that first", s.Name, strings.Join(what.foreign, ", "))
	}
	s.registers = what.registers
	return s, addSeen(o, what, o.Running), nil
}

// stays says what of a VCH stays on vSphere when it goes.
func (s site) stays(found settings, target string) string {
	t := found.VSphere
	switch {
	case t == nil && (target == "" || target == machine.Local), s.untouched:
		return ""
	case t == nil:
		return fmt.Sprintf("What it had at %s stays there: its configuration, which said what that is, cannot be read.\n", target)
	case s.forsakes:
		return fmt.Sprintf("What it had at %s stays there: machines in %s, the resource pool %s, images in %s.\n", t.URL, t.Folder, t.Pool, found.ImageDisks)
	}
	return fmt.Sprintf("%s stays: other VCHs may boot machines from the discs in it, and copy its empty disks.\n", vsphere.SharedDir(datastoreOf(found.ImageDisks)))
}
