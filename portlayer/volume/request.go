package volume

import (
	"io"
	"maps"
	"slices"
	"strconv"
	"strings"
	"unicode/utf8"

	"vch/internal/fault"
	"vch/portlayer"
)

// wish is what somebody asks of a volume, found or to be made, in the service's own terms.
type wish struct {
	name      portlayer.VolumeName
	anonymous bool                // name was made up for it: no other volume has it
	qualified bool                // the name came with its store: others of that name are other volumes
	there     bool                // it is found, or NotFound: none is made
	store     portlayer.StoreName // "": anywhere; a new one in the default store
	driver    string              // "": any
	capacity  portlayer.Bytes     // 0: any; a new one gets the default
	throttle  portlayer.Throttle  // zero members: any; a new one has no bound
	from      string              // what a new one is a copy of (copy.go, original); "": it is empty
	packed    io.Reader           // what a new one is made of (VolumeSpec.Packed); nil: it is empty
	own       map[string]string   // of options, those that are not every store's (portlayer.DirectoryStore)
	options   map[string]string
	labels    map[string]string
	maker     string
}

// theirDriver is the name that clients send when they do not care.
const theirDriver = "local"

// newWish checks what can be checked without a store.
func (s *Service) newWish(id portlayer.VolumeID, driver string, options, labels map[string]string) (wish, error) {
	name := id.Name
	if name == "" && len(options) == 0 {
		options = s.o.AnonymousOptions
	}
	w := wish{name: name, driver: driver, options: noneIfEmpty(options), labels: noneIfEmpty(labels)}
	if w.driver == theirDriver {
		w.driver = ""
	}
	if name == "" {
		w.name, w.anonymous = anonymousName(), true
	} else if err := checkName(name); err != nil {
		return wish{}, err
	}
	if err := w.readOptions(); err != nil {
		return wish{}, fault.Wrap("create volume", string(w.name), err)
	}
	if err := checkLabels(labels); err != nil {
		return wish{}, fault.Wrap("create volume", string(w.name), err)
	}
	if id.Store != "" {
		if w.store != "" && w.store != id.Store {
			return wish{}, fault.New(fault.Invalid, "volume %s is asked for in two stores, %s and %s; name one", w.name, id.Store, w.store)
		}
		w.store, w.qualified = id.Store, name != ""
	}
	return w, nil
}

// readOptions understands every option, or refuses it by name. Which of its own a store has, fits says.
func (w *wish) readOptions() error {
	given := map[string]string{} // meaning -> key as written
	for _, key := range slices.Sorted(maps.Keys(w.options)) {
		text := w.options[key]
		meaning := strings.ToLower(key)
		if meaning == "size" {
			meaning = "capacity"
		}
		if other, twice := given[meaning]; twice {
			return fault.New(fault.Invalid, "options %q and %q mean the same; give one of them", other, key)
		}
		given[meaning] = key
		switch meaning {
		case "capacity":
			b, err := ParseCapacity(text)
			if err != nil {
				return fault.New(fault.Invalid, "option %s: %w", key, err)
			}
			w.capacity = b
		case "volumestore":
			if text == "" {
				return fault.New(fault.Invalid, "option %s is empty; name a volume store, or leave it out for the default one", key)
			}
			w.store = portlayer.StoreName(text)
		case "iops":
			n, err := strconv.ParseInt(text, 10, 64)
			if err != nil || n < 1 || n > maxIOPS {
				return fault.New(fault.Invalid, "option %s: %q is not a number of requests a second between 1 and %d", key, text, maxIOPS)
			}
			w.throttle.IOPS = n
		case "bps":
			b, err := parseRate(text)
			if err != nil {
				return fault.New(fault.Invalid, "option %s: %w", key, err)
			}
			w.throttle.BPS = b
		case "from":
			if text == "" {
				return fault.New(fault.Invalid, "option %s is empty; name the volume to copy: NAME, NAME@STORE, or either with @SNAPSHOT", key)
			}
			w.from = text
		default:
			if w.own == nil {
				w.own = map[string]string{}
			}
			w.own[key] = text
		}
	}
	return nil
}

// fits refuses, by its name, what is asked for and the volumes of a store cannot have.
func (w *wish) fits(st portlayer.VolumeStore) error {
	dirs, ok := st.(portlayer.DirectoryStore)
	if !ok {
		for _, key := range slices.Sorted(maps.Keys(w.own)) {
			return fault.New(fault.Invalid, "invalid option: %q; the options are Capacity (or size), VolumeStore, iops, bps and from", key)
		}
		return nil
	}
	const instead = "its volumes are directories on a server"
	for _, key := range slices.Sorted(maps.Keys(w.options)) {
		switch strings.ToLower(key) {
		case "capacity", "size":
			return fault.New(fault.Unsupported, "option %s: store %s cannot limit a volume, for %s; set a quota there, or name a store on disks with the option VolumeStore", key, st.Name(), instead)
		case "iops", "bps":
			return fault.New(fault.Unsupported, "option %s: store %s cannot slow a volume down, for %s; name a store on disks with the option VolumeStore", key, st.Name(), instead)
		case "from":
			return fault.New(fault.Unsupported, "option %s: store %s cannot copy a volume, for %s; export the other one and import it here (vch volume export, import)", key, st.Name(), instead)
		}
	}
	if w.packed != nil {
		return fault.New(fault.Unsupported, "store %s cannot take a disk, for %s; import a tar, or name a store on disks with the option VolumeStore", st.Name(), instead)
	}
	return dirs.CheckOptions(w.own)
}

// What a throttle can be: QEMU's upper bound (THROTTLE_VALUE_MAX of include/qemu/throttle.h), and at least one block a second.
const (
	maxIOPS int64 = 1e15
	minBPS        = 4 * portlayer.KiB
)

// parseRate reads bytes a second: a whole number, alone or with a unit as ParseCapacity has them.
func parseRate(text string) (portlayer.Bytes, error) {
	if text != "" && strings.Trim(text, "0123456789") == "" {
		text += "B" // alone it is bytes, as for docker run --device-write-bps
	}
	b, err := ParseCapacity(text)
	if err != nil || b < minBPS || int64(b) > maxIOPS {
		return 0, fault.New(fault.Invalid, "%q is not a number of bytes a second of at least 4K: write a whole number, alone or with a unit, such as 512K or 20M (binary units)", text)
	}
	return b, nil
}

// checkLabels refuses what could not be recorded and shown again as it was given.
func checkLabels(labels map[string]string) error {
	for _, key := range slices.Sorted(maps.Keys(labels)) {
		_, err := strconv.ParseBool(labels[key])
		switch {
		case key == portlayer.ProtectLabel && labels[key] != "" && err != nil:
			return fault.New(fault.Invalid, "label %s is %q; write true or false", key, labels[key])
		case key == "":
			return fault.New(fault.Invalid, "a label has an empty name (its value is %q); give it one", labels[key])
		case !utf8.ValidString(key) || strings.ContainsFunc(key, control):
			return fault.New(fault.Invalid, "the name of label %q has control characters or is not UTF-8; use plain text", key)
		case !utf8.ValidString(labels[key]) || strings.ContainsRune(labels[key], 0):
			return fault.New(fault.Invalid, "the value of label %s, %q, has a zero byte or is not UTF-8; use plain text", key, labels[key])
		}
	}
	return nil
}

func control(c rune) bool { return c < ' ' || c == 0x7f }

func noneIfEmpty(m map[string]string) map[string]string {
	if len(m) == 0 {
		return nil
	}
	return maps.Clone(m)
}
