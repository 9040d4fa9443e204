package main

import (
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"vch/internal/atomicfile"
	"vch/internal/fault"
	"vch/internal/supervise"
	"vch/machine"
)

// site is this host, as far as it is the place of one VCH: it does the steps of plans. Steps that it does not know it refuses.
type site struct {
	place
	at        surroundings
	program   string        // the file that is copied: this program
	seen      string        // what record, journal and configuration were when the command began
	patience  time.Duration // of waiting for a daemon
	password  string        // at the target, as it was said to this command; "": it was not
	registers bool          // its user may register an extension there
	forsakes  bool          // what it has there is left there
	untouched bool          // and that is nothing
}

// own are the steps that this site has beside those that every site knows. A VCH whose machines run on this host needs none.
func (s site) own(d machine.Desired, o machine.Observed) machine.Own { return s.ownSteps(d, o) }

// print is what record, journal and configuration are now: two commands at once are not to plan by what the other one changes.
func (l place) print() string {
	h := sha256.New()
	for _, path := range []string{filepath.Join(string(l.Home), "host.json"), filepath.Join(string(l.Home), "journal.json"), l.Config} {
		text, err := os.ReadFile(path)
		fmt.Fprintf(h, "%d %v\n", len(text), err == nil)
		h.Write(text)
	}
	return string(h.Sum(nil))
}

// daemonStopLimit is longer than what a daemon takes to stop by itself (stopLimit, three times).
const daemonStopLimit = 45 * time.Second

// Do is machine.Site.Do.
func (s site) Do(ctx context.Context, step machine.Step) error {
	switch step.Kind {
	case machine.MakeDirectory:
		return makeDirectory(step.Subject, fs.FileMode(step.Mode))
	case machine.MakeStore:
		return makeStore(step.Subject)
	case machine.CopyProgram:
		return s.copyProgram(step.Subject)
	case machine.MakeCertificates:
		return s.makeCertificates()
	case machine.WriteSettings:
		if err := os.MkdirAll(filepath.Dir(s.Config), 0o755); err != nil {
			return err
		}
		return atomicfile.Write(s.Config, []byte(tomlOf(step.Settings, s.Name)), 0o644)
	case machine.RemoveSettings:
		if err := os.Remove(s.Config); err != nil && !errors.Is(err, fs.ErrNotExist) {
			return err
		}
		if dir := filepath.Dir(s.Config); dir != string(s.Home) {
			_ = os.Remove(dir) // what an administrator put there stays
		}
		return nil
	case machine.RemoveProgram:
		return removeFile(s.place.program(step.Subject))
	case machine.RemoveDirectory:
		return s.removeDirectory(step.Subject)
	case machine.RemoveContainer, machine.RemoveVolume:
		ctx, cancel := context.WithTimeoutCause(ctx, s.patience, fmt.Errorf("the daemon has not done it after %v; give it longer with --wait", s.patience))
		defer cancel()
		do := endpoint{s.Socket}.removeContainer
		if step.Kind == machine.RemoveVolume {
			do = endpoint{s.Socket}.removeVolume
		}
		if err := do(ctx, step.Subject); err != nil && ctx.Err() != nil {
			return fault.New(fault.Unavailable, "%w", context.Cause(ctx))
		} else if err != nil {
			return err
		}
		return nil
	}
	return s.supervised(ctx, step)
}

// supervised does what is the supervisor's.
func (s site) supervised(ctx context.Context, step machine.Step) error {
	known, err := s.Home.Known()
	if j, jerr := s.Home.Journal(); err != nil && !fault.Is(err, fault.NotFound) && (jerr != nil || j.Command != machine.Delete) {
		return err // a Delete goes on without a record
	}
	name, program := known.Supervisor, s.daemon(known.Program)
	switch step.Kind {
	case machine.Register:
		name, program = step.Subject, s.daemon(step.Program)
	case machine.Unregister:
		name = step.Subject
	case machine.StartDaemon:
		program = s.daemon(step.Program)
	}
	if name == "" { // nobody looks after it, so it is nobody's but its own
		name = supervise.Process{}.Name()
	}
	by, err := supervisorOf(name)
	if err != nil {
		return err
	}
	switch step.Kind {
	case machine.Register:
		return by.Register(ctx, program)
	case machine.Unregister:
		return by.Unregister(ctx, program)
	case machine.StartDaemon:
		return by.Start(ctx, program)
	case machine.StopDaemon:
		return by.Stop(ctx, program, daemonStopLimit)
	case machine.AwaitDaemon:
		return s.await(ctx, by, program, step.Containers)
	}
	return fault.New(fault.Unsupported, "this host knows no step %s", step.Kind)
}

// await waits until the daemon answers and lists containers, and ends early if it has ended.
func (s site) await(ctx context.Context, by supervise.Supervisor, program supervise.Program, containers []machine.Container) error {
	deadline := time.Now().Add(s.patience)
	var last error
	for {
		last = s.answers(ctx, containers)
		if last == nil {
			return nil
		}
		if supervise.Find(program.Args) == 0 && by.Given(ctx, program) {
			return fault.New(fault.Unavailable, "the daemon has ended: %s", s.lastWords(ctx, by, program))
		}
		if time.Now().After(deadline) {
			return fault.New(fault.Unavailable, "after %v: %w; what it does is in its log: vch logs %s", s.patience, last, s.Name)
		}
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-time.After(50 * time.Millisecond):
		}
	}
}

func (s site) answers(ctx context.Context, containers []machine.Container) error {
	e := endpoint{s.Socket}
	if err := e.ping(ctx); err != nil {
		return err
	}
	if _, err := e.info(ctx); err != nil {
		return err
	}
	if len(containers) == 0 {
		return nil
	}
	all, err := e.containers(ctx)
	if err != nil {
		return err
	}
	var missing []string
	for _, want := range containers {
		if !slices.ContainsFunc(all, func(c daemonContainer) bool { return c.ID == want.ID }) {
			missing = append(missing, want.String())
		}
	}
	if missing != nil {
		return fault.New(fault.NotFound, "it does not list containers that were there: %s", strings.Join(missing, ", "))
	}
	return nil
}

// lastWords is why a daemon ended, in its own words: an error is one line that begins with vch.
func (s site) lastWords(ctx context.Context, by supervise.Supervisor, program supervise.Program) string {
	const lines = 20
	text, err := by.Tail(ctx, program, lines)
	if err != nil || strings.TrimSpace(text) == "" {
		return "its log says nothing; see vch logs " + s.Name
	}
	all := strings.Split(strings.TrimSpace(text), "\n")
	for _, line := range slices.Backward(all) {
		if said, ok := strings.CutPrefix(line, "vch: "); ok && !strings.HasPrefix(said, "see vch") {
			return said
		}
	}
	return all[len(all)-1]
}

// makeDirectory makes the directory with exactly this mode. One that is there keeps its mode.
func makeDirectory(path string, mode fs.FileMode) error {
	if info, err := os.Stat(path); err == nil && info.IsDir() {
		return nil
	}
	if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
		return err
	}
	if err := os.Mkdir(path, mode); err != nil && !errors.Is(err, fs.ErrExist) {
		return err
	}
	if err := os.Chmod(path, mode); err != nil {
		return err
	}
	return atomicfile.SyncDir(filepath.Dir(path))
}

// makeStore makes a directory a volume store. Only its last element may be missing.
func makeStore(path string) error {
	for _, dir := range []string{path, volumesDir(path)} {
		if err := os.Mkdir(dir, 0o755); err != nil && !errors.Is(err, fs.ErrExist) {
			return err
		}
	}
	return atomicfile.SyncDir(path)
}

func (s site) copyProgram(version string) error {
	to := s.place.program(version)
	if err := makeDirectory(filepath.Dir(to), 0o755); err != nil {
		return err
	}
	from, err := os.Open(s.program)
	if err != nil {
		return err
	}
	defer from.Close()
	return atomicfile.WriteFrom(to, 0o755, func(w io.Writer) error { _, err := io.Copy(w, from); return err })
}

// makeCertificates makes those of the server and of a client by what the configuration will say; those that are there and good stay.
func (s site) makeCertificates() error {
	j, err := s.Home.Journal()
	if err != nil {
		return err
	}
	set, err := checked(j.Desired.Settings, s.at)
	if err != nil {
		return err
	}
	if set.TLS == nil || set.TLS.Own == "" {
		return nil
	}
	a := authority{set.TLS.Own}
	if _, err := a.server(append(listenNames(set.Listen), set.TLS.Names...)); err != nil {
		return err
	}
	if clientIsGood(a, s.Client) {
		return nil
	}
	if err := os.RemoveAll(s.Client); err != nil {
		return err
	}
	return a.client(s.Client, "administrator of "+s.Name)
}

// clientIsGood says whether dir has a client's certificate that the authority made, with its key.
func clientIsGood(a authority, dir string) bool {
	ca, _, err := readPair(filepath.Join(a.dir, caFile), filepath.Join(a.dir, caKeyFile))
	if err != nil {
		return false
	}
	cert, _, err := readPair(filepath.Join(dir, certFile), filepath.Join(dir, keyFile))
	if err != nil {
		return false
	}
	_, err = os.Stat(filepath.Join(dir, caFile))
	return err == nil && cert.CheckSignatureFrom(ca) == nil && time.Until(cert.NotAfter) > renewBefore
}

// removeDirectory removes what was made for the VCH. Of its own directory, that is all but the record and the journal, which go last, with the directory.
func (s site) removeDirectory(path string) error {
	if path != string(s.Home) {
		if path == s.State { // no container is left: machines of a daemon that was killed are spare ones
			if err := supervise.EndIn(path); err != nil {
				return err
			}
		}
		return os.RemoveAll(path)
	}
	for _, name := range []string{"bin", "client", "state", "log", "password", "vch.sock", "vch.toml"} {
		if err := os.RemoveAll(filepath.Join(path, name)); err != nil {
			return err
		}
	}
	return errors.Join(s.forgetPasswords(), removeFile(s.Socket))
}

func removeFile(path string) error {
	if err := os.Remove(path); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	return nil
}

// sameContent says whether two files hold the same.
func sameContent(a, b string) bool {
	x, err := sumOf(a)
	if err != nil {
		return false
	}
	y, err := sumOf(b)
	return err == nil && x == y
}

func sumOf(path string) (sum [sha256.Size]byte, err error) {
	f, err := os.Open(path)
	if err != nil {
		return sum, err
	}
	defer f.Close()
	h := sha256.New()
	if _, err := io.Copy(h, f); err != nil {
		return sum, err
	}
	h.Sum(sum[:0])
	return sum, nil
}

// versionOf is what this program is called among those that the VCH keeps: its version, and a part of its content's sum where another has that name.
func (s site) versionOf() (string, error) {
	kept := s.place.program(version)
	if _, err := os.Stat(kept); err != nil || sameContent(kept, s.program) {
		return version, nil
	}
	sum, err := sumOf(s.program)
	if err != nil {
		return "", fault.New(fault.Denied, "cannot read this program: %w", err)
	}
	return fmt.Sprintf("%s+%x", version, sum[:4]), nil
}

// observe looks at what there is of the VCH. found is its settings as the daemon reads them, as far as they make sense.
func (s site) observe(ctx context.Context) (o machine.Observed, record machine.Record, found settings, err error) {
	record, err = s.Home.Known()
	if err != nil && !fault.Is(err, fault.NotFound) {
		return o, record, found, err
	}
	o = machine.Observed{Directories: record.Made, Program: record.Program, Supervisor: record.Supervisor}
	for _, v := range record.Programs {
		if _, err := os.Stat(s.place.program(v)); err == nil {
			o.Programs = append(o.Programs, v)
		}
	}
	if _, err := os.Stat(s.Config); err == nil {
		if o.Settings, err = read(s.Config); err != nil {
			return o, record, found, err
		}
		if found, err = checked(o.Settings, s.at); err != nil {
			return o, record, found, err
		}
	}
	o.Stores = storesThere(localStores(found.Stores))
	o.Certificates = s.certificates()
	o.Running = supervise.Find(s.daemon("").Args) != 0
	o.Containers, o.Volumes = s.containers(), volumesOf(found.Stores)
	if !o.Running {
		return o, record, found, nil
	}
	e := endpoint{s.Socket}
	if all, err := e.containers(ctx); err == nil {
		o.Containers = nil
		for _, c := range all {
			o.Containers = append(o.Containers, c.noun())
		}
	}
	if all, _, err := e.volumes(ctx, found.Stores); err == nil {
		o.Volumes = all
	}
	return o, record, found, nil
}

// storesThere are those of directories that are volume stores.
func storesThere(paths []string) (there []string) {
	for _, path := range paths {
		if _, err := os.Stat(volumesDir(path)); err == nil {
			there = append(there, path)
		}
	}
	return there
}

// certificates are the names in the server's certificate, if there is one for a client, too.
func (s site) certificates() (names []string) {
	a := authority{filepath.Join(s.State, "tls")}
	if !clientIsGood(a, s.Client) {
		return nil
	}
	cert, _, err := readPair(filepath.Join(a.dir, serverFile), filepath.Join(a.dir, serverKeyFile))
	if err != nil {
		return nil
	}
	for _, ip := range cert.IPAddresses {
		names = append(names, ip.String())
	}
	return append(names, cert.DNSNames...)
}

// desired is the VCH that settings make of it.
func (s site) desired(set machine.Settings, found settings) machine.Desired {
	d := machine.Desired{
		Name: s.Name, Target: machine.Local, Settings: set, Running: true,
		Directories: []machine.Directory{{Path: string(s.Home), Mode: 0o711}, {Path: s.State, Mode: 0o700}},
	}
	if found.VSphere != nil {
		d.Target = found.VSphere.URL
	}
	if found.Images != filepath.Join(s.State, "images") {
		d.Directories = append(d.Directories, machine.Directory{Path: found.Images, Mode: 0o700})
	}
	if found.TLS != nil && found.TLS.Own != "" {
		d.Certificates = append(listenNames(found.Listen), found.TLS.Names...)
		slices.Sort(d.Certificates)
		d.Certificates = slices.Compact(d.Certificates)
	}
	return d
}
