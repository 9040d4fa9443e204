package volumetest

import (
	"vch/internal/fault"
	"vch/portlayer"
)

// Labels are replaced, for every later process, and nothing else is.
func labelsLaw(b *bench) {
	p, s := b.fresh()
	vol := b.ensure(s, portlayer.VolumeSpec{Name: "data", Labels: map[string]string{"a": "1", "b": "2"}, Options: map[string]string{"Capacity": "1G"}, Maker: "c", VCH: "here"})
	vol.Labels = map[string]string{"b": "3"}
	got, err := s.SetLabels(b.Context(), "data", map[string]string{"b": "3"})
	if err != nil {
		b.Fatal(err)
	}
	b.equal("changed", vol, got)
	b.shows(b.open(p), vol)
	vol.Labels = nil
	if _, err := s.SetLabels(b.Context(), "data", nil); err != nil {
		b.Fatal(err)
	}
	b.shows(b.open(p), vol)
	_, err = s.SetLabels(b.Context(), "gone", nil)
	b.kind(err, fault.NotFound, "gone")
	for how, harm := range p.Damage {
		p, s := b.fresh()
		b.ensure(s, portlayer.VolumeSpec{Name: "data"})
		_ = harm
		p.Damage[how]("data")
		_, err := s.SetLabels(b.Context(), "data", map[string]string{"x": "y"})
		b.kind(err, fault.Conflict, "data")
	}
}
