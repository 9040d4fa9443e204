package volume

import (
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
	volumes  map[portlayer.VolumeName]modelVolume
	refs     map[portlayer.VolumeName]map[portlayer.ContainerID]bool
	held     map[portlayer.VolumeName]map[portlayer.ContainerID]bool // value: writes
	degraded map[portlayer.StoreName]bool
}

type modelVolume struct {
	store    portlayer.StoreName
	maker    portlayer.ContainerID
	capacity portlayer.Bytes
}

// find is the kind with which looking for a volume ends; ok: it is found.
func (m *model) find(name portlayer.VolumeName) (v modelVolume, ok bool, kind fault.Kind) {
	v, there := m.volumes[name]
	switch {
	case there && !m.degraded[v.store]:
		return v, true, 0
	case len(m.degraded) > 0:
		return v, false, fault.Unavailable
	}
	return v, false, fault.NotFound
}

func (m *model) used(name portlayer.VolumeName) bool { return len(m.refs[name])+len(m.held[name]) > 0 }

// ensure is what Create and Reserve do in common.
func (m *model) ensure(name portlayer.VolumeName, store portlayer.StoreName, capacity portlayer.Bytes, maker portlayer.ContainerID) (made bool, kind fault.Kind, ok bool) {
	v, found, kind := m.find(name)
	switch {
	case found && (store != "" && store != v.store || capacity != 0 && capacity != v.capacity):
		return false, fault.Conflict, false
	case found:
		return false, 0, true
	case kind == fault.Unavailable:
		return false, kind, false
	}
	if store == "" {
		store = portlayer.DefaultStore
	}
	if capacity == 0 {
		capacity = 32 * mib
	}
	m.volumes[name] = modelVolume{store: store, maker: maker, capacity: capacity}
	return true, 0, true
}

func (m *model) drop(name portlayer.VolumeName) { delete(m.volumes, name) }

// The service does what the model does, whatever comes in whatever order.
func TestModel(t *testing.T) {
	rapid.Check(t, func(rt *rapid.T) {
		stores := map[portlayer.StoreName]*volumetest.Store{"default": volumetest.NewStore("default"), "fast": volumetest.NewStore("fast")}
		events := map[string]int{}
		s, err := New(Options{
			Stores: []portlayer.VolumeStore{stores["default"], stores["fast"]}, AnonymousCapacity: 16 * mib, DefaultCapacity: 32 * mib,
			Publish: func(e portlayer.Event) { events[e.Verb]++ },
		})
		if err != nil {
			rt.Fatal(err)
		}
		m := &model{
			volumes:  map[portlayer.VolumeName]modelVolume{},
			refs:     map[portlayer.VolumeName]map[portlayer.ContainerID]bool{},
			held:     map[portlayer.VolumeName]map[portlayer.ContainerID]bool{},
			degraded: map[portlayer.StoreName]bool{},
		}
		want := map[string]int{}
		ctx := t.Context()
		names := rapid.SampledFrom([]portlayer.VolumeName{"aa", "bb", "cc"})
		containers := rapid.SampledFrom([]portlayer.ContainerID{"c1", "c2", "c3"})
		places := rapid.SampledFrom([]portlayer.StoreName{"", "", "default", "fast"})
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
				name, store, capacity := names.Draw(rt, "name"), places.Draw(rt, "store"), sizes.Draw(rt, "capacity")
				made, kind, ok := m.ensure(name, store, capacity, "")
				_, err := s.Create(ctx, portlayer.VolumeRequest{Name: name, Options: options(store, capacity)})
				check(rt, err, ok, kind)
				if made {
					want["create"]++
				}
			},
			"reserve": func(rt *rapid.T) {
				name, store, capacity, c := names.Draw(rt, "name"), places.Draw(rt, "store"), sizes.Draw(rt, "capacity"), containers.Draw(rt, "container")
				made, kind, ok := m.ensure(name, store, capacity, c)
				mount, gotMade, err := s.Reserve(ctx, c, portlayer.Mount{Kind: portlayer.VolumeMount, Volume: name, Store: store, Options: options("", capacity)})
				check(rt, err, ok, kind)
				if gotMade != made {
					rt.Fatalf("made %v, the model %v", gotMade, made)
				}
				if made {
					want["create"]++
				}
				if ok {
					add(m.refs, name, c, true)
					if mount.Store != m.volumes[name].store || mount.Anonymous {
						rt.Fatalf("%+v", mount)
					}
				}
			},
			"anonymous": func(rt *rapid.T) {
				c := containers.Draw(rt, "container")
				mount, made, err := s.Reserve(ctx, c, portlayer.Mount{Kind: portlayer.VolumeMount})
				check(rt, err, !m.degraded["default"], fault.Unavailable)
				if err == nil {
					if !made || !mount.Anonymous || m.volumes[mount.Volume] != (modelVolume{}) {
						rt.Fatalf("%+v, made %v", mount, made)
					}
					m.volumes[mount.Volume] = modelVolume{store: "default", maker: c, capacity: 16 * mib}
					add(m.refs, mount.Volume, c, true)
					want["create"]++
				}
			},
			"refer": func(rt *rapid.T) {
				name, c := names.Draw(rt, "name"), containers.Draw(rt, "container")
				s.Refer(c, name)
				add(m.refs, name, c, true)
			},
			"release": func(rt *rapid.T) {
				c := containers.Draw(rt, "container")
				s.Release(c)
				forget(m.refs, c)
			},
			"remove": func(rt *rapid.T) {
				name := names.Draw(rt, "name")
				_, found, kind := m.find(name)
				if found && m.used(name) {
					found, kind = false, fault.InUse
				}
				check(rt, s.Remove(ctx, name), found, kind)
				if found {
					m.drop(name)
					want["destroy"]++
				}
			},
			"unmake": func(rt *rapid.T) {
				name := names.Draw(rt, "name")
				maker := rapid.SampledFrom([]portlayer.ContainerID{"", "c1", "c2"}).Draw(rt, "maker")
				v, found, kind := m.find(name)
				ok := found || kind == fault.NotFound || m.used(name)
				check(rt, s.Unmake(ctx, name, maker), ok, kind)
				if found && !m.used(name) && (maker == "" || maker == v.maker) {
					m.drop(name)
					want["destroy"]++
				}
			},
			"attach": func(rt *rapid.T) {
				c := containers.Draw(rt, "container")
				some := rapid.SliceOfNDistinct(names, 1, 3, rapid.ID).Draw(rt, "names")
				clash, fresh := false, 0
				var mounts []portlayer.Mount
				for _, name := range some {
					ro := rapid.Bool().Draw(rt, "read-only")
					mounts = append(mounts, portlayer.Mount{Kind: portlayer.VolumeMount, Volume: name, Target: "/" + string(name), ReadOnly: ro})
					mine, have := m.held[name][c]
					if !have {
						fresh++
					}
					for other, writes := range m.held[name] {
						clash = clash || other != c && (writes || mine || !ro)
					}
				}
				check(rt, s.Attach(c, string(c), mounts), !clash, fault.InUse)
				if !clash {
					want["mount"] += fresh
					for _, mt := range mounts {
						add(m.held, mt.Volume, c, m.held[mt.Volume][c] || !mt.ReadOnly)
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
			"prune": func(rt *rapid.T) {
				spare := names.Draw(rt, "spared")
				gone, freed, err := s.Prune(ctx, func(v portlayer.Volume) bool { return v.Name != spare })
				check(rt, err, true, 0)
				var expected []portlayer.VolumeName
				for _, name := range sortedKeys(m.volumes) {
					if name != spare && !m.used(name) && !m.degraded[m.volumes[name].store] {
						expected = append(expected, name)
						m.drop(name)
					}
				}
				if !slices.Equal(gone, expected) || freed != portlayer.Bytes(len(gone))*64*portlayer.KiB {
					rt.Fatalf("pruned %v (%d bytes), the model %v", gone, freed, expected)
				}
				want["prune"]++
				want["destroy"] += len(gone)
			},
			"degrade": func(rt *rapid.T) {
				name := rapid.SampledFrom([]portlayer.StoreName{"default", "fast"}).Draw(rt, "store")
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

func add(m map[portlayer.VolumeName]map[portlayer.ContainerID]bool, name portlayer.VolumeName, c portlayer.ContainerID, v bool) {
	if m[name] == nil {
		m[name] = map[portlayer.ContainerID]bool{}
	}
	m[name][c] = v
}

func forget(m map[portlayer.VolumeName]map[portlayer.ContainerID]bool, c portlayer.ContainerID) {
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
	seen := map[portlayer.VolumeName]bool{}
	for _, d := range vols {
		seen[d.Name] = true
		v, there := m.volumes[d.Name]
		if !there || d.Store != v.store || d.Maker != string(v.maker) || d.Capacity != v.capacity {
			rt.Fatalf("%+v; the model has %+v", d, v)
		}
		if !slices.Equal(d.Refs, sortedKeys(m.refs[d.Name])) || len(d.Attached) != len(m.held[d.Name]) {
			rt.Fatalf("%s: refs %v, attached %v; the model has %v, %v", d.Name, d.Refs, d.Attached, m.refs[d.Name], m.held[d.Name])
		}
		for _, a := range d.Attached {
			if a.ReadOnly == m.held[d.Name][a.Container] {
				rt.Fatalf("%s: %+v, the model has %v", d.Name, a, m.held[d.Name])
			}
		}
	}
	for name, v := range m.volumes {
		if !m.degraded[v.store] && !seen[name] {
			rt.Fatalf("%s is not listed", name)
		}
		if _, err := s.Get(t.Context(), name); (err == nil) != seen[name] || err != nil && !fault.Is(err, fault.Unavailable) {
			rt.Fatalf("get %s: %v", name, err)
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
				if _, err := s.Get(ctx, m.Volume); err != nil {
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
					err = s.Remove(ctx, name)
				case 1:
					err = s.Unmake(ctx, name, "")
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
