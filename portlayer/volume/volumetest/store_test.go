package volumetest

import (
	"context"
	"testing"

	"vch/portlayer"
)

func TestStoreInMemory(t *testing.T) {
	Run(t, func(t *testing.T, _ string) Place {
		s := NewStore(portlayer.DefaultStore)
		return Place{
			Open:     func(context.Context) (portlayer.VolumeStore, error) { return s.Reopen(s.Name()), nil },
			TooSmall: portlayer.MiB,
			Disks:    true,
			Degrade: map[string]func(bool){"away": func(on bool) {
				why := ""
				if on {
					why = "the server does not answer"
				}
				s.Degrade(why)
			}},
			Damage: map[string]func(portlayer.VolumeName){"truncated": func(n portlayer.VolumeName) { s.Damage(n, "its extent is short") }},
			Fill:   s.Fill,
		}
	})
}

func TestDirectoriesInMemory(t *testing.T) {
	Run(t, func(t *testing.T, _ string) Place {
		d := NewDirectories("remote")
		return Place{
			Open: func(context.Context) (portlayer.VolumeStore, error) { return d.reopen(), nil },
			Degrade: map[string]func(bool){"away": func(on bool) {
				why := ""
				if on {
					why = "the server does not answer"
				}
				d.Degrade(why)
			}},
			Damage: map[string]func(portlayer.VolumeName){"truncated": func(n portlayer.VolumeName) { d.Damage(n, "its directory is missing") }},
			Fill:   d.Fill,
		}
	})
}
