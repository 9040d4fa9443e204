// Package volumetest is the suite that every portlayer.VolumeStore passes, and the fakes that tests of volumes stand on.
//
// Run proves the laws of the contract's comment for one kind of store: idempotence, one maker among many, what a reopened store shows, damage, a
// medium that goes away or fills up, faults and deaths at every call to the medium, names and sizes at the edge, Join. Store is a store in memory,
// Disks a medium in memory; both have behaviour, not expectations. Faulty makes one call of any portlayer.Disks fail.
package volumetest

import (
	"context"
	"crypto/md5"
	"encoding/hex"
	"fmt"
	"math"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"

	"vch/internal/fault"
	"vch/portlayer"
)

// Place is where one store lives, and what can be done to it behind its back. Members that a kind of store has no use for are nil: the laws
// that need them are not checked for it.
type Place struct {
	// Open opens the store. Opened again, it is as a later process sees it.
	Open func(ctx context.Context) (portlayer.VolumeStore, error)
	// TooSmall is a capacity that the store must refuse; 0: there is none.
	TooSmall portlayer.Bytes
	// Disks says that a volume is a disk: it has a capacity, can be copied and kept, and Join adds a device. Otherwise the store is a portlayer.DirectoryStore.
	Disks bool
	// Born is what the file system of a new volume may be called (portlayer.Disks.Born).
	Born []portlayer.Label
	// Tree lists all that is on the medium, sorted.
	Tree func() []string
	// Degrade makes the medium unusable in a way, or takes that back.
	Degrade map[string]func(on bool)
	// Damage harms a volume's files in a way that the store must notice.
	Damage map[string]func(name portlayer.VolumeName)
	// Fill makes the medium full, or takes that back.
	Fill func(on bool)
	// Faults are between the store and its medium.
	Faults *Faults
}

// Run checks the laws, each on a place of its own; dir is empty and the test's own.
func Run(t *testing.T, place func(t *testing.T, dir string) Place) {
	laws := []struct {
		name string
		law  func(*bench)
	}{
		{"empty", emptyLaw},
		{"ensure", ensureLaw},
		{"ensure is idempotent", idempotentLaw},
		{"one maker among 32", oneMakerLaw},
		{"ensure against remove", raceLaw},
		{"reopened", reopenLaw},
		{"list", listLaw},
		{"remove", removeLaw},
		{"names", nameLaw},
		{"bad names", badNameLaw},
		{"sizes", sizeLaw},
		{"cancelled", cancelLaw},
		{"degraded", degradeLaw},
		{"damaged", damageLaw},
		{"full", fillLaw},
		{"interrupted ensure", interruptedEnsureLaw},
		{"interrupted remove", interruptedRemoveLaw},
		{"interrupted open", interruptedOpenLaw},
		{"labels", labelsLaw},
		{"grow", ofDisks(growLaw)},
		{"rename", renameLaw},
		{"rename to a file's name", renameToFileLaw},
		{"interrupted rename", interruptedRenameLaw},
		{"copy", ofDisks(copyLaw)},
		{"snapshots", ofDisks(snapshotLaw)},
		{"packed", ofDisks(packLaw)},
		{"interrupted snapshot", ofDisks(interruptedSnapshotLaw)},
		{"directories", directoriesLaw},
		{"join", joinLaw},
		{"join twice", joinTwiceLaw},
	}
	for _, l := range laws {
		t.Run(strings.ReplaceAll(l.name, " ", "_"), func(t *testing.T) {
			t.Parallel() // they wait for disks, mostly
			l.law(&bench{T: t, place: place})
		})
	}
}

// ofDisks is a law for stores whose volumes are disks. What it is about is Unsupported by others (directoriesLaw).
func ofDisks(law func(*bench)) func(*bench) {
	return func(b *bench) {
		if b.place(b.T, b.TempDir()).Disks {
			law(b)
		}
	}
}

// bench is one law's test.
type bench struct {
	*testing.T
	place func(t *testing.T, dir string) Place
}

// fresh is a new place with its store.
func (b *bench) fresh() (Place, portlayer.VolumeStore) {
	b.Helper()
	p := b.place(b.T, b.TempDir())
	return p, b.open(p)
}

func (b *bench) open(p Place) portlayer.VolumeStore {
	b.Helper()
	s, err := p.Open(b.Context())
	if err != nil {
		b.Fatalf("open: %v", err)
	}
	return s
}

// ensure makes a volume that must be new.
func (b *bench) ensure(s portlayer.VolumeStore, spec portlayer.VolumeSpec) portlayer.Volume {
	b.Helper()
	vol, made, err := s.Ensure(b.Context(), spec)
	if err != nil || !made {
		b.Fatalf("ensure %s: made %v, %v", spec.Name, made, err)
	}
	return vol
}

// kind fails unless err has kind k and text has every word.
func (b *bench) kind(err error, k fault.Kind, words ...string) {
	b.Helper()
	if !fault.Is(err, k) {
		b.Fatalf("err = %v (%v), want %v", err, fault.KindOf(err), k)
	}
	for _, w := range words {
		if !strings.Contains(err.Error(), w) {
			b.Errorf("%q does not say %q", err, w)
		}
	}
}

func (b *bench) equal(what string, want, got any) {
	b.Helper()
	if diff := cmp.Diff(want, got); diff != "" {
		b.Fatalf("%s (-want +got):\n%s", what, diff)
	}
}

// shows fails unless the store lists exactly vols, and gives each.
func (b *bench) shows(s portlayer.VolumeStore, vols ...portlayer.Volume) {
	b.Helper()
	got, err := s.List(b.Context())
	if err != nil {
		b.Fatalf("list: %v", err)
	}
	if diff := cmp.Diff(vols, got, cmpopts.EquateEmpty()); diff != "" {
		b.Fatalf("list (-want +got):\n%s", diff)
	}
	if l, ok := s.(interface {
		ListUsage(context.Context) ([]portlayer.Volume, []portlayer.VolumeUsage, error)
	}); ok { // what the volume service makes use of where it is
		b.showsUsage(s, l.ListUsage)
	}
	for _, v := range vols {
		one, err := s.Get(b.Context(), v.Name)
		if err != nil {
			b.Fatalf("get %s: %v", v.Name, err)
		}
		b.equal("get "+string(v.Name), v, one)
	}
}

// showsUsage fails unless listUsage says what List and Usage say.
func (b *bench) showsUsage(s portlayer.VolumeStore, listUsage func(context.Context) ([]portlayer.Volume, []portlayer.VolumeUsage, error)) {
	b.Helper()
	want, err := s.List(b.Context())
	if err != nil {
		b.Fatalf("list: %v", err)
	}
	got, uses, err := listUsage(b.Context())
	if err != nil || len(uses) != len(got) {
		b.Fatalf("%d volumes, %d usages, %v", len(got), len(uses), err)
	}
	b.equal("list with usage", want, got)
	for i, v := range got {
		use, err := s.Usage(b.Context(), v.Name)
		if err != nil {
			b.Fatalf("usage of %s: %v", v.Name, err)
		}
		b.equal("usage of "+string(v.Name), use, uses[i])
	}
}

func tree(p Place) []string {
	if p.Tree == nil {
		return nil
	}
	return p.Tree()
}

const small = 8 * portlayer.MiB

func emptyLaw(b *bench) {
	_, s := b.fresh()
	if s.Name() == "" || s.Driver() == "" || s.Location() == "" {
		b.Errorf("name %q, driver %q, location %q", s.Name(), s.Driver(), s.Location())
	}
	b.shows(s)
	_, err := s.Get(b.Context(), "none")
	b.kind(err, fault.NotFound, "no such volume")
	_, err = s.Usage(b.Context(), "none")
	b.kind(err, fault.NotFound)
	b.kind(s.Remove(b.Context(), "none"), fault.NotFound)
	st := s.Status(b.Context())
	if st.Degraded != "" || st.Total <= 0 || st.Free <= 0 || st.Free > st.Total {
		b.Errorf("status = %+v", st)
	}
}

func ensureLaw(b *bench) {
	p, s := b.fresh()
	spec := portlayer.VolumeSpec{
		Name:     "data",
		Capacity: small + 1,
		Throttle: portlayer.Throttle{IOPS: 7, BPS: 1 << 40},
		Options:  map[string]string{"VolumeStore": "here"},
		Labels:   map[string]string{"a": "1", "b": "", "ü": "<&>\"\n"},
		Maker:    strings.Repeat("ab", 32),
	}
	began := time.Now()
	vol := b.ensure(s, spec)
	sum := md5.Sum([]byte(string(s.Name()) + "/data"))
	want := portlayer.Volume{
		Name: "data", Store: s.Name(), Driver: s.Driver(), Label: portlayer.Label(hex.EncodeToString(sum[:])), Source: vol.Source, Shared: vol.Shared,
		Capacity: vol.Capacity, Throttle: vol.Throttle, Options: spec.Options, Labels: spec.Labels, Created: vol.Created, Maker: spec.Maker, Was: p.Born,
	}
	b.equal("volume", want, vol)
	if p.Disks && vol.Throttle != spec.Throttle {
		b.Errorf("throttle %+v for %+v asked", vol.Throttle, spec.Throttle)
	}
	if p.Disks && (vol.Capacity < spec.Capacity || vol.Capacity > spec.Capacity+portlayer.MiB) || !p.Disks && vol.Capacity != 0 {
		b.Errorf("capacity %d for %d asked", vol.Capacity, spec.Capacity)
	}
	if vol.Source == "" || vol.Shared == p.Disks {
		b.Errorf("source %q, shared %v", vol.Source, vol.Shared)
	}
	if vol.Created.Before(began.Add(-time.Second)) || vol.Created.After(time.Now().Add(time.Second)) {
		b.Errorf("created %v, now %v", vol.Created, time.Now())
	}
	b.shows(s, vol)
	use, err := s.Usage(b.Context(), "data")
	if err != nil || use.Capacity != vol.Capacity || use.Allocated == 0 || p.Disks && (use.Allocated < 0 || use.Allocated > use.Capacity) {
		b.Errorf("usage %+v, %v", use, err)
	}
	plain := b.ensure(s, portlayer.VolumeSpec{Name: "plain"})
	if plain.Options != nil || plain.Labels != nil || plain.Maker != "" || plain.Capacity <= 0 == p.Disks || plain.Throttle != (portlayer.Throttle{}) {
		b.Errorf("volume of an empty spec = %+v", plain)
	}
}

func idempotentLaw(b *bench) {
	p, s := b.fresh()
	vol := b.ensure(s, portlayer.VolumeSpec{Name: "data", Capacity: small, Labels: map[string]string{"a": "1"}, Maker: "first"})
	before := tree(p)
	for _, capacity := range []portlayer.Bytes{small, 2 * small, 0, -1, p.TooSmall} {
		again, made, err := s.Ensure(b.Context(), portlayer.VolumeSpec{Name: "data", Capacity: capacity, Labels: map[string]string{"z": "2"}, Maker: "second"})
		if err != nil || made {
			b.Fatalf("made %v, %v", made, err)
		}
		b.equal("volume found", vol, again)
	}
	b.equal("medium", before, tree(p))
}

func oneMakerLaw(b *bench) {
	_, s := b.fresh()
	const many = 32
	vols := make([]portlayer.Volume, many)
	mades := make([]bool, many)
	errs := make([]error, many)
	var wg sync.WaitGroup
	for i := range many {
		wg.Go(func() {
			vols[i], mades[i], errs[i] = s.Ensure(b.Context(), portlayer.VolumeSpec{Name: "data", Capacity: small, Maker: fmt.Sprint(i)})
		})
	}
	wg.Wait()
	makers := 0
	for i := range many {
		if errs[i] != nil {
			b.Fatal(errs[i])
		}
		b.equal("volume", vols[0], vols[i])
		if mades[i] {
			makers++
			if vols[i].Maker != fmt.Sprint(i) {
				b.Errorf("call %d made it, the maker is %q", i, vols[i].Maker)
			}
		}
	}
	if makers != 1 {
		b.Errorf("%d calls made the volume", makers)
	}
	b.shows(s, vols[0])
}

// raceLaw: whatever runs at once, each call sees the volume whole or not at all, and as often as it was made it was removed.
func raceLaw(b *bench) {
	p, s := b.fresh()
	before := tree(p)
	var mu sync.Mutex // guards made and removed
	made, removed := 0, 0
	var wg sync.WaitGroup
	for range 4 {
		wg.Go(func() {
			for range 8 {
				_, m, err := s.Ensure(b.Context(), portlayer.VolumeSpec{Name: "data", Capacity: small})
				if err != nil {
					b.Errorf("ensure: %v", err)
				}
				mu.Lock()
				if m {
					made++
				}
				mu.Unlock()
			}
		})
		wg.Go(func() {
			for range 8 {
				err := s.Remove(b.Context(), "data")
				if err != nil && !fault.Is(err, fault.NotFound) {
					b.Errorf("remove: %v", err)
				}
				mu.Lock()
				if err == nil {
					removed++
				}
				mu.Unlock()
			}
		})
		wg.Go(func() {
			for range 8 {
				if _, err := s.Get(b.Context(), "data"); err != nil && !fault.Is(err, fault.NotFound) {
					b.Errorf("get: %v", err)
				}
				if _, err := s.List(b.Context()); err != nil {
					b.Errorf("list: %v", err)
				}
			}
		})
	}
	wg.Wait()
	if err := s.Remove(b.Context(), "data"); err == nil {
		removed++
	}
	if made != removed {
		b.Errorf("made %d times, removed %d times", made, removed)
	}
	b.equal("medium", before, tree(p))
}

func reopenLaw(b *bench) {
	p, s := b.fresh()
	a := b.ensure(s, portlayer.VolumeSpec{Name: "aa", Capacity: small, Options: map[string]string{"VolumeStore": "here"}, Labels: map[string]string{"k": "v"}, Maker: "m"})
	z := b.ensure(s, portlayer.VolumeSpec{Name: "zz", Capacity: 2 * small})
	before := tree(p)
	for range 2 {
		s = b.open(p)
		b.shows(s, a, z)
		b.equal("medium", before, tree(p))
		if _, made, err := s.Ensure(b.Context(), portlayer.VolumeSpec{Name: "aa"}); made || err != nil {
			b.Errorf("made %v, %v", made, err)
		}
	}
}

func listLaw(b *bench) {
	_, s := b.fresh()
	var want []portlayer.Volume
	for _, n := range []portlayer.VolumeName{"zeta", "alpha", "Beta", "alpha.1", "0x"} {
		want = append(want, b.ensure(s, portlayer.VolumeSpec{Name: n, Capacity: small}))
	}
	slices.SortFunc(want, func(x, y portlayer.Volume) int { return strings.Compare(string(x.Name), string(y.Name)) })
	b.shows(s, want...)
	// What is returned belongs to the caller.
	got, err := s.List(b.Context())
	if err != nil {
		b.Fatal(err)
	}
	got[0].Name = "changed"
	b.shows(s, want...)
}

func removeLaw(b *bench) {
	p, s := b.fresh()
	other := b.ensure(s, portlayer.VolumeSpec{Name: "other", Capacity: small})
	before := tree(p)
	first := b.ensure(s, portlayer.VolumeSpec{Name: "data", Capacity: small, Labels: map[string]string{"a": "1"}})
	if err := s.Remove(b.Context(), "data"); err != nil {
		b.Fatal(err)
	}
	b.equal("medium", before, tree(p))
	b.shows(s, other)
	b.kind(s.Remove(b.Context(), "data"), fault.NotFound)
	second := b.ensure(s, portlayer.VolumeSpec{Name: "data", Capacity: 2 * small})
	if second.Labels != nil || !second.Created.After(first.Created) || p.Disks && second.Capacity != 2*small {
		b.Errorf("made anew: %+v", second)
	}
	b.shows(b.open(p), second, other)
}

// edgeNames are names that are allowed and invite mistakes.
func edgeNames() []portlayer.VolumeName {
	return []portlayer.VolumeName{
		"ab", "0x", "A-b_c.d", "sp..", "a.", "data", "DATA", "data-flat", "data.vmdk", "data-flat.vmdk", "volume.json", "volumes", "metadata.db",
		portlayer.VolumeName(strings.Repeat("f", 64)), portlayer.VolumeName(strings.Repeat("x", 200)), portlayer.VolumeName(strings.Repeat("x", 201)), portlayer.VolumeName(strings.Repeat("x", 246)),
		portlayer.VolumeName(strings.Repeat("x", 255)), portlayer.VolumeName(strings.Repeat("x", 254) + "y"),
	}
}

func nameLaw(b *bench) {
	p, s := b.fresh()
	before := tree(p)
	var want []portlayer.Volume
	labels := map[portlayer.Label]portlayer.VolumeName{}
	for _, n := range edgeNames() {
		v := b.ensure(s, portlayer.VolumeSpec{Name: n, Capacity: small, Maker: string(n)})
		if other, taken := labels[v.Label]; taken {
			b.Errorf("%s and %s have one label", n, other)
		}
		labels[v.Label] = n
		want = append(want, v)
	}
	slices.SortFunc(want, func(x, y portlayer.Volume) int { return strings.Compare(string(x.Name), string(y.Name)) })
	b.shows(b.open(p), want...)
	for _, v := range want {
		if err := s.Remove(b.Context(), v.Name); err != nil {
			b.Errorf("remove: %v", err)
		}
	}
	b.shows(s)
	b.equal("medium", before, tree(p))
}

func badNameLaw(b *bench) {
	p, s := b.fresh()
	keep := b.ensure(s, portlayer.VolumeSpec{Name: "keep", Capacity: small})
	before := tree(p)
	for _, n := range []portlayer.VolumeName{
		"", "a", ".", "..", ".hidden", "-dash", "_under", "a/b", "../keep", "keep/", "/keep", "a b", "a\n", "a\x00", "é", "añ", "a\\b", "a:b",
		portlayer.VolumeName(strings.Repeat("x", 256)), portlayer.VolumeName(strings.Repeat("x", 70000)),
	} {
		_, made, err := s.Ensure(b.Context(), portlayer.VolumeSpec{Name: n, Capacity: small})
		b.kind(err, fault.Invalid)
		if made {
			b.Errorf("%q: made", n)
		}
		_, err = s.Get(b.Context(), n)
		b.kind(err, fault.NotFound)
		_, err = s.Usage(b.Context(), n)
		b.kind(err, fault.NotFound)
		b.kind(s.Remove(b.Context(), n), fault.NotFound)
	}
	b.equal("medium", before, tree(p))
	b.shows(s, keep)
}

func sizeLaw(b *bench) {
	p, s := b.fresh()
	before := tree(p)
	bad := []portlayer.Bytes{-1, math.MinInt64}
	if p.TooSmall != 0 {
		bad = append(bad, p.TooSmall)
	}
	for _, size := range bad {
		_, _, err := s.Ensure(b.Context(), portlayer.VolumeSpec{Name: "data", Capacity: size})
		b.kind(err, fault.Invalid)
		_, err = s.Get(b.Context(), "data")
		b.kind(err, fault.NotFound)
		b.equal("medium", before, tree(p))
	}
	b.shows(s)
}

func cancelLaw(b *bench) {
	p, s := b.fresh()
	keep := b.ensure(s, portlayer.VolumeSpec{Name: "keep", Capacity: small})
	before := tree(p)
	ctx, cancel := context.WithCancel(b.Context())
	cancel()
	if _, made, err := s.Ensure(ctx, portlayer.VolumeSpec{Name: "data", Capacity: small}); err == nil || made {
		b.Errorf("ensure: made %v, %v", made, err)
	}
	if err := s.Remove(ctx, "keep"); err == nil {
		b.Error("remove went on after its context ended")
	}
	b.equal("medium", before, tree(p))
	b.shows(s, keep)
}

// degradeLaw: nothing is called missing, nothing is made, and when the medium is back all is as it was.
func degradeLaw(b *bench) {
	for way := range b.place(b.T, b.TempDir()).Degrade {
		p, s := b.fresh()
		degrade := p.Degrade[way]
		vol := b.ensure(s, portlayer.VolumeSpec{Name: "data", Capacity: small})
		before := tree(p)
		for range 2 {
			degrade(true)
			name := string(s.Name())
			if st := s.Status(b.Context()); st.Degraded == "" {
				b.Errorf("%s: status does not say why: %+v", way, st)
			}
			_, err := s.Get(b.Context(), "data")
			b.kind(err, fault.Unavailable, name)
			_, err = s.Get(b.Context(), "none")
			b.kind(err, fault.Unavailable, name)
			_, err = s.Usage(b.Context(), "data")
			b.kind(err, fault.Unavailable, name)
			vols, err := s.List(b.Context())
			b.kind(err, fault.Unavailable, name)
			if len(vols) > 0 {
				b.Errorf("%s: %d volumes listed", way, len(vols))
			}
			for _, n := range []portlayer.VolumeName{"data", "new1"} {
				_, made, err := s.Ensure(b.Context(), portlayer.VolumeSpec{Name: n, Capacity: small})
				b.kind(err, fault.Unavailable, name)
				if made {
					b.Errorf("%s: made %s", way, n)
				}
				b.kind(s.Remove(b.Context(), n), fault.Unavailable, name)
			}
			degrade(false)
			if st := s.Status(b.Context()); st.Degraded != "" {
				b.Errorf("%s: still degraded: %+v", way, st)
			}
			b.shows(s, vol)
			b.equal("medium", before, tree(p))
		}
	}
}

// damageLaw: a damaged volume is a Conflict with a reason, is never made anew, hides no other, and can be removed.
func damageLaw(b *bench) {
	for way := range b.place(b.T, b.TempDir()).Damage {
		p, s := b.fresh()
		good := b.ensure(s, portlayer.VolumeSpec{Name: "good", Capacity: small})
		before := tree(p)
		b.ensure(s, portlayer.VolumeSpec{Name: "data", Capacity: small})
		p.Damage[way]("data")
		harmed := tree(p)
		for range 2 {
			_, err := s.Get(b.Context(), "data")
			b.kind(err, fault.Conflict, "data")
			_, err = s.Usage(b.Context(), "data")
			b.kind(err, fault.Conflict, "data")
			_, made, err := s.Ensure(b.Context(), portlayer.VolumeSpec{Name: "data", Capacity: small})
			b.kind(err, fault.Conflict, "data")
			if made {
				b.Errorf("%s: made anew", way)
			}
			vols, err := s.List(b.Context())
			b.kind(err, fault.Conflict, "data")
			b.equal("list beside the damaged one", []portlayer.Volume{good}, vols)
			b.equal("medium", harmed, tree(p))
			s = b.open(p)
		}
		if err := s.Remove(b.Context(), "data"); err != nil {
			b.Fatalf("%s: a damaged volume cannot be removed: %v", way, err)
		}
		b.equal("medium", before, tree(p))
		b.shows(s, good)
		b.ensure(s, portlayer.VolumeSpec{Name: "data", Capacity: small})
	}
}

func fillLaw(b *bench) {
	p, s := b.fresh()
	if p.Fill == nil {
		return
	}
	vol := b.ensure(s, portlayer.VolumeSpec{Name: "data", Capacity: small})
	before := tree(p)
	p.Fill(true)
	if st := s.Status(b.Context()); st.Degraded != "" || st.Free != 0 {
		b.Errorf("a full store is not degraded: %+v", st)
	}
	_, made, err := s.Ensure(b.Context(), portlayer.VolumeSpec{Name: "more", Capacity: small})
	b.kind(err, fault.Unavailable, "free", "more", string(s.Name()))
	if made {
		b.Error("made")
	}
	b.equal("medium", before, tree(p))
	b.shows(s, vol)
	b.shows(b.open(p), vol)
	if err := s.Remove(b.Context(), "data"); err != nil {
		b.Errorf("remove from a full store: %v", err)
	}
	p.Fill(false)
	b.ensure(s, portlayer.VolumeSpec{Name: "more", Capacity: small})
}
