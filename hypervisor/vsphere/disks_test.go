package vsphere

import (
	"os"
	"strings"
	"testing"

	"vch/internal/vmdkfile"
	"vch/portlayer"
)

// New disks, copies and renamed ones are thin, and a rename loses nothing that the server wrote into a descriptor.
func TestDisksAreThin(t *testing.T) {
	s := newScene(t)
	d := s.h.Disks()
	one := s.disk("one")
	two, three := d.Join(s.dir, "two.vmdk"), d.Join(s.dir, "three.vmdk")
	s.must(d.Copy(t.Context(), one, two, nil))
	const own = "ddb.uuid = \"60 00 C2 9a\"\n"
	text, err := os.ReadFile(s.sim.Path(string(two)))
	s.must(err)
	s.must(os.WriteFile(s.sim.Path(string(two)), append(text, own...), 0o600))
	s.must(d.Link(t.Context(), two, three))
	s.must(d.Delete(t.Context(), two))
	s.must(d.Grow(t.Context(), three, 32*portlayer.MiB))
	for _, p := range []portlayer.DiskPath{one, three} {
		text, err := os.ReadFile(s.sim.Path(string(p)))
		s.must(err)
		if strings.Count(string(text), vmdkfile.Thin) != 1 || p == three && !strings.Contains(string(text), own) {
			t.Errorf("%s is\n%s", p, text)
		}
	}
}
