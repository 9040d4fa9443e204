package exec

import (
	"math/rand/v2"
	"regexp"
	"strconv"

	"vch/internal/fault"
	"vch/portlayer"
)

// nameRule is Docker's rule for container names (moby daemon/names).
var nameRule = regexp.MustCompile(`^[a-zA-Z0-9][a-zA-Z0-9_.-]+$`)

// maxName keeps names fit for host names and file names; Docker itself sets no bound.
const maxName = 255

// Half of a made-up name each: things of the sea and of the road, where containers travel.
var (
	moods  = [...]string{"amber", "bold", "brisk", "calm", "clever", "copper", "crisp", "daring", "eager", "early", "fair", "gentle", "golden", "happy", "keen", "kind", "lively", "lucky", "merry", "mighty", "nimble", "noble", "patient", "proud", "quick", "quiet", "rapid", "ready", "robust", "silver", "smart", "solid", "steady", "sunny", "swift", "tidy", "vivid", "warm", "wise", "witty"}
	things = [...]string{"anchor", "barge", "beacon", "bosun", "bridge", "buoy", "cargo", "clipper", "compass", "convoy", "crane", "cutter", "dock", "ferry", "fjord", "galley", "gantry", "harbor", "hull", "jetty", "keel", "lagoon", "lantern", "marina", "mast", "mooring", "pallet", "pier", "pilot", "porter", "quay", "rudder", "sail", "schooner", "sextant", "tether", "tide", "trawler", "tug", "wharf"}
)

// reserveName takes name for id, or makes one up where name is "". Conflict if another container has it.
func (s *Service) reserveName(id portlayer.ContainerID, name string) (string, error) {
	if name != "" && !nameRule.MatchString(name) {
		return "", fault.New(fault.Invalid, "Invalid container name (%s), only [a-zA-Z0-9][a-zA-Z0-9_.-] are allowed", name)
	}
	if len(name) > maxName {
		return "", fault.New(fault.Invalid, "Invalid container name: it has %d characters, at most %d are allowed", len(name), maxName)
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if name != "" {
		if holder, taken := s.names[name]; taken && holder != id {
			return "", fault.New(fault.Conflict, "Conflict. The container name %q is already in use by container %q. You have to remove (or rename) that container to be able to reuse that name.", "/"+name, string(holder))
		}
		s.names[name] = id
		return name, nil
	}
	for try := 0; ; try++ {
		name = moods[rand.IntN(len(moods))] + "_" + things[rand.IntN(len(things))]
		if try > 3 {
			name += strconv.Itoa(rand.IntN(10 * try))
		}
		if _, taken := s.names[name]; !taken {
			s.names[name] = id
			return name, nil
		}
	}
}

func (s *Service) freeName(name string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	delete(s.names, name)
}
