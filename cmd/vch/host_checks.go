package main

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"vch/internal/fault"
	"vch/machine"
	"vch/portlayer"
	"vch/portlayer/volume/nfs"
)

// noun is a row of doctor's table as a check of a plan.
func (c check) noun() machine.Check {
	return machine.Check{Name: c.name, Verdict: machine.Verdict(c.verdict), Detail: c.detail}
}

// checkCreate looks at all that a new VCH needs, before anything is made. others are the VCHs that there are, by name; v is what was seen of the target, nil if that is this host.
func checkCreate(ctx context.Context, s settings, others map[string]settings, v *survey) (checks []machine.Check) {
	for _, c := range examineMachine(ctx, s) {
		checks = append(checks, c.noun())
	}
	found, err := lookAtState(s.State)
	checks = append(checks, rowOf("state", found, err).noun())
	if s.Images != filepath.Join(s.State, "images") {
		checks = append(checks, checkImages(s.Images))
	}
	for _, a := range s.Listen {
		checks = append(checks, checkListen(a, others))
	}
	if v != nil {
		checks = append(append(checks, checkGuests(s.VSphere, others)), v.checks...)
	}
	return append(checks, checkStores(ctx, s, s.Stores, others, v)...)
}

// checkListen looks at an address that is new to a VCH: nobody listens there, and no other VCH will.
func checkListen(a address, others map[string]settings) machine.Check {
	for name, other := range others {
		if slices.Contains(other.Listen, a) {
			return check{"listen", fail, fmt.Sprintf("VCH %s listens at %s; choose another with --listen", name, a)}.noun()
		}
	}
	stale, err := lookAt(a)
	switch {
	case err != nil:
		return check{"listen", fail, err.Error()}.noun()
	case stale:
		return check{"listen", ok, a.String() + ", left by a daemon that has died"}.noun()
	}
	return check{"listen", ok, a.String()}.noun()
}

// checkImages looks at a directory for images: what is in it would be taken for images, and removed with the VCH.
func checkImages(path string) machine.Check {
	entries, err := os.ReadDir(path)
	switch {
	case err == nil && len(entries) > 0:
		return check{"image store", fail, path + " is not empty; give a directory of the VCH's own with --image-store"}.noun()
	case err != nil && !errors.Is(err, fs.ErrNotExist):
		return check{"image store", fail, fmt.Sprintf("%s cannot be used: %v; give another with --image-store", path, cause(err))}.noun()
	}
	place, made, err := lookAtDir(path)
	if err != nil {
		return check{"image store", fail, err.Error() + "; give another with --image-store"}.noun()
	}
	free, err := freeAt(place)
	if err != nil {
		return check{"image store", fail, err.Error()}.noun()
	}
	return rowOf("image store", describe(path, made, free, place), nil).noun()
}

// checkStores looks at stores that are new to a VCH: reachable, writable, with room, and nobody else's.
func checkStores(ctx context.Context, s settings, stores []storePlace, others map[string]settings, v *survey) (checks []machine.Check) {
	for _, store := range stores {
		checks = append(checks, checkStore(ctx, s, store, others, v))
	}
	for _, store := range s.Stores {
		if store.Name == portlayer.DefaultStore {
			return checks
		}
	}
	return append(checks, check{"store default", warn, noDefaultStore}.noun())
}

func checkStore(ctx context.Context, s settings, store storePlace, others map[string]settings, v *survey) machine.Check {
	title := "store " + string(store.Name)
	for name, other := range others {
		for _, theirs := range other.Stores {
			if store.NFS == nil && theirs.NFS == nil && sameTarget(s, other) && (store.Path == theirs.Path || within(store.Path, theirs.Path) || within(theirs.Path, store.Path)) {
				return check{title, fail, fmt.Sprintf("%s is, or is in, store %s of VCH %s, and a directory of disks is one VCH's; give another directory", store.Path, theirs.Name, name)}.noun()
			}
		}
	}
	if store.NFS != nil {
		ctx, cancel := context.WithTimeout(ctx, s.NFSTimeout)
		defer cancel()
		total, free, err := nfs.Try(ctx, *store.NFS)
		if err != nil {
			c := check{title, fail, fmt.Sprintf("%s: %v", store, err)}.noun()
			c.Forceable = true
			return c
		}
		return check{title, ok, fmt.Sprintf("%s, %s free of %s", store, size(free), size(total))}.noun()
	}
	if store.Datastore {
		c := v.checkPlace(ctx, title, store.Path)
		c.Forceable = c.Verdict == machine.Fail
		return c
	}
	found, err := lookAtStore(store)
	if err == nil {
		err = tryToWrite(store)
	}
	c := rowOf(title, found, err).noun()
	c.Detail = strings.TrimPrefix(c.Detail, "volume "+title+": ") // the row says it
	c.Forceable = c.Verdict == machine.Fail
	return c
}

// sameTarget says whether two VCHs have their disks in the same place.
func sameTarget(a, b settings) bool {
	return a.VSphere == nil && b.VSphere == nil || a.VSphere != nil && b.VSphere != nil && a.VSphere.URL == b.VSphere.URL
}

// tryToWrite writes where a store is, or will be, and takes it away again: a look at modes does not find what a server or a full medium refuses.
func tryToWrite(store storePlace) error {
	dir := store.Path
	if _, err := os.Stat(dir); err != nil {
		dir = filepath.Dir(dir)
	}
	f, err := os.CreateTemp(dir, ".vch-try-*")
	if err == nil {
		_, err = f.Write(make([]byte, 4096))
		err = errors.Join(err, f.Sync(), f.Close(), os.Remove(f.Name()))
	}
	if err != nil {
		return fault.New(fault.Denied, "volume store %s: %s cannot be written: %w", store.Name, dir, cause(err))
	}
	return nil
}

// others are the settings of all VCHs but one. One whose settings cannot be read has none.
func (c *life) others(but string, at surroundings) (map[string]settings, error) {
	all, err := c.all(at)
	found := map[string]settings{}
	for _, l := range all {
		if l.Name == but {
			continue
		}
		if s, err := read(l.Config); err == nil {
			if set, err := checked(s, at); err == nil {
				found[l.Name] = set
			}
		}
	}
	return found, err
}

// reached are the directories, of this host or of a datastore, among stores that passed their checks: what could not be reached is not made.
func reached(stores []storePlace, checks []machine.Check) (paths []string) {
	bad := map[string]bool{}
	for _, c := range checks {
		bad[c.Name] = bad[c.Name] || c.Forceable
	}
	for _, s := range stores {
		if s.NFS == nil && !bad["store "+string(s.Name)] {
			paths = append(paths, s.Path)
		}
	}
	return paths
}
