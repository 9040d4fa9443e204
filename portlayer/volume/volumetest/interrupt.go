package volumetest

import (
	"fmt"
	"slices"

	"vch/internal/fault"
	"vch/portlayer"
)

// manyCalls is more than one method of a store may need of its medium; it ends a search for the last call that would not end.
const manyCalls = 200

// interruptions calls try, in which each call in turn, of those that one operation makes, is to fail in each of those ways. try reports whether
// the fault was met.
func (b *bench) interruptions(those []Way, try func(what string, n int, w Way) (met bool)) {
	b.Helper()
	if p, _ := b.fresh(); p.Faults == nil {
		return
	}
	for _, w := range those {
		for n := 0; ; n++ {
			if !try(fmt.Sprintf("call %d %v", n, w), n, w) {
				if n == 0 {
					b.Fatal("the operation makes no call that could fail")
				}
				break
			}
			if n > manyCalls {
				b.Fatalf("the operation makes more than %d calls", manyCalls)
			}
		}
	}
}

// lives says whether the process goes on after a fault.
func (w Way) lives() bool { return w == Refused || w == LostAnswer }

// interruptedEnsureLaw: after an error nothing is left; after a death the volume is there whole or not at all, and the next Ensure works.
func interruptedEnsureLaw(b *bench) {
	b.interruptions([]Way{Refused, LostAnswer, DiesBefore, DiesAfter}, func(what string, n int, w Way) bool {
		p, s := b.fresh()
		keep := b.ensure(s, portlayer.VolumeSpec{Name: "keep", Capacity: small})
		before := tree(p)
		spec := portlayer.VolumeSpec{Name: "data", Capacity: small, Maker: "me"}
		p.Faults.Arm(n, w)
		_, made, err := s.Ensure(b.Context(), spec)
		met := p.Faults.Disarm()
		switch {
		case !met && (err != nil || !made):
			b.Fatalf("%s: not met, made %v, %v", what, made, err)
		case err != nil && w.lives():
			b.equal(what+": medium after an error", before, tree(p))
			b.shows(s, keep)
		}
		s = b.open(p)
		there := b.present(what, s, "data")
		if !there {
			b.equal(what+": medium after reopening", before, tree(p))
			if err == nil {
				b.Fatalf("%s: reported made, and is lost", what)
			}
		}
		vol, made, err := s.Ensure(b.Context(), spec)
		if err != nil || made == there {
			b.Fatalf("%s: ensured again: there before %v, made %v, %v", what, there, made, err)
		}
		b.shows(s, vol, keep)
		if err := s.Remove(b.Context(), "data"); err != nil {
			b.Fatalf("%s: remove: %v", what, err)
		}
		b.equal(what+": medium at the end", before, tree(p))
		return met
	})
}

// present reports whether the store lists a volume; nothing may be reported damaged.
func (b *bench) present(what string, s portlayer.VolumeStore, name portlayer.VolumeName) bool {
	b.Helper()
	vols, err := s.List(b.Context())
	if err != nil {
		b.Fatalf("%s: list: %v", what, err)
	}
	listed := slices.ContainsFunc(vols, func(v portlayer.Volume) bool { return v.Name == name })
	_, err = s.Get(b.Context(), name)
	if err != nil && !fault.Is(err, fault.NotFound) || (err == nil) != listed {
		b.Fatalf("%s: listed %v, get %v", what, listed, err)
	}
	return listed
}

// interruptedRemoveLaw: the volume is whole or gone, and a second Remove finishes what is left.
func interruptedRemoveLaw(b *bench) {
	b.interruptions([]Way{Refused, LostAnswer, DiesBefore, DiesAfter}, func(what string, n int, w Way) bool {
		p, s := b.fresh()
		keep := b.ensure(s, portlayer.VolumeSpec{Name: "keep", Capacity: small})
		before := tree(p)
		vol := b.ensure(s, portlayer.VolumeSpec{Name: "data", Capacity: small})
		p.Faults.Arm(n, w)
		err := s.Remove(b.Context(), "data")
		met := p.Faults.Disarm()
		if !met && err != nil {
			b.Fatalf("%s: not met, %v", what, err)
		}
		if !w.lives() {
			s = b.open(p)
		}
		there := b.present(what, s, "data")
		if there {
			if err == nil {
				b.Fatalf("%s: reported removed, and is there", what)
			}
			b.shows(s, vol, keep)
		}
		if err := s.Remove(b.Context(), "data"); err != nil && (there || !fault.Is(err, fault.NotFound)) {
			b.Fatalf("%s: second remove: %v", what, err)
		}
		b.shows(s, keep)
		b.equal(what+": medium", before, tree(p))
		b.shows(b.open(p), keep)
		return met
	})
}

// interruptedOpenLaw: an Open that fails or dies while it clears away what a death in Ensure left loses nothing, and the next Open finishes.
func interruptedOpenLaw(b *bench) {
	for death := 0; death <= manyCalls; death++ {
		if p, _, _, met := b.deadEnsure(death); p.Faults == nil || !met {
			return
		} else if !b.leftovers(p) {
			continue
		}
		b.interruptions([]Way{Refused, DiesAfter}, func(what string, n int, w Way) bool {
			p, keep, before, _ := b.deadEnsure(death)
			p.Faults.Arm(n, w)
			_, err := p.Open(b.Context())
			met := p.Faults.Disarm()
			if !met && err != nil {
				b.Fatalf("%s: open: %v", what, err)
			}
			s := b.open(p)
			if b.present(what, s, "data") {
				if err := s.Remove(b.Context(), "data"); err != nil {
					b.Fatalf("%s: remove: %v", what, err)
				}
			}
			b.shows(s, keep)
			b.equal(what+": medium", before, tree(p))
			return met
		})
	}
}

// deadEnsure is a place on which a process died after a call of the Ensure of volume data, where volumes are disks a copy of keep: that takes several; met is false when the Ensure had fewer calls. The medium
// held keep, and was as before says.
func (b *bench) deadEnsure(call int) (p Place, keep portlayer.Volume, before []string, met bool) {
	b.Helper()
	p, s := b.fresh()
	if p.Faults == nil {
		return p, keep, nil, false
	}
	keep = b.ensure(s, portlayer.VolumeSpec{Name: "keep", Capacity: small})
	before = tree(p)
	spec := portlayer.VolumeSpec{Name: "data"}
	if p.Disks {
		from, err := s.Source(b.Context(), "keep", "")
		if err != nil {
			b.Fatalf("source: %v", err)
		}
		spec.From = &from
	}
	p.Faults.Arm(call, DiesAfter)
	_, _, err := s.Ensure(b.Context(), spec)
	met = p.Faults.Disarm()
	if !met && err != nil {
		b.Fatalf("ensure: %v", err)
	}
	return p, keep, before, met
}

// leftovers reports whether an Open finds something to clear away, which it does.
func (b *bench) leftovers(p Place) bool {
	b.Helper()
	before := tree(p)
	b.open(p)
	return !slices.Equal(before, tree(p))
}
