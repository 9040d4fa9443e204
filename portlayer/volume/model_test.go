package volume

import (
	"cmp"
	"fmt"
	"math/rand/v2"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"

	"pgregory.net/rapid"

	"vch/internal/fault"
	"vch/portlayer"
	"vch/portlayer/volume/volumetest"
)

// model is what the service should know: the simplest that could be true.
type model struct {
	volumes  map[portlayer.VolumeID]modelVolume
	refs     map[portlayer.VolumeID]map[portlayer.ContainerID]bool
	held     map[portlayer.VolumeID]map[portlayer.ContainerID]bool // value: writes
	homes    map[portlayer.VolumeName]modelHome
	degraded map[portlayer.StoreName]bool
	clock    int
}

type modelVolume struct {
	maker    portlayer.ContainerID
	capacity portlayer.Bytes
	foreign  bool // it came with its store
	made     int  // by the model's clock
}

// modelHome is the first use of a volume that came with its store.
type modelHome struct {
	store portlayer.StoreName
	at    int
}

var modelStores = []portlayer.StoreName{"default", "fast"}

func (m *model) tick() int { m.clock++; return m.clock }

// since is when the VCH made or used a volume first; 0: never.
func (m *model) since(id portlayer.VolumeID) int {
	if h, known := m.homes[id.Name]; known && h.store == id.Store {
		return h.at
	}
	if v := m.volumes[id]; !v.foreign {
		return v.made
	}
	return 0
}

// find is the volume that id means; ok false: looking for it ends with kind.
func (m *model) find(id portlayer.VolumeID) (_ portlayer.VolumeID, ok bool, kind fault.Kind) {
	var found []portlayer.VolumeID
	away := false
	for _, store := range modelStores {
		if id.Store != "" && id.Store != store {
			continue
		}
		at := portlayer.VolumeID{Name: id.Name, Store: store}
		if _, there := m.volumes[at]; m.degraded[store] {
			away = true
		} else if there {
			found = append(found, at)
		}
	}
	home, known := m.homes[id.Name]
	switch {
	case len(found) == 0 && away:
		return id, false, fault.Unavailable
	case len(found) == 0:
		return id, false, fault.NotFound
	case id.Store == "" && known && m.degraded[home.store]:
		return id, false, fault.Unavailable
	case len(found) == 1:
		return found[0], true, 0
	}
	a, b := m.since(found[0]), m.since(found[1])
	switch {
	case a == 0 && b == 0:
		return id, false, fault.Conflict
	case b == 0 || a != 0 && a < b:
		return found[0], true, 0
	}
	return found[1], true, 0
}

func (m *model) used(id portlayer.VolumeID) bool { return len(m.refs[id])+len(m.held[id]) > 0 }

// ensure is what Create and Reserve do in common; store is that of the options.
func (m *model) ensure(id portlayer.VolumeID, store portlayer.StoreName, capacity portlayer.Bytes, maker portlayer.ContainerID) (at portlayer.VolumeID, made bool, kind fault.Kind, ok bool) {
	if id.Store != "" && store != "" && store != id.Store {
		return id, false, fault.Invalid, false
	}
	at, found, kind := m.find(id)
	switch {
	case found && (store != "" && store != at.Store || capacity != 0 && capacity != m.volumes[at].capacity):
		return at, false, fault.Conflict, false
	case found:
		if _, known := m.homes[at.Name]; !known && m.volumes[at].foreign {
			m.homes[at.Name] = modelHome{store: at.Store, at: m.tick()}
		}
		return at, false, 0, true
	case kind != fault.NotFound:
		return id, false, kind, false
	}
	at.Store = cmp.Or(id.Store, store, portlayer.DefaultStore)
	if capacity == 0 {
		capacity = 32 * mib
	}
	m.volumes[at] = modelVolume{maker: maker, capacity: capacity, made: m.tick()}
	return at, true, 0, true
}

func (m *model) drop(id portlayer.VolumeID) {
	delete(m.volumes, id)
	if m.homes[id.Name].store == id.Store {
		delete(m.homes, id.Name)
	}
}

// The service does what the model does, whatever comes in whatever order.
func TestModel(t *testing.T) {
	rapid.Check(t, func(rt *rapid.T) {
		stores := map[portlayer.StoreName]*volumetest.Store{"default": volumetest.NewStore("default"), "fast": volumetest.NewStore("fast")}
		var mu sync.Mutex
		events := map[string]int{}
		s, err := New(Options{
			Stores: []portlayer.VolumeStore{stores["default"], stores["fast"]}, AnonymousCapacity: 16 * mib, DefaultCapacity: 32 * mib, VCH: "this",
			Publish: func(e portlayer.Event) { // a prune publishes from several goroutines
				mu.Lock()
				defer mu.Unlock()
				events[e.Verb]++
			},
		})
		if err != nil {
			rt.Fatal(err)
		}
		m := &model{
			volumes:  map[portlayer.VolumeID]modelVolume{},
			refs:     map[portlayer.VolumeID]map[portlayer.ContainerID]bool{},
			held:     map[portlayer.VolumeID]map[portlayer.ContainerID]bool{},
			homes:    map[portlayer.VolumeName]modelHome{},
			degraded: map[portlayer.StoreName]bool{},
		}
		want := map[string]int{}
		ctx := t.Context()
		names := rapid.SampledFrom([]portlayer.VolumeName{"aa", "bb", "cc"})
		identities := rapid.Custom(func(rt *rapid.T) portlayer.VolumeID {
			return portlayer.VolumeID{Name: names.Draw(rt, "name"), Store: rapid.SampledFrom(modelStores).Draw(rt, "store")}
		})
		references := rapid.Custom(func(rt *rapid.T) portlayer.VolumeID { // plain names, too
			return portlayer.VolumeID{Name: names.Draw(rt, "name"), Store: rapid.SampledFrom([]portlayer.StoreName{"", "", "default", "fast"}).Draw(rt, "store")}
		})
		containers := rapid.SampledFrom([]portlayer.ContainerID{"c1", "c2", "c3"})
		places := rapid.SampledFrom([]portlayer.StoreName{"", "", "", "default", "fast"})
		sizes := rapid.SampledFrom([]portlayer.Bytes{0, 0, 32 * mib, 64 * mib})
		options := func(store portlayer.StoreName, capacity portlayer.Bytes) map[string]string {
			o := map[string]string{}
			if store != "" {
				o["VolumeStore"] = string(store)
			}
			if capacity != 0 {
				o["Capacity"] = fmt.Sprint(int64(capacity / mib))
			}
			return o
		}
		check := func(rt *rapid.T, err error, ok bool, kind fault.Kind) {
			if ok != (err == nil) || !ok && !fault.Is(err, kind) {
				rt.Fatalf("err = %v; the model says ok %v, kind %v", err, ok, kind)
			}
		}
		rt.Repeat(map[string]func(*rapid.T){
			"create": func(rt *rapid.T) {
				id, store, capacity := references.Draw(rt, "id"), places.Draw(rt, "place"), sizes.Draw(rt, "capacity")
				at, made, kind, ok := m.ensure(id, store, capacity, "")
				vol, err := s.Create(ctx, portlayer.VolumeRequest{Name: id.Name, Store: id.Store, Options: options(store, capacity)})
				check(rt, err, ok, kind)
				if ok && (vol.ID() != at || vol.Qualified != (id.Store != "")) {
					rt.Fatalf("%+v; the model has %s", vol, at)
				}
				if made {
					want["create"]++
				}
			},
			"a volume that came with its store": func(rt *rapid.T) {
				id := identities.Draw(rt, "id")
				if _, there := m.volumes[id]; there || m.degraded[id.Store] {
					return
				}
				if _, _, err := stores[id.Store].Ensure(ctx, portlayer.VolumeSpec{Name: id.Name, Capacity: 32 * mib, VCH: "another"}); err != nil {
					rt.Fatal(err)
				}
				m.volumes[id] = modelVolume{capacity: 32 * mib, foreign: true}
			},
			"reserve": func(rt *rapid.T) {
				id, store, capacity, c := references.Draw(rt, "id"), places.Draw(rt, "place"), sizes.Draw(rt, "capacity"), containers.Draw(rt, "container")
				at, made, kind, ok := m.ensure(id, store, capacity, c)
				mount, gotMade, err := s.Reserve(ctx, c, portlayer.Mount{Kind: portlayer.VolumeMount, Volume: id.Name, Store: id.Store, Options: options(store, capacity)})
				check(rt, err, ok, kind)
				if gotMade != made {
					rt.Fatalf("made %v, the model %v", gotMade, made)
				}
				if made {
					want["create"]++
				}
				if ok {
					add(m.refs, at, c, true)
					if mount.ID() != at || mount.Anonymous {
						rt.Fatalf("%+v; the model has %s", mount, at)
					}
				}
			},
			"anonymous": func(rt *rapid.T) {
				c := containers.Draw(rt, "container")
				mount, made, err := s.Reserve(ctx, c, portlayer.Mount{Kind: portlayer.VolumeMount})
				check(rt, err, !m.degraded["default"], fault.Unavailable)
				if err == nil {
					if !made || !mount.Anonymous || m.volumes[mount.ID()] != (modelVolume{}) {
						rt.Fatalf("%+v, made %v", mount, made)
					}
					m.volumes[mount.ID()] = modelVolume{maker: c, capacity: 16 * mib, made: m.tick()}
					add(m.refs, mount.ID(), c, true)
					want["create"]++
				}
			},
			"refer": func(rt *rapid.T) {
				id, c := identities.Draw(rt, "id"), containers.Draw(rt, "container")
				s.Refer(c, id)
				add(m.refs, id, c, true)
			},
			"release": func(rt *rapid.T) {
				c := containers.Draw(rt, "container")
				s.Release(c)
				forget(m.refs, c)
			},
			"remove": func(rt *rapid.T) {
				id := references.Draw(rt, "id")
				at, found, kind := m.find(id)
				if found && m.used(at) {
					found, kind = false, fault.InUse
				}
				check(rt, s.Remove(ctx, id), found, kind)
				if found {
					m.drop(at)
					want["destroy"]++
				}
			},
			"unmake": func(rt *rapid.T) {
				id := identities.Draw(rt, "id")
				maker := rapid.SampledFrom([]portlayer.ContainerID{"", "c1", "c2"}).Draw(rt, "maker")
				at, found, kind := m.find(id)
				ok := found || kind == fault.NotFound || m.used(id)
				check(rt, s.Unmake(ctx, id, maker), ok, kind)
				if found && !m.used(at) && (maker == "" || maker == m.volumes[at].maker) {
					m.drop(at)
					want["destroy"]++
				}
			},
			"attach": func(rt *rapid.T) {
				c := containers.Draw(rt, "container")
				some := rapid.SliceOfNDistinct(identities, 1, 3, rapid.ID).Draw(rt, "volumes")
				clash, fresh := false, 0
				var mounts []portlayer.Mount
				for _, id := range some {
					ro := rapid.Bool().Draw(rt, "read-only")
					mounts = append(mounts, portlayer.Mount{Kind: portlayer.VolumeMount, Volume: id.Name, Store: id.Store, Target: "/" + id.String(), ReadOnly: ro})
					mine, have := m.held[id][c]
					if !have {
						fresh++
					}
					for other, writes := range m.held[id] {
						clash = clash || other != c && (writes || mine || !ro)
					}
				}
				check(rt, s.Attach(c, string(c), mounts), !clash, fault.InUse)
				if !clash {
					want["mount"] += fresh
					for _, mt := range mounts {
						add(m.held, mt.ID(), c, m.held[mt.ID()][c] || !mt.ReadOnly)
					}
				}
			},
			"detach": func(rt *rapid.T) {
				c := containers.Draw(rt, "container")
				s.Detach(c)
				for _, by := range m.held {
					if _, have := by[c]; have {
						want["unmount"]++
					}
				}
				forget(m.held, c)
			},
			"detach mounts": func(rt *rapid.T) {
				c := containers.Draw(rt, "container")
				var mounts []portlayer.Mount
				for _, id := range rapid.SliceOfN(identities, 1, 3).Draw(rt, "volumes") {
					mounts = append(mounts, portlayer.Mount{Kind: portlayer.VolumeMount, Volume: id.Name, Store: id.Store, Target: "/" + id.String()})
					if _, have := m.held[id][c]; have {
						want["unmount"]++
					}
					delete(m.held[id], c)
				}
				s.DetachMounts(c, mounts)
			},
			"release one": func(rt *rapid.T) {
				id, c := identities.Draw(rt, "id"), containers.Draw(rt, "container")
				s.ReleaseVolume(c, id)
				delete(m.refs[id], c)
			},
			"prune": func(rt *rapid.T) {
				spare := names.Draw(rt, "spared")
				gone, freed, err := s.Prune(ctx, func(v portlayer.Volume) bool { return v.Name != spare })
				check(rt, err, true, 0)
				var got, expected []portlayer.VolumeID
				for _, v := range gone {
					got = append(got, v.ID())
				}
				for _, id := range sortedIDs(m.volumes) {
					if id.Name != spare && !m.used(id) && !m.degraded[id.Store] {
						expected = append(expected, id)
						m.drop(id)
					}
				}
				if !slices.Equal(got, expected) || freed != portlayer.Bytes(len(gone))*64*portlayer.KiB {
					rt.Fatalf("pruned %v (%d bytes), the model %v", got, freed, expected)
				}
				want["prune"]++
				want["destroy"] += len(gone)
			},
			"degrade": func(rt *rapid.T) {
				name := rapid.SampledFrom(modelStores).Draw(rt, "store")
				stores[name].Degrade("unplugged")
				m.degraded[name] = true
			},
			"recover": func(*rapid.T) {
				for name, st := range stores {
					st.Degrade("")
					delete(m.degraded, name)
				}
			},
			"": func(rt *rapid.T) { same(rt, t, s, m, events, want) },
		})
	})
}

func add(m map[portlayer.VolumeID]map[portlayer.ContainerID]bool, id portlayer.VolumeID, c portlayer.ContainerID, v bool) {
	if m[id] == nil {
		m[id] = map[portlayer.ContainerID]bool{}
	}
	m[id][c] = v
}

func forget(m map[portlayer.VolumeID]map[portlayer.ContainerID]bool, c portlayer.ContainerID) {
	for _, by := range m {
		delete(by, c)
	}
}

// same compares all that can be seen of the service with the model.
func same(rt *rapid.T, t *testing.T, s *Service, m *model, events, want map[string]int) {
	vols, warnings, err := s.List(t.Context())
	if err != nil || len(warnings) != len(m.degraded) {
		rt.Fatalf("list: %q, %v; degraded %v", warnings, err, m.degraded)
	}
	seen := map[portlayer.VolumeID]bool{}
	refs := map[string]bool{}
	for _, d := range vols {
		id := d.ID()
		seen[id] = true
		v, there := m.volumes[id]
		if !there || d.Maker != string(v.maker) || d.Capacity != v.capacity || refs[d.Ref()] {
			rt.Fatalf("%+v (%s); the model has %+v", d, d.Ref(), v)
		}
		refs[d.Ref()] = true
		if means, ok, _ := m.find(portlayer.VolumeID{Name: id.Name}); ok && len(m.degraded) == 0 && d.Qualified == (means == id) {
			rt.Fatalf("%s is called %s, and the plain name means %s", id, d.Ref(), means)
		}
		if !slices.Equal(d.Refs, sortedKeys(m.refs[id])) || len(d.Attached) != len(m.held[id]) {
			rt.Fatalf("%s: refs %v, attached %v; the model has %v, %v", id, d.Refs, d.Attached, m.refs[id], m.held[id])
		}
		for _, a := range d.Attached {
			if a.ReadOnly == m.held[id][a.Container] {
				rt.Fatalf("%s: %+v, the model has %v", id, a, m.held[id])
			}
		}
	}
	for id := range m.volumes {
		if !m.degraded[id.Store] && !seen[id] {
			rt.Fatalf("%s is not listed", id)
		}
		for _, ref := range []portlayer.VolumeID{id, {Name: id.Name}} {
			at, ok, kind := m.find(ref)
			if d, err := s.Get(t.Context(), ref); ok != (err == nil) || err != nil && !fault.Is(err, kind) || ok && d.ID() != at {
				rt.Fatalf("get %s: %+v, %v; the model has %s, %v, %v", ref, d, err, at, ok, kind)
			}
		}
	}
	for _, verb := range []string{"create", "destroy", "mount", "unmount", "prune"} {
		if events[verb] != want[verb] {
			rt.Fatalf("%d events %s, the model has %d", events[verb], verb, want[verb])
		}
	}
}

// Many containers at once: whoever has reserved a volume has it until the release, a volume never has a writer and somebody else, and what was made
// was removed as often.
func TestAtOnce(t *testing.T) {
	var made, gone atomic.Int64
	s, err := New(Options{Stores: []portlayer.VolumeStore{volumetest.NewStore("default"), volumetest.NewStore("fast")}, Publish: func(e portlayer.Event) {
		switch e.Verb {
		case "create":
			made.Add(1)
		case "destroy":
			gone.Add(1)
		}
	}})
	if err != nil {
		t.Fatal(err)
	}
	ctx := t.Context()
	names := []portlayer.VolumeName{"aa", "bb"}
	var writers, readers [2]atomic.Int64
	var wg sync.WaitGroup
	for i := range 8 {
		wg.Go(func() {
			c := portlayer.ContainerID(fmt.Sprint("c", i))
			r := rand.New(rand.NewPCG(1, uint64(i)))
			for range 300 {
				n := r.IntN(2)
				m, _, err := s.Reserve(ctx, c, portlayer.Mount{Kind: portlayer.VolumeMount, Volume: names[n], Target: "/d", ReadOnly: r.IntN(2) == 0})
				if err != nil {
					t.Errorf("reserve: %v", err)
					return
				}
				if _, err := s.Get(ctx, m.ID()); err != nil {
					t.Errorf("reserved, and then: %v", err)
				}
				if err := s.Attach(c, string(c), []portlayer.Mount{m}); err == nil {
					mine, others := &writers[n], &readers[n]
					if m.ReadOnly {
						mine, others = others, mine
					}
					if now := mine.Add(1); others.Load() != 0 || now > 1 && !m.ReadOnly {
						t.Errorf("%s is held by a writer and somebody else", m.Volume)
					}
					mine.Add(-1)
					s.Detach(c)
				} else if !fault.Is(err, fault.InUse) {
					t.Errorf("attach: %v", err)
				}
				s.Release(c)
			}
		})
		wg.Go(func() {
			r := rand.New(rand.NewPCG(2, uint64(i)))
			for range 300 {
				var err error
				name := names[r.IntN(2)]
				switch r.IntN(4) {
				case 0:
					err = s.Remove(ctx, portlayer.VolumeID{Name: name})
				case 1:
					err = s.Unmake(ctx, portlayer.VolumeID{Name: name, Store: "default"}, "")
				case 2:
					_, _, err = s.Prune(ctx, func(portlayer.Volume) bool { return true })
				case 3:
					_, _, err = s.List(ctx)
				}
				if err != nil && !fault.Is(err, fault.InUse) && !fault.Is(err, fault.NotFound) && !strings.Contains(err.Error(), "prune operation is already running") {
					t.Errorf("%v", err)
				}
			}
		})
	}
	wg.Wait()
	vols, warnings, err := s.List(ctx)
	if err != nil || len(warnings) > 0 || made.Load()-gone.Load() != int64(len(vols)) {
		t.Errorf("made %d, removed %d, left %d; %q, %v", made.Load(), gone.Load(), len(vols), warnings, err)
	}
	if _, _, err := s.Prune(ctx, func(portlayer.Volume) bool { return true }); err != nil || made.Load() != gone.Load() {
		t.Errorf("made %d, removed %d, %v", made.Load(), gone.Load(), err)
	}
	if len(s.refs)+len(s.held) > 0 {
		t.Errorf("left: refs %v, held %v", s.refs, s.held)
	}
}
