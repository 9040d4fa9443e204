package personality

import (
	"crypto/sha256"
	"encoding/hex"
	"net/http"
	"slices"
	"strings"
	"time"

	"github.com/moby/moby/api/types/network"

	"vch/internal/fault"
)

// In this version containers have no network: there is the one network "none", and no other can be made.

// networkDriver is Docker's driver of the network "none".
const networkDriver = "null"

// noneID is the id of the network "none", the same in every VCH.
func noneID() string {
	sum := sha256.Sum256([]byte("vch network none"))
	return hex.EncodeToString(sum[:])
}

func none() network.Network {
	return network.Network{
		Name: network.NetworkNone, ID: noneID(), Created: time.Unix(0, 0).UTC(), Scope: "local", Driver: networkDriver, EnableIPv4: true,
		IPAM: network.IPAM{Driver: "default", Options: map[string]string{}, Config: []network.IPAMConfig{}}, Options: map[string]string{}, Labels: map[string]string{},
	}
}

// networkList answers docker network ls.
func (s *Server) networkList(w http.ResponseWriter, r *http.Request) error {
	f, err := filtersOf(r)
	if err == nil {
		err = f.only("dangling", "driver", "id", "label", "name", "scope", "type")
	}
	if err != nil {
		return err
	}
	found := []network.Inspect{}
	if noneMatches(f) {
		found = append(found, network.Inspect{Network: none(), Containers: map[string]network.EndpointResource{}})
	}
	return writeJSON(w, http.StatusOK, found)
}

// noneMatches reports whether the network "none" passes f. It is built in, and so neither custom nor dangling.
func noneMatches(f filters) bool {
	any := func(key string, ok func(string) bool) bool {
		return len(f[key]) == 0 || slices.ContainsFunc(f[key], ok)
	}
	is := func(text string) func(string) bool { return func(v string) bool { return v == text } }
	return any("name", func(v string) bool { return strings.Contains(network.NetworkNone, v) }) &&
		any("id", func(v string) bool { return strings.HasPrefix(noneID(), v) }) &&
		any("driver", is(networkDriver)) && any("scope", is("local")) && any("type", is("builtin")) &&
		any("dangling", func(v string) bool { return v == "false" || v == "0" }) && f.labels(nil)
}

// networkInspect answers docker network inspect.
func (s *Server) networkInspect(w http.ResponseWriter, r *http.Request) error {
	ref := r.PathValue("id")
	if ref != network.NetworkNone && (ref == "" || !strings.HasPrefix(noneID(), ref)) {
		return fault.New(fault.NotFound, "network %s not found", ref)
	}
	return writeJSON(w, http.StatusOK, network.Inspect{Network: none(), Containers: map[string]network.EndpointResource{}})
}

// networkPrune answers docker network prune: what is built in is never removed.
func (s *Server) networkPrune(w http.ResponseWriter, r *http.Request) error {
	f, err := filtersOf(r)
	if err == nil {
		err = f.only("label", "label!", "until")
	}
	if err != nil {
		return err
	}
	return writeJSON(w, http.StatusOK, network.PruneReport{NetworksDeleted: []string{}})
}
